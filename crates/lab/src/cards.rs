//! The cards of a lab: which card has which device and which netdev.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::Arc;

use control::Command;
use devlink::view::{self, DeviceName, Netdev, Role};
use eswitch::card::Counters;
use eswitch::{PciAddress, PortHandle};
use lockdep::{Locked, Mutex};
use netlink::Errno;

use crate::card::{Card, Refusal};
use crate::ethtool::kept::Kept;
use crate::ethtool::monitor::Monitors;
use crate::lock_order::CardIndex;
use crate::network::{Network, NetworkId, Networks, Peer};

/// All cards of a lab.
pub(crate) struct Cards {
    cards: Vec<Member>,
    /// The network namespaces in which programs look for netdevs.
    pub networks: Networks,
    /// What their netdevs are set to by ethtool.
    pub ethtool: Kept,
    /// Who is told of that.
    pub monitors: Monitors,
}

struct Member {
    card: Arc<dyn Card>,
    /// The last view, with its index.
    indexed: Mutex<CardIndex, Option<Arc<IndexedView>>>,
}

/// A view of one card, with an index of its netdevs.
pub(crate) struct IndexedView {
    pub card: Arc<view::Card>,
    by_peer: HashMap<u32, usize>,
    by_name: HashMap<String, usize>,
    by_port: HashMap<PortHandle, usize>,
    /// The netdevs of VFs and SFs themselves, by their devices.
    by_function: HashMap<DeviceName, usize>,
    devices: HashSet<DeviceName>,
}

impl IndexedView {
    fn new(card: Arc<view::Card>) -> Self {
        let netdevs = || card.netdevs.iter().enumerate();
        let functions = card.functions.iter().map(|function| DeviceName::Pci(function.address));
        let auxiliary = card.auxiliary.iter().map(|device| DeviceName::Auxiliary(device.name));
        Self {
            by_peer: netdevs().filter_map(|(n, netdev)| Some((netdev.peer?, n))).collect(),
            // The last name at home of a netdev that is elsewhere may be that of another one by now, which comes last.
            by_name: netdevs()
                .filter(|(_, netdev)| netdev.elsewhere)
                .chain(netdevs().filter(|(_, netdev)| !netdev.elsewhere))
                .map(|(n, netdev)| (netdev.name.clone(), n))
                .collect(),
            by_port: netdevs().filter_map(|(n, netdev)| Some((netdev.port?, n))).collect(),
            by_function: netdevs()
                .filter(|(_, netdev)| matches!(netdev.role, Role::Vf | Role::Sf))
                .map(|(n, netdev)| (netdev.parent, n))
                .collect(),
            devices: functions.chain(auxiliary).collect(),
            card,
        }
    }

    /// How many VFs the PCI function `parent` has (`dev_num_vf`).
    pub fn vfs_of(&self, parent: DeviceName) -> u32 {
        let DeviceName::Pci(address) = parent else { return 0 };
        let function = self.card.functions.iter().find(|f| f.address == address);
        function.and_then(|f| f.sriov.as_ref()).map_or(0, |sriov| u32::from(sriov.enabled))
    }

    /// The netdev of a port of devlink.
    pub fn netdev_of_port(&self, port: PortHandle) -> Option<&Netdev> {
        self.card.netdevs.get(*self.by_port.get(&port)?)
    }

    /// The netdev of the one port of the devlink instance of a VF or SF.
    pub fn netdev_of_function(&self, device: DeviceName) -> Option<&Netdev> {
        self.card.netdevs.get(*self.by_function.get(&device)?)
    }
}

/// A card's netdev that was found in a network namespace.
pub(crate) struct CardNetdev {
    /// The index of the card.
    pub card: usize,
    /// The view in which it was found.
    pub view: Arc<IndexedView>,
    at: usize,
}

impl Deref for CardNetdev {
    type Target = Netdev;

    fn deref(&self) -> &Netdev {
        &self.view.card.netdevs[self.at]
    }
}

/// Whose a netdev is that has its peer in the network namespace of a card.
pub(crate) enum Owner {
    /// It is the card's.
    Card(CardNetdev),
    /// It is the card's, which has not published it yet, or does not any more: the card is making or deleting it. For
    /// programs it does not exist.
    Unpublished,
    /// It is not the card's: the host of a DPU has it, or the card is gone.
    Nobody,
}

/// The views of all cards at one moment, made once for each datagram. A card that is gone has none.
pub(crate) struct Views(Vec<Option<Arc<IndexedView>>>);

impl Views {
    /// The netdev that has a peer.
    pub fn owner_of(&self, peer: Peer) -> Owner {
        let Some(view) = self.0.get(peer.card).and_then(Option::as_ref) else { return Owner::Nobody };
        match view.by_peer.get(&peer.index) {
            Some(at) => Owner::Card(CardNetdev { card: peer.card, view: Arc::clone(view), at: *at }),
            None if view.card.host_peers.contains(&peer.index) => Owner::Nobody,
            None => Owner::Unpublished,
        }
    }

    /// The card's netdev that has a peer, if the card has published it.
    pub fn netdev(&self, peer: Peer) -> Option<CardNetdev> {
        match self.owner_of(peer) {
            Owner::Card(netdev) => Some(netdev),
            Owner::Unpublished | Owner::Nobody => None,
        }
    }

    /// The peer of the netdev that a card's view knows by a name.
    pub fn peer_named(&self, card: usize, name: &str) -> Option<Peer> {
        let view = self.view(card)?;
        let netdev = view.card.netdevs.get(*view.by_name.get(name)?)?;
        Some(Peer { card, index: netdev.peer? })
    }

    /// The view of a card, by its index, to keep.
    pub fn shared(&self, card: usize) -> Option<Arc<IndexedView>> {
        self.0.get(card)?.clone()
    }

    /// The view of a card, by its index.
    pub fn view(&self, card: usize) -> Option<&IndexedView> {
        self.0.get(card)?.as_deref()
    }

    /// The index of the card that has a device.
    pub fn owner(&self, device: DeviceName) -> Option<usize> {
        self.each().find_map(|(n, view)| view.devices.contains(&device).then_some(n))
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
        Self { cards, networks: Networks::new(), ethtool: Kept::default(), monitors: Monitors::default() }
    }

    pub fn len(&self) -> usize {
        self.cards.len()
    }

    /// Every card, in the order of their indexes.
    pub fn each(&self) -> impl Iterator<Item = &Arc<dyn Card>> {
        self.cards.iter().map(|member| &member.card)
    }

    pub fn card(&self, n: usize) -> Option<&Arc<dyn Card>> {
        self.cards.get(n).map(|member| &member.card)
    }

    /// The current views of all cards.
    pub fn now<L>(&self, cx: &mut Locked<'_, L>) -> Views {
        Views(self.cards.iter().map(|member| member.now(cx)).collect())
    }

    /// The card's netdev that has an interface index in a network namespace. Together with [`Network::peers_in`], which
    /// decides it for messages of the kernel, this is the only place that decides whether a netdev is a card's.
    pub fn netdev_at<L>(&self, cx: &mut Locked<'_, L>, network: &Network, index: u32) -> Option<CardNetdev> {
        let peer = network.look(cx, self, |table| table.peer_of(index))?;
        self.now(cx).netdev(peer)
    }

    /// The same in the network namespace of a socket.
    pub fn netdev_at_socket<L>(&self, cx: &mut Locked<'_, L>, socket: impl AsFd, index: u32) -> Option<CardNetdev> {
        let network = self.networks.of_socket(cx, socket)?;
        self.netdev_at(cx, &network, index)
    }

    /// Whether the devlink instance of a device of card `n` is in a network namespace: in the card's, unless it was
    /// reloaded into another one.
    pub fn is_instance_in(&self, views: &Views, n: usize, device: DeviceName, id: NetworkId) -> bool {
        match views.view(n).and_then(|view| view.card.netns_of(device)) {
            Some(netns) => id.is(netns),
            None => self.is_home_of(n, id),
        }
    }

    /// Whether any devlink instance of card `n` may be in a network namespace.
    pub fn has_instance_in(&self, views: &Views, n: usize, id: NetworkId) -> bool {
        self.is_home_of(n, id) || views.view(n).is_some_and(|view| view.card.has_instance_in(id.number()))
    }

    /// Whether a network namespace is the one in which the netdevs of a card appear, and to which its devlink instances belong
    /// at first.
    pub fn is_home_of(&self, card: usize, id: NetworkId) -> bool {
        match self.card(card).and_then(|card| card.home()) {
            Some(home) => NetworkId::of_socket(&*home).is_ok_and(|home| home == id),
            None => self.networks.is_own(id),
        }
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
