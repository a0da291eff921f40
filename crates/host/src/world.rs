//! What a live card needs from outside: where its resources are made, a clock to measure with, programs, bonds,
//! neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use eswitch::card::{Card, CardError, FaultPlan, Faulty};
use eswitch::lag::{Bond, BondPlan};
use eswitch::{MacAddr, PfIndex};
use flow::Neighbour;
use lockdep::{Domain, Locked, Unlocked};

use crate::pulse::Pulse;

/// Everything outside of one live card that it needs. Make one each time a card is brought up.
#[derive(Clone)]
pub struct World {
    /// The card, which holds nothing yet. It must obey `faults`.
    pub card: Arc<dyn Card>,
    /// The faults, to which the steps `fail` and `delay` add.
    pub faults: Arc<FaultPlan>,
    /// The lockdep domain of the card's threads, which keeps their reports.
    pub domain: Arc<Domain>,
    /// What waits wait on, and what stops them.
    pub pulse: Arc<Pulse>,
    /// The time since some moment, to measure steps with. No decision depends on it.
    pub clock: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// Runs programs where the card's netdevs are, on a card that has netdevs.
    pub programs: Option<Arc<dyn Programs>>,
    /// The bonds over the card's netdevs, on a card that has netdevs.
    pub bonds: Option<Arc<dyn Bonds>>,
    /// The neighbours behind the card's netdevs, on a card that has netdevs.
    pub neighbours: Option<Arc<dyn Neighbours>>,
}

impl World {
    /// A world around a card, which is made to obey faults: without programs, bonds or neighbours, and with a
    /// clock that always shows zero.
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
            neighbours: None,
        }
    }
}

/// The kernel's bonds where the card's netdevs are.
pub trait Bonds: Send + Sync {
    /// A watcher of them. There is one at a time.
    fn watch(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Box<dyn BondWatch>>;

    /// Ends the [wait](BondWatch::wait) of the watch.
    fn wake(&self);

    /// Why the kernel has no bonds, if it has none: then [`Command::Bond`](control::Command::Bond) reports one to the
    /// engine instead.
    fn missing(&self, cx: &mut Locked<'_, Unlocked>) -> Option<String>;

    /// Makes a bond, or changes the one of that name to be as planned. Not every port need have a netdev now: one that
    /// appears later is put in.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    fn set(&self, cx: &mut Locked<'_, Unlocked>, plan: &BondPlan) -> Result<(), CardError>;

    /// Changes a bond that was [set](Self::set), `away` from its plan or back to it, in a way that matters to a
    /// LAG. What cannot be changed is passed over.
    fn flap(&self, cx: &mut Locked<'_, Unlocked>, plan: &BondPlan, away: bool);

    /// Deletes a bond that has, or may have, ports of the card; returns whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    fn delete(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<bool, CardError>;
}

/// A watch on the kernel's bonds.
pub trait BondWatch: Send {
    /// Waits until something may have changed, or it is [woken](Bonds::wake).
    fn wait(&mut self);

    /// The bond the card's ports are in now.
    fn look(&mut self, cx: &mut Locked<'_, Unlocked>) -> Option<Bond>;
}

/// The kernel's neighbours where the card's netdevs are, see [`Engine::set_neighbour`](eswitch::Engine::set_neighbour).
pub trait Neighbours: Send + Sync {
    /// A watcher of them. There is one at a time.
    fn watch(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Box<dyn NeighbourWatch>>;

    /// Ends the [wait](NeighbourWatch::wait) of the watch. The caller may hold any lock, so this never waits.
    fn wake(&self);

    /// Sets the MAC address of a neighbour behind a PF's netdev for good, or deletes the neighbour.
    ///
    /// # Errors
    /// The netdev is not where netdevs appear, or the kernel refuses.
    fn set(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        pf: PfIndex,
        to: IpAddr,
        mac: Option<MacAddr>,
    ) -> Result<(), CardError>;
}

/// A watch on the kernel's neighbours.
pub trait NeighbourWatch: Send {
    /// Waits until something may have changed, or it is [woken](Neighbours::wake), or, with `in_use`, until neighbours
    /// are to be [used](Self::use_neighbours). Returns whether they are.
    fn wait(&mut self, in_use: bool) -> bool;

    /// The next hops from PFs to the ends of tunnels, of those that are known. `None`: the kernel cannot be queried, and
    /// [`wait`](Self::wait) ends soon.
    fn look(
        &mut self,
        cx: &mut Locked<'_, Unlocked>,
        ends: &[(PfIndex, IpAddr)],
    ) -> Option<BTreeMap<(PfIndex, IpAddr), Neighbour>>;

    /// Has the kernel check that the next hops to these ends are still there, as it would if it had sent packets to them
    /// itself, and try again to find those that are not known.
    fn use_neighbours(&mut self, cx: &mut Locked<'_, Unlocked>, sent_to: &BTreeSet<(PfIndex, IpAddr)>);
}

/// Runs programs where the card's netdevs are.
pub trait Programs: Send + Sync {
    /// Runs a shell command until it ends. It is ended when `stop` returns true or `limit` has passed.
    ///
    /// # Errors
    /// It could not be started, or was ended; as a text.
    fn run(&self, command: &str, limit: Duration, stop: &mut dyn FnMut() -> bool) -> Result<Finished, String>;

    /// Whether there is a netdev of that name in the card's host namespace.
    fn has_netdev(&self, name: &str) -> bool;
}

/// What a program has returned and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status, or 128 and the signal that ended it.
    pub status: i32,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}
