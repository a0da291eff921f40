//! Network namespaces: those that have names, and the card's own.
//!
//! While a [`CardNetns`] exists, its namespace has a name under `/run/netns` and no other process can
//! make one of that name. When it is dropped, the name and every netdev inside are deleted. If the process is
//! killed, the name and the netdevs stay; the process that makes the next one of that name clears them away, or takes
//! them over.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eswitch::PciAddress;
use netlink::{Errno, errno_of};

use crate::request;
use crate::socket::{Batch, Socket, within};
use crate::sys;

/// The folder where `ip netns` keeps names.
const NAMES: &str = "/run/netns";
/// The folder of the files that cards' owners lock.
const LOCKS: &str = "/run/eswitch";
pub(crate) const LOOPBACK: u32 = 1;

/// Why the card's namespace cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Another process has a card of this address.
    #[error(
        "process {pid} already has a card at {address}; end it, use another PCI address, or be another node (`--node`)"
    )]
    InUse {
        /// The card's address.
        address: PciAddress,
        /// The process that has it; `?` if it is not known.
        pid: String,
    },
    /// A namespace of the card's name exists that is not one that a card has left.
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
        /// The system's error.
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

/// The name of a card's namespace; `address`: its first PF's.
pub fn card_netns_name(node: Option<&str>, address: PciAddress) -> String {
    format!("esw-{}", on_node(node, address))
}

/// What tells a card from all others of the machine.
fn on_node(node: Option<&str>, address: PciAddress) -> String {
    node.map_or_else(|| address.to_string(), |node| format!("{node}-{address}"))
}

/// The network namespace of the calling thread.
pub(crate) fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// The namespace of a name.
///
/// # Errors
/// There is none of that name, or it may not be opened.
pub(crate) fn open(name: &str) -> io::Result<File> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(Path::new(NAMES).join(name))
}

/// The namespace that the socket's namespace knows by an id, with its name, if it has one and may be opened.
///
/// # Errors
/// The system has no room to look: then it may exist though it was not found.
pub(crate) fn find(socket: &mut Socket, id: i32) -> io::Result<Option<(String, File)>> {
    let entries = match fs::read_dir(NAMES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let looked = File::open(entry.path()).and_then(|netns| Ok((request::netns_id(socket, &netns)?, netns)));
        match looked {
            Ok((Some(found), netns)) if found == id => {
                return Ok(Some((entry.file_name().to_string_lossy().into_owned(), netns)));
            }
            Err(error) if is_lack_of_room(&error) => return Err(error),
            // Another namespace, or a file that is none, or is none any more, or may not be opened.
            _ => {}
        }
    }
    Ok(None)
}

/// A namespace that the socket's namespace knows by an id and that a process lives in, found by its processes: it need
/// not have a name. It takes a look at each process that there is.
///
/// # Errors
/// The system has no room to look: then it may exist though it was not found.
pub(crate) fn find_by_process(socket: &mut Socket, id: i32) -> io::Result<Option<File>> {
    let mut seen = HashSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("ns/net");
        // What is no process, or has ended, or may not be looked at, is passed over. Most are in one namespace.
        let Ok(looked) = fs::metadata(&path) else { continue };
        if !seen.insert((looked.dev(), looked.ino())) {
            continue;
        }
        match File::open(&path).and_then(|netns| Ok((request::netns_id(socket, &netns)?, netns))) {
            Ok((Some(found), netns)) if found == id => return Ok(Some(netns)),
            Err(error) if is_lack_of_room(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

/// Whether an error means that the system has no room, and shows nothing about what was looked for.
fn is_lack_of_room(error: &io::Error) -> bool {
    matches!(errno_of(error), Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN)
}

/// The namespace that a card is.
pub(crate) struct CardNetns {
    netns: File,
    path: PathBuf,
    /// Locked while the card exists; the kernel releases the lock when the process dies.
    lock: File,
    /// Whether everything stays when this is dropped, for the next card of that name to find.
    pub(crate) stays: Arc<AtomicBool>,
}

impl CardNetns {
    /// Makes a card's namespace and gives it its name. What a dead owner has left is cleared away; or, with `find`,
    /// it is used, and everything in it stays until [`stays`](Self::stays) is unset. Returns whether it was found.
    ///
    /// # Errors
    /// The owner of that name is alive; or the system refuses, and nothing is left that did not exist before.
    pub(crate) fn make_or_find(
        node: Option<&str>,
        address: PciAddress,
        find: bool,
    ) -> Result<(Self, bool), NetnsError> {
        let (lock, died) = lock(node, address)?;
        prepare_names().map_err(system(format!("making {NAMES} a place for names")))?;
        let name = card_netns_name(node, address);
        let path = Path::new(NAMES).join(&name);
        if find && died {
            let left = left_at(&path).map_err(system(format!("looking at {}, left by a dead process", path.display())));
            if let Some(netns) = left? {
                return Ok((Self { netns, path, lock, stays: Arc::new(AtomicBool::new(true)) }, true));
            }
        }
        if !died && is_there(&path).map_err(system(format!("looking at {}", path.display())))? {
            // Otherwise the next card would take the namespace for one that this process has left.
            lock.set_len(0).map_err(system("giving the card's lock back"))?;
            return Err(NetnsError::NotOurs { name });
        }
        clear_away(&path).map_err(system(format!("removing {}, left by a dead process", path.display())))?;
        let netns = make_at(&path).map_err(system(format!("making the namespace {}", path.display())))?;
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
        // The kernel deletes a namespace's netdevs with it, but later; until then users would still see
        // their outer ends.
        let _ = purge(&self.netns);
        let _ = sys::detach_mount(&self.path);
        let _ = fs::remove_file(&self.path);
        // Nothing is left that a later card would have to clear away.
        let _ = self.lock.set_len(0);
    }
}

/// Takes a card's lock. Returns also whether the last owner died without giving it back, so that what exists of
/// its card is a dead process's.
fn lock(node: Option<&str>, address: PciAddress) -> Result<(File, bool), NetnsError> {
    let path = Path::new(LOCKS).join(format!("{}.lock", on_node(node, address)));
    prepare_locks().map_err(system(format!("making {LOCKS}")))?;
    // Never removed: removing it would let two processes lock two files of one name.
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(system(format!("opening {}", path.display())))?;
    // A user who could open it could hold the lock, and keep the card from starting.
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(system(format!("closing {} to others", path.display())))?;
    match lock_in_time(&file) {
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
    // The file is never empty meanwhile: if this process dies here, what was left of the card is still marked as left.
    let pid = std::process::id().to_string();
    let written =
        file.rewind().and_then(|()| file.write_all(pid.as_bytes())).and_then(|()| file.set_len(pid.len() as u64));
    written.map_err(system(format!("writing {}", path.display())))?;
    Ok((file, died))
}

/// Locks a file. Waits two seconds at most for a process that was just killed: it may still be closing its files.
#[allow(clippy::disallowed_methods, reason = "there is no card yet, and none of its locks is held")]
fn lock_in_time(file: &File) -> Result<(), fs::TryLockError> {
    const DYING: Duration = Duration::from_secs(2);
    let until = Instant::now() + DYING;
    loop {
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

/// Makes the folder of locks, which every user may read, whatever the umask.
fn prepare_locks() -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(LOCKS) {
        Ok(()) => fs::set_permissions(LOCKS, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(LOCKS),
        Err(error) => Err(error),
    }
}

/// Makes `/run/netns` a mount point whose mounts are seen by namespaces copied from this one, as
/// `ip netns` does, so that either finds the other's names.
fn prepare_names() -> io::Result<()> {
    let (names, nothing) = (Path::new(NAMES), Path::new(""));
    fs::create_dir_all(names)?;
    let share = || sys::mount(nothing, names, "none", libc::MS_SHARED | libc::MS_REC);
    match share() {
        Err(error) if errno_of(&error) == Errno::INVAL => {
            sys::mount(names, names, "none", libc::MS_BIND | libc::MS_REC)?;
            share()
        }
        outcome => outcome,
    }
}

/// Whether anything is at a path.
fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The namespace bound to a path, if one is.
///
/// # Errors
/// This cannot be found out, or the namespace cannot be entered. It may be in use.
fn left_at(path: &Path) -> io::Result<Option<File>> {
    let found = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    // A file to which no namespace was bound yet cannot be entered.
    if !sys::is_namespace(&found)? {
        return Ok(None);
    }
    Socket::open(&found)?;
    Ok(Some(found))
}

/// Removes what a dead process has left at a path, with every netdev inside.
///
/// # Errors
/// It cannot be opened or emptied: then its name stays, as its netdevs would otherwise exist without a name.
fn clear_away(path: &Path) -> io::Result<()> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => {
            let found = opened?;
            if sys::is_namespace(&found)? {
                purge(&found)?;
            }
        }
    }
    // It may have been mounted more than once, or not at all.
    while sys::detach_mount(path).is_ok() {}
    fs::remove_file(path)
}

/// Makes a namespace, and binds it to a path that does not exist.
fn make_at(path: &Path) -> io::Result<File> {
    File::create_new(path)?;
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            sys::unshare_netns()?;
            let own = Path::new("/proc/thread-self/ns/net");
            sys::mount(own, path, "none", libc::MS_BIND)?;
            File::open(own)
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if made.is_err() {
        let _ = fs::remove_file(path);
    }
    made
}

/// Disables IPv6 for the card's own ends: otherwise they would send router solicitations out of
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
    // Netdevs that have been deleted meanwhile, and an empty group, are errors that do not matter.
    socket.run(batch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_namespace_was_not_left_by_a_card_and_an_error_is_not_taken_for_one() {
        let folder = std::env::temp_dir().join(format!("esw-netns-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("file");
        assert!(left_at(&file).unwrap().is_none(), "no file");
        fs::write(&file, "").unwrap();
        assert!(left_at(&file).unwrap().is_none(), "nothing is bound to it");
        assert!(left_at(&file.join("below")).is_err(), "an error");
        assert!(is_there(&file.join("below")).is_err());
        assert!(sys::is_namespace(&current().unwrap()).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_lack_of_room_is_distinguished_from_absence() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert!(is_lack_of_room(&errno.into()));
        }
        assert!(!is_lack_of_room(&Errno::NOENT.into()));
    }
}
