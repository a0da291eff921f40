//! What making and breaking a LAG costs beside the callbacks it leads to, and how much work a burst of
//! bond events is.
//!
//! Multiport E-Switch goes on and off over two PFs with 500 VFs each: every IB representor of both is
//! unloaded and loaded again, twice, as a bond would have it with a shared FDB. It is what can be
//! timed: a bond's events are collected for 10 ms before anything is done. The bare loop makes as many
//! callbacks under one lock: it unmakes and makes the IB representors of a PF's vports, a batch for
//! each PF, on a card that holds what the engine's holds. A callback is given vports, there as here, and
//! what it asks of the card it makes out of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use card_memory::MemoryCard;
use eswitch::card::{Card, Create, Resource};
use eswitch::lag::TxType;
use eswitch::{CardConfig, Engine, Mode, PfIndex, RepType, Vport};
use lockdep::{Domain, Locked, Threads, Unlocked, enter};

use super::{Measurement, Quantity, Row, Target, by_turns};

/// The measurements of this group.
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

fn start(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>) -> Result<(Arc<Engine>, Arc<MemoryCard>)> {
    let card = Arc::new(MemoryCard::new(config()));
    let engine = Engine::start(cx, config(), Arc::clone(&card) as _, Arc::new(Threads(Arc::clone(domain))))?;
    engine.settle(cx, true);
    Ok((engine, card))
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

/// The same calls, by themselves.
struct Bare {
    card: MemoryCard,
    lock: parking_lot::Mutex<()>,
    config: CardConfig,
    vports: Vec<Vport>,
}

impl Bare {
    /// On a card that holds what `like` does.
    fn new(cx: &mut Locked<'_, Unlocked>, like: &MemoryCard) -> Self {
        let config = config();
        let card = MemoryCard::new(config.clone());
        let held = like.resources(&mut cx.narrow()).into_iter().map(|resource| Create {
            resource,
            mac: config.rep_mac(resource.pf(), resource.vport().unwrap_or(Vport::Uplink)),
            sfnum: None,
        });
        let held: Vec<Create> = held.collect();
        card.create(&mut cx.narrow(), &held);
        let vports = std::iter::once(Vport::Uplink).chain((0..VFS).map(Vport::Vf)).collect();
        Self { card, lock: parking_lot::Mutex::new(()), config, vports }
    }

    fn on_and_off(&self, cx: &mut Locked<'_, Unlocked>) -> Duration {
        let ib = |pf, vport| Resource::Representor(pf, vport, RepType::Ib);
        let start = Instant::now();
        let _held = self.lock.lock();
        for _ in 0..2 {
            for pf in (0..self.config.pfs).map(PfIndex) {
                let resources: Vec<Resource> = self.vports.iter().map(|v| ib(pf, *v)).collect();
                self.card.destroy(&mut cx.narrow(), &resources);
            }
            for pf in (0..self.config.pfs).map(PfIndex) {
                let request =
                    |v: &Vport| Create { resource: ib(pf, *v), mac: self.config.rep_mac(pf, *v), sfnum: None };
                let requests: Vec<Create> = self.vports.iter().map(request).collect();
                let refusals = self.card.create(&mut cx.narrow(), &requests);
                debug_assert!(refusals.is_empty());
            }
        }
        start.elapsed()
    }
}

fn on_and_off() -> Result<Vec<Row>> {
    let domain = Domain::unchecked();
    let turns = enter(&domain, "main", |cx| -> Result<_> {
        let (engine, card) = start(cx, &domain)?;
        let bare = Bare::new(cx, &card);
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
            || bare.on_and_off(*cx.borrow_mut()),
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
        let (engine, _) = start(cx, &domain)?;
        let before = engine.lag_evaluations(cx);
        for n in 0..1_000 {
            if n % 2 == 0 {
                engine.bond(cx, "bond0", TxType::Hash, &engine.addresses(), &[])?;
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
