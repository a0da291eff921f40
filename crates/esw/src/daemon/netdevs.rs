//! The netdevs of a card, for its control socket.

use std::io;
use std::os::fd::OwnedFd;

use card_linux::{Hold, Homes, near_end};
use devlink::{Cx, Destination, KernelNetdevs, NetworkRef};
use eswitch::card::Resource;
use eswitch::{PfIndex, Vport};
use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};

/// The netdevs of a card of netdevs.
pub struct Netdevs {
    inside: OwnedFd,
    /// Where the devlink instances are.
    homes: Homes,
    /// In this process's network namespace, where the netdevs appear.
    socket: OwnedFd,
}

impl Netdevs {
    /// The netdevs of a card.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new(card: &Hold) -> io::Result<Self> {
        Ok(Self {
            inside: card.inside()?,
            homes: card.homes(),
            socket: socket(AddressFamily::INET, SocketType::DGRAM, None)?,
        })
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

    fn begin_reload(&self, cx: Cx<'_, '_>, pf: PfIndex, vport: Vport, to: Destination<'_>) -> io::Result<()> {
        let to = match to {
            Destination::Same => card_linux::Destination::Same,
            Destination::Home => card_linux::Destination::Home,
            Destination::Namespace(netns) => card_linux::Destination::Namespace(netns),
        };
        self.homes.begin_reload(cx, pf, vport, to)
    }

    fn end_reload(&self, cx: Cx<'_, '_>, pf: PfIndex, vport: Vport, succeeded: bool) {
        self.homes.end_reload(cx, pf, vport, succeeded);
    }

    fn homeless(&self, cx: Cx<'_, '_>) -> Vec<(PfIndex, Vport)> {
        self.homes.homeless(cx)
    }

    fn identify(&self, cx: Cx<'_, '_>, network: &OwnedFd) -> io::Result<Option<NetworkRef>> {
        Ok(self.homes.identify(cx, network)?.map(|(cookie, id)| NetworkRef { cookie, id }))
    }

    fn has_died(&self, cx: Cx<'_, '_>, network: NetworkRef) -> bool {
        self.homes.is_gone(cx, network.id)
    }

    fn cookie(&self) -> io::Result<u64> {
        self.homes.cookie()
    }

    fn deaths(&self) -> io::Result<OwnedFd> {
        self.homes.deaths()
    }
}
