//! The sockets of a lab's uevents.
//!
//! They are of AF_UNIX and SOCK_DGRAM, in a network namespace in which there is nothing else. A socket's abstract name has
//! ten bytes, so that its address has the length of a `sockaddr_nl`, and reads as one: two zeros, a port, and multicast
//! groups. The kernel's messages come from the socket whose name reads "port 0, group 1", as libudev requires. Two sockets of
//! a network namespace cannot have the same name; therefore the lab has a namespace for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use netlink::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, sendto, socket_with};

use super::{KERNEL, UDEV};
use crate::network::within;
use crate::sys;

/// In whose name something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Kernel,
    Udev,
}

/// Where the sockets are made, and from where messages are sent.
pub(super) struct Office {
    namespace: OwnedFd,
    kernel: OwnedFd,
    udev: OwnedFd,
    next: AtomicU32,
}

/// How many messages a socket holds. The default is ten.
const QUEUE: &str = "4096";

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
        let from = match sender {
            Sender::Kernel => &self.kernel,
            Sender::Udev => &self.udev,
        };
        let is_full = |error| rustix::io::Errno::from_io_error(&error) == Some(Errno::AGAIN);
        // A socket that is closed gets nothing.
        !send_from(from.as_fd(), port, bytes).is_err_and(is_full)
    }

    /// Whether a program still has the socket with a port.
    pub(super) fn is_open(&self, port: u32) -> bool {
        let look = || connect(within(&self.namespace, unbound)?, &name(port, 0)?).map_err(io::Error::from);
        !look().is_err_and(|error| rustix::io::Errno::from_io_error(&error) == Some(Errno::CONNREFUSED))
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

/// Sends a message from a socket to a port.
///
/// # Errors
/// EAGAIN: the receiver is full. ECONNREFUSED: there is none.
pub(super) fn send_from(from: BorrowedFd<'_>, port: u32, bytes: &[u8]) -> io::Result<()> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| sendto(from, bytes, flags, &name(port, 0).map_err(|_| Errno::INVAL)?))?;
    Ok(())
}
