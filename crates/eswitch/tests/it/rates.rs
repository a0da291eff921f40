//! Transmit rates: what the card is told of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use eswitch::rate::{Rate, RateChange, RateObject, TxRates};
use eswitch::vf::VfSetting;
use eswitch::{CardConfig, Engine, Errno, Error, FunctionChange, Mode, PfIndex, SfNum, Vport};
use lockdep::{Domain, Explore, Locked, Oracle, Unlocked};
use shuttle::scheduler::RandomScheduler;

const PF: PfIndex = PfIndex(0);
const MBIT: u64 = 125_000;

fn config(vfs: u16, mode: Mode) -> CardConfig {
    CardConfig { vfs, mode, ..CardConfig::default() }
}

fn max(mbits: u64) -> RateChange {
    RateChange { tx_max: Some(mbits * MBIT), ..RateChange::default() }
}

fn vf_rate(max: u32) -> VfSetting {
    VfSetting::Rate { min: None, max: Some(max) }
}

fn node(name: &str) -> RateObject {
    RateObject::Node(addr(), name.to_owned())
}

/// The leaf of a vport.
fn leaf(engine: &Engine, cx: &mut Locked<'_, Unlocked>, vport: Vport) -> RateObject {
    let rates = engine.rates(cx, addr()).unwrap();
    let is_it = |of: &RateObject| matches!(of, RateObject::Leaf(port) if port.index.split().1 == vport.number());
    rates.into_iter().map(|(of, _)| of).find(is_it).unwrap()
}

/// The limits of the vports that the card has a rate of, in Mbit/s.
fn limits(rates: &TxRates) -> Vec<(Vport, Option<u64>)> {
    rates.leaves.keys().map(|vport| (*vport, rates.limit(*vport).map(|limit| limit / MBIT))).collect()
}

#[test]
fn the_card_has_the_rates_of_leaves_nodes_and_vfs() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, config(2, Mode::Switchdev));
        let engine = &bench.engine;
        let sf = engine.add_sf(cx, addr(), 0, SfNum(7)).unwrap();
        engine.set_function(cx, sf, FunctionChange { hw_addr: None, active: Some(true), roce: None }).unwrap();
        engine.settle(cx, true);
        let [vf0, vf1, sf] = [Vport::Vf(0), Vport::Vf(1), Vport::Sf(0)].map(|vport| leaf(engine, cx, vport));
        let has = |cx: &mut Locked<'_, Unlocked>| limits(&bench.card.rates(cx, PF));
        engine.add_rate_node(cx, addr(), "gold", &max(200)).unwrap();
        let below = RateChange { parent: Some(Some("gold".to_owned())), ..max(300) };
        engine.set_rate(cx, &sf, &below).unwrap();
        engine.set_rate(cx, &vf0, &max(100)).unwrap();
        assert_eq!(has(cx), [(Vport::Vf(0), Some(100)), (Vport::Sf(0), Some(200))]);
        engine.set_rate(cx, &node("gold"), &max(0)).unwrap();
        assert_eq!(has(cx), [(Vport::Vf(0), Some(100)), (Vport::Sf(0), Some(300))]);
        // A VF has one rate: the one that was set last.
        let shown = |cx: &mut Locked<'_, Unlocked>| bench.pf0(cx).vfs[0].info.max_tx_rate;
        assert_eq!(shown(cx), 100);
        engine.set_vf(cx, addr(), 0, vf_rate(40)).unwrap();
        assert_eq!((has(cx)[0], shown(cx)), ((Vport::Vf(0), Some(40)), 40));
        engine.set_rate(cx, &vf0, &max(50)).unwrap();
        assert_eq!((has(cx)[0], shown(cx)), ((Vport::Vf(0), Some(50)), 50));
        // What was not set with a leaf stays as it is.
        let share = RateChange { tx_share: Some(10 * MBIT), ..RateChange::default() };
        engine.set_rate(cx, &vf0, &share).unwrap();
        assert_eq!(bench.card.rates(cx, PF).leaves[&Vport::Vf(0)].tx_max, 50 * MBIT);
        engine.set_rate(cx, &vf1, &share).unwrap();
        assert_eq!(has(cx)[1], (Vport::Vf(1), None));

        let RateObject::Leaf(port) = sf else { unreachable!() };
        engine.delete_port(cx, port).unwrap();
        engine.settle(cx, true);
        engine.delete_rate_node(cx, addr(), "gold").unwrap();
        let rates = bench.card.rates(cx, PF);
        assert_eq!((rates.nodes.len(), rates.leaves.len()), (0, 2));
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        assert_eq!(bench.card.rates(cx, PF), TxRates::default());
        engine.set_num_vfs(cx, addr(), 1).unwrap();
        assert_eq!(bench.card.rates(cx, PF), TxRates::default());
        bench.end(cx);
    });
}

#[test]
fn the_rates_of_vfs_apply_in_both_modes_and_after_a_reload() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, config(2, Mode::Legacy));
        let engine = &bench.engine;
        engine.set_vf(cx, addr(), 1, vf_rate(30)).unwrap();
        let expected = [(Vport::Vf(1), Some(30))];
        let has = |cx: &mut Locked<'_, Unlocked>| limits(&bench.card.rates(cx, PF));
        assert_eq!(has(cx), expected);
        engine.reload(cx, addr()).unwrap();
        assert_eq!(has(cx), expected);
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(has(cx), expected);
        bench.end(cx);
    });
}

/// An oracle under which the card refuses rates while it is set.
#[derive(Debug, Default)]
struct RefusesRates(AtomicBool);

impl Oracle for RefusesRates {
    fn fails(&self, _: &str, place: &str) -> bool {
        place == "set the rates of pf0" && self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_rate_that_the_card_refuses_changes_nothing() {
    let once = || {
        let oracle = Arc::new(RefusesRates::default());
        let refuse = |on: bool| oracle.0.store(on, Ordering::Relaxed);
        let domain = Domain::exploring(Some(Arc::clone(&oracle) as Arc<dyn Oracle>));
        lockdep::enter(&domain, "story", |cx| {
            let bench = Bench::start(cx, &domain, config(1, Mode::Switchdev));
            let engine = &bench.engine;
            let vf0 = leaf(engine, cx, Vport::Vf(0));
            engine.add_rate_node(cx, addr(), "gold", &max(200)).unwrap();
            engine.set_rate(cx, &vf0, &max(20)).unwrap();
            let state = |cx: &mut Locked<'_, Unlocked>| {
                let vf = bench.pf0(cx).vfs[0].info.clone();
                (engine.rates(cx, addr()).unwrap(), vf, bench.card.rates(cx, PF))
            };
            let before = state(cx);
            refuse(true);
            let parent = RateChange { parent: Some(Some("gold".to_owned())), ..max(10) };
            let refused = [
                engine.set_rate(cx, &vf0, &parent),
                engine.set_rate(cx, &node("gold"), &max(10)),
                engine.add_rate_node(cx, addr(), "silver", &RateChange::default()),
                engine.delete_rate_node(cx, addr(), "gold"),
                engine.set_vf(cx, addr(), 0, vf_rate(7)),
            ];
            for answer in refused {
                assert!(
                    matches!(&answer, Err(error @ Error::Card { .. }) if error.errno() == Errno::EIO),
                    "{answer:?}"
                );
            }
            assert_eq!(state(cx), before);
            refuse(false);
            engine.set_rate(cx, &vf0, &parent).unwrap();
            assert_ne!(state(cx), before);
            assert_eq!(before.2.leaves[&Vport::Vf(0)], Rate { tx_max: 20 * MBIT, ..Rate::default() });
            bench.engine.settle(cx, true);
            assert_eq!(bench.engine.check(cx), []);
            bench.engine.shutdown(cx);
        });
    };
    if let Err(halt) = Explore::default().until_failure(RandomScheduler::new(1), once) {
        panic!("{halt}");
    }
}
