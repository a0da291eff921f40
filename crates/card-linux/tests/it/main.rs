//! The tests of the card of real netdevs, in one program: linked once.
//! What makes netdevs starts this program again, in namespaces of its own.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

mod acl;
mod bonds;
#[path = "../common/mod.rs"]
mod common;
mod errors;
mod life;
mod moves;
mod neighbours;
mod rates;
mod rules;
mod traffic;
mod xdp;
