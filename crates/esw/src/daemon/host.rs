//! The daemon as the control sockets see it: told of every command, asked for its status and for its end.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;

use devlink::{CarriedOut, Cx, Host, Refusal};
use eswitch::Touched;
use host::LiveCard;
use netlink::Errno;

use super::ending::{Ending, How};
use super::journal::Journal;
use super::told::{CardStatus, PfStatus};
use crate::cards::CardKind;

/// One card's.
pub struct CardHost {
    /// The card's name.
    pub name: String,
    /// What it is made of.
    pub kind: CardKind,
    /// Its control socket.
    pub socket: PathBuf,
    /// When it came up.
    pub since: Instant,
    /// What was agreed.
    pub journal: Arc<Journal>,
    /// The card: weak, as what is served has us.
    pub live: Weak<LiveCard>,
    /// The daemon's end.
    pub ending: Arc<Ending>,
}

impl CardHost {
    /// Stores what a command may have changed, and what could not be stored after an earlier one. A command that was
    /// refused may have done a part of what it was to do.
    fn store(&self, cx: Cx<'_, '_>, touched: Touched) -> anyhow::Result<()> {
        let Some(live) = self.live.upgrade().filter(|_| touched != Touched::Nothing) else {
            return self.journal.catch_up(cx).map(drop);
        };
        let engine = live.engine();
        self.journal.store(cx, engine.config(), |cx| engine.agreed_part(cx, touched)).map(drop)
    }
}

impl Host for CardHost {
    fn carried_out(&self, cx: Cx<'_, '_>, done: &CarriedOut<'_>, outcome: Result<(), &Refusal>) -> Result<(), Refusal> {
        // Before anything is logged: whatever becomes of the log, what is answered is on the disk.
        let stored = self.store(cx, done.touched);
        let (card, command) = (self.name.as_str(), done.words);
        match outcome {
            Ok(()) if done.touched == Touched::Nothing => tracing::debug!(card, command, "carried out"),
            Ok(()) => tracing::info!(card, command, "carried out"),
            Err(refusal) => {
                tracing::warn!(card, command, errno = refusal.errno.raw_os_error(), why = refusal.why(), "refused");
            }
        }
        let Err(error) = stored else { return Ok(()) };
        tracing::error!(card, command, "{error:#}");
        // What was only looked at is as the answer says, whether or not a restart will know of it.
        if done.touched == Touched::Nothing {
            return Ok(());
        }
        Err(Refusal::new(Errno::IO, format!("done, but a restart may not know of it: {error:#}")))
    }

    fn status(&self, cx: Cx<'_, '_>) -> String {
        let live = self.live.upgrade();
        let status = CardStatus {
            name: self.name.clone(),
            kind: self.kind.name().to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.since.elapsed().as_secs(),
            socket: self.socket.clone(),
            state: Some(self.journal.path().to_owned()),
            pfs: live.map(|live| PfStatus::all(live.engine(), cx)).unwrap_or_default(),
        };
        // It is made of text and numbers; that cannot fail.
        serde_json::to_string(&status).unwrap_or_default()
    }

    fn end(&self, cx: Cx<'_, '_>, how: &str) -> Result<(), Refusal> {
        let Some(meant) = How::parse(how) else {
            return Err(Refusal::new(
                Errno::INVAL,
                format!("`{how}` is no way to end; there are down, forget and keep"),
            ));
        };
        tracing::info!(card = self.name, how, "asked to end");
        self.ending.ask(cx, meant);
        Ok(())
    }
}
