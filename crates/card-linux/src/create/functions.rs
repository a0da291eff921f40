//! Makes what belongs to a PF as a whole: bridge and wire, the PF's netdev, the switchdev FDB, the uplink's ties.

use eswitch::PfIndex;

use super::netdevs::Channels;
use super::{Job, alive, done, half_done, push_attach};
use crate::books::Books;
use crate::layout::{Inside, Slot};
use crate::operation::Operation;
use crate::request::{self, CARD_MTU, OUTER_MTU, Outer};
use crate::socket::Batch;

impl Operation<'_> {
    /// The PFs' bridges and wires.
    pub(super) fn make_functions(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "making the bridge of", |books, batch, job| {
            let bridge = Inside::Bridge(job.slot.pf, 0);
            if books.found(bridge.index()).is_none() {
                request::bridge(batch, bridge.index(), &bridge.name(), true);
            }
        });
        let begun = alive(jobs);
        self.pass(jobs, "making the wire of", |books, batch, job| {
            if job.found.is_none() {
                books.push_wire(batch, job.slot);
            }
        });
        self.pass(jobs, "preparing the wire of", |_, batch, job| request::ingress(batch, job.slot.port()));
        self.pass(jobs, "attaching the wire of", |_, batch, job| {
            request::join_bridge(batch, job.slot.port(), Inside::Bridge(job.slot.pf, 0).index());
        });
        let failed = half_done(jobs, &begun);
        if !failed.is_empty() {
            let both = |slot: &Slot| [slot.port(), Inside::Bridge(slot.pf, 0).index()];
            self.delete(failed.iter().flat_map(both), None);
        }
        let mut books = self.books();
        for slot in done(jobs) {
            books.bridges.insert((slot.pf, 0));
            books.take([slot.port(), Inside::Bridge(slot.pf, 0).index(), Inside::Cable(slot.pf).index()]);
            let ends = books.ends.entry(slot).or_default();
            (ends.port, ends.port_up) = (true, true);
        }
    }

    /// The PFs' netdevs: stations on the bridge, until the uplink's representor is loaded.
    pub(super) fn make_pf_netdevs(&mut self, jobs: &mut [Job]) {
        self.make_pairs(jobs, Inside::Inner, |_| 0);
        let begun = alive(jobs);
        self.complete_checksums(jobs);
        self.pass(jobs, "preparing", |_, batch, job| request::ingress(batch, job.slot.inner()));
        self.pass(jobs, "attaching", |books, batch, job| {
            push_attach(books, batch, job, job.slot.inner(), Inside::Bridge(job.slot.pf, 0).index());
        });
        self.finish_names(jobs);
        self.pass(jobs, "tying", |books, batch, job| {
            if books.represented(job.slot) && books.ends(job.slot).port {
                books.push_ties(batch, job.slot);
            }
        });
        let failed = half_done(jobs, &begun);
        self.untie(&failed, Slot::port);
        if !failed.is_empty() {
            self.delete(failed.iter().map(|slot| slot.inner()), None);
        }
        let mut books = self.books();
        for slot in done(jobs) {
            let tied = books.represented(slot) && books.ends(slot).port;
            books.take([slot.inner()]);
            let ends = books.ends.entry(slot).or_default();
            (ends.inner, ends.tied) = (true, tied);
        }
    }

    /// Switching by MAC stops: the bridges are down. Ports stay on them, which is what makes a mode
    /// change cheap.
    pub(super) fn make_fdbs(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "stopping the bridges of", |books, batch, job| {
            // While a card is taken over, it is not known yet which mode it will be in.
            if books.inventory.is_none() {
                books.push_bridges_up(batch, job.slot.pf, false);
            }
        });
        for job in jobs.iter().filter(|job| job.outcome.is_err()) {
            self.run_built(|books, batch| books.push_bridges_up(batch, job.slot.pf, true));
        }
    }

    /// The uplinks' representors. Each is the PF's netdev: all it takes is a tie to the wire.
    pub(super) fn tie_uplinks(&mut self, jobs: &mut [Job]) {
        let both = |books: &Books, slot| {
            let ends = books.ends(slot);
            ends.port && ends.inner
        };
        self.pass(jobs, "tying", |books, batch, job| {
            if both(books, job.slot) {
                books.push_ties(batch, job.slot);
            }
        });
        // A lab keeps the netdev's settings there. The driver makes them anew with the mode (`mlx5e_netdev_change_profile`);
        // a card that is taken over changes no mode.
        self.pass(jobs, "forgetting the settings of", |books, batch, job| {
            if books.inventory.is_none() && books.ends(job.slot).inner {
                request::remove_alias(batch, job.slot.inner());
            }
        });
        let failed: Vec<Slot> = half_done(jobs, &vec![true; jobs.len()]);
        self.untie(&failed, Slot::port);
        self.untie(&failed, Slot::inner);
        if self.books().inventory.is_none() {
            done(jobs).into_iter().for_each(|slot| self.change_channels(slot, Channels::OfRepresentor));
        }
        let mut books = self.books();
        for slot in done(jobs) {
            let tied = both(&books, slot);
            books.ends.entry(slot).or_default().tied = tied;
        }
    }
}

impl Books {
    /// The pair that is a PF's wire.
    pub(crate) fn push_wire(&self, batch: &mut Batch, slot: Slot) {
        let cable = Inside::Cable(slot.pf);
        let (name, place) = match self.wires.get(&slot.pf) {
            Some(end) => (end.name.clone(), Ok(end.netns.as_ref().unwrap_or(&self.home))),
            None => (cable.name(), Err(cable.index())),
        };
        let outer =
            Outer { name: &name, mac: None, mtu: OUTER_MTU, place, before: None, queues: 1, tx_queue_len: None };
        let wire = Inside::Port(slot);
        request::pair(batch, wire.index(), &wire.name(), 0, CARD_MTU, &outer);
    }

    /// Brings all bridges of a PF up or down.
    pub(crate) fn push_bridges_up(&self, batch: &mut Batch, pf: PfIndex, up: bool) {
        for (_, n) in self.bridges.range((pf, 0)..=(pf, u16::MAX)) {
            request::set_up(batch, Inside::Bridge(pf, *n).index(), up);
        }
    }
}
