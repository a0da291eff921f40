//! A card in memory: it keeps books of its resources, and carries frames by [`flow::process`].
//!
//! It records every resource, and complains when one is made that exists or unmade that does not. It never fails and
//! never waits: to have it do so, wrap it in [`eswitch::card::Faulty`].

#![forbid(unsafe_code)]

mod planes;

use std::collections::BTreeMap;

use eswitch::card::{Acl, Card, CardError, Create, FailedCreate, Resource};
use eswitch::datapath::Datapath;
use eswitch::lock_order::{CardCall, CardState};
use eswitch::rate::TxRates;
use eswitch::{CardConfig, MacAddr, PfIndex, RepType, Vport, names};
use lockdep::{Locked, Mutex, digest};

pub use planes::{Forwarded, Planes};

/// A card whose resources are entries in its books.
pub struct MemoryCard {
    config: CardConfig,
    books: Mutex<CardState, Books>,
    planes: Planes,
}

/// What exists. For an explorer, two books are the same if they have the same entries, whichever thread wrote them and
/// in whichever order.
#[derive(Default, Hash)]
struct Books {
    /// Sorted, so that looking at a card twice shows the same twice, and an explored schedule can be run again.
    resources: BTreeMap<Key, Entry>,
    netns: BTreeMap<PfIndex, String>,
    rates: BTreeMap<PfIndex, TxRates>,
    complaints: Vec<String>,
}

#[derive(Clone, Copy, Hash)]
struct Entry {
    resource: Resource,
    mac: MacAddr,
    sfnum: Option<u32>,
    /// A port without a link.
    link_down: bool,
    /// What a port lets pass.
    acl: Acl,
}

/// A resource as one number: its kind, its PF, and which of the PF's it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key(u64);

impl Key {
    fn of(resource: &Resource) -> Self {
        let key = |kind: u64, within: u16| kind << 32 | u64::from(resource.pf().0) << 24 | u64::from(within);
        Self(match *resource {
            Resource::Function(_) => key(0, 0),
            Resource::PfNetdev(_) => key(1, 0),
            Resource::PfIbDevice(_) => key(2, 0),
            Resource::SwitchdevFdb(_) => key(3, 0),
            Resource::Port(_, vport) => key(4, vport.number()),
            Resource::SfNetdev(_, vport) => key(5, vport.number()),
            Resource::SfIbDevice(_, vport) => key(6, vport.number()),
            Resource::Representor(_, vport, RepType::Eth) => key(7, vport.number()),
            Resource::Representor(_, vport, RepType::Ib) => key(8, vport.number()),
            Resource::Lag(_) => key(9, 0),
            Resource::MpeswMetadata(_) => key(10, 0),
            Resource::PeerRules(_, peer) => key(11, peer.0.into()),
            Resource::VfNetdev(_, vport) => key(12, vport.number()),
        })
    }
}

impl MemoryCard {
    /// A card that holds nothing.
    pub fn new(config: CardConfig) -> Self {
        Self { config, books: Mutex::new(Books::default()).with_state_digest(digest), planes: Planes::default() }
    }

    /// The MAC address of a resource's netdev, if it exists.
    pub fn mac<L>(&self, cx: &mut Locked<'_, L>, resource: &Resource) -> Option<MacAddr> {
        self.books.lock_leaf(cx).resources.get(&Key::of(resource)).map(|entry| entry.mac)
    }

    /// The rates that a PF's functions have.
    pub fn rates<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex) -> TxRates {
        self.books.lock_leaf(cx).rates.get(&pf).cloned().unwrap_or_default()
    }

    /// The data plane, to send frames and see where they arrive.
    pub fn planes(&self) -> &Planes {
        &self.planes
    }

    /// What a port lets pass, if it exists.
    pub fn acl<L>(&self, cx: &mut Locked<'_, L>, port: &Resource) -> Option<Acl> {
        self.books.lock_leaf(cx).resources.get(&Key::of(port)).map(|entry| entry.acl)
    }

    /// Whether a port has its link, if it exists.
    pub fn link<L>(&self, cx: &mut Locked<'_, L>, port: &Resource) -> Option<bool> {
        self.books.lock_leaf(cx).resources.get(&Key::of(port)).map(|entry| !entry.link_down)
    }
}

impl Card for MemoryCard {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        let mut books = self.books.lock_leaf(cx);
        for request in batch {
            let entry = Entry {
                resource: request.resource,
                mac: request.mac,
                sfnum: request.sfnum,
                link_down: false,
                acl: Acl::default(),
            };
            if books.resources.insert(Key::of(&request.resource), entry).is_some() {
                books.complaints.push(format!("{} made twice", request.resource));
            }
        }
        Vec::new()
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        let mut books = self.books.lock_leaf(cx);
        for resource in batch {
            if books.resources.remove(&Key::of(resource)).is_none() {
                books.complaints.push(format!("{resource} unmade and was not there"));
            }
            if let Resource::Port(pf, vport) = resource
                && let Some(rates) = books.rates.get_mut(pf)
            {
                rates.leaves.remove(vport);
            }
            if let Resource::PfNetdev(pf) = resource {
                // A netdev that is made again is made where netdevs appear.
                books.netns.remove(pf);
            }
        }
    }

    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        let books = self.books.lock_leaf(cx);
        let entry = books.resources.get(&Key::of(resource))?;
        let sfnum = entry.sfnum.or_else(|| {
            let port = Resource::Port(resource.pf(), resource.vport()?);
            books.resources.get(&Key::of(&port))?.sfnum
        });
        match names::netdev(&self.config, resource, sfnum) {
            Some(netdev) => Some(netdev.name),
            None => names::ib_device(&self.config, resource, sfnum),
        }
    }

    fn datapath(&self) -> Option<&dyn Datapath> {
        Some(&self.planes)
    }

    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        match books.resources.get_mut(&Key::of(resource)) {
            Some(entry) => entry.mac = mac,
            None => books.complaints.push(format!("{resource} given a MAC address and was not there")),
        }
        Ok(())
    }

    fn set_fdb_active(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, active: bool) -> Result<(), CardError> {
        self.planes.set_active(cx, pf, active);
        Ok(())
    }

    fn set_link(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, up: bool) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        match books.resources.get_mut(&Key::of(port)) {
            Some(entry) => entry.link_down = !up,
            None => books.complaints.push(format!("{port} given a link state and was not there")),
        }
        Ok(())
    }

    fn set_acl(&self, cx: &mut Locked<'_, CardCall>, port: &Resource, acl: Acl) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        match books.resources.get_mut(&Key::of(port)) {
            Some(entry) => entry.acl = acl,
            None => books.complaints.push(format!("{port} given an access list and was not there")),
        }
        Ok(())
    }

    fn set_rates(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rates: &TxRates) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        let has_port = |vport: &Vport| books.resources.contains_key(&Key::of(&Resource::Port(pf, *vport)));
        if let Some(vport) = rates.leaves.keys().find(|vport| !has_port(vport)) {
            let complaint = format!("{} given a rate and was not there", Resource::Port(pf, *vport));
            books.complaints.push(complaint);
        }
        if *rates == TxRates::default() {
            books.rates.remove(&pf);
        } else {
            books.rates.insert(pf, rates.clone());
        }
        Ok(())
    }

    fn set_netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, netns: Option<&str>) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        match netns {
            Some(name) => books.netns.insert(pf, name.to_owned()),
            None => books.netns.remove(&pf),
        };
        Ok(())
    }

    fn netns(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<String> {
        self.books.lock_leaf(cx).netns.get(&pf).cloned()
    }

    fn resources(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Resource> {
        self.books.lock_leaf(cx).resources.values().map(|entry| entry.resource).collect()
    }

    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        std::mem::take(&mut self.books.lock_leaf(cx).complaints)
    }
}
