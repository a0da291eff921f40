//! `cargo xtask instructions`: how many instructions each path that is walked often takes, against what is committed.
//!
//! A time says more of the machine than of the code, and so no test can fail on one. A count says the same on a busy
//! machine as on an idle one. Each path is a process under `valgrind --tool=callgrind`, once with N rounds and once with
//! 2N: the difference is that of N rounds, without what starting and ending takes. Where threads or hashing have a share,
//! the least of a few runs counts.

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

/// Where the counts are kept.
const FILE: &str = "docs/instructions.toml";
/// What a path may have grown by.
const PER_CENT: u64 = 5;

/// Which paths, and what to do with the counts.
#[derive(clap::Args)]
pub struct Args {
    /// Write the counts into docs/instructions.toml, rather than compare them
    #[arg(long)]
    write: bool,
    /// Only the paths whose name contains one of these
    filter: Vec<String>,
}

/// A path, in a process of its own.
#[derive(clap::Args)]
pub struct Child {
    path: String,
    rounds: usize,
}

impl Child {
    /// Walks the path.
    ///
    /// # Errors
    /// There is no such path, or it could not be walked.
    pub fn run(&self) -> Result<()> {
        let path = PATHS.iter().find(|path| path.name == self.path).context("there is no such path")?;
        (path.walk)(self.rounds)
    }
}

/// The file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// What counted: with another compiler every count may be another.
    counted_with: String,
    /// Instructions of a round, by path.
    instructions: BTreeMap<String, u64>,
}

/// Counts, and compares or writes.
///
/// # Errors
/// No path is called so, one could not be walked, or the file cannot be read or written.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(missing) = valgrind::missing() {
        let must_run = args.write || std::env::var("CI").as_deref() == Ok("true");
        eprintln!("{}: {missing}", if must_run { "failed" } else { "skipped" });
        return Ok(if must_run { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let is_chosen = |name: &str| args.filter.is_empty() || args.filter.iter().any(|part| name.contains(part.as_str()));
    let chosen: Vec<&Path> = PATHS.iter().filter(|path| is_chosen(path.name)).collect();
    let names = || PATHS.iter().map(|path| path.name).collect::<Vec<_>>().join("\n  ");
    ensure!(!chosen.is_empty(), "no path is called so; there are:\n  {}", names());
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
        // Each of these makes other code, or counts otherwise: what has grown cannot be told from that.
        eprintln!("{FILE} was counted with {}; this is {with}, so nothing fails.", kept.counted_with);
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("If it is meant to be so: `cargo xtask instructions --write`, and say why in the commit.");
    Ok(ExitCode::FAILURE)
}

const HEAD: &str = "# Instructions of a round of each path; xtask/src/instructions/paths.rs says what a round is.\n\
                    # Written by `cargo xtask instructions --write`.\n\n";

impl Kept {
    /// The same with other counts; those of paths that are no more are left out.
    fn with(self, counted: &BTreeMap<String, u64>, counted_with: String) -> Self {
        let mut instructions = self.instructions;
        instructions.retain(|name, _| PATHS.iter().any(|path| path.name == name));
        instructions.extend(counted.iter().map(|(name, count)| (name.clone(), *count)));
        Self { counted_with, instructions }
    }
}

/// What a comparison says.
#[derive(Debug, Default, PartialEq)]
struct Compared {
    lines: Vec<String>,
    fails: bool,
}

/// Compares what was counted with what is kept. `all`: every path was counted, so what is kept of others is stale.
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

/// Counts every path, as many at once as there are processors.
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

/// Instructions of a round.
fn count(path: &Path) -> Result<u64> {
    let least = |rounds: usize| -> Result<u64> {
        let mut runs =
            (0..path.runs).map(|_| valgrind::instructions(&["instructions-child", path.name, &rounds.to_string()]));
        runs.try_fold(u64::MAX, |least, count| Ok(least.min(count?)))
    };
    let rounds = path.rounds as u64;
    // It must not be less with more rounds; if it is, it is noise, and shows as a path that takes nothing.
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
