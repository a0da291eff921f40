//! When a send returns, its answer can be read: by whichever call the request is sent, and however the process got the
//! descriptor.
//!
//! `ANSWERS=N` raises the number of requests (10,000 for the long run); all of them are made beside threads that keep
//! every processor busy.

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ::netlink::Errno;
use common::{Place, part};
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::*;

/// One message.
fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let len = (16 + body.len()) as u32;
    let head = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &seq.to_ne_bytes(), &[0; 4]];
    [&head.concat()[..], body].concat()
}

/// The calls that send.
const WAYS: [&str; 7] = ["send", "sendto", "sendmsg", "sendmsg to", "sendmmsg", "write", "writev"];

fn send_by(way: &str, socket: BorrowedFd<'_>, bytes: &[u8]) {
    let kernel = SocketAddrNetlink::new(0, 0);
    // In two parts: the header, and the rest.
    let (head, body) = bytes.split_at(16);
    let parts = [IoSlice::new(head), IoSlice::new(body)];
    let mut nothing = SendAncillaryBuffer::new(&mut []);
    let sent = match way {
        "send" => send(socket, bytes, SendFlags::empty()),
        "sendto" => sendto(socket, bytes, SendFlags::empty(), &kernel),
        "sendmsg" => sendmsg(socket, &parts, &mut nothing, SendFlags::empty()),
        "sendmsg to" => sendmsg_addr(socket, &kernel, &parts, &mut nothing, SendFlags::empty()),
        "sendmmsg" => {
            let mut messages = [MMsgHdr::new(&parts, &mut nothing)];
            let count = sendmmsg(socket, &mut messages, SendFlags::empty());
            assert_eq!(count, Ok(1));
            Ok(bytes.len())
        }
        "write" => rustix::io::write(socket, bytes),
        "writev" => rustix::io::writev(socket, &parts),
        _ => panic!("{way}"),
    };
    assert_eq!(sent, Ok(bytes.len()), "{way}");
}

/// Sends a request and receives at once. Returns whether the answer could be read.
fn is_answered(way: &str, socket: BorrowedFd<'_>, request: &[u8]) -> bool {
    send_by(way, socket, request);
    let mut buffer = vec![0; 32 << 10];
    match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
        Ok((_, len)) => {
            assert!(len >= 16, "{way}: {len} bytes");
            // The rest of the answer.
            while recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
            true
        }
        Err(Errno::AGAIN) => {
            let mut late = [rustix::event::PollFd::from_borrowed_fd(socket, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut late, None).unwrap();
            while recv(socket, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
            false
        }
        Err(error) => panic!("{way}: {error}"),
    }
}

const GETLINK: u16 = 18;
/// The number that `nlctrl` has given devlink.
fn devlink_number(socket: &OwnedFd) -> u16 {
    let mut name = b"\x0c\x00\x02\x00devlink\x00".to_vec();
    name.splice(0..0, [3, 1, 0, 0]);
    send(socket, &message(16, 1, 1, &name), SendFlags::empty()).unwrap();
    let mut buffer = vec![0; 32 << 10];
    let (_, len) = recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
    let mut at = 20;
    while at + 8 <= len {
        let short = |at: usize| u16::from_ne_bytes([buffer[at], buffer[at + 1]]);
        if short(at + 2) == 1 {
            return short(at + 4);
        }
        at += usize::from(short(at)).next_multiple_of(4);
    }
    panic!("there is no family devlink");
}

/// A socket and a request that has an answer.
struct Query {
    socket: OwnedFd,
    request: Vec<u8>,
}

fn open(protocol: Option<Protocol>, flags: SocketFlags) -> OwnedFd {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC | flags, protocol).unwrap()
}

/// Requests for the kernel's links, all of them and one, and for a card's devices, all of them and one.
fn requests(flags: SocketFlags) -> Vec<Query> {
    let generic = open(Some(GENERIC), flags);
    let blocking = open(Some(GENERIC), SocketFlags::empty());
    let number = devlink_number(&blocking);
    let one =
        [&[1u8, 1, 0, 0][..], b"\x08\x00\x01\x00pci\x00", b"\x11\x00\x02\x000000:08:00.0\x00\x00\x00\x00"].concat();
    let mut lo = vec![0; 16];
    lo[4] = 1;
    vec![
        Query { socket: open(None, flags), request: message(GETLINK, 0x301, 5, &[0; 16]) },
        Query { socket: open(None, flags), request: message(GETLINK, 1, 6, &lo) },
        Query { socket: generic, request: message(number, 0x301, 7, &[1, 1, 0, 0]) },
        Query { socket: blocking, request: message(number, 1, 8, &one) },
    ]
}

/// Sends in each way, `times` times. Returns the ways in which an answer could not be read at once.
fn misses(what: &str, socket: BorrowedFd<'_>, request: &[u8], times: usize) -> Vec<String> {
    let each = |way: &&str| {
        let missed = (0..times).filter(|_| !is_answered(way, socket, request)).count();
        (missed > 0).then(|| format!("{what}, {way}: {missed} of {times}"))
    };
    WAYS.iter().filter_map(each).collect()
}

fn times() -> usize {
    let requests = std::env::var("ANSWERS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    // Two kinds of sockets, four requests, seven ways to send, and several descriptors.
    usize::div_ceil(requests, 2 * 4 * WAYS.len() * 6)
}

/// Keeps every processor busy.
fn beside_load<T>(work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let outcome = work();
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// Passes a descriptor through a socket to itself: the number it gets is the lowest that is free.
fn passed_on(fd: BorrowedFd<'_>) -> OwnedFd {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&one, &[IoSlice::new(b"!")], &mut ancillary, SendFlags::empty()).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&other, &mut [IoSliceMut::new(&mut [0; 1])], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let passed = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    passed.unwrap()
}

/// Runs a program that inherits a socket as its standard input.
fn inherited(asked: &Query, times: usize) -> Vec<String> {
    let mut child = std::process::Command::new("/proc/self/exe")
        .args(["--exact", "an_answer_can_be_read_when_its_send_returns", "--nocapture"])
        .env("LAB_PART", "inherited")
        .env("REQUEST", asked.request.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .env("TIMES", times.to_string())
        .stdin(asked.socket.try_clone().unwrap())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut printed = String::new();
    std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut printed).unwrap();
    assert!(child.wait().unwrap().success(), "{printed}");
    printed.lines().filter(|line| line.starts_with("inherited, ")).map(str::to_owned).collect()
}

fn as_inherited() {
    let hex = std::env::var("REQUEST").unwrap();
    let request: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let times = std::env::var("TIMES").unwrap().parse().unwrap();
    for miss in misses("inherited", std::io::stdin().as_fd(), &request, times) {
        eprintln!("{miss}");
    }
}

#[test]
fn an_answer_can_be_read_when_its_send_returns() {
    const NAME: &str = "an_answer_can_be_read_when_its_send_returns";
    if part("inherited") {
        return as_inherited();
    }
    if !part(NAME) {
        let Some(place) = Place::new() else { return };
        return place.part(&[], NAME);
    }
    let times = times();
    let missed = beside_load(|| {
        let mut missed = Vec::new();
        for flags in [SocketFlags::empty(), SocketFlags::NONBLOCK] {
            for asked in requests(flags) {
                let Query { socket, request } = &asked;
                missed.extend(misses("as it was made", socket.as_fd(), request, times));
                for number in [50, 500, 1000] {
                    let copy = rustix::io::fcntl_dupfd_cloexec(socket, number).unwrap();
                    missed.extend(misses(&format!("as {number} or so"), copy.as_fd(), request, times));
                }
                let passed = passed_on(socket.as_fd());
                assert_ne!(passed.as_raw_fd(), socket.as_raw_fd());
                missed.extend(misses("passed on", passed.as_fd(), request, times));
                missed.extend(inherited(&asked, times));
            }
        }
        missed
    });
    assert!(missed.is_empty(), "could not be read when the send returned:\n{}", missed.join("\n"));
}

#[test]
fn a_packet_that_the_kernel_would_refuse_is_refused() {
    const NAME: &str = "a_packet_that_the_kernel_would_refuse_is_refused";
    if !part(NAME) {
        let Some(place) = Place::new() else { return };
        return place.part(&[], NAME);
    }
    let ours = open(None, SocketFlags::empty());
    // A protocol in which a lab shows nothing is the kernel's own.
    let xfrm = Some(Protocol::from_raw(6.try_into().unwrap()));
    let theirs = open(xfrm, SocketFlags::empty());
    let links = message(GETLINK, 0x301, 5, &[0; 16]);
    let outcome = |socket: &OwnedFd| {
        let long = vec![0; 300_000];
        let mut nothing = SendAncillaryBuffer::new(&mut []);
        let inet = std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1);
        vec![
            sendmsg(socket, &[IoSlice::new(&long)], &mut nothing, SendFlags::empty()),
            sendmsg(socket, &[], &mut nothing, SendFlags::empty()),
            send(socket, &links, SendFlags::OOB),
            sendmsg_addr(socket, &inet, &[IoSlice::new(&links)], &mut nothing, SendFlags::empty()),
            sendto(socket, &links, SendFlags::empty(), &SocketAddrNetlink::new(0x7fff_fff1, 0)),
        ]
    };
    assert_eq!(outcome(&ours), outcome(&theirs));
}
