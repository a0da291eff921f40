//! Locks that know their class and their place in the order.
//!
//! Everything above this crate takes its locks, condition variables, threads, time-outs and atomics
//! from here, and from nowhere else. That buys three things:
//!
//! * **The order is a type.** A thread carries a [`Locked`] token that names the innermost class it
//!   holds. Taking a lock needs a token of a class that stands before it, and gives a token of the
//!   lock's own class. Code that takes locks out of order does not compile.
//! * **What types cannot see is checked while it runs**: two instances of one class, recursion, locks
//!   held where none may be, waiting where nothing may wait, and what reaches a lock through a
//!   callback or through a work queue that is drained. As the kernel's lockdep does, the checker works
//!   on *classes*, so one run that takes `a` then `b` and another that takes `b` then `a` are
//!   reported even if they never met. See [`Domain`] and [`Report`].
//! * **The same binary runs for real or is explored.** Inside [`Explore::run`] every primitive made is a
//!   model of one, so a scheduler of shuttle's decides every interleaving and every time-out; outside, they are
//!   `parking_lot`'s and the standard library's. Which one is chosen when the primitive is *made*.
//!
//! Who uses this crate can state what must hold at a step, with [`Locked::ensure`], and name what can
//! fail, with [`Locked::fails`]: both cost one branch where nothing is checked or explored.
//!
//! The order itself is not here: whoever uses this crate declares classes with [`lock_classes!`] and
//! their order with [`lock_order!`], in one file.

#![forbid(unsafe_code)]

mod atomic;
mod class;
mod condvar;
#[cfg(doctest)]
mod does_not_compile;
mod domain;
mod event_count;
mod explore;
mod holding;
mod locked;
mod model;
mod mutex;
mod report;
mod rwlock;
mod shadow;
mod task;
mod thread;
mod wait_map;

pub use atomic::{AtomicBool, AtomicU64};
pub use class::{Class, ClassKey, Leaf, MayWait, NestedIn, Place};
pub use condvar::{Condvar, Deadline};
pub use domain::{Domain, EdgeInfo, OnReport, Oracle};
pub use event_count::{EventCount, Seen};
pub use explore::{Explore, is_explored, unexplored};
pub use lock_ordering::relation::{LockAfter, LockBefore};
pub use locked::{AtomicContext, LeafOnly, Locked, Unlocked};
pub use model::{
    Halt, Happening, HistoryMark, Model, ObjectId, Op, OpKind, ThreadModel, Touch, What, digest, focus, is_recorded,
    look, note, tell, without_history,
};
pub use mutex::{Mutex, MutexGuard};
pub use report::{HeldLock, Report, ReportKind};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use shadow::Shadow;
pub use thread::{JoinHandle, Spawn, ThreadMain, Threads, enter};
pub use wait_map::{WaitMap, WaitMapGuard};

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

#[doc(hidden)]
pub mod __private {
    pub use lock_ordering::impl_transitive_lock_order;
}
