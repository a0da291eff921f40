//! `cargo xtask instructions`: counts the instructions of frequent paths, and compares them with the committed numbers.
//!
//! A time depends on the machine more than on the code, so no test can fail because of one. A count is the same on a busy
//! machine and on an idle one. Each path is a process under `valgrind --tool=callgrind`, once with N rounds and once with
//! 2N: the difference is the count of N rounds, without start and end. For paths with several threads or with hashing, the
//! smallest count of a few runs is used.

mod paths;

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::valgrind;
use crate::workspace::{output_of, root};
use paths::{PATHS, Path};

/// The file with the committed counts.
const FILE: &str = "docs/instructions.toml";
/// The growth of a path, in per cent, up to which the command does not fail.
const PER_CENT: u64 = 5;

/// Which paths to count, and whether to write the counts.
#[derive(clap::Args)]
pub struct Args {
    /// Write the counts into docs/instructions.toml, rather than compare them
    #[arg(long)]
    write: bool,
    /// Only the paths whose name contains one of these
    filter: Vec<String>,
}

/// Runs a path, in a process of its own.
#[derive(clap::Args)]
pub struct Child {
    path: String,
    rounds: usize,
}

impl Child {
    /// Runs the path.
    ///
    /// # Errors
    /// There is no such path, or it fails.
    pub fn run(&self) -> Result<()> {
        let path = PATHS.iter().find(|path| path.name == self.path).context("there is no such path")?;
        (path.walk)(self.rounds)
    }
}

/// The file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The versions of the compiler and of valgrind: with others every count may differ.
    counted_with: String,
    /// The instructions of one round, by path.
    instructions: BTreeMap<String, u64>,
}

/// Counts, and compares the counts or writes them. The exit status is 1 if a path has grown too much.
///
/// # Errors
/// No path has such a name, a path fails, or the file cannot be read or written.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(missing) = valgrind::missing() {
        let must_run = args.write || std::env::var("CI").as_deref() == Ok("true");
        eprintln!("{}: {missing}", if must_run { "failed" } else { "skipped" });
        return Ok(if must_run { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let is_chosen = |name: &str| args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part.as_str()));
    let chosen: Vec<&Path> = PATHS.iter().filter(|path| is_chosen(path.name)).collect();
    let names = || PATHS.iter().map(|path| path.name).collect::<Vec<_>>().join("\n  ");
    ensure!(!chosen.is_empty(), "no path has a name with that in it; the names are:\n  {}", names());
    let counted = count_all(&chosen)?;
    let with = format!("{}, {}", output_of("rustc", &["--version"])?, output_of("valgrind", &["--version"])?);
    let kept = match fs::read_to_string(root().join(FILE)) {
        Ok(text) => toml::from_str(&text).context(FILE)?,
        Err(error) if args.write && error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
        Err(error) => return Err(error).context(FILE),
    };
    if args.write {
        let written = kept.with(&counted, with);
        fs::write(root().join(FILE), format!("{HEAD}{}", toml::to_string(&written)?)).context(FILE)?;
        return Ok(ExitCode::SUCCESS);
    }
    let compared = compare(&kept, &counted, args.filter.is_empty());
    compared.lines.iter().for_each(|line| println!("{line}"));
    if !compared.fails {
        return Ok(ExitCode::SUCCESS);
    }
    if kept.counted_with != with {
        // Another compiler generates other code, and another valgrind may count differently: that is no growth.
        eprintln!("{FILE} was counted with {}, and this is {with}: a difference is no failure.", kept.counted_with);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("If the growth is intended, run `cargo xtask instructions --write`, and give the reason in the commit.");
    Ok(ExitCode::FAILURE)
}

const HEAD: &str = "# Instructions of a round of each path; xtask/src/instructions/paths.rs says what a round is.\n\
                    # Written by `cargo xtask instructions --write`.\n\n";

impl Kept {
    /// Replaces these counts, and removes those of paths that do not exist any more.
    fn with(self, counted: &BTreeMap<String, u64>, counted_with: String) -> Self {
        let mut instructions = self.instructions;
        instructions.retain(|name, _| PATHS.iter().any(|path| path.name == name));
        instructions.extend(counted.iter().map(|(name, count)| (name.clone(), *count)));
        Self { counted_with, instructions }
    }
}

/// The result of a comparison.
#[derive(Debug, Default, PartialEq)]
struct Compared {
    lines: Vec<String>,
    fails: bool,
}

/// Compares counts with the committed ones. `all`: every path was counted, so committed counts of other paths are stale.
fn compare(kept: &Kept, counted: &BTreeMap<String, u64>, all: bool) -> Compared {
    let width = counted.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut compared = Compared::default();
    for (name, now) in counted {
        let (verdict, fails) = match kept.instructions.get(name) {
            None => ("is not in the file".to_owned(), true),
            Some(before) if now * 100 > before * (100 + PER_CENT) => {
                (format!("GROWN by {:.1} %, from {before}", (*now as f64 / *before as f64 - 1.0) * 100.0), true)
            }
            Some(before) if now * (100 + PER_CENT) < before * 100 => {
                (format!("less than {before}: worth writing"), false)
            }
            Some(_) => ("ok".to_owned(), false),
        };
        compared.lines.push(format!("{name:<width$}  {now:>8}  {verdict}"));
        compared.fails |= fails;
    }
    for name in kept.instructions.keys().filter(|name| all && !counted.contains_key(*name)) {
        compared.lines.push(format!("{name}: is in the file, and there is no such path"));
        compared.fails = true;
    }
    compared
}

/// Counts every path, on all processors at the same time.
fn count_all(paths: &[&Path]) -> Result<BTreeMap<String, u64>> {
    let left = Mutex::new(paths.to_vec());
    let next = || left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop();
    let work = || -> Result<Vec<(String, u64)>> {
        let mut counted = Vec::new();
        while let Some(path) = next() {
            counted.push((path.name.to_owned(), count(path).with_context(|| path.name)?));
        }
        Ok(counted)
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut all = BTreeMap::new();
        for worker in workers {
            match worker.join() {
                Ok(counted) => all.extend(counted?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

/// The instructions of one round of a path.
fn count(path: &Path) -> Result<u64> {
    let least = |rounds: usize| -> Result<u64> {
        let mut runs =
            (0..path.runs).map(|_| valgrind::instructions(&["instructions-child", path.name, &rounds.to_string()]));
        runs.try_fold(u64::MAX, |least, count| Ok(least.min(count?)))
    };
    let rounds = path.rounds as u64;
    // More rounds cannot take fewer instructions; if they do, this is noise, and the path has a count of 0.
    Ok((least(2 * path.rounds)?.saturating_sub(least(path.rounds)?) + rounds / 2) / rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    fn kept(of: &[(&str, u64)]) -> Kept {
        Kept { counted_with: String::new(), instructions: counts(of) }
    }

    #[test]
    fn growth_beyond_the_margin_fails_and_names_the_path() {
        let kept = kept(&[("a lock", 100), ("a queue", 100)]);
        assert!(!compare(&kept, &counts(&[("a lock", 105), ("a queue", 1)]), true).fails);
        let grown = compare(&kept, &counts(&[("a lock", 106), ("a queue", 100)]), true);
        assert!(grown.fails);
        assert_eq!(grown.lines, ["a lock        106  GROWN by 6.0 %, from 100", "a queue       100  ok"]);
    }

    #[test]
    fn a_path_and_its_count_come_and_go_together() {
        assert!(compare(&kept(&[]), &counts(&[("a lock", 1)]), true).fails, "a path without a count");
        let stale = kept(&[("a lock", 1), ("gone", 1)]);
        assert!(compare(&stale, &counts(&[("a lock", 1)]), true).fails, "a count without a path");
        assert!(!compare(&stale, &counts(&[("a lock", 1)]), false).fails, "it was not asked for");
    }

    #[test]
    fn what_is_written_can_be_read_and_has_no_paths_that_are_gone() {
        let name = PATHS[0].name;
        let written = kept(&[(name, 1), ("gone", 1)]).with(&counts(&[(name, 2)]), "a compiler".to_owned());
        let text = format!("{HEAD}{}", toml::to_string(&written).unwrap());
        let read: Kept = toml::from_str(&text).unwrap();
        assert_eq!(read, Kept { counted_with: "a compiler".to_owned(), instructions: counts(&[(name, 2)]) });
    }

    #[test]
    fn every_path_can_be_walked_and_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = PATHS.iter().map(|path| path.name).collect();
        assert_eq!(names.len(), PATHS.len());
        for path in PATHS {
            (path.walk)(2).unwrap_or_else(|error| panic!("{}: {error:#}", path.name));
        }
    }

    #[test]
    fn the_file_has_every_path() {
        let text = fs::read_to_string(root().join(FILE)).unwrap();
        let kept: Kept = toml::from_str(&text).unwrap();
        let names: Vec<_> = kept.instructions.keys().map(String::as_str).collect();
        let mut paths: Vec<_> = PATHS.iter().map(|path| path.name).collect();
        paths.sort_unstable();
        assert_eq!(names, paths);
    }
}
