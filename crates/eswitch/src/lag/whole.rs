//! The invariants of a LAG that are stated when a transition ends: everything that belongs to the LAG exists, or
//! nothing.

use std::collections::BTreeSet;

use lockdep::{Locked, Unlocked};

use crate::card::{Resource, ResourceKind};
use crate::devcom::Component;
use crate::ids::PfIndex;
use crate::lag::{Lag, LagMode, MemberState, State};
use crate::lock_order::Devcom;
use crate::shared::Shared;

/// A copy of the state that the LAG lock protects, from when the lock was last released.
#[derive(Clone, Default)]
pub(super) struct Seen {
    mode: LagMode,
    members: Vec<PfIndex>,
    peers: BTreeSet<PfIndex>,
}

impl Lag {
    /// Copies the state for invariants, just before the LAG lock is released.
    pub(super) fn note<L>(&self, cx: &Locked<'_, L>, state: &State) {
        self.seen.note(cx, |seen| {
            *seen =
                Seen { mode: state.mode, members: state.members.clone(), peers: state.peers.keys().copied().collect() };
        });
    }
}

/// Everything that belongs to a LAG, wherever it is recorded.
#[derive(Debug, Default, PartialEq, Eq)]
struct Whole {
    members: Vec<PfIndex>,
    /// The master's peers, whose vports are ports of the shared RDMA device.
    peers: BTreeSet<PfIndex>,
    /// The members whose RDMA devices are marked as disabled.
    ib_disabled: BTreeSet<PfIndex>,
    /// The resources of the card that are LAGs.
    lags: Vec<Resource>,
    /// The PFs whose metadata the card has.
    metadata: BTreeSet<PfIndex>,
}

impl Whole {
    /// Everything that belongs to a LAG of this mode and these members.
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
    /// States that a transition has ended: everything that belongs to a LAG of the present members exists, or nothing
    /// does.
    #[track_caller]
    pub(super) fn ensure_lag_whole(&self, component: &Component, cx: &Locked<'_, Devcom>) {
        if !cx.is_checked() {
            return;
        }
        let seen = self.lag.seen.with(|seen| seen.clone());
        let present: Vec<PfIndex> = component.ib_disabled().map(|(pf, _)| pf).collect();
        let actual = Whole {
            members: seen.members,
            peers: seen.peers,
            ib_disabled: component.ib_disabled().filter(|(_, disabled)| *disabled).map(|(pf, _)| pf).collect(),
            lags: self.made_of(|r| r.kind() == ResourceKind::Lag),
            metadata: self.made_of(|r| r.kind() == ResourceKind::Metadata).iter().map(Resource::pf).collect(),
        };
        let expected = Whole::of(seen.mode, present);
        cx.ensure(
            "lag-consistent",
            || actual == expected,
            || format!("lag {}: {actual:?} exists, and {expected:?} should exist", seen.mode),
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

    /// States that the members with which an evaluation decided are still the members.
    #[track_caller]
    pub(super) fn ensure_members(&self, component: &Component, cx: &Locked<'_, Devcom>, members: &[MemberState]) {
        let now = || component.lag_members();
        cx.ensure(
            "lag-consistent",
            || now() == members,
            || format!("a transition that started with members {members:?} ends with {:?}", now()),
        );
    }

    /// The mode that the LAG lock last protected, for [`ensure_evaluated`](Self::ensure_evaluated).
    pub(super) fn lag_seen(&self) -> LagMode {
        self.lag.seen.with(|seen| seen.mode)
    }

    /// States that an evaluation has ended and has neither enabled nor disabled multiport E-Switch.
    #[track_caller]
    pub(super) fn ensure_evaluated(&self, cx: &Locked<'_, Devcom>, before: LagMode) {
        let now = || self.lag_seen();
        cx.ensure(
            "lag-consistent",
            || (before == LagMode::Mpesw) == (now() == LagMode::Mpesw),
            || format!("an evaluation has changed the LAG from {before} to {}", now()),
        );
    }

    /// Checks at rest that an evaluation would change nothing, unless one is pending, and that the back-off is over.
    /// Returns the violation in words.
    pub(crate) fn unevaluated_lag(&self, cx: &mut Locked<'_, Unlocked>) -> Option<String> {
        let (component, mut cx) = self.devcom.read(cx);
        let queue = &self.lag.queue;
        if self.lag.is_held_off(&mut cx) || queue.pending_retry(&mut cx).is_some() || queue.is_closed(&mut cx) {
            return None;
        }
        if let Some(failures) = queue.idle_back_off(&mut cx) {
            return Some(format!("lag: no retry is pending, and the back-off still counts {failures}"));
        }
        let (members, total) = (component.lag_members(), usize::from(self.config.pfs));
        let (mode, wanted, due) = {
            let state = self.lag.state.lock(&mut cx).0;
            let wanted = if state.mode == LagMode::Mpesw { Default::default() } else { state.transmits() };
            (state.mode, wanted, state.is_due(&members, total, self.config.shared_fdb))
        };
        let told = self.card.datapath().map(|datapath| datapath.lag(&mut cx.narrow()));
        if let Some(told) = told.filter(|told| *told != wanted) {
            return Some(format!("lag {mode}: rules were told (members, ports) {told:?}, and it is {wanted:?}"));
        }
        due.map(|due| format!("lag {mode}: no evaluation is pending, and one would {due}"))
    }

    /// States that `esw_multiport` has been turned on or off.
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
