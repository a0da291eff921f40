//! The answer to a request, as its requester reads it.

use crate::ack::Outcome;
use crate::header::{Flags, NLMSG_NOOP, NLMSG_OVERRUN};
use crate::message::Message;

/// A request whose answer is being read.
///
/// The answer is any number of messages, then an end: NLMSG_DONE of a dump, NLMSG_ERROR of a request that failed or
/// requested an acknowledgement. So only an answer to a request with [`Flags::ACK`] or [`Flags::DUMP`] is sure to end.
#[derive(Clone, Copy, Debug)]
pub struct Awaited {
    sequence: u32,
    is_interrupted: bool,
}

/// What a message is to the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// A part of the answer.
    Data(Message<'a>),
    /// The end of the answer.
    End(Outcome<'a>),
    /// No part of the answer: another request's, a notification, or nothing at all.
    Other,
}

impl Awaited {
    /// A request by its sequence number.
    pub fn new(sequence: u32) -> Self {
        Self { sequence, is_interrupted: false }
    }

    /// Finds out what a message is to this request.
    pub fn read<'a>(&mut self, message: Message<'a>) -> Part<'a> {
        if message.header.sequence != self.sequence || matches!(message.header.kind, NLMSG_NOOP | NLMSG_OVERRUN) {
            return Part::Other;
        }
        self.is_interrupted |= message.header.flags.contains(Flags::DUMP_INTR);
        match message.outcome() {
            Some(outcome) => Part::End(outcome),
            None => Part::Data(message),
        }
    }

    /// Whether what is dumped has changed meanwhile, so that the request is to be sent again.
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted
    }
}
