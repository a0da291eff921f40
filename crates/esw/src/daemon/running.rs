//! Cards that a daemon has up, and their ends.

use std::sync::Arc;

use anyhow::Result;
use card_linux::Hold;
use control::Follower;
use devlink::{ControlSocket, Server};
use host::LiveCard;
use lockdep::{Locked, Unlocked};

use super::ending::How;
use super::journal::Journal;
use crate::exit_status::HELD;

/// A card that is up.
pub struct Running {
    pub card: Started,
    pub server: Server,
    pub log: Follower,
    pub socket: ControlSocket,
}

/// A card that the engine has brought up.
pub struct Started {
    pub name: String,
    pub journal: Arc<Journal>,
    pub live: Arc<LiveCard>,
    /// Of a card of netdevs. What an earlier daemon has left of it stays until it may go.
    pub hold: Option<Hold>,
    /// Whether it was brought to what was stored.
    pub restored: bool,
}

impl Running {
    /// Takes the card down; whether nothing is left.
    pub fn take_down(self, cx: &mut Locked<'_, Unlocked>, how: How) -> bool {
        let Self { card, server, log, socket } = self;
        drop(server);
        // First: who is killed from here on has been asked to forget it.
        let stored = if how == How::Forget { card.forget(cx) } else { card.catch_up(cx) };
        let closed = card.close(cx);
        drop(log);
        // The netdevs go with the card and the files of the state are closed, and only then may another daemon take its place.
        drop(card);
        drop(socket);
        closed && stored
    }
}

impl Started {
    /// The daemon does not come up. Of this card nothing is left that this start has made; but what an earlier daemon
    /// has left stays, as if this one had died.
    pub fn give_up(self, cx: &mut Locked<'_, Unlocked>) {
        if self.hold.as_ref().is_some_and(Hold::stays) {
            // Whatever its end would unmake.
            return std::mem::forget(self.live);
        }
        if !self.restored {
            self.forget(cx);
        }
        self.close(cx);
    }

    /// Forgets what was agreed; whether it is forgotten.
    pub fn forget(&self, cx: &mut Locked<'_, Unlocked>) -> bool {
        self.is_stored(self.journal.forget(cx))
    }

    /// Stores what could not be stored before; whether everything is stored.
    pub fn catch_up(&self, cx: &mut Locked<'_, Unlocked>) -> bool {
        self.is_stored(self.journal.catch_up(cx).map(drop))
    }

    pub fn is_stored(&self, stored: Result<()>) -> bool {
        if let Err(error) = &stored {
            tracing::error!(card = self.name, "{error:#}");
        }
        stored.is_ok()
    }

    /// Takes down what the engine has; whether nothing is left.
    pub fn close(&self, cx: &mut Locked<'_, Unlocked>) -> bool {
        let left = self.live.close(cx);
        for left in &left {
            tracing::error!(card = self.name, invariant = left.invariant, "{}", left.detail);
        }
        left.is_empty()
    }
}

/// Gives up every card that is up, as the daemon does not come up for this reason.
pub fn give_up_all(cx: &mut Locked<'_, Unlocked>, up: Vec<Running>, error: anyhow::Error) -> Result<u8> {
    for Running { card, server, log, socket } in up.into_iter().rev() {
        drop(server);
        card.give_up(cx);
        drop(log);
        drop(socket);
    }
    Err(error)
}

/// Leaves the cards as they are, as if we had died, but for the sockets: the next daemon finds them.
pub fn leave(cx: &mut Locked<'_, Unlocked>, up: Vec<Running>) -> ! {
    for Running { card, server, log, socket } in up {
        drop(server);
        // What the next daemon does not know of it would delete.
        card.catch_up(cx);
        drop(log);
        drop(socket);
    }
    tracing::info!("stopped; the cards' netdevs stay");
    std::process::exit(HELD.into())
}
