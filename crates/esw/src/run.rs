//! `esw run`: reads every scenario first, then runs those for the kind of card.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use eswitch::card::Card;
use eswitch::inspect::INVARIANTS;
use host::Pulse;
use lockdep::{Domain, Locked, Unlocked};
use scenario::{Observer, Outcome, Ports, Scenario, StepRecord};
use serde::Serialize;

use crate::arguments::Run;
use crate::cards::Cards;
use crate::exit_status::{FAILED, HELD, INTERRUPTED, UNUSABLE};
use crate::interrupt;
use crate::lock_order;
use crate::output::{self, Style, complain, line};

/// A scenario, and the file that it was read from.
pub(crate) struct ScenarioFile {
    pub path: PathBuf,
    pub scenario: Scenario,
}

/// Runs the command; its exit status.
///
/// # Errors
/// A file that cannot be read, or no place for the card.
pub fn run(arguments: &Run) -> Result<u8> {
    let Some(scenarios) = read_all(&arguments.paths)? else {
        return Ok(UNUSABLE);
    };
    let cards = Cards::prepare(arguments.card)?;
    let domain = lock_order::domain(arguments.lockdep);
    let pulse = Arc::new(Pulse::new());
    interrupt::listen(&domain, &pulse)?;
    let runner = Runner { arguments, cards, domain: Arc::clone(&domain), pulse, style: Style::detect() };
    lockdep::enter(&domain, "main", |cx| runner.run_all(cx, &scenarios))
}

/// Reads every file; `None` if one of them cannot be used, whose error has been printed then.
pub(crate) fn read_all(paths: &[PathBuf]) -> Result<Option<Vec<ScenarioFile>>> {
    let mut scenarios = Vec::new();
    let mut usable = true;
    for path in scenario_files(paths)? {
        let source = fs::read(&path).with_context(|| path.display().to_string())?;
        let read = match String::from_utf8(source) {
            Ok(source) => scenario::parse(&source).map_err(|error| error.to_string()),
            Err(_) => Err("1:1: not TOML: not UTF-8 text".to_owned()),
        };
        match read {
            Ok(scenario) => scenarios.push(ScenarioFile { path, scenario }),
            Err(error) => {
                usable = false;
                complain!("{}:{error}", path.display());
            }
        }
    }
    Ok(usable.then_some(scenarios))
}

/// Files as they were given; of directories, the regular files named `*.toml`, sorted.
fn scenario_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let about = || path.display().to_string();
        if !fs::metadata(path).with_context(about)?.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(path).with_context(about)? {
            let entry = entry.with_context(about)?.path();
            let is_toml = entry.extension().is_some_and(|extension| extension == "toml");
            // Reading a pipe could wait for ever.
            if is_toml && fs::metadata(&entry).with_context(|| entry.display().to_string())?.is_file() {
                found.push(entry);
            }
        }
        anyhow::ensure!(!found.is_empty(), "{}: expected scenarios, found no *.toml in it", path.display());
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

struct Runner<'a> {
    arguments: &'a Run,
    cards: Cards,
    domain: Arc<Domain>,
    pulse: Arc<Pulse>,
    style: Style,
}

/// The outcomes so far.
#[derive(Default)]
struct Count {
    held: u32,
    failed: u32,
    skipped: u32,
    interrupted: bool,
    /// Whether something of a card is left that should have been removed.
    left_behind: bool,
}

impl Runner<'_> {
    fn run_all(&self, cx: &mut Locked<'_, Unlocked>, scenarios: &[ScenarioFile]) -> Result<u8> {
        let mut count = Count::default();
        for file in scenarios {
            if count.interrupted {
                break;
            }
            if let Some(why) = self.does_not_apply(&file.scenario) {
                count.skipped += 1;
                self.aside(&format!("{} {}: {why}", self.style.faint("skipped"), file.scenario.name));
                continue;
            }
            self.run_repeatedly(cx, file, &mut count)?;
        }
        if count.interrupted {
            complain!(
                "esw: interrupted; {}",
                if count.left_behind {
                    "not everything could be undone, see above"
                } else {
                    "the card was taken down, nothing is left"
                }
            );
            return Ok(INTERRUPTED);
        }
        if scenarios.len() > 1 || self.arguments.repeat > 1 {
            self.aside(&summary(self.style, &count));
        }
        if count.held + count.failed == 0 {
            complain!("esw: no scenario is for this kind of card; choose another with `--card`");
            return Ok(UNUSABLE);
        }
        Ok(if count.failed > 0 { FAILED } else { HELD })
    }

    fn run_repeatedly(&self, cx: &mut Locked<'_, Unlocked>, file: &ScenarioFile, count: &mut Count) -> Result<()> {
        let (repeat, json) = (self.arguments.repeat, self.arguments.json);
        let mut failed = 0;
        for round in 1..=repeat {
            let mut watch = Watch { style: self.style, is_shown: !json && repeat == 1 };
            if watch.is_shown {
                introduce(self.style, file);
            }
            let outcome = self.run(cx, file, &mut watch)?;
            count.interrupted |= outcome.interrupted;
            // The step that was interrupted has no outcome, and leaves nothing behind.
            let left = outcome.violations.iter().any(|v| !["step", "expectation"].contains(&v.invariant));
            count.left_behind |= outcome.interrupted && left;
            if json {
                self.print_json(file, &outcome)?;
            } else if repeat == 1 {
                self.print_end(&outcome);
            } else if !outcome.violations.is_empty() || outcome.hung {
                line(&format!("{} (run {round} of {repeat})", file.scenario.name));
                for record in &outcome.steps {
                    print_step(self.style, record);
                }
                self.print_end(&outcome);
            }
            match outcome.ok() {
                true => count.held += 1,
                false if outcome.interrupted => break,
                false => {
                    failed += 1;
                    count.failed += 1;
                }
            }
            if outcome.hung {
                // Its threads still hold their locks: they would disturb the next run.
                break;
            }
        }
        if repeat > 1 && !count.interrupted {
            let verdict = match failed {
                0 => self.style.good("ok"),
                n => self.style.bad(&format!("{n} of {repeat} failed")),
            };
            self.aside(&format!("{}: {repeat} times: {verdict}", file.scenario.name));
        }
        Ok(())
    }

    fn does_not_apply(&self, scenario: &Scenario) -> Option<String> {
        let card = self.cards.name();
        if scenario.cards.iter().any(|applies| applies.name == card) {
            let why_not = scenario.needs_offload().then(|| self.cards.cannot_offload()).flatten()?;
            return Some(format!("it needs offloaded flows: {why_not}"));
        }
        let cards: Vec<&str> = scenario.cards.iter().map(|card| card.name).collect();
        Some(format!("it is for the card {}, and this is {card}", cards.join(" or ")))
    }

    fn run(&self, cx: &mut Locked<'_, Unlocked>, file: &ScenarioFile, watch: &mut Watch) -> Result<Outcome> {
        let world = self.cards.world(&file.scenario.card, &self.domain, &self.pulse)?;
        let outcome = scenario::run(cx, &file.scenario, &world, watch);
        if outcome.hung {
            force_down(cx, &*world.card);
        }
        Ok(outcome)
    }

    /// Prints a line that is no result; with `--json`, to standard error, as a program reads standard output.
    fn aside(&self, text: &str) {
        if self.arguments.json { complain!("{text}") } else { line(text) }
    }

    fn print_end(&self, outcome: &Outcome) {
        let style = self.style;
        if let Some(snapshot) = &outcome.snapshot {
            for row in output::ports(style, &Ports::of(snapshot)) {
                line(&format!("  {row}"));
            }
        }
        for verdict in &outcome.verdicts {
            match &verdict.unmet {
                None => line(&format!("  {}  expect {}", style.good("holds"), verdict.expectation)),
                Some(unmet) => line(&format!("  {}  expect {}: {unmet}", style.bad("FAILS"), verdict.expectation)),
            }
        }
        let is_checked = self.domain.is_checked();
        let checked = INVARIANTS.iter().filter(|invariant| is_checked || !invariant.needs_lockdep);
        let mut invariants: Vec<&str> = checked.map(|invariant| invariant.name).collect();
        invariants.retain(|name| outcome.violations.iter().all(|violation| violation.invariant != *name));
        if outcome.snapshot.is_some() {
            line(&format!("  {}  {}", style.good("holds"), invariants.join(", ")));
        }
        for violation in &outcome.violations {
            line(&format!("  {}  {}: {}", style.bad("FAILS"), violation.invariant, violation.detail));
        }
        let verdict = match (outcome.ok(), outcome.interrupted) {
            (true, _) => style.good("ok"),
            (false, true) => style.bad("interrupted"),
            (false, false) => style.bad("FAILED"),
        };
        line(&format!("  {verdict} in {}\n", output::time(outcome.elapsed)));
    }

    fn print_json(&self, file: &ScenarioFile, outcome: &Outcome) -> Result<()> {
        let report = Report::new(file, self.cards.name(), outcome);
        line(&serde_json::to_string(&report)?);
        Ok(())
    }
}

/// Removes what a card holds when the scenario hangs, as its engine cannot take the card down any more.
fn force_down(cx: &mut Locked<'_, Unlocked>, card: &dyn Card) {
    let mut cx = cx.narrow();
    let mut left = card.resources(&mut cx);
    left.sort();
    left.reverse();
    card.destroy(&mut cx, &left);
}

fn summary(style: Style, count: &Count) -> String {
    let mut parts = vec![format!("{} held", count.held)];
    if count.failed > 0 {
        parts.push(style.bad(&format!("{} failed", count.failed)));
    }
    if count.skipped > 0 {
        parts.push(format!("{} skipped", count.skipped));
    }
    parts.join(", ")
}

fn introduce(style: Style, file: &ScenarioFile) {
    let path: &Path = &file.path;
    line(&format!("{} ({})", style.strong(&file.scenario.name), path.display()));
}

/// Prints steps as they are taken.
struct Watch {
    style: Style,
    is_shown: bool,
}

impl Observer for Watch {
    fn step(&mut self, record: &StepRecord) {
        if self.is_shown {
            print_step(self.style, record);
        }
    }
}

fn print_step(style: Style, record: &StepRecord) {
    let StepRecord { thread, step, .. } = record;
    let outcome = match (record.ok, &record.error) {
        (true, None) => style.good("ok"),
        (true, Some(_)) => style.good("fails, as expected"),
        (false, _) => style.bad("FAILED"),
    };
    let elapsed = style.faint(&output::time(record.elapsed));
    line(&format!("  {thread:<12} {step:<64} {outcome}  {elapsed}"));
    for printed in &record.output {
        line(&format!("  {:12}   {printed}", ""));
    }
    if let Some(error) = &record.error {
        for text in error.lines() {
            line(&format!("  {:12}   {text}", ""));
        }
    }
    if let Some(wrong) = &record.wrong
        && record.error.as_ref().is_none_or(|error| error.to_string() != *wrong)
    {
        line(&format!("  {:12}   {wrong}", ""));
    }
}

/// The JSON object that `--json` prints for a scenario.
#[derive(Serialize)]
struct Report<'a> {
    scenario: &'a str,
    file: String,
    card: &'static str,
    ok: bool,
    interrupted: bool,
    steps: Vec<StepReport<'a>>,
    ports: Vec<PortReport>,
    expectations: Vec<VerdictReport<'a>>,
    violations: Vec<ViolationReport<'a>>,
    elapsed_ms: f64,
}

#[derive(Serialize)]
struct StepReport<'a> {
    thread: &'a str,
    step: &'a str,
    ok: bool,
    error: Option<String>,
    errno: Option<String>,
    output: &'a [String],
    elapsed_us: u64,
}

#[derive(Serialize)]
struct PortReport {
    handle: String,
    flavour: &'static str,
    netdev: Option<String>,
    eth: String,
    ib: String,
    ibdev: Option<String>,
    hw_addr: Option<String>,
    state: Option<&'static str>,
    opstate: Option<&'static str>,
}

#[derive(Serialize)]
struct VerdictReport<'a> {
    expectation: &'a str,
    holds: bool,
    found: Option<&'a str>,
}

#[derive(Serialize)]
struct ViolationReport<'a> {
    invariant: &'a str,
    detail: &'a str,
}

impl<'a> Report<'a> {
    fn new(file: &'a ScenarioFile, card: &'static str, outcome: &'a Outcome) -> Self {
        let snapshot = outcome.snapshot.iter();
        let ports = snapshot.flat_map(|snapshot| &snapshot.pfs).flat_map(|pf| &pf.ports);
        Self {
            scenario: &file.scenario.name,
            file: file.path.display().to_string(),
            card,
            ok: outcome.ok(),
            interrupted: outcome.interrupted,
            steps: outcome.steps.iter().map(StepReport::new).collect(),
            ports: ports.map(PortReport::new).collect(),
            expectations: outcome
                .verdicts
                .iter()
                .map(|verdict| VerdictReport {
                    expectation: &verdict.expectation,
                    holds: verdict.unmet.is_none(),
                    found: verdict.unmet.as_deref(),
                })
                .collect(),
            violations: outcome
                .violations
                .iter()
                .map(|violation| ViolationReport { invariant: violation.invariant, detail: &violation.detail })
                .collect(),
            elapsed_ms: outcome.elapsed.as_micros() as f64 / 1e3,
        }
    }
}

impl<'a> StepReport<'a> {
    fn new(record: &'a StepRecord) -> Self {
        let error = record.error.as_ref();
        Self {
            thread: &record.thread,
            step: &record.step,
            ok: record.ok,
            error: error.map(ToString::to_string).or_else(|| record.wrong.clone()),
            errno: error.and_then(|e| e.errno()).map(|errno| format!("{errno:?}")),
            output: &record.output,
            elapsed_us: record.elapsed.as_micros() as u64,
        }
    }
}

impl PortReport {
    fn new(port: &eswitch::inspect::PortView) -> Self {
        let [eth, ib] = &port.reps;
        Self {
            handle: port.handle.to_string(),
            flavour: port.flavour,
            netdev: port.netdev.clone(),
            eth: eth.to_string(),
            ib: ib.to_string(),
            ibdev: port.ibdev.clone(),
            hw_addr: port.hw_addr.map(|mac| mac.to_string()),
            state: port.sf.map(|sf| if sf.active { "active" } else { "inactive" }),
            opstate: port.sf.map(|sf| if sf.attached { "attached" } else { "detached" }),
        }
    }
}
