//! The command as a program: exit statuses, JSON, the prompt without a terminal, interrupts.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn esw(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
    command.args(arguments).env_remove("NO_COLOR");
    command
}

fn output(arguments: &[&str]) -> Output {
    esw(arguments).output().unwrap()
}

fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A file of a test, which is removed when this is dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("esw-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

const SCENARIO: &str = r#"
name = "a scenario"
why = "for a test"
expect = ["vfs pci/0000:08:00.0 2"]
[[thread]]
name = "admin"
steps = ["echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs", { run = "rmmod mlx4_core", fails = "ENOENT" }]
"#;

#[test]
fn a_scenario_that_holds_exits_with_0_and_prints_its_steps() {
    let file = File::new("holds.toml", SCENARIO);
    let output = output(&["run", file.path()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    for expected in [
        "a scenario (",
        "admin        echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs",
        "Error: mlx5_core: module mlx4_core not found",
        "kernel answers: No such file or directory",
        "pci/0000:08:00.0/65535  physical  enp8s0f0np0",
        "holds  expect vfs pci/0000:08:00.0 2",
        "no-leak",
    ] {
        assert!(printed.contains(expected), "no `{expected}` in\n{printed}");
    }
    assert!(!printed.contains('\x1b'), "colours without a terminal");
}

#[test]
fn a_scenario_that_does_not_hold_exits_with_1_and_prints_what() {
    let file = File::new("fails.toml", &SCENARIO.replace("0 2\"]", "0 3\"]"));
    let output = output(&["run", file.path()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("FAILS  expectation: expected 3 VFs on pci/0000:08:00.0, but there are 2"), "{printed}");
}

#[test]
fn input_that_cannot_be_used_exits_with_2_and_a_place_before_anything_runs() {
    let good = File::new("good.toml", SCENARIO);
    let bad = File::new("bad.toml", &SCENARIO.replace("rmmod", "rmod"));
    let output = output(&["run", good.path(), bad.path()]);
    let complaint = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.starts_with(&format!("{}:7:78: expected ", bad.path())), "{complaint}");
    assert!(complaint.contains("did you mean `rmmod`?"), "{complaint}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn files_and_words_that_do_not_exist_exit_with_2() {
    for arguments in [
        &["run", "/nonesuch.toml"][..],
        &["run"],
        &["run", "/", "--card", "memory"],
        &["run", "/nonesuch.toml", "--card", "paper"],
        &["up", "--config", "/nonesuch.toml"],
        &["run", "/nonesuch.toml", "--repeat", "0"],
        &["dance"],
        &[],
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn json_is_one_object_a_line_with_everything_in_it() {
    let file = File::new("json.toml", SCENARIO);
    let output = output(&["run", file.path(), "--json", "--repeat", "2"]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    let report = &lines[0];
    assert_eq!(report["scenario"], "a scenario");
    assert_eq!(report["card"], "memory");
    assert_eq!(report["ok"], true);
    assert!(report["elapsed_ms"].is_number());
    assert_eq!(report["violations"], Value::Array(Vec::new()));
    let step = &report["steps"][1];
    assert_eq!(step["thread"], "admin");
    assert_eq!(step["step"], "rmmod mlx4_core");
    assert_eq!(step["ok"], true);
    assert_eq!(step["errno"], "ENOENT");
    assert!(step["error"].is_string() && step["elapsed_us"].is_u64());
    assert_eq!(report["steps"][0]["error"], Value::Null);
    let port = &report["ports"][0];
    for (key, value) in [("flavour", "physical"), ("netdev", "enp8s0f0np0"), ("eth", "unregistered")] {
        assert_eq!(port[key], value);
    }
    assert_eq!(port["handle"], "pci/0000:08:00.0/65535");
    assert_eq!(port["ib"], "unregistered");
}

#[test]
fn json_has_what_does_not_hold() {
    let file = File::new("json-fails.toml", &SCENARIO.replace("0 2\"]", "0 3\"]"));
    let output = output(&["run", file.path(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
    assert_eq!(report["ok"], false);
    assert_eq!(report["violations"][0]["invariant"], "expectation");
    assert!(report["violations"][0]["detail"].as_str().unwrap().contains("there are 2"));
}

#[test]
fn a_directory_is_its_scenarios_and_those_for_another_card_are_skipped_with_a_reason() {
    let output = output(&["run", scenarios().to_str().unwrap()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    assert!(printed.contains("it is for the card linux, and this is memory"), "{printed}");
    assert!(printed.contains("IB module loaded late"), "{printed}");
}

#[test]
fn repeated_only_failures_and_counts_are_printed() {
    let file = File::new("repeat.toml", SCENARIO);
    let output = output(&["run", file.path(), "--repeat", "5", "--lockdep"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), "a scenario: 5 times: ok\n5 held\n");
}

fn up(lines: &str, arguments: &[&str]) -> Output {
    let mut child = spawn(arguments);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn spawn(arguments: &[&str]) -> Child {
    let mut command = esw(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn without_a_terminal_the_prompt_takes_lines_as_commands() {
    let config = File::new("card.toml", "vfs = 1\nmodules = [\"mlx5_ib\"]\n");
    let lines = "# a comment\n\ndevlink dev eswitch set pci/0000:08:00.0 mode switchdev\nports\ncheck\nevents\nhelp\n\
                 expect reps pci/0000:08:00.0 ib loaded 2\nquit\nnever read\n";
    let output = up(lines, &["up", "--config", config.path()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    for expected in
        ["pci/0000:08:00.0/1      pcivf", "every invariant holds", "mode switchdev", "wait until EXPECTATION"]
    {
        assert!(printed.contains(expected), "no `{expected}` in\n{printed}");
    }
}

/// The lines of a prompt that enters switchdev mode with two VFs and adds a rule.
const WITH_A_RULE: &str = "devlink dev eswitch set pci/0000:08:00.0 mode switchdev\n\
                           tc filter add dev enp8s0f0npf0vf0 ingress protocol ip prio 1 flower ip_proto tcp dst_ip 10.0.0.2 \
                           action mirred egress redirect dev enp8s0f0npf0vf1\n";

#[test]
fn flow_rules_are_shown_with_what_they_have_counted() {
    let config = File::new("show.toml", "vfs = 2\n");
    let lines = format!(
        "{WITH_A_RULE}tc filter show dev enp8s0f0npf0vf0 ingress\n\
         tc -s filter show dev enp8s0f0npf0vf0 ingress\n\
         send pci/0000:08:00.0/1 ip dst 10.0.0.2 / tcp dport 80 / data 6 arrives pci/0000:08:00.0/2\n\
         tc -s filter show dev enp8s0f0npf0vf0 ingress\n\
         tc -s filter show dev enp8s0f0npf0vf1 ingress\n"
    );
    let output = up(&lines, &["up", "--config", config.path()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    let rule = "filter dev enp8s0f0npf0vf0 ingress protocol ip prio 1 chain 0 handle 0x1 flower ip_proto tcp dst_ip 10.0.0.2 \
                action mirred egress redirect dev enp8s0f0npf0vf1";
    let printed: Vec<&str> = printed.lines().collect();
    let [added, plain @ .., used] = &printed[..] else { panic!("{printed:?}") };
    assert_eq!(*added, "added rule 1");
    assert_eq!(
        plain,
        [rule, "  in_hw", rule, "  in_hw", "  Sent 0 bytes 0 pkt, never used", rule, "  in_hw"],
        "a port without rules has no lines"
    );
    assert!(used.starts_with("  Sent 60 bytes 1 pkt, used ") && used.ends_with(" s ago"), "{used}");
}

#[test]
fn a_frame_is_traced_and_nothing_changes() {
    let config = File::new("trace.toml", "vfs = 2\n");
    let lines = format!(
        "{WITH_A_RULE}trace pci/0000:08:00.0/1 ip dst 10.0.0.2 / tcp dport 80\n\
         trace pci/0000:08:00.0/1 ip dst 10.0.0.3 / tcp dport 80\n\
         tc -s filter show dev enp8s0f0npf0vf0 ingress\n"
    );
    let output = up(&lines, &["up", "--config", config.path()]);
    let printed = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", text(&output.stderr));
    let frame = "eth src 02:00:00:00:00:01 dst 02:00:00:00:00:02 / ip src 10.0.0.1 dst 10.0.0.2 / tcp sport 0 dport 80";
    let expected = format!(
        "added rule 1
frame: {frame}
port 1:
  chain 0:
    priority 1 (protocol ip), eth_type dst_ip ip_proto: rule 1 matches
      sends 54 bytes to port 2
forwarded
rule 1: dev enp8s0f0npf0vf0 ingress protocol ip prio 1 chain 0 flower ip_proto tcp dst_ip 10.0.0.2 action mirred egress \
         redirect dev enp8s0f0npf0vf1
arrives at pci/0000:08:00.0/2 (enp8s0f0npf0vf1): {frame}
frame: {}
port 1:
  chain 0:
    priority 1 (protocol ip), eth_type dst_ip ip_proto: no rule matches
missed, no rule of chain 0 matches: the representor gets it as it came
arrives at the representor of pci/0000:08:00.0/1 (enp8s0f0npf0vf0), as it came
",
        frame.replace("10.0.0.2", "10.0.0.3")
    );
    let (traced, shown) = printed.split_at(expected.len().min(printed.len()));
    assert_eq!(traced, expected);
    assert!(shown.ends_with("  Sent 0 bytes 0 pkt, never used\n"), "{shown}");
}

#[test]
fn a_line_that_fails_is_reported_and_the_others_are_taken() {
    let lines = "devlink dev eswitch set pci/0000:08:00.0 mod legacy\nmodprobe nonesuch\nsync x\n!true\nshell\ndevlink dev show\n";
    let output = up(lines, &["up"]);
    let complaints = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    for expected in [
        "line 1: devlink dev eswitch set",
        "^ expected `mode`, `inline-mode` or `encap-mode`, found `mod`; did you mean `mode`?",
        "Error: mlx5_core: module nonesuch not found; the card's modules are mlx5_core, mlx5_ib, vfio_pci.",
        "kernel answers: No such file or directory",
        "`sync` is for scenarios",
        "this card has no netdevs to run it among",
    ] {
        assert!(complaints.contains(expected), "no `{expected}` in\n{complaints}");
    }
    assert_eq!(text(&output.stdout), "pci/0000:08:00.0\n");
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_with_its_place() {
    let config = File::new("bad-card.toml", "vfs = 1\npfs = 9\n");
    let output = up("", &["up", "--config", config.path()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains(":2:7: `pfs` is 9; it must be 1 to 4"), "{}", text(&output.stderr));
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

#[test]
fn an_interrupt_ends_a_scenario_after_its_finally_with_130() {
    let scenario = "name = \"n\"\nwhy = \"w\"\nlimit_s = 60\nfinally = [\"sleep 20ms\", \"modprobe mlx5_ib\"]\n[[thread]]\nname = \"a\"\n\
                 steps = [\"devlink dev show\", \"sleep 50s\", \"devlink dev show\"]\n";
    let file = File::new("interrupt.toml", scenario);
    let mut child = spawn(&["run", file.path()]);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut printed = String::new();
    while !printed.contains("pci/0000:08:00.0") {
        assert_ne!(stdout.read_line(&mut printed).unwrap(), 0, "{printed}");
    }
    interrupt(&child);
    std::io::Read::read_to_string(&mut stdout, &mut printed).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{printed}");
    for step in ["sleep 20ms", "modprobe mlx5_ib"] {
        let line = printed.lines().find(|line| line.contains(&format!("finally      {step}")));
        assert!(line.is_some_and(|line| line.contains(" ok ")), "`{step}` in\n{printed}");
    }
    assert!(text(&output.stderr).contains("interrupted; the card was taken down"), "{}", text(&output.stderr));
}

#[test]
fn an_interrupt_ends_the_prompt_with_130() {
    let mut child = spawn(&["up"]);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"devlink dev show\n").unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text(&output.stderr).contains("nothing is left"));
}

#[test]
fn help_and_version_are_printed() {
    let help = text(&output(&["--help"]).stdout);
    for expected in ["Exit status:", "Examples:", "esw run scenarios", "run", "up"] {
        assert!(help.contains(expected), "no `{expected}` in\n{help}");
    }
    assert!(text(&output(&["--version"]).stdout).starts_with("esw "));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let file = File::new("full.toml", SCENARIO);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = esw(&["run", file.path()]).stdout(full).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(text(&ran.stderr).contains("standard output"), "{}", text(&ran.stderr));
}

#[test]
fn a_run_without_any_scenario_for_the_card_exits_with_2() {
    let file = File::new("skipped.toml", &SCENARIO.replace("why =", "cards = [\"linux\"]\nwhy ="));
    let ran = output(&["run", file.path()]);
    assert_eq!(ran.status.code(), Some(2));
    assert!(text(&ran.stderr).contains("--card"), "{}", text(&ran.stderr));
}

#[test]
fn devlink_words_have_help_and_errors_before_any_card_is_looked_for() {
    for (object, form) in [
        (
            "dev",
            "esw dev eswitch set DEV [mode legacy|switchdev|switchdev_inactive] [inline-mode none|link|network|transport]",
        ),
        ("port", "esw port function rate show [PORT|DEV/NODE]"),
        ("health", "esw health recover DEV reporter NAME"),
        ("monitor", "esw monitor port"),
    ] {
        let help = output(&[object, "help"]);
        assert_eq!(help.status.code(), Some(0));
        let help = text(&help.stdout);
        assert!(help.contains(form), "no `{form}` in\n{help}");
    }
    for (arguments, error) in [
        (&["trace", "pci/0000:08:00.0/1", "ip", "dst", "10.0.0", "/", "tcp"][..], "an address of IPv4 must stand here"),
        (&["trace", "pci/0000:08:00.0", "ip"], "expected a port such as pci/0000:08:00.0/1"),
        (
            &["dev", "eswitch", "set", "pci/0000:08:00.0"],
            "expected `mode`, `inline-mode` or `encap-mode`, found the end",
        ),
        (&["dev", "eswitch", "set", "pci/0000:08:00.0", "mode", "swichdev"], "did you mean `switchdev`?"),
        (&["port", "del", "pci/0000:08:00.0"], "expected a port such as pci/0000:08:00.0/1"),
        (&["port", "fun", "rat", "set", "pci/0000:08:00.0/1", "tx_max", "fast"], "expected a rate"),
        (&["monitor", "health"], "`esw monitor help` lists the commands"),
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(error), "{arguments:?}: {}", text(&output.stderr));
    }
}
