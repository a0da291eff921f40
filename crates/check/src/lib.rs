//! Explores scenarios.
mod campaign;
mod faults;
pub mod schedulers;
mod story;
mod telling;

pub use campaign::{Options, Strategy, Watch};
pub use faults::{Faults, Place};
pub use story::{Row, RowKind, Story};
pub use telling::Found;
