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
    /// Makes a free lock of rank 0.
    pub fn new(value: T) -> Self {
        Self::with_rank(value, 0)
    }

    /// Makes a free lock with a rank. Declared nesting goes from a lower rank to a higher one.
    pub fn with_rank(value: T, rank: u32) -> Self {
        Self { known: Known::new(parking_lot::Mutex::new(value), C::key(), rank), class: PhantomData }
    }

    /// Gives the lock a function that computes a number from the value, for an explorer. It runs whenever the lock is
    /// released. It must return different numbers for two values if code that takes the lock could distinguish them.
    /// Then the explorer recognises that several orders led to the same state. [`digest`](crate::digest) is such a
    /// function for values that can be hashed.
    ///
    /// ```
    /// use lockdep::{Mutex, digest, lock_classes};
    ///
    /// lock_classes! {
    ///     leaf Names = "names";
    /// }
    ///
    /// let names = Mutex::<Names, Vec<String>>::new(Vec::new()).with_state_digest(digest);
    /// ```
    pub fn with_state_digest(mut self, number: fn(&T) -> u64) -> Self {
        self.known.tell(number);
        self
    }

    /// Names a lock that has just been made after its role, and not after the thread that made it. This is for a lock that
    /// is dropped and made again, now by one thread, now by another. Several locks may have the same role; they are
    /// distinguished.
    pub fn with_role(self, role: &impl Hash) -> Self {
        self.known.model.set_role(role);
        self
    }

    /// Allows [`try_lock`](Self::try_lock) on the lock in an exploration. To an explorer, releasing the lock is then an
    /// operation that other threads can see: a try just before it fails.
    ///
    /// ```
    /// use lockdep::{Domain, Mutex, OnReport, enter, lock_classes};
    ///
    /// lock_classes! {
    ///     leaf Cache = "cache";
    /// }
    ///
    /// let cache = Mutex::<Cache, _>::new(7).with_try_lock();
    /// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
    ///     assert_eq!(cache.try_lock(cx).map(|(cache, _)| *cache), Some(7));
    /// });
    /// ```
    pub fn with_try_lock(self) -> Self {
        if let Some(object) = self.known.model.get() {
            model::allow_try(object);
        }
        self
    }

    /// Takes the lock, and waits until it is free. The returned token is at `C`.
    #[inline]
    #[track_caller]
    pub fn lock<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> (MutexGuard<'a, T>, Locked<'a, C>)
    where
        P: LockBefore<C>,
    {
        let guard = self.acquire(cx.task, C::key(), Acquire::Wait, Location::caller());
        (guard, Locked::at(cx.task))
    }

    /// Takes the lock as the declared subclass `N`, while another instance of its class is held.
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

    /// Takes the lock if it is free. Trying never waits, so it adds no order and is allowed anywhere. Locks that are then
    /// taken under it do come after it in the order.
    ///
    /// # Panics
    /// Explored, if the lock was made without [`with_try_lock`](Self::with_try_lock).
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

    /// Reports, where checking is on, if this thread does not hold the lock. Like the kernel's `lockdep_assert_held`.
    #[track_caller]
    pub fn assert_held<L>(&self, cx: &Locked<'_, L>) {
        cx.task.assert_holds(self.known.instance(), C::key(), Location::caller());
    }

    /// The path of real locks that are not checked is inlined; everything else is out of line.
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

    /// Returns the bare guard, which fits into a register: so the caller's guard need not be in memory.
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
    /// Takes a leaf lock. It returns no token with the guard, and the caller's token cannot be used while the guard lives.
    /// So no lock can be taken under it.
    #[inline]
    #[track_caller]
    pub fn lock_leaf<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> MutexGuard<'a, T> {
        self.acquire(cx.task, C::key(), Acquire::Wait, Location::caller())
    }
}

impl<'a, T> MutexGuard<'a, T> {
    /// Checks a wait that releases this lock.
    pub(crate) fn check_wait(&self, at: &'static Location<'static>) {
        self.holding.check_wait(at);
    }

    /// Returns the guard itself and the lock's object in the model, for a wait that releases the lock.
    pub(crate) fn parts(&mut self) -> (&mut parking_lot::MutexGuard<'a, T>, Option<u32>, Wrote) {
        let wrote = self.holding.take_wrote(&self.inner);
        (&mut self.inner, self.holding.object(), wrote)
    }

    /// Releases the lock. `value` computes, for an explorer, a value that represents the contents, with the same rule as
    /// [`with_state_digest`](Mutex::with_state_digest).
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

/// Hashes which lock it is, for an explorer, and not what it protects.
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
