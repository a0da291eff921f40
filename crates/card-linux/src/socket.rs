//! A pipelined netlink socket: many requests a send, one acknowledgement each.
//!
//! Each request is acknowledged by the kernel or reported as failed, and one that fails does not keep
//! those after it from being tried.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink::{
    Awaited, BuildError, Builder, Datagram, Errno, Flags, Header, Message, NLMSG_ERROR, Part, errno_of, messages,
};

use crate::sys;

/// The number of requests in a send. Acknowledgements wait in the receive buffer, 768 bytes each; one that does not fit
/// is lost. 128 fit the default buffer of 212,992 bytes twice.
const WINDOW: usize = 128;

/// Requests that are sent together, each with a tag of the caller's.
#[derive(Default)]
pub(crate) struct Batch {
    datagram: Datagram,
    /// The offset at which each begins, and its tag.
    requests: Vec<(usize, usize)>,
    /// Those that cannot be built.
    unbuilt: Vec<Failure>,
    /// Requests of which one is enough: this one, or the next.
    either: BTreeSet<usize>,
    tag: usize,
}

impl Batch {
    /// Sets the tag of the requests that are pushed from now on.
    pub(crate) fn tag(&mut self, tag: usize) {
        self.tag = tag;
    }

    /// Appends one request; `body` writes the family's header and the attributes. A request that cannot be built is
    /// reported as failed by [`Socket::run`].
    pub(crate) fn push(&mut self, kind: u16, flags: Flags, body: impl FnOnce(&mut Builder)) {
        let at = self.datagram.len();
        match self.datagram.message(Header::new(kind, flags | Flags::REQUEST | Flags::ACK, 0, 0), body) {
            Ok(()) => self.requests.push((at, self.tag)),
            Err(error) => self.unbuilt.push(Failure::unbuilt(self.tag, error)),
        }
    }

    /// Appends two requests of which one has to succeed. Both are tried.
    pub(crate) fn push_either(&mut self, first: impl FnOnce(&mut Self), second: impl FnOnce(&mut Self)) {
        let at = self.requests.len();
        first(self);
        second(self);
        if self.requests.len() == at + 2 {
            self.either.insert(at);
        }
    }

    /// Takes out of failed requests those in whose place another one has succeeded. Each is given with its number. Of two that
    /// have both failed the one remains that tells more: an alternative that does not fit is EINVAL.
    fn forgive(&self, mut failed: Vec<(usize, Failure)>) -> Vec<Failure> {
        let errnos: BTreeMap<usize, Errno> = failed.iter().map(|(number, failure)| (*number, failure.errno)).collect();
        failed.retain(|(number, failure)| {
            let is_second = number.checked_sub(1).is_some_and(|first| self.either.contains(&first));
            if is_second {
                return errnos.get(&(number - 1)) == Some(&Errno::INVAL);
            }
            !self.either.contains(number) || failure.errno != Errno::INVAL && errnos.contains_key(&(number + 1))
        });
        failed.into_iter().map(|(_, failure)| failure).collect()
    }

    /// Whether there is nothing to send and nothing has failed.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.unbuilt.is_empty()
    }

    /// The offset at which a request begins in the datagram; for the request after the last one, the datagram's length.
    fn start_of(&self, request: usize) -> usize {
        self.requests.get(request).map_or(self.datagram.len(), |(at, _)| *at)
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The request's tag.
    pub tag: usize,
    /// What the kernel answered.
    pub errno: Errno,
    /// The kernel's message beside the number, or nothing.
    pub message: String,
}

impl Failure {
    fn unbuilt(tag: usize, error: BuildError) -> Self {
        Self { tag, errno: error.into(), message: error.to_string() }
    }
}

/// A socket of one network namespace.
pub(crate) struct Socket {
    fd: OwnedFd,
    next: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in a namespace, on a thread that moves there for this.
    ///
    /// # Errors
    /// The namespace may not be entered, or there is no memory.
    pub(crate) fn open(netns: &File) -> io::Result<Self> {
        Self::listening(netns, 0)
    }

    /// Opens a socket that also receives the multicast groups of a mask.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn listening(netns: &File, groups: i32) -> io::Result<Self> {
        Self::of(netns, libc::NETLINK_ROUTE, groups)
    }

    /// Opens a socket that also receives the multicast groups of a mask, of this namespace and of every other to which
    /// this one has given an id.
    ///
    /// # Errors
    /// As [`open`](Self::open); `PERM`: this process lacks CAP_NET_BROADCAST.
    pub(crate) fn listening_everywhere(netns: &File, groups: i32) -> io::Result<Self> {
        let socket = Self::listening(netns, groups)?;
        sys::set_option(&socket.fd, libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, 1)?;
        Ok(socket)
    }

    /// Opens a generic netlink socket in a namespace.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn generic(netns: &File) -> io::Result<Self> {
        Self::of(netns, libc::NETLINK_GENERIC, 0)
    }

    /// Has a netdev of the socket's namespace leave checksums to others or not.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_tx_checksums(&self, name: &str, on: bool) -> io::Result<()> {
        sys::set_tx_checksums(&self.fd, name, on)
    }

    /// Sets how many queues a netdev in the socket's network namespace uses in each direction.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_queues(&self, name: &str, count: u32) -> io::Result<()> {
        sys::set_queues(&self.fd, name, count)
    }

    /// A socket whose other end is a test's.
    #[cfg(test)]
    pub(crate) fn of_test(fd: OwnedFd) -> Self {
        Self { fd, next: 1, buffer: vec![0; 64 << 10] }
    }

    /// The bare socket, for a test.
    #[cfg(test)]
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn of(netns: &File, protocol: i32, groups: i32) -> io::Result<Self> {
        within(netns, || {
            let fd = sys::netlink_socket(protocol, groups)?;
            // More room is better but not needed: a window fits what every kernel gives.
            let _ = sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20);
            let _ = sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_SNDBUF, 1 << 20);
            sys::set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
            // Without it an error carries its whole request, and a window does not fit.
            sys::set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
            Ok(Self { fd, next: 1, buffer: vec![0; 64 << 10] })
        })?
    }

    /// Lets the socket receive only those messages that a filter accepts.
    pub(crate) fn set_filter(&self, program: &[sys::FilterOp]) -> io::Result<()> {
        sys::set_filter(&self.fd, program)
    }

    /// The number of the socket's network namespace that no other has.
    pub(crate) fn cookie(&self) -> io::Result<u64> {
        sys::netns_cookie(&self.fd)
    }

    /// Joins a multicast group, by its number.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        sys::set_option(&self.fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
    }

    /// Sends all and reads every answer. Returns what failed: first what could not be built, then in the order of the
    /// requests.
    pub(crate) fn run(&mut self, mut batch: Batch) -> Vec<Failure> {
        let total = batch.requests.len();
        let base = self.next;
        self.next = self.next.wrapping_add(total as u32);
        batch.datagram.number(base);
        let mut failures: Vec<(usize, Failure)> = Vec::new();
        for first in (0..total).step_by(WINDOW) {
            let last = (first + WINDOW).min(total);
            let mut open: Vec<bool> = vec![true; last - first];
            let chunk = &batch.datagram.bytes()[batch.start_of(first)..batch.start_of(last)];
            let outcome = retry(|| sys::send(&self.fd, chunk)).and_then(|_| {
                self.read_answers(base.wrapping_add(first as u32), &mut open, |n, errno, message| {
                    let tag = batch.requests[first + n].1;
                    failures.push((first + n, Failure { tag, errno, message }));
                })
            });
            if let Err(error) = outcome {
                // It is not known whether these were carried out: the caller undoes them as if they were half done.
                let errno = errno_of(&error);
                let unknown = open.iter().enumerate().filter(|(_, open)| **open);
                failures.extend(unknown.map(|(n, _)| {
                    let tag = batch.requests[first + n].1;
                    (first + n, Failure { tag, errno, message: "no answer".to_owned() })
                }));
            }
        }
        let mut all = std::mem::take(&mut batch.unbuilt);
        all.extend(batch.forgive(failures));
        all
    }

    /// Runs one request.
    pub(crate) fn run_one(&mut self, build: impl FnOnce(&mut Batch)) -> Result<(), Failure> {
        let mut batch = Batch::default();
        build(&mut batch);
        self.run(batch).into_iter().next().map_or(Ok(()), Err)
    }

    /// Reads acknowledgements until none of `open` is left; calls `failed` for each that is an error.
    fn read_answers(
        &mut self,
        first: u32,
        open: &mut [bool],
        mut failed: impl FnMut(usize, Errno, String),
    ) -> io::Result<()> {
        let mut left = open.len();
        while left > 0 {
            let len = retry(|| sys::receive(&self.fd, &mut self.buffer))?;
            for message in messages(&self.buffer[..len]).filter(|message| message.header.kind == NLMSG_ERROR) {
                let n = message.header.sequence.wrapping_sub(first) as usize;
                // A late answer to a request that was given up before is dropped.
                let (Some(outcome), Some(true)) = (message.outcome(), open.get(n)) else { continue };
                open[n] = false;
                left -= 1;
                if let Err(errno) = outcome.result {
                    failed(n, errno, outcome.ext_ack().message.unwrap_or_default().to_owned());
                }
            }
        }
        Ok(())
    }

    /// Sends one query and calls `each` with every message of the answer but the acknowledgement.
    ///
    /// # Errors
    /// The kernel's. `ResourceBusy`, if what is dumped has changed meanwhile: the query is to be sent again.
    fn query(
        &mut self,
        kind: u16,
        flags: Flags,
        body: impl FnOnce(&mut Builder),
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let header = Header::new(kind, flags | Flags::REQUEST | Flags::ACK, self.next, 0);
        let request = netlink::message(header, body)?;
        self.next = self.next.wrapping_add(1);
        retry(|| sys::send(&self.fd, &request))?;
        let mut awaited = Awaited::new(header.sequence);
        loop {
            let len = retry(|| sys::receive(&self.fd, &mut self.buffer))?;
            for message in messages(&self.buffer[..len]) {
                match awaited.read(message) {
                    Part::Data(message) => each(&message),
                    Part::End(outcome) => {
                        outcome.result?;
                        return if awaited.is_interrupted() { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(()) };
                    }
                    Part::Other => {}
                }
            }
        }
    }

    /// Queries one object.
    pub(crate) fn get(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Builder),
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.query(kind, Flags::empty(), body, each)
    }

    /// Queries all objects of a kind. If they change while they are dumped, queries them again, up to 20 times.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Builder),
        mut each: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        const TRIES: usize = 20;
        let mut tries = 0;
        loop {
            let mut found = Vec::new();
            tries += 1;
            match self.query(kind, Flags::DUMP, &body, |message| found.extend(each(message))) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {}
                // They change all the time: the last answer is as good as any other.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(found),
                Err(error) => return Err(error),
                Ok(()) => return Ok(found),
            }
        }
    }

    /// Calls `each` with every message that has arrived, without waiting. Returns whether some were lost.
    ///
    /// # Errors
    /// The socket cannot be read. Messages are lost, and it may fail again at once.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        self.drain_everywhere(|message, _| each(message))
    }

    /// As [`drain`](Self::drain); `each` is also given the id of the namespace from which a message comes, unless that
    /// is the socket's own.
    pub(crate) fn drain_everywhere(&mut self, mut each: impl FnMut(&Message<'_>, Option<i32>)) -> io::Result<bool> {
        let mut lost = false;
        loop {
            match retry(|| sys::receive_event(&self.fd, &mut self.buffer)) {
                Ok((len, netns)) => messages(&self.buffer[..len]).for_each(|message| each(&message, netns)),
                Err(error) if errno_of(&error) == Errno::NOBUFS => lost = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lost),
                Err(error) => return Err(error),
            }
        }
    }
}

/// How long to wait after an error before trying again: a call that fails at once, and may do so for ever, must
/// not keep a processor busy.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// How long to wait after one more error: from 20 ms, each time twice as long, to 1.28 s.
    pub(crate) fn after_failure(&mut self) -> Duration {
        let delay = Duration::from_millis(20 << self.failures);
        self.failures = (self.failures + 1).min(6);
        delay
    }

    /// Notes a success: after the next error the wait is the shortest one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `f` on a new thread inside a network namespace.
///
/// # Errors
/// The namespace may not be entered.
pub(crate) fn within<T: Send>(netns: &File, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            sys::enter_netns(netns)?;
            Ok(f())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_each_error_in_a_row_the_wait_is_longer() {
        let mut back_off = BackOff::default();
        let delays: Vec<u128> = (0..8).map(|_| back_off.after_failure().as_millis()).collect();
        assert_eq!(delays, [20, 40, 80, 160, 320, 640, 1_280, 1_280]);
        back_off.reset();
        assert_eq!(back_off.after_failure().as_millis(), 20);
    }

    #[test]
    fn a_request_that_cannot_be_built_fails_and_the_others_are_sent() {
        let mut batch = Batch::default();
        for tag in 0..3 {
            batch.tag(tag);
            batch.push(16, Flags::empty(), |to| {
                to.raw(&[0; 16]).text(3, ["a", "b\0c", "d"][tag]);
            });
        }
        let failed: Vec<_> = batch.unbuilt.iter().map(|failure| (failure.tag, failure.errno)).collect();
        assert_eq!(failed, [(1, Errno::INVAL)]);
        assert_eq!(batch.requests.iter().map(|(_, tag)| *tag).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(messages(batch.datagram.bytes()).count(), 2);
        assert_eq!(batch.start_of(1), batch.datagram.len() / 2);
    }
}
