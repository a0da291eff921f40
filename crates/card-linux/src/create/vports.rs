//! Makes what belongs to one vport: its port with the netdev of its function, and its representor.

use std::collections::BTreeSet;

use eswitch::PfIndex;
use eswitch::card::Acl;

use super::{Job, alive, done, half_done, note, push_attach};
use crate::acl::Loaded;
use crate::layout::{Inside, Slot};
use crate::operation::Operation;
use crate::refused::refused;
use crate::request;
use crate::socket::Batch;

impl Operation<'_> {
    /// Ports with the netdevs of their functions, on the bridge. Made down, so that the place for ties
    /// costs nothing.
    pub(super) fn make_ports(&mut self, jobs: &mut [Job]) {
        self.make_leaf_bridges(jobs);
        self.make_pairs(jobs, Inside::Port, Slot::port_group);
        let begun = alive(jobs);
        self.pass(jobs, "preparing", |_, batch, job| {
            request::ingress_and_egress(batch, job.slot.port());
        });
        self.set_new_acls(jobs);
        self.pass(jobs, "attaching", |books, batch, job| {
            let bridge = Inside::Bridge(job.slot.pf, job.slot.bridge());
            push_attach(books, batch, job, job.slot.port(), bridge.index());
        });
        self.finish_names(jobs);
        self.tie_new_ports(jobs);
        self.finish_ports(jobs, &begun);
    }

    /// New ports let pass what those before them did. What was found has its filters.
    fn set_new_acls(&mut self, jobs: &mut [Job]) {
        let mut batch = Batch::default();
        // The filters keep their programs once they are there.
        let mut programs = Vec::new();
        for (n, job) in jobs.iter_mut().enumerate().filter(|(_, job)| job.outcome.is_ok() && job.found.is_none()) {
            let acl = self.books().acl(job.slot);
            if acl == Acl::default() {
                continue;
            }
            match Loaded::new(acl) {
                Ok(loaded) => {
                    batch.tag(n);
                    loaded.push(&mut batch, job.slot.port());
                    programs.push(loaded);
                }
                Err(error) => job.outcome = Err(error),
            }
        }
        let failures = self.run(batch);
        note(jobs, "setting what passes at", failures);
    }

    /// The netdevs of active SFs. They are never on the bridge: there are SFs in switchdev mode only.
    pub(super) fn make_sf_netdevs(&mut self, jobs: &mut [Job]) {
        self.make_pairs(jobs, Inside::Port, Slot::port_group);
        let begun = alive(jobs);
        self.pass(jobs, "preparing", |_, batch, job| {
            request::ingress_and_egress(batch, job.slot.port());
        });
        self.pass(jobs, "bringing up", |_, batch, job| {
            if job.found.is_none() {
                request::set_up(batch, job.slot.port(), true);
            }
        });
        self.finish_names(jobs);
        self.tie_new_ports(jobs);
        self.finish_ports(jobs, &begun);
    }

    /// Ties new ports to those representors that are loaded already.
    fn tie_new_ports(&mut self, jobs: &mut [Job]) {
        self.pass_tied(jobs, "tying", Slot::inner, |books, batch, job| {
            if books.ends(job.slot).inner {
                books.push_ties(batch, job.slot);
                // Its representor had no carrier, as the function had no netdev.
                request::set_up(batch, job.slot.inner(), true);
                if job.found.is_none() {
                    request::set_up(batch, job.slot.port(), false);
                }
            }
        });
    }

    fn finish_ports(&mut self, jobs: &[Job], begun: &[bool]) {
        let failed = half_done(jobs, begun);
        if !failed.is_empty() {
            let books = self.books();
            let tied: Vec<Slot> = failed.iter().filter(|slot| books.ends(**slot).inner).copied().collect();
            drop(books);
            self.untie(&tied, Slot::inner);
            self.set_up_all(&tied, Slot::inner, false);
            self.delete(failed.iter().map(|slot| slot.port()), None);
        }
        let mut books = self.books();
        for slot in done(jobs) {
            let found_up = books.found(slot.port()).map(|link| link.up);
            books.take([slot.port()]);
            let link_down = books.is_link_down(slot);
            let ends = books.ends.entry(slot).or_default();
            ends.port = true;
            ends.tied = ends.inner;
            // If its representor is up, the watcher is about to receive the event, and brings the port up.
            ends.port_up = found_up.unwrap_or(!ends.inner && !link_down);
        }
    }

    /// Further bridges, each joined to the first. They stay until their PF goes.
    fn make_leaf_bridges(&mut self, jobs: &mut [Job]) {
        let wanted: BTreeSet<(PfIndex, u16)> = jobs.iter().map(|job| (job.slot.pf, job.slot.bridge())).collect();
        let missing: Vec<_> = wanted.difference(&self.books().bridges).copied().collect();
        for (pf, n) in missing {
            let (bridge, trunk, branch) = (Inside::Bridge(pf, n), Inside::Trunk(pf, n), Inside::Branch(pf, n));
            let found = [bridge.index(), trunk.index()].map(|index| self.books().found(index).is_some());
            let failures = self.run_built(|books, batch| {
                if !found[0] {
                    request::bridge(batch, bridge.index(), &bridge.name(), !books.has_fdb(pf));
                }
                if !found[1] {
                    request::inner_pair(batch, trunk, branch);
                }
                request::join_bridge(batch, trunk.index(), Inside::Bridge(pf, 0).index());
                request::join_bridge(batch, branch.index(), bridge.index());
            });
            let Some(failure) = failures.into_iter().next() else {
                let mut books = self.books();
                books.bridges.insert((pf, n));
                books.take([bridge.index(), trunk.index(), branch.index()]);
                continue;
            };
            let new = [bridge.index(), trunk.index()].into_iter().zip(found).filter(|(_, found)| !found);
            self.delete(new.map(|(index, _)| index), None);
            for job in jobs.iter_mut().filter(|job| (job.slot.pf, job.slot.bridge()) == (pf, n)) {
                let call = format!("making {} for {}", bridge.name(), job.resource);
                job.outcome = Err(refused(&call, &failure, None));
            }
        }
    }

    /// Representors, tied to their ports. They are born down, so their functions lose carrier.
    pub(super) fn make_representors(&mut self, jobs: &mut [Job]) {
        self.make_pairs(jobs, Inside::Inner, Slot::inner_group);
        let begun = alive(jobs);
        self.complete_checksums(jobs);
        self.leave_one_channel(jobs);
        self.pass(jobs, "preparing", |_, batch, job| request::ingress_and_egress(batch, job.slot.inner()));
        self.pass_tied(jobs, "tying", Slot::port, |books, batch, job| {
            if books.ends(job.slot).port {
                books.push_ties(batch, job.slot);
            }
        });
        self.pass_tied(jobs, "bringing up", Slot::port, |books, batch, job| {
            if books.ends(job.slot).port {
                request::set_up(batch, job.slot.inner(), true);
                if job.found.is_none() {
                    request::set_up(batch, job.slot.port(), false);
                }
            }
        });
        self.finish_names(jobs);
        let failed = half_done(jobs, &begun);
        if !failed.is_empty() {
            let books = self.books();
            let ported: Vec<Slot> = failed.iter().filter(|slot| books.ends(**slot).port).copied().collect();
            drop(books);
            self.untie(&ported, Slot::port);
            self.delete(failed.iter().map(|slot| slot.inner()), None);
            let linked = self.with_link(&ported);
            self.set_up_all(&linked, Slot::port, true);
        }
        let mut books = self.books();
        for slot in done(jobs) {
            let found = books.found(slot.inner()).is_some();
            books.take([slot.inner()]);
            let ends = books.ends.entry(slot).or_default();
            ends.inner = true;
            ends.tied = ends.port;
            // One that was found is as it was, until it is looked at.
            ends.port_up = found && ends.port_up;
            ends.carrier = ends.port_up;
            ends.outer = None;
        }
    }
}
