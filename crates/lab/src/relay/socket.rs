//! A program's netlink socket: the state that the program's calls and the thread behind the socket share.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ::netlink::{AckOptions, Errno};
use devlink::{CONFIG_GROUP, FILTERS_GROUP};
use lockdep::Mutex;
use rustix::net::netlink::SocketAddrNetlink;

use super::Protocol;
use crate::card::Card;
use crate::cards::Cards;
use crate::lock_order::{Binding, Cx, Inbox, Published, Subscriptions};
use crate::network::NetworkId;
use crate::process::{Caller, UserNamespace};
use crate::supervisor::Reply;

/// What one call of a program sends.
pub(crate) struct Request {
    /// The packets, each as a single `send` would have it.
    pub packets: Vec<Vec<u8>>,
    /// The process that sends. It need not be the one that made the socket.
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

/// The requests that wait for the thread behind a socket.
#[derive(Default)]
struct Waiting {
    requests: VecDeque<Request>,
    /// The bytes of those requests whose calls have returned already.
    bytes: usize,
    /// The program does not read, and the thread takes no more requests until it does. A send must not wait for that.
    stalled: bool,
    /// The thread has ended.
    closed: bool,
}

/// How many bytes of requests are kept for a program that does not read: the default buffer of a socket.
const UNREAD: usize = 212_992;

/// A connection on which a card publishes notifications.
pub(super) struct Subscription {
    /// The multicast group, by the control socket's number.
    pub(super) group: u32,
    /// The index of the card.
    pub(super) card: usize,
    pub(super) fd: OwnedFd,
}

/// A program's netlink socket, as the program's calls and the thread behind it share it.
pub(crate) struct Socket {
    pub protocol: Protocol,
    /// `SOCK_RAW` or `SOCK_DGRAM`, as the program has requested.
    pub kind: u32,
    /// The process that made the socket.
    pub caller: Caller,
    /// The kernel's socket, in the program's network namespace. Its port is that of the program's socket.
    pub kernel: OwnedFd,
    /// Whether `kernel` is of the same protocol. It is not on a kernel without RDMA; then it only reserves the port.
    pub native: bool,
    /// The user namespace to which the program's network namespace belongs, if that is the program's own and not the lab's.
    pub owner: Option<u64>,
    /// The port number (`nl_pid`); 0 until the socket is bound.
    port: AtomicU32,
    binding: Mutex<Binding, ()>,
    extended: AtomicBool,
    capped: AtomicBool,
    /// The user namespace in which administrative rights count.
    pub(super) user_namespace: Arc<UserNamespace>,
    inbox: Mutex<Inbox, Waiting>,
    /// The connections on which cards publish notifications to this socket; empty if it is no member of any of their groups.
    pub(super) subscriptions: Mutex<Subscriptions, Vec<Subscription>>,
    /// Notifications of the lab's own that the thread is to send to the program, each as a datagram.
    published: Mutex<Published, Vec<Vec<u8>>>,
    /// An eventfd that wakes the thread when `inbox`, `published` or `subscriptions` has changed.
    pub(super) wake: OwnedFd,
}

impl Socket {
    /// Makes the shared state of a new socket.
    ///
    /// # Errors
    /// The process has no more descriptors.
    pub fn new(
        protocol: Protocol,
        kind: u32,
        caller: Caller,
        kernel: KernelSocket,
        user_namespace: Arc<UserNamespace>,
    ) -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let KernelSocket { socket, native, owner } = kernel;
        Ok(Self {
            protocol,
            kind,
            caller,
            kernel: socket,
            native,
            owner,
            user_namespace,
            inbox: Mutex::new(Waiting::default()),
            port: AtomicU32::new(0),
            binding: Mutex::new(()),
            extended: AtomicBool::new(false),
            capped: AtomicBool::new(false),
            subscriptions: Mutex::new(Vec::new()),
            published: Mutex::new(Vec::new()),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// The port number (`nl_pid`) of the socket: 0 if it has none yet.
    pub fn port(&self) -> u32 {
        self.port.load(Ordering::Relaxed)
    }

    /// Binds the socket as `bind` does. With a `port` of 0 it gets the number of the process if no other socket has it,
    /// else a number that the kernel chooses (`netlink_autobind`).
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(&self, cx: Cx<'_, '_>, port: u32, groups: u32) -> io::Result<()> {
        let _one_at_a_time = self.binding.lock_leaf(cx);
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

    /// The port number. Binds the socket first if it has none, as the kernel does when something is sent.
    pub(super) fn port_to_send_from(&self, cx: Cx<'_, '_>) -> u32 {
        if self.port() == 0 {
            // Without a port the kernel refuses to send, and the program gets no message either.
            let _ = self.bind(cx, 0, 0);
        }
        self.port()
    }

    /// Stores the options `NETLINK_EXT_ACK` and `NETLINK_CAP_ACK`.
    pub fn set_ack_option(&self, option: i32, on: bool) {
        match option {
            libc::NETLINK_EXT_ACK => self.extended.store(on, Ordering::Relaxed),
            libc::NETLINK_CAP_ACK => self.capped.store(on, Ordering::Relaxed),
            _ => {}
        }
    }

    pub(super) fn ack_options(&self) -> AckOptions {
        AckOptions { extended: self.extended.load(Ordering::Relaxed), capped: self.capped.load(Ordering::Relaxed) }
    }

    /// Whether the socket is subscribed to a multicast group, by the control socket's number.
    pub fn is_subscribed(&self, cx: Cx<'_, '_>, group: u32) -> bool {
        self.subscriptions.lock_leaf(cx).iter().any(|of| of.group == group)
    }

    /// Subscribes the socket to the notifications of every card to a multicast group, or ends its subscription. `group`: the
    /// control socket's number.
    ///
    /// # Errors
    /// A card's. For [`FILTERS_GROUP`] such a card is left out instead.
    pub fn subscribe(&self, cx: Cx<'_, '_>, cards: &Cards, group: u32, on: bool) -> io::Result<()> {
        let is_subscribed = self.is_subscribed(cx, group);
        // Without the lock: a card may take long to accept a connection, and a send must not wait for that.
        let listen = |(card, of): (usize, &Arc<dyn Card>)| Ok(Subscription { group, card, fd: of.listen(group)? });
        let network = NetworkId::of_socket(&self.kernel).ok();
        // devlink's instances move, and netdevs with them; samples and groups are published where a card's netdevs appear, and
        // nowhere else.
        let moves = matches!(group, CONFIG_GROUP | FILTERS_GROUP);
        let is_here = |card: usize| moves || network.is_some_and(|id| cards.is_home_of(card, id));
        let here = cards.each().enumerate().filter(|(n, _)| on && !is_subscribed && is_here(*n)).map(listen);
        let new: Vec<Subscription> = match group {
            // The kernel's group is there without the cards.
            FILTERS_GROUP => here.flatten().collect(),
            _ => here.collect::<io::Result<_>>()?,
        };
        let mut subscriptions = self.subscriptions.lock_leaf(cx);
        if !on {
            subscriptions.retain(|of| of.group != group);
        } else if subscriptions.iter().all(|of| of.group != group) {
            subscriptions.extend(new);
        }
        drop(subscriptions);
        rustix::io::write(&self.wake, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Has the thread send the program a notification. If the program does not read, it is lost.
    pub fn publish(&self, cx: Cx<'_, '_>, datagram: &[u8]) {
        /// The most that wait for the thread.
        const WAITING: usize = 1024;
        let mut published = self.published.lock_leaf(cx);
        if published.len() < WAITING {
            published.push(datagram.to_vec());
        }
        drop(published);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes what is to be sent to the program.
    pub(super) fn take_published(&self, cx: Cx<'_, '_>) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.published.lock_leaf(cx))
    }

    /// Gives the thread a request; the thread then answers the call. If the program has not read the answers to earlier
    /// requests and there is no room for more requests, the call is refused with ENOBUFS: it must not wait for the
    /// program itself.
    pub fn hand_over(&self, cx: Cx<'_, '_>, mut request: Request) {
        let mut inbox = self.inbox.lock_leaf(cx);
        if inbox.closed {
            // Dropping the request answers its call.
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

    pub(super) fn next_request(&self, cx: Cx<'_, '_>) -> Option<Request> {
        let mut inbox = self.inbox.lock_leaf(cx);
        let request = inbox.requests.pop_front()?;
        if inbox.requests.is_empty() {
            inbox.bytes = 0;
        }
        Some(request)
    }

    /// Stores whether the thread takes no more requests. If so, calls that wait in a send return: the program has
    /// something to read.
    pub(super) fn set_stalled(&self, cx: Cx<'_, '_>, stalled: bool) {
        let mut inbox = self.inbox.lock_leaf(cx);
        if std::mem::replace(&mut inbox.stalled, stalled) == stalled || !stalled {
            return;
        }
        let Waiting { requests, bytes, .. } = &mut *inbox;
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

    /// Accepts no more requests, and drops those that wait.
    pub(super) fn close(&self, cx: Cx<'_, '_>) {
        let mut inbox = self.inbox.lock_leaf(cx);
        inbox.closed = true;
        let left = std::mem::take(&mut inbox.requests);
        drop(inbox);
        drop(left);
    }
}

/// The kernel's socket behind a program's socket.
pub(crate) struct KernelSocket {
    pub socket: OwnedFd,
    /// Whether it is of the protocol that the program has requested.
    pub native: bool,
    /// The user namespace in which it was opened, and to which its network namespace belongs; `None`: the lab's.
    pub owner: Option<u64>,
}
