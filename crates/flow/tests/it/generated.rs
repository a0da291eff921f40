//! What holds of generated tables and frames, and what the generator reaches.

use std::collections::BTreeSet;

use flow::generate::{ActionKind, ActionSet, Coverage, FieldSet, Generator, Options};
use flow::{Capabilities, EditField, Fate, Field, State, TunnelKind, process};

/// How many frames the long test has; `CASES=100000` makes a long run.
fn cases() -> usize {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(4000)
}

/// How many frames are sent through the same tables.
const FRAMES_PER_TABLES: usize = 100;

/// What became of rules and frames.
struct Seen {
    accepted: usize,
    refused: usize,
    coverage: Coverage,
}

/// Sends so many frames, through other tables every now and then.
fn run(seed: u64, options: &Options, frames: usize) -> Seen {
    let mut seen = Seen { accepted: 0, refused: 0, coverage: Coverage::new(options) };
    let mut generator = Generator::new(seed, options.clone());
    for _ in 0..frames.div_ceil(FRAMES_PER_TABLES) {
        let generated = generator.tables();
        let tables = generated.tables;
        seen.accepted += tables.rules().count();
        seen.refused += generated.refused.len();
        let mut state = State::new(seed).with_connection_limit(8);
        for arrival in generator.frames(&tables, FRAMES_PER_TABLES) {
            let verdict = process(&tables, &mut state, arrival.at, arrival.port, &arrival.frame);
            seen.coverage.note(&tables, &verdict);
        }
    }
    seen
}

#[test]
fn the_same_seed_makes_the_same() {
    let make = |seed| {
        let mut generator = Generator::new(seed, Options::default());
        let tables = generator.tables().tables;
        let frames = generator.frames(&tables, 20);
        (tables.rules().map(|(_, rule)| rule.clone()).collect::<Vec<_>>(), frames)
    };
    assert_eq!(make(5), make(5));
    assert_ne!(make(5), make(6));
}

#[test]
fn rules_are_mostly_accepted_and_frames_mostly_hit() {
    for options in [Options::default(), Options::like_mlx5()] {
        let seen = run(1, &options, 4000);
        let (accepted, tried) = (seen.accepted, seen.accepted + seen.refused);
        assert!(accepted * 10 > tried * 8, "{accepted} of {tried} rules were accepted");
        let Coverage { hits, frames, .. } = seen.coverage;
        println!("{accepted} of {tried} rules, {hits} of {frames} frames");
        assert!(hits * 10 > frames * 4, "{hits} of {frames} frames hit");
    }
}

/// Sends frames until everything that can be was seen, but not for ever.
fn reach_everything(options: &Options) {
    let mut coverage = Coverage::new(options);
    for seed in 0..60 {
        coverage.merge(&run(seed, options, 1000).coverage);
        if coverage.missing().is_empty() {
            break;
        }
    }
    println!("{coverage}");
    assert!(coverage.missing().is_empty(), "{:?}", coverage.missing());
}

#[test]
fn every_field_is_seen_with_every_kind_of_action() {
    reach_everything(&Options::default());
}

#[test]
fn every_field_of_mlx5_is_seen_with_every_kind_of_action() {
    reach_everything(&Options::like_mlx5());
}

#[test]
fn connections_begin_and_are_answered() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let mut generator = Generator::new(seed, Options::default());
        let tables = generator.tables().tables;
        let mut state = State::new(seed);
        for arrival in generator.frames(&tables, 200) {
            let verdict = process(&tables, &mut state, arrival.at, arrival.port, &arrival.frame);
            let tracked = verdict.trace.to_string();
            let tracked = tracked.lines().filter(|line| line.contains("tracks in zone"));
            seen.extend(tracked.filter_map(|line| line.rsplit(' ').next().map(str::to_owned)));
        }
        for connection in state.connections().iter() {
            seen.extend(connection.assured.then(|| "assured".into()));
            seen.extend((connection.translated && connection.seen_reply).then(|| "translated".into()));
        }
    }
    let expected =
        ["+trk+est", "+trk+est+rpl", "+trk+inv", "+trk+new", "+trk+rel", "+trk+rel+rpl", "assured", "translated"];
    assert!(expected.iter().all(|word| seen.contains(*word)), "{seen:?}");
}

#[test]
fn nothing_is_made_that_was_not_allowed() {
    let options = Options {
        fields: [Field::EthDst, Field::EthType, Field::Ip4Src, Field::Ip4Dst].into_iter().collect(),
        actions: [ActionKind::Redirect, ActionKind::Drop, ActionKind::EditSet].into_iter().collect(),
        edits: vec![EditField::EthSrc, EditField::Ip4Ttl],
        any_masks: false,
        port_ranges: false,
        shared_blocks: false,
        tunnels: Vec::new(),
        ..Options::default()
    };
    let mut generator = Generator::new(2, options.clone());
    let mut coverage = Coverage::new(&options);
    for _ in 0..40 {
        let tables = generator.tables().tables;
        for (_, rule) in tables.rules() {
            assert!(rule.matches.mask().fields().all(|field| options.fields.has(field)), "{rule:?}");
            assert!(options.actions.has_all(ActionSet::of_all(&rule.actions)), "{rule:?}");
        }
        let mut state = State::new(0);
        for arrival in generator.frames(&tables, 50) {
            coverage.note(&tables, &process(&tables, &mut state, arrival.at, arrival.port, &arrival.frame));
        }
    }
    assert!(coverage.hits * 10 > coverage.frames * 4, "{coverage}");
    assert_eq!(coverage.missing(), [], "{coverage}");
}

#[test]
fn little_options_do_no_harm() {
    let little = Options {
        vports: 0,
        rules: 3,
        masks: 0,
        chains: 0,
        priorities: 0,
        meters: 0,
        edits: Vec::new(),
        tunnels: vec![TunnelKind::Gre],
        capabilities: Capabilities { max_rules: 2, max_meters: 0, ..Capabilities::everything() },
        ..Options::default()
    };
    let nothing = Options { fields: FieldSet::NONE, actions: ActionSet::NONE, tunnels: Vec::new(), ..little.clone() };
    for options in [little, nothing] {
        assert_eq!(run(1, &options, 300).coverage.frames, 300);
    }
}

#[test]
fn a_generated_frame_misses_or_is_counted() {
    let options = [Options::default(), Options { hostile: 90, reckless: 60, mtu_meters: true, ..Options::default() }];
    for (seed, options) in (0u64..).zip(options.iter().cycle()).take(cases().div_ceil(FRAMES_PER_TABLES)) {
        let mut generator = Generator::new(seed, options.clone());
        let tables = generator.tables().tables;
        let mut state = State::new(seed).with_connection_limit(6);
        for arrival in generator.frames(&tables, FRAMES_PER_TABLES) {
            let before = state.clone();
            let verdict = process(&tables, &mut state, arrival.at, arrival.port, &arrival.frame);
            match verdict.fate {
                Fate::Missed(_) => {
                    assert_eq!(state, before, "{}", verdict.trace);
                    assert!(verdict.outputs.is_empty() && verdict.samples.is_empty() && verdict.counted.is_empty());
                }
                _ if arrival.frame.len() >= 14 => assert_ne!(state, before, "{}", verdict.trace),
                _ => assert!(verdict.counted.is_empty()),
            }
        }
    }
}
