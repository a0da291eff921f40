//! Joining the reports of the parts of a campaign.

use std::collections::{BTreeMap, BTreeSet};

use crate::orders::Orders;
use crate::report::{FaultsReport, Report, SearchReport, Violation};

/// The reasons why reports do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A line is not a report in JSON.
    #[error("{place}: not a report: {why}")]
    Malformed {
        /// The file and line.
        place: String,
        /// The error of the parser.
        why: String,
    },
    /// The reports are of two campaigns.
    #[error("{program}: reports of different campaigns ({one}; {other}): merge the parts of one campaign only")]
    Campaigns {
        /// The program.
        program: String,
        /// The options of the first campaign.
        one: String,
        /// The options of the other campaign.
        other: String,
    },
    /// Two programs have the same name, or one was changed between the parts.
    #[error(
        "{program}: the reports are of programs of that name with different contents: run all parts on the same one"
    )]
    Contents {
        /// The program.
        program: String,
    },
    /// A part occurs twice.
    #[error("{program}: shard {index}/{of} is there twice: give each part once")]
    Twice {
        /// The program.
        program: String,
        /// The number of the part.
        index: u32,
        /// The number of parts.
        of: u32,
    },
    /// Parts are missing.
    #[error(
        "{program}: {}: run shard I/{of} with the programs and options of the others, and merge again",
        list_missing(missing, *of)
    )]
    Missing {
        /// The first program that lacks a part.
        program: String,
        /// The ranges of parts that are missing, of this program or of another.
        missing: Vec<(u32, u32)>,
        /// The number of parts.
        of: u32,
    },
    /// No reports were given.
    #[error("no reports to merge")]
    Nothing,
}

impl MergeError {
    /// Returns, for [`Missing`](Self::Missing), a text that lists the missing parts.
    pub fn missing(&self) -> Option<String> {
        match self {
            Self::Missing { missing, of, .. } => Some(list_missing(missing, *of)),
            _ => None,
        }
    }
}

fn list_missing(missing: &[(u32, u32)], of: u32) -> String {
    let mut ranges = Vec::new();
    for &(from, to) in missing {
        match to - from {
            0 => ranges.push(from.to_string()),
            1 => ranges.extend([from.to_string(), to.to_string()]),
            _ => ranges.push(format!("{from} to {to}")),
        }
    }
    match &ranges[..] {
        [] => String::new(),
        [one] if !one.contains(' ') => format!("shard {one}/{of} is missing"),
        [one] => format!("shards {one} of {of} are missing"),
        [first @ .., last] => format!("shards {} and {last} of {of} are missing", first.join(", ")),
    }
}

/// Returns the ranges of parts, of this number of parts, that are not in the set.
fn gaps(there: &BTreeSet<u32>, of: u32) -> Vec<(u32, u32)> {
    let before = std::iter::once(0).chain(there.iter().copied());
    let after = there.iter().map(|index| index - 1).chain([of]);
    before.zip(after).filter(|(before, after)| before < after).map(|(before, after)| (before + 1, after)).collect()
}

/// Reads the reports in the text of a file. `file`: its name, for errors.
///
/// # Errors
/// A line is not a report.
pub fn read(file: &str, text: &str) -> Result<Vec<Report>, MergeError> {
    // Some editors begin a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let report = |(line, number): (&str, usize)| {
        let malformed = |why: String| MergeError::Malformed { place: format!("{file}:{number}"), why };
        let report: Report = serde_json::from_str(line).map_err(|why| malformed(why.to_string()))?;
        let [index, of] = report.shard;
        if index < 1 || index > of {
            return Err(malformed(format!("there is no shard {index}/{of}")));
        }
        Ok(report)
    };
    lines.map(report).collect()
}

/// Joins the reports of the parts of a campaign, program by program.
///
/// # Errors
/// The parts are of different campaigns, a part occurs twice, or a part is missing.
pub fn merge(reports: Vec<Report>) -> Result<Vec<Report>, MergeError> {
    let mut programs: BTreeMap<String, Vec<Report>> = BTreeMap::new();
    let campaign =
        |part: &Report| format!("{} of version {}, shards of {}", part.campaign, part.version, part.shard[1]);
    let one = reports.first().map(campaign).unwrap_or_default();
    for report in reports {
        // Checked over all programs: a part of one campaign and a part of another do not belong together.
        let other = campaign(&report);
        if other != one {
            return Err(MergeError::Campaigns { program: report.program, one, other });
        }
        programs.entry(report.program.clone()).or_default().push(report);
    }
    if programs.is_empty() {
        return Err(MergeError::Nothing);
    }
    complete(&programs)?;
    let mut joined = programs.into_values().map(join).collect::<Result<Vec<_>, _>>()?;
    let mut orders = Orders::default();
    for report in &mut joined {
        report.compare_untold(&mut orders);
    }
    Ok(joined)
}

/// Checks that each part of each program occurs once.
fn complete(programs: &BTreeMap<String, Vec<Report>>) -> Result<(), MergeError> {
    let mut parts: Vec<(&String, u32, BTreeSet<u32>)> = Vec::new();
    for (program, reports) in programs {
        let of = reports[0].shard[1];
        let mut there = BTreeSet::new();
        for report in reports {
            if report.fingerprint != reports[0].fingerprint {
                return Err(MergeError::Contents { program: program.clone() });
            }
            let index = report.shard[0];
            if !there.insert(index) {
                return Err(MergeError::Twice { program: program.clone(), index, of });
            }
        }
        parts.push((program, of, there));
    }
    let lacks = |(_, of, there): &&(&String, u32, BTreeSet<u32>)| there.len() < *of as usize;
    let Some((first, of, _)) = parts.iter().find(lacks) else { return Ok(()) };
    let (program, of) = ((*first).clone(), *of);
    // Report all missing parts at once, so that the user can run all of them.
    let everywhere = |index: &u32| parts.iter().all(|(_, _, there)| there.contains(index));
    let missing = gaps(&parts[0].2.iter().copied().filter(everywhere).collect(), of);
    Err(MergeError::Missing { program, missing, of })
}

/// Joins the reports of one program.
fn join(mut parts: Vec<Report>) -> Result<Report, MergeError> {
    parts.sort_by_key(|part| part.shard);
    let mut parts = parts.into_iter();
    let Some(mut whole) = parts.next() else { return Err(MergeError::Nothing) };
    for part in parts {
        whole.schedules = whole.schedules.saturating_add(part.schedules);
        whole.exhaustive_preemptions = whole.exhaustive_preemptions.min(part.exhaustive_preemptions);
        join_faults(&mut whole.faults, &part.faults);
        for (whole, part) in whole.searches.iter_mut().zip(&part.searches) {
            join_search(whole, part);
        }
        whole.forgotten = whole.forgotten.saturating_add(part.forgotten);
        // Every part runs the plain schedule, and finds the same violations in it.
        let is_known = |violation: &Violation| whole.violations.iter().any(|known| known.token == violation.token);
        let new: Vec<Violation> = part.violations.into_iter().filter(|violation| !is_known(violation)).collect();
        whole.violations.extend(new);
        whole.lock_orders.extend(part.lock_orders);
        whole.elapsed_ms = whole.elapsed_ms.max(part.elapsed_ms);
        whole.interrupted |= part.interrupted;
    }
    whole.shard = [1, 1];
    Ok(whole)
}

/// Joins the reports of one search: all parts of a campaign have the same searches.
fn join_search(whole: &mut SearchReport, part: &SearchReport) {
    whole.schedules = whole.schedules.saturating_add(part.schedules);
    whole.exhaustive_preemptions = whole.exhaustive_preemptions.min(part.exhaustive_preemptions);
    whole.complete &= part.complete;
    join_faults(&mut whole.faults, &part.faults);
    whole.elapsed_ms = whole.elapsed_ms.max(part.elapsed_ms);
}

fn join_faults(whole: &mut FaultsReport, part: &FaultsReport) {
    whole.exhaustive_preemptions = whole.exhaustive_preemptions.min(part.exhaustive_preemptions);
    whole.places = whole.places.max(part.places);
    whole.tried = whole.tried.saturating_add(part.tried);
    whole.plans = whole.plans.max(part.plans);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_named() {
        for (there, of, ranges) in [
            (vec![1, 3], 3, "shard 2/3 is missing"),
            (vec![2], 3, "shards 1 and 3 of 3 are missing"),
            (vec![1, 3, 4, 6], 7, "shards 2, 5 and 7 of 7 are missing"),
            (vec![1, 4], 64, "shards 2, 3 and 5 to 64 of 64 are missing"),
            (vec![], 64, "shards 1 to 64 of 64 are missing"),
            (vec![2], u32::MAX, "shards 1 and 3 to 4294967295 of 4294967295 are missing"),
        ] {
            assert_eq!(list_missing(&gaps(&there.into_iter().collect(), of), of), ranges);
        }
    }
}
