//! Every scenario in `scenarios/` for the card in memory holds there, again and again.

use std::fs;
use std::path::Path;

use crate::common::{complaints, run_in_memory};

const TIMES: usize = 20;

#[test]
fn every_scenario_holds_on_the_card_in_memory() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut scenarios = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        let scenario = scenario::parse(&source).unwrap_or_else(|error| panic!("{}:{error}", path.display()));
        if scenario.cards.iter().all(|card| card.name != "memory") {
            continue;
        }
        scenarios += 1;
        for round in 0..TIMES {
            let outcome = run_in_memory(&scenario);
            assert!(outcome.ok(), "{}, round {round}: {:#?}", path.display(), complaints(&outcome));
        }
    }
    assert!(scenarios >= 17, "only {scenarios} scenarios");
}
