//! Starts over damaged state.
//!
//! A card in memory is changed for a while, and the daemon is killed or ended. Each attempt then damages a copy of the
//! state directory. This module knows nothing about the format of the files. A start is
//!
//! - *recovered* if the card has the state that was acknowledged last;
//! - *refused* if it exits, does not panic, names `--fresh`, and every file is unchanged, byte for byte; then a start with
//!   `--fresh` must come up with the configured card, and the damaged contents must still be in some file;
//! - *wrong* otherwise: another state, a panic, a hang.
//!
//! Every copy that is not damaged must be recovered.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::kernel;
use super::model::{self, CONFIG, Change, Lately, State};
use super::place::{LIMIT, Place};
use super::random::Random;
use super::rounds::Rounds;

/// The number of rounds with copies of one state, after which another state is made.
const EACH: u64 = 40;
/// One copy in this number is not damaged.
const UNDAMAGED: usize = 8;
/// The unit of the page sizes of databases, in bytes.
const BLOCK: usize = 512;

type Files = BTreeMap<String, Vec<u8>>;

/// The files that a daemon left, and the state that they represent.
struct Left {
    files: Files,
    state: State,
}

/// Runs rounds until the time is over.
pub fn run(rounds: &mut Rounds) -> Result<()> {
    let place = Place::new(&rounds.esw, "databases", &format!("kind = \"memory\"\n{CONFIG}"))?;
    let mut left = None;
    while let Some((seed, mut random)) = rounds.next() {
        if rounds.number().is_multiple_of(EACH) || left.is_none() {
            left = Some(make(&place, &mut random).context("making a state to damage")?);
        }
        let Some(left) = &left else { continue };
        let (mut files, mut what) = (left.files.clone(), "not damaged");
        if !random.one_in(UNDAMAGED) {
            // A damage that changes nothing, such as a hole in zeros, does not count.
            for _ in 0..100 {
                what = damage(&mut files, &mut random);
                if files != left.files {
                    break;
                }
            }
        }
        let outcome = start(&place, left, &files, files != left.files)?;
        if !rounds.tally.tried(what, seed, outcome) {
            place.clear()?;
        }
    }
    place.clear()
}

/// Makes a state: requests changes, and ends the daemon.
fn make(place: &Place, random: &mut Random) -> Result<Left> {
    place.clear()?;
    let daemon = place.must_up(&["--fresh"])?;
    let told = |error| anyhow!("{error}");
    let mut client = place.client().map_err(told)?;
    let (mut state, _) = model::observe(&mut client).map_err(told)?;
    let mut lately = Lately::default();
    for _ in 0..2 + random.below(40) {
        let change = Change::any(&state, &lately, random);
        if matches!(change, Change::Bond(_)) {
            continue;
        }
        change.ask(&mut client, &mut state).map_err(|error| anyhow!("{change:?}: {error}"))?;
        lately.note(&change);
    }
    let (found, _) = model::observe(&mut client).map_err(told)?;
    let differs = state.differences(&found);
    ensure!(differs.is_empty(), "before any damage the card does not have the acknowledged state:\n{differs}");
    if random.one_in(2) {
        place.kill(daemon)?;
    } else {
        let ended = place.run(place.program(&["kill", &daemon.to_string()]), LIMIT)?;
        ensure!(ended.succeeded() && kernel::has_ended(daemon, LIMIT), "the daemon does not end on SIGTERM");
    }
    let mut files = kernel::files(&place.state)?;
    // A log is not state.
    files.retain(|name, bytes| !name.ends_with(".log") && !bytes.is_empty());
    ensure!(!files.is_empty(), "nothing is stored in {}", place.state.display());
    Ok(Left { files, state })
}

/// Damages one of the files; returns in what way.
fn damage(files: &mut Files, random: &mut Random) -> &'static str {
    let names: Vec<String> = files.keys().cloned().collect();
    let Some(bytes) = files.get_mut(random.one_of(&names)) else { return "not damaged" };
    let length = bytes.len();
    // The most important data of a database is in its first pages.
    let anywhere = |random: &mut Random| match random.below(3) {
        0 => random.below(length.min(8 * 4_096)),
        _ => random.below(length),
    };
    match random.below(8) {
        0 => {
            bytes.clear();
            "length 0"
        }
        1 => {
            bytes.truncate(anywhere(random));
            "truncated"
        }
        2 => {
            let more = 1 + random.below(3 * 4_096);
            let garbage = random.one_in(2);
            bytes.extend((0..more).map(|_| if garbage { random.any() as u8 } else { 0 }));
            "lengthened"
        }
        3 | 4 => {
            for _ in 0..1 + random.below(8) {
                bytes[anywhere(random)] ^= 1 << random.below(8);
            }
            "flipped bits"
        }
        5 => {
            let size = if random.one_in(2) { 4_096 } else { BLOCK };
            let (a, b) = (anywhere(random) / size * size, anywhere(random) / size * size);
            let (low, high) = (a.min(b), a.max(b));
            if low + size <= high && high + size <= length {
                let (left, right) = bytes.split_at_mut(high);
                left[low..low + size].swap_with_slice(&mut right[..size]);
            }
            "swapped blocks"
        }
        6 => {
            let from = anywhere(random) / BLOCK * BLOCK;
            let to = (from + BLOCK * (1 + random.below(16))).min(length);
            bytes[from..to].fill(0);
            "hole"
        }
        _ => {
            let from = anywhere(random);
            let to = (from + 1 + random.below(256)).min(length);
            bytes[from..to].iter_mut().for_each(|byte| *byte = random.any() as u8);
            "overwritten"
        }
    }
}

/// Replaces the contents of the state directory by these files.
fn put(folder: &Path, files: &Files) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(path, bytes)?;
    }
    Ok(())
}

/// Starts over these files; returns how it ended, or what was wrong.
fn start(place: &Place, left: &Left, files: &Files, is_damaged: bool) -> Result<Result<&'static str, String>> {
    put(&place.state, files)?;
    let ended = place.up(&[])?;
    if ended.succeeded() {
        let found = ask_and_kill(place);
        return Ok(match found {
            Err(why) => Err(format!("it came up, and then: {why:#}")),
            Ok(found) => match left.state.differences(&found) {
                differs if differs.is_empty() => Ok("recovered"),
                differs => Err(format!("it came up without the state that was acknowledged last:\n{differs}")),
            },
        });
    }
    let now = kernel::files(&place.state)?;
    let was_let_be = |(name, bytes): (&String, &Vec<u8>)| now.get(name) == Some(bytes);
    let outcome = if let Some(fault) = ended.fault() {
        Err(fault)
    } else if !is_damaged {
        Err(format!("a state that is not damaged was refused: {}", ended.describe()))
    } else if !ended.output.contains("--fresh") {
        Err(format!("it was refused without naming `--fresh`: {}", ended.describe()))
    } else if let Some((name, _)) = files.iter().find(|file| !was_let_be(*file)) {
        Err(format!("it was refused, and {name} has changed: {}", ended.describe()))
    } else {
        Ok("refused")
    };
    let outcome = outcome.and_then(|end| afresh(place, files).map(|()| end).map_err(|why| format!("--fresh: {why:#}")));
    Ok(outcome)
}

/// Starts with `--fresh` over files that were refused.
fn afresh(place: &Place, files: &Files) -> Result<()> {
    let ended = place.up(&["--fresh"])?;
    ensure!(ended.succeeded(), "{}", ended.describe());
    let found = ask_and_kill(place)?;
    ensure!(found.vfs[0] == model::VFS && found.sf.is_empty() && found.leaves.is_empty(), "it is not new: {found:?}");
    let now = kernel::files(&place.state)?;
    for (name, bytes) in files {
        ensure!(
            bytes.is_empty() || now.values().any(|is| is == bytes),
            "the contents of {name} are in no file any more"
        );
    }
    Ok(())
}

/// Returns the state of the card, and ends its daemon.
fn ask_and_kill(place: &Place) -> Result<State> {
    let daemon = place.daemon().context("the process that listens at the control socket")?;
    let found = place.client().and_then(|mut client| model::observe(&mut client)).map_err(|error| anyhow!("{error}"));
    place.kill(daemon)?;
    Ok(found?.0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_way_of_damage_comes_up_and_stays_within_the_file() {
        let mut random = Random::new(3);
        let whole: Files = [("a".to_owned(), (0..20_000u32).map(|n| n as u8).collect())].into();
        let mut ways = BTreeSet::new();
        for _ in 0..500 {
            let mut files = whole.clone();
            ways.insert(damage(&mut files, &mut random));
            assert!(files["a"].len() <= 20_000 + 3 * 4_096);
        }
        assert_eq!(ways.len(), 7, "{ways:?}");
    }

    #[test]
    fn a_file_of_one_byte_is_damaged_without_a_panic() {
        let mut random = Random::new(3);
        for _ in 0..100 {
            let mut files: Files = [("a".to_owned(), vec![7])].into();
            damage(&mut files, &mut random);
        }
    }
}
