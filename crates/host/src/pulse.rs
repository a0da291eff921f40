//! The one thing that every wait waits on: something has changed, or it is time to stop.

use lockdep::{
    AtomicBool, Condvar, Deadline, HistoryMark, Locked, MayWait, Mutex, digest, lock_classes, without_history,
};

lock_classes! {
    /// What waiting threads wait on.
    pub leaf PulseClass = "pulse";
}

/// A count of changes that threads wait on, with a request to stop.
///
/// The thread of the signal handlers calls [`stop`](Self::stop); every wait of the runner ends then.
#[derive(Debug)]
pub struct Pulse {
    state: Mutex<PulseClass, u64>,
    stopped: AtomicBool,
    moved: Condvar,
}

/// What ends a command or a step early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heeds {
    /// A request to [stop](Pulse::stop).
    Stop,
    /// Nothing: it must be done whatever happens.
    Nothing,
}

/// Why a wait ended without what it waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveUp {
    /// A stop was requested.
    Stopped,
    /// Its deadline passed.
    TimedOut,
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

impl Pulse {
    /// A pulse that no thread waits on.
    pub fn new() -> Self {
        // A scenario that is explored is never stopped, so looking at this is no point of its schedule.
        let stopped = lockdep::unexplored(|| AtomicBool::new(false));
        Self { state: Mutex::new(0).with_state_digest(digest), stopped, moved: Condvar::new() }
    }

    /// Requests that everything stops.
    pub fn stop<L>(&self, cx: &mut Locked<'_, L>) {
        self.stopped.swap(true);
        self.beat(cx);
    }

    /// Whether a stop was requested.
    pub fn is_stopped<L>(&self, _: &mut Locked<'_, L>) -> bool {
        self.stopped.load()
    }

    /// Waits until a stop is requested.
    pub fn wait_stopped<L: MayWait>(&self, cx: &mut Locked<'_, L>) {
        let _: Result<(), GaveUp> = self.wait_for(cx, Heeds::Stop, None, || None, |_| None);
    }

    /// Whether what heeds that is to stop.
    pub fn stops<L>(&self, cx: &mut Locked<'_, L>, heeds: Heeds) -> bool {
        heeds == Heeds::Stop && self.is_stopped(cx)
    }

    /// Wakes every wait: something that it waits for may have changed.
    pub fn beat<L>(&self, cx: &mut Locked<'_, L>) {
        without_history(|| {
            *self.state.lock_leaf(cx) += 1;
            self.moved.notify_all();
        });
    }

    /// Wakes the thread that prints the story, if it is printed while it happens. Explored, it is printed afterwards.
    pub fn beat_for_listener<L>(&self, cx: &mut Locked<'_, L>) {
        if !lockdep::is_explored() {
            self.beat(cx);
        }
    }

    /// Waits until `ready` returns something. It is called at each beat, and each time a deadline that `tick` has
    /// returned has passed. What it returns must not depend on earlier calls.
    ///
    /// # Errors
    /// A stop was requested and is heeded, or `limit` has passed.
    pub fn wait_for<L: MayWait, R>(
        &self,
        cx: &mut Locked<'_, L>,
        heeds: Heeds,
        limit: Option<&Deadline>,
        tick: impl Fn() -> Option<Deadline>,
        mut ready: impl FnMut(&mut Locked<'_, L>) -> Option<R>,
    ) -> Result<R, GaveUp> {
        let since = HistoryMark::now();
        loop {
            since.erase_except(&limit.map(Deadline::has_passed));
            let seen = *self.state.lock_leaf(cx);
            if let Some(result) = ready(cx) {
                return Ok(result);
            }
            if self.stops(cx, heeds) {
                return Err(GaveUp::Stopped);
            }
            if limit.is_some_and(Deadline::has_passed) {
                return Err(GaveUp::TimedOut);
            }
            let tick = tick();
            self.wait_past(cx, seen, tick.as_ref().or(limit));
        }
    }

    /// Waits for a beat after `seen`, or until the deadline.
    fn wait_past<L: MayWait>(&self, cx: &mut Locked<'_, L>, seen: u64, deadline: Option<&Deadline>) {
        let mut state = self.state.lock_leaf(cx);
        while *state == seen && !deadline.is_some_and(Deadline::has_passed) {
            match deadline {
                Some(deadline) => self.moved.wait_until(&mut state, deadline),
                None => self.moved.wait(&mut state),
            }
        }
    }
}
