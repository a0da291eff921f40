//! Random frames: such that rules take, and such that no rule should.

use std::net::IpAddr;
use std::time::Duration;

use crate::action::Action;
use crate::checksum;
use crate::key::{Field, Key};
use crate::matching::Match;
use crate::parse::{Fragment, dissect, ethertype, protocol};
use crate::pipeline::{Verdict, process};
use crate::rule::{Block, Port, Protocol, Rule};
use crate::state::State;
use crate::table::Tables;
use crate::tunnel::{self, Encap, Neighbour, TunnelKind};

use super::keys::{Shape, some_mac};
use super::options::Options;
use super::random::Random;
use super::rules::device;

/// A frame that comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// When, as a time since the state was new.
    pub at: Duration,
    /// Where.
    pub port: Port,
    /// Its bytes, which may be fewer than an Ethernet header has.
    pub frame: Vec<u8>,
}

/// Which frames a rule takes, together with the rules that lead to it.
struct Wanted {
    block: Block,
    protocol: Protocol,
    matches: Match,
}

/// Frames that go to and fro.
#[derive(Clone)]
struct Conversation {
    /// The first frame, and where it came in.
    there: (Port, Vec<u8>),
    /// What became of it, and where it was sent: the frame that is answered.
    back: (Port, Vec<u8>),
    step: usize,
}

pub(super) struct FrameMaker<'a> {
    random: &'a mut Random,
    options: &'a Options,
    tables: &'a Tables,
    rules: Vec<&'a Rule>,
    now: Duration,
    /// What the frames so far have done, to answer what was sent.
    state: State,
    conversations: Vec<Conversation>,
}

/// How many conversations are remembered.
const REMEMBERED: usize = 12;

/// The flags of TCP of the frames of a conversation: the handshake, data, the end.
const TCP_FLAGS: [u8; 8] = [0x02, 0x12, 0x10, 0x18, 0x18, 0x11, 0x11, 0x10];

/// Makes frames for these tables.
pub(super) fn frames(random: &mut Random, options: &Options, tables: &Tables, count: usize) -> Vec<Arrival> {
    let rules = tables.rules().map(|(_, rule)| rule).collect();
    let (now, state, conversations) = (Duration::from_secs(1), State::new(0), Vec::new());
    let mut maker = FrameMaker { random, options, tables, rules, now, state, conversations };
    (0..count).map(|_| maker.arrival()).collect()
}

impl<'a> FrameMaker<'a> {
    fn arrival(&mut self) -> Arrival {
        self.now += match self.random.below(40) {
            0 => Duration::from_secs(40),
            1..6 => Duration::from_secs(1),
            _ => Duration::from_micros(10),
        };
        let talked = if self.random.chance(35) { self.talk() } else { None };
        let begins = talked.is_none();
        let (port, mut frame) = talked.unwrap_or_else(|| self.first());
        let is_hostile = self.random.chance(self.options.hostile);
        if is_hostile {
            self.spoil(&mut frame);
        }
        let connections = self.state.connections().len();
        let verdict = process(self.tables, &mut self.state, self.now, port, &frame);
        let is_tracked = self.state.connections().len() > connections;
        if begins && !is_hostile && (is_tracked || self.random.chance(20)) {
            self.remember(port, &frame, &verdict);
        }
        Arrival { at: self.now, port, frame }
    }

    /// A frame that begins something.
    fn first(&mut self) -> (Port, Vec<u8>) {
        match self.random.pick(&self.rules).copied() {
            Some(rule) if self.random.chance(95) => self.frame_for(rule),
            _ => self.any(),
        }
    }

    /// Remembers a frame and what became of it, to go on from there.
    fn remember(&mut self, port: Port, frame: &[u8], verdict: &Verdict) {
        let ports = self.options.ports();
        let sent = verdict.outputs.iter().find(|output| ports.contains(&output.port));
        let back = sent.map_or_else(|| (port, frame.to_vec()), |output| (output.port, output.frame.clone()));
        let conversation = Conversation { there: (port, frame.to_vec()), back, step: 0 };
        if self.conversations.len() < REMEMBERED {
            self.conversations.push(conversation);
        } else {
            self.conversations[self.random.below(REMEMBERED)] = conversation;
        }
    }

    /// The next frame of a conversation, or an error about it.
    fn talk(&mut self) -> Option<(Port, Vec<u8>)> {
        let place = self.random.below(self.conversations.len());
        let conversation = self.conversations.get_mut(place)?;
        conversation.step += 1;
        let step = conversation.step;
        let Conversation { there, back, .. } = conversation.clone();
        let flags = match self.random.below(20) {
            0 => 0x14,
            1 => self.random.number() as u8,
            _ => TCP_FLAGS[step % TCP_FLAGS.len()],
        };
        Some(match self.random.below(10) {
            0 => (back.0, self.icmp_error(&back.1)),
            1 => (there.0, there.1),
            _ if step % 2 == 1 => (back.0, with_tcp_flags(answer(back.1), flags)),
            _ => (there.0, with_tcp_flags(there.1, flags)),
        })
    }

    fn any(&mut self) -> (Port, Vec<u8>) {
        let shape = Shape::any(self.random, self.options);
        let key = shape.key(self.random);
        let port = self.random.pick(&self.options.ports()).copied().unwrap_or(self.options.uplink);
        (port, self.build(&shape, &key))
    }

    /// A frame that the rule takes, if the rules that are asked before it do not.
    fn frame_for(&mut self, rule: &'a Rule) -> (Port, Vec<u8>) {
        let wanted = self.wanted(rule);
        let shape = Shape::of(&wanted.matches, wanted.protocol, self.random, self.options);
        let mut key = overlaid(shape.key(self.random), &wanted.matches);
        for (range, field) in [(&wanted.matches.src_ports, Field::SrcPort), (&wanted.matches.dst_ports, Field::DstPort)]
        {
            if let Some(range) = range {
                let beyond = usize::from(self.random.chance(10)) * 2;
                let width = usize::from(range.end() - range.start()) + 1 + beyond;
                key.set(field, range.start().wrapping_add(self.random.below(width) as u16));
            }
        }
        self.make_question(&shape, &wanted.matches, &mut key);
        let frame = self.build(&shape, &key);
        match wanted.block {
            Block::Tunnel(device) => (self.options.uplink, self.in_tunnel(device.kind, &key, frame)),
            block => (self.port_of(block, &key), frame),
        }
    }

    /// Makes the frame mostly one with which a connection begins, where the match leaves it free.
    fn make_question(&mut self, shape: &Shape, matches: &Match, key: &mut Key) {
        if key.has(Field::IpFlags) || !self.random.chance(70) {
            return;
        }
        let is_free = |field| !matches.mask().has(field);
        if shape.ip_protocol == protocol::TCP && is_free(Field::TcpFlags) {
            key.set(Field::TcpFlags, 0x02u16);
        }
        if shape.is_icmp() && is_free(Field::IcmpType) && is_free(Field::IcmpCode) {
            key.set(Field::IcmpType, if shape.ethertype == ethertype::IPV4 { 8u8 } else { 128 });
            key.set(Field::IcmpCode, 0u8);
        }
    }

    fn port_of(&mut self, block: Block, key: &Key) -> Port {
        let asked = Port(key.number(Field::InPort));
        let bound: Vec<Port> =
            self.options.ports().into_iter().filter(|port| self.tables.block_of(*port) == block).collect();
        match bound.contains(&asked) {
            true => asked,
            false => self.random.pick(&bound).copied().unwrap_or(self.options.uplink),
        }
    }

    /// What a frame must have to come to the rule: also what the rules ask for that send it on.
    fn wanted(&mut self, rule: &'a Rule) -> Wanted {
        let mut matches = rule.matches.clone();
        let mut first = rule;
        for _ in 0..4 {
            let leads = |other: &Rule| {
                let goes = other.actions.contains(&Action::Goto(first.chain));
                other.block == first.block && other.chain != first.chain && goes
            };
            let before: Vec<&Rule> = self.rules.iter().copied().filter(|other| leads(other)).collect();
            if first.chain == 0 || before.is_empty() {
                break;
            }
            let Some(lead) = self.random.pick(&before).copied() else { break };
            // Without the first rule's match the frame would not come so far.
            matches = both(&lead.matches, &matches);
            first = lead;
        }
        Wanted { block: rule.block, protocol: first.protocol, matches }
    }

    /// The frame in a tunnel whose outer header has the fields `Enc…` of the key.
    fn in_tunnel(&mut self, kind: TunnelKind, key: &Key, inner: Vec<u8>) -> Vec<u8> {
        let device = device(kind);
        let (src, dst): (IpAddr, IpAddr) = match key.number(Field::EncAddrType) {
            6 => (address6(key.get(Field::EncIp6Src)), address6(key.get(Field::EncIp6Dst))),
            _ => (address4(key.get(Field::EncIp4Src)), address4(key.get(Field::EncIp4Dst))),
        };
        let id = key.number(Field::EncKeyId);
        let length = (key.number(Field::EncOptsLen) as usize).min(252) / 4 * 4;
        let encap = Encap {
            kind,
            id: Some(id).filter(|id| kind != TunnelKind::Gre || *id != 0),
            src,
            dst,
            dst_port: device.udp_port,
            tos: key.number(Field::EncTos) as u8,
            ttl: key.number(Field::EncTtl) as u8,
            options: if kind == TunnelKind::Geneve { key.get(Field::EncOpts)[..length].to_vec() } else { Vec::new() },
            neighbour: None,
        };
        let neighbour = Neighbour { dst: some_mac(self.random), src: some_mac(self.random), from: None };
        let Some(mut outer) = tunnel::encapsulate(&encap, neighbour, &inner) else { return inner };
        if kind != TunnelKind::Gre
            && let Some(udp) = dissect(&outer).network.and_then(|network| network.transport())
        {
            outer[udp..udp + 2].copy_from_slice(key.get(Field::EncSrcPort));
        }
        if self.random.chance(5) {
            outer = tagged(&outer, ethertype::VLAN, 5);
        }
        outer
    }

    /// A frame with this key, as far as there is one.
    fn build(&mut self, shape: &Shape, key: &Key) -> Vec<u8> {
        let mut frame = [key.get(Field::EthDst), key.get(Field::EthSrc)].concat();
        for (place, tpid) in shape.tags.iter().enumerate() {
            let fields = [(Field::VlanId, Field::VlanPrio), (Field::CvlanId, Field::CvlanPrio)];
            let (id, priority) = match fields.get(place) {
                Some((id, priority)) => (key.number(*id) & 0x0fff, key.number(*priority) & 7),
                None => (self.random.below(4096) as u32, self.random.below(8) as u32),
            };
            let discard_eligible = u32::from(self.random.chance(10)) << 12;
            frame.extend(tpid.to_be_bytes());
            frame.extend(((priority << 13 | id | discard_eligible) as u16).to_be_bytes());
        }
        frame.extend(type_or_length(shape.ethertype));
        match shape.ethertype {
            ethertype::IPV4 => frame.extend(self.ipv4(shape, key)),
            ethertype::IPV6 => frame.extend(self.ipv6(shape, key)),
            ethertype::ARP | ethertype::RARP => frame.extend(arp(key)),
            _ => {
                let length = self.data_length();
                frame.extend(self.random.bytes(length));
            }
        }
        checksum::make_right(&mut frame);
        if self.random.chance(20) && frame.len() < 60 {
            frame.resize(60, 0);
        }
        frame
    }

    fn data_length(&mut self) -> usize {
        match self.random.below(100) {
            0 => 8900 + self.random.below(300),
            1..4 => 1400 + self.random.below(100),
            4..20 => 0,
            _ => self.random.below(64),
        }
    }

    fn ipv4(&mut self, shape: &Shape, key: &Key) -> Vec<u8> {
        let options = if self.random.chance(10) { 4 * (1 + self.random.below(10)) } else { 0 };
        let fragment = key.number(Field::IpFlags) as u8;
        let payload = self.transport(shape, key);
        let length = (20 + options + payload.len()) as u16;
        let flags: u16 = match fragment {
            0 => self.random.one([0, 0x4000]),
            flags if flags & Field::FIRST_FRAG != 0 => 0x2000,
            _ => self.random.one([0x2000, 0]) | (1 + self.random.below(1000) as u16),
        };
        let mut header = vec![0x40 | (5 + options / 4) as u8, key.number(Field::IpTos) as u8];
        header.extend(length.to_be_bytes());
        header.extend(self.random.bytes(2));
        header.extend(flags.to_be_bytes());
        header.extend([key.number(Field::IpTtl) as u8, shape.ip_protocol, 0, 0]);
        header.extend([key.get(Field::Ip4Src), key.get(Field::Ip4Dst)].concat());
        // One that does nothing, to the end.
        header.extend(vec![1; options]);
        [header, payload].concat()
    }

    fn ipv6(&mut self, shape: &Shape, key: &Key) -> Vec<u8> {
        let fragment = key.number(Field::IpFlags) as u8;
        let mut extensions: Vec<(u8, Vec<u8>)> = Vec::new();
        if self.random.chance(10) {
            let kind = self.random.one([protocol::HOP_OPTIONS, protocol::ROUTING, protocol::DESTINATION_OPTIONS]);
            extensions.extend((0..1 + self.random.below(3)).map(|_| (kind, vec![0, 0, 1, 4, 0, 0, 0, 0])));
        }
        if fragment != 0 {
            let offset = if fragment & Field::FIRST_FRAG != 0 { 0 } else { 8 * (1 + self.random.below(1000) as u16) };
            let [high, low] = (offset | 1).to_be_bytes();
            extensions.push((protocol::FRAGMENT, vec![0, 0, high, low, 0, 0, 0, 7]));
        }
        let mut payload = self.transport(shape, key);
        let mut next = shape.ip_protocol;
        for (kind, mut header) in extensions.into_iter().rev() {
            header[0] = next;
            next = kind;
            payload.splice(0..0, header);
        }
        let (tos, label) = (key.number(Field::IpTos), self.random.one([0, 0x000a_bcde]));
        let mut header = (6 << 28 | tos << 20 | label as u32).to_be_bytes().to_vec();
        header.extend((payload.len() as u16).to_be_bytes());
        header.extend([next, key.number(Field::IpTtl) as u8]);
        header.extend([key.get(Field::Ip6Src), key.get(Field::Ip6Dst)].concat());
        [header, payload].concat()
    }

    fn transport(&mut self, shape: &Shape, key: &Key) -> Vec<u8> {
        let length = self.data_length();
        let data = self.random.bytes(length);
        let ports = [key.get(Field::SrcPort), key.get(Field::DstPort)].concat();
        let header = match shape.ip_protocol {
            protocol::TCP => {
                let options = if self.random.chance(15) { 4 * (1 + self.random.below(10)) } else { 0 };
                let flags = (key.number(Field::TcpFlags) & 0x0fff) as u16 | ((5 + options / 4) as u16) << 12;
                let sequence = self.random.bytes(8);
                [&ports[..], &sequence, &flags.to_be_bytes(), &[0x10, 0, 0, 0, 0, 0], &vec![1; options]].concat()
            }
            protocol::UDP => {
                let check = if self.random.chance(20) { 0u16 } else { 0xffff };
                [&ports[..], &(8 + data.len() as u16).to_be_bytes(), &check.to_be_bytes()].concat()
            }
            protocol::SCTP => [&ports[..], &self.random.bytes(8)].concat(),
            protocol::ICMP | protocol::ICMPV6 => {
                let kind = [key.number(Field::IcmpType) as u8, key.number(Field::IcmpCode) as u8, 0, 0];
                [&kind[..], &[0, self.random.below(3) as u8, 0, 1]].concat()
            }
            _ => self.random.bytes(8),
        };
        [header, data].concat()
    }

    /// An ICMP error that the receiver of an earlier frame sends.
    fn icmp_error(&mut self, earlier: &[u8]) -> Vec<u8> {
        let answered = answer(earlier.to_vec());
        let Some(network) = dissect(earlier).network else { return answered };
        let about = &earlier[network.offset..network.end.min(network.payload + 8)];
        let mut frame = answered[..network.offset].to_vec();
        let (v6, head) = (network.version == 6, if network.version == 6 { 40 } else { 20 });
        let (kind, code) =
            if v6 { self.random.one([(1, 4), (3, 0), (2, 0)]) } else { self.random.one([(3, 3), (11, 0)]) };
        let message = [&[kind, code, 0, 0, 0, 0, 0, 0][..], about].concat();
        let mut header = answered[network.offset..network.offset + head].to_vec();
        let length = (message.len() + if v6 { 0 } else { 20 }) as u16;
        if v6 {
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header[6] = protocol::ICMPV6;
        } else {
            header[0] = 0x45;
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[6..8].fill(0);
            header[9] = protocol::ICMP;
        }
        frame.extend(header);
        frame.extend(message);
        checksum::make_right(&mut frame);
        frame
    }

    /// Cuts or damages a frame, or puts any bytes in its place.
    fn spoil(&mut self, frame: &mut Vec<u8>) {
        let headers = frame.len().min(80);
        match self.random.below(12) {
            0..3 => frame.truncate(self.random.below(frame.len() + 1)),
            3 => frame.truncate(self.random.below(headers + 1)),
            4..7 => {
                for _ in 0..1 + self.random.below(4) {
                    let (place, byte) = (self.random.below(headers), self.random.number() as u8);
                    frame.get_mut(place).into_iter().for_each(|old| *old = byte);
                }
            }
            7 => self.bad_field(frame),
            8 => {
                let count = 1 + self.random.below(20);
                *frame = (0..count).fold(std::mem::take(frame), |frame, _| match frame.len() {
                    ..14 => frame,
                    _ => tagged(&frame, ethertype::VLAN, 9),
                });
            }
            9 => {
                for _ in 0..1 + self.random.below(3) {
                    let Some(kind) = self.random.pick(&self.options.tunnels).copied() else { break };
                    let mut key = Shape::any(self.random, self.options).key(self.random);
                    key.set(Field::EncDstPort, device(kind).udp_port);
                    *frame = self.in_tunnel(kind, &key, std::mem::take(frame));
                }
            }
            10 => {
                let length = self.random.below(20) + frame.len() * self.random.below(3);
                frame.extend(self.random.bytes(length));
            }
            _ => {
                let length = self.random.below(120);
                *frame = self.random.bytes(length);
            }
        }
    }

    /// Damages what a reader of the frame relies on: a length, an offset, a version, a fragment, a checksum.
    fn bad_field(&mut self, frame: &mut [u8]) {
        let Some(network) = dissect(frame).network else { return };
        let byte = self.random.one([0, 1, 4, 0x0f, 0x40, 0x46, 0x4f, 0x60, 0x7f, 0xff]);
        let places: &[usize] = match (network.version, network.fragment == Fragment::Whole) {
            (4, _) => &[0, 2, 3, 6, 7, 9, 10, 20, 24, 32, 33],
            (_, true) => &[0, 4, 5, 6, 40, 41, 52],
            (_, false) => &[6, 40, 42, 43, 48],
        };
        let Some(place) = self.random.pick(places).copied() else { return };
        frame.get_mut(network.offset + place).into_iter().for_each(|old| *old = byte);
    }
}

/// The EtherType, or the length of a frame of IEEE 802.2 in its place.
fn type_or_length(ethertype: u16) -> [u8; 2] {
    match ethertype {
        ethertype::IEEE_802_2 => 3u16.to_be_bytes(),
        other => other.to_be_bytes(),
    }
}

fn arp(key: &Key) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, key.number(Field::ArpOp) as u8];
    let fields = [Field::ArpSha, Field::ArpSip, Field::ArpTha, Field::ArpTip].map(|field| key.get(field));
    [&head[..], &fields.concat()].concat()
}

/// The frame with a VLAN tag in front of those that are there.
fn tagged(frame: &[u8], tpid: u16, id: u16) -> Vec<u8> {
    [&frame[..12], &tpid.to_be_bytes(), &id.to_be_bytes(), &frame[12..]].concat()
}

/// The frame with addresses and ports exchanged, as the receiver would send one. (Checksums stay right.)
fn answer(mut frame: Vec<u8>) -> Vec<u8> {
    let Some(network) = dissect(&frame).network else { return frame };
    let (first, size) = if network.version == 4 { (network.offset + 12, 4) } else { (network.offset + 8, 16) };
    swap(&mut frame, 0, 6);
    swap(&mut frame, first, size);
    match (network.transport(), network.protocol) {
        (Some(start), protocol::TCP | protocol::UDP | protocol::SCTP) if frame.len() >= start + 4 => {
            swap(&mut frame, start, 2)
        }
        (Some(start), protocol::ICMP | protocol::ICMPV6) => {
            frame[start] = match frame[start] {
                8 => 0,
                128 => 129,
                13 => 14,
                other => other,
            };
        }
        _ => {}
    }
    checksum::make_right(&mut frame);
    frame
}

/// The frame with these flags, if it is one of TCP.
fn with_tcp_flags(mut frame: Vec<u8>, flags: u8) -> Vec<u8> {
    let network = dissect(&frame).network.filter(|network| network.protocol == protocol::TCP);
    let place = network.and_then(|network| network.transport()).map(|start| start + 13);
    if let Some(byte) = place.and_then(|place| frame.get_mut(place)) {
        *byte = flags;
        checksum::make_right(&mut frame);
    }
    frame
}

/// Exchanges two neighbours of `size` bytes.
fn swap(frame: &mut [u8], first: usize, size: usize) {
    if frame.len() >= first + 2 * size {
        let (one, other) = frame[first..first + 2 * size].split_at_mut(size);
        one.swap_with_slice(other);
    }
}

/// The key with the bits that the match asks for.
fn overlaid(key: Key, matches: &Match) -> Key {
    let mut wanted = key;
    for field in matches.mask().fields() {
        let (value, mask) = (matches.value().get(field), matches.mask().get(field));
        let bits = value.iter().zip(mask).zip(wanted.get(field)).map(|((value, mask), own)| value | own & !mask);
        let bits: Vec<u8> = bits.collect();
        wanted.set_bytes(field, &bits);
    }
    wanted
}

/// What both ask for; where they differ, what `first` does.
fn both(first: &Match, then: &Match) -> Match {
    let value = overlaid(then.value().clone(), first);
    let mut mask = then.mask().clone();
    for field in first.mask().fields() {
        let bits: Vec<u8> =
            first.mask().get(field).iter().zip(mask.get(field)).map(|(one, other)| one | other).collect();
        mask.set_bytes(field, &bits);
    }
    let ports = |one: &Option<_>, other: &Option<_>| one.clone().or(other.clone());
    let (src, dst) = (ports(&first.src_ports, &then.src_ports), ports(&first.dst_ports, &then.dst_ports));
    Match::of_key(&value, mask, src, dst)
}

fn address4(bytes: &[u8]) -> IpAddr {
    <[u8; 4]>::try_from(bytes).unwrap_or_default().into()
}

fn address6(bytes: &[u8]) -> IpAddr {
    <[u8; 16]>::try_from(bytes).unwrap_or_default().into()
}
