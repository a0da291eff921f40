//! Where frames go, in both modes.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use crate::common::frames::Tap;
use crate::common::*;
use card_linux::Wire;
use eswitch::card::{Card, Resource};
use eswitch::{CardConfig, PfIndex, Vport};

const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
const EVERYBODY: [u8; 6] = [0xff; 6];
const LLDP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];

fn mac(n: u16) -> [u8; 6] {
    CardConfig::default().mac(PF, Vport::Vf(n)).0
}

/// Two VFs in namespaces of their own, `a` and `b`, up.
fn two_vfs_moved_away() {
    for (netns, netdev) in [("a", "enp8s0f0v0"), ("b", "enp8s0f0v1")] {
        sh(&format!(
            "ip netns add {netns} && ip link set {netdev} netns {netns} && ip -n {netns} link set {netdev} up"
        ));
    }
}

/// Waits until they have carrier. The kernel acts on a change of a netdev's carrier some time later, or at once
/// when it is queried about that netdev.
fn two_vfs_ready() {
    for (netns, netdev) in [("a", "enp8s0f0v0"), ("b", "enp8s0f0v1")] {
        eventually(&format!("ip -n {netns} link show {netdev} | grep -q LOWER_UP"));
    }
}

/// Brings netdevs up, and queries them so that the kernel acts on their carrier.
fn up(netdevs: &[&str]) {
    netdevs.iter().for_each(|netdev| drop(sh(&format!("ip link set {netdev} up"))));
    netdevs.iter().for_each(|netdev| drop(sh(&format!("ip link show {netdev}"))));
}

/// Waits until ports of the card's switch forward, in legacy mode.
fn forwarding(ports: &[&str]) {
    for port in ports {
        eventually(&format!("bridge -n esw-0000:08:00.0 link show dev {port} | grep -q forwarding"));
    }
}

fn reps_up() {
    sh("ip link set enp8s0f0npf0vf0 up && ip link set enp8s0f0npf0vf1 up");
    two_vfs_ready();
}

#[test]
fn vfs_reach_each_other_by_mac_in_legacy_and_only_over_representors_in_switchdev() {
    in_own_namespaces("vfs_reach_each_other_by_mac_in_legacy_and_only_over_representors_in_switchdev", || {
        let rig = Rig::with_vfs(3);
        two_vfs_moved_away();
        let (a, b) = (Tap::on(Some("a"), "enp8s0f0v0"), Tap::on(Some("b"), "enp8s0f0v1"));

        two_vfs_ready();
        forwarding(&["p0v0", "p0v1"]);
        assert!(a.send(mac(1), mac(0), "legacy"));
        assert_eq!(b.received(1), ["legacy"]);

        rig.to_switchdev(3);
        reps_up();
        up(&["enp8s0f0np0", "enp8s0f0v2", "enp8s0f0npf0vf2"]);
        let rep0 = Tap::on(None, "enp8s0f0npf0vf0");
        let elsewhere = [
            Tap::on(None, "enp8s0f0npf0vf1"),
            Tap::on(None, "enp8s0f0npf0vf2"),
            Tap::on(None, "enp8s0f0np0"),
            Tap::on(None, "enp8s0f0v2"),
            Tap::on(Some("esw-0000:08:00.0"), "br0"),
            Tap::on(Some("esw-0000:08:00.0"), "wire0"),
        ];
        for (to, text) in [(mac(1), "to b"), (EVERYBODY, "to all"), (NOBODY, "to nobody"), (LLDP, "to the next")] {
            assert!(a.send(to, mac(0), text));
        }
        assert_eq!(rep0.received(4), ["to b", "to all", "to nobody", "to the next"]);
        assert_eq!(b.received(0), [""; 0]);
        for tap in &elsewhere {
            assert_eq!(tap.received(0), [""; 0]);
        }
        // In the other direction, what is sent on a representor arrives at its VF and nowhere else.
        assert!(rep0.send(mac(0), NOBODY, "from the representor"));
        assert_eq!(a.received(1), ["from the representor"]);
        assert_eq!(b.received(0), [""; 0]);

        sh("ip link add hb type bridge && ip link set hb up");
        sh("ip link set enp8s0f0npf0vf0 master hb && ip link set enp8s0f0npf0vf1 master hb");
        eventually("bridge link show dev enp8s0f0npf0vf1 | grep -q forwarding");
        assert!(a.send(mac(1), mac(0), "bridged"));
        assert_eq!(b.received(1), ["bridged"]);

        rig.to_legacy(3);
        two_vfs_ready();
        forwarding(&["p0v0", "p0v1"]);
        assert!(a.send(mac(1), mac(0), "legacy again"));
        assert_eq!(b.received(1), ["legacy again"]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_vf_counts_what_it_sends_and_receives_in_both_modes_and_over_its_netdevs() {
    in_own_namespaces("a_vf_counts_what_it_sends_and_receives_in_both_modes_and_over_its_netdevs", || {
        let rig = Rig::with_vfs(2);
        let [port, netdev] = [Resource::Port(PF, Vport::Vf(0)), Resource::VfNetdev(PF, Vport::Vf(0))];
        rig.make(&[port, Resource::Port(PF, Vport::Vf(1))]);
        for n in 0..2 {
            sh(&format!("echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0v{n}/disable_ipv6; ip link set enp8s0f0v{n} up"));
            eventually(&format!("ip link show enp8s0f0v{n} | grep -q LOWER_UP"));
        }
        forwarding(&["p0v0", "p0v1"]);
        let counted = || {
            let counters = rig.with(|card, cx| card.counters(cx, PF));
            [0, 1].map(|n| counters[&Vport::Vf(n)]).map(|c| (c.rx_packets, c.rx_bytes, c.tx_packets, c.tx_bytes))
        };
        assert_eq!(counted(), [(0, 0, 0, 0); 2]);
        let [a, b] = ["enp8s0f0v0", "enp8s0f0v1"].map(|netdev| Tap::on(None, netdev));
        assert!(a.send(mac(1), mac(0), &"x".repeat(100)) && a.send(EVERYBODY, mac(0), &"x".repeat(100)));
        assert_eq!(b.received(2).len(), 2);
        let [first, second] = counted();
        assert_eq!((first.0, first.2), (0, 2));
        // The length is that of the frame without its checksum.
        assert_eq!((second.0, second.2, second.1), (2, 0, first.3));
        assert!((228..=240).contains(&first.3), "{first:?}");

        rig.unmake(&[netdev]);
        assert_eq!(counted(), [first, second], "what has been counted stays when the driver is unbound");
        rig.make(&[netdev]);
        rig.to_switchdev(2);
        sh("echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0npf0vf0/disable_ipv6");
        up(&["enp8s0f0v0", "enp8s0f0npf0vf0"]);
        sh("echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0v0/disable_ipv6");
        let before = counted()[0];
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        let rep = Tap::on(None, "enp8s0f0npf0vf0");
        let vf = Tap::on(None, "enp8s0f0v0");
        assert!(rep.send(mac(0), NOBODY, "to the VF") && !vf.received(1).is_empty());
        assert_eq!(counted()[0].0, before.0 + 1);

        rig.unmake(&[netdev, port]);
        rig.make(&[port]);
        assert_eq!(counted()[0], (0, 0, 0, 0), "a VF that is enabled again has counted nothing");
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn the_wire_is_the_networks_end() {
    in_own_namespaces("the_wire_is_the_networks_end", || {
        let rig = Rig::with_vfs(1);
        rig.with(|card, cx| card.set_wire(cx, PF, &Wire::netdev("cable"))).unwrap();
        up(&["cable", "enp8s0f0np0", "enp8s0f0v0"]);
        let [cable, pf, vf0] = ["cable", "enp8s0f0np0", "enp8s0f0v0"].map(|d| Tap::on(None, d));
        forwarding(&["wire0", "up0", "p0v0"]);

        // Given legacy mode, the network, the PF and its VF are stations of one switch.
        assert!(vf0.send(EVERYBODY, mac(0), "from the VF"));
        assert_eq!((cable.received(1), pf.received(1)), (vec!["from the VF".into()], vec!["from the VF".into()]));
        assert!(cable.send(mac(0), NOBODY, "from the network"));
        assert_eq!(vf0.received(1), ["from the network"]);

        // In switchdev mode the PF's netdev is the uplink's representor.
        rig.to_switchdev(1);
        assert!(pf.send(mac(0), NOBODY, "out"));
        assert_eq!(cable.received(1), ["out"]);
        assert!(cable.send(mac(0), NOBODY, "in"));
        assert_eq!(pf.received(1), ["in"]);
        assert_eq!(vf0.received(0), [""; 0]);

        // When the wire's other end is changed meanwhile, the new wire is tied, too.
        rig.with(|card, cx| card.set_wire(cx, PF, &Wire::netdev("cable2"))).unwrap();
        assert!(!netdevs().contains(&"cable".to_owned()));
        up(&["cable2"]);
        sh("ip -n esw-0000:08:00.0 link show wire0");
        let cable2 = Tap::on(None, "cable2");
        assert!(pf.send(mac(0), NOBODY, "out again"));
        assert_eq!(cable2.received(1), ["out again"]);
        assert!(cable2.send(mac(0), NOBODY, "in again"));
        assert_eq!(pf.received(1), ["in again"]);

        // The same end again is the same wire; one in another network namespace is another.
        let index = || sh("ip -o link show cable2 | cut -d: -f1");
        let before = index();
        rig.with(|card, cx| card.set_wire(cx, PF, &Wire::netdev("cable2"))).unwrap();
        assert_eq!(index(), before);
        let of_lan = Wire::Netdev { name: "cable2".to_owned(), netns: Some("lan".to_owned()) };
        sh("ip netns add lan");
        rig.with(|card, cx| card.set_wire(cx, PF, &of_lan)).unwrap();
        assert!(!netdevs().contains(&"cable2".to_owned()));
        sh("ip -n lan link set cable2 up");
        // The kernel acts on a carrier that has come when it is queried.
        eventually(
            "ip -n lan link show cable2 | grep -q LOWER_UP && ip -n esw-0000:08:00.0 link show wire0 | grep -q LOWER_UP",
        );
        let away = Tap::on(Some("lan"), "cable2");
        assert!(pf.send(mac(0), NOBODY, "out of the namespace"));
        assert_eq!(away.received(1), ["out of the namespace"]);
        drop(away);
        rig.with(|card, cx| card.set_wire(cx, PF, &Wire::netdev("cable2"))).unwrap();
        sh("ip netns del lan");

        // A user who deletes the other end has unplugged the wire; the card works on.
        sh("ip link del cable2");
        eventually("ip -n esw-0000:08:00.0 link show cable0");
        rig.to_legacy(1);
        // The VF had no carrier. The kernel acts on the change when it is queried.
        sh("ip link show enp8s0f0v0");
        forwarding(&["up0", "p0v0"]);
        assert!(vf0.send(EVERYBODY, mac(0), "still here"));
        assert_eq!(pf.received(1), ["still here"]);
    });
}

#[test]
fn pfs_of_one_card_do_not_mix() {
    in_own_namespaces("pfs_of_one_card_do_not_mix", || {
        let rig = Rig::new(CardConfig { pfs: 2, ..CardConfig::default() });
        let second = PfIndex(1);
        for pf in [PF, second] {
            rig.make(&[Resource::Function(pf), Resource::PfNetdev(pf), Resource::VfNetdev(pf, Vport::Vf(0))]);
        }
        rig.to_switchdev(1);
        up(&["enp8s0f0v0", "enp8s0f1v0", "enp8s0f0np0", "enp8s0f1np1", "enp8s0f0npf0vf0"]);
        let [v0, v1, pf0, pf1] = ["enp8s0f0v0", "enp8s0f1v0", "enp8s0f0np0", "enp8s0f1np1"].map(|d| Tap::on(None, d));
        forwarding(&["up1", "p1v0"]);
        assert!(v1.send(EVERYBODY, NOBODY, "second"));
        assert_eq!(pf1.received(1), ["second"], "still in legacy mode");
        assert_eq!((pf0.received(0), v0.received(0)), (vec![], vec![]));
        rig.to_legacy(1);
        let first = [vf(0), Resource::PfNetdev(PF), Resource::Function(PF)];
        rig.unmake(&first);
        assert!(v1.send(EVERYBODY, NOBODY, "alone"));
        assert_eq!(pf1.received(1), ["alone"]);
    });
}

#[test]
fn vfs_on_different_bridges_reach_each_other() {
    in_own_namespaces("vfs_on_different_bridges_reach_each_other", || {
        let rig = Rig::with_vfs(600);
        up(&["enp8s0f0v0", "enp8s0f0v300", "enp8s0f0v599", "enp8s0f0np0"]);
        let [first, middle, last] = [0, 300, 599].map(|n| Tap::on(None, &format!("enp8s0f0v{n}")));
        let pf = Tap::on(None, "enp8s0f0np0");
        forwarding(&["up0", "p0v0", "p0v300", "p0v599"]);
        assert!(middle.send(EVERYBODY, mac(300), "hello"));
        assert_eq!(first.received(1), ["hello"]);
        assert_eq!((last.received(1), pf.received(1)), (vec!["hello".into()], vec!["hello".into()]));
        assert!(last.send(mac(300), mac(599), "learnt"));
        assert_eq!(middle.received(1), ["learnt"]);
        assert_eq!(first.received(0), [""; 0]);
        rig.to_switchdev(600);
        sh("ip link set enp8s0f0npf0vf0 up");
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        assert!(first.send(EVERYBODY, mac(0), "quiet"));
        assert_eq!((last.received(0), pf.received(0)), (vec![], vec![]));
        rig.to_legacy(600);
        rig.unmake(&vf_ports(600));
        rig.unmake(&[Resource::PfNetdev(PF), Resource::Function(PF)]);
        assert_eq!(netdevs(), [""; 0]);
        assert_eq!(sh("ip -n esw-0000:08:00.0 -o link | grep -vc ' lo:' || true").trim(), "0");
    });
}
