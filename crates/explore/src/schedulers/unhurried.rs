//! Time-outs fire seldom while something else can run: what would otherwise be chosen as often as
//! anything makes a thread that polls starve those it waits for.

use lockdep::look;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use super::random::Numbers;

/// A scheduler around one that chooses at random.
#[derive(Debug)]
pub struct Unhurried<S> {
    inner: S,
    numbers: Numbers,
    /// How often there was something to choose; what has one order only is run once.
    choices: Option<u64>,
}

impl<S> Unhurried<S> {
    /// With a seed for when time-outs are to be chosen from, too.
    pub fn new(inner: S, seed: u64) -> Self {
        Self { inner, numbers: Numbers::new(seed), choices: None }
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
        let hurried = ready.is_empty() || ready.len() == runnable.len() || self.numbers.next().is_multiple_of(8);
        self.inner.next_task(if hurried { runnable } else { &ready }, current, yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}
