//! A campaign: a program run in every schedule, or in many, with every failure asked for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lockdep::{Explore, Halt};
use serde::{Deserialize, Serialize};
use shuttle::scheduler::{PctScheduler, Scheduler, UrwRandomScheduler};

use crate::faults::{Faults, Place};
use crate::program::Program;
use crate::schedulers::{Bounded, Deviation, Random, Recorded, Replay, Shared, Unhurried};
use crate::telling::{Found, Lesson, Lessons, Teller, Telling};

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
    /// The most schedules of one program.
    pub schedules: Option<u64>,
    /// The longest that one program may take.
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
    /// What a program does not [focus](lockdep::focus) on has more than one order, too.
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

/// How many of these schedules are of a share: they are dealt out one by one.
fn share_of(schedules: Range<u64>, (index, of): (u32, u32)) -> u64 {
    let (index, of) = (u64::from(index), u64::from(of));
    let before = |end: u64| end / of + u64::from(end % of > index);
    before(schedules.end) - before(schedules.start)
}

/// So many schedules for so many plans, as evenly as can be.
fn dealt(schedules: u64, plans: usize) -> impl Iterator<Item = Range<u64>> {
    let (each, more) = (schedules / plans as u64, schedules % plans as u64);
    let start = move |plan: u64| plan * each + plan.min(more);
    (0..plans as u64).map(move |plan| start(plan)..start(plan + 1))
}

/// How many schedules a plan has in a turn, if nothing but time ends it: few at first, so that each plan is tried soon,
/// and then more, as a strategy that begins anew learns anew.
fn turn_of_round(round: u32) -> u64 {
    (16 << round.min(6)).min(1_000)
}

/// The number of schedules that the workers of a process may still run. A worker that has run its share waits until all
/// others have run theirs, or have ended; what those have left is shared out again. So the whole budget is spent if there
/// are enough schedules, and which worker runs which schedule does not depend on which is faster.
#[derive(Debug)]
pub(crate) struct ScheduleBudget {
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Debug)]
struct Held {
    left: u64,
    /// What is kept for schedules with failures.
    later: u64,
    workers: Vec<(State, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Runs,
    Waits,
    /// It is done with the schedules without failures.
    Half,
    Gone,
}

impl ScheduleBudget {
    /// For so many workers, the schedules without failures and those with.
    pub(crate) fn new(workers: u32, [left, later]: [u64; 2]) -> Self {
        let mut held = Held { left, later, workers: vec![(State::Waits, 0); workers as usize] };
        held.settle();
        Self { held: Mutex::new(held), changed: Condvar::new() }
    }

    /// What a campaign may run of its number of schedules: with failures, half of it before them.
    pub(crate) fn halves(options: &Options) -> Option<[u64; 2]> {
        let all = share_of(0..options.schedules?, options.shard);
        let first = if options.faults == Faults::None { all } else { all.div_ceil(2) };
        Some([first, all - first])
    }

    /// A worker comes to rest until this is no longer its state; what it has been given then.
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
    /// Deals out what is left as soon as nobody runs any more.
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
            // Who is given nothing runs on, too, and sees that it is over.
            *worker = (State::Runs, share.end - share.start);
        }
    }
}

/// The budget, as one worker uses it.
#[derive(Clone, Debug)]
pub(crate) struct BudgetShare {
    budget: Arc<ScheduleBudget>,
    worker: usize,
    /// There is no more.
    is_empty: Rc<Cell<bool>>,
}

impl BudgetShare {
    pub(crate) fn new(budget: Arc<ScheduleBudget>, worker: u32) -> Self {
        Self { budget, worker: worker as usize, is_empty: Rc::default() }
    }

    /// Whether there is one more schedule to run; it may have to be waited for.
    fn has_one_left(&self) -> bool {
        let given = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner).workers[self.worker].1;
        let has_one = given > 0 || !self.is_empty.get() && self.budget.rest(self.worker, State::Waits) > 0;
        self.is_empty.set(!has_one);
        has_one
    }

    /// Takes one schedule, which was run, off the worker's share.
    fn spend(&self) {
        let mut held = self.budget.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.workers[self.worker].1 -= 1;
    }

    /// When all are done with what comes before failures.
    fn second_half(&self) {
        self.budget.rest(self.worker, State::Half);
        self.is_empty.set(false);
    }
}

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
        if let Some(BudgetShare { budget, worker, .. }) = &self.budget {
            budget.rest(*worker, State::Gone);
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
            || self.budget.as_ref().is_some_and(|budget| budget.is_empty.get())
            || time.is_some_and(|time| self.began.elapsed() >= time)
    }

    fn bounded(&self, tally: &mut Tally, bound: usize, mut places: BTreeSet<Place>) {
        for preemptions in 0..=self.options.preemptions {
            self.watch.preemptions.store(preemptions.into(), Ordering::Relaxed);
            let (search, exhausted) = self.up_to(preemptions, &[], preemptions == 0, bound);
            self.add(tally, &search);
            if preemptions == 0 {
                places.extend(search.met);
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
        if let Some(budget) = &self.budget {
            budget.second_half();
        }
        tally.places = places.len();
        self.watch.places[1].store(places.len() as u64, Ordering::Relaxed);
        tally.plans[1] = places.len() as u64;
        // What can fail is known only if every schedule without preemptions was met.
        let mut least = tally.exhaustive.map(|_| self.options.preemptions_with_faults);
        for (index, place) in places.into_iter().enumerate() {
            if index as u32 % self.share.1 != self.share.0 {
                continue;
            }
            let mut reached = self.with_fault(tally, vec![place], bound);
            if self.options.faults == Faults::Pairs {
                reached = reached.min(self.pairs(tally, bound));
            }
            least = least.min(reached);
            tally.plans[0] += u64::from(reached.is_some());
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
            let (search, exhausted) = self.run_bounded(whole, &plan, preemptions == 0, bound);
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

    fn up_to(&self, preemptions: u8, plan: &[Place], notes: bool, bound: usize) -> (Search, bool) {
        let bounded = Bounded::new(preemptions, self.options.reduce).share(self.options.shard, self.job);
        self.run_bounded(bounded, plan, notes, bound)
    }

    fn run_bounded(&self, bounded: Bounded, plan: &[Place], notes: bool, bound: usize) -> (Search, bool) {
        let bounded = Shared::new(bounded);
        let mut search = self.search(bounded.clone(), Some(&bounded), plan, notes, bound);
        let bounded = bounded.borrow();
        search.forgotten = bounded.counts().forgotten;
        if let Some(diverged) = &bounded.diverged {
            let detail = format!("the same choices did not lead to the same point: {diverged}");
            let found = vec![Found::new("determinism", detail)];
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
        // The plans that the campaign is about.
        let most = plans.iter().map(Vec::len).max().unwrap_or_default();
        let counts = |plan: &[Place]| most > 0 && plan.len() == most;
        tally.plans[1] = plans.iter().filter(|plan| counts(plan)).count() as u64;
        self.watch.places[1].store(plans.len() as u64 - 1, Ordering::Relaxed);
        let all = self.options.schedules.or(if self.options.time.is_some() { None } else { Some(10_000) });
        let firsts: Option<Vec<Range<u64>>> = all.map(|all| dealt(all, plans.len()).collect());
        let mut open: Vec<usize> = (0..plans.len()).collect();
        let mut left = all.map(|all| share_of(0..all, self.share));
        let mut round = 0;
        for again in 0.. {
            let turns: Vec<u64> = match (&firsts, left) {
                // With nothing but time to end it, each plan has its turn again and again.
                (None, _) | (_, None) => vec![turn_of_round(again); open.len()],
                (Some(firsts), _) if again == 0 => {
                    firsts.iter().map(|turn| share_of(turn.clone(), self.share)).collect()
                }
                // What has one order only has left some for the others.
                (_, Some(left)) => dealt(left, open.len()).map(|turn| turn.end - turn.start).collect(),
            };
            let mut still = Vec::new();
            for (index, turn) in open.into_iter().zip(turns) {
                if self.is_over(true) {
                    return;
                }
                let plan = &plans[index];
                round += 1;
                let seed = self
                    .options
                    .seed
                    .wrapping_mul(0x9E37_79B9)
                    .wrapping_add(round)
                    .wrapping_mul(u64::from(self.share.1))
                    .wrapping_add(u64::from(self.share.0));
                if turn == 0 {
                    still.push(index);
                    continue;
                }
                let search = self.run_random(seed, turn as usize, plan, bound);
                // Others tell it, too, and one counts it: who has the first of its schedules.
                let first = firsts.as_ref().map_or(index as u64, |firsts| firsts[index].start);
                let is_mine = first % u64::from(self.share.1) == u64::from(self.share.0);
                if again == 0 && is_mine && !plan.is_empty() {
                    tally.plans[0] += u64::from(counts(plan));
                    self.watch.places[0].fetch_add(1, Ordering::Relaxed);
                }
                self.add(tally, &search);
                if !tally.failures.is_empty() {
                    return;
                }
                left = left.map(|left| left.saturating_sub(search.schedules));
                if all.is_none() || search.schedules == turn {
                    still.push(index);
                }
            }
            open = still;
            if left == Some(0) || open.is_empty() {
                return;
            }
        }
    }

    fn run_random(&self, seed: u64, schedules: usize, plan: &[Place], bound: usize) -> Search {
        match self.options.strategy {
            Strategy::Pct => {
                let pct = PctScheduler::new_from_seed(seed, self.options.depth, schedules);
                self.search(Unhurried::new(pct, seed), None, plan, false, bound)
            }
            Strategy::Urw => {
                let urw = UrwRandomScheduler::new_from_seed(seed, schedules);
                self.search(Unhurried::new(urw, seed), None, plan, false, bound)
            }
            Strategy::Random | Strategy::Bounded => {
                let random = Random::new(seed, schedules as u64);
                self.search(Unhurried::new(random, seed), None, plan, false, bound)
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

    /// Runs schedules until the scheduler has no more, the budget is empty, or something is found. With a bounded search
    /// only those of its share count.
    fn search<S: Scheduler + 'static>(
        &self,
        scheduler: S,
        bounded: Option<&Shared<Bounded>>,
        plan: &[Place],
        notes: bool,
        bound: usize,
    ) -> Search {
        let teller = self.teller.with(plan);
        let (recorded, deviations) = Recorded::new(scheduler);
        let state = Rc::new(RefCell::new(Search::default()));
        let (bounded, budget) = (bounded.cloned(), self.budget.clone().filter(|_| bounded.is_some()));
        if budget.as_ref().is_some_and(|budget| !budget.has_one_left()) {
            state.borrow_mut().cut = true;
            return state.take();
        }
        let (ours, listener, plan) = (Rc::clone(&state), teller.clone(), plan.to_vec());
        let lessons = Rc::clone(&self.lessons);
        let (watch, over) = (Arc::clone(&self.watch), self.over_from_now(!plan.is_empty()));
        let ended = move |halt: Option<Halt>| {
            let mut search = ours.borrow_mut();
            let returns = matches!(halt, Some(Halt::Livelock(..)));
            let (found, met) = listener.verdict(halt);
            // A worker meets schedules on its way that are for another to count.
            let is_mine = bounded.as_ref().is_none_or(|bounded| bounded.borrow().is_mine());
            search.told += 1;
            search.schedules += u64::from(is_mine);
            search.steps += lockdep::look(|model| model.steps() as u64);
            watch.schedules.fetch_add(is_mine.into(), Ordering::Relaxed);
            if is_mine && let Some(budget) = &budget {
                budget.spend();
            }
            search.met.extend(met);
            if !found.is_empty() {
                let (deviations, after) = (deviations.borrow().clone(), lessons.borrow().before(&found));
                search.failure = Some(Failure { found, plan: plan.clone(), deviations, bound, returns, after });
                return ControlFlow::Break(());
            }
            lessons.borrow_mut().learn(&listener, &deviations.borrow(), bound);
            if over(search.told) || budget.as_ref().is_some_and(|budget| !budget.has_one_left()) {
                search.cut = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let explore = Explore {
            bound,
            focused: !self.options.whole && self.teller.program().is_focused(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_short_at_first() {
        assert_eq!([0, 1, 5, 6, 7, u32::MAX].map(turn_of_round), [16, 32, 512, 1_000, 1_000, 1_000]);
    }
}
