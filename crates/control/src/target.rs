//! The trait of a card that carries out commands.

use eswitch::{Engine, Error, FlowDone, FlowError, PortHandle};
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
    /// [`Failure::Engine`]: the engine refused the command, or failed. The other errors concern bonds and
    /// neighbours only.
    fn carry_out(&self, cx: &mut Locked<'_, Unlocked>, command: &Command) -> Result<Reply, Failure>;
}

/// What a command that was carried out returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Nothing.
    Done,
    /// What became of each change of flow rules, in their order.
    Flows(Vec<Result<FlowDone, FlowRefusal>>),
    /// The port that was added.
    Port(PortHandle),
    /// A note for the user, such as that the kernel has no bonds and the engine was notified of one that does not exist
    /// there.
    Note(String),
}

/// Why a change of flow rules was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRefusal {
    /// The error number, which is positive.
    pub errno: i32,
    /// The reason: for a rule that a ConnectX could not carry out, in mlx5's words.
    pub text: String,
}

impl From<FlowError> for FlowRefusal {
    fn from(error: FlowError) -> Self {
        Self { errno: error.errno().number(), text: error.to_string() }
    }
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The engine refused the command, or failed.
    #[error("{0}")]
    Engine(#[from] Error),
    /// The card is being taken down.
    #[error("interrupted")]
    Interrupted,
    /// The kernel's bonds or neighbours were changed, but the engine was not notified of the change in time.
    #[error("the kernel's bonds or neighbours were changed, and the card has not seen that in time")]
    Unseen,
}
