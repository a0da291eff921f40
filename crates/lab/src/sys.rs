//! System calls that `rustix` does not have: the only file of this crate with `unsafe`. Each function is one call; its
//! arguments are checked by their types, and a failure is an [`io::Error`].

#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use netlink::{Errno, errno_of};
use rustix::process::Pid;

/// One instruction of a classic BPF filter.
pub(crate) type FilterOp = libc::sock_filter;

/// The instruction that lets every call through.
pub(crate) const ALLOW: FilterOp =
    FilterOp { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };

/// A trapped system call that waits for its answer.
pub(crate) type Notification = libc::seccomp_notif;

fn check(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn check_len(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Installs a seccomp filter for the calling thread and all processes that it will start. Returns the descriptor on
/// which trapped calls are received.
///
/// # Errors
/// `EBUSY`: a filter above already has a listener.
pub(crate) fn listen(filter: &[FilterOp]) -> io::Result<OwnedFd> {
    let new = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // With the second flag, which Linux 5.19 introduced, a call that has been received is interrupted only by signals
    // that kill. So what has been done for it, loading a module for example, is not done twice.
    match listen_with(filter, new | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
        Err(error) if errno_of(&error) == Errno::INVAL => listen_with(filter, new),
        outcome => outcome,
    }
}

fn listen_with(filter: &[FilterOp], flags: libc::c_ulong) -> io::Result<OwnedFd> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the kernel copies the program, of the length given, during the call and does not write to it.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) };
    owned(answer)
}

fn owned(answer: c_long) -> io::Result<OwnedFd> {
    let fd = check(answer as c_int)?;
    // SAFETY: the kernel has just made the descriptor for this process, so no other type owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets `no_new_privs`: from now on `exec` gives no more privileges. A process without `CAP_SYS_ADMIN` may install a
/// filter only with it.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Has the kernel run the thread that a call or its answer wakes at once, on the processor of the thread that then
/// waits. Linux 6.6 introduced it (`SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`); without it a call takes longer.
pub(crate) fn wake_at_once(listener: BorrowedFd<'_>) -> io::Result<()> {
    const SYNC_WAKE_UP: libc::c_ulong = 1;
    let request = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, SYNC_WAKE_UP) }).map(drop)
}

/// Receives the next trapped call. `NotFound` if it is gone again.
pub(crate) fn next_notification(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: all-zero is a valid value, and the kernel requires it.
    let mut notification: Notification = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes one seccomp_notif there, whose layout has not changed since it was introduced.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw mut notification) })?;
    Ok(notification)
}

/// Answers a call: with a value, with an error number, or by letting the kernel carry it out.
pub(crate) fn respond(listener: BorrowedFd<'_>, mut response: libc::seccomp_notif_resp) -> io::Result<()> {
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: one seccomp_notif_resp, alive during the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw mut response) }).map(drop)
}

/// Whether a call still waits. If so, its process is the one that made the call.
pub(crate) fn still_waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
    // SAFETY: one number, alive during the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw const id) == 0 }
}

/// Answers a call with a new descriptor in its process. `at`: the descriptor's number; `None`: the lowest that is free.
pub(crate) fn respond_fd(
    listener: BorrowedFd<'_>,
    id: u64,
    fd: BorrowedFd<'_>,
    at: Option<u32>,
    cloexec: bool,
) -> io::Result<()> {
    let set = if at.is_some() { libc::SECCOMP_ADDFD_FLAG_SETFD } else { 0 };
    // SAFETY: all-zero is a valid value.
    let mut add: libc::seccomp_notif_addfd = unsafe { std::mem::zeroed() };
    add.id = id;
    add.flags = (libc::SECCOMP_ADDFD_FLAG_SEND | set) as u32;
    add.srcfd = fd.as_raw_fd() as u32;
    add.newfd = at.unwrap_or(0);
    add.newfd_flags = if cloexec { libc::O_CLOEXEC as u32 } else { 0 };
    let request = libc::SECCOMP_IOCTL_NOTIF_ADDFD;
    // SAFETY: one seccomp_notif_addfd, alive during the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw const add) }).map(drop)
}

/// Reads another process's memory, up to the first byte that cannot be read. Returns how many bytes were read.
pub(crate) fn read_memory(pid: u32, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut _, iov_len: bytes.len() };
    // SAFETY: the local vector is one slice's, borrowed exclusively; the remote one is not this process's memory.
    check_len(unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) })
}

/// Reads parts of another process's memory, one after the other, up to the first byte that cannot be read. At most
/// 1,024 parts (IOV_MAX).
pub(crate) fn read_parts(pid: u32, parts: &[(u64, usize)], bytes: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let part = |(at, len): &(u64, usize)| libc::iovec { iov_base: *at as usize as *mut _, iov_len: *len };
    let remote: Vec<libc::iovec> = parts.iter().map(part).collect();
    let count = remote.len() as libc::c_ulong;
    // SAFETY: the local vector is one slice's, borrowed exclusively; the remote ones are not this process's memory.
    check_len(unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, remote.as_ptr(), count, 0) })
}

/// Sets the effective user of the calling thread, and of no other thread. The real and the saved user stay, so that the
/// thread can change back.
pub(crate) fn become_user(user: u32) -> io::Result<()> {
    const KEEP: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: no pointers. Not the C library's function, which changes all threads.
    check(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, user, KEEP) } as c_int).map(drop)
}

/// Takes the groups of the calling thread, and of no other thread, away: it has none that gives it any right.
pub(crate) fn leave_groups() -> io::Result<()> {
    const NOBODY: libc::gid_t = 65_534;
    const KEEP: libc::gid_t = libc::gid_t::MAX;
    // SAFETY: the list has no elements, so no pointer is followed. Not the C library's functions, which change all threads.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) } as c_int)?;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, KEEP, NOBODY, KEEP) } as c_int).map(drop)
}

/// Opens the user namespace to which a namespace belongs.
pub(crate) fn owner_of_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: no pointers.
    owned(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS as _) }.into())
}

/// Opens the user namespace above a user namespace.
pub(crate) fn parent_of_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    const NS_GET_PARENT: libc::c_ulong = 0xb702;
    // SAFETY: no pointers.
    owned(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_PARENT as _) }.into())
}

/// Writes all of `bytes` to another process's memory.
pub(crate) fn write_memory(pid: u32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut _, iov_len: bytes.len() };
    // SAFETY: the local vector is one slice's, only read; the remote one is not this process's memory.
    let n = check_len(unsafe { libc::process_vm_writev(pid as i32, &raw const local, 1, &raw const remote, 1, 0) })?;
    if n == bytes.len() { Ok(()) } else { Err(Errno::FAULT.into()) }
}

/// Sets an option of a socket, its value as bytes.
pub(crate) fn set_option(fd: impl AsFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: pointer and length are one slice's.
    check(unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), value.len() as u32) }).map(drop)
}

/// Reads an option of a socket into `value`. Returns its length.
pub(crate) fn option(fd: impl AsFd, level: c_int, option: c_int, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: pointer and length are one slice's, borrowed exclusively.
    check(unsafe { libc::getsockopt(fd, level, option, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(len as usize)
}

/// Receives one message. Returns its length and its flags (`MSG_TRUNC`).
pub(crate) fn receive(fd: impl AsFd, bytes: &mut [u8], flags: c_int) -> io::Result<(usize, c_int)> {
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    // SAFETY: the header names one vector, of one slice that is borrowed exclusively.
    let n = check_len(unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, flags) })?;
    Ok((n, header.msg_flags))
}

/// The size of `struct ifreq`; its name is followed by a pointer or the flags.
const IFREQ: usize = 40;

fn ifreq(name: &str) -> io::Result<[u8; IFREQ]> {
    let mut request = [0; IFREQ];
    match request.get_mut(..name.len()) {
        Some(place) if name.len() < libc::IFNAMSIZ => place.copy_from_slice(name.as_bytes()),
        _ => return Err(Errno::NODEV.into()),
    }
    Ok(request)
}

/// The flags (`IFF_*`) of a netdev in the network namespace of a socket.
pub(crate) fn netdev_flags(fd: impl AsFd, name: &str) -> io::Result<u16> {
    let mut request = ifreq(name)?;
    // SAFETY: the kernel reads and writes one ifreq, which has 40 bytes.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::SIOCGIFFLAGS as _, request.as_mut_ptr()) })?;
    Ok(u16::from_ne_bytes([request[libc::IFNAMSIZ], request[libc::IFNAMSIZ + 1]]))
}

/// Opens the network namespace of a socket. It takes CAP_NET_ADMIN in the user namespace that the network namespace
/// belongs to.
pub(crate) fn network_of(socket: impl AsFd) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: no pointers.
    owned(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS as _) }.into())
}

/// `struct ethtool_drvinfo`.
pub(crate) type DriverInfo = [u8; 196];

/// `struct ethtool_channels`.
pub(crate) type Channels = [u8; 36];

/// `ioctl(SIOCETHTOOL)` on a netdev in the network namespace of a socket. `data` is the structure of the command, which
/// begins with its number. Returns the value of the call.
///
/// # Errors
/// The kernel's. EINVAL: the command is none of those that are known to need no more room than `data` has.
pub(crate) fn ethtool(fd: impl AsFd, name: &str, data: &mut [u8]) -> io::Result<i64> {
    const SIOCETHTOOL: u32 = 0x8946;
    let needed = match netlink::u32_at(data, 0) {
        Some(ethtool::GDRVINFO) => size_of::<DriverInfo>(),
        Some(ethtool::GCHANNELS | ethtool::SCHANNELS) => size_of::<Channels>(),
        // The kernel writes at most as many blocks as the second number says.
        Some(ethtool::GFEATURES) => 8 + netlink::u32_at(data, 4).map_or(0, |blocks| blocks as usize * 16),
        Some(ethtool::SFEATURES) => 8 + netlink::u32_at(data, 4).map_or(0, |blocks| blocks as usize * 8),
        _ => return Err(Errno::INVAL.into()),
    };
    if data.len() < needed {
        return Err(Errno::INVAL.into());
    }
    let mut request = ifreq(name)?;
    let address = data.as_mut_ptr() as usize;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + size_of::<usize>()].copy_from_slice(&address.to_ne_bytes());
    // SAFETY: the kernel reads one ifreq, whose pointer leads to as many bytes as the command's structure has; they are
    // borrowed exclusively until the call has returned.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCETHTOOL as _, request.as_mut_ptr()) }).map(i64::from)
}

/// Commands of `ioctl(SIOCETHTOOL)` that [`ethtool`] can make.
pub(crate) mod ethtool {
    pub const GDRVINFO: u32 = 0x3;
    pub const GFEATURES: u32 = 0x3a;
    pub const SFEATURES: u32 = 0x3b;
    pub const GCHANNELS: u32 = 0x3c;
    pub const SCHANNELS: u32 = 0x3d;
}

/// Moves the calling process, which must have one thread, into a new user namespace.
pub(crate) fn unshare_user() -> io::Result<()> {
    // SAFETY: no pointers, and descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).map(drop)
}

/// Moves the calling thread into a new mount namespace.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: no pointers, and descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Moves the calling thread into a new network namespace.
pub(crate) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers, and descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Gives the calling thread a root and a directory of its own, which it shares with its process's other threads until then.
pub(crate) fn unshare_directories() -> io::Result<()> {
    // SAFETY: no pointers, and descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_FS) }).map(drop)
}

/// Forks this process, which must have one thread: in the child, another thread would not exist, and a lock that it
/// held would stay taken. `None`: this is the child.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread, the child may do all that the parent may.
    let child = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(child))
}

/// Runs `work` in a fork of this process, which may have other threads, and ends the fork. Only the calling thread goes on in
/// the fork: `work` must take no lock that another thread may hold. It may allocate, which the C library's `fork` allows.
pub(crate) fn fork_among_threads(work: impl FnOnce() -> bool) -> io::Result<Pid> {
    // SAFETY: the child runs nothing but `work`, which keeps to the above, and ends.
    let child = check(unsafe { libc::fork() })?;
    match Pid::from_raw(child) {
        Some(child) => Ok(child),
        None => exit(i32::from(!work())),
    }
}

/// Ends this process at once, without the destructors and handlers that `exit` runs.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: nothing is used afterwards.
    unsafe { libc::_exit(status) }
}

/// Has this process ignore the signals that request processes to end.
pub(crate) fn ignore_requests_to_end() -> io::Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: no handler is installed.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes every descriptor that this process inherited, except the standard ones: those without `FD_CLOEXEC`, which
/// every descriptor that this program opens has.
pub(crate) fn close_what_was_inherited() -> io::Result<()> {
    const STANDARD: c_int = 2;
    let fds = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<c_int>().ok())
        .filter(|fd| *fd > STANDARD);
    // Listed first: reading the list uses a descriptor as well.
    for fd in fds.collect::<Vec<_>>() {
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: no type owns it, since all descriptors that a type owns were opened with that flag.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Has `prepare` run in the child of a command, after `fork` and before `exec`.
///
/// `prepare` may allocate, which the C library's `fork` allows, and must take no lock that another thread of the parent
/// may hold.
pub(crate) fn before_exec(
    command: &mut std::process::Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt;
    // SAFETY: `prepare` keeps to the above, and changes only the child.
    unsafe { command.pre_exec(prepare) };
}
