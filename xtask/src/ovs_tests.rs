//! `cargo xtask ovs-tests`: NVIDIA's control-plane scripts in a lab, for the table of `docs/compatibility.md`.
//!
//! Each script runs on a new card, in namespaces of its own, under strace. A script says `TEST PASSED` although
//! commands in it have failed, if it does not look at them: some say so although nothing of what they are to show has
//! happened. So a script counts as passed only if it says so, and each command about the card that failed, and each error
//! that it prints, is one that may be, with its reason ([`judged`]).

mod judged;
mod stage;
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::docs::Generated;
use crate::page::{self, Section};
use crate::table::Measured;
use crate::workspace::{self, output_of};
use trace::Failure;

/// Which scripts to run, and what to do with the results.
#[derive(clap::Args)]
pub struct Args {
    /// Which scripts
    #[arg(value_enum, default_value_t)]
    set: Set,
    /// A clone of github.com/Mellanox/ovs-tests, bare or not. Without it, one is made for this run
    #[arg(long)]
    repository: Option<PathBuf>,
    /// Only these scripts, by their names without `.sh`
    #[arg(long, num_args = 1..)]
    only: Vec<String>,
    /// How many scripts run at a time
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// The binary of `esw`. Without it, the release binary is built
    #[arg(long)]
    esw: Option<PathBuf>,
    /// Keep the output and the traces of each script in this folder
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Write the rows into the table of docs/compatibility.md
    #[arg(long)]
    write: bool,
}

/// Where the scripts come from.
const UPSTREAM: &str = "https://github.com/Mellanox/ovs-tests";
/// The commit that is run: of 2024-11-17.
const COMMIT: &str = "39d46ece";
/// A set of scripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Set {
    /// Those of the control plane
    #[default]
    Control,
    /// Those of tc: what it offloads, or shows
    Tc,
}

impl Set {
    /// With one of these the names of its scripts begin.
    fn beginnings(self) -> &'static [&'static str] {
        match self {
            Self::Control => &["test-devlink-", "test-eswitch-", "test-sf-", "test-vf-"],
            Self::Tc => &["test-tc-"],
        }
    }

    /// The table on the page.
    fn section(self) -> Section {
        let name = match self {
            Self::Control => "ovs-tests",
            Self::Tc => "ovs-tests-tc",
        };
        Section { page: "docs/compatibility.md", name }
    }
}
/// Its columns.
const COLUMNS: &[&str] = &["script", "result", "at"];
/// How a result of a script that passed begins.
const PASSED: &str = "**passed**";
/// How a result of a script that says `TEST PASSED` and does not count as passed begins.
const EMPTY: &str = "says `TEST PASSED`, does not count";

/// How a script ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It says `TEST PASSED`, and nothing that matters has failed.
    Passed,
    /// It says `TEST PASSED`, but this has failed.
    Empty(Vec<String>),
    /// It does not say `TEST PASSED`. The errors that it printed, or its last lines.
    Failed(Vec<String>),
    /// It was ended after its time.
    TookTooLong,
}

/// Runs the scripts, and prints and writes the rows.
///
/// # Errors
/// Something that is needed is missing; the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    stage::ensure_possible()?;
    let page = args.set.section();
    let mut table = Measured::parse(COLUMNS, &page.read()?).context(page.page)?;
    let at = page::stamp()?;
    let esw = match &args.esw {
        Some(esw) => esw.canonicalize().with_context(|| esw.display().to_string())?,
        None => workspace::build_esw()?,
    };
    let place = std::env::temp_dir().join(format!("xtask-ovs-tests-{}", std::process::id()));
    let results = in_place(args, &place, &esw);
    fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    for (name, result) in results? {
        println!("{name}: {result}");
        table.replace(&format!("`{name}`"), [vec![result]], &at);
    }
    let text = section(&table);
    println!("{}", summary(&table));
    if args.write {
        page.write(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the scripts in a folder, and returns the name of each with the text of its row.
fn in_place(args: &Args, place: &Path, esw: &Path) -> Result<Vec<(String, String)>> {
    fs::create_dir_all(place)?;
    let scripts = place.join("scripts");
    let all = check_out(args.repository.as_deref(), place, &scripts, args.set)?;
    ensure!(args.only.iter().all(|name| all.contains(name)), "commit {COMMIT} has not all of {:?}", args.only);
    let wanted: Vec<String> = all.into_iter().filter(|name| args.only.is_empty() || args.only.contains(name)).collect();
    let queue = Mutex::new(wanted.iter().rev().cloned().collect::<Vec<_>>());
    let results = Mutex::new(Vec::new());
    let kept = args.keep.clone().unwrap_or_else(|| place.join("out"));
    thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    // The lock is not held while the script runs.
                    let next = queue.lock().ok().and_then(|mut queue| queue.pop());
                    let Some(name) = next else { break };
                    eprintln!("{name}");
                    let result = stage::run(&name, &scripts, esw, &kept.join(&name)).and_then(|run| {
                        Ok(result_of(&name, &run.output, run.was_ended, &trace::failures(&run.trace)?))
                    });
                    let result = result.unwrap_or_else(|error| format!("could not be run: {error:#}"));
                    if let Ok(mut results) = results.lock() {
                        results.push((name, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    results.sort();
    Ok(results)
}

/// Puts the scripts of the commit into a folder, and returns the names of those of a set.
fn check_out(repository: Option<&Path>, place: &Path, scripts: &Path, set: Set) -> Result<Vec<String>> {
    let clone = place.join("clone");
    let repository = match repository {
        Some(repository) => repository,
        None => {
            output_of("git", &["clone", "--quiet", "--bare", UPSTREAM, &clone.display().to_string()])?;
            &clone
        }
    };
    fs::create_dir_all(scripts)?;
    let repository = repository.canonicalize().with_context(|| repository.display().to_string())?;
    let repository = repository.display().to_string();
    // The files beside the scripts, without the folders: those have programs and what other scripts need.
    let tree = output_of("git", &["-C", &repository, "ls-tree", COMMIT])?;
    let files = tree.lines().filter(|line| line.contains(" blob ")).filter_map(|line| line.split('\t').nth(1));
    let files: Vec<&str> = files.collect();
    let archive = place.join("scripts.tar");
    let mut git = Command::new("git");
    git.args(["-C", &repository, "archive", "-o"]).arg(&archive).args([COMMIT, "--"]).args(&files);
    ensure!(git.status().context("running git")?.success(), "`git archive {COMMIT}` failed in {repository}");
    output_of("tar", &["-xf", &archive.display().to_string(), "-C", &scripts.display().to_string()])?;
    let names = files.iter().filter_map(|file| file.strip_suffix(".sh"));
    let names = names.filter(|name| set.beginnings().iter().any(|beginning| name.starts_with(beginning)));
    Ok(names.map(str::to_owned).collect())
}

/// The text of a script's row.
fn result_of(name: &str, output: &str, was_ended: bool, failures: &[Failure]) -> String {
    let outcome = outcome(name, output, was_ended, failures);
    let because = judged::reason(name, output, failures);
    match outcome {
        Outcome::Passed => PASSED.to_owned(),
        Outcome::Empty(why) => format!("{EMPTY}: {}", because.unwrap_or_else(|| quoted(&why))),
        Outcome::Failed(why) => because.unwrap_or_else(|| quoted(&why)),
        Outcome::TookTooLong => because.unwrap_or_else(|| format!("took over {} s", stage::LIMIT_S)),
    }
}

/// The first of some messages, and how many more there are.
fn quoted(messages: &[String]) -> String {
    let Some(first) = messages.first() else { return "prints nothing about it".to_owned() };
    let first: String = first.replace('`', "'").chars().take(200).collect();
    match messages.len() {
        1 => format!("`{first}`"),
        more => format!("`{first}`, and {} more", more - 1),
    }
}

fn outcome(name: &str, output: &str, was_ended: bool, failures: &[Failure]) -> Outcome {
    let printed = printed(output);
    let errors = printed.iter().filter_map(|line| line.strip_prefix("ERROR: "));
    let errors: Vec<String> = errors.map(str::to_owned).collect();
    if was_ended {
        return Outcome::TookTooLong;
    }
    if !printed.iter().any(|line| line == "TEST PASSED") {
        let last: Vec<String> = printed.iter().rev().take(1).cloned().collect();
        return Outcome::Failed(if errors.is_empty() { last } else { errors });
    }
    let of_error = |words: String| Failure { at: String::new(), command: "ERROR".to_owned(), words };
    let found: Vec<Failure> = errors.into_iter().map(of_error).chain(failures.iter().cloned()).collect();
    let found = found.iter().filter(|failure| !judged::may_fail(name, failure));
    let why: Vec<String> = found.map(|failure| format!("{}: {}", failure.command, failure.words)).collect();
    if why.is_empty() { Outcome::Passed } else { Outcome::Empty(why) }
}

/// The lines that a script has printed, without colours.
fn printed(output: &str) -> Vec<String> {
    let lines = output.lines().map(|line| {
        let mut parts = line.split('\u{1b}');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
    });
    lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// The section: how many passed, and the table.
fn section(table: &Measured) -> String {
    let mut keys = table.keys();
    keys.sort_unstable();
    format!("\n{}{}", summary(table), table.text(&keys))
}

/// A sentence with how many passed.
fn summary(table: &Measured) -> String {
    let rows = table.keys().len();
    let begins = |with: &str| table.cells().filter(|cells| cells[0].starts_with(with)).count();
    format!("**{} of {rows} passed.** {} more say so, and do not count.\n", begins(PASSED), begins(EMPTY))
}

/// The sections with the counts that their rows have.
///
/// # Errors
/// The page cannot be read, or has no such tables.
pub fn documented() -> Result<Vec<Generated>> {
    let of = |set: Set| {
        let table = Measured::parse(COLUMNS, &set.section().read()?).context(set.section().page)?;
        let text = section(&table);
        let measured_by = match set {
            Set::Control => "cargo xtask ovs-tests --write",
            Set::Tc => "cargo xtask ovs-tests tc --write",
        };
        Ok(Generated { section: set.section(), text, missing: Vec::new(), measured_by })
    };
    [Set::Control, Set::Tc].into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(command: &str, words: &str) -> Failure {
        Failure { at: String::new(), command: command.to_owned(), words: words.to_owned() }
    }

    const SAYS_PASSED: &str = "\u{1b}[0;32mTEST PASSED\u{1b}[0;0m\n";

    #[test]
    fn a_script_that_says_that_it_passed_has_not_if_a_command_failed() {
        assert_eq!(outcome("test-x", SAYS_PASSED, false, &[]), Outcome::Passed);
        let failed = [failure("ethtool -L x combined 4", "netlink error: Invalid argument")];
        let why = "ethtool -L x combined 4: netlink error: Invalid argument".to_owned();
        assert_eq!(outcome("test-x", SAYS_PASSED, false, &failed), Outcome::Empty(vec![why]));
        let at_the_start = [failure("modprobe -q mlx_compat", "exit status 1")];
        assert_eq!(outcome("test-x", SAYS_PASSED, false, &at_the_start), Outcome::Passed, "it may fail");
    }

    #[test]
    fn a_script_that_prints_an_error_has_not_passed() {
        let output = format!("\u{1b}[0;31mERROR: no rule\u{1b}[0;0m\n{SAYS_PASSED}");
        assert_eq!(outcome("test-x", &output, false, &[]), Outcome::Empty(vec!["ERROR: no rule".to_owned()]));
    }

    #[test]
    fn a_script_that_does_not_say_that_it_passed_has_the_errors_that_it_printed() {
        assert_eq!(outcome("test-x", "a\nERROR: b\nTEST FAILED\n", false, &[]), Outcome::Failed(vec!["b".into()]));
        assert_eq!(outcome("test-x", "a\nb\n", false, &[]), Outcome::Failed(vec!["b".into()]));
        assert_eq!(outcome("test-x", SAYS_PASSED, true, &[]), Outcome::TookTooLong);
        assert_eq!(result_of("test-x", "a\nb\n", false, &[]), "`b`");
    }

    #[test]
    fn the_counts_are_those_of_the_rows() {
        let mut table = Measured::parse(COLUMNS, "\n").unwrap();
        for (script, result) in [("b", PASSED.to_owned()), ("a", format!("{EMPTY}: x")), ("c", "needs y".to_owned())] {
            table.replace(script, [vec![result]], "commit a");
        }
        let text = section(&table);
        assert!(text.starts_with("\n**1 of 3 passed.** 1 more say so, and do not count.\n\n| script |"), "{text}");
        assert!(text.find("| a |") < text.find("| b |"), "{text}");
        assert_eq!(section(&Measured::parse(COLUMNS, &text).unwrap()), text);
    }
}
