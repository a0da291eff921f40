//! Explores scenarios: every interleaving and every failure, up to stated bounds.
//!
//! [`check`] runs a scenario again and again on the card in memory, with the engine, locks, queues and runner that
//! `esw run` uses. The crate [`explore`] chooses and reduces schedules, makes failures small and shows them. It knows
//! programs and not scenarios. This crate makes a scenario a [`Program`](explore::Program), in [`InMemory`], and words the
//! explorer's messages for `esw check`.

#![forbid(unsafe_code)]

mod error;
mod generate;
mod in_memory;

use std::sync::Arc;

pub use error::{MergeError, TokenError};
pub use explore::{
    Execution, Faults, FaultsReport, Found, Options, Orders, PageInfo, Place, Report, Row, RowKind, Search,
    SearchReport, ShownOrders, Story, Strategy, Token, Violation, Watch, columns, page, schedulers, trace,
};
pub use generate::{Hunt, HuntReport, Kept, generate, hunt};
pub use in_memory::{FINALLY, InMemory, SETUP, TOOL};
use scenario::Scenario;

/// The most threads of a scenario that can be explored. The engine has some threads of its own, and the explorer has a
/// [limit](explore::MOST_THREADS) for all of them.
pub const MOST_THREADS: usize = 48;

/// Explores a scenario on the card in memory. By `watch` other threads see the progress and can stop it.
pub fn check(scenario: &Scenario, options: &Options, watch: &Arc<Watch>) -> Report {
    explore::campaign(&InMemory::from(scenario), options, watch)
}

/// Makes the report of a scenario that was not explored before the campaign was interrupted.
pub fn not_explored(scenario: &Scenario, options: &Options) -> Report {
    Report::not_explored(&InMemory::from(scenario), options)
}

/// Adds the orders of locks in a scenario's report to `orders`. If they contradict those of other scenarios, this becomes a
/// violation of this scenario. `among`: the scenarios that are needed to run its story.
pub fn compare(report: &mut Report, orders: &mut Orders, among: &[Scenario]) {
    report.compare(orders, &in_memory(among));
}

/// Runs the schedule of a token again, and returns its story, with the invariant that does not hold if there is one.
/// `among`: the given scenarios. `whence`: where they are from, for errors.
///
/// # Errors
/// The token's scenario is not among the given ones, or has changed. Or everything held, and the schedule was not the
/// token's, because a part of the token did not occur.
///
/// # Panics
/// The thread that runs it cannot be started.
pub fn replay(among: &[Scenario], whence: &str, token: &Token) -> Result<Story, TokenError> {
    Ok(explore::replay(&in_memory(among), whence, token)?)
}

/// Reads a token that `esw` has printed.
///
/// # Errors
/// The text is not a token, or a token of another format or version.
pub fn token(text: &str) -> Result<Token, TokenError> {
    Ok(Token::read(text, &TOOL)?)
}

/// Returns the command that runs a token's schedule again. `files`: the files of its scenarios.
pub fn replay_command<S: AsRef<str>>(token: &str, files: &[S]) -> String {
    explore::replay_command(&TOOL, token, files)
}

/// Reads the reports in the text of a file, as `esw check --json` prints them. `file`: its name, for errors.
///
/// # Errors
/// A line is not a report.
pub fn read(file: &str, text: &str) -> Result<Vec<Report>, MergeError> {
    Ok(explore::read(file, text)?)
}

/// Joins the reports of the parts of a campaign, scenario by scenario.
///
/// # Errors
/// The parts are of different campaigns, a part occurs twice, or a part is missing.
pub fn merge(reports: Vec<Report>) -> Result<Vec<Report>, MergeError> {
    Ok(explore::merge(reports)?)
}

/// Returns a hash of a scenario's text in its [canonical form](Scenario::to_toml), the same on every machine and with every
/// compiler. It does not cover the scenario's reason, the cards on which it can run, and its time limit.
pub fn fingerprint(scenario: &Scenario) -> u64 {
    let Scenario { name, card, setup, threads, finally, settle, expect, .. } = scenario.clone();
    let does = Scenario { name, card, setup, threads, finally, settle, expect, ..Scenario::default() };
    explore::fingerprint(&does.to_toml())
}

fn in_memory(scenarios: &[Scenario]) -> Vec<InMemory> {
    scenarios.iter().map(InMemory::from).collect()
}
