//! Atomics: real, or scheduling points of an exploration. Always sequentially consistent.

use std::sync::atomic::Ordering::SeqCst;

use crate::is_explored;

/// A shared number.
#[derive(Debug)]
pub struct AtomicU64(U64);

#[derive(Debug)]
enum U64 {
    Real(std::sync::atomic::AtomicU64),
    Explored(shuttle::sync::atomic::AtomicU64),
}

impl AtomicU64 {
    /// With its first value.
    pub fn new(value: u64) -> Self {
        Self(if is_explored() {
            U64::Explored(shuttle::sync::atomic::AtomicU64::new(value))
        } else {
            U64::Real(std::sync::atomic::AtomicU64::new(value))
        })
    }

    /// Its value.
    pub fn load(&self) -> u64 {
        match &self.0 {
            U64::Real(a) => a.load(SeqCst),
            U64::Explored(a) => a.load(SeqCst),
        }
    }

    /// Sets it.
    pub fn store(&self, value: u64) {
        match &self.0 {
            U64::Real(a) => a.store(value, SeqCst),
            U64::Explored(a) => a.store(value, SeqCst),
        }
    }

    /// Adds and returns what it was before.
    pub fn fetch_add(&self, n: u64) -> u64 {
        match &self.0 {
            U64::Real(a) => a.fetch_add(n, SeqCst),
            U64::Explored(a) => a.fetch_add(n, SeqCst),
        }
    }
}

/// A shared flag.
#[derive(Debug)]
pub struct AtomicBool(Bool);

#[derive(Debug)]
enum Bool {
    Real(std::sync::atomic::AtomicBool),
    Explored(shuttle::sync::atomic::AtomicBool),
}

impl AtomicBool {
    /// With its first value.
    pub fn new(value: bool) -> Self {
        Self(if is_explored() {
            Bool::Explored(shuttle::sync::atomic::AtomicBool::new(value))
        } else {
            Bool::Real(std::sync::atomic::AtomicBool::new(value))
        })
    }

    /// Its value.
    pub fn load(&self) -> bool {
        match &self.0 {
            Bool::Real(a) => a.load(SeqCst),
            Bool::Explored(a) => a.load(SeqCst),
        }
    }

    /// Sets it and returns what it was before.
    pub fn swap(&self, value: bool) -> bool {
        match &self.0 {
            Bool::Real(a) => a.swap(value, SeqCst),
            Bool::Explored(a) => a.swap(value, SeqCst),
        }
    }
}
