//! The sockets of a lab's uevents.
//!
//! They are of AF_UNIX and SOCK_DGRAM, in a network namespace in which there is nothing else. A socket's abstract name has
//! ten bytes, so that its address has the length of a `sockaddr_nl`, and reads as one: two zeros, a port, and multicast
//! groups. The kernel's messages come from the socket whose name reads "port 0, group 1", as libudev requires. Two sockets of
//! a network namespace cannot have the same name; therefore the lab has a namespace for them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use netlink::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    UCred, connect, sendmsg_addr, socket_with,
};
use rustix::process::{Gid, Uid, getpid};

use super::{KERNEL, UDEV};
use crate::network::within;
use crate::sys;

/// From which address something is sent, and as which user's, by its number outside of any container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sender {
    /// [`KERNEL`] or [`UDEV`].
    pub group: u32,
    pub user: u32,
}

/// Where the sockets are made, and from where messages are sent.
pub(super) struct Office {
    namespace: OwnedFd,
    kernel: OwnedFd,
    udev: OwnedFd,
    next: AtomicU32,
}

/// How many messages a socket holds. The default is ten.
const QUEUE: &str = "256";
/// The room for the messages that wait in all sockets, in bytes: without root as much as the system gives.
const SEND_BUFFER: usize = 64 << 20;

impl Office {
    /// Makes it.
    ///
    /// # Errors
    /// The kernel's: a network namespace takes CAP_SYS_ADMIN.
    pub(super) fn open() -> io::Result<Self> {
        let made = std::thread::Builder::new().spawn(|| {
            sys::unshare_network()?;
            // If /proc is read-only, messages wait in the lab.
            let _ = std::fs::write("/proc/sys/net/unix/max_dgram_qlen", QUEUE);
            let namespace = std::fs::File::open("/proc/thread-self/ns/net")?.into();
            let (kernel, udev) = (unbound()?, unbound()?);
            for sender in [&kernel, &udev] {
                let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(sender, SEND_BUFFER);
            }
            rustix::net::bind(&kernel, &name(0, KERNEL)?)?;
            rustix::net::bind(&udev, &name(0, UDEV)?)?;
            // The numbers that the kernel gives sockets begin here, too (`netlink_autobind`).
            Ok(Self { namespace, kernel, udev, next: AtomicU32::new(0xffff_f000) })
        })?;
        made.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    }

    /// Makes a socket with a port: `port`, if that is free.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn socket(&self, port: u32) -> io::Result<(OwnedFd, u32)> {
        const TRIES: usize = 64;
        within(&self.namespace, || {
            let socket = unbound()?;
            let mut port = port;
            for _ in 0..TRIES {
                match rustix::net::bind(&socket, &name(port, 0)?) {
                    Err(Errno::ADDRINUSE) => port = self.next.fetch_sub(1, Ordering::Relaxed),
                    outcome => return Ok((outcome.map(|()| socket)?, port)),
                }
            }
            Err(Errno::ADDRINUSE.into())
        })
    }

    /// Sends a message to a port. `false`: the socket is full.
    pub(super) fn send(&self, sender: Sender, port: u32, bytes: &[u8]) -> bool {
        let from = if sender.group == UDEV { &self.udev } else { &self.kernel };
        let is_full = |error| rustix::io::Errno::from_io_error(&error) == Some(Errno::AGAIN);
        // A socket that is closed gets nothing.
        !send_from(from.as_fd(), port, sender.user, bytes).is_err_and(is_full)
    }

    /// Those of some ports whose sockets have been closed.
    pub(super) fn closed(&self, ports: &[u32]) -> Vec<u32> {
        let closed = within(&self.namespace, || {
            let probe = unbound()?;
            let is_closed =
                |port: &u32| name(*port, 0).is_ok_and(|name| connect(&probe, &name) == Err(Errno::CONNREFUSED));
            Ok(ports.iter().copied().filter(is_closed).collect())
        });
        closed.unwrap_or_default()
    }
}

fn unbound() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

/// The name that reads as an address of netlink.
fn name(port: u32, groups: u32) -> io::Result<SocketAddrUnix> {
    let mut name = [0; 9];
    name[1..5].copy_from_slice(&port.to_ne_bytes());
    name[5..].copy_from_slice(&groups.to_ne_bytes());
    Ok(SocketAddrUnix::new_abstract_name(&name)?)
}

/// Sends a message from a socket to a port, with a user's credentials.
///
/// # Errors
/// EAGAIN: the receiver is full. ECONNREFUSED: there is none.
pub(super) fn send_from(from: BorrowedFd<'_>, port: u32, user: u32, bytes: &[u8]) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let credentials = UCred { pid: getpid(), uid: Uid::from_raw(user), gid: Gid::from_raw(user) };
    control.push(SendAncillaryMessage::ScmCredentials(credentials));
    let to = name(port, 0)?;
    rustix::io::retry_on_intr(|| sendmsg_addr(from, &to, &[IoSlice::new(bytes)], &mut control, flags))?;
    Ok(())
}
