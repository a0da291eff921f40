//! How long the program takes for a frame, and user space for rules and counters: figures to compare with each other.
//!
//! `cargo run --release -p datapath-bpf --example figures`, as root.

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
        let options = Options { max_rules: 1 << 20, trials: true, ..Options::default() };
        let mut pipeline = Pipeline::load(options).expect("a pipeline");
        let config = PortConfig {
            mode: Mode::Switchdev,
            block: Block::Port(Port(1)),
            ifindex: 1,
            representor: None,
            through_inner: false,
            is_wire: false,
            link_up: true,
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
        let frame = frame([10, 0, 0, 1], [10, 0, 0, 2]);
        let best = (0..5).map(|_| self.pipeline.trial_time(1, &frame, REPEAT).expect("a run")).min();
        println!("{what:45} {:5} ns a frame", best.unwrap_or(0));
    }
}

fn main() {
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
    let mut bench = Bench::new();
    bench.add(&[rule(to([10, 0, 0, 2]))]);
    let many: Vec<_> = (0..999_999u32).map(|number| rule(to((0x0b00_0000 + number).to_be_bytes()))).collect();
    let taken: Duration = many.chunks(10_000).map(|rules| bench.add(rules)).sum();
    bench.time("1,000,000 rules");
    println!("{:45} {taken:?}", "adding 999,999 rules");
    let mut bench = Bench::new();
    let taken: Duration = many[..100_000].chunks(10_000).map(|rules| bench.add(rules)).sum();
    println!("{:45} {taken:?}", "adding 100,000 rules");
    println!(
        "{:45} {:?}",
        "the same updates in a loop",
        bench.pipeline.time_of_bare_updates(100_000).expect("updates")
    );
    let ids: Vec<_> = (1..=100_000).map(RuleId).collect();
    let begin = Instant::now();
    let counters = bench.pipeline.counters(&ids);
    println!("{:45} {:?}", "reading 100,000 counters", begin.elapsed());
    assert_eq!(counters.len(), 100_000);
}
