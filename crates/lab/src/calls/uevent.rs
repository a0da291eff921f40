//! A program's socket for uevents (NETLINK_KOBJECT_UEVENT): calls that make it, join groups and send.
//!
//! The kernel receives for the program: the socket holds messages of the lab, from addresses that read as netlink's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use netlink::Errno;

use super::send::{packet, parts};
use super::socket::{SOCK_FLAGS, address, give_address, read_address};
use super::{MSGHDR, long, read, read_u32, write};
use crate::filter::{ADDRESS_LEN, AF_NETLINK, SOL_SOCKET};
use crate::lock_order::Cx;
use crate::process::{self, Caller, NET_ADMIN};
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};

/// NETLINK_KOBJECT_UEVENT.
pub(super) const PROTOCOL: u64 = libc::NETLINK_KOBJECT_UEVENT as u64;

/// The longest message, in bytes: udev's have at most half of it.
const MOST: usize = 16 << 10;

/// `socket(AF_NETLINK, …, NETLINK_KOBJECT_UEVENT)`.
pub(super) fn socket(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> Answer {
    // A lab that cannot have such sockets leaves the program with the kernel's, which say nothing of a card.
    make(cx, lab, call).unwrap_or(Answer::Continue)
}

fn make(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> io::Result<Answer> {
    let kind = call.data.args[1] as i32;
    let (flags, kind) = (kind & !0xf, kind & 0xf);
    if !lab.shows_sysfs || !matches!(kind, libc::SOCK_RAW | libc::SOCK_DGRAM) || flags & !SOCK_FLAGS != 0 {
        return Ok(Answer::Continue);
    }
    let caller = Caller::of(call.pid, &lab.user_namespace)?;
    let network: OwnedFd = process::open_network(call.pid)?.into();
    let root = if lab.user_namespace.owns(&network) { None } else { Some(process::root_of(call.pid)) };
    let is_own = process::network(&call.pid.to_string()) == lab.network;
    let elsewhere = (!is_own).then_some(&network);
    let socket = lab.uevents.open(cx, lab, elsewhere, root, caller.own)?;
    if flags & libc::SOCK_NONBLOCK != 0 {
        rustix::io::ioctl_fionbio(&socket, true)?;
    }
    sys::respond_fd(lab.listener.as_fd(), call.id, socket.as_fd(), None, flags & libc::SOCK_CLOEXEC != 0)?;
    Ok(Answer::Later)
}

/// A call on such a socket. `None`: it is none.
pub(super) fn on_socket(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, number: i64) -> Option<Answer> {
    if !lab.uevents.is_used(cx) {
        return None;
    }
    let inode = process::socket_inode(call.pid, u32::try_from(call.data.args[0]).ok()?)?;
    let port = lab.uevents.port(cx, inode)?;
    let answer = match number {
        libc::SYS_bind => bind(cx, lab, call, inode),
        libc::SYS_connect => Ok(Answer::Value(0)),
        libc::SYS_getsockname => {
            let [_, to, len, ..] = call.data.args;
            give_address(lab, call, to, len, &address(port, 0)).map(|()| Answer::Value(0))
        }
        libc::SYS_setsockopt => set_option(cx, lab, call, inode),
        libc::SYS_getsockopt => option(lab, call),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendmmsg => Err(Errno::CONNREFUSED.into()),
        libc::SYS_sendto | libc::SYS_sendmsg => send(cx, lab, call, number, inode),
        _ => Ok(Answer::Continue),
    };
    Some(answer.into())
}

fn bind(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, inode: u64) -> io::Result<Answer> {
    let (family, _, groups) = read_address(lab, call)?;
    if u32::from(family) != AF_NETLINK {
        return Err(Errno::INVAL.into());
    }
    lab.uevents.join(cx, &lab.cards, inode, |_| groups);
    Ok(Answer::Value(0))
}

/// Joins or leaves a multicast group. Other options of netlink's change nothing here.
fn set_option(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, inode: u64) -> io::Result<Answer> {
    let [_, _, option, value, ..] = call.data.args;
    let option = option as i32;
    if !matches!(option, libc::NETLINK_ADD_MEMBERSHIP | libc::NETLINK_DROP_MEMBERSHIP) {
        return Ok(Answer::Value(0));
    }
    let group = read_u32(lab, call, value)?;
    let bit = group.checked_sub(1).and_then(|n| 1u32.checked_shl(n)).ok_or(Errno::INVAL)?;
    let joins = option == libc::NETLINK_ADD_MEMBERSHIP;
    lab.uevents.join(cx, &lab.cards, inode, |groups| if joins { groups | bit } else { groups & !bit });
    Ok(Answer::Value(0))
}

fn option(lab: &Lab, call: &Notification) -> io::Result<Answer> {
    let [_, level, option, value, len, _] = call.data.args;
    if level as u32 != SOL_SOCKET {
        return Err(Errno::NOPROTOOPT.into());
    }
    let number = match option as i32 {
        libc::SO_TYPE => libc::SOCK_RAW as u32,
        libc::SO_PROTOCOL => PROTOCOL as u32,
        libc::SO_DOMAIN => AF_NETLINK,
        _ => return Ok(Answer::Continue),
    };
    let given = usize::try_from(read_u32(lab, call, len)?).unwrap_or(0).min(4);
    write(lab, call, value, &number.to_ne_bytes()[..given])?;
    write(lab, call, len, &(given as u32).to_ne_bytes())?;
    Ok(Answer::Value(0))
}

/// Sends to a multicast group or to a port, as udev does. It takes CAP_NET_ADMIN, as `netlink_sendmsg` says.
fn send(cx: Cx<'_, '_>, lab: &Lab, call: &Notification, number: i64, inode: u64) -> io::Result<Answer> {
    let args = &call.data.args;
    let (at, len, bytes) = if number == libc::SYS_sendto {
        (args[4], args[5], packet(call, &[(args[1], usize::try_from(args[2]).map_err(|_| Errno::MSGSIZE)?)])?)
    } else {
        let header: [u8; MSGHDR] = read(lab, call, args[1])?;
        let name_len = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let parts = parts(call, long(&header, 16), long(&header, 24))?;
        (long(&header, 0), u64::from(name_len), packet(call, &parts)?)
    };
    if at == 0 || len < u64::from(ADDRESS_LEN) {
        return Err(Errno::CONNREFUSED.into());
    }
    let to: [u8; ADDRESS_LEN as usize] = read(lab, call, at)?;
    let word = |at: usize| u32::from_ne_bytes([to[at], to[at + 1], to[at + 2], to[at + 3]]);
    let (port, groups) = (word(4), word(8));
    let network = process::open_network(call.pid)?;
    if !process::is_capable(call.pid, NET_ADMIN, network) {
        return Err(Errno::PERM.into());
    }
    let user = Caller::of(call.pid, &lab.user_namespace)?.user;
    if bytes.len() > MOST {
        return Err(Errno::MSGSIZE.into());
    }
    if !lab.still_waits(call) {
        return Ok(Answer::Later);
    }
    if groups != 0 {
        lab.uevents.publish(cx, inode, groups, user, &bytes);
    } else {
        let from = process::take_fd(call.pid, args[0] as u32)?;
        lab.uevents.unicast(cx, (inode, &from), port, user, &bytes)?;
    }
    Ok(Answer::Value(bytes.len() as i64))
}
