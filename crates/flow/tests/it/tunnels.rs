//! Frames into tunnels and out of them.

use std::net::IpAddr;

use crate::common::*;
use flow::{
    Action, Block, Encap, Fate, Field, Match, MissReason, Neighbour, Port, PortKind, Rule, Tables, TunnelDevice,
    TunnelKind, checksums_are_right,
};

const OUTER_SRC: [u8; 6] = [0x02, 1, 1, 1, 1, 1];
const OUTER_DST: [u8; 6] = [0x02, 2, 2, 2, 2, 2];
const KINDS: [TunnelKind; 3] = [TunnelKind::Vxlan, TunnelKind::Geneve, TunnelKind::Gre];

fn udp_port(kind: TunnelKind) -> u16 {
    match kind {
        TunnelKind::Vxlan => 4789,
        TunnelKind::Geneve => 6081,
        TunnelKind::Gre => 0,
    }
}

fn device(kind: TunnelKind) -> Block {
    Block::Tunnel(TunnelDevice { kind, udp_port: udp_port(kind) })
}

fn encap(kind: TunnelKind) -> Encap {
    Encap {
        kind,
        id: Some(0x12_3456),
        src: addr(IP_A),
        dst: addr(IP_B),
        dst_port: udp_port(kind),
        tos: 0,
        ttl: 64,
        options: Vec::new(),
        neighbour: Some(Neighbour { dst: OUTER_DST, src: OUTER_SRC, from: None }),
    }
}

fn encapsulated(encap: Encap, frame: &[u8]) -> Vec<u8> {
    let mut card = Card::new();
    card.rule(Match::new(), [Action::TunnelSet(encap), Action::Redirect(UPLINK)]);
    card.send(frame).outputs.remove(0).frame
}

#[test]
fn a_tunnel_without_a_source_address_has_the_one_of_the_route_to_its_end() {
    let routed =
        |from: Option<&str>| Neighbour { dst: OUTER_DST, src: OUTER_SRC, from: from.map(|from| from.parse().unwrap()) };
    let source = |src: &str, from: Option<&str>| {
        let neighbour = Some(routed(from));
        let frame =
            encapsulated(Encap { src: src.parse().unwrap(), neighbour, ..encap(TunnelKind::Vxlan) }, &udp_frame());
        assert!(checksums_are_right(&frame));
        <[u8; 4]>::try_from(&frame[26..30]).unwrap()
    };
    assert_eq!(source("0.0.0.0", Some("192.0.2.1")), [192, 0, 2, 1]);
    assert_eq!(source("10.0.0.9", Some("192.0.2.1")), [10, 0, 0, 9], "it names one");
    assert_eq!(source("0.0.0.0", Some("fd00::1")), [0; 4], "of another version of IP");
    assert_eq!(source("0.0.0.0", None), [0; 4]);
}

/// What a rule of the tunnel device sends on.
fn decapsulated(kind: TunnelKind, frame: &[u8]) -> Option<Vec<u8>> {
    let mut card = Card::new();
    card.add(Rule::new(UPLINK, Match::new(), [Action::TunnelUnset, Action::Redirect(TWO)]).in_block(device(kind)));
    card.send_to(UPLINK, frame).outputs.pop().map(|output| output.frame)
}

#[test]
fn headers_are_those_of_the_standards() {
    let inner = udp_frame();
    let vxlan = encapsulated(encap(TunnelKind::Vxlan), &inner);
    assert_eq!(vxlan[..14], [&OUTER_DST[..], &OUTER_SRC, &[0x08, 0x00]].concat());
    assert_eq!((vxlan[14], vxlan[22], vxlan[23]), (0x45, 64, UDP));
    assert_eq!(vxlan[26..34], [10, 0, 0, 1, 10, 0, 0, 2]);
    assert_eq!((&vxlan[36..38], &vxlan[40..42]), (&4789u16.to_be_bytes()[..], &[0, 0][..]));
    assert_eq!(vxlan[42..50], [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
    assert_eq!(vxlan[50..], inner);
    let length = u16::from_be_bytes([vxlan[16], vxlan[17]]);
    assert_eq!(usize::from(length), vxlan.len() - 14);
    assert!(checksums_are_right(&vxlan));

    let options = vec![1, 2, 3, 1, 9, 9, 9, 9];
    let geneve = encapsulated(Encap { options: options.clone(), ..encap(TunnelKind::Geneve) }, &inner);
    assert_eq!(geneve[42..50], [2, 0, 0x65, 0x58, 0x12, 0x34, 0x56, 0]);
    assert_eq!((&geneve[50..58], &geneve[58..]), (&options[..], &inner[..]));

    let gre = encapsulated(encap(TunnelKind::Gre), &inner);
    assert_eq!((gre[23], &gre[34..42]), (47, &[0x20, 0, 0x65, 0x58, 0, 0x12, 0x34, 0x56][..]));
    let gre = encapsulated(Encap { id: None, ..encap(TunnelKind::Gre) }, &inner);
    assert_eq!((&gre[34..38], &gre[38..]), (&[0, 0, 0x65, 0x58][..], &inner[..]));
}

#[test]
fn what_goes_in_comes_out() {
    let (v6_src, v6_dst): (IpAddr, IpAddr) = (IP6_A.into(), IP6_B.into());
    for kind in KINDS {
        for frame in [udp_frame(), arp(1, IP_A, IP_B), tagged(&tcp_frame(SYN), 0x8100, 5, 1)] {
            let outer = encapsulated(encap(kind), &frame);
            assert_eq!(decapsulated(kind, &outer).as_ref(), Some(&frame), "{kind:?} over IPv4");
            let outer = encapsulated(Encap { src: v6_src, dst: v6_dst, ..encap(kind) }, &frame);
            assert_eq!(decapsulated(kind, &outer).as_ref(), Some(&frame), "{kind:?} over IPv6");
        }
    }
}

#[test]
fn frames_of_a_flow_have_one_source_port() {
    let port = |frame: &[u8]| encapsulated(encap(TunnelKind::Vxlan), frame)[34..36].to_vec();
    let other = ipv4(IP_A, IP_B, UDP, &udp(1001, 2000, b"data"));
    assert_eq!(port(&udp_frame()), port(&ipv4(IP_A, IP_B, UDP, &udp(1000, 2000, b"other data"))));
    assert_ne!(port(&udp_frame()), port(&other));
}

#[test]
fn a_tunnel_is_for_the_next_output_only() {
    let mut card = Card::new();
    let actions = [Action::TunnelSet(encap(TunnelKind::Vxlan)), Action::Mirror(UPLINK), Action::Redirect(TWO)];
    card.rule(Match::new(), actions);
    let outputs = card.send(&udp_frame()).outputs;
    assert_eq!(outputs[0].frame.len(), udp_frame().len() + 50);
    assert_eq!(outputs[1].frame, udp_frame());
}

#[test]
fn without_a_neighbour_the_frame_goes_to_the_representor() {
    let mut card = Card::new();
    let waiting = Encap { neighbour: None, ..encap(TunnelKind::Vxlan) };
    let rule = card.rule(Match::new(), [Action::Mirror(TWO), Action::TunnelSet(waiting), Action::Redirect(UPLINK)]);
    let verdict = card.send(&udp_frame());
    assert_eq!((verdict.fate, verdict.outputs.len()), (Fate::Missed(MissReason::NoNeighbour), 0));
    assert_eq!(card.state.counter(rule).packets, 0);
}

#[test]
fn what_is_no_frame_of_the_tunnel_is_not_taken() {
    let outer = encapsulated(encap(TunnelKind::Vxlan), &udp_frame());
    let with = |at: usize, byte: u8| {
        let mut frame = outer.clone();
        frame[at] = byte;
        frame
    };
    let rows = [
        ("another port", with(37, 0)),
        ("no identifier", with(42, 0)),
        ("a reserved flag", with(43, 1)),
        ("a reserved byte", with(49, 1)),
        ("a fragment", with(20, 0x20)),
        ("another protocol", with(23, 6)),
        ("an inner frame that is cut off", with(17, 20 + 8 + 8 + 13)),
        ("nothing inside", outer[..50].to_vec()),
    ];
    for (what, frame) in rows {
        assert_eq!(decapsulated(TunnelKind::Vxlan, &frame), None, "{what}");
    }
    let geneve = encapsulated(encap(TunnelKind::Geneve), &udp_frame());
    for (at, byte) in [(42, 0x40), (42, 0x3f), (44, 0x08)] {
        let mut frame = geneve.clone();
        frame[at] = byte;
        assert_eq!(decapsulated(TunnelKind::Geneve, &frame), None);
    }
    let gre = encapsulated(encap(TunnelKind::Gre), &udp_frame());
    for (at, byte) in [(34, 0x60), (35, 1), (36, 0x08)] {
        let mut frame = gre.clone();
        frame[at] = byte;
        assert_eq!(decapsulated(TunnelKind::Gre, &frame), None);
    }
}

#[test]
fn gre_with_a_checksum_and_a_sequence_number_is_taken() {
    let inner = udp_frame();
    let header = [0xb0, 0, 0x65, 0x58, 9, 9, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1];
    let outer = ipv4(IP_A, IP_B, 47, &[&header[..], &inner].concat());
    let mut card = Card::new();
    let matches = Match::new().with(Field::EncKeyId, 7u32);
    card.add(Rule::new(UPLINK, matches, [Action::Redirect(TWO)]).in_block(device(TunnelKind::Gre)));
    assert_eq!(card.send_to(UPLINK, &outer).outputs[0].frame, inner);
}

#[test]
fn tunnels_end_at_the_uplink() {
    let outer = encapsulated(encap(TunnelKind::Vxlan), &udp_frame());
    let mut card = Card::new();
    card.add(Rule::new(UPLINK, Match::new(), [Action::Redirect(TWO)]).in_block(device(TunnelKind::Vxlan)));
    assert!(card.send_to(ONE, &outer).goes_to_representor());
    assert_eq!(card.send_to(UPLINK, &outer).fate, Fate::Forwarded);
    // A rule of the uplink itself comes first, as tc does before the stack.
    card.add(Rule::new(UPLINK, Match::new(), [Action::Redirect(THREE)]));
    assert_eq!(card.send_to(UPLINK, &outer).outputs[0].frame, outer);
}

#[test]
fn a_forgotten_tunnel_is_no_key_of_a_later_chain() {
    let outer = encapsulated(encap(TunnelKind::Vxlan), &udp_frame());
    for (actions, matched) in [(vec![Action::Goto(1)], true), (vec![Action::TunnelUnset, Action::Goto(1)], false)] {
        let mut card = Card::new();
        let block = device(TunnelKind::Vxlan);
        card.add(Rule::new(UPLINK, Match::new(), actions).in_block(block));
        let matches = Match::new().with(Field::EncKeyId, 0x12_3456u32);
        card.add(Rule::new(UPLINK, matches, [Action::Redirect(TWO)]).in_block(block).in_chain(1));
        let verdict = card.send_to(UPLINK, &outer);
        assert_eq!(verdict.fate == Fate::Forwarded, matched, "{}", verdict.trace);
    }
}

#[test]
fn congestion_comes_out_as_rfc_6040_says() {
    let inner = |tos| ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b""), |header| header[1] = tos);
    // The rows are the outer bits, the columns the inner ones: not capable, capable (1), capable (0), experienced.
    let table: [(u8, [Option<u8>; 4]); 4] = [
        (0, [Some(0), Some(1), Some(2), Some(3)]),
        (2, [Some(0), Some(1), Some(2), Some(3)]),
        (1, [Some(0), Some(1), Some(1), Some(3)]),
        (3, [None, Some(3), Some(3), Some(3)]),
    ];
    for (outer, results) in table {
        for (own, expected) in results.into_iter().enumerate() {
            let frame = encapsulated(Encap { tos: outer, ..encap(TunnelKind::Vxlan) }, &inner(own as u8));
            let result = decapsulated(TunnelKind::Vxlan, &frame);
            assert_eq!(result, expected.map(inner), "outer {outer}, inner {own}");
        }
    }
    let v6 = |tos: u8| {
        let mut frame = ipv6(IP6_A, IP6_B, UDP, &udp(1, 2, b""));
        (frame[14], frame[15]) = (0x60 | tos >> 4, tos << 4);
        frame
    };
    let frame = encapsulated(Encap { tos: 3, ..encap(TunnelKind::Vxlan) }, &v6(0xb9));
    assert_eq!(decapsulated(TunnelKind::Vxlan, &frame), Some(v6(0xbb)));
}

#[test]
fn a_frame_that_is_too_long_for_the_headers_is_dropped() {
    let mut card = Card::new();
    card.rule(Match::new(), [Action::TunnelSet(encap(TunnelKind::Vxlan)), Action::Redirect(UPLINK)]);
    let verdict = card.send(&vec![0; 65_500]);
    assert_eq!(verdict.fate, Fate::Dropped(flow::DropReason::TooLong));
}

#[test]
fn the_ends_of_tunnels_are_those_that_rules_name() {
    let to = |last: u8| Action::TunnelSet(Encap { dst: [192, 0, 2, last].into(), ..encap(TunnelKind::Vxlan) });
    let end = |last: u8| -> IpAddr { [192, 0, 2, last].into() };
    let mut tables = Tables::default();
    tables.add_port(Port(1), PortKind::Vport);
    tables.add_port(Port(0xffff), PortKind::Uplink);
    let rule =
        |n: u8, actions: Vec<Action>| Rule::new(Port(1), Match::new().with(Field::EthDst, [2, 0, 0, 0, 0, n]), actions);
    let there = || Action::Redirect(Port(0xffff));
    let first = tables.add(rule(1, vec![to(1), there()])).unwrap();
    let second = tables.add(rule(2, vec![to(1), there()])).unwrap();
    assert_eq!(tables.tunnel_ends().collect::<Vec<_>>(), [end(1)]);
    assert_eq!(tables.rules_to(end(1)).collect::<Vec<_>>(), [first, second]);

    let before = tables.tunnel_changes();
    tables.set_actions(first, vec![to(1), there()]).unwrap();
    assert_eq!(tables.tunnel_changes(), before, "the same ends");
    tables.set_actions(first, vec![to(2), there()]).unwrap();
    assert_eq!(tables.tunnel_ends().collect::<Vec<_>>(), [end(1), end(2)]);
    assert_eq!(tables.rules_to(end(1)).collect::<Vec<_>>(), [second]);
    assert_ne!(tables.tunnel_changes(), before);

    let before = tables.tunnel_changes();
    tables.remove(second);
    assert_eq!(tables.tunnel_ends().collect::<Vec<_>>(), [end(2)]);
    assert_ne!(tables.tunnel_changes(), before);
    let before = tables.tunnel_changes();
    tables.remove_ports(&[Port(1)].into());
    assert_eq!(tables.tunnel_ends().count(), 0, "they go with the rules of a port");
    assert_ne!(tables.tunnel_changes(), before);
    tables.add_port(Port(1), PortKind::Vport);
    tables.add(rule(1, vec![to(3), there()])).unwrap();
    tables.clear();
    assert_eq!(tables.tunnel_ends().count(), 0);
}
