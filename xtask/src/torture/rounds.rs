//! How many rounds a kind has, and the seed of each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::random::Random;
use super::report::Tally;

/// The rounds of a kind: until the time is over, or until the requested number.
pub struct Rounds {
    /// The binary that is attacked.
    pub esw: PathBuf,
    /// Their results.
    pub tally: Tally,
    /// The seed of the first round. Each round has the seed of the round before plus one.
    pub seed: u64,
    until: Instant,
    most: Option<u64>,
    done: u64,
}

impl Rounds {
    /// Rounds of a kind for `time`, and at most `most` of them.
    pub fn new(kind: &'static str, esw: PathBuf, seed: u64, time: Duration, most: Option<u64>) -> Self {
        Self { esw, tally: Tally::new(kind), seed, until: Instant::now() + time, most, done: 0 }
    }

    /// Begins the next round: its seed, and random numbers from it; `None` if there are no more rounds.
    pub fn next(&mut self) -> Option<(u64, Random)> {
        if self.is_over() {
            return None;
        }
        let seed = self.seed.wrapping_add(self.done);
        self.done += 1;
        Some((seed, Random::new(seed)))
    }

    /// Whether no round is to begin any more. A round that has begun is completed.
    pub fn is_over(&self) -> bool {
        // At least one, however slow the machine is.
        let late = self.done > 0 && Instant::now() >= self.until;
        late || self.most.is_some_and(|most| self.done >= most)
    }

    /// The number of the round, from 0.
    pub fn number(&self) -> u64 {
        self.done.saturating_sub(1)
    }
}
