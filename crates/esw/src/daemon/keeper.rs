//! Without root a card's netdevs live in namespaces of the daemon's own, which would go with it. A small process,
//! `esw keeper`, is in them too and does nothing else: while it is there, so are they, and the next daemon of the
//! same user joins them.
//!
//! It is found by a socket next to that of the daemon's first card of netdevs, and says by its credentials who it
//! is. It ends when the daemon that started it ends in good order, or is told to by the next.

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

/// What a keeper is told.
const END: u8 = b'e';
/// How long a keeper may take to be connected to, and to end. Then it is ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that a keeper has at a time; more wait.
const CLIENTS: usize = 64;
/// How long a keeper waits before it tries again what the system had no room for.
const PAUSE: Duration = Duration::from_millis(100);

/// The place for a daemon's cards of netdevs, and who keeps it.
pub struct Kept {
    /// The place.
    pub place: Place,
    keeper: Option<Keeper>,
}

/// A keeper, and its socket's name.
struct Keeper {
    process: Process,
    at: At,
}

enum Process {
    /// We have started it; it goes with us unless it is let be.
    Ours(Child),
    /// It was there. It stays unless it is told to end.
    Found(UnixStream),
}

/// Where a keeper's socket is.
struct At {
    path: PathBuf,
    /// Its folder, which may be hidden from us later.
    folder: OwnedFd,
    name: OsString,
}

impl At {
    /// Next to a card's control socket. No two sockets have the same: `NAME.sock` has `NAME.keeper`, and `NAME` has
    /// `NAME-keeper`.
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
    /// Finds or makes the place. Call it before there is a second thread. `sockets`: the control sockets of the
    /// cards of netdevs, one at least, whose locks this daemon holds; `keeps`: whether what an earlier daemon has left
    /// of them is wanted.
    ///
    /// # Errors
    /// There can be no place here, nobody to keep it, or two earlier daemons have left cards in two places.
    pub fn prepare(sockets: &[&Path], keeps: bool) -> Result<Self> {
        if !Place::would_be_private()? {
            return Ok(Self { place: Place::prepare()?, keeper: None });
        }
        // Next to any of them: the daemon that left it may have had other cards beside.
        let mut found: Vec<(At, UnixStream)> = Vec::new();
        for socket in sockets {
            let at = At::beside(socket)?;
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
            let place = Place::join(process.as_fd()).context("joining what the last daemon has left")?;
            tracing::info!("what the last daemon has left was found");
            return Ok(Self { place, keeper: Some(Keeper { process: Process::Found(keeper), at }) });
        }
        for (at, keeper) in found {
            tell_to_end(&keeper).with_context(|| format!("ending who keeps {}", at.path.display()))?;
        }
        let Some(first) = sockets.first() else { bail!("no card of netdevs") };
        let at = At::beside(first)?;
        let bound = bind(&at).with_context(|| at.path.display().to_string())?;
        let place = Place::prepare()?;
        let process = Process::Ours(start(bound).context("starting who keeps the namespaces")?);
        Ok(Self { place, keeper: Some(Keeper { process, at }) })
    }

    /// The place, and who keeps it.
    pub fn split(self) -> (Place, Letting) {
        (self.place, Letting(self.keeper))
    }
}

/// What becomes of a keeper: if this is dropped, one that we started ends, and one that was there stays.
pub struct Letting(Option<Keeper>);

impl Letting {
    /// Nobody to keep anything.
    pub fn none() -> Self {
        Self(None)
    }

    /// Lets it keep what is there.
    pub fn stay(mut self) {
        if let Some(keeper) = self.0.take() {
            drop(keeper.process);
        }
    }

    /// Nothing is left to keep.
    pub fn end(mut self) {
        if let Some(keeper) = self.0.take() {
            keeper.end();
        }
    }
}

impl Drop for Letting {
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
                    tracing::warn!(%error, "who keeps the namespaces does not end");
                }
            }
        }
        let _ = unlinkat(&self.at.folder, &self.at.name, AtFlags::empty());
    }
}

/// A keeper that listens at a path, if one of ours does.
fn find(path: &Path) -> Result<Option<UnixStream>> {
    let found = match connect(path) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let who = socket_peercred(&found)?;
    if who.uid != geteuid() {
        bail!("{}: it is another user's, number {}", path.display(), who.uid.as_raw());
    }
    Ok(Some(found))
}

/// Connects to a keeper. It need not accept: one that is stopped keeps its namespaces all the same.
fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// The process behind a connection. While that stands its number is its own.
fn pidfd_of(keeper: &UnixStream) -> Result<OwnedFd> {
    let process = pidfd_open(socket_peercred(keeper)?.pid, PidfdFlags::empty());
    process.context("looking at who keeps the namespaces")
}

/// Tells a keeper to end, and waits until it has. One that does not is ended.
fn tell_to_end(mut keeper: &UnixStream) -> Result<()> {
    let process = pidfd_open(socket_peercred(keeper)?.pid, PidfdFlags::empty());
    // It says nothing; the connection's end is its own.
    let ended = keeper.write_all(&[END]).and_then(|()| keeper.read(&mut [0]));
    match ended {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            pidfd_send_signal(process?, Signal::KILL)?;
            // Its end of the connection goes with it.
            let _ = keeper.read(&mut [0]);
            Ok(())
        }
        // If it has gone meanwhile, so much the better.
        _ => Ok(()),
    }
}

/// Binds a socket; who will keep listens on it, so that its credentials are the keeper's. One that a dead keeper
/// has left is replaced.
fn bind(at: &At) -> Result<OwnedFd> {
    match statat(&at.folder, &at.name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => {}
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Socket => {
            unlinkat(&at.folder, &at.name, AtFlags::empty())?;
        }
        Ok(_) => bail!("it is there and is no socket; remove it"),
        Err(error) => return Err(error.into()),
    }
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file gets the mode that its socket has.
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &SocketAddrUnix::new(&at.path)?)?;
    Ok(socket)
}

fn start(bound: OwnedFd) -> io::Result<Child> {
    let mut keeper = Command::new("/proc/self/exe");
    keeper.arg("keeper").env_clear().current_dir("/");
    keeper.stdin(bound).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = keeper.spawn()?;
    // It says that it listens: from here on whoever looks for it finds it.
    let mut ready = [0];
    match child.stdout.take().map(|mut said| said.read(&mut ready)) {
        Some(Ok(1)) => Ok(child),
        _ => {
            let _ = child.kill();
            let _ = child.wait();
            Err(io::Error::other("it did not begin"))
        }
    }
}

/// `esw keeper`: is there until it is told to end.
///
/// # Errors
/// It was not started by a daemon.
pub fn keeper() -> Result<u8> {
    // A terminal's Ctrl-C is not for us.
    let _ = setsid();
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    net::listen(&socket, 16).context("this is for a daemon to start")?;
    let listener = UnixListener::from(socket);
    let mut told = io::stdout();
    told.write_all(b"k")?;
    told.flush()?;
    listener.set_nonblocking(true)?;
    keep(&listener)
}

/// Is there until it is told to end. Nothing else ends it, least of all that the system has no room: with it go all
/// namespaces.
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
                // One that has gone again is none; out of descriptors or memory, others may let go of some.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {}
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

/// A client that may tell us something, if there is one.
fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    let (client, _) = listener.accept()?;
    let may = socket_peercred(&client).is_ok_and(|who| who.uid == geteuid() || who.uid.is_root());
    client.set_nonblocking(true)?;
    Ok(may.then_some(client))
}

/// Hears what a client says; whether it is still there.
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
    fn no_two_sockets_share_a_keeper() {
        let sockets =
            ["a.one", "a.two", "a", "a.sock", "a.sock.sock", "a.keeper", "a-keeper", "a.one.sock", "a-keeper.sock"];
        let keepers: std::collections::BTreeSet<OsString> =
            sockets.iter().map(|socket| keeper_name(OsStr::new(socket))).collect();
        assert_eq!(keepers.len(), sockets.len(), "{keepers:?}");
        assert_eq!(keeper_name(OsStr::new("0000:08:00.0.sock")), "0000:08:00.0.keeper");
    }
}
