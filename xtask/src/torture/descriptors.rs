//! Starts with very few descriptors: from nothing, and over a card that a kill has left.
//!
//! A start comes up or is refused: it exits, and does not panic. A refused start leaves nothing that it has made, and
//! destroys nothing that it did not make: all netdevs of the card that was left still exist, by interface index, also one
//! in a namespace and one in a bridge, and a start with enough descriptors takes the card over.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::shell;

use super::kernel::{self, Link, Remains};
use super::model::{self, CONFIG, Change, State};
use super::place::{self, Place};
use super::rounds::Rounds;

/// The limits on descriptors that are tried, one after the other.
const LIMITS: std::ops::Range<u64> = 3..48;

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "descriptors", &format!("kind = \"linux\"\n{CONFIG}"))?;
    let mut left = None;
    while let Some((seed, mut random)) = rounds.next() {
        let limit = LIMITS.start + seed % (LIMITS.end - LIMITS.start);
        if random.one_in(4) {
            drop(left.take());
            let outcome = from_nothing(&place, limit).map_err(|error| format!("--nofile={limit}: {error:#}"));
            rounds.tally.tried("a start from nothing", seed, outcome);
            continue;
        }
        let was = match left.take() {
            Some(was) => was,
            None => leave(&place).context("leaving a card")?,
        };
        let outcome = over(&place, limit, &was).map_err(|error| format!("--nofile={limit}: {error:#}"));
        if rounds.tally.tried("a start over a card that a kill left", seed, outcome) {
            left = Some(was);
        }
    }
    place.clear()
}

fn limited(place: &Place, limit: u64, more: &[&str]) -> Result<place::Ended> {
    let esw = place.command(&[]);
    let program = esw.get_program().to_string_lossy().into_owned();
    let nofile = format!("--nofile={limit}:{limit}");
    let words = ["prlimit", &nofile, &program, "up", "--daemon", "--detach", "--config", "config.toml"];
    place.run(place.program(&[&words, more].concat()), place::LIMIT)
}

fn from_nothing(place: &Place, limit: u64) -> Result<&'static str> {
    place.clear()?;
    let before = Remains::now();
    let ended = limited(place, limit, &[])?;
    if let Some(fault) = ended.fault() {
        bail!("{fault}");
    }
    if ended.succeeded() {
        let down = place.esw(&["down"])?;
        if !down.succeeded() {
            bail!("esw down: {}", down.describe());
        }
    } else if ended.output.trim().is_empty() {
        bail!("it is refused without a message: {}", ended.describe());
    }
    kernel::wait_for_nothing_beyond(&before, place::LIMIT).map_err(|left| anyhow!("{}\n{left}", ended.describe()))?;
    let links = kernel::links(None)?;
    if !links.is_empty() {
        bail!("{}\nnetdevs are left: {:?}", ended.describe(), links.keys());
    }
    Ok(if ended.succeeded() { "came up" } else { "refused" })
}

/// A card that a kill has left.
struct Left {
    state: State,
    links: BTreeMap<String, Link>,
}

fn every_link() -> Result<BTreeMap<String, Link>> {
    let mut all = kernel::links(None)?;
    all.extend(kernel::links(Some("one"))?);
    Ok(all)
}

fn leave(place: &Place) -> Result<Left> {
    place.clear()?;
    let daemon = place.must_up(&["--fresh"])?;
    let told = |error| anyhow!("{error}");
    let mut client = place.client().map_err(told)?;
    let (mut state, _) = model::observe(&mut client).map_err(told)?;
    for change in [Change::SfAdd(7), Change::SfState(7, true)] {
        change.ask(&mut client, &mut state).map_err(|error| anyhow!("{change:?}: {error}"))?;
    }
    shell(
        "ip link add br0 type bridge; ip link set enp8s0f0npf0vf0 master br0 up; ip link set br0 up
        ip netns add one; ip link set enp8s0f0v0 netns one; ip -n one link set enp8s0f0v0 up",
    )?;
    // An SF's netdev appears a moment after its state changes.
    let until = std::time::Instant::now() + place::LIMIT;
    while !state.netdevs().iter().all(|name| every_link().is_ok_and(|links| links.contains_key(name))) {
        if std::time::Instant::now() > until {
            bail!("the card lacks some of {:?}", state.netdevs());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    place.kill(daemon)?;
    Ok(Left { state, links: every_link()? })
}

fn over(place: &Place, limit: u64, was: &Left) -> Result<&'static str> {
    let ended = limited(place, limit, &[])?;
    if let Some(fault) = ended.fault() {
        bail!("{fault}");
    }
    compare(&was.links).with_context(|| format!("after a start: {}", ended.describe()))?;
    if !ended.succeeded() && ended.output.trim().is_empty() {
        bail!("it is refused without a message: {}", ended.describe());
    }
    if ended.succeeded() {
        place.kill(place.daemon().context("the process that listens at the control socket")?)?;
    } else if !kernel::processes().is_empty() {
        bail!("{}\nprocesses are left: {:?}", ended.describe(), kernel::processes());
    }
    let daemon = place.must_up(&[]).context("a start with descriptors afterwards")?;
    compare(&was.links).context("after a start with descriptors")?;
    let mut client = place.client().map_err(|error| anyhow!("{error}"))?;
    let (found, _) = model::observe(&mut client).map_err(|error| anyhow!("{error}"))?;
    let differs = was.state.differences(&found);
    if !differs.is_empty() {
        bail!("after a start with descriptors: {differs}");
    }
    place.kill(daemon)?;
    Ok(if ended.succeeded() { "came up" } else { "refused" })
}

/// Checks that every netdev is the same as before.
fn compare(was: &BTreeMap<String, Link>) -> Result<()> {
    let now = every_link()?;
    for (name, link) in was {
        let is = now.get(name);
        if is.is_none_or(|is| is.ifindex != link.ifindex || is.master != link.master) {
            bail!("{name} was {link:?} and is {is:?}");
        }
    }
    Ok(())
}
