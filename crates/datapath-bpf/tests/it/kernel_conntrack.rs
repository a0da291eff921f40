//! The reference tracks connections as the kernel does.
//!
//! The same frames go through `flow::process` and through a router: a network namespace with nf_conntrack, between two veth
//! pairs. Rules of nftables write into each frame in which state it was; /proc/net/nf_conntrack has the connections. Both must be
//! the same: new, established, related, reply, invalid; the phase of TCP, whether a reply was seen, whether the connection is
//! assured, and how long it lives.
//!
//! What the reference leaves out is left out here: windows (the kernel is told to be liberal), the shorter time-outs for data
//! that is not acknowledged and for retransmissions, SCTP and GRE. Both ends number their segments correctly.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::net::{Wire, leave_namespaces, run};
use flow::generate::Random;
use flow::{
    Action, Capabilities, Connection, Ct, Match, Port, PortKind, Rule, State, Step, Tables, make_checksums_right,
    process,
};

const LEFT: Port = Port(1);
const RIGHT: Port = Port(2);

/// States, and the type of service by which the router shows each of them.
const SHOWN: [(&str, u8, &str); 7] = [
    ("+trk+inv", 0x20, "ct state invalid"),
    ("+trk+new", 0x40, "ct state new"),
    ("+trk+est", 0x60, "ct state established ct direction original"),
    ("+trk+est+rpl", 0x80, "ct state established ct direction reply"),
    ("+trk+rel", 0xa0, "ct state related ct direction original"),
    ("+trk+rel+rpl", 0xc0, "ct state related ct direction reply"),
    ("untracked", 0xe0, "ct state untracked"),
];

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|cases| cases.parse().ok()).unwrap_or(otherwise)
}

fn succeeds(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success())
}

/// The router, and the outer ends of its two sides.
struct Router {
    left: Wire,
    right: Wire,
}

impl Router {
    /// A router, or why there is none here.
    fn new() -> Result<Router, String> {
        leave_namespaces().map_err(|error| format!("no network namespace: {error}"))?;
        let table = "add table ip t; add chain ip t c { type filter hook forward priority 0 ; }";
        if !succeeds(&["nft", table]) {
            return Err("no nftables".into());
        }
        for (_, tos, state) in SHOWN {
            let rule = format!("add rule ip t c {state} ip dscp set {} accept", tos >> 2);
            if !succeeds(&["nft", &rule]) {
                return Err(format!("nftables has not: {rule}"));
            }
        }
        if std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").is_err() {
            return Err("no nf_conntrack with /proc/net/nf_conntrack".into());
        }
        for (side, net) in [("left", 1), ("right", 2)] {
            run(&format!("ip link add {side} type veth peer name {side}out"));
            for netdev in [side.to_owned(), format!("{side}out")] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{netdev}/disable_ipv6"), "1")
                    .map_err(|e| e.to_string())?;
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{netdev}/rp_filter"), "0")
                    .map_err(|e| e.to_string())?;
                run(&format!("ip link set {netdev} up"));
            }
            run(&format!("ip link set {side} address 02:00:00:00:00:0{net}"));
            run(&format!("ip addr add 10.0.{net}.1/24 dev {side}"));
            run(&format!("ip neigh add 10.0.{net}.2 lladdr 02:00:00:00:01:0{net} dev {side}"));
        }
        let settings = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
            // With the same time-out as an established connection they do not matter.
            ("net/netfilter/nf_conntrack_tcp_timeout_max_retrans", "432000"),
        ];
        for (name, value) in settings {
            std::fs::write(format!("/proc/sys/{name}"), value).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(Router { left: Wire::at("leftout"), right: Wire::at("rightout") })
    }

    /// Sends a frame, and returns in which state the router has seen it.
    fn send(&self, from: Port, frame: &[u8]) -> &'static str {
        let (from, to) = if from == LEFT { (&self.left, &self.right) } else { (&self.right, &self.left) };
        from.send(frame);
        let Some(seen) = to.receive(Duration::from_secs(2), |frame| frame[12..14] == [8, 0]) else { return "lost" };
        SHOWN.iter().find(|(_, tos, _)| seen[15] & 0xfc == *tos).map_or("not tracked", |(words, ..)| *words)
    }

    /// The connections: by protocol, addresses and ports, what is known of each, and in how many seconds it is over.
    fn connections() -> BTreeMap<String, (String, i64)> {
        let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("the connections");
        table.lines().map(Router::connection).collect()
    }

    fn connection(line: &str) -> (String, (String, i64)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |flag: &str| words.contains(&flag);
        let field = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)).unwrap_or("");
        let state = words.get(5).filter(|_| words[2] == "tcp").copied().unwrap_or("");
        let (src, dst) = (field("src="), field("dst="));
        let ports = [field("sport="), field("dport="), field("id=")].concat();
        let known = format!("{state} reply {} assured {}", !has("[UNREPLIED]"), has("[ASSURED]"));
        (format!("{} {src} {dst} {ports}", words[3]), (known, words[4].parse().unwrap_or(-1)))
    }
}

/// The same of the reference.
fn of_reference(state: &State, now: Duration) -> BTreeMap<String, (String, i64)> {
    let live = state.connections().iter().filter(|connection| connection.expires > now);
    live.map(|one| {
        let tuple = one.original;
        let ports = match tuple.protocol {
            1 => tuple.src_part.to_string(),
            6 | 17 => format!("{}{}", tuple.src_part, tuple.dst_part),
            _ => String::new(),
        };
        let name = format!("{} {} {} {ports}", tuple.protocol, tuple.src, tuple.dst);
        let known = format!("{} reply {} assured {}", phase(one), one.seen_reply, one.assured);
        (name, (known, (one.expires - now).as_secs() as i64))
    })
    .collect()
}

/// The phase of TCP in the kernel's words (`tcp_conntrack_names`).
fn phase(connection: &Connection) -> &'static str {
    use flow::TcpPhase as P;
    match connection.tcp.map(|tcp| tcp.phase) {
        None => "",
        Some(P::None) => "NONE",
        Some(P::SynSent) => "SYN_SENT",
        Some(P::SynRecv) => "SYN_RECV",
        Some(P::Established) => "ESTABLISHED",
        Some(P::FinWait) => "FIN_WAIT",
        Some(P::CloseWait) => "CLOSE_WAIT",
        Some(P::LastAck) => "LAST_ACK",
        Some(P::TimeWait) => "TIME_WAIT",
        Some(P::Close) => "CLOSE",
        Some(P::SynSent2) => "SYN_SENT2",
    }
}

/// Both, and the clock.
struct Both {
    router: Router,
    tables: Tables,
    state: State,
    begin: Instant,
    seen: BTreeMap<String, u32>,
}

impl Both {
    /// Both, or nothing where the kernel has no router for us: then a line says so.
    fn new() -> Option<Both> {
        let router = match Router::new() {
            Ok(router) => router,
            Err(why) => {
                eprintln!("skipped: {why}");
                return None;
            }
        };
        let mut tables = Tables::new(Capabilities::everything());
        [LEFT, RIGHT].iter().for_each(|port| tables.add_port(*port, PortKind::Vport));
        for (from, to) in [(LEFT, RIGHT), (RIGHT, LEFT)] {
            let ct = Ct { commit: true, ..Ct::default() };
            tables.add(Rule::new(from, Match::new(), [Action::Ct(ct), Action::Redirect(to)])).expect("a rule");
        }
        Some(Both { router, tables, state: State::new(1), begin: Instant::now(), seen: BTreeMap::new() })
    }

    fn now(&self) -> Duration {
        self.begin.elapsed() + Duration::from_secs(1)
    }

    fn is_established(&self, port: u16) -> bool {
        let own =
            self.state.connections().iter().find(|one| [one.original.src_part, one.original.dst_part].contains(&port));
        own.is_some_and(|own| phase(own) == "ESTABLISHED")
    }

    /// Sends a frame through both, and compares.
    fn send(&mut self, from: Port, frame: &[u8], what: &str) -> String {
        let mut frame = frame.to_vec();
        make_checksums_right(&mut frame);
        let own = self.router.send(from, &frame);
        let now = self.now();
        let verdict = process(&self.tables, &mut self.state, now, from, &frame);
        let tracked = verdict.trace.0.iter().find_map(|step| match step {
            Step::Did(what) => what.strip_prefix("tracks in zone 0: ").map(str::to_owned),
            _ => None,
        });
        let tracked = tracked.unwrap_or_else(|| format!("{:?}", verdict.fate));
        assert_eq!(own, tracked, "{what} from {from}: the kernel has the left one\n{frame:02x?}");
        let (own, wanted) = (Router::connections(), of_reference(&self.state, now));
        let known = |all: &BTreeMap<String, (String, i64)>, other: &BTreeMap<String, (String, i64)>| -> Vec<String> {
            let differs = |name: &String, known: &String| other.get(name).is_none_or(|(other, _)| other != known);
            // One that is about to be over may be over in the other one already.
            let differing = all.iter().filter(|(name, (known, left))| *left > 3 && differs(name, known));
            differing.map(|(name, (known, _))| format!("{name}: {known}")).collect()
        };
        assert_eq!(known(&own, &wanted), known(&wanted, &own), "{what} from {from}: the kernel has the left one");
        for (name, (known, left)) in &own {
            let other = wanted.get(name).map_or(-1, |(_, left)| *left);
            // Data that is not acknowledged (TCP_CONNTRACK_UNACK), of which the reference does not know.
            let unacknowledged = known.starts_with("ESTABLISHED reply true") && *left <= 300;
            let same = (left - other).abs() <= 3 || *left <= 3 || unacknowledged && other > 400_000;
            assert!(same, "{what} from {from}: {name} {known} {left} s, in the reference {other} s");
        }
        *self.seen.entry(tracked.clone()).or_default() += 1;
        tracked
    }
}

fn ip(from: Port, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let side = from.0 as u8;
    let mut frame = vec![2, 0, 0, 0, 0, side, 2, 0, 0, 0, 1, side, 8, 0, 0x45, 0];
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, side, 2, 10, 0, 3 - side, 2]);
    frame.extend(payload);
    frame
}

/// Datagrams and echoes: the port, or the identifier, is that of the left side.
fn datagram(from: Port, port: u16) -> Vec<u8> {
    let ports = if from == LEFT { [port, 53] } else { [53, port] }.map(u16::to_be_bytes).concat();
    ip(from, 17, &[ports, vec![0, 12, 0xff, 0xff, 1, 2, 3, 4]].concat())
}

fn icmp(from: Port, kind: u8, code: u8, id: u16, data: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    ip(from, 1, &[&[kind, code, 0, 0, high, low, 0, 1][..], data].concat())
}

/// Both ends of a TCP connection, which number their segments correctly.
struct Ends {
    port: u16,
    next: [u32; 2],
    acknowledged: [u32; 2],
}

impl Ends {
    fn new(port: u16) -> Ends {
        Ends { port, next: [u32::from(port) * 1000, 77_000], acknowledged: [0, 0] }
    }

    fn segment(&mut self, from: Port, flags: u8, data: usize) -> Vec<u8> {
        let (own, other) = if from == LEFT { (0, 1) } else { (1, 0) };
        let ports = if from == LEFT { [self.port, 80] } else { [80, self.port] }.map(u16::to_be_bytes).concat();
        if flags & 0x10 != 0 {
            self.acknowledged[own] = self.next[other];
        }
        let acknowledged = if flags & 0x10 != 0 { self.acknowledged[own] } else { 0 };
        let numbers = [self.next[own], acknowledged].map(u32::to_be_bytes).concat();
        self.next[own] = self.next[own].wrapping_add(data as u32 + u32::from(flags & 3 != 0));
        ip(from, 6, &[ports, numbers, vec![0x50, flags, 0x40, 0, 0, 0, 0, 0], vec![5; data]].concat())
    }
}

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const PUSH: u8 = 0x18;
const FIN: u8 = 0x11;
const RST: u8 = 0x14;

#[test]
fn the_reference_tracks_as_the_kernel_does() {
    let Some(mut both) = Both::new() else { return };
    // Whole lives of connections, step by step.
    let lives: [&[(Port, u8)]; 9] = [
        &[
            (LEFT, SYN),
            (RIGHT, SYN_ACK),
            (LEFT, ACK),
            (LEFT, PUSH),
            (RIGHT, ACK),
            (LEFT, FIN),
            (RIGHT, ACK),
            (RIGHT, FIN),
            (LEFT, ACK),
            (LEFT, SYN),
            (RIGHT, SYN_ACK),
            (LEFT, ACK),
        ],
        &[
            (LEFT, SYN),
            (LEFT, SYN),
            (RIGHT, SYN_ACK),
            (RIGHT, SYN_ACK),
            (LEFT, ACK),
            (RIGHT, FIN),
            (LEFT, FIN),
            (RIGHT, ACK),
        ],
        &[(LEFT, SYN), (RIGHT, RST), (LEFT, SYN), (RIGHT, SYN_ACK), (LEFT, RST), (LEFT, SYN)],
        &[(LEFT, SYN), (LEFT, RST), (LEFT, SYN), (RIGHT, SYN_ACK), (LEFT, ACK), (RIGHT, RST)],
        &[(LEFT, SYN), (RIGHT, SYN), (LEFT, SYN_ACK), (RIGHT, SYN_ACK), (LEFT, ACK), (RIGHT, ACK)],
        &[(LEFT, ACK), (RIGHT, ACK), (LEFT, PUSH), (RIGHT, ACK), (LEFT, FIN), (RIGHT, FIN), (LEFT, ACK)],
        &[(LEFT, SYN_ACK), (LEFT, FIN), (LEFT, RST), (LEFT, 0x00), (LEFT, 0x03), (LEFT, 0x29)],
        &[
            (LEFT, SYN),
            (LEFT, ACK),
            (LEFT, FIN),
            (RIGHT, ACK),
            (RIGHT, SYN_ACK),
            (LEFT, 0x06),
            (LEFT, ACK),
            (RIGHT, 0x00),
        ],
        &[(RIGHT, SYN), (LEFT, SYN_ACK), (RIGHT, ACK), (RIGHT, FIN), (LEFT, FIN), (RIGHT, ACK), (LEFT, ACK)],
    ];
    for (number, life) in lives.iter().enumerate() {
        let mut ends = Ends::new(2000 + number as u16);
        for (step, (from, flags)) in life.iter().enumerate() {
            let frame = ends.segment(*from, *flags, if *flags == PUSH { 3 } else { 0 });
            both.send(*from, &frame, &format!("life {number}, step {step}, flags {flags:#x}"));
        }
    }
    // Datagrams become a stream after two seconds.
    for (step, from) in [LEFT, LEFT, RIGHT, LEFT].into_iter().enumerate() {
        both.send(from, &datagram(from, 900), &format!("datagram {step}"));
    }
    std::thread::sleep(Duration::from_millis(2300));
    both.send(RIGHT, &datagram(RIGHT, 900), "a datagram after two seconds");
    both.send(LEFT, &datagram(LEFT, 900), "a datagram after two seconds");
    // Echoes, answers without a question, and a protocol that only has addresses.
    both.send(LEFT, &icmp(LEFT, 8, 0, 7, &[1; 4]), "an echo");
    both.send(RIGHT, &icmp(RIGHT, 0, 0, 7, &[1; 4]), "its reply");
    both.send(LEFT, &icmp(LEFT, 8, 0, 7, &[1; 4]), "an echo again");
    both.send(RIGHT, &icmp(RIGHT, 0, 0, 8, &[1; 4]), "a reply to nothing");
    both.send(LEFT, &ip(LEFT, 253, &[1; 8]), "another protocol");
    both.send(RIGHT, &ip(RIGHT, 253, &[1; 8]), "another protocol's answer");
    // Errors about them.
    let about = |frame: &[u8]| frame[14..].to_vec();
    both.send(RIGHT, &icmp(RIGHT, 3, 3, 0, &about(&datagram(LEFT, 900))), "an error about a datagram");
    both.send(LEFT, &icmp(LEFT, 3, 3, 0, &about(&datagram(RIGHT, 900))), "an error about the answer");
    both.send(RIGHT, &icmp(RIGHT, 11, 0, 0, &about(&datagram(LEFT, 901))), "an error about nothing");
    both.send(RIGHT, &icmp(RIGHT, 3, 3, 0, &about(&Ends::new(2000).segment(LEFT, ACK, 0))), "an error about a segment");
    let reply =
        both.send(RIGHT, &icmp(RIGHT, 3, 1, 0, &about(&icmp(LEFT, 8, 0, 7, &[1; 4]))), "an error about an echo");
    assert!(reply.starts_with("+trk+rel"), "{reply}");
    println!("{:?}", both.seen);
    let missing: Vec<_> = SHOWN[..6].iter().filter(|(state, ..)| !both.seen.contains_key(*state)).collect();
    assert!(missing.is_empty(), "{missing:?} were not seen");
}

#[test]
fn random_segments_are_tracked_as_the_kernel_does() {
    let Some(mut both) = Both::new() else { return };
    for seed in 0..number("CASES", 60) {
        let mut random = Random::new(seed);
        let mut ends = Ends::new(3000 + seed as u16);
        let mut from = LEFT;
        for step in 0..12 {
            if random.chance(65) {
                from = if from == LEFT { RIGHT } else { LEFT };
            }
            let flags = random.one([SYN, SYN_ACK, SYN_ACK, ACK, ACK, ACK, PUSH, FIN, FIN, RST]);
            let flags = match flags {
                _ if step == 0 => SYN,
                // Of an established connection the kernel takes only one with the number which it has seen acknowledged.
                RST if both.is_established(ends.port) => ACK,
                flags => flags,
            };
            let frame = ends.segment(from, flags, if flags == PUSH { 2 } else { 0 });
            both.send(from, &frame, &format!("seed {seed}, step {step}, flags {flags:#x}"));
        }
    }
    println!("{:?}", both.seen);
}
