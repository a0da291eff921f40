//! Finds the programs in a lab that is kept.
//!
//! The kernel does not report which filter a process has. So a program is found by where it is: it has a filter, and is in
//! the lab's mount namespace, or a process above it is, as one that has made a mount namespace of its own.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{fstat, stat};
use rustix::process::{Signal, pidfd_send_signal};

use super::{PROGRAMS, ProgramInside};
use crate::process;

/// The bytes of a command line that are shown.
const COMMAND: usize = 100;

/// The programs in a lab with this mount namespace, by number, at most [`PROGRAMS`].
pub(super) fn find(mounts: impl AsFd) -> Vec<ProgramInside> {
    let Ok(lab) = fstat(mounts).map(|found| found.st_ino) else { return Vec::new() };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let parents: HashMap<u32, u32> =
        numbers.iter().filter_map(|pid| Some((*pid, process::parent_of(*pid).ok()?))).collect();
    let is_there = |pid: u32| {
        let ancestors = std::iter::successors(Some(pid), |pid| parents.get(pid).copied());
        // More than that are a circle of numbers that were given again meanwhile.
        ancestors.take(numbers.len()).any(|pid| mount_namespace(pid) == Some(lab))
    };
    let inside = numbers.iter().copied().filter(|pid| has_filter(*pid) && is_there(*pid));
    inside.map(|pid| ProgramInside { pid, command: command_of(pid) }).take(PROGRAMS).collect()
}

fn mount_namespace(pid: u32) -> Option<u64> {
    stat(format!("/proc/{pid}/ns/mnt")).ok().map(|found| found.st_ino)
}

/// Whether a process has any seccomp filter.
fn has_filter(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

/// The command line of a process, or its name if it has none.
fn command_of(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line[..line.len().min(COMMAND)]).replace('\0', " ");
    match line.trim() {
        "" => fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned(),
        line => line.to_owned(),
    }
}

/// Sends a signal to each of the programs that is still in the lab.
pub(super) fn send(mounts: &OwnedFd, programs: &[ProgramInside], signal: Signal) {
    let opened: Vec<(u32, OwnedFd)> =
        programs.iter().filter_map(|program| Some((program.pid, process::open(program.pid).ok()?))).collect();
    // Looked for again with the descriptors open: a number may be another process's by now.
    let there = find(mounts);
    for (pid, process) in opened {
        if there.iter().any(|program| program.pid == pid) {
            let _ = pidfd_send_signal(process, signal);
        }
    }
}
