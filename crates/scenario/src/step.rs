//! Steps: what a thread of a scenario does, in the words that people type at a shell.

use std::time::Duration;

use control::grammar::{frame, port};
use control::reader::Words;
use control::{Command, Query, Request, WordError};
use eswitch::datapath::Arrival;
use eswitch::{CardConfig, PortHandle};
use flow::Port;

use crate::expectation::Expectation;
use crate::place::Place;

/// One step of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The text, as it is in the file.
    pub text: String,
    /// The place of the text in the file.
    pub place: Place,
    /// What to do.
    pub action: Action,
    /// The outcome that the step must have.
    pub expected: Expected,
}

/// The outcome that a step must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// It succeeds.
    #[default]
    Success,
    /// It fails with this error name (`EBUSY`), or with an error that contains this text.
    Failure(String),
    /// It succeeds or fails: in a race that either thread may lose.
    Either,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A look at the card.
    Query(Query),
    /// A command to the card.
    Command(Command),
    /// Runs a program among the card's netdevs.
    Program(String),
    /// Sends a frame into a port, as the function behind it would, or as it would come from the wire.
    Send {
        /// The port.
        from: PortHandle,
        /// The frame, without the frame check sequence.
        frame: Vec<u8>,
        /// Where it must arrive, in any order. `None`: anywhere.
        arrives: Option<Vec<Arrival>>,
    },
    /// Waits at the barrier of this name until all threads that name it have reached it.
    Sync(String),
    /// Waits for this time.
    Sleep(Duration),
    /// Waits until the queues are at rest.
    WaitRest {
        /// Whether to wait, too, until nothing is left to be tried again.
        retries: bool,
    },
    /// Waits until an expectation holds.
    WaitUntil(Expectation),
    /// Fails unless an expectation holds now.
    Expect(Expectation),
    /// Does an action this number of times.
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

/// Programs that can be written without `!` before them.
const PROGRAMS: [&str; 6] = ["ip", "bridge", "tc", "ping", "sysctl", "sh"];

/// The first words of the steps that are neither requests to the card nor programs.
const VERBS: [&str; 6] = ["send", "sync", "sleep", "wait", "expect", "repeat"];

impl Action {
    /// Reads a step. `card` gives the card's netdevs their names.
    ///
    /// # Errors
    /// At which byte something else was expected, and what.
    pub fn parse(text: &str, card: &CardConfig) -> Result<Self, WordError> {
        let mut words = Words::new(text);
        // A program may be a script of several lines; any other step is one line.
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
            return Ok(match Request::of_program(words, card)? {
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
            "send" => send(words)?,
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

    /// Every barrier that the action waits at, in order.
    pub(crate) fn barriers(&self) -> Vec<&str> {
        match self {
            Self::Sync(name) => vec![name],
            Self::Repeat(n, action) => action.barriers().repeat(*n as usize),
            _ => Vec::new(),
        }
    }

    /// The text of the event that the action is about, if it is about one.
    pub(crate) fn event_text(&self) -> Option<&str> {
        match self {
            Self::WaitUntil(expectation) | Self::Expect(expectation) => expectation.event_text(),
            Self::Repeat(_, action) => action.event_text(),
            _ => None,
        }
    }

    /// Whether the action adds or removes flow rules.
    pub(crate) fn changes_flows(&self) -> bool {
        match self {
            Self::Command(Command::ChangeFlows(_)) => true,
            Self::Repeat(_, action) => action.changes_flows(),
            _ => false,
        }
    }

    /// Whether the action runs a program.
    pub(crate) fn is_program(&self) -> bool {
        match self {
            Self::Program(_) => true,
            Self::Repeat(_, action) => action.is_program(),
            _ => false,
        }
    }
}

/// `PORT FRAME [arrives PLACE...|nowhere]`, after `send`.
fn send(words: &mut Words<'_>) -> Result<Action, WordError> {
    let from = port(words)?;
    let frame = frame(words, "arrives")?;
    let arrives = match words.accept("arrives") {
        false => None,
        true if words.accept("nowhere") => Some(Vec::new()),
        true => {
            let mut places = vec![place(words)?];
            while words.peek().is_some() {
                places.push(place(words)?);
            }
            Some(places)
        }
    };
    Ok(Action::Send { from, frame, arrives })
}

/// `PORT`, for the function behind a port or the wire, or `rep PORT`.
fn place(words: &mut Words<'_>) -> Result<Arrival, WordError> {
    let is_representor = words.accept("rep");
    let port = Port(port(words)?.index.0);
    Ok(if is_representor { Arrival::Representor(port) } else { Arrival::Port(port) })
}

fn repeat(words: &mut Words<'_>, card: &CardConfig) -> Result<Action, WordError> {
    const EXPECTED: &str = "how often, followed by a colon, such as `10:`";
    let (at, word) = words.next(EXPECTED)?;
    let times = word.strip_suffix(':').and_then(|n| n.parse().ok());
    let times = times
        .filter(|n| (1..=100_000).contains(n))
        .ok_or_else(|| WordError { at, message: format!("expected {EXPECTED}, from 1 to 100000, found `{word}`") })?;
    // Nested repeats would be read and run recursively: a line of them would take any stack and any time.
    if words.peek() == Some("repeat") {
        return Err(words.expected("a step that is to be repeated, which cannot be `repeat` again"));
    }
    Ok(Action::Repeat(times, Box::new(Action::from_words(words, card)?)))
}
