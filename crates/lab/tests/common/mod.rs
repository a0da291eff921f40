//! A network namespace for a lab, and functions to run programs in it.

#![allow(dead_code)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// Prints what is missing; with CI set it is a failure.
pub fn skip(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "missing: {what}");
    eprintln!("skipped: missing {what}");
}

/// Whether a program is installed.
pub fn has(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|folder| Path::new(folder).join(program).exists())
}

/// Appends a command to the file that `cargo xtask programs` collects commands from, if it runs this test.
pub fn record(command: &str) {
    let Some(path) = std::env::var_os("RECORD_COMMANDS") else { return };
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{command}\n").as_bytes()).unwrap();
}

/// The program that runs others in a lab.
pub fn lab_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/lab");
    assert!(program.exists(), "{} is missing: `cargo build -p lab --examples` builds it", program.display());
    program
}

pub fn card() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/card.json")
}

/// A network namespace with the netdevs of the card, another one that is the card's own, and a file to which the card
/// writes its commands.
pub struct Place {
    pub name: String,
    /// The path of the card's own namespace.
    pub inside: String,
    commands: PathBuf,
}

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).output().is_ok_and(|output| output.status.success())
}

impl Place {
    /// `None`: a network namespace cannot be made here; the reason has been printed.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lab-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        if !ip(&format!("netns add {name}")) {
            skip("root, `ip netns`");
            return None;
        }
        let commands = std::env::temp_dir().join(&name);
        let place = Self { inside: format!("/run/netns/{name}-card"), name, commands };
        assert!(ip(&format!("netns add {}-card", place.name)));
        place.add("labp0", 1001);
        place.add("labp0_0", 1002);
        Some(place)
    }

    /// Makes a netdev of the card. `peer`: as in the card's view.
    pub fn add(&self, netdev: &str, peer: u32) {
        let name = &self.name;
        for words in [
            // From the card's side: iproute2 gives the kernel no index for the peer.
            format!("-n {name}-card link add name p{peer} index {peer} type veth peer name {netdev} netns {name}"),
            format!("-n {name} link set {netdev} up"),
            format!("-n {name}-card link set p{peer} up"),
        ] {
            assert!(ip(&words), "{words}");
        }
    }

    /// A command that runs a program in a lab.
    pub fn command(&self, options: &[&str], program: &[&str]) -> Command {
        let mut command = Command::new(lab_program());
        command.args(options).args(["--netns", &self.name, "--inside", &self.inside, "--commands"]).arg(&self.commands);
        command.arg(card()).arg("--").args(program);
        command
    }

    pub fn run(&self, program: &[&str]) -> Output {
        record(&program.join(" "));
        self.command(&[], program).output().unwrap()
    }

    /// The output of a program, which must succeed.
    pub fn text(&self, program: &[&str]) -> String {
        text(&self.run(program))
    }

    pub fn shell(&self, script: &str) -> String {
        self.text(&["sh", "-c", script])
    }

    /// The commands that the card has got since the last call.
    pub fn commands(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.commands).unwrap_or_default();
        let _ = fs::remove_file(&self.commands);
        text.lines().map(str::to_owned).collect()
    }

    /// Runs a part of this test as a program in a lab: see [`part`].
    pub fn part(&self, options: &[&str], name: &str) {
        let test = std::env::current_exe().unwrap();
        let program = [test.to_str().unwrap(), "--exact", name, "--nocapture", "--test-threads=1"];
        let printed = text(&self.command(options, &program).env("LAB_PART", name).output().unwrap());
        assert!(printed.contains("1 passed"), "{printed}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
        ip(&format!("netns del {}-card", self.name));
        let _ = fs::remove_file(&self.commands);
    }
}

/// Whether this process runs that part of a test, in a lab.
pub fn part(name: &str) -> bool {
    std::env::var("LAB_PART").as_deref() == Ok(name)
}

pub fn text(output: &Output) -> String {
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{printed}\n{errors}", output.status);
    printed.into_owned()
}
