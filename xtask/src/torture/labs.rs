//! SIGKILL of `esw exec` at random moments: before its program has started, and while it runs.
//!
//! Nothing may be left: no process, no mount, no socket, and the daemon has as many descriptors as before. The programs
//! ignore SIGTERM, wait for something, or have sockets that the lab serves.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::kernel::{self, Remains};
use super::model::{self, CONFIG};
use super::place::Place;
use super::rounds::Rounds;

/// The longest time after a kill until nothing may be left.
const GONE: Duration = Duration::from_secs(10);

/// The programs, each with a description. None leaves a process in the background by itself.
const PROGRAMS: [(&str, &[&str]); 5] = [
    ("sleep", &["sleep", "1000"]),
    ("a shell that ignores signals", &["sh", "-c", "trap '' TERM INT HUP; exec sleep 1000"]),
    ("ip monitor", &["ip", "monitor", "link"]),
    ("devlink monitor", &["devlink", "monitor"]),
    ("ip link, again and again", &["sh", "-c", "trap '' TERM INT HUP; while :; do ip link > /dev/null; done"]),
];

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "labs", &format!("kind = \"linux\"\n{CONFIG}"))?;
    place.clear()?;
    let mut daemon = place.must_up(&["--fresh"])?;
    // The first lab makes shared mounts, which are allowed to stay.
    let first = place.esw(&["exec", "--", "ip", "link"])?;
    if !first.succeeded() {
        rounds.tally.skipped("all of it", format!("no lab can be made here: {}", first.describe()));
        return place.clear();
    }
    while let Some((seed, mut random)) = rounds.next() {
        let late = random.one_in(3);
        let delay = match late {
            true => Duration::from_millis(150 + random.below(250) as u64),
            false => Duration::from_micros(random.below(90_000) as u64),
        };
        let (name, program) = *random.one_of(&PROGRAMS);
        let what = if late { "kill while the program runs" } else { "kill while the lab is made" };
        let outcome = round(&place, daemon, program, delay);
        let outcome = outcome.map_err(|error| format!("{name}, killed after {} us: {error:#}", delay.as_micros()));
        if !rounds.tally.tried(what, seed, outcome) {
            place.clear()?;
            daemon = place.must_up(&["--fresh"])?;
        }
    }
    place.clear()
}

fn round(place: &Place, daemon: u32, program: &[&str], delay: Duration) -> Result<&'static str> {
    let had = descriptors_at_rest(daemon)?;
    let before = Remains::now();
    let mut command = place.command(&[&["exec", "--"], program].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    thread::sleep(delay);
    let had_started = kernel::processes().iter().any(|process| {
        let words: Vec<&str> = process.command.split(' ').collect();
        // One of the shells becomes something else.
        words.first().is_some_and(|word| *word == program[0] || *word == "sleep")
    });
    if let Some(status) = child.try_wait()? {
        bail!("esw exec ended by itself: {status}");
    }
    child.kill()?;
    child.wait()?;
    kernel::wait_for_nothing_beyond(&before, GONE).map_err(|left| anyhow!("{left}"))?;
    wait_for_descriptors(daemon, had)?;
    let mut client = place.client().map_err(|error| anyhow!("{error}"))?;
    model::observe(&mut client).map_err(|error| anyhow!("{error}"))?;
    Ok(if had_started { "the program had started" } else { "the program had not started" })
}

/// The number of the daemon's descriptors, when it does not change any more.
fn descriptors_at_rest(daemon: u32) -> Result<usize> {
    let mut had = 0;
    for _ in 0..500 {
        let now = kernel::descriptors(daemon);
        if now != 0 && now == had {
            return Ok(now);
        }
        had = now;
        thread::sleep(Duration::from_millis(20));
    }
    bail!("the daemon, process {daemon}, has {had} descriptors, and another number a moment later")
}

/// Waits until the daemon has no more descriptors than before.
fn wait_for_descriptors(daemon: u32, had: usize) -> Result<()> {
    let until = Instant::now() + GONE;
    loop {
        let now = kernel::descriptors(daemon);
        if now != 0 && now <= had {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("the daemon has {now} descriptors and had {had}: connections are left");
        }
        thread::sleep(Duration::from_millis(20));
    }
}
