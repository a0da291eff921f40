//! Takes over what a dead process has left of its card.
//!
//! While a card is being taken over it holds an inventory of what was found inside. If the engine requests a resource
//! that is in the inventory, it is not made: it is taken into the books as it is, wherever its outer end is now, and
//! what is missing of it (a tie, a place on a bridge) is added. So the engine brings the card up as it
//! always does, and netdevs that are in use stay the same netdevs. What it unmakes meanwhile goes back to the
//! inventory. At the end, what has not been requested is deleted.
//!
//! Until then nothing that was found is deleted: a process that dies or fails meanwhile leaves what it found.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eswitch::card::Resource;
use eswitch::{PfIndex, Vport};
use lockdep::Locked;

use crate::books::{Books, slot_of};
use crate::homes::Homes;
use crate::layout::{DOOMED, Inside, Slot};
use crate::netns::LOOPBACK;
use crate::operation::{Operation, Part, Shared, Sockets};
use crate::request::{self, Link};
use crate::socket::Batch;
use crate::ties::Ties;
use crate::watch::Events;

/// What was found, by interface number inside the card.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    found: HashMap<u32, Link>,
    /// Those that are in the books now.
    taken: HashSet<u32>,
    /// The id of the namespace where netdevs appear.
    home: Option<i32>,
}

impl Inventory {
    /// A netdev that was found and has not been requested yet.
    pub(crate) fn get(&self, index: u32) -> Option<&Link> {
        self.found.get(&index).filter(|_| !self.taken.contains(&index))
    }

    /// The interface numbers of the netdevs that may have the program of flow rules.
    pub(crate) fn may_have_program(&self) -> Vec<u32> {
        let may = |index: &u32| matches!(Inside::of(*index), Some(Inside::Port(_) | Inside::LaneEnd(_)));
        self.found.keys().copied().filter(may).collect()
    }

    /// The interface number of the other end, if that is where netdevs appear.
    fn at_home(&self, link: &Link) -> Option<u32> {
        let (outer, netns) = link.peer?;
        (netns.is_some() && netns == self.home).then_some(outer)
    }

    /// A netdev that was found has been deleted by a user.
    pub(crate) fn forget(&mut self, index: u32) {
        self.found.remove(&index);
        self.taken.remove(&index);
    }
}

/// Decides what becomes of a card when it is dropped.
#[derive(Clone)]
pub struct Hold {
    pub(crate) card: Arc<Shared>,
    pub(crate) stays: Arc<AtomicBool>,
}

impl Hold {
    /// Ends the takeover, once the engine has brought the card up: deletes what was found and not requested. The rest
    /// still stays, should the card be dropped, until it [may go](Self::may_go).
    pub fn taken_over<L>(&self, cx: &mut Locked<'_, L>) {
        self.card.begin(cx, |books| books.parts_to_end_taking_over()).end_taking_over();
    }

    /// A descriptor of the network namespace that the card is.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn inside(&self) -> io::Result<OwnedFd> {
        Ok(self.card.inside.try_clone()?.into())
    }

    /// Where the devlink instances of the card are.
    pub fn homes(&self) -> Homes {
        Homes { card: Arc::clone(&self.card) }
    }

    /// Whether what was found stays, should the card be dropped. False if nothing was found.
    pub fn stays(&self) -> bool {
        self.stays.load(Ordering::Acquire)
    }

    /// From now on everything is deleted when the card is dropped.
    pub fn may_go(&self) {
        self.stays.store(false, Ordering::Release);
    }
}

impl Books {
    /// Makes the inventory: finds out what exists inside the card.
    ///
    /// # Errors
    /// The kernel cannot be queried.
    pub(crate) fn begin_taking_over(&mut self, sockets: &mut Sockets, inside: &File) -> io::Result<()> {
        let links = request::links(&mut sockets.inside)?;
        let mut batch = Batch::default();
        for link in links.iter().filter(|link| link.group == DOOMED) {
            // The process that marked it died before it could delete it; and it may be requested.
            request::set_group(&mut batch, link.index, group_of(link.index));
        }
        sockets.inside.run(batch);
        self.ties = Ties::of_found();
        self.find_instances(&links);
        self.card_mtus = links.iter().map(|link| (link.index, link.mtu)).collect();
        let found = links.into_iter().filter(|link| link.index != LOOPBACK).map(|link| (link.index, link)).collect();
        let home = request::netns_id(&mut sockets.inside, &self.home)?;
        // The names must be known before the engine asks for one.
        let outside = request::links(&mut sockets.outside)?;
        self.inside_id = request::netns_id(&mut sockets.outside, inside).ok().flatten();
        self.update_names(outside.iter());
        self.inventory = Some(Inventory { found, taken: HashSet::new(), home });
        Ok(())
    }

    /// A netdev that was found and has not been requested yet, while a card is being taken over.
    pub(crate) fn found(&self, index: u32) -> Option<&Link> {
        self.inventory.as_ref()?.get(index)
    }

    /// The interface number of the outer end of a pair that was found, if that is where netdevs appear.
    pub(crate) fn found_at_home(&self, link: &Link) -> Option<u32> {
        self.inventory.as_ref()?.at_home(link)
    }

    /// Notes that netdevs that were found are in the books now.
    pub(crate) fn take(&mut self, indexes: impl IntoIterator<Item = u32>) {
        if let Some(inventory) = &mut self.inventory {
            let found = |index: &u32| inventory.found.contains_key(index);
            let taken: Vec<u32> = indexes.into_iter().filter(found).collect();
            inventory.taken.extend(taken);
        }
    }

    /// Notes that a netdev that was found has been deleted since.
    pub(crate) fn forget(&mut self, index: u32) {
        if let Some(inventory) = &mut self.inventory {
            inventory.forget(index);
        }
    }

    /// Gives a resource that was found back to the inventory instead of unmaking it; returns whether it was found.
    pub(crate) fn give_back(&mut self, resource: &Resource) -> bool {
        let Some(inventory) = &mut self.inventory else { return false };
        let slot @ Slot { pf, .. } = slot_of(resource);
        let ends = self.ends.entry(slot).or_default();
        match *resource {
            // Whether bridges are up, and which ties exist, is put right at the end.
            Resource::SwitchdevFdb(_) => true,
            Resource::Representor(_, Vport::Uplink, eswitch::RepType::Eth) => {
                ends.tied = false;
                true
            }
            Resource::Function(_) if inventory.taken.contains(&Inside::Bridge(pf, 0).index()) => {
                let is_part = |index: &u32| match Inside::of(*index) {
                    Some(Inside::Port(slot)) => slot == Slot { pf, vport: Vport::Uplink },
                    Some(Inside::Bridge(of, _) | Inside::Cable(of) | Inside::Trunk(of, _) | Inside::Branch(of, _)) => {
                        of == pf
                    }
                    _ => false,
                };
                inventory.taken.retain(|index| !is_part(index));
                self.bridges.retain(|(of, _)| *of != pf);
                (ends.port, ends.port_up, ends.tied) = (false, false, false);
                true
            }
            Resource::PfNetdev(_) | Resource::Representor(_, _, eswitch::RepType::Eth) => {
                let had = inventory.taken.remove(&slot.inner());
                if had {
                    (ends.inner, ends.tied, ends.carrier, ends.outer) = (false, false, false, None);
                }
                had
            }
            Resource::Port(..) | Resource::VfNetdev(..) | Resource::SfNetdev(..) => {
                let had = inventory.taken.remove(&slot.port());
                if had {
                    (ends.port, ends.port_up, ends.tied) = (false, false, false);
                }
                had
            }
            _ => false,
        }
    }

    /// The parts of the card that [ending the takeover](Operation::end_taking_over) changes: all that exist.
    pub(crate) fn parts_to_end_taking_over(&self) -> Vec<Part> {
        let found = self.inventory.iter().flat_map(|inventory| inventory.found.keys());
        let found = found.filter_map(|index| match Inside::of(*index)? {
            Inside::Port(slot) | Inside::Inner(slot) => Some(slot),
            _ => None,
        });
        let slots: HashSet<Slot> = found.chain(self.ends.keys().copied()).collect();
        let of_pf = |pf| [Part::Bridges(PfIndex(pf)), Part::Shaper(PfIndex(pf))];
        slots.into_iter().map(Part::Vport).chain((0..self.config.pfs).flat_map(of_pf)).collect()
    }

    /// Appends requests that put ends right which were taken over; returns the slots whose ports these bring up.
    fn push_put_right(&mut self, batch: &mut Batch, taken: &HashSet<u32>) -> Vec<Slot> {
        let mut brought_up = Vec::new();
        for (slot, ends) in &mut self.ends {
            let (port, inner) = (taken.contains(&slot.port()), taken.contains(&slot.inner()));
            if !ends.tied {
                // If there is no such tie, that is as good.
                let both = [(ends.port, slot.port()), (ends.inner, slot.inner())];
                both.iter().filter(|(is, _)| *is).for_each(|(_, end)| self.ties.untie(batch, *end));
            }
            if port && !ends.inner && !ends.port_up && slot.vport != Vport::Uplink {
                ends.port_up = true;
                request::set_up(batch, slot.port(), true);
                brought_up.push(*slot);
            }
            if inner && !ends.port && slot.vport != Vport::Uplink {
                // A representor whose function has no netdev has no carrier.
                request::set_up(batch, slot.inner(), false);
            }
        }
        for index in taken {
            if let Some(Inside::Port(_) | Inside::Inner(_)) = Inside::of(*index) {
                self.ties.remove_other(batch, *index);
            }
        }
        for (pf, n) in &self.bridges {
            request::set_up(batch, Inside::Bridge(*pf, *n).index(), !self.has_fdb(*pf));
        }
        brought_up
    }
}

impl Operation<'_> {
    /// Deletes what was found and not requested, and makes up for what could not be done earlier.
    pub(crate) fn end_taking_over(&mut self) {
        let mut books = self.books();
        // What limits functions of a PF stays as it is until it is what the engine wants. If the PF is not bound any more, it
        // goes.
        let shaper = |pf: PfIndex| Inside::Shaper(pf).index();
        let lane = |pf: PfIndex| [Inside::Lane(pf).index(), Inside::LaneEnd(pf).index()];
        let pfs =
            (0..books.config.pfs).map(PfIndex).filter(|pf| books.ends(Slot { pf: *pf, vport: Vport::Uplink }).port);
        let shapers: Vec<(PfIndex, bool)> = pfs.map(|pf| (pf, books.found(shaper(pf)).is_some())).collect();
        books.take(shapers.iter().flat_map(|(pf, _)| lane(*pf).into_iter().chain([shaper(*pf)])));
        let Some(inventory) = books.inventory.take() else { return };
        drop(books);
        let left: Vec<u32> = inventory.found.keys().filter(|index| !inventory.taken.contains(index)).copied().collect();
        if !left.is_empty() {
            self.delete(left, None);
        }
        let mut batch = Batch::default();
        let brought_up = self.books().push_put_right(&mut batch, &inventory.taken);
        let with_rules = self.ports_with_rules();
        self.books().push_no_acls(&mut batch, &with_rules);
        self.run(batch);
        self.settle_carriers(&brought_up);
        shapers.into_iter().for_each(|(pf, found)| self.take_shaper_over(pf, found));
        self.end_taking_rules_over();
        // Where netdevs are and which are up: the kernel sends no event for what has not changed.
        let mut events = Events::default();
        events.look_at_everything(self);
        // The names have been known since the takeover began, so none of them is new to a user.
        let _ = self.follow(&events);
        let mut books = self.books();
        books.watcher_waits |= !books.again.is_empty();
    }
}

/// The group that a netdev inside the card belongs to.
fn group_of(index: u32) -> u32 {
    match Inside::of(index) {
        Some(Inside::Port(slot)) if slot.vport != Vport::Uplink => slot.port_group(),
        Some(Inside::Inner(slot)) if slot.vport != Vport::Uplink => slot.inner_group(),
        _ => 0,
    }
}
