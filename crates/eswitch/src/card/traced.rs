//! A card that tells what it is asked.

use lockdep::Locked;

use crate::card::{Card, CardError, Create, FailedCreate, OnRename, Resource};
use crate::ids::{MacAddr, PfIndex};
use crate::lock_order::CardCall;

/// A card around a card that hands each call, as a line, to `tell`.
pub struct Traced<C, F> {
    inner: C,
    tell: F,
}

impl<C, F: Fn(&str) + Send + Sync> Traced<C, F> {
    /// A card that does what `inner` does and tells.
    pub fn new(inner: C, tell: F) -> Self {
        Self { inner, tell }
    }
}

impl<C: Card, F: Fn(&str) + Send + Sync> Card for Traced<C, F> {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        let refusals = self.inner.create(cx, batch);
        let mut refused = refusals.iter().peekable();
        for (at, request) in batch.iter().enumerate() {
            match refused.next_if(|refusal| refusal.at == at) {
                None => (self.tell)(&format!("create {}", request.resource)),
                Some(refusal) => (self.tell)(&format!("create {}: {}", request.resource, refusal.error)),
            }
        }
        refusals
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        for resource in batch {
            (self.tell)(&format!("destroy {resource}"));
        }
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
        (self.tell)(&format!("set {resource} mac {mac}"));
        self.inner.set_mac(cx, resource, mac)
    }

    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        (self.tell)(&format!("netns pf{} {}", pf.0, netns.unwrap_or("(home)")));
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
