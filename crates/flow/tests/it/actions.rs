//! Each action, on frames written by hand.

use crate::common::*;
use flow::{
    Action, Control, Csum, DropReason, Edit, EditField, Fate, FieldValue, Match, Meter, MeterId, Police, Rate, Sample,
    VlanTag, checksums_are_right,
};

fn push(id: u16) -> Action {
    Action::VlanPush(VlanTag { tpid: 0x8100, id, priority: 3 })
}

fn modify(id: u16, priority: Option<u8>) -> Action {
    Action::VlanModify { tpid: 0x88a8, id, priority }
}

#[test]
fn a_frame_is_dropped_trapped_redirected_or_mirrored() {
    type Row = (Vec<Action>, &'static [flow::Port], fn(Fate) -> bool);
    let rows: [Row; 5] = [
        (vec![Action::Drop], &[], |fate| matches!(fate, Fate::Dropped(DropReason::Rule(_)))),
        (vec![Action::Trap], &[], |fate| fate == Fate::Trapped),
        (vec![Action::Redirect(TWO)], &[TWO], |fate| fate == Fate::Forwarded),
        (vec![Action::Mirror(TWO)], &[TWO], |fate| fate == Fate::Forwarded),
        (vec![Action::Mirror(TWO), Action::Redirect(THREE)], &[TWO, THREE], |fate| fate == Fate::Forwarded),
    ];
    for (actions, ports, expected) in rows {
        let mut card = Card::new();
        let rule = card.rule(Match::new(), actions.clone());
        let verdict = card.send(&udp_frame());
        assert!(expected(verdict.fate), "{actions:?}");
        assert_eq!(verdict.outputs.iter().map(|output| output.port).collect::<Vec<_>>(), ports);
        assert!(verdict.outputs.iter().all(|output| output.frame == udp_frame()));
        assert_eq!(card.state.counter(rule).packets, 1);
    }
}

#[test]
fn a_copy_is_the_frame_as_it_was_at_that_moment() {
    let mut card = Card::new();
    card.rule(Match::new(), [push(5), Action::Mirror(TWO), Action::VlanPop, Action::Redirect(THREE)]);
    let outputs = card.send(&udp_frame()).outputs;
    assert_eq!(outputs[0].frame, tagged(&udp_frame(), 0x8100, 5, 3));
    assert_eq!(outputs[1].frame, udp_frame());
}

#[test]
fn vlan_tags_are_pushed_popped_and_changed() {
    let (bare, one) = (udp_frame(), tagged(&udp_frame(), 0x8100, 5, 2));
    let two = tagged(&one, 0x88a8, 6, 1);
    let in_vlan = || Match::new().with(flow::Field::VlanTpid, 0x8100u16);
    let rows = [
        (Match::new(), vec![push(5)], bare.clone(), tagged(&bare, 0x8100, 5, 3)),
        (Match::new(), vec![push(5), push(6)], bare.clone(), tagged(&tagged(&bare, 0x8100, 5, 3), 0x8100, 6, 3)),
        (Match::new(), vec![Action::VlanPop], one.clone(), bare.clone()),
        (Match::new(), vec![Action::VlanPop], two.clone(), one.clone()),
        (Match::new(), vec![Action::VlanPop, Action::VlanPop], two, bare.clone()),
        (Match::new(), vec![Action::VlanPop], bare.clone(), bare.clone()),
        (in_vlan(), vec![modify(9, None)], one.clone(), tagged(&bare, 0x88a8, 9, 2)),
        (in_vlan(), vec![modify(9, Some(7))], one.clone(), tagged(&bare, 0x88a8, 9, 7)),
        (in_vlan(), vec![Action::VlanPop, modify(9, None)], one, bare),
    ];
    for (matches, actions, before, after) in rows {
        assert_eq!(Card::changed(matches, &actions, &before), after, "{actions:?}");
    }
}

/// A frame of each kind that has the field, and where in it the field is.
fn frame_with(field: EditField) -> (Match, Vec<u8>, usize) {
    let v6 =
        |protocol, payload: &[u8]| (ip6().with(flow::Field::IpProto, protocol), ipv6(IP6_A, IP6_B, protocol, payload));
    let (header, place, _) = field.place();
    let (matches, frame) = match header {
        flow::Header::Eth | flow::Header::Ip4 => (ip(), udp_frame()),
        flow::Header::Ip6 => v6(UDP, &udp(1, 2, b"odd")),
        flow::Header::Tcp => (ip_proto(TCP), ipv4(IP_A, IP_B, TCP, &tcp(1, 2, ACK, b"odd"))),
        flow::Header::Udp => v6(UDP, &udp(1, 2, b"odd")),
    };
    let start = match header {
        flow::Header::Eth => 0,
        flow::Header::Ip4 | flow::Header::Ip6 => 14,
        flow::Header::Tcp => 34,
        flow::Header::Udp => 54,
    };
    (matches, frame, start + place)
}

#[test]
fn each_field_is_rewritten_with_its_checksums() {
    for field in EditField::ALL {
        let (matches, before, at) = frame_with(field);
        // The version of IPv6 and the EtherType stay, so that the frame remains what it is.
        let value: Vec<u8> = match field {
            EditField::Ip6TrafficClass => vec![0x6a, 0xb0],
            EditField::EthType => vec![0x08, 0x00],
            _ => (0..field.size() as u8).map(|byte| 0xa1 + byte).collect(),
        };
        let after = Card::changed(matches, &[Edit::set(field, &value[..])], &before);
        assert_eq!(after[at..at + field.size()], value, "{field:?}");
        assert!(checksums_are_right(&before) && checksums_are_right(&after), "{field:?}");
        let differ = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(differ <= field.size() + 4, "{field:?} changes nothing but itself and two checksums");
    }
}

#[test]
fn some_bits_of_a_field_are_set() {
    let before = ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b""), |header| header[1] = 0x03);
    let after = Card::changed(ip(), &[Edit::set_masked(EditField::Ip4Tos, 0xffu8, 0xfcu8)], &before);
    assert_eq!(after[15], 0xff);
    let after =
        Card::changed(ip(), &[Edit::set_masked(EditField::Ip4Dst, [192, 168, 9, 9], [255, 255, 0, 0])], &before);
    assert_eq!(after[30..34], [192, 168, 0, 2]);
    assert!(checksums_are_right(&after));
}

#[test]
fn an_addition_wraps_within_the_field() {
    let rows = [(EditField::Ip4Ttl, 0xff, vec![63]), (EditField::Ip4Dst, 0xffff_ffff, vec![10, 0, 0, 1])];
    for (field, value, expected) in rows {
        let (matches, before, at) = frame_with(field);
        let after = Card::changed(matches, &[Edit::add(field, value)], &before);
        assert_eq!(after[at..at + field.size()], expected);
        assert!(checksums_are_right(&after));
    }
}

#[test]
fn an_ethertype_behind_a_tag_is_rewritten() {
    let frame = tagged(&udp_frame(), 0x8100, 5, 0);
    let after = Card::changed(Match::new(), &[Edit::set(EditField::EthType, 0x1234u16)], &frame);
    assert_eq!((&after[12..14], &after[16..18]), (&[0x81, 0x00][..], &[0x12, 0x34][..]));
}

#[test]
fn a_header_that_is_not_there_is_not_rewritten() {
    let later = ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b"data"), |header| header[7] = 1);
    let edit = [Edit::set(EditField::UdpDst, 9u16)];
    assert_eq!(Card::changed(ip_proto(UDP), &edit, &later), later, "a later fragment has no ports");
    let short = ipv4(IP_A, IP_B, UDP, &[0, 1, 0]);
    assert_eq!(Card::changed(ip_proto(UDP), &edit, &short), short);
}

#[test]
fn the_address_of_a_first_fragment_is_corrected_for_the_whole() {
    // The checksum of the whole datagram stands in the first fragment, and covers what is in the later ones.
    let whole = ipv4(IP_A, IP_B, UDP, &udp(1, 2, b"12345678"));
    let edit = [Edit::set(EditField::Ip4Dst, [192, 168, 7, 7])];
    let changed_whole = Card::changed(ip(), &edit, &whole);
    let mut first = whole;
    first[20] = 0x20;
    let changed_first = Card::changed(ip(), &edit, &first);
    assert_eq!(changed_first[40..42], changed_whole[40..42]);
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let mut before = udp_frame();
    before[40..42].fill(0);
    let after = Card::changed(ip_proto(UDP), &[Edit::set(EditField::UdpDst, 9u16)], &before);
    assert_eq!((&after[36..38], &after[40..42]), (&[0, 9][..], &[0, 0][..]));
    let computed = Card::changed(ip(), &[Action::Csum(Csum::UDP.and(Csum::IP4_HEADER))], &before);
    assert_eq!(computed, before);
}

#[test]
fn checksums_are_computed_where_asked() {
    let kinds = [
        (ICMP, icmp(8, 0, 7, b"odd"), Csum::ICMP),
        (TCP, tcp(1, 2, ACK, b"odd"), Csum::TCP),
        (UDP, udp(1, 2, b"odd"), Csum::UDP),
    ];
    for (protocol, payload, which) in kinds {
        let right = ipv4(IP_A, IP_B, protocol, &payload);
        let mut wrong = right.clone();
        let last = wrong.len() - 1;
        wrong[last] ^= 0x55;
        wrong[22] = 5;
        let half = Card::changed(ip(), &[Action::Csum(which)], &wrong);
        assert!(!checksums_are_right(&half), "the header was not asked for");
        let whole = Card::changed(ip(), &[Action::Csum(which.and(Csum::IP4_HEADER))], &wrong);
        assert!(checksums_are_right(&whole));
    }
    let mut v6 = ipv6(IP6_A, IP6_B, ICMPV6, &icmp(128, 0, 7, b"odd"));
    v6[60] ^= 1;
    assert!(!checksums_are_right(&v6) && checksums_are_right(&Card::changed(ip6(), &[Action::Csum(Csum::ICMP)], &v6)));
}

#[test]
fn a_time_to_live_is_decremented_and_ends() {
    let with_ttl = |ttl| ipv4_with(IP_A, IP_B, UDP, &udp(1, 2, b""), |header| header[8] = ttl);
    let after = Card::changed(ip(), &[Action::DecTtl], &with_ttl(2));
    assert_eq!(after, with_ttl(1));
    for ttl in [0, 1] {
        let mut card = Card::new();
        card.rule(ip(), [Action::DecTtl, Action::Redirect(TWO)]);
        assert_eq!(card.send(&with_ttl(ttl)).fate, Fate::Dropped(DropReason::TtlExpired));
    }
    let v6 = ipv6(IP6_A, IP6_B, UDP, &udp(1, 2, b""));
    assert_eq!(Card::changed(ip6(), &[Action::DecTtl], &v6)[21], 63);
}

fn police(meter: u32, conform: Control, exceed: Control) -> Action {
    Action::Police(Police { meter: MeterId(meter), conform, exceed })
}

#[test]
fn a_meter_drops_what_exceeds_and_fills_again() {
    let mut card = Card::new();
    card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(1), burst: 2 }).expect("a meter");
    let rule = card.rule(Match::new(), [police(1, Control::Pipe, Control::Drop), Action::Redirect(TWO)]);
    let fates: Vec<bool> = (0..3).map(|_| card.send(&udp_frame()).fate == Fate::Forwarded).collect();
    assert_eq!(fates, [true, true, false]);
    card.wait(1);
    assert_eq!(card.send(&udp_frame()).fate, Fate::Forwarded);
    assert_eq!(card.send(&udp_frame()).fate, Fate::Dropped(DropReason::Meter(MeterId(1))));
    let bucket = card.state.bucket(MeterId(1)).expect("the meter was used");
    assert_eq!((bucket.conformed, bucket.exceeded, card.state.counter(rule).packets), (3, 2, 5));
}

#[test]
fn two_meters_and_a_jump() {
    let mut card = Card::new();
    card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(1), burst: 1 }).expect("a meter");
    card.tables.set_meter(MeterId(2), Meter { rate: Rate::Bytes(1), burst: 1 }).expect("a meter");
    // What conforms to the first goes to 2. The rest goes to 3 if it conforms to the second, else it is dropped.
    card.rule(
        Match::new(),
        [
            police(1, Control::Pipe, Control::Jump(2)),
            Action::Redirect(TWO),
            police(2, Control::Jump(4), Control::Pipe),
            Action::Drop,
            Action::Redirect(THREE),
        ],
    );
    assert_eq!(card.send(&udp_frame()).outputs[0].port, TWO);
    assert!(matches!(card.send(&udp_frame()).fate, Fate::Dropped(DropReason::Rule(_))));
    card.tables.set_meter(MeterId(2), Meter { rate: Rate::Bytes(1), burst: 9000 }).expect("a meter");
    assert_eq!(card.send(&udp_frame()).outputs[0].port, THREE);
}

#[test]
fn frames_that_are_too_long_go_another_way() {
    let mut card = Card::new();
    card.tables.set_meter(MeterId(1), Meter { rate: Rate::Mtu(60), burst: 0 }).expect("a meter");
    // As Open vSwitch's check_pkt_larger: what is longer goes to software.
    let rule =
        card.rule(Match::new(), [police(1, Control::Pipe, Control::Jump(2)), Action::Redirect(TWO), Action::Trap]);
    let sent = |card: &mut Card, data: usize| card.send(&ipv4(IP_A, IP_B, UDP, &udp(1, 2, &vec![0; data]))).fate;
    assert_eq!(sent(&mut card, 18), Fate::Forwarded, "60 bytes with the Ethernet header");
    assert_eq!(sent(&mut card, 19), Fate::Trapped);
    assert_eq!(sent(&mut card, 18), Fate::Forwarded, "there are no tokens to run out of");
    let bucket = card.state.bucket(MeterId(1)).expect("the meter was used");
    assert_eq!((bucket.conformed, bucket.exceeded, card.state.counter(rule).packets), (2, 1, 3));
    assert!(card.tables.set_meter(MeterId(2), Meter { rate: Rate::Mtu(0), burst: 1 }).is_err());
}

#[test]
fn a_meter_is_shared_by_rules_and_removed_after_them() {
    let mut card = Card::new();
    card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(1), burst: 1 }).expect("a meter");
    let actions = [police(1, Control::Pipe, Control::Drop), Action::Redirect(TWO)];
    let rules = [card.rule(ip_proto(UDP), actions.clone()), card.rule(ip_proto(TCP), actions)];
    assert_eq!(card.send(&udp_frame()).fate, Fate::Forwarded);
    assert!(matches!(card.send(&tcp_frame(SYN)).fate, Fate::Dropped(_)));
    assert!(!card.tables.remove_meter(MeterId(1)));
    rules.into_iter().for_each(|rule| drop(card.tables.remove(rule)));
    assert!(card.tables.remove_meter(MeterId(1)));
}

#[test]
fn samples_are_as_many_as_the_rate_says_and_the_same_again() {
    let run = || {
        let mut card = Card::new();
        let sample = Sample { rate: 10, group: 4, truncate: Some(20) };
        card.rule(Match::new(), [Action::Sample(sample), Action::Redirect(TWO)]);
        (0..1000).map(|_| card.send(&udp_frame()).samples).collect::<Vec<_>>()
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    let samples: Vec<_> = first.into_iter().flatten().collect();
    assert!((60..140).contains(&samples.len()), "{}", samples.len());
    let sample = &samples[0];
    assert_eq!((sample.group, sample.rate, sample.in_port, sample.length), (4, 10, ONE, udp_frame().len()));
    assert_eq!(sample.frame, udp_frame()[..20]);
}

#[test]
fn values_are_bytes_in_network_order() {
    assert_eq!(0x1234u16.field_bytes(), [0x12, 0x34]);
    assert_eq!(IP_A.field_bytes(), [10, 0, 0, 1]);
}

#[test]
fn a_checksum_of_udp_that_comes_out_as_zero_is_written_as_ones() {
    let edits = |port: u16| [Edit::set(EditField::UdpDst, port), Action::Csum(Csum::UDP)];
    let check = |frame: &[u8]| u16::from_be_bytes([frame[40], frame[41]]);
    let sent = |port, actions: &[Action]| check(&Card::changed(ip_proto(UDP), actions, &to_port(port)));
    // One port in 65,536 makes the checksum zero.
    let port = (0..=u16::MAX).find(|port| check(&to_port(*port)) == 0xffff).expect("there is such a port");
    assert_eq!(sent(port ^ 1, &edits(port)[..1]), 0xffff);
    assert_eq!(sent(port, &edits(port)[1..]), 0xffff);
}

fn to_port(port: u16) -> Vec<u8> {
    ipv4(IP_A, IP_B, UDP, &udp(1000, port, b"data"))
}
