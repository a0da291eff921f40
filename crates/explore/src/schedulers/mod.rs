//! Schedulers: each decides which thread runs next.

mod bounded;
mod random;
mod recorded;
mod unhurried;

pub use bounded::{Bounded, Counts};
pub use random::Random;
pub use recorded::{Deviation, Recorded, Replay};
pub use unhurried::Unhurried;

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// A scheduler that can be read while it is lent to a runner.
#[derive(Debug)]
pub struct Shared<S>(Rc<RefCell<S>>);

impl<S> Shared<S> {
    /// Wraps a scheduler.
    pub fn new(scheduler: S) -> Self {
        Self(Rc::new(RefCell::new(scheduler)))
    }

    /// Borrows it.
    pub fn borrow(&self) -> Ref<'_, S> {
        self.0.borrow()
    }
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: Scheduler> Scheduler for Shared<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.0.borrow_mut().new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        self.0.borrow_mut().next_task(runnable, current, yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.borrow_mut().next_u64()
    }
}
