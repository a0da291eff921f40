//! Unmodified programs see the card: netlink and sysfs as the kernel would answer.
//!
//! [`run`] starts a program under a seccomp filter. The few system calls that may concern a card are answered here:
//! making a netlink socket, loading a module, querying the name of a driver. The kernel carries out everything else, at
//! its own speed. The calls are answered by a separate process, the supervisor, which lives until the last process of
//! the lab has ended. [`start`] starts a lab that is kept until it is stopped, which programs [`enter`]. `docs/lab.md` describes how, and why.

mod calls;
mod card;
mod cards;
mod ethtool;
mod filter;
mod inside;
mod limits;
mod lock_order;
mod mounts;
mod network;
mod passing;
mod process;
mod rdma_system;
mod relay;
mod run;
mod supervisor;
mod sys;
pub mod sysfs;
mod uevent;

#[doc(hidden)]
pub mod fuzzing {
    //! Entry points for arbitrary input.

    pub use crate::relay::fuzzed as relay;
}

pub use card::{Card, Refusal};
pub use inside::is_inside;
pub use run::{
    Connection, Join, Keep, KeptError, LabError, Mounts, Options, ProgramInside, Serve, Status, Stopped, enter, run,
    start,
};
pub use uevent::{Action as UeventAction, Uevents};
