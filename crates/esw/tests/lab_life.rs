//! How long a lab lives: its program dies with `esw exec`, what that has left in the background keeps a lab that
//! works, with a new daemon too, and in the end nothing is left.
//!
//! Each test runs in namespaces of its own, that of processes among them, so that whatever is left is seen. It takes
//! root and `/dev/fuse`. `ESW_KILL_ROUNDS` says how often what is killed at random moments is killed.

mod lab;
mod steps;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use devlink::Client;
use rustix::process::{Pid, Signal, kill_process};

const ESW: &str = env!("CARGO_BIN_EXE_esw");
/// How long anything may take before a test gives up.
const LONG: Duration = Duration::from_secs(120);
const PF: &str = "0000:08:00.0";
const CONFIG: &str = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 2\nmodules = [\"mlx5_ib\"]\n";

/// Runs a test of this name in namespaces of its own. Whether this is there.
fn is_inside(name: &str, programs: &[&str]) -> bool {
    if std::env::var("ESW_LAB_LIFE").as_deref() == Ok(name) {
        return true;
    }
    if lab::skipped(programs) {
        return false;
    }
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        \"$@\"
        exit $?";
    let namespaces =
        ["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let test = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-ec", script, "sh"]).arg(test).args(["--exact", name, "--nocapture"]);
    let output = command.env("ESW_LAB_LIFE", name).env_remove("RUNTIME_DIRECTORY").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

macro_rules! inside_or_return {
    ($name:literal, $programs:expr) => {
        if !is_inside($name, $programs) {
            return;
        }
    };
}

/// Waits until something is so.
fn until(what: &str, mut is: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + LONG;
    loop {
        match is() {
            Ok(()) => return,
            Err(why) if Instant::now() > end => panic!("{what}: {why}"),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Every process but zombies, with its command line.
fn processes() -> BTreeSet<(u32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let alive = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
    };
    let line = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{} ({})", String::from_utf8_lossy(&line).replace('\0', " "), name.trim())
    };
    pids.filter(alive).map(|pid| (pid, line(pid))).collect()
}

/// Every mount.
fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().map(|line| line.split(' ').nth(4).unwrap().to_owned()).collect()
}

/// A daemon of ours, and a folder.
struct Place {
    folder: lab::Folder,
    daemon: u32,
    before: Option<(BTreeSet<u32>, Vec<String>, usize)>,
}

impl Place {
    fn new(name: &str) -> Self {
        let folder = lab::Folder::make(name);
        fs::write(folder.0.join("config"), CONFIG).unwrap();
        let mut place = Self { folder, daemon: 0, before: None };
        place.start_daemon();
        // What the first lab loads or makes for good is no matter.
        assert!(place.exec(&["true"]).status().unwrap().success());
        let pids = |all: BTreeSet<(u32, String)>| all.into_iter().map(|(pid, _)| pid).collect();
        until(
            "the first lab's end",
            || if processes().len() == 3 { Ok(()) } else { Err(format!("{:?}", processes())) },
        );
        place.before = Some((pids(processes()), mounts(), place.connections()));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    fn start_daemon(&mut self) {
        let config = self.path("config");
        let started = Command::new(ESW).args(["up", "--daemon", "--detach", "--config"]).arg(config).output().unwrap();
        let said = String::from_utf8_lossy(&started.stdout).into_owned();
        assert!(started.status.success(), "{said}{}", String::from_utf8_lossy(&started.stderr));
        let is_daemon = |(_, line): &&(u32, String)| line.contains(" up --daemon ");
        self.daemon = processes().iter().find(is_daemon).unwrap().0;
    }

    /// Ends the daemon by a signal.
    fn end_daemon(&self, signal: Signal) {
        kill(self.daemon, signal);
        let stat = format!("/proc/{}/stat", self.daemon);
        until("the daemon's end", || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
        });
    }

    /// The number of connections of the daemon: of its sockets those in the Unix domain. A card on Linux keeps netlink
    /// sockets for later, as many as it has needed at a time.
    fn connections(&self) -> usize {
        let table = fs::read_to_string(format!("/proc/{}/net/unix", self.daemon)).unwrap_or_default();
        let of_domain: Vec<String> =
            table.lines().filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().nth(6)?))).collect();
        let fds = fs::read_dir(format!("/proc/{}/fd", self.daemon)).into_iter().flatten().flatten();
        fds.filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| of_domain.iter().any(|socket| *socket == to.to_string_lossy()))
        })
        .count()
    }

    fn exec(&self, program: &[&str]) -> Command {
        let mut command = Command::new(ESW);
        command.args(["exec", "--"]).args(program).env("FOLDER", &self.folder.0);
        command
    }

    /// Waits until there is nothing but what was there before the first lab.
    fn nothing_is_left(&self) {
        let (pids, mounted, connections) = self.before.as_ref().unwrap();
        until("what is left", || {
            let left: Vec<_> = processes().into_iter().filter(|(pid, _)| !pids.contains(pid)).collect();
            let now = self.connections();
            match (left.is_empty(), now <= *connections) {
                (true, true) => Ok(()),
                _ => Err(format!("{left:?}, {now} connections instead of {connections}")),
            }
        });
        assert_eq!(mounts(), *mounted);
    }

    fn perform(&self, words: &str) {
        let mut client = Client::connect(Path::new("/run/eswitch/card0.sock")).unwrap();
        steps::perform(&mut client, words).unwrap();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // With the namespace of processes everything ends; a daemon that ends in good order leaves no state.
        let _ = Command::new(ESW).arg("down").output();
    }
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Starts something, and waits until it has made a file.
fn start(command: &mut Command, made: &Path) -> Child {
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    until("the program's start", || made.exists().then_some(()).ok_or("it has not started".to_owned()));
    child
}

/// A shell in the background of a lab whose first program may have ended. It runs the scripts that are sent to it.
struct Background {
    folder: PathBuf,
    told: u32,
}

/// The shell's script. Everything the caller might wait for is closed.
const BACKGROUND: &str = "(n=0; touch $FOLDER/0.done
    while [ ! -e $FOLDER/over ]; do
        n=$((n+1)); while [ ! -e $FOLDER/$n.sh ]; do sleep 0.01; done
        sh $FOLDER/$n.sh > $FOLDER/$n.said 2>&1; touch $FOLDER/$n.done
    done) < /dev/null > /dev/null 2>&1 &
    while [ ! -e $FOLDER/0.done ]; do sleep 0.01; done; ";

impl Background {
    fn of(place: &Place) -> Self {
        Self { folder: place.folder.0.clone(), told: 0 }
    }

    /// What a script says there.
    fn run(&mut self, script: &str) -> String {
        self.told += 1;
        let path = |kind: &str| self.folder.join(format!("{}.{kind}", self.told));
        fs::write(path("new"), script).unwrap();
        fs::rename(path("new"), path("sh")).unwrap();
        until(script, || path("done").exists().then_some(()).ok_or("it is not done".to_owned()));
        fs::read_to_string(path("said")).unwrap()
    }

    /// Waits until a script says something.
    fn will_say(&mut self, script: &str, expected: &str) {
        until(script, || {
            let said = self.run(script);
            if said.contains(expected) { Ok(()) } else { Err(format!("{said:?} instead of {expected:?}")) }
        });
    }

    fn end(mut self) {
        self.run("touch $FOLDER/over");
    }
}

/// Programs, each with its output about the card in legacy mode.
const LOOKS: [(&str, &str); 6] = [
    ("devlink dev show", "pci/0000:08:00.0\npci/0000:08:00.1\n"),
    ("ip -d link show enp8s0f0np0 | grep -o parentdev.*", "parentdev 0000:08:00.0"),
    ("ethtool -i enp8s0f0np0 | grep driver", "driver: mlx5_core\n"),
    ("lspci -n -s 08:00.0", "08:00.0 0200: 15b3:101d\n"),
    ("rdma dev show", "rocep8s0f0: node_type ca"),
    ("cat /sys/class/net/enp8s0f0np0/phys_port_name", "p0\n"),
];

const PROGRAMS: [&str; 5] = ["devlink", "rdma", "ethtool", "lspci", "sh"];

#[test]
fn whenever_it_is_killed_nothing_is_left() {
    inside_or_return!("whenever_it_is_killed_nothing_is_left", &[]);
    let place = Place::new("killed");
    let rounds: u32 = std::env::var("ESW_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let started = place.path("started");
    // It ignores whatever can be ignored.
    let script = "trap '' TERM HUP INT QUIT; touch $FOLDER/started; while :; do sleep 1000; done";
    let began = Instant::now();
    let mut first = start(&mut place.exec(&["sh", "-c", script]), &started);
    let start_takes = began.elapsed();
    first.kill().unwrap();
    first.wait().unwrap();
    program_has_ended();
    place.nothing_is_left();
    let mut early = 0;
    for round in 0..rounds {
        let _ = fs::remove_file(&started);
        let mut child = place.exec(&["sh", "-c", script]).stdin(Stdio::null()).spawn().unwrap();
        // Every moment of the start, and some after it; a quarter of the signals can be caught.
        if round % 3 == 2 {
            until("the program's start", || started.exists().then_some(()).ok_or("it has not started".to_owned()));
        }
        thread::sleep(start_takes * (round * 37 % 100) / 100);
        let signal = if round % 4 == 3 { Signal::TERM } else { Signal::KILL };
        early += u32::from(!started.exists());
        kill(child.id(), signal);
        if signal == Signal::TERM {
            // What was started by then was told, and ignores it.
            thread::sleep(Duration::from_millis(20));
            let _ = child.kill();
        }
        child.wait().unwrap();
        program_has_ended();
        place.nothing_is_left();
    }
    eprintln!("{early} of {rounds} were killed before the program had started");
    assert!(rounds < 20 || (early > 0 && early < rounds), "{early} of {rounds}");
}

/// Waits until the shell has ended that is a lab's program; then its child is killed, which it has left.
fn program_has_ended() {
    let started = |with: &str| processes().into_iter().find(|(_, line)| line.starts_with(with));
    until("the program's end", || started("sh -c trap ").map_or(Ok(()), |(_, line)| Err(line)));
    if let Some((pid, _)) = started("sleep 1000 ") {
        kill(pid, Signal::KILL);
    }
}

#[test]
fn what_is_left_in_the_background_keeps_a_working_lab() {
    inside_or_return!("what_is_left_in_the_background_keeps_a_working_lab", &PROGRAMS);
    let place = Place::new("background");
    let script = format!("{BACKGROUND} exit 3");
    // It is not its output that keeps us: a pipe's other end is closed when the program has ended.
    let output = place.exec(&["sh", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let mut background = Background::of(&place);
    for (look, expected) in LOOKS {
        let said = background.run(look);
        assert!(said.contains(expected), "{look}: {said}");
    }
    let said = background.run(&format!(
        "echo 2 > /sys/bus/pci/devices/{PF}/sriov_numvfs; devlink dev eswitch set pci/{PF} mode switchdev
        ls /sys/class/net; rmmod mlx5_ib; ls /sys/class/infiniband; ip link show enp8s0f0npf0vf1"
    ));
    assert!(said.contains("enp8s0f0npf0vf0\n") && said.contains("enp8s0f0npf0vf1: <"), "{said}");
    background.end();
    place.nothing_is_left();
}

#[test]
fn of_a_front_that_is_killed_the_background_keeps_a_working_lab() {
    inside_or_return!("of_a_front_that_is_killed_the_background_keeps_a_working_lab", &PROGRAMS);
    let place = Place::new("front");
    // As another user the program gets no signal when its parent dies.
    for (n, user) in ["", "setpriv --reuid 65534 --clear-groups "].into_iter().enumerate() {
        let _ = fs::remove_dir_all(&place.folder.0);
        fs::create_dir_all(&place.folder.0).unwrap();
        let program = format!("sleep 1234{n} ");
        let is_there = || processes().iter().any(|(_, line)| line.starts_with(&program));
        let script = format!("{BACKGROUND} exec {user}{program}");
        let mut front = place.exec(&["sh", "-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        until("the program's start", || if is_there() { Ok(()) } else { Err("it has not started".to_owned()) });
        front.kill().unwrap();
        front.wait().unwrap();
        until("the program's end", || if is_there() { Err("it is there".to_owned()) } else { Ok(()) });
        let mut background = Background::of(&place);
        for (look, expected) in LOOKS {
            let said = background.run(look);
            assert!(said.contains(expected), "{look}: {said}");
        }
        background.end();
        place.nothing_is_left();
    }
}

#[test]
fn a_lab_outlives_its_daemon() {
    inside_or_return!("a_lab_outlives_its_daemon", &PROGRAMS);
    let mut place = Place::new("daemon");
    let script = format!("{BACKGROUND} exit 0");
    assert!(place.exec(&["sh", "-c", &script]).stdin(Stdio::null()).status().unwrap().success());
    let mut background = Background::of(&place);
    background.run("devlink monitor < /dev/null >> $FOLDER/monitor 2>&1 & echo $! > $FOLDER/monitor.pid");
    // It does not say when it listens: something is changed until it has heard of it.
    place.perform(&format!("echo 1 > /sys/bus/pci/devices/{PF}/sriov_numvfs"));
    background.will_say(
        &format!(
            "devlink dev eswitch set pci/{PF} mode switchdev; devlink dev eswitch set pci/{PF} mode legacy
            sleep 0.1; cat $FOLDER/monitor"
        ),
        "[port,new]",
    );
    for (signal, vfs) in [(Signal::TERM, 1), (Signal::KILL, 2), (Signal::TERM, 3)] {
        place.end_daemon(signal);
        // Without a daemon: what was seen last, and errors.
        let said = background.run("lspci -n -s 08:00.0; devlink dev show; echo $?");
        assert!(said.starts_with("08:00.0 0200: 15b3:101d\n") && said.ends_with("1\n"), "{said}");
        place.start_daemon();
        // What the lab sees is what the new daemon has, whatever changes at once.
        place.perform(&format!("echo 0 > /sys/bus/pci/devices/{PF}/sriov_numvfs"));
        place.perform(&format!("echo {vfs} > /sys/bus/pci/devices/{PF}/sriov_numvfs"));
        background.will_say(&format!("cat /sys/bus/pci/devices/{PF}/sriov_numvfs"), &format!("{vfs}\n"));
        for (look, expected) in LOOKS {
            let said = background.run(look);
            assert!(said.contains(expected), "{look}: {said}");
        }
        let last = format!("enp8s0f0v{}", vfs - 1);
        assert!(background.run(&format!("ethtool -i {last}")).starts_with("driver: mlx5_core\n"));
        assert_eq!(background.run("lspci -n -d :101e | wc -l"), format!("{vfs}\n"));
        assert_eq!(background.run("ip link show enp8s0f0np0 | grep -c 'vf [0-9]'"), format!("{vfs}\n"));
        let said = background.run(&format!(
            "devlink dev eswitch set pci/{PF} mode switchdev && ethtool -i enp8s0f0npf0vf0 | grep driver"
        ));
        assert_eq!(said, "driver: mlx5e_rep\n");
        assert_eq!(background.run("cat /sys/class/net/enp8s0f0npf0vf0/phys_port_name"), "pf0vf0\n");
        // Who listens hears the new daemon, once the lab is connected to it.
        background.will_say(
            &format!(
                "devlink dev eswitch set pci/{PF} mode legacy; echo > $FOLDER/monitor
                devlink dev eswitch set pci/{PF} mode switchdev; sleep 0.1; cat $FOLDER/monitor"
            ),
            &format!("[port,new] pci/{PF}/1"),
        );
        background.run(&format!("devlink dev eswitch set pci/{PF} mode legacy"));
    }
    background.run("kill $(cat $FOLDER/monitor.pid)");
    background.end();
    let connections = place.before.as_mut().unwrap();
    // It is another daemon.
    connections.0.insert(place.daemon);
    place.nothing_is_left();
}

#[test]
fn what_was_set_over_devlink_and_rdma_outlives_a_daemon_that_is_killed() {
    inside_or_return!("what_was_set_over_devlink_and_rdma_outlives_a_daemon_that_is_killed", &PROGRAMS);
    let mut place = Place::new("settings");
    // In each line: what sets something, what shows it, and what that prints.
    let settings = [
        (
            "devlink trap set pci/0000:08:00.0 trap dmac_filter action trap",
            "devlink trap show pci/0000:08:00.0 trap dmac_filter | grep -o 'action [a-z]*'",
            "action trap\n",
        ),
        (
            "devlink health set pci/0000:08:00.0 reporter fw_fatal grace_period 1234 auto_recover false",
            "devlink health show pci/0000:08:00.0 reporter fw_fatal | grep -o 'grace_period [0-9]* auto_recover [a-z]*'",
            "grace_period 1234 auto_recover false\n",
        ),
        (
            "devlink dev param set pci/0000:08:00.2 name io_eq_size value 128 cmode driverinit",
            "devlink dev param show pci/0000:08:00.2 name io_eq_size | grep -o 'value [0-9]*'",
            "value 128\n",
        ),
        (
            "devlink dev param set pci/0000:08:00.3 name enable_eth value false cmode driverinit; \
             devlink dev reload pci/0000:08:00.3",
            "devlink dev param show pci/0000:08:00.3 name enable_eth | grep -o 'value [tf].*'; ls /sys/class/net | grep -c v1$",
            "value false\n0\n",
        ),
        ("rdma dev set rocep8s0f0v0 name storage", "rdma dev | grep -o 'storage'", "storage\n"),
        (
            "printf 'of the storage' > /sys/class/infiniband/rocep8s0f0/node_desc",
            "cat /sys/class/infiniband/rocep8s0f0/node_desc",
            "of the storage\n",
        ),
        ("true", "rdma system show | cut -d' ' -f1,2", "netns exclusive\n"),
        (
            "rdma dev set rocep8s0f0v1 netns pod",
            "rdma dev | grep -c rocep8s0f0v1; nsenter --net=/run/netns/pod rdma dev | grep -o 'rocep8s0f0v1'",
            "0\nrocep8s0f0v1\n",
        ),
    ];
    let set: Vec<&str> = settings.iter().map(|(set, ..)| *set).collect();
    let set = format!("set -e; echo 2 > /sys/bus/pci/devices/{PF}/sriov_numvfs; {}", set.join("; "));
    let shown = |place: &Place| -> Vec<String> {
        let output = |look: &str| place.exec(&["sh", "-c", look]).output().unwrap();
        settings.iter().map(|(_, look, _)| String::from_utf8_lossy(&output(look).stdout).into_owned()).collect()
    };
    // With another namespace it is refused, and a lab's ends with it.
    assert!(place.exec(&["sh", "-c", "rdma system set netns exclusive"]).status().unwrap().success());
    assert!(Command::new("ip").args(["netns", "add", "pod"]).status().unwrap().success());
    let output = place.exec(&["sh", "-c", &set]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected: Vec<&str> = settings.iter().map(|(.., shown)| *shown).collect();
    assert_eq!(shown(&place), expected);
    place.end_daemon(Signal::KILL);
    place.start_daemon();
    assert_eq!(shown(&place), expected);
    // The card is taken down, and what was in a pod comes home.
    place.end_daemon(Signal::TERM);
    place.start_daemon();
    let (abroad, rest) = (settings.len() - 1, shown(&place));
    assert_eq!(rest[..abroad], expected[..abroad]);
    assert_eq!(rest[abroad], "1\n");
    // What is gone takes its settings along, also from what is stored.
    let reload = format!("devlink dev reload pci/{PF}");
    assert!(place.exec(&["sh", "-c", &reload]).status().unwrap().success());
    let after = shown(&place);
    place.end_daemon(Signal::KILL);
    place.start_daemon();
    assert_eq!(shown(&place), after);
    assert_eq!(after[0], "action drop\n");
    assert_eq!(after[1], expected[1], "a reporter of the device stays");
    assert_eq!(after[2], "value 1024\n");
    assert_eq!(after[3], "value true\n1\n");
    assert_eq!(after[4], "");
}

#[test]
fn one_slow_card_holds_up_no_program_that_uses_another() {
    inside_or_return!("one_slow_card_holds_up_no_program_that_uses_another", &PROGRAMS);
    let place = Place::new("slow");
    place.perform("delay fdb pf 0 for 10s");
    let said = place.path("said");
    let script = format!(
        "devlink dev eswitch set pci/{PF} mode switchdev & slow=$!
        while ! grep -q . /proc/$slow/cmdline; do sleep 0.01; done; sleep 1
        ethtool -i enp8s0f1np1 | grep driver; ethtool -i enp8s0f0np0 | grep driver
        ip -d link show enp8s0f1np1 | grep -o parentdev.*; cat /sys/class/net/enp8s0f1np1/phys_port_name
        lspci -n -s 08:00.1; rdma dev show | wc -l; modinfo mlx5_ib > /dev/null; lsmod > /dev/null 2>&1
        kill -0 $slow && echo it is still at it; wait $slow; echo $?; ethtool -i enp8s0f0np0 | grep driver"
    );
    let output = place.exec(&["sh", "-c", &script]).stdin(Stdio::null()).output().unwrap();
    fs::write(&said, &output.stdout).unwrap();
    let expected = "driver: mlx5_core\ndriver: mlx5_core\nparentdev 0000:08:00.1 \np1\n08:00.1 0200: 15b3:101d\n2\nit \
                    is still at it\n0\ndriver: mlx5_core\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
    place.nothing_is_left();
}

#[test]
fn no_reader_waits_for_a_pipe_that_only_the_supervisor_holds_open() {
    inside_or_return!("no_reader_waits_for_a_pipe_that_only_the_supervisor_holds_open", &[]);
    let place = Place::new("pipes");
    // Standard output, standard error, and another that the caller has open.
    let script = "said=$($ESW exec -- sh -c 'sleep 12345 < /dev/null > /dev/null 2>&1 & echo said' 2>&1); echo $said
        ($ESW exec -- sh -c 'sleep 12345 < /dev/null > /dev/null 2>&1 9>&- &') 9>&1 | cat; echo closed";
    let output = Command::new("sh").args(["-c", script]).env("ESW", ESW).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "said\nclosed\n", "{output:?}");
    let supervisors =
        |running: &BTreeSet<(u32, String)>| running.iter().filter(|(_, l)| l.ends_with("(esw-lab)")).count();
    let running = processes();
    assert_eq!(supervisors(&running), 2, "{running:?}");
    for (pid, line) in &running {
        if line.ends_with("(esw-lab)") {
            // A signal does not end a supervisor: it ends with the last program.
            kill(*pid, Signal::TERM);
            assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let named: Vec<_> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
            assert!(!named.iter().any(|to| to.to_string_lossy().starts_with("pipe:") && is_ours(to)), "{named:?}");
        }
    }
    assert_eq!(supervisors(&processes()), 2);
    for (pid, line) in processes() {
        if line.starts_with("sleep 12345 ") {
            kill(pid, Signal::KILL);
        }
    }
    place.nothing_is_left();
}

/// Whether this process has the same file open.
fn is_ours(file: &Path) -> bool {
    let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|to| to == file)
}

#[test]
fn without_a_supervisor_programs_get_errors_and_go_on() {
    inside_or_return!("without_a_supervisor_programs_get_errors_and_go_on", &["devlink"]);
    let place = Place::new("supervisor");
    let started = place.path("started");
    let script = "ip link show > /dev/null || exit 1
        touch $FOLDER/started; while [ ! -e $FOLDER/killed ]; do sleep 0.01; done
        ip link show && exit 2; devlink dev show && exit 3; ls /sys/class/net && exit 4; exit 7";
    let mut front = start(place.exec(&["sh", "-c", script]).stdout(Stdio::null()).stderr(Stdio::null()), &started);
    let running = processes();
    let supervisor = running.iter().find(|(_, line)| line.ends_with("(esw-lab)")).unwrap();
    kill(supervisor.0, Signal::KILL);
    until("the supervisor's end", || {
        let there = processes().iter().any(|(_, line)| line.ends_with("(esw-lab)"));
        if there { Err("it is there".to_owned()) } else { Ok(()) }
    });
    fs::write(place.path("killed"), "").unwrap();
    assert_eq!(front.wait().unwrap().code(), Some(7));
    place.nothing_is_left();
}

#[test]
fn the_program_starts_in_the_callers_folder() {
    inside_or_return!("the_program_starts_in_the_callers_folder", &[]);
    let place = Place::new("folder");
    let here = place.path("here");
    fs::create_dir_all(&here).unwrap();
    let script = "pwd -P; ls; touch made";
    let with = |command: &mut Command| {
        let output = command.current_dir(&here).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(with(&mut place.exec(&["sh", "-c", script])), format!("{}\n", here.display()));
    assert!(here.join("made").exists());
    // From another mount namespace than the daemon's, into whose root the kernel puts who joins it.
    let elsewhere = |before: &str, script: &str| {
        let mut command = Command::new("unshare");
        let text = format!("{before}; exec {ESW} exec -- sh -c '{script}'");
        command.args(["--mount", "sh", "-c", &text]).env("HERE", &here);
        command
    };
    assert_eq!(with(&mut elsewhere("true", script)), format!("{}\nmade\n", here.display()));
    // Where something else has that name in the daemon's, the folder is still the caller's.
    let mounted = "mount -t tmpfs none $HERE; cd $HERE; touch mine";
    assert_eq!(with(&mut elsewhere(mounted, "ls; touch made")), "mine\n");
    place.nothing_is_left();
}

/// Job control by a shell at a terminal.
const JOBS: &str = r#"
import os, pty, re, select, signal, sys, time
pid, fd = pty.fork()
if pid == 0:
    # What runs tests in the background ignores some of these, and what is ignored stays so.
    for key in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(key, signal.SIG_DFL)
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
heard = b""
def until(text):
    global heard
    end = time.monotonic() + 100
    while not re.search(text, heard):
        if time.monotonic() > end or not select.select([fd], [], [], 100)[0]:
            sys.exit(f"{text} was not said: {heard}")
        heard += os.read(fd, 4096)
    heard = heard[re.search(text, heard).end():]
def say(text):
    os.write(fd, text)
esw = os.environ["ESW"].encode()
say(b"PS1=REA''DY; stty rows 33 cols 77\n")
until(rb"READY")
say(esw + b" exec -- sh -c 'stty size; echo be''gun; cat; echo en''ded; exit 5'\n")
until(rb"33 77\r\n")
until(rb"begun\r\n")
say(b"one\n")
until(rb"one\r\none\r\n")
say(b"\x1a")
until(rb"(?s)Stopped.*READY")
say(b"echo sh''ell\n")
until(rb"shell\r\nREADY")
say(b"fg\n")
until(rb"exec")
say(b"two\n")
until(rb"two\r\ntwo\r\n")
say(b"\x04")
until(rb"ended\r\nREADY")
say(b"echo status $?\n")
until(rb"status 5\r\nREADY")
say(esw + b" exec -- sh -c 'echo be''gun; exec sleep 1000'\n")
until(rb"begun\r\n")
say(b"\x03")
until(rb"READY")
say(b"echo status $?\n")
until(rb"status 130\r\nREADY")
say(esw + b" exec -- bash --norc --noprofile -i\n")
until(rb"[$#] ")
say(b"PS1=IN''SIDE\n")
until(rb"INSIDE")
say(b"sh -c 'echo be''gun; exec sleep 1000'\n")
until(rb"begun\r\n")
say(b"\x1a")
until(rb"(?s)Stopped.*INSIDE")
shell = os.tcgetpgrp(fd)
say(b"fg\n")
until(rb"sleep 1000'")
# A shell says what it continues before it gives it the terminal.
while os.tcgetpgrp(fd) == shell:
    time.sleep(0.01)
say(b"\x03")
until(rb"INSIDE")
say(b"exit 6\n")
until(rb"READY")
say(b"echo status $?\n")
until(rb"status 6\r\nREADY")
say(b"exit\n")
os.waitpid(pid, 0)
"#;

#[test]
fn a_shell_stops_it_and_goes_on_with_it() {
    inside_or_return!("a_shell_stops_it_and_goes_on_with_it", &["python3", "bash"]);
    let place = Place::new("jobs");
    let done = Command::new("python3").args(["-c", JOBS]).env("ESW", ESW).env("TERM", "dumb").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    place.nothing_is_left();
}

#[test]
fn what_ends_the_front_in_good_order_is_passed_on() {
    inside_or_return!("what_ends_the_front_in_good_order_is_passed_on", &[]);
    let place = Place::new("passed");
    let script = "trap 'echo told; exit 9' TERM; touch $FOLDER/started; while :; do sleep 0.01; done";
    let mut front = start(place.exec(&["sh", "-c", script]).stdout(Stdio::piped()), &place.path("started"));
    kill(front.id(), Signal::TERM);
    let mut said = String::new();
    front.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((front.wait().unwrap().code(), said.as_str()), (Some(9), "told\n"));
    // Who is started with SIGTERM ignored ignores it, as without a lab.
    let output = place.exec(&["sh", "-c", "kill -TERM $$; echo here"]).arg0(ESW).output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{output:?}");
    std::io::stderr().flush().unwrap();
    place.nothing_is_left();
}
