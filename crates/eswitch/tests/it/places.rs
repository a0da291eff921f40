//! The places that can fail, by name, and the recovery from each.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::{Bench, addr, resources};
use eswitch::lag::TxType;
use eswitch::{CardConfig, Engine, FunctionChange, Mode, PciAddress, PfIndex, SfNum};
use lockdep::{Domain, Explore, Locked, Oracle, Unlocked};
use shuttle::scheduler::RandomScheduler;

/// An oracle under which nothing fails, and which records the places that could have failed.
#[derive(Debug, Default)]
struct Recorder(Mutex<BTreeSet<String>>);

impl Oracle for Recorder {
    fn fails(&self, _: &str, place: &str) -> bool {
        self.0.lock().unwrap().insert(place.to_owned());
        false
    }
}

/// An oracle under which one place fails the first time.
#[derive(Debug)]
struct Once(String, AtomicBool);

impl Oracle for Once {
    fn fails(&self, _: &str, place: &str) -> bool {
        place == self.0 && !self.1.swap(true, Ordering::Relaxed)
    }
}

/// A story, with the configuration of its card. A story ignores commands that fail.
type Story = (CardConfig, fn(&mut Locked<'_, Unlocked>, &Engine));

fn peer(engine: &Engine) -> PciAddress {
    engine.config().pf_address(PfIndex(1))
}

fn two_ports() -> Story {
    let config = CardConfig { pfs: 2, vfs: 1, mode: Mode::Switchdev, ..CardConfig::default() };
    (config, |cx, engine| {
        let _ = engine.load_module(cx, "mlx5_ib");
        if let Ok(sf) = engine.add_sf(cx, addr(), 0, SfNum(1)) {
            let _ = engine.set_function(cx, sf, FunctionChange { hw_addr: None, active: Some(true), roce: None });
        }
        engine.settle(cx, true);
        let both = [addr(), peer(engine)];
        let _ = engine.bond(cx, "bond0", TxType::Hash, &both, &[]);
        engine.settle(cx, true);
        let _ = engine.unbond(cx, "bond0");
        engine.settle(cx, true);
        let _ = engine.set_esw_multiport(cx, addr(), true);
        let _ = engine.set_mode(cx, peer(engine), Mode::Legacy);
        let _ = engine.set_num_vfs(cx, addr(), 0);
        let _ = engine.reload(cx, addr());
        let _ = engine.unload_module(cx, "mlx5_ib");
    })
}

fn dpu() -> Story {
    let config = CardConfig { dpu: true, vfs: 1, mode: Mode::Switchdev, ..CardConfig::default() };
    (config, |cx, engine| {
        let _ = engine.set_host_vfs(cx, addr(), 2);
        engine.settle(cx, true);
        let _ = engine.set_host_vfs(cx, addr(), 0);
    })
}

/// Runs a story in `times` random schedules. After each, checks that every invariant holds and nothing is left.
fn run(times: usize, story: Story, oracle: impl Fn() -> Arc<dyn Oracle> + Send + Sync + 'static) {
    let once = move || {
        let domain = Domain::exploring(Some(oracle()));
        lockdep::enter(&domain, "story", |cx| {
            if let Ok(bench) = Bench::try_start(cx, &domain, story.0.clone(), |_, _| {}) {
                story.1(cx, &bench.engine);
                bench.engine.settle(cx, true);
                assert_eq!(bench.engine.check(cx), []);
                bench.engine.shutdown(cx);
                assert_eq!(resources(&bench.card, cx), []);
            }
        });
        let reports: Vec<String> = domain.take_reports().iter().map(ToString::to_string).collect();
        assert!(reports.is_empty(), "{}", reports.join("\n"));
    };
    if let Err(halt) = Explore::default().until_failure(RandomScheduler::new(times), once) {
        panic!("{halt}");
    }
}

/// The places of a story that can fail.
fn places(story: Story) -> BTreeSet<String> {
    let recorder = Arc::new(Recorder::default());
    let oracle = Arc::clone(&recorder);
    run(3, story, move || Arc::clone(&oracle) as Arc<dyn Oracle>);
    recorder.0.lock().unwrap().clone()
}

/// Checks the places of a story that can fail, and lets each fail once.
fn each_fails_once(story: fn() -> Story, expected: &[&str]) {
    let found = places(story());
    // Which resources are made depends on the card.
    let places_of_engine = found.iter().map(String::as_str).filter(|place| !place.starts_with("make "));
    assert_eq!(places_of_engine.collect::<Vec<_>>(), expected);
    for place in found {
        eprintln!("{place} fails");
        run(30, story(), move || Arc::new(Once(place.clone(), AtomicBool::new(false))));
    }
}

#[test]
fn the_places_that_can_fail_on_a_card_with_two_ports() {
    each_fails_once(
        two_ports,
        &[
            "lend ib pf1",
            "load eth pf0 sf@0",
            "load eth pf0 uplink",
            "load eth pf0 vf0",
            "load eth pf1 uplink",
            "load eth pf1 vf0",
            "load ib pf0 sf@0",
            "load ib pf0 uplink",
            "load ib pf0 vf0",
            "load ib pf1 uplink",
            "load ib pf1 vf0",
            "probe mlx5_core.eth pf0 sf@0",
            "probe mlx5_core.eth-rep.0",
            "probe mlx5_core.eth-rep.1",
            "probe mlx5_core.eth.0",
            "probe mlx5_core.eth.1",
            "probe mlx5_core.rdma pf0 sf@0",
            "probe mlx5_core.rdma-rep.0",
            "probe mlx5_core.rdma-rep.1",
            "probe mlx5_core.rdma.0",
            "probe mlx5_core.rdma.1",
            "queue item pf0 sf",
            "queue item pf0 work",
            "queue item pf1 work",
            "thread lag",
            "thread pf0 sf",
            "thread pf0 work",
            "thread pf1 sf",
            "thread pf1 work",
        ],
    );
}

#[test]
fn the_places_that_can_fail_on_a_dpu() {
    each_fails_once(
        dpu,
        &[
            "atomic allocation pf0 work",
            "load eth pf0 hpf",
            "load eth pf0 uplink",
            "load eth pf0 vf0",
            "load eth pf0 vf1",
            "probe mlx5_core.eth-rep.0",
            "probe mlx5_core.eth.0",
            "queue item pf0 work",
            "thread lag",
            "thread pf0 sf",
            "thread pf0 work",
        ],
    );
}
