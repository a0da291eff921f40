//! The tests of the eBPF program, in one program: linked once, and its tests run beside each other.

#[path = "../common/mod.rs"]
mod common;
mod differential;
mod limits;
mod netdevs;
