//! The other end of a control socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::answer::{ESWITCH, VERSION};
use crate::eswitch_family;
use crate::numbers::ack;
use crate::refusal::Refusal;
use crate::shared::ViewReader;
use crate::wire::{self, Builder, GENL_HEADER, HEADER, attributes, messages};

/// Bytes of a datagram from the server at most; a message with a long list in it is one.
const DATAGRAM_MAX: usize = 256 * 1024;

/// A connection to a card.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// What came along with the answer that was received last.
    file: Option<OwnedFd>,
}

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its generic netlink command.
    pub command: u8,
    /// Its attributes, to be read with [`attributes`].
    pub attributes: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no card at {path}; `esw up --daemon` brings one up, `esw status` lists those that are up")]
    NoCard {
        /// The socket's path.
        path: String,
        /// What came of it.
        source: io::Error,
    },
    /// The card refuses.
    #[error("{}", .0.message.clone().unwrap_or_else(|| io::Error::from_raw_os_error(.0.errno).to_string()))]
    Refused(Refusal),
    /// The connection broke.
    #[error("the connection to the card: {0}")]
    Broken(#[from] io::Error),
}

/// Connects a socket to a card's.
///
/// # Errors
/// Nobody listens there.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

impl Client {
    /// Connects to a card.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let no_card = |source| ClientError::NoCard { path: path.display().to_string(), source };
        Ok(Self::over(connect(path).map_err(no_card)?))
    }

    /// Uses a connection that is there.
    pub fn over(socket: OwnedFd) -> Self {
        Self { socket, sequence: 0, buffer: vec![0; DATAGRAM_MAX], file: None }
    }

    /// Asks, and waits for all of the answer. `flags`: [`wire::DUMP`] or none.
    ///
    /// # Errors
    /// The card refuses, or has gone.
    pub fn ask(
        &mut self,
        family: u16,
        command: u8,
        flags: u16,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Vec<Answered>, ClientError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Builder::default();
        request.begin(family, wire::REQUEST | wire::ACK | flags, self.sequence, 0).genl(command, VERSION);
        fill(&mut request);
        request.end();
        net::send(&self.socket, request.bytes(), SendFlags::NOSIGNAL).map_err(io::Error::from)?;
        let mut answers = Vec::new();
        loop {
            let length = receive(&self.socket, &mut self.buffer, &mut self.file)?;
            for (header, payload) in messages(&self.buffer[..length]) {
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    wire::DONE => return Ok(answers),
                    wire::ERROR => return outcome(payload).map(|()| answers),
                    _ => answers.extend(answered(payload)),
                }
            }
        }
    }

    /// Asks for what the view can be read from as it changes, for as long as this connection stands.
    ///
    /// # Errors
    /// The card refuses, as one of an older version does, or has gone.
    pub fn share(&mut self) -> Result<ViewReader, ClientError> {
        self.file = None;
        self.ask(ESWITCH, eswitch_family::SHARE, 0, |_| {})?;
        let file = self.file.take().ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(ViewReader::new(file))
    }

    /// Waits until the connection ends.
    pub fn wait_for_end(&mut self) {
        while receive(&self.socket, &mut self.buffer, &mut self.file).is_ok() {}
    }

    /// Waits for something to be told that was not asked for.
    ///
    /// # Errors
    /// The card has gone.
    pub fn told(&mut self) -> Result<Vec<Answered>, ClientError> {
        let length = receive(&self.socket, &mut self.buffer, &mut self.file)?;
        Ok(messages(&self.buffer[..length]).filter_map(|(_, payload)| answered(payload)).collect())
    }

    /// Gives the connection away.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// The connection itself.
    pub fn socket(&self) -> impl AsFd + '_ {
        &self.socket
    }
}

/// Receives a datagram, and what came along with it, if something did.
fn receive(socket: &OwnedFd, buffer: &mut [u8], file: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            *file = fds.last();
        }
    }
    match received.bytes {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => Ok(length.min(buffer.len())),
    }
}

fn answered(payload: &[u8]) -> Option<Answered> {
    let (head, attributes) = payload.split_at_checked(GENL_HEADER)?;
    Some(Answered { command: *head.first()?, attributes: attributes.to_vec() })
}

/// What an acknowledgement says.
fn outcome(payload: &[u8]) -> Result<(), ClientError> {
    let number = payload.first_chunk::<4>().map_or(-5, |bytes| i32::from_ne_bytes(*bytes));
    if number == 0 {
        return Ok(());
    }
    let mut refusal = Refusal::bare(number.saturating_neg());
    for attribute in attributes(payload.get(4 + HEADER..).unwrap_or_default()).flatten() {
        match attribute.kind {
            ack::MESSAGE => refusal.message = attribute.text().map(str::to_owned),
            ack::OFFSET => refusal.offset = attribute.u32(),
            ack::MISSING => refusal.missing = attribute.u32().and_then(|kind| kind.try_into().ok()),
            _ => {}
        }
    }
    Err(ClientError::Refused(refusal))
}
