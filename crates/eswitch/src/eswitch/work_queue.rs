//! The E-Switch's work queue and its generation.
//!
//! A work item has the generation in which it was queued. An item that is stale when its turn comes changes nothing.
//! Every operation that raises the generation, except teardown, marks the queue for a reconcile, which does the work of
//! the dropped items. Marks and retries have no generation, as they concern the present state.

use std::sync::Arc;

use lockdep::{AtomicU64, HistoryMark, LockBefore, Locked, MayWait, Unlocked, WaitMap};

use crate::device::Pf;
use crate::error::Result;
use crate::eswitch::stated::Stated;
use crate::event::Event;
use crate::ids::PfIndex;
use crate::lock_order::WorkQueue as WorkQueueClass;
use crate::queue::{Next, Queue};

/// A work item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// Ops were registered: loads what should now be loaded.
    LoadReps,
    /// The host of a DPU changed its functions.
    HostFunctions,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::LoadReps => "load representors",
            Self::HostFunctions => "host functions changed",
        }
    }
}

/// The mark that requests a reconcile.
const RECONCILE: u8 = 1;

/// The queue.
pub(crate) struct WorkQueue {
    queue: Queue<(Work, u64)>,
    generation: AtomicU64,
    map: WaitMap<WorkQueueClass>,
    stated: Arc<Stated>,
}

impl WorkQueue {
    pub fn new(pf: PfIndex, stated: Arc<Stated>) -> Self {
        let queue = Queue::new(format!("pf{} work", pf.0));
        Self { queue, generation: AtomicU64::new(0), map: WaitMap::new(), stated }
    }

    /// Queues work. May wait and allocate.
    ///
    /// # Errors
    /// There is no memory for the item.
    pub fn queue<L: MayWait>(&self, cx: &mut Locked<'_, L>, work: Work) -> Result<()> {
        self.queue.push(cx, (work, self.generation.load()))
    }

    /// Queues work. If that fails, marks the queue for a reconcile, which has the same effect.
    pub fn queue_or_mark<L: MayWait>(&self, cx: &mut Locked<'_, L>, work: Work) {
        if self.queue(cx, work).is_err() {
            self.mark_reconcile(cx);
        }
    }

    /// Queues work in a context that must not wait or allocate.
    ///
    /// # Errors
    /// There is no memory for the item. The queue has been marked for a reconcile.
    pub fn queue_atomic<L>(&self, cx: &mut Locked<'_, L>, work: Work) -> Result<()> {
        self.queue.push_atomic(cx, (work, self.generation.load()), RECONCILE)
    }

    /// Marks the queue for a reconcile. Cannot fail.
    pub fn mark_reconcile<L>(&self, cx: &mut Locked<'_, L>) {
        self.queue.mark(cx, RECONCILE);
    }

    /// Makes all queued work stale. The caller then wakes the waiters of the devlink lock.
    fn raise_generation<L>(&self, cx: &Locked<'_, L>) {
        self.generation.fetch_add(1);
        self.stated.note_generation(cx);
    }

    /// The queue itself, for callers that wait for it or inspect it.
    pub fn inner(&self) -> &Queue<(Work, u64)> {
        &self.queue
    }

    /// Declares to the lock checker that the thread is about to wait for work of this queue.
    #[track_caller]
    pub fn about_to_drain<P: LockBefore<WorkQueueClass>>(&self, cx: &mut Locked<'_, P>) {
        self.map.drain(cx);
    }
}

impl Pf {
    /// Raises the generation, and wakes the handler if it waits for the devlink lock.
    pub(crate) fn raise_generation<L>(&self, cx: &mut Locked<'_, L>) {
        self.eswitch.work.raise_generation(cx);
        self.devlink.stir(cx);
    }

    /// Serves the queue until it is closed. This is the body of its thread.
    pub(crate) fn serve_work(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>) {
        let work = &self.eswitch.work;
        let since = HistoryMark::now();
        while let Some(next) = work.queue.next(cx, since) {
            let _change = self.shared.change();
            let (_inside, mut cx) = work.map.run(cx);
            match next {
                Next::Item((item, generation)) => self.do_work(&mut cx, item, generation),
                Next::Marks(_) | Next::Retry => self.do_reconcile(&mut cx),
            }
        }
    }

    /// Does work under the devlink lock. Work of an older generation is dropped: before the lock is taken, while
    /// waiting for it, and once it is held.
    fn do_work(self: &Arc<Self>, cx: &mut Locked<'_, WorkQueueClass>, work: Work, generation: u64) {
        let queue = &self.eswitch.work;
        let stale =
            |cx: &mut Locked<'_, lockdep::LeafOnly>| queue.generation.load() != generation || queue.queue.is_closed(cx);
        let done = self.devlink.with_unless(cx, stale, |state, cx| {
            queue.stated.ensure_fresh(cx, Some(generation));
            self.reconcile(state, cx);
        });
        if done.is_none() {
            self.shared.events.emit(cx, || Event::StaleWork(self.address(), work.name()));
        }
    }

    fn do_reconcile(self: &Arc<Self>, cx: &mut Locked<'_, WorkQueueClass>) {
        let closed = |cx: &mut Locked<'_, lockdep::LeafOnly>| self.eswitch.work.queue.is_closed(cx);
        self.devlink.with_unless(cx, closed, |state, cx| self.reconcile(state, cx));
    }
}
