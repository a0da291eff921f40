//! A campaign: a program run in every schedule, or in many, with every failure asked for.

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
use crate::faults::{Faults, Place};
use crate::options::{Options, Strategy, Watch};
use crate::program::Program;
use crate::schedulers::{Bounded, Deviation, Recorded, Replay, Shared};
use crate::telling::{Found, Lesson, Lessons, Teller, Telling};

/// A telling that went wrong, and how to tell it again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    pub found: Vec<Found>,
    pub plan: Vec<Place>,
    pub deviations: Vec<Deviation>,
    /// After how many steps it would have been given up.
    pub bound: usize,
    /// It ended where everything was as before.
    pub returns: bool,
    /// What the checker of locks had learned from.
    pub after: Vec<Telling>,
}

/// What a campaign over one program came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub schedules: u64,
    /// Up to how many preemptions every schedule was met, with nothing asked to fail.
    pub exhaustive: Option<u8>,
    /// The same with each failure, or pair, asked for.
    pub exhaustive_with_faults: Option<u8>,
    pub places: usize,
    /// Random strategies: of the plans with as many failures as were asked for, those told at least once, each counted
    /// by one worker only; and how many there are. Bounded: the failures with which, and with every second one if there
    /// are to be two, all schedules without preemptions were met; and how many there are.
    pub plans: [u64; 2],
    pub failures: Vec<Failure>,
    pub steps: u64,
    /// States that there was no room to keep.
    pub forgotten: u64,
    /// What the checker of locks has learned, and from what.
    pub lessons: Vec<Lesson>,
}

/// The plain run decides how long is too long.
const PATIENCE: usize = 50;
const LEAST_BOUND: usize = 20_000;

/// The part of one OS thread in a campaign.
pub(crate) struct Worker<'a, P> {
    pub teller: Teller<P>,
    pub options: &'a Options,
    pub watch: Arc<Watch>,
    /// Another worker has found something.
    pub found: Arc<AtomicBool>,
    /// Which share of the work, and of how many.
    pub share: (u32, u32),
    /// Which of those who share the work of this part.
    pub job: (u32, u32),
    pub began: Instant,
    /// The last plan, and the places met after everything of it had failed.
    pub last: RefCell<(Vec<Place>, BTreeSet<Place>)>,
    pub lessons: Rc<RefCell<Lessons>>,
    /// Bounded, with a number of schedules: what of it is left.
    pub budget: Option<BudgetShare>,
}

#[derive(Default)]
struct Search {
    /// Those of this worker's share.
    schedules: u64,
    /// Those of others, too.
    told: u64,
    failure: Option<Failure>,
    met: BTreeSet<Place>,
    /// It was ended before its scheduler had no more schedules.
    cut: bool,
    steps: u64,
    forgotten: u64,
}

impl<P> Drop for Worker<'_, P> {
    /// However it ends, nobody waits for it any more.
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.leave();
        }
    }
}

impl<P: Program> Worker<'_, P> {
    /// Does it.
    pub fn work(&self) -> Tally {
        let mut tally = self.explore();
        tally.lessons = self.lessons.borrow().all().to_vec();
        tally
    }

    fn explore(&self) -> Tally {
        let mut tally = Tally::default();
        let plain = self.search(Replay::new(Vec::new()), None, &[], true, LEAST_BOUND * PATIENCE);
        // It only measures; the strategies tell it again.
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
        let teller = self.teller.with(plan);
        let (recorded, deviations) = Recorded::new(scheduler);
        let result = Rc::new(RefCell::new(Search::default()));
        let watcher = SearchWatcher {
            result: Rc::clone(&result),
            teller: teller.clone(),
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
            focused: !self.options.whole && self.teller.program().is_focused(),
            asks_always: self.options.strategy == Strategy::Urw,
            ..Explore::default()
        };
        explore.run(recorded, move |halt| watcher.ended(halt, &over), move || teller.tell(notes));
        Rc::into_inner(result).map(RefCell::into_inner).expect("the exploration is over")
    }

    /// Whether it is time to end, to be asked after each schedule: by how many there were.
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
    teller: Teller<P>,
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
        let (found, met) = self.teller.verdict(halt);
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
            let plan = self.teller.plan().to_vec();
            search.failure = Some(Failure { found, plan, deviations, bound, returns, after });
            return ControlFlow::Break(());
        }
        self.lessons.borrow_mut().learn(&self.teller, &self.deviations.borrow(), bound);
        if over(search.told) || self.budget.as_ref().is_some_and(|budget| !budget.has_one_left()) {
            search.cut = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}
