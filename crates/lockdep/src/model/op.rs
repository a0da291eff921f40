//! The operations of threads, and what they touch.

use std::panic::Location;

/// The kinds of operations of a thread.
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
    /// Waits for a notification. It happens when the lock is released.
    Wait,
    /// Raises an interrupt, and runs its handler.
    Interrupt,
    /// Its time-out fires.
    Expire,
    /// Starts a thread.
    Spawn,
    /// Waits for a thread's end.
    Join,
    /// Ends.
    Exit,
    /// Releases a lock. This is part of the step before, unless other threads may try the lock or an interrupt can land
    /// here.
    Release,
}

/// An object of the model: a lock, a condition variable, an atomic, a thread's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(super) u16);

impl ObjectId {
    /// Stands, in a [`Touch`], for the state on which interrupts depend. Handlers write it, and so does a thread that is about to
    /// raise an interrupt. A thread reads it if an interrupt that lands on it makes a difference.
    pub const INTERRUPTS: Self = Self(u16::MAX);

    /// Returns a small number, which is the same for the same object in every schedule that this OS thread explores.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// An object was touched by a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The thread.
    pub thread: usize,
    /// The object.
    pub object: ObjectId,
    /// It was at most read. Two reads have the same result in either order.
    pub reads: bool,
}

/// An operation of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// Its kind.
    pub kind: OpKind,
    /// Its object. For the start of a thread this is the thread itself.
    pub object: ObjectId,
    /// The class or name of the object.
    pub label: &'static str,
    /// Its place in the source.
    pub at: &'static Location<'static>,
    /// It has been done. For a try: it has succeeded.
    pub done: bool,
}

/// An event of an execution.
#[derive(Clone, Debug)]
pub struct Happening {
    /// The step of the schedule to which it belongs, counted from 0.
    pub step: usize,
    /// The thread, as an index into `Model::threads`.
    pub thread: usize,
    /// The event.
    pub what: What,
}

/// The kinds of events.
#[derive(Clone, Debug)]
pub enum What {
    /// An operation.
    Op(Op),
    /// A [note](crate::note): its kind and its text.
    Note(&'static str, String),
}
