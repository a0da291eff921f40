//! One execution of a program, and its verdict.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use lockdep::{Domain, EdgeInfo, Explore, Halt, Oracle};
use serde::{Deserialize, Serialize};

use crate::faults::{Place, Planned};
use crate::program::{Program, Run, StepId};
use crate::report::MOST_THREADS;
use crate::schedulers::{Deviation, Replay};

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    /// The invariant's name.
    pub invariant: String,
    /// What was found instead.
    pub detail: String,
}

impl Found {
    /// Makes a finding: an invariant that does not hold, and what was found instead.
    pub fn new(invariant: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { invariant: invariant.into(), detail: detail.into() }
    }
}

/// What determines an execution of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// The places that fail.
    pub faults: Vec<Place>,
    /// Where the schedule differs from the plain one.
    pub deviations: Vec<Deviation>,
}

/// The executions in which the checker of locks has seen a new order. An inversion may lie between two schedules, or
/// between two executions in which different things fail. Then both are needed to show it.
#[derive(Debug, Default)]
pub(crate) struct Lessons {
    known: Vec<EdgeInfo>,
    /// The checker's [count](lockdep::Domain::lesson_count) by then.
    seen: u32,
    lessons: Vec<Lesson>,
}

/// An execution from which the checker of locks has learned.
#[derive(Clone, Debug)]
pub(crate) struct Lesson {
    pub execution: Execution,
    /// The number of steps after which it would have been given up.
    pub bound: usize,
    pub orders: Vec<EdgeInfo>,
}

impl Lessons {
    /// Keeps the execution that has just ended, if the checker has learned from it.
    pub fn learn<P: Program>(&mut self, prepared: &Prepared<P>, deviations: &[Deviation], bound: usize) {
        let seen = prepared.domain.lesson_count();
        if std::mem::replace(&mut self.seen, seen) == seen {
            return;
        }
        let edges = prepared.domain.edges();
        let orders = edges.iter().filter(|edge| !self.known.contains(edge)).cloned().collect();
        let execution = Execution { faults: prepared.plan.to_vec(), deviations: deviations.to_vec() };
        self.lessons.push(Lesson { execution, bound, orders });
        self.known = edges;
    }

    /// Returns all of them.
    pub fn all(&self) -> &[Lesson] {
        &self.lessons
    }

    /// Returns the executions that must be run first to show these findings again.
    pub fn before(&self, found: &[Found]) -> Vec<Execution> {
        let of_locks = found.iter().any(|found| found.invariant == "lock-order");
        let executions = self.lessons.iter().map(|lesson| lesson.execution.clone());
        if of_locks { executions.collect() } else { Vec::new() }
    }
}

/// A program that is ready to be run again and again on one OS thread.
#[derive(Debug, Clone)]
pub(crate) struct Prepared<P> {
    program: Arc<P>,
    domain: Arc<Domain>,
    planned: Arc<Planned>,
    found: Arc<Mutex<Vec<Found>>>,
    plan: Arc<[Place]>,
    /// Steps have been left out.
    lacks_steps: bool,
}

impl<P: Program> Prepared<P> {
    /// Prepares a program with a plan of the places that fail.
    pub fn new(program: Arc<P>, plan: &[Place]) -> Self {
        let planned = Arc::new(Planned::default());
        let oracle: Arc<dyn Oracle> = Arc::clone(&planned) as _;
        Self {
            program,
            domain: Domain::exploring(Some(oracle)),
            planned,
            found: Arc::default(),
            plan: plan.into(),
            lacks_steps: false,
        }
    }

    /// Marks the program as one that lacks these steps, if there are any.
    pub fn lacking(self, steps: &[StepId]) -> Self {
        Self { lacks_steps: !steps.is_empty(), ..self }
    }

    /// Returns a copy with another plan. Both share what the checker of locks has learned.
    pub fn with(&self, plan: &[Place]) -> Self {
        Self { plan: plan.into(), ..self.clone() }
    }

    /// Returns a copy for another program. Both share what the checker of locks has learned.
    pub fn of(&self, program: Arc<P>) -> Self {
        Self { program, ..self.clone() }
    }

    /// Runs these executions, so that the checker of locks learns from them. Returns whether all of them ran as they
    /// are written.
    pub fn learn<'a>(&self, executions: impl IntoIterator<Item = &'a Execution>, how: Explore) -> bool {
        let mut came = true;
        for execution in executions {
            let prepared = self.with(&execution.faults);
            let listener = prepared.clone();
            let ended = move |halt: Option<Halt>| {
                listener.verdict(halt);
                ControlFlow::Break(())
            };
            let replay = Replay::new(execution.deviations.clone());
            let met = replay.met();
            how.run(replay, ended, move || prepared.run(false));
            came &= self.unmet().is_empty() && met.borrow().iter().all(|met| *met);
        }
        came
    }

    /// Returns the places that fail.
    pub fn plan(&self) -> &[Place] {
        &self.plan
    }

    /// Returns the program.
    pub fn program(&self) -> &P {
        &self.program
    }

    /// Runs the program, inside an exploration. `notes`: the places that could fail are noted.
    pub fn run(&self, notes: bool) {
        self.planned.begin(&self.plan, notes);
        let run = Run::new(&self.domain, !self.plan.is_empty(), self.lacks_steps);
        let found = lockdep::enter(&self.domain, "main", |cx| self.program.run(cx, &run));
        self.found().extend(found);
    }

    /// Returns the places of the plan that did not fail in the execution that has just ended.
    pub fn unmet(&self) -> Vec<Place> {
        self.planned.unmet()
    }

    /// Returns what did not hold in the execution that has just ended, and the places that it met that could fail.
    pub fn verdict(&self, halt: Option<Halt>) -> (Vec<Found>, Vec<Place>) {
        let mut found = std::mem::take(&mut *self.found());
        // The checker's reports, also those of an execution that was given up.
        found.extend(
            self.domain
                .take_reports()
                .iter()
                .map(|report| Found { invariant: report.invariant().to_owned(), detail: report.to_string() }),
        );
        match halt {
            Some(Halt::Panic(_)) if !found.is_empty() => {}
            Some(halt) => found.push(self.program.halted(&halt)),
            None => {}
        }
        let threads = lockdep::look(|model| model.threads().len());
        if threads > MOST_THREADS {
            let detail = format!("{threads} threads were started; at most {MOST_THREADS} can be explored");
            found.push(Found::new("thread-limit", detail));
        }
        // An invariant says more than a step or an expectation that fails as a consequence.
        found.sort_by_key(|found| self.program.is_consequence(found));
        found.dedup();
        (found, self.planned.take_met())
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Vec<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
