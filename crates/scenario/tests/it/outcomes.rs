//! Outcomes of scenarios: success, failure, and waits that never end.

use crate::common::{complaints, run_in_memory};

fn violations_of(rest: &str) -> Vec<String> {
    let scenario = scenario::parse(&format!("name = \"n\"\nwhy = \"w\"\nlimit_s = 1\n{rest}")).unwrap();
    complaints(&run_in_memory(&scenario))
}

#[test]
fn a_step_that_fails_unexpectedly_ends_its_thread_and_no_other_waits_for_it() {
    let complaints = violations_of(
        r#"
finally = ["devlink dev eswitch set pci/0000:08:00.0 mode legacy"]
expect = ["mode pci/0000:08:00.0 legacy"]
[[thread]]
name = "a"
steps = ["rmmod nonesuch", "sync x", "modprobe mlx5_ib"]
[[thread]]
name = "b"
steps = ["devlink dev eswitch set pci/0000:08:00.0 mode switchdev", "sync x"]
"#,
    );
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].starts_with("step: a: `rmmod nonesuch`: module nonesuch not found"), "{complaints:?}");
}

#[test]
fn success_where_a_failure_is_expected_is_a_violation() {
    let complaints =
        violations_of("[[thread]]\nname = \"a\"\nsteps = [{ run = \"devlink dev show\", fails = \"EBUSY\" }]\n");
    assert_eq!(complaints, ["step: a: `devlink dev show`: it succeeded, and should have failed with EBUSY"]);
}

#[test]
fn an_error_other_than_the_expected_is_a_violation() {
    let complaints =
        violations_of("[[thread]]\nname = \"a\"\nsteps = [{ run = \"rmmod nonesuch\", fails = \"EBUSY\" }]\n");
    assert_eq!(complaints.len(), 1);
    assert!(
        complaints[0].contains("it failed with another error than EBUSY: module nonesuch not found"),
        "{complaints:?}"
    );
}

#[test]
fn an_expectation_that_never_holds_is_a_violation() {
    let complaints = violations_of("[[thread]]\nname = \"a\"\nsteps = [\"wait until vfs pci/0000:08:00.0 3\"]\n");
    assert_eq!(
        complaints,
        ["progress: a: `wait until vfs pci/0000:08:00.0 3`: \
             waited 1 s for 3 VFs on pci/0000:08:00.0: there are 0"]
    );
}

#[test]
fn a_permanent_failure_is_progress_only_with_settle_queues() {
    let rest = r#"
setup = ["fail ib vf 0 always"]
expect = ["rep pci/0000:08:00.0/1 ib failed"]
[card]
vfs = 1
mode = "switchdev"
[[thread]]
name = "a"
steps = ["modprobe mlx5_ib", "wait until rep pci/0000:08:00.0/1 ib failed"]
"#;
    let complaints = violations_of(&rest.replace("always", "times always"));
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].starts_with("progress: waited 1 s for the end of retries"), "{complaints:?}");
    let patient = violations_of(&format!("settle = \"queues\"{}", rest.replace("always", "times always")));
    assert_eq!(patient, [""; 0]);
}
