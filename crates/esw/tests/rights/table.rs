//! The matrix as a table of `docs/lab.md`.

use std::fmt::Write as _;
use std::path::Path;

use crate::columns::Column;
use crate::rows::Row;

/// Rows by number, columns by number: the error number that is expected, if it is tried.
pub type Expected = Vec<Vec<Option<i32>>>;

const BEGIN: &str = "<!-- rights: written by `ESW_RIGHTS_WRITE=1 cargo test -p esw --test rights` -->";
const END: &str = "<!-- rights: end -->";

/// What a cell says, where root is told this: whether it is refused.
fn cell(expected: Option<i32>, root: Option<i32>) -> &'static str {
    match expected {
        None => "",
        Some(0) => "yes",
        // Nobody can, for another reason than that they may not.
        _ if expected == root => "yes",
        Some(libc::EPERM) => "EPERM",
        Some(libc::EACCES) => "EACCES",
        Some(libc::ENODEV) => "ENODEV",
        Some(libc::EINVAL) => "EINVAL",
        Some(_) => "other",
    }
}

/// Both tables: of processes, and of sockets that were opened by somebody else.
pub fn tables(rows: &[Row], parts: &[(&str, &[Column], &Expected)]) -> String {
    let mut text = String::new();
    for (introduction, columns, expected) in parts {
        let _ = write!(text, "\n{introduction}\n");
        let mut group = "";
        let mut number = 0;
        while number < rows.len() {
            let row = &rows[number];
            let cells = |number: usize| -> Vec<&str> {
                expected[number].iter().map(|errno| cell(*errno, expected[number][0])).collect()
            };
            let these = cells(number);
            let same = |other: usize| {
                let alike = |next: &Row| (next.group, next.alike, &next.source) == (row.group, row.alike, &row.source);
                rows.get(other).is_some_and(alike) && cells(other) == these
            };
            let end = (number + 1..).find(|other| !same(*other)).unwrap_or(rows.len());
            let titles: Vec<&str> = rows[number..end].iter().map(|row| row.title.as_str()).collect();
            number = end;
            if these.iter().all(|cell| cell.is_empty()) {
                continue;
            }
            if row.group != group {
                group = row.group;
                let head: Vec<&str> = columns.iter().map(|column| column.title).collect();
                let _ = write!(
                    text,
                    "\n| {group} | {} | decided in |\n|{}\n",
                    head.join(" | "),
                    " --- |".repeat(head.len() + 2)
                );
            }
            let title = format!("{}{}", row.alike, titles.join(", "));
            let _ = writeln!(text, "| {title} | {} | {} |", these.join(" | "), row.source);
        }
    }
    text
}

/// The kernel's version, as far as what it decides may be another with another.
fn kernel() -> String {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Compares a text with what stands between the marks of a file, or writes it there. What another kernel
/// answered is not compared.
pub fn compare(file: &Path, text: &str) -> Result<(), String> {
    let committed = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let parts = committed.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let (before, (between, after)) =
        parts.ok_or_else(|| format!("{} has not the marks `{BEGIN}`, `{END}`", file.display()))?;
    let head = format!("\nWith Linux {}.", kernel());
    let text = format!("{head}\n{text}\n");
    if std::env::var_os("ESW_RIGHTS_WRITE").is_some() {
        let whole = format!("{before}{BEGIN}{text}{END}{after}");
        return std::fs::write(file, whole).map_err(|error| format!("{}: {error}", file.display()));
    }
    if between == text {
        return Ok(());
    }
    if !between.starts_with(&head) {
        println!("the table in {} is another kernel's: it is not compared", file.display());
        return Ok(());
    }
    let first = between.lines().zip(text.lines()).find(|(committed, found)| committed != found);
    Err(format!(
        "the table in {} is not what was found; `ESW_RIGHTS_WRITE=1 cargo test -p esw --test rights` writes it. The first \
         line that differs, and what it is to be:\n{first:#?}",
        file.display()
    ))
}
