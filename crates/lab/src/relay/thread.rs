//! The thread behind a program's socket: what it does for every protocol.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use ::netlink::{Builder, Datagram, Errno, Message, messages};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send};

use super::Behind;
use super::queue::Queue;
use super::socket::{Request, Shared};
use crate::cards::Cards;
use crate::process::{self, Caller, NET_ADMIN};
use crate::supervisor::Reply;

/// What every protocol has.
pub(super) struct Io {
    /// Our end of the program's socket.
    pub(super) end: OwnedFd,
    pub(super) shared: Arc<Shared>,
    pub(super) cards: Arc<Cards>,
    pub(super) queue: Queue,
    /// Whoever sent what is being looked at.
    pub(super) sender: Caller,
    /// Lets the call return that sent it.
    pub(super) reply: Option<Reply>,
    /// Nobody reads any more; what is still to be done is done all the same.
    pub(super) deaf: bool,
}

impl Io {
    /// Waits for something and carries it. `false`: the program has closed its socket.
    pub(super) fn step(&mut self, behind: &mut dyn Behind, buffer: &mut [u8]) -> bool {
        self.flush();
        // Before waiting: those that came while the program did not read have woken us already.
        while !self.is_full() {
            let Some(request) = self.shared.next_request() else { break };
            self.carry_out(behind, buffer, request);
        }
        let heard: Vec<OwnedFd> = {
            let heard = self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.iter().filter_map(|fd| fd.try_clone().ok()).collect()
        };
        let ready = match self.wait(&heard) {
            Ok(ready) => ready,
            Err(Errno::INTR) => return true,
            Err(_) => return false,
        };
        if ready[1].contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        }
        for (fd, flags) in heard.iter().zip(ready.get(3..).unwrap_or_default()) {
            if !flags.is_empty() {
                self.hear(behind, fd, buffer);
            }
        }
        if !ready[2].is_empty() {
            self.drain(behind, buffer);
        }
        ready[0].is_empty() || self.take(behind, buffer, ready[0].contains(PollFlags::HUP))
    }

    pub(super) fn wait(&self, heard: &[OwnedFd]) -> rustix::io::Result<Vec<PollFlags>> {
        let full = self.is_full();
        self.shared.set_stalled(full);
        let mut mine = if full { PollFlags::empty() } else { PollFlags::IN };
        if !self.queue.is_empty() {
            mine |= PollFlags::OUT;
        }
        let kernel = if full || !self.shared.native { PollFlags::empty() } else { PollFlags::IN };
        let shared = &*self.shared;
        let mut polled = vec![
            PollFd::new(&self.end, mine),
            PollFd::new(&shared.wake, PollFlags::IN),
            PollFd::new(&shared.kernel, kernel),
        ];
        polled.extend(heard.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        poll(&mut polled, None)?;
        // What the kernel's socket has besides messages, an overrun, is cleared by reading it.
        Ok(polled.iter().map(PollFd::revents).collect())
    }

    /// Whether the program has more to read than should be kept for it.
    pub(super) fn is_full(&self) -> bool {
        self.queue.is_full() && !self.deaf
    }

    /// Carries out a request, and lets its call return when what it brought can be read.
    pub(super) fn carry_out(&mut self, behind: &mut dyn Behind, buffer: &mut [u8], request: Request) {
        self.sender = request.sender;
        self.reply = Some(request.reply);
        for packet in &request.packets {
            behind.request(self, packet);
            self.drain(behind, buffer);
        }
        self.flush();
        self.let_return();
    }

    /// Lets the call return whose request is being carried out.
    pub(super) fn let_return(&mut self) {
        if let Some(mut reply) = self.reply.take() {
            reply.give();
        }
    }

    /// The capabilities that count for what is being looked at: both whoever made the socket and whoever sends must have
    /// them (`__netlink_ns_capable`).
    pub(super) fn capabilities(&self) -> u64 {
        self.shared.caller.capabilities & self.sender.capabilities
    }

    /// Whether CAP_NET_ADMIN is among them.
    pub(super) fn may_administer(&self) -> bool {
        self.capabilities() & NET_ADMIN != 0
    }

    /// Takes one packet that came through the socket itself. `false`: there will be no more.
    pub(super) fn take(&mut self, behind: &mut dyn Behind, buffer: &mut [u8], closed: bool) -> bool {
        match self.packet(buffer) {
            // A packet of nothing is no end.
            Ok(0) => !closed,
            // The kernel's limit is the sender's buffer; what is longer than any of them is dropped.
            Ok(len) if len > buffer.len() => true,
            Ok(len) => {
                let packet = buffer[..len].to_vec();
                behind.request(self, &packet);
                self.drain(behind, buffer);
                true
            }
            // A reset is told once if the program left something unread; what it sent comes after it.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET) => true,
            Err(_) => false,
        }
    }

    /// Receives one packet, and who sent it; its length, which may be more than there is room for.
    pub(super) fn packet(&mut self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = recvmsg(&self.end, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
                let process = credentials.pid.as_raw_nonzero().get().cast_unsigned();
                self.sender = Caller::of_message(process, credentials.uid.as_raw(), &self.shared.home);
            }
        }
        Ok(received.bytes)
    }

    /// Takes what the kernel's socket has, as long as there is room for it.
    pub(super) fn drain(&mut self, behind: &mut dyn Behind, buffer: &mut [u8]) {
        while self.shared.native && (self.deaf || !self.queue.is_full()) {
            match recv(&self.shared.kernel, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, len)) => {
                    behind.kernel(self, &buffer[..len]);
                    self.flush();
                }
                Err(Errno::INTR) => {}
                // It was overrun, and says so once: what is still there is read.
                Err(Errno::NOBUFS) => self.queue.lost += 1,
                Err(_) => return,
            }
        }
    }

    pub(super) fn hear(&mut self, behind: &mut dyn Behind, from: &OwnedFd, buffer: &mut [u8]) {
        match recv(from, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => self.forget(from),
            Ok((_, _)) if self.queue.is_full() => self.queue.lost += 1,
            Ok((_, len)) => behind.notification(self, &buffer[..len]),
            Err(_) => {}
        }
    }

    /// A card that tells nothing any more is gone.
    pub(super) fn forget(&self, gone: &OwnedFd) {
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).ok();
        let mut heard = self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|fd| inode(fd) != inode(gone));
    }

    /// Sends as much as the program's end takes.
    pub(super) fn flush(&mut self) {
        if !self.deaf && self.queue.flush(self.end.as_fd()).is_err() {
            self.deaf = true;
        }
        if self.deaf {
            self.queue = Queue::default();
        }
    }

    /// Waits until the program has read enough for another answer. In one packet it can ask for more than any
    /// memory holds.
    pub(super) fn make_room(&mut self) {
        while self.is_full() {
            // There is enough to read; it need not wait for more.
            self.shared.set_stalled(true);
            self.let_return();
            match poll(&mut [PollFd::new(&self.end, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => self.flush(),
                Err(_) => return,
            }
        }
    }

    /// Gives the program one message.
    pub(super) fn tell(&mut self, message: &[u8]) {
        self.queue.push([message]);
        self.flush();
    }

    /// Gives the kernel messages of the program.
    pub(super) fn pass_on(&mut self, packet: &[u8]) {
        self.shared.port_to_send_from();
        let mut could = false;
        // Whoever cannot be stood in for has no rights that the kernel could be shown.
        let _ = process::with_rights(self.capabilities(), self.sender.user, || {
            could = true;
            while send(&self.shared.kernel, packet, SendFlags::empty()) == Err(Errno::INTR) {}
        });
        if !could {
            self.refuse(packet, Errno::PERM);
        }
    }

    /// Answers each request of a packet with an error.
    pub(super) fn refuse(&mut self, packet: &[u8], errno: Errno) {
        for request in messages(packet).filter(|message| message.header.is_request()) {
            self.acknowledge(&request, Err(errno), |_| {});
        }
    }

    /// Acknowledges a request, or answers it with an error; `said` writes the extended acknowledgement, for a program
    /// that takes one.
    pub(super) fn acknowledge(
        &mut self,
        request: &Message<'_>,
        outcome: Result<(), Errno>,
        said: impl FnOnce(&mut Builder),
    ) {
        let mut datagram = Datagram::default();
        datagram.ack(request, self.shared.port_to_send_from(), outcome, self.shared.ack_options(), said);
        self.tell(datagram.bytes());
    }

    /// Ends a dump.
    pub(super) fn end_dump(&mut self, request: &Message<'_>) {
        let mut datagram = Datagram::default();
        datagram.done(&request.header, self.shared.port_to_send_from());
        self.tell(datagram.bytes());
    }

    /// Receives from a card, which may take its time. The program is served meanwhile with what it has
    /// not read yet, and if it goes, so do we.
    pub(super) fn receive_from(&mut self, card: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let out = if self.queue.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            let full = self.is_full();
            if full {
                self.shared.set_stalled(true);
                self.let_return();
            }
            let from = if full { PollFlags::empty() } else { PollFlags::IN };
            let mut polled = [PollFd::from_borrowed_fd(card, from), PollFd::new(&self.end, out)];
            match poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                outcome => outcome?,
            };
            let (card_flags, end_flags) = (polled[0].revents(), polled[1].revents());
            if end_flags.contains(PollFlags::HUP) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if end_flags.contains(PollFlags::OUT) {
                self.flush();
            }
            if !card_flags.is_empty() {
                match recv(card, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                    Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok((_, len)) if len > buffer.len() => return Err(io::ErrorKind::InvalidData.into()),
                    Ok((_, len)) => return Ok(len),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}
