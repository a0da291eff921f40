//! The condition variable, and deadlines.
//!
//! Explored, a time-out is one of the things a scheduler chooses: a thread in a timed wait can always
//! be chosen, and that it is chosen before it was notified is what makes its time be up.

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

/// A moment to wait until. The engine above has no clock: it makes deadlines and waits on them.
#[derive(Clone, Debug)]
pub struct Deadline(DeadlineImp);

#[derive(Clone, Debug)]
enum DeadlineImp {
    Real(Instant),
    /// Whether the scheduler has let it pass.
    Explored(Arc<AtomicBool>),
}

impl Deadline {
    /// The moment after `delay` from now. Explored, any moment from now.
    pub fn after(delay: Duration) -> Self {
        Self(if is_explored() {
            DeadlineImp::Explored(Arc::default())
        } else {
            DeadlineImp::Real(Instant::now() + delay)
        })
    }

    /// Whether it has passed. Explored, it has once a wait for it has timed out.
    pub fn has_passed(&self) -> bool {
        match &self.0 {
            DeadlineImp::Real(at) => Instant::now() >= *at,
            DeadlineImp::Explored(passed) => passed.load(Ordering::SeqCst),
        }
    }

    /// Waits until it has passed. Explored, the scheduler says when that is.
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

    /// Whether it is the same deadline, rather than one for the same moment.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (DeadlineImp::Real(one), DeadlineImp::Real(other)) => one == other,
            (DeadlineImp::Explored(one), DeadlineImp::Explored(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// The time left. Explored, nothing can be said of it.
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
    /// A condition variable nobody waits on.
    pub fn new() -> Self {
        Self { condvar: parking_lot::Condvar::new(), model: Handle::new("condition variable") }
    }

    /// Waits for a notification. As everywhere, it may wake without one.
    ///
    /// The lock is taken again when the wait ends. To hold what was taken under it meanwhile is
    /// reported as the cycle that it is.
    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_inner(guard, None, None, Location::caller());
    }

    /// Waits for a notification or until `deadline` has passed, whichever comes first.
    #[track_caller]
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: &Deadline) {
        self.wait_inner(guard, Some(deadline), None, Location::caller());
    }

    /// Waits for a notification, or until the deadline if there is one; once the lock is let go of, what the
    /// thread has found since then is [forgotten](HistoryMark::erase_except). Whether a deadline that it waits for is one that others can see
    /// is to be told by what the lock protects.
    #[track_caller]
    pub fn wait_anew<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Option<&Deadline>, since: HistoryMark) {
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

    /// Wakes one waiter. Explored, the one that has waited longest.
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
