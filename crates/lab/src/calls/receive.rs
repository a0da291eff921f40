//! Receiving on behalf of programs that look at the family of an address.
//!
//! Their sockets have descriptor numbers so high that the filter traps receiving from them. The supervisor receives for
//! the program, and writes the message to the program's memory with an address of netlink.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netlink::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::lock_order::Cx;
use crate::process;
use crate::supervisor::{Answer, Lab};
use crate::sys::{self, Notification};

use super::socket::{address, give_address};
use super::{MSGHDR, long, read, write};

/// The most bytes of one receipt.
const MOST: u64 = 1 << 20;
/// The most parts into which a message is received: UIO_MAXIOV.
const PARTS: u64 = 1024;
/// The offsets of fields in `struct msghdr`.
const NAME_LEN: u64 = 8;
const CONTROL_LEN: u64 = 40;
const FLAGS: u64 = 48;

/// What one call requests.
struct Wanted {
    /// Address and length of each part.
    parts: Vec<(u64, u64)>,
    flags: i32,
}

/// `recvfrom`, `recvmsg`, `recvmmsg`.
pub(super) fn receive(lab: &Arc<Lab>, call: &Notification) -> Answer {
    let attempt = process::take_fd(call.pid, call.data.args[0] as u32).and_then(|fd| {
        let wanted = wanted(lab, call)?;
        match try_once(lab, call, &fd, &wanted) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && may_wait(&fd, &wanted)? => {
                Ok(lab.answer_later(*call, wait_and_receive))
            }
            outcome => outcome,
        }
    });
    attempt.into()
}

/// Whether the call may block.
fn may_wait(fd: &OwnedFd, wanted: &Wanted) -> io::Result<bool> {
    Ok(wanted.flags & libc::MSG_DONTWAIT == 0 && !fcntl_getfl(fd)?.contains(OFlags::NONBLOCK))
}

/// Waits as the program would: until a message arrives, the socket's timeout has passed, or the program is gone.
fn wait_and_receive(_: Cx<'_, '_>, lab: &Lab, call: &Notification) -> Answer {
    let work = || -> io::Result<Answer> {
        let process = process::open(process::process_of(call.pid)?)?;
        let fd = process::take_fd(call.pid, call.data.args[0] as u32)?;
        let limit = rustix::net::sockopt::socket_timeout(&fd, rustix::net::sockopt::Timeout::Recv)?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            let wanted = wanted(lab, call)?;
            match try_once(lab, call, &fd, &wanted) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return outcome,
            }
            // A thread may end while its process goes on, which no descriptor reports: so it is checked every second.
            let most = Duration::from_secs(1);
            let left = deadline.map_or(most, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(Errno::AGAIN.into());
            }
            let timeout = Timespec::try_from(left.min(most)).map_err(|_| Errno::INVAL)?;
            let mut polled = [PollFd::new(&fd, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
            match poll(&mut polled, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !polled[1].revents().is_empty() || !lab.still_waits(call) {
                return Ok(Answer::Later);
            }
        }
    };
    work().into()
}

/// The address of the call's `struct msghdr`, if it has one.
fn header(call: &Notification) -> Option<u64> {
    let is_header = matches!(i64::from(call.data.nr), libc::SYS_recvmsg | libc::SYS_recvmmsg);
    is_header.then_some(call.data.args[1])
}

fn wanted(lab: &Lab, call: &Notification) -> io::Result<Wanted> {
    let args = &call.data.args;
    let Some(header) = header(call) else {
        return Ok(Wanted { parts: vec![(args[1], args[2].min(MOST))], flags: args[3] as i32 });
    };
    let multiple = i64::from(call.data.nr) == libc::SYS_recvmmsg;
    let flags = args[if multiple { 3 } else { 2 }] as i32;
    let bytes: [u8; MSGHDR] = read(lab, call, header)?;
    let (at, count) = (long(&bytes, 16), long(&bytes, 24));
    if count > PARTS {
        return Err(Errno::MSGSIZE.into());
    }
    let mut parts = Vec::new();
    for n in 0..count {
        let part: [u8; 16] = read(lab, call, at.wrapping_add(16 * n))?;
        parts.push((long(&part, 0), long(&part, 8).min(MOST)));
    }
    // `recvmmsg` returns one message: a program calls again for the next.
    Ok(Wanted { parts, flags: flags & !libc::MSG_WAITFORONE })
}

/// Receives one message if one has arrived, and writes it to the program's memory.
fn try_once(lab: &Lab, call: &Notification, fd: &OwnedFd, wanted: &Wanted) -> io::Result<Answer> {
    let room = wanted.parts.iter().map(|(_, len)| len).sum::<u64>().min(MOST) as usize;
    let mut bytes = vec![0; room];
    let (len, flags) = sys::receive(fd, &mut bytes, wanted.flags | libc::MSG_DONTWAIT)?;
    let mut rest = &bytes[..len.min(room)];
    for (at, room) in &wanted.parts {
        let (now, later) = rest.split_at(rest.len().min(*room as usize));
        if !now.is_empty() {
            write(lab, call, *at, now)?;
        }
        rest = later;
    }
    let from = address(0, 0);
    let Some(header) = header(call) else {
        if call.data.args[4] != 0 {
            give_address(lab, call, call.data.args[4], call.data.args[5], &from)?;
        }
        return Ok(Answer::Value(len as i64));
    };
    let name: [u8; 12] = read(lab, call, header)?;
    let (at, room) = (long(&name, 0), u32::from_ne_bytes([name[8], name[9], name[10], name[11]]) as usize);
    if at != 0 {
        write(lab, call, at, &from[..room.min(from.len())])?;
        write(lab, call, header + NAME_LEN, &(from.len() as u32).to_ne_bytes())?;
    }
    write(lab, call, header + CONTROL_LEN, &0u64.to_ne_bytes())?;
    write(lab, call, header + FLAGS, &flags.to_ne_bytes())?;
    if i64::from(call.data.nr) == libc::SYS_recvmmsg {
        write(lab, call, header + MSGHDR as u64, &(len as u32).to_ne_bytes())?;
        return Ok(Answer::Value(1));
    }
    Ok(Answer::Value(len as i64))
}
