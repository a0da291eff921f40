//! A card of veth pairs in a network namespace of the test's own, with each VF in another one.

#![allow(unsafe_code, reason = "sockets of AF_PACKET, and namespaces")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use datapath_bpf::{Mode, Options, Pipeline, PortConfig, Role};
use flow::{Block, Port};

/// Moves the calling thread into new network and mount namespaces, which end with it.
pub fn leave_namespaces() -> io::Result<()> {
    // SAFETY: no pointers.
    let answer = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    run("mount --make-rprivate /");
    Ok(())
}

/// Runs a program, which must succeed.
pub fn run(words: &str) {
    let mut parts = words.split(' ');
    let status = Command::new(parts.next().expect("a program")).args(parts).status().expect("the program starts");
    assert!(status.success(), "{words}");
}

/// The network namespace of a VF. It ends with the value.
pub struct Namespace(Child);

impl Namespace {
    pub fn new() -> Namespace {
        let mut holder = Command::new("unshare");
        let holder = holder.args(["--net", "sleep", "600"]).stdout(Stdio::null()).spawn().expect("a namespace");
        let own = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let path = format!("/proc/{}/ns/net", holder.id());
        let until = Instant::now() + Duration::from_secs(10);
        // It is there when the program has left this one.
        while std::fs::read_link(&path).map_or(true, |other| other == own) {
            assert!(Instant::now() < until, "no namespace");
            std::thread::sleep(Duration::from_millis(2));
        }
        Namespace(holder)
    }

    /// The process that holds the namespace.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn ip(&self, words: &str) {
        run(&format!("nsenter -t {} -n ip {words}", self.0.id()));
    }

    /// What a thread in the namespace returns.
    pub fn with<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).expect("a namespace");
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                // SAFETY: no pointers; the descriptor is open.
                assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                act()
            });
            inside.join().expect("the thread ends")
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn ifindex(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).expect("a name");
    // SAFETY: the name ends with a zero and lives during the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "the netdev {name:?}");
    index
}

/// A socket that sends and receives whole frames at a netdev of the calling thread's namespace.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn at(name: &str) -> Wire {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new.
        let wire = Wire(unsafe { OwnedFd::from_raw_fd(fd) });
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = ifindex(name) as i32;
        let length = size_of_val(&address) as u32;
        // SAFETY: the address is a sockaddr_ll of the length given.
        assert_eq!(unsafe { libc::bind(wire.0.as_raw_fd(), (&raw const address).cast(), length) }, 0);
        // What was received before it was bound, and what is sent, does not count.
        wire.set(libc::SOL_PACKET, 23, 1);
        wire.set(libc::SOL_PACKET, 8, 1);
        wire
    }

    fn set(&self, level: i32, option: i32, value: i32) {
        let length = size_of_val(&value) as u32;
        // SAFETY: the value is an int of the length given.
        unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: the frame is as long as said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
    }

    /// The next frame that `wanted` takes, with the tag that the kernel has taken out, or none within the time.
    pub fn receive(&self, within: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd.
            if unsafe { libc::poll(&raw mut poll, 1, left.as_millis() as i32) } <= 0 {
                return None;
            }
            let frame = self.read();
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    fn read(&self) -> Vec<u8> {
        let (mut bytes, mut control) = (vec![0u8; 70_000], [0u64; 16]);
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control));
        // SAFETY: the message names memory that lives during the call.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        bytes.truncate(usize::try_from(length).expect("a frame"));
        // SAFETY: the kernel has written whole control messages.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        if !header.is_null() {
            // SAFETY: PACKET_AUXDATA is a tpacket_auxdata.
            let data = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let tag = [data.tp_vlan_tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes()].concat();
                bytes.splice(12..12, tag);
            }
        }
        bytes
    }
}

/// Vports 1 to n: `inner<n>` in the card's namespace, `vf<n>` in one of its own, with a MAC address 02::n; and
/// representors: `repi<n>` and `rep<n>` in the card's namespace.
pub struct Card {
    pub pipeline: Pipeline,
    pub vfs: Vec<Namespace>,
}

impl Card {
    /// A card, or nothing where there is no right to make one; then a line says so.
    pub fn new(vports: u32) -> Option<Card> {
        if let Err(error) = leave_namespaces() {
            assert!(std::env::var_os("CI").is_none(), "{error}");
            eprintln!("skipped: no network namespace: {error}");
            return None;
        }
        run("ip link set lo up");
        let pipeline = super::pipeline(Options { max_rules: 4096, ..Options::default() })?;
        let mut card = Card { pipeline, vfs: Vec::new() };
        (1..=vports).for_each(|number| card.add(number));
        Some(card)
    }

    fn add(&mut self, n: u32) {
        let namespace = Namespace::new();
        run(&format!("ip link add inner{n} type veth peer name vf{n} address 02:00:00:00:00:0{n}"));
        run(&format!("ip link set vf{n} netns {}", namespace.0.id()));
        run(&format!("ip link add repi{n} type veth peer name rep{n}"));
        for netdev in ["inner", "repi", "rep"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{netdev}{n}/disable_ipv6"), "1").expect("a setting");
            run(&format!("ip link set {netdev}{n} up"));
        }
        namespace.with(|| std::fs::write("/proc/thread-self/root/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")).ok();
        namespace.ip(&format!("link set vf{n} up"));
        namespace.ip(&format!("addr add 10.0.0.{n}/24 dev vf{n}"));
        self.set_port(n, |_| ());
        self.pipeline.attach(ifindex(&format!("inner{n}")), Role::Port(Port(n))).expect("attached");
        self.pipeline.attach(ifindex(&format!("repi{n}")), Role::Representor(Port(n))).expect("attached");
        self.vfs.push(namespace);
    }

    pub fn set_port(&mut self, n: u32, change: impl FnOnce(&mut PortConfig)) {
        self.set_port_as(Port(n), n, change);
    }

    /// Sets a port whose netdevs are those of VF n.
    pub fn set_port_as(&mut self, port: Port, n: u32, change: impl FnOnce(&mut PortConfig)) {
        let mut config = PortConfig {
            mode: Mode::Switchdev,
            eswitch: 0,
            block: Block::Port(port),
            ifindex: ifindex(&format!("inner{n}")),
            representor: Some(ifindex(&format!("repi{n}"))),
            through_inner: false,
            is_wire: false,
            link_up: true,
            lane: None,
            wires: Vec::new(),
        };
        change(&mut config);
        self.pipeline.set_port(port, &config).expect("a port");
    }

    pub fn vf(&self, n: usize) -> &Namespace {
        &self.vfs[n - 1]
    }

    /// A socket at the netdev of a VF.
    pub fn wire(&self, n: usize) -> Wire {
        self.vf(n).with(|| Wire::at(&format!("vf{n}")))
    }
}
