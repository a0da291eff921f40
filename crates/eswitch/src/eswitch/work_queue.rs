//! The E-Switch's work queue and its generation.
//!
//! A work item remembers the generation it was queued in; what is stale when its turn comes changes
//! nothing. Whoever raises the generation for anything but teardown marks the queue for a reconcile,
//! so what was dropped is done after all. Marks and retries carry no generation: they are about what
//! is, not about what was.

use std::sync::Arc;

use lockdep::{AtomicU64, HistoryMark, LockBefore, Locked, MayWait, Unlocked, WaitMap};

use crate::device::Pf;
use crate::error::Result;
use crate::eswitch::stated::Stated;
use crate::event::Event;
use crate::ids::PfIndex;
use crate::lock_order::WorkQueue as WorkQueueClass;
use crate::queue::{Next, Queue};

/// What can be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// Ops were registered: load what should be loaded.
    LoadReps,
    /// The host changed its functions.
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

/// The mark that asks for a reconcile.
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

    /// Queues work; may wait, may allocate.
    pub fn queue<L: MayWait>(&self, cx: &mut Locked<'_, L>, work: Work) -> Result<()> {
        self.queue.push(cx, (work, self.generation.load()))
    }

    /// Queues work; if that fails, leaves a mark that does the same.
    pub fn queue_or_mark<L: MayWait>(&self, cx: &mut Locked<'_, L>, work: Work) {
        if self.queue(cx, work).is_err() {
            self.mark_reconcile(cx);
        }
    }

    /// Queues work from where nothing may wait or allocate. On failure a mark has been left.
    pub fn queue_atomic<L>(&self, cx: &mut Locked<'_, L>, work: Work) -> Result<()> {
        self.queue.push_atomic(cx, (work, self.generation.load()), RECONCILE)
    }

    /// Asks for a reconcile. Cannot fail.
    pub fn mark_reconcile<L>(&self, cx: &mut Locked<'_, L>) {
        self.queue.mark(cx, RECONCILE);
    }

    /// Makes what was queued until now stale. The caller then stirs the devlink lock's waiters.
    fn raise_generation<L>(&self, cx: &Locked<'_, L>) {
        self.generation.fetch_add(1);
        self.stated.note_generation(cx);
    }

    /// The queue itself, for those who wait for it or look at it.
    pub fn inner(&self) -> &Queue<(Work, u64)> {
        &self.queue
    }

    /// Says that the thread is about to wait for what runs here.
    #[track_caller]
    pub fn about_to_drain<P: LockBefore<WorkQueueClass>>(&self, cx: &mut Locked<'_, P>) {
        self.map.drain(cx);
    }
}

impl Pf {
    /// Raises the generation and wakes whoever of the handlers waits.
    pub(crate) fn raise_generation<L>(&self, cx: &mut Locked<'_, L>) {
        self.eswitch.work.raise_generation(cx);
        self.devlink.stir(cx);
    }

    /// Serves the queue until it is closed: the body of its thread.
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

    /// Work of an older generation is dropped: before the lock, while waiting for it, and once it is
    /// had.
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
