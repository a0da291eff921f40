//! `cargo xtask docs`: checks or writes the sections of the documentation that come from the code.
//!
//! Tables that take long to measure have commands of their own, with `--write`: `bench`, `exhaust`, `ovs-tests`, `programs`,
//! `torture`, `vm`. Of the first four, this command checks that each row belongs to something that still exists, and lists what has
//! no row yet.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use eswitch::inspect::INVARIANTS;

use crate::page::Section;
use crate::workspace::{cargo, root};
use crate::{bench, exhaust, mutants, ovs_tests, programs, table};

/// Whether to write the sections.
#[derive(clap::Args)]
pub struct Args {
    /// Write the sections that do not agree with the code
    #[arg(long)]
    write: bool,
    /// Only check, and fail if a section does not agree with the code: the default
    #[arg(long, conflicts_with = "write")]
    check: bool,
}

/// A section, and the text that it should have.
pub struct Generated {
    /// The section.
    pub section: Section,
    /// The text that it should have.
    pub text: String,
    /// The keys of rows that have not been measured yet.
    pub missing: Vec<String>,
    /// The command that writes rows; empty if this one writes all of it.
    pub measured_by: &'static str,
}

/// The graph of lock classes. A test of the engine records and writes it.
const LOCK_GRAPH: Section = Section { page: "docs/lock-graph.md", name: "lock-graph" };

/// Checks or writes every section. The exit status is 1 if one is stale and was not written.
///
/// # Errors
/// A page cannot be read or written, or lacks its marks; cargo cannot be started.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mut stale = 0;
    for generated in all()? {
        let Generated { section, text, missing, measured_by } = generated;
        let is_same = section.read()? == text;
        let verdict = match (is_same, args.write) {
            (true, _) => "ok",
            (false, true) => {
                section.write(&text)?;
                "written"
            }
            (false, false) => {
                stale += 1;
                "STALE"
            }
        };
        println!("{verdict:<8} {}: {}", section.page, section.name);
        if !missing.is_empty() {
            println!("         not measured yet, see `{measured_by}`: {}", missing.join(", "));
        }
    }
    stale += usize::from(!lock_graph(args.write)?);
    if stale > 0 {
        eprintln!("`cargo xtask docs --write` writes what is STALE; look at the difference before you commit it.");
    }
    Ok(if stale == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All sections but the graph of locks.
///
/// # Errors
/// A page cannot be read, or lacks its marks.
fn all() -> Result<Vec<Generated>> {
    let mut sections = vec![
        invariants(),
        lock_order()?,
        mutants::documented()?,
        bench::documented()?,
        exhaust::documented()?,
        programs::documented()?,
    ];
    sections.extend(ovs_tests::documented()?);
    Ok(sections)
}

fn invariants() -> Generated {
    let rows = INVARIANTS.map(|invariant| {
        vec![format!("`{}`", invariant.name), invariant.holds_when.to_owned(), invariant.checked.to_owned()]
    });
    let text = format!("\n{}\n", table::markdown(&["name", "holds when", "checked"], rows));
    let section = Section { page: "docs/verification.md", name: "invariants" };
    Generated { section, text, missing: Vec::new(), measured_by: "" }
}

/// The picture of the lock order, which is in the comment at the top of the file that declares the order.
fn lock_order() -> Result<Generated> {
    let file = "crates/eswitch/src/lock_order.rs";
    let text = fs::read_to_string(root().join(file)).with_context(|| format!("reading {file}"))?;
    let comment = text.lines().map_while(|line| line.strip_prefix("//!"));
    let picture = comment.map(|line| line.strip_prefix(' ').unwrap_or(line)).skip_while(|line| *line != "```text");
    let lines: Vec<&str> = picture.skip(1).take_while(|line| *line != "```").collect();
    ensure!(!lines.is_empty(), "{file} has no picture of the order in its first comment, between ```text and ```");
    let text = format!("\n```text\n{}\n```\n\n", lines.join("\n"));
    let section = Section { page: "docs/locking.md", name: "lock-order" };
    Ok(Generated { section, text, missing: Vec::new(), measured_by: "" })
}

/// Checks or writes the graph of lock classes; returns whether the page has the graph now.
fn lock_graph(write: bool) -> Result<bool> {
    let before = LOCK_GRAPH.read()?;
    let mut command = cargo();
    // Of the whole workspace, so that what `cargo test` has built is used as it is.
    command.args(["test", "--quiet", "--workspace", "--test", "it", "lock_graph::"]).current_dir(root());
    if write {
        command.env("UPDATE", "1");
    }
    let output = command.output().context("running cargo")?;
    let verdict = match (output.status.success(), LOCK_GRAPH.read()? == before) {
        (true, true) => "ok",
        (true, false) => "written",
        (false, _) => "STALE",
    };
    println!("{verdict:<8} {}: {}", LOCK_GRAPH.page, LOCK_GRAPH.name);
    if !output.status.success() {
        // It may have failed for another reason than the page.
        eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::patched;

    #[test]
    fn no_section_is_stale() {
        for Generated { section, text, .. } in all().unwrap() {
            assert!(section.read().unwrap() == text, "{}: {}: `cargo xtask docs --write`", section.page, section.name);
        }
    }

    /// The words in quotation marks after `ensure(`, `violate(` or `invariant:` in the engine are names of invariants.
    #[test]
    fn the_engine_states_no_invariant_that_the_table_does_not_have() {
        let engine = root().join("crates/eswitch/src");
        let mut stated = BTreeSet::new();
        for file in patched::walk(&engine).unwrap() {
            let text = fs::read_to_string(engine.join(&file)).unwrap();
            for before in ["ensure(", "violate(", "invariant: "] {
                for (at, _) in text.match_indices(before) {
                    let rest = text[at + before.len()..].trim_start();
                    let name = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
                    stated.extend(name.map(|(name, _)| name.to_owned()));
                }
            }
        }
        let names = BTreeSet::from(INVARIANTS.map(|invariant| invariant.name.to_owned()));
        assert!(stated.is_subset(&names), "{:?}", stated.difference(&names));
        let elsewhere: Vec<_> = names.difference(&stated).map(String::as_str).collect();
        assert!(["lock-order", "progress"].iter().all(|name| names.contains(*name)));
        assert!(elsewhere.iter().all(|name| ["lock-order", "progress"].contains(name)), "nothing states {elsewhere:?}");
    }
}
