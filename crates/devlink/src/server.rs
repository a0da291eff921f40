//! The control socket: who may connect, who may change things, a thread for each client.
//!
//! A client costs a thread and two buffers, whatever it sends and whether or not it reads: a dump is sent
//! as it is put together, and who does not read it holds up nobody else. What happens is told to whoever
//! has asked for it and has room; who has not misses it, as with the kernel.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use lockdep::{Locked, Mutex, Unlocked, lock_classes};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix,
    SocketFlags, SocketType,
};
use scenario::Follower;

use crate::answer::{ESWITCH, Peer, Sink, answer, answer_too_long};
use crate::card::{Cx, Served};
use crate::eswitch_family;
use crate::notify;
use crate::shared::Touched;
use crate::wire::Builder;

lock_classes! {
    /// Who is connected.
    pub leaf ClientsClass = "clients of the control socket";
}

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

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Somebody answers there.
    #[error("{0}: a daemon already listens there; end it with `esw down`, or choose another socket")]
    InUse(String),
    /// Something else is there.
    #[error("{0} is there and is no socket; remove it, or choose another path")]
    NotASocket(String),
    /// The system refuses.
    #[error("{path}: {source}")]
    System {
        /// The socket's path.
        path: String,
        /// What came of it.
        source: io::Error,
    },
}

/// Binds a control socket. One that a dead daemon has left is replaced.
///
/// # Errors
/// A daemon listens there, something else is there, or the system refuses.
pub fn listen(path: &Path) -> Result<OwnedFd, ServerError> {
    let system =
        |source: rustix::io::Errno| ServerError::System { path: path.display().to_string(), source: source.into() };
    let socket = || net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let address = SocketAddrUnix::new(path).map_err(system)?;
    if let Ok(found) = rustix::fs::lstat(path) {
        if rustix::fs::FileType::from_raw_mode(found.st_mode) != rustix::fs::FileType::Socket {
            return Err(ServerError::NotASocket(path.display().to_string()));
        }
        if net::connect(&socket().map_err(system)?, &address).is_ok() {
            return Err(ServerError::InUse(path.display().to_string()));
        }
        rustix::fs::unlink(path).map_err(system)?;
    }
    let listener = socket().map_err(system)?;
    net::bind(&listener, &address).map_err(system)?;
    net::listen(&listener, 128).map_err(system)?;
    Ok(listener)
}

/// A client.
pub(crate) struct Client {
    pub socket: OwnedFd,
    pub peer: Peer,
}

/// Who is connected.
pub(crate) struct Clients {
    all: Mutex<ClientsClass, Connected>,
    /// What tells those who watch.
    changed: Vec<u8>,
}

#[derive(Default)]
struct Connected {
    /// By number.
    clients: BTreeMap<u64, Arc<Client>>,
    /// The change that was told last.
    told: u64,
}

impl Clients {
    fn new() -> Self {
        let mut changed = Builder::default();
        changed.begin(ESWITCH, 0, 0, 0).genl(eswitch_family::CHANGED, 1).end();
        Self { all: Mutex::new(Connected::default()), changed: changed.bytes().to_vec() }
    }

    /// Those of whom something is true.
    pub fn those(&self, cx: &mut Locked<'_, Unlocked>, is: impl Fn(&Peer) -> bool) -> Vec<Arc<Client>> {
        self.all.lock_leaf(cx).clients.values().filter(|client| is(&client.peer)).cloned().collect()
    }

    /// Sees to it that those who read the view find what has changed: see [`crate::SharedView`].
    pub fn publish(&self, cx: &mut Locked<'_, Unlocked>, served: &Served, touched: Touched) {
        let shared = self.all.lock_leaf(cx).clients.values().any(|client| client.peer.shares.load(Ordering::Acquire));
        if shared {
            served.shared.publish(cx, served, touched);
        }
    }

    /// Tells those who watch that there is another view, if there is. When it returns they have been told,
    /// by this call or another, unless they have not read what they were told before.
    pub fn tell_changes(&self, cx: &mut Locked<'_, Unlocked>, served: &Served) {
        let now = served.session.engine().changes();
        // Under one lock: whoever finds that it has been told must find it sent, too.
        let mut connected = self.all.lock_leaf(cx);
        if std::mem::replace(&mut connected.told, now) == now {
            return;
        }
        for client in connected.clients.values().filter(|client| client.peer.watches.load(Ordering::Acquire)) {
            // Who has no room has something to read that says the same.
            let _ = net::send(&client.socket, &self.changed, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
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
    /// Begins to serve a socket that [listens](listen).
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
        for client in self.clients.all.lock_leaf(cx).clients.values() {
            let _ = net::shutdown(&client.socket, Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// Lets a client in, unless there are too many.
    fn admit(self: &Arc<Self>, cx: &mut Locked<'_, Unlocked>, socket: OwnedFd) -> Option<JoinHandle<()>> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let may_change = self.may_change(&socket);
        let client = Arc::new(Client { socket, peer: Peer { may_change, ..Peer::default() } });
        {
            let clients = &mut self.clients.all.lock_leaf(cx).clients;
            if clients.len() >= self.access.clients {
                return None;
            }
            clients.insert(number, Arc::clone(&client));
        }
        let (shared, domain) = (Arc::downgrade(self), Arc::clone(&self.served.domain));
        let (served, clients) = (Arc::clone(&self.served), Arc::clone(&self.clients));
        let serve = move || {
            lockdep::enter(&domain, "client", |cx| {
                serve(&served, &clients, cx, &client);
                forget(&shared, cx, number);
            });
        };
        let spawned = thread::Builder::new().name("client".to_owned()).spawn(serve);
        if spawned.is_err() {
            self.clients.all.lock_leaf(cx).clients.remove(&number);
        }
        spawned.ok()
    }

    fn may_change(&self, socket: &OwnedFd) -> bool {
        let Ok(peer) = net::sockopt::socket_peercred(socket) else { return false };
        let own = rustix::process::geteuid();
        let is_member = |group: u32| peer.gid.as_raw() == group || groups(peer.pid.as_raw_pid()).contains(&group);
        peer.uid.is_root() || peer.uid == own || self.access.group.is_some_and(is_member)
    }
}

fn forget(shared: &Weak<Shared>, cx: &mut Locked<'_, Unlocked>, number: u64) {
    if let Some(shared) = shared.upgrade() {
        shared.clients.all.lock_leaf(cx).clients.remove(&number);
    }
}

/// The further groups of a process.
fn groups(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Answers a client until it goes.
fn serve(served: &Served, clients: &Clients, cx: &mut Locked<'_, Unlocked>, client: &Client) {
    let mut buffer = vec![0; REQUEST_MAX];
    let socket = client.socket.as_fd();
    let mut sink = ToClient { served, clients, client, attached: None, gone: false };
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
    clients: &'a Clients,
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
        self.clients.publish(cx, self.served, touched);
        self.clients.tell_changes(cx, self.served);
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
