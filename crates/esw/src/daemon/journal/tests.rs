use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use eswitch::{Agreed, AgreedPf, PfIndex};
use lockdep::{Domain, OnReport, Unlocked};

use super::*;
use crate::daemon::folders::Temporary;

/// A folder of a test's own with the files of a journal.
struct Folder(Temporary);

/// A journal whose calls are each a thread's of a domain that checks the order of locks.
struct Opened {
    journal: Journal,
    domain: Arc<Domain>,
}

impl Opened {
    fn with<R>(&self, f: impl FnOnce(&Journal, &mut Locked<'_, Unlocked>) -> R) -> R {
        lockdep::enter(&self.domain, "test", |cx| f(&self.journal, cx))
    }

    fn last(&self) -> Option<Stored> {
        self.with(|journal, cx| journal.kept.lock_leaf(cx).last.clone())
    }

    fn store(&self, config: &CardConfig, collect: impl FnOnce() -> AgreedPart) -> Result<bool> {
        self.store_part(config, || Part { agreed: collect(), server: None })
    }

    fn store_part(&self, config: &CardConfig, collect: impl FnOnce() -> Part) -> Result<bool> {
        self.with(|journal, cx| journal.store(cx, config, |_| collect()))
    }

    fn catch_up(&self) -> Result<bool> {
        self.with(Journal::catch_up)
    }

    fn forget(&self) -> Result<()> {
        self.with(Journal::forget)
    }
}

fn open(folder: &Path, fresh: bool) -> Result<Opened> {
    let (journal, found) = Journal::open(Journal::found(folder, "x", fresh)?)?;
    let opened = Opened { journal, domain: Domain::checked(OnReport::Panic) };
    assert_eq!(opened.last(), found);
    Ok(opened)
}

impl Folder {
    fn new() -> Self {
        Self(Temporary::new("journal"))
    }

    fn open(&self) -> Result<Opened> {
        open(self.0.path(), false)
    }

    /// Every file there is, by name.
    fn content(&self) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> =
            entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect();
        files.sort();
        files
    }

    /// Makes its files these, and no others.
    fn fill(&self, files: &[(String, Vec<u8>)]) {
        for (name, _) in self.content() {
            fs::remove_file(self.0.path().join(name)).unwrap();
        }
        for (name, bytes) in files {
            fs::write(self.0.path().join(name), bytes).unwrap();
        }
    }
}

fn config() -> CardConfig {
    CardConfig { pfs: 2, ..CardConfig::default() }
}

/// A PF as it is agreed, which is told from others by its number of the host's VFs.
fn pf(index: u8, mark: u64) -> AgreedPf {
    let address = config().pf_address(PfIndex(index)).to_string();
    let pci = serde_json::json!({"driver_override": null, "autoprobe": true, "removed": false});
    let pf = serde_json::json!({"address": address, "pci": pci, "host_vfs": mark, "bound": null});
    serde_json::from_value(pf).unwrap()
}

fn part(pfs: Vec<AgreedPf>) -> AgreedPart {
    AgreedPart { pfs, ..AgreedPart::default() }
}

fn all(mark: u64) -> AgreedPart {
    AgreedPart { modules: Some((true, Vec::new())), esw_multiport: Some(false), pfs: vec![pf(0, mark), pf(1, mark)] }
}

fn agreed(marks: [u64; 2]) -> Agreed {
    let pfs = vec![pf(0, marks[0]), pf(1, marks[1])];
    Agreed { core: true, modules: Vec::new(), esw_multiport: false, pfs }
}

fn stored(marks: [u64; 2]) -> Option<Stored> {
    Some(Stored { config: config(), agreed: agreed(marks), kept: ServerState::default() })
}

/// What a server keeps of a trap that was set.
fn server(action: u8) -> ServerState {
    let traps = serde_json::json!([[[{"pci": "0000:08:00.0"}, "dmac_filter"], action]]);
    let settings = serde_json::json!({"traps": traps, "reporters": [], "params": []});
    serde_json::from_value(serde_json::json!({ "settings": settings })).unwrap()
}

#[test]
fn what_the_server_keeps_is_stored_with_any_part_and_forgotten_with_the_rest() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    assert!(journal.store(&config(), || all(1)).unwrap());
    let set = |action| Part { server: Some(server(action)), ..Part::default() };
    assert!(journal.store_part(&config(), || set(1)).unwrap());
    assert!(!journal.store_part(&config(), || set(1)).unwrap(), "it is on the disk already");
    assert!(journal.store(&config(), || part(vec![pf(1, 2)])).unwrap());
    drop(journal);
    let journal = folder.open().unwrap();
    assert_eq!(journal.last().unwrap().kept, server(1), "a part without it leaves it");
    journal.store(&config(), || all(1)).unwrap();
    assert_eq!(journal.last().unwrap().kept, server(1), "nor does a start");
    journal.forget().unwrap();
    journal.store(&config(), || all(1)).unwrap();
    assert!(journal.last().unwrap().kept.is_empty());
}

#[test]
fn what_was_stored_last_is_found_and_nothing_once_it_is_forgotten() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    assert_eq!(journal.last(), None);
    assert!(journal.store(&config(), || all(1)).unwrap());
    assert!(!journal.store(&config(), || all(1)).unwrap(), "it is on the disk already");
    assert!(journal.store(&config(), || part(vec![pf(1, 2)])).unwrap());
    let in_use = folder.open().err().unwrap();
    assert!(format!("{in_use:#}").contains("another daemon keeps its state there"), "{in_use:#}");
    drop(journal);
    let journal = folder.open().unwrap();
    assert_eq!(journal.last(), stored([1, 2]));
    journal.forget().unwrap();
    drop(journal);
    assert_eq!(folder.open().unwrap().last(), None);
    assert_eq!(folder.content().len(), 3, "two copies and a lock");
}

#[test]
fn files_are_their_owners_alone_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    journal.store(&config(), || all(1)).unwrap();
    for (name, _) in folder.content() {
        let mode = fs::metadata(folder.0.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
}

#[test]
fn who_collects_slowly_holds_up_nobody_and_undoes_nothing() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    journal.store(&config(), || all(0)).unwrap();
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel();
    thread::scope(|scope| {
        let journal = &journal;
        let slow = scope.spawn(move || {
            let collect = || {
                // It has looked at the first PF, and waits for the second.
                let first = pf(0, 0);
                begun.send(()).unwrap();
                may_go_on.recv().unwrap();
                part(vec![first, pf(1, 9)])
            };
            journal.store(&config(), collect).unwrap()
        });
        has_begun.recv().unwrap();
        let (done, is_done) = channel();
        scope.spawn(move || done.send(journal.store(&config(), || part(vec![pf(0, 5)])).unwrap()));
        // The time-out is there for a test that would otherwise hang.
        let answered = is_done.recv_timeout(Duration::from_secs(60));
        go_on.send(()).unwrap();
        assert_eq!(answered, Ok(true), "a command to one PF waits for another's");
        slow.join().unwrap();
    });
    assert_eq!(journal.last(), stored([5, 9]), "what was stored of the first PF meanwhile stays");
}

#[test]
fn a_write_that_fails_is_made_up_for_by_the_next() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    journal.store(&config(), || all(1)).unwrap();
    // More than there is room for, so that new files are made.
    let with_modules = |modules| AgreedPart { modules: Some((true, modules)), ..AgreedPart::default() };
    let large = |n: usize| with_modules(vec!["m".repeat(20_000 << (3 * n))]);
    for (n, name) in ["x.state.new", "x.state-copy.new"].iter().enumerate() {
        // A folder in its way: whoever runs this, it cannot be removed as a file.
        let in_the_way = folder.0.path().join(name);
        fs::create_dir(&in_the_way).unwrap();
        let error = journal.store(&config(), || large(n)).unwrap_err();
        assert!(format!("{error:#}").contains(name), "{error:#}");
        assert!(journal.catch_up().is_err(), "it is still in the way");
        for mark in 2..5 {
            assert!(journal.store(&config(), || part(vec![pf(0, mark)])).is_err(), "it is not all on the disk");
        }
        // What there is room for needs no new file.
        assert!(journal.store(&config(), || with_modules(Vec::new())).unwrap());
        // Whoever were to start now would find it.
        let copy = Folder::new();
        for file in ["x.state", "x.state-copy", "x.lock"] {
            fs::copy(folder.0.path().join(file), copy.0.path().join(file)).unwrap();
        }
        assert_eq!(copy.open().unwrap().last(), stored([4, 1]));
        assert!(journal.store(&config(), || part(vec![pf(0, 7)])).unwrap());
        assert!(journal.store(&config(), || large(n)).is_err());
        fs::remove_dir(&in_the_way).unwrap();
        assert!(journal.catch_up().unwrap());
        assert!(!journal.catch_up().unwrap());
        journal.store(&config(), || with_modules(Vec::new())).unwrap();
    }
    drop(journal);
    assert_eq!(folder.open().unwrap().last(), stored([7, 1]));
}

#[test]
fn a_lock_that_was_damaged_says_again_what_was_written_last() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    journal.store(&config(), || all(1)).unwrap();
    let old = folder.content();
    fs::write(folder.0.path().join("x.lock"), "anything".repeat(99)).unwrap();
    journal.store(&config(), || all(2)).unwrap();
    drop(journal);
    for (name, bytes) in old.iter().filter(|file| file.0 != "x.lock") {
        fs::write(folder.0.path().join(name), bytes).unwrap();
    }
    let error = format!("{:#}", folder.open().err().unwrap());
    assert!(error.contains("older than what was agreed last (write 1 of 2)"), "{error}");
}

#[test]
fn files_that_somebody_takes_away_are_made_again() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    journal.store(&config(), || all(1)).unwrap();
    fs::remove_file(folder.0.path().join("x.state")).unwrap();
    fs::rename(folder.0.path().join("x.state-copy"), folder.0.path().join("elsewhere")).unwrap();
    journal.store(&config(), || all(2)).unwrap();
    drop(journal);
    assert_eq!(folder.open().unwrap().last(), stored([2, 2]));
}

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    fn range(&mut self, end: usize) -> Range<usize> {
        let (a, b) = (self.below(end + 1), self.below(end + 1));
        a.min(b)..a.max(b)
    }
}

/// Some bytes of a file; every other time of those that a write has written.
fn some(random: &mut Random, length: usize) -> Range<usize> {
    if random.below(2) == 0 || length < 2 * PLACE {
        return random.range(length);
    }
    let Range { start, end } = random.range(1_500);
    let at = random.below(2) * PLACE;
    at + start..at + end
}

/// Where the second place of a file begins.
const PLACE: usize = 16 << 10;

/// Damages a file's content as disks, file systems and people do.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 => bytes.clear(),
        2 => bytes.resize(bytes.len() + 1 + random.below(8192), 0),
        3 => {
            let more: Vec<u8> = (0..1 + random.below(100)).map(|_| random.next() as u8).collect();
            bytes.extend(more);
        }
        4 => {
            for _ in 0..1 + random.below(8) {
                let at = some(random, bytes.len()).start.min(bytes.len() - 1);
                bytes[at] ^= 1 << random.below(8);
            }
        }
        5 => {
            // Two pages in each other's place.
            let size = [16, 64, 512, 4096][random.below(4)].min(bytes.len() / 2);
            let (a, b) = (random.below(bytes.len() / size), random.below(bytes.len() / size));
            for at in 0..size {
                bytes.swap(a * size + at, b * size + at);
            }
        }
        6 => {
            let hole = some(random, bytes.len());
            bytes[hole].fill(0);
        }
        _ => {
            let range = some(random, bytes.len());
            bytes[range].fill_with(|| random.next() as u8);
        }
    }
}

/// What came of trials.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figure {
    recovered: u32,
    refused: u32,
    wrong: u32,
}

/// Opens what is in a folder, and says what came of it: nothing but `expected` may come up, what is refused stays as
/// it is and names the remedy, and `--fresh` has a card begin whatever there is.
fn try_to_open(folder: &Folder, expected: &Option<Stored>, figure: &mut Figure) {
    let before = folder.content();
    let refused = match folder.open() {
        Ok(journal) if journal.last() == *expected => {
            figure.recovered += 1;
            return;
        }
        Ok(_) => {
            figure.wrong += 1;
            return;
        }
        Err(error) => format!("{error:#}"),
    };
    figure.refused += 1;
    assert!(refused.contains("--fresh"), "{refused}");
    let is_lock = |file: &&(String, Vec<u8>)| file.0 == "x.lock";
    let after = folder.content();
    let without_lock =
        |files: &[(String, Vec<u8>)]| -> Vec<_> { files.iter().filter(|file| !is_lock(file)).cloned().collect() };
    assert_eq!(without_lock(&after), without_lock(&before), "{refused}");
    let journal = open(folder.0.path(), true).unwrap_or_else(|error| panic!("--fresh: {error:#}"));
    assert_eq!(journal.last(), None);
    journal.store(&config(), || all(99)).unwrap();
    drop(journal);
    assert_eq!(folder.open().unwrap().last(), stored([99, 99]));
    let kept = folder.content();
    for (name, bytes) in without_lock(&before) {
        assert!(kept.iter().any(|(aside, kept)| aside.contains(".aside-") && *kept == bytes), "{name} is gone");
    }
}

/// How it is after some writes, and how it was after each before.
fn history(folder: &Folder) -> Vec<Vec<(String, Vec<u8>)>> {
    let journal = folder.open().unwrap();
    let contents = (1..=12u64).map(|mark| {
        journal.store(&config(), || all(mark)).unwrap();
        folder.content()
    });
    contents.collect()
}

#[test]
fn of_a_thousand_damaged_states_none_comes_up_as_another() {
    let folder = Folder::new();
    let history = history(&folder);
    let Some((now, before)) = history.split_last() else { panic!("there is a history") };
    let expected = stored([12, 12]);
    let mut random = Random(0x5eed_0012);
    let (mut one, mut both) = (Figure::default(), Figure::default());
    for trial in 0..1_000 {
        let mut files = now.clone();
        // In the order of names: the lock, the first copy, the second.
        let hit: &[usize] = [&[1][..], &[2], &[0], &[1, 2], &[0, 1], &[0, 1, 2]][random.below(6)];
        for at in hit {
            // Where the lock is damaged too, two old copies are as good as new ones: nothing says that they are not.
            match (random.below(10), hit.contains(&0) && hit.len() > 1) {
                (0, false) => files[*at].1 = before[random.below(before.len())][*at].1.clone(),
                _ => damage(&mut random, &mut files[*at].1),
            }
        }
        if hit == [1] || hit == [2] {
            // Or it is not there at all.
            if random.below(10) == 0 {
                files.remove(hit[0]);
            }
        }
        folder.fill(&files);
        let figure = if hit.contains(&1) && hit.contains(&2) { &mut both } else { &mut one };
        try_to_open(&folder, &expected, figure);
        assert_eq!((one.wrong, both.wrong), (0, 0), "trial {trial}: {hit:?}");
    }
    println!("one copy damaged: {one:?}; both: {both:?}");
    assert_eq!(one.refused, 0, "what one copy has lost the other has");
    assert!(both.refused > 0 && both.recovered > 0, "{both:?}");
}

#[test]
fn a_thousand_undamaged_copies_all_come_up() {
    let folder = Folder::new();
    for content in history(&folder).iter().cycle().take(1_000) {
        folder.fill(content);
        assert!(folder.open().unwrap().last().is_some());
        assert_eq!(folder.content(), *content, "nothing is written");
    }
}

#[test]
fn a_write_that_was_cut_short_anywhere_leaves_one_state_or_the_other() {
    let folder = Folder::new();
    let history = history(&folder);
    let [.., before, after] = &history[..] else { panic!("there is a history") };
    let half_written = |at: usize, length: usize| {
        let (old, new) = (&before[at].1, &after[at].1);
        let changed: Vec<usize> = (0..new.len()).filter(|byte| old[*byte] != new[*byte]).collect();
        let end = changed[(changed.len() - 1) * length / 20];
        [&new[..end], &old[end..]].concat()
    };
    for (copy, done) in [(1, 11), (2, 12)] {
        for length in 0..20 {
            let mut files = before.clone();
            files[1].1.clone_from(&after[1].1);
            files[copy].1 = half_written(copy, length);
            folder.fill(&files);
            let journal = folder.open().unwrap_or_else(|error| panic!("copy {copy}, {length}: {error:#}"));
            assert_eq!(journal.last(), stored([done, done]), "copy {copy}, {length}");
            drop(journal);
            let now = folder.content();
            assert_eq!(now[1].1, now[2].1, "they are made to agree at once");
            assert_eq!(now.len(), 3);
        }
    }
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let folder = Folder::new();
    let newer = frame::Frame { version: 3, room: 16_384, sequence: 2, body: b"?".to_vec() }.bytes();
    folder.fill(&[("x.state".to_owned(), newer.clone()), ("x.state-copy".to_owned(), newer)]);
    let error = format!("{:#}", folder.open().err().unwrap());
    assert!(error.contains("it is of version 3, and this program reads version 2"), "{error}");
    try_to_open(&folder, &None, &mut Figure::default());
}

/// Written by the version before, which was then killed.
const DATABASE: &[u8] = include_bytes!("../../../tests/fixtures/state-1.redb");

#[test]
fn the_database_of_the_version_before_is_converted_once() {
    let folder = Folder::new();
    let database = vec![("x.redb".to_owned(), DATABASE.to_vec())];
    folder.fill(&database);
    let journal = folder.open().unwrap();
    let first = journal.last().unwrap();
    let json = serde_json::to_value(&first.agreed).unwrap();
    assert_eq!(json["pfs"][0]["bound"]["vports"]["2"]["mac"], "00:11:22:33:44:55");
    assert_eq!(json["pfs"][0]["bound"]["sfs"]["0"]["sfnum"], 88);
    assert_eq!(json["pfs"][1]["bound"]["vfs"], 2);
    drop(journal);
    let names: Vec<String> = folder.content().into_iter().map(|file| file.0).collect();
    assert_eq!(names, ["x.aside-1", "x.lock", "x.state", "x.state-copy"]);
    assert_eq!(folder.open().unwrap().last(), Some(first.clone()));
    // The old version has run again meanwhile: which of the two counts is not for us to say.
    let mut files = folder.content();
    files.extend(database.clone());
    folder.fill(&files);
    let error = format!("{:#}", folder.open().err().unwrap());
    assert!(error.contains("both may be what was agreed last"), "{error}");
    // Killed before it was moved aside.
    folder.fill(&database);
    let mut files = Files::open(folder.0.path(), "x", false).unwrap();
    let read_from = Some(format!("{:016x}", frame::checksum(&[DATABASE])));
    let body = Body { stored: Some(first.clone()), read_from };
    files.write(serde_json::to_vec(&body).unwrap()).unwrap();
    drop(files);
    assert_eq!(folder.open().unwrap().last(), Some(first));
    assert_eq!(folder.content().len(), 4, "it is aside now");
}

#[test]
fn of_damaged_databases_of_the_version_before_none_comes_up_as_another() {
    let folder = Folder::new();
    folder.fill(&[("x.redb".to_owned(), DATABASE.to_vec())]);
    let expected = folder.open().unwrap().last();
    let mut random = Random(0x5eed_0001);
    let mut figure = Figure::default();
    for trial in 0..300 {
        let mut bytes = DATABASE.to_vec();
        damage(&mut random, &mut bytes);
        folder.fill(&[("x.redb".to_owned(), bytes)]);
        try_to_open(&folder, &expected, &mut figure);
        assert_eq!(figure.wrong, 0, "trial {trial}");
    }
    println!("databases of version 1: {figure:?}");
    assert!(figure.recovered > 0, "damage to what is not used refuses nothing: {figure:?}");
}

#[test]
#[ignore = "a measurement: how long a write takes, beside one of redb's"]
fn how_long_a_write_takes() {
    use redb::{Database, Durability, TableDefinition};
    const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("card");
    const WRITES: u32 = 200;
    let folder = std::env::temp_dir().join(format!("esw-journal-speed-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let own = open(&folder, false).unwrap();
    let redb = Database::create(folder.join("speed.redb")).unwrap();
    let write = |mark: u64| {
        let mut transaction = redb.begin_write().unwrap();
        transaction.set_durability(Durability::Immediate).unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            table.insert("config", &serde_json::to_vec(&config()).unwrap()[..]).unwrap();
            table.insert("agreed", &serde_json::to_vec(&agreed([mark, mark])).unwrap()[..]).unwrap();
        }
        transaction.commit().unwrap();
    };
    let mut times = [Vec::new(), Vec::new()];
    // By turns, as the machine has other things to do as well.
    for mark in 1..=u64::from(WRITES) {
        let began = Instant::now();
        own.store(&config(), || all(mark)).unwrap();
        times[0].push(began.elapsed());
        let began = Instant::now();
        write(mark);
        times[1].push(began.elapsed());
    }
    for (name, times) in ["two files", "redb"].iter().zip(&mut times) {
        times.sort();
        println!("{name}: median {:?}, 99th percentile {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    drop((own, redb));
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn only_where_a_card_begins_may_change() {
    let config = CardConfig::default();
    let begins = CardConfig { vfs: 3, mode: eswitch::Mode::Switchdev, ..config.clone() };
    assert!(ensure_fits(&config, &begins).is_ok());
    let error = ensure_fits(&config, &CardConfig { total_vfs: 9, ..config.clone() }).unwrap_err().to_string();
    assert!(error.contains("`total_vfs` is 9 and was 8"), "{error}");
}
