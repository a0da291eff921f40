//! A counter on which threads wait until it has advanced.
//!
//! It serves to wait for *one of several conditions* without polling. Code that makes a condition true advances the
//! count. A waiter notes the count, checks all conditions, and waits until the count has advanced past the note.

use std::collections::BTreeMap;

use crate::class::Leaf;
use crate::{Condvar, Locked, MayWait, Mutex, digest, is_explored, model, without_history};

/// A count and its waiters. `C` is the leaf class of its lock.
///
/// ```
/// use std::sync::Arc;
///
/// use lockdep::{AtomicBool, Domain, EventCount, OnReport, enter, lock_classes};
///
/// lock_classes! {
///     leaf Moved = "moved";
/// }
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     let (moved, is_done) = (Arc::new(EventCount::<Moved>::new()), Arc::new(AtomicBool::new(false)));
///     let (theirs, done) = (Arc::clone(&moved), Arc::clone(&is_done));
///     let worker = cx.spawn("worker", move |cx| {
///         done.swap(true);
///         theirs.advance(cx);
///     });
///     loop {
///         let seen = moved.seen(cx);
///         if is_done.load() {
///             break;
///         }
///         moved.wait_past(cx, seen);
///     }
///     worker.join(cx).unwrap();
/// });
/// ```
#[derive(Debug)]
pub struct EventCount<C> {
    count: Mutex<C, Count>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Count {
    now: u64,
    /// Explored, the threads that have noted the count, and the count then. A thread never uses the count itself, only
    /// whether it has advanced since.
    noted: BTreeMap<u64, u64>,
}

/// A count that was noted, see [`EventCount::seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

impl<C: Leaf> Default for EventCount<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Leaf> EventCount<C> {
    /// Makes a count that has not been advanced.
    pub fn new() -> Self {
        let number =
            |count: &Count| digest(&count.noted.iter().map(|(who, at)| (*who, *at == count.now)).collect::<Vec<_>>());
        Self { count: Mutex::new(Count::default()).with_state_digest(number), moved: Condvar::new() }
    }

    /// Notes the count. Check the conditions *after* this.
    #[track_caller]
    pub fn seen<P>(&self, cx: &mut Locked<'_, P>) -> Seen {
        let mut count = self.count.lock_leaf(cx);
        let now = count.now;
        if is_explored() {
            count.noted.insert(model::me(), now);
        }
        Seen(now)
    }

    /// Advances the count and wakes all waiters. Call it *after* a condition has changed.
    #[track_caller]
    pub fn advance<P>(&self, cx: &mut Locked<'_, P>) {
        without_history(|| {
            self.count.lock_leaf(cx).now += 1;
            self.moved.notify_all();
        });
    }

    /// Waits until the count has advanced past `seen`.
    #[track_caller]
    pub fn wait_past<P: MayWait>(&self, cx: &mut Locked<'_, P>, seen: Seen) {
        let mut count = self.count.lock_leaf(cx);
        while count.now == seen.0 {
            self.moved.wait(&mut count);
        }
    }
}
