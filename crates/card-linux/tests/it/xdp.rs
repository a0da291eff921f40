//! Native XDP programs on the card's netdevs.

#![allow(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use crate::common::frames::Tap;
use crate::common::*;
use eswitch::Vport;
use eswitch::card::Resource;

/// `bpf(2)`; `attributes`: the first words of `union bpf_attr`.
fn bpf(command: i32, attributes: &[u64]) -> io::Result<i64> {
    let (pointer, len) = (attributes.as_ptr(), size_of_val(attributes));
    // SAFETY: the kernel reads no more than the length given; what the attributes point to is alive, as the callers
    // see to.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, len) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Loads an XDP program that answers every frame with `action`, and gives it a name below `/run/bpf`.
fn pin(name: &str, action: u64) {
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_OBJ_PIN: i32 = 6;
    const BPF_PROG_TYPE_XDP: u64 = 6;
    // r0 = action; exit.
    let program = [u64::from(0xb7_u8) | action << 32, 0x95];
    let license = c"GPL";
    let load =
        [BPF_PROG_TYPE_XDP | (program.len() as u64) << 32, program.as_ptr() as u64, license.as_ptr() as u64, 0, 0, 0];
    let loaded = bpf(BPF_PROG_LOAD, &load).unwrap_or_else(|error| panic!("loading {name}: {error}"));
    // SAFETY: the descriptor is new, so nobody else owns it.
    let loaded = unsafe { OwnedFd::from_raw_fd(loaded as i32) };
    let path = CString::new(format!("/run/bpf/{name}")).unwrap();
    bpf(BPF_OBJ_PIN, &[path.as_ptr() as u64, loaded.as_raw_fd() as u64]).unwrap();
}

/// Makes `/run/bpf` with the programs `pass` and `drop`.
pub fn programs() {
    sh("mkdir /run/bpf && mount -t bpf bpf /run/bpf");
    pin("drop", 1);
    pin("pass", 2);
}

/// The kernel's answer to a command that must fail.
fn refused(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(!output.status.success(), "{command}");
    String::from_utf8(output.stderr).unwrap()
}

/// A frame that is as long as the MTU.
fn full(mtu: usize) -> String {
    "x".repeat(mtu)
}

#[test]
fn a_native_xdp_program_sees_the_frames_of_every_netdev() {
    in_own_namespaces("a_native_xdp_program_sees_the_frames_of_every_netdev", || {
        programs();
        let rig = Rig::with_vfs(1);
        rig.to_switchdev(1);
        let sf = Vport::Sf(0);
        rig.make(&[Resource::Port(PF, sf), rep(sf), Resource::SfNetdev(PF, sf)]);
        let pairs = [(vf(0), rep(Vport::Vf(0))), (Resource::SfNetdev(PF, sf), rep(sf))];
        let netdevs = pairs.iter().flat_map(|(function, rep)| [*function, *rep]).chain([Resource::PfNetdev(PF)]);
        netdevs.for_each(|netdev| drop(sh(&format!("ip link set {} up", rig.name(netdev)))));
        for (function, rep) in pairs.map(|(function, rep)| (rig.name(function), rig.name(rep))) {
            for (from, to) in [(&function, &rep), (&rep, &function)] {
                eventually(&format!("ip link show {to} | grep -q LOWER_UP"));
                sh(&format!("ip link set dev {to} xdpdrv pinned /run/bpf/drop"));
                let (sender, receiver) = (Tap::on(None, from), Tap::on(None, to));
                assert!(sender.send([0xff; 6], [2; 6], "dropped"));
                // Frames of one sender keep their order.
                sh(&format!("sleep 0.1; ip link set dev {to} xdpdrv off"));
                sh(&format!("ip link set dev {to} xdpdrv pinned /run/bpf/pass"));
                assert!(sender.send([0xff; 6], [2; 6], "passed"));
                assert_eq!(receiver.received(1), ["passed"], "{from} to {to}");
                sh(&format!("ip link show {to} | grep prog/xdp && ip link set dev {to} xdpdrv off"));
            }
        }
        let uplink = rig.name(Resource::PfNetdev(PF));
        sh(&format!("ip link set dev {uplink} xdpdrv pinned /run/bpf/pass"));
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_jumbo_mtu_and_xdp_exclude_each_other_and_either_can_follow_the_other() {
    in_own_namespaces("a_jumbo_mtu_and_xdp_exclude_each_other_and_either_can_follow_the_other", || {
        programs();
        let rig = Rig::with_vfs(1);
        rig.to_switchdev(1);
        sh("ip netns add pod");
        let card_mtu = |end: &str, mtu: u32| {
            eventually(&format!("ip -n esw-0000:08:00.0 link show {end} | grep -q 'mtu {mtu} '"));
        };
        for exec in ["", "ip netns exec pod"] {
            if !exec.is_empty() {
                sh("ip link set enp8s0f0v0 netns pod");
            }
            sh(&format!("ip link set enp8s0f0npf0vf0 up; {exec} ip link set enp8s0f0v0 up"));
            eventually(&format!("{exec} ip link show enp8s0f0v0 | grep -q LOWER_UP"));
            let netns = (!exec.is_empty()).then_some("pod");
            let (function, rep) = (Tap::on(netns, "enp8s0f0v0"), Tap::on(None, "enp8s0f0npf0vf0"));
            let both_ways = |mtu: usize| {
                for (from, to) in [(&function, &rep), (&rep, &function)] {
                    assert!(from.send([0xff; 6], [2; 6], &full(mtu)));
                    assert_eq!(to.received(1), [full(mtu)]);
                }
            };
            // The longest MTU that goes with XDP, the next, the longest of all; and back.
            for (mtu, of_card) in [(3_498, 3_502), (3_499, 65_535), (9_000, 65_535), (1_500, 3_502)] {
                // The function is given the same.
                sh(&format!("ip link set enp8s0f0npf0vf0 mtu {mtu}"));
                eventually(&format!("{exec} ip link show enp8s0f0v0 | grep -q 'mtu {mtu} '"));
                ["p0v0", "r0v0"].iter().for_each(|end| card_mtu(end, of_card));
                both_ways(mtu);
                let attach = format!("{exec} ip link set dev enp8s0f0v0 xdpdrv pinned /run/bpf/pass");
                if of_card == 65_535 {
                    assert!(refused(&attach).contains("too large to set XDP"));
                    continue;
                }
                sh(&attach);
                both_ways(mtu);
                // The card's end cannot take more while the program is attached, and does afterwards.
                sh(&format!("{exec} ip link set enp8s0f0v0 mtu 8000; sleep 0.1"));
                card_mtu("p0v0", of_card);
                sh(&format!("{exec} ip link set dev enp8s0f0v0 xdpdrv off"));
                card_mtu("p0v0", 65_535);
            }
        }
        assert_eq!(rig.complaints(), [""; 0]);
    });
}
