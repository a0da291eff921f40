//! What frames change: counters, meters, connections. And how a change is taken back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::conntrack::{Connection, ConnectionId, Connections};
use crate::meter::{Bucket, MeterId};
use crate::rule::RuleId;

/// How often a rule was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Counter {
    /// Frames that matched.
    pub packets: u64,
    /// Their bytes, with the Ethernet header and without the frame check sequence, as they were when they matched.
    pub bytes: u64,
    /// When the last one matched.
    pub last_used: Duration,
}

/// Everything that a run can change. A clone is a copy of the whole; two states are equal if nothing differs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    counters: BTreeMap<RuleId, Counter>,
    buckets: BTreeMap<MeterId, Bucket>,
    pub(crate) connections: Connections,
    random: u64,
}

impl State {
    /// A state in which nothing has happened. What is random in the kernel follows from `seed`.
    pub fn new(seed: u64) -> State {
        State { counters: BTreeMap::new(), buckets: BTreeMap::new(), connections: Connections::default(), random: seed }
    }

    /// The same, with room for at most `limit` connections.
    pub fn with_connection_limit(mut self, limit: usize) -> State {
        self.connections.limit = limit;
        self
    }

    /// The counter of a rule.
    pub fn counter(&self, rule: RuleId) -> Counter {
        self.counters.get(&rule).copied().unwrap_or_default()
    }

    /// The tokens and counts of a meter, if it has been used.
    pub fn bucket(&self, meter: MeterId) -> Option<&Bucket> {
        self.buckets.get(&meter)
    }

    /// The connections that are tracked.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Forgets everything but what is random from here on and how many connections there is room for.
    pub fn clear(&mut self) {
        self.counters.clear();
        self.buckets.clear();
        let limit = self.connections.limit;
        self.connections = Connections::default();
        self.connections.limit = limit;
    }

    /// Forgets the counter of a rule that has been removed.
    pub fn forget_rule(&mut self, rule: RuleId) {
        self.counters.remove(&rule);
    }

    /// Forgets a meter that has been removed.
    pub fn forget_meter(&mut self, meter: MeterId) {
        self.buckets.remove(&meter);
    }

    /// Removes the connections whose time is over. Returns how many there were.
    pub fn expire_connections(&mut self, now: Duration) -> usize {
        let expired = self.connections.expired(now);
        for id in &expired {
            self.connections.put(*id, None);
        }
        expired.len()
    }
}

/// Changes to a state that can be taken back.
///
/// Each change notes what was there before. Without [`Transaction::commit`], [`Transaction::roll_back`] makes the state
/// equal to what it was.
pub(crate) struct Transaction<'s> {
    state: &'s mut State,
    undo: Vec<Undo>,
}

enum Undo {
    Counter(RuleId, Option<Counter>),
    Bucket(MeterId, Option<Bucket>),
    Connection(ConnectionId, Option<Connection>),
    NextConnection(u64),
    Random(u64),
}

impl<'s> Transaction<'s> {
    pub(crate) fn new(state: &'s mut State) -> Transaction<'s> {
        Transaction { state, undo: Vec::new() }
    }

    pub(crate) fn state(&self) -> &State {
        self.state
    }

    /// Keeps every change.
    pub(crate) fn commit(self) {}

    /// Takes every change back, the last one first.
    pub(crate) fn roll_back(self) {
        let Transaction { state, undo } = self;
        for change in undo.into_iter().rev() {
            match change {
                Undo::Counter(id, before) => restore(&mut state.counters, id, before),
                Undo::Bucket(id, before) => restore(&mut state.buckets, id, before),
                Undo::Connection(id, before) => {
                    state.connections.put(id, before);
                }
                Undo::NextConnection(before) => state.connections.next = before,
                Undo::Random(before) => state.random = before,
            }
        }
    }

    /// Counts a frame for a rule.
    pub(crate) fn count(&mut self, rule: RuleId, bytes: usize, now: Duration) {
        let before = self.state.counters.get(&rule).copied();
        self.undo.push(Undo::Counter(rule, before));
        let counter = before.unwrap_or_default();
        let counter = Counter {
            packets: counter.packets.saturating_add(1),
            bytes: counter.bytes.saturating_add(bytes as u64),
            last_used: counter.last_used.max(now),
        };
        self.state.counters.insert(rule, counter);
    }

    /// Puts the bucket of a meter.
    pub(crate) fn put_bucket(&mut self, meter: MeterId, bucket: Bucket) {
        let before = self.state.buckets.insert(meter, bucket);
        self.undo.push(Undo::Bucket(meter, before));
    }

    /// Puts or removes a connection.
    pub(crate) fn put_connection(&mut self, id: ConnectionId, connection: Option<Connection>) {
        let before = self.state.connections.put(id, connection);
        self.undo.push(Undo::Connection(id, before));
    }

    /// A name for a new connection, which none had before.
    pub(crate) fn next_connection(&mut self) -> ConnectionId {
        let next = self.state.connections.next;
        self.undo.push(Undo::NextConnection(next));
        self.state.connections.next = next + 1;
        ConnectionId(next)
    }

    /// The next random number (SplitMix64).
    pub(crate) fn random(&mut self) -> u64 {
        self.undo.push(Undo::Random(self.state.random));
        self.state.random = self.state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state.random ^ self.state.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

fn restore<Id: Ord, Value>(map: &mut BTreeMap<Id, Value>, id: Id, before: Option<Value>) {
    match before {
        Some(value) => drop(map.insert(id, value)),
        None => drop(map.remove(&id)),
    }
}
