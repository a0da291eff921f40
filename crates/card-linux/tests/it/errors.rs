//! Threads that receive events of the kernel and get an error wait before they try again: they keep no processor busy,
//! and go on when they can.

#![allow(clippy::disallowed_methods, reason = "a test that sleeps holds no lock")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use crate::common::*;

/// How long anything may take here before it counts as hanging.
const HANGS: Duration = Duration::from_secs(60);

/// Runs commands outside this process, which cannot start any while it may have no more descriptors.
struct Outside {
    shell: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Outside {
    fn new() -> Self {
        let mut shell =
            Command::new("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a shell can be started");
        let (commands, answers) = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        Self { shell, commands, answers }
    }

    fn run(&mut self, command: &str) {
        writeln!(self.commands, "{command} && echo done || echo failed").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{command}");
    }

    /// Limits the descriptors that this process may open, and the number that it may wait for.
    fn limit_me(&mut self, descriptors: u32) {
        self.run(&format!("prlimit --pid {} --nofile={descriptors}:", std::process::id()));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.commands.write_all(b"exit\n");
        let _ = self.shell.wait();
    }
}

/// Ends this process: a thread in an endless loop would keep a panic from ending it.
fn fail_if(fails: bool, why: &str) {
    if fails {
        eprintln!("{why}");
        std::process::exit(1);
    }
}

/// The file that shows how often a thread of this process has gone to sleep.
fn status_of(thread: &str) -> File {
    let began = Instant::now();
    loop {
        // A thread gives itself its name once it runs.
        for task in fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path()) {
            if fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread) {
                return File::open(task.join("status")).unwrap();
            }
        }
        fail_if(began.elapsed() > HANGS, "there is no such thread");
    }
}

fn sleeps(status: &mut File) -> u64 {
    let mut text = String::new();
    status.rewind().unwrap();
    status.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn a_card_that_cannot_listen_waits_and_then_follows_again() {
    in_own_namespaces("a_card_that_cannot_listen_waits_and_then_follows_again", || {
        let _rig = Rig::with_vfs(1);
        let mut outside = Outside::new();
        let mut status = status_of("card-watch");
        outside.limit_me(2);
        // It receives this event still, and then cannot wait for the next.
        outside.run("ip link add other type veth peer name another");
        let (before, began) = (sleeps(&mut status), Instant::now());
        while sleeps(&mut status) < before + 5 {
            fail_if(began.elapsed() > HANGS, "its thread never goes to sleep");
            std::thread::sleep(Duration::from_millis(10));
        }
        outside.limit_me(1024);
        outside.run("ip link del enp8s0f0v0");
        eventually("ip link show enp8s0f0v0");
    });
}

#[test]
fn a_card_that_cannot_listen_ends() {
    in_own_namespaces("a_card_that_cannot_listen_ends", || {
        let rig = Rig::with_vfs(1);
        let mut outside = Outside::new();
        let mut status = status_of("card-watch");
        outside.limit_me(2);
        outside.run("ip link add other type veth peer name another");
        let (before, began) = (sleeps(&mut status), Instant::now());
        while sleeps(&mut status) < before + 3 {
            fail_if(began.elapsed() > HANGS, "its thread never goes to sleep");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (ended, end) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                drop(rig);
                ended.send(()).unwrap();
            });
            fail_if(end.recv_timeout(HANGS).is_err(), "dropping the card hangs");
            outside.limit_me(1024);
        });
    });
}

#[test]
fn a_watch_on_bonds_that_cannot_listen_looks_after_a_while() {
    in_own_namespaces("a_watch_on_bonds_that_cannot_listen_looks_after_a_while", || {
        let rig = Rig::with_vfs(0);
        let (_bonds, mut watch) = rig.card.bonds().unwrap();
        let mut outside = Outside::new();
        let (looks, look) = channel();
        std::thread::scope(|scope| {
            outside.limit_me(2);
            scope.spawn(move || {
                for _ in 0..3 {
                    watch.wait();
                    looks.send(()).unwrap();
                }
            });
            for _ in 0..3 {
                fail_if(look.recv_timeout(HANGS).is_err(), "it never looks");
            }
            outside.limit_me(1024);
        });
    });
}
