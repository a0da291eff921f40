//! The data plane of a card of netdevs: flow rules in eBPF, at the card's ends of ports and wires.
//!
//! Without rules a card needs none of it: ties carry every frame between a port and its representor. So the program is
//! loaded with the first rule, and attached only at ports that have rules. There it comes before the ties: what a rule
//! takes never reaches the representor, and what no rule takes does, as before.
//!
//! Where the kernel refuses the program, as it does without root, its own [classifier] carries rules out, as far as it can. Where
//! the kernel does not have that, rules are refused with both reasons.
//!
//! What is attached stays without a process, and carries frames on. The next process [takes it over](takeover).

mod classifier;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::mem::discriminant;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use datapath_bpf::{
    Change as BpfChange, DropReason, Lane, LoadError, Mode, Options, Pipeline, PortConfig, Refused, Role, Samples,
};
use eswitch::card::CardError;
use eswitch::datapath::{self, Arrival, Change, Datapath, Dropped, Sampler, pf_of, vport_of};
use eswitch::lock_order::CardCall;
use eswitch::{PfIndex, Vport};
use flow::{Block, Capabilities, Counter, MeterId, Port, PortKind, Rule, RuleId, Sampled};
use lockdep::{Locked, Mutex, Unlocked, lock_classes};

use crate::layout::{Inside, Slot};
use crate::refused::refused_io;
use crate::request::acl;
use crate::socket::{Socket, within};
use crate::sys;

use classifier::{Classifier, NoClassifier, Surroundings};
use takeover::Found;

lock_classes! {
    /// What carries rules out, and what it knows of ports. Requests to the kernel are made while it is held: those to maps
    /// wait for nothing, those for filters for the kernel alone.
    leaf PlaneClass = "card data plane";
    /// The samples that the program has taken, for the one thread that reads them.
    leaf SamplesClass = "card samples";
}

/// The data plane, and the card's network namespace.
pub(crate) struct Plane {
    inside: File,
    state: Mutex<PlaneClass, State>,
    samples: Mutex<SamplesClass, Option<Samples>>,
    /// A descriptor of the same samples, to wait at without their lock. It is set once they are open.
    samples_fd: OnceLock<OwnedFd>,
    /// Ends the wait for samples: when the program is loaded, and when somebody wakes the thread.
    samples_wake: (PipeReader, PipeWriter),
    /// Something is in that pipe that has not been read. So it never fills up, and a call never waits.
    samples_woken: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What carries rules out, once there has been one.
    carrier: Option<Carrier>,
    /// Whether somebody wants samples.
    samples_wanted: bool,
    switches: BTreeMap<PfIndex, Switch>,
    ports: Ports,
    /// What a dead process has left, while the card is being taken over.
    found: Option<Found>,
}

/// What carries rules out.
enum Carrier {
    /// The eBPF program.
    Program(Box<Pipeline>),
    /// The kernel's classifier, where the kernel refuses the program.
    Classifier(Box<Classifier>),
}

impl Carrier {
    fn program(&mut self) -> Option<&mut Pipeline> {
        match self {
            Self::Program(pipeline) => Some(pipeline),
            Self::Classifier(_) => None,
        }
    }
}

/// What the program is told of ports beside their E-Switch.
#[derive(Default)]
struct Ports {
    /// Those of functions without a link.
    without_link: BTreeSet<Port>,
    /// Those of functions whose netdevs have native XDP programs.
    with_xdp: BTreeSet<Port>,
    /// Those of the limited functions of each PF.
    limited: BTreeMap<PfIndex, BTreeSet<Port>>,
    /// Where what the limited functions of each PF send waits.
    lanes: BTreeMap<PfIndex, BTreeMap<Port, Lane>>,
    /// The PFs whose lanes lead back to the program.
    lanes_attached: BTreeSet<PfIndex>,
    /// The members of the LAG, and those on whose wires it transmits.
    lag: (Vec<PfIndex>, Vec<PfIndex>),
}

/// Puts a port into a set, or takes it out. Returns whether that changes the set.
fn set(ports: &mut BTreeSet<Port>, port: Port, is_in: bool) -> bool {
    if is_in { ports.insert(port) } else { ports.remove(&port) }
}

impl Ports {
    /// The wires on which frames to the uplink of a PF leave, if that is in a LAG.
    fn wires(&self, pf: PfIndex) -> Vec<u32> {
        let (members, tx) = &self.lag;
        let wire = |pf: &PfIndex| Slot { pf: *pf, vport: Vport::Uplink }.port();
        if members.contains(&pf) { tx.iter().map(wire).collect() } else { Vec::new() }
    }
}

/// One E-Switch in switchdev mode.
#[derive(Default)]
struct Switch {
    active: bool,
    /// Its own ports, which have representors.
    ports: BTreeSet<Port>,
    /// Its rules, each with the port whose frames it sees.
    rules: BTreeMap<RuleId, Option<Port>>,
    /// How many rules each port has, of those that have any: there the program is attached.
    with_rules: BTreeMap<Port, usize>,
    meters: BTreeSet<MeterId>,
}

/// The error number with which a kernel before Linux 6.6 refuses tcx.
const NO_TCX: i32 = libc::EINVAL;

/// Why no card could carry out flow rules here, if that is so: the kernel refuses the program, or is too old to attach it,
/// and it does not have the classifier that would do instead.
pub fn cannot_offload() -> Option<String> {
    let small = Options { max_rules: 16, max_actions: 16, max_masks: 16, max_meters: 16, ..Options::default() };
    let mut pipeline = match Pipeline::load(small) {
        Ok(pipeline) => pipeline,
        Err(error) if is_refused(&error) => {
            return classifier::is_there().err().map(|missing| format!("{error}; {missing}"));
        }
        Err(error) => return Some(error.to_string()),
    };
    // There is no such netdev, and a kernel that could attach the program to one says so.
    match pipeline.attach(i32::MAX as u32, Role::Wire(Port(0))) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENODEV | NO_TCX)) => {
            Some(format!("this kernel cannot attach a program: {error}"))
        }
        _ => None,
    }
}

/// Whether the kernel would never take the program, so that its classifier is to do instead.
fn is_refused(error: &LoadError) -> bool {
    matches!(error, LoadError::NotAllowed(_) | LoadError::Kernel(_))
}

impl Plane {
    /// `netdevs`: the numbers of those that may have the program of a dead process, if the card is taken over.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub(crate) fn new(inside: File, netdevs: Option<&[u32]>) -> io::Result<Self> {
        let (pipeline, found) = netdevs.map_or((None, None), |netdevs| takeover::find(&inside, netdevs));
        // Who wanted samples of a dead process asks this one again.
        pipeline.iter().for_each(|pipeline| pipeline.want_samples(false));
        let carrier = pipeline.map(|pipeline| Carrier::Program(Box::new(pipeline)));
        Ok(Self {
            inside,
            state: Mutex::new(State { carrier, found, ..State::default() }),
            samples: Mutex::new(None),
            samples_fd: OnceLock::new(),
            samples_wake: io::pipe()?,
            samples_woken: AtomicBool::new(false),
        })
    }

    /// Notes which functions have a link. Frames from and to the others are dropped.
    pub(crate) fn set_links<L>(&self, cx: &mut Locked<'_, L>, links: &[(Slot, bool)]) {
        let mut state = self.state.lock_leaf(cx);
        let without = &mut state.ports.without_link;
        let ports = links.iter().map(|(slot, up)| (datapath::port(slot.pf, slot.vport), *up));
        let changed = ports.filter(|(port, up)| set(without, *port, !up)).map(|(port, _)| port);
        let changed: Vec<Port> = changed.collect();
        state.tell(&changed);
    }

    /// Notes whether the netdev of a function has a native XDP program. If it has, frames go there through the card's end:
    /// what is handed to the netdev itself is past its program.
    pub(crate) fn set_xdp<L>(&self, cx: &mut Locked<'_, L>, slot: Slot, has_xdp: bool) {
        let port = datapath::port(slot.pf, slot.vport);
        let mut state = self.state.lock_leaf(cx);
        if set(&mut state.ports.with_xdp, port, has_xdp) {
            state.tell(&[port]);
        }
    }

    /// Notes which functions of a PF are limited, with the classes in which what they send waits. The PF's lane leads
    /// there.
    pub(crate) fn set_lanes<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex, classes: &BTreeMap<Vport, u32>) {
        let mut state = self.state.lock_leaf(cx);
        let ifindex = Inside::Lane(pf).index();
        let lane = |(vport, class): (&Vport, &u32)| (datapath::port(pf, *vport), Lane { ifindex, class: *class });
        let new: BTreeMap<Port, Lane> = classes.iter().map(lane).collect();
        let old = state.ports.lanes.insert(pf, new.clone()).unwrap_or_default();
        let changed = old.keys().chain(new.keys()).filter(|port| old.get(port) != new.get(port));
        let changed: Vec<Port> = changed.copied().collect::<BTreeSet<Port>>().into_iter().collect();
        let State { carrier, ports, .. } = &mut *state;
        if let Some(Carrier::Program(pipeline)) = carrier {
            self.attach_lanes(pipeline, ports);
        }
        state.tell(&changed);
    }

    /// Notes which functions of a PF are limited. The classifier does not ask the rules for what these send, as the kernel
    /// has no lane that leads back to it.
    pub(crate) fn set_limited<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex, functions: &BTreeSet<Vport>) {
        let mut state = self.state.lock_leaf(cx);
        let ports = functions.iter().map(|vport| datapath::port(pf, *vport)).collect();
        if state.ports.limited.insert(pf, ports).unwrap_or_default() != state.ports.limited[&pf] {
            state.tell_classifier();
        }
    }

    /// Has the lanes of PFs lead back to the program. One that cannot is not used: its functions are limited only as far as
    /// no rule takes their frames.
    fn attach_lanes(&self, pipeline: &mut Pipeline, ports: &mut Ports) {
        let Ports { lanes, lanes_attached, .. } = ports;
        let wanted = lanes.iter().filter(|(pf, lanes)| !lanes.is_empty() && !lanes_attached.contains(pf));
        let wanted: Vec<PfIndex> = wanted.map(|(pf, _)| *pf).collect();
        if wanted.is_empty() {
            return;
        }
        // A namespace that cannot be entered has no lane.
        let _ = within(&self.inside, || {
            for pf in wanted {
                let attached = self.attach_end(pipeline, Inside::LaneEnd(pf).index(), Role::Lane);
                if attached.is_ok_and(|there| there) {
                    lanes_attached.insert(pf);
                }
            }
        });
    }

    /// Forgets the lane of a PF, which is about to be deleted.
    pub(crate) fn forget_lane<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex) {
        self.set_lanes(cx, pf, &BTreeMap::new());
        let mut state = self.state.lock_leaf(cx);
        state.ports.lanes_attached.remove(&pf);
        if let Some(pipeline) = state.carrier.as_mut().and_then(Carrier::program) {
            // If the netdev is gone, so is the program.
            let _ = within(&self.inside, || pipeline.detach(Inside::LaneEnd(pf).index()));
        }
    }

    /// Has rules asked at the ends of ports that have just been made, if these ports have rules.
    pub(crate) fn ends_made<L>(&self, cx: &mut Locked<'_, L>, slots: impl IntoIterator<Item = Slot>) {
        let mut state = self.state.lock_leaf(cx);
        let slots: Vec<Slot> = slots.into_iter().collect();
        let ports = slots.iter().map(|slot| datapath::port(slot.pf, slot.vport));
        let with_rules: BTreeSet<Port> = ports.filter(|port| state.has_rules(*port)).collect();
        match &mut state.carrier {
            Some(Carrier::Program(pipeline)) if !with_rules.is_empty() => {
                // The program was at the end that was here before.
                self.detach_all(pipeline, &with_rules);
                let _ = self.attach_all(pipeline, &with_rules);
            }
            Some(Carrier::Classifier(classifier)) => classifier.ends_made(&slots),
            _ => {}
        }
    }

    /// Attaches the program to the ends of ports. An end that does not exist has no function behind it: the program is
    /// attached when it is made.
    fn attach_all(&self, pipeline: &mut Pipeline, ports: &BTreeSet<Port>) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        within(&self.inside, || {
            for port in ports {
                let Some(slot) = slot_of(*port) else { continue };
                let role = match slot.vport {
                    Vport::Uplink => Role::Wire(*port),
                    _ => Role::Port(*port),
                };
                self.attach_end(pipeline, slot.port(), role)?;
            }
            Ok(())
        })?
    }

    /// Attaches the program to a netdev of the card's namespace, which the calling thread is in. Returns whether that
    /// netdev exists.
    fn attach_end(&self, pipeline: &mut Pipeline, index: u32, role: Role) -> io::Result<bool> {
        let attached = match pipeline.attach(index, role) {
            Err(error) if error.raw_os_error() == Some(NO_TCX) => {
                pipeline.attach_with(index, role, |program| attach_by_filter(&self.inside, index, program))
            }
            attached => attached,
        };
        match attached {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            attached => attached.map(|()| true),
        }
    }

    /// Takes the program away from ports that have no rules.
    fn detach_all(&self, pipeline: &mut Pipeline, ports: &BTreeSet<Port>) {
        if ports.is_empty() {
            return;
        }
        let _ = within(&self.inside, || {
            for slot in ports.iter().filter_map(|port| slot_of(*port)) {
                // If the end is gone, so is the program.
                let _ = pipeline.detach(slot.port());
            }
        });
    }
}

/// Attaches the program to what a netdev of the card's namespace receives, by a filter. One that is there is replaced.
fn attach_by_filter(inside: &File, index: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let attached = Socket::open(inside)?.run_one(|batch| acl::decide(batch, index, acl::Place::Rules, &program));
    attached.map_err(|failure| io::Error::from_raw_os_error(failure.errno.raw_os_error()))
}

/// The slot of a port.
fn slot_of(port: Port) -> Option<Slot> {
    Some(Slot { pf: pf_of(port), vport: vport_of(port, true)? })
}

impl State {
    fn has_rules(&self, port: Port) -> bool {
        let switch = self.switches.get(&pf_of(port));
        switch.is_some_and(|switch| switch.with_rules.contains_key(&port))
    }

    /// Tells the program what there is to know of ports, if it is loaded and has them.
    fn tell(&mut self, ports: &[Port]) {
        let Self { carrier: Some(Carrier::Program(pipeline)), switches, ports: known, found, .. } = self else {
            return;
        };
        for port in ports.iter().filter(|port| !found.as_ref().is_some_and(|found| found.has(**port))) {
            let Some(switch) = switches.get(&pf_of(*port)).filter(|switch| switch.ports.contains(port)) else {
                continue;
            };
            // The map has an entry for the port: the kernel does not refuse to change it.
            let _ = set_port(pipeline, known, *port, switch.active);
        }
    }
}

impl State {
    /// Tells the classifier what there is to know, if that carries rules out.
    fn tell_classifier(&mut self) {
        let around = self.surroundings();
        if let Some(Carrier::Classifier(classifier)) = &mut self.carrier {
            classifier.set_surroundings(around);
        }
    }

    fn surroundings(&self) -> Surroundings {
        let Self { switches, ports, .. } = self;
        let wires = switches.keys().map(|pf| (*pf, ports.wires(*pf)));
        Surroundings {
            inactive: switches.iter().filter(|(_, switch)| !switch.active).map(|(pf, _)| *pf).collect(),
            limited: ports.limited.clone(),
            wires: wires.filter(|(_, wires)| !wires.is_empty()).collect(),
        }
    }
}

impl Plane {
    /// What carries rules out, which is begun with if it is not there, and an E-Switch.
    fn loaded<'s>(
        &self,
        state: &'s mut State,
        pf: PfIndex,
    ) -> Result<(&'s mut Carrier, &'s mut Switch, &'s mut Option<Found>), CardError> {
        if state.carrier.is_none() {
            state.carrier = Some(self.begin(state)?);
        }
        let closed = || CardError::Unsupported("the E-Switch is not in switchdev mode".to_owned());
        match (&mut state.carrier, state.switches.get_mut(&pf)) {
            (Some(carrier), Some(switch)) => Ok((carrier, switch, &mut state.found)),
            _ => Err(closed()),
        }
    }

    /// Loads the program, or turns to the classifier.
    fn begin(&self, state: &mut State) -> Result<Carrier, CardError> {
        let mut new = match Pipeline::load(Options::default()) {
            Ok(new) => new,
            Err(error) if is_refused(&error) => {
                let found = state.found.as_ref().map_or(&[][..], Found::filters);
                let classifier = Classifier::new(&self.inside, state.surroundings(), found);
                return match classifier {
                    Ok(classifier) => Ok(Carrier::Classifier(Box::new(classifier))),
                    Err(missing) => Err(no_carrier(&error, &missing)),
                };
            }
            Err(error) => return Err(not_loaded(error)),
        };
        let State { switches, ports, samples_wanted, .. } = state;
        self.attach_lanes(&mut new, ports);
        for (port, active) in switches.values().flat_map(|s| s.ports.iter().map(|port| (*port, s.active))) {
            set_port(&mut new, ports, port, active).map_err(|error| refused_here("adding a port", &error))?;
        }
        new.want_samples(*samples_wanted);
        self.end_wait_for_samples();
        Ok(Carrier::Program(Box::new(new)))
    }
}

fn set_port(pipeline: &mut Pipeline, ports: &Ports, port: Port, active: bool) -> io::Result<()> {
    let Some(slot) = slot_of(port) else { return Ok(()) };
    let lanes = ports.lanes.get(&slot.pf).filter(|_| ports.lanes_attached.contains(&slot.pf));
    let lane = lanes.and_then(|lanes| lanes.get(&port));
    let config = PortConfig {
        mode: if active { Mode::Switchdev } else { Mode::Inactive },
        eswitch: slot.pf.0,
        block: Block::Port(port),
        ifindex: slot.port(),
        representor: Some(slot.inner()),
        through_inner: ports.with_xdp.contains(&port),
        is_wire: slot.vport == Vport::Uplink,
        link_up: !ports.without_link.contains(&port),
        lane: lane.copied(),
        wires: if slot.vport == Vport::Uplink { ports.wires(slot.pf) } else { Vec::new() },
    };
    pipeline.set_port(port, &config)
}

fn no_offload(error: impl std::fmt::Display) -> CardError {
    CardError::Unsupported(format!("no flows can be offloaded: {error}"))
}

/// The error where the program was not loaded: what the kernel has no room for now may fit later, and is not unsupported.
fn not_loaded(error: LoadError) -> CardError {
    match error {
        LoadError::Io(error) => refused_here("loading the program", &error),
        never => no_offload(never),
    }
}

/// The error where the kernel refuses the program, and its classifier does not do instead.
fn no_carrier(program: &LoadError, classifier: &NoClassifier) -> CardError {
    match classifier {
        NoClassifier::Unknown(error) => refused_here("looking for the kernel's classifier", error),
        NoClassifier::Missing(_) => no_offload(format!("{program}; {classifier}")),
    }
}

/// The error for a request of flow rules that the kernel has refused. What it does not have, or does not allow, is not
/// supported here; anything else keeps its number.
fn refused_here(what: &str, error: &io::Error) -> CardError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => no_offload(error),
        _ => refused_io(&format!("flow rules: {what}"), error),
    }
}

fn refused(refusal: Refused) -> CardError {
    match refusal {
        Refused::NoRoom(_) => CardError::Full(refusal.to_string()),
        Refused::Kernel(errno) => refused_here("changing a map", &io::Error::from_raw_os_error(errno)),
        other => CardError::Unsupported(other.to_string()),
    }
}

impl Plane {
    /// Lets frames pass the rules of an E-Switch, as they do from the start, or drops every frame at ports that have rules.
    pub(crate) fn set_active<L>(&self, cx: &mut Locked<'_, L>, pf: PfIndex, active: bool) {
        let mut state = self.state.lock_leaf(cx);
        let Some(switch) = state.switches.get_mut(&pf) else { return };
        switch.active = active;
        let ports: Vec<Port> = switch.ports.iter().copied().collect();
        state.tell(&ports);
        state.tell_classifier();
    }

    /// Carries out changes of one kind.
    fn change(&self, state: &mut State, pf: PfIndex, changes: &[Change<'_>]) -> Vec<Result<Counter, CardError>> {
        match changes {
            [Change::Install(..), ..] => {
                let rules = changes.iter().filter_map(|change| match change {
                    Change::Install(id, rule) => Some((*id, *rule)),
                    _ => None,
                });
                let rules: Vec<(RuleId, &Rule)> = rules.collect();
                self.install(state, pf, &rules)
            }
            [Change::Remove(_), ..] => {
                let rule = |change: &Change<'_>| match change {
                    Change::Remove(id) => Some(*id),
                    _ => None,
                };
                let rules: Vec<RuleId> = changes.iter().filter_map(rule).collect();
                self.remove(state, pf, &rules)
            }
            _ => changes.iter().map(|change| self.change_one(state, pf, change)).collect(),
        }
    }

    fn change_one(&self, state: &mut State, pf: PfIndex, change: &Change<'_>) -> Result<Counter, CardError> {
        let (carrier, switch, found) = self.loaded(state, pf)?;
        match change {
            Change::SetActions(id, rule) => {
                match carrier {
                    Carrier::Program(pipeline) => one(pipeline, BpfChange::SetActions { id: *id, rule })?,
                    Carrier::Classifier(classifier) => classifier.set_actions(*id, rule)?,
                }
                return Ok(state.counters(pf, &[*id]).pop().unwrap_or_default());
            }
            Change::SetMeter(id, meter) => {
                match carrier {
                    Carrier::Program(pipeline) => one(pipeline, BpfChange::SetMeter { id: *id, meter: *meter })?,
                    Carrier::Classifier(classifier) => classifier.set_meter(*id, *meter)?,
                }
                found.iter_mut().for_each(|found| found.claim_meter(*id));
                switch.meters.insert(*id);
            }
            Change::RemoveMeter(id) => {
                match carrier {
                    Carrier::Program(pipeline) => drop(one(pipeline, BpfChange::RemoveMeter(*id))),
                    Carrier::Classifier(classifier) => classifier.remove_meter(*id),
                }
                switch.meters.remove(id);
            }
            Change::Install(..) | Change::Remove(_) => {}
        }
        Ok(Counter::default())
    }

    /// Installs rules. At a port that has its first, rules are asked from now on.
    fn install(&self, state: &mut State, pf: PfIndex, rules: &[(RuleId, &Rule)]) -> Vec<Result<Counter, CardError>> {
        let (pipeline, switch, found) = match self.loaded(state, pf) {
            Ok((Carrier::Program(pipeline), switch, found)) => (pipeline, switch, found),
            Ok((Carrier::Classifier(classifier), switch, _)) => {
                let results = classifier.install(pf, rules);
                let installed = rules.iter().zip(&results).filter(|(_, result)| result.is_ok());
                installed.for_each(|((id, rule), _)| switch.add(*id, on_port(pf, rule)));
                return results.into_iter().map(|result| result.map(|()| Counter::default())).collect();
            }
            Err(error) => return rules.iter().map(|_| Err(error.clone())).collect(),
        };
        // A rule that is there stays as it is: it is changed when the next hops of tunnels are known again.
        let is_new: Vec<bool> =
            rules.iter().map(|(id, _)| !found.as_mut().is_some_and(|found| found.claim(*id))).collect();
        let new = rules.iter().zip(&is_new).filter(|(_, is_new)| **is_new);
        let adds: Vec<BpfChange<'_>> = new.map(|((id, rule), _)| BpfChange::Add { id: *id, rule }).collect();
        let mut added = pipeline.commit_of(pf.0, &adds).into_iter();
        let outcome = |is_new: &bool| match is_new {
            true => added.next().unwrap_or(Ok(())).map(|()| Counter::default()).map_err(refused),
            false => Ok(Counter::default()),
        };
        let mut results: Vec<Result<Counter, CardError>> = is_new.iter().map(outcome).collect();
        let mut failed: BTreeMap<Port, CardError> = BTreeMap::new();
        for ((id, rule), result) in rules.iter().zip(&mut results).filter(|(_, result)| result.is_ok()) {
            let on = on_port(pf, rule);
            let first = on.filter(|port| !switch.with_rules.contains_key(port) && !failed.contains_key(port));
            if let Some(port) = first
                && let Err(error) = self.attach_all(pipeline, &BTreeSet::from([port]))
            {
                failed.insert(port, refused_here("attaching the program", &error));
            }
            if let Some(error) = on.and_then(|port| failed.get(&port)) {
                let _ = one(pipeline, BpfChange::Remove(*id));
                *result = Err(error.clone());
                continue;
            }
            switch.add(*id, on);
        }
        results
    }
}

/// The port whose frames a rule sees.
fn on_port(pf: PfIndex, rule: &Rule) -> Option<Port> {
    match rule.block {
        Block::Port(port) => Some(port),
        // A tunnel's frames come from the wire.
        Block::Tunnel(_) => Some(datapath::port(pf, Vport::Uplink)),
        Block::Shared(_) => None,
    }
}

impl Switch {
    /// Notes a rule, with the port whose frames it sees.
    fn add(&mut self, id: RuleId, on: Option<Port>) {
        if let Some(port) = on {
            *self.with_rules.entry(port).or_default() += 1;
        }
        self.rules.insert(id, on);
    }

    /// Forgets a rule. Returns its port if that has no other.
    fn forget(&mut self, id: RuleId) -> Option<Port> {
        let port = self.rules.remove(&id)??;
        let count = self.with_rules.get_mut(&port)?;
        *count -= 1;
        (*count == 0).then(|| {
            self.with_rules.remove(&port);
            port
        })
    }
}

fn one(pipeline: &mut Pipeline, change: BpfChange<'_>) -> Result<(), CardError> {
    pipeline.commit(&[change]).pop().unwrap_or(Ok(())).map_err(refused)
}

impl State {
    /// What rules have counted.
    fn counters(&mut self, pf: PfIndex, rules: &[RuleId]) -> Vec<Counter> {
        let (switch, pipeline) = match (self.switches.get(&pf), &mut self.carrier) {
            (Some(switch), Some(Carrier::Program(pipeline))) => (switch, pipeline),
            (Some(_), Some(Carrier::Classifier(classifier))) => return classifier.counters(rules),
            _ => return vec![Counter::default(); rules.len()],
        };
        let of_rule = |(id, now): (&RuleId, datapath_bpf::Counter)| match switch.rules.contains_key(id) {
            true => Counter { packets: now.packets, bytes: now.bytes, last_used: now.last_used },
            false => Counter::default(),
        };
        rules.iter().zip(pipeline.counters(rules)).map(of_rule).collect()
    }
}

impl Plane {
    /// Removes rules, which cannot be refused. Returns their last counters.
    fn remove(&self, state: &mut State, pf: PfIndex, rules: &[RuleId]) -> Vec<Result<Counter, CardError>> {
        let counters = state.counters(pf, rules);
        if let (Some(switch), Some(carrier)) = (state.switches.get_mut(&pf), &mut state.carrier) {
            let without_rules = rules.iter().filter_map(|id| switch.forget(*id)).collect();
            match carrier {
                Carrier::Program(pipeline) => {
                    pipeline.commit(&rules.iter().map(|id| BpfChange::Remove(*id)).collect::<Vec<_>>());
                    self.detach_all(pipeline, &without_rules);
                }
                Carrier::Classifier(classifier) => classifier.remove(rules),
            }
        }
        counters.into_iter().map(Ok).collect()
    }

    fn remove_all(&self, state: &mut State, pf: PfIndex) {
        let (Some(switch), Some(carrier)) = (state.switches.get_mut(&pf), &mut state.carrier) else { return };
        let (rules, meters) = (std::mem::take(&mut switch.rules), std::mem::take(&mut switch.meters));
        let pipeline = match carrier {
            Carrier::Program(pipeline) => pipeline,
            Carrier::Classifier(classifier) => {
                switch.with_rules.clear();
                return classifier.remove_all(pf, meters);
            }
        };
        let gone = rules.keys().map(|id| BpfChange::Remove(*id)).chain(meters.into_iter().map(BpfChange::RemoveMeter));
        pipeline.commit(&gone.collect::<Vec<_>>());
        self.detach_all(pipeline, &std::mem::take(&mut switch.with_rules).into_keys().collect());
    }
}

impl Datapath for Plane {
    fn capabilities(&self) -> Capabilities {
        Capabilities::connectx()
    }

    fn open(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        let mut state = self.state.lock_leaf(cx);
        state.switches.insert(pf, Switch { active: true, ..Switch::default() });
        state.tell_classifier();
    }

    fn close(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        let mut state = self.state.lock_leaf(cx);
        self.remove_all(&mut state, pf);
        state.switches.remove(&pf);
    }

    fn attach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[(Port, PortKind)]) {
        let mut state = self.state.lock_leaf(cx);
        let Some(switch) = state.switches.get_mut(&pf) else { return };
        let own: Vec<Port> = ports.iter().map(|(port, _)| *port).filter(|port| pf_of(*port) == pf).collect();
        switch.ports.extend(&own);
        // Without room for one in the map, frames to it are dropped.
        state.tell(&own);
    }

    fn detach(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, ports: &[Port]) {
        let mut state = self.state.lock_leaf(cx);
        let own: BTreeSet<Port> = ports.iter().copied().filter(|port| pf_of(*port) == pf).collect();
        if let Some(pipeline) = state.carrier.as_mut().and_then(Carrier::program) {
            self.detach_all(pipeline, &own);
            own.iter().for_each(|port| drop(pipeline.remove_port(*port)));
        }
        if let Some(switch) = state.switches.get_mut(&pf) {
            switch.ports.retain(|port| !own.contains(port));
        }
    }

    fn set_lag(&self, cx: &mut Locked<'_, CardCall>, members: &[PfIndex], tx: &[PfIndex]) {
        let mut state = self.state.lock_leaf(cx);
        state.ports.lag = (members.to_vec(), tx.to_vec());
        let uplinks: Vec<Port> = state.switches.keys().map(|pf| datapath::port(*pf, Vport::Uplink)).collect();
        state.tell(&uplinks);
        state.tell_classifier();
    }

    fn lag(&self, cx: &mut Locked<'_, CardCall>) -> (Vec<PfIndex>, Vec<PfIndex>) {
        self.state.lock_leaf(cx).ports.lag.clone()
    }

    fn clear(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) {
        let mut state = self.state.lock_leaf(cx);
        self.remove_all(&mut state, pf);
    }

    fn commit(
        &self,
        cx: &mut Locked<'_, CardCall>,
        pf: PfIndex,
        batch: &[Change<'_>],
    ) -> Vec<Result<Counter, CardError>> {
        cx.might_wait();
        let mut state = self.state.lock_leaf(cx);
        let same_kind = |a: &Change<'_>, b: &Change<'_>| discriminant(a) == discriminant(b);
        batch.chunk_by(same_kind).flat_map(|changes| self.change(&mut state, pf, changes)).collect()
    }

    fn counters(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex, rules: &[RuleId]) -> Vec<Counter> {
        let mut state = self.state.lock_leaf(cx);
        state.counters(pf, rules)
    }

    fn drops(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Dropped> {
        let mut state = self.state.lock_leaf(cx);
        // The kernel does not refuse to read its map. Its classifier does not say why it drops.
        let pipeline = state.carrier.as_mut().and_then(Carrier::program);
        let drops = pipeline.and_then(|pipeline| pipeline.drops().ok()).unwrap_or_default();
        let dropped =
            |((port, reason), frames): ((Port, DropReason), u64)| Dropped { port, reason: reason.word(), frames };
        drops.into_iter().map(dropped).collect()
    }

    fn installed(&self, cx: &mut Locked<'_, CardCall>, pf: PfIndex) -> Option<Vec<RuleId>> {
        let state = self.state.lock_leaf(cx);
        state.switches.get(&pf).map(|switch| switch.rules.keys().copied().collect())
    }

    fn left(&self, cx: &mut Locked<'_, CardCall>) -> Option<BTreeSet<RuleId>> {
        self.state.lock_leaf(cx).found.as_ref().map_or(Some(BTreeSet::new()), Found::rules)
    }

    /// Meters and connections are in the kernel's maps, which frames change meanwhile.
    fn state(&self, _: &mut Locked<'_, CardCall>, _: PfIndex) -> Option<flow::State> {
        None
    }

    fn clock(&self) -> Option<Duration> {
        Some(Pipeline::now())
    }

    fn send(&self, _: &mut Locked<'_, CardCall>, _: Port, _: Duration, _: &[u8]) -> Result<Vec<Arrival>, CardError> {
        Err(CardError::Unsupported("this card sends what its functions' netdevs send; use those".to_owned()))
    }

    fn sampler(&self) -> Option<&dyn Sampler> {
        Some(self)
    }
}

/// How many samples are read at once.
const SAMPLES_READ: usize = 64;

impl Plane {
    fn end_wait_for_samples(&self) {
        if !self.samples_woken.swap(true, Ordering::SeqCst) {
            // The reading end is open as long as this is.
            let _ = (&self.samples_wake.1).write(&[0]);
        }
    }

    /// Opens the samples if the program is loaded and they are not open.
    fn open_samples<L>(&self, cx: &mut Locked<'_, L>) {
        if self.samples_fd.get().is_some() {
            return;
        }
        let mut state = self.state.lock_leaf(cx);
        let opened = state.carrier.as_mut().and_then(Carrier::program).map(|pipeline| pipeline.open_samples());
        drop(state);
        // Without memory for them there are none; it is tried again when the thread is woken.
        let Some(Ok(samples)) = opened else { return };
        let Ok(fd) = samples.as_fd().try_clone_to_owned() else { return };
        *self.samples.lock_leaf(cx) = Some(samples);
        let _ = self.samples_fd.set(fd);
    }
}

impl Sampler for Plane {
    fn want(&self, cx: &mut Locked<'_, CardCall>, wanted: bool) {
        let mut state = self.state.lock_leaf(cx);
        state.samples_wanted = wanted;
        state.carrier.as_mut().and_then(Carrier::program).iter().for_each(|pipeline| pipeline.want_samples(wanted));
    }

    fn wait(&self, cx: &mut Locked<'_, Unlocked>) {
        cx.might_wait();
        self.open_samples(cx);
        let woken = self.samples_wake.0.as_fd();
        // Twice the same where there are no samples yet.
        let samples = self.samples_fd.get().map_or(woken, AsFd::as_fd);
        // A signal is a reason to return like any other.
        let Ok([is_woken, _]) = sys::wait_readable([woken, samples], None) else { return };
        if is_woken {
            let _ = (&self.samples_wake.0).read(&mut [0]);
            self.samples_woken.store(false, Ordering::SeqCst);
        }
    }

    fn wake(&self, _: &mut Locked<'_, CardCall>) {
        self.end_wait_for_samples();
    }

    fn read(&self, cx: &mut Locked<'_, CardCall>) -> Vec<Sampled> {
        self.samples.lock_leaf(cx).as_mut().map(|samples| samples.read(SAMPLES_READ)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use eswitch::Errno;

    use super::*;

    #[test]
    fn the_kernels_number_stays_unless_it_says_that_there_is_no_such_thing() {
        let of = |errno| refused(Refused::Kernel(errno)).errno();
        assert_eq!(of(libc::ENOMEM), Errno::ENOMEM);
        assert_eq!(of(libc::EBUSY), Errno::EBUSY);
        assert_eq!(of(libc::E2BIG), Errno::EIO);
        assert_eq!(of(libc::EPERM), Errno::EOPNOTSUPP);
        assert_eq!(of(libc::EINVAL), Errno::EOPNOTSUPP);
        let loading = not_loaded(LoadError::Io(io::Error::from_raw_os_error(libc::ENOMEM)));
        assert_eq!(loading.errno(), Errno::ENOMEM);
        assert_eq!(not_loaded(LoadError::Kernel("old".to_owned())).errno(), Errno::EOPNOTSUPP);
        assert_eq!(refused(Refused::NoRoom("rule")).errno(), Errno::ENOSPC);
    }
}
