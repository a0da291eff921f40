//! Without root a card's netdevs live in namespaces of the daemon's own, which would go with it. A small process,
//! `esw keeper`, is in them too and does nothing else: while it is there, so are they, and the next daemon of the
//! same user joins them.
//!
//! It is found by a socket next to that of the daemon's first card of netdevs, and says by its credentials who it
//! is. It ends when the daemon that started it ends in good order, or is told to by the next.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use card_linux::Place;
use rustix::fs::{AtFlags, Mode, OFlags, open, unlinkat};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{PidfdFlags, geteuid, pidfd_open, setsid};

use crate::HELD;

/// What a keeper is told.
const END: u8 = b'e';

/// The place for a daemon's cards of netdevs, and who keeps it.
pub struct Kept {
    /// The place.
    pub place: Place,
    keeper: Option<Keeper>,
}

/// A keeper, and its socket's name.
struct Keeper {
    process: Process,
    folder: OwnedFd,
    name: PathBuf,
}

enum Process {
    /// We have started it; it goes with us unless it is let be.
    Ours(Child),
    /// It was there. It stays unless it is told to end.
    Found(UnixStream),
}

impl Kept {
    /// Finds or makes the place. Call it before there is a second thread. `socket`: the control socket of the first
    /// card; `keeps`: whether what an earlier daemon has left is wanted.
    ///
    /// # Errors
    /// There can be no place here, or nobody to keep it.
    pub fn prepare(socket: &Path, keeps: bool) -> Result<Self> {
        if !Place::would_be_private()? {
            return Ok(Self { place: Place::prepare()?, keeper: None });
        }
        let path = socket.with_extension("keeper");
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} is no path for a socket", path.display());
        };
        // Later the folder may be hidden from us.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(parent, flags, Mode::empty()).with_context(|| parent.display().to_string())?;
        let name = PathBuf::from(name);
        if let Some(found) = find(&path)? {
            if keeps {
                let process = pidfd_of(&found)?;
                let place = Place::join(process.as_fd()).context("joining what the last daemon has left")?;
                tracing::info!("what the last daemon has left was found");
                return Ok(Self { place, keeper: Some(Keeper { process: Process::Found(found), folder, name }) });
            }
            tell_to_end(&found)?;
        }
        let bound = bind(&path).with_context(|| path.display().to_string())?;
        let place = Place::prepare()?;
        let process = Process::Ours(start(bound).context("starting who keeps the namespaces")?);
        Ok(Self { place, keeper: Some(Keeper { process, folder, name }) })
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
            // If it has gone meanwhile, so much the better.
            Process::Found(found) => drop(tell_to_end(&found)),
        }
        let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
    }
}

/// A keeper that listens at a path, if one of ours does.
fn find(path: &Path) -> Result<Option<UnixStream>> {
    let found = match UnixStream::connect(path) {
        Ok(found) => found,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let who = socket_peercred(&found)?;
    if who.uid != geteuid() {
        bail!("{}: it is another user's, number {}", path.display(), who.uid.as_raw());
    }
    Ok(Some(found))
}

/// The process behind a connection. While that stands its number is its own.
fn pidfd_of(keeper: &UnixStream) -> Result<OwnedFd> {
    let process = pidfd_open(socket_peercred(keeper)?.pid, PidfdFlags::empty());
    process.context("looking at who keeps the namespaces")
}

fn tell_to_end(mut keeper: &UnixStream) -> io::Result<()> {
    keeper.write_all(&[END])?;
    // It says nothing; the connection's end is its own.
    keeper.read(&mut [0]).map(drop)
}

/// Binds a socket; who will keep listens on it, so that its credentials are the keeper's.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
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
    let own = geteuid();
    loop {
        let Ok((mut asks, _)) = listener.accept() else { continue };
        if socket_peercred(&asks).is_ok_and(|who| who.uid == own || who.uid.is_root()) {
            thread::Builder::new().spawn(move || {
                if asks.read(&mut [0]).is_ok_and(|n| n == 1) {
                    std::process::exit(HELD.into());
                }
            })?;
        }
    }
}
