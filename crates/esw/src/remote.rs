//! A card behind a control socket, for a lab.
//!
//! Its view is read from memory that the card's daemon shares. This takes no answer of the daemon, so no thread waits for
//! the card. When the daemon ends, the last view stays and commands are refused; when a daemon runs again, its view takes
//! the place of the last one.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use control::Command;
use devlink::{
    Client, ClientError, ESWITCH, RdmaChange, Refusal as Refused, SampleGroup, ViewReader, eswitch_family, view,
};
use eswitch::PciAddress;
use eswitch::card::Counters;
use lab::{Card, Refusal};
use netlink::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

/// The pause between two attempts to connect to a daemon that has ended: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// The most bytes of a datagram with notifications.
const ROOM: usize = 256 << 10;

/// The error number when the daemon has ended.
const GONE: Errno = Errno::NODEV;

/// The error number with which a daemon refuses a request that it does not know.
const OLDER: Errno = Errno::OPNOTSUPP;

/// A card in another process.
///
/// Its locks are none of `lockdep`'s: they are taken in the processes of a lab, which are forked from this one and whose
/// threads are in no domain and pass no token. No two of them are held at a time.
pub struct Remote {
    path: PathBuf,
    seen: Mutex<Seen>,
    /// The connection over which the view is shared, until a thread [watches](Remote::stay_connected) it.
    connection: Mutex<Option<Client>>,
    /// A connection that a request has used, kept for the next one. Two requests at the same time use one each.
    idle: Mutex<Option<Client>>,
}

/// The last view of the card.
struct Seen {
    reader: ViewReader,
    view: Arc<view::Card>,
    /// The card's own network namespace, and a socket where its netdevs appear; `None` of a card without netdevs.
    network: Option<Arc<OwnedFd>>,
    home: Option<Arc<OwnedFd>>,
}

impl Remote {
    /// Connects to a card.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        // The working directory may be another later.
        let path = std::path::absolute(path)?;
        let (connection, seen) = look(&path)?;
        Ok(Self { path, seen: Mutex::new(seen), connection: Mutex::new(Some(connection)), idle: Mutex::default() })
    }

    /// Starts a thread that connects again whenever the daemon has ended, for as long as the card is used. It must be
    /// called in the process that uses the card.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn stay_connected(self: &Arc<Self>) -> io::Result<()> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (path, remote) = (self.path.clone(), Arc::downgrade(self));
        let watch = move || {
            let mut connection = connection;
            loop {
                if let Some(mut connection) = connection.take() {
                    connection.wait_for_end();
                }
                connection = Self::connect_again(&path, &remote);
                if connection.is_none() {
                    return;
                }
            }
        };
        thread::Builder::new().name("lab-card".to_owned()).spawn(watch).map(drop)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a request over the connection that is kept for that, or over a new one.
    fn request<T>(&self, make: impl FnOnce(&mut Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        let kept = self.idle().take().filter(|client| !client.has_ended());
        let mut client = kept.map_or_else(|| Client::connect(&self.path), Ok)?;
        let answer = make(&mut client);
        if !matches!(answer, Err(ClientError::Broken(_))) {
            self.idle().get_or_insert(client);
        }
        answer
    }

    /// Tries to connect until a daemon answers. `None`: the card is not used any more.
    fn connect_again(path: &Path, remote: &Weak<Self>) -> Option<Client> {
        let mut pause = FIRST_PAUSE;
        loop {
            let found = look(path);
            let remote = remote.upgrade()?;
            if let Ok((connection, seen)) = found {
                *remote.seen() = seen;
                return Some(connection);
            }
            drop(remote);
            thread::sleep(pause);
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }
}

/// Connects, and reads the first view. The daemon shares the view for as long as the connection exists.
fn look(path: &Path) -> Result<(Client, Seen), ClientError> {
    let mut connection = Client::connect(path)?;
    let mut reader = connection.share().map_err(|error| match error {
        ClientError::Refused(refusal) if refusal.errno == OLDER => {
            let message = "this daemon is of an older version and shares no view: start it again with this one";
            ClientError::Refused(Refused { message: Some(message.to_owned()), ..refusal })
        }
        error => error,
    })?;
    let view = reader.newer()?.ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
    let mut network = |which| match connection.network(which) {
        Ok(network) => Ok(Some(Arc::new(network))),
        Err(ClientError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    };
    let (network, home) = (network(eswitch_family::INSIDE)?, network(eswitch_family::HOME)?);
    Ok((connection, Seen { reader, view, network, home }))
}

impl Card for Remote {
    fn network(&self) -> Option<Arc<OwnedFd>> {
        self.seen().network.clone()
    }

    fn home(&self) -> Option<Arc<OwnedFd>> {
        self.seen().home.clone()
    }

    fn view(&self) -> io::Result<Arc<view::Card>> {
        let mut seen = self.seen();
        // If the new view cannot be read, the last one stays.
        if let Ok(Some(view)) = seen.reader.newer() {
            seen.view = view;
        }
        Ok(Arc::clone(&seen.view))
    }

    fn perform(&self, command: &Command) -> Result<(), Refusal> {
        self.request(|client| client.perform(command)).map(drop).map_err(refused)
    }

    fn change_rdma(&self, change: &RdmaChange, network: Option<BorrowedFd<'_>>) -> Result<(), Refusal> {
        self.request(|client| client.change_rdma(change, network)).map_err(refused)
    }

    fn tc(&self, request: &tc::Request) -> Result<tc::Answer, Refusal> {
        self.request(|client| client.tc(request)).map_err(refused)
    }

    fn vf_counters(&self, device: PciAddress) -> io::Result<BTreeMap<u16, Counters>> {
        self.request(|client| client.vf_counters(device)).map_err(io::Error::other)
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        devlink::connect(&self.path)
    }

    fn sample_groups(&self) -> Result<Vec<SampleGroup>, Refusal> {
        self.request(Client::sample_groups).map_err(refused)
    }

    fn listen(&self, group: u32) -> io::Result<OwnedFd> {
        let first = join(&self.path, group).map_err(|error| match error {
            ClientError::Refused(refusal) => refusal.errno.into(),
            error => io::Error::other(error),
        })?;
        let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let path = self.path.clone();
        thread::Builder::new().name("lab-monitor".to_owned()).spawn(move || pass_on(&path, group, first, &ours))?;
        Ok(theirs)
    }
}

/// Why a card refused, or that its daemon has ended.
fn refused(error: ClientError) -> Refusal {
    match error {
        ClientError::Refused(refusal) => Refusal { errno: refusal.errno, message: refusal.message.unwrap_or_default() },
        error => Refusal { errno: GONE, message: error.to_string() },
    }
}

/// A connection that receives the notifications to a multicast group of the control socket.
fn join(path: &Path, group: u32) -> Result<OwnedFd, ClientError> {
    let mut client = Client::connect(path)?;
    client.ask(ESWITCH, eswitch_family::JOIN, |to| {
        to.u32(eswitch_family::GROUP, group);
    })?;
    Ok(client.into_socket())
}

/// Passes on the notifications of a daemon, and of the daemons after it, until the other end of `to` is closed.
fn pass_on(path: &Path, group: u32, first: OwnedFd, to: &OwnedFd) {
    let (mut from, mut pause) = (Some(first), FIRST_PAUSE);
    let mut buffer = vec![0; ROOM];
    loop {
        // Nothing is sent over `to` from its other end: the only event is that it is closed.
        let mut polled = vec![PollFd::new(to, PollFlags::IN)];
        polled.extend(from.as_ref().map(|from| PollFd::new(from, PollFlags::IN)));
        let timeout = if from.is_none() { Timespec::try_from(pause).ok() } else { None };
        match poll(&mut polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !polled[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        let Some(card) = &from else {
            from = join(path, group).ok();
            pause = LONGEST_PAUSE.min(2 * pause);
            continue;
        };
        if polled[1].revents().is_empty() {
            continue;
        }
        match recv(card, &mut buffer[..], RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Ok((_, 0)) | Err(_) => (from, pause) = (None, FIRST_PAUSE),
            // A receiver without room misses the notification, as with the kernel.
            Ok((length, _)) => drop(send(to, &buffer[..length], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)),
        }
    }
}
