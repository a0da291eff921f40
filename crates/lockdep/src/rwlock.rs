//! The reader-writer lock.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;

use crate::class::Class;
use crate::model::{Handle, Wrote};
use crate::mutex::{Modelled, mixed};
use crate::task::{Acquire, Holding, Task};
use crate::{LockBefore, Locked, model};

/// A lock of class `C` around a `T`: many readers or one writer.
///
/// For the checker reading orders as writing does: a waiting writer holds up new readers, so the
/// cycles are the same.
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
    lock: parking_lot::RwLock<T>,
    /// What it is to an explorer, who decides who has it.
    model: Handle,
    /// What it protects as a number, where an explorer is to be told.
    told: Option<fn(&T) -> u64>,
    class: PhantomData<fn() -> C>,
}

/// Held for reading.
pub struct RwLockReadGuard<'a, T> {
    inner: parking_lot::RwLockReadGuard<'a, T>,
    _modelled: Modelled,
    _holding: Holding<'a>,
}

/// Held for writing. To be handed this is to be told that the lock is held for writing.
pub struct RwLockWriteGuard<'a, T> {
    inner: parking_lot::RwLockWriteGuard<'a, T>,
    modelled: Modelled,
    told: Option<fn(&T) -> u64>,
    _holding: Holding<'a>,
}

impl<C: Class, T> RwLock<C, T> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        let model = Handle::new(C::key().name());
        Self { lock: parking_lot::RwLock::new(value), model, told: None, class: PhantomData }
    }

    /// As with [`Mutex::told`](crate::Mutex::told).
    pub fn told(mut self, number: fn(&T) -> u64) -> Self {
        if self.model.get().is_some() {
            self.told = Some(number);
            self.model.starts_as(|| number(self.lock.get_mut()));
        }
        self
    }

    /// Takes the lock for reading.
    #[inline]
    #[track_caller]
    pub fn read<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (RwLockReadGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let guard = if cx.task.is_checked() {
            self.read_slow(cx.task, Location::caller())
        } else {
            let _modelled = Modelled::new(None, true);
            RwLockReadGuard { inner: self.lock.read(), _modelled, _holding: Holding::UNRECORDED }
        };
        (guard, Locked::at(cx.task))
    }

    /// Takes the lock for writing.
    #[inline]
    #[track_caller]
    pub fn write<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (RwLockWriteGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let guard = if cx.task.is_checked() {
            self.write_slow(cx.task, Location::caller())
        } else {
            let modelled = Modelled::new(None, false);
            RwLockWriteGuard { inner: self.lock.write(), modelled, told: None, _holding: Holding::UNRECORDED }
        };
        (guard, Locked::at(cx.task))
    }

    #[cold]
    #[inline(never)]
    fn read_slow<'a>(&'a self, task: &'a Task, at: &'static Location<'static>) -> RwLockReadGuard<'a, T> {
        task.check(C::key(), self.instance(), 0, Acquire::Wait, at);
        let inner = match self.model.get() {
            None if crate::is_explored() => self.lock.try_read().unwrap_or_else(|| mixed()),
            None => self.lock.read(),
            Some(object) => {
                model::acquire(object, true, at);
                self.lock.try_read().unwrap_or_else(|| mixed())
            }
        };
        let _modelled = Modelled::new(self.model.get(), true);
        let _holding = task.hold(C::key(), self.instance(), 0, at);
        RwLockReadGuard { inner, _modelled, _holding }
    }

    #[cold]
    #[inline(never)]
    fn write_slow<'a>(&'a self, task: &'a Task, at: &'static Location<'static>) -> RwLockWriteGuard<'a, T> {
        task.check(C::key(), self.instance(), 0, Acquire::Wait, at);
        let inner = match self.model.get() {
            None if crate::is_explored() => self.lock.try_write().unwrap_or_else(|| mixed()),
            None => self.lock.write(),
            Some(object) => {
                model::acquire(object, false, at);
                self.lock.try_write().unwrap_or_else(|| mixed())
            }
        };
        let modelled = Modelled::new(self.model.get(), false);
        let _holding = task.hold(C::key(), self.instance(), 0, at);
        RwLockWriteGuard { inner, modelled, told: self.told, _holding }
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(&self.model).addr()
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(told) = self.told
            && self.modelled.wrote == Wrote::Unknown
        {
            self.modelled.wrote = Wrote::Value(told(&self.inner));
        }
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
        self.modelled.wrote = Wrote::Unknown;
        &mut self.inner
    }
}

impl<C, T> std::fmt::Debug for RwLock<C, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock")
    }
}
