//! The common part of all kinds of locks: a lock with its class, and what a guard keeps beside the lock.
//!
//! A real lock that is not checked must cost no more than the lock inside it. So one word, [`Holding::task`], decides
//! whether anything is to be done beside taking and releasing the lock. A guard has it in a register. The fast path reads
//! it once when the lock is taken and once when it is released, and touches nothing of the lock but the lock itself. The
//! slow path is out of line, and takes and returns words, never the address of a guard. `cargo xtask instructions` counts
//! the instructions of both paths.

use std::panic::Location;

use crate::class::ClassKey;
use crate::model::{self, Handle, Wrote};
use crate::task::{Acquire, Instance, Recorded, Task};

/// One of `parking_lot`'s locks.
pub(crate) trait RawLock {
    type Value;

    /// Calls `look` with the value. `None` if the lock is not free.
    fn peek<R>(&self, look: impl FnOnce(&Self::Value) -> R) -> Option<R>;
}

/// A lock, its rank, and its object in the model.
pub(crate) struct Known<L: RawLock> {
    pub lock: L,
    /// Its object in the model. In an exploration the model decides which thread has the lock, and the lock itself is free.
    pub model: Handle,
    /// Computes the contents as a number, in an exploration.
    told: Option<fn(&L::Value) -> u64>,
    pub rank: u32,
}

impl<L: RawLock> Known<L> {
    pub fn new(lock: L, class: &'static ClassKey, rank: u32) -> Self {
        Self { lock, model: Handle::of_lock(class), told: None, rank }
    }

    /// Has the contents of the lock, which is free, reported to an explorer as a number.
    pub fn tell(&mut self, number: fn(&L::Value) -> u64) {
        if self.model.get().is_some() {
            self.told = Some(number);
            self.model.starts_as(|| self.lock.peek(number).unwrap_or_else(|| mixed()));
        }
    }

    /// Returns the number by which the checker identifies the lock.
    pub fn instance(&self) -> Instance {
        std::ptr::from_ref(&self.model).addr()
    }

    /// Checks that the lock may be taken, and waits until the explorer grants it, where locks are checked or explored.
    /// Returns whether the caller may wait for the lock itself, which is free once an explorer has granted it.
    #[must_use]
    pub fn ask(
        &self,
        task: &Task,
        class: &'static ClassKey,
        how: Acquire,
        shared: bool,
        at: &'static Location<'static>,
    ) -> bool {
        // A deadlock that happens here says more than a report that one is possible.
        let is_deadlock = task.is_in_handler() && self.model.get().is_some_and(model::is_held_by_interrupted);
        if !is_deadlock {
            task.check(class, self.instance(), self.rank, how, at);
        }
        match self.model.get() {
            None => !crate::is_explored(),
            Some(object) => {
                model::acquire(object, shared, at);
                false
            }
        }
    }

    /// Records that the lock has been taken.
    pub fn taken(&self, task: &Task, class: &'static ClassKey, at: &'static Location<'static>) {
        task.record(class, self.instance(), self.rank, at);
    }

    /// Reports that the lock has been released. It is free, but in an exploration no thread takes it before the model knows
    /// of the release. So its contents can still be read. The explorer is notified before the checker, whose record names
    /// the held locks while the scheduler chooses.
    #[cold]
    #[inline(never)]
    fn let_go(&self, task: &Task, shared: bool, wrote: Wrote) {
        // Dropped even if the scheduler gives up the execution in here.
        let _recorded = Recorded { task, instance: self.instance() };
        if let Some(object) = self.model.get() {
            let wrote = match self.told {
                Some(told) if wrote == Wrote::Unknown => self.lock.peek(told).map_or(wrote, Wrote::Value),
                _ => wrote,
            };
            model::release(object, shared, wrote);
        }
    }
}

/// Panics: a real lock is held while the scheduler chooses, so the thread would wait for ever.
#[cold]
pub(crate) fn mixed() -> ! {
    panic!("a primitive that was made for real is used in an exploration, or the reverse")
}

/// Keeps a lock recorded as held, for the checker and an explorer. It is dropped once the lock itself is free.
pub(crate) struct Holding<'a, L: RawLock> {
    /// The task whose record has the lock. `None`: the lock is neither checked nor explored.
    task: Option<&'a Task>,
    of: &'a Known<L>,
    shared: bool,
    wrote: Wrote,
}

impl<'a, L: RawLock> Holding<'a, L> {
    #[inline]
    pub fn new(task: Option<&'a Task>, of: &'a Known<L>, shared: bool) -> Self {
        Self { task, of, shared, wrote: Wrote::No }
    }

    /// Notes that the contents were lent out for writing.
    #[inline]
    pub fn written(&mut self) {
        self.wrote = Wrote::Unknown;
    }

    /// Returns the lock's object in the model.
    pub fn object(&self) -> Option<u32> {
        self.task.and_then(|_| self.of.model.get())
    }

    /// Sets the number that represents the contents at the release, for an explorer.
    pub fn leaves(&mut self, number: impl FnOnce() -> u64) {
        if self.object().is_some() && self.wrote != Wrote::No {
            self.wrote = Wrote::Value(number());
        }
    }

    /// Takes what was written until now, before a wait that releases the lock with `value` in it. What is written after
    /// the wait counts from then on.
    pub fn take_wrote(&mut self, value: &L::Value) -> Wrote {
        if let Some(told) = self.of.told {
            self.leaves(|| told(value));
        }
        std::mem::replace(&mut self.wrote, Wrote::No)
    }

    /// Checks a wait that releases the lock.
    pub fn check_wait(&self, at: &'static Location<'static>) {
        if let Some(task) = self.task {
            task.check_wait(self.of.instance(), at);
        }
    }
}

impl<L: RawLock> Drop for Holding<'_, L> {
    #[inline]
    fn drop(&mut self) {
        if let Some(task) = self.task {
            self.of.let_go(task, self.shared, self.wrote);
        }
    }
}
