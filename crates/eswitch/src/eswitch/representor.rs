//! The representor table of an E-Switch: which representors are loaded; loading and unloading.
//!
//! A caller that loads or unloads receives the table from the representor lock, with a token of that lock's level:
//! neither can be done without the lock. The tokens of callbacks limit what they can reach. Callbacks of an uplink have
//! a token at [`Representors`], from which a peer's table may be taken under declared nesting. Callbacks of every other
//! vport have a token at [`RepCallback`], from which no table can be taken, because they may be called for a peer. No
//! callback can reach the devlink lock or what it protects.

mod pairing;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::ops::Range;

use lockdep::Locked;

use crate::card::{CardError, FailedCreate};
use crate::error::{Error, Result};
use crate::eswitch::registrations::OpsTable;
use crate::event::{Event, Events};
use crate::ids::{PciAddress, PfIndex, PfSet, PortHandle, PortIndex, RepType, Vport};
use crate::lock_order::{RepCallback, RepOps as RepOpsClass, Representors, RepresentorsNested};

/// The callbacks that a driver registers for one type of representor.
pub trait RepOps: Send + Sync {
    /// Loads the representor of the uplink. May take peers' tables, nested.
    ///
    /// # Errors
    /// The card's error. Nothing is left loaded.
    fn load_uplink(&self, cx: &mut Locked<'_, Representors>) -> Result<(), CardError>;

    /// Unloads the representor of the uplink.
    fn unload_uplink(&self, cx: &mut Locked<'_, Representors>);

    /// Loads the representors of other vports. Returns the vports that could not be loaded, in order, of which nothing
    /// is left loaded.
    fn load(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) -> Vec<FailedCreate>;

    /// Unloads the representors of other vports.
    fn unload(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]);

    /// Whether the uplink is loaded and unloaded like any other vport. This is so for ops that a master has lent to a
    /// peer, whose uplink is at most a port of the master's device.
    fn uplink_is_port(&self) -> bool {
        false
    }

    /// Whether these representors are notified of pairing.
    fn takes_pairing(&self) -> bool {
        false
    }

    /// Notifies a loaded representor that its E-Switch was paired with a peer's, or unpaired. A representor that has
    /// just been loaded is notified of the pairings from before. One that is about to be unloaded is notified that its
    /// E-Switch is unpaired from each peer.
    ///
    /// # Errors
    /// The card's error. Nothing of the pairing is left. Only pairing can fail.
    fn event(&self, cx: &mut Locked<'_, RepCallback>, vport: Vport, event: RepEvent) -> Result<(), CardError> {
        let _ = (cx, vport, event);
        Ok(())
    }

    /// Identifies this set of callbacks for an explorer. What the callbacks do depends only on this identity and on
    /// what locks protect.
    fn identify(&self, state: &mut dyn Hasher);

    /// The name of the netdev or RDMA device of a loaded representor.
    fn protocol_device(&self, cx: &mut Locked<'_, RepOpsClass>, vport: Vport) -> Option<String>;
}

/// An event of which loaded representors are notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepEvent {
    /// Their E-Switch was paired with that of this PF.
    Pair(PfIndex),
    /// Their E-Switch was unpaired from that of this PF.
    Unpair(PfIndex),
}

/// How a load handles a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadPolicy {
    /// Undoes everything that this load has loaded, and returns the error.
    Strict,
    /// Leaves the vport that failed as it was, lists the failure and continues. If the uplink fails, nothing is loaded.
    Lenient,
}

/// The failure of a representor that should be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepFailure {
    /// The last error.
    pub error: String,
    /// The number of failed attempts so far.
    pub attempts: u32,
}

/// The representor table of an E-Switch.
#[derive(Debug, Hash)]
pub struct RepTable {
    pf: PfIndex,
    address: PciAddress,
    /// A row for every enabled vport that has a representor, in the order of vports. It is one vector, as every
    /// operation walks over it.
    reps: Vec<Rep>,
    /// The PFs with whose E-Switches this one is paired, as far as this table was notified.
    peers: PfSet,
    failures: BTreeMap<(Vport, RepType), RepFailure>,
}

/// A row of the table: the representors of a vport.
#[derive(Debug, Hash)]
struct Rep {
    vport: Vport,
    /// Which types are loaded.
    loaded: [bool; 2],
    /// The peers of whose pairing each type was notified.
    knows: [PfSet; 2],
}

impl Rep {
    fn new(vport: Vport) -> Self {
        Self { vport, loaded: [false; 2], knows: [PfSet::default(); 2] }
    }
}

impl RepTable {
    pub(crate) fn new(pf: PfIndex, address: PciAddress) -> Self {
        Self { pf, address, reps: vec![Rep::new(Vport::Uplink)], peers: PfSet::default(), failures: BTreeMap::new() }
    }

    /// Adds rows for enabled vports. Loads nothing.
    pub(crate) fn add(&mut self, vports: &[Vport]) {
        self.reps.extend(vports.iter().copied().map(Rep::new));
        // The vector consists of two sorted runs, of which the second mostly follows the first.
        self.reps.sort_by_key(|rep| rep.vport);
        debug_assert!(self.reps.is_sorted_by(|a, b| a.vport < b.vport), "added twice");
    }

    /// Removes the rows of vports, whose representors have been unloaded.
    pub(crate) fn remove(&mut self, vports: &[Vport]) {
        let span = span(&self.reps, vports);
        for removed in self.reps.extract_if(span, |rep| vports.binary_search(&rep.vport).is_ok()) {
            debug_assert_eq!(removed.loaded, [false; 2], "removed while loaded");
        }
        self.failures.retain(|(failed, _), _| vports.binary_search(failed).is_err());
    }

    /// The peers with which its E-Switch is paired, as far as it was notified.
    pub(crate) fn peers(&self) -> PfSet {
        self.peers
    }

    /// The PF of its E-Switch.
    pub fn pf(&self) -> PfIndex {
        self.pf
    }

    /// Every vport in the table, uplink first.
    pub fn vports(&self) -> Vec<Vport> {
        self.reps.iter().map(|rep| rep.vport).collect()
    }

    /// Whether a representor is loaded.
    pub fn is_loaded(&self, vport: Vport, ty: RepType) -> bool {
        let row = self.reps.binary_search_by_key(&vport, |rep| rep.vport);
        row.is_ok_and(|row| self.reps[row].loaded[ty.index()])
    }

    /// The vports whose representor of a type is loaded.
    fn loaded(&self, ty: RepType) -> Vec<Vport> {
        vports_of(self.reps.len(), self.reps.iter().filter(|rep| rep.loaded[ty.index()]))
    }

    /// The representors that failed to load, with their failures.
    pub fn failures(&self) -> &BTreeMap<(Vport, RepType), RepFailure> {
        &self.failures
    }

    pub(crate) fn forget_failures(&mut self, ty: RepType) {
        self.failures.retain(|(_, failed), _| *failed != ty);
    }

    pub(crate) fn forget_all_failures(&mut self) {
        self.failures.clear();
    }

    /// Loads every registered type of these vports that is not loaded: the uplink first, then the others, type by type.
    /// A type is loaded for the uplink before any other vport.
    ///
    /// If a load fails, its vport keeps the representors it had before, and loses those that this attempt has loaded
    /// for it.
    ///
    /// # Errors
    /// The first failure. Under [`LoadPolicy::Lenient`] the other vports have been loaded nevertheless, unless it was
    /// the uplink that failed.
    pub(crate) fn load(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
        vports: &[Vport],
        policy: LoadPolicy,
    ) -> Result<()> {
        let before = self.before_load(cx);
        let result = self.try_load(cx, events, ops, vports, policy);
        self.ensure_load(cx, &before, ops, vports, policy, &result);
        result
    }

    fn try_load(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
        vports: &[Vport],
        policy: LoadPolicy,
    ) -> Result<()> {
        let mut attempt = Attempt::default();
        let mut result = Ok(());
        if vports.contains(&Vport::Uplink) {
            result = self.load_uplink(cx, events, ops, &mut attempt);
        }
        if result.is_ok() {
            result = self.load_others(cx, events, ops, vports, policy, &mut attempt);
        }
        if result.is_err() && policy == LoadPolicy::Strict {
            for ty in RepType::ALL.into_iter().rev() {
                self.unload_of_type(cx, ops, ty, &attempt.loaded[ty.index()]);
            }
            return result;
        }
        for ty in RepType::ALL {
            let count = attempt.loaded[ty.index()].len();
            if count > 0 {
                events.emit(cx, || Event::Loaded(self.address, ty, count));
            }
        }
        result
    }

    fn load_uplink(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
        attempt: &mut Attempt,
    ) -> Result<()> {
        for ty in RepType::ALL {
            let Some(ops_of_type) = &ops[ty.index()] else { continue };
            if self.is_loaded(Vport::Uplink, ty) {
                continue;
            }
            let loaded = if ops_of_type.uplink_is_port() {
                let refusal = ops_of_type.load(&mut cx.narrow(), &[Vport::Uplink]).pop();
                refusal.map_or(Ok(()), |refusal| Err(refusal.error))
            } else {
                ops_of_type.load_uplink(cx)
            };
            let loaded = loaded.and_then(|()| {
                self.set(&[Vport::Uplink], ty, true);
                self.notify_or_unload(cx, ops, ty, &[Vport::Uplink]).pop().map_or(Ok(()), |(_, error)| Err(error))
            });
            if let Err(error) = loaded {
                let error = self.note_failure(cx, events, Vport::Uplink, ty, error);
                self.unwind_vports(cx, ops, ty, &[Vport::Uplink], attempt);
                return Err(error);
            }
            self.forget_failures_of(&[Vport::Uplink], ty);
            attempt.loaded[ty.index()].push(Vport::Uplink);
        }
        Ok(())
    }

    fn load_others(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
        vports: &[Vport],
        policy: LoadPolicy,
        attempt: &mut Attempt,
    ) -> Result<()> {
        let mut first = Ok(());
        let mut failed: Vec<Vport> = Vec::new();
        for ty in RepType::ALL {
            let Some(ops_of_type) = &ops[ty.index()] else { continue };
            if !self.is_loaded(Vport::Uplink, ty) {
                continue;
            }
            let is_missing = |rep: &&mut Rep| !rep.loaded[ty.index()] && failed.binary_search(&rep.vport).is_err();
            let mut missing = vports_of(vports.len(), rows(&mut self.reps, vports).filter(is_missing).map(|rep| &*rep));
            if missing.is_empty() {
                continue;
            }
            let refusals = ops_of_type.load(&mut cx.narrow(), &missing);
            let mut failures: Vec<(Vport, CardError)> =
                refusals.into_iter().map(|refusal| (missing[refusal.at], refusal.error)).collect();
            leave_out(&mut missing, &failures);
            self.set(&missing, ty, true);
            let unloaded = self.notify_or_unload(cx, ops, ty, &missing);
            leave_out(&mut missing, &unloaded);
            // The rest of `missing` has been loaded.
            self.forget_failures_of(&missing, ty);
            attempt.loaded[ty.index()].extend(missing);
            failures.extend(unloaded);
            failures.sort_by_key(|(vport, _)| *vport);
            let failed_now: Vec<Vport> = failures.iter().map(|(vport, _)| *vport).collect();
            for (vport, error) in failures {
                first = first.and(Err(self.note_failure(cx, events, vport, ty, error)));
            }
            self.unwind_vports(cx, ops, ty, &failed_now, attempt);
            failed.extend(failed_now);
            if first.is_err() && policy == LoadPolicy::Strict {
                break;
            }
        }
        first
    }

    /// Notifies representors that have just been loaded of the present pairings. Those that refuse one are unloaded
    /// again, and returned.
    fn notify_or_unload(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        ops: &OpsTable,
        ty: RepType,
        loaded: &[Vport],
    ) -> Vec<(Vport, CardError)> {
        let Some(ops_of_type) = &ops[ty.index()] else { return Vec::new() };
        let refused = self.notify_pairings(&mut cx.narrow(), &**ops_of_type, ty, loaded);
        if !refused.is_empty() {
            let vports: Vec<Vport> = refused.iter().map(|(vport, _)| *vport).collect();
            self.unload_of_type(cx, ops, ty, &vports);
        }
        refused
    }

    /// Undoes what this attempt has loaded for the vports in `failed`, whose load of type `ty` has failed.
    fn unwind_vports(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        ops: &OpsTable,
        ty: RepType,
        failed: &[Vport],
        attempt: &mut Attempt,
    ) {
        if failed.is_empty() {
            return;
        }
        let failed: BTreeSet<Vport> = failed.iter().copied().collect();
        for earlier in RepType::ALL.into_iter().take_while(|t| *t != ty) {
            let loaded: Vec<Vport> =
                attempt.loaded[earlier.index()].iter().copied().filter(|v| failed.contains(v)).collect();
            attempt.loaded[earlier.index()].retain(|v| !failed.contains(v));
            self.unload_of_type(cx, ops, earlier, &loaded);
        }
    }

    /// Loads the RDMA representors of the vports whose netdev representor is loaded, that of the uplink first. Does
    /// nothing unless the netdev representor of the uplink is loaded.
    ///
    /// # Errors
    /// The failure of the uplink, or the first failure of another vport.
    pub(crate) fn reload_ib(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
    ) -> Result<()> {
        if !self.is_loaded(Vport::Uplink, RepType::Eth) {
            return Ok(());
        }
        let only_ib = [None, ops[RepType::Ib.index()].clone()];
        self.load(cx, events, &only_ib, &self.loaded(RepType::Eth), LoadPolicy::Lenient)
    }

    /// Unloads all representors of these vports: types in the reverse order of loading, the uplink last.
    pub(crate) fn unload(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
        vports: &[Vport],
    ) {
        for ty in RepType::ALL.into_iter().rev() {
            let count = self.unload_of_type(cx, ops, ty, vports);
            if count > 0 {
                events.emit(cx, || Event::Unloaded(self.address, ty, count));
            }
        }
    }

    /// Unloads all representors of a type.
    pub(crate) fn unload_type(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        ops: &OpsTable,
        ty: RepType,
    ) {
        let Some(ops) = &ops[ty.index()] else { return };
        let loaded = self.loaded(ty);
        if !loaded.is_empty() {
            self.unload_loaded(cx, &**ops, ty, &loaded);
            events.emit(cx, || Event::Unloaded(self.address, ty, loaded.len()));
        }
    }

    /// Unloads the loaded representors of a type of these vports. Returns their number.
    fn unload_of_type(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        ops: &OpsTable,
        ty: RepType,
        vports: &[Vport],
    ) -> usize {
        let Some(ops) = &ops[ty.index()] else { return 0 };
        let is_loaded = |rep: &&mut Rep| rep.loaded[ty.index()];
        let loaded = vports_of(vports.len(), rows(&mut self.reps, vports).filter(is_loaded).map(|rep| &*rep));
        self.unload_loaded(cx, &**ops, ty, &loaded);
        loaded.len()
    }

    fn unload_loaded(&mut self, cx: &mut Locked<'_, Representors>, ops: &dyn RepOps, ty: RepType, loaded: &[Vport]) {
        self.withdraw_pairings(&mut cx.narrow(), ops, ty, loaded);
        // The uplink is first in the order of vports.
        let others = loaded.strip_prefix(&[Vport::Uplink]).filter(|_| !ops.uplink_is_port()).unwrap_or(loaded);
        if !others.is_empty() {
            ops.unload(&mut cx.narrow(), others);
        }
        if others.len() < loaded.len() {
            ops.unload_uplink(cx);
        }
        self.set(loaded, ty, false);
    }

    /// Unloads all representors of a type whose ops a master has lent. The master calls this under its own representor
    /// lock and this one, nested.
    pub(crate) fn unload_lent(
        &mut self,
        cx: &mut Locked<'_, RepresentorsNested>,
        events: &Events,
        ops: &OpsTable,
        ty: RepType,
    ) {
        let Some(ops) = ops[ty.index()].as_ref().filter(|ops| ops.uplink_is_port()) else { return };
        let loaded = self.loaded(ty);
        if loaded.is_empty() {
            return;
        }
        self.withdraw_pairings(&mut cx.narrow(), &**ops, ty, &loaded);
        ops.unload(&mut cx.narrow(), &loaded);
        self.set(&loaded, ty, false);
        events.emit(cx, || Event::Unloaded(self.address, ty, loaded.len()));
    }

    fn set(&mut self, vports: &[Vport], ty: RepType, loaded: bool) {
        for rep in rows(&mut self.reps, vports) {
            rep.loaded[ty.index()] = loaded;
        }
    }

    fn forget_failures_of(&mut self, loaded: &[Vport], ty: RepType) {
        if !self.failures.is_empty() {
            for vport in loaded {
                self.failures.remove(&(*vport, ty));
            }
        }
    }

    fn note_failure(
        &mut self,
        cx: &mut Locked<'_, Representors>,
        events: &Events,
        vport: Vport,
        ty: RepType,
        error: CardError,
    ) -> Error {
        let handle = self.handle(vport);
        let failure = self.failures.entry((vport, ty)).or_insert(RepFailure { error: String::new(), attempts: 0 });
        failure.error = error.to_string();
        failure.attempts += 1;
        events.emit(cx, || Event::LoadFailed(handle, ty, error.to_string()));
        Error::Card { operation: format!("{handle}: loading the {ty} representor"), source: error }
    }

    fn handle(&self, vport: Vport) -> PortHandle {
        PortHandle { device: self.address, index: PortIndex::new(self.pf, vport) }
    }
}

/// The representors that one load has loaded, so that it can undo exactly those.
#[derive(Default)]
struct Attempt {
    loaded: [Vec<Vport>; 2],
}

/// The rows of these vports, which are sorted. Vports that are not in the table are left out.
fn rows<'a>(reps: &'a mut [Rep], vports: &'a [Vport]) -> impl Iterator<Item = &'a mut Rep> {
    let span = span(reps, vports);
    let mut wanted = vports;
    reps[span].iter_mut().filter(move |rep| {
        while let [next, rest @ ..] = wanted
            && *next <= rep.vport
        {
            wanted = rest;
            if *next == rep.vport {
                return true;
            }
        }
        false
    })
}

/// Removes the vports that have failed. `failed` is sorted.
fn leave_out(vports: &mut Vec<Vport>, failed: &[(Vport, CardError)]) {
    if !failed.is_empty() {
        vports.retain(|vport| failed.binary_search_by_key(vport, |(failed, _)| *failed).is_err());
    }
}

/// The vports of these rows, of which there are at most `max`.
fn vports_of<'a>(max: usize, rows: impl Iterator<Item = &'a Rep>) -> Vec<Vport> {
    let mut vports = Vec::with_capacity(max);
    vports.extend(rows.map(|rep| rep.vport));
    vports
}

/// The range of rows from the first to the last of these vports, which are sorted.
fn span(reps: &[Rep], vports: &[Vport]) -> Range<usize> {
    debug_assert!(vports.is_sorted(), "vports out of order");
    let (Some(first), Some(last)) = (vports.first(), vports.last()) else { return 0..0 };
    reps.partition_point(|rep| rep.vport < *first)..reps.partition_point(|rep| rep.vport <= *last)
}
