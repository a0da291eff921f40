//! What flow rules cost: traffic between two VFs by rules, compared with the same over Linux bridges, and the program and
//! its maps by themselves.
//!
//! The traffic is that of a card of real netdevs, whose VFs are in network namespaces of their own, sent and received by
//! sockets of one process: their cost is in every figure, and the same in what is compared. Three ways take turns:
//!
//! * a rule for each direction, by which frames go from VF to VF;
//! * the same VFs without the rules: what misses goes to the representors, which are on a Linux bridge;
//! * two plain veth pairs on a Linux bridge, without a card.
//!
//! The masks, and a million rules, are measured by running the program on one frame again and again: without sockets around
//! it, every nanosecond shows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use card_linux::{LinuxCard, Place};
use datapath_bpf::{Change, Options, Pipeline, PortConfig, Role};
use eswitch::datapath::port;
use eswitch::{CardConfig, Engine, FlowChange, FlowDone, Mode, PfIndex, Vport};
use flow::{Action, Block, Field, Match, Port, Protocol, Rule, RuleId, make_checksums_right};
use lockdep::{Domain, Locked, Threads, Unlocked, enter};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::workspace::shell;

use super::{Measurement, OrderedRatio, Part, Quantity, Row, Target, child, median};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "dataplane: traffic", run: traffic },
    Measurement { name: "dataplane: masks and rules", run: masks_and_rules },
    Measurement { name: "dataplane: rules and counters", run: rules_and_counters },
];

const ROUNDS: usize = 7;
/// How long each turn sends.
const TURN: Duration = Duration::from_millis(400);
const ROUND_TRIPS: u32 = 4_000;
/// The bytes of a datagram in an Ethernet frame of 64 bytes with its checksum.
const PAYLOAD: usize = 18;

/// What was measured of one way in one turn, by [`FIGURES`].
type Figures = [f64; 4];
/// What is measured of each way, the unit, and the targets against the representors and against veths.
const FIGURES: [(&str, &str, [Option<Target>; 2]); 4] = [
    (
        "datagrams in frames of 64 bytes, received",
        "/s",
        [Some(Target::RatioAtLeast(3.0)), Some(Target::RatioAtLeast(1.5))],
    ),
    ("the same, for each second of CPU", "/s", [Some(Target::RatioAtLeast(3.0)), Some(Target::RatioAtLeast(1.5))]),
    ("TCP, one stream", "Gbit/s", [None, Some(Target::RatioAtLeast(1.0))]),
    ("a round trip of a datagram", "us", [None, Some(Target::RatioAtMost(0.9))]),
];

const RULES: &str = "by rules";
const REPRESENTORS: &str = "representors on a bridge, no rules";
const VETHS: &str = "two veths on a bridge";

fn traffic() -> Result<Vec<Row>> {
    let alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let output = match child(&alone, Part::DataplaneTraffic, ROUNDS) {
        Ok(output) => output,
        Err(error) => {
            return Ok(vec![Row::unavailable("VF to VF by flow rules".to_owned(), format!("{error:#}"))]);
        }
    };
    let figures: BTreeMap<String, Vec<Figures>> =
        serde_json::from_slice(&output.stdout).context("reading what the child measured")?;
    let of = |way: &str| figures.get(way).with_context(|| format!("{way}: not measured"));
    let ours = of(RULES)?;
    let mut rows = Vec::new();
    for (n, (what, unit, targets)) in FIGURES.into_iter().enumerate() {
        for (way, target) in [REPRESENTORS, VETHS].into_iter().zip(targets) {
            let theirs = of(way)?;
            let middle = |all: &[Figures]| Quantity { value: middle(all.iter().map(|figures| figures[n])), unit };
            let ratio = self::middle(ours.iter().zip(theirs).map(|(ours, theirs)| ours[n] / theirs[n]));
            let row =
                Row::compared(format!("VF to VF by flow rules: {what}"), middle(ours), way, middle(theirs), ratio);
            rows.push(target.into_iter().fold(row, Row::target));
        }
    }
    Ok(rows)
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    median(values.map(OrderedRatio)).0
}

/// Measures the traffic, in the namespaces this process was given.
///
/// # Errors
/// The card or the bridges cannot be made, or no frames pass.
pub fn measure(rounds: usize) -> Result<String> {
    shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && mount -t sysfs sysfs /sys && ip link set lo up")?;
    let config = CardConfig { total_vfs: 2, ..CardConfig::default() };
    let domain = Domain::unchecked();
    let figures = enter(&domain, "main", |cx| -> Result<_> {
        let card = Arc::new(LinuxCard::new(&Place::prepare()?, config.clone(), &domain)?);
        let engine = Engine::start(cx, config, card, Arc::new(Threads(Arc::clone(&domain))))?;
        let pf = engine.addresses()[0];
        engine.set_num_vfs(cx, pf, 2)?;
        engine.set_mode(cx, pf, Mode::Switchdev)?;
        let figures = measure_card(cx, &engine, rounds);
        engine.shutdown(cx);
        figures
    })?;
    Ok(serde_json::to_string(&figures)?)
}

/// The namespaces of the VFs, and those of the plain pairs.
const OF_VFS: Way = Way { from: "a", to: "b", addresses: ["10.9.0.1", "10.9.0.2"] };
const OF_VETHS: Way = Way { from: "c", to: "d", addresses: ["10.8.0.1", "10.8.0.2"] };

fn measure_card(
    cx: &mut Locked<'_, Unlocked>,
    engine: &Engine,
    rounds: usize,
) -> Result<BTreeMap<&'static str, Vec<Figures>>> {
    shell(
        "for bridge in hb vb; do ip link add $bridge type bridge mcast_snooping 0 && ip link set $bridge up; done
         for ns in a b c d; do ip netns add $ns; done
         for n in 0 1; do ip link set enp8s0f0npf0vf$n master hb up; done
         ip link set enp8s0f0v0 netns a name eth0 && ip link set enp8s0f0v1 netns b name eth0
         ip link add vc master vb up type veth peer name eth0 netns c
         ip link add vd master vb up type veth peer name eth0 netns d
         ip -n a addr add 10.9.0.1/24 dev eth0 && ip -n b addr add 10.9.0.2/24 dev eth0
         ip -n c addr add 10.8.0.1/24 dev eth0 && ip -n d addr add 10.8.0.2/24 dev eth0
         for ns in a b c d; do ip -n $ns link set eth0 up; done
         for ns in a b c d; do for n in $(seq 500); do
             ip -n $ns link show eth0 | grep -q LOWER_UP && break; sleep 0.01
         done; done; sleep 0.5",
    )?;
    let mut figures: BTreeMap<&'static str, Vec<Figures>> = BTreeMap::new();
    // The first round does not count.
    for round in 0..=rounds {
        for turn in 0..3 {
            let (name, measured) = match (round + turn) % 3 {
                0 => {
                    let rules = add_rules(cx, engine)?;
                    let before = counted(cx, engine, &rules);
                    let measured = OF_VFS.measure()?;
                    ensure!(counted(cx, engine, &rules) > before, "no frame has matched a rule");
                    for done in engine.change_flows(cx, rules.into_iter().map(FlowChange::Remove).collect()) {
                        done?;
                    }
                    (RULES, measured)
                }
                1 => (REPRESENTORS, OF_VFS.measure()?),
                _ => (VETHS, OF_VETHS.measure()?),
            };
            if round > 0 {
                figures.entry(name).or_default().push(measured);
            }
        }
    }
    Ok(figures)
}

/// IP from one VF to the other, in both directions. Neighbours are found over the representors.
fn add_rules(cx: &mut Locked<'_, Unlocked>, engine: &Engine) -> Result<Vec<RuleId>> {
    let pf = PfIndex(0);
    let [first, second] = [0, 1].map(|n| port(pf, Vport::Vf(n)));
    let rule = |from: Port, to: Port, address: [u8; 4]| FlowChange::Add {
        pf,
        rule: Box::new(Rule::new(from, to_address(address), [Action::Redirect(to)])),
    };
    let changes = vec![rule(first, second, [10, 9, 0, 2]), rule(second, first, [10, 9, 0, 1])];
    let added = engine.change_flows(cx, changes).into_iter().map(|done| match done? {
        FlowDone::Added(id) => Ok(id),
        other => Err(anyhow!("a rule was not added: {other:?}")),
    });
    added.collect()
}

fn counted(cx: &mut Locked<'_, Unlocked>, engine: &Engine, rules: &[RuleId]) -> u64 {
    engine.flow_counters(cx, rules).into_iter().flatten().map(|counter| counter.packets).sum()
}

/// Two namespaces with an address each, and what connects them.
struct Way {
    from: &'static str,
    to: &'static str,
    addresses: [&'static str; 2],
}

/// Runs something in a named network namespace: sockets that it makes stay there.
fn within<T: Send + 'static>(namespace: &str, make: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let file = File::open(format!("/run/netns/{namespace}")).context(namespace.to_owned())?;
    let made = thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        make()
    });
    made.join().map_err(|_| anyhow!("the thread in namespace {namespace}"))?
}

/// The CPU time of this process, in steps of 10 ms.
fn cpu_time() -> Result<Duration> {
    // proc_pid_stat(5): utime and stime are the fields 14 and 15; the name, which is in parentheses, is the second.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    // A tick of what user space sees is 10 ms (USER_HZ in include/asm-generic/param.h).
    Ok(Duration::from_millis(ticks * 10))
}

impl Way {
    fn measure(&self) -> Result<Figures> {
        let round_trip = self.round_trip()?;
        let (wall, cpu) = self.datagrams()?;
        Ok([wall, cpu, self.tcp()?, round_trip])
    }

    /// A socket of each side; the first is connected to the other.
    fn sockets(&self) -> Result<(UdpSocket, UdpSocket)> {
        let [from, to] = self.addresses;
        let receiver = within(self.to, move || Ok(UdpSocket::bind((to, 7_777))?))?;
        let sender = within(self.from, move || {
            let socket = UdpSocket::bind((from, 0))?;
            socket.connect((to, 7_777))?;
            Ok(socket)
        })?;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        sender.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok((sender, receiver))
    }

    /// How many datagrams are received in a second, and in a second of CPU time of this process, which both sends and
    /// receives them: what the kernel does with a frame on its way is done by these threads.
    fn datagrams(&self) -> Result<(f64, f64)> {
        let (sender, receiver) = self.sockets()?;
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        let (begin, cpu) = (Instant::now(), cpu_time()?);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 2 * PAYLOAD];
                while !stop.load(Ordering::Relaxed) {
                    if receiver.recv(&mut buffer).is_ok() {
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            while begin.elapsed() < TURN {
                for _ in 0..64 {
                    // What there is no room for is not received, and so not counted.
                    let _ = sender.send(&[0; PAYLOAD]);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let received = received.into_inner() as f64;
        ensure!(received > 0.0, "nothing was received from {} in {}", self.from, self.to);
        Ok((received / begin.elapsed().as_secs_f64(), received / (cpu_time()? - cpu).as_secs_f64()))
    }

    /// The microseconds from a datagram to its answer.
    fn round_trip(&self) -> Result<f64> {
        let (sender, receiver) = self.sockets()?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 2 * PAYLOAD];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = receiver.recv_from(&mut buffer) {
                        let _ = receiver.send_to(&buffer[..length], from);
                    }
                }
            });
            let trips = || -> Result<f64> {
                let trip = || -> Result<()> {
                    sender.send(&[0; PAYLOAD])?;
                    sender.recv(&mut [0; 2 * PAYLOAD]).context("no answer to a datagram")?;
                    Ok(())
                };
                // Neighbours are found by the first one.
                trip()?;
                let begin = Instant::now();
                (0..ROUND_TRIPS).try_for_each(|_| trip())?;
                Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS))
            };
            let taken = trips();
            stop.store(true, Ordering::Relaxed);
            taken
        })
    }

    /// The gigabits that one stream carries in a second.
    fn tcp(&self) -> Result<f64> {
        let [_, to] = self.addresses;
        let listener = within(self.to, move || Ok(TcpListener::bind((to, 0))?))?;
        let number = listener.local_addr()?.port();
        let mut sender = within(self.from, move || Ok(TcpStream::connect((to, number))?))?;
        let (mut receiver, _) = listener.accept()?;
        sender.set_write_timeout(Some(Duration::from_secs(2)))?;
        let begin = Instant::now();
        let bytes = thread::scope(|scope| -> Result<u64> {
            let receiving = scope.spawn(move || {
                let (mut buffer, mut bytes) = (vec![0; 1 << 17], 0);
                loop {
                    match receiver.read(&mut buffer) {
                        Ok(0) => return Ok(bytes),
                        Ok(length) => bytes += length as u64,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            });
            let data = vec![0; 1 << 17];
            let mut sent = Ok(());
            while sent.is_ok() && begin.elapsed() < TURN {
                sent = sender.write_all(&data);
            }
            drop(sender);
            let received = receiving.join().map_err(|_| anyhow!("the thread that receives"))?;
            sent.context("sending by TCP")?;
            Ok(received?)
        })?;
        Ok(bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
    }
}

/// How often the program runs on a frame in one measurement, and how many of them there are.
const RUNS: u32 = 500_000;
const TURNS: usize = 5;
const MILLION: u32 = 1_000_000;
const HUNDRED_THOUSAND: u32 = 100_000;

fn to_address(address: [u8; 4]) -> Match {
    Match::new().with(Field::EthType, 0x0800u16).with(Field::Ip4Dst, address)
}

/// A mask of its own for each number: prefixes of both addresses.
fn masked(number: u32) -> Match {
    let prefix = |bits: u32| (u32::MAX << (32 - bits)).to_be_bytes();
    let value = [192, 168, 0, 0];
    let matches = Match::new().with(Field::EthType, 0x0800u16);
    let matches = matches.with_masked(Field::Ip4Src, value, prefix(17 + number % 8));
    matches.with_masked(Field::Ip4Dst, value, prefix(17 + number / 8))
}

/// A rule that drops: what costs least, so that differences show.
fn rule(matches: Match, priority: u16) -> Rule {
    Rule::new(Port(1), matches, [Action::Drop]).with_priority(priority.into(), Protocol::All)
}

fn numbered(number: u32) -> Rule {
    rule(to_address((0x0b00_0000 + number).to_be_bytes()), 2)
}

/// A pipeline that is attached nowhere.
struct Trial {
    pipeline: Pipeline,
    next: u64,
}

impl Trial {
    fn new() -> Result<Self> {
        let options = Options { max_rules: 1 << 20, max_actions: 1024, trials: true, ..Options::default() };
        let mut pipeline = Pipeline::load(options)?;
        let config = PortConfig {
            mode: datapath_bpf::Mode::Switchdev,
            block: Block::Port(Port(1)),
            ifindex: 1,
            representor: None,
            through_inner: false,
            is_wire: false,
            link_up: true,
            lane: None,
            wires: Vec::new(),
        };
        pipeline.set_port(Port(1), &config)?;
        pipeline.attach(1, Role::Port(Port(1)))?;
        Ok(Self { pipeline, next: 1 })
    }

    /// Adds rules. Returns how long the pipeline takes for them.
    fn add(&mut self, rules: &[Rule]) -> Result<Duration> {
        let named = rules.iter().zip(self.next..);
        let changes: Vec<_> = named.map(|(rule, id)| Change::Add { id: RuleId(id), rule }).collect();
        self.next += rules.len() as u64;
        let begin = Instant::now();
        let results = self.pipeline.commit(&changes);
        let taken = begin.elapsed();
        results.into_iter().try_for_each(|result| result.map_err(|refused| anyhow!("a rule: {refused}")))?;
        Ok(taken)
    }

    /// Adds rules for as many addresses, some at a time: a million of them at once would be more than a gigabyte.
    fn add_numbered(&mut self, count: u32) -> Result<Duration> {
        let chunks = (0..count).step_by(10_000);
        chunks.map(|first| self.add(&(first..(first + 10_000).min(count)).map(numbered).collect::<Vec<_>>())).sum()
    }

    /// The nanoseconds of one run of the program on a frame that matches the rule for 10.0.0.2.
    fn run(&mut self) -> Result<f64> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 50, 0, 1, 0, 0, 64, 17, 0, 0];
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x27, 0x10, 0x27, 0x11, 0, 30, 0xff, 0xff]);
        frame.resize(64, 0);
        make_checksums_right(&mut frame);
        Ok(f64::from(self.pipeline.trial_time(1, &frame, RUNS).context("running the program")?))
    }
}

/// The row for what cannot be loaded here, or the rows.
fn or_unavailable(what: &str, measure: impl FnOnce() -> Result<Vec<Row>>) -> Result<Vec<Row>> {
    match card_linux::cannot_offload() {
        Some(why) => Ok(vec![Row::unavailable(what.to_owned(), why)]),
        None => measure(),
    }
}

fn masks_and_rules() -> Result<Vec<Row>> {
    or_unavailable("the program for one frame", || {
        let mut one = Trial::new()?;
        one.add(&[rule(to_address([10, 0, 0, 2]), 2)])?;
        let mut rows = Vec::new();
        for (what, masks, rules, most) in
            [("8 masks", 7, 0, 1.15), ("64 masks", 63, 0, 1.6), ("1,000,000 rules", 0, MILLION, 1.2)]
        {
            let mut many = Trial::new()?;
            many.add(&(0..masks).map(|number| rule(masked(number), 1)).collect::<Vec<_>>())?;
            many.add(&[rule(to_address([10, 0, 0, 2]), 2)])?;
            many.add_numbered(rules)?;
            let turns = in_turns(|| many.run(), || one.run())?;
            rows.push(turns.row(format!("the program for one frame, {what}"), "one rule", "ns", most));
        }
        Ok(rows)
    })
}

fn rules_and_counters() -> Result<Vec<Row>> {
    or_unavailable("installing 100,000 rules", || {
        let ids: Vec<RuleId> = (1..=u64::from(HUNDRED_THOUSAND)).map(RuleId).collect();
        let mut last = None;
        let installing = in_turns(
            || {
                let mut trial = Trial::new()?;
                let taken = trial.add_numbered(HUNDRED_THOUSAND)?;
                last = Some(trial);
                // The kernel takes the maps of the one before apart in the background.
                thread::sleep(Duration::from_secs(1));
                Ok(taken.as_secs_f64() * 1e3)
            },
            || Ok(Trial::new()?.pipeline.time_of_bare_updates(HUNDRED_THOUSAND)?.as_secs_f64() * 1e3),
        )?;
        let trial = last.context("no rules were installed")?;
        let reading = in_turns(
            || {
                let begin = Instant::now();
                ensure!(trial.pipeline.counters(&ids).len() == ids.len(), "a counter is missing");
                Ok(begin.elapsed().as_secs_f64() * 1e3)
            },
            || Ok(trial.pipeline.time_of_bare_reads(HUNDRED_THOUSAND)?.as_secs_f64() * 1e3),
        )?;
        Ok(vec![
            installing.row("installing 100,000 rules".to_owned(), "as many updates of a map, one by one", "ms", 2.0),
            reading.row("reading 100,000 counters".to_owned(), "reading them from the map in batches", "ms", 1.5),
        ])
    })
}

/// The medians of both, and of the ratios.
struct Turns {
    ours: f64,
    theirs: f64,
    ratio: f64,
}

/// Runs two measurements in turns, each first in half of them.
fn in_turns(mut ours: impl FnMut() -> Result<f64>, mut theirs: impl FnMut() -> Result<f64>) -> Result<Turns> {
    let mut pairs = Vec::new();
    for turn in 0..TURNS {
        if turn % 2 == 0 {
            let ours = ours()?;
            pairs.push((ours, theirs()?));
        } else {
            let theirs = theirs()?;
            pairs.push((ours()?, theirs));
        }
    }
    Ok(Turns {
        ours: middle(pairs.iter().map(|(ours, _)| *ours)),
        theirs: middle(pairs.iter().map(|(_, theirs)| *theirs)),
        ratio: middle(pairs.iter().map(|(ours, theirs)| ours / theirs)),
    })
}

impl Turns {
    fn row(&self, what: String, with: &str, unit: &'static str, most: f64) -> Row {
        let quantity = |value| Quantity { value, unit };
        let row = Row::compared(what, quantity(self.ours), with, quantity(self.theirs), self.ratio);
        row.target(Target::RatioAtMost(most))
    }
}
