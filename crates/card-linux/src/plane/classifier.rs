//! Flow rules carried out by the kernel's own classifier, where it refuses the eBPF program, as it does without root.
//!
//! Each rule is a filter of the classifier `flower` at the card's end of its port, in a chain of the kernel that no other
//! filter of the card is in:
//!
//! ```text
//!   chain 0    priority 1       go on in chain 1, if the port has rules
//!              priority 2       the tie
//!   chain 1    …                the rules of chain 0, with their priorities
//!              priority 65535   what none of them takes goes to the representor
//!   chain 2    …                the rules of chain 1, and so on
//! ```
//!
//! The kernel does not come back from a chain: a frame that nothing there takes is classified, and no tie is asked
//! (`__tcf_classify` in `net/sched/cls_api.c`). So the last filter of each chain does what the tie does.
//!
//! The first action of a rule's filter counts. It has an index, with which it stays when the filter gets other actions.
//! Nothing is said to the kernel of a rule whose port has no netdev; its filter is made when that is made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

use datapath_bpf::Pipeline;
use eswitch::card::CardError;
use eswitch::datapath::pf_of;
use eswitch::{PfIndex, Vport};
use flow::{Action, Block, Control, Counter, Field, Meter, MeterId, Port, Protocol, Rule, RuleId};
use netlink::{Errno, strerror};

use super::slot_of;
use crate::layout::Slot;
use crate::netns::LOOPBACK;
use crate::refused::refused;
use crate::request;
use crate::request::counted::{self, Counted};
use crate::request::flower::{self, Around, Lacks};
use crate::socket::{Batch, Failure, Socket};
use crate::sys;

/// The rules that the kernel's classifier carries out.
pub(super) struct Classifier {
    socket: Socket,
    /// The actions that the kernel does not have.
    missing: BTreeSet<&'static str>,
    rules: BTreeMap<RuleId, Installed>,
    /// For each port, how many rules are in each of its chains or lead there.
    chains: BTreeMap<Port, BTreeMap<u32, usize>>,
    /// The ports whose rules are asked.
    open: BTreeSet<Port>,
    meters: BTreeMap<MeterId, Kept>,
    /// The index of the next action.
    next: u32,
    around: Surroundings,
    /// The filters that a dead process has left and that no rule has taken over, with the actions that count.
    left: BTreeMap<flower::At, Option<u32>>,
}

/// What decides whether and where rules send, beside themselves.
#[derive(Default)]
pub(super) struct Surroundings {
    /// The E-Switches that let no frame pass.
    pub inactive: BTreeSet<PfIndex>,
    /// The ports of functions whose rate is limited. What they send takes the slow path, where it waits.
    pub limited: BTreeMap<PfIndex, BTreeSet<Port>>,
    /// The wires on which frames to an uplink leave, if it is in a LAG.
    pub wires: BTreeMap<PfIndex, Vec<u32>>,
}

struct Installed {
    pf: PfIndex,
    rule: Rule,
    on: Slot,
    port: Port,
    /// The index of the action that counts.
    counter: u32,
    /// What was counted by actions that are gone.
    before: Counter,
    /// What was counted when it was last read.
    seen: Counter,
}

/// A meter, and the rules that use it.
struct Kept {
    meter: Meter,
    /// The index of its action, if a rule uses it: the kernel takes no other settings for an action that is there.
    index: u32,
    users: BTreeSet<RuleId>,
}

/// Why the kernel's classifier cannot carry out rules.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoClassifier {
    /// The kernel does not have it.
    #[error(
        "it has no classifier for them either ({0}): it needs CONFIG_NET_CLS_FLOWER and CONFIG_NET_ACT_GACT (`modprobe -a cls_flower act_gact`)"
    )]
    Missing(String),
    /// It cannot be found out.
    #[error("whether it has a classifier for them cannot be found out: {0}")]
    Unknown(#[from] io::Error),
}

/// Whether the kernel has the classifier, tried in a network namespace that is made for this.
pub(super) fn is_there() -> Result<(), NoClassifier> {
    let tried = std::thread::spawn(|| {
        sys::unshare_netns()?;
        let netns = crate::netns::current()?;
        look(&mut Socket::open(&netns)?).map(drop)
    });
    tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Finds out whether the kernel has the classifier, with filters of a loopback device, of which nothing stays. Returns the
/// actions that the kernel does not have.
fn look(socket: &mut Socket) -> Result<BTreeSet<&'static str>, NoClassifier> {
    let text = |failure: &Failure| match failure.message.is_empty() {
        true => strerror(failure.errno),
        false => failure.message.clone(),
    };
    match socket.run_one(|batch| request::ingress(batch, LOOPBACK)) {
        // A process that looked has died meanwhile.
        Err(failure) if failure.errno != Errno::EXIST => return Err(io::Error::from(failure.errno).into()),
        _ => {}
    }
    let place = flower::Place { netdev: LOOPBACK, chain: 1, priority: 1, protocol: Protocol::All, handle: 1 };
    let bare = socket.run_one(|batch| flower::put(batch, &place, &Vec::new(), &[]));
    let mut missing = BTreeSet::new();
    if bare.is_ok() {
        for action in flower::samples() {
            if socket.run_one(|batch| flower::put(batch, &place, &Vec::new(), std::slice::from_ref(&action))).is_err() {
                missing.insert(action.kind);
            }
        }
    }
    let removed = socket.run_one(|batch| flower::remove_ingress(batch, LOOPBACK));
    bare.map_err(|failure| NoClassifier::Missing(text(&failure)))?;
    removed.map_err(|failure| io::Error::from(failure.errno))?;
    if missing.contains("gact") {
        return Err(NoClassifier::Missing("no action gact".to_owned()));
    }
    Ok(missing)
}

/// Whether a dead process has left filters of rules in a card's network namespace: nothing else there has these actions.
///
/// # Errors
/// The kernel cannot be queried.
pub(super) fn has_left(socket: &mut Socket) -> io::Result<bool> {
    Ok(!counted::gact(socket)?.is_empty())
}

/// Removes the filters that the rules of a dead process have left at netdevs of a card.
///
/// # Errors
/// The kernel cannot be queried.
pub(super) fn clear(socket: &mut Socket, netdevs: &[u32]) -> io::Result<()> {
    let mut batch = Batch::default();
    for netdev in netdevs {
        let left = flower::filters(socket, *netdev)?;
        if !left.is_empty() {
            // First what leads to the chains.
            flower::close(&mut batch, *netdev);
        }
        left.into_iter().for_each(|(at, _)| flower::remove_at(&mut batch, at));
    }
    // What is not there any more need not be removed.
    socket.run(batch);
    Ok(())
}

fn unsupported(why: impl std::fmt::Display) -> CardError {
    CardError::Unsupported(why.to_string())
}

/// The error for a filter that the kernel has refused: what it does not have, or does not allow, is not supported here.
fn not_installed(failure: &Failure) -> CardError {
    match failure.errno {
        Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL if !failure.message.is_empty() => {
            unsupported(format!("this kernel's classifier refuses the rule: {}", failure.message))
        }
        _ => refused("installing a flow rule", failure, None),
    }
}

impl Classifier {
    /// `inside`: the card's network namespace; `found`: the netdevs there that may have filters of a dead process.
    pub(super) fn new(inside: &File, around: Surroundings, found: &[u32]) -> Result<Self, NoClassifier> {
        let mut socket = Socket::open(inside)?;
        let missing = look(&mut socket)?;
        let mut left = BTreeMap::new();
        for netdev in found {
            left.extend(flower::filters(&mut socket, *netdev)?);
        }
        // Actions of a dead process may still be there for a moment, and ours must be others.
        let highest = counted::gact(&mut socket)?.last_key_value().map_or(0, |(index, _)| *index);
        let next = highest.max(counted::highest_police(&mut socket)?) + 1;
        Ok(Self {
            socket,
            missing,
            rules: BTreeMap::new(),
            chains: BTreeMap::new(),
            open: BTreeSet::new(),
            meters: BTreeMap::new(),
            next,
            around,
            left,
        })
    }

    /// Installs rules. What is refused leaves nothing behind.
    pub(super) fn install(&mut self, pf: PfIndex, rules: &[(RuleId, &Rule)]) -> Vec<Result<(), CardError>> {
        let noted: Vec<Result<(), CardError>> = rules.iter().map(|(id, rule)| self.note(pf, *id, rule)).collect();
        let new: Vec<RuleId> =
            rules.iter().zip(&noted).filter(|(_, noted)| noted.is_ok()).map(|((id, _), _)| *id).collect();
        let mut failed = self.put(&new);
        let ports: BTreeSet<Port> = new.iter().filter_map(|id| self.rules.get(id)).map(|rule| rule.port).collect();
        for (port, error) in self.settle(&ports) {
            let of_port = new.iter().filter(|id| self.rules.get(id).is_some_and(|rule| rule.port == port));
            failed.extend(of_port.map(|id| (*id, error.clone())));
        }
        self.remove(&failed.keys().copied().collect::<Vec<_>>());
        let outcome = |((id, _), noted): (&(RuleId, &Rule), Result<(), CardError>)| match failed.remove(id) {
            Some(error) => Err(error),
            None => noted,
        };
        rules.iter().zip(noted).map(outcome).collect()
    }

    /// Notes a rule that the classifier can carry out, with the chains and the meters that it uses.
    fn note(&mut self, pf: PfIndex, id: RuleId, rule: &Rule) -> Result<(), CardError> {
        let on = match rule.block {
            Block::Port(port) => slot_of(port).map(|slot| (port, slot)),
            Block::Shared(_) => return Err(unsupported(Lacks("block that ports share".to_owned()))),
            Block::Tunnel(device) => return Err(unsupported(Lacks(format!("tunnel device: {device}")))),
        };
        let Some((port, on)) = on else { return Err(unsupported("there is no such port")) };
        self.check(id, rule)?;
        let place = handle(id).and_then(|handle| flower::place(on.port(), rule, handle).ok());
        // The filter that a dead process has left for the rule is replaced by this one, with the same action that counts.
        let counter = place.and_then(|place| self.left.remove(&place.at())).flatten();
        let counter = counter.unwrap_or_else(|| self.fresh());
        let (before, seen) = (Counter::default(), Counter::default());
        let floors = self.use_chains(port, rule);
        self.put_floors(&[on], &floors.into_iter().map(|chain| (port, chain)).collect::<Vec<_>>());
        self.use_meters(id, &rule.actions);
        self.rules.insert(id, Installed { pf, rule: rule.clone(), on, port, counter, before, seen });
        Ok(())
    }

    /// Refuses a rule that the classifier cannot carry out.
    fn check(&mut self, id: RuleId, rule: &Rule) -> Result<(), CardError> {
        handle(id).ok_or_else(|| CardError::Full("the classifier has no more numbers for rules".to_owned()))?;
        flower::place(0, rule, 1).map_err(unsupported)?;
        flower::keys(rule).map_err(unsupported)?;
        let meter = |meter: MeterId| self.meters.get(&meter).map(|kept| (kept.index, kept.meter));
        let mut around =
            Around { counter: 1, fresh: &mut || 1, port: &|_| Some(1), representor: Some(1), meter: &meter };
        let actions = flower::actions(rule, &mut around).map_err(unsupported)?;
        if let Some(action) = actions.iter().find(|action| self.missing.contains(action.kind)) {
            let kind = action.kind;
            let hint = format!("action {kind} (CONFIG_NET_ACT_{}, `modprobe act_{kind}`)", kind.to_uppercase());
            return Err(unsupported(Lacks(hint)));
        }
        // What follows from a measurement is a part of the kernel's action.
        for (meter, outcomes) in polices(&rule.actions) {
            let users = self.meters.get(&meter).into_iter().flat_map(|kept| &kept.users).filter(|user| **user != id);
            let others = users.filter_map(|user| self.rules.get(user)).flat_map(|user| polices(&user.rule.actions));
            let own = polices(&rule.actions);
            let mut all = others.chain(own).filter(|(other, _)| *other == meter);
            if all.any(|(_, other)| other != outcomes) {
                return Err(unsupported(Lacks(format!("meter {} with different outcomes", meter.0))));
            }
        }
        Ok(())
    }

    fn fresh(&mut self) -> u32 {
        let index = self.next;
        // After 4 billion actions the first are long gone. 0 is none.
        self.next = self.next.checked_add(1).unwrap_or(1);
        index
    }

    /// Notes that a rule uses its chain and the one that it leads to. Returns those that no rule used before.
    fn use_chains(&mut self, port: Port, rule: &Rule) -> Vec<u32> {
        let chains = self.chains.entry(port).or_default();
        let uses = chains_of(rule).into_iter().filter(|chain| {
            let uses = chains.entry(*chain).or_default();
            *uses += 1;
            *uses == 1
        });
        uses.collect()
    }

    /// Notes that a rule does not use its chains any more. Returns those that no rule uses now.
    fn leave_chains(&mut self, port: Port, rule: &Rule) -> Vec<u32> {
        let Some(chains) = self.chains.get_mut(&port) else { return Vec::new() };
        let left = chains_of(rule).into_iter().filter(|chain| {
            let Some(uses) = chains.get_mut(chain) else { return false };
            *uses -= 1;
            *uses == 0 && chains.remove(chain).is_some()
        });
        let left = left.collect();
        if chains.is_empty() {
            self.chains.remove(&port);
        }
        left
    }

    fn use_meters(&mut self, id: RuleId, actions: &[Action]) {
        for meter in actions.iter().filter_map(Action::meter) {
            let is_first = self.meters.get(&meter).is_some_and(|kept| kept.users.is_empty());
            // The action that another rule had may still be there for a moment, with what follows from it.
            let fresh = if is_first { Some(self.fresh()) } else { None };
            if let Some(kept) = self.meters.get_mut(&meter) {
                kept.index = fresh.unwrap_or(kept.index);
                kept.users.insert(id);
            }
        }
    }

    fn leave_meters(&mut self, id: RuleId, actions: &[Action]) {
        for meter in actions.iter().filter_map(Action::meter) {
            if let Some(kept) = self.meters.get_mut(&meter) {
                kept.users.remove(&id);
            }
        }
    }

    /// Which of these netdevs exist.
    fn existing(&mut self, netdevs: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let netdevs: BTreeSet<u32> = netdevs.into_iter().collect();
        netdevs.into_iter().filter(|index| request::link(&mut self.socket, *index).is_ok()).collect()
    }

    /// The netdev out of which a rule's frames to a port are sent.
    fn out_of(&self, id: RuleId, port: Port) -> Option<u32> {
        let slot = slot_of(port)?;
        let wires = self.around.wires.get(&slot.pf).filter(|wires| slot.vport == Vport::Uplink && !wires.is_empty());
        match wires {
            // All frames of a rule leave on the same wire.
            Some(wires) => wires.get(id.0 as usize % wires.len()).copied(),
            None => Some(slot.port()),
        }
    }

    /// Has the kernel have the filters of rules as they are now. Returns those that it has refused.
    fn put(&mut self, ids: &[RuleId]) -> BTreeMap<RuleId, CardError> {
        let mut failed = BTreeMap::new();
        let mut left: Vec<RuleId> = ids.to_vec();
        // A netdev may go between a look and the request; the second look is that of another moment.
        for is_last in [false, true] {
            let mut failures = self.put_once(&left);
            if !failures.is_empty() && !self.left.is_empty() {
                // What a dead process has left may be in the way.
                self.remove_left();
                let failed: Vec<RuleId> = failures.iter().map(|(id, _)| *id).collect();
                failures = self.put_once(&failed);
            }
            left = failures.iter().filter(|(_, failure)| failure.errno == Errno::NODEV).map(|(id, _)| *id).collect();
            let others = failures.iter().filter(|(_, failure)| is_last || failure.errno != Errno::NODEV);
            failed.extend(others.map(|(id, failure)| (*id, not_installed(failure))));
            if left.is_empty() {
                break;
            }
        }
        failed
    }

    fn put_once(&mut self, ids: &[RuleId]) -> Vec<(RuleId, Failure)> {
        let named = |id: &RuleId| {
            let installed = self.rules.get(id)?;
            let to = installed.rule.actions.iter().filter_map(Action::port).filter_map(|port| self.out_of(*id, port));
            Some(to.chain([installed.on.port(), installed.on.inner()]).collect::<Vec<u32>>())
        };
        let named: Vec<u32> = ids.iter().filter_map(named).flatten().collect();
        let exist = self.existing(named);
        let mut batch = Batch::default();
        for (tag, id) in ids.iter().enumerate() {
            batch.tag(tag);
            let mut next = self.next;
            self.push(&mut batch, *id, &exist, &mut next);
            self.next = next;
        }
        let failures = self.socket.run(batch);
        failures.into_iter().filter_map(|failure| Some((*ids.get(failure.tag)?, failure))).collect()
    }

    /// Appends the filter of a rule, if its port has a netdev.
    fn push(&self, batch: &mut Batch, id: RuleId, exist: &BTreeSet<u32>, next: &mut u32) {
        let Some(installed) = self.rules.get(&id).filter(|installed| exist.contains(&installed.on.port())) else {
            return;
        };
        let mut around = Around {
            counter: installed.counter,
            fresh: &mut || {
                let index = *next;
                *next = next.checked_add(1).unwrap_or(1);
                index
            },
            port: &|port| self.out_of(id, port).filter(|index| exist.contains(index)),
            representor: Some(installed.on.inner()).filter(|index| exist.contains(index)),
            meter: &|meter| self.meters.get(&meter).map(|kept| (kept.index, kept.meter)),
        };
        // It was checked when it was noted.
        let (Some(handle), Ok(keys)) = (handle(id), flower::keys(&installed.rule)) else { return };
        let Ok(place) = flower::place(installed.on.port(), &installed.rule, handle) else { return };
        let Ok(actions) = flower::actions(&installed.rule, &mut around) else { return };
        flower::put(batch, &place, &keys, &actions);
    }

    /// Makes the last filters of chains of ports of these slots.
    fn put_floors(&mut self, slots: &[Slot], floors: &[(Port, u32)]) {
        let exist = self.existing(slots.iter().flat_map(|slot| [slot.port(), slot.inner()]));
        let mut batch = Batch::default();
        for (port, chain) in floors {
            let Some(slot) = slot_of(*port).filter(|slot| exist.contains(&slot.port())) else { continue };
            let Some(floor) = flower::floor(slot.port(), *chain) else { continue };
            let representor = Some(slot.inner()).filter(|index| exist.contains(index));
            self.left.remove(&floor.at());
            let index = self.fresh();
            flower::put_floor(&mut batch, &floor, representor, index);
        }
        // If one is missing, what no rule takes is lost; it is only if the netdev has just gone.
        self.socket.run(batch);
    }

    /// Whether the rules of a port are to be asked.
    fn is_to_be_open(&self, port: Port) -> bool {
        let pf = pf_of(port);
        let is_limited = self.around.limited.get(&pf).is_some_and(|limited| limited.contains(&port));
        self.chains.contains_key(&port) && !is_limited && !self.around.inactive.contains(&pf)
    }

    /// Has the rules of ports asked, or not. Returns the ports at which the kernel has refused it.
    fn settle(&mut self, ports: &BTreeSet<Port>) -> Vec<(Port, CardError)> {
        let changed: Vec<Port> =
            ports.iter().copied().filter(|port| self.open.contains(port) != self.is_to_be_open(*port)).collect();
        let exist = self.existing(changed.iter().filter_map(|port| Some(slot_of(*port)?.port())));
        let mut batch = Batch::default();
        for (tag, port) in changed.iter().enumerate() {
            let Some(slot) = slot_of(*port).filter(|slot| exist.contains(&slot.port())) else {
                self.open.remove(port);
                continue;
            };
            batch.tag(tag);
            match self.is_to_be_open(*port) {
                true => {
                    let index = self.fresh();
                    self.open.insert(*port);
                    flower::open(&mut batch, slot.port(), index);
                }
                false => {
                    self.open.remove(port);
                    flower::close(&mut batch, slot.port());
                }
            }
        }
        let failures = self.socket.run(batch);
        let failures = failures.into_iter().filter_map(|failure| Some((*changed.get(failure.tag)?, failure)));
        // What is gone with its netdev is closed, and a netdev that is gone is opened when it is made again.
        let failures: Vec<_> = failures.filter(|(port, _)| self.open.remove(port)).collect();
        let errors = failures.iter().filter(|(_, failure)| failure.errno != Errno::NODEV);
        errors.map(|(port, failure)| (*port, not_installed(failure))).collect()
    }

    /// Reads what rules have counted.
    fn look_at_counters(&mut self) {
        // What cannot be read is as it was when it was last read.
        let Ok(counted) = counted::gact(&mut self.socket) else { return };
        let now = Pipeline::now();
        for rule in self.rules.values_mut() {
            let Some(Counted { packets, bytes, idle }) = counted.get(&rule.counter) else { continue };
            let packets = rule.before.packets + packets;
            if packets != rule.seen.packets {
                let bytes = rule.before.bytes + bytes + uncounted(&rule.rule) * (packets - rule.before.packets);
                rule.seen = Counter { packets, bytes, last_used: now.saturating_sub(*idle) };
            }
        }
    }

    /// What rules have counted.
    pub(super) fn counters(&mut self, rules: &[RuleId]) -> Vec<Counter> {
        self.look_at_counters();
        rules.iter().map(|id| self.rules.get(id).map(|rule| rule.seen).unwrap_or_default()).collect()
    }

    /// Gives a rule other actions.
    pub(super) fn set_actions(&mut self, id: RuleId, rule: &Rule) -> Result<(), CardError> {
        self.check(id, rule)?;
        let Some((before, mut floors)) = self.replace(id, rule) else { return Ok(()) };
        let failed = self.put(&[id]).remove(&id);
        if failed.is_some() {
            floors = self.replace(id, &before).map(|(_, floors)| floors).unwrap_or_default();
            // The kernel had it so a moment ago.
            self.put(&[id]);
        }
        let mut batch = Batch::default();
        floors.iter().for_each(|floor| flower::remove(&mut batch, floor));
        self.socket.run(batch);
        failed.map_or(Ok(()), Err)
    }

    /// Notes that a rule is another one, which has the same place. Returns the one that it was, and the last filters of
    /// chains that no rule uses any more.
    fn replace(&mut self, id: RuleId, rule: &Rule) -> Option<(Rule, Vec<flower::Place>)> {
        let installed = self.rules.get_mut(&id)?;
        let (port, on) = (installed.port, installed.on);
        let before = std::mem::replace(&mut installed.rule, rule.clone());
        let new = self.use_chains(port, rule);
        self.put_floors(&[on], &new.into_iter().map(|chain| (port, chain)).collect::<Vec<_>>());
        let left = self.leave_chains(port, &before);
        self.leave_meters(id, &before.actions);
        self.use_meters(id, &rule.actions);
        Some((before, left.into_iter().filter_map(|chain| flower::floor(on.port(), chain)).collect()))
    }

    /// Removes rules, with what no other rule uses.
    pub(super) fn remove(&mut self, rules: &[RuleId]) {
        let (mut batch, mut floors) = (Batch::default(), Batch::default());
        let mut ports = BTreeSet::new();
        for id in rules {
            let Some(Installed { rule, on, port, .. }) = self.rules.remove(id) else { continue };
            ports.insert(port);
            if let Some(Ok(place)) = handle(*id).map(|handle| flower::place(on.port(), &rule, handle)) {
                flower::remove(&mut batch, &place);
            }
            let chains = self.leave_chains(port, &rule).into_iter();
            chains.filter_map(|chain| flower::floor(on.port(), chain)).for_each(|at| flower::remove(&mut floors, &at));
            self.leave_meters(*id, &rule.actions);
        }
        self.settle(&ports);
        // What is not there any more need not be removed.
        self.socket.run(batch);
        self.socket.run(floors);
    }

    /// Removes all rules of an E-Switch.
    pub(super) fn remove_all(&mut self, pf: PfIndex, meters: impl IntoIterator<Item = MeterId>) {
        let gone: Vec<RuleId> = self.rules.iter().filter(|(_, rule)| rule.pf == pf).map(|(id, _)| *id).collect();
        let ports: BTreeSet<Port> = gone.iter().filter_map(|id| self.rules.get(id)).map(|rule| rule.port).collect();
        let chains: Vec<(Port, u32)> = ports
            .iter()
            .flat_map(|port| self.chains.get(port).into_iter().flatten().map(|(chain, _)| (*port, *chain)))
            .collect();
        for id in gone {
            let Some(Installed { rule, port, .. }) = self.rules.remove(&id) else { continue };
            self.leave_chains(port, &rule);
            self.leave_meters(id, &rule.actions);
        }
        self.settle(&ports);
        let mut batch = Batch::default();
        for (port, chain) in chains {
            slot_of(port).into_iter().for_each(|slot| flower::flush_rules(&mut batch, slot.port(), chain));
        }
        self.socket.run(batch);
        meters.into_iter().for_each(|id| self.remove_meter(id));
    }

    /// Makes a meter, or changes it.
    pub(super) fn set_meter(&mut self, id: MeterId, meter: Meter) -> Result<(), CardError> {
        if self.missing.contains("police") {
            return Err(unsupported(Lacks("action police (CONFIG_NET_ACT_POLICE, `modprobe act_police`)".to_owned())));
        }
        let (index, before) = (self.fresh(), self.meters.get(&id).map(|kept| (kept.index, kept.meter)));
        let kept = self.meters.entry(id).or_insert(Kept { meter, index, users: BTreeSet::new() });
        if before.is_none_or(|(_, before)| before == meter) {
            return Ok(());
        }
        // An action that is there takes no other settings from a filter: the rules get another action.
        (kept.meter, kept.index) = (meter, index);
        let users: Vec<RuleId> = kept.users.iter().copied().collect();
        let failed = self.put(&users).into_values().next();
        if let (Some(_), Some(kept), Some(before)) = (&failed, self.meters.get_mut(&id), before) {
            (kept.index, kept.meter) = before;
            self.put(&users);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Forgets a meter.
    pub(super) fn remove_meter(&mut self, id: MeterId) {
        self.meters.remove(&id);
    }

    /// Makes the filters again that were at the ends of ports which have just been made, and those that send there.
    pub(super) fn ends_made(&mut self, slots: &[Slot]) {
        let is_new = |port: Port| slot_of(port).is_some_and(|slot| slots.contains(&slot));
        self.open.retain(|port| !is_new(*port));
        let on: Vec<RuleId> = self.rules.iter().filter(|(_, rule)| is_new(rule.port)).map(|(id, _)| *id).collect();
        let to = |rule: &Installed| !is_new(rule.port) && rule.rule.actions.iter().filter_map(Action::port).any(is_new);
        let to: Vec<RuleId> = self.rules.iter().filter(|(_, rule)| to(rule)).map(|(id, _)| *id).collect();
        if on.is_empty() && to.is_empty() {
            return;
        }
        self.look_at_counters();
        let ports: BTreeSet<Port> = on.iter().filter_map(|id| self.rules.get(id)).map(|rule| rule.port).collect();
        for id in &on {
            // The action that counted has gone with its netdev, or is about to.
            let counter = self.fresh();
            if let Some(rule) = self.rules.get_mut(id) {
                (rule.counter, rule.before) = (counter, rule.seen);
            }
        }
        let floors: Vec<(Port, u32)> = ports
            .iter()
            .flat_map(|port| self.chains.get(port).into_iter().flatten().map(|(chain, _)| (*port, *chain)))
            .collect();
        self.put_floors(slots, &floors);
        // There is nobody to tell of an error; the rules count nothing then.
        self.put(&on);
        self.put(&to);
        self.settle(&ports);
    }

    /// Notes which E-Switches let frames pass, which functions are limited, and on which wires frames leave.
    pub(super) fn set_surroundings(&mut self, around: Surroundings) {
        let wires_changed = self.around.wires != around.wires;
        self.around = around;
        if wires_changed {
            let is_uplink = |port: Port| slot_of(port).is_some_and(|slot| slot.vport == Vport::Uplink);
            let to = |rule: &Installed| rule.rule.actions.iter().filter_map(Action::port).any(is_uplink);
            let to: Vec<RuleId> = self.rules.iter().filter(|(_, rule)| to(rule)).map(|(id, _)| *id).collect();
            self.put(&to);
        }
        let ports: BTreeSet<Port> = self.chains.keys().copied().collect();
        // A port whose rules cannot be asked takes the slow path.
        self.settle(&ports);
    }

    /// Removes the filters that a dead process has left and that no rule has taken over.
    fn remove_left(&mut self) {
        let mut batch = Batch::default();
        std::mem::take(&mut self.left).into_keys().for_each(|at| flower::remove_at(&mut batch, at));
        self.socket.run(batch);
    }

    /// Ends a takeover. It has removed everything before the ties.
    pub(super) fn end_taking_over(&mut self) {
        self.remove_left();
        let ports = std::mem::take(&mut self.open);
        self.settle(&ports);
    }
}

/// The handle of the filter of a rule; 0 is none.
fn handle(id: RuleId) -> Option<u32> {
    u32::try_from(id.0).ok()?.checked_add(1)
}

/// Bytes of a rule's frames that the kernel does not count: it has taken off the Ethernet header and the outer VLAN tag. Of a
/// rule for frames with and without a tag it is not known which there were.
fn uncounted(rule: &Rule) -> u64 {
    if rule.matches.mask().has(Field::VlanTpid) { 18 } else { 14 }
}

/// The chain of a rule, and the one that it leads to.
fn chains_of(rule: &Rule) -> BTreeSet<u32> {
    let to = rule.actions.iter().filter_map(|action| match action {
        Action::Goto(chain) => Some(*chain),
        _ => None,
    });
    to.chain([rule.chain]).collect()
}

/// The meters of actions, with what follows from each.
fn polices(actions: &[Action]) -> Vec<(MeterId, (Control, Control))> {
    let police = |action: &Action| match action {
        Action::Police(police) => Some((police.meter, (police.conform, police.exceed))),
        _ => None,
    };
    actions.iter().filter_map(police).collect()
}
