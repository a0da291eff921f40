//! `cargo xtask exhaust`: how far each scenario can be explored, for the table of `docs/verification.md`.
//!
//! Each scenario is explored twice with the release binary, by `esw check --strategy bounded`: without failures, with
//! `--preemptions K`, and with each failure, with `--preemptions 0 --faults each --fault-preemptions F`. A row has the largest numbers of preemptions
//! up to which every schedule was run, the numbers of schedules, and the times.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::docs::Generated;
use crate::page::{self, Section};
use crate::series;
use crate::table::{self, Measured};
use crate::workspace::build_esw;

/// Which scenarios, and up to which bounds.
#[derive(clap::Args)]
pub struct Args {
    /// Write the rows into the table of docs/verification.md: they replace the rows of the same scenarios
    #[arg(long)]
    write: bool,
    /// Print a JSON object a line for each scenario
    #[arg(long)]
    json: bool,
    /// Explore every schedule with at most K preemptions
    #[arg(long, value_name = "K", default_value_t = 3)]
    preemptions: u8,
    /// With each failure, explore every schedule with at most K preemptions
    #[arg(long, value_name = "K", default_value_t = 1)]
    fault_preemptions: u8,
    /// End each of the two explorations of a scenario after S seconds
    #[arg(long, value_name = "S", default_value_t = 1_800, value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
    /// Explore in N threads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    jobs: u32,
    /// The binary to explore with; the default is built: target/release/esw
    #[arg(long, value_name = "PATH")]
    esw: Option<PathBuf>,
    /// Only these scenarios: files in `scenarios/`, or their names without `.toml` [default: all]
    file: Vec<PathBuf>,
}

/// The table on the page.
const SECTION: Section = Section { page: "docs/verification.md", name: "exhaust" };
/// Its columns. The first is what `cargo xtask exhaust` takes.
const COLUMNS: &[&str] = &[
    "scenario",
    "threads",
    "every schedule up to",
    "schedules",
    "time",
    "with each failure up to",
    "failures",
    "schedules with failures",
    "time with failures",
    "at",
];

/// What exploring a scenario came to.
#[derive(Serialize)]
struct Row {
    scenario: String,
    threads: usize,
    plain: Explored,
    with_failures: Explored,
}

/// One exploration: what is read of the report that `esw check --json` prints.
#[derive(Debug, Serialize, Deserialize)]
struct Explored {
    /// Every schedule with at most so many preemptions was run; `None` if not even those without.
    exhaustive_preemptions: Option<u8>,
    schedules: u64,
    elapsed_ms: u64,
    faults: Faults,
    violations: Vec<Violation>,
    interrupted: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Faults {
    places: usize,
    /// The same as in [`Explored`], with each failure.
    exhaustive_preemptions: Option<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Violation {
    invariant: String,
    detail: String,
    token: String,
}

/// Explores the scenarios, and prints and writes the rows. The exit status is 1 if an invariant does not hold in a scenario,
/// which then gets no row.
///
/// # Errors
/// There is no such scenario; `esw` cannot be built, or was interrupted; the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let scenarios = selected(&args.file)?;
    // Before anything is explored, which may take hours.
    let mut table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    let esw = match &args.esw {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => build_esw()?,
    };
    let names = names()?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut printed, mut failed) = (vec![head()], false);
    for scenario in &scenarios {
        let at = format!("{}; {}", page::stamp()?, bounds(args));
        eprintln!("exploring {}", series::stem(scenario));
        let row = explore(&esw, scenario, args)?;
        if args.json {
            println!("{}", serde_json::to_string(&row)?);
        }
        let mut violations = row.plain.violations.iter().chain(&row.with_failures.violations).peekable();
        if violations.peek().is_some() {
            failed = true;
            for Violation { invariant, detail, token } in violations {
                eprintln!("FAILS {}: {invariant}: {detail}\n  esw check --replay {token}", row.scenario);
            }
            continue;
        }
        let cells = cells(&row);
        if args.write {
            // After each: an interrupt loses only the scenario that is being explored.
            table.replace(&row.scenario, [cells.to_vec()], &at);
            SECTION.write(&table.text(&names))?;
        }
        let mut line = cells.to_vec();
        line.insert(0, row.scenario.clone());
        printed.extend(<[String; 9]>::try_from(line));
    }
    if !args.json {
        print!("{}", table::aligned(&printed));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn head() -> [String; 9] {
    std::array::from_fn(|column| COLUMNS[column].to_owned())
}

/// The bounds that were asked for, as the options of this command.
fn bounds(args: &Args) -> String {
    let Args { preemptions, fault_preemptions, time, jobs, .. } = args;
    format!("--preemptions {preemptions} --fault-preemptions {fault_preemptions} --time {time} --jobs {jobs}")
}

/// The names of all scenarios that can be explored, which are the keys of the table.
fn names() -> Result<Vec<String>> {
    Ok(series::scenarios(&[])?.iter().map(|file| series::stem(file)).collect())
}

fn selected(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let all = series::scenarios(&[])?;
    for file in files {
        let is_one = all.iter().any(|scenario| is_named(scenario, file));
        ensure!(is_one, "{}: no scenario for the card in memory in scenarios/ has this name", file.display());
    }
    let is_selected = |scenario: &PathBuf| files.is_empty() || files.iter().any(|file| is_named(scenario, file));
    Ok(all.into_iter().filter(is_selected).collect())
}

/// Whether a file, or a name without `.toml`, is this scenario. Only files of `scenarios/` have rows.
fn is_named(scenario: &Path, file: &Path) -> bool {
    let is_name = file.components().count() == 1 && scenario.file_stem() == Some(file.as_os_str());
    let is_file = file.extension() == Some(OsStr::new("toml"))
        && file.canonicalize().is_ok_and(|file| scenario.canonicalize().is_ok_and(|scenario| scenario == file));
    is_name || is_file
}

fn explore(esw: &Path, scenario: &Path, args: &Args) -> Result<Row> {
    let text = std::fs::read_to_string(scenario).with_context(|| scenario.display().to_string())?;
    let threads = scenario::parse(&text).with_context(|| scenario.display().to_string())?.threads.len();
    let check = |bounds: &[&str]| -> Result<Explored> {
        let mut command = Command::new(esw);
        command.arg("check").arg(scenario).args(["--strategy", "bounded"]).args(bounds).arg("--json");
        command.args(["--jobs", &args.jobs.to_string(), "--time", &args.time.to_string()]);
        let output = command.stderr(Stdio::inherit()).output().with_context(|| esw.display().to_string())?;
        // 1: an invariant does not hold, which the report says.
        ensure!(matches!(output.status.code(), Some(0 | 1)), "{command:?}: {}", output.status);
        let report: Explored = serde_json::from_slice(&output.stdout).context("the report of `esw check --json`")?;
        ensure!(!report.interrupted, "exploring {} was interrupted", scenario.display());
        Ok(report)
    };
    Ok(Row {
        scenario: series::stem(scenario),
        threads,
        plain: check(&["--preemptions", &args.preemptions.to_string()])?,
        with_failures: check(&[
            "--preemptions",
            "0",
            "--faults",
            "each",
            "--fault-preemptions",
            &args.fault_preemptions.to_string(),
        ])?,
    })
}

/// The columns between the scenario's name and the stamp.
fn cells(row: &Row) -> [String; 8] {
    let up_to = |k: Option<u8>| k.map_or_else(|| "-".to_owned(), |k| k.to_string());
    let (plain, failing) = (&row.plain, &row.with_failures);
    [
        row.threads.to_string(),
        up_to(plain.exhaustive_preemptions),
        grouped(plain.schedules),
        seconds(plain.elapsed_ms),
        up_to(failing.faults.exhaustive_preemptions),
        failing.faults.places.to_string(),
        grouped(failing.schedules),
        seconds(failing.elapsed_ms),
    ]
}

/// A number with a comma after each third digit.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Milliseconds in seconds, with a decimal below ten.
fn seconds(milliseconds: u64) -> String {
    let seconds = milliseconds as f64 / 1e3;
    if seconds < 9.95 { format!("{seconds:.1} s") } else { format!("{seconds:.0} s") }
}

/// The section without rows of scenarios that do not exist any more; and the scenarios without rows.
///
/// # Errors
/// The page or a scenario cannot be read.
pub fn documented() -> Result<Generated> {
    let table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    let names = names()?;
    let text = table.text(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let missing = names.into_iter().filter(|name| !table.has(name)).collect();
    Ok(Generated { section: SECTION, text, missing, measured_by: "cargo xtask exhaust --write" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_selected_by_its_file_or_its_name() {
        let of = |file: &str| selected(&[PathBuf::from(file)]).map(|files| series::stem(&files[0]));
        assert_eq!(of("late-ib").unwrap(), "late-ib");
        let file = crate::workspace::root().join("scenarios/late-ib.toml");
        assert_eq!(of(&file.display().to_string()).unwrap(), "late-ib");
        for none in ["late", "late-ib.toml", "no/late-ib", "docs/verification.md"] {
            assert!(of(none).unwrap_err().to_string().contains("no scenario"), "{none}");
        }
        assert_eq!(selected(&[]).unwrap().len(), names().unwrap().len());
    }

    #[test]
    fn a_row_has_what_the_reports_say() {
        let report = r#"{"scenario": "x", "schedules": 1234567, "exhaustive_preemptions": 3, "elapsed_ms": 9949, "violations": [],
            "faults": {"mode": "each", "places": 12, "exhaustive_preemptions": null}, "interrupted": false}"#;
        let explored = || serde_json::from_str(report).unwrap();
        let row = Row { scenario: "x".to_owned(), threads: 2, plain: explored(), with_failures: explored() };
        assert_eq!(cells(&row), ["2", "3", "1,234,567", "9.9 s", "-", "12", "1,234,567", "9.9 s"]);
        assert_eq!((grouped(100), seconds(12_600)), ("100".to_owned(), "13 s".to_owned()));
    }
}
