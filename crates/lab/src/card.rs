//! What a lab needs of a card.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use control::Command;
use devlink::{RdmaChange, SampleGroup, view};
use eswitch::PciAddress;
use eswitch::card::Counters;
use netlink::Errno;

/// A card that is up, as a lab uses it.
pub trait Card: Send + Sync {
    /// The card's current view. It contains every change that was acknowledged to anybody before the call.
    ///
    /// It waits for nothing that the card is doing, as every program of the lab would wait with it, and reads one
    /// number if nothing has changed since the last call. While the card's daemon is away it returns the last view.
    ///
    /// # Errors
    /// The card is gone, and the lab shows nothing of it any more.
    fn view(&self) -> io::Result<Arc<view::Card>>;

    /// The card's own network namespace, in which the netdevs of its view have their [peers](view::Netdev::peer). It is the
    /// same descriptor for as long as it is the same namespace. `None`: the card has no netdevs.
    fn network(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// A socket in the network namespace in which the card's netdevs appear, and to which its devlink instances belong.
    /// `None`: the lab's own.
    fn home(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// The card refuses. A command with several settings may have made those before the one that is refused.
    fn perform(&self, command: &Command) -> Result<(), Refusal>;

    /// Changes what the RDMA core knows of the card's devices. `network`: the namespace to which a device is moved.
    ///
    /// # Errors
    /// The card refuses, or has no such core.
    fn change_rdma(&self, change: &RdmaChange, network: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        let _ = (change, network);
        Err(Refusal { errno: Errno::OPNOTSUPP, message: String::new() })
    }

    /// Carries out a request about filters of the card's netdevs. What is refused as tc refuses it is an answer.
    ///
    /// # Errors
    /// The card is gone, or has no filters.
    fn tc(&self, request: &tc::Request) -> Result<tc::Answer, Refusal> {
        let _ = request;
        Err(Refusal { errno: Errno::OPNOTSUPP, message: String::new() })
    }

    /// The counters of a PF's VFs now, by number.
    ///
    /// It waits for nothing that the card is doing.
    ///
    /// # Errors
    /// The card is gone, or counts nothing.
    fn vf_counters(&self, device: PciAddress) -> io::Result<BTreeMap<u16, Counters>> {
        let _ = device;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Opens a connection to the card: a SOCK_SEQPACKET socket that carries generic netlink with the card's families
    /// (`nlctrl`, `devlink`), as the kernel would answer the same user.
    ///
    /// The card acknowledges each request that has NLM_F_ACK. A lab sets it in every request, to recognise the end of
    /// the answer.
    ///
    /// # Errors
    /// The card is gone, or accepts no more connections.
    fn connect(&self) -> io::Result<OwnedFd>;

    /// The psample groups that the filters of the card's netdevs use, in the order in which they began.
    ///
    /// # Errors
    /// The card is gone, or refuses.
    fn sample_groups(&self) -> Result<Vec<SampleGroup>, Refusal> {
        Ok(Vec::new())
    }

    /// Opens a connection that carries only the notifications to a multicast group, from now on, in the form of
    /// [`connect`](Self::connect)'s messages. Programs join a group by an option of their socket, for which netlink
    /// has no message; hence a connection of its own. `group`: a number of the control socket, such as
    /// [`devlink::CONFIG_GROUP`].
    ///
    /// # Errors
    /// The card is gone, accepts no more connections, or has no such group. Then a program cannot join it.
    fn listen(&self, group: u32) -> io::Result<OwnedFd> {
        let _ = group;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a card refused a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The text of the extended acknowledgement.
    pub message: String,
}
