//! Results of exploring, as lines and as JSON.

use std::time::Duration;

use anyhow::Result;
use check::Report;

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
        (false, true) => style.bad("FAILED, interrupted"),
        (false, false) => style.bad("FAILED"),
        (true, true) => style.bad("interrupted"),
        (true, false) => style.good("ok"),
    };
    let rate = report.schedules as f64 / (report.elapsed_ms as f64 / 1e3).max(0.001);
    line(&format!(
        "{}: {verdict}; {}{} in {} ({rate:.0}/s)",
        style.strong(&report.program),
        how_far(report),
        forgotten(report),
        time(Duration::from_millis(report.elapsed_ms)),
    ));
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
    format!("{}{}{}", many(report.schedules, "schedule"), reached(report), with_faults(report))
}

pub fn reached(report: &Report) -> String {
    match (report.strategy.as_str(), report.exhaustive_preemptions) {
        ("bounded", Some(k)) => format!(", every one with at most {}", many(k.into(), "preemption")),
        ("bounded", None) => ", not every one without preemptions".to_owned(),
        (strategy, _) => format!(" ({strategy})"),
    }
}

pub fn with_faults(report: &Report) -> String {
    let faults = &report.faults;
    match (faults.mode.as_str(), faults.exhaustive_preemptions) {
        ("none", _) => String::new(),
        (mode, Some(k)) => format!(", {mode} of {} failures at {k}", faults.places),
        (_, None) if report.strategy == "bounded" && faults.plans == 0 => ", nothing made to fail yet".to_owned(),
        (mode, None) if report.strategy == "bounded" => {
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

pub fn forgotten(report: &Report) -> String {
    if report.forgotten == 0 { String::new() } else { format!(", {} searched again", many(report.forgotten, "state")) }
}

/// Prints the summary of a campaign; its exit status. `of` is the number of its scenarios.
pub fn finish(arguments: &Check, style: Style, reports: &[Report], of: usize) -> u8 {
    let failed = reports.iter().filter(|report| !report.violations.is_empty()).count();
    let interrupted = reports.len() < of || reports.iter().any(|report| report.interrupted);
    let ended = reports.iter().filter(|report| report.violations.is_empty() && report.interrupted).count();
    let schedules = many(schedules(reports), "schedule");
    let mut summary = format!("{} held in {schedules}", reports.len() - failed - ended);
    if failed > 0 {
        summary += &format!(", {}", style.bad(&format!("{failed} failed")));
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
