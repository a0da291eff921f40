//! Network namespaces: the ones that have names, and the card's own, which is given one.
//!
//! While a [`CardNetns`] lives, its namespace has its name under `/run/netns` and no other process can
//! make one of that name. When it is gone, so are the name and every netdev inside. If the process is
//! killed, the name and the netdevs stay behind; who makes the next of that name clears them away, or takes
//! them over.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use eswitch::PciAddress;

use crate::netlink::{Batch, Socket, within};
use crate::request;
use crate::sys;

/// Where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// Where a card's owner holds a lock.
const LOCKS: &str = "/run/eswitch";
pub(crate) const LOOPBACK: u32 = 1;

/// Why there is no namespace for the card.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Another process has a card of this address.
    #[error("process {pid} already has a card at {address}; end it, or use another PCI address")]
    InUse {
        /// The card's address.
        address: PciAddress,
        /// Whose it is, as far as is known.
        pid: String,
    },
    /// There is a namespace of the card's name that no card has left.
    #[error(
        "there is a network namespace {name}, and no card has left it; delete it (`ip netns del {name}`) or use another PCI address"
    )]
    NotOurs {
        /// Its name.
        name: String,
    },
    /// The system refused.
    #[error("{what}: {source}{hint}")]
    System {
        /// What was tried.
        what: String,
        /// What came of it.
        source: io::Error,
        /// What to do about it, if known: starts with `; `.
        hint: &'static str,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetnsError {
    let what = what.into();
    move |source| {
        let hint = match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => "; /run and /proc/sys must be writable here",
            io::ErrorKind::PermissionDenied => {
                "; it takes a /run that may be written to: root's, or in a mount namespace of one's own a \
                 fresh one (`mount -t tmpfs tmpfs /run`)"
            }
            _ => "",
        };
        NetnsError::System { what, source, hint }
    }
}

/// The name a card's namespace has: that of its first PF.
pub fn card_netns_name(address: PciAddress) -> String {
    format!("esw-{address}")
}

/// The namespace of the calling thread.
pub(crate) fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// The namespace of a name.
///
/// # Errors
/// There is none, or it may not be opened.
pub(crate) fn open(name: &str) -> io::Result<File> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(Path::new(NAMES).join(name))
}

/// The named namespace that the socket's namespace knows by an id.
pub(crate) fn find(socket: &mut Socket, id: i32) -> Option<(String, File)> {
    fs::read_dir(NAMES).ok()?.flatten().find_map(|entry| {
        let netns = File::open(entry.path()).ok()?;
        let found = request::netns_id(socket, &netns).ok()??;
        (found == id).then(|| (entry.file_name().to_string_lossy().into_owned(), netns))
    })
}

/// The namespace a card is.
pub(crate) struct CardNetns {
    netns: File,
    path: PathBuf,
    /// Locked for as long as the card lives, by the kernel, so that the lock dies with us.
    lock: File,
    /// Whether all of it stays when this goes, for the next of that name to find.
    pub(crate) stays: Arc<AtomicBool>,
}

impl CardNetns {
    /// Makes a card's namespace and gives it its name. What a dead owner has left is cleared away; or, with `find`,
    /// it is what is made, and all of it stays until [`stays`](Self::stays) is unset. Whether that is so.
    ///
    /// # Errors
    /// The owner of that name lives; or the system refuses, and nothing is left that was not there.
    pub(crate) fn make_or_find(address: PciAddress, find: bool) -> Result<(Self, bool), NetnsError> {
        let (lock, died) = lock(address)?;
        prepare_names().map_err(system(format!("making {NAMES} a place for names")))?;
        let path = Path::new(NAMES).join(card_netns_name(address));
        if find
            && died
            && let Some(netns) = left_at(&path)
        {
            return Ok((Self { netns, path, lock, stays: Arc::new(AtomicBool::new(true)) }, true));
        }
        if !died && path.exists() {
            // Or whoever comes next would take it for what we have left.
            lock.set_len(0).map_err(system("giving the card's lock back"))?;
            return Err(NetnsError::NotOurs { name: card_netns_name(address) });
        }
        clear_away(&path).map_err(system(format!("removing {}, left by a dead process", path.display())))?;
        let netns = born_at(&path).map_err(system(format!("making the namespace {}", path.display())))?;
        let made = Self { netns, path, lock, stays: Arc::default() };
        within(&made.netns, disable_ipv6).flatten().map_err(system("disabling IPv6 inside the card"))?;
        Ok((made, false))
    }

    /// The namespace itself.
    pub(crate) fn netns(&self) -> &File {
        &self.netns
    }
}

impl Drop for CardNetns {
    fn drop(&mut self) {
        if self.stays.load(Ordering::Acquire) {
            return;
        }
        // The namespace would take its netdevs with it, but later, when it is cleaned up; until then
        // their outer ends would still be there for all to see.
        let _ = purge(&self.netns);
        let _ = sys::detach_mount(&self.path);
        let _ = fs::remove_file(&self.path);
        // Nothing is left that a later card would have to clear away.
        let _ = self.lock.set_len(0);
    }
}

/// Takes a card's lock; and whether the last owner died without giving it back, so that what is there of
/// its card is nobody's.
fn lock(address: PciAddress) -> Result<(File, bool), NetnsError> {
    let path = Path::new(LOCKS).join(format!("{address}.lock"));
    fs::create_dir_all(LOCKS).map_err(system(format!("making {LOCKS}")))?;
    // Never removed: removing it would let two processes lock two files of one name.
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(system(format!("opening {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.is_empty() { "?".to_owned() } else { pid };
            return Err(NetnsError::InUse { address, pid });
        }
        Err(fs::TryLockError::Error(error)) => return Err(system(format!("locking {}", path.display()))(error)),
    }
    let died = file.metadata().map_err(system(format!("reading {}", path.display())))?.len() > 0;
    // Never empty on the way: who dies here has left what there was to leave.
    let pid = std::process::id().to_string();
    let written =
        file.rewind().and_then(|()| file.write_all(pid.as_bytes())).and_then(|()| file.set_len(pid.len() as u64));
    written.map_err(system(format!("writing {}", path.display())))?;
    Ok((file, died))
}

/// Makes `/run/netns` a mount point whose mounts are seen by namespaces copied from this one, as
/// `ip netns` does, so that either finds the other's names.
fn prepare_names() -> io::Result<()> {
    let (names, nothing) = (Path::new(NAMES), Path::new(""));
    fs::create_dir_all(names)?;
    let share = || sys::mount(nothing, names, "none", libc::MS_SHARED | libc::MS_REC);
    match share() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            sys::mount(names, names, "none", libc::MS_BIND | libc::MS_REC)?;
            share()
        }
        outcome => outcome,
    }
}

/// The namespace bound to a path, if one is.
fn left_at(path: &Path) -> Option<File> {
    let netns = File::open(path).ok()?;
    // What was to become one has nothing that could be entered.
    Socket::open(&netns).ok()?;
    Some(netns)
}

fn clear_away(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // What is not a namespace any more has nothing inside.
        opened => drop(opened.and_then(|netns| purge(&netns))),
    }
    // It may have been mounted more than once, or not at all.
    while sys::detach_mount(path).is_ok() {}
    fs::remove_file(path)
}

/// A new namespace, bound to a path that does not exist.
fn born_at(path: &Path) -> io::Result<File> {
    File::create_new(path)?;
    let born = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            sys::unshare_netns()?;
            let own = Path::new("/proc/thread-self/ns/net");
            sys::mount(own, path, "none", libc::MS_BIND)?;
            File::open(own)
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if born.is_err() {
        let _ = fs::remove_file(path);
    }
    born
}

/// Keeps the card's own ends from talking: without this they would send router solicitations out of
/// representors.
fn disable_ipv6() -> io::Result<()> {
    match fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1") {
        // No IPv6, nothing to disable.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Deletes every netdev of a namespace but the loopback, and with it the other end of each pair.
fn purge(netns: &File) -> io::Result<()> {
    let mut socket = Socket::open(netns)?;
    let mut batch = Batch::default();
    for link in request::links(&mut socket)?.iter().filter(|l| l.index != LOOPBACK) {
        request::doom(&mut batch, link.index);
    }
    request::delete_group(&mut batch, crate::layout::DOOMED);
    // What has gone meanwhile, and an empty group, are as good as deleted.
    socket.run(batch);
    Ok(())
}
