//! A card in memory: books, and nothing behind them.
//!
//! It counts every resource, and notes when one is made that exists or unmade that does not. Failures
//! and delays are not its business: wrap it in [`eswitch::card::Faulty`].

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use eswitch::card::{Card, CardError, Create, Resource};
use eswitch::lock_order::{CardCall, CardState};
use eswitch::{CardConfig, MacAddr, PfIndex, names};
use lockdep::{Locked, Mutex};

/// The card.
pub struct MemoryCard {
    config: CardConfig,
    books: Mutex<CardState, Books>,
}

#[derive(Default)]
struct Books {
    resources: HashMap<Resource, Entry>,
    netns: BTreeMap<PfIndex, String>,
    complaints: Vec<String>,
}

#[derive(Clone, Copy)]
struct Entry {
    mac: MacAddr,
    sfnum: Option<u32>,
}

impl MemoryCard {
    /// A card that holds nothing.
    pub fn new(config: CardConfig) -> Self {
        Self {
            config,
            books: Mutex::new(Books::default()),
        }
    }

    /// The MAC address of a resource's netdev, if it exists.
    pub fn mac<L>(&self, cx: &mut Locked<'_, L>, resource: &Resource) -> Option<MacAddr> {
        self.books.lock_leaf(cx).resources.get(resource).map(|entry| entry.mac)
    }
}

impl Card for MemoryCard {
    fn create(&self, cx: &mut Locked<'_, CardCall>, batch: &[Create]) -> Vec<Result<(), CardError>> {
        let mut books = self.books.lock_leaf(cx);
        for request in batch {
            let entry = Entry {
                mac: request.mac,
                sfnum: request.sfnum,
            };
            if books.resources.insert(request.resource, entry).is_some() {
                books.complaints.push(format!("{} made twice", request.resource));
            }
        }
        vec![Ok(()); batch.len()]
    }

    fn destroy(&self, cx: &mut Locked<'_, CardCall>, batch: &[Resource]) {
        let mut books = self.books.lock_leaf(cx);
        for resource in batch {
            if books.resources.remove(resource).is_none() {
                books.complaints.push(format!("{resource} unmade and was not there"));
            }
        }
    }

    fn name(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource) -> Option<String> {
        let books = self.books.lock_leaf(cx);
        let entry = books.resources.get(resource)?;
        let sfnum = entry.sfnum.or_else(|| {
            let port = Resource::Port(resource.pf(), resource.vport()?);
            books.resources.get(&port)?.sfnum
        });
        match names::netdev(&self.config, resource, sfnum) {
            Some(netdev) => Some(netdev.name),
            None => names::ib_device(&self.config, resource, sfnum),
        }
    }

    fn set_mac(&self, cx: &mut Locked<'_, CardCall>, resource: &Resource, mac: MacAddr) -> Result<(), CardError> {
        let mut books = self.books.lock_leaf(cx);
        match books.resources.get_mut(resource) {
            Some(entry) => entry.mac = mac,
            None => books
                .complaints
                .push(format!("{resource} given a MAC address and was not there")),
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
        self.books.lock_leaf(cx).resources.keys().copied().collect()
    }

    fn take_complaints(&self, cx: &mut Locked<'_, CardCall>) -> Vec<String> {
        std::mem::take(&mut self.books.lock_leaf(cx).complaints)
    }
}
