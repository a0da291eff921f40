//! Running programs in a lab around a card, where nothing of the host is touched.

#![allow(dead_code, reason = "each test file is a program of its own")]

use std::fmt::Display;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

const ESW: &str = env!("CARGO_BIN_EXE_esw");

/// Whether a line matches the expected one, in which `…` matches anything.
pub fn line_is(expected: &str, found: &str) -> bool {
    match expected.split_once('…') {
        None => expected == found,
        Some((start, rest)) => found.strip_prefix(start).is_some_and(|found| {
            let ends = found.char_indices().map(|(at, _)| at).chain([found.len()]);
            ends.into_iter().any(|at| line_is(rest, &found[at..]))
        }),
    }
}

/// Whether lines match the expected ones, in which a line `…` matches any lines.
pub fn lines_are(expected: &[String], found: &[&str]) -> bool {
    match (expected.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "…" => (0..=found.len()).any(|at| lines_are(rest, &found[at..])),
        (Some((first, rest)), Some((line, more))) => line_is(first, line) && lines_are(rest, more),
        _ => false,
    }
}

/// Why the session cannot be had here, if it cannot.
fn missing(programs: &[&str]) -> Option<String> {
    let there = |program: &str| {
        let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    };
    if let Some(program) = ["ip", "unshare"].iter().chain(programs).find(|program| !there(program)) {
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

/// Whether the test must be skipped, with the reason printed. In CI nothing may be missing.
pub fn skipped(programs: &[&str]) -> bool {
    let Some(why) = missing(programs) else { return false };
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
    true
}

/// The same of the Python module.
pub fn skipped_without_pyroute2() -> bool {
    let found = Command::new("python3").args(["-c", "import pyroute2"]).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    assert!(is_there || std::env::var_os("CI").is_none(), "python3 has no module pyroute2");
    if !is_there {
        eprintln!("skipped: python3 has no module pyroute2 (pip install pyroute2)");
    }
    !is_there
}

/// A folder of the test's own.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes one. Several of one name are different folders.
    pub fn make(name: &str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("esw-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Functions that commands of a session wait with: each returns as soon as what it waits for is so, and after a minute
/// it prints what is not.
///
/// * `until_true COMMAND`: until the command, one word, succeeds.
/// * `until_idle PID`: until the process, or a child of it, waits for its next message. A listener that has begun has then
///   joined its groups, and one that was sent something has read all of it.
/// * `until_attached NETDEV NAME`: until the SF of this representor is attached and its netdev is there.
const WAITING: &str = r#"
until_true() {
    for _ in $(seq 1200); do
        if eval "$1" > /run/until 2>&1; then return; fi
        sleep 0.05
    done
    echo "not within a minute: $1"; cat /run/until; return 1
}
until_idle() {
    until_true "grep -q 'skb_wait\|futex\|poll' /proc/$1/wchan \$(sed 's|\([0-9]*\) |/proc/\1/wchan |g' /proc/$1/task/$1/children)"
}
until_attached() {
    until_true "devlink port show $1 | grep -q 'opstate attached' && [ -e /sys/class/net/$2 ]"
}
"#;

/// Runs commands by a shell in a lab around a card, one after the other; what each prints. The card is what
/// these options of `esw up` say, in which `$FOLDER` is the folder.
pub fn session(folder: &Folder, shell: &str, card: &str, commands: &[impl Display]) -> Vec<Vec<String>> {
    const MARK: &str = "@@";
    let text: String = commands.iter().map(|command| format!("echo {MARK}\n{command}\n")).collect();
    fs::write(folder.0.join("session"), format!("{WAITING}{text}")).unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        $ESW up --daemon --detach {card} >&2
        $ESW exec -- {shell} $FOLDER/session 2>&1 || true
        $ESW down >&2"
    );
    let output = apart(&script, &folder.0);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let mark = format!("{MARK}\n");
    let printed = stdout.split(&mark).skip(1);
    let printed: Vec<Vec<String>> =
        printed.map(|printed| printed.lines().map(|line| line.trim_end().to_owned()).collect()).collect();
    assert_eq!(printed.len(), commands.len(), "{stdout}\n{stderr}");
    commands.iter().for_each(|command| record(&command.to_string()));
    printed
}

/// Appends a command, or a script, to the file that `cargo xtask programs` collects commands from, if it runs this test.
pub fn record(command: &str) {
    let Some(path) = std::env::var_os("RECORD_COMMANDS") else { return };
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{command}\n").as_bytes()).unwrap();
}

/// Checks that the output of a command is the expected one.
pub fn compare(command: &str, expected: &[String], printed: &[String]) {
    let found: Vec<&str> = printed.iter().map(String::as_str).collect();
    assert!(lines_are(expected, &found), "$ {command}\n{}\nexpected:\n{}", found.join("\n"), expected.join("\n"));
}

/// Runs a script where nothing of the host is touched: in network and mount namespaces of its own.
pub fn apart(script: &str, folder: &Path) -> Output {
    let unshare = ["--mount", "--net", "--propagation", "private", "sh", "-ec"];
    Command::new("unshare").args(unshare).arg(script).env("FOLDER", folder).env("ESW", ESW).output().unwrap()
}
