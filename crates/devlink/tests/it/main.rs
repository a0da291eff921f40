//! The tests of the devlink server, in one program: linked once, and its tests run beside each other.

#[path = "../common/mod.rs"]
mod common;
mod protocol;
mod shared;
mod view;
