//! Changes of rules and meters: which map is written when, so that a rule is there whole or not at all.
//!
//! What no frame can reach yet is written first (actions, groups), then the rules, and last the chains that have new groups.
//! A removal goes the other way. Numbers of entries that were removed are used again only when no program that began before
//! is still running.

mod adopt;
mod meters;

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::time::Duration;

use flow::{MeterId, Rule, RuleId};

use crate::book::{Book, chain_key};
use crate::compile::{Compiled, Refused, Shape, compile};
use crate::layout::{self, ActionKind, next};
use crate::maps::Loaded;
use crate::pipeline::{Change, Counter};
use crate::slots::Slots;
use crate::sys::{self, Map};

/// A chain of a block.
type ChainName = (u64, u32);

/// A rule that is in the maps.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    group: u32,
    /// Its key in the map of rules.
    key: Box<[u8]>,
    index: u32,
    /// Most rules have none.
    parts: Option<Box<Parts>>,
}

/// The numbers of what a rule has in other maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Parts {
    actions: Vec<u32>,
    meters: Vec<u32>,
    encaps: Vec<u32>,
}

impl Parts {
    fn boxed(self) -> Option<Box<Parts>> {
        (self != Parts::default()).then(|| Box::new(self))
    }
}

/// The hash of a rule's key.
fn hash_of(key: &[u8]) -> u64 {
    let mut hasher = NumberHasher::default();
    key.chunks(8).for_each(|word| {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        hasher.write_u64(hasher.0.rotate_left(5) ^ u64::from_ne_bytes(bytes));
    });
    hasher.finish()
}

/// What is in the maps, and how it is changed.
pub(crate) struct Commits {
    book: Book,
    pub(crate) rules: HashMap<RuleId, Installed, BuildHasherDefault<NumberHasher>>,
    /// That of the last rule.
    shape: Option<Shape>,
    /// By the hash of a rule's key, as rules are many and keys are long.
    by_key: HashMap<u64, RuleId, BuildHasherDefault<NumberHasher>>,
    pub(crate) meter_numbers: HashMap<MeterId, u32>,
    meters: HashMap<MeterId, meters::MeterSlot>,
    meter_users: HashMap<u32, usize>,
    /// By their bytes: the number of an encapsulation or a way to track, and how many rules use it.
    encap_users: HashMap<Vec<u8>, (u32, usize)>,
    encap_bytes: HashMap<u32, Vec<u8>>,
    indexes: Slots,
    actions: Slots,
    groups: Slots,
    encaps: Slots,
    meter_slots: Slots,
    /// Chains that are yet to be written, and the groups that are free when they are.
    dirty: BTreeSet<ChainName>,
    unlisted: Vec<u32>,
    cpus: usize,
}

/// Keys and values that are written at once.
#[derive(Default)]
struct Writes(Vec<u8>, Vec<u8>);

impl Writes {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.0.extend_from_slice(key);
        self.1.extend_from_slice(value);
    }

    /// Writes everything, or says how much was written and why not more.
    fn write(&self, map: &Map) -> Result<(), (usize, i32)> {
        map.put_batch(&self.0, &self.1).map_err(|(done, error)| (done, errno(&error)))
    }
}

/// A rule that is being added.
#[derive(Debug, Clone, Copy)]
struct Pending {
    /// Its place in the results.
    place: usize,
    id: RuleId,
    chain: ChainName,
}

#[derive(Default)]
struct Adding {
    eswitch: u8,
    actions: Writes,
    groups: Writes,
    encaps: Writes,
    short: Writes,
    long: Writes,
    short_rules: Vec<Pending>,
    long_rules: Vec<Pending>,
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn refused(errno: i32, what: &'static str) -> Refused {
    match errno {
        libc::E2BIG | libc::ENOMEM | libc::ENOSPC => Refused::NoRoom(what),
        errno => Refused::Kernel(errno),
    }
}

/// A hasher of numbers that are given out by a counter, or are hashes (SplitMix64's last step).
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(self.0 << 8 | u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = mixed ^ mixed >> 31;
    }
}

fn rules_map<'l>(loaded: &'l Loaded, installed: &Installed) -> &'l Map {
    if installed.key.len() == layout::SHORT_LOOKUP { &loaded.maps.rules } else { &loaded.maps.long_rules }
}

impl Commits {
    /// For maps that are empty.
    pub(crate) fn new(loaded: &Loaded) -> io::Result<Commits> {
        let maps = &loaded.maps;
        let cpus = sys::cpus()?;
        Ok(Commits {
            book: Book::default(),
            rules: HashMap::default(),
            by_key: HashMap::default(),
            shape: None,
            meter_numbers: HashMap::new(),
            meters: HashMap::new(),
            meter_users: HashMap::new(),
            indexes: Slots::new(0, maps.counters.max_entries / cpus as u32),
            // Number 0 stands for the end of a list.
            actions: Slots::new(1, maps.actions.max_entries),
            groups: Slots::new(0, maps.groups.max_entries),
            encaps: Slots::new(0, maps.encaps.max_entries),
            encap_users: HashMap::new(),
            encap_bytes: HashMap::new(),
            meter_slots: Slots::new(0, maps.meters.max_entries),
            dirty: BTreeSet::new(),
            unlisted: Vec::new(),
            cpus,
        })
    }

    /// Carries changes of an E-Switch out, in their order.
    pub(crate) fn commit(&mut self, loaded: &Loaded, eswitch: u8, batch: &[Change<'_>]) -> Vec<Result<(), Refused>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut rest = batch;
        while let Some(first) = rest.first() {
            let kind = std::mem::discriminant(first);
            let count = rest.iter().take_while(|change| std::mem::discriminant(*change) == kind).count();
            let (now, later) = rest.split_at(count);
            match first {
                Change::Add { .. } => self.add(loaded, eswitch, now, &mut results),
                Change::Remove(_) => self.remove(loaded, now, &mut results),
                Change::SetActions { .. } => {
                    let of = now.iter().filter_map(|change| match change {
                        Change::SetActions { id, rule } => Some((*id, *rule)),
                        _ => None,
                    });
                    results.extend(of.map(|(id, rule)| self.set_actions(loaded, id, rule)));
                }
                Change::SetMeter { .. } | Change::RemoveMeter(_) => {
                    results.extend(now.iter().map(|change| self.change_meter(loaded, change)));
                }
            }
            rest = later;
        }
        next_generation(loaded);
        results
    }

    fn add(&mut self, loaded: &Loaded, eswitch: u8, changes: &[Change<'_>], results: &mut Vec<Result<(), Refused>>) {
        let mut adding = Adding { eswitch, ..Adding::default() };
        self.rules.reserve(changes.len());
        self.by_key.reserve(changes.len());
        adding.short.0.reserve(changes.len() * layout::SHORT_LOOKUP);
        adding.short.1.reserve(changes.len() * layout::RULE);
        for change in changes {
            let Change::Add { id, rule } = change else { continue };
            let prepared = self.prepare(loaded, *id, rule, results.len(), &mut adding);
            results.push(prepared);
        }
        let maps = &loaded.maps;
        let hidden = adding.actions.write(&maps.actions).and_then(|()| adding.groups.write(&maps.groups));
        let hidden = hidden.and_then(|()| adding.encaps.write(&maps.encaps));
        let kinds =
            [(&maps.rules, &adding.short, &adding.short_rules), (&maps.long_rules, &adding.long, &adding.long_rules)];
        for (map, rules, pending) in kinds {
            let written = hidden.map_err(|(_, errno)| (0, errno)).and_then(|()| rules.write(map));
            if let Err((done, errno)) = written {
                for pending in &pending[done..] {
                    self.forget(pending.id);
                    results[pending.place] = Err(refused(errno, "rule"));
                }
            }
        }
        for (chain, errno) in self.write_chains(loaded) {
            let pending = adding.short_rules.iter().chain(&adding.long_rules);
            for pending in pending.filter(|pending| pending.chain == chain) {
                if let Some(installed) = self.forget(pending.id) {
                    let _ = rules_map(loaded, &installed).remove(&installed.key);
                }
                results[pending.place] = Err(refused(errno, "chain"));
            }
        }
    }

    /// Writes other actions beside those of a rule, and then has its entry name them.
    fn set_actions(&mut self, loaded: &Loaded, id: RuleId, rule: &Rule) -> Result<(), Refused> {
        let compiled = compile(rule, &self.meter_numbers)?;
        self.make_room(loaded, &compiled, (false, false))?;
        let installed = self.rules.get(&id).ok_or(Refused::Unknown)?.clone();
        let mut adding = Adding::default();
        let parts = self.place_parts(&compiled, &mut adding)?;
        let first = parts.actions.first().copied().unwrap_or(next::TERMINAL);
        let value = layout::rule(id.0, installed.index, first, compiled.walk, compiled.terminal);
        let maps = &loaded.maps;
        let hidden = adding.actions.write(&maps.actions).and_then(|()| adding.encaps.write(&maps.encaps));
        let written = hidden
            .map_err(|(_, errno)| errno)
            .and_then(|()| rules_map(loaded, &installed).put(&installed.key, &value).map_err(|error| errno(&error)));
        if let Err(errno) = written {
            self.release(&parts);
            return Err(refused(errno, "action"));
        }
        let old = self.rules.get_mut(&id).and_then(|installed| std::mem::replace(&mut installed.parts, parts.boxed()));
        old.iter().for_each(|old| self.release(old));
        Ok(())
    }

    /// Takes numbers for what a rule has in other maps, and notes what is to be written.
    fn place_parts(&mut self, compiled: &Compiled, adding: &mut Adding) -> Result<Parts, Refused> {
        let encaps = self.place_encaps(compiled, adding)?;
        let actions = self.place_actions(compiled, &encaps, adding)?;
        let meters: Vec<u32> = compiled.meters.iter().filter_map(|id| self.meter_numbers.get(id).copied()).collect();
        meters.iter().for_each(|meter| *self.meter_users.entry(*meter).or_default() += 1);
        Ok(Parts { actions, meters, encaps })
    }

    /// Gives back what a rule had in other maps.
    fn release(&mut self, parts: &Parts) {
        parts.actions.iter().for_each(|action| self.actions.give_back(*action));
        for meter in &parts.meters {
            self.meter_users.entry(*meter).and_modify(|users| *users -= 1);
        }
        parts.encaps.iter().for_each(|encap| self.forget_encap(*encap));
    }

    /// Takes numbers for a rule and its parts, and notes what is to be written.
    fn prepare(
        &mut self,
        loaded: &Loaded,
        id: RuleId,
        rule: &Rule,
        place: usize,
        adding: &mut Adding,
    ) -> Result<(), Refused> {
        if self.rules.contains_key(&id) {
            return Err(Refused::Exists);
        }
        let shape = self.shape.take().filter(|shape| shape.is_of(adding.eswitch, rule));
        let shape = shape.unwrap_or_else(|| Shape::of(adding.eswitch, rule));
        let prepared = self.prepare_shaped(loaded, (id, rule), &shape, place, adding);
        self.shape = Some(shape);
        prepared
    }

    fn prepare_shaped(
        &mut self,
        loaded: &Loaded,
        (id, rule): (RuleId, &Rule),
        shape: &Shape,
        place: usize,
        adding: &mut Adding,
    ) -> Result<(), Refused> {
        let compiled = compile(rule, &self.meter_numbers)?;
        let known = self.book.find(&shape.place);
        let known_key = known.map(|group| shape.lookup_key(group, rule));
        match &known_key {
            Some(key) if self.has_key(key) => return Err(Refused::Exists),
            Some(_) => {}
            None => self.book.check(&shape.place)?,
        }
        self.make_room(loaded, &compiled, (true, known.is_none()))?;
        let ranged = shape.place.src.is_some() || shape.place.dst.is_some();
        let group = match known {
            Some(group) => group,
            None => self.add_group(id, shape, adding)?,
        };
        let chain = shape.chain();
        if known.is_none() || ranged {
            self.dirty.insert(chain);
        }
        self.book.add_rule(group, id);
        let index = self.indexes.take().ok_or(Refused::NoRoom("rule"))?;
        self.zero_counter(loaded, index);
        let parts = self.place_parts(&compiled, adding)?;
        let key = known_key.unwrap_or_else(|| shape.lookup_key(group, rule));
        let first = parts.actions.first().copied().unwrap_or(next::TERMINAL);
        let value = layout::rule(id.0, index, first, compiled.walk, compiled.terminal);
        let (writes, pending) = match shape.is_long() {
            true => (&mut adding.long, &mut adding.long_rules),
            false => (&mut adding.short, &mut adding.short_rules),
        };
        writes.push(&key, &value);
        pending.push(Pending { place, id, chain });
        self.by_key.insert(hash_of(&key), id);
        self.rules.insert(id, Installed { group, key, index, parts: parts.boxed() });
        Ok(())
    }

    /// Whether there is a rule with this key in the map of rules.
    fn has_key(&self, key: &[u8]) -> bool {
        let other = self.by_key.get(&hash_of(key)).and_then(|other| self.rules.get(other));
        other.is_some_and(|other| *other.key == *key)
    }

    /// Sees to it that there are numbers for a rule's parts, for itself if it has none (`rule`), and for a group if it needs one.
    fn make_room(&mut self, loaded: &Loaded, compiled: &Compiled, (rule, group): (bool, bool)) -> Result<(), Refused> {
        let actions = compiled.actions.len();
        let encaps = compiled.encaps.iter().filter(|encap| !self.encap_users.contains_key(*encap)).count();
        let missing = |commits: &Commits| {
            let wanted = [
                (&commits.indexes, rule.into(), "rule"),
                (&commits.actions, actions, "action"),
                (&commits.groups, group.into(), "mask"),
                (&commits.encaps, encaps, "tunnel or ct"),
            ];
            let missing = wanted.into_iter().find(|(slots, count, _)| slots.ready() < *count);
            missing.map(|(slots, _, what)| (slots.has_resting(), what))
        };
        if let Some((true, _)) = missing(self) {
            // What was given back may still be in the cache, or in the hands of a program.
            next_generation(loaded);
            sys::wait_for_programs();
            let slots = [&mut self.indexes, &mut self.actions, &mut self.groups, &mut self.encaps];
            slots.into_iter().for_each(Slots::recycle);
        }
        missing(self).map_or(Ok(()), |(_, what)| Err(Refused::NoRoom(what)))
    }

    fn add_group(&mut self, first: RuleId, shape: &Shape, adding: &mut Adding) -> Result<u32, Refused> {
        let number = self.groups.take().ok_or(Refused::NoRoom("mask"))?;
        self.book.add_group(number, shape.place.clone(), first);
        if let Some(group) = self.book.group(number) {
            adding.groups.push(&number.to_ne_bytes(), &group.bytes());
        }
        Ok(number)
    }

    /// Gives each action its number, and notes it.
    fn place_actions(&mut self, compiled: &Compiled, encaps: &[u32], adding: &mut Adding) -> Result<Vec<u32>, Refused> {
        let numbers: Option<Vec<u32>> = compiled.actions.iter().map(|_| self.actions.take()).collect();
        let numbers = numbers.ok_or(Refused::NoRoom("action"))?;
        let number = |place: u32| match place {
            next::TERMINAL | next::END | next::DROP => place,
            place => numbers[place as usize - 1],
        };
        for (own, entry) in numbers.iter().zip(&compiled.actions) {
            let mut entry = entry.clone();
            entry.next = number(entry.next);
            if entry.kind == ActionKind::Police {
                entry.alternative = number(entry.alternative);
            }
            if matches!(entry.kind, ActionKind::TunnelSet | ActionKind::Ct) {
                entry.arg = encaps[entry.arg as usize];
            }
            adding.actions.push(&own.to_ne_bytes(), &entry.bytes());
        }
        Ok(numbers)
    }

    /// The number of each encapsulation and way to track, of which rules share those that are the same.
    fn place_encaps(&mut self, compiled: &Compiled, adding: &mut Adding) -> Result<Vec<u32>, Refused> {
        let mut numbers = Vec::with_capacity(compiled.encaps.len());
        for encap in &compiled.encaps {
            let number = match self.encap_users.get_mut(encap) {
                Some((number, users)) => {
                    *users += 1;
                    *number
                }
                None => {
                    let number = self.encaps.take().ok_or(Refused::NoRoom("tunnel or ct"))?;
                    adding.encaps.push(&number.to_ne_bytes(), encap);
                    self.know_encap(number, encap.clone());
                    number
                }
            };
            numbers.push(number);
        }
        Ok(numbers)
    }

    fn know_encap(&mut self, number: u32, encap: Vec<u8>) {
        self.encap_users.entry(encap.clone()).or_insert((number, 0)).1 += 1;
        self.encap_bytes.insert(number, encap);
    }

    fn forget_encap(&mut self, number: u32) {
        let Some(encap) = self.encap_bytes.get(&number) else { return };
        if let Some((_, users)) = self.encap_users.get_mut(encap) {
            *users -= 1;
            if *users == 0 {
                self.encap_users.remove(encap);
                self.encap_bytes.remove(&number);
                self.encaps.give_back(number);
            }
        }
    }

    fn remove(&mut self, loaded: &Loaded, changes: &[Change<'_>], results: &mut Vec<Result<(), Refused>>) {
        for change in changes {
            let Change::Remove(id) = change else { continue };
            let removed = match self.rules.get(id) {
                None => Err(Refused::Unknown),
                Some(installed) => match rules_map(loaded, installed).remove(&installed.key) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Refused::Kernel(errno(&error))),
                },
            };
            if removed.is_ok() {
                self.forget(*id);
            }
            results.push(removed);
        }
        // A chain that cannot be written has groups without rules, until the next commit.
        let _ = self.write_chains(loaded);
    }

    /// Forgets a rule that is not in the map of rules any more.
    fn forget(&mut self, id: RuleId) -> Option<Installed> {
        let installed = self.rules.remove(&id)?;
        self.by_key.remove(&hash_of(&installed.key));
        self.indexes.give_back(installed.index);
        installed.parts.iter().for_each(|parts| self.release(parts));
        let chain = self.book.group(installed.group).map(|group| (group.place.block, group.place.chain));
        if self.book.remove_rule(installed.group, id)
            && let Some(chain) = chain
        {
            self.dirty.insert(chain);
        }
        if self.book.group(installed.group).is_some_and(|group| group.rules == 0) {
            self.book.remove_group(installed.group);
            self.unlisted.push(installed.group);
        }
        Some(installed)
    }

    /// Writes the chains that have changed. Returns those that could not be written, which stay as they were.
    fn write_chains(&mut self, loaded: &Loaded) -> Vec<(ChainName, i32)> {
        let mut failed = Vec::new();
        for (block, chain) in std::mem::take(&mut self.dirty) {
            let key = chain_key(block, chain);
            let written = match self.book.chain(block, chain) {
                Some(value) => loaded.maps.chains.put(&key, &value),
                None => loaded.maps.chains.remove(&key).map(drop),
            };
            if let Err(error) = written {
                failed.push(((block, chain), errno(&error)));
                self.dirty.insert((block, chain));
            }
        }
        if failed.is_empty() {
            self.unlisted.drain(..).for_each(|group| self.groups.give_back(group));
        }
        failed
    }

    /// The counter of a rule, or zero.
    pub(crate) fn counter(&self, loaded: &Loaded, id: RuleId) -> Counter {
        let Some(installed) = self.rules.get(&id) else { return Counter::default() };
        let words = self.counter_words(loaded, installed.index);
        words.fold(Counter::default(), |counter, word| Counter {
            packets: counter.packets.wrapping_add(loaded.counters.get(word)),
            bytes: counter.bytes.wrapping_add(loaded.counters.get(word + 1)),
            last_used: counter.last_used.max(Duration::from_nanos(loaded.counters.get(word + 2))),
        })
    }

    /// Where the counter of each CPU begins.
    fn counter_words(&self, loaded: &Loaded, index: u32) -> impl Iterator<Item = usize> + use<> {
        let rules = loaded.max_rules;
        (0..self.cpus).map(move |cpu| (cpu * rules + index as usize) * 3)
    }

    fn zero_counter(&self, loaded: &Loaded, index: u32) {
        for word in self.counter_words(loaded, index) {
            // Pages that were never written to stay so.
            (word..word + 3)
                .filter(|word| loaded.counters.get(*word) != 0)
                .for_each(|word| loaded.counters.set(word, 0));
        }
    }
}

/// Makes every cached answer void.
fn next_generation(loaded: &Loaded) {
    loaded.control.set(0, loaded.control.get(0) + 1);
}
