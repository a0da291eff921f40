//! What is refused when a rule is added, and with which words.

use crate::common::*;
use flow::{
    Action, Block, Capabilities, Control, Csum, Ct, Edit, EditField, Encap, Field, Match, Meter, MeterId, Nat,
    NatRange, Police, Port, Rate, Rule, RuleError, Sample, TunnelDevice, TunnelKind, VlanTag,
};

fn redirect() -> Vec<Action> {
    vec![Action::Redirect(TWO)]
}

fn refusal(card: &mut Card, rule: Rule) -> Option<RuleError> {
    let before = card.tables.rules().count();
    let error = card.tables.add(rule).err();
    assert_eq!(card.tables.rules().count() == before, error.is_some());
    error
}

fn police(conform: Control, exceed: Control) -> Action {
    Action::Police(Police { meter: MeterId(1), conform, exceed })
}

fn encap() -> Encap {
    Encap {
        kind: TunnelKind::Vxlan,
        id: Some(1),
        src: addr(IP_A),
        dst: addr(IP_B),
        dst_port: 4789,
        tos: 0,
        ttl: 64,
        options: Vec::new(),
        neighbour: None,
    }
}

fn ct() -> Action {
    Action::Ct(Ct::default())
}

fn nat(range: NatRange) -> Vec<Action> {
    vec![Action::Ct(Ct { nat: Some(Nat::Src(range)), ..Ct::default() }), Action::Redirect(TWO)]
}

fn device(kind: TunnelKind) -> Block {
    Block::Tunnel(TunnelDevice { kind, udp_port: 4789 })
}

/// What every card refuses: a match and actions that make no sense.
fn senseless() -> Vec<(RuleError, Match, Vec<Action>)> {
    let needs = |field, needs| RuleError::Needs { field, needs };
    let tcp = || ip_proto(TCP);
    let one = |error, action| (error, Match::new(), vec![action, Action::Redirect(TWO)]);
    let matches = |error, matches| (error, matches, redirect());
    let new_and = |other| Match::new().with_ct_state(Field::CT_TRACKED | Field::CT_NEW | other, 0);
    vec![
        matches(RuleError::ValueSize(Field::VlanId), Match::new().with(Field::VlanId, 1u32)),
        matches(RuleError::TwoFamilies, ip().with(Field::Ip4Src, IP_A).with(Field::Ip6Src, IP6_A)),
        matches(RuleError::EmptyRange, tcp().with_dst_ports(std::ops::RangeInclusive::new(2, 1))),
        matches(needs(Field::VlanId, "vlan_tpid"), Match::new().with(Field::VlanId, 1u16)),
        matches(needs(Field::CvlanTpid, "vlan_tpid"), Match::new().with(Field::CvlanTpid, 0x8100u16)),
        matches(needs(Field::Ip4Src, "the EtherType of IPv4"), ip6().with(Field::Ip4Src, IP_A)),
        matches(needs(Field::Ip6Dst, "the EtherType of IPv6"), Match::new().with(Field::Ip6Dst, IP6_A)),
        matches(needs(Field::IpTtl, "the EtherType of IP"), Match::new().with(Field::IpTtl, 1u8)),
        matches(needs(Field::ArpOp, "the EtherType of ARP"), ip().with(Field::ArpOp, 1u8)),
        matches(needs(Field::DstPort, "the protocol TCP, UDP or SCTP"), ip_proto(ICMP).with(Field::DstPort, 1u16)),
        matches(needs(Field::SrcPort, "the protocol TCP, UDP or SCTP"), ip().with_src_ports(1..=2)),
        matches(needs(Field::TcpFlags, "the protocol TCP"), ip_proto(UDP).with(Field::TcpFlags, 2u16)),
        matches(needs(Field::IcmpType, "the protocol ICMP or ICMPv6"), ip_proto(ICMPV6).with(Field::IcmpType, 8u8)),
        matches(RuleError::NoTunnelHere, Match::new().with(Field::EncKeyId, 1u32)),
        matches(RuleError::OtherInPort, Match::new().with(Field::InPort, TWO.0)),
        matches(RuleError::UnknownPort(Port(77)), Match::new().with(Field::InPort, 77u32)),
        matches(
            RuleError::CtState("no trk, so no other flag can be set"),
            Match::new().with_ct_state(Field::CT_NEW, 0),
        ),
        matches(RuleError::CtState("new and est are mutually exclusive"), new_and(Field::CT_ESTABLISHED)),
        matches(RuleError::CtState("new and rpl are mutually exclusive"), new_and(Field::CT_REPLY)),
        matches(RuleError::CtState("when inv is set, only trk may be set"), new_and(Field::CT_INVALID)),
        (RuleError::NoFate, Match::new(), vec![]),
        (RuleError::NoFate, Match::new(), vec![Action::VlanPop]),
        (RuleError::NoFate, Match::new(), vec![police(Control::Jump(2), Control::Pipe), Action::Redirect(TWO)]),
        (RuleError::Unreachable(1), Match::new(), vec![Action::Drop, Action::Redirect(TWO)]),
        (RuleError::BadJump(0), Match::new(), vec![police(Control::Jump(0), Control::Drop), Action::Redirect(TWO)]),
        (RuleError::BadJump(0), Match::new(), vec![police(Control::Jump(9), Control::Pipe), Action::Redirect(TWO)]),
        (RuleError::UnknownPort(Port(77)), Match::new(), vec![Action::Mirror(Port(77)), Action::Drop]),
        one(
            RuleError::UnknownMeter(MeterId(9)),
            Action::Police(Police { meter: MeterId(9), conform: Control::Pipe, exceed: Control::Drop }),
        ),
        one(RuleError::BadVlan, Action::VlanPush(VlanTag { tpid: 0x8100, id: 4096, priority: 0 })),
        one(RuleError::BadVlan, Action::VlanPush(VlanTag { tpid: 0x0800, id: 1, priority: 0 })),
        one(RuleError::BadVlan, Action::VlanPush(VlanTag { tpid: 0x8100, id: 1, priority: 8 })),
        one(RuleError::VlanModifyWithoutMatch, Action::VlanModify { tpid: 0x8100, id: 1, priority: None }),
        one(RuleError::EditSize(EditField::EthDst), Edit::set(EditField::EthDst, 1u16)),
        one(RuleError::EditSize(EditField::EthDst), Edit::add(EditField::EthDst, 1)),
        one(RuleError::EditWithoutMatch(EditField::Ip4Ttl), Edit::set(EditField::Ip4Ttl, 1u8)),
        one(RuleError::EditWithoutMatch(EditField::TcpDst), Edit::set(EditField::TcpDst, 1u16)),
        one(RuleError::EditWithoutMatch(EditField::Ip4Ttl), Action::DecTtl),
        one(RuleError::UnsupportedCsum, Action::Csum(Csum::SCTP)),
        one(RuleError::NoTunnelHere, Action::TunnelUnset),
        one(RuleError::SampleRate, Action::Sample(Sample { rate: 0, group: 0, truncate: None })),
        (RuleError::TunnelWithoutOutput, Match::new(), vec![Action::TunnelSet(encap()), Action::Drop]),
        (RuleError::BadNatRange, Match::new(), nat(NatRange { addresses: addr(IP_B)..=addr(IP_A), ports: None })),
        (RuleError::BadNatRange, Match::new(), nat(NatRange { addresses: addr(IP_A)..=IP6_A.into(), ports: None })),
    ]
}

#[test]
fn what_makes_no_sense_is_refused() {
    for capabilities in [Capabilities::everything(), Capabilities::connectx()] {
        for (expected, matches, actions) in senseless() {
            let mut card = Card::with(capabilities);
            card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(1), burst: 1 }).expect("a meter");
            assert_eq!(refusal(&mut card, Rule::new(ONE, matches, actions)), Some(expected));
        }
    }
}

#[test]
fn a_tunnel_whose_header_cannot_be_written_is_refused() {
    let wrong = [
        Encap { dst: IP6_A.into(), ..encap() },
        Encap { id: None, ..encap() },
        Encap { id: Some(1 << 24), ..encap() },
        Encap { dst_port: 0, ..encap() },
        Encap { ttl: 0, ..encap() },
        Encap { options: vec![0; 4], ..encap() },
        Encap { kind: TunnelKind::Geneve, options: vec![0; 5], ..encap() },
        Encap { kind: TunnelKind::Geneve, options: vec![0; 256], ..encap() },
    ];
    for encap in wrong {
        let actions = [Action::TunnelSet(encap.clone()), Action::Redirect(UPLINK)];
        let error = refusal(&mut Card::new(), Rule::new(ONE, Match::new(), actions));
        assert!(matches!(error, Some(RuleError::BadTunnel(_))), "{encap:?}");
    }
}

/// What mlx5 refuses and this card could do.
fn not_on_mlx5() -> Vec<(&'static str, Match, Vec<Action>)> {
    let tcp = || ip_proto(TCP);
    let arp = Match::new().with(Field::EthType, 0x0806u16).with(Field::ArpOp, 1u8);
    let tagged = || Match::new().with(Field::VlanTpid, 0x8100u16).with(Field::VlanPrio, 3u8);
    let push = || Action::VlanPush(VlanTag { tpid: 0x8100, id: 1, priority: 0 });
    let sample = || Action::Sample(Sample { rate: 1, group: 0, truncate: None });
    let trk = Field::CT_TRACKED;
    let edit = |field| Edit::set(field, 1u16);
    let rows = [
        ("Unsupported key", arp, redirect()),
        (
            "Match on frag first/later is not supported",
            ip().with(Field::IpFlags, Field::FRAG | Field::FIRST_FRAG),
            redirect(),
        ),
        ("Unsupported key", tcp().with_dst_ports(1..=2), redirect()),
        (
            "Only UDP and TCP transports are supported for L4 matching",
            ip_proto(SCTP).with(Field::DstPort, 1u16),
            redirect(),
        ),
        (
            "matching on ct_state +rel isn't supported",
            Match::new().with_ct_state(trk | Field::CT_RELATED, 0),
            redirect(),
        ),
        (
            "matching on ct_state +inv isn't supported",
            Match::new().with_ct_state(trk | Field::CT_INVALID, 0),
            redirect(),
        ),
        ("can't duplicate output to same device", Match::new(), vec![Action::Mirror(TWO), Action::Redirect(TWO)]),
        ("can't forward from a VF to itself", Match::new(), vec![Action::Redirect(ONE)]),
        ("Rule cannot support forward+drop action", Match::new(), vec![Action::Mirror(TWO), Action::Drop]),
        ("Drop with modify header action is not supported", ip(), vec![Action::DecTtl, Action::Drop]),
        ("action trap is supported as a sole action only", Match::new(), vec![Action::Mirror(TWO), Action::Trap]),
        (
            "Total vlans used is greater than supported",
            Match::new(),
            vec![push(), push(), push(), Action::Redirect(TWO)],
        ),
        (
            "Changing VLAN prio is not supported",
            tagged(),
            vec![Action::VlanModify { tpid: 0x8100, id: 1, priority: Some(4) }, Action::Redirect(TWO)],
        ),
        ("Multiple CT actions are not supported", Match::new(), vec![ct(), ct(), Action::Redirect(TWO)]),
        (
            "Sample action with connection tracking is not supported",
            Match::new(),
            vec![ct(), sample(), Action::Redirect(TWO)],
        ),
        (
            "TC csum action is only offloaded with pedit",
            Match::new(),
            vec![Action::Csum(Csum::TCP), Action::Redirect(TWO)],
        ),
        (
            "curr_pmask and new mask same. Acting twice on same location",
            tcp(),
            vec![edit(EditField::TcpDst), edit(EditField::TcpDst), Action::Redirect(TWO)],
        ),
        (
            "rewrite of few sub-fields isn't supported",
            tcp(),
            vec![Edit::set_masked(EditField::TcpDst, 0u16, 0x0101u16), Action::Redirect(TWO)],
        ),
        (
            "can't offload re-write of non TCP/UDP",
            ip(),
            vec![Edit::set(EditField::Ip4Src, IP_A), Action::Redirect(TWO)],
        ),
    ];
    rows.into_iter().collect()
}

#[test]
fn what_mlx5_refuses_is_refused_in_its_words() {
    for (words, matches, actions) in not_on_mlx5() {
        let rule = Rule::new(ONE, matches, actions);
        let error = refusal(&mut Card::with(Capabilities::connectx()), rule.clone());
        assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(words));
        assert_eq!(refusal(&mut Card::with(Capabilities::everything()), rule), None, "{words}");
    }
}

#[test]
fn what_openvswitch_offloads_is_accepted() {
    let edit = |field, value: [u8; 6]| Edit::set(field, value);
    let rows: [(Match, Vec<Action>); 6] = [
        (ip_proto(TCP).with(Field::EthDst, MAC_B).with_masked(Field::Ip4Dst, IP_B, IP_B), redirect()),
        (
            ip(),
            vec![
                edit(EditField::EthDst, MAC_A),
                edit(EditField::EthSrc, MAC_B),
                Edit::add(EditField::Ip4Ttl, 0xff),
                Action::Redirect(TWO),
            ],
        ),
        (
            ip_proto(UDP).with(Field::DstPort, 1u16),
            vec![Edit::set(EditField::UdpDst, 2u16), Action::Csum(Csum::UDP), Action::Redirect(TWO)],
        ),
        (ip().with_masked(Field::IpFlags, 0u8, Field::FRAG), vec![ct(), Action::Goto(1)]),
        (Match::new(), vec![Action::TunnelSet(encap()), Action::Redirect(UPLINK)]),
        (
            Match::new().with(Field::VlanTpid, 0x8100u16).with(Field::VlanId, 5u16),
            vec![Action::VlanPop, Action::Redirect(TWO)],
        ),
    ];
    for (matches, actions) in rows {
        assert_eq!(refusal(&mut Card::with(Capabilities::connectx()), Rule::new(ONE, matches, actions)), None);
    }
    let tunnel = Match::new().with(Field::EncDstPort, 4789u16).with(Field::EncKeyId, 5u32);
    let rule =
        Rule::new(UPLINK, tunnel, [Action::TunnelUnset, Action::Redirect(TWO)]).in_block(device(TunnelKind::Vxlan));
    assert_eq!(refusal(&mut Card::with(Capabilities::connectx()), rule), None);
}

#[test]
fn a_rule_of_a_tunnel_has_limits_of_its_own() {
    let mut card = Card::with(Capabilities::connectx());
    let rule = |matches, actions: Vec<Action>| Rule::new(UPLINK, matches, actions).in_block(device(TunnelKind::Vxlan));
    assert_eq!(refusal(&mut card, rule(Match::new(), redirect())), Some(RuleError::NoTunnelPort));
    let matches = Match::new().with(Field::EncDstPort, 4789u16);
    let actions = vec![Action::TunnelUnset, Action::Goto(1)];
    assert_eq!(refusal(&mut card, rule(matches, actions)), Some(RuleError::DecapWithGoto));
    let gre = Rule::new(UPLINK, Match::new(), redirect()).in_block(device(TunnelKind::Gre));
    assert_eq!(refusal(&mut card, gre), None);
}

#[test]
fn chains_and_priorities_have_ends() {
    let mut card = Card::with(Capabilities::connectx_with_flow_levels());
    let rule = || Rule::new(ONE, Match::new(), redirect());
    let goto = |from, to| Rule::new(ONE, Match::new(), [Action::Goto(to)]).in_chain(from);
    let all = flow::Protocol::All;
    assert_eq!(refusal(&mut card, rule().in_chain(4)), Some(RuleError::ChainOutOfRange));
    assert_eq!(refusal(&mut card, rule().with_priority(0, all)), Some(RuleError::PriorityOutOfRange));
    assert_eq!(refusal(&mut card, rule().with_priority(17, all)), Some(RuleError::PriorityOutOfRange));
    assert_eq!(refusal(&mut card, goto(0, 4)), Some(RuleError::GotoOutOfRange));
    assert_eq!(refusal(&mut card, goto(2, 2)), Some(RuleError::GotoBackwards));
    assert_eq!(refusal(&mut card, goto(2, 3)), None);
    let mut card = Card::with(Capabilities::connectx());
    assert_eq!(refusal(&mut card, goto(2, 2)), None);
    assert_eq!(refusal(&mut card, goto(3, u32::MAX)), Some(RuleError::GotoOutOfRange));
}

#[test]
fn an_uplink_sends_to_no_other_uplink() {
    let mut card = Card::with(Capabilities::connectx());
    card.tables.add_port(Port(0xfffe), flow::PortKind::Uplink);
    let to = |port| Rule::new(UPLINK, Match::new(), [Action::Redirect(port)]);
    assert_eq!(refusal(&mut card, to(Port(0xfffe))), Some(RuleError::UplinkToUplink));
    assert_eq!(refusal(&mut card, to(UPLINK)), None);
}

#[test]
fn a_rule_sends_to_at_most_32_ports() {
    let mut card = Card::with(Capabilities::connectx());
    (100..133).for_each(|port| card.tables.add_port(Port(port), flow::PortKind::Vport));
    let mirrors = |count: u32| (100..100 + count).map(|port| Action::Mirror(Port(port))).collect::<Vec<_>>();
    assert_eq!(refusal(&mut card, Rule::new(ONE, ip(), mirrors(33))), Some(RuleError::TooManyOutputs));
    assert_eq!(refusal(&mut card, Rule::new(ONE, ip(), mirrors(32))), None);
}

#[test]
fn meters_have_limits() {
    let mut card = Card::with(Capabilities { max_meters: 1, ..Capabilities::connectx() });
    let meter = Meter { rate: Rate::Bytes(1), burst: 1 };
    assert_eq!(card.tables.set_meter(MeterId(1), Meter { burst: 0, ..meter }), Err(RuleError::MeterWithoutRate));
    assert_eq!(
        card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(0), burst: 1 }),
        Err(RuleError::MeterWithoutRate)
    );
    assert_eq!(card.tables.set_meter(MeterId(1), meter), Ok(()));
    assert_eq!(card.tables.set_meter(MeterId(1), meter), Ok(()));
    assert_eq!(card.tables.set_meter(MeterId(2), meter), Err(RuleError::TooManyMeters));
}

#[test]
fn each_way_through_the_actions_needs_an_end() {
    let mut card = Card::new();
    card.tables.set_meter(MeterId(1), Meter { rate: Rate::Packets(1), burst: 1 }).expect("a meter");
    let jumps_over = [police(Control::Pipe, Control::Jump(2)), Action::Mirror(TWO)];
    assert_eq!(refusal(&mut card, Rule::new(ONE, Match::new(), jumps_over)), Some(RuleError::NoFate));
    let drops = [police(Control::Pipe, Control::Drop), Action::Mirror(TWO)];
    assert_eq!(refusal(&mut card, Rule::new(ONE, Match::new(), drops)), None);
}

#[test]
fn bits_side_by_side_anywhere_in_a_field_are_rewritten() {
    let mut card = Card::with(Capabilities::connectx());
    let dscp = Edit::set_masked(EditField::Ip4Tos, 0u8, 0xfcu8);
    assert_eq!(refusal(&mut card, Rule::new(ONE, ip_proto(TCP), [dscp, Action::Redirect(TWO)])), None);
    let class = Edit::set_masked(EditField::Ip6TrafficClass, 0u16, 0x0fc0);
    let v6 = ip6().with(Field::IpProto, TCP);
    assert_eq!(refusal(&mut card, Rule::new(ONE, v6, [class, Action::Redirect(TWO)])), None);
}

#[test]
fn behind_a_connection_a_field_is_rewritten_again() {
    let edit = || Edit::set(EditField::TcpDst, 1u16);
    let actions = [edit(), ct(), edit(), Action::Redirect(TWO)];
    assert_eq!(refusal(&mut Card::with(Capabilities::connectx()), Rule::new(ONE, ip_proto(TCP), actions)), None);
}
