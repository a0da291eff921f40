//! The checker's knowledge of one thread: its name and the locks that it holds.
//!
//! A task lives on the stack of its thread and is reached through the [`Locked`](crate::Locked) token, and never through
//! a thread-local variable, because explored threads share one OS thread.

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::sync::Arc;

use crate::class::ClassKey;
use crate::domain::Domain;
use crate::model;
use crate::report::ReportKind;

/// A lock as the checker identifies it: by its address while it is held.
pub(crate) type Instance = usize;

#[derive(Clone, Copy)]
pub(crate) struct Held {
    pub class: &'static ClassKey,
    pub instance: Instance,
    pub rank: u32,
    pub at: &'static Location<'static>,
}

/// How a lock is being taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acquire {
    /// The thread waits for it. This shows an order.
    Wait,
    /// The thread only tries it. This shows no order, but locks taken under it still come after it.
    Try,
    /// The thread waits for it as a subclass that is declared as nested in the given class.
    Nested(&'static ClassKey),
}

pub(crate) struct Task {
    name: String,
    domain: Arc<Domain>,
    checked: bool,
    held: RefCell<Vec<Held>>,
    atomic: Cell<u32>,
    /// How many interrupt handlers the thread is in, and how many sections with interrupts off.
    interrupts: Cell<[u32; 2]>,
}

impl Task {
    pub fn new(name: String, domain: Arc<Domain>) -> Self {
        let checked = domain.is_checked() || crate::is_explored();
        Self {
            name,
            domain,
            checked,
            held: RefCell::new(Vec::new()),
            atomic: Cell::new(0),
            interrupts: Cell::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// Returns whether this thread's locks are checked. If not, taking one does nothing here.
    #[inline]
    pub fn is_checked(&self) -> bool {
        self.checked
    }

    /// Returns the task, if its locks are checked.
    #[inline]
    pub fn if_checked(&self) -> Option<&Self> {
        self.checked.then_some(self)
    }

    /// Checks that the lock may be taken here. It is called before the lock is taken, so that a deadlock is reported before
    /// it happens.
    pub fn check(
        &self,
        class: &'static ClassKey,
        instance: Instance,
        rank: u32,
        how: Acquire,
        at: &'static Location<'static>,
    ) {
        if !self.checked {
            return;
        }
        let taking = Held { class, instance, rank, at };
        let held = self.held.borrow();
        if self.atomic.get() > 0 && !class.is_leaf() && how != Acquire::Try {
            self.domain.report(ReportKind::WaitInAtomic { what: "takes a lock" }, self, Some(taking), &held);
        }
        for outer in held.iter() {
            if outer.instance == instance {
                if how == Acquire::Try {
                    return; // the try fails
                }
                self.domain.report(ReportKind::Recursion, self, Some(taking), &held);
            } else if outer.class.is_leaf() {
                self.domain.report(ReportKind::UnderLeaf, self, Some(taking), &held);
            } else if outer.class == class && how != Acquire::Try {
                self.domain.report(ReportKind::SameClass, self, Some(taking), &held);
            } else if let Acquire::Nested(parent) = how
                && outer.class == parent
                && outer.rank >= rank
            {
                self.domain.report(ReportKind::NestingRank, self, Some(taking), &held);
            }
        }
        self.check_interrupts(taking, how, &held);
        if how != Acquire::Try {
            self.domain.order(self, taking, &held);
        }
    }

    /// Records that the lock is held, until the record is [dropped](Recorded).
    pub fn record(&self, class: &'static ClassKey, instance: Instance, rank: u32, at: &'static Location<'static>) {
        self.held.borrow_mut().push(Held { class, instance, rank, at });
    }

    fn release(&self, instance: Instance) {
        let mut held = self.held.borrow_mut();
        if let Some(at) = held.iter().rposition(|h| h.instance == instance) {
            held.remove(at);
        }
    }

    /// Notes whether an interrupt handler takes the lock, and whether it is taken with interrupts on.
    fn check_interrupts(&self, taking: Held, how: Acquire, held: &[Held]) {
        let [handlers, off] = self.interrupts.get();
        // A handler that only tries does not wait for the thread that it has interrupted.
        let by_interrupt = handlers > 0 && how != Acquire::Try;
        let is_off = handlers + off > 0 || taking.class.has_interrupts_off();
        if by_interrupt || !is_off {
            self.domain.interrupts(self, taking, by_interrupt, held);
        }
    }

    /// Returns whether the thread runs an interrupt handler.
    pub fn is_in_handler(&self) -> bool {
        self.interrupts.get()[0] > 0
    }

    /// Begins an interrupt handler. To an explorer the interrupt arrives here, or later.
    pub fn enter_interrupt(&self, at: &'static Location<'static>) -> InterruptSection<'_> {
        let explored = crate::is_explored().then_some(model::end_handler as fn());
        if explored.is_some() {
            model::begin_handler(at);
        }
        InterruptSection::of(self, 0, explored)
    }

    /// Begins a section with interrupts off.
    pub fn turn_interrupts_off(&self) -> InterruptSection<'_> {
        let explored = crate::is_explored().then_some((|| model::set_interrupts_off(false)) as fn());
        if explored.is_some() {
            model::set_interrupts_off(true);
        }
        InterruptSection::of(self, 1, explored)
    }

    pub fn enter_atomic(&self) -> AtomicSection<'_> {
        self.atomic.set(self.atomic.get() + 1);
        AtomicSection(self)
    }

    /// Reports if the thread may not wait here.
    #[inline]
    pub fn might_wait(&self, what: &'static str, at: &'static Location<'static>) {
        if self.checked && self.atomic.get() > 0 {
            let held = self.held.borrow();
            self.domain.report(ReportKind::WaitInAtomicAt { what, at }, self, None, &held);
        }
    }

    /// Checks a wait that releases one lock. The wait takes this lock again when it ends, under all other locks that the
    /// thread holds. A lock that was taken after it would then be held before it.
    pub fn check_wait(&self, instance: Instance, at: &'static Location<'static>) {
        if !self.checked {
            return;
        }
        self.might_wait("waits for a condition", at);
        let held = self.held.borrow();
        let Some(place) = held.iter().rposition(|h| h.instance == instance) else {
            return;
        };
        if place + 1 == held.len() {
            return;
        }
        let taking = Held { at, ..held[place] };
        let mut others = held.clone();
        others.remove(place);
        if others[place..].iter().any(|h| h.class.is_leaf()) {
            self.domain.report(ReportKind::UnderLeaf, self, Some(taking), &others);
        }
        self.domain.order(self, taking, &others);
    }

    /// Reports if the lock is not held.
    pub fn assert_holds(&self, instance: Instance, class: &'static ClassKey, at: &'static Location<'static>) {
        if !self.checked {
            return;
        }
        let held = self.held.borrow();
        if !held.iter().any(|h| h.instance == instance) {
            self.domain.report(ReportKind::NotHeld { class: class.name(), at }, self, None, &held);
        }
    }

    /// Reports if any lock is held.
    pub fn assert_holds_nothing(&self, at: &'static Location<'static>) {
        if !self.checked {
            return;
        }
        let held = self.held.borrow();
        if !held.is_empty() {
            self.domain.report(ReportKind::StillHeld { at }, self, None, &held);
        }
    }
}

/// The record of one held lock, which is removed when this is dropped.
pub(crate) struct Recorded<'t> {
    pub task: &'t Task,
    pub instance: Instance,
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        self.task.release(self.instance);
    }
}

pub(crate) struct AtomicSection<'t>(&'t Task);

impl Drop for AtomicSection<'_> {
    fn drop(&mut self) {
        self.0.atomic.set(self.0.atomic.get() - 1);
    }
}

/// The thread is in an interrupt handler, or in a section with interrupts off, for as long as this lives.
pub(crate) struct InterruptSection<'t> {
    task: &'t Task,
    before: [u32; 2],
    /// Explored, what ends the section in the model.
    explored: Option<fn()>,
}

impl<'t> InterruptSection<'t> {
    fn of(task: &'t Task, which: usize, explored: Option<fn()>) -> Self {
        let before = task.interrupts.get();
        let mut now = before;
        now[which] += 1;
        task.interrupts.set(now);
        Self { task, before, explored }
    }
}

impl Drop for InterruptSection<'_> {
    fn drop(&mut self) {
        self.task.interrupts.set(self.before);
        if let Some(end) = self.explored {
            end();
        }
    }
}
