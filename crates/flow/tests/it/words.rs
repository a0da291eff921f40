//! Rules in the words of tc, and what is said of words that are wrong.

use flow::generate::{Generator, Options, Random};
use flow::words::{Device, Filter, Names};
use flow::{
    Action, Block, Capabilities, Control, Csum, Ct, Edit, EditField, Encap, Field, Match, Meter, MeterId, Nat,
    NatRange, Neighbour, Police, Port, PortKind, Protocol, Rate, Rule, Sample, Tables, TunnelDevice, TunnelKind,
    VlanTag,
};

/// How many tables the property has; `CASES=1000` makes a long run.
fn cases() -> u64 {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

const UPLINK: Port = Port(0xffff);

fn names() -> Names<'static> {
    Names { block: Some(Block::Port(Port(1))), ..Names::by_number() }
}

fn filter(text: &str) -> Filter {
    names().rule(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn matches(text: &str) -> Match {
    filter(text).rule.matches
}

fn actions(text: &str) -> Vec<Action> {
    filter(&format!("flower {text}")).rule.actions
}

fn error(text: &str) -> String {
    names().rule(text).expect_err(text).to_string()
}

#[test]
fn a_rule_is_what_its_words_say() {
    // A reckless rule can have values that tc has no words for, as a VLAN priority of 74.
    let all = [Options::default(), Options::like_mlx5()].map(|options| Options { reckless: 0, ..options });
    for (options, seed) in all.iter().flat_map(|options| (0..cases()).map(move |seed| (options, seed))) {
        let tables = Generator::new(seed, options.clone()).tables().tables;
        for (_, rule) in tables.rules() {
            let words = Names::by_number().rule_words(rule);
            let read = Names::by_number().rule(&words).unwrap_or_else(|error| panic!("{words}\n{error}\n{rule:?}"));
            assert_eq!(read.rule, *rule, "{words}");
            assert_eq!(read.meters, [], "{words}");
        }
    }
}

#[test]
fn damaged_words_cause_no_panic() {
    let mut random = Random::new(1);
    let mut read = 0;
    for seed in 0..cases() {
        let tables = Generator::new(seed, Options::default()).tables().tables;
        for (_, rule) in tables.rules() {
            let text = names().rule_words(rule);
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            let (place, other) = (random.below(words.len()), random.below(words.len()));
            match random.below(5) {
                0 => drop(words.remove(place)),
                1 => words.swap(place, other),
                2 => words.truncate(place),
                3 => {
                    words[place] = ["", "é", "+", "-/", "0x", "4294967296", "99999999999999999999999"][other % 7].into()
                }
                _ => words[place].insert(0, ['-', '+', '/', 'é', '9', ':'][other % 6]),
            }
            read += usize::from(names().rule(&words.join(" ")).is_ok());
        }
    }
    assert!(read > 0, "some are still right");
}

#[test]
fn a_filter_brings_its_meters() {
    let text = "flower action police rate 1mbit burst 10k conform-exceed drop/pipe \
                action police pkts_rate 100 pkts_burst 5 drop action police mtu 1514 conform-exceed pipe action police index 9 rate 8bit burst 1 conform-exceed pipe";
    let filter = filter(text);
    let meters = [
        (MeterId(1), Meter { rate: Rate::Bytes(125_000), burst: 10_240 }),
        (MeterId(2), Meter { rate: Rate::Packets(100), burst: 5 }),
        (MeterId(3), Meter { rate: Rate::Mtu(1514), burst: 0 }),
        (MeterId(9), Meter { rate: Rate::Bytes(1), burst: 1 }),
    ];
    assert_eq!(filter.meters, meters);
    let police = |meter, exceed| Action::Police(Police { meter: MeterId(meter), conform: Control::Pipe, exceed });
    assert_eq!(
        filter.rule.actions,
        [police(1, Control::Drop), police(2, Control::Drop), police(3, Control::Pipe), police(9, Control::Pipe)]
    );
    let words = names().filter_words(&filter);
    assert_eq!(names().rule(&words), Ok(filter), "{words}");
}

#[test]
fn the_place_of_a_rule() {
    let place = |text: &str| {
        let rule = filter(text).rule;
        (rule.block, rule.protocol, rule.priority, rule.chain)
    };
    let port = |number| Block::Port(Port(number));
    let vxlan = Block::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 });
    for (text, expected) in [
        ("flower", (port(1), Protocol::All, 0xc000, 0)),
        ("dev port3 ingress protocol ip prio 2 chain 4 flower", (port(3), Protocol::Is(0x0800), 2, 4)),
        (
            "tc filter add dev port3 parent ffff: protocol 802.1q pref 0x10 flower",
            (port(3), Protocol::Is(0x8100), 16, 0),
        ),
        ("block 5 protocol 0x88b5 prio 1 flower", (Block::Shared(5), Protocol::Is(0x88b5), 1, 0)),
        ("dev vxlan_sys_4789 ingress protocol all prio 1 flower", (vxlan, Protocol::All, 1, 0)),
    ] {
        assert_eq!(place(text), expected, "{text}");
    }
}

#[test]
fn the_protocol_says_which_types_are_asked_for() {
    let vlan = Match::new().with(Field::VlanTpid, 0x8100u16);
    let qinq = Match::new().with(Field::VlanTpid, 0x88a8u16).with(Field::VlanEthType, 0x8100u16);
    for (text, expected) in [
        ("protocol all flower", Match::new()),
        ("protocol ip flower", Match::new().with(Field::EthType, 0x0800u16)),
        ("protocol 802.1Q flower vlan_id 5", vlan.clone().with(Field::VlanId, 5u16)),
        (
            "protocol 802.1Q flower vlan_ethtype ip",
            vlan.clone().with(Field::VlanEthType, 0x0800u16).with(Field::EthType, 0x0800u16),
        ),
        (
            "protocol 802.1ad flower vlan_ethtype 802.1q cvlan_id 7 cvlan_ethtype ipv6",
            qinq.with(Field::CvlanTpid, 0x8100u16)
                .with(Field::CvlanId, 7u16)
                .with(Field::CvlanEthType, 0x86ddu16)
                .with(Field::EthType, 0x86ddu16),
        ),
        ("protocol all flower eth_type ip", Match::new().with(Field::EthType, 0x0800u16)),
        ("protocol ip flower eth_type any", Match::new()),
    ] {
        assert_eq!(matches(text), expected, "{text}");
    }
}

#[test]
fn keys_have_the_ranges_and_bases_of_tc() {
    let with = |field, value: &[u8]| Match::new().with(field, value);
    for (text, expected) in [
        ("indev port2", with(Field::InPort, &[0, 0, 0, 2])),
        ("dst_mac 02:00:00:00:00:0a", with(Field::EthDst, &[2, 0, 0, 0, 0, 10])),
        (
            "src_mac 2:0:0:0:0:a/24",
            Match::new().with_masked(Field::EthSrc, [2, 0, 0, 0, 0, 0], [255, 255, 255, 0, 0, 0]),
        ),
        (
            "src_mac 2:0:0:0:0:a/1:0:0:0:0:ff",
            Match::new().with_masked(Field::EthSrc, [0, 0, 0, 0, 0, 10], [1, 0, 0, 0, 0, 255]),
        ),
        ("ip_proto tcp", with(Field::IpProto, &[6])),
        ("ip_proto 11", with(Field::IpProto, &[17])),
        ("ip_tos 16", with(Field::IpTos, &[16])),
        ("ip_tos 0x10/fc", Match::new().with_masked(Field::IpTos, 0x10u8, 0xfc)),
        ("ip_ttl 64", with(Field::IpTtl, &[64])),
        ("dst_ip 10.1.2.3/8", Match::new().with_masked(Field::Ip4Dst, [10, 0, 0, 0], [255, 0, 0, 0])),
        ("src_ip 10.0.0.3/255.0.0.255", Match::new().with_masked(Field::Ip4Src, [10, 0, 0, 3], [255, 0, 0, 255])),
        ("dst_port 80", with(Field::DstPort, &[0, 80])),
        ("src_port 0x1000/0xf000", Match::new().with_masked(Field::SrcPort, 0x1000u16, 0xf000)),
        ("dst_port 10-20", Match::new().with_dst_ports(10..=20)),
        ("tcp_flags 0x2/12", Match::new().with_masked(Field::TcpFlags, 2u16, 0x12)),
        ("type 8 code 0", Match::new().with(Field::IcmpType, 8u8).with(Field::IcmpCode, 0u8)),
        ("arp_op reply arp_sip 10.0.0.1", Match::new().with(Field::ArpOp, 2u8).with(Field::ArpSip, [10, 0, 0, 1])),
        ("enc_key_id 77 enc_dst_port 4789", Match::new().with(Field::EncKeyId, 77u32).with(Field::EncDstPort, 4789u16)),
        (
            "enc_dst_ip 2001:db8::1",
            Match::new().with(Field::EncIp6Dst, std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        ),
        ("ip_flags frag/nofirstfrag", Match::new().with_masked(Field::IpFlags, 1u8, 3)),
        ("ct_state +trk+est-new", Match::new().with_ct_state(Field::CT_TRACKED | Field::CT_ESTABLISHED, Field::CT_NEW)),
        ("ct_zone 3 ct_mark 0x5/0xff", Match::new().with(Field::CtZone, 3u16).with_masked(Field::CtMark, 5u32, 0xff)),
        ("ct_label 0102", with(Field::CtLabel, &[1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        (
            "geneve_opts 0102:80:00000001/ffff:0:ffffffff,0103:1:00000002",
            Match::new().with_geneve_options(
                &[1, 2, 0x80, 1, 0, 0, 0, 1, 1, 3, 1, 1, 0, 0, 0, 2],
                &[255, 255, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
            ),
        ),
    ] {
        assert_eq!(matches(&format!("flower skip_sw {text}")), expected, "{text}");
    }
}

#[test]
fn actions_are_those_of_tc() {
    let tag = |tpid, id, priority| VlanTag { tpid, id, priority };
    for (text, expected) in [
        ("action drop", Action::Drop),
        ("action gact shot", Action::Drop),
        ("action trap", Action::Trap),
        ("action goto chain 4", Action::Goto(4)),
        ("action mirred egress redirect dev port2", Action::Redirect(Port(2))),
        ("action mirred egress mirror dev port2", Action::Mirror(Port(2))),
        ("action vlan push id 5", Action::VlanPush(tag(0x8100, 5, 0))),
        ("action vlan push protocol 802.1ad id 0x10 priority 3", Action::VlanPush(tag(0x88a8, 16, 3))),
        ("action vlan pop pipe", Action::VlanPop),
        ("action vlan modify id 7", Action::VlanModify { tpid: 0x8100, id: 7, priority: None }),
        ("action pedit ex munge ip ttl set 64 pipe", Edit::set(EditField::Ip4Ttl, 64u8)),
        ("action pedit ex munge ip ttl decrement pipe", Edit::add(EditField::Ip4Ttl, 255)),
        (
            "action pedit ex munge ip src set 10.0.0.9 retain 0xff pipe",
            Edit::set_masked(EditField::Ip4Src, [0, 0, 0, 9], [0, 0, 0, 255]),
        ),
        (
            "action pedit ex munge ip6 traffic_class set 0x10 pipe",
            Edit::set_masked(EditField::Ip6TrafficClass, 0x0100u16, 0x0ff0),
        ),
        ("action pedit ex munge eth dst set 2:0:0:0:0:1", Edit::set(EditField::EthDst, [2, 0, 0, 0, 0, 1])),
        ("action pedit ex munge tcp sport clear", Edit::set(EditField::TcpSrc, 0u16)),
        ("action csum iph and tcp", Action::Csum(Csum::IP4_HEADER.and(Csum::TCP))),
        ("action tunnel_key unset", Action::TunnelUnset),
        ("action ct clear", Action::CtClear),
        ("action ct zone 3 nat", Action::Ct(Ct { zone: 3, nat: Some(Nat::Restore), ..Ct::default() })),
        ("action ct", Action::Ct(Ct::default())),
        ("action sample rate 10 group 5 trunc 60", Action::Sample(Sample { rate: 10, group: 5, truncate: Some(60) })),
        ("action dec_ttl", Action::DecTtl),
    ] {
        assert_eq!(actions(text), [expected], "{text}");
    }
}

#[test]
fn an_action_can_say_what_follows() {
    assert_eq!(actions("action vlan pop drop"), [Action::VlanPop, Action::Drop]);
    let ct = Ct { zone: 1, commit: true, mark: Some((5, 0xff)), ..Ct::default() };
    assert_eq!(actions("action ct commit zone 1 mark 5/0xff goto chain 2"), [Action::Ct(ct), Action::Goto(2)]);
    let both = actions("action pedit ex munge ip ttl set 1 munge ip tos set 0x10 pipe action drop");
    assert_eq!(both, [Edit::set(EditField::Ip4Ttl, 1u8), Edit::set(EditField::Ip4Tos, 0x10u8), Action::Drop]);
}

#[test]
fn words_of_the_tests_of_open_vswitch_are_read() {
    // Abbreviations, actions without the word, and a meter that is there, as in Mellanox's ovs-tests.
    let text = "dev port1 ingress proto ip pref 2 chain 1 handle 0x5 flower dst_m 02:00:00:00:00:01 ip_pro tcp verbose \
                action police index 1 ct clear ct clear pipe pedit ex munge ip ttl add 0xff pipe csum ip tcp pipe \
                mirred egress redirect dev port2";
    let filter = filter(text);
    assert_eq!((filter.handle, filter.rule.protocol), (Some(5), Protocol::Is(0x0800)));
    let police = Police { meter: MeterId(1), conform: Control::Pipe, exceed: Control::Drop };
    let expected = [
        Action::Police(police),
        Action::CtClear,
        Action::CtClear,
        Edit::add(EditField::Ip4Ttl, 255),
        Action::Csum(Csum::IP4_HEADER.and(Csum::TCP)),
        Action::Redirect(Port(2)),
    ];
    assert_eq!(filter.rule.actions, expected);
    assert_eq!(names().rule(&names().filter_words(&filter)), Ok(filter));
}

#[test]
fn a_jump_counts_the_actions_of_tc() {
    let text = "action police index 1 conform-exceed jump 2 / pipe \
                action pedit ex munge ip ttl set 1 munge ip tos set 2 pipe action drop";
    let police = Police { meter: MeterId(1), conform: Control::Pipe, exceed: Control::Jump(3) };
    assert_eq!(actions(text)[0], Action::Police(police));
}

#[test]
fn a_tunnel_takes_its_kind_from_the_device() {
    let encap = Encap {
        kind: TunnelKind::Geneve,
        id: Some(5),
        src: [10, 0, 0, 1].into(),
        dst: [10, 0, 0, 2].into(),
        dst_port: 6081,
        tos: 0,
        ttl: 64,
        options: vec![1, 2, 0x80, 1, 0, 0, 0, 1],
        neighbour: None,
    };
    let set = "action tunnel_key set src_ip 10.0.0.1 dst_ip 10.0.0.2 id 5 geneve_opts 0102:80:00000001";
    let expected = [Action::TunnelSet(encap.clone()), Action::Redirect(UPLINK)];
    assert_eq!(actions(&format!("{set} action mirred egress redirect dev genev_sys_6081")), expected);
    let from = Some("10.0.0.9".parse().unwrap());
    let neighbour = Some(Neighbour { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], from });
    let expected = [Action::TunnelSet(Encap { neighbour, ..encap }), Action::Mirror(Port(2)), Action::Drop];
    let words = format!("{set} kind geneve dst_port 6081 neighbour 2:0:0:0:0:1/2:0:0:0:0:2/10.0.0.9");
    assert_eq!(actions(&format!("{words} action mirred egress mirror dev port2 action drop")), expected);
}

#[test]
fn a_caller_says_what_names_mean() {
    let device = |name: &str| match name {
        "pf0vf0" => Some(Device::Port(Port(1))),
        "vxlan0" => Some(Device::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 })),
        _ => None,
    };
    let port = |port: Port| format!("pf0vf{}", port.0 - 1);
    let names = Names { device: &device, port: &port, ..Names::by_number() };
    let rule = names.rule("dev vxlan0 ingress flower action mirred egress redirect dev pf0vf0").expect("a rule").rule;
    assert_eq!(rule.actions, [Action::Redirect(Port(1))]);
    let words =
        "dev vxlan_sys_4789 ingress protocol all prio 49152 chain 0 flower action mirred egress redirect dev pf0vf0";
    assert_eq!(names.rule_words(&rule), words);
}

#[test]
fn an_error_names_the_word_and_what_would_be_right() {
    for (text, expected) in [
        ("flower dst_prot 80", "word 2, \"dst_prot\": no such word. Do you mean \"dst_port\"?"),
        ("flower ct_stat_ +trk", "word 2, \"ct_stat_\": no such word. Do you mean \"ct_state\"?"),
        ("pri 1 flower", "word 1, \"pri\": no such word. Do you mean \"prio\"?"),
        ("protocl ip flower", "word 1, \"protocl\": no such word. Do you mean \"protocol\"?"),
        ("protocol ip", "word 3, the end: \"flower\" is missing"),
        ("prio 0 flower", "word 2, \"0\": a priority from 1 to 65535 must stand here"),
        ("dev eth7 flower", "word 2, \"eth7\": Cannot find device \"eth7\""),
        ("chain 1 chain 2 flower", "word 4, \"2\": the chain is said twice"),
        ("flower vlan_id 4096", "word 3, \"4096\": a decimal number 0 to 4095 must stand here"),
        ("flower dst_port 20-10", "word 3, \"20-10\": a range of ports goes from a lower to a higher one: 10-20"),
        ("flower dst_port", "word 3, the end: a value is missing"),
        ("flower type 8 type 9", "word 5, \"9\": type is given twice"),
        (
            "flower dst_ip 10.0.0.0/33",
            "word 3, \"10.0.0.0/33\": an address of IPv4 must stand here, as 10.0.0.1 or 10.0.0.0/8",
        ),
        (
            "flower ct_state +trk+foo",
            "word 3, \"+trk+foo\": flags must stand here, each behind + or -: trk, new, est, rel, inv, rpl",
        ),
        ("flower skip_hw", "word 2, \"skip_hw\": a rule with skip_hw is not given to the card"),
        ("flower action", "word 3, the end: the kind of action is missing"),
        ("flower action mired egress", "word 3, \"mired\": no such word. Do you mean \"mirred\"?"),
        ("flower action mirred ingress redirect dev port1", "word 4, \"ingress\": the card sends to ports: egress"),
        (
            "flower action pass",
            "word 3, \"pass\": the card has no such action: a frame that no rule carries on goes to the representor",
        ),
        ("flower action vlan push", "word 5, the end: id needs to be set for push"),
        (
            "flower action pedit ex munge ip ttl set 300",
            "word 9, \"300\": a number that fits into the field must stand here",
        ),
        (
            "flower action pedit ex munge ip port set 3",
            "word 7, \"port\": no such word. It can be src, dst, tos, dsfield, ttl",
        ),
        (
            "flower action pedit ex munge ip ttl set 3 action drop",
            "word 10, \"action\": \"pipe\" must stand before: without it, tc ends the rule here",
        ),
        (
            "flower action ct nat src addr 10.0.0.1",
            "word 7, \"10.0.0.1\": ct: src or dst is only valid if commit is set",
        ),
        ("flower action ct zone 70000", "word 5, \"70000\": a zone from 0 to 65535 must stand here"),
        ("flower action police rate 1mbit conform-exceed drop", "word 8, the end: 'burst' requires 'rate'."),
        (
            "flower action police rate 1mbit burst 1k",
            "word 8, the end: \"conform-exceed drop\" must say what follows: without it, tc reclassifies the frame",
        ),
        ("flower action police rate 1mbit burst 1k avrate 9", "word 8, \"avrate\": the card's meters have no avrate"),
        ("flower action police index 0 drop", "word 5, \"0\": the number of a meter from 1 on must stand here"),
        (
            "flower action police rate 1mbit burst 1k mtu 9000 drop",
            "word 11, the end: a meter has a rate or an mtu: mlx5 does not look at the mtu of one with a rate",
        ),
        (
            "flower action goto chain 268435456",
            "word 5, \"268435456\": the number of a chain, 0 to 268435455, must stand here",
        ),
        (
            "flower action tunnel_key set src_ip 1.1.1.1 dst_ip 2.2.2.2 action drop",
            "word 3, \"tunnel_key\": no output follows to a tunnel device",
        ),
        (
            "flower action mirred egress redirect dev vxlan_sys_4789",
            "word 7, \"vxlan_sys_4789\": tunnel_key set must say before where the tunnel goes",
        ),
        ("flower action drop drip", "word 4, \"drip\": no such word. Do you mean \"drop\"?"),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
    let nowhere = Names::by_number().rule("flower").unwrap_err().to_string();
    assert_eq!(nowhere, "word 1, \"flower\": \"dev NAME\" or \"block NUMBER\" must say where the rule is");
}

#[test]
fn a_rule_that_was_read_is_taken_by_a_card() {
    let mut tables = Tables::new(Capabilities::connectx());
    tables.add_port(UPLINK, PortKind::Uplink);
    [1, 2].into_iter().for_each(|port| tables.add_port(Port(port), PortKind::Vport));
    let texts = [
        "dev port1 ingress protocol ip prio 1 chain 0 flower ip_proto tcp ct_state -trk action ct zone 1 pipe action goto chain 1",
        "dev port1 ingress protocol ip prio 1 chain 1 flower ip_proto tcp ct_state +trk+new \
         action ct commit zone 1 nat src addr 10.0.0.9 port 1000-2000 pipe action mirred egress redirect dev port2",
        "dev port1 ingress protocol ip prio 1 chain 1 flower ip_proto tcp ct_state +trk+est \
         action pedit ex munge eth dst set 02:00:00:00:00:01 munge ip ttl add 255 pipe action csum iph and tcp pipe \
         action mirred egress redirect dev port2",
        "dev port2 ingress protocol all prio 5 flower action police rate 1mbit burst 10k conform-exceed drop/pipe \
         action tunnel_key set src_ip 1.1.1.1 dst_ip 2.2.2.2 id 5 dst_port 4789 nocsum \
         action mirred egress redirect dev vxlan_sys_4789",
        "dev vxlan_sys_4789 ingress protocol ip prio 1 flower enc_key_id 5 enc_dst_port 4789 \
         action tunnel_key unset pipe action mirred egress redirect dev port2",
    ];
    for text in texts {
        let Filter { rule, meters, .. } = filter(text);
        meters.into_iter().for_each(|(id, meter)| tables.set_meter(id, meter).expect("a meter"));
        tables.add(rule).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    let shown: Vec<String> = tables.rules().map(|(_, rule)| names().rule_words(rule)).collect();
    assert_eq!(
        shown[1],
        "dev port1 ingress protocol ip prio 1 chain 1 flower ip_proto tcp ct_state +trk+new \
         action ct commit zone 1 nat src addr 10.0.0.9 port 1000-2000 pipe action mirred egress redirect dev port2"
    );
}

#[test]
fn ranges_of_addresses_are_read() {
    let range = NatRange { addresses: [10, 0, 0, 1].into()..=[10, 0, 0, 9].into(), ports: Some(5..=5) };
    let expected = Action::Ct(Ct { commit: true, nat: Some(Nat::Dst(range)), ..Ct::default() });
    assert_eq!(actions("action ct commit nat dst addr 10.0.0.1-10.0.0.9 port 5"), [expected]);
    let rule = Rule::new(Port(1), Match::new(), actions("action ct commit force label 01/ff action drop"));
    assert!(
        names().rule_words(&rule).contains("label 01000000000000000000000000000000/ff000000000000000000000000000000")
    );
}
