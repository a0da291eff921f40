//! Scenarios: what to run, on which threads, and what must hold.
//!
//! A [`Scenario`] is read from a TOML file whose steps are the words that people type at a shell. [`run`] runs it in a
//! [`host::World`]: it brings a card up, has each named thread take its steps, waits until everything is at rest, and
//! reports in an [`Outcome`] what held. A [`Session`] takes the same steps one by one, as a prompt does.
//!
//! Nothing here knows which kind of card it is. Threads, locks and time-outs are lockdep's and there is no clock of its
//! own, so the code that runs a scenario is the code that is explored in every order.

#![forbid(unsafe_code)]

mod barrier;
mod canonical;
mod expectation;
mod file;
mod place;
mod run;
mod session;
mod show;
mod step;
mod vocabulary;

pub use control::WordError;
pub use control::forms::Entry;
pub use expectation::{AuxState, Expectation, SfExpectation};
pub use file::{CARDS, CardName, InFile, Scenario, ScenarioThread, Settle, parse, parse_card};
pub use place::{InputError, Place};
pub use run::{Observer, Outcome, StepRecord, Verdict, run};
pub use session::{Session, StepError};
pub use show::{Ports, describe_port};
pub use step::{Action, Expected, Step};
pub use vocabulary::{EXPECTATIONS, STEPS, completions, form_of};
