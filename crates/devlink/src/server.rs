//! Serving a control socket: who has a place, who may change things, a thread for each client.
//!
//! A client costs a thread and two buffers, whatever it sends and whether or not it reads: a dump is sent
//! as it is put together, and who does not read it holds up nobody else. What happens is told to whoever
//! has asked for it and has room; who has not misses it, as with the kernel.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use control::Follower;
use lockdep::{Locked, Mutex, Unlocked, lock_classes};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    self, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, UCred,
};

use eswitch::Touched;

use crate::answer::{Peer, Sink, answer, answer_too_long};
use crate::card::{Cx, Served};
use crate::notify;
use crate::sys;

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

/// How the places of a card are shared out, so that no user can keep root or who serves from connecting, nor one
/// user the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    all: usize,
    /// For users other than root and who serves, together.
    others: usize,
    /// For each of them.
    each: usize,
    /// Of those kept for root and who serves, what one of the two leaves to the other.
    kept: usize,
}

impl Places {
    /// A quarter is kept for root and who serves; of the others each user may have a quarter.
    fn of(all: usize) -> Self {
        let kept = all.div_ceil(4);
        let others = all - kept;
        Self { all, others, each: others.div_ceil(4), kept }
    }

    /// Whether there is one more for a user, beside those of the users who are connected. `own`: who serves.
    fn has_one(self, user: u32, own: u32, connected: impl Iterator<Item = u32> + Clone) -> bool {
        const ROOT: u32 = 0;
        let is_privileged = |user: &u32| *user == ROOT || *user == own;
        let of_user = connected.clone().filter(|other| *other == user).count();
        let all = connected.clone().count();
        if !is_privileged(&user) {
            let others = connected.filter(|user| !is_privileged(user)).count();
            return all < self.all && others < self.others && of_user < self.each;
        }
        // Neither of root and who serves takes the last places from the other.
        let of_the_other = connected.filter(|other| is_privileged(other) && *other != user).count();
        let left = if own == ROOT { 0 } else { (self.kept / 2).saturating_sub(of_the_other) };
        all + left < self.all
    }
}

/// A client.
pub(crate) struct Client {
    pub socket: OwnedFd,
    pub peer: Peer,
    /// Whose it is.
    user: u32,
}

/// Who is connected, by number.
pub(crate) struct Clients(Mutex<ClientsClass, BTreeMap<u64, Arc<Client>>>);

impl Clients {
    fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Those of whom something is true.
    pub fn those(&self, cx: &mut Locked<'_, Unlocked>, is: impl Fn(&Peer) -> bool) -> Vec<Arc<Client>> {
        self.0.lock_leaf(cx).values().filter(|client| is(&client.peer)).cloned().collect()
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
        served.shared.publish(cx, &served, Touched::Everything);
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
        for client in self.clients.0.lock_leaf(cx).values() {
            let _ = net::shutdown(&client.socket, Shutdown::Both);
        }
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
        {
            let mut clients = self.clients.0.lock_leaf(cx);
            let own = rustix::process::geteuid().as_raw();
            let connected = clients.values().map(|client| client.user);
            if !Places::of(self.access.clients).has_one(user, own, connected) {
                return None;
            }
            clients.insert(number, Arc::clone(&client));
        }
        let domain = Arc::clone(&self.served.domain);
        let (served, clients) = (Arc::clone(&self.served), Arc::clone(&self.clients));
        let serve = move || {
            lockdep::enter(&domain, "client", |cx| {
                let served = catch_unwind(AssertUnwindSafe(|| serve(&served, cx, &client)));
                // However it has ended: a place that is not given back is lost for good.
                clients.0.lock_leaf(cx).remove(&number);
                served.unwrap_or_else(|panic| resume_unwind(panic));
            });
        };
        let spawned = thread::Builder::new().name("client".to_owned()).spawn(serve);
        if spawned.is_err() {
            self.clients.0.lock_leaf(cx).remove(&number);
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
        self.served.shared.publish(cx, self.served, touched);
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const OWN: u32 = 1_000;

    /// How many places a user gets beside those of the users who are connected.
    fn gets(all: usize, user: u32, own: u32, connected: &[u32]) -> usize {
        let mut connected = connected.to_vec();
        let before = connected.len();
        while Places::of(all).has_one(user, own, connected.iter().copied()) {
            connected.push(user);
        }
        connected.len() - before
    }

    #[test]
    fn no_user_keeps_another_out() {
        for all in [8, 16, 100, 1_024] {
            let mut connected = Vec::new();
            for user in 2_000..2_010 {
                let own = gets(all, user, OWN, &connected);
                assert!(own <= all / 4, "{own} of {all}");
                connected.extend(std::iter::repeat_n(user, own));
            }
            assert!(connected.len() >= all / 2, "they get what is not kept");
            for user in [ROOT, OWN] {
                let privileged = gets(all, user, OWN, &connected);
                assert!(privileged >= 1, "{user} gets none of {all}");
                let both = [&connected[..], &vec![user; privileged]].concat();
                assert!(gets(all, ROOT + OWN - user, OWN, &both) >= 1, "{user} leaves none of {all}");
            }
        }
    }

    #[test]
    fn root_alone_gets_all() {
        assert_eq!(gets(100, ROOT, ROOT, &[]), 100);
        assert_eq!(gets(100, OWN, ROOT, &[ROOT; 100]), 0);
    }
}
