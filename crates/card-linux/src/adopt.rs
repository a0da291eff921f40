//! Taking over what a dead process has left of its card.
//!
//! While a card is being taken over it holds an inventory of what was found inside. What the engine asks for
//! and is in the inventory is not made: it is taken into the books as it is, wherever its outer end is now, and
//! what is missing of it (a tie, a place on a bridge) is made up for. So the engine brings the card up as it
//! always does, and netdevs that are in use stay the same netdevs. What it unmakes meanwhile goes back to the
//! inventory. When it is done, what has not been asked for is deleted.
//!
//! Until then nothing that was found is deleted: a process that dies here, or fails, leaves what it found.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eswitch::Vport;
use eswitch::card::Resource;
use eswitch::lock_order::CardState;
use lockdep::{Locked, Mutex};

use crate::layout::{DOOMED, Inside, Slot};
use crate::netns::LOOPBACK;
use crate::request::{self, Link};
use crate::socket::Batch;
use crate::state::State;
use crate::watch::Events;

/// What was found, by its number inside the card.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    found: HashMap<u32, Link>,
    /// What of it is in the books.
    taken: HashSet<u32>,
    /// The id of the namespace where netdevs appear.
    home: Option<i32>,
}

impl Inventory {
    /// Something that was found and that nobody has asked for yet.
    pub(crate) fn get(&self, index: u32) -> Option<&Link> {
        self.found.get(&index).filter(|_| !self.taken.contains(&index))
    }

    /// Where the other end is, if it is where netdevs appear.
    fn at_home(&self, link: &Link) -> Option<u32> {
        let (outer, netns) = link.peer?;
        (netns.is_some() && netns == self.home).then_some(outer)
    }

    /// What was found under a number has been deleted by others.
    pub(crate) fn forget(&mut self, index: u32) {
        self.found.remove(&index);
        self.taken.remove(&index);
    }
}

/// A hold on a card, for who decides what becomes of it.
#[derive(Clone)]
pub struct Hold {
    pub(crate) state: Arc<Mutex<CardState, State>>,
    pub(crate) stays: Arc<AtomicBool>,
}

impl Hold {
    /// The engine has brought the card up: what nobody has asked for of what was found is deleted. The rest still
    /// stays, should the card be dropped, until it [may go](Self::may_go).
    pub fn taken_over<L>(&self, cx: &mut Locked<'_, L>) {
        self.state.lock_leaf(cx).end_taking_over();
    }

    /// Whether what was found stays, should the card be dropped. Where nothing was found it never does.
    pub fn stays(&self) -> bool {
        self.stays.load(Ordering::Acquire)
    }

    /// From now on all of it goes with the card.
    pub fn may_go(&self) {
        self.stays.store(false, Ordering::Release);
    }
}

impl State {
    /// Looks at what there is inside.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn begin_taking_over(&mut self) -> std::io::Result<()> {
        let links = request::links(&mut self.card)?;
        let mut batch = Batch::default();
        for link in links.iter().filter(|link| link.group == DOOMED) {
            // Who marked it died before it could delete it; and it may be asked for.
            request::set_group(&mut batch, link.index, group_of(link.index));
        }
        self.card.run(batch);
        let found = links.into_iter().filter(|link| link.index != LOOPBACK).map(|link| (link.index, link)).collect();
        let home = request::netns_id(&mut self.card, &self.home)?;
        // Before anybody asks what they are called.
        let outside = request::links(&mut self.outside)?;
        self.follow_names(outside.iter());
        self.inventory = Some(Inventory { found, taken: HashSet::new(), home });
        Ok(())
    }

    /// Something that was found and that nobody has asked for yet.
    pub(crate) fn found(&self, index: u32) -> Option<&Link> {
        self.inventory.as_ref()?.get(index)
    }

    /// The outer end of something that was found, if it is where netdevs appear.
    pub(crate) fn found_at_home(&self, link: &Link) -> Option<u32> {
        self.inventory.as_ref()?.at_home(link)
    }

    /// What was found is in the books now.
    pub(crate) fn take(&mut self, indexes: impl IntoIterator<Item = u32>) {
        if let Some(inventory) = &mut self.inventory {
            let found = |index: &u32| inventory.found.contains_key(index);
            let taken: Vec<u32> = indexes.into_iter().filter(found).collect();
            inventory.taken.extend(taken);
        }
    }

    /// What was found goes back to the inventory rather than being unmade; whether it does.
    pub(crate) fn give_back(&mut self, resource: &Resource) -> bool {
        let Some(inventory) = &mut self.inventory else { return false };
        let pf = resource.pf();
        let slot = Slot { pf, vport: resource.vport().unwrap_or(Vport::Uplink) };
        let ends = self.ends.entry(slot).or_default();
        match *resource {
            // How bridges are, and which ties there are, is put right at the end.
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

    /// Deletes what nobody has asked for, and puts right what there was no moment to.
    pub(crate) fn end_taking_over(&mut self) {
        let Some(inventory) = self.inventory.take() else { return };
        let left: Vec<u32> = inventory.found.keys().filter(|index| !inventory.taken.contains(index)).copied().collect();
        if !left.is_empty() {
            self.delete(left, None);
        }
        self.put_right(&inventory.taken);
        // Who is where, who is up: nobody tells of what has not changed.
        // Names are known since this began, and who asked then has heard of no others.
        let _ = self.follow(Events::missed());
    }

    fn put_right(&mut self, taken: &HashSet<u32>) {
        let mut batch = Batch::default();
        let mut brought_up = Vec::new();
        for (slot, ends) in &mut self.ends {
            let (port, inner) = (taken.contains(&slot.port()), taken.contains(&slot.inner()));
            if !ends.tied {
                // That there is no such tie is as good.
                let both = [(ends.port, slot.port()), (ends.inner, slot.inner())];
                both.iter().filter(|(is, _)| *is).for_each(|(_, end)| request::untie(&mut batch, *end));
            }
            if port && !ends.inner && !ends.port_up && slot.vport != Vport::Uplink {
                ends.port_up = true;
                request::set_up(&mut batch, slot.port(), true);
                brought_up.push(*slot);
            }
            if inner && !ends.port && slot.vport != Vport::Uplink {
                // A representor whose function has no netdev has no carrier.
                request::set_up(&mut batch, slot.inner(), false);
            }
        }
        for (pf, n) in &self.bridges {
            let up = !self.books.contains_key(&Resource::SwitchdevFdb(*pf));
            request::set_up(&mut batch, Inside::Bridge(*pf, *n).index(), up);
        }
        self.card.run(batch);
        self.settle_carriers(&brought_up);
    }
}

/// The group that something inside the card belongs to.
fn group_of(index: u32) -> u32 {
    match Inside::of(index) {
        Some(Inside::Port(slot)) if slot.vport != Vport::Uplink => slot.port_group(),
        Some(Inside::Inner(slot)) if slot.vport != Vport::Uplink => slot.inner_group(),
        _ => 0,
    }
}
