//! `cargo xtask mutants`: planted bugs, each of which must be caught.
//!
//! Each patch in `mutants/` is applied to a copy of the tree, which is built, and its scenario is explored. It is caught if
//! the exploration breaks the invariant in its [`header`], or if the compiler rejects it with the error in its header. A
//! mutant that something else catches, or a patch that does not apply, is a failure.

mod explore;
mod generated;
mod header;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::docs::Generated;
use crate::page::Section;
use crate::patched::{self, Build, Patched, Profile};
use crate::refresh::{self, Kind};
use crate::table;
use crate::workspace::root;

use explore::{Explored, Found, Round};
use header::{CaughtBy, Mutant};

/// The limit for the median time of exploring a mutant.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which mutants, and how to print the results.
#[derive(clap::Args)]
pub struct Args {
    /// Print one line of JSON for each mutant
    #[arg(long)]
    json: bool,
    /// Explore each mutant with N seeds, and print medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// For each invariant, and for the compiler, only the first mutant that it catches. They are built without optimisation,
    /// as building is what takes the time.
    #[arg(long)]
    one_per_invariant: bool,
    /// Explore with this strategy alone, for as long as `esw check` does by default: to compare strategies
    #[arg(long, value_enum, value_name = "NAME")]
    strategy: Option<explore::Alone>,
    /// Instead of their scenarios, explore random stories on one core, and say how many of the bugs those find
    #[arg(long, conflicts_with_all = ["seeds", "one_per_invariant", "strategy"])]
    generated: bool,
    /// With --generated: for so many seconds each
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "generated", value_parser = clap::value_parser!(u64).range(1..))]
    time: u64,
    /// With --generated: where random choices start from
    #[arg(long, value_name = "N", default_value_t = 1, requires = "generated")]
    seed: u64,
    /// With --generated: write the rows into the table of docs/verification.md
    #[arg(long, requires = "generated")]
    write: bool,
    #[command(flatten)]
    refresh: refresh::Args,
    /// Only mutants whose name contains one of these.
    name: Vec<String>,
}

/// The result for a mutant.
#[derive(Debug, Serialize)]
struct Outcome {
    mutant: String,
    undoes: String,
    /// The scenarios in its header.
    scenario: Option<String>,
    invariant: String,
    /// Whether the invariant in its header caught it.
    caught: bool,
    /// What caught it, or why nothing did.
    by: String,
    detail: String,
    /// The token that replays the failing schedule, in this build.
    token: String,
    /// The number of schedules; the median of all seeds.
    schedules: u64,
    /// The time of exploring; the median of all seeds.
    elapsed_ms: u64,
    build_ms: u64,
}

/// Plants the bugs. The exit status is 1 if one is not caught.
///
/// # Errors
/// No mutant has such a name, a header is invalid, or the tree cannot be copied.
pub fn run(args: &Args) -> Result<ExitCode> {
    let mutants = selected(args)?;
    let patches: Vec<_> = mutants.iter().map(|mutant| mutant.patch.clone()).collect();
    if let Some(done) = args.refresh.run(root(), &patches, Kind::Apart)? {
        return Ok(done);
    }
    if args.generated {
        let Args { time: seconds, seed, write, json, .. } = *args;
        return generated::run(&mutants, generated::Options { seconds, seed, write, json });
    }
    let profile = if args.one_per_invariant { Profile::Unoptimised } else { Profile::Optimised };
    let copy = Patched::new("mutants", profile)?;
    let rounds = match args.strategy {
        Some(alone) => vec![alone.round(profile.slowdown())],
        None => explore::rounds(profile.slowdown()).to_vec(),
    };
    let began = Instant::now();
    let mut failed = control(&copy, &mutants, args)?;
    let mut caught = 0;
    for mutant in &mutants {
        let outcome = plant(&copy, mutant, &rounds, args.seeds)?;
        let slow = args.seeds > 1 && Duration::from_millis(outcome.elapsed_ms) >= PATIENCE;
        let missed = !outcome.caught || slow;
        failed += usize::from(missed);
        caught += usize::from(!missed);
        if args.json {
            println!("{}", serde_json::to_string(&outcome)?);
        } else {
            print(&outcome, slow);
        }
    }
    let summary = format!("{caught} of {} caught, in {} s", mutants.len(), began.elapsed().as_secs());
    if args.json {
        eprintln!("{summary}")
    } else {
        println!("{summary}")
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The list of mutants in the README of their directory.
const SECTION: Section = Section { page: "mutants/README.md", name: "mutants" };

/// The list of mutants, from their headers.
///
/// # Errors
/// A patch cannot be read, or its header cannot be used.
pub fn documented() -> Result<Generated> {
    let rows = all()?.into_iter().map(|mutant| {
        let (by, scenarios) = match &mutant.caught_by {
            CaughtBy::Compiler { error } => {
                let code = error.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| is_error_code(word));
                (code.map_or_else(|| "compiler".to_owned(), |code| format!("compiler (`{code}`)")), String::new())
            }
            CaughtBy::Exploring { scenarios, invariant, faults, whole } => {
                let between = if scenarios.len() > 1 { ", between the two" } else { "" };
                let failures = if *faults { ", each failure" } else { "" };
                let whole = if *whole { ", bring-up and take-down too" } else { "" };
                (format!("{invariant}{between}"), format!("{}{failures}{whole}", scenarios.join(", ")))
            }
        };
        vec![format!("`{}`", mutant.name), mutant.undoes, by, scenarios]
    });
    let text = format!("\n{}\n", table::markdown(&["mutant", "undoes", "caught by", "in"], rows));
    Ok(Generated { section: SECTION, text, missing: Vec::new(), measured_by: "" })
}

/// Whether a word is the code of an error of the compiler, such as `E0277`.
fn is_error_code(word: &str) -> bool {
    word.strip_prefix('E').is_some_and(|digits| digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_digit()))
}

fn all() -> Result<Vec<Mutant>> {
    patched::patches(&root().join("mutants"))?.iter().map(|patch| Mutant::read(patch)).collect()
}

fn selected(args: &Args) -> Result<Vec<Mutant>> {
    let mut mutants = all()?;
    for name in &args.name {
        ensure!(
            mutants.iter().any(|mutant| mutant.name.contains(name)),
            "{name}: no mutant has a name with this in it"
        );
    }
    mutants.retain(|mutant| args.name.is_empty() || args.name.iter().any(|name| mutant.name.contains(name)));
    if args.one_per_invariant {
        let mut seen = BTreeSet::new();
        mutants.retain(|mutant| seen.insert(mutant.invariant().to_owned()));
    }
    Ok(mutants)
}

/// Explores the unchanged tree in the scenarios of these mutants: a scenario that fails there proves nothing. Returns how
/// many fail.
fn control(copy: &Patched, mutants: &[Mutant], args: &Args) -> Result<usize> {
    let stories: BTreeSet<(&[String], bool, bool)> = mutants.iter().filter_map(Mutant::story).collect();
    if stories.is_empty() {
        return Ok(0);
    }
    copy.set(&[])?;
    let explorer = match copy.build_explorer(&["lockdep/mutant"])?.0 {
        Build::Built(explorer) => explorer,
        Build::Rejected(said) => bail!("the tree itself does not compile: {}", errors(&said)),
    };
    // Without a mutant the time is always used up: it is not multiplied.
    let rounds = explore::rounds(1);
    let rounds = if args.seeds > 1 && args.strategy.is_none() { &rounds[..] } else { &rounds[..1] };
    let (mut schedules, mut failed) = (0, 0);
    for (scenarios, faults, whole) in &stories {
        let (files, scenario) = (copy.scenarios(scenarios), scenarios.join(", "));
        let explored = explore::explore(&explorer, &files, *faults, *whole, 1, rounds).context(scenario.clone())?;
        schedules += explored.schedules;
        if let Some(Found { invariant, detail, .. }) = explored.found {
            failed += 1;
            eprintln!("{scenario} does not hold without any mutant: {invariant}: {detail}");
        }
    }
    if !args.json {
        println!("held       without a mutant: {} stories in {schedules} schedules", stories.len() - failed);
    }
    Ok(failed)
}

fn plant(copy: &Patched, mutant: &Mutant, rounds: &[Round], seeds: u64) -> Result<Outcome> {
    let mut outcome = Outcome {
        mutant: mutant.name.clone(),
        undoes: mutant.undoes.clone(),
        scenario: Some(mutant.scenarios().join(", ")).filter(|names| !names.is_empty()),
        invariant: mutant.invariant().to_owned(),
        caught: false,
        by: String::new(),
        detail: String::new(),
        token: String::new(),
        schedules: 0,
        elapsed_ms: 0,
        build_ms: 0,
    };
    if let Err(error) = copy.set(&[&mutant.patch]) {
        let error = error.downcast::<patched::DoesNotApply>()?;
        (outcome.by, outcome.detail) = ("nothing: the patch does not apply".to_owned(), error.to_string());
        return Ok(outcome);
    }
    let (build, took) = copy.build_explorer(&["lockdep/mutant"])?;
    outcome.build_ms = took.as_millis() as u64;
    match (build, &mutant.caught_by) {
        (Build::Rejected(said), CaughtBy::Compiler { error }) => {
            outcome.caught = says(&said, error);
            outcome.by = "compiler".to_owned();
            outcome.detail = errors(&said);
        }
        (Build::Rejected(said), CaughtBy::Exploring { .. }) => {
            (outcome.by, outcome.detail) = ("compiler".to_owned(), errors(&said));
        }
        (Build::Built(_), CaughtBy::Compiler { .. }) => outcome.by = "nothing: it compiles".to_owned(),
        (Build::Built(explorer), CaughtBy::Exploring { scenarios, invariant, faults, whole }) => {
            let files = copy.scenarios(scenarios);
            let explore = |seed| explore::explore(&explorer, &files, *faults, *whole, seed, rounds);
            let runs = (1..=seeds).map(explore);
            let mut runs = runs.collect::<Result<Vec<Explored>>>().with_context(|| mutant.name.clone())?;
            runs.sort_by_key(|run| (run.found.as_ref().is_none_or(|found| found.invariant != *invariant), run.elapsed));
            let last = runs.last().and_then(|run| run.found.clone());
            let nothing = Found { invariant: "nothing".to_owned(), ..Found::default() };
            let Found { invariant: by, detail, token } = last.unwrap_or(nothing);
            outcome.caught = by == *invariant;
            (outcome.by, outcome.detail) = (by, detail);
            if !token.is_empty() {
                let shown = explore::replay(&explorer, &files, &token).with_context(|| mutant.name.clone())?;
                if shown != outcome.by {
                    outcome.caught = false;
                    outcome.detail = format!("its token shows {}", if shown.is_empty() { "nothing" } else { &shown });
                }
                outcome.token = token;
            }
            let median = &runs[runs.len() / 2];
            (outcome.schedules, outcome.elapsed_ms) = (median.schedules, median.elapsed.as_millis() as u64);
        }
    }
    Ok(outcome)
}

/// Whether the compiler's messages contain each part of `error`, regardless of line breaks.
fn says(said: &str, error: &str) -> bool {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    error.split("; ").all(|part| words(said).contains(&words(part)))
}

/// The lines of the compiler's messages that begin an error.
fn errors(said: &str) -> String {
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error[")).collect();
    if errors.is_empty() { said.trim().to_owned() } else { errors.join("; ") }
}

fn print(outcome: &Outcome, slow: bool) {
    let Outcome { mutant, by, schedules, elapsed_ms, build_ms, .. } = outcome;
    let verdict = match (outcome.caught, slow) {
        (true, false) => "caught",
        (true, true) => "SLOWLY",
        (false, _) => "NOT CAUGHT",
    };
    let (explored, built) = (*elapsed_ms as f64 / 1e3, *build_ms as f64 / 1e3);
    println!("{verdict:<10} {mutant:<44} {by:<26} {schedules:>7} schedules {explored:>7.2} s  (built in {built:.1} s)");
    if !outcome.caught {
        println!("           it should be caught by {}; {}", outcome.invariant, outcome.detail);
    }
}

#[cfg(test)]
mod tests {
    use eswitch::inspect::INVARIANTS;

    use super::*;

    #[test]
    fn every_header_is_whole_and_names_a_scenario_there_is() {
        for mutant in all().unwrap() {
            for scenario in mutant.scenarios() {
                let file = root().join("scenarios").join(scenario).with_extension("toml");
                assert!(file.is_file(), "{}: {} is not there", mutant.name, file.display());
            }
        }
    }

    #[test]
    fn each_invariant_has_a_mutant() {
        let broken: BTreeSet<String> = all().unwrap().iter().map(|mutant| mutant.invariant().to_owned()).collect();
        let unbroken: Vec<_> = INVARIANTS.iter().filter(|invariant| !broken.contains(invariant.name)).collect();
        assert!(unbroken.is_empty(), "{unbroken:?}");
    }

    #[test]
    fn every_patch_applies_to_the_tree() {
        for mutant in all().unwrap() {
            patched::applies(&mutant.patch).unwrap();
        }
    }

    #[test]
    fn what_the_compiler_says_is_found_over_broken_lines() {
        let said = "error[E0277]: the trait bound `Lag: X`\n   is not satisfied\nwarning: other\n";
        assert!(says(said, "error[E0277]: the trait bound `Lag: X` is not satisfied"));
        assert!(says(said, "error[E0277]; `Lag: X` is not satisfied"));
        assert!(!says(said, "error[E0277]; `Lag: Y` is not satisfied"));
        assert_eq!(errors(said), "error[E0277]: the trait bound `Lag: X`");
    }
}
