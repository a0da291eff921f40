//! What the kinds of locks have in common: a lock with what is known of it, and what a guard keeps beside the lock.
//!
//! A real lock that is not checked must cost what the lock inside it costs. So whether anything is to be done
//! beside taking it and letting go of it is one word, [`Holding::task`], which a guard has in a register: the fast way looks
//! at it once when the lock is taken and once when it is let go of, and at nothing of the lock but the lock itself. The
//! slow way is out of line, and takes and gives words, never the address of a guard. `cargo xtask instructions` counts
//! both ways.

use std::panic::Location;

use crate::class::ClassKey;
use crate::model::{self, Handle, Wrote};
use crate::task::{Acquire, Instance, Recorded, Task};

/// One of `parking_lot`'s locks.
pub(crate) trait RawLock {
    type Value;

    /// What a look at the value gives; `None` if the lock is not free.
    fn peek<R>(&self, look: impl FnOnce(&Self::Value) -> R) -> Option<R>;
}

/// A lock, and what is known of it.
pub(crate) struct Known<L: RawLock> {
    pub lock: L,
    /// What it is to an explorer, who decides who has it: the lock itself is free then.
    pub model: Handle,
    /// What it protects as a number, where an explorer is to be told.
    told: Option<fn(&L::Value) -> u64>,
    pub rank: u32,
}

impl<L: RawLock> Known<L> {
    pub fn new(lock: L, class: &'static ClassKey, rank: u32) -> Self {
        Self { lock, model: Handle::of_lock(class), told: None, rank }
    }

    /// An explorer is to be told what the lock, which is free, protects.
    pub fn tell(&mut self, number: fn(&L::Value) -> u64) {
        if self.model.get().is_some() {
            self.told = Some(number);
            self.model.starts_as(|| self.lock.peek(number).unwrap_or_else(|| mixed()));
        }
    }

    /// What the checker knows the lock by.
    pub fn instance(&self) -> Instance {
        std::ptr::from_ref(&self.model).addr()
    }

    /// The lock is about to be taken where that is checked or explored: checks it, and waits until the explorer gives
    /// it. Whether the caller may wait for the lock itself, which is free once an explorer has given it.
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
        if !self.model.get().is_some_and(model::is_held_by_interrupted) {
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

    /// The lock has been taken.
    pub fn taken(&self, task: &Task, class: &'static ClassKey, at: &'static Location<'static>) {
        task.record(class, self.instance(), self.rank, at);
    }

    /// The lock has been let go of. It is free, but while there is an explorer nobody takes it before the explorer knows:
    /// so what it protects can still be looked at. The explorer is told before the checker, whose record names what
    /// is held while the scheduler chooses.
    #[cold]
    #[inline(never)]
    fn let_go(&self, task: &Task, shared: bool, wrote: Wrote) {
        // Taken back even if the scheduler gives the execution up in here.
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

/// What was made for real is held while the scheduler chooses: it would wait for ever.
#[cold]
pub(crate) fn mixed() -> ! {
    panic!("a primitive that was made for real is used in an exploration, or the reverse")
}

/// That a lock is held, to the checker and an explorer. Dropped once the lock itself is free.
pub(crate) struct Holding<'a, L: RawLock> {
    /// In whose record it is; `None`: neither checked nor explored.
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

    /// What the lock protects was lent out for writing.
    #[inline]
    pub fn written(&mut self) {
        self.wrote = Wrote::Unknown;
    }

    /// What the lock is to an explorer.
    pub fn object(&self) -> Option<u32> {
        self.task.and_then(|_| self.of.model.get())
    }

    /// The lock is about to be let go of with something in it that this stands for, where an explorer is to know.
    pub fn leaves(&mut self, number: impl FnOnce() -> u64) {
        if self.object().is_some() && self.wrote != Wrote::No {
            self.wrote = Wrote::Value(number());
        }
    }

    /// What was written until now, before a wait that lets go of the lock with `value` in it. What is written after
    /// the wait is another matter.
    pub fn take_wrote(&mut self, value: &L::Value) -> Wrote {
        if let Some(told) = self.of.told {
            self.leaves(|| told(value));
        }
        std::mem::replace(&mut self.wrote, Wrote::No)
    }

    /// Checks a wait that lets go of the lock.
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
