//! Explores scenarios: every interleaving, every failure, up to bounds that are told.
//!
//! [`check`] tells a scenario again and again on the card in memory, with the engine, locks, queues and
//! runner that `esw run` uses, while a scheduler decides every thread switch and time-out and a plan every
//! failure. What it finds is made small and told as a [`Story`], with a [`Token`] that tells it again;
//! [`columns`], [`page()`] and [`trace`] tell a story to a reader.

#![forbid(unsafe_code)]

mod campaign;
mod check;
mod columns;
mod faults;
mod merge;
mod minimise;
mod orders;
mod page;
mod reading;
pub mod schedulers;
mod story;
mod telling;
mod token;
mod trace_events;

pub use campaign::{Options, Strategy, Watch};
pub use check::{FaultsReport, MOST_THREADS, Report, Violation, check, replay};
pub use columns::columns;
pub use faults::{Faults, Place};
pub use merge::{MergeError, merge, read};
pub use orders::{Orders, Shown};
pub use page::{PageInfo, page};
pub use story::{Row, RowKind, Story, again};
pub use telling::{Found, Telling};
pub use token::{FINALLY, SETUP, Token, TokenError, fingerprint};
pub use trace_events::trace;
