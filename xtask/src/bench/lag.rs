//! What making and breaking a LAG costs beside the callbacks it leads to, and how much work a burst of
//! bond events is.
//!
//! Multiport E-Switch goes on and off over two PFs with 500 VFs each: every IB representor of both is
//! unloaded and loaded again, twice, as a bond would have it with a shared FDB. It is what can be
//! timed: a bond's events are collected for 10 ms before anything is done. The bare loop makes and
//! unmakes as many IB representors, in the same batches, under one lock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use card_memory::MemoryCard;
use eswitch::card::{Card, Create, Resource};
use eswitch::{CardConfig, Engine, Mode, PfIndex, RepType, Tx, Vport};
use lockdep::{Domain, Locked, Threads, Unlocked, enter};

use super::{Measurement, Quantity, Row, Target, by_turns};

/// The group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "lag: on and off", run: on_and_off },
    Measurement { name: "lag: a burst of bond events", run: burst },
];

const VFS: u16 = 500;

fn config() -> CardConfig {
    CardConfig {
        pfs: 2,
        total_vfs: VFS,
        vfs: VFS,
        mode: Mode::Switchdev,
        modules: vec!["mlx5_ib".to_owned()],
        ..CardConfig::default()
    }
}

fn start(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>) -> Result<Arc<Engine>> {
    let card = Arc::new(MemoryCard::new(config()));
    let engine = Engine::start(cx, config(), card, Arc::new(Threads(Arc::clone(domain))))?;
    engine.settle(cx, true);
    Ok(engine)
}

fn multiport(cx: &mut Locked<'_, Unlocked>, engine: &Engine) -> Result<Duration> {
    let mut took = Duration::ZERO;
    for on in [true, false] {
        let start = Instant::now();
        engine.set_esw_multiport(cx, config().address, on)?;
        took += start.elapsed();
        engine.settle(cx, true);
    }
    Ok(took)
}

fn bare(cx: &mut Locked<'_, Unlocked>, card: &MemoryCard, lock: &parking_lot::Mutex<()>) -> Duration {
    let request = |pf, vport| Create {
        resource: Resource::Representor(pf, vport, RepType::Ib),
        mac: config().rep_mac(pf, vport),
        sfnum: None,
    };
    let vports: Vec<Vport> = std::iter::once(Vport::Uplink).chain((0..VFS).map(Vport::Vf)).collect();
    let batches: Vec<Vec<Create>> =
        [PfIndex(0), PfIndex(1)].map(|pf| vports.iter().map(|v| request(pf, *v)).collect()).into();
    let start = Instant::now();
    let _held = lock.lock();
    for _ in 0..2 {
        for batch in &batches {
            for answer in card.create(&mut cx.narrow(), batch) {
                debug_assert!(answer.is_ok());
            }
        }
        for batch in batches.iter().rev() {
            let resources: Vec<Resource> = batch.iter().map(|create| create.resource).collect();
            card.destroy(&mut cx.narrow(), &resources);
        }
    }
    start.elapsed()
}

fn on_and_off() -> Result<Vec<Row>> {
    let domain = Domain::unchecked();
    let turns = enter(&domain, "main", |cx| -> Result<_> {
        let engine = start(cx, &domain)?;
        let (card, lock) = (MemoryCard::new(config()), parking_lot::Mutex::new(()));
        let cx = std::cell::RefCell::new(cx);
        let mut failed = Ok(());
        let turns = by_turns(
            31,
            || {
                multiport(*cx.borrow_mut(), &engine).unwrap_or_else(|error| {
                    failed = Err(error);
                    Duration::ZERO
                })
            },
            || bare(*cx.borrow_mut(), &card, &lock),
        );
        engine.shutdown(cx.into_inner());
        failed.map(|()| turns)
    })?;
    let callbacks = 4 * 2 * (usize::from(VFS) + 1);
    let ours = Quantity::nanos_each(turns.ours, callbacks);
    let theirs = Quantity::nanos_each(turns.theirs, callbacks);
    let what = format!("multiport E-Switch on and off, 2 x {VFS} VFs, each callback");
    Ok(vec![Row::compared(what, ours, "bare loop", theirs, turns.ratio).target(Target::RatioAtMost(1.5))])
}

fn burst() -> Result<Vec<Row>> {
    let domain = Domain::unchecked();
    let evaluations = enter(&domain, "main", |cx| -> Result<u64> {
        let engine = start(cx, &domain)?;
        let before = engine.lag_evaluations(cx);
        for n in 0..1_000 {
            if n % 2 == 0 {
                engine.bond(cx, "bond0", Tx::Hash, &engine.addresses(), &[])?;
            } else {
                engine.unbond(cx, "bond0")?;
            }
        }
        engine.settle(cx, true);
        let evaluations = engine.lag_evaluations(cx) - before;
        engine.shutdown(cx);
        Ok(evaluations)
    })?;
    let count = |n: f64| Quantity { value: n, unit: "evaluations" };
    let what = "a burst of 1,000 bond events".to_owned();
    Ok(vec![Row::alone(what, count(evaluations as f64)).target(Target::AtMost(count(2.0)))])
}
