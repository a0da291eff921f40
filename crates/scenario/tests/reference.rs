//! The reference says everything that can be written, and nothing that cannot.

use eswitch::CardConfig;
use scenario::{Action, EXPECTATIONS, Expectation, STEPS};

const REFERENCE: &str = include_str!("../../../docs/scenarios.md");

/// The cells of the reference's tables that start with a form: form and example.
fn rows() -> Vec<(String, String)> {
    let code = |cell: &str| Some(cell.trim().strip_prefix('`')?.strip_suffix('`')?.replace("\\|", "|"));
    REFERENCE
        .lines()
        .filter_map(|line| {
            let cells = line.replace("\\|", "\u{1}");
            let cells: Vec<&str> = cells.trim_matches('|').split('|').collect();
            match cells[..] {
                [form, _, example] => Some((code(form)?, code(example)?)),
                _ => None,
            }
        })
        .map(|(form, example)| (form.replace('\u{1}', "|"), example.replace('\u{1}', "|")))
        .collect()
}

#[test]
fn every_form_stands_in_the_reference() {
    let rows = rows();
    for entry in STEPS.iter().chain(EXPECTATIONS) {
        assert!(rows.iter().any(|(form, _)| form == entry.form), "`{}` has no row in docs/scenarios.md", entry.form);
    }
}

#[test]
fn every_example_of_the_reference_can_be_read() {
    let (mut steps, mut expectations) = (0, 0);
    for (form, example) in rows() {
        if STEPS.iter().any(|entry| entry.form == form) {
            Action::parse(&example, &CardConfig::default()).unwrap_or_else(|error| panic!("`{example}`: {error}"));
            steps += 1;
        } else if EXPECTATIONS.iter().any(|entry| entry.form == form) {
            Expectation::parse(&example).unwrap_or_else(|error| panic!("`{example}`: {error}"));
            expectations += 1;
        }
    }
    assert_eq!((steps, expectations), (STEPS.len(), EXPECTATIONS.len()));
}

#[test]
fn the_story_in_the_reference_can_be_told() {
    let story = REFERENCE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let story = scenario::parse(story.unwrap()).unwrap();
    assert_eq!(story.threads.len(), 2);
}

#[test]
fn every_key_stands_in_the_reference() {
    let card = format!("{:?}", CardConfig::default());
    let fields = card.split_once('{').unwrap().1.split(", ").filter_map(|field| field.split_once(':'));
    let keys = ["name", "why", "cards", "limit_s", "settle", "expect", "setup", "finally", "[card]", "[[thread]]"];
    for key in fields.map(|(key, _)| key.trim()).chain(keys) {
        assert!(REFERENCE.contains(&format!("| `{key}` |")), "`{key}` has no row in docs/scenarios.md");
    }
}
