//! NETLINK_RDMA: the cards' RDMA devices, from the cards' views, and the kernel's own devices after them.
//!
//! As long as there is one card and the kernel has no RDMA, a device has the index that it has at the card. Else each
//! card has a range of indexes.

use std::os::fd::{AsFd, OwnedFd};

use devlink::RdmaChange;
use devlink::view::{RdmaDevice, RdmaPort};
use netlink::{BuildError, Builder, Errno, Flags, Header, Message, NLMSG_MIN_TYPE, errno_of, find, messages};

use crate::cards::Views;
use crate::lock_order::Cx;
use crate::network::NetworkId;
use crate::{process, rdma_system, sys};

use super::{Handler, Relay};

/// The client RDMA_NL_NLDEV, and its commands.
const NLDEV: u16 = 5 << 10;
const GET: u16 = 1;
const SET: u16 = 2;
const PORT_GET: u16 = 5;
const SYS_GET: u16 = 6;
const SYS_SET: u16 = 7;
const RES_GET: u16 = 9;
/// Dumps of what no device has, as nobody uses one: queue pairs, connection identifiers, completion queues, memory regions,
/// protection domains, statistics, contexts, shared receive queues (RDMA_NLDEV_CMD_RES_QP_GET and so on).
const NOTHING_TO_DUMP: [u16; 8] = [10, 11, 12, 13, 14, 17, 22, 23];
/// Commands that require CAP_NET_ADMIN (RDMA_NL_ADMIN_PERM in `drivers/infiniband/core/nldev.c`): set, add and delete a
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
const RES_SUMMARY: u16 = 15;
const RES_SUMMARY_ENTRY: u16 = 16;
const RES_SUMMARY_ENTRY_NAME: u16 = 17;
const RES_SUMMARY_ENTRY_CURR: u16 = 18;
const NDEV_INDEX: u16 = 50;
const NDEV_NAME: u16 = 51;
const NETNS_MODE: u16 = 66;
const PROTOCOL: u16 = 67;
const NET_NS_FD: u16 = 68;
const DEV_DIM: u16 = 84;
const COPY_ON_FORK: u16 = 93;

/// How many device indexes each card has.
const PER_CARD: u32 = 1 << 12;
/// The first index of the cards' devices if the kernel has devices of its own.
const AFTER_KERNEL: u32 = 1 << 20;
/// RDMA_NODE_IB_CA.
const CHANNEL_ADAPTER: u8 = 1;
/// IB_PORT_ACTIVE and IB_PORT_DOWN.
const ACTIVE: u8 = 4;
const DOWN: u8 = 1;
/// IB_PORT_PHYS_STATE_LINK_UP and IB_PORT_PHYS_STATE_DISABLED.
const LINK_UP: u8 = 5;
const DISABLED: u8 = 3;
const IFF_RUNNING: u16 = 0x40;

/// The handler of a socket.
pub(super) struct Rdma;

/// One device as programs see it.
struct Device<'a> {
    index: u32,
    device: &'a RdmaDevice,
    firmware: &'a str,
    /// The index of the card.
    card: usize,
}

/// The answer to a request: its messages, or an error number.
type Answer = Result<Vec<Vec<u8>>, Errno>;

impl Handler for Rdma {
    fn request(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, packet: &[u8]) {
        for message in messages(packet) {
            relay.make_room(cx);
            // A dump changes nothing; if the program has closed its end, nobody reads it.
            if relay.deaf && message.header.is_dump() {
                continue;
            }
            let views = relay.cards.now(cx);
            let answer = if message.header.is_request() { answer(cx, relay, &views, &message) } else { None };
            match answer {
                Some(answer) => send_answer(cx, relay, &message, answer),
                None if relay.socket.native => relay.pass_on(cx, message.bytes()),
                // Control messages of netlink itself are only acknowledged (`netlink_rcv_skb`).
                None if message.header.kind < NLMSG_MIN_TYPE => send_answer(cx, relay, &message, Ok(Vec::new())),
                None => send_answer(cx, relay, &message, Err(Errno::INVAL)),
            }
        }
    }

    fn kernel(&mut self, _: Cx<'_, '_>, relay: &mut Relay, datagram: &[u8]) {
        relay.queue.push(messages(datagram).map(|m| m.bytes()));
    }
}

fn send_answer(cx: Cx<'_, '_>, relay: &mut Relay, request: &Message<'_>, answer: Answer) {
    let outcome = answer.map(|messages| relay.queue.push(messages.iter().map(|message| &message[..])));
    if outcome.is_ok() && request.header.is_dump() {
        // The kernel's devices follow the cards', and the end of its dump ends both.
        if relay.socket.native && request.header.kind == NLDEV + GET {
            relay.pass_on(cx, request.bytes());
        } else {
            relay.end_dump(cx, request);
        }
    } else if outcome.is_err() || request.header.flags.contains(Flags::ACK) {
        relay.acknowledge(cx, request, outcome, |_| {});
    }
    relay.flush();
}

/// The devices that are seen in the network namespace of a socket.
fn devices<'a>(relay: &Relay, views: &'a Views) -> Vec<Device<'a>> {
    let base = if relay.socket.native { AFTER_KERNEL } else { 0 };
    let network = NetworkId::of_socket(&relay.socket.kernel).ok();
    let mut seen = Vec::new();
    for (card, view) in views.each() {
        for device in &view.card.rdma {
            if rdma_system::is_seen(&relay.cards, card, &view.card, device, network) {
                let index = (base + PER_CARD * card as u32).wrapping_add(device.index);
                seen.push(Device { index, device, firmware: &view.card.profile.firmware, card });
            }
        }
    }
    seen
}

/// Sets something of a device: the first of a name, a network namespace and its moderation (`nldev_set_doit`).
fn set(relay: &Relay, views: &Views, device: &Device<'_>, attributes: &[u8]) -> Answer {
    let (cards, card, index) = (&relay.cards, device.card, device.device.index);
    let done = if let Some(name) = find(attributes, DEV_NAME) {
        let name = name.string().ok_or(Errno::INVAL)?;
        rdma_system::rename(cards, views, (card, index), name)
    } else if let Some(number) = find(attributes, NET_NS_FD) {
        let namespace = namespace_of(relay, number.leading_u32().ok_or(Errno::INVAL)?)?;
        if rdma_system::is_shared(views) {
            return Err(Errno::OPNOTSUPP);
        }
        rdma_system::change(cards, card, &RdmaChange::Move { index }, Some(namespace.as_fd()))
    } else if let Some(on) = find(attributes, DEV_DIM) {
        // `ib_device_set_dim`.
        let on = on.value.first().copied().filter(|on| *on <= 1).ok_or(Errno::INVAL)?;
        rdma_system::change(cards, card, &RdmaChange::Moderate { index, on: on == 1 }, None)
    } else {
        Ok(())
    };
    done.map(|()| Vec::new())
}

/// The network namespace behind a descriptor of the program that sends. EINVAL if it is none, EPERM if it may not be entered.
fn namespace_of(relay: &Relay, number: u32) -> Result<OwnedFd, Errno> {
    let namespace = process::take_fd(relay.sender.process, number).map_err(|error| errno_of(&error))?;
    NetworkId::of_namespace(&namespace).map_err(|error| errno_of(&error))?;
    Ok(namespace)
}

/// The answer to a request. `None`: the kernel answers it, if it has RDMA.
fn answer(cx: Cx<'_, '_>, relay: &Relay, views: &Views, request: &Message<'_>) -> Option<Answer> {
    let attributes = request.payload();
    let command = request.header.kind.checked_sub(NLDEV)?;
    if ADMINISTRATIVE.contains(&command) && !relay.may_administer_system() {
        return Some(Err(Errno::PERM));
    }
    if matches!(command, SYS_GET | SYS_SET) && !relay.socket.native {
        return Some(system(cx, relay, views, request, command));
    }
    if NOTHING_TO_DUMP.contains(&command) && request.header.is_dump() && !relay.socket.native {
        return Some(Ok(Vec::new()));
    }
    if !matches!(command, GET | SET | PORT_GET | RES_GET) {
        return None;
    }
    let devices = devices(relay, views);
    let wanted = find(attributes, DEV_INDEX).and_then(|a| a.leading_u32());
    let describe = if command == RES_GET { resources_message } else { device_message };
    if matches!(command, GET | RES_GET) && request.header.is_dump() {
        let all = devices.iter().map(|device| describe(cx, relay, request, device)).collect::<Result<_, _>>();
        return Some(all.map_err(Errno::from));
    }
    let Some(device) = devices.iter().find(|device| Some(device.index) == wanted) else {
        return (!relay.socket.native).then_some(Err(Errno::INVAL));
    };
    match command {
        GET | RES_GET => {
            return Some(describe(cx, relay, request, device).map(|one| vec![one]).map_err(Errno::from));
        }
        SET => return Some(set(relay, views, device, attributes)),
        _ => {}
    }
    let number = find(attributes, PORT_INDEX).and_then(|a| a.leading_u32());
    let ports = device.device.ports.iter().filter(|port| request.header.is_dump() || Some(port.number) == number);
    let answers =
        ports.map(|port| port_message(cx, relay, request, views, device, port)).collect::<Result<Vec<_>, _>>();
    let none = answers.as_ref().is_ok_and(Vec::is_empty) && !request.header.is_dump();
    Some(if none { Err(Errno::INVAL) } else { answers.map_err(Errno::from) })
}

/// `rdma system`: whether devices are shared between network namespaces (`nldev_sys_get_doit`, `nldev_set_sys_set_doit`).
fn system(cx: Cx<'_, '_>, relay: &Relay, views: &Views, request: &Message<'_>, command: u16) -> Answer {
    if command == SYS_SET {
        let wanted = find(request.payload(), NETNS_MODE).and_then(|a| a.value.first().copied());
        let wanted = wanted.filter(|mode| *mode <= 1).ok_or(Errno::INVAL)?;
        rdma_system::set_shared(&relay.cards, views, wanted == 1, relay.sender.process)?;
        return Ok(Vec::new());
    }
    let mode = u8::from(rdma_system::is_shared(views));
    let message = answer_message(cx, relay, request, |to| {
        to.u8(NETNS_MODE, mode).u8(COPY_ON_FORK, 1);
    });
    Ok(vec![message?])
}

/// Builds one message of an answer.
fn answer_message(
    cx: Cx<'_, '_>,
    relay: &Relay,
    request: &Message<'_>,
    fill: impl FnOnce(&mut Builder),
) -> Result<Vec<u8>, BuildError> {
    let flags = if request.header.is_dump() { Flags::MULTI } else { Flags::empty() };
    let Header { kind, sequence, .. } = request.header;
    netlink::message(Header::new(kind, flags, sequence, relay.socket.port_to_send_from(cx)), fill)
}

fn device_message(
    cx: Cx<'_, '_>,
    relay: &Relay,
    request: &Message<'_>,
    device: &Device<'_>,
) -> Result<Vec<u8>, BuildError> {
    answer_message(cx, relay, request, |to| {
        to.u32(DEV_INDEX, device.index).text(DEV_NAME, &device.device.name);
        to.u32(PORT_INDEX, device.device.ports.len() as u32).text(FW_VERSION, device.firmware);
        to.u64(NODE_GUID, device.device.node_guid).u64(SYS_IMAGE_GUID, device.device.node_guid);
        to.u8(NODE_TYPE, CHANNEL_ADAPTER).u8(DEV_DIM, device.device.moderation.into()).text(PROTOCOL, "roce");
    })
}

/// How many resources of each kind a device has: none, as no program of a lab can open it (`fill_res_info`).
fn resources_message(
    cx: Cx<'_, '_>,
    relay: &Relay,
    request: &Message<'_>,
    device: &Device<'_>,
) -> Result<Vec<u8>, BuildError> {
    answer_message(cx, relay, request, |to| {
        to.u32(DEV_INDEX, device.index).text(DEV_NAME, &device.device.name).nest_noflag(RES_SUMMARY, |summary| {
            for kind in ["pd", "cq", "qp", "cm_id", "mr", "ctx", "srq"] {
                summary.nest_noflag(RES_SUMMARY_ENTRY, |entry| {
                    entry.text(RES_SUMMARY_ENTRY_NAME, kind).u64(RES_SUMMARY_ENTRY_CURR, 0);
                });
            }
        });
    })
}

fn port_message(
    cx: Cx<'_, '_>,
    relay: &Relay,
    request: &Message<'_>,
    views: &Views,
    device: &Device<'_>,
    port: &RdmaPort,
) -> Result<Vec<u8>, BuildError> {
    // A netdev in another network namespace is not named, and the port is down.
    let peer = port.netdev.as_deref().and_then(|name| views.peer_named(device.card, name));
    let netdev = peer.zip(relay.network(cx)).and_then(|(peer, network)| {
        network.look(cx, &relay.cards, |table| table.netdev(peer).map(|(index, name)| (index, name.to_owned())))
    });
    let up = netdev.as_ref().is_some_and(|(_, name)| {
        sys::netdev_flags(&relay.socket.kernel, name).is_ok_and(|flags| flags & IFF_RUNNING != 0)
    });
    answer_message(cx, relay, request, |to| {
        to.u32(DEV_INDEX, device.index).text(DEV_NAME, &device.device.name).u32(PORT_INDEX, port.number);
        to.u8(PORT_STATE, if up { ACTIVE } else { DOWN });
        to.u8(PORT_PHYS_STATE, if up { LINK_UP } else { DISABLED });
        if let Some((index, name)) = netdev {
            to.u32(NDEV_INDEX, index).text(NDEV_NAME, &name);
        }
    })
}
