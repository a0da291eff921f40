//! What all PFs of a card share, and the one way in which resources are made and unmade.

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
use crate::ids::{MacAddr, Vport};
use crate::lag::Lag;
use crate::lock_order::{CardCall, DeviceSlot};
use crate::module::{Core, Modules};

/// What all PFs of a card share.
pub struct Shared {
    pub(crate) config: CardConfig,
    pub(crate) card: Arc<dyn Card>,
    pub(crate) bus: Bus,
    pub(crate) modules: Modules,
    pub(crate) devcom: Devcom,
    pub(crate) lag: Lag,
    pub(crate) events: Events,
    pub(crate) threads: Arc<dyn Spawn>,
    pub(crate) core: Core,
    pub(crate) lag_thread: Mutex<DeviceSlot, Option<JoinHandle<()>>>,
    /// What the card has made and not unmade, for invariants.
    pub(crate) made: Shadow<BTreeSet<Resource>>,
}

impl Shared {
    /// Has the card make one thing.
    #[track_caller]
    pub(crate) fn create<P: LockBefore<CardCall>>(
        &self,
        cx: &mut Locked<'_, P>,
        resource: Resource,
        mac: MacAddr,
        sfnum: Option<u32>,
    ) -> Result<()> {
        self.create_all(cx, &[Create { resource, mac, sfnum }])
    }

    /// Has the card make all of these, or none.
    #[track_caller]
    pub(crate) fn create_all<P: LockBefore<CardCall>>(
        &self,
        cx: &mut Locked<'_, P>,
        requests: &[Create],
    ) -> Result<()> {
        let mut cx = cx.narrow();
        let refusals = self.make(&mut cx, requests);
        let Some(first) = refusals.first() else { return Ok(()) };
        let refused = |at: &usize| refusals.binary_search_by_key(at, |refusal| refusal.at).is_ok();
        let made = requests.iter().enumerate().rev().filter(|(at, _)| !refused(at));
        let made: Vec<Resource> = made.map(|(_, request)| request.resource).collect();
        self.unmake(&mut cx, &made);
        Err(Error::Card { operation: format!("making {}", requests[first.at].resource), source: first.error.clone() })
    }

    /// Has the card unmake these.
    #[track_caller]
    pub(crate) fn destroy<P: LockBefore<CardCall>>(&self, cx: &mut Locked<'_, P>, resources: &[Resource]) {
        if !resources.is_empty() {
            self.unmake(&mut cx.narrow(), resources);
        }
    }

    /// Has the card make what it can of these, and returns what it could not. Nothing of it may be there.
    #[track_caller]
    pub(crate) fn make(&self, cx: &mut Locked<'_, CardCall>, requests: &[Create]) -> Vec<FailedCreate> {
        let twice = || self.made.with(|made| requests.iter().map(|r| r.resource).find(|r| made.contains(r)));
        cx.ensure("load-once", || twice().is_none(), || format!("{:?} is made, and is there", twice()));
        let of_batch = |on: &Resource| requests.iter().any(|request| request.resource == *on);
        let lacks = |on: &Resource| !self.has_made(on) && !of_batch(on);
        let groundless = || requests.iter().find(|request| stands_on(request.resource).iter().any(lacks));
        cx.ensure(
            "no-leak",
            || groundless().is_none(),
            || {
                let resource = groundless().map(|request| (request.resource, stands_on(request.resource)));
                format!("{resource:?}: it is made, and not all that it stands on is there")
            },
        );
        let refusals = self.card.create(cx, requests);
        self.made.note(cx, |made| {
            let refused = |at: usize| refusals.iter().any(|refusal| refusal.at == at);
            let done = requests.iter().enumerate().filter(|(at, _)| !refused(*at));
            made.extend(done.map(|(_, request)| request.resource));
        });
        refusals
    }

    #[track_caller]
    fn unmake(&self, cx: &mut Locked<'_, CardCall>, resources: &[Resource]) {
        let missing = || self.made.with(|made| resources.iter().copied().find(|r| !made.contains(r)));
        cx.ensure("load-once", || missing().is_none(), || format!("{:?} is unmade, and is not there", missing()));
        let on_them = |r: &Resource| stands_on(*r).iter().any(|on| resources.contains(on));
        let left = || self.made_of(|r| !resources.contains(r) && on_them(r));
        cx.ensure("no-leak", || left().is_empty(), || format!("{:?} stand on what is unmade", left()));
        self.card.destroy(cx, resources);
        self.made.note(cx, |made| {
            for resource in resources {
                made.remove(resource);
            }
        });
    }

    /// Whether the card has made it, for invariants.
    pub(crate) fn has_made(&self, resource: &Resource) -> bool {
        self.made.with(|made| made.contains(resource))
    }

    /// What the card has made of this, for invariants.
    pub(crate) fn made_of(&self, which: impl Fn(&Resource) -> bool) -> Vec<Resource> {
        self.made.with(|made| made.iter().copied().filter(which).collect())
    }

    /// Says that something is about to change; it has changed when what is returned is dropped. It is for what
    /// stands under none of the locks that count by themselves: a device's, devlink's, and that of modules.
    pub(crate) fn change(&self) -> Change<'_> {
        self.events.changes().begin()
    }

    /// Starts the thread of a queue, which `queue` names among what can fail.
    ///
    /// # Errors
    /// There is no thread to be had.
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

/// What must be there before a resource is made, and until it is unmade.
fn stands_on(resource: Resource) -> Vec<Resource> {
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
