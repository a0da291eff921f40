//! The card's own connection tracking, after `net/netfilter/nf_conntrack_core.c` as `net/sched/act_ct.c` calls it.
//!
//! A connection is known by the addresses and ports of its two directions, in its zone. A new one is remembered when it
//! is committed; until then it is only looked at, and every frame of it is new.
//!
//! Simpler than the kernel:
//!
//! * TCP has the kernel's states, without windows, sequence numbers and counted retransmissions ([`TcpState`]).
//! * SCTP, GRE and other protocols are tracked by address (SCTP by port too), with one time-out and no states.
//! * Checksums are not checked. There are no helpers and no expectations: only ICMP errors are related.
//! * Fragments are not put together: they go to the representor.
//! * When the table is full of connections that live, a new one is not committed and its frame is dropped; none is
//!   dropped early to make room.

mod nat;
mod tcp;
mod tuple;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::action::{Ct, Nat};
use crate::key::{Field, Key};
use crate::parse::{Dissected, Fragment, be16, dissect, protocol};
use crate::state::Transaction;

pub use tcp::{TcpPhase, TcpState};
pub use tuple::Tuple;

use tcp::{Segment, TcpUpdate};

/// The name of a connection, which is never given to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(crate) u64);

/// A direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// That of the first frame.
    Original,
    /// The other one.
    Reply,
}

impl Direction {
    /// The other direction.
    pub fn opposite(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The zone.
    pub zone: u16,
    /// The addresses of a frame in the original direction, before translation.
    pub original: Tuple,
    /// The addresses of a frame in the direction of the reply, before translation.
    pub reply: Tuple,
    /// Whether there has been a reply.
    pub seen_reply: bool,
    /// Whether both sides have agreed to talk, so that the long time-outs apply.
    pub assured: bool,
    /// Whether addresses were chosen for it.
    pub translated: bool,
    /// The mark.
    pub mark: u32,
    /// The label.
    pub label: u128,
    /// When it is over, unless another frame comes.
    pub expires: Duration,
    /// The state of TCP, for TCP.
    pub tcp: Option<TcpState>,
    /// From when on UDP is a stream, with the long time-out.
    stream_from: Duration,
}

/// The time-outs (`udp_timeouts`, `nf_ct_icmp_timeout`, `nf_ct_generic_timeout` in `net/netfilter`).
mod timeout {
    use std::time::Duration;
    pub const UDP: Duration = Duration::from_secs(30);
    pub const UDP_STREAM: Duration = Duration::from_secs(120);
    pub const UDP_STREAM_AFTER: Duration = Duration::from_secs(2);
    pub const ICMP: Duration = Duration::from_secs(30);
    pub const GENERIC: Duration = Duration::from_secs(600);
}

impl Connection {
    fn new(zone: u16, original: Tuple, now: Duration) -> Connection {
        Connection {
            zone,
            original,
            reply: original.inverse(),
            seen_reply: false,
            assured: false,
            translated: false,
            mark: 0,
            label: 0,
            expires: now,
            tcp: None,
            stream_from: now.saturating_add(timeout::UDP_STREAM_AFTER),
        }
    }

    /// The addresses of a frame in a direction, before translation.
    pub fn tuple(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Original => self.original,
            Direction::Reply => self.reply,
        }
    }

    /// Takes note of a frame.
    fn update(&mut self, direction: Direction, segment: Option<&Segment>, now: Duration) -> Update {
        let update = match self.original.protocol {
            protocol::TCP => return self.update_tcp(direction, segment, now),
            protocol::UDP => self.update_udp(now),
            protocol::ICMP | protocol::ICMPV6 => timeout::ICMP,
            _ => timeout::GENERIC,
        };
        self.expires = now.saturating_add(update);
        Update::Accepted
    }

    /// As `nf_conntrack_udp_packet`.
    fn update_udp(&mut self, now: Duration) -> Duration {
        if !self.seen_reply || now <= self.stream_from {
            return timeout::UDP;
        }
        self.assured = true;
        timeout::UDP_STREAM
    }

    fn update_tcp(&mut self, direction: Direction, segment: Option<&Segment>, now: Duration) -> Update {
        let Some(segment) = segment else { return Update::Invalid };
        let tcp = self.tcp.get_or_insert_default();
        match tcp.update(direction, segment, self.seen_reply, self.assured) {
            TcpUpdate::Invalid => Update::Invalid,
            TcpUpdate::Ignored => Update::Accepted,
            TcpUpdate::Reopened => Update::Reopened,
            TcpUpdate::Killed => Update::Killed,
            TcpUpdate::Accepted { timeout, assured } => {
                self.assured |= assured;
                self.expires = timeout.map_or(self.expires, |timeout| now.saturating_add(timeout));
                Update::Accepted
            }
        }
    }
}

/// What a frame did to a connection.
#[derive(Debug, PartialEq, Eq)]
enum Update {
    Accepted,
    /// It is not part of the connection.
    Invalid,
    /// It ends the connection at once.
    Killed,
    /// It begins another connection with the same addresses.
    Reopened,
}

/// The table of connections.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Connections {
    by_id: BTreeMap<ConnectionId, Connection>,
    by_tuple: BTreeMap<(u16, Tuple), (ConnectionId, Direction)>,
    pub(crate) next: u64,
    pub(crate) limit: usize,
}

impl Default for Connections {
    fn default() -> Connections {
        Connections { by_id: BTreeMap::new(), by_tuple: BTreeMap::new(), next: 1, limit: Connections::LIMIT }
    }
}

impl Connections {
    /// How many connections there are room for, unless something else is asked for.
    pub const LIMIT: usize = 1 << 16;

    /// How many connections there are, those that are over and not yet removed included.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Every connection, from the oldest.
    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.by_id.values()
    }

    /// The connection of a frame, and the frame's direction.
    pub fn find(&self, zone: u16, tuple: &Tuple, now: Duration) -> Option<(ConnectionId, Direction)> {
        let (id, direction) = *self.by_tuple.get(&(zone, *tuple))?;
        (self.by_id.get(&id)?.expires > now).then_some((id, direction))
    }

    /// The connections that are over.
    pub(crate) fn expired(&self, now: Duration) -> Vec<ConnectionId> {
        self.by_id.iter().filter(|(_, connection)| connection.expires <= now).map(|(id, _)| *id).collect()
    }

    /// Puts or removes a connection. Returns what was there.
    pub(crate) fn put(&mut self, id: ConnectionId, connection: Option<Connection>) -> Option<Connection> {
        let before = self.by_id.remove(&id);
        if let Some(before) = &before {
            self.by_tuple.remove(&(before.zone, before.original));
            self.by_tuple.remove(&(before.zone, before.reply));
        }
        if let Some(connection) = connection {
            self.by_tuple.insert((connection.zone, connection.original), (id, Direction::Original));
            self.by_tuple.insert((connection.zone, connection.reply), (id, Direction::Reply));
            self.by_id.insert(id, connection);
        }
        before
    }
}

/// What a frame carries after it has been tracked, as an skb its `nf_conn` and `ip_conntrack_info`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tracked {
    zone: u16,
    held: Option<Held>,
    direction: Direction,
    state: u8,
}

/// The connection of a frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Held {
    /// One of the table.
    Confirmed(ConnectionId),
    /// One that has not been committed.
    New(Box<Connection>),
    /// One that the frame itself has ended.
    Ended(Box<Connection>),
}

/// Why a frame cannot be tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CtError {
    /// It is not IP. The kernel drops it.
    NotIp,
    /// It is a fragment, which only software can put together.
    Fragment,
    /// It is an ICMP error about a translated connection, which only software can translate.
    TranslatedError,
    /// There are too many connections.
    TableFull,
    /// Another connection has these addresses.
    Clash,
    /// No address and port of the range is free.
    NoFreePort,
}

impl Tracked {
    fn invalid(zone: u16) -> Tracked {
        let state = Field::CT_TRACKED | Field::CT_INVALID;
        Tracked { zone, held: None, direction: Direction::Original, state }
    }

    fn connection<'a>(&'a self, connections: &'a Connections) -> Option<&'a Connection> {
        match self.held.as_ref()? {
            Held::Confirmed(id) => connections.by_id.get(id),
            Held::New(connection) | Held::Ended(connection) => Some(connection),
        }
    }

    /// Sets the fields `Ct…` of a key (`skb_flow_dissect_ct`).
    pub(crate) fn describe(&self, connections: &Connections, key: &mut Key) {
        key.set(Field::CtState, self.state);
        key.set(Field::CtZone, self.zone);
        if let Some(connection) = self.connection(connections) {
            key.set(Field::CtMark, connection.mark);
            key.set(Field::CtLabel, connection.label);
        }
    }

    /// The state in Open vSwitch's words: `+trk+est`.
    pub(crate) fn words(&self) -> String {
        let bits = [
            (Field::CT_TRACKED, "+trk"),
            (Field::CT_NEW, "+new"),
            (Field::CT_ESTABLISHED, "+est"),
            (Field::CT_RELATED, "+rel"),
            (Field::CT_REPLY, "+rpl"),
            (Field::CT_INVALID, "+inv"),
        ];
        bits.iter().filter(|(bit, _)| self.state & bit != 0).map(|(_, word)| *word).collect()
    }
}

/// Does the action `ct` (`tcf_ct_act`): finds the connection, translates the frame, commits.
///
/// # Errors
/// Why the frame cannot be tracked. What has changed then must be taken back or the frame be dropped.
pub(crate) fn act(
    transaction: &mut Transaction<'_>,
    ct: &Ct,
    tracked: Option<Tracked>,
    frame: &mut [u8],
    now: Duration,
) -> Result<Tracked, CtError> {
    let dissected = dissect(frame);
    match dissected.network {
        None => return Err(CtError::NotIp),
        Some(network) if network.fragment != Fragment::Whole => return Err(CtError::Fragment),
        Some(_) => {}
    }
    let cached = tracked.filter(|tracked| is_cached(transaction, ct, tracked));
    let mut tracked = cached.unwrap_or_else(|| track(transaction, ct.zone, frame, &dissected, now));
    if let Some(nat) = &ct.nat {
        translate(transaction, nat, &mut tracked, frame, now)?;
    }
    if ct.commit {
        commit(transaction, ct, &mut tracked, now)?;
    }
    Ok(tracked)
}

/// Whether the frame need not be tracked again (`tcf_ct_skb_nfct_cached`).
fn is_cached(transaction: &mut Transaction<'_>, ct: &Ct, tracked: &Tracked) -> bool {
    if tracked.zone != ct.zone || tracked.held.is_none() {
        return false;
    }
    let must_turn = ct.force && tracked.direction == Direction::Reply;
    if let (true, Some(Held::Confirmed(id))) = (must_turn, &tracked.held) {
        transaction.put_connection(*id, None);
    }
    !must_turn
}

/// Finds the connection of a frame, or begins one (`nf_conntrack_in`).
fn track(transaction: &mut Transaction<'_>, zone: u16, frame: &[u8], dissected: &Dissected, now: Duration) -> Tracked {
    let Some(tuple) = tuple::of_frame(frame, dissected) else { return Tracked::invalid(zone) };
    if let Some(inside) = tuple::of_icmp_error(frame, dissected) {
        return track_error(transaction, zone, inside, now);
    }
    let segment = tcp::segment(frame, dissected);
    if let Some((id, direction)) = transaction.state().connections.find(zone, &tuple, now)
        && let Some(tracked) = track_known(transaction, zone, id, direction, segment.as_ref(), now)
    {
        return tracked;
    }
    if !tuple.may_begin() {
        return Tracked::invalid(zone);
    }
    let mut connection = Connection::new(zone, tuple, now);
    match connection.update(Direction::Original, segment.as_ref(), now) {
        Update::Invalid | Update::Reopened => Tracked::invalid(zone),
        update => {
            let connection = Box::new(connection);
            let ended = update == Update::Killed;
            let held = if ended { Held::Ended(connection) } else { Held::New(connection) };
            let state = Field::CT_TRACKED | Field::CT_NEW;
            Tracked { zone, held: Some(held), direction: Direction::Original, state }
        }
    }
}

/// Takes note of a frame of a known connection. Returns nothing if it begins another one.
fn track_known(
    transaction: &mut Transaction<'_>,
    zone: u16,
    id: ConnectionId,
    direction: Direction,
    segment: Option<&Segment>,
    now: Duration,
) -> Option<Tracked> {
    let mut connection = transaction.state().connections.by_id.get(&id)?.clone();
    let state = match direction {
        Direction::Reply => Field::CT_TRACKED | Field::CT_ESTABLISHED | Field::CT_REPLY,
        Direction::Original if connection.seen_reply => Field::CT_TRACKED | Field::CT_ESTABLISHED,
        Direction::Original => Field::CT_TRACKED | Field::CT_NEW,
    };
    let update = connection.update(direction, segment, now);
    if update == Update::Invalid {
        return Some(Tracked::invalid(zone));
    }
    connection.seen_reply |= direction == Direction::Reply;
    let held = match update {
        Update::Killed | Update::Reopened => {
            transaction.put_connection(id, None);
            Held::Ended(Box::new(connection))
        }
        _ => {
            transaction.put_connection(id, Some(connection));
            Held::Confirmed(id)
        }
    };
    (update != Update::Reopened).then_some(Tracked { zone, held: Some(held), direction, state })
}

/// Finds the connection about which an ICMP error is (`nf_conntrack_inet_error`).
fn track_error(transaction: &Transaction<'_>, zone: u16, inside: Tuple, now: Duration) -> Tracked {
    let Some((id, direction)) = transaction.state().connections.find(zone, &inside.inverse(), now) else {
        return Tracked::invalid(zone);
    };
    let reply = if direction == Direction::Reply { Field::CT_REPLY } else { 0 };
    let state = Field::CT_TRACKED | Field::CT_RELATED | reply;
    Tracked { zone, held: Some(Held::Confirmed(id)), direction, state }
}

/// Translates the frame, after choosing addresses if the connection is new (`tcf_ct_act_nat`).
fn translate(
    transaction: &mut Transaction<'_>,
    nat: &Nat,
    tracked: &mut Tracked,
    frame: &mut [u8],
    now: Duration,
) -> Result<(), CtError> {
    let is_error = tracked.state & Field::CT_RELATED != 0;
    if let Some(Held::New(connection)) = &mut tracked.held
        && !connection.translated
    {
        nat::choose(&transaction.state().connections, nat, connection, now)?;
    }
    let connections = &transaction.state().connections;
    match tracked.connection(connections) {
        Some(connection) if connection.translated && is_error => Err(CtError::TranslatedError),
        Some(connection) if connection.translated => {
            nat::apply(frame, connection, tracked.direction);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Remembers a new connection, and sets mark and label (`tcf_ct_act_set_mark`, `nf_conntrack_confirm`).
fn commit(transaction: &mut Transaction<'_>, ct: &Ct, tracked: &mut Tracked, now: Duration) -> Result<(), CtError> {
    let Some(connection) = tracked.connection(&transaction.state().connections) else { return Ok(()) };
    let mut connection = connection.clone();
    if let Some((mark, mask)) = ct.mark {
        connection.mark = mark & mask | connection.mark & !mask;
    }
    if let Some((label, mask)) = ct.label {
        connection.label = label & mask | connection.label & !mask;
    }
    let id = match tracked.held {
        Some(Held::Confirmed(id)) => id,
        Some(Held::New(_)) => place(transaction, &connection, now)?,
        Some(Held::Ended(_)) | None => return Ok(()),
    };
    transaction.put_connection(id, Some(connection));
    tracked.held = Some(Held::Confirmed(id));
    Ok(())
}

/// Makes room for a new connection, and gives it a name.
fn place(transaction: &mut Transaction<'_>, connection: &Connection, now: Duration) -> Result<ConnectionId, CtError> {
    for tuple in [connection.original, connection.reply] {
        let table = &transaction.state().connections;
        match table.by_tuple.get(&(connection.zone, tuple)).copied() {
            Some(_) if table.find(connection.zone, &tuple, now).is_some() => return Err(CtError::Clash),
            Some((over, _)) => transaction.put_connection(over, None),
            None => {}
        }
    }
    let table = &transaction.state().connections;
    if table.len() >= table.limit {
        for over in table.expired(now) {
            transaction.put_connection(over, None);
        }
    }
    let table = &transaction.state().connections;
    if table.len() >= table.limit {
        return Err(CtError::TableFull);
    }
    Ok(transaction.next_connection())
}

/// The port of TCP, UDP or SCTP at `offset`.
fn port(frame: &[u8], offset: usize) -> Option<u16> {
    be16(frame, offset)
}
