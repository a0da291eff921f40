//! The state that all PFs of a card share, and the functions by which all resources are made and unmade.

use std::collections::BTreeSet;
use std::panic::Location;
use std::sync::Arc;

use lockdep::{JoinHandle, LockBefore, Locked, Mutex, Shadow, Spawn, ThreadMain};

use crate::auxiliary::Bus;
use crate::card::{Card, Create, FailedCreate, Resource};
use crate::config::CardConfig;
use crate::devcom::Devcom;
use crate::error::{Error, Result};
use crate::event::{Change, Events};
use crate::flows::Flows;
use crate::ids::{MacAddr, Vport};
use crate::lag::Lag;
use crate::lock_order::{DeviceSlot, ResourceCall};
use crate::module::{Core, Modules};

/// The state that all PFs of a card share.
pub struct Shared {
    pub(crate) config: CardConfig,
    pub(crate) card: Arc<dyn Card>,
    pub(crate) bus: Bus,
    pub(crate) modules: Modules,
    pub(crate) devcom: Devcom,
    pub(crate) lag: Lag,
    pub(crate) flows: Flows,
    pub(crate) events: Events,
    pub(crate) threads: Arc<dyn Spawn>,
    pub(crate) core: Core,
    pub(crate) lag_thread: Mutex<DeviceSlot, Option<JoinHandle<()>>>,
    /// The resources that the card has made and not unmade, for invariants.
    pub(crate) made: Shadow<BTreeSet<Resource>>,
}

impl Shared {
    /// Makes one resource of the card.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not make it.
    #[track_caller]
    pub(crate) fn create<P: LockBefore<ResourceCall>>(
        &self,
        cx: &mut Locked<'_, P>,
        resource: Resource,
        mac: MacAddr,
        sfnum: Option<u32>,
    ) -> Result<()> {
        self.create_all(cx, &[Create { resource, mac, sfnum }])
    }

    /// Makes all of the requested resources, or none of them.
    ///
    /// # Errors
    /// [`Error::Card`]: the first request that failed. Those that succeeded have been undone.
    #[track_caller]
    pub(crate) fn create_all<P: LockBefore<ResourceCall>>(
        &self,
        cx: &mut Locked<'_, P>,
        requests: &[Create],
    ) -> Result<()> {
        let mut cx = cx.narrow();
        let failures = self.make(&mut cx, requests);
        let Some(first) = failures.first() else { return Ok(()) };
        let failed = |at: &usize| failures.binary_search_by_key(at, |failed| failed.at).is_ok();
        let made = requests.iter().enumerate().rev().filter(|(at, _)| !failed(at));
        let made: Vec<Resource> = made.map(|(_, request)| request.resource).collect();
        self.unmake(&mut cx, &made);
        Err(Error::Card { operation: format!("making {}", requests[first.at].resource), source: first.error.clone() })
    }

    /// Unmakes resources, in the order of the slice. Cannot fail.
    #[track_caller]
    pub(crate) fn destroy<P: LockBefore<ResourceCall>>(&self, cx: &mut Locked<'_, P>, resources: &[Resource]) {
        if !resources.is_empty() {
            self.unmake(&mut cx.narrow(), resources);
        }
    }

    /// Makes those of the requested resources that the card can make, and returns the requests that failed, in order.
    /// None of the resources may exist.
    #[track_caller]
    pub(crate) fn make(&self, cx: &mut Locked<'_, ResourceCall>, requests: &[Create]) -> Vec<FailedCreate> {
        let twice = || self.made.with(|made| requests.iter().map(|r| r.resource).find(|r| made.contains(r)));
        cx.ensure("load-once", || twice().is_none(), || format!("{:?} is made, and exists already", twice()));
        let of_batch = |on: &Resource| requests.iter().any(|request| request.resource == *on);
        let lacks = |on: &Resource| !self.has_made(on) && !of_batch(on);
        let incomplete = || requests.iter().find(|request| depends_on(request.resource).iter().any(lacks));
        cx.ensure(
            "no-leak",
            || incomplete().is_none(),
            || {
                let resource = incomplete().map(|request| (request.resource, depends_on(request.resource)));
                format!("{resource:?}: it is made, and not all resources that it depends on exist")
            },
        );
        let failures = self.card.create(&mut cx.narrow(), requests);
        self.made.note(cx, |made| {
            let failed = |at: usize| failures.iter().any(|failed| failed.at == at);
            let done = requests.iter().enumerate().filter(|(at, _)| !failed(*at));
            made.extend(done.map(|(_, request)| request.resource));
        });
        let failed = |at: &usize| failures.binary_search_by_key(at, |failed| failed.at).is_ok();
        let done = requests.iter().enumerate().filter(|(at, _)| !failed(at)).map(|(_, request)| request.resource);
        self.flows.made(cx, &*self.card, &done.collect::<Vec<_>>());
        failures
    }

    #[track_caller]
    fn unmake(&self, cx: &mut Locked<'_, ResourceCall>, resources: &[Resource]) {
        let missing = || self.made.with(|made| resources.iter().copied().find(|r| !made.contains(r)));
        cx.ensure("load-once", || missing().is_none(), || format!("{:?} is unmade, and does not exist", missing()));
        let on_them = |r: &Resource| depends_on(*r).iter().any(|on| resources.contains(on));
        let left = || self.made_of(|r| !resources.contains(r) && on_them(r));
        cx.ensure("no-leak", || left().is_empty(), || format!("{:?} depend on what is unmade", left()));
        self.flows.unmaking(cx, &*self.card, resources);
        self.card.destroy(&mut cx.narrow(), resources);
        self.made.note(cx, |made| {
            for resource in resources {
                made.remove(resource);
            }
        });
    }

    /// Whether a resource exists, for invariants.
    pub(crate) fn has_made(&self, resource: &Resource) -> bool {
        self.made.with(|made| made.contains(resource))
    }

    /// The existing resources for which `which` returns true, for invariants.
    pub(crate) fn made_of(&self, which: impl Fn(&Resource) -> bool) -> Vec<Resource> {
        self.made.with(|made| made.iter().copied().filter(which).collect())
    }

    /// Begins a change, which is counted when the returned value is dropped. It is for changes that are made under none
    /// of the locks that count changes themselves, which are a device's lock and the devlink lock.
    pub(crate) fn change(&self) -> Change<'_> {
        self.events.changes().begin()
    }

    /// Starts the thread of a queue. `queue` identifies the start among the places that can fail; `name` is the
    /// thread's name.
    ///
    /// # Errors
    /// [`Error::NoThread`]: the system could not start a thread.
    #[track_caller]
    pub(crate) fn start<L>(
        &self,
        cx: &Locked<'_, L>,
        queue: &str,
        name: &str,
        main: ThreadMain,
    ) -> Result<JoinHandle<()>> {
        let place = || format!("thread {queue}");
        if cx.fails(place) {
            return Err(Error::NoThread(place()));
        }
        self.threads.spawn(name, Location::caller(), main).map_err(|error| Error::NoThread(error.to_string()))
    }
}

/// The resources that must exist when a resource is made, and until it is unmade.
fn depends_on(resource: Resource) -> Vec<Resource> {
    let function = Resource::Function(resource.pf());
    match resource {
        Resource::Function(_) => vec![],
        Resource::Representor(pf, Vport::Uplink, _) => vec![function, Resource::SwitchdevFdb(pf)],
        Resource::Representor(pf, vport, _) => vec![function, Resource::SwitchdevFdb(pf), Resource::Port(pf, vport)],
        Resource::VfNetdev(pf, vport) | Resource::SfNetdev(pf, vport) | Resource::SfIbDevice(pf, vport) => {
            vec![function, Resource::Port(pf, vport)]
        }
        Resource::PeerRules(pf, peer) => vec![function, Resource::SwitchdevFdb(pf), Resource::SwitchdevFdb(peer)],
        _ => vec![function],
    }
}
