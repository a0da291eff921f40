//! What holds of any frames and any rules.

use crate::common::*;
use flow::{
    Action, Block, Capabilities, Control, Csum, Ct, Edit, EditField, Encap, Fate, Field, Match, Meter, MeterId, Nat,
    NatRange, Neighbour, Police, Port, Rate, Rule, Sample, TunnelDevice, TunnelKind, VlanTag, checksums_are_right,
    dissect,
};
use proptest::collection::vec;
use proptest::prelude::*;

/// How many cases each property has; `CASES=100000` makes a long run.
fn cases() -> u32 {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000)
}

/// A frame of one of the kinds that the card looks into, with right checksums.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let payload =
        (0..6u8, 1..4u16, 1..4u16, any::<u8>(), vec(any::<u8>(), 0..40)).prop_map(|(kind, src, dst, flags, data)| {
            match kind {
                0 => (TCP, tcp(src, dst, flags, &data)),
                1 => (ICMP, icmp(if flags & 1 == 0 { 8 } else { 0 }, 0, src, &data)),
                2 => (ICMPV6, icmp(if flags & 1 == 0 { 128 } else { 129 }, 0, src, &data)),
                3 => (SCTP, [&src.to_be_bytes()[..], &dst.to_be_bytes(), &data].concat()),
                _ => (UDP, udp(src, dst, &data)),
            }
        });
    (payload, 0..5u8, 0..3u8, 1..255u8).prop_map(|((protocol, payload), kind, tags, ttl)| {
        let bare = match kind {
            0 => arp(1, IP_A, IP_B),
            1 => ipv6(IP6_A, IP6_B, protocol, &payload),
            2 => ipv6(IP6_B, IP6_A, protocol, &payload),
            3 => ipv4_with(IP_B, IP_A, protocol, &payload, |header| header[8] = ttl),
            _ => ipv4_with(IP_A, IP_B, protocol, &payload, |header| header[8] = ttl),
        };
        (0..tags).fold(bare, |frame, tag| tagged(&frame, if tag == 0 { 0x8100 } else { 0x88a8 }, 5, 0))
    })
}

/// A frame, or its beginning, or one in which bytes have changed, or any bytes.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let in_tunnel =
        (frame(), 0..3usize, any::<bool>()).prop_map(|(frame, kind, v6)| encapsulated(&encap(kind, v6), &frame));
    let damaged = (prop_oneof![frame(), in_tunnel], vec((any::<prop::sample::Index>(), any::<u8>()), 0..6));
    let damaged = damaged.prop_map(|(mut frame, changes)| {
        let headers = frame.len().min(60);
        changes.into_iter().for_each(|(at, byte)| frame[at.index(headers)] = byte);
        frame
    });
    let cut = (damaged, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(mut frame, at, cut)| {
        if cut {
            frame.truncate(at.index(frame.len()));
        }
        frame
    });
    prop_oneof![4 => cut, 1 => vec(any::<u8>(), 0..120)]
}

fn encap(kind: usize, v6: bool) -> Encap {
    let kind = [TunnelKind::Vxlan, TunnelKind::Geneve, TunnelKind::Gre][kind];
    Encap {
        kind,
        id: Some(77),
        src: if v6 { IP6_A.into() } else { addr(IP_A) },
        dst: if v6 { IP6_B.into() } else { addr(IP_B) },
        dst_port: if kind == TunnelKind::Gre { 0 } else { 4789 },
        tos: 0,
        ttl: 64,
        options: if kind == TunnelKind::Geneve { vec![0, 1, 2, 0] } else { Vec::new() },
        neighbour: Some(Neighbour { dst: MAC_A, src: MAC_B, from: None }),
    }
}

fn encapsulated(encap: &Encap, frame: &[u8]) -> Vec<u8> {
    let mut card = Card::new();
    card.rule(Match::new(), [Action::TunnelSet(encap.clone()), Action::Redirect(UPLINK)]);
    card.send(frame).outputs.remove(0).frame
}

fn edit() -> impl Strategy<Value = Action> {
    (0..EditField::ALL.len(), vec(any::<u8>(), 16), vec(any::<u8>(), 16), 0..3u8).prop_map(
        |(field, value, mask, kind)| {
            let field = EditField::ALL[field];
            let size = field.size();
            match kind {
                0 if size <= 4 => Edit::add(field, u32::from(value[0])),
                1 => Edit::set_masked(field, &value[..size], &mask[..size]),
                _ => Edit::set(field, &value[..size]),
            }
        },
    )
}

fn nat() -> impl Strategy<Value = Option<Nat>> {
    let v4 = |ports| NatRange { addresses: addr(IP_A)..=addr([10, 0, 0, 4].into()), ports };
    let v6 = |ports| NatRange { addresses: IP6_A.into()..=IP6_B.into(), ports };
    (0..6u8).prop_map(move |kind| match kind {
        0 => Some(Nat::Restore),
        1 => Some(Nat::Src(v4(None))),
        2 => Some(Nat::Dst(v4(Some(2..=3)))),
        3 => Some(Nat::Src(v6(Some(1..=2)))),
        _ => None,
    })
}

fn action() -> impl Strategy<Value = Action> {
    let ct = (0..2u16, any::<bool>(), any::<bool>(), nat()).prop_map(|(zone, commit, force, nat)| {
        Action::Ct(Ct { zone, commit, force, mark: Some((5, 7)), label: None, nat })
    });
    let control = || prop_oneof![Just(Control::Pipe), Just(Control::Drop), (1..4usize).prop_map(Control::Jump)];
    let police = (0..2u32, control(), control())
        .prop_map(|(meter, conform, exceed)| Action::Police(Police { meter: MeterId(meter), conform, exceed }));
    prop_oneof![
        2 => edit(),
        2 => ct,
        1 => police,
        1 => (0..3u32).prop_map(|port| Action::Mirror(Port(port + 1))),
        1 => Just(Action::VlanPush(VlanTag { tpid: 0x8100, id: 5, priority: 1 })),
        1 => Just(Action::VlanPop),
        1 => Just(Action::VlanModify { tpid: 0x88a8, id: 9, priority: Some(2) }),
        1 => Just(Action::DecTtl),
        1 => (0..32u32).prop_map(|bits| Action::Csum(Csum(bits & 0b11011))),
        1 => Just(Action::CtClear),
        1 => Just(Action::TunnelUnset),
        1 => (0..3usize, any::<bool>()).prop_map(|(kind, v6)| Action::TunnelSet(encap(kind, v6))),
        1 => (1..4u32).prop_map(|rate| Action::Sample(Sample { rate, group: 1, truncate: Some(30) })),
        3 => prop_oneof![Just(Action::Drop), Just(Action::Trap), Just(Action::Redirect(TWO))],
        3 => (0..3u32).prop_map(Action::Goto),
    ]
}

fn matches() -> impl Strategy<Value = Match> {
    let ip = |ethertype: u16| Match::new().with(Field::EthType, ethertype);
    let (trk, new, est) = (Field::CT_TRACKED, Field::CT_NEW, Field::CT_ESTABLISHED);
    prop_oneof![
        4 => Just(Match::new()),
        1 => Just(ip(0x0800)),
        1 => Just(ip(0x86dd)),
        1 => Just(ip(0x0800).with(Field::IpProto, TCP)),
        1 => Just(ip(0x86dd).with(Field::IpProto, UDP).with_dst_ports(1..=2)),
        1 => Just(ip(0x0800).with(Field::IpProto, UDP).with(Field::DstPort, 2u16)),
        1 => Just(Match::new().with(Field::VlanTpid, 0x8100u16)),
        1 => Just(Match::new().with_ct_state(trk | new, 0)),
        1 => Just(Match::new().with_ct_state(trk | est, 0)),
        1 => Just(Match::new().with(Field::EncKeyId, 77u32)),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let blocks = [
        Block::Port(ONE),
        Block::Port(ONE),
        Block::Port(UPLINK),
        Block::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 }),
        Block::Tunnel(TunnelDevice { kind: TunnelKind::Gre, udp_port: 0 }),
    ];
    (0..blocks.len(), 0..3u32, 1..4u32, matches(), vec(action(), 1..5)).prop_map(
        move |(block, chain, priority, matches, actions)| {
            let rule = Rule::new(ONE, matches, actions).in_block(blocks[block]).in_chain(chain);
            rule.with_priority(priority, flow::Protocol::All)
        },
    )
}

/// A card with those of the rules that it accepts.
fn card(rules: Vec<Rule>) -> Card {
    let mut card = Card::with(Capabilities::everything());
    card.state = flow::State::new(3).with_connection_limit(4);
    for (meter, rate) in [(0, Rate::Packets(2)), (1, Rate::Bytes(100))] {
        card.tables.set_meter(MeterId(meter), Meter { rate, burst: 200 }).expect("a meter");
    }
    card.tables.add_batch(rules);
    card
}

fn port(uplink: bool) -> Port {
    if uplink { UPLINK } else { ONE }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_cause_a_panic(bytes in hostile()) {
        let dissected = dissect(&bytes);
        if let Some(network) = dissected.network {
            prop_assert!(network.offset < bytes.len() && network.end <= bytes.len());
        }
        checksums_are_right(&bytes);
    }

    #[test]
    fn a_run_changes_the_state_or_misses(
        rules in vec(rule(), 1..10),
        frames in vec((hostile(), any::<bool>(), 0..40u64), 1..12),
    ) {
        let mut card = card(rules);
        for (frame, uplink, wait) in frames {
            card.wait(wait);
            let before = card.state.clone();
            let verdict = card.send_to(port(uplink), &frame);
            let again = flow::process(&card.tables, &mut before.clone(), card.now, port(uplink), &frame);
            prop_assert_eq!(&verdict, &again, "the same once more");
            if let Fate::Missed(_) = verdict.fate {
                prop_assert_eq!(&card.state, &before);
                prop_assert!(verdict.outputs.is_empty() && verdict.samples.is_empty() && verdict.counted.is_empty());
            }
            for (rule, _) in card.tables.rules() {
                let grown = verdict.counted.iter().filter(|counted| **counted == rule).count() as u64;
                let (old, new) = (before.counter(rule), card.state.counter(rule));
                prop_assert_eq!(new.packets, old.packets + grown);
                prop_assert!(new.bytes >= old.bytes && new.last_used >= old.last_used);
            }
            prop_assert!(card.state.connections().len() <= 4);
        }
    }

    #[test]
    fn checksums_are_right_after_every_rewrite(
        frame in frame(),
        edits in vec(edit(), 1..4),
        nat in nat(),
        decrement in any::<bool>(),
    ) {
        prop_assume!(checksums_are_right(&frame));
        let keeps = |action: &Action| !matches!(action, Action::Edit(edit)
            if matches!(edit.field, EditField::EthType | EditField::Ip6TrafficClass));
        let mut actions: Vec<Action> = edits.into_iter().filter(keeps).collect();
        if decrement {
            actions.push(Action::DecTtl);
        }
        let key = dissect(&frame).key;
        let (ethertype, protocol) = (key.number(Field::EthType) as u16, key.number(Field::IpProto) as u8);
        let is_ip = key.has(Field::AddrType);
        if is_ip {
            actions.push(Action::Ct(Ct { commit: true, nat, ..Ct::default() }));
        }
        actions.push(Action::Redirect(TWO));
        let matches = Match::new().with(Field::EthType, ethertype);
        let matches = if is_ip { matches.with(Field::IpProto, protocol) } else { matches };
        let mut card = Card::new();
        actions.retain(|action| {
            let end = [action.clone(), Action::Redirect(TWO)];
            let fits = card.tables.add(Rule::new(THREE, matches.clone(), end)).map(|id| card.tables.remove(id)).is_ok();
            fits || action.ends_rule()
        });
        card.rule(matches, actions);
        let verdict = card.send(&frame);
        for output in &verdict.outputs {
            prop_assert!(checksums_are_right(&output.frame), "{}", verdict.trace);
        }
        prop_assert!(!verdict.outputs.is_empty() || matches!(verdict.fate, Fate::Dropped(_)), "{}", verdict.trace);
    }

    #[test]
    fn push_and_pop_change_nothing(frame in frame(), id in 0..4096u16, priority in 0..8u8) {
        let tag = VlanTag { tpid: 0x8100, id, priority };
        prop_assert_eq!(Card::changed(Match::new(), &[Action::VlanPush(tag), Action::VlanPop], &frame), frame);
    }

    #[test]
    fn into_a_tunnel_and_out_of_it_changes_nothing(frame in frame(), kind in 0..3usize, v6 in any::<bool>()) {
        let encap = encap(kind, v6);
        let outer = encapsulated(&encap, &frame);
        prop_assert!(checksums_are_right(&outer));
        let device = Block::Tunnel(TunnelDevice { kind: encap.kind, udp_port: encap.dst_port });
        let mut card = Card::new();
        card.add(Rule::new(UPLINK, Match::new(), [Action::TunnelUnset, Action::Redirect(TWO)]).in_block(device));
        prop_assert_eq!(&card.send_to(UPLINK, &outer).outputs[0].frame, &frame);
    }

    #[test]
    fn a_translated_answer_comes_back_as_if_nothing_had_been(
        src in 1..9u16, dst in 1..9u16, others in vec((1..9u16, 1..9u16), 0..8), source in any::<bool>(),
    ) {
        let range = NatRange { addresses: addr([10, 9, 0, 1].into())..=addr([10, 9, 0, 2].into()), ports: None };
        let nat = if source { Nat::Src(range) } else { Nat::Dst(range) };
        let mut card = Card::new();
        card.rule(Match::new(), [Action::Ct(Ct { commit: true, nat: Some(nat), ..Ct::default() }), Action::Redirect(TWO)]);
        let back = Ct { nat: Some(Nat::Restore), ..Ct::default() };
        card.add(Rule::new(TWO, Match::new(), [Action::Ct(back), Action::Redirect(ONE)]));
        for (src, dst) in others {
            card.send(&ipv4(IP_A, IP_B, UDP, &udp(src, dst, b"")));
        }
        let out = card.send(&ipv4(IP_A, IP_B, UDP, &udp(src, dst, b""))).outputs.remove(0).frame;
        let ip = |at: usize| [out[at], out[at + 1], out[at + 2], out[at + 3]].into();
        let port = |at: usize| u16::from_be_bytes([out[at], out[at + 1]]);
        let answer = ipv4(ip(30), ip(26), UDP, &udp(port(36), port(34), b"x"));
        let home = card.send_to(TWO, &answer).outputs.remove(0).frame;
        prop_assert_eq!(home, ipv4(IP_B, IP_A, UDP, &udp(dst, src, b"x")));
    }
}
