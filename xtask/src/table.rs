//! Tables of text: for a terminal, for a page, and tables on a page of which a command replaces some rows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};

/// The lines with their columns aligned, two spaces apart.
pub fn aligned<const N: usize>(lines: &[[String; N]]) -> String {
    let padded = padded(lines).into_iter().map(|cells| cells.join("  ").trim_end().to_owned() + "\n");
    padded.collect()
}

/// The lines as a Markdown table whose columns are aligned in its source, too. The first line is the head.
pub fn markdown_aligned<const N: usize>(lines: &[[String; N]]) -> String {
    let widths = widths(lines);
    let mut text = String::new();
    for (n, cells) in padded(lines).iter().enumerate() {
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if n == 0 {
            let _ = writeln!(text, "| {} |", widths.map(|width| "-".repeat(width)).join(" | "));
        }
    }
    text
}

/// The rows as a Markdown table below a head.
pub fn markdown<Cell: AsRef<str>>(head: &[&str], rows: impl IntoIterator<Item = Vec<Cell>>) -> String {
    let mut text = format!("| {} |\n| {} |\n", head.join(" | "), vec!["---"; head.len()].join(" | "));
    for row in rows {
        let cells: Vec<&str> = row.iter().map(AsRef::as_ref).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn widths<const N: usize>(lines: &[[String; N]]) -> [usize; N] {
    std::array::from_fn(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
}

fn padded<const N: usize>(lines: &[[String; N]]) -> Vec<Vec<String>> {
    let widths = widths(lines);
    let pad = |line: &[String; N]| line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    lines.iter().map(pad).collect()
}

/// A table on a page, of which a command replaces the rows that it has measured again.
///
/// The first column is a row's key: what the command takes to measure the row again. The last column is a number; the
/// numbered line below the table that has it says when, where and how the row was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    head: &'static [&'static str],
    rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    key: String,
    /// The columns between the key and the last one.
    cells: Vec<String>,
    /// When, where and how it was measured.
    at: String,
}

impl Measured {
    /// Reads what [`text`](Self::text) has written, or text without a table. `head`: the names of all columns.
    ///
    /// # Errors
    /// A row has another number of columns.
    pub fn parse(head: &'static [&'static str], text: &str) -> Result<Self> {
        let mut stamps = BTreeMap::new();
        let mut lines = Vec::new();
        for line in text.lines() {
            if let Some((number, stamp)) = line.split_once(". ")
                && number.parse::<usize>().is_ok()
            {
                stamps.insert(number.to_owned(), stamp.to_owned());
            } else if let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) {
                let cells: Vec<String> = row.split(" | ").map(|cell| cell.trim().to_owned()).collect();
                ensure!(cells.len() == head.len(), "a row with {} columns, not {}: {line}", cells.len(), head.len());
                lines.push(cells);
            }
        }
        // Without the head and the line below it.
        let rows = lines.split_off(lines.len().min(2)).into_iter().map(|mut cells| {
            let at = cells.pop().unwrap_or_default();
            let at = stamps.get(&at).cloned().unwrap_or(at);
            let key = cells.remove(0);
            Row { key, cells, at }
        });
        Ok(Self { head, rows: rows.collect() })
    }

    /// Replaces all rows with this key. Each of the new rows has the columns between the first and the last.
    pub fn replace(&mut self, key: &str, rows: impl IntoIterator<Item = Vec<String>>, at: &str) {
        self.rows.retain(|row| row.key != key);
        self.rows.extend(rows.into_iter().map(|cells| Row {
            key: key.to_owned(),
            // A bar would end the column.
            cells: cells.into_iter().map(|cell| cell.replace('|', "/")).collect(),
            at: at.to_owned(),
        }));
    }

    /// The columns between the key and the last one, and when it was measured, of the first row with this key.
    pub fn row(&self, key: &str) -> Option<(&[String], &str)> {
        self.rows.iter().find(|row| row.key == key).map(|row| (row.cells.as_slice(), row.at.as_str()))
    }

    /// Whether a row has this key.
    pub fn has(&self, key: &str) -> bool {
        self.rows.iter().any(|row| row.key == key)
    }

    /// The keys of all rows.
    pub fn keys(&self) -> Vec<&str> {
        self.rows.iter().map(|row| row.key.as_str()).collect()
    }

    /// The columns between the key and the last one, of each row.
    pub fn cells(&self) -> impl Iterator<Item = &[String]> {
        self.rows.iter().map(|row| row.cells.as_slice())
    }

    /// The table in the order of these keys. Rows with other keys are left out.
    pub fn text(&self, keys: &[&str]) -> String {
        let mut stamps: Vec<&str> = Vec::new();
        let mut rows = Vec::new();
        for key in keys {
            for row in self.rows.iter().filter(|row| row.key == *key) {
                let number = stamps.iter().position(|at| *at == row.at).unwrap_or_else(|| {
                    stamps.push(&row.at);
                    stamps.len() - 1
                });
                let mut cells = vec![row.key.clone()];
                cells.extend(row.cells.iter().cloned());
                cells.push((number + 1).to_string());
                rows.push(cells);
            }
        }
        let mut text = format!("\n{}\n", markdown(self.head, rows));
        for (n, at) in stamps.iter().enumerate() {
            let _ = writeln!(text, "{}. {at}", n + 1);
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[&str] = &["measurement", "what", "took", "at"];
    const KEYS: [&str; 2] = ["lockdep: uncontended", "memory: peak"];

    fn row(what: &str, took: &str) -> Vec<String> {
        vec![what.to_owned(), took.to_owned()]
    }

    fn full() -> Measured {
        let mut table = Measured::parse(HEAD, "\n").unwrap();
        table.replace(KEYS[1], [row("memory", "20 MB")], "commit a");
        table.replace(KEYS[0], [row("a lock", "10 ns"), row("two|locks", "11 ns")], "commit a");
        table
    }

    #[test]
    fn rows_are_in_the_order_of_the_keys_and_have_the_number_of_their_stamp() {
        assert_eq!(
            full().text(&KEYS),
            "
| measurement | what | took | at |
| --- | --- | --- | --- |
| lockdep: uncontended | a lock | 10 ns | 1 |
| lockdep: uncontended | two/locks | 11 ns | 1 |
| memory: peak | memory | 20 MB | 1 |

1. commit a

"
        );
        assert!(full().has(KEYS[1]) && !full().has("memory"));
    }

    #[test]
    fn a_table_that_was_written_is_read() {
        let text = full().text(&KEYS);
        assert_eq!(Measured::parse(HEAD, &text).unwrap().text(&KEYS), text);
        assert!(Measured::parse(HEAD, "| a | b |\n").is_err());
    }

    #[test]
    fn replacing_the_rows_of_a_key_leaves_the_others() {
        let mut table = Measured::parse(HEAD, &full().text(&KEYS)).unwrap();
        table.replace(KEYS[0], [row("one lock", "12 ns")], "commit b");
        let text = table.text(&KEYS);
        assert!(!text.contains("a lock") && !text.contains("two/locks"), "{text}");
        assert!(text.contains("| one lock | 12 ns | 1 |"), "{text}");
        assert!(text.contains("| memory | 20 MB | 2 |"), "{text}");
        assert!(text.ends_with("\n1. commit b\n2. commit a\n\n"), "{text}");
    }

    #[test]
    fn rows_with_other_keys_are_left_out() {
        assert!(!full().text(&KEYS[..1]).contains("memory"));
    }

    #[test]
    fn columns_are_aligned() {
        let lines = [["what", "took"], ["two locks", "11 ns"], ["a", ""]].map(|line| line.map(str::to_owned));
        assert_eq!(aligned(&lines), "what       took\ntwo locks  11 ns\na\n");
        assert_eq!(
            markdown_aligned(&lines),
            "| what      | took  |\n| --------- | ----- |\n| two locks | 11 ns |\n| a         |       |\n"
        );
    }
}
