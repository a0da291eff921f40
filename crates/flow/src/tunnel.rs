//! Tunnels: VXLAN, Geneve and GRE over IPv4 and IPv6.

use std::fmt;
use std::net::IpAddr;

use crate::checksum;
use crate::key::{Field, Key, Mac};
use crate::parse::{ETH_HLEN, Fragment, Network, be16, be32, dissect, ethertype, protocol};

/// A kind of tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum TunnelKind {
    /// VXLAN (RFC 7348).
    Vxlan,
    /// Geneve (RFC 8926).
    Geneve,
    /// GRE with Ethernet inside, and a key if there is an identifier (RFC 2890).
    Gre,
}

/// A tunnel device that takes every identifier, as Open vSwitch has one for each kind and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TunnelDevice {
    /// The kind.
    pub kind: TunnelKind,
    /// The port of UDP at which it receives; 0 for GRE.
    pub udp_port: u16,
}

impl fmt::Display for TunnelDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TunnelKind::Vxlan => write!(f, "vxlan at {}", self.udp_port),
            TunnelKind::Geneve => write!(f, "geneve at {}", self.udp_port),
            TunnelKind::Gre => f.write_str("gre"),
        }
    }
}

/// How a frame is encapsulated.
///
/// The outer header is fixed, as in mlx5 (`en/tc_tun.c`): the congestion bits of the inner packet are not copied, there
/// is no checksum of UDP, and IPv4 may be fragmented.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Encap {
    /// The kind.
    pub kind: TunnelKind,
    /// The VNI, 24 bits, or the key of GRE. Only GRE can be without.
    pub id: Option<u32>,
    /// The outer source address. Unspecified: the [neighbour's](Neighbour::from).
    pub src: IpAddr,
    /// The outer destination address, of the same version.
    pub dst: IpAddr,
    /// The destination port of UDP; 0 for GRE.
    pub dst_port: u16,
    /// The outer type of service or traffic class.
    pub tos: u8,
    /// The outer time to live or hop limit.
    pub ttl: u8,
    /// The Geneve options as they stand in a frame: a multiple of 4 bytes, at most 252.
    pub options: Vec<u8>,
    /// The outer MAC addresses. Without them the neighbour is not known yet, and a frame goes to the representor.
    pub neighbour: Option<Neighbour>,
}

/// The MAC addresses of the next hop and of the card's uplink, and the address from which packets go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Neighbour {
    /// The next hop's.
    pub dst: Mac,
    /// The uplink's.
    pub src: Mac,
    /// The outer source address of a tunnel that names none, as Open vSwitch's: the one of the route to its end.
    pub from: Option<IpAddr>,
}

impl Encap {
    /// The outer source address: the tunnel's own, or the one of the route to its end.
    pub fn source(&self) -> IpAddr {
        let routed = self.neighbour.and_then(|neighbour| neighbour.from).filter(|_| self.src.is_unspecified());
        routed.filter(|from| from.is_ipv4() == self.src.is_ipv4()).unwrap_or(self.src)
    }
}

/// What is known of the tunnel out of which a frame came.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TunnelInfo {
    id: u32,
    outer: Key,
    options: Vec<u8>,
}

impl TunnelInfo {
    /// Sets the fields `Enc…` of a key (`skb_flow_dissect_tunnel_info`).
    pub(crate) fn describe(&self, key: &mut Key) {
        let outer = &self.outer;
        key.set(Field::EncKeyId, self.id);
        key.set(Field::EncOptsLen, self.options.len() as u8);
        key.set_bytes(Field::EncOpts, &self.options);
        for (to, from) in [
            (Field::EncAddrType, Field::AddrType),
            (Field::EncIp4Src, Field::Ip4Src),
            (Field::EncIp4Dst, Field::Ip4Dst),
            (Field::EncIp6Src, Field::Ip6Src),
            (Field::EncIp6Dst, Field::Ip6Dst),
            (Field::EncSrcPort, Field::SrcPort),
            (Field::EncDstPort, Field::DstPort),
            (Field::EncTos, Field::IpTos),
            (Field::EncTtl, Field::IpTtl),
        ] {
            key.set_bytes(to, outer.get(from));
        }
    }
}

/// The frame inside of `frame`, if that is one that the device takes.
///
/// The inner congestion bits become what RFC 6040 says. A frame of which it says that it must be dropped is not taken,
/// so that it reaches the representor, behind which the kernel's device drops it. A frame with a VLAN tag is not taken: it
/// is for a VLAN device, not for the stack of the uplink.
pub(crate) fn decapsulate(device: TunnelDevice, frame: &[u8]) -> Option<(Vec<u8>, TunnelInfo)> {
    let dissected = dissect(frame);
    let network = dissected.network.filter(|network| network.fragment == Fragment::Whole && dissected.tags == 0)?;
    let start = network.transport()?;
    let header = frame.get(start..network.end)?;
    let (id, options, inner) = match device.kind {
        TunnelKind::Gre if network.protocol == protocol::GRE => gre(header)?,
        TunnelKind::Vxlan if is_udp_to(&network, header, device.udp_port) => vxlan(header.get(8..)?)?,
        TunnelKind::Geneve if is_udp_to(&network, header, device.udp_port) => geneve(header.get(8..)?)?,
        _ => return None,
    };
    let mut inner = inner.to_vec();
    let outer_tos = dissected.key.number(Field::IpTos) as u8;
    let options = options.to_vec();
    if inner.len() < ETH_HLEN || !merge_congestion(outer_tos, &mut inner) {
        return None;
    }
    Some((inner, TunnelInfo { id, outer: dissected.key, options }))
}

fn is_udp_to(network: &Network, header: &[u8], port: u16) -> bool {
    network.protocol == protocol::UDP && be16(header, 2) == Some(port)
}

/// The VNI and what is inside (`vxlan_rcv`): the flag I, and zeros in every reserved bit.
fn vxlan(header: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (flags, vni) = (be32(header, 0)?, be32(header, 4)?);
    (flags == 0x0800_0000 && vni & 0xff == 0).then_some((vni >> 8, &[], &header[8..]))
}

/// The VNI, the options and what is inside (`geneve_udp_encap_recv`): version 0 with Ethernet.
fn geneve(header: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (first, vni) = (be32(header, 0)?, be32(header, 4)?);
    let options = (first >> 24 & 0x3f) as usize * 4;
    let is_ours = first >> 30 == 0 && first as u16 == ethertype::TRANSPARENT_ETHERNET;
    is_ours.then_some((vni >> 8, header.get(8..8 + options)?, header.get(8 + options..)?))
}

/// The key, or 0, and what is inside (`gre_parse_header`): version 0 without routing, with Ethernet.
fn gre(header: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    const CHECKSUM: u16 = 0x8000;
    const ROUTING: u16 = 0x4000;
    const KEY: u16 = 0x2000;
    const SEQUENCE: u16 = 0x1000;
    const VERSION: u16 = 0x0007;
    let (flags, inner) = (be16(header, 0)?, be16(header, 2)?);
    if flags & (ROUTING | VERSION) != 0 || inner != ethertype::TRANSPARENT_ETHERNET {
        return None;
    }
    let mut at = if flags & CHECKSUM != 0 { 8 } else { 4 };
    let mut key = 0;
    if flags & KEY != 0 {
        key = be32(header, at)?;
        at += 4;
    }
    at += if flags & SEQUENCE != 0 { 4 } else { 0 };
    Some((key, &[], header.get(at..)?))
}

/// Takes the outer congestion bits over (`INET_ECN_decapsulate`). Returns whether the frame may go on.
fn merge_congestion(outer_tos: u8, inner: &mut [u8]) -> bool {
    const CONGESTION: u8 = 3;
    const ECT_1: u8 = 1;
    let dissected = dissect(inner);
    let Some(network) = dissected.network else { return true };
    let tos = dissected.key.number(Field::IpTos) as u8;
    let merged = match (outer_tos & CONGESTION, tos & CONGESTION) {
        (CONGESTION, 0) => return false,
        (_, 0) | (_, CONGESTION) => return true,
        (CONGESTION, _) => tos | CONGESTION,
        (ECT_1, _) => tos & !CONGESTION | ECT_1,
        _ => return true,
    };
    let start = network.offset;
    match network.version {
        4 => checksum::write(inner, start, start + 1, &[merged], &[checksum::of_header(&network)]),
        _ => {
            inner[start] = inner[start] & 0xf0 | merged >> 4;
            inner[start + 1] = inner[start + 1] & 0x0f | merged << 4;
        }
    }
    true
}

/// The frame with the tunnel's headers in front, or none if it would be too long for them.
pub(crate) fn encapsulate(encap: &Encap, neighbour: Neighbour, inner: &[u8]) -> Option<Vec<u8>> {
    let mut payload = transport_header(encap, inner)?;
    payload.extend(tunnel_header(encap));
    payload.extend(inner);
    let mut frame = [neighbour.dst, neighbour.src].concat();
    let protocol = if encap.kind == TunnelKind::Gre { protocol::GRE } else { protocol::UDP };
    match (encap.source(), encap.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let length = u16::try_from(payload.len() + 20).ok()?.to_be_bytes();
            frame.extend(ethertype::IPV4.to_be_bytes());
            frame.extend([0x45, encap.tos, length[0], length[1], 0, 0, 0, 0, encap.ttl, protocol, 0, 0]);
            frame.extend([src.octets(), dst.octets()].concat());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = u16::try_from(payload.len()).ok()?.to_be_bytes();
            frame.extend(ethertype::IPV6.to_be_bytes());
            frame.extend([0x60 | encap.tos >> 4, encap.tos << 4, 0, 0, length[0], length[1], protocol, encap.ttl]);
            frame.extend([src.octets(), dst.octets()].concat());
        }
        _ => return None,
    }
    frame.extend(payload);
    if let Some(network) = dissect(&frame).network {
        checksum::compute_header(&mut frame, &network);
    }
    Some(frame)
}

/// The header of UDP without a checksum, or nothing for GRE.
fn transport_header(encap: &Encap, inner: &[u8]) -> Option<Vec<u8>> {
    if encap.kind == TunnelKind::Gre {
        return Some(Vec::new());
    }
    let length = u16::try_from(16 + encap.options.len() + inner.len()).ok()?;
    let words = [source_port(inner), encap.dst_port, length, 0];
    Some(words.into_iter().flat_map(u16::to_be_bytes).collect())
}

/// A source port that is the same for all frames of a flow (`udp_flow_src_port`; mlx5 also chooses it by a hash).
fn source_port(inner: &[u8]) -> u16 {
    let key = dissect(inner).key;
    let hash =
        key.as_bytes().iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619));
    0x8000 | (hash >> 16 ^ hash) as u16
}

fn tunnel_header(encap: &Encap) -> Vec<u8> {
    let id = encap.id.unwrap_or(0);
    let vni = (id << 8).to_be_bytes();
    match encap.kind {
        TunnelKind::Vxlan => [[8, 0, 0, 0], vni].concat(),
        TunnelKind::Geneve => {
            let length = (encap.options.len() / 4) as u8;
            let mut header = [[length, 0, 0x65, 0x58], vni].concat();
            header.extend(&encap.options);
            header
        }
        TunnelKind::Gre => match encap.id {
            Some(key) => [[0x20, 0, 0x65, 0x58], key.to_be_bytes()].concat(),
            None => vec![0, 0, 0x65, 0x58],
        },
    }
}
