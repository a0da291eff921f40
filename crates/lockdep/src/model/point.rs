//! The stops, at which a scheduler chooses.

use std::panic::Location;

use shuttle_engine::runtime::execution::ExecutionState;
use shuttle_engine::runtime::task::TaskId;
use shuttle_engine::runtime::thread::switch;

use super::{BOUND, Halt, Model, OpKind, look};

/// The tasks of shuttle's that become runnable or cease to be. They are collected while the model is borrowed, and applied
/// afterwards.
#[derive(Default)]
pub(super) struct Changes(Vec<(usize, bool)>);

impl Changes {
    pub(super) fn enable(&mut self, model: &mut Model, thread: usize) {
        if model.enable(thread) {
            self.0.push((thread, true));
        }
    }

    pub(super) fn disable(&mut self, model: &mut Model, thread: usize) {
        if model.disable(thread) {
            self.0.push((thread, false));
        }
    }

    pub(super) fn apply(self) {
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
pub(super) fn act<R>(f: impl FnOnce(&mut Model, usize, &mut Changes) -> R) -> R {
    let mut changes = Changes::default();
    let result = look(|model| {
        let me = model.current;
        f(model, me, &mut changes)
    });
    changes.apply();
    result
}

/// Lets the scheduler choose. Returns when this thread is chosen and its next operation is possible.
pub(super) fn point() {
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
            // The schedule ends here. Shuttle asks the scheduler only if a thread can run.
            let _ = ExecutionState::try_with(|state| state.get_mut(TaskId::from(me)).unblock());
        }
        if !alone {
            switch();
        }
        let done = look(|model| {
            model.current = me;
            model.steps += 1;
            model.note_step_for_handlers(me);
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

/// Announces the running thread's next operation, and stops before it.
pub(super) fn announce(kind: OpKind, object: u32, at: &'static Location<'static>) {
    act(|model, me, _| model.threads[me].pending = model.op(kind, object, at));
    point();
}
