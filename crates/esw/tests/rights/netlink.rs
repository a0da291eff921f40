//! Requests in raw netlink, to the kernel or to the lab in its place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ::netlink::{Awaited, Builder, Errno, Flags, Header, Part, find, messages};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send};

use crate::sys;

/// How long an answer may take before the test gives up.
const LONG: Duration = Duration::from_secs(60);
/// What `errno` is told as if there was no answer.
pub const NO_ANSWER: i32 = -1;

/// A protocol of netlink that a lab answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Route,
    Generic,
    Rdma,
}

pub const PROTOCOLS: [Protocol; 3] = [Protocol::Route, Protocol::Generic, Protocol::Rdma];

/// Opens a socket. With a kernel that has no RDMA, there is none outside a lab.
pub fn open(protocol: Protocol) -> rustix::io::Result<OwnedFd> {
    let number = match protocol {
        Protocol::Route => None,
        Protocol::Generic => Some(netlink::GENERIC),
        Protocol::Rdma => Some(netlink::RDMA),
    };
    rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, number)
}

/// The sockets that an actor sends requests over: its own, or those that another process has opened.
#[derive(Default)]
pub struct Sockets(pub Option<Vec<OwnedFd>>);

impl Sockets {
    /// Sends a request; what is answered, or the error number.
    pub fn ask(&self, protocol: Protocol, request: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, i32> {
        match &self.0 {
            Some(given) => ask(given[protocol as usize].as_fd(), request),
            None => ask(open(protocol).map_err(|error| error.raw_os_error())?.as_fd(), request),
        }
    }

    /// The number of a family of generic netlink.
    pub fn family(&self, name: &str) -> Result<u16, i32> {
        let (control, get, id, text) = (16, 3, 1, 2);
        let request = request(control, Flags::empty(), |to| {
            to.genl(get, 1).text(text, name);
        });
        let answers = self.ask(Protocol::Generic, &request)?;
        let found = answers.iter().find_map(|(_, body)| find(body.get(::netlink::GENL_HEADER..)?, id)?.u16());
        found.ok_or(libc::ENOENT)
    }
}

/// Joins a multicast group of a family of generic netlink: the error number, 0 for success.
pub fn join(family: &str, group: &str) -> i32 {
    let joined = || {
        let socket = open(Protocol::Generic).map_err(|error| error.raw_os_error())?;
        let request = request(16, Flags::empty(), |to| {
            to.genl(3, 1).text(2, family);
        });
        let answers = ask(socket.as_fd(), &request)?;
        let (groups, name, id) = (7, 1, 2);
        let number = answers.iter().find_map(|(_, body)| {
            let groups = find(body.get(::netlink::GENL_HEADER..)?, groups)?;
            let mut entries = groups.nested().flatten();
            let entry = entries.find(|entry| find(entry.value, name).and_then(|name| name.string()) == Some(group))?;
            find(entry.value, id)?.u32()
        });
        Ok(sys::join(&socket, number.ok_or(libc::ENOENT)?))
    };
    joined().unwrap_or_else(|errno: i32| errno)
}

/// A request that is to be acknowledged.
pub fn request(kind: u16, flags: Flags, fill: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let header = Header::new(kind, Flags::REQUEST | Flags::ACK | flags, SEQUENCE, 0);
    ::netlink::message(header, fill).expect("a request that can be built")
}

const SEQUENCE: u32 = 0x5e9;

/// Sends a request and reads up to its end.
pub fn ask(socket: BorrowedFd<'_>, request: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, i32> {
    let failed = |error: Errno| error.raw_os_error();
    set_socket_timeout(socket, Timeout::Recv, Some(LONG)).map_err(failed)?;
    // What an earlier request left is not the answer to this one.
    let mut buffer = vec![0; 64 << 10];
    while recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
    send(socket, request, SendFlags::empty()).map_err(failed)?;
    let (mut awaited, mut answers) = (Awaited::new(SEQUENCE), Vec::new());
    loop {
        let (_, length) = recv(socket, &mut buffer[..], RecvFlags::empty()).map_err(|error| match error {
            Errno::AGAIN => NO_ANSWER,
            error => error.raw_os_error(),
        })?;
        for message in messages(&buffer[..length]) {
            match awaited.read(message) {
                Part::Data(message) => answers.push((message.header.kind, message.payload().to_vec())),
                Part::End(outcome) => return outcome.result.map(|()| answers).map_err(failed),
                Part::Other => {}
            }
        }
    }
}
