//! Notifies representors of pairing: of the peers with whose E-Switches theirs is paired.
//!
//! E-Switches are paired under the devcom component, one table at a time, with the representor lock not held. The table
//! keeps the peers, so that a representor that is loaded later, under the representor lock alone, is notified when it
//! is loaded. Each row keeps which notifications were delivered: a loaded representor whose driver takes pairing knows
//! the present pairings, and one that is not loaded knows none.

use lockdep::Locked;

use super::{Rep, RepEvent, RepOps, RepTable, rows};
use crate::card::CardError;
use crate::error::{Error, Result};
use crate::eswitch::OpsTable;
use crate::ids::{PfIndex, PfSet, RepType, Vport};
use crate::lock_order::{RepCallback, Representors};

impl Rep {
    /// Notifies one representor, and notes what it knows now.
    fn notify(
        &mut self,
        cx: &mut Locked<'_, RepCallback>,
        ops: &dyn RepOps,
        ty: RepType,
        event: RepEvent,
    ) -> Result<(), CardError> {
        let outcome = ops.event(cx, self.vport, event);
        let knows = &mut self.knows[ty.index()];
        match event {
            RepEvent::Pair(peer) if outcome.is_ok() => knows.insert(peer),
            RepEvent::Pair(_) => {}
            RepEvent::Unpair(peer) => knows.remove(peer),
        }
        outcome
    }

    /// Notifies one representor that each pairing it knows has ended. Cannot fail, as unloading cannot.
    fn withdraw_all(&mut self, cx: &mut Locked<'_, RepCallback>, ops: &dyn RepOps, ty: RepType) {
        for peer in self.knows[ty.index()].iter() {
            let _ = self.notify(cx, ops, ty, RepEvent::Unpair(peer));
        }
    }
}

impl RepTable {
    /// Notifies loaded representors that the E-Switch was paired with a peer's.
    ///
    /// # Errors
    /// The error of the first representor that refused. Those that were notified before it have been notified of the
    /// opposite.
    pub(crate) fn pair(&mut self, cx: &mut Locked<'_, Representors>, ops: &OpsTable, peer: PfIndex) -> Result<()> {
        self.peers.insert(peer);
        for (ty, ops_of_type) in ops_that_take_pairing(ops) {
            let unaware = self.reps.iter_mut().filter(|r| r.loaded[ty.index()] && !r.knows[ty.index()].contains(peer));
            let mut cx_of_calls = cx.narrow();
            let refused = unaware
                .map(|rep| rep.notify(&mut cx_of_calls, ops_of_type, ty, RepEvent::Pair(peer)))
                .find_map(Result::err);
            if let Some(source) = refused {
                self.unpair(cx, ops, peer);
                return Err(Error::Card {
                    operation: format!("pci/{}: pairing with pf{}", self.address, peer.0),
                    source,
                });
            }
        }
        Ok(())
    }

    /// Notifies the representors that know of a pairing that it has ended. Cannot fail.
    pub(crate) fn unpair(&mut self, cx: &mut Locked<'_, Representors>, ops: &OpsTable, peer: PfIndex) {
        self.peers.remove(peer);
        for (ty, ops) in ops_that_take_pairing(ops) {
            for rep in self.reps.iter_mut().filter(|rep| rep.knows[ty.index()].contains(peer)) {
                let _ = rep.notify(&mut cx.narrow(), ops, ty, RepEvent::Unpair(peer));
            }
        }
    }

    /// Notifies representors of a type that have just been loaded of every present pairing. Returns those that refused
    /// one: they know of no pairing, and must not stay loaded.
    pub(super) fn notify_pairings(
        &mut self,
        cx: &mut Locked<'_, RepCallback>,
        ops: &dyn RepOps,
        ty: RepType,
        loaded: &[Vport],
    ) -> Vec<(Vport, CardError)> {
        if self.peers.is_empty() || !ops.takes_pairing() {
            return Vec::new();
        }
        let mut failed = Vec::new();
        for rep in rows(&mut self.reps, loaded) {
            let outcome = self.peers.iter().try_for_each(|peer| rep.notify(cx, ops, ty, RepEvent::Pair(peer)));
            if let Err(error) = outcome {
                rep.withdraw_all(cx, ops, ty);
                failed.push((rep.vport, error));
            }
        }
        failed
    }

    /// Notifies representors of a type that are about to be unloaded that the pairings they know have ended.
    pub(super) fn withdraw_pairings(
        &mut self,
        cx: &mut Locked<'_, RepCallback>,
        ops: &dyn RepOps,
        ty: RepType,
        loaded: &[Vport],
    ) {
        if self.peers.is_empty() || !ops.takes_pairing() {
            return;
        }
        for rep in rows(&mut self.reps, loaded) {
            rep.withdraw_all(cx, ops, ty);
        }
    }

    /// The representors that know of other pairings than these. At rest there are none.
    pub(crate) fn misinformed(&self, ops: &OpsTable, paired: PfSet) -> Vec<(Vport, RepType)> {
        let takes = ops.each_ref().map(|ops| ops.as_ref().is_some_and(|ops| ops.takes_pairing()));
        let should_know = |rep: &Rep, ty: RepType| {
            if rep.loaded[ty.index()] && takes[ty.index()] { paired } else { PfSet::default() }
        };
        let wrong = |rep: &Rep, ty: RepType| rep.knows[ty.index()] != should_know(rep, ty);
        let of_row = |rep| RepType::ALL.into_iter().filter(move |ty| wrong(rep, *ty)).map(|ty| (rep.vport, ty));
        self.reps.iter().flat_map(of_row).collect()
    }
}

/// The types whose driver takes pairing, with their ops.
fn ops_that_take_pairing(ops: &OpsTable) -> impl Iterator<Item = (RepType, &dyn RepOps)> {
    let of_type = |ty: RepType| ops[ty.index()].as_deref().filter(|ops| ops.takes_pairing()).map(|ops| (ty, ops));
    RepType::ALL.into_iter().filter_map(of_type)
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;
    use std::sync::Arc;

    use lockdep::{Domain, Mutex, OnReport};

    use super::*;
    use crate::card::FailedCreate;
    use crate::eswitch::{ESwitch, LoadPolicy};
    use crate::event::Events;
    use crate::lock_order::{CardState, RepOps as RepOpsClass};

    const PEERS: [PfIndex; 2] = [PfIndex(1), PfIndex(2)];
    const VFS: [Vport; 2] = [Vport::Vf(0), Vport::Vf(1)];

    /// A driver that notes its calls.
    struct Notes {
        calls: Mutex<CardState, Vec<String>>,
        /// This vport refuses a pairing with this peer.
        refuses: Option<(Vport, PfIndex)>,
    }

    impl Notes {
        fn note<L>(&self, cx: &mut Locked<'_, L>, call: &str, vports: &[Vport]) {
            let mut calls = self.calls.lock_leaf(cx);
            calls.extend(vports.iter().map(|vport| format!("{call} {vport}")));
        }
    }

    impl RepOps for Notes {
        fn load_uplink(&self, cx: &mut Locked<'_, Representors>) -> Result<(), CardError> {
            self.note(cx, "load", &[Vport::Uplink]);
            Ok(())
        }
        fn unload_uplink(&self, cx: &mut Locked<'_, Representors>) {
            self.note(cx, "unload", &[Vport::Uplink]);
        }
        fn load(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) -> Vec<FailedCreate> {
            self.note(cx, "load", vports);
            Vec::new()
        }
        fn unload(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) {
            self.note(cx, "unload", vports);
        }
        fn takes_pairing(&self) -> bool {
            true
        }
        fn identify(&self, _: &mut dyn Hasher) {}
        fn event(&self, cx: &mut Locked<'_, RepCallback>, vport: Vport, event: RepEvent) -> Result<(), CardError> {
            let (call, peer) = match event {
                RepEvent::Pair(peer) => ("pair", peer),
                RepEvent::Unpair(peer) => ("unpair", peer),
            };
            if call == "pair" && self.refuses == Some((vport, peer)) {
                return Err(CardError::Planned("pair".into()));
            }
            self.note(cx, &format!("{call} {}", peer.0), &[vport]);
            Ok(())
        }
        fn protocol_device(&self, _: &mut Locked<'_, RepOpsClass>, _: Vport) -> Option<String> {
            None
        }
    }

    /// Runs `f` with a table whose uplink is loaded and whose VFs are not. Its last argument returns the calls since
    /// then.
    fn story(
        refuses: Option<(Vport, PfIndex)>,
        f: impl FnOnce(&mut RepTable, &mut Locked<'_, Representors>, &OpsTable, &dyn Fn() -> Vec<String>),
    ) {
        let domain = Domain::checked(OnReport::Panic);
        lockdep::enter(&domain, "story", |cx| {
            let eswitch = ESwitch::new(PfIndex(0), "0000:08:00.0".parse().unwrap());
            let notes = Arc::new(Notes { calls: Mutex::new(Vec::new()), refuses });
            let ops = Arc::clone(&notes) as Arc<dyn RepOps>;
            eswitch.register(cx, &Events::new(Vec::new()), RepType::Eth, ops).unwrap();
            eswitch.with_representors(cx, |table, cx| {
                let ops = eswitch.ops(cx);
                table.add(&VFS);
                table.load(cx, &Events::new(Vec::new()), &ops, &[Vport::Uplink], LoadPolicy::Strict).unwrap();
                notes.calls.lock_leaf(cx).clear();
                let calls = || lockdep::enter(&domain, "calls", |cx| std::mem::take(&mut *notes.calls.lock_leaf(cx)));
                f(table, cx, &ops, &calls);
            });
        });
    }

    #[test]
    fn a_representor_is_notified_of_pairings_when_loaded_and_of_their_end_when_unloaded() {
        story(None, |table, cx, ops, calls| {
            table.pair(cx, ops, PEERS[0]).unwrap();
            assert_eq!(calls(), ["pair 1 uplink"]);
            table.load(cx, &Events::new(Vec::new()), ops, &VFS, LoadPolicy::Strict).unwrap();
            assert_eq!(calls(), ["load vf0", "load vf1", "pair 1 vf0", "pair 1 vf1"]);
            table.unload(cx, &Events::new(Vec::new()), ops, &VFS[..1]);
            assert_eq!(calls(), ["unpair 1 vf0", "unload vf0"]);
            assert_eq!(table.misinformed(ops, [PEERS[0]].into_iter().collect()), []);
            table.unpair(cx, ops, PEERS[0]);
            assert_eq!(calls(), ["unpair 1 uplink", "unpair 1 vf1"]);
            assert_eq!(table.misinformed(ops, PfSet::default()), []);
        });
    }

    #[test]
    fn a_pairing_that_one_representor_refuses_is_withdrawn_from_the_others() {
        story(Some((VFS[0], PEERS[1])), |table, cx, ops, calls| {
            table.load(cx, &Events::new(Vec::new()), ops, &VFS, LoadPolicy::Strict).unwrap();
            table.pair(cx, ops, PEERS[0]).unwrap();
            calls();
            table.pair(cx, ops, PEERS[1]).unwrap_err();
            assert_eq!(calls(), ["pair 2 uplink", "unpair 2 uplink"]);
            assert_eq!(table.misinformed(ops, [PEERS[0]].into_iter().collect()), []);
        });
    }

    #[test]
    fn a_loaded_representor_that_refuses_a_pairing_does_not_stay_loaded() {
        story(Some((VFS[0], PEERS[1])), |table, cx, ops, calls| {
            for peer in PEERS {
                table.pair(cx, ops, peer).unwrap();
            }
            calls();
            table.load(cx, &Events::new(Vec::new()), ops, &VFS, LoadPolicy::Lenient).unwrap_err();
            let both = ["load vf0", "load vf1", "pair 1 vf0", "unpair 1 vf0", "pair 1 vf1", "pair 2 vf1", "unload vf0"];
            assert_eq!(calls(), both);
            assert!(!table.is_loaded(VFS[0], RepType::Eth) && table.is_loaded(VFS[1], RepType::Eth));
            assert_eq!(table.failures().len(), 1);
            assert_eq!(table.misinformed(ops, PEERS.into_iter().collect()), []);
        });
    }
}
