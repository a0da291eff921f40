//! A program's netlink socket: one end of a connected pair, of which a thread of the lab has the other end.
//!
//! The pair is of AF_UNIX and SOCK_SEQPACKET. It keeps messages whole, reports the true length of one that was cut
//! short, ignores the address to which something is sent, and can be polled, passed on and inherited, all in the
//! kernel. Calls that query the socket itself are trapped, and answered as for a netlink socket.
//!
//! For speed, receiving is not trapped. Our end is bound to an abstract name of ten bytes, so that its address has the
//! length of a `sockaddr_nl`, and zeros where that has the sender's port; this is what the C libraries check. For
//! programs that also check the family, see [`super::receive`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use ::netlink::{Errno, errno_of};
use devlink::{CONFIG_GROUP, FILTERS_GROUP};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, netlink};

use crate::filter::{ADDRESS_LEN, AF_NETLINK, SOL_NETLINK, SOL_SOCKET};
use crate::lock_order::Cx;
use crate::network::within;
use crate::process::{self, Caller, NET_ADMIN};
use crate::relay::{self, KernelSocket, Protocol, Socket};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};

use super::{read, read_u32, write};

/// The most bytes of an option's value.
const OPTION: usize = 256;
/// The stack of a socket's thread, in bytes; most of it is never touched.
const STACK: usize = 512 << 10;

/// The most bytes that wait in the kernel to be received by a program, as the kernel counts them.
const SEND_BUFFER: usize = 8 << 20;

/// `socket(AF_NETLINK, …)`.
pub(super) fn socket(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> io::Result<Answer> {
    let [_, kind, protocol, ..] = call.data.args;
    let (flags, kind) = ((kind as i32) & !0xf, (kind as i32) & 0xf);
    let known = matches!(kind, libc::SOCK_RAW | libc::SOCK_DGRAM) && flags & !(SOCK_FLAGS) == 0;
    let (Some(protocol), true) = (Protocol::of(protocol as u32), known && lab.cards.len() > 0) else {
        return Ok(Answer::Continue);
    };
    let caller = Caller::of(call.pid, &lab.user_namespace)?;
    let Some(kernel) = kernel_socket(lab, call.pid, &caller, protocol)? else { return Ok(Answer::Continue) };
    let socket = Arc::new(Socket::new(protocol, kind as u32, caller, kernel, Arc::clone(&lab.user_namespace))?);
    let (theirs, ours) = pair(flags & libc::SOCK_NONBLOCK != 0)?;
    start(cx, lab, socket, &theirs, ours)?;
    let at = high_number(cx, lab, call.pid);
    let give = |at| {
        let cloexec = flags & libc::SOCK_CLOEXEC != 0;
        sys::respond_fd(lab.listener.as_fd(), call.id, theirs.as_fd(), at, cloexec)
    };
    match give(at) {
        // The program's limit of descriptors has been lowered meanwhile: it gets any number.
        Err(error) if at.is_some() && errno_of(&error) == Errno::BADF => give(None)?,
        outcome => outcome?,
    }
    Ok(Answer::Later)
}

pub(super) const SOCK_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Starts the thread behind a socket. It ends when `theirs` is closed everywhere.
fn start(cx: Cx<'_, '_>, lab: &Arc<Lab>, socket: Arc<Socket>, theirs: &OwnedFd, ours: OwnedFd) -> io::Result<()> {
    let inode = rustix::fs::fstat(theirs)?.st_ino;
    lab.add(cx, inode, Arc::clone(&socket));
    let behind = Arc::clone(lab);
    let run = move || {
        lockdep::enter(&behind.domain, "lab-socket", |cx| {
            let (cards, families) = (Arc::clone(&behind.cards), Arc::clone(&behind.families));
            // A socket whose thread has panicked is known no more either. The panic has been printed already.
            let _ = catch_unwind(AssertUnwindSafe(|| relay::carry(cx, ours, socket, cards, families)));
            behind.remove(cx, inode);
        });
    };
    let started = thread::Builder::new().name("lab-socket".to_owned()).stack_size(STACK).spawn(run);
    if started.is_err() {
        lab.remove(cx, inode);
    }
    started.map(drop)
}

/// Makes the kernel's socket behind a program's socket: in the program's network namespace, and with no more rights
/// than the program has. `None`: the program is to make its socket itself, without the lab.
///
/// If the program is in a user namespace of its own, and in a network namespace that belongs to it, a process opens the
/// socket there: then the kernel gives it the rights that it has there, and no others (`__netlink_ns_capable`).
fn kernel_socket(lab: &Lab, thread: u32, caller: &Caller, protocol: Protocol) -> io::Result<Option<KernelSocket>> {
    let Caller { capabilities, user, .. } = *caller;
    let made = |(socket, native)| Some(KernelSocket { socket, native, owner: None });
    if process::network(&thread.to_string()) == lab.network {
        return Ok(made(process::with_rights(capabilities, user, || open_socket(protocol))??));
    }
    let there = process::open_network(thread)?;
    if !process::is_owned_by_us(&there).unwrap_or(false) && !lab.user_namespace.contains(thread) {
        if !process::is_below(thread, &there) {
            return Ok(None);
        }
        let users = File::open(format!("/proc/{thread}/ns/user"))?;
        let socket =
            process::open_in_user_namespace(&users, &there, caller.own_capabilities, || Ok(open_socket(protocol)?.0))?;
        let native = rustix::net::sockopt::socket_protocol(&socket)?.map_or(0, |found| found.as_raw().get());
        let native = native == protocol.number() as u32;
        return Ok(Some(KernelSocket { socket, native, owner: Some(caller.user_namespace) }));
    }
    Ok(made(within(&there, || process::with_rights(capabilities, user, || open_socket(protocol))?)?))
}

/// NETLINK_ROUTE is 0, as is no protocol.
const ROUTE: Option<rustix::net::Protocol> = None;

fn open_socket(protocol: Protocol) -> io::Result<(OwnedFd, bool)> {
    let open =
        |protocol| rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
    match protocol {
        Protocol::Route => Ok((open(ROUTE)?, true)),
        Protocol::Generic => Ok((open(Some(netlink::GENERIC))?, true)),
        Protocol::Rdma => match open(Some(netlink::RDMA)) {
            // The kernel has no RDMA. The port is then reserved by a socket that is used for nothing else.
            Err(Errno::PROTONOSUPPORT) => Ok((open(ROUTE)?, false)),
            socket => Ok((socket?, true)),
        },
    }
}

/// Makes a connected pair: the program's end and ours.
fn pair(nonblocking: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    if nonblocking {
        rustix::io::ioctl_fionbio(&theirs, true)?;
    }
    // The kernel builds the next part of a dump when the one before is received. Here the whole dump must be in the
    // buffer: that of a card with some 2,000 netdevs fits. Without root the buffer is smaller.
    if rustix::net::sockopt::set_socket_send_buffer_size_force(&ours, SEND_BUFFER).is_err() {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&ours, SEND_BUFFER);
    }
    // Before anything is sent, so that each packet has its sender's credentials.
    rustix::net::sockopt::set_socket_passcred(&ours, true)?;
    name(&ours)?;
    Ok((theirs, ours))
}

/// Binds our end to an address that reads as the kernel's: port 0. Two sockets cannot have the same name, so the last
/// four bytes, which netlink uses for multicast groups, are any free number; 0 if possible.
fn name(ours: &OwnedFd) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const TRIES: usize = 64;
    let start = std::process::id().rotate_left(16);
    let mut groups = 0;
    for _ in 0..TRIES {
        let mut name = [0; 9];
        name[5..].copy_from_slice(&u32::to_ne_bytes(groups));
        match rustix::net::bind(ours, &SocketAddrUnix::new_abstract_name(&name)?) {
            Err(Errno::ADDRINUSE) => groups = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)),
            outcome => return Ok(outcome?),
        }
    }
    Err(Errno::ADDRINUSE.into())
}

/// A free descriptor number in the range from which receiving is trapped, for a program that needs it.
fn high_number(cx: Cx<'_, '_>, lab: &Lab, thread: u32) -> Option<u32> {
    if !lab.exact_addresses && !lab.go_programs.contains(cx, thread) {
        return None;
    }
    lab.high.clone().rev().find(|fd| !process::has_fd(thread, *fd))
}

/// Builds a `sockaddr_nl`.
pub(super) fn address(port: u32, groups: u32) -> [u8; ADDRESS_LEN as usize] {
    let mut bytes = [0; ADDRESS_LEN as usize];
    bytes[..2].copy_from_slice(&(AF_NETLINK as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&port.to_ne_bytes());
    bytes[8..].copy_from_slice(&groups.to_ne_bytes());
    bytes
}

/// Reads the family, port and groups of the address in the call's second argument. What follows them is ignored
/// (`netlink_bind`).
pub(super) fn read_address(lab: &Lab, call: &Notification) -> io::Result<(u16, u32, u32)> {
    if (call.data.args[2] as u32) < ADDRESS_LEN {
        return Err(Errno::INVAL.into());
    }
    let bytes: [u8; ADDRESS_LEN as usize] = read(lab, call, call.data.args[1])?;
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok((u16::from_ne_bytes([bytes[0], bytes[1]]), number(4), number(8)))
}

/// `bind`.
pub(super) fn bind(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification, socket: &Socket) -> io::Result<Answer> {
    let (family, port, groups) = read_address(lab, call)?;
    if u32::from(family) != AF_NETLINK {
        return Err(Errno::INVAL.into());
    }
    let is_route = socket.protocol == Protocol::Route && socket.native;
    if is_route && (groups & RTMGRP_TC != 0) != socket.is_subscribed(cx, FILTERS_GROUP) {
        // Cards have to be asked.
        return Ok(lab.answer_later(*call, bind_for_filters));
    }
    as_caller(lab, call, || socket.bind(cx, port, groups))??;
    Ok(Answer::Value(0))
}

/// `bind` of a socket that joins or leaves the multicast group of filters with it.
fn bind_for_filters(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    let mut work = || -> io::Result<Answer> {
        let Some(socket) = lab.socket(cx, call.pid, call.data.args[0]) else { return Ok(Answer::Continue) };
        let (_, port, groups) = read_address(lab, call)?;
        as_caller(lab, call, || socket.bind(cx, port, groups))??;
        hear_of_filters(cx, lab, &socket, groups & RTMGRP_TC != 0);
        Ok(Answer::Value(0))
    };
    work().into()
}

/// Joins or leaves the multicast group of filters, by the option.
fn filter_membership(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    let mut work = || -> io::Result<Answer> {
        let Some(socket) = lab.socket(cx, call.pid, call.data.args[0]) else { return Ok(Answer::Continue) };
        let option = call.data.args[2] as i32;
        let group = read_u32(lab, call, call.data.args[3])?;
        as_caller(lab, call, || sys::set_option(&socket.kernel, libc::SOL_NETLINK, option, &group.to_ne_bytes()))??;
        if group == RTNLGRP_TC {
            hear_of_filters(cx, lab, &socket, option == libc::NETLINK_ADD_MEMBERSHIP);
        }
        Ok(Answer::Value(0))
    };
    work().into()
}

/// Subscribes a socket to the cards' changes to filters, or ends that. Of a card that does not answer it hears nothing: it is a
/// member of the kernel's group all the same.
fn hear_of_filters(cx: Cx<'_, '_>, lab: &Lab, socket: &Socket, joins: bool) {
    let _ = socket.subscribe(cx, &lab.cards, FILTERS_GROUP, joins);
}

/// Runs `act` on a kernel's socket with the rights of the caller: some options and groups require a capability
/// (`netlink_setsockopt`, `netlink_bind`, `genl_bind`).
fn as_caller<T>(lab: &Lab, call: &Notification, act: impl FnOnce() -> T) -> io::Result<T> {
    let Caller { capabilities, user, .. } = Caller::of(call.pid, &lab.user_namespace)?;
    if !lab.still_waits(call) {
        return Err(Errno::SRCH.into());
    }
    process::with_rights(capabilities, user, act)
}

/// `connect`: to the kernel, to which the socket is connected already. The socket gets a port if it has none
/// (`netlink_connect`): Open vSwitch then queries the port, and passes it to the kernel's datapath.
pub(super) fn connect(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, socket: &Socket) -> io::Result<Answer> {
    let (family, port, _) = read_address(lab, call)?;
    match u32::from(family) {
        AF_NETLINK if port == 0 => {
            if socket.port() == 0 {
                socket.bind(cx, 0, 0)?;
            }
            Ok(Answer::Value(0))
        }
        AF_NETLINK => Err(Errno::CONNREFUSED.into()),
        // AF_UNSPEC.
        0 => Ok(Answer::Value(0)),
        _ => Err(Errno::INVAL.into()),
    }
}

/// `getsockname`.
pub(super) fn getsockname(lab: &Lab, call: &Notification, socket: &Socket) -> io::Result<Answer> {
    give_address(lab, call, call.data.args[1], call.data.args[2], &address(socket.port(), 0))?;
    Ok(Answer::Value(0))
}

/// Writes an address as the kernel does: as much as there is room for, and its true length.
pub(super) fn give_address(lab: &Lab, call: &Notification, to: u64, len: u64, address: &[u8]) -> io::Result<()> {
    let room = read_u32(lab, call, len)? as i32;
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?;
    write(lab, call, to, &address[..room.min(address.len())])?;
    write(lab, call, len, &(address.len() as u32).to_ne_bytes())
}

/// `setsockopt(SOL_NETLINK)`: sets the option of the kernel's socket.
pub(super) fn setsockopt(lab: &Arc<Lab>, call: &Notification, socket: &Socket) -> io::Result<Answer> {
    let [_, level, option, value, len, _] = call.data.args;
    if level as u32 != SOL_NETLINK {
        return Ok(Answer::Continue);
    }
    let option = option as i32;
    let len = usize::try_from(len as i32).map_err(|_| Errno::INVAL)?.min(OPTION);
    let mut bytes = vec![0; len];
    if len > 0 && sys::read_memory(call.pid, value, &mut bytes)? != len {
        return Err(Errno::FAULT.into());
    }
    let number = ::netlink::u32_at(&bytes, 0);
    if let (Some(_), true) = (number, is_membership(option) && socket.protocol == Protocol::Generic) {
        // Whether the group is devlink's may have to be requested from a card.
        return Ok(lab.answer_later(*call, membership));
    }
    if number == Some(RTNLGRP_TC) && is_membership(option) && socket.protocol == Protocol::Route && socket.native {
        return Ok(lab.answer_later(*call, filter_membership));
    }
    if !socket.native && is_membership(option) {
        return Ok(Answer::Value(0));
    }
    as_caller(lab, call, || sys::set_option(&socket.kernel, libc::SOL_NETLINK, option, &bytes))??;
    socket.set_ack_option(option, number.is_some_and(|number| number != 0));
    Ok(Answer::Value(0))
}

/// The multicast group of rtnetlink that hears of filters, and its bit in an address.
const RTNLGRP_TC: u32 = 4;
const RTMGRP_TC: u32 = 1 << (RTNLGRP_TC - 1);

fn is_membership(option: i32) -> bool {
    matches!(option, libc::NETLINK_ADD_MEMBERSHIP | libc::NETLINK_DROP_MEMBERSHIP)
}

/// Whether the caller has CAP_NET_ADMIN in the user namespace to which the socket's network namespace belongs (`genl_bind`).
fn may_administer(lab: &Lab, call: &Notification, socket: &Socket) -> io::Result<bool> {
    let caller = Caller::of(call.pid, &lab.user_namespace)?;
    if !lab.still_waits(call) {
        return Err(Errno::SRCH.into());
    }
    Ok(caller.network_capabilities(socket.owner) & NET_ADMIN != 0)
}

/// Joins or leaves a multicast group of generic netlink.
fn membership(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    let mut work = || -> io::Result<Answer> {
        let Some(socket) = lab.socket(cx, call.pid, call.data.args[0]) else { return Ok(Answer::Continue) };
        let option = call.data.args[2] as i32;
        let group = read_u32(lab, call, call.data.args[3])?;
        let joins = option == libc::NETLINK_ADD_MEMBERSHIP;
        let psample = lab.families.psample();
        if let Some((family, at_card)) = psample.and_then(|family| Some((family, family.group_at_card(group)?))) {
            if family.in_kernel {
                let set = || sys::set_option(&socket.kernel, libc::SOL_NETLINK, option, &group.to_ne_bytes());
                as_caller(lab, call, set)??;
            }
            // Also where a kernel before 6.7 lets anybody join: what the card samples are frames of others.
            if !joins || !family.takes_admin(group) || may_administer(lab, call, &socket)? {
                socket.subscribe(cx, &lab.cards, at_card, joins)?;
            } else if !family.in_kernel {
                return Err(Errno::PERM.into());
            }
            return Ok(Answer::Value(0));
        }
        if lab.families.is_group(cx, &lab.cards, group) {
            socket.subscribe(cx, &lab.cards, CONFIG_GROUP, joins)?;
            if !lab.families.is_in_kernel() {
                return Ok(Answer::Value(0));
            }
        }
        as_caller(lab, call, || sys::set_option(&socket.kernel, libc::SOL_NETLINK, option, &group.to_ne_bytes()))??;
        if lab.families.ethtool().is_some_and(|family| family.monitor == group) {
            lab.cards.monitors.join(cx, &socket, joins);
        }
        Ok(Answer::Value(0))
    };
    work().into()
}

/// `getsockopt`: the option of the kernel's socket, or what a netlink socket would have.
pub(super) fn getsockopt(lab: &Lab, call: &Notification, socket: &Socket) -> io::Result<Answer> {
    let [_, level, option, value, len, _] = call.data.args;
    let room = read_u32(lab, call, len)? as i32;
    let room = usize::try_from(room).map_err(|_| Errno::INVAL)?.min(OPTION);
    let mut bytes = vec![0; room];
    let given = if level as u32 == SOL_SOCKET {
        let number = match option as i32 {
            libc::SO_TYPE => socket.kind,
            libc::SO_PROTOCOL => socket.protocol.number() as u32,
            libc::SO_DOMAIN => AF_NETLINK,
            _ => return Ok(Answer::Continue),
        };
        let given = room.min(4);
        bytes[..given].copy_from_slice(&number.to_ne_bytes()[..given]);
        given
    } else {
        sys::option(&socket.kernel, libc::SOL_NETLINK, option as i32, &mut bytes)?
    };
    write(lab, call, value, &bytes[..given.min(room)])?;
    write(lab, call, len, &(given as u32).to_ne_bytes())?;
    Ok(Answer::Value(0))
}
