//! What a lab has to know about a process whose call is trapped. All of it is read from `/proc`, by the number of the
//! thread that waits, so it is right as long as the call waits.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use lockdep::Mutex;
use netlink::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitOptions, chroot, fchdir, kill_process, pidfd_getfd,
    pidfd_open, set_dumpable_behavior, waitpid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space};

use crate::lock_order::{self, Cx};
use crate::mounts::{self, Mounted};
use crate::{passing, sys};

/// Bits of a capability set.
pub(crate) const NET_ADMIN: u64 = 1 << 12;
pub(crate) const SYS_MODULE: u64 = 1 << 16;
pub(crate) const SYS_ADMIN: u64 = 1 << 21;

/// The user namespace in which a lab was started. Where the kernel requires a capability in the initial user namespace
/// (administrative commands of devlink and RDMA, modules), a lab requires it in this one.
///
/// It is known by its number; `None` if it cannot be inspected, and then nothing is in it.
#[derive(Debug)]
pub(crate) struct UserNamespace(Option<u64>);

impl UserNamespace {
    /// The namespace of the calling thread.
    pub fn ours() -> Self {
        Self(user_namespace("thread-self"))
    }

    /// Whether it is the initial one of the system, as far as a process in it can tell: it maps every user to itself.
    pub fn is_initial(&self) -> bool {
        fs::read_to_string("/proc/thread-self/uid_map")
            .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
    }

    /// Whether a namespace belongs to it.
    pub fn owns(&self, namespace: impl AsFd) -> bool {
        let owner = sys::owner_of_namespace(namespace).and_then(|owner| Ok(rustix::fs::fstat(owner)?.st_ino));
        owner.is_ok_and(|owner| self.0 == Some(owner))
    }

    /// Whether a thread is in it. `false` if the thread cannot be inspected.
    pub fn contains(&self, thread: u32) -> bool {
        self.0.is_some() && user_namespace(&thread.to_string()) == self.0
    }
}

/// The number of a thread's user namespace. `thread`: a number, or `thread-self`. `None` if it cannot be inspected.
fn user_namespace(thread: &str) -> Option<u64> {
    Some(rustix::fs::stat(format!("/proc/{thread}/ns/user")).ok()?.st_ino)
}

/// The process that makes a call, and its rights at the moment of the call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    /// The process number, in the lab's pid namespace.
    pub process: u32,
    /// The process number, in the process's own pid namespace.
    pub own: u32,
    /// The effective user, in the lab's user namespace.
    pub user: u32,
    /// Its effective capabilities in the lab's user namespace: none if the process is in another one. A process has
    /// capabilities only in its own user namespace and in those below (user_namespaces(7)), and no process of a lab is
    /// in one above.
    pub capabilities: u64,
    /// Its effective capabilities in its own user namespace.
    pub own_capabilities: u64,
    /// The number of its own user namespace; 0 if it cannot be inspected.
    pub user_namespace: u64,
}

impl Caller {
    /// The process that a thread belongs to.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn of(thread: u32, user_namespace: &UserNamespace) -> io::Result<Self> {
        let status = Status::of(thread)?;
        let process = status.process()?;
        // One number for each pid namespace; the innermost is the last.
        let own = status.field("NStgid").split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(process);
        // The real, effective, saved and file system user.
        let user = status.field("Uid").split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(u32::MAX);
        let capabilities = u64::from_str_radix(status.field("CapEff"), 16).unwrap_or(0);
        let own_namespace = self::user_namespace(&thread.to_string());
        let is_ours = own_namespace.is_some() && own_namespace == user_namespace.0;
        Ok(Self {
            process,
            own,
            user,
            capabilities: if is_ours { capabilities } else { 0 },
            own_capabilities: capabilities,
            user_namespace: own_namespace.unwrap_or(0),
        })
    }

    /// The process that sent a message by a call that was not trapped, from the credentials that the kernel attached.
    ///
    /// The message was sent a while ago, and the process may run another program by now. So it has capabilities only if
    /// it was root then and still is: a user who starts a program with more rights gains nothing by that.
    pub fn of_message(process: u32, user: u32, user_namespace: &UserNamespace) -> Self {
        match Self::of(process, user_namespace) {
            Ok(caller) if user == 0 && caller.user == 0 => caller,
            _ => Self { process, own: process, user, capabilities: 0, own_capabilities: 0, user_namespace: 0 },
        }
    }

    /// Its capabilities in a network namespace that belongs to `owner`, a user namespace below the lab's or, if `None`, the
    /// lab's.
    pub fn network_capabilities(&self, owner: Option<u64>) -> u64 {
        if owner == Some(self.user_namespace) { self.own_capabilities } else { self.capabilities }
    }
}

/// The content of `/proc/THREAD/status`.
struct Status(String);

impl Status {
    /// Reads it, with one call if it is no longer than usual: this is done for each request of a program.
    fn of(thread: u32) -> io::Result<Self> {
        let mut file = File::open(format!("/proc/{thread}/status"))?;
        let mut bytes = vec![0; 4096];
        let mut len = 0;
        loop {
            match file.read(&mut bytes[len..])? {
                // The kernel gives as much as there is room for, and ends a part of it at the end of a line.
                0 => break,
                read => len += read,
            }
            if len < bytes.len() / 2 {
                break;
            }
            bytes.resize(2 * bytes.len(), 0);
        }
        // A process may give itself any name.
        Ok(Self(String::from_utf8_lossy(&bytes[..len]).into_owned()))
    }

    fn field(&self, name: &str) -> &str {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
    }

    fn process(&self) -> io::Result<u32> {
        self.field("Tgid").parse().map_err(|_| io::ErrorKind::NotFound.into())
    }
}

/// The process that a thread belongs to.
///
/// # Errors
/// The thread is gone.
pub(crate) fn process_of(thread: u32) -> io::Result<u32> {
    Status::of(thread)?.process()
}

/// The process that has started a process, or that has taken the place of that.
///
/// # Errors
/// The process is gone.
pub(crate) fn parent_of(process: u32) -> io::Result<u32> {
    Status::of(process)?.field("PPid").parse().map_err(|_| io::ErrorKind::NotFound.into())
}

/// Runs `act` with no more rights than a caller has, so that the kernel refuses what it would refuse the caller.
/// `capabilities`: those that count, at most the calling thread's own. `user`: becomes the thread's effective user
/// meanwhile. The user who made a user namespace has every capability in it, and root makes many; so nobody else may be
/// taken for root.
///
/// # Errors
/// The thread cannot take these rights; `act` has not run.
pub(crate) fn with_rights<T>(capabilities: u64, user: u32, act: impl FnOnce() -> T) -> io::Result<T> {
    let sets = rustix::thread::capabilities(None)?;
    let mine = rustix::process::geteuid().as_raw();
    let effective = sets.effective & CapabilitySet::from_bits_retain(capabilities);
    let user = (user != mine).then_some(user);
    if effective == sets.effective && user.is_none() {
        return Ok(act());
    }
    if let Some(user) = user {
        sys::become_user(user)?;
    }
    // A change of user clears the effective set, so it is set in any case.
    let restricted = rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets });
    let outcome = restricted.map(|()| act());
    let back = if user.is_some() { sys::become_user(mine) } else { Ok(()) };
    back.and(Ok(rustix::thread::set_capabilities(None, sets)?))?;
    Ok(outcome?)
}

/// The inode of the socket behind a descriptor of a thread. `None`: it is no socket.
pub(crate) fn socket_inode(thread: u32, fd: u32) -> Option<u64> {
    let link = rustix::fs::readlink(format!("/proc/{thread}/fd/{fd}"), [0; 64]).ok()?;
    link.to_str().ok()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether a thread has a descriptor of this number.
pub(crate) fn has_fd(thread: u32, fd: u32) -> bool {
    fs::symlink_metadata(format!("/proc/{thread}/fd/{fd}")).is_ok()
}

/// The identity of a thread's network namespace. `thread`: a number, or `thread-self`.
pub(crate) fn network(thread: &str) -> Option<Vec<u8>> {
    Some(rustix::fs::readlink(format!("/proc/{thread}/ns/net"), [0; 64]).ok()?.into_bytes())
}

/// Opens a thread's network namespace.
///
/// # Errors
/// The thread is gone.
pub(crate) fn open_network(thread: u32) -> io::Result<File> {
    File::open(PathBuf::from(format!("/proc/{thread}/ns/net")))
}

/// Whether a network namespace belongs to the user namespace of the calling thread. The kernel requires capabilities in
/// the user namespace to which the network namespace belongs.
///
/// # Errors
/// The kernel's: EPERM if it belongs to a user namespace above the thread's.
pub(crate) fn is_owned_by_us(network: &File) -> io::Result<bool> {
    let owner = rustix::fs::fstat(sys::owner_of_namespace(network)?)?;
    let ours = rustix::fs::stat("/proc/thread-self/ns/user")?;
    Ok((owner.st_dev, owner.st_ino) == (ours.st_dev, ours.st_ino))
}

/// The user, as the lab knows it, who is root in a thread's user namespace: the overflow user if nobody is.
pub(crate) fn root_of(thread: u32) -> u32 {
    const OVERFLOW: u32 = 65_534;
    let map = fs::read_to_string(format!("/proc/{thread}/uid_map")).unwrap_or_default();
    let mut lines = map.lines().map(|line| line.split_whitespace().filter_map(|number| number.parse().ok()));
    lines.find_map(|mut line| (line.next()? == 0).then(|| line.next()).flatten()).unwrap_or(OVERFLOW)
}

/// Whether a thread has a capability in the user namespace to which a namespace belongs (`ns_capable`): it has it in its own
/// one, and that is the owner, or above the owner. `capability`: its bit.
pub(crate) fn is_capable(thread: u32, capability: u64, namespace: impl AsFd) -> bool {
    let effective = || u64::from_str_radix(Status::of(thread).ok()?.field("CapEff"), 16).ok();
    effective().is_some_and(|set| set & capability != 0) && is_below(thread, namespace)
}

/// Whether a namespace belongs to the user namespace of a thread, or to one below that.
pub(crate) fn is_below(thread: u32, namespace: impl AsFd) -> bool {
    let Some(own) = user_namespace(&thread.to_string()) else { return false };
    let mut above = sys::owner_of_namespace(namespace);
    // User namespaces nest at most 32 deep.
    for _ in 0..33 {
        let Ok(owner) = above else { return false };
        if rustix::fs::fstat(&owner).is_ok_and(|found| found.st_ino == own) {
            return true;
        }
        above = sys::parent_of_namespace(&owner);
    }
    false
}

/// Opens a socket in a user namespace below this process's, and in a network namespace, so that it has the rights of a
/// process there. A thread cannot enter a user namespace, so another process does it. `capabilities`: those that it has.
///
/// # Errors
/// The kernel's, or those of `open`.
pub(crate) fn open_in_user_namespace(
    users: &File,
    network: &File,
    capabilities: u64,
    open: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let work = || -> io::Result<OwnedFd> {
        // It has this process's memory, into which no process of that user namespace may look.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
        move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User))?;
        let all = CapabilitySet::from_bits_retain(capabilities);
        let sets = rustix::thread::capabilities(None)?;
        let effective = sets.effective & all;
        rustix::thread::set_capabilities(None, CapabilitySets { effective, permitted: effective, ..sets })?;
        open()
    };
    let child = sys::fork_among_threads(move || match work() {
        Ok(socket) => passing::send(&theirs, b"socket", &[socket.as_fd()]).is_ok(),
        Err(error) => passing::send(&theirs, &netlink::errno_of(&error).raw_os_error().to_ne_bytes(), &[]).is_ok(),
    })?;
    let mut word = [0; 8];
    // A user of that namespace may stop the process there.
    let limit = Timespec { tv_sec: 2, tv_nsec: 0 };
    let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&limit)));
    let received = match ready {
        Ok(1..) => passing::receive(&ours, &mut word),
        _ => Err(Errno::AGAIN),
    };
    let _ = kill_process(child, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child), WaitOptions::empty()));
    match received? {
        (_, mut fds) if fds.len() == 1 => Ok(fds.remove(0)),
        (4, _) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes([word[0], word[1], word[2], word[3]]))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Where a thread is: its root and its directory, and the namespaces of its mounts and of its network.
#[derive(Debug)]
pub(crate) struct Place {
    /// The thread.
    pub thread: u32,
    caller: Caller,
    /// Its directory in `/proc`.
    proc: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
    /// The mount namespace.
    pub mounts: File,
    /// The network namespace.
    pub network: File,
}

impl Place {
    /// Where a thread is now.
    ///
    /// # Errors
    /// The thread is gone, or may not be inspected.
    pub fn of(thread: u32, user_namespace: &UserNamespace) -> io::Result<Self> {
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let proc = openat(CWD, format!("/proc/{thread}"), path, Mode::empty())?;
        let at = |name: &str| openat(&proc, name, path, Mode::empty());
        let (root, directory) = (at("root")?, at("cwd")?);
        let mounts = File::open(format!("/proc/{thread}/ns/mnt"))?;
        let caller = Caller::of(thread, user_namespace)?;
        Ok(Self { thread, caller, proc, root, directory, mounts, network: open_network(thread)? })
    }

    /// The mounts that the thread sees.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn mounts(&self) -> io::Result<Vec<Mounted>> {
        mounts::of(&self.thread.to_string())
    }

    /// Opens a path as the thread would, without access to what is there (O_PATH). The calling thread must not share its root
    /// and its directory with others, and has the thread's afterwards.
    ///
    /// # Errors
    /// The kernel's. A path that leads through another file of `/proc` than a descriptor (`/proc/self/fd/7`) is not followed
    /// (ELOOP): where it leads depends on the process that asks.
    pub fn open(&self, path: &str, follows: bool) -> io::Result<OwnedFd> {
        self.open_in(CWD, path, follows)
    }

    /// The same; a relative path begins at `dir`. `follows`: a symbolic link at the path's end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_in(&self, dir: impl AsFd, path: &str, follows: bool) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        for own in ["/proc/self/fd/", "/proc/thread-self/fd/"] {
            if let Some(number) = path.strip_prefix(own)
                && number.bytes().all(|byte| byte.is_ascii_digit())
            {
                return Ok(openat(&self.proc, format!("fd/{number}"), flags, Mode::empty())?);
            }
        }
        fchdir(&self.root)?;
        chroot(".")?;
        fchdir(&self.directory)?;
        // Who may search which directory is the kernel's to say. The thread's groups are not known here, so none counts.
        let Caller { capabilities, user, .. } = self.caller;
        if user != rustix::process::geteuid().as_raw() {
            sys::leave_groups()?;
        }
        let flags = if follows { flags } else { flags | OFlags::NOFOLLOW };
        let open = || openat2(dir, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        Ok(with_rights(capabilities, user, open)??)
    }
}

/// Opens a process, to wait for its end.
///
/// # Errors
/// The thread is gone.
pub(crate) fn open(process: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Copies a descriptor of a thread into this process (`pidfd_getfd`).
///
/// # Errors
/// The thread has no such descriptor, or is gone.
pub(crate) fn take_fd(thread: u32, fd: u32) -> io::Result<OwnedFd> {
    let process = open(process_of(thread)?)?;
    let fd = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    Ok(pidfd_getfd(process, fd, PidfdGetfdFlags::empty())?)
}

/// Which programs the Go compiler made. Go's libraries look at the family of the address that a message came from.
///
/// That family cannot be right without trapping every receipt, so it is right only for these programs.
pub(crate) struct GoPrograms {
    /// By device, inode and time of modification of the executable.
    known: Mutex<lock_order::GoPrograms, HashMap<(u64, u64, i64), bool>>,
}

impl Default for GoPrograms {
    fn default() -> Self {
        Self { known: Mutex::new(HashMap::new()) }
    }
}

impl GoPrograms {
    /// Whether the program that a thread runs is one of them.
    pub fn contains(&self, cx: Cx<'_, '_>, thread: u32) -> bool {
        let path = format!("/proc/{thread}/exe");
        let Ok(meta) = fs::metadata(&path) else { return false };
        let key = (meta.dev(), meta.ino(), meta.mtime());
        if let Some(known) = self.known.lock_leaf(cx).get(&key) {
            return *known;
        }
        // Without the lock: reading the executable may take long, and other programs make sockets meanwhile.
        let is_go = File::open(&path).is_ok_and(|file| is_go(&file).unwrap_or(false));
        self.known.lock_leaf(cx).insert(key, is_go);
        is_go
    }
}

/// Whether a 64-bit ELF file has a section that only the Go linker makes. `None`: it is no such file.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_with_a_name_that_is_no_text_is_a_caller_as_any_other() {
        let named = |name: &'static std::ffi::CStr| {
            std::thread::spawn(move || {
                rustix::thread::set_name(name).unwrap();
                let own = rustix::thread::gettid().as_raw_pid().cast_unsigned();
                (Caller::of(own, &UserNamespace::ours()).unwrap(), process_of(own).unwrap())
            })
            .join()
            .unwrap()
        };
        for name in [c"usual", c"\xff\xfe\n:\\"] {
            let (caller, process) = named(name);
            assert_eq!((caller.process, process), (std::process::id(), std::process::id()));
            assert_eq!(caller.user, rustix::process::geteuid().as_raw());
            assert_eq!(caller.capabilities, caller.own_capabilities, "it is in the lab's user namespace");
            assert_ne!(caller.user_namespace, 0);
        }
    }
}
