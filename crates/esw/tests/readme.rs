//! The README's session in a lab works as it is printed.
//!
//! The commands in README.md, each after `$ `, are run by one shell in a lab, and the output of each is compared with the
//! lines that follow it. `…` matches anything, on a line of its own any lines.

mod lab;

use std::fs;
use std::path::Path;

use lab::{Folder, compare, line_is, lines_are, session};

/// A command, and its expected output.
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The steps of every block after a `<!-- lab` comment.
fn steps() -> Vec<Step> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("<!-- lab") {
            continue;
        }
        assert_eq!(lines.next(), Some("```console"), "a session follows the comment");
        for line in lines.by_ref().take_while(|line| *line != "```") {
            match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step { command: command.to_owned(), expected: Vec::new() }),
                None => steps.last_mut().expect("a command comes first").expected.push(line.to_owned()),
            }
        }
    }
    steps
}

#[test]
fn the_ellipsis_stands_for_anything() {
    assert!(line_is("a…c", "abbc") && line_is("…", "") && !line_is("a…c", "ab"));
    let expected = ["one", "…", "last…"].map(str::to_owned);
    assert!(lines_are(&expected, &["one", "two", "three", "last of all"]));
    assert!(!lines_are(&expected, &["one", "two"]));
}

#[test]
fn the_session_works_as_printed() {
    if lab::skipped(&["devlink", "lspci", "ping"]) {
        return;
    }
    let folder = Folder::make("readme");
    let steps = steps();
    assert!(steps.len() > 10, "the README has its session");
    let commands: Vec<String> = steps.iter().map(|step| format!("{} || echo failed: $?", step.command)).collect();
    for (step, printed) in steps.iter().zip(session(&folder, "sh", "--card linux", &commands)) {
        compare(&step.command, &step.expected, &printed);
    }
}
