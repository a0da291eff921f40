//! What is refused, what is full, and what is used again.

use std::time::Duration;

use crate::common::pipeline;
use datapath_bpf::{Change, Mode, Options, Pipeline, PortConfig, Refused, Role, TrialFate};
use flow::{
    Action, Block, Control, Ct, Edit, EditField, Encap, Field, Match, Meter, MeterId, Neighbour, Police, Port,
    Protocol, Rate, Rule, RuleId, TunnelDevice, TunnelKind, VlanTag,
};

const SMALL: Options = Options {
    max_rules: 4,
    max_actions: 9,
    max_masks: 3,
    max_encaps: 2,
    max_meters: 1,
    max_connections: 2,
    sample_buffer: 4096,
    trials: true,
};

fn to(last: u8) -> Match {
    Match::new().with(Field::EthType, 0x0800u16).with(Field::Ip4Dst, [10, 0, 0, last])
}

fn frame(last: u8) -> Vec<u8> {
    let mut frame =
        vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 20, 0, 1, 0, 0, 64, 59, 0, 0, 10, 0, 0, 1];
    frame.extend([10, 0, 0, last]);
    flow::make_checksums_right(&mut frame);
    frame
}

fn drop_to(last: u8) -> Rule {
    Rule::new(Port(1), to(last), [Action::Drop])
}

struct Card(Pipeline);

impl Card {
    fn new(options: Options) -> Option<Card> {
        let mut pipeline = pipeline(options)?;
        let config = PortConfig {
            mode: Mode::Switchdev,
            eswitch: 0,
            block: Block::Port(Port(1)),
            ifindex: 1,
            representor: Some(2),
            through_inner: false,
            is_wire: false,
            link_up: true,
            lane: None,
            wires: Vec::new(),
        };
        pipeline.set_port(Port(1), &config).expect("a port");
        pipeline.attach(1, Role::Port(Port(1))).expect("a netdev");
        Some(Card(pipeline))
    }

    fn add(&mut self, id: u64, rule: &Rule) -> Result<(), Refused> {
        self.0.commit(&[Change::Add { id: RuleId(id), rule }]).remove(0)
    }

    fn remove(&mut self, id: u64) -> Result<(), Refused> {
        self.0.commit(&[Change::Remove(RuleId(id))]).remove(0)
    }

    fn fate(&mut self, last: u8) -> TrialFate {
        self.0.trial(1, Duration::from_secs(1), &frame(last)).expect("a trial").fate
    }

    fn packets(&self, id: u64) -> u64 {
        self.0.counters(&[RuleId(id)])[0].packets
    }
}

#[test]
fn what_the_program_has_not_is_refused_by_its_name() {
    let Some(mut card) = Card::new(SMALL) else { return };
    let ct = || Action::Ct(Ct::default());
    let new_type = Edit::set(EditField::EthType, 0x86ddu16);
    let rows: [(Match, Vec<Action>, &str); 3] = [
        (to(1), vec![new_type.clone(), Action::Goto(1)], "pedit (action 0) is not offloaded before goto chain"),
        (to(1), vec![new_type, ct(), Action::Drop], "pedit (action 0) is not offloaded before ct"),
        (
            to(1),
            vec![ct(), ct(), ct(), ct(), ct(), Action::Drop],
            "a rule has at most 64 actions, meters 32 times, and tracks 4 times",
        ),
    ];
    for (matches, actions, words) in rows {
        let refused = card.add(1, &Rule::new(Port(1), matches, actions)).expect_err(words);
        assert_eq!(refused.to_string(), words);
    }
    assert_eq!((card.0.rule_count(), card.fate(1)), (0, TrialFate::Missed));
}

/// A frame in a VXLAN.
fn in_vxlan(inner: &[u8]) -> Vec<u8> {
    let mut frame =
        vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 36 + inner.len() as u8, 0, 1, 0, 0, 64, 17];
    frame.extend([0, 0, 192, 168, 0, 1, 192, 168, 0, 2, 0xc0, 0, 0x12, 0xb5, 0, 16 + inner.len() as u8, 0, 0]);
    frame.extend([8, 0, 0, 0, 0, 0, 5, 0]);
    frame.extend(inner);
    flow::make_checksums_right(&mut frame);
    frame
}

/// Two E-Switches on one card: number N has port 10 + N, a wire or none, and port 20 + N.
fn two_eswitches(is_wire: bool) -> Option<Card> {
    let options =
        Options { max_rules: 16, max_actions: 64, max_masks: 16, max_encaps: 16, max_connections: 16, ..SMALL };
    let mut card = Card(pipeline(options)?);
    for eswitch in [1u8, 2] {
        let [sender, target] = [10, 20].map(|of| Port(of + u32::from(eswitch)));
        for (port, is_wire) in [(sender, is_wire), (target, false)] {
            let config = PortConfig {
                mode: Mode::Switchdev,
                eswitch,
                block: Block::Port(port),
                ifindex: port.0,
                representor: None,
                through_inner: false,
                is_wire,
                link_up: true,
                lane: None,
                wires: Vec::new(),
            };
            card.0.set_port(port, &config).expect("a port");
        }
        card.0.attach(sender.0, if is_wire { Role::Wire(sender) } else { Role::Port(sender) }).expect("a netdev");
    }
    Some(card)
}

impl Card {
    fn add_to(&mut self, eswitch: u8, id: u64, rule: &Rule) {
        let added = self.0.commit_of(eswitch, &[Change::Add { id: RuleId(id), rule }]);
        assert_eq!(added, [Ok(())], "a rule of E-Switch {eswitch}: {rule:?}");
    }

    fn send(&mut self, ifindex: u32, frame: &[u8]) {
        self.0.trial(ifindex, Duration::from_secs(1), frame).expect("a trial");
    }
}

#[test]
fn a_tunnel_ends_at_each_uplink_with_rules_of_its_own() {
    let Some(mut card) = two_eswitches(true) else { return };
    for eswitch in [1u8, 2] {
        let [wire, target] = [10, 20].map(|of| Port(of + u32::from(eswitch)));
        let rule = Rule::new(wire, Match::new(), [Action::TunnelUnset, Action::Redirect(target)]);
        let rule = rule.in_block(Block::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 }));
        card.add_to(eswitch, eswitch.into(), &rule);
    }
    let frame = in_vxlan(&frame(1));
    for (sent, wanted) in [(11, (1, 0)), (12, (1, 1)), (12, (1, 2))] {
        card.send(sent, &frame);
        assert_eq!((card.packets(1), card.packets(2)), wanted, "after a frame from the wire {sent}");
    }
    assert_eq!(card.remove(1), Ok(()));
    card.send(11, &frame);
    assert_eq!(card.packets(2), 2, "the other wire's rule stays its own");
}

#[test]
fn an_e_switch_has_zones_of_its_own() {
    let Some(mut card) = two_eswitches(false) else { return };
    for eswitch in [1u8, 2] {
        let [from, to] = [10, 20].map(|of| Port(of + u32::from(eswitch)));
        let state = |flags| Match::new().with_ct_state(Field::CT_TRACKED | flags, Field::CT_TRACKED | flags);
        let ct = |commit| Action::Ct(Ct { zone: 1, commit, ..Ct::default() });
        let ip = Match::new().with(Field::EthType, 0x0800u16);
        let rules = [
            Rule::new(from, ip, [ct(false), Action::Goto(1)]),
            Rule::new(from, state(Field::CT_NEW), [ct(true), Action::Redirect(to)]).in_chain(1),
            Rule::new(from, state(Field::CT_ESTABLISHED), [Action::Redirect(to)]).in_chain(1),
        ];
        rules.iter().zip(u64::from(eswitch) * 10..).for_each(|(rule, id)| card.add_to(eswitch, id, rule));
    }
    let datagram = |from: u8, to: u8| {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
        frame.extend([10, 0, 0, from, 10, 0, 0, to, 0x27, 0x10, 0x27, 0x10, 0, 12, 0xff, 0xff, 1, 2, 3, 4]);
        flow::make_checksums_right(&mut frame);
        frame
    };
    card.send(11, &datagram(1, 2));
    card.send(11, &datagram(2, 1));
    assert_eq!((card.packets(11), card.packets(12)), (1, 1), "a question, and its answer");
    card.send(12, &datagram(2, 1));
    assert_eq!((card.packets(21), card.packets(22)), (1, 0), "in the other E-Switch it answers nothing");
}

#[test]
fn the_refusal_of_one_rule_does_not_affect_the_others() {
    let Some(mut card) = Card::new(SMALL) else { return };
    let rules = [drop_to(1), drop_to(1), drop_to(2).with_priority(1, Protocol::Is(0x0800)), drop_to(3)];
    let changes: Vec<_> = rules.iter().zip(1..).map(|(rule, id)| Change::Add { id: RuleId(id), rule }).collect();
    let results = card.0.commit(&changes);
    assert_eq!(results, [Ok(()), Err(Refused::Exists), Err(Refused::Protocol(Protocol::All)), Ok(())]);
    assert_eq!((card.fate(1), card.fate(2)), (TrialFate::Dropped(datapath_bpf::DropReason::Rule), TrialFate::Missed));
    assert_eq!((card.packets(1), card.packets(4)), (1, 0));
    // The first one goes and comes again in one commit.
    let rule = drop_to(1).with_priority(1, Protocol::All);
    let again = [Change::Remove(RuleId(1)), Change::Remove(RuleId(1)), Change::Add { id: RuleId(5), rule: &rule }];
    assert_eq!(card.0.commit(&again), [Ok(()), Err(Refused::Unknown), Ok(())]);
    card.fate(1);
    assert_eq!((card.packets(1), card.packets(5)), (0, 1));
}

#[test]
fn a_rule_gets_other_actions_and_keeps_its_counter() {
    let Some(mut card) = Card::new(SMALL) else { return };
    let with = |actions: &[Action]| Rule::new(Port(1), to(1), actions);
    let set =
        |card: &mut Card, id, rule: &Rule| card.0.commit(&[Change::SetActions { id: RuleId(id), rule }]).remove(0);
    // The table of rules is full, and changing one needs no other.
    (1..=4).for_each(|id| card.add(id, &drop_to(id as u8)).expect("room"));
    let dropped = TrialFate::Dropped(datapath_bpf::DropReason::Rule);
    assert_eq!(card.fate(1), dropped);
    assert_eq!(set(&mut card, 1, &with(&[Action::Trap])), Ok(()));
    assert_eq!((card.fate(1), card.packets(1)), (TrialFate::Trapped, 2));
    // More often than there are numbers for actions.
    let tag = VlanTag { tpid: 0x8100, id: 5, priority: 0 };
    let tagged = with(&[Action::VlanPush(tag), Action::VlanPop, Action::Drop]);
    for _ in 0..50 {
        assert_eq!(set(&mut card, 1, &tagged), Ok(()));
    }
    assert_eq!((card.fate(1), card.packets(1)), (dropped, 3));
    // What is refused changes nothing.
    let police = Police { meter: MeterId(9), conform: Control::Pipe, exceed: Control::Drop };
    assert!(set(&mut card, 1, &with(&[Action::Police(police), Action::Drop])).is_err(), "there is no such meter");
    assert_eq!(set(&mut card, 7, &tagged), Err(Refused::Unknown));
    assert_eq!((card.fate(1), card.packets(1), card.fate(2)), (dropped, 4, dropped));
}

#[test]
fn numbers_are_used_again_and_counters_begin_at_zero() {
    let Some(mut card) = Card::new(SMALL) else { return };
    for id in 1..=4 {
        assert_eq!(card.add(id, &drop_to(id as u8)), Ok(()));
        card.fate(id as u8);
    }
    assert_eq!(card.add(5, &drop_to(5)), Err(Refused::NoRoom("rule")));
    assert_eq!(card.remove(2), Ok(()));
    assert_eq!(card.fate(2), TrialFate::Missed);
    assert_eq!(card.add(5, &drop_to(5)), Ok(()));
    assert_eq!((card.packets(5), card.packets(2), card.packets(1)), (0, 0, 1));
    card.fate(5);
    assert_eq!(card.packets(5), 1);
    // Many times, with actions and masks.
    (1..=5).filter(|id| *id != 2).for_each(|id| card.remove(id).expect("removed"));
    let tag = VlanTag { tpid: 0x8100, id: 5, priority: 0 };
    for round in 0..50u64 {
        let actions = [Action::VlanPush(tag), Action::VlanPop, Action::VlanPush(tag), Action::Drop];
        let rule = Rule::new(Port(1), to(round as u8), actions).with_priority(1 + round as u32, Protocol::All);
        assert_eq!(card.add(100 + round, &rule), Ok(()));
        card.fate(round as u8);
        assert_eq!(card.packets(100 + round), 1);
        assert_eq!(card.remove(100 + round), Ok(()));
        assert_eq!(card.fate(round as u8), TrialFate::Missed);
    }
}

#[test]
fn actions_masks_tunnels_and_meters_have_limits() {
    let Some(mut card) = Card::new(SMALL) else { return };
    let tag = VlanTag { tpid: 0x8100, id: 5, priority: 0 };
    let long = |last| Rule::new(Port(1), to(last), [vec![Action::VlanPush(tag); 5], vec![Action::Drop]].concat());
    assert_eq!((card.add(1, &long(1)), card.add(2, &long(2))), (Ok(()), Err(Refused::NoRoom("action"))));
    assert_eq!((card.remove(1), card.add(2, &long(2)), card.remove(2)), (Ok(()), Ok(()), Ok(())));
    let too_long = Rule::new(Port(1), to(1), [vec![Action::CtClear; 70], vec![Action::Drop]].concat());
    assert_eq!(card.add(1, &too_long), Err(Refused::TooManyActions));

    for (id, wanted) in [(1, Ok(())), (2, Ok(())), (3, Ok(())), (4, Err(Refused::NoRoom("mask")))] {
        let rule = drop_to(1).with_priority(id as u32, Protocol::All);
        assert_eq!(card.add(id, &rule), wanted);
    }
    (1..=3).for_each(|id| card.remove(id).expect("removed"));

    let encap = |id| {
        let (src, dst) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let neighbour = Some(Neighbour { dst: [2; 6], src: [4; 6], from: None });
        let (kind, options) = (TunnelKind::Vxlan, Vec::new());
        Action::TunnelSet(Encap { kind, id: Some(id), src, dst, dst_port: 4789, tos: 0, ttl: 64, options, neighbour })
    };
    let into = |id, last| Rule::new(Port(1), to(last), [encap(id), Action::Redirect(Port(1))]);
    // Rules share a tunnel.
    for (id, tunnel, wanted) in
        [(1, 7, Ok(())), (2, 7, Ok(())), (3, 8, Ok(())), (4, 9, Err(Refused::NoRoom("tunnel or ct")))]
    {
        assert_eq!(card.add(id, &into(tunnel, id as u8)), wanted);
    }
    assert_eq!((card.remove(1), card.add(4, &into(9, 4))), (Ok(()), Err(Refused::NoRoom("tunnel or ct"))));
    assert_eq!((card.remove(2), card.add(4, &into(9, 4))), (Ok(()), Ok(())));
    (3..=4).for_each(|id| card.remove(id).expect("removed"));

    let meter = |id| Change::SetMeter { id: MeterId(id), meter: Meter { rate: Rate::Packets(1), burst: 1 } };
    assert_eq!(card.0.commit(&[meter(1), meter(2)]), [Ok(()), Err(Refused::NoRoom("meter"))]);
    let police = Action::Police(Police { meter: MeterId(1), conform: Control::Pipe, exceed: Control::Drop });
    assert_eq!(card.add(1, &Rule::new(Port(1), to(1), [police, Action::Drop])), Ok(()));
    assert_eq!(card.0.commit(&[Change::RemoveMeter(MeterId(1))]), [Err(Refused::Used)]);
    assert_eq!(card.remove(1), Ok(()));
    assert_eq!(card.0.commit(&[Change::RemoveMeter(MeterId(1)), meter(2)]), [Ok(()), Ok(())]);
}

#[test]
fn a_cached_answer_is_void_after_a_change() {
    let Some(mut card) = Card::new(SMALL) else { return };
    let dropped = TrialFate::Dropped(datapath_bpf::DropReason::Rule);
    for round in 0..20 {
        assert_eq!((card.fate(1), card.fate(1)), (TrialFate::Missed, TrialFate::Missed));
        assert_eq!(card.add(2 * round, &drop_to(1).with_priority(2, Protocol::All)), Ok(()));
        assert_eq!((card.fate(1), card.fate(1)), (dropped, dropped));
        // One that is asked before it.
        let first = Rule::new(Port(1), to(1), [Action::Trap]).with_priority(1, Protocol::All);
        assert_eq!(card.add(2 * round + 1, &first), Ok(()));
        assert_eq!((card.fate(1), card.fate(1)), (TrialFate::Trapped, TrialFate::Trapped));
        assert_eq!(card.remove(2 * round + 1), Ok(()));
        assert_eq!((card.fate(1), card.packets(2 * round)), (dropped, 3));
        assert_eq!(card.remove(2 * round), Ok(()));
    }
}
