//! What an exploration knows: its threads, what each is about to do, who holds what.
//!
//! Explored primitives are entries here, and a shuttle task for every thread. An operation that
//! others can see announces itself, lets the scheduler choose, and happens once its thread is chosen:
//! a thread is runnable exactly when what it is about to do can be done. So a schedule is a sequence
//! of *steps*, each of them one such operation and everything the thread then does for itself; see
//! [`look`] for what a scheduler can ask about them.
//!
//! What can follow depends on the *state*: on what every thread has seen, on what every object holds, and
//! on who waits. Neither is known to the model, so each is a number that stands for it. What a thread has
//! seen is the sequence of what it did and of the contents it found. What an object holds is a number that
//! changes when it may have been written, which a lock knows by whether its guard was lent out for writing:
//! then it is what its writer had seen by then, or the value itself where that is told. A thread may say that it has
//! forgotten what it has seen, where what it does next does not depend on it. So in whose
//! order a lock was taken is no part of the state if nobody wrote, and neither is what was undone. The argument
//! is in `docs/verification.md`. What is shared in other ways must be told, see
//! [`Locked::learns`](crate::Locked::learns).
//!
//! Threads and objects have names that do not depend on the schedule: whose child, and the how
//! manieth. The same thread in another schedule of the same program has the same name.

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
pub(crate) use lock::{Wrote, acquire, release, set_tried, try_acquire};
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
    /// What all objects hold, and what is told beside them.
    held: u64,
    /// What is told beside the objects: by what, and what of it.
    told: HashMap<u64, u64, BuildHasherDefault<Mixing>>,
    /// The keys of objects that have a role.
    roles: BTreeSet<u64>,
    /// Which execution of this OS thread it is.
    epoch: u64,
    /// What is forgotten by who says so is no part of the state.
    forgets: bool,
    touched: Vec<Touch>,
    halt: Option<Halt>,
    happenings: Option<Vec<Happening>>,
    current: usize,
    /// The scheduler is not to be asked: what runs now has one order.
    plain: bool,
    /// Whether [`focus`] means something.
    focused: bool,
}

thread_local! {
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
    static NAMES: RefCell<HashMap<u64, u16, BuildHasherDefault<Mixing>>> = RefCell::new(HashMap::default());
    static BOUND: Cell<usize> = const { Cell::new(usize::MAX) };
    static EPOCH: Cell<u64> = const { Cell::new(0) };
}

/// Looks at the execution that is going on, or that has just ended.
///
/// # Panics
/// There is none on this OS thread.
pub fn look<R>(f: impl FnOnce(&mut Model) -> R) -> R {
    MODEL.with_borrow_mut(|model| f(model.as_mut().expect("an execution is going on")))
}

fn try_look<R>(f: impl FnOnce(&mut Model) -> R) -> Option<R> {
    MODEL.with(|model| model.try_borrow_mut().ok().and_then(|mut model| model.as_mut().map(f)))
}

/// Forgets the execution before and starts another.
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
    /// The threads so far.
    pub fn threads(&self) -> &[ThreadModel] {
        &self.threads
    }

    /// What a thread is about to do.
    pub fn pending(&self, thread: usize) -> Op {
        self.threads[thread].pending
    }

    /// Since when a thread has been waiting for a time-out, as a number that grows; `None` if what it is
    /// about to do is something else. A thread in such a wait is runnable, and that the scheduler chooses
    /// it is what makes its time be up.
    pub fn timer(&self, thread: usize) -> Option<u64> {
        let t = &self.threads[thread];
        (t.timer != 0).then_some(t.timer)
    }

    /// What was touched since the last call, and by which thread: taken, let go of, tried in vain, waited
    /// on, woken. It is forgotten here.
    pub fn take_touched(&mut self, into: &mut Vec<Touch>) {
        into.clear();
        into.append(&mut self.touched);
    }

    /// How many time-outs have fired so far.
    pub fn fired(&self) -> u64 {
        self.fired
    }

    /// The number of steps so far.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// A number for the state: where it is the same (but for a collision), the same can follow. It says
    /// nothing of which time-outs are the older ones.
    pub fn state(&self) -> u64 {
        self.threads.iter().fold(self.held.wrapping_add(self.handlers_state()), |state, thread| {
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

    /// Whether the scheduler is not asked now.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Whether the thread goes on by itself, so that to let another one run instead is a preemption: what it is about to do
    /// can be done, and is neither to see a time-out fire nor to raise an interrupt, which may arrive later.
    pub fn goes_on(&self, thread: usize) -> bool {
        let t = &self.threads[thread];
        t.enabled && t.timer == 0 && t.pending.kind != OpKind::Interrupt
    }

    /// The plain choice: the current thread if it can go on, else the first that can; of threads that wait
    /// for nothing but time, the one that has waited longest.
    pub fn plain_choice(&self, runnable: impl Iterator<Item = usize> + Clone, current: Option<usize>) -> usize {
        let ready = |thread: &usize| self.timer(*thread).is_none();
        let on = current.filter(|current| self.threads[*current].enabled && ready(current));
        on.or_else(|| runnable.clone().find(ready))
            .or_else(|| runnable.min_by_key(|thread| self.timer(*thread)))
            .unwrap_or_default()
    }

    /// Why the execution is given up, if it is.
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

    /// What has happened, if that was to be kept.
    pub fn take_happenings(&mut self) -> Vec<Happening> {
        self.happenings.take().unwrap_or_default()
    }
}
