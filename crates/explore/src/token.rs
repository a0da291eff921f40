//! Tokens: a failing schedule in one word, to be pasted after `--replay`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::faults::Place;
use crate::program::{Program, StepId, Tool};
use crate::schedulers::Deviation;
use crate::telling::Telling;

/// The form of tokens, which stands in front, after the tool's name: `explore2.`
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
    /// Its contents, in short: another program of that name is another program.
    pub fingerprint: u64,
    /// Steps that are left out.
    pub without: Vec<StepId>,
    /// What fails.
    pub faults: Vec<Place>,
    /// Where the schedule is not the plain one.
    pub deviations: Vec<Deviation>,
    /// What the program does not focus on has more than one order, too.
    pub whole: bool,
    /// After so many steps it has not come to an end.
    pub bound: usize,
    /// The schedule ends where everything is as it was before: it can be gone on with for ever.
    pub returns: bool,
    /// What is told first, as the checker of locks learns from it an order that this one inverts.
    pub after: Vec<Telling>,
    /// Schedules, of other programs maybe, that are told before all that, for the same reason; none has such of its own.
    pub first: Vec<Token>,
}

/// Why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token at all, or no token of this tool.
    #[error("not a token: expected what a failure printed, which starts with the name of the tool and `{FORM}.`")]
    Malformed,
    /// It is of another form.
    #[error("the token has form {form}, this program writes and reads form {FORM}: check again")]
    Form {
        /// Its form.
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
    /// The program it is of is not among those given.
    #[error("the token is of the program `{0}`, which is not in {1}")]
    NoProgram(String, String),
    /// The program has changed since.
    #[error(
        "the program `{0}` has changed since the token was written: the schedule would not be the same; check it again"
    )]
    Changed(String),
    /// It leaves out steps that the program does not have, or all.
    #[error("the token leaves out steps that `{0}` does not have, or all: it is not as it was printed; check again")]
    NoStep(String),
    /// Its schedule could not be told, and nothing is broken in what was.
    #[error(
        "nothing is broken, but the schedule of the token was not told: {0} never came; it is not as it was printed, or of another build: check again"
    )]
    NotMet(String),
}

impl Token {
    /// The plain schedule of a program.
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
    /// It is none, or of another tool, form or version.
    pub fn read(text: &str, tool: &Tool) -> Result<Self, TokenError> {
        let version = |from: &str| TokenError::Version { from: from.to_owned(), this: tool.version.to_owned() };
        let token: Self = text.parse().map_err(|error| match error {
            // Whatever the form, another version is what is to be said.
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

    /// The program that the token is of, among these, without the steps that it leaves out.
    ///
    /// # Errors
    /// It is not among them, or has changed.
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

/// A telling, as short as it gets.
type Packed = (Vec<(String, u32)>, Vec<(u8, u32, u8)>);
/// A token's version, program, fingerprint, steps left out, flags, bound, telling, and what is told first.
type Parts = (String, String, u64, Vec<StepId>, [u8; 2], usize, Packed, Vec<Packed>);

fn packed(faults: &[Place], deviations: &[Deviation]) -> Packed {
    let faults = faults.iter().map(|place| (place.name.clone(), place.nth)).collect();
    (faults, deviations.iter().map(|d| (d.thread, d.ops, d.to)).collect())
}

fn unpacked((faults, deviations): Packed) -> Telling {
    Telling {
        faults: faults.into_iter().map(|(name, nth)| Place { name, nth }).collect(),
        deviations: deviations.into_iter().map(|(thread, ops, to)| Deviation { thread, ops, to }).collect(),
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [u8::from(self.whole), u8::from(self.returns)];
        let telling = packed(&self.faults, &self.deviations);
        let after: Vec<Packed> = self.after.iter().map(|first| packed(&first.faults, &first.deviations)).collect();
        let all: Parts = (
            self.version.clone(),
            self.program.clone(),
            self.fingerprint,
            self.without.clone(),
            flags,
            self.bound,
            telling,
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
    /// All that it tells: what is told first, and itself.
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
        // Whatever the form, the version comes first.
        let all: Vec<serde_json::Value> = serde_json::from_slice(&bytes).map_err(|_| Malformed)?;
        let version = all.first().and_then(serde_json::Value::as_str).ok_or(Malformed)?;
        if form != FORM {
            return Err(TokenError::Form { form, version: version.to_owned() });
        }
        let (version, program, fingerprint, without, [whole, returns], bound, telling, after): Parts =
            serde_json::from_value(all.into()).map_err(|_| Malformed)?;
        let Telling { faults, deviations } = unpacked(telling);
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
