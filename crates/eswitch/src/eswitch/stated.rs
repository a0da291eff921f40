//! The invariants of an E-Switch that are checked at the steps where they must hold.
//!
//! Each check uses the state that is at hand there, or a shadow: the state as it was when a lock was last released. So
//! a check takes no lock, adds no interleaving, and costs a branch where nothing is checked. The names are those of the
//! invariants at rest, in [`inspect`](crate::inspect).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lockdep::{Locked, Shadow};

use crate::card::Resource;
use crate::device::Pf;
use crate::devlink::{DevlinkState, VportInfo};
use crate::error::Result;
use crate::eswitch::registrations::{OpsTable, Seen as RegistrationsSeen};
use crate::eswitch::{LoadPolicy, RepTable};
use crate::ids::{Mode, PfSet, RepType, Vport};

/// The shadow of an E-Switch: its state as it was when its locks were last released.
#[derive(Default)]
pub(crate) struct Stated {
    registrations: Arc<RegistrationsSeen>,
    state: Shadow<State>,
}

#[derive(Default)]
struct State {
    mode: Mode,
    /// The thread that changes the mode, or keeps it from being changed.
    in_progress: Option<String>,
    loaded: Reps,
    vports: BTreeSet<Vport>,
    failed: BTreeSet<(Vport, RepType)>,
    peers: PfSet,
    registered: [Option<Owner>; 2],
    generation: u64,
    torn_down: bool,
    /// The state of each representor in the last note, where a run is recorded.
    noted: BTreeMap<(Vport, RepType), String>,
}

/// The owner of registered ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Own,
    Master,
}

/// A set of representors: those that are loaded.
pub(crate) type Reps = BTreeSet<(Vport, RepType)>;

impl State {
    /// Notes the state of each representor that has changed since the last note.
    fn note_reps(&mut self, table: &RepTable) {
        let all = self.vports.iter().flat_map(|vport| RepType::ALL.map(|ty| (*vport, ty)));
        let now: BTreeMap<(Vport, RepType), String> = all
            .map(|(vport, ty)| {
                let failure = table.failures().get(&(vport, ty));
                let state = match (self.loaded.contains(&(vport, ty)), failure, self.registered[ty.index()]) {
                    (true, ..) => "loaded".to_owned(),
                    (false, Some(failure), _) => format!("failed: {}", failure.error),
                    (false, None, Some(_)) => "registered".to_owned(),
                    (false, None, None) => "unregistered".to_owned(),
                };
                ((vport, ty), state)
            })
            .collect();
        let name = |(vport, ty): &(Vport, RepType)| Resource::Representor(table.pf(), *vport, *ty);
        let removed = self.noted.keys().filter(|rep| !now.contains_key(rep)).map(|rep| (rep, "gone"));
        let changed = now.iter().filter(|(rep, state)| self.noted.get(rep) != Some(state));
        for (rep, state) in removed.chain(changed.map(|(rep, state)| (rep, state.as_str()))) {
            lockdep::note("state", || format!("{}: {state}", name(rep)));
        }
        self.noted = now;
    }
}

impl Stated {
    pub(super) fn registrations(&self) -> &Arc<RegistrationsSeen> {
        &self.registrations
    }

    /// Checks and notes the table, before its lock is released.
    #[track_caller]
    pub(super) fn note_table<L>(&self, cx: &Locked<'_, L>, table: &RepTable) {
        if !cx.is_checked() {
            return;
        }
        let registrations = self.registrations.with(|seen| seen.clone());
        let loaded = table.loaded_reps();
        let pf = table.pf();
        for (ty, registration) in RepType::ALL.into_iter().zip(&registrations) {
            let of_type: BTreeSet<Vport> = loaded.iter().filter(|(_, t)| *t == ty).map(|(v, _)| *v).collect();
            cx.ensure(
                "loaded-implies-registered",
                || registration.is_some() || of_type.is_empty(),
                || format!("{} {ty} representors of pf{} are loaded and none are registered", of_type.len(), pf.0),
            );
            if let Some(by_ops) = registration.as_ref().and_then(|r| r.loaded()) {
                cx.ensure(
                    "no-leak",
                    || by_ops == of_type,
                    || format!("{ty} representors of pf{}: {by_ops:?} are loaded, the table has {of_type:?}", pf.0),
                );
            }
        }
        let ops: OpsTable = registrations.each_ref().map(|r| r.as_ref().and_then(|r| r.ops()));
        let misinformed = || table.misinformed(&ops, table.peers());
        cx.ensure(
            "pairing-told",
            || misinformed().is_empty(),
            || format!("pf{}: {:?} know of other pairings than {:?}", pf.0, misinformed(), table.peers()),
        );
        self.state.with(|state| {
            state.loaded = loaded;
            state.vports = table.vports().into_iter().collect();
            state.failed = table.failures().keys().copied().collect();
            state.peers = table.peers();
            let owner = |lent| if lent { Owner::Master } else { Owner::Own };
            state.registered = registrations.map(|r| r.map(|r| owner(r.lent)));
            if lockdep::is_recorded() {
                state.note_reps(table);
            }
        });
    }

    /// The invariants that the table violates at rest, if the E-Switch has this mode and is paired with these peers:
    /// the name of each invariant, and the violation.
    pub(crate) fn check_at_rest<L>(
        &self,
        cx: &Locked<'_, L>,
        mode: Mode,
        paired: PfSet,
    ) -> Vec<(&'static str, String)> {
        if !cx.is_checked() {
            return Vec::new();
        }
        self.state.with(|state| {
            let mut found = Vec::new();
            if state.peers != paired {
                let detail = format!("it is paired with {paired:?}, and its representors know of {:?}", state.peers);
                found.push(("pairing-told", detail));
            }
            let is_outdated = |rep: &&(Vport, RepType)| {
                mode == Mode::Legacy || !state.vports.contains(&rep.0) || state.loaded.contains(rep)
            };
            for (vport, ty) in state.failed.iter().filter(is_outdated) {
                found.push(("switchdev-complete", format!("{ty} of {vport} is listed as failed, and has not")));
            }
            found
        })
    }

    /// Notes that this thread begins an operation on the mode.
    pub(super) fn note_begin<L>(&self, cx: &Locked<'_, L>) {
        self.state.note(cx, |state| state.in_progress = Some(cx.thread_name().to_owned()));
    }

    /// Notes that the operation on the mode has ended.
    pub(super) fn note_finish<L>(&self, cx: &Locked<'_, L>, mode: Mode) {
        self.state.note(cx, |state| {
            state.mode = mode;
            state.in_progress = None;
        });
    }

    /// Checks, where the mode is read to be acted on, that no other thread is changing it.
    #[track_caller]
    pub(super) fn ensure_mode_rests<L>(&self, cx: &Locked<'_, L>) {
        if !cx.is_checked() {
            return;
        }
        let other = self.state.with(|state| state.in_progress.clone()).filter(|thread| thread != cx.thread_name());
        cx.ensure(
            "lock-order",
            || other.is_none(),
            || format!("the mode is acted on while {} changes it", other.clone().unwrap_or_default()),
        );
    }

    /// Notes that the generation was raised.
    pub(super) fn note_generation<L>(&self, cx: &Locked<'_, L>) {
        self.state.note(cx, |state| state.generation += 1);
    }

    /// Notes that teardown has begun. No work may be done from here on.
    pub(crate) fn note_teardown<L>(&self, cx: &Locked<'_, L>) {
        self.state.note(cx, |state| state.torn_down = true);
    }

    /// Checks, before work changes anything, that it is not stale. The devlink lock is held. `generation`: that in
    /// which the work was queued, if it has one.
    #[track_caller]
    pub(super) fn ensure_fresh<L>(&self, cx: &Locked<'_, L>, generation: Option<u64>) {
        if !cx.is_checked() {
            return;
        }
        let (now, torn_down) = self.state.with(|state| (state.generation, state.torn_down));
        cx.ensure("stale-work", || !torn_down, || "work is done after teardown has begun".to_owned());
        let queued = generation.unwrap_or(now);
        cx.ensure("stale-work", || queued == now, || format!("work of generation {queued} is done in {now}"));
    }

    /// The loaded representors.
    pub(crate) fn loaded<L>(&self, cx: &Locked<'_, L>) -> Reps {
        if cx.is_checked() { self.state.with(|state| state.loaded.clone()) } else { Reps::new() }
    }

    /// Whether a master has lent ops to this E-Switch.
    pub(crate) fn borrows(&self) -> bool {
        self.state.with(|state| state.registered.contains(&Some(Owner::Master)))
    }

    /// Whether ops of a type are registered.
    pub(crate) fn is_registered(&self, ty: RepType) -> bool {
        self.state.with(|state| state.registered[ty.index()].is_some())
    }
}

impl RepTable {
    /// The loaded representors, for invariants.
    fn loaded_reps(&self) -> Reps {
        let reps = self.vports().into_iter().flat_map(|v| RepType::ALL.map(|ty| (v, ty)));
        reps.filter(|(v, ty)| self.is_loaded(*v, *ty)).collect()
    }

    /// The state of the table before a load, for [`Self::ensure_load`].
    pub(super) fn before_load<L>(&self, cx: &Locked<'_, L>) -> BeforeLoad {
        BeforeLoad(cx.is_checked().then(|| (self.loaded_reps(), self.attempts())))
    }

    fn attempts(&self) -> Attempts {
        self.failures().iter().map(|(rep, failure)| (*rep, failure.attempts)).collect()
    }

    /// Checks the outcome of a load. Under [`LoadPolicy::Strict`] it has loaded everything or nothing. A vport that
    /// failed has what it had before. Everything else that was to be loaded is loaded.
    pub(super) fn ensure_load<L>(
        &self,
        cx: &Locked<'_, L>,
        before: &BeforeLoad,
        ops: &OpsTable,
        vports: &[Vport],
        policy: LoadPolicy,
        result: &Result<()>,
    ) {
        let Some((loaded_before, attempts)) = &before.0 else { return };
        let loaded = self.loaded_reps();
        let pf = self.pf();
        if result.is_err() && policy == LoadPolicy::Strict {
            cx.ensure(
                "unwind-own",
                || loaded == *loaded_before,
                || format!("pf{}: a load failed and leaves {loaded:?}, before it {loaded_before:?}", pf.0),
            );
            return;
        }
        let lost: Vec<_> = loaded_before.difference(&loaded).collect();
        cx.ensure("unwind-own", || lost.is_empty(), || format!("pf{}: a load has unloaded {lost:?}", pf.0));
        let failed: BTreeSet<Vport> =
            self.attempts().iter().filter(|(rep, n)| attempts.get(rep) != Some(n)).map(|((v, _), _)| *v).collect();
        let kept: Vec<_> = loaded.difference(loaded_before).filter(|(v, _)| failed.contains(v)).collect();
        cx.ensure(
            "unwind-own",
            || kept.is_empty(),
            || format!("pf{}: {kept:?} were loaded by an attempt that failed for their vport", pf.0),
        );
        cx.ensure(
            "unwind-own",
            || !failed.contains(&Vport::Uplink) || loaded == *loaded_before,
            || format!("pf{}: {:?} were loaded though the uplink failed", pf.0, loaded.difference(loaded_before)),
        );
        if result.is_ok() {
            // Without the uplink of its type nothing is loaded; it is tried again with that.
            let should = |ty: RepType| {
                ops[ty.index()].is_some() && (vports.contains(&Vport::Uplink) || loaded.contains(&(Vport::Uplink, ty)))
            };
            let table: BTreeSet<Vport> = self.vports().into_iter().collect();
            let wanted = vports.iter().filter(|v| table.contains(v)).flat_map(|v| RepType::ALL.map(|ty| (*v, ty)));
            let missing: Vec<_> = wanted.filter(|rep| should(rep.1) && !loaded.contains(rep)).collect();
            cx.ensure(
                "switchdev-complete",
                || missing.is_empty(),
                || format!("pf{}: loading succeeded without {missing:?}", pf.0),
            );
        }
    }

    /// Checks, after going back to switchdev mode, that each representor that was loaded before is loaded again, or is
    /// listed with its error, or has a type that is not registered.
    pub(super) fn ensure_restored<L>(&self, cx: &Locked<'_, L>, ops: &OpsTable, loaded_before: &Reps) {
        if !cx.is_checked() {
            return;
        }
        let listed = |vport, ty| self.failures().contains_key(&(vport, ty));
        let excused = |(vport, ty): &&(Vport, RepType)| {
            ops[ty.index()].is_none() || listed(*vport, *ty) || listed(Vport::Uplink, *ty)
        };
        let loaded = self.loaded_reps();
        let lost: Vec<_> = loaded_before.difference(&loaded).filter(|rep| !excused(rep)).collect();
        cx.ensure(
            "unwind-own",
            || lost.is_empty(),
            || format!("pf{}: leaving switchdev mode failed and {lost:?} are neither loaded nor listed", self.pf().0),
        );
    }
}

/// See [`RepTable::before_load`].
pub(super) struct BeforeLoad(Option<(Reps, Attempts)>);

/// The number of failed attempts of each representor that is listed as failed.
type Attempts = BTreeMap<(Vport, RepType), u32>;

/// The state that a command must leave as it was if it fails.
pub(crate) struct Before(Option<Ports>);

/// The mode, the ports, the number of VFs, the bound VFs, and the state of each vport.
type Ports = (Mode, BTreeSet<Vport>, u16, BTreeSet<Vport>, BTreeMap<Vport, VportInfo>);

impl Pf {
    fn ports_now(&self, state: &DevlinkState) -> Ports {
        let mode = self.eswitch.stated.state.with(|state| state.mode);
        let bound = state.vports.iter().filter(|(_, info)| info.is_vf_bound()).map(|(vport, _)| *vport);
        (mode, state.vports.keys().copied().collect(), state.num_vfs, bound.collect(), state.vports.clone())
    }

    /// The state before a command, for [`Self::ensure_outcome`].
    pub(crate) fn before<L>(&self, cx: &Locked<'_, L>, state: &DevlinkState) -> Before {
        Before(cx.is_checked().then(|| self.ports_now(state)))
    }

    /// Checks the outcome of a command under the devlink lock, before it returns: no operation on the mode is in
    /// progress, and if the command failed, the mode, the ports and the VFs, bound and not, are as before.
    #[track_caller]
    pub(crate) fn ensure_outcome<L, T>(
        &self,
        cx: &Locked<'_, L>,
        state: &DevlinkState,
        before: &Before,
        result: &Result<T>,
    ) {
        let Some(before) = &before.0 else { return };
        let now = self.ports_now(state);
        cx.ensure(
            "unwind-own",
            || result.is_ok() || now == *before,
            || format!("{}: a command failed and leaves {now:?}, before it {before:?}", self.address()),
        );
        let (in_progress, mut table) = self.eswitch.stated.state.with(|s| (s.in_progress.clone(), s.vports.clone()));
        table.insert(Vport::Uplink);
        cx.ensure(
            "true-success",
            || in_progress.is_none(),
            || format!("{}: a command ends with an operation in progress", self.address()),
        );
        // The uplink's representor is in the table for longer than the uplink has a port.
        let ports: BTreeSet<Vport> = now.1.iter().copied().chain([Vport::Uplink]).collect();
        cx.ensure(
            "true-success",
            || ports == table,
            || format!("{}: ports {ports:?}, representors for {table:?}", self.address()),
        );
        self.ensure_mode(cx, state, now.0);
        self.ensure_published(cx, state, now.0);
    }

    /// Checks that the E-Switch has this mode and what belongs to it: in switchdev mode a forwarding database, in
    /// legacy mode neither that, nor loaded representors, nor SFs.
    #[track_caller]
    pub(crate) fn ensure_mode<L>(&self, cx: &Locked<'_, L>, state: &DevlinkState, mode: Mode) {
        if !cx.is_checked() {
            return;
        }
        let (now, loaded) = self.eswitch.stated.state.with(|state| (state.mode, state.loaded.clone()));
        let at = self.address();
        cx.ensure("true-success", || now == mode, || format!("{at}: the mode is {now}, not {mode}"));
        let empty = || mode != Mode::Legacy || loaded.is_empty();
        cx.ensure("legacy-empty", empty, || format!("{at}: {loaded:?} loaded in legacy mode"));
        let fdb = self.shared.has_made(&Resource::SwitchdevFdb(self.index()));
        cx.ensure(
            "no-leak",
            || fdb == (mode.is_switchdev()),
            || {
                format!(
                    "{at}: in mode {mode} a forwarding database of switchdev mode is {}",
                    if fdb { "there" } else { "missing" }
                )
            },
        );
        if mode == Mode::Legacy {
            cx.ensure(
                "true-success",
                || state.sfs.iter().next().is_none(),
                || format!("{at}: there are SFs in legacy mode"),
            );
        }
    }

    /// Checks that these ports exist, or do not exist, each with its netdev representor if the mode is switchdev.
    #[track_caller]
    pub(crate) fn ensure_ports<L>(&self, cx: &Locked<'_, L>, state: &DevlinkState, vports: &[Vport], there: bool) {
        if !cx.is_checked() {
            return;
        }
        let (mode, loaded) = self.eswitch.stated.state.with(|state| (state.mode, state.loaded.clone()));
        for vport in vports {
            let port = self.shared.has_made(&Resource::Port(self.index(), *vport)) || *vport == Vport::Uplink;
            cx.ensure(
                "true-success",
                || state.vports.contains_key(vport) == there && port == there,
                || format!("{}: port of {vport}, there should be {there}", self.address()),
            );
            let eth = loaded.contains(&(*vport, RepType::Eth));
            let invariant = if there { "switchdev-complete" } else { "true-success" };
            cx.ensure(
                invariant,
                || eth == (there && mode.is_switchdev()),
                || format!("{}: the netdev representor of {vport} is loaded: {eth}", self.address()),
            );
        }
    }

    /// Checks of a bound PF that its function and its netdev exist.
    #[track_caller]
    pub(crate) fn ensure_up<L>(&self, cx: &Locked<'_, L>) {
        let there = || self.shared.made_of(|resource| resource.pf() == self.index());
        let (function, netdev) = (Resource::Function(self.index()), Resource::PfNetdev(self.index()));
        cx.ensure(
            "true-success",
            || self.shared.has_made(&function) && self.shared.has_made(&netdev),
            || format!("{} is bound, and there is only {:?}", self.address(), there()),
        );
    }

    /// Checks of an unbound PF that nothing of it is left.
    #[track_caller]
    pub(crate) fn ensure_gone<L>(&self, cx: &Locked<'_, L>) {
        if !cx.is_checked() {
            return;
        }
        let left = self.shared.made_of(|resource| resource.pf() == self.index());
        cx.ensure("no-leak", || left.is_empty(), || format!("{} is unbound and leaves {left:?}", self.address()));
        let stated = &self.eswitch.stated;
        let registered: Vec<_> = RepType::ALL.into_iter().filter(|ty| stated.is_registered(*ty)).collect();
        cx.ensure(
            "ops-quiesced",
            || registered.is_empty(),
            || format!("{} is unbound with {registered:?} ops registered", self.address()),
        );
    }
}
