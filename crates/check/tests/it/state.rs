//! What the engine reports of its state to the explorer is sufficient: in every scenario, wherever the same state is met and
//! the same thread is chosen, the same follows, whatever led there.

use std::path::Path;

use check::InMemory;
use explore::validate_states;

#[test]
fn the_same_state_leads_to_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let schedules = std::env::var("SCHEDULES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let mut total = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let scenario = scenario::parse(&std::fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        if scenario.cards.iter().any(|card| card.name == "memory") {
            let report = validate_states(&InMemory::from(&scenario), 1, schedules).unwrap_or_else(|e| panic!("{e}"));
            println!("{}: {}", scenario.name, report.met_again);
            total += report.met_again;
        }
    }
    assert!(total > 1_000, "states were to be met in several ways: {total}");
}
