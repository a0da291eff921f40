//! Generated stories, explored for the invariants alone.

use std::sync::Arc;

use check::{Hunt, Kept, Violation, generate, hunt};

#[test]
fn a_few_stories_hold_and_are_counted() {
    let report = hunt(&Hunt { seed: 5, stories: Some(6), schedules: 10, ..Hunt::default() }, &Arc::default()).unwrap();

    assert!(report.kept.is_none(), "{:?}", report.kept.map(|kept| kept.violation.detail));
    assert_eq!(report.stories, 6);
    assert!(report.schedules >= 6, "{report:?}");
    assert!(report.steps.keys().all(|form| scenario::STEPS.iter().any(|entry| entry.form == *form)));
    assert!(!report.steps.is_empty());
}

#[test]
fn two_jobs_explore_what_one_does() {
    let of = |jobs| {
        let report = hunt(&Hunt { seed: 9, stories: Some(4), schedules: 8, jobs, ..Hunt::default() }, &Arc::default());
        let report = report.unwrap();
        (report.stories, report.schedules, report.steps)
    };

    assert_eq!(of(1), of(2));
}

#[test]
fn what_is_left_of_a_story_is_a_scenario_with_a_token_of_its_own() {
    // Given a schedule of a story in which the last step of a thread is left out.
    let story =
        (0..).map(|number| generate(1, number).unwrap()).find(|story| story.threads[0].steps.len() > 1).unwrap();
    let gone = (0, story.threads[0].steps.len() as u16 - 1);
    let program = check::InMemory::from(&story);
    let token = check::Token { without: vec![gone], bound: 1_000_000, ..check::Token::of(&program) };

    // When it is kept.
    let violation = Violation { token: token.to_string(), ..no_violation() };
    let kept = Kept::new(story, violation);

    // Then the file has one step less, and the new token runs it without naming the step.
    let [scenario] = &kept.scenarios[..] else { panic!("{:?}", kept.scenarios) };
    let again = scenario::parse(&scenario.to_toml()).unwrap();
    let token = check::token(&kept.violation.token).unwrap();
    assert!(token.without.is_empty());
    let story = check::replay(&[again], "the test", &token).unwrap();
    assert_eq!(story.invariant, "", "{}", story.detail);
}

fn no_violation() -> Violation {
    let story = check::Story::default();
    Violation { invariant: String::new(), detail: String::new(), token: String::new(), found_by: None, story }
}
