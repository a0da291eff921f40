//! Explores scenarios.
pub mod schedulers;
mod story;

pub use story::{Row, RowKind, Story};
