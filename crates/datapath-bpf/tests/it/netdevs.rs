//! Real frames between real netdevs: each test has a card in namespaces of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use std::time::Duration;

use crate::common::net::{Card, Wire, ifindex};
use datapath_bpf::{Change, DropReason, Leftover, LoadError, Mode, Options, Pipeline, Role};
use flow::{
    Action, Block, Control, Csum, Ct, Edit, EditField, Encap, Field, Match, Meter, MeterId, Nat, NatRange, Neighbour,
    Police, Port, Rate, Rule, RuleId, Sample, Sampled, TcpPhase, TunnelDevice, TunnelKind, VlanTag,
    make_checksums_right,
};

const SOON: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_millis(200);

/// A UDP datagram from VF 1 to VF 2.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = |more: usize| ((more + data.len()) as u16).to_be_bytes();
    let [ip, udp] = [length(28), length(8)];
    let mut frame = [
        &[
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, ip[0], ip[1], 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10,
            0, 0, 2,
        ][..],
        &[0x27, 0x10, 0x27, 0x11, udp[0], udp[1], 0xff, 0xff],
        data,
    ]
    .concat();
    make_checksums_right(&mut frame);
    frame
}

/// Whether it is such a frame with this data, whatever its headers are.
fn has(data: &'static [u8]) -> impl Fn(&[u8]) -> bool {
    move |frame| frame.ends_with(data)
}

fn add(pipeline: &mut Pipeline, rules: &[(u64, Rule)]) {
    let changes: Vec<_> = rules.iter().map(|(id, rule)| Change::Add { id: RuleId(*id), rule }).collect();
    assert_eq!(pipeline.commit(&changes), vec![Ok(()); changes.len()]);
}

fn udp() -> Match {
    Match::new().with(Field::EthType, 0x0800u16).with(Field::IpProto, 17u8)
}

#[test]
fn a_frame_goes_from_vf_to_vf_and_what_misses_to_the_representor() {
    let Some(mut card) = Card::new(2) else { return };
    let (one, two, representor) = (card.wire(1), card.wire(2), Wire::at("rep1"));
    one.send(&frame(b"misses"));
    assert_eq!(representor.receive(SOON, has(b"misses")).expect("the representor gets it"), frame(b"misses"));

    add(&mut card.pipeline, &[(1, Rule::new(Port(1), udp(), [Action::Redirect(Port(2))]))]);
    one.send(&frame(b"matches"));
    assert_eq!(two.receive(SOON, has(b"matches")).expect("the other VF gets it"), frame(b"matches"));
    assert_eq!(representor.receive(NEVER, has(b"matches")), None);
    let counter = card.pipeline.counters(&[RuleId(1)])[0];
    assert_eq!((counter.packets, counter.bytes), (1, frame(b"matches").len() as u64));
    assert!(Pipeline::now() - counter.last_used < SOON, "{counter:?}");

    representor.send(&frame(b"from the representor"));
    assert!(card.wire(1).receive(NEVER, has(b"nothing")).is_none());
    assert!(one.receive(SOON, has(b"from the representor")).is_some(), "it goes to the VF");

    assert_eq!(card.pipeline.commit(&[Change::Remove(RuleId(1))]), [Ok(())]);
    one.send(&frame(b"misses again"));
    assert!(representor.receive(SOON, has(b"misses again")).is_some());
}

#[test]
fn copies_tags_and_rewrites_reach_the_netdevs() {
    let Some(mut card) = Card::new(3) else { return };
    let (one, two, three) = (card.wire(1), card.wire(2), card.wire(3));
    let tag = VlanTag { tpid: 0x8100, id: 5, priority: 3 };
    let actions = [
        Action::Mirror(Port(3)),
        Action::VlanPush(tag),
        Edit::set(EditField::Ip4Dst, [10, 0, 0, 77]),
        Action::DecTtl,
        Action::Redirect(Port(2)),
    ];
    add(&mut card.pipeline, &[(1, Rule::new(Port(1), udp(), actions))]);
    let sent = frame(b"copied");
    one.send(&sent);
    assert_eq!(three.receive(SOON, has(b"copied")).expect("a copy"), sent);
    let got = two.receive(SOON, has(b"copied")).expect("a frame");
    let rest = [&got[..12], &got[16..]].concat();
    assert_eq!((&got[12..16], &rest[30..34], rest[22]), (&[0x81, 0, 0x60, 5][..], &[10, 0, 0, 77][..], 63));
    assert!(flow::checksums_are_right(&rest));
    // What comes in with a tag is matched with it.
    let pop = Rule::new(
        Port(2),
        Match::new().with(Field::VlanTpid, 0x8100u16).with(Field::VlanId, 5u16),
        [Action::VlanPop, Action::Redirect(Port(1))],
    );
    add(&mut card.pipeline, &[(2, pop)]);
    two.send(&got);
    assert_eq!(one.receive(SOON, has(b"copied")).expect("without a tag"), rest);
}

#[test]
fn a_trapped_frame_reaches_the_representor_as_it_came_and_samples_and_meters_work() {
    let Some(mut card) = Card::new(2) else { return };
    let (one, two, representor) = (card.wire(1), card.wire(2), Wire::at("rep1"));
    let meter = Meter { rate: Rate::Packets(1), burst: 3 };
    assert_eq!(card.pipeline.commit(&[Change::SetMeter { id: MeterId(1), meter }]), [Ok(())]);
    let actions = [
        Action::Police(Police { meter: MeterId(1), conform: Control::Pipe, exceed: Control::Drop }),
        Action::Sample(Sample { rate: 1, group: 5, truncate: Some(20) }),
        Edit::set(EditField::EthSrc, [2, 0, 0, 0, 0, 0x55]),
        Action::VlanPush(VlanTag { tpid: 0x8100, id: 9, priority: 0 }),
        Action::Mirror(Port(2)),
        Action::Trap,
    ];
    add(&mut card.pipeline, &[(1, Rule::new(Port(1), udp(), actions))]);
    let mut samples = card.pipeline.open_samples().expect("the samples");
    card.pipeline.want_samples(true);
    let sent = frame(b"trapped");
    one.send(&sent);
    assert_eq!(representor.receive(SOON, has(b"trapped")).expect("the representor gets it"), sent);
    let copy = two.receive(SOON, has(b"trapped")).expect("a copy");
    assert_eq!((&copy[6..12], &copy[12..16]), (&[2, 0, 0, 0, 0, 0x55][..], &[0x81, 0, 0, 9][..]));
    let wanted = Sampled { group: 5, rate: 1, in_port: Port(1), length: sent.len(), frame: sent[..20].to_vec() };
    assert_eq!(samples.read(64), [wanted]);
    // The burst is over after two more.
    (0..4).for_each(|_| one.send(&sent));
    let arrived = || representor.receive(NEVER, has(b"trapped")).is_some();
    assert_eq!((0..4).filter(|_| arrived()).count(), 2);
    assert_eq!(card.pipeline.meter(MeterId(1)).expect("a meter"), Some((3, 2)));
    assert_eq!(card.pipeline.drops().expect("drops").get(&(Port(1), DropReason::Meter)), Some(&2));
    assert_eq!((samples.read(1).len(), samples.read(64).len()), (1, 1));
}

#[test]
fn samples_are_taken_only_while_somebody_wants_them_and_a_full_buffer_stops_no_frame() {
    let Some(mut card) = Card::new(2) else { return };
    let (one, two) = (card.wire(1), card.wire(2));
    let actions = [Action::Sample(Sample { rate: 1, group: 5, truncate: None }), Action::Redirect(Port(2))];
    add(&mut card.pipeline, &[(1, Rule::new(Port(1), udp(), actions))]);
    let mut samples = card.pipeline.open_samples().expect("the samples");
    let send = |frame: &[u8]| {
        one.send(frame);
        assert_eq!(two.receive(SOON, |got| got == frame).expect("the frame arrives"), frame);
    };
    // Nobody has asked for samples yet.
    send(&frame(b"unwanted"));
    assert_eq!(samples.read(64), []);
    card.pipeline.want_samples(true);
    send(&frame(b"wanted"));
    card.pipeline.want_samples(false);
    send(&frame(b"unwanted"));
    let wanted: Vec<Vec<u8>> = samples.read(64).into_iter().map(|sample| sample.frame).collect();
    assert_eq!(wanted, [frame(b"wanted")]);
    // Frames go on when nobody reads and the buffer, of a megabyte, is full.
    card.pipeline.want_samples(true);
    let long = frame(&[7; 1400]);
    (0..1000).for_each(|_| send(&long));
    let taken = samples.read(usize::MAX);
    assert!((500..1000).contains(&taken.len()), "{}", taken.len());
    assert!(taken.iter().all(|sample| sample.frame == long));
    send(&frame(b"again"));
    assert_eq!(samples.read(64).len(), 1);
}

#[test]
fn a_port_that_is_down_or_inactive_gets_nothing() {
    let Some(mut card) = Card::new(2) else { return };
    let (one, two) = (card.wire(1), card.wire(2));
    add(&mut card.pipeline, &[(1, Rule::new(Port(1), udp(), [Action::Redirect(Port(2))]))]);
    card.set_port(2, |port| port.link_up = false);
    one.send(&frame(b"to one that is down"));
    assert_eq!(two.receive(NEVER, has(b"to one that is down")), None);
    card.set_port(2, |port| port.through_inner = true);
    one.send(&frame(b"through the inner end"));
    assert!(two.receive(SOON, has(b"through the inner end")).is_some());
    card.set_port(1, |port| port.mode = Mode::Inactive);
    one.send(&frame(b"from an inactive one"));
    assert_eq!(two.receive(NEVER, has(b"from an inactive one")), None);
    card.set_port(1, |port| port.mode = Mode::Legacy);
    let stack = Wire::at("inner1");
    one.send(&frame(b"to the bridge"));
    assert!(stack.receive(SOON, has(b"to the bridge")).is_some());
    let drops = card.pipeline.drops().expect("drops");
    assert_eq!(drops.get(&(Port(2), DropReason::LinkDown)), Some(&1), "{drops:?}");
    assert!(drops.get(&(Port(1), DropReason::Inactive)).is_some_and(|count| *count >= 1), "{drops:?}");
}

/// Sends 8 MB by TCP from VF 1 to an address of VF 2, and 8 MB back. Returns whether they came.
fn transfer(card: &Card, connect_to: &str, listen_at: &str) -> bool {
    let listener = card.vf(2).with(|| TcpListener::bind(listen_at)).expect("a listener");
    let to = connect_to.parse().expect("an address");
    let mut stream = card.vf(1).with(|| TcpStream::connect_timeout(&to, SOON)).expect("a connection");
    let mut other = listener.accept().expect("a connection").0;
    [&stream, &other].into_iter().for_each(|stream| stream.set_read_timeout(Some(SOON)).expect("a time-out"));
    [&stream, &other].into_iter().for_each(|stream| stream.set_write_timeout(Some(SOON)).expect("a time-out"));
    one_way(&mut stream, &mut other) && one_way(&mut other, &mut stream)
}

/// Sends 8 MB. Returns whether they came.
fn one_way(from: &mut TcpStream, to: &mut TcpStream) -> bool {
    let data = vec![7u8; 8 << 20];
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| from.write_all(&data));
        let mut got = vec![0; data.len()];
        let received = to.read_exact(&mut got);
        sent.join().expect("the thread ends").is_ok() && received.is_ok() && got == data
    })
}

#[test]
fn tcp_with_large_segments_passes_through_tags_and_rewrites() {
    let Some(mut card) = Card::new(3) else { return };
    // VF 1 talks to 10.0.0.200, which VF 2 is not, and VF 2 believes that it talks to 10.0.0.9.
    card.vf(1).ip("neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev vf1");
    card.vf(2).ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev vf2");
    let tcp = || Match::new().with(Field::EthType, 0x0800u16).with(Field::IpProto, 6u8);
    let tag = VlanTag { tpid: 0x8100, id: 5, priority: 0 };
    let there = [
        Edit::set(EditField::Ip4Dst, [10, 0, 0, 2]),
        Edit::set(EditField::Ip4Src, [10, 0, 0, 9]),
        Edit::set(EditField::TcpDst, 8000u16),
        Action::DecTtl,
        Action::VlanPush(tag),
        Action::VlanPush(tag),
        Action::Mirror(Port(3)),
        Action::Goto(1),
    ];
    let tagged = tcp().with(Field::CvlanTpid, 0x8100u16).with(Field::VlanTpid, 0x8100u16).with(Field::DstPort, 8000u16);
    let csum = Action::Csum(Csum::IP4_HEADER.and(Csum::TCP));
    let on =
        Rule::new(Port(1), tagged, [Action::VlanPop, csum, Action::VlanPop, Action::Redirect(Port(2))]).in_chain(1);
    let back = [
        Edit::set(EditField::Ip4Src, [10, 0, 0, 200]),
        Edit::set(EditField::Ip4Dst, [10, 0, 0, 1]),
        Edit::set(EditField::TcpSrc, 80u16),
        Action::Redirect(Port(1)),
    ];
    let rules = [(1, Rule::new(Port(1), tcp(), there)), (2, on), (3, Rule::new(Port(2), tcp(), back))];
    add(&mut card.pipeline, &rules);
    let three = card.wire(3);
    assert!(transfer(&card, "10.0.0.200:80", "10.0.0.2:8000"));
    let copy = three.receive(SOON, |frame| frame.len() > 70).expect("a copy");
    assert_eq!(copy[12..20], [0x81, 0, 0, 5, 0x81, 0, 0, 5]);
    let counters = card.pipeline.counters(&[RuleId(1), RuleId(2)]);
    assert_eq!(counters[0].packets, counters[1].packets);
    assert_eq!(counters[0].bytes + counters[0].packets * 8, counters[1].bytes, "{counters:?}");
    // Segments are counted, not what the sender handed over in one piece.
    assert!(counters[0].packets >= (8 << 20) / 1448, "{counters:?}");
    assert!(counters[0].bytes >= (8 << 20) + counters[0].packets * 54, "{counters:?}");
}

/// VF 1 talks to a VXLAN device of the kernel behind the wire, and segments stay large on the whole way.
#[test]
fn tcp_passes_through_a_tunnel_to_the_kernels_device_and_back() {
    let Some(mut card) = Card::new(2) else { return };
    // What is VF 2 in other tests is the other host here, and its port is the wire.
    let uplink = Port(0xffff);
    card.pipeline.detach(ifindex("inner2")).expect("detached");
    card.set_port_as(uplink, 2, |port| port.is_wire = true);
    card.pipeline.attach(ifindex("inner2"), Role::Wire(uplink)).expect("attached");
    card.vf(2).ip("addr flush dev vf2");
    card.vf(2).ip("addr add 192.168.0.2/24 dev vf2");
    card.vf(2).ip("neigh add 192.168.0.1 lladdr 02:00:00:00:00:99 dev vf2");
    card.vf(2).ip("link add vx type vxlan id 77 remote 192.168.0.1 local 192.168.0.2 dstport 4789 dev vf2");
    card.vf(2).ip("link set vx up");
    card.vf(2).ip("addr add 10.0.0.2/24 dev vx");
    let encap = Encap {
        kind: TunnelKind::Vxlan,
        id: Some(77),
        src: [192, 168, 0, 1].into(),
        dst: [192, 168, 0, 2].into(),
        dst_port: 4789,
        tos: 0,
        ttl: 64,
        options: Vec::new(),
        neighbour: Some(Neighbour { dst: [2, 0, 0, 0, 0, 2], src: [2, 0, 0, 0, 0, 0x99], from: None }),
    };
    let device = Block::Tunnel(TunnelDevice { kind: TunnelKind::Vxlan, udp_port: 4789 });
    let out = Rule::new(Port(1), Match::new(), [Action::TunnelSet(encap), Action::Redirect(uplink)]);
    let of_tunnel = Match::new().with(Field::EncKeyId, 77u32).with(Field::EncIp4Src, [192, 168, 0, 2]);
    let back = Rule::new(uplink, of_tunnel, [Action::TunnelUnset, Action::Redirect(Port(1))]).in_block(device);
    add(&mut card.pipeline, &[(1, out), (2, back)]);
    // ARP goes through the tunnel, too.
    assert!(transfer(&card, "10.0.0.2:8000", "10.0.0.2:8000"));
    let counters = card.pipeline.counters(&[RuleId(1), RuleId(2)]);
    assert!(counters.iter().all(|counter| counter.packets >= (8 << 20) / 1448), "{counters:?}");
}

#[test]
fn traffic_never_misses_its_rule_while_others_come_and_go() {
    const FRAMES: u64 = 20_000;
    let Some(mut card) = Card::new(2) else { return };
    let (one, representor) = (card.wire(1), Wire::at("rep1"));
    add(
        &mut card.pipeline,
        &[(1, Rule::new(Port(1), udp(), [Action::Redirect(Port(2))]).with_priority(9, flow::Protocol::All))],
    );
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut changes = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..FRAMES).for_each(|_| one.send(&frame(b"never misses")));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            // Of other priorities and masks, before and behind it, with the same mask and with another one.
            let other = |id: u64| {
                let matches = udp().with(Field::DstPort, 1000 + id as u16);
                let matches = if id.is_multiple_of(2) { matches } else { matches.with(Field::IpTtl, 9u8) };
                (
                    id,
                    Rule::new(Port(1), matches, [Action::Drop])
                        .with_priority(1 + id as u32 % 20 * 2, flow::Protocol::All),
                )
            };
            let others: Vec<_> = (2..60).map(other).collect();
            add(&mut card.pipeline, &others);
            let gone: Vec<_> = others.iter().map(|(id, _)| Change::Remove(RuleId(*id))).collect();
            assert!(card.pipeline.commit(&gone).iter().all(Result::is_ok));
            changes += 2 * others.len();
        }
    });
    assert_eq!(representor.receive(NEVER, has(b"never misses")), None);
    assert_eq!(card.pipeline.counters(&[RuleId(1)])[0].packets, FRAMES, "after {changes} changes");
    assert!(changes > 1000, "{changes} changes");
}

#[test]
fn a_pipeline_forwards_without_a_process_and_is_found_again() {
    let Some(mut card) = Card::new(2) else { return };
    let (one, two) = (card.wire(1), card.wire(2));
    let tag = VlanTag { tpid: 0x8100, id: 5, priority: 3 };
    let other = udp().with(Field::DstPort, 9u16);
    let rules = [
        (
            1,
            Rule::new(
                Port(1),
                udp(),
                [Action::Mirror(Port(1)), Action::VlanPush(tag), Action::VlanPop, Action::Redirect(Port(2))],
            ),
        ),
        (2, Rule::new(Port(1), other.clone(), [Action::Drop]).with_priority(2, flow::Protocol::All)),
    ];
    add(&mut card.pipeline, &rules);
    // One that uses a meter and a range, and one that uses a tunnel, which the frames below do not match.
    let meter = Change::SetMeter { id: MeterId(4), meter: Meter { rate: Rate::Bytes(1000), burst: 2000 } };
    assert_eq!(card.pipeline.commit(&[meter]), [Ok(())]);
    let police = Action::Police(Police { meter: MeterId(4), conform: Control::Jump(2), exceed: Control::Drop });
    let ranged = udp().with_dst_ports(1..=9);
    let ranged = Rule::new(Port(1), ranged, [police, Action::Drop, Action::DecTtl, Action::Redirect(Port(2))]);
    let encap = Encap {
        kind: TunnelKind::Gre,
        id: None,
        src: [10, 0, 0, 1].into(),
        dst: [10, 0, 0, 2].into(),
        dst_port: 0,
        tos: 0,
        ttl: 9,
        options: Vec::new(),
        neighbour: None,
    };
    let into_tunnel = Rule::new(Port(2), udp(), [Action::TunnelSet(encap), Action::Redirect(Port(1))]);
    let others = [(5, ranged.with_priority(3, flow::Protocol::Is(0x0800))), (6, into_tunnel)];
    add(&mut card.pipeline, &others);
    one.send(&frame(b"before"));
    assert!(two.receive(SOON, has(b"before")).is_some());

    let Card { pipeline, vfs } = card;
    drop(pipeline);
    one.send(&frame(b"nobody there"));
    assert!(two.receive(SOON, has(b"nobody there")).is_some());

    let mut pipeline = left_at("inner1").expect("found");
    assert_eq!((pipeline.rule_count(), pipeline.counters(&[RuleId(1)])[0].packets), (4, 2));
    // It knows what belongs together: the protocol of a priority, who uses a meter, which meter is the same.
    let wrong = Rule::new(Port(1), udp(), [Action::Drop]).with_priority(3, flow::Protocol::All);
    let refused = datapath_bpf::Refused::Protocol(flow::Protocol::Is(0x0800));
    let changes = [Change::Add { id: RuleId(7), rule: &wrong }, Change::RemoveMeter(MeterId(4)), meter];
    assert_eq!(pipeline.commit(&changes), [Err(refused), Err(datapath_bpf::Refused::Used), Ok(())]);
    let changes = [Change::Remove(RuleId(5)), Change::Remove(RuleId(6)), Change::RemoveMeter(MeterId(4))];
    assert_eq!(pipeline.commit(&changes), [Ok(()), Ok(()), Ok(())]);
    let again = Change::Add {
        id: RuleId(3),
        rule: &Rule::new(Port(1), other, [Action::Drop]).with_priority(2, flow::Protocol::All),
    };
    assert_eq!(pipeline.commit(&[again]), [Err(datapath_bpf::Refused::Exists)]);
    assert_eq!(pipeline.commit(&[Change::Remove(RuleId(1)), Change::Remove(RuleId(2))]), [Ok(()), Ok(())]);
    add(&mut pipeline, &[(4, Rule::new(Port(1), udp(), [committed(None), Action::Redirect(Port(2))]))]);
    one.send(&frame(b"by the new rule"));
    assert!(two.receive(SOON, has(b"by the new rule")).is_some());
    assert_eq!(pipeline.counters(&[RuleId(4)])[0].packets, 1);
    drop(pipeline);
    let mut pipeline = left_at("inner1").expect("found once more");
    assert_eq!(pipeline.rules().collect::<Vec<_>>(), [RuleId(4)]);
    let connections = pipeline.connections().expect("connections");
    assert_eq!((connections.len(), connections[0].zone, pipeline.connection_count()), (1, 5, 1));
    assert_eq!((pipeline.meter(MeterId(4)).expect("a meter"), pipeline.counters(&[RuleId(4)])[0].packets), (None, 1));
    assert!(pipeline.detach(ifindex("inner1")).expect("detached"));
    one.send(&frame(b"after"));
    assert_eq!(two.receive(NEVER, has(b"after")), None);
    assert!(left_at("inner1").is_none(), "nothing is left there");
    // The other port has it still.
    drop((pipeline, vfs));
    assert!(left_at("inner2").is_some());
}

/// The pipeline that was left at a netdev of this namespace.
fn left_at(name: &str) -> Option<Pipeline> {
    let number = ifindex(name);
    let Leftover { program, .. } = Leftover::at(number).expect("programs").pop()?;
    Some(Pipeline::adopt(program, [number]).expect("a pipeline"))
}

#[test]
fn a_pipeline_of_another_build_is_replaced_and_no_frame_is_lost() {
    let Some(mut card) = Card::new(2) else { return };
    let (one, two) = (card.wire(1), card.wire(2));
    let rule = Rule::new(Port(1), udp(), [Action::Redirect(Port(2))]);
    add(&mut card.pipeline, &[(1, rule.clone())]);
    card.pipeline.pretend_other_build();
    let Card { pipeline, vfs } = card;
    drop(pipeline);
    let number = ifindex("inner1");
    let old = Leftover::at(number).expect("programs").pop().expect("the old program");
    let program = old.program.try_clone().expect("a descriptor");
    assert!(matches!(Pipeline::adopt(program, [number]), Err(LoadError::OtherBuild(_))));
    // The new one is attached behind the old one, which decides until it is detached.
    let mut card = Card { pipeline: Pipeline::load(Options::default()).expect("loaded"), vfs };
    (1..=2).for_each(|port| card.set_port(port, |_| ()));
    add(&mut card.pipeline, &[(1, rule)]);
    card.pipeline.attach(number, Role::Port(Port(1))).expect("attached");
    one.send(&frame(b"by the old rule"));
    assert!(two.receive(SOON, has(b"by the old rule")).is_some());
    assert_eq!(card.pipeline.counters(&[RuleId(1)])[0].packets, 0);
    old.detach().expect("detached");
    one.send(&frame(b"by the new rule"));
    assert!(two.receive(SOON, has(b"by the new rule")).is_some());
    assert_eq!(card.pipeline.counters(&[RuleId(1)])[0].packets, 1);
}

fn ip() -> Match {
    Match::new().with(Field::EthType, 0x0800u16)
}

fn committed(nat: Option<Nat>) -> Action {
    Action::Ct(Ct { zone: 5, commit: true, nat, ..Ct::default() })
}

#[test]
fn tcp_with_large_segments_is_translated_and_a_firewall_lets_only_answers_back() {
    let Some(mut card) = Card::new(2) else { return };
    // VF 1 talks to 10.0.0.200, which is VF 2; VF 2 sees 10.0.0.9 and another port.
    card.vf(1).ip("neigh add 10.0.0.200 lladdr 02:00:00:00:00:02 dev vf1");
    card.vf(2).ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:01 dev vf2");
    card.vf(2).ip("neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev vf2");
    let to_two =
        Nat::Dst(NatRange { addresses: [10, 0, 0, 2].into()..=[10, 0, 0, 2].into(), ports: Some(8000..=8000) });
    let as_nine =
        Nat::Src(NatRange { addresses: [10, 0, 0, 9].into()..=[10, 0, 0, 9].into(), ports: Some(5000..=5009) });
    let second = |nat| Action::Ct(Ct { zone: 6, commit: true, nat: Some(nat), ..Ct::default() });
    let is = |flags| ip().with_ct_state(Field::CT_TRACKED | flags, Field::CT_TRACKED | flags);
    add(
        &mut card.pipeline,
        &[
            (1, Rule::new(Port(1), ip(), [committed(Some(to_two)), Action::Goto(1)])),
            (2, Rule::new(Port(1), ip(), [second(as_nine), Action::Redirect(Port(2))]).in_chain(1)),
            (3, Rule::new(Port(2), ip(), [second(Nat::Restore), Action::Goto(1)])),
            (4, Rule::new(Port(2), is(Field::CT_NEW), [Action::Drop]).in_chain(1)),
            (
                5,
                Rule::new(
                    Port(2),
                    is(Field::CT_ESTABLISHED),
                    [committed(Some(Nat::Restore)), Action::Redirect(Port(1))],
                )
                .in_chain(1),
            ),
        ],
    );
    assert!(transfer(&card, "10.0.0.200:9000", "10.0.0.2:8000"));
    let mut connections = card.pipeline.connections().expect("connections");
    connections.sort_by_key(|connection| connection.zone);
    assert_eq!(connections.iter().map(|one| one.zone).collect::<Vec<_>>(), [5, 6]);
    assert!(connections.iter().all(|one| one.translated && one.seen_reply && one.assured), "{connections:?}");
    assert!(
        connections.iter().all(|one| one.tcp.is_some_and(|phase| phase >= TcpPhase::Established)),
        "{connections:?}"
    );
    assert_eq!(connections[1].reply.dst.to_string(), "10.0.0.9");
    assert!((5000..=5009).contains(&connections[1].reply.dst_part), "{connections:?}");
    // What VF 2 begins does not come back.
    let listener = card.vf(1).with(|| TcpListener::bind("10.0.0.1:7000")).expect("a listener");
    let begun = card.vf(2).with(|| TcpStream::connect_timeout(&"10.0.0.1:7000".parse().expect("an address"), NEVER));
    assert!(begun.is_err());
    drop(listener);
    let drops = card.pipeline.drops().expect("drops");
    assert!(drops.keys().all(|(_, reason)| *reason == DropReason::Rule), "{drops:?}");
    assert!(drops.contains_key(&(Port(2), DropReason::Rule)));
    assert_eq!((card.pipeline.clear_connections().expect("cleared"), card.pipeline.connection_count()), (3, 0));
}

#[test]
fn of_frames_that_begin_the_same_connection_at_once_one_does() {
    let Some(mut card) = Card::new(3) else { return };
    let new = |from| Rule::new(Port(from), ip(), [committed(None), Action::Redirect(Port(2))]);
    add(&mut card.pipeline, &[(1, new(1)), (2, new(3))]);
    const CONNECTIONS: u16 = 3000;
    let with_port = |port: u16| {
        let mut frame = frame(b"first");
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        make_checksums_right(&mut frame);
        frame
    };
    let wires = [card.wire(1), card.wire(3)];
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for wire in &wires {
            scope.spawn(|| {
                for port in 1000..1000 + CONNECTIONS {
                    if port % 16 == 0 {
                        barrier.wait();
                    }
                    wire.send(&with_port(port));
                }
            });
        }
    });
    let connections = card.pipeline.connections().expect("connections");
    assert_eq!((connections.len(), card.pipeline.connection_count()), (CONNECTIONS.into(), CONNECTIONS.into()));
    // Each frame was decided about, and counted once.
    let drops = card.pipeline.drops().expect("drops");
    assert!(drops.is_empty(), "{drops:?}");
    let counted: u64 = card.pipeline.counters(&[RuleId(1), RuleId(2)]).iter().map(|counter| counter.packets).sum();
    assert_eq!(counted, 2 * u64::from(CONNECTIONS));
    assert_eq!(card.pipeline.expire_connections().expect("none is over"), 0);
    assert_eq!(card.pipeline.clear_connections().expect("cleared"), usize::from(CONNECTIONS));
}
