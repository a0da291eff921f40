//! The file a story is written in: TOML, read with the place of everything in it.

mod possible;
mod reader;

use std::time::Duration;

use eswitch::CardConfig;
use toml::Spanned;
use toml::de::DeValue;

use crate::expectation::Expectation;
use crate::place::{InputError, Place};
use crate::step::Step;

use reader::Reader;

/// How long a wait may take if the scenario does not say.
const LIMIT: Duration = Duration::from_secs(20);

/// A story: what to run, on which threads, and what must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// What it is about, for a newcomer.
    pub why: String,
    /// The cards it can be told on.
    pub cards: Vec<CardName>,
    /// How long any wait may take, and any step.
    pub limit: Duration,
    /// The card.
    pub card: CardConfig,
    /// Steps before the threads start.
    pub setup: Vec<Step>,
    /// Who does what at the same time.
    pub threads: Vec<StoryThread>,
    /// Steps after the threads have ended, whatever happened.
    pub finally: Vec<Step>,
    /// What to wait for before looking.
    pub settle: Settle,
    /// What must hold at rest.
    pub expect: Vec<InFile<Expectation>>,
}

impl Default for Scenario {
    /// One without threads, of which nothing is asked.
    fn default() -> Self {
        Self {
            name: String::new(),
            why: String::new(),
            cards: CARDS.to_vec(),
            limit: LIMIT,
            card: CardConfig::default(),
            setup: Vec::new(),
            threads: Vec::new(),
            finally: Vec::new(),
            settle: Settle::default(),
            expect: Vec::new(),
        }
    }
}

impl Scenario {
    /// The texts of all events that are asked for.
    pub(crate) fn asked_events(&self) -> Vec<String> {
        let steps = self.setup.iter().chain(self.threads.iter().flat_map(|thread| &thread.steps)).chain(&self.finally);
        let asked = steps.filter_map(|step| step.action.asked_event());
        asked.chain(self.expect.iter().filter_map(|expect| expect.value.asked_event())).map(str::to_owned).collect()
    }
}

/// A kind of card, by the name it is chosen with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardName {
    /// `memory` or `linux`.
    pub name: &'static str,
    /// Whether programs can be run among its netdevs.
    pub has_programs: bool,
}

/// The kinds of card there are.
pub const CARDS: [CardName; 2] =
    [CardName { name: "memory", has_programs: false }, CardName { name: "linux", has_programs: true }];

/// A named thread and its steps.
#[derive(Clone, Debug, PartialEq)]
pub struct StoryThread {
    /// Its name, unique in the story.
    pub name: String,
    /// What it does.
    pub steps: Vec<Step>,
}

/// What to wait for before expectations and invariants are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settle {
    /// Until nothing is left to be tried again.
    #[default]
    Retries,
    /// Until the queues are at rest; for stories in which something fails for good.
    Queues,
}

/// Something with what was written and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFile<T> {
    /// As it was written.
    pub text: String,
    /// Where.
    pub place: Place,
    /// What it means.
    pub value: T,
}

/// Reads a story.
///
/// # Errors
/// The first thing that cannot be used: where it is, and what was expected there.
pub fn parse(source: &str) -> Result<Scenario, InputError> {
    Reader { source }.scenario()
}

/// Reads a card's configuration: a file with what a scenario has under `[card]`.
///
/// # Errors
/// The first thing that cannot be used: where it is, and what was expected there.
pub fn parse_card(source: &str) -> Result<CardConfig, InputError> {
    let reader = Reader { source };
    let table = reader.document()?;
    let span = table.span();
    reader.card_config(&Spanned::new(span, DeValue::Table(table.into_inner())))
}
