//! Tokens: a failing schedule in one word, to be pasted after `--replay`.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use scenario::Scenario;
use serde::{Deserialize, Serialize};

use crate::faults::Place;
use crate::schedulers::Deviation;
use crate::telling::Telling;

/// The form of tokens, which stands in front: `esw2.`
const FORM: u32 = 2;

/// Stands for `setup` where a thread is asked for.
pub const SETUP: u16 = u16::MAX;
/// Stands for `finally`.
pub const FINALLY: u16 = u16::MAX - 1;

/// A schedule of a scenario, with what fails in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The version of the program that wrote it.
    pub version: String,
    /// The scenario's name.
    pub scenario: String,
    /// Its contents, in short: another scenario of that name is another scenario.
    pub fingerprint: u64,
    /// Steps that are left out, as thread and step: with [`SETUP`] or [`FINALLY`] for a thread, those of `setup` or `finally`.
    pub without: Vec<(u16, u16)>,
    /// What fails.
    pub faults: Vec<Place>,
    /// Where the schedule is not the plain one.
    pub deviations: Vec<Deviation>,
    /// Bring-up and take-down have more than one order, too.
    pub whole: bool,
    /// After so many steps it has not come to an end.
    pub bound: usize,
    /// The schedule ends where everything is as it was before: it can be gone on with for ever.
    pub returns: bool,
    /// What is told first, as the checker of locks learns from it an order that this one inverts.
    pub after: Vec<Telling>,
    /// Schedules, of other scenarios maybe, that are told before all that, for the same reason; none has such of its own.
    pub first: Vec<Token>,
}

/// Why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token at all.
    #[error("not a token: expected what a failure printed after `--replay`, starting with `esw{FORM}.`")]
    Malformed,
    /// It is of another form.
    #[error("the token has form {0}, this program writes and reads form {FORM}: check again")]
    Form(u32),
    /// It is of another version.
    #[error("the token is from version {0}, this is {current}: replay it with that version, or check again", current = env!("CARGO_PKG_VERSION"))]
    Version(String),
    /// The scenario it is of is not among those given.
    #[error("the token is of the scenario `{0}`, which is not in {1}: give its file after the token")]
    NoScenario(String, String),
    /// The scenario has changed since.
    #[error(
        "the scenario `{0}` has changed since the token was written: the schedule would not be the same; check it again"
    )]
    Changed(String),
    /// It leaves out steps that the scenario does not have, or all.
    #[error("the token leaves out steps that `{0}` does not have, or all: it is not as it was printed; check again")]
    NoStep(String),
    /// Its schedule could not be told, and nothing is broken in what was.
    #[error(
        "nothing is broken, but the schedule of the token was not told: {0} never came; it is not as it was printed, or of another build: check again"
    )]
    NotMet(String),
}

/// What a scenario contains, in short.
pub fn fingerprint(scenario: &Scenario) -> u64 {
    // Places in the file are not part of what it says.
    let mut hasher = DefaultHasher::new();
    // How many there are, first: where one list ends and the next begins is part of it.
    let steps = |steps: &[scenario::Step], hasher: &mut DefaultHasher| {
        steps.len().hash(hasher);
        steps.iter().for_each(|step| (&step.text, format!("{:?}", step.expected)).hash(hasher));
    };
    (&scenario.name, format!("{:?}", scenario.card), format!("{:?}", scenario.settle)).hash(&mut hasher);
    steps(&scenario.setup, &mut hasher);
    scenario.threads.len().hash(&mut hasher);
    for thread in &scenario.threads {
        thread.name.hash(&mut hasher);
        steps(&thread.steps, &mut hasher);
    }
    steps(&scenario.finally, &mut hasher);
    scenario.expect.iter().for_each(|expectation| expectation.text.hash(&mut hasher));
    hasher.finish()
}

impl Token {
    /// The scenario that the token is of, among these, without the steps that it leaves out.
    ///
    /// # Errors
    /// It is not among them, or has changed.
    pub fn scenario(&self, among: &[Scenario], whence: &str) -> Result<Scenario, TokenError> {
        let named = || among.iter().filter(|scenario| scenario.name == self.scenario);
        let Some(found) = named().find(|scenario| fingerprint(scenario) == self.fingerprint) else {
            return Err(match named().next() {
                None => TokenError::NoScenario(self.scenario.escape_debug().to_string(), whence.to_owned()),
                Some(_) => TokenError::Changed(self.scenario.escape_debug().to_string()),
            });
        };
        let has = |(thread, step): &(u16, u16)| {
            let steps = match *thread {
                SETUP => Some(&found.setup),
                FINALLY => Some(&found.finally),
                thread => found.threads.get(usize::from(thread)).map(|thread| &thread.steps),
            };
            steps.is_some_and(|steps| usize::from(*step) < steps.len())
        };
        let less = without(found, &self.without);
        if !self.without.iter().all(has) || less.threads.is_empty() {
            return Err(TokenError::NoStep(found.name.clone()));
        }
        Ok(less)
    }
}

/// The scenario without some of its steps; a thread that has none left is left out.
pub(crate) fn without(scenario: &Scenario, gone: &[(u16, u16)]) -> Scenario {
    let mut less = scenario.clone();
    let keep = |thread: u16, steps: &mut Vec<scenario::Step>| {
        let mut index = 0..;
        steps.retain(|_| !index.next().is_some_and(|step: u16| gone.contains(&(thread, step))));
    };
    keep(SETUP, &mut less.setup);
    keep(FINALLY, &mut less.finally);
    for (thread, index) in less.threads.iter_mut().zip(0..) {
        keep(index, &mut thread.steps);
    }
    less.threads.retain(|thread| !thread.steps.is_empty());
    less
}

/// A telling, as short as it gets.
type Packed = (Vec<(String, u32)>, Vec<(u8, u32, u8)>);
/// A token's version, scenario, fingerprint, steps left out, flags, bound, telling, and what is told first.
type Parts = (String, String, u64, Vec<(u16, u16)>, [u8; 2], usize, Packed, Vec<Packed>);

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
            self.scenario.clone(),
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
        write!(f, "esw{FORM}.{}", URL_SAFE_NO_PAD.encode(text))
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

        let (form, rest) = text.trim().strip_prefix("esw").and_then(|rest| rest.split_once('.')).ok_or(Malformed)?;
        let form: u32 = form.parse().map_err(|_| Malformed)?;
        let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|_| Malformed)?;
        // Whatever the form, the version comes first.
        let all: Vec<serde_json::Value> = serde_json::from_slice(&bytes).map_err(|_| Malformed)?;
        let version = all.first().and_then(serde_json::Value::as_str).ok_or(Malformed)?;
        if version != env!("CARGO_PKG_VERSION") {
            return Err(TokenError::Version(version.to_owned()));
        }
        if form != FORM {
            return Err(TokenError::Form(form));
        }
        let (version, scenario, fingerprint, without, [whole, returns], bound, telling, after): Parts =
            serde_json::from_value(all.into()).map_err(|_| Malformed)?;
        let Telling { faults, deviations } = unpacked(telling);
        let after = after.into_iter().map(unpacked).collect();
        let (whole, returns) = (whole != 0, returns != 0);
        let first = Vec::new();
        Ok(Self { version, scenario, fingerprint, without, faults, deviations, whole, bound, returns, after, first })
    }
}
