//! The keeper: a process that keeps the namespaces of a daemon without root.
//!
//! Without root a card's netdevs are in namespaces of the daemon's own, which would end with it. A small process,
//! `esw keeper`, is in the same namespaces and does nothing else. As long as it runs they exist, and the next daemon of
//! the same user joins them.
//!
//! It is found by a socket next to that of the daemon's first card of netdevs, whose credentials are the keeper's. It ends
//! when the daemon that started it ends in good order, or when the next daemon tells it to.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use card_linux::Place;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fchmod, open, statat, unlinkat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal, setsid};

use crate::exit_status::HELD;

/// The message that ends a keeper.
const END: u8 = b'e';
/// How long a keeper may take until a connection to it is made, and until it has ended. After that it is killed.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most connections that a keeper has at a time; more wait.
const CLIENTS: usize = 64;
/// How long a keeper waits before it tries again what failed for want of memory or descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The place for a daemon's cards of netdevs, and its keeper.
pub struct Kept {
    /// The namespaces.
    pub place: Place,
    keeper: Option<Keeper>,
}

/// A keeper, and its socket.
struct Keeper {
    process: Process,
    socket: KeeperSocket,
}

/// The process of a keeper.
enum Process {
    /// This process has started it, and ends it unless it is left.
    Ours(Child),
    /// An earlier daemon has started it. It stays unless it is told to end.
    Found(UnixStream),
}

/// The place of a keeper's socket.
struct KeeperSocket {
    path: PathBuf,
    /// The folder, open: its path may be hidden from this process later.
    folder: OwnedFd,
    name: OsString,
}

impl KeeperSocket {
    /// The place next to a card's control socket. Each control socket has its own: `NAME.sock` has `NAME.keeper`, and
    /// `NAME` has `NAME-keeper`.
    fn beside(socket: &Path) -> Result<Self> {
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            bail!("{} is no path for a socket", socket.display());
        };
        let name = keeper_name(name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(parent, flags, Mode::empty()).with_context(|| parent.display().to_string())?;
        Ok(Self { path: parent.join(&name), folder, name })
    }
}

fn keeper_name(socket: &OsStr) -> OsString {
    let path = Path::new(socket);
    if path.extension().is_some_and(|end| end == "sock") {
        return path.with_extension("keeper").into_os_string();
    }
    let mut name = socket.to_owned();
    name.push("-keeper");
    name
}

impl Kept {
    /// Finds or makes the place. It must be called while the process has one thread. `sockets` are the control sockets of
    /// the cards of netdevs, at least one, whose locks this daemon holds. `keeps`: whether this daemon takes over what an
    /// earlier daemon has left of them.
    ///
    /// # Errors
    /// There can be no place here, no keeper can be started, or two earlier daemons have left cards in two places.
    pub fn prepare(sockets: &[&Path], keeps: bool) -> Result<Self> {
        if !Place::would_be_private()? {
            return Ok(Self { place: Place::prepare()?, keeper: None });
        }
        // It may be next to any of them: the daemon that left it may have had other cards.
        let mut found: Vec<(KeeperSocket, UnixStream)> = Vec::new();
        for socket in sockets {
            let at = KeeperSocket::beside(socket)?;
            if let Some(keeper) = find(&at.path)? {
                found.push((at, keeper));
            }
        }
        if keeps && found.len() > 1 {
            let names: Vec<String> = found.iter().map(|(at, _)| at.path.display().to_string()).collect();
            bail!(
                "what earlier daemons have left of these cards is in several places, kept by {}; start them as they \
                 were, each with a daemon of its own, or begin anew with --fresh",
                names.join(" and ")
            );
        }
        if keeps && let Some((at, keeper)) = found.pop() {
            let process = pidfd_of(&keeper)?;
            let place = Place::join(process.as_fd()).context("joining the namespaces of the last daemon")?;
            tracing::info!("the namespaces of the last daemon were found");
            return Ok(Self { place, keeper: Some(Keeper { process: Process::Found(keeper), socket: at }) });
        }
        for (at, keeper) in found {
            tell_to_end(&keeper).with_context(|| format!("ending the keeper of {}", at.path.display()))?;
        }
        let Some(first) = sockets.first() else { bail!("no card of netdevs") };
        let at = KeeperSocket::beside(first)?;
        let bound = bind(&at).with_context(|| at.path.display().to_string())?;
        let place = Place::prepare()?;
        let process = Process::Ours(start(bound).context("starting the keeper")?);
        Ok(Self { place, keeper: Some(Keeper { process, socket: at }) })
    }

    /// The place, and its keeper.
    pub fn split(self) -> (Place, KeeperGuard) {
        (self.place, KeeperGuard(self.keeper))
    }
}

/// Decides what becomes of a keeper. When this is dropped, a keeper that this process has started ends, and one of an
/// earlier daemon stays.
pub struct KeeperGuard(Option<Keeper>);

impl KeeperGuard {
    /// Without a keeper.
    pub fn none() -> Self {
        Self(None)
    }

    /// Leaves the keeper, so that it keeps the namespaces.
    pub fn stay(mut self) {
        if let Some(keeper) = self.0.take() {
            drop(keeper.process);
        }
    }

    /// Ends the keeper, as nothing is left to keep.
    pub fn end(mut self) {
        if let Some(keeper) = self.0.take() {
            keeper.end();
        }
    }
}

impl Drop for KeeperGuard {
    fn drop(&mut self) {
        match self.0.take() {
            Some(keeper) if matches!(keeper.process, Process::Ours(_)) => keeper.end(),
            _ => {}
        }
    }
}

impl Keeper {
    fn end(self) {
        match self.process {
            Process::Ours(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Process::Found(found) => {
                if let Err(error) = tell_to_end(&found) {
                    tracing::warn!(%error, "the keeper does not end");
                }
            }
        }
        let _ = unlinkat(&self.socket.folder, &self.socket.name, AtFlags::empty());
    }
}

/// Connects to a keeper at a path, if one of this user's listens there.
fn find(path: &Path) -> Result<Option<UnixStream>> {
    let found = match connect(path) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let peer = socket_peercred(&found)?;
    if peer.uid != geteuid() {
        bail!("{}: it is another user's, number {}", path.display(), peer.uid.as_raw());
    }
    Ok(Some(found))
}

/// Connects to a keeper. It need not accept the connection: a keeper that is stopped keeps its namespaces, too.
fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// The process behind a connection. As long as the connection exists, no other process has its number.
fn pidfd_of(keeper: &UnixStream) -> Result<OwnedFd> {
    let process = pidfd_open(socket_peercred(keeper)?.pid, PidfdFlags::empty());
    process.context("opening the process of the keeper")
}

/// Tells a keeper to end, and waits until it has ended. One that does not end is killed.
fn tell_to_end(mut keeper: &UnixStream) -> Result<()> {
    let process = pidfd_open(socket_peercred(keeper)?.pid, PidfdFlags::empty());
    // The keeper sends nothing; the connection ends when it does.
    let ended = keeper.write_all(&[END]).and_then(|()| keeper.read(&mut [0]));
    match ended {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            pidfd_send_signal(process?, Signal::KILL)?;
            // The connection ends with the process.
            let _ = keeper.read(&mut [0]);
            Ok(())
        }
        // An error means that it has ended already.
        _ => Ok(()),
    }
}

/// Binds a socket. The keeper listens on it later, so that its credentials are the keeper's. The socket of a dead keeper is
/// replaced.
fn bind(at: &KeeperSocket) -> Result<OwnedFd> {
    match statat(&at.folder, &at.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => {
            unlinkat(&at.folder, &at.name, AtFlags::empty())?;
        }
        Ok(_) => bail!("it exists and is no socket; remove it"),
        Err(error) => return Err(error.into()),
    }
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the mode of its socket.
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &SocketAddrUnix::new(&at.path)?)?;
    Ok(socket)
}

fn start(bound: OwnedFd) -> io::Result<Child> {
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg("keeper").env_clear().current_dir("/");
    keeper.stdin(bound).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = keeper.spawn()?;
    // It writes a byte when it listens: from here on it can be found.
    let mut ready = [0];
    match child.stdout.take().map(|mut output| output.read(&mut ready)) {
        Some(Ok(1)) => Ok(child),
        _ => {
            let _ = child.kill();
            let _ = child.wait();
            Err(io::Error::other("it did not start"))
        }
    }
}

/// Runs `esw keeper`, until it is told to end.
///
/// # Errors
/// It was not started by a daemon.
pub fn keeper() -> Result<u8> {
    // Ctrl-C at the terminal of the daemon must not end this process.
    let _ = setsid();
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    net::listen(&socket, 16).context("this is for a daemon to start")?;
    let listener = UnixListener::from(socket);
    let mut ready = io::stdout();
    ready.write_all(b"k")?;
    ready.flush()?;
    listener.set_nonblocking(true)?;
    keep(&listener)
}

/// Waits until it is told to end. Nothing else ends it, in particular no want of memory or descriptors: the namespaces
/// would end with it.
fn keep(listener: &UnixListener) -> ! {
    let mut clients: Vec<UnixStream> = Vec::with_capacity(CLIENTS);
    loop {
        let mut fds: Vec<PollFd<'_>> = clients.iter().map(|client| PollFd::new(client, PollFlags::IN)).collect();
        if clients.len() < CLIENTS {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        if poll(&mut fds, None).is_err_and(|error| error != Errno::INTR) {
            thread::sleep(PAUSE);
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<bool>>().into_iter();
        clients.retain_mut(|client| !ready.next().unwrap_or(false) || stays(client));
        if ready.next().unwrap_or(false) {
            match accept(listener) {
                Ok(client) => clients.extend(client),
                // A client that has closed its connection again is none.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                // Out of descriptors or memory: other processes may free some.
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Accepts a connection; `None` if the client may not end the keeper.
fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    let (client, _) = listener.accept()?;
    let may = socket_peercred(&client).is_ok_and(|peer| peer.uid == geteuid() || peer.uid.is_root());
    client.set_nonblocking(true)?;
    Ok(may.then_some(client))
}

/// Reads from a client that is ready; whether its connection still exists.
fn stays(client: &mut UnixStream) -> bool {
    match client.read(&mut [0]) {
        Ok(0) => false,
        Ok(_) => std::process::exit(HELD.into()),
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_control_socket_has_a_keeper_of_its_own() {
        let sockets =
            ["a.one", "a.two", "a", "a.sock", "a.sock.sock", "a.keeper", "a-keeper", "a.one.sock", "a-keeper.sock"];
        let keepers: std::collections::BTreeSet<OsString> =
            sockets.iter().map(|socket| keeper_name(OsStr::new(socket))).collect();
        assert_eq!(keepers.len(), sockets.len(), "{keepers:?}");
        assert_eq!(keeper_name(OsStr::new("0000:08:00.0.sock")), "0000:08:00.0.keeper");
    }
}
