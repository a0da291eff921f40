//! Schedules that are recorded and run again.
//!
//! A schedule is described by its differences from the plain one. In the plain schedule a thread runs until it
//! cannot go on, then the first thread that can, and time-outs fire last. Each difference names the thread that ran,
//! how many operations it had done, and the thread that runs instead. So one difference can be left out and the
//! others keep their meaning.

use std::cell::RefCell;
use std::rc::Rc;

use lockdep::{Halt, Model, look};
use serde::{Deserialize, Serialize};
use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

use super::bounded::{Choice, choices, state};

/// A switch that differs from the plain schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Deviation {
    /// The index of the thread that ran; 255 if none did.
    pub thread: u8,
    /// How many operations it had done.
    pub ops: u32,
    /// The index of the thread that runs next.
    pub to: u8,
}

fn plain(model: &Model, runnable: &[&Task], current: Option<usize>) -> usize {
    model.plain_choice(runnable.iter().map(|task| usize::from(task.id())), current)
}

fn place(model: &Model, current: Option<usize>) -> (u8, u32) {
    current.map_or((u8::MAX, 0), |thread| (thread as u8, model.threads()[thread].ops()))
}

/// A scheduler that records the choices of another one.
#[derive(Debug)]
pub struct Recorded<S> {
    inner: S,
    deviations: Rc<RefCell<Vec<Deviation>>>,
}

impl<S> Recorded<S> {
    /// Makes the scheduler. The second value is the list of deviations of its current schedule.
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

/// A scheduler that runs one schedule again.
#[derive(Debug)]
pub struct Replay {
    deviations: Vec<Deviation>,
    begun: bool,
    returns: Option<Returns>,
    /// Which of the deviations have occurred.
    met: Rc<RefCell<Vec<bool>>>,
}

impl Replay {
    /// Makes the scheduler for the schedule with these deviations.
    pub fn new(deviations: Vec<Deviation>) -> Self {
        let met = Rc::new(RefCell::new(vec![false; deviations.len()]));
        Self { deviations, begun: false, returns: None, met }
    }

    /// Returns which of the deviations have occurred. The others were not run.
    pub fn met(&self) -> Rc<RefCell<Vec<bool>>> {
        Rc::clone(&self.met)
    }

    /// Ends the schedule where everything is as it was before, so that it can loop for ever, as
    /// [`Bounded`](super::Bounded) does.
    #[must_use]
    pub fn returning(mut self, returns: bool) -> Self {
        self.returns = returns.then(Returns::default);
        self
    }
}

/// The points of a schedule at which no thread could go on, to recognise one that occurs again.
#[derive(Debug, Default)]
struct Returns {
    points: Vec<Point>,
    spent: u64,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Point {
    state: u64,
    /// The preemptions before it. The next field is the number of time-outs that had fired.
    spent: u64,
    fired: u64,
    step: usize,
}

impl Returns {
    /// Returns why the schedule ends here, if everything is as it was at an earlier point and neither a preemption
    /// nor a time-out has happened since.
    fn at(&mut self, model: &Model, runnable: &[&Task], current: Option<usize>, chosen: usize) -> Option<Halt> {
        let current = current.filter(|thread| model.goes_on(*thread));
        if current.is_none() {
            let (state, step) = (state(model, runnable), model.steps());
            let point = Point { state, spent: self.spent, fired: model.fired(), step };
            let before = self.points.iter().rev().find(|before| before.state == state);
            let is_round = |before: &&Point| before.spent == point.spent && before.fired == point.fired;
            if let Some(before) = before.filter(is_round).filter(|before| before.step < step) {
                return Some(Halt::Livelock(step, step - before.step));
            }
            self.points.push(point);
        }
        self.choices.clear();
        choices(model, runnable, current.map(|thread| thread as u8), &mut self.choices);
        let chosen = self.choices.iter().find(|choice| usize::from(choice.thread) == chosen);
        self.spent += chosen.map_or(0, |choice| choice.cost.into());
        None
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
            let meant = self.deviations.iter().position(|d| d.thread == thread && d.ops == ops);
            let meant = meant.map(|at| (at, usize::from(self.deviations[at].to)));
            let meant = meant.filter(|(_, to)| runnable.iter().any(|task| usize::from(task.id()) == *to));
            if let Some((at, _)) = meant {
                self.met.borrow_mut()[at] = true;
            }
            let chosen = meant.map_or_else(|| plain(model, runnable, current), |(_, to)| to);
            let halt = self.returns.as_mut().and_then(|returns| returns.at(model, runnable, current, chosen));
            if let Some(halt) = halt {
                model.stop(halt);
                return None;
            }
            Some(chosen)
        })?;
        if let Some(current) = current.filter(|current| *current != chosen) {
            let preempts = look(|model| model.goes_on(current));
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
