//! What an E-Switch does with flows, and a reference pipeline that does it.
//!
//! A [`Rule`] matches frames by their [`Match`] and does its [`Action`]s with them. [`Tables`] hold rules in the order in
//! which tc asks them; a [`State`] holds what frames change: counters, meters, connections. [`process`] is the
//! definition of what the card does: a pure function of the tables, the state, the time, a port and a frame.
//!
//! The terms and the behaviour are those of tc flower (`net/sched/cls_flower.c`, `net/sched/act_*.c`), of
//! `Documentation/networking/representors.rst` and, for what the card refuses, of mlx5. Where the model is simpler than
//! the kernel, the documentation of the item says so.
//!
//! The crate guarantees:
//!
//! * No frame causes a panic, however short or wrong it is.
//! * A run is a transaction. A frame that no rule carries on goes to the representor as it came, and nothing has
//!   changed: no counter, no meter, no connection.
//! * The result depends on the arguments alone. What is random in the kernel follows from a seed in the state.
//! * A rule that the card could not carry out is refused when it is added, with a [`RuleError`] that says why.

#![forbid(unsafe_code)]

mod action;
mod check;
mod checksum;
mod conntrack;
#[cfg(feature = "generate")]
pub mod generate;
mod key;
mod matching;
mod meter;
mod parse;
mod pipeline;
mod rewrite;
mod rule;
mod state;
mod table;
mod trace;
mod tunnel;
pub mod words;

pub use action::{Action, Change, Control, Csum, Ct, Edit, EditField, Header, Nat, NatRange, Police, Sample, VlanTag};
pub use check::{Capabilities, RuleError};
pub use checksum::{is_right as checksums_are_right, make_right as make_checksums_right};
pub use conntrack::{Connection, ConnectionId, Connections, Direction, TcpPhase, TcpState, Tuple};
pub use key::{Field, FieldValue, Key, Mac};
pub use matching::Match;
pub use meter::{Bucket, Meter, MeterId, Rate};
pub use parse::{Dissected, Fragment, Network, dissect};
pub use pipeline::{DropReason, Fate, MissReason, Output, Sampled, Verdict, process};
pub use rule::{Block, Port, Protocol, Rule, RuleId};
pub use state::{Counter, State};
pub use table::{PortKind, Tables};
pub use trace::{Step, Trace};
pub use tunnel::{Encap, Neighbour, TunnelDevice, TunnelKind};

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
