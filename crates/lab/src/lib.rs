//! Unmodified programs see the card: netlink and sysfs as the kernel would answer.

mod card;
pub mod sysfs;

pub use card::{Card, Refusal};
