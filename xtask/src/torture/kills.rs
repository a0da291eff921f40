//! SIGKILL of the daemon at a random moment during changes, and what the next daemon finds.
//!
//! The card has netdevs and two PFs, both in switchdev mode at first. VF 0 and VF 1 of PF 0 are in namespaces of
//! their own, their representors are in a bridge, and datagrams go from one to the other all the time. Each round requests
//! changes one after the other until a kill at a random moment, sometimes also kills the next start, and then expects
//! after the start that comes up:
//!
//! - the card has the state that was acknowledged; of the change that was in progress, all or nothing was done;
//! - the kernel has exactly the netdevs that this card has;
//! - the netdevs that no change concerned are the same as before, by interface index; the bridge has its ports;
//! - no datagram was lost.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::workspace::shell;

use super::kernel::{self, Link};
use super::model::{self, CONFIG, Change, Lately, State, VFS};
use super::place::{LIMIT, Place};
use super::random::Random;
use super::rounds::Rounds;
use super::traffic::Stream;
use super::wire::NoAnswer;

/// The longest time from the first change to the kill.
const WITHIN_MS: usize = 160;
/// The longest time that a card may take to come to rest after a start.
const REST: Duration = Duration::from_secs(15);

/// A card with traffic.
struct Rig<'a> {
    place: &'a Place,
    daemon: u32,
    state: State,
    bond: bool,
    stream: Stream,
}

/// The course of a round.
struct Course {
    /// In words.
    told: Vec<String>,
    /// The state of the card at first, and after each change that was acknowledged or in progress.
    history: Vec<State>,
    /// The change that was requested and not answered at the kill.
    under_way: Option<Change>,
}

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "kills", &format!("kind = \"linux\"\n{CONFIG}"))?;
    let mut rig = None;
    while let Some((seed, mut random)) = rounds.next() {
        let mut up = match rig.take() {
            Some(rig) => rig,
            None => Rig::set_up(&place)?,
        };
        let mut what = "kill between changes".to_owned();
        let came = up.round(&mut random, &mut what);
        let failure = came.as_ref().err().map(|error| format!("{error:#}\n{}", last_of_log(&place)));
        if rounds.tally.tried(&what, seed, came.as_ref().map(|end| *end).map_err(|_| failure.unwrap_or_default())) {
            rig = Some(up);
        } else {
            drop(up);
            place.clear()?;
        }
    }
    if let Some(rig) = rig {
        drop(rig.stream);
        let _ = shell("ip netns del one; ip netns del two; ip link del br0");
        let ended = place.esw(&["down"])?;
        let left = kernel::links(None)?;
        let outcome = match ended.succeeded() && left.is_empty() && kernel::processes().is_empty() {
            true => Ok(""),
            false => Err(format!("{}\nleft: {:?}\n{:?}", ended.describe(), left.keys(), kernel::processes())),
        };
        rounds.tally.tried("esw down after all of them", rounds.seed, outcome);
    }
    place.clear()
}

/// The last lines of the daemon's log, for reports of failures.
pub fn last_of_log(place: &Place) -> String {
    let log = std::fs::read_to_string(place.state.join("esw.log")).unwrap_or_default();
    // Lines about our own queries are of no interest.
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains("eswitch show")).collect();
    format!("the log's last lines:\n{}", lines[lines.len().saturating_sub(12)..].join("\n"))
}

impl<'a> Rig<'a> {
    fn set_up(place: &'a Place) -> Result<Self> {
        place.clear()?;
        let daemon = place.must_up(&["--fresh"])?;
        shell(
            "ip link add br0 type bridge; ip link set br0 up
            n=0; for name in one two; do
                ip netns add $name; ip link set enp8s0f0v$n netns $name
                ip -n $name link set enp8s0f0v$n up; ip -n $name link set lo up
                ip link set enp8s0f0npf0vf$n master br0 up
                n=$((n + 1)); ip -n $name addr add 10.77.0.$n/24 dev enp8s0f0v$((n - 1))
            done",
        )
        .context("setting up traffic")?;
        let mut client = place.client().map_err(|error| anyhow!("{error}"))?;
        let (state, _) = model::observe(&mut client).map_err(|error| anyhow!("{error}"))?;
        ensure!(state.switchdev == [true; 2] && state.vfs[0] == VFS, "the card is not as configured: {state:?}");
        let rig = Self { place, daemon, state, bond: false, stream: Stream::start()? };
        // The bridge begins to forward a moment later, and the first packets wait for ARP.
        let until = Instant::now() + LIMIT;
        loop {
            thread::sleep(Duration::from_millis(50));
            match rig.stream.check() {
                Ok(_) => return Ok(rig),
                Err(why) => ensure!(Instant::now() < until, "before anything was done: {why}"),
            }
        }
    }

    /// Every netdev of the card in all namespaces, by name.
    fn netdevs() -> Result<BTreeMap<String, Link>> {
        let mut all = kernel::links(None)?;
        for name in ["one", "two"] {
            all.extend(kernel::links(Some(name))?);
        }
        all.retain(|name, _| name.starts_with("enp8s0") || name.starts_with("en8f"));
        Ok(all)
    }

    /// Runs one round. `what` becomes the change that was in progress at the kill.
    fn round(&mut self, random: &mut Random, what: &mut String) -> Result<&'static str> {
        let before = Self::netdevs()?;
        let mut course = Course { told: Vec::new(), history: vec![self.state.clone()], under_way: None };
        self.change_until_killed(random, &mut course).with_context(|| format!("{:#?}", course.told))?;
        if let Some(change) = &course.under_way {
            *what = format!("kill during {}", change.kind());
        }
        // A bond of the kernel survives the daemon; the one that replaces it on a card without bonds does not.
        self.bond = kernel::links(None)?.contains_key("bond0");
        let starts = if random.one_in(3) { 1 + random.below(2) } else { 0 };
        for _ in 0..starts {
            self.kill_a_start(random, &mut course)?;
        }
        self.look_at_what_is_left(&before, &mut course).with_context(|| format!("{:#?}", course.told))?;
        Ok(if starts == 0 { "restored" } else { "restored after another kill" })
    }

    /// Requests changes until the daemon is killed, at a random moment.
    fn change_until_killed(&mut self, random: &mut Random, course: &mut Course) -> Result<()> {
        let mut client = self.place.client().map_err(|error| anyhow!("{error}"))?;
        let delay = Duration::from_micros(random.below(WITHIN_MS * 1_000) as u64);
        let (daemon, killed) = (self.daemon, AtomicBool::new(false));
        let mut lately = Lately { bond: self.bond, bonded: self.bond, ..Lately::default() };
        thread::scope(|scope| -> Result<()> {
            let killed = &killed;
            scope.spawn(move || {
                thread::sleep(delay);
                killed.store(true, Ordering::Release);
                kernel::kill(daemon);
            });
            loop {
                let change = Change::any(&self.state, &lately, random);
                match change.ask(&mut client, &mut self.state) {
                    Ok(()) => {
                        course.told.push(format!("{change:?}: acknowledged"));
                        lately.note(&change);
                        course.history.push(self.state.clone());
                    }
                    Err(NoAnswer::Gone(_)) if killed.load(Ordering::Acquire) => {
                        let at = delay.as_millis();
                        course.told.push(format!("{change:?}: in progress at the kill, {at} ms after the start"));
                        course.under_way = Some(change);
                        return Ok(());
                    }
                    // The daemon ended before it was killed, does not answer, or refuses a valid change.
                    Err(error) => bail!("{change:?}, which is valid: {error}"),
                }
            }
        })?;
        ensure!(kernel::has_ended(daemon, LIMIT), "the daemon still exists after SIGKILL");
        Ok(())
    }

    /// Kills a start.
    fn kill_a_start(&self, random: &mut Random, course: &mut Course) -> Result<()> {
        let mut command = self.place.command(&["up", "--daemon", "--config", "config.toml"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let milliseconds = 1 + random.below(60) as u64;
        thread::sleep(Duration::from_millis(milliseconds));
        child.kill()?;
        child.wait()?;
        course.told.push(format!("a start was killed after {milliseconds} ms"));
        Ok(())
    }

    /// Starts the daemon over what is left, and compares.
    fn look_at_what_is_left(&mut self, before: &BTreeMap<String, Link>, course: &mut Course) -> Result<()> {
        let come = self.place.up(&[])?;
        ensure!(come.succeeded(), "the start after the kill: {}", come.describe());
        self.daemon = self.place.daemon().context("the process that listens at the control socket")?;
        let mut may_be = vec![self.state.clone()];
        if let Some(change) = &course.under_way {
            change.apply(&mut self.state);
            may_be.push(self.state.clone());
            course.history.push(self.state.clone());
        }
        self.state = self.wait_for(&may_be)?;
        Self::compare_numbers(before, &course.history)?;
        self.stream.check().map_err(|why| anyhow!("{why}"))?;
        Ok(())
    }

    /// Waits until the card has one of these states and the kernel's netdevs agree; returns which one.
    fn wait_for(&self, may_be: &[State]) -> Result<State> {
        let until = Instant::now() + REST;
        loop {
            let mut client = self.place.client().map_err(|error| anyhow!("{error}"))?;
            let (found, netdevs) = model::observe(&mut client).map_err(|error| anyhow!("{error}"))?;
            let links = Self::netdevs()?;
            let mut differences = Vec::new();
            for state in may_be {
                let mut state = state.clone();
                state.learn(&found);
                let mut differs = state.differences(&found);
                let (is, expected) = (links.keys().cloned().collect(), state.netdevs());
                for name in expected.difference(&is) {
                    differs += &format!("the kernel has no netdev {name}\n");
                }
                for name in is.difference(&expected) {
                    differs += &format!("the kernel has another netdev {name}\n");
                }
                if differs.is_empty() {
                    for netdev in &netdevs {
                        let is = links.get(&netdev.name).map(|link| link.ifindex);
                        if netdev.ifindex.is_some() && is.is_some() && is != netdev.ifindex {
                            differs += &format!("devlink has {netdev:?}, the interface index is {is:?}\n");
                        }
                    }
                }
                if differs.is_empty() {
                    return Ok(found);
                }
                differences.push(differs);
            }
            if Instant::now() > until {
                let differences = differences.join("nor the state after the change that was in progress:\n");
                bail!("the card does not have the acknowledged state:\n{differences}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Checks that the netdevs which had to survive are the same as before the kill.
    fn compare_numbers(before: &BTreeMap<String, Link>, history: &[State]) -> Result<()> {
        let after = Self::netdevs()?;
        let mode_changed = history.windows(2).any(|pair| pair[0].switchdev != pair[1].switchdev);
        for (name, link) in before {
            let of_mode = mode_changed && name.starts_with("enp8s0f1") && name != "enp8s0f1np1";
            if of_mode || !history.iter().all(|state| state.netdevs().contains(name)) {
                continue;
            }
            match after.get(name) {
                // Only the PFs' netdevs join and leave bonds.
                Some(now) if now.ifindex == link.ifindex && (name.ends_with("np0") || name.ends_with("np1")) => {}
                Some(now) if now.ifindex == link.ifindex && now.master == link.master => {}
                now => bail!("{name} was in use and had to survive: it was {link:?}, it is {now:?}"),
            }
        }
        Ok(())
    }
}
