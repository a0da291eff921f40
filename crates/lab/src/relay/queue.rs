//! What waits to be read by a program.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use netlink::Errno;
use rustix::net::{SendFlags, send};

/// Datagrams on their way to a program, in order.
///
/// It is bounded by who fills it: see [`is_full`](Self::is_full).
#[derive(Default)]
pub(crate) struct Queue {
    datagrams: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Notifications that were not put in because it was full.
    pub lost: u64,
}

/// What a datagram has at most unless one message is longer: as much as the kernel puts into the first part
/// of a dump. Programs with a buffer of a page, as libmnl and glibc have, rely on it.
const DATAGRAM: usize = 3776;

/// Beyond this nothing more is asked for, and notifications are dropped.
const LIMIT: usize = 1 << 20;

impl Queue {
    /// Whether it holds all that it should. What is already there may still be put in.
    pub fn is_full(&self) -> bool {
        self.bytes >= LIMIT
    }

    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Puts messages in, as one datagram unless that would be longer than a program takes.
    pub fn push<'a>(&mut self, messages: impl IntoIterator<Item = &'a [u8]>) {
        let mut datagram: Vec<u8> = Vec::new();
        for message in messages {
            let padded = datagram.len().next_multiple_of(4);
            if !datagram.is_empty() && padded + message.len() > DATAGRAM {
                self.push_whole(std::mem::take(&mut datagram));
            } else {
                datagram.resize(padded, 0);
            }
            datagram.extend(message);
        }
        if !datagram.is_empty() {
            self.push_whole(datagram);
        }
    }

    fn push_whole(&mut self, datagram: Vec<u8>) {
        self.bytes += datagram.len();
        self.datagrams.push_back(datagram);
    }

    /// Sends as much as the program's end takes now.
    ///
    /// # Errors
    /// The program's end is closed.
    pub fn flush(&mut self, end: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(datagram) = self.datagrams.front() {
            match send(end, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                // What no socket takes, whatever its room, is lost; the rest is not.
                Err(Errno::MSGSIZE | Errno::NOBUFS) => self.lost += 1,
                Err(error) => return Err(error.into()),
            }
            self.bytes -= datagram.len();
            self.datagrams.pop_front();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_split_only_between_messages() {
        let mut queue = Queue::default();
        let (small, large) = (vec![1; 1000], vec![2; 9000]);
        queue.push([&small[..], &small, &small, &small, &large, &small]);
        let lens: Vec<_> = queue.datagrams.iter().map(Vec::len).collect();
        assert_eq!(lens, [3000, 1000, 9000, 1000]);
        assert!(!queue.is_full());
        queue.push((0..200).map(|_| &large[..]));
        assert!(queue.is_full());
    }
}
