//! Explores a scenario until an invariant is broken: in rounds, each with another strategy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;

/// A broken invariant.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Found {
    pub invariant: String,
    /// How it is broken.
    pub detail: String,
    /// The token that replays the schedule; empty if there is none.
    pub token: String,
}

/// The result of exploring.
pub struct Explored {
    pub found: Option<Found>,
    pub schedules: u64,
    pub elapsed: Duration,
}

/// A strategy, its largest number of preemptions, and its time in milliseconds.
pub type Round = (&'static str, u8, u64);

/// The rounds. The short exhaustive search comes first, as most bugs need few preemptions; then random schedules, for bugs
/// that need many; then the longer exhaustive search.
const ROUNDS: [Round; 4] = [("bounded", 1, 3_000), ("pct", 0, 2_000), ("random", 0, 2_000), ("bounded", 2, 20_000)];

/// A strategy of `esw check`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Alone {
    Portfolio,
    Bounded,
    Random,
    Pct,
    Urw,
}

impl Alone {
    /// The only round: the preemptions and this many times the time that `esw check` has by default.
    pub fn round(self, slowdown: u64) -> Round {
        let name = match self {
            Self::Portfolio => "portfolio",
            Self::Bounded => "bounded",
            Self::Random => "random",
            Self::Pct => "pct",
            Self::Urw => "urw",
        };
        (name, 2, 10_000 * slowdown)
    }
}

/// The rounds, each of this many times its time.
pub fn rounds(slowdown: u64) -> [Round; 4] {
    ROUNDS.map(|(strategy, preemptions, time_ms)| (strategy, preemptions, time_ms * slowdown))
}

/// A round that has not ended this long after its time never will: the bug makes the scenario run for ever without
/// reaching a point where it can be ended.
const OVERTIME: Duration = Duration::from_secs(60);

/// The part of the explorer's report that is used.
#[derive(Deserialize)]
struct Report {
    schedules: u64,
    violations: Vec<Found>,
}

/// Explores scenarios, one after the other; returns their common result.
///
/// # Errors
/// The explorer cannot be started, or rejects its arguments.
pub fn explore(
    explorer: &Path,
    scenarios: &[PathBuf],
    faults: bool,
    whole: bool,
    seed: u64,
    rounds: &[Round],
) -> Result<Explored> {
    let began = Instant::now();
    let mut explored = Explored { found: None, schedules: 0, elapsed: Duration::ZERO };
    for (strategy, preemptions, time_ms) in rounds {
        let options = json!({
            "strategy": strategy,
            "preemptions": preemptions,
            "preemptions_with_faults": (*preemptions).min(1),
            "time_ms": time_ms,
            "seed": seed,
            "faults": if faults { "each" } else { "none" },
            "whole": whole,
        });
        let limit = Duration::from_millis(*time_ms) * scenarios.len() as u32 + OVERTIME;
        let Some(reports) = round(explorer, &options.to_string(), scenarios, limit)? else {
            let (invariant, detail) = ("progress".to_owned(), "a scenario runs for ever".to_owned());
            explored.found = Some(Found { invariant, detail, ..Found::default() });
            break;
        };
        explored.schedules += reports.iter().map(|report| report.schedules).sum::<u64>();
        explored.found = reports.into_iter().flat_map(|report| report.violations).next();
        if explored.found.is_some() {
            break;
        }
    }
    explored.elapsed = began.elapsed();
    Ok(explored)
}

/// The invariant that the schedule of a token breaks; empty if it breaks none.
///
/// # Errors
/// The explorer cannot be started, or rejects the token.
pub fn replay(explorer: &Path, scenarios: &[PathBuf], token: &str) -> Result<String> {
    let output = Command::new(explorer).args(["replay", token]).args(scenarios).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(matches!(output.status.code(), Some(0 | 1)), "the explorer ended with {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs one round; returns `None` if it had to be killed.
fn round(explorer: &Path, options: &str, scenarios: &[PathBuf], limit: Duration) -> Result<Option<Vec<Report>>> {
    let place = explorer.with_file_name("explored.json");
    let said = place.with_extension("stderr");
    let file = |path: &Path| File::create(path).with_context(|| path.display().to_string());
    let mut command = Command::new(explorer);
    command.arg(options).args(scenarios).stdin(Stdio::null()).stdout(file(&place)?).stderr(file(&said)?);
    let mut child = command.spawn().with_context(|| explorer.display().to_string())?;
    let until = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        sleep(Duration::from_millis(2));
    };
    let (text, said) = (fs::read_to_string(&place)?, fs::read_to_string(&said)?);
    ensure!(matches!(status.code(), Some(0 | 1)), "the explorer ended with {status}: {}", said.trim());
    let reports = text.lines().map(serde_json::from_str).collect::<Result<Vec<_>, _>>()?;
    ensure!(reports.len() == scenarios.len(), "the explorer has not reported on every scenario");
    Ok(Some(reports))
}
