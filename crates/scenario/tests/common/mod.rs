//! A world for a story: the card in memory.

use card_memory::MemoryCard;
use host::World;
use lockdep::{Domain, OnReport};
use scenario::{Outcome, Scenario};

/// Tells a story on a card in memory, with locks checked.
pub fn tell(story: &Scenario) -> Outcome {
    let domain = Domain::checked(OnReport::Record);
    let world = World::of(MemoryCard::new(story.card.clone()), &domain);
    lockdep::enter(&domain, "main", |cx| scenario::run(cx, story, &world, &mut ()))
}

/// What is wrong with a telling, for a test to print.
pub fn complaints(outcome: &Outcome) -> Vec<String> {
    outcome.violations.iter().map(|v| format!("{}: {}", v.invariant, v.detail)).collect()
}
