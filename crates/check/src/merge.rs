//! Joining what the parts of a campaign came to.

use std::collections::BTreeMap;

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
    /// A part is missing.
    #[error(
        "{scenario}: shard {index}/{of} is missing: run `esw check --shard {index}/{of}` with the files and options of the others, and merge again"
    )]
    Missing {
        /// The scenario.
        scenario: String,
        /// Which part.
        index: u32,
        /// Of how many.
        of: u32,
    },
    /// There is nothing to merge.
    #[error("no reports to merge: expected lines as `esw check --json` prints them")]
    Nothing,
}

/// Reads the reports in a file's text.
///
/// # Errors
/// A line that is none.
pub fn read(file: &str, text: &str) -> Result<Vec<Report>, MergeError> {
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
    for report in reports {
        scenarios.entry(report.scenario.clone()).or_default().push(report);
    }
    if scenarios.is_empty() {
        return Err(MergeError::Nothing);
    }
    let mut joined = scenarios.into_values().map(join).collect::<Result<Vec<_>, _>>()?;
    let mut orders = Orders::default();
    for report in &mut joined {
        report.compare(&mut orders, &[]);
    }
    Ok(joined)
}

fn join(mut parts: Vec<Report>) -> Result<Report, MergeError> {
    parts.sort_by_key(|part| part.shard);
    let mut parts = parts.into_iter();
    let Some(mut whole) = parts.next() else { return Err(MergeError::Nothing) };
    let scenario = whole.scenario.clone();
    let of = whole.shard[1];
    let campaign =
        |part: &Report| format!("{} of version {}, shards of {}", part.campaign, part.version, part.shard[1]);
    let missing = |index: u32| MergeError::Missing { scenario: scenario.clone(), index, of };
    if whole.shard[0] != 1 {
        return Err(missing(1));
    }
    let mut last = 1;
    for part in parts {
        if part.fingerprint != whole.fingerprint {
            return Err(MergeError::Contents { scenario });
        }
        if campaign(&part) != campaign(&whole) {
            let (one, other) = (campaign(&whole), campaign(&part));
            return Err(MergeError::Campaigns { scenario, one, other });
        }
        if part.shard[0] == last {
            return Err(MergeError::Twice { scenario, index: last, of });
        }
        if part.shard[0] != last + 1 {
            return Err(missing(last + 1));
        }
        last = part.shard[0];
        whole.schedules += part.schedules;
        whole.exhaustive_preemptions = whole.exhaustive_preemptions.min(part.exhaustive_preemptions);
        whole.faults.exhaustive_preemptions =
            whole.faults.exhaustive_preemptions.min(part.faults.exhaustive_preemptions);
        whole.faults.places = whole.faults.places.max(part.faults.places);
        whole.faults.tried += part.faults.tried;
        whole.faults.plans = whole.faults.plans.max(part.faults.plans);
        whole.forgotten += part.forgotten;
        // Every part tells the plain schedule, and finds the same there.
        let is_known = |violation: &Violation| whole.violations.iter().any(|known| known.token == violation.token);
        let new: Vec<Violation> = part.violations.into_iter().filter(|violation| !is_known(violation)).collect();
        whole.violations.extend(new);
        whole.lock_orders.extend(part.lock_orders);
        whole.elapsed_ms = whole.elapsed_ms.max(part.elapsed_ms);
        whole.interrupted |= part.interrupted;
    }
    if last != of {
        return Err(missing(last + 1));
    }
    whole.shard = [1, 1];
    Ok(whole)
}
