use std::net::Ipv4Addr;

use flow::generate::{Generator, Options};
use flow::{Ct, Encap, Police, Sample, TunnelDevice, TunnelKind, VlanTag};
use netlink::{Header as MessageHeader, message};
use tc::{Netdev, Request, Target, Verb};

use super::*;

const ON: Port = Port(1);
const TO: Port = Port(2);
const UPLINK: Port = Port(0xffff);
/// The netdev of the port that has the rules, and its representor's.
const NETDEV: u32 = 1_000;
const INNER: u32 = 2_000;
/// Stands for the representor where a filter is read back.
const REPRESENTOR: Port = Port(INNER);

/// The filter of a rule, in the bytes of its request. Frames to port N are sent out of netdev 3,000 + N.
fn filter(rule: &Rule, meter: Option<Meter>) -> Result<Vec<u8>, Lacks> {
    let mut index = 100;
    let mut fresh = || {
        index += 1;
        index
    };
    let mut around = Around {
        counter: 7,
        fresh: &mut fresh,
        port: &|port| Some(3_000 + port.0),
        representor: Some(INNER),
        meter: &|id| Some((id.0, meter?)),
    };
    let (place, keys) = (place(NETDEV, rule, 5)?, keys(rule)?);
    let actions = actions(rule, &mut around)?;
    let header = MessageHeader::new(RTM_NEWTFILTER, Flags::REQUEST | Flags::CREATE | Flags::REPLACE, 1, 0);
    Ok(message(header, |to| write(to, &place, &keys, &actions)).unwrap())
}

/// The rule and the meters that a request for a filter is, as a reader of tc's messages understands it.
fn read_back(bytes: &[u8]) -> tc::Offload {
    let target = |index| Target::Port(if index == INNER { REPRESENTOR } else { Port(index - 3_000) });
    let netdev = Netdev { port: ON, tunnel: None, number: 1 };
    let request = Request::read(&Message::first(bytes).unwrap(), netdev, &mut { target }).unwrap().unwrap();
    let Verb::Add { spec, .. } = request.verb else { panic!("{request:?}") };
    let place = request.place;
    assert_eq!(place.handle, 5);
    let protocol = if place.protocol == 3 { Protocol::All } else { Protocol::Is(place.protocol) };
    let place = (place.chain.unwrap() - 1, place.priority, protocol);
    spec.offload(flow::Block::Port(ON), UPLINK, place).unwrap_or_else(|error| panic!("{spec:?}: {error:?}"))
}

/// The rule in the form in which it is read back: what an edit implies for checksums is said by an action, and what can be
/// said in two ways is said in one.
fn as_read(rule: &Rule) -> Rule {
    let mut actions: Vec<Action> = rule.actions.iter().filter(|a| !matches!(a, Action::Csum(_))).cloned().collect();
    for action in &mut actions {
        match action {
            Action::Trap => *action = Action::Redirect(REPRESENTOR),
            Action::VlanModify { priority: priority @ Some(0), .. } => *priority = None,
            // The card's chains begin at the kernel's chain 1.
            Action::Goto(chain) => *chain += 1,
            _ => {}
        }
    }
    if let Some(Action::Mirror(port)) = rule.actions.last() {
        actions.pop();
        actions.push(Action::Redirect(*port));
    }
    Rule { actions, ..rule.clone() }
}

/// What a match asks for, without what other fields say already.
fn fields(matches: &Match) -> Vec<(Field, Vec<u8>, Vec<u8>)> {
    let said = |field: &Field| matches!(field, Field::InPort | Field::VlanEthType | Field::CvlanEthType);
    let fields = matches.mask().fields().filter(|field| !said(field));
    let cut = |field: Field, bytes: &[u8]| match field {
        // Of a tag's number only these bits are there.
        Field::VlanId | Field::CvlanId => vec![bytes[0] & 0xf, bytes[1]],
        Field::VlanPrio | Field::CvlanPrio => vec![bytes[0] & 7],
        _ => bytes.to_vec(),
    };
    let mut fields: Vec<_> =
        fields.map(|f| (f, cut(f, matches.value().get(f)), cut(f, matches.mask().get(f)))).collect();
    // What follows the last tag is behind all of them.
    let has = |field| matches.mask().has(field);
    let last = if has(Field::CvlanTpid) { Field::CvlanEthType } else { Field::VlanEthType };
    if has(last) && !has(Field::EthType) {
        fields.push((Field::EthType, matches.value().get(last).to_vec(), vec![0xff; 2]));
        fields.sort();
    }
    fields
}

/// Edits in a row that have been put in order: the reader gives those of a header by field.
fn sorted(actions: &[Action]) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let same = |a: &Action, b: &Action| matches!((a, b), (Action::Edit(_), Action::Edit(_)));
    for row in actions.chunk_by(same) {
        let mut row: Vec<String> = row.iter().map(|action| format!("{action:?}")).collect();
        row.sort();
        words.extend(row);
    }
    words
}

#[test]
fn a_filter_is_read_back_as_its_rule_or_the_rule_is_refused_by_name() {
    let (mut carried, mut refused) = (0, std::collections::BTreeMap::<String, usize>::new());
    for (seed, options) in (1..=60).zip([Options::like_mlx5(), Options::default()].into_iter().cycle()) {
        let options = Options { shared_blocks: false, ..options };
        let tables = Generator::new(seed, options).tables().tables;
        for (_, rule) in tables.rules().filter(|(_, rule)| matches!(rule.block, flow::Block::Port(_))) {
            let rule = rule.clone().in_block(flow::Block::Port(ON));
            let meter = Meter { rate: Rate::Mtu(1_514), burst: 0 };
            let bytes = match filter(&rule, Some(meter)) {
                Ok(bytes) => bytes,
                Err(lacks) => {
                    *refused.entry(lacks.0).or_default() += 1;
                    continue;
                }
            };
            if !rule.actions.last().is_some_and(|last| last.ends_rule() || matches!(last, Action::Mirror(_))) {
                // It ends with `stolen`, which no rule of tc's says.
                continue;
            }
            let edits = rule.actions.chunk_by(|a, b| matches!((a, b), (Action::Edit(_), Action::Edit(_))));
            let twice = |row: &[Action]| {
                let fields =
                    row.iter().filter_map(|a| if let Action::Edit(edit) = a { Some(edit.field) } else { None });
                fields.clone().count() != fields.collect::<std::collections::HashSet<_>>().len()
            };
            if edits.into_iter().any(twice) {
                // The kernel does one after the other; the reader of tc's messages refuses it, as mlx5 does.
                continue;
            }
            carried += 1;
            let (read, wanted) = (read_back(&bytes).rule, as_read(&rule));
            assert_eq!((read.chain, read.priority, read.protocol), (wanted.chain, wanted.priority, wanted.protocol));
            assert_eq!(fields(&read.matches), fields(&wanted.matches), "{rule:?}");
            assert_eq!(
                (&read.matches.src_ports, &read.matches.dst_ports),
                (&wanted.matches.src_ports, &wanted.matches.dst_ports)
            );
            let without_sums: Vec<Action> =
                read.actions.into_iter().filter(|action| !matches!(action, Action::Csum(_))).collect();
            assert_eq!(sorted(&without_sums), sorted(&wanted.actions), "{rule:?}");
        }
    }
    println!("{carried} rules carried; refused: {refused:#?}");
    assert!(carried > 300, "{carried}");
    for name in ["ct", "dec_ttl", "sample", "tunnel_key set", "goto chain behind another action", "police with a jump"]
    {
        assert!(refused.contains_key(name), "{name} among {refused:?}");
    }
}

/// A rule for IPv4 and TCP.
fn tcp(actions: impl Into<Vec<Action>>) -> Rule {
    let matches = Match::new().with(Field::EthType, 0x0800_u16).with(Field::IpProto, 6_u8);
    Rule::new(ON, matches, actions).with_priority(1, Protocol::Is(0x0800))
}

#[test]
fn an_edit_brings_the_checksums_that_cover_it() {
    let address = Edit::set(EditField::Ip4Dst, Ipv4Addr::new(10, 0, 0, 9));
    let port = Edit::set(EditField::TcpDst, 8080_u16);
    let mac = Edit::set(EditField::EthDst, [2_u8; 6]);
    let ttl = Edit::set(EditField::Ip4Ttl, 9_u8);
    let sums = |actions: &[Action]| {
        let rule = tcp([actions, &[Action::Redirect(TO)]].concat());
        let read = read_back(&filter(&rule, None).unwrap()).rule.actions;
        let sum = |action: &Action| if let Action::Csum(which) = action { Some(which.0) } else { None };
        read.iter().filter_map(sum).collect::<Vec<u32>>()
    };
    let (ip, tcp, udp) = (Csum::IP4_HEADER.0, Csum::TCP.0, Csum::UDP.0);
    assert_eq!(sums(std::slice::from_ref(&mac)), []);
    assert_eq!(sums(std::slice::from_ref(&ttl)), [ip]);
    assert_eq!(sums(std::slice::from_ref(&port)), [tcp]);
    assert_eq!(sums(&[address.clone(), port, Action::Csum(Csum::IP4_HEADER)]), [ip | tcp | udp]);
    assert_eq!(sums(&[mac, ttl, Action::VlanPop, address]), [ip, ip | tcp | udp]);
}

#[test]
fn the_first_action_counts_and_the_last_one_ends() {
    let kinds = |rule: &Rule| {
        let mut fresh = || 9;
        let mut around = Around {
            counter: 7,
            fresh: &mut fresh,
            port: &|port| (port == TO).then_some(3_002),
            representor: None,
            meter: &|_| None,
        };
        let verdict_of = |action: &TcAction| netlink::u32_at(&action.options[0].1, 8).unwrap();
        let actions = actions(rule, &mut around).unwrap();
        assert_eq!(actions[0], verdict(7, TC_ACT_PIPE));
        actions[1..].iter().map(|action| (action.kind, verdict_of(action))).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&tcp([Action::Drop])), [("gact", TC_ACT_SHOT)]);
    assert_eq!(
        kinds(&tcp([Action::Mirror(TO), Action::Redirect(UPLINK)])),
        [("mirred", TC_ACT_PIPE), ("gact", TC_ACT_SHOT)]
    );
    assert_eq!(kinds(&tcp([Action::Mirror(UPLINK), Action::Mirror(TO)])), [("mirred", TC_ACT_STOLEN)]);
    assert_eq!(
        kinds(&tcp([Action::Mirror(TO), Action::VlanPop])),
        [("mirred", TC_ACT_PIPE), ("vlan", TC_ACT_PIPE), ("gact", TC_ACT_STOLEN)]
    );
    assert_eq!(kinds(&tcp([Action::Goto(3)])), [("gact", TC_ACT_GOTO_CHAIN | 4)]);
    assert_eq!(kinds(&tcp([Action::Trap])), [("gact", TC_ACT_SHOT)], "there is no representor");
}

#[test]
fn what_the_classifier_does_not_have_is_named() {
    let send = |action: Action| tcp([action, Action::Redirect(TO)]);
    let matching = |matches: Match| Rule::new(ON, matches, [Action::Drop]);
    let encap = Encap {
        kind: TunnelKind::Vxlan,
        id: Some(5),
        src: Ipv4Addr::LOCALHOST.into(),
        dst: Ipv4Addr::LOCALHOST.into(),
        dst_port: 4789,
        tos: 0,
        ttl: 64,
        options: Vec::new(),
        neighbour: None,
    };
    let tag = VlanTag { tpid: 0x8100, id: 7, priority: 2 };
    let jump = Police { meter: MeterId(1), conform: Control::Jump(2), exceed: Control::Drop };
    let vlan = Match::new().with(Field::VlanTpid, 0x8100_u16);
    let cases = [
        (send(Action::Ct(Ct::default())), "ct"),
        (send(Action::CtClear), "ct clear"),
        (send(Action::Sample(Sample { rate: 1, group: 1, truncate: None })), "sample"),
        (send(Action::DecTtl), "dec_ttl"),
        (send(Action::TunnelSet(encap)), "tunnel_key set"),
        (send(Action::Police(jump)), "police with a jump"),
        (send(Edit::add(EditField::TcpDst, 1)), "pedit add for TcpDst, which has 2 bytes"),
        (tcp([Action::VlanPop, Action::Goto(1)]), "goto chain behind another action"),
        (
            tcp([Action::VlanPush(tag), Action::VlanPush(tag), Edit::set(EditField::Ip4Ttl, 9_u8), Action::Drop]),
            "pedit behind two VLAN tags",
        ),
        (tcp(vec![Action::VlanPop; 32]), "room for 34 actions; a filter has at most 32"),
        (matching(Match::new().with_ct_state(1, 0)), "ct_state"),
        (matching(Match::new().with(Field::EncKeyId, 5_u32)), "enc_key_id"),
        (matching(vlan.clone().with_masked(Field::VlanId, 5_u16, 0xff_u16)), "vlan_id with a mask"),
        (
            matching(vlan.with(Field::VlanEthType, 0x0800_u16).with(Field::EthType, 0x0806_u16)),
            "vlan_ethtype of another value",
        ),
        (matching(Match::new().with_src_ports(5..=5)), "range of one src_port"),
        (tcp([Action::Drop]).with_priority(65_535, Protocol::All), "priority 65535"),
        (tcp([Action::Drop]).in_chain(TC_ACT_EXT_VAL_MASK), "chain 268435455"),
    ];
    for (rule, name) in cases {
        let refusal = filter(&rule, None).expect_err(name);
        assert_eq!(refusal.to_string(), format!("this kernel's classifier has no {name}"));
    }
    let device = TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 };
    assert!(device.to_string().contains("4789"), "{device}");
}

#[test]
fn a_tagged_frame_is_matched_as_the_kernel_takes_tags() {
    let tagged = Match::new()
        .with(Field::VlanTpid, 0x88a8_u16)
        .with(Field::VlanId, 5_u16)
        .with(Field::CvlanTpid, 0x8100_u16)
        .with(Field::CvlanPrio, 3_u8)
        .with(Field::EthType, 0x0800_u16);
    let tag = VlanTag { tpid: 0x8100, id: 7, priority: 2 };
    let keys = keys(&Rule::new(ON, tagged, [Action::VlanPush(tag), Action::Redirect(TO)])).unwrap();
    let wanted: Keys = vec![
        (TCA_FLOWER_KEY_ETH_TYPE, vec![0x88, 0xa8]),
        (TCA_FLOWER_KEY_VLAN_ETH_TYPE, vec![0x81, 0x00]),
        (TCA_FLOWER_KEY_CVLAN_ETH_TYPE, vec![0x08, 0x00]),
        (TCA_FLOWER_KEY_VLAN_ID, 5_u16.to_ne_bytes().to_vec()),
        (TCA_FLOWER_KEY_CVLAN_PRIO, vec![3]),
    ];
    assert_eq!(keys, wanted);
}

#[test]
fn a_meter_has_the_rate_and_the_burst_in_ticks() {
    let police = Police { meter: MeterId(4), conform: Control::Pipe, exceed: Control::Drop };
    let rule = tcp([Action::Police(police), Action::Redirect(TO)]);
    let read = |meter| read_back(&filter(&rule, Some(meter)).unwrap());
    for rate in [1_000_000, 5_000_000_000_u64] {
        let meter = Meter { rate: Rate::Bytes(rate), burst: 100_000 };
        let back = read(meter);
        assert_eq!(back.rule.actions, rule.actions);
        let [(MeterId(4), Meter { rate: of, burst })] = back.meters[..] else { panic!("{:?}", back.meters) };
        assert_eq!(of, meter.rate);
        // A tick is 64 ns.
        assert!(meter.burst - burst <= 1 + rate / 15_000_000, "{burst}");
    }
    let mtu = Meter { rate: Rate::Mtu(1_514), burst: 0 };
    assert_eq!(read(mtu).meters, [(MeterId(4), mtu)]);
    // 50 packets at 1,000 a second take 50 ms.
    let packets = self::police(4, Meter { rate: Rate::Packets(1_000), burst: 50 }, TC_ACT_PIPE, TC_ACT_SHOT);
    let of = |kind| packets.options.iter().find(|(own, _)| *own == kind).map(|(_, value)| value.clone());
    assert_eq!(of(TCA_POLICE_PKTRATE64), Some(1_000_u64.to_ne_bytes().to_vec()));
    assert_eq!(of(TCA_POLICE_PKTBURST64), Some((50_000_000_u64 / 64).to_ne_bytes().to_vec()));
    assert_eq!(of(TCA_POLICE_TBF).map(|parms| parms.len()), Some(56));
}
