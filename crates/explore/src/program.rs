//! The interface between the explorer and a program.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use lockdep::{Domain, Halt, Locked, Unlocked};

use crate::execution::Found;

/// A program that can be run again and again, under a scheduler that decides every interleaving.
///
/// While it runs, a program makes every lock, thread, condition variable and atomic that it uses with `lockdep`. It
/// reads neither a clock nor anything else that could differ between two runs. Its actions depend only on the
/// schedule and on [what is made to fail](lockdep::Locked::fails). [`validate_states`](crate::validate_states) tests
/// this.
///
/// A program needs only three methods. The others allow the explorer to make a failure small, and to describe it. A
/// closure is a program, too: see [`check`](crate::check()).
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
    /// Returns its name, by which tokens and reports identify it.
    fn name(&self) -> &str;

    /// Returns a hash of its contents. Programs that may have different schedules must have different fingerprints.
    /// It must be the same on every machine and with every compiler, because tokens and the parts of a campaign
    /// contain it: see [`fingerprint`](crate::fingerprint).
    fn fingerprint(&self) -> u64;

    /// Runs it once and returns what did not hold. The [reports](lockdep::Report) of the checker of locks, a
    /// deadlock and a panic need not be returned.
    fn run(&self, cx: &mut Locked<'_, Unlocked>, run: &Run) -> Vec<Found>;

    /// Returns the tool for which its tokens are, with that tool's words.
    fn tool(&self) -> Tool {
        Tool::default()
    }

    /// Returns the steps that can be left out, to make a failure small.
    fn parts(&self) -> Vec<Part> {
        Vec::new()
    }

    /// Returns the program without some of its steps. Threads without steps are not started.
    fn without(&self, steps: &[StepId]) -> Self {
        debug_assert!(steps.is_empty(), "{}: a program with parts says how to leave their steps out", self.name());
        self.clone()
    }

    /// Returns whether this finding means nothing if steps are missing, because it is about the expected result of
    /// the whole program.
    fn needs_every_step(&self, found: &Found) -> bool {
        let _ = found;
        false
    }

    /// Returns whether this finding may be a consequence of another one, which is then reported first.
    fn is_consequence(&self, found: &Found) -> bool {
        let _ = found;
        false
    }

    /// Returns the finding for an execution that is given up.
    fn halted(&self, halt: &Halt) -> Found {
        Found::new(if matches!(halt, Halt::Panic(_)) { "panic" } else { "progress" }, halt.to_string())
    }

    /// Returns whether a [note](lockdep::note) of this kind belongs into the story of the first finding, if there is
    /// one.
    fn tells(&self, note: &str, found: Option<&Found>) -> bool {
        let _ = (note, found);
        true
    }

    /// Returns whether the program marks, by [`focus`](lockdep::focus), the code that is explored. If not,
    /// everything is explored.
    fn is_focused(&self) -> bool {
        false
    }

    /// Returns the classes of locks that a story always shows, outermost first. Of other classes it omits locks for
    /// which no thread waits. If the list is empty, it omits nothing.
    fn ordered_classes(&self) -> Vec<&'static str> {
        Vec::new()
    }
}

/// A step of a program: its [part](Part), and the index of the step in that part.
pub type StepId = (u16, u16);

/// A sequence of steps that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, by which tokens identify it.
    pub id: u16,
    /// How many steps it has.
    pub steps: u16,
    /// It is a thread. At least one step of all threads is always left.
    pub is_thread: bool,
}

/// A tool that explores programs, with the words that its tokens and its output use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The prefix of its tokens: lower-case letters.
    pub name: &'static str,
    /// Its version. A token is valid in one version only, because a program may have other schedules in another.
    pub version: &'static str,
    /// The word that it uses for a program.
    pub program: &'static str,
    /// The command that runs a token's schedule again: the text before the token, and the text after it.
    pub replay_command: [&'static str; 2],
    /// The categories, in its traces, of the resources that programs make and of the things that have states.
    pub categories: [&'static str; 2],
}

impl Default for Tool {
    /// The tool for tests, which read a token from the environment.
    fn default() -> Self {
        Self {
            name: "explore",
            version: env!("CARGO_PKG_VERSION"),
            program: "program",
            replay_command: ["EXPLORE_TOKEN=", " cargo test"],
            categories: ["resource", "state"],
        }
    }
}

/// What the explorer gives a program for one execution.
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

    /// Returns the domain of the program's threads. Threads that they [spawn](lockdep::Locked::spawn) are in it,
    /// too.
    pub fn domain(&self) -> &'a Arc<Domain> {
        self.domain
    }

    /// Returns whether something is made to fail that the program may not expect.
    pub fn has_faults(&self) -> bool {
        self.has_faults
    }

    /// Returns whether steps have been left out. Then the expected result of the whole program need not be reached.
    pub fn lacks_steps(&self) -> bool {
        self.lacks_steps
    }

    /// Sets the result of this execution, as a text that is the same if and only if the result is the same. `text`
    /// is called only where results are compared: see [`validate_states`](crate::validate_states).
    pub fn set_result(&self, text: impl FnOnce() -> String) {
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

/// Returns a hash of a text, the same on every machine and with every compiler (FNV-1a).
///
/// ```
/// assert_eq!(explore::fingerprint("foobar"), 0x85944171f73967e8);
/// ```
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
