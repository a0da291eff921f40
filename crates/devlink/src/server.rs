//! Serves a control socket: accepts clients, decides what each may do, and answers each in a thread of its own.
//!
//! A client costs a thread and two buffers, whatever it sends and whether or not it reads: a dump is sent while it is
//! made, and a client that does not read delays no other. Notifications go to the clients that have joined the
//! multicast group; one whose socket buffer is full misses them, as with the kernel.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use control::Follower;
use lockdep::{Locked, Unlocked};
use netlink::Datagram;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, SocketFlags, UCred,
};

use eswitch::Touched;

use crate::answer::{answer, answer_too_long};
use crate::card::{Cx, Served};
use crate::clients::{Clients, ServedClient};
use crate::homecoming::Homecoming;
use crate::notify;
use crate::peer::Peer;
use crate::reply::Sink;
use crate::sampling::Publisher;
use crate::sys;

/// The largest request, in bytes.
const REQUEST_MAX: usize = 64 * 1024;

/// The users that may change the card, beside root and the user of this process. Every client that can connect may
/// query it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The ID of a group whose members may change the card.
    pub group: Option<u32>,
    /// The maximum number of connections at a time.
    pub clients: usize,
}

struct Shared {
    served: Arc<Served>,
    listener: OwnedFd,
    access: Access,
    clients: Arc<Clients>,
    last: AtomicU64,
    stopping: AtomicBool,
}

/// A control socket that is served. Dropping this ends every connection.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    _notifier: Follower,
    _homecoming: Option<Homecoming>,
}

impl Server {
    /// Starts to serve a [listening socket](crate::ControlSocket::take_listener).
    ///
    /// # Errors
    /// The system cannot create a thread.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        served: Arc<Served>,
        listener: OwnedFd,
        access: Access,
    ) -> io::Result<Self> {
        let clients = Arc::new(Clients::new());
        // From here on every command publishes what it has changed in the shared view.
        served.publish(cx, Touched::Everything);
        let notifier = notify::start(cx, &served, &clients)?;
        let homecoming = Homecoming::start(&served)?;
        let publisher = Publisher::start(&served, &clients)?;
        let shared = Arc::new(Shared {
            served,
            listener,
            access,
            clients,
            last: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            let domain = Arc::clone(&shared.served.domain);
            let accept = move || {
                lockdep::enter(&domain, "control socket", |cx| {
                    shared.accept(cx);
                    publisher.into_iter().for_each(|publisher| publisher.stop(cx, &shared.served));
                });
            };
            thread::Builder::new().name("control".to_owned()).spawn(accept)?
        };
        Ok(Self { shared, accepting: Some(accepting), _notifier: notifier, _homecoming: homecoming })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // This makes `accept` return; the accepting thread then ends the connections.
        let _ = net::shutdown(&self.shared.listener, Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        loop {
            let accepted = net::accept_with(&self.listener, SocketFlags::CLOEXEC);
            if self.stopping.load(Ordering::Acquire) {
                break;
            }
            threads.retain(|thread| !thread.is_finished());
            match accepted {
                Ok(socket) => threads.extend(self.admit(cx, socket)),
                // The process is out of file descriptors, or the like. Clients may disconnect.
                Err(_) => thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
        self.clients.shut_down(cx);
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Starts to serve a client, if its user may have another connection.
    fn admit(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>, socket: OwnedFd) -> Option<JoinHandle<()>> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let credentials = socket_peercred(&socket).ok()?;
        let user = credentials.uid.as_raw();
        let may_change = self.may_change(&socket, &credentials);
        let client = Arc::new(ServedClient { socket, peer: Peer { may_change, ..Peer::default() }, user });
        let own = rustix::process::geteuid().as_raw();
        if !self.clients.admit(cx, number, &client, self.access.clients, own) {
            return None;
        }
        let domain = Arc::clone(&self.served.domain);
        let (served_to, clients) = (Arc::clone(&self.served), Arc::clone(&self.clients));
        let serve = move || {
            lockdep::enter(&domain, "client", |cx| {
                let served = catch_unwind(AssertUnwindSafe(|| serve(&served_to, cx, &client, &clients)));
                // Also after a panic: a place that is not given back is lost for good.
                clients.remove(cx, number);
                served_to.sampling.leave(cx, served_to.card.engine(), &client.peer);
                served.unwrap_or_else(|panic| resume_unwind(panic));
            });
        };
        let spawned = thread::Builder::new().name("client".to_owned()).spawn(serve);
        if spawned.is_err() {
            self.clients.remove(cx, number);
        }
        spawned.ok()
    }

    /// Whether a peer may change the card. Its credentials when it connected count, not those that the process with its
    /// PID has now.
    fn may_change(&self, socket: &OwnedFd, credentials: &UCred) -> bool {
        let is_member = |group: u32| {
            credentials.gid.as_raw() == group
                || sys::peer_groups(socket.as_fd()).is_ok_and(|groups| groups.contains(&group))
        };
        credentials.uid.is_root()
            || credentials.uid == rustix::process::geteuid()
            || self.access.group.is_some_and(is_member)
    }
}

/// Answers a client until it disconnects.
fn serve(served: &Served, cx: &mut Locked<'_, Unlocked>, client: &ServedClient, clients: &Clients) {
    let mut buffer = vec![0; REQUEST_MAX];
    let socket = client.socket.as_fd();
    let mut sink = ToClient { served, client, clients, attached: None, received: None, gone: false };
    while !sink.gone {
        let length = match receive(socket, &mut buffer, &mut sink.received) {
            Ok(0) => return,
            Ok(length) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        match buffer.get(..length) {
            Some(bytes) => answer(served, cx, &client.peer, bytes, &mut sink),
            None => answer_too_long(&buffer, &mut sink),
        }
    }
}

/// Receives a datagram, and the descriptor that was sent with it, if one was. Returns the length of the datagram, which may
/// be more than there is room for.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    received: &mut Option<OwnedFd>,
) -> Result<usize, rustix::io::Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::TRUNC | RecvFlags::CMSG_CLOEXEC;
    let message = net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    *received = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            *received = descriptors.last();
        }
    }
    Ok(message.bytes)
}

struct ToClient<'a> {
    served: &'a Served,
    client: &'a ServedClient,
    /// Every client.
    clients: &'a Clients,
    /// The descriptor that goes with the next datagram.
    attached: Option<OwnedFd>,
    /// The descriptor that came with the last datagram.
    received: Option<OwnedFd>,
    gone: bool,
}

impl Sink for ToClient<'_> {
    fn send(&mut self, datagram: &[u8]) {
        let attached = self.attached.take();
        self.gone = self.gone || !send_all(self.client, datagram, attached.as_ref());
    }

    fn attach(&mut self, file: OwnedFd) {
        self.attached = Some(file);
    }

    fn received(&mut self) -> Option<OwnedFd> {
        self.received.take()
    }

    fn notify(&mut self, cx: Cx<'_, '_>, notices: &Datagram) {
        notify::send(&self.clients.joined(cx), notices);
    }

    fn notify_of_filters(&mut self, cx: Cx<'_, '_>, notices: &[Datagram]) {
        let listeners = self.clients.joined_by(cx, |peer| &peer.joined_filters);
        notices.iter().for_each(|datagram| notify::send(&listeners, datagram));
    }

    fn done(&mut self, cx: Cx<'_, '_>, touched: Touched) {
        self.served.publish(cx, touched);
    }

    fn is_gone(&self) -> bool {
        self.gone
    }
}

/// Sends a datagram, and waits while the socket buffer is full. Returns whether the client is still connected.
fn send_all(client: &ServedClient, bytes: &[u8], attached: Option<&OwnedFd>) -> bool {
    let fds: Vec<_> = attached.iter().map(|file| file.as_fd()).collect();
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        match net::sendmsg(&client.socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
