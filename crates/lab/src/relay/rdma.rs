//! NETLINK_RDMA: the cards' RDMA devices, from what their views say, and the kernel's own after them.
//!
//! A device's number is the card's as long as there is one card and the kernel has no devices of its own;
//! else each has a range for itself.

use std::sync::PoisonError;

use devlink::view::{RdmaDevice, RdmaPort};

use crate::message::{Attributes, Builder, Message, Messages, NLM_F_ACK, NLM_F_MULTI, NLMSG_MIN_TYPE, done, verdict};
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
type Answer = Result<Vec<Vec<u8>>, i32>;

impl Behind for Rdma {
    fn request(&mut self, io: &mut Io, packet: &[u8]) {
        for message in Messages(packet) {
            io.make_room();
            // What only tells is for nobody when nobody is there.
            if io.deaf && message.is_dump() {
                continue;
            }
            let now = io.cards.now();
            let answer = if message.is_request() { answer(io, &now, &message) } else { None };
            match answer {
                Some(answer) => tell(io, &message, answer),
                None if io.shared.native => io.pass_on(message.bytes),
                // Messages below the families' are nothing but acknowledged.
                None if message.kind < NLMSG_MIN_TYPE => tell(io, &message, Ok(Vec::new())),
                None => tell(io, &message, Err(libc::EINVAL)),
            }
        }
    }

    fn kernel(&mut self, io: &mut Io, datagram: &[u8]) {
        io.queue.push(Messages(datagram).map(|m| m.bytes));
    }
}

fn tell(io: &mut Io, request: &Message<'_>, answer: Answer) {
    let port = io.shared.port_to_send_from();
    let errno = match &answer {
        Ok(messages) => {
            io.queue.push(messages.iter().map(|message| &message[..]));
            0
        }
        Err(errno) => *errno,
    };
    if errno == 0 && request.is_dump() {
        // The kernel's devices come after ours, and its end ends both.
        if io.shared.native && request.kind == NLDEV + GET {
            io.pass_on(request.bytes);
        } else {
            io.tell(&done(request, port));
        }
    } else if errno != 0 || request.flags & NLM_F_ACK != 0 {
        io.tell(&verdict(request, port, errno, &[], io.shared.style()));
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
    let attributes = request.body();
    let command = request.kind.checked_sub(NLDEV)?;
    if ADMINISTRATIVE.contains(&command) && !io.may_administer() {
        return Some(Err(libc::EPERM));
    }
    if matches!(command, SYS_GET | SYS_SET) && !io.shared.native {
        return Some(system(io, request, command, attributes));
    }
    if !matches!(command, GET | PORT_GET) {
        return None;
    }
    let devices = devices(io, now);
    let wanted = Attributes::find(attributes, DEV_INDEX).and_then(|a| a.u32());
    if command == GET && request.is_dump() {
        return Some(Ok(devices.iter().map(|device| about_device(io, request, device)).collect()));
    }
    let Some(device) = devices.iter().find(|device| Some(device.index) == wanted) else {
        return (!io.shared.native).then_some(Err(libc::EINVAL));
    };
    if command == GET {
        return Some(Ok(vec![about_device(io, request, device)]));
    }
    let number = Attributes::find(attributes, PORT_INDEX).and_then(|a| a.u32());
    let ports = device.device.ports.iter().filter(|port| request.is_dump() || Some(port.number) == number);
    let answers: Vec<_> = ports.map(|port| about_port(io, request, device, port)).collect();
    let none = answers.is_empty() && !request.is_dump();
    Some(if none { Err(libc::EINVAL) } else { Ok(answers) })
}

/// `rdma system`: whether devices are shared between network namespaces.
fn system(io: &Io, request: &Message<'_>, command: u16, attributes: &[u8]) -> Answer {
    let mut mode = io.cards.rdma_mode.lock().unwrap_or_else(PoisonError::into_inner);
    if command == SYS_SET {
        let wanted = Attributes::find(attributes, NETNS_MODE).and_then(|a| a.payload.first().copied());
        *mode = wanted.filter(|mode| *mode <= 1).ok_or(libc::EINVAL)?;
        return Ok(Vec::new());
    }
    let mut builder = begin(io, request);
    builder.attribute(NETNS_MODE, &[*mode]);
    Ok(vec![builder.done()])
}

fn begin(io: &Io, request: &Message<'_>) -> Builder {
    let flags = if request.is_dump() { NLM_F_MULTI } else { 0 };
    Builder::new(request.kind, flags, request.seq, io.shared.port_to_send_from())
}

fn about_device(io: &Io, request: &Message<'_>, device: &Device<'_>) -> Vec<u8> {
    let mut builder = begin(io, request);
    builder.attribute(DEV_INDEX, &device.index.to_ne_bytes());
    builder.text(DEV_NAME, &device.device.name);
    builder.attribute(PORT_INDEX, &(device.device.ports.len() as u32).to_ne_bytes());
    builder.text(FW_VERSION, device.firmware);
    builder.attribute(NODE_GUID, &device.device.node_guid.to_ne_bytes());
    builder.attribute(SYS_IMAGE_GUID, &device.device.node_guid.to_ne_bytes());
    builder.attribute(NODE_TYPE, &[CHANNEL_ADAPTER]);
    builder.text(PROTOCOL, "roce");
    builder.done()
}

fn about_port(io: &Io, request: &Message<'_>, device: &Device<'_>, port: &RdmaPort) -> Vec<u8> {
    let mut builder = begin(io, request);
    builder.attribute(DEV_INDEX, &device.index.to_ne_bytes());
    builder.text(DEV_NAME, &device.device.name);
    builder.attribute(PORT_INDEX, &port.number.to_ne_bytes());
    let socket = &io.shared.kernel;
    // A netdev that is in another namespace is not told of, and carries nothing here.
    let netdev = port.netdev.as_deref().and_then(|name| {
        let index = rustix::net::netdevice::name_to_index(socket, name).ok()?;
        Some((index, name, sys::netdev_flags(socket, name).is_ok_and(|flags| flags & IFF_RUNNING != 0)))
    });
    let up = netdev.is_some_and(|(_, _, running)| running);
    builder.attribute(PORT_STATE, &[if up { ACTIVE } else { DOWN }]);
    builder.attribute(PORT_PHYS_STATE, &[if up { LINK_UP } else { DISABLED }]);
    if let Some((index, name, _)) = netdev {
        builder.attribute(NDEV_INDEX, &index.to_ne_bytes());
        builder.text(NDEV_NAME, name);
    }
    builder.done()
}
