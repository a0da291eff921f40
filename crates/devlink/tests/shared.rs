//! The view that a server shares: whoever knows of a change finds it there, and waits for nobody.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::with_card_of;
use devlink::eswitch_family::{self, JOIN, PERFORM, WORDS};
use devlink::numbers::{attribute, command};
use devlink::view::Card;
use devlink::{Client, ESWITCH, ViewReader};
use eswitch::{CardConfig, PciAddress};
use netlink::{Builder, find};

fn card(pfs: u8, vfs: u16) -> CardConfig {
    CardConfig { pfs, vfs, modules: vec!["mlx5_ib".to_owned()], ..CardConfig::default() }
}

fn perform(path: &Path, words: &str) {
    ask(&mut Client::connect(path).unwrap(), words);
}

fn ask(client: &mut Client, words: &str) {
    let asked = client.ask(ESWITCH, PERFORM, |to| {
        to.text(WORDS, words);
    });
    asked.unwrap();
}

fn reader(path: &Path) -> (Client, ViewReader, Card) {
    let mut client = Client::connect(path).unwrap();
    let mut reader = client.share().unwrap();
    let card = (*reader.newer().unwrap().unwrap()).clone();
    (client, reader, card)
}

fn vfs(card: &Card, pf: usize) -> u16 {
    let mut pfs = card.functions.iter().filter_map(|function| function.sriov.as_ref());
    pfs.nth(pf).unwrap().enabled
}

#[test]
fn what_was_acknowledged_can_be_read() {
    with_card_of(card(1, 0), |up| {
        let (_client, mut reader, card) = reader(&up.path);
        assert_eq!(vfs(&card, 0), 0);
        assert_ne!(card.rdma, []);
        assert!(reader.newer().unwrap().is_none(), "nothing has changed");
        perform(&up.path, "echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs");
        assert_eq!(vfs(&reader.newer().unwrap().unwrap(), 0), 2);
        for n in 0..100u8 {
            perform(&up.path, &format!("ip link set enp8s0f0np0 vf 1 mac 02:00:00:00:00:{n:02x}"));
            let card = reader.newer().unwrap().unwrap();
            let pf = card.netdevs.iter().find(|netdev| netdev.name == "enp8s0f0np0").unwrap();
            assert_eq!(pf.vfs[1].mac, [2, 0, 0, 0, 0, n]);
        }
        perform(&up.path, "modprobe -r mlx5_ib");
        assert_eq!(reader.newer().unwrap().unwrap().rdma, []);
    });
}

const SLOW: PciAddress = PciAddress { domain: 0, bus: 8, device: 0, function: 0 };

/// Does something while a command has the first of two PFs, which it had better not wait for.
fn while_one_is_slow(up: &common::Up, act: impl FnOnce()) {
    perform(&up.path, "delay fdb pf 0 for 8s");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            perform(&up.path, "devlink dev eswitch set pci/0000:08:00.0 mode switchdev");
            done.store(true, Ordering::Release);
        });
        while !up.is_busy(SLOW) {
            thread::yield_now();
        }
        act();
        assert!(!done.load(Ordering::Acquire), "it has waited for the mode change");
    });
}

#[test]
fn nobody_waits_for_a_pf_that_is_slow() {
    with_card_of(card(2, 0), |up| {
        let (_client, mut reader, _) = reader(&up.path);
        while_one_is_slow(up, || {
            perform(&up.path, "echo 1 > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs");
            let card = reader.newer().unwrap().unwrap();
            assert_eq!((vfs(&card, 0), vfs(&card, 1)), (0, 1));
        });
        let uplink = reader.newer().unwrap().unwrap().netdevs[0].clone();
        assert!(uplink.in_switch, "{uplink:?}");
    });
}

#[test]
fn who_is_the_first_to_read_waits_for_no_pf() {
    with_card_of(card(2, 1), |up| {
        // Nobody reads yet, and what is acknowledged is to be found all the same.
        perform(&up.path, "ip link set enp8s0f0np0 vf 0 mac 02:00:00:00:00:05");
        perform(&up.path, "echo 0 > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs");
        while_one_is_slow(up, || {
            let (_client, _, card) = reader(&up.path);
            assert_eq!((vfs(&card, 0), vfs(&card, 1)), (1, 0));
            let pf = card.netdevs.iter().find(|netdev| netdev.name == "enp8s0f0np0").unwrap();
            assert_eq!(pf.vfs[0].mac, [2, 0, 0, 0, 0, 5]);
        });
    });
}

#[test]
fn of_a_pf_that_is_slow_is_told_when_it_is_free_and_of_others_at_once() {
    with_card_of(card(2, 1), |up| {
        let mut listener = Client::connect(&up.path).unwrap();
        let join = |to: &mut Builder| {
            to.u32(eswitch_family::GROUP, devlink::CONFIG_GROUP);
        };
        listener.ask(ESWITCH, JOIN, join).unwrap();
        let mut told = || {
            let message = listener.told().unwrap().remove(0);
            let name = find(&message.attributes, attribute::DEV_NAME);
            (message.command, String::from_utf8_lossy(name.unwrap().value).trim_end_matches('\0').to_owned())
        };
        while_one_is_slow(up, || {
            perform(&up.path, "devlink dev eswitch set pci/0000:08:00.1 mode switchdev");
            assert_eq!(told(), (command::PORT_NEW, "0000:08:00.1".to_owned()));
        });
        assert_eq!(told(), (command::PORT_NEW, "0000:08:00.0".to_owned()));
    });
}

#[test]
fn what_was_read_last_stays_when_the_server_has_gone() {
    let mut left = None;
    with_card_of(card(1, 0), |up| {
        let (mut client, reader, _) = reader(&up.path);
        ask(&mut client, "modprobe -r mlx5_ib");
        left = Some((client, reader));
    });
    let (mut client, mut reader) = left.unwrap();
    client.wait_for_end();
    assert_eq!(reader.newer().unwrap().unwrap().rdma, []);
    assert!(reader.newer().unwrap().is_none());
}
