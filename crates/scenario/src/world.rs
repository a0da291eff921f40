//! What a story needs of the outside: a card, a clock to measure with, programs.

use std::sync::Arc;
use std::time::Duration;

use eswitch::card::{Card, FaultPlan};
use lockdep::Domain;

use crate::pulse::Pulse;

/// Where a story is told. Make one for each telling.
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
