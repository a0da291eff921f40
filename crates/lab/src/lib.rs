//! Unmodified programs see the card: netlink and sysfs as the kernel would answer.

mod card;

pub use card::{Card, Refusal};
