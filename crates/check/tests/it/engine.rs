//! On the engine itself: the reductions lose no outcome of small scenarios, and a token replays its schedule.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use card_memory::MemoryCard;
use check::schedulers::{Bounded, Shared};
use check::{Options, Token, Watch};
use host::World;
use lockdep::{Domain, Explore, Halt};
use scenario::{Outcome, Scenario};

const HEAD: &str = r#"
name = "small"
why = "Small enough for every schedule."
[card]
"#;

fn parse(rest: &str) -> Scenario {
    scenario::parse(&format!("{HEAD}{rest}")).unwrap_or_else(|error| panic!("{error}"))
}

fn run_once(domain: &Arc<Domain>, scenario: &Scenario) -> Outcome {
    let world = World::of(MemoryCard::new(scenario.card.clone()), domain);
    lockdep::enter(domain, "main", |cx| scenario::run(cx, scenario, &world, &mut ()))
}

/// Describes the final state and the result of each thread's steps.
fn describe(outcome: &Outcome) -> String {
    let mut steps: Vec<String> = outcome
        .steps
        .iter()
        .map(|step| format!("{}: {} {:?} {:?}", step.thread, step.step, step.output, step.error))
        .collect();
    // The order within a thread matters; the order of the threads in the list does not.
    steps.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    format!("{steps:?} {:?} {:?}", outcome.snapshot, outcome.violations)
}

/// Lists the result of each step by itself, and the final state.
fn parts(outcome: &Outcome) -> Vec<String> {
    let steps = outcome.steps.iter();
    let mut parts: Vec<String> =
        steps.map(|step| format!("{}: {} {:?} {:?}", step.thread, step.step, step.output, step.error)).collect();
    parts.push(format!("{:?}", outcome.snapshot));
    parts.extend(outcome.violations.iter().map(|violation| format!("{violation:?}")));
    parts
}

/// How outcomes are distinguished.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// By everything together. Everything that each thread has found since its start is part of the state.
    Whole,
    /// By the result of each step. Threads forget what they found in the steps before.
    Parts,
}

/// Returns every outcome, and the number of schedules.
fn outcomes(scenario: &Scenario, bound: u8, reduce: bool, by: By) -> (BTreeSet<String>, u64) {
    let search = Shared::new(Bounded::new(bound, reduce));
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let (theirs, scenario, domain) = (Arc::clone(&seen), scenario.clone(), Domain::exploring(None));
    let ended = |halt: Option<Halt>| {
        assert_eq!(halt, None);
        ControlFlow::Continue(())
    };
    let explore = Explore { focused: true, forgets: by == By::Parts, ..Explore::default() };
    explore.run(search.clone(), ended, move || {
        let outcome = run_once(&domain, &scenario);
        let mut seen = theirs.lock().unwrap();
        match by {
            By::Whole => drop(seen.insert(describe(&outcome))),
            By::Parts => seen.extend(parts(&outcome)),
        }
    });
    let search = search.borrow();
    assert_eq!(search.diverged, None);
    assert!(search.is_exhausted());
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, search.counts().schedules)
}

#[test]
fn no_outcome_of_the_engine_is_lost() {
    let threads = |one: &str, two: &str| {
        format!("[[thread]]\nname = \"one\"\nsteps = {one}\n[[thread]]\nname = \"two\"\nsteps = {two}\n")
    };
    let scenarios = [
        // Late loading while another thread reads.
        format!(
            "vfs = 1\nmode = \"switchdev\"\n{}",
            threads(r#"["modprobe mlx5_ib"]"#, r#"["devlink dev show", "devlink dev eswitch show pci/0000:08:00.0"]"#)
        ),
        // A module is unloaded while VFs are added.
        format!(
            "modules = [\"mlx5_ib\"]\nmode = \"switchdev\"\n{}",
            threads(r#"["rmmod mlx5_ib"]"#, r#"["echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs"]"#)
        ),
        // A reader finds the ports before the change, or after it.
        format!(
            "vfs = 1\nmode = \"switchdev\"\n{}",
            threads(
                r#"["echo 0 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs"]"#,
                r#"["devlink port show", "devlink port show"]"#
            )
        ),
        // The same with the mode, which can also be read in between.
        threads(
            r#"["devlink dev eswitch set pci/0000:08:00.0 mode switchdev"]"#,
            r#"["devlink dev eswitch show pci/0000:08:00.0"]"#,
        ),
        // A load that fails and is retried.
        format!(
            "vfs = 1\nmode = \"switchdev\"\n{}",
            threads(
                r#"["fail ib vf 0 times 1", "modprobe mlx5_ib"]"#,
                r#"["devlink dev eswitch show pci/0000:08:00.0"]"#
            )
        ),
    ];
    let mut several = 0;
    let mut counts = (0, 0);
    for text in &scenarios {
        let scenario = parse(text);
        for (bound, by) in [(0, By::Whole), (1, By::Whole), (0, By::Parts), (1, By::Parts)] {
            let (full, schedules) = outcomes(&scenario, bound, false, by);
            let (reduced, fewer) = outcomes(&scenario, bound, true, by);
            assert!(fewer <= schedules);
            let lost: Vec<_> = full.symmetric_difference(&reduced).collect();
            assert!(lost.is_empty(), "{text}: bound {bound}, {} outcomes and {}: {lost:?}", full.len(), reduced.len());
            several += usize::from(full.len() > 1);
            counts = (counts.0 + schedules, counts.1 + fewer);
        }
    }
    assert!(counts.1 * 2 < counts.0, "the reductions pay: {counts:?}");
    assert!(several > 1, "outcomes that depend on the order were to be compared");
}

#[test]
fn a_token_replays_its_schedule() {
    let planted = parse(
        r#"
        vfs = 1
        mode = "switchdev"
        [[thread]]
        name = "one"
        steps = ["modprobe mlx5_ib"]
        [[thread]]
        name = "two"
        steps = ["devlink dev eswitch show pci/0000:08:00.0", "expect module mlx5_ib absent"]
        "#,
    );
    let report = check::check(&planted, &Options::default(), &Arc::new(Watch::default()));
    let violation = report.violations.first().expect("it was planted");
    assert_eq!(violation.invariant, "expectation");
    let token: Token = violation.token.parse().expect("a token that was printed");
    let among = [planted];
    let again: Vec<_> = (0..3).map(|_| check::replay(&among, "here", &token).unwrap()).collect();
    for story in again {
        assert_eq!((&story.invariant, &story.detail), (&violation.invariant, &violation.detail));
        assert_eq!(story, violation.story);
    }
}

/// The look at rest does not wait for retries. While it looks, a retry may have begun that succeeds only later.
#[test]
fn a_retry_that_runs_during_the_look_at_rest_is_no_back_off_without_a_retry() {
    let text = include_str!("../../../../scenarios/sf-bind-fails.toml");
    let scenario = scenario::parse(text).unwrap();
    let (strategy, faults) = (explore::Strategy::Random, explore::Faults::Each);
    for seed in [0, 2] {
        let options = Options { strategy, faults, seed, schedules: Some(1_000), ..Options::default() };
        let report = check::check(&scenario, &options, &Arc::new(Watch::default()));
        assert_eq!(report.violations, [], "seed {seed}");
    }
}
