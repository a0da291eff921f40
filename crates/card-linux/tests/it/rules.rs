//! Flow rules on real netdevs: what a function is not allowed holds for frames that a rule takes, too, and rules outlive the
//! process.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::time::Duration;

use crate::common::frames::Tap;
use crate::common::*;
use crate::rates::{
    Peer, assert_limited, bridge_representors, measured, rate, send, set, stations, until_it_flows, vfs,
};
use card_linux::{Wire, cannot_offload};
use eswitch::card::{Card, Resource};
use eswitch::datapath::{Change, Datapath, port};
use eswitch::rate::TxRates;
use eswitch::{CardConfig, PfIndex, RepType, Vport};
use flow::{Action, Counter, Field, Match, Meter, MeterId, PortKind, Protocol, Rate, Rule, RuleId};

/// Runs `test` in namespaces of its own, if rules can be offloaded here; if not, a line says so.
fn with_rules(name: &str, test: impl FnOnce()) {
    in_own_namespaces(name, || {
        let Some(why) = cannot_offload() else { return test() };
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        eprintln!("{name} skipped: {why}");
    });
}

/// Starts the process of `owner`, VFs with receivers, and a sender from VF 0 to VF 1, and kills that process once its rules
/// carry what is sent. Nobody bridges representors, so it is the rules that do.
fn kill_owner() -> Vec<Peer> {
    let mut owner = start_owner();
    let mut peers = stations(3);
    sh("for n in 0 1 2; do ip link set enp8s0f0npf0vf$n up; done");
    peers.extend(send(&[(0, 1)]));
    until_it_flows(&[1]);
    owner.kill().unwrap();
    owner.wait().unwrap();
    peers
}

fn of_vf(n: u16) -> flow::Port {
    port(PF, Vport::Vf(n))
}

/// Everything that VF `from` sends goes to VF `to`.
fn to_vf(from: u16, to: u16) -> Rule {
    Rule::new(of_vf(from), Match::new(), [Action::Redirect(of_vf(to))]).with_priority(9, Protocol::All)
}

/// The frames with this destination go to VF `to`.
fn to_mac(from: u16, mac: [u8; 6], to: u16) -> Rule {
    let wanted = Match::new().with(Field::EthDst, mac);
    Rule::new(of_vf(from), wanted, [Action::Redirect(of_vf(to))]).with_priority(1, Protocol::All)
}

fn plane<R>(
    rig: &Rig,
    f: impl FnOnce(&dyn Datapath, &mut lockdep::Locked<'_, eswitch::lock_order::CardCall>) -> R,
) -> R {
    rig.with(|card, cx| f(card.datapath().expect("a data plane"), cx))
}

/// Has the rules know the ports of so many VFs, as the engine does in switchdev mode.
fn open_rules(rig: &Rig, n: u16) {
    let ports: Vec<_> = (0..n).map(|n| (of_vf(n), PortKind::Vport)).collect();
    plane(rig, |plane, cx| {
        plane.open(cx, PF);
        plane.attach(cx, PF, &ports);
    });
}

fn install(rig: &Rig, rules: &[(u64, Rule)]) {
    let changes: Vec<_> = rules.iter().map(|(id, rule)| Change::Install(RuleId(*id), rule)).collect();
    let outcomes = plane(rig, |plane, cx| plane.commit(cx, PF, &changes));
    outcomes.into_iter().for_each(|outcome| assert!(outcome.is_ok(), "{outcome:?}"));
}

fn remove(rig: &Rig, ids: &[u64]) {
    let changes: Vec<_> = ids.iter().map(|id| Change::Remove(RuleId(*id))).collect();
    plane(rig, |plane, cx| plane.commit(cx, PF, &changes));
}

fn counter(rig: &Rig, id: u64) -> Counter {
    plane(rig, |plane, cx| plane.counters(cx, PF, &[RuleId(id)]))[0]
}

#[test]
fn a_rate_holds_for_what_rules_take_and_for_what_they_do_not() {
    with_rules("a_rate_holds_for_what_rules_take_and_for_what_they_do_not", || {
        let rig = Rig::with_vfs(3);
        let _stations = stations(3);
        rig.to_switchdev(3);
        bridge_representors(3);
        open_rules(&rig, 3);
        set(&rig, &vfs(&[(0, rate(60, 0, None))])).unwrap();
        let senders = send(&[(0, 1)]);
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 60.0);
        // The rate comes first, and then the rules.
        install(&rig, &[(1, to_vf(1, 0))]);
        let mac = |n: u16| eswitch::CardConfig::default().mac(PF, Vport::Vf(n)).0;
        install(&rig, &[(2, to_mac(0, mac(1), 1))]);
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 60.0);
        assert!(counter(&rig, 2).packets > 100, "the rule takes them");
        // Both ways together: VF 2 is reached over the representors only.
        let more = send(&[(0, 2)]);
        until_it_flows(&[1, 2]);
        let both = measured(&[1, 2]);
        assert_limited(both[0] + both[1], 60.0);
        drop((senders, more));
        // The rules come first, and then the rate.
        set(&rig, &TxRates::default()).unwrap();
        let _senders = send(&[(0, 1)]);
        until_it_flows(&[1]);
        assert!(measured(&[1])[0] > 200.0);
        set(&rig, &vfs(&[(0, rate(30, 0, None))])).unwrap();
        assert_limited(measured(&[1])[0], 30.0);
        // And none of the rules.
        remove(&rig, &[1, 2]);
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 30.0);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn nothing_reaches_a_function_without_a_link_by_a_rule() {
    with_rules("nothing_reaches_a_function_without_a_link_by_a_rule", || {
        let rig = Rig::with_vfs(2);
        sh("ip netns add away && ip link set enp8s0f0v1 netns away");
        rig.to_switchdev(2);
        open_rules(&rig, 2);
        install(&rig, &[(1, to_vf(0, 1))]);
        sh("ip link set enp8s0f0v0 up; ip -n away link set enp8s0f0v1 up; ip link set enp8s0f0npf0vf0 up");
        let carrier = |wanted: bool| {
            let not = if wanted { "" } else { "! " };
            eventually(&format!("{not}ip -n away link show enp8s0f0v1 | grep -q LOWER_UP"));
        };
        let (vf0, vf1) = (Tap::on(None, "enp8s0f0v0"), Tap::on(Some("away"), "enp8s0f0v1"));
        carrier(false);
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        assert!(vf0.send([0xff; 6], [2; 6], "to nobody"));
        assert_eq!(vf1.received(0), [""; 0]);
        sh("ip link set enp8s0f0npf0vf1 up");
        carrier(true);
        assert!(vf0.send([0xff; 6], [2; 6], "to somebody"));
        assert_eq!(vf1.received(1), ["to somebody"]);
        sh("ip link set enp8s0f0npf0vf1 down");
        carrier(false);
        std::thread::sleep(Duration::from_millis(50));
        assert!(vf0.send([0xff; 6], [2; 6], "to nobody again"));
        assert_eq!(vf1.received(0), [""; 0]);
        assert!(counter(&rig, 1).packets >= 3, "the rule took all of them");
        let drops = plane(&rig, |plane, cx| plane.drops(cx));
        let down = drops.iter().find(|dropped| dropped.port == of_vf(1) && dropped.reason == "link-down");
        assert!(down.is_some_and(|dropped| dropped.frames >= 2), "{drops:?}");
    });
}

/// A rule that needs a meter.
fn metered() -> Rule {
    let police = flow::Police { meter: MeterId(7), conform: flow::Control::Pipe, exceed: flow::Control::Drop };
    Rule::new(of_vf(2), Match::new(), [Action::Police(police), Action::Redirect(of_vf(0))])
}

const METER: Meter = Meter { rate: Rate::Packets(1_000_000), burst: 1000 };

#[test]
fn owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let rig = Rig::with_vfs(3);
    set(&rig, &vfs(&[(0, rate(40, 0, None))])).unwrap();
    rig.to_switchdev(3);
    open_rules(&rig, 3);
    plane(&rig, |plane, cx| plane.commit(cx, PF, &[Change::SetMeter(MeterId(7), METER)]));
    install(&rig, &[(11, to_vf(0, 1)), (12, to_vf(1, 0)), (13, metered())]);
    println!("READY");
    std::thread::sleep(Duration::from_secs(600));
}

/// Makes what the killed process had, and restores the rules of these names.
fn take_over(rules: &[(u64, Rule)]) -> Rig {
    Rig::taking_over(CardConfig::default(), |rig| {
        rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
        rig.make(&vf_ports(3));
        rig.to_switchdev(3);
        open_rules(rig, 3);
        set(rig, &vfs(&[(0, rate(40, 0, None))])).unwrap();
        let left = plane(rig, |plane, cx| plane.left(cx)).expect("this build's own program");
        assert_eq!(left.into_iter().map(|id| id.0).collect::<Vec<_>>(), [11, 12, 13]);
        plane(rig, |plane, cx| plane.commit(cx, PF, &[Change::SetMeter(MeterId(7), METER)]));
        install(rig, rules);
    })
}

#[test]
fn rules_carry_frames_while_no_process_has_the_card_and_the_next_one_has_them() {
    with_rules("rules_carry_frames_while_no_process_has_the_card_and_the_next_one_has_them", || {
        let _peers = kill_owner();
        until_it_flows(&[1]);
        // The rate holds, too.
        assert_limited(measured(&[1])[0], 40.0);

        let rig = take_over(&[(11, to_vf(0, 1)), (12, to_vf(1, 0)), (13, metered())]);
        let before = counter(&rig, 11);
        assert!(before.packets > 100, "its counter is what it was");
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 40.0);
        assert!(counter(&rig, 11).packets > before.packets);
        // They can be changed and removed as those that this process has made.
        let dropped = Rule { actions: vec![Action::Drop], ..to_vf(0, 1) };
        let changed = plane(&rig, |plane, cx| plane.commit(cx, PF, &[Change::SetActions(RuleId(11), &dropped)]));
        changed.into_iter().for_each(|outcome| assert!(outcome.is_ok(), "{outcome:?}"));
        std::thread::sleep(Duration::from_millis(100));
        assert!(measured(&[1])[0] < 0.1, "it drops them");
        remove(&rig, &[11, 12, 13]);
        assert_eq!(plane(&rig, |plane, cx| plane.installed(cx, PF)), Some(Vec::new()));
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_takeover_removes_rules_that_nobody_restores() {
    with_rules("a_takeover_removes_rules_that_nobody_restores", || {
        let _peers = kill_owner();
        let rig = take_over(&[(12, to_vf(1, 0))]);
        std::thread::sleep(Duration::from_millis(100));
        assert!(measured(&[1])[0] < 0.1, "no rule takes them");
        assert_eq!(plane(&rig, |plane, cx| plane.installed(cx, PF)), Some(vec![RuleId(12)]));
        // A rule of the old name can be installed again.
        install(&rig, &[(14, to_vf(0, 1))]);
        until_it_flows(&[1]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn frames_leave_by_the_wire_on_which_the_lag_transmits() {
    with_rules("frames_leave_by_the_wire_on_which_the_lag_transmits", || {
        let other = PfIndex(1);
        let rig = Rig::new(CardConfig { pfs: 2, ..CardConfig::default() });
        for pf in [PF, other] {
            rig.make(&[Resource::Function(pf), Resource::PfNetdev(pf)]);
            rig.with(|card, cx| card.set_wire(cx, pf, &Wire::netdev(format!("net{}", pf.0)))).unwrap();
            sh(&format!("ip link set net{} up", pf.0));
        }
        rig.make(&vf_ports(1));
        let uplink = |pf| Resource::Representor(pf, Vport::Uplink, RepType::Eth);
        for pf in [PF, other] {
            rig.make(&[Resource::SwitchdevFdb(pf)]);
            rig.make(&[uplink(pf)]);
            plane(&rig, |plane, cx| {
                plane.open(cx, pf);
                plane.attach(cx, pf, &[(port(pf, Vport::Uplink), PortKind::Uplink)]);
            });
        }
        rig.make(&vf_reps(1));
        plane(&rig, |plane, cx| plane.attach(cx, PF, &[(of_vf(0), PortKind::Vport)]));
        let actions = [Action::Redirect(port(PF, Vport::Uplink))];
        install(&rig, &[(1, Rule::new(of_vf(0), Match::new(), actions).with_priority(9, Protocol::All))]);
        sh("ip link set enp8s0f0v0 up; ip link set enp8s0f0npf0vf0 up; ip link set enp8s0f0np0 up");
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        let vf0 = Tap::on(None, "enp8s0f0v0");
        let wires = [Tap::on(None, "net0"), Tap::on(None, "net1")];
        let lag = |members: &[PfIndex], tx: &[PfIndex]| plane(&rig, |plane, cx| plane.set_lag(cx, members, tx));
        // Sends frames to 32 addresses, and says how many have arrived at each wire.
        let mut round = 0;
        let mut arrive = || {
            round += 1;
            let text = format!("round {round}");
            (0..32).for_each(|n| assert!(vf0.send([2, 0, 0, 0, 0, n], [2; 6], &text)));
            std::thread::sleep(Duration::from_millis(100));
            wires.each_ref().map(|wire| wire.received(0).iter().filter(|frame| **frame == text).count())
        };
        assert_eq!(arrive(), [32, 0]);
        lag(&[PF, other], &[other]);
        assert_eq!(arrive(), [0, 32]);
        lag(&[PF, other], &[PF, other]);
        let spread = arrive();
        assert!(spread[0] + spread[1] == 32 && spread[0] >= 6 && spread[1] >= 6, "{spread:?}");
        assert_eq!(arrive(), spread);
        lag(&[], &[]);
        assert_eq!(arrive(), [32, 0]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_native_xdp_program_sees_what_a_rule_sends() {
    with_rules("a_native_xdp_program_sees_what_a_rule_sends", || {
        crate::xdp::programs();
        let rig = Rig::with_vfs(2);
        sh("ip netns add away && ip link set enp8s0f0v1 netns away");
        rig.to_switchdev(2);
        open_rules(&rig, 2);
        install(&rig, &[(1, to_vf(0, 1))]);
        sh("ip link set enp8s0f0v0 up; ip -n away link set enp8s0f0v1 up");
        sh("ip link set enp8s0f0npf0vf0 up; ip link set enp8s0f0npf0vf1 up");
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP && ip -n away link show enp8s0f0v1 | grep -q LOWER_UP");
        let (vf0, vf1) = (Tap::on(None, "enp8s0f0v0"), Tap::on(Some("away"), "enp8s0f0v1"));
        let xdp = |what: &str| {
            sh(&format!("nsenter --net=/run/netns/away ip link set dev enp8s0f0v1 xdpdrv {what}"));
            // The card hears of it.
            std::thread::sleep(Duration::from_millis(100));
        };
        let arrives = |text: &str, wanted: bool| {
            assert!(vf0.send([0xff; 6], [2; 6], text));
            let received = vf1.received(usize::from(wanted));
            assert_eq!(received, if wanted { vec![text] } else { vec![] });
        };
        arrives("without", true);
        xdp("pinned /run/bpf/drop");
        arrives("dropped", false);
        xdp("off");
        xdp("pinned /run/bpf/pass");
        arrives("passed", true);
        xdp("off");
        // Frames are neither lost nor doubled while one comes and goes.
        let numbers: Vec<String> = (0..150).map(|n| format!("frame {n}")).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for text in &numbers {
                    assert!(vf0.send([0xff; 6], [2; 6], text));
                    std::thread::sleep(Duration::from_millis(4));
                }
            });
            (0..3).for_each(|_| ["pinned /run/bpf/pass", "off"].into_iter().for_each(xdp));
        });
        assert_eq!(vf1.received(150), numbers);
        assert!(counter(&rig, 1).packets >= 153);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}
