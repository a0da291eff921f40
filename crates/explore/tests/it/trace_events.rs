//! Stories as trace events have the form that viewers require.

use std::collections::BTreeMap;

use crate::stories;
use explore::{Story, trace};
use serde_json::Value;

/// Checks that the slices of every track nest, that each slice ends, and that time increases.
fn assert_well_formed(story: &Story) -> Vec<Value> {
    let trace = trace(story);
    let events = trace["traceEvents"].as_array().unwrap().clone();
    let mut open: BTreeMap<(u64, u64), Vec<&str>> = BTreeMap::new();
    let mut now: BTreeMap<(u64, u64), f64> = BTreeMap::new();
    let end = story.rows.last().map_or(0.0, |row| row.step as f64 + 1.0);
    for event in events.iter().filter(|event| ["B", "E", "i", "s", "f"].contains(&event["ph"].as_str().unwrap())) {
        let track = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        let time = event["ts"].as_f64().unwrap();
        let before = now.insert(track, time).unwrap_or(0.0);
        assert!(before <= time && time <= end, "{before} {event}");
        let name = event["name"].as_str().unwrap();
        match event["ph"].as_str().unwrap() {
            "B" => open.entry(track).or_default().push(name),
            "E" => assert_eq!(open.get_mut(&track).and_then(Vec::pop), Some(name)),
            // An arrow begins and ends in a slice, or viewers leave it out.
            "s" | "f" => assert!(open.get(&track).is_some_and(|slices| !slices.is_empty()), "{event}"),
            _ => {}
        }
    }
    assert!(open.values().all(Vec::is_empty), "{open:?}");
    let flows = |ph: &str| events.iter().filter(|event| event["ph"] == ph).map(|event| event["id"].clone()).collect();
    let (starts, ends): (Vec<_>, Vec<_>) = (flows("s"), flows("f"));
    assert_eq!(starts, ends);
    assert_eq!(starts.len(), story.preemptions);
    events
}

fn count(events: &[Value], phase: &str, category: &str) -> usize {
    events.iter().filter(|event| event["ph"] == phase && event["cat"] == category).count()
}

#[test]
fn every_story_is_well_formed() {
    for story in [stories::race(), stories::deadlock(), stories::hostile(), stories::long(), Story::default()] {
        assert_well_formed(&story);
    }
}

#[test]
fn a_race_has_its_locks_steps_card_and_violation() {
    let events = assert_well_formed(&stories::race());
    assert_eq!(count(&events, "i", "card"), 10);
    assert_eq!(count(&events, "i", "fault"), 1);
    assert_eq!(count(&events, "i", "violation"), 1);
    assert_eq!(count(&events, "B", "step"), 2);
    let named = |name: &str| events.iter().filter(|event| event["ph"] == "B" && event["name"] == name).count();
    assert_eq!((named("representors"), named("module"), named("mode")), (2, 1, 2));
    let tracks = events.iter().filter(|event| event["name"] == "thread_name").count();
    assert_eq!(tracks, 2 * 4, "what each does, and when it runs");
}

#[test]
fn a_lock_that_outlives_the_lock_above_it_is_shown_in_two_pieces() {
    let mut writer = stories::Writer::new(&["t"]);
    writer.take(0, "devlink", 1, "a.rs:1").take(0, "representors", 2, "a.rs:2");
    writer.drop(0, "devlink", 1).drop(0, "representors", 2);
    let events = assert_well_formed(&writer.end("", &[]));
    let pieces = events.iter().filter(|event| event["ph"] == "B" && event["name"] == "representors").count();
    assert_eq!(pieces, 2);
}
