//! Flow rules in the engine: they belong to the ports that they name, and the data plane has what their owners were told.

use std::net::IpAddr;
use std::time::Duration;

use crate::common::{Bench, addr, story};
use card_memory::Forwarded;
use eswitch::datapath::{Arrival, Dropped, port};
use eswitch::lag::{Bond, TxType};
use eswitch::{CardConfig, FlowChange, FlowDone, FlowError, Mode, PfIndex, PortHandle, PortIndex, Vport};
use flow::{
    Action, Block, Counter, Encap, Fate, Field, Match, Meter, MeterId, Neighbour, Police, Port, Protocol, Rate, Rule,
    RuleError, RuleId, Sample, Sampled, TunnelKind,
};
use lockdep::{Locked, Unlocked};

type Cx<'a, 'b> = &'a mut Locked<'b, Unlocked>;

const PF0: PfIndex = PfIndex(0);
const PF1: PfIndex = PfIndex(1);

fn switchdev(pfs: u8, vfs: u16) -> CardConfig {
    CardConfig { pfs, vfs, mode: Mode::Switchdev, ..CardConfig::default() }
}

fn vf(n: u16) -> Port {
    port(PF0, Vport::Vf(n))
}

/// Frames from one port to this MAC address go to the other.
fn redirect(from: Port, to: Port, last: u8) -> FlowChange {
    let pf = PfIndex((from.0 >> 16) as u8);
    let matches = Match::new().with(Field::EthDst, [2, 0, 0, 0, 0, last]);
    FlowChange::Add { pf, rule: Box::new(Rule::new(from, matches, [Action::Redirect(to)])) }
}

fn frame(last: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, last, 2, 0, 0, 0, 0, 0xff, 0x88, 0xb5];
    frame.resize(60, 0);
    frame
}

fn change(bench: &Bench, cx: Cx<'_, '_>, change: FlowChange) -> Result<FlowDone, FlowError> {
    bench.engine.change_flows(cx, vec![change]).pop().expect("a result for each change")
}

fn add(bench: &Bench, cx: Cx<'_, '_>, rule: FlowChange) -> RuleId {
    match change(bench, cx, rule) {
        Ok(FlowDone::Added(id)) => id,
        other => panic!("{other:?}"),
    }
}

/// Where a frame that comes in at a port arrives: the ports, or nothing if the representor gets it.
fn send(bench: &Bench, cx: Cx<'_, '_>, from: Port, last: u8) -> Vec<Port> {
    match bench.card.planes().forward(cx, from, Duration::ZERO, &frame(last)) {
        Forwarded::Switched(verdict) => verdict.outputs.iter().map(|output| output.port).collect(),
        other => panic!("{other:?}"),
    }
}

fn rules(bench: &Bench, cx: Cx<'_, '_>, pf: PfIndex) -> Vec<RuleId> {
    bench.engine.flow_rules(cx, pf).into_iter().map(|(id, _)| id).collect()
}

#[test]
fn a_rule_carries_frames_counts_them_and_ends() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let rule = add(&bench, cx, redirect(vf(0), vf(1), 1));
        assert_eq!(send(&bench, cx, vf(0), 1), [vf(1)]);
        assert_eq!(send(&bench, cx, vf(0), 9), [], "it misses");
        assert_eq!(bench.engine.flow_counters(cx, &[rule, RuleId(99)])[0].unwrap().packets, 1);
        assert_eq!(bench.engine.flow_counters(cx, &[RuleId(99)]), [None]);
        let Ok(FlowDone::Removed(last)) = change(&bench, cx, FlowChange::Remove(rule)) else { panic!("not removed") };
        assert_eq!((last.packets, last.bytes), (1, 60));
        assert_eq!(send(&bench, cx, vf(0), 1), []);
        assert_eq!(change(&bench, cx, FlowChange::Remove(rule)), Err(FlowError::NoRule(rule)));
        let again = add(&bench, cx, redirect(vf(0), vf(1), 1));
        assert_ne!(again, rule, "a name is not given twice");
        assert_eq!(bench.engine.flow_counters(cx, &[again]), [Some(Counter::default())]);
        bench.end(cx);
    });
}

#[test]
fn samples_are_read_by_who_wants_them_and_are_lost_if_that_takes_too_long() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let sample = Sample { rate: 1, group: 7, truncate: Some(20) };
        let actions = [Action::Sample(sample), Action::Redirect(vf(1))];
        let rule = Box::new(Rule::new(vf(0), Match::new(), actions));
        add(&bench, cx, FlowChange::Add { pf: PF0, rule });
        let sampler = bench.engine.sampler().expect("a card in memory takes samples");
        let send = |cx: Cx<'_, '_>, last: u8| {
            let sent = bench.engine.send_frame(cx, vf(0), Duration::ZERO, &frame(last));
            assert_eq!(sent, Ok(vec![Arrival::Port(vf(1))]));
        };
        send(cx, 1);
        assert_eq!(sampler.read(&mut cx.narrow()), [], "nobody wants them");
        sampler.want(&mut cx.narrow(), true);
        send(cx, 2);
        sampler.wait(cx);
        let wanted = Sampled { group: 7, rate: 1, in_port: vf(0), length: 60, frame: frame(2)[..20].to_vec() };
        assert_eq!(sampler.read(&mut cx.narrow()), [wanted]);
        assert_eq!(sampler.read(&mut cx.narrow()), []);
        // A wake-up counts for a wait that comes later.
        sampler.wake(&mut cx.narrow());
        sampler.wait(cx);
        // Nobody reads, and frames go on.
        (0..2_000).for_each(|n| send(cx, n as u8));
        let mut read = Vec::new();
        loop {
            let some = sampler.read(&mut cx.narrow());
            assert!(some.len() <= 64);
            if some.is_empty() {
                break;
            }
            read.extend(some.into_iter().map(|sampled| sampled.frame[5]));
        }
        assert_eq!(read, (0..1024).map(|n| n as u8).collect::<Vec<u8>>(), "the first ones, in order");
        send(cx, 3);
        sampler.want(&mut cx.narrow(), false);
        send(cx, 4);
        assert_eq!(sampler.read(&mut cx.narrow()), []);
        bench.end(cx);
    });
}

#[test]
fn rules_go_with_the_ports_that_they_name() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let (engine, wire) = (&bench.engine, port(PF0, Vport::Uplink));
        let vf_address = |n| CardConfig::default().vf_address(PF0, n);
        let kept = add(&bench, cx, redirect(wire, wire, 7));
        let on = add(&bench, cx, redirect(vf(0), wire, 1));
        let to = add(&bench, cx, redirect(wire, vf(0), 2));
        assert_eq!(rules(&bench, cx, PF0), [kept, on, to]);
        engine.unbind(cx, vf_address(0)).unwrap();
        assert_eq!(rules(&bench, cx, PF0), [kept, on, to], "the representor stays, and so do its rules");
        engine.set_num_vfs(cx, addr(), 0).unwrap();
        assert_eq!(rules(&bench, cx, PF0), [kept]);
        engine.set_num_vfs(cx, addr(), 2).unwrap();
        assert_eq!(rules(&bench, cx, PF0), [kept], "they do not come back");
        let sf = engine.add_sf(cx, addr(), 0, eswitch::SfNum(88)).unwrap();
        let to_sf = add(&bench, cx, redirect(wire, Port(sf.index.0), 3));
        assert_eq!(rules(&bench, cx, PF0), [kept, to_sf]);
        engine.delete_port(cx, sf).unwrap();
        assert_eq!(rules(&bench, cx, PF0), [kept]);
        engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        assert_eq!(rules(&bench, cx, PF0), []);
        assert_eq!(change(&bench, cx, redirect(vf(0), vf(1), 1)), Err(FlowError::NotSwitchdev(PF0)));
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        assert_eq!(rules(&bench, cx, PF0), []);
        add(&bench, cx, redirect(vf(0), vf(1), 1));
        engine.reload(cx, addr()).unwrap();
        assert_eq!(rules(&bench, cx, PF0), []);
        engine.set_mode(cx, addr(), Mode::Switchdev).unwrap();
        bench.end(cx);
    });
}

#[test]
fn a_refused_change_leaves_the_others_of_its_batch() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(2, 2));
        let nowhere = Port(77);
        let batch = vec![
            redirect(vf(0), vf(1), 1),
            redirect(vf(0), nowhere, 2),
            redirect(vf(0), vf(1), 1),
            redirect(port(PF1, Vport::Vf(0)), port(PF1, Vport::Vf(1)), 3),
            FlowChange::Remove(RuleId(99)),
            redirect(vf(0), vf(1), 4),
        ];
        let results = bench.engine.change_flows(cx, batch);
        assert!(matches!(results[0], Ok(FlowDone::Added(_))), "{results:?}");
        assert_eq!(results[1], Err(FlowError::Refused(RuleError::UnknownPort(nowhere))));
        assert!(matches!(results[2], Err(FlowError::Refused(RuleError::Exists(_)))), "{results:?}");
        assert!(matches!(results[3], Ok(FlowDone::Added(_))), "{results:?}");
        assert_eq!(results[4], Err(FlowError::NoRule(RuleId(99))));
        assert!(matches!(results[5], Ok(FlowDone::Added(_))), "{results:?}");
        assert_eq!(send(&bench, cx, vf(0), 4), [vf(1)]);
        bench.end(cx);
    });
}

#[test]
fn a_long_batch_is_carried_out_in_its_order() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let rule = |n: u16| {
            let matches = Match::new().with(Field::EthType, n);
            FlowChange::Add { pf: PF0, rule: Box::new(Rule::new(vf(0), matches, [Action::Redirect(vf(1))])) }
        };
        let results = bench.engine.change_flows(cx, (0x600..0x1200).map(rule).collect());
        let ids: Vec<u64> = results.iter().map(|r| if let Ok(FlowDone::Added(id)) = r { id.0 } else { 0 }).collect();
        assert_eq!(ids.len(), 0xc00);
        assert!(ids.is_sorted() && ids[0] > 0, "{:?}", results[0]);
        bench.engine.set_mode(cx, addr(), Mode::Legacy).unwrap();
        bench.end(cx);
    });
}

#[test]
fn rules_name_ports_of_a_paired_e_switch_but_not_its_uplink() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(2, 1));
        let engine = &bench.engine;
        let second = CardConfig::default().pf_address(PF1);
        let (far, wire) = (port(PF1, Vport::Vf(0)), port(PF1, Vport::Uplink));
        engine.settle(cx, true);
        let rule = add(&bench, cx, redirect(vf(0), far, 1));
        assert_eq!(send(&bench, cx, vf(0), 1), [far]);
        assert_eq!(change(&bench, cx, redirect(vf(0), wire, 2)), Err(FlowError::Refused(RuleError::UnknownPort(wire))));
        let back = add(&bench, cx, redirect(far, vf(0), 3));
        engine.set_num_vfs(cx, second, 0).unwrap();
        assert_eq!((rules(&bench, cx, PF0), rules(&bench, cx, PF1)), (vec![], vec![]), "{rule} and {back}");
        engine.set_num_vfs(cx, second, 1).unwrap();
        add(&bench, cx, redirect(vf(0), far, 1));
        engine.set_mode(cx, second, Mode::Legacy).unwrap();
        assert_eq!(rules(&bench, cx, PF0), []);
        assert_eq!(change(&bench, cx, redirect(vf(0), far, 1)), Err(FlowError::Refused(RuleError::UnknownPort(far))));
        engine.set_mode(cx, second, Mode::Switchdev).unwrap();
        engine.settle(cx, true);
        add(&bench, cx, redirect(vf(0), far, 1));
        bench.end(cx);
    });
}

/// Where frames to different addresses arrive that come in at a port.
fn arrivals(bench: &Bench, cx: Cx<'_, '_>, from: Port, lasts: std::ops::Range<u8>) -> Vec<Arrival> {
    let sent = lasts.flat_map(|last| bench.engine.send_frame(cx, from, Duration::ZERO, &frame(last)).unwrap());
    sent.collect()
}

#[test]
fn rules_send_to_an_uplink_by_the_wires_on_which_the_lag_transmits() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, CardConfig { shared_fdb: true, ..switchdev(2, 1) });
        let (engine, wires) = (&bench.engine, [PF0, PF1].map(|pf| port(pf, Vport::Uplink)));
        engine.settle(cx, true);
        let all = Rule::new(vf(0), Match::new(), [Action::Redirect(wires[0])]);
        add(&bench, cx, FlowChange::Add { pf: PF0, rule: Box::new(all) });
        let on = |wire: usize| vec![Arrival::Port(wires[wire]); 64];
        assert_eq!(arrivals(&bench, cx, vf(0), 0..64), on(0));
        let bond = |tx| {
            let (ports, foreign) = ([PF0, PF1].into_iter().collect(), Vec::new());
            Some(Bond { name: "bond0".to_owned(), tx, ports, foreign })
        };
        for active in [PF1, PF0] {
            engine.bond_changed(cx, bond(TxType::ActiveBackup(Some(active))));
            engine.settle(cx, true);
            assert_eq!(arrivals(&bench, cx, vf(0), 0..64), on(usize::from(active.0)));
        }
        engine.bond_changed(cx, bond(TxType::Hash));
        engine.settle(cx, true);
        let spread = arrivals(&bench, cx, vf(0), 0..64);
        let first = spread.iter().filter(|arrival| **arrival == Arrival::Port(wires[0])).count();
        assert!((8..=56).contains(&first), "{first} of 64 flows leave by the first wire");
        assert_eq!(arrivals(&bench, cx, vf(0), 0..64), spread, "a flow stays on its wire");
        engine.bond_changed(cx, None);
        engine.settle(cx, true);
        assert_eq!(arrivals(&bench, cx, vf(0), 0..64), on(0));
        bench.end(cx);
    });
}

#[test]
fn in_a_multiport_e_switch_rules_lead_from_one_uplink_to_the_other_and_go_with_it() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(2, 1));
        let (engine, wires) = (&bench.engine, [PF0, PF1].map(|pf| port(pf, Vport::Uplink)));
        engine.settle(cx, true);
        let unknown = Err(FlowError::Refused(RuleError::UnknownPort(wires[1])));
        assert_eq!(change(&bench, cx, redirect(wires[0], wires[1], 1)), unknown);
        engine.set_esw_multiport(cx, addr(), true).unwrap();
        engine.settle(cx, true);
        let there = add(&bench, cx, redirect(wires[0], wires[1], 1));
        let back = add(&bench, cx, redirect(wires[1], wires[0], 2));
        let from_vf = add(&bench, cx, redirect(vf(0), wires[1], 3));
        assert_eq!(send(&bench, cx, wires[0], 1), [wires[1]]);
        assert_eq!(arrivals(&bench, cx, wires[1], 2..3), [Arrival::Port(wires[0])]);
        assert_eq!(send(&bench, cx, vf(0), 3), [wires[1]]);
        assert_eq!((rules(&bench, cx, PF0), rules(&bench, cx, PF1)), (vec![there, from_vf], vec![back]));
        let kept = add(&bench, cx, redirect(vf(0), wires[0], 4));
        engine.set_esw_multiport(cx, addr(), false).unwrap();
        engine.settle(cx, true);
        assert_eq!((rules(&bench, cx, PF0), rules(&bench, cx, PF1)), (vec![kept], vec![]));
        assert_eq!(change(&bench, cx, redirect(vf(0), wires[1], 3)), unknown);
        // A member that leaves takes the others' rules along.
        engine.set_esw_multiport(cx, addr(), true).unwrap();
        add(&bench, cx, redirect(wires[0], wires[1], 1));
        let second = CardConfig::default().pf_address(PF1);
        engine.set_mode(cx, second, Mode::Legacy).unwrap();
        assert_eq!(rules(&bench, cx, PF0), [kept]);
        bench.end(cx);
    });
}

#[test]
fn a_tunnel_follows_its_next_hop() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 1));
        let (engine, wire) = (&bench.engine, port(PF0, Vport::Uplink));
        let end: IpAddr = [192, 0, 2, 2].into();
        let encap = Encap {
            kind: TunnelKind::Vxlan,
            id: Some(5),
            src: [192, 0, 2, 1].into(),
            dst: end,
            dst_port: 4789,
            tos: 0,
            ttl: 64,
            options: Vec::new(),
            neighbour: Some(Neighbour { dst: [9; 6], src: [9; 6], from: None }),
        };
        let actions = [Action::TunnelSet(encap), Action::Redirect(wire)];
        let rule =
            add(&bench, cx, FlowChange::Add { pf: PF0, rule: Box::new(Rule::new(vf(0), Match::new(), actions)) });
        assert_eq!(send(&bench, cx, vf(0), 1), [], "nobody has told the next hop: the rule's own does not count");
        let hop = |last| Neighbour { dst: [2, 0, 0, 0, 1, last], src: [2, 0, 0, 0, 1, 0], from: None };
        let outer_mac = |cx: Cx<'_, '_>| match bench.card.planes().forward(cx, vf(0), Duration::ZERO, &frame(1)) {
            Forwarded::Switched(verdict) if verdict.fate == Fate::Forwarded => verdict.outputs[0].frame[..6].to_vec(),
            other => panic!("{other:?}"),
        };
        for last in [1, 2] {
            assert_eq!(engine.set_neighbour(cx, PF0, end, Some(hop(last))), []);
            assert_eq!(outer_mac(cx), hop(last).dst);
        }
        assert_eq!(engine.flow_counters(cx, &[rule])[0].unwrap().packets, 2, "its counter stays");
        engine.set_neighbour(cx, PF0, end, None);
        assert_eq!(send(&bench, cx, vf(0), 1), []);
        engine.set_neighbour(cx, PF0, end, Some(hop(3)));
        assert_eq!(outer_mac(cx), hop(3).dst);
        bench.end(cx);
    });
}

#[test]
fn a_traced_frame_meets_the_meters_as_they_are_and_changes_none() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let meter = Meter { rate: Rate::Packets(1), burst: 1 };
        let police = Police { meter: MeterId(4), conform: flow::Control::Pipe, exceed: flow::Control::Drop };
        let rule = Box::new(Rule::new(vf(0), Match::new(), [Action::Police(police), Action::Redirect(vf(1))]));
        let set = FlowChange::SetMeter { pf: PF0, id: MeterId(4), meter };
        assert!(bench.engine.change_flows(cx, vec![set, FlowChange::Add { pf: PF0, rule }]).iter().all(Result::is_ok));
        let at = PortHandle { device: addr(), index: PortIndex(vf(0).0) };
        let fate = |cx: Cx<'_, '_>| {
            let traced = bench.engine.trace_frame(cx, at, Duration::ZERO, &frame(1)).unwrap();
            assert!(traced.has_state && traced.matched.len() == 1);
            traced.verdict.fate
        };
        assert_eq!([fate(cx), fate(cx)], [Fate::Forwarded; 2], "nothing was taken of the burst");
        assert_eq!(send(&bench, cx, vf(0), 1), [vf(1)]);
        assert_eq!(fate(cx), Fate::Dropped(flow::DropReason::Meter(MeterId(4))), "a frame has used the burst up");
        let counter = |cx: Cx<'_, '_>| bench.engine.flow_counters(cx, &[RuleId(1)])[0].unwrap().packets;
        assert_eq!(counter(cx), 1);
        bench.end(cx);
    });
}

#[test]
fn what_is_dropped_is_counted_by_port_and_reason() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let wanted = Match::new().with(Field::EthDst, [2, 0, 0, 0, 0, 1]);
        add(&bench, cx, FlowChange::Add { pf: PF0, rule: Box::new(Rule::new(vf(0), wanted, [Action::Drop])) });
        assert_eq!(bench.engine.flow_drops(cx), []);
        (0..3).for_each(|_| drop(send(&bench, cx, vf(0), 1)));
        assert_eq!(send(&bench, cx, vf(0), 2), [], "the representor has it, so it is not dropped");
        let sent = bench.engine.send_frame(cx, vf(1), Duration::ZERO, &[1, 2, 3]);
        assert_eq!(sent, Ok(vec![]));
        let dropped = |port, reason, frames| Dropped { port, reason, frames };
        assert_eq!(bench.engine.flow_drops(cx), [dropped(vf(0), "rule", 3), dropped(vf(1), "too-short", 1)]);
        bench.end(cx);
    });
}

#[test]
fn a_meter_that_a_rule_uses_stays() {
    story(|cx, domain| {
        let bench = Bench::start(cx, domain, switchdev(1, 2));
        let (id, meter) = (MeterId(4), Meter { rate: Rate::Packets(1), burst: 1 });
        let police = Police { meter: id, conform: flow::Control::Pipe, exceed: flow::Control::Drop };
        let rule = Rule::new(vf(0), Match::new(), [Action::Police(police), Action::Redirect(vf(1))]);
        let rule = Box::new(rule.with_priority(1, Protocol::All).in_block(Block::Port(vf(0))));
        let batch = vec![FlowChange::SetMeter { pf: PF0, id, meter }, FlowChange::Add { pf: PF0, rule }];
        let results = bench.engine.change_flows(cx, batch);
        let Ok(FlowDone::Added(rule)) = results[1] else { panic!("{results:?}") };
        assert_eq!((send(&bench, cx, vf(0), 1), send(&bench, cx, vf(0), 1)), (vec![vf(1)], vec![]));
        let remove = FlowChange::RemoveMeter { pf: PF0, id };
        assert_eq!(change(&bench, cx, remove.clone()), Err(FlowError::MeterInUse(id)));
        let results = bench.engine.change_flows(cx, vec![FlowChange::Remove(rule), remove]);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        bench.end(cx);
    });
}
