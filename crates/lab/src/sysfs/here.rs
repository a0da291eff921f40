//! The tree of what the cards have in `/sys`, as one network namespace sees it now: with the netdevs and the RDMA devices that
//! are there, under the names that they have there.

use std::collections::HashMap;
use std::sync::Arc;

use devlink::view;
use lockdep::Locked;

use super::tree::{Names, Tree};
use crate::cards::Cards;
use crate::network::{Network, NetworkId, Peer, Table};

/// What a tree was made from.
pub(crate) struct Version {
    /// The views; `None`: the card is gone.
    cards: Vec<Option<Arc<view::Card>>>,
    /// The [version](Table::version) of the netdevs, and that of the RDMA devices.
    netdevs: u64,
    rdma: u64,
}

impl Version {
    /// That of a tree of `cards` cards in which there is nothing.
    pub(super) fn of_nothing(cards: usize) -> Self {
        Self { cards: vec![None; cards], netdevs: 0, rdma: 0 }
    }

    /// Whether a tree would be made from the same now.
    pub(crate) fn is_current<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards, network: &Network) -> bool {
        let same = cards.each().zip(&self.cards).all(|(card, shown)| match (card.view(), shown) {
            (Ok(view), Some(shown)) => Arc::ptr_eq(&view, shown),
            (Err(_), None) => true,
            _ => false,
        });
        same && cards.rdma.version() == self.rdma && network.look(cx, cards, |table| table.version()) == self.netdevs
    }
}

/// Makes the tree, and returns what `finish` makes of it. `release`: the kernel's release, as `uname -r` prints it.
pub(crate) fn tree_now<L, T>(
    cx: &mut Locked<'_, L>,
    cards: &Cards,
    network: &Network,
    release: &str,
    finish: impl FnOnce(Tree, &Table) -> T,
) -> (T, Version) {
    // The views first: a card publishes a netdev after it has made it.
    let views: Vec<_> = cards.each().map(|card| card.view().ok()).collect();
    let rdma_version = cards.rdma.version();
    let rdma = network.id().map(|network| rdma_names(cx, cards, network, &views)).unwrap_or_default();
    network.look(cx, cards, |table| {
        let netdev = |card, netdev: &view::Netdev| {
            let (_, name) = table.netdev(Peer { card, index: netdev.peer? })?;
            Some(name.to_owned())
        };
        let rdma = |card, device: &view::RdmaDevice| rdma.get(&(card, device.index)).cloned();
        let tree = Tree::new(views.clone(), release, &Names { netdev: &netdev, rdma: &rdma });
        let version = Version { cards: views, netdevs: table.version(), rdma: rdma_version };
        (finish(tree, table), version)
    })
}

/// The names of the RDMA devices that are seen in a network namespace.
fn rdma_names<L>(
    cx: &mut Locked<'_, L>,
    cards: &Cards,
    network: NetworkId,
    views: &[Option<Arc<view::Card>>],
) -> HashMap<(usize, u32), String> {
    let mut names = HashMap::new();
    for (card, view) in views.iter().enumerate().filter_map(|(card, view)| Some((card, view.as_ref()?))) {
        let home = cards.is_home_of(card, network);
        for device in &view.rdma {
            if cards.rdma.is_seen(cx, cards, (card, device), Some(network), home) {
                names.insert((card, device.index), cards.rdma.name(cx, card, device));
            }
        }
    }
    names
}
