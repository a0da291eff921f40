//! What a lab needs of a card that is up.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use control::Command;
use devlink::view;
use netlink::Errno;

/// A card that is up, seen from a lab.
pub trait Card: Send + Sync {
    /// What there is now: every change that was acknowledged to anybody before this is called is in it. It waits for
    /// nothing that the card is doing, as everybody in the lab would wait with it, and it is a look at a number if nothing
    /// has changed since the last time. While the card is away it is what was seen last.
    ///
    /// # Errors
    /// The card is gone and nothing is to be shown of it any more.
    fn view(&self) -> io::Result<Arc<view::Card>>;

    /// Carries out a command.
    ///
    /// # Errors
    /// The card refuses. A command of several settings may have made those before the one that is refused.
    fn perform(&self, command: &Command) -> Result<(), Refusal>;

    /// A connection of its own to the card: a SOCK_SEQPACKET socket that speaks generic netlink with the
    /// families of the card (`nlctrl`, `devlink`), as the kernel's would to the same user. It acknowledges
    /// what is to be acknowledged (`NLM_F_ACK`): a lab always asks for that, to see where an answer ends.
    ///
    /// # Errors
    /// The card is gone, or takes no more connections.
    fn connect(&self) -> io::Result<OwnedFd>;

    /// A connection that only brings what devlink's multicast group hears from now on, as
    /// [`connect`](Self::connect)'s messages look. Programs become members of the group by an option of
    /// their socket, for which a connection of messages has no message.
    ///
    /// # Errors
    /// The card is gone, takes no more connections, or tells nothing: then a program may not become a
    /// member.
    fn listen(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a card did not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// As an extended acknowledgement has it.
    pub message: String,
}
