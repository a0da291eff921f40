//! The netdevs of a card, for its control socket.

use std::io;
use std::os::fd::OwnedFd;

use card_linux::near_end;
use devlink::KernelNetdevs;
use eswitch::card::Resource;
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

/// The netdevs of a card of netdevs.
pub struct Netdevs {
    inside: OwnedFd,
    /// In this process's network namespace, where the netdevs appear.
    socket: OwnedFd,
}

impl Netdevs {
    /// `inside`: the network namespace that the card is.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new(inside: OwnedFd) -> io::Result<Self> {
        Ok(Self { inside, socket: socket(AddressFamily::INET, SocketType::DGRAM, None)? })
    }
}

impl KernelNetdevs for Netdevs {
    fn index(&self, name: &str) -> Option<u32> {
        name_to_index(&self.socket, name).ok()
    }

    fn peer(&self, netdev: &Resource) -> Option<u32> {
        near_end(netdev)
    }

    fn network(&self) -> io::Result<OwnedFd> {
        self.inside.try_clone()
    }

    fn home(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}
