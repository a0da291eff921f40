//! What programs of a lab see in `/sys`, `/lib/modules` and `/proc/modules`: the kernel's files, and among them the
//! card as if it were hardware.
//!
//! Call [`prepare`] before the fork; then [`Mounter::mount`] in the lab, in its own mount and network namespace, and
//! [`Server::serve`] in the supervisor, at the same time. Each waits for the other, and ends with an error if the other
//! does, provided that each process has dropped the other's half after the fork.
//!
//! [`tree`] lists what the cards have, from their views alone; `merged` merges it with the kernel's files; `fs` is the
//! file system; `mount` mounts it where programs look.

mod bus;
mod config;
mod fs;
mod here;
mod index;
mod library;
mod lower;
mod merged;
mod mount;
mod net;
mod nodes;
mod pci;
mod rdma;
mod text;
pub mod tree;

pub(crate) use fs::is_ours;
pub(crate) use here::{Version, tree_now};
pub use library::{MARK, module_name};
pub(crate) use mount::{COVERED, KEPT, SOURCE, fresh_sysfs, restrictions};
pub use mount::{Mounter, Server, Serving, Shortcomings, SysfsError, prepare};
