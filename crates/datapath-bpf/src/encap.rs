//! The headers that a tunnel puts around a frame, but for lengths, checksum and source port, which the program fills in.

use std::net::IpAddr;

use flow::{Encap, TunnelKind};

use crate::layout::{Bytes, ENCAP};

/// An encapsulation as it stands in `encaps`.
pub(crate) fn bytes(encap: &Encap) -> Vec<u8> {
    let headers = headers(encap);
    let version = if encap.dst.is_ipv4() { 4 } else { 6 };
    let udp = encap.kind != TunnelKind::Gre;
    let bytes = Bytes::default().u16(headers.len() as u16).u8(version).u8(udp.into());
    bytes.u8(encap.neighbour.is_some().into()).up_to(8).bytes(&headers).up_to(ENCAP).0
}

fn headers(encap: &Encap) -> Vec<u8> {
    let (dst, src) = encap.neighbour.map_or(([0; 6], [0; 6]), |neighbour| (neighbour.dst, neighbour.src));
    let protocol = if encap.kind == TunnelKind::Gre { 47 } else { 17 };
    let bytes = Bytes::default().bytes(&dst).bytes(&src);
    let bytes = match (encap.source(), encap.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let bytes = bytes.bytes(&[8, 0, 0x45, encap.tos, 0, 0, 0, 0, 0, 0, encap.ttl, protocol, 0, 0]);
            bytes.bytes(&src.octets()).bytes(&dst.octets())
        }
        (src, dst) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            let first = [0x86, 0xdd, 0x60 | encap.tos >> 4, encap.tos << 4, 0, 0, 0, 0, protocol, encap.ttl];
            bytes.bytes(&first).bytes(&octets(src)).bytes(&octets(dst))
        }
    };
    let [port, id] = [encap.dst_port.to_be_bytes().to_vec(), encap.id.unwrap_or(0).to_be_bytes().to_vec()];
    let udp = |bytes: Bytes| bytes.bytes(&[0, 0]).bytes(&port).bytes(&[0; 4]);
    match encap.kind {
        TunnelKind::Vxlan => udp(bytes).bytes(&[8, 0, 0, 0]).bytes(&id[1..]).u8(0).0,
        TunnelKind::Geneve => {
            let length = (encap.options.len() / 4) as u8;
            udp(bytes).bytes(&[length, 0, 0x65, 0x58]).bytes(&id[1..]).u8(0).bytes(&encap.options).0
        }
        TunnelKind::Gre if encap.id.is_some() => bytes.bytes(&[0x20, 0, 0x65, 0x58]).bytes(&id).0,
        TunnelKind::Gre => bytes.bytes(&[0, 0, 0x65, 0x58]).0,
    }
}
