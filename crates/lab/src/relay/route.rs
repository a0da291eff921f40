//! NETLINK_ROUTE: answered by the kernel, except for the card's netdevs, which the kernel knows as veth devices.
//!
//! Messages go to the kernel unchanged, and its answers come back unchanged, with two exceptions: what the kernel
//! reports of a card's netdev is rewritten to what it would report of a physical one, and what is set of a PF's VFs is
//! set at the card.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devlink::view::{self, Role};
use netlink::rtnl::{
    IFINFOMSG as IFINFO, IFLA_AF_SPEC, IFLA_ALT_IFNAME, IFLA_EXT_MASK, IFLA_GROUP, IFLA_GSO_IPV4_MAX_SIZE,
    IFLA_GSO_MAX_SIZE, IFLA_IFNAME, IFLA_MTU, IFLA_NET_NS_FD, IFLA_NET_NS_PID, IFLA_VFINFO_LIST, RTM_DELLINK,
    RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK,
};
use netlink::{BuildError, Errno, Flags, Message, attributes, find, messages, nlmsgerr_attr, u32_at};
use rustix::net::netdevice::name_to_index;

use crate::card::Refusal;
use crate::cards::{CardNetdev, Cards, Owner, Views};
use crate::limits;
use crate::lock_order::Cx;
use crate::network::Peer;

use super::link::{self, Query};
use super::{Handler, ROOM, Relay, dcb, descriptors, tc, vf};

const NAMESPACES: [u16; 2] = [IFLA_NET_NS_PID, IFLA_NET_NS_FD];

/// In IFLA_AF_SPEC.
const AF_INET: u16 = 2;

/// How many queries are remembered; the answer to an older one has no VFs in it.
const REMEMBERED: usize = 64;

/// The handler of one socket.
#[derive(Default)]
pub(super) struct Route {
    /// Queries for links that are not the plain one, by sequence number.
    queries: VecDeque<(u32, Query)>,
    /// Notifications about netdevs that a card has not published yet, the oldest first.
    held: Vec<Held>,
    /// What the kernel is asked about a filter.
    pub(super) asked: tc::Asked,
}

/// A notification about a netdev that its card has not published yet. The kernel sends it when the card makes the netdev,
/// and the card publishes the netdev at the end of its command. It is held back until then, so that the first that a
/// program hears of a netdev is what it can ask of it.
struct Held {
    peer: Peer,
    index: u32,
    since: Instant,
    message: Vec<u8>,
}

/// How long a notification is held back at most.
const PATIENCE: Duration = Duration::from_secs(2);

impl Handler for Route {
    fn request(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, packet: &[u8]) {
        let mut concerns_card = false;
        for message in messages(packet) {
            match message.header.kind {
                RTM_GETLINK => self.remember(&message),
                RTM_NEWLINK | RTM_SETLINK => {
                    concerns_card |= vfs_in(&message).is_some() || moves(&message) || has_limits(&message);
                }
                RTM_DELLINK | dcb::GET | dcb::SET => concerns_card = true,
                _ => concerns_card |= tc::concerns(&message),
            }
        }
        // Most packets concern no card and have no descriptors in them; they are passed on whole.
        if !concerns_card && !messages(packet).any(|message| descriptors::are_in(&message)) {
            return relay.pass_on(cx, packet);
        }
        let mut buffer = vec![0; ROOM];
        for message in messages(packet) {
            let answered = refuse_to_move(cx, relay, &message)
                || refuse_beyond_limits(cx, relay, &message)
                || refuse_to_delete(cx, relay, &message)
                || set_vfs(cx, relay, &message)
                || dcb::answer(cx, relay, &message)
                || tc::answer(cx, self, relay, &message);
            if !answered {
                let (bytes, _held) = descriptors::translated(&message, relay.sender.process);
                relay.pass_on(cx, &bytes);
            }
            relay.drain(cx, self, &mut buffer);
        }
    }

    fn kernel(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, datagram: &[u8]) {
        let has_links = messages(datagram).any(|m| matches!(m.header.kind, RTM_NEWLINK | RTM_DELLINK));
        if !has_links {
            let left = self.asked.take(datagram, relay.socket.port());
            return relay.queue.push(left);
        }
        self.tick(cx, relay);
        let peers = peers_in(cx, relay, datagram);
        let views = relay.cards.now(cx);
        let own_port = relay.socket.port();
        let cards = Arc::clone(&relay.cards);
        let of =
            |(message, peer): (Message<'_>, Option<Peer>)| self.for_program(&message, peer, (&cards, &views), own_port);
        let rewritten: Vec<Vec<u8>> = messages(datagram).zip(peers).filter_map(of).collect();
        relay.queue.push(rewritten.iter().map(|message| &message[..]));
    }

    fn notification(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, card: usize, datagram: &[u8]) {
        tc::publish(cx, relay, card, datagram);
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn tick(&mut self, cx: Cx<'_, '_>, relay: &mut Relay) {
        if self.held.is_empty() {
            return;
        }
        let views = relay.cards.now(cx);
        let ready = |held: &Held| match views.owner_of(held.peer) {
            Owner::Unpublished => held.since.elapsed() >= PATIENCE,
            Owner::Card(_) | Owner::Nobody => true,
        };
        let (ready, held): (Vec<Held>, Vec<Held>) = self.held.drain(..).partition(ready);
        self.held = held;
        let sent = ready.iter().filter_map(|held| {
            let message = Message::first(&held.message)?;
            link::rewritten(&message, views.netdev(held.peer).as_ref(), Query::default(), None).ok()
        });
        let sent: Vec<Vec<u8>> = sent.collect();
        relay.queue.push(sent.iter().map(|message| &message[..]));
        relay.flush();
    }
}

/// For each message of a datagram, the peer of the card's netdev that it is about.
fn peers_in(cx: Cx<'_, '_>, relay: &mut Relay, datagram: &[u8]) -> Vec<Option<Peer>> {
    match relay.network(cx) {
        Some(network) => network.peers_in(cx, &relay.cards, datagram),
        None => messages(datagram).map(|_| None).collect(),
    }
}

impl Route {
    fn remember(&mut self, message: &Message<'_>) {
        let attributes = message.after(IFINFO).unwrap_or_default();
        let mask = find(attributes, IFLA_EXT_MASK).and_then(|a| a.leading_u32()).unwrap_or(0);
        let query = Query { mask, by_kind: message.header.is_dump() && link::names_kind(attributes) };
        self.queries.retain(|(seq, _)| *seq != message.header.sequence);
        if query == Query::default() {
            return;
        }
        if self.queries.len() == REMEMBERED {
            self.queries.pop_front();
        }
        self.queries.push_back((message.header.sequence, query));
    }

    /// What the program gets of a message of the kernel. `None`: nothing, or nothing yet.
    fn for_program(
        &mut self,
        message: &Message<'_>,
        peer: Option<Peer>,
        (cards, views): (&Cards, &Views),
        own_port: u32,
    ) -> Option<Vec<u8>> {
        let as_it_is = || message.bytes().to_vec();
        let Some(peer) = peer else { return Some(as_it_is()) };
        let netdev = match views.owner_of(peer) {
            Owner::Nobody => return Some(as_it_is()),
            Owner::Card(netdev) => Some(netdev),
            Owner::Unpublished => None,
        };
        let query = self.query_of(message, own_port);
        if netdev.is_none() && !self.may_show_unpublished(message, peer, query.is_some()) {
            return None;
        }
        let query = query.unwrap_or_default();
        if query.by_kind {
            return None;
        }
        // A message that cannot be built is passed on as the kernel sent it.
        let wanted = netdev.as_ref().and_then(|netdev| Some((netdev.card, query.wants_counters(netdev)?)));
        let counters = wanted.map(|(card, pf)| cards.vf_counters(card, pf));
        Some(link::rewritten(message, netdev.as_ref(), query, counters.as_ref()).unwrap_or_else(|_| as_it_is()))
    }

    /// Whether the program gets a message about a netdev that its card has not published. If not, the message is held
    /// back or, if no program will ever see the netdev, dropped.
    fn may_show_unpublished(&mut self, message: &Message<'_>, peer: Peer, is_answer: bool) -> bool {
        let Some(index) = u32_at(message.payload(), 4) else { return true };
        if is_answer {
            // A dump shows the netdevs that exist; and this one does not exist yet.
            return !message.header.flags.contains(Flags::MULTI);
        }
        if message.header.kind == RTM_NEWLINK {
            self.held.push(Held { peer, index, since: Instant::now(), message: message.bytes().to_vec() });
            return false;
        }
        // The card has deleted it. If it has never published it, it has never been seen.
        let before = self.held.len();
        self.held.retain(|held| held.index != index);
        before == self.held.len()
    }

    /// The query that a message of the kernel answers. `None`: it is a notification.
    fn query_of(&self, message: &Message<'_>, own_port: u32) -> Option<Query> {
        // A notification has the port and the number of the request that caused it, which may be another program's.
        let is_answer = own_port != 0 && message.header.port == own_port;
        let query = self.queries.iter().find(|(seq, _)| *seq == message.header.sequence);
        is_answer.then(|| query.map(|(_, query)| *query).unwrap_or_default())
    }
}

/// If a message sets VFs of a card's PF, sets them at the card, passes the rest of the message on to the kernel, and
/// returns `true`.
fn set_vfs(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
    let Some(list) = vfs_in(message) else { return false };
    let Some(netdev) = netdev_in(cx, relay, message) else { return false };
    let card = netdev.card;
    let refusal = |errno| Refusal { errno, message: String::new() };
    let done = match (netdev.role, netdev.parent) {
        _ if !relay.may_administer() => Err(refusal(Errno::PERM)),
        (Role::Pf, view::DeviceName::Pci(device)) => {
            let (commands, outcome) = vf::commands(device, list);
            let performed = commands.iter().try_for_each(|command| relay.cards.perform(card, command));
            performed.and(outcome.map_err(refusal))
        }
        // `mlx5e_netdev_ops_rep` has no `ndo_set_vf_*`.
        (Role::Representor, _) => Err(refusal(Errno::OPNOTSUPP)),
        // The driver has no E-Switch there (`mlx5_eswitch_get_vport`, `mlx5_esw_allowed`).
        (Role::Pf | Role::Vf | Role::Sf, _) => Err(refusal(Errno::PERM)),
    };
    let rest = done.and_then(|()| without_vfs(message).map_err(|error| refusal(error.into())));
    match rest {
        Ok(rest) => {
            for message in messages(&rest) {
                let (bytes, _held) = descriptors::translated(&message, relay.sender.process);
                relay.pass_on(cx, &bytes);
            }
        }
        Err(refusal) => refuse(cx, relay, message, refusal.errno, &refusal.message),
    }
    true
}

/// Answers a request with an error, and with the reason unless `why` is empty.
pub(super) fn refuse(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>, errno: Errno, why: &str) {
    relay.acknowledge(cx, message, Err(errno), |to| {
        if !why.is_empty() {
            to.text(nlmsgerr_attr::MSG, why);
        }
    });
}

/// Whether a message moves a netdev into another network namespace.
fn moves(message: &Message<'_>) -> bool {
    let attributes = message.after(IFINFO).unwrap_or_default();
    sets_link(message) && NAMESPACES.into_iter().any(|kind| find(attributes, kind).is_some())
}

/// Refuses a message that moves a netdev to another network namespace which mlx5 keeps in its own, and returns `true`.
/// The kernel refuses it with the same text (`__dev_change_net_namespace`).
fn refuse_to_move(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
    // A sender that may not move the netdev at all gets the kernel's refusal.
    let may_move = moves(message) && relay.may_administer();
    let netdev = may_move.then(|| netdev_in(cx, relay, message)).flatten();
    let is_pinned = netdev.is_some_and(|netdev| limits::is_netns_immutable(&netdev));
    if is_pinned {
        refuse(cx, relay, message, Errno::INVAL, "The interface netns is immutable");
    }
    is_pinned
}

/// Whether a message sets something that has a limit.
fn has_limits(message: &Message<'_>) -> bool {
    let attributes = message.after(IFINFO).unwrap_or_default();
    let kinds = [IFLA_MTU, IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE];
    sets_link(message) && kinds.into_iter().any(|kind| find(attributes, kind).is_some())
}

/// Refuses a message that sets something of a card's netdev beyond a limit of mlx5's, as `do_setlink` refuses it, and
/// returns `true`.
fn refuse_beyond_limits(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
    let may_set = has_limits(message) && relay.may_administer();
    let Some(netdev) = may_set.then(|| netdev_in(cx, relay, message)).flatten() else { return false };
    let attributes = message.after(IFINFO).unwrap_or_default();
    let exceeds = |kind, limit| find(attributes, kind).and_then(|value| value.u32()).is_some_and(|value| value > limit);
    let size = limits::tso_max_size(&netdev);
    let why = if exceeds(IFLA_MTU, limits::MAX_MTU) {
        limits::MTU_TOO_LARGE
    } else if exceeds(IFLA_GSO_MAX_SIZE, size) || exceeds(IFLA_GSO_IPV4_MAX_SIZE, size) {
        ""
    } else {
        return false;
    };
    refuse(cx, relay, message, Errno::INVAL, why);
    true
}

/// Refuses a message that deletes a netdev of a card, or a group of netdevs with one in it, and returns `true`: only the
/// driver of a netdev of hardware deletes it (`rtnl_dellink`, `rtnl_group_dellink`: no `rtnl_link_ops`).
fn refuse_to_delete(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
    let deletes = message.header.kind == RTM_DELLINK && message.header.is_request() && relay.may_administer();
    if !deletes {
        return false;
    }
    let names_one = u32_at(message.payload(), 4) != Some(0) || name_in(message).is_some();
    let group = message.after(IFINFO).and_then(|content| find(content, IFLA_GROUP)?.u32()).filter(|_| !names_one);
    let concerned = match group {
        Some(group) => relay.network(cx).is_some_and(|network| {
            let views = relay.cards.now(cx);
            let peers = network.peers_in_group(cx, &relay.cards, group);
            peers.into_iter().any(|peer| views.netdev(peer).is_some())
        }),
        None => netdev_in(cx, relay, message).is_some(),
    };
    if concerned {
        refuse(cx, relay, message, Errno::OPNOTSUPP, "");
    }
    concerned
}

/// Whether a message sets something of a link.
fn sets_link(message: &Message<'_>) -> bool {
    matches!(message.header.kind, RTM_NEWLINK | RTM_SETLINK) && message.header.is_request()
}

/// The value of IFLA_VFINFO_LIST in a message that sets something of a link.
fn vfs_in<'a>(message: &Message<'a>) -> Option<&'a [u8]> {
    let attributes = message.after(IFINFO).filter(|_| sets_link(message))?;
    Some(find(attributes, IFLA_VFINFO_LIST)?.value)
}

/// The card's netdev that a request is about, in the program's network namespace.
fn netdev_in(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> Option<CardNetdev> {
    let index = index_in(relay, message)?;
    let network = relay.network(cx)?;
    relay.cards.netdev_at(cx, &network, index)
}

/// The interface index that a request gives, in `struct ifinfomsg` or `struct tcmsg`, or that of the netdev whose name it gives.
pub(super) fn index_in(relay: &Relay, message: &Message<'_>) -> Option<u32> {
    let given = u32_at(message.payload(), 4).filter(|index| *index != 0);
    given.or_else(|| name_to_index(&relay.socket.kernel, name_in(message)?).ok())
}

/// The name of the netdev that a request without an index is about.
fn name_in<'a>(message: &Message<'a>) -> Option<&'a str> {
    let attributes = message.after(IFINFO)?;
    let named = |kind| find(attributes, kind).and_then(|name| name.string());
    named(IFLA_IFNAME).or_else(|| named(IFLA_ALT_IFNAME))
}

/// A message with which the kernel does all but the VFs, and which makes it tell that the netdev has changed.
///
/// After a setting of a VF, `do_setlink` sends RTM_NEWLINK if the netdev is up (`DO_SETLINK_NOTIFY`). It does so, too, after
/// IFLA_AF_SPEC, and an AF_INET with nothing in it changes nothing (`inet_set_link_af`).
fn without_vfs(message: &Message<'_>) -> Result<Vec<u8>, BuildError> {
    let (info, content) = message.payload().split_at(IFINFO.min(message.payload().len()));
    netlink::message(message.header, |to| {
        to.raw(info);
        let is_kept = |kind| kind != IFLA_VFINFO_LIST;
        for attribute in attributes(content).flatten().filter(|attribute| is_kept(attribute.kind)) {
            to.copy(&attribute);
        }
        if find(content, IFLA_AF_SPEC).is_none() {
            to.nest_noflag(IFLA_AF_SPEC, |families| {
                families.nest_noflag(AF_INET, |_| {});
            });
        }
    })
}
