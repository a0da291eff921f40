//! The rates of functions, on real traffic.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::*;
use eswitch::card::{Card, CardError, Resource};
use eswitch::rate::{Rate, TxRates};
use eswitch::{CardConfig, Vport};

/// 1 Mbit/s in bytes per second.
pub const MBIT: u64 = 125_000;
/// Set in the process that sends or receives; with what it does.
const PEER: &str = "ESW_TEST_PEER";
/// Where the receiving ends listen.
const PORT: u16 = 5001;
pub const CARD: &str = "esw-0000:08:00.0";

pub fn rate(max: u64, share: u64, parent: Option<&str>) -> Rate {
    Rate { tx_max: max * MBIT, tx_share: share * MBIT, parent: parent.map(str::to_owned), ..Rate::default() }
}

fn rates(leaves: &[(Vport, Rate)], nodes: &[(&str, Rate)]) -> TxRates {
    TxRates {
        leaves: leaves.iter().cloned().collect(),
        nodes: nodes.iter().map(|(name, rate)| ((*name).to_owned(), rate.clone())).collect(),
    }
}

pub fn vfs(leaves: &[(u16, Rate)]) -> TxRates {
    let leaves: Vec<_> = leaves.iter().map(|(n, rate)| (Vport::Vf(*n), rate.clone())).collect();
    rates(&leaves, &[])
}

pub fn set(rig: &Rig, rates: &TxRates) -> Result<(), CardError> {
    rig.with(|card, cx| card.set_rates(cx, PF, rates))
}

/// A process in a namespace that sends or receives until this is dropped.
pub struct Peer(Child);

impl Peer {
    fn new(netns: &str, what: &str) -> Self {
        let me = std::env::current_exe().unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns]).arg(me).args([
            "--exact",
            "rates::peer",
            "--nocapture",
            "--test-threads=1",
        ]);
        Self(command.env(PEER, what).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What such a process does. In the test run itself it does nothing.
#[test]
fn peer() {
    let Ok(what) = std::env::var(PEER) else { return };
    let data = vec![0; 1 << 16];
    match what.strip_prefix("send ") {
        Some(to) => loop {
            let Ok(mut stream) = TcpStream::connect((to, PORT)) else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            while stream.write_all(&data).is_ok() {}
        },
        None => {
            let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    let (mut stream, mut buffer) = (stream.unwrap(), vec![0; 1 << 20]);
                    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
                });
            }
        }
    }
}

/// A namespace `v0`, `v1` … for each VF, with its netdev, an address and a receiver.
pub fn stations(n: u16) -> Vec<Peer> {
    (0..n).map(station).collect()
}

pub fn station(n: u16) -> Peer {
    sh(&format!(
        "ip netns add v{n} && ip link set enp8s0f0v{n} netns v{n} && ip -n v{n} addr add 10.0.0.{}/24 dev enp8s0f0v{n} \
         && ip -n v{n} link set enp8s0f0v{n} up",
        n + 1
    ));
    Peer::new(&format!("v{n}"), "receive")
}

/// Has VFs send to others as fast as they can.
pub fn send(pairs: &[(u16, u16)]) -> Vec<Peer> {
    pairs.iter().map(|(from, to)| Peer::new(&format!("v{from}"), &format!("send 10.0.0.{}", to + 1))).collect()
}

pub fn received(n: u16) -> u64 {
    let link = sh(&format!("ip -n v{n} -s -j link show enp8s0f0v{n}"));
    let bytes = link.split("\"rx\":{\"bytes\":").nth(1).unwrap();
    bytes.split(',').next().unwrap().parse().unwrap()
}

/// The Mbit/s that VFs receive, over two seconds.
pub fn measured(receivers: &[u16]) -> Vec<f64> {
    let begin = Instant::now();
    let before: Vec<u64> = receivers.iter().map(|n| received(*n)).collect();
    std::thread::sleep(Duration::from_secs(2));
    let after: Vec<u64> = receivers.iter().map(|n| received(*n)).collect();
    let seconds = begin.elapsed().as_secs_f64();
    before.iter().zip(after).map(|(before, after)| (after - before) as f64 * 8e-6 / seconds).collect()
}

/// Waits until a VF receives something from its sender.
pub fn until_it_flows(receivers: &[u16]) {
    for n in receivers {
        let before = received(*n);
        eventually_that(|| received(*n) > before + 20_000);
    }
}

/// Frames flow, and not more than a limit in Mbit/s.
#[track_caller]
pub fn assert_limited(measured: f64, limit: f64) {
    assert!(measured <= limit * 1.05, "{measured} Mbit/s, of {limit}");
    assert!(measured >= limit * 0.5, "{measured} Mbit/s, of {limit}");
}

/// Bridges the representors of VFs.
pub fn bridge_representors(n: u16) {
    sh("ip link add hb type bridge && ip link set hb up");
    for n in 0..n {
        sh(&format!("ip link set enp8s0f0npf0vf{n} master hb up"));
    }
    eventually(&format!("test $(bridge link | grep -c forwarding) = {n}"));
}

/// The classes of the card's shaper, without the numbers of their queues.
fn classes() -> String {
    sh(&format!("tc -n {CARD} class show dev shaper0 | sed 's/leaf [0-9a-f]*: //' | sort"))
}

fn redirects() -> usize {
    let of = |netdev: &str, hook: &str| {
        let filters = sh(&format!("tc -n {CARD} filter show dev {netdev} {hook} 2>/dev/null || true"));
        filters.matches("shaper0").count()
    };
    of("p0v0", "ingress") + of("r0v0", "egress")
}

#[test]
fn a_vf_sends_at_its_rate_in_both_modes_and_at_any_when_the_rate_is_removed() {
    in_own_namespaces("a_vf_sends_at_its_rate_in_both_modes_and_at_any_when_the_rate_is_removed", || {
        let rig = Rig::with_vfs(2);
        let _stations = stations(2);
        set(&rig, &vfs(&[(0, rate(100, 0, None))])).unwrap();
        let _senders = send(&[(0, 1)]);
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 100.0);

        set(&rig, &vfs(&[(0, rate(30, 0, None))])).unwrap();
        assert_limited(measured(&[1])[0], 30.0);

        rig.to_switchdev(2);
        bridge_representors(2);
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 30.0);
        set(&rig, &vfs(&[(0, rate(60, 0, None))])).unwrap();
        assert_limited(measured(&[1])[0], 60.0);
        assert_eq!(redirects(), 2);

        set(&rig, &TxRates::default()).unwrap();
        until_it_flows(&[1]);
        assert!(measured(&[1])[0] > 200.0);
        assert_eq!(redirects(), 0);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn what_a_vf_receives_is_not_limited_by_its_rate() {
    in_own_namespaces("what_a_vf_receives_is_not_limited_by_its_rate", || {
        let rig = Rig::with_vfs(2);
        let _stations = stations(2);
        set(&rig, &vfs(&[(1, rate(20, 0, None))])).unwrap();
        let _senders = send(&[(0, 1)]);
        until_it_flows(&[1]);
        assert!(measured(&[1])[0] > 100.0);
    });
}

#[test]
fn a_node_limits_its_leaves_together_and_shares_what_it_has_as_they_ask() {
    in_own_namespaces("a_node_limits_its_leaves_together_and_shares_what_it_has_as_they_ask", || {
        let rig = Rig::with_vfs(4);
        let _stations = stations(4);
        rig.to_switchdev(4);
        bridge_representors(4);
        let limit = |a: u64, b: u64| {
            let leaves = [(Vport::Vf(0), rate(0, a, Some("n"))), (Vport::Vf(1), rate(0, b, Some("n")))];
            set(&rig, &rates(&leaves, &[("n", rate(100, 0, None))])).unwrap();
        };
        limit(70, 30);
        let senders = send(&[(0, 2), (1, 3)]);
        until_it_flows(&[2, 3]);
        let both = measured(&[2, 3]);
        assert_limited(both[0] + both[1], 100.0);
        assert!(both[0] > 55.0 && both[1] > 20.0, "{both:?}");
        limit(20, 80);
        let both = measured(&[2, 3]);
        assert_limited(both[0] + both[1], 100.0);
        assert!(both[1] > 60.0 && both[0] > 10.0, "{both:?}");
        // What one does not use the other has.
        drop(senders);
        let _senders = send(&[(0, 2)]);
        until_it_flows(&[2]);
        assert_limited(measured(&[2])[0], 100.0);
    });
}

#[test]
fn a_rate_stays_when_the_netdev_is_made_again_and_goes_with_the_port() {
    in_own_namespaces("a_rate_stays_when_the_netdev_is_made_again_and_goes_with_the_port", || {
        let rig = Rig::with_vfs(2);
        rig.make(&[Resource::Port(PF, Vport::Vf(0))]);
        set(&rig, &vfs(&[(0, rate(50, 0, None))])).unwrap();
        rig.unmake(&[vf(0)]);
        rig.make(&[vf(0)]);
        let _stations = stations(2);
        {
            let _senders = send(&[(0, 1)]);
            until_it_flows(&[1]);
            assert_limited(measured(&[1])[0], 50.0);
        }
        // The card makes a netdev again whose namespace is deleted.
        sh("ip netns pids v0 | xargs -r kill; ip netns del v0");
        eventually("ip link show enp8s0f0v0");
        let _station = station(0);
        let _senders = send(&[(0, 1)]);
        until_it_flows(&[1]);
        assert_limited(measured(&[1])[0], 50.0);

        rig.unmake(&[vf(0), Resource::Port(PF, Vport::Vf(0))]);
        assert_eq!(classes(), "");
        rig.unmake(&[vf(1), Resource::PfNetdev(PF), Resource::Function(PF)]);
        assert_eq!(sh(&format!("ip -n {CARD} -o link show type ifb")), "");
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

/// What the killed process of the next test had: the rates are 40 and, below a node, 60 Mbit/s.
fn before_the_kill() -> TxRates {
    let leaves = [(Vport::Vf(0), rate(40, 0, None)), (Vport::Vf(1), rate(0, 0, Some("n")))];
    rates(&leaves, &[("n", rate(60, 0, None)), ("empty", rate(1, 0, None))])
}

#[test]
fn owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let rig = Rig::with_vfs(4);
    set(&rig, &before_the_kill()).unwrap();
    println!("READY");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn rates_are_in_force_while_no_process_has_the_card_and_when_the_next_takes_it_over() {
    in_own_namespaces("rates_are_in_force_while_no_process_has_the_card_and_when_the_next_takes_it_over", || {
        let mut owner = start_owner();
        let _stations = stations(4);
        let _senders = send(&[(0, 2), (1, 3)]);
        owner.kill().unwrap();
        owner.wait().unwrap();
        until_it_flows(&[2, 3]);
        let without = measured(&[2, 3]);
        assert_limited(without[0], 40.0);
        assert_limited(without[1], 60.0);
        let before = classes();
        let make = |rig: &Rig| {
            rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
            rig.make(&vf_ports(4));
        };
        {
            let rig = Rig::taking_over(CardConfig::default(), |rig| {
                make(rig);
                set(rig, &before_the_kill()).unwrap();
            });
            assert_eq!(classes(), before);
            let with = measured(&[2, 3]);
            assert_limited(with[0], 40.0);
            assert_limited(with[1], 60.0);
            // The node is known again: its rate can be changed, and its leaf leaves it.
            let leaves = [(Vport::Vf(0), rate(0, 0, None)), (Vport::Vf(1), rate(0, 0, Some("n")))];
            set(&rig, &rates(&leaves, &[("n", rate(20, 0, None))])).unwrap();
            let changed = measured(&[2, 3]);
            assert!(changed[0] > 100.0);
            assert_limited(changed[1], 20.0);
            assert_eq!(rig.complaints(), [""; 0]);
        }
    });
}

#[test]
fn a_takeover_without_rates_removes_those_that_were_in_force() {
    in_own_namespaces("a_takeover_without_rates_removes_those_that_were_in_force", || {
        let mut owner = start_owner();
        owner.kill().unwrap();
        owner.wait().unwrap();
        let rig = Rig::taking_over(CardConfig::default(), |rig| {
            rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
            rig.make(&vf_ports(4));
        });
        let _stations = stations(2);
        let _senders = send(&[(0, 1)]);
        until_it_flows(&[1]);
        assert!(measured(&[1])[0] > 200.0);
        assert_eq!(redirects(), 0);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn rates_that_the_kernel_refuses_leave_those_before_in_force() {
    in_own_namespaces("rates_that_the_kernel_refuses_leave_those_before_in_force", || {
        let rig = Rig::with_vfs(2);
        let before = rates(&[(Vport::Vf(0), rate(0, 0, Some("n0")))], &[("n0", rate(10, 0, None))]);
        set(&rig, &before).unwrap();
        let was = classes();
        // `htb` takes eight levels.
        let names: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
        let nodes: Vec<(&str, Rate)> = names
            .iter()
            .enumerate()
            .map(|(n, name)| (name.as_str(), rate(10, 0, names.get(n + 1).map(String::as_str))))
            .collect();
        let deep = rates(&[(Vport::Vf(0), rate(0, 0, Some("n0")))], &nodes);
        assert!(matches!(set(&rig, &deep), Err(CardError::Kernel { .. })));
        assert_eq!((classes(), redirects()), (was.clone(), 1));
        set(&rig, &before).unwrap();
        assert_eq!(classes(), was);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}
