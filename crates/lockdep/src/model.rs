//! The model of an execution: its threads, what each is about to do, and which thread holds what.
//!
//! Explored primitives are entries of the model, and every thread is a task of shuttle's. Before an operation that other
//! threads can see, a thread announces the operation and lets the scheduler choose. The operation happens once its thread
//! is chosen. A thread is runnable exactly when its next operation is possible. So a schedule is a sequence of *steps*.
//! Each step is one such operation and everything that the thread then does that others cannot see. A scheduler
//! uses [`look`] to read the model.
//!
//! What can follow depends on the *state*: on what every thread has seen, on the contents of every object, and on which
//! threads wait. The model knows neither values, so it represents each by a number. What a thread has seen is the
//! sequence of its operations and of the contents that it found. The contents of an object get a new number when they
//! may have been written. A lock knows this by whether its guard was lent out for writing. The new number is what the
//! writer had seen by then, or the digest of the value, if the lock has one. A thread may declare that it has forgotten
//! what it has seen, where its next actions do not depend on it. So the order in which threads took a lock is no part of
//! the state if none of them wrote, and a change that was undone is none either. The argument is in
//! `docs/verification.md`. State that threads share by other means must be reported, see
//! [`Locked::learns`](crate::Locked::learns).
//!
//! Threads and objects have names that do not depend on the schedule: the thread that made them, and a serial number. The
//! same thread in another schedule of the same program has the same name.

mod digest;
mod halt;
mod history;
mod interrupt;
mod lock;
mod notes;
mod object;
mod op;
mod point;
mod thread;
mod wait;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;
use std::panic::Location;

pub use digest::digest;
pub use halt::Halt;
pub use history::{HistoryMark, tell, without_history};
pub use notes::{focus, is_recorded, note};
pub use op::{Happening, ObjectId, Op, OpKind, Touch, What};
pub use thread::ThreadModel;

pub(crate) use history::learns;
pub(crate) use interrupt::{begin_handler, end_handler, is_held_by_interrupted, set_interrupts_off};
pub(crate) use lock::{Wrote, acquire, allow_try, release, try_acquire};
pub(crate) use object::{Handle, access, wrote};
pub(crate) use thread::{STACK, join, live, me, sleep, spawn, thread_name};
pub(crate) use wait::{notify, wait};

use crate::explore::Explore;
use digest::{Mixing, mix};
use object::Object;

/// One execution.
#[derive(Debug, Default)]
pub struct Model {
    /// How many threads are about to raise an interrupt.
    raising: usize,
    /// How many interrupt handlers run.
    handlers: usize,
    threads: Vec<ThreadModel>,
    objects: Vec<Object>,
    enabled: usize,
    timers: u64,
    /// Time-outs that have fired.
    fired: u64,
    steps: usize,
    /// The contents of all objects, and the state that is reported beside them.
    contents: u64,
    /// The state that is reported beside the objects: by its name, its value.
    reported: HashMap<u64, u64, BuildHasherDefault<Mixing>>,
    /// The keys of objects that have a role.
    roles: BTreeSet<u64>,
    /// The number of this execution on this OS thread.
    epoch: u64,
    /// What a thread has forgotten is no part of the state.
    forgets: bool,
    touched: Vec<Touch>,
    halt: Option<Halt>,
    happenings: Option<Vec<Happening>>,
    current: usize,
    /// The scheduler is not asked now: the program runs in one order.
    plain: bool,
    /// Whether [`focus`] has an effect.
    focused: bool,
}

thread_local! {
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
    static NAMES: RefCell<HashMap<u64, u16, BuildHasherDefault<Mixing>>> = RefCell::new(HashMap::default());
    static BOUND: Cell<usize> = const { Cell::new(usize::MAX) };
    static EPOCH: Cell<u64> = const { Cell::new(0) };
}

/// Calls `f` with the model of the execution that runs on this OS thread, or that has just ended. There is an example at
/// [`Explore::run`](crate::Explore::run).
///
/// # Panics
/// No execution runs on this OS thread.
pub fn look<R>(f: impl FnOnce(&mut Model) -> R) -> R {
    MODEL.with_borrow_mut(|model| f(model.as_mut().expect("an execution is going on")))
}

fn try_look<R>(f: impl FnOnce(&mut Model) -> R) -> Option<R> {
    MODEL.with(|model| model.try_borrow_mut().ok().and_then(|mut model| model.as_mut().map(f)))
}

/// Starts a new execution, with an empty model.
pub(crate) fn begin(how: &Explore) {
    BOUND.set(how.bound);
    let happenings = how.record.then(Vec::new);
    EPOCH.set(EPOCH.get() + 1);
    let mut model = Model {
        happenings,
        plain: how.focused,
        focused: how.focused,
        epoch: EPOCH.get(),
        forgets: how.forgets,
        ..Model::default()
    };
    model.add_thread("main".to_owned(), 0x6d61_696e, 0, Location::caller());
    MODEL.set(Some(model));
}

/// Ends exploring on this OS thread.
pub(crate) fn end() {
    MODEL.set(None);
}

impl Model {
    /// Returns the threads so far.
    pub fn threads(&self) -> &[ThreadModel] {
        &self.threads
    }

    /// Returns the operation that a thread is about to do.
    pub fn pending(&self, thread: usize) -> Op {
        self.threads[thread].pending
    }

    /// Returns since when a thread has been waiting for a time-out, as a number that grows. `None`: it is about to do
    /// something else. A thread in such a wait is runnable. If the scheduler chooses it, its time has run out.
    pub fn timer(&self, thread: usize) -> Option<u64> {
        let t = &self.threads[thread];
        (t.timer != 0).then_some(t.timer)
    }

    /// Moves to `into` what was touched since the last call, and by which thread: taken, released, tried in vain, waited
    /// on, or woken.
    pub fn take_touched(&mut self, into: &mut Vec<Touch>) {
        into.clear();
        into.append(&mut self.touched);
    }

    /// Returns how many time-outs have fired so far.
    pub fn fired(&self) -> u64 {
        self.fired
    }

    /// Returns the number of steps so far.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Returns a number for the state. Where it is the same, the same can follow, unless two states collide. It does not
    /// cover which time-outs are older.
    pub fn state(&self) -> u64 {
        self.threads.iter().fold(self.contents.wrapping_add(self.handlers_state()), |state, thread| {
            let place = thread.waits_on.map_or(0, |condvar| {
                let waiters = &self.objects[condvar as usize].waiters;
                1 + waiters.iter().position(|waiter| self.threads[*waiter].id == thread.id).unwrap_or(waiters.len())
            });
            let op = thread.pending;
            let about = (op.object.0 as u64) << 40 | u64::from(op.at.line()) << 16 | (op.kind as u64) << 8;
            let about = mix(about, (op.at.file().len() as u64) << 32 | u64::from(op.at.column()));
            let flags = u64::from(thread.finished)
                | u64::from(thread.timer != 0) << 1
                | u64::from(thread.has_acted) << 2
                | (place as u64) << 3;
            let flags = mix(flags ^ u64::from(thread.interrupts_off) << 48, thread.created << 32 | thread.spawned);
            state.wrapping_add(mix(mix(thread.id, thread.seen), mix(about, flags)))
        })
    }

    /// Returns whether the scheduler is not asked now.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Returns whether the thread can go on, so that to let another thread run instead is a preemption. Its next operation
    /// must be possible, and must be neither a time-out nor the raising of an interrupt, which may arrive later.
    pub fn goes_on(&self, thread: usize) -> bool {
        let t = &self.threads[thread];
        t.enabled && t.timer == 0 && t.pending.kind != OpKind::Interrupt
    }

    /// Returns the plain choice: the current thread if it can go on, else the first thread that can. If all threads wait for
    /// time-outs, it is the one that has waited longest.
    pub fn plain_choice(&self, runnable: impl Iterator<Item = usize> + Clone, current: Option<usize>) -> usize {
        let ready = |thread: &usize| self.timer(*thread).is_none();
        let on = current.filter(|current| self.threads[*current].enabled && ready(current));
        on.or_else(|| runnable.clone().find(ready))
            .or_else(|| runnable.min_by_key(|thread| self.timer(*thread)))
            .unwrap_or_default()
    }

    /// Returns why the execution is given up, if it is.
    pub fn halt(&self) -> Option<&Halt> {
        self.halt.as_ref()
    }

    /// Gives the execution up.
    pub fn stop(&mut self, why: Halt) {
        self.halt.get_or_insert(why);
    }

    pub(crate) fn take_halt(&mut self) -> Option<Halt> {
        self.halt.take()
    }

    /// Removes and returns the events of the execution, if they were [recorded](crate::Explore::record).
    pub fn take_happenings(&mut self) -> Vec<Happening> {
        self.happenings.take().unwrap_or_default()
    }
}
