//! Barriers: the threads that have a step `sync NAME` go on together.

use std::collections::{BTreeMap, BTreeSet};

use lockdep::{Locked, Mutex, digest, lock_classes};

use host::Pulse;

lock_classes! {
    /// The threads of each barrier, and those that have reached it.
    pub leaf BarrierClass = "barriers";
}

/// Every barrier of the running threads.
#[derive(Debug)]
pub(crate) struct Barriers(Mutex<BarrierClass, BTreeMap<String, Barrier>>);

#[derive(Debug, Default, Hash)]
struct Barrier {
    members: BTreeSet<String>,
    arrived: BTreeSet<String>,
    round: u64,
}

impl Barrier {
    fn release_if_full(&mut self) {
        if self.members.is_subset(&self.arrived) {
            self.arrived.clear();
            self.round += 1;
        }
    }
}

impl Default for Barriers {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()).with_state_digest(digest))
    }
}

impl Barriers {
    /// Adds a thread to those that a barrier waits for.
    pub fn join<L>(&self, cx: &mut Locked<'_, L>, name: &str, thread: &str) {
        let mut barriers = self.0.lock_leaf(cx);
        let barrier = barriers.entry(name.to_owned()).or_default();
        barrier.members.insert(thread.to_owned());
    }

    /// Records that a thread has reached a barrier; the round whose end it waits for.
    pub fn arrive<L>(&self, cx: &mut Locked<'_, L>, pulse: &Pulse, name: &str, thread: &str) -> u64 {
        let round = {
            let mut barriers = self.0.lock_leaf(cx);
            let barrier = barriers.entry(name.to_owned()).or_default();
            let round = barrier.round;
            barrier.arrived.insert(thread.to_owned());
            barrier.release_if_full();
            round
        };
        pulse.beat(cx);
        round
    }

    /// Checks whether a round is over.
    ///
    /// # Errors
    /// It is not: the threads that are still missing.
    pub fn is_over<L>(&self, cx: &mut Locked<'_, L>, name: &str, round: u64) -> Result<(), Vec<String>> {
        let barriers = self.0.lock_leaf(cx);
        match barriers.get(name) {
            Some(barrier) if barrier.round == round => {
                Err(barrier.members.difference(&barrier.arrived).cloned().collect())
            }
            _ => Ok(()),
        }
    }

    /// Removes a thread that has ended from every barrier, so that no other waits for it.
    pub fn leave<L>(&self, cx: &mut Locked<'_, L>, pulse: &Pulse, thread: &str) {
        for barrier in self.0.lock_leaf(cx).values_mut() {
            if barrier.members.remove(thread) && !barrier.members.is_empty() {
                barrier.release_if_full();
            }
        }
        pulse.beat(cx);
    }
}
