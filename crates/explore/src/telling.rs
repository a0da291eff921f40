//! Running a program in one schedule, and what came of it.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use lockdep::{Domain, EdgeInfo, Explore, Halt, Oracle};
use serde::{Deserialize, Serialize};

use crate::faults::{Place, Planned};
use crate::program::{Program, Run, StepId};
use crate::report::MOST_THREADS;
use crate::schedulers::{Deviation, Replay};

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Found {
    /// The invariant's name.
    pub invariant: String,
    /// What was found.
    pub detail: String,
}

impl Found {
    /// An invariant that does not hold, and what was found instead.
    pub fn new(invariant: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { invariant: invariant.into(), detail: detail.into() }
    }
}

/// How a program is run once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Telling {
    /// What fails.
    pub faults: Vec<Place>,
    /// Where the schedule is not the plain one.
    pub deviations: Vec<Deviation>,
}

/// The tellings in which the checker of locks has seen an order that it had not seen before. An inversion may
/// be between two schedules, or between two that have different things fail: then it takes both to show it.
#[derive(Debug, Default)]
pub(crate) struct Lessons {
    known: Vec<EdgeInfo>,
    /// How much the checker had seen by then.
    seen: u32,
    lessons: Vec<Lesson>,
}

/// A telling from which the checker of locks has learned.
#[derive(Clone, Debug)]
pub(crate) struct Lesson {
    pub telling: Telling,
    /// After how many steps it would have been given up.
    pub bound: usize,
    pub orders: Vec<EdgeInfo>,
}

impl Lessons {
    /// Keeps the telling that has just ended, if the checker has learned from it.
    pub fn learn<P: Program>(&mut self, teller: &Teller<P>, deviations: &[Deviation], bound: usize) {
        let seen = teller.domain.lesson_count();
        if std::mem::replace(&mut self.seen, seen) == seen {
            return;
        }
        let edges = teller.domain.edges();
        let orders = edges.iter().filter(|edge| !self.known.contains(edge)).cloned().collect();
        let telling = Telling { faults: teller.plan.to_vec(), deviations: deviations.to_vec() };
        self.lessons.push(Lesson { telling, bound, orders });
        self.known = edges;
    }

    /// All of them.
    pub fn all(&self) -> &[Lesson] {
        &self.lessons
    }

    /// What must be told first for this to be found again.
    pub fn before(&self, found: &[Found]) -> Vec<Telling> {
        let of_locks = found.iter().any(|found| found.invariant == "lock-order");
        let tellings = self.lessons.iter().map(|lesson| lesson.telling.clone());
        if of_locks { tellings.collect() } else { Vec::new() }
    }
}

/// A program, ready to be run again and again on one OS thread.
#[derive(Debug, Clone)]
pub(crate) struct Teller<P> {
    program: Arc<P>,
    domain: Arc<Domain>,
    planned: Arc<Planned>,
    found: Arc<Mutex<Vec<Found>>>,
    plan: Arc<[Place]>,
    /// Steps have been left out.
    lacks_steps: bool,
}

impl<P: Program> Teller<P> {
    /// For a program with a plan of what fails.
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

    /// Of a program of which steps have been left out, if they have.
    pub fn lacking(self, steps: &[StepId]) -> Self {
        Self { lacks_steps: !steps.is_empty(), ..self }
    }

    /// The same with another plan. What the checker of locks has learned they have in common.
    pub fn with(&self, plan: &[Place]) -> Self {
        Self { plan: plan.into(), ..self.clone() }
    }

    /// One for another program. What the checker of locks has learned they have in common.
    pub fn of(&self, program: Arc<P>) -> Self {
        Self { program, ..self.clone() }
    }

    /// Tells it in these ways, for what the checker of locks learns from it. Whether all of them came as they are
    /// written.
    pub fn learn<'a>(&self, tellings: impl IntoIterator<Item = &'a Telling>, how: Explore) -> bool {
        let mut came = true;
        for telling in tellings {
            let teller = self.with(&telling.faults);
            let listener = teller.clone();
            let ended = move |halt: Option<Halt>| {
                listener.verdict(halt);
                ControlFlow::Break(())
            };
            let replay = Replay::new(telling.deviations.clone());
            let met = replay.met();
            how.run(replay, ended, move || teller.tell(false));
            came &= self.unmet().is_empty() && met.borrow().iter().all(|met| *met);
        }
        came
    }

    /// What is made to fail.
    pub fn plan(&self) -> &[Place] {
        &self.plan
    }

    /// The program.
    pub fn program(&self) -> &P {
        &self.program
    }

    /// Runs it, inside an exploration. `notes`: the places that could fail are noted.
    pub fn tell(&self, notes: bool) {
        self.planned.begin(&self.plan, notes);
        let run = Run::new(&self.domain, !self.plan.is_empty(), self.lacks_steps);
        let found = lockdep::enter(&self.domain, "main", |cx| self.program.run(cx, &run));
        self.found().extend(found);
    }

    /// What of the plan has not failed in the telling that has just ended.
    pub fn unmet(&self) -> Vec<Place> {
        self.planned.unmet()
    }

    /// What did not hold in the telling that has just ended, and the places it met that could fail.
    pub fn verdict(&self, halt: Option<Halt>) -> (Vec<Found>, Vec<Place>) {
        let mut found = std::mem::take(&mut *self.found());
        // What the checker had to say before the end, if the end was not reached.
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
        // An invariant says more than a step or an expectation that its breaking leads to.
        found.sort_by_key(|found| self.program.is_consequence(found));
        found.dedup();
        (found, self.planned.take_met())
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Vec<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
