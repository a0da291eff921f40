//! A lock for the checker only: it stands for "waits until what runs in this queue has finished".
//!
//! The kernel's work queues have such lock maps (`struct lockdep_map`). A handler runs inside its queue's map, and draining
//! the queue takes the map. So draining with a lock held for which a handler waits is reported as a cycle, even
//! if no handler happened to be running.

use std::marker::PhantomData;
use std::panic::Location;

use crate::class::Class;
use crate::task::{Acquire, Recorded};
use crate::{LockBefore, Locked, Unlocked};

/// The map of one queue. `C` is its class in the order.
///
/// ```
/// use lockdep::{Domain, Mutex, OnReport, ReportKind, WaitMap, enter, lock_classes, lock_order};
///
/// lock_classes! {
///     class Queue = "queue";
///     class Device = "device";
///     class First = "first";
/// }
/// lock_order! { root First; First => Queue; Queue => Device; }
///
/// let domain = Domain::checked(OnReport::Keep);
/// let (queue, device, first) = (WaitMap::<Queue>::new(), Mutex::<Device, _>::new(()), Mutex::<First, _>::new(()));
/// enter(&domain, "worker", |cx| {
///     // A handler, which takes the device.
///     let (_inside, mut cx) = queue.run(cx);
///     drop(device.lock(&mut cx));
/// });
/// enter(&domain, "main", |cx| {
///     // To drain the queue with the device held is a deadlock, though no handler happens to run.
///     let (_device, mut cx) = device.lock(cx);
///     let (_first, mut cx) = first.try_lock(&mut cx).unwrap();
///     queue.drain(&mut cx);
/// });
/// assert!(matches!(domain.take_reports()[0].kind, ReportKind::Cycle { .. }));
/// ```
pub struct WaitMap<C> {
    // Not zero-sized: instances are distinguished by their addresses.
    _place: u8,
    class: PhantomData<fn() -> C>,
}

/// The thread is inside the map for as long as this lives.
pub struct WaitMapGuard<'a> {
    _recorded: Option<Recorded<'a>>,
}

impl<C: Class> Default for WaitMap<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Class> WaitMap<C> {
    /// Makes a map.
    pub fn new() -> Self {
        Self { _place: 0, class: PhantomData }
    }

    /// Enters the map: a handler starts. It must hold no lock. The returned token is at `C`.
    #[track_caller]
    pub fn run<'a>(&'a self, cx: &'a mut Locked<'_, Unlocked>) -> (WaitMapGuard<'a>, Locked<'a, C>) {
        let at = Location::caller();
        cx.task.assert_holds_nothing(at);
        let instance = self.instance();
        let _recorded = cx.task.if_checked().map(|task| {
            task.record(C::key(), instance, 0, at);
            Recorded { task, instance }
        });
        (WaitMapGuard { _recorded }, Locked::at(cx.task))
    }

    /// Checks that the thread may wait until what runs inside has finished. Call it before that wait.
    #[track_caller]
    pub fn drain<P>(&self, cx: &mut Locked<'_, P>)
    where
        P: LockBefore<C>,
    {
        let at = Location::caller();
        cx.task.check(C::key(), self.instance(), 0, Acquire::Wait, at);
    }

    fn instance(&self) -> usize {
        std::ptr::from_ref(&self._place).addr()
    }
}

impl<C> std::fmt::Debug for WaitMap<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WaitMap")
    }
}
