//! Objects: what they are called, what they hold, and the handle by which a primitive is one.

use std::hash::Hash;
use std::panic::Location;

use super::digest::{digest, mix};
use super::point::{act, announce};
use super::{Model, NAMES, ObjectId, Op, OpKind, Touch, What, try_look};
use crate::class::ClassKey;

#[derive(Debug)]
pub(super) struct Object {
    pub(super) id: ObjectId,
    pub(super) key: u64,
    pub(super) label: &'static str,
    pub(super) owner: Option<usize>,
    pub(super) readers: u32,
    /// Threads about to take it that are held up, or would be.
    pub(super) wanted: Vec<usize>,
    /// Threads waiting for a notification, in the order in which they came.
    pub(super) waiters: Vec<usize>,
    /// What it holds.
    pub(super) holds: u64,
    /// Where in the source it was taken last.
    pub(super) at: &'static Location<'static>,
    /// It was made for a role rather than as the how manieth of its creator.
    pub(super) role: Option<u64>,
    pub(super) gone: bool,
    /// Where its last taking is among what was touched, and in which step that was.
    pub(super) taken: (usize, usize),
    /// It is a leaf lock that is held with interrupts on, so that a handler that waits for it may have interrupted its
    /// holder.
    pub(super) is_interruptible_leaf: bool,
    /// It is a lock that is held with interrupts off.
    pub(super) has_interrupts_off: bool,
    /// Some thread may try it: letting go of it is an operation of its own.
    pub(super) tried: bool,
}

pub(super) fn intern(key: u64) -> ObjectId {
    NAMES.with_borrow_mut(|names| {
        let next = u16::try_from(names.len()).unwrap_or(u16::MAX).min(u16::MAX - 1);
        ObjectId(*names.entry(key).or_insert(next))
    })
}

impl Model {
    pub(super) fn add_object(&mut self, me: usize, label: &'static str, at: &'static Location<'static>) -> u32 {
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
            is_interruptible_leaf: false,
            has_interrupts_off: false,
            tried: false,
        };
        self.held = self.held.wrapping_add(mix(key, holds));
        self.objects.push(object);
        (self.objects.len() - 1) as u32
    }

    /// The object that was just made is known by its role rather than by who has made it.
    pub(super) fn set_role(&mut self, me: usize, object: u32, role: u64) {
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
    pub(super) fn touch_role(&mut self, me: usize, role: u64) {
        self.touched.push(Touch { thread: me, object: intern(mix(role, 9)), reads: false });
    }

    /// The object is no more: what it held is no part of the state.
    pub(super) fn drop_object(&mut self, object: u32) {
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

    pub(super) fn op(&self, kind: OpKind, object: u32, at: &'static Location<'static>) -> Op {
        let object = &self.objects[object as usize];
        Op { kind, object: object.id, label: object.label, at, done: false }
    }

    /// The thread's operation happens.
    pub(super) fn happen(
        &mut self,
        me: usize,
        object: u32,
        kind: OpKind,
        at: &'static Location<'static>,
        outcome: u64,
    ) {
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
        let (key, is_interruptible_leaf) = (o.key, o.is_interruptible_leaf);
        self.touched.push(Touch { thread: me, object: o.id, reads });
        // Whether to notify is an act depends on who is woken by it, and a leaf lock's own operations are none.
        if kind != OpKind::Notify && !is_interruptible_leaf {
            self.note_act(me);
        }
        let thread = &mut self.threads[me];
        thread.ops += 1;
        thread.seen = mix(mix(thread.seen, mix(key, found)), kind as u64 | outcome << 8);
        if self.happenings.is_some() {
            let op = Op { done: kind != OpKind::Try || outcome != 0, ..self.op(kind, object, at) };
            self.record(me, || What::Op(op));
        }
    }

    /// The object was written: it holds a value, or what the thread has made of what it has seen.
    pub(super) fn wrote(&mut self, me: usize, object: u32, value: Option<u64>) {
        let seen = self.threads[me].seen;
        let Some(o) = self.objects.get_mut(object as usize) else { return };
        let before = mix(o.key, o.holds);
        o.holds = value.map_or(mix(seen, 4), |value| mix(value, 5));
        self.held = self.held.wrapping_sub(before).wrapping_add(mix(o.key, o.holds));
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

    /// Makes an object for a lock of a class.
    #[track_caller]
    pub fn of_lock(class: &'static ClassKey) -> Self {
        let handle = Self::new(class.name());
        if let Some(object) = handle.get() {
            act(|model, _, _| {
                let o = &mut model.objects[object as usize];
                o.has_interrupts_off = class.has_interrupts_off();
                o.is_interruptible_leaf = class.is_leaf() && !o.has_interrupts_off;
            });
        }
        handle
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

/// A read or write of an atomic is about to happen.
pub(crate) fn access(object: u32, kind: OpKind, at: &'static Location<'static>) {
    announce(kind, object, at);
    act(|model, me, _| model.happen(me, object, kind, at, 0));
}

/// The atomic that was just accessed holds this now.
pub(crate) fn wrote(object: u32, value: u64) {
    act(|model, me, _| model.wrote(me, object, Some(value)));
}
