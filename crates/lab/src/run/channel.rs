//! The messages between the three processes of a lab: a few bytes, with at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use ::netlink::{Errno, errno_from_code};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// From the program's process to the supervisor: the descriptor on which its trapped calls are received.
    Listener,
    /// From the program's process to the front: it is prepared, and waits for [`Go`](Self::Go).
    Ready,
    /// From the program's process to the front: a step has failed, with this error.
    Failed(Step, Errno),
    /// From the supervisor to the front: it answers trapped calls from now on.
    Serving,
    /// From the front to the supervisor: the program's process, as a descriptor.
    Program,
    /// From the front to the program's process: it is to become the program.
    Go,
    /// From the front to the supervisor: the program has ended.
    Ended,
    /// From the supervisor to the front: the program has left processes running.
    Remains,
    /// From the process that makes the place of a lab that is kept, to the supervisor: the mount namespace.
    Mounts,
    /// The same: the root directory in it.
    Root,
}

/// A step of the program's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Namespaces,
    Mounts,
    Join,
    Filter,
    Program,
}

const STEPS: [Step; 5] = [Step::Namespaces, Step::Mounts, Step::Join, Step::Filter, Step::Program];
const WORDS: [Word; 9] = [
    Word::Listener,
    Word::Ready,
    Word::Serving,
    Word::Program,
    Word::Go,
    Word::Ended,
    Word::Remains,
    Word::Mounts,
    Word::Root,
];
/// The number of the first step in [`Word::Failed`].
const FAILED: u8 = 100;
/// The length of a message: the number of a word or step, and an error number.
const LEN: usize = 5;

impl Word {
    fn bytes(self) -> [u8; LEN] {
        let (number, errno) = match self {
            Self::Failed(step, errno) => (FAILED + step as u8, errno.raw_os_error()),
            word => (WORDS.iter().position(|other| *other == word).unwrap_or(WORDS.len()) as u8, 0),
        };
        let [a, b, c, d] = errno.to_ne_bytes();
        [number, a, b, c, d]
    }

    fn of([number, a, b, c, d]: [u8; LEN]) -> Option<Self> {
        match number.checked_sub(FAILED) {
            Some(step) => {
                let errno = errno_from_code(i32::from_ne_bytes([a, b, c, d]).saturating_neg()).err()?;
                Some(Self::Failed(*STEPS.get(usize::from(step))?, errno))
            }
            None => WORDS.get(usize::from(number)).copied(),
        }
    }
}

/// Makes a channel, and returns its two ends. Receiving from an end whose other end is closed everywhere fails with
/// `UnexpectedEof`.
///
/// # Errors
/// The process has no more descriptors.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends a message.
///
/// # Errors
/// The other end is closed.
pub(super) fn send(to: impl AsFd, word: Word, fd: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // The process that becomes the program sends under the filter, while nobody receives its trapped calls yet.
    let flags = SendFlags::from_bits_retain(crate::filter::UNTRAPPED_SEND);
    sendmsg(to, &[IoSlice::new(&word.bytes())], &mut ancillary, flags)?;
    Ok(())
}

/// Waits for a message.
///
/// # Errors
/// The other end is closed, or the message is malformed.
pub(super) fn receive(from: impl AsFd) -> io::Result<(Word, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; LEN];
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let word = Word::of(bytes).filter(|_| received.bytes == LEN).ok_or(io::ErrorKind::InvalidData)?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((word, fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_received_as_it_was_sent() {
        let (one, other) = pair().unwrap();
        let failed = STEPS.map(|step| Word::Failed(step, Errno::BUSY));
        for word in WORDS.into_iter().chain(failed) {
            send(&one, word, (word == Word::Listener).then_some(&one)).unwrap();
            let (word_received, fd) = receive(&other).unwrap();
            assert_eq!((word_received, fd.is_some()), (word, word == Word::Listener));
        }
        drop(one);
        assert_eq!(receive(&other).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
