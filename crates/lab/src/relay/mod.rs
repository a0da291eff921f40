//! Behind each of a program's netlink sockets: a thread that carries messages between the program, a
//! kernel's socket of its own, and the cards.
//!
//! A thread for each socket, because that is what the kernel is to a program: one socket's request may
//! take its time, a VF's address being set, and no other socket waits for it. It sleeps when there is
//! nothing to carry and ends when the program's last descriptor of the socket is closed.
//!
//! Memory is bounded: when a program does not read, the thread stops taking its requests and stops reading
//! the kernel's socket, whose own buffer then overflows as it would have in the program's hands.
//! Notifications of cards are dropped.

mod descriptors;
mod fuzzing;
mod generic;
mod link;
mod queue;
mod rdma;
mod route;
mod socket;
mod thread;
mod vf;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::cards::Cards;
use queue::Queue;
use thread::Io;

pub use fuzzing::fuzzed;
pub(crate) use generic::Families;
pub(crate) use socket::{Kernel, Request, Shared};

/// What a program's socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Route,
    Generic,
    Rdma,
}

impl Protocol {
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

/// What differs between protocols.
trait Behind {
    /// The program has sent this.
    fn request(&mut self, io: &mut Io, packet: &[u8]);
    /// The kernel has sent this.
    fn kernel(&mut self, io: &mut Io, datagram: &[u8]);
    /// A card tells this.
    fn notification(&mut self, _io: &mut Io, _datagram: &[u8]) {}
}

/// Room for the largest datagram that the kernel makes: 32 KiB, or one message of a PF with all its VFs.
const ROOM: usize = 128 << 10;

/// Carries messages until the program has closed its socket. It is the work of a thread.
pub(crate) fn carry(end: OwnedFd, shared: Arc<Shared>, cards: Arc<Cards>, families: Arc<Families>) {
    let mut behind: Box<dyn Behind> = match shared.protocol {
        Protocol::Route => Box::new(route::Route::default()),
        Protocol::Generic => Box::new(generic::Generic::new(families)),
        Protocol::Rdma => Box::new(rdma::Rdma),
    };
    let sender = shared.caller;
    // Also if the thread ends by a panic: nobody is to wait for it.
    let _closed = ClosedAtEnd(Arc::clone(&shared));
    let mut io = Io { end, shared, cards, queue: Queue::default(), sender, reply: None, deaf: false };
    let mut buffer = vec![0; ROOM];
    while io.step(&mut *behind, &mut buffer) {}
}

/// Takes no more requests from when it is dropped.
struct ClosedAtEnd(Arc<Shared>);

impl Drop for ClosedAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}
