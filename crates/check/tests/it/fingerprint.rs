//! A scenario's fingerprint is the same on every machine and with every compiler. Otherwise tokens and the parts of a
//! campaign could not be used on another machine.

use scenario::parse;

const LATE_IB: &str = include_str!("../../../../scenarios/late-ib.toml");

#[test]
fn the_fingerprint_of_a_scenario_is_a_constant() {
    // It changes only with the contents of the scenario, or with the fields of a card.
    assert_eq!(
        check::fingerprint(&parse(LATE_IB).unwrap()),
        0xf8f177fab2e9d97d,
        "of\n{}",
        parse(LATE_IB).unwrap().to_toml()
    );
}

#[test]
fn it_depends_on_the_steps_and_not_on_their_form() {
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
