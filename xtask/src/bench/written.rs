//! The table of `docs/performance.md`.
//!
//! A row says by which measurement it was measured, so that measuring some again replaces their rows and no others, and
//! when and where: the last column is the number of a line below the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Result, ensure};

use super::Row;
use crate::page;

/// What the columns are called. The first is what `cargo xtask bench` takes to measure a row again.
const HEAD: [&str; 8] = ["measurement", "what", "ours", "compared with", "ratio", "to reach", "met", "at"];
const COLUMNS: usize = HEAD.len();

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    measurement: String,
    /// The columns from `what` to `met`.
    cells: Vec<String>,
    /// Where and when it was measured.
    at: String,
}

/// The rows of each measurement, in the order in which they are to stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(Vec<Line>);

impl Table {
    /// Reads what [`text`](Self::text) has written.
    ///
    /// # Errors
    /// It is no such table.
    pub fn parse(text: &str) -> Result<Self> {
        let mut places = BTreeMap::new();
        let mut lines = Vec::new();
        for line in text.lines() {
            if let Some((number, place)) = line.split_once(". ")
                && number.parse::<usize>().is_ok()
            {
                places.insert(number.to_owned(), place.to_owned());
            } else if let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) {
                let cells: Vec<String> = row.split(" | ").map(|cell| cell.trim().to_owned()).collect();
                ensure!(cells.len() == COLUMNS, "a row with {} columns rather than {COLUMNS}: {line}", cells.len());
                lines.push(cells);
            }
        }
        // The names of the columns, and the line below them.
        let rows = lines.split_off(lines.len().min(2)).into_iter().map(|mut cells| {
            let at = cells.pop().unwrap_or_default();
            let at = places.get(&at).cloned().unwrap_or(at);
            let measurement = cells.remove(0);
            Line { measurement, cells, at }
        });
        Ok(Self(rows.collect()))
    }

    /// Puts these rows in the place of those that the measurement gave before.
    pub fn replace(&mut self, measurement: &str, rows: &[Row], at: &str) {
        self.0.retain(|line| line.measurement != measurement);
        self.0.extend(rows.iter().map(|row| Line {
            measurement: measurement.to_owned(),
            cells: row.cells().map(|cell| cell.replace('|', "/")).to_vec(),
            at: at.to_owned(),
        }));
    }

    /// The table in the order of these measurements, without rows of others.
    pub fn text(&self, measurements: &[&str]) -> String {
        let mut places: Vec<&str> = Vec::new();
        let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
        for measurement in measurements {
            for line in self.0.iter().filter(|line| line.measurement == *measurement) {
                let place = places.iter().position(|at| *at == line.at).unwrap_or_else(|| {
                    places.push(&line.at);
                    places.len() - 1
                });
                let mut row = vec![line.measurement.clone()];
                row.extend(line.cells.iter().cloned());
                row.push((place + 1).to_string());
                rows.push(row);
            }
        }
        let mut text = String::from("\n");
        for (n, row) in rows.iter().enumerate() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
            if n == 0 {
                let _ = writeln!(text, "| {} |", ["---"; COLUMNS].join(" | "));
            }
        }
        text.push('\n');
        for (n, place) in places.iter().enumerate() {
            let _ = writeln!(text, "{}. {place}", n + 1);
        }
        text.push('\n');
        text
    }
}

/// Where and when something is measured: the commit, the date, the processor, how many of them, the kernel, and how much else
/// the machine has to do.
///
/// # Errors
/// There is no `git`, or no `date`.
pub fn here() -> Result<String> {
    let (commit, date) = page::commit_and_date()?;
    let is_changed = !page::said("git", &["status", "--porcelain", "--", ".", ":!docs"])?.is_empty();
    let of_file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = of_file("/proc/cpuinfo");
    let models: BTreeSet<&str> = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "model name")
        .map(|(_, model)| model.trim())
        .collect();
    let model = models.into_iter().next().unwrap_or("a processor without a name");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = of_file("/proc/sys/kernel/osrelease");
    // What a distribution or a provider adds to the version is of no interest here.
    let version = kernel.trim().split('-').next().unwrap_or_default();
    let load = of_file("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let changed = if is_changed { " with changes" } else { "" };
    Ok(format!(
        "commit {commit}{changed}, {date}: {model}, {cores} cores, Linux {version}; load of the machine before: {load}"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Quantity, Target};
    use super::*;

    const MEASUREMENTS: [&str; 2] = ["lockdep: uncontended", "memory: peak"];

    fn row(what: &str, ours: f64) -> Row {
        let ns = |value| Quantity { value, unit: "ns" };
        Row::compared(what.to_owned(), ns(ours), "bare", ns(10.0), ours / 10.0).target(Target::RatioAtMost(1.15))
    }

    fn full() -> Table {
        let mut table = Table::default();
        table.replace(MEASUREMENTS[1], &[row("memory", 20.0)], "commit a");
        table.replace(MEASUREMENTS[0], &[row("a lock", 10.0), row("two locks", 11.0)], "commit a");
        table
    }

    #[test]
    fn a_table_has_the_order_of_the_measurements_and_says_where() {
        assert_eq!(
            full().text(&MEASUREMENTS),
            "
| measurement | what | ours | compared with | ratio | to reach | met | at |
| --- | --- | --- | --- | --- | --- | --- | --- |
| lockdep: uncontended | a lock | 10.0 ns | bare: 10.0 ns | 1.00x | <= 1.15x | yes | 1 |
| lockdep: uncontended | two locks | 11.0 ns | bare: 10.0 ns | 1.10x | <= 1.15x | yes | 1 |
| memory: peak | memory | 20.0 ns | bare: 10.0 ns | 2.00x | <= 1.15x | NO | 1 |

1. commit a

"
        );
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = full().text(&MEASUREMENTS);
        assert_eq!(Table::parse(&text).unwrap().text(&MEASUREMENTS), text);
        assert_eq!(Table::parse("\n").unwrap(), Table::default());
        assert!(Table::parse("| a | b |\n").is_err());
    }

    #[test]
    fn a_part_replaces_its_own_rows_and_no_others() {
        let mut table = Table::parse(&full().text(&MEASUREMENTS)).unwrap();
        table.replace(MEASUREMENTS[0], &[row("one lock", 12.0)], "commit b");
        let text = table.text(&MEASUREMENTS);
        assert!(!text.contains("a lock") && !text.contains("two locks"), "{text}");
        assert!(text.contains("| one lock | 12.0 ns | bare: 10.0 ns | 1.20x | <= 1.15x | NO | 1 |"), "{text}");
        assert!(text.contains("| memory | 20.0 ns | bare: 10.0 ns | 2.00x | <= 1.15x | NO | 2 |"), "{text}");
        assert!(text.ends_with("\n1. commit b\n2. commit a\n\n"), "{text}");
    }

    #[test]
    fn rows_of_a_measurement_that_is_no_more_are_left_out() {
        let text = full().text(&MEASUREMENTS[..1]);
        assert!(!text.contains("memory"), "{text}");
    }

    #[test]
    fn a_place_names_no_more_of_the_kernel_than_its_version() {
        let here = here().unwrap();
        let (_, kernel) = here.split_once("Linux ").unwrap();
        assert!(kernel.split(';').next().unwrap().chars().all(|c| c.is_ascii_digit() || c == '.'), "{here}");
    }
}
