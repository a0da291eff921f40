//! Scenarios, and the files that they are read from.

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

/// A scenario: what to run, on which threads, and what must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The scenario's name.
    pub name: String,
    /// What the scenario shows, for a newcomer.
    pub why: String,
    /// The kinds of card that the scenario can be run on.
    pub cards: Vec<CardName>,
    /// How long any wait, and any step, may take.
    pub limit: Duration,
    /// The card.
    pub card: CardConfig,
    /// Steps before the threads start.
    pub setup: Vec<Step>,
    /// The threads, which run at the same time.
    pub threads: Vec<ScenarioThread>,
    /// Steps after the threads have ended, whatever happened.
    pub finally: Vec<Step>,
    /// What to wait for before expectations and invariants are checked.
    pub settle: Settle,
    /// The expectations at rest.
    pub expect: Vec<InFile<Expectation>>,
}

impl Scenario {
    /// Whether the scenario needs a card that offloads flows.
    pub fn needs_offload(&self) -> bool {
        let steps = self.threads.iter().flat_map(|thread| &thread.steps);
        self.setup.iter().chain(steps).chain(&self.finally).any(|step| step.action.changes_flows())
    }
}

impl Default for Scenario {
    /// A scenario without threads and without expectations.
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
    /// The texts of all events that steps and expectations are about.
    pub(crate) fn event_texts(&self) -> Vec<String> {
        let steps = self.setup.iter().chain(self.threads.iter().flat_map(|thread| &thread.steps)).chain(&self.finally);
        let of_steps = steps.filter_map(|step| step.action.event_text());
        of_steps.chain(self.expect.iter().filter_map(|expect| expect.value.event_text())).map(str::to_owned).collect()
    }
}

/// A kind of card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardName {
    /// The name with which it is chosen: `memory` or `linux`.
    pub name: &'static str,
    /// Whether the card has netdevs, among which programs can be run.
    pub has_programs: bool,
}

/// Every kind of card.
pub const CARDS: [CardName; 2] =
    [CardName { name: "memory", has_programs: false }, CardName { name: "linux", has_programs: true }];

/// A named thread and its steps.
#[derive(Clone, Debug, PartialEq)]
pub struct ScenarioThread {
    /// The thread's name, unique in the scenario.
    pub name: String,
    /// The thread's steps, in order.
    pub steps: Vec<Step>,
}

/// What to wait for before expectations and invariants are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Settle {
    /// Wait until nothing is left to be tried again.
    #[default]
    Retries,
    /// Wait until the queues are at rest; for scenarios in which something fails for good.
    Queues,
}

/// A value that was read from a file, with its text and place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFile<T> {
    /// The text, as it is in the file.
    pub text: String,
    /// The place of the text in the file.
    pub place: Place,
    /// The value.
    pub value: T,
}

/// Reads a scenario from the text of its file.
///
/// # Errors
/// The first thing that cannot be used: its place, and what was expected there.
pub fn parse(source: &str) -> Result<Scenario, InputError> {
    Reader { source }.scenario()
}

/// Reads the configuration of a card: the keys that a scenario has under `[card]`.
///
/// # Errors
/// The first thing that cannot be used: its place, and what was expected there.
pub fn parse_card(source: &str) -> Result<CardConfig, InputError> {
    let reader = Reader { source };
    let table = reader.document()?;
    let span = table.span();
    reader.card_config(&Spanned::new(span, DeValue::Table(table.into_inner())))
}
