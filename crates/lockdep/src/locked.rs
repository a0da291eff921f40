//! The token that a thread carries: its place in the lock order.

use std::marker::PhantomData;
use std::panic::Location;

use crate::LockBefore;
use crate::class::MayWait;
use crate::report::ReportKind;
use crate::task::Task;

/// The root of every order: no lock is held.
#[derive(Debug)]
pub enum Unlocked {}
impl MayWait for Unlocked {}

/// The place of a section that may not wait and may not use the general allocator, such as a notifier that runs in
/// interrupt context. No class comes after it. Only [leaf](crate::Leaf) locks can be taken there, as the kernel allows
/// only spin locks.
#[derive(Debug)]
pub enum AtomicContext {}

/// A place where only [leaf](crate::Leaf) locks can be taken, but waiting is allowed.
#[derive(Debug)]
pub enum LeafOnly {}
impl MayWait for LeafOnly {}

/// The current thread's place in the lock order: `L` is the innermost class that it holds.
///
/// A token is passed down as `&mut`. Taking a lock borrows it for as long as the lock is held, so the outer token cannot
/// be used while an inner lock is held. A function that must be called with a lock held takes the guarded data as its
/// argument. A function that must not be called under some lock takes a token that comes before this lock.
pub struct Locked<'t, L> {
    pub(crate) task: &'t Task,
    level: PhantomData<fn() -> L>,
}

impl<'t, L> Locked<'t, L> {
    pub(crate) fn at(task: &'t Task) -> Self {
        Self { task, level: PhantomData }
    }

    /// Returns a token of the same thread at a [place](crate::Place) without a lock. A function that is called with it
    /// can take only locks that may be taken under `M`. So the type of a callback limits the locks it can take.
    ///
    /// ```
    /// use lockdep::{Domain, Locked, Mutex, OnReport, enter, lock_classes, lock_order};
    ///
    /// lock_classes! {
    ///     class Table = "table";
    ///     place Callback;
    ///     class Port = "port";
    /// }
    /// lock_order! { root Table; Table => Callback; Callback => Port; }
    ///
    /// /// It can take a port's lock, and not the table's, which its caller holds.
    /// type Unload = fn(&mut Locked<'_, Callback>);
    ///
    /// fn unload_all(cx: &mut Locked<'_, Table>, callbacks: &[Unload]) {
    ///     for unload in callbacks {
    ///         unload(&mut cx.narrow());
    ///     }
    /// }
    ///
    /// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
    ///     let table = Mutex::<Table, _>::new([(|cx| drop(Mutex::<Port, _>::new(()).lock(cx))) as Unload]);
    ///     let (callbacks, mut cx) = table.lock(cx);
    ///     unload_all(&mut cx, &*callbacks);
    /// });
    /// ```
    pub fn narrow<M: crate::Place>(&mut self) -> Locked<'_, M>
    where
        L: LockBefore<M>,
    {
        Locked::at(self.task)
    }

    /// Returns a token of the same thread with which only leaf locks can be taken: for a function that is called from
    /// several places in the order.
    pub fn leaf_only(&mut self) -> Locked<'_, LeafOnly> {
        Locked::at(self.task)
    }

    /// Returns a token of the same thread at any place, whatever the thread holds. It serves to plant a bug that the
    /// types reject, to see what else would find it. It exists only in builds of mutants.
    #[cfg(feature = "mutant")]
    pub fn unchecked<M>(&self) -> Locked<'t, M> {
        Locked::at(self.task)
    }

    /// Runs `section` as an atomic context. The section may not take a lock that can block, may not wait, and may not
    /// allocate with [`MayWait`]. The types enforce this for code that has only this token; the checker enforces it
    /// otherwise.
    ///
    /// ```
    /// use lockdep::{Domain, Mutex, OnReport, enter, lock_classes};
    ///
    /// lock_classes! {
    ///     leaf Counters = "counters";
    /// }
    ///
    /// let counters = Mutex::<Counters, _>::new(0);
    /// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
    ///     cx.atomic(|cx| *counters.lock_leaf(cx) += 1);
    ///     assert_eq!(*counters.lock_leaf(cx), 1);
    /// });
    /// ```
    pub fn atomic<R>(&mut self, section: impl FnOnce(&mut Locked<'_, AtomicContext>) -> R) -> R {
        let _atomic = self.task.enter_atomic();
        section(&mut Locked::at(self.task))
    }

    /// Raises an interrupt and runs `section` as its handler, in an [atomic context](Self::atomic). The interrupt may land
    /// on any thread that has interrupts on, whatever that thread holds. So every class that a handler takes must be
    /// taken with interrupts off everywhere else. Otherwise the handler could wait for the thread that it has
    /// interrupted, and both would wait for ever. The checker reports a class that is taken in both ways.
    ///
    /// Explored, the interrupt arrives at every point of every thread that has interrupts on. If the handler waits for a
    /// lock of the thread that it has interrupted, the execution ends as a [deadlock](crate::Halt::Deadlock).
    ///
    /// ```
    /// use lockdep::{Domain, Mutex, OnReport, ReportKind, enter, lock_classes};
    ///
    /// lock_classes! {
    ///     /// Taken with interrupts off, as `spin_lock_irqsave` does.
    ///     leaf irq Events = "events";
    ///     leaf Names = "names";
    /// }
    ///
    /// let domain = Domain::checked(OnReport::Keep);
    /// let (events, names) = (Mutex::<Events, _>::new(0), Mutex::<Names, _>::new(0));
    /// enter(&domain, "main", |cx| {
    ///     *events.lock_leaf(cx) += 1;
    ///     cx.interrupt(|cx| *events.lock_leaf(cx) += 1);
    ///     assert_eq!(domain.take_reports(), []);
    ///
    ///     *names.lock_leaf(cx) += 1;
    ///     cx.interrupt(|cx| *names.lock_leaf(cx) += 1);
    ///     assert!(matches!(domain.take_reports()[0].kind, ReportKind::Interrupted { .. }));
    /// });
    /// ```
    #[track_caller]
    pub fn interrupt<R>(&mut self, section: impl FnOnce(&mut Locked<'_, AtomicContext>) -> R) -> R {
        let _interrupt = self.task.enter_interrupt(Location::caller());
        self.atomic(section)
    }

    /// Runs `section` with interrupts off. It is an [atomic context](Self::atomic), too. The section may take locks that
    /// interrupt handlers take. This is a mark for the checker and the explorer; nothing is switched off.
    ///
    /// ```
    /// use lockdep::{Domain, Mutex, OnReport, enter, lock_classes};
    ///
    /// lock_classes! {
    ///     leaf Events = "events";
    /// }
    ///
    /// let events = Mutex::<Events, _>::new(0);
    /// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
    ///     cx.interrupts_off(|cx| *events.lock_leaf(cx) += 1);
    ///     cx.interrupt(|cx| *events.lock_leaf(cx) += 1);
    /// });
    /// ```
    pub fn interrupts_off<R>(&mut self, section: impl FnOnce(&mut Locked<'_, AtomicContext>) -> R) -> R {
        let _off = self.task.turn_interrupts_off();
        self.atomic(section)
    }

    /// Returns the name of this thread, as given when it was spawned.
    pub fn thread_name(&self) -> &str {
        self.task.name()
    }

    /// Reports an error if the thread may not wait here, like the kernel's `might_sleep`. Code that can block without
    /// taking a lock calls it, such as a request to the outside.
    #[track_caller]
    pub fn might_wait(&self) {
        self.task.might_wait("waits", Location::caller());
    }

    /// Returns whether this thread is checked. Code that only serves to state an invariant need not run if it is not.
    #[inline]
    pub fn is_checked(&self) -> bool {
        self.task.is_checked()
    }

    /// States an invariant that must hold at this step, and reports if it does not hold. Neither closure runs where nothing
    /// is checked. Neither can take a lock, because the token is lent to this call.
    ///
    /// ```
    /// use lockdep::{Domain, OnReport, enter};
    ///
    /// let domain = Domain::checked(OnReport::Keep);
    /// enter(&domain, "main", |cx| {
    ///     let loaded = [1, 2, 2];
    ///     cx.ensure("load-once", || loaded.is_sorted_by(|a, b| a < b), || format!("{loaded:?} are loaded"));
    /// });
    /// assert_eq!(domain.take_reports()[0].invariant(), "load-once");
    /// ```
    #[inline]
    #[track_caller]
    pub fn ensure(&self, invariant: &'static str, holds: impl FnOnce() -> bool, detail: impl FnOnce() -> String) {
        if self.is_checked() && !holds() {
            self.broken(invariant, detail(), Location::caller());
        }
    }

    #[cold]
    #[inline(never)]
    fn broken(&self, invariant: &'static str, detail: String, at: &'static Location<'static>) {
        self.task.domain().report(ReportKind::Broken { invariant, detail, at }, self.task, None, &[]);
    }

    /// Returns whether an operation that can fail shall fail this time. `place` returns the name of the operation. Nothing
    /// fails in a [`Domain`](crate::Domain) without an [`Oracle`](crate::Oracle), where there is an example.
    #[inline]
    pub fn fails(&self, place: impl FnOnce() -> String) -> bool {
        match self.task.domain().oracle() {
            None => false,
            Some(oracle) => {
                let place = place();
                let fails = oracle.fails(self.task.name(), &place);
                if oracle.depends_on_order(&place) {
                    self.learns(&fails);
                }
                fails
            }
        }
    }

    /// Reports to an explorer what this thread has found in, or written to, state that threads share by other means than
    /// this crate's explored primitives. The explorer then explores the order of all threads that call this.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// use lockdep::{Domain, Locked, Unlocked, enter};
    ///
    /// /// A ticket from a counter of the standard library, which no explorer sees.
    /// fn ticket(cx: &Locked<'_, Unlocked>, counter: &AtomicU64) -> u64 {
    ///     let ticket = counter.fetch_add(1, Ordering::SeqCst);
    ///     lockdep::tell(&"tickets", &(ticket + 1));
    ///     cx.learns(&ticket);
    ///     ticket
    /// }
    ///
    /// let counter = AtomicU64::new(7);
    /// enter(&Domain::unchecked(), "main", |cx| assert_eq!(ticket(cx, &counter), 7));
    /// ```
    #[inline]
    pub fn learns(&self, what: &impl std::hash::Hash) {
        if crate::is_explored() {
            crate::model::learns(crate::model::digest(what));
        }
    }
}

impl<L> std::fmt::Debug for Locked<'_, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Locked").field("thread", &self.task.name()).finish_non_exhaustive()
    }
}
