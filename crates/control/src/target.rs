//! What carries out commands.

use eswitch::{Engine, Error, PortHandle};
use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::command::Command;

/// A card that is up and carries out commands, from any thread.
pub trait CommandTarget: Send + Sync {
    /// The card's engine.
    fn engine(&self) -> &Engine;

    /// Carries out a command.
    ///
    /// # Errors
    /// [`Failure::Engine`]: the engine refused, or could not. The others concern bonds only.
    fn carry_out(&self, cx: &mut Locked<'_, Unlocked>, command: &Command) -> Result<Reply, Failure>;
}

/// What a command answers beside that it was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing.
    Done,
    /// The port that was added.
    Port(PortHandle),
    /// What the user should know, such as that the kernel has no bonds and the command stands in for one.
    Note(String),
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The engine refused, or could not.
    #[error("{0}")]
    Engine(#[from] Error),
    /// The card is being taken down.
    #[error("interrupted")]
    Interrupted,
    /// The kernel has changed its bonds as asked, and the engine has not seen that in time.
    #[error("the kernel's bonds were changed, and the card has not seen that in time")]
    Unseen,
}
