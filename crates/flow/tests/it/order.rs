//! The order in which rules are asked, and that a frame that misses has changed nothing.

use crate::common::*;
use flow::{
    Action, Block, Capabilities, Ct, DropReason, Fate, Field, Match, Meter, MeterId, MissReason, Police, Protocol,
    Rate, Rule, RuleError, Sample,
};

/// The port to which each rule sends says which rule matched.
fn to(rule: u32) -> [Action; 1] {
    [Action::Redirect(flow::Port(rule))]
}

fn output(card: &mut Card, frame: &[u8]) -> Option<u32> {
    card.send(frame).outputs.first().map(|output| output.port.0)
}

#[test]
fn a_lower_priority_is_asked_first() {
    let mut card = Card::new();
    card.add(Rule::new(ONE, ip(), to(2)).with_priority(7, Protocol::All));
    card.add(Rule::new(ONE, Match::new(), to(3)).with_priority(3, Protocol::All));
    assert_eq!(output(&mut card, &udp_frame()), Some(3));
}

#[test]
fn masks_are_asked_in_the_order_in_which_they_were_added() {
    let by_mac = || Match::new().with(Field::EthDst, MAC_B);
    for (first, second) in [(ip(), by_mac()), (by_mac(), ip())] {
        let mut card = Card::new();
        card.rule(first, to(2));
        card.rule(second, to(3));
        assert_eq!(output(&mut card, &udp_frame()), Some(2));
    }
}

#[test]
fn a_mask_that_has_lost_its_last_rule_goes_behind_the_others() {
    let mut card = Card::new();
    let first = card.rule(ip(), to(2));
    card.rule(Match::new().with(Field::EthDst, MAC_B), to(3));
    let again = card.tables.remove(first).expect("the rule is there");
    card.add(again);
    assert_eq!(output(&mut card, &udp_frame()), Some(3));
}

#[test]
fn in_a_mask_only_the_key_counts() {
    let mut card = Card::new();
    card.rule(Match::new().with(Field::EthDst, MAC_A), to(2));
    card.rule(Match::new().with(Field::EthDst, MAC_B), to(3));
    assert_eq!(output(&mut card, &udp_frame()), Some(3));
}

#[test]
fn of_two_ranges_the_first_is_asked_first() {
    let mut card = Card::new();
    card.rule(ip_proto(UDP).with_dst_ports(1..=9000), to(2));
    card.rule(ip_proto(UDP).with_dst_ports(2000..=2000), to(3));
    assert_eq!(output(&mut card, &udp_frame()), Some(2));
}

#[test]
fn a_priority_takes_frames_of_its_protocol() {
    let mut card = Card::new();
    card.add(Rule::new(ONE, Match::new(), to(2)).with_priority(1, Protocol::Is(0x0806)));
    card.add(Rule::new(ONE, Match::new(), to(3)).with_priority(2, Protocol::Is(0x0800)));
    assert_eq!(output(&mut card, &udp_frame()), Some(3));
    assert_eq!(output(&mut card, &arp(1, IP_A, IP_B)), Some(2));
    assert_eq!(output(&mut card, &tagged(&udp_frame(), 0x8100, 1, 0)), None, "the outermost EtherType counts");
}

#[test]
fn a_priority_has_one_protocol_and_no_match_twice() {
    let mut card = Card::new();
    let first = card.add(Rule::new(ONE, ip(), to(2)).with_priority(1, Protocol::Is(0x0800)));
    let other = Rule::new(ONE, Match::new(), to(2)).with_priority(1, Protocol::All);
    let error = card.tables.add(other).expect_err("the priority is for IPv4");
    assert_eq!(error, RuleError::ProtocolOfPriority(Protocol::Is(0x0800)));
    assert_eq!(error.to_string(), "Filter with specified priority/protocol not found");
    let same = Rule::new(ONE, ip(), to(3)).with_priority(1, Protocol::Is(0x0800));
    assert_eq!(card.tables.add(same), Err(RuleError::Exists(first)));
}

#[test]
fn blocks_have_nothing_to_do_with_each_other() {
    let mut card = Card::new();
    card.add(Rule::new(TWO, Match::new(), to(3)));
    assert_eq!(output(&mut card, &udp_frame()), None);
    assert_eq!(card.send_to(TWO, &udp_frame()).outputs[0].port, THREE);
}

#[test]
fn a_frame_goes_from_chain_to_chain() {
    let mut card = Card::new();
    let first = card.rule(Match::new(), [Action::Goto(5)]);
    let second = card.add(Rule::new(ONE, ip(), [Action::Goto(9)]).in_chain(5));
    let third = card.add(Rule::new(ONE, ip(), to(2)).in_chain(9));
    let verdict = card.send(&udp_frame());
    assert_eq!((verdict.counted, verdict.fate), (vec![first, second, third], Fate::Forwarded));
    for rule in [first, second, third] {
        let counter = card.state.counter(rule);
        assert_eq!((counter.packets, counter.bytes, counter.last_used), (1, udp_frame().len() as u64, card.now));
    }
}

#[test]
fn a_frame_does_not_go_round_for_ever() {
    let mut card = Card::new();
    let rule = card.rule(Match::new(), [Action::Goto(0)]);
    assert_eq!(card.send(&udp_frame()).fate, Fate::Dropped(DropReason::TooManyGotos));
    assert_eq!(card.state.counter(rule).packets, 17);
}

#[test]
fn a_miss_in_a_later_chain_changes_nothing() {
    let mut card = Card::new();
    card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(5), burst: 5 }).expect("a meter");
    let police = Police { meter: MeterId(1), conform: flow::Control::Pipe, exceed: flow::Control::Drop };
    let actions = vec![
        Action::Mirror(TWO),
        Action::Police(police),
        Action::Sample(Sample { rate: 1, group: 1, truncate: None }),
        Action::Ct(Ct { commit: true, mark: Some((1, 1)), ..Ct::default() }),
        Action::VlanPush(flow::VlanTag { tpid: 0x8100, id: 1, priority: 0 }),
        Action::Goto(1),
    ];
    let rule = card.rule(Match::new(), actions);
    card.add(Rule::new(ONE, Match::new().with(Field::EthDst, MAC_A), [Action::Drop]).in_chain(1));
    let before = card.state.clone();
    let verdict = card.send(&udp_frame());
    assert_eq!(verdict.fate, Fate::Missed(MissReason::NoRule { chain: 1 }));
    assert!(verdict.outputs.is_empty() && verdict.samples.is_empty() && verdict.counted.is_empty());
    assert_eq!(card.state, before);
    // The same frame changes all of it once the later chain has a rule for it.
    card.add(Rule::new(ONE, Match::new(), [Action::Drop]).in_chain(1));
    assert_eq!(card.send(&udp_frame()).counted[0], rule);
    assert!(card.state.bucket(MeterId(1)).is_some() && card.state.connections().len() == 1 && card.state != before);
}

#[test]
fn a_rule_without_a_place_leaves_the_others() {
    let capabilities = Capabilities { max_rules: 3, max_masks: 1, ..Capabilities::everything() };
    let mut card = Card::with(capabilities);
    let results = card.tables.add_batch([
        Rule::new(ONE, ip(), to(2)),
        Rule::new(ONE, Match::new().with(Field::EthDst, MAC_A), to(2)),
        Rule::new(ONE, ip6(), to(2)),
        Rule::new(ONE, ip(), to(99)),
        Rule::new(ONE, arp_like(), to(2)),
        Rule::new(ONE, Match::new().with(Field::EthType, 7u16), to(2)),
    ]);
    let errors: Vec<_> = results.iter().map(|result| result.err()).collect();
    let expected = [
        None,
        Some(RuleError::TooManyMasks),
        None,
        Some(RuleError::UnknownPort(flow::Port(99))),
        None,
        Some(RuleError::TooManyRules),
    ];
    assert_eq!(errors, expected);
    assert_eq!(card.tables.rules().count(), 3);
}

fn arp_like() -> Match {
    Match::new().with(Field::EthType, 0x0806u16)
}

#[test]
fn rules_go_with_a_port_and_names_are_not_used_again() {
    let mut card = Card::new();
    let on_it = card.add(Rule::new(TWO, Match::new(), to(1)));
    let to_it = card.rule(ip(), to(2));
    let other = card.rule(Match::new(), to(3));
    assert_eq!(card.tables.remove_port(TWO), [on_it, to_it]);
    assert_eq!(card.tables.rules().map(|(id, _)| id).collect::<Vec<_>>(), [other]);
    let next = card.rule(ip(), to(3));
    assert!(next > other);
    card.tables.remove(next);
    assert!(card.rule(ip(), to(3)) > next);
    assert!(card.tables.add(Rule::new(TWO, Match::new(), to(1))).is_err());
}

#[test]
fn the_trace_says_what_was_asked() {
    let mut card = Card::new();
    card.add(Rule::new(ONE, Match::new(), [Action::Drop]).with_priority(1, Protocol::Is(0x0806)));
    card.add(Rule::new(ONE, ip().with(Field::Ip4Dst, IP_A), [Action::Drop]).with_priority(2, Protocol::Is(0x0800)));
    card.add(Rule::new(ONE, ip_proto(UDP), [Action::VlanPop, Action::Goto(1)]).with_priority(2, Protocol::Is(0x0800)));
    let trace = card.send(&udp_frame()).trace.to_string();
    assert_eq!(
        trace,
        "port 1:\n  chain 0:\n    priority 1 is for protocol arp, not ip\n    priority 2 (protocol ip), eth_type dst_ip: \
         no rule matches\n    priority 2 (protocol ip), eth_type ip_proto: rule 3 matches\n      has no VLAN tag to \
         pop\n      goes on in chain 1\n  chain 1:\nmissed, no rule of chain 1 matches: the representor gets it as it \
         came\n"
    );
}

#[test]
fn a_frame_without_an_ethernet_header_is_dropped() {
    let mut card = Card::new();
    card.rule(Match::new(), to(2));
    assert_eq!(card.send(&[0; 13]).fate, Fate::Dropped(DropReason::TooShort));
    assert_eq!(card.tables.block_of(ONE), Block::Port(ONE));
}

#[test]
fn what_changed_twice_is_taken_back_twice() {
    let twice = || tagged(&tagged(&udp_frame(), 0x8100, 1, 0), 0x8100, 2, 0);
    let tagged_frame = Match::new().with(Field::VlanTpid, 0x8100u16);
    let mut card = Card::new();
    card.add(Rule::new(UPLINK, tagged_frame, [Action::VlanPop, Action::Goto(0)]));
    // The tunnel device is not asked, as rules of the uplink have matched.
    let device = flow::TunnelDevice { kind: flow::TunnelKind::Gre, udp_port: 0 };
    card.add(Rule::new(UPLINK, Match::new(), [Action::Drop]).in_block(Block::Tunnel(device)));
    let before = card.state.clone();
    assert_eq!(card.send_to(UPLINK, &twice()).fate, Fate::Missed(MissReason::NoRule { chain: 0 }));
    let gre = ipv4(IP_A, IP_B, 47, &[&[0, 0, 0x65, 0x58][..], &udp_frame()].concat());
    assert_eq!(card.send_to(UPLINK, &tagged(&gre, 0x8100, 1, 0)).fate, Fate::Missed(MissReason::NoRule { chain: 0 }));
    assert_eq!(card.state, before);
    assert!(matches!(card.send_to(UPLINK, &gre).fate, Fate::Dropped(_)));
}
