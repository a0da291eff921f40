//! The ops registered for each type, and what is stated of them at every callback.
//!
//! Where threads are checked, ops are registered inside [`Watched`], which states of each callback that
//! it may be called now, and keeps what it has loaded. Where they are not, the driver's ops stand there
//! themselves.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lockdep::{Locked, Shadow};

use crate::card::{CardError, FailedCreate};
use crate::eswitch::{RepEvent, RepOps};
use crate::ids::{PfIndex, RepType, Vport};
use crate::lock_order::{RepCallback, RepOps as RepOpsClass, Representors};

/// The ops of each type, for who calls them.
pub(super) type OpsTable = [Option<Arc<dyn RepOps>>; 2];

/// What is registered. All writing goes through here, so that what is stated by [`Seen`] is so.
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

/// What is registered, for invariants.
pub(super) type Seen = Shadow<[Option<Registration>; 2]>;

/// One type's registration, for invariants.
#[derive(Clone)]
pub(super) struct Registration {
    /// The ops are a master's.
    pub lent: bool,
    watched: Option<Arc<Watched>>,
}

impl Registration {
    /// The ops, if they are watched.
    pub fn ops(&self) -> Option<Arc<dyn RepOps>> {
        Some(Arc::clone(self.watched.as_ref()?) as Arc<dyn RepOps>)
    }

    /// What these ops have loaded and not unloaded, if they are watched.
    pub fn loaded(&self) -> Option<BTreeSet<Vport>> {
        Some(self.watched.as_ref()?.state.with(|state| state.loaded.clone()))
    }
}

impl Registrations {
    pub fn new(seen: Arc<Seen>) -> Self {
        Self { ops: [None, None], seen }
    }

    /// The ops now.
    pub fn ops(&self) -> &OpsTable {
        &self.ops
    }

    /// Registers the ops of a type; whether none were.
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

    /// Unregisters the ops of a type: from now on none of their callbacks runs.
    pub fn take<L>(&mut self, cx: &Locked<'_, L>, ty: RepType) {
        self.ops[ty.index()] = None;
        let gone = self.seen.with(|seen| seen[ty.index()].take());
        if let Some(watched) = gone.and_then(|gone| gone.watched) {
            watched.retire(cx);
        }
    }
}

/// Ops, and what is stated of them.
struct Watched {
    ops: Arc<dyn RepOps>,
    pf: PfIndex,
    ty: RepType,
    state: Shadow<State>,
}

#[derive(Default)]
struct State {
    retired: bool,
    /// Callbacks in progress.
    running: u32,
    loaded: BTreeSet<Vport>,
}

impl Watched {
    /// A callback begins; it ends when the result is dropped.
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

    /// No callback runs from now on.
    #[track_caller]
    fn retire<L>(&self, cx: &Locked<'_, L>) {
        let (running, loaded) = self.state.with(|state| {
            state.retired = true;
            (state.running, state.loaded.len())
        });
        let what = || format!("{} ops of pf{}", self.ty, self.pf.0);
        cx.ensure("ops-quiesced", || running == 0, || format!("{} unregistered while {running} run", what()));
        cx.ensure(
            "loaded-implies-registered",
            || loaded == 0,
            || format!("{} unregistered while {loaded} are loaded", what()),
        );
    }

    #[track_caller]
    fn ensure_loaded<L>(&self, cx: &Locked<'_, L>, vports: &[Vport], loaded: bool) {
        let wrong = self.state.with(|state| vports.iter().copied().find(|v| state.loaded.contains(v) != loaded));
        cx.ensure(
            "load-once",
            || wrong.is_none(),
            || {
                let call = if loaded { "unload of what is not loaded" } else { "load of what is loaded" };
                format!("{call}: {}", wrong.map(|vport| self.rep(vport)).unwrap_or_default())
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

    /// The error of the place at which this representor's load can fail, if it does.
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
        let mut asked: Vec<(usize, Vport)> = Vec::with_capacity(vports.len());
        for (at, vport) in vports.iter().enumerate() {
            match self.failure(cx, *vport) {
                Some(error) => refusals.push(FailedCreate { at, error }),
                None => asked.push((at, *vport)),
            }
        }
        let (places, mut loaded): (Vec<usize>, Vec<Vport>) = asked.into_iter().unzip();
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
