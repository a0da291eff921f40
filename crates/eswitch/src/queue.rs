//! An ordered queue served by one thread: the shape of the E-Switch's work queue and of the SF queue.
//!
//! Two ways in, as their callers must choose: [`push`](Queue::push) may wait and may allocate;
//! [`push_atomic`](Queue::push_atomic) does neither and draws on a reserve. Beside the items stand
//! *marks*, bits that need no memory at all, and one pending retry; neither can be lost.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use lockdep::{Condvar, Deadline, HistoryMark, Locked, MayWait, Mutex, digest};

use crate::error::{Error, Result};
use crate::lock_order::QueueItems;

/// Room for items that is there from the start, for those who may not allocate.
const RESERVE: usize = 16;

/// What the serving thread is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    Item(T),
    /// These marks were set; they are taken back.
    Marks(u8),
    /// The retry is due.
    Retry,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// Whose and for what, to name what can fail here.
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
    /// The retry that the serving thread waits for.
    awaited: Option<Deadline>,
    attempt: u32,
    /// The retry is one that events have asked for, and not a failure.
    collecting: bool,
    busy: bool,
    closed: bool,
    fail_allocations: u32,
}

/// To an explorer two states are the same if they hash to the same.
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

    /// Queues an item; may allocate.
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
            // The lock is one that those who may not wait take too: nothing is allocated under it.
            let wanted = 2 * state.items.capacity().max(RESERVE);
            drop(state);
            room = VecDeque::new();
            room.try_reserve(wanted).map_err(|_| Error::QueueFull)?;
        }
    }

    /// Queues an item from where nothing may wait or allocate. When there is no room, `mark` is left
    /// instead, and the serving thread acts on that.
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

    /// Leaves a mark. Needs no memory and cannot fail; on a closed queue it does nothing.
    pub fn mark<L>(&self, cx: &mut Locked<'_, L>, mark: u8) {
        self.state.lock_leaf(cx).marks |= mark;
        self.arrived.notify_one();
    }

    /// Asks for a retry after the delay that `delay` gives for the number of attempts so far, counted
    /// from 0, and returns that delay. One retry is pending at most; one that events have [asked for](Self::collect)
    /// meanwhile stays as it is.
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

    /// Asks for a retry after `delay`, for something has happened: however many ask meanwhile, there is one. Who asks does
    /// not wait for what a failure has put off.
    pub fn collect<L>(&self, cx: &mut Locked<'_, L>, delay: std::time::Duration) {
        let mut state = self.state.lock_leaf(cx);
        if !state.collecting && !state.closed {
            state.retry = Some(Deadline::after(delay));
            state.collecting = true;
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// What was retried has succeeded; the next failure waits the shortest time again.
    pub fn reset_attempts<L>(&self, cx: &mut Locked<'_, L>) {
        self.state.lock_leaf(cx).attempt = 0;
    }

    /// Nothing is missing any more.
    pub fn no_retry<L>(&self, cx: &mut Locked<'_, L>) {
        let mut state = self.state.lock_leaf(cx);
        (state.retry, state.collecting) = (None, false);
        state.attempt = 0;
    }

    /// At rest: how many failures the next one would be put off for, though nothing is to be tried again.
    pub fn idle_back_off<L>(&self, cx: &mut Locked<'_, L>) -> Option<u32> {
        let state = self.state.lock_leaf(cx);
        (state.retry.is_none() && !state.closed && state.attempt > 0).then_some(state.attempt)
    }

    /// Milliseconds until the pending retry, if there is one; `None` inside if that cannot be said.
    pub fn pending_retry<L>(&self, cx: &mut Locked<'_, L>) -> Option<Option<std::time::Duration>> {
        self.state.lock_leaf(cx).retry.as_ref().map(Deadline::remaining)
    }

    /// Makes the next `n` allocations for items fail.
    pub fn fail_allocations<L>(&self, cx: &mut Locked<'_, L>, n: u32) {
        self.state.lock_leaf(cx).fail_allocations = n;
    }

    /// For the serving thread: waits for something to do. `None` once the queue is closed; what was
    /// still in it is dropped.
    ///
    /// It has done what it did for what it got before: `since` it began nothing is left of that but what it
    /// has written.
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

    /// Closes the queue: the serving thread ends when what it is doing is done, and the rest is
    /// dropped.
    pub fn close<L>(&self, cx: &mut Locked<'_, L>) {
        self.state.lock_leaf(cx).closed = true;
        self.arrived.notify_all();
    }

    /// Whether it has been closed.
    pub fn is_closed<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        self.state.lock_leaf(cx).closed
    }

    /// Waits until nothing is queued or being done; with `retries`, nothing to be tried again either.
    /// Gives up when the deadline has passed; whether it has not.
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

    /// Whether nothing is queued or being done.
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
