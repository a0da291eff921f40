//! The messages of a datagram.

use crate::genl::{GENL_HEADER, GenlHeader};
use crate::header::{HEADER, Header};
use crate::{ack, aligned};

/// One message, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// The message that `bytes` begin with, if all of it is there.
    pub fn first(bytes: &'a [u8]) -> Option<Self> {
        let header = Header::parse(bytes)?;
        let bytes = bytes.get(..usize::try_from(header.length).ok()?).filter(|bytes| bytes.len() >= HEADER)?;
        Some(Self { header, bytes })
    }

    /// All of it, with its header and without the padding behind it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What follows the header.
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// The payload behind a family's own header of `length` bytes: its attributes. `None`: it is shorter.
    pub fn after(&self, length: usize) -> Option<&'a [u8]> {
        self.payload().get(length..)
    }

    /// The generic netlink header and the attributes behind it, of a message of generic netlink.
    pub fn genl(&self) -> Option<(GenlHeader, &'a [u8])> {
        Some((GenlHeader::parse(self.payload())?, self.after(GENL_HEADER)?))
    }

    /// How a request ended, of NLMSG_ERROR and NLMSG_DONE.
    pub fn outcome(&self) -> Option<ack::Outcome<'a>> {
        ack::Outcome::of(self)
    }
}

/// The messages of a datagram. See [`messages`].
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

/// The messages of a datagram, one after the other. They end where one is cut off or lies about its length, as in the
/// kernel.
pub fn messages(bytes: &[u8]) -> Messages<'_> {
    Messages { rest: bytes }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let message = Message::first(self.rest)?;
        self.rest = self.rest.get(aligned(message.bytes.len())..).unwrap_or_default();
        Some(message)
    }
}
