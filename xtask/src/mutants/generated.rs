//! `cargo xtask mutants --generated`: how many of the planted bugs random stories find, for a table in `docs/verification.md`.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::page::{self, Section};
use crate::patched::{Build, Patched, Profile};
use crate::table::Measured;

use super::explore::Found;
use super::header::{CaughtBy, Mutant};
use super::{all, errors};

/// The table on the page.
const SECTION: Section = Section { page: "docs/verification.md", name: "generated-mutants" };
/// Its columns. The first is what the command takes.
const COLUMNS: &[&str] = &["planted bug", "broken", "stories", "schedules", "time", "at"];
/// A search that has not ended this long after its time never will.
const OVERTIME: Duration = Duration::from_secs(120);

/// What generating stories came to.
#[derive(Debug, Deserialize)]
struct Generated {
    stories: u64,
    schedules: u64,
    /// At most one.
    violations: Vec<Found>,
    /// The text of the scenario that breaks an invariant.
    scenario: Option<String>,
}

/// How long, with which seed, and what to do with the results.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub seconds: u64,
    pub seed: u64,
    pub write: bool,
    pub json: bool,
}

/// Plants the bugs and generates stories on one core until one breaks an invariant. The exit status is 1 if the unchanged
/// tree breaks one; a planted bug that is not found is a result and no failure.
///
/// # Errors
/// The tree cannot be copied or built, or the page cannot be written.
pub(super) fn run(mutants: &[Mutant], options: Options) -> Result<ExitCode> {
    let mut table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    let copy = Patched::new("mutants", Profile::Optimised)?;
    copy.set(&[])?;
    let without = search(&explorer(&copy)?, options)?;
    if let Some(found) = without.0.and_then(|generated| generated.violations.into_iter().next()) {
        eprintln!("a story does not hold without any mutant: {}: {}", found.invariant, found.detail);
        return Ok(ExitCode::FAILURE);
    }
    let names = all()?.into_iter().map(|mutant| mutant.name).collect::<Vec<_>>();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut found, mut run) = (0, 0);
    for mutant in mutants.iter().filter(|mutant| matches!(mutant.caught_by, CaughtBy::Exploring { .. })) {
        let at = format!("{}; --time {} --seed {}", page::stamp()?, options.seconds, options.seed);
        copy.set(&[&mutant.patch])?;
        let (generated, took) = search(&explorer(&copy).with_context(|| mutant.name.clone())?, options)?;
        run += 1;
        let by = invariant(generated.as_ref());
        found += usize::from(by.is_some());
        print(mutant, by, generated.as_ref(), took, options.json);
        if options.write {
            // After each: an interrupt loses only the one that is being run.
            table.replace(&mutant.name, [cells(by, generated.as_ref(), took)], &at);
            SECTION.write(&table.text(&names))?;
        }
    }
    eprintln!("{found} of {run} found by generated stories");
    Ok(ExitCode::SUCCESS)
}

/// Builds the program that explores.
fn explorer(copy: &Patched) -> Result<std::path::PathBuf> {
    match copy.build_explorer(&["lockdep/mutant"])?.0 {
        Build::Built(explorer) => Ok(explorer),
        Build::Rejected(said) => bail!("it does not compile: {}", errors(&said)),
    }
}

/// Generates stories; `None` if the program had to be killed, because a story runs for ever.
fn search(explorer: &Path, options: Options) -> Result<(Option<Generated>, Duration)> {
    let (began, milliseconds) = (Instant::now(), options.seconds * 1_000);
    let arguments = ["generate".to_owned(), options.seed.to_string(), milliseconds.to_string()];
    let mut command = Command::new(explorer);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| explorer.display().to_string())?;
    let until = began + Duration::from_secs(options.seconds) + OVERTIME;
    // The line that it prints fits into the pipe or is read after its end: it is one scenario and one story.
    let output = std::thread::scope(|scope| {
        let mut stdout = child.stdout.take();
        let reader = scope.spawn(move || {
            let mut text = String::new();
            let read = stdout.as_mut().map(|stdout| std::io::Read::read_to_string(stdout, &mut text));
            read.transpose().map(|_| text)
        });
        let mut status = child.try_wait()?;
        while status.is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            status = child.try_wait()?;
        }
        if status.is_none() {
            child.kill()?;
            child.wait()?;
        }
        let text = reader.join().ok().context("the reader panicked")??;
        anyhow::Ok(status.map(|status| (status, text)))
    })?;
    let took = began.elapsed();
    let Some((status, text)) = output else { return Ok((None, took)) };
    ensure!(matches!(status.code(), Some(0 | 1)), "the explorer ended with {status}");
    Ok((Some(serde_json::from_str(&text)?), took))
}

/// Returns the invariant that was broken; a search that had to be killed breaks `progress`.
fn invariant(generated: Option<&Generated>) -> Option<&str> {
    generated.map_or(Some("progress"), |generated| generated.violations.first().map(|found| found.invariant.as_str()))
}

fn cells(by: Option<&str>, generated: Option<&Generated>, took: Duration) -> Vec<String> {
    let count =
        |of: fn(&Generated) -> u64| generated.map_or_else(|| "-".to_owned(), |generated| of(generated).to_string());
    vec![
        by.unwrap_or("not found").to_owned(),
        count(|generated| generated.stories),
        count(|generated| generated.schedules),
        format!("{:.1} s", took.as_secs_f64()),
    ]
}

fn print(mutant: &Mutant, by: Option<&str>, generated: Option<&Generated>, took: Duration, as_json: bool) {
    if as_json {
        let scenario = generated.and_then(|generated| generated.scenario.as_ref());
        let (stories, schedules) = generated.map_or((0, 0), |generated| (generated.stories, generated.schedules));
        let line = json!({
            "mutant": mutant.name, "found": by, "stories": stories, "schedules": schedules,
            "elapsed_ms": took.as_millis() as u64, "scenario": scenario,
        });
        println!("{line}");
        return;
    }
    let [broken, stories, schedules, time] = &cells(by, generated, took)[..] else { return };
    println!("{:<44} {broken:<24} {stories:>6} stories {schedules:>8} schedules {time:>8}", mutant.name);
}
