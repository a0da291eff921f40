//! Schedules that are chosen at random, as many as the options allow.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::Ordering;

use shuttle::scheduler::{PctScheduler, UrwRandomScheduler};

use super::{Search, Tally, Worker};
use crate::budget::{dealt, share_of};
use crate::faults::{Faults, Place};
use crate::options::Strategy;
use crate::program::Program;
use crate::schedulers::{Random, Unhurried};

/// Returns how many schedules a plan has in a turn, if only time ends the search. There are few at first, so that
/// each plan is tried soon, and more later, because a strategy that starts anew learns anew.
fn turn_of_round(round: u32) -> u64 {
    (16 << round.min(6)).min(1_000)
}

/// How many schedules each plan has in its turns.
struct Turns {
    /// The schedules of the first turn of each plan, over all workers; `None` if only time ends the search.
    firsts: Option<Vec<Range<u64>>>,
    /// How many schedules this worker may still run.
    left: Option<u64>,
    /// Turns so far.
    taken: u64,
}

impl Turns {
    /// The turns of this worker in a round, one for each open plan.
    fn of_round(&self, round: u32, open: usize, share: (u32, u32)) -> Vec<u64> {
        match (&self.firsts, self.left) {
            // If only time ends the search, each plan has its turn again and again.
            (None, _) | (_, None) => vec![turn_of_round(round); open],
            (Some(firsts), _) if round == 0 => firsts.iter().map(|turn| share_of(turn.clone(), share)).collect(),
            // A plan with only one order has left some schedules for the others.
            (_, Some(left)) => dealt(left, open).map(|turn| turn.end - turn.start).collect(),
        }
    }

    /// The seed of the next turn: another one for each turn of each worker.
    fn next_seed(&mut self, seed: u64, (worker, of): (u32, u32)) -> u64 {
        self.taken += 1;
        seed.wrapping_mul(0x9E37_79B9)
            .wrapping_add(self.taken)
            .wrapping_mul(u64::from(of))
            .wrapping_add(u64::from(worker))
    }

    /// Several workers run a plan, and one counts it: the worker that has the first of its schedules.
    fn is_counted_by(&self, plan: usize, (worker, of): (u32, u32)) -> bool {
        let first = self.firsts.as_ref().map_or(plan as u64, |firsts| firsts[plan].start);
        first % u64::from(of) == u64::from(worker)
    }
}

impl<P: Program> Worker<'_, P> {
    /// Runs schedules with each plan of failures, in rounds: in each round every open plan has a turn.
    pub(super) fn random(&self, tally: &mut Tally, bound: usize, places: BTreeSet<Place>) {
        let plans = self.plans(&places);
        if self.options.faults != Faults::None {
            tally.places = places.len();
        }
        // The plans with as many failures as the options request.
        let most = plans.iter().map(Vec::len).max().unwrap_or_default();
        let counts = |plan: &[Place]| most > 0 && plan.len() == most;
        tally.plans[1] = plans.iter().filter(|plan| counts(plan)).count() as u64;
        self.watch.places[1].store(plans.len() as u64 - 1, Ordering::Relaxed);
        let mut turns = self.turns(plans.len());
        let mut open: Vec<usize> = (0..plans.len()).collect();
        let mut tried = vec![false; plans.len()];
        for round in 0.. {
            let mut still_open = Vec::new();
            let lengths = turns.of_round(round, open.len(), self.share);
            for (index, turn) in open.into_iter().zip(lengths) {
                if self.is_over(true) {
                    return;
                }
                let (plan, seed) = (&plans[index], turns.next_seed(self.options.seed, self.share));
                if turn == 0 {
                    still_open.push(index);
                    continue;
                }
                let search = self.run_random(seed, turn as usize, plan, bound);
                let is_first = !std::mem::replace(&mut tried[index], true);
                if is_first && !plan.is_empty() && turns.is_counted_by(index, self.share) {
                    tally.plans[0] += u64::from(counts(plan));
                    self.watch.places[0].fetch_add(1, Ordering::Relaxed);
                }
                self.add(tally, &search);
                if !tally.failures.is_empty() {
                    return;
                }
                turns.left = turns.left.map(|left| left.saturating_sub(search.schedules));
                if turns.firsts.is_none() || search.schedules == turn {
                    still_open.push(index);
                }
            }
            open = still_open;
            if turns.left == Some(0) || open.is_empty() {
                return;
            }
        }
    }

    /// What is made to fail: nothing, each place, and each pair of places.
    fn plans(&self, places: &BTreeSet<Place>) -> Vec<Vec<Place>> {
        let mut plans: Vec<Vec<Place>> = vec![Vec::new()];
        if self.options.faults != Faults::None {
            plans.extend(places.iter().map(|place| vec![place.clone()]));
        }
        if self.options.faults == Faults::Pairs {
            let pairs = places.iter().flat_map(|a| places.range(a..).skip(1).map(|b| vec![a.clone(), b.clone()]));
            plans.extend(pairs);
        }
        plans
    }

    fn turns(&self, plans: usize) -> Turns {
        let all = self.options.schedules.or(if self.options.time.is_some() { None } else { Some(10_000) });
        Turns {
            firsts: all.map(|all| dealt(all, plans).collect()),
            left: all.map(|all| share_of(0..all, self.share) + share_of(0..self.spare, self.job)),
            taken: 0,
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
            Strategy::Random | Strategy::Bounded | Strategy::Portfolio => {
                let random = Random::new(seed, schedules as u64);
                self.search(Unhurried::new(random, seed), None, plan, false, bound)
            }
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
