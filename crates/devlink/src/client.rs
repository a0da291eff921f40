//! A client of a control socket.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use control::{Command, Reply};
use eswitch::card::Counters;
use eswitch::{PciAddress, PortHandle};
use netlink::{Awaited, BuildError, Builder, Errno, Flags, Header, Message, Part, attributes, message, messages};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::eswitch_family;
use crate::family::{ESWITCH, VERSION};
use crate::rdma_core::RdmaChange;
use crate::refusal::Refusal;
use crate::sampling::SampleGroup;
use crate::shared::ViewReader;

/// The largest datagram from the server, in bytes. A message that holds a long list is one datagram.
const DATAGRAM_MAX: usize = 256 * 1024;

/// The time that connecting may take. A daemon accepts its clients at once, whatever else it does. One that is stopped
/// never accepts, and connections wait once its queue is full.
const CONNECTING: Duration = Duration::from_secs(30);

/// A connection to a card.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    /// The time by which every request must be answered, if there is a limit.
    deadline: Option<Instant>,
    sequence: u32,
    buffer: Vec<u8>,
    /// The descriptor that was received with the last answer.
    file: Option<OwnedFd>,
}

/// A message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Its generic netlink command.
    pub command: u8,
    /// Its attributes, which [`netlink::attributes`] parses.
    pub attributes: Vec<u8>,
}

/// The lines of a text that came in pieces.
fn lines_of(answers: &[Answered]) -> Vec<String> {
    String::from_utf8_lossy(&join_pieces(answers)).lines().map(str::to_owned).collect()
}

/// The JSON that was dumped in [pieces](eswitch_family::PIECE).
pub fn join_pieces(answers: &[Answered]) -> Vec<u8> {
    let attributes = answers.iter().flat_map(|answer| attributes(&answer.attributes).flatten());
    let pieces = attributes.filter(|attribute| attribute.kind == eswitch_family::PIECE);
    pieces.flat_map(|piece| piece.value).copied().collect()
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens at the path, or it accepts no connection.
    #[error("no card at {path} ({source}); `esw up --daemon` brings one up, `esw status` lists those that are up")]
    NoCard {
        /// The socket's path.
        path: String,
        /// The error of the system call.
        source: io::Error,
    },
    /// The card refused the request.
    #[error("{}", .0.message.clone().unwrap_or_else(|| io::Error::from(.0.errno).to_string()))]
    Refused(Refusal),
    /// The request cannot be built: it is too long.
    #[error("the request: {0}")]
    Unbuilt(#[from] BuildError),
    /// The connection ended.
    #[error("the connection to the card: {0}")]
    Broken(#[from] io::Error),
}

/// Connects to the control socket at `path`.
///
/// # Errors
/// No daemon listens there, or it accepts no connection for 30 seconds.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    connect_by(path, Instant::now() + CONNECTING)
}

fn connect_by(path: &Path, deadline: Instant) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    with_deadline(&socket, Timeout::Send, Some(deadline), || net::connect(&socket, &address))?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

/// Calls `f`, which waits at a socket, until it succeeds or fails, at most until the deadline. A signal does not end
/// the wait.
fn with_deadline<T>(
    socket: &OwnedFd,
    timeout: Timeout,
    deadline: Option<Instant>,
    mut f: impl FnMut() -> Result<T, Errno>,
) -> io::Result<T> {
    loop {
        if let Some(deadline) = deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // The timeout is rounded down to microseconds, and one of zero would be no timeout.
            set_socket_timeout(socket, timeout, Some(left.max(Duration::from_millis(1))))?;
        }
        match f() {
            // It may have waited for less than the time left.
            Err(Errno::AGAIN) if deadline.is_some() => {}
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

impl Client {
    /// Connects to a card.
    ///
    /// # Errors
    /// No daemon listens at `path`, or it accepts no connection for 30 seconds.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let no_card = |source| ClientError::NoCard { path: path.display().to_string(), source };
        Ok(Self::over(connect(path).map_err(no_card)?))
    }

    /// Connects to a card with a deadline for connecting and for all requests over this connection. No call takes
    /// longer, whatever the card does.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect). A call that would take longer fails with `TimedOut`.
    pub fn connect_by(path: &Path, deadline: Instant) -> Result<Self, ClientError> {
        let no_card = |source| ClientError::NoCard { path: path.display().to_string(), source };
        Ok(Self { deadline: Some(deadline), ..Self::over(connect_by(path, deadline).map_err(no_card)?) })
    }

    /// Uses an existing connection.
    pub fn over(socket: OwnedFd) -> Self {
        Self { socket, deadline: None, sequence: 0, buffer: vec![0; DATAGRAM_MAX], file: None }
    }

    /// Sends a request that is no dump, and returns all messages of the answer.
    ///
    /// # Errors
    /// The request is too long, the card refused it, or the connection has ended.
    pub fn ask(
        &mut self,
        family: u16,
        command: u8,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Vec<Answered>, ClientError> {
        self.request(family, command, Flags::empty(), fill)
    }

    /// Sends a request that is no dump along with a descriptor, and returns all messages of the answer.
    ///
    /// # Errors
    /// As for [`ask`](Self::ask).
    pub fn ask_with(
        &mut self,
        descriptor: BorrowedFd<'_>,
        family: u16,
        command: u8,
        fill: impl FnOnce(&mut Builder),
    ) -> Result<Vec<Answered>, ClientError> {
        self.request_with(Some(descriptor), family, command, Flags::empty(), fill)
    }

    /// Sends a dump request, and returns all messages of the answer.
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
        self.request_with(None, family, command, flags, fill)
    }

    /// Sends a request, with a descriptor if there is one.
    fn request_with(
        &mut self,
        attached: Option<BorrowedFd<'_>>,
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
        with_deadline(&self.socket, Timeout::Send, self.deadline, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if let Some(attached) = &attached {
                ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(attached)));
            }
            net::sendmsg(&self.socket, &[IoSlice::new(&request)], &mut ancillary, SendFlags::NOSIGNAL)
        })?;
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

    /// Requests a reader of the view, from which the view can be read as it changes for as long as this connection
    /// exists.
    ///
    /// # Errors
    /// The card refused the request, as a daemon of an older version does, or the connection has ended.
    pub fn share(&mut self) -> Result<ViewReader, ClientError> {
        self.file = None;
        self.ask(ESWITCH, eswitch_family::SHARE, |_| {})?;
        let file = self.file.take().ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(ViewReader::new(file))
    }

    /// Requests a descriptor of one of the card's network namespaces: [`eswitch_family::INSIDE`] or
    /// [`eswitch_family::HOME`].
    ///
    /// # Errors
    /// The card has no netdevs, or the connection has ended.
    pub fn network(&mut self, which: u32) -> Result<OwnedFd, ClientError> {
        self.file = None;
        self.ask(ESWITCH, eswitch_family::NETWORK, |to| {
            to.u32(eswitch_family::WHICH, which);
        })?;
        Ok(self.file.take().ok_or(io::Error::from(io::ErrorKind::InvalidData))?)
    }

    /// Sends a command, and returns when it has been carried out.
    ///
    /// # Errors
    /// The card refused the command, the connection has ended, or the reply cannot be decoded.
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

    /// Changes what the RDMA core knows of the card's devices. `network`: the namespace to which a device is moved.
    ///
    /// # Errors
    /// The card refused the change, or is of an older version; or the connection has ended.
    pub fn change_rdma(&mut self, change: &RdmaChange, network: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        let json = serde_json::to_vec(change).map_err(|error| ClientError::Broken(io::Error::other(error)))?;
        let fill = |to: &mut Builder| {
            to.put(eswitch_family::RDMA_CHANGE, &json);
        };
        self.request_with(network, ESWITCH, eswitch_family::RDMA, Flags::empty(), fill).map(drop)
    }

    /// The counters of a PF's VFs, by number. The card answers whatever else it is doing.
    ///
    /// # Errors
    /// The card has no such PF, or is of an older version; the connection has ended; or the answer cannot be decoded.
    pub fn vf_counters(&mut self, device: PciAddress) -> Result<BTreeMap<u16, Counters>, ClientError> {
        let answers = self.dump(ESWITCH, eswitch_family::COUNTERS, |to| {
            to.text(eswitch_family::DEVICE, &device.to_string());
        })?;
        serde_json::from_slice(&join_pieces(&answers)).map_err(|error| ClientError::Broken(io::Error::other(error)))
    }

    /// Carries out a request about the filters of the card's netdevs.
    ///
    /// # Errors
    /// The card is of an older version, the request is too long, or the connection has ended. What is refused as tc refuses it
    /// is an answer.
    pub fn tc(&mut self, request: &tc::Request) -> Result<tc::Answer, ClientError> {
        let json = serde_json::to_vec(request).map_err(|error| ClientError::Broken(io::Error::other(error)))?;
        let answers = self.dump(ESWITCH, eswitch_family::TC, |to| {
            to.put(eswitch_family::TC_REQUEST, &json);
        })?;
        serde_json::from_slice(&join_pieces(&answers)).map_err(|error| ClientError::Broken(io::Error::other(error)))
    }

    /// The psample groups that filters of the card's netdevs use, in the order in which they began.
    ///
    /// # Errors
    /// The card is of an older version, the connection has ended, or the answer cannot be decoded.
    pub fn sample_groups(&mut self) -> Result<Vec<SampleGroup>, ClientError> {
        let answers = self.dump(ESWITCH, eswitch_family::SAMPLE_GROUPS, |_| {})?;
        serde_json::from_slice(&join_pieces(&answers)).map_err(|error| ClientError::Broken(io::Error::other(error)))
    }

    /// The flow rules of the card with their counters, in lines of text.
    ///
    /// # Errors
    /// The card is of an older version, or the connection has ended.
    pub fn rules(&mut self) -> Result<Vec<String>, ClientError> {
        Ok(lines_of(&self.dump(ESWITCH, eswitch_family::RULES, |_| {})?))
    }

    /// How many frames the card has dropped, by port and reason, in lines of text.
    ///
    /// # Errors
    /// The card is of an older version, or the connection has ended.
    pub fn drops(&mut self) -> Result<Vec<String>, ClientError> {
        Ok(lines_of(&self.dump(ESWITCH, eswitch_family::DROPS, |_| {})?))
    }

    /// What the flow rules would do with a frame that comes in at a port, in lines of text.
    ///
    /// # Errors
    /// The card has no such port, or is of an older version; the frame is too long for a request; or the connection has
    /// ended.
    pub fn trace(&mut self, port: PortHandle, frame: &[u8]) -> Result<Vec<String>, ClientError> {
        let answers = self.dump(ESWITCH, eswitch_family::TRACE, |to| {
            to.text(eswitch_family::PORT, &port.to_string()).put(eswitch_family::FRAME, frame);
        })?;
        Ok(lines_of(&answers))
    }

    /// Whether the connection is known to have ended. Sends no request.
    pub fn has_ended(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Waits until the connection ends.
    pub fn wait_for_end(&mut self) {
        while self.receive().is_ok() {}
    }

    /// Waits for a notification, and returns its messages.
    ///
    /// # Errors
    /// The connection has ended.
    pub fn receive_notification(&mut self) -> Result<Vec<Answered>, ClientError> {
        let length = self.receive()?;
        Ok(messages(&self.buffer[..length]).filter_map(|message| answered(&message)).collect())
    }

    /// Receives a datagram, and the descriptor that was sent with it, if any.
    fn receive(&mut self) -> io::Result<usize> {
        let (socket, buffer, file) = (&self.socket, &mut self.buffer, &mut self.file);
        let length = with_deadline(socket, Timeout::Recv, self.deadline, || {
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

    /// Returns the socket of the connection.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// The socket of the connection.
    pub fn socket(&self) -> impl AsFd + '_ {
        &self.socket
    }
}

fn answered(message: &Message<'_>) -> Option<Answered> {
    let (genl, attributes) = message.genl()?;
    Some(Answered { command: genl.command, attributes: attributes.to_vec() })
}
