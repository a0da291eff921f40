//! The tests of the explorer, in one program: linked once, and its tests run beside each other.

mod check;
mod columns;
mod examples;
mod interrupts;
mod page;
mod portfolio;
mod reduction;
mod stories;
mod trace_events;
mod validate;
