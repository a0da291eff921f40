//! The cards of a lab: which card has which device, and by which name the kernel knows it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use control::Command;
use devlink::view::{self, DeviceName, Netdev};
use eswitch::PciAddress;
use eswitch::card::Counters;
use lockdep::{Locked, Mutex};
use netlink::Errno;

use crate::card::{Card, Refusal};
use crate::lock_order::{CardIndex, RdmaMode};

/// All cards of a lab.
pub(crate) struct Cards {
    cards: Vec<Member>,
    /// `netns_mode` of RDMA devices: 1 (shared) until a program sets it.
    pub rdma_mode: Mutex<RdmaMode, u8>,
}

struct Member {
    card: Arc<dyn Card>,
    /// The last view, with its index.
    indexed: Mutex<CardIndex, Option<Arc<IndexedView>>>,
}

/// A view of one card, with an index of its netdevs.
pub(crate) struct IndexedView {
    pub card: Arc<view::Card>,
    by_name: HashMap<String, usize>,
}

impl IndexedView {
    fn new(card: Arc<view::Card>) -> Self {
        let by_name = card.netdevs.iter().enumerate().map(|(n, netdev)| (netdev.name.clone(), n)).collect();
        Self { card, by_name }
    }

    /// How many VFs the PCI function `parent` has (`dev_num_vf`).
    pub fn vfs_of(&self, parent: DeviceName) -> u32 {
        let DeviceName::Pci(address) = parent else { return 0 };
        let function = self.card.functions.iter().find(|f| f.address == address);
        function.and_then(|f| f.sriov.as_ref()).map_or(0, |sriov| u32::from(sriov.enabled))
    }

    fn netdev(&self, name: &str) -> Option<&Netdev> {
        self.card.netdevs.get(*self.by_name.get(name)?)
    }

    fn has(&self, device: DeviceName) -> bool {
        match device {
            DeviceName::Pci(address) => self.card.functions.iter().any(|function| function.address == address),
            DeviceName::Auxiliary(name) => self.card.auxiliary.iter().any(|device| device.name == name),
        }
    }
}

/// The views of all cards at one moment, made once for each datagram. A card that is gone has none.
pub(crate) struct Views(Vec<Option<Arc<IndexedView>>>);

impl Views {
    /// The netdev that a card has under a name, with the card's index. This is the only place that decides whether a
    /// netdev of the kernel is a card's.
    pub fn netdev(&self, name: &str) -> Option<(usize, &IndexedView, &Netdev)> {
        self.each().find_map(|(n, view)| Some((n, view, view.netdev(name)?)))
    }

    /// The index of the card that has a device.
    pub fn owner(&self, device: DeviceName) -> Option<usize> {
        self.each().find_map(|(n, view)| view.has(device).then_some(n))
    }

    /// The indexes of the cards that have a module.
    pub fn having_module(&self, name: &str) -> Vec<usize> {
        let has = |view: &IndexedView| view.card.modules.iter().any(|module| module.name == name);
        self.each().filter_map(|(n, view)| has(view).then_some(n)).collect()
    }

    /// Every card that is not gone, with its index.
    pub fn each(&self) -> impl Iterator<Item = (usize, &IndexedView)> {
        self.0.iter().enumerate().filter_map(|(n, view)| Some((n, &**view.as_ref()?)))
    }
}

impl Cards {
    pub fn new(cards: Vec<Arc<dyn Card>>) -> Self {
        let cards = cards.into_iter().map(|card| Member { card, indexed: Mutex::new(None) }).collect();
        Self { cards, rdma_mode: Mutex::new(1) }
    }

    pub fn len(&self) -> usize {
        self.cards.len()
    }

    pub fn card(&self, n: usize) -> Option<&Arc<dyn Card>> {
        self.cards.get(n).map(|member| &member.card)
    }

    /// The current views of all cards.
    pub fn now<L>(&self, cx: &mut Locked<'_, L>) -> Views {
        Views(self.cards.iter().map(|member| member.now(cx)).collect())
    }

    /// Has card `n` carry out a command.
    ///
    /// # Errors
    /// The card refuses, or is gone.
    pub fn perform(&self, n: usize, command: &Command) -> Result<(), Refusal> {
        let gone = || Refusal { errno: Errno::NODEV, message: "the card is gone".to_owned() };
        self.card(n).ok_or_else(gone)?.perform(command)
    }

    /// The counters of the VFs of a PF of card `n`, by number. They are empty if the card is gone or counts nothing:
    /// the kernel shows zeros then (`rtnl_fill_vfinfo`).
    pub fn vf_counters(&self, n: usize, device: PciAddress) -> BTreeMap<u16, Counters> {
        self.card(n).and_then(|card| card.vf_counters(device).ok()).unwrap_or_default()
    }
}

impl Member {
    fn now<L>(&self, cx: &mut Locked<'_, L>) -> Option<Arc<IndexedView>> {
        let view = self.card.view().ok()?;
        let indexed = self.indexed.lock_leaf(cx).clone();
        if let Some(indexed) = indexed.filter(|indexed| Arc::ptr_eq(&indexed.card, &view)) {
            return Some(indexed);
        }
        let indexed = Arc::new(IndexedView::new(view));
        *self.indexed.lock_leaf(cx) = Some(Arc::clone(&indexed));
        Some(indexed)
    }
}
