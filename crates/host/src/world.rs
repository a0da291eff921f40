//! What a card that runs needs of the outside: where its resources are made, a clock to measure with, programs, bonds.

use std::sync::Arc;
use std::time::Duration;

use eswitch::card::{Card, CardError, FaultPlan, Faulty};
use eswitch::lag::{Bond, BondPlan};
use lockdep::{Domain, Locked, Unlocked};

use crate::pulse::Pulse;

/// The outside of one card. Make one for each time that a card is brought up.
#[derive(Clone)]
pub struct World {
    /// The card, which holds nothing yet. What `faults` says must reach it.
    pub card: Arc<dyn Card>,
    /// What `fail` and `delay` add to.
    pub faults: Arc<FaultPlan>,
    /// Where threads are born, and where lock reports are kept.
    pub domain: Arc<Domain>,
    /// How to be stopped.
    pub pulse: Arc<Pulse>,
    /// The time since some moment, to measure steps with. It decides nothing.
    pub clock: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// How to run programs among the card's netdevs, on a card that has netdevs.
    pub programs: Option<Arc<dyn Programs>>,
    /// The bonds over the card's netdevs, on a card that has netdevs.
    pub bonds: Option<Arc<dyn Bonds>>,
}

impl World {
    /// A world around a card that what `fail` and `delay` say reaches: without programs or bonds, and with a
    /// clock that stands still.
    pub fn of(card: impl Card + 'static, domain: &Arc<Domain>) -> Self {
        let faults = Arc::new(FaultPlan::default());
        Self {
            card: Arc::new(Faulty::new(card, Arc::clone(&faults))),
            faults,
            domain: Arc::clone(domain),
            pulse: Arc::new(Pulse::new()),
            clock: Arc::new(|| Duration::ZERO),
            programs: None,
            bonds: None,
        }
    }
}

/// The kernel's bonds where the card's netdevs are.
pub trait Bonds: Send + Sync {
    /// A watcher of them. There is one at a time.
    fn watch(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Box<dyn BondWatch>>;

    /// Ends the wait of the watcher.
    fn wake(&self);

    /// Why the kernel can have no bond, if it cannot: then [`Command::Bond`](control::Command::Bond) stands in for one.
    fn missing(&self, cx: &mut Locked<'_, Unlocked>) -> Option<String>;

    /// Makes a bond, or makes the one of that name so. Not every port need have a netdev now: one that comes
    /// later is put in.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    fn set(&self, cx: &mut Locked<'_, Unlocked>, plan: &BondPlan) -> Result<(), CardError>;

    /// Changes a bond that was made so, away from how it should stand or back, in a way that matters to a
    /// LAG. What cannot be changed is passed over.
    fn flap(&self, cx: &mut Locked<'_, Unlocked>, plan: &BondPlan, away: bool);

    /// Deletes a bond that has, or may have, ports of the card; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    fn delete(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<bool, CardError>;
}

/// A watcher of the kernel's bonds.
pub trait BondWatch: Send {
    /// Waits until something may have changed, or it is [woken](Bonds::wake).
    fn wait(&mut self);

    /// The bond the card's ports are in now.
    fn look(&mut self, cx: &mut Locked<'_, Unlocked>) -> Option<Bond>;
}

/// Runs programs where the card's netdevs are.
pub trait Programs: Send + Sync {
    /// Runs a shell command to its end, or until `stop` says so or `limit` has passed: then it is
    /// ended.
    ///
    /// # Errors
    /// It could not be started, or was ended; in words.
    fn run(&self, command: &str, limit: Duration, stop: &mut dyn FnMut() -> bool) -> Result<Finished, String>;

    /// Whether there is a netdev of that name in the card's host namespace.
    fn has_netdev(&self, name: &str) -> bool;
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status, or 128 and the signal that ended it.
    pub status: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}
