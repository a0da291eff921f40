//! What filters cost in a lab, compared with those of the kernel outside: with `flower` and `skip_hw` if this kernel has it,
//! otherwise with `u32`, which needs no flower.
//!
//! `u32` has two ways to take many filters. As `tc` adds them they are one list, through which the kernel goes with each that is
//! added; a hash table, which a user must lay out, has short lists.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Place, Runner, Times, this};
use crate::workspace::shell;

/// The representors of the card's two VFs.
const REPRESENTORS: [&str; 2] = ["enp12s0f0npf0vf0", "enp12s0f0npf0vf1"];
/// The netdevs outside.
const OUTSIDE: [&str; 2] = ["a0", "b0"];
/// How many filters are listed.
const LISTED: usize = 10_000;
const ROUNDS: usize = 3;

/// A batch of filters for `tc`, which send what goes to each of many addresses from the first netdev to the second.
fn batch(n: usize, [from, to]: [&str; 2], first: &str, of_address: impl Fn(usize, &str) -> String) -> String {
    let mut lines = first.to_owned();
    for at in 0..n {
        let address = format!("10.{}.{}.{}", at >> 16, at >> 8 & 255, at & 255);
        let filter = of_address(at, &address);
        // Writing to a string cannot fail.
        let _ = writeln!(
            lines,
            "filter add dev {from} ingress protocol ip prio 1 {filter} action mirred egress redirect dev {to}"
        );
    }
    lines
}

/// A way in which the kernel takes filters outside.
struct Kernel {
    name: &'static str,
    /// How often it is measured.
    rounds: usize,
    batch: fn(usize) -> String,
}

fn flower(n: usize) -> String {
    batch(n, OUTSIDE, "", |_, address| format!("flower skip_hw dst_ip {address}"))
}

fn u32_table(n: usize) -> String {
    let first = format!(
        "filter add dev {0} ingress prio 1 handle 2: protocol ip u32 divisor 256\n\
         filter add dev {0} ingress prio 1 protocol ip u32 ht 800:: match ip dst 10.0.0.0/8 hashkey mask 0x000000ff at 16 link 2:\n",
        OUTSIDE[0]
    );
    batch(n, OUTSIDE, &first, |at, address| format!("u32 ht 2:{:x}: match ip dst {address}", at & 255))
}

fn u32_list(n: usize) -> String {
    batch(n, OUTSIDE, "", |_, address| format!("u32 match ip dst {address}"))
}

const FLOWER: &[Kernel] = &[Kernel { name: "flower, skip_hw", rounds: ROUNDS, batch: flower }];
const U32: &[Kernel] = &[
    Kernel { name: "u32 in a hash table", rounds: ROUNDS, batch: u32_table },
    Kernel { name: "u32 in one list", rounds: 1, batch: u32_list },
];

/// Measures them, in the namespaces this process was given.
///
/// # Errors
/// There is no card, no lab, or a command fails.
pub fn measure(n: usize) -> Result<String> {
    let place = Place::new(2)?;
    let [a, b] = OUTSIDE;
    shell(&format!("ip netns add plain && ip -n plain link add dev {a} type veth peer name {b}"))?;
    shell(&format!("tc -n plain qdisc add dev {a} ingress"))?;
    let has_flower =
        shell(&format!("tc -n plain filter add dev {a} ingress protocol ip prio 9 flower action drop")).is_ok();
    shell(&format!("tc -n plain filter del dev {a} ingress"))?;
    let mut inside = place.in_lab()?;
    let mut plain = Runner::start(std::process::Command::new("ip").args(["netns", "exec", "plain"]).arg(this()?))?;
    inside.run(&["tc", "qdisc", "add", "dev", REPRESENTORS[0], "ingress"])?;
    let ours = |n| batch(n, REPRESENTORS, "", |_, address| format!("flower skip_sw dst_ip {address}"));
    std::fs::write("/run/bench/ours", ours(n))?;
    std::fs::write("/run/bench/ours-listed", ours(LISTED))?;
    let mut measured = Vec::new();
    for kernel in if has_flower { FLOWER } else { U32 } {
        std::fs::write("/run/bench/theirs", (kernel.batch)(n))?;
        std::fs::write("/run/bench/theirs-listed", (kernel.batch)(LISTED))?;
        let mut added = Vec::new();
        let mut listed = Vec::new();
        for _ in 0..kernel.rounds {
            added.push((
                once(&mut inside, REPRESENTORS[0], "/run/bench/ours", None)?,
                once(&mut plain, a, "/run/bench/theirs", None)?,
            ));
            listed.push((
                once(&mut inside, REPRESENTORS[0], "/run/bench/ours-listed", Some(5))?,
                once(&mut plain, a, "/run/bench/theirs-listed", Some(5))?,
            ));
        }
        measured.push(Times {
            what: format!("tc -b with {n} flower filters, skip_sw, in a lab"),
            with: format!("the kernel's, outside, {}", kernel.name),
            most: Some(2.0),
            pairs: added,
        });
        measured.push(Times {
            what: format!("tc -s filter show of {LISTED} filters in a lab"),
            with: format!("the kernel's, outside, {}", kernel.name),
            most: Some(1.5),
            pairs: listed,
        });
    }
    Ok(serde_json::to_string(&measured)?)
}

/// Adds filters to a netdev and removes them. Returns the milliseconds that adding took; or, with `listed`, the shortest
/// time of so many lists of them.
fn once(runner: &mut Runner, netdev: &str, batch: &str, listed: Option<usize>) -> Result<f64> {
    let added = runner.run(&["tc", "-b", batch])?;
    let mut shortest = f64::INFINITY;
    for _ in 0..listed.unwrap_or_default() {
        shortest = shortest.min(runner.run(&["tc", "-s", "filter", "show", "dev", netdev, "ingress"])?);
    }
    runner.run(&["tc", "filter", "del", "dev", netdev, "ingress"])?;
    Ok(if listed.is_some() { shortest } else { added })
}
