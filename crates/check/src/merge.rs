//! Joining what the parts of a campaign came to.

use std::collections::{BTreeMap, BTreeSet};

use crate::check::{Report, Violation};
use crate::orders::Orders;

/// Why reports do not belong together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A line is not what `--json` prints.
    #[error("{place}: not a report as `esw check --json` prints it: {why}")]
    Malformed {
        /// The file and line.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// Two campaigns.
    #[error("{scenario}: reports of different campaigns ({one}; {other}): merge the parts of one campaign only")]
    Campaigns {
        /// The scenario.
        scenario: String,
        /// What the one was asked for.
        one: String,
        /// What the other was asked for.
        other: String,
    },
    /// Two scenarios of one name, or one that was changed between the parts.
    #[error(
        "{scenario}: the reports are of scenarios of that name with different contents: the file was changed between the parts, or there are two; run all parts on the same files"
    )]
    Contents {
        /// The scenario.
        scenario: String,
    },
    /// A part is there twice.
    #[error("{scenario}: shard {index}/{of} is there twice: give each part once")]
    Twice {
        /// The scenario.
        scenario: String,
        /// Which part.
        index: u32,
        /// Of how many.
        of: u32,
    },
    /// Parts are missing.
    #[error(
        "{scenario}: {}: run `esw check --shard I/{of}` with the files and options of the others, and merge again",
        said_missing(missing, *of)
    )]
    Missing {
        /// The first scenario that lacks some.
        scenario: String,
        /// Which parts are missing, of this scenario or of another: from one to another.
        missing: Vec<(u32, u32)>,
        /// Of how many.
        of: u32,
    },
    /// There is nothing to merge.
    #[error("no reports to merge: expected lines as `esw check --json` prints them")]
    Nothing,
}

fn said_missing(missing: &[(u32, u32)], of: u32) -> String {
    let mut said = Vec::new();
    for &(from, to) in missing {
        match to - from {
            0 => said.push(from.to_string()),
            1 => said.extend([from.to_string(), to.to_string()]),
            _ => said.push(format!("{from} to {to}")),
        }
    }
    match &said[..] {
        [] => String::new(),
        [one] if !one.contains(' ') => format!("shard {one}/{of} is missing"),
        [one] => format!("shards {one} of {of} are missing"),
        [first @ .., last] => format!("shards {} and {last} of {of} are missing", first.join(", ")),
    }
}

/// The parts, of so many, that are not among these, from one to another.
fn gaps(there: &BTreeSet<u32>, of: u32) -> Vec<(u32, u32)> {
    let before = std::iter::once(0).chain(there.iter().copied());
    let after = there.iter().map(|index| index - 1).chain([of]);
    before.zip(after).filter(|(before, after)| before < after).map(|(before, after)| (before + 1, after)).collect()
}

/// Reads the reports in a file's text.
///
/// # Errors
/// A line that is none.
pub fn read(file: &str, text: &str) -> Result<Vec<Report>, MergeError> {
    // Some editors begin a file with a mark that is no text.
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

/// Joins the parts of a campaign, scenario by scenario.
///
/// # Errors
/// Parts of different campaigns, a part twice, a part missing.
pub fn merge(reports: Vec<Report>) -> Result<Vec<Report>, MergeError> {
    let mut scenarios: BTreeMap<String, Vec<Report>> = BTreeMap::new();
    let campaign =
        |part: &Report| format!("{} of version {}, shards of {}", part.campaign, part.version, part.shard[1]);
    let one = reports.first().map(campaign).unwrap_or_default();
    for report in reports {
        // Of all scenarios: a part of one and a part of another are not parts of the same.
        let other = campaign(&report);
        if other != one {
            return Err(MergeError::Campaigns { scenario: report.scenario, one, other });
        }
        scenarios.entry(report.scenario.clone()).or_default().push(report);
    }
    if scenarios.is_empty() {
        return Err(MergeError::Nothing);
    }
    complete(&scenarios)?;
    let mut joined = scenarios.into_values().map(join).collect::<Result<Vec<_>, _>>()?;
    let mut orders = Orders::default();
    for report in &mut joined {
        report.compare(&mut orders, &[]);
    }
    Ok(joined)
}

/// Whether each part is there, once, of each scenario.
fn complete(scenarios: &BTreeMap<String, Vec<Report>>) -> Result<(), MergeError> {
    let mut parts: Vec<(&String, u32, BTreeSet<u32>)> = Vec::new();
    for (scenario, reports) in scenarios {
        let of = reports[0].shard[1];
        let mut there = BTreeSet::new();
        for report in reports {
            if report.fingerprint != reports[0].fingerprint {
                return Err(MergeError::Contents { scenario: scenario.clone() });
            }
            let index = report.shard[0];
            if !there.insert(index) {
                return Err(MergeError::Twice { scenario: scenario.clone(), index, of });
            }
        }
        parts.push((scenario, of, there));
    }
    let lacks = |(_, of, there): &&(&String, u32, BTreeSet<u32>)| there.len() < *of as usize;
    let Some((first, of, _)) = parts.iter().find(lacks) else { return Ok(()) };
    let (scenario, of) = ((*first).clone(), *of);
    // All at once: who runs one again can run the others, too.
    let everywhere = |index: &u32| parts.iter().all(|(_, _, there)| there.contains(index));
    let missing = gaps(&parts[0].2.iter().copied().filter(everywhere).collect(), of);
    Err(MergeError::Missing { scenario, missing, of })
}

/// Of one scenario: all of them, each once.
fn join(mut parts: Vec<Report>) -> Result<Report, MergeError> {
    parts.sort_by_key(|part| part.shard);
    let mut parts = parts.into_iter();
    let Some(mut whole) = parts.next() else { return Err(MergeError::Nothing) };
    for part in parts {
        whole.schedules = whole.schedules.saturating_add(part.schedules);
        whole.exhaustive_preemptions = whole.exhaustive_preemptions.min(part.exhaustive_preemptions);
        whole.faults.exhaustive_preemptions =
            whole.faults.exhaustive_preemptions.min(part.faults.exhaustive_preemptions);
        whole.faults.places = whole.faults.places.max(part.faults.places);
        whole.faults.tried = whole.faults.tried.saturating_add(part.faults.tried);
        whole.faults.plans = whole.faults.plans.max(part.faults.plans);
        whole.forgotten = whole.forgotten.saturating_add(part.forgotten);
        // Every part tells the plain schedule, and finds the same there.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_named() {
        for (there, of, said) in [
            (vec![1, 3], 3, "shard 2/3 is missing"),
            (vec![2], 3, "shards 1 and 3 of 3 are missing"),
            (vec![1, 3, 4, 6], 7, "shards 2, 5 and 7 of 7 are missing"),
            (vec![1, 4], 64, "shards 2, 3 and 5 to 64 of 64 are missing"),
            (vec![], 64, "shards 1 to 64 of 64 are missing"),
            (vec![2], u32::MAX, "shards 1 and 3 to 4294967295 of 4294967295 are missing"),
        ] {
            assert_eq!(said_missing(&gaps(&there.into_iter().collect(), of), of), said);
        }
    }
}
