//! NETLINK_ROUTE: the kernel's, but for the card's netdevs, which it knows as something else.
//!
//! Messages go to the kernel as they are, and its answers come back as they are, except: what it says of a
//! card's netdev is made what it would say of a physical one, and what is set of a PF's VFs is set at the
//! card.

use std::collections::VecDeque;

use devlink::view::{self, Role};
use netlink::rtnl::{
    IFINFOMSG as IFINFO, IFLA_ALT_IFNAME, IFLA_EXT_MASK, IFLA_IFNAME, IFLA_NET_NS_FD, IFLA_NET_NS_PID,
    IFLA_VFINFO_LIST, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK,
};
use netlink::{BuildError, Errno, Flags, Message, attributes, find, messages, nlmsgerr_attr, u32_at};

use crate::card::Refusal;

use super::link::{self, Asked};
use super::{Behind, Io, ROOM, descriptors, vf};

const NAMESPACES: [u16; 2] = [IFLA_NET_NS_PID, IFLA_NET_NS_FD];

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
        for message in messages(packet) {
            match message.header.kind {
                RTM_GETLINK => self.remember(&message),
                RTM_NEWLINK | RTM_SETLINK => ours |= vfs_in(&message).is_some() || moves(&message),
                _ => {}
            }
        }
        // Most have none of either, and go as they are.
        if !ours && !messages(packet).any(|message| descriptors::are_in(&message)) {
            return io.pass_on(packet);
        }
        let mut buffer = vec![0; ROOM];
        for message in messages(packet) {
            if !stays(io, &message) && !self.set_vfs(io, &message) {
                let (bytes, _held) = descriptors::ours(&message, io.sender.process);
                io.pass_on(&bytes);
            }
            io.drain(self, &mut buffer);
        }
    }

    fn kernel(&mut self, io: &mut Io, datagram: &[u8]) {
        let has_links = messages(datagram).any(|m| matches!(m.header.kind, RTM_NEWLINK | RTM_DELLINK));
        if !has_links {
            return io.queue.push(messages(datagram).map(|m| m.bytes()));
        }
        let now = io.cards.now();
        let mut made: Vec<Option<Vec<u8>>> = Vec::new();
        let mut gone: Vec<bool> = Vec::new();
        for message in messages(datagram) {
            let known = self.known(&message, &now);
            gone.push(known.as_ref().is_some_and(|(_, asked)| asked.by_kind));
            // What cannot be built is passed on as the kernel sent it.
            made.push(known.and_then(|((seen, netdev), asked)| link::rewritten(&message, seen, netdev, asked).ok()));
        }
        let messages = messages(datagram).zip(&made).zip(&gone).filter(|(_, gone)| !**gone);
        io.queue.push(messages.map(|((message, made), _)| made.as_deref().unwrap_or(message.bytes())));
    }
}

type Netdev<'a> = (&'a crate::cards::Seen, &'a devlink::view::Netdev);

impl Route {
    fn remember(&mut self, message: &Message<'_>) {
        let attributes = message.after(IFINFO).unwrap_or_default();
        let mask = find(attributes, IFLA_EXT_MASK).and_then(|a| a.leading_u32()).unwrap_or(0);
        let asked = Asked { mask, by_kind: message.header.is_dump() && link::asks_for_kind(attributes) };
        self.asked.retain(|(seq, _)| *seq != message.header.sequence);
        if asked == Asked::default() {
            return;
        }
        if self.asked.len() == REMEMBERED {
            self.asked.pop_front();
        }
        self.asked.push_back((message.header.sequence, asked));
    }

    /// The card's netdev that a message of the kernel is about, and what was asked.
    fn known<'n>(&self, message: &Message<'_>, now: &'n crate::cards::Now) -> Option<(Netdev<'n>, Asked)> {
        if !matches!(message.header.kind, RTM_NEWLINK | RTM_DELLINK) {
            return None;
        }
        let name = find(message.after(IFINFO)?, IFLA_IFNAME)?;
        let (_, seen, netdev) = now.netdev(name.string()?)?;
        // A notification is nobody's answer.
        let asked = self.asked.iter().find(|(seq, _)| message.header.port != 0 && *seq == message.header.sequence);
        Some(((seen, netdev), asked.map(|(_, asked)| *asked).unwrap_or_default()))
    }

    /// If a message sets VFs of a card's PF, sets them, and has the kernel do the rest.
    fn set_vfs(&mut self, io: &mut Io, message: &Message<'_>) -> bool {
        let (Some(list), Some(name)) = (vfs_in(message), name_in(io, message)) else { return false };
        let now = io.cards.now();
        let Some((card, _, netdev)) = now.netdev(&name) else { return false };
        let view::DeviceName::Pci(device) = netdev.parent else { return false };
        let refused = |errno| Err(Refusal { errno, message: String::new() });
        let done = match vf::commands(device, list) {
            Err(vf::NoCommands::NotUnderstood) => return false,
            _ if !io.may_administer() => refused(Errno::PERM),
            Err(vf::NoCommands::Refused(errno)) => refused(errno),
            Ok(commands) => commands.iter().try_for_each(|command| io.cards.perform(card, command)),
        };
        let left =
            done.and_then(|()| rest(message).map_err(|error| Refusal { errno: error.into(), message: String::new() }));
        match left {
            Ok(Some(rest)) => {
                for message in messages(&rest) {
                    let (bytes, _held) = descriptors::ours(&message, io.sender.process);
                    io.pass_on(&bytes);
                }
            }
            Ok(None) if message.header.flags.contains(Flags::ACK) => io.acknowledge(message, Ok(()), |_| {}),
            Ok(None) => {}
            Err(refusal) => refuse(io, message, refusal.errno, &refusal.message),
        }
        true
    }
}

/// Answers a request with an error, and why if that is known.
fn refuse(io: &mut Io, message: &Message<'_>, errno: Errno, why: &str) {
    io.acknowledge(message, Err(errno), |to| {
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

/// If a message moves what may not leave its namespace, says so: an uplink's netdev in switchdev mode.
fn stays(io: &mut Io, message: &Message<'_>) -> bool {
    // Who may not move it at all is told so by the kernel.
    let may_move = moves(message) && io.may_administer();
    let Some(name) = may_move.then(|| name_in(io, message)).flatten() else { return false };
    let now = io.cards.now();
    let is_pinned = now.netdev(&name).is_some_and(|(_, _, netdev)| netdev.role == Role::Pf && netdev.in_switch);
    if is_pinned {
        refuse(io, message, Errno::INVAL, "The interface netns is immutable");
    }
    is_pinned
}

/// Whether a message sets something of a link.
fn sets_link(message: &Message<'_>) -> bool {
    matches!(message.header.kind, RTM_NEWLINK | RTM_SETLINK) && message.header.is_request()
}

fn vfs_in<'a>(message: &Message<'a>) -> Option<&'a [u8]> {
    let attributes = message.after(IFINFO).filter(|_| sets_link(message))?;
    Some(find(attributes, IFLA_VFINFO_LIST)?.value)
}

/// The netdev that a request is about, by name, in the program's namespace.
fn name_in(io: &Io, message: &Message<'_>) -> Option<String> {
    let index = u32_at(message.payload(), 4).filter(|index| *index != 0);
    if let Some(index) = index {
        return rustix::net::netdevice::index_to_name(&io.shared.kernel, index).ok();
    }
    let attributes = message.after(IFINFO)?;
    let named = |kind| find(attributes, kind)?.string().map(str::to_owned);
    named(IFLA_IFNAME).or_else(|| named(IFLA_ALT_IFNAME))
}

/// What is left of a message without its VFs, if that is anything.
fn rest(message: &Message<'_>) -> Result<Option<Vec<u8>>, BuildError> {
    let Some((info, said)) = message.payload().split_first_chunk::<IFINFO>() else { return Ok(None) };
    // Flags, and which of them are to change.
    let mut anything = info[8..] != [0; 8];
    let rest = netlink::message(message.header, |to| {
        to.raw(info);
        for attribute in attributes(said).flatten().filter(|a| a.kind != IFLA_VFINFO_LIST) {
            anything |= !matches!(attribute.kind, IFLA_IFNAME | IFLA_ALT_IFNAME | IFLA_EXT_MASK);
            to.copy(&attribute);
        }
    })?;
    Ok(anything.then_some(rest))
}
