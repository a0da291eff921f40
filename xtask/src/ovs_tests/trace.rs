//! What a traced script ran: the files that `strace -ff` has written, one of each process.
//!
//! A script that prints `TEST PASSED` has not looked at everything that failed. The kernel sees it: the exit status of
//! each program, and the error of each write.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The options of strace that write what [`failures`] reads. With `--seccomp-bpf` it would miss calls that a lab answers.
pub const OPTIONS: &str = "-ff -ttt -s 300 -e signal=none -e trace=execve,write,openat,exit_group";

/// The programs by which a script acts on a card, or looks at one. Others (`grep`, `test`) fail to say no.
const PROGRAMS: [&str; 21] = [
    "brctl",
    "bridge",
    "devlink",
    "ethtool",
    "ifconfig",
    "insmod",
    "ip",
    "iperf",
    "iperf3",
    "lspci",
    "mlxconfig",
    "modprobe",
    "ovs-appctl",
    "ovs-ofctl",
    "ovs-vsctl",
    "ping",
    "rdma",
    "rmmod",
    "setpci",
    "tc",
    "vconfig",
];

/// Something that failed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Failure {
    /// When it ended, in seconds since 1970, as strace writes it.
    pub at: String,
    /// The command with its arguments, or `echo … > FILE`.
    pub command: String,
    /// What it printed about it, or the error.
    pub words: String,
}

/// What failed in a run, in the order of time. `folder`: where strace has written its files.
///
/// # Errors
/// The files cannot be read.
pub fn failures(folder: &Path) -> Result<Vec<Failure>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let text = fs::read(entry?.path())?;
        found.extend(of_process(&String::from_utf8_lossy(&text)));
    }
    found.sort();
    Ok(found)
}

/// What failed in one process.
fn of_process(trace: &str) -> Vec<Failure> {
    let mut failed = Vec::new();
    let mut program: Option<Vec<String>> = None;
    let mut printed = String::new();
    // The file below /sys or /proc that it has opened for writing last. A shell moves it to another descriptor, so the
    // number does not tell.
    let mut opened: Option<String> = None;
    for line in trace.lines() {
        let Some((at, call)) = line.split_once(' ') else { continue };
        let failure = |command: String, words: &str| Failure { at: at.to_owned(), command, words: words.to_owned() };
        if let Some(rest) = call.strip_prefix("execve(") {
            if call.ends_with(" = 0") {
                program = Some(strings(rest.split_once(", [").map_or("", |(_, rest)| rest)));
                printed.clear();
            }
        } else if let Some(rest) = call.strip_prefix("openat(") {
            let Some(path) = strings(rest).into_iter().next() else { continue };
            let writes = rest.contains("O_WRONLY") || rest.contains("O_RDWR");
            if !writes || !(path.starts_with("/sys/") || path.starts_with("/proc/")) {
                continue;
            }
            match (returned(call), error(call)) {
                (_, Some(error)) => failed.push(failure(format!("echo > {path}"), error)),
                (Some(_), None) => opened = Some(path),
                _ => {}
            }
        } else if let Some(rest) = call.strip_prefix("write(") {
            let text = strings(rest).into_iter().next().unwrap_or_default();
            match error(call) {
                Some(error) => {
                    if let Some(path) = &opened {
                        failed.push(failure(format!("echo {} > {path}", text.trim()), error));
                    }
                }
                None if rest.starts_with("2, ") => printed.push_str(&text),
                None => {}
            }
            let not_found = text.strip_suffix(": command not found\n").filter(|_| rest.starts_with("2, "));
            if let Some(missing) = not_found.and_then(|text| text.rsplit(": ").next()) {
                failed.push(failure(missing.to_owned(), "command not found"));
            }
        } else if let Some(status) = call.strip_prefix("+++ exited with ").and_then(|rest| rest.split(' ').next()) {
            let Some(argv) = program.take().filter(|_| status != "0") else { continue };
            let name = argv.first().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
            if PROGRAMS.contains(&name) {
                let words: Vec<&str> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                let words = if words.is_empty() { format!("exit status {status}") } else { words.join("; ") };
                failed.push(failure([&[name.to_owned()], &argv[1..]].concat().join(" "), &words));
            }
        }
    }
    failed
}

/// The number that a call returned, if it is one.
fn returned(call: &str) -> Option<i64> {
    call.rsplit_once(" = ")?.1.split(' ').next()?.parse().ok()
}

/// The words of the error of a call, for example `Invalid argument`.
fn error(call: &str) -> Option<&str> {
    let (_, result) = call.rsplit_once(" = -1 ")?;
    Some(result.split_once('(')?.1.trim_end_matches(')'))
}

/// The strings in quotation marks up to the end of the arguments or of a list, without strace's escapes.
fn strings(arguments: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut chars = arguments.chars();
    let mut inside: Option<String> = None;
    while let Some(c) = chars.next() {
        match (&mut inside, c) {
            (Some(_), '"') => found.extend(inside.take()),
            (Some(text), '\\') => match chars.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(other) => text.push(other),
                None => {}
            },
            (Some(text), c) => text.push(c),
            (None, '"') => inside = Some(String::new()),
            (None, ']') => break,
            (None, _) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(trace: &str) -> Vec<(String, String)> {
        of_process(trace).into_iter().map(|failure| (failure.command, failure.words)).collect()
    }

    #[test]
    fn a_program_that_fails_is_found_with_its_arguments_and_its_words() {
        let trace = r#"1.1 write(2, "+ ethtool -L x combined 4\n", 26) = 26
1.2 execve("/usr/sbin/ethtool", ["ethtool", "-L", "x", "combined", "4"], 0x55 /* 35 vars */) = 0
1.3 write(2, "netlink error: Invalid argument\n", 32) = 32
1.4 exit_group(1)                           = ?
1.5 +++ exited with 1 +++
"#;
        assert_eq!(
            failed(trace),
            [("ethtool -L x combined 4".to_owned(), "netlink error: Invalid argument".to_owned())]
        );
        assert!(failed(&trace.replace("exited with 1", "exited with 0")).is_empty());
        assert!(failed(&trace.replace("[\"ethtool\"", "[\"grep\"")).is_empty(), "grep says no by its status");
    }

    #[test]
    fn a_write_that_fails_is_found_with_its_file() {
        let trace = r#"1.1 openat(AT_FDCWD, "/sys/bus/pci/drivers/x/bind", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 3
1.2 write(1, "0000:08:00.1\n", 13) = -1 ENODEV (No such device)
1.3 openat(AT_FDCWD, "/sys/y", O_WRONLY|O_CREAT, 0666) = -1 EACCES (Permission denied)
1.4 openat(AT_FDCWD, "/sys/z", O_RDONLY) = -1 ENOENT (No such file or directory)
"#;
        let found = [
            ("echo 0000:08:00.1 > /sys/bus/pci/drivers/x/bind", "No such device"),
            ("echo > /sys/y", "Permission denied"),
        ];
        assert_eq!(failed(trace), found.map(|(command, words)| (command.to_owned(), words.to_owned())));
    }

    #[test]
    fn a_program_that_is_not_there_is_found() {
        let trace =
            "1.1 write(2, \"./x.sh: line 5: mlxreg: command not found\\n\", 40) = 40\n1.2 +++ exited with 127 +++\n";
        assert_eq!(failed(trace), [("mlxreg".to_owned(), "command not found".to_owned())]);
    }
}
