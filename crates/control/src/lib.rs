//! Commands to a card, from the program that sends them to the engine.
//!
//! A [`Command`] is a change to a card as a value. A lab makes one from a system call, a prompt or a scenario file from
//! words. The command is [encoded](Command::encode) once and sent to the daemon over a connection; a [`CommandTarget`]
//! carries it out and returns a [`Reply`]. Nothing between the two parses text.

#![forbid(unsafe_code)]

mod command;
mod encoding;
mod follow;
mod target;
mod touched;
mod words;

pub use command::{Command, EswitchOption, MAX_FLAP};
pub use encoding::{DecodeError, VERSION};
pub use follow::Follower;
pub use target::{CommandTarget, Failure, Reply};
