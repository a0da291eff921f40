//! The tests of the eBPF program, in one program: linked once, and its tests run beside each other.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

#[path = "../common/mod.rs"]
mod common;
mod differential;
mod kernel_conntrack;
mod limits;
mod netdevs;
mod sequences;
