//! The README's session in a lab works as it is printed.
//!
//! Its own text is run: each command after `$ `, all in one shell in a lab, and what it prints is compared with
//! what stands under it. `…` stands for anything, on a line of its own for any lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const ESW: &str = env!("CARGO_BIN_EXE_esw");
const MARK: &str = "@@";

/// A command and what it is to print.
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The steps of every block after a `<!-- lab` comment.
fn steps() -> Vec<Step> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if !line.starts_with("<!-- lab") {
            continue;
        }
        assert_eq!(lines.next(), Some("```console"), "a session follows the comment");
        for line in lines.by_ref().take_while(|line| *line != "```") {
            match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step { command: command.to_owned(), expected: Vec::new() }),
                None => steps.last_mut().expect("a command comes first").expected.push(line.to_owned()),
            }
        }
    }
    steps
}

/// Whether a line is what is expected, where `…` stands for anything.
fn line_is(expected: &str, found: &str) -> bool {
    match expected.split_once('…') {
        None => expected == found,
        Some((start, rest)) => found.strip_prefix(start).is_some_and(|found| {
            let ends = found.char_indices().map(|(at, _)| at).chain([found.len()]);
            ends.into_iter().any(|at| line_is(rest, &found[at..]))
        }),
    }
}

/// Whether lines are what is expected, where a line `…` stands for any.
fn lines_are(expected: &[String], found: &[&str]) -> bool {
    match (expected.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => (0..=found.len()).any(|at| lines_are(rest, &found[at..])),
        (Some((first, rest)), Some((line, more))) => line_is(first, line) && lines_are(rest, more),
        _ => false,
    }
}

#[test]
fn the_ellipsis_stands_for_anything() {
    assert!(line_is("a…c", "abbc") && line_is("…", "") && !line_is("a…c", "ab"));
    let expected = ["one", "…", "last…"].map(str::to_owned);
    assert!(lines_are(&expected, &["one", "two", "three", "last of all"]));
    assert!(!lines_are(&expected, &["one", "two"]));
}

/// Why the session cannot be had here, if it cannot.
fn missing() -> Option<String> {
    let there = |program: &str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    let programs = ["devlink", "ip", "lspci", "ping", "unshare"];
    if let Some(program) = programs.into_iter().find(|program| !there(program)) {
        return Some(format!("{program} is not installed"));
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse: {error}"));
    }
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    None
}

/// A folder of the test's own.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script where nothing of the host is touched: in network and mount namespaces of its own.
fn apart(script: &str, folder: &Path) -> Output {
    let unshare = ["--mount", "--net", "--propagation", "private", "sh", "-ec"];
    Command::new("unshare").args(unshare).arg(script).env("FOLDER", folder).env("ESW", ESW).output().unwrap()
}

#[test]
fn the_session_works_as_printed() {
    if let Some(why) = missing() {
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    let folder = Folder(std::env::temp_dir().join(format!("esw-readme-{}", std::process::id())));
    fs::create_dir_all(&folder.0).unwrap();
    let steps = steps();
    assert!(steps.len() > 10, "the README has its session");
    let session: String =
        steps.iter().map(|step| format!("echo {MARK}\n{} || echo failed: $?\n", step.command)).collect();
    fs::write(folder.0.join("session"), session).unwrap();
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        $ESW up --daemon --detach --card linux >&2
        $ESW exec -- sh $FOLDER/session 2>&1 || echo failed: $?
        $ESW down >&2";
    let output = apart(script, &folder.0);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let printed: Vec<&str> = stdout.split(&format!("{MARK}\n")).skip(1).collect();
    assert_eq!(printed.len(), steps.len(), "{stdout}\n{stderr}");
    for (step, printed) in steps.iter().zip(printed) {
        let found: Vec<&str> = printed.lines().collect();
        let Step { command, expected } = step;
        assert!(lines_are(expected, &found), "$ {command}\n{printed}\nexpected:\n{}", expected.join("\n"));
    }
}
