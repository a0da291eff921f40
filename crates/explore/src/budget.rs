//! The number of schedules that a campaign may run, and how its workers share it.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::faults::Faults;
use crate::options::Options;

/// Returns how many of these schedules belong to a share. They are dealt out one by one.
pub(crate) fn share_of(schedules: Range<u64>, (index, of): (u32, u32)) -> u64 {
    let (index, of) = (u64::from(index), u64::from(of));
    let before = |end: u64| end / of + u64::from(end % of > index);
    before(schedules.end) - before(schedules.start)
}

/// Divides a number of schedules among plans, as evenly as possible.
pub(crate) fn dealt(schedules: u64, plans: usize) -> impl Iterator<Item = Range<u64>> {
    let (each, more) = (schedules / plans as u64, schedules % plans as u64);
    let start = move |plan: u64| plan * each + plan.min(more);
    (0..plans as u64).map(move |plan| start(plan)..start(plan + 1))
}

/// The number of schedules that the workers of a process may still run. A worker that has run its share waits until
/// all others have run theirs or have ended. What those have left is then divided again. So the whole budget is used
/// if there are enough schedules, and which worker runs which schedule does not depend on their speed.
#[derive(Debug)]
pub(crate) struct ScheduleBudget {
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Debug)]
struct Held {
    left: u64,
    /// The schedules that are reserved for executions with planned failures.
    later: u64,
    workers: Vec<(State, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    Waits,
    /// It has finished the schedules without planned failures.
    Half,
    Gone,
}

impl ScheduleBudget {
    /// Makes a budget for this number of workers. `left`: schedules without planned failures. `later`: schedules
    /// with them.
    pub(crate) fn new(workers: u32, [left, later]: [u64; 2]) -> Self {
        let mut held = Held { left, later, workers: vec![(State::Waits, 0); workers as usize] };
        held.settle();
        Self { held: Mutex::new(held), changed: Condvar::new() }
    }

    /// Returns how many schedules a campaign may run, without planned failures and with them. With failures, it is
    /// half each.
    pub(crate) fn halves(options: &Options) -> Option<[u64; 2]> {
        let all = share_of(0..options.schedules?, options.shard);
        let first = if options.faults == Faults::None { all } else { all.div_ceil(2) };
        Some([first, all - first])
    }

    /// Sets a worker's state, and waits until its state has changed. Returns the schedules that it was given then.
    fn rest(&self, worker: usize, state: State) -> u64 {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.workers[worker].0 = state;
        held.settle();
        self.changed.notify_all();
        while state != State::Gone && held.workers[worker].0 == state {
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.workers[worker].1
    }
}

impl Held {
    /// Divides what is left as soon as no worker runs any more.
    fn settle(&mut self) {
        for (state, given) in &mut self.workers {
            if matches!(state, State::Half | State::Gone) {
                self.left += std::mem::take(given);
            }
        }
        if self.workers.iter().any(|(state, _)| *state == State::Runs) {
            return;
        }
        let is_half = !self.workers.iter().any(|(state, _)| *state == State::Waits);
        if is_half {
            self.left += std::mem::take(&mut self.later);
        }
        let next = if is_half { State::Half } else { State::Waits };
        let next: Vec<_> = self.workers.iter_mut().filter(|(state, _)| *state == next).collect();
        if next.is_empty() {
            return;
        }
        let shares = dealt(std::mem::take(&mut self.left), next.len());
        for (worker, share) in next.into_iter().zip(shares) {
            // A worker that is given nothing runs on, too, and notices that the budget is empty.
            *worker = (State::Runs, share.end - share.start);
        }
    }
}

/// The budget, as one worker uses it.
#[derive(Clone, Debug)]
pub(crate) struct BudgetShare {
    budget: Arc<ScheduleBudget>,
    worker: usize,
    /// No schedule is left.
    is_empty: Rc<Cell<bool>>,
}

impl BudgetShare {
    pub(crate) fn new(budget: Arc<ScheduleBudget>, worker: u32) -> Self {
        Self { budget, worker: worker as usize, is_empty: Rc::default() }
    }

    /// Returns whether there is one more schedule to run. It may wait for other workers.
    pub(crate) fn has_one_left(&self) -> bool {
        let given = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner).workers[self.worker].1;
        let has_one = given > 0 || !self.is_empty.get() && self.budget.rest(self.worker, State::Waits) > 0;
        self.is_empty.set(!has_one);
        has_one
    }

    /// Returns whether the last look found that no schedule is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_empty.get()
    }

    /// Takes one schedule, which was run, from the worker's share.
    pub(crate) fn spend(&self) {
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.workers[self.worker].1 -= 1;
    }

    /// Waits until all workers have finished the schedules without planned failures.
    pub(crate) fn second_half(&self) {
        self.budget.rest(self.worker, State::Half);
        self.is_empty.set(false);
    }

    /// Gives what this worker has left to the others.
    pub(crate) fn leave(&self) {
        self.budget.rest(self.worker, State::Gone);
    }
}
