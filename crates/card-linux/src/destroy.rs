//! Unmaking resources. It cannot fail: what the kernel no longer has is as good as unmade.

use std::collections::{BTreeMap, HashSet};

use eswitch::card::Resource;
use eswitch::{PfIndex, RepType, Vport};

use crate::layout::{Inside, Slot};
use crate::request;
use crate::socket::Batch;
use crate::state::{Ends, State};

/// What of a batch there is, kind by kind.
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
        let slot = |pf, vport| Slot { pf, vport };
        match *resource {
            Resource::Representor(pf, Vport::Uplink, RepType::Eth) => self.uplinks.push(slot(pf, Vport::Uplink)),
            Resource::Representor(pf, vport, RepType::Eth) => self.representors.push(slot(pf, vport)),
            Resource::SfNetdev(pf, vport) => self.sf_netdevs.push(slot(pf, vport)),
            Resource::PfNetdev(pf) => self.pf_netdevs.push(slot(pf, Vport::Uplink)),
            Resource::SwitchdevFdb(pf) => self.fdbs.push(pf),
            Resource::Function(pf) => self.functions.push(slot(pf, Vport::Uplink)),
            Resource::Port(_, Vport::Vf(_) | Vport::Sf(_))
            | Resource::PfIbDevice(_)
            | Resource::SfIbDevice(..)
            | Resource::Lag(_)
            | Resource::MpeswMetadata(_)
            | Resource::PeerRules(..)
            | Resource::Representor(_, _, RepType::Ib) => {}
            Resource::Port(pf, vport) | Resource::VfNetdev(pf, vport) => self.ports.push(slot(pf, vport)),
        }
    }
}

impl State {
    pub(crate) fn destroy(&mut self, batch: &[Resource]) {
        let mut doomed = Doomed::default();
        for resource in batch {
            if self.books.remove(resource).is_some() {
                if !self.give_back(resource) {
                    doomed.add(resource);
                }
            } else {
                self.complaints.push(format!("{resource} unmade and was not there"));
            }
        }
        // From the outermost to what all stands on; within a kind the order does not show.
        self.untie_uplinks(&doomed.uplinks);
        self.unmake_representors(&doomed.representors);
        self.unmake_ports(&doomed.sf_netdevs);
        self.unmake_ports(&doomed.ports);
        self.unmake_pf_netdevs(&doomed.pf_netdevs);
        let mut batch = Batch::default();
        doomed.fdbs.iter().for_each(|pf| self.push_bridges_up(&mut batch, *pf, true));
        self.card.run(batch);
        self.unmake_functions(&doomed.functions);
        self.ends.retain(|_, ends| ends.port || ends.inner);
    }

    /// Takes ties off; `end`: off which of the two.
    pub(crate) fn untie(&mut self, slots: &[Slot], end: fn(Slot) -> u32) {
        let mut batch = Batch::default();
        slots.iter().for_each(|slot| request::untie(&mut batch, end(*slot)));
        self.card.run(batch);
    }

    pub(crate) fn set_up_all(&mut self, slots: &[Slot], end: fn(Slot) -> u32, up: bool) {
        let mut batch = Batch::default();
        slots.iter().for_each(|slot| request::set_up(&mut batch, end(*slot), up));
        self.card.run(batch);
    }

    /// Has ports that have just been brought up carry traffic when this returns.
    pub(crate) fn settle_carriers(&mut self, slots: &[Slot]) {
        // Answers are longer than acknowledgements, and must fit the receive buffer all the same.
        const ANSWERS: usize = 32;
        let mut ports: Vec<u32> = slots.iter().map(|slot| slot.port()).collect();
        if ports.len() > ANSWERS {
            // Those whose functions' netdevs are down have nothing to settle.
            let links = request::links(&mut self.card).unwrap_or_default();
            let carried: HashSet<u32> = links.iter().filter(|l| l.carrier).map(|l| l.index).collect();
            ports.retain(|port| carried.contains(port));
        }
        for some in ports.chunks(ANSWERS) {
            let mut batch = Batch::default();
            some.iter().for_each(|port| request::settle_carrier(&mut batch, *port));
            self.card.run(batch);
        }
    }

    fn untie_uplinks(&mut self, slots: &[Slot]) {
        let tied: Vec<Slot> = slots.iter().filter(|slot| self.ends(**slot).tied).copied().collect();
        self.untie(&tied, Slot::port);
        self.untie(&tied, Slot::inner);
        for slot in tied {
            self.ends.entry(slot).or_default().tied = false;
        }
    }

    fn unmake_representors(&mut self, slots: &[Slot]) {
        let ported: Vec<Slot> = slots.iter().filter(|slot| self.ends(**slot).port).copied().collect();
        // Those on the inner ends go with them.
        self.untie(&ported, Slot::port);
        self.delete_slots(slots, |ends| ends.inner, Slot::inner, Slot::inner_group);
        self.set_up_all(&ported, Slot::port, true);
        self.settle_carriers(&ported);
        for slot in slots {
            let ends = self.ends.entry(*slot).or_default();
            (ends.inner, ends.tied, ends.carrier, ends.outer) = (false, false, false, None);
            ends.port_up = ends.port;
        }
    }

    fn unmake_ports(&mut self, slots: &[Slot]) {
        let tied: Vec<Slot> = slots.iter().filter(|slot| self.ends(**slot).inner).copied().collect();
        self.untie(&tied, Slot::inner);
        // A representor whose function has no netdev has no carrier.
        self.set_up_all(&tied, Slot::inner, false);
        self.delete_slots(slots, |ends| ends.port, Slot::port, Slot::port_group);
        for slot in slots {
            let ends = self.ends.entry(*slot).or_default();
            (ends.port, ends.port_up, ends.tied) = (false, false, false);
        }
    }

    fn unmake_pf_netdevs(&mut self, slots: &[Slot]) {
        let tied: Vec<Slot> = slots.iter().filter(|slot| self.ends(**slot).tied).copied().collect();
        self.untie(&tied, Slot::port);
        if !slots.is_empty() {
            self.delete(slots.iter().map(|slot| slot.inner()), None);
        }
        for slot in slots {
            let ends = self.ends.entry(*slot).or_default();
            (ends.inner, ends.tied) = (false, false);
        }
    }

    fn unmake_functions(&mut self, slots: &[Slot]) {
        let mut indexes = Vec::new();
        for slot in slots {
            indexes.push(slot.port());
            let bridges = self.bridges.range((slot.pf, 0)..=(slot.pf, u16::MAX));
            for (pf, n) in bridges {
                indexes.push(Inside::Bridge(*pf, *n).index());
                if *n != 0 {
                    indexes.push(Inside::Trunk(*pf, *n).index());
                }
            }
        }
        if !indexes.is_empty() {
            self.delete(indexes, None);
        }
        for slot in slots {
            self.bridges.retain(|(pf, _)| *pf != slot.pf);
            let ends = self.ends.entry(*slot).or_default();
            (ends.port, ends.port_up, ends.tied) = (false, false, false);
        }
    }

    /// Deletes one end's netdevs: as the whole group where nothing else is in it, which saves marking
    /// each.
    fn delete_slots(&mut self, slots: &[Slot], has: fn(&Ends) -> bool, end: fn(Slot) -> u32, group: fn(Slot) -> u32) {
        let mut by_pf: BTreeMap<PfIndex, Vec<Slot>> = BTreeMap::new();
        for slot in slots.iter().filter(|slot| has(&self.ends(**slot))) {
            by_pf.entry(slot.pf).or_default().push(*slot);
        }
        for (pf, going) in by_pf {
            let there =
                self.ends.iter().filter(|(slot, ends)| slot.pf == pf && slot.vport != Vport::Uplink && has(ends));
            // What was found and not asked for yet may be in the group, too.
            let whole = self.inventory.is_none() && there.count() == going.len();
            let all = whole.then(|| group(going[0]));
            self.delete(going.into_iter().map(end), all);
        }
    }
}
