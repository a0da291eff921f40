//! Explores programs that take their locks, threads and atomics from `lockdep`: every interleaving and every failure, up
//! to bounds that are told.
//!
//! In a test, one line is enough. [`check()`] runs a closure in every schedule with at most two preemptions, and panics with
//! the story of what it found:
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
//! For more than a test there is the trait [`Program`]: what has a name, a fingerprint and a way to be run, and steps that can be left
//! out. [`campaign()`] runs a program again and again, while a [scheduler](schedulers) decides every thread switch and time-out and a plan
//! every failure. What it finds is made small and told as a [`Story`], with a [`Token`] that tells it again; [`columns`], [`page()`]
//! and [`trace`] tell a story to a reader. A campaign can have several [parts](Options::shard), which [`merge()`] puts together.
//!
//! A program may tell the explorer of state that it keeps, or says to have forgotten, so that what comes to the same is searched
//! once; whether that is right can be tested by [`validate_states`].

#![forbid(unsafe_code)]

mod budget;
mod campaign;
mod closure;
mod columns;
mod faults;
mod merge;
mod minimise;
mod options;
mod orders;
mod page;
mod program;
mod reading;
mod report;
pub mod schedulers;
mod story;
mod telling;
mod token;
mod trace_events;
mod validate;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use closure::{Closure, check, check_with};
pub use columns::columns;
pub use faults::{Faults, Place};
pub use merge::{MergeError, merge, read};
pub use options::{Options, Strategy, Watch};
pub use orders::{Orders, Shown};
pub use page::{PageInfo, page};
pub use program::{Part, Program, Run, StepId, Tool, fingerprint};
pub use report::{FaultsReport, MOST_THREADS, Report, Violation, campaign, replay};
pub use story::{Row, RowKind, Story, again};
pub use telling::{Found, Telling};
pub use token::{Token, TokenError};
pub use trace_events::trace;
pub use validate::{StateMismatch, StatesReport, validate_states};
