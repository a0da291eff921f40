//! Runs a card.
//!
//! A [`LiveCard`] is a card that is up: its engine, the threads that follow the kernel's bonds over its netdevs
//! and the neighbours behind them, and the [`Pulse`] that ends its waits. It carries out [commands](control::Command) from any thread. A [`World`] is
//! everything outside of it that it needs; only the world decides which kind of card it is, and nothing in this crate
//! knows.

#![forbid(unsafe_code)]

mod bonds;
mod follower;
mod live;
mod neighbours;
mod pulse;
mod world;

pub use live::{LiveCard, left_on};
pub use pulse::{GaveUp, Heeds, Pulse};
pub use world::{BondWatch, Bonds, Finished, NeighbourWatch, Neighbours, Programs, World};
