//! `cargo xtask bench`: measures on this machine what the documentation promises about costs.
//!
//! A row compares two things that were measured in one run, in turns, so that other work of the machine affects both
//! equally. Times are medians over the turns, and a ratio is the median of the turns' ratios. A time that misses its target is
//! marked in its row and is never a failure. With `--write` the rows go into the table of `docs/performance.md`.
//!
//! A group of measurements is a module with a table `MEASUREMENTS`, which is listed in [`measurements`].

mod check;
mod control;
mod dataplane;
mod lab;
mod lag;
mod linux;
mod lockdep;
mod memory;
mod restart;

use std::fmt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::docs::Generated;
use crate::page::{self, Section};
use crate::table::{self, Measured};

/// Which rows, and how to print them.
#[derive(clap::Args)]
pub struct Args {
    /// Print the rows as JSON.
    #[arg(long)]
    json: bool,
    /// Write the rows into the table of docs/performance.md: those that were measured take the place of the same ones
    #[arg(long, conflicts_with = "json")]
    write: bool,
    /// Only the measurements whose name contains one of these.
    filter: Vec<String>,
}

/// A measurement.
pub struct Measurement {
    /// The name, as `GROUP: WHAT`.
    pub name: &'static str,
    /// Measures, and returns one or more rows.
    pub run: fn() -> Result<Vec<Row>>,
}

fn measurements() -> impl Iterator<Item = &'static Measurement> {
    let groups = [
        lockdep::MEASUREMENTS,
        memory::MEASUREMENTS,
        lag::MEASUREMENTS,
        check::MEASUREMENTS,
        linux::MEASUREMENTS,
        control::MEASUREMENTS,
        lab::MEASUREMENTS,
        restart::MEASUREMENTS,
        dataplane::MEASUREMENTS,
    ];
    groups.into_iter().flatten()
}

/// A number with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantity {
    /// The number.
    pub value: f64,
    /// The unit.
    pub unit: &'static str,
}

impl Quantity {
    /// The nanoseconds for each of `n`.
    pub fn nanos_each(total: Duration, n: usize) -> Self {
        Self { value: total.as_nanos() as f64 / n as f64, unit: "ns" }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} {}", self.value, self.unit)
    }
}

/// The target of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At most this multiple of what it is compared with.
    RatioAtMost(f64),
    /// At least this multiple of what it is compared with.
    RatioAtLeast(f64),
    /// At most this quantity.
    AtMost(Quantity),
    /// At least this quantity.
    AtLeast(Quantity),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtMost(times) => write!(f, "<= {times}x"),
            Self::RatioAtLeast(times) => write!(f, ">= {times}x"),
            Self::AtMost(quantity) => write!(f, "<= {quantity}"),
            Self::AtLeast(quantity) => write!(f, ">= {quantity}"),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The result; `None` if it could not be measured here, and then `compared_with` has the reason.
    pub ours: Option<Quantity>,
    /// What it is compared with, and the result of that.
    pub compared_with: String,
    /// The result as a multiple of that.
    pub ratio: Option<f64>,
    /// The target; `None` if the row is for information.
    pub target: Option<Target>,
    /// Whether it meets the target.
    pub met: Option<bool>,
}

impl Row {
    /// A row of two things that were measured together.
    pub fn compared(what: String, ours: Quantity, with: &str, theirs: Quantity, ratio: f64) -> Self {
        Self {
            what,
            ours: Some(ours),
            compared_with: format!("{with}: {theirs}"),
            ratio: Some(ratio),
            target: None,
            met: None,
        }
    }

    /// A row of one thing, without a comparison.
    pub fn alone(what: String, ours: Quantity) -> Self {
        Self { what, ours: Some(ours), compared_with: String::new(), ratio: None, target: None, met: None }
    }

    /// A row for what cannot be measured here.
    pub fn unavailable(what: String, why: String) -> Self {
        Self { what, ours: None, compared_with: format!("not available: {why}"), ratio: None, target: None, met: None }
    }

    /// The row with a target, and whether it meets it.
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self.met = match target {
            Target::RatioAtMost(times) => self.ratio.map(|ratio| ratio <= times),
            Target::RatioAtLeast(times) => self.ratio.map(|ratio| ratio >= times),
            Target::AtMost(most) => self.ours.map(|ours| ours.value <= most.value),
            Target::AtLeast(least) => self.ours.map(|ours| ours.value >= least.value),
        };
        self
    }

    fn cells(&self) -> [String; 6] {
        let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
        [
            self.what.clone(),
            or_dash(self.ours.map(|q| q.to_string())),
            or_dash(Some(self.compared_with.clone()).filter(|with| !with.is_empty())),
            or_dash(self.ratio.map(|ratio| format!("{ratio:.2}x"))),
            or_dash(self.target.map(|target| target.to_string())),
            or_dash(self.met.map(|met| if met { "yes" } else { "NO" }.to_owned())),
        ]
    }
}

/// Runs the selected measurements, and prints or writes their rows.
///
/// # Errors
/// No measurement has such a name, or one fails.
pub fn run(args: &Args) -> Result<()> {
    let chosen: Vec<_> = measurements()
        .filter(|m| args.filter.is_empty() || args.filter.iter().any(|f| m.name.contains(f.as_str())))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no measurement has a name with that in it; the names are:\n  {}",
        names().join("\n  ")
    );
    let at = page::stamp()?;
    let mut measured = Vec::new();
    for measurement in chosen {
        eprintln!("measuring {}", measurement.name);
        measured.push((measurement.name, (measurement.run)().with_context(|| measurement.name)?));
    }
    if args.write {
        write(&measured, &at)?;
    }
    let rows: Vec<Row> = measured.into_iter().flat_map(|(_, rows)| rows).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", text_table(&rows));
    }
    Ok(())
}

/// The table that `--write` writes.
const SECTION: Section = Section { page: "docs/performance.md", name: "bench" };
/// Its columns. The first is what `cargo xtask bench` takes to measure a row again.
const COLUMNS: &[&str] = &["measurement", "what", "ours", "compared with", "ratio", "to reach", "met", "at"];

/// Replaces the rows of these measurements on the page. A measurement that is not possible on this machine does not
/// replace what was measured on another.
fn write(measured: &[(&str, Vec<Row>)], at: &str) -> Result<()> {
    let mut table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    for (name, rows) in measured {
        if rows.iter().any(|row| row.ours.is_some()) {
            table.replace(name, rows.iter().map(|row| row.cells().to_vec()), at);
        } else {
            eprintln!("{name}: could not be measured here; its rows in {} stay as they are", SECTION.page);
        }
    }
    SECTION.write(&table.text(&names()))?;
    Ok(())
}

fn names() -> Vec<&'static str> {
    measurements().map(|measurement| measurement.name).collect()
}

/// The section without rows of measurements that do not exist any more; and the measurements without rows.
///
/// # Errors
/// The page cannot be read, or has no such table.
pub fn documented() -> Result<Generated> {
    let table = Measured::parse(COLUMNS, &SECTION.read()?).context(SECTION.page)?;
    let names = names();
    let text = table.text(&names);
    let missing = names.into_iter().filter(|name| !table.has(name)).map(str::to_owned).collect();
    Ok(Generated { section: SECTION, text, missing, measured_by: "cargo xtask bench --write" })
}

fn text_table(rows: &[Row]) -> String {
    let head = ["what", "ours", "compared with", "ratio", "target", "met"].map(str::to_owned);
    table::aligned(&std::iter::once(head).chain(rows.iter().map(Row::cells)).collect::<Vec<_>>())
}

/// The result of a comparison in turns.
pub struct Turns {
    /// The median time of a turn of ours.
    pub ours: Duration,
    /// The median time of a turn of theirs.
    pub theirs: Duration,
    /// The median of the ratios of two consecutive turns.
    pub ratio: f64,
}

/// Runs the two in turns, after one turn of each that does not count. Each returns its time, which excludes the preparation
/// of a turn.
pub fn by_turns(turns: usize, mut ours: impl FnMut() -> Duration, mut theirs: impl FnMut() -> Duration) -> Turns {
    ours();
    theirs();
    let pairs: Vec<_> = (0..turns)
        .map(|turn| {
            // The second one finds the machine as the first has left it; so they also take turns at being first.
            if turn % 2 == 0 {
                let ours = ours();
                (ours, theirs())
            } else {
                let theirs = theirs();
                (ours(), theirs)
            }
        })
        .collect();
    Turns {
        ours: median(pairs.iter().map(|(ours, _)| *ours)),
        theirs: median(pairs.iter().map(|(_, theirs)| *theirs)),
        ratio: median(pairs.iter().map(|(o, t)| OrderedRatio(o.as_secs_f64() / t.as_secs_f64()))).0,
    }
}

#[derive(Clone, Copy)]
struct OrderedRatio(f64);

impl PartialEq for OrderedRatio {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for OrderedRatio {}
impl PartialOrd for OrderedRatio {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for OrderedRatio {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The median of a sequence, which must not be empty.
fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort();
    values[values.len() / 2]
}

/// A part of a measurement that needs a process of its own: to be counted, or to have its memory
/// measured.
#[derive(clap::Args)]
pub struct Child {
    part: Part,
    /// How much of the part.
    n: usize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    /// `n` times locking and unlocking ours.
    LockOurs,
    /// The same with `parking_lot`'s.
    LockTheirs,
    /// A card of `n` vports in switchdev mode and back; prints the process's peak memory in bytes.
    MemoryPeak,
    /// A card of real netdevs with `n` VFs beside iproute2; prints the times as JSON.
    LinuxCard,
    /// A card of real netdevs with `n` VFs, and pairs alone; prints the times as JSON.
    ManyVfs,
    /// The tools in a lab with a card of `n` VFs, and outside; prints the times as JSON.
    LabTools,
    /// Programs that do not look at a card, in a lab and outside; prints the times as JSON.
    LabPrograms,
    /// `n` filters in a lab, and of the kernel outside; prints the times as JSON.
    LabFilters,
    /// Traffic between two VFs by flow rules and over bridges; prints `n` figures of each as JSON.
    DataplaneTraffic,
    /// Runs commands for the tools and programs in a lab.
    Commands,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::LockOurs => "lock-ours",
            Self::LockTheirs => "lock-theirs",
            Self::MemoryPeak => "memory-peak",
            Self::LinuxCard => "linux-card",
            Self::ManyVfs => "many-vfs",
            Self::LabTools => "lab-tools",
            Self::LabPrograms => "lab-programs",
            Self::LabFilters => "lab-filters",
            Self::DataplaneTraffic => "dataplane-traffic",
            Self::Commands => "commands",
        }
    }
}

impl Child {
    /// Runs the part.
    ///
    /// # Errors
    /// The part fails.
    pub fn run(&self) -> Result<()> {
        match self.part {
            Part::LockOurs => lockdep::lock_ours(self.n),
            Part::LockTheirs => lockdep::lock_theirs(self.n),
            Part::MemoryPeak => println!("{}", memory::peak(self.n)?),
            Part::ManyVfs => println!("{}", linux::measure_many(self.n)?),
            Part::LinuxCard => println!("{}", linux::measure(self.n)?),
            Part::LabTools => println!("{}", lab::measure_tools(self.n)?),
            Part::LabPrograms => println!("{}", lab::measure_programs(self.n)?),
            Part::LabFilters => println!("{}", lab::filters::measure(self.n)?),
            Part::DataplaneTraffic => println!("{}", dataplane::measure(self.n)?),
            Part::Commands => lab::serve()?,
        }
        Ok(())
    }
}

/// Runs this program as the child of a measurement. `under`: a command prefix that it runs with.
fn child(under: &[&str], part: Part, n: usize) -> Result<std::process::Output> {
    let this = std::env::current_exe()?;
    let mut command = match under {
        [] => Command::new(&this),
        [program, options @ ..] => {
            let mut command = Command::new(program);
            command.args(options).arg(&this);
            command
        }
    };
    let output = command
        .args(["bench-child", part.name(), &n.to_string()])
        .output()
        .with_context(|| format!("starting {}", under.first().unwrap_or(&"a child")))?;
    ensure!(output.status.success(), "{} {}: {}", part.name(), output.status, String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_its_target() {
        let ns = |value| Quantity { value, unit: "ns" };
        let row = |ratio| Row::compared("a lock".to_owned(), ns(10.0), "bare", ns(9.0), ratio);
        assert_eq!(row(1.1).met, None);
        assert_eq!(row(1.1).target(Target::RatioAtMost(1.15)).met, Some(true));
        assert_eq!(row(1.2).target(Target::RatioAtMost(1.15)).met, Some(false));
        assert_eq!(row(1.2).target(Target::RatioAtLeast(1.15)).met, Some(true));
        assert_eq!(row(1.1).target(Target::RatioAtLeast(1.15)).met, Some(false));
        let alone = Row::alone("memory".to_owned(), ns(10.0));
        assert_eq!(alone.clone().target(Target::AtMost(ns(9.0))).met, Some(false));
        let none = Row::unavailable("it".to_owned(), "no such tool".to_owned());
        assert_eq!(none.target(Target::RatioAtMost(1.0)).met, None);
    }

    #[test]
    fn a_table_lines_up() {
        let ns = |value| Quantity { value, unit: "ns" };
        let rows = [
            Row::compared("a lock".to_owned(), ns(10.0), "bare", ns(9.0), 1.111).target(Target::RatioAtMost(1.15)),
            Row::unavailable("counted".to_owned(), "no such tool".to_owned()),
        ];
        assert_eq!(
            text_table(&rows),
            "\
what     ours     compared with                ratio  target    met
a lock   10.0 ns  bare: 9.0 ns                 1.11x  <= 1.15x  yes
counted  -        not available: no such tool  -      -         -
"
        );
    }

    #[test]
    fn turns_alternate_and_the_first_of_each_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let turn = |name, ms: &mut u64| {
            order.borrow_mut().push(name);
            *ms += 1;
            Duration::from_millis(*ms)
        };
        let (mut ours, mut theirs) = (0, 10);
        let turns = by_turns(3, || turn('o', &mut ours), || turn('t', &mut theirs));
        assert_eq!(order.into_inner(), "otottoot");
        assert_eq!(turns.ours, Duration::from_millis(3));
        assert_eq!(turns.theirs, Duration::from_millis(13));
        assert!((turns.ratio - 3.0 / 13.0).abs() < 1e-9);
    }
}
