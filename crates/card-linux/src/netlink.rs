//! A pipelined netlink socket: many requests a send, one acknowledgement each.
//!
//! What is asked is never in doubt: each request is answered by the kernel or reported as failed, and
//! one that fails does not keep those after it from being tried.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sys;

/// Requests a send. Acknowledgements wait in the receive buffer, 768 bytes each; one that does not fit
/// is lost. 128 fit the default buffer of 212,992 bytes twice.
const WINDOW: usize = 128;

const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Requests, each with a tag that says whose it is.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    requests: Vec<(usize, usize)>,
    tag: usize,
}

impl Batch {
    /// What is pushed from now on is `tag`'s.
    pub(crate) fn tag(&mut self, tag: usize) {
        self.tag = tag;
    }

    /// Appends one request; `body` writes the family's header and the attributes.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Vec<u8>)) {
        let at = self.bytes.len();
        self.bytes.extend([0; HEADER]);
        body(&mut self.bytes);
        let len = (self.bytes.len() - at) as u32;
        let header = &mut self.bytes[at..at + HEADER];
        header[0..4].copy_from_slice(&len.to_ne_bytes());
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        let padding = self.bytes.len().next_multiple_of(4) - self.bytes.len();
        self.bytes.extend([0; 4].iter().take(padding));
        self.requests.push((at, self.tag));
    }

    /// Writes the sequence numbers, from `first` on.
    fn number(&mut self, first: u32) {
        for (n, (at, _)) in self.requests.iter().enumerate() {
            self.bytes[at + 8..at + 12].copy_from_slice(&first.wrapping_add(n as u32).to_ne_bytes());
        }
    }

    fn end_of(&self, request: usize) -> usize {
        self.requests.get(request).map_or(self.bytes.len(), |(at, _)| *at)
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// Whose it was.
    pub tag: usize,
    /// Positive.
    pub errno: i32,
    /// What the kernel said beyond the number, or nothing.
    pub message: String,
}

/// A socket of one network namespace.
pub(crate) struct Socket {
    fd: OwnedFd,
    next: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket of a namespace. It is opened on a thread of its own, which moves there.
    ///
    /// # Errors
    /// The namespace may not be entered, or there is no memory.
    pub(crate) fn open(netns: &File) -> io::Result<Self> {
        Self::listening(netns, 0)
    }

    /// A socket that also hears the multicast groups of a mask.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn listening(netns: &File, groups: i32) -> io::Result<Self> {
        Self::of(netns, libc::NETLINK_ROUTE, groups)
    }

    /// A generic netlink socket of a namespace.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn generic(netns: &File) -> io::Result<Self> {
        Self::of(netns, libc::NETLINK_GENERIC, 0)
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

    /// Lets only those messages through that a filter accepts.
    pub(crate) fn set_filter(&self, program: &[sys::FilterOp]) -> io::Result<()> {
        sys::set_filter(&self.fd, program)
    }

    /// Also hears a multicast group, by its number.
    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        sys::set_option(&self.fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
    }

    /// Sends all and reads every answer. Returns what failed, in the order of the requests.
    pub(crate) fn run(&mut self, mut batch: Batch) -> Vec<Failure> {
        let total = batch.requests.len();
        let base = self.next;
        self.next = self.next.wrapping_add(total as u32);
        batch.number(base);
        let mut failures = Vec::new();
        for first in (0..total).step_by(WINDOW) {
            let last = (first + WINDOW).min(total);
            let mut open: Vec<bool> = vec![true; last - first];
            let chunk = &batch.bytes[batch.end_of(first)..batch.end_of(last)];
            let outcome = retry(|| sys::send(&self.fd, chunk)).and_then(|_| {
                self.read_answers(base.wrapping_add(first as u32), &mut open, |n, errno, message| {
                    let tag = batch.requests[first + n].1;
                    failures.push(Failure { tag, errno, message });
                })
            });
            if let Err(error) = outcome {
                // Whether these were done is not known: who asked undoes them as if they were half done.
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let unknown = open.iter().enumerate().filter(|(_, open)| **open);
                failures.extend(unknown.map(|(n, _)| Failure {
                    tag: batch.requests[first + n].1,
                    errno,
                    message: "no answer".to_owned(),
                }));
            }
        }
        failures
    }

    /// Runs one request.
    pub(crate) fn run_one(&mut self, build: impl FnOnce(&mut Batch)) -> Result<(), Failure> {
        let mut batch = Batch::default();
        build(&mut batch);
        self.run(batch).into_iter().next().map_or(Ok(()), Err)
    }

    /// Reads answers until none of `open` is left; `failed` is told each that is an error.
    fn read_answers(
        &mut self,
        first: u32,
        open: &mut [bool],
        mut failed: impl FnMut(usize, i32, String),
    ) -> io::Result<()> {
        let mut left = open.len();
        while left > 0 {
            let len = retry(|| sys::receive(&self.fd, &mut self.buffer, true))?;
            for message in Messages(&self.buffer[..len]) {
                let n = message.seq.wrapping_sub(first) as usize;
                // A late answer to what was given up before is nobody's.
                if message.kind != NLMSG_ERROR || !open.get(n).is_some_and(|open| *open) {
                    continue;
                }
                open[n] = false;
                left -= 1;
                let errno = message.body.get(..4).map_or(libc::EIO, |b| -int(b));
                if errno != 0 {
                    // After the number the header of the request, after that attributes.
                    failed(n, errno, said(message.body.get(4 + HEADER..).unwrap_or_default()));
                }
            }
        }
        Ok(())
    }

    /// Asks one question and hands every message of the answer, but the acknowledgement, to `each`.
    ///
    /// # Errors
    /// What the kernel answered. `Interrupted`, if what was dumped changed meanwhile: ask again.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        body: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.push(kind, flags, body);
        let seq = self.next;
        self.next = self.next.wrapping_add(1);
        batch.number(seq);
        retry(|| sys::send(&self.fd, &batch.bytes))?;
        let mut torn = false;
        loop {
            let len = retry(|| sys::receive(&self.fd, &mut self.buffer, true))?;
            for message in Messages(&self.buffer[..len]).filter(|m| m.seq == seq) {
                torn |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR => match message.body.get(..4).map_or(libc::EIO, |b| -int(b)) {
                        0 => return Ok(()),
                        errno => return Err(io::Error::from_raw_os_error(errno)),
                    },
                    NLMSG_DONE if torn => return Err(io::ErrorKind::ResourceBusy.into()),
                    NLMSG_DONE => return Ok(()),
                    _ => each(&message),
                }
            }
        }
    }

    /// Asks for one thing.
    pub(crate) fn get(
        &mut self,
        kind: u16,
        body: impl FnOnce(&mut Vec<u8>),
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.ask(kind, 0, body, each)
    }

    /// Asks for everything of a kind. An answer that changed while it was given is asked for again.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: impl Fn(&mut Vec<u8>),
        mut each: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        const TRIES: usize = 20;
        let mut tries = 0;
        loop {
            let mut found = Vec::new();
            tries += 1;
            match self.ask(kind, NLM_F_DUMP, &body, |message| found.extend(each(message))) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < TRIES => {}
                // It never held still: the last answer is as good as any.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(found),
                Err(error) => return Err(error),
                Ok(()) => return Ok(found),
            }
        }
    }

    /// Hands every message that has arrived to `each`, without waiting. Says whether some were lost.
    ///
    /// # Errors
    /// The socket cannot be read. What it would have told is lost, and it may fail again at once.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut lost = false;
        loop {
            match retry(|| sys::receive(&self.fd, &mut self.buffer, false)) {
                Ok(len) => Messages(&self.buffer[..len]).for_each(|message| each(&message)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lost),
                Err(error) => return Err(error),
            }
        }
    }
}

/// How long whoever listens waits after an error before trying again: what fails at once, and may do so for ever, must
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

    /// It has succeeded: the next error is waited for the shortest time again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Runs `f` on a thread of its own inside a network namespace.
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

/// One message that has been received.
pub(crate) struct Message<'a> {
    pub kind: u16,
    flags: u16,
    seq: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

#[cfg(test)]
impl<'a> Message<'a> {
    /// One that was recorded.
    pub(crate) fn of(kind: u16, body: &'a [u8]) -> Self {
        Self { kind, flags: 0, seq: 0, body }
    }
}

/// The messages of a datagram. What is not whole ends it.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER)?;
        let len = int(&header[0..4]) as usize;
        let body = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            seq: int(&header[8..12]) as u32,
            body,
        })
    }
}

/// The attributes of a message: type without flags, and payload. What is not whole ends it.
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const TYPE: u16 = 0x3fff;
        let header = self.0.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let payload = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The first four bytes as a number; 0 if there are fewer.
pub(crate) fn int(bytes: &[u8]) -> i32 {
    bytes.first_chunk().map_or(0, |b| i32::from_ne_bytes(*b))
}

fn said(attributes: &[u8]) -> String {
    let message = Attributes(attributes).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
    message.map_or_else(String::new, |(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_in_a_row_are_waited_for_longer_and_longer() {
        let mut back_off = BackOff::default();
        let delays: Vec<u128> = (0..8).map(|_| back_off.after_failure().as_millis()).collect();
        assert_eq!(delays, [20, 40, 80, 160, 320, 640, 1_280, 1_280]);
        back_off.reset();
        assert_eq!(back_off.after_failure().as_millis(), 20);
    }

    #[test]
    fn what_is_cut_short_ends_the_reading() {
        let mut batch = Batch::default();
        batch.push(16, 0, |bytes| bytes.extend([1, 2, 3, 4, 5]));
        batch.push(17, 0, |bytes| bytes.extend([6; 8]));
        batch.number(7);
        let whole: Vec<_> = Messages(&batch.bytes).map(|m| (m.kind, m.seq, m.body.to_vec())).collect();
        assert_eq!(whole, [(16, 7, vec![1, 2, 3, 4, 5]), (17, 8, vec![6; 8])]);
        for len in 0..batch.bytes.len() {
            let n = Messages(&batch.bytes[..len]).count();
            assert_eq!(n, usize::from(len >= HEADER + 5), "{len}");
        }
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0, "shorter than its own header");
        assert_eq!(Attributes(&[200, 0, 1, 0, 1]).count(), 0);
    }
}
