//! The filters of the netdevs of a card, as the kernel keeps them: chains, priorities, handles, and actions with indexes.
//!
//! Adding a filter takes two steps, so that nobody holds these tables while the card is asked: [`Tables::reserve`] says what
//! the card is to be asked for, and [`Tables::settle`] what came of it. Between the two a filter has its place, and nobody
//! else sees it.

use std::collections::{BTreeMap, HashMap};

use flow::{Counter, Port, RuleId};
use netlink::Errno;

use crate::action::{Action, Kind, Usage};
use crate::numbers::cls_flags;
use crate::offload::Offload;
use crate::refusal::Refusal;
use crate::request::{Classifier, Netdev, Place, Side, Spec};
use crate::sample_groups::{GroupEvent, SampleGroup, SampleGroups};
use crate::shown::{Shown, ShownFilter};
use crate::stored::{Record, Stored};

/// The first priority that the kernel chooses itself (`tcf_auto_prio`).
const FIRST_AUTOMATIC: u16 = 0xc000;
/// The priorities among which it chooses.
const AUTOMATIC: u16 = 0x8000;

/// The filters of a card's netdevs.
#[derive(Default)]
pub struct Tables {
    /// By the port, and for a tunnel device by its interface index.
    netdevs: BTreeMap<Name, Filters>,
    pub(crate) actions: BTreeMap<(Kind, u32), Kept>,
    /// For each kind, an index below which none is free.
    first_index: BTreeMap<Kind, u32>,
    /// How many filters have been made.
    pub(crate) made: u64,
    /// The psample groups of actions.
    pub(crate) groups: SampleGroups,
    /// What has changed, if that is asked for.
    pub(crate) records: Option<Vec<Record>>,
}

/// A port, or a tunnel device over it.
pub(crate) type Name = (Port, Option<u32>);

pub(crate) fn name(netdev: &Netdev) -> Name {
    (netdev.port, netdev.tunnel.map(|(_, index)| index))
}

/// The filters of one netdev.
struct Filters {
    number: u64,
    sides: BTreeMap<Side, BTreeMap<u32, Chain>>,
}

/// A chain: its priorities. It is there as long as it has some.
type Chain = BTreeMap<u16, Priority>;

pub(crate) struct Priority {
    protocol: u16,
    kind: &'static str,
    pub(crate) filters: BTreeMap<u32, Filter>,
    /// The filter that matches something.
    pub(crate) by_match: HashMap<Classifier, u32>,
    /// A handle below which none is free.
    first_handle: u32,
}

impl Priority {
    pub(crate) fn new(protocol: u16, kind: &'static str) -> Self {
        Self { protocol, kind, filters: BTreeMap::new(), by_match: HashMap::new(), first_handle: 1 }
    }

    /// Whether the kernel has it, too, for its half of a filter.
    fn software(&self) -> bool {
        self.filters.values().any(|filter| filter.software)
    }
}

#[derive(Clone)]
pub(crate) struct Filter {
    pub(crate) spec: Spec,
    /// The rule that carries it out.
    pub(crate) rule: Option<RuleId>,
    /// Its number among all that have been made. Another filter that gets the same place has another one; a new version has the
    /// same.
    pub(crate) number: u64,
    /// When it was made, in milliseconds.
    pub(crate) made_ms: u64,
    /// What its rule had counted before its actions were changed.
    pub(crate) before: Counter,
    /// The card has not answered yet.
    pub(crate) reserved: bool,
    /// Whether the kernel has a half of it.
    pub(crate) software: bool,
}

/// An action that has an index.
pub(crate) struct Kept {
    pub(crate) action: Action,
    pub(crate) bound: u32,
}

/// A filter that has its place, and about which the card is to be asked.
#[derive(Debug)]
pub struct Reserved {
    /// Where it is, with what the kernel chooses.
    pub place: Place,
    /// What the card is asked for; `Err` if it cannot do it, `None` if it is not asked.
    pub offload: Option<Result<Offload, Refusal>>,
    /// The rule of the filter that it replaces, if it matches the same, so that only its actions change.
    pub keeps: Option<RuleId>,
    /// Whether the kernel has a half of it. At first it has not.
    pub software: bool,
    spec: Spec,
    is_replacement: bool,
    /// The filter's number.
    number: u64,
}

/// What came of a reserved filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The card carries it out, by this rule, whose counter was this.
    InHw(RuleId, Counter),
    /// Only the kernel does.
    NotInHw,
    /// Nobody does.
    Refused,
}

/// A filter that is gone.
#[derive(Clone, Debug, PartialEq)]
pub struct Removed {
    /// Its rule.
    pub rule: Option<RuleId>,
    /// The indexes of its police actions that no other filter has.
    pub meters: Vec<u32>,
}

/// A filter that is to be shown, before its counter is known.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is.
    pub place: Place,
    /// The name of the classifier.
    pub kind: &'static str,
    /// The filter; `None` for the priority itself.
    pub filter: Option<EntryFilter>,
    /// Whether the kernel has it, too: a half of the filter, or of one of the priority.
    pub software: bool,
}

/// The filter of an [`Entry`].
#[derive(Clone, Debug)]
pub struct EntryFilter {
    /// What it was asked to be.
    pub spec: Spec,
    /// Its rule.
    pub rule: Option<RuleId>,
    before: Counter,
    made_ms: u64,
    bound: Vec<u32>,
}

fn refused(errno: Errno, text: &'static str) -> Refusal {
    Refusal::new(errno, text)
}

/// The text if there is no chain.
pub const NO_CHAIN: &str = "Cannot find specified filter chain";

const NOT_FOUND: &str = "Filter with specified priority/protocol not found";

impl Tables {
    /// The chains of a side of a netdev, if it has any.
    fn chains(&self, netdev: Netdev, side: Side) -> Option<&BTreeMap<u32, Chain>> {
        self.netdevs.get(&name(&netdev))?.sides.get(&side)
    }

    fn chains_mut(&mut self, netdev: Netdev, side: Side) -> Option<&mut BTreeMap<u32, Chain>> {
        self.netdevs.get_mut(&name(&netdev))?.sides.get_mut(&side)
    }

    /// The same, which are made if there are none.
    pub(crate) fn chains_or_new(&mut self, netdev: Netdev, side: Side) -> &mut BTreeMap<u32, Chain> {
        let new = || Filters { number: netdev.number, sides: BTreeMap::new() };
        self.netdevs.entry(name(&netdev)).or_insert_with(new).sides.entry(side).or_default()
    }

    /// Forgets the filters of a port if they are those of another netdev, which is gone, and with it its rules.
    pub fn meet(&mut self, netdev: Netdev) {
        let is_other = self.netdevs.get(&name(&netdev)).is_some_and(|filters| filters.number != netdev.number);
        if is_other {
            self.forget_netdev(name(&netdev));
        }
    }

    /// The ports whose netdevs have filters, with the number of each.
    pub fn ports(&self) -> BTreeMap<Port, u64> {
        self.netdevs.iter().map(|((port, _), filters)| (*port, filters.number)).collect()
    }

    /// Forgets the filters of netdevs that are gone, given by their [ports and numbers](Self::ports).
    pub fn forget_gone(&mut self, gone: &BTreeMap<Port, u64>) {
        let is_gone = |(port, _): &Name, filters: &Filters| gone.get(port) == Some(&filters.number);
        let names: Vec<Name> =
            self.netdevs.iter().filter(|(name, filters)| is_gone(name, filters)).map(|(name, _)| *name).collect();
        names.into_iter().for_each(|name| self.forget_netdev(name));
    }

    fn forget_netdev(&mut self, name: Name) {
        let Some(filters) = self.netdevs.remove(&name) else { return };
        let (port, tunnel) = name;
        self.note(|| Record::Forgotten(port, tunnel));
        let chains = filters.sides.into_values().flat_map(BTreeMap::into_values);
        let priorities = chains.flat_map(Chain::into_values);
        for filter in priorities.flat_map(|priority| priority.filters.into_values()) {
            self.unbind(&filter.spec.actions);
        }
    }

    /// Gives a new filter, or a new version of one, its place.
    ///
    /// # Errors
    /// The kernel would refuse it (`tc_new_tfilter`, `fl_change`, `mall_change`).
    pub fn reserve(
        &mut self,
        mut place: Place,
        mut spec: Spec,
        (create, exclusive): (bool, bool),
        uplink: Port,
        now_ms: u64,
    ) -> Result<Reserved, Refusal> {
        if place.priority == 0 && !create {
            return Err(refused(Errno::NOENT, "Invalid filter command with priority of zero"));
        }
        let chain = place.chain.unwrap_or(0);
        place.chain = Some(chain);
        let kind = spec.classifier.name();
        let existing = self.chains(place.netdev, place.side).and_then(|chains| chains.get(&chain));
        if place.priority == 0 {
            let next = existing.and_then(|chain| chain.range(AUTOMATIC..).next());
            place.priority = next.map_or(FIRST_AUTOMATIC, |(priority, _)| priority.saturating_sub(1).max(1));
        }
        let priority = existing.and_then(|chain| chain.get(&place.priority));
        let mut is_replacement = false;
        let (mut replaced, mut number) = (None, self.made + 1);
        let need_create = "Need both RTM_NEWTFILTER and NLM_F_CREATE to create a new filter";
        match priority {
            None if place.protocol == 0 => {
                return Err(refused(Errno::INVAL, "Filter kind and protocol must be specified"));
            }
            None if !create => return Err(refused(Errno::NOENT, need_create)),
            None => {}
            Some(priority) => {
                if place.protocol != 0 && priority.protocol != place.protocol {
                    return Err(refused(Errno::INVAL, NOT_FOUND));
                }
                place.protocol = priority.protocol;
                if priority.kind != kind {
                    return Err(refused(Errno::INVAL, "Specified filter kind does not match existing one"));
                }
                match priority.filters.get(&place.handle) {
                    Some(filter) if filter.reserved => return Err(refused(Errno::AGAIN, "")),
                    Some(_) if exclusive => return Err(refused(Errno::EXIST, "Filter already exists")),
                    Some(filter) => {
                        (is_replacement, number) = (true, filter.number);
                        replaced = filter.rule.map(|rule| (rule, filter.spec.classifier.clone()));
                    }
                    None if !create => return Err(refused(Errno::NOENT, need_create)),
                    None => {}
                }
                let same = priority.by_match.get(&spec.classifier);
                if same.is_some_and(|handle| !is_replacement || *handle != place.handle) {
                    return Err(refused(Errno::EXIST, ""));
                }
            }
        }
        let is_chosen = place.handle == 0;
        if is_chosen {
            // The lowest that is free, as an IDR gives it.
            place.handle = priority.map_or(1, |priority| {
                let is_free = |handle: &u32| !priority.filters.contains_key(handle);
                (priority.first_handle..).find(is_free).unwrap_or(u32::MAX)
            });
        }
        spec.actions = self.bind(spec.actions)?;
        let block = place.netdev.block();
        let wants = place.side == Side::Ingress && spec.flags & cls_flags::SKIP_HW == 0;
        let protocol = place.flow_protocol();
        let offload = wants.then(|| spec.offload(block, uplink, (chain, place.priority, protocol)));
        let keeps = replaced.filter(|(_, before)| before.matches(protocol) == spec.classifier.matches(protocol));
        let keeps = keeps.map(|(rule, _)| rule);
        if !is_replacement {
            self.made = number;
            let filter = Filter {
                spec: spec.clone(),
                rule: None,
                number,
                made_ms: now_ms,
                before: Counter::default(),
                reserved: true,
                software: false,
            };
            let chains = self.chains_or_new(place.netdev, place.side);
            let new = || Priority::new(place.protocol, kind);
            let priority = chains.entry(chain).or_default().entry(place.priority).or_insert_with(new);
            if is_chosen || place.handle == priority.first_handle {
                priority.first_handle = place.handle.saturating_add(1);
            }
            priority.by_match.insert(spec.classifier.clone(), place.handle);
            priority.filters.insert(place.handle, filter);
        }
        Ok(Reserved { place, offload, keeps, software: false, spec, is_replacement, number })
    }

    /// Says what came of a reserved filter. Returns the filter that is there now, and the one that is gone: the one it replaced,
    /// or itself if it was refused.
    pub fn settle(&mut self, reserved: Reserved, outcome: Outcome, now_ms: u64) -> (Option<Entry>, Option<Removed>) {
        let Reserved { place, spec, is_replacement, number, software, .. } = reserved;
        let chain = place.chain.unwrap_or(0);
        let (rule, before) = match outcome {
            Outcome::InHw(rule, before) => (Some(rule), before),
            Outcome::NotInHw => (None, Counter::default()),
            Outcome::Refused => {
                if is_replacement {
                    let meters = self.unbind(&spec.actions);
                    return (None, Some(Removed { rule: None, meters }));
                }
                let is_there = self.priority_mut(&place).is_some_and(|priority| {
                    priority.filters.get(&place.handle).is_some_and(|filter| filter.number == number)
                });
                let take = || self.take(place.netdev, place.side, chain, place.priority, place.handle);
                return (None, is_there.then(take).flatten());
            }
        };
        let priority = self.priority_mut(&place);
        let filter = priority.and_then(|priority| {
            let filter = priority.filters.get_mut(&place.handle).filter(|filter| filter.number == number)?;
            let old = std::mem::replace(
                filter,
                Filter { spec: spec.clone(), rule, number, made_ms: now_ms, before, reserved: false, software },
            );
            if is_replacement {
                priority.by_match.remove(&old.spec.classifier);
                priority.by_match.insert(spec.classifier.clone(), place.handle);
            }
            Some(old)
        });
        let Some(old) = filter else {
            // It has been deleted meanwhile, and what it was has let its actions go: for a new filter, these.
            let meters = if is_replacement { self.unbind(&spec.actions) } else { Vec::new() };
            return (None, Some(Removed { rule, meters }));
        };
        let gone = is_replacement.then(|| {
            let meters = self.unbind(&old.spec.actions);
            Removed { rule: old.rule.filter(|old| Some(*old) != rule), meters }
        });
        let entry = self.entry(&place);
        if let Some(Entry { place, filter: Some(filter), .. }) = &entry {
            let EntryFilter { spec, rule, before, made_ms, .. } = filter;
            let (place, rule, made_ms, before) = (*place, *rule, *made_ms, *before);
            let spec = spec.clone();
            self.note(|| Record::There(Box::new(Stored { place, spec, rule, made_ms, before, software })));
        }
        (entry, gone)
    }

    fn note(&mut self, record: impl FnOnce() -> Record) {
        if let Some(records) = &mut self.records {
            records.push(record());
        }
    }

    /// Deletes a filter, the filters of a priority, or those of a chain. Returns what is gone.
    ///
    /// # Errors
    /// The kernel would refuse it (`tc_del_tfilter`).
    pub fn remove(&mut self, place: &Place, kind: Option<&str>) -> Result<(Vec<Entry>, Vec<Removed>), Refusal> {
        if place.priority == 0 && (place.protocol != 0 || place.handle != 0 || kind.is_some()) {
            return Err(refused(Errno::NOENT, "Cannot flush filters with protocol, handle or kind set"));
        }
        let chain = place.chain.unwrap_or(0);
        let chains = self.chains(place.netdev, place.side);
        let Some(priorities) = chains.and_then(|chains| chains.get(&chain)) else {
            return match place.priority {
                0 => Ok((Vec::new(), Vec::new())),
                _ => Err(refused(Errno::NOENT, NO_CHAIN)),
            };
        };
        if place.priority == 0 {
            let all: Vec<u16> = priorities.keys().copied().collect();
            let mut gone = (Vec::new(), Vec::new());
            for priority in all {
                let (entries, removed) = self.remove_priority(place, chain, priority);
                gone.0.extend(entries);
                gone.1.extend(removed);
            }
            return Ok(gone);
        }
        let priority = self.find(place, kind)?;
        if place.handle == 0 {
            return Ok(self.remove_priority(place, chain, place.priority));
        }
        if priority.filters.get(&place.handle).is_none_or(|filter| filter.reserved) {
            return Err(refused(Errno::NOENT, "Specified filter handle not found"));
        }
        let entry = self.entry(&Place { chain: Some(chain), ..*place });
        let removed = self.take(place.netdev, place.side, chain, place.priority, place.handle);
        Ok((entry.into_iter().collect(), removed.into_iter().collect()))
    }

    /// One filter.
    ///
    /// # Errors
    /// The kernel would refuse it (`tc_get_tfilter`).
    pub fn get(&self, place: &Place, kind: Option<&str>) -> Result<Entry, Refusal> {
        if place.priority == 0 {
            return Err(refused(Errno::NOENT, "Invalid filter command with priority of zero"));
        }
        let chain = place.chain.unwrap_or(0);
        if !self.chains(place.netdev, place.side).is_some_and(|chains| chains.contains_key(&chain)) {
            return Err(refused(Errno::INVAL, NO_CHAIN));
        }
        self.find(place, kind)?;
        let entry = self.entry(&Place { chain: Some(chain), ..*place });
        entry.ok_or_else(|| refused(Errno::NOENT, "Specified filter handle not found"))
    }

    /// The filters of a side of a netdev, or of one chain, priority or protocol, each priority before its filters.
    pub fn list(&self, place: &Place) -> Vec<Entry> {
        let mut entries = Vec::new();
        let chains = self.chains(place.netdev, place.side).into_iter().flatten();
        for (chain, kept) in chains.filter(|(number, _)| place.chain.is_none_or(|chain| chain == **number)) {
            for (number, priority) in kept {
                if place.priority != 0 && place.priority != *number
                    || place.protocol != 0 && place.protocol != priority.protocol
                {
                    continue;
                }
                let at =
                    Place { chain: Some(*chain), priority: *number, protocol: priority.protocol, handle: 0, ..*place };
                let filters = priority.filters.keys().filter_map(|handle| self.entry(&Place { handle: *handle, ..at }));
                let mut filters = filters.peekable();
                if filters.peek().is_some() {
                    entries.push(Entry { place: at, kind: priority.kind, filter: None, software: priority.software() });
                    entries.extend(filters);
                }
            }
        }
        entries
    }

    /// Forgets everything of a side of a netdev.
    pub fn forget(&mut self, netdev: Netdev, side: Side) -> Vec<Removed> {
        let mut places: Vec<(u32, u16, u32)> = Vec::new();
        for (chain, priorities) in self.chains(netdev, side).into_iter().flatten() {
            for (number, priority) in priorities {
                places.extend(priority.filters.keys().map(|handle| (*chain, *number, *handle)));
            }
        }
        let take = |(chain, priority, handle)| self.take(netdev, side, chain, priority, handle);
        places.into_iter().filter_map(take).collect()
    }

    /// The psample groups that actions use, in the order in which they began.
    pub fn sample_groups(&self) -> Vec<SampleGroup> {
        self.groups.list()
    }

    /// Whether groups have begun or ended since the [last call](Self::take_group_events).
    pub fn has_group_events(&self) -> bool {
        self.groups.has_events()
    }

    /// Which groups have begun and ended since the last call, in order.
    pub fn take_group_events(&mut self) -> Vec<GroupEvent> {
        self.groups.take_events()
    }

    fn priority(&self, place: &Place) -> Option<&Priority> {
        self.chains(place.netdev, place.side)?.get(&place.chain.unwrap_or(0))?.get(&place.priority)
    }

    fn priority_mut(&mut self, place: &Place) -> Option<&mut Priority> {
        self.chains_mut(place.netdev, place.side)?.get_mut(&place.chain.unwrap_or(0))?.get_mut(&place.priority)
    }

    fn find(&self, place: &Place, kind: Option<&str>) -> Result<&Priority, Refusal> {
        let protocol = place.protocol;
        let priority = self.priority(place).ok_or_else(|| refused(Errno::NOENT, NOT_FOUND))?;
        if protocol != 0 && priority.protocol != protocol {
            return Err(refused(Errno::INVAL, NOT_FOUND));
        }
        if kind.is_some_and(|kind| kind != priority.kind) {
            return Err(refused(Errno::INVAL, "Specified filter kind does not match existing one"));
        }
        Ok(priority)
    }

    fn entry(&self, place: &Place) -> Option<Entry> {
        let priority = self.priority(place)?;
        let (kind, protocol) = (priority.kind, priority.protocol);
        let filter = priority.filters.get(&place.handle).filter(|filter| !filter.reserved)?.clone();
        let bound = |action: &Action| self.actions.get(&(action.kind, action.index)).map_or(1, |kept| kept.bound);
        let bound = filter.spec.actions.iter().map(bound).collect();
        let Filter { spec, rule, made_ms, before, software, .. } = filter;
        Some(Entry {
            place: Place { protocol, ..*place },
            kind,
            filter: Some(EntryFilter { spec, rule, before, made_ms, bound }),
            software,
        })
    }

    fn remove_priority(&mut self, place: &Place, chain: u32, priority: u16) -> (Vec<Entry>, Vec<Removed>) {
        let at = Place { chain: Some(chain), priority, handle: 0, ..*place };
        let Some(kept) = self.priority(&at) else { return (Vec::new(), Vec::new()) };
        let (place_of, software) = (Place { protocol: kept.protocol, ..at }, kept.software());
        let head = Entry { place: place_of, kind: kept.kind, filter: None, software };
        let handles: Vec<u32> = kept.filters.keys().copied().collect();
        let (netdev, side) = (place.netdev, place.side);
        let removed =
            handles.into_iter().filter_map(|handle| self.take(netdev, side, chain, priority, handle)).collect();
        (vec![head], removed)
    }

    /// Takes a filter out, with its priority and its chain if nothing is left of them.
    fn take(&mut self, netdev: Netdev, side: Side, chain: u32, priority: u16, handle: u32) -> Option<Removed> {
        let kept = self.chains_mut(netdev, side)?.get_mut(&chain)?.get_mut(&priority)?;
        let filter = kept.filters.remove(&handle)?;
        kept.by_match.remove(&filter.spec.classifier);
        kept.first_handle = kept.first_handle.min(handle.max(1));
        self.drop_empty(netdev, side, chain);
        self.note(|| Record::Gone(Place { netdev, side, chain: Some(chain), priority, protocol: 0, handle }));
        let meters = self.unbind(&filter.spec.actions);
        Some(Removed { rule: filter.rule, meters })
    }

    fn drop_empty(&mut self, netdev: Netdev, side: Side, number: u32) {
        let Some(chains) = self.chains_mut(netdev, side) else { return };
        if let Some(chain) = chains.get_mut(&number) {
            chain.retain(|_, priority| !priority.filters.is_empty());
            if chain.is_empty() {
                chains.remove(&number);
            }
        }
    }

    /// Gives actions their indexes. An action whose index there is already is that one (`tcf_action_init`).
    fn bind(&mut self, actions: Vec<Action>) -> Result<Vec<Action>, Refusal> {
        let mut bound = Vec::with_capacity(actions.len());
        for mut action in actions {
            let kind = action.kind;
            if action.index == 0 {
                let first = self.first_index.get(&kind).copied().unwrap_or(1);
                let free = (first..).find(|index| !self.actions.contains_key(&(kind, *index))).unwrap_or(u32::MAX);
                self.first_index.insert(kind, free.saturating_add(1));
                action.number(free);
            }
            let key = (kind, action.index);
            match self.actions.get_mut(&key) {
                Some(kept) => {
                    kept.bound += 1;
                    action = kept.action.clone();
                }
                None if action.is_reference => {
                    self.unbind(&bound);
                    return Err(refused(Errno::INVAL, "there is no action with this index"));
                }
                None => {
                    self.groups.made(&action);
                    self.actions.insert(key, Kept { action: action.clone(), bound: 1 });
                }
            }
            bound.push(action);
        }
        Ok(bound)
    }

    /// Lets actions go. Returns the indexes of the meters that nobody uses any more.
    fn unbind(&mut self, actions: &[Action]) -> Vec<u32> {
        let mut meters = Vec::new();
        for action in actions {
            let key = (action.kind, action.index);
            let Some(kept) = self.actions.get_mut(&key) else { continue };
            kept.bound -= 1;
            if kept.bound == 0 {
                self.groups.gone(&kept.action);
                self.actions.remove(&key);
                if let Some(first) = self.first_index.get_mut(&action.kind) {
                    *first = (*first).min(action.index.max(1));
                }
                if action.kind == Kind::Police {
                    meters.push(action.index);
                }
            }
        }
        meters
    }
}

impl Entry {
    /// The entry with its counter: what the rule has counted, `None` if the card does not carry it out any more.
    /// `last_used_ms`: when the rule was used last, on the clock of `now_ms`.
    pub fn shown(self, counter: Option<Counter>, last_used_ms: Option<u64>, now_ms: u64) -> Shown {
        let filter = self.filter.map(|filter| {
            let EntryFilter { spec, before, made_ms, bound, .. } = filter;
            let counted = counter.unwrap_or_default();
            let idle_since = last_used_ms.unwrap_or(made_ms).max(made_ms);
            let usage = |bound: &u32| Usage {
                packets: counted.packets.saturating_sub(before.packets),
                bytes: counted.bytes.saturating_sub(before.bytes),
                software: (0, 0),
                age_ms: now_ms.saturating_sub(made_ms),
                idle_ms: now_ms.saturating_sub(idle_since),
                in_hw: counter.is_some(),
                bound: *bound,
            };
            let usages = bound.iter().map(usage).collect();
            ShownFilter { spec, usages, in_hw: counter.is_some() }
        });
        Shown { place: self.place, kind: self.kind.to_owned(), filter, software: self.software }
    }
}
