//! Serving a control socket: who has a place, who may change things, a thread for each client.
//!
//! A client costs a thread and two buffers, whatever it sends and whether or not it reads: a dump is sent
//! as it is put together, and who does not read it holds up nobody else. What happens is told to whoever
//! has asked for it and has room; who has not misses it, as with the kernel.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use control::Follower;
use lockdep::{Locked, Unlocked};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    self, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, UCred,
};

use eswitch::Touched;

use crate::answer::{answer, answer_too_long};
use crate::card::{Cx, Served};
use crate::clients::{Client, Clients};
use crate::notify;
use crate::peer::Peer;
use crate::reply::Sink;
use crate::sys;

/// Bytes of a request at most.
const REQUEST_MAX: usize = 64 * 1024;

/// Who may change things, beside root and the user who serves. Whoever may connect may look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Members of this group.
    pub group: Option<u32>,
    /// Connections at a time at most.
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

/// A control socket that is being served. Dropping it ends every connection.
pub struct Server {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    _notifier: Follower,
}

impl Server {
    /// Begins to serve what [listens](crate::ControlSocket::take_listener).
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        cx: &mut Locked<'_, Unlocked>,
        served: Arc<Served>,
        listener: OwnedFd,
        access: Access,
    ) -> io::Result<Self> {
        let clients = Arc::new(Clients::new());
        // From here on every command sees to it that what it has changed can be read.
        served.publish(cx, Touched::Everything);
        let notifier = notify::follow(cx, &served, &clients)?;
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
            let accept = move || lockdep::enter(&domain, "control socket", |cx| shared.accept(cx));
            thread::Builder::new().name("control".to_owned()).spawn(accept)?
        };
        Ok(Self { shared, accepting: Some(accepting), _notifier: notifier })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        // It makes who accepts return; who accepts then ends who is connected.
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
                // Out of file descriptors, or the like: those who are connected may go.
                Err(_) => thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
        self.clients.shut_down(cx);
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Lets a client in, if there is a place for it.
    fn admit(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>, socket: OwnedFd) -> Option<JoinHandle<()>> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let who = socket_peercred(&socket).ok()?;
        let user = who.uid.as_raw();
        let may_change = self.may_change(&socket, &who);
        let client = Arc::new(Client { socket, peer: Peer { may_change, ..Peer::default() }, user });
        let own = rustix::process::geteuid().as_raw();
        if !self.clients.admit(cx, number, &client, self.access.clients, own) {
            return None;
        }
        let domain = Arc::clone(&self.served.domain);
        let (served, clients) = (Arc::clone(&self.served), Arc::clone(&self.clients));
        let serve = move || {
            lockdep::enter(&domain, "client", |cx| {
                let served = catch_unwind(AssertUnwindSafe(|| serve(&served, cx, &client)));
                // However it has ended: a place that is not given back is lost for good.
                clients.remove(cx, number);
                served.unwrap_or_else(|panic| resume_unwind(panic));
            });
        };
        let spawned = thread::Builder::new().name("client".to_owned()).spawn(serve);
        if spawned.is_err() {
            self.clients.remove(cx, number);
        }
        spawned.ok()
    }

    /// Whether a peer may change things. What it was when it connected counts, not what the process of its number
    /// is now.
    fn may_change(&self, socket: &OwnedFd, who: &UCred) -> bool {
        let is_member = |group: u32| {
            who.gid.as_raw() == group || sys::peer_groups(socket.as_fd()).is_ok_and(|groups| groups.contains(&group))
        };
        who.uid.is_root() || who.uid == rustix::process::geteuid() || self.access.group.is_some_and(is_member)
    }
}

/// Answers a client until it goes.
fn serve(served: &Served, cx: &mut Locked<'_, Unlocked>, client: &Client) {
    let mut buffer = vec![0; REQUEST_MAX];
    let socket = client.socket.as_fd();
    let mut sink = ToClient { served, client, attached: None, gone: false };
    while !sink.gone {
        let length = match net::recv(socket, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => return,
            Ok((_, length)) => length,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        match buffer.get(..length) {
            Some(bytes) => answer(served, cx, &client.peer, bytes, &mut sink),
            None => answer_too_long(&buffer, &mut sink),
        }
    }
}

struct ToClient<'a> {
    served: &'a Served,
    client: &'a Client,
    /// What goes with the next datagram.
    attached: Option<OwnedFd>,
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

    fn done(&mut self, cx: Cx<'_, '_>, touched: Touched) {
        self.served.publish(cx, touched);
    }

    fn is_gone(&self) -> bool {
        self.gone
    }
}

/// Sends a datagram, waiting for room; whether the client is still there.
fn send_all(client: &Client, bytes: &[u8], attached: Option<&OwnedFd>) -> bool {
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
