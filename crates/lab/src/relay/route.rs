//! NETLINK_ROUTE: answered by the kernel, except for the card's netdevs, which the kernel knows as veth devices.
//!
//! Messages go to the kernel unchanged, and its answers come back unchanged, with two exceptions: what the kernel
//! reports of a card's netdev is rewritten to what it would report of a physical one, and what is set of a PF's VFs is
//! set at the card.

use std::collections::VecDeque;

use devlink::view::{self, Role};
use netlink::rtnl::{
    IFINFOMSG as IFINFO, IFLA_ALT_IFNAME, IFLA_EXT_MASK, IFLA_IFNAME, IFLA_NET_NS_FD, IFLA_NET_NS_PID,
    IFLA_VFINFO_LIST, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK,
};
use netlink::{BuildError, Errno, Flags, Message, attributes, find, messages, nlmsgerr_attr, u32_at};

use crate::card::Refusal;
use crate::cards::{IndexedView, Views};
use crate::lock_order::Cx;

use super::link::{self, Query};
use super::{Handler, ROOM, Relay, descriptors, vf};

const NAMESPACES: [u16; 2] = [IFLA_NET_NS_PID, IFLA_NET_NS_FD];

/// How many queries are remembered; the answer to an older one has no VFs in it.
const REMEMBERED: usize = 64;

/// The handler of one socket.
#[derive(Default)]
pub(super) struct Route {
    /// Queries for links that are not the plain one, by sequence number.
    queries: VecDeque<(u32, Query)>,
}

impl Handler for Route {
    fn request(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, packet: &[u8]) {
        let mut concerns_card = false;
        for message in messages(packet) {
            match message.header.kind {
                RTM_GETLINK => self.remember(&message),
                RTM_NEWLINK | RTM_SETLINK => concerns_card |= vfs_in(&message).is_some() || moves(&message),
                _ => {}
            }
        }
        // Most packets concern no card and have no descriptors in them; they are passed on whole.
        if !concerns_card && !messages(packet).any(|message| descriptors::are_in(&message)) {
            return relay.pass_on(cx, packet);
        }
        let mut buffer = vec![0; ROOM];
        for message in messages(packet) {
            if !refuse_to_move_uplink(cx, relay, &message) && !set_vfs(cx, relay, &message) {
                let (bytes, _held) = descriptors::translated(&message, relay.sender.process);
                relay.pass_on(cx, &bytes);
            }
            relay.drain(cx, self, &mut buffer);
        }
    }

    fn kernel(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, datagram: &[u8]) {
        let has_links = messages(datagram).any(|m| matches!(m.header.kind, RTM_NEWLINK | RTM_DELLINK));
        if !has_links {
            return relay.queue.push(messages(datagram).map(|m| m.bytes()));
        }
        let views = relay.cards.now(cx);
        let mut rewritten: Vec<Option<Vec<u8>>> = Vec::new();
        let mut omitted: Vec<bool> = Vec::new();
        for message in messages(datagram) {
            let found = self.netdev_of(&message, &views);
            omitted.push(found.as_ref().is_some_and(|(_, query)| query.by_kind));
            rewritten.push(found.and_then(|((card, view, netdev), query)| {
                let counters = query.wants_counters(netdev).map(|pf| relay.cards.vf_counters(card, pf));
                // A message that cannot be built is passed on as the kernel sent it.
                link::rewritten(&message, view, netdev, query, counters.as_ref()).ok()
            }));
        }
        let messages = messages(datagram).zip(&rewritten).zip(&omitted).filter(|(_, omitted)| !**omitted);
        relay.queue.push(messages.map(|((message, rewritten), _)| rewritten.as_deref().unwrap_or(message.bytes())));
    }
}

/// A netdev, with its card's index and view.
type Netdev<'a> = (usize, &'a IndexedView, &'a view::Netdev);

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

    /// The card's netdev that a message of the kernel is about, and the query that it answers.
    fn netdev_of<'n>(&self, message: &Message<'_>, views: &'n Views) -> Option<(Netdev<'n>, Query)> {
        if !matches!(message.header.kind, RTM_NEWLINK | RTM_DELLINK) {
            return None;
        }
        let name = find(message.after(IFINFO)?, IFLA_IFNAME)?;
        let netdev = views.netdev(name.string()?)?;
        // A notification, with a port of 0, answers no query.
        let query = self.queries.iter().find(|(seq, _)| message.header.port != 0 && *seq == message.header.sequence);
        Some((netdev, query.map(|(_, query)| *query).unwrap_or_default()))
    }
}

/// If a message sets VFs of a card's PF, sets them at the card, passes the rest of the message on to the kernel, and
/// returns `true`.
fn set_vfs(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
    let (Some(list), Some(name)) = (vfs_in(message), name_in(relay, message)) else { return false };
    let views = relay.cards.now(cx);
    let Some((card, _, netdev)) = views.netdev(&name) else { return false };
    let view::DeviceName::Pci(device) = netdev.parent else { return false };
    let refusal = |errno| Refusal { errno, message: String::new() };
    let done = if relay.may_administer() {
        let (commands, outcome) = vf::commands(device, list);
        let performed = commands.iter().try_for_each(|command| relay.cards.perform(card, command));
        performed.and(outcome.map_err(refusal))
    } else {
        Err(refusal(Errno::PERM))
    };
    let rest = done.and_then(|()| without_vfs(message).map_err(|error| refusal(error.into())));
    match rest {
        Ok(Some(rest)) => {
            for message in messages(&rest) {
                let (bytes, _held) = descriptors::translated(&message, relay.sender.process);
                relay.pass_on(cx, &bytes);
            }
        }
        Ok(None) if message.header.flags.contains(Flags::ACK) => relay.acknowledge(cx, message, Ok(()), |_| {}),
        Ok(None) => {}
        Err(refusal) => refuse(cx, relay, message, refusal.errno, &refusal.message),
    }
    true
}

/// Answers a request with an error, and with the reason unless `why` is empty.
fn refuse(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>, errno: Errno, why: &str) {
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

/// Refuses a message that moves the uplink's netdev to another network namespace in switchdev mode, and returns `true`.
/// The kernel refuses it with the same text (`__dev_change_net_namespace`).
fn refuse_to_move_uplink(cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
    // A sender that may not move the netdev at all gets the kernel's refusal.
    let may_move = moves(message) && relay.may_administer();
    let Some(name) = may_move.then(|| name_in(relay, message)).flatten() else { return false };
    let views = relay.cards.now(cx);
    let is_pinned = views.netdev(&name).is_some_and(|(_, _, netdev)| netdev.role == Role::Pf && netdev.in_switch);
    if is_pinned {
        refuse(cx, relay, message, Errno::INVAL, "The interface netns is immutable");
    }
    is_pinned
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

/// The name of the netdev that a request is about, in the program's network namespace.
fn name_in(relay: &Relay, message: &Message<'_>) -> Option<String> {
    let index = u32_at(message.payload(), 4).filter(|index| *index != 0);
    if let Some(index) = index {
        return rustix::net::netdevice::index_to_name(&relay.socket.kernel, index).ok();
    }
    let attributes = message.after(IFINFO)?;
    let named = |kind| find(attributes, kind)?.string().map(str::to_owned);
    named(IFLA_IFNAME).or_else(|| named(IFLA_ALT_IFNAME))
}

/// A message without its VFs. `None`: nothing else is set by it.
fn without_vfs(message: &Message<'_>) -> Result<Option<Vec<u8>>, BuildError> {
    let Some((info, content)) = message.payload().split_first_chunk::<IFINFO>() else { return Ok(None) };
    // The last eight bytes are the flags, and the mask of those that are to change.
    let mut anything = info[8..] != [0; 8];
    let rest = netlink::message(message.header, |to| {
        to.raw(info);
        for attribute in attributes(content).flatten().filter(|a| a.kind != IFLA_VFINFO_LIST) {
            anything |= !matches!(attribute.kind, IFLA_IFNAME | IFLA_ALT_IFNAME | IFLA_EXT_MASK);
            to.copy(&attribute);
        }
    })?;
    Ok(anything.then_some(rest))
}
