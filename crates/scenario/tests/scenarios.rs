//! Every story in `scenarios/` that applies holds on the card in memory, again and again.

mod common;

use std::fs;
use std::path::Path;

use common::{complaints, tell};

const TIMES: usize = 20;

#[test]
fn every_story_holds_on_the_card_in_memory() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut stories = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        let story = scenario::parse(&source).unwrap_or_else(|error| panic!("{}:{error}", path.display()));
        if story.cards.iter().all(|card| card.name != "memory") {
            continue;
        }
        stories += 1;
        for round in 0..TIMES {
            let outcome = tell(&story);
            assert!(outcome.ok(), "{}, telling {round}: {:#?}", path.display(), complaints(&outcome));
        }
    }
    assert!(stories >= 17, "only {stories} stories");
}
