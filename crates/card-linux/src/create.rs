//! Making resources: in passes over a batch, one kind of request each, so that the kernel is never
//! waited for once per port. What fails in a pass takes no part in the next; in the end it is undone.

use std::collections::BTreeSet;

use eswitch::card::{CardError, Create, FailedCreate, Resource};
use eswitch::names::NetdevName;
use eswitch::{MacAddr, PfIndex, RepType, Vport};
use netlink::Errno;

use crate::layout::{Inside, Slot};
use crate::request::{self, CARD_MTU, Link, OUTER_MTU, Outer};
use crate::socket::{Batch, Failure};
use crate::state::{Entry, State, Wire, refused};

/// One resource on its way.
struct Job {
    /// Its place in the batch.
    at: usize,
    resource: Resource,
    slot: Slot,
    mac: MacAddr,
    name: Option<NetdevName>,
    /// What there is of it already, when a card is taken over: a pair.
    found: Option<Link>,
    outcome: Result<(), CardError>,
}

/// What is made together, in the order in which one may need another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Functions,
    PfNetdevs,
    Ports,
    SfNetdevs,
    Fdbs,
    Representors,
    Uplinks,
    OnPaper,
}

impl Stage {
    const ALL: [Self; 8] = [
        Self::Functions,
        Self::PfNetdevs,
        Self::Ports,
        Self::SfNetdevs,
        Self::Fdbs,
        Self::Representors,
        Self::Uplinks,
        Self::OnPaper,
    ];

    fn of(resource: &Resource) -> Self {
        match resource {
            Resource::Function(_) => Self::Functions,
            Resource::PfNetdev(_) => Self::PfNetdevs,
            // A port gets its pair with its function's netdev: when the VF is bound, when the SF is
            // activated.
            Resource::Port(_, Vport::Vf(_) | Vport::Sf(_)) => Self::OnPaper,
            Resource::Port(..) | Resource::VfNetdev(..) => Self::Ports,
            Resource::SfNetdev(..) => Self::SfNetdevs,
            Resource::SwitchdevFdb(_) => Self::Fdbs,
            Resource::Representor(_, Vport::Uplink, RepType::Eth) => Self::Uplinks,
            Resource::Representor(_, _, RepType::Eth) => Self::Representors,
            Resource::Representor(_, _, RepType::Ib)
            | Resource::PfIbDevice(_)
            | Resource::SfIbDevice(..)
            // A bond over the PFs' netdevs is the kernel's and forwards there; what makes the PFs one
            // card under it has no netdev of its own.
            | Resource::Lag(_)
            | Resource::MpeswMetadata(_)
            | Resource::PeerRules(..) => Self::OnPaper,
        }
    }
}

/// Notes which jobs failed, and why.
fn note(jobs: &mut [Job], call: &str, failures: Vec<Failure>) {
    for failure in failures {
        let job = &mut jobs[failure.tag];
        // Of what was found some may be as it should.
        let is_there = job.found.is_some() && failure.errno == Errno::EXIST;
        if job.outcome.is_ok() && !is_there {
            let call = format!("{call} {}", job.resource);
            job.outcome = Err(refused(&call, &failure, job.name.as_ref()));
        }
    }
}

/// The jobs that have come through so far.
fn alive(jobs: &[Job]) -> Vec<bool> {
    jobs.iter().map(|job| job.outcome.is_ok()).collect()
}

/// The slots of jobs that had begun and then failed. What was found was not begun by us: it stays.
fn half_done(jobs: &[Job], begun: &[bool]) -> Vec<Slot> {
    let pairs = jobs.iter().zip(begun);
    let failed = pairs.filter(|(job, begun)| **begun && job.outcome.is_err() && job.found.is_none());
    failed.map(|(job, _)| job.slot).collect()
}

/// The slots of jobs that are done.
fn done(jobs: &[Job]) -> Vec<Slot> {
    jobs.iter().filter(|job| job.outcome.is_ok()).map(|job| job.slot).collect()
}

impl State {
    pub(crate) fn create(&mut self, batch: &[Create]) -> Vec<FailedCreate> {
        let mut refusals = Vec::new();
        for stage in Stage::ALL {
            let mut jobs = self.jobs(stage, batch);
            if jobs.is_empty() {
                continue;
            }
            match stage {
                Stage::Functions => self.make_functions(&mut jobs),
                Stage::PfNetdevs => self.make_pf_netdevs(&mut jobs),
                Stage::Ports => self.make_ports(&mut jobs),
                Stage::SfNetdevs => self.make_sf_netdevs(&mut jobs),
                Stage::Fdbs => self.make_fdbs(&mut jobs),
                Stage::Representors => self.make_representors(&mut jobs),
                Stage::Uplinks => self.tie_uplinks(&mut jobs),
                Stage::OnPaper => {}
            }
            for job in jobs {
                match job.outcome {
                    Ok(()) => {
                        let request = &batch[job.at];
                        let entry = Entry { mac: request.mac, sfnum: request.sfnum };
                        self.books.insert(job.resource, entry);
                        if let (None, Some(near)) = (&job.found, self.near_end(&job.resource)) {
                            // Whoever was here before had another name.
                            self.renamed.remove(&near);
                        }
                    }
                    Err(error) => refusals.push(FailedCreate { at: job.at, error }),
                }
            }
        }
        refusals.sort_by_key(|refusal| refusal.at);
        refusals
    }

    fn jobs(&mut self, stage: Stage, batch: &[Create]) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        for (at, request) in batch.iter().enumerate() {
            let resource = request.resource;
            if Stage::of(&resource) != stage {
                continue;
            }
            if self.books.contains_key(&resource) {
                self.complaints.push(format!("{resource} made twice"));
                continue;
            }
            let name = match stage {
                Stage::Functions => match self.wires.get(&resource.pf()) {
                    Some(Wire::Netdev(name)) => Some(NetdevName { name: name.clone(), altname: None }),
                    _ => None,
                },
                Stage::Uplinks => None,
                _ => self.netdev_name(&resource, request.sfnum),
            };
            let slot = Slot { pf: resource.pf(), vport: resource.vport().unwrap_or(Vport::Uplink) };
            let pair = match stage {
                Stage::Ports | Stage::SfNetdevs | Stage::Functions => Some(slot.port()),
                Stage::PfNetdevs | Stage::Representors => Some(slot.inner()),
                Stage::Fdbs | Stage::Uplinks | Stage::OnPaper => None,
            };
            jobs.push(Job {
                at,
                resource,
                slot,
                mac: request.mac,
                name,
                found: pair.and_then(|index| self.found(index)).cloned(),
                outcome: Ok(()),
            });
        }
        jobs
    }

    /// One kind of request inside the card for every job that has not failed.
    fn pass(&mut self, jobs: &mut [Job], call: &str, build: impl Fn(&Self, &mut Batch, &Job)) {
        let mut batch = Batch::default();
        for (n, job) in jobs.iter().enumerate().filter(|(_, job)| job.outcome.is_ok()) {
            batch.tag(n);
            build(self, &mut batch, job);
        }
        note(jobs, call, self.card.run(batch));
    }

    /// The alternative names, which the kernel does not take with the request that makes a netdev.
    fn add_altnames(&mut self, jobs: &mut [Job]) {
        let mut batch = Batch::default();
        for (n, job) in jobs.iter().enumerate().filter(|(_, job)| job.outcome.is_ok()) {
            if let Some(name) = &job.name
                && let Some(altname) = &name.altname
            {
                batch.tag(n);
                match &job.found {
                    None => request::add_altname(&mut batch, &name.name, altname),
                    // It may have another name by now. It has this one, unless whoever made it died just then.
                    Some(link) => {
                        if let Some(outer) = self.found_at_home(link) {
                            request::add_altname_to(&mut batch, outer, altname);
                        }
                    }
                }
            }
        }
        for failure in self.outside.run(batch) {
            let job = &mut jobs[failure.tag];
            if job.found.is_some() {
                continue;
            }
            let altname = job.name.as_ref().and_then(|n| n.altname.clone());
            let taken = altname.map(|name| NetdevName { name, altname: None });
            job.outcome = Err(refused("giving an alternative name", &failure, taken.as_ref()));
        }
    }

    /// A pair whose outer end is a netdev of the user's.
    fn push_pair(&self, batch: &mut Batch, job: &Job, inside: Inside, group: u32) {
        if job.found.is_some() {
            return;
        }
        let outer = Outer {
            name: job.name.as_ref().map_or("", |n| n.name.as_str()),
            mac: Some(job.mac),
            // What its representor was told before there was a netdev to tell.
            mtu: self.ends(job.slot).outer.map_or(OUTER_MTU, |(_, mtu)| mtu),
            place: Ok(&self.home),
        };
        request::pair(batch, inside.index(), &inside.name(), group, &outer);
    }

    /// Ties a port and what stands behind its representor, both ways.
    fn push_ties(&self, batch: &mut Batch, slot: Slot) {
        // What was found may be tied, to what is there or to what was there before.
        let tie = if self.inventory.is_some() { request::tie_again } else { request::tie };
        tie(batch, slot.port(), slot.inner());
        tie(batch, slot.inner(), slot.port());
    }

    /// Onto a bridge, and up if it is new.
    fn push_attach(batch: &mut Batch, job: &Job, index: u32, bridge: u32) {
        match &job.found {
            None => request::join_bridge(batch, index, bridge),
            Some(link) if link.master == Some(bridge) => {}
            Some(_) => request::set_master(batch, index, bridge),
        }
    }

    /// Bridge and wire.
    fn make_functions(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "making the bridge of", |state, batch, job| {
            let bridge = Inside::Bridge(job.slot.pf, 0);
            if state.found(bridge.index()).is_none() {
                request::bridge(batch, bridge.index(), &bridge.name(), true);
            }
        });
        let begun = alive(jobs);
        self.pass(jobs, "making the wire of", |state, batch, job| {
            if job.found.is_none() {
                state.push_wire(batch, job.slot);
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
        for slot in done(jobs) {
            self.bridges.insert((slot.pf, 0));
            self.take([slot.port(), Inside::Bridge(slot.pf, 0).index(), Inside::Cable(slot.pf).index()]);
            let ends = self.ends.entry(slot).or_default();
            (ends.port, ends.port_up) = (true, true);
        }
    }

    /// The pair that is a PF's wire.
    pub(crate) fn push_wire(&self, batch: &mut Batch, slot: Slot) {
        let cable = Inside::Cable(slot.pf);
        let (name, place) = match self.wires.get(&slot.pf) {
            Some(Wire::Netdev(name)) => (name.clone(), Ok(&self.home)),
            Some(Wire::Nowhere) | None => (cable.name(), Err(cable.index())),
        };
        let outer = Outer { name: &name, mac: None, mtu: OUTER_MTU, place };
        let wire = Inside::Port(slot);
        request::pair(batch, wire.index(), &wire.name(), 0, &outer);
    }

    /// The PFs' netdevs: stations on the bridge, until the uplink's representor is loaded.
    fn make_pf_netdevs(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "making", |state, batch, job| {
            state.push_pair(batch, job, Inside::Inner(job.slot), 0);
        });
        let begun = alive(jobs);
        self.pass(jobs, "preparing", |_, batch, job| request::ingress(batch, job.slot.inner()));
        self.pass(jobs, "attaching", |_, batch, job| {
            Self::push_attach(batch, job, job.slot.inner(), Inside::Bridge(job.slot.pf, 0).index());
        });
        self.add_altnames(jobs);
        self.pass(jobs, "tying", |state, batch, job| {
            if state.represented(job.slot) && state.ends(job.slot).port {
                state.push_ties(batch, job.slot);
            }
        });
        let failed = half_done(jobs, &begun);
        self.untie(&failed, Slot::port);
        if !failed.is_empty() {
            self.delete(failed.iter().map(|slot| slot.inner()), None);
        }
        for slot in done(jobs) {
            let tied = self.represented(slot) && self.ends(slot).port;
            self.take([slot.inner()]);
            let ends = self.ends.entry(slot).or_default();
            (ends.inner, ends.tied) = (true, tied);
        }
    }

    /// Ports with the netdevs of their functions, on the bridge. Made down, so that the place for ties
    /// costs nothing.
    fn make_ports(&mut self, jobs: &mut [Job]) {
        self.make_leaf_bridges(jobs);
        self.pass(jobs, "making", |state, batch, job| {
            state.push_pair(batch, job, Inside::Port(job.slot), job.slot.port_group());
        });
        let begun = alive(jobs);
        self.pass(jobs, "preparing", |_, batch, job| request::ingress(batch, job.slot.port()));
        self.pass(jobs, "attaching", |_, batch, job| {
            let bridge = Inside::Bridge(job.slot.pf, job.slot.bridge());
            Self::push_attach(batch, job, job.slot.port(), bridge.index());
        });
        self.add_altnames(jobs);
        self.tie_new_ports(jobs);
        self.finish_ports(jobs, &begun);
    }

    /// The netdevs of active SFs. They are never on the bridge: there are SFs in switchdev mode only.
    fn make_sf_netdevs(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "making", |state, batch, job| {
            state.push_pair(batch, job, Inside::Port(job.slot), job.slot.port_group());
        });
        let begun = alive(jobs);
        self.pass(jobs, "preparing", |_, batch, job| request::ingress(batch, job.slot.port()));
        self.pass(jobs, "bringing up", |_, batch, job| {
            if job.found.is_none() {
                request::set_up(batch, job.slot.port(), true);
            }
        });
        self.add_altnames(jobs);
        self.tie_new_ports(jobs);
        self.finish_ports(jobs, &begun);
    }

    /// Where a representor is loaded already, its function's netdev comes under its rule.
    fn tie_new_ports(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "tying", |state, batch, job| {
            if state.ends(job.slot).inner {
                state.push_ties(batch, job.slot);
                // That the function has no netdev was said by the lack of carrier of its representor.
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
            let tied: Vec<Slot> = failed.iter().filter(|slot| self.ends(**slot).inner).copied().collect();
            self.untie(&tied, Slot::inner);
            self.set_up_all(&tied, Slot::inner, false);
            self.delete(failed.iter().map(|slot| slot.port()), None);
        }
        for slot in done(jobs) {
            let found_up = self.found(slot.port()).map(|link| link.up);
            self.take([slot.port()]);
            let ends = self.ends.entry(slot).or_default();
            ends.port = true;
            ends.tied = ends.inner;
            // If there is a representor that is up, the watcher hears of it in a moment.
            ends.port_up = found_up.unwrap_or(!ends.inner);
        }
    }

    /// Further bridges, each joined to the first. They stay until their PF goes.
    fn make_leaf_bridges(&mut self, jobs: &mut [Job]) {
        let wanted: BTreeSet<(PfIndex, u16)> = jobs.iter().map(|job| (job.slot.pf, job.slot.bridge())).collect();
        for (pf, n) in wanted.difference(&self.bridges.clone()).copied() {
            let up = !self.books.contains_key(&Resource::SwitchdevFdb(pf));
            let (bridge, trunk, branch) = (Inside::Bridge(pf, n), Inside::Trunk(pf, n), Inside::Branch(pf, n));
            let mut batch = Batch::default();
            let found = [bridge.index(), trunk.index()].map(|index| self.found(index).is_some());
            if !found[0] {
                request::bridge(&mut batch, bridge.index(), &bridge.name(), up);
            }
            let outer = Outer { name: &branch.name(), mac: None, mtu: CARD_MTU, place: Err(branch.index()) };
            if !found[1] {
                request::pair(&mut batch, trunk.index(), &trunk.name(), 0, &outer);
            }
            request::join_bridge(&mut batch, trunk.index(), Inside::Bridge(pf, 0).index());
            request::join_bridge(&mut batch, branch.index(), bridge.index());
            let Some(failure) = self.card.run(batch).into_iter().next() else {
                self.bridges.insert((pf, n));
                self.take([bridge.index(), trunk.index(), branch.index()]);
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

    /// Switching by MAC stops: the bridges are down. Ports stay on them, which is what makes a mode
    /// change cheap.
    fn make_fdbs(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "stopping the bridges of", |state, batch, job| {
            // While a card is taken over, the mode it comes to is not known yet.
            if state.inventory.is_none() {
                state.push_bridges_up(batch, job.slot.pf, false);
            }
        });
        for job in jobs.iter().filter(|job| job.outcome.is_err()) {
            let mut batch = Batch::default();
            self.push_bridges_up(&mut batch, job.slot.pf, true);
            self.card.run(batch);
        }
    }

    /// All bridges of a PF, up or down.
    pub(crate) fn push_bridges_up(&self, batch: &mut Batch, pf: PfIndex, up: bool) {
        for (_, n) in self.bridges.range((pf, 0)..=(pf, u16::MAX)) {
            request::set_up(batch, Inside::Bridge(pf, *n).index(), up);
        }
    }

    /// Representors, tied to their ports. They are born down, so their functions lose carrier.
    fn make_representors(&mut self, jobs: &mut [Job]) {
        self.pass(jobs, "making", |state, batch, job| {
            state.push_pair(batch, job, Inside::Inner(job.slot), job.slot.inner_group());
        });
        let begun = alive(jobs);
        self.pass(jobs, "preparing", |_, batch, job| request::ingress(batch, job.slot.inner()));
        self.pass(jobs, "tying", |state, batch, job| {
            if state.ends(job.slot).port {
                state.push_ties(batch, job.slot);
            }
        });
        self.pass(jobs, "bringing up", |state, batch, job| {
            if state.ends(job.slot).port {
                request::set_up(batch, job.slot.inner(), true);
                if job.found.is_none() {
                    request::set_up(batch, job.slot.port(), false);
                }
            }
        });
        self.add_altnames(jobs);
        let failed = half_done(jobs, &begun);
        if !failed.is_empty() {
            let ported: Vec<Slot> = failed.iter().filter(|slot| self.ends(**slot).port).copied().collect();
            self.untie(&ported, Slot::port);
            self.delete(failed.iter().map(|slot| slot.inner()), None);
            self.set_up_all(&ported, Slot::port, true);
        }
        for slot in done(jobs) {
            let found = self.found(slot.inner()).is_some();
            self.take([slot.inner()]);
            let ends = self.ends.entry(slot).or_default();
            ends.inner = true;
            ends.tied = ends.port;
            // One that was found is as it was, until it is looked at.
            ends.port_up = found && ends.port_up;
            ends.carrier = ends.port_up;
            ends.outer = None;
        }
    }

    /// The uplink's representor is the PF's netdev: all it takes is a tie to the wire.
    fn tie_uplinks(&mut self, jobs: &mut [Job]) {
        let both = |state: &Self, slot| {
            let ends = state.ends(slot);
            ends.port && ends.inner
        };
        self.pass(jobs, "tying", |state, batch, job| {
            if both(state, job.slot) {
                state.push_ties(batch, job.slot);
            }
        });
        let failed: Vec<Slot> = half_done(jobs, &vec![true; jobs.len()]);
        self.untie(&failed, Slot::port);
        self.untie(&failed, Slot::inner);
        for slot in done(jobs) {
            let tied = both(self, slot);
            self.ends.entry(slot).or_default().tied = tied;
        }
    }
}
