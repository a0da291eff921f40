//! A datagram that is being built: whole messages, one after the other.

use crate::ack::AckOptions;
use crate::builder::{BuildError, Builder};
use crate::errno::Errno;
use crate::header::{Flags, HEADER, Header, NLMSG_DONE, NLMSG_ERROR, rewrite};
use crate::message::Message;

/// Messages that are sent together. Whatever is in it is whole: a message that cannot be built leaves nothing.
#[derive(Debug, Default)]
pub struct Datagram {
    builder: Builder,
}

/// Builds one message.
///
/// # Errors
/// It is too long, or has text with a zero byte in it.
pub fn message(header: Header, fill: impl FnOnce(&mut Builder)) -> Result<Vec<u8>, BuildError> {
    let mut datagram = Datagram::default();
    datagram.message(header, fill)?;
    Ok(datagram.into_bytes())
}

/// Builds attributes without a message around them: the value of a nest, an extended acknowledgement.
///
/// # Errors
/// As for [`message`].
pub fn row(fill: impl FnOnce(&mut Builder)) -> Result<Vec<u8>, BuildError> {
    let mut builder = Builder::default();
    fill(&mut builder);
    match builder.take_error() {
        Some(error) => Err(error),
        None => Ok(std::mem::take(builder.bytes_mut())),
    }
}

impl Datagram {
    /// Adds a message, of which `fill` writes what follows the header. The length in `header` is not looked at.
    ///
    /// # Errors
    /// It is too long, or has text with a zero byte in it. The datagram is as it was.
    pub fn message(&mut self, header: Header, fill: impl FnOnce(&mut Builder)) -> Result<(), BuildError> {
        let begun = self.builder.begin(&header);
        fill(&mut self.builder);
        self.builder.end(begun)
    }

    /// Adds the end of a dump: NLMSG_DONE, without an error.
    pub fn done(&mut self, request: &Header, port: u32) {
        let header = Header::new(NLMSG_DONE, Flags::MULTI, request.sequence, port);
        // Nothing in it is too long.
        let _ = self.message(header, |to| {
            to.raw(&0i32.to_ne_bytes());
        });
    }

    /// Adds the acknowledgement of a request, or the error that it ended with, to a socket with some options, as
    /// `netlink_ack` does: an error quotes all of the request unless the socket caps it, and `fill` writes the
    /// extended acknowledgement, which only a socket that wants it gets. An extended acknowledgement that cannot be
    /// built is left out: the number arrives in any case.
    pub fn ack(
        &mut self,
        request: &Message<'_>,
        port: u32,
        outcome: Result<(), Errno>,
        options: AckOptions,
        fill: impl FnOnce(&mut Builder),
    ) {
        let quoted = match outcome {
            Err(_) if !options.capped => Some(request.bytes()),
            _ => None,
        };
        self.put_ack(&request.header, quoted, port, outcome, |to| {
            if options.extended {
                fill(to);
            }
        });
    }

    /// As [`ack`](Self::ack), for a request of which only the header is known: so it is always capped, and
    /// always extended.
    pub fn ack_capped(
        &mut self,
        request: &Header,
        port: u32,
        outcome: Result<(), Errno>,
        fill: impl FnOnce(&mut Builder),
    ) {
        self.put_ack(request, None, port, outcome, fill);
    }

    fn put_ack(
        &mut self,
        request: &Header,
        quoted: Option<&[u8]>,
        port: u32,
        outcome: Result<(), Errno>,
        fill: impl FnOnce(&mut Builder),
    ) {
        let code = outcome.map_or_else(|errno| -errno.raw_os_error(), |()| 0);
        let flags = if quoted.is_some() { Flags::empty() } else { Flags::CAPPED };
        let header = Header::new(NLMSG_ERROR, flags, request.sequence, port);
        let begun = self.builder.begin(&header);
        self.builder.raw(&code.to_ne_bytes());
        match quoted {
            Some(request) => self.builder.raw(request),
            None => self.builder.header(request),
        };
        let bare = self.builder.bytes().len();
        fill(&mut self.builder);
        if self.builder.take_error().is_some() {
            self.builder.bytes_mut().truncate(bare);
        }
        if self.builder.bytes().len() > bare {
            rewrite(&mut self.builder.bytes_mut()[begun..], |header| header.flags |= Flags::ACK_TLVS);
        }
        if self.builder.end(begun).is_err() {
            // The quoted request is nearly as long as a message can be.
            self.put_bare_ack(request, port, code);
        }
    }

    fn put_bare_ack(&mut self, request: &Header, port: u32, code: i32) {
        let _ = self.message(Header::new(NLMSG_ERROR, Flags::CAPPED, request.sequence, port), |to| {
            to.raw(&code.to_ne_bytes()).header(request);
        });
    }

    /// The messages.
    pub fn bytes(&self) -> &[u8] {
        self.builder.bytes()
    }

    /// The messages, given away.
    pub fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(self.builder.bytes_mut())
    }

    /// Bytes of the messages.
    pub fn len(&self) -> usize {
        self.builder.bytes().len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.builder.bytes().is_empty()
    }

    /// Gives the messages consecutive sequence numbers, the first of which is `sequence`.
    pub fn number(&mut self, sequence: u32) {
        let bytes = self.builder.bytes_mut();
        let (mut at, mut sequence) = (0, sequence);
        while let Some(header) = bytes.get(at..).and_then(Header::parse) {
            rewrite(&mut bytes[at..], |header| header.sequence = sequence);
            at += crate::aligned(header.length as usize).max(HEADER);
            sequence = sequence.wrapping_add(1);
        }
    }

    /// Removes every message, and keeps the memory.
    pub fn clear(&mut self) {
        self.builder.bytes_mut().clear();
    }
}
