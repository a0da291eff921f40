//! The options of `esw check`, as the explorer has them.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use check::Options;

use crate::arguments::{Check, Faults, Strategy};

/// How long each scenario is explored when neither `--time` nor `--schedules` is given.
const TIME: Duration = Duration::from_secs(10);

/// Refuses options that the chosen strategy has no use for, and numbers that are too large.
pub fn refuse_what_makes_no_sense(arguments: &Check) -> Result<()> {
    let strategy = arguments.strategy;
    let only_random = matches!(strategy, Strategy::Random | Strategy::Pct | Strategy::Urw);
    if only_random && arguments.no_reduction {
        bail!("--no-reduction is for --strategy portfolio and bounded: random schedules are not reduced");
    }
    if only_random && (arguments.preemptions.is_some() || arguments.fault_preemptions.is_some()) {
        bail!(
            "--preemptions and --fault-preemptions are for --strategy portfolio and bounded: random schedules have as many as they have"
        );
    }
    if strategy == Strategy::Bounded && arguments.seed.is_some() {
        bail!("--seed is for --strategy portfolio, random, pct and urw: nothing is random in bounded");
    }
    if strategy != Strategy::Pct && arguments.depth.is_some() {
        bail!("--depth is for --strategy pct");
    }
    let of_shuttle = matches!(strategy, Strategy::Portfolio | Strategy::Pct | Strategy::Urw);
    if of_shuttle && std::env::var_os("SHUTTLE_RANDOM_SEED").is_some() {
        bail!(
            "SHUTTLE_RANDOM_SEED is set, which --strategy portfolio, pct and urw would take instead of --seed: unset it"
        );
    }
    if arguments.faults == Faults::None && arguments.fault_preemptions.is_some() {
        bail!("--fault-preemptions is for --faults each or pairs");
    }
    refuse_too_many_jobs(arguments)?;
    if let Some(shard) = arguments.shard
        && shard.of > 100_000
    {
        bail!("--shard {}/{}: expected at most 100000 parts", shard.index, shard.of);
    }
    Ok(())
}

/// Refuses more OS threads than make sense anywhere.
pub fn refuse_too_many_jobs(arguments: &Check) -> Result<()> {
    if arguments.jobs > 1024 {
        bail!("--jobs {}: expected at most 1024", arguments.jobs);
    }
    Ok(())
}

/// Returns how many OS threads share the work.
pub fn jobs(arguments: &Check) -> u32 {
    match arguments.jobs {
        0 => thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        jobs => jobs,
    }
}

pub fn options(arguments: &Check) -> Options {
    let given = arguments.time.map(Duration::from_secs);
    Options {
        strategy: match arguments.strategy {
            Strategy::Portfolio => check::Strategy::Portfolio,
            Strategy::Bounded => check::Strategy::Bounded,
            Strategy::Random => check::Strategy::Random,
            Strategy::Pct => check::Strategy::Pct,
            Strategy::Urw => check::Strategy::Urw,
        },
        preemptions: arguments.preemptions.unwrap_or(2),
        preemptions_with_faults: arguments.fault_preemptions.unwrap_or(1),
        schedules: arguments.schedules,
        time: if arguments.schedules.is_none() { given.or(Some(TIME)) } else { given },
        seed: arguments.seed.unwrap_or(0),
        depth: arguments.depth.unwrap_or(3).into(),
        faults: match arguments.faults {
            Faults::None => check::Faults::None,
            Faults::Each => check::Faults::Each,
            Faults::Pairs => check::Faults::Pairs,
        },
        jobs: jobs(arguments),
        shard: arguments.shard.map_or((0, 1), |shard| (shard.index - 1, shard.of)),
        whole: arguments.whole,
        reduce: !arguments.no_reduction,
        minimise: true,
    }
}
