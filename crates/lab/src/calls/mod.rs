//! The answers to trapped calls.

mod driver;
mod modules;
mod receive;
mod send;
mod socket;

use std::io;
use std::sync::Arc;

use netlink::{Errno, errno_of};

use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};

/// The answer to one call.
pub(crate) fn answer(lab: &Arc<Lab>, call: &Notification) -> Answer {
    // A thread that our own pid namespace does not show is none we can look at.
    if call.pid == 0 {
        return Answer::Continue;
    }
    let number = i64::from(call.data.nr);
    match number {
        libc::SYS_socket => socket::socket(lab, call).into(),
        libc::SYS_ioctl => driver::ioctl(lab, call),
        libc::SYS_init_module => lab.answer_later(*call, modules::init_module),
        libc::SYS_finit_module => lab.answer_later(*call, modules::finit_module),
        libc::SYS_delete_module => lab.answer_later(*call, modules::delete_module),
        _ => about_socket(lab, call, number),
    }
}

/// The answer to a call whose first argument is a socket.
fn about_socket(lab: &Arc<Lab>, call: &Notification, number: i64) -> Answer {
    let Some(socket) = lab.socket(call.pid, call.data.args[0]) else { return Answer::Continue };
    match number {
        libc::SYS_bind => socket::bind(lab, call, &socket).into(),
        libc::SYS_connect => socket::connect(lab, call, &socket).into(),
        libc::SYS_getsockname => socket::getsockname(lab, call, &socket).into(),
        libc::SYS_setsockopt => socket::setsockopt(lab, call, &socket).into(),
        libc::SYS_getsockopt => socket::getsockopt(lab, call, &socket).into(),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_sendmmsg => {
            send::send(lab, call, &socket, number).into()
        }
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_recvmmsg => receive::receive(lab, call),
        _ => Answer::Continue,
    }
}

/// Length of `struct msghdr` on a machine of 64 bits.
const MSGHDR: usize = 56;

/// The word of 64 bits at a place; 0 if there is none.
fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// Reads exactly as much of a program's memory, and makes sure that it was that program's.
fn read<const N: usize>(lab: &Lab, call: &Notification, address: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match sys::read_memory(call.pid, address, &mut bytes) {
        Ok(len) if len == N && lab.still_waits(call) => Ok(bytes),
        Err(error) if errno_of(&error) == Errno::PERM => Err(error),
        _ => Err(Errno::FAULT.into()),
    }
}

fn write(lab: &Lab, call: &Notification, address: u64, bytes: &[u8]) -> io::Result<()> {
    if !lab.still_waits(call) {
        return Err(Errno::SRCH.into());
    }
    sys::write_memory(call.pid, address, bytes)
}

fn read_u32(lab: &Lab, call: &Notification, address: u64) -> io::Result<u32> {
    read(lab, call, address).map(u32::from_ne_bytes)
}

/// Reads up to a zero, at most `most` bytes.
fn read_text(lab: &Lab, call: &Notification, address: u64, most: usize) -> io::Result<String> {
    let mut bytes = vec![0; most];
    // It may lie near the end of what is mapped: the rest of its page is there, the next one perhaps not.
    let to_page = 4096 - (address % 4096) as usize;
    let mut len = sys::read_memory(call.pid, address, &mut bytes[..most.min(to_page)])?;
    if len == to_page && !bytes[..len].contains(&0) {
        len += sys::read_memory(call.pid, address + len as u64, &mut bytes[len..]).unwrap_or(0);
    }
    let end = bytes[..len].iter().position(|byte| *byte == 0).ok_or(Errno::NOENT)?;
    if !lab.still_waits(call) {
        return Err(Errno::SRCH.into());
    }
    bytes.truncate(end);
    String::from_utf8(bytes).map_err(|_| Errno::NOENT.into())
}
