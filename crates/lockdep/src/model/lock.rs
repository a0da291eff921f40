//! Taking and releasing locks.

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

    /// Enables the threads that can take the lock now, and disables those that cannot.
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

/// Stops before taking a lock, and takes it once the scheduler grants it.
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

/// Allows threads to try a lock.
pub(crate) fn allow_try(object: u32) {
    look(|model| model.objects[object as usize].may_be_tried = true);
}

/// Stops before trying a lock. Returns whether the lock was taken.
pub(crate) fn try_acquire(object: u32, at: &'static Location<'static>) -> bool {
    let tried = look(|model| model.objects[object as usize].may_be_tried);
    assert!(tried, "a lock is tried at {at} that was made without `with_try_lock`");
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

/// Whether the contents were written, and the new contents if they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    No,
    Unknown,
    Value(u64),
}

/// Releases a lock. `wrote`: whether the contents were lent out for writing, and their digest if the lock has one.
pub(crate) fn release(object: u32, shared: bool, wrote: Wrote) {
    let is_recorded = stop_before_release(object);
    release_now(object, shared, wrote, is_recorded);
}

/// Releases a lock without a stop before it. `is_recorded`: there was a stop, so the release has been recorded.
pub(super) fn release_now(object: u32, shared: bool, wrote: Wrote, is_recorded: bool) {
    let mut changes = Changes::default();
    try_look(|model| {
        let me = model.current;
        if model.objects.len() <= object as usize {
            return;
        }
        model.note_held(me, object, false);
        let o = &mut model.objects[object as usize];
        let tried = o.may_be_tried;
        if shared {
            o.readers = o.readers.saturating_sub(1);
        } else {
            o.owner = None;
        }
        let (id, (step, at)) = (o.id, o.taken);
        let wrote = match wrote {
            // The contents are unchanged.
            Wrote::Value(value) if o.contents == mix(value, 5) => Wrote::No,
            wrote => wrote,
        };
        // A lock that is taken and released in one step, and not written, was only read.
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
    changes.apply();
}
