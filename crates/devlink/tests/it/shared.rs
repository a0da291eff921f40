//! The view that a server shares: a program that knows of a change finds it there, and waits for nothing.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{self, with_card_of};
use control::{Command, EswitchOption};
use devlink::eswitch_family::{self, JOIN};
use devlink::numbers::{attribute, command};
use devlink::view::Card;
use devlink::{Client, ESWITCH, ViewReader};
use eswitch::card::{Fault, ResourceKind};
use eswitch::vf::VfSetting;
use eswitch::{CardConfig, MacAddr, Mode, PciAddress, PfIndex, RepType};
use netlink::{Builder, find};

fn card(pfs: u8, vfs: u16) -> CardConfig {
    CardConfig { pfs, vfs, modules: vec!["mlx5_ib".to_owned()], ..CardConfig::default() }
}

fn perform(path: &Path, command: Command) {
    ask(&mut Client::connect(path).unwrap(), command);
}

fn ask(client: &mut Client, command: Command) {
    client.perform(&command).unwrap();
}

/// A PF of the card.
const fn pf(function: u8) -> PciAddress {
    PciAddress { domain: 0, bus: 8, device: 0, function }
}

fn switchdev(device: PciAddress) -> Command {
    Command::SetEswitch { device, options: vec![EswitchOption::Mode(Mode::Switchdev)] }
}

fn num_vfs(device: PciAddress, number: u32) -> Command {
    Command::SetNumVfs { device, number }
}

fn mac(n: u8) -> Command {
    let settings = vec![VfSetting::Mac(MacAddr([2, 0, 0, 0, 0, n]))];
    Command::SetVf { device: pf(0), vf: 1, settings }
}

fn unload_ib() -> Command {
    Command::UnloadModule("mlx5_ib".to_owned())
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
fn an_acknowledged_change_can_be_read() {
    with_card_of(card(1, 0), |up| {
        let (_client, mut reader, card) = reader(&up.path);
        assert_eq!(vfs(&card, 0), 0);
        assert_ne!(card.rdma, []);
        assert!(reader.newer().unwrap().is_none(), "nothing has changed");
        perform(&up.path, num_vfs(pf(0), 2));
        assert_eq!(vfs(&reader.newer().unwrap().unwrap(), 0), 2);
        for n in 0..100u8 {
            perform(&up.path, mac(n));
            let card = reader.newer().unwrap().unwrap();
            let pf = card.netdevs.iter().find(|netdev| netdev.name == "enp8s0f0np0").unwrap();
            assert_eq!(pf.vfs[1].mac, [2, 0, 0, 0, 0, n]);
        }
        perform(&up.path, unload_ib());
        assert_eq!(reader.newer().unwrap().unwrap().rdma, []);
    });
}

/// Runs `act` while a slow command holds the first of two PFs. Fails if `act` waits for that command.
fn while_one_is_slow(up: &common::Up, act: impl FnOnce()) {
    let slow = Some(Duration::from_secs(8));
    let kind = ResourceKind::Fdb;
    perform(
        &up.path,
        Command::AddFault(Fault { kind, pf: Some(PfIndex(0)), vport: None, after: 0, times: 1, delay: slow }),
    );
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            perform(&up.path, switchdev(pf(0)));
            done.store(true, Ordering::Release);
        });
        while !up.is_busy(pf(0)) {
            thread::yield_now();
        }
        act();
        assert!(!done.load(Ordering::Acquire), "it has waited for the mode change");
    });
}

#[test]
fn no_command_or_reader_waits_for_another_pfs_slow_command() {
    with_card_of(card(2, 0), |up| {
        let (_client, mut reader, _) = reader(&up.path);
        while_one_is_slow(up, || {
            perform(&up.path, num_vfs(pf(1), 1));
            let card = reader.newer().unwrap().unwrap();
            assert_eq!((vfs(&card, 0), vfs(&card, 1)), (0, 1));
        });
        let uplink = reader.newer().unwrap().unwrap().netdevs[0].clone();
        assert!(uplink.in_switch, "{uplink:?}");
    });
}

#[test]
fn the_first_reader_waits_for_no_pf() {
    with_card_of(card(2, 2), |up| {
        // There is no reader yet, but a later one must find what was acknowledged.
        perform(&up.path, mac(5));
        perform(&up.path, num_vfs(pf(1), 0));
        while_one_is_slow(up, || {
            let (_client, _, card) = reader(&up.path);
            assert_eq!((vfs(&card, 0), vfs(&card, 1)), (2, 0));
            let pf = card.netdevs.iter().find(|netdev| netdev.name == "enp8s0f0np0").unwrap();
            assert_eq!(pf.vfs[1].mac, [2, 0, 0, 0, 0, 5]);
        });
    });
}

#[test]
fn a_change_of_a_busy_pf_is_notified_when_it_is_released_and_those_of_others_at_once() {
    with_card_of(card(2, 1), |up| {
        let mut listener = Client::connect(&up.path).unwrap();
        let join = |to: &mut Builder| {
            to.u32(eswitch_family::GROUP, devlink::CONFIG_GROUP);
        };
        listener.ask(ESWITCH, JOIN, join).unwrap();
        let mut notified = || {
            let message = listener.receive_notification().unwrap().remove(0);
            let name = find(&message.attributes, attribute::DEV_NAME);
            (message.command, String::from_utf8_lossy(name.unwrap().value).trim_end_matches('\0').to_owned())
        };
        while_one_is_slow(up, || {
            perform(&up.path, switchdev(pf(1)));
            assert_eq!(notified(), (command::PORT_NEW, "0000:08:00.1".to_owned()));
        });
        assert_eq!(notified(), (command::PORT_NEW, "0000:08:00.0".to_owned()));
    });
}

#[test]
fn a_representor_that_fails_and_one_that_is_loaded_later_are_notified_by_their_reporter() {
    // The error lasts long enough to be seen also by a thread that gets no CPU for a while.
    with_card_of(CardConfig { retry_ms: 500, retry_max_ms: 500, ..card(1, 1) }, |up| {
        let mut listener = Client::connect(&up.path).unwrap();
        let join = |to: &mut Builder| {
            to.u32(eswitch_family::GROUP, devlink::CONFIG_GROUP);
        };
        listener.ask(ESWITCH, JOIN, join).unwrap();
        perform(&up.path, switchdev(pf(0)));
        perform(&up.path, unload_ib());
        let kind = ResourceKind::Representor(RepType::Ib);
        perform(
            &up.path,
            Command::AddFault(Fault { kind, pf: Some(PfIndex(0)), vport: None, after: 0, times: 1, delay: None }),
        );
        perform(&up.path, Command::LoadModule("mlx5_ib".to_owned()));
        let mut states: Vec<u8> = Vec::new();
        while states.len() < 2 {
            for message in listener.receive_notification().unwrap() {
                if message.command == command::HEALTH_RECOVER {
                    let reporter = find(&message.attributes, attribute::HEALTH_REPORTER).unwrap().value;
                    states.extend(find(reporter, attribute::HEALTH_REPORTER_STATE).unwrap().value);
                }
            }
        }
        assert_eq!(states, [1, 0], "an error, then healthy");
    });
}

#[test]
fn the_last_view_can_be_read_after_the_server_has_ended() {
    let mut left = None;
    with_card_of(card(1, 0), |up| {
        let (mut client, reader, _) = reader(&up.path);
        ask(&mut client, unload_ib());
        left = Some((client, reader));
    });
    let (mut client, mut reader) = left.unwrap();
    client.wait_for_end();
    assert_eq!(reader.newer().unwrap().unwrap().rdma, []);
    assert!(reader.newer().unwrap().is_none());
}
