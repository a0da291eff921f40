//! What a control socket calls in the daemon: after every command, for the status, and to end.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;

use devlink::{CarriedOut, Cx, Host, Refusal, Served};
use eswitch::Touched;
use host::LiveCard;
use netlink::Errno;

use super::ending::{Ending, How};
use super::flow_log::FlowLog;
use super::journal::{Journal, Part};
use super::status::{CardStatus, PfStatus};
use crate::cards::CardKind;

/// What a daemon does for the control socket of one card.
pub struct CardHost {
    /// The card's name.
    pub name: String,
    /// The kind of card.
    pub kind: CardKind,
    /// Its control socket.
    pub socket: PathBuf,
    /// When it came up.
    pub since: Instant,
    /// The stored state.
    pub journal: Arc<Journal>,
    /// The stored flow rules.
    pub flows: Arc<FlowLog>,
    /// The card; weak, as the server of the card owns this.
    pub live: Weak<LiveCard>,
    /// The daemon's end.
    pub ending: Arc<Ending>,
}

impl CardHost {
    /// Stores what a command may have changed, and what could not be stored after an earlier one; also after a command that
    /// was refused, which may have been carried out in part.
    fn store(&self, cx: Cx<'_, '_>, served: &Served, done: &CarriedOut<'_>) -> anyhow::Result<()> {
        let Some(live) = self.live.upgrade().filter(|_| may_change(done)) else {
            return self.journal.catch_up(cx).map(drop);
        };
        let engine = live.engine();
        let collect =
            |cx: Cx<'_, '_>| Part { agreed: engine.agreed_part(cx, done.touched), server: Some(served.kept(cx)) };
        self.journal.store(cx, engine.config(), collect).map(drop)
    }
}

/// Whether a command may have changed anything that is stored.
fn may_change(done: &CarriedOut<'_>) -> bool {
    done.keeps || done.touched != Touched::Nothing
}

impl Host for CardHost {
    fn carried_out(
        &self,
        cx: Cx<'_, '_>,
        served: &Served,
        done: &CarriedOut<'_>,
        outcome: Result<(), &Refusal>,
    ) -> Result<(), Refusal> {
        // Before anything is logged: what is answered must be on the disk, even if the log cannot be written.
        let stored = self.store(cx, served, done);
        self.flows.flush(cx);
        let (card, words) = (self.name.as_str(), done.words);
        match outcome {
            Ok(()) if !may_change(done) => {
                tracing::debug!(card, command = words.to_string(), "carried out")
            }
            Ok(()) => tracing::info!(card, command = words.to_string(), "carried out"),
            Err(refusal) => {
                tracing::warn!(
                    card,
                    command = words.to_string(),
                    errno = refusal.errno.raw_os_error(),
                    why = refusal.why(),
                    "refused"
                );
            }
        }
        if let (Ok(()), Some(setting)) = (outcome, done.not_enforced) {
            tracing::warn!(card, setting, "stored and shown, and not enforced: see docs/enforced.md");
        }
        let Err(error) = stored else { return Ok(()) };
        tracing::error!(card, command = words.to_string(), "{error:#}");
        // A command that changed nothing succeeds, whether or not earlier changes could be stored.
        if !may_change(done) {
            return Ok(());
        }
        Err(Refusal::new(Errno::IO, format!("done, but a restart may not know of it: {error:#}")))
    }

    fn filter_changed(&self, record: tc::Record) {
        self.flows.note_filter(record);
    }

    fn filters_answered(&self, cx: Cx<'_, '_>) {
        self.flows.flush(cx);
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
        // The status has text and numbers only, so this cannot fail.
        serde_json::to_string(&status).unwrap_or_default()
    }

    fn end(&self, cx: Cx<'_, '_>, how: &str) -> Result<(), Refusal> {
        let Some(requested) = How::parse(how) else {
            return Err(Refusal::new(
                Errno::INVAL,
                format!("`{how}` is no way to end; there are down, forget and keep"),
            ));
        };
        tracing::info!(card = self.name, how, "asked to end");
        self.ending.request(cx, requested);
        Ok(())
    }
}
