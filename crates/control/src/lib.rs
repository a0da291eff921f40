//! What a card can be asked to do, from the program that asks to the engine.
//!
//! A [`Command`] is a change to a card as a value. A lab makes one of a system call, a prompt or a scenario file of
//! words; it is [encoded](Command::encode) once and goes to the daemon over a connection; a [`CommandTarget`] carries it
//! out and gives a [`Reply`]. Nobody between the two takes text apart.

#![forbid(unsafe_code)]

mod command;
pub mod devlink;
mod encoding;
mod follow;
pub mod forms;
pub mod grammar;
mod query;
mod target;
mod touched;
pub mod words;
mod written;

pub use command::{Command, EswitchOption, MAX_FLAP};
pub use devlink::DevlinkCommand;
pub use encoding::{DecodeError, VERSION};
pub use follow::Follower;
pub use query::{Query, Request};
pub use target::{CommandTarget, Failure, Reply};
pub use words::WordError;
