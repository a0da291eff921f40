//! The mark that says whether primitives are made real or explored.

use std::cell::Cell;

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
