//! Commands and queries to a card, as values, as bytes and as words.
//!
//! A [`Command`] is a change to a card, and a [`Query`] a look at it. A lab makes a command of a system call; a prompt, a
//! scenario file and `esw dev` make one of words, all with the same [`grammar`]. It is [encoded](Command::encode) once and
//! sent to the daemon over a connection. A [`CommandTarget`] carries it out and returns a [`Reply`]. Text is read in one
//! place, where words become a command, and written in one, where a log needs words.

#![forbid(unsafe_code)]

mod command;
pub mod devlink;
mod encoding;
mod follow;
pub mod forms;
pub mod grammar;
mod query;
pub mod reader;
pub mod shown;
mod target;
mod touched;
mod words;

pub use command::{Command, EswitchOption, MAX_FLAP};
pub use devlink::DevlinkCommand;
pub use encoding::{DecodeError, VERSION};
pub use follow::Follower;
pub use query::{Query, Request};
pub use reader::WordError;
pub use target::{CommandTarget, Failure, FlowRefusal, Reply};
