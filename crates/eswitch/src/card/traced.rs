//! A card that logs the requests that it receives.

use std::collections::BTreeMap;

use lockdep::Locked;

use crate::card::{Acl, Card, CardError, Counters, Create, FailedCreate, MovedInstance, OnNetdevChange, Resource};
use crate::datapath::Datapath;
use crate::ids::{MacAddr, PfIndex, Vport};
use crate::lock_order::CardCall;
use crate::rate::TxRates;

/// A card that wraps another card, and passes a line of text for each change to the function `log`. Queries are not
/// logged.
pub struct Traced<C, F> {
    inner: C,
    log: F,
}

impl<C, F: Fn(&str) + Send + Sync> Traced<C, F> {
    /// Wraps `inner`.
    pub fn new(inner: C, log: F) -> Self {
        Self { inner, log }
    }
}

impl<C: Card, F: Fn(&str) + Send + Sync> Card for Traced<C, F> {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        let failures = self.inner.create(cx, batch);
        let mut remaining = failures.iter().peekable();
        for (at, request) in batch.iter().enumerate() {
            match remaining.next_if(|failed| failed.at == at) {
                None => (self.log)(&format!("create {}", request.resource)),
                Some(failed) => (self.log)(&format!("create {}: {}", request.resource, failed.error)),
            }
        }
        failures
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        for resource in batch {
            (self.log)(&format!("destroy {resource}"));
        }
        self.inner.destroy(cx, batch);
    }

    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        self.inner.name(cx, resource)
    }

    fn datapath(&self) -> Option<&dyn Datapath> {
        self.inner.datapath()
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
        (self.log)(&format!("set {resource} mac {mac}"));
        self.inner.set_mac(cx, resource, mac)
    }

    fn set_fdb_active(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, active: bool) -> Result<(), CardError> {
        (self.log)(&format!("set fdb pf{} {}", pf.0, if active { "active" } else { "inactive" }));
        self.inner.set_fdb_active(cx, pf, active)
    }

    fn set_link(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, up: bool) -> Result<(), CardError> {
        (self.log)(&format!("set {port} link {}", if up { "up" } else { "down" }));
        self.inner.set_link(cx, port, up)
    }

    fn set_acl(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, acl: Acl) -> Result<(), CardError> {
        let source = acl.source.map_or("any".to_owned(), |mac| mac.to_string());
        let vlan = acl.tag.map_or("any".to_owned(), |tag| format!("{} priority {}", tag.vlan, tag.priority));
        (self.log)(&format!("set {port} access source {source} vlan {vlan}"));
        self.inner.set_acl(cx, port, acl)
    }

    fn set_rates(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        (self.log)(&format!("rates pf{} {} leaves, {} nodes", pf.0, rates.leaves.len(), rates.nodes.len()));
        self.inner.set_rates(cx, pf, rates)
    }

    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        (self.log)(&format!("netns pf{} {}", pf.0, netns.unwrap_or("(home)")));
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
