//! Atomics: real, or scheduling points of an exploration. Always sequentially consistent.

use std::panic::Location;
use std::sync::atomic::Ordering::SeqCst;

use crate::model::{self, Handle, OpKind};

/// A shared number.
#[derive(Debug)]
pub struct AtomicU64 {
    value: std::sync::atomic::AtomicU64,
    model: Handle,
}

impl AtomicU64 {
    /// With its first value.
    pub fn new(value: u64) -> Self {
        Self { value: value.into(), model: Handle::new("atomic") }
    }

    /// Its value.
    #[track_caller]
    pub fn load(&self) -> u64 {
        point(self.model.get(), OpKind::Read);
        self.value.load(SeqCst)
    }

    /// Sets it.
    #[track_caller]
    pub fn store(&self, value: u64) {
        point(self.model.get(), OpKind::Write);
        self.value.store(value, SeqCst);
        wrote(self.model.get(), value);
    }

    /// Adds and returns what it was before.
    #[track_caller]
    pub fn fetch_add(&self, n: u64) -> u64 {
        point(self.model.get(), OpKind::Write);
        let before = self.value.fetch_add(n, SeqCst);
        wrote(self.model.get(), before.wrapping_add(n));
        before
    }
}

/// A shared flag.
#[derive(Debug)]
pub struct AtomicBool {
    value: std::sync::atomic::AtomicBool,
    model: Handle,
}

impl AtomicBool {
    /// With its first value.
    pub fn new(value: bool) -> Self {
        Self { value: value.into(), model: Handle::new("flag") }
    }

    /// Its value.
    #[track_caller]
    pub fn load(&self) -> bool {
        point(self.model.get(), OpKind::Read);
        self.value.load(SeqCst)
    }

    /// Sets it and returns what it was before.
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

/// Tells an explorer what it holds now.
#[inline]
fn wrote(object: Option<u32>, value: u64) {
    if let Some(object) = object {
        model::wrote(object, value);
    }
}
