//! NETLINK_ROUTE: the kernel's, but for the card's netdevs, which it knows as something else.
//!
//! Messages go to the kernel as they are, and its answers come back as they are, except: what it says of a
//! card's netdev is made what it would say of a physical one, and what is set of a PF's VFs is set at the
//! card.

use std::collections::VecDeque;

use devlink::view::Role;
use netlink::Errno;

use crate::card::Refusal;
use crate::message::{Attributes, Builder, Message, Messages, NLM_F_ACK, reason, u32_at, verdict};

use super::link::{self, Asked};
use super::{Behind, Io, ROOM, descriptors, vf};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
/// Length of `struct ifinfomsg`.
const IFINFO: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_ALT_IFNAME: u16 = 53;
/// IFLA_NET_NS_PID, IFLA_NET_NS_FD.
const NAMESPACES: [u16; 2] = [19, 28];

/// How many questions are remembered; an answer to an older one says nothing of VFs.
const REMEMBERED: usize = 64;

#[derive(Default)]
pub(super) struct Route {
    /// What links were asked for, by sequence number.
    asked: VecDeque<(u32, Asked)>,
}

impl Behind for Route {
    fn request(&mut self, io: &mut Io, packet: &[u8]) {
        let mut ours = false;
        for message in Messages(packet) {
            match message.kind {
                RTM_GETLINK => self.remember(&message),
                RTM_NEWLINK | RTM_SETLINK => ours |= vfs_in(&message).is_some() || moves(&message),
                _ => {}
            }
        }
        // Most have none of either, and go as they are.
        if !ours && !Messages(packet).any(|message| descriptors::are_in(&message)) {
            return io.pass_on(packet);
        }
        let mut buffer = vec![0; ROOM];
        for message in Messages(packet) {
            if !stays(io, &message) && !self.set_vfs(io, &message) {
                let (bytes, _held) = descriptors::ours(&message, io.sender.process);
                io.pass_on(&bytes);
            }
            io.drain(self, &mut buffer);
        }
    }

    fn kernel(&mut self, io: &mut Io, datagram: &[u8]) {
        let has_links = Messages(datagram).any(|m| matches!(m.kind, RTM_NEWLINK | RTM_DELLINK));
        if !has_links {
            return io.queue.push(Messages(datagram).map(|m| m.bytes));
        }
        let now = io.cards.now();
        let mut made: Vec<Option<Vec<u8>>> = Vec::new();
        let mut gone: Vec<bool> = Vec::new();
        for message in Messages(datagram) {
            let known = self.known(&message, &now);
            gone.push(known.as_ref().is_some_and(|(_, asked)| asked.by_kind));
            made.push(known.map(|((seen, netdev), asked)| link::rewritten(&message, seen, netdev, asked)));
        }
        let messages = Messages(datagram).zip(&made).zip(&gone).filter(|(_, gone)| !**gone);
        io.queue.push(messages.map(|((message, made), _)| made.as_deref().unwrap_or(message.bytes)));
    }
}

type Netdev<'a> = (&'a crate::cards::Seen, &'a devlink::view::Netdev);

impl Route {
    fn remember(&mut self, message: &Message<'_>) {
        let attributes = message.body().get(IFINFO..).unwrap_or_default();
        let mask = Attributes::find(attributes, IFLA_EXT_MASK).and_then(|a| a.u32()).unwrap_or(0);
        let asked = Asked { mask, by_kind: message.is_dump() && link::asks_for_kind(attributes) };
        self.asked.retain(|(seq, _)| *seq != message.seq);
        if asked == Asked::default() {
            return;
        }
        if self.asked.len() == REMEMBERED {
            self.asked.pop_front();
        }
        self.asked.push_back((message.seq, asked));
    }

    /// The card's netdev that a message of the kernel is about, and what was asked.
    fn known<'n>(&self, message: &Message<'_>, now: &'n crate::cards::Now) -> Option<(Netdev<'n>, Asked)> {
        if !matches!(message.kind, RTM_NEWLINK | RTM_DELLINK) {
            return None;
        }
        let name = Attributes::find(message.body().get(IFINFO..)?, IFLA_IFNAME)?;
        let (_, seen, netdev) = now.netdev(name.text()?)?;
        // A notification is nobody's answer.
        let asked = self.asked.iter().find(|(seq, _)| message.pid != 0 && *seq == message.seq);
        Some(((seen, netdev), asked.map(|(_, asked)| *asked).unwrap_or_default()))
    }

    /// If a message sets VFs of a card's PF, sets them, and has the kernel do the rest.
    fn set_vfs(&mut self, io: &mut Io, message: &Message<'_>) -> bool {
        let (Some(list), Some(name)) = (vfs_in(message), name_in(io, message)) else { return false };
        let now = io.cards.now();
        let Some((card, _, netdev)) = now.netdev(&name) else { return false };
        let Ok(commands) = vf::commands(&netdev.given, list) else { return false };
        let done = if io.may_administer() {
            commands.iter().try_for_each(|words| io.cards.perform(card, words))
        } else {
            Err(Refusal { errno: Errno::PERM, message: String::new() })
        };
        let (errno, why) = match done {
            Ok(()) => match rest(message) {
                Some(rest) => {
                    for message in Messages(&rest) {
                        let (bytes, _held) = descriptors::ours(&message, io.sender.process);
                        io.pass_on(&bytes);
                    }
                    return true;
                }
                None => (0, String::new()),
            },
            Err(refusal) => (refusal.errno.raw_os_error(), refusal.message),
        };
        if errno != 0 || message.flags & NLM_F_ACK != 0 {
            let port = io.shared.port_to_send_from();
            io.tell(&verdict(message, port, errno, &reason(&why), io.shared.style()));
        }
        true
    }
}

/// Whether a message moves a netdev into another network namespace.
fn moves(message: &Message<'_>) -> bool {
    let attributes = message.body().get(IFINFO..).unwrap_or_default();
    let is_set = matches!(message.kind, RTM_NEWLINK | RTM_SETLINK) && message.is_request();
    is_set && NAMESPACES.into_iter().any(|kind| Attributes::find(attributes, kind).is_some())
}

/// If a message moves what may not leave its namespace, says so: an uplink's netdev in switchdev mode.
fn stays(io: &mut Io, message: &Message<'_>) -> bool {
    // Who may not move it at all is told so by the kernel.
    let may_move = moves(message) && io.may_administer();
    let Some(name) = may_move.then(|| name_in(io, message)).flatten() else { return false };
    let now = io.cards.now();
    let is_pinned = now.netdev(&name).is_some_and(|(_, _, netdev)| netdev.role == Role::Pf && netdev.in_switch);
    if is_pinned {
        let port = io.shared.port_to_send_from();
        let why = reason("The interface netns is immutable");
        io.tell(&verdict(message, port, libc::EINVAL, &why, io.shared.style()));
    }
    is_pinned
}

fn vfs_in<'a>(message: &Message<'a>) -> Option<&'a [u8]> {
    let is_set = matches!(message.kind, RTM_NEWLINK | RTM_SETLINK) && message.is_request();
    let attributes = message.body().get(IFINFO..).filter(|_| is_set)?;
    Some(Attributes::find(attributes, IFLA_VFINFO_LIST)?.payload)
}

/// The netdev that a request is about, by name, in the program's namespace.
fn name_in(io: &Io, message: &Message<'_>) -> Option<String> {
    let index = u32_at(message.body(), 4).filter(|index| *index != 0);
    if let Some(index) = index {
        return rustix::net::netdevice::index_to_name(&io.shared.kernel, index).ok();
    }
    let attributes = message.body().get(IFINFO..)?;
    let named = |kind| Attributes::find(attributes, kind)?.text().map(str::to_owned);
    named(IFLA_IFNAME).or_else(|| named(IFLA_ALT_IFNAME))
}

/// What is left of a message without its VFs, if that is anything.
fn rest(message: &Message<'_>) -> Option<Vec<u8>> {
    let body = message.body();
    let (info, attributes) = (body.get(..IFINFO)?, body.get(IFINFO..)?);
    // Flags, and which of them are to change.
    let mut anything = info.get(8..16)? != [0; 8];
    let mut builder = Builder::like(message).raw(info);
    for attribute in Attributes::of(attributes).filter(|a| a.kind != IFLA_VFINFO_LIST) {
        anything |= !matches!(attribute.kind, IFLA_IFNAME | IFLA_ALT_IFNAME | IFLA_EXT_MASK);
        builder.attribute(attribute.raw, attribute.payload);
    }
    anything.then(|| builder.done())
}
