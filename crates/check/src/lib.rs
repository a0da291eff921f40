//! Explores scenarios.
pub mod schedulers;
