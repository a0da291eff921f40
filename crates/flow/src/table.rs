//! The tables of an E-Switch: its ports, and its rules in the order in which they are asked.
//!
//! The order is the kernel's. A frame begins in chain 0 of its block. In a chain, priorities are asked from the lowest
//! number; each takes frames of one protocol. In a priority, masks are asked in the order in which they were added, and
//! in a mask the rule with exactly the frame's masked key matches (`fl_classify` in `net/sched/cls_flower.c`). If none
//! matches, the next priority is asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::action::Action;
use crate::check::{self, Capabilities, RuleError};
use crate::key::{Field, Key};
use crate::matching::Match;
use crate::meter::{Meter, MeterId};
use crate::rule::{Block, Port, Protocol, Rule, RuleId};
use crate::tunnel::TunnelDevice;

/// What is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortKind {
    /// The wire. Tunnels end here.
    Uplink,
    /// A PF of a host, a VF or an SF.
    Vport,
}

/// The ports, meters and rules of an E-Switch.
#[derive(Debug, Clone, Hash)]
pub struct Tables {
    capabilities: Capabilities,
    ports: BTreeMap<Port, PortKind>,
    /// Which shared block a port's frames are looked up in, instead of its own.
    bindings: BTreeMap<Port, u32>,
    meters: BTreeMap<MeterId, Meter>,
    rules: BTreeMap<RuleId, Rule>,
    tunnels: Tunnels,
    chains: BTreeMap<(Block, u32), BTreeMap<u32, Priority>>,
    next_rule: u64,
    /// Whether rules of one uplink may send to another.
    joined: bool,
}

/// The rules that encapsulate, by the ends of their tunnels.
#[derive(Debug, Clone, Default)]
struct Tunnels {
    by_end: BTreeMap<IpAddr, BTreeSet<RuleId>>,
    /// How many times an end was named first, or last.
    changes: u64,
}

impl Hash for Tunnels {
    /// It follows from the rules.
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl Tunnels {
    fn ends(actions: &[Action]) -> impl Iterator<Item = IpAddr> {
        actions.iter().filter_map(|action| match action {
            Action::TunnelSet(encap) => Some(encap.dst),
            _ => None,
        })
    }

    fn add(&mut self, id: RuleId, actions: &[Action]) {
        for end in Self::ends(actions) {
            let rules = self.by_end.entry(end).or_default();
            self.changes += u64::from(rules.is_empty());
            rules.insert(id);
        }
    }

    fn remove(&mut self, id: RuleId, actions: &[Action]) {
        for end in Self::ends(actions) {
            let Some(rules) = self.by_end.get_mut(&end) else { continue };
            rules.remove(&id);
            if rules.is_empty() {
                self.by_end.remove(&end);
                self.changes += 1;
            }
        }
    }

    fn clear(&mut self) {
        self.changes += self.by_end.len() as u64;
        self.by_end.clear();
    }
}

/// One flower instance: the rules of a priority.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Priority {
    pub(crate) protocol: Protocol,
    pub(crate) masks: Vec<MaskTable>,
}

/// The rules with one mask.
#[derive(Debug, Clone)]
pub(crate) struct MaskTable {
    pub(crate) mask: Key,
    src_range: bool,
    dst_range: bool,
    by_key: HashMap<Entry, RuleId>,
    /// The rules in the order in which they were added, if the mask has ranges.
    ranges: BTreeMap<RuleId, Entry>,
}

type Ports = Option<RangeInclusive<u16>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Entry {
    key: Key,
    src_ports: Ports,
    dst_ports: Ports,
}

impl Entry {
    fn of(matches: &Match) -> Entry {
        Entry {
            key: matches.value().clone(),
            src_ports: matches.src_ports.clone(),
            dst_ports: matches.dst_ports.clone(),
        }
    }
}

impl Hash for MaskTable {
    /// The rules of a mask are among those of the tables, which are hashed.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.mask, self.src_range, self.dst_range).hash(state);
    }
}

impl MaskTable {
    fn of(matches: &Match) -> MaskTable {
        MaskTable {
            mask: matches.mask().clone(),
            src_range: matches.src_ports.is_some(),
            dst_range: matches.dst_ports.is_some(),
            by_key: HashMap::new(),
            ranges: BTreeMap::new(),
        }
    }

    fn is_for(&self, matches: &Match) -> bool {
        self.mask == *matches.mask()
            && self.src_range == matches.src_ports.is_some()
            && self.dst_range == matches.dst_ports.is_some()
    }

    fn has_ranges(&self) -> bool {
        self.src_range || self.dst_range
    }

    /// The rule that a frame with this key matches (`fl_mask_lookup`).
    pub(crate) fn find(&self, key: &Key) -> Option<RuleId> {
        let masked = key.masked(&self.mask);
        if !self.has_ranges() {
            return self.by_key.get(&Entry { key: masked, src_ports: None, dst_ports: None }).copied();
        }
        let port = |field| u16::try_from(key.number(field)).unwrap_or(0);
        let (src, dst) = (port(Field::SrcPort), port(Field::DstPort));
        let within = |ports: &Ports, port| ports.as_ref().is_none_or(|ports| ports.contains(&port));
        // Of two rules with ranges, the one that was added first is asked first (fl_lookup_range).
        self.ranges.values().filter(|entry| within(&entry.src_ports, src) && within(&entry.dst_ports, dst)).find_map(
            |entry| {
                let (src_ports, dst_ports) = (entry.src_ports.clone(), entry.dst_ports.clone());
                self.by_key.get(&Entry { key: masked.clone(), src_ports, dst_ports }).copied()
            },
        )
    }

    /// Which fields count, in iproute2's words.
    pub(crate) fn words(&self) -> Vec<&'static str> {
        let ranges = [(self.src_range, "src_port range"), (self.dst_range, "dst_port range")];
        let implied = [Field::AddrType, Field::EncAddrType];
        let fields = self.mask.fields().filter(|field| !implied.contains(field)).map(Field::word);
        fields.chain(ranges.into_iter().filter(|(has, _)| *has).map(|(_, word)| word)).collect()
    }
}

impl Default for Tables {
    fn default() -> Tables {
        Tables::new(Capabilities::default())
    }
}

impl Tables {
    /// Tables without ports and rules, of a card that can do this much.
    pub fn new(capabilities: Capabilities) -> Tables {
        Tables {
            capabilities,
            ports: BTreeMap::new(),
            bindings: BTreeMap::new(),
            meters: BTreeMap::new(),
            rules: BTreeMap::new(),
            tunnels: Tunnels::default(),
            chains: BTreeMap::new(),
            next_rule: 1,
            joined: false,
        }
    }

    /// Sets whether rules of one uplink may send to another: in a multiport E-Switch. At first they may not.
    pub fn join_uplinks(&mut self, joined: bool) {
        self.joined = joined;
    }

    pub(crate) fn has_joined_uplinks(&self) -> bool {
        self.joined
    }

    /// What the card can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Adds a port.
    pub fn add_port(&mut self, port: Port, kind: PortKind) {
        self.ports.insert(port, kind);
    }

    /// Removes a port and every rule that is on it or sends to it. Returns the names of these rules.
    pub fn remove_port(&mut self, port: Port) -> Vec<RuleId> {
        self.remove_ports(&BTreeSet::from([port]))
    }

    /// Removes ports and every rule that is on one of them or sends to one. Returns the names of these rules, in order.
    pub fn remove_ports(&mut self, ports: &BTreeSet<Port>) -> Vec<RuleId> {
        self.ports.retain(|port, _| !ports.contains(port));
        self.bindings.retain(|port, _| !ports.contains(port));
        let names = |rule: &Rule| rule.ports().any(|port| ports.contains(&port));
        let gone: Vec<RuleId> = self.rules.iter().filter(|(_, rule)| names(rule)).map(|(id, _)| *id).collect();
        gone.iter().for_each(|id| drop(self.remove(*id)));
        gone
    }

    /// The ports.
    pub fn ports(&self) -> impl Iterator<Item = Port> {
        self.ports.keys().copied()
    }

    /// What is behind a port, if there is such a port.
    pub fn port(&self, port: Port) -> Option<PortKind> {
        self.ports.get(&port).copied()
    }

    /// Looks up what comes in at `port` in a shared block, or with `None` in its own again.
    pub fn bind(&mut self, port: Port, shared_block: Option<u32>) {
        match shared_block {
            Some(index) => self.bindings.insert(port, index),
            None => self.bindings.remove(&port),
        };
    }

    /// The block in which frames of `port` are looked up.
    pub fn block_of(&self, port: Port) -> Block {
        self.bindings.get(&port).map_or(Block::Port(port), |index| Block::Shared(*index))
    }

    /// The tunnel devices that have rules.
    pub fn tunnel_devices(&self) -> impl Iterator<Item = TunnelDevice> {
        self.chains.keys().filter_map(|(block, chain)| match block {
            Block::Tunnel(device) if *chain == 0 => Some(*device),
            _ => None,
        })
    }

    /// Makes or changes a meter, which is full then.
    ///
    /// # Errors
    /// A meter without a rate or a burst, or one more than the card has.
    pub fn set_meter(&mut self, id: MeterId, meter: Meter) -> Result<(), RuleError> {
        if !meter.is_sensible() {
            return Err(RuleError::MeterWithoutRate);
        }
        if !self.meters.contains_key(&id) && self.meters.len() >= self.capabilities.max_meters {
            return Err(RuleError::TooManyMeters);
        }
        self.meters.insert(id, meter);
        Ok(())
    }

    /// Removes a meter. Returns whether there was one that no rule uses.
    pub fn remove_meter(&mut self, id: MeterId) -> bool {
        let used = self.rules.values().flat_map(|rule| &rule.actions).any(|action| action.meter() == Some(id));
        !used && self.meters.remove(&id).is_some()
    }

    /// A meter.
    pub fn meter(&self, id: MeterId) -> Option<Meter> {
        self.meters.get(&id).copied()
    }

    /// Adds rules. The result of each stands at its place; the refusal of one does not affect the others.
    pub fn add_batch(&mut self, rules: impl IntoIterator<Item = Rule>) -> Vec<Result<RuleId, RuleError>> {
        rules.into_iter().map(|rule| self.add(rule)).collect()
    }

    /// Adds a rule behind those that are there.
    ///
    /// # Errors
    /// What the card could not do, or what makes no sense. Then nothing has changed.
    pub fn add(&mut self, rule: Rule) -> Result<RuleId, RuleError> {
        let id = RuleId(self.next_rule);
        self.add_as(id, rule)?;
        Ok(id)
    }

    /// Does the same with a rule that has a name already, which no rule of these tables has had.
    ///
    /// # Errors
    /// As [`add`](Tables::add).
    pub fn add_as(&mut self, id: RuleId, rule: Rule) -> Result<(), RuleError> {
        check::rule(&rule, self)?;
        self.check_place(&rule)?;
        self.next_rule = self.next_rule.max(id.0 + 1);
        self.insert(id, &rule);
        self.tunnels.add(id, &rule.actions);
        self.rules.insert(id, rule);
        Ok(())
    }

    /// Gives a rule other actions. Its place, its name and its counter stay. Returns those that it had, or `None` if
    /// there is no such rule.
    ///
    /// # Errors
    /// What the card could not do, or what makes no sense. Then nothing has changed.
    pub fn set_actions(&mut self, id: RuleId, actions: Vec<Action>) -> Result<Option<Vec<Action>>, RuleError> {
        let Some(rule) = self.rules.get(&id) else { return Ok(None) };
        let changed = Rule { actions, ..rule.clone() };
        check::rule(&changed, self)?;
        // Added before the others are removed: an end that both name is named all the time.
        let ends: BTreeSet<IpAddr> = Tunnels::ends(&changed.actions).collect();
        self.tunnels.add(id, &changed.actions);
        let before = self.rules.insert(id, changed).map(|before| before.actions);
        let left =
            before.iter().flatten().filter(|a| !Tunnels::ends(std::slice::from_ref(a)).any(|e| ends.contains(&e)));
        left.for_each(|action| self.tunnels.remove(id, std::slice::from_ref(action)));
        Ok(before)
    }

    /// Whether there is a place for the rule: the protocol of its priority, no rule with the same match, no limit.
    fn check_place(&self, rule: &Rule) -> Result<(), RuleError> {
        if self.rules.len() >= self.capabilities.max_rules {
            return Err(RuleError::TooManyRules);
        }
        let priorities = self.chains.get(&(rule.block, rule.chain));
        let Some(priority) = priorities.and_then(|priorities| priorities.get(&rule.priority)) else {
            return Ok(());
        };
        if priority.protocol != rule.protocol {
            return Err(RuleError::ProtocolOfPriority(priority.protocol));
        }
        match priority.masks.iter().find(|masks| masks.is_for(&rule.matches)) {
            Some(table) => match table.by_key.get(&Entry::of(&rule.matches)) {
                Some(other) => Err(RuleError::Exists(*other)),
                None => Ok(()),
            },
            None if priority.masks.len() >= self.capabilities.max_masks => Err(RuleError::TooManyMasks),
            None => Ok(()),
        }
    }

    fn insert(&mut self, id: RuleId, rule: &Rule) {
        let priorities = self.chains.entry((rule.block, rule.chain)).or_default();
        let priority =
            priorities.entry(rule.priority).or_insert(Priority { protocol: rule.protocol, masks: Vec::new() });
        let place = priority.masks.iter().position(|table| table.is_for(&rule.matches)).unwrap_or_else(|| {
            priority.masks.push(MaskTable::of(&rule.matches));
            priority.masks.len() - 1
        });
        let entry = Entry::of(&rule.matches);
        let table = &mut priority.masks[place];
        if table.has_ranges() {
            table.ranges.insert(id, entry.clone());
        }
        table.by_key.insert(entry, id);
    }

    /// Removes a rule and returns it. A mask, a priority and a chain vanish with their last rule.
    pub fn remove(&mut self, id: RuleId) -> Option<Rule> {
        let rule = self.rules.remove(&id)?;
        self.tunnels.remove(id, &rule.actions);
        let place = (rule.block, rule.chain);
        let priorities = self.chains.get_mut(&place)?;
        let priority = priorities.get_mut(&rule.priority)?;
        let entry = Entry::of(&rule.matches);
        for table in priority.masks.iter_mut().filter(|table| table.is_for(&rule.matches)) {
            table.by_key.remove(&entry);
            table.ranges.remove(&id);
        }
        priority.masks.retain(|table| !table.by_key.is_empty());
        if priority.masks.is_empty() {
            priorities.remove(&rule.priority);
        }
        if priorities.is_empty() {
            self.chains.remove(&place);
        }
        Some(rule)
    }

    /// Removes every rule and meter. The ports stay, and names are still not given twice.
    pub fn clear(&mut self) {
        self.rules.clear();
        self.tunnels.clear();
        self.chains.clear();
        self.meters.clear();
    }

    /// A rule.
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(&id)
    }

    /// Every rule, from the oldest.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.rules.iter().map(|(id, rule)| (*id, rule))
    }

    /// The ends of the tunnels to which rules encapsulate.
    pub fn tunnel_ends(&self) -> impl Iterator<Item = IpAddr> {
        self.tunnels.by_end.keys().copied()
    }

    /// A number that grows whenever [`tunnel_ends`](Self::tunnel_ends) changes.
    pub fn tunnel_changes(&self) -> u64 {
        self.tunnels.changes
    }

    /// The rules that encapsulate to the end of a tunnel, from the oldest.
    pub fn rules_to(&self, end: IpAddr) -> impl Iterator<Item = RuleId> {
        self.tunnels.by_end.get(&end).into_iter().flatten().copied()
    }

    /// The priorities of a chain, from the one that is asked first.
    pub(crate) fn priorities(&self, block: Block, chain: u32) -> impl Iterator<Item = (u32, &Priority)> {
        self.chains.get(&(block, chain)).into_iter().flatten().map(|(number, priority)| (*number, priority))
    }
}
