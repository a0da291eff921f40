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

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hash};
use std::panic::Location;
use std::rc::Rc;
use std::sync::Arc;

use shuttle_engine::runtime::execution::ExecutionState;
use shuttle_engine::runtime::task::TaskId;
use shuttle_engine::runtime::thread::switch;
use shuttle_engine::thread_support::thread_fn;

use crate::explore::Explore;

/// The stack of an explored thread, in bytes.
pub(crate) const STACK: usize = 0x20000;

/// What a thread is about to do, or has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Starts to run.
    Start,
    /// Takes a lock.
    Acquire,
    /// Takes a lock for reading.
    AcquireShared,
    /// Tries a lock.
    Try,
    /// Reads an atomic.
    Read,
    /// Writes an atomic.
    Write,
    /// Wakes waiters.
    Notify,
    /// Waits for a notification; happens with the lock that is let go of.
    Wait,
    /// Its time-out fires.
    Expire,
    /// Starts a thread.
    Spawn,
    /// Waits for a thread's end.
    Join,
    /// Ends.
    Exit,
    /// Lets go of a lock. Unless others may try that lock, it is part of the step before.
    Release,
}

/// An object of the model: a lock, a condition variable, an atomic, a thread's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(u16);

impl ObjectId {
    /// A small number, the same for the same object in every schedule of this OS thread's
    /// explorations.
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// That an object was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// By which thread.
    pub thread: usize,
    /// What.
    pub object: ObjectId,
    /// It was read at most: two that read come to the same in either order.
    pub reads: bool,
}

/// What a thread is about to do.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// What.
    pub kind: OpKind,
    /// To what. Every thread's start is about the thread itself.
    pub object: ObjectId,
    /// The class or name of the object.
    pub label: &'static str,
    /// Where in the source.
    pub at: &'static Location<'static>,
    /// It has been done; for a try, in full.
    pub done: bool,
}

/// Something that happened, for a story told after.
#[derive(Clone, Debug)]
pub struct Happening {
    /// Which step of the schedule it belongs to, counted from 0.
    pub step: usize,
    /// The thread, as an index into [`Model::threads`].
    pub thread: usize,
    /// What happened.
    pub what: What,
}

/// What can happen.
#[derive(Clone, Debug)]
pub enum What {
    /// An operation.
    Op(Op),
    /// Something worth telling: of what kind, and in words.
    Note(&'static str, String),
}

/// Why an execution was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// No thread can go on; who waits for what, and who holds it.
    Deadlock(String),
    /// A thread panicked, and what it said.
    Panic(String),
    /// It has not come to an end within the bound.
    TooLong(usize),
    /// After so many steps everything is as it was so many steps before, and nothing has been held up for it: so it
    /// can go on for ever.
    Livelock(usize, usize),
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Deadlock(who) => write!(f, "deadlock! {who}"),
            Self::Panic(text) => f.write_str(text),
            Self::TooLong(steps) => write!(f, "has not come to an end within {steps} steps"),
            Self::Livelock(steps, ago) => {
                write!(f, "livelock! after {steps} steps everything is as it was {ago} steps before")
            }
        }
    }
}

/// A thread of an exploration.
#[derive(Debug)]
pub struct ThreadModel {
    /// Its name, as given when it was spawned.
    pub name: String,
    id: u64,
    life: ObjectId,
    spawned: u64,
    created: u64,
    pending: Op,
    /// The lock to take again after a wait.
    then: Option<u32>,
    enabled: bool,
    finished: bool,
    /// When it began to wait for a time-out; 0 if it does not.
    timer: u64,
    expired: bool,
    /// What it has seen.
    seen: u64,
    /// The locks it holds.
    holds: u32,
    /// The condition variable it waits on without having been notified.
    waits_on: Option<u32>,
    ops: u32,
    /// Where it was started.
    born: &'static Location<'static>,
    joiners: Vec<usize>,
}

#[derive(Debug)]
struct Object {
    id: ObjectId,
    key: u64,
    label: &'static str,
    owner: Option<usize>,
    readers: u32,
    /// Threads about to take it that are held up, or would be.
    wanted: Vec<usize>,
    /// Threads waiting for a notification, in the order in which they came.
    waiters: Vec<usize>,
    /// What it holds.
    holds: u64,
    /// Where in the source it was taken last.
    at: &'static Location<'static>,
    /// It was made for a role rather than as the how manieth of its creator.
    role: Option<u64>,
    gone: bool,
    /// Where its last taking is among what was touched, and in which step that was.
    taken: (usize, usize),
    /// Some thread may try it: letting go of it is an operation of its own.
    tried: bool,
}

/// One execution.
#[derive(Debug, Default)]
pub struct Model {
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

fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a ^ b.rotate_left(32)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A value as a number, for who tells an explorer what there is. It is the same wherever the same is hashed.
///
/// ```
/// assert_eq!(lockdep::digest(&(1, "one")), lockdep::digest(&(1, "one")));
/// assert_ne!(lockdep::digest(&(1, "one")), lockdep::digest(&(2, "two")));
/// ```
pub fn digest<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut hasher = Mixing(0);
    value.hash(&mut hasher);
    hasher.0
}

/// The hasher of the model's numbers: the same in every run.
#[derive(Default)]
struct Mixing(u64);

impl std::hash::Hasher for Mixing {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.write_u64(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.write_u64(n as u64);
    }

    #[inline]
    fn write_u64(&mut self, n: u64) {
        self.0 = mix(self.0, n);
    }
}

fn intern(key: u64) -> ObjectId {
    NAMES.with_borrow_mut(|names| {
        let next = u16::try_from(names.len()).unwrap_or(u16::MAX);
        ObjectId(*names.entry(key).or_insert(next))
    })
}

impl ThreadModel {
    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// How many operations it has done.
    pub fn ops(&self) -> u32 {
        self.ops
    }

    /// Whether what it is about to do can be done.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }
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
        self.threads.iter().fold(self.held, |state, thread| {
            let place = thread.waits_on.map_or(0, |condvar| {
                let waiters = &self.objects[condvar as usize].waiters;
                1 + waiters.iter().position(|waiter| self.threads[*waiter].id == thread.id).unwrap_or(waiters.len())
            });
            let op = thread.pending;
            let about = (op.object.0 as u64) << 40 | u64::from(op.at.line()) << 16 | (op.kind as u64) << 8;
            let about = mix(about, (op.at.file().len() as u64) << 32 | u64::from(op.at.column()));
            let flags = u64::from(thread.finished) | u64::from(thread.timer != 0) << 1 | (place as u64) << 2;
            let flags = mix(flags, thread.created << 32 | thread.spawned);
            state.wrapping_add(mix(mix(thread.id, thread.seen), mix(about, flags)))
        })
    }

    /// Whether the scheduler is not asked now.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
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

    fn add_thread(&mut self, name: String, id: u64, seen: u64, at: &'static Location<'static>) -> usize {
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
            waits_on: None,
            ops: 0,
            born: at,
            joiners: Vec::new(),
        });
        self.threads.len() - 1
    }

    fn add_object(&mut self, me: usize, label: &'static str, at: &'static Location<'static>) -> u32 {
        let thread = &mut self.threads[me];
        thread.created += 1;
        let key = mix(mix(thread.id, 2), thread.created);
        let holds = mix(key, thread.seen);
        let object = Object {
            id: intern(key),
            key,
            label,
            owner: None,
            readers: 0,
            wanted: Vec::new(),
            waiters: Vec::new(),
            holds,
            at,
            role: None,
            gone: false,
            taken: (usize::MAX, 0),
            tried: false,
        };
        self.held = self.held.wrapping_add(mix(key, holds));
        self.objects.push(object);
        (self.objects.len() - 1) as u32
    }

    /// The object that was just made is known by its role rather than by who has made it.
    fn set_role(&mut self, me: usize, object: u32, role: u64) {
        self.threads[me].created -= 1;
        // Of several that are there at once, as one is replaced that others still use.
        let key = (0..).map(|place| mix(mix(role, 8), place)).find(|key| !self.roles.contains(key)).unwrap_or(role);
        self.roles.insert(key);
        let o = &mut self.objects[object as usize];
        let before = mix(o.key, o.holds);
        (o.key, o.id, o.role) = (key, intern(key), Some(role));
        self.held = self.held.wrapping_sub(before).wrapping_add(mix(o.key, o.holds));
        self.touch_role(me, role);
    }

    /// Which place of its role an object has depends on who else has one: to make one and to drop one is
    /// in an order.
    fn touch_role(&mut self, me: usize, role: u64) {
        self.touched.push(Touch { thread: me, object: intern(mix(role, 9)), reads: false });
    }

    /// The object is no more: what it held is no part of the state.
    fn drop_object(&mut self, object: u32) {
        let Some(o) = self.objects.get_mut(object as usize) else { return };
        if std::mem::replace(&mut o.gone, true) {
            return;
        }
        self.held = self.held.wrapping_sub(mix(o.key, o.holds));
        if let Some(role) = o.role {
            self.roles.remove(&o.key);
            self.touch_role(self.current, role);
        }
    }

    fn record(&mut self, thread: usize, what: impl FnOnce() -> What) {
        let step = self.steps;
        if let Some(happenings) = &mut self.happenings {
            happenings.push(Happening { step, thread, what: what() });
        }
    }

    fn op(&self, kind: OpKind, object: u32, at: &'static Location<'static>) -> Op {
        let object = &self.objects[object as usize];
        Op { kind, object: object.id, label: object.label, at, done: false }
    }

    /// The thread's operation happens.
    fn happen(&mut self, me: usize, object: u32, kind: OpKind, at: &'static Location<'static>, outcome: u64) {
        let o = &mut self.objects[object as usize];
        let found = match kind {
            OpKind::Acquire | OpKind::AcquireShared | OpKind::Read | OpKind::Write => o.holds,
            OpKind::Try if outcome != 0 => o.holds,
            _ => 0,
        };
        let reads = matches!(kind, OpKind::AcquireShared | OpKind::Read);
        o.taken = (self.steps, self.touched.len());
        if kind != OpKind::Try || outcome != 0 {
            o.at = at;
        }
        self.touched.push(Touch { thread: me, object: o.id, reads });
        let thread = &mut self.threads[me];
        thread.ops += 1;
        thread.seen = mix(mix(thread.seen, mix(o.key, found)), kind as u64 | outcome << 8);
        if self.happenings.is_some() {
            let op = Op { done: kind != OpKind::Try || outcome != 0, ..self.op(kind, object, at) };
            self.record(me, || What::Op(op));
        }
    }

    /// The object was written: it holds a value, or what the thread has made of what it has seen.
    fn wrote(&mut self, me: usize, object: u32, value: Option<u64>) {
        let seen = self.threads[me].seen;
        let Some(o) = self.objects.get_mut(object as usize) else { return };
        let before = mix(o.key, o.holds);
        o.holds = value.map_or(mix(seen, 4), |value| mix(value, 5));
        self.held = self.held.wrapping_sub(before).wrapping_add(mix(o.key, o.holds));
    }

    /// The thread begins to wait for a time-out. Which of two began first makes a difference to a scheduler
    /// that goes by that, so they touch something in common.
    fn arm(&mut self, me: usize) {
        self.timers += 1;
        self.threads[me].timer = self.timers;
        self.touched.push(Touch { thread: me, object: intern(0), reads: false });
    }

    fn life(&mut self, me: usize, of: usize, kind: OpKind, at: &'static Location<'static>) {
        let (id, seen, object) = (self.threads[of].id, self.threads[of].seen, self.threads[of].life);
        // Whoever has waited for a thread's end has what came of it.
        let found = if kind == OpKind::Join { mix(id, seen) } else { id };
        self.touched.push(Touch { thread: me, object, reads: false });
        let thread = &mut self.threads[me];
        thread.ops += 1;
        thread.seen = mix(mix(thread.seen, found), kind as u64);
        self.record(me, || What::Op(Op { kind, object, label: "thread", at, done: false }));
    }

    fn can_take(&self, object: u32, kind: OpKind) -> bool {
        let o = &self.objects[object as usize];
        o.owner.is_none() && (kind == OpKind::AcquireShared || o.readers == 0)
    }

    fn disable(&mut self, thread: usize) -> bool {
        let changed = std::mem::replace(&mut self.threads[thread].enabled, false);
        self.enabled -= usize::from(changed);
        changed
    }

    fn enable(&mut self, thread: usize) -> bool {
        let changed = !std::mem::replace(&mut self.threads[thread].enabled, true);
        self.enabled += usize::from(changed);
        changed
    }

    /// Brings who wants the lock in line with who can have it.
    fn settle(&mut self, object: u32, changes: &mut Changes) {
        let wanted = std::mem::take(&mut self.objects[object as usize].wanted);
        for &thread in &wanted {
            if self.can_take(object, self.threads[thread].pending.kind) {
                changes.enable(self, thread);
            } else {
                changes.disable(self, thread);
            }
        }
        self.objects[object as usize].wanted = wanted;
    }

    fn take(&mut self, me: usize, object: u32, kind: OpKind, changes: &mut Changes) {
        let o = &mut self.objects[object as usize];
        o.wanted.retain(|thread| *thread != me);
        if kind == OpKind::AcquireShared {
            o.readers += 1;
        } else {
            o.owner = Some(me);
        }
        self.threads[me].holds += 1;
        self.settle(object, changes);
    }

    /// Who waits for what, and who holds it.
    fn describe_deadlock(&self) -> String {
        let waiting = self.threads.iter().filter(|thread| !thread.finished).map(|thread| {
            let op = thread.pending;
            let place = format!("{}:{}", op.at.file(), op.at.line());
            let holder = self.objects.iter().find(|o| o.id == op.object).and_then(|o| o.owner);
            match (op.kind, holder) {
                (OpKind::Acquire | OpKind::AcquireShared, Some(holder)) => format!(
                    "{} waits for {}, which {} holds, at {place}",
                    thread.name, op.label, self.threads[holder].name
                ),
                (OpKind::Join, _) => {
                    let me = |joiner: &usize| self.threads[*joiner].id == thread.id;
                    let whose = self.threads.iter().find(|other| other.joiners.iter().any(me));
                    let whose = whose.map_or("a thread", |other| &other.name);
                    format!("{} waits for the end of {whose}, at {place}", thread.name)
                }
                _ => format!("{} waits for {} at {place}", thread.name, op.label),
            }
        });
        waiting.collect::<Vec<_>>().join("; ")
    }
}

/// Which shuttle tasks become runnable or cease to be. The model says so while it is borrowed, shuttle
/// is told after.
#[derive(Default)]
struct Changes(Vec<(usize, bool)>);

impl Changes {
    fn enable(&mut self, model: &mut Model, thread: usize) {
        if model.enable(thread) {
            self.0.push((thread, true));
        }
    }

    fn disable(&mut self, model: &mut Model, thread: usize) {
        if model.disable(thread) {
            self.0.push((thread, false));
        }
    }

    fn tell(self) {
        if self.0.is_empty() {
            return;
        }
        let _ = ExecutionState::try_with(|state| {
            for (thread, enabled) in self.0 {
                let task = state.get_mut(TaskId::from(thread));
                match enabled {
                    true => task.unblock(),
                    false => task.block(false),
                }
            }
        });
    }
}

/// Changes the model as the running thread.
fn act<R>(f: impl FnOnce(&mut Model, usize, &mut Changes) -> R) -> R {
    let mut changes = Changes::default();
    let result = look(|model| {
        let me = model.current;
        f(model, me, &mut changes)
    });
    changes.tell();
    result
}

/// Lets the scheduler choose. Returns when this thread is chosen, and what it is about to do can be
/// done.
fn point() {
    loop {
        let (me, alone, stuck, enabled) = look(|model| {
            let me = model.current;
            if model.enabled == 0 && model.halt.is_none() {
                let who = model.describe_deadlock();
                model.stop(Halt::Deadlock(who));
            }
            let stop = model.halt.is_some();
            let enabled = model.threads[me].enabled;
            let on = enabled && (model.enabled == 1 || model.plain && model.threads[me].timer == 0);
            (me, on && !stop, stop, enabled)
        });
        if stuck && !enabled {
            // The schedule ends here; shuttle asks the scheduler only if somebody can run.
            let _ = ExecutionState::try_with(|state| state.get_mut(TaskId::from(me)).unblock());
        }
        if !alone {
            switch();
        }
        let done = look(|model| {
            model.current = me;
            model.steps += 1;
            if model.steps > BOUND.get() && model.halt.is_none() {
                model.stop(Halt::TooLong(model.steps));
            }
            model.threads[me].enabled && model.halt.is_none()
        });
        if done {
            return;
        }
    }
}

/// An object of the model, if there is an explorer: it is one for as long as this lives.
#[derive(Debug)]
pub(crate) struct Handle(Option<(u32, u64)>);

impl Handle {
    /// Makes an object; its creator and the how manieth of theirs it is are its name.
    #[track_caller]
    pub fn new(label: &'static str) -> Self {
        if !crate::is_explored() {
            return Self(None);
        }
        let at = Location::caller();
        Self(Some(act(|model, me, _| (model.add_object(me, label, at), model.epoch))))
    }

    /// Which; none: there is no explorer.
    #[inline]
    pub fn get(&self) -> Option<u32> {
        self.0.map(|(object, _)| object)
    }

    /// Its name is that of a role. Who says so has just made it.
    pub fn set_role(&self, role: &impl Hash) {
        if let Some(object) = self.get() {
            let role = digest(role);
            act(|model, me, _| model.set_role(me, object, role));
        }
    }

    /// What it holds from the start is this.
    pub fn starts_as(&self, value: impl FnOnce() -> u64) {
        if let Some(object) = self.get() {
            let value = value();
            act(|model, me, _| model.wrote(me, object, Some(value)));
        }
    }

    /// A number for which object it is.
    pub fn name(&self) -> u64 {
        let key = |model: &mut Model| self.get().and_then(|o| model.objects.get(o as usize)).map(|o| o.key);
        self.0.and_then(|_| try_look(key)).flatten().unwrap_or_default()
    }
}

impl Drop for Handle {
    #[inline]
    fn drop(&mut self) {
        if let Some((object, epoch)) = self.0 {
            // It may outlive its execution.
            try_look(|model| {
                if model.epoch == epoch {
                    model.drop_object(object);
                }
            });
        }
    }
}

pub(crate) fn acquire(object: u32, shared: bool, at: &'static Location<'static>) {
    let kind = if shared { OpKind::AcquireShared } else { OpKind::Acquire };
    act(|model, me, changes| {
        model.threads[me].pending = model.op(kind, object, at);
        model.objects[object as usize].wanted.push(me);
        if !model.can_take(object, kind) {
            let id = model.objects[object as usize].id;
            model.touched.push(Touch { thread: me, object: id, reads: shared });
            changes.disable(model, me);
        }
    });
    point();
    act(|model, me, changes| {
        model.take(me, object, kind, changes);
        model.happen(me, object, kind, at, 0);
    });
}

pub(crate) fn set_tried(object: u32) {
    look(|model| model.objects[object as usize].tried = true);
}

pub(crate) fn try_acquire(object: u32, at: &'static Location<'static>) -> bool {
    let tried = look(|model| model.objects[object as usize].tried);
    assert!(tried, "a lock is tried at {at} that was not made to be");
    announce(OpKind::Try, object, at);
    act(|model, me, changes| {
        let can = model.can_take(object, OpKind::Acquire);
        if can {
            model.take(me, object, OpKind::Acquire, changes);
        }
        model.happen(me, object, OpKind::Try, at, u64::from(can));
        can
    })
}

/// Whether something was written, and what, as far as that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    No,
    Unknown,
    Value(u64),
}

/// Lets go of a lock. `wrote`: what it protects was lent out for writing; and what it is now, if that is told.
pub(crate) fn release(object: u32, shared: bool, wrote: Wrote) {
    let tried = try_look(|model| model.objects.get(object as usize).is_some_and(|o| o.tried)).unwrap_or(false);
    if tried && !std::thread::panicking() {
        let at = look(|model| model.objects[object as usize].at);
        announce(OpKind::Release, object, at);
        act(|model, me, _| model.happen(me, object, OpKind::Release, at, 0));
    }
    let mut changes = Changes::default();
    try_look(|model| {
        let me = model.current;
        let Some(o) = model.objects.get_mut(object as usize) else { return };
        model.threads[me].holds = model.threads[me].holds.saturating_sub(1);
        if shared {
            o.readers = o.readers.saturating_sub(1);
        } else {
            o.owner = None;
        }
        let (id, (step, at)) = (o.id, o.taken);
        let wrote = match wrote {
            // It is what it was.
            Wrote::Value(value) if o.holds == mix(value, 5) => Wrote::No,
            wrote => wrote,
        };
        // Taken and let go of in one step, and not written: it was read.
        let reads = shared || wrote == Wrote::No && !tried && step == model.steps;
        if let Some(taking) = model.touched.get_mut(at)
            && reads
            && !shared
            && (taking.thread, taking.object) == (me, id)
        {
            taking.reads = true;
        }
        model.touched.push(Touch { thread: me, object: id, reads });
        match wrote {
            Wrote::No => {}
            Wrote::Unknown => model.wrote(me, object, None),
            Wrote::Value(value) => model.wrote(me, object, Some(value)),
        }
        model.settle(object, &mut changes);
        if !tried && model.happenings.is_some() {
            let op = model.op(OpKind::Release, object, model.objects[object as usize].at);
            model.record(me, || What::Op(op));
        }
    });
    changes.tell();
}

fn announce(kind: OpKind, object: u32, at: &'static Location<'static>) {
    act(|model, me, _| model.threads[me].pending = model.op(kind, object, at));
    point();
}

/// A read or write of an atomic is about to happen.
pub(crate) fn access(object: u32, kind: OpKind, at: &'static Location<'static>) {
    announce(kind, object, at);
    act(|model, me, _| model.happen(me, object, kind, at, 0));
}

/// The atomic that was just accessed holds this now.
pub(crate) fn wrote(object: u32, value: u64) {
    act(|model, me, _| model.wrote(me, object, Some(value)));
}

/// The running thread has learned something in another way than by an operation, or made something known.
pub(crate) fn learns(what: u64) {
    try_look(|model| {
        let me = model.current;
        model.touched.push(Touch { thread: me, object: intern(1), reads: false });
        model.threads[me].seen = mix(mix(model.threads[me].seen, what), 6);
    });
}

/// Tells an explorer of what threads share in another way than by explored primitives: `what` of it is this
/// now. It is part of the state from then on. Who finds it must be [told of](crate::Locked::learns), too,
/// and so must who changes it, unless a lock orders them.
pub fn tell(what: &impl Hash, is: &impl Hash) {
    if !crate::is_explored() {
        return;
    }
    let (what, is) = (digest(what), digest(is));
    try_look(|model| {
        let before = model.told.insert(what, is).map_or(0, |before| mix(mix(what, 10), before));
        model.held = model.held.wrapping_sub(before).wrapping_add(mix(mix(what, 10), is));
    });
}

/// A moment in what a thread has seen, see [`without_history`].
#[derive(Clone, Copy, Debug)]
pub struct HistoryMark {
    seen: u64,
    holds: u32,
}

impl HistoryMark {
    /// Now.
    pub fn now() -> Self {
        let now = |model: &mut Model| {
            let thread = &model.threads[model.current];
            Self { seen: thread.seen, holds: thread.holds }
        };
        crate::is_explored().then(|| try_look(now)).flatten().unwrap_or(Self { seen: 0, holds: 0 })
    }

    /// What the running thread has found since then is forgotten, but for `left`: what it does from here on
    /// depends on nothing else of that. It depends on that by what is on its stack and what it has
    /// written to locks that it still holds, and by nothing else.
    ///
    /// # Panics
    /// Explored, if the thread has taken a lock since and still holds it, or has let go of one: then it does.
    #[track_caller]
    pub fn erase_except(self, left: &impl Hash) {
        if crate::is_explored() {
            self.forget(digest(left), Location::caller());
        }
    }

    fn forget(self, left: u64, at: &'static Location<'static>) {
        let place = mix((at.file().len() as u64) << 32 | u64::from(at.line()), at.column().into());
        let holds = try_look(|model| {
            let forgets = model.forgets;
            let thread = &mut model.threads[model.current];
            if forgets {
                thread.seen = mix(mix(self.seen, left), mix(place, 7));
            }
            thread.holds
        });
        assert!(
            holds.is_none_or(|holds| holds == self.holds) || std::thread::panicking(),
            "what is forgotten at {at} is in hand by a lock"
        );
    }
}

/// Runs `f`, and has an explorer forget what the thread has found in it, but for what it returns: whatever that
/// was, the thread goes on in the same way. What `f` has written is told where it has written it.
///
/// ```
/// use lockdep::{Domain, Mutex, OnReport, enter, without_history, lock_classes};
///
/// lock_classes! {
///     leaf Items = "items";
/// }
///
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     let items = Mutex::<Items, _>::new(vec![3, 1, 2]);
///     // Which items there were is forgotten, but for whether there were any.
///     let is_empty = without_history(|| items.lock_leaf(cx).is_empty());
///     assert!(!is_empty);
/// });
/// ```
#[track_caller]
pub fn without_history<R: Hash>(f: impl FnOnce() -> R) -> R {
    let since = HistoryMark::now();
    let result = f();
    since.erase_except(&result);
    result
}

/// Waits for a notification, letting go of the lock meanwhile; with `timed`, or until the scheduler says
/// that the time is up. Whether it was that.
pub(crate) fn wait(
    condvar: u32,
    lock: u32,
    timed: bool,
    wrote: Wrote,
    since: Option<HistoryMark>,
    at: &'static Location<'static>,
) -> bool {
    act(|model, me, changes| {
        model.happen(me, condvar, OpKind::Wait, at, 0);
        model.objects[condvar as usize].waiters.push(me);
        model.threads[me].then = Some(lock);
        model.threads[me].waits_on = Some(condvar);
        model.threads[me].expired = false;
        let kind = if timed { OpKind::Expire } else { OpKind::Wait };
        model.threads[me].pending = model.op(kind, condvar, at);
        if timed {
            model.arm(me);
        } else {
            changes.disable(model, me);
        }
    });
    release(lock, false, wrote);
    if let Some(since) = since {
        since.forget(0, at);
    }
    point();
    // Notified, with the lock to be had; or out of time.
    let expired = act(|model, me, changes| {
        let expired = model.threads[me].timer != 0;
        if expired {
            model.fired += 1;
            model.threads[me].timer = 0;
            model.threads[me].then = None;
            model.threads[me].waits_on = None;
            model.objects[condvar as usize].waiters.retain(|waiter| *waiter != me);
            model.happen(me, condvar, OpKind::Expire, at, 0);
        } else {
            model.take(me, lock, OpKind::Acquire, changes);
            model.happen(me, lock, OpKind::Acquire, at, 0);
        }
        expired
    });
    if expired {
        acquire(lock, false, at);
    }
    expired
}

/// Wakes one waiter, the one that came first, or all of them.
pub(crate) fn notify(condvar: u32, all: bool, at: &'static Location<'static>) {
    if std::thread::panicking() {
        return;
    }
    if !all {
        announce(OpKind::Notify, condvar, at);
    }
    act(|model, me, changes| {
        model.happen(me, condvar, OpKind::Notify, at, 0);
        let waiters = &mut model.objects[condvar as usize].waiters;
        let count = if all { waiters.len() } else { waiters.len().min(1) };
        let woken: Vec<usize> = waiters.drain(..count).collect();
        for thread in woken {
            let lock = model.threads[thread].then.take().expect("who waits let go of a lock");
            model.threads[thread].timer = 0;
            model.threads[thread].waits_on = None;
            // Who has woken it is no part of what it is about to do.
            let waits_at = model.threads[thread].pending.at;
            model.threads[thread].pending = model.op(OpKind::Acquire, lock, waits_at);
            model.objects[lock as usize].wanted.push(thread);
            if model.can_take(lock, OpKind::Acquire) {
                changes.enable(model, thread);
            } else {
                let id = model.objects[lock as usize].id;
                model.touched.push(Touch { thread: me, object: id, reads: false });
                changes.disable(model, thread);
            }
        }
    });
}

/// Waits until the scheduler says that the time is up.
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

/// A number for which thread it is, the same in every schedule.
pub(crate) fn thread_name(thread: usize) -> u64 {
    try_look(|model| model.threads.get(thread).map(|thread| thread.id)).flatten().unwrap_or_default()
}

/// A number for which thread runs.
pub(crate) fn me() -> u64 {
    look(|model| model.threads[model.current].id)
}

/// Starts a thread; its number.
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
    // Shuttle lets its scheduler choose before it makes the task: this is the operation's point.
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

/// Runs the body of the current thread, and its end.
pub(crate) fn live(f: impl FnOnce()) {
    if let Err(panic) = crate::explore::caught(f) {
        note("violation", || panic.clone());
        look(|model| model.stop(Halt::Panic(panic)));
    }
    let mut changes = Changes::default();
    let halted = look(|model| {
        let me = model.current;
        model.threads[me].finished = true;
        // Shuttle sees by itself that this one has ended.
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
    changes.tell();
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

/// What runs from here on is, or is not, what an exploration is about: if not, it has one order, the plain
/// one. Without [`Explore::focused`] everything is what it is about.
pub fn focus(on: bool) {
    if crate::is_explored() {
        try_look(|model| model.plain = model.focused && !on);
    }
}

/// Whether what happens here and now is kept, to be told.
pub fn is_recorded() -> bool {
    crate::is_explored() && try_look(|model| model.happenings.is_some()) == Some(true)
}

/// Notes something worth telling, if what happens is kept: of what kind, and in words.
///
/// A story of the crate `explore` knows the kinds `step` and `done` (a step begins, and has ended), `make` and `unmake` (a
/// resource), `state` (`name: state`), `fault` and `violation`.
pub fn note(kind: &'static str, text: impl FnOnce() -> String) {
    if !crate::is_explored() {
        return;
    }
    try_look(|model| {
        let me = model.current;
        model.record(me, || What::Note(kind, text()));
    });
}
