//! The reader-writer lock.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;

use crate::class::Class;
use crate::explore::ExploredGuard;
use crate::task::{Acquire, Holding, Task};
use crate::{LockBefore, Locked};

/// A lock of class `C` around a `T`: many readers or one writer.
///
/// For the checker reading orders as writing does: a waiting writer holds up new readers, so the
/// cycles are the same.
pub struct RwLock<C, T> {
    imp: Imp<T>,
    class: PhantomData<fn() -> C>,
}

enum Imp<T> {
    Real(parking_lot::RwLock<T>),
    Explored(Box<shuttle::sync::RwLock<T>>),
}

enum ReadImp<'a, T> {
    Real(parking_lot::RwLockReadGuard<'a, T>),
    Explored(ExploredGuard<shuttle::sync::RwLockReadGuard<'a, T>>),
}

enum WriteImp<'a, T> {
    Real(parking_lot::RwLockWriteGuard<'a, T>),
    Explored(ExploredGuard<shuttle::sync::RwLockWriteGuard<'a, T>>),
}

/// Held for reading.
pub struct RwLockReadGuard<'a, T> {
    inner: ReadImp<'a, T>,
    _holding: Holding<'a>,
}

/// Held for writing. To be handed this is to be told that the lock is held for writing.
pub struct RwLockWriteGuard<'a, T> {
    inner: WriteImp<'a, T>,
    _holding: Holding<'a>,
}

impl<C: Class, T> RwLock<C, T> {
    /// A free lock.
    pub fn new(value: T) -> Self {
        let imp = if crate::is_explored() {
            Imp::Explored(Box::new(shuttle::sync::RwLock::new(value)))
        } else {
            Imp::Real(parking_lot::RwLock::new(value))
        };
        Self { imp, class: PhantomData }
    }

    /// Takes the lock for reading.
    #[inline]
    #[track_caller]
    pub fn read<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (RwLockReadGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let guard = match &self.imp {
            Imp::Real(lock) if !cx.task.is_checked() => {
                RwLockReadGuard { inner: ReadImp::Real(lock.read()), _holding: Holding::UNRECORDED }
            }
            _ => self.read_slow(cx.task, Location::caller()),
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
        let guard = match &self.imp {
            Imp::Real(lock) if !cx.task.is_checked() => {
                RwLockWriteGuard { inner: WriteImp::Real(lock.write()), _holding: Holding::UNRECORDED }
            }
            _ => self.write_slow(cx.task, Location::caller()),
        };
        (guard, Locked::at(cx.task))
    }

    #[cold]
    #[inline(never)]
    fn read_slow<'a>(&'a self, task: &'a Task, at: &'static Location<'static>) -> RwLockReadGuard<'a, T> {
        task.check(C::key(), self.instance(), 0, Acquire::Wait, at);
        let inner = match &self.imp {
            Imp::Real(lock) => ReadImp::Real(lock.read()),
            Imp::Explored(lock) => {
                ReadImp::Explored(ExploredGuard::new(lock.read().unwrap_or_else(|e| e.into_inner())))
            }
        };
        let _holding = task.hold(C::key(), self.instance(), 0, at);
        RwLockReadGuard { inner, _holding }
    }

    #[cold]
    #[inline(never)]
    fn write_slow<'a>(&'a self, task: &'a Task, at: &'static Location<'static>) -> RwLockWriteGuard<'a, T> {
        task.check(C::key(), self.instance(), 0, Acquire::Wait, at);
        let inner = match &self.imp {
            Imp::Real(lock) => WriteImp::Real(lock.write()),
            Imp::Explored(lock) => {
                WriteImp::Explored(ExploredGuard::new(lock.write().unwrap_or_else(|e| e.into_inner())))
            }
        };
        let _holding = task.hold(C::key(), self.instance(), 0, at);
        RwLockWriteGuard { inner, _holding }
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(&self.imp).addr()
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        match &self.inner {
            ReadImp::Real(guard) => guard,
            ReadImp::Explored(guard) => guard,
        }
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        match &self.inner {
            WriteImp::Real(guard) => guard,
            WriteImp::Explored(guard) => guard,
        }
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.inner {
            WriteImp::Real(guard) => guard,
            WriteImp::Explored(guard) => guard,
        }
    }
}

impl<C, T> std::fmt::Debug for RwLock<C, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RwLock")
    }
}
