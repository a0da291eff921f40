//! The mutual exclusion lock.

use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;

use crate::class::{Class, ClassKey, Leaf, NestedIn};
use crate::holding::{Holding, Known, RawLock, mixed};
use crate::model::{self, Wrote};
use crate::task::{Acquire, Task};
use crate::{LockBefore, Locked};

/// A lock of class `C` around a `T`.
///
/// ```
/// use lockdep::{Domain, Mutex, OnReport, enter, lock_classes, lock_order};
///
/// lock_classes! {
///     class Switch = "switch";
///     class SwitchNested = "switch, nested" nested in Switch;
/// }
/// lock_order! { root Switch; Switch => SwitchNested; }
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     // The master's before a peer's.
///     let (master, peer) = (Mutex::<Switch, _>::with_rank("master", 0), Mutex::<Switch, _>::with_rank("peer", 1));
///     let (one, mut cx) = master.lock(cx);
///     let (other, _cx) = peer.lock_nested::<SwitchNested, _>(&mut cx);
///     assert_eq!((*one, *other), ("master", "peer"));
/// });
/// ```
pub struct Mutex<C, T> {
    known: Known<parking_lot::Mutex<T>>,
    class: PhantomData<fn() -> C>,
}

/// The lock is held for as long as this lives; what it protects is inside.
pub struct MutexGuard<'a, T> {
    // Dropped in this order: the lock is free before the checker forgets it was held.
    inner: parking_lot::MutexGuard<'a, T>,
    holding: Holding<'a, parking_lot::Mutex<T>>,
}

impl<T> RawLock for parking_lot::Mutex<T> {
    type Value = T;

    fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.try_lock().map(|value| look(&value))
    }
}

impl<C: Class, T> Mutex<C, T> {
    /// A free lock of rank 0.
    pub fn new(value: T) -> Self {
        Self::with_rank(value, 0)
    }

    /// A free lock with a rank, which is what declared nesting goes by: from lower to higher.
    pub fn with_rank(value: T, rank: u32) -> Self {
        Self { known: Known::new(parking_lot::Mutex::new(value), C::key(), rank), class: PhantomData }
    }

    /// The same lock, which tells an explorer what it protects whenever it is let go of: the number is the same only
    /// if nobody who takes the lock could tell the difference. Then what comes to the same in several ways is seen to be the
    /// same.
    pub fn with_state_digest(mut self, number: fn(&T) -> u64) -> Self {
        self.known.tell(number);
        self
    }

    /// The same lock, just made, under a name that does not depend on who has made it: for what is unmade and made again,
    /// now by one thread, now by another. Of one role there may be several; they are told apart.
    pub fn with_role(self, role: &impl Hash) -> Self {
        self.known.model.set_role(role);
        self
    }

    /// The same lock, which may be [tried](Self::try_lock), too. To an explorer letting go of it is then
    /// something that others can see: a try just before fails.
    pub fn tried(self) -> Self {
        if let Some(object) = self.known.model.get() {
            model::set_tried(object);
        }
        self
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
    ///
    /// # Panics
    /// Explored, if the lock was not made to be [`tried`](Self::tried).
    #[inline]
    #[track_caller]
    pub fn try_lock<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> Option<(MutexGuard<'a, T>, Locked<'a, C>)> {
        let checked = cx.task.if_checked();
        let inner = match checked {
            None => self.known.lock.try_lock()?,
            Some(task) => self.try_slow(task, Location::caller())?,
        };
        Some((self.guard(inner, checked), Locked::at(cx.task)))
    }

    /// Checks, where checking is on, that this thread holds the lock.
    #[track_caller]
    pub fn assert_held<L>(&self, cx: &Locked<'_, L>) {
        cx.task.assert_holds(self.known.instance(), C::key(), Location::caller());
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
        let checked = task.if_checked();
        let inner = match checked {
            None => self.known.lock.lock(),
            Some(task) => self.acquire_slow(task, key, how, at),
        };
        self.guard(inner, checked)
    }

    #[inline]
    fn guard<'a>(&'a self, inner: parking_lot::MutexGuard<'a, T>, checked: Option<&'a Task>) -> MutexGuard<'a, T> {
        MutexGuard { inner, holding: Holding::new(checked, &self.known, false) }
    }

    /// It gives the bare guard, which fits into a register: so the caller's guard need not be in memory.
    #[cold]
    #[inline(never)]
    fn acquire_slow(
        &self,
        task: &Task,
        key: &'static ClassKey,
        how: Acquire,
        at: &'static Location<'static>,
    ) -> parking_lot::MutexGuard<'_, T> {
        let inner = match self.known.ask(task, key, how, false, at) {
            true => self.known.lock.lock(),
            false => self.known.lock.try_lock().unwrap_or_else(|| mixed()),
        };
        self.known.taken(task, key, at);
        inner
    }

    #[cold]
    #[inline(never)]
    fn try_slow(&self, task: &Task, at: &'static Location<'static>) -> Option<parking_lot::MutexGuard<'_, T>> {
        task.check(C::key(), self.known.instance(), self.known.rank, Acquire::Try, at);
        if self.known.model.get().is_some_and(|object| !model::try_acquire(object, at)) {
            return None;
        }
        let inner = self.known.lock.try_lock()?;
        self.known.taken(task, C::key(), at);
        Some(inner)
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

impl<'a, T> MutexGuard<'a, T> {
    /// Checks a wait that lets go of this lock.
    pub(crate) fn check_wait(&self, at: &'static Location<'static>) {
        self.holding.check_wait(at);
    }

    /// The guard itself, and what the lock is to an explorer: for a wait that lets go of it.
    pub(crate) fn parts(&mut self) -> (&mut parking_lot::MutexGuard<'a, T>, Option<u32>, Wrote) {
        let wrote = self.holding.take_wrote(&self.inner);
        (&mut self.inner, self.holding.object(), wrote)
    }

    /// Lets go of the lock, and tells an explorer, if there is one, what value is left in it: for what comes
    /// to the same in several ways.
    pub fn release_as<H: Hash>(mut self, value: impl FnOnce(&T) -> H) {
        self.holding.leaves(|| model::digest(&value(&self.inner)));
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.holding.written();
        &mut self.inner
    }
}

/// Which lock it is, to an explorer; not what it protects.
impl<C, T> Hash for Mutex<C, T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.known.model.name().hash(state);
    }
}

impl<C, T> std::fmt::Debug for Mutex<C, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mutex").field("rank", &self.known.rank).finish_non_exhaustive()
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}
