//! The life of a card: how its netdevs depend on one another, what is refused, what is left behind.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::frames::Tap;
use crate::common::*;
use card_linux::{LinuxCard, NetnsError, Place, SetupError};
use eswitch::card::{Card, CardError, NetdevChange, Resource};
use eswitch::{CardConfig, Engine, MacAddr, Mode, RepType, Vport};
use lockdep::{Domain, Locked, OnReport, Threads, Unlocked};

#[test]
fn a_representor_rules_its_functions_carrier_and_mtu() {
    in_own_namespaces("a_representor_rules_its_functions_carrier_and_mtu", || {
        let rig = Rig::with_vfs(2);
        sh("ip netns add away && ip link set enp8s0f0v1 netns away");
        sh("ip link set enp8s0f0v0 up; ip -n away link set enp8s0f0v1 up");
        let carrier = |netns: &str, n: u16, wanted: bool| {
            let not = if wanted { "" } else { "! " };
            eventually(&format!("{not}ip {netns} link show enp8s0f0v{n} | grep -q LOWER_UP"));
        };
        carrier("", 0, true);
        rig.to_switchdev(2);
        carrier("", 0, false);
        carrier("-n away", 1, false);
        sh("ip link set enp8s0f0npf0vf0 up; ip link set enp8s0f0npf0vf1 up");
        carrier("", 0, true);
        carrier("-n away", 1, true);
        sh("ip link set enp8s0f0npf0vf1 down");
        carrier("-n away", 1, false);
        carrier("", 0, true);

        // An MTU finds its VF here and in any namespace that has a name; large frames pass.
        sh("ip link set enp8s0f0npf0vf0 mtu 9000; ip link set enp8s0f0npf0vf1 mtu 4000");
        eventually("ip link show enp8s0f0v0 | grep -q 'mtu 9000'");
        eventually("ip -n away link show enp8s0f0v1 | grep -q 'mtu 4000'");
        let (vf0, rep0) = (Tap::on(None, "enp8s0f0v0"), Tap::on(None, "enp8s0f0npf0vf0"));
        assert!(vf0.send([0xff; 6], [2; 6], &"x".repeat(8_900)));
        assert_eq!(rep0.received(1)[0].len(), 8_900);

        // A representor in another namespace does so, too.
        sh("ip netns add ovs && ip link set enp8s0f0npf0vf0 netns ovs");
        carrier("", 0, false);
        sh("ip -n ovs link set enp8s0f0npf0vf0 up");
        carrier("", 0, true);

        rig.to_legacy(2);
        carrier("", 0, true);
        carrier("-n away", 1, true);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_port_without_a_link_takes_its_functions_carrier_in_legacy_mode_only() {
    in_own_namespaces("a_port_without_a_link_takes_its_functions_carrier_in_legacy_mode_only", || {
        let rig = Rig::with_vfs(2);
        let port = |n: u16| Resource::Port(PF, Vport::Vf(n));
        rig.make(&[port(0), port(1)]);
        let set = |n: u16, up: bool| rig.with(|card, cx| card.set_link(cx, &port(n), up)).unwrap();
        let carrier = |netns: &str, n: u16, wanted: bool| {
            let not = if wanted { "" } else { "! " };
            eventually(&format!("{not}ip {netns} link show enp8s0f0v{n} | grep -q LOWER_UP"));
        };
        sh("ip netns add away && ip link set enp8s0f0v1 netns away");
        sh("ip link set enp8s0f0v0 up; ip -n away link set enp8s0f0v1 up");
        carrier("", 0, true);
        carrier("-n away", 1, true);
        set(1, false);
        carrier("-n away", 1, false);
        let (vf0, vf1) = (Tap::on(None, "enp8s0f0v0"), Tap::on(Some("away"), "enp8s0f0v1"));
        assert!(vf0.send([0xff; 6], [2; 6], "to nobody"));
        assert_eq!(vf1.received(0), [""; 0]);
        carrier("", 0, true);

        // A netdev that is made anew has none either: as if its VF were unbound and bound.
        rig.unmake(&[Resource::VfNetdev(PF, Vport::Vf(1))]);
        rig.make(&[Resource::VfNetdev(PF, Vport::Vf(1))]);
        sh("ip link set enp8s0f0v1 up");
        carrier("", 1, false);

        // In switchdev mode the representor decides, also about one that has it taken away meanwhile.
        rig.to_switchdev(2);
        set(0, false);
        sh("ip link set enp8s0f0npf0vf0 up; ip link set enp8s0f0npf0vf1 up");
        carrier("", 0, true);
        carrier("", 1, true);
        rig.to_legacy(2);
        carrier("", 0, false);
        carrier("", 1, false);
        set(0, true);
        set(1, true);
        carrier("", 0, true);
        carrier("", 1, true);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn an_sf_has_a_representor_without_carrier_until_it_is_active() {
    in_own_namespaces("an_sf_has_a_representor_without_carrier_until_it_is_active", || {
        let rig = Rig::with_vfs(0);
        rig.to_switchdev(0);
        let vport = Vport::Sf(0);
        rig.make(&[Resource::Port(PF, vport)]);
        rig.make(&[rep(vport), Resource::Representor(PF, vport, RepType::Ib)]);
        assert_eq!(rig.name(rep(vport)), "en8f0pf0sf88");
        sh("ip link set en8f0pf0sf88 up; ip link set en8f0pf0sf88 mtu 9000");
        eventually("ip link show enp8s0f0npf0sf88 | grep -q NO-CARRIER");

        for _ in 0..2 {
            rig.make(&[Resource::SfNetdev(PF, vport), Resource::SfIbDevice(PF, vport)]);
            assert_eq!(rig.name(Resource::SfNetdev(PF, vport)), "enp8s0f0s88");
            sh("ip link set enp8s0f0s88 up");
            eventually("ip link show en8f0pf0sf88 | grep -q LOWER_UP");
            eventually("ip link show enp8s0f0s88 | grep -q LOWER_UP");
            eventually("ip link show enp8s0f0s88 | grep -q 'mtu 9000'");
            let (sf, rep) = (Tap::on(None, "enp8s0f0s88"), Tap::on(None, "en8f0pf0sf88"));
            assert!(sf.send([0xff; 6], [2; 6], "from the SF"));
            assert_eq!(rep.received(1), ["from the SF"]);
            assert!(rep.send([0xff; 6], [2; 6], "to the SF"));
            assert_eq!(sf.received(1), ["to the SF"]);
            rig.unmake(&[Resource::SfIbDevice(PF, vport), Resource::SfNetdev(PF, vport)]);
            eventually("ip link show en8f0pf0sf88 | grep -q NO-CARRIER");
            sh("! ip link show enp8s0f0s88 2>&1");
        }
        rig.unmake(&[rep(vport), Resource::Representor(PF, vport, RepType::Ib)]);
        rig.unmake(&[Resource::Port(PF, vport)]);
        rig.to_legacy(0);
        assert_eq!(rig.resources(), [Resource::Function(PF), Resource::PfNetdev(PF)]);
    });
}

#[test]
fn a_taken_name_is_no_error_and_a_request_that_fails_leaves_nothing() {
    in_own_namespaces("a_taken_name_is_no_error_and_a_request_that_fails_leaves_nothing", || {
        sh("ip link add enp8s0f0v1 type bridge && ip link add eth0 type bridge");
        let rig = Rig::new(CardConfig::default());
        rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
        rig.make(&vf_ports(3));
        assert_eq!([0, 1, 2].map(|n| rig.name(vf(n))), ["enp8s0f0v0", "eth1", "enp8s0f0v2"]);
        assert_eq!(rig.with(|card, cx| card.renamed(cx)), [(vf(1), "eth1".to_owned())]);
        sh("ip link show eth1 && ip link del eth0 && ip link del enp8s0f0v1");

        // An alternative name stays with the netdev that has it.
        sh("ip link add user type bridge && ip link property add dev user altname enp8s0f0npf0vf10");
        rig.make(&[vf(10)]);
        rig.make(&[Resource::SwitchdevFdb(PF), rep(Vport::Vf(10))]);
        sh("ip link show en8f0pf0vf10 && ip link show user | grep enp8s0f0npf0vf10");
        sh("ip link set en8f0pf0vf10 up; ip link set enp8s0f0v10 up");
        let (rep10, vf10) = (Tap::on(None, "en8f0pf0vf10"), Tap::on(None, "enp8s0f0v10"));
        eventually("ip link show enp8s0f0v10 | grep -q LOWER_UP");
        assert!(vf10.send([0xff; 6], [2; 6], "tied once"));
        assert_eq!(rep10.received(1), ["tied once"]);

        // A tie fails: there is no place for it any more.
        sh("ip netns exec esw-0000:08:00.0 tc qdisc del dev p0v0 clsact");
        let before = (netdevs(), rig.resources());
        let outcomes = rig.create(&[rep(Vport::Vf(0)), rep(Vport::Vf(2))]);
        assert!(matches!(outcomes[..], [Err(CardError::Kernel { .. }), Ok(())]), "{outcomes:?}");
        rig.unmake(&[rep(Vport::Vf(2))]);
        assert_eq!((netdevs(), rig.resources()), before);
        sh("ip -n esw-0000:08:00.0 link show p0v0 | grep '[<,]UP'");
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_pf_netdev_that_was_moved_is_found() {
    in_own_namespaces("a_pf_netdev_that_was_moved_is_found", || {
        let rig = Rig::with_vfs(1);
        sh("ip netns add a && ip netns add b");
        let netns = || rig.with(|card, cx| card.netns(cx, PF));
        let set = |name| rig.with(|card, cx| card.set_netns(cx, PF, name));
        assert_eq!(netns(), None);
        set(Some("a")).unwrap();
        assert_eq!(netns().as_deref(), Some("a"));
        set(Some("b")).unwrap();
        sh("ip -n b link show enp8s0f0np0");
        let none = set(Some("none")).unwrap_err();
        assert!(none.to_string().contains("ip netns list"), "{none}");
        set(None).unwrap();
        sh("ip link show enp8s0f0np0");
        sh("ip link set enp8s0f0np0 netns a && ip -n a link set enp8s0f0np0 name eth0");
        assert_eq!(netns().as_deref(), Some("a"), "moved and renamed with `ip`");

        let mac = MacAddr([2, 1, 2, 3, 4, 5]);
        sh("ip link set enp8s0f0v0 netns b");
        for resource in [vf(0), Resource::PfNetdev(PF)] {
            rig.with(|card, cx| card.set_mac(cx, &resource, mac)).unwrap();
        }
        sh(&format!("ip -n b link show enp8s0f0v0 | grep {mac} && ip -n a link show eth0 | grep {mac}"));

        // Given that its namespace is deleted, a netdev is back where it was born, under the name that it had.
        sh("ip netns del a && ip netns del b");
        eventually("ip link show eth0");
        sh("ip link set eth0 name enp8s0f0np0");
        eventually(&format!("ip link show enp8s0f0v0 | grep {mac}"));
        assert_eq!(netns(), None);
        assert_eq!(rig.resources(), [Resource::Function(PF), Resource::PfNetdev(PF), vf(0)]);
        rig.to_switchdev(1);
        sh("ip link del enp8s0f0npf0vf0");
        eventually("ip link show enp8s0f0npf0vf0");
        sh("for d in enp8s0f0npf0vf0 enp8s0f0v0 enp8s0f0np0; do ip link set $d up; done");
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        let (vf0, rep0) = (Tap::on(None, "enp8s0f0v0"), Tap::on(None, "enp8s0f0npf0vf0"));
        assert!(vf0.send([0xff; 6], [2; 6], "as before"));
        assert_eq!(rep0.received(1), ["as before"]);
        sh("ip link del enp8s0f0v0");
        eventually("ip link set enp8s0f0v0 up");
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        let vf0 = Tap::on(None, "enp8s0f0v0");
        assert!(vf0.send([0xff; 6], [2; 6], "still represented"));
        assert_eq!(rep0.received(1), ["still represented"]);
        rig.to_legacy(1);
        rig.unmake(&[vf(0), Resource::PfNetdev(PF), Resource::Function(PF)]);
        assert_eq!(netdevs(), [""; 0]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_netdev_with_another_name_is_known_by_it() {
    in_own_namespaces("a_netdev_with_another_name_is_known_by_it", || {
        let rig = Rig::with_vfs(2);
        rig.to_switchdev(2);
        let told = Arc::new(Mutex::new(Vec::new()));
        let ours = Arc::clone(&told);
        rig.with(|card, cx| {
            let on_change = move |_: &mut Locked<'_, Unlocked>, netdev: Resource, change: NetdevChange| {
                ours.lock().unwrap().push((netdev, change));
            };
            card.on_netdev_change(cx, Arc::new(on_change));
        });
        let heard = |n: usize| {
            let until = Instant::now() + Duration::from_secs(60);
            while told.lock().unwrap().len() < n {
                assert!(Instant::now() < until, "told of {:?}", told.lock().unwrap());
                std::thread::sleep(Duration::from_millis(2));
            }
            told.lock().unwrap().last().cloned().unwrap()
        };
        // Given a representor, a VF's netdev and a PF's with other names,
        for (n, (was, name, netdev)) in [
            ("enp8s0f0npf0vf0", "pod-a", rep(Vport::Vf(0))),
            ("enp8s0f0v1", "eth0", vf(1)),
            ("enp8s0f0np0", "uplink", Resource::PfNetdev(PF)),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(rig.name(netdev), was);
            sh(&format!("ip link set {was} name {name}"));
            assert_eq!(heard(n + 1), (netdev, NetdevChange::Renamed(name.to_owned())));
            assert_eq!(rig.name(netdev), name);
        }
        assert_eq!(rig.with(|card, cx| card.renamed(cx)).len(), 3);
        // one that is moved elsewhere is known by the name that it had last,
        sh("ip netns add a && ip link set eth0 netns a && ip -n a link set eth0 name eth7");
        assert_eq!(heard(4), (vf(1), NetdevChange::Away));
        assert_eq!(rig.with(|card, cx| card.elsewhere(cx)), [vf(1)]);
        assert_eq!(rig.name(vf(1)), "eth0");
        // and by its new name when it is back.
        sh("ip -n a link set eth7 netns $$");
        assert_eq!(heard(5), (vf(1), NetdevChange::Back("eth7".to_owned())));
        assert_eq!(rig.with(|card, cx| card.elsewhere(cx)), []);
        // One that gets its first name back is renamed no more;
        sh("ip link set uplink name enp8s0f0np0");
        let renamed = NetdevChange::Renamed("enp8s0f0np0".to_owned());
        assert_eq!(heard(6), (Resource::PfNetdev(PF), renamed));
        assert_eq!(rig.with(|card, cx| card.renamed(cx)).len(), 2);
        // and one that is made again has the name that it is made with.
        rig.unmake(&[rep(Vport::Vf(0))]);
        rig.make(&[rep(Vport::Vf(0))]);
        assert_eq!(rig.name(rep(Vport::Vf(0))), "enp8s0f0npf0vf0");
        assert_eq!(rig.with(|card, cx| card.renamed(cx)), [(vf(1), "eth7".to_owned())]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn two_hundred_vfs_come_and_go_and_leave_nothing() {
    in_own_namespaces("two_hundred_vfs_come_and_go_and_leave_nothing", || {
        const VFS: u16 = 200;
        let rig = Rig::with_vfs(0);
        let empty = (netdevs(), rig.resources());
        for _ in 0..3 {
            rig.make(&vf_ports(VFS));
            rig.to_switchdev(VFS);
            assert_eq!(rig.resources().len(), 4 + 2 * usize::from(VFS));
            // Some of many.
            rig.unmake(&[rep(Vport::Vf(7)), rep(Vport::Vf(199))]);
            rig.unmake(&[vf(7), vf(199)]);
            rig.make(&[vf(7), vf(199)]);
            rig.make(&[rep(Vport::Vf(7)), rep(Vport::Vf(199))]);
            rig.to_legacy(VFS);
            rig.unmake(&vf_ports(VFS));
            assert_eq!((netdevs(), rig.resources()), empty);
        }
        rig.make(&vf_ports(3));
        assert_eq!(rig.complaints(), [""; 0]);
        rig.unmake(&[vf(100)]);
        assert_eq!(rig.complaints(), ["netdev pf0 vf100 unmade and was not there"]);
        drop(rig);
        assert_eq!(netdevs(), [""; 0]);
        assert_eq!(sh("ip netns list"), "");
        assert_eq!(sh("ls /run/netns"), "");
    });
}

#[test]
fn a_panic_leaves_nothing() {
    in_own_namespaces("a_panic_leaves_nothing", || {
        let died = std::thread::spawn(|| {
            let rig = Rig::with_vfs(2);
            rig.to_switchdev(2);
            panic!("as planned");
        });
        assert!(died.join().is_err());
        assert_eq!(netdevs(), [""; 0]);
        assert_eq!(sh("ls /run/netns"), "");
    });
}

/// A process with a card, which prints that it has one and then waits to be killed: the other half of the next test.
#[test]
fn owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let rig = Rig::with_vfs(20);
    rig.to_switchdev(20);
    println!("READY");
    std::thread::sleep(std::time::Duration::from_secs(60));
    drop(rig);
}

#[test]
fn what_a_killed_owner_left_is_cleared_away_and_a_living_ones_is_not() {
    in_own_namespaces("what_a_killed_owner_left_is_cleared_away_and_a_living_ones_is_not", || {
        let mut child = start_owner();

        let place = Place::prepare().unwrap();
        let refused = LinuxCard::new(&place, CardConfig::default(), &Domain::checked(OnReport::Panic)).err().unwrap();
        assert!(matches!(refused, SetupError::Netns(NetnsError::InUse { .. })));
        assert!(refused.to_string().contains(&child.id().to_string()), "{refused}");
        assert!(netdevs().contains(&"enp8s0f0v0".to_owned()));

        child.kill().unwrap();
        child.wait().unwrap();
        sh("ip -n esw-0000:08:00.0 link show p0v0");
        let rig = Rig::at(&place, CardConfig::default());
        assert_eq!(netdevs(), [""; 0]);
        rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
        rig.make(&vf_ports(20));
    });
}

#[test]
fn the_engine_runs_on_it() {
    in_own_namespaces("the_engine_runs_on_it", || {
        let config = CardConfig { pfs: 2, vfs: 4, modules: vec!["mlx5_ib".to_owned()], ..CardConfig::default() };
        let domain = Domain::checked(OnReport::Panic);
        let card = Arc::new(LinuxCard::new(&Place::prepare().unwrap(), config.clone(), &domain).unwrap());
        let threads = Arc::new(Threads(Arc::clone(&domain)));
        lockdep::enter(&domain, "test", |cx| {
            let engine = Engine::start(cx, config, card.clone(), threads).unwrap();
            let [first, second] = engine.addresses()[..] else { panic!() };
            assert_eq!(netdevs().len(), 2 + 8);
            engine.set_mode(cx, first, Mode::Switchdev).unwrap();
            engine.set_mode(cx, second, Mode::Switchdev).unwrap();
            assert_eq!(netdevs().len(), 2 + 16);
            engine.set_num_vfs(cx, first, 0).unwrap();
            assert_eq!(netdevs().len(), 2 + 8);
            engine.set_mode(cx, second, Mode::Legacy).unwrap();
            assert_eq!(card.take_complaints(&mut cx.narrow()), [""; 0]);
            engine.shutdown(cx);
            assert_eq!(card.take_complaints(&mut cx.narrow()), [""; 0]);
            assert_eq!(card.resources(&mut cx.narrow()), []);
        });
        assert_eq!(netdevs(), [""; 0]);
    });
}

#[test]
fn a_namespace_of_the_cards_name_that_no_card_has_left_is_let_be() {
    in_own_namespaces("a_namespace_of_the_cards_name_that_no_card_has_left_is_let_be", || {
        sh("ip netns add esw-0000:08:00.0 && ip -n esw-0000:08:00.0 link add br9 type bridge");
        let place = Place::prepare().unwrap();
        for _ in 0..2 {
            let refused =
                LinuxCard::new(&place, CardConfig::default(), &Domain::checked(OnReport::Panic)).err().unwrap();
            assert!(matches!(refused, SetupError::Netns(NetnsError::NotOurs { .. })), "{refused}");
            sh("ip -n esw-0000:08:00.0 link show br9");
        }
        // After another card was made and dropped it is the same.
        drop(Rig::at(&place, CardConfig { address: "0000:09:00.0".parse().unwrap(), ..CardConfig::default() }));
        sh("ip netns del esw-0000:08:00.0");
        drop(Rig::at(&place, CardConfig::default()));
        sh("! ip netns | grep -q .");
    });
}
