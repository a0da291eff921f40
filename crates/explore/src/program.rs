//! What the explorer needs to know of a program, and what it gives it.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use lockdep::{Domain, Halt, Locked, Unlocked};

use crate::telling::Found;

/// A program that can be run again and again, under a scheduler that decides every interleaving.
///
/// A program makes every lock, thread, condition variable and atomic that it uses with `lockdep`, while it runs, and reads
/// neither a clock nor anything else that could differ between two runs: what it does depends on the schedule and on
/// [what is made to fail](lockdep::Locked::fails), and on nothing else. [`validate_states`](crate::validate_states) tests that
/// it does.
///
/// Three methods are all that a program needs. The others tell the explorer how to make a failure small, and how to
/// speak of it. A closure is a program, too: see [`check`](crate::check()).
///
/// ```
/// use explore::{Found, Options, Program, Run, campaign, fingerprint};
/// use lockdep::{AtomicU64, Locked, Unlocked};
///
/// /// Threads that add to a number, in a way that loses some of what they add.
/// #[derive(Clone)]
/// struct Adders(u64);
///
/// impl Program for Adders {
///     fn name(&self) -> &str {
///         "adders"
///     }
///
///     fn fingerprint(&self) -> u64 {
///         fingerprint(&format!("adders {}", self.0))
///     }
///
///     fn run(&self, cx: &mut Locked<'_, Unlocked>, _: &Run) -> Vec<Found> {
///         let sum = std::sync::Arc::new(AtomicU64::new(0));
///         let threads: Vec<_> = (0..self.0)
///             .map(|_| {
///                 let sum = std::sync::Arc::clone(&sum);
///                 cx.spawn("adder", move |_| sum.store(sum.load() + 1))
///             })
///             .collect();
///         for thread in threads {
///             thread.join(cx).unwrap();
///         }
///         match sum.load() {
///             sum if sum == self.0 => Vec::new(),
///             sum => vec![Found::new("nothing-lost", format!("the sum of {} is {sum}", self.0))],
///         }
///     }
/// }
///
/// let report = campaign(&Adders(2), &Options::default(), &Default::default());
/// assert_eq!(report.violations[0].invariant, "nothing-lost");
/// assert_eq!(report.violations[0].detail, "the sum of 2 is 1");
/// ```
pub trait Program: Clone + Send + Sync + 'static {
    /// Its name, by which tokens and reports find it again.
    fn name(&self) -> &str;

    /// A number for what it contains: another one for a program that may have other schedules. It must be the same on every
    /// machine and with every compiler, as tokens and the parts of a campaign carry it: see [`fingerprint`](crate::fingerprint).
    fn fingerprint(&self) -> u64;

    /// Runs it once and says what did not hold. What the checker of locks has to [report](lockdep::Report), a deadlock and
    /// a panic need not be said.
    fn run(&self, cx: &mut Locked<'_, Unlocked>, run: &Run) -> Vec<Found>;

    /// The tool that its tokens are for, and how that speaks of programs.
    fn tool(&self) -> Tool {
        Tool::default()
    }

    /// The steps that can be left out, to make a failure small.
    fn parts(&self) -> Vec<Part> {
        Vec::new()
    }

    /// The program without some of its steps. Threads that have none left are not started.
    fn without(&self, steps: &[StepId]) -> Self {
        debug_assert!(steps.is_empty(), "{}: a program with parts says how to leave their steps out", self.name());
        self.clone()
    }

    /// Whether this means nothing for a program that lacks steps: what the program itself says should come of the whole.
    fn needs_every_step(&self, found: &Found) -> bool {
        let _ = found;
        false
    }

    /// Whether this may be a consequence of something else that was found: that is told first.
    fn is_consequence(&self, found: &Found) -> bool {
        let _ = found;
        false
    }

    /// What is found when an execution is given up.
    fn halted(&self, halt: &Halt) -> Found {
        Found::new(if matches!(halt, Halt::Panic(_)) { "panic" } else { "progress" }, halt.to_string())
    }

    /// Whether a [note](lockdep::note) of this kind belongs into the story of what was found first, if anything was.
    fn tells(&self, note: &str, found: Option<&Found>) -> bool {
        let _ = (note, found);
        true
    }

    /// Whether it marks, by [`focus`](lockdep::focus), what is to have more than one order. If it does not, everything has.
    fn is_focused(&self) -> bool {
        false
    }

    /// Classes of locks that are always worth telling, outermost first: of the others a story leaves out what nobody waits for.
    /// With none, nothing is left out.
    fn ordered_classes(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// A step of a program: its [part](Part), and which step of that part, from 0.
pub type StepId = (u16, u16);

/// Some steps, one after the other, that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, by which tokens name it.
    pub id: u16,
    /// How many steps it has.
    pub steps: u16,
    /// It is a thread. Of all threads' steps at least one is always left.
    pub is_thread: bool,
}

/// A tool that explores programs, as its tokens and what it prints name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// What its tokens begin with: lower-case letters.
    pub name: &'static str,
    /// Its version. A token is of one version: in another, a program may have other schedules.
    pub version: &'static str,
    /// What it calls a program.
    pub program: &'static str,
    /// The command that runs a token's schedule again: what stands before the token, and after.
    pub again: [&'static str; 2],
    /// What its traces call what programs make, and what has states.
    pub categories: [&'static str; 2],
}

impl Default for Tool {
    /// Tests, which take a token from the environment.
    fn default() -> Self {
        Self {
            name: "explore",
            version: env!("CARGO_PKG_VERSION"),
            program: "program",
            again: ["EXPLORE_TOKEN=", " cargo test"],
            categories: ["resource", "state"],
        }
    }
}

/// What the explorer gives a program for one run.
pub struct Run<'a> {
    domain: &'a Arc<Domain>,
    has_faults: bool,
    lacks_steps: bool,
    result: Option<&'a RefCell<String>>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(domain: &'a Arc<Domain>, has_faults: bool, lacks_steps: bool) -> Self {
        Self { domain, has_faults, lacks_steps, result: None }
    }

    pub(crate) fn with_result(self, result: &'a RefCell<String>) -> Self {
        Self { result: Some(result), ..self }
    }

    /// The domain of the program's threads. Those that it [spawns](lockdep::Locked::spawn) are of it already.
    pub fn domain(&self) -> &'a Arc<Domain> {
        self.domain
    }

    /// Something is made to fail that the program may know nothing of.
    pub fn has_faults(&self) -> bool {
        self.has_faults
    }

    /// Steps have been left out: what should come of the whole need not.
    pub fn lacks_steps(&self) -> bool {
        self.lacks_steps
    }

    /// Says what came of this run, in words that are the same if and only if it came to the same. `text` is asked only where
    /// that is compared: see [`validate_states`](crate::validate_states).
    pub fn comes_to(&self, text: impl FnOnce() -> String) {
        if let Some(result) = self.result {
            *result.borrow_mut() = text();
        }
    }
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { has_faults, lacks_steps, .. } = self;
        write!(f, "Run {{ has_faults: {has_faults}, lacks_steps: {lacks_steps} }}")
    }
}

/// A number for a text, the same on every machine and with every compiler (FNV-1a).
///
/// ```
/// assert_eq!(explore::fingerprint("foobar"), 0x85944171f73967e8);
/// ```
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
