//! A campaign: a scenario told in every schedule, or in many, with every failure asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockdep::{Explore, Halt};
use serde::{Deserialize, Serialize};
use shuttle::scheduler::{PctScheduler, Scheduler, UrwRandomScheduler};

use crate::faults::{Faults, Place};
use crate::schedulers::{Bounded, Deviation, Random, Recorded, Replay, Shared, Unhurried};
use crate::telling::{Found, Lessons, Teller, Telling};

/// How schedules are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Every schedule with at most 0 preemptions, then 1, and so on.
    #[default]
    Bounded,
    /// At each point any thread, as likely as any other.
    Random,
    /// Probabilistic concurrency testing: threads have priorities that change at a few random points.
    Pct,
    /// A random walk that makes schedules, rather than choices, equally likely.
    Urw,
}

impl Strategy {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bounded => "bounded",
            Self::Random => "random",
            Self::Pct => "pct",
            Self::Urw => "urw",
        }
    }
}

/// How to go about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// How schedules are chosen.
    pub strategy: Strategy,
    /// Bounded: the most preemptions.
    pub preemptions: u8,
    /// Bounded, with a failure asked for: the most preemptions.
    pub preemptions_with_faults: u8,
    /// The most schedules of one scenario.
    pub schedules: Option<u64>,
    /// The longest that one scenario may take.
    pub time: Option<Duration>,
    /// Where random choices start from.
    pub seed: u64,
    /// PCT: at how many points priorities change.
    pub depth: usize,
    /// What is made to fail.
    pub faults: Faults,
    /// OS threads that share the work.
    pub jobs: u32,
    /// Which part of the campaign this is, from 0, and of how many.
    pub shard: (u32, u32),
    /// Bring-up, `setup`, `finally` and take-down have more than one order, too.
    pub whole: bool,
    /// Pass over schedules that are equivalent to one that was run.
    pub reduce: bool,
    /// Make what was found small before it is told.
    pub minimise: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strategy: Strategy::Bounded,
            preemptions: 2,
            preemptions_with_faults: 1,
            schedules: None,
            time: None,
            seed: 0,
            depth: 3,
            faults: Faults::None,
            jobs: 1,
            shard: (0, 1),
            whole: false,
            reduce: true,
            minimise: true,
        }
    }
}

/// What others can see of a campaign while it runs, and how they stop it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Schedules so far.
    pub schedules: AtomicU64,
    /// The bound that is being searched.
    pub preemptions: AtomicU64,
    /// Failures asked for so far, and in all.
    pub places: [AtomicU64; 2],
    /// Set to end it soon.
    pub stop: AtomicBool,
}

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

/// What a campaign over one scenario came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub schedules: u64,
    /// Up to how many preemptions every schedule was met, with nothing asked to fail.
    pub exhaustive: Option<u8>,
    /// The same with each failure, or pair, asked for.
    pub exhaustive_with_faults: Option<u8>,
    pub places: usize,
    pub failures: Vec<Failure>,
    pub steps: u64,
    /// States that there was no room to keep.
    pub forgotten: u64,
}

/// The plain run decides how long is too long.
const PATIENCE: usize = 50;
const LEAST_BOUND: usize = 20_000;

/// The part of one OS thread in a campaign.
pub(crate) struct Worker<'a> {
    pub teller: Teller,
    pub options: &'a Options,
    pub watch: Arc<Watch>,
    /// Another worker has found something.
    pub found: Arc<AtomicBool>,
    /// Which share of the work, and of how many.
    pub share: (u32, u32),
    pub began: Instant,
    /// The last plan, and the places met after everything of it had failed.
    pub last: RefCell<(Vec<Place>, BTreeSet<Place>)>,
    pub lessons: Rc<RefCell<Lessons>>,
}

struct Search {
    schedules: u64,
    failure: Option<Failure>,
    met: BTreeSet<Place>,
    /// It was ended before its scheduler had no more schedules.
    cut: bool,
    steps: u64,
    forgotten: u64,
}

impl Worker<'_> {
    /// Does it.
    pub fn work(&self) -> Tally {
        let mut tally = Tally::default();
        let plain = self.search(Replay::new(Vec::new()), &[], true, LEAST_BOUND * PATIENCE, u64::MAX);
        let bound = LEAST_BOUND + PATIENCE * plain.steps as usize;
        if let Some(failure) = plain.failure {
            tally.failures.push(failure);
            tally.schedules = u64::from(self.share.0 == 0);
            return tally;
        }
        match self.options.strategy {
            Strategy::Bounded => self.bounded(&mut tally, bound),
            _ => self.random(&mut tally, bound, plain.met),
        }
        tally
    }

    /// The schedules that this worker may still run, with so much of all for what comes before faults.
    fn budget(&self, tally: &Tally, faults: bool) -> u64 {
        let all = self.options.schedules.map_or(u64::MAX, |n| n.div_ceil(self.share.1.into()));
        let all = if !faults && self.options.faults != Faults::None { all / 2 } else { all };
        all.saturating_sub(tally.schedules)
    }

    fn is_over(&self, faults: bool) -> bool {
        let time = self.options.time.map(|time| match faults || self.options.faults == Faults::None {
            true => time,
            false => time / 2,
        });
        self.watch.stop.load(Ordering::Relaxed)
            || self.found.load(Ordering::Relaxed)
            || time.is_some_and(|time| self.began.elapsed() >= time)
    }

    fn bounded(&self, tally: &mut Tally, bound: usize) {
        let mut places = BTreeSet::new();
        for preemptions in 0..=self.options.preemptions {
            self.watch.preemptions.store(preemptions.into(), Ordering::Relaxed);
            let (search, exhausted) = self.up_to(preemptions, &[], preemptions == 0, bound, self.budget(tally, false));
            self.add(tally, &search);
            if preemptions == 0 {
                places = search.met;
            }
            if tally.failures.is_empty() && exhausted {
                tally.exhaustive = Some(preemptions);
            } else {
                break;
            }
        }
        if self.options.faults == Faults::None || !tally.failures.is_empty() {
            return;
        }
        tally.places = places.len();
        self.watch.places[1].store(places.len() as u64, Ordering::Relaxed);
        let mut least: Option<u8> = Some(self.options.preemptions_with_faults);
        for (index, place) in places.into_iter().enumerate() {
            if index as u32 % self.share.1 != self.share.0 {
                continue;
            }
            let reached = self.with_fault(tally, vec![place], bound);
            least = least.min(reached);
            if self.options.faults == Faults::Pairs {
                least = least.min(self.pairs(tally, bound));
            }
            self.watch.places[0].fetch_add(1, Ordering::Relaxed);
            if reached.is_none() && (self.is_over(true) || !tally.failures.is_empty()) {
                return;
            }
        }
        tally.exhaustive_with_faults = least;
    }

    /// With a second failure in each place that is met after the first.
    fn pairs(&self, tally: &mut Tally, bound: usize) -> Option<u8> {
        let first = std::mem::take(&mut *self.last.borrow_mut());
        let (plan, met) = first;
        let mut least = Some(self.options.preemptions_with_faults);
        for place in met {
            let both = plan.iter().cloned().chain([place]).collect();
            least = least.min(self.with_fault(tally, both, bound));
            if least.is_none() {
                break;
            }
        }
        least
    }

    /// Every schedule with this failure; up to how many preemptions.
    fn with_fault(&self, tally: &mut Tally, plan: Vec<Place>, bound: usize) -> Option<u8> {
        let mut reached = None;
        for preemptions in 0..=self.options.preemptions_with_faults {
            if self.is_over(true) {
                break;
            }
            let whole = Bounded::new(preemptions, self.options.reduce);
            let (search, exhausted) = self.run_bounded(whole, &plan, preemptions == 0, bound, self.budget(tally, true));
            self.add(tally, &search);
            if preemptions == 0 {
                *self.last.borrow_mut() = (plan.clone(), search.met);
            }
            if !exhausted || !tally.failures.is_empty() {
                break;
            }
            reached = Some(preemptions);
        }
        reached
    }

    fn up_to(&self, preemptions: u8, plan: &[Place], notes: bool, bound: usize, budget: u64) -> (Search, bool) {
        let bounded = Bounded::new(preemptions, self.options.reduce).share(self.share.0, self.share.1);
        self.run_bounded(bounded, plan, notes, bound, budget)
    }

    fn run_bounded(&self, bounded: Bounded, plan: &[Place], notes: bool, bound: usize, budget: u64) -> (Search, bool) {
        let bounded = Shared::new(bounded);
        let mut search = self.search(bounded.clone(), plan, notes, bound, budget);
        let bounded = bounded.borrow();
        (search.schedules, search.forgotten) = (bounded.counts().schedules, bounded.counts().forgotten);
        if let Some(diverged) = &bounded.diverged {
            let detail = format!("the same choices did not lead to the same point: {diverged}");
            let found = vec![Found { invariant: "determinism".to_owned(), detail }];
            search.failure = Some(Failure { found, plan: plan.to_vec(), bound, ..Failure::default() });
        }
        let exhausted = bounded.is_exhausted() && !search.cut;
        (search, exhausted)
    }

    fn random(&self, tally: &mut Tally, bound: usize, places: BTreeSet<Place>) {
        let mut plans: Vec<Vec<Place>> = vec![Vec::new()];
        if self.options.faults != Faults::None {
            tally.places = places.len();
            plans.extend(places.iter().map(|place| vec![place.clone()]));
        }
        if self.options.faults == Faults::Pairs {
            let pairs = places.iter().flat_map(|a| places.range(a..).skip(1).map(|b| vec![a.clone(), b.clone()]));
            plans.extend(pairs);
        }
        self.watch.places[1].store(tally.places as u64, Ordering::Relaxed);
        let all = self.options.schedules.unwrap_or(if self.options.time.is_some() { u64::MAX / 2 } else { 10_000 });
        let each = all.div_ceil(u64::from(self.share.1)).div_ceil(plans.len() as u64).min(usize::MAX as u64 / 2);
        let mut round = 0;
        loop {
            // With nothing but time to end it, each plan has its turn again and again.
            let turn = if self.options.schedules.is_some() { each } else { each.min(1_000) };
            for plan in &plans {
                if self.is_over(true) {
                    return;
                }
                round += 1;
                let seed = self
                    .options
                    .seed
                    .wrapping_mul(0x9E37_79B9)
                    .wrapping_add(round)
                    .wrapping_mul(u64::from(self.share.1))
                    + u64::from(self.share.0);
                let search = self.run_random(seed, turn as usize, plan, bound);
                self.add(tally, &search);
                if !tally.failures.is_empty() {
                    return;
                }
            }
            if self.options.schedules.is_some() || self.options.time.is_none() {
                return;
            }
        }
    }

    fn run_random(&self, seed: u64, schedules: usize, plan: &[Place], bound: usize) -> Search {
        match self.options.strategy {
            Strategy::Pct => {
                let pct = PctScheduler::new_from_seed(seed, self.options.depth, schedules);
                self.search(Unhurried::new(pct, seed), plan, false, bound, u64::MAX)
            }
            Strategy::Urw => {
                let urw = UrwRandomScheduler::new_from_seed(seed, schedules);
                self.search(Unhurried::new(urw, seed), plan, false, bound, u64::MAX)
            }
            Strategy::Random | Strategy::Bounded => {
                let random = Random::new(seed, schedules as u64);
                self.search(Unhurried::new(random, seed), plan, false, bound, u64::MAX)
            }
        }
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

    /// Runs schedules until the scheduler has no more, the budget is used up, or something is found.
    fn search<S: Scheduler + 'static>(
        &self,
        scheduler: S,
        plan: &[Place],
        notes: bool,
        bound: usize,
        budget: u64,
    ) -> Search {
        let teller = self.teller.with(plan);
        let (recorded, deviations) = Recorded::new(scheduler);
        let state = Rc::new(RefCell::new(Search {
            schedules: 0,
            failure: None,
            met: BTreeSet::new(),
            cut: false,
            steps: 0,
            forgotten: 0,
        }));
        let (ours, listener, plan) = (Rc::clone(&state), teller.clone(), plan.to_vec());
        let lessons = Rc::clone(&self.lessons);
        let (watch, over) = (Arc::clone(&self.watch), self.over_from_now(!plan.is_empty()));
        let ended = move |halt: Option<Halt>| {
            let mut search = ours.borrow_mut();
            let returns = matches!(halt, Some(Halt::Livelock(..)));
            let (found, met) = listener.verdict(halt);
            search.schedules += 1;
            search.steps += lockdep::look(|model| model.steps() as u64);
            watch.schedules.fetch_add(1, Ordering::Relaxed);
            search.met.extend(met);
            if !found.is_empty() {
                let (deviations, after) = (deviations.borrow().clone(), lessons.borrow().before(&found));
                search.failure = Some(Failure { found, plan: plan.clone(), deviations, bound, returns, after });
                return ControlFlow::Break(());
            }
            lessons.borrow_mut().learn(&listener, &deviations.borrow());
            if search.schedules >= budget || over(search.schedules) {
                search.cut = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let explore = Explore {
            bound,
            focused: !self.options.whole,
            asks_always: self.options.strategy == Strategy::Urw,
            ..Explore::default()
        };
        explore.run(recorded, ended, move || teller.tell(notes));
        Rc::into_inner(state).map(RefCell::into_inner).expect("the exploration is over")
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
