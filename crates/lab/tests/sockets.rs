//! A program's sockets behave as netlink sockets, whatever the program does with them. Parts of these tests run as
//! programs in a lab.

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use common::{Place, part};
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::*;

/// One message.
fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let len = (16 + body.len()) as u32;
    let head = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &seq.to_ne_bytes(), &[0; 4]];
    [&head.concat()[..], body].concat()
}

fn netlink(protocol: Option<Protocol>) -> OwnedFd {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).unwrap();
    bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
    socket
}

const LINKS: (u16, u16) = (18, 0x301);

/// Requests every link, reads the whole answer, and returns the number of its messages.
fn links(socket: impl AsFd, seq: u32) -> usize {
    send(&socket, &message(LINKS.0, LINKS.1, seq, &[0; 16]), SendFlags::empty()).unwrap();
    let (mut count, mut buffer) = (0, vec![0; 8192]);
    loop {
        let (_, len) = recv(&socket, &mut buffer[..], RecvFlags::empty()).unwrap();
        let mut at = 0;
        while at < len {
            let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
            assert_eq!(word(at + 8), seq);
            if word(at + 4) & 0xffff == 3 {
                return count;
            }
            count += 1;
            at += word(at).next_multiple_of(4) as usize;
        }
    }
}

fn runs(name: &str) {
    let Some(place) = Place::new() else { return };
    place.part(&[], name);
}

#[test]
fn a_socket_reports_that_it_is_netlink() {
    if !part("a_socket_reports_that_it_is_netlink") {
        return runs("a_socket_reports_that_it_is_netlink");
    }
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    let address = |socket: &OwnedFd| SocketAddrNetlink::try_from(getsockname(socket).unwrap()).unwrap();
    assert_eq!(address(&socket).pid(), 0);
    bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
    assert_eq!(address(&socket).pid(), std::process::id());
    connect(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
    assert_eq!(sockopt::socket_domain(&socket).unwrap(), AddressFamily::NETLINK);
    assert_eq!(sockopt::socket_type(&socket).unwrap(), SocketType::DGRAM);
    assert_eq!(sockopt::socket_protocol(netlink(Some(GENERIC))).unwrap(), Some(GENERIC));
    // Connecting suffices to get a port.
    let connected = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    connect(&connected, &SocketAddrNetlink::new(0, 0)).unwrap();
    assert_ne!(address(&connected).pid(), 0);
    assert_ne!(address(&connected).pid(), std::process::id());
    // A port can be chosen, and no other socket can have it then.
    let chosen = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::empty(), None).unwrap();
    bind(&chosen, &SocketAddrNetlink::new(77, 0)).unwrap();
    assert_eq!(address(&chosen).pid(), 77);
    let taken = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::empty(), None).unwrap();
    assert_eq!(bind(&taken, &SocketAddrNetlink::new(77, 0)), Err(rustix::io::Errno::ADDRINUSE));
    // Sockets of other families are not changed.
    let other = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    assert_eq!(sockopt::socket_domain(&other).unwrap(), AddressFamily::INET);
    assert!(getsockname(&other).is_ok());
}

#[test]
fn the_length_of_a_message_can_be_peeked() {
    if !part("the_length_of_a_message_can_be_peeked") {
        return runs("the_length_of_a_message_can_be_peeked");
    }
    let socket = netlink(None);
    send(&socket, &message(LINKS.0, LINKS.1, 5, &[0; 16]), SendFlags::empty()).unwrap();
    let (_, len) = recv(&socket, &mut [0u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC).unwrap();
    assert!(len > 1000, "{len}");
    let mut buffer = vec![0; 65536];
    let (_, again) = recv(&socket, &mut buffer[..], RecvFlags::empty()).unwrap();
    assert_eq!(len, again);
}

#[test]
fn addresses_are_exact_if_requested() {
    const NAME: &str = "addresses_are_exact_if_requested";
    if !part(NAME) {
        let Some(place) = Place::new() else { return };
        return place.part(&["--exact"], NAME);
    }
    let socket = netlink(None);
    let mut buffer = vec![0; 65536];
    for flags in [RecvFlags::PEEK, RecvFlags::empty()] {
        if flags.is_empty() {
            // Something has arrived already.
        } else {
            send(&socket, &message(LINKS.0, LINKS.1, 5, &[0; 16]), SendFlags::empty()).unwrap();
        }
        let (_, _, from) = recvfrom(&socket, &mut buffer[..], flags).unwrap();
        assert_eq!(SocketAddrNetlink::try_from(from.unwrap()).unwrap().pid(), 0);
    }
    links(netlink(None), 6);
    let quiet = netlink(None);
    let none = recvfrom(&quiet, &mut buffer[..], RecvFlags::DONTWAIT);
    assert_eq!(none.unwrap_err(), rustix::io::Errno::AGAIN);
    let mut ancillary = RecvAncillaryBuffer::new(&mut []);
    send(&quiet, &message(LINKS.0, LINKS.1, 5, &[0; 16]), SendFlags::empty()).unwrap();
    let (mut one, mut two) = ([0; 10], vec![0; 65536]);
    let parts = &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
    let message = recvmsg(&quiet, parts, &mut ancillary, RecvFlags::empty()).unwrap();
    assert!(message.bytes > 100 && SocketAddrNetlink::try_from(message.address.unwrap()).is_ok());
}

#[test]
fn copies_children_and_threads_share_a_socket() {
    if !part("copies_children_and_threads_share_a_socket") {
        return runs("copies_children_and_threads_share_a_socket");
    }
    let socket = netlink(None);
    let port = |socket: &OwnedFd| SocketAddrNetlink::try_from(getsockname(socket).unwrap()).unwrap().pid();
    let copy = socket.try_clone().unwrap();
    assert_eq!(port(&copy), port(&socket));
    assert_eq!(links(&copy, 1), 3);
    let original = port(&socket);
    drop(socket);
    // Passed on over a Unix socket.
    let (here, there) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [copy.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&here, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
    drop(copy);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&there, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::empty()).unwrap();
    let passed = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let passed = passed.unwrap();
    assert_eq!((port(&passed), links(&passed, 2)), (original, 3));
    // Inherited by another program.
    let child = std::process::Command::new("sh").args(["-c", "exit 0"]).stdin(passed).status().unwrap();
    assert!(child.success());
    let all = |n| move || -> usize { (0..25).map(|_| links(netlink(None), n)).sum() };
    let threads: Vec<_> = (0..8).map(|n| std::thread::spawn(all(n))).collect();
    let counts: Vec<usize> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(counts, [75; 8]);
}

#[test]
fn garbage_is_answered_as_outside() {
    if !part("garbage_is_answered_as_outside") {
        return runs("garbage_is_answered_as_outside");
    }
    for protocol in [None, Some(GENERIC), Some(netlink::RDMA)] {
        let socket = netlink(protocol);
        let mut state = 1u32;
        for len in (0..400).chain([4000, 60000]) {
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    (state >> 24) as u8
                })
                .collect();
            send(&socket, &bytes, SendFlags::empty()).unwrap();
            // A correct header, and garbage after it.
            let kind = [16, 18, 19, 28, 30, 999, 0x3ef, 5 << 10 | 1, 5 << 10 | 5][len % 9];
            let cut = &bytes[..len.min(300)];
            send(&socket, &message(kind, [1, 5, 0x301][len % 3], 0, cut), SendFlags::empty()).unwrap();
            while recv(&socket, &mut [0; 8192][..], RecvFlags::DONTWAIT).is_ok() {}
        }
        // It still works.
        let socket = netlink(None);
        assert_eq!(links(&socket, 9), 3);
    }
}

#[test]
fn a_program_that_does_not_read_holds_up_no_other() {
    if !part("a_program_that_does_not_read_holds_up_no_other") {
        return runs("a_program_that_does_not_read_holds_up_no_other");
    }
    let silent = netlink(None);
    let ask = message(LINKS.0, 5, 1, &[0; 16]);
    // Far more than any buffer takes: finally a send is refused.
    let mut sent = 0;
    // A blocking send is refused too: it would wait for its own process.
    let refused = loop {
        match send(&silent, &ask, SendFlags::empty()) {
            Ok(_) if sent < 1_000_000 => sent += 1,
            outcome => break outcome,
        }
    };
    assert_eq!(refused, Err(rustix::io::Errno::NOBUFS));
    assert!(sent > 100, "{sent}");
    assert_eq!(links(netlink(None), 2), 3);
    // No answer is lost.
    let mut answers = 0;
    let mut buffer = vec![0; 8192];
    while answers < sent {
        let (_, len) = recv(&silent, &mut buffer[..], RecvFlags::empty()).unwrap();
        let mut at = 0;
        while at < len {
            answers += 1;
            let word = u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
            at += word.next_multiple_of(4) as usize;
        }
    }
    assert_eq!(answers, sent);
}

#[test]
fn thousands_of_sockets_are_opened_and_closed() {
    if !part("thousands_of_sockets_are_opened_and_closed") {
        return runs("thousands_of_sockets_are_opened_and_closed");
    }
    for n in 0..3000 {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::empty(), None).unwrap();
        if n % 100 == 0 {
            assert_eq!(links(&socket, n), 3);
        }
    }
    let many: Vec<_> = (0..300).map(|_| netlink(None)).collect();
    many.iter().for_each(|socket| assert_eq!(links(socket, 1), 3));
}

#[test]
fn a_long_answer_can_be_read_as_a_whole() {
    if !part("a_long_answer_can_be_read_as_a_whole") {
        return runs("a_long_answer_can_be_read_as_a_whole");
    }
    // With the default buffer the pair of sockets would hold less than this.
    let bridges: String = (0..300).map(|n| format!("link add b{n} type bridge\n")).collect();
    let batch = std::env::temp_dir().join(format!("lab-bridges-{}", std::process::id()));
    std::fs::write(&batch, bridges).unwrap();
    let made = std::process::Command::new("ip").arg("-batch").arg(&batch).status().unwrap();
    std::fs::remove_file(&batch).unwrap();
    assert!(made.success());
    let socket = netlink(None);
    send(&socket, &message(LINKS.0, LINKS.1, 5, &[0; 16]), SendFlags::empty()).unwrap();
    let (mut count, mut buffer, mut ended) = (0, vec![0; 65536], false);
    while !ended {
        let (_, len) = recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
        let mut at = 0;
        while at < len {
            let word = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().unwrap());
            count += 1;
            ended |= word(at + 4) & 0xffff == 3;
            at += word(at).next_multiple_of(4) as usize;
        }
    }
    // The last message is the end of the dump.
    assert_eq!(count, 303 + 1);
}

/// Tries what requires a capability: groups, options, and a query in a namespace that root has made for another user.
const TRIES: &str = r#"
import socket, struct
def tried(what, act):
    try:
        print(what, act())
    except OSError as error:
        print(what, error.errno)
def opened():
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def look(nsid):
    s = opened()
    s.settimeout(5)
    s.send(struct.pack("=IHHII", 40, 18, 0x301, 1, 0) + bytes(16) + struct.pack("=HHi", 8, 46, nsid))
    answer = s.recv(65536)
    kind = struct.unpack_from("=IHHII", answer)[1]
    return (kind, struct.unpack_from("=i", answer, 16)[0]) if kind in (2, 3) else "links"
for group in (1, 30, 31):
    tried(f"member of {group}", lambda: opened().setsockopt(270, 1, group))
    tried(f"bound to {group}", lambda: opened().bind((0, 1 << (group - 1))))
tried("every namespace", lambda: opened().setsockopt(270, 8, 1))
for nsid in range(4):
    tried(f"namespace {nsid}", lambda: look(nsid))
"#;

#[test]
fn administrative_options_are_refused_as_outside() {
    let Some(place) = Place::new() else { return };
    // A program that every user may start.
    const PYTHON: &str = "/usr/bin/python3";
    if !std::path::Path::new(PYTHON).exists() || !["setpriv", "unshare"].iter().all(|program| common::has(program)) {
        return common::skip("/usr/bin/python3, setpriv, unshare");
    }
    let ip = |words: &[&str]| std::process::Command::new("ip").args(words).status().unwrap().success();
    // It was made by root, so root has every capability in it.
    let mut inner = std::process::Command::new("ip")
        .args(["netns", "exec", &place.name, "unshare", "--user", "--net", "sh", "-c", "echo; exec sleep 60"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(inner.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let pid = inner.id().to_string();
    assert!(ip(&["-n", &place.name, "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", &pid]));
    let python = [PYTHON, "-c", TRIES];
    let user = [&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"][..], &python].concat();
    for (program, allowed) in [(&python[..], true), (&user[..], false)] {
        let outside = std::process::Command::new("ip").args(["netns", "exec", &place.name]).args(program).output();
        let outside = common::text(&outside.unwrap());
        assert_eq!(outside.contains("links"), allowed, "{outside}");
        assert_eq!(place.text(program), outside);
    }
    inner.kill().unwrap();
    inner.wait().unwrap();
}
