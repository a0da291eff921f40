//! A world for a story: the card in memory.

use std::sync::Arc;
use std::time::Duration;

use card_memory::MemoryCard;
use eswitch::card::{FaultPlan, Faulty};
use lockdep::{Domain, OnReport};
use scenario::{Outcome, Pulse, Scenario, World};

/// Tells a story on a card in memory, with locks checked.
pub fn tell(story: &Scenario) -> Outcome {
    let domain = Domain::checked(OnReport::Record);
    let faults = Arc::new(FaultPlan::default());
    let world = World {
        card: Arc::new(Faulty::new(MemoryCard::new(story.card.clone()), Arc::clone(&faults))),
        faults,
        domain: Arc::clone(&domain),
        pulse: Arc::new(Pulse::new()),
        clock: Arc::new(|| Duration::ZERO),
        programs: None,
        bonds: None,
    };
    lockdep::enter(&domain, "main", |cx| scenario::run(cx, story, &world, &mut ()))
}

/// What is wrong with a telling, for a test to print.
pub fn complaints(outcome: &Outcome) -> Vec<String> {
    outcome.violations.iter().map(|v| format!("{}: {}", v.invariant, v.detail)).collect()
}
