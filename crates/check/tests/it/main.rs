//! The tests of scenarios as programs that are explored, in one program: linked once, and its tests run beside each other.

mod engine;
mod explored;
mod fingerprint;
mod state;
