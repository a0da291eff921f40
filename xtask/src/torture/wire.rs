//! The checker's own netlink messages and client for control sockets: here a fault in the product's reader cannot hide one
//! in its writer. Numbers are those of the kernel's `linux/netlink.h` and `linux/genetlink.h`.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// NLM_F_REQUEST, NLM_F_ACK.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// NLM_F_DUMP.
const DUMP: u16 = 0x300;
/// NLMSG_ERROR, NLMSG_DONE.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// GENL_ID_CTRL, CTRL_CMD_GETFAMILY, and two of its attributes.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// NLMSGERR_ATTR_MSG.
const MESSAGE: u16 = 1;
/// Bytes of the headers: netlink's, and generic netlink's.
const HEADER: usize = 16;
const GENERIC: usize = 4;

/// The time limit for an answer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Attributes that are being written.
#[derive(Clone, Debug, Default)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Adds an attribute.
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds text with its zero byte.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let bytes: Vec<u8> = value.bytes().chain([0]).collect();
        self.put(kind, &bytes)
    }

    /// Adds attributes in an attribute (NLA_F_NESTED).
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.put(kind | 0x8000, &inner.0)
    }
}

/// The attributes in these bytes, up to the first invalid one.
pub fn each(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut all = Vec::new();
    while let Some([a, b, c, d]) = bytes.first_chunk::<4>().copied() {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let Some(value) = bytes.get(4..length) else { break };
        all.push((u16::from_ne_bytes([c, d]) & 0x3fff, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

/// The first attribute of a kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    each(bytes).into_iter().find(|(is, _)| *is == kind).map(|(_, value)| value)
}

/// An integer of up to eight bytes.
pub fn number(bytes: &[u8], kind: u16) -> Option<u64> {
    let value = find(bytes, kind)?;
    let mut wide = [0; 8];
    wide.get_mut(..value.len())?.copy_from_slice(value);
    // The lowest byte comes first on every machine that a lab is for, x86_64 and aarch64.
    Some(u64::from_le_bytes(wide))
}

/// Text up to its zero byte.
pub fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let value = find(bytes, kind)?;
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    Some(String::from_utf8_lossy(&value[..end]).into_owned())
}

/// A whole message: netlink's header, generic netlink's, attributes.
pub fn message(family: u16, command: u8, flags: u16, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + GENERIC + attributes.len());
    bytes.extend(((HEADER + GENERIC + attributes.len()) as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The card refuses: the errno and the text of the error.
    Refused(i32, String),
    /// The connection ended before the answer.
    Gone(io::Error),
    /// No answer within [`PATIENCE`].
    Silence,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno, words) => write!(f, "refused with error {errno}: {words}"),
            Self::Gone(error) => write!(f, "the connection ended: {error}"),
            Self::Silence => write!(f, "no answer in {} s", PATIENCE.as_secs()),
        }
    }
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silence,
            _ => Self::Gone(error),
        }
    }
}

/// A family of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The kernel's `devlink`.
    Devlink,
    /// The product's own `eswitch`.
    Eswitch,
}

/// A connection to a control socket.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    sequence: u32,
    devlink: u16,
    eswitch: u16,
}

/// A socket that is connected, with [`PATIENCE`] as its time limit.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connections of another user. The kernel stores the credentials at connect time, and those of a thread can be changed
/// alone.
pub fn connect_as(user: u32, path: &Path, n: usize) -> io::Result<Vec<OwnedFd>> {
    let connect_all = || {
        let (group, user) = (Gid::from_raw(user), Uid::from_raw(user));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        (0..n).map(|_| connect(path)).collect()
    };
    thread::scope(|scope| scope.spawn(connect_all).join())
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

/// The ID of the process that listens at a path, from the kernel.
pub fn listener(path: &Path) -> io::Result<u32> {
    Ok(socket_peercred(&connect(path)?)?.pid.as_raw_pid().cast_unsigned())
}

impl Client {
    /// Connects, and resolves the families by name.
    pub fn connect(path: &Path) -> Result<Self, NoAnswer> {
        Self::over(connect(path)?)
    }

    /// Uses a connection, and resolves the families by name.
    pub fn over(socket: OwnedFd) -> Result<Self, NoAnswer> {
        let mut client = Self { socket, sequence: 0, devlink: 0, eswitch: 0 };
        client.devlink = client.family("devlink")?;
        client.eswitch = client.family("eswitch")?;
        Ok(client)
    }

    fn family(&mut self, name: &str) -> Result<u16, NoAnswer> {
        let asked = Attributes::default().text(FAMILY_NAME, name);
        let answers = self.exchange(CONTROL, GET_FAMILY, 0, &asked.0)?;
        let id = answers.iter().find_map(|answer| number(answer, FAMILY_ID));
        id.and_then(|id| id.try_into().ok()).ok_or_else(|| NoAnswer::Refused(0, format!("there is no family {name}")))
    }

    /// The ID of a family on this connection.
    pub fn number_of(&self, family: Family) -> u16 {
        match family {
            Family::Devlink => self.devlink,
            Family::Eswitch => self.eswitch,
        }
    }

    /// Sends a request and returns the attributes of every message of the answer.
    pub fn ask(&mut self, family: Family, command: u8, attributes: &Attributes) -> Result<Vec<Vec<u8>>, NoAnswer> {
        self.exchange(self.number_of(family), command, 0, &attributes.0)
    }

    /// Sends a dump request.
    pub fn dump(&mut self, family: Family, command: u8) -> Result<Vec<Vec<u8>>, NoAnswer> {
        self.exchange(self.number_of(family), command, DUMP, &[])
    }

    fn exchange(&mut self, family: u16, command: u8, flags: u16, attributes: &[u8]) -> Result<Vec<Vec<u8>>, NoAnswer> {
        self.sequence += 1;
        let request = message(family, command, ACK | flags, self.sequence, attributes);
        net::send(&self.socket, &request, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let length = match net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => return Err(NoAnswer::Gone(io::ErrorKind::UnexpectedEof.into())),
                Ok((_, length)) => length.min(buffer.len()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
            };
            let mut rest = &buffer[..length];
            while let Some(head) = rest.first_chunk::<HEADER>() {
                let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
                let Some(payload) = rest.get(HEADER..length) else { break };
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                let sequence = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                match kind {
                    _ if sequence != self.sequence => {}
                    DONE => return Ok(answers),
                    ERROR => return outcome(payload).map(|()| answers),
                    _ => answers.push(payload.get(GENERIC..).unwrap_or_default().to_vec()),
                }
            }
        }
    }
}

/// The result in an acknowledgement.
fn outcome(payload: &[u8]) -> Result<(), NoAnswer> {
    let errno = payload.first_chunk::<4>().map_or(-5, |bytes| i32::from_ne_bytes(*bytes));
    if errno == 0 {
        return Ok(());
    }
    let words = text(payload.get(4 + HEADER..).unwrap_or_default(), MESSAGE).unwrap_or_default();
    Err(NoAnswer::Refused(-errno, words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_is_found_again() {
        let inner = Attributes::default().put(1, &[2, 0xe5, 8, 0, 0, 1]);
        let all = Attributes::default().text(1, "pci").put(3, &7u32.to_le_bytes()).nest(145, &inner);
        assert_eq!(text(&all.0, 1).as_deref(), Some("pci"));
        assert_eq!(number(&all.0, 3), Some(7));
        assert_eq!(find(find(&all.0, 145).unwrap(), 1), Some(&[2, 0xe5, 8, 0, 0, 1][..]));
        assert_eq!(find(&all.0, 9), None);
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_row() {
        assert_eq!(each(&[9, 0, 1, 0]), []);
        assert_eq!(each(&[3, 0, 1, 0]), []);
    }
}
