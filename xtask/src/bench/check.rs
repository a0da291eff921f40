//! What exploring costs: schedules per second, and compared with a program that has only shuttle's locks.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use card_memory::MemoryCard;
use check::schedulers::Replay;
use check::{Options, Strategy, Watch};
use host::World;
use lockdep::{Domain, Explore, OpKind, What};
use scenario::Scenario;
use shuttle::scheduler::RandomScheduler;

use super::{Measurement, Quantity, Row, Target, by_turns};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "check: random", run: random },
    Measurement { name: "check: bounded", run: bounded },
    Measurement { name: "check: rules, random", run: rules },
];

const TURNS: usize = 7;
const SCHEDULES: u64 = 2_000;
const AT_LEAST: Quantity = Quantity { value: 3_000.0, unit: "/s" };

fn random() -> Result<Vec<Row>> {
    rows(Strategy::Random, LIFE_CYCLE)
}

fn bounded() -> Result<Vec<Row>> {
    rows(Strategy::Bounded, LIFE_CYCLE)
}

fn rules() -> Result<Vec<Row>> {
    rows(Strategy::Random, RULES)
}

/// What is explored: its name, the scenario, and how much longer a schedule may take than as many of shuttle's locks.
type Explored = (&'static str, &'static str, f64);

const LIFE_CYCLE: Explored = ("three threads, two VFs", include_str!("check.toml"), 5.0);
const RULES: Explored = ("two programs with rules, two VFs", include_str!("check-rules.toml"), 1.5);

/// Schedules a second, and the time of one against that of as many of shuttle's locks.
fn rows(strategy: Strategy, (what, text, limit): Explored) -> Result<Vec<Row>> {
    let scenario = scenario::parse(text).map_err(|error| anyhow!("{error}"))?;
    let size = size(&scenario);
    ensure!(size.threads > 3 && size.locks > 0, "the scenario was not run");
    let options =
        Options { strategy, preemptions: 3, schedules: Some(SCHEDULES), time: None, jobs: 1, ..Options::default() };
    let watch = Arc::new(Watch::default());
    let mut found = Vec::new();
    let mut schedules = 0;
    let turns = by_turns(
        TURNS,
        || {
            let start = Instant::now();
            let report = check::check(&scenario, &options, &watch);
            let elapsed = start.elapsed();
            schedules = report.schedules.max(1);
            found.extend(report.violations);
            elapsed / schedules as u32
        },
        || bare(size, SCHEDULES as usize) / SCHEDULES as u32,
    );
    ensure!(found.is_empty(), "{}: {}", found[0].invariant, found[0].detail);
    let micros = |time: Duration| Quantity { value: time.as_nanos() as f64 / 1e3, unit: "us" };
    let name = strategy.name();
    let rate = Quantity { value: 1.0 / turns.ours.as_secs_f64(), unit: "/s" };
    let Size { threads, locks } = size;
    Ok(vec![
        Row::alone(format!("schedules of {what}, {name}"), rate).target(Target::AtLeast(AT_LEAST)),
        Row::compared(
            format!("one of them, {name}: {locks} locks taken, {threads} threads"),
            micros(turns.ours),
            "as many of shuttle's, no engine",
            micros(turns.theirs),
            turns.ratio,
        )
        .target(Target::RatioAtMost(limit)),
    ])
}

/// The threads and locks of one schedule of the scenario.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    threads: usize,
    locks: usize,
}

/// Runs the scenario once, in the schedule without preemptions.
fn size(scenario: &Scenario) -> Size {
    let size = Rc::new(Cell::new(Size::default()));
    let ours = Rc::clone(&size);
    let ended = move |_| {
        let (threads, happenings) = lockdep::look(|model| (model.threads().len(), model.take_happenings()));
        let takes = |what: &What| matches!(what, What::Op(op) if takes_a_lock(op.kind));
        let locks = happenings.iter().filter(|happening| takes(&happening.what)).count();
        ours.set(Size { threads, locks });
        ControlFlow::Break(())
    };
    let (domain, scenario) = (Domain::exploring(None), scenario.clone());
    Explore { record: true, ..Explore::default() }.run(Replay::new(Vec::new()), ended, move || {
        let world = World::of(MemoryCard::new(scenario.card.clone()), &domain);
        lockdep::enter(&domain, "main", |cx| scenario::run(cx, &scenario, &world, &mut ()));
    });
    size.get()
}

fn takes_a_lock(kind: OpKind) -> bool {
    matches!(kind, OpKind::Acquire | OpKind::AcquireShared | OpKind::Try)
}

/// As many threads take as many locks, one at a time, in random schedules; for how long.
fn bare(size: Size, schedules: usize) -> Duration {
    const LOCKS: usize = 16;
    let start = Instant::now();
    let mut config = shuttle::Config::new();
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.max_steps = shuttle::MaxSteps::None;
    config.silence_warnings = true;
    shuttle::Runner::new(RandomScheduler::new_from_seed(1, schedules), config).run(move || {
        let locks: Arc<Vec<_>> = Arc::new((0..LOCKS).map(|_| shuttle::sync::Mutex::new(0_u64)).collect());
        let threads: Vec<_> = (1..size.threads)
            .map(|thread| {
                let locks = Arc::clone(&locks);
                shuttle::thread::spawn(move || {
                    for n in 0..size.locks / (size.threads - 1) {
                        *locks[(thread * 5 + n) % LOCKS].lock().expect("nobody panics") += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("nobody panics"));
    });
    start.elapsed()
}
