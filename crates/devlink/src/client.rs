//! The other end of a control socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use control::{Command, Reply};
use netlink::{Awaited, BuildError, Builder, Errno, Flags, Header, Message, Part, attributes, message, messages};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};

use crate::eswitch_family;
use crate::family::{ESWITCH, VERSION};
use crate::refusal::Refusal;
use crate::shared::ViewReader;

/// Bytes of a datagram from the server at most; a message with a long list in it is one.
const DATAGRAM_MAX: usize = 256 * 1024;

/// How long connecting may take. A daemon lets its clients in at once, whatever else it does; one that is stopped
/// never does, and connections wait once its queue is full.
const CONNECTING: Duration = Duration::from_secs(30);

/// A connection to a card.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// When the card is to have answered, if there is a limit.
    until: Option<Instant>,
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
    /// Its attributes, to be read with [`netlink::attributes`].
    pub attributes: Vec<u8>,
}

/// The JSON that was dumped in [pieces](eswitch_family::PIECE).
pub fn join_pieces(answers: &[Answered]) -> Vec<u8> {
    let attributes = answers.iter().flat_map(|answer| attributes(&answer.attributes).flatten());
    let pieces = attributes.filter(|attribute| attribute.kind == eswitch_family::PIECE);
    pieces.flat_map(|piece| piece.value).copied().collect()
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or lets us in.
    #[error("no card at {path} ({source}); `esw up --daemon` brings one up, `esw status` lists those that are up")]
    NoCard {
        /// The socket's path.
        path: String,
        /// What came of it.
        source: io::Error,
    },
    /// The card refuses.
    #[error("{}", .0.message.clone().unwrap_or_else(|| io::Error::from(.0.errno).to_string()))]
    Refused(Refusal),
    /// The request cannot be built.
    #[error("the request: {0}")]
    Unbuilt(#[from] BuildError),
    /// The connection broke.
    #[error("the connection to the card: {0}")]
    Broken(#[from] io::Error),
}

/// Connects a socket to a card's.
///
/// # Errors
/// Nobody listens there, or who does lets nobody in for 30 seconds.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    connect_by(path, Instant::now() + CONNECTING)
}

fn connect_by(path: &Path, until: Instant) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    limited(&socket, Timeout::Send, Some(until), || net::connect(&socket, &address))?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

/// Does what waits at a socket, but no longer than until some time. A signal does not end it.
fn limited<T>(
    socket: &OwnedFd,
    what: Timeout,
    until: Option<Instant>,
    mut f: impl FnMut() -> Result<T, Errno>,
) -> io::Result<T> {
    loop {
        if let Some(until) = until {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // A limit of nothing would be none, and it is rounded down to microseconds.
            set_socket_timeout(socket, what, Some(left.max(Duration::from_millis(1))))?;
        }
        match f() {
            // It may have waited less than it was allowed to.
            Err(Errno::AGAIN) if until.is_some() => {}
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

impl Client {
    /// Connects to a card.
    ///
    /// # Errors
    /// Nobody listens there, or who does lets nobody in for 30 seconds.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let no_card = |source| ClientError::NoCard { path: path.display().to_string(), source };
        Ok(Self::over(connect(path).map_err(no_card)?))
    }

    /// Connects to a card that is to let us in, and to have answered whatever it is asked, by some time. Whatever it
    /// does, nothing that is done with this takes longer.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect); what takes longer ends as `TimedOut`.
    pub fn connect_by(path: &Path, until: Instant) -> Result<Self, ClientError> {
        let no_card = |source| ClientError::NoCard { path: path.display().to_string(), source };
        Ok(Self { until: Some(until), ..Self::over(connect_by(path, until).map_err(no_card)?) })
    }

    /// Uses a connection that is there.
    pub fn over(socket: OwnedFd) -> Self {
        Self { socket, until: None, sequence: 0, buffer: vec![0; DATAGRAM_MAX], file: None }
    }

    /// Asks for one thing, or for something to be done, and waits for all of the answer.
    ///
    /// # Errors
    /// The request is too long; the card refuses, or has gone.
    pub fn ask(
        &mut self,
        family: u16,
        command: u8,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Vec<Answered>, ClientError> {
        self.request(family, command, Flags::empty(), fill)
    }

    /// Asks for everything of a kind, and waits for all of the answer.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub fn dump(
        &mut self,
        family: u16,
        command: u8,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Vec<Answered>, ClientError> {
        self.request(family, command, Flags::DUMP, fill)
    }

    fn request(
        &mut self,
        family: u16,
        command: u8,
        flags: Flags,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Vec<Answered>, ClientError> {
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header::new(family, Flags::REQUEST | Flags::ACK | flags, self.sequence, 0);
        let request = message(header, |to| {
            to.genl(command, VERSION);
            fill(to);
        })?;
        limited(&self.socket, Timeout::Send, self.until, || net::send(&self.socket, &request, SendFlags::NOSIGNAL))?;
        let (mut awaited, mut answers) = (Awaited::new(self.sequence), Vec::new());
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                match awaited.read(message) {
                    Part::Data(message) => answers.extend(answered(&message)),
                    Part::End(outcome) => {
                        let refused = |errno| ClientError::Refused(Refusal::received(errno, outcome.ext_ack()));
                        return outcome.result.map(|()| answers).map_err(refused);
                    }
                    Part::Other => {}
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
        self.ask(ESWITCH, eswitch_family::SHARE, |_| {})?;
        let file = self.file.take().ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(ViewReader::new(file))
    }

    /// Has a command carried out, and waits for that.
    ///
    /// # Errors
    /// The card refuses, or has gone; or its answer makes no sense.
    pub fn perform(&mut self, command: &Command) -> Result<Reply, ClientError> {
        let answers = self.ask(ESWITCH, eswitch_family::PERFORM, |to| {
            to.put(eswitch_family::COMMAND, &command.encode()).u32(eswitch_family::VERSION, control::VERSION);
        })?;
        let attributes = answers.iter().flat_map(|answer| attributes(&answer.attributes).flatten());
        let mut replies = attributes.filter(|attribute| attribute.kind == eswitch_family::REPLY);
        match replies.next() {
            None => Ok(Reply::Done),
            Some(reply) => Reply::decode(reply.value).map_err(|error| ClientError::Broken(io::Error::other(error))),
        }
    }

    /// Whether the connection has ended, as far as is known without asking.
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Waits until the connection ends.
    pub fn wait_for_end(&mut self) {
        while self.receive().is_ok() {}
    }

    /// Waits for something to be told that was not asked for.
    ///
    /// # Errors
    /// The card has gone.
    pub fn told(&mut self) -> Result<Vec<Answered>, ClientError> {
        let length = self.receive()?;
        Ok(messages(&self.buffer[..length]).filter_map(|message| answered(&message)).collect())
    }

    /// Receives a datagram, and what came along with it, if something did.
    fn receive(&mut self) -> io::Result<usize> {
        let (socket, buffer, file) = (&self.socket, &mut self.buffer, &mut self.file);
        let length = limited(socket, Timeout::Recv, self.until, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let parts = &mut [IoSliceMut::new(buffer)];
            let received = net::recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    *file = fds.last();
                }
            }
            Ok(received.bytes)
        })?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(length.min(self.buffer.len()))
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

fn answered(message: &Message<'_>) -> Option<Answered> {
    let (genl, attributes) = message.genl()?;
    Some(Answered { command: genl.command, attributes: attributes.to_vec() })
}
