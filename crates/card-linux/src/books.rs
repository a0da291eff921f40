//! The card's books: which resources exist, and what the card has made for them in the kernel.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;

use eswitch::card::{Acl, Counters, Create, NetdevChange, OnNetdevChange, Resource};
use eswitch::names::{self, NetdevName};
use eswitch::{CardConfig, MacAddr, PfIndex, RepType, Vport};

use crate::adopt::Inventory;
use crate::homes::Instance;
use crate::layout::{Inside, Slot};
use crate::operation::Claims;
use crate::rates::Shaper;
use crate::request::Link;
use crate::ties::Ties;
use crate::wires::WireEnd;

/// What has happened to one of the card's netdevs.
pub(crate) type Change = (Resource, NetdevChange);

/// How a resource was requested: what is needed to make it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub mac: MacAddr,
    pub sfnum: Option<u32>,
    /// A port without a link: while it has no representor it is down.
    pub link_down: bool,
    /// What a port lets pass.
    pub acl: Acl,
    /// What the netdevs that a port had before have counted.
    pub counted: Counters,
}

impl Entry {
    /// The entry of what has just been made.
    pub(crate) fn of(request: &Create) -> Self {
        Self {
            mac: request.mac,
            sfnum: request.sfnum,
            link_down: false,
            acl: Acl::default(),
            counted: Counters::default(),
        }
    }
}

/// A netdev that is in another namespace than that where netdevs appear.
#[derive(Clone, Debug)]
pub(crate) struct Elsewhere {
    /// The id by which the card's own namespace knows that namespace, if it is known.
    pub netns: Option<i32>,
    /// The last that is known of the netdev.
    pub link: Link,
}

/// What the card has made for a slot in the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    /// The port exists.
    pub port: bool,
    /// The port is administratively up: its function's netdev can have carrier.
    pub port_up: bool,
    /// The card's end of the representor, or of the PF's netdev, exists.
    pub inner: bool,
    /// Port and inner end are tied.
    pub tied: bool,
    /// The inner end has carrier: the representor is up.
    pub carrier: bool,
    /// The representor's interface number where netdevs appear, and its MTU, while it is there.
    pub outer: Option<(u32, u32)>,
}

impl Ends {
    /// Whether a function's port must be brought up or down, as its representor has gained or lost carrier.
    pub(crate) fn is_stale(&self) -> bool {
        self.tied && self.port_up != self.carrier
    }
}

/// What the card's lock protects. See [`operation`](crate::operation) for when it is held.
pub(crate) struct Books {
    pub config: CardConfig,
    /// Where the netdevs appear.
    pub home: File,
    pub resources: HashMap<Resource, Entry>,
    pub ends: HashMap<Slot, Ends>,
    /// The PFs whose switchdev FDB lets no frame pass.
    pub inactive: BTreeSet<PfIndex>,
    /// How ports and representors are tied.
    pub ties: Ties,
    /// The bridges of each PF, by number.
    pub bridges: BTreeSet<(PfIndex, u16)>,
    pub wires: HashMap<PfIndex, WireEnd>,
    /// What limits the functions of each PF, if rates were ever set.
    pub shapers: HashMap<PfIndex, Shaper>,
    pub complaints: Vec<String>,
    /// Netdevs that a user has given another name, by the interface number of the card's end.
    pub renamed: HashMap<u32, String>,
    /// Netdevs that are in another namespace than that where netdevs appear, by the interface number of the card's
    /// end.
    pub elsewhere: HashMap<u32, Elsewhere>,
    /// The devlink instances that are in other namespaces, or being reloaded, by the function.
    pub instances: HashMap<Slot, Instance>,
    /// The state that netdevs are to be made again with, which come home from a namespace that has died.
    pub coming_home: HashMap<u32, Link>,
    /// The resources whose netdevs were deleted from outside, and that are being made anew. To readers of the card they
    /// exist, as the netdevs of hardware would.
    pub returning: HashSet<Resource>,
    /// What is gone and could not be made anew yet: the watcher tries again.
    pub again: Vec<Inside>,
    /// The MTUs of the card's ends of netdevs, by their interface numbers.
    pub card_mtus: HashMap<u32, u32>,
    /// The callback for netdevs that others rename or move.
    pub on_netdev_change: Option<OnNetdevChange>,
    /// The id by which the card's own namespace is known where netdevs appear, once it is known.
    pub inside_id: Option<i32>,
    /// What was found, while a card is being taken over.
    pub inventory: Option<Inventory>,
    /// What operations are changing.
    pub claims: Claims,
    /// The watcher has events for a vport that an operation is changing.
    pub watcher_waits: bool,
}

impl Books {
    /// The books of an empty card.
    pub(crate) fn new(config: CardConfig, home: File) -> Self {
        Self {
            config,
            home,
            resources: HashMap::new(),
            ends: HashMap::new(),
            ties: Ties::default(),
            inactive: BTreeSet::new(),
            bridges: BTreeSet::new(),
            wires: HashMap::new(),
            shapers: HashMap::new(),
            complaints: Vec::new(),
            renamed: HashMap::new(),
            elsewhere: HashMap::new(),
            instances: HashMap::new(),
            coming_home: HashMap::new(),
            returning: HashSet::new(),
            again: Vec::new(),
            card_mtus: HashMap::new(),
            on_netdev_change: None,
            inside_id: None,
            inventory: None,
            claims: Claims::default(),
            watcher_waits: false,
        }
    }

    /// What the card has made for a slot.
    pub(crate) fn ends(&self, slot: Slot) -> Ends {
        self.ends.get(&slot).copied().unwrap_or_default()
    }

    /// Whether a slot's representor is loaded.
    pub(crate) fn represented(&self, slot: Slot) -> bool {
        self.resources.contains_key(&Resource::Representor(slot.pf, slot.vport, RepType::Eth))
    }

    /// Whether a slot's port has no link, by the setting of its function.
    pub(crate) fn is_link_down(&self, slot: Slot) -> bool {
        self.resources.get(&Resource::Port(slot.pf, slot.vport)).is_some_and(|entry| entry.link_down)
    }

    /// Whether a PF has its switchdev FDB, so that its bridges are down.
    pub(crate) fn has_fdb(&self, pf: PfIndex) -> bool {
        self.resources.contains_key(&Resource::SwitchdevFdb(pf))
    }

    /// The number of a resource's SF: its own, or its port's.
    fn sfnum(&self, resource: &Resource) -> Option<u32> {
        let own = self.resources.get(resource).and_then(|entry| entry.sfnum);
        own.or_else(|| {
            let port = Resource::Port(resource.pf(), resource.vport()?);
            self.resources.get(&port)?.sfnum
        })
    }

    /// The name that the netdev of a resource is made with, whether the resource exists or is about to.
    pub(crate) fn netdev_name(&self, resource: &Resource, sfnum: Option<u32>) -> Option<NetdevName> {
        names::netdev(&self.config, resource, sfnum.or_else(|| self.sfnum(resource)))
    }

    /// The netdevs that have another name than they were made with.
    pub(crate) fn renamed(&self) -> Vec<(Resource, String)> {
        let of = |(near, name): (&u32, &String)| Some((Inside::of(*near)?.resource()?, name.clone()));
        self.renamed.iter().filter_map(of).filter(|(resource, _)| self.resources.contains_key(resource)).collect()
    }

    /// The name a resource has, as far as the card knows.
    pub(crate) fn name(&self, resource: &Resource) -> Option<String> {
        self.resources.get(resource)?;
        if let Some(name) = near_end(resource).and_then(|near| self.renamed.get(&near)) {
            return Some(name.clone());
        }
        match self.netdev_name(resource, None) {
            Some(netdev) => Some(netdev.name),
            None => names::ib_device(&self.config, resource, self.sfnum(resource)),
        }
    }

    /// The netdevs that are in another namespace.
    pub(crate) fn elsewhere(&self) -> Vec<Resource> {
        let resources = self.elsewhere.keys().filter_map(|near| Inside::of(*near)?.resource());
        resources.filter(|resource| self.resources.contains_key(resource)).collect()
    }

    /// If a representor was elsewhere, notes that it is where netdevs appear again, with what it had elsewhere: that
    /// has reached its function.
    pub(crate) fn note_return(&mut self, slot: Slot, index: u32) {
        if let Some(before) = self.elsewhere.get(&slot.inner())
            && let Some(ends) = self.ends.get_mut(&slot)
            && ends.outer.is_none()
        {
            ends.outer = Some((index, before.link.mtu));
        }
    }

    /// Updates the names of those of the card's netdevs that are among `links`, which are links where netdevs appear;
    /// returns those that have another name or are back.
    pub(crate) fn update_names<'a>(&mut self, links: impl Iterator<Item = &'a Link>) -> Vec<Change> {
        let mut changes = Vec::new();
        for link in links {
            let Some((near, Some(netns))) = link.peer else { continue };
            let Some(resource) = Inside::of(near).and_then(Inside::resource) else { continue };
            // Another card's netdevs have the same numbers at their other ends.
            if self.inside_id != Some(netns) {
                continue;
            }
            let Some(made) = self.netdev_name(&resource, None) else { continue };
            let is_new = match self.renamed.get(&near) {
                Some(known) => *known != link.name,
                None => made.name != link.name,
            };
            if made.name == link.name {
                self.renamed.remove(&near);
            } else {
                self.renamed.insert(near, link.name.clone());
            }
            let is_back = self.elsewhere.remove(&near).is_some();
            let change = if is_back { NetdevChange::Back } else { NetdevChange::Renamed };
            if (is_new || is_back) && self.resources.contains_key(&resource) {
                changes.push((resource, change(link.name.clone())));
            }
        }
        changes
    }
}

/// The slot that a resource belongs to. What belongs to a PF as a whole belongs to its uplink's.
pub(crate) fn slot_of(resource: &Resource) -> Slot {
    Slot { pf: resource.pf(), vport: resource.vport().unwrap_or(Vport::Uplink) }
}

/// The interface index of the card's end of the netdev that a resource is, in the card's network namespace. `None`: the
/// resource is no netdev. The card chooses these indexes, so they are the same whenever the resource is made.
pub fn near_end(resource: &Resource) -> Option<u32> {
    match *resource {
        Resource::PfNetdev(_) => Some(slot_of(resource).inner()),
        Resource::Port(_, Vport::Vf(_) | Vport::Sf(_)) => None,
        Resource::Port(..) | Resource::VfNetdev(..) | Resource::SfNetdev(..) => Some(slot_of(resource).port()),
        Resource::Representor(_, vport, RepType::Eth) if vport != Vport::Uplink => Some(slot_of(resource).inner()),
        _ => None,
    }
}
