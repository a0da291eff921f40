//! The tests of scenarios, in one program: linked once, and its tests run beside each other.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

mod common;
mod explored;
mod input;
mod outcomes;
mod reference;
mod scenarios;
