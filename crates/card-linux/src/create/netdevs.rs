//! Makes the pairs whose outer ends are netdevs, and gives these their names.
//!
//! A name that is taken is never an error: a driver asks the kernel for a free name (`eth%d`; mlx5e's
//! `mlx5e_create_netdev`, from `alloc_etherdev_mqs`), and it is udev that gives the netdev the name of its place, if
//! it can. So a netdev is made with that name if it is free, and as `eth%d` otherwise. Nobody tries the name again later,
//! and udev does not either.
//!
//! A netdev that comes home from a namespace that has died has what the kernel leaves a physical netdev in
//! this case (`default_device_exit_net` and `__dev_change_net_namespace` in `net/core/dev.c`): its name if that is
//! free, else `dev` and its old interface number if that is free, else the first free `dev%d`; its interface number if
//! that is free; its MAC address, MTU, `txqueuelen`, group and alias; and those alternative names that are free. It is
//! down and has no IP addresses.

use eswitch::card::Resource;
use eswitch::names::NetdevName;
use netlink::{Errno, errno_of};

use super::{Job, note};
use crate::books::Books;
use crate::layout::{Inside, Slot};
use crate::operation::Operation;
use crate::refused::{refused, refused_io};
use crate::request::{self, Before, Link, OUTER_MTU, Outer};
use crate::socket::{Batch, Failure};

/// How a netdev is requested.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// The names that are still to be tried, in reverse: the last is the next.
    names: Vec<String>,
    /// Its state in the namespace from which it comes home.
    before: Option<Link>,
    /// The interface number, or 0 if the kernel is to choose it.
    index: u32,
    /// The name that the kernel has given to it, once that is known.
    given: Option<String>,
}

impl Wanted {
    /// `name`: the one of its place; `before`: its state in the namespace from which it comes home.
    pub(super) fn new(name: Option<&NetdevName>, before: Option<Link>) -> Self {
        let names = match &before {
            Some(Link { name, index, .. }) => vec!["dev%d".to_owned(), format!("dev{index}"), name.clone()],
            None => vec!["eth%d".to_owned(), name.map(|netdev| netdev.name.clone()).unwrap_or_default()],
        };
        Self { names, index: before.as_ref().map_or(0, |link| link.index), before, given: None }
    }

    /// A netdev that is moved to another namespace as soon as it is made, and gets its name there. Till then it has one
    /// that nobody asks for, as the kernel counts the present name of a netdev among those that are taken.
    pub(super) fn abroad() -> Self {
        Self { names: vec!["eswitch%d".to_owned()], ..Self::default() }
    }

    /// The name to request now. The kernel replaces a `%d` in it.
    fn name(&self) -> &str {
        self.names.last().map_or("eth%d", String::as_str)
    }

    /// Whether there is something else to try after the kernel's answer.
    fn try_another(&mut self, errno: Errno) -> bool {
        match errno {
            Errno::EXIST if self.names.len() > 1 => self.names.pop().is_some(),
            Errno::BUSY => std::mem::take(&mut self.index) != 0,
            _ => false,
        }
    }
}

impl Job {
    /// The name that the kernel has given to its netdev, if that is not the one of its place.
    pub(super) fn other_name(&self) -> Option<String> {
        let made = self.name.as_ref().map(|netdev| &netdev.name);
        self.wanted.given.clone().filter(|given| made != Some(given))
    }

    /// The alternative names that its netdev is to have.
    fn altnames(&self) -> &[String] {
        match (&self.wanted.before, &self.name) {
            (Some(before), _) => &before.altnames,
            (None, Some(name)) => name.altname.as_slice(),
            (None, None) => &[],
        }
    }
}

/// With how many channels a netdev starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Channels {
    /// With all (`mlx5e_build_nic_params`).
    OfFunction,
    /// With one (MLX5E_REP_PARAMS_DEF_NUM_CHANNELS).
    OfRepresentor,
}

impl Operation<'_> {
    /// Makes a pair for every job that has none. `group`: of the inner end.
    pub(super) fn make_pairs(&mut self, jobs: &mut [Job], inside: fn(Slot) -> Inside, group: fn(Slot) -> u32) {
        let is_open = |(_, job): &(usize, &Job)| job.outcome.is_ok() && job.found.is_none();
        let mut open: Vec<usize> = jobs.iter().enumerate().filter(is_open).map(|(n, _)| n).collect();
        while !open.is_empty() {
            let failures = self.run_built(|books, batch| {
                for (n, job) in open.iter().map(|n| (*n, &jobs[*n])) {
                    batch.tag(n);
                    books.push_pair(batch, job, inside(job.slot), group(job.slot));
                }
            });
            let may_go_on = |failure: &Failure| jobs[failure.tag].wanted.try_another(failure.errno);
            let (again, failed): (Vec<Failure>, Vec<Failure>) = failures.into_iter().partition(may_go_on);
            note(jobs, "making", failed);
            open = again.iter().map(|failure| failure.tag).collect();
        }
        for job in jobs.iter_mut().filter(|job| job.outcome.is_ok() && job.found.is_none()) {
            let mut books = self.books();
            let mtu = request::card_mtu(books.mtu_of(job));
            books.card_mtus.insert(inside(job.slot).index(), mtu);
            drop(books);
            job.wanted.given = match job.wanted.name() {
                pattern if pattern.contains('%') => self.name_at_home(inside(job.slot).index()),
                name => Some(name.to_owned()),
            };
        }
    }

    /// Has the inner ends of representors and of PFs' netdevs give them packets as the configuration wants them. What was
    /// found may be of another configuration.
    pub(super) fn complete_checksums(&mut self, jobs: &mut [Job]) {
        let complete = self.books().config.complete_checksums;
        for job in jobs.iter_mut().filter(|job| job.outcome.is_ok() && (complete || job.found.is_some())) {
            let name = Inside::Inner(job.slot).name();
            if let Err(error) = self.sockets().inside.set_tx_checksums(&name, !complete) {
                job.outcome = Err(refused_io(&format!("setting the checksums of {}", job.resource), &error));
            }
        }
    }

    /// Leaves representors that were made one channel. The kernel makes a netdev with all of its queues.
    pub(super) fn leave_one_channel(&mut self, jobs: &[Job]) {
        for job in jobs.iter().filter(|job| job.outcome.is_ok() && job.found.is_none()) {
            self.change_channels(job.slot, Channels::OfRepresentor);
        }
    }

    /// Gives a netdev the channels with which its driver starts. One that is not where the card's netdevs appear, or that the
    /// user has deleted, keeps those that it has.
    pub(crate) fn change_channels(&mut self, slot: Slot, channels: Channels) {
        let all = self.books().config.channels;
        let count = match channels {
            _ if all == 1 => return,
            Channels::OfFunction => all,
            Channels::OfRepresentor => 1,
        };
        let Some(name) = self.name_at_home(slot.inner()) else { return };
        if let Err(error) = self.sockets().outside.set_queues(&name, count)
            && errno_of(&error) != Errno::NODEV
        {
            self.books().complaints.push(format!("the channels of {name} were not set to {count}: {error}"));
        }
    }

    /// The name of the outer end of a pair, if that is where netdevs appear; `near`: the number of the card's end.
    pub(crate) fn name_at_home(&mut self, near: u32) -> Option<String> {
        let outer = self.index_at_home(near)?;
        Some(request::link(&mut self.sockets().outside, outer).ok()?.name)
    }

    /// The alternative names and the alias, which the kernel does not take with the request that makes a netdev. An
    /// alternative name that is taken stays with the netdev that has it.
    pub(super) fn finish_names(&mut self, jobs: &mut [Job]) {
        let mut batch = Batch::default();
        let books = self.books();
        for (n, job) in jobs.iter().enumerate().filter(|(_, job)| job.outcome.is_ok()) {
            batch.tag(n);
            match (&job.found, &job.wanted.given) {
                (None, Some(name)) => {
                    job.altnames().iter().for_each(|altname| request::add_altname(&mut batch, name, altname));
                    let alias = job.wanted.before.as_ref().and_then(|before| before.alias.as_ref());
                    alias.iter().for_each(|alias| request::set_alias(&mut batch, name, alias));
                }
                (None, None) => {}
                // It may have another name by now. It has this one, unless the process that made it died just then.
                (Some(link), _) => {
                    if let Some(outer) = books.found_at_home(link) {
                        job.altnames().iter().for_each(|name| request::add_altname_to(&mut batch, outer, name));
                    }
                }
            }
        }
        drop(books);
        if batch.is_empty() {
            return;
        }
        for failure in self.sockets().outside.run(batch) {
            let job = &mut jobs[failure.tag];
            if job.found.is_none() && failure.errno != Errno::EXIST {
                job.outcome = Err(refused("giving another name", &failure, None));
            }
        }
    }
}

impl Books {
    /// The MTU that the netdev of a job is made with: what it had before, or what its representor was given before it
    /// existed.
    fn mtu_of(&self, job: &Job) -> u32 {
        let before = job.wanted.before.as_ref().map(|before| before.mtu);
        let at_home = self.ends(job.slot).outer.map(|(_, mtu)| mtu);
        let elsewhere = self.elsewhere.get(&job.slot.inner()).map(|elsewhere| elsewhere.link.mtu);
        before.or(at_home).or(elsewhere).unwrap_or(OUTER_MTU)
    }

    /// A pair whose outer end is a netdev of the user's.
    fn push_pair(&self, batch: &mut Batch, job: &Job, inside: Inside, group: u32) {
        let link = job.wanted.before.as_ref();
        let before = link.map(|link| Before { index: job.wanted.index, group: link.group });
        let is_dpus = self.config.dpu && matches!(job.resource, Resource::Representor(..));
        let at_first = is_dpus.then_some(request::DPU_REPRESENTOR_QUEUE_LEN);
        let outer = Outer {
            name: job.wanted.name(),
            mac: Some(link.and_then(|link| link.mac).unwrap_or(job.mac)),
            mtu: self.mtu_of(job),
            place: Ok(&self.home),
            before: before.as_ref(),
            queues: self.config.channels,
            tx_queue_len: link.and_then(|link| link.tx_queue_len).or(at_first),
        };
        request::pair(batch, inside.index(), &inside.name(), group, request::card_mtu(outer.mtu), &outer);
    }
}
