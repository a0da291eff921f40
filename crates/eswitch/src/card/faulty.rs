//! A card whose requests fail, or take longer, on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flow::{Capabilities, Counter, Port, PortKind, RuleId};
use lockdep::{Deadline, Locked, Mutex, digest};
use serde::{Deserialize, Serialize};

use crate::card::{
    Acl, Card, CardError, Counters, Create, FailedCreate, MovedInstance, OnNetdevChange, Resource, ResourceKind,
};
use crate::datapath::{Arrival, Change, Datapath, Dropped, Sampler};
use crate::ids::{MacAddr, PfIndex, Vport};
use crate::lock_order::{CardCall, CardState};
use crate::rate::TxRates;

/// A fault: which requests fail or take longer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fault {
    /// The kind of the requested resource.
    pub kind: ResourceKind,
    /// The PF of the requested resource; `None` for any.
    pub pf: Option<PfIndex>,
    /// The vport of the requested resource; `None` for any.
    pub vport: Option<Vport>,
    /// The number of matching requests that pass before the first that is affected.
    pub after: u32,
    /// The number of requests that are affected then; `u32::MAX` for all.
    pub times: u32,
    /// If set, an affected request is delayed by this time, and does not fail.
    pub delay: Option<Duration>,
}

impl Fault {
    fn matches(&self, request: &Resource) -> bool {
        self.kind == request.kind()
            && self.pf.is_none_or(|pf| pf == request.pf())
            && self.vport.is_none_or(|vport| request.vport() == Some(vport))
    }
}

/// The faults of a card. Faults can be added and cleared while the card runs.
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
        self.publish_digest(cx);
        cx.learns(&true);
    }

    /// Removes all faults.
    pub fn clear<L>(&self, cx: &mut Locked<'_, L>) {
        self.faults.lock_leaf(cx).clear();
        self.publish_digest(cx);
        cx.learns(&false);
    }

    /// Gives an explorer the digest of the plan. All threads use the plan, and its lock is not one that the explorer
    /// schedules, so the explorer does not see the state of the plan otherwise.
    fn publish_digest<L>(&self, cx: &mut Locked<'_, L>) {
        if lockdep::is_explored() {
            let left = digest(&*self.faults.lock_leaf(cx));
            lockdep::tell(&"faults", &left);
        }
    }

    /// Counts a request, and returns the delay that it must wait, if any, and whether it fails.
    fn apply<L>(&self, cx: &mut Locked<'_, L>, request: &Resource) -> (Option<Duration>, bool) {
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
            self.publish_digest(cx);
            cx.learns(&(left, delay, fails));
        }
        (delay, fails)
    }
}

/// A card that wraps another card, and makes requests fail or wait according to its plan. If the threads have an
/// [`Oracle`](lockdep::Oracle), requests that the oracle selects fail too.
#[derive(Debug)]
pub struct Faulty<C> {
    inner: C,
    plan: Arc<FaultPlan>,
}

impl<C> Faulty<C> {
    /// Wraps `inner`. The plan can be changed while the card runs.
    pub fn new(inner: C, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }
}

impl<C: Card> Card for Faulty<C> {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        let failing: Vec<bool> = batch
            .iter()
            .map(|request| {
                let (delay, fails) = self.plan.apply(cx, &request.resource);
                if let Some(time) = delay {
                    Deadline::after(time).sleep(cx);
                }
                fails || cx.fails(|| format!("make {}", request.resource))
            })
            .collect();
        if !failing.contains(&true) {
            return self.inner.create(cx, batch);
        }
        let (planned, passed): (Vec<usize>, Vec<usize>) = (0..batch.len()).partition(|at| failing[*at]);
        let requests: Vec<Create> = passed.iter().map(|at| batch[*at]).collect();
        let unplanned = self.inner.create(cx, &requests).into_iter();
        let mut failures: Vec<FailedCreate> =
            unplanned.map(|failed| FailedCreate { at: passed[failed.at], error: failed.error }).collect();
        let planned = planned.into_iter().map(|at| (at, CardError::Planned(batch[at].resource.to_string())));
        failures.extend(planned.map(|(at, error)| FailedCreate { at, error }));
        failures.sort_by_key(|failed| failed.at);
        failures
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        self.inner.destroy(cx, batch);
    }
    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        self.inner.name(cx, resource)
    }
    fn datapath(&self) -> Option<&dyn Datapath> {
        self.inner.datapath().map(|_| self as &dyn Datapath)
    }
    fn renamed(&self, cx: &mut Locked<'_, CardCall>) -> Vec<(Resource, String)> {
        self.inner.renamed(cx)
    }
    fn elsewhere(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        self.inner.elsewhere(cx)
    }
    fn moved_instances(&self, cx: &mut Locked<'_, CardCall>) -> Vec<MovedInstance> {
        self.inner.moved_instances(cx)
    }
    fn on_netdev_change(&self, cx: &mut Locked<'_, CardCall>, callback: OnNetdevChange) {
        self.inner.on_netdev_change(cx, callback);
    }
    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        if cx.fails(|| format!("set the address of {resource}")) {
            return Err(CardError::Planned(resource.to_string()));
        }
        self.inner.set_mac(cx, resource, mac)
    }
    fn set_fdb_active(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, active: bool) -> Result<(), CardError> {
        if cx.fails(|| format!("set whether fdb pf{} is active", pf.0)) {
            return Err(CardError::Planned(format!("fdb pf{}", pf.0)));
        }
        self.inner.set_fdb_active(cx, pf, active)
    }
    fn set_link(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, up: bool) -> Result<(), CardError> {
        if cx.fails(|| format!("set the link of {port}")) {
            return Err(CardError::Planned(port.to_string()));
        }
        self.inner.set_link(cx, port, up)
    }
    fn set_acl(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, acl: Acl) -> Result<(), CardError> {
        if cx.fails(|| format!("set the access list of {port}")) {
            return Err(CardError::Planned(port.to_string()));
        }
        self.inner.set_acl(cx, port, acl)
    }
    fn set_rates(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        if cx.fails(|| format!("set the rates of pf{}", pf.0)) {
            return Err(CardError::Planned(format!("rates pf{}", pf.0)));
        }
        self.inner.set_rates(cx, pf, rates)
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
    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> BTreeMap<Vport, Counters> {
        self.inner.counters(cx, pf)
    }
    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        self.inner.resources(cx)
    }
    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        self.inner.take_complaints(cx)
    }
}

/// A data plane that refuses the changes that the oracle selects.
impl<C: Card> Datapath for Faulty<C> {
    fn capabilities(&self) -> Capabilities {
        self.inner.datapath().map(Datapath::capabilities).unwrap_or_default()
    }
    fn open(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        self.each(|plane| plane.open(cx, pf));
    }
    fn close(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        self.each(|plane| plane.close(cx, pf));
    }
    fn attach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[(Port, PortKind)]) {
        self.each(|plane| plane.attach(cx, pf, ports));
    }
    fn detach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[Port]) {
        self.each(|plane| plane.detach(cx, pf, ports));
    }
    fn set_lag(&self, cx: &mut Locked<'_, CardCall>, members: &[PfIndex], tx: &[PfIndex]) {
        if let Some(datapath) = self.inner.datapath() {
            datapath.set_lag(cx, members, tx);
        }
    }
    fn lag(&self, cx: &mut Locked<'_, CardCall>) -> (Vec<PfIndex>, Vec<PfIndex>) {
        self.inner.datapath().map(|datapath| datapath.lag(cx)).unwrap_or_default()
    }
    fn clear(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        self.each(|plane| plane.clear(cx, pf));
    }
    fn commit(
        &self,
        cx: &mut Locked<'_, CardCall>,
        pf: PfIndex,
        batch: &[Change<'_>],
    ) -> Vec<Result<Counter, CardError>> {
        let Some(plane) = self.inner.datapath() else { return Vec::new() };
        let refused: Vec<Option<String>> = batch
            .iter()
            .map(|change| match change {
                Change::Install(_, rule) => Some(format!("install a rule on {}", rule.block)),
                Change::SetActions(_, rule) => Some(format!("change a rule on {}", rule.block)),
                Change::SetMeter(id, _) => Some(format!("set meter {}", id.0)),
                Change::Remove(_) | Change::RemoveMeter(_) => None,
            })
            .map(|place| place.filter(|place| cx.fails(|| place.clone())))
            .collect();
        let passed: Vec<Change<'_>> = batch
            .iter()
            .zip(&refused)
            .filter(|(_, refused)| refused.is_none())
            .map(|(change, _)| change.clone())
            .collect();
        let mut done = plane.commit(cx, pf, &passed).into_iter();
        let outcome = |refused: Option<String>| match refused {
            Some(place) => Some(Err(CardError::Planned(place))),
            None => done.next(),
        };
        refused.into_iter().filter_map(outcome).collect()
    }
    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rules: &[RuleId]) -> Vec<Counter> {
        self.inner.datapath().map(|plane| plane.counters(cx, pf, rules)).unwrap_or_default()
    }
    fn drops(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Dropped> {
        self.inner.datapath().map(|datapath| datapath.drops(cx)).unwrap_or_default()
    }
    fn installed(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<Vec<RuleId>> {
        self.inner.datapath()?.installed(cx, pf)
    }

    fn left(&self, cx: &mut Locked<'_, CardCall>) -> Option<BTreeSet<RuleId>> {
        self.inner.datapath()?.left(cx)
    }
    fn state(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<flow::State> {
        self.inner.datapath()?.state(cx, pf)
    }
    fn clock(&self) -> Option<Duration> {
        self.inner.datapath()?.clock()
    }
    fn send(
        &self,
        cx: &mut Locked<'_, CardCall>,
        port: Port,
        now: Duration,
        frame: &[u8],
    ) -> Result<Vec<Arrival>, CardError> {
        self.inner.datapath().map_or(Ok(Vec::new()), |plane| plane.send(cx, port, now, frame))
    }
    fn sampler(&self) -> Option<&dyn Sampler> {
        self.inner.datapath()?.sampler()
    }
}

impl<C: Card> Faulty<C> {
    fn each(&self, f: impl FnOnce(&dyn Datapath)) {
        if let Some(plane) = self.inner.datapath() {
            f(plane);
        }
    }
}
