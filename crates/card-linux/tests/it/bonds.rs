//! The kernel's own bonds and teams over the PFs' netdevs. Where the kernel has none each test prints that it is
//! skipped; `cargo xtask vm` runs them on a kernel that has both.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::*;
use card_linux::{BondWatch, Bonds, LinuxCard, Place};
use eswitch::card::{CardError, Resource};
use eswitch::lag::{Bond, BondPlan, LagMode, TxType};
use eswitch::{CardConfig, Engine, PfIndex};
use lockdep::{Domain, Locked, OnReport, Threads, Unlocked};

const PF1: PfIndex = PfIndex(1);

/// Whether the kernel has a kind of netdev; if not, says that the test is skipped.
fn has(test: &str, kind: &str, config: &str) -> bool {
    let made = Command::new("ip").args(["link", "add", "probe", "type", kind]).output();
    if made.is_ok_and(|output| output.status.success()) {
        sh("ip link del probe");
        return true;
    }
    eprintln!("{test} skipped: this kernel has no {kind} ({config}); `cargo xtask vm` has one that does");
    false
}

/// A card of two ports, and a watch on the bond that they are in.
struct Pair {
    rig: Rig,
    bonds: Arc<Bonds>,
    watch: BondWatch,
    domain: Arc<Domain>,
}

impl Pair {
    fn new() -> Self {
        let rig = Rig::new(CardConfig { pfs: 2, ..CardConfig::default() });
        for pf in [PF, PF1] {
            rig.make(&[Resource::Function(pf), Resource::PfNetdev(pf)]);
        }
        let (bonds, watch) = rig.card.bonds().unwrap();
        Self { rig, bonds, watch, domain: Domain::checked(OnReport::Panic) }
    }

    fn look(&mut self) -> Option<Bond> {
        lockdep::enter(&self.domain, "test", |cx| self.watch.look(cx))
    }

    /// Watches until the bond is as it should be.
    fn watch_until(&mut self, what: &str, wanted: impl Fn(&Option<Bond>) -> bool) {
        let (late, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let clock = std::thread::spawn({
            let (late, done, bonds) = (Arc::clone(&late), Arc::clone(&done), Arc::clone(&self.bonds));
            move || {
                for _ in 0..1_000 {
                    if done.load(Ordering::SeqCst) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                late.store(true, Ordering::SeqCst);
                bonds.wake();
            }
        });
        loop {
            self.watch.wait();
            let found = self.look();
            if wanted(&found) {
                break;
            }
            assert!(!late.load(Ordering::SeqCst), "{what}: never seen; it is {found:?}\n{}", sh("ip -d -o link"));
        }
        done.store(true, Ordering::SeqCst);
        clock.join().unwrap();
    }

    fn watch_until_is(&mut self, name: &str, tx: TxType, ports: &[PfIndex], foreign: &[&str]) {
        let wanted = bond(name, tx, ports, foreign);
        self.watch_until(&format!("{wanted:?}"), |found| *found == Some(wanted.clone()));
    }

    fn set(&self, plan: &BondPlan) -> Result<(), CardError> {
        lockdep::enter(&self.domain, "test", |cx| self.bonds.set(cx, plan))
    }
}

fn bond(name: &str, tx: TxType, ports: &[PfIndex], foreign: &[&str]) -> Bond {
    let foreign = foreign.iter().map(ToString::to_string).collect();
    Bond { name: name.to_owned(), tx, ports: ports.iter().copied().collect(), foreign }
}

fn plan(mode: &str, active: Option<PfIndex>) -> BondPlan {
    let (name, mode) = ("bond0".to_owned(), mode.to_owned());
    BondPlan { name, mode, ports: vec![PF, PF1], with: Vec::new(), active }
}

#[test]
fn a_bond_made_by_hand_is_followed() {
    let name = "a_bond_made_by_hand_is_followed";
    in_own_namespaces(name, || {
        if !has(name, "bond", "CONFIG_BONDING") {
            return;
        }
        let mut pair = Pair::new();
        assert_eq!(pair.look(), None);
        let active = |pf| TxType::ActiveBackup(Some(pf));

        // Ports are added one after the other.
        sh("ip link add bond0 type bond mode active-backup miimon 20 && ip link set bond0 up");
        sh("ip link set enp8s0f0np0 master bond0");
        pair.watch_until_is("bond0", active(PF), &[PF], &[]);
        sh("ip link set enp8s0f1np1 master bond0");
        pair.watch_until_is("bond0", active(PF), &[PF, PF1], &[]);

        // Its active port changes, by hand and because the carrier is lost.
        sh("ip link set bond0 type bond active_slave enp8s0f1np1");
        pair.watch_until_is("bond0", active(PF1), &[PF, PF1], &[]);
        sh("ip -n esw-0000:08:00.0 link set up1 down");
        pair.watch_until_is("bond0", active(PF), &[PF, PF1], &[]);
        sh("ip -n esw-0000:08:00.0 link set up0 down");
        pair.watch_until_is("bond0", TxType::ActiveBackup(None), &[PF, PF1], &[]);
        sh("ip -n esw-0000:08:00.0 link set up0 up; ip -n esw-0000:08:00.0 link set up1 up");
        pair.watch_until("an active port", |found| {
            matches!(found, Some(Bond { tx: TxType::ActiveBackup(Some(_)), .. }))
        });

        // It is renamed, another netdev is put into it, a port is taken out.
        sh("ip link set bond0 down && ip link set bond0 name uplink && ip link set uplink up");
        pair.watch_until("the name", |found| found.as_ref().is_some_and(|bond| bond.name == "uplink"));
        sh("ip link add eth7 type veth peer eth8 && ip link set eth7 master uplink");
        pair.watch_until("eth7", |found| found.as_ref().is_some_and(|bond| bond.foreign == ["eth7"]));
        sh("ip link set eth7 name eth9 down || ip link set eth7 down && ip link set eth7 name eth9");
        pair.watch_until("eth9", |found| found.as_ref().is_some_and(|bond| bond.foreign == ["eth9"]));
        sh("ip link set eth9 nomaster");
        pair.watch_until("no eth9", |found| found.as_ref().is_some_and(|bond| bond.foreign.is_empty()));
        sh("ip link set enp8s0f0np0 nomaster");
        pair.watch_until("one port", |found| found.as_ref().is_some_and(|bond| bond.ports == BTreeSet::from([PF1])));

        // Its mode is changed, for which it must be down and empty.
        sh("ip link set enp8s0f1np1 nomaster");
        pair.watch_until("no port", Option::is_none);
        for (mode, tx) in [
            ("802.3ad", TxType::Hash),
            ("balance-xor", TxType::Hash),
            ("balance-rr", TxType::Other("balance-rr".to_owned())),
        ] {
            sh(&format!("ip link set uplink down && ip link set uplink type bond mode {mode}"));
            sh(
                "for n in enp8s0f0np0 enp8s0f1np1; do ip link set $n down; ip link set $n master uplink || exit 1; done",
            );
            pair.watch_until_is("uplink", tx, &[PF, PF1], &[]);
            sh("ip link set enp8s0f0np0 nomaster; ip link set enp8s0f1np1 nomaster");
            pair.watch_until("no port", Option::is_none);
        }

        // A watch that begins later finds it. A port is moved away, and the bond is deleted.
        sh("ip link set enp8s0f1np1 master uplink; ip link set enp8s0f0np0 master uplink");
        let (_bonds, mut late) = pair.rig.card.bonds().unwrap();
        let found = lockdep::enter(&pair.domain, "late", |cx| late.look(cx));
        assert_eq!(found.unwrap().ports, BTreeSet::from([PF, PF1]));
        sh("ip netns add away && ip link set enp8s0f1np1 netns away");
        pair.watch_until("one port", |found| found.as_ref().is_some_and(|bond| bond.ports == BTreeSet::from([PF])));
        sh("ip link del uplink");
        pair.watch_until("no bond", Option::is_none);
    });
}

#[test]
fn what_was_lost_is_made_up_for() {
    let name = "what_was_lost_is_made_up_for";
    in_own_namespaces(name, || {
        if !has(name, "bond", "CONFIG_BONDING") {
            return;
        }
        let mut pair = Pair::new();
        assert_eq!(pair.look(), None);
        // No event is read while the kernel sends more than the socket has room for; the last ones are about the bond.
        let storm = "i=0; while [ $i -lt 1000 ]; do
            echo link set enp8s0f0np0 mtu 1400; echo link set enp8s0f0np0 mtu 1500; i=$((i+1)); done";
        sh(&format!("({storm}) | ip -batch -"));
        sh("ip link add bond0 type bond mode 802.3ad");
        sh("ip link set enp8s0f0np0 master bond0; ip link set enp8s0f1np1 master bond0");
        pair.watch.wait();
        assert!(pair.watch.overruns() > 0, "no event was lost");
        assert_eq!(pair.look(), Some(bond("bond0", TxType::Hash, &[PF, PF1], &[])));
        // From now on it receives events again.
        sh("ip link del bond0");
        pair.watch_until("no bond", Option::is_none);
    });
}

#[test]
fn a_bond_is_made_changed_kept_whole_and_deleted() {
    let name = "a_bond_is_made_changed_kept_whole_and_deleted";
    in_own_namespaces(name, || {
        if !has(name, "bond", "CONFIG_BONDING") {
            return;
        }
        let mut pair = Pair::new();
        pair.set(&plan("802.3ad", None)).unwrap();
        assert_eq!(pair.look(), Some(bond("bond0", TxType::Hash, &[PF, PF1], &[])));
        sh("ip link show bond0 | grep -q ',UP'");

        // It gets another mode, another active port, another netdev.
        pair.set(&plan("active-backup", Some(PF1))).unwrap();
        assert_eq!(pair.look(), Some(bond("bond0", TxType::ActiveBackup(Some(PF1)), &[PF, PF1], &[])));
        pair.set(&plan("active-backup", Some(PF))).unwrap();
        assert_eq!(pair.look(), Some(bond("bond0", TxType::ActiveBackup(Some(PF)), &[PF, PF1], &[])));
        let with = BondPlan { with: vec!["eth7".to_owned()], ports: vec![PF], ..plan("balance-xor", None) };
        pair.set(&with).unwrap();
        assert_eq!(pair.look(), Some(bond("bond0", TxType::Hash, &[PF], &["eth7"])));

        // A port whose netdev is removed and appears again is put back; one that a user takes out stays out.
        pair.set(&plan("active-backup", Some(PF1))).unwrap();
        pair.rig.unmake(&[Resource::PfNetdev(PF1)]);
        pair.watch_until_is("bond0", TxType::ActiveBackup(Some(PF)), &[PF], &[]);
        pair.rig.make(&[Resource::PfNetdev(PF1)]);
        pair.watch_until("the port is back", |found| found.as_ref().is_some_and(|bond| bond.ports.len() == 2));
        sh("ip link set enp8s0f1np1 nomaster");
        pair.watch_until("it was taken out", |found| found.as_ref().is_some_and(|bond| bond.ports.len() == 1));
        assert_eq!(pair.look().unwrap().ports, BTreeSet::from([PF]));

        // Bonds of others are not touched.
        sh("ip link add bond9 type bond && ip link set bond9 up && ip link add br9 type bridge");
        for taken in ["bond9", "br9"] {
            let refused = pair.set(&BondPlan { name: taken.to_owned(), ..plan("802.3ad", None) });
            assert_eq!(refused, Err(CardError::NameTaken { name: taken.to_owned() }));
            assert_eq!(lockdep::enter(&pair.domain, "test", |cx| pair.bonds.delete(cx, taken)), Ok(false));
        }
        assert_eq!(lockdep::enter(&pair.domain, "test", |cx| pair.bonds.delete(cx, "bond0")), Ok(true));
        assert_eq!(pair.look(), None);
        sh("ip link del bond9 && ip link del br9");

        // The bond that was made here is deleted when it is dropped.
        pair.set(&plan("802.3ad", None)).unwrap();
        drop(pair);
        assert_eq!(netdevs(), [""; 0]);
    });
}

#[test]
fn a_team_is_followed() {
    let name = "a_team_is_followed";
    in_own_namespaces(name, || {
        if !has(name, "team", "CONFIG_NET_TEAM") {
            return;
        }
        let mut pair = Pair::new();
        assert_eq!(pair.look(), None);
        sh("ip link add team0 type team");
        let has_teamnl = Command::new("teamnl").arg("-h").output().is_ok();
        if !has_teamnl {
            eprintln!("{name}: there is no teamnl to choose a mode with; only a team without one is looked at");
            sh("ip link set enp8s0f0np0 master team0");
            pair.watch_until("a team", |found| {
                found.as_ref().is_some_and(|bond| bond.tx == TxType::Other("*NOMODE* of a team".to_owned()))
            });
            return;
        }
        sh("teamnl team0 setoption mode activebackup");
        sh("ip link set enp8s0f0np0 master team0; ip link set enp8s0f1np1 master team0; ip link set team0 up");
        pair.watch_until_is("team0", TxType::ActiveBackup(None), &[PF, PF1], &[]);
        let port1 = sh("cat /sys/class/net/enp8s0f1np1/ifindex");
        sh(&format!("teamnl team0 setoption activeport {}", port1.trim()));
        pair.watch_until_is("team0", TxType::ActiveBackup(Some(PF1)), &[PF, PF1], &[]);
        sh("ip link set team0 down; ip link set enp8s0f0np0 nomaster; ip link set enp8s0f1np1 nomaster");
        pair.watch_until("no port", Option::is_none);
        for (mode, tx) in
            [("loadbalance", TxType::Hash), ("roundrobin", TxType::Other("roundrobin of a team".to_owned()))]
        {
            sh(&format!("teamnl team0 setoption mode {mode}"));
            sh("for n in enp8s0f0np0 enp8s0f1np1; do ip link set $n down; ip link set $n master team0 || exit 1; done");
            pair.watch_until_is("team0", tx, &[PF, PF1], &[]);
            sh("ip link set enp8s0f0np0 nomaster; ip link set enp8s0f1np1 nomaster");
            pair.watch_until("no port", Option::is_none);
        }
        sh("ip link del team0");
    });
}

/// Reports what is found to an engine, as `host` does.
fn follow(cx: &mut Locked<'_, Unlocked>, mut watch: BondWatch, engine: &Engine, over: &AtomicBool) {
    let mut reported = None;
    while !over.load(Ordering::SeqCst) {
        let bond = watch.look(cx);
        if bond != reported {
            engine.bond_changed(cx, bond.clone());
            reported = bond;
        }
        watch.wait();
    }
}

#[test]
fn a_storm_of_events_is_evaluated_a_few_times_and_ends_right() {
    let name = "a_storm_of_events_is_evaluated_a_few_times_and_ends_right";
    in_own_namespaces(name, || {
        if !has(name, "bond", "CONFIG_BONDING") {
            return;
        }
        let config = CardConfig { pfs: 2, ..CardConfig::default() };
        let domain = Domain::checked(OnReport::Panic);
        let card = Arc::new(LinuxCard::new(&Place::prepare().unwrap(), config.clone(), &domain).unwrap());
        let (bonds, watch) = card.bonds().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        lockdep::enter(&domain, "test", |cx| {
            let threads = Arc::new(Threads(Arc::clone(&domain)));
            let engine = Engine::start(cx, config, card.clone(), threads).unwrap();
            let follower = cx.spawn("bonds", {
                let (engine, over) = (Arc::clone(&engine), Arc::clone(&over));
                move |cx| follow(cx, watch, &engine, &over)
            });
            let until = |cx: &mut Locked<'_, Unlocked>, mode: LagMode| {
                for _ in 0..1_000 {
                    if engine.lag(cx).mode == mode {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                panic!("never {mode}: {:?}", engine.lag(cx));
            };
            sh("ip link add bond0 type bond mode active-backup; ip link set bond0 up");
            sh("ip link set enp8s0f0np0 master bond0; ip link set enp8s0f1np1 master bond0");
            until(cx, LagMode::Roce);
            let before = engine.lag_evaluations(cx);
            let flaps = "i=0; while [ $i -lt 300 ]; do
                echo link set bond0 type bond active_slave enp8s0f1np1;
                echo link set bond0 type bond active_slave enp8s0f0np0; i=$((i+1)); done";
            sh(&format!("({flaps}) | ip -batch -"));
            sh("ip link set bond0 type bond active_slave enp8s0f1np1");
            for _ in 0..500 {
                if engine.lag(cx).tx == [PF1] {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(engine.lag(cx).tx, [PF1]);
            let evaluations = engine.lag_evaluations(cx) - before;
            eprintln!("601 changes of the active port: {evaluations} evaluations");
            assert!(evaluations < 601, "{evaluations}");
            sh("ip link del bond0");
            until(cx, LagMode::None);
            over.store(true, Ordering::SeqCst);
            bonds.wake();
            follower.join(cx).unwrap();
            engine.shutdown(cx);
        });
        drop((card, bonds));
        assert_eq!(netdevs(), [""; 0]);
    });
}
