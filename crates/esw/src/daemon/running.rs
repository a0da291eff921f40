//! The cards that a daemon keeps up, and how they are taken down or left.

use std::sync::Arc;

use anyhow::Result;
use card_linux::Hold;
use control::Follower;
use devlink::{ControlSocket, Server};
use host::LiveCard;
use lockdep::{Locked, Unlocked};

use super::ending::How;
use super::flow_log::FlowLog;
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
    pub flows: Arc<FlowLog>,
    pub live: Arc<LiveCard>,
    /// Of a card of netdevs: keeps what an earlier daemon has left, until that may be removed.
    pub hold: Option<Hold>,
    /// Whether the card was brought to a stored state.
    pub restored: bool,
}

impl Running {
    /// Takes the card down; whether nothing is left.
    pub fn take_down(self, cx: &mut Locked<'_, Unlocked>, how: How) -> bool {
        let Self { card, server, log, socket } = self;
        drop(server);
        // First, so that a daemon that is killed from here on has forgotten the state that it was asked to forget.
        let stored = if how == How::Forget { card.forget(cx) } else { card.catch_up(cx) };
        let closed = card.close(cx);
        card.flows.forget(cx);
        drop(log);
        // Netdevs are removed with the card, and the state is closed. Only then may another daemon take this one's place.
        drop(card);
        drop(socket);
        closed && stored
    }
}

impl Started {
    /// Gives the card up, as the daemon does not come up. Everything that this start has made is removed; what an earlier
    /// daemon has left stays, as if this one had died.
    pub fn give_up(self, cx: &mut Locked<'_, Unlocked>) {
        if self.hold.as_ref().is_some_and(Hold::stays) {
            // Its destructor would remove the netdevs.
            return std::mem::forget(self.live);
        }
        if !self.restored {
            self.forget(cx);
        }
        self.close(cx);
    }

    /// Forgets the agreed state; whether that has succeeded.
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

    /// Takes the card down; whether nothing is left of it.
    pub fn close(&self, cx: &mut Locked<'_, Unlocked>) -> bool {
        let left = self.live.close(cx);
        for left in &left {
            tracing::error!(card = self.name, invariant = left.invariant, "{}", left.detail);
        }
        left.is_empty()
    }
}

/// Gives up every card that is up, as the daemon does not come up; the error with the reason.
pub fn give_up_all(cx: &mut Locked<'_, Unlocked>, up: Vec<Running>, error: anyhow::Error) -> Result<u8> {
    for Running { card, server, log, socket } in up.into_iter().rev() {
        drop(server);
        card.give_up(cx);
        drop(log);
        drop(socket);
    }
    Err(error)
}

/// Ends the process and leaves the cards as they are, as if it had died, except that the sockets are removed. The next
/// daemon finds the cards.
pub fn leave(cx: &mut Locked<'_, Unlocked>, up: Vec<Running>) -> ! {
    for Running { card, server, log, socket } in up {
        drop(server);
        // The next daemon deletes what is not in the stored state.
        card.catch_up(cx);
        card.flows.flush(cx);
        drop(log);
        drop(socket);
    }
    tracing::info!("stopped; the cards' netdevs stay");
    std::process::exit(HELD.into())
}
