//! The generic netlink family `ethtool`, for a card's netdevs. Everything else of the family is the kernel's.
//!
//! What only mlx5e has is answered here. Features and channels are the kernel netdev's: the request goes to the kernel,
//! changed to what a veth understands, and its answer is changed back. NETIF_F_HW_TC, which a veth does not have, is taken
//! out of the request and put into the answer.

use netlink::{BuildError, Builder, Errno, Flags, GENL_HEADER, Header, Message, attributes, find, nlmsgerr_attr};
use rustix::net::netdevice::{index_to_name, name_to_index};

use super::families::EthtoolFamily;
use crate::cards::CardNetdev;
use crate::ethtool::settings::Key;
use crate::ethtool::{self, DEV_INDEX, DEV_NAME, HEADER, HW_TC, Nic, Refused, Request, message as m};
use crate::lock_order::Cx;
use crate::relay::Relay;

/// ETHTOOL_A_HEADER_FLAGS.
const FLAGS: u16 = 3;
/// ETHTOOL_FLAG_COMPACT_BITSETS.
const COMPACT: u32 = 1;

/// ETHTOOL_A_STRSET_*, ETHTOOL_A_STRINGSETS_STRINGSET, ETHTOOL_A_STRINGSET_* and ETHTOOL_A_STRINGS_STRING.
const STRINGSETS: u16 = 2;
const COUNTS_ONLY: u16 = 3;
const STRINGSET: u16 = 1;
const SET_ID: u16 = 1;
const SET_COUNT: u16 = 2;
const SET_STRINGS: u16 = 3;

/// ETHTOOL_A_FEATURES_*: the features that can be changed, those that are wanted, and those that are on.
const FEATURES_HW: u16 = 2;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;

/// ETHTOOL_A_CHANNELS_*.
const RX_MAX: u16 = 2;
const TX_MAX: u16 = 3;
const COMBINED_MAX: u16 = 5;
const RX_COUNT: u16 = 6;
const TX_COUNT: u16 = 7;
const OTHER_COUNT: u16 = 8;
const COMBINED_COUNT: u16 = 9;

/// Messages that the kernel sends (`ETHTOOL_MSG_*_REPLY`, `ETHTOOL_MSG_*_NTF`).
const FEATURES_MESSAGES: [u8; 2] = [11, 13];
const CHANNELS_MESSAGES: [u8; 2] = [18, 19];

/// The message that answers a request, for each request that is answered here.
const REPLIES: [(u8, u8); 10] = [
    (m::LINKINFO_GET, 2),
    (m::LINKMODES_GET, 4),
    (m::WOL_GET, 9),
    (m::PRIVFLAGS_GET, 14),
    (m::RINGS_GET, 16),
    (m::COALESCE_GET, 20),
    (m::PAUSE_GET, 22),
    (m::FEC_GET, 30),
    (m::MODULE_EEPROM_GET, 32),
    (m::RSS_GET, 38),
];

/// Each request that is judged here and for which the kernel wants the right to administer (GENL_UNS_ADMIN_PERM).
const PRIVILEGED: [u8; 9] = [
    m::LINKINFO_SET,
    m::LINKMODES_SET,
    m::WOL_SET,
    m::PRIVFLAGS_SET,
    m::RINGS_SET,
    m::COALESCE_SET,
    m::PAUSE_SET,
    m::FEC_SET,
    m::MODULE_EEPROM_GET,
];

/// The dumps of the family on one socket that the kernel is answering: sequence number, command, and flags of the
/// header.
#[derive(Default)]
pub(super) struct Dumps(Vec<(u32, u8, u32)>);

/// The most of them at once; the kernel allows one.
const DUMPS: usize = 16;

/// What becomes of a request.
enum Outcome {
    /// The kernel answers it.
    Kernel,
    /// The kernel answers this instead.
    Changed(Vec<u8>),
    /// A message answers it.
    Reply(Vec<u8>),
    /// It has succeeded, and there is nothing to say.
    Done,
    Refused(Refused),
}

impl From<Errno> for Outcome {
    fn from(errno: Errno) -> Self {
        Self::Refused(Refused(errno, "".into()))
    }
}

/// Handles a request to the family. `false`: it is not about a card's netdev, or is the kernel's for another reason.
pub(super) fn request(
    cx: Cx<'_, '_>,
    relay: &mut Relay,
    dumps: &mut Dumps,
    family: EthtoolFamily,
    request: &Message<'_>,
) -> bool {
    let (Some((genl, content)), true) = (request.genl(), request.header.is_request()) else { return false };
    let header = find(content, HEADER).map_or(&[][..], |header| header.value);
    let flags = find(header, FLAGS).and_then(|flags| flags.leading_u32()).unwrap_or(0);
    if request.header.is_dump() {
        dumps.0.truncate(DUMPS - 1);
        dumps.0.push((request.header.sequence, genl.command, flags));
        return false;
    }
    let Some(mut nic) = nic(cx, relay, header) else { return false };
    let compact = flags & COMPACT != 0;
    let outcome = match genl.command {
        command if PRIVILEGED.contains(&command) && !relay.may_administer() => Errno::PERM.into(),
        m::STRSET_GET => strings(relay, &nic, request, content),
        m::FEATURES_SET if relay.may_administer() => set_features(cx, relay, &mut nic, family, (request, content)),
        m::CHANNELS_SET if relay.may_administer() => set_channels(cx, relay, &nic, request, content),
        command if reply_to(command).is_some() => reply(cx, relay, &nic, request.header, command, compact),
        command if PRIVILEGED.contains(&command) => set(cx, relay, &mut nic, family, (command, content)),
        _ => return false,
    };
    match outcome {
        Outcome::Kernel => return false,
        Outcome::Changed(bytes) => relay.pass_on(cx, &bytes),
        Outcome::Reply(bytes) => {
            relay.send_message(&bytes);
            acknowledge(cx, relay, request);
        }
        Outcome::Done => acknowledge(cx, relay, request),
        Outcome::Refused(Refused(errno, why)) => relay.acknowledge(cx, request, Err(errno), |to| {
            if !why.is_empty() {
                to.text(nlmsgerr_attr::MSG, &why);
            }
        }),
    }
    true
}

fn acknowledge(cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>) {
    if request.header.flags.contains(Flags::ACK) {
        relay.acknowledge(cx, request, Ok(()), |_| {});
    }
}

/// The card's netdev that a header names, if there is one in the program's network namespace
/// (`ethnl_parse_header_dev_get`).
fn nic(cx: Cx<'_, '_>, relay: &Relay, header: &[u8]) -> Option<Nic> {
    let socket = &relay.socket.kernel;
    let by_index = find(header, DEV_INDEX).and_then(|index| index.leading_u32());
    let index = match by_index {
        Some(index) => index,
        None => name_to_index(socket, find(header, DEV_NAME)?.string()?).ok()?,
    };
    let network = relay.network(cx)?;
    let netdev = relay.cards.netdev_at(cx, &network, index)?;
    Some(Nic::new(cx, &relay.cards, netdev, (index, index_to_name(socket, index).ok()?), socket))
}

fn reply_to(command: u8) -> Option<u8> {
    REPLIES.iter().find(|(get, _)| *get == command).map(|(_, reply)| *reply)
}

/// The message about a netdev that answers a request. `header`: of the request.
fn reply(cx: Cx<'_, '_>, relay: &Relay, nic: &Nic, header: Header, command: u8, compact: bool) -> Outcome {
    let answer = match command {
        m::RSS_GET => nic.steering(cx, &relay.cards).and_then(|steering| {
            let channels = nic.channels(&relay.socket.kernel).map_err(|error| netlink::errno_of(&error))?;
            Ok(Nic::hash(&steering, channels))
        }),
        _ => nic.answer(command),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(errno) => return errno.into(),
    };
    let built = message(relay, nic, header, reply_to(command).unwrap_or(command), |to| {
        ethtool::put(to, &answer, compact);
    });
    built.map_or_else(|error| Errno::from(error).into(), Outcome::Reply)
}

/// A message about a netdev, with its header.
fn message(
    relay: &Relay,
    nic: &Nic,
    header: Header,
    command: u8,
    fill: impl FnOnce(&mut Builder),
) -> Result<Vec<u8>, BuildError> {
    let flags = if header.is_dump() { Flags::MULTI } else { Flags::empty() };
    let header = Header { flags, port: relay.socket.port(), ..header };
    netlink::message(header, |to| {
        to.genl(command, 1).nest(HEADER, |nest| {
            nest.u32(DEV_INDEX, nic.index).text(DEV_NAME, &nic.name);
        });
        fill(to);
    })
}

/// The sets of strings that a request names, if they are the driver's (`strset_parse_request`).
fn strings(relay: &Relay, nic: &Nic, request: &Message<'_>, content: &[u8]) -> Outcome {
    let id = |set: netlink::Attribute<'_>| find(set.value, SET_ID)?.leading_u32();
    let sets: Vec<u32> =
        find(content, STRINGSETS).into_iter().flat_map(|sets| sets.nested().flatten().filter_map(id)).collect();
    let own = |set: &u32| [ethtool::SS_TEST, ethtool::SS_STATS, ethtool::SS_PRIV_FLAGS].contains(set);
    if sets.is_empty() || !sets.iter().all(own) {
        return Outcome::Kernel;
    }
    let counts_only = find(content, COUNTS_ONLY).is_some();
    let built = message(relay, nic, request.header, m::STRSET_GET, |to| {
        to.nest(STRINGSETS, |nest| {
            // A set that the driver does not have is left out.
            for (set, strings) in sets.iter().filter_map(|set| Some((*set, nic.strings(*set).ok()?))) {
                nest.nest(STRINGSET, |nest| put_strings(nest, set, &strings, counts_only));
            }
        });
    });
    built.map_or_else(|error| Errno::from(error).into(), Outcome::Reply)
}

fn put_strings(nest: &mut Builder, set: u32, strings: &[&str], counts_only: bool) {
    nest.u32(SET_ID, set).u32(SET_COUNT, strings.len() as u32);
    if counts_only {
        return;
    }
    nest.nest(SET_STRINGS, |list| {
        for (at, text) in strings.iter().enumerate() {
            list.nest(1, |string| {
                string.u32(1, at as u32).text(2, text);
            });
        }
    });
}

/// A request to set something that the card keeps. Members of the group `monitor` are told if it has changed.
fn set(
    cx: Cx<'_, '_>,
    relay: &Relay,
    nic: &mut Nic,
    family: EthtoolFamily,
    (command, content): (u8, &[u8]),
) -> Outcome {
    match nic.set(cx, &relay.cards, &Request::of_message(command, content)) {
        Ok(changed) => {
            if changed {
                relay.cards.monitors.publish(cx, family.id, &relay.socket.kernel, nic, command);
            }
            Outcome::Done
        }
        Err(refused) => Outcome::Refused(refused),
    }
}

/// A request to set features: NETIF_F_HW_TC is the card's, the others are the kernel's.
fn set_features(
    cx: Cx<'_, '_>,
    relay: &Relay,
    nic: &mut Nic,
    family: EthtoolFamily,
    (request, content): (&Message<'_>, &[u8]),
) -> Outcome {
    let wanted = find(content, FEATURES_WANTED);
    let Some(on) = wanted.and_then(|set| ethtool::wanted(set.value, family.hw_tc, HW_TC)) else {
        return Outcome::Kernel;
    };
    let changed = nic.change(cx, &relay.cards, |settings, _| Ok(settings.set(Key::HwTc, on.into())));
    if let Err(refused) = changed {
        return Outcome::Refused(refused);
    }
    let changed = netlink::message(request.header, |to| {
        to.raw(&request.payload()[..GENL_HEADER]);
        for attribute in attributes(content).flatten() {
            match attribute.kind {
                FEATURES_WANTED => {
                    to.nest(FEATURES_WANTED, |nest| {
                        ethtool::put_without(nest, attribute.value, family.hw_tc, HW_TC);
                    });
                }
                _ => {
                    to.copy(&attribute);
                }
            }
        }
    });
    changed.map_or_else(|error| Errno::from(error).into(), Outcome::Changed)
}

/// A request to set combined channels, as one that sets as many queues in each direction.
fn set_channels(cx: Cx<'_, '_>, relay: &Relay, nic: &Nic, request: &Message<'_>, content: &[u8]) -> Outcome {
    let count = |kind| find(content, kind).and_then(|count| count.leading_u32());
    // `ethnl_set_channels`: the largest number of these is 0.
    if [RX_COUNT, TX_COUNT, OTHER_COUNT].into_iter().any(|kind| count(kind).is_some_and(|count| count != 0)) {
        return Outcome::Refused(Refused(Errno::INVAL, "requested channel count exceeds maximum".into()));
    }
    let Some(combined) = count(COMBINED_COUNT) else { return Outcome::Done };
    if combined == 0 {
        return Outcome::Refused(Refused(
            Errno::INVAL,
            "requested channel counts would result in no RX or TX channel being configured".into(),
        ));
    }
    // A representor has neither a table nor rules.
    if let Err(refused) = nic.steering(cx, &relay.cards).map_or(Ok(()), |steering| steering.allows(combined)) {
        // What is beyond the maximum, the kernel refuses first.
        if combined <= nic.max_channels(&relay.socket.kernel).unwrap_or(0) {
            return Outcome::Refused(refused);
        }
    }
    let changed = netlink::message(request.header, |to| {
        to.raw(&request.payload()[..GENL_HEADER]);
        if let Some(header) = find(content, HEADER) {
            to.copy(&header);
        }
        to.u32(RX_COUNT, combined).u32(TX_COUNT, combined);
    });
    changed.map_or_else(|error| Errno::from(error).into(), Outcome::Changed)
}

/// The messages that the program gets instead of one of the kernel's. `None`: that one.
pub(super) fn of_kernel(
    cx: Cx<'_, '_>,
    relay: &Relay,
    dumps: &mut Dumps,
    family: EthtoolFamily,
    message: &Message<'_>,
) -> Option<Vec<Vec<u8>>> {
    let dump = dumps.0.iter().position(|(sequence, ..)| *sequence == message.header.sequence);
    if message.header.kind == netlink::NLMSG_DONE {
        let (_, command, flags) = dumps.0.remove(dump?);
        let mut messages = all(cx, relay, family, message.header, command, flags & COMPACT != 0);
        messages.push(message.bytes().to_vec());
        return Some(messages);
    }
    if message.header.kind != family.id {
        return None;
    }
    let (genl, content) = message.genl()?;
    let nic = nic(cx, relay, find(content, HEADER)?.value)?;
    // A dump has the card's own answers at its end.
    if dump.is_some_and(|at| reply_to(dumps.0[at].1).is_some()) {
        return Some(Vec::new());
    }
    let changed = match genl.command {
        command if FEATURES_MESSAGES.contains(&command) => netlink::message(message.header, |to| {
            to.raw(&message.payload()[..GENL_HEADER]);
            for attribute in attributes(content).flatten() {
                match attribute.kind {
                    FEATURES_HW | FEATURES_WANTED | FEATURES_ACTIVE => {
                        let on = attribute.kind == FEATURES_HW || nic.has_hw_tc();
                        to.nest(attribute.kind, |nest| {
                            ethtool::put_with(nest, attribute.value, family.hw_tc, HW_TC, on);
                        });
                    }
                    _ => {
                        to.copy(&attribute);
                    }
                }
            }
        }),
        command if CHANNELS_MESSAGES.contains(&command) => netlink::message(message.header, |to| {
            to.raw(&message.payload()[..GENL_HEADER]);
            put_channels(to, content);
        }),
        _ => return None,
    };
    Some(vec![changed.ok()?])
}

/// The card's part of a dump: what it has of each of its netdevs in the program's network namespace.
fn all(
    cx: Cx<'_, '_>,
    relay: &Relay,
    family: EthtoolFamily,
    header: Header,
    command: u8,
    compact: bool,
) -> Vec<Vec<u8>> {
    if reply_to(command).is_none() {
        return Vec::new();
    }
    let header = Header { kind: family.id, flags: Flags::DUMP, ..header };
    let (Some(network), views) = (relay.network(cx), relay.cards.now(cx)) else { return Vec::new() };
    let here: Vec<(CardNetdev, u32, String)> = network.look(cx, &relay.cards, |table| {
        let of = |(peer, _)| {
            let (index, name) = table.netdev(peer)?;
            Some((views.netdev(peer)?, index, name.to_owned()))
        };
        table.each().filter_map(of).collect()
    });
    let mut replies = Vec::new();
    for (netdev, index, name) in here {
        let nic = Nic::new(cx, &relay.cards, netdev, (index, name), &relay.socket.kernel);
        if let Outcome::Reply(bytes) = reply(cx, relay, &nic, header, command, compact) {
            replies.push(bytes);
        }
    }
    replies
}

/// The combined channels of a netdev whose kernel has queues in each direction.
fn put_channels(to: &mut Builder, content: &[u8]) {
    let least =
        |kinds: [u16; 2]| kinds.into_iter().filter_map(|kind| find(content, kind)?.leading_u32()).min().unwrap_or(1);
    if let Some(header) = find(content, HEADER) {
        to.copy(&header);
    }
    to.u32(COMBINED_MAX, least([RX_MAX, TX_MAX])).u32(COMBINED_COUNT, least([RX_COUNT, TX_COUNT]));
}
