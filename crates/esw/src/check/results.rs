//! Results of exploring, as lines and as JSON.

use std::time::Duration;

use anyhow::Result;
use check::{FaultsReport, Report, SearchReport};

use crate::arguments::Check;
use crate::exit_status::{FAILED, HELD, INTERRUPTED};
use crate::output::{Style, complain, line, many, time};

/// Prints the result of a scenario: a line and the stories of its violations, or a JSON object.
pub fn print(arguments: &Check, style: Style, report: &Report) -> Result<()> {
    if arguments.json {
        line(&serde_json::to_string(report)?);
        return Ok(());
    }
    let verdict = match (report.violations.is_empty(), report.interrupted) {
        (false, true) => style.bad(&format!("FAILED{}, interrupted", finder(report))),
        (false, false) => style.bad(&format!("FAILED{}", finder(report))),
        (true, true) => style.bad("interrupted"),
        (true, false) => style.good("ok"),
    };
    let rate = report.schedules as f64 / (report.elapsed_ms as f64 / 1e3).max(0.001);
    let took = format!("{} in {} ({rate:.0}/s)", forgotten(report), milliseconds(report.elapsed_ms));
    let (name, schedules) = (style.strong(&report.program), many(report.schedules, "schedule"));
    line(&match searches(report) {
        Some(searches) => format!("{name}: {verdict}; {schedules}{took}{searches}"),
        None => format!("{name}: {verdict}; {}{took}", how_far(report)),
    });
    for violation in &report.violations {
        if violation.story.rows.is_empty() {
            // Read from the report of a part, which has no story: the token runs the schedule again.
            line(&format!("  {}  {}: {}", style.bad("FAILS"), violation.invariant, violation.detail));
            line(&format!("  {}", check::replay_command(&violation.token, &violation.story.files)));
        } else {
            line(&check::columns(&violation.story, width()));
            if report.interrupted {
                line("interrupted while this was minimised: a smaller schedule may fail, too");
            }
        }
    }
    Ok(())
}

/// The columns of the terminal; 140 where there is none.
pub fn width() -> usize {
    let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).map_or(0, |size| size.ws_col.into());
    if terminal == 0 { 140 } else { terminal }
}

pub fn schedules(reports: &[Report]) -> u64 {
    reports.iter().fold(0, |sum, report| sum.saturating_add(report.schedules))
}

/// Describes what was explored.
pub fn how_far(report: &Report) -> String {
    let schedules = many(report.schedules, "schedule");
    if let Some(searches) = searches(report) {
        return schedules + &searches;
    }
    let (strategy, bound) = (report.strategy.as_str(), report.exhaustive_preemptions);
    format!("{schedules}{}{}", reached(strategy, bound), with_faults(strategy, &report.faults))
}

/// Describes the searches of a portfolio.
fn searches(report: &Report) -> Option<String> {
    if report.searches.len() < 2 {
        return None;
    }
    let begun = report.searches.iter().filter(|search| search.schedules > 0);
    let described: Vec<String> = begun.map(|search| describe(search, report)).collect();
    Some(if described.is_empty() { String::new() } else { format!(": {}", described.join(", ")) })
}

fn describe(search: &SearchReport, report: &Report) -> String {
    let reached = match (search.complete, search.search.as_str()) {
        (true, _) => ", every one that there is".to_owned(),
        (false, "bounded") => reached("bounded", search.exhaustive_preemptions),
        // Its name has been printed.
        (false, _) => String::new(),
    };
    let found = report.violations.iter().filter(|violation| violation.found_by.as_ref() == Some(&search.search));
    let found: String = found.map(|violation| format!(", found {}", violation.invariant)).collect();
    let faults = with_faults(&search.search, &search.faults);
    let took = milliseconds(search.elapsed_ms);
    format!("{} ({} in {took}{reached}{faults}{found})", search.search, search.schedules)
}

/// Names the searches of a portfolio that have found something.
fn finder(report: &Report) -> String {
    if report.searches.len() < 2 {
        return String::new();
    }
    let mut names: Vec<&str> = report.violations.iter().filter_map(|found| found.found_by.as_deref()).collect();
    names.dedup();
    if names.is_empty() { String::new() } else { format!(", found by {}", names.join(" and ")) }
}

fn milliseconds(elapsed: u64) -> String {
    time(Duration::from_millis(elapsed))
}

fn reached(strategy: &str, exhaustive: Option<u8>) -> String {
    match (strategy, exhaustive) {
        ("bounded", Some(k)) => format!(", every one with at most {}", many(k.into(), "preemption")),
        ("bounded", None) => ", not every one without preemptions".to_owned(),
        (strategy, _) => format!(" ({strategy})"),
    }
}

fn with_faults(strategy: &str, faults: &FaultsReport) -> String {
    match (faults.mode.as_str(), faults.exhaustive_preemptions) {
        ("none", _) => String::new(),
        (mode, Some(k)) => format!(", {mode} of {} failures at {k}", faults.places),
        (_, None) if strategy == "bounded" && faults.plans == 0 => ", nothing made to fail yet".to_owned(),
        (mode, None) if strategy == "bounded" => {
            let pairs = if mode == "pairs" { "pairs with " } else { "" };
            format!(", {pairs}{} of {} failures at 0", faults.tried, faults.plans)
        }
        ("each", None) if faults.tried < faults.plans => format!(", {} of {} failures", faults.tried, faults.places),
        (mode, None) if faults.tried < faults.plans => {
            format!(", {} of {} {mode} of {} failures", faults.tried, faults.plans, faults.places)
        }
        (mode, None) => format!(", {mode} of {} failures", faults.places),
    }
}

fn forgotten(report: &Report) -> String {
    if report.forgotten == 0 { String::new() } else { format!(", {} searched again", many(report.forgotten, "state")) }
}

/// Says how many of the scenarios that failed each search of a portfolio has found to fail.
fn finders(reports: &[Report]) -> String {
    let portfolios = || reports.iter().filter(|report| report.searches.len() > 1);
    let Some(first) = portfolios().next() else { return String::new() };
    let counts = first.searches.iter().filter_map(|search| {
        let finds = |report: &&Report| report.violations.iter().any(|it| it.found_by.as_ref() == Some(&search.search));
        let count = portfolios().filter(finds).count();
        (count > 0).then(|| format!("{count} found by {}", search.search))
    });
    let counts: Vec<String> = counts.collect();
    if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) }
}

/// Prints the summary of a campaign; its exit status. `of` is the number of its scenarios.
pub fn finish(arguments: &Check, style: Style, reports: &[Report], of: usize) -> u8 {
    let failed = reports.iter().filter(|report| !report.violations.is_empty()).count();
    let interrupted = reports.len() < of || reports.iter().any(|report| report.interrupted);
    let ended = reports.iter().filter(|report| report.violations.is_empty() && report.interrupted).count();
    let schedules = many(schedules(reports), "schedule");
    let mut summary = format!("{} held in {schedules}", reports.len() - failed - ended);
    if failed > 0 {
        summary += &format!(", {}", style.bad(&format!("{failed} failed{}", finders(reports))));
    }
    if ended > 0 {
        summary += &format!(", {ended} interrupted");
    }
    if reports.len() < of {
        summary += &format!(", {} not explored", of - reports.len());
    }
    if arguments.json {
        complain!("{summary}");
    } else if of > 1 {
        line(&summary);
    }
    match (failed, interrupted) {
        (1.., _) => FAILED,
        (0, true) => INTERRUPTED,
        (0, false) => HELD,
    }
}
