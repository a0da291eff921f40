//! The addresses and ports by which a connection is known.

use std::net::IpAddr;

use super::port;
use crate::parse::{Dissected, Network, be16, protocol};

/// What the frames of one direction of a connection have in common (`struct nf_conntrack_tuple`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The source address.
    pub src: IpAddr,
    /// The destination address.
    pub dst: IpAddr,
    /// The protocol of IP.
    pub protocol: u8,
    /// The source port; the identifier of ICMP; 0 for protocols without.
    pub src_part: u16,
    /// The destination port; the type and the code of ICMP; 0 for protocols without.
    pub dst_part: u16,
}

/// Types of ICMP and ICMPv6 that ask, and those that answer (`invmap` in `nf_conntrack_proto_icmp.c` and `…icmpv6.c`).
const QUESTIONS: [(u8, u8); 4] = [(8, 0), (13, 14), (15, 16), (17, 18)];
const QUESTIONS_V6: [(u8, u8); 2] = [(128, 129), (139, 140)];

fn questions(protocol: u8) -> &'static [(u8, u8)] {
    if protocol == protocol::ICMP { &QUESTIONS } else { &QUESTIONS_V6 }
}

impl Tuple {
    /// Whether the protocol is ICMP or ICMPv6.
    pub(super) fn is_icmp(&self) -> bool {
        matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    /// The tuple of an answer.
    pub fn inverse(&self) -> Tuple {
        let (src_part, dst_part) = match self.is_icmp() {
            true => (self.src_part, self.inverse_type()),
            false => (self.dst_part, self.src_part),
        };
        Tuple { src: self.dst, dst: self.src, protocol: self.protocol, src_part, dst_part }
    }

    fn inverse_type(&self) -> u16 {
        let [kind, code] = self.dst_part.to_be_bytes();
        let inverse = questions(self.protocol).iter().find_map(|(ask, answer)| match kind {
            kind if kind == *ask => Some(*answer),
            kind if kind == *answer => Some(*ask),
            _ => None,
        });
        u16::from_be_bytes([inverse.unwrap_or(kind), code])
    }

    /// Whether a connection can begin with such a frame: of ICMP only questions.
    pub(super) fn may_begin(&self) -> bool {
        let [kind, _] = self.dst_part.to_be_bytes();
        !self.is_icmp() || questions(self.protocol).iter().any(|(ask, _)| *ask == kind)
    }
}

/// The tuple of a frame that is no fragment, if all of it can be read.
pub(super) fn of_frame(frame: &[u8], dissected: &Dissected) -> Option<Tuple> {
    let network = dissected.network.as_ref()?;
    let (src, dst) = addresses(frame, network.offset, network.version)?;
    let end = network.end;
    of_packet(frame.get(..end)?, src, dst, network.protocol, network.payload, network.version)
}

fn addresses(frame: &[u8], offset: usize, version: u8) -> Option<(IpAddr, IpAddr)> {
    match version {
        4 => {
            let bytes: [u8; 8] = frame.get(offset + 12..offset + 20)?.try_into().ok()?;
            let [a, b, c, d, e, f, g, h] = bytes;
            Some(([a, b, c, d].into(), [e, f, g, h].into()))
        }
        _ => {
            let src: [u8; 16] = frame.get(offset + 8..offset + 24)?.try_into().ok()?;
            let dst: [u8; 16] = frame.get(offset + 24..offset + 40)?.try_into().ok()?;
            Some((src.into(), dst.into()))
        }
    }
}

fn of_packet(packet: &[u8], src: IpAddr, dst: IpAddr, protocol: u8, payload: usize, version: u8) -> Option<Tuple> {
    let (src_part, dst_part) = match (protocol, version) {
        (protocol::TCP | protocol::UDP | protocol::SCTP, _) => (port(packet, payload)?, port(packet, payload + 2)?),
        (protocol::ICMP, 4) | (protocol::ICMPV6, 6) => {
            packet.get(payload..payload + 8)?;
            (be16(packet, payload + 4)?, be16(packet, payload)?)
        }
        (protocol::ICMP | protocol::ICMPV6, _) => return None,
        _ => (0, 0),
    };
    Some(Tuple { src, dst, protocol, src_part, dst_part })
}

/// The tuple of the packet about which an ICMP error is, if the frame is one (`icmp_is_err`).
pub(super) fn of_icmp_error(frame: &[u8], dissected: &Dissected) -> Option<Tuple> {
    let network = dissected.network.as_ref()?;
    let kind = *frame.get(network.payload)?;
    let inside = network.payload + 8;
    match (network.protocol, kind) {
        (protocol::ICMP, 3 | 4 | 5 | 11 | 12) => inside_ipv4(frame, network, inside),
        (protocol::ICMPV6, 0..128) => inside_ipv6(frame, network, inside),
        _ => None,
    }
}

fn inside_ipv4(frame: &[u8], network: &Network, offset: usize) -> Option<Tuple> {
    let packet = frame.get(..network.end)?;
    let header = packet.get(offset..offset + 20)?;
    let (length, is_later) = (usize::from(header[0] & 0xf) * 4, be16(header, 6)? & 0x1fff != 0);
    if header[0] >> 4 != 4 || length < 20 || is_later {
        return None;
    }
    let (src, dst) = addresses(packet, offset, 4)?;
    of_packet(packet, src, dst, header[9], offset + length, 4)
}

fn inside_ipv6(frame: &[u8], network: &Network, offset: usize) -> Option<Tuple> {
    let packet = frame.get(..network.end)?;
    let header = packet.get(offset..offset + 40)?;
    let (src, dst) = addresses(packet, offset, 6)?;
    (header[0] >> 4 == 6).then(|| of_packet(packet, src, dst, header[6], offset + 40, 6))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn tuple(protocol: u8, src_part: u16, dst_part: u16) -> Tuple {
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1).into(), Ipv4Addr::new(10, 0, 0, 2).into());
        Tuple { src, dst, protocol, src_part, dst_part }
    }

    #[test]
    fn the_inverse_of_the_inverse_is_the_tuple() {
        for tuple in [tuple(6, 1, 2), tuple(1, 7, 0x0800), tuple(58, 7, 0x8000), tuple(47, 0, 0)] {
            assert_eq!(tuple.inverse().inverse(), tuple);
            assert_eq!(tuple.inverse().src, tuple.dst);
        }
        assert_eq!(tuple(1, 7, 0x0800).inverse().dst_part, 0x0000);
        assert_eq!(tuple(6, 1, 2).inverse().src_part, 2);
    }

    #[test]
    fn only_a_question_begins() {
        assert!(tuple(1, 7, 0x0800).may_begin() && !tuple(1, 7, 0x0000).may_begin());
        assert!(tuple(58, 7, 0x8000).may_begin() && !tuple(58, 7, 0x8700).may_begin());
    }
}
