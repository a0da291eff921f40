//! A card in memory: books, and nothing behind them.
//!
//! It counts every resource, and notes when one is made that exists or unmade that does not. Failures
//! and delays are not its business: wrap it in [`eswitch::card::Faulty`].

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use eswitch::card::{Card, CardError, Create, FailedCreate, Resource};
use eswitch::lock_order::{CardCall, CardState};
use eswitch::{CardConfig, MacAddr, PfIndex, RepType, names};
use lockdep::{Locked, Mutex, digest};

/// The card.
pub struct MemoryCard {
    config: CardConfig,
    books: Mutex<CardState, Books>,
}

/// To an explorer: what they say, whoever wrote it and in whatever order.
#[derive(Default, Hash)]
struct Books {
    /// In order, so that looking at a card twice shows the same twice, and an explored story replays.
    resources: BTreeMap<Key, Entry>,
    netns: BTreeMap<PfIndex, String>,
    complaints: Vec<String>,
}

#[derive(Clone, Copy, Hash)]
struct Entry {
    resource: Resource,
    mac: MacAddr,
    sfnum: Option<u32>,
}

/// A resource's name as one number: the kind, the PF, and which of the PF's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key(u64);

impl Key {
    fn of(resource: &Resource) -> Self {
        let which = |kind: u64, within: u16| kind << 32 | u64::from(resource.pf().0) << 24 | u64::from(within);
        Self(match *resource {
            Resource::Function(_) => which(0, 0),
            Resource::PfNetdev(_) => which(1, 0),
            Resource::PfIbDevice(_) => which(2, 0),
            Resource::SwitchdevFdb(_) => which(3, 0),
            Resource::Port(_, vport) => which(4, vport.number()),
            Resource::SfNetdev(_, vport) => which(5, vport.number()),
            Resource::SfIbDevice(_, vport) => which(6, vport.number()),
            Resource::Representor(_, vport, RepType::Eth) => which(7, vport.number()),
            Resource::Representor(_, vport, RepType::Ib) => which(8, vport.number()),
            Resource::Lag(_) => which(9, 0),
            Resource::MpeswMetadata(_) => which(10, 0),
            Resource::PeerRules(_, peer) => which(11, peer.0.into()),
            Resource::VfNetdev(_, vport) => which(12, vport.number()),
        })
    }
}

impl MemoryCard {
    /// A card that holds nothing.
    pub fn new(config: CardConfig) -> Self {
        Self { config, books: Mutex::new(Books::default()).with_state_digest(digest) }
    }

    /// The MAC address of a resource's netdev, if it exists.
    pub fn mac<L>(&self, cx: &mut Locked<'_, L>, resource: &Resource) -> Option<MacAddr> {
        self.books.lock_leaf(cx).resources.get(&Key::of(resource)).map(|entry| entry.mac)
    }
}

impl Card for MemoryCard {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<FailedCreate> {
        let mut books = self.books.lock_leaf(cx);
        for request in batch {
            let entry = Entry { resource: request.resource, mac: request.mac, sfnum: request.sfnum };
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
            if let Resource::PfNetdev(pf) = resource {
                // A netdev that is made again is made at home.
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

    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        match books.resources.get_mut(&Key::of(resource)) {
            Some(entry) => entry.mac = mac,
            None => books.complaints.push(format!("{resource} given a MAC address and was not there")),
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
