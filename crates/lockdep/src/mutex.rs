//! The mutual exclusion lock.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;

use crate::class::{Class, ClassKey, Leaf, NestedIn};
use crate::explore::ExploredGuard;
use crate::task::{Acquire, Holding, Task};
use crate::{LockBefore, Locked};

/// A lock of class `C` around a `T`.
pub struct Mutex<C, T> {
    imp: Imp<T>,
    rank: u32,
    class: PhantomData<fn() -> C>,
}

enum Imp<T> {
    Real(parking_lot::Mutex<T>),
    Explored(Box<shuttle::sync::Mutex<T>>),
}

enum ImpGuard<'a, T> {
    Real(parking_lot::MutexGuard<'a, T>),
    Explored(ExploredGuard<shuttle::sync::MutexGuard<'a, T>>),
}

/// The lock is held for as long as this lives; what it protects is inside.
pub struct MutexGuard<'a, T> {
    // Dropped in this order: the lock is free before the checker forgets it was held.
    inner: ImpGuard<'a, T>,
    holding: Holding<'a>,
    imp: &'a Imp<T>,
}

impl<C: Class, T> Mutex<C, T> {
    /// A free lock of rank 0.
    pub fn new(value: T) -> Self {
        Self::with_rank(value, 0)
    }

    /// A free lock with a rank, which is what declared nesting goes by: from lower to higher.
    pub fn with_rank(value: T, rank: u32) -> Self {
        let imp = if crate::is_explored() {
            Imp::Explored(Box::new(shuttle::sync::Mutex::new(value)))
        } else {
            Imp::Real(parking_lot::Mutex::new(value))
        };
        Self { imp, rank, class: PhantomData }
    }

    /// Takes the lock, waiting for it. The token given with the guard stands at `C`.
    #[inline]
    #[track_caller]
    pub fn lock<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (MutexGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let guard = self.acquire(cx.task, C::key(), Acquire::Wait, Location::caller());
        (guard, Locked::at(cx.task))
    }

    /// Takes the lock while another instance of its class is held, under the declared subclass `N`.
    #[inline]
    #[track_caller]
    pub fn lock_nested<'a, N, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (MutexGuard<'a, T>, Locked<'a, N>)
    where
        N: NestedIn<C>,
        P: LockBefore<N>,
    {
        let guard = self.acquire(cx.task, N::key(), Acquire::Nested(C::key()), Location::caller());
        (guard, Locked::at(cx.task))
    }

    /// Takes the lock if it is free. Trying never waits, so it adds no ordering and is allowed
    /// anywhere; what is then taken under it does order after it.
    #[track_caller]
    pub fn try_lock<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> Option<(MutexGuard<'a, T>, Locked<'a, C>)> {
        let at = Location::caller();
        let (task, key) = (cx.task, C::key());
        task.check(key, self.instance(), self.rank, Acquire::Try, at);
        let inner = match &self.imp {
            Imp::Real(lock) => ImpGuard::Real(lock.try_lock()?),
            Imp::Explored(lock) => ImpGuard::Explored(ExploredGuard::new(match lock.try_lock() {
                Ok(guard) => guard,
                Err(std::sync::TryLockError::Poisoned(e)) => e.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) => return None,
            })),
        };
        let holding = task.hold(key, self.instance(), self.rank, at);
        Some((MutexGuard { inner, holding, imp: &self.imp }, Locked::at(task)))
    }

    /// Checks, where checking is on, that this thread holds the lock.
    #[track_caller]
    pub fn assert_held<L>(&self, cx: &Locked<'_, L>) {
        cx.task.assert_holds(self.instance(), C::key(), Location::caller());
    }

    /// The way of real locks that are not checked; everything else is out of line.
    #[inline]
    fn acquire<'a>(
        &'a self,
        task: &'a Task,
        key: &'static ClassKey,
        how: Acquire,
        at: &'static Location<'static>,
    ) -> MutexGuard<'a, T> {
        match &self.imp {
            Imp::Real(lock) if !task.is_checked() => {
                MutexGuard { inner: ImpGuard::Real(lock.lock()), holding: Holding::UNRECORDED, imp: &self.imp }
            }
            _ => self.acquire_slow(task, key, how, at),
        }
    }

    #[cold]
    #[inline(never)]
    fn acquire_slow<'a>(
        &'a self,
        task: &'a Task,
        key: &'static ClassKey,
        how: Acquire,
        at: &'static Location<'static>,
    ) -> MutexGuard<'a, T> {
        task.check(key, self.instance(), self.rank, how, at);
        let inner = match &self.imp {
            Imp::Real(lock) => ImpGuard::Real(lock.lock()),
            Imp::Explored(lock) => {
                ImpGuard::Explored(ExploredGuard::new(lock.lock().unwrap_or_else(|e| e.into_inner())))
            }
        };
        let holding = task.hold(key, self.instance(), self.rank, at);
        MutexGuard { inner, holding, imp: &self.imp }
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(&self.imp).addr()
    }
}

impl<C: Leaf, T> Mutex<C, T> {
    /// Takes a leaf lock. There is no token with the guard, and the caller's cannot be used while
    /// the guard lives: nothing can be taken under it.
    #[inline]
    #[track_caller]
    pub fn lock_leaf<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> MutexGuard<'a, T> {
        self.acquire(cx.task, C::key(), Acquire::Wait, Location::caller())
    }
}

impl<T> MutexGuard<'_, T> {
    /// Checks a wait that lets go of this lock.
    pub(crate) fn check_wait(&self, at: &'static Location<'static>) {
        self.holding.check_wait(at);
    }

    /// Lets go of the lock, waits, takes the lock again. The guard stays what the checker knows.
    pub(crate) fn while_released(&mut self, wait: impl WaitOn) {
        match (&mut self.inner, self.imp) {
            (ImpGuard::Real(guard), _) => wait.real(guard),
            (ImpGuard::Explored(guard), Imp::Explored(lock)) => {
                guard.release();
                wait.explored();
                *guard = ExploredGuard::new(lock.lock().unwrap_or_else(|e| e.into_inner()));
            }
            (ImpGuard::Explored(_), Imp::Real(_)) => unreachable!("a lock gives guards of its own kind"),
        }
    }
}

/// How to wait with a lock released: a condition variable's two ways.
pub(crate) trait WaitOn {
    fn real<T>(self, guard: &mut parking_lot::MutexGuard<'_, T>);
    fn explored(self);
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        match &self.inner {
            ImpGuard::Real(guard) => guard,
            ImpGuard::Explored(guard) => guard,
        }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.inner {
            ImpGuard::Real(guard) => guard,
            ImpGuard::Explored(guard) => guard,
        }
    }
}

impl<C, T> std::fmt::Debug for Mutex<C, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutex").field("rank", &self.rank).finish_non_exhaustive()
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}
