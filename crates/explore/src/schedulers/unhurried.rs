//! Makes time-outs fire seldom while something else can run. If they were chosen as often as other steps, a thread
//! that polls would starve the threads for which it waits.

use lockdep::look;
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use super::random::Numbers;

/// A scheduler around one that chooses at random.
#[derive(Debug)]
pub struct Unhurried<S> {
    inner: S,
    numbers: Numbers,
    /// How often there was a choice. A program without a choice is run once.
    choices: Option<u64>,
    /// The scheduler has had a choice. PCT must have one in the first schedule, if there is one.
    has_chosen: bool,
}

impl<S> Unhurried<S> {
    /// Makes the scheduler. `seed` determines when time-outs are among the choices.
    pub fn new(inner: S, seed: u64) -> Self {
        Self { inner, numbers: Numbers::new(seed), choices: None, has_chosen: false }
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
        let must_choose = !self.has_chosen && ready.len() == 1;
        let choices = if hurried || must_choose { runnable } else { &ready };
        self.has_chosen |= choices.len() > 1;
        self.inner.next_task(choices, current, yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}
