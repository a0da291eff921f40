//! The connections of a lab to the control sockets of its cards.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use ::netlink::Errno;
use lockdep::{Condvar, Mutex};
use rustix::net::{RecvFlags, recv};

use crate::cards::Cards;
use crate::lock_order::{self, Cx};

/// The connections of a lab to its cards. All programs share them, so that the users of a lab do not use up the places
/// that a card has for the user who started the lab.
pub(super) struct Connections {
    state: Mutex<lock_order::Connections, Idle>,
    /// A connection has become idle, or has been closed.
    freed: Condvar,
}

#[derive(Default)]
struct Idle {
    /// The connections that no request uses, with the number of their card.
    sockets: Vec<(usize, OwnedFd)>,
    /// How many connections there are, idle or in use.
    all: usize,
}

/// The most connections of a lab, and so the most requests that are under way at once.
const CONNECTIONS: usize = 16;

impl Default for Connections {
    fn default() -> Self {
        Self { state: Mutex::new(Idle::default()), freed: Condvar::new() }
    }
}

impl Connections {
    /// Has a request use a connection to a card. An idle connection is used if there is one, else one is made; if there
    /// are [`CONNECTIONS`] already, this waits for one.
    ///
    /// If `request` fails, its answer may still arrive on the connection, so the connection is closed.
    ///
    /// # Errors
    /// Those of `request`; or the card cannot be connected to.
    pub(super) fn with<T>(
        &self,
        cx: Cx<'_, '_>,
        cards: &Cards,
        card: usize,
        request: impl FnOnce(Cx<'_, '_>, &OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        let idle = self.reserve(cx, card);
        // The place is freed even after a panic: others wait for it.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let socket = match idle {
                Some(socket) => socket,
                None => cards.card(card).ok_or(io::ErrorKind::NotFound)?.connect()?,
            };
            request(cx, &socket).map(|value| (value, socket))
        }));
        let mut state = self.state.lock_leaf(cx);
        let outcome = match outcome {
            Ok(Ok((value, socket))) => {
                state.sockets.push((card, socket));
                Ok(Ok(value))
            }
            Ok(Err(error)) => {
                state.all -= 1;
                Ok(Err(error))
            }
            Err(panic) => {
                state.all -= 1;
                Err(panic)
            }
        };
        drop(state);
        self.freed.notify_one();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Takes an idle connection to a card. `None`: the caller has the place of one that it must make.
    fn reserve(&self, cx: Cx<'_, '_>, card: usize) -> Option<OwnedFd> {
        let mut state = self.state.lock_leaf(cx);
        loop {
            if let Some(at) = state.sockets.iter().position(|(other, _)| *other == card) {
                let (_, socket) = state.sockets.swap_remove(at);
                if is_open(&socket) {
                    return Some(socket);
                }
                state.all -= 1;
                continue;
            }
            if state.all < CONNECTIONS {
                state.all += 1;
                return None;
            }
            // An idle connection to another card makes room.
            match state.sockets.pop() {
                Some(_) => state.all -= 1,
                None => self.freed.wait(&mut state),
            }
        }
    }
}

/// Whether the card has not closed its end. Nothing arrives on an idle connection.
fn is_open(socket: &OwnedFd) -> bool {
    recv(socket, &mut [0; 1][..], RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use control::Command;
    use devlink::view;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;
    use crate::card::{Card, Refusal};

    /// A card that keeps its end of each connection.
    #[derive(Default)]
    struct Listening(std::sync::Mutex<Vec<OwnedFd>>);

    impl Card for Listening {
        fn view(&self) -> io::Result<Arc<view::Card>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn perform(&self, _: &Command) -> Result<(), Refusal> {
            Ok(())
        }

        fn connect(&self) -> io::Result<OwnedFd> {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            self.0.lock().unwrap().push(ours);
            Ok(theirs)
        }
    }

    #[test]
    fn a_request_that_fails_or_panics_frees_the_place_of_its_connection() {
        lockdep::enter(&lock_order::domain(true), "test", |cx| {
            let card = Arc::new(Listening::default());
            let cards = Cards::new(vec![Arc::clone(&card) as Arc<dyn Card>]);
            let connections = Connections::default();
            // Given more failures and panics than there are places,
            for _ in 0..2 * CONNECTIONS {
                let failed = connections.with(cx, &cards, 0, |_, _| io::Result::<()>::Err(io::ErrorKind::Other.into()));
                assert!(failed.is_err());
                let panicked = catch_unwind(AssertUnwindSafe(|| {
                    connections.with(cx, &cards, 0, |_, _| -> io::Result<()> { resume_unwind(Box::new(())) })
                }));
                assert!(panicked.is_err());
            }
            // when requests succeed, then one connection serves them all,
            let before = card.0.lock().unwrap().len();
            for _ in 0..2 * CONNECTIONS {
                connections.with(cx, &cards, 0, |_, _| Ok(())).unwrap();
            }
            assert_eq!(card.0.lock().unwrap().len(), before + 1);
            // and a card that is not there is an error, which frees the place as well.
            for _ in 0..2 * CONNECTIONS {
                assert!(connections.with(cx, &cards, 1, |_, _| Ok(())).is_err());
            }
            let state = connections.state.lock_leaf(cx);
            assert!(state.all <= 1 && state.sockets.len() == state.all);
        });
    }
}
