//! Netdevs that users move to other namespaces: what the card knows of them, and how they come home when the namespace
//! dies.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use crate::common::*;
use card_linux::Place;
use eswitch::card::{Card, NetdevChange, Resource};
use eswitch::{CardConfig, Vport};
use lockdep::{Locked, Unlocked};

/// A network namespace that dies when this is dropped.
enum Netns {
    Named(&'static str),
    /// One without a name, as a container's: a process lives in it.
    Of(Child),
}

impl Netns {
    fn named(name: &'static str) -> Self {
        sh(&format!("ip netns add {name}"));
        Self::Named(name)
    }

    fn of_a_process() -> Self {
        let process = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
        eventually(&format!("! [ /proc/{}/ns/net -ef /proc/self/ns/net ]", process.id()));
        Self::Of(process)
    }

    /// As `ip link set DEV netns` takes it.
    fn id(&self) -> String {
        match self {
            Self::Named(name) => (*name).to_owned(),
            Self::Of(process) => process.id().to_string(),
        }
    }

    /// The start of a command that runs inside.
    fn exec(&self) -> String {
        match self {
            Self::Named(name) => format!("ip netns exec {name}"),
            Self::Of(process) => format!("nsenter --target {} --net", process.id()),
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        match self {
            Self::Named(name) => drop(sh(&format!("ip netns del {name}"))),
            Self::Of(process) => {
                process.kill().unwrap();
                process.wait().unwrap();
            }
        }
    }
}

fn index_of(name: &str) -> u32 {
    sh(&format!("ip -o link show {name} | cut -d: -f1")).trim().parse().unwrap()
}

/// A card in switchdev mode with two VFs and an SF, whose netdevs are up.
fn switchdev() -> Rig {
    let rig = Rig::with_vfs(2);
    rig.to_switchdev(2);
    let sf = Vport::Sf(0);
    rig.make(&[Resource::Port(PF, sf), rep(sf), Resource::SfNetdev(PF, sf)]);
    rig
}

#[test]
fn a_netdev_comes_home_from_a_namespace_that_dies_as_a_physical_one_does() {
    in_own_namespaces("a_netdev_comes_home_from_a_namespace_that_dies_as_a_physical_one_does", || {
        let rig = switchdev();
        let netdevs = [vf(0), rep(Vport::Vf(0)), Resource::PfNetdev(PF), Resource::SfNetdev(PF, Vport::Sf(0))];
        let netdevs = netdevs.into_iter().chain([rep(Vport::Sf(0))]);
        for (n, netdev) in netdevs.enumerate() {
            for (k, netns) in [Netns::named("pod"), Netns::of_a_process()].into_iter().enumerate() {
                let name = rig.name(netdev);
                let mac = format!("02:00:00:00:{n:02x}:{k:02x}");
                let (exec, new) = (netns.exec(), format!("net{n}{k}"));
                sh(&format!("ip addr add 10.0.0.1/24 dev {name}; ip link set {name} up netns {}", netns.id()));
                sh(&format!("{exec} ip link set {name} name {new} address {mac} mtu 4200 txqueuelen 77 group 5"));
                sh(&format!("{exec} ip link set {new} up alias 'of a pod'; {exec} ip addr add 10.0.0.2/24 dev {new}"));
                sh(&format!("{exec} ip link property add dev {new} altname other{n}{k}"));
                let index = sh(&format!("{exec} ip -o link show {new} | cut -d: -f1"));
                drop(netns);
                eventually(&format!("ip link show {new}"));
                assert_eq!(index_of(&new).to_string(), index.trim(), "{netdev}");
                let shown = sh(&format!("ip -d addr show {new}"));
                for part in [mac.as_str(), "mtu 4200", "qlen 77", "group 5", "alias of a pod", &format!("other{n}{k}")]
                {
                    assert!(shown.contains(part), "{netdev}: {part}: {shown}");
                }
                assert!(!shown.contains("inet "), "{netdev}: {shown}");
                assert!(!shown.contains(",UP") && !shown.contains("<UP"), "{netdev}: {shown}");
                assert_eq!(rig.name(netdev), new);
                assert_eq!(rig.with(|card, cx| card.elsewhere(cx)), []);
            }
        }
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_name_that_is_taken_at_home_becomes_dev_and_a_number() {
    in_own_namespaces("a_name_that_is_taken_at_home_becomes_dev_and_a_number", || {
        let rig = Rig::with_vfs(1);
        let mut name = rig.name(vf(0));
        // What is taken at home: the name; that and `dev` with the old number; an alternative name and the number.
        for taken in ["net1", "net1 dev$N", "net1 dev$N dev0", "$N"] {
            let netns = Netns::named("pod");
            sh(&format!("ip link set {name} netns pod name net1; ip -n pod link property add dev net1 altname alt1"));
            let index = sh("ip -n pod -o link show net1 | cut -d: -f1").trim().to_owned();
            let mut blockers = Vec::new();
            for taken in taken.split(' ').map(|word| word.replace("$N", &index)) {
                match taken.parse::<u32>() {
                    Ok(number) => sh(&format!("ip link add numbered index {number} type bridge")),
                    Err(_) => sh(&format!("ip link add {taken} type bridge")),
                };
                blockers.push(if taken == index { "numbered".to_owned() } else { taken });
            }
            sh(&format!("ip link property add dev {} altname alt1", blockers[0]));
            drop(netns);
            let expected = match blockers.len() {
                1 if blockers[0] == "numbered" => "net1".to_owned(),
                1 => format!("dev{index}"),
                2 => "dev0".to_owned(),
                _ => "dev1".to_owned(),
            };
            eventually(&format!("ip link show {expected} | grep -qv alt1"));
            assert_eq!(index_of(&expected).to_string() == index, taken != "$N", "{taken}");
            assert_eq!(rig.name(vf(0)), expected, "{taken}");
            name = expected;
            blockers.iter().for_each(|blocker| drop(sh(&format!("ip link del {blocker}"))));
        }
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn a_netdev_is_followed_from_namespace_to_namespace_and_two_cards_are_told_apart() {
    in_own_namespaces("a_netdev_is_followed_from_namespace_to_namespace_and_two_cards_are_told_apart", || {
        let place = Place::prepare().unwrap();
        let configs = ["0000:08:00.0", "0000:09:00.0"]
            .map(|address| CardConfig { address: address.parse().unwrap(), ..CardConfig::default() });
        let rigs = configs.map(|config| {
            let rig = Rig::at(&place, config);
            rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
            rig.make(&vf_ports(2));
            rig
        });
        let heard = Arc::new(Mutex::new(Vec::new()));
        for (n, rig) in rigs.iter().enumerate() {
            let ours = Arc::clone(&heard);
            let on_change = move |_: &mut Locked<'_, Unlocked>, netdev: Resource, change: NetdevChange| {
                ours.lock().unwrap().push((n, netdev, change));
            };
            rig.with(|card, cx| card.on_netdev_change(cx, Arc::new(on_change)));
        }
        let spaces = ["a", "b", "c"].map(Netns::named);
        // Both cards' VF 0 go through all three namespaces, with a name of its own in each.
        sh("ip link set enp8s0f0v0 netns a name x1; ip link set enp9s0f0v0 netns a name y1");
        sh("ip -n a link set x1 netns b name x2; ip -n a link set y1 netns b name y2");
        sh("ip -n b link set y2 mtu 3000; ip -n b link set x2 mtu 2000");
        sh("ip -n b link set x2 netns c name x3; ip -n b link set y2 netns c name y3; ip -n c link set y3 name y4");
        for rig in &rigs {
            eventually_that(|| rig.with(|card, cx| card.elsewhere(cx)) == [vf(0)]);
        }
        assert_eq!(rigs[0].name(vf(0)), "enp8s0f0v0", "its last name at home");
        drop(spaces);
        eventually("ip link show x3 | grep -q 'mtu 2000' && ip link show y4 | grep -q 'mtu 3000'");
        let back = |name: &str| NetdevChange::Back(name.to_owned());
        eventually_that(|| heard.lock().unwrap().len() == 4);
        let mut heard = heard.lock().unwrap().clone();
        heard.sort_by_key(|(n, _, change)| (*n, *change != NetdevChange::Away));
        let expected = [(0, NetdevChange::Away), (0, back("x3")), (1, NetdevChange::Away), (1, back("y4"))];
        assert_eq!(heard, expected.map(|(n, change)| (n, vf(0), change)));
        rigs.iter().for_each(|rig| assert_eq!(rig.complaints(), [""; 0]));
    });
}

#[test]
fn what_is_deleted_in_another_namespace_comes_home_and_what_is_unmade_does_not() {
    in_own_namespaces("what_is_deleted_in_another_namespace_comes_home_and_what_is_unmade_does_not", || {
        let rig = Rig::with_vfs(2);
        let pod = Netns::named("pod");
        sh("ip link set enp8s0f0v0 netns pod; ip link set enp8s0f0v1 netns pod name net2");
        let elsewhere = || {
            let mut elsewhere = rig.with(|card, cx| card.elsewhere(cx));
            elsewhere.sort();
            elsewhere
        };
        // The kernel tells the card of what happens there once it has looked where the netdev is.
        eventually_that(|| elsewhere() == [vf(0), vf(1)]);
        sh("ip -n pod link set enp8s0f0v0 name net1; ip -n pod link del net1");
        eventually("ip link show net1");
        rig.unmake(&[vf(1)]);
        sh("! ip -n pod link show net2 2>/dev/null");
        assert_eq!(elsewhere(), []);
        // The next one has nothing of it.
        rig.make(&[vf(1)]);
        assert_eq!(rig.name(vf(1)), "enp8s0f0v1");
        sh("ip link show enp8s0f0v1 | grep 'mtu 1500'");
        drop(pod);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn the_mtu_of_a_representor_becomes_its_functions_in_any_namespace() {
    in_own_namespaces("the_mtu_of_a_representor_becomes_its_functions_in_any_namespace", || {
        let rig = Rig::with_vfs(1);
        rig.to_switchdev(1);
        let (named, of_a_process) = (Netns::named("pod"), Netns::of_a_process());
        let mut mtu = 1_600;
        let places = [None, Some(&named), Some(&of_a_process)];
        for of_rep in places {
            for of_vf in places {
                for (name, place) in [("enp8s0f0npf0vf0", of_rep), ("enp8s0f0v0", of_vf)] {
                    let to = place.map(|place| format!("ip link set {name} netns {}", place.id()));
                    to.iter().for_each(|to| drop(sh(to)));
                }
                let exec = |place: Option<&Netns>| place.map(Netns::exec).unwrap_or_default();
                // Twice: after the card has looked where it is, and while it knows.
                for _ in 0..2 {
                    mtu += 100;
                    sh(&format!("{} ip link set enp8s0f0npf0vf0 mtu {mtu}", exec(of_rep)));
                    eventually(&format!("{} ip link show enp8s0f0v0 | grep -q 'mtu {mtu} '", exec(of_vf)));
                }
                let back = |place: Option<&Netns>, name| {
                    place.map(|place| sh(&format!("{} ip link set {name} netns {}", place.exec(), std::process::id())))
                };
                // What its user has given to a function stays when the representor comes back.
                sh(&format!("{} ip link set enp8s0f0v0 mtu 1555", exec(of_vf)));
                back(of_rep, "enp8s0f0npf0vf0");
                back(of_vf, "enp8s0f0v0");
                eventually_that(|| rig.with(|card, cx| card.elsewhere(cx)).is_empty());
                sh("ip link show enp8s0f0v0 | grep 'mtu 1555'");
            }
        }
        // Nor does it change when the representor comes home from a namespace that has died.
        sh(&format!("ip link set enp8s0f0npf0vf0 netns {}", of_a_process.id()));
        sh(&format!("{} ip link set enp8s0f0npf0vf0 mtu 4000", of_a_process.exec()));
        eventually("ip link show enp8s0f0v0 | grep -q 'mtu 4000 '");
        sh("ip link set enp8s0f0v0 mtu 1555");
        drop((named, of_a_process));
        eventually("ip link show enp8s0f0npf0vf0 | grep -q 'mtu 4000 '");
        sh("ip link set enp8s0f0npf0vf0 up; ip link set enp8s0f0v0 up");
        eventually("ip link show enp8s0f0v0 | grep -q LOWER_UP");
        sh("ip link show enp8s0f0v0 | grep 'mtu 1555'");
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

fn make_vfs(rig: &Rig) {
    rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
    rig.make(&vf_ports(3));
}

/// A process with a card, which prints that it has one and then waits to be killed: the other half of the next test.
#[test]
fn owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let rig = Rig::new(CardConfig::default());
    make_vfs(&rig);
    println!("READY");
    std::thread::sleep(std::time::Duration::from_secs(60));
    drop(rig);
}

#[test]
fn a_netdev_that_is_deleted_while_its_card_is_taken_over_is_made_anew() {
    in_own_namespaces("a_netdev_that_is_deleted_while_its_card_is_taken_over_is_made_anew", || {
        let mut child = start_owner();
        child.kill().unwrap();
        child.wait().unwrap();
        let rig = Rig::taking_over(CardConfig::default(), |rig| {
            // The card has listed what there is, and not heard yet that it is gone.
            sh("ip link del enp8s0f0v0; ip link del enp8s0f0v2");
            make_vfs(rig);
        });
        sh("for n in 0 1 2; do ip link set enp8s0f0v$n up; done");
        let all: Vec<Resource> =
            [Resource::Function(PF), Resource::PfNetdev(PF)].into_iter().chain([0, 1, 2].map(vf)).collect();
        assert_eq!(rig.resources(), all);
        eventually("[ $(ip link show | grep -c 'enp8s0f0v[012].*LOWER_UP') = 3 ]");
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn netdevs_that_are_elsewhere_when_the_owner_is_killed_come_home_all_the_same() {
    in_own_namespaces("netdevs_that_are_elsewhere_when_the_owner_is_killed_come_home_all_the_same", || {
        let mut child = start_owner();
        let (dies_meanwhile, pod, container) = (Netns::named("gone"), Netns::named("pod"), Netns::of_a_process());
        sh("ip link set enp8s0f0v0 netns gone name net0");
        child.kill().unwrap();
        child.wait().unwrap();
        sh("ip link set enp8s0f0v1 netns pod name net1");
        sh(&format!("ip link set enp8s0f0v2 netns {} name net2", container.id()));
        sh("ip -n pod link set net1 mtu 4100");
        drop(dies_meanwhile);
        eventually("! ip -n esw-0000:08:00.0 link show p0v0 2>/dev/null");

        let rig = Rig::taking_over(CardConfig::default(), make_vfs);
        // Nothing is known any more of one whose namespace died while there was no process: it is as at first.
        sh("ip link show enp8s0f0v0");
        assert_eq!(rig.name(vf(0)), "enp8s0f0v0");
        let mut elsewhere = rig.with(|card, cx| card.elsewhere(cx));
        elsewhere.sort();
        assert_eq!(elsewhere, [vf(1), vf(2)]);
        sh(&format!("{} ip link set net2 name net3", container.exec()));
        drop((pod, container));
        eventually("ip link show net1 | grep -q 'mtu 4100' && ip link show net3");
        assert_eq!([1, 2].map(|n| rig.name(vf(n))), ["net1", "net3"]);
        assert_eq!(rig.complaints(), [""; 0]);
    });
}
