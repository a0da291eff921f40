//! Schedules written down, and run again.
//!
//! A schedule is told by where it differs from the plain one, in which a thread runs until it cannot go
//! on and then the first that can, time-outs last. Each difference names the thread that ran, how many
//! operations it had done, and who runs instead: so that one can be left out and the others still mean
//! the same.

use std::cell::RefCell;
use std::rc::Rc;

use lockdep::{Model, look};
use serde::{Deserialize, Serialize};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// A switch that is not the plain one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deviation {
    /// The thread that ran, 255 for none.
    pub thread: u8,
    /// How many operations it had done.
    pub ops: u32,
    /// The thread that runs next.
    pub to: u8,
}

fn plain(model: &Model, runnable: &[&Task], current: Option<usize>) -> usize {
    model.plain_choice(runnable.iter().map(|task| usize::from(task.id())), current)
}

fn place(model: &Model, current: Option<usize>) -> (u8, u32) {
    current.map_or((u8::MAX, 0), |thread| (thread as u8, model.threads()[thread].ops()))
}

/// A scheduler around a scheduler that writes down what that chooses.
#[derive(Debug)]
pub struct Recorded<S> {
    inner: S,
    deviations: Rc<RefCell<Vec<Deviation>>>,
}

impl<S> Recorded<S> {
    /// The scheduler, and the deviations of its current schedule.
    pub fn new(inner: S) -> (Self, Rc<RefCell<Vec<Deviation>>>) {
        let deviations = Rc::new(RefCell::new(Vec::new()));
        (Self { inner, deviations: Rc::clone(&deviations) }, deviations)
    }
}

impl<S: Scheduler> Scheduler for Recorded<S> {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.deviations.borrow_mut().clear();
        self.inner.new_execution()
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, yielding: bool) -> Option<TaskId> {
        let chosen = self.inner.next_task(runnable, current, yielding)?;
        let current = current.map(usize::from);
        look(|model| {
            if plain(model, runnable, current) != usize::from(chosen) {
                let (thread, ops) = place(model, current);
                let to = usize::from(chosen) as u8;
                self.deviations.borrow_mut().push(Deviation { thread, ops, to });
            }
        });
        Some(chosen)
    }

    fn next_u64(&mut self) -> u64 {
        self.inner.next_u64()
    }
}

/// Runs one schedule again.
#[derive(Debug)]
pub struct Replay {
    deviations: Vec<Deviation>,
    begun: bool,
}

impl Replay {
    /// The schedule with these deviations.
    pub fn new(deviations: Vec<Deviation>) -> Self {
        Self { deviations, begun: false }
    }
}

impl Scheduler for Replay {
    fn new_execution(&mut self) -> Option<Schedule> {
        (!std::mem::replace(&mut self.begun, true)).then(|| Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], current: Option<TaskId>, _: bool) -> Option<TaskId> {
        let current = current.map(usize::from);
        let chosen = look(|model| {
            let (thread, ops) = place(model, current);
            let meant = self.deviations.iter().find(|d| d.thread == thread && d.ops == ops);
            let meant = meant.map(|d| usize::from(d.to));
            meant
                .filter(|to| runnable.iter().any(|task| usize::from(task.id()) == *to))
                .unwrap_or_else(|| plain(model, runnable, current))
        });
        if let Some(current) = current.filter(|current| *current != chosen) {
            let preempts = look(|model| model.threads()[current].is_enabled() && model.timer(current).is_none());
            if preempts {
                let by = look(|model| model.threads()[chosen].name.clone());
                lockdep::note("preempted", || by);
            }
        }
        Some(TaskId::from(chosen))
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}
