//! `cargo xtask series`: the seven steps to the present E-Switch, each of which works.
//!
//! Without the patches of `series/`, removed last first, the tree is the E-Switch as it was before; with the first n of them
//! it is tree n. Every scenario is explored in each of the eight trees. No step may break a scenario that held before it, every
//! scenario must hold in the last tree, and each patch must repair exactly the scenarios in its header.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::patched::{self, Build, Patched, Profile};
use crate::refresh::{self, Kind};
use crate::workspace::root;

/// How thoroughly to explore, and how to print the results.
#[derive(clap::Args)]
pub struct Args {
    /// Print one line of JSON for each scenario, then one for each patch.
    #[arg(long)]
    json: bool,
    /// Explore each scenario in each tree in N schedules, half of them chosen at random
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(2..))]
    schedules: u64,
    /// The seed of the random choices
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    refresh: refresh::Args,
    /// Only scenarios whose file name contains one of these. Then the headers of the patches are not checked.
    name: Vec<String>,
}

/// One step.
struct Patch {
    name: String,
    path: PathBuf,
    /// The scenarios that it repairs according to its header.
    repairs: BTreeSet<String>,
}

/// A row: a scenario in each tree.
#[derive(Serialize)]
struct Row {
    scenario: String,
    /// From the tree without patches to the tree with all of them.
    trees: Vec<Cell>,
    /// The number of the patch that repairs it, from 1; `None` if it holds in every tree, or fails in the last one.
    repaired_by: Option<usize>,
}

/// A scenario in one tree.
#[derive(Serialize)]
struct Cell {
    tree: usize,
    holds: bool,
    /// The invariant that does not hold.
    invariant: Option<String>,
    detail: Option<String>,
    schedules: u64,
}

/// What a patch repairs.
#[derive(Serialize)]
struct Step<'a> {
    patch: &'a str,
    repairs: BTreeSet<String>,
}

/// Builds the trees and explores them. The exit status is 1 if a step breaks a scenario that held before it, if a scenario
/// fails in the last tree, or if a patch repairs other scenarios than its header says.
///
/// # Errors
/// A patch cannot be removed, a tree does not compile, a header is invalid, or the explorer fails.
pub fn run(args: &Args) -> Result<ExitCode> {
    let patches = all()?;
    let files: Vec<_> = patches.iter().map(|patch| patch.path.clone()).collect();
    if let Some(done) = args.refresh.run(root(), &files, Kind::Stacked)? {
        return Ok(done);
    }
    // Before anything is built: a name may be wrong.
    let scenarios = scenarios(&args.name)?;
    let copy = Patched::new("series", Profile::Optimised)?;
    let mut rows: Vec<Row> = Vec::new();
    for tree in 0..=patches.len() {
        let off: Vec<&Path> = patches[tree..].iter().rev().map(|patch| &*patch.path).collect();
        copy.set_without(&off)?;
        // Before the fourth step locks are taken in an order that no type allows, which needs the unchecked token.
        let explorer = match copy.build_explorer(&["lockdep/mutant"])?.0 {
            Build::Built(explorer) => explorer,
            Build::Rejected(said) => {
                bail!("tree {tree} does not compile: {}", &said[said.find("error").unwrap_or(0)..])
            }
        };
        for (at, file) in scenarios.iter().enumerate() {
            if tree == 0 {
                let scenario = stem(file);
                rows.push(Row { scenario, trees: Vec::new(), repaired_by: None });
            }
            rows[at].trees.push(explore(&explorer, file, tree, args)?);
        }
        eprintln!("tree {tree}: {} of {} hold", rows.iter().filter(|row| row.trees[tree].holds).count(), rows.len());
    }
    rows.iter_mut().for_each(|row| row.repaired_by = repaired_by(&row.trees));
    let wrong = wrong(&rows, &patches, args.name.is_empty());
    if args.json {
        print_json(&rows, &patches)?
    } else {
        print(&rows, &patches, args)
    }
    wrong.iter().for_each(|wrong| eprintln!("{wrong}"));
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn all() -> Result<Vec<Patch>> {
    patched::patches(&root().join("series"))?.iter().map(|path| Patch::read(path)).collect()
}

impl Patch {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let repairs = repairs(&text).with_context(|| path.display().to_string())?;
        Ok(Self { name: stem(path), path: path.to_owned(), repairs })
    }
}

/// The scenarios in a header: `Repairs:` and names, or `none`, to the end of the paragraph.
fn repairs(text: &str) -> Result<BTreeSet<String>> {
    let header = text.lines().take_while(|line| !line.starts_with("diff --git "));
    let mut lines = header.skip_while(|line| !line.starts_with("Repairs:")).take_while(|line| !line.trim().is_empty());
    let first = lines.next().and_then(|line| line.strip_prefix("Repairs:")).context("its header has no `Repairs:`")?;
    let listed: Vec<&str> = std::iter::once(first).chain(lines).flat_map(|line| line.split(',')).collect();
    let names: BTreeSet<String> =
        listed.into_iter().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "`Repairs:` names nothing: expected scenarios, or `none`");
    let none = BTreeSet::from(["none".to_owned()]);
    Ok(if names == none { BTreeSet::new() } else { names })
}

/// The files of the scenarios for the card in memory whose file name contains one of `names`; all if there are none.
pub fn scenarios(names: &[String]) -> Result<Vec<PathBuf>> {
    let folder = root().join("scenarios");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    let mut found = Vec::new();
    for file in files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "toml")) {
        let text = fs::read_to_string(&file)?;
        let scenario = scenario::parse(&text).with_context(|| file.display().to_string())?;
        let wanted = names.is_empty() || names.iter().any(|name| stem(&file).contains(name));
        if wanted && scenario.cards.iter().any(|card| card.name == "memory") {
            found.push(file);
        }
    }
    for name in names {
        let is_one = found.iter().any(|file| stem(file).contains(name));
        ensure!(is_one, "{name}: no scenario for the card in memory has a file name with this in it");
    }
    Ok(found)
}

pub fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The part of the explorer's report that is used.
#[derive(Deserialize)]
struct Report {
    schedules: u64,
    violations: Vec<Violation>,
}

#[derive(Deserialize)]
struct Violation {
    invariant: String,
    detail: String,
}

/// Explores one scenario: first by the number of preemptions, then at random, to find what takes many preemptions.
fn explore(explorer: &Path, scenario: &Path, tree: usize, args: &Args) -> Result<Cell> {
    let mut cell = Cell { tree, holds: true, invariant: None, detail: None, schedules: 0 };
    for strategy in ["bounded", "pct"] {
        let asked = json!({ "strategy": strategy, "schedules": args.schedules / 2, "seed": args.seed });
        let output = Command::new(explorer).arg(asked.to_string()).arg(scenario).output()?;
        let line = String::from_utf8_lossy(&output.stdout);
        let report: Report = serde_json::from_str(line.trim()).with_context(|| {
            format!("{} in tree {tree}: {}", scenario.display(), String::from_utf8_lossy(&output.stderr).trim())
        })?;
        cell.schedules += report.schedules;
        if let Some(violation) = report.violations.into_iter().next() {
            cell.holds = false;
            (cell.invariant, cell.detail) = (Some(violation.invariant), Some(violation.detail));
            break;
        }
    }
    Ok(cell)
}

/// The number of the patch that repairs a scenario: of the first tree from which on it holds.
fn repaired_by(trees: &[Cell]) -> Option<usize> {
    let last = trees.iter().rposition(|cell| !cell.holds)?;
    (last + 1 < trees.len()).then_some(last + 1)
}

/// Everything that is wrong, in lines.
fn wrong(rows: &[Row], patches: &[Patch], whole: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for Row { scenario, trees, .. } in rows {
        for (before, after) in trees.iter().zip(&trees[1..]) {
            if before.holds && !after.holds {
                wrong.push(format!("{scenario}: tree {} holds and tree {} does not", before.tree, after.tree));
            }
        }
        if trees.last().is_some_and(|cell| !cell.holds) {
            wrong.push(format!("{scenario}: does not hold with every patch on"));
        }
    }
    for (patch, step) in patches.iter().zip(1..).filter(|_| whole) {
        let does = repaired(rows, step);
        if does != patch.repairs {
            let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
            wrong.push(format!("{}: repairs {}; its header has {}", patch.name, list(&does), list(&patch.repairs)));
        }
    }
    wrong
}

fn repaired(rows: &[Row], step: usize) -> BTreeSet<String> {
    rows.iter().filter(|row| row.repaired_by == Some(step)).map(|row| row.scenario.clone()).collect()
}

fn print_json(rows: &[Row], patches: &[Patch]) -> Result<()> {
    for row in rows {
        println!("{}", serde_json::to_string(row)?);
    }
    for (patch, step) in patches.iter().zip(1..) {
        println!("{}", serde_json::to_string(&Step { patch: &patch.name, repairs: repaired(rows, step) })?);
    }
    Ok(())
}

/// Prints the matrix as a table, then a summary.
fn print(rows: &[Row], patches: &[Patch], args: &Args) {
    let head: String = (0..=patches.len()).map(|tree| format!(" {tree} |")).collect();
    println!("| scenario |{head}");
    println!("| --- |{}", " --- |".repeat(patches.len() + 1));
    for row in rows {
        let cells: String =
            row.trees.iter().map(|c| format!(" {} |", c.invariant.as_deref().unwrap_or("holds"))).collect();
        println!("| {} |{cells}", row.scenario);
    }
    let fail = rows.iter().filter(|row| row.trees.iter().any(|cell| !cell.holds && cell.tree == 0)).count();
    println!("\nOf {} scenarios, {fail} fail before the first step.\n", rows.len());
    for (patch, step) in patches.iter().zip(1..) {
        let names: Vec<String> = repaired(rows, step).into_iter().collect();
        let names = if names.is_empty() { "nothing by itself".to_owned() } else { names.join(", ") };
        println!("* {} repairs {names}", patch.name);
    }
    let regress = rows.iter().any(|row| row.trees.windows(2).any(|pair| pair[0].holds && !pair[1].holds));
    let whether = if regress { "A step fails" } else { "No step fails" };
    println!("\n{whether} what the one before passed, in {} schedules each.", args.schedules);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_scenario_has_is_refused() {
        let names = |names: &[&str]| scenarios(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&["late-ib"]).unwrap().len(), 1);
        assert!(names(&["late-ib", "nosuch"]).unwrap_err().to_string().starts_with("nosuch: no scenario"));
        assert!(names(&[]).unwrap().len() > 10);
    }

    #[test]
    fn every_patch_comes_off_the_tree_and_the_one_before_it_off_what_is_left() {
        let patches = all().unwrap();
        assert_eq!(patches.len(), 7);
        let copy = Patched::new("series-test", Profile::Optimised).unwrap();
        let off: Vec<&Path> = patches.iter().rev().map(|patch| &*patch.path).collect();
        copy.set_without(&off).unwrap();
        // And on again: that is the tree.
        let on: Vec<&Path> = patches.iter().map(|patch| &*patch.path).collect();
        for patch in on {
            patched::apply(copy.tree(), patch, &[]).unwrap();
        }
        let file = "crates/eswitch/src/eswitch/representor.rs";
        assert_eq!(fs::read(copy.tree().join(file)).unwrap(), fs::read(root().join(file)).unwrap());
    }

    #[test]
    fn every_scenario_that_a_header_names_is_there() {
        for patch in all().unwrap() {
            for scenario in patch.repairs {
                let file = root().join("scenarios").join(&scenario).with_extension("toml");
                assert!(file.is_file(), "{}: {scenario}", patch.name);
            }
        }
    }

    #[test]
    fn a_header_says_what_is_repaired() {
        let of = |text: &str| repairs(text).map(|names| names.into_iter().collect::<Vec<_>>());
        assert_eq!(of("Subject: x\n\nRepairs: b,\n  a\n\nmore\n\ndiff --git a b\nRepairs: c\n").unwrap(), ["a", "b"]);
        assert!(of("Repairs: none\n").unwrap().is_empty());
        assert!(of("Subject: x\n\ndiff --git a b\nRepairs: c\n").is_err());
        assert!(of("Repairs:\n\na\n").is_err());
    }

    #[test]
    fn the_last_tree_that_fails_comes_before_the_patch_that_repairs() {
        let row = |holds: [bool; 4]| {
            let cell = |(tree, holds)| Cell { tree, holds, invariant: None, detail: None, schedules: 1 };
            repaired_by(&holds.into_iter().enumerate().map(|(n, h)| cell((n, h))).collect::<Vec<_>>())
        };
        assert_eq!(row([false, false, true, true]), Some(2));
        assert_eq!(row([true, true, true, true]), None);
        assert_eq!(row([false, true, true, false]), None);
    }
}
