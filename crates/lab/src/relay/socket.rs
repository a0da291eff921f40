//! A program's netlink socket, as its calls and the thread behind it share it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::netlink::{AckOptions, Errno};
use rustix::net::netlink::SocketAddrNetlink;

use super::Protocol;
use crate::cards::Cards;
use crate::process::{Caller, Home};
use crate::supervisor::Reply;

/// What a program asks for in one call.
pub(crate) struct Request {
    /// Each as one send has it.
    pub packets: Vec<Vec<u8>>,
    /// Whoever sends, which need not be the one that made the socket.
    pub sender: Caller,
    /// Lets the call return.
    pub reply: Reply,
}

impl Request {
    /// The bytes of all packets.
    fn bytes(&self) -> usize {
        self.packets.iter().map(Vec::len).sum()
    }
}

/// Requests that wait for the thread behind a socket.
#[derive(Default)]
struct Inbox {
    requests: VecDeque<Request>,
    /// The bytes of those that wait though their calls have returned.
    bytes: usize,
    /// The program does not read, and until it does nothing more is taken. It is not to wait for that in a send.
    stalled: bool,
    /// The thread has ended.
    closed: bool,
}

/// How many bytes of requests are kept for a program that does not read: as a socket's buffer by default.
const UNREAD: usize = 212_992;

/// What the thread behind a socket shares with whoever answers the program's calls about it.
pub(crate) struct Shared {
    pub protocol: Protocol,
    /// `SOCK_RAW` or `SOCK_DGRAM`, as the program has it.
    pub kind: u32,
    /// Who made the socket.
    pub caller: Caller,
    /// The kernel's socket, in the program's network namespace. Its port is the program's.
    pub kernel: OwnedFd,
    /// Whether that is of the same protocol. A kernel without RDMA has none: then it only holds the port.
    pub native: bool,
    /// 0 until it is bound.
    port: AtomicU32,
    binding: Mutex<()>,
    extended: AtomicBool,
    capped: AtomicBool,
    /// The user namespace in which administrative rights count.
    pub(super) home: Arc<Home>,
    inbox: Mutex<Inbox>,
    /// Where notifications of cards come from.
    pub(super) heard: Mutex<Vec<OwnedFd>>,
    /// Wakes the thread when there is something new in `inbox` or `heard`.
    pub(super) wake: OwnedFd,
}

impl Shared {
    /// What belongs to a new socket.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new(protocol: Protocol, kind: u32, caller: Caller, kernel: Kernel, home: Arc<Home>) -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let Kernel { socket, native } = kernel;
        Ok(Self {
            protocol,
            kind,
            caller,
            kernel: socket,
            native,
            home,
            inbox: Mutex::default(),
            port: AtomicU32::new(0),
            binding: Mutex::new(()),
            extended: AtomicBool::new(false),
            capped: AtomicBool::new(false),
            heard: Mutex::new(Vec::new()),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// `nl_pid` of the socket: 0 if it has none yet.
    pub fn port(&self) -> u32 {
        self.port.load(Ordering::Relaxed)
    }

    /// Binds it as `bind` does. A port of 0 is the process's own number if no other socket has it, else
    /// one that the kernel makes up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(&self, port: u32, groups: u32) -> io::Result<()> {
        let _one = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = if self.native { groups } else { 0 };
        let bind = |port| rustix::net::bind(&self.kernel, &SocketAddrNetlink::new(port, groups));
        match if port == 0 && self.port() == 0 { bind(self.caller.own) } else { bind(port) } {
            Err(Errno::ADDRINUSE) if port == 0 => bind(0)?,
            outcome => outcome?,
        }
        let address = rustix::net::getsockname(&self.kernel)?;
        let port = SocketAddrNetlink::try_from(address)?.pid();
        self.port.store(port, Ordering::Relaxed);
        Ok(())
    }

    /// The port, after it has been made sure that there is one, as sending does.
    pub(super) fn port_to_send_from(&self) -> u32 {
        if self.port() == 0 {
            // Without a port the kernel refuses to send, and the program is told nothing either.
            let _ = self.bind(0, 0);
        }
        self.port()
    }

    /// Notes `NETLINK_EXT_ACK` and `NETLINK_CAP_ACK`.
    pub fn set_style(&self, option: i32, on: bool) {
        match option {
            libc::NETLINK_EXT_ACK => self.extended.store(on, Ordering::Relaxed),
            libc::NETLINK_CAP_ACK => self.capped.store(on, Ordering::Relaxed),
            _ => {}
        }
    }

    pub(super) fn ack_options(&self) -> AckOptions {
        AckOptions { extended: self.extended.load(Ordering::Relaxed), capped: self.capped.load(Ordering::Relaxed) }
    }

    /// Hears the notifications of every card from now on, or no longer.
    ///
    /// # Errors
    /// A card's.
    pub fn hear(&self, cards: &Cards, on: bool) -> io::Result<()> {
        let hears = || !self.heard.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        // A card may take its time to let somebody in, and whoever sends does not wait for that.
        let new: Vec<OwnedFd> = match on && !hears() {
            true => (0..cards.len()).filter_map(|n| cards.card(n)).map(|c| c.listen()).collect::<io::Result<_>>()?,
            false => Vec::new(),
        };
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !on {
            heard.clear();
        } else if heard.is_empty() {
            *heard = new;
        }
        drop(heard);
        rustix::io::write(&self.wake, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Gives the thread a request, which then answers the call. If the program has not read what it asked for before, and
    /// there is no more room for requests, the call is refused with ENOBUFS: it is not to wait for the program itself.
    pub fn hand_over(&self, mut request: Request) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            // Dropped, which is an answer.
            return;
        }
        if inbox.stalled {
            let bytes = request.bytes();
            if inbox.bytes + bytes > UNREAD {
                return request.reply.refuse(Errno::NOBUFS);
            }
            inbox.bytes += bytes;
            request.reply.give();
        }
        inbox.requests.push_back(request);
        drop(inbox);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn next_request(&self) -> Option<Request> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let request = inbox.requests.pop_front()?;
        if inbox.requests.is_empty() {
            inbox.bytes = 0;
        }
        Some(request)
    }

    /// Notes whether nothing more is taken. Programs that wait in a send then need not: there is something to read.
    pub(super) fn set_stalled(&self, stalled: bool) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut inbox.stalled, stalled) == stalled || !stalled {
            return;
        }
        let Inbox { requests, bytes, .. } = &mut *inbox;
        requests.retain_mut(|request| {
            let more = request.bytes();
            let fits = *bytes + more <= UNREAD;
            match fits {
                true => {
                    *bytes += more;
                    request.reply.give();
                }
                false => request.reply.refuse(Errno::NOBUFS),
            }
            fits
        });
    }

    /// Takes no more requests, and drops those that wait.
    pub(super) fn close(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.closed = true;
        let left = std::mem::take(&mut inbox.requests);
        drop(inbox);
        drop(left);
    }
}

/// The kernel's socket behind a program's.
pub(crate) struct Kernel {
    pub socket: OwnedFd,
    /// Whether it is of the protocol asked for.
    pub native: bool,
}
