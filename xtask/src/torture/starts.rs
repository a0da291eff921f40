//! Several simultaneous starts of one card, sometimes with an `esw down` among them, sometimes over what a kill has left.
//!
//! When all have ended, one daemon exists and its socket leads to it, or, if there was an `esw down` among them, neither may
//! exist. A daemon without a socket, a socket without its daemon, and a start that reports success without being up are
//! failures. A refused start has a non-zero exit status and prints a message.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};

use super::kernel;
use super::model::CONFIG;
use super::place::{Ended, Place};
use super::random::Random;
use super::rounds::Rounds;
use super::wire::NoAnswer;

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "starts", &format!("kind = \"memory\"\n{CONFIG}"))?;
    while let Some((seed, mut random)) = rounds.next() {
        let (with_end, after_kill) = (random.one_in(4), random.one_in(3));
        let what = match (with_end, after_kill) {
            (false, false) => "starts at once",
            (false, true) => "starts at once after a kill",
            (true, false) => "starts and an end at once",
            (true, true) => "starts and an end at once after a kill",
        };
        let outcome = round(&place, &mut random, with_end, after_kill);
        rounds.tally.tried(what, seed, outcome.map(|()| "").map_err(|error| format!("{error:#}")));
        if !kernel::processes().is_empty() || place.socket().exists() {
            place.clear()?;
        }
    }
    place.clear()
}

fn round(place: &Place, random: &mut Random, with_end: bool, after_kill: bool) -> Result<()> {
    if after_kill {
        let daemon = place.must_up(&[])?;
        place.kill(daemon)?;
    }
    let starts = 2 + random.below(5);
    // All at the same moment, or one during a step of another.
    let within = *random.one_of(&[0, 500, 3_000, 10_000]);
    let delays: Vec<Duration> = (0..=starts).map(|_| Duration::from_micros(random.below(within) as u64)).collect();
    let (started, ended) = thread::scope(|scope| {
        let start = |delay: &Duration| {
            let delay = *delay;
            scope.spawn(move || {
                thread::sleep(delay);
                place.up(&[])
            })
        };
        let starts: Vec<_> = delays[1..].iter().map(start).collect();
        let end = with_end.then(|| {
            thread::sleep(delays[0]);
            place.esw(&["down"])
        });
        let starts: Vec<_> = starts.into_iter().map(|start| start.join()).collect();
        (starts, end)
    });
    let mut told: Vec<Ended> = Vec::new();
    for start in started {
        told.push(start.map_err(|_| anyhow!("a thread panicked"))??);
    }
    let mut all: Vec<String> = told.iter().map(|ended| format!("a start: {}", ended.describe().trim_end())).collect();
    if let Some(ended) = ended.transpose()? {
        if let Some(fault) = ended.fault() {
            bail!("esw down: {fault}");
        }
        all.push(format!("esw down: {}", ended.describe().trim_end()));
    }
    let all = all.join("\n");
    for ended in &told {
        if let Some(fault) = ended.fault() {
            bail!("{all}\na start: {fault}");
        }
        if !ended.succeeded() && ended.output.trim().is_empty() {
            bail!("{all}\na start is refused without a message");
        }
    }
    let up = told.iter().filter(|ended| ended.succeeded()).count();
    let daemons = kernel::processes();
    let listener = place.daemon();
    let socket = place.socket().exists();
    match (&daemons[..], &listener) {
        ([daemon], Ok(pid)) if daemon.pid == *pid => {}
        ([], Err(_)) if with_end && !socket => return Ok(()),
        _ => bail!("{all}\nprocesses: {daemons:?}\nsocket: {socket}\nlistener: {listener:?}"),
    }
    if up == 0 || (up > 1 && !with_end) {
        bail!("{all}\none daemon exists, and {up} starts report that they are up");
    }
    match place.client().and_then(|mut client| super::model::observe(&mut client)) {
        Ok(_) => {}
        Err(NoAnswer::Refused(errno, words)) => bail!("{all}\nit refuses to be queried: {errno}, {words}"),
        Err(error) => bail!("{all}\n{error}"),
    }
    let down = place.esw(&["down"])?;
    if !down.succeeded() || place.socket().exists() || !kernel::processes().is_empty() {
        bail!(
            "{all}\nesw down: {}\nleft: {:?}, socket {}",
            down.describe(),
            kernel::processes(),
            place.socket().exists()
        );
    }
    Ok(())
}
