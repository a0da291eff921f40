//! Every schedule up to a bound: without planned failures, then with each, then with pairs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::{Failure, Search, Tally, Worker};
use crate::execution::Found;
use crate::faults::{Faults, Place};
use crate::program::Program;
use crate::schedulers::{Bounded, Shared};

impl<P: Program> Worker<'_, P> {
    pub(super) fn bounded(&self, tally: &mut Tally, bound: usize, mut places: BTreeSet<Place>) {
        for preemptions in 0..=self.options.preemptions {
            self.watch.preemptions.store(preemptions.into(), Ordering::Relaxed);
            let (search, exhausted) = self.up_to(preemptions, &[], preemptions == 0, bound);
            self.add(tally, &search);
            // With failures, all places are known only if no preemption leads to others.
            if preemptions == 0 || self.options.faults == Faults::None {
                tally.complete = search.complete;
            }
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
        // All places that can fail are known only if every schedule without preemptions was met.
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

    /// Adds a second failure, in each place that was met after the first.
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

    /// Runs every schedule with these failures. Returns the bound that was exhausted.
    fn with_fault(&self, tally: &mut Tally, plan: Vec<Place>, bound: usize) -> Option<u8> {
        let mut reached = None;
        for preemptions in 0..=self.options.preemptions_with_faults {
            if self.is_over(true) {
                tally.complete = false;
                break;
            }
            let whole = Bounded::new(preemptions, self.options.reduce);
            let (search, exhausted) = self.run_bounded(whole, &plan, preemptions == 0, bound);
            self.add(tally, &search);
            if preemptions == 0 {
                tally.complete &= search.complete;
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
        search.complete = exhausted && bounded.is_complete();
        (search, exhausted)
    }
}
