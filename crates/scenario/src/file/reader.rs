//! Reads a scenario from TOML, with the place of everything in it.

use std::ops::Range;
use std::time::Duration;

use control::WordError;
use control::reader::{did_you_mean, list};
use eswitch::text::{escaped, is_control};
use eswitch::{CardConfig, ConfigError};
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::possible::{ensure_barriers_can_be_met, ensure_programs_have_a_card};
use super::{CARDS, CardName, InFile, LIMIT, Scenario, ScenarioThread, Settle};
use crate::expectation::Expectation;
use crate::place::{InputError, Place, inside_string};
use crate::step::{Action, Expected, Step};

const KEYS: [&str; 10] = ["name", "why", "cards", "limit_s", "card", "setup", "thread", "finally", "expect", "settle"];
const REQUIRED: &str = "a scenario has at least `name`, `why` and one `[[thread]]` with `name` and `steps`";

pub(super) type Value<'s> = Spanned<DeValue<'s>>;
type Read<T> = Result<T, InputError>;

/// Reads a file, and finds the place of everything in it.
pub(super) struct Reader<'s> {
    pub(super) source: &'s str,
}

impl<'s> Reader<'s> {
    fn error<T>(&self, at: usize, message: impl Into<String>) -> Read<T> {
        Err(InputError { place: Place::of(self.source, at), message: message.into() })
    }

    fn toml_error(&self, error: &toml::de::Error, otherwise: usize) -> InputError {
        InputError {
            place: Place::of(self.source, error.span().map_or(otherwise, |span| span.start)),
            message: escaped(&error.message().trim().replace('\n', ", ")).into_owned(),
        }
    }

    pub(super) fn document(&self) -> Read<Spanned<DeTable<'s>>> {
        DeTable::parse(self.source).map_err(|error| {
            let mut error = self.toml_error(&error, 0);
            error.message = format!("not TOML: {}", error.message);
            error
        })
    }

    pub(super) fn scenario(&self) -> Read<Scenario> {
        let table = self.document()?.into_inner();
        if table.is_empty() {
            return self.error(0, format!("nothing here: {REQUIRED}"));
        }
        self.known_keys(&table, &KEYS)?;
        let end = self.source.trim_end().len();
        let name = self.required_text(&table, "name", end, Self::text)?;
        let why = self.required_text(&table, "why", end, Self::lines)?;
        let card = self.card(&table)?;
        let scenario = Scenario {
            name,
            why,
            limit: self.limit(&table)?,
            settle: self.settle(&table)?,
            setup: self.steps(table.get("setup"), &card)?,
            threads: self.threads(&table, &card, end)?,
            finally: self.steps(table.get("finally"), &card)?,
            expect: self.expectations(&table)?,
            cards: self.cards(&table)?,
            card,
        };
        ensure_programs_have_a_card(&scenario)?;
        ensure_barriers_can_be_met(&scenario)?;
        Ok(scenario)
    }

    fn known_keys(&self, table: &DeTable<'s>, known: &[&str]) -> Read<()> {
        for key in table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                let mut message = format!("unknown key `{}`, expected {}", escaped(name), list(known));
                if let Some(guess) = did_you_mean(name, known) {
                    message.push_str(&format!("; did you mean `{guess}`?"));
                }
                return self.error(key.span().start, message);
            }
        }
        Ok(())
    }

    /// Reads a string of one line. It is shown on terminals and in logs, so it may have no control characters.
    fn text(&self, value: &Value<'s>, what: &str) -> Read<String> {
        self.string(value, what, "a line of text", is_control)
    }

    /// Reads a string that may have several lines.
    fn lines(&self, value: &Value<'s>, what: &str) -> Read<String> {
        self.string(value, what, "text", |c| is_control(c) && !matches!(c, '\n' | '\t'))
    }

    fn string(&self, value: &Value<'s>, what: &str, kind: &str, is_refused: impl Fn(char) -> bool) -> Read<String> {
        let span = value.span();
        let DeValue::String(text) = value.get_ref() else {
            let found = describe(value.get_ref());
            return self.error(span.start, format!("expected {what}, a string, found {found}"));
        };
        match text.char_indices().find(|(_, c)| is_refused(*c)) {
            None => Ok(text.to_string()),
            Some((offset, control)) => {
                let shown = control.escape_default();
                let at = inside_string(self.source, &span, offset);
                self.error(at, format!("expected {what} to be {kind}, found the control character {shown} in it"))
            }
        }
    }

    fn required_text(
        &self,
        table: &DeTable<'s>,
        key: &str,
        end: usize,
        read: impl Fn(&Self, &Value<'s>, &str) -> Read<String>,
    ) -> Read<String> {
        let Some(value) = table.get(key) else {
            return self.error(end, format!("expected a key `{key}`, found the end; {REQUIRED}"));
        };
        let text = read(self, value, &format!("`{key}`"))?;
        if text.trim().is_empty() {
            return self.error(value.span().start, format!("expected some text as `{key}`, found none"));
        }
        Ok(text.trim().to_owned())
    }

    fn list<'v>(&self, value: &'v Value<'s>, what: &str) -> Read<Vec<&'v Value<'s>>> {
        match value.get_ref() {
            DeValue::Array(items) => Ok(items.iter().collect()),
            other => self.error(value.span().start, format!("expected {what}, a list, found {}", describe(other))),
        }
    }

    fn limit(&self, table: &DeTable<'s>) -> Read<Duration> {
        let Some(value) = table.get("limit_s") else {
            return Ok(LIMIT);
        };
        let seconds = match value.get_ref() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        match seconds.filter(|s| (1..=3600).contains(s)) {
            Some(seconds) => Ok(Duration::from_secs(seconds)),
            None => self.error(value.span().start, "expected `limit_s` to be seconds from 1 to 3600"),
        }
    }

    fn settle(&self, table: &DeTable<'s>) -> Read<Settle> {
        let Some(value) = table.get("settle") else {
            return Ok(Settle::default());
        };
        match self.text(value, "`settle`")?.as_str() {
            "retries" => Ok(Settle::Retries),
            "queues" => Ok(Settle::Queues),
            other => self.error(value.span().start, format!("expected `retries` or `queues`, found `{other}`")),
        }
    }

    fn cards(&self, table: &DeTable<'s>) -> Read<Vec<CardName>> {
        let Some(value) = table.get("cards") else {
            return Ok(CARDS.to_vec());
        };
        let mut cards: Vec<CardName> = Vec::new();
        for item in self.list(value, "`cards`")? {
            let name = self.text(item, "a card")?;
            match CARDS.iter().find(|card| card.name == name) {
                Some(card) if !cards.contains(card) => cards.push(*card),
                Some(_) => return self.error(item.span().start, format!("`{name}` is listed twice")),
                None => {
                    let names = list(&CARDS.map(|card| card.name));
                    return self.error(item.span().start, format!("unknown card `{name}`, expected {names}"));
                }
            }
        }
        if cards.is_empty() {
            return self.error(value.span().start, "expected at least one card, found none");
        }
        Ok(cards)
    }

    fn card(&self, table: &DeTable<'s>) -> Read<CardConfig> {
        table.get("card").map_or_else(|| Ok(CardConfig::default()), |value| self.card_config(value))
    }

    pub(super) fn card_config(&self, value: &Value<'s>) -> Read<CardConfig> {
        let at = value.span().start;
        self.card_strings(value)?;
        let config = CardConfig::deserialize(toml::de::ValueDeserializer::from(value.clone()))
            .map_err(|error| self.toml_error(&error, at))?;
        if let Err(error) = config.validate() {
            return self.error(field_at(value, &error).unwrap_or(at), error.to_string());
        }
        Ok(config)
    }

    /// Checks the strings of a card's configuration, whatever their keys are: each must be a line of text.
    fn card_strings(&self, card: &Value<'s>) -> Read<()> {
        let keys = card.get_ref().as_table().into_iter().flatten();
        for (key, value) in keys {
            let items = match value.get_ref() {
                DeValue::Array(items) => items.iter().collect(),
                _ => vec![value],
            };
            for item in items.into_iter().filter(|item| item.get_ref().is_str()) {
                self.text(item, &format!("`{}`", escaped(key.get_ref())))?;
            }
        }
        Ok(())
    }

    fn threads(&self, table: &DeTable<'s>, card: &CardConfig, end: usize) -> Read<Vec<ScenarioThread>> {
        let Some(value) = table.get("thread") else {
            return self.error(end, format!("expected a `[[thread]]`, found the end; {REQUIRED}"));
        };
        let mut threads: Vec<ScenarioThread> = Vec::new();
        for item in self.list(value, "`[[thread]]`")? {
            let at = item.span().start;
            let DeValue::Table(thread) = item.get_ref() else {
                return self.error(at, "expected `[[thread]]` to be a table with `name` and `steps`");
            };
            self.known_keys(thread, &["name", "steps"])?;
            let Some(name_value) = thread.get("name") else {
                return self.error(at, "a thread without a `name`");
            };
            let name = self.text(name_value, "`name`")?;
            if let Some(taken) = ["", "setup", "finally", "epilogue"].iter().find(|taken| **taken == name) {
                let message = format!("expected a name for the thread other than `{taken}`");
                return self.error(name_value.span().start, message);
            }
            if threads.iter().any(|other| other.name == name) {
                return self.error(
                    name_value.span().start,
                    format!("a second thread of the name `{name}`; expected a name of its own"),
                );
            }
            let steps = self.steps(thread.get("steps"), card)?;
            if steps.is_empty() {
                let at = thread.get("steps").map_or(at, |steps| steps.span().start);
                return self.error(at, format!("thread `{name}` has no steps, expected at least one"));
            }
            threads.push(ScenarioThread { name, steps });
        }
        if threads.is_empty() {
            return self.error(value.span().start, "expected at least one thread, found none");
        }
        Ok(threads)
    }

    fn steps(&self, value: Option<&Value<'s>>, card: &CardConfig) -> Read<Vec<Step>> {
        let Some(value) = value else { return Ok(Vec::new()) };
        let items = self.list(value, "steps")?;
        items.into_iter().map(|item| self.step(item, card)).collect()
    }

    fn step(&self, item: &Value<'s>, card: &CardConfig) -> Read<Step> {
        let at = item.span().start;
        let (run, expected) = match item.get_ref() {
            DeValue::String(_) => (item, Expected::Success),
            DeValue::Table(table) => {
                self.known_keys(table, &["run", "fails", "may_fail"])?;
                let Some(run) = table.get("run") else {
                    return self.error(at, "a step without `run`");
                };
                (run, self.outcome(table)?)
            }
            other => {
                return self
                    .error(at, format!("expected a step: a string, or a table with `run`; found {}", describe(other)));
            }
        };
        let text = self.lines(run, "`run`")?;
        let span = run.span();
        let action = Action::parse(&text, card).map_err(|error| self.word_error(&span, &error))?;
        Ok(Step { text, place: Place::of(self.source, inside_string(self.source, &span, 0)), action, expected })
    }

    fn outcome(&self, table: &DeTable<'s>) -> Read<Expected> {
        let may_fail = match table.get("may_fail") {
            None => false,
            Some(value) => match value.get_ref() {
                DeValue::Boolean(yes) => *yes,
                other => {
                    let message = format!("expected `may_fail` to be true or false, found {}", describe(other));
                    return self.error(value.span().start, message);
                }
            },
        };
        match table.get("fails") {
            Some(value) if may_fail => self.error(value.span().start, "expected `fails` or `may_fail`, found both"),
            Some(value) => {
                let text = self.text(value, "`fails`")?;
                if text.is_empty() {
                    return self.error(value.span().start, "expected an error such as \"EBUSY\", or text of one");
                }
                Ok(Expected::Failure(text))
            }
            None if may_fail => Ok(Expected::Either),
            None => Ok(Expected::Success),
        }
    }

    fn expectations(&self, table: &DeTable<'s>) -> Read<Vec<InFile<Expectation>>> {
        let Some(value) = table.get("expect") else {
            return Ok(Vec::new());
        };
        let mut expectations = Vec::new();
        for item in self.list(value, "`expect`")? {
            let text = self.text(item, "an expectation")?;
            let span = item.span();
            let value = Expectation::parse(&text).map_err(|error| self.word_error(&span, &error))?;
            let place = Place::of(self.source, inside_string(self.source, &span, 0));
            expectations.push(InFile { text, place, value });
        }
        Ok(expectations)
    }

    fn word_error(&self, span: &Range<usize>, error: &WordError) -> InputError {
        InputError {
            place: Place::of(self.source, inside_string(self.source, span, error.at)),
            message: error.message.clone(),
        }
    }
}

/// The byte at which the value of the field is that an error is about.
fn field_at(card: &Value<'_>, error: &ConfigError) -> Option<usize> {
    let field = match error {
        ConfigError::Range { field, .. } => field,
        ConfigError::TooManyVfs { .. } => "vfs",
        ConfigError::Function(_) => "address",
        ConfigError::Buses { .. } => "total_vfs",
        ConfigError::Module(_) => "modules",
    };
    Some(card.get_ref().as_table()?.get(field)?.span().start)
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{}\"", escaped(text)),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(yes) => yes.to_string(),
        DeValue::Datetime(date) => format!("the date {date}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
