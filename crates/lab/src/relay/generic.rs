//! NETLINK_GENERIC: the kernel's families, and devlink and psample, which the cards answer.
//!
//! If the kernel has the family devlink, programs see it under the kernel's number, else under one that no family of
//! the kernel has. Between this thread and a card's server it has the server's number.

mod connections;
mod ethtool;
mod families;
mod namespaces;
mod ports;
mod psample;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ::netlink::{
    Awaited, Errno, Flags, GENL_HEADER, HEADER, Header, Message, NLMSG_DONE, NLMSG_MIN_TYPE, Outcome, Part, attributes,
    errno_of, find, messages, nlmsgerr_attr, overwrite, rewrite, row,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};

use devlink::SampleGroup;
use devlink::view::DeviceName;

use super::{Handler, ROOM, Relay};
use crate::lock_order::Cx;
use crate::network::NetworkId;
use families::Family;
use psample::Psample;

pub(crate) use families::Families;

const DEVLINK: &str = "devlink";
/// The type of messages to and from `nlctrl` (GENL_ID_CTRL), and its commands and attributes.
const CTRL: u16 = 16;
const GETFAMILY: u8 = 3;
const GETPOLICY: u8 = 10;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// DEVLINK_ATTR_BUS_NAME and DEVLINK_ATTR_DEV_NAME.
const BUS_NAME: u16 = 1;
const DEV_NAME: u16 = 2;

/// The handler of one socket.
pub(super) struct Generic {
    families: Arc<Families>,
    /// Dumps of all families, by sequence number, that the kernel is answering and to which devlink and psample are to be added.
    dumps: Vec<u32>,
    /// Dumps of psample groups that the kernel is answering, with the groups of the cards that it has not shown.
    group_dumps: Vec<(u32, Vec<SampleGroup>)>,
    /// Dumps of the family ethtool.
    ethtool_dumps: ethtool::Dumps,
    buffer: Vec<u8>,
    /// Room for what the kernel sends between two requests.
    drain_buffer: Vec<u8>,
}

/// Where a request goes.
enum Destination {
    Kernel,
    /// Nowhere: it is refused.
    Refused(Errno),
    /// `nlctrl`, which is asked for the family devlink.
    Family,
    /// `nlctrl`, which is asked for all families.
    AllFamilies,
    /// `nlctrl`, which is asked about the family psample of the lab.
    PsampleFamily(Psample),
    /// The family psample.
    Psample(Psample),
    /// One card, by its index.
    Card(usize),
    AllCards,
}

/// How an answer ended.
struct End {
    result: Result<(), Errno>,
    /// Whether the answer is a list that NLMSG_DONE ends, though the request is no dump.
    is_list: bool,
    /// The attributes of the extended acknowledgement.
    extended: Vec<u8>,
}

impl End {
    /// An end without an extended acknowledgement.
    fn bare(result: Result<(), Errno>) -> Self {
        Self { result, is_list: false, extended: Vec::new() }
    }
}

/// The most dumps of all families on one socket at once; the kernel allows one.
const DUMPS: usize = 16;

impl Handler for Generic {
    fn request(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, packet: &[u8]) {
        let mut buffer = std::mem::take(&mut self.drain_buffer);
        for message in messages(packet) {
            relay.make_room(cx);
            if self.is_ethtools(cx, relay, &message) {
                relay.drain(cx, self, &mut buffer);
                continue;
            }
            match self.destination(cx, relay, &message) {
                Destination::Refused(errno) => send_end(cx, relay, &message, End::bare(Err(errno))),
                Destination::Kernel => relay.pass_on(cx, message.bytes()),
                Destination::Family => self.send_family(cx, relay, &message),
                Destination::AllFamilies => {
                    if self.dumps.len() < DUMPS {
                        self.dumps.push(message.header.sequence);
                    }
                    relay.pass_on(cx, message.bytes());
                }
                Destination::PsampleFamily(psample) => psample.answer_control(cx, relay, &message),
                Destination::Psample(psample) if !psample.in_kernel => psample.answer(cx, relay, &message),
                Destination::Psample(_) => {
                    if psample::is_dump_of_groups(&message) && self.group_dumps.len() < DUMPS {
                        let groups = psample::groups(relay).unwrap_or_default();
                        self.group_dumps.push((message.header.sequence, groups));
                    }
                    relay.pass_on(cx, message.bytes());
                }
                Destination::Card(n) => {
                    let end = self.answer_of(cx, relay, &message, n);
                    send_end(cx, relay, &message, end);
                }
                Destination::AllCards => self.request_from_all(cx, relay, &message),
            }
            relay.drain(cx, self, &mut buffer);
        }
        self.drain_buffer = buffer;
    }

    fn kernel(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, datagram: &[u8]) {
        let port = relay.socket.port();
        let mut added: Vec<Vec<u8>> = Vec::new();
        let hidden = if self.dumps.is_empty() { None } else { self.families.psample() };
        let ended = |m: &Message<'_>| m.header.kind == NLMSG_DONE && self.dumps.contains(&m.header.sequence);
        if let Some(end) = messages(datagram).find(ended) {
            let sequence = end.header.sequence;
            self.dumps.retain(|dump| *dump != sequence);
            let devlink = self.families.devlink(cx, &relay.cards).filter(|family| !family.in_kernel);
            added.extend(devlink.map(|family| with_header(&family.answer, Flags::MULTI, sequence, port)));
            let psample = self.families.psample().filter(|family| !family.in_kernel);
            let header = Header::new(CTRL, Flags::MULTI, sequence, port);
            added.extend(psample.and_then(|family| family.describe(header).ok()));
        }
        added.extend(self.groups_of_cards(cx, relay, datagram));
        // A program that only waits for notifications has sent the family nothing.
        let is_answer = messages(datagram).all(|message| message.header.kind <= CTRL);
        let ethtool = if is_answer { self.families.ethtool_if_known() } else { self.families.ethtool() };
        let mut all: Vec<Vec<u8>> = Vec::new();
        for message in messages(datagram) {
            // What is added comes before the end of the dump, which is the last message.
            if message.header.kind == NLMSG_DONE {
                all.append(&mut added);
            }
            if hidden.is_some_and(|psample| psample.hides(&message)) {
                continue;
            }
            let changed = ethtool.and_then(|e| ethtool::of_kernel(cx, relay, &mut self.ethtool_dumps, e, &message));
            all.extend(changed.unwrap_or_else(|| vec![message.bytes().to_vec()]));
        }
        relay.queue.push(all.iter().map(|bytes| &bytes[..]));
    }

    fn notification(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, card: usize, datagram: &[u8]) {
        let samples: Vec<Message<'_>> = messages(datagram).filter(psample::is_published).collect();
        if !samples.is_empty() {
            if let Some(psample) = self.families.psample() {
                psample.publish(cx, relay, card, &samples);
            }
            return;
        }
        let Some(family) = self.families.devlink(cx, &relay.cards) else { return };
        let published = messages(datagram).filter(|message| message.header.kind >= NLMSG_MIN_TYPE);
        let mut here = namespaces::for_this_one(cx, relay, published);
        for bytes in &mut here {
            rewrite(bytes, |header| (header.kind, header.port) = (family.id, 0));
        }
        let named = ports::name_netdevs(cx, relay, here);
        relay.queue.push(named.iter().map(|bytes| &bytes[..]));
    }
}

/// A copy of a message with other flags, sequence number and port.
fn with_header(message: &[u8], flags: Flags, sequence: u32, port: u32) -> Vec<u8> {
    let mut bytes = message.to_vec();
    rewrite(&mut bytes, |header| *header = Header { flags, sequence, port, ..*header });
    bytes
}

impl Generic {
    pub fn new(families: Arc<Families>) -> Self {
        let ethtool_dumps = ethtool::Dumps::default();
        let (dumps, group_dumps) = (Vec::new(), Vec::new());
        Self { families, dumps, group_dumps, ethtool_dumps, buffer: vec![0; ROOM], drain_buffer: vec![0; ROOM] }
    }

    /// Handles a request to the family ethtool. `false`: it goes where other requests go.
    fn is_ethtools(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, message: &Message<'_>) -> bool {
        // Most requests are to devlink, and need not know of the kernel's families.
        if message.header.kind <= CTRL || self.families.is_devlink(message.header.kind) {
            return false;
        }
        let family = self.families.ethtool().filter(|family| family.id == message.header.kind);
        family.is_some_and(|family| ethtool::request(cx, relay, &mut self.ethtool_dumps, family, message))
    }

    /// The groups of the cards that a dump of the kernel, which ends in a datagram, has not shown.
    fn groups_of_cards(&mut self, cx: Cx<'_, '_>, relay: &Relay, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut added = Vec::new();
        if self.group_dumps.is_empty() {
            return added;
        }
        let Some(psample) = self.families.psample() else { return added };
        for message in messages(datagram) {
            let Header { kind, sequence, .. } = message.header;
            let Some(at) = self.group_dumps.iter().position(|(dump, _)| *dump == sequence) else { continue };
            if kind == psample.id {
                let shown = psample::group_in(&message);
                self.group_dumps[at].1.retain(|group| Some(group.group) != shown);
            } else {
                // The end of the dump, or the error that stands for it.
                let (_, left) = self.group_dumps.remove(at);
                added.extend(left.iter().filter_map(|group| psample.dumped(cx, relay, sequence, group)));
            }
        }
        added
    }

    fn destination(&self, cx: Cx<'_, '_>, relay: &Relay, message: &Message<'_>) -> Destination {
        let Header { kind, .. } = message.header;
        if let Some(psample) = self.families.psample_at(kind).filter(|_| message.header.is_request()) {
            return Destination::Psample(psample);
        }
        let (Some(command), true) = (message.payload().first(), message.header.is_request()) else {
            return Destination::Kernel;
        };
        // A request that can be neither to devlink nor about it needs no card.
        if kind == CTRL && !matches!(*command, GETFAMILY | GETPOLICY) {
            return Destination::Kernel;
        }
        let content = message.after(GENL_HEADER).unwrap_or_default();
        let asks_all = kind == CTRL && *command == GETFAMILY && message.header.is_dump();
        let psample = if kind == CTRL { self.families.psample().filter(|family| !family.in_kernel) } else { None };
        if let Some(psample) = psample.filter(|psample| !asks_all && psample.is_named(content)) {
            return Destination::PsampleFamily(psample);
        }
        let Some(family) = self.families.devlink(cx, &relay.cards) else {
            return if asks_all && psample.is_some() { Destination::AllFamilies } else { Destination::Kernel };
        };
        if kind == family.id {
            // Before the attributes are looked at, as in the kernel (`genl_family_rcv_msg`).
            if devlink::takes_admin(*command, message.header.is_dump()) && !relay.may_administer_system() {
                return Destination::Refused(Errno::PERM);
            }
            return card_of(cx, relay, family, message, content);
        }
        if asks_all && (psample.is_some() || !family.in_kernel) {
            return Destination::AllFamilies;
        }
        if kind != CTRL || family.in_kernel {
            return Destination::Kernel;
        }
        let id = find(content, FAMILY_ID).and_then(|a| a.leading_u16());
        let name = find(content, FAMILY_NAME);
        let is_devlink = id == Some(family.id) || name.and_then(|a| a.string()) == Some(DEVLINK);
        match (is_devlink, *command) {
            (true, GETFAMILY) => Destination::Family,
            (true, _) => Destination::Card(0),
            (false, _) => Destination::Kernel,
        }
    }

    /// Answers a request for the family devlink as `nlctrl` does.
    fn send_family(&self, cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>) {
        let port = relay.socket.port_to_send_from(cx);
        if let Some(family) = self.families.devlink(cx, &relay.cards) {
            relay.send_message(&with_header(&family.answer, Flags::empty(), request.header.sequence, port));
        }
        if request.header.flags.contains(Flags::ACK) {
            relay.acknowledge(cx, request, Ok(()), |_| {});
        }
    }

    /// Answers a dump that names no device: each card's part, one after the other, then the kernel's own.
    fn request_from_all(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>) {
        let views = relay.cards.now(cx);
        let network = NetworkId::of_socket(&relay.socket.kernel).ok();
        let is_here = |n: &usize| network.is_some_and(|network| relay.cards.has_instance_in(&views, *n, network));
        let here: Vec<usize> = (0..relay.cards.len()).filter(is_here).collect();
        let ends: Vec<End> = here.into_iter().map(|n| self.answer_of(cx, relay, request, n)).collect();
        let successful = ends.iter().position(|end| end.result.is_ok());
        if self.families.is_in_kernel() {
            return relay.pass_on(cx, request.bytes());
        }
        // The error of one card does not spoil the answer of another.
        let end = ends.into_iter().nth(successful.unwrap_or(0)).unwrap_or(End::bare(Ok(())));
        send_end(cx, relay, request, end);
    }

    /// Has a card answer a request, and sends the program the answer up to its end, which the caller sends.
    fn answer_of(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>, n: usize) -> End {
        match self.request_from(cx, relay, request, n) {
            Ok(end) => end,
            Err(error) => {
                let errno = error.raw_os_error().map_or(Errno::NODEV, |_| errno_of(&error));
                let why = row(|to| {
                    to.text(nlmsgerr_attr::MSG, "the card does not answer");
                });
                End { extended: why.unwrap_or_default(), ..End::bare(Err(errno)) }
            }
        }
    }

    fn request_from(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>, n: usize) -> io::Result<End> {
        let netns = match namespaces::target(relay, request) {
            Ok(netns) => netns,
            Err(end) => return Ok(end),
        };
        let id = self.families.devlink(cx, &relay.cards).map_or(0, |family| family.id);
        let port = relay.socket.port_to_send_from(cx);
        let (families, cards, buffer) = (&self.families, Arc::clone(&relay.cards), &mut self.buffer);
        families.connections.with(cx, &cards, n, |cx, socket| {
            let at_card = families.number_at_card(cx, n, socket)?;
            send_with(socket, &to_server(request, id, at_card), netns.as_ref())?;
            let mut awaited = Awaited::new(request.header.sequence);
            let mut is_list = false;
            loop {
                let len = relay.receive_from(cx, socket.as_fd(), buffer)?;
                let (mut answers, mut end) = (Vec::new(), None);
                for message in messages(&buffer[..len]) {
                    match awaited.read(message) {
                        Part::Data(message) => {
                            is_list |= message.header.flags.contains(Flags::MULTI);
                            answers.push(from_server(&message, at_card, id, port));
                        }
                        Part::End(Outcome { result, attributes, .. }) => {
                            end = Some(End { result, is_list, extended: attributes.to_vec() });
                        }
                        Part::Other => {}
                    }
                }
                if request.header.is_dump() {
                    namespaces::keep_those_here(cx, relay, &mut answers);
                }
                let named = ports::name_netdevs(cx, relay, answers);
                relay.queue.push(named.iter().map(|bytes| &bytes[..]));
                relay.flush();
                if let Some(end) = end {
                    return Ok(end);
                }
            }
        })
    }
}

/// Where a request to devlink goes: to the card that has the device which it names.
fn card_of(cx: Cx<'_, '_>, relay: &Relay, family: &Family, message: &Message<'_>, content: &[u8]) -> Destination {
    let text = |kind| find(content, kind).and_then(|a| a.string());
    match (text(BUS_NAME), text(DEV_NAME)) {
        (Some(bus), Some(device)) => {
            let device = DeviceName::parse(bus, device);
            let views = relay.cards.now(cx);
            let owner = device.and_then(|device| views.owner(device).map(|card| (card, device)));
            let network = NetworkId::of_socket(&relay.socket.kernel).ok();
            let here = owner
                .zip(network)
                .filter(|((card, device), network)| relay.cards.is_instance_in(&views, *card, *device, *network));
            match here.map(|((card, _), _)| card) {
                Some(card) => Destination::Card(card),
                None if family.in_kernel => Destination::Kernel,
                // As for a device that there is not.
                None if owner.is_some() => Destination::Refused(Errno::NODEV),
                // No card has it: the first one refuses it as well as any.
                None => Destination::Card(0),
            }
        }
        _ if message.header.is_dump() => Destination::AllCards,
        _ => Destination::Card(0),
    }
}

/// Sends a request to a card's server, with a descriptor if it has one.
fn send_with(socket: &OwnedFd, request: &[u8], descriptor: Option<&OwnedFd>) -> io::Result<()> {
    let Some(descriptor) = descriptor else {
        send(socket, request, SendFlags::NOSIGNAL)?;
        return Ok(());
    };
    let descriptors = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(request)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Sends the program the end of an answer: of a dump, an error, or an acknowledgement if it has requested one.
fn send_end(cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>, end: End) {
    if end.result.is_ok() && request.header.is_dump() {
        return relay.end_dump(cx, request);
    }
    if end.result.is_ok() && end.is_list {
        relay.end_dump(cx, request);
    }
    if end.result.is_err() || request.header.flags.contains(Flags::ACK) {
        relay.acknowledge(cx, request, end.result, |to| {
            for attribute in attributes(&end.extended).flatten() {
                to.copy(&attribute);
            }
        });
    }
}

/// A request as a card's server takes it: with the server's number of the family, and with NLM_F_ACK, so that the end
/// of the answer can be recognised.
fn to_server(request: &Message<'_>, id: u16, at_card: u16) -> Vec<u8> {
    let mut bytes = request.bytes().to_vec();
    let is_family = request.header.kind == id;
    if !is_family {
        replace_family(&mut bytes, id, at_card);
    }
    rewrite(&mut bytes, |header| {
        header.kind = if is_family { at_card } else { header.kind };
        header.flags |= Flags::ACK;
    });
    bytes
}

/// A message of a card's server as the program takes it: with the lab's number of the family, and the program's port.
fn from_server(message: &Message<'_>, at_card: u16, id: u16, port: u32) -> Vec<u8> {
    let mut bytes = message.bytes().to_vec();
    let kind = message.header.kind;
    if kind == CTRL {
        replace_family(&mut bytes, at_card, id);
    }
    rewrite(&mut bytes, |header| {
        header.kind = if kind == at_card && kind != CTRL { id } else { kind };
        header.port = port;
    });
    bytes
}

/// Replaces one number of the family by another in a message of `nlctrl`.
fn replace_family(message: &mut [u8], from: u16, to: u16) {
    let start = HEADER + GENL_HEADER;
    let Some(content) = message.get(start..) else { return };
    let found = find(content, FAMILY_ID).filter(|a| a.leading_u16() == Some(from));
    if let Some(at) = found.map(|attribute| attribute.value_offset()) {
        overwrite(message, start + at, &to.to_ne_bytes());
    }
}
