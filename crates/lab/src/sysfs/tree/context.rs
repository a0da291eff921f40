//! What a read or a write of an attribute may look at.

use std::sync::Arc;

use devlink::view;
use netlink::Errno;

use super::Dir;

/// Files of the kernel on which a value may depend, besides the card's view.
pub trait Kernel {
    /// Reads a file by its path below `/sys`.
    fn read(&self, path: &str) -> Option<Vec<u8>>;
    /// Reads `/proc/modules`. `None`: this kernel has no modules.
    fn proc_modules(&self) -> Option<Vec<u8>>;
}

/// The object that an attribute describes. Each number is an index: of the card, and in a list of its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// No object.
    Nothing,
    /// A driver on a bus: the path of the directory names it.
    Driver,
    /// A PCI function.
    Function(usize, usize),
    /// A device on the auxiliary bus.
    Auxiliary(usize, usize),
    /// A netdev.
    Netdev(usize, usize),
    /// An RDMA device.
    Rdma(usize, usize),
    /// A port of an RDMA device: the last number is its index in the device's list.
    RdmaPort(usize, usize, usize),
    /// A module.
    Module(usize, usize),
}

/// What a read or a write of an attribute may look at.
pub struct AttributeContext<'a> {
    /// The views of all cards; `None`: the card is gone.
    pub cards: &'a [Option<Arc<view::Card>>],
    /// The directory of the attribute.
    pub dir: &'a Dir,
    /// The kernel's files.
    pub kernel: &'a dyn Kernel,
}

impl<'a> AttributeContext<'a> {
    fn at(&self, card: usize) -> Result<&'a view::Card, Errno> {
        self.cards.get(card).and_then(Option::as_deref).ok_or(Errno::NODEV)
    }

    /// The view of the card that has the subject.
    pub fn card(&self) -> Result<&'a view::Card, Errno> {
        self.at(self.card_index()?)
    }

    /// The index of that card.
    pub fn card_index(&self) -> Result<usize, Errno> {
        match self.dir.subject {
            Subject::Nothing | Subject::Driver => Err(Errno::NODEV),
            Subject::Function(card, _)
            | Subject::Auxiliary(card, _)
            | Subject::Netdev(card, _)
            | Subject::Rdma(card, _)
            | Subject::RdmaPort(card, ..)
            | Subject::Module(card, _) => Ok(card),
        }
    }

    /// The subject, a PCI function.
    pub fn function(&self) -> Result<&'a view::Function, Errno> {
        let Subject::Function(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.functions.get(at).ok_or(Errno::NODEV)
    }

    /// The SR-IOV state of the subject, a PF.
    pub fn sriov(&self) -> Result<&'a view::Sriov, Errno> {
        self.function()?.sriov.as_ref().ok_or(Errno::NODEV)
    }

    /// The subject, a device on the auxiliary bus.
    pub fn auxiliary(&self) -> Result<&'a view::Auxiliary, Errno> {
        let Subject::Auxiliary(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.auxiliary.get(at).ok_or(Errno::NODEV)
    }

    /// The subject, a netdev.
    pub fn netdev(&self) -> Result<&'a view::Netdev, Errno> {
        let Subject::Netdev(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.netdevs.get(at).ok_or(Errno::NODEV)
    }

    /// The name of the attribute's directory.
    pub fn name(&self) -> &'a str {
        self.dir.path.rsplit('/').next().unwrap_or_default()
    }

    /// The subject, an RDMA device or a port of it.
    pub fn rdma(&self) -> Result<&'a view::RdmaDevice, Errno> {
        match self.dir.subject {
            Subject::Rdma(card, at) | Subject::RdmaPort(card, at, _) => self.at(card)?.rdma.get(at).ok_or(Errno::NODEV),
            _ => Err(Errno::NODEV),
        }
    }

    /// The subject, a port of an RDMA device.
    pub fn rdma_port(&self) -> Result<&'a view::RdmaPort, Errno> {
        let Subject::RdmaPort(_, _, port) = self.dir.subject else { return Err(Errno::NODEV) };
        self.rdma()?.ports.get(port).ok_or(Errno::NODEV)
    }

    /// The subject, a module.
    pub fn module(&self) -> Result<&'a view::Module, Errno> {
        let Subject::Module(card, at) = self.dir.subject else { return Err(Errno::NODEV) };
        self.at(card)?.modules.get(at).ok_or(Errno::NODEV)
    }

    /// Every card that is not gone, with its index.
    pub fn every_card(&self) -> impl Iterator<Item = (usize, &'a view::Card)> {
        self.cards.iter().enumerate().filter_map(|(at, card)| Some((at, card.as_deref()?)))
    }
}
