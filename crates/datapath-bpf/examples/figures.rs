//! How long the program takes for a frame, and user space for rules and counters: figures to compare with each other.
//!
//! `cargo run --release -p datapath-bpf --example figures`, as root. With the argument `connections` only those of an
//! established connection.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "figures/connections.rs"]
mod connections;

use std::time::{Duration, Instant};

use datapath_bpf::{Change, Mode, Options, Pipeline, PortConfig, Role};
use flow::{Action, Block, Field, Match, Port, Rule, RuleId, make_checksums_right};

const REPEAT: u32 = 1_000_000;

fn frame(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 50, 0, 1, 0, 0, 64, 17, 0, 0];
    frame.extend([src, dst].concat());
    frame.extend([0x27, 0x10, 0x27, 0x11, 0, 30, 0xff, 0xff]);
    frame.resize(64, 0);
    make_checksums_right(&mut frame);
    frame
}

fn to(dst: [u8; 4]) -> Match {
    Match::new().with(Field::EthType, 0x0800u16).with(Field::Ip4Dst, dst)
}

/// A mask of its own for each number: prefixes of both addresses.
fn masked(number: u32) -> Match {
    let prefix = |bits: u32| (u32::MAX << (32 - bits)).to_be_bytes();
    let (src, dst) = (prefix(17 + number % 8), prefix(17 + number / 8));
    let value = [192, 168, 0, 0];
    Match::new().with(Field::EthType, 0x0800u16).with_masked(Field::Ip4Src, value, src).with_masked(
        Field::Ip4Dst,
        value,
        dst,
    )
}

struct Bench {
    pipeline: Pipeline,
    next: u64,
}

impl Bench {
    fn new() -> Bench {
        let options = Options { max_rules: 1 << 20, max_actions: 1024, trials: true, ..Options::default() };
        let mut pipeline = Pipeline::load(options).expect("a pipeline");
        let config = PortConfig {
            mode: Mode::Switchdev,
            eswitch: 0,
            block: Block::Port(Port(1)),
            ifindex: 1,
            representor: None,
            through_inner: false,
            is_wire: false,
            link_up: true,
            lane: None,
            wires: Vec::new(),
        };
        pipeline.set_port(Port(1), &config).expect("a port");
        pipeline.attach(1, Role::Port(Port(1))).expect("a netdev");
        Bench { pipeline, next: 1 }
    }

    fn add(&mut self, rules: &[Rule]) -> Duration {
        let changes: Vec<_> =
            rules.iter().zip(self.next..).map(|(rule, id)| Change::Add { id: RuleId(id), rule }).collect();
        self.next += rules.len() as u64;
        let begin = Instant::now();
        let results = self.pipeline.commit(&changes);
        let taken = begin.elapsed();
        assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|result| result.is_err()));
        taken
    }

    fn time(&mut self, what: &str) {
        self.time_frame(what, |_| ());
    }

    fn time_frame(&mut self, what: &str, change: impl FnOnce(&mut [u8])) {
        let mut frame = frame([10, 0, 0, 1], [10, 0, 0, 2]);
        change(&mut frame);
        let best = (0..5).map(|_| self.pipeline.trial_time(1, &frame, REPEAT).expect("a run")).min();
        println!("{what:45} {:5} ns a frame", best.unwrap_or(0));
    }
}

/// An established connection, through a card and through the kernel's conntrack.
fn connections() {
    let rounds = connections::established(60, Duration::from_millis(100)).expect("both");
    for round in rounds.iter().flatten() {
        let connections::Round { offloaded, routed } = *round;
        let ratio = offloaded / routed;
        println!(
            "{:45} {offloaded:.0} and {routed:.0} a second: {ratio:.2}",
            "datagrams, established: card and router"
        );
    }
}

/// How long a frame of an established connection takes, tracked and found by its state.
fn established() {
    let mut bench = Bench::new();
    let state = |flags| Match::new().with_ct_state(Field::CT_TRACKED | flags, Field::CT_TRACKED | flags);
    let ct = |commit| Action::Ct(flow::Ct { commit, ..flow::Ct::default() });
    let first = Rule::new(Port(1), Match::new().with(Field::EthType, 0x0800u16), [ct(false), Action::Goto(1)]);
    let new = Rule::new(Port(1), state(Field::CT_NEW), [ct(true), Action::Drop]).in_chain(1);
    let known = Rule::new(Port(1), state(Field::CT_ESTABLISHED), [Action::Drop]).in_chain(1);
    bench.add(&[first, new, known]);
    for (src, dst) in [([10, 0, 0, 1], [10, 0, 0, 2]), ([10, 0, 0, 2], [10, 0, 0, 1])] {
        let mut frame = frame(src, dst);
        // Both ends have the same port, so that one is the answer to the other.
        frame[36..38].copy_from_slice(&[0x27, 0x10]);
        bench.pipeline.trial(1, Duration::from_secs(1), &frame).expect("a trial");
    }
    bench.time_frame("an established connection", |frame| frame[36..38].copy_from_slice(&[0x27, 0x10]));
}

fn main() {
    // That one in a thread, as it leaves its network namespace.
    established();
    std::thread::spawn(connections).join().expect("figures");
    if std::env::args().any(|argument| argument == "connections") {
        return;
    }
    // Dropped frames cost least, so that differences show.
    let rule = |matches| Rule::new(Port(1), matches, [Action::Drop]).with_priority(2, flow::Protocol::All);
    for (masks, what) in [(0, "one rule"), (7, "8 masks"), (63, "64 masks")] {
        let mut bench = Bench::new();
        let others: Vec<_> =
            (0..masks).map(|number| rule(masked(number)).with_priority(1, flow::Protocol::All)).collect();
        bench.add(&others);
        bench.add(&[rule(to([10, 0, 0, 2]))]);
        bench.time(what);
    }
    // Rules are made as they are added: a million of them are more than a gigabyte.
    let chunk = |number: u32| -> Vec<_> {
        (number * 10_000..(number + 1) * 10_000).map(|number| rule(to((0x0b00_0000 + number).to_be_bytes()))).collect()
    };
    for _ in 0..3 {
        let mut bench = Bench::new();
        let taken: Duration = (0..10).map(|number| bench.add(&chunk(number))).sum();
        println!("{:45} {taken:?}", "adding 100,000 rules");
        let bare = bench.pipeline.time_of_bare_updates(100_000).expect("updates");
        println!("{:45} {bare:?}", "as many updates in a loop");
        let ids: Vec<_> = (1..=100_000).map(RuleId).collect();
        let begin = Instant::now();
        let counters = bench.pipeline.counters(&ids);
        println!("{:45} {:?}", "reading 100,000 counters", begin.elapsed());
        assert_eq!(counters.len(), 100_000);
        drop(bench);
        // The kernel takes maps apart in the background.
        std::thread::sleep(Duration::from_secs(2));
    }
    let mut bench = Bench::new();
    bench.add(&[rule(to([10, 0, 0, 2]))]);
    let taken: Duration = (0..100).map(|number| bench.add(&chunk(number))).sum();
    bench.time("1,000,000 rules");
    println!("{:45} {taken:?}", "adding 1,000,000 rules");
}
