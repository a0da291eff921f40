//! Runs scenarios on the card in memory.

use card_memory::MemoryCard;
use host::World;
use lockdep::{Domain, OnReport};
use scenario::{Outcome, Scenario};

/// Runs a scenario on a card in memory, with the order of locks checked.
pub fn run_in_memory(scenario: &Scenario) -> Outcome {
    let domain = Domain::checked(OnReport::Record);
    let world = World::of(MemoryCard::new(scenario.card.clone()), &domain);
    lockdep::enter(&domain, "main", |cx| scenario::run(cx, scenario, &world, &mut ()))
}

/// The violations of an outcome, as text.
pub fn complaints(outcome: &Outcome) -> Vec<String> {
    outcome.violations.iter().map(|v| format!("{}: {}", v.invariant, v.detail)).collect()
}
