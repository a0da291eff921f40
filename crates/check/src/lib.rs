//! Explores scenarios: every interleaving, every failure, up to bounds that are told.
//!
//! [`check`] tells a scenario again and again on the card in memory, with the engine, locks, queues and
//! runner that `esw run` uses. How schedules are chosen, reduced, made small and told is the business of [`explore`], which
//! knows programs and no scenarios: here a scenario is made a [`Program`](explore::Program), in [`InMemory`], and the
//! explorer is made to speak as `esw check` does.

#![forbid(unsafe_code)]

mod error;
mod in_memory;

use std::sync::Arc;

pub use error::{MergeError, TokenError};
pub use explore::{
    Execution, Faults, FaultsReport, Found, Options, Orders, PageInfo, Place, Report, Row, RowKind, ShownOrders, Story,
    Strategy, Token, Violation, Watch, columns, page, schedulers, trace,
};
pub use in_memory::{FINALLY, InMemory, SETUP, TOOL};
use scenario::Scenario;

/// A scenario has this many threads at most, to be explored: the engine has some of its own, and the explorer has no room for more
/// than [so many](explore::MOST_THREADS).
pub const MOST_THREADS: usize = 48;

/// Explores a scenario on the card in memory.
pub fn check(scenario: &Scenario, options: &Options, watch: &Arc<Watch>) -> Report {
    explore::campaign(&InMemory::from(scenario), options, watch)
}

/// The report of a scenario whose turn did not come before the campaign was interrupted.
pub fn not_explored(scenario: &Scenario, options: &Options) -> Report {
    Report::not_explored(&InMemory::from(scenario), options)
}

/// Takes in the orders of locks that a scenario's report has. If they contradict those of others, that becomes a violation
/// of this one. `among`: the scenarios there are, to tell it.
pub fn compare(report: &mut Report, orders: &mut Orders, among: &[Scenario]) {
    report.compare(orders, &in_memory(among));
}

/// Tells the schedule of a token again: what happens, with the invariant that does not hold if there is one. `among`:
/// the scenarios there are; `whence`: where they are from, for errors.
///
/// # Errors
/// What the token is of is not among them, or has changed. All of it held, and it was not the schedule of the token, as
/// that has something in it that never came.
///
/// # Panics
/// The thread that tells it cannot be started.
pub fn replay(among: &[Scenario], whence: &str, token: &Token) -> Result<Story, TokenError> {
    Ok(explore::replay(&in_memory(among), whence, token)?)
}

/// Reads a token that `esw` has printed.
///
/// # Errors
/// It is none, or of another form or version.
pub fn token(text: &str) -> Result<Token, TokenError> {
    Ok(Token::read(text, &TOOL)?)
}

/// The command that tells a token's schedule again, of scenarios in these files.
pub fn replay_command<S: AsRef<str>>(token: &str, files: &[S]) -> String {
    explore::replay_command(&TOOL, token, files)
}

/// Reads the reports in a file's text, as `esw check --json` prints them.
///
/// # Errors
/// A line that is none.
pub fn read(file: &str, text: &str) -> Result<Vec<Report>, MergeError> {
    Ok(explore::read(file, text)?)
}

/// Joins the parts of a campaign, scenario by scenario.
///
/// # Errors
/// Parts of different campaigns, a part twice, a part missing.
pub fn merge(reports: Vec<Report>) -> Result<Vec<Report>, MergeError> {
    Ok(explore::merge(reports)?)
}

/// What a scenario contains, in short: a hash of its text in [one form](Scenario::to_toml), the same on every machine and
/// with every compiler. What it is about, the cards it can be told on and how long it may take are no part of it.
pub fn fingerprint(scenario: &Scenario) -> u64 {
    let Scenario { name, card, setup, threads, finally, settle, expect, .. } = scenario.clone();
    let does = Scenario { name, card, setup, threads, finally, settle, expect, ..Scenario::default() };
    explore::fingerprint(&does.to_toml())
}

fn in_memory(scenarios: &[Scenario]) -> Vec<InMemory> {
    scenarios.iter().map(InMemory::from).collect()
}
