//! The code that runs scenarios is the code that is explored: under a scheduler that decides every interleaving and every
//! time-out.

use crate::common::{complaints, run_in_memory};
use shuttle::scheduler::RandomScheduler;

fn explore(scenario: &str, times: usize) {
    let scenario = scenario::parse(scenario).unwrap();
    let explored = lockdep::Explore::default().until_failure(RandomScheduler::new(times), move || {
        let outcome = run_in_memory(&scenario);
        assert!(outcome.ok(), "{:#?}", complaints(&outcome));
    });
    assert_eq!(explored.unwrap_or_else(|halt| panic!("{halt}")), times);
}

#[test]
fn registration_against_a_mode_change_ends_well_in_every_order() {
    explore(
        r#"
name = "registration against a mode change"
why = "either may be first"
expect = ["mode pci/0000:08:00.0 switchdev", "reps pci/0000:08:00.0 ib loaded 2"]

[card]
vfs = 1

[[thread]]
name = "orchestrator"
steps = ["sync start", "devlink dev eswitch set pci/0000:08:00.0 mode switchdev"]

[[thread]]
name = "admin"
steps = ["sync start", "modprobe mlx5_ib"]
"#,
        200,
    );
}

#[test]
fn waits_sleeps_and_failures_on_demand_are_explored_too() {
    explore(
        r#"
name = "a late load that fails once"
why = "retried until it has succeeded"
setup = ["fail ib vf 0 times 1"]
expect = ["rep pci/0000:08:00.0/1 ib loaded", "event ib representor did not load"]

[card]
vfs = 1
mode = "switchdev"

[[thread]]
name = "admin"
steps = ["modprobe mlx5_ib", "sleep 1ms", "wait until rep pci/0000:08:00.0/1 ib loaded"]

[[thread]]
name = "hotplug"
steps = ["devlink dev eswitch show pci/0000:08:00.0", "wait settled"]
"#,
        200,
    );
}
