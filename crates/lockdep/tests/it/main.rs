//! The tests of the locks, in one program: linked once, and its tests run beside each other.

mod explored;
mod primitives;
mod reports;
