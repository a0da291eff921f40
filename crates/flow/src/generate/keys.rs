//! Random keys of frames, from pools so small that rules and frames often have the same values.

use crate::key::{Field, Key};
use crate::matching::Match;
use crate::parse::{ethertype, is_vlan, protocol};
use crate::rule::Protocol;

use super::options::Options;
use super::random::Random;

/// Which headers a frame has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// The EtherTypes of its VLAN tags, the outer one first; at most 4.
    pub(super) tags: Vec<u16>,
    pub(super) ethertype: u16,
    pub(super) ip_protocol: u8,
}

impl Shape {
    /// Any shape of which the rules can tell something.
    pub(super) fn any(random: &mut Random, options: &Options) -> Shape {
        let tags = match random.below(10) {
            _ if !options.fields.has(Field::VlanTpid) && random.chance(80) => 0,
            0..5 => 0,
            5..8 => 1,
            _ if !options.fields.has(Field::CvlanTpid) => 1,
            _ => 2,
        };
        let ethertype = match random.below(20) {
            0..8 => ethertype::IPV4,
            8..15 => ethertype::IPV6,
            15..18 => ethertype::ARP,
            18 => ethertype::RARP,
            _ => random.one([0x88b5, 0x8847, 0x0004]),
        };
        Shape { tags: some_tags(random, tags), ethertype, ip_protocol: some_protocol(random, ethertype) }
    }

    /// A shape that frames have which this match takes, in a priority of this protocol.
    pub(super) fn of(matches: &Match, priority: Protocol, random: &mut Random, options: &Options) -> Shape {
        let any = Shape::any(random, options);
        let exact = |field| matches.exact(field).map(|number| number as u16);
        let outermost = match priority {
            Protocol::Is(outermost) => Some(outermost),
            Protocol::All => None,
        };
        let outer_tag = exact(Field::VlanTpid).or(outermost.filter(|outermost| is_vlan(*outermost)));
        let behind_outer = exact(Field::VlanEthType);
        let inner_tag = exact(Field::CvlanTpid).or(behind_outer.filter(|next| is_vlan(*next)));
        let mut tags: Vec<u16> = outer_tag.into_iter().chain(inner_tag.filter(|_| outer_tag.is_some())).collect();
        let untagged = outermost.is_some_and(|outermost| !is_vlan(outermost));
        if tags.is_empty() && !untagged {
            tags = any.tags;
        } else if tags.len() == 1 && behind_outer.is_none() && random.chance(20) {
            tags.push(some_tag(random));
        } else if tags.len() == 2 && exact(Field::CvlanEthType).is_none() && random.chance(15) {
            tags.extend((0..1 + random.below(2)).map(|_| some_tag(random)));
        }
        let last = exact(Field::CvlanEthType).or(behind_outer).filter(|next| !is_vlan(*next));
        let ethertype = exact(Field::EthType).or(last).or(outermost.filter(|_| untagged)).unwrap_or(any.ethertype);
        let ip_protocol = matches.exact(Field::IpProto).map(|number| number as u8);
        Shape { tags, ethertype, ip_protocol: ip_protocol.unwrap_or_else(|| some_protocol(random, ethertype)) }
    }

    /// The EtherType that tc compares with the protocol of a priority.
    pub(super) fn outermost(&self) -> u16 {
        self.tags.first().copied().unwrap_or(self.ethertype)
    }

    pub(super) fn is_ip(&self) -> bool {
        matches!(self.ethertype, ethertype::IPV4 | ethertype::IPV6)
    }

    pub(super) fn is_arp(&self) -> bool {
        matches!(self.ethertype, ethertype::ARP | ethertype::RARP)
    }

    pub(super) fn has_ports(&self) -> bool {
        self.is_ip() && matches!(self.ip_protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
    }

    pub(super) fn is_icmp(&self) -> bool {
        (self.ethertype, self.ip_protocol) == (ethertype::IPV4, protocol::ICMP)
            || (self.ethertype, self.ip_protocol) == (ethertype::IPV6, protocol::ICMPV6)
    }

    /// The fields of the frame itself that a frame of this shape has.
    pub(super) fn fields(&self) -> Vec<Field> {
        use Field as F;
        let when = |is: bool, fields: &[F]| if is { fields.to_vec() } else { Vec::new() };
        let is_tcp = self.has_ports() && self.ip_protocol == protocol::TCP;
        [
            vec![F::EthDst, F::EthSrc, F::EthType],
            when(!self.tags.is_empty(), &[F::VlanTpid, F::VlanId, F::VlanPrio, F::VlanEthType]),
            when(self.tags.len() > 1, &[F::CvlanTpid, F::CvlanId, F::CvlanPrio, F::CvlanEthType]),
            when(self.is_arp(), &[F::ArpOp, F::ArpSip, F::ArpTip, F::ArpSha, F::ArpTha]),
            when(self.ethertype == ethertype::IPV4, &[F::Ip4Src, F::Ip4Dst]),
            when(self.ethertype == ethertype::IPV6, &[F::Ip6Src, F::Ip6Dst]),
            when(self.is_ip(), &[F::IpProto, F::IpTos, F::IpTtl, F::IpFlags]),
            when(self.has_ports(), &[F::SrcPort, F::DstPort]),
            when(is_tcp, &[F::TcpFlags]),
            when(self.is_icmp(), &[F::IcmpType, F::IcmpCode]),
        ]
        .concat()
    }

    /// The key of a frame of this shape, out of a tunnel and with a connection, at no port.
    pub(super) fn key(&self, random: &mut Random) -> Key {
        let mut key = Key::default();
        let mut fields = self.fields();
        key.set(Field::IpFlags, if fields.contains(&Field::IpFlags) { some_fragment(random) } else { 0 });
        if key.has(Field::IpFlags) {
            fields.retain(|field| !(Field::SrcPort..=Field::IcmpCode).contains(field));
        }
        let of_outside = Field::ALL.iter().filter(|field| **field >= Field::EncKeyId);
        for field in fields.iter().chain(of_outside).filter(|field| **field != Field::IpFlags) {
            key.set_bytes(*field, &value(*field, random));
        }
        self.set_types(&mut key);
        set_versions(&mut key, self.ethertype, random);
        key
    }

    /// Sets the fields that the shape says.
    fn set_types(&self, key: &mut Key) {
        let after = |place: usize| self.tags.get(place).copied().unwrap_or(self.ethertype);
        key.set(Field::EthType, self.ethertype);
        let fields = [(Field::VlanTpid, Field::VlanEthType), (Field::CvlanTpid, Field::CvlanEthType)];
        for (place, (tpid, next)) in fields.into_iter().enumerate().take(self.tags.len()) {
            key.set(tpid, self.tags[place]);
            key.set(next, after(place + 1));
        }
        if self.is_ip() {
            key.set(Field::IpProto, self.ip_protocol);
        }
    }
}

/// Sets the versions of IP, and leaves the tunnel only the addresses of one.
fn set_versions(key: &mut Key, ethertype: u16, random: &mut Random) {
    match ethertype {
        ethertype::IPV4 => key.set(Field::AddrType, 4u8),
        ethertype::IPV6 => key.set(Field::AddrType, 6u8),
        _ => {}
    }
    let (version, others) = match random.chance(60) {
        true => (4u8, [Field::EncIp6Src, Field::EncIp6Dst]),
        false => (6u8, [Field::EncIp4Src, Field::EncIp4Dst]),
    };
    key.set(Field::EncAddrType, version);
    others.into_iter().for_each(|field| key.set_bytes(field, &[]));
}

fn some_tag(random: &mut Random) -> u16 {
    random.one([ethertype::VLAN, ethertype::VLAN, ethertype::QINQ])
}

fn some_tags(random: &mut Random, count: usize) -> Vec<u16> {
    (0..count).map(|_| some_tag(random)).collect()
}

fn some_protocol(random: &mut Random, ethertype: u16) -> u8 {
    let icmp = if ethertype == ethertype::IPV6 { protocol::ICMPV6 } else { protocol::ICMP };
    match random.below(20) {
        0..8 => protocol::TCP,
        8..14 => protocol::UDP,
        14..17 => icmp,
        17 => protocol::SCTP,
        18 => protocol::GRE,
        _ => random.one([50, 89, protocol::ICMP, protocol::ICMPV6, 255]),
    }
}

fn some_fragment(random: &mut Random) -> u8 {
    match random.below(20) {
        0 => Field::FRAG,
        1 => Field::FRAG | Field::FIRST_FRAG,
        _ => 0,
    }
}

/// A MAC address of a few.
pub(super) fn some_mac(random: &mut Random) -> [u8; 6] {
    match random.below(20) {
        0 => [0xff; 6],
        1 => [0x01, 0x00, 0x5e, 0, 0, 1],
        _ => [0x02, 0, 0, 0, 0, 1 + random.below(4) as u8],
    }
}

/// An IPv4 address of a few.
pub(super) fn some_ip4(random: &mut Random) -> [u8; 4] {
    match random.below(30) {
        0 => [224, 0, 0, 1],
        _ => [10, 0, random.below(2) as u8, 1 + random.below(4) as u8],
    }
}

/// An IPv6 address of a few.
pub(super) fn some_ip6(random: &mut Random) -> [u8; 16] {
    let mut address = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    (address[7], address[15]) = (random.below(2) as u8, 1 + random.below(4) as u8);
    address
}

/// A port of a few.
pub(super) fn some_port(random: &mut Random) -> u16 {
    match random.below(30) {
        0 => random.one([0, 1, 0x8000, 0xffff]),
        1 => random.number() as u16,
        _ => random.one([53, 80, 443, 1000, 1001, 1002]),
    }
}

/// A zone of a few.
pub(super) fn some_zone(random: &mut Random) -> u16 {
    random.one([0, 0, 1, 2])
}

/// A mark of a few.
pub(super) fn some_mark(random: &mut Random) -> u32 {
    random.one([0, 0, 1, 5, 0xff, 0x8000_0000])
}

/// A label of a few.
pub(super) fn some_label(random: &mut Random) -> u128 {
    random.one([0, 0, 7, 1 << 127])
}

/// Geneve options as they stand in a frame: a class, a type, a length, and data.
pub(super) fn some_options(random: &mut Random) -> Vec<u8> {
    let option = |random: &mut Random| {
        let words = 1 + random.below(2);
        let head = [0x01, random.one([0x02, 0x03]), random.one([0x80, 0x01]), words as u8];
        [&head[..], &(0..words * 4).map(|_| random.below(2) as u8).collect::<Vec<_>>()].concat()
    };
    (0..random.one([0, 1, 1, 1, 1, 1, 1, 2, 2, 2])).flat_map(|_| option(random)).collect()
}

/// The state of a connection as frames have it.
fn some_ct_state(random: &mut Random) -> u8 {
    const TRK: u8 = Field::CT_TRACKED;
    random.one([
        TRK | Field::CT_NEW,
        TRK | Field::CT_NEW,
        TRK | Field::CT_NEW,
        TRK | Field::CT_ESTABLISHED,
        TRK | Field::CT_ESTABLISHED | Field::CT_REPLY,
        TRK | Field::CT_RELATED,
        TRK | Field::CT_INVALID,
    ])
}

/// A value for a field.
fn value(field: Field, random: &mut Random) -> Vec<u8> {
    use Field as F;
    match field {
        F::EthDst | F::EthSrc | F::ArpSha | F::ArpTha => some_mac(random).to_vec(),
        F::VlanId | F::CvlanId => (random.one([1, 2, 3, 4, 4095, 0]) as u16).to_be_bytes().to_vec(),
        F::VlanPrio | F::CvlanPrio => vec![random.below(8) as u8],
        F::ArpOp => vec![1 + random.below(2) as u8],
        F::ArpSip | F::ArpTip | F::Ip4Src | F::Ip4Dst | F::EncIp4Src | F::EncIp4Dst => some_ip4(random).to_vec(),
        F::Ip6Src | F::Ip6Dst | F::EncIp6Src | F::EncIp6Dst => some_ip6(random).to_vec(),
        F::IpTos | F::EncTos => vec![random.one([0, 0, 1, 2, 3, 0x10, 0xb8])],
        F::IpTtl | F::EncTtl => vec![random.one([64, 64, 64, 255, 2, 1, 0])],
        F::SrcPort | F::DstPort => some_port(random).to_be_bytes().to_vec(),
        F::TcpFlags => {
            (random.one([0x02, 0x02, 0x12, 0x10, 0x18, 0x11, 0x04, 0x29, 0x100, 0xfff]) as u16).to_be_bytes().to_vec()
        }
        F::IcmpType => vec![random.one([8, 8, 0, 128, 128, 129, 3, 11, 1, 135, 13])],
        F::IcmpCode => vec![random.one([0, 0, 1, 4])],
        F::EncKeyId => (random.one([0, 5, 77, 0x00ff_ffff]) as u32).to_be_bytes().to_vec(),
        F::EncSrcPort => (random.one([0x8000, 50_000]) as u16).to_be_bytes().to_vec(),
        F::CtState => vec![some_ct_state(random)],
        F::CtZone => some_zone(random).to_be_bytes().to_vec(),
        F::CtMark => some_mark(random).to_be_bytes().to_vec(),
        F::CtLabel => some_label(random).to_be_bytes().to_vec(),
        // The others follow from the shape, the device, the port or the options.
        _ => Vec::new(),
    }
}
