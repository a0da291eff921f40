//! The connections of a lab to its cards.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, PoisonError};

use ::netlink::Errno;
use rustix::net::{RecvFlags, recv};

use crate::cards::Cards;

/// The connections of a lab to its cards. All programs share them, so that no user of the lab uses up the places that
/// a card has for whoever started it.
#[derive(Default)]
pub(super) struct Connections {
    state: Mutex<Free>,
    /// One has been given back, or is no more.
    free: Condvar,
}

#[derive(Default)]
struct Free {
    /// By the card's number.
    idle: Vec<(usize, OwnedFd)>,
    /// How many there are, in use or not.
    all: usize,
}

/// Connections of a lab at most: requests that may be under way at once.
const CONNECTIONS: usize = 16;

/// A connection that is in use by one request.
pub(super) struct Connection<'a> {
    of: &'a Connections,
    card: usize,
    /// `None`: it has been given back.
    socket: Option<OwnedFd>,
}

impl Connections {
    /// One to a card, which is made if there is none; if there are as many as there may be, as soon as one is free.
    pub(super) fn take(&self, cards: &Cards, n: usize) -> io::Result<Connection<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(at) = state.idle.iter().position(|(card, _)| *card == n) {
                let (_, socket) = state.idle.swap_remove(at);
                if is_open(&socket) {
                    return Ok(Connection { of: self, card: n, socket: Some(socket) });
                }
                state.all -= 1;
                continue;
            }
            if state.all < CONNECTIONS {
                break;
            }
            // One to another card makes room.
            match state.idle.pop() {
                Some(_) => state.all -= 1,
                None => state = self.free.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        state.all += 1;
        drop(state);
        let connected = cards.card(n).ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|card| card.connect());
        match connected {
            Ok(socket) => Ok(Connection { of: self, card: n, socket: Some(socket) }),
            Err(error) => {
                self.state.lock().unwrap_or_else(PoisonError::into_inner).all -= 1;
                self.free.notify_one();
                Err(error)
            }
        }
    }
}

/// Whether the card's end is there still. Nothing comes on a connection that is not in use.
fn is_open(socket: &OwnedFd) -> bool {
    recv(socket, &mut [0; 1][..], RecvFlags::DONTWAIT) == Err(Errno::AGAIN)
}

impl Connection<'_> {
    pub(super) fn socket(&self) -> io::Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Its answer has been received to its end: it can be used again.
    pub(super) fn give_back(mut self) {
        if let Some(socket) = self.socket.take() {
            let mut state = self.of.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.idle.push((self.card, socket));
        }
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.of.state.lock().unwrap_or_else(PoisonError::into_inner).all -= 1;
        }
        self.of.free.notify_one();
    }
}
