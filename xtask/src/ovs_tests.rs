//! `cargo xtask ovs-tests`: NVIDIA's scripts in a lab, for the tables of `docs/compatibility.md`.
//!
//! Each script runs on a new card, in namespaces of its own, under strace; with `--in-vm`, in the virtual machine of `cargo
//! xtask vm`. A script says `TEST PASSED` although commands in it have failed, if it does not look at them: some say so although
//! nothing of what they are to show has happened. So a script counts as passed only if it says so, and each command about the
//! card that failed, and each error that it prints, is one that may be, with its reason ([`judged`]); and one about flow rules
//! that sends traffic only if a rule of the card was seen to carry a packet ([`record`]).

mod in_vm;
mod judged;
mod record;
mod select;
mod stage;
mod trace;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::docs::Generated;
use crate::page;
use crate::table::Measured;
use crate::workspace;
use record::{EMPTY, PASSED, Record};
use select::{COMMIT, Set};

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
    /// How long a script may take, in seconds. Without it 300, and 900 in the virtual machine
    #[arg(long)]
    limit_s: Option<u32>,
    /// The binary of `esw`. Without it, the release binary is built
    #[arg(long)]
    esw: Option<PathBuf>,
    /// Run them in the virtual machine of `cargo xtask vm`, whose kernel has Open vSwitch's datapath, tc's classifiers and actions
    #[arg(long, conflicts_with = "esw")]
    in_vm: bool,
    /// Keep what each script has shown in this folder, as NAME.json. The output and the traces, too, unless in the machine
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Leave out those of which `--keep` has something from an earlier run: many can be run piece by piece
    #[arg(long, requires = "keep")]
    resume: bool,
    /// Run nothing: judge what `--keep` has kept in this folder
    #[arg(long, value_name = "DIR")]
    again: Option<PathBuf>,
    /// Write the rows into the table of docs/compatibility.md
    #[arg(long)]
    write: bool,
    /// The folder with the scripts: print what each has shown, as a line of JSON. The virtual machine is started with this
    #[arg(long, hide = true)]
    scripts: Option<PathBuf>,
}

/// The columns of the table of the control plane.
const COLUMNS: &[&str] = &["script", "result", "at"];
/// The columns of the table of flow rules: of two kernels.
const COLUMNS_OF_TWO: &[&str] = &["script", "this kernel", "in the virtual machine", "at"];
/// What a row has of a kernel with which the script has not been run.
const NOT_RUN: &str = "-";
/// Between the times at which the two results of a row were measured.
const AND_IN_VM: &str = "; in the virtual machine: ";

impl Args {
    fn limit_s(&self) -> u32 {
        self.limit_s.unwrap_or(if self.in_vm { 900 } else { 300 })
    }

    /// The scripts of the set in a folder that are wanted.
    fn wanted(&self, scripts: &Path) -> Result<Vec<String>> {
        let all = self.set.scripts(scripts)?;
        let unknown: Vec<&String> = self.only.iter().filter(|name| !all.contains(name)).collect();
        ensure!(unknown.is_empty(), "commit {COMMIT} has no such scripts in this set: {unknown:?}");
        let is_kept = |name: &String| {
            let kept = self.keep.as_ref().filter(|_| self.resume);
            kept.is_some_and(|folder| folder.join(format!("{name}.json")).exists())
        };
        let is_wanted = |name: &String| (self.only.is_empty() || self.only.contains(name)) && !is_kept(name);
        Ok(all.into_iter().filter(is_wanted).collect())
    }
}

/// Runs the scripts, and prints and writes the rows.
///
/// # Errors
/// Something that is needed is missing; the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(scripts) = &args.scripts {
        return print_records(args, scripts);
    }
    let mut table = read(args.set)?;
    let at = page::stamp()?;
    let records = match &args.again {
        Some(kept) => kept_records(kept)?,
        None => measured(args)?,
    };
    for record in records {
        let result = record.result();
        println!("{}: {result}", record.name);
        replace(&mut table, args, &record.name, result, &at);
    }
    println!("{}", summary(args.set, &table));
    if args.write {
        args.set.section().write(&section(args.set, &table))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the scripts here or in the virtual machine, and keeps what they have shown if that is asked for.
fn measured(args: &Args) -> Result<Vec<Record>> {
    if let Some(kept) = &args.keep {
        fs::create_dir_all(kept).with_context(|| kept.display().to_string())?;
    }
    let keep = |record: &Record| {
        let Some(kept) = &args.keep else { return Ok(()) };
        let path = kept.join(format!("{}.json", record.name));
        fs::write(&path, serde_json::to_vec(record)?).with_context(|| path.display().to_string())
    };
    let mut records = if args.in_vm { in_vm::run(args, &keep)? } else { here(args, &keep)? };
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

/// What an earlier run has kept.
fn kept_records(folder: &Path) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read(&path).with_context(|| path.display().to_string())?;
            records.push(serde_json::from_slice::<Record>(&text).with_context(|| path.display().to_string())?);
        }
    }
    records.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(records)
}

fn here(args: &Args, keep: &(dyn Fn(&Record) -> Result<()> + Sync)) -> Result<Vec<Record>> {
    stage::ensure_possible()?;
    let esw = match &args.esw {
        Some(esw) => esw.canonicalize().with_context(|| esw.display().to_string())?,
        None => workspace::build_esw()?,
    };
    let place = std::env::temp_dir().join(format!("xtask-ovs-tests-{}", std::process::id()));
    let scripts = place.join("scripts");
    let out = args.keep.clone().unwrap_or_else(|| place.join("out"));
    let mut records = Vec::new();
    fs::create_dir_all(&place)?;
    let result = select::check_out(args.repository.as_deref(), &place, &scripts).and_then(|()| {
        run_all(args, &scripts, &esw, &out, |record| {
            keep(&record)?;
            records.push(record);
            Ok(())
        })
    });
    fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    result.map(|()| records)
}

/// Runs the scripts and prints what each has shown: what the virtual machine does.
fn print_records(args: &Args, scripts: &Path) -> Result<ExitCode> {
    stage::ensure_possible()?;
    let esw = workspace::find_program("esw").context("esw is not in PATH")?;
    run_all(args, scripts, &esw, Path::new("/tmp/ovs-tests"), |record| {
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        std::io::stdout().lock().write_all(&line)?;
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the scripts, `--jobs` at a time, and hands over what each has shown. `out`: the folder for their outputs and traces.
fn run_all(
    args: &Args,
    scripts: &Path,
    esw: &Path,
    out: &Path,
    done: impl FnMut(Record) -> Result<()> + Send,
) -> Result<()> {
    let queue = Mutex::new(args.wanted(scripts)?);
    if let Ok(mut queue) = queue.lock() {
        queue.reverse();
    }
    let done = Mutex::new(done);
    let one = |name: &str| -> Result<()> {
        let run = stage::run(name, scripts, esw, &out.join(name), args.limit_s())?;
        let record = Record::of(name, args.set, run, scripts, args.limit_s())?;
        match done.lock() {
            Ok(mut done) => done(record),
            Err(_) => Ok(()),
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1))
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        // The lock is not held while the script runs.
                        let next = queue.lock().ok().and_then(|mut queue| queue.pop());
                        let Some(name) = next else { break Ok(()) };
                        eprintln!("{name}");
                        if let Err(error) = one(&name) {
                            eprintln!("{name} could not be run: {error:#}");
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })
}

/// Reads a set's table from its page.
fn read(set: Set) -> Result<Measured> {
    let columns = if set == Set::Tc { COLUMNS_OF_TWO } else { COLUMNS };
    Measured::parse(columns, &set.section().read()?).context(set.section().page)
}

/// Replaces a script's row; in a table of two kernels, the half of it that was measured.
fn replace(table: &mut Measured, args: &Args, name: &str, result: String, at: &str) {
    let key = format!("`{name}`");
    if args.set == Set::Control {
        return table.replace(&key, [vec![result]], at);
    }
    let old = table.row(&key).map(|(cells, at)| (cells.to_vec(), at.to_owned()));
    let (mut cells, old_at) = old.unwrap_or_else(|| (vec![NOT_RUN.to_owned(); 2], String::new()));
    let (here, in_vm) = old_at.split_once(AND_IN_VM).unwrap_or((&old_at, NOT_RUN));
    cells[usize::from(args.in_vm)] = result;
    let (here, in_vm) = if args.in_vm { (here, at) } else { (at, in_vm) };
    let here = if here.is_empty() { NOT_RUN } else { here };
    table.replace(&key, [cells], &format!("{here}{AND_IN_VM}{in_vm}"));
}

/// The section: how many passed, and the table.
fn section(set: Set, table: &Measured) -> String {
    let mut keys = table.keys();
    keys.sort_unstable();
    format!("\n{}{}", summary(set, table), table.text(&keys))
}

/// A sentence with how many passed.
fn summary(set: Set, table: &Measured) -> String {
    let counts = |column: usize| {
        let results = || table.cells().map(move |cells| cells[column].as_str()).filter(|result| *result != NOT_RUN);
        let begins = |with: &str| results().filter(|result| result.starts_with(with)).count();
        (begins(PASSED), begins(EMPTY), results().count())
    };
    let (passed, empty, rows) = counts(0);
    if set == Set::Control {
        return format!("**{passed} of {rows} passed.** {empty} more say so, and do not count.\n");
    }
    let (passed_vm, empty_vm, rows_vm) = counts(1);
    format!(
        "**{passed_vm} of {rows_vm} passed in the virtual machine, {passed} of {rows} with this kernel.** \
         {empty_vm} and {empty} more say so, and do not count.\n"
    )
}

/// The sections with the counts that their rows have.
///
/// # Errors
/// The page cannot be read, or has no such tables.
pub fn documented() -> Result<Vec<Generated>> {
    let of = |set: Set| {
        let text = section(set, &read(set)?);
        Ok(Generated { section: set.section(), text, missing: Vec::new(), measured_by: set.measured_by() })
    };
    [Set::Control, Set::Tc].into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_are_those_of_the_rows() {
        let mut table = Measured::parse(COLUMNS, "\n").unwrap();
        for (script, result) in [("b", PASSED.to_owned()), ("a", format!("{EMPTY}: x")), ("c", "needs y".to_owned())] {
            table.replace(script, [vec![result]], "commit a");
        }
        let text = section(Set::Control, &table);
        assert!(text.starts_with("\n**1 of 3 passed.** 1 more say so, and do not count.\n\n| script |"), "{text}");
        assert!(text.find("| a |") < text.find("| b |"), "{text}");
        assert_eq!(section(Set::Control, &Measured::parse(COLUMNS, &text).unwrap()), text);
    }

    #[test]
    fn a_run_in_the_machine_leaves_what_this_kernel_has_shown() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let args = |words: &[&str]| <Line as clap::Parser>::parse_from([&["x", "tc"], words].concat()).args;
        let mut table = Measured::parse(COLUMNS_OF_TWO, "\n").unwrap();
        replace(&mut table, &args(&[]), "test-tc-a", "needs y".to_owned(), "commit a");
        replace(&mut table, &args(&["--in-vm"]), "test-tc-a", PASSED.to_owned(), "commit b");
        let text = section(Set::Tc, &table);
        assert!(text.contains("| `test-tc-a` | needs y | **passed** | 1 |"), "{text}");
        assert!(text.contains("1. commit a; in the virtual machine: commit b\n"), "{text}");
        assert!(text.contains("**1 of 1 passed in the virtual machine, 0 of 1 with this kernel.**"), "{text}");
    }
}
