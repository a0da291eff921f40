//! Unmodified programs see the card: netlink and sysfs as the kernel would answer.
//!
//! [`run`] starts a program under a filter of system calls. The few that concern a card are answered here:
//! making a netlink socket, loading a module, asking for a driver's name. Everything else is the kernel's,
//! at the kernel's speed. Who answers is a process apart, which is there until the last process of the lab has
//! ended. `docs/lab.md` tells how and why.

mod calls;
mod card;
mod cards;
mod filter;
mod inside;
mod process;
mod relay;
mod run;
mod supervisor;
mod sys;
pub mod sysfs;

#[doc(hidden)]
pub mod fuzzing {
    //! For arbitrary input.

    pub use crate::relay::fuzzed as relay;
}

pub use card::{Card, Refusal};
pub use inside::is_inside;
pub use run::{Join, LabError, Mounts, Options, Serve, run};
