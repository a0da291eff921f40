//! How a campaign goes about it, and how others watch it.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::faults::Faults;

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
