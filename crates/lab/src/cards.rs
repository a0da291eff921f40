//! The cards of a lab: which of them owns what, and what the kernel calls it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use control::Command;
use devlink::view::{self, DeviceName, Netdev};
use netlink::Errno;

use crate::card::{Card, Refusal};

/// All cards of a lab.
pub(crate) struct Cards {
    cards: Vec<Member>,
    /// `netns_mode` of RDMA devices: shared, unless somebody asked for something else.
    pub rdma_mode: Mutex<u8>,
}

struct Member {
    card: Arc<dyn Card>,
    seen: RwLock<Option<Arc<Seen>>>,
}

/// A view of one card, with an index.
pub(crate) struct Seen {
    pub card: Arc<view::Card>,
    by_name: HashMap<String, usize>,
}

impl Seen {
    fn of(card: Arc<view::Card>) -> Self {
        let by_name = card.netdevs.iter().enumerate().map(|(n, netdev)| (netdev.name.clone(), n)).collect();
        Self { card, by_name }
    }

    /// How many VFs the function has that a device hangs from, as `dev_num_vf` counts.
    pub fn vfs_of(&self, parent: DeviceName) -> u32 {
        let DeviceName::Pci(address) = parent else { return 0 };
        let function = self.card.functions.iter().find(|f| f.address == address);
        function.and_then(|f| f.sriov.as_ref()).map_or(0, |sriov| u32::from(sriov.enabled))
    }

    fn netdev(&self, name: &str) -> Option<&Netdev> {
        self.card.netdevs.get(*self.by_name.get(name)?)
    }

    fn owns(&self, device: DeviceName) -> bool {
        match device {
            DeviceName::Pci(address) => self.card.functions.iter().any(|function| function.address == address),
            DeviceName::Auxiliary(name) => self.card.auxiliary.iter().any(|device| device.name == name),
        }
    }
}

/// What is known of the cards at one moment: made once for each datagram.
pub(crate) struct Now(Vec<Option<Arc<Seen>>>);

impl Now {
    /// The netdev that a card knows by a name: the one place where the kernel's netdevs and a card's meet.
    pub fn netdev(&self, name: &str) -> Option<(usize, &Seen, &Netdev)> {
        self.each().find_map(|(n, seen)| Some((n, seen, seen.netdev(name)?)))
    }

    /// Whose a device is.
    pub fn owner(&self, device: DeviceName) -> Option<usize> {
        self.each().find_map(|(n, seen)| seen.owns(device).then_some(n))
    }

    /// The cards whose drivers are in a module.
    pub fn having_module(&self, name: &str) -> Vec<usize> {
        let has = |seen: &Seen| seen.card.modules.iter().any(|module| module.name == name);
        self.each().filter_map(|(n, seen)| has(seen).then_some(n)).collect()
    }

    /// Every card that is there, with its number.
    pub fn each(&self) -> impl Iterator<Item = (usize, &Seen)> {
        self.0.iter().enumerate().filter_map(|(n, seen)| Some((n, &**seen.as_ref()?)))
    }
}

impl Cards {
    pub fn new(cards: Vec<Arc<dyn Card>>) -> Self {
        let cards = cards.into_iter().map(|card| Member { card, seen: RwLock::new(None) }).collect();
        Self { cards, rdma_mode: Mutex::new(1) }
    }

    pub fn len(&self) -> usize {
        self.cards.len()
    }

    pub fn card(&self, n: usize) -> Option<&Arc<dyn Card>> {
        self.cards.get(n).map(|member| &member.card)
    }

    /// How things are. A card that is gone has nothing.
    pub fn now(&self) -> Now {
        Now(self.cards.iter().map(Member::now).collect())
    }

    /// Has a card carry out a command.
    pub fn perform(&self, n: usize, command: &Command) -> Result<(), Refusal> {
        let gone = || Refusal { errno: Errno::NODEV, message: "the card is gone".to_owned() };
        self.card(n).ok_or_else(gone)?.perform(command)
    }
}

impl Member {
    fn now(&self) -> Option<Arc<Seen>> {
        let view = self.card.view().ok()?;
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(seen) = seen.filter(|seen| Arc::ptr_eq(&seen.card, &view)) {
            return Some(seen);
        }
        let seen = Arc::new(Seen::of(view));
        *self.seen.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&seen));
        Some(seen)
    }
}
