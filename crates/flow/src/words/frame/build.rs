//! Headers made into bytes, with the lengths, checksums and types that follow from the rest.

use crate::checksum;
use crate::parse::{be16, ethertype as types, protocol};

use super::{GENEVE_PORT, Layer, MF, Tcp, VXLAN_PORT};

/// What stands for what is no header: an EtherType for experiments, and protocols for them and for nothing.
const OTHER_TYPE: u16 = 0x88b5;
const OTHER_PROTOCOL: u8 = 253;
const NO_PROTOCOL: u8 = 59;

impl Layer {
    /// The EtherType of what begins with it.
    fn ethertype(&self) -> u16 {
        match self {
            Layer::Vlan { tpid, .. } => *tpid,
            Layer::Arp { .. } => types::ARP,
            Layer::Ip(_) => types::IPV4,
            Layer::Ip6 { .. } => types::IPV6,
            _ => OTHER_TYPE,
        }
    }

    /// The protocol of IP of what begins with it.
    fn protocol(&self) -> u8 {
        match self {
            Layer::Ip(_) => 4,
            Layer::Ip6 { .. } => 41,
            Layer::Extension { kind, .. } => *kind,
            Layer::Fragment { .. } => protocol::FRAGMENT,
            Layer::Tcp(_) => protocol::TCP,
            Layer::Udp { .. } => protocol::UDP,
            Layer::Sctp { .. } => protocol::SCTP,
            Layer::Icmp { v6: false, .. } => protocol::ICMP,
            Layer::Icmp { v6: true, .. } => protocol::ICMPV6,
            Layer::Gre { .. } => protocol::GRE,
            _ => OTHER_PROTOCOL,
        }
    }
}

/// The bytes of a frame with these headers, unless a length does not fit into its field.
pub(super) fn build(layers: &[Layer]) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    let mut starts = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        starts.push(frame.len());
        frame.extend(header(layer, layers.get(index + 1)));
    }
    // The last frame ends before the padding; those around it have it inside.
    let padding = layers.last().map_or(0, |layer| if let Layer::Pad(bytes) = layer { bytes.len() } else { 0 });
    let mut end = frame.len() - padding;
    for (index, layer) in layers.iter().enumerate().rev() {
        complete(&mut frame[..end], starts[index], layer, &layers[..index], &starts)?;
        if matches!(layer, Layer::Eth { .. }) {
            end = frame.len();
        }
    }
    Some(frame)
}

/// A header without lengths and checksums that follow from the rest.
fn header(layer: &Layer, next: Option<&Layer>) -> Vec<u8> {
    let kind = |own: Option<u16>| own.unwrap_or_else(|| next.map_or(OTHER_TYPE, Layer::ethertype)).to_be_bytes();
    let next_protocol = |own: Option<u8>| own.unwrap_or_else(|| next.map_or(NO_PROTOCOL, Layer::protocol));
    let word = |own: Option<u16>| own.unwrap_or(0).to_be_bytes();
    match layer {
        Layer::Eth { dst, src, kind: own } => [&dst[..], src, &kind(*own)].concat(),
        Layer::Vlan { id, priority, discard, kind: own, .. } => {
            let tci = id | u16::from(*priority) << 13 | u16::from(*discard) << 12;
            [tci.to_be_bytes(), kind(*own)].concat()
        }
        Layer::Arp { operation, sha, sip, tha, tip } => {
            [&[0, 1, 8, 0, 6, 4], &operation.to_be_bytes()[..], sha, &sip.octets(), tha, &tip.octets()].concat()
        }
        Layer::Ip(ip) => {
            let first = [0x45 + (ip.options.len() / 4) as u8, ip.tos];
            let protocol = [ip.ttl, next_protocol(ip.protocol)];
            let head =
                [first, word(ip.length), ip.id.to_be_bytes(), ip.fragment.to_be_bytes(), protocol, word(ip.check)];
            [&head.concat()[..], &ip.src.octets(), &ip.dst.octets(), &ip.options].concat()
        }
        Layer::Ip6 { src, dst, class, label, hops, next, length } => {
            let first = (6 << 28 | u32::from(*class) << 20 | label).to_be_bytes();
            let [high, low] = word(*length);
            [&first[..], &[high, low, next_protocol(*next), *hops], &src.octets(), &dst.octets()].concat()
        }
        Layer::Extension { body, next, .. } => [&[next_protocol(*next), (body.len() / 8) as u8], &body[..]].concat(),
        Layer::Fragment { offset, more, id, next } => {
            let place = offset << 3 | u16::from(*more);
            [&[next_protocol(*next), 0], &place.to_be_bytes()[..], &id.to_be_bytes()].concat()
        }
        Layer::Tcp(tcp) => {
            let flags = tcp.flags | ((5 + tcp.options.len() / 4) as u16) << 12;
            let numbers = [tcp.sequence.to_be_bytes(), tcp.acknowledged.to_be_bytes()].concat();
            let rest = [flags, tcp.window, tcp.check.unwrap_or(0), tcp.urgent].map(u16::to_be_bytes).concat();
            [&[tcp.src, tcp.dst].map(u16::to_be_bytes).concat()[..], &numbers, &rest, &tcp.options].concat()
        }
        Layer::Udp { src, dst, length, check } => {
            let port = match next {
                Some(Layer::Vxlan { .. }) => VXLAN_PORT,
                Some(Layer::Geneve { .. }) => GENEVE_PORT,
                _ => 0,
            };
            let words = [*src, dst.unwrap_or(port), length.unwrap_or(0), check.unwrap_or(0)];
            words.map(u16::to_be_bytes).concat()
        }
        Layer::Sctp { src, dst, tag, check } => {
            [&[*src, *dst].map(u16::to_be_bytes).concat()[..], &tag.to_be_bytes(), &check.to_be_bytes()].concat()
        }
        Layer::Icmp { kind, code, id, sequence, check, .. } => {
            [[*kind, *code], word(*check), id.to_be_bytes(), sequence.to_be_bytes()].concat()
        }
        Layer::Vxlan { id } => [[8, 0, 0, 0], (id << 8).to_be_bytes()].concat(),
        Layer::Geneve { id, options } => {
            let head = [[(options.len() / 4) as u8, 0, 0x65, 0x58], (id << 8).to_be_bytes()].concat();
            [&head[..], options].concat()
        }
        Layer::Gre { key: None } => vec![0, 0, 0x65, 0x58],
        Layer::Gre { key: Some(key) } => [[0x20, 0, 0x65, 0x58], key.to_be_bytes()].concat(),
        Layer::Data(bytes) | Layer::Pad(bytes) => bytes.clone(),
    }
}

/// Puts the lengths and checksums that are not said into the header at `start` of what ends with `frame`.
fn complete(frame: &mut [u8], start: usize, layer: &Layer, before: &[Layer], starts: &[usize]) -> Option<()> {
    let size = frame.len().saturating_sub(start);
    let put = |frame: &mut [u8], at: usize, value: u16| frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    match layer {
        Layer::Ip(ip) => {
            if ip.length.is_none() {
                put(frame, start + 2, u16::try_from(size).ok()?);
            }
            if ip.check.is_none() {
                let value = checksum::of(&[&frame[start..start + 20 + ip.options.len()]]);
                put(frame, start + 10, value);
            }
        }
        Layer::Ip6 { length: None, .. } => put(frame, start + 4, u16::try_from(size - 40).ok()?),
        Layer::Udp { length, check, .. } => {
            if length.is_none() {
                put(frame, start + 4, u16::try_from(size).ok()?);
            }
            // A tunnel's UDP has no checksum, as in mlx5.
            if check.is_none() && !tunnel_follows(frame, start) {
                let value = transport_check(frame, start, protocol::UDP, before, starts);
                value.into_iter().for_each(|value| put(frame, start + 6, if value == 0 { 0xffff } else { value }));
            }
        }
        Layer::Tcp(Tcp { check: None, .. }) => {
            let value = transport_check(frame, start, protocol::TCP, before, starts);
            value.into_iter().for_each(|value| put(frame, start + 16, value));
        }
        Layer::Icmp { v6: true, check: None, .. } => {
            let value = transport_check(frame, start, protocol::ICMPV6, before, starts);
            value.into_iter().for_each(|value| put(frame, start + 2, value));
        }
        Layer::Icmp { v6: false, check: None, .. } if !is_fragment(before) => {
            let value = checksum::of(&[&frame[start..]]);
            put(frame, start + 2, value);
        }
        _ => {}
    }
    Some(())
}

fn tunnel_follows(frame: &[u8], udp: usize) -> bool {
    be16(frame, udp + 2).is_some_and(|port| matches!(port, VXLAN_PORT | GENEVE_PORT))
}

/// Whether the headers say that the packet is a part of one, whose checksum is of the whole.
fn is_fragment(before: &[Layer]) -> bool {
    let innermost = before.iter().rev().take_while(|layer| !layer.has_frame_inside());
    innermost.into_iter().any(|layer| match layer {
        Layer::Ip(ip) => ip.fragment & (MF | 0x1fff) != 0,
        Layer::Fragment { .. } => true,
        _ => false,
    })
}

/// The checksum over the pseudo header and what stands from `start` on.
fn transport_check(frame: &[u8], start: usize, own: u8, before: &[Layer], starts: &[usize]) -> Option<u16> {
    if is_fragment(before) {
        return None;
    }
    let ip = before.iter().rposition(|layer| matches!(layer, Layer::Ip(_) | Layer::Ip6 { .. }))?;
    let addresses = match before[ip] {
        Layer::Ip(_) => starts[ip] + 12..starts[ip] + 20,
        _ => starts[ip] + 8..starts[ip] + 40,
    };
    let length = ((frame.len() - start) as u32).to_be_bytes();
    Some(checksum::of(&[&frame[addresses], &length, &[0, own], &frame[start..]]))
}
