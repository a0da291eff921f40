//! What exists for checking only.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::Locked;

/// A value by which invariants are stated: a copy of what a lock protects, a count of who is inside.
///
/// Any thread may look at it without holding anything, and looking is no scheduling point, so that to
/// state an invariant changes no interleaving. Nothing may be decided by it: where nothing is checked
/// it is never written.
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
    /// With its first value.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Changes it, where the thread is checked.
    #[inline]
    pub fn note<L>(&self, cx: &Locked<'_, L>, change: impl FnOnce(&mut T)) {
        if cx.is_checked() {
            self.with(change);
        }
    }

    /// Looks at it. `f` must look at no other shadow and come to a scheduling point nowhere.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> fmt::Debug for Shadow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shadow")
    }
}
