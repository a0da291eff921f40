//! The times of a card of real netdevs, compared with the same by `ip -batch` and `tc -batch`.
//!
//! Ours are the engine's commands, from the call to its return: `sriov_numvfs` from 0 to n and back, and
//! the mode changes between. The baselines are what one would write in a script, with unmodified
//! iproute2, its batch files written beforehand:
//!
//! * `iproute2`: a port off its bridge, a pair, both ends' qdiscs and filters, one after the other;
//! * `iproute2, tuned`: all of a kind together, what is dear while devices are down, and one queue a netdev;
//! * `iproute2, our requests`: what a card without CAP_BPF sends, in its order, with four bridges behind one.
//!
//! None of them sets alternative names or carrier, which ours does. Everything runs in namespaces of its own, in a process of
//! its own; all four take turns there, and each round starts with another one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use card_linux::{LinuxCard, Place};
use eswitch::{CardConfig, Engine, Mode};
use lockdep::{Domain, Locked, Threads, Unlocked, enter};

use crate::workspace::shell;

use super::{Measurement, OrderedRatio, Part, Quantity, Row, Target, child, median};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "linux: VFs and modes", run: vfs_and_modes },
    Measurement { name: "linux: more VFs", run: more_vfs },
];

const VFS: usize = 1_000;
const ROUNDS: usize = 7;
/// The numbers of VFs of the rows that show how a mode change grows, after that which they are compared with.
const MORE_VFS: [usize; 2] = [4_000, 10_000];
const ROUNDS_OF_MORE: usize = 3;
/// The pause after each operation. The kernel does deferred work in it, as between the commands of a person.
const PAUSE: Duration = Duration::from_millis(150);
const OUTSIDE: &str = "bench-outside";
const CARD: &str = "bench-card";

/// The operations that are timed.
const OPERATIONS: [&str; 4] = ["0 to n VFs", "legacy to switchdev", "switchdev to legacy", "n to 0 VFs"];
const OURS: &str = "ours";
/// The baseline of the target.
const PLAIN: &str = "iproute2";

/// The times of each operation, in milliseconds, by who did it.
type Times = BTreeMap<String, Vec<[f64; 4]>>;

fn vfs_and_modes() -> Result<Vec<Row>> {
    let alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let output = match child(&alone, Part::LinuxCard, VFS) {
        Ok(output) => output,
        Err(error) => {
            let what = format!("a card of {VFS} VFs on Linux");
            return Ok(vec![Row::unavailable(what, format!("{error:#}"))]);
        }
    };
    let times: Times = serde_json::from_slice(&output.stdout).context("reading what the child measured")?;
    let ours = times.get(OURS).context("ours were not measured")?;
    let mut rows = Vec::new();
    for (n, operation) in OPERATIONS.iter().enumerate() {
        for (who, theirs) in times.iter().filter(|(who, _)| *who != OURS) {
            let middle =
                |times: &[[f64; 4]]| Quantity { value: median(times.iter().map(|t| OrderedRatio(t[n]))).0, unit: "ms" };
            let ratio = median(ours.iter().zip(theirs).map(|(o, t)| OrderedRatio(o[n] / t[n]))).0;
            let what = format!("{operation}, {VFS} VFs");
            let row = Row::compared(what, middle(ours), who, middle(theirs), ratio);
            rows.push(if who == PLAIN { row.target(Target::RatioAtMost(1.0)) } else { row });
        }
    }
    Ok(rows)
}

/// The times of one number of VFs, in microseconds for each VF.
#[derive(serde::Serialize, serde::Deserialize)]
struct OfMany {
    /// From legacy to switchdev mode.
    switchdev: f64,
    /// Nothing but as many pairs, by `ip -batch`.
    pairs: f64,
}

/// How a mode change grows with the number of VFs, and how the making of netdevs alone does.
fn more_vfs() -> Result<Vec<Row>> {
    let alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let measure = |vfs| -> Result<OfMany> {
        let output = child(&alone, Part::ManyVfs, vfs)?;
        serde_json::from_slice(&output.stdout).context("reading what the child measured")
    };
    let us = |value| Quantity { value, unit: "us" };
    let few = match measure(VFS) {
        Ok(few) => few,
        Err(error) => return Ok(vec![Row::unavailable("more VFs on Linux".to_owned(), format!("{error:#}"))]),
    };
    let floor = |n: usize, of: &OfMany| {
        let what = format!("legacy to switchdev, each of {n} VFs");
        let ratio = of.switchdev / of.pairs;
        Row::compared(what, us(of.switchdev), "a pair alone, ip -batch", us(of.pairs), ratio)
    };
    let mut rows = vec![floor(VFS, &few)];
    for n in MORE_VFS {
        let many = measure(n)?;
        let with = format!("each of {VFS}");
        let row = |what: &str, many, few| {
            Row::compared(format!("{what}, each of {n} VFs"), us(many), &with, us(few), many / few)
        };
        rows.push(row("legacy to switchdev", many.switchdev, few.switchdev).target(Target::RatioAtMost(1.3)));
        rows.push(floor(n, &many));
        rows.push(row("a pair alone, ip -batch", many.pairs, few.pairs));
    }
    Ok(rows)
}

/// Measures one number of VFs, in the namespaces this process was given.
///
/// # Errors
/// The card cannot be made, or `ip` fails.
pub fn measure_many(vfs: usize) -> Result<String> {
    shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t sysfs sysfs /sys && ip link set lo up")?;
    let pairs = Script { vfs, style: Style::Tuned, bridges: 1 }.pair("r", 9, "rep");
    std::fs::write("/run/pairs", pairs)?;
    let config = CardConfig { total_vfs: u16::try_from(vfs)?, ..CardConfig::default() };
    let domain = Domain::unchecked();
    let (mut switchdev, mut alone) = (Vec::new(), Vec::new());
    enter(&domain, "main", |cx| -> Result<()> {
        let card = Arc::new(LinuxCard::new(&Place::prepare()?, config.clone(), &domain)?);
        let engine = Engine::start(cx, config, card, Arc::new(Threads(Arc::clone(&domain))))?;
        let pf = engine.addresses()[0];
        engine.set_num_vfs(cx, pf, u32::try_from(vfs)?)?;
        for _ in 0..ROUNDS_OF_MORE {
            switchdev.push(timed(|| Ok(engine.set_mode(cx, pf, Mode::Switchdev)?))?);
            engine.set_mode(cx, pf, Mode::Legacy)?;
            // The VFs stay: what the kernel walks for each netdev is as long for both.
            shell(&format!("ip netns add {OUTSIDE} && ip netns add {CARD}"))?;
            alone.push(timed(|| Step::Ip(PathBuf::from("/run/pairs")).run())?);
            shell(&format!("ip netns del {OUTSIDE} && ip netns del {CARD}"))?;
        }
        engine.shutdown(cx);
        Ok(())
    })?;
    let of_each = |times: Vec<f64>| median(times.into_iter().map(OrderedRatio)).0 * 1e3 / vfs as f64;
    Ok(serde_json::to_string(&OfMany { switchdev: of_each(switchdev), pairs: of_each(alone) })?)
}

/// Measures, in the namespaces this process was given.
///
/// # Errors
/// The card cannot be made, or a command of a baseline fails.
pub fn measure(vfs: usize) -> Result<String> {
    shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t sysfs sysfs /sys && ip link set lo up")?;
    let baselines = [
        Baseline::new("iproute2", vfs, Style::Plain)?,
        Baseline::new("iproute2, tuned", vfs, Style::Tuned)?,
        Baseline::new("iproute2, our requests", vfs, Style::Ours)?,
    ];
    let config = CardConfig { total_vfs: u16::try_from(vfs)?, ..CardConfig::default() };
    let domain = Domain::unchecked();
    let times = enter(&domain, "main", |cx| -> Result<Times> {
        let card = Arc::new(LinuxCard::new(&Place::prepare()?, config.clone(), &domain)?);
        let engine = Engine::start(cx, config, card, Arc::new(Threads(Arc::clone(&domain))))?;
        let mut times = Times::new();
        // The first round does not count.
        for round in 0..=ROUNDS {
            for turn in 0..=baselines.len() {
                let (who, took) = match (round + turn) % (baselines.len() + 1) {
                    0 => (OURS, ours(cx, &engine, vfs)?),
                    n => (baselines[n - 1].name, baselines[n - 1].run()?),
                };
                if round > 0 {
                    times.entry(who.to_owned()).or_default().push(took);
                }
            }
        }
        engine.shutdown(cx);
        Ok(times)
    })?;
    Ok(serde_json::to_string(&times)?)
}

fn timed(f: impl FnOnce() -> Result<()>) -> Result<f64> {
    std::thread::sleep(PAUSE);
    let start = Instant::now();
    f()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn ours(cx: &mut Locked<'_, Unlocked>, engine: &Engine, vfs: usize) -> Result<[f64; 4]> {
    let pf = engine.addresses()[0];
    let n = u32::try_from(vfs)?;
    Ok([
        timed(|| Ok(engine.set_num_vfs(cx, pf, n)?))?,
        timed(|| Ok(engine.set_mode(cx, pf, Mode::Switchdev)?))?,
        timed(|| Ok(engine.set_mode(cx, pf, Mode::Legacy)?))?,
        timed(|| Ok(engine.set_num_vfs(cx, pf, 0)?))?,
    ])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Tuned,
    Ours,
}

/// One way to do it with iproute2: the batch files, and what runs them.
struct Baseline {
    name: &'static str,
    dir: PathBuf,
    bridges: usize,
    operations: [Vec<Step>; 4],
}

/// A batch file of `ip` or `tc`, both run inside the card.
enum Step {
    Ip(PathBuf),
    Tc(PathBuf),
}

impl Baseline {
    fn new(name: &'static str, vfs: usize, style: Style) -> Result<Self> {
        let dir = PathBuf::from(format!("/run/{}", name.replace([' ', ','], "-")));
        std::fs::create_dir(&dir)?;
        let mut baseline = Self {
            name,
            dir,
            bridges: if style == Style::Ours { vfs.div_ceil(256) } else { 1 },
            operations: Default::default(),
        };
        let script = Script { vfs, style, bridges: baseline.bridges };
        baseline.operations = [
            baseline.write("up", &script.up())?,
            baseline.write("switchdev", &script.to_switchdev())?,
            baseline.write("legacy", &script.to_legacy())?,
            baseline.write("down", &[("ip", "link del group 7\n".to_owned())])?,
        ];
        Ok(baseline)
    }

    fn write(&self, operation: &str, batches: &[(&str, String)]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        for (n, (tool, lines)) in batches.iter().enumerate() {
            let path = self.dir.join(format!("{operation}-{n}"));
            std::fs::write(&path, lines)?;
            steps.push(if *tool == "ip" { Step::Ip(path) } else { Step::Tc(path) });
        }
        Ok(steps)
    }

    fn run(&self) -> Result<[f64; 4]> {
        shell(&format!("ip netns add {OUTSIDE} && ip netns add {CARD}"))?;
        for n in 0..self.bridges {
            shell(&format!(
                "ip -n {CARD} link add br{n} type bridge mcast_snooping 0 && ip -n {CARD} link set br{n} up"
            ))?;
            if n > 0 {
                shell(&format!(
                    "ip -n {CARD} link add t{n} master br0 type veth peer name b{n} &&
                     ip -n {CARD} link set b{n} master br{n} up && ip -n {CARD} link set t{n} up"
                ))?;
            }
        }
        let mut took = [0.0; 4];
        for (operation, took) in self.operations.iter().zip(&mut took) {
            *took = timed(|| operation.iter().try_for_each(Step::run))?;
        }
        shell(&format!("ip netns del {OUTSIDE} && ip netns del {CARD}"))?;
        Ok(took)
    }
}

impl Step {
    fn run(&self) -> Result<()> {
        let mut command = Command::new("ip");
        let path = match self {
            Self::Ip(path) => {
                command.args(["-n", CARD, "-batch"]);
                path
            }
            Self::Tc(path) => {
                command.args(["netns", "exec", CARD, "tc", "-batch"]);
                path
            }
        };
        let output = command.arg(path).output().context("starting ip")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", path.display());
        Ok(())
    }
}

/// Writes the batches.
struct Script {
    vfs: usize,
    style: Style,
    bridges: usize,
}

impl Script {
    fn lines(&self, mut line: impl FnMut(&mut String, usize)) -> String {
        let mut text = String::new();
        (0..self.vfs).for_each(|n| line(&mut text, n));
        text
    }

    fn queues(&self) -> &'static str {
        match self.style {
            Style::Plain => "",
            Style::Tuned | Style::Ours => "numtxqueues 1 numrxqueues 1",
        }
    }

    fn pair(&self, near: &str, group: u32, far: &str) -> String {
        let queues = self.queues();
        self.lines(|text, n| {
            let _ = writeln!(
                text,
                "link add {near}{n} group {group} {queues} type veth peer name {far}{n} netns {OUTSIDE} {queues}"
            );
        })
    }

    fn qdiscs(&self, near: &str) -> String {
        self.lines(|text, n| {
            let _ = writeln!(text, "qdisc add dev {near}{n} ingress");
        })
    }

    fn filter(text: &mut String, n: usize, from: &str, to: &str) {
        let _ = writeln!(
            text,
            "filter add dev {from}{n} ingress protocol all prio 1 u32 match u32 0 0 action mirred egress redirect dev {to}{n}"
        );
    }

    fn filters(&self) -> String {
        self.lines(|text, n| {
            Self::filter(text, n, "p", "r");
            Self::filter(text, n, "r", "p");
        })
    }

    fn each(&self, near: &str, what: &str) -> String {
        self.lines(|text, n| {
            let _ = writeln!(text, "link set {near}{n} {what}");
        })
    }

    fn enslaved(&self, up: &str) -> String {
        self.lines(|text, n| {
            let _ = writeln!(text, "link set p{n} master br{} {up}", n / 256 % self.bridges);
        })
    }

    fn bridges(&self, what: &str) -> String {
        (0..self.bridges).map(|n| format!("link set br{n} {what}\n")).collect()
    }

    fn up(&self) -> Vec<(&'static str, String)> {
        let pairs = ("ip", self.pair("p", 7, "v"));
        let enslaved = ("ip", self.enslaved("up"));
        match self.style {
            Style::Plain | Style::Tuned => vec![pairs, enslaved],
            Style::Ours => vec![pairs, ("tc", self.qdiscs("p")), enslaved],
        }
    }

    fn to_switchdev(&self) -> Vec<(&'static str, String)> {
        let release = ("ip", self.each("p", "nomaster"));
        let pairs = ("ip", self.pair("r", 9, "rep"));
        let up = ("ip", self.each("r", "up"));
        match self.style {
            Style::Plain => {
                let ties = self.lines(|text, n| {
                    for (from, to) in [("p", "r"), ("r", "p")] {
                        let _ = writeln!(text, "qdisc add dev {from}{n} clsact");
                        Self::filter(text, n, from, to);
                    }
                });
                vec![release, pairs, up, ("tc", ties)]
            }
            Style::Tuned => {
                let qdiscs = self.qdiscs("p") + &self.qdiscs("r");
                vec![release, pairs, ("tc", qdiscs), ("tc", self.filters()), up]
            }
            Style::Ours => vec![
                ("ip", self.bridges("down")),
                pairs,
                ("tc", self.qdiscs("r")),
                ("tc", self.filters()),
                ("ip", "link set group 9 up\n".to_owned()),
            ],
        }
    }

    fn to_legacy(&self) -> Vec<(&'static str, String)> {
        let delete = "link del group 9\n".to_owned();
        match self.style {
            Style::Plain => {
                let untie = self.lines(|text, n| {
                    let _ = writeln!(text, "qdisc del dev p{n} clsact");
                });
                vec![("tc", untie), ("ip", delete + &self.enslaved(""))]
            }
            Style::Tuned => vec![("tc", self.untie()), ("ip", delete + &self.enslaved(""))],
            Style::Ours => vec![("tc", self.untie()), ("ip", delete + &self.bridges("up"))],
        }
    }

    fn untie(&self) -> String {
        self.lines(|text, n| {
            let _ = writeln!(text, "filter del dev p{n} ingress prio 1");
        })
    }
}
