//! `esw check` as a program: what it finds, how it runs a schedule again, what it refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

fn esw(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_esw")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Vec<Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("esw-check-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Holds in every order.
const HOLDS: &str = r#"
name = "it holds"
why = "for a test"
expect = ["vfs pci/0000:08:00.0 2", "mode pci/0000:08:00.0 switchdev"]
[[thread]]
name = "vfs"
steps = ["echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs"]
[[thread]]
name = "mode"
steps = ["devlink dev eswitch set pci/0000:08:00.0 mode switchdev"]
"#;

/// Holds unless `counter` is between the two of `vfs`; the others have nothing to do with it.
const FAILS: &str = r#"
name = "it fails in some order"
why = "for a test"
setup = ["devlink dev show"]
[[thread]]
name = "vfs"
steps = [
  "echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs",
  "echo 0 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs",
]
[[thread]]
name = "counter"
steps = ["devlink dev show", "expect vfs pci/0000:08:00.0 0"]
"#;

#[test]
fn what_holds_in_every_order_is_said_to_up_to_which_bound() {
    let folder = Folder::new("holds");
    let file = folder.file("holds.toml", HOLDS);
    let output = esw(&["check", &file, "--strategy", "bounded", "--preemptions", "1", "--time", "300", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let report = &json(&output)[0];
    assert_eq!(report["scenario"], "it holds");
    assert_eq!(report["strategy"], "bounded");
    assert_eq!(report["exhaustive_preemptions"], 1);
    assert!(report["schedules"].as_u64().unwrap() > 10, "{report}");
    assert_eq!(report["violations"].as_array().unwrap().len(), 0);
    assert!(report["elapsed_ms"].is_u64() && report["faults"]["mode"] == "none", "{report}");
    // With a failure in each place, too.
    let arguments = [
        "check",
        &file,
        "--strategy",
        "bounded",
        "--preemptions",
        "0",
        "--fault-preemptions",
        "0",
        "--faults",
        "each",
        "--time",
        "300",
        "--json",
    ];
    let output = esw(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let faults = &json(&output)[0]["faults"];
    assert!(faults["places"].as_u64().unwrap() > 10 && faults["exhaustive_preemptions"] == 0, "{faults}");
}

#[test]
fn every_strategy_finds_what_fails_and_its_token_tells_it_again() {
    let folder = Folder::new("fails");
    let file = folder.file("fails.toml", FAILS);
    for strategy in ["portfolio", "bounded", "random", "pct", "urw"] {
        let output = esw(&["check", &file, "--strategy", strategy, "--schedules", "20000", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{strategy}: {}", text(&output.stderr));
        let report = json(&output).remove(0);
        let violation = &report["violations"][0];
        assert_eq!(violation["invariant"], "expectation", "{report}");
        let token = violation["token"].as_str().unwrap();
        for _ in 0..2 {
            let again = esw(&["check", "--replay", token, &file, "--json"]);
            assert_eq!(again.status.code(), Some(1), "{}", text(&again.stderr));
            let story = json(&again).remove(0);
            assert_eq!(story["invariant"], violation["invariant"]);
            assert_eq!(story["detail"], violation["detail"]);
            assert!(story["rows"].as_array().unwrap().len() > 10);
        }
    }
}

#[test]
fn a_token_is_bound_to_its_scenario_and_version() {
    let folder = Folder::new("tokens");
    let file = folder.file("fails.toml", FAILS);
    let output = esw(&["check", &file, "--schedules", "5000", "--json"]);
    let token = json(&output)[0]["violations"][0]["token"].as_str().unwrap().to_owned();
    let changed = folder.file("changed.toml", &FAILS.replace("\"devlink dev show\", ", ""));
    let other = folder.file("other.toml", HOLDS);
    // The last step of a thread is the first of what is done in the end.
    let last = "\"expect vfs pci/0000:08:00.0 0\"";
    let moved = FAILS.replace(&format!("steps = [\"devlink dev show\", {last}]"), "steps = [\"devlink dev show\"]");
    let moved = folder.file("moved.toml", &moved.replace("setup =", &format!("finally = [{last}]\nsetup =")));
    let with = |change: &dyn Fn(&mut check::Token)| {
        let mut token: check::Token = token.parse().unwrap();
        change(&mut token);
        token.to_string()
    };
    let nobody = check::schedulers::Deviation { thread: 200, ops: 5, to: 6 };
    let switches = with(&|token| token.deviations = vec![nobody]);
    let fault = check::Place { name: "nonsense".to_owned(), nth: 1 };
    let faults = with(&|token| (token.faults, token.deviations) = (vec![fault.clone()], Vec::new()));
    let steps = with(&|token| token.without.push((9, 9)));
    let old = "esw1.WyIwLjAuMSIsImEiLDEsW10sW10sW10sMF0";
    let of_another_form = token.replace("esw2.", "esw1.");
    for (token, file, said) in [
        (&*token, &changed, "has changed since"),
        (&*token, &other, "which is not in"),
        ("esw1.!!!", &file, "not a token"),
        ("what?", &file, "not a token"),
        (old, &file, "from version 0.0.1"),
        (&of_another_form, &file, "the token has form 1"),
        (&*token, &moved, "has changed since"),
        (&switches, &file, "1 of 1 switches is missing"),
        (&faults, &file, "nonsense is missing"),
        (&steps, &file, "leaves out steps"),
    ] {
        let output = esw(&["check", "--replay", token, file]);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn parts_of_a_campaign_are_joined_and_only_parts_of_one() {
    let folder = Folder::new("parts");
    let file = folder.file("holds.toml", HOLDS);
    let part = |shard: &str, jobs: &str, more: &[&str]| {
        let fixed = [
            "check",
            &file,
            "--strategy",
            "bounded",
            "--preemptions",
            "1",
            "--schedules",
            "1000000",
            "--json",
            "--shard",
            shard,
            "--jobs",
            jobs,
        ];
        let output = esw(&[&fixed[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let name = format!("{}-{jobs}-{}.json", shard.replace('/', "-"), more.len());
        folder.file(&name, &text(&output.stdout))
    };
    // How many threads do a part makes no difference to what it does.
    let parts = [part("1/3", "1", &[]), part("2/3", "2", &[]), part("3/3", "1", &[])];
    let stray = part("2/3", "1", &["--whole"]);
    let merge = |files: &[&String]| {
        let files: Vec<&str> = files.iter().map(|file| file.as_str()).collect();
        esw(&[&["check", "--json", "--merge"][..], &files].concat())
    };
    let whole = merge(&[&parts[2], &parts[0], &parts[1]]);
    assert_eq!(whole.status.code(), Some(0), "{}", text(&whole.stderr));
    let whole = json(&whole).remove(0);
    assert_eq!((&whole["exhaustive_preemptions"], &whole["shard"]), (&1.into(), &vec![1, 1].into()));
    let schedules = |file: &String| {
        let text = fs::read_to_string(file).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["schedules"].as_u64().unwrap()
    };
    assert_eq!(whole["schedules"].as_u64().unwrap(), parts.iter().map(schedules).sum::<u64>());
    let edited = |from: &str, to: &str| {
        let text = fs::read_to_string(&parts[1]).unwrap();
        assert!(text.contains(from), "{text}");
        text.replacen(from, to, 1)
    };
    let fingerprint = serde_json::from_str::<Value>(&edited("", "")).unwrap()["fingerprint"].to_string();
    let other = folder.file("other.json", &edited(&fingerprint, "\"7\""));
    // Not a number: programs that read it as a floating-point one would change it.
    assert_eq!(fingerprint.trim_matches('"').len(), 16, "{fingerprint}");
    let number = folder.file("number.json", &edited(&fingerprint, "7"));
    let of_two = edited("\"shard\":[2,3]", "\"shard\":[1,2]").replace("it holds", "another");
    let of_two = folder.file("of-two.json", &of_two);
    let no_shard = folder.file("no-shard.json", &edited("\"shard\":[2,3]", "\"shard\":[4,3]"));
    let missing = folder.path("nowhere.json");
    let broken = folder.file("broken.json", "{\"scenario\":");
    let empty = folder.file("empty.json", "");
    for (files, said) in [
        (vec![&parts[0], &parts[2]], "shard 2/3 is missing"),
        (vec![&parts[0], &parts[1]], "shard 3/3 is missing"),
        (vec![&parts[1]], "shards 1 and 3 of 3 are missing"),
        (vec![&parts[0], &parts[0], &parts[1], &parts[2]], "is there twice"),
        (vec![&parts[0], &stray, &parts[2]], "different campaigns"),
        (vec![&parts[0], &parts[1], &parts[2], &of_two], "another: reports of different campaigns"),
        (vec![&parts[0], &other, &parts[2]], "different contents"),
        (vec![&parts[0], &number, &parts[2]], "number.json:1: not a report"),
        (vec![&parts[0], &no_shard, &parts[2]], "there is no shard 4/3"),
        (vec![&parts[0], &missing], "nowhere.json"),
        (vec![&broken], "broken.json:1: not a report"),
        (vec![&empty], "no reports to merge"),
    ] {
        let output = merge(&files);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn an_order_of_locks_that_another_scenario_inverts_is_found_when_parts_are_joined() {
    let folder = Folder::new("orders");
    let one = folder.file("one.toml", HOLDS);
    let two = folder.file("two.toml", &HOLDS.replace("it holds", "that holds"));
    let report = |file: &str| json(&esw(&["check", file, "--schedules", "20", "--json"])).remove(0);
    let (first, mut second) = (report(&one), report(&two));
    let orders = first["lock_orders"].as_array().unwrap();
    let has = |order: &Value| order["orders"].as_array().unwrap().contains(&serde_json::json!(["device", "devlink"]));
    let shows = orders.iter().find(|order| has(order)).expect("device, then devlink");
    // Nothing in the tree inverts it; so the report of one part has to claim it.
    let merge = |second: &Value| {
        let files = [folder.file("1.json", &first.to_string()), folder.file("2.json", &second.to_string())];
        esw(&["check", "--merge", &files[0], &files[1]])
    };
    assert_eq!(merge(&second).status.code(), Some(0));
    let token = second["lock_orders"][0]["token"].as_str().unwrap().to_owned();
    second["lock_orders"].as_array_mut().unwrap().push(serde_json::json!({
        "token": token, "orders": [["devlink", "device"]],
    }));
    let output = merge(&second);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let both = format!("{}+{token}", shows["token"].as_str().unwrap());
    for part in [
        "that holds: FAILED",
        "it holds: ok",
        "lock-order: possible circular locking dependency between schedules",
        "device, then devlink in a schedule of `it holds`; devlink, then device in a schedule of `that holds`",
        &format!("esw check --replay {both} {one} {two}"),
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // Both are told, and the checker looks at both: in this tree there is nothing to be found.
    let output = esw(&["check", "--replay", &both, &two, &one]);
    assert_eq!(
        (output.status.code(), &*text(&output.stdout)),
        (Some(0), "that holds: held in the schedule of the token\n")
    );
    let mut never: check::Token = both.parse().unwrap();
    never.first[0].faults = vec![check::Place { name: "nonsense".to_owned(), nth: 1 }];
    for (token, files, said) in [
        (&*both, &[&*two][..], "`it holds`, which is not in"),
        (&*format!("{token}+"), &[&*two], "not a token"),
        (&*never.to_string(), &[&*one, &*two], "a part of the schedules that are run first is missing"),
    ] {
        let output = esw(&[&["check", "--replay", token][..], files].concat());
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

/// Fails in the schedules whose preemption is in one of the later points of the changer.
const NARROW: &str = r#"
name = "a look between two mode changes"
why = "for a test"
[card]
vfs = 1
[[thread]]
name = "changer"
steps = [
  "devlink dev eswitch show pci/0000:08:00.0", "devlink dev eswitch show pci/0000:08:00.0",
  "devlink dev eswitch show pci/0000:08:00.0", "devlink dev eswitch show pci/0000:08:00.0",
  "devlink dev eswitch set pci/0000:08:00.0 mode switchdev", "devlink dev eswitch set pci/0000:08:00.0 mode legacy",
]
[[thread]]
name = "looker"
steps = ["expect mode pci/0000:08:00.0 legacy"]
"#;

#[test]
fn parts_cover_the_whole_whatever_jobs_each_has() {
    let folder = Folder::new("jobs");
    let file = folder.file("narrow.toml", NARROW);
    let finds = |part: &str, jobs: &str| {
        let arguments =
            ["check", &file, "--strategy", "bounded", "--preemptions", "1", "--shard", part, "--jobs", jobs];
        let output = esw(&arguments);
        output.status.code() == Some(1)
    };
    for of in [2, 3] {
        let by = |jobs: &str| (1..=of).map(|part| finds(&format!("{part}/{of}"), jobs)).collect::<Vec<bool>>();
        let alone = by("1");
        assert!(alone.contains(&true) && alone.contains(&false), "{alone:?}");
        for jobs in ["2", "3", "4"] {
            assert_eq!(by(jobs), alone, "what a part covers does not depend on --jobs {jobs}");
        }
    }
}

#[test]
fn input_that_makes_no_sense_is_refused_before_anything_runs() {
    let folder = Folder::new("wrong");
    let file = folder.file("holds.toml", HOLDS);
    let linux = folder.file("linux.toml", &HOLDS.replacen("why =", "cards = [\"linux\"]\nwhy =", 1));
    let there = folder.0.to_str().unwrap();
    let nowhere = folder.path("no/such/folder");
    let unmade = folder.path("unmade");
    let thread = |n: u32| format!("[[thread]]\nname = \"t{n}\"\nsteps = [\"devlink dev show\"]\n");
    let head = "name = \"a crowd\"\nwhy = \"for a test\"\n";
    let crowd = folder.file("crowd.toml", &(head.to_owned() + &(0..49).map(thread).collect::<String>()));
    let bell = folder.file("bell.toml", &HOLDS.replacen("it holds", "it \\u001b[31mholds", 1));
    for (arguments, said) in [
        (vec!["check"], "FILE|DIR"),
        (vec!["check", &linux], "only the card memory is explored"),
        (vec!["check", &file, "--shard", "0/3"], "expected I/N"),
        (vec!["check", &file, "--shard", "4/3"], "expected I/N"),
        (vec!["check", &file, "--shard", "a/b"], "expected I/N"),
        (vec!["check", &file, "--strategy", "luck"], "luck"),
        (vec!["check", &file, "--schedules", "0"], "0"),
        (vec!["check", &file, "--time", "0"], "0"),
        (vec!["check", &file, "--preemptions", "99"], "99"),
        (vec!["check", &file, "--strategy", "pct", "--no-reduction"], "--no-reduction is for"),
        (
            vec!["check", &file, "--strategy", "urw", "--preemptions", "1"],
            "--preemptions and --fault-preemptions are for",
        ),
        (vec!["check", &file, "--strategy", "bounded", "--seed", "1"], "--seed is for"),
        (vec!["check", &file, "--depth", "2"], "--depth is for"),
        (vec!["check", &file, "--strategy", "random", "--depth", "2"], "--depth is for"),
        (vec!["check", &file, "--fault-preemptions", "0"], "--fault-preemptions is for"),
        (vec!["check", &file, "--replay", "esw2.", "--jobs", "2"], "cannot be used with"),
        (vec!["check", "--merge", &file, "--strategy", "pct"], "cannot be used with"),
        (vec!["check", "--merge", &file, "--whole"], "cannot be used with"),
        (vec!["check", &file, "--replay", "esw2.", "--whole"], "cannot be used with"),
        (vec!["check", &file, &file], "give each once, with a name of its own"),
        (vec!["check", &crowd], "has 49 threads; at most 48 can be explored"),
        (vec!["check", &bell], "expected `name` to be a line of text"),
        (vec!["check", &linux, "--report", &unmade], "only the card memory is explored"),
        (vec!["check", &file, "--report", there], "expected a folder that can be made and is not there yet"),
        (vec!["check", &file, "--report", &nowhere], "expected a folder that can be made"),
        (vec!["check", &folder.path("nothing.toml")], "nothing.toml"),
    ] {
        let output = esw(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{arguments:?}: {}", text(&output.stderr));
    }
    assert!(!Path::new(&nowhere).exists() && !Path::new(&unmade).exists());
}

#[test]
fn what_cannot_be_written_ends_nothing_and_hides_nothing() {
    let folder = Folder::new("unwritten");
    let (holds, fails) = (folder.file("holds.toml", HOLDS), folder.file("fails.toml", FAILS));
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    for (file, expected) in [(&holds, 0), (&fails, 1)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        command.args(["check", file, "--schedules", "200", "--json"]).stdout(Stdio::null()).stderr(full());
        assert_eq!(command.status().unwrap().code(), Some(expected), "{file}");
    }
    // A report that is not there is no result, whatever it would have said.
    for file in [&holds, &fails] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        let output = command.args(["check", file, "--schedules", "200", "--json"]).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{file}");
        assert!(text(&output.stderr).contains("standard output"), "{}", text(&output.stderr));
    }
    // Whoever reads has gone: the rest is not explored for nobody.
    let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
    command.args(["check", &holds, &fails, "--schedules", "200"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // What is told again is written, too.
    let output = esw(&["check", &fails, "--schedules", "5000"]);
    let said = text(&output.stdout);
    let again = said.lines().find_map(|line| line.strip_prefix("run again")).expect(&said);
    let words: Vec<&str> = again.split_whitespace().skip(1).collect();
    assert_eq!(words.last(), Some(&fails.as_str()), "it is a command that works");
    let (page, there) = (folder.path("page"), folder.path("page/index.html"));
    let output = esw(&[&words[..], &["--report", &page]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(fs::read_to_string(&there).unwrap().contains(words[2]));
    // What is there is left as it is.
    let before = fs::read(&there).unwrap();
    let output = esw(&[&words[..], &["--report", &page]].concat());
    assert_eq!((output.status.code(), fs::read(&there).unwrap()), (Some(2), before), "{}", text(&output.stderr));
    // A token that is refused leaves no folder.
    let mut token: check::Token = words[2].parse().unwrap();
    token.faults = vec![check::Place { name: "nonsense".to_owned(), nth: 1 }];
    let unmade = folder.path("unmade");
    let output = esw(&["check", "--replay", &token.to_string(), &fails, "--report", &unmade]);
    assert_eq!((output.status.code(), Path::new(&unmade).exists()), (Some(2), false), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("nonsense is missing"), "{}", text(&output.stderr));
}

#[test]
fn of_a_folder_only_regular_files_are_read() {
    let folder = Folder::new("regular");
    folder.file("holds.toml", HOLDS);
    fs::create_dir(folder.path("a.toml")).unwrap();
    let made = Command::new("mkfifo").arg(folder.path("pipe.toml")).status().unwrap();
    assert!(made.success());
    let output = esw(&["check", folder.0.to_str().unwrap(), "--schedules", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn an_interrupt_tells_what_was_found_so_far() {
    let folder = Folder::new("interrupt");
    let file = folder.file("holds.toml", HOLDS);
    let later = folder.file("later.toml", &HOLDS.replace("it holds", "later"));
    let child = Command::new(env!("CARGO_BIN_EXE_esw"))
        .args(["check", &file, &later, "--preemptions", "9", "--time", "3600", "--json"])
        .args(["--report", &folder.path("page")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let reports = json(&output);
    assert_eq!(reports[0]["interrupted"], true);
    assert!(reports[0]["schedules"].as_u64().unwrap() > 0, "{}", reports[0]);
    // The one that was not begun has a report, too, and so they can be merged.
    assert_eq!((&reports[1]["scenario"], &reports[1]["file"]), (&"later".into(), &later.as_str().into()));
    assert_eq!((&reports[1]["interrupted"], &reports[1]["schedules"]), (&true.into(), &0.into()));
    assert_eq!(reports[1]["exhaustive_preemptions"], Value::Null);
    let part = folder.file("part.json", &text(&output.stdout));
    let merged = esw(&["check", "--merge", &part]);
    assert_eq!(merged.status.code(), Some(130), "{}", text(&merged.stderr));
    assert!(text(&merged.stdout).contains("later: interrupted; 0 schedules"), "{}", text(&merged.stdout));
    // What was interrupted has not held.
    assert!(text(&merged.stdout).contains("0 held in ") && text(&merged.stdout).ends_with(", 2 interrupted\n"));
    let said = text(&output.stderr);
    assert!(said.contains("0 held in ") && said.ends_with(", 1 interrupted, 1 not explored\n"), "{said}");
    let page = fs::read_to_string(folder.path("page/index.html")).unwrap();
    let reached = format!("[\"it holds\",\"{0} schedules: bounded ({0} in ", reports[0]["schedules"]);
    assert!(page.contains("[\"scenarios\",\"1 of 2\"]") && page.contains(&reached), "{said}");
    assert!(page.contains(", interrupted\"]"));
}

#[test]
fn a_failure_of_what_was_interrupted_is_both() {
    let folder = Folder::new("both");
    let file = folder.file("fails.toml", FAILS);
    let mut report = json(&esw(&["check", &file, "--schedules", "5000", "--json"])).remove(0);
    report["interrupted"] = true.into();
    report["schedules"] = 1.into();
    // Also with the mark that some editors write.
    let part = folder.file("part.json", &format!("\u{feff}{report}\n"));
    let output = esw(&["check", "--merge", &part]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(
        said.starts_with("it fails in some order: FAILED, found by bounded, interrupted; 1 schedule in "),
        "{said}"
    );
}

#[test]
fn random_schedules_follow_from_the_seed_whatever_the_environment() {
    let folder = Folder::new("seed");
    let file = folder.file("fails.toml", FAILS);
    let run = |variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        command.args(["check", &file, "--strategy", "random", "--seed", "3", "--schedules", "20000", "--jobs", "1"]);
        command.arg("--json").env_remove("SHUTTLE_RANDOM_SEED");
        variable.map(|seed| command.env("SHUTTLE_RANDOM_SEED", seed));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        // Something is found before all schedules were run, and only what is ours is said.
        assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
        let report = json(&output).remove(0);
        (report["schedules"].clone(), report["violations"].clone())
    };
    let plain = run(None);
    for variable in ["1", "2", "no number"] {
        assert_eq!(run(Some(variable)), plain);
    }
    // What is shuttle's own would take it for the seed.
    for strategy in ["pct", "portfolio"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        command.args(["check", "scenarios", "--strategy", strategy]).env("SHUTTLE_RANDOM_SEED", "1");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("SHUTTLE_RANDOM_SEED is set"), "{}", text(&output.stderr));
    }
}

#[test]
fn as_many_schedules_are_run_as_were_asked_for() {
    let folder = Folder::new("number");
    let file = folder.file("holds.toml", HOLDS);
    let run = |arguments: &str| {
        let output = esw(&[&["check", &file, "--json"][..], &arguments.split(' ').collect::<Vec<_>>()].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments}: {}", text(&output.stderr));
        let mut report = json(&output).remove(0);
        report["elapsed_ms"] = 0.into();
        report["searches"].as_array_mut().unwrap().iter_mut().for_each(|search| search["elapsed_ms"] = 0.into());
        report
    };
    for (n, arguments) in [
        (1, "--schedules 1 --jobs 1"),
        (1, "--schedules 1 --jobs 4"),
        (3, "--schedules 3 --jobs 2"),
        (3, "--schedules 3 --jobs 8"),
        (40, "--schedules 40 --jobs 3 --preemptions 1"),
        (41, "--schedules 41 --jobs 2 --preemptions 1 --faults each"),
        (41, "--schedules 41 --jobs 3 --preemptions 0 --fault-preemptions 0 --faults pairs"),
        (1, "--schedules 1 --jobs 2 --faults each"),
        (10, "--schedules 10 --jobs 1 --strategy random --faults pairs"),
        (10, "--schedules 10 --jobs 4 --strategy random --faults pairs"),
        (3, "--schedules 3 --jobs 8 --strategy random"),
        (50, "--schedules 50 --jobs 2 --strategy pct --faults each"),
        (50, "--schedules 50 --jobs 2 --strategy urw"),
        (40, "--schedules 40 --jobs 3 --preemptions 1 --strategy bounded"),
        (41, "--schedules 41 --jobs 2 --preemptions 1 --faults each --strategy bounded"),
        // More than a bounded search has: what it leaves is run by the others.
        (300, "--schedules 300 --jobs 2 --preemptions 0"),
        (300, "--schedules 300 --jobs 3 --preemptions 0 --fault-preemptions 0 --faults each --seed 5"),
    ] {
        let report = run(arguments);
        assert_eq!(report["schedules"], n, "{arguments}: {report}");
        assert_eq!(run(arguments), report, "{arguments}");
    }
    // Parts know nothing of one another and keep to it, too.
    for strategy in ["random", "portfolio"] {
        let parts = (1..=3).map(|part| run(&format!("--schedules 10 --shard {part}/3 --jobs 2 --strategy {strategy}")));
        assert_eq!(parts.map(|part| part["schedules"].as_u64().unwrap()).sum::<u64>(), 10);
    }
}

#[test]
fn a_portfolio_has_one_verdict_and_says_which_search_found_what() {
    let folder = Folder::new("portfolio");
    let (holds, fails) = (folder.file("holds.toml", HOLDS), folder.file("fails.toml", FAILS));
    let page = folder.path("page");
    let arguments = ["check", &holds, &fails, "--preemptions", "0", "--schedules", "600", "--jobs", "1"];
    let output = esw(&[&arguments[..], &["--report", &page]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    let reports = json(&esw(&[&arguments[..], &["--json"]].concat()));
    let of = |report: &Value| {
        let searches = report["searches"].as_array().unwrap().clone();
        searches.into_iter().map(|search| (search["search"].clone(), search["schedules"].clone())).collect::<Vec<_>>()
    };
    let names: Vec<Value> = of(&reports[0]).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bounded", "random", "pct of depth 2", "pct of depth 3", "pct of depth 5"]);
    // What holds is proved up to the bound, and searched beyond it.
    assert_eq!((&reports[0]["strategy"], &reports[0]["exhaustive_preemptions"]), (&"portfolio".into(), &0.into()));
    assert_eq!((&reports[0]["schedules"], &reports[0]["searches"][0]["complete"]), (&600.into(), &false.into()));
    let line = said.lines().find(|line| line.starts_with("it holds: ok; 600 schedules in ")).expect(&said);
    let mut rest = line;
    for (name, schedules) in of(&reports[0]) {
        let part = format!("{} ({schedules} in ", name.as_str().unwrap());
        rest = rest.split_once(&part).unwrap_or_else(|| panic!("{part} in {line}")).1;
    }
    assert!(line.contains(", every one with at most 0 preemptions), random ("), "{line}");
    // What fails needs a preemption. It is one verdict, and everything says what found it.
    let violation = &reports[1]["violations"][0];
    assert_eq!(violation["found_by"], "random");
    assert!(said.contains("it fails in some order: FAILED, found by random; "), "{said}");
    assert!(said.contains(", found expectation)"), "{said}");
    assert!(said.contains(", 1 failed (1 found by random)"), "{said}");
    assert!(text(&esw(&[&arguments[..], &["--json"]].concat()).stderr).contains(", 1 failed (1 found by random)"));
    let page = fs::read_to_string(format!("{page}/index.html")).unwrap();
    for part in
        ["[\"it holds\",\"600 schedules: bounded (", "pct of depth 5 (", ", found expectation), until it failed\"]"]
    {
        assert!(page.contains(part), "{part}");
    }
    // The searches that were not begun have run nothing, and are not mentioned.
    assert_eq!(of(&reports[1])[2..].iter().map(|(_, schedules)| schedules.clone()).collect::<Vec<_>>(), [0, 0, 0]);
    let fails = said.lines().find(|line| line.contains("FAILED, found by")).unwrap();
    assert!(!fails.contains("pct"), "{fails}");
    // Its token is made small and replays as any other.
    let again = esw(&["check", "--replay", violation["token"].as_str().unwrap(), &folder.path("fails.toml"), "--json"]);
    assert_eq!(json(&again)[0]["detail"], violation["detail"]);
    assert_eq!(json(&again)[0]["preemptions"], 1);
}

#[test]
fn it_is_said_how_many_of_the_failures_were_tried() {
    let folder = Folder::new("tried");
    let file = folder.file("holds.toml", HOLDS);
    let run = |faults: &str, n: u64, more: &[&str]| {
        let n = n.to_string();
        let arguments = ["check", &file, "--strategy", "random", "--faults", faults, "--schedules", &n];
        let output = esw(&[&arguments[..], more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        output
    };
    // Bounded: with as many, every schedule without preemptions was met.
    let bounded = |faults: &str, n: &str| {
        let arguments = ["check", &file, "--strategy", "bounded", "--preemptions", "0", "--faults", faults];
        let arguments = [&arguments[..], &["--schedules", n, "--jobs", "2"]].concat();
        let said = text(&esw(&arguments).stdout);
        (said, json(&esw(&[&arguments[..], &["--json"]].concat())).remove(0)["faults"].clone())
    };
    for (mode, n, pairs) in [("each", "100", ""), ("pairs", "3000", "pairs with ")] {
        let (said, faults) = bounded(mode, n);
        let [tried, plans] = ["tried", "plans"].map(|key| faults[key].as_u64().unwrap());
        assert_eq!((&faults["places"], &faults["exhaustive_preemptions"]), (&plans.into(), &Value::Null));
        assert!(0 < tried && tried < plans, "{faults}");
        assert!(said.contains(&format!(", {pairs}{tried} of {plans} failures at 0 in ")), "{said}");
    }
    let (said, faults) = bounded("each", "1000000");
    assert!(said.contains(&format!(", each of {} failures at 1 in ", faults["places"])), "{said}");
    assert_eq!(faults["tried"], faults["plans"]);
    let faults = |n: u64| json(&run("pairs", n, &["--json"]))[0]["faults"].clone();
    let places = faults(1)["places"].as_u64().unwrap();
    let pairs = places * (places - 1) / 2;
    assert!(places > 10);
    // First what comes without failures, then each of them alone.
    for (n, tried) in [(1, 0), (places + 1, 0), (places + 8, 7)] {
        let faults = faults(n);
        assert_eq!((&faults["tried"], &faults["plans"]), (&tried.into(), &pairs.into()), "{faults}");
    }
    let said = text(&run("pairs", places + 8, &["--jobs", "3"]).stdout);
    assert!(said.contains(&format!(", 7 of {pairs} pairs of {places} failures in ")), "{said}");
    let said = text(&run("each", 8, &["--jobs", "2"]).stdout);
    assert!(said.contains(&format!(", 7 of {places} failures in ")), "{said}");
    let said = text(&run("each", places + 1, &["--jobs", "2"]).stdout);
    assert!(said.contains(&format!(", each of {places} failures in ")), "{said}");
    let part = |part: &str| text(&run("each", 8, &["--jobs", "2", "--json", "--shard", part]).stdout);
    let parts = [part("1/2"), part("2/2")].map(|part| serde_json::from_str::<Value>(&part).unwrap());
    let tried: u64 = parts.iter().map(|part| part["faults"]["tried"].as_u64().unwrap()).sum();
    assert_eq!(tried, 7);
    let files = [folder.file("1.json", &parts[0].to_string()), folder.file("2.json", &parts[1].to_string())];
    let whole = text(&esw(&["check", "--merge", &files[0], &files[1]]).stdout);
    assert!(whole.contains(&format!(", 7 of {places} failures in ")), "{whole}");
}

#[test]
fn a_page_that_has_no_room_any_more_stays_as_it_was() {
    let folder = Folder::new("full");
    let fails = folder.file("fails.toml", FAILS);
    let too = folder.file("too.toml", &FAILS.replace("it fails", "that fails, too,"));
    let check = |limit: u64, files: &[&str], page: &str| {
        // No file may be larger; who writes on is told so, as on a disk that is full.
        let mut command = Command::new("sh");
        command.args(["-c", &format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_esw")]);
        command.args(["check", "--schedules", "5000", "--jobs", "1", "--report", page]).args(files).output().unwrap()
    };
    let files = |page: &str| {
        let names = fs::read_dir(page).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    };
    let (plenty, little) = (folder.path("plenty"), folder.path("little"));
    assert_eq!(check(1_000_000, &[&fails], &plenty).status.code(), Some(1));
    let size = |name: &str| fs::metadata(format!("{plenty}/{name}")).unwrap().len();
    let largest = size("index.html").max(size("trace-1.json"));
    // In blocks of 512 bytes: there is room for each of these, and not for a page with a second story.
    let output = check(largest.div_ceil(512), &[&fails, &too], &little);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("writing") && said.contains("what was found before is still there"), "{said}");
    let none = check(0, &[&fails], &folder.path("none"));
    let none = text(&none.stderr);
    assert!(none.contains("writing") && !none.contains("is still there"), "there is none: {none}");
    assert!(text(&output.stdout).contains("that fails, too, in some order: FAILED"), "it went on: {said}");
    let page = fs::read_to_string(format!("{little}/index.html")).unwrap();
    assert!(page.contains("it fails in some order") && page.ends_with("</html>\n"), "whole");
    assert!(files(&little).starts_with(&["index.html".to_owned(), "trace-1.json".to_owned()]), "{:?}", files(&little));
}

#[test]
fn generated_stories_are_the_same_for_a_seed() {
    let generate = |jobs| {
        let output = esw(&[
            "check",
            "--generate",
            "--seed",
            "3",
            "--stories",
            "3",
            "--schedules",
            "5",
            "--jobs",
            jobs,
            "--json",
        ]);
        let mut report = json(&output).remove(0);
        assert_eq!(output.status.code(), Some(0), "{report}");
        report.as_object_mut().unwrap().remove("elapsed_ms");
        report
    };

    let report = generate("1");

    assert_eq!((&report["stories"], &report["violation"]), (&Value::from(3), &Value::Null));
    assert!(report["schedules"].as_u64() >= Some(3), "{report}");
    assert_eq!(report, generate("2"));
}

#[test]
fn options_that_a_generated_story_has_of_its_own_are_refused() {
    for arguments in [
        &["check", "--generate", "scenarios"][..],
        &["check", "--generate", "--strategy", "pct"],
        &["check", "--generate", "--faults", "each"],
        &["check", "scenarios", "--stories", "3"],
        &["check", "scenarios", "--keep", "kept"],
    ] {
        assert_eq!(esw(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
