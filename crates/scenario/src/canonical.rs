//! Scenarios as text in one form: equal scenarios have equal texts, whatever their files look like.

use std::fmt::{self, Write as _};

use toml::Value;

use crate::file::{Scenario, Settle};
use crate::step::{Expected, Step};

impl Scenario {
    /// The scenario as the text of a file, from which [`parse`](crate::parse) reads the same scenario. It has every key,
    /// in one order, and every value in one form, so that hashes of it can be compared between machines and versions of
    /// the compiler.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail, and neither does a card's configuration as a table.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "name = {}", Text(&self.name))?;
        writeln!(out, "why = {}", Text(&self.why))?;
        let cards: Vec<_> = self.cards.iter().map(|card| Text(card.name).to_string()).collect();
        writeln!(out, "cards = [{}]", cards.join(", "))?;
        writeln!(out, "limit_s = {}", self.limit.as_secs())?;
        let settle = match self.settle {
            Settle::Retries => "retries",
            Settle::Queues => "queues",
        };
        writeln!(out, "settle = {}", Text(settle))?;
        list(out, "setup", self.setup.iter().map(step))?;
        list(out, "finally", self.finally.iter().map(step))?;
        list(out, "expect", self.expect.iter().map(|expect| Text(&expect.text).to_string()))?;
        writeln!(out, "\n[card]")?;
        let card = Value::try_from(&self.card).map_err(|_| fmt::Error)?;
        let mut fields: Vec<_> = card.as_table().into_iter().flatten().collect();
        // The order of declaration must not change the text.
        fields.sort_unstable_by_key(|(key, _)| *key);
        for (key, value) in fields {
            writeln!(out, "{key} = {}", Field(value))?;
        }
        for thread in &self.threads {
            writeln!(out, "\n[[thread]]")?;
            writeln!(out, "name = {}", Text(&thread.name))?;
            list(out, "steps", thread.steps.iter().map(step))?;
        }
        Ok(())
    }
}

fn list(out: &mut String, key: &str, items: impl Iterator<Item = String>) -> fmt::Result {
    writeln!(out, "{key} = [")?;
    for item in items {
        writeln!(out, "    {item},")?;
    }
    writeln!(out, "]")
}

fn step(step: &Step) -> String {
    let run = Text(&step.text);
    match &step.expected {
        Expected::Success => run.to_string(),
        Expected::Failure(error) => format!("{{ run = {run}, fails = {} }}", Text(error)),
        Expected::Either => format!("{{ run = {run}, may_fail = true }}"),
    }
}

/// A string between quotation marks.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\n' => f.write_str("\\n")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() => write!(f, "\\u{:04X}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// A field of a card's configuration.
struct Field<'a>(&'a Value);

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::String(text) => Text(text).fmt(f),
            Value::Integer(number) => number.fmt(f),
            Value::Boolean(yes) => yes.fmt(f),
            Value::Array(items) => {
                f.write_char('[')?;
                for (item, index) in items.iter().zip(0..) {
                    write!(f, "{}{}", if index > 0 { ", " } else { "" }, Field(item))?;
                }
                f.write_char(']')
            }
            // A card has none of these. One that is added some day needs one form, too.
            Value::Float(_) | Value::Datetime(_) | Value::Table(_) => Err(fmt::Error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::place::Place;
    use crate::{CARDS, parse};

    /// The scenario without its places, which its text does not keep.
    fn without_places(mut scenario: Scenario) -> Scenario {
        let nowhere = Place { line: 0, column: 0 };
        let Scenario { setup, threads, finally, expect, .. } = &mut scenario;
        let steps = threads.iter_mut().flat_map(|thread| &mut thread.steps);
        setup.iter_mut().chain(steps).chain(finally).for_each(|step| step.place = nowhere);
        expect.iter_mut().for_each(|expect| expect.place = nowhere);
        scenario
    }

    #[test]
    fn the_text_of_a_scenario_is_read_as_the_same_scenario() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
        let mut read = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let scenario = parse(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
            let again = parse(&scenario.to_toml()).unwrap_or_else(|error| panic!("{error}\n{}", scenario.to_toml()));
            assert_eq!(again.to_toml(), scenario.to_toml());
            assert_eq!(without_places(again), without_places(scenario));
            read += 1;
        }
        assert!(read > 20);
    }

    #[test]
    fn quotes_and_escapes_in_a_text_are_read_again() {
        let source = r#"
            name = "a \"name\" \\ with \u00e9"
            why = "because\nof\tthis"
            setup = [{ run = "devlink dev show", fails = "a \"reason\"" }]
            [card]
            modules = ["mlx5_ib"]
            [[thread]]
            name = "one"
            steps = [{ run = "devlink dev show", may_fail = true }, "devlink port show"]
        "#;
        let scenario = parse(source).unwrap();
        assert_eq!(without_places(parse(&scenario.to_toml()).unwrap()), without_places(scenario));
    }

    #[test]
    fn an_empty_scenario_has_a_text() {
        assert!(Scenario::default().to_toml().starts_with("name = \"\"\n"));
        assert_eq!(Scenario::default().cards, CARDS);
    }
}
