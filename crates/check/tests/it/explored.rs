//! A finding is shown in every form: the scenario expects a mode that some orders do not lead to.

use std::sync::Arc;

use check::schedulers::Deviation;
use check::{Options, PageInfo, RowKind, Story, Token, Watch, columns, page, trace};

const SCENARIO: &str = r#"
name = "two who differ"
why = "One wants switchdev mode, the other loads a module and wants legacy mode; whoever is last has it."
expect = ["mode pci/0000:08:00.0 switchdev"]

[card]
vfs = 2

[[thread]]
name = "orchestrator"
steps = ["devlink dev eswitch set pci/0000:08:00.0 mode switchdev"]

[[thread]]
name = "admin"
steps = ["modprobe mlx5_ib", "devlink dev eswitch set pci/0000:08:00.0 mode legacy"]
"#;

fn found() -> Story {
    let scenario = scenario::parse(SCENARIO).unwrap();
    let report = check::check(&scenario, &Options::default(), &Arc::new(Watch::default()));
    report.violations.into_iter().next().expect("some order does not give it").story
}

#[test]
fn a_finding_is_shown_in_every_form() {
    let story = found();
    let text = columns(&story, 160);
    assert!(text.contains("DOES NOT HOLD"), "{text}");
    assert!(text.contains("mode legacy"), "{text}");
    assert!(text.contains(&format!("esw check --replay {}", story.token)), "{text}");
    assert!(page(std::slice::from_ref(&story), &PageInfo::default()).contains(&story.token));
    let trace = trace(&story);
    let count =
        |phase: &str| trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == phase).count();
    assert_eq!(count("B"), count("E"));
    assert!(count("B") > 50, "{}", count("B"));
}

#[test]
fn a_preemption_is_shown_at_its_place() {
    let scenario = scenario::parse(SCENARIO).unwrap();
    let plain = found();
    let named = |name: &str| plain.threads.iter().position(|thread| thread == name).unwrap() as u8;
    // After so many operations the orchestrator holds devlink, which the other one is about to take.
    let holds = "waits for devlink, which orchestrator holds";
    let preempted = (1..100).find_map(|ops| {
        let deviations = vec![Deviation { thread: named("orchestrator"), ops, to: named("admin") }];
        let token = Token { deviations, ..plain.token.parse().unwrap() };
        let story = check::replay(std::slice::from_ref(&scenario), "here", &token).ok()?;
        columns(&story, 300).contains(holds).then_some(story)
    });
    let story = preempted.expect("a place at which it is preempted with devlink");
    assert_eq!(story.preemptions, 1);
    assert_eq!(story.rows.iter().filter(|row| row.kind == RowKind::Preempted).count(), 1);
    let text = columns(&story, 300);
    let (before, after) = text.split_once("preemption: orchestrator could go on, admin does instead").expect(&text);
    assert!(before.contains("mode switchdev") && after.contains("modprobe mlx5_ib"), "{text}");
    assert!(after.contains(holds), "{text}");
}
