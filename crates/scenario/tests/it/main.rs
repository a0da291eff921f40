//! The tests of scenarios, in one program: linked once, and its tests run beside each other.

mod common;
mod explored;
mod input;
mod outcomes;
mod reference;
mod scenarios;
