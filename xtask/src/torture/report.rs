//! The results: rows, their table, and the first failures in full.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::table;

/// Failures of a row that are kept in full.
const KEPT: usize = 3;

/// One line of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The kind of attack: what `--only` takes.
    pub kind: String,
    /// What was done.
    pub what: String,
    /// How often it was done.
    pub tried: u64,
    /// How often everything held.
    pub survived: u64,
    /// How often something did not.
    pub failed: u64,
    /// How often the survived ones ended in which way, such as `recovered` and `refused`.
    pub ends: BTreeMap<String, u64>,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// Why it was not tried at all.
    pub skipped: Option<String>,
}

/// Something that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What did not hold, in lines.
    pub what: String,
    /// The command that tries the same again.
    pub again: String,
}

/// The rows of a kind, in the order in which they were first tried.
#[derive(Debug)]
pub struct Tally {
    kind: &'static str,
    rows: Vec<Row>,
}

impl Tally {
    /// A tally without rows.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, rows: Vec::new() }
    }

    fn row(&mut self, what: &str) -> &mut Row {
        let at = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
            self.rows.push(Row { kind: self.kind.to_owned(), what: what.to_owned(), ..Row::default() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Counts an attempt: `Ok` with how it ended, which may be empty, or `Err` with what did not hold. Returns whether it held.
    pub fn tried(&mut self, what: &str, seed: u64, outcome: Result<&str, String>) -> bool {
        let kind = self.kind;
        let row = self.row(what);
        row.tried += 1;
        match outcome {
            Ok(end) => {
                row.survived += 1;
                if !end.is_empty() {
                    *row.ends.entry(end.to_owned()).or_default() += 1;
                }
                true
            }
            Err(failure) => {
                row.failed += 1;
                if row.failures.len() < KEPT {
                    let again = format!("cargo xtask torture --only {kind} --rounds 1 --seed {seed}");
                    row.failures.push(Failure { what: failure, again });
                }
                false
            }
        }
    }

    /// Records why something could not be tried here.
    pub fn skipped(&mut self, what: &str, why: String) {
        self.row(what).skipped = Some(why);
    }

    /// The rows.
    pub fn rows(self) -> Vec<Row> {
        self.rows
    }
}

/// The rows as a Markdown table with aligned columns.
pub fn table(rows: &[Row]) -> String {
    let head = ["kind", "what", "tried", "survived", "failed", "how they ended"].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    table::markdown_aligned(&lines)
}

fn cells(row: &Row) -> [String; 6] {
    let ends = row.ends.iter().map(|(end, n)| format!("{end} {n}")).collect::<Vec<_>>().join(", ");
    let ends = match &row.skipped {
        Some(why) => format!("skipped: {why}"),
        None => ends,
    };
    let number = |n: u64| n.to_string();
    [row.kind.clone(), row.what.clone(), number(row.tried), number(row.survived), number(row.failed), ends]
}

/// The first failures, in full.
pub fn failures(rows: &[Row]) -> String {
    let mut out = String::new();
    for row in rows {
        for failure in &row.failures {
            let _ = writeln!(out, "\nFAILED  {}: {}", row.kind, row.what);
            for line in failure.what.lines() {
                let _ = writeln!(out, "    {line}");
            }
            let _ = writeln!(out, "  again: {}", failure.again);
        }
        let kept = row.failures.len() as u64;
        if row.failed > kept {
            let _ = writeln!(out, "  {} more of these", row.failed - kept);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failures_are_told_and_the_others_counted() {
        let mut tally = Tally::new("kills");
        assert!(tally.tried("a kill", 1, Ok("restored")));
        for seed in 2..7 {
            assert!(!tally.tried("a kill", seed, Err("lost\nan SF".to_owned())));
        }
        tally.skipped("a bond", "no such module".to_owned());
        let rows = tally.rows();
        assert_eq!((rows[0].tried, rows[0].survived, rows[0].failed), (6, 1, 5));
        let told = failures(&rows);
        assert!(told.contains("    an SF\n  again: cargo xtask torture --only kills --rounds 1 --seed 2\n"), "{told}");
        assert!(told.contains("  2 more of these\n"), "{told}");
        assert_eq!(
            table(&rows),
            "\
| kind  | what   | tried | survived | failed | how they ended          |
| ----- | ------ | ----- | -------- | ------ | ----------------------- |
| kills | a kill | 6     | 1        | 5      | restored 1              |
| kills | a bond | 0     | 0        | 0      | skipped: no such module |
"
        );
    }
}
