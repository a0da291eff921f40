//! Tokens: a failing schedule in one word, to be pasted after `--replay`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::execution::Execution;
use crate::faults::Place;
use crate::program::{Program, StepId, Tool};
use crate::schedulers::Deviation;

/// The format of tokens, which follows the tool's name at the beginning: `explore2.`
const FORM: u32 = 2;

/// A schedule of a program, with what fails in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Token {
    /// The name of the tool that wrote it.
    pub tool: String,
    /// Its version.
    pub version: String,
    /// The program's name.
    pub program: String,
    /// A hash of its contents: another program of the same name is another program.
    pub fingerprint: u64,
    /// The steps that are left out.
    pub without: Vec<StepId>,
    /// The planned failures.
    pub faults: Vec<Place>,
    /// Where the schedule differs from the plain one.
    pub deviations: Vec<Deviation>,
    /// Code that the program does not [focus](lockdep::focus) on runs in more than one order, too.
    pub whole: bool,
    /// The number of steps after which the execution is given up.
    pub bound: usize,
    /// The schedule ends where everything is as it was before: it can loop for ever.
    pub returns: bool,
    /// Executions that are run first, from which the checker of locks learns an order that this one inverts.
    pub after: Vec<Execution>,
    /// Schedules, possibly of other programs, that are run before all others, for the same reason. None has such
    /// schedules of its own.
    pub first: Vec<Token>,
}

/// The reasons why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is not a token, or not a token of this tool.
    #[error("not a token: expected what a failure printed, which starts with the name of the tool and `{FORM}.`")]
    Malformed,
    /// It has another format.
    #[error("the token has form {form}, this program writes and reads form {FORM}: check again")]
    Form {
        /// Its format.
        form: u32,
        /// The version of the tool that wrote it.
        version: String,
    },
    /// It is of another version.
    #[error("the token is from version {from}, this is {this}: replay it with that version, or check again")]
    Version {
        /// The version that wrote it.
        from: String,
        /// This version.
        this: String,
    },
    /// Its program is not among those given.
    #[error("the token is of the program `{0}`, which is not in {1}")]
    NoProgram(String, String),
    /// The program has changed since the token was written.
    #[error(
        "the program `{0}` has changed since the token was written: the schedule would not be the same; check it again"
    )]
    Changed(String),
    /// It leaves out steps that the program does not have, or all steps.
    #[error(
        "the token leaves out steps that `{0}` does not have, or all: the token was changed after it was printed; check again"
    )]
    NoStep(String),
    /// Its schedule did not occur, and nothing was broken in the schedule that did.
    #[error(
        "nothing is broken, but the schedule of the token did not occur: {0} is missing; the token was changed after it was printed, or is from another build: check again"
    )]
    NotMet(String),
}

impl Token {
    /// Makes the token of the plain schedule of a program.
    pub fn of<P: Program>(program: &P) -> Self {
        let Tool { name, version, .. } = program.tool();
        Self {
            tool: name.to_owned(),
            version: version.to_owned(),
            program: program.name().to_owned(),
            fingerprint: program.fingerprint(),
            ..Self::default()
        }
    }

    /// Reads a token that a tool has written.
    ///
    /// # Errors
    /// The text is not a token, or a token of another tool, format or version.
    pub fn read(text: &str, tool: &Tool) -> Result<Self, TokenError> {
        let version = |from: &str| TokenError::Version { from: from.to_owned(), this: tool.version.to_owned() };
        let token: Self = text.parse().map_err(|error| match error {
            // If the version is another one, that is the error to report, whatever the format.
            TokenError::Form { version: from, .. } if from != tool.version => version(&from),
            error => error,
        })?;
        let other = token.all().find(|token| token.tool != tool.name || token.version != tool.version).cloned();
        match other {
            None => Ok(token),
            Some(other) if other.tool != tool.name => Err(TokenError::Malformed),
            Some(other) => Err(version(&other.version)),
        }
    }

    /// Returns the token's program, out of these, without the steps that the token leaves out.
    ///
    /// # Errors
    /// The program is not among them, or has changed.
    pub fn program_among<P: Program>(&self, among: &[P], whence: &str) -> Result<P, TokenError> {
        let named = || among.iter().filter(|program| program.name() == self.program);
        let Some(found) = named().find(|program| program.fingerprint() == self.fingerprint) else {
            let name = self.program.escape_debug().to_string();
            return Err(match named().next() {
                None => TokenError::NoProgram(name, whence.to_owned()),
                Some(_) => TokenError::Changed(name),
            });
        };
        let parts = found.parts();
        let has = |(id, step): &StepId| parts.iter().any(|part| part.id == *id && *step < part.steps);
        let mut threads = parts.iter().filter(|part| part.is_thread).peekable();
        let is_left = |id: u16, step: u16| !self.without.contains(&(id, step));
        let has_threads = threads.peek().is_none() || threads.any(|part| (0..part.steps).any(|n| is_left(part.id, n)));
        if !self.without.iter().all(has) || !has_threads {
            return Err(TokenError::NoStep(found.name().to_owned()));
        }
        Ok(found.without(&self.without))
    }
}

/// An execution, in a short form.
type Packed = (Vec<(String, u32)>, Vec<(u8, u32, u8)>);
/// A token's version, program, fingerprint, steps left out, flags, bound, execution, and the executions that are run
/// first.
type Parts = (String, String, u64, Vec<StepId>, [u8; 2], usize, Packed, Vec<Packed>);

fn packed(faults: &[Place], deviations: &[Deviation]) -> Packed {
    let faults = faults.iter().map(|place| (place.name.clone(), place.nth)).collect();
    (faults, deviations.iter().map(|d| (d.thread, d.ops, d.to)).collect())
}

fn unpacked((faults, deviations): Packed) -> Execution {
    Execution {
        faults: faults.into_iter().map(|(name, nth)| Place { name, nth }).collect(),
        deviations: deviations.into_iter().map(|(thread, ops, to)| Deviation { thread, ops, to }).collect(),
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [u8::from(self.whole), u8::from(self.returns)];
        let execution = packed(&self.faults, &self.deviations);
        let after: Vec<Packed> = self.after.iter().map(|first| packed(&first.faults, &first.deviations)).collect();
        let all: Parts = (
            self.version.clone(),
            self.program.clone(),
            self.fingerprint,
            self.without.clone(),
            flags,
            self.bound,
            execution,
            after,
        );
        for first in &self.first {
            write!(f, "{first}+")?;
        }
        let text = serde_json::to_string(&all).map_err(|_| fmt::Error)?;
        write!(f, "{}{FORM}.{}", self.tool, URL_SAFE_NO_PAD.encode(text))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut tokens = text.split('+').map(Self::one).collect::<Result<Vec<_>, _>>()?;
        let last = tokens.pop().ok_or(TokenError::Malformed)?;
        Ok(Self { first: tokens, ..last })
    }
}

impl Token {
    /// Returns all schedules of the token: those that are run first, and its own.
    pub fn all(&self) -> impl Iterator<Item = &Self> {
        self.first.iter().chain([self])
    }

    fn one(text: &str) -> Result<Self, TokenError> {
        use TokenError::Malformed;

        let (head, rest) = text.trim().split_once('.').ok_or(Malformed)?;
        let tool = head.trim_end_matches(|c: char| c.is_ascii_digit());
        let form = &head[tool.len()..];
        if tool.is_empty() || !tool.chars().all(|c| c.is_ascii_lowercase()) {
            return Err(Malformed);
        }
        let form: u32 = form.parse().map_err(|_| Malformed)?;
        let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|_| Malformed)?;
        // The version comes first, whatever the format.
        let all: Vec<serde_json::Value> = serde_json::from_slice(&bytes).map_err(|_| Malformed)?;
        let version = all.first().and_then(serde_json::Value::as_str).ok_or(Malformed)?;
        if form != FORM {
            return Err(TokenError::Form { form, version: version.to_owned() });
        }
        let (version, program, fingerprint, without, [whole, returns], bound, execution, after): Parts =
            serde_json::from_value(all.into()).map_err(|_| Malformed)?;
        let Execution { faults, deviations } = unpacked(execution);
        let after = after.into_iter().map(unpacked).collect();
        let (whole, returns) = (whole != 0, returns != 0);
        let tool = tool.to_owned();
        let first = Vec::new();
        Ok(Self {
            tool,
            version,
            program,
            fingerprint,
            without,
            faults,
            deviations,
            whole,
            bound,
            returns,
            after,
            first,
        })
    }
}
