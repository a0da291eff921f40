//! Unmakes resources. It cannot fail: what the kernel no longer has is as good as unmade.

use std::collections::{BTreeMap, HashMap, HashSet};

use eswitch::card::Resource;
use eswitch::{PfIndex, RepType, Vport};

use crate::books::{Books, Ends, near_end, slot_of};
use crate::create::is_on_paper;
use crate::create::netdevs::Channels;
use crate::layout::{DOOMED, Inside, Slot};
use crate::operation::{Operation, Part};
use crate::request;
use crate::socket::Batch;

/// The parts of the card that unmaking a batch changes.
pub(crate) fn parts(books: &Books, batch: &[Resource]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(batch.len());
    parts.extend(books.pfs_with_rates(batch).into_iter().map(Part::Shaper));
    for resource in batch {
        if matches!(resource, Resource::Function(_) | Resource::SwitchdevFdb(_)) {
            parts.push(Part::Bridges(resource.pf()));
        }
        if matches!(resource, Resource::Function(_)) {
            parts.push(Part::Shaper(resource.pf()));
        }
        if !is_on_paper(resource) && !matches!(resource, Resource::SwitchdevFdb(_)) {
            parts.push(Part::Vport(slot_of(resource)));
        }
    }
    parts
}

/// The resources of a batch that exist, by kind.
#[derive(Default)]
struct Doomed {
    representors: Vec<Slot>,
    uplinks: Vec<Slot>,
    sf_netdevs: Vec<Slot>,
    ports: Vec<Slot>,
    pf_netdevs: Vec<Slot>,
    fdbs: Vec<PfIndex>,
    functions: Vec<Slot>,
}

impl Doomed {
    fn add(&mut self, resource: &Resource) {
        let slot = slot_of(resource);
        match *resource {
            Resource::Representor(_, Vport::Uplink, RepType::Eth) => self.uplinks.push(slot),
            Resource::Representor(_, _, RepType::Eth) => self.representors.push(slot),
            Resource::SfNetdev(..) => self.sf_netdevs.push(slot),
            Resource::PfNetdev(_) => self.pf_netdevs.push(slot),
            Resource::SwitchdevFdb(pf) => self.fdbs.push(pf),
            Resource::Function(_) => self.functions.push(slot),
            Resource::Port(_, Vport::Vf(_) | Vport::Sf(_))
            | Resource::PfIbDevice(_)
            | Resource::SfIbDevice(..)
            | Resource::Lag(_)
            | Resource::MpeswMetadata(_)
            | Resource::PeerRules(..)
            | Resource::Representor(_, _, RepType::Ib) => {}
            Resource::Port(..) | Resource::VfNetdev(..) => self.ports.push(slot),
        }
    }
}

impl Operation<'_> {
    /// Unmakes a batch of resources, whose [parts] this operation has claimed.
    pub(crate) fn destroy(&mut self, batch: &[Resource]) {
        let mut doomed = Doomed::default();
        self.keep_counters(batch);
        let mut books = self.books();
        for resource in batch {
            if books.resources.remove(resource).is_some() {
                near_end(resource).and_then(|near| books.elsewhere.remove(&near));
                if !books.give_back(resource) {
                    doomed.add(resource);
                }
            } else {
                books.complaints.push(format!("{resource} unmade and was not there"));
            }
        }
        drop(books);
        // From the outermost to what everything else needs; within a kind the order cannot be seen.
        self.untie_uplinks(&doomed.uplinks);
        self.unmake_representors(&doomed.representors);
        self.unmake_ports(&doomed.sf_netdevs);
        self.unmake_ports(&doomed.ports);
        self.unmake_pf_netdevs(&doomed.pf_netdevs);
        self.books().inactive.retain(|pf| !doomed.fdbs.contains(pf));
        self.run_built(|books, batch| doomed.fdbs.iter().for_each(|pf| books.push_bridges_up(batch, *pf, true)));
        self.unmake_functions(&doomed.functions);
        self.drop_rates(batch);
        self.redirect_limited(doomed.representors);
        let mut books = self.books();
        for slot in batch.iter().map(slot_of) {
            if !(books.ends(slot).port || books.ends(slot).inner) {
                books.ends.remove(&slot);
            }
        }
    }

    /// Adds what the netdevs of VFs have counted to the entries of their ports, which stay when the netdevs go.
    fn keep_counters(&mut self, batch: &[Resource]) {
        // What filters have dropped, by interface number, once that has been asked for.
        let mut dropped: Option<HashMap<u32, u64>> = None;
        for resource in batch {
            let Resource::VfNetdev(pf, vport) = *resource else { continue };
            let port = Resource::Port(pf, vport);
            if batch.contains(&port) || !self.books().resources.contains_key(&port) {
                continue;
            }
            // One that was deleted from outside has taken its counters with it.
            let index = Slot { pf, vport }.port();
            let Ok(mut counted) = request::counters_of(&mut self.sockets().inside, index) else { continue };
            if dropped.is_none() {
                let all = request::acl::all_drops(&mut self.sockets().inside).unwrap_or_default();
                dropped = Some(all.into_iter().collect());
            }
            counted.tx_dropped += dropped.iter().filter_map(|of| of.get(&index)).sum::<u64>();
            if let Some(entry) = self.books().resources.get_mut(&port) {
                entry.counted = entry.counted.plus(counted);
            }
        }
    }

    /// Deletes netdevs of the card, and with them their other ends; `all`: the group that this is all of.
    pub(crate) fn delete(&mut self, indexes: impl IntoIterator<Item = u32>, all: Option<u32>) {
        let mut batch = Batch::default();
        if all.is_none() {
            indexes.into_iter().for_each(|index| request::doom(&mut batch, index));
        }
        // Another operation may delete what this one has doomed a moment earlier, which is as good.
        request::delete_group(&mut batch, all.unwrap_or(DOOMED));
        // What a user has taken away already is as good as deleted.
        self.run(batch);
    }

    /// Takes ties off; `end`: off which of the two ends.
    pub(crate) fn untie(&mut self, slots: &[Slot], end: fn(Slot) -> u32) {
        self.run_built(|books, batch| slots.iter().for_each(|slot| books.ties.untie(batch, end(*slot))));
    }

    /// Brings one end of each slot up or down.
    pub(crate) fn set_up_all(&mut self, slots: &[Slot], end: fn(Slot) -> u32, up: bool) {
        let mut batch = Batch::default();
        slots.iter().for_each(|slot| request::set_up(&mut batch, end(*slot), up));
        self.run(batch);
    }

    /// Waits until ports that have just been brought up carry traffic.
    pub(crate) fn settle_carriers(&mut self, slots: &[Slot]) {
        // Answers are longer than acknowledgements, and must fit the receive buffer all the same.
        const ANSWERS: usize = 32;
        let mut ports: Vec<u32> = slots.iter().map(|slot| slot.port()).collect();
        if ports.len() > ANSWERS {
            // Those whose functions' netdevs are down have nothing to settle.
            let links = request::links(&mut self.sockets().inside).unwrap_or_default();
            let carried: HashSet<u32> = links.iter().filter(|l| l.carrier).map(|l| l.index).collect();
            ports.retain(|port| carried.contains(port));
        }
        for some in ports.chunks(ANSWERS) {
            let mut batch = Batch::default();
            some.iter().for_each(|port| request::settle_carrier(&mut batch, *port));
            self.run(batch);
        }
    }

    /// Those of the slots of which something is so.
    fn slots_with(&mut self, slots: &[Slot], is_so: fn(&Ends) -> bool) -> Vec<Slot> {
        let books = self.books();
        slots.iter().filter(|slot| is_so(&books.ends(**slot))).copied().collect()
    }

    /// Notes what has changed of each slot.
    fn note_ends(&mut self, slots: &[Slot], change: fn(&mut Ends)) {
        let mut books = self.books();
        slots.iter().for_each(|slot| change(books.ends.entry(*slot).or_default()));
    }

    fn untie_uplinks(&mut self, slots: &[Slot]) {
        let tied = self.slots_with(slots, |ends| ends.tied);
        self.untie(&tied, Slot::port);
        self.untie(&tied, Slot::inner);
        self.note_ends(&tied, |ends| ends.tied = false);
        tied.into_iter().for_each(|slot| self.change_channels(slot, Channels::OfFunction));
    }

    fn unmake_representors(&mut self, slots: &[Slot]) {
        let ported = self.slots_with(slots, |ends| ends.port);
        // The ties on the inner ends are deleted with these.
        self.untie(&ported, Slot::port);
        self.delete_slots(slots, |ends| ends.inner, Slot::inner, Slot::inner_group);
        let linked = self.with_link(&ported);
        self.set_up_all(&linked, Slot::port, true);
        self.settle_carriers(&linked);
        self.note_ends(slots, |ends| {
            (ends.inner, ends.tied, ends.carrier, ends.outer) = (false, false, false, None);
            ends.port_up = false;
        });
        self.note_ends(&linked, |ends| ends.port_up = true);
    }

    /// Those of the slots whose ports are up while they have no representor. The others are brought down: their
    /// representors may have brought them up.
    pub(crate) fn with_link(&mut self, slots: &[Slot]) -> Vec<Slot> {
        let books = self.books();
        let (down, linked): (Vec<Slot>, _) = slots.iter().partition(|slot| books.is_link_down(**slot));
        drop(books);
        self.set_up_all(&down, Slot::port, false);
        linked
    }

    fn unmake_ports(&mut self, slots: &[Slot]) {
        let tied = self.slots_with(slots, |ends| ends.inner);
        self.untie(&tied, Slot::inner);
        // A representor whose function has no netdev has no carrier.
        self.set_up_all(&tied, Slot::inner, false);
        self.delete_slots(slots, |ends| ends.port, Slot::port, Slot::port_group);
        self.note_ends(slots, |ends| (ends.port, ends.port_up, ends.tied) = (false, false, false));
    }

    fn unmake_pf_netdevs(&mut self, slots: &[Slot]) {
        let tied = self.slots_with(slots, |ends| ends.tied);
        self.untie(&tied, Slot::port);
        if !slots.is_empty() {
            self.delete(slots.iter().map(|slot| slot.inner()), None);
        }
        self.note_ends(slots, |ends| (ends.inner, ends.tied) = (false, false));
    }

    fn unmake_functions(&mut self, slots: &[Slot]) {
        let mut indexes: Vec<u32> = slots.iter().flat_map(|slot| self.forget_shaper(slot.pf)).collect();
        let books = self.books();
        for slot in slots {
            indexes.push(slot.port());
            for (pf, n) in books.bridges.range((slot.pf, 0)..=(slot.pf, u16::MAX)) {
                indexes.push(Inside::Bridge(*pf, *n).index());
                if *n != 0 {
                    indexes.push(Inside::Trunk(*pf, *n).index());
                }
            }
        }
        drop(books);
        if !indexes.is_empty() {
            self.delete(indexes, None);
        }
        self.books().bridges.retain(|(pf, _)| slots.iter().all(|slot| slot.pf != *pf));
        self.note_ends(slots, |ends| (ends.port, ends.port_up, ends.tied) = (false, false, false));
    }

    /// Deletes one end's netdevs: as the whole group where nothing else is in it, which saves marking
    /// each.
    fn delete_slots(&mut self, slots: &[Slot], has: fn(&Ends) -> bool, end: fn(Slot) -> u32, group: fn(Slot) -> u32) {
        let mut by_pf: BTreeMap<PfIndex, Vec<Slot>> = BTreeMap::new();
        for slot in self.slots_with(slots, has) {
            by_pf.entry(slot.pf).or_default().push(slot);
        }
        for (pf, going) in by_pf {
            let whole = self.sweep(pf, |books| {
                let in_group =
                    |(slot, ends): &(&Slot, &Ends)| slot.pf == pf && slot.vport != Vport::Uplink && has(ends);
                // What was found and has not been taken over yet may be in the group, too.
                books.inventory.is_none() && books.ends.iter().filter(in_group).count() == going.len()
            });
            let all = whole.then(|| group(going[0]));
            self.delete(going.into_iter().map(end), all);
        }
    }
}
