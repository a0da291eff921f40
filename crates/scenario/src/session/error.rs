//! Why a step fails.

use std::time::Duration;

use eswitch::{Errno, Error};

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The engine refused, or could not.
    #[error("{0}")]
    Engine(#[from] Error),
    /// A program ended with another status than 0.
    #[error("exit status {status}{}{text}", if .text.is_empty() { "" } else { ": " })]
    Program {
        /// Its status.
        status: i32,
        /// What it complained of.
        text: String,
    },
    /// A program could not be run.
    #[error("{0}")]
    NoProgram(String),
    /// An expectation does not hold.
    #[error("expected {expected}, but {found}")]
    Unmet {
        /// What should hold.
        expected: String,
        /// What holds instead.
        found: String,
    },
    /// What was waited for did not come.
    #[error("{what} has not come within {} s: {found}", .limit.as_secs_f64())]
    NeverCame {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What there is instead.
        found: String,
    },
    /// It was asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl StepError {
    /// The error number, if the error has one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Engine(error) => Some(error.errno()),
            _ => None,
        }
    }

    /// Whether this is the error that was meant: by its name, or by a part of its text.
    pub fn is(&self, meant: &str) -> bool {
        self.errno().is_some_and(|errno| format!("{errno:?}") == meant) || self.to_string().contains(meant)
    }

    /// The error as devlink prints it.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Engine(error) => vec![
                format!("Error: mlx5_core: {}.", error.to_string().trim_end_matches('.')),
                format!("kernel answers: {}", error.errno().text()),
            ],
            Self::Program { status, text } => {
                let said = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned);
                [format!("exit status {status}")].into_iter().chain(said).collect()
            }
            other => vec![format!("Error: {other}.")],
        }
    }
}
