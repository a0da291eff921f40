//! A card that fails on demand.

use std::sync::Arc;
use std::time::Duration;

use lockdep::{Deadline, Locked, Mutex, digest};
use serde::{Deserialize, Serialize};

use crate::card::{Card, CardError, Create, FailedCreate, OnRename, Resource, ResourceKind};
use crate::ids::{MacAddr, PfIndex, Vport};
use crate::lock_order::{CardCall, CardState};

/// What should fail or be slow.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of request.
    pub kind: ResourceKind,
    /// Whose: any PF if none.
    pub pf: Option<PfIndex>,
    /// For which vport: any if none.
    pub vport: Option<Vport>,
    /// How many matching requests pass before the first that fails.
    pub after: u32,
    /// How many fail then; `u32::MAX` for all.
    pub times: u32,
    /// Not a failure but a delay of that long.
    pub delay: Option<Duration>,
}

impl Fault {
    fn matches(&self, request: &Resource) -> bool {
        self.kind == request.kind()
            && self.pf.is_none_or(|pf| pf == request.pf())
            && self.vport.is_none_or(|vport| request.vport() == Some(vport))
    }
}

/// The faults of a card, to be added to and cleared while it runs.
#[derive(Debug)]
pub struct FaultPlan {
    faults: Mutex<CardState, Vec<Fault>>,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self { faults: lockdep::unexplored(|| Mutex::new(Vec::new())) }
    }
}

impl FaultPlan {
    /// Adds a fault.
    pub fn add<L>(&self, cx: &mut Locked<'_, L>, fault: Fault) {
        self.faults.lock_leaf(cx).push(fault);
        self.tell(cx);
        cx.learns(&true);
    }

    /// Forgets them all.
    pub fn clear<L>(&self, cx: &mut Locked<'_, L>) {
        self.faults.lock_leaf(cx).clear();
        self.tell(cx);
        cx.learns(&false);
    }

    /// What is planned is planned by all threads, and no lock of an explorer's orders them.
    fn tell<L>(&self, cx: &mut Locked<'_, L>) {
        if lockdep::is_explored() {
            let left = digest(&*self.faults.lock_leaf(cx));
            lockdep::tell(&"faults", &left);
        }
    }

    /// What happens to this request: the delay to suffer and whether it fails.
    fn strike<L>(&self, cx: &mut Locked<'_, L>, request: &Resource) -> (Option<Duration>, bool) {
        let (mut delay, mut fails, mut left) = (None, false, None);
        for fault in self.faults.lock_leaf(cx).iter_mut().filter(|f| f.matches(request)) {
            left = Some((fault.after, fault.times));
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                if fault.times != u32::MAX {
                    fault.times -= 1;
                }
                match fault.delay {
                    Some(time) => delay = delay.max(Some(time)),
                    None => fails = true,
                }
            }
        }
        if let Some(left) = left {
            self.tell(cx);
            cx.learns(&(left, delay, fails));
        }
        (delay, fails)
    }
}

/// A card around a card that refuses, or delays, what its plan says; and refuses what an
/// [`Oracle`](lockdep::Oracle) says, if the threads have one.
#[derive(Debug)]
pub struct Faulty<C> {
    inner: C,
    plan: Arc<FaultPlan>,
}

impl<C> Faulty<C> {
    /// A card that does what `inner` does, as far as `plan` lets it.
    pub fn new(inner: C, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }
}

impl<C: Card> Card for Faulty<C> {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        let struck: Vec<bool> = batch
            .iter()
            .map(|request| {
                let (delay, fails) = self.plan.strike(cx, &request.resource);
                if let Some(time) = delay {
                    Deadline::after(time).sleep(cx);
                }
                fails || cx.fails(|| format!("make {}", request.resource))
            })
            .collect();
        if !struck.contains(&true) {
            return self.inner.create(cx, batch);
        }
        let (planned, passed): (Vec<usize>, Vec<usize>) = (0..batch.len()).partition(|at| struck[*at]);
        let requests: Vec<Create> = passed.iter().map(|at| batch[*at]).collect();
        let refused = self.inner.create(cx, &requests).into_iter();
        let mut refusals: Vec<FailedCreate> =
            refused.map(|refusal| FailedCreate { at: passed[refusal.at], error: refusal.error }).collect();
        let planned = planned.into_iter().map(|at| (at, CardError::Planned(batch[at].resource.to_string())));
        refusals.extend(planned.map(|(at, error)| FailedCreate { at, error }));
        refusals.sort_by_key(|refusal| refusal.at);
        refusals
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        self.inner.destroy(cx, batch);
    }
    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        self.inner.name(cx, resource)
    }
    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        self.inner.renamed(cx)
    }
    fn on_rename(&self, cx: &mut Locked<'_, CardCall>, told: OnRename) {
        self.inner.on_rename(cx, told);
    }
    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        if cx.fails(|| format!("set the address of {resource}")) {
            return Err(CardError::Planned(resource.to_string()));
        }
        self.inner.set_mac(cx, resource, mac)
    }
    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        if cx.fails(|| format!("move the netdev of pf{}", pf.0)) {
            return Err(CardError::Planned(format!("netdev pf{}", pf.0)));
        }
        self.inner.set_netns(cx, pf, netns)
    }
    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String> {
        self.inner.netns(cx, pf)
    }
    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        self.inner.resources(cx)
    }
    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        self.inner.take_complaints(cx)
    }
}
