//! Bytes made into headers.

use crate::parse::{be16, be32, ethertype as types, is_vlan, protocol};

use super::build::build;
use super::{GENEVE_PORT, Ip, Layer, Tcp, VXLAN_PORT};

/// The headers of which [`build`] makes these bytes, if there are such.
pub(super) fn dissected(frame: &[u8]) -> Option<Vec<Layer>> {
    let mut layers = Vec::new();
    Reader { bytes: frame, layers: &mut layers }.eth(0, frame.len())?;
    if build(&layers).as_deref() != Some(frame) {
        return None;
    }
    for index in 0..layers.len() {
        for leave_out in LEAVE_OUT {
            let before = layers[index].clone();
            leave_out(&mut layers[index]);
            if layers[index] != before && build(&layers).as_deref() != Some(frame) {
                layers[index] = before;
            }
        }
    }
    Some(layers)
}

/// What need not be said if it follows from the rest.
const LEAVE_OUT: [fn(&mut Layer); 3] = [
    |layer| match layer {
        Layer::Ip(Ip { length, .. }) | Layer::Ip6 { length, .. } | Layer::Udp { length, .. } => *length = None,
        _ => {}
    },
    |layer| match layer {
        Layer::Ip(Ip { check, .. }) | Layer::Tcp(Tcp { check, .. }) => *check = None,
        Layer::Udp { check, .. } | Layer::Icmp { check, .. } => *check = None,
        _ => {}
    },
    |layer| match layer {
        Layer::Eth { kind, .. } | Layer::Vlan { kind, .. } => *kind = None,
        Layer::Ip(Ip { protocol: next, .. }) => *next = None,
        Layer::Ip6 { next, .. } | Layer::Extension { next, .. } | Layer::Fragment { next, .. } => *next = None,
        _ => {}
    },
];

/// Reads headers out of a frame, with everything that they say.
struct Reader<'f, 'l> {
    bytes: &'f [u8],
    layers: &'l mut Vec<Layer>,
}

impl Reader<'_, '_> {
    fn array<const SIZE: usize>(&self, at: usize) -> Option<[u8; SIZE]> {
        self.bytes.get(at..at + SIZE)?.try_into().ok()
    }

    /// What is no header that is known, up to `end`.
    fn data(&mut self, at: usize, end: usize) {
        if at < end {
            self.layers.push(Layer::Data(self.bytes[at..end].to_vec()));
        }
    }

    /// What stands between the end of a packet and that of its frame. That of a frame and of the one inside is one.
    fn pad(&mut self, at: usize, end: usize) {
        let bytes = &self.bytes[at.min(end)..end];
        match self.layers.last_mut() {
            _ if bytes.is_empty() => {}
            Some(Layer::Pad(before)) => before.extend(bytes),
            _ => self.layers.push(Layer::Pad(bytes.to_vec())),
        }
    }

    fn eth(&mut self, at: usize, end: usize) -> Option<()> {
        let (dst, src) = (self.array(at)?, self.array(at + 6)?);
        let mut kind = be16(&self.bytes[..end], at + 12)?;
        self.layers.push(Layer::Eth { dst, src, kind: Some(kind) });
        let mut at = at + 14;
        while is_vlan(kind) && at + 4 <= end {
            let (tci, next) = (be16(self.bytes, at)?, be16(self.bytes, at + 2)?);
            let (priority, discard) = ((tci >> 13) as u8, tci & 0x1000 != 0);
            self.layers.push(Layer::Vlan { id: tci & 0x0fff, priority, discard, tpid: kind, kind: Some(next) });
            (kind, at) = (next, at + 4);
        }
        let packet_end = match kind {
            types::ARP => self.arp(at, end),
            types::IPV4 => self.ip(at, end),
            types::IPV6 => self.ip6(at, end),
            _ => None,
        };
        match packet_end {
            Some(packet_end) => self.pad(packet_end, end),
            None => self.data(at, end),
        }
        Some(())
    }

    /// The end of the packet, if it can be read.
    fn arp(&mut self, at: usize, end: usize) -> Option<usize> {
        if self.array(at)? != [0, 1, 8, 0, 6, 4] || at + 28 > end {
            return None;
        }
        let (sip, tip): ([u8; 4], [u8; 4]) = (self.array(at + 14)?, self.array(at + 24)?);
        self.layers.push(Layer::Arp {
            operation: be16(self.bytes, at + 6)?,
            sha: self.array(at + 8)?,
            sip: sip.into(),
            tha: self.array(at + 18)?,
            tip: tip.into(),
        });
        Some(at + 28)
    }

    fn ip(&mut self, at: usize, end: usize) -> Option<usize> {
        let head: [u8; 20] = self.array(at)?;
        let header_end = at + usize::from(head[0] & 0x0f) * 4;
        if head[0] >> 4 != 4 || header_end < at + 20 || header_end > end {
            return None;
        }
        let word = |place: usize| u16::from_be_bytes([head[place], head[place + 1]]);
        let (src, dst): ([u8; 4], [u8; 4]) = (self.array(at + 12)?, self.array(at + 16)?);
        self.layers.push(Layer::Ip(Ip {
            src: src.into(),
            dst: dst.into(),
            tos: head[1],
            id: word(4),
            fragment: word(6),
            ttl: head[8],
            options: self.bytes[at + 20..header_end].to_vec(),
            protocol: Some(head[9]),
            length: Some(word(2)),
            check: Some(word(10)),
        }));
        let packet_end = Some(at + usize::from(word(2))).filter(|own| (header_end..=end).contains(own)).unwrap_or(end);
        match word(6) & 0x1fff {
            0 => self.inside_ip(head[9], header_end, packet_end, 4),
            _ => self.data(header_end, packet_end),
        }
        Some(packet_end)
    }

    fn ip6(&mut self, at: usize, end: usize) -> Option<usize> {
        let head: [u8; 40] = self.array(at)?;
        let first = be32(&head, 0)?;
        if first >> 28 != 6 || at + 40 > end {
            return None;
        }
        let length = be16(&head, 4)?;
        let (src, dst): ([u8; 16], [u8; 16]) = (self.array(at + 8)?, self.array(at + 24)?);
        self.layers.push(Layer::Ip6 {
            src: src.into(),
            dst: dst.into(),
            class: (first >> 20) as u8,
            label: first & 0x000f_ffff,
            hops: head[7],
            next: Some(head[6]),
            length: Some(length),
        });
        let packet_end = Some(at + 40 + usize::from(length)).filter(|own| *own <= end).unwrap_or(end);
        let (next, at) = self.extensions(head[6], at + 40, packet_end);
        match next {
            Some(next) => self.inside_ip(next, at, packet_end, 6),
            None => self.data(at, packet_end),
        }
        Some(packet_end)
    }

    /// The protocol behind the extension headers and where it begins; without one, what is there is no header.
    fn extensions(&mut self, mut next: u8, mut at: usize, end: usize) -> (Option<u8>, usize) {
        loop {
            match next {
                protocol::HOP_OPTIONS | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                    let Some([following, words]) = self.array(at) else { return (None, at) };
                    let header_end = at + (usize::from(words) + 1) * 8;
                    if header_end > end {
                        return (None, at);
                    }
                    let body = self.bytes[at + 2..header_end].to_vec();
                    self.layers.push(Layer::Extension { kind: next, body, next: Some(following) });
                    (next, at) = (following, header_end);
                }
                protocol::FRAGMENT => {
                    let Some(head) = self.array::<8>(at).filter(|head| at + 8 <= end && head[1] == 0) else {
                        return (None, at);
                    };
                    let place = u16::from_be_bytes([head[2], head[3]]);
                    if place & 6 != 0 {
                        return (None, at);
                    }
                    let (offset, more) = (place >> 3, place & 1 != 0);
                    let id = be32(&head, 4).unwrap_or(0);
                    self.layers.push(Layer::Fragment { offset, more, id, next: Some(head[0]) });
                    at += 8;
                    return (Some(head[0]).filter(|_| offset == 0), at);
                }
                next => return (Some(next), at),
            }
        }
    }

    /// The header of a transport, and what stands behind it.
    fn inside_ip(&mut self, own: u8, at: usize, end: usize, version: u8) {
        let read = match (own, version) {
            (protocol::TCP, _) => self.tcp(at, end),
            (protocol::UDP, _) => self.udp(at, end),
            (protocol::SCTP, _) => self.sctp(at, end),
            (protocol::ICMP, 4) | (protocol::ICMPV6, 6) => self.icmp(at, end, version == 6),
            (protocol::GRE, _) => self.gre(at, end),
            _ => None,
        };
        match read {
            // A tunnel has read its frame to the end.
            Some(data) if data > end => {}
            Some(data) => self.data(data, end),
            None => self.data(at, end),
        }
    }

    fn tcp(&mut self, at: usize, end: usize) -> Option<usize> {
        let head: [u8; 20] = self.array(at)?;
        let header_end = at + usize::from(head[12] >> 4) * 4;
        if header_end < at + 20 || header_end > end {
            return None;
        }
        self.layers.push(Layer::Tcp(Tcp {
            src: be16(&head, 0)?,
            dst: be16(&head, 2)?,
            sequence: be32(&head, 4)?,
            acknowledged: be32(&head, 8)?,
            flags: be16(&head, 12)? & 0x0fff,
            window: be16(&head, 14)?,
            check: be16(&head, 16),
            urgent: be16(&head, 18)?,
            options: self.bytes[at + 20..header_end].to_vec(),
        }));
        Some(header_end)
    }

    fn udp(&mut self, at: usize, end: usize) -> Option<usize> {
        let head: [u8; 8] = self.array(at).filter(|_| at + 8 <= end)?;
        let (src, dst, length, check) = (be16(&head, 0)?, be16(&head, 2)?, be16(&head, 4), be16(&head, 6));
        self.layers.push(Layer::Udp { src, dst: Some(dst), length, check });
        let inside = match dst {
            VXLAN_PORT => self.vxlan(at + 8, end),
            GENEVE_PORT => self.geneve(at + 8, end),
            _ => None,
        };
        Some(inside.unwrap_or(at + 8))
    }

    fn vxlan(&mut self, at: usize, end: usize) -> Option<usize> {
        let (flags, id) = (be32(self.bytes, at)?, be32(self.bytes, at + 4)?);
        (flags == 0x0800_0000 && id & 0xff == 0).then_some(())?;
        self.inside_tunnel(Layer::Vxlan { id: id >> 8 }, at + 8, end)
    }

    fn geneve(&mut self, at: usize, end: usize) -> Option<usize> {
        let (first, id) = (be32(self.bytes, at)?, be32(self.bytes, at + 4)?);
        let inside = at + 8 + (first >> 24 & 0x3f) as usize * 4;
        (first & 0xc0ff_ffff == 0x6558 && id & 0xff == 0).then_some(())?;
        let options = self.bytes.get(at + 8..inside)?.to_vec();
        self.inside_tunnel(Layer::Geneve { id: id >> 8, options }, inside, end)
    }

    fn gre(&mut self, at: usize, end: usize) -> Option<usize> {
        match be32(self.bytes, at)? {
            0x0000_6558 => self.inside_tunnel(Layer::Gre { key: None }, at + 4, end),
            0x2000_6558 => self.inside_tunnel(Layer::Gre { key: be32(self.bytes, at + 4) }, at + 8, end),
            _ => None,
        }
    }

    /// A frame in a tunnel, if one begins at `at`. What is returned is behind the end: nothing more is to be read.
    fn inside_tunnel(&mut self, layer: Layer, at: usize, end: usize) -> Option<usize> {
        let before = self.layers.len();
        self.layers.push(layer);
        if at + 14 > end || self.eth(at, end).is_none() {
            self.layers.truncate(before);
            return None;
        }
        Some(end + 1)
    }

    fn sctp(&mut self, at: usize, end: usize) -> Option<usize> {
        let head: [u8; 12] = self.array(at).filter(|_| at + 12 <= end)?;
        let (src, dst, tag, check) = (be16(&head, 0)?, be16(&head, 2)?, be32(&head, 4)?, be32(&head, 8)?);
        self.layers.push(Layer::Sctp { src, dst, tag, check });
        Some(at + 12)
    }

    fn icmp(&mut self, at: usize, end: usize, v6: bool) -> Option<usize> {
        let head: [u8; 8] = self.array(at).filter(|_| at + 8 <= end)?;
        let (id, sequence) = (be16(&head, 4)?, be16(&head, 6)?);
        self.layers.push(Layer::Icmp { v6, kind: head[0], code: head[1], id, sequence, check: be16(&head, 2) });
        Some(at + 8)
    }
}
