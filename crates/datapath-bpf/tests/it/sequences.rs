//! Sequences of frames of the same connections: the program tracks and translates them as `flow::process` does.
//!
//! Two ports talk through rules that are typical for connections. Frames are the next ones of conversations, answers to what
//! was sent, errors about it, segments with any flags, fragments, and frames that are cut; the clock moves past every
//! time-out. After each frame the same must have become of it, and every few frames the tables of connections must be the
//! same. `CASES=1000000` makes a long run, `SEED=n` another one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::common::pipeline;
use datapath_bpf::{Change, Mode, Options, Pipeline, PortConfig, Role, TrialFate};
use flow::generate::Random;
use flow::{
    Action, Block, Ct, DropReason, Fate, Field, Match, MissReason, Nat, NatRange, Port, PortKind, Protocol, Rule,
    State, Step, Tables, TcpPhase, Tuple, make_checksums_right, process,
};

const ONE: Port = Port(1);
const TWO: Port = Port(2);
const FRAMES_PER_SCENE: u64 = 500;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|cases| cases.parse().ok()).unwrap_or(otherwise)
}

/// Frames for which a trial run has room and headers (`bpf_prog_test_run_skb`).
fn is_triable(frame: &[u8]) -> bool {
    let headers = if frame.get(12..14) == Some(&[8, 0]) { 34 } else { 54 };
    frame.len() >= headers
}

fn commit(zone: u16) -> Ct {
    Ct { zone, commit: true, ..Ct::default() }
}

fn range(version: u8, last: u8, ports: Option<(u16, u16)>) -> NatRange {
    let addresses = match version {
        4 => [10, 9, 0, 1].into()..=[10, 9, 0, last].into(),
        _ => [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()..=[0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
    };
    NatRange { addresses, ports: ports.map(|(first, last)| first..=last) }
}

fn state(flags: u8) -> Match {
    Match::new().with_ct_state(Field::CT_TRACKED | flags, Field::CT_TRACKED | flags)
}

/// A set of rules.
fn scene(number: u64) -> Vec<Rule> {
    let rule = |port, chain, matches, actions: Vec<Action>| {
        Rule::new(port, matches, actions).with_priority(1, Protocol::All).in_chain(chain)
    };
    let both = |there: Ct, back: Ct| {
        let send = |from, to, ct| rule(from, 0, Match::new(), vec![Action::Ct(ct), Action::Redirect(to)]);
        vec![send(ONE, TWO, there), send(TWO, ONE, back)]
    };
    let with_nat = |nat| Ct { nat: Some(nat), ..commit(5) };
    let version = if number.is_multiple_of(2) { 4 } else { 6 };
    match number % 8 {
        0 => both(commit(5), commit(5)),
        1 => both(with_nat(Nat::Src(range(4, 2, Some((5000, 5003))))), with_nat(Nat::Restore)),
        2 => both(with_nat(Nat::Dst(range(4, 2, Some((80, 81))))), with_nat(Nat::Restore)),
        3 => both(
            with_nat(Nat::Src(range(version, 1, None))),
            Ct { nat: Some(Nat::Restore), ..Ct { zone: 5, ..Ct::default() } },
        ),
        4 => both(Ct { force: true, ..commit(5) }, Ct { force: true, ..commit(5) }),
        // A firewall: what one side begins may be answered.
        5 => {
            let marked = Ct { mark: Some((7, 0xff)), label: Some((1 << 100 | 5, u128::MAX)), ..commit(5) };
            let marked_again = Ct { mark: Some((0x100, 0x100)), ..commit(5) };
            let mut rules = Vec::new();
            for (from, to) in [(ONE, TWO), (TWO, ONE)] {
                rules.push(rule(
                    from,
                    0,
                    Match::new(),
                    vec![Action::Ct(Ct { zone: 5, ..Ct::default() }), Action::Goto(1)],
                ));
                rules.push(rule(from, 1, state(Field::CT_INVALID), vec![Action::Drop]));
                rules.push(rule(from, 1, state(Field::CT_RELATED), vec![Action::Redirect(to)]));
                rules.push(rule(
                    from,
                    1,
                    state(Field::CT_ESTABLISHED),
                    vec![Action::Ct(marked_again.clone()), Action::Goto(2)],
                ));
                rules.push(rule(from, 2, Match::new().with(Field::CtMark, 0x107u32), vec![Action::Redirect(to)]));
                rules.push(
                    rule(from, 2, Match::new().with(Field::CtLabel, 1u128 << 100 | 5), vec![Action::Redirect(to)])
                        .with_priority(2, Protocol::All),
                );
            }
            rules.push(rule(ONE, 1, state(Field::CT_NEW), vec![Action::Ct(marked), Action::Redirect(TWO)]));
            rules
        }
        // Two zones, the second one translated.
        6 => {
            let second = Ct { zone: 6, ..with_nat(Nat::Src(range(4, 3, None))) };
            let back = Ct { zone: 6, commit: true, nat: Some(Nat::Restore), ..Ct::default() };
            vec![
                rule(ONE, 0, Match::new(), vec![Action::Ct(commit(5)), Action::Goto(1)]),
                rule(ONE, 1, Match::new(), vec![Action::Ct(second), Action::Redirect(TWO)]),
                rule(TWO, 0, Match::new(), vec![Action::Ct(back), Action::Goto(1)]),
                rule(TWO, 1, Match::new(), vec![Action::Ct(commit(5)), Action::Redirect(ONE)]),
            ]
        }
        // Chains in which a tracked frame misses: then nothing has changed.
        _ => vec![
            rule(ONE, 0, Match::new(), vec![Action::Ct(commit(5)), Action::Goto(1)]),
            rule(ONE, 1, state(Field::CT_NEW), vec![Action::Redirect(TWO)]),
            rule(TWO, 0, Match::new(), vec![Action::Ct(commit(5)), Action::Goto(1)]),
            rule(TWO, 1, state(Field::CT_REPLY), vec![Action::Redirect(ONE)]),
        ],
    }
}

/// Makes frames.
struct Talk {
    random: Random,
    /// The last frames that were sent, and where: they can be answered.
    sent: Vec<(Port, Vec<u8>)>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

fn ip4(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8], fragment: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1]);
    frame.extend(fragment.to_be_bytes());
    frame.extend([64, protocol, 0, 0]);
    frame.extend([src, dst].concat());
    frame.extend(payload);
    frame
}

fn ip6(src: u8, dst: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([protocol, 64]);
    for last in [src, dst] {
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, last]);
    }
    frame.extend(payload);
    frame
}

impl Talk {
    fn flags(&mut self) -> u8 {
        let any = self.random.number() as u8;
        let usual = [0x02, 0x02, 0x02, 0x02, 0x12, 0x10, 0x10, 0x18, 0x11, 0x14, 0x04, 0xc2];
        if self.random.chance(10) { any } else { self.random.one(usual) }
    }

    /// The flags of a segment that may follow one with these.
    fn flags_after(&mut self, flags: u8) -> u8 {
        if self.random.chance(15) {
            return self.flags();
        }
        match flags & 0x17 {
            0x02 => self.random.one([0x12, 0x12, 0x12, 0x12, 0x02, 0x14]),
            0x12 => 0x10,
            0x11 => self.random.one([0x11, 0x10, 0x11]),
            0x10 => self.random.one([0x10, 0x10, 0x18, 0x11, 0x02]),
            _ => self.random.one([0x02, 0x10]),
        }
    }

    fn payload(&mut self, protocol: u8) -> Vec<u8> {
        let ports =
            [self.random.one([1000u16, 1001, 300, 700]), self.random.one([80, 81])].map(u16::to_be_bytes).concat();
        let data = self.random.below(12);
        match protocol {
            TCP => {
                let mut tcp = ports;
                // Numbers are few, so that an ACK is one of what was sent, and a SYN has no data.
                tcp.extend([0, 0, 0, self.random.below(3) as u8, 0, 0, 0, self.random.below(4) as u8]);
                let (offset, flags) = (self.random.one([5u8, 5, 5, 5, 6, 4, 15]) << 4, self.flags());
                tcp.extend([offset, flags, 1, 0, 0, 0, 0, 0]);
                tcp.extend(vec![0; if flags & 2 == 0 { data } else { 0 }]);
                tcp
            }
            UDP => [ports, (8 + data as u16).to_be_bytes().to_vec(), vec![0xff, 0xff], vec![7; data]].concat(),
            1 => [
                vec![
                    self.random.one([8, 8, 8, 0, 13, 14, 15, 17, 3, 5, 9]),
                    0,
                    0,
                    0,
                    0,
                    self.random.below(2) as u8,
                    0,
                    1,
                ],
                vec![9; data],
            ]
            .concat(),
            58 => [
                vec![
                    self.random.one([128, 128, 128, 129, 139, 135, 1, 3]),
                    0,
                    0,
                    0,
                    0,
                    self.random.below(2) as u8,
                    0,
                    1,
                ],
                vec![9; data],
            ]
            .concat(),
            132 => [ports, vec![0; 8]].concat(),
            _ => vec![1; data],
        }
    }

    /// A frame that begins or goes on.
    fn first(&mut self) -> (Port, Vec<u8>) {
        let port = if self.random.chance(75) { ONE } else { TWO };
        let (src, dst) = (self.random.one([1u8, 2]), self.random.one([3u8, 3, 3, 4]));
        let (src, dst) = if port == ONE { (src, dst) } else { (dst, src) };
        let frame = if self.random.chance(70) {
            let protocol = self.random.one([TCP, TCP, TCP, TCP, UDP, UDP, 1, 132, 47, 58]);
            let fragment = self.random.one([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x4000, 0x2000, 5]);
            let payload = self.payload(protocol);
            ip4([10, 0, 0, src], [10, 0, 0, dst], protocol, &payload, fragment)
        } else {
            let protocol = self.random.one([TCP, TCP, UDP, 58, 58, 1, 44, 0, 50]);
            let payload = self.payload(protocol);
            ip6(src, dst, protocol, &payload)
        };
        (port, frame)
    }

    /// The answer to a frame.
    fn answer(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        let Some(network) = flow::dissect(&frame).network else { return frame };
        let (at, length) = if network.version == 4 { (12, 4) } else { (8, 16) };
        let at = network.offset + at;
        let addresses = frame[at..at + 2 * length].to_vec();
        frame[at..at + length].copy_from_slice(&addresses[length..]);
        frame[at + length..at + 2 * length].copy_from_slice(&addresses[..length]);
        let Some(at) = network.transport() else { return frame };
        match network.protocol {
            TCP | UDP | 132 if frame.len() >= at + 4 => {
                let ports = frame[at..at + 4].to_vec();
                frame[at..at + 2].copy_from_slice(&ports[2..]);
                frame[at + 2..at + 4].copy_from_slice(&ports[..2]);
            }
            1 if frame[at] == 8 => frame[at] = 0,
            1 if matches!(frame[at], 13 | 15 | 17) => frame[at] += 1,
            58 if matches!(frame[at], 128 | 139) => frame[at] += 1,
            _ => {}
        }
        if network.protocol == TCP && frame.len() >= at + 14 {
            // It acknowledges what came.
            let (sent, flags) = (frame[at + 7], self.flags_after(frame[at + 13]));
            frame[at + 11] = sent.wrapping_add(1);
            frame[at + 13] = flags;
        }
        frame
    }

    /// An ICMP error about a frame.
    fn error(&mut self, frame: &[u8]) -> Vec<u8> {
        let Some(network) = flow::dissect(frame).network else { return frame.to_vec() };
        let packet = &frame[network.offset..];
        let quoted = self.random.one([20, 27, 28, 48, 60, 80]).min(packet.len());
        let header = |kind: u8| [vec![kind, 1, 0, 0, 0, 0, 0, 0], packet[..quoted].to_vec()].concat();
        if network.version == 4 {
            let kind = self.random.one([3, 11, 12, 4, 5, 9]);
            ip4([10, 0, 0, 9], [10, 0, 0, 1], 1, &header(kind), 0)
        } else {
            let kind = self.random.one([1, 2, 3, 4, 100]);
            ip6(9, 1, 58, &header(kind))
        }
    }

    fn next(&mut self) -> (Port, Vec<u8>) {
        let opposite = |port| if port == ONE { TWO } else { ONE };
        let (port, mut frame) = match (self.random.below(100), self.random.pick(&self.sent).cloned()) {
            (0..45, Some((port, frame))) => (port, self.answer(frame)),
            (45..52, Some((port, frame))) => (port, self.error(&frame)),
            (52..54, Some((port, frame))) => (opposite(port), frame),
            _ => self.first(),
        };
        make_checksums_right(&mut frame);
        if self.random.chance(5) {
            // Cut, or with other lengths than it says.
            let place = self.random.below(frame.len());
            match self.random.below(3) {
                0 => frame.truncate(place.max(20)),
                1 => frame[14 + place % 20] = self.random.number() as u8,
                _ => frame.resize(frame.len() + place, 0),
            }
        }
        (port, frame)
    }

    fn sent(&mut self, port: Port, frame: &[u8]) {
        if self.sent.len() < 24 {
            self.sent.push((port, frame.to_vec()));
        } else {
            let place = self.random.below(self.sent.len());
            self.sent[place] = (port, frame.to_vec());
        }
    }
}

/// Every connection that lives, with everything that is known of it.
fn of_reference(state: &State, now: Duration) -> BTreeMap<(u16, Tuple), String> {
    let live = state.connections().iter().filter(|connection| connection.expires > now);
    live.map(|one| {
        let known = (one.reply, one.seen_reply, one.assured, one.translated, one.mark, one.label, one.expires);
        ((one.zone, one.original), format!("{known:?} {:?}", one.tcp.map(|tcp| tcp.phase)))
    })
    .collect()
}

/// The phases of TCP.
fn phases(state: &State) -> BTreeMap<(u16, Tuple), TcpPhase> {
    let connections = state.connections().iter();
    connections.filter_map(|one| Some(((one.zone, one.original), one.tcp?.phase))).collect()
}

fn of_program(pipeline: &Pipeline, now: Duration) -> BTreeMap<(u16, Tuple), String> {
    let connections = pipeline.connections().expect("connections");
    let live = connections.into_iter().filter(|connection| connection.expires > now);
    live.map(|one| {
        let known = (one.reply, one.seen_reply, one.assured, one.translated, one.mark, one.label, one.expires);
        ((one.zone, one.original), format!("{known:?} {:?}", one.tcp))
    })
    .collect()
}

fn fate(fate: Fate) -> String {
    match fate {
        Fate::Forwarded => "Forwarded".into(),
        Fate::Trapped => "Trapped".into(),
        Fate::Missed(_) => "Missed".into(),
        Fate::Dropped(DropReason::Rule(_)) => "Dropped(Rule)".into(),
        Fate::Dropped(reason) => format!("Dropped({reason:?})"),
    }
}

fn put(pipeline: &mut Pipeline) {
    for port in [ONE, TWO] {
        let config = PortConfig {
            mode: Mode::Switchdev,
            eswitch: 0,
            block: Block::Port(port),
            ifindex: port.0,
            representor: Some(port.0 + 0x10000),
            through_inner: false,
            is_wire: false,
            link_up: true,
            lane: None,
            wires: Vec::new(),
        };
        pipeline.set_port(port, &config).expect("a port");
        pipeline.attach(port.0, Role::Port(port)).expect("a netdev");
    }
}

#[test]
fn connections_live_and_end_as_in_the_reference() {
    let options = Options { max_rules: 64, max_actions: 64, max_masks: 64, trials: true, ..Options::default() };
    let Some(mut pipeline) = pipeline(options) else { return };
    put(&mut pipeline);
    let (mut seen, mut frames) = (BTreeMap::<String, u64>::new(), 0);
    let mut transitions = BTreeSet::new();
    let first = number("SEED", 1);
    for seed in first..first + number("CASES", 50_000).div_ceil(FRAMES_PER_SCENE) {
        let mut tables = Tables::new(flow::Capabilities::everything());
        [ONE, TWO].iter().for_each(|port| tables.add_port(*port, PortKind::Vport));
        let rules = scene(seed);
        let ids: Vec<_> = rules.iter().map(|rule| tables.add(rule.clone()).expect("a rule")).collect();
        let changes: Vec<_> = ids.iter().zip(&rules).map(|(id, rule)| Change::Add { id: *id, rule }).collect();
        let results = pipeline.commit(&changes);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        let limit = if seed % 5 == 0 { 4 } else { 1 << 16 };
        pipeline.limit_connections(limit);
        let mut state = State::new(seed).with_connection_limit(limit as usize);
        let mut talk = Talk { random: Random::new(seed), sent: Vec::new() };
        let mut now = Duration::from_secs(1);
        for place in 0..FRAMES_PER_SCENE {
            now += Duration::from_micros(match talk.random.below(400) {
                0 => 5 * 24 * 3600 * 1_000_000,
                1 => 301_000_000,
                2..4 => 120_000_000,
                4..8 => 60_000_000,
                8..16 => 29_999_990,
                16..60 => 2_000_000,
                _ => 10,
            });
            let (port, frame) = talk.next();
            if !is_triable(&frame) {
                continue;
            }
            frames += 1;
            let before = phases(&state);
            let verdict = process(&tables, &mut state, now, port, &frame);
            let trial = pipeline.trial(port.0, now, &frame).expect("a trial");
            let describe = || format!("seed {seed}, frame {place} at {port}: {frame:02x?}\n{}", verdict.trace);
            let own = match trial.fate {
                TrialFate::Dropped(reason) => format!("Dropped({reason:?})"),
                fate => format!("{fate:?}"),
            };
            assert_eq!(own, fate(verdict.fate), "{}", describe());
            let outputs: Vec<_> = trial.outputs.iter().filter(|output| !output.to_representor).collect();
            let own: Vec<_> = outputs.iter().map(|output| (output.port, &output.frame)).collect();
            let wanted: Vec<_> = verdict.outputs.iter().map(|output| (output.port, &output.frame)).collect();
            assert_eq!(own, wanted, "{}", describe());
            if place % 16 == 0 || matches!(verdict.fate, Fate::Missed(_)) {
                assert_eq!(of_program(&pipeline, now), of_reference(&state, now), "{}", describe());
            }
            // What was tried.
            for step in &verdict.trace.0 {
                if let Step::Did(what) = step
                    && let Some((_, words)) = what.split_once(": +")
                {
                    *seen.entry(format!("+{words}")).or_default() += 1;
                }
            }
            let of_fate = match verdict.fate {
                Fate::Missed(MissReason::NoRule { .. }) => "no rule".to_owned(),
                fate => format!("{fate:?}"),
            };
            *seen.entry(of_fate.split("(RuleId").next().unwrap_or_default().to_owned()).or_default() += 1;
            for (tuple, after) in phases(&state) {
                let change = before.get(&tuple).filter(|before| **before != after);
                transitions.extend(change.map(|before| format!("{before:?} {after:?}")));
            }
            verdict.outputs.iter().for_each(|output| talk.sent(output.port, &output.frame));
        }
        assert_eq!(of_program(&pipeline, now), of_reference(&state, now), "seed {seed}");
        let removals: Vec<_> = ids.iter().map(|id| Change::Remove(*id)).collect();
        assert!(pipeline.commit(&removals).iter().all(Result::is_ok));
        pipeline.clear_connections().expect("cleared");
        assert_eq!((pipeline.connection_count(), pipeline.connections().expect("none").len()), (0, 0));
    }
    println!("{frames} frames: {seen:#?}");
    println!("{} transitions: {transitions:?}", transitions.len());
    if frames >= 45_000 {
        let wanted = [
            "+trk+new",
            "+trk+est",
            "+trk+est+rpl",
            "+trk+rel",
            "+trk+rel+rpl",
            "+trk+inv",
            "Forwarded",
            "no rule",
            "Missed(Fragment)",
            "Missed(TranslatedError)",
            "Dropped(TooManyConnections)",
            "Dropped(ConnectionClash)",
            "Dropped(NoFreePort)",
        ];
        let missing: Vec<_> = wanted.iter().filter(|wanted| !seen.contains_key(**wanted)).collect();
        assert!(missing.is_empty(), "{missing:?} were not tried");
        let wanted = [
            "SynSent SynRecv",
            "SynSent SynSent2",
            "SynSent2 SynRecv",
            "SynSent Close",
            "SynSent2 Close",
            "SynRecv Established",
            "SynRecv FinWait",
            "SynRecv Close",
            "Established FinWait",
            "Established Close",
            "Established SynRecv",
            "FinWait CloseWait",
            "FinWait LastAck",
            "FinWait Close",
            "CloseWait LastAck",
            "LastAck TimeWait",
            "LastAck Close",
            "TimeWait SynSent",
            "Close SynSent",
        ];
        let missing: Vec<_> = wanted.iter().filter(|wanted| !transitions.contains(**wanted)).collect();
        assert!(missing.is_empty(), "{missing:?} were not tried");
    }
}
