//! The searches of a campaign, and how they share its schedules and its time.
//!
//! A bounded search proves something about every schedule within its bound, and says nothing about the others. A
//! random one meets some of the others, soon or never. A portfolio runs them one after the other. What a search does
//! not use of its share is divided among those that follow, in proportion to their shares.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::budget::share_of;
use crate::options::{Options, Strategy};

/// One search of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// How it chooses schedules; never [`Strategy::Portfolio`].
    pub strategy: Strategy,
    /// PCT: the number of points at which priorities change.
    pub depth: usize,
    /// Its share of the budget, as a number of equal parts.
    parts: u64,
}

/// Half of the budget is for what can be proved, and half for what lies outside the bound. PCT finds a bug of depth d
/// with a probability that falls with each point at which priorities change, so it has several depths: bugs of order
/// and of atomicity have depth 2, and deeper ones are rare.
const PORTFOLIO: [Search; 5] = [
    Search { strategy: Strategy::Bounded, depth: 0, parts: 6 },
    Search { strategy: Strategy::Random, depth: 0, parts: 3 },
    Search { strategy: Strategy::Pct, depth: 2, parts: 1 },
    Search { strategy: Strategy::Pct, depth: 3, parts: 1 },
    Search { strategy: Strategy::Pct, depth: 5, parts: 1 },
];

impl Search {
    /// Returns its name in reports: the strategy's, and with PCT the depth.
    pub fn name(&self) -> String {
        match self.strategy {
            Strategy::Pct => format!("pct of depth {}", self.depth),
            strategy => strategy.name().to_owned(),
        }
    }
}

impl Options {
    /// Returns the searches of a campaign with these options, in their order: several with [`Strategy::Portfolio`],
    /// otherwise one.
    ///
    /// ```
    /// use explore::{Options, Strategy};
    ///
    /// let options = Options { strategy: Strategy::Portfolio, ..Options::default() };
    /// let names: Vec<String> = options.searches().iter().map(|search| search.name()).collect();
    /// assert_eq!(names, ["bounded", "random", "pct of depth 2", "pct of depth 3", "pct of depth 5"]);
    /// ```
    pub fn searches(&self) -> Vec<Search> {
        match self.strategy {
            Strategy::Portfolio => PORTFOLIO.to_vec(),
            strategy => vec![Search { strategy, depth: self.depth, parts: 1 }],
        }
    }
}

/// What one search may use.
#[derive(Debug)]
pub(crate) struct Allowance {
    /// The options of this search alone. The schedules are those of all shards together.
    pub(crate) options: Options,
    /// Schedules of this shard that earlier searches have left.
    pub(crate) spare: u64,
}

/// The part of a campaign's budget that its searches have not used yet.
#[derive(Debug)]
pub(crate) struct Portfolio<'a> {
    options: &'a Options,
    searches: Vec<Search>,
    began: Instant,
    /// The schedules that this shard may still run.
    left: Option<u64>,
}

impl<'a> Portfolio<'a> {
    pub(crate) fn new(options: &'a Options, began: Instant) -> Self {
        let searches = options.searches();
        let mut portfolio = Self { options, searches, began, left: None };
        portfolio.left = options.schedules.map(|_| portfolio.planned_from(0));
        portfolio
    }

    pub(crate) fn searches(&self) -> &[Search] {
        &self.searches
    }

    /// Returns what a search may use; `None` if nothing is left for it.
    pub(crate) fn allowance(&self, index: usize) -> Option<Allowance> {
        let Search { strategy, depth, parts } = self.searches[index];
        let still = self.parts(index..self.searches.len());
        // The last one has all that is left.
        let of = |n: u128| n * u128::from(parts) / u128::from(still);
        let schedules = self.planned(index);
        let spare = of(self.left.unwrap_or(0).saturating_sub(self.planned_from(index)).into()) as u64;
        let time = self.options.time.map(|time| {
            let left = time.saturating_sub(self.began.elapsed());
            Duration::from_nanos(of(left.as_nanos()).try_into().unwrap_or(u64::MAX))
        });
        if schedules == Some(0) && spare == 0 || index > 0 && time == Some(Duration::ZERO) {
            return None;
        }
        // Searches that begin with the same number would make related choices.
        let seed = self.options.seed.wrapping_add((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let options = Options { strategy, depth, schedules, time, seed, ..self.options.clone() };
        Some(Allowance { options, spare })
    }

    /// Takes the schedules that a search has run.
    pub(crate) fn spend(&mut self, schedules: u64) {
        self.left = self.left.map(|left| left.saturating_sub(schedules));
    }

    /// The share of a search in the schedules of all shards.
    fn planned(&self, index: usize) -> Option<u64> {
        let schedules = u128::from(self.options.schedules?);
        let all = u128::from(self.parts(0..self.searches.len()));
        let until = |index| (schedules * u128::from(self.parts(0..index))).div_ceil(all) as u64;
        Some(until(index + 1) - until(index))
    }

    /// The schedules of this shard that are meant for a search and those after it.
    fn planned_from(&self, index: usize) -> u64 {
        let planned = (index..self.searches.len()).filter_map(|index| self.planned(index));
        planned.map(|planned| share_of(0..planned, self.options.shard)).sum()
    }

    fn parts(&self, of: Range<usize>) -> u64 {
        self.searches[of].iter().map(|search| search.parts).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(schedules: u64) -> Options {
        Options { strategy: Strategy::Portfolio, schedules: Some(schedules), ..Options::default() }
    }

    /// What each search may run in a campaign in which each uses at most so many.
    fn allowed(options: &Options, used: [u64; 5]) -> [u64; 5] {
        let mut portfolio = Portfolio::new(options, Instant::now());
        std::array::from_fn(|index| {
            let allowance = portfolio.allowance(index);
            let allowed = allowance.map_or(0, |allowance| {
                share_of(0..allowance.options.schedules.unwrap(), options.shard) + allowance.spare
            });
            portfolio.spend(allowed.min(used[index]));
            allowed
        })
    }

    const ALL: u64 = u64::MAX;

    #[test]
    fn each_search_has_its_share() {
        assert_eq!(allowed(&options(1_200), [ALL; 5]), [600, 300, 100, 100, 100]);
        // With few, the first searches have them.
        assert_eq!(allowed(&options(1), [ALL; 5]), [1, 0, 0, 0, 0]);
        assert_eq!(allowed(&options(5), [ALL; 5]), [3, 1, 1, 0, 0]);
        assert_eq!(allowed(&options(u64::MAX), [ALL; 5]).iter().map(|n| u128::from(*n)).sum::<u128>(), ALL.into());
    }

    #[test]
    fn what_one_does_not_use_goes_to_the_others() {
        assert_eq!(allowed(&options(1_200), [0, ALL, ALL, ALL, ALL]), [600, 600, 200, 200, 200]);
        assert_eq!(allowed(&options(1_200), [ALL, 0, ALL, ALL, ALL]), [600, 300, 200, 200, 200]);
        assert_eq!(allowed(&options(1_200), [0, 0, 0, 0, ALL]), [600, 600, 400, 600, 1_200]);
        assert_eq!(allowed(&options(1), [0, ALL, ALL, ALL, ALL]).iter().sum::<u64>(), 2, "one of them, and the rest");
    }

    #[test]
    fn shards_together_have_as_many_as_one() {
        for schedules in [0, 1, 7, 100, 1_201] {
            let shard = |index| allowed(&Options { shard: (index, 3), ..options(schedules) }, [ALL; 5]);
            assert_eq!((0..3).flat_map(shard).sum::<u64>(), schedules);
        }
    }

    #[test]
    fn one_strategy_has_everything() {
        let options = Options { strategy: Strategy::Pct, ..options(100) };
        let allowance = Portfolio::new(&options, Instant::now()).allowance(0).unwrap();
        let allowed = (allowance.options.schedules, allowance.spare, allowance.options.depth, allowance.options.seed);
        assert_eq!(allowed, (Some(100), 0, options.depth, options.seed));
    }

    #[test]
    fn no_search_but_the_first_begins_when_the_time_is_up() {
        let options = Options { time: Some(Duration::ZERO), schedules: None, ..options(0) };
        let portfolio = Portfolio::new(&options, Instant::now());
        let begins = [0, 1, 2, 3, 4].map(|index| portfolio.allowance(index).is_some());
        assert_eq!(begins, [true, false, false, false, false]);
    }
}
