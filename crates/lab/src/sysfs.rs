//! What programs of a lab see in `/sys`, `/lib/modules` and `/proc/modules`: the kernel's, and the card in it
//! as if it were hardware.
//!
//! Before the fork, [`prepare`]; in the lab, in its own mount and network namespace, [`Mounter::mount`]; in the
//! supervisor, at the same time, [`Server::serve`]. Each waits for the other, and ends with an error if the
//! other does, provided that each has dropped the other's half after the fork.
//!
//! [`tree`] says what there is, from views of the cards alone; `place` merges that with what is beneath;
//! `fs` is the file system; `mount` puts it where programs look.

mod bus;
mod config;
mod fs;
mod index;
mod library;
mod mount;
mod net;
mod nodes;
mod pci;
mod place;
mod rdma;
mod text;
pub mod tree;
mod under;

pub use library::{MARK, module_name};
pub use mount::{Mounter, Server, Serving, Shortcomings, SysfsError, prepare};
