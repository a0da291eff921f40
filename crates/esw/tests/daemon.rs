//! Daemons from outside: start, status, end, on the card in memory.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test gives up. Nothing is asserted of how long it takes.
const LONG: Duration = Duration::from_secs(120);

/// Folders of a test's own, and what runs in them. Both are gone with it.
struct Place {
    folder: PathBuf,
    children: Vec<Child>,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("esw-daemon-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self { folder, children: Vec::new() }
    }

    fn esw(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        command.args(arguments).env_remove("ESW_LOG").env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1");
        command.env("RUNTIME_DIRECTORY", self.folder.join("run")).env("STATE_DIRECTORY", self.folder.join("state"));
        command
    }

    fn output(&self, arguments: &[&str]) -> (i32, String, String) {
        read(self.esw(arguments).output().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a daemon of ours, and waits until it says that it is ready. What it says goes with it.
    fn start(&mut self, arguments: &[&str]) -> (u32, UnixDatagram) {
        let path = self.folder.join(format!("notify-{}", self.children.len()));
        let _ = fs::remove_file(&path);
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(LONG)).unwrap();
        let mut command = self.esw(&["up", "--daemon"]);
        let child = command.args(arguments).env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        while !hear(&told).contains("READY=1") {}
        (pid, told)
    }

    fn status(&self) -> Vec<Value> {
        let (code, said, complaint) = self.output(&["status", "--json"]);
        assert_eq!(code, 0, "{complaint}");
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for the end of the daemon that was started last; its exit status.
    fn ended(&mut self) -> Option<i32> {
        let mut child = self.children.pop().unwrap();
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.children.push(child);
        panic!("the daemon has not ended");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.esw(&["down", "--all"]).output();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn read(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn hear(told: &UnixDatagram) -> String {
    let mut text = [0; 4096];
    let length = told.recv(&mut text).expect("the daemon says nothing");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn socket(folder: &Path) -> String {
    folder.join("run/0000:08:00.0.sock").display().to_string()
}

#[test]
fn a_daemon_goes_to_the_background_is_told_of_and_ends() {
    let place = Place::new();
    let (code, said, complaint) = place.output(&["up", "--daemon", "--detach"]);
    assert_eq!(code, 0, "{complaint}");
    assert!(said.contains("up: 0000:08:00.0"), "{said}");
    let [card] = &place.status()[..] else { panic!("one card") };
    assert_eq!((card["name"].as_str(), card["kind"].as_str()), (Some("0000:08:00.0"), Some("memory")));
    assert_eq!(card["pfs"][0]["mode"], "legacy");
    let (_, said, _) = place.output(&["status"]);
    assert!(said.contains("pci/0000:08:00.0  legacy, 0 VFs, 0 SFs, 0 representors"), "{said}");
    let pid = card["pid"].as_u64().unwrap();
    let (code, said, complaint) = place.output(&["down"]);
    assert_eq!(code, 0, "{complaint}");
    assert!(said.contains(&format!("ended process {pid}")), "{said}");
    assert!(!Path::new(&socket(&place.folder)).exists());
    let (code, _, complaint) = place.output(&["down"]);
    assert_eq!((code, complaint.as_str()), (1, "esw: no daemon runs\n"));
}

#[test]
fn the_service_manager_is_told_and_a_signal_ends_it() {
    let mut place = Place::new();
    let (pid, told) = place.start(&[]);
    signal(pid, "-TERM");
    while !hear(&told).contains("STOPPING=1") {}
    assert_eq!(place.ended(), Some(0));
    assert!(!Path::new(&socket(&place.folder)).exists());
}

#[test]
fn one_card_has_one_daemon() {
    let mut place = Place::new();
    place.start(&[]);
    for arguments in [&["up", "--daemon"][..], &["up", "--daemon", "--detach"]] {
        let (code, _, complaint) = place.output(arguments);
        assert_eq!(code, 2, "{complaint}");
        assert!(complaint.contains("a daemon already listens there"), "{complaint}");
    }
    assert_eq!(place.status().len(), 1, "it is still there");
}

#[test]
fn the_socket_of_a_dead_daemon_is_in_nobodys_way() {
    let mut place = Place::new();
    let (pid, _) = place.start(&[]);
    signal(pid, "-KILL");
    assert_eq!(place.ended(), None);
    let (code, _, complaint) = place.output(&["status", "--card", "0000:08:00.0"]);
    assert_eq!(code, 1);
    assert!(complaint.contains("has died"), "{complaint}");
    let (code, _, complaint) = place.output(&["down", "--card", "0000:08:00.0"]);
    assert_eq!(code, 1);
    assert!(complaint.contains("has died"), "{complaint}");
    place.start(&[]);
    assert_eq!(place.status().len(), 1);
}

#[test]
fn several_daemons_are_told_apart() {
    let mut place = Place::new();
    let left = place.file("left.toml", "[cards.left]\n");
    let right = place.file("right.toml", "[cards.right]\n[cards.third.card]\naddress = \"0000:0a:00.0\"\n");
    place.start(&["--config", left.to_str().unwrap()]);
    place.start(&["--config", right.to_str().unwrap()]);
    let names: Vec<Value> = place.status().iter().map(|card| card["name"].clone()).collect();
    assert_eq!(names, ["left", "right", "third"]);
    let (code, _, complaint) = place.output(&["down"]);
    assert_eq!(code, 1);
    assert!(complaint.contains("several daemons run"), "{complaint}");
    let (code, _, complaint) = place.output(&["down", "--card", "third"]);
    assert_eq!(code, 0, "{complaint}");
    assert_eq!(place.status().len(), 1, "a daemon ends with all its cards");
    assert_eq!(place.output(&["down", "--all"]).0, 0);
    assert_eq!(place.status().len(), 0);
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    let place = Place::new();
    let long = "x".repeat(120);
    for (text, expected) in [
        ("[cards.a]\ncolour = 1\n".to_owned(), ":2:1"),
        ("[cards.a]\nkind = \"paper\"\n".to_owned(), ":2:8"),
        (format!("[cards.{long}]\n"), "it can have 107"),
        ("[cards.a]\nsocket = \"/proc/nonesuch/a.sock\"\n".to_owned(), "/proc/nonesuch"),
    ] {
        let file = place.file("wrong.toml", &text);
        for how in [&["up", "--daemon", "--config"][..], &["up", "--daemon", "--detach", "--config"]] {
            let (code, _, complaint) = place.output(&[how, &[file.to_str().unwrap()]].concat());
            assert_eq!(code, 2, "{text}: {complaint}");
            assert!(complaint.contains(expected), "{text}: {complaint}");
        }
    }
    for arguments in [&["up", "--detach"][..], &["up", "--daemon", "--log", "loud"], &["down", "--card", "a", "--all"]]
    {
        assert_eq!(place.output(arguments).0, 2, "{arguments:?}");
    }
    let mut command = place.esw(&["up", "--daemon"]);
    let (code, _, complaint) = read(command.env("ESW_LOG", "loud").output().unwrap());
    assert_eq!(code, 2);
    assert!(complaint.contains("ESW_LOG is `loud`"), "{complaint}");
}

#[test]
fn the_log_is_one_object_a_line_if_asked_for() {
    let place = Place::new();
    let (code, _, complaint) = place.output(&["up", "--daemon", "--detach", "--log-format", "json"]);
    assert_eq!(code, 0, "{complaint}");
    assert_eq!(place.output(&["down"]).0, 0);
    let log = fs::read_to_string(place.folder.join("state/esw.log")).unwrap();
    let said: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all: Vec<&str> = said.iter().filter_map(|line| line["message"].as_str()).collect();
    for expected in ["starting", "up", "asked to end", "stopping", "pci/0000:08:00.0: unbound", "stopped"] {
        assert!(all.contains(&expected), "no `{expected}` in {log}");
    }
}
