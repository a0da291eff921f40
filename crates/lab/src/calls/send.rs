//! Sending a request: when the call returns, the answer can be read, as with the kernel's own sockets.
//!
//! The kernel carries a request out in the call that sends it. Programs rely on that: Open vSwitch sends, and then
//! receives with MSG_DONTWAIT. So a request is read from the program's memory and handed to the relay behind the
//! socket; the relay answers the call when it has sent the program what there is to read. The caller's rights are
//! determined while the call waits, and count as they are at that moment.
//!
//! Requests that arrive in another way (by io_uring, or from a process without the filter) go through the socket
//! itself, and are answered a moment after they were sent.

use std::io;
use std::sync::Arc;

use netlink::{Errno, errno_of};

use crate::filter::{ADDRESS_LEN, AF_NETLINK};
use crate::lock_order::Cx;
use crate::process::Caller;
use crate::relay::{Request, Socket};
use crate::supervisor::{Answer, Lab, Reply};
use crate::sys::{self, Notification};

use super::{MSGHDR, long, read, write};

/// The most bytes of one packet: the default buffer of a netlink socket, less what the kernel reserves of it
/// (`netlink_sendmsg`: `sk_sndbuf - 32`).
const MOST: usize = 212_992 - 32;
/// The most parts of one packet, and the most packets of one `sendmmsg`: UIO_MAXIOV.
const PARTS: usize = 1024;
/// How many bytes one `sendmmsg` hands over before it stops. It may send fewer packets than requested.
const MOST_AT_ONCE: usize = 1 << 20;
/// Length of `struct mmsghdr`.
const MMSGHDR: u64 = 64;

/// `write`, `writev`, `sendto`, `sendmsg`, `sendmmsg`.
pub(super) fn send(
    cx: Cx<'_, '_>,
    lab: &Arc<Lab>,
    call: &Notification,
    socket: &Arc<Socket>,
    number: i64,
) -> io::Result<Answer> {
    let args = &call.data.args;
    let (packets, flags) = match number {
        libc::SYS_write => (vec![packet(call, &[(args[1], length(args[2])?)])?], 0),
        libc::SYS_writev => (vec![packet(call, &parts(call, args[1], args[2])?)?], 0),
        libc::SYS_sendto => {
            check_address(lab, call, args[4], args[5])?;
            (vec![packet(call, &[(args[1], length(args[2])?)])?], args[3] as i32)
        }
        libc::SYS_sendmsg => (vec![described(lab, call, args[1])?], args[2] as i32),
        _ => (several(lab, call)?, args[3] as i32),
    };
    if flags & libc::MSG_OOB != 0 {
        return Err(Errno::OPNOTSUPP.into());
    }
    let value = if number == libc::SYS_sendmmsg { packets.len() } else { packets.iter().map(Vec::len).sum() };
    let sender = Caller::of(call.pid, &lab.user_namespace)?;
    // If the call still waits, the memory and the rights that were read are those of its process.
    if !lab.still_waits(call) {
        return Ok(Answer::Later);
    }
    let reply = Reply::new(Arc::clone(lab), call.id, value as i64);
    socket.hand_over(cx, Request { packets, sender, reply });
    Ok(Answer::Later)
}

/// A length that one packet may have.
fn length(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).ok().filter(|bytes| *bytes <= MOST).ok_or(Errno::MSGSIZE.into())
}

/// Reads one packet.
pub(super) fn packet(call: &Notification, parts: &[(u64, usize)]) -> io::Result<Vec<u8>> {
    let len = parts.iter().try_fold(0usize, |sum, (_, len)| sum.checked_add(*len));
    let len = len.filter(|len| *len <= MOST).ok_or(Errno::MSGSIZE)?;
    // `netlink_sendmsg` since Linux 6.2.
    if len == 0 {
        return Err(Errno::NODATA.into());
    }
    let mut bytes = vec![0; len];
    match sys::read_parts(call.pid, parts, &mut bytes) {
        Ok(read) if read == len => Ok(bytes),
        Err(error) if errno_of(&error) == Errno::PERM => Err(error),
        _ => Err(Errno::FAULT.into()),
    }
}

/// Reads a `struct iovec[]`.
pub(super) fn parts(call: &Notification, at: u64, count: u64) -> io::Result<Vec<(u64, usize)>> {
    let count = usize::try_from(count).ok().filter(|count| *count <= PARTS).ok_or(Errno::INVAL)?;
    let mut bytes = vec![0; 16 * count];
    if count > 0 && sys::read_memory(call.pid, at, &mut bytes)? != bytes.len() {
        return Err(Errno::FAULT.into());
    }
    bytes.chunks_exact(16).map(|part| Ok((long(part, 0), length(long(part, 8))?))).collect()
}

/// Reads the packet that a `struct msghdr` describes. Netlink ignores control messages (descriptors, credentials).
fn described(lab: &Lab, call: &Notification, header: u64) -> io::Result<Vec<u8>> {
    let header: [u8; MSGHDR] = read(lab, call, header)?;
    let name_len = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    check_address(lab, call, long(&header, 0), name_len.into())?;
    let parts = parts(call, long(&header, 16), long(&header, 24)).map_err(|error| match errno_of(&error) {
        Errno::INVAL => Errno::MSGSIZE.into(),
        _ => error,
    })?;
    packet(call, &parts)
}

/// Reads the packets of a `sendmmsg`, up to the first that cannot be sent, and writes the length of each to the
/// program's `msg_len`.
fn several(lab: &Lab, call: &Notification) -> io::Result<Vec<Vec<u8>>> {
    let [_, headers, count, ..] = call.data.args;
    let (mut packets, mut bytes) = (Vec::new(), 0);
    for n in 0..(count as u32 as usize).min(PARTS) {
        let header = headers.wrapping_add(MMSGHDR * n as u64);
        let read = described(lab, call, header).and_then(|packet| {
            write(lab, call, header.wrapping_add(MSGHDR as u64), &(packet.len() as u32).to_ne_bytes())?;
            Ok(packet)
        });
        match read {
            Ok(packet) => {
                bytes += packet.len();
                packets.push(packet);
            }
            Err(error) if packets.is_empty() => return Err(error),
            Err(_) => break,
        }
        if bytes >= MOST_AT_ONCE {
            break;
        }
    }
    Ok(packets)
}

/// Checks the address to which a packet is sent: it must be the kernel's. A lab reaches no other netlink sockets.
fn check_address(lab: &Lab, call: &Notification, at: u64, len: u64) -> io::Result<()> {
    if at == 0 || len == 0 {
        return Ok(());
    }
    if len < u64::from(ADDRESS_LEN) {
        return Err(Errno::INVAL.into());
    }
    let bytes: [u8; ADDRESS_LEN as usize] = read(lab, call, at)?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    match (u32::from(u16::from_ne_bytes([bytes[0], bytes[1]])), word(4), word(8)) {
        (AF_NETLINK, 0, 0) => Ok(()),
        (AF_NETLINK, _, 0) => Err(Errno::CONNREFUSED.into()),
        (AF_NETLINK, ..) => Err(Errno::PERM.into()),
        _ => Err(Errno::INVAL.into()),
    }
}
