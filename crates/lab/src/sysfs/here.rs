//! The tree of what the cards have in `/sys`, as one network namespace sees it now: with the netdevs and the RDMA devices that
//! are there, under the names that they have there.

use std::sync::Arc;

use devlink::view;
use lockdep::Locked;

use super::tree::{Names, Tree};
use crate::cards::Cards;
use crate::network::{Network, Peer, Table};
use crate::rdma_system::is_seen;

/// What a tree was made from.
pub(crate) struct Version {
    /// The views; `None`: the card is gone.
    cards: Vec<Option<Arc<view::Card>>>,
    /// The [version](Table::version) of the netdevs.
    netdevs: u64,
}

impl Version {
    /// That of a tree of `cards` cards in which there is nothing.
    pub(super) fn of_nothing(cards: usize) -> Self {
        Self { cards: vec![None; cards], netdevs: 0 }
    }

    /// Whether a tree would be made from the same now.
    pub(crate) fn is_current<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards, network: &Network) -> bool {
        let same = cards.each().zip(&self.cards).all(|(card, shown)| match (card.view(), shown) {
            (Ok(view), Some(shown)) => Arc::ptr_eq(&view, shown),
            (Err(_), None) => true,
            _ => false,
        });
        same && network.look(cx, cards, |table| table.version()) == self.netdevs
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
    let here = network.id().ok();
    network.look(cx, cards, |table| {
        let netdev = |card, netdev: &view::Netdev| {
            let (_, name) = table.netdev(Peer { card, index: netdev.peer? })?;
            Some(name.to_owned())
        };
        let rdma = |card, device: &view::RdmaDevice| {
            let is_seen = is_seen(cards, card, views.get(card)?.as_ref()?, device, here);
            is_seen.then(|| device.name.clone())
        };
        let tree = Tree::new(views.clone(), release, &Names { netdev: &netdev, rdma: &rdma });
        let version = Version { cards: views, netdevs: table.version() };
        (finish(tree, table), version)
    })
}
