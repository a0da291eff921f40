//! A campaign: runs a program in every schedule, or in many, with every planned failure.

mod bounded;
mod random;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use lockdep::{Explore, Halt};
use shuttle::scheduler::Scheduler;

use crate::budget::BudgetShare;
use crate::execution::{Execution, Found, Lesson, Lessons, Prepared};
use crate::faults::{Faults, Place};
use crate::options::{Options, Strategy, Watch};
use crate::program::Program;
use crate::schedulers::{Bounded, Deviation, Recorded, Replay, Shared};

/// An execution that failed, and how to run it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    pub found: Vec<Found>,
    pub plan: Vec<Place>,
    pub deviations: Vec<Deviation>,
    /// The number of steps after which it would have been given up.
    pub bound: usize,
    /// It ended where everything was as before.
    pub returns: bool,
    /// The executions from which the checker of locks had learned.
    pub after: Vec<Execution>,
}

/// The result of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub schedules: u64,
    /// The bound up to which every schedule was met, without planned failures.
    pub exhaustive: Option<u8>,
    /// The same with each planned failure, or pair.
    pub exhaustive_with_faults: Option<u8>,
    /// Bounded: every schedule of its share was met, whatever its number of preemptions, with every planned failure.
    pub complete: bool,
    pub places: usize,
    /// How many plans were tried, and the number of plans. Random strategies: the plans with as many failures as
    /// requested that were run at least once, each counted by one worker only. Bounded: the failures with which all
    /// schedules without preemptions were met, also with every second failure if pairs are requested.
    pub plans: [u64; 2],
    pub failures: Vec<Failure>,
    pub steps: u64,
    /// States that did not fit into memory.
    pub forgotten: u64,
    /// What the checker of locks has learned, and from which executions.
    pub lessons: Vec<Lesson>,
}

/// The plain run determines how many steps are too many.
const PATIENCE: usize = 50;
const LEAST_BOUND: usize = 20_000;

/// One worker of a campaign, which is an OS thread.
pub(crate) struct Worker<'a, P> {
    pub prepared: Prepared<P>,
    /// The options of the search, whose strategy is not a portfolio.
    pub options: &'a Options,
    /// Random strategies: schedules of this part, beside those in the options.
    pub spare: u64,
    pub watch: Arc<Watch>,
    /// Another worker has found something.
    pub found: Arc<AtomicBool>,
    /// The index of its share of the work, and the number of shares.
    pub share: (u32, u32),
    /// Its index among the workers of this part, and their number.
    pub job: (u32, u32),
    pub began: Instant,
    /// The last plan, and the places that were met after everything in it had failed.
    pub last: RefCell<(Vec<Place>, BTreeSet<Place>)>,
    pub lessons: Rc<RefCell<Lessons>>,
    /// Bounded, with a number of schedules: its share of the budget.
    pub budget: Option<BudgetShare>,
}

#[derive(Default)]
struct Search {
    /// The schedules of this worker's share.
    schedules: u64,
    /// All schedules that it ran, including those of other shares.
    told: u64,
    failure: Option<Failure>,
    met: BTreeSet<Place>,
    /// It was ended before its scheduler had finished.
    cut: bool,
    /// No schedule was left out because of the bound.
    complete: bool,
    steps: u64,
    forgotten: u64,
}

impl<P> Drop for Worker<'_, P> {
    /// However the worker ends, no other worker waits for it any more.
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.leave();
        }
    }
}

impl<P: Program> Worker<'_, P> {
    /// Does its share of the work.
    pub fn work(&self) -> Tally {
        let mut tally = self.explore();
        tally.lessons = self.lessons.borrow().all().to_vec();
        tally
    }

    fn explore(&self) -> Tally {
        let mut tally = Tally::default();
        let plain = self.search(Replay::new(Vec::new()), None, &[], true, LEAST_BOUND * PATIENCE);
        // This run only measures; the strategies run the same schedule again.
        self.watch.schedules.fetch_sub(plain.schedules, Ordering::Relaxed);
        let bound = LEAST_BOUND + PATIENCE * plain.steps as usize;
        if let Some(failure) = plain.failure {
            tally.failures.push(failure);
            tally.schedules = u64::from(self.share.0 == 0);
            return tally;
        }
        match self.options.strategy {
            Strategy::Bounded => self.bounded(&mut tally, bound, plain.met),
            _ => self.random(&mut tally, bound, plain.met),
        }
        tally
    }

    fn is_over(&self, faults: bool) -> bool {
        let time = self.options.time.map(|time| match faults || self.options.faults == Faults::None {
            true => time,
            false => time / 2,
        });
        self.watch.stop.load(Ordering::Relaxed)
            || self.found.load(Ordering::Relaxed)
            || self.budget.as_ref().is_some_and(|budget| budget.is_empty())
            || time.is_some_and(|time| self.began.elapsed() >= time)
    }

    fn add(&self, tally: &mut Tally, search: &Search) {
        tally.schedules += search.schedules;
        tally.steps += search.steps;
        tally.forgotten += search.forgotten;
        tally.failures.extend(search.failure.clone());
        if search.failure.is_some() {
            self.found.store(true, Ordering::Relaxed);
        }
    }

    /// Runs schedules until the scheduler has no more, the budget is empty, or a schedule fails. With a bounded search
    /// only the schedules of its share count.
    fn search<S: Scheduler + 'static>(
        &self,
        scheduler: S,
        bounded: Option<&Shared<Bounded>>,
        plan: &[Place],
        notes: bool,
        bound: usize,
    ) -> Search {
        let budget = self.budget.clone().filter(|_| bounded.is_some());
        if budget.as_ref().is_some_and(|budget| !budget.has_one_left()) {
            return Search { cut: true, ..Search::default() };
        }
        let prepared = self.prepared.with(plan);
        let (recorded, deviations) = Recorded::new(scheduler);
        let result = Rc::new(RefCell::new(Search::default()));
        let watcher = SearchWatcher {
            result: Rc::clone(&result),
            prepared: prepared.clone(),
            deviations,
            lessons: Rc::clone(&self.lessons),
            bounded: bounded.cloned(),
            budget,
            watch: Arc::clone(&self.watch),
            bound,
        };
        let over = self.over_from_now(!plan.is_empty());
        let explore = Explore {
            bound,
            focused: !self.options.whole && self.prepared.program().is_focused(),
            asks_always: self.options.strategy == Strategy::Urw,
            ..Explore::default()
        };
        explore.run(recorded, move |halt| watcher.ended(halt, &over), move || prepared.run(notes));
        Rc::into_inner(result).map(RefCell::into_inner).expect("the exploration is over")
    }

    /// Returns a function that decides after each schedule whether it is time to end. Its argument is the number of
    /// schedules so far.
    fn over_from_now(&self, faults: bool) -> impl Fn(u64) -> bool + 'static {
        let (watch, found, began) = (Arc::clone(&self.watch), Arc::clone(&self.found), self.began);
        let half = !faults && self.options.faults != Faults::None;
        let time = self.options.time.map(|time| if half { time / 2 } else { time });
        move |schedules| {
            watch.stop.load(Ordering::Relaxed)
                || found.load(Ordering::Relaxed)
                || schedules % 16 == 0 && time.is_some_and(|time| began.elapsed() >= time)
        }
    }
}

/// Counts the schedules of a search, judges each when it has ended, and decides whether the search goes on.
struct SearchWatcher<P> {
    result: Rc<RefCell<Search>>,
    prepared: Prepared<P>,
    deviations: Rc<RefCell<Vec<Deviation>>>,
    lessons: Rc<RefCell<Lessons>>,
    bounded: Option<Shared<Bounded>>,
    budget: Option<BudgetShare>,
    watch: Arc<Watch>,
    bound: usize,
}

impl<P: Program> SearchWatcher<P> {
    fn ended(&self, halt: Option<Halt>, over: &impl Fn(u64) -> bool) -> ControlFlow<()> {
        let mut search = self.result.borrow_mut();
        let returns = matches!(halt, Some(Halt::Livelock(..)));
        let (found, met) = self.prepared.verdict(halt);
        // A worker meets schedules on its way that another one counts.
        let is_mine = self.bounded.as_ref().is_none_or(|bounded| bounded.borrow().is_mine());
        search.told += 1;
        search.schedules += u64::from(is_mine);
        search.steps += lockdep::look(|model| model.steps() as u64);
        self.watch.schedules.fetch_add(is_mine.into(), Ordering::Relaxed);
        if is_mine && let Some(budget) = &self.budget {
            budget.spend();
        }
        search.met.extend(met);
        let bound = self.bound;
        if !found.is_empty() {
            let (deviations, after) = (self.deviations.borrow().clone(), self.lessons.borrow().before(&found));
            let plan = self.prepared.plan().to_vec();
            search.failure = Some(Failure { found, plan, deviations, bound, returns, after });
            return ControlFlow::Break(());
        }
        self.lessons.borrow_mut().learn(&self.prepared, &self.deviations.borrow(), bound);
        if over(search.told) || self.budget.as_ref().is_some_and(|budget| !budget.has_one_left()) {
            search.cut = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}
