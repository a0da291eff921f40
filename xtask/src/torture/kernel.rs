//! The kernel's netdevs, processes, mounts and sockets. None of this comes from the product.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

/// A netdev.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Link {
    /// Its name.
    pub ifname: String,
    /// Its interface index. A netdev that was deleted and made again has another one.
    pub ifindex: u32,
    /// Its MAC address.
    #[serde(default)]
    pub address: String,
    /// The bridge or bond that it is a port of.
    #[serde(default)]
    pub master: Option<String>,
    /// `UP`, `LOWER_UP` and others.
    #[serde(default)]
    pub flags: BTreeSet<String>,
    /// Its MTU, in bytes.
    #[serde(default)]
    pub mtu: u32,
}

/// The netdevs of a named network namespace, or of this process's, by name.
pub fn links(namespace: Option<&str>) -> Result<BTreeMap<String, Link>> {
    let mut ip = Command::new("ip");
    if let Some(name) = namespace {
        ip.args(["-n", name]);
    }
    listed(ip.args(["-j", "link"]))
}

/// The netdevs of the network namespace that a process is in, by name.
pub fn links_of(pid: u32) -> Result<BTreeMap<String, Link>> {
    listed(Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip", "-j", "link"]))
}

fn listed(command: &mut Command) -> Result<BTreeMap<String, Link>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let all: Vec<Link> = serde_json::from_slice(&output.stdout).context("the output of ip -j link")?;
    Ok(all.into_iter().filter(|link| link.ifname != "lo").map(|link| (link.ifname.clone(), link)).collect())
}

/// A process that is not a zombie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process ID.
    pub pid: u32,
    /// Its arguments, separated by spaces.
    pub command: String,
}

/// Every process of this pid namespace, except for this one, process 1 and zombies.
pub fn processes() -> Vec<Process> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (named, _) = stat.rsplit_once(") ")?;
        if !lives(pid) {
            return None;
        }
        let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let command = words.join(" ").trim().to_owned();
        // A process that has just been forked or is ending may have no arguments.
        let command = if command.is_empty() { format!("{named})") } else { command };
        Some(Process { pid, command })
    };
    pids.filter(|pid| *pid != 1 && *pid != own).filter_map(of).collect()
}

/// What an attack can leave: processes, mounts, named network namespaces, sockets with a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Processes, by process ID.
    pub processes: BTreeMap<u32, String>,
    /// Mounts, without their numbers.
    pub mounts: BTreeSet<String>,
    /// Named network namespaces.
    pub namespaces: BTreeSet<String>,
    /// Sockets with a name, in the file system or abstract.
    pub sockets: BTreeMap<String, u32>,
}

impl Remains {
    /// What exists now.
    pub fn now() -> Self {
        let processes = processes().into_iter().map(|process| (process.pid, process.command)).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| Some(line.splitn(5, ' ').nth(4)?.to_owned())).collect();
        let folder = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let namespaces = folder.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let mut sockets = BTreeMap::new();
        for line in fs::read_to_string("/proc/net/unix").unwrap_or_default().lines().skip(1) {
            // Numbers, then a name, which may contain spaces or be missing.
            let name = line.split_whitespace().skip(7).collect::<Vec<_>>().join(" ");
            if !name.is_empty() {
                *sockets.entry(name).or_default() += 1;
            }
        }
        Self { processes, mounts, namespaces, sockets }
    }

    /// What exists now and did not exist in `before`, in lines; empty if nothing.
    pub fn beyond(&self, before: &Self) -> String {
        let mut said = String::new();
        for (pid, command) in &self.processes {
            if !before.processes.contains_key(pid) {
                said += &format!("process {pid} is left: {command}\n");
            }
        }
        for mount in self.mounts.difference(&before.mounts) {
            said += &format!("a mount is left: {mount}\n");
        }
        for name in self.namespaces.difference(&before.namespaces) {
            said += &format!("the network namespace {name} is left\n");
        }
        for (name, n) in &self.sockets {
            let had = before.sockets.get(name).copied().unwrap_or(0);
            if *n > had {
                said += &format!("{} sockets more of the name {name}\n", n - had);
            }
        }
        said
    }
}

/// Waits until nothing exists that did not exist before. The error is what is left after `limit`.
pub fn wait_for_nothing_beyond(before: &Remains, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    loop {
        let left = Remains::now().beyond(before);
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("{} s later:\n{left}", limit.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends SIGKILL to a process that this program started, or whose process ID is in a socket's credentials.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Whether a process exists and is not a zombie.
pub fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    // The first thread may have ended before the others, which still have the sockets open.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    !rest.starts_with(['Z', 'X']) || threads > 1
}

/// Waits until a process has ended; returns whether it has.
pub fn has_ended(pid: u32, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    while lives(pid) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The resident memory of a process, in KiB.
pub fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The contents of every file below a directory, by its relative path.
pub fn files(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let (kind, path) = entry.and_then(|entry| Ok((entry.file_type()?, entry.path())))?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(folder)?.to_string_lossy().into_owned();
                all.insert(name, fs::read(path)?);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named() {
        let before = Remains::now();
        assert_eq!(before.beyond(&before), "");
        let mut after = before.clone();
        after.processes.insert(999_999_999, "sleep 1000".to_owned());
        *after.sockets.entry("@left".to_owned()).or_default() += 2;
        assert_eq!(after.beyond(&before), "process 999999999 is left: sleep 1000\n2 sockets more of the name @left\n");
    }
}
