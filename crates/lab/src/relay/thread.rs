//! The thread behind a program's socket: the part that is the same for every protocol.

use std::cell::OnceCell;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ::netlink::{Builder, Datagram, Errno, Message, messages};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send};

use super::Handler;
use super::queue::Queue;
use super::socket::{Request, Socket};
use crate::cards::Cards;
use crate::lock_order::Cx;
use crate::network::Network;
use crate::process::{self, Caller, NET_ADMIN};
use crate::supervisor::Reply;

/// After which time it is looked again whether messages must still be held back: a millisecond.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// The thread's state.
pub(super) struct Relay {
    /// Our end of the program's socket.
    end: OwnedFd,
    pub(super) socket: Arc<Socket>,
    pub(super) cards: Arc<Cards>,
    pub(super) queue: Queue,
    /// The network namespace of the socket, once it was needed.
    network: OnceCell<Arc<Network>>,
    /// The process that sent the packet that is being handled.
    pub(super) sender: Caller,
    /// Lets the call return that sent the packet.
    reply: Option<Reply>,
    /// The program has closed its end. Requests that it sent before are carried out all the same; answers are dropped.
    pub(super) deaf: bool,
}

impl Relay {
    /// `end`: our end of the program's socket.
    pub(super) fn new(end: OwnedFd, socket: Arc<Socket>, cards: Arc<Cards>) -> Self {
        let sender = socket.caller;
        Self { end, socket, cards, queue: Queue::default(), network: OnceCell::new(), sender, reply: None, deaf: false }
    }

    /// The netdevs of the socket's network namespace. `None`: none of them can be a card's.
    pub(super) fn network(&self, cx: Cx<'_, '_>) -> Option<Arc<Network>> {
        if let Some(network) = self.network.get() {
            return Some(Arc::clone(network));
        }
        let network = self.cards.networks.of_socket(cx, &self.socket.kernel)?;
        Some(Arc::clone(self.network.get_or_init(|| network)))
    }

    /// Sets the network namespace of the socket, instead of the kernel's answer.
    pub(super) fn set_network(&mut self, network: Network) {
        self.network = OnceCell::from(Arc::new(network));
    }

    /// Waits until something arrives, and carries it. `false`: the program has closed its socket.
    pub(super) fn step(&mut self, cx: Cx<'_, '_>, handler: &mut dyn Handler, buffer: &mut [u8]) -> bool {
        for datagram in self.socket.take_published(cx) {
            if self.queue.is_full() { self.queue.lost += 1 } else { self.queue.push([&datagram[..]]) }
        }
        self.flush();
        // Before waiting: requests that arrived while the program did not read have woken this thread already.
        while !self.is_full() {
            let Some(request) = self.socket.next_request(cx) else { break };
            self.carry_out(cx, handler, buffer, request);
        }
        let subscriptions: Vec<(usize, OwnedFd)> = {
            let subscriptions = self.socket.subscriptions.lock_leaf(cx);
            subscriptions.iter().filter_map(|of| Some((of.card, of.fd.try_clone().ok()?))).collect()
        };
        let ready = match self.wait(cx, &subscriptions, handler.holds()) {
            Ok(ready) => ready,
            Err(Errno::INTR) => return true,
            Err(_) => return false,
        };
        if handler.holds() {
            handler.tick(cx, self);
        }
        if ready[1].contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.socket.wake, &mut [0; 8]);
        }
        // The kernel is asked before a card, so what it has published comes before what the card has.
        if !ready[2].is_empty() {
            self.drain(cx, handler, buffer);
        }
        for ((card, fd), flags) in subscriptions.iter().zip(ready.get(3..).unwrap_or_default()) {
            if !flags.is_empty() {
                self.take_notification(cx, handler, (*card, fd), buffer);
            }
        }
        ready[0].is_empty() || self.take_packet(cx, handler, buffer, ready[0].contains(PollFlags::HUP))
    }

    /// Waits; returns the events of the program's socket, of `wake`, of the kernel's socket, and of each subscription.
    /// `briefly`: at most for [`TICK`].
    fn wait(
        &self,
        cx: Cx<'_, '_>,
        subscriptions: &[(usize, OwnedFd)],
        briefly: bool,
    ) -> rustix::io::Result<Vec<PollFlags>> {
        let full = self.is_full();
        self.socket.set_stalled(cx, full);
        let mut program = if full { PollFlags::empty() } else { PollFlags::IN };
        if !self.queue.is_empty() {
            program |= PollFlags::OUT;
        }
        let kernel = if full || !self.socket.native { PollFlags::empty() } else { PollFlags::IN };
        let socket = &*self.socket;
        let mut polled = vec![
            PollFd::new(&self.end, program),
            PollFd::new(&socket.wake, PollFlags::IN),
            PollFd::new(&socket.kernel, kernel),
        ];
        polled.extend(subscriptions.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)));
        poll(&mut polled, briefly.then_some(&TICK))?;
        // An overrun of the kernel's socket is an event too; reading the socket clears it.
        Ok(polled.iter().map(PollFd::revents).collect())
    }

    /// Whether the program has more to read than should be kept for it.
    fn is_full(&self) -> bool {
        self.queue.is_full() && !self.deaf
    }

    /// Carries out a request, and lets its call return when the answers can be read.
    fn carry_out(&mut self, cx: Cx<'_, '_>, handler: &mut dyn Handler, buffer: &mut [u8], request: Request) {
        self.sender = request.sender;
        self.reply = Some(request.reply);
        for packet in &request.packets {
            handler.request(cx, self, packet);
            self.drain(cx, handler, buffer);
        }
        self.flush();
        self.let_return();
    }

    /// Lets the call return whose request is being carried out.
    fn let_return(&mut self) {
        if let Some(mut reply) = self.reply.take() {
            reply.give();
        }
    }

    /// The capabilities that count for the packet that is being handled: both the process that made the socket and the
    /// one that sends must have them (`__netlink_ns_capable`).
    fn capabilities(&self) -> u64 {
        let owner = self.socket.owner;
        self.socket.caller.network_capabilities(owner) & self.sender.network_capabilities(owner)
    }

    /// Whether CAP_NET_ADMIN is among them: in the user namespace to which the network namespace belongs.
    pub(super) fn may_administer(&self) -> bool {
        self.capabilities() & NET_ADMIN != 0
    }

    /// Whether they have CAP_NET_ADMIN in the lab's user namespace, for what the kernel requires it in the initial one.
    pub(super) fn may_administer_system(&self) -> bool {
        self.socket.caller.capabilities & self.sender.capabilities & NET_ADMIN != 0
    }

    /// Handles one packet that arrived through the socket itself. `false`: no more will arrive.
    fn take_packet(&mut self, cx: Cx<'_, '_>, handler: &mut dyn Handler, buffer: &mut [u8], closed: bool) -> bool {
        match self.receive_packet(buffer) {
            // An empty packet does not mean that the socket is closed.
            Ok(0) => !closed,
            // The kernel's limit is the sender's buffer; a packet that is longer than any such buffer is dropped.
            Ok(len) if len > buffer.len() => true,
            Ok(len) => {
                let packet = buffer[..len].to_vec();
                handler.request(cx, self, &packet);
                self.drain(cx, handler, buffer);
                true
            }
            // A reset is reported once if the program left something unread; what it sent follows.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNRESET) => true,
            Err(_) => false,
        }
    }

    /// Receives one packet, and notes which process sent it. Returns the packet's length, which may be more than
    /// `buffer` has room for.
    fn receive_packet(&mut self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let received = recvmsg(&self.end, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmCredentials(credentials) = message {
                let process = credentials.pid.as_raw_nonzero().get().cast_unsigned();
                self.sender = Caller::of_message(process, credentials.uid.as_raw(), &self.socket.user_namespace);
            }
        }
        Ok(received.bytes)
    }

    /// Handles the datagrams that the kernel's socket has, as long as the queue has room.
    pub(super) fn drain(&mut self, cx: Cx<'_, '_>, handler: &mut dyn Handler, buffer: &mut [u8]) {
        while self.socket.native && (self.deaf || !self.queue.is_full()) {
            match recv(&self.socket.kernel, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, len)) => {
                    handler.kernel(cx, self, &buffer[..len]);
                    self.flush();
                }
                Err(Errno::INTR) => {}
                // The socket was overrun, which it reports once. What it still has can be read.
                Err(Errno::NOBUFS) => self.queue.lost += 1,
                Err(_) => return,
            }
        }
    }

    /// Receives a notification of a card.
    fn take_notification(
        &mut self,
        cx: Cx<'_, '_>,
        handler: &mut dyn Handler,
        (card, from): (usize, &OwnedFd),
        buffer: &mut [u8],
    ) {
        match recv(from, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => self.unsubscribe(cx, from),
            Ok((_, _)) if self.queue.is_full() => self.queue.lost += 1,
            Ok((_, len)) => handler.notification(cx, self, card, &buffer[..len]),
            Err(_) => {}
        }
    }

    /// Removes the subscription to a card that has closed its end.
    fn unsubscribe(&self, cx: Cx<'_, '_>, closed: &OwnedFd) {
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).ok();
        self.socket.subscriptions.lock_leaf(cx).retain(|of| inode(&of.fd) != inode(closed));
    }

    /// Sends as much of the queue as the program's end takes.
    pub(super) fn flush(&mut self) {
        if !self.deaf && self.queue.flush(self.end.as_fd()).is_err() {
            self.deaf = true;
        }
        if self.deaf {
            self.queue = Queue::default();
        }
    }

    /// Waits until the program has read enough for another answer. A single packet can request more than any memory
    /// holds.
    pub(super) fn make_room(&mut self, cx: Cx<'_, '_>) {
        while self.is_full() {
            // The program has enough to read; its call need not wait for more.
            self.socket.set_stalled(cx, true);
            self.let_return();
            match poll(&mut [PollFd::new(&self.end, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => self.flush(),
                Err(_) => return,
            }
        }
    }

    /// Sends the program one message.
    pub(super) fn send_message(&mut self, message: &[u8]) {
        self.queue.push([message]);
        self.flush();
    }

    /// Passes messages of the program on to the kernel.
    pub(super) fn pass_on(&mut self, cx: Cx<'_, '_>, packet: &[u8]) {
        self.socket.port_to_send_from(cx);
        let mut sent = false;
        // If this thread cannot take the sender's rights, there are no rights with which the kernel could judge the
        // packet.
        let _ = process::with_rights(self.capabilities(), self.sender.user, || {
            sent = true;
            while send(&self.socket.kernel, packet, SendFlags::empty()) == Err(Errno::INTR) {}
        });
        if !sent {
            self.refuse(cx, packet, Errno::PERM);
        }
    }

    /// Answers each request of a packet with an error.
    fn refuse(&mut self, cx: Cx<'_, '_>, packet: &[u8], errno: Errno) {
        for request in messages(packet).filter(|message| message.header.is_request()) {
            self.acknowledge(cx, &request, Err(errno), |_| {});
        }
    }

    /// Acknowledges a request, or answers it with an error. `extended` writes the attributes of the extended
    /// acknowledgement, for a program that has requested them (`NETLINK_EXT_ACK`).
    pub(super) fn acknowledge(
        &mut self,
        cx: Cx<'_, '_>,
        request: &Message<'_>,
        outcome: Result<(), Errno>,
        extended: impl FnOnce(&mut Builder),
    ) {
        let mut datagram = Datagram::default();
        datagram.ack(request, self.socket.port_to_send_from(cx), outcome, self.socket.ack_options(), extended);
        self.send_message(datagram.bytes());
    }

    /// Ends a dump.
    pub(super) fn end_dump(&mut self, cx: Cx<'_, '_>, request: &Message<'_>) {
        let mut datagram = Datagram::default();
        datagram.done(&request.header, self.socket.port_to_send_from(cx));
        self.send_message(datagram.bytes());
    }

    /// Receives one datagram from a card, which may take long. Meanwhile the program is sent what it has not read yet.
    /// An error if the program closes its socket.
    pub(super) fn receive_from(
        &mut self,
        cx: Cx<'_, '_>,
        card: BorrowedFd<'_>,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        loop {
            let out = if self.queue.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            let full = self.is_full();
            if full {
                self.socket.set_stalled(cx, true);
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
