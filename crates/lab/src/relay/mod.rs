//! Behind each of a program's netlink sockets: a thread that carries messages between the program, a
//! kernel's socket of its own, and the cards.
//!
//! A thread for each socket, because that is what the kernel is to a program: one socket's request may
//! take its time, a VF's address being set, and no other socket waits for it. It sleeps when there is
//! nothing to carry and ends when the program's last descriptor of the socket is closed.
//!
//! Memory is bounded: when a program does not read, the thread stops taking its requests and stops reading
//! the kernel's socket, whose own buffer then overflows as it would have in the program's hands.
//! Notifications of cards are dropped.

mod descriptors;
mod fuzzing;
mod generic;
mod link;
mod queue;
mod rdma;
mod route;
mod vf;

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::netlink::{AckOptions, Builder, Datagram, Errno, Message, messages};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recv, recvmsg, send};

use crate::cards::Cards;
use crate::process::{self, Caller, Home, NET_ADMIN};
use crate::supervisor::Reply;
use queue::Queue;

pub use fuzzing::fuzzed;
pub(crate) use generic::Families;

/// What a program's socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Route,
    Generic,
    Rdma,
}

impl Protocol {
    pub fn of(number: u32) -> Option<Self> {
        match number as i32 {
            libc::NETLINK_ROUTE => Some(Self::Route),
            libc::NETLINK_GENERIC => Some(Self::Generic),
            libc::NETLINK_RDMA => Some(Self::Rdma),
            _ => None,
        }
    }

    pub fn number(self) -> i32 {
        match self {
            Self::Route => libc::NETLINK_ROUTE,
            Self::Generic => libc::NETLINK_GENERIC,
            Self::Rdma => libc::NETLINK_RDMA,
        }
    }
}

/// What a program asks for in one call.
pub(crate) struct Request {
    /// Each as one send has it.
    pub packets: Vec<Vec<u8>>,
    /// Whoever sends, which need not be the one that made the socket.
    pub sender: Caller,
    /// Lets the call return.
    pub reply: Reply,
}

impl Request {
    /// The bytes of all packets.
    fn bytes(&self) -> usize {
        self.packets.iter().map(Vec::len).sum()
    }
}

/// Requests that wait for the thread behind a socket.
#[derive(Default)]
struct Inbox {
    requests: VecDeque<Request>,
    /// The bytes of those that wait though their calls have returned.
    bytes: usize,
    /// The program does not read, and until it does nothing more is taken. It is not to wait for that in a send.
    stalled: bool,
    /// The thread has ended.
    closed: bool,
}

/// How many bytes of requests are kept for a program that does not read: as a socket's buffer by default.
const UNREAD: usize = 212_992;

/// What the thread behind a socket shares with whoever answers the program's calls about it.
pub(crate) struct Shared {
    pub protocol: Protocol,
    /// `SOCK_RAW` or `SOCK_DGRAM`, as the program has it.
    pub kind: u32,
    /// Who made the socket.
    pub caller: Caller,
    /// The kernel's socket, in the program's network namespace. Its port is the program's.
    pub kernel: OwnedFd,
    /// Whether that is of the same protocol. A kernel without RDMA has none: then it only holds the port.
    pub native: bool,
    /// 0 until it is bound.
    port: AtomicU32,
    binding: Mutex<()>,
    extended: AtomicBool,
    capped: AtomicBool,
    /// The user namespace in which administrative rights count.
    home: Arc<Home>,
    inbox: Mutex<Inbox>,
    /// Where notifications of cards come from.
    heard: Mutex<Vec<OwnedFd>>,
    /// Wakes the thread when there is something new in `inbox` or `heard`.
    wake: OwnedFd,
}

impl Shared {
    /// What belongs to a new socket.
    ///
    /// # Errors
    /// There are no more descriptors.
    pub fn new(protocol: Protocol, kind: u32, caller: Caller, kernel: Kernel, home: Arc<Home>) -> io::Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let Kernel { socket, native } = kernel;
        Ok(Self {
            protocol,
            kind,
            caller,
            kernel: socket,
            native,
            home,
            inbox: Mutex::default(),
            port: AtomicU32::new(0),
            binding: Mutex::new(()),
            extended: AtomicBool::new(false),
            capped: AtomicBool::new(false),
            heard: Mutex::new(Vec::new()),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// `nl_pid` of the socket: 0 if it has none yet.
    pub fn port(&self) -> u32 {
        self.port.load(Ordering::Relaxed)
    }

    /// Binds it as `bind` does. A port of 0 is the process's own number if no other socket has it, else
    /// one that the kernel makes up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(&self, port: u32, groups: u32) -> io::Result<()> {
        let _one = self.binding.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = if self.native { groups } else { 0 };
        let bind = |port| rustix::net::bind(&self.kernel, &SocketAddrNetlink::new(port, groups));
        match if port == 0 && self.port() == 0 { bind(self.caller.own) } else { bind(port) } {
            Err(Errno::ADDRINUSE) if port == 0 => bind(0)?,
            outcome => outcome?,
        }
        let address = rustix::net::getsockname(&self.kernel)?;
        let port = SocketAddrNetlink::try_from(address)?.pid();
        self.port.store(port, Ordering::Relaxed);
        Ok(())
    }

    /// The port, after it has been made sure that there is one, as sending does.
    fn port_to_send_from(&self) -> u32 {
        if self.port() == 0 {
            // Without a port the kernel refuses to send, and the program is told nothing either.
            let _ = self.bind(0, 0);
        }
        self.port()
    }

    /// Notes `NETLINK_EXT_ACK` and `NETLINK_CAP_ACK`.
    pub fn set_style(&self, option: i32, on: bool) {
        match option {
            libc::NETLINK_EXT_ACK => self.extended.store(on, Ordering::Relaxed),
            libc::NETLINK_CAP_ACK => self.capped.store(on, Ordering::Relaxed),
            _ => {}
        }
    }

    fn ack_options(&self) -> AckOptions {
        AckOptions { extended: self.extended.load(Ordering::Relaxed), capped: self.capped.load(Ordering::Relaxed) }
    }

    /// Hears the notifications of every card from now on, or no longer.
    ///
    /// # Errors
    /// A card's.
    pub fn hear(&self, cards: &Cards, on: bool) -> io::Result<()> {
        let hears = || !self.heard.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        // A card may take its time to let somebody in, and whoever sends does not wait for that.
        let new: Vec<OwnedFd> = match on && !hears() {
            true => (0..cards.len()).filter_map(|n| cards.card(n)).map(|c| c.listen()).collect::<io::Result<_>>()?,
            false => Vec::new(),
        };
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !on {
            heard.clear();
        } else if heard.is_empty() {
            *heard = new;
        }
        drop(heard);
        rustix::io::write(&self.wake, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Gives the thread a request, which then answers the call. If the program has not read what it asked for before, and
    /// there is no more room for requests, the call is refused with ENOBUFS: it is not to wait for the program itself.
    pub fn hand_over(&self, mut request: Request) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if inbox.closed {
            // Dropped, which is an answer.
            return;
        }
        if inbox.stalled {
            let bytes = request.bytes();
            if inbox.bytes + bytes > UNREAD {
                return request.reply.refuse(Errno::NOBUFS);
            }
            inbox.bytes += bytes;
            request.reply.give();
        }
        inbox.requests.push_back(request);
        drop(inbox);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn next_request(&self) -> Option<Request> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let request = inbox.requests.pop_front()?;
        if inbox.requests.is_empty() {
            inbox.bytes = 0;
        }
        Some(request)
    }

    /// Notes whether nothing more is taken. Programs that wait in a send then need not: there is something to read.
    fn set_stalled(&self, stalled: bool) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut inbox.stalled, stalled) == stalled || !stalled {
            return;
        }
        let Inbox { requests, bytes, .. } = &mut *inbox;
        requests.retain_mut(|request| {
            let more = request.bytes();
            let fits = *bytes + more <= UNREAD;
            match fits {
                true => {
                    *bytes += more;
                    request.reply.give();
                }
                false => request.reply.refuse(Errno::NOBUFS),
            }
            fits
        });
    }

    /// Takes no more requests, and drops those that wait.
    fn close(&self) {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.closed = true;
        let left = std::mem::take(&mut inbox.requests);
        drop(inbox);
        drop(left);
    }
}

/// The kernel's socket behind a program's.
pub(crate) struct Kernel {
    pub socket: OwnedFd,
    /// Whether it is of the protocol asked for.
    pub native: bool,
}

/// What differs between protocols.
trait Behind {
    /// The program has sent this.
    fn request(&mut self, io: &mut Io, packet: &[u8]);
    /// The kernel has sent this.
    fn kernel(&mut self, io: &mut Io, datagram: &[u8]);
    /// A card tells this.
    fn notification(&mut self, _io: &mut Io, _datagram: &[u8]) {}
}

/// What every protocol has.
struct Io {
    /// Our end of the program's socket.
    end: OwnedFd,
    shared: Arc<Shared>,
    cards: Arc<Cards>,
    queue: Queue,
    /// Whoever sent what is being looked at.
    sender: Caller,
    /// Lets the call return that sent it.
    reply: Option<Reply>,
    /// Nobody reads any more; what is still to be done is done all the same.
    deaf: bool,
}

/// Room for the largest datagram that the kernel makes: 32 KiB, or one message of a PF with all its VFs.
const ROOM: usize = 128 << 10;

/// Carries messages until the program has closed its socket. It is the work of a thread.
pub(crate) fn carry(end: OwnedFd, shared: Arc<Shared>, cards: Arc<Cards>, families: Arc<Families>) {
    let mut behind: Box<dyn Behind> = match shared.protocol {
        Protocol::Route => Box::new(route::Route::default()),
        Protocol::Generic => Box::new(generic::Generic::new(families)),
        Protocol::Rdma => Box::new(rdma::Rdma),
    };
    let sender = shared.caller;
    // Also if the thread ends by a panic: nobody is to wait for it.
    let _closed = ClosedAtEnd(Arc::clone(&shared));
    let mut io = Io { end, shared, cards, queue: Queue::default(), sender, reply: None, deaf: false };
    let mut buffer = vec![0; ROOM];
    while io.step(&mut *behind, &mut buffer) {}
}

/// Takes no more requests from when it is dropped.
struct ClosedAtEnd(Arc<Shared>);

impl Drop for ClosedAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Io {
    /// Waits for something and carries it. `false`: the program has closed its socket.
    fn step(&mut self, behind: &mut dyn Behind, buffer: &mut [u8]) -> bool {
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

    fn wait(&self, heard: &[OwnedFd]) -> rustix::io::Result<Vec<PollFlags>> {
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
    fn is_full(&self) -> bool {
        self.queue.is_full() && !self.deaf
    }

    /// Carries out a request, and lets its call return when what it brought can be read.
    fn carry_out(&mut self, behind: &mut dyn Behind, buffer: &mut [u8], request: Request) {
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
    fn let_return(&mut self) {
        if let Some(mut reply) = self.reply.take() {
            reply.give();
        }
    }

    /// The capabilities that count for what is being looked at: both whoever made the socket and whoever sends must have
    /// them (`__netlink_ns_capable`).
    fn capabilities(&self) -> u64 {
        self.shared.caller.capabilities & self.sender.capabilities
    }

    /// Whether CAP_NET_ADMIN is among them.
    fn may_administer(&self) -> bool {
        self.capabilities() & NET_ADMIN != 0
    }

    /// Takes one packet that came through the socket itself. `false`: there will be no more.
    fn take(&mut self, behind: &mut dyn Behind, buffer: &mut [u8], closed: bool) -> bool {
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
    fn packet(&mut self, buffer: &mut [u8]) -> rustix::io::Result<usize> {
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
    fn drain(&mut self, behind: &mut dyn Behind, buffer: &mut [u8]) {
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

    fn hear(&mut self, behind: &mut dyn Behind, from: &OwnedFd, buffer: &mut [u8]) {
        match recv(from, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => self.forget(from),
            Ok((_, _)) if self.queue.is_full() => self.queue.lost += 1,
            Ok((_, len)) => behind.notification(self, &buffer[..len]),
            Err(_) => {}
        }
    }

    /// A card that tells nothing any more is gone.
    fn forget(&self, gone: &OwnedFd) {
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| stat.st_ino).ok();
        let mut heard = self.shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|fd| inode(fd) != inode(gone));
    }

    /// Sends as much as the program's end takes.
    fn flush(&mut self) {
        if !self.deaf && self.queue.flush(self.end.as_fd()).is_err() {
            self.deaf = true;
        }
        if self.deaf {
            self.queue = Queue::default();
        }
    }

    /// Waits until the program has read enough for another answer. In one packet it can ask for more than any
    /// memory holds.
    fn make_room(&mut self) {
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
    fn tell(&mut self, message: &[u8]) {
        self.queue.push([message]);
        self.flush();
    }

    /// Gives the kernel messages of the program.
    fn pass_on(&mut self, packet: &[u8]) {
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
    fn refuse(&mut self, packet: &[u8], errno: Errno) {
        for request in messages(packet).filter(|message| message.header.is_request()) {
            self.acknowledge(&request, Err(errno), |_| {});
        }
    }

    /// Acknowledges a request, or answers it with an error; `said` writes the extended acknowledgement, for a program
    /// that takes one.
    fn acknowledge(&mut self, request: &Message<'_>, outcome: Result<(), Errno>, said: impl FnOnce(&mut Builder)) {
        let mut datagram = Datagram::default();
        datagram.ack(request, self.shared.port_to_send_from(), outcome, self.shared.ack_options(), said);
        self.tell(datagram.bytes());
    }

    /// Ends a dump.
    fn end_dump(&mut self, request: &Message<'_>) {
        let mut datagram = Datagram::default();
        datagram.done(&request.header, self.shared.port_to_send_from());
        self.tell(datagram.bytes());
    }

    /// Receives from a card, which may take its time. The program is served meanwhile with what it has
    /// not read yet, and if it goes, so do we.
    fn receive_from(&mut self, card: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
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
