//! What a lab has to know of a process whose call is trapped. Everything is read from `/proc`, by the
//! number of the thread that waits, so it holds for as long as the call does.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Bits of a capability set.
pub(crate) const NET_ADMIN: u64 = 1 << 12;
pub(crate) const SYS_MODULE: u64 = 1 << 16;

/// Who makes a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The process, as we see it.
    pub process: u32,
    /// The process, as it sees itself.
    pub own: u32,
    /// Its effective capabilities.
    pub capabilities: u64,
}

impl Caller {
    /// The one a thread belongs to.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(thread: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
        };
        let process = field("Tgid").parse().map_err(|_| io::ErrorKind::NotFound)?;
        // One number for each pid namespace, the innermost last.
        let own = field("NStgid").split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(process);
        let capabilities = u64::from_str_radix(field("CapEff"), 16).unwrap_or(0);
        Ok(Self { process, own, capabilities })
    }
}

/// The inode behind a descriptor of a thread, if it is a socket.
pub(crate) fn socket_inode(thread: u32, fd: u32) -> Option<u64> {
    let link = rustix::fs::readlink(format!("/proc/{thread}/fd/{fd}"), [0; 64]).ok()?;
    link.to_str().ok()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether a thread has a descriptor of this number.
pub(crate) fn has_fd(thread: u32, fd: u32) -> bool {
    fs::symlink_metadata(format!("/proc/{thread}/fd/{fd}")).is_ok()
}

/// What tells one network namespace from another.
pub(crate) fn network(thread: &str) -> Option<Vec<u8>> {
    Some(rustix::fs::readlink(format!("/proc/{thread}/ns/net"), [0; 64]).ok()?.into_bytes())
}

/// A thread's network namespace.
///
/// # Errors
/// It is gone.
pub(crate) fn open_network(thread: u32) -> io::Result<File> {
    File::open(PathBuf::from(format!("/proc/{thread}/ns/net")))
}

/// A process, to wait for its end.
///
/// # Errors
/// It is gone.
pub(crate) fn open(process: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// A descriptor of a thread, made ours as well.
///
/// # Errors
/// It has none of this number, or the thread is gone.
pub(crate) fn take_fd(thread: u32, fd: u32) -> io::Result<OwnedFd> {
    let process = open(Caller::of(thread)?.process)?;
    let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    Ok(pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}

/// Programs that look at the family of the address that a message came from.
///
/// It cannot be right without trapping every receipt, so it is right for those who look: programs made by
/// the Go compiler, whose libraries make a type of it. They are known by their build id.
#[derive(Default)]
pub(crate) struct Exacting {
    known: Mutex<HashMap<(u64, u64, i64), bool>>,
}

impl Exacting {
    /// Whether the program that a thread runs is one.
    pub fn is(&self, thread: u32) -> bool {
        let path = format!("/proc/{thread}/exe");
        let Ok(meta) = fs::metadata(&path) else { return false };
        let key = (meta.dev(), meta.ino(), meta.mtime());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(key).or_insert_with(|| File::open(&path).is_ok_and(|file| is_go(&file).unwrap_or(false)))
    }
}

/// Whether an ELF file of 64 bits has a section that only the Go linker makes. `None`: it is none.
fn is_go(file: &File) -> Option<bool> {
    const NAMES_AT_MOST: usize = 64 << 10;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    if header[..5] != [0x7f, b'E', b'L', b'F', 2] {
        return None;
    }
    let long = |bytes: &[u8], at: usize| Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let short = |at: usize| Some(u64::from(u16::from_ne_bytes(*header.get(at..)?.first_chunk()?)));
    let (sections, size, names) = (long(&header, 40)?, short(58)?, short(62)?);
    let mut section = [0; 64];
    file.read_exact_at(&mut section, sections.checked_add(size.checked_mul(names)?)?).ok()?;
    let (at, len) = (long(&section, 24)?, long(&section, 32)?);
    let mut names = vec![0; NAMES_AT_MOST.min(usize::try_from(len).ok()?)];
    file.read_exact_at(&mut names, at).ok()?;
    Some(names.split(|b| *b == 0).any(|name| name == b".note.go.buildid" || name == b".go.buildinfo"))
}
