//! The options of a campaign, and the way to watch it.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::faults::Faults;

/// How the schedules are chosen.
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
    /// A bounded search, then random ones, each with a share of the schedules and the time: see
    /// [`Options::searches`].
    Portfolio,
}

impl Strategy {
    /// Returns its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bounded => "bounded",
            Self::Random => "random",
            Self::Pct => "pct",
            Self::Urw => "urw",
            Self::Portfolio => "portfolio",
        }
    }
}

/// The options of a campaign.
///
/// ```
/// use explore::{Options, Strategy};
///
/// let options = Options { strategy: Strategy::Pct, schedules: Some(1_000), ..Options::default() };
/// assert_eq!(options.strategy.name(), "pct");
/// ```
#[derive(Clone, Debug)]
pub struct Options {
    /// How the schedules are chosen.
    pub strategy: Strategy,
    /// Bounded: the most preemptions.
    pub preemptions: u8,
    /// Bounded, with planned failures: the most preemptions.
    pub preemptions_with_faults: u8,
    /// The most schedules of one program.
    pub schedules: Option<u64>,
    /// The longest that one program may take.
    pub time: Option<Duration>,
    /// The seed of random choices.
    pub seed: u64,
    /// PCT: the number of points at which priorities change.
    pub depth: usize,
    /// How much is made to fail.
    pub faults: Faults,
    /// How many OS threads share the work.
    pub jobs: u32,
    /// Which part of the campaign this is, counted from 0, and the number of parts.
    pub shard: (u32, u32),
    /// Explore also the code that the program does not [focus](lockdep::focus) on.
    pub whole: bool,
    /// Skip schedules that are equivalent to one that was run.
    pub reduce: bool,
    /// Make a failure small before it is reported.
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

/// The progress of a campaign, for other threads, and the way to stop it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Schedules so far.
    pub schedules: AtomicU64,
    /// The index of the search that runs, in [`Options::searches`].
    pub search: AtomicU64,
    /// The bound that is being searched.
    pub preemptions: AtomicU64,
    /// The number of planned failures that have been tried, and their total.
    pub places: [AtomicU64; 2],
    /// Set this to stop the campaign soon.
    pub stop: AtomicBool,
}
