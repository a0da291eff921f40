//! A hunt: generates stories and explores them until one breaks an invariant, or the budget is used up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use explore::{Faults, Options, Orders, Program, Report, Strategy, Token, Violation, Watch};
use scenario::{InputError, Scenario};

use super::generate;
use crate::InMemory;

/// How many schedules of one story are run if the caller does not say.
const SCHEDULES: u64 = 120;

/// What to generate, and for how long.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Where random choices start from.
    pub seed: u64,
    /// The number of the first story.
    pub first: u64,
    /// The most stories.
    pub stories: Option<u64>,
    /// The longest time. A story that has begun is ended.
    pub time: Option<Duration>,
    /// The most schedules of one story.
    pub schedules: u64,
    /// How many OS threads share the stories.
    pub jobs: u32,
    /// Make a failure small.
    pub minimise: bool,
}

impl Default for Hunt {
    fn default() -> Self {
        Self { seed: 0, first: 0, stories: None, time: None, schedules: SCHEDULES, jobs: 1, minimise: true }
    }
}

/// The result of a hunt.
#[derive(Clone, Debug, Default)]
pub struct HuntReport {
    /// The stories that were explored.
    pub stories: u64,
    /// The schedules that were run, of all stories.
    pub schedules: u64,
    /// How many stories have each form of a step, by the form.
    pub steps: BTreeMap<&'static str, u64>,
    /// The first story that breaks an invariant.
    pub kept: Option<Kept>,
    /// It was stopped before its budget was used up.
    pub interrupted: bool,
    /// The time that it took.
    pub elapsed: Duration,
}

/// A story that breaks an invariant, with as few steps as were needed.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The scenarios, each to be kept in a file: one, or several if they take locks in contradictory orders.
    pub scenarios: Vec<Scenario>,
    /// What they break. The token is one of these scenarios.
    pub violation: Violation,
}

/// Generates and explores stories until one breaks an invariant. If several jobs find something, the story with the
/// lowest number is returned, so the result follows from the seed and the number of stories.
///
/// # Errors
/// The grammar has made a step that a scenario cannot have, which is a mistake of the grammar.
pub fn hunt(hunt: &Hunt, watch: &Arc<Watch>) -> Result<HuntReport, InputError> {
    let began = Instant::now();
    let (next, until) = (AtomicU64::new(0), AtomicU64::new(hunt.stories.unwrap_or(u64::MAX)));
    let (results, arrived) = mpsc::channel();
    let collected = thread::scope(|scope| {
        for _ in 0..hunt.jobs.max(1) {
            let (results, next, until) = (results.clone(), &next, &until);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let over = number > 0 && hunt.time.is_some_and(|time| began.elapsed() >= time);
                    if over || number >= until.load(Ordering::Relaxed) || watch.stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let explored = explore_story(hunt, number, watch);
                    if !explored.as_ref().is_ok_and(|(_, report)| report.violations.is_empty()) {
                        until.fetch_min(number + 1, Ordering::Relaxed);
                    }
                    if results.send((number, explored)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(results);
        let mut collected = Collected::default();
        // Results are taken in the order of the stories, whichever job is faster.
        let mut early = BTreeMap::new();
        for (number, explored) in arrived {
            early.insert(number, explored);
            while let Some(explored) = early.remove(&collected.report.stories) {
                let (scenario, report) = explored?;
                collected.add(scenario, report);
                if collected.report.kept.is_some() {
                    until.store(0, Ordering::Relaxed);
                }
            }
        }
        Ok(collected)
    })?;
    let interrupted = watch.stop.load(Ordering::Relaxed);
    Ok(HuntReport { interrupted, elapsed: began.elapsed(), ..collected.report })
}

/// Explores one story. In every third, everything fails in turn. Every eleventh has bring-up and take-down explored,
/// too.
fn explore_story(hunt: &Hunt, number: u64, watch: &Arc<Watch>) -> Result<(Scenario, Report), InputError> {
    let number = hunt.first.wrapping_add(number);
    let scenario = generate(hunt.seed, number)?;
    let with_faults = number % 3 == 2;
    let options = Options {
        strategy: if with_faults { Strategy::Random } else { Strategy::Portfolio },
        faults: if with_faults { Faults::Each } else { Faults::None },
        schedules: Some(hunt.schedules),
        seed: hunt.seed ^ number,
        whole: number % 11 == 10,
        minimise: hunt.minimise,
        ..Options::default()
    };
    let report = crate::check(&scenario, &options, watch);
    Ok((scenario, report))
}

/// The results so far.
#[derive(Default)]
struct Collected {
    report: HuntReport,
    orders: Orders,
}

impl Collected {
    /// Adds the result of the next story; does nothing once one has broken an invariant.
    fn add(&mut self, scenario: Scenario, mut report: Report) {
        if self.report.kept.is_some() {
            return;
        }
        self.report.stories += 1;
        self.report.schedules += report.schedules;
        let threads = scenario.threads.iter().flat_map(|thread| &thread.steps);
        let forms: BTreeSet<_> =
            scenario.setup.iter().chain(threads).filter_map(|step| scenario::form_of(&step.text)).collect();
        for form in forms {
            *self.report.steps.entry(form).or_default() += 1;
        }
        report.compare::<InMemory>(&mut self.orders, &[]);
        if let Some(violation) = report.violations.into_iter().next() {
            self.report.kept = Some(Kept::new(scenario, violation));
        }
    }
}

impl Kept {
    /// Leaves out the steps that the token of a violation leaves out, so that the scenario and its token need nothing
    /// else.
    pub fn new(scenario: Scenario, mut violation: Violation) -> Self {
        let token: Option<Token> = violation.token.parse().ok();
        let first = token.iter().flat_map(|token| &token.first).filter_map(|token| again(&token.program));
        let mut scenarios: Vec<Scenario> = first.collect();
        match token {
            Some(token) if token.first.is_empty() => {
                let less = InMemory::from(&scenario).without(&token.without);
                let token = Token { fingerprint: less.fingerprint(), without: Vec::new(), ..token }.to_string();
                (violation.token, violation.story.token) = (token.clone(), token);
                scenarios.push(less.scenario().clone());
            }
            // Several stories together invert an order of locks.
            Some(token) => {
                scenarios.push(scenario);
                violation.story = crate::replay(&scenarios, "", &token).unwrap_or_default();
            }
            None => scenarios.push(scenario),
        }
        Self { scenarios, violation }
    }
}

/// Generates the story of this name again.
fn again(name: &str) -> Option<Scenario> {
    let (seed, number) = name.strip_prefix("generated ")?.split_once('-')?;
    generate(seed.parse().ok()?, number.parse().ok()?).ok()
}
