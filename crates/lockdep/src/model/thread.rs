//! Threads: their lives, and their waits for time and for each other.

use std::cell::Cell;
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use shuttle_engine::runtime::execution::ExecutionState;
use shuttle_engine::runtime::thread::switch;
use shuttle_engine::thread_support::thread_fn;

use super::digest::mix;
use super::interrupt::Handler;
use super::object::intern;
use super::point::{Changes, act, point};
use super::{Halt, Model, ObjectId, Op, OpKind, Touch, What, look, note, try_look};

/// The stack of an explored thread, in bytes.
pub(crate) const STACK: usize = 0x20000;

/// A thread of an exploration.
#[derive(Debug)]
pub struct ThreadModel {
    /// Its name, as given when it was spawned.
    pub name: String,
    pub(super) id: u64,
    pub(super) life: ObjectId,
    pub(super) spawned: u64,
    pub(super) created: u64,
    pub(super) pending: Op,
    /// The lock to take again after a wait.
    pub(super) then: Option<u32>,
    pub(super) enabled: bool,
    pub(super) finished: bool,
    /// When it began to wait for a time-out; 0 if it does not wait for one.
    pub(super) timer: u64,
    pub(super) expired: bool,
    /// A number for what it has seen.
    pub(super) seen: u64,
    /// How many locks it holds.
    pub(super) holds: u32,
    /// How many of these are leaf locks of classes that do not turn interrupts off.
    pub(super) leaves: u32,
    /// It has done something that others can see since it took such a lock.
    pub(super) has_acted: bool,
    /// How many sections with interrupts off it is in. Handlers and locks of `leaf irq` classes are such sections, too.
    pub(super) interrupts_off: u32,
    /// The interrupt handlers that it runs, the innermost last.
    pub(super) handlers: Vec<Handler>,
    /// The condition variable it waits on without having been notified.
    pub(super) waits_on: Option<u32>,
    pub(super) ops: u32,
    /// The place in the source where it was started.
    pub(super) born: &'static Location<'static>,
    pub(super) joiners: Vec<usize>,
}

impl ThreadModel {
    /// Returns whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Returns how many operations it has done.
    pub fn ops(&self) -> u32 {
        self.ops
    }

    /// Returns whether its next operation is possible.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }
}

impl Model {
    pub(super) fn add_thread(&mut self, name: String, id: u64, seen: u64, at: &'static Location<'static>) -> usize {
        let life = intern(mix(id, 1));
        let pending = Op { kind: OpKind::Start, object: life, label: "thread", at, done: false };
        self.enabled += 1;
        self.threads.push(ThreadModel {
            name,
            id,
            life,
            spawned: 0,
            created: 0,
            pending,
            then: None,
            enabled: true,
            finished: false,
            timer: 0,
            expired: false,
            seen,
            holds: 0,
            leaves: 0,
            has_acted: false,
            interrupts_off: 0,
            handlers: Vec::new(),
            waits_on: None,
            ops: 0,
            born: at,
            joiners: Vec::new(),
        });
        self.threads.len() - 1
    }

    /// Begins a thread's wait for a time-out. A scheduler may distinguish which of two threads began first, so both touch a
    /// common object.
    pub(super) fn arm(&mut self, me: usize) {
        self.timers += 1;
        self.threads[me].timer = self.timers;
        self.touched.push(Touch { thread: me, object: intern(0), reads: false });
    }

    pub(super) fn life(&mut self, me: usize, of: usize, kind: OpKind, at: &'static Location<'static>) {
        let (id, seen, object) = (self.threads[of].id, self.threads[of].seen, self.threads[of].life);
        // A thread that has joined another knows everything that the other has seen.
        let found = if kind == OpKind::Join { mix(id, seen) } else { id };
        self.touched.push(Touch { thread: me, object, reads: false });
        self.note_act(me);
        let thread = &mut self.threads[me];
        thread.ops += 1;
        thread.seen = mix(mix(thread.seen, found), kind as u64);
        self.record(me, || What::Op(Op { kind, object, label: "thread", at, done: false }));
    }

    pub(super) fn disable(&mut self, thread: usize) -> bool {
        let changed = std::mem::replace(&mut self.threads[thread].enabled, false);
        self.enabled -= usize::from(changed);
        changed
    }

    pub(super) fn enable(&mut self, thread: usize) -> bool {
        let changed = !std::mem::replace(&mut self.threads[thread].enabled, true);
        self.enabled += usize::from(changed);
        changed
    }
}

/// Waits until the scheduler decides that the time has run out.
pub(crate) fn sleep(at: &'static Location<'static>) {
    act(|model, me, _| {
        model.arm(me);
        let object = model.threads[me].life;
        model.threads[me].pending = Op { kind: OpKind::Expire, object, label: "sleep", at, done: false };
    });
    point();
    act(|model, me, _| {
        model.fired += 1;
        model.threads[me].timer = 0;
        model.life(me, me, OpKind::Expire, at);
    });
}

/// Returns a number for a thread, which is the same in every schedule.
pub(crate) fn thread_name(thread: usize) -> u64 {
    try_look(|model| model.threads.get(thread).map(|thread| thread.id)).flatten().unwrap_or_default()
}

/// Returns a number for the running thread, which is the same in every schedule.
pub(crate) fn me() -> u64 {
    look(|model| model.threads[model.current].id)
}

/// Starts a thread. Returns its index.
pub(crate) fn spawn(name: &str, at: &'static Location<'static>, f: impl FnOnce() + 'static) -> usize {
    let (me, child) = act(|model, me, _| {
        let object = model.threads[me].life;
        model.threads[me].pending = Op { kind: OpKind::Spawn, object, label: "thread", at, done: false };
        (me, Rc::new(Cell::new(0)))
    });
    let theirs = Rc::clone(&child);
    let run = move || {
        let child = theirs.get();
        look(|model| {
            model.current = child;
            model.steps += 1;
            model.life(child, child, OpKind::Start, at);
        });
        live(f);
    };
    let run = move || thread_fn(run, false, Arc::default());
    // Shuttle lets its scheduler choose before it makes the task. This is the stop before the operation.
    let task = ExecutionState::spawn_thread(Box::new(run), STACK, Some(name.to_owned()), None, at);
    child.set(task.into());
    let added = look(|model| {
        model.current = me;
        model.steps += 1;
        model.threads[me].spawned += 1;
        let id = mix(mix(model.threads[me].id, 3), model.threads[me].spawned);
        let seen = model.threads[me].seen;
        let added = model.add_thread(name.to_owned(), id, seen, at);
        model.life(me, added, OpKind::Spawn, at);
        added
    });
    assert_eq!(added, child.get(), "the threads of an exploration are the model's");
    added
}

/// Runs the body of the current thread, and ends the thread.
pub(crate) fn live(f: impl FnOnce()) {
    if let Err(panic) = crate::explore::caught(f) {
        note("violation", || panic.clone());
        look(|model| model.stop(Halt::Panic(panic)));
    }
    let mut changes = Changes::default();
    let halted = look(|model| {
        let me = model.current;
        model.threads[me].finished = true;
        // Shuttle notices by itself that this thread has ended.
        model.disable(me);
        for joiner in std::mem::take(&mut model.threads[me].joiners) {
            changes.enable(model, joiner);
        }
        let born = model.threads[me].born;
        model.life(me, me, OpKind::Exit, born);
        if model.enabled == 0 && model.threads.iter().any(|thread| !thread.finished) && model.halt.is_none() {
            let who = model.describe_deadlock();
            model.stop(Halt::Deadlock(who));
        }
        model.halt.is_some()
    });
    changes.apply();
    if halted {
        // The scheduler ends the execution here.
        switch();
    }
}

/// Waits for a thread's end.
pub(crate) fn join(thread: usize, at: &'static Location<'static>) {
    act(|model, me, changes| {
        let object = model.threads[thread].life;
        model.threads[me].pending = Op { kind: OpKind::Join, object, label: "thread", at, done: false };
        if !model.threads[thread].finished {
            model.threads[thread].joiners.push(me);
            changes.disable(model, me);
        }
    });
    point();
    act(|model, me, _| model.life(me, thread, OpKind::Join, at));
}
