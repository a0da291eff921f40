//! Each key, by a frame that has it and one that has it not.

use crate::common::*;
use flow::{Action, Block, Ct, Encap, Fate, Field, Match, Neighbour, Rule, TunnelDevice, TunnelKind};

/// Whether a rule with this match takes the frame.
fn takes(matches: &Match, frame: &[u8]) -> bool {
    let mut card = Card::new();
    card.rule(matches.clone(), [Action::Drop]);
    !card.send(frame).goes_to_representor()
}

fn vlan(id: u16) -> Vec<u8> {
    tagged(&udp_frame(), 0x8100, id, 3)
}

fn qinq(outer: u16, inner: u16) -> Vec<u8> {
    tagged(&tagged(&udp_frame(), 0x8100, inner, 5), 0x88a8, outer, 3)
}

fn first_tag() -> Match {
    Match::new().with(Field::VlanTpid, 0x8100u16)
}

fn two_tags() -> Match {
    Match::new().with(Field::VlanTpid, 0x88a8u16).with(Field::CvlanTpid, 0x8100u16)
}

fn arp_match() -> Match {
    Match::new().with(Field::EthType, 0x0806u16)
}

fn ttl_and_tos() -> Vec<u8> {
    ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b""), |header| (header[1], header[8]) = (0xb8, 9))
}

fn fragment(flags_and_offset: u16) -> Vec<u8> {
    ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b""), |header| header[6..8].copy_from_slice(&flags_and_offset.to_be_bytes()))
}

/// A row for each key: the match, a frame that has it, a frame that has it not.
fn rows() -> Vec<(Field, Match, Vec<u8>, Vec<u8>)> {
    let v6 = |next, payload: &[u8]| ipv6(IP6_A, IP6_B, next, payload);
    let other_v4 = ipv4(IP_B, IP_A, UDP, &udp(2000, 1000, b""));
    let other_v6 = ipv6(IP6_B, IP6_A, UDP, &udp(1, 2, b""));
    let (request, reply) = (arp(1, IP_A, IP_B), arp(2, IP_B, IP_A));
    let mut other_macs = request.clone();
    other_macs[..12].fill(0x22);
    (other_macs[22], other_macs[32]) = (0x22, 0x22);
    let echo = ipv4(IP_A, IP_B, ICMP, &icmp(8, 0, 1, b""));
    let unreachable = ipv4(IP_A, IP_B, ICMP, &icmp(3, 1, 1, b""));
    vec![
        (Field::EthDst, Match::new().with(Field::EthDst, MAC_B), udp_frame(), other_macs.clone()),
        (Field::EthSrc, Match::new().with(Field::EthSrc, MAC_A), udp_frame(), other_macs.clone()),
        (Field::EthType, ip(), vlan(5), request.clone()),
        (Field::VlanTpid, first_tag(), vlan(5), udp_frame()),
        (Field::VlanId, first_tag().with(Field::VlanId, 5u16), vlan(5), vlan(6)),
        (Field::VlanPrio, first_tag().with(Field::VlanPrio, 3u8), vlan(5), tagged(&udp_frame(), 0x8100, 5, 4)),
        (Field::VlanEthType, first_tag().with(Field::VlanEthType, 0x0800u16), vlan(5), tagged(&request, 0x8100, 5, 3)),
        (Field::CvlanTpid, two_tags(), qinq(5, 6), tagged(&udp_frame(), 0x88a8, 5, 3)),
        (Field::CvlanId, two_tags().with(Field::CvlanId, 6u16), qinq(5, 6), qinq(6, 5)),
        (Field::CvlanPrio, two_tags().with(Field::CvlanPrio, 5u8), qinq(5, 6), tagged(&vlan(6), 0x88a8, 5, 5)),
        (
            Field::CvlanEthType,
            two_tags().with(Field::CvlanEthType, 0x0800u16),
            qinq(5, 6),
            tagged(&tagged(&request, 0x8100, 6, 5), 0x88a8, 5, 3),
        ),
        (Field::ArpOp, arp_match().with(Field::ArpOp, 1u8), request.clone(), reply.clone()),
        (Field::ArpSip, arp_match().with(Field::ArpSip, IP_A), request.clone(), reply.clone()),
        (Field::ArpTip, arp_match().with(Field::ArpTip, IP_B), request.clone(), reply),
        (Field::ArpSha, arp_match().with(Field::ArpSha, MAC_A), request.clone(), other_macs.clone()),
        (Field::ArpTha, arp_match().with(Field::ArpTha, MAC_B), request, other_macs),
        (Field::Ip4Src, ip().with(Field::Ip4Src, IP_A), udp_frame(), other_v4.clone()),
        (Field::Ip4Dst, ip().with_masked(Field::Ip4Dst, [10, 0, 0, 2], [255, 0, 0, 3]), udp_frame(), other_v4.clone()),
        (Field::Ip6Src, ip6().with(Field::Ip6Src, IP6_A), v6(UDP, &udp(1, 2, b"")), other_v6.clone()),
        (Field::Ip6Dst, ip6().with(Field::Ip6Dst, IP6_B), v6(UDP, &udp(1, 2, b"")), other_v6),
        (Field::IpProto, ip_proto(UDP), udp_frame(), tcp_frame(SYN)),
        (Field::IpTos, ip().with_masked(Field::IpTos, 0xb8u8, 0xfcu8), ttl_and_tos(), udp_frame()),
        (Field::IpTtl, ip().with(Field::IpTtl, 9u8), ttl_and_tos(), udp_frame()),
        (Field::IpFlags, ip().with_masked(Field::IpFlags, 1u8, 1u8), fragment(0x0001), fragment(0x4000)),
        (Field::SrcPort, ip_proto(UDP).with(Field::SrcPort, 1000u16), udp_frame(), other_v4.clone()),
        (Field::DstPort, ip_proto(UDP).with(Field::DstPort, 2000u16), udp_frame(), other_v4),
        (
            Field::TcpFlags,
            ip_proto(TCP).with_masked(Field::TcpFlags, 2u16, 0x12u16),
            tcp_frame(SYN),
            tcp_frame(SYN | ACK),
        ),
        (Field::IcmpType, ip_proto(ICMP).with(Field::IcmpType, 8u8), echo.clone(), unreachable.clone()),
        (Field::IcmpCode, ip_proto(ICMP).with(Field::IcmpCode, 1u8), unreachable, echo),
    ]
}

#[test]
fn a_frame_matches_by_each_key() {
    for (field, matches, with, without) in rows() {
        assert!(takes(&matches, &with), "{field:?} is not found");
        assert!(!takes(&matches, &without), "{field:?} is found where it is not");
    }
}

#[test]
fn every_key_is_tested() {
    let elsewhere = |field: &Field| {
        let of_tunnel = (Field::EncKeyId..=Field::EncOpts).contains(field);
        let of_connection = (Field::CtState..=Field::CtLabel).contains(field);
        of_tunnel || of_connection || [Field::InPort, Field::AddrType].contains(field)
    };
    let tested: Vec<Field> = rows().into_iter().map(|row| row.0).collect();
    let missing: Vec<_> = Field::ALL.iter().filter(|field| !elsewhere(field) && !tested.contains(field)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_port_is_a_key_of_a_shared_block() {
    let mut card = Card::new();
    card.tables.bind(ONE, Some(9));
    card.tables.bind(TWO, Some(9));
    let matches = Match::new().with(Field::InPort, TWO.0);
    card.add(Rule::new(ONE, matches, [Action::Drop]).in_block(Block::Shared(9)));
    assert!(card.send_to(ONE, &udp_frame()).goes_to_representor());
    assert!(!card.send_to(TWO, &udp_frame()).goes_to_representor());
    card.tables.bind(TWO, None);
    assert!(card.send_to(TWO, &udp_frame()).goes_to_representor());
}

#[test]
fn ports_of_every_transport_over_every_ip() {
    let transports =
        [(TCP, tcp(7, 8, ACK, b"")), (UDP, udp(7, 8, b"")), (SCTP, vec![0, 7, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0])];
    for (protocol, payload) in transports {
        let frames = [ipv4(IP_A, IP_B, protocol, &payload), ipv6(IP6_A, IP6_B, protocol, &payload)];
        for (base, frame) in [ip(), ip6()].into_iter().zip(frames) {
            let matches = base.with(Field::IpProto, protocol).with(Field::DstPort, 8u16).with(Field::SrcPort, 7u16);
            assert!(takes(&matches, &frame), "protocol {protocol}");
        }
    }
}

#[test]
fn a_range_of_ports_has_both_ends() {
    let to = |port| ipv4(IP_A, IP_B, UDP, &udp(50, port, b""));
    let matches = ip_proto(UDP).with_dst_ports(10..=20);
    assert_eq!([9, 10, 20, 21].map(|port| takes(&matches, &to(port))), [false, true, true, false]);
    let matches = ip_proto(UDP).with_src_ports(50..=60).with(Field::DstPort, 9u16);
    assert_eq!([8, 9].map(|port| takes(&matches, &to(port))), [false, true]);
}

#[test]
fn extension_headers_of_ipv6_are_passed() {
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let destination = [UDP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let payload = [&hop_by_hop[..], &destination, &udp(7, 8, b"")].concat();
    let matches = ip6().with(Field::IpProto, UDP).with(Field::DstPort, 8u16);
    assert!(takes(&matches, &ipv6(IP6_A, IP6_B, 0, &payload)));
}

#[test]
fn fragments_have_flags_and_no_ports() {
    let (frag, first) = (Field::FRAG, Field::FIRST_FRAG);
    let v6 = |offset: u16| {
        let header = [&[UDP, 0][..], &offset.to_be_bytes(), &[0, 0, 0, 1]].concat();
        ipv6(IP6_A, IP6_B, 44, &[header, udp(7, 8, b"")].concat())
    };
    let rows = [
        (ip(), fragment(0x2000), frag | first),
        (ip(), fragment(0x2001), frag),
        (ip(), fragment(0x0001), frag),
        (ip(), fragment(0x4000), 0),
        (ip6(), v6(0x0001), frag | first),
        (ip6(), v6(0x0008), frag),
    ];
    for (base, frame, flags) in rows {
        assert!(takes(&base.clone().with(Field::IpFlags, flags), &frame), "{flags}");
        let with_port = base.with(Field::IpProto, UDP).with_masked(Field::DstPort, 0u16, 0xffff);
        assert_eq!(takes(&with_port, &frame), flags != 0, "the port of a fragment is 0, as in flower");
    }
}

#[test]
fn what_cannot_be_read_has_no_key() {
    let whole = ipv4(IP_A, IP_B, TCP, &tcp(1000, 80, SYN, b""));
    let with = |length: usize| flow::dissect(&whole[..length]).key;
    let has = |length, field| with(length).has(field);
    assert!(!has(13, Field::EthDst), "no EtherType");
    assert!(has(14, Field::EthType) && !has(33, Field::Ip4Src), "no whole IPv4 header");
    assert!(has(34, Field::Ip4Src) && !has(37, Field::SrcPort), "no whole ports");
    assert!(has(38, Field::DstPort) && !has(53, Field::TcpFlags), "no whole TCP header");
    assert!(has(54, Field::TcpFlags));
    let mut short_header = whole.clone();
    short_header[14] = 0x44;
    assert!(!flow::dissect(&short_header).key.has(Field::Ip4Src));
    let mut other_arp = arp(1, IP_A, IP_B);
    other_arp[21] = 3;
    assert!(!flow::dissect(&other_arp).key.has(Field::ArpSip), "only requests and replies");
}

#[test]
fn a_length_is_no_ethertype() {
    let rows = [(0x0026u16, [0x42, 0x42], 4u16), (0x0026, [0xff, 0xff], 1), (0x0600, [0, 0], 0x0600)];
    for (ethertype, payload, expected) in rows {
        let frame = eth(ethertype, &payload);
        assert_eq!(flow::dissect(&frame).protocol, expected);
        let behind_a_tag = flow::dissect(&tagged(&frame, 0x8100, 5, 0)).key;
        assert_eq!(behind_a_tag.number(Field::EthType), u32::from(expected));
    }
}

/// A frame in a tunnel to the uplink, with everything set.
fn in_tunnel(kind: TunnelKind, v6: bool) -> Vec<u8> {
    let (src, dst) = if v6 { (IP6_A.into(), IP6_B.into()) } else { (addr(IP_A), addr(IP_B)) };
    let encap = Encap {
        kind,
        id: Some(77),
        src,
        dst,
        dst_port: if kind == TunnelKind::Gre { 0 } else { 4789 },
        tos: 0xb8,
        ttl: 9,
        options: if kind == TunnelKind::Geneve { vec![1, 2, 3, 1, 9, 9, 9, 9] } else { Vec::new() },
        neighbour: Some(Neighbour { dst: MAC_B, src: MAC_A, from: None }),
    };
    let mut card = Card::new();
    card.rule(Match::new(), [Action::TunnelSet(encap), Action::Redirect(UPLINK)]);
    card.send(&udp_frame()).outputs.remove(0).frame
}

#[test]
fn a_frame_matches_by_each_key_of_its_tunnel() {
    let rows = [
        (false, Match::new().with(Field::EncKeyId, 77u32), Match::new().with(Field::EncKeyId, 78u32)),
        (false, Match::new().with(Field::EncIp4Src, IP_A), Match::new().with(Field::EncIp4Src, IP_B)),
        (false, Match::new().with(Field::EncIp4Dst, IP_B), Match::new().with(Field::EncIp4Dst, IP_A)),
        (true, Match::new().with(Field::EncIp6Src, IP6_A), Match::new().with(Field::EncIp6Src, IP6_B)),
        (true, Match::new().with(Field::EncIp6Dst, IP6_B), Match::new().with(Field::EncIp6Dst, IP6_A)),
        (false, Match::new().with(Field::EncDstPort, 4789u16), Match::new().with(Field::EncDstPort, 4790u16)),
        (
            false,
            Match::new().with_masked(Field::EncSrcPort, 0x8000u16, 0x8000),
            Match::new().with(Field::EncSrcPort, 1u16),
        ),
        (true, Match::new().with(Field::EncTos, 0xb8u8), Match::new().with(Field::EncTos, 0u8)),
        (false, Match::new().with(Field::EncTtl, 9u8), Match::new().with(Field::EncTtl, 8u8)),
        (
            false,
            Match::new().with_geneve_options(&[1, 2, 3, 1, 9, 0, 0, 0], &[255, 255, 255, 255, 255, 0, 0, 0]),
            Match::new().with_geneve_options(&[1, 2, 3, 1, 8, 0, 0, 0], &[255; 8]),
        ),
        (false, Match::new(), Match::new().with_geneve_options(&[1, 2, 3, 1], &[255; 4])),
        (false, ip().with(Field::Ip4Dst, IP_B), ip6()),
    ];
    let kind = TunnelKind::Geneve;
    let device = Block::Tunnel(TunnelDevice { kind, udp_port: 4789 });
    for (v6, with, without) in rows {
        for (matches, expected) in [(with, true), (without, false)] {
            let mut card = Card::new();
            card.add(Rule::new(UPLINK, matches.clone(), [Action::Drop]).in_block(device));
            let verdict = card.send_to(UPLINK, &in_tunnel(kind, v6));
            assert_eq!(matches!(verdict.fate, Fate::Dropped(_)), expected, "{matches:?}");
        }
    }
}

#[test]
fn a_frame_matches_by_each_key_of_its_connection() {
    let ct = |zone, commit| {
        let (mark, label) = (Some((0xf5, 0x0f)), Some((3 << 64, u128::MAX)));
        Action::Ct(Ct { zone, commit, mark, label, ..Ct::default() })
    };
    let (trk, new, est) = (Field::CT_TRACKED, Field::CT_NEW, Field::CT_ESTABLISHED);
    let rows = [
        (Match::new().with_ct_state(trk | new, est), Match::new().with_ct_state(trk | est, 0)),
        (Match::new().with(Field::CtZone, 5u16), Match::new().with(Field::CtZone, 6u16)),
        (Match::new().with(Field::CtMark, 5u32), Match::new().with(Field::CtMark, 0xf5u32)),
        (Match::new().with(Field::CtLabel, 3u128 << 64), Match::new().with(Field::CtLabel, 0u128)),
    ];
    for (with, without) in rows {
        for (matches, expected) in [(with, true), (without, false)] {
            let mut card = Card::new();
            card.rule(Match::new(), [ct(5, true), Action::Goto(1)]);
            card.add(Rule::new(ONE, matches.clone(), [Action::Drop]).in_chain(1));
            assert_eq!(!card.send(&udp_frame()).goes_to_representor(), expected, "{matches:?}");
        }
    }
}

#[test]
fn all_twelve_flags_of_tcp_are_a_key() {
    let mut frame = tcp_frame(0xc0 | SYN);
    frame[46] |= 0x0f;
    assert_eq!(flow::dissect(&frame).key.number(Field::TcpFlags), 0xfc2);
}

#[test]
fn the_port_is_a_key_of_a_tunnel() {
    let device = Block::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 });
    let mut card = Card::new();
    card.add(Rule::new(UPLINK, Match::new().with(Field::InPort, UPLINK.0), [Action::Drop]).in_block(device));
    assert!(!card.send_to(UPLINK, &in_tunnel(TunnelKind::Vxlan, false)).goes_to_representor());
}
