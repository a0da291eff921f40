//! System calls that `rustix` does not have. The only file of this crate with `unsafe`.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The supplementary groups of the peer of a Unix socket when it connected: `SO_PEERGROUPS`, since Linux 4.13.
///
/// # Errors
/// Those of `getsockopt`.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = size_of_val(&groups[..]) as libc::socklen_t;
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERGROUPS);
        // SAFETY: the buffer has the length given, is borrowed exclusively during the call, and any bytes are groups.
        let answer =
            unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, groups.as_mut_ptr().cast(), &raw mut length) };
        let error = io::Error::last_os_error();
        let count = length as usize / size_of::<libc::gid_t>();
        match answer {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            // The peer has more groups. The kernel has written their number.
            _ if netlink::errno_of(&error) == netlink::Errno::RANGE && count > groups.len() => groups.resize(count, 0),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_groups_of_the_peer_are_reported() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> = rustix::process::getgroups().unwrap().into_iter().map(|group| group.as_raw()).collect();
        let mut reported = peer_groups(one.as_fd()).unwrap();
        own.sort_unstable();
        reported.sort_unstable();
        assert_eq!(reported, own);
    }
}
