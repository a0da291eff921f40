//! The token a thread carries: where in the order it stands.

use std::marker::PhantomData;
use std::panic::Location;

use crate::LockBefore;
use crate::class::MayWait;
use crate::report::ReportKind;
use crate::task::Task;

/// The root of every order: nothing is held.
#[derive(Debug)]
pub enum Unlocked {}
impl MayWait for Unlocked {}

/// The place of a section in which nothing may wait and nothing may use the general allocator, such
/// as a notifier that runs in interrupt context. No class stands after it; only
/// [leaf](crate::Leaf) locks can be taken there, as the kernel allows spin locks.
#[derive(Debug)]
pub enum AtomicContext {}

/// A place where only [leaf](crate::Leaf) locks can be taken, though waiting is allowed.
#[derive(Debug)]
pub enum LeafOnly {}
impl MayWait for LeafOnly {}

/// Proof of where in the lock order the current thread stands: `L` is the innermost class it holds.
///
/// A token is handed down as `&mut`; taking a lock borrows it for as long as the lock is held, so
/// while an inner lock is held the outer token cannot be used. A function that needs a lock to be
/// held asks for the guarded data; one that must not be called under some lock asks for a token that
/// stands before it.
pub struct Locked<'t, L> {
    pub(crate) task: &'t Task,
    level: PhantomData<fn() -> L>,
}

impl<'t, L> Locked<'t, L> {
    pub(crate) fn at(task: &'t Task) -> Self {
        Self { task, level: PhantomData }
    }

    /// The same thread, standing at a place that is no lock's. What is called with the result can take
    /// only what may be taken under `M`: the way to promise a callback's reach by its type.
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

    /// The same thread, with only leaf locks in reach: for questions asked from several places.
    pub fn leaf_only(&mut self) -> Locked<'_, LeafOnly> {
        Locked::at(self.task)
    }

    /// The same thread, standing wherever the caller says, whatever it holds: for planting, in spite of the
    /// types, a bug that they reject, so that it can be seen what else would find it. There only in builds
    /// of mutants.
    #[cfg(feature = "mutant")]
    pub fn unchecked<M>(&self) -> Locked<'t, M> {
        Locked::at(self.task)
    }

    /// Runs `section` as an atomic context: in it no lock that can block may be taken, nothing may
    /// wait, nothing may allocate with [`MayWait`]. The types say so to callers that hold only this
    /// token, the checker to everybody else.
    pub fn atomic<R>(&mut self, section: impl FnOnce(&mut Locked<'_, AtomicContext>) -> R) -> R {
        let _atomic = self.task.enter_atomic();
        section(&mut Locked::at(self.task))
    }

    /// Runs `section` as an interrupt handler would run: in an [atomic context](Self::atomic), wherever interrupts are not off,
    /// whatever the thread that it interrupts holds. So what it takes must be taken with interrupts off wherever else it is
    /// taken, or it would wait for the thread that it interrupts; the checker reports what is not.
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

    /// Runs `section` with interrupts off, which is an [atomic context](Self::atomic), too: what interrupts take may be taken
    /// there. It is a mark for the checker; nothing is switched off.
    pub fn interrupts_off<R>(&mut self, section: impl FnOnce(&mut Locked<'_, AtomicContext>) -> R) -> R {
        let _off = self.task.turn_interrupts_off();
        self.atomic(section)
    }

    /// The name of this thread, as given when it was spawned.
    pub fn thread_name(&self) -> &str {
        self.task.name()
    }

    /// Reports if waiting here is an error: called by everything that can block without being a
    /// lock, such as a call that talks to the outside.
    #[track_caller]
    pub fn might_wait(&self) {
        self.task.might_wait("waits", Location::caller());
    }

    /// Whether this thread is checked: what is needed only to state an invariant is worth computing.
    #[inline]
    pub fn is_checked(&self) -> bool {
        self.task.is_checked()
    }

    /// States what must hold at this step, and reports if it does not. Neither closure runs where
    /// nothing is checked, and neither can take a lock: the token is lent to this call.
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

    /// Whether what can fail here does, this time: `place` is its name. Nothing fails in a
    /// [`Domain`](crate::Domain) without an [`Oracle`](crate::Oracle).
    #[inline]
    pub fn fails(&self, place: impl FnOnce() -> String) -> bool {
        match self.task.domain().oracle() {
            None => false,
            Some(oracle) => {
                let place = place();
                let fails = oracle.fails(self.task.name(), &place);
                if oracle.is_particular(&place) {
                    self.learns(&fails);
                }
                fails
            }
        }
    }

    /// Tells an explorer what this thread has found, or left, in something that threads share in another
    /// way than by this crate's explored primitives. Whoever did so before or after is ordered with it.
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
