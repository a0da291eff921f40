//! What a lab costs: programs that look at a card and programs that do not, compared with the same outside of a lab.
//!
//! Everything runs in namespaces of its own. There a daemon has a card of real netdevs, and two processes run commands and
//! take their times: one in a lab, one outside. So a time includes neither making the lab nor a shell. The output of a
//! command is discarded.

pub mod filters;

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::workspace::{build_esw, cargo, shell};

use super::{Measurement, OrderedRatio, Part, Quantity, Row, Target, child, median};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "lab: tools", run: tools },
    Measurement { name: "lab: programs that do not look at the card", run: programs },
    Measurement { name: "lab: /sys", run: sysfs },
    Measurement { name: "lab: filters", run: filters },
];

const PORTS: usize = 1_000;
const FILTERS: usize = 100_000;
const ROUNDS: usize = 41;

/// A loop that starts processes and reads files, with as many system calls as a script has.
const SCRIPT: &str =
    "i=0; while [ $i -lt 150 ]; do /bin/true; read x < /proc/self/stat; cat /etc/passwd; i=$((i+1)); done";
/// A loop that only computes.
const COMPUTE: &str = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
/// Only system calls that do nothing.
const CALLS: &str = "dd if=/dev/zero of=/dev/null bs=1 count=200000";

/// The times of a command in the lab, and of what it is compared with, in milliseconds.
#[derive(Serialize, Deserialize)]
struct Times {
    what: String,
    with: String,
    most: Option<f64>,
    pairs: Vec<(f64, f64)>,
}

fn rows(part: Part, n: usize) -> Result<Vec<Row>> {
    let esw = format!("{ESW}={}", build_esw()?.display());
    let alone = ["env", &esw, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let output = match child(&alone, part, n) {
        Ok(output) => output,
        Err(error) => return Ok(vec![Row::unavailable("a lab".to_owned(), format!("{error:#}"))]),
    };
    let measured: Vec<Times> = serde_json::from_slice(&output.stdout).context("reading what the child measured")?;
    Ok(measured.into_iter().map(row).collect())
}

fn row(times: Times) -> Row {
    let middle = |of: fn(&(f64, f64)) -> f64| Quantity {
        value: median(times.pairs.iter().map(|pair| OrderedRatio(of(pair)))).0,
        unit: "ms",
    };
    let ratio = median(times.pairs.iter().map(|(ours, theirs)| OrderedRatio(ours / theirs))).0;
    let (ours, theirs) = (middle(|pair| pair.0), middle(|pair| pair.1));
    let row = Row::compared(times.what, ours, &times.with, theirs, ratio);
    match times.most {
        Some(most) => row.target(Target::RatioAtMost(most)),
        None => row,
    }
}

fn tools() -> Result<Vec<Row>> {
    rows(Part::LabTools, PORTS)
}

fn programs() -> Result<Vec<Row>> {
    rows(Part::LabPrograms, 1)
}

fn filters() -> Result<Vec<Row>> {
    rows(Part::LabFilters, FILTERS)
}

/// The example of the crate `lab` measures; it has what a lab's `/sys` is compared with.
fn sysfs() -> Result<Vec<Row>> {
    let arguments = ["run", "--release", "--quiet", "-p", "lab", "--example", "sysfs_speed", "--", "16", "--json"];
    let output = cargo().args(arguments).output()?;
    ensure!(output.status.success(), "sysfs_speed: {}", String::from_utf8_lossy(&output.stderr));
    match serde_json::from_slice::<Vec<Times>>(&output.stdout) {
        Ok(measured) => Ok(measured.into_iter().map(row).collect()),
        Err(_) => {
            let why = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Ok(vec![Row::unavailable("/sys of a lab".to_owned(), why)])
        }
    }
}

/// Measures the tools, in the namespaces this process was given.
///
/// # Errors
/// There is no card, no lab, or a command fails.
pub fn measure_tools(ports: usize) -> Result<String> {
    let place = Place::new(ports)?;
    shell(&format!(
        "ip netns add plain && seq {} | sed 's/.*/link add a& type veth peer name b&/' | ip -n plain -batch -",
        ports / 2
    ))?;
    let mut inside = place.in_lab()?;
    let mut plain = Runner::start(Command::new("ip").args(["netns", "exec", "plain"]).arg(this()?))?;
    let mut here = Runner::start(&mut Command::new(this()?))?;
    let mut measured = Vec::new();
    let most = Some(1.5);
    measured.push(Times {
        what: format!("devlink port show in a lab, {ports} VFs and so {} ports", 2 * ports + 1),
        with: format!("ip link show outside, {ports} links"),
        most,
        pairs: turns(15, &mut inside, &["devlink", "port", "show"], &mut plain, &["ip", "link", "show"])?,
    });
    let links = std::fs::read_dir("/sys/class/net")?.count();
    measured.push(Times {
        what: format!("ip link show in a lab, {links} links, nearly all of them a card's"),
        with: "the same outside".to_owned(),
        most: None,
        pairs: turns(15, &mut inside, &["ip", "link", "show"], &mut here, &["ip", "link", "show"])?,
    });
    Ok(serde_json::to_string(&measured)?)
}

/// Measures programs that do not look at a card, in the namespaces this process was given.
///
/// # Errors
/// There is no card, no lab, or a command fails.
pub fn measure_programs(vfs: usize) -> Result<String> {
    let place = Place::new(vfs)?;
    let mut inside = place.in_lab()?;
    let mut here = Runner::start(&mut Command::new(this()?))?;
    let mut measured = Vec::new();
    for (what, command, most) in [
        ("a shell that starts 300 processes and reads files, in a lab", SCRIPT, Some(1.02)),
        ("a shell that counts, in a lab", COMPUTE, Some(1.02)),
        ("400,000 system calls that do nothing, in a lab", CALLS, None),
    ] {
        let command = ["sh", "-c", command];
        measured.push(Times {
            what: what.to_owned(),
            with: "the same outside".to_owned(),
            most,
            pairs: turns(ROUNDS, &mut inside, &command, &mut here, &command)?,
        });
    }
    Ok(serde_json::to_string(&measured)?)
}

/// Runs the two commands in turns; the first run of each does not count. Returns their times in milliseconds.
fn turns(
    rounds: usize,
    ours: &mut Runner,
    our_command: &[&str],
    theirs: &mut Runner,
    their_command: &[&str],
) -> Result<Vec<(f64, f64)>> {
    ours.run(our_command)?;
    theirs.run(their_command)?;
    let mut pairs = Vec::new();
    for round in 0..rounds {
        pairs.push(if round % 2 == 0 {
            let ours = ours.run(our_command)?;
            (ours, theirs.run(their_command)?)
        } else {
            let theirs = theirs.run(their_command)?;
            (ours.run(our_command)?, theirs)
        });
    }
    Ok(pairs)
}

fn this() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

/// Namespaces with a card that is up.
struct Place {
    esw: PathBuf,
    daemon: Child,
}

const SOCKET: &str = "/run/bench/card.sock";
/// The environment variable with the path of the binary `esw`.
const ESW: &str = "BENCH_ESW";

impl Place {
    fn new(vfs: usize) -> Result<Self> {
        shell(
            "mount -t tmpfs tmpfs /run && mkdir /run/netns /run/bench && mount -t sysfs sysfs /sys && ip link set lo up",
        )?;
        let config = format!(
            "state_dir = \"/run/bench\"\n[cards.bench]\nkind = \"linux\"\nsocket = \"{SOCKET}\"\n[cards.bench.card]\n\
             address = \"0000:0c:00.0\"\ntotal_vfs = {vfs}\nvfs = {vfs}\nmode = \"switchdev\"\n"
        );
        std::fs::write("/run/bench/config.toml", config)?;
        let esw = PathBuf::from(std::env::var_os(ESW).context("the environment has no BENCH_ESW")?);
        let daemon = Command::new(&esw)
            .args(["up", "--daemon", "--config", "/run/bench/config.toml"])
            .stdout(Stdio::null())
            .spawn();
        let daemon = daemon.with_context(|| esw.display().to_string())?;
        let place = Self { esw, daemon };
        let until = Instant::now() + Duration::from_secs(120);
        while !Path::new(SOCKET).exists() {
            ensure!(Instant::now() < until, "the card does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        // A request is answered as soon as the card is up.
        let mut client = devlink::Client::connect(Path::new(SOCKET))?;
        client.dump(devlink::DEVLINK, devlink::numbers::command::GET, |_| {})?;
        Ok(place)
    }

    fn in_lab(&self) -> Result<Runner> {
        Runner::start(Command::new(&self.esw).args(["exec", "--socket", SOCKET, "--"]).arg(this()?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new(&self.esw).args(["down", "--socket", SOCKET]).output();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A process that runs commands, in a lab or outside: see [`serve`].
struct Runner {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Runner {
    /// Starts it. `command` must run this program.
    fn start(command: &mut Command) -> Result<Self> {
        command.args(["bench-child", Part::Commands.name(), "0"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (to, from) = (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Runs a command there; returns its time in milliseconds.
    fn run(&mut self, command: &[&str]) -> Result<f64> {
        writeln!(self.to, "{}", serde_json::to_string(command)?)?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("{command:?}: `{}`", line.trim()))
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the commands on standard input, one line of JSON each, and prints the milliseconds that each took.
///
/// # Errors
/// One fails.
pub fn serve() -> Result<()> {
    for line in std::io::stdin().lines() {
        let command: Vec<String> = serde_json::from_str(&line?)?;
        let Some((program, arguments)) = command.split_first() else { bail!("no command") };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = Instant::now();
        let status = command.status()?;
        let took = start.elapsed();
        ensure!(status.success(), "{command:?}: {status}");
        println!("{}", took.as_secs_f64() * 1e3);
    }
    Ok(())
}
