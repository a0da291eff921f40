//! Taking locks and letting go of them.

use std::panic::Location;

use super::digest::mix;
use super::interrupt::stop_before_release;
use super::point::{Changes, act, announce, point};
use super::{Model, OpKind, Touch, What, look, try_look};

impl Model {
    pub(super) fn can_take(&self, object: u32, kind: OpKind) -> bool {
        let o = &self.objects[object as usize];
        o.owner.is_none() && (kind == OpKind::AcquireShared || o.readers == 0)
    }

    /// Brings who wants the lock in line with who can have it.
    pub(super) fn settle(&mut self, object: u32, changes: &mut Changes) {
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

    pub(super) fn take(&mut self, me: usize, object: u32, kind: OpKind, changes: &mut Changes) {
        let o = &mut self.objects[object as usize];
        o.wanted.retain(|thread| *thread != me);
        if kind == OpKind::AcquireShared {
            o.readers += 1;
        } else {
            o.owner = Some(me);
        }
        self.note_held(me, object, true);
        self.settle(object, changes);
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
            model.stop_if_interrupted(object, at);
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
    let is_recorded = stop_before_release(object);
    let_go(object, shared, wrote, is_recorded);
}

/// Lets go of a lock, without a stop before it. `is_recorded`: there was one.
pub(super) fn let_go(object: u32, shared: bool, wrote: Wrote, is_recorded: bool) {
    let mut changes = Changes::default();
    try_look(|model| {
        let me = model.current;
        if model.objects.len() <= object as usize {
            return;
        }
        model.note_held(me, object, false);
        let o = &mut model.objects[object as usize];
        let tried = o.tried;
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
        if !is_recorded && model.happenings.is_some() {
            let op = model.op(OpKind::Release, object, model.objects[object as usize].at);
            model.record(me, || What::Op(op));
        }
    });
    changes.tell();
}
