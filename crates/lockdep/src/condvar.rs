//! The condition variable, and deadlines.
//!
//! Explored, it is built on park and unpark rather than on shuttle's own: shuttle's never times out,
//! and a time-out is exactly one of the things a scheduler should choose. A timed wait starts a task
//! that *is* the clock; the moment the scheduler runs it, the time is up.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use shuttle::rand::Rng;

use crate::mutex::WaitOn;
use crate::{Locked, MayWait, MutexGuard, is_explored};

/// Waits for a change to what a [`Mutex`](crate::Mutex) protects.
pub struct Condvar {
    imp: Imp,
}

enum Imp {
    Real(parking_lot::Condvar),
    Explored(std::sync::Mutex<Vec<Arc<Waiter>>>),
}

const WAITING: u8 = 0;
const NOTIFIED: u8 = 1;
const EXPIRED: u8 = 2;

struct Waiter {
    thread: shuttle::thread::Thread,
    state: AtomicU8,
}

impl Waiter {
    fn wake(&self, why: u8) -> bool {
        let woken = self.state.compare_exchange(WAITING, why, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if woken {
            self.thread.unpark();
        }
        woken
    }
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
                shuttle::thread::yield_now();
                passed.store(true, Ordering::SeqCst);
            }
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
        Self {
            imp: if is_explored() {
                Imp::Explored(std::sync::Mutex::default())
            } else {
                Imp::Real(parking_lot::Condvar::new())
            },
        }
    }

    /// Waits for a notification. As everywhere, it may wake without one.
    ///
    /// The lock is taken again when the wait ends. To hold what was taken under it meanwhile is
    /// reported as the cycle that it is.
    #[track_caller]
    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.wait_inner(guard, None, Location::caller());
    }

    /// Waits for a notification or until `deadline` has passed, whichever comes first.
    #[track_caller]
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: &Deadline) {
        self.wait_inner(guard, Some(deadline), Location::caller());
    }

    fn wait_inner<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        deadline: Option<&Deadline>,
        at: &'static Location<'static>,
    ) {
        guard.check_wait(at);
        let waiter = match &self.imp {
            Imp::Real(_) => None,
            Imp::Explored(waiters) => {
                let waiter = Arc::new(Waiter { thread: shuttle::thread::current(), state: AtomicU8::new(WAITING) });
                // Before the lock is let go of: a notification from then on is for us, too.
                locked(waiters).push(Arc::clone(&waiter));
                Some(waiter)
            }
        };
        guard.while_released(Wait { condvar: &self.imp, deadline, waiter });
    }

    /// Wakes one waiter. Explored, the scheduler's random choice says which.
    pub fn notify_one(&self) {
        match &self.imp {
            Imp::Real(condvar) => {
                condvar.notify_one();
            }
            Imp::Explored(waiters) => loop {
                let waiter = {
                    let mut waiters = locked(waiters);
                    if waiters.is_empty() {
                        return;
                    }
                    // The choice is recorded with the schedule; it is no scheduling point.
                    let one =
                        if waiters.len() == 1 { 0 } else { shuttle::rand::thread_rng().gen_range(0..waiters.len()) };
                    waiters.swap_remove(one)
                };
                if waiter.wake(NOTIFIED) {
                    return;
                }
            },
        }
    }

    /// Wakes every waiter.
    pub fn notify_all(&self) {
        match &self.imp {
            Imp::Real(condvar) => {
                condvar.notify_all();
            }
            Imp::Explored(waiters) => {
                let all = std::mem::take(&mut *locked(waiters));
                for waiter in all {
                    waiter.wake(NOTIFIED);
                }
            }
        }
    }
}

/// Never held across a scheduling point, so a plain lock is right even when explored.
fn locked(waiters: &std::sync::Mutex<Vec<Arc<Waiter>>>) -> std::sync::MutexGuard<'_, Vec<Arc<Waiter>>> {
    waiters.lock().unwrap_or_else(|e| e.into_inner())
}

/// A wait that would never end, or end at once, for ever: better said aloud.
#[cold]
fn mixed() -> ! {
    panic!("a primitive that was made for real is used in an exploration, or the reverse")
}

struct Wait<'a> {
    condvar: &'a Imp,
    deadline: Option<&'a Deadline>,
    waiter: Option<Arc<Waiter>>,
}

impl WaitOn for Wait<'_> {
    fn real<T>(self, guard: &mut parking_lot::MutexGuard<'_, T>) {
        match (self.condvar, self.deadline.map(|d| &d.0)) {
            (Imp::Real(condvar), Some(DeadlineImp::Real(at))) => {
                condvar.wait_until(guard, *at);
            }
            (Imp::Real(condvar), None) => condvar.wait(guard),
            _ => mixed(),
        }
    }

    fn explored(self) {
        let (Imp::Explored(waiters), Some(waiter)) = (self.condvar, self.waiter) else { mixed() };
        let passed = match self.deadline.map(|d| &d.0) {
            Some(DeadlineImp::Explored(passed)) => Some(passed),
            Some(DeadlineImp::Real(_)) => mixed(),
            None => None,
        };
        if passed.is_some() {
            let clock = Arc::clone(&waiter);
            shuttle::thread::spawn(move || clock.wake(EXPIRED));
        }
        while waiter.state.load(Ordering::SeqCst) == WAITING {
            shuttle::thread::park();
        }
        if waiter.state.load(Ordering::SeqCst) == EXPIRED {
            locked(waiters).retain(|other| !Arc::ptr_eq(other, &waiter));
            if let Some(passed) = passed {
                passed.store(true, Ordering::SeqCst);
            }
        }
    }
}

impl std::fmt::Debug for Condvar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Condvar")
    }
}
