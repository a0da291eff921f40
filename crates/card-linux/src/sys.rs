//! System calls: the only file of this crate with `unsafe`. Each function is one call, whose arguments are
//! checked by their types and whose failure is an [`io::Error`].

#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use netlink::{Errno, errno_of};

/// One instruction of a classic BPF socket filter.
pub(crate) type FilterOp = libc::sock_filter;

fn check(answer: c_int) -> io::Result<c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn check_len(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Opens a netlink socket in the calling thread's network namespace. `protocol`: `NETLINK_*`; `groups`: the multicast
/// groups that it joins, a mask of `RTMGRP_*`.
pub(crate) fn netlink_socket(protocol: c_int, groups: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) })?;
    // SAFETY: the descriptor is new, so nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero is a valid sockaddr_nl.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as u16;
    address.nl_groups = groups as u32;
    let len = size_of_val(&address) as u32;
    // SAFETY: the address is a sockaddr_nl of the length given, alive during the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(fd)
}

/// Sets an integer option of a socket.
pub(crate) fn set_option(fd: &OwnedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let len = size_of_val(&value) as u32;
    // SAFETY: the value is an int of the length given, alive during the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) }).map(drop)
}

/// Has a netdev leave checksums to others or not (ETHTOOL_STXCSUM), in the network namespace of a socket. A netdev that
/// does not leave them to others is given only packets with complete ones, and none that are still to be segmented
/// (`validate_xmit_skb`).
pub(crate) fn set_tx_checksums(fd: &OwnedFd, name: &str, on: bool) -> io::Result<()> {
    const STXCSUM: u32 = 0x17;
    // `struct ethtool_value`.
    ethtool(fd, name, &mut [STXCSUM, on.into()])
}

/// Sets how many queues a netdev uses in each direction (ETHTOOL_SCHANNELS), in the network namespace of a socket.
pub(crate) fn set_queues(fd: &OwnedFd, name: &str, count: u32) -> io::Result<()> {
    const SCHANNELS: u32 = 0x3d;
    // `struct ethtool_channels`: four limits, and then what is received, sent, other and combined.
    ethtool(fd, name, &mut [SCHANNELS, 0, 0, 0, 0, count, count, 0, 0])
}

/// Makes a request of ethtool about a netdev, in the network namespace of a socket. `words`: the whole structure of the
/// request, which begins with its number.
fn ethtool(fd: &OwnedFd, name: &str, words: &mut [u32]) -> io::Result<()> {
    const SIOCETHTOOL: u32 = 0x8946;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::NODEV.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the request has a name that ends with a zero and points to the structure of the request, which consists of
    // numbers of 32 bits; both are alive during the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) }).map(drop)
}

/// The number of a socket's network namespace that no other has as long as the kernel runs: SO_NETNS_COOKIE, since Linux
/// 5.14.
pub(crate) fn netns_cookie(fd: &OwnedFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: c_int = 71;
    let mut cookie = 0_u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    let value = (&raw mut cookie).cast();
    // SAFETY: the value has the length given, is borrowed exclusively during the call, and any bytes are a number.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut len) })?;
    Ok(cookie)
}

/// Lets only those messages reach a socket for which `program` returns other than 0.
pub(crate) fn set_filter(fd: &OwnedFd, program: &[FilterOp]) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let len = size_of_val(&filter) as u32;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
    // SAFETY: the kernel copies the program, of the length given, during the call and does not write to it.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const filter).cast(), len) }).map(drop)
}

/// One instruction of eBPF: `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Instruction {
    /// BPF_*.
    pub code: u8,
    /// The destination, and the source: four bits each, in the order of the machine's bytes.
    pub registers: u8,
    /// How far to jump, or where to load.
    pub offset: i16,
    /// The immediate value.
    pub value: u32,
}

/// Loads an eBPF program that classifies frames. Takes CAP_BPF and CAP_NET_ADMIN in the initial user namespace.
pub(crate) fn load_classifier(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    /// The first members of `union bpf_attr` for this command. The kernel takes those that are not given for zero.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    let load = Load {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
    };
    /// How often libbpf tries (`sys_bpf_prog_load`): the verifier gives up with EAGAIN when a signal is pending.
    const ATTEMPTS: usize = 5;
    let attempt = || {
        // SAFETY: the attribute has the length given, and points to as many instructions as it says and to a string that
        // ends in zero; all are alive during the call, and the kernel writes to none.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of_val(&load)) };
        check(fd as c_int)
    };
    let interrupted = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR));
    let once = |_| Some(attempt()).filter(|result| !result.as_ref().is_err_and(interrupted));
    let fd = (1..ATTEMPTS).find_map(once).unwrap_or_else(attempt)?;
    // SAFETY: the descriptor is new, so nobody else owns it; the kernel has set close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends one datagram.
pub(crate) fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are one slice's.
    check_len(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) })
}

/// Waits for one datagram and receives it.
pub(crate) fn receive(fd: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are one slice's, borrowed exclusively.
    check_len(unsafe { libc::recv(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) })
}

/// Receives one datagram of a netlink socket without waiting; fails with `WouldBlock` if none has arrived. Returns its
/// length, and for a socket with `NETLINK_LISTEN_ALL_NSID` the id of the network namespace from which it comes, unless
/// that is the socket's own.
pub(crate) fn receive_event(fd: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    // Aligned as a control message must be, and long enough for one with an int.
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    // SAFETY: the header refers to one part and to the control buffer, both borrowed exclusively during the call.
    let len = check_len(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) })?;
    let mut netns = None;
    // SAFETY: the header is the one that the kernel has filled in; its control buffer is alive.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside the control buffer.
        let message = unsafe { &*next };
        let is_id = (message.cmsg_level, message.cmsg_type) == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID);
        if is_id {
            // SAFETY: a control message of this type has an int, which may be unaligned.
            netns = Some(unsafe { libc::CMSG_DATA(next).cast::<c_int>().read_unaligned() });
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok((len, netns))
}

/// Waits until something can be read from one of these, or its other end is closed; returns for each whether that is
/// so. `limit`: the longest wait in milliseconds, after which it is so for none.
pub(crate) fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N], limit: Option<u16>) -> io::Result<[bool; N]> {
    let limit = limit.map_or(-1, c_int::from);
    let mut polled = fds.map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: pointer and length are one array's, borrowed exclusively.
    check(unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, limit) })?;
    Ok(polled.map(|p| p.revents != 0))
}

/// Moves the calling thread to a network namespace.
pub(crate) fn enter_netns(netns: &File) -> io::Result<()> {
    // SAFETY: no pointers; what it changes is this thread's alone.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Gives the calling thread a network namespace of its own.
pub(crate) fn unshare_netns() -> io::Result<()> {
    // SAFETY: no pointers; what it changes is this thread's alone.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Gives the calling process, which has one thread, a user, a network and a mount namespace of its own.
pub(crate) fn unshare_all() -> io::Result<()> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWNS;
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Moves the calling process, which has one thread, to the user, network and mount namespaces of another.
pub(crate) fn enter_all(process: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWNS;
    // SAFETY: no pointers; what it changes is this process's alone.
    check(unsafe { libc::setns(process.as_raw_fd(), flags) }).map(drop)
}

/// The real user and group of the process.
pub(crate) fn user_and_group() -> (u32, u32) {
    // SAFETY: neither can fail.
    unsafe { (libc::getuid(), libc::getgid()) }
}

/// Whether this process's user namespace, or one inside it, owns a namespace.
pub(crate) fn owns(namespace: &File) -> io::Result<bool> {
    const NS_GET_USERNS: c_ulong = 0xb701;
    // SAFETY: no pointers; the answer is a new descriptor or -1.
    match check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) }) {
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(fd) => drop(unsafe { OwnedFd::from_raw_fd(fd) }),
        // The owner is neither this user namespace nor inside it, as ioctl_ns(2) has it.
        Err(error) if errno_of(&error) == Errno::PERM => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Whether an open file is a namespace, rather than the file to which one was to be bound.
pub(crate) fn is_namespace(file: &File) -> io::Result<bool> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    // SAFETY: all-zero is a valid statfs.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one statfs there, which is alive during the call.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) })?;
    Ok(found.f_type as i64 == NSFS_MAGIC)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// `mount(2)`.
pub(crate) fn mount(source: &Path, target: &Path, kind: &str, flags: c_ulong) -> io::Result<()> {
    let (source, target, kind) = (c_path(source)?, c_path(target)?, c_path(Path::new(kind))?);
    // SAFETY: three strings that end in zero and live during the call; no data.
    let answer = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) };
    check(answer).map(drop)
}

/// Detaches a mount: it disappears at once, and is unmounted when its last user has closed it.
pub(crate) fn detach_mount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: a string that ends in zero and lives during the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}
