//! The order of groups in chains, as user space knows it: what is in which map, so that it can be changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use flow::{Protocol, RuleId};

use crate::compile::{Place, Refused};
use crate::layout::{Bytes, CHAIN, CHAIN_CACHED, GROUP, LONG_KEY, MAX_GROUPS_OF_CHAIN, View, group_flag};

/// The rules of one chain, priority, mask and range of ports.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) place: Place,
    /// Masks are asked in this order.
    pub(crate) order: u64,
    pub(crate) rules: usize,
    /// Of a group with ranges, in the order in which they were added: that of the first one is the group's.
    ranged: BTreeSet<RuleId>,
}

/// One line of a chain: what is asked in which order.
type OrderOfGroup = (u32, u64, RuleId);

/// The groups by number, by place, and by chain.
#[derive(Debug, Default)]
pub(crate) struct Book {
    groups: HashMap<u32, Group>,
    by_place: HashMap<Place, u32>,
    chains: BTreeMap<(u64, u32), BTreeMap<OrderOfGroup, u32>>,
    /// By chain and priority: the protocol, and how many groups there are.
    priorities: BTreeMap<(u64, u32, u32), (Protocol, usize)>,
    next_order: u64,
    /// What was found last, as rules mostly come with the same mask as those before.
    last: Option<u32>,
}

impl Group {
    fn order_in_chain(&self) -> OrderOfGroup {
        let first = self.ranged.first().copied().unwrap_or(RuleId(0));
        (self.place.priority, self.order, first)
    }

    fn is_ranged(&self) -> bool {
        self.place.src.is_some() || self.place.dst.is_some()
    }

    /// The group as it stands in `groups`.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let place = &self.place;
        let (protocol, any) = match place.protocol {
            Protocol::All => (0, group_flag::ANY_PROTOCOL),
            Protocol::Is(ethertype) => (ethertype, 0),
        };
        let flag = |set: bool, flag: u16| if set { flag } else { 0 };
        let flags = any
            | flag(place.is_long(), group_flag::LONG)
            | flag(place.src.is_some(), group_flag::SRC_RANGE)
            | flag(place.dst.is_some(), group_flag::DST_RANGE);
        let ends =
            |range: &Option<RangeInclusive<u16>>| range.as_ref().map_or((0, 0), |range| (*range.start(), *range.end()));
        let ((src_min, src_max), (dst_min, dst_max)) = (ends(&place.src), ends(&place.dst));
        let bytes = Bytes::default().u64(place.block).u64(self.order).u32(place.chain).u32(place.priority);
        let bytes = bytes.bytes(&protocol.to_be_bytes()).u16(flags);
        let bytes = bytes.u16(src_min).u16(src_max).u16(dst_min).u16(dst_max).u32(0);
        bytes.bytes(&place.mask[..]).0
    }

    /// The group that stands in `groups`, without rules.
    fn read(bytes: &[u8]) -> Group {
        let view = View(bytes);
        let flags = view.u16(26);
        let has = |flag: u16| flags & flag != 0;
        let protocol = match has(group_flag::ANY_PROTOCOL) {
            true => Protocol::All,
            false => Protocol::Is(u16::from_be(view.u16(24))),
        };
        let mut mask = [0; LONG_KEY];
        mask.copy_from_slice(&bytes[GROUP - LONG_KEY..GROUP]);
        let place = Place {
            block: view.u64(0),
            chain: view.u32(16),
            priority: view.u32(20),
            protocol,
            mask: Box::new(mask),
            src: has(group_flag::SRC_RANGE).then(|| view.u16(28)..=view.u16(30)),
            dst: has(group_flag::DST_RANGE).then(|| view.u16(32)..=view.u16(34)),
        };
        Group { place, order: view.u64(8), rules: 0, ranged: BTreeSet::new() }
    }
}

impl Book {
    /// A group.
    pub(crate) fn group(&self, number: u32) -> Option<&Group> {
        self.groups.get(&number)
    }

    /// Whether there is a group with this number.
    pub(crate) fn has_group(&self, number: u32) -> bool {
        self.groups.contains_key(&number)
    }

    /// The numbers of all groups.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.groups.keys().copied().collect()
    }

    /// The group for a place, if there is one.
    pub(crate) fn find(&mut self, place: &Place) -> Option<u32> {
        let is_for = |number: &u32| self.groups.get(number).is_some_and(|group| group.place == *place);
        self.last = self.last.filter(is_for).or_else(|| self.by_place.get(place).copied());
        self.last
    }

    /// Whether there is room for a group at a place, and the priority is one of its protocol.
    pub(crate) fn check(&self, place: &Place) -> Result<(), Refused> {
        match self.priorities.get(&(place.block, place.chain, place.priority)) {
            Some((protocol, _)) if *protocol != place.protocol => return Err(Refused::Protocol(*protocol)),
            _ => {}
        }
        let is_full =
            self.chains.get(&(place.block, place.chain)).is_some_and(|chain| chain.len() >= MAX_GROUPS_OF_CHAIN);
        if is_full && !self.by_place.contains_key(place) { Err(Refused::NoRoom("mask")) } else { Ok(()) }
    }

    /// Makes a group for a place that has none.
    pub(crate) fn add_group(&mut self, number: u32, place: Place, first: RuleId) {
        // Groups that differ in ranges alone have one mask, whose place in the order they share.
        let same_mask = self.chains.get(&(place.block, place.chain)).into_iter().flatten().find_map(|(_, other)| {
            let other = self.groups.get(other)?;
            let same = other.place.priority == place.priority
                && other.place.mask == place.mask
                && other.place.src.is_some() == place.src.is_some()
                && other.place.dst.is_some() == place.dst.is_some();
            same.then_some(other.order)
        });
        let order = same_mask.unwrap_or_else(|| {
            self.next_order += 1;
            self.next_order
        });
        let mut group = Group { place, order, rules: 0, ranged: BTreeSet::new() };
        if group.is_ranged() {
            group.ranged.insert(first);
        }
        self.insert(number, group);
    }

    fn insert(&mut self, number: u32, group: Group) {
        let place = &group.place;
        let priority = (place.block, place.chain, place.priority);
        self.priorities.entry(priority).or_insert((place.protocol, 0)).1 += 1;
        self.by_place.insert(place.clone(), number);
        self.chains.entry((place.block, place.chain)).or_default().insert(group.order_in_chain(), number);
        self.groups.insert(number, group);
    }

    /// Counts a rule of a group.
    pub(crate) fn add_rule(&mut self, number: u32, id: RuleId) {
        if let Some(group) = self.groups.get_mut(&number) {
            group.rules += 1;
            if group.is_ranged() {
                self.ordered_anew(number, |group| {
                    group.ranged.insert(id);
                });
            }
        }
    }

    /// Forgets a rule of a group. Returns whether the chain changes.
    pub(crate) fn remove_rule(&mut self, number: u32, id: RuleId) -> bool {
        let Some(group) = self.groups.get_mut(&number) else { return false };
        group.rules -= 1;
        match (group.rules, group.is_ranged()) {
            (0, _) => true,
            (_, true) => self.ordered_anew(number, |group| {
                group.ranged.remove(&id);
            }),
            _ => false,
        }
    }

    /// Changes a group and its place in the chain. Returns whether that is another one.
    fn ordered_anew(&mut self, number: u32, change: impl FnOnce(&mut Group)) -> bool {
        let Some(group) = self.groups.get_mut(&number) else { return false };
        let before = group.order_in_chain();
        change(group);
        let after = group.order_in_chain();
        if let Some(chain) = self.chains.get_mut(&(group.place.block, group.place.chain)) {
            chain.remove(&before);
            chain.insert(after, number);
        }
        before != after
    }

    /// Removes a group that has no rules.
    pub(crate) fn remove_group(&mut self, number: u32) {
        let Some(group) = self.groups.remove(&number) else { return };
        let place = &group.place;
        self.by_place.remove(place);
        if let Some(chain) = self.chains.get_mut(&(place.block, place.chain)) {
            chain.retain(|_, other| *other != number);
            if chain.is_empty() {
                self.chains.remove(&(place.block, place.chain));
            }
        }
        let priority = (place.block, place.chain, place.priority);
        if let Some((_, groups)) = self.priorities.get_mut(&priority) {
            *groups -= 1;
            if *groups == 0 {
                self.priorities.remove(&priority);
            }
        }
    }

    /// The chain as it stands in `chains`, or nothing if it has no groups.
    pub(crate) fn chain(&self, block: u64, chain: u32) -> Option<Vec<u8>> {
        let groups = self.chains.get(&(block, chain))?;
        let is_cached =
            groups.values().filter_map(|number| self.groups.get(number)).all(|group| group.place.is_cached());
        let bytes = Bytes::default().u32(groups.len() as u32).u32(if is_cached { CHAIN_CACHED } else { 0 });
        Some(groups.values().fold(bytes, |bytes, number| bytes.u32(*number)).up_to(CHAIN).0)
    }

    /// Takes a group over that is in the maps.
    pub(crate) fn adopt_group(&mut self, number: u32, bytes: &[u8]) {
        let group = Group::read(bytes);
        self.next_order = self.next_order.max(group.order);
        self.groups.insert(number, group);
    }

    /// Takes a rule over that is in the maps, before [`Book::adopted`].
    pub(crate) fn adopt_rule(&mut self, number: u32, id: RuleId) {
        if let Some(group) = self.groups.get_mut(&number) {
            group.rules += 1;
            if group.is_ranged() {
                group.ranged.insert(id);
            }
        }
    }

    /// Puts in order what was taken over. Groups without rules are left behind.
    pub(crate) fn adopted(&mut self) {
        let groups: Vec<_> =
            std::mem::take(&mut self.groups).into_iter().filter(|(_, group)| group.rules != 0).collect();
        groups.into_iter().for_each(|(number, group)| self.insert(number, group));
    }
}

/// The key of a chain as it stands in `chains`.
pub(crate) fn chain_key(block: u64, chain: u32) -> Vec<u8> {
    Bytes::default().u64(block).u32(chain).u32(0).0
}
