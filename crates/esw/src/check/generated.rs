//! `esw check --generate`: explores random stories for the invariants alone.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use check::{Hunt, HuntReport, Kept, Watch};
use serde_json::json;

use crate::arguments::Check;
use crate::exit_status::{FAILED, HELD, INTERRUPTED};
use crate::output::{Style, line, many, time};

use super::options::{jobs, refuse_too_many_jobs};
use super::results::width;
use super::stop_on_signal;

/// How long to generate stories if neither `--time` nor `--stories` is given.
const TIME: Duration = Duration::from_secs(60);

/// Explores stories; returns the exit status.
///
/// # Errors
/// The folder for stories to be kept cannot be made or written.
pub fn explore(arguments: &Check) -> Result<u8> {
    refuse_too_many_jobs(arguments)?;
    if let Some(folder) = &arguments.keep {
        fs::create_dir_all(folder).with_context(|| format!("{}: expected a folder", folder.display()))?;
    }
    let watch = Arc::new(Watch::default());
    stop_on_signal(&watch)?;
    let given = arguments.time.map(Duration::from_secs);
    let defaults = Hunt::default();
    let hunt = Hunt {
        seed: arguments.seed.unwrap_or(0),
        stories: arguments.stories,
        time: if arguments.stories.is_none() { given.or(Some(TIME)) } else { given },
        schedules: arguments.schedules.unwrap_or(defaults.schedules),
        jobs: jobs(arguments),
        ..defaults
    };
    let report = check::hunt(&hunt, &watch)?;
    let files = match (&report.kept, &arguments.keep) {
        (Some(kept), Some(folder)) => keep(kept, folder)?,
        _ => Vec::new(),
    };
    if arguments.json {
        line(&as_json(&hunt, &report, &files).to_string());
    } else {
        print(&hunt, &report, &files);
    }
    Ok(match (&report.kept, report.interrupted) {
        (Some(_), _) => FAILED,
        (None, true) => INTERRUPTED,
        (None, false) => HELD,
    })
}

/// Writes the scenarios of a story that breaks an invariant; returns their files. A file that is there is not replaced.
fn keep(kept: &Kept, folder: &Path) -> Result<Vec<String>> {
    let write = |scenario: &scenario::Scenario| {
        let path = folder.join(scenario.name.replace(' ', "-")).with_extension("toml");
        let text = scenario.to_toml();
        let is_there = path.exists();
        ensure!(
            !is_there || fs::read_to_string(&path).is_ok_and(|there| there == text),
            "{}: another story of this name is there; give --keep another folder",
            path.display()
        );
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path.display().to_string())
    };
    kept.scenarios.iter().map(write).collect()
}

fn print(hunt: &Hunt, report: &HuntReport, files: &[String]) {
    let style = Style::detect();
    let verdict = match (&report.kept, report.interrupted) {
        (Some(kept), _) => style.bad(&format!("{} is broken", kept.violation.invariant)),
        (None, true) => style.bad("interrupted"),
        (None, false) => style.good("ok"),
    };
    let rate = report.schedules as f64 / report.elapsed.as_secs_f64().max(0.001);
    line(&format!(
        "{}: {verdict}; {}, {} in {} ({rate:.0}/s)",
        style.strong(&format!("generated from seed {}", hunt.seed)),
        if report.stories == 1 { "1 story".to_owned() } else { format!("{} stories", report.stories) },
        many(report.schedules, "schedule"),
        time(report.elapsed)
    ));
    if let Some(kept) = &report.kept {
        tell(kept, files);
        return;
    }
    line(&format!("{} of {} forms of a step were used:", report.steps.len(), scenario::STEPS.len()));
    for (form, stories) in &report.steps {
        line(&format!("{stories:>7}  {form}"));
    }
}

/// Prints the story of a schedule that breaks an invariant, and its scenario or where that is.
fn tell(kept: &Kept, files: &[String]) {
    let mut story = kept.violation.story.clone();
    if files.is_empty() {
        story.files = vec!["FILE".to_owned()];
    } else {
        story.files = files.to_vec();
    }
    line(&check::columns(&story, width()));
    if files.is_empty() {
        line("FILE is this scenario; --keep DIR writes it:");
        kept.scenarios.iter().for_each(|scenario| line(&format!("\n{}", scenario.to_toml().trim_end())));
    }
}

fn as_json(hunt: &Hunt, report: &HuntReport, files: &[String]) -> serde_json::Value {
    let kept = report.kept.as_ref().map(|kept| {
        json!({
            "invariant": kept.violation.invariant,
            "detail": kept.violation.detail,
            "token": kept.violation.token,
            "scenarios": kept.scenarios.iter().map(scenario::Scenario::to_toml).collect::<Vec<_>>(),
            "files": files,
        })
    });
    json!({
        "seed": hunt.seed,
        "stories": report.stories,
        "schedules": report.schedules,
        "steps": report.steps,
        "violation": kept,
        "interrupted": report.interrupted,
        "elapsed_ms": report.elapsed.as_millis() as u64,
    })
}
