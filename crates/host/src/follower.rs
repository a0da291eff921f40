//! A thread that reports what the kernel has to the engine.

use std::sync::Arc;

use lockdep::{AtomicBool, AtomicU64, JoinHandle, Locked, Mutex, Unlocked, lock_classes};

lock_classes! {
    /// A thread that follows the kernel.
    pub leaf FollowerClass = "follower";
}

/// A thread that looks at something of the kernel's again and again, and reports what it finds.
pub(crate) struct Follower {
    wake: Arc<dyn Fn() + Send + Sync>,
    looks: Arc<Looks>,
    thread: Mutex<FollowerClass, Option<JoinHandle<()>>>,
}

/// Which looks were requested, and which have been done.
pub(crate) struct Looks {
    over: AtomicBool,
    /// The number of the last look that was requested.
    requested: AtomicU64,
    /// The number of the last requested look that has been done.
    done: AtomicU64,
}

impl Looks {
    /// Begins a look, which is passed to [`end`](Self::end) when it has been done. `None`: the thread is to end.
    pub(crate) fn begin(&self) -> Option<u64> {
        (!self.over.load()).then(|| self.requested.load())
    }

    /// Notes that a look has been done.
    pub(crate) fn end(&self, look: u64) {
        self.done.store(look);
    }
}

impl Follower {
    /// Starts a thread that runs `follow`, if there is something to follow. `wake`: ends the wait of that thread.
    pub(crate) fn start(
        cx: &mut Locked<'_, Unlocked>,
        name: &'static str,
        wake: Arc<dyn Fn() + Send + Sync>,
        follow: Option<impl FnOnce(&mut Locked<'_, Unlocked>, &Looks) + Send + 'static>,
    ) -> Self {
        let looks =
            Arc::new(Looks { over: AtomicBool::new(false), requested: AtomicU64::new(0), done: AtomicU64::new(0) });
        let thread = follow.map(|follow| {
            let looks = Arc::clone(&looks);
            cx.spawn(name, move |cx| follow(cx, &looks))
        });
        // Without a thread no look will be done, so there is nothing to wait for.
        looks.over.swap(thread.is_none());
        Self { wake, looks, thread: Mutex::new(thread) }
    }

    /// Requests a look. Returns a ticket for [`has_looked`](Self::has_looked).
    pub(crate) fn request_look(&self) -> u64 {
        let ticket = self.looks.requested.fetch_add(1) + 1;
        (self.wake)();
        ticket
    }

    /// Whether the look of a ticket has been done. Once the thread has ended, every look counts as done.
    pub(crate) fn has_looked(&self, ticket: u64) -> bool {
        self.looks.over.load() || self.looks.done.load() >= ticket
    }

    /// Ends the thread.
    pub(crate) fn stop(&self, cx: &mut Locked<'_, Unlocked>) {
        self.looks.over.swap(true);
        (self.wake)();
        let thread = self.thread.lock_leaf(cx).take();
        if let Some(Err(panic)) = thread.map(|thread| thread.join(cx)) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // After `stop` the thread has ended. Without it, it may hang, so it is not waited for.
        self.looks.over.swap(true);
        (self.wake)();
    }
}
