//! The header of a message: `struct nlmsghdr`.

use bitflags::bitflags;

/// Bytes of a header.
pub const HEADER: usize = 16;

/// A message without contents, which is skipped.
pub const NLMSG_NOOP: u16 = 1;
/// An error, or an acknowledgement if its number is 0.
pub const NLMSG_ERROR: u16 = 2;
/// The end of a dump.
pub const NLMSG_DONE: u16 = 3;
/// Messages were lost.
pub const NLMSG_OVERRUN: u16 = 4;
/// The first type that belongs to a family. Those below are control messages.
pub const NLMSG_MIN_TYPE: u16 = 0x10;

bitflags! {
    /// The flags of a message, NLM_F_*. What some of them mean depends on the message; bits without a name are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u16 {
        /// NLM_F_REQUEST: it is a request.
        const REQUEST = 1;
        /// NLM_F_MULTI: it is one of several, which NLMSG_DONE ends.
        const MULTI = 2;
        /// NLM_F_ACK: an acknowledgement is requested.
        const ACK = 4;
        /// NLM_F_ECHO: the requester wants the notification, too.
        const ECHO = 8;
        /// NLM_F_DUMP_INTR: what is dumped has changed meanwhile.
        const DUMP_INTR = 0x10;
        /// NLM_F_ROOT, of a request that gets.
        const ROOT = 0x100;
        /// NLM_F_MATCH, of a request that gets.
        const MATCH = 0x200;
        /// NLM_F_DUMP: all objects of a kind are requested. It is two bits, both of which must be set.
        const DUMP = 0x300;
        /// NLM_F_REPLACE, of a request that makes.
        const REPLACE = 0x100;
        /// NLM_F_EXCL, of a request that makes: the object must not exist.
        const EXCL = 0x200;
        /// NLM_F_CREATE, of a request that makes: the object is made if it does not exist.
        const CREATE = 0x400;
        /// NLM_F_APPEND, of a request that makes.
        const APPEND = 0x800;
        /// NLM_F_CAPPED, of an error: no more of the request is quoted than its header.
        const CAPPED = 0x100;
        /// NLM_F_ACK_TLVS, of an error: an extended acknowledgement follows.
        const ACK_TLVS = 0x200;
        const _ = !0;
    }
}

/// The header of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The message's length in bytes, with this header and without the padding behind it. What builds a message
    /// fills it in.
    pub length: u32,
    /// The message's type: a control message or, from [`NLMSG_MIN_TYPE`] on, one of a family.
    pub kind: u16,
    /// Its flags.
    pub flags: Flags,
    /// The sequence number: the requester chooses it, and the answer repeats it.
    pub sequence: u32,
    /// The port number of the socket that sent it; 0 is the kernel's.
    pub port: u32,
}

impl Header {
    /// The header of a message that is to be built.
    pub fn new(kind: u16, flags: Flags, sequence: u32, port: u32) -> Self {
        Self { length: 0, kind, flags, sequence, port }
    }

    /// The header at the start of `bytes`, whether or not the rest of its message is there.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *bytes.first_chunk::<HEADER>()?;
        Some(Self {
            length: u32::from_ne_bytes([a, b, c, d]),
            kind: u16::from_ne_bytes([e, f]),
            flags: Flags::from_bits_retain(u16::from_ne_bytes([g, h])),
            sequence: u32::from_ne_bytes([i, j, k, l]),
            port: u32::from_ne_bytes([m, n, o, p]),
        })
    }

    /// The header as it is sent.
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.flags.bits().to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.port.to_ne_bytes());
        bytes
    }

    /// Whether it requests all objects of a kind.
    pub fn is_dump(&self) -> bool {
        self.flags.contains(Flags::DUMP)
    }

    /// Whether the kernel would hand it to a family: it is a request, and no control message.
    pub fn is_request(&self) -> bool {
        self.flags.contains(Flags::REQUEST) && self.kind >= NLMSG_MIN_TYPE
    }
}

/// Changes the header of a message in place; its length stays. Returns whether there is a header.
pub fn rewrite(message: &mut [u8], change: impl FnOnce(&mut Header)) -> bool {
    let Some(mut header) = Header::parse(message) else { return false };
    let length = header.length;
    change(&mut header);
    header.length = length;
    crate::overwrite(message, 0, &header.to_bytes())
}
