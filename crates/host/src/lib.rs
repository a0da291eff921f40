//! Runs a card.
//!
//! A [`LiveCard`] is a card that is up: its engine, the thread that follows the kernel's bonds over its netdevs, and
//! the [`Pulse`] that ends its waits. It carries out [commands](control::Command) from any thread. A [`World`] is
//! everything outside of it that it needs; only the world decides which kind of card it is, and nothing in this crate
//! knows.

#![forbid(unsafe_code)]

mod bonds;
mod live;
mod pulse;
mod world;

pub use live::{LiveCard, left_on};
pub use pulse::{GaveUp, Heeds, Pulse};
pub use world::{BondWatch, Bonds, Finished, Programs, World};
