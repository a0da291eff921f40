//! What a telling comes to: success, failure, and what never ends.

mod common;

use common::{complaints, tell};

fn told(rest: &str) -> Vec<String> {
    let story = scenario::parse(&format!("name = \"n\"\nwhy = \"w\"\nlimit_s = 1\n{rest}")).unwrap();
    complaints(&tell(&story))
}

#[test]
fn a_step_that_fails_unasked_ends_its_thread_and_nobody_waits_for_it() {
    let complaints = told(
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
fn success_where_failure_was_expected_is_no_success() {
    let complaints = told("[[thread]]\nname = \"a\"\nsteps = [{ run = \"devlink dev show\", fails = \"EBUSY\" }]\n");
    assert_eq!(complaints, ["step: a: `devlink dev show`: it succeeded, and should have failed with EBUSY"]);
}

#[test]
fn another_error_than_the_expected_is_said() {
    let complaints = told("[[thread]]\nname = \"a\"\nsteps = [{ run = \"rmmod nonesuch\", fails = \"EBUSY\" }]\n");
    assert_eq!(complaints.len(), 1);
    assert!(
        complaints[0].contains("it failed with another error than EBUSY: module nonesuch not found"),
        "{complaints:?}"
    );
}

#[test]
fn what_never_comes_is_no_success_either() {
    let complaints = told("[[thread]]\nname = \"a\"\nsteps = [\"wait until vfs pci/0000:08:00.0 3\"]\n");
    assert_eq!(
        complaints,
        ["progress: a: `wait until vfs pci/0000:08:00.0 3`: \
             3 VFs on pci/0000:08:00.0 has not come within 1 s: there are 0"]
    );
}

#[test]
fn a_permanent_failure_is_progress_only_for_who_says_so() {
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
    let complaints = told(&rest.replace("always", "times always"));
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].starts_with("progress: an end of retries has not come within 1 s"), "{complaints:?}");
    let patient = told(&format!("settle = \"queues\"{}", rest.replace("always", "times always")));
    assert_eq!(patient, [""; 0]);
}
