//! Explores programs that take their locks, threads and atomics from `lockdep`: every interleaving, every arrival of
//! an interrupt, and every failure, up to stated bounds.
//!
//! In a test, one line is enough. [`check()`] runs a closure in every schedule with at most two preemptions. If
//! something does not hold, it panics with the story of a schedule that shows this:
//!
//! ```should_panic
//! use std::sync::Arc;
//!
//! use lockdep::{Mutex, lock_classes};
//!
//! lock_classes! {
//!     leaf Account = "account";
//! }
//!
//! explore::check(|cx| {
//!     let balance = Arc::new(Mutex::<Account, u32>::new(10));
//!     let pays = |cx: &mut lockdep::Locked<'_, lockdep::Unlocked>, balance: &Mutex<Account, u32>| {
//!         // Another thread may pay between the look and the payment.
//!         if *balance.lock_leaf(cx) >= 10 {
//!             *balance.lock_leaf(cx) -= 10;
//!         }
//!     };
//!     let theirs = Arc::clone(&balance);
//!     let other = cx.spawn("other", move |cx| pays(cx, &theirs));
//!     pays(cx, &balance);
//!     other.join(cx).unwrap();
//! });
//! ```
//!
//! The trait [`Program`] is for more than a test: a program has a name, a fingerprint, a way to be run, and steps
//! that can be left out. [`campaign()`] runs a program again and again, while a [scheduler](schedulers) decides
//! every thread switch, time-out and arrival of an interrupt, and a plan decides every failure. It makes a failure
//! small and returns it as a [`Story`], with a [`Token`] that runs it again. [`columns`], [`page()`] and [`trace`]
//! show a story to a reader. A campaign can have several [parts](Options::shard), which [`merge()`] joins.
//!
//! A program may report to the explorer the state that it keeps, and what it has forgotten, so that equal states are
//! searched once. [`validate_states`] tests whether these reports are correct.

#![forbid(unsafe_code)]

mod budget;
mod campaign;
mod closure;
mod columns;
mod execution;
mod faults;
mod merge;
mod minimise;
mod options;
mod orders;
mod page;
mod portfolio;
mod program;
mod reading;
mod report;
pub mod schedulers;
mod story;
mod token;
mod trace_events;
mod validate;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use closure::{Closure, check, check_with};
pub use columns::columns;
pub use execution::{Execution, Found};
pub use faults::{Faults, Place};
pub use merge::{MergeError, merge, read};
pub use options::{Options, Strategy, Watch};
pub use orders::{Orders, ShownOrders};
pub use page::{PageInfo, page};
pub use portfolio::Search;
pub use program::{Part, Program, Run, StepId, Tool, fingerprint};
pub use report::{FaultsReport, MOST_THREADS, Report, SearchReport, Violation, campaign, replay};
pub use story::{Row, RowKind, Story, replay_command};
pub use token::{Token, TokenError};
pub use trace_events::trace;
pub use validate::{StateMismatch, StatesReport, validate_states};
