//! Answers the netlink sockets of programs: one thread for each socket, which carries messages between the program, a
//! netlink socket of the kernel, and the cards.
//!
//! Each socket has its own thread because that is how the kernel appears to a program: a request on one socket may take
//! long (setting the address of a VF, for example), and no other socket waits for it. The thread sleeps while there is
//! nothing to carry, and ends when the program's last descriptor of the socket is closed.
//!
//! Memory is bounded. While a program does not read, its thread takes no more of its requests and does not read the
//! kernel's socket. That socket's own buffer then overflows, as it would have done in the program. Notifications of
//! cards are dropped.

mod dcb;
mod descriptors;
mod fuzzing;
mod generic;
mod link;
mod queue;
mod rdma;
mod route;
mod socket;
mod tc;
mod thread;
mod vf;

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::cards::Cards;
use crate::lock_order::Cx;
use thread::Relay;

pub use fuzzing::fuzzed;
pub(crate) use generic::Families;
pub(crate) use socket::{KernelSocket, Request, Socket};

/// The netlink protocol of a program's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Route,
    Generic,
    Rdma,
}

impl Protocol {
    /// The protocol with a number (`NETLINK_*`). `None`: a lab leaves this protocol to the kernel.
    pub fn of(number: u32) -> Option<Self> {
        match number as i32 {
            libc::NETLINK_ROUTE => Some(Self::Route),
            libc::NETLINK_GENERIC => Some(Self::Generic),
            libc::NETLINK_RDMA => Some(Self::Rdma),
            _ => None,
        }
    }

    pub fn number(self) -> i32 {
        match self {
            Self::Route => libc::NETLINK_ROUTE,
            Self::Generic => libc::NETLINK_GENERIC,
            Self::Rdma => libc::NETLINK_RDMA,
        }
    }
}

/// The part of a relay that depends on the protocol.
trait Handler {
    /// Handles a packet that the program has sent.
    fn request(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, packet: &[u8]);
    /// Handles a datagram that the kernel has sent.
    fn kernel(&mut self, cx: Cx<'_, '_>, relay: &mut Relay, datagram: &[u8]);
    /// Whether it holds messages back, so that [`tick`](Self::tick) must be called soon.
    fn holds(&self) -> bool {
        false
    }
    /// Sends what was held back, if the reason is gone.
    fn tick(&mut self, _cx: Cx<'_, '_>, _relay: &mut Relay) {}
    /// Handles a notification that a card, given by its index, has published.
    fn notification(&mut self, _cx: Cx<'_, '_>, _relay: &mut Relay, _card: usize, _datagram: &[u8]) {}
}

/// Room for the largest datagram that the kernel builds: 32 KiB, or one message about a PF with all its VFs.
const ROOM: usize = 128 << 10;

/// Carries messages until the program has closed its socket; a thread runs it. `end` is our end of the program's
/// socket.
pub(crate) fn carry(cx: Cx<'_, '_>, end: OwnedFd, socket: Arc<Socket>, cards: Arc<Cards>, families: Arc<Families>) {
    let mut handler: Box<dyn Handler> = match socket.protocol {
        Protocol::Route => Box::new(route::Route::default()),
        Protocol::Generic => Box::new(generic::Generic::new(families)),
        Protocol::Rdma => Box::new(rdma::Rdma),
    };
    let mut relay = Relay::new(end, Arc::clone(&socket), cards);
    let mut buffer = vec![0; ROOM];
    let ended = catch_unwind(AssertUnwindSafe(|| while relay.step(cx, &mut *handler, &mut buffer) {}));
    // After a panic as well: a call that waits for an answer must not wait for ever.
    socket.close(cx);
    if let Err(panic) = ended {
        resume_unwind(panic);
    }
}
