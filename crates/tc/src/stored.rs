//! Filters as they are stored, so that the next process has them.

use std::collections::HashMap;

use flow::{Counter, Port, RuleId};
use serde::{Deserialize, Serialize};

use crate::request::{Netdev, Place, Spec};
use crate::tables::{Filter, Kept, Name, Priority, Tables, name};

/// A filter that is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Where it is.
    pub place: Place,
    /// What it was asked to be.
    pub spec: Spec,
    /// The rule that carries it out.
    pub rule: Option<RuleId>,
    /// When it was made, in milliseconds on the clock of its counters.
    pub made_ms: u64,
    /// What its rule had counted before its actions were changed.
    pub before: Counter,
    /// Whether the kernel has a half of it.
    #[serde(default)]
    pub software: bool,
}

/// A change to what is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// There is this filter now, in the place of any that was there.
    There(Box<Stored>),
    /// The filter of a place is gone.
    Gone(Place),
    /// All filters of a port's netdev are gone, or of the tunnel device with this interface index over it.
    Forgotten(Port, Option<u32>),
}

/// What records have come to.
#[derive(Debug, Default)]
pub struct StoredFilters(HashMap<Name, HashMap<Place, Stored>>);

impl StoredFilters {
    /// Applies a record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::There(stored) => {
                let place = key(stored.place);
                self.0.entry(name(&place.netdev)).or_default().insert(place, *stored);
            }
            Record::Gone(place) => {
                let place = key(place);
                self.0.get_mut(&name(&place.netdev)).and_then(|filters| filters.remove(&place));
            }
            Record::Forgotten(port, tunnel) => drop(self.0.remove(&(port, tunnel))),
        }
    }

    /// The filters, in the order in which they were made.
    pub fn into_filters(self) -> Vec<Stored> {
        let mut filters: Vec<Stored> = self.0.into_values().flat_map(HashMap::into_values).collect();
        filters.sort_by_key(|stored| (stored.made_ms, stored.rule.map(|rule| rule.0)));
        filters
    }

    /// The records that make them.
    pub fn into_records(self) -> impl Iterator<Item = Record> {
        self.0.into_values().flat_map(HashMap::into_values).map(|stored| Record::There(Box::new(stored)))
    }
}

/// The place without what tells nothing apart: the protocol belongs to the priority, and the number to a netdev that is known
/// by its port.
fn key(place: Place) -> Place {
    let netdev = Netdev { number: 0, ..place.netdev };
    Place { netdev, chain: Some(place.chain.unwrap_or(0)), protocol: 0, ..place }
}

impl Tables {
    /// Keeps a record of each change from now on.
    pub fn record(&mut self) {
        self.records.get_or_insert_default();
    }

    /// The changes since the last call, in their order.
    pub fn take_records(&mut self) -> Vec<Record> {
        self.records.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes filters in that were stored. `number`: that of the netdev which a port has now; `None`: it has none, and its
    /// filters are gone.
    pub fn restore(&mut self, filters: Vec<Stored>, number: impl Fn(Port) -> Option<u64>, now_ms: u64) {
        for Stored { mut place, spec, rule, made_ms, before, software } in filters {
            let Some(number) = number(place.netdev.port) else { continue };
            place.netdev.number = number;
            for action in &spec.actions {
                let key = (action.kind, action.index);
                let groups = &mut self.groups;
                let new = || {
                    groups.made(action);
                    Kept { action: action.clone(), bound: 0 }
                };
                self.actions.entry(key).or_insert_with(new).bound += 1;
            }
            self.made += 1;
            let number = self.made;
            let kind = spec.classifier.name();
            let chains = self.chains_or_new(place.netdev, place.side);
            let chain = chains.entry(place.chain.unwrap_or(0)).or_default();
            let priority = chain.entry(place.priority).or_insert_with(|| Priority::new(place.protocol, kind));
            priority.by_match.insert(spec.classifier.clone(), place.handle);
            let made_ms = made_ms.min(now_ms);
            let filter = Filter { spec, rule, number, made_ms, before, reserved: false, software };
            priority.filters.insert(place.handle, filter);
        }
    }
}
