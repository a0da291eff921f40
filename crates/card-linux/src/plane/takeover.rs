//! Takes over the rules of a dead process.
//!
//! What a dead process has left is found at the ends of ports: the program is attached there, and has its maps. Until the
//! takeover ends it carries frames as it did. Rules that the engine asks for again keep their counters; what it does not ask
//! for is removed at the end.
//!
//! A program of another build has maps of another form. Then the rules are installed anew in a program of this build, which
//! is attached behind the other one: that decides until it is taken away, so no frame is lost.
//!
//! Filters of the kernel's [classifier] stay, too. A rule that the engine asks for again takes the place of its own, and keeps its
//! counter; those that it does not ask for are removed at the end. For a moment then, frames take the slow path.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use datapath_bpf::{Change, Leftover, Pipeline};
use eswitch::datapath::pf_of;
use flow::{MeterId, Port, RuleId};
use lockdep::Locked;

use super::{Carrier, NO_TCX, Plane, classifier};
use crate::request::acl;
use crate::socket::{Socket, within};

/// What a dead process has left.
pub(super) struct Found {
    /// The rules that are in the program and were not asked for again. `None`: the program is of another build.
    rules: Option<BTreeSet<RuleId>>,
    /// Its meters, in the same way.
    meters: BTreeSet<MeterId>,
    /// Its ports, of which it is told nothing until the takeover ends: it is not yet known what limits them.
    ports: BTreeSet<Port>,
    /// Programs that were attached by tcx and are to go.
    old: Vec<Leftover>,
    /// The netdevs that may have filters of rules which the kernel's classifier carried out.
    filters: Vec<u32>,
}

impl Found {
    /// The rules that can be asked for again; `None` if all can.
    pub(super) fn rules(&self) -> Option<BTreeSet<RuleId>> {
        self.rules.clone()
    }

    /// Notes that a rule is asked for again. Returns whether the program has it.
    pub(super) fn claim(&mut self, id: RuleId) -> bool {
        self.rules.as_mut().is_some_and(|rules| rules.remove(&id))
    }

    /// Whether a port is as the dead process has left it.
    pub(super) fn has(&self, port: Port) -> bool {
        self.ports.contains(&port)
    }

    /// The netdevs that may have filters of rules.
    pub(super) fn filters(&self) -> &[u32] {
        &self.filters
    }

    /// Notes that a meter is asked for again.
    pub(super) fn claim_meter(&mut self, id: MeterId) {
        self.meters.remove(&id);
    }
}

/// Looks for the program at netdevs of the card's network namespace.
pub(super) fn find(inside: &File, netdevs: &[u32]) -> (Option<Pipeline>, Option<Found>) {
    let at = || {
        let mut socket = Socket::open(inside)?;
        netdevs.iter().map(|index| leftovers(&mut socket, *index)).collect::<io::Result<Vec<_>>>()
    };
    let unknown =
        Found { rules: None, meters: BTreeSet::new(), ports: BTreeSet::new(), old: Vec::new(), filters: Vec::new() };
    // A kernel that does not say what is there has nothing there.
    let mut socket = Socket::open(inside).ok();
    let by_filters = socket.as_mut().is_some_and(|socket| classifier::has_left(socket).unwrap_or(false));
    let unknown = Found { filters: if by_filters { netdevs.to_vec() } else { Vec::new() }, ..unknown };
    // Where this process may not look, the rules are installed anew, and no program that is there is taken away.
    let Ok(Ok(found)) = within(inside, at) else { return (None, Some(unknown)) };
    let found: Vec<Leftover> = found.into_iter().flatten().collect();
    let Some(first) = found.first() else {
        let rules = if by_filters { None } else { Some(BTreeSet::new()) };
        return (None, Some(Found { rules, ..unknown }));
    };
    let id = first.id;
    let ours = found.iter().filter(|leftover| leftover.id == id && leftover.by_tcx).map(|leftover| leftover.ifindex);
    let adopted = first.program.as_fd().try_clone_to_owned().map_err(Into::into);
    match adopted.and_then(|program| Pipeline::adopt(program, ours)) {
        Ok(pipeline) => {
            let (rules, meters) = (Some(pipeline.rules().collect()), pipeline.meters().collect());
            let ports = pipeline.ports().unwrap_or_default().into_iter().collect();
            let old = found.into_iter().filter(|leftover| leftover.id != id && leftover.by_tcx).collect();
            (Some(pipeline), Some(Found { rules, meters, ports, old, ..unknown }))
        }
        Err(_) => {
            let old = found.into_iter().filter(|leftover| leftover.by_tcx).collect();
            (None, Some(Found { old, ..unknown }))
        }
    }
}

/// The programs at a netdev of the calling thread's network namespace, which the socket is of.
fn leftovers(socket: &mut Socket, index: u32) -> io::Result<Vec<Leftover>> {
    match Leftover::at(index) {
        Err(error) if error.raw_os_error() == Some(NO_TCX) => {
            let id = acl::program_at(socket, index, acl::Place::Rules)?;
            let of_filter = id.map(|id| Leftover::of_filter(index, id)).transpose()?;
            Ok(of_filter.flatten().into_iter().collect())
        }
        found => found,
    }
}

impl Plane {
    /// The ports that have rules.
    pub(crate) fn ports_with_rules<L>(&self, cx: &mut Locked<'_, L>) -> BTreeSet<Port> {
        let state = self.state.lock_leaf(cx);
        state.switches.values().flat_map(|switch| switch.with_rules.keys().copied()).collect()
    }

    /// Removes what was found and not asked for again.
    pub(crate) fn end_taking_over<L>(&self, cx: &mut Locked<'_, L>) {
        let mut state = self.state.lock_leaf(cx);
        let Some(Found { rules, meters, old, filters, .. }) = state.found.take() else { return };
        // An error is that of a netdev which has just gone.
        let _ = within(&self.inside, || old.into_iter().for_each(|old| drop(old.detach())));
        if !filters.is_empty() && !matches!(state.carrier, Some(Carrier::Classifier(_))) {
            // An error is that of a netdev which has just gone.
            let _ = Socket::open(&self.inside).and_then(|mut socket| classifier::clear(&mut socket, &filters));
        }
        let mut pipeline = match state.carrier.take() {
            Some(Carrier::Program(pipeline)) => pipeline,
            Some(Carrier::Classifier(mut classifier)) => {
                classifier.end_taking_over();
                state.carrier = Some(Carrier::Classifier(classifier));
                return;
            }
            None => return,
        };
        let rules = rules.unwrap_or_default().into_iter().map(Change::Remove);
        pipeline.commit(&rules.chain(meters.into_iter().map(Change::RemoveMeter)).collect::<Vec<_>>());
        let is_known = |port: &Port| state.switches.get(&pf_of(*port)).is_some_and(|of| of.ports.contains(port));
        let unknown: Vec<Port> =
            pipeline.ports().unwrap_or_default().into_iter().filter(|port| !is_known(port)).collect();
        let without_rules = state.switches.values().flat_map(|switch| &switch.ports);
        let without_rules = without_rules.copied().filter(|port| !state.has_rules(*port));
        self.detach_all(&mut pipeline, &without_rules.chain(unknown.iter().copied()).collect());
        unknown.into_iter().for_each(|port| drop(pipeline.remove_port(port)));
        state.carrier = Some(Carrier::Program(pipeline));
        let all: Vec<Port> = state.switches.values().flat_map(|switch| &switch.ports).copied().collect();
        state.tell(&all);
    }
}
