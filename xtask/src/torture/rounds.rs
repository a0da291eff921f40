//! How long a kind goes on, and the seed of each of its rounds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::random::Random;
use super::report::Tally;

/// Rounds until time is up, or until there were as many as were asked for.
pub struct Rounds {
    /// The binary that is attacked.
    pub esw: PathBuf,
    /// What became of them.
    pub tally: Tally,
    /// The first round's seed; each other's is one more.
    pub seed: u64,
    until: Instant,
    most: Option<u64>,
    done: u64,
}

impl Rounds {
    /// Rounds of a kind, for so long, and no more than `most`.
    pub fn new(kind: &'static str, esw: PathBuf, seed: u64, time: Duration, most: Option<u64>) -> Self {
        Self { esw, tally: Tally::new(kind), seed, until: Instant::now() + time, most, done: 0 }
    }

    /// The next round's seed, and random numbers from it.
    pub fn next(&mut self) -> Option<(u64, Random)> {
        if self.is_over() {
            return None;
        }
        let seed = self.seed.wrapping_add(self.done);
        self.done += 1;
        Some((seed, Random::new(seed)))
    }

    /// Whether there are to be no more. A round that was begun is brought to its end.
    pub fn is_over(&self) -> bool {
        // At least one, however slow the machine is.
        let late = self.done > 0 && Instant::now() >= self.until;
        late || self.most.is_some_and(|most| self.done >= most)
    }

    /// Which round it is, counted from 0.
    pub fn number(&self) -> u64 {
        self.done.saturating_sub(1)
    }
}
