//! What is stated of an E-Switch at the steps where it must hold.
//!
//! Each statement looks at what is in hand there, or at a shadow: the state as it was when a lock was last
//! let go of. So stating takes no lock, adds no interleaving, and costs a branch where nothing is checked.
//! The names are those of the invariants at rest, in [`inspect`](crate::inspect).

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

/// An E-Switch as it was when its locks were last let go of.
#[derive(Default)]
pub(crate) struct Stated {
    registrations: Arc<RegistrationsSeen>,
    state: Shadow<State>,
}

#[derive(Default)]
struct State {
    mode: Mode,
    /// Who changes the mode, or holds it.
    in_progress: Option<String>,
    loaded: Reps,
    vports: BTreeSet<Vport>,
    failed: BTreeSet<(Vport, RepType)>,
    peers: PfSet,
    registered: [Option<Owner>; 2],
    generation: u64,
    torn_down: bool,
    /// What was told of each representor, where somebody writes down what happens.
    told: BTreeMap<(Vport, RepType), String>,
}

/// Whose ops are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Own,
    Master,
}

/// Representors that are loaded.
pub(crate) type Reps = BTreeSet<(Vport, RepType)>;

impl State {
    /// Tells of each representor what it is now, if it was something else.
    fn tell_reps(&mut self, table: &RepTable) {
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
        let gone = self.told.keys().filter(|rep| !now.contains_key(rep)).map(|rep| (rep, "gone"));
        let changed = now.iter().filter(|(rep, state)| self.told.get(rep) != Some(state));
        for (rep, state) in gone.chain(changed.map(|(rep, state)| (rep, state.as_str()))) {
            lockdep::note("state", || format!("{}: {state}", name(rep)));
        }
        self.told = now;
    }
}

impl Stated {
    pub(super) fn registrations(&self) -> &Arc<RegistrationsSeen> {
        &self.registrations
    }

    /// The table is about to be let go of.
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
            if let Some(really) = registration.as_ref().and_then(|r| r.loaded()) {
                cx.ensure(
                    "no-leak",
                    || really == of_type,
                    || format!("{ty} representors of pf{}: {really:?} are loaded, the table has {of_type:?}", pf.0),
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
                state.tell_reps(table);
            }
        });
    }

    /// What does not hold at rest of the table, with the E-Switch in this mode and paired with these.
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
            let is_old = |rep: &&(Vport, RepType)| {
                mode == Mode::Legacy || !state.vports.contains(&rep.0) || state.loaded.contains(rep)
            };
            for (vport, ty) in state.failed.iter().filter(is_old) {
                found.push(("switchdev-complete", format!("{ty} of {vport} is listed as failed, and has not")));
            }
            found
        })
    }

    /// An operation on the mode begins.
    pub(super) fn note_begin<L>(&self, cx: &Locked<'_, L>) {
        self.state.note(cx, |state| state.in_progress = Some(cx.thread_name().to_owned()));
    }

    /// An operation on the mode is done.
    pub(super) fn note_finish<L>(&self, cx: &Locked<'_, L>, mode: Mode) {
        self.state.note(cx, |state| {
            state.mode = mode;
            state.in_progress = None;
        });
    }

    /// The mode is read to be acted on: nobody else may be changing it.
    #[track_caller]
    pub(super) fn ensure_mode_rests<L>(&self, cx: &Locked<'_, L>) {
        if !cx.is_checked() {
            return;
        }
        let other = self.state.with(|state| state.in_progress.clone()).filter(|who| who != cx.thread_name());
        cx.ensure(
            "lock-order",
            || other.is_none(),
            || format!("the mode is acted on while {} changes it", other.clone().unwrap_or_default()),
        );
    }

    /// The generation has been raised.
    pub(super) fn note_generation<L>(&self, cx: &Locked<'_, L>) {
        self.state.note(cx, |state| state.generation += 1);
    }

    /// Teardown has begun: no work is done from here on.
    pub(crate) fn note_teardown<L>(&self, cx: &Locked<'_, L>) {
        self.state.note(cx, |state| state.torn_down = true);
    }

    /// Work is about to change something, with the devlink lock held.
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

    /// What is loaded.
    pub(crate) fn loaded<L>(&self, cx: &Locked<'_, L>) -> Reps {
        if cx.is_checked() { self.state.with(|state| state.loaded.clone()) } else { Reps::new() }
    }

    /// Whether a master has lent it ops.
    pub(crate) fn borrows(&self) -> bool {
        self.state.with(|state| state.registered.contains(&Some(Owner::Master)))
    }

    /// Whether ops of a type are registered.
    pub(crate) fn is_registered(&self, ty: RepType) -> bool {
        self.state.with(|state| state.registered[ty.index()].is_some())
    }
}

impl RepTable {
    /// What is loaded, for invariants.
    fn loaded_reps(&self) -> Reps {
        let reps = self.vports().into_iter().flat_map(|v| RepType::ALL.map(|ty| (v, ty)));
        reps.filter(|(v, ty)| self.is_loaded(*v, *ty)).collect()
    }

    /// The table before a load.
    pub(super) fn before_load<L>(&self, cx: &Locked<'_, L>) -> BeforeLoad {
        BeforeLoad(cx.is_checked().then(|| (self.loaded_reps(), self.attempts())))
    }

    fn attempts(&self) -> Attempts {
        self.failures().iter().map(|(rep, failure)| (*rep, failure.attempts)).collect()
    }

    /// What a load leaves: under [`LoadPolicy::Strict`] all or nothing; of a vport that failed what it had;
    /// and whatever else it was to load, loaded.
    pub(super) fn ensure_load<L>(
        &self,
        cx: &Locked<'_, L>,
        before: &BeforeLoad,
        ops: &OpsTable,
        vports: &[Vport],
        policy: LoadPolicy,
        result: &Result<()>,
    ) {
        let Some((had, attempts)) = &before.0 else { return };
        let has = self.loaded_reps();
        let pf = self.pf();
        if result.is_err() && policy == LoadPolicy::Strict {
            cx.ensure(
                "unwind-own",
                || has == *had,
                || format!("pf{}: a load failed and leaves {has:?}, before it {had:?}", pf.0),
            );
            return;
        }
        let lost: Vec<_> = had.difference(&has).collect();
        cx.ensure("unwind-own", || lost.is_empty(), || format!("pf{}: a load has unloaded {lost:?}", pf.0));
        let failed: BTreeSet<Vport> =
            self.attempts().iter().filter(|(rep, n)| attempts.get(rep) != Some(n)).map(|((v, _), _)| *v).collect();
        let kept: Vec<_> = has.difference(had).filter(|(v, _)| failed.contains(v)).collect();
        cx.ensure(
            "unwind-own",
            || kept.is_empty(),
            || format!("pf{}: {kept:?} were loaded by an attempt that failed for their vport", pf.0),
        );
        cx.ensure(
            "unwind-own",
            || !failed.contains(&Vport::Uplink) || has == *had,
            || format!("pf{}: {:?} were loaded though the uplink failed", pf.0, has.difference(had)),
        );
        if result.is_ok() {
            // Without the uplink of its type nothing is loaded; it is tried again with that.
            let should = |ty: RepType| {
                ops[ty.index()].is_some() && (vports.contains(&Vport::Uplink) || has.contains(&(Vport::Uplink, ty)))
            };
            let table: BTreeSet<Vport> = self.vports().into_iter().collect();
            let wanted = vports.iter().filter(|v| table.contains(v)).flat_map(|v| RepType::ALL.map(|ty| (*v, ty)));
            let missing: Vec<_> = wanted.filter(|rep| should(rep.1) && !has.contains(rep)).collect();
            cx.ensure(
                "switchdev-complete",
                || missing.is_empty(),
                || format!("pf{}: loading succeeded without {missing:?}", pf.0),
            );
        }
    }

    /// After going back to switchdev mode: what was loaded is, or is listed with its error, or its type
    /// is not registered.
    pub(super) fn ensure_restored<L>(&self, cx: &Locked<'_, L>, ops: &OpsTable, had: &Reps) {
        if !cx.is_checked() {
            return;
        }
        let listed = |vport, ty| self.failures().contains_key(&(vport, ty));
        let excused = |(vport, ty): &&(Vport, RepType)| {
            ops[ty.index()].is_none() || listed(*vport, *ty) || listed(Vport::Uplink, *ty)
        };
        let has = self.loaded_reps();
        let lost: Vec<_> = had.difference(&has).filter(|rep| !excused(rep)).collect();
        cx.ensure(
            "unwind-own",
            || lost.is_empty(),
            || format!("pf{}: leaving switchdev mode failed and {lost:?} are neither loaded nor listed", self.pf().0),
        );
    }
}

/// See [`RepTable::before_load`].
pub(super) struct BeforeLoad(Option<(Reps, Attempts)>);

/// How often what is listed as failed has failed.
type Attempts = BTreeMap<(Vport, RepType), u32>;

/// What a command that fails leaves as it was.
pub(crate) struct Before(Option<Ports>);

/// The mode, the ports, how many of them are VFs, and which of these are bound.
type Ports = (Mode, BTreeSet<Vport>, u16, BTreeSet<Vport>, BTreeMap<Vport, VportInfo>);

impl Pf {
    fn ports_now(&self, state: &DevlinkState) -> Ports {
        let mode = self.eswitch.stated.state.with(|state| state.mode);
        let bound = state.vports.iter().filter(|(_, info)| info.is_vf_bound()).map(|(vport, _)| *vport);
        (mode, state.vports.keys().copied().collect(), state.num_vfs, bound.collect(), state.vports.clone())
    }

    /// What there is before a command.
    pub(crate) fn before<L>(&self, cx: &Locked<'_, L>, state: &DevlinkState) -> Before {
        Before(cx.is_checked().then(|| self.ports_now(state)))
    }

    /// A command under the devlink lock is about to return, and no operation on the mode is in progress.
    /// If it failed, the mode, the ports and the VFs, bound and not, are as before.
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
        // The uplink has its representor in the table before it has a port, and after.
        let ports: BTreeSet<Vport> = now.1.iter().copied().chain([Vport::Uplink]).collect();
        cx.ensure(
            "true-success",
            || ports == table,
            || format!("{}: ports {ports:?}, representors for {table:?}", self.address()),
        );
        self.ensure_mode(cx, state, now.0);
        self.ensure_published(cx, state, now.0);
    }

    /// The mode is this, and so is what comes with it: in switchdev mode every port has its netdev
    /// representor, in legacy mode nothing is loaded.
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
            || fdb == (mode == Mode::Switchdev),
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

    /// These ports are there, or are not, with their representors: netdev representors if the mode is
    /// switchdev.
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
                || eth == (there && mode == Mode::Switchdev),
                || format!("{}: the netdev representor of {vport} is loaded: {eth}", self.address()),
            );
        }
    }

    /// It is bound: its function and its netdev are there.
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

    /// Nothing is left of it.
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
