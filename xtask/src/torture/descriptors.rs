//! Starts with hardly any descriptors: with nothing there, and over a card that a kill has left.
//!
//! A start comes up or is refused: it exits, and does not panic. One that is refused has made nothing that it leaves, and
//! destroys nothing that it did not make: the netdevs of the card that was left are all there, by their numbers, also one
//! in a namespace and one in a bridge, and a start with descriptors takes the card over.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::shell;

use super::kernel::{self, Link, Remains};
use super::model::{self, CONFIG, Change, State};
use super::place::{self, Place};
use super::rounds::Rounds;

/// The limits that are tried, one after the other.
const LIMITS: std::ops::Range<u64> = 3..48;

/// Runs rounds until time is up.
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
    if ended.did_well() {
        let down = place.esw(&["down"])?;
        if !down.did_well() {
            bail!("esw down: {}", down.in_words());
        }
    } else if ended.said.trim().is_empty() {
        bail!("it is refused without a word: {}", ended.in_words());
    }
    kernel::wait_for_nothing_beyond(&before, place::LIMIT).map_err(|left| anyhow!("{}\n{left}", ended.in_words()))?;
    let links = kernel::links(None)?;
    if !links.is_empty() {
        bail!("{}\nnetdevs are left: {:?}", ended.in_words(), links.keys());
    }
    Ok(if ended.did_well() { "came up" } else { "refused" })
}

/// A card that a kill left.
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
    // An SF's netdev comes a moment after its state.
    let until = std::time::Instant::now() + place::LIMIT;
    while !state.netdevs().iter().all(|name| every_link().is_ok_and(|links| links.contains_key(name))) {
        if std::time::Instant::now() > until {
            bail!("the card has not all of {:?}", state.netdevs());
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
    compare(&was.links).with_context(|| format!("after a start: {}", ended.in_words()))?;
    if !ended.did_well() && ended.said.trim().is_empty() {
        bail!("it is refused without a word: {}", ended.in_words());
    }
    if ended.did_well() {
        place.kill(place.daemon().context("who listens at the control socket")?)?;
    } else if !kernel::processes().is_empty() {
        bail!("{}\nprocesses are left: {:?}", ended.in_words(), kernel::processes());
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
    Ok(if ended.did_well() { "came up" } else { "refused" })
}

/// That every netdev is the one it was.
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
