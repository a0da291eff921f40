//! Locks that know their class and their place in the lock order.
//!
//! All crates above this one use its locks, condition variables, threads, time-outs and atomics, and no others. This has
//! three benefits:
//!
//! * **The order is a type.** A thread carries a [`Locked`] token that names the innermost class that it holds. To take a
//!   lock, a thread needs a token of a class that comes before the lock's class, and receives a token of the lock's class.
//!   Code that takes locks out of order does not compile.
//! * **A checker finds at run time what types cannot express**: two instances of one class, recursion, locks that are held
//!   where none may be, waiting where nothing may wait, and locks that are reached through a callback or by draining a
//!   work queue. Like the kernel's lockdep it works on *classes*: if one run takes `a` and then `b`, and another takes `b`
//!   and then `a`, it reports them even if they never occurred at the same time. See [`Domain`] and [`Report`].
//! * **The same binary runs for real or is explored.** Inside [`Explore::run`] every primitive that is made is a model,
//!   and a scheduler of shuttle's interface decides every interleaving, every time-out and every interrupt. Outside,
//!   primitives are `parking_lot`'s and the standard library's. The choice is made when the primitive is *made*.
//!
//! A program can state what must hold at a step with [`Locked::ensure`], and name what can fail with [`Locked::fails`].
//! Both cost one branch where nothing is checked or explored.
//!
//! This crate does not contain the order. A program declares its classes with [`lock_classes!`] and their order with
//! [`lock_order!`], in one file.

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
