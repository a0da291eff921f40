//! The result of exploring a program, and the workers of a campaign, which produce it.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::budget::{BudgetShare, ScheduleBudget};
use crate::campaign::{Failure, Tally, Worker};
use crate::execution::{Execution, Lesson, Prepared};
use crate::faults::Faults;
use crate::minimise::{Case, minimise, run_token, story};
use crate::options::{Options, Strategy, Watch};
use crate::orders::{Orders, ShownOrders};
use crate::portfolio::{Allowance, Portfolio, Search};
use crate::program::Program;
use crate::story::Story;
use crate::token::{Token, TokenError};

/// The result of exploring a program. As JSON, it is the output of a part of a campaign, to be
/// [merged](crate::merge()).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program's name. In JSON the field is called `scenario`, because scenarios were the first programs.
    #[serde(rename = "scenario")]
    pub program: String,
    /// The file from which it was read; empty if that is not known.
    #[serde(default)]
    pub file: String,
    /// A hash of its contents.
    #[serde(with = "hexadecimal")]
    pub fingerprint: u64,
    /// The version of the program.
    pub version: String,
    /// How schedules were chosen: the name of the [`Strategy`].
    pub strategy: String,
    /// Schedules run.
    pub schedules: u64,
    /// The bound up to which every schedule was met; `None` if not even all schedules without preemptions were.
    pub exhaustive_preemptions: Option<u8>,
    /// States that did not fit into memory, counted each time they were met. What follows from them was searched
    /// again each time, which took time and lost nothing.
    #[serde(default)]
    pub forgotten: u64,
    /// What was made to fail; with a portfolio, by its bounded search.
    pub faults: FaultsReport,
    /// The searches, in their order: several with a portfolio, otherwise one.
    #[serde(default)]
    pub searches: Vec<SearchReport>,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// The time that it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Which part of a campaign this is, counted from 1, and the number of parts.
    pub shard: [u32; 2],
    /// The options of the campaign, in a short form. Reports of different campaigns cannot be merged.
    pub campaign: String,
    /// It was stopped before it had finished.
    pub interrupted: bool,
    /// The orders in which locks were taken, with the schedules that were the first to show them.
    #[serde(default)]
    pub lock_orders: Vec<ShownOrders>,
}

/// The result of one search.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchReport {
    /// Its [name](Search::name).
    pub search: String,
    /// Schedules run; 0 if it was not begun.
    pub schedules: u64,
    /// The bound up to which every schedule was met; see [`Report::exhaustive_preemptions`].
    pub exhaustive_preemptions: Option<u8>,
    /// Every schedule that there is was met, whatever its number of preemptions, with every planned failure; in a part
    /// of a campaign, every one of its share. So there is nothing left for the searches after it, which are not begun
    /// then unless this is a part. A random search cannot know it.
    pub complete: bool,
    /// What was made to fail.
    pub faults: FaultsReport,
    /// The time that it took, in milliseconds, without minimising.
    pub elapsed_ms: u64,
}

/// How much was made to fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultsReport {
    /// `none`, `each` or `pairs`.
    pub mode: String,
    /// The number of places that can fail.
    pub places: usize,
    /// Bounded: with how many of these places (or pairs of them) every schedule without preemptions was met. Random
    /// strategies: with how many at least one schedule was run.
    #[serde(default)]
    pub tried: u64,
    /// Bounded: the number of these places. Random strategies: the number of these places, or of pairs.
    #[serde(default)]
    pub plans: u64,
    /// The bound up to which every schedule was met with each of them.
    pub exhaustive_preemptions: Option<u8>,
}

/// A violation: an invariant that did not hold, and how to see this again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: String,
    /// What was found instead.
    pub detail: String,
    /// The token that runs it again.
    pub token: String,
    /// The name of the search that found it; `None` if it appeared only when the orders of locks of several programs
    /// or parts were compared.
    #[serde(default)]
    pub found_by: Option<String>,
    /// Its story, for pages and columns; not part of the JSON line.
    #[serde(skip)]
    pub story: Story,
}

/// Writes a number as a string, because programs that have only floating-point numbers would change it otherwise.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(|_| D::Error::custom(format!("`{text}` is not a hexadecimal number")))
    }
}

impl Options {
    /// Returns the options of a campaign in a short form.
    pub fn describe(&self) -> String {
        let Self { strategy, preemptions, preemptions_with_faults, schedules, time, seed, depth, faults, .. } = self;
        let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        format!(
            "{} k{preemptions}/{preemptions_with_faults} n{} t{} s{seed} d{depth} {}{}",
            strategy.name(),
            number(*schedules),
            number(time.map(|time| time.as_secs())),
            faults.name(),
            match (self.whole, self.reduce) {
                (false, true) => "",
                (true, true) => " whole",
                (false, false) => " unreduced",
                (true, false) => " whole unreduced",
            }
        )
    }
}

/// Explores a program. By `watch` other threads see its progress and can stop it. There is an example at
/// [`Program`].
pub fn campaign<P: Program>(program: &P, options: &Options, watch: &Arc<Watch>) -> Report {
    let began = Instant::now();
    let mut report = Report { interrupted: false, ..Report::not_explored(program, options) };
    let (mut portfolio, mut orders) = (Portfolio::new(options, began), Orders::default());
    for index in 0..portfolio.searches().len() {
        let Some(allowance) = portfolio.allowance(index) else { continue };
        watch.search.store(index as u64, Ordering::Relaxed);
        watch.places.iter().for_each(|places| places.store(0, Ordering::Relaxed));
        let began = Instant::now();
        let tallies = search(program, &allowance, watch);
        let search = SearchReport::new(portfolio.searches()[index], &allowance.options, &tallies, began);
        portfolio.spend(search.schedules);
        let (shown, inversion) = orders.add(tallies.iter().flat_map(|tally| shown(program, options, tally)));
        report.lock_orders.extend(shown);
        report.forgotten += tallies.iter().map(|tally| tally.forgotten).sum::<u64>();
        // A finding of one worker comes before one between two workers or searches.
        let violation = simplest(&tallies).map(|failure| violation(program, failure, options, watch));
        let violation = violation.or_else(|| inversion.map(|found| found.violation(std::slice::from_ref(program))));
        report.violations.extend(violation.map(|found| Violation { found_by: Some(search.search.clone()), ..found }));
        // A part does not know whether the other parts have met all of theirs.
        let is_complete = search.complete && options.shard.1 == 1;
        let is_over = is_complete || !report.violations.is_empty() || watch.stop.load(Ordering::Relaxed);
        report.searches[index] = search;
        if is_over {
            break;
        }
    }
    report.schedules = report.searches.iter().map(|search| search.schedules).sum();
    // What is proved is proved by the bounded search, which is the first.
    report.exhaustive_preemptions = report.searches[0].exhaustive_preemptions;
    report.faults = report.searches[0].faults.clone();
    report.elapsed_ms = began.elapsed().as_millis() as u64;
    report.interrupted = watch.stop.load(Ordering::Relaxed);
    report
}

/// Runs one search, with as many workers as there are jobs.
fn search<P: Program>(program: &P, allowance: &Allowance, watch: &Arc<Watch>) -> Vec<Tally> {
    let (began, Allowance { options, spare }) = (Instant::now(), allowance);
    let jobs = options.jobs.max(1);
    let of = options.shard.1 * jobs;
    let bounded = options.strategy == Strategy::Bounded;
    let budget =
        ScheduleBudget::halves(options).filter(|_| bounded).map(|halves| Arc::new(ScheduleBudget::new(jobs, halves)));
    let (shared, found) = (Arc::new(program.clone()), Arc::new(AtomicBool::new(false)));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|job| {
                let (program, watch, found) = (Arc::clone(&shared), Arc::clone(watch), Arc::clone(&found));
                // So the work of a shard does not depend on its number of threads.
                let share = (options.shard.0 + options.shard.1 * job, of);
                let (budget, spare) = (budget.clone(), *spare);
                scope.spawn(move || {
                    let budget = budget.map(|budget| BudgetShare::new(budget, job));
                    let prepared = Prepared::new(program, &[]);
                    let (last, lessons) = (RefCell::default(), Rc::default());
                    let job = (job, jobs);
                    Worker { prepared, options, spare, watch, found, share, job, began, last, lessons, budget }.work()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Returns the failure with the fewest planned failures and the fewest switches.
fn simplest(tallies: &[Tally]) -> Option<&Failure> {
    let failures = tallies.iter().flat_map(|tally| &tally.failures);
    failures.min_by_key(|failure| (failure.plan.len(), failure.deviations.len()))
}

fn violation<P: Program>(program: &P, failure: &Failure, options: &Options, watch: &Watch) -> Violation {
    let (program, failure) = (program.clone(), failure.clone());
    let case = Case { program, gone: Vec::new(), failure, whole: options.whole };
    let story = story(&if options.minimise { minimise(case, watch) } else { case });
    let (invariant, detail, token) = (story.invariant.clone(), story.detail.clone(), story.token.clone());
    Violation { invariant, detail, token, found_by: None, story }
}

impl SearchReport {
    fn new(search: Search, options: &Options, tallies: &[Tally], began: Instant) -> Self {
        let exhaustive = |of: fn(&Tally) -> Option<u8>| tallies.iter().map(of).min().flatten();
        let empty = Self::not_begun(search, options);
        Self {
            schedules: tallies.iter().map(|tally| tally.schedules).sum(),
            exhaustive_preemptions: exhaustive(|tally| tally.exhaustive),
            complete: tallies.iter().all(|tally| tally.complete),
            faults: FaultsReport {
                places: tallies.iter().map(|tally| tally.places).max().unwrap_or_default(),
                tried: tallies.iter().map(|tally| tally.plans[0]).sum(),
                plans: tallies.iter().map(|tally| tally.plans[1]).max().unwrap_or_default(),
                exhaustive_preemptions: match options.faults {
                    Faults::None => None,
                    _ => exhaustive(|tally| tally.exhaustive_with_faults),
                },
                ..empty.faults
            },
            elapsed_ms: began.elapsed().as_millis() as u64,
            ..empty
        }
    }

    fn not_begun(search: Search, options: &Options) -> Self {
        let faults = FaultsReport { mode: options.faults.name().to_owned(), ..FaultsReport::default() };
        Self { search: search.name(), faults, ..Self::default() }
    }
}

impl Report {
    /// Makes the report of a program that was not explored before the campaign was interrupted.
    pub fn not_explored<P: Program>(program: &P, options: &Options) -> Self {
        Self {
            program: program.name().to_owned(),
            file: String::new(),
            fingerprint: program.fingerprint(),
            version: program.tool().version.to_owned(),
            strategy: options.strategy.name().to_owned(),
            schedules: 0,
            exhaustive_preemptions: None,
            forgotten: 0,
            faults: FaultsReport { mode: options.faults.name().to_owned(), ..FaultsReport::default() },
            searches: options.searches().into_iter().map(|search| SearchReport::not_begun(search, options)).collect(),
            violations: Vec::new(),
            elapsed_ms: 0,
            shard: [options.shard.0 + 1, options.shard.1],
            campaign: options.describe(),
            interrupted: true,
            lock_orders: Vec::new(),
        }
    }
}

/// Returns the orders of locks that a worker has shown.
fn shown<P: Program>(program: &P, options: &Options, tally: &Tally) -> Vec<ShownOrders> {
    let shown = |lesson: &Lesson| {
        let Lesson { execution: Execution { faults, deviations }, bound, orders } = lesson.clone();
        let token = Token { faults, deviations, whole: options.whole, bound, ..Token::of(program) };
        let orders = orders.iter().map(|edge| (edge.outer.to_owned(), edge.inner.to_owned())).collect();
        ShownOrders { token: token.to_string(), orders }
    };
    tally.lessons.iter().map(shown).collect()
}

/// Runs the schedule of a token again, and returns its story, with the invariant that does not hold if there is one.
/// `among`: the given programs. `whence`: where they are from, for errors.
///
/// # Errors
/// The token's program is not among the given ones, or has changed. Or everything held, and the schedule was not the
/// token's, because a part of the token did not occur.
///
/// # Panics
/// The thread that runs it cannot be started.
pub fn replay<P: Program>(among: &[P], whence: &str, token: &Token) -> Result<Story, TokenError> {
    let first = token.first.iter().map(|first| first.program_among(among, whence)).collect::<Result<Vec<_>, _>>()?;
    let program = token.program_among(among, whence)?;
    // It runs on a thread of its own, so that earlier explorations on this thread have no influence.
    let run = || run_token(&first, &program, token).0;
    let story = thread::scope(|scope| scope.spawn(run).join().expect("the replay does not panic"));
    if story.invariant.is_empty() && !story.unmet.is_empty() {
        return Err(TokenError::NotMet(story.unmet.join(", ").escape_debug().to_string()));
    }
    Ok(story)
}

/// The most threads that an explored program may start. Sets of threads are kept as the bits of one number.
pub const MOST_THREADS: usize = 128;
