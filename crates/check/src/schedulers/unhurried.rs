//! Time-outs fire seldom while something else can run: what would otherwise be chosen as often as
//! anything makes a thread that polls starve those it waits for.

use lockdep::look;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// A scheduler around one that chooses at random.
#[derive(Debug)]
pub struct Unhurried<S> {
    inner: S,
    random: u64,
    /// How often there was something to choose; what has one order only is run once.
    choices: Option<u64>,
}

impl<S> Unhurried<S> {
    /// With a seed for when time-outs are to be chosen from, too.
    pub fn new(inner: S, seed: u64) -> Self {
        Self { inner, random: seed, choices: None }
    }

    /// The next number of a sequence (SplitMix64).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl<S: Scheduler> Scheduler for Unhurried<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.choices.replace(0) == Some(0) {
            return None;
        }
        self.inner.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        let ready: Vec<&Task> =
            look(|model| runnable.iter().copied().filter(|task| model.timer(task.id().into()).is_none()).collect());
        if runnable.len() > 1
            && let Some(choices) = &mut self.choices
        {
            *choices += 1;
        }
        let hurried = ready.is_empty() || ready.len() == runnable.len() || self.next().is_multiple_of(8);
        self.inner.next_task(if hurried { runnable } else { &ready }, current, yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}
