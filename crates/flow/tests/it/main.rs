//! The tests of the flows, in one program: linked once, and its tests run beside each other.

mod actions;
mod common;
mod connections;
mod frames;
mod generated;
mod keys;
mod order;
mod properties;
mod refused;
mod tunnels;
mod words;
