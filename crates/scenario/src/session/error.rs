//! Why a step fails.

use std::time::Duration;

use control::FlowRefusal;
use eswitch::{Errno, Error, TraceError};

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The engine refused the command, or failed to carry it out.
    #[error("{0}")]
    Engine(#[from] Error),
    /// A change of flow rules was refused.
    #[error("{}", .0.text)]
    Flow(FlowRefusal),
    /// A frame could not be traced.
    #[error("{0}")]
    Trace(TraceError),
    /// A program ended with another status than 0.
    #[error("exit status {status}{}{text}", if .text.is_empty() { "" } else { ": " })]
    Program {
        /// The exit status.
        status: i32,
        /// What the program wrote: to standard error, or else to standard output.
        text: String,
    },
    /// A program could not be run.
    #[error("{0}")]
    NoProgram(String),
    /// An expectation does not hold.
    #[error("expected {expected}, but {found}")]
    Unmet {
        /// The statement that should hold.
        expected: String,
        /// What was found instead.
        found: String,
    },
    /// A wait took too long.
    #[error("waited {} s for {what}: {found}", .limit.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        limit: Duration,
        /// What was found instead.
        found: String,
    },
    /// The step was interrupted.
    #[error("interrupted")]
    Interrupted,
}

impl StepError {
    /// The error number, if the error is the engine's.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Engine(error) => Some(error.errno()),
            Self::Flow(refusal) => Errno::of_number(refusal.errno),
            Self::Trace(error) => Some(error.errno()),
            _ => None,
        }
    }

    /// Whether this is the error that a scenario describes: by the name of its number, or by a part of its text.
    pub fn is(&self, description: &str) -> bool {
        self.errno().is_some_and(|errno| format!("{errno:?}") == description) || self.to_string().contains(description)
    }

    /// The error in the lines that devlink prints for one.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Engine(error) => vec![
                format!("Error: mlx5_core: {}.", error.to_string().trim_end_matches('.')),
                format!("kernel answers: {}", error.errno().text()),
            ],
            Self::Program { status, text } => {
                let output = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned);
                [format!("exit status {status}")].into_iter().chain(output).collect()
            }
            other => vec![format!("Error: {other}.")],
        }
    }
}
