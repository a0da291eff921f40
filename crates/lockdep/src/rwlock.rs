//! The reader-writer lock.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;

use crate::class::Class;
use crate::holding::{Holding, Known, RawLock, mixed};
use crate::task::{Acquire, Task};
use crate::{LockBefore, Locked};

/// A lock of class `C` around a `T`: many readers or one writer.
///
/// The checker treats reading like writing: a waiting writer blocks new readers, so the cycles are the same.
///
/// ```
/// use lockdep::{Domain, OnReport, RwLock, enter, lock_classes, lock_order};
///
/// lock_classes! {
///     class Table = "table";
/// }
/// lock_order! { root Table; }
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     let table = RwLock::<Table, _>::new(vec![1]);
///     table.write(cx).0.push(2);
///     assert_eq!(table.read(cx).0.len(), 2);
/// });
/// ```
pub struct RwLock<C, T> {
    known: Known<parking_lot::RwLock<T>>,
    class: PhantomData<fn() -> C>,
}

/// The lock is held for reading as long as this lives.
pub struct RwLockReadGuard<'a, T> {
    inner: parking_lot::RwLockReadGuard<'a, T>,
    _holding: Holding<'a, parking_lot::RwLock<T>>,
}

/// The lock is held for writing as long as this lives. A function that takes this guard needs the lock held for writing.
pub struct RwLockWriteGuard<'a, T> {
    inner: parking_lot::RwLockWriteGuard<'a, T>,
    holding: Holding<'a, parking_lot::RwLock<T>>,
}

impl<T> RawLock for parking_lot::RwLock<T> {
    type Value = T;

    fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.try_read().map(|value| look(&value))
    }
}

impl<C: Class, T> RwLock<C, T> {
    /// Makes a free lock.
    pub fn new(value: T) -> Self {
        Self { known: Known::new(parking_lot::RwLock::new(value), C::key(), 0), class: PhantomData }
    }

    /// Gives the lock a function that computes a number from the value, as
    /// [`Mutex::with_state_digest`](crate::Mutex::with_state_digest) does.
    pub fn with_state_digest(mut self, number: fn(&T) -> u64) -> Self {
        self.known.tell(number);
        self
    }

    /// Takes the lock for reading.
    #[inline]
    #[track_caller]
    pub fn read<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (RwLockReadGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let checked = cx.task.if_checked();
        let inner = match checked {
            None => self.known.lock.read(),
            Some(task) => self.read_slow(task, Location::caller()),
        };
        (RwLockReadGuard { inner, _holding: Holding::new(checked, &self.known, true) }, Locked::at(cx.task))
    }

    /// Takes the lock for writing.
    #[inline]
    #[track_caller]
    pub fn write<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (RwLockWriteGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let checked = cx.task.if_checked();
        let inner = match checked {
            None => self.known.lock.write(),
            Some(task) => self.write_slow(task, Location::caller()),
        };
        (RwLockWriteGuard { inner, holding: Holding::new(checked, &self.known, false) }, Locked::at(cx.task))
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&self, task: &Task, at: &'static Location<'static>) -> parking_lot::RwLockReadGuard<'_, T> {
        let inner = match self.known.ask(task, C::key(), Acquire::Wait, true, at) {
            true => self.known.lock.read(),
            false => self.known.lock.try_read().unwrap_or_else(|| mixed()),
        };
        self.known.taken(task, C::key(), at);
        inner
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&self, task: &Task, at: &'static Location<'static>) -> parking_lot::RwLockWriteGuard<'_, T> {
        let inner = match self.known.ask(task, C::key(), Acquire::Wait, false, at) {
            true => self.known.lock.write(),
            false => self.known.lock.try_write().unwrap_or_else(|| mixed()),
        };
        self.known.taken(task, C::key(), at);
        inner
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.holding.written();
        &mut self.inner
    }
}

impl<C, T> std::fmt::Debug for RwLock<C, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock")
    }
}
