//! Closures as programs, and the one line that a test needs.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use lockdep::{Locked, Unlocked};

use crate::columns::columns;
use crate::execution::Found;
use crate::options::{Options, Watch};
use crate::program::{Program, Run, fingerprint};
use crate::report::{Report, campaign, replay};
use crate::story::Story;
use crate::token::Token;

/// The most schedules of one closure, unless options say otherwise: a few seconds' worth.
const SCHEDULES: u64 = 100_000;
/// The width of what a test prints, in characters.
const WIDTH: usize = 120;

type Body = dyn Fn(&mut Locked<'_, Unlocked>) + Send + Sync;

/// A closure as a program. The assertions of the closure are what must hold.
#[derive(Clone)]
pub struct Closure {
    name: String,
    body: Arc<Body>,
}

impl Closure {
    /// Makes a program that runs a closure. Tokens identify it by its name, so two closures should have different
    /// names.
    pub fn new(name: impl Into<String>, body: impl Fn(&mut Locked<'_, Unlocked>) + Send + Sync + 'static) -> Self {
        Self { name: name.into(), body: Arc::new(body) }
    }
}

impl fmt::Debug for Closure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Closure").field(&self.name).finish()
    }
}

impl Program for Closure {
    fn name(&self) -> &str {
        &self.name
    }

    /// The fingerprint of the name: the contents of a closure cannot be hashed. If the closure has changed, a token
    /// may report that its schedule did not occur, or may lead to something else.
    fn fingerprint(&self) -> u64 {
        fingerprint(&self.name)
    }

    fn run(&self, cx: &mut Locked<'_, Unlocked>, _: &Run<'_>) -> Vec<Found> {
        (self.body)(cx);
        Vec::new()
    }
}

/// Explores a closure: runs it in every schedule with at most two preemptions, or in the first 100,000 of them.
///
/// Everything that the closure makes with `lockdep` is under the explorer's control. Its assertions must hold in
/// every schedule. `cx` is its main thread, from which it [spawns](Locked::spawn) others. It should join them;
/// otherwise they run on after it.
///
/// If the environment variable `EXPLORE_TOKEN` contains a failure's token, the test that printed it runs that
/// schedule alone.
///
/// # Panics
/// Something did not hold: an assertion failed, the lock order was broken, or there was a deadlock or a livelock.
/// The message is the story of one schedule in which this happened, made small.
#[track_caller]
pub fn check(body: impl Fn(&mut Locked<'_, Unlocked>) + Send + Sync + 'static) -> Report {
    check_with(&Options { schedules: Some(SCHEDULES), ..Options::default() }, body)
}

/// Explores a closure like [`check`], with options: other bounds, another strategy, failures, several workers.
///
/// ```
/// use explore::{Faults, Options};
///
/// // Each operation that can fail fails once.
/// let report = explore::check_with(&Options { faults: Faults::Each, ..Options::default() }, |cx| {
///     let first = cx.fails(|| "allocating the first buffer".to_owned());
///     let second = cx.fails(|| "allocating the second buffer".to_owned());
///     assert!(!first || !second, "one failure at a time");
/// });
/// assert_eq!(report.faults.places, 2);
/// ```
///
/// # Panics
/// Like [`check`].
#[track_caller]
pub fn check_with(options: &Options, body: impl Fn(&mut Locked<'_, Unlocked>) + Send + Sync + 'static) -> Report {
    let at = Location::caller();
    let program = Closure::new(format!("{}:{}", at.file(), at.line()), body);
    if let Some(text) = std::env::var_os("EXPLORE_TOKEN") {
        let text = text.to_string_lossy();
        let token = Token::read(&text, &program.tool()).unwrap_or_else(|error| panic!("EXPLORE_TOKEN: {error}"));
        if token.program == program.name {
            let story = replay(std::slice::from_ref(&program), "this test", &token);
            let story = story.unwrap_or_else(|error| panic!("EXPLORE_TOKEN: {error}"));
            fail_with(&story);
            return Report { interrupted: false, ..Report::not_explored(&program, options) };
        }
    }
    let report = campaign(&program, options, &Arc::new(Watch::default()));
    if let Some(violation) = report.violations.first() {
        fail_with(&violation.story);
    }
    report
}

#[track_caller]
fn fail_with(story: &Story) {
    assert!(story.invariant.is_empty(), "{} does not hold\n\n{}", story.invariant, columns(story, WIDTH));
}
