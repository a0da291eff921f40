//! Makes resources: in passes over a batch, one kind of request each, so that the kernel is never
//! waited for once per port. What fails in a pass takes no part in the next; in the end it is undone.

mod functions;
pub(crate) mod netdevs;
mod vports;

use eswitch::card::{CardError, Create, FailedCreate, Resource};
use eswitch::names::NetdevName;
use eswitch::{MacAddr, PfIndex, RepType, Vport};
use netlink::Errno;

use crate::books::{Books, Ends, Entry, near_end, slot_of};
use crate::homes::Abroad;
use crate::layout::Slot;
use crate::operation::{Operation, Part};
use crate::refused::refused;
use crate::request::{self, Link};
use crate::socket::{Batch, Failure};

use self::netdevs::Wanted;

/// A resource that is being made.
struct Job {
    /// Its index in the batch.
    at: usize,
    resource: Resource,
    slot: Slot,
    mac: MacAddr,
    name: Option<NetdevName>,
    /// How the netdev is requested.
    wanted: Wanted,
    /// The namespace of its devlink instance, if that is another one than the card's.
    abroad: Option<Abroad>,
    /// The pair that exists already, when a card is taken over.
    found: Option<Link>,
    outcome: Result<(), CardError>,
}

/// Resources that are made together, in the order in which one may need another.
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
            // A bond over the PFs' netdevs is the kernel's and forwards there; the card's part of a LAG has no netdev
            // of its own.
            | Resource::Lag(_)
            | Resource::MpeswMetadata(_)
            | Resource::PeerRules(..) => Self::OnPaper,
        }
    }
}

/// Whether a resource is an entry in the books only: the kernel has no part of it.
pub(crate) fn is_on_paper(resource: &Resource) -> bool {
    Stage::of(resource) == Stage::OnPaper
}

/// The parts of the card that making a batch changes.
pub(crate) fn parts(books: &Books, batch: &[Create]) -> Vec<Part> {
    let mut parts = Vec::with_capacity(batch.len());
    for Create { resource, .. } in batch {
        let slot = slot_of(resource);
        let stage = Stage::of(resource);
        let makes_bridge = stage == Stage::Ports && !books.bridges.contains(&(slot.pf, slot.bridge()));
        if makes_bridge || matches!(stage, Stage::Functions | Stage::Fdbs) {
            parts.push(Part::Bridges(slot.pf));
        }
        if !matches!(stage, Stage::OnPaper | Stage::Fdbs) {
            parts.push(Part::Vport(slot));
        }
    }
    parts
}

/// Notes which jobs failed, and why.
fn note(jobs: &mut [Job], call: &str, failures: Vec<Failure>) {
    for failure in failures {
        let job = &mut jobs[failure.tag];
        // Part of what was found may be as it should be.
        let exists = job.found.is_some() && failure.errno == Errno::EXIST;
        if job.outcome.is_ok() && !exists {
            let call = format!("{call} {}", job.resource);
            job.outcome = Err(refused(&call, &failure, job.name.as_ref()));
        }
    }
}

/// Which jobs have not failed so far.
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

impl Operation<'_> {
    /// Makes a batch of resources, whose [parts] this operation has claimed; returns what could not be made.
    pub(crate) fn create(&mut self, batch: &[Create]) -> Vec<FailedCreate> {
        let mut refusals = Vec::new();
        for stage in Stage::ALL {
            let mut jobs = self.books().jobs(stage, batch);
            if jobs.is_empty() {
                continue;
            }
            self.make(stage, &mut jobs);
            let mut vanished = self.vanished(&mut jobs);
            if !vanished.is_empty() {
                self.make(stage, &mut vanished);
                jobs.append(&mut vanished);
            }
            let ends_of_functions = [Stage::Ports, Stage::SfNetdevs, Stage::Representors].contains(&stage);
            let new_ends = if ends_of_functions { done(&jobs) } else { Vec::new() };
            let (mut abroad, mut homes) = (Vec::new(), Batch::default());
            let mut books = self.books();
            for job in jobs {
                match job.outcome {
                    Ok(()) => {
                        let request = &batch[job.at];
                        let entry = Entry::of(request);
                        books.resources.insert(job.resource, entry);
                        books.push_home(&mut homes, &job.resource);
                        if let (None, Some(near)) = (&job.found, near_end(&job.resource)) {
                            // The netdev that was here before may have had another name.
                            books.elsewhere.remove(&near);
                            books.renamed.remove(&near);
                            books.renamed.extend(job.other_name().map(|name| (near, name)));
                            abroad.extend(job.abroad.map(|at| (near, at)));
                        }
                    }
                    Err(error) => refusals.push(FailedCreate { at: job.at, error }),
                }
            }
            drop(books);
            // If one cannot be set, only a process that takes the card over misses it.
            self.run(homes);
            self.attach_rules(new_ends.iter().copied());
            self.redirect_limited(new_ends);
            abroad.into_iter().for_each(|(near, at)| self.send_abroad(near, at));
        }
        refusals.sort_by_key(|refusal| refusal.at);
        refusals
    }

    fn make(&mut self, stage: Stage, jobs: &mut [Job]) {
        match stage {
            Stage::Functions => self.make_functions(jobs),
            Stage::PfNetdevs => self.make_pf_netdevs(jobs),
            Stage::Ports => self.make_ports(jobs),
            Stage::SfNetdevs => self.make_sf_netdevs(jobs),
            Stage::Fdbs => self.make_fdbs(jobs),
            Stage::Representors => self.make_representors(jobs),
            Stage::Uplinks => self.tie_uplinks(jobs),
            Stage::OnPaper => {}
        }
    }

    /// Takes those jobs out that failed because what a card that is taken over had of them was deleted meanwhile: with the
    /// namespace of a netdev, for example. They are to be made anew.
    fn vanished(&mut self, jobs: &mut Vec<Job>) -> Vec<Job> {
        let (mut vanished, mut others) = (Vec::new(), Vec::new());
        for mut job in jobs.drain(..) {
            let found = job.found.as_ref().filter(|_| job.outcome.is_err()).map(|link| link.index);
            match found.filter(|index| self.has_gone(*index)) {
                Some(index) => {
                    self.books().forget(index);
                    (job.found, job.outcome) = (None, Ok(()));
                    vanished.push(job);
                }
                None => others.push(job),
            }
        }
        *jobs = others;
        vanished
    }

    /// The same for requests that concern both ends of a tie. If the other end, `other`, has just been deleted from outside,
    /// they fail, and the job does not: the watcher makes that end anew, and ties both.
    fn pass_tied(
        &mut self,
        jobs: &mut [Job],
        call: &str,
        other: fn(Slot) -> u32,
        build: impl Fn(&Books, &mut Batch, &Job),
    ) {
        let mut failures = self.run_for(jobs, build);
        failures.retain(|failure| failure.errno != Errno::NODEV || !self.has_gone(other(jobs[failure.tag].slot)));
        note(jobs, call, failures);
    }

    /// One kind of request inside the card for every job that has not failed.
    fn pass(&mut self, jobs: &mut [Job], call: &str, build: impl Fn(&Books, &mut Batch, &Job)) {
        let failures = self.run_for(jobs, build);
        note(jobs, call, failures);
    }

    fn run_for(&mut self, jobs: &[Job], build: impl Fn(&Books, &mut Batch, &Job)) -> Vec<Failure> {
        self.run_built(|books, batch| {
            for (n, job) in jobs.iter().enumerate().filter(|(_, job)| job.outcome.is_ok()) {
                batch.tag(n);
                build(books, batch, job);
            }
        })
    }
}

impl Operation<'_> {
    /// Ties all ports of a PF to their representors, or unties them all. The operation has claimed them.
    pub(crate) fn set_fdb_active(&mut self, pf: PfIndex, active: bool) {
        let mut books = self.books();
        let changed = if active { books.inactive.remove(&pf) } else { books.inactive.insert(pf) };
        let tied = |(slot, ends): (&Slot, &Ends)| (slot.pf == pf && ends.tied).then_some(*slot);
        let slots: Vec<Slot> = books.ends.iter().filter_map(tied).collect();
        drop(books);
        if !changed {
            return;
        }
        if active {
            // An end that has just been deleted from outside is made anew by the watcher, which ties it.
            self.run_built(|books, batch| slots.iter().for_each(|slot| books.push_ties(batch, *slot)));
        } else {
            self.untie(&slots, Slot::port);
            self.untie(&slots, Slot::inner);
        }
    }
}

impl Books {
    /// The jobs of a stage: what of a batch is made in it and does not exist.
    fn jobs(&mut self, stage: Stage, batch: &[Create]) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        for (at, request) in batch.iter().enumerate() {
            let resource = request.resource;
            if Stage::of(&resource) != stage {
                continue;
            }
            if self.resources.contains_key(&resource) {
                self.complaints.push(format!("{resource} made twice"));
                continue;
            }
            let name = match stage {
                Stage::Functions => {
                    self.wires.get(&resource.pf()).map(|end| NetdevName { name: end.name.clone(), altname: None })
                }
                Stage::Uplinks => None,
                _ => self.netdev_name(&resource, request.sfnum),
            };
            let slot = slot_of(&resource);
            let before = near_end(&resource).and_then(|near| self.coming_home.remove(&near));
            let abroad = near_end(&resource).and_then(|_| self.abroad_of(&resource));
            // The name of its place is udev's.
            let name = name.filter(|_| abroad.is_none());
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
                wanted: if abroad.is_some() { Wanted::abroad() } else { Wanted::new(name.as_ref(), before) },
                name,
                abroad,
                found: pair.and_then(|index| self.found(index)).cloned(),
                outcome: Ok(()),
            });
        }
        jobs
    }

    /// Ties a port and the inner end of its representor, both ways.
    pub(crate) fn push_ties(&self, batch: &mut Batch, slot: Slot) {
        if self.inactive.contains(&slot.pf) {
            // Without a tie nothing takes the frames: the bridge is down, and the card has no addresses.
            return;
        }
        // What was found may be tied, to a netdev that exists or to one that existed before.
        let is_found = self.inventory.is_some();
        self.ties.tie(batch, slot.port(), slot.inner(), is_found);
        self.ties.tie(batch, slot.inner(), slot.port(), is_found);
    }
}

/// Puts a port on a bridge, and brings it up if it is new and has a link.
fn push_attach(books: &Books, batch: &mut Batch, job: &Job, index: u32, bridge: u32) {
    match &job.found {
        None if books.is_link_down(job.slot) => request::set_master(batch, index, bridge),
        None => request::join_bridge(batch, index, bridge),
        Some(link) if link.master == Some(bridge) => {}
        Some(_) => request::set_master(batch, index, bridge),
    }
}
