//! The operations of threads, and what they touch.

use std::panic::Location;

/// What a thread is about to do, or has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Starts to run.
    Start,
    /// Takes a lock.
    Acquire,
    /// Takes a lock for reading.
    AcquireShared,
    /// Tries a lock.
    Try,
    /// Reads an atomic.
    Read,
    /// Writes an atomic.
    Write,
    /// Wakes waiters.
    Notify,
    /// Waits for a notification; happens with the lock that is let go of.
    Wait,
    /// Raises an interrupt, whose handler it runs.
    Interrupt,
    /// Its time-out fires.
    Expire,
    /// Starts a thread.
    Spawn,
    /// Waits for a thread's end.
    Join,
    /// Ends.
    Exit,
    /// Lets go of a lock. Unless others may try that lock, it is part of the step before.
    Release,
}

/// An object of the model: a lock, a condition variable, an atomic, a thread's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(super) u16);

impl ObjectId {
    /// Every object, in a [`Touch`]: the step depends on every other one, whatever that touches.
    pub const EVERYTHING: Self = Self(u16::MAX);

    /// A small number, the same for the same object in every schedule of this OS thread's
    /// explorations.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// That an object was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// By which thread.
    pub thread: usize,
    /// What.
    pub object: ObjectId,
    /// It was read at most: two that read come to the same in either order.
    pub reads: bool,
}

/// What a thread is about to do.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// What.
    pub kind: OpKind,
    /// To what. Every thread's start is about the thread itself.
    pub object: ObjectId,
    /// The class or name of the object.
    pub label: &'static str,
    /// Where in the source.
    pub at: &'static Location<'static>,
    /// It has been done; for a try, in full.
    pub done: bool,
}

/// Something that happened, for a story told after.
#[derive(Clone, Debug)]
pub struct Happening {
    /// Which step of the schedule it belongs to, counted from 0.
    pub step: usize,
    /// The thread, as an index into [`Model::threads`].
    pub thread: usize,
    /// What happened.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug)]
pub enum What {
    /// An operation.
    Op(Op),
    /// Something worth telling: of what kind, and in words.
    Note(&'static str, String),
}
