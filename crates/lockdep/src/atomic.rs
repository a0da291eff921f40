//! Atomics, which are real or are stops of an exploration. They are always sequentially consistent.

use std::panic::Location;
use std::sync::atomic::Ordering::SeqCst;

use crate::model::{self, Handle, OpKind};

/// A shared number.
///
/// ```
/// let count = lockdep::AtomicU64::new(1);
/// assert_eq!(count.fetch_add(2), 1);
/// assert_eq!(count.load(), 3);
/// ```
#[derive(Debug)]
pub struct AtomicU64 {
    value: std::sync::atomic::AtomicU64,
    model: Handle,
}

impl AtomicU64 {
    /// Makes an atomic with its first value.
    pub fn new(value: u64) -> Self {
        Self { value: value.into(), model: Handle::new("atomic") }
    }

    /// Returns the value.
    #[track_caller]
    pub fn load(&self) -> u64 {
        point(self.model.get(), OpKind::Read);
        self.value.load(SeqCst)
    }

    /// Sets the value.
    #[track_caller]
    pub fn store(&self, value: u64) {
        point(self.model.get(), OpKind::Write);
        self.value.store(value, SeqCst);
        wrote(self.model.get(), value);
    }

    /// Adds `n`, wrapping around, and returns the value before.
    #[track_caller]
    pub fn fetch_add(&self, n: u64) -> u64 {
        point(self.model.get(), OpKind::Write);
        let before = self.value.fetch_add(n, SeqCst);
        wrote(self.model.get(), before.wrapping_add(n));
        before
    }
}

/// A shared flag.
///
/// ```
/// let is_done = lockdep::AtomicBool::new(false);
/// assert!(!is_done.swap(true));
/// assert!(is_done.load());
/// ```
#[derive(Debug)]
pub struct AtomicBool {
    value: std::sync::atomic::AtomicBool,
    model: Handle,
}

impl AtomicBool {
    /// Makes an atomic with its first value.
    pub fn new(value: bool) -> Self {
        Self { value: value.into(), model: Handle::new("flag") }
    }

    /// Returns the value.
    #[track_caller]
    pub fn load(&self) -> bool {
        point(self.model.get(), OpKind::Read);
        self.value.load(SeqCst)
    }

    /// Sets the value and returns the one before.
    #[track_caller]
    pub fn swap(&self, value: bool) -> bool {
        point(self.model.get(), OpKind::Write);
        let before = self.value.swap(value, SeqCst);
        wrote(self.model.get(), value.into());
        before
    }
}

#[inline]
#[track_caller]
fn point(object: Option<u32>, kind: OpKind) {
    if let Some(object) = object {
        model::access(object, kind, Location::caller());
    }
}

/// Reports the new value to an explorer.
#[inline]
fn wrote(object: Option<u32>, value: u64) {
    if let Some(object) = object {
        model::wrote(object, value);
    }
}
