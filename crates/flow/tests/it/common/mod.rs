//! Frames written by hand, and a card with an uplink and three vports.
#![allow(dead_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flow::{
    Action, Capabilities, Field, Match, Port, PortKind, Rule, RuleId, State, Tables, Verdict, make_checksums_right,
    process,
};

pub const UPLINK: Port = Port(0xffff);
pub const ONE: Port = Port(1);
pub const TWO: Port = Port(2);
pub const THREE: Port = Port(3);

pub const MAC_A: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0a];
pub const MAC_B: [u8; 6] = [0x02, 0, 0, 0, 0, 0x0b];
pub const IP_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const IP_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const IP6_A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xa);
pub const IP6_B: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xb);

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// An Ethernet frame from A to B.
pub fn eth(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&MAC_B[..], &MAC_A, &ethertype.to_be_bytes(), payload].concat()
}

/// The frame with a VLAN tag in front of those that are there.
pub fn tagged(frame: &[u8], tpid: u16, id: u16, priority: u8) -> Vec<u8> {
    let tci = (u16::from(priority) << 13 | id).to_be_bytes();
    [&frame[..12], &tpid.to_be_bytes(), &tci, &frame[12..]].concat()
}

/// An IPv4 packet in a frame, with right checksums.
pub fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_with(src, dst, protocol, payload, |_| ())
}

/// The same, after `change` of the IPv4 header.
pub fn ipv4_with(
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
    change: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 7, 0, 0, 64, protocol, 0, 0];
    header.extend(src.octets());
    header.extend(dst.octets());
    change(&mut header);
    let mut frame = eth(0x0800, &[&header[..], payload].concat());
    make_checksums_right(&mut frame);
    frame
}

/// An IPv6 packet in a frame, with right checksums. `next` is the protocol of the first header in `payload`.
pub fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    packet.extend(src.octets());
    packet.extend(dst.octets());
    packet.extend(payload);
    let mut frame = eth(0x86dd, &packet);
    make_checksums_right(&mut frame);
    frame
}

/// A UDP datagram that has a checksum.
pub fn udp(src: u16, dst: u16, data: &[u8]) -> Vec<u8> {
    let length = 8 + data.len() as u16;
    let words = [src, dst, length, 0xffff].into_iter().flat_map(u16::to_be_bytes);
    words.chain(data.iter().copied()).collect()
}

/// A TCP segment.
pub fn tcp(src: u16, dst: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 9, 0, 0, 0, 8, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

/// An ICMP or ICMPv6 message with an identifier.
pub fn icmp(kind: u8, code: u8, id: u16, data: &[u8]) -> Vec<u8> {
    let id = id.to_be_bytes();
    [&[kind, code, 0, 0, id[0], id[1], 0, 1][..], data].concat()
}

/// An ARP packet in a frame.
pub fn arp(operation: u16, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let operation = operation.to_be_bytes();
    let packet =
        [&[0, 1, 8, 0, 6, 4, operation[0], operation[1]][..], &MAC_A, &sender.octets(), &MAC_B, &target.octets()];
    eth(0x0806, &packet.concat())
}

/// A UDP frame from A to B.
pub fn udp_frame() -> Vec<u8> {
    ipv4(IP_A, IP_B, UDP, &udp(1000, 2000, b"data"))
}

/// A TCP frame from A to B.
pub fn tcp_frame(flags: u8) -> Vec<u8> {
    ipv4(IP_A, IP_B, TCP, &tcp(1000, 80, flags, b""))
}

/// A match on IPv4.
pub fn ip() -> Match {
    Match::new().with(Field::EthType, 0x0800u16)
}

/// A match on IPv6.
pub fn ip6() -> Match {
    Match::new().with(Field::EthType, 0x86ddu16)
}

/// A match on a protocol over IPv4.
pub fn ip_proto(protocol: u8) -> Match {
    ip().with(Field::IpProto, protocol)
}

pub fn addr(address: Ipv4Addr) -> IpAddr {
    address.into()
}

/// A card and its state.
pub struct Card {
    pub tables: Tables,
    pub state: State,
    pub now: Duration,
}

impl Card {
    /// A card that does everything that can be done.
    pub fn new() -> Card {
        Card::with(Capabilities::everything())
    }

    pub fn with(capabilities: Capabilities) -> Card {
        let mut tables = Tables::new(capabilities);
        tables.add_port(UPLINK, PortKind::Uplink);
        [ONE, TWO, THREE].into_iter().for_each(|port| tables.add_port(port, PortKind::Vport));
        Card { tables, state: State::new(7), now: Duration::from_secs(1) }
    }

    /// Adds a rule, which the card must accept.
    pub fn add(&mut self, rule: Rule) -> RuleId {
        self.tables.add(rule).expect("the card accepts the rule")
    }

    /// Adds a rule of port 1 in chain 0.
    pub fn rule(&mut self, matches: Match, actions: impl Into<Vec<Action>>) -> RuleId {
        self.add(Rule::new(ONE, matches, actions))
    }

    /// Sends a frame into port 1.
    pub fn send(&mut self, frame: &[u8]) -> Verdict {
        self.send_to(ONE, frame)
    }

    pub fn send_to(&mut self, port: Port, frame: &[u8]) -> Verdict {
        process(&self.tables, &mut self.state, self.now, port, frame)
    }

    /// What one rule of port 1 makes of a frame that it must send on.
    pub fn changed(matches: Match, actions: &[Action], frame: &[u8]) -> Vec<u8> {
        let mut card = Card::new();
        card.rule(matches, [actions, &[Action::Redirect(TWO)]].concat());
        let verdict = card.send(frame);
        assert_eq!(verdict.outputs.len(), 1, "{}", verdict.trace);
        verdict.outputs[0].frame.clone()
    }

    pub fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}
