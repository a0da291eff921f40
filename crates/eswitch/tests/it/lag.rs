//! LAG, shared FDB and multiport E-Switch, on the card in memory.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common::{Bench, addr, story};
use eswitch::card::ResourceKind;
use eswitch::card::{Fault, Resource};
use eswitch::lag::{Bond, LagMode, LagView, TxType};
use eswitch::{CardConfig, Errno, Mode, PciAddress, PfIndex, RepType, Vport};
use lockdep::{Deadline, Locked, Unlocked};

fn two(mode: Mode) -> CardConfig {
    CardConfig {
        pfs: 2,
        vfs: if mode == Mode::Legacy { 0 } else { 2 },
        mode,
        modules: vec!["mlx5_ib".into()],
        ..CardConfig::default()
    }
}

fn peer() -> PciAddress {
    two(Mode::Legacy).pf_address(PfIndex(1))
}

fn bond(ports: u8) -> Bond {
    Bond { name: "bond0".into(), tx: TxType::Hash, ports: (0..ports).map(PfIndex).collect(), foreign: vec![] }
}

fn set_bond(cx: &mut Locked<'_, Unlocked>, bench: &Bench, bond: Option<Bond>) {
    bench.engine.bond_changed(cx, bond);
    bench.engine.settle(cx, true);
}

fn ib_devices(cx: &mut Locked<'_, Unlocked>, bench: &Bench) -> Vec<PfIndex> {
    let resources = bench.engine.inspect(cx).resources;
    let device =
        |r: &&Resource| matches!(r, Resource::PfIbDevice(_) | Resource::Representor(_, Vport::Uplink, RepType::Ib));
    resources.iter().filter(device).map(Resource::pf).collect()
}

fn ib_ports(cx: &mut Locked<'_, Unlocked>, bench: &Bench) -> usize {
    let resources = bench.engine.inspect(cx).resources;
    resources.iter().filter(|r| matches!(r, Resource::Representor(_, _, RepType::Ib))).count()
}

#[test]
fn roce_lag_has_one_rdma_device_and_breaking_it_gives_each_its_own() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Legacy));
        assert_eq!(ib_devices(cx, &bench), [PfIndex(0), PfIndex(1)]);
        set_bond(cx, &bench, Some(bond(2)));
        assert_eq!(bench.engine.lag(cx).mode, LagMode::Roce);
        assert_eq!(ib_devices(cx, &bench), [PfIndex(0)]);
        assert_eq!(bench.engine.check(cx), []);
        set_bond(cx, &bench, None);
        assert_eq!(ib_devices(cx, &bench), [PfIndex(0), PfIndex(1)]);
        bench.end(cx);
    });
}

#[test]
fn with_a_shared_fdb_the_masters_device_has_every_members_vports() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        set_bond(cx, &bench, Some(bond(2)));
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        assert_eq!(ib_devices(cx, &bench), [PfIndex(0)]);
        assert_eq!(ib_ports(cx, &bench), 1 + 2 + 2);
        assert_eq!(bench.engine.check(cx), []);
        bench.engine.unload_module(cx, "mlx5_ib").unwrap();
        assert_eq!(ib_ports(cx, &bench), 0);
        bench.engine.load_module(cx, "mlx5_ib").unwrap();
        bench.engine.settle(cx, true);
        assert_eq!(ib_ports(cx, &bench), 5);
        assert_eq!(bench.engine.check(cx), []);
        set_bond(cx, &bench, None);
        assert_eq!(ib_ports(cx, &bench), 6);
        bench.end(cx);
    });
}

#[test]
fn failures_do_not_delay_the_evaluation_of_a_bond_and_success_ends_their_back_off() {
    story(|cx, domain| {
        // A test that waited for a back-off of a minute would seem to hang.
        let slow = CardConfig { retry_ms: 60_000, retry_max_ms: 60_000, ..two(Mode::Legacy) };
        let bench = Bench::start(cx, domain, slow);
        let is = |cx: &mut Locked<'_, Unlocked>, what: &str, wanted: fn(&LagView) -> bool| {
            let limit = Deadline::after(Duration::from_secs(30));
            while !wanted(&bench.engine.lag(cx)) {
                assert!(!limit.has_passed(), "{what}: {:?}", bench.engine.lag(cx));
                Deadline::after(Duration::from_millis(5)).sleep(cx);
            }
        };
        bench.fail(cx, ResourceKind::Lag, None, 1);
        bench.engine.bond_changed(cx, Some(bond(2)));
        is(cx, "it fails", |lag| lag.reason.as_deref().is_some_and(|why| why.contains("could not be made")));
        bench.engine.bond_changed(cx, Some(Bond { tx: TxType::ActiveBackup(Some(PfIndex(1))), ..bond(2) }));
        is(cx, "the next event is heard at once", |lag| lag.mode == LagMode::Roce && lag.tx == [PfIndex(1)]);
        bench.end(cx);
    });
}

#[test]
fn a_mode_change_breaks_the_lag_first_and_it_is_evaluated_again() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        set_bond(cx, &bench, Some(bond(2)));
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.engine.settle(cx, true);
        let lag = bench.engine.lag(cx);
        assert_eq!(lag.mode, LagMode::None);
        assert!(lag.reason.unwrap().contains("same mode"));
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.engine.settle(cx, true);
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        bench.end(cx);
    });
}

#[test]
fn a_member_is_removed_and_added_again() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        set_bond(cx, &bench, Some(bond(2)));
        for pf in [peer(), addr()] {
            bench.engine.unbind(cx, pf).unwrap();
            bench.engine.settle(cx, true);
            assert_eq!(bench.engine.lag(cx).mode, LagMode::None);
            assert_eq!(bench.engine.check(cx), []);
            bench.engine.bind(cx, pf).unwrap();
            bench.engine.settle(cx, true);
            assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
            assert_eq!(bench.engine.check(cx), []);
        }
        bench.end(cx);
    });
}

#[test]
fn enabling_a_lag_that_fails_anywhere_is_undone_and_done_later() {
    for (kind, after) in [
        (ResourceKind::Lag, 0),
        (ResourceKind::Representor(RepType::Ib), 0),
        (ResourceKind::Representor(RepType::Ib), 1),
        (ResourceKind::Representor(RepType::Ib), 3),
        (ResourceKind::Representor(RepType::Ib), 4),
    ] {
        for mpesw in [false, true] {
            story(|cx, domain| {
                let bench = Bench::start(cx, domain, two(Mode::Switchdev));
                bench.engine.settle(cx, true);
                let before = bench.engine.inspect(cx);
                bench.plan.add(cx, Fault { kind, pf: None, vport: None, after, times: 1, delay: None });
                if mpesw {
                    let error = bench.engine.set_esw_multiport(cx, addr(), true).unwrap_err();
                    assert_eq!(error.errno(), Errno::EIO);
                    bench.engine.settle(cx, true);
                    assert_eq!(bench.engine.inspect(cx), before, "{kind:?} after {after}");
                    bench.engine.set_esw_multiport(cx, addr(), true).unwrap();
                    assert_eq!(bench.engine.lag(cx).mode, LagMode::Mpesw);
                } else {
                    set_bond(cx, &bench, Some(bond(2)));
                    assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb, "{kind:?} after {after}");
                }
                bench.engine.settle(cx, true);
                bench.end(cx);
            });
        }
    }
}

#[test]
fn multiport_eswitch_is_enabled_and_disabled_and_keeps_every_uplink() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        for on in [true, true, false, false, true] {
            bench.engine.set_esw_multiport(cx, addr(), on).unwrap();
            bench.engine.settle(cx, true);
            assert_eq!(bench.engine.lag(cx).mode, if on { LagMode::Mpesw } else { LagMode::None });
            assert_eq!(ib_ports(cx, &bench), 6);
            assert_eq!(bench.engine.check(cx), []);
        }
        set_bond(cx, &bench, Some(bond(2)));
        let lag = bench.engine.lag(cx);
        assert_eq!(lag.mode, LagMode::Mpesw);
        assert!(lag.reason.unwrap().contains("multiport"));
        bench.engine.set_esw_multiport(cx, addr(), false).unwrap();
        bench.engine.settle(cx, true);
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        assert_eq!(bench.engine.set_esw_multiport(cx, addr(), true).unwrap_err().errno(), Errno::EBUSY);
        bench.end(cx);
    });
}

#[test]
fn multiport_eswitch_needs_switchdev_mode_everywhere_and_two_ports() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { mode: Mode::Switchdev, ..CardConfig::default() });
        assert_eq!(bench.engine.set_esw_multiport(cx, addr(), true).unwrap_err().errno(), Errno::EOPNOTSUPP);
        bench.end(cx);
        let bench = Bench::start(cx, domain, two(Mode::Legacy));
        bench.engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(bench.engine.set_esw_multiport(cx, addr(), true).unwrap_err().errno(), Errno::EOPNOTSUPP);
        bench.end(cx);
    });
}

#[test]
fn a_bond_that_a_card_cannot_offload_is_kept_and_the_card_reports_why() {
    let other = |tx: TxType| Bond { tx, ..bond(2) };
    for (pfs, bond, why) in [
        (2, Bond { foreign: vec!["eth7".into()], ..bond(2) }, "eth7"),
        (2, bond(1), "has 1 of the card's 2 ports"),
        (2, other(TxType::Other("broadcast".into())), "broadcast"),
        (1, bond(1), "one port"),
    ] {
        story(|cx, domain| {
            let bench = Bench::start(cx, domain, CardConfig { pfs, ..two(Mode::Switchdev) });
            set_bond(cx, &bench, Some(bond));
            let lag = bench.engine.lag(cx);
            assert_eq!(lag.mode, LagMode::None);
            assert!(lag.reason.as_ref().unwrap().contains(why), "{lag:?}");
            bench.end(cx);
        });
    }
}

#[test]
fn a_member_without_a_driver_is_the_reported_reason() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        set_bond(cx, &bench, Some(bond(2)));
        bench.engine.unbind(cx, peer()).unwrap();
        bench.engine.settle(cx, true);
        let reason = bench.engine.lag(cx).reason.unwrap();
        assert!(reason.contains("1 of the card's 2 PFs are bound"), "{reason}");
        bench.engine.bind(cx, peer()).unwrap();
        bench.engine.settle(cx, true);
        bench.engine.set_mode(cx, peer(), Mode::Switchdev).unwrap();
        bench.engine.settle(cx, true);
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        bench.end(cx);
    });
}

#[test]
fn vf_lag_without_a_shared_fdb_keeps_one_rdma_device_each() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { shared_fdb: false, ..two(Mode::Switchdev) });
        set_bond(cx, &bench, Some(bond(2)));
        assert_eq!(bench.engine.lag(cx).mode, LagMode::Vf);
        assert_eq!(ib_devices(cx, &bench), [PfIndex(0), PfIndex(1)]);
        bench.end(cx);
    });
}

#[test]
fn active_backup_follows_the_active_port() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { pfs: 4, ..two(Mode::Switchdev) });
        for active in [None, Some(PfIndex(2)), Some(PfIndex(0))] {
            set_bond(cx, &bench, Some(Bond { tx: TxType::ActiveBackup(active), ..bond(4) }));
            let lag = bench.engine.lag(cx);
            assert_eq!(lag.mode, LagMode::SharedFdb);
            let all: BTreeSet<_> = (0..4).map(PfIndex).collect();
            assert_eq!(lag.tx.into_iter().collect::<BTreeSet<_>>(), active.map_or(all, |a| [a].into()));
        }
        assert_eq!(ib_ports(cx, &bench), 1 + 4 * 2);
        bench.end(cx);
    });
}

#[test]
fn a_thousand_bond_events_lead_to_few_evaluations() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        bench.engine.settle(cx, true);
        let before = bench.engine.lag_evaluations(cx);
        for n in 0..1_000 {
            bench.engine.bond_changed(cx, (n % 2 == 1).then(|| bond(2)));
        }
        bench.engine.settle(cx, true);
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        // A burst that is shorter than the time for which events are collected leads to one evaluation or two.
        let evaluations = bench.engine.lag_evaluations(cx) - before;
        assert!(evaluations < 100, "{evaluations} evaluations");
        bench.end(cx);
    });
}

#[test]
fn a_card_with_one_port_evaluates_nothing_but_a_bond() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { pfs: 1, ..two(Mode::Legacy) });
        for mode in [Mode::Switchdev, Mode::Legacy] {
            bench.engine.set_mode(cx, addr(), mode).unwrap();
            bench.engine.set_num_vfs(cx, addr(), 2).unwrap();
            bench.engine.set_num_vfs(cx, addr(), 0).unwrap();
        }
        bench.engine.settle(cx, true);
        assert_eq!(bench.engine.lag_evaluations(cx), 0);
        set_bond(cx, &bench, Some(bond(1)));
        assert_eq!(bench.engine.lag_evaluations(cx), 1);
        assert!(bench.engine.lag(cx).reason.unwrap().contains("one port"));
        set_bond(cx, &bench, None);
        assert_eq!(bench.engine.lag(cx).reason, None);
        bench.end(cx);
    });
}

#[test]
fn an_eswitch_whose_uplink_is_not_loaded_again_yet_is_paired_once_it_is() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        set_bond(cx, &bench, Some(bond(2)));
        // Given a mode change that fails, and an uplink that fails to load when the change is undone,
        bench.fail(cx, ResourceKind::IbDevice, None, 1);
        bench.fail(cx, ResourceKind::Representor(RepType::Eth), Some(Vport::Uplink), 3);
        bench.engine.set_mode(cx, peer(), Mode::Legacy).unwrap_err();
        // when it is loaded at last,
        bench.engine.settle(cx, true);
        // then it has the peer rules of its pairing,
        assert_eq!(bench.engine.check(cx), []);
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        // which are removed when it is unpaired.
        bench.engine.set_mode(cx, peer(), Mode::Legacy).unwrap();
        bench.end(cx);
    });
}

#[test]
fn eswitches_that_are_paired_late_form_the_lag() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, two(Mode::Switchdev));
        set_bond(cx, &bench, Some(bond(2)));
        // Given two E-Switches that cannot be paired again after a mode change that fails,
        bench.fail(cx, ResourceKind::IbDevice, None, 1);
        bench.fail(cx, ResourceKind::Pair, None, u32::MAX);
        bench.engine.set_mode(cx, peer(), Mode::Legacy).unwrap_err();
        bench.engine.settle(cx, false);
        assert_eq!(bench.engine.lag(cx).reason.as_deref(), Some("bond0: the E-Switches are not paired yet"));
        // when they can be paired,
        bench.plan.clear(cx);
        bench.engine.settle(cx, true);
        // then the LAG is formed without a further event of the bond.
        assert_eq!(bench.engine.lag(cx).mode, LagMode::SharedFdb);
        bench.end(cx);
    });
}
