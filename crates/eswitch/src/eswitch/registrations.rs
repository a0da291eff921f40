//! The ops that are registered for each type, and the invariants that are checked at every callback.
//!
//! Where threads are checked, ops are registered inside [`Watched`], which checks of each callback that it may be
//! called now, and keeps what it has loaded. Otherwise the driver's ops are registered directly.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lockdep::{Locked, Shadow};

use crate::card::{CardError, FailedCreate};
use crate::eswitch::{RepEvent, RepOps};
use crate::ids::{PfIndex, RepType, Vport};
use crate::lock_order::{RepCallback, RepOps as RepOpsClass, Representors};

/// The ops of each type, for their callers.
pub(super) type OpsTable = [Option<Arc<dyn RepOps>>; 2];

/// The registered ops. All changes are made here, so that [`Seen`] is always right.
pub(super) struct Registrations {
    ops: OpsTable,
    seen: Arc<Seen>,
}

impl Hash for Registrations {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for ops in &self.ops {
            ops.is_some().hash(state);
            ops.iter().for_each(|ops| ops.identify(state));
        }
    }
}

/// The registrations, for invariants.
pub(super) type Seen = Shadow<[Option<Registration>; 2]>;

/// One type's registration, for invariants.
#[derive(Clone)]
pub(super) struct Registration {
    /// Whether a master has lent the ops.
    pub lent: bool,
    watched: Option<Arc<Watched>>,
}

impl Registration {
    /// The ops, if they are watched.
    pub fn ops(&self) -> Option<Arc<dyn RepOps>> {
        Some(Arc::clone(self.watched.as_ref()?) as Arc<dyn RepOps>)
    }

    /// The vports that these ops have loaded and not unloaded, if they are watched.
    pub fn loaded(&self) -> Option<BTreeSet<Vport>> {
        Some(self.watched.as_ref()?.state.with(|state| state.loaded.clone()))
    }
}

impl Registrations {
    pub fn new(seen: Arc<Seen>) -> Self {
        Self { ops: [None, None], seen }
    }

    /// The registered ops.
    pub fn ops(&self) -> &OpsTable {
        &self.ops
    }

    /// Registers the ops of a type. Returns false and changes nothing if that type has ops.
    pub fn put<L>(&mut self, cx: &Locked<'_, L>, pf: PfIndex, ty: RepType, ops: Arc<dyn RepOps>) -> bool {
        let slot = &mut self.ops[ty.index()];
        if slot.is_some() {
            return false;
        }
        let mut registration = Registration { lent: ops.uplink_is_port(), watched: None };
        *slot = Some(if cx.is_checked() {
            let watched = Arc::new(Watched { ops, pf, ty, state: Shadow::default() });
            registration.watched = Some(Arc::clone(&watched));
            watched
        } else {
            ops
        });
        self.seen.with(|seen| seen[ty.index()] = Some(registration));
        true
    }

    /// Unregisters the ops of a type. From now on none of their callbacks runs.
    pub fn take<L>(&mut self, cx: &Locked<'_, L>, ty: RepType) {
        self.ops[ty.index()] = None;
        let gone = self.seen.with(|seen| seen[ty.index()].take());
        if let Some(watched) = gone.and_then(|gone| gone.watched) {
            watched.retire(cx);
        }
    }
}

/// Ops whose callbacks are checked.
struct Watched {
    ops: Arc<dyn RepOps>,
    pf: PfIndex,
    ty: RepType,
    state: Shadow<State>,
}

#[derive(Default)]
struct State {
    retired: bool,
    /// The number of callbacks in progress.
    running: u32,
    loaded: BTreeSet<Vport>,
}

impl Watched {
    /// Begins a callback, which ends when the result is dropped.
    #[track_caller]
    fn enter<L>(&self, cx: &Locked<'_, L>, callback: &str) -> Running<'_> {
        cx.ensure(
            "ops-quiesced",
            || !self.state.with(|state| state.retired),
            || format!("{callback} of {} ops of pf{} that are unregistered", self.ty, self.pf.0),
        );
        self.state.with(|state| state.running += 1);
        Running(&self.state)
    }

    /// Ends the registration: no callback may run from now on.
    #[track_caller]
    fn retire<L>(&self, cx: &Locked<'_, L>) {
        let (running, loaded) = self.state.with(|state| {
            state.retired = true;
            (state.running, state.loaded.len())
        });
        let ops = || format!("{} ops of pf{}", self.ty, self.pf.0);
        cx.ensure("ops-quiesced", || running == 0, || format!("{} unregistered while {running} callbacks run", ops()));
        cx.ensure(
            "loaded-implies-registered",
            || loaded == 0,
            || format!("{} unregistered while {loaded} representors are loaded", ops()),
        );
    }

    #[track_caller]
    fn ensure_loaded<L>(&self, cx: &Locked<'_, L>, vports: &[Vport], loaded: bool) {
        let wrong = self.state.with(|state| vports.iter().copied().find(|v| state.loaded.contains(v) != loaded));
        cx.ensure(
            "load-once",
            || wrong.is_none(),
            || {
                let fault = if loaded {
                    "unload of a representor that is not loaded"
                } else {
                    "load of a representor that is loaded"
                };
                format!("{fault}: {}", wrong.map(|vport| self.rep(vport)).unwrap_or_default())
            },
        );
    }

    fn note(&self, vports: impl IntoIterator<Item = Vport>, loaded: bool) {
        self.state.with(|state| {
            for vport in vports {
                if loaded {
                    state.loaded.insert(vport);
                } else {
                    state.loaded.remove(&vport);
                }
            }
        });
    }

    fn rep(&self, vport: Vport) -> String {
        format!("{} pf{} {vport}", self.ty, self.pf.0)
    }

    /// The planned error of loading this representor, if the plan of faults has one.
    fn failure<L>(&self, cx: &Locked<'_, L>, vport: Vport) -> Option<CardError> {
        let place = || format!("load {}", self.rep(vport));
        cx.fails(place).then(|| CardError::Planned(place()))
    }
}

/// A callback in progress.
struct Running<'a>(&'a Shadow<State>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.with(|state| state.running -= 1);
    }
}

impl RepOps for Watched {
    fn load_uplink(&self, cx: &mut Locked<'_, Representors>) -> Result<(), CardError> {
        let _running = self.enter(cx, "load");
        self.ensure_loaded(cx, &[Vport::Uplink], false);
        if let Some(error) = self.failure(cx, Vport::Uplink) {
            return Err(error);
        }
        self.ops.load_uplink(cx)?;
        self.note([Vport::Uplink], true);
        Ok(())
    }

    fn unload_uplink(&self, cx: &mut Locked<'_, Representors>) {
        let _running = self.enter(cx, "unload");
        self.ensure_loaded(cx, &[Vport::Uplink], true);
        self.ops.unload_uplink(cx);
        self.note([Vport::Uplink], false);
    }

    fn load(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) -> Vec<FailedCreate> {
        let _running = self.enter(cx, "load");
        self.ensure_loaded(cx, vports, false);
        let mut refusals: Vec<FailedCreate> = Vec::new();
        let mut attempted: Vec<(usize, Vport)> = Vec::with_capacity(vports.len());
        for (at, vport) in vports.iter().enumerate() {
            match self.failure(cx, *vport) {
                Some(error) => refusals.push(FailedCreate { at, error }),
                None => attempted.push((at, *vport)),
            }
        }
        let (places, mut loaded): (Vec<usize>, Vec<Vport>) = attempted.into_iter().unzip();
        if !loaded.is_empty() {
            let refused = self.ops.load(cx, &loaded);
            refusals.extend(refused.into_iter().map(|refusal| FailedCreate { at: places[refusal.at], ..refusal }));
            refusals.sort_by_key(|refusal| refusal.at);
        }
        loaded.retain(|vport| !refusals.iter().any(|refusal| vports[refusal.at] == *vport));
        self.note(loaded, true);
        refusals
    }

    fn unload(&self, cx: &mut Locked<'_, RepCallback>, vports: &[Vport]) {
        let _running = self.enter(cx, "unload");
        self.ensure_loaded(cx, vports, true);
        self.ops.unload(cx, vports);
        self.note(vports.iter().copied(), false);
    }

    fn uplink_is_port(&self) -> bool {
        self.ops.uplink_is_port()
    }

    fn takes_pairing(&self) -> bool {
        self.ops.takes_pairing()
    }

    fn identify(&self, state: &mut dyn Hasher) {
        self.ops.identify(state);
    }

    fn event(&self, cx: &mut Locked<'_, RepCallback>, vport: Vport, event: RepEvent) -> Result<(), CardError> {
        let _running = self.enter(cx, "event");
        self.ensure_loaded(cx, &[vport], true);
        self.ops.event(cx, vport, event)
    }

    fn protocol_device(&self, cx: &mut Locked<'_, RepOpsClass>, vport: Vport) -> Option<String> {
        let _running = self.enter(cx, "lookup");
        self.ops.protocol_device(cx, vport)
    }
}
