//! A scenario's fingerprint is the same on every machine and with every compiler, or tokens and the parts of a campaign
//! could not travel.

use scenario::parse;

const LATE_IB: &str = include_str!("../../../scenarios/late-ib.toml");

#[test]
fn the_fingerprint_of_a_scenario_is_a_constant() {
    // It changes only with what the scenario says, or with what a card has to say of itself.
    assert_eq!(
        check::fingerprint(&parse(LATE_IB).unwrap()),
        0xce9f9b03879de83e,
        "of\n{}",
        parse(LATE_IB).unwrap().to_toml()
    );
}

#[test]
fn it_goes_by_what_is_done_and_not_by_how_that_is_written() {
    let scenario = parse(LATE_IB).unwrap();
    let same = check::fingerprint(&scenario);
    let written_otherwise = parse(&format!("# A remark.\n{}", scenario.to_toml())).unwrap();
    assert_eq!(check::fingerprint(&written_otherwise), same);
    let why = scenario::Scenario { why: "for another reason".to_owned(), ..scenario.clone() };
    assert_eq!(check::fingerprint(&why), same);
    let mut other = scenario.clone();
    other.card.vfs += 1;
    assert_ne!(check::fingerprint(&other), same, "another card");
    let mut other = scenario.clone();
    let step = other.threads[0].steps.pop().unwrap();
    other.finally.insert(0, step);
    assert_ne!(check::fingerprint(&other), same, "a step that is taken later");
}
