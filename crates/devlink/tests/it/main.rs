//! The tests of the devlink server, in one program: linked once, and its tests run beside each other.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

#[path = "../common/mod.rs"]
mod common;
mod protocol;
mod samples;
mod shared;
mod view;
