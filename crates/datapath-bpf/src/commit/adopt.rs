//! What is in the maps of a pipeline that was found.

use std::collections::{BTreeSet, VecDeque};
use std::io;

use flow::{Meter, MeterId, Rate, RuleId};

use super::meters::MeterSlot;
use super::{Commits, Installed, Parts, hash_of, next_generation};
use crate::layout::{ActionKind, View, next};
use crate::maps::Loaded;
use crate::slots::Slots;
use crate::sys::Map;

impl Commits {
    /// Reads from the maps what is in them.
    pub(crate) fn adopt(&mut self, loaded: &Loaded) -> io::Result<()> {
        let maps = &loaded.maps;
        for key in maps.chains.keys()? {
            let Some(chain) = maps.chains.get(&key)? else { continue };
            let chain = View(&chain);
            for place in 0..chain.u32(0) as usize {
                let number = chain.u32(8 + 4 * place);
                if let Some(group) = maps.groups.get(&number.to_ne_bytes())? {
                    self.book.adopt_group(number, &group);
                }
            }
            self.dirty.insert((View(&key).u64(0), View(&key).u32(8)));
        }
        for map in [&maps.rules, &maps.long_rules] {
            for key in map.keys()? {
                if let Some(value) = map.get(&key)? {
                    self.adopt_rule(loaded, map, key, View(&value))?;
                }
            }
        }
        self.book.adopted();
        self.adopt_meters(loaded)?;
        let rules = || self.rules.values();
        let taken: Vec<u32> = rules().map(|rule| rule.index).collect();
        self.indexes = Slots::with_taken(0, maps.counters.max_entries / self.cpus as u32, &taken);
        let taken: Vec<u32> =
            rules().flat_map(|rule| rule.parts.iter().flat_map(|parts| parts.actions.iter().copied())).collect();
        self.actions = Slots::with_taken(1, maps.actions.max_entries, &taken);
        self.groups = Slots::with_taken(0, maps.groups.max_entries, &self.book.numbers());
        let taken: Vec<u32> = self.encap_bytes.keys().copied().collect();
        self.encaps = Slots::with_taken(0, maps.encaps.max_entries, &taken);
        // The process may have ended in the middle of a commit.
        self.write_chains(loaded);
        next_generation(loaded);
        Ok(())
    }

    fn adopt_rule(&mut self, loaded: &Loaded, map: &Map, key: Vec<u8>, value: View<'_>) -> io::Result<()> {
        let group = View(&key).u32(0);
        if !self.book.has_group(group) {
            // Its chain was never written.
            return map.remove(&key).map(drop);
        }
        let id = RuleId(value.u64(0));
        let parts = list_of(loaded, value.u32(12))?;
        for encap in &parts.encaps {
            if let Some(bytes) = loaded.maps.encaps.get(&encap.to_ne_bytes())? {
                self.know_encap(*encap, bytes);
            }
        }
        parts.meters.iter().for_each(|meter| *self.meter_users.entry(*meter).or_default() += 1);
        self.book.adopt_rule(group, id);
        self.by_key.insert(hash_of(&key), id);
        let key = key.into_boxed_slice();
        self.rules.insert(id, Installed { group, key, index: value.u32(8), parts: parts.boxed() });
        Ok(())
    }

    fn adopt_meters(&mut self, loaded: &Loaded) -> io::Result<()> {
        let mut taken = Vec::new();
        for index in 0..loaded.maps.meters.max_entries {
            let Some(value) = loaded.maps.meters.get(&index.to_ne_bytes())? else { continue };
            let value = View(&value);
            let (id, rate, burst) = (MeterId(value.u32(56)), value.u64(8), value.u64(16) / 1_000_000_000);
            if rate == 0 {
                continue;
            }
            let rate = match value.u32(4) {
                0 => Rate::Bytes(rate),
                1 => Rate::Packets(rate),
                _ => Rate::Mtu(rate as u32),
            };
            self.meter_numbers.insert(id, index);
            self.meters.insert(id, MeterSlot { index, meter: Meter { rate, burst } });
            taken.push(index);
        }
        self.meter_slots = Slots::with_taken(0, loaded.maps.meters.max_entries, &taken);
        Ok(())
    }
}

/// The list of actions that begins with this one, and what it uses.
fn list_of(loaded: &Loaded, first: u32) -> io::Result<Parts> {
    let (mut actions, mut meters, mut encaps) = (BTreeSet::new(), Vec::new(), Vec::new());
    let mut waiting = VecDeque::from([first]);
    while let Some(number) = waiting.pop_front() {
        if matches!(number, next::TERMINAL | next::END | next::DROP) || !actions.insert(number) {
            continue;
        }
        let Some(action) = loaded.maps.actions.get(&number.to_ne_bytes())? else { continue };
        let view = View(&action);
        waiting.push_back(view.u32(4));
        if action[0] == ActionKind::Police as u8 {
            meters.push(view.u32(8));
            waiting.push_back(view.u32(12));
        }
        if action[0] == ActionKind::TunnelSet as u8 || action[0] == ActionKind::Ct as u8 {
            encaps.push(view.u32(8));
        }
    }
    let mut actions: Vec<u32> = actions.into_iter().collect();
    actions.sort_unstable_by_key(|number| *number != first);
    Ok(Parts { actions, meters, encaps })
}
