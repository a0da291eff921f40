//! Runs the fuzz targets' functions on their corpus and on small changes to it, the same each time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzzed::Mutator;

/// Every file of a target's corpus, in order.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "{}: {} files", folder.display(), paths.len());
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// Runs a function on each file, and on `rounds` changes of each. An input that fails is kept in the folder for
/// temporary files.
fn run(target: &str, rounds: usize, function: fn(&[u8])) {
    let files = corpus(target);
    let try_it = |what: &str, bytes: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| function(bytes))).is_err() {
            let kept = std::env::temp_dir().join(format!("{target}-{what}"));
            fs::write(&kept, bytes).unwrap();
            panic!("{target}: {what} fails; it is kept in {}", kept.display());
        }
    };
    for (path, bytes) in &files {
        try_it(&path.file_name().unwrap().to_string_lossy(), bytes);
    }
    // To try more: another seed, and a multiple of the rounds.
    let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut mutator = Mutator::new(given("FUZZ_SEED").unwrap_or(42));
    for round in 0..rounds * given("FUZZ_TIMES").unwrap_or(1) as usize {
        for (n, (path, bytes)) in files.iter().enumerate() {
            let other = &files[(n + round + 1) % files.len()].1;
            let made = mutator.mutate(bytes, other);
            try_it(&format!("{}-{round}", path.file_name().unwrap().to_string_lossy()), &made);
        }
    }
}

#[test]
fn the_control_socket_withstands_any_input() {
    run("answer", 30, fuzzed::answer);
}

#[test]
fn the_labs_relays_withstand_any_input() {
    run("relay", 200, fuzzed::relay);
}

#[test]
fn scenarios_are_accepted_or_refused() {
    run("scenario", 200, fuzzed::scenario);
}

#[test]
fn daemons_configurations_are_accepted_or_refused() {
    run("daemon_config", 300, fuzzed::daemon_config);
}
