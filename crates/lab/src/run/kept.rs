//! A lab that is kept: it lives until it is stopped. Its supervisor listens on a socket, on which programs enter it, and on
//! which it is stopped.
//!
//! Over the socket go messages of JSON, one request and one answer for each connection. Only the user who started the lab may
//! connect: the kernel checks the mode of the socket, and the supervisor the user that the kernel reports. The answer to a
//! request to enter has descriptors of the lab's namespaces, and of two channels that are used as those of a lab of one
//! program.

mod programs;
mod server;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use devlink::ControlSocket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};

use crate::passing;

pub(super) use server::serve;

/// How a lab that is kept is reached, and what it reports of itself.
pub struct Keep {
    /// The socket on which it listens. Only the user who starts the lab may connect.
    pub socket: ControlSocket,
    /// The names of its cards.
    pub cards: Vec<String>,
}

impl Keep {
    /// In the front, once there is a supervisor: the socket is the supervisor's, which removes it.
    pub(super) fn leave_to_supervisor(self) {
        std::mem::forget(self.socket);
    }
}

/// A program in a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramInside {
    /// Its process.
    pub pid: u32,
    /// Its command line, of which the end may be cut off.
    pub command: String,
}

/// What a lab reports of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor's process.
    pub pid: u32,
    /// How long it has run.
    pub uptime_seconds: u64,
    /// The names of its cards.
    pub cards: Vec<String>,
    /// The programs in it, at most 300 of them.
    pub programs: Vec<ProgramInside>,
}

/// How many programs are listed at most.
pub const PROGRAMS: usize = 300;

/// The outcome of a request to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopped {
    /// The lab has ended, and nothing is left.
    Yes,
    /// The lab has ended, and these programs could not be ended. They go on without a lab.
    Without(Vec<ProgramInside>),
    /// Programs run, and nothing has changed. The list is empty if they cannot be found.
    Busy(Vec<ProgramInside>),
}

/// Why a lab does not answer a request.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// No supervisor listens on the socket.
    #[error("the lab does not run")]
    Gone,
    /// This user may not connect.
    #[error("the lab belongs to another user: permission denied")]
    Denied,
    /// The supervisor does not answer in time.
    #[error("the lab's supervisor does not answer; it may be stopped, or be busy")]
    Silent,
    /// The supervisor refuses, for this reason.
    #[error("{0}")]
    Refused(String),
    /// The system refuses something else.
    #[error("talking to the lab's supervisor: {0}")]
    System(#[from] io::Error),
}

impl From<Errno> for KeptError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// A request to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// A program is to enter. `high`: the descriptor numbers for which its filter traps receiving.
    Enter {
        high: Range<u32>,
    },
    Status,
    /// The lab is to end. `force`: its programs are to be ended first, by SIGTERM, and after `patience` by SIGKILL.
    Stop {
        force: bool,
        patience: Duration,
    },
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// It comes with the descriptors of an [`Entry`], in their order.
    Entry,
    Status(Status),
    Stopped(Stopped),
    Refused(String),
}

/// What a program needs to enter a lab.
pub(super) struct Entry {
    /// The front's channel to the supervisor.
    pub front: OwnedFd,
    /// The channel of the program's process to the supervisor.
    pub calls: OwnedFd,
    /// The mount namespace.
    pub mounts: OwnedFd,
    /// The root directory in it.
    pub root: OwnedFd,
    /// The user namespace.
    pub users: OwnedFd,
    /// The network namespace.
    pub network: OwnedFd,
}

/// The size of the longest message, in bytes. A Unix socket takes no longer one by default.
const MESSAGE: usize = 200 << 10;

/// How long the supervisor may take to answer what it can answer at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a lab that is kept, for one request.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Connects to the lab whose socket is at a path.
    ///
    /// # Errors
    /// No lab listens there, or it is another user's.
    pub fn connect(path: &Path) -> Result<Self, KeptError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        match connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED | Errno::NOTDIR) => return Err(KeptError::Gone),
            Err(Errno::ACCESS | Errno::PERM) => return Err(KeptError::Denied),
            // So many wait that no more may.
            Err(Errno::AGAIN) => return Err(KeptError::Silent),
            Err(error) => return Err(error.into()),
        }
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(Self(socket))
    }

    /// What the lab reports of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(self) -> Result<Status, KeptError> {
        match self.ask(&Request::Status, PATIENCE)? {
            (Answer::Status(status), _) => Ok(status),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Ends the lab, unless programs run in it. `force`: ends these first, by SIGTERM, and those that have not ended after
    /// `patience` by SIGKILL. When this returns and the lab has ended, another one can be started.
    ///
    /// # Errors
    /// It does not answer, or the caller is in the lab.
    pub fn stop(self, force: bool, patience: Duration) -> Result<Stopped, KeptError> {
        let socket = self.0.try_clone()?;
        let stopped = match self.ask(&Request::Stop { force, patience }, PATIENCE + patience)? {
            (Answer::Stopped(stopped), _) => stopped,
            (other, _) => return Err(unexpected(other)),
        };
        // The socket is closed by the end of the supervisor's process.
        if !matches!(stopped, Stopped::Busy(_)) && !wait_readable(&socket, PATIENCE)? {
            return Err(KeptError::Silent);
        }
        Ok(stopped)
    }

    /// What a program needs to enter. `high`: the descriptor numbers for which its filter traps receiving.
    pub(super) fn enter(self, high: Range<u32>) -> Result<Entry, KeptError> {
        let fds = match self.ask(&Request::Enter { high }, PATIENCE)? {
            (Answer::Entry, fds) => fds,
            (other, _) => return Err(unexpected(other)),
        };
        let [front, calls, mounts, root, users, network] =
            <[OwnedFd; 6]>::try_from(fds).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Entry { front, calls, mounts, root, users, network })
    }

    fn ask(self, request: &Request, patience: Duration) -> Result<(Answer, Vec<OwnedFd>), KeptError> {
        let request = serde_json::to_vec(request).map_err(io::Error::from)?;
        passing::send(&self.0, &request, &[])?;
        if !wait_readable(&self.0, patience)? {
            return Err(KeptError::Silent);
        }
        let mut bytes = vec![0; MESSAGE];
        match passing::receive(&self.0, &mut bytes)? {
            (0, _) => Err(KeptError::Gone),
            (length, fds) => {
                let answer = bytes.get(..length).map(serde_json::from_slice);
                Ok((answer.ok_or(io::ErrorKind::InvalidData).map_err(io::Error::from)?.map_err(io::Error::from)?, fds))
            }
        }
    }
}

fn unexpected(answer: Answer) -> KeptError {
    match answer {
        Answer::Refused(why) => KeptError::Refused(why),
        _ => io::Error::from(io::ErrorKind::InvalidData).into(),
    }
}

/// Waits until something can be received, or the other end is closed; whether that is so in time.
fn wait_readable(socket: &OwnedFd, limit: Duration) -> Result<bool, Errno> {
    let limit = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&limit)))?;
    Ok(ready > 0)
}
