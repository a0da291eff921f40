//! How a request ended: NLMSG_ERROR, which is also the acknowledgement, and NLMSG_DONE.

use crate::aligned;
use crate::attribute::attributes;
use crate::builder::Builder;
use crate::bytes::u32_at;
use crate::errno::{Errno, errno_from_code};
use crate::header::{Flags, HEADER, Header, NLMSG_DONE, NLMSG_ERROR};
use crate::message::Message;

/// The attributes of an extended acknowledgement: `enum nlmsgerr_attrs`.
pub mod nlmsgerr_attr {
    /// A text that describes the error.
    pub const MSG: u16 = 1;
    /// Where in the request the attribute begins that was wrong, in bytes from the start of the message.
    pub const OFFS: u16 = 2;
    /// Of a success: an identifier of what was made.
    pub const COOKIE: u16 = 3;
    /// The policy that the attribute failed.
    pub const POLICY: u16 = 4;
    /// The type of an attribute that is missing.
    pub const MISS_TYPE: u16 = 5;
    /// Where the nest begins in which it is missing.
    pub const MISS_NEST: u16 = 6;
}

/// How a socket wants errors to be reported: its options of SOL_NETLINK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckOptions {
    /// NETLINK_EXT_ACK: with an extended acknowledgement.
    pub extended: bool,
    /// NETLINK_CAP_ACK: with no more of the request than its header.
    pub capped: bool,
}

/// The contents of an extended acknowledgement. Attributes that are not listed here are in [`Outcome::attributes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtAck<'a> {
    /// A text that describes the error.
    pub message: Option<&'a str>,
    /// Where in the request the attribute begins that was wrong, in bytes from the start of the message.
    pub offset: Option<u32>,
    /// The type of an attribute that is missing.
    pub missing_type: Option<u32>,
    /// Where the nest begins in which it is missing.
    pub missing_nest: Option<u32>,
}

impl<'a> ExtAck<'a> {
    /// Reads the attributes of an acknowledgement.
    pub fn parse(bytes: &'a [u8]) -> Self {
        let mut ack = Self::default();
        for attribute in attributes(bytes).flatten() {
            match attribute.kind {
                nlmsgerr_attr::MSG => ack.message = attribute.string(),
                nlmsgerr_attr::OFFS => ack.offset = attribute.u32(),
                nlmsgerr_attr::MISS_TYPE => ack.missing_type = attribute.u32(),
                nlmsgerr_attr::MISS_NEST => ack.missing_nest = attribute.u32(),
                _ => {}
            }
        }
        ack
    }

    /// Writes the attributes that are set.
    pub fn write(&self, to: &mut Builder) {
        if let Some(message) = self.message {
            to.text(nlmsgerr_attr::MSG, message);
        }
        let numbers = [
            (nlmsgerr_attr::OFFS, self.offset),
            (nlmsgerr_attr::MISS_TYPE, self.missing_type),
            (nlmsgerr_attr::MISS_NEST, self.missing_nest),
        ];
        for (kind, number) in numbers {
            if let Some(number) = number {
                to.u32(kind, number);
            }
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// With success, or with an error.
    pub result: Result<(), Errno>,
    /// The header of the request, of NLMSG_ERROR.
    pub request: Option<Header>,
    /// The attributes of the extended acknowledgement; none if there is none.
    pub attributes: &'a [u8],
}

impl<'a> Outcome<'a> {
    pub(crate) fn of(message: &Message<'a>) -> Option<Self> {
        match message.header.kind {
            NLMSG_ERROR => Some(Self::of_error(message)),
            NLMSG_DONE => Some(Self::of_done(message)),
            _ => None,
        }
    }

    fn of_error(message: &Message<'a>) -> Self {
        let payload = message.payload();
        // A message too short for its number reports an unknown error.
        let result = u32_at(payload, 0).map_or(Err(Errno::IO), |code| errno_from_code(code as i32));
        let request = payload.get(4..).and_then(Header::parse);
        // Kernels before 4.12 do not flag that an acknowledgement quotes no more than the header.
        let is_capped = message.header.flags.contains(Flags::CAPPED) || result.is_ok();
        let quoted = match request {
            Some(request) if !is_capped => aligned((request.length as usize).max(HEADER)),
            _ => HEADER,
        };
        Self { result, request, attributes: extended(message, 4 + quoted) }
    }

    fn of_done(message: &Message<'a>) -> Self {
        // The kernel ends a dump with 0 or an error; what is positive is the length of something.
        let code = u32_at(message.payload(), 0).map_or(0, |code| (code as i32).min(0));
        Self { result: errno_from_code(code), request: None, attributes: extended(message, 4) }
    }

    /// The contents of the extended acknowledgement.
    pub fn ext_ack(&self) -> ExtAck<'a> {
        ExtAck::parse(self.attributes)
    }
}

fn extended<'a>(message: &Message<'a>, at: usize) -> &'a [u8] {
    let is_extended = message.header.flags.contains(Flags::ACK_TLVS);
    message.after(at).filter(|_| is_extended).unwrap_or_default()
}
