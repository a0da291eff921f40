//! Sends frames out of netdevs and receives those that arrive at them.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// An ethertype that nothing else uses.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const OUTGOING: u8 = 4;

/// A packet socket on one netdev. It receives frames from when it is made.
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Opens it on a netdev, in the namespace of a name or in this one.
    pub fn on(netns: Option<&str>, netdev: &str) -> Self {
        let path = netns.map_or("/proc/self/ns/net".to_owned(), |name| format!("/run/netns/{name}"));
        let netns = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let open = || {
            // SAFETY: setns changes this short-lived thread alone; the socket is new; the address is one
            // and lives during the call.
            unsafe {
                assert_eq!(libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET), 0);
                let protocol = (libc::ETH_P_ALL as u16).to_be();
                let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into());
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                let fd = OwnedFd::from_raw_fd(fd);
                let name = std::ffi::CString::new(netdev).unwrap();
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_protocol = protocol;
                address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
                assert_ne!(address.sll_ifindex, 0, "no netdev {netdev}");
                let len = size_of_val(&address) as u32;
                assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len), 0);
                fd
            }
        };
        let fd = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
        Self { fd }
    }

    /// Sends a frame; returns whether the netdev took it.
    pub fn send(&self, to: [u8; 6], from: [u8; 6], text: &str) -> bool {
        let mut frame = [&to[..], &from, &ETHERTYPE, text.as_bytes()].concat();
        frame.resize(frame.len().max(60), 0);
        self.send_raw(&frame)
    }

    /// Sends a frame as it is.
    pub fn send_raw(&self, frame: &[u8]) -> bool {
        // SAFETY: pointer and length are one slice's.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        sent == frame.len() as isize
    }

    /// The texts of the frames of this ethertype that have arrived since the last call. Waits for `at_least` of them,
    /// for ten seconds at most.
    pub fn received(&self, at_least: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut texts = Vec::new();
        let mut buffer = [0; 70_000];
        loop {
            // SAFETY: all-zero is a valid sockaddr_ll; pointers and lengths are those of the buffer and
            // the address, borrowed exclusively.
            let (len, kind) = unsafe {
                let mut from: libc::sockaddr_ll = std::mem::zeroed();
                let mut from_len = size_of_val(&from) as u32;
                let len = libc::recvfrom(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                    (&raw mut from).cast(),
                    &raw mut from_len,
                );
                (len, from.sll_pkttype)
            };
            if len < 0 {
                if texts.len() >= at_least || Instant::now() > deadline {
                    return texts;
                }
                std::thread::sleep(Duration::from_millis(2));
            } else if kind != OUTGOING && buffer[12..14] == ETHERTYPE {
                let text = String::from_utf8_lossy(&buffer[14..len as usize]);
                texts.push(text.trim_end_matches('\0').to_owned());
            }
        }
    }
}
