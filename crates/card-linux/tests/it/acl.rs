//! What the ports of the legacy switch let pass, on real frames.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::time::Duration;

use crate::common::frames::Tap;
use crate::common::*;
use card_linux::Wire;
use eswitch::card::{Acl, Card, CardError, Resource, Tag};
use eswitch::{CardConfig, MacAddr, Vport};

const EVERYBODY: [u8; 6] = [0xff; 6];
const STRANGER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
const CARD: &str = "esw-0000:08:00.0";

fn mac(n: u16) -> [u8; 6] {
    CardConfig::default().mac(PF, Vport::Vf(n)).0
}

fn port(n: u16) -> Resource {
    Resource::Port(PF, Vport::Vf(n))
}

fn in_vlan(vlan: u16) -> Acl {
    Acl { tag: Some(Tag { vlan, priority: 3 }), ..Acl::default() }
}

fn only_from(n: u16) -> Acl {
    Acl { source: Some(MacAddr(mac(n))), ..Acl::default() }
}

fn set(rig: &Rig, n: u16, acl: Acl) -> Result<(), CardError> {
    rig.with(|card, cx| card.set_acl(cx, &port(n), acl))
}

/// A card with VFs that are up, in legacy mode.
fn rig(vfs: u16) -> Rig {
    let rig = Rig::new(CardConfig::default());
    make(&rig, vfs);
    up(vfs);
    rig
}

fn make(rig: &Rig, vfs: u16) {
    rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
    rig.make(&(0..vfs).map(port).collect::<Vec<_>>());
    rig.make(&vf_ports(vfs));
}

fn up(vfs: u16) {
    for n in 0..vfs {
        sh(&format!("echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0v{n}/disable_ipv6; ip link set enp8s0f0v{n} up"));
        eventually(&format!("ip link show enp8s0f0v{n} | grep -q LOWER_UP"));
        eventually(&format!("bridge -n {CARD} link show dev p0v{n} | grep -q forwarding"));
    }
}

fn tap(n: u16) -> Tap {
    Tap::on(None, &format!("enp8s0f0v{n}"))
}

/// A frame to all with a tag in it.
fn tagged(from: [u8; 6], vlan: u16, text: &str) -> Vec<u8> {
    let tci = vlan.to_be_bytes();
    let mut frame = [&EVERYBODY[..], &from, &[0x81, 0, tci[0], tci[1], 0x88, 0xb5], text.as_bytes()].concat();
    frame.resize(64, 0);
    frame
}

fn tx_dropped(rig: &Rig, n: u16) -> u64 {
    rig.with(|card, cx| card.counters(cx, PF))[&Vport::Vf(n)].tx_dropped
}

#[test]
fn the_spoof_check_drops_and_counts_what_is_not_from_the_vfs_address() {
    in_own_namespaces("the_spoof_check_drops_and_counts_what_is_not_from_the_vfs_address", || {
        let rig = rig(2);
        let (a, b) = (tap(0), tap(1));
        assert!(a.send(mac(1), STRANGER, "before"));
        assert_eq!(b.received(1), ["before"]);

        set(&rig, 0, only_from(0)).unwrap();
        let near = {
            let mut near = mac(0);
            near[5] ^= 1;
            near
        };
        let far = {
            let mut far = mac(0);
            far[0] ^= 4;
            far
        };
        for from in [STRANGER, near, far] {
            assert!(a.send(mac(1), from, "spoofed"));
        }
        assert!(a.send(mac(1), mac(0), "honest"));
        assert!(a.send_raw(&tagged(STRANGER, 7, "spoofed with a tag")));
        assert!(a.send_raw(&tagged(mac(0), 7, "honest with a tag")));
        assert_eq!(b.received(2), ["honest", "honest with a tag"]);
        assert_eq!((tx_dropped(&rig, 0), tx_dropped(&rig, 1)), (4, 0));
        // The other direction, and other VFs, are as before.
        assert!(b.send(mac(0), STRANGER, "to the VF"));
        assert_eq!(a.received(1), ["to the VF"]);

        // It stays when the driver is bound again, and is in force before the netdev is up.
        rig.unmake(&[vf(0)]);
        rig.make(&[vf(0)]);
        up(2);
        let a = tap(0);
        assert!(a.send(mac(1), STRANGER, "spoofed") && a.send(mac(1), mac(0), "honest again"));
        assert_eq!(b.received(1), ["honest again"]);
        assert_eq!(tx_dropped(&rig, 0), 5, "what was counted stays");

        set(&rig, 0, Acl::default()).unwrap();
        assert!(a.send(mac(1), STRANGER, "after"));
        assert_eq!(b.received(1), ["after"]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_vf_in_a_vlan_reaches_those_in_it_and_no_others() {
    in_own_namespaces("a_vf_in_a_vlan_reaches_those_in_it_and_no_others", || {
        let rig = rig(4);
        rig.with(|card, cx| card.set_wire(cx, PF, &Wire::netdev("cable"))).unwrap();
        sh("echo 1 > /proc/sys/net/ipv6/conf/cable/disable_ipv6; ip link set cable up");
        eventually(&format!("bridge -n {CARD} link show dev wire0 | grep -q forwarding"));
        set(&rig, 0, in_vlan(5)).unwrap();
        set(&rig, 1, in_vlan(5)).unwrap();
        set(&rig, 2, in_vlan(4095)).unwrap();
        let taps = [0, 1, 2, 3].map(tap);
        let cable = Tap::on(None, "cable");
        let [a, b, other, none] = &taps;
        assert!(a.send(EVERYBODY, mac(0), "in 5"));
        // Its tag is on the wire, and arrives at a VF that has no VLAN.
        assert_eq!((b.received(1), none.received(1)), (vec!["in 5".into()], vec!["in 5".into()]));
        assert_eq!(cable.received(1), ["in 5"]);
        assert!(cable.send_raw(&tagged(STRANGER, 5, "5 from the wire")));
        assert!(cable.send_raw(&tagged(STRANGER, 4095, "4095 from the wire")));
        assert!(cable.send_raw(&tagged(STRANGER, 4, "4 from the wire")));
        assert!(cable.send(EVERYBODY, STRANGER, "without a tag"));
        assert_eq!(a.received(1), ["5 from the wire"]);
        assert_eq!(b.received(1), ["5 from the wire"]);
        assert_eq!(other.received(1), ["4095 from the wire"]);
        assert_eq!(none.received(4).len(), 4);
        // One that tags its frames itself is stopped (`vst_check_cvlan`).
        assert!(a.send_raw(&tagged(mac(0), 5, "tagged by itself")));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!((b.received(0), tx_dropped(&rig, 0)), (vec![], 1));
        // Another VLAN replaces the first at once, and both filters work together.
        set(&rig, 0, Acl { source: Some(MacAddr(mac(0))), ..in_vlan(4095) }).unwrap();
        assert!(a.send(EVERYBODY, mac(0), "in 4095") && a.send(EVERYBODY, STRANGER, "spoofed"));
        assert_eq!(other.received(1), ["in 4095"]);
        assert_eq!(b.received(0), [""; 0]);
        set(&rig, 0, Acl::default()).unwrap();
        assert!(a.send(EVERYBODY, mac(0), "plain"));
        assert_eq!(none.received(2), ["in 4095", "plain"]);
        assert_eq!((other.received(0), b.received(0)), (vec![], vec![]));
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_vf_in_a_vlan_can_be_limited_and_be_checked_too() {
    in_own_namespaces("a_vf_in_a_vlan_can_be_limited_and_be_checked_too", || {
        let rig = rig(2);
        let rate = eswitch::rate::Rate { tx_max: 12_500_000, ..eswitch::rate::Rate::default() };
        let rates = eswitch::rate::TxRates { leaves: [(Vport::Vf(0), rate)].into(), nodes: [].into() };
        rig.with(|card, cx| card.set_rates(cx, PF, &rates)).unwrap();
        set(&rig, 0, Acl { source: Some(MacAddr(mac(0))), ..in_vlan(9) }).unwrap();
        set(&rig, 1, in_vlan(9)).unwrap();
        let (a, b) = (tap(0), tap(1));
        assert!(a.send(EVERYBODY, STRANGER, "spoofed") && a.send(EVERYBODY, mac(0), "through the shaper"));
        assert_eq!(b.received(1), ["through the shaper"]);
        let shaped = sh(&format!("ip -n {CARD} -s -j link show shaper0"));
        assert!(shaped.contains("\"packets\":1,"), "{shaped}");
    });
}

#[test]
fn owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let rig = rig(3);
    set(&rig, 0, only_from(0)).unwrap();
    set(&rig, 1, in_vlan(5)).unwrap();
    println!("READY");
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn access_lists_hold_while_no_process_has_the_card_and_are_the_next_ones_then() {
    in_own_namespaces("access_lists_hold_while_no_process_has_the_card_and_are_the_next_ones_then", || {
        let mut owner = start_owner();
        owner.kill().unwrap();
        owner.wait().unwrap();
        let taps = [0, 1, 2].map(tap);
        let [a, b, c] = &taps;
        assert!(a.send(EVERYBODY, STRANGER, "spoofed") && b.send(EVERYBODY, mac(1), "in 5"));
        assert_eq!(c.received(1), ["in 5"]);
        let rig = Rig::taking_over(CardConfig::default(), |rig| {
            make(rig, 3);
            // The second one's was taken away just before that process died, or never acknowledged.
            set(rig, 0, only_from(0)).unwrap();
        });
        assert!(a.send(EVERYBODY, STRANGER, "spoofed again") && b.send(EVERYBODY, mac(1), "plain"));
        assert_eq!(c.received(1), ["plain"]);
        assert!(c.send(mac(1), mac(2), "back"));
        assert_eq!(b.received(1), ["back"]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}
