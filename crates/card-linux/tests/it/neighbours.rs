//! The next hops to the ends of tunnels, as the kernel has them where a card's netdevs are.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::*;
use card_linux::{NeighbourWatch, Neighbours, Wire};
use eswitch::{MacAddr, PfIndex};
use flow::Neighbour;

/// The MAC address of the station at the other end of the wire.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
const UPLINK: &str = "enp8s0f0np0";

/// A card in switchdev mode, and a station at the other end of its wire.
struct Bench {
    rig: Rig,
    neighbours: Arc<Neighbours>,
    watch: NeighbourWatch,
    /// The address of the uplink's netdev.
    src: [u8; 6],
}

impl Bench {
    fn new() -> Self {
        let rig = Rig::with_vfs(1);
        rig.to_switchdev(1);
        rig.with(|card, cx| card.set_wire(cx, PF, &Wire::netdev("wire")).unwrap());
        sh("ip netns add station && ip link set wire netns station && ip -n station link set wire name eth0");
        sh("ip -n station link set eth0 address 02:00:00:00:00:99 up");
        sh("ip -n station addr add 192.0.2.2/24 dev eth0; ip -n station addr add fd00::2/64 dev eth0 nodad");
        sh(&format!("ip link set {UPLINK} up; ip addr add 192.0.2.1/24 dev {UPLINK}"));
        sh(&format!("ip addr add fd00::1/64 dev {UPLINK} nodad"));
        let (neighbours, watch) = rig.card.neighbours().unwrap();
        let mac = sh(&format!("cat /sys/class/net/{UPLINK}/address"));
        let src: Vec<u8> = mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        Self { rig, neighbours, watch, src: src.try_into().unwrap() }
    }

    fn hop(&self, dst: [u8; 6]) -> Option<Neighbour> {
        Some(Neighbour { dst, src: self.src, from: None })
    }

    /// The MAC addresses of the next hop to an end.
    fn look(&mut self, end: IpAddr) -> Option<Neighbour> {
        let found = self.watch.look(&[(PF, end)]).unwrap().get(&(PF, end)).copied();
        found.map(|hop| Neighbour { from: None, ..hop })
    }

    /// The address from which packets go to an end.
    fn source(&mut self, end: IpAddr) -> Option<IpAddr> {
        self.watch.look(&[(PF, end)]).unwrap().get(&(PF, end))?.from
    }

    /// Watches until the next hop to an end is this.
    #[track_caller]
    fn watch_until(&mut self, end: IpAddr, wanted: Option<Neighbour>) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.look(end);
            if found == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{end}: {found:?} instead of {wanted:?}\n{}", sh("ip neigh; ip route"));
            if self.watch.wait(true) {
                self.watch.use_neighbours(&BTreeSet::new());
            }
        }
    }
}

fn v4(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

#[test]
fn a_next_hop_is_resolved_and_followed() {
    in_own_namespaces("a_next_hop_is_resolved_and_followed", || {
        let mut bench = Bench::new();
        let known = bench.hop(STATION);
        assert_eq!(bench.look(v4(2)), None, "the kernel does not know it yet");
        bench.watch_until(v4(2), known);
        assert_eq!(bench.source(v4(2)), Some(v4(1)));
        bench.watch_until("fd00::2".parse().unwrap(), known);

        // It changes its address, by hand and because it says so.
        sh(&format!("ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:07 dev {UPLINK}"));
        let other = bench.hop([2, 0, 0, 0, 0, 7]);
        bench.watch_until(v4(2), other);
        sh(&format!("ip neigh del 192.0.2.2 dev {UPLINK}"));
        bench.watch_until(v4(2), known);
        // The netdev's own address is the source.
        sh(&format!("ip link set {UPLINK} address 02:00:00:00:00:55"));
        bench.watch_until(v4(2), Some(Neighbour { dst: STATION, src: [2, 0, 0, 0, 0, 0x55], from: None }));
    });
}

#[test]
fn a_gateway_is_the_next_hop() {
    in_own_namespaces("a_gateway_is_the_next_hop", || {
        let mut bench = Bench::new();
        let (end, known) = (IpAddr::from([198, 51, 100, 7]), bench.hop(STATION));
        assert_eq!(bench.look(end), None, "there is no route");
        sh("ip route add 198.51.100.0/24 via 192.0.2.2");
        bench.watch_until(end, known);
        // Another gateway, by a route that is more specific.
        sh(&format!(
            "ip neigh add 192.0.2.3 lladdr 02:00:00:00:00:03 dev {UPLINK} && ip route add {end} via 192.0.2.3"
        ));
        let other = bench.hop([2, 0, 0, 0, 0, 3]);
        bench.watch_until(end, other);
        sh(&format!("ip route del {end}"));
        bench.watch_until(end, known);
        // A gateway of the other family.
        sh(&format!("ip route replace 198.51.100.0/24 via inet6 fd00::2 dev {UPLINK}"));
        bench.watch_until(end, known);
        // Routes that lead elsewhere, or nowhere.
        sh("ip route replace blackhole 198.51.100.0/24");
        bench.watch_until(end, None);
        sh("ip link add other type veth peer rehto && ip link set other up && ip link set rehto up");
        sh("ip neigh add 198.51.100.7 lladdr 02:00:00:00:00:08 dev other; ip route replace 198.51.100.0/24 dev other");
        assert_eq!(bench.look(end), None, "it leads out of a netdev that is not the card's");
        sh(&format!("ip route replace 198.51.100.0/24 via 192.0.2.2 dev {UPLINK}"));
        bench.watch_until(end, known);
        sh("ip addr add 198.51.100.7/32 dev lo");
        bench.watch_until(end, None);
    });
}

#[test]
fn a_next_hop_that_fails_or_loses_its_netdev_is_not_known() {
    in_own_namespaces("a_next_hop_that_fails_or_loses_its_netdev_is_not_known", || {
        let mut bench = Bench::new();
        let known = bench.hop(STATION);
        bench.watch_until(v4(2), known);
        sh(&format!("ip link set {UPLINK} down"));
        bench.watch_until(v4(2), None);
        sh(&format!("ip link set {UPLINK} up"));
        bench.watch_until(v4(2), known);

        // It does not answer any more, and later it does: it is tried again.
        sh("ip -n station link set eth0 arp off");
        sh(
            "for t in retrans_time_ms base_reachable_time_ms; do echo 100 > /proc/sys/net/ipv4/neigh/enp8s0f0np0/$t; done",
        );
        sh(&format!("ip neigh del 192.0.2.2 dev {UPLINK}"));
        bench.watch_until(v4(2), None);
        eventually("ip neigh show 192.0.2.2 | grep -q FAILED");
        sh("ip -n station link set eth0 arp on");
        bench.watch_until(v4(2), known);

        // Its netdev goes elsewhere, and comes back.
        sh(&format!("ip netns add away && ip link set {UPLINK} netns away"));
        bench.watch_until(v4(2), None);
        sh(&format!(
            "ip -n away link set {UPLINK} netns 1; ip link set {UPLINK} up; ip addr add 192.0.2.1/24 dev {UPLINK}"
        ));
        bench.watch_until(v4(2), known);
        assert_eq!(bench.rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_next_hop_that_only_the_card_sends_to_is_kept() {
    in_own_namespaces("a_next_hop_that_only_the_card_sends_to_is_kept", || {
        let mut bench = Bench::new();
        let known = bench.hop(STATION);
        bench.watch_until(v4(2), known);
        let state = |state: &str| format!("ip neigh show 192.0.2.2 | grep -q {state}");
        sh(&format!("ip neigh change 192.0.2.2 nud stale dev {UPLINK}"));
        bench.watch.use_neighbours(&BTreeSet::new());
        sh(&state("STALE"));
        bench.watch.use_neighbours(&BTreeSet::from([(PF, v4(2))]));
        sh(&state("'DELAY\\|PROBE\\|REACHABLE'"));
        // The time at which this is done comes while there are ends, and only then.
        bench.neighbours.wake();
        assert!(!bench.watch.wait(false));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !bench.watch.wait(true) {
            assert!(Instant::now() < deadline, "neighbours are never used");
        }
    });
}

#[test]
fn what_was_lost_is_looked_at() {
    in_own_namespaces("what_was_lost_is_looked_at", || {
        let mut bench = Bench::new();
        let (known, other) = (bench.hop(STATION), bench.hop([2, 0, 0, 0, 0, 7]));
        bench.watch_until(v4(2), known);
        // No event is read while the kernel sends more than the socket has room for; the last one is about the next hop.
        let storm = "i=0; while [ $i -lt 3000 ]; do
            echo link set enp8s0f0np0 mtu 1400; echo link set enp8s0f0np0 mtu 1500; i=$((i+1)); done";
        sh(&format!("({storm}) | ip -batch -"));
        sh(&format!("ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:07 dev {UPLINK}"));
        bench.watch.wait(false);
        assert!(bench.watch.overruns() > 0, "no event was lost");
        assert_eq!(bench.look(v4(2)), other);
        // From now on it receives events again.
        sh(&format!("ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:99 dev {UPLINK}"));
        bench.watch_until(v4(2), known);
    });
}

#[test]
fn wakes_are_not_lost_and_never_wait() {
    in_own_namespaces("wakes_are_not_lost_and_never_wait", || {
        let mut bench = Bench::new();
        // A pipe has room for 65,536 bytes.
        (0..100_000).for_each(|_| bench.neighbours.wake());
        for _ in 0..3 {
            assert!(!bench.watch.wait(false));
            bench.neighbours.wake();
        }
    });
}

#[test]
fn a_step_sets_a_neighbour_behind_the_netdev_of_its_pf() {
    in_own_namespaces("a_step_sets_a_neighbour_behind_the_netdev_of_its_pf", || {
        let mut bench = Bench::new();
        bench.neighbours.set(PF, v4(9), Some(MacAddr([2, 0, 0, 0, 0, 9]))).unwrap();
        let set = bench.hop([2, 0, 0, 0, 0, 9]);
        assert_eq!(bench.look(v4(9)), set);
        sh("ip neigh show 192.0.2.9 | grep -q PERMANENT");
        bench.neighbours.set(PF, v4(9), None).unwrap();
        assert_eq!(bench.look(v4(9)), None);
        assert!(bench.neighbours.set(PfIndex(1), v4(9), None).is_err(), "there is no such PF");
    });
}

/// Through a bond, as mlx5 sends out of the uplinks of its LAG.
#[test]
fn a_bond_over_the_uplinks_leads_out_of_them() {
    let name = "a_bond_over_the_uplinks_leads_out_of_them";
    in_own_namespaces(name, || {
        let made = std::process::Command::new("ip").args(["link", "add", "probe", "type", "bond"]).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("{name} skipped: this kernel has no bonds (CONFIG_BONDING); `cargo xtask vm` has one that does");
            return;
        }
        sh("ip link del probe");
        let mut bench = Bench::new();
        sh("ip link add bond0 address 02:00:00:00:00:b0 type bond mode active-backup miimon 20");
        sh(&format!("ip link set {UPLINK} down; ip link set {UPLINK} master bond0; ip link set bond0 up"));
        sh("ip addr add 192.0.2.1/24 dev bond0");
        sh("ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:99 dev bond0");
        assert_eq!(bench.look(v4(2)), None, "with one port it is on the card's own switch");
        sh("ip link add eth7 type veth peer eth8; ip link set eth7 master bond0");
        bench.watch_until(v4(2), Some(Neighbour { dst: STATION, src: [2, 0, 0, 0, 0, 0xb0], from: None }));
    });
}
