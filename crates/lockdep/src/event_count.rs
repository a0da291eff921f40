//! A counter one can wait on: the wait ends when it has moved past what was seen.
//!
//! It is how to wait for *one of several things* without polling: whoever makes any of them true
//! advances the count; the waiter notes the count, looks at all of them, and waits past the note.

use crate::class::Leaf;
use crate::{Condvar, Locked, MayWait, Mutex};

/// The count and its waiters; `C` is the leaf class of its lock.
#[derive(Debug)]
pub struct EventCount<C> {
    count: Mutex<C, u64>,
    moved: Condvar,
}

/// A count that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

impl<C: Leaf> Default for EventCount<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Leaf> EventCount<C> {
    /// A count nobody has advanced.
    pub fn new() -> Self {
        Self { count: Mutex::new(0), moved: Condvar::new() }
    }

    /// Notes the count. Look at what is waited for *after* this.
    #[track_caller]
    pub fn seen<P>(&self, cx: &mut Locked<'_, P>) -> Seen {
        Seen(*self.count.lock_leaf(cx))
    }

    /// Something that waiters look at has changed.
    #[track_caller]
    pub fn advance<P>(&self, cx: &mut Locked<'_, P>) {
        let mut count = self.count.lock_leaf(cx);
        *count += 1;
        count.release_as(|count| *count);
        self.moved.notify_all();
    }

    /// Waits until the count is past what was seen.
    #[track_caller]
    pub fn wait_past<P: MayWait>(&self, cx: &mut Locked<'_, P>, seen: Seen) {
        let mut count = self.count.lock_leaf(cx);
        while *count == seen.0 {
            self.moved.wait(&mut count);
        }
    }
}
