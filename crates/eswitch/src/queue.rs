//! An ordered queue that one thread serves. The E-Switch's work queue, the SF queue and the LAG queue are such queues.
//!
//! There are two ways to queue an item, between which the caller must choose. [`push`](Queue::push) may wait and may
//! allocate. [`push_atomic`](Queue::push_atomic) does neither and uses a reserve. A queue also has *marks*, which are
//! bits that need no memory, and at most one pending retry. Neither can be lost.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use lockdep::{Condvar, Deadline, HistoryMark, Locked, MayWait, Mutex, digest};

use crate::error::{Error, Result};
use crate::lock_order::QueueItems;

/// The number of items for which there is room from the start, for callers that may not allocate.
const RESERVE: usize = 16;

/// The next task of the serving thread.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    Item(T),
    /// These marks were set. They have been cleared.
    Marks(u8),
    /// The retry is due.
    Retry,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// Identifies the queue in the names of the places that can fail.
    name: String,
    state: Mutex<QueueItems, State<T>>,
    arrived: Condvar,
    rested: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    marks: u8,
    retry: Option<Deadline>,
    /// The retry for which the serving thread waits.
    awaited: Option<Deadline>,
    attempt: u32,
    /// Whether the retry was requested by [`Queue::collect`], and not because of a failure.
    collecting: bool,
    busy: bool,
    closed: bool,
    fail_allocations: u32,
}

/// An explorer takes two states with the same hash for the same state.
impl<T: Hash> Hash for State<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.items, self.items.capacity(), self.marks, self.attempt).hash(state);
        (self.collecting, self.busy, self.closed, self.fail_allocations).hash(state);
        let awaits = |retry: &Deadline| self.awaited.as_ref().is_some_and(|awaited| awaited.is(retry));
        self.retry.as_ref().map(|retry| (retry.has_passed(), awaits(retry))).hash(state);
    }
}

impl<T: Hash> Queue<T> {
    pub fn new(name: String) -> Self {
        Self {
            name,
            state: Mutex::new(State {
                items: VecDeque::with_capacity(RESERVE),
                marks: 0,
                retry: None,
                awaited: None,
                attempt: 0,
                collecting: false,
                busy: false,
                closed: false,
                fail_allocations: 0,
            })
            .with_state_digest(digest),
            arrived: Condvar::new(),
            rested: Condvar::new(),
        }
    }

    /// Queues an item. May wait and may allocate.
    ///
    /// # Errors
    /// [`Error::QueueFull`]: the allocation failed. [`Error::Teardown`]: the queue is closed.
    pub fn push<L: MayWait>(&self, cx: &mut Locked<'_, L>, item: T) -> Result<()> {
        cx.might_wait();
        if cx.fails(|| format!("queue item {}", self.name)) {
            return Err(Error::QueueFull);
        }
        let mut item = Some(item);
        let mut room = VecDeque::new();
        loop {
            let mut state = self.state.lock_leaf(cx);
            if state.closed {
                return Err(Error::Teardown);
            }
            if state.items.len() < state.items.capacity() || room.capacity() > state.items.len() {
                if state.take_planned_failure() {
                    return Err(Error::QueueFull);
                }
                if state.items.len() == state.items.capacity() {
                    room.append(&mut state.items);
                    std::mem::swap(&mut room, &mut state.items);
                }
                state.items.extend(item.take());
                drop(state);
                self.arrived.notify_one();
                return Ok(());
            }
            // Code that may not wait takes this lock too, so nothing is allocated under it.
            let wanted = 2 * state.items.capacity().max(RESERVE);
            drop(state);
            room = VecDeque::new();
            room.try_reserve(wanted).map_err(|_| Error::QueueFull)?;
        }
    }

    /// Queues an item without waiting or allocating. If there is no room, sets `mark` instead, on which the serving
    /// thread acts.
    ///
    /// # Errors
    /// [`Error::QueueFull`]: there was no room, and the mark is set. [`Error::Teardown`]: the queue is closed.
    pub fn push_atomic<L>(&self, cx: &mut Locked<'_, L>, item: T, mark: u8) -> Result<()> {
        let fails = cx.fails(|| format!("atomic allocation {}", self.name));
        let mut state = self.state.lock_leaf(cx);
        if state.closed {
            return Err(Error::Teardown);
        }
        let full = fails || state.take_planned_failure() || state.items.len() >= RESERVE;
        if full {
            state.marks |= mark;
        } else {
            state.items.push_back(item);
        }
        drop(state);
        self.arrived.notify_one();
        if full { Err(Error::QueueFull) } else { Ok(()) }
    }

    /// Sets a mark. Needs no memory and cannot fail. On a closed queue it has no effect.
    pub fn mark<L>(&self, cx: &mut Locked<'_, L>, mark: u8) {
        self.state.lock_leaf(cx).marks |= mark;
        self.arrived.notify_one();
    }

    /// Requests a retry because of a failure, and returns its delay. `delay` computes the delay from the number of
    /// attempts so far, which starts at 0. At most one retry is pending: the new one replaces an older one, except one
    /// that [`collect`](Self::collect) has requested, which stays as it is.
    pub fn retry<L>(
        &self,
        cx: &mut Locked<'_, L>,
        delay: impl FnOnce(u32) -> std::time::Duration,
    ) -> std::time::Duration {
        let mut state = self.state.lock_leaf(cx);
        let delay = delay(state.attempt);
        state.attempt = state.attempt.saturating_add(1);
        if !state.collecting {
            state.retry = Some(Deadline::after(delay));
        }
        delay
    }

    /// Requests a retry after `delay` because of an event. Further calls until the retry is due have no effect. It
    /// replaces a retry that a failure has requested, whose delay may be longer.
    pub fn collect<L>(&self, cx: &mut Locked<'_, L>, delay: std::time::Duration) {
        let mut state = self.state.lock_leaf(cx);
        if !state.collecting && !state.closed {
            state.retry = Some(Deadline::after(delay));
            state.collecting = true;
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Resets the number of attempts after a success, so that the next failure has the shortest delay again.
    pub fn reset_attempts<L>(&self, cx: &mut Locked<'_, L>) {
        self.state.lock_leaf(cx).attempt = 0;
    }

    /// Cancels the pending retry and resets the number of attempts, because nothing is missing any more.
    pub fn no_retry<L>(&self, cx: &mut Locked<'_, L>) {
        let mut state = self.state.lock_leaf(cx);
        (state.retry, state.collecting) = (None, false);
        state.attempt = 0;
    }

    /// The number of attempts that the back-off still counts although no retry is pending or being done, if it is not 0.
    /// At rest that is an error.
    pub fn idle_back_off<L>(&self, cx: &mut Locked<'_, L>) -> Option<u32> {
        let state = self.state.lock_leaf(cx);
        // A look at rest does not wait for retries, so one may begin meanwhile; it resets the number when it succeeds.
        let is_idle = state.retry.is_none() && state.rests() && !state.closed;
        (is_idle && state.attempt > 0).then_some(state.attempt)
    }

    /// The remaining time until the pending retry, or `None` if no retry is pending. The inner value is `None` if the
    /// remaining time is unknown, as in an explored run.
    pub fn pending_retry<L>(&self, cx: &mut Locked<'_, L>) -> Option<Option<std::time::Duration>> {
        self.state.lock_leaf(cx).retry.as_ref().map(Deadline::remaining)
    }

    /// Makes the next `n` allocations for items fail.
    pub fn fail_allocations<L>(&self, cx: &mut Locked<'_, L>, n: u32) {
        self.state.lock_leaf(cx).fail_allocations = n;
    }

    /// Waits for the next task, for the serving thread. Returns `None` when the queue is closed, and drops what is left
    /// in it.
    ///
    /// The serving thread has completed its previous task. `since` marks the start of its history; what the thread has
    /// found since then does not matter any more, except for what it has written.
    pub fn next<L: MayWait>(&self, cx: &mut Locked<'_, L>, since: HistoryMark) -> Option<Next<T>> {
        since.erase_except(&());
        let mut state = self.state.lock_leaf(cx);
        state.busy = false;
        loop {
            if state.closed {
                state.items.clear();
                state.marks = 0;
                (state.retry, state.collecting) = (None, false);
                self.rested.notify_all();
                return None;
            }
            let next = if state.marks != 0 {
                Some(Next::Marks(std::mem::take(&mut state.marks)))
            } else if let Some(item) = state.items.pop_front() {
                Some(Next::Item(item))
            } else if state.retry.as_ref().is_some_and(Deadline::has_passed) {
                (state.retry, state.collecting) = (None, false);
                Some(Next::Retry)
            } else {
                None
            };
            if next.is_some() {
                state.busy = true;
                return next;
            }
            self.rested.notify_all();
            let retry = state.retry.clone();
            state.awaited.clone_from(&retry);
            self.arrived.wait_forgetting(&mut state, retry.as_ref(), since);
        }
    }

    /// Closes the queue. The serving thread ends after its present task, and the rest is dropped.
    pub fn close<L>(&self, cx: &mut Locked<'_, L>) {
        self.state.lock_leaf(cx).closed = true;
        self.arrived.notify_all();
    }

    /// Whether the queue has been closed.
    pub fn is_closed<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        self.state.lock_leaf(cx).closed
    }

    /// Waits until nothing is queued or being done. With `retries` it also waits until no retry is pending. Returns
    /// false if the deadline passes first.
    pub fn wait_rested<L: MayWait>(&self, cx: &mut Locked<'_, L>, retries: bool, deadline: Option<&Deadline>) -> bool {
        cx.might_wait();
        let since = HistoryMark::now();
        let mut state = self.state.lock_leaf(cx);
        while !state.closed && !(state.rests() && (!retries || state.retry.is_none())) {
            match deadline {
                Some(deadline) if deadline.has_passed() => return false,
                Some(deadline) => self.rested.wait_until(&mut state, deadline),
                None => self.rested.wait_forgetting(&mut state, None, since),
            }
        }
        true
    }

    /// Whether nothing is queued or being done. A pending retry does not count.
    pub fn rests<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        self.state.lock_leaf(cx).rests()
    }
}

impl<T> State<T> {
    fn rests(&self) -> bool {
        self.closed || (self.items.is_empty() && self.marks == 0 && !self.busy)
    }

    fn take_planned_failure(&mut self) -> bool {
        let fails = self.fail_allocations > 0;
        self.fail_allocations = self.fail_allocations.saturating_sub(1);
        fails
    }
}
