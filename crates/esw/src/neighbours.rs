//! The kernel's neighbours, for a live card.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use card_linux::{LinuxCard, SetupError};
use eswitch::card::CardError;
use eswitch::{MacAddr, PfIndex};
use flow::Neighbour;
use host::{NeighbourWatch, Neighbours};
use lockdep::{Locked, Mutex, Unlocked};

use crate::lock_order::NeighbourWatchClass;

/// The neighbours in the network namespace in which a card's netdevs appear.
pub struct KernelNeighbours {
    neighbours: Arc<card_linux::Neighbours>,
    /// The watcher, until it is taken.
    watch: Mutex<NeighbourWatchClass, Option<card_linux::NeighbourWatch>>,
}

impl KernelNeighbours {
    /// The neighbours of a card.
    ///
    /// # Errors
    /// The system gives no sockets.
    pub fn of(card: &LinuxCard) -> Result<Self, SetupError> {
        let (neighbours, watch) = card.neighbours()?;
        Ok(Self { neighbours, watch: Mutex::new(Some(watch)) })
    }
}

impl Neighbours for KernelNeighbours {
    fn watch(&self, cx: &mut Locked<'_, Unlocked>) -> Option<Box<dyn NeighbourWatch>> {
        let watch = self.watch.lock_leaf(cx).take();
        watch.map(|watch| Box::new(Watch(watch)) as Box<dyn NeighbourWatch>)
    }

    fn wake(&self) {
        self.neighbours.wake();
    }

    fn set(
        &self,
        _: &mut Locked<'_, Unlocked>,
        pf: PfIndex,
        to: IpAddr,
        mac: Option<MacAddr>,
    ) -> Result<(), CardError> {
        self.neighbours.set(pf, to, mac)
    }
}

struct Watch(card_linux::NeighbourWatch);

impl NeighbourWatch for Watch {
    fn wait(&mut self, in_use: bool) -> bool {
        self.0.wait(in_use)
    }

    fn look(
        &mut self,
        _: &mut Locked<'_, Unlocked>,
        ends: &[(PfIndex, IpAddr)],
    ) -> Option<BTreeMap<(PfIndex, IpAddr), Neighbour>> {
        self.0.look(ends).ok()
    }

    fn use_neighbours(&mut self, _: &mut Locked<'_, Unlocked>, sent_to: &BTreeSet<(PfIndex, IpAddr)>) {
        self.0.use_neighbours(sent_to);
    }
}
