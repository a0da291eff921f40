//! System calls that `rustix` has not: the one file of this crate with `unsafe`. Each function is one
//! call, its arguments checked by their types, its failure an [`io::Error`].

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

/// A system call that waits for an answer.
pub(crate) type Notification = libc::seccomp_notif;

fn check(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn check_len(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Puts the calling thread, and what it will start, under a filter; the descriptor is where trapped calls
/// are heard of.
///
/// # Errors
/// `EBUSY`: there is a listener above already.
pub(crate) fn listen(filter: &[FilterOp]) -> io::Result<OwnedFd> {
    let new = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // With the second flag a call that has been heard of is not interrupted by signals that do not kill:
    // what has been done for it, a module's loading, is not done twice. It came with Linux 5.19.
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
    // SAFETY: the kernel has just made the descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// From now on a program gets no more power by `exec`; without it a process without `CAP_SYS_ADMIN` may
/// have no filter.
pub(crate) fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// Has the kernel run whoever is woken by a call or its answer at once, where the other just was: both are
/// awaited. It came with Linux 6.6; without it a call takes longer.
pub(crate) fn wake_at_once(listener: BorrowedFd<'_>) -> io::Result<()> {
    const SYNC_WAKE_UP: libc::c_ulong = 1;
    let request = libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS;
    // SAFETY: no pointers.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, SYNC_WAKE_UP) }).map(drop)
}

/// The next call that is trapped. `NotFound` if it is gone again.
pub(crate) fn next_notification(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // SAFETY: all-zero is a valid value, and the one the kernel asks for.
    let mut notification: Notification = unsafe { std::mem::zeroed() };
    let request = libc::SECCOMP_IOCTL_NOTIF_RECV;
    // SAFETY: the kernel writes one seccomp_notif there, whose layout has not changed since there is one.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw mut notification) })?;
    Ok(notification)
}

/// Answers a call: with a value, an error number, or by letting the kernel do it.
pub(crate) fn respond(listener: BorrowedFd<'_>, mut response: libc::seccomp_notif_resp) -> io::Result<()> {
    let request = libc::SECCOMP_IOCTL_NOTIF_SEND;
    // SAFETY: one seccomp_notif_resp, alive during the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw mut response) }).map(drop)
}

/// Whether a call still waits: its process is what it was when the call was heard of.
pub(crate) fn still_waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    let request = libc::SECCOMP_IOCTL_NOTIF_ID_VALID;
    // SAFETY: one number, alive during the call.
    unsafe { libc::ioctl(listener.as_raw_fd(), request as _, &raw const id) == 0 }
}

/// Answers a call with a new descriptor in its process, at a number of ours if `at` says so.
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

/// Reads another process's memory, as much as there is of what is asked for.
pub(crate) fn read_memory(pid: u32, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut _, iov_len: bytes.len() };
    // SAFETY: the local vector is one slice's, borrowed exclusively; the remote one is not our memory.
    check_len(unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const remote, 1, 0) })
}

/// Reads parts of another process's memory, one after the other, as much as there is. At most 1,024 parts (IOV_MAX).
pub(crate) fn read_parts(pid: u32, parts: &[(u64, usize)], bytes: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let part = |(at, len): &(u64, usize)| libc::iovec { iov_base: *at as usize as *mut _, iov_len: *len };
    let remote: Vec<libc::iovec> = parts.iter().map(part).collect();
    let count = remote.len() as libc::c_ulong;
    // SAFETY: the local vector is one slice's, borrowed exclusively; the remote ones are not our memory.
    check_len(unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, remote.as_ptr(), count, 0) })
}

/// Makes the calling thread, and no other, act as a user: its effective user. The real and the saved one stay, so that
/// it can come back.
pub(crate) fn become_user(user: u32) -> io::Result<()> {
    const KEEP: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: no pointers. Not the C library's function, which changes all threads.
    check(unsafe { libc::syscall(libc::SYS_setresuid, KEEP, user, KEEP) } as c_int).map(drop)
}

/// The user namespace that a namespace belongs to.
pub(crate) fn owner_of_namespace(namespace: impl AsFd) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: no pointers.
    owned(unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS as _) }.into())
}

/// Writes all of `bytes` to another process's memory.
pub(crate) fn write_memory(pid: u32, address: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut _, iov_len: bytes.len() };
    // SAFETY: the local vector is one slice's, only read; the remote one is not our memory.
    let n = check_len(unsafe { libc::process_vm_writev(pid as i32, &raw const local, 1, &raw const remote, 1, 0) })?;
    if n == bytes.len() { Ok(()) } else { Err(Errno::FAULT.into()) }
}

/// Sets an option of a socket, its value as bytes.
pub(crate) fn set_option(fd: impl AsFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: pointer and length are one slice's.
    check(unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), value.len() as u32) }).map(drop)
}

/// An option of a socket, as bytes; the length that the kernel gives.
pub(crate) fn option(fd: impl AsFd, level: c_int, option: c_int, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: pointer and length are one slice's, borrowed exclusively.
    check(unsafe { libc::getsockopt(fd, level, option, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok(len as usize)
}

/// Receives one message; also gives its flags (`MSG_TRUNC`).
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

/// Size of an `ifreq` as far as its name and a pointer or the flags go.
const IFREQ: usize = 40;

fn ifreq(name: &str) -> io::Result<[u8; IFREQ]> {
    let mut request = [0; IFREQ];
    match request.get_mut(..name.len()) {
        Some(place) if name.len() < libc::IFNAMSIZ => place.copy_from_slice(name.as_bytes()),
        _ => return Err(Errno::NODEV.into()),
    }
    Ok(request)
}

/// The flags of a netdev, `IFF_*`, in the namespace of a socket.
pub(crate) fn netdev_flags(fd: impl AsFd, name: &str) -> io::Result<u16> {
    let mut request = ifreq(name)?;
    // SAFETY: the kernel reads and writes one ifreq, which has 40 bytes.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::SIOCGIFFLAGS as _, request.as_mut_ptr()) })?;
    Ok(u16::from_ne_bytes([request[libc::IFNAMSIZ], request[libc::IFNAMSIZ + 1]]))
}

/// `struct ethtool_drvinfo`.
pub(crate) type DriverInfo = [u8; 196];

/// `ETHTOOL_GDRVINFO` of a netdev in the namespace of a socket.
pub(crate) fn driver_info(fd: impl AsFd, name: &str) -> io::Result<DriverInfo> {
    const SIOCETHTOOL: u32 = 0x8946;
    const GDRVINFO: u32 = 3;
    let mut info = [0; size_of::<DriverInfo>()];
    info[..4].copy_from_slice(&GDRVINFO.to_ne_bytes());
    let mut request = ifreq(name)?;
    let data = info.as_mut_ptr() as usize;
    request[libc::IFNAMSIZ..libc::IFNAMSIZ + size_of::<usize>()].copy_from_slice(&data.to_ne_bytes());
    // SAFETY: the kernel reads one ifreq, whose pointer is to as many bytes as an ethtool_drvinfo has; they
    // are borrowed exclusively until the call is done.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), SIOCETHTOOL as _, request.as_mut_ptr()) })?;
    Ok(info)
}

/// Gives the calling process, which has one thread, a user namespace of its own.
pub(crate) fn unshare_user() -> io::Result<()> {
    // SAFETY: no pointers, and descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER) }).map(drop)
}

/// Gives the calling thread a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: no pointers, and descriptors stay shared.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) }).map(drop)
}

/// Makes a copy of this process, which must have one thread: none could be waited for in the copy, or have left a lock
/// taken. `None`: this is the copy.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread the copy is as good as the original.
    let child = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(child))
}

/// Ends this process, without what a process does that began its life with `main`.
pub(crate) fn exit(status: c_int) -> ! {
    // SAFETY: nothing is used any more.
    unsafe { libc::_exit(status) }
}

/// Has this process ignore what asks processes to end.
pub(crate) fn ignore_requests_to_end() -> io::Result<()> {
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
        // SAFETY: no handler is installed.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Closes every descriptor that this process was started with, but the standard ones: all that are to be kept by
/// `exec`, as whatever we open ourselves is not.
pub(crate) fn close_what_was_inherited() -> io::Result<()> {
    const STANDARD: c_int = 2;
    let fds = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<c_int>().ok())
        .filter(|fd| *fd > STANDARD);
    // Listed first: the list itself is read from one.
    for fd in fds.collect::<Vec<_>>() {
        // SAFETY: no pointers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        if flags >= 0 && flags & libc::FD_CLOEXEC == 0 {
            // SAFETY: no type owns it, since those that do have opened theirs with that flag.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Starts nothing, changes nothing until the child does: has `prepare` run in the child of a command,
/// after `fork` and before `exec`.
///
/// `prepare` allocates, which the C library's `fork` allows, and takes no lock that another thread of the
/// parent may hold: see where it is made.
pub(crate) fn before_exec(
    command: &mut std::process::Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt;
    // SAFETY: as said above; nothing it does outlives the child but what is meant to.
    unsafe { command.pre_exec(prepare) };
}
