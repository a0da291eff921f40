//! Values that exist only for checking.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::Locked;

/// A value that serves to state invariants, such as a copy of what a lock protects or a count of the threads in a section.
///
/// Any thread may read it without a lock, and reading it is no scheduling point. So stating an invariant changes no
/// interleaving. The program may decide nothing by it: where nothing is checked it is never written.
///
/// ```
/// use lockdep::{Domain, OnReport, Shadow, enter};
///
/// let inside = Shadow::new(0);
/// enter(&Domain::checked(OnReport::Panic), "main", |cx| {
///     inside.note(cx, |inside| *inside += 1);
///     cx.ensure("one-inside", || inside.with(|inside| *inside == 1), || "two are inside".to_owned());
///     inside.note(cx, |inside| *inside -= 1);
/// });
/// ```
#[derive(Default)]
pub struct Shadow<T>(Mutex<T>);

impl<T> Shadow<T> {
    /// Makes a shadow with its first value.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Changes the value, where the thread is checked.
    #[inline]
    pub fn note<L>(&self, cx: &Locked<'_, L>, change: impl FnOnce(&mut T)) {
        if cx.is_checked() {
            self.with(change);
        }
    }

    /// Calls `f` with the value. `f` must not use another shadow, and must not reach a scheduling point.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> fmt::Debug for Shadow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shadow")
    }
}
