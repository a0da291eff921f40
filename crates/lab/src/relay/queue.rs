//! The datagrams that wait to be read by a program.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use netlink::Errno;
use rustix::net::{SendFlags, send};

/// Datagrams on their way to a program, in order.
///
/// Its length is bounded by the code that fills it: see [`is_full`](Self::is_full).
#[derive(Default)]
pub(crate) struct Queue {
    datagrams: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many datagrams were lost, for example notifications that arrived while the queue was full.
    pub lost: u64,
}

/// The most bytes of a datagram, unless a single message is longer: as many as the kernel puts into the first part of a
/// dump. Programs with a buffer of one page, such as those of libmnl and glibc, rely on it.
const DATAGRAM: usize = 3776;

/// The most bytes of the queue. From there on no more answers are requested, and notifications are dropped.
const LIMIT: usize = 1 << 20;

impl Queue {
    /// Whether nothing more should be requested for the program. What has been received already may still be added.
    pub fn is_full(&self) -> bool {
        self.bytes >= LIMIT
    }

    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Adds messages: as one datagram, unless that would be longer than a program receives.
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

    /// Sends as much as the program's end takes without blocking.
    ///
    /// # Errors
    /// The program's end is closed.
    pub fn flush(&mut self, end: BorrowedFd<'_>) -> io::Result<()> {
        while let Some(datagram) = self.datagrams.front() {
            match send(end, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                // A datagram that no socket takes, however empty, is lost; the rest is not.
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
