//! The mutual exclusion lock.

use std::hash::Hash;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;

use crate::class::{Class, ClassKey, Leaf, NestedIn};
use crate::model::{self, Handle, Wrote};
use crate::task::{Acquire, Holding, Task};
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
    lock: parking_lot::Mutex<T>,
    /// What it is to an explorer, who decides who has it: the lock itself is free then.
    model: Handle,
    /// What it protects as a number, where an explorer is to be told.
    told: Option<fn(&T) -> u64>,
    rank: u32,
    class: PhantomData<fn() -> C>,
}

/// The lock is held for as long as this lives; what it protects is inside.
pub struct MutexGuard<'a, T> {
    // Dropped in this order: the lock is free before the checker forgets it was held.
    inner: parking_lot::MutexGuard<'a, T>,
    modelled: Modelled,
    told: Option<fn(&T) -> u64>,
    holding: Holding<'a>,
}

/// Tells the explorer when the lock is let go of.
pub(crate) struct Modelled {
    pub object: Option<u32>,
    pub shared: bool,
    pub wrote: Wrote,
}

impl Modelled {
    /// Held so far for nothing; `None`: there is no explorer.
    pub fn new(object: Option<u32>, shared: bool) -> Self {
        Self { object, shared, wrote: Wrote::No }
    }
}

impl Drop for Modelled {
    #[inline]
    fn drop(&mut self) {
        if let Some(object) = self.object {
            model::release(object, self.shared, self.wrote);
        }
    }
}

/// What was made for real is held while the scheduler chooses: it would wait for ever.
#[cold]
pub(crate) fn mixed() -> ! {
    panic!("a primitive that was made for real is used in an exploration, or the reverse")
}

impl<C: Class, T> Mutex<C, T> {
    /// A free lock of rank 0.
    pub fn new(value: T) -> Self {
        Self::with_rank(value, 0)
    }

    /// A free lock with a rank, which is what declared nesting goes by: from lower to higher.
    pub fn with_rank(value: T, rank: u32) -> Self {
        let model = Handle::new(C::key().name());
        Self { lock: parking_lot::Mutex::new(value), model, told: None, rank, class: PhantomData }
    }

    /// The same lock, which tells an explorer what it protects whenever it is let go of: the number is the same only
    /// if nobody who takes the lock could tell the difference. Then what comes to the same in several ways is seen to be the
    /// same.
    pub fn told(mut self, number: fn(&T) -> u64) -> Self {
        if self.model.get().is_some() {
            self.told = Some(number);
            self.model.starts_as(|| number(self.lock.get_mut()));
        }
        self
    }

    /// The same lock, just made, under a name that does not depend on who has made it: for what is unmade and made again,
    /// now by one thread, now by another. Of one role there may be several; they are told apart.
    pub fn with_role(self, role: &impl Hash) -> Self {
        self.model.set_role(role);
        self
    }

    /// The same lock, which may be [tried](Self::try_lock), too. To an explorer letting go of it is then
    /// something that others can see: a try just before fails.
    pub fn tried(self) -> Self {
        if let Some(object) = self.model.get() {
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
    #[track_caller]
    pub fn try_lock<'a, P>(&'a self, cx: &'a mut Locked<'_, P>) -> Option<(MutexGuard<'a, T>, Locked<'a, C>)> {
        let at = Location::caller();
        let (task, key) = (cx.task, C::key());
        task.check(key, self.instance(), self.rank, Acquire::Try, at);
        if self.model.get().is_some_and(|object| !model::try_acquire(object, at)) {
            return None;
        }
        let modelled = Modelled::new(self.model.get(), false);
        let inner = self.lock.try_lock()?;
        let holding = task.hold(key, self.instance(), self.rank, at);
        Some((MutexGuard { inner, modelled, told: self.told, holding }, Locked::at(task)))
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
        if task.is_checked() {
            return self.acquire_slow(task, key, how, at);
        }
        let modelled = Modelled::new(None, false);
        MutexGuard { inner: self.lock.lock(), modelled, told: None, holding: Holding::UNRECORDED }
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
        let inner = match self.model.get() {
            None if crate::is_explored() => self.lock.try_lock().unwrap_or_else(|| mixed()),
            None => self.lock.lock(),
            Some(object) => {
                model::acquire(object, false, at);
                self.lock.try_lock().unwrap_or_else(|| mixed())
            }
        };
        let modelled = Modelled::new(self.model.get(), false);
        let holding = task.hold(key, self.instance(), self.rank, at);
        MutexGuard { inner, modelled, told: self.told, holding }
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(&self.rank).addr()
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
        self.tell();
        (&mut self.inner, self.modelled.object, std::mem::replace(&mut self.modelled.wrote, Wrote::No))
    }

    /// What is to be told of what was written is.
    #[inline]
    fn tell(&mut self) {
        if let Some(told) = self.told
            && self.modelled.wrote == Wrote::Unknown
        {
            self.modelled.wrote = Wrote::Value(told(&self.inner));
        }
    }

    /// Lets go of the lock, and tells an explorer, if there is one, what value is left in it: for what comes
    /// to the same in several ways.
    pub fn release_as<H: std::hash::Hash>(mut self, value: impl FnOnce(&T) -> H) {
        if self.modelled.object.is_some() && self.modelled.wrote != Wrote::No {
            self.modelled.wrote = Wrote::Value(model::digest(&value(&self.inner)));
        }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.tell();
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
        self.modelled.wrote = Wrote::Unknown;
        &mut self.inner
    }
}

/// Which lock it is, to an explorer; not what it protects.
impl<C, T> Hash for Mutex<C, T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.model.name().hash(state);
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
