//! Waiting for a notification, and notifying.

use std::panic::Location;

use super::history::HistoryMark;
use super::interrupt::stop_before_release;
use super::lock::{Wrote, acquire, release_now};
use super::point::{act, announce, point};
use super::{OpKind, Touch};

/// Releases the lock and waits for a notification, or, if `timed`, until the scheduler decides that the time has run out.
/// Returns whether the time has run out.
pub(crate) fn wait(
    condvar: u32,
    lock: u32,
    timed: bool,
    wrote: Wrote,
    since: Option<HistoryMark>,
    at: &'static Location<'static>,
) -> bool {
    let is_recorded = stop_before_release(lock);
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
    release_now(lock, false, wrote, is_recorded);
    if let Some(since) = since {
        since.forget(0, at);
    }
    point();
    // The thread was notified and can take the lock, or its time has run out.
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

/// Wakes one waiter, the one that has waited longest, or all of them.
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
            let lock = model.threads[thread].then.take().expect("a waiter has released a lock");
            if model.objects[lock as usize].owner != Some(me) {
                model.note_act(me);
            }
            model.threads[thread].timer = 0;
            model.threads[thread].waits_on = None;
            // Which thread has woken it is no part of its next operation.
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
