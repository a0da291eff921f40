//! `esw show`: cards that are up, drawn: their functions, their representors, what each is called where, and what is not well.

mod drawing;
mod masters;
mod model;
mod tree;

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::arguments::Show;
use crate::daemon::{DaemonConnection, PATIENCE};
use crate::exit_status::{FAILED, HELD};
use crate::output::{Style, line};
use crate::printable::{printable, printable_json};
use crate::sockets::connect;

use model::Shown;

/// Runs the command; its exit status, which is 1 if something of a card is not well.
///
/// # Errors
/// No card is up, a daemon does not answer, there are several cards for one drawing, or it cannot be written.
pub fn show(arguments: &Show) -> Result<u8> {
    let (mut cards, masters) = (Vec::new(), masters::masters());
    for mut card in connect(&arguments.which)? {
        let view = card.client.share()?.newer()?.context("the card has published nothing yet")?;
        // Each begins with a line that is not indented.
        let rules = card.client.rules()?.iter().filter(|line| line.starts_with("filter ")).count();
        let status = DaemonConnection::connect(&card.path, Instant::now() + PATIENCE)?.status(&card.path)?;
        cards.push(Shown::of(&view, &status, rules, &masters));
    }
    let problems = cards.iter().flat_map(|card| &card.pfs).any(|pf| !pf.problems.is_empty());
    if let Some(path) = &arguments.svg {
        ensure!(cards.len() == 1, "a drawing has one card, and {} are up; name one with --card", cards.len());
        let drawing = drawing::svg(&cards[0]);
        fs::write(path, drawing).with_context(|| format!("writing {}", path.display()))?;
    } else if arguments.json {
        for card in &cards {
            line(&printable_json(&serde_json::to_string(card)?));
        }
    } else {
        let style = Style::detect();
        cards.iter().flat_map(|card| tree::lines(card, style)).for_each(|text| line(&text));
    }
    Ok(if problems { FAILED } else { HELD })
}

/// A text of which other programs have made parts, such as names of netdevs.
fn clean(text: &str) -> String {
    printable(text).into_owned()
}
