//! Chooses any thread that can run with equal probability. Shuttle has such a scheduler, too, but
//! `SHUTTLE_RANDOM_SEED` in the environment overrides its seed, and it prints a message if it is not run to its end.

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};

/// A sequence of numbers that look random (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a number less than `n`. With as few numbers as there are threads, their probabilities differ by less
    /// than 2^-50.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// The scheduler.
#[derive(Debug)]
pub struct Random {
    numbers: Numbers,
    left: u64,
}

impl Random {
    /// Makes a scheduler for a number of schedules, which are the same whenever the seed is the same.
    pub fn new(seed: u64, schedules: u64) -> Self {
        // Use another sequence than `Unhurried` does with the same seed: the two must be independent.
        Self { numbers: Numbers::new(!Numbers::new(seed).next()), left: schedules }
    }
}

impl Scheduler for Random {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.left = self.left.checked_sub(1)?;
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, runnable: &[&Task], _: Option<TaskId>, _: bool) -> Option<TaskId> {
        (!runnable.is_empty()).then(|| runnable[self.numbers.below(runnable.len())].id())
    }

    fn next_u64(&mut self) -> u64 {
        self.numbers.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_as_likely_as_any_other() {
        let mut numbers = Numbers::new(7);
        for n in 1..8 {
            let mut counts = vec![0_u32; n];
            (0..8_000).for_each(|_| counts[numbers.below(n)] += 1);
            let expected = 8_000 / n as u32;
            assert!(counts.iter().all(|count| count.abs_diff(expected) < 250), "{counts:?}");
        }
    }
}
