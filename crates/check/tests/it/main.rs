//! The tests of scenarios as programs that are explored, in one program: linked once, and its tests run beside each other.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

mod engine;
mod explored;
mod fingerprint;
mod generated;
mod state;
