//! What exploring a program came to, and the workers of a campaign, who find it out.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::budget::{BudgetShare, ScheduleBudget};
use crate::campaign::{Tally, Worker};
use crate::faults::Faults;
use crate::minimise::{Case, minimise, story, tell};
use crate::options::{Options, Strategy, Watch};
use crate::orders::{Orders, Shown};
use crate::program::Program;
use crate::story::Story;
use crate::telling::{Lesson, Teller, Telling};
use crate::token::{Token, TokenError};

/// What exploring a program came to; as JSON, what the parts of a campaign leave to be [merged](crate::merge()).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The program's name. In JSON it is called what the first programs were that were explored.
    #[serde(rename = "scenario")]
    pub program: String,
    /// The file that it was read from; empty if that is not known.
    #[serde(default)]
    pub file: String,
    /// Its contents, in short.
    #[serde(with = "hexadecimal")]
    pub fingerprint: u64,
    /// The version of the program.
    pub version: String,
    /// How schedules were chosen.
    pub strategy: String,
    /// Schedules run.
    pub schedules: u64,
    /// Every schedule with at most so many preemptions was met; none if not even those without.
    pub exhaustive_preemptions: Option<u8>,
    /// States that there was no room to keep, each time they were met: what follows from them was searched again each time,
    /// which took time and lost nothing.
    #[serde(default)]
    pub forgotten: u64,
    /// What was made to fail.
    pub faults: FaultsReport,
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// In milliseconds.
    pub elapsed_ms: u64,
    /// Which part of a campaign this is, counted from 1, and of how many.
    pub shard: [u32; 2],
    /// What the campaign was asked for, in short: reports of other campaigns do not belong together.
    pub campaign: String,
    /// It was ended before its time.
    pub interrupted: bool,
    /// The orders in which locks were taken, by the schedules that were the first to show them.
    #[serde(default)]
    pub lock_orders: Vec<Shown>,
}

/// How much was made to fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultsReport {
    /// `none`, `each` or `pairs`.
    pub mode: String,
    /// The places that can fail.
    pub places: usize,
    /// Bounded: with how many of these, or of these and any second one, every schedule without preemptions was met.
    /// Random strategies: with how many of these, or of the pairs of them, at least one schedule was run.
    #[serde(default)]
    pub tried: u64,
    /// Bounded: how many of these there are. Random strategies: how many of these, or pairs of them.
    #[serde(default)]
    pub plans: u64,
    /// With each of them, every schedule with at most so many preemptions was met.
    pub exhaustive_preemptions: Option<u8>,
}

/// What did not hold, and how to see it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: String,
    /// What was found.
    pub detail: String,
    /// What runs it again.
    pub token: String,
    /// The telling, for reports; not part of the JSON line.
    #[serde(skip)]
    pub story: Story,
}

/// A number as a string: as a number, programs that have floating-point numbers only would change it.
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
    /// What a campaign is asked for, in short.
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

/// Explores a program. `watch`: how others see how far it is, and stop it.
pub fn campaign<P: Program>(program: &P, options: &Options, watch: &Arc<Watch>) -> Report {
    let began = Instant::now();
    let jobs = options.jobs.max(1);
    let of = options.shard.1 * jobs;
    let bounded = options.strategy == Strategy::Bounded;
    let budget =
        ScheduleBudget::halves(options).filter(|_| bounded).map(|halves| Arc::new(ScheduleBudget::new(jobs, halves)));
    let (shared, found) = (Arc::new(program.clone()), Arc::new(AtomicBool::new(false)));
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|job| {
                let (program, watch, found) = (Arc::clone(&shared), Arc::clone(watch), Arc::clone(&found));
                // So that what a shard does does not depend on how many threads do it.
                let share = (options.shard.0 + options.shard.1 * job, of);
                let budget = budget.clone();
                scope.spawn(move || {
                    let budget = budget.map(|budget| BudgetShare::new(budget, job));
                    let teller = Teller::new(program, &[]);
                    let (last, lessons) = (RefCell::default(), Rc::default());
                    let job = (job, jobs);
                    Worker { teller, options, watch, found, share, job, began, last, lessons, budget }.work()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let failures = tallies.iter().flat_map(|tally| &tally.failures);
    // The one with the fewest failures asked for and the fewest switches is told.
    let simplest = failures.min_by_key(|failure| (failure.plan.len(), failure.deviations.len()));
    let violation = simplest.map(|failure| {
        let (program, failure) = (program.clone(), failure.clone());
        let case = Case { program, gone: Vec::new(), failure, whole: options.whole };
        let story = story(&if options.minimise { minimise(case, watch) } else { case });
        let (invariant, detail, token) = (story.invariant.clone(), story.detail.clone(), story.token.clone());
        Violation { invariant, detail, token, story }
    });
    let (lock_orders, inversion) =
        Orders::default().add(tallies.iter().flat_map(|tally| shown(program, options, tally)));
    // What one worker finds has been told; this is between two.
    let between = inversion.filter(|_| violation.is_none());
    let between = between.map(|inversion| inversion.violation(std::slice::from_ref(program)));
    let exhaustive = |of: fn(&Tally) -> Option<u8>| tallies.iter().map(of).min().flatten();
    let empty = Report::not_explored(program, options);
    Report {
        schedules: tallies.iter().map(|tally| tally.schedules).sum(),
        exhaustive_preemptions: exhaustive(|tally| tally.exhaustive),
        forgotten: tallies.iter().map(|tally| tally.forgotten).sum(),
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
        violations: violation.into_iter().chain(between).collect(),
        elapsed_ms: began.elapsed().as_millis() as u64,
        interrupted: watch.stop.load(std::sync::atomic::Ordering::Relaxed),
        lock_orders,
        ..empty
    }
}

impl Report {
    /// Of a program whose turn did not come before the campaign was interrupted.
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
            faults: FaultsReport {
                mode: options.faults.name().to_owned(),
                places: 0,
                tried: 0,
                plans: 0,
                exhaustive_preemptions: None,
            },
            violations: Vec::new(),
            elapsed_ms: 0,
            shard: [options.shard.0 + 1, options.shard.1],
            campaign: options.describe(),
            interrupted: true,
            lock_orders: Vec::new(),
        }
    }
}

/// What a worker has shown of the order of locks.
fn shown<P: Program>(program: &P, options: &Options, tally: &Tally) -> Vec<Shown> {
    let shown = |lesson: &Lesson| {
        let Lesson { telling: Telling { faults, deviations }, bound, orders } = lesson.clone();
        let token = Token { faults, deviations, whole: options.whole, bound, ..Token::of(program) };
        let orders = orders.iter().map(|edge| (edge.outer.to_owned(), edge.inner.to_owned())).collect();
        Shown { token: token.to_string(), orders }
    };
    tally.lessons.iter().map(shown).collect()
}

/// Tells the schedule of a token again: what happens, with the invariant that does not hold if there is one. `among`:
/// the programs there are; `whence`: where they are from, for errors.
///
/// # Errors
/// What the token is of is not among them, or has changed. All of it held, and it was not the schedule of the token, as
/// that has something in it that never came.
///
/// # Panics
/// The thread that tells it cannot be started.
pub fn replay<P: Program>(among: &[P], whence: &str, token: &Token) -> Result<Story, TokenError> {
    let first = token.first.iter().map(|first| first.program_among(among, whence)).collect::<Result<Vec<_>, _>>()?;
    let program = token.program_among(among, whence)?;
    // On a thread of its own: what an exploration remembers of others on this one is not to matter.
    let tell = || tell(&first, &program, token).0;
    let told = thread::scope(|scope| scope.spawn(tell).join().expect("telling does not panic"));
    if told.invariant.is_empty() && !told.unmet.is_empty() {
        return Err(TokenError::NotMet(told.unmet.join(", ").escape_debug().to_string()));
    }
    Ok(told)
}

/// A program starts this many threads at most, to be explored: what is known of threads is kept in as many bits as a number has.
pub const MOST_THREADS: usize = 128;
