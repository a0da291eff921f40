//! What the engine costs beside the card it drives: loading and unloading both types of representor on
//! many vports of a card in memory.
//!
//! "Loading and unloading" is `devlink dev eswitch set mode switchdev` and back to `legacy`, with
//! `mlx5_ib` loaded, on every PF: the one pair of commands after which everything is as it was and
//! which loads and unloads each representor of both types once. It has the rescans and the port
//! announcements in it, which belong to it. The engine's queues come to rest before each turn, and not
//! within what is timed.
//!
//! It is compared with the same calls to the same kind of card: the resources of all representors
//! made and unmade, a batch of each type and PF as the engine makes them, in a bare loop under one
//! lock. The vports are VFs of two PFs, because one PF has room for 32,000.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use card_memory::MemoryCard;
use eswitch::card::{Card, Create, Resource};
use eswitch::{CardConfig, Engine, Mode, PfIndex, RepType, Vport};
use lockdep::{Domain, Locked, Threads, Unlocked, enter};

use super::{Measurement, Part, Quantity, Row, Target, by_turns, child};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "memory: load and unload", run: load_and_unload },
    Measurement { name: "memory: peak", run: peak_of_child },
];

const PFS: u8 = 2;
const SIZES: [usize; 3] = [1_000, 10_000, 60_000];

/// A card in switchdev mode and back, and what it is compared with.
struct Bench {
    engine: Arc<Engine>,
    bare: Bare,
}

impl Bench {
    fn start(cx: &mut Locked<'_, Unlocked>, domain: &Arc<Domain>, vports: usize) -> Result<Self> {
        let vfs = u16::try_from(vports / usize::from(PFS))?;
        let config =
            CardConfig { pfs: PFS, total_vfs: vfs, vfs, modules: vec!["mlx5_ib".to_owned()], ..CardConfig::default() };
        config.validate()?;
        let card = Arc::new(MemoryCard::new(config.clone()));
        let engine = Engine::start(cx, config.clone(), card, Arc::new(Threads(Arc::clone(domain))))?;
        engine.settle(cx, true);
        Ok(Self { engine, bare: Bare::new(&config) })
    }

    /// Every PF to a mode. Only the commands are timed.
    fn set_mode(&self, cx: &mut Locked<'_, Unlocked>, mode: Mode) -> Result<Duration> {
        let start = Instant::now();
        for address in self.engine.addresses() {
            self.engine.set_mode(cx, address, mode)?;
        }
        let took = start.elapsed();
        self.engine.settle(cx, true);
        Ok(took)
    }

    fn there_and_back(&self, cx: &mut Locked<'_, Unlocked>) -> Result<Duration> {
        Ok(self.set_mode(cx, Mode::Switchdev)? + self.set_mode(cx, Mode::Legacy)?)
    }
}

/// The same calls, by themselves.
struct Bare {
    card: MemoryCard,
    lock: parking_lot::Mutex<()>,
    /// A batch for each PF and type, in the order of loading.
    batches: Vec<Vec<Create>>,
}

impl Bare {
    fn new(config: &CardConfig) -> Self {
        let batch = |pf: PfIndex, ty| {
            let vports = std::iter::once(Vport::Uplink).chain((0..config.vfs).map(Vport::Vf));
            let request = |vport| Create {
                resource: Resource::Representor(pf, vport, ty),
                mac: config.rep_mac(pf, vport),
                sfnum: None,
            };
            vports.map(request).collect()
        };
        let pfs = (0..config.pfs).map(PfIndex);
        Self {
            card: MemoryCard::new(config.clone()),
            lock: parking_lot::Mutex::new(()),
            batches: pfs.flat_map(|pf| RepType::ALL.map(|ty| batch(pf, ty))).collect(),
        }
    }

    fn there_and_back(&self, cx: &mut Locked<'_, Unlocked>) -> Duration {
        let start = Instant::now();
        let _held = self.lock.lock();
        for batch in &self.batches {
            let refusals = self.card.create(&mut cx.narrow(), batch);
            debug_assert!(refusals.is_empty());
        }
        for batch in self.batches.iter().rev() {
            let resources: Vec<Resource> = batch.iter().map(|create| create.resource).collect();
            self.card.destroy(&mut cx.narrow(), &resources);
        }
        start.elapsed()
    }
}

fn load_and_unload() -> Result<Vec<Row>> {
    let domain = Domain::unchecked();
    let mut rows = Vec::new();
    let mut each = Vec::new();
    for vports in SIZES {
        let representors = 2 * (vports + usize::from(PFS));
        let turns = enter(&domain, "main", |cx| -> Result<_> {
            let bench = Bench::start(cx, &domain, vports)?;
            let cx = std::cell::RefCell::new(cx);
            let mut failed = Ok(());
            let turns = by_turns(
                (600_000 / vports).clamp(15, 101),
                || {
                    let took = bench.there_and_back(*cx.borrow_mut());
                    took.unwrap_or_else(|error| {
                        failed = Err(error);
                        Duration::ZERO
                    })
                },
                || bench.bare.there_and_back(*cx.borrow_mut()),
            );
            bench.engine.shutdown(cx.into_inner());
            failed.map(|()| turns)
        })?;
        let ours = Quantity::nanos_each(turns.ours, representors);
        let theirs = Quantity::nanos_each(turns.theirs, representors);
        let share = Quantity { value: ours.value - theirs.value, ..ours };
        each.push((vports, ours, share));
        rows.push(
            Row::compared(
                format!("load and unload a representor, {vports} vports"),
                ours,
                "bare loop",
                theirs,
                turns.ratio,
            )
            .target(Target::RatioAtMost(3.0)),
        );
    }
    let (few, first, first_share) = each[0];
    let few = format!("{few} vports");
    for (many, ours, share) in &each[1..] {
        let grown = Row::compared(format!("the same, {many} vports"), *ours, &few, first, ours.value / first.value);
        rows.push(grown.target(Target::RatioAtMost(1.5)));
        // The card's books grow, too; what is left without them is the engine's.
        let what = format!("the engine's share of it, {many} vports");
        rows.push(Row::compared(what, *share, &few, first_share, share.value / first_share.value));
    }
    Ok(rows)
}

/// The most memory this process has had, in bytes, after a card of `vports` has been to switchdev mode
/// and back.
pub fn peak(vports: usize) -> Result<u64> {
    let domain = Domain::unchecked();
    enter(&domain, "main", |cx| -> Result<()> {
        let bench = Bench::start(cx, &domain, vports)?;
        bench.there_and_back(cx)?;
        bench.engine.shutdown(cx);
        Ok(())
    })?;
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or_else(|| anyhow!("/proc/self/status has no VmHWM"))?;
    Ok(kib.trim().parse::<u64>()? * 1024)
}

fn peak_of_child() -> Result<Vec<Row>> {
    let megabytes = |value| Quantity { value, unit: "MB" };
    let vports = SIZES[2];
    let what = format!("peak memory of a process with {vports} vports");
    let output = child(&[], Part::MemoryPeak, vports)?;
    let bytes: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(vec![Row::alone(what, megabytes(bytes as f64 / 1e6)).target(Target::AtMost(megabytes(100.0)))])
}
