//! NETLINK_RDMA: the cards' RDMA devices, from what their views say, and the kernel's own after them.
//!
//! A device's number is the card's as long as there is one card and the kernel has no devices of its own;
//! else each has a range for itself.

use std::sync::PoisonError;

use devlink::view::{RdmaDevice, RdmaPort};
use netlink::{BuildError, Builder, Errno, Flags, Header, Message, NLMSG_MIN_TYPE, find, messages};

use crate::{cards::Now, sys};

use super::{Behind, Io};

/// The client RDMA_NL_NLDEV, and its commands.
const NLDEV: u16 = 5 << 10;
const GET: u16 = 1;
const PORT_GET: u16 = 5;
const SYS_GET: u16 = 6;
const SYS_SET: u16 = 7;
/// Commands that take CAP_NET_ADMIN (RDMA_NL_ADMIN_PERM in `drivers/infiniband/core/nldev.c`): set, add and delete a
/// link, `SYS_SET`, statistics' set and del, raw dumps of queue pairs, completion queues, memory regions and shared
/// receive queues, add and delete a device.
const ADMINISTRATIVE: [u16; 12] = [2, 3, 4, SYS_SET, 16, 18, 19, 20, 21, 25, 26, 27];

const DEV_INDEX: u16 = 1;
const DEV_NAME: u16 = 2;
const PORT_INDEX: u16 = 3;
const FW_VERSION: u16 = 5;
const NODE_GUID: u16 = 6;
const SYS_IMAGE_GUID: u16 = 7;
const PORT_STATE: u16 = 12;
const PORT_PHYS_STATE: u16 = 13;
const NODE_TYPE: u16 = 14;
const NDEV_INDEX: u16 = 50;
const NDEV_NAME: u16 = 51;
const NETNS_MODE: u16 = 66;
const PROTOCOL: u16 = 67;

/// How many devices a card may have before its numbers run into the next one's.
const PER_CARD: u32 = 1 << 12;
/// Where the cards' numbers begin if the kernel has numbers of its own.
const AFTER_KERNEL: u32 = 1 << 20;
const CHANNEL_ADAPTER: u8 = 1;
const ACTIVE: u8 = 4;
const DOWN: u8 = 1;
const LINK_UP: u8 = 5;
const DISABLED: u8 = 3;
const IFF_RUNNING: u16 = 0x40;

pub(super) struct Rdma;

/// One device as programs see it.
struct Device<'a> {
    index: u32,
    device: &'a RdmaDevice,
    firmware: &'a str,
}

/// What became of a request: its answers, or an error number.
type Answer = Result<Vec<Vec<u8>>, Errno>;

impl Behind for Rdma {
    fn request(&mut self, io: &mut Io, packet: &[u8]) {
        for message in messages(packet) {
            io.make_room();
            // What only tells is for nobody when nobody is there.
            if io.deaf && message.header.is_dump() {
                continue;
            }
            let now = io.cards.now();
            let answer = if message.header.is_request() { answer(io, &now, &message) } else { None };
            match answer {
                Some(answer) => tell(io, &message, answer),
                None if io.shared.native => io.pass_on(message.bytes()),
                // Messages below the families' are nothing but acknowledged.
                None if message.header.kind < NLMSG_MIN_TYPE => tell(io, &message, Ok(Vec::new())),
                None => tell(io, &message, Err(Errno::INVAL)),
            }
        }
    }

    fn kernel(&mut self, io: &mut Io, datagram: &[u8]) {
        io.queue.push(messages(datagram).map(|m| m.bytes()));
    }
}

fn tell(io: &mut Io, request: &Message<'_>, answer: Answer) {
    let outcome = answer.map(|messages| io.queue.push(messages.iter().map(|message| &message[..])));
    if outcome.is_ok() && request.header.is_dump() {
        // The kernel's devices come after ours, and its end ends both.
        if io.shared.native && request.header.kind == NLDEV + GET {
            io.pass_on(request.bytes());
        } else {
            io.end_dump(request);
        }
    } else if outcome.is_err() || request.header.flags.contains(Flags::ACK) {
        io.acknowledge(request, outcome, |_| {});
    }
    io.flush();
}

fn devices<'a>(io: &Io, now: &'a Now) -> Vec<Device<'a>> {
    let base = if io.shared.native { AFTER_KERNEL } else { 0 };
    let of = |(n, seen): (usize, &'a crate::cards::Seen)| {
        let firmware = seen.card.profile.firmware.as_str();
        let index = move |device: &RdmaDevice| (base + PER_CARD * n as u32).wrapping_add(device.index);
        seen.card.rdma.iter().map(move |device| Device { index: index(device), device, firmware })
    };
    now.each().flat_map(of).collect()
}

/// The answer to a request; `None`: the kernel gives it, if there is one.
fn answer(io: &Io, now: &Now, request: &Message<'_>) -> Option<Answer> {
    let attributes = request.payload();
    let command = request.header.kind.checked_sub(NLDEV)?;
    if ADMINISTRATIVE.contains(&command) && !io.may_administer() {
        return Some(Err(Errno::PERM));
    }
    if matches!(command, SYS_GET | SYS_SET) && !io.shared.native {
        return Some(system(io, request, command, attributes));
    }
    if !matches!(command, GET | PORT_GET) {
        return None;
    }
    let devices = devices(io, now);
    let wanted = find(attributes, DEV_INDEX).and_then(|a| a.leading_u32());
    if command == GET && request.header.is_dump() {
        let told = devices.iter().map(|device| about_device(io, request, device)).collect::<Result<_, _>>();
        return Some(told.map_err(Errno::from));
    }
    let Some(device) = devices.iter().find(|device| Some(device.index) == wanted) else {
        return (!io.shared.native).then_some(Err(Errno::INVAL));
    };
    if command == GET {
        return Some(about_device(io, request, device).map(|told| vec![told]).map_err(Errno::from));
    }
    let number = find(attributes, PORT_INDEX).and_then(|a| a.leading_u32());
    let ports = device.device.ports.iter().filter(|port| request.header.is_dump() || Some(port.number) == number);
    let answers = ports.map(|port| about_port(io, request, device, port)).collect::<Result<Vec<_>, _>>();
    let none = answers.as_ref().is_ok_and(Vec::is_empty) && !request.header.is_dump();
    Some(if none { Err(Errno::INVAL) } else { answers.map_err(Errno::from) })
}

/// `rdma system`: whether devices are shared between network namespaces.
fn system(io: &Io, request: &Message<'_>, command: u16, attributes: &[u8]) -> Answer {
    let mut mode = io.cards.rdma_mode.lock().unwrap_or_else(PoisonError::into_inner);
    if command == SYS_SET {
        let wanted = find(attributes, NETNS_MODE).and_then(|a| a.value.first().copied());
        *mode = wanted.filter(|mode| *mode <= 1).ok_or(Errno::INVAL)?;
        return Ok(Vec::new());
    }
    let told = told(io, request, |to| {
        to.u8(NETNS_MODE, *mode);
    });
    Ok(vec![told?])
}

/// A message of an answer.
fn told(io: &Io, request: &Message<'_>, fill: impl FnOnce(&mut Builder)) -> Result<Vec<u8>, BuildError> {
    let flags = if request.header.is_dump() { Flags::MULTI } else { Flags::empty() };
    let Header { kind, sequence, .. } = request.header;
    netlink::message(Header::new(kind, flags, sequence, io.shared.port_to_send_from()), fill)
}

fn about_device(io: &Io, request: &Message<'_>, device: &Device<'_>) -> Result<Vec<u8>, BuildError> {
    told(io, request, |to| {
        to.u32(DEV_INDEX, device.index).text(DEV_NAME, &device.device.name);
        to.u32(PORT_INDEX, device.device.ports.len() as u32).text(FW_VERSION, device.firmware);
        to.u64(NODE_GUID, device.device.node_guid).u64(SYS_IMAGE_GUID, device.device.node_guid);
        to.u8(NODE_TYPE, CHANNEL_ADAPTER).text(PROTOCOL, "roce");
    })
}

fn about_port(io: &Io, request: &Message<'_>, device: &Device<'_>, port: &RdmaPort) -> Result<Vec<u8>, BuildError> {
    let socket = &io.shared.kernel;
    // A netdev that is in another namespace is not told of, and carries nothing here.
    let netdev = port.netdev.as_deref().and_then(|name| {
        let index = rustix::net::netdevice::name_to_index(socket, name).ok()?;
        Some((index, name, sys::netdev_flags(socket, name).is_ok_and(|flags| flags & IFF_RUNNING != 0)))
    });
    let up = netdev.is_some_and(|(_, _, running)| running);
    told(io, request, |to| {
        to.u32(DEV_INDEX, device.index).text(DEV_NAME, &device.device.name).u32(PORT_INDEX, port.number);
        to.u8(PORT_STATE, if up { ACTIVE } else { DOWN });
        to.u8(PORT_PHYS_STATE, if up { LINK_UP } else { DISABLED });
        if let Some((index, name, _)) = netdev {
            to.u32(NDEV_INDEX, index).text(NDEV_NAME, name);
        }
    })
}
