//! That operations on different ports do not wait for each other, and that those on one port do.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use eswitch::card::{Card, Resource};
use eswitch::{MacAddr, PfIndex, Vport};

use super::{Claims, Part, Sockets};
use crate::common::*;
use crate::layout::Slot;
use crate::socket::Socket;
use crate::sys;

/// How long a test waits for what must happen. It is no measure of anything: what has not happened by then, does not.
const LIMIT: Duration = Duration::from_secs(60);

/// A pair of sockets between the card and the kernel: the requests that the next operation sends inside the card
/// come through here, and stop here until they are let on.
struct Relay<'r> {
    rig: &'r Rig,
    held: mpsc::Receiver<()>,
    go_on: mpsc::Sender<()>,
}

impl<'r> Relay<'r> {
    /// Has the next operation use a relay that lets `sends` of its sends through and holds the next.
    fn for_next_operation(rig: &'r Rig, sends: usize) -> Self {
        let (near, far) = UnixDatagram::pair().unwrap();
        let shared = &rig.card.shared;
        let kernel = Socket::open(&shared.inside).unwrap().into_fd();
        let sockets =
            Sockets { inside: Socket::of_test(OwnedFd::from(near)), outside: Socket::open(&shared.home).unwrap() };
        rig.with(|card, cx| card.shared.use_next(cx, sockets));
        let (say_held, held) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        // It ends with the test's process: until then an operation may have these sockets.
        std::thread::spawn(move || relay(&far, &kernel, sends, &say_held, &may_go_on).unwrap());
        Self { rig, held, go_on }
    }

    fn wait_until_held(&self) {
        self.held.recv_timeout(LIMIT).expect("the operation has sent its requests");
    }

    fn let_go_on(&self) {
        self.go_on.send(()).unwrap();
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        // The next operations need no relay.
        self.rig.with(|card, cx| card.shared.idle.lock_leaf(cx).clear());
    }
}

fn relay(
    far: &UnixDatagram,
    kernel: &OwnedFd,
    mut sends: usize,
    say_held: &mpsc::Sender<()>,
    may_go_on: &mpsc::Receiver<()>,
) -> io::Result<Infallible> {
    let mut buffer = vec![0; 1 << 20];
    let mut is_held = false;
    loop {
        let [requests, answers] = sys::wait_readable([far.as_fd(), kernel.as_fd()], None)?;
        if answers {
            let len = sys::receive(kernel, &mut buffer)?;
            far.send(&buffer[..len])?;
        }
        if requests {
            let len = far.recv(&mut buffer)?;
            if sends == 0 && !is_held {
                is_held = true;
                // If the test has failed there is nobody to notify, and nothing to wait for.
                let _ = say_held.send(());
                let _ = may_go_on.recv();
            }
            sends = sends.saturating_sub(1);
            sys::send(kernel, &buffer[..len])?;
        }
    }
}

/// Runs what must end while something else is held, on a thread of its own.
fn must_end<'s, R: Send + 's>(scope: &'s Scope<'s, '_>, what: &str, f: impl FnOnce() -> R + Send + 's) -> R {
    let (done, wait) = mpsc::channel();
    scope.spawn(move || done.send(f()));
    wait.recv_timeout(LIMIT).unwrap_or_else(|_| {
        // The threads that are stuck would keep the scope, and with it the test, from ending.
        eprintln!("{what} waits for an operation on other ports");
        std::process::abort()
    })
}

/// A card with two PFs and `vfs` VFs on the first.
fn two_pfs(vfs: u16) -> Rig {
    let rig = Rig::new(eswitch::CardConfig { pfs: 2, ..eswitch::CardConfig::default() });
    let second = PfIndex(1);
    rig.make(&[Resource::Function(PF), Resource::PfNetdev(PF)]);
    rig.make(&[Resource::Function(second), Resource::PfNetdev(second)]);
    rig.make(&vf_ports(vfs));
    rig
}

/// Makes requests for VFs 0 to 3, for a new one and for the second PF, none of which may wait; `n` tells the rounds
/// apart.
fn others_do_not_wait<'s>(scope: &'s Scope<'s, '_>, rig: &'s Rig, n: u8) {
    let before = rig.resources();
    // A query of the books, and ones that ask the kernel.
    assert_eq!(must_end(scope, "name", move || rig.name(vf(1))), "enp8s0f0v1");
    assert_eq!(must_end(scope, "netns", move || rig.with(|card, cx| card.netns(cx, PF))), None);
    assert_eq!(must_end(scope, "resources", move || rig.resources()), before);
    // A VF's netdev is set, here and where a user has moved it.
    let mac = MacAddr([2, 0, 0, 0, 9, n]);
    for (vf_netdev, netns) in [(vf(0), ""), (vf(1), "-n away")] {
        must_end(scope, "set_mac", move || rig.with(|card, cx| card.set_mac(cx, &vf_netdev, mac))).unwrap();
        sh(&format!("ip {netns} link show {} | grep {mac}", rig.name(vf_netdev)));
    }
    // A PF's netdev is moved away and back.
    for name in [Some("away"), None] {
        must_end(scope, "set_netns", move || rig.with(|card, cx| card.set_netns(cx, PfIndex(1), name))).unwrap();
    }
    // Another VF, and its representor, are made and unmade.
    let (netdev, representor) = (vf(200), rep(Vport::Vf(200)));
    must_end(scope, "create", move || rig.make(&[netdev]));
    must_end(scope, "create", move || rig.make(&[representor]));
    must_end(scope, "destroy", move || rig.unmake(&[representor]));
    must_end(scope, "destroy", move || rig.unmake(&[netdev]));
    assert_eq!(must_end(scope, "resources", move || rig.resources()), before);
    // The watcher brings back what a user has deleted.
    sh("ip link del enp8s0f0v2");
    eventually("ip link show enp8s0f0v2");
}

/// Whether an operation has claimed a VF of the first PF.
fn is_claimed(rig: &Rig, n: u16) -> bool {
    let part = Part::Vport(Slot { pf: PF, vport: Vport::Vf(n) });
    rig.with(|card, cx| !card.shared.books.lock_leaf(cx).claims.is_free(part))
}

#[test]
fn a_request_for_one_port_does_not_wait_for_a_batch_for_others() {
    in_own_namespaces("operation::tests::a_request_for_one_port_does_not_wait_for_a_batch_for_others", || {
        let rig = two_pfs(4);
        let rig = &rig;
        sh("ip netns add away && ip link set enp8s0f0v1 netns away");
        // What the watcher does about that must not be the next operation.
        eventually_that(|| rig.with(|card, cx| card.elsewhere(cx)).contains(&vf(1)));
        let before = rig.resources();
        let batch: Vec<Resource> = (10..150).map(vf).collect();
        std::thread::scope(|scope| {
            // Given a batch that has made half of its pairs, and whose next requests are not answered,
            let held = Relay::for_next_operation(rig, 1);
            let making = scope.spawn(|| rig.make(&batch));
            held.wait_until_held();
            // requests for other ports complete, and what is being made does not exist yet.
            assert_eq!(rig.resources(), before);
            others_do_not_wait(scope, rig, 1);
            // A request for one of its ports waits until it has ended.
            assert!(is_claimed(rig, 10));
            let mac = MacAddr([2, 0, 0, 0, 9, 9]);
            let later = scope.spawn(move || rig.with(|card, cx| card.set_mac(cx, &vf(10), mac)));
            held.let_go_on();
            making.join().unwrap();
            later.join().unwrap().unwrap();
            sh(&format!("ip link show enp8s0f0v10 | grep {mac}"));
            assert_eq!(rig.resources().len(), before.len() + batch.len());
            drop(held);

            // The same holds while they are unmade.
            let held = Relay::for_next_operation(rig, 0);
            let unmaking: ScopedJoinHandle<'_, ()> = scope.spawn(|| rig.unmake(&batch));
            held.wait_until_held();
            assert_eq!(rig.resources(), before);
            others_do_not_wait(scope, rig, 2);
            assert!(is_claimed(rig, 10));
            held.let_go_on();
            unmaking.join().unwrap();
            drop(held);
        });
        assert_eq!(rig.resources(), before);
        sh("! ip link show enp8s0f0v10 2>&1");
        assert_eq!(rig.complaints(), [""; 0]);
    });
}

#[test]
fn what_one_operation_is_making_is_not_deleted_with_the_group_of_another() {
    in_own_namespaces(
        "operation::tests::what_one_operation_is_making_is_not_deleted_with_the_group_of_another",
        || {
            let rig = two_pfs(4);
            let rig = &rig;
            std::thread::scope(|scope| {
                // Given a VF whose pair has been made, and that is not in the books yet,
                let held = Relay::for_next_operation(rig, 1);
                let making = scope.spawn(|| rig.make(&[vf(9)]));
                held.wait_until_held();
                sh("ip link show enp8s0f0v9");
                // when all VFs that are in the books are unmade,
                must_end(scope, "destroy", move || rig.unmake(&vf_ports(4)));
                // it stays, and comes to be.
                held.let_go_on();
                making.join().unwrap();
                sh("ip link show enp8s0f0v9 && ! ip link show enp8s0f0v0 2>&1");
            });
            assert!(rig.resources().contains(&vf(9)));
            assert_eq!(rig.complaints(), [""; 0]);
        },
    );
}

#[test]
fn parts_are_claimed_all_or_none() {
    let vport = |n| Part::Vport(Slot { pf: PfIndex(0), vport: Vport::Vf(n) });
    let mut claims = Claims::default();
    let first = claims.claim(&[vport(0), vport(1)]).unwrap();
    assert!(claims.claim(&[vport(2), vport(1)]).is_none());
    assert!(claims.is_free(vport(2)), "it has claimed none");
    assert!(claims.claim(&[Part::Bridges(PfIndex(0))]).is_some());
    claims.release(&[vport(0), vport(1)]);
    let second = claims.claim(&[vport(2), vport(1)]).unwrap();
    assert_ne!(first, second);
}

#[test]
fn groups_are_claimed_by_an_operation_that_is_alone_in_them_and_then_nothing_is_added() {
    let (pf, other) = (PfIndex(0), PfIndex(1));
    let vport = |pf, vport| Part::Vport(Slot { pf, vport });
    let mut claims = Claims::default();
    let sweeping = claims.claim(&[vport(pf, Vport::Vf(0))]).unwrap();
    let making = [vport(pf, Vport::Vf(1))];
    claims.claim(&making).unwrap();
    assert!(!claims.claim_groups(sweeping, pf), "another operation may add to them");
    claims.release(&making);
    // A PF's own netdev is in no group, and another PF's vports are in others.
    claims.claim(&[vport(pf, Vport::Uplink), vport(other, Vport::Vf(1))]).unwrap();
    assert!(claims.claim_groups(sweeping, pf));
    assert!(claims.claim(&making).is_none());
    assert!(claims.claim(&[vport(other, Vport::Vf(2))]).is_some());
    claims.release(&[vport(pf, Vport::Vf(0)), Part::Groups(pf)]);
    assert!(claims.claim(&making).is_some());
}

#[test]
fn what_changes_during_a_comparison_is_known() {
    let slot = |n| Slot { pf: PfIndex(0), vport: Vport::Vf(n) };
    let mut claims = Claims::default();
    let [before, during, after] = [0, 1, 2].map(|n| [Part::Vport(slot(n))]);
    claims.claim(&before).unwrap();
    claims.begin_comparison();
    claims.claim(&during).unwrap();
    claims.release(&during);
    claims.release(&before);
    assert_eq!([0, 1, 2].map(|n| claims.was_changing(slot(n))), [true, true, false]);
    claims.claim(&after).unwrap();
    assert!(claims.was_changing(slot(2)));
    claims.end_comparison();
    assert!(!claims.was_changing(slot(0)));
}
