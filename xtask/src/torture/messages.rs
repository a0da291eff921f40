//! Hostile messages on the control socket: random, modified, cut, huge, nested; and many connections.
//!
//! After each round the daemon lives, answers another client within the usual time limit, and has not grown beyond a
//! bound. Messages of a user without rights do not change the card. While one user has all the connections that a user can
//! have, root is still answered.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use rustix::net::{self, RecvFlags, SendFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::kernel;
use super::model::{self, CONFIG, eswitch};
use super::place::Place;
use super::random::Random;
use super::rounds::Rounds;
use super::wire::{self, Client, Family, NoAnswer};

/// Messages of a round.
const MESSAGES: usize = 3_000;
/// Connections that they are sent over.
const CONNECTIONS: usize = 8;
/// How much the daemon may grow, in KiB. This includes a thread and two buffers for each recent connection.
const GROWTH: u64 = 128 * 1024;
/// The connections that one user tries to make.
const MANY: usize = 2_000;
/// The user without rights.
const USER: u32 = 65_534;

/// How messages are made.
const SORTS: [&str; 5] = ["random bytes", "changed messages", "cut messages", "huge messages", "nested messages"];

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).context("the limit of descriptors")?;
    let place = Place::new(&rounds.esw, "messages", &format!("kind = \"memory\"\nsocket_mode = \"0666\"\n{CONFIG}"))?;
    let (mut daemon, mut had) = begin(&place)?;
    while let Some((seed, mut random)) = rounds.next() {
        let (what, outcome) = match random.below(12) {
            0 => ("2,000 connections of one user".to_owned(), many(&place)),
            n => {
                let (sort, by_user) = (SORTS[random.below(SORTS.len())], n % 3 == 0);
                if by_user {
                    // A message that root sent before may still be executed.
                    (daemon, had) = begin(&place)?;
                }
                let who = if by_user { "a user without rights" } else { "root" };
                (format!("{sort} of {who}"), flood(&place, &mut random, sort, by_user))
            }
        };
        let outcome = outcome.and_then(|end| {
            let grown = kernel::resident(daemon).unwrap_or(0).saturating_sub(had);
            match kernel::lives(daemon) {
                false => bail!("the daemon has died"),
                true if grown > GROWTH => bail!("the daemon has grown by {grown} KiB"),
                true => Ok(end),
            }
        });
        let log = |error: anyhow::Error| format!("{error:#}\n{}", super::kills::last_of_log(&place));
        if !rounds.tally.tried(&what, seed, outcome.map_err(log)) {
            (daemon, had) = begin(&place)?;
        }
    }
    place.clear()
}

/// Starts a new daemon; returns its process ID and its resident memory in KiB.
fn begin(place: &Place) -> Result<(u32, u64)> {
    place.clear()?;
    let daemon = place.must_up(&["--fresh"])?;
    look(place)?;
    Ok((daemon, kernel::resident(daemon).context("the daemon's memory")?))
}

/// Connects as root, or as the user without rights.
fn connect(path: &Path, by_user: bool, n: usize) -> std::io::Result<Vec<OwnedFd>> {
    if by_user { wire::connect_as(USER, path, n) } else { (0..n).map(|_| wire::connect(path)).collect() }
}

/// Queries the card as root. A refusal for a part of it is an answer, too.
fn look(place: &Place) -> Result<Option<model::State>> {
    match place.client().and_then(|mut client| model::observe(&mut client)) {
        Ok((state, _)) => Ok(Some(state)),
        Err(NoAnswer::Refused(..)) => Ok(None),
        Err(error) => bail!("the request of another client: {error}"),
    }
}

fn flood(place: &Place, random: &mut Random, sort: &str, by_user: bool) -> Result<&'static str> {
    let before = look(place)?;
    let client = place.client().map_err(|error| anyhow!("{error}"))?;
    let valid = model::examples(&client);
    let mut connections = connect(&place.socket(), by_user, CONNECTIONS)?;
    let mut buffer = vec![0; 256 * 1024];
    for n in 0..MESSAGES {
        let bytes = make(sort, &valid, random);
        if ends(&client, &bytes) {
            continue;
        }
        let at = n % CONNECTIONS;
        let sent = net::send(&connections[at], &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        match sent {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::MSGSIZE) => {}
            // The daemon has closed the connection: connect again.
            Err(_) => connections[at] = connect(&place.socket(), by_user, 1)?.pop().context("a connection")?,
        }
        // Half of them do not read their answers.
        if at.is_multiple_of(2) {
            while matches!(net::recv(&connections[at], &mut buffer[..], RecvFlags::DONTWAIT), Ok((_, 1..))) {}
        }
    }
    let after = look(place)?;
    if by_user && before != after {
        let differs = before.zip(after).map(|(before, after)| before.differences(&after));
        bail!("a user without rights has changed the card: {differs:?}");
    }
    Ok("")
}

/// Whether a datagram is a request to end the daemon, which root may send.
fn ends(client: &Client, mut bytes: &[u8]) -> bool {
    let family = client.number_of(Family::Eswitch).to_ne_bytes();
    while let Some(head) = bytes.first_chunk::<17>() {
        if head[4..6] == family && head[16] == eswitch::END {
            return true;
        }
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        bytes = bytes.get(length.next_multiple_of(4).max(16)..).unwrap_or_default();
    }
    false
}

fn make(sort: &str, valid: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = random.one_of(valid).clone();
    match sort {
        "random bytes" => {
            let length = random.below(2_000);
            bytes = (0..length).map(|_| random.any() as u8).collect();
            // Some begin like a message.
            if random.one_in(2) && length > 20 {
                bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
                let head: Vec<u8> = random.one_of(valid)[4..20].to_vec();
                bytes[4..20].copy_from_slice(&head);
            }
        }
        "changed messages" => {
            for _ in 0..1 + random.below(4) {
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = *random.one_of(&[0, 1, 4, 0x7f, 0x80, 0xff]),
                    _ => {
                        let other = random.one_of(valid);
                        let from = random.below(other.len());
                        bytes.splice(at..at, other[from..].iter().copied());
                        let length = (bytes.len() as u32).to_ne_bytes();
                        bytes[..4].copy_from_slice(&length);
                    }
                }
            }
        }
        "cut messages" => bytes.truncate(random.below(bytes.len() + 1)),
        "huge messages" => {
            let length = 1 << (12 + random.below(6));
            bytes.resize(length, random.any() as u8);
            bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
            // Text or attributes of the greatest length.
            if random.one_in(2) && length > 24 {
                bytes[20..22].copy_from_slice(&((length - 20).min(0xffff) as u16).to_ne_bytes());
            }
        }
        _ => {
            let mut inner = wire::Attributes::default();
            for _ in 0..random.below(2_000) {
                inner = wire::Attributes::default().nest(random.below(200) as u16, &inner);
            }
            bytes.truncate(20);
            bytes.extend(inner.0);
            let length = (bytes.len() as u32).to_ne_bytes();
            bytes[..4].copy_from_slice(&length);
        }
    }
    bytes
}

/// One user takes all connections. Root still gets an answer, and so does everybody after they are closed.
fn many(place: &Place) -> Result<&'static str> {
    let mut held = Vec::new();
    for _ in 0..MANY / 100 {
        // The listen queue is short.
        match connect(&place.socket(), true, 100) {
            Ok(more) => held.extend(more),
            Err(_) => break,
        }
    }
    let count = held.len();
    let asked = place.client().and_then(|mut client| model::observe(&mut client));
    let refused = asked.err().map(|error| format!("{count} connections of one user, and the request of root: {error}"));
    drop(held);
    let until = std::time::Instant::now() + wire::PATIENCE;
    while place.client().is_err() {
        if std::time::Instant::now() > until {
            bail!("{count} connections have ended, and nobody can connect");
        }
        thread::sleep(std::time::Duration::from_millis(20));
    }
    match refused {
        None => Ok(""),
        Some(refused) => bail!("{refused}"),
    }
}
