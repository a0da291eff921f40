//! Netdevs are moved, renamed, and deleted by several processes at once, each in a lab of its own: into pods with a name and
//! without, to names that others use, together with a pod that is deleted. Each process looks at what it has just changed; in
//! some rounds the daemon is killed meanwhile, and started again.
//!
//! After each round every view is compared with the kernel's own account, which is taken outside of any lab: in the card's
//! namespace, each inner end of a pair says where the other end is.

pub mod mover;

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::kills::last_of_log;
use super::model::CONFIG;
use super::place::{LIMIT, Place, wait};
use super::random::Random;
use super::rounds::Rounds;
use crate::workspace::{output_of, shell};
use mover::{Owned, Task};

/// How many movers there are, and how many operations each makes in a round: 1,000 together.
const MOVERS: usize = 4;
const OPERATIONS: usize = 250;
/// How long a round may take.
const ROUND: Duration = Duration::from_secs(180);

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "moves", &format!("kind = \"linux\"\n{CONFIG}"))?;
    place.clear()?;
    place.must_up(&["--fresh"])?;
    let first = place.esw(&["exec", "--", "ip", "link"])?;
    if !first.succeeded() {
        rounds.tally.skipped("all of it", format!("no lab can be made here: {}", first.describe()));
        return place.clear();
    }
    while let Some((seed, mut random)) = rounds.next() {
        let kills = random.one_in(3);
        let what = if kills { "1,000 operations, the daemon killed meanwhile" } else { "1,000 operations" };
        let outcome = round(&place, seed, kills, &mut random);
        if !rounds.tally.tried(
            what,
            seed,
            outcome.map(|()| "").map_err(|error| format!("{error:#}\n{}", last_of_log(&place))),
        ) {
            place.clear()?;
            place.must_up(&["--fresh"])?;
        }
    }
    place.clear()
}

fn round(place: &Place, seed: u64, kills: bool, random: &mut Random) -> Result<()> {
    let mut movers = Vec::new();
    for number in 0..MOVERS {
        let netdevs = netdevs_of(number);
        let task =
            Task { number, seed: seed.wrapping_mul(MOVERS as u64) + number as u64, operations: OPERATIONS, netdevs };
        movers.push(start(place, &task)?);
    }
    if kills {
        thread::sleep(Duration::from_millis(200 + random.below(1_500) as u64));
        place.kill(place.daemon()?)?;
        thread::sleep(Duration::from_millis(random.below(300) as u64));
        place.must_up(&[])?;
    }
    let ended: Vec<Result<String>> = movers.into_iter().map(finish).collect();
    let failed: Vec<String> = ended.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    compare(place)
}

/// The netdevs that a mover owns: a VF's of each PF, and the representor of the second.
fn netdevs_of(number: usize) -> Vec<Owned> {
    let vf = |pf: usize| Owned {
        name: format!("enp8s0f{pf}v{number}"),
        parent: vf_address(pf, number),
        port_name: None,
        port: None,
        driver: "mlx5_core".to_owned(),
    };
    let representor = Owned {
        name: format!("enp8s0f1npf1vf{number}"),
        parent: "0000:08:00.1".to_owned(),
        port_name: Some(format!("pf1vf{number}")),
        port: Some(format!("pci/0000:08:00.1/{}", port_index(1, number))),
        driver: "mlx5e_rep".to_owned(),
    };
    vec![vf(0), vf(1), representor]
}

/// The address of a VF of the configured card, which has two PFs with eight VFs each.
fn vf_address(pf: usize, vf: usize) -> String {
    let routing = 2 + 8 * pf + vf;
    format!("0000:08:{:02x}.{}", routing / 8, routing % 8)
}

fn start(place: &Place, task: &Task) -> Result<Child> {
    let program = std::env::current_exe()?;
    let task = serde_json::to_string(task)?;
    let mut command = place.command(&["exec", "--", program.to_str().context("a path")?, "torture", "--mover", &task]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("esw exec")
}

fn finish(mut mover: Child) -> Result<String> {
    let status = wait(&mut mover, ROUND)?;
    let output = mover.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match status {
        Some(status) if status.success() => Ok(printed),
        Some(_) => bail!("{printed}"),
        None => bail!("a mover hangs: {printed}"),
    }
}

/// Where the kernel has a netdev: whether it is home, and its name there.
fn account(inside: &str) -> Result<BTreeMap<String, String>> {
    // The name of an inner end says what the netdev is for; its link, which netdev it is.
    let ends: Value = serde_json::from_str(&output_of("ip", &["-n", inside, "-j", "link"])?)?;
    let home: Value = serde_json::from_str(&output_of("ip", &["-j", "link"])?)?;
    let name_of = |index: &Value| home.as_array()?.iter().find(|link| link["ifindex"] == *index)?["ifname"].as_str();
    let mut account = BTreeMap::new();
    for end in ends.as_array().context("no list of links")? {
        let Some(name) = end["ifname"].as_str().filter(|name| name.starts_with(['p', 'r'])) else { continue };
        let there = name_of(&end["link_index"]).with_context(|| format!("{name} leads to no netdev at home: {end}"))?;
        account.insert(name.to_owned(), there.to_owned());
    }
    Ok(account)
}

/// Compares every view of a lab with the kernel's account. All netdevs are home.
fn compare(place: &Place) -> Result<()> {
    let inside = shell("ip netns list | cut -d' ' -f1 | grep '^esw'")?;
    let account = account(inside.trim())?;
    ensure!(account.len() == 16, "the card has {} pairs: {account:?}", account.len());
    let run = |words: &[&str]| -> Result<String> {
        let ended = place.run(place.command(&[&["exec", "--"], words].concat()), LIMIT)?;
        ensure!(ended.succeeded(), "{}: {}", words.join(" "), ended.describe());
        Ok(ended.output)
    };
    let links: Value = serde_json::from_str(&run(&["ip", "-d", "-j", "link"])?)?;
    let ports: Value = serde_json::from_str(&run(&["devlink", "-j", "port"])?)?;
    for (end, name) in &account {
        let (is_representor, pf, vf) = parse_end(end).with_context(|| format!("an end called {end}"))?;
        let parent = if is_representor { format!("0000:08:00.{pf}") } else { vf_address(pf, vf) };
        let link = links.as_array().and_then(|links| links.iter().find(|link| link["ifname"] == **name));
        let link = link.ok_or_else(|| anyhow!("{end}: ip has no {name}"))?;
        ensure!(link["parentdev"] == *parent && link["linkinfo"].is_null(), "{end}: {link}");
        let shown = run(&["ls", &format!("/sys/bus/pci/devices/{parent}/net")])?;
        ensure!(shown.lines().any(|line| line == name), "{end} is {name}; in /sys: {shown}");
        if is_representor {
            ensure!(link["phys_port_name"] == format!("pf{pf}vf{vf}"), "{end}: {link}");
            let port = &ports["port"][format!("pci/0000:08:00.{pf}/{}", port_index(pf, vf))];
            ensure!(port["netdev"] == **name, "{end} is {name}: {port}");
        }
    }
    Ok(())
}

/// What an inner end is for: `p0v3` is that of VF 3 of PF 0, `r0v3` that of its representor.
fn parse_end(end: &str) -> Option<(bool, usize, usize)> {
    let (pf, vf) = end.get(1..)?.split_once('v')?;
    Some((end.starts_with('r'), pf.parse().ok()?, vf.parse().ok()?))
}

/// The index of a VF's devlink port.
fn port_index(pf: usize, vf: usize) -> usize {
    (pf << 16) + vf + 1
}
