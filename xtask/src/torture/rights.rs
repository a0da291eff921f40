//! Programs without rights in a lab that try what only root may do.
//!
//! After each attempt the card, the host's netdevs with their addresses, routes and queueing disciplines, and the card's
//! modules are unchanged, and the program's exit status shows that it was refused. Root makes the same attempts and must
//! succeed, which shows that they are not misspelt.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::shell;

use super::kernel;
use super::model;
use super::place::Place;
use super::rounds::Rounds;

/// The users who try: a name, and the command prefix that a program is run with.
const WHO: [(&str, &str); 6] = [
    ("root, who may", ""),
    ("an ordinary user", "setpriv --reuid 65534 --regid 65534 --clear-groups"),
    (
        "an ordinary user with no_new_privs",
        "setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all",
    ),
    ("an ordinary user in a user namespace", "setpriv --reuid 65534 --regid 65534 --clear-groups unshare -Ur"),
    (
        "an ordinary user with no_new_privs in a user namespace",
        "setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all unshare -Ur",
    ),
    ("root without capabilities", "setpriv --bounding-set=-net_admin,-sys_admin,-sys_module"),
];
/// The user who owns the files in `/sys`, and who may write to them if their modes allow it.
const BARE_ROOT: usize = 5;

/// The attempts.
const ATTEMPTS: [&str; 23] = [
    "ip link del host0",
    "ip link set host0 down",
    "ip link set host0 mtu 1400",
    "ip link set host0 name mine",
    "ip addr add 192.0.2.9/24 dev host0",
    "ip route add 198.51.100.0/24 dev host0",
    "ip link add evil type bridge",
    "tc qdisc add dev host0 ingress",
    "ip link set enp8s0f0npf0vf0 down",
    "ip link del enp8s0f0npf0vf0",
    "ip link set enp8s0f0np0 vf 0 mac 02:00:00:00:66:66",
    "devlink dev eswitch set pci/0000:08:00.1 mode legacy",
    "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 66",
    "devlink port del pci/0000:08:00.0/32768",
    "devlink port function set pci/0000:08:00.0/1 hw_addr 02:00:00:00:66:66",
    "devlink port function rate add pci/0000:08:00.0/evil tx_max 10gbit",
    "devlink port function rate set pci/0000:08:00.0/1 tx_max 10gbit",
    "devlink dev param set pci/0000:08:00.0 name esw_multiport value true cmode runtime",
    "devlink dev reload pci/0000:08:00.1",
    "modprobe -r mlx5_ib",
    "rdma system set netns exclusive",
    "echo 0 > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs",
    "echo 0000:08:00.2 > /sys/bus/pci/drivers/mlx5_core/unbind",
];
/// The attempt that root does not make: whether a representor can be deleted depends on the card.
const NOT_OF_ROOT: [&str; 1] = ["ip link del enp8s0f0npf0vf0"];

/// A socket that is passed to another user, who sends RTM_DELLINK of host0 on it and prints the kernel's answer.
const PASSED: &str = r#"
import os, signal, socket, struct, sys
signal.alarm(20)
def drop():
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def make():
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def delete(s):
    name = b'host0\0\0\0'
    attribute = struct.pack('=HH', 4 + 6, 3) + name
    body = struct.pack('=BBHiII', 0, 0, 0, 0, 0, 0) + attribute
    s.send(struct.pack('=IHHII', 16 + len(body), 17, 5, 1, 0) + body)
    answer = s.recv(8192)
    sys.exit(1 if struct.unpack('=i', answer[16:20])[0] else 0)
ours, theirs = socket.socketpair()
if os.fork() == 0:
    if ORDINARY_OPENS:
        drop()
    made = make()
    socket.send_fds(theirs, [b'x'], [made.fileno()])
    os._exit(0)
_, fds, _, _ = socket.recv_fds(ours, 1, 1)
os.wait()
if not ORDINARY_OPENS:
    drop()
delete(socket.socket(fileno=fds[0]))
"#;

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let config = "kind = \"linux\"\n[cards.a.card]\npfs = 2\ntotal_vfs = 8\nvfs = 4\nmode = \"switchdev\"\nmodules = [\"mlx5_ib\"]\n";
    let place = Place::new(&rounds.esw, "rights", config)?;
    let python = Command::new("python3").args(["-c", "import socket; socket.send_fds"]).output();
    let python = python.is_ok_and(|output| output.status.success());
    if !python {
        rounds.tally.skipped("sockets that are passed on", "python3 is not installed".to_owned());
    }
    let passed = if python { 2 } else { 0 };
    let all = (WHO.len() * ATTEMPTS.len() + passed) as u64;
    let mut rig = None;
    while let Some((seed, _)) = rounds.next() {
        let before = match rig.take() {
            Some(before) => before,
            None => {
                set_up(&place)?;
                let program = place.esw(&["exec", "--", "ip", "link"])?;
                if !program.succeeded() {
                    rounds.tally.skipped("all of it", format!("there can be no lab here: {}", program.describe()));
                    break;
                }
                picture(&place)?
            }
        };
        // In turn, from the one that the seed selects, so that all are tried.
        let Trial { what, may, program } = Trial::of((seed % all) as usize);
        let Some(may) = may else {
            rig = Some(before);
            continue;
        };
        let words: Vec<&str> = ["exec", "--"].into_iter().chain(program.iter().map(String::as_str)).collect();
        let ended = place.esw(&words)?;
        // A card that does not answer any more has changed, too.
        let after = picture(&place).unwrap_or_else(|error| format!("{error:#}"));
        let told = || format!("esw {}\n{}", words.join(" "), ended.describe().trim_end());
        let outcome = match (may, ended.succeeded()) {
            (true, true) => Ok("allowed"),
            (true, false) => Err(format!("{}\nit takes rights that root has", told())),
            (false, _) if before != after => {
                Err(format!("{}\nwhat it was not allowed to do is done:\n{}", told(), differences(&before, &after)))
            }
            (false, true) => Err(format!("{}\nit was to be refused", told())),
            (false, false) if ended.fault().is_some() => Err(told()),
            (false, false) => Ok("refused"),
        };
        if rounds.tally.tried(what, seed, outcome) && before == after {
            rig = Some(before);
        }
    }
    place.clear()
}

/// One attempt by one user.
struct Trial {
    /// The user.
    what: &'static str,
    /// Whether it is allowed; `None` if that depends on the card or on a file's mode.
    may: Option<bool>,
    program: Vec<String>,
}

impl Trial {
    /// The trial with a number: each attempt by each user, then the sockets.
    fn of(n: usize) -> Self {
        if let Some(passed) = n.checked_sub(WHO.len() * ATTEMPTS.len()) {
            let opens = if passed == 0 { "False" } else { "True" };
            let script = PASSED.replace("ORDINARY_OPENS", opens);
            let what = ["a socket of root's, used by an ordinary user", "a socket of an ordinary user's, used by root"];
            let program = vec!["python3".to_owned(), "-c".to_owned(), script];
            return Self { what: what[passed], may: Some(false), program };
        }
        let (who, attempt) = (n % WHO.len(), ATTEMPTS[n / WHO.len()]);
        let may = match who {
            0 => (!NOT_OF_ROOT.contains(&attempt)).then_some(true),
            BARE_ROOT if attempt.starts_with("echo") => None,
            _ => Some(false),
        };
        let words = WHO[who].1.split_whitespace().map(str::to_owned);
        Self { what: WHO[who].0, may, program: words.chain(["sh", "-c", attempt].map(str::to_owned)).collect() }
    }
}

fn set_up(place: &Place) -> Result<()> {
    place.clear()?;
    // IPv6 addresses that netdevs configure automatically would appear a moment later.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    place.must_up(&["--fresh"])?;
    shell(
        "ip link add host0 type veth peer name host1; ip link set host0 up; ip link set host1 up; ip link set enp8s0f0npf0vf0 up
        ip addr add 192.0.2.1/24 dev host0",
    )?;
    let mut client = place.client().map_err(|error| anyhow!("{error}"))?;
    let (mut state, _) = model::observe(&mut client).map_err(|error| anyhow!("{error}"))?;
    model::Change::SfAdd(1).ask(&mut client, &mut state).map_err(|error| anyhow!("an SF: {error}"))?;
    Ok(())
}

/// Everything that must not change, in lines.
fn picture(place: &Place) -> Result<String> {
    let mut client = place.client().map_err(|error| anyhow!("{error}"))?;
    let (state, _) = model::observe(&mut client).map_err(|error| anyhow!("{error}"))?;
    let mut lines = format!("{state:#?}\n");
    let view = model::view(&mut client).map_err(|error| anyhow!("{error}"))?;
    for function in view["functions"].as_array().context("the view has no functions")? {
        let _ = writeln!(lines, "{} bound to {}", function["address"], function["driver"]);
    }
    for (name, link) in kernel::links(None)? {
        // The carrier follows from the rest a moment later, so it is left out.
        let is_up = link.flags.contains("UP");
        let kernel::Link { ifindex, address, master, mtu, .. } = link;
        let _ = writeln!(lines, "{name}: number {ifindex}, {address}, in {master:?}, mtu {mtu}, up: {is_up}");
    }
    lines += &shell("ip -o -4 addr; ip -4 route show table all; tc qdisc show dev host0 2>&1 || true")?;
    if lines.is_empty() {
        bail!("the card has nothing that could change");
    }
    Ok(lines)
}

/// The lines of one text that the other lacks.
fn differences(before: &str, after: &str) -> String {
    let mut said = String::new();
    for line in before.lines().filter(|line| !after.lines().any(|other| other == *line)) {
        let _ = writeln!(said, "- {}", line.trim());
    }
    for line in after.lines().filter(|line| !before.lines().any(|other| other == *line)) {
        let _ = writeln!(said, "+ {}", line.trim());
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_told_by_line() {
        assert_eq!(differences("a\nb\n", "a\nc\n"), "- b\n+ c\n");
        assert_eq!(differences("a\n", "a\n"), "");
    }
}
