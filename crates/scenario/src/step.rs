//! Steps: what a thread of a scenario does, in the words that people type at a shell.

use std::time::Duration;

use control::words::Words;
use control::{Command, Query, Request, WordError};
use eswitch::CardConfig;

use crate::expectation::Expectation;
use crate::place::Place;

/// One step of a story.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As it was written.
    pub text: String,
    /// Where it was written.
    pub place: Place,
    /// What to do.
    pub action: Action,
    /// What must come of it.
    pub expected: Expected,
}

/// What must come of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// It succeeds.
    #[default]
    Success,
    /// It fails with this error name (`EBUSY`), or with an error that contains this text.
    Failure(String),
    /// In a race that either may lose: whatever comes.
    Either,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A look at the card.
    Query(Query),
    /// A command to the card.
    Command(Command),
    /// Any program, among the card's netdevs.
    Program(String),
    /// The threads that name this barrier go on together.
    Sync(String),
    /// Time passes.
    Sleep(Duration),
    /// The queues are at rest.
    WaitRest {
        /// Nothing is left to be tried again, too.
        retries: bool,
    },
    /// Something holds.
    WaitUntil(Expectation),
    /// Something must hold now.
    Expect(Expectation),
    /// The same so many times.
    Repeat(u32, Box<Action>),
}

impl From<Request> for Action {
    fn from(request: Request) -> Self {
        match request {
            Request::Command(command) => Self::Command(command),
            Request::Query(query) => Self::Query(query),
        }
    }
}

/// Programs that need no `!` before them.
const PROGRAMS: [&str; 6] = ["ip", "bridge", "tc", "ping", "sysctl", "sh"];

/// The first words of the steps that are neither requests to the card nor programs.
const VERBS: [&str; 5] = ["sync", "sleep", "wait", "expect", "repeat"];

impl Action {
    /// Reads a step. `card` says what the card's netdevs are called.
    ///
    /// # Errors
    /// At which byte something else was expected, and what.
    pub fn parse(text: &str, card: &CardConfig) -> Result<Self, WordError> {
        let mut words = Words::new(text);
        // A program may be a script of several lines; what is done to a card is a line.
        let first = words.peek().unwrap_or_default();
        let may_be_program = first.starts_with('!') || PROGRAMS.contains(&first) || first == "repeat";
        words.ensure_shown(if may_be_program { &['\t', '\n'] } else { &['\t'] })?;
        let action = Self::from_words(&mut words, card)?;
        words.end()?;
        if !action.is_program() {
            words.ensure_shown(&['\t'])?;
        }
        Ok(action)
    }

    fn from_words(words: &mut Words<'_>, card: &CardConfig) -> Result<Self, WordError> {
        let first = words.peek().unwrap_or_default();
        if first.starts_with('!') {
            let command = words.rest().trim_start_matches('!').trim().to_owned();
            return if command.is_empty() {
                Err(words.expected("a command after `!`"))
            } else {
                Ok(Self::Program(command))
            };
        }
        if PROGRAMS.contains(&first) {
            return Ok(match Request::of_ip_link(words, card)? {
                Some(request) => request.into(),
                None => Self::Program(words.rest().to_owned()),
            });
        }
        if Request::FIRST_WORDS.contains(&first) {
            return Ok(Request::from_words(words)?.into());
        }
        if !VERBS.contains(&first) {
            let mut error = words.expected_one_of(&[&Request::FIRST_WORDS[..], &VERBS, &PROGRAMS].concat());
            error.message.push_str(" (any other program is written `!PROGRAM …`)");
            return Err(error);
        }
        Ok(match words.one_of(&VERBS)? {
            "sync" => Self::Sync(words.next("the name of a barrier")?.1.to_owned()),
            "sleep" => Self::Sleep(words.duration()?),
            "wait" => match words.one_of(&["settled", "retries", "until"])? {
                "settled" => Self::WaitRest { retries: false },
                "retries" => Self::WaitRest { retries: true },
                _ => Self::WaitUntil(Expectation::from_words(words)?),
            },
            "expect" => Self::Expect(Expectation::from_words(words)?),
            _ => repeat(words, card)?,
        })
    }

    /// Every barrier it comes to, in order.
    pub(crate) fn barriers(&self) -> Vec<&str> {
        match self {
            Self::Sync(name) => vec![name],
            Self::Repeat(n, action) => action.barriers().repeat(*n as usize),
            _ => Vec::new(),
        }
    }

    /// The text of the event it asks for, if it asks for one.
    pub(crate) fn asked_event(&self) -> Option<&str> {
        match self {
            Self::WaitUntil(expectation) | Self::Expect(expectation) => expectation.asked_event(),
            Self::Repeat(_, action) => action.asked_event(),
            _ => None,
        }
    }

    /// Whether it runs a program.
    pub(crate) fn is_program(&self) -> bool {
        match self {
            Self::Program(_) => true,
            Self::Repeat(_, action) => action.is_program(),
            _ => false,
        }
    }
}

fn repeat(words: &mut Words<'_>, card: &CardConfig) -> Result<Action, WordError> {
    const EXPECTED: &str = "how often, followed by a colon, such as `10:`";
    let (at, word) = words.next(EXPECTED)?;
    let times = word.strip_suffix(':').and_then(|n| n.parse().ok());
    let times = times
        .filter(|n| (1..=100_000).contains(n))
        .ok_or_else(|| WordError { at, message: format!("expected {EXPECTED}, from 1 to 100000, found `{word}`") })?;
    // Each would be read, told and counted within the one before: a line of them would take any stack and any time.
    if words.peek() == Some("repeat") {
        return Err(words.expected("a step that is to be repeated, which cannot be `repeat` again"));
    }
    Ok(Action::Repeat(times, Box::new(Action::from_words(words, card)?)))
}
