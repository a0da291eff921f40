//! Interrupts: handlers that run on top of a thread, which stands still meanwhile.
//!
//! The thread that raises an interrupt runs its handler. The handler runs on *some* processor, so on top of the thread
//! that this processor was running. Which thread that is makes a difference only if the handler waits for a lock that
//! the interrupted thread holds: in every other case the execution is also one in which the scheduler merely did not
//! choose that thread meanwhile. So the model does not choose the interrupted thread in advance. It notes, when a handler
//! begins, which threads the interrupt can have landed on: those that hold a leaf lock and have interrupts on. A
//! thread that takes a step ran on another processor, and is taken off the note. When the handler must wait for a lock of
//! a thread that is still on the note, the execution in which the interrupt landed there is a deadlock, and ends.
//!
//! An interrupt can land wherever a thread stops, which is before each operation that others can see. Between a
//! thread's operations nothing else can be distinguished, but for one place: *before it lets go of a lock*, where
//! no stop is needed otherwise. A handler may wait only for leaf locks. So a thread with interrupts on stops there,
//! before it lets go of a leaf lock,
//!
//! * while another thread is about to raise an interrupt, or
//! * if it has done something else that others can see while it held the lock, such as to write an atomic: this may be
//!   what makes a device raise its interrupt.
//!
//! In all other cases whatever another thread does until it raises the interrupt is independent of the lock having been
//! taken, so it can be done before that, and then the first case applies.
//!
//! For the reductions of a search, all this is one [object](ObjectId::INTERRUPTS). The steps of a handler, the raising of
//! its interrupt, and the step before that write it. A step reads it if it begins with such a lock held, takes one, or
//! releases one, with interrupts on. So no reduction changes the order of the two. Other steps have no influence on
//! interrupts, and interrupts have none on them.

use std::panic::Location;

use super::point::{act, announce, point};
use super::{Halt, Model, ObjectId, Op, OpKind, Touch, look, try_look};

/// A handler that runs.
#[derive(Debug)]
pub(super) struct Handler {
    /// The threads that the interrupt can have landed on. None of them has taken a step since.
    pub(super) interruptible: Vec<usize>,
}

impl Model {
    /// Touches the state on which interrupts depend.
    fn touch_interrupts(&mut self, me: usize, reads: bool) {
        self.touched.push(Touch { thread: me, object: ObjectId::INTERRUPTS, reads });
    }

    /// Returns whether an interrupt that landed on this thread could keep it from releasing a lock for which the handler
    /// may wait.
    fn is_interruptible(&self, thread: usize) -> bool {
        let t = &self.threads[thread];
        t.leaves > 0 && t.interrupts_off == 0
    }

    /// Notes, for handlers, that the thread takes a step.
    pub(super) fn note_step_for_handlers(&mut self, me: usize) {
        if self.is_interruptible(me) {
            self.touch_interrupts(me, true);
        }
        if self.handlers == 0 {
            return;
        }
        for thread in &mut self.threads {
            thread.handlers.iter_mut().for_each(|handler| handler.interruptible.retain(|other| *other != me));
        }
        if !self.threads[me].handlers.is_empty() {
            self.touch_interrupts(me, false);
        }
    }

    /// The thread that holds the lock, if the running thread is a handler that can have landed on it.
    fn interrupted_holder(&self, object: u32) -> Option<usize> {
        let holder = self.objects.get(object as usize)?.owner?;
        let handlers = &self.threads[self.current].handlers;
        handlers.iter().any(|handler| handler.interruptible.contains(&holder)).then_some(holder)
    }

    /// The thread has done something that others can see.
    pub(super) fn note_act(&mut self, me: usize) {
        let thread = &mut self.threads[me];
        thread.has_acted = thread.leaves > 0;
    }

    /// The thread has taken a lock, or lets go of one.
    pub(super) fn note_held(&mut self, me: usize, object: u32, is_taken: bool) {
        let (o, thread) = (&self.objects[object as usize], &mut self.threads[me]);
        let change = |count: &mut u32| *count = if is_taken { *count + 1 } else { count.saturating_sub(1) };
        if o.has_interrupts_off {
            change(&mut thread.interrupts_off);
        }
        if o.is_interruptible_leaf {
            change(&mut thread.leaves);
            thread.has_acted &= thread.leaves > 1;
        }
        change(&mut thread.holds);
        if is_taken && self.is_interruptible(me) {
            self.touch_interrupts(me, true);
        }
    }

    /// Ends the execution if the lock is held by the thread that the running handler has interrupted.
    pub(super) fn stop_if_interrupted(&mut self, object: u32, at: &'static Location<'static>) {
        let Some(holder) = self.interrupted_holder(object) else { return };
        let name = |thread: usize| &self.threads[thread].name;
        let (lock, interrupted) = (self.objects[object as usize].label, self.threads[holder].pending.at);
        let text = format!(
            "{} waits for {lock}, which {} holds, at {}:{}; {} was interrupted by {} before {}:{}, and goes on only \
             when the interrupt handler has returned",
            name(self.current),
            name(holder),
            at.file(),
            at.line(),
            name(holder),
            name(self.current),
            interrupted.file(),
            interrupted.line(),
        );
        self.stop(Halt::Deadlock(text));
    }

    /// A number for what handlers there are, and on which threads their interrupts can have landed.
    pub(super) fn handlers_state(&self) -> u64 {
        let mut state = 0_u64;
        for thread in self.threads.iter().filter(|_| self.handlers > 0) {
            for (depth, handler) in thread.handlers.iter().enumerate() {
                let of = super::mix(thread.id, depth as u64 + 11);
                let threads = handler.interruptible.iter().map(|other| super::mix(of, self.threads[*other].id));
                state = threads.fold(state.wrapping_add(of), u64::wrapping_add);
            }
        }
        state
    }

    /// Whether a thread stops before it lets go of this lock, so that others can come before: see the head of this file.
    fn stops_before_release(&self, object: u32) -> bool {
        let Some(o) = self.objects.get(object as usize) else { return false };
        let me = &self.threads[self.current];
        o.may_be_tried || o.is_interruptible_leaf && me.interrupts_off == 0 && (self.raising > 0 || me.has_acted)
    }
}

/// Whether the running handler would wait for ever for this lock, as the thread that it has interrupted holds it.
pub(crate) fn is_held_by_interrupted(object: u32) -> bool {
    try_look(|model| model.interrupted_holder(object).is_some()) == Some(true)
}

/// The running thread raises an interrupt, and is its handler from then on.
pub(crate) fn begin_handler(at: &'static Location<'static>) {
    act(|model, me, _| {
        let object = model.threads[me].life;
        model.threads[me].pending = Op { kind: OpKind::Interrupt, object, label: "interrupt", at, done: false };
        model.raising += 1;
        model.touch_interrupts(me, false);
    });
    point();
    act(|model, me, _| {
        model.raising -= 1;
        model.life(me, me, OpKind::Interrupt, at);
        model.touch_interrupts(me, false);
        let others = (0..model.threads.len()).filter(|thread| *thread != me);
        let interruptible = others.filter(|thread| model.is_interruptible(*thread)).collect();
        model.threads[me].handlers.push(Handler { interruptible });
        model.threads[me].interrupts_off += 1;
        model.handlers += 1;
    });
}

/// The handler of the running thread returns.
pub(crate) fn end_handler() {
    try_look(|model| {
        let me = model.current;
        let ended = model.threads[me].handlers.pop().is_some();
        model.handlers -= usize::from(ended);
        model.threads[me].interrupts_off -= u32::from(ended);
    });
}

/// The running thread begins or ends a section with interrupts off.
pub(crate) fn set_interrupts_off(off: bool) {
    try_look(|model| {
        let depth = &mut model.threads[model.current].interrupts_off;
        *depth = if off { *depth + 1 } else { depth.saturating_sub(1) };
    });
}

/// Stops before a lock is let go of, if others can see when that is; whether it did.
pub(super) fn stop_before_release(object: u32) -> bool {
    if std::thread::panicking() || try_look(|model| model.stops_before_release(object)) != Some(true) {
        return false;
    }
    let at = look(|model| model.objects[object as usize].at);
    announce(OpKind::Release, object, at);
    act(|model, me, _| model.happen(me, object, OpKind::Release, at, 0));
    true
}
