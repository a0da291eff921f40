//! Objects: their names, their contents, and the handles of the primitives that they represent.

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
    /// Threads that are about to take it, whether or not it is free.
    pub(super) wanted: Vec<usize>,
    /// Threads that wait for a notification, in the order in which they began to wait.
    pub(super) waiters: Vec<usize>,
    /// A number for its contents.
    pub(super) contents: u64,
    /// The place in the source where it was taken last.
    pub(super) at: &'static Location<'static>,
    /// Its role, if it is named after a role and not after the thread that made it.
    pub(super) role: Option<u64>,
    pub(super) gone: bool,
    /// The step in which it was last taken, and the index of this touch in [`Model::touched`].
    pub(super) taken: (usize, usize),
    /// It is a leaf lock that is held with interrupts on, so that a handler that waits for it may have interrupted its
    /// holder.
    pub(super) is_interruptible_leaf: bool,
    /// It is a lock that is held with interrupts off.
    pub(super) has_interrupts_off: bool,
    /// A thread may try it: releasing it is an operation of its own.
    pub(super) may_be_tried: bool,
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
        let contents = mix(key, thread.seen);
        let object = Object {
            id: intern(key),
            key,
            label,
            owner: None,
            readers: 0,
            wanted: Vec::new(),
            waiters: Vec::new(),
            contents,
            at,
            role: None,
            gone: false,
            taken: (usize::MAX, 0),
            is_interruptible_leaf: false,
            has_interrupts_off: false,
            may_be_tried: false,
        };
        self.contents = self.contents.wrapping_add(mix(key, contents));
        self.objects.push(object);
        (self.objects.len() - 1) as u32
    }

    /// Names an object that was just made after its role, and not after the thread that made it.
    pub(super) fn set_role(&mut self, me: usize, object: u32, role: u64) {
        self.threads[me].created -= 1;
        // Several may exist at once, if one is replaced that other threads still use.
        let key = (0..).map(|place| mix(mix(role, 8), place)).find(|key| !self.roles.contains(key)).unwrap_or(role);
        self.roles.insert(key);
        let o = &mut self.objects[object as usize];
        let before = mix(o.key, o.contents);
        (o.key, o.id, o.role) = (key, intern(key), Some(role));
        self.contents = self.contents.wrapping_sub(before).wrapping_add(mix(o.key, o.contents));
        self.touch_role(me, role);
    }

    /// Touches the role. Which place an object gets depends on the other objects of its role, so making and dropping them
    /// depend on each other.
    pub(super) fn touch_role(&mut self, me: usize, role: u64) {
        self.touched.push(Touch { thread: me, object: intern(mix(role, 9)), reads: false });
    }

    /// Drops an object. Its contents are no part of the state from here on.
    pub(super) fn drop_object(&mut self, object: u32) {
        let Some(o) = self.objects.get_mut(object as usize) else { return };
        if std::mem::replace(&mut o.gone, true) {
            return;
        }
        self.contents = self.contents.wrapping_sub(mix(o.key, o.contents));
        if let Some(role) = o.role {
            self.roles.remove(&o.key);
            self.touch_role(self.current, role);
        }
    }

    pub(super) fn op(&self, kind: OpKind, object: u32, at: &'static Location<'static>) -> Op {
        let object = &self.objects[object as usize];
        Op { kind, object: object.id, label: object.label, at, done: false }
    }

    /// Does the operation of a thread. `outcome`: for a try, whether it succeeded.
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
            OpKind::Acquire | OpKind::AcquireShared | OpKind::Read | OpKind::Write => o.contents,
            OpKind::Try if outcome != 0 => o.contents,
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

    /// Notes that the object was written. Its contents are a value, or follow from what the thread has seen.
    pub(super) fn wrote(&mut self, me: usize, object: u32, value: Option<u64>) {
        let seen = self.threads[me].seen;
        let Some(o) = self.objects.get_mut(object as usize) else { return };
        let before = mix(o.key, o.contents);
        o.contents = value.map_or(mix(seen, 4), |value| mix(value, 5));
        self.contents = self.contents.wrapping_sub(before).wrapping_add(mix(o.key, o.contents));
    }
}

/// A primitive's object in the model, if it was made in an exploration. The object exists for as long as this lives.
#[derive(Debug)]
pub(crate) struct Handle(Option<(u32, u64)>);

impl Handle {
    /// Makes an object. Its name is the thread that made it and a serial number.
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

    /// Returns the object's index. `None`: it was not made in an exploration.
    #[inline]
    pub fn get(&self) -> Option<u32> {
        self.0.map(|(object, _)| object)
    }

    /// Names the object after a role. The caller has just made it.
    pub fn set_role(&self, role: &impl Hash) {
        if let Some(object) = self.get() {
            let role = digest(role);
            act(|model, me, _| model.set_role(me, object, role));
        }
    }

    /// Sets its first contents.
    pub fn starts_as(&self, value: impl FnOnce() -> u64) {
        if let Some(object) = self.get() {
            let value = value();
            act(|model, me, _| model.wrote(me, object, Some(value)));
        }
    }

    /// Returns a number for which object it is.
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

/// Stops before a read or write of an atomic, and does it.
pub(crate) fn access(object: u32, kind: OpKind, at: &'static Location<'static>) {
    announce(kind, object, at);
    act(|model, me, _| model.happen(me, object, kind, at, 0));
}

/// Sets the contents of the atomic that was just written.
pub(crate) fn wrote(object: u32, value: u64) {
    act(|model, me, _| model.wrote(me, object, Some(value)));
}
