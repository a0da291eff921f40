//! The mark that says whether primitives are made real or explored.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

thread_local! {
    /// The only thread-local here: explored threads are continuations on one OS thread, so this is
    /// the one thing they may share.
    static EXPLORED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a primitive made here and now is under an explorer's control.
#[inline]
pub fn is_explored() -> bool {
    EXPLORED.with(Cell::get)
}

/// A guard of an explored lock. It is in a box, and let go of out of line, so that it costs nothing
/// where locks are real.
pub(crate) struct ExploredGuard<G>(Option<Box<G>>);

impl<G> ExploredGuard<G> {
    pub fn new(guard: G) -> Self {
        Self(Some(Box::new(guard)))
    }

    /// Lets go of the lock, for the time of a wait.
    pub fn release(&mut self) {
        drop(self.0.take());
    }
}

impl<G> Deref for ExploredGuard<G> {
    type Target = G;
    fn deref(&self) -> &G {
        self.0.as_ref().expect("a guard is only empty inside a wait")
    }
}

impl<G> DerefMut for ExploredGuard<G> {
    fn deref_mut(&mut self) -> &mut G {
        self.0.as_mut().expect("a guard is only empty inside a wait")
    }
}

impl<G> Drop for ExploredGuard<G> {
    #[inline]
    fn drop(&mut self) {
        #[cold]
        #[inline(never)]
        fn release<G>(guard: Box<G>) {
            drop(guard);
        }
        if let Some(guard) = self.0.take() {
            release(guard);
        }
    }
}

/// Runs `f`, which drives a shuttle runner on this OS thread: every primitive made inside its
/// executions is shuttle's. Primitives may be made and used only inside the runner's executions.
pub fn explored<R>(f: impl FnOnce() -> R) -> R {
    struct Unmark(bool);
    impl Drop for Unmark {
        fn drop(&mut self) {
            EXPLORED.with(|mark| mark.set(self.0));
        }
    }
    let _unmark = Unmark(EXPLORED.with(|mark| mark.replace(true)));
    f()
}
