//! System calls that have no safe wrapper here: modules, two of `ioctl`, and an option of a socket.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType};

/// `ETHTOOL_GGSO` and `ETHTOOL_SGSO`: whether packets are segmented late.
pub const GET_SEGMENTATION: u32 = 0x23;
pub const SET_SEGMENTATION: u32 = 0x24;

fn errno(result: i64) -> i32 {
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

/// `init_module(2)`: its error number, 0 for success.
pub fn init_module(image: &[u8]) -> i32 {
    // SAFETY: the kernel reads `image.len()` bytes of it, and a text that ends with a zero.
    errno(unsafe { libc::syscall(libc::SYS_init_module, image.as_ptr(), image.len(), c"".as_ptr()) })
}

/// `finit_module(2)`: its error number, 0 for success.
pub fn finit_module(file: &impl AsFd) -> i32 {
    // SAFETY: the descriptor is open, and the text ends with a zero.
    errno(unsafe { libc::syscall(libc::SYS_finit_module, file.as_fd().as_raw_fd(), c"".as_ptr(), 0) })
}

/// `delete_module(2)`: its error number, 0 for success.
pub fn delete_module(name: &str) -> i32 {
    let name = CString::new(name).expect("a name of this test");
    // SAFETY: the text ends with a zero.
    errno(unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) })
}

/// Joins a multicast group of netlink: the error number, 0 for success.
pub fn join(socket: &impl AsFd, group: u32) -> i32 {
    let (descriptor, value) = (socket.as_fd().as_raw_fd(), std::ptr::from_ref(&group).cast());
    // SAFETY: the kernel reads four bytes of a number that outlives the call.
    errno(i64::from(unsafe { libc::setsockopt(descriptor, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, value, 4) }))
}

/// `struct ifreq` as these calls use it.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: Value,
}

#[repr(C)]
union Value {
    pointer: *mut u32,
    number: i32,
    room: [u64; 3],
}

fn request(netdev: &str) -> Request {
    let mut name = [0; libc::IFNAMSIZ];
    name[..netdev.len()].copy_from_slice(netdev.as_bytes());
    Request { name, value: Value { room: [0; 3] } }
}

fn ioctl(call: libc::Ioctl, request: &mut Request) -> i32 {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
    // SAFETY: `request` has the layout and the length of `struct ifreq`, and what it points to outlives the call.
    errno(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), call, std::ptr::from_mut(request)) }))
}

/// `SIOCETHTOOL` with a command that takes or gives one number: the error number, or 0 and the number.
pub fn ethtool(netdev: &str, command: u32, value: u32) -> (i32, u32) {
    let mut data = [command, value];
    let mut request = request(netdev);
    request.value.pointer = data.as_mut_ptr();
    let errno = ioctl(libc::SIOCETHTOOL as libc::Ioctl, &mut request);
    (errno, data[1])
}

/// `SIOCSIFMTU`: its error number, 0 for success.
pub fn set_mtu(netdev: &str, mtu: i32) -> i32 {
    let mut request = request(netdev);
    request.value.number = mtu;
    ioctl(libc::SIOCSIFMTU as libc::Ioctl, &mut request)
}

/// A descriptor that this process was started with.
pub fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: who started this process says that it is open, and nobody else here uses it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
