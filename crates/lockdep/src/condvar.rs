//! The condition variable, and deadlines.
//!
//! Explored, the scheduler chooses when a time-out fires: it can always choose a thread in a timed wait. If it does so
//! before the thread was notified, the thread's time has run out.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::holding::mixed;
use crate::model::{self, Handle};
use crate::{HistoryMark, Locked, MayWait, MutexGuard, is_explored};

/// Waits for a change to what a [`Mutex`](crate::Mutex) protects.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use lockdep::{Condvar, Deadline, Domain, Mutex, OnReport, enter, lock_classes};
///
/// lock_classes! {
///     leaf Queue = "queue";
/// }
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     let queue = Arc::new((Mutex::<Queue, Vec<u32>>::new(Vec::new()), Condvar::new()));
///     let theirs = Arc::clone(&queue);
///     let producer = cx.spawn("producer", move |cx| {
///         theirs.0.lock_leaf(cx).push(7);
///         theirs.1.notify_all();
///     });
///     let deadline = Deadline::after(Duration::from_secs(10));
///     let mut items = queue.0.lock_leaf(cx);
///     while items.is_empty() && !deadline.has_passed() {
///         queue.1.wait_until(&mut items, &deadline);
///     }
///     assert_eq!(items.pop(), Some(7));
///     drop(items);
///     producer.join(cx).unwrap();
/// });
/// ```
pub struct Condvar {
    condvar: parking_lot::Condvar,
    model: Handle,
}

/// A moment to wait until. A program without a clock of its own makes deadlines and waits for them.
///
/// ```
/// use std::time::Duration;
///
/// use lockdep::{Deadline, Domain, OnReport, enter};
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     let deadline = Deadline::after(Duration::from_millis(1));
///     deadline.sleep(cx);
///     assert!(deadline.has_passed());
/// });
/// ```
#[derive(Clone, Debug)]
pub struct Deadline(DeadlineImp);

#[derive(Clone, Debug)]
enum DeadlineImp {
    Real(Instant),
    /// Whether a wait for it has timed out.
    Explored(Arc<AtomicBool>),
}

impl Deadline {
    /// Makes a deadline `delay` from now. Explored, it is any moment from now on.
    pub fn after(delay: Duration) -> Self {
        Self(if is_explored() {
            DeadlineImp::Explored(Arc::default())
        } else {
            DeadlineImp::Real(Instant::now() + delay)
        })
    }

    /// Returns whether it has passed. Explored, it has passed once a wait for it has timed out.
    pub fn has_passed(&self) -> bool {
        match &self.0 {
            DeadlineImp::Real(at) => Instant::now() >= *at,
            DeadlineImp::Explored(passed) => passed.load(Ordering::SeqCst),
        }
    }

    /// Waits until it has passed. Explored, the scheduler decides when that is.
    #[track_caller]
    pub fn sleep<L: MayWait>(&self, cx: &mut Locked<'_, L>) {
        cx.might_wait();
        match &self.0 {
            DeadlineImp::Real(at) => std::thread::sleep(at.saturating_duration_since(Instant::now())),
            DeadlineImp::Explored(passed) => {
                model::sleep(Location::caller());
                passed.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Returns whether `other` is a copy of this deadline. Explored, two deadlines that were made apart are different.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (DeadlineImp::Real(one), DeadlineImp::Real(other)) => one == other,
            (DeadlineImp::Explored(one), DeadlineImp::Explored(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Returns the time left. `None`: explored, where there is no time.
    pub fn remaining(&self) -> Option<Duration> {
        match &self.0 {
            DeadlineImp::Real(at) => Some(at.saturating_duration_since(Instant::now())),
            DeadlineImp::Explored(_) => None,
        }
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl Condvar {
    /// Makes a condition variable without waiters.
    pub fn new() -> Self {
        Self { condvar: parking_lot::Condvar::new(), model: Handle::new("condition variable") }
    }

    /// Waits for a notification. As with every condition variable, it may wake without one.
    ///
    /// The lock is taken again when the wait ends. If the thread holds another lock that it took under this one, this is
    /// reported as a cycle.
    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_inner(guard, None, None, Location::caller());
    }

    /// Waits for a notification or until `deadline` has passed, whichever comes first.
    #[track_caller]
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: &Deadline) {
        self.wait_inner(guard, Some(deadline), None, Location::caller());
    }

    /// Waits for a notification, or until the deadline if there is one. Once the lock is released, what the thread has
    /// found since the mark is [forgotten](HistoryMark::erase_except). If other threads can see the deadline, the lock's
    /// [digest](crate::Mutex::with_state_digest) must cover it.
    #[track_caller]
    pub fn wait_forgetting<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Option<&Deadline>, since: HistoryMark) {
        self.wait_inner(guard, deadline, Some(since), Location::caller());
    }

    fn wait_inner<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Option<&Deadline>,
        since: Option<HistoryMark>,
        at: &'static Location<'static>,
    ) {
        guard.check_wait(at);
        let (inner, lock, wrote) = guard.parts();
        match (self.model.get(), lock, deadline.map(|d| &d.0)) {
            (None, None, None) => self.condvar.wait(inner),
            (None, None, Some(DeadlineImp::Real(at))) => {
                self.condvar.wait_until(inner, *at);
            }
            (Some(condvar), Some(lock), None) => {
                parking_lot::MutexGuard::unlocked(inner, || model::wait(condvar, lock, false, wrote, since, at));
            }
            (Some(condvar), Some(lock), Some(DeadlineImp::Explored(passed))) => {
                if parking_lot::MutexGuard::unlocked(inner, || model::wait(condvar, lock, true, wrote, since, at)) {
                    passed.store(true, Ordering::SeqCst);
                }
            }
            _ => mixed(),
        }
    }

    /// Wakes one waiter. Explored, it is the one that has waited longest.
    #[track_caller]
    pub fn notify_one(&self) {
        match self.model.get() {
            None => {
                self.condvar.notify_one();
            }
            Some(condvar) => model::notify(condvar, false, Location::caller()),
        }
    }

    /// Wakes every waiter.
    #[track_caller]
    pub fn notify_all(&self) {
        match self.model.get() {
            None => {
                self.condvar.notify_all();
            }
            Some(condvar) => model::notify(condvar, true, Location::caller()),
        }
    }
}

impl std::fmt::Debug for Condvar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Condvar")
    }
}
