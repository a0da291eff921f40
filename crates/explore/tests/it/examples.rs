//! The examples find the bugs that they contain.

#[allow(dead_code, reason = "its `main` is for readers")]
#[path = "../../examples/driver.rs"]
mod driver;

#[test]
fn the_teardown_that_can_deadlock_is_found_and_the_other_is_not() {
    let [wrong, right] = driver::both();
    let violation = wrong.violations.first().expect("it is there to be found");
    assert_eq!(violation.invariant, "progress");
    assert!(violation.detail.contains("main waits for the end of worker"), "{}", violation.detail);
    assert!(violation.detail.contains("worker waits for device, which main holds"), "{}", violation.detail);
    let text = explore::columns(&violation.story, 200);
    assert!(text.contains("waits for the end of worker, for ever"), "{text}");
    assert_eq!((right.violations.len(), right.exhaustive_preemptions), (0, Some(2)));
}
