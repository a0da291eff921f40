//! What is stated of a LAG when a transition ends: it is whole, or there is none.

use std::collections::BTreeSet;

use lockdep::{Locked, Unlocked};

use crate::card::{Resource, ResourceKind};
use crate::devcom::Component;
use crate::ids::PfIndex;
use crate::lag::{Lag, LagMode, Member, State};
use crate::lock_order::Devcom;
use crate::shared::Shared;

/// What the LAG lock protects, as it was when it was last let go of.
#[derive(Clone, Default)]
pub(super) struct Seen {
    mode: LagMode,
    members: Vec<PfIndex>,
    peers: BTreeSet<PfIndex>,
}

impl Lag {
    /// The LAG lock is about to be let go of.
    pub(super) fn note<L>(&self, cx: &Locked<'_, L>, state: &State) {
        self.seen.note(cx, |seen| {
            *seen =
                Seen { mode: state.mode, members: state.members.clone(), peers: state.peers.keys().copied().collect() };
        });
    }
}

/// What there is of a LAG, wherever it is.
#[derive(Debug, Default, PartialEq, Eq)]
struct Whole {
    members: Vec<PfIndex>,
    /// Peers of the one RDMA device.
    peers: BTreeSet<PfIndex>,
    /// Members whose RDMA device is marked disabled.
    ib_disabled: BTreeSet<PfIndex>,
    /// On the card.
    lags: Vec<Resource>,
    metadata: BTreeSet<PfIndex>,
}

impl Whole {
    /// What there should be.
    fn of(mode: LagMode, members: Vec<PfIndex>) -> Self {
        if mode == LagMode::None {
            return Self::default();
        }
        let all: BTreeSet<PfIndex> = members.iter().copied().collect();
        let others: BTreeSet<PfIndex> = members.iter().skip(1).copied().collect();
        Self {
            lags: members.first().map(|master| Resource::Lag(*master)).into_iter().collect(),
            peers: if mode.is_shared() { others.clone() } else { BTreeSet::new() },
            ib_disabled: if mode == LagMode::Vf { BTreeSet::new() } else { others },
            metadata: if mode == LagMode::Mpesw { all } else { BTreeSet::new() },
            members,
        }
    }
}

impl Shared {
    /// A transition has ended: all of the LAG is there, of those who are members now, or nothing of one.
    #[track_caller]
    pub(super) fn ensure_lag_whole(&self, component: &Component, cx: &Locked<'_, Devcom>) {
        if !cx.is_checked() {
            return;
        }
        let seen = self.lag.seen.with(|seen| seen.clone());
        let present: Vec<PfIndex> = component.ib_disabled().map(|(pf, _)| pf).collect();
        let there = Whole {
            members: seen.members,
            peers: seen.peers,
            ib_disabled: component.ib_disabled().filter(|(_, disabled)| *disabled).map(|(pf, _)| pf).collect(),
            lags: self.made_of(|r| r.kind() == ResourceKind::Lag),
            metadata: self.made_of(|r| r.kind() == ResourceKind::Metadata).iter().map(Resource::pf).collect(),
        };
        let whole = Whole::of(seen.mode, present);
        cx.ensure(
            "lag-consistent",
            || there == whole,
            || format!("lag {}: there is {there:?}, there should be {whole:?}", seen.mode),
        );
        if seen.mode == LagMode::SharedFdb {
            let pfs: Vec<PfIndex> = component.pfs().iter().map(|pf| pf.index()).collect();
            let alone = pfs.iter().find(|pf| component.paired(**pf).len() + 1 != pfs.len());
            let detail = || format!("lag {}: {alone:?} is not paired with all others", seen.mode);
            cx.ensure("lag-consistent", || alone.is_none(), detail);
        }
        if !seen.mode.is_shared() {
            let borrow: Vec<PfIndex> =
                component.pfs().iter().filter(|pf| pf.eswitch.stated.borrows()).map(|pf| pf.index()).collect();
            cx.ensure(
                "lag-consistent",
                || borrow.is_empty(),
                || format!("lag {}: a master's ops are registered on {borrow:?}", seen.mode),
            );
        }
    }

    /// What was decided was decided of these members, and they are members still.
    #[track_caller]
    pub(super) fn ensure_members(&self, component: &Component, cx: &Locked<'_, Devcom>, members: &[Member]) {
        let now = || component.lag_members();
        cx.ensure(
            "lag-consistent",
            || now() == members,
            || format!("a transition of {members:?} ends with members {:?}", now()),
        );
    }

    /// The mode, for [`ensure_evaluated`](Self::ensure_evaluated).
    pub(super) fn lag_seen(&self) -> LagMode {
        self.lag.seen.with(|seen| seen.mode)
    }

    /// An evaluation has ended. Multiport E-Switch it neither makes nor breaks.
    #[track_caller]
    pub(super) fn ensure_evaluated(&self, cx: &Locked<'_, Devcom>, before: LagMode) {
        let now = || self.lag_seen();
        cx.ensure(
            "lag-consistent",
            || (before == LagMode::Mpesw) == (now() == LagMode::Mpesw),
            || format!("an evaluation has made the LAG {} of {before}", now()),
        );
    }

    /// At rest: what an evaluation would change though none is to come, or the back-off of what is over.
    pub(crate) fn unevaluated_lag(&self, cx: &mut Locked<'_, Unlocked>) -> Option<String> {
        let (component, mut cx) = self.devcom.read(cx);
        let queue = &self.lag.queue;
        if self.lag.is_held_off(&mut cx) || queue.pending_retry(&mut cx).is_some() || queue.is_closed(&mut cx) {
            return None;
        }
        if let Some(failures) = queue.idle_back_off(&mut cx) {
            return Some(format!(
                "lag, and nothing is to be tried again: a failure would wait as after {failures} more"
            ));
        }
        let (members, total) = (component.lag_members(), usize::from(self.config.pfs));
        let state = self.lag.state.lock(&mut cx).0;
        let due = state.is_due(&members, total, self.config.shared_fdb)?;
        Some(format!("lag {}, and nobody evaluates it: that would {due}", state.mode))
    }

    /// `esw_multiport` has been turned on or off.
    #[track_caller]
    pub(super) fn ensure_mpesw(&self, cx: &Locked<'_, Devcom>, on: bool) {
        let mode = || self.lag_seen();
        cx.ensure(
            "true-success",
            || (mode() == LagMode::Mpesw) == on,
            || format!("esw_multiport was set to {on} and the LAG is {}", mode()),
        );
    }
}
