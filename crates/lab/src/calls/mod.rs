//! The answers to trapped calls.

mod ethtool;
mod modules;
mod mount;
mod mtu;
mod receive;
mod send;
mod socket;
mod statfs;
mod uevent;

use std::io;
use std::sync::Arc;

use netlink::{Errno, errno_of};

use crate::filter::SIOCSIFMTU;
use crate::lock_order::Cx;
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};

/// Answers one call.
pub(crate) fn answer(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> Answer {
    // A thread that has no number in our pid namespace cannot be inspected.
    if call.pid == 0 {
        return Answer::Continue;
    }
    let number = i64::from(call.data.nr);
    match number {
        libc::SYS_socket if call.data.args[2] == uevent::PROTOCOL => uevent::socket(cx, lab, call),
        libc::SYS_socket => socket::socket(cx, lab, call).into(),
        libc::SYS_ioctl if call.data.args[1] as u32 == SIOCSIFMTU => mtu::set(cx, lab, call),
        libc::SYS_ioctl => ethtool::ioctl(cx, lab, call),
        libc::SYS_mount => mount::mount(lab, call),
        libc::SYS_umount2 => mount::umount(lab, call),
        libc::SYS_move_mount => mount::put_into_place(lab, call),
        libc::SYS_fstatfs => lab.answer_later(*call, statfs::of_descriptor),
        libc::SYS_statfs => statfs::of_path(lab, call),
        libc::SYS_init_module => lab.answer_later(*call, modules::init_module),
        libc::SYS_finit_module => lab.answer_later(*call, modules::finit_module),
        libc::SYS_delete_module => lab.answer_later(*call, modules::delete_module),
        _ => on_socket(cx, lab, call, number),
    }
}

/// Answers a call whose first argument is a socket.
fn on_socket(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification, number: i64) -> Answer {
    let Some(socket) = lab.socket(cx, call.pid, call.data.args[0]) else {
        return uevent::on_socket(cx, lab, call, number).unwrap_or(Answer::Continue);
    };
    match number {
        libc::SYS_bind => socket::bind(cx, lab, call, &socket).into(),
        libc::SYS_connect => socket::connect(cx, lab, call, &socket).into(),
        libc::SYS_getsockname => socket::getsockname(lab, call, &socket).into(),
        libc::SYS_setsockopt => socket::setsockopt(lab, call, &socket).into(),
        libc::SYS_getsockopt => socket::getsockopt(lab, call, &socket).into(),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_sendmmsg => {
            send::send(cx, lab, call, &socket, number).into()
        }
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_recvmmsg => receive::receive(lab, call),
        _ => Answer::Continue,
    }
}

/// PATH_MAX: the most bytes of a path, with the zero at its end.
const PATH: usize = 4096;
/// Length of `struct msghdr` on a 64-bit machine.
const MSGHDR: usize = 56;

/// The 64-bit word at an offset; 0 if `bytes` ends before it.
fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// Reads `N` bytes of a program's memory, and makes sure that it was the memory of the process that makes the call.
fn read<const N: usize>(lab: &Lab, call: &Notification, address: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    match sys::read_memory(call.pid, address, &mut bytes) {
        Ok(len) if len == N && lab.still_waits(call) => Ok(bytes),
        Err(error) if errno_of(&error) == Errno::PERM => Err(error),
        _ => Err(Errno::FAULT.into()),
    }
}

/// Writes to a program's memory.
fn write(lab: &Lab, call: &Notification, address: u64, bytes: &[u8]) -> io::Result<()> {
    if !lab.still_waits(call) {
        return Err(Errno::SRCH.into());
    }
    sys::write_memory(call.pid, address, bytes)
}

fn read_u32(lab: &Lab, call: &Notification, address: u64) -> io::Result<u32> {
    read(lab, call, address).map(u32::from_ne_bytes)
}

/// Reads text of at most `most` bytes that ends with a zero byte.
fn read_text(lab: &Lab, call: &Notification, address: u64, most: usize) -> io::Result<String> {
    let mut bytes = vec![0; most];
    // The text may lie near the end of a mapping: the rest of its page can be read, the next page perhaps not.
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
