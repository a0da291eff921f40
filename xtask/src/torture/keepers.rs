//! Without root: SIGKILL of the keeper, of the daemon, and of both, at random moments.
//!
//! While the keeper lives, the next daemon is in the same network namespace, by its inode, with the same netdevs by interface
//! index. After any of these kills a start comes up with the acknowledged state, and `esw down` leaves no process and
//! no socket.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::kernel::{self, Link, Remains};
use super::model::{self, CONFIG, Change, Lately, State};
use super::place::{LIMIT, Place};
use super::random::Random;
use super::rounds::Rounds;
use super::wire::NoAnswer;

/// The user who runs it: nobody.
const USER: u32 = 65_534;

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let mut place = Place::new(&rounds.esw, "keepers", &format!("kind = \"linux\"\n{CONFIG}"))?;
    place.run_as(USER)?;
    let can = place.run(place.program(&["unshare", "-Urnm", "ip", "link", "add", "type", "veth"]), LIMIT)?;
    if !can.succeeded() {
        rounds.tally.skipped("all of it", format!("user namespaces with netdevs: {}", can.output.trim()));
        return Ok(());
    }
    while let Some((seed, mut random)) = rounds.next() {
        let what = *random.one_of(&[Killed::Daemon, Killed::Keeper, Killed::Both, Killed::Start]);
        let outcome = round(&place, &mut random, what);
        rounds.tally.tried(what.describe(), seed, outcome.map_err(|error| format!("{error:#}")));
        place.clear()?;
    }
    Ok(())
}

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Killed {
    Daemon,
    Keeper,
    Both,
    /// A daemon during its start, and every process that it has started.
    Start,
}

impl Killed {
    fn describe(self) -> &'static str {
        match self {
            Self::Daemon => "kill of the daemon",
            Self::Keeper => "kill of the keeper",
            Self::Both => "kill of the daemon and the keeper",
            Self::Start => "kill of a start",
        }
    }
}

/// The keeper's process ID: the process whose first arguments are `esw keeper`.
fn keeper() -> Option<u32> {
    let mut all = kernel::processes().into_iter();
    all.find(|process| process.command.split(' ').nth(1) == Some("keeper")).map(|process| process.pid)
}

fn namespace(pid: u32) -> Result<u64> {
    Ok(fs::metadata(format!("/proc/{pid}/ns/net")).with_context(|| format!("process {pid}"))?.ino())
}

fn round(place: &Place, random: &mut Random, killed: Killed) -> Result<&'static str> {
    let before = Remains::now();
    if killed == Killed::Start {
        kill_a_start(place, random)?;
        place.must_up(&[]).context("the start afterwards")?;
        return end(place, &before);
    }
    let daemon = place.must_up(&["--fresh"])?;
    let told = |error| anyhow!("{error}");
    let mut client = place.client().map_err(told)?;
    let (state, _) = model::observe(&mut client).map_err(told)?;
    let (was, had) = (namespace(daemon)?, keeper().context("there is no keeper")?);
    let delay = Duration::from_micros(random.below(60_000) as u64);
    let to_kill: Vec<u32> = match killed {
        Killed::Daemon => vec![daemon],
        Killed::Keeper => vec![had],
        _ if random.one_in(2) => vec![daemon, had],
        _ => vec![had, daemon],
    };
    let (acknowledged, may_be) = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(delay);
            to_kill.iter().for_each(|pid| kernel::kill(*pid));
        });
        changes(&mut client, state, random, killed == Killed::Keeper)
    })?;
    if killed == Killed::Keeper {
        if !kernel::has_ended(had, LIMIT) || !kernel::lives(daemon) {
            bail!("the keeper was killed, and the daemon lives: {}", kernel::lives(daemon));
        }
        let (found, _) =
            model::observe(&mut client).map_err(|error| anyhow!("after the keeper was killed: {error}"))?;
        expect(std::slice::from_ref(&acknowledged), &found)?;
        if random.one_in(2) {
            return end(place, &before);
        }
        place.kill(daemon)?;
    }
    if to_kill.iter().any(|pid| !kernel::has_ended(*pid, LIMIT)) {
        bail!("a process that was killed has not ended");
    }
    let left = if killed == Killed::Daemon { Some(kernel::links_of(had)?) } else { None };
    let daemon = place.must_up(&[]).context("the start afterwards")?;
    if let Some(left) = left {
        let is = namespace(daemon)?;
        if is != was || keeper() != Some(had) {
            bail!("the keeper lives, and the daemon is in network namespace {is}, not {was}");
        }
        expect_numbers(&left, &kernel::links_of(daemon)?)?;
    }
    let mut client = place.client().map_err(told)?;
    let (found, _) = model::observe(&mut client).map_err(told)?;
    expect(&[acknowledged, may_be], &found)?;
    end(place, &before)
}

/// Kills a start at a random moment.
fn kill_a_start(place: &Place, random: &mut Random) -> Result<()> {
    let mut command = place.command(&["up", "--daemon", "--fresh", "--config", "config.toml"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    thread::sleep(Duration::from_micros(random.below(120_000) as u64));
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Checks that PF 0's VFs and their representors, which had to survive, are the same netdevs.
fn expect_numbers(left: &BTreeMap<String, Link>, now: &BTreeMap<String, Link>) -> Result<()> {
    let stay = |name: &str| name.starts_with("enp8s0f0v") || name.starts_with("enp8s0f0npf0vf");
    for (name, link) in left.iter().filter(|(name, _)| stay(name)) {
        if now.get(name).map(|now| now.ifindex) != Some(link.ifindex) {
            bail!("{name} was {link:?} and is {:?}", now.get(name));
        }
    }
    Ok(())
}

/// Requests changes until the connection ends, or for a while; returns the acknowledged state, and the state after the
/// change that was in progress.
fn changes(
    client: &mut super::wire::Client,
    mut state: State,
    random: &mut Random,
    goes_on: bool,
) -> Result<(State, State)> {
    let mut lately = Lately::default();
    for n in 0.. {
        let change = Change::any(&state, &lately, random);
        if matches!(change, Change::Bond(_)) {
            continue;
        }
        if goes_on && n > 12 {
            break;
        }
        match change.ask(client, &mut state) {
            Ok(()) => lately.note(&change),
            Err(NoAnswer::Gone(_)) if !goes_on => {
                let mut after = state.clone();
                change.apply(&mut after);
                return Ok((state, after));
            }
            Err(error) => bail!("{change:?}: {error}"),
        }
    }
    Ok((state.clone(), state))
}

fn expect(may_be: &[State], found: &State) -> Result<()> {
    let differs = |state: &State| {
        let mut state = state.clone();
        state.learn(found);
        state.differences(found)
    };
    let all: Vec<String> = may_be.iter().map(differs).collect();
    if all.iter().all(|differs| !differs.is_empty()) {
        bail!("the card does not have the acknowledged state:\n{}", all.join("nor:\n"));
    }
    Ok(())
}

fn end(place: &Place, before: &Remains) -> Result<&'static str> {
    let down = place.esw(&["down"])?;
    if !down.succeeded() {
        bail!("esw down: {}", down.describe());
    }
    kernel::wait_for_nothing_beyond(before, Duration::from_secs(10))
        .map_err(|left| anyhow!("after esw down, {left}"))?;
    for entry in fs::read_dir(place.sockets()).into_iter().flatten().flatten() {
        if entry.file_type()?.is_socket() {
            bail!("after esw down {} is left", entry.path().display());
        }
    }
    Ok("")
}
