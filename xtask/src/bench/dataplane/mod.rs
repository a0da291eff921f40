//! What flow rules cost: traffic between two VFs by rules, compared with what does the same without a card, and the program
//! and its maps by themselves.
//!
//! The masks, and a million rules, are measured by running the program on one frame again and again: without sockets around
//! it, every nanosecond shows.

mod sockets;
mod traffic;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use datapath_bpf::{Change, Options, Pipeline, PortConfig, Role};
use flow::{Action, Block, Field, Match, Port, Protocol, Rule, RuleId, make_checksums_right};

use super::{Measurement, OrderedRatio, Quantity, Row, Target, median};

pub use self::traffic::measure;

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "dataplane: traffic", run: traffic::traffic },
    Measurement { name: "dataplane: masks and rules", run: masks_and_rules },
    Measurement { name: "dataplane: rules and counters", run: rules_and_counters },
];

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    median(values.map(OrderedRatio)).0
}

/// How often the program runs on a frame in one measurement, and how many of them there are.
const RUNS: u32 = 500_000;
const TURNS: usize = 5;
const MILLION: u32 = 1_000_000;
const HUNDRED_THOUSAND: u32 = 100_000;

fn to_address(address: [u8; 4]) -> Match {
    Match::new().with(Field::EthType, 0x0800u16).with(Field::Ip4Dst, address)
}

/// A mask of its own for each number: prefixes of both addresses.
fn masked(number: u32) -> Match {
    let prefix = |bits: u32| (u32::MAX << (32 - bits)).to_be_bytes();
    let value = [192, 168, 0, 0];
    let matches = Match::new().with(Field::EthType, 0x0800u16);
    let matches = matches.with_masked(Field::Ip4Src, value, prefix(17 + number % 8));
    matches.with_masked(Field::Ip4Dst, value, prefix(17 + number / 8))
}

/// A rule that drops: what costs least, so that differences show.
fn rule(matches: Match, priority: u16) -> Rule {
    Rule::new(Port(1), matches, [Action::Drop]).with_priority(priority.into(), Protocol::All)
}

fn numbered(number: u32) -> Rule {
    rule(to_address((0x0b00_0000 + number).to_be_bytes()), 2)
}

/// A pipeline that is attached nowhere.
struct Trial {
    pipeline: Pipeline,
    next: u64,
}

impl Trial {
    fn new() -> Result<Self> {
        let options = Options { max_rules: 1 << 20, max_actions: 1024, trials: true, ..Options::default() };
        let mut pipeline = Pipeline::load(options)?;
        let config = PortConfig {
            mode: datapath_bpf::Mode::Switchdev,
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
        pipeline.set_port(Port(1), &config)?;
        pipeline.attach(1, Role::Port(Port(1)))?;
        Ok(Self { pipeline, next: 1 })
    }

    /// Adds rules. Returns how long the pipeline takes for them.
    fn add(&mut self, rules: &[Rule]) -> Result<Duration> {
        let named = rules.iter().zip(self.next..);
        let changes: Vec<_> = named.map(|(rule, id)| Change::Add { id: RuleId(id), rule }).collect();
        self.next += rules.len() as u64;
        let begin = Instant::now();
        let results = self.pipeline.commit(&changes);
        let taken = begin.elapsed();
        results.into_iter().try_for_each(|result| result.map_err(|refused| anyhow!("a rule: {refused}")))?;
        Ok(taken)
    }

    /// Adds rules for as many addresses, some at a time: a million of them at once would be more than a gigabyte.
    fn add_numbered(&mut self, count: u32) -> Result<Duration> {
        let chunks = (0..count).step_by(10_000);
        chunks.map(|first| self.add(&(first..(first + 10_000).min(count)).map(numbered).collect::<Vec<_>>())).sum()
    }

    /// The nanoseconds of one run of the program on a frame that matches the rule for 10.0.0.2.
    fn run(&mut self) -> Result<f64> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 50, 0, 1, 0, 0, 64, 17, 0, 0];
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x27, 0x10, 0x27, 0x11, 0, 30, 0xff, 0xff]);
        frame.resize(64, 0);
        make_checksums_right(&mut frame);
        Ok(f64::from(self.pipeline.trial_time(1, &frame, RUNS).context("running the program")?))
    }
}

/// The row for what cannot be loaded here, or the rows.
fn or_unavailable(what: &str, measure: impl FnOnce() -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    match card_linux::cannot_offload() {
        Some(why) => Ok(vec![Row::unavailable(what.to_owned(), why)]),
        None => measure(),
    }
}

fn masks_and_rules() -> Result<Vec<Row>> {
    or_unavailable("the program for one frame", || {
        let mut one = Trial::new()?;
        one.add(&[rule(to_address([10, 0, 0, 2]), 2)])?;
        let mut rows = Vec::new();
        for (what, masks, rules, most) in
            [("8 masks", 7, 0, 1.15), ("64 masks", 63, 0, 1.6), ("1,000,000 rules", 0, MILLION, 1.2)]
        {
            let mut many = Trial::new()?;
            many.add(&(0..masks).map(|number| rule(masked(number), 1)).collect::<Vec<_>>())?;
            many.add(&[rule(to_address([10, 0, 0, 2]), 2)])?;
            many.add_numbered(rules)?;
            let turns = in_turns(|| many.run(), || one.run())?;
            rows.push(turns.row(format!("the program for one frame, {what}"), "one rule", "ns", most));
        }
        Ok(rows)
    })
}

fn rules_and_counters() -> Result<Vec<Row>> {
    or_unavailable("installing 100,000 rules", || {
        let ids: Vec<RuleId> = (1..=u64::from(HUNDRED_THOUSAND)).map(RuleId).collect();
        let mut last = None;
        let installing = in_turns(
            || {
                let mut trial = Trial::new()?;
                let taken = trial.add_numbered(HUNDRED_THOUSAND)?;
                last = Some(trial);
                // The kernel takes the maps of the one before apart in the background.
                thread::sleep(Duration::from_secs(1));
                Ok(taken.as_secs_f64() * 1e3)
            },
            || Ok(Trial::new()?.pipeline.time_of_bare_updates(HUNDRED_THOUSAND)?.as_secs_f64() * 1e3),
        )?;
        let trial = last.context("no rules were installed")?;
        let reading = in_turns(
            || {
                let begin = Instant::now();
                ensure!(trial.pipeline.counters(&ids).len() == ids.len(), "a counter is missing");
                Ok(begin.elapsed().as_secs_f64() * 1e3)
            },
            || Ok(trial.pipeline.time_of_bare_reads(HUNDRED_THOUSAND)?.as_secs_f64() * 1e3),
        )?;
        Ok(vec![
            installing.row("installing 100,000 rules".to_owned(), "as many updates of a map, one by one", "ms", 2.0),
            reading.row("reading 100,000 counters".to_owned(), "reading them from the map in batches", "ms", 1.5),
        ])
    })
}

/// The medians of both, and of the ratios.
struct Turns {
    ours: f64,
    theirs: f64,
    ratio: f64,
}

/// Runs two measurements in turns, each first in half of them.
fn in_turns(mut ours: impl FnMut() -> Result<f64>, mut theirs: impl FnMut() -> Result<f64>) -> Result<Turns> {
    let mut pairs = Vec::new();
    for turn in 0..TURNS {
        if turn % 2 == 0 {
            let ours = ours()?;
            pairs.push((ours, theirs()?));
        } else {
            let theirs = theirs()?;
            pairs.push((ours()?, theirs));
        }
    }
    Ok(Turns {
        ours: middle(pairs.iter().map(|(ours, _)| *ours)),
        theirs: middle(pairs.iter().map(|(_, theirs)| *theirs)),
        ratio: middle(pairs.iter().map(|(ours, theirs)| ours / theirs)),
    })
}

impl Turns {
    fn row(&self, what: String, with: &str, unit: &'static str, most: f64) -> Row {
        let quantity = |value| Quantity { value, unit };
        let row = Row::compared(what, quantity(self.ours), with, quantity(self.theirs), self.ratio);
        row.target(Target::RatioAtMost(most))
    }
}
