//! What programs of a lab see in `/sys`.

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
