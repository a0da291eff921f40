//! Explores scenarios like `esw check`, with as little code around it as possible. So it builds fast when the tree is built
//! again and again with another patch.
//!
//! ```text
//! explore '{"strategy": "bounded", "preemptions": 1, "time_ms": 5000}' scenarios/late-ib.toml…
//! explore replay TOKEN scenarios/late-ib.toml…
//! explore generate SEED MILLISECONDS
//! ```
//!
//! Prints one [`Report`](check::Report) a line, or the invariant that the token's schedule breaks, or the result of
//! exploring generated stories. Exits with 0 if every
//! scenario held, with 1 if one did not, and with 2 if an argument cannot be used.

use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use check::{Faults, Options, Orders, Strategy, Watch};
use scenario::Scenario;
use serde::Deserialize;

/// The options of the command line. Defaults are those of [`Options`].
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Arguments {
    strategy: Strategy,
    preemptions: u8,
    preemptions_with_faults: u8,
    schedules: Option<u64>,
    time_ms: Option<u64>,
    seed: u64,
    depth: usize,
    faults: Faults,
    jobs: u32,
    whole: bool,
    minimise: bool,
}

impl Default for Arguments {
    fn default() -> Self {
        let of = Options::default();
        Self {
            strategy: of.strategy,
            preemptions: of.preemptions,
            preemptions_with_faults: of.preemptions_with_faults,
            schedules: None,
            time_ms: None,
            seed: of.seed,
            depth: of.depth,
            faults: of.faults,
            jobs: of.jobs,
            whole: of.whole,
            minimise: false,
        }
    }
}

impl Arguments {
    fn options(self) -> Options {
        Options {
            strategy: self.strategy,
            preemptions: self.preemptions,
            preemptions_with_faults: self.preemptions_with_faults,
            schedules: self.schedules,
            time: self.time_ms.map(Duration::from_millis),
            seed: self.seed,
            depth: self.depth,
            faults: self.faults,
            jobs: self.jobs,
            whole: self.whole,
            minimise: self.minimise,
            ..Options::default()
        }
    }
}

fn read(path: &String) -> Result<Scenario, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    scenario::parse(&text).map_err(|e| format!("{path}: {e}"))
}

fn replay(token: &str, paths: &[String]) -> Result<bool, String> {
    let scenarios = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let token = check::token(token).map_err(|e| format!("{token}: {e}"))?;
    let story = check::replay(&scenarios, &paths.join(" "), &token).map_err(|e| e.to_string())?;
    println!("{}", story.invariant);
    Ok(story.invariant.is_empty())
}

/// Explores generated stories, and prints one line of JSON.
fn generate(seed: &str, time: &str) -> Result<bool, String> {
    let number = |text: &str| text.parse().map_err(|e| format!("{text}: {e}"));
    let (seed, time) = (number(seed)?, Some(Duration::from_millis(number(time)?)));
    let hunt = check::Hunt { seed, time, minimise: false, ..check::Hunt::default() };
    let report = check::hunt(&hunt, &Arc::default()).map_err(|e| e.to_string())?;
    let violations: Vec<_> = report.kept.iter().map(|kept| &kept.violation).collect();
    let scenario = report.kept.iter().flat_map(|kept| &kept.scenarios).map(Scenario::to_toml).next();
    let line = serde_json::json!({
        "stories": report.stories, "schedules": report.schedules, "violations": violations, "scenario": scenario,
    });
    println!("{line}");
    Ok(violations.is_empty())
}

fn explore(arguments: &[String]) -> Result<bool, String> {
    if let [command, token, paths @ ..] = arguments
        && command == "replay"
    {
        return replay(token, paths);
    }
    if let [command, seed, time] = arguments
        && command == "generate"
    {
        return generate(seed, time);
    }
    let (json, paths) = arguments.split_first().ok_or("expected options as JSON, then scenario files")?;
    let options = serde_json::from_str::<Arguments>(json).map_err(|e| format!("{json}: {e}"))?.options();
    let watch = Arc::new(Watch::default());
    let scenarios = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let (mut held, mut orders) = (true, Orders::default());
    for scenario in &scenarios {
        let mut report = check::check(scenario, &options, &watch);
        check::compare(&mut report, &mut orders, &scenarios);
        held &= report.violations.is_empty();
        println!("{}", serde_json::to_string(&report).map_err(|e| e.to_string())?);
    }
    Ok(held)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match explore(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("explore: {error}");
            ExitCode::from(2)
        }
    }
}
