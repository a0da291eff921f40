//! The program does with every frame what `flow::process` does.
//!
//! Random rules are put into both, and random frames go through both: the same frames must be sent to the same ports, the
//! same rules count the same, and the same becomes of each frame. `CASES=1000000` makes a long run, `SEED=n` another one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::pipeline;
use datapath_bpf::{
    Change, DropReason as Dropped, Mode, Options, Pipeline, PortConfig, Refused, Role, Samples, Trial, TrialFate,
};
use flow::generate::{Arrival, Coverage, Generator, Options as Wanted};
use flow::{
    Block, DropReason, Fate, Meter, MeterId, Port, Rate, RuleId, State, Step, Tables, TunnelKind, Verdict, process,
};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|cases| cases.parse().ok()).unwrap_or(otherwise)
}

const FRAMES_PER_TABLES: usize = 400;

/// Whether a trial takes the frame: one with a payload and with the whole header of IP if it is IP
/// (`bpf_prog_test_run_skb`), for which a page has room.
fn is_triable(frame: &[u8]) -> bool {
    let headers = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 15,
    };
    // Of more tags than 16, with those that rules push, the kernel keeps one beside the frame that the program cannot take
    // into a tunnel.
    let tags =
        frame.get(12..).unwrap_or_default().chunks(4).take_while(|tag| matches!(tag, [0x81, 0, ..] | [0x88, 0xa8, ..]));
    (headers..3400).contains(&frame.len()) && tags.count() <= 12
}

/// What the program does.
fn wanted() -> Wanted {
    Wanted { mtu_meters: true, ..Wanted::default() }
}

/// How many connections one run of the program can touch (MAX_HELD); a frame that touches more goes to the representor.
const MAX_HELD: usize = 8;

/// The tables as the program has them, and what it made of the last frames.
struct Both {
    pipeline: Pipeline,
    samples: Samples,
    refused: BTreeMap<String, usize>,
    rules: usize,
    coverage: Coverage,
    /// Frames in tunnels that are too short to be taken out.
    too_short: u64,
    /// Frames that touch more connections than the program can.
    too_many: u64,
}

impl Both {
    fn ports(&mut self, wanted: &Wanted, tables: &Tables) {
        for port in wanted.ports() {
            let config = PortConfig {
                mode: Mode::Switchdev,
                eswitch: 0,
                block: tables.block_of(port),
                ifindex: port.0,
                representor: Some(port.0 + 0x10000),
                through_inner: false,
                is_wire: port == wanted.uplink,
                link_up: true,
                lane: None,
                wires: Vec::new(),
            };
            self.pipeline.set_port(port, &config).expect("a port");
            self.pipeline.attach(port.0, Role::Port(port)).expect("a netdev");
        }
    }

    /// Puts the rules into the program. What it refuses is taken out of the tables.
    fn install(&mut self, tables: &mut Tables) {
        let meters = (0..64).filter_map(|id| Some((MeterId(id), tables.meter(MeterId(id))?)));
        let meters: Vec<_> = meters.map(|(id, meter)| Change::SetMeter { id, meter }).collect();
        assert!(self.pipeline.commit(&meters).iter().all(Result::is_ok));
        let copy = tables.clone();
        let rules: Vec<_> = copy.rules().collect();
        let changes: Vec<_> = rules.iter().map(|(id, rule)| Change::Add { id: *id, rule }).collect();
        let results = self.pipeline.commit(&changes);
        for ((id, _), result) in rules.iter().zip(results) {
            self.rules += 1;
            if let Err(refused) = result {
                assert!(!matches!(refused, Refused::Kernel(_) | Refused::Exists | Refused::Unknown), "{refused}");
                *self.refused.entry(refused.to_string()).or_default() += 1;
                tables.remove(*id);
            }
        }
        assert_eq!(self.pipeline.rule_count(), tables.rules().count());
    }

    fn remove(&mut self, tables: &Tables) {
        let rules = tables.rules().map(|(id, _)| Change::Remove(id));
        let meters = (0..64).filter(|id| tables.meter(MeterId(*id)).is_some());
        let meters: Vec<_> = meters.map(|id| Change::RemoveMeter(MeterId(id))).collect();
        let changes: Vec<_> = rules.chain(meters).collect();
        assert!(self.pipeline.commit(&changes).iter().all(Result::is_ok));
        assert_eq!(self.pipeline.rule_count(), 0);
    }

    /// Sends a frame through both.
    fn frame(&mut self, tables: &Tables, state: &mut State, arrival: &Arrival) -> Result<(), String> {
        let trial = self
            .pipeline
            .trial(arrival.port.0, arrival.at, &arrival.frame)
            .unwrap_or_else(|error| panic!("{error}: {:02x?}", arrival.frame));
        let samples = self.samples.read(usize::MAX);
        let mut after = state.clone();
        let verdict = process(tables, &mut after, arrival.at, arrival.port, &arrival.frame);
        let too_short = is_too_short_inside(&arrival.frame, &verdict);
        let too_many = tracked(&verdict) >= MAX_HELD;
        if trial.fate == TrialFate::Missed && (too_short || too_many) {
            (self.too_short, self.too_many) =
                (self.too_short + u64::from(too_short), self.too_many + u64::from(too_many));
            return same_outputs(
                &trial,
                &process(&Tables::default(), &mut state.clone(), arrival.at, arrival.port, &arrival.frame),
                arrival,
            );
        }
        *state = after;
        self.coverage.note(tables, &verdict);
        same_fate(&trial, &verdict)?;
        same_outputs(&trial, &verdict, arrival)?;
        if samples != verdict.samples {
            return Err(format!("samples {samples:?} instead of {:?}", verdict.samples));
        }
        for id in &verdict.counted {
            let (counter, own) = (state.counter(*id), self.pipeline.counters(&[*id])[0]);
            if (own.packets, own.bytes) != (counter.packets, counter.bytes) {
                return Err(format!("{id} has {own:?} instead of {counter:?}"));
            }
        }
        Ok(())
    }

    /// The same connections are in both.
    fn same_connections(&self, state: &State, now: Duration) -> Result<(), String> {
        let own = self.pipeline.connections().expect("connections");
        let live = own.iter().filter(|connection| connection.expires > now).map(|one| {
            let known = (one.zone, one.original, one.reply, one.seen_reply, one.assured, one.translated);
            format!("{known:?} {:x} {:x} {:?} {:?}", one.mark, one.label, one.expires, one.tcp)
        });
        let (own, wanted) = (sorted(live.collect()), connections_of(state, now));
        if own == wanted { Ok(()) } else { Err(format!("has\n{own:#?} instead of\n{wanted:#?}")) }
    }

    /// What nothing has counted in both.
    fn same_counters(&self, tables: &Tables, state: &State) -> Result<(), String> {
        let ids: Vec<RuleId> = tables.rules().map(|(id, _)| id).collect();
        for (id, own) in ids.iter().zip(self.pipeline.counters(&ids)) {
            let counter = state.counter(*id);
            if (own.packets, own.bytes, own.last_used) != (counter.packets, counter.bytes, counter.last_used) {
                return Err(format!("{id} has {own:?} instead of {counter:?}"));
            }
        }
        for id in (0..64).map(MeterId).filter(|id| tables.meter(*id).is_some()) {
            let own = self.pipeline.meter(id).expect("a meter");
            let wanted = state.bucket(id).map_or((0, 0), |bucket| (bucket.conformed, bucket.exceeded));
            if own != Some(wanted) {
                return Err(format!("meter {} has {own:?} instead of {wanted:?}", id.0));
            }
        }
        Ok(())
    }
}

/// How often the frame was tracked. The last time, after which it was dropped, does not count.
fn tracked(verdict: &Verdict) -> usize {
    let tracks = |step: &&Step| matches!(step, Step::Did(what) if what.starts_with("tracks in zone"));
    verdict.trace.0.iter().filter(tracks).count()
}

/// A connection as both have it.
fn connections_of(state: &State, now: Duration) -> Vec<String> {
    let live = state.connections().iter().filter(|connection| connection.expires > now);
    let shown = live.map(|one| {
        let tcp = one.tcp.map(|tcp| tcp.phase);
        let known = (one.zone, one.original, one.reply, one.seen_reply, one.assured, one.translated);
        format!("{known:?} {:x} {:x} {:?} {tcp:?}", one.mark, one.label, one.expires)
    });
    sorted(shown.collect())
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

/// Whether there are fewer than 20 bytes behind the inner Ethernet header and its tags, so that the kernel cannot take a tunnel's headers
/// away (`bpf_skb_adjust_room`): then the representor gets the frame.
fn is_too_short_inside(frame: &[u8], verdict: &Verdict) -> bool {
    let is_tunnel = |step: &Step| matches!(step, Step::Block(Block::Tunnel(_)));
    let Some(Step::Block(Block::Tunnel(device))) = verdict.trace.0.iter().rfind(|step| is_tunnel(step)) else {
        return false;
    };
    let Some(network) = flow::dissect(frame).network else { return false };
    let header = &frame[network.payload..network.end];
    let inside = match device.kind {
        TunnelKind::Vxlan => 16,
        TunnelKind::Geneve => 16 + usize::from(header[8] & 0x3f) * 4,
        TunnelKind::Gre => 4 + [0x80, 0x20, 0x10].iter().filter(|flag| header[0] & **flag != 0).count() * 4,
    };
    let tags = header.get(inside..).map_or(0, |inner| flow::dissect(inner).tags);
    header.len() < inside + 14 + 20 + 4 * tags
}

fn same_fate(trial: &Trial, verdict: &Verdict) -> Result<(), String> {
    let wanted = match verdict.fate {
        Fate::Forwarded => TrialFate::Forwarded,
        Fate::Trapped => TrialFate::Trapped,
        Fate::Missed(_) => TrialFate::Missed,
        Fate::Dropped(reason) => TrialFate::Dropped(same_reason(reason)),
    };
    if trial.fate == wanted { Ok(()) } else { Err(format!("{:?} instead of {wanted:?}", trial.fate)) }
}

/// The program's reason for what the reference drops for a reason. Both have the same word.
fn same_reason(reason: DropReason) -> Dropped {
    let same = match reason {
        DropReason::Rule(_) => Dropped::Rule,
        DropReason::Meter(_) => Dropped::Meter,
        DropReason::TooShort => Dropped::TooShort,
        DropReason::TooLong => Dropped::TooLong,
        DropReason::TtlExpired => Dropped::TtlExpired,
        DropReason::TooManyGotos => Dropped::TooManyGotos,
        DropReason::NotIp => Dropped::NotIp,
        DropReason::TooManyConnections => Dropped::TooManyConnections,
        DropReason::ConnectionClash => Dropped::ConnectionClash,
        DropReason::NoFreePort => Dropped::NoFreePort,
    };
    assert_eq!(same.word(), reason.word());
    same
}

/// A frame without the source port of a tunnel, which is any that is the same for a flow.
fn without_source_port(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let network = flow::dissect(&frame).network.filter(|network| network.protocol == 17);
    if let Some(at) = network.and_then(|network| network.transport())
        && frame.len() >= at + 8
        && frame[at] >= 0x80
        && frame[at + 6..at + 8] == [0, 0]
    {
        frame[at..at + 2].fill(0);
    }
    frame
}

fn same_outputs(trial: &Trial, verdict: &Verdict, arrival: &Arrival) -> Result<(), String> {
    let (representor, own): (Vec<_>, Vec<_>) = trial.outputs.iter().partition(|output| output.to_representor);
    let wanted = verdict.goes_to_representor().then_some((arrival.port, &arrival.frame));
    let got = representor.first().map(|output| (output.port, &output.frame));
    if representor.len() > 1 || got != wanted {
        return Err(format!("the representor gets {representor:02x?}"));
    }
    let own: Vec<(Port, Vec<u8>)> =
        own.iter().map(|output| (output.port, without_source_port(&output.frame))).collect();
    let wanted = verdict.outputs.iter();
    let wanted: Vec<_> = wanted.map(|output| (output.port, without_source_port(&output.frame))).collect();
    if own == wanted { Ok(()) } else { Err(format!("sends\n{own:02x?} instead of\n{wanted:02x?}")) }
}

#[test]
fn the_program_does_what_the_reference_does() {
    let (wanted, cases) = (wanted(), number("CASES", 100_000));
    let options = Options {
        max_rules: 4096,
        max_actions: 8192,
        max_masks: 1024,
        max_meters: 64,
        trials: true,
        ..Options::default()
    };
    let Some(pipeline) = pipeline(options) else { return };
    let coverage = Coverage::new(&wanted);
    let samples = pipeline.open_samples().expect("the samples");
    pipeline.want_samples(true);
    let mut both = Both { pipeline, samples, refused: BTreeMap::new(), rules: 0, coverage, too_short: 0, too_many: 0 };
    let first = number("SEED", 1);
    for seed in first..first + cases.div_ceil(FRAMES_PER_TABLES as u64) {
        let mut generator = Generator::new(seed, wanted.clone());
        let mut tables = generator.tables().tables;
        both.ports(&wanted, &tables);
        both.install(&mut tables);
        // Of three tables of connections one is soon full.
        let limit = if seed % 3 == 0 { 3 + (seed % 7) as u32 } else { 1 << 16 };
        let mut state = State::new(seed).with_connection_limit(limit as usize);
        both.pipeline.limit_connections(limit);
        both.pipeline.seed_trials(seed);
        let mut arrivals = generator.frames(&tables, FRAMES_PER_TABLES);
        arrivals.retain(|arrival| is_triable(&arrival.frame));
        for (place, arrival) in arrivals.iter().enumerate() {
            let before = state.clone();
            if let Err(difference) = both.frame(&tables, &mut state, arrival) {
                state = before;
                let verdict = process(&tables, &mut state, arrival.at, arrival.port, &arrival.frame);
                let rules: Vec<_> = verdict.trace.to_string().lines().map(str::to_owned).collect();
                let block = tables.block_of(arrival.port);
                let asked = |id: &RuleId| rules.iter().any(|line| line.contains(&format!("{id} matches")));
                let first = |rule: &flow::Rule| rule.block == block && rule.chain == 0;
                let counted: Vec<_> = tables.rules().filter(|(id, rule)| asked(id) || first(rule)).collect();
                panic!(
                    "seed {seed}, frame {place} at port {}: {difference}\nframe {:02x?}\n{}\n{counted:?}\n{:?}",
                    arrival.port.0,
                    arrival.frame,
                    verdict.trace,
                    flow::dissect(&arrival.frame),
                );
            }
        }
        let now = arrivals.last().map_or(Duration::ZERO, |arrival| arrival.at);
        let same = both.same_counters(&tables, &state).and_then(|()| both.same_connections(&state, now));
        if let Err(difference) = same {
            panic!("seed {seed}: {difference}");
        }
        both.remove(&tables);
        both.pipeline.clear_connections().expect("cleared");
        assert_eq!(both.pipeline.connection_count(), 0);
    }
    println!("{}{} rules, refused: {:#?}", both.coverage, both.rules, both.refused);
    assert!(both.too_short * 20 < both.coverage.frames, "{} of {}", both.too_short, both.coverage.frames);
    println!("{} frames touch too many connections", both.too_many);
    assert!(both.too_many * 200 < both.coverage.frames, "{} of {}", both.too_many, both.coverage.frames);
    // A new EtherType, and a tunnel for a copy, are the only things that are not done before everything else.
    assert!(both.refused.keys().all(|refused| refused.contains(" is not offloaded before ")), "{:#?}", both.refused);
    assert!(both.rules < 1000 || both.refused.values().sum::<usize>() * 6 < both.rules, "{:#?}", both.refused);
}

#[test]
fn a_changed_meter_is_full_and_the_same_one_is_not() {
    let Some(mut pipeline) = pipeline(Options { max_rules: 16, max_meters: 4, trials: true, ..Options::default() })
    else {
        return;
    };
    let set = |rate, burst| Change::SetMeter { id: MeterId(7), meter: Meter { rate: Rate::Packets(rate), burst } };
    let refused = pipeline.commit(&[set(1, u64::MAX), Change::RemoveMeter(MeterId(7))]);
    assert_eq!(refused, [Err(Refused::Burst), Err(Refused::Unknown)]);
    assert_eq!(pipeline.commit(&[set(1, 1), set(1, 1), set(0, 1)]), [Ok(()), Ok(()), Err(Refused::MeterWithoutRate)]);
    assert_eq!(pipeline.meter(MeterId(7)).expect("a meter"), Some((0, 0)));
}
