//! State and log on a file system that becomes full again and again.
//!
//! Changes are requested while a file takes nearly all the room, each time with another remainder. Each must be
//! answered: acknowledged, or refused with an error. When there is room again a change must be acknowledged without a
//! restart. Then the daemon is killed and started: nothing that was acknowledged may be lost. A refused change may have been
//! executed; its answer says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, anyhow, bail};

use crate::workspace::shell;

use super::kernel;
use super::model::{self, CONFIG, Change, VFS};
use super::place::{LIMIT, Place};
use super::random::Random;
use super::rounds::Rounds;
use super::wire::{Client, NoAnswer};

/// The file system's size: enough for a log of some thousand lines and a small database.
const SIZE: &str = "12m";

/// The most SFs: each makes the stored state longer.
const SFS: u32 = 200;

/// The states that the card may have.
#[derive(Default)]
struct MayBe {
    /// The addresses that a VF may have, by VF: the one that was acknowledged last, and those refused since.
    addresses: BTreeMap<u32, Vec<[u8; 6]>>,
    /// The SFs that were acknowledged.
    sfs: BTreeSet<u32>,
    /// The SFs that were requested so far.
    asked: u32,
}

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "disks", &format!("kind = \"memory\"\n{CONFIG}"))?;
    fs::create_dir_all(&place.state)?;
    shell(&format!("mount -t tmpfs -o size={SIZE} tmpfs {}", place.state.display()))?;
    while let Some((seed, mut random)) = rounds.next() {
        let (what, outcome) = if random.one_in(4) {
            ("a pipe that is closed for a log", closed_pipe(&place, &mut random))
        } else {
            ("a full disk for state and log", full(&place, &mut random))
        };
        rounds.tally.tried(what, seed, outcome.map_err(|error| format!("{error:#}")));
        place.clear()?;
    }
    shell(&format!("umount {}", place.state.display())).map(drop)
}

/// Fills the file system up to a small remainder.
fn fill(place: &Place, spare: usize) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(place.state.join("ballast"))?;
    for block in [1 << 16, 1 << 12] {
        while file.write_all(&vec![1; block]).is_ok() {}
    }
    let length = file.metadata()?.len();
    file.set_len(length.saturating_sub(spare as u64)).context("the file that takes the room")
}

/// Requests another address of a VF, or another SF; returns whether it was acknowledged.
fn set(client: &mut Client, state: &mut model::State, random: &mut Random, may_be: &mut MayBe) -> Result<bool> {
    if may_be.asked < SFS && random.one_in(2) {
        may_be.asked += 1;
        let sf = may_be.asked;
        return match Change::SfAdd(sf).ask(client, state) {
            Ok(()) => Ok(may_be.sfs.insert(sf)),
            Err(NoAnswer::Refused(..)) => Ok(false),
            Err(error) => bail!("SF {sf}: {error}"),
        };
    }
    let vf = random.below(VFS.into()) as u32;
    let [a, b, c, d, ..] = random.any().to_ne_bytes();
    let mac = [0x02, 0x66, a, b, c, d];
    match Change::VfAddress(vf, mac).ask(client, state) {
        Ok(()) => {
            may_be.addresses.insert(vf, vec![mac]);
            Ok(true)
        }
        Err(NoAnswer::Refused(..)) => {
            may_be.addresses.entry(vf).or_default().push(mac);
            Ok(false)
        }
        Err(error) => bail!("an address: {error}"),
    }
}

fn full(place: &Place, random: &mut Random) -> Result<&'static str> {
    let daemon = place.must_up(&["--fresh"])?;
    let told = |error| anyhow!("{error}");
    let mut client = place.client().map_err(told)?;
    let (mut state, _) = model::observe(&mut client).map_err(told)?;
    let addresses = state.vf.iter().map(|(vf, function)| (*vf, vec![function.address])).collect();
    let mut may_be = MayBe { addresses, ..MayBe::default() };
    let mut refused = false;
    for _ in 0..1 + random.below(4) {
        fill(place, random.below(8) * 2_048)?;
        for _ in 0..1 + random.below(60) {
            refused |= !set(&mut client, &mut state, random, &mut may_be)?;
        }
        // Another client gets an answer, too, even if only that the change cannot be stored.
        match place.client().and_then(|mut other| model::observe(&mut other)) {
            Ok(_) | Err(NoAnswer::Refused(..)) => {}
            Err(error) => bail!("another connection: {error}"),
        }
        fs::remove_file(place.state.join("ballast"))?;
        if !set(&mut client, &mut state, random, &mut may_be)? {
            bail!("there is room again, and a change is still refused: {}", super::kills::last_of_log(place));
        }
    }
    let now_full = random.one_in(2);
    if now_full {
        fill(place, 0)?;
    }
    place.kill(daemon)?;
    if now_full {
        // A start on a full disk may be refused.
        let ended = place.up(&[])?;
        if let Some(fault) = ended.fault() {
            bail!("a start on a full disk: {fault}");
        }
        fs::remove_file(place.state.join("ballast"))?;
        if ended.succeeded() {
            place.kill(place.daemon().context("the process that listens at the control socket")?)?;
        }
    }
    let daemon = place.must_up(&[]).context("the start afterwards")?;
    let mut client = place.client().map_err(told)?;
    let (found, _) = model::observe(&mut client).map_err(told)?;
    if let Some(sf) = may_be.sfs.iter().find(|sf| !found.sf.contains_key(*sf)) {
        bail!("SF {sf} was acknowledged, and does not exist; these SFs exist: {:?}", found.sf.keys());
    }
    for (vf, addresses) in &may_be.addresses {
        let is = found.vf.get(vf).map(|function| function.address).unwrap_or_default();
        if !addresses.contains(&is) {
            bail!(
                "VF {vf} has address {is:x?}; the last that was acknowledged and those refused since: {addresses:x?}"
            );
        }
    }
    place.kill(daemon)?;
    Ok(if refused { "with refusals" } else { "without refusals" })
}

/// The daemon's standard error is a pipe whose other end is closed.
fn closed_pipe(place: &Place, random: &mut Random) -> Result<&'static str> {
    let mut command = place.command(&["up", "--daemon", "--fresh", "--config", "config.toml"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let outcome = (|| {
        let mut tries = 0;
        while place.daemon().is_err() {
            tries += 1;
            if tries > 3_000 {
                bail!("it does not come up");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let told = |error| anyhow!("{error}");
        let mut client = place.client().map_err(told)?;
        let (mut state, _) = model::observe(&mut client).map_err(told)?;
        drop((child.stdout.take(), child.stderr.take()));
        let mut may_be = MayBe::default();
        for _ in 0..1 + random.below(10) {
            if !set(&mut client, &mut state, random, &mut may_be)? {
                bail!("a change is refused when nobody reads the log");
            }
        }
        let ended = place.esw(&["down"])?;
        if !ended.succeeded() || !kernel::has_ended(child.id(), LIMIT) {
            bail!("esw down: {}", ended.describe());
        }
        Ok("")
    })();
    let _ = child.kill();
    let _ = child.wait();
    outcome
}
