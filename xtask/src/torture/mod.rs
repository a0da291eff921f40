//! `cargo xtask torture`: attacks the release binary from outside and checks what is left.
//!
//! The checker trusts nothing that the product prints, except for the answers that are being checked. Its source is the
//! kernel: `ip -j link`, `/proc`, `/run/netns`, the credentials of sockets. It reads devlink's answers with a codec of its
//! own, and compares them with its own record of what was acknowledged.
//!
//! A kind of attack is a module with a function that runs rounds, listed once, in [`KINDS`]. Each runs in network, mount
//! and pid namespaces of its own, with its own `/run` and `/sys`, in another process of this program. Whatever it leaves
//! disappears with the namespaces, and it has started every process in them.

mod databases;
mod descriptors;
mod disks;
mod keepers;
mod kernel;
mod kills;
mod labs;
mod messages;
mod model;
mod moves;
mod place;
mod random;
mod report;
mod rights;
mod rounds;
mod starts;
mod traffic;
mod wire;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::page::{self, Section};
use crate::workspace::{build_esw, find_program};
use report::Row;
use rounds::Rounds;

/// What to try, for how long, and how to print the results.
#[derive(clap::Args)]
pub struct Args {
    /// Only these kinds of attack
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(KINDS.map(|kind| kind.name)))]
    only: Vec<String>,
    /// At most N rounds of each kind
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    rounds: Option<u64>,
    /// Begin rounds of each kind for S seconds [default: 17; no limit with --rounds]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// The seed of the first round [default: from the time]. Each round has the seed of the round before plus one
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Print the rows as JSON
    #[arg(long)]
    json: bool,
    /// The binary to attack [default: target/release/esw, which is built]
    #[arg(long, value_name = "PATH")]
    esw: Option<PathBuf>,
    /// Write the table into docs/reliability.md
    #[arg(long)]
    write: bool,
    /// For the process that runs a kind in its namespaces
    #[arg(long, hide = true)]
    part: Option<String>,
    /// For a process that moves netdevs in a lab: its task as JSON
    #[arg(long, hide = true)]
    mover: Option<String>,
}

/// A kind of attack.
struct Kind {
    /// What `--only` takes.
    name: &'static str,
    run: fn(&mut Rounds) -> Result<()>,
    /// What it needs.
    needs: &'static [Need],
}

/// What a kind needs and not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// User 0 of the initial user namespace, to become other users.
    Root,
    /// `/dev/fuse`.
    Fuse,
    /// A program.
    Program(&'static str),
}

/// Every kind.
const KINDS: [Kind; 10] = [
    Kind { name: "kills", run: kills::run, needs: &[] },
    Kind { name: "keepers", run: keepers::run, needs: &[Need::Root, Need::Program("setpriv")] },
    Kind { name: "labs", run: labs::run, needs: &[Need::Root, Need::Fuse] },
    Kind {
        name: "moves",
        run: moves::run,
        needs: &[Need::Root, Need::Fuse, Need::Program("devlink"), Need::Program("ethtool")],
    },
    Kind { name: "databases", run: databases::run, needs: &[] },
    Kind { name: "disks", run: disks::run, needs: &[] },
    Kind { name: "descriptors", run: descriptors::run, needs: &[Need::Program("prlimit")] },
    Kind { name: "starts", run: starts::run, needs: &[] },
    Kind { name: "messages", run: messages::run, needs: &[Need::Root] },
    Kind {
        name: "rights",
        run: rights::run,
        needs: &[Need::Root, Need::Fuse, Need::Program("setpriv"), Need::Program("devlink")],
    },
];

/// The default for `--seconds`.
const SECONDS: u64 = 17;
/// How much longer than `--seconds` a kind may take: its last round, and taking everything down.
const LONGER: Duration = Duration::from_secs(300);
/// The table that `--write` writes.
const SECTION: Section = Section { page: "docs/reliability.md", name: "torture" };

impl Need {
    /// Why it is missing; `None` if it is not.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "this needs root".to_owned()),
            Self::Fuse => {
                let opened = File::options().read(true).write(true).open("/dev/fuse");
                opened.err().map(|error| format!("/dev/fuse: {error}"))
            }
            Self::Program(name) => find_program(name).is_none().then(|| format!("{name} is not installed")),
        }
    }
}

/// Attacks, and prints the results. The exit status is 1 if something did not hold.
///
/// # Errors
/// There is no binary, or the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(task) = &args.mover {
        let operations = moves::mover::run(serde_json::from_str(task)?)?;
        println!("{operations} operations");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(part) = &args.part {
        return part_of(part, args).map(|()| ExitCode::SUCCESS);
    }
    let esw = match &args.esw {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => build_esw()?,
    };
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let seed = args.seed.unwrap_or(time);
    let chosen = KINDS.iter().filter(|kind| args.only.is_empty() || args.only.iter().any(|only| only == kind.name));
    let mut rows = Vec::new();
    for kind in chosen {
        eprintln!("torture: {}, from seed {seed}", kind.name);
        rows.extend(attack(kind, args, &esw, seed));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}{}", report::table(&rows), report::failures(&rows));
    }
    if args.write {
        write(&rows, args)?;
    }
    let must_all_run = std::env::var("CI").as_deref() == Ok("true");
    let bad = |row: &Row| row.failed > 0 || (must_all_run && row.skipped.is_some());
    Ok(if rows.iter().any(bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs a kind and returns its rows. If it cannot be tried here, one row has the reason.
fn attack(kind: &Kind, args: &Args, esw: &Path, seed: u64) -> Vec<Row> {
    let alone = |row: Row| vec![Row { kind: kind.name.to_owned(), what: "all of it".to_owned(), ..row }];
    let needs = [Need::Program("unshare"), Need::Program("ip")];
    if let Some(why) = needs.iter().chain(kind.needs).find_map(|need| need.missing()) {
        return alone(Row { skipped: Some(why), ..Row::default() });
    }
    match apart(kind, args, esw, seed) {
        Ok(rows) => rows,
        Err(error) => {
            let again = format!("cargo xtask torture --only {} --seed {seed}", kind.name);
            let failures = vec![report::Failure { what: format!("{error:#}"), again }];
            alone(Row { tried: 1, failed: 1, failures, ..Row::default() })
        }
    }
}

/// The seconds for which rounds of a kind are begun.
fn seconds(args: &Args) -> u64 {
    args.seconds.unwrap_or(if args.rounds.is_some() { 24 * 3_600 } else { SECONDS })
}

/// Runs a kind in namespaces of its own.
fn apart(kind: &Kind, args: &Args, esw: &Path, seed: u64) -> Result<Vec<Row>> {
    // The shell is process 1 there, and becomes the parent of orphaned processes.
    let script = "mount -t tmpfs -o mode=0755 tmpfs /run && mkdir -m 1777 /run/torture && mkdir /run/netns &&
        mount -t sysfs sysfs /sys && ip link set lo up || exit 2
        # The first namespace with a name makes the directory a mount point, which stays.
        ip netns add first && ip netns del first || exit 2
        \"$@\"; exit $?";
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.args(["sh", "-c", script, place::APART]).arg(std::env::current_exe()?);
    command.args(["torture", "--part", kind.name, "--seed", &seed.to_string()]);
    command.args(["--seconds", &seconds(args).to_string()]).arg("--esw").arg(esw);
    if let Some(rounds) = args.rounds {
        command.args(["--rounds", &rounds.to_string()]);
    }
    let path = std::env::temp_dir().join(format!("eswitch-torture-{}", std::process::id()));
    let said = File::create(&path).with_context(|| path.display().to_string())?;
    let mut child =
        command.env("TMPDIR", "/run/torture").stdin(Stdio::null()).stdout(said).spawn().context("unshare")?;
    let status = place::wait(&mut child, Duration::from_secs(seconds(args)) + LONGER);
    let said = fs::read_to_string(&path);
    let _ = fs::remove_file(&path);
    match status? {
        None => bail!("the attack itself has not ended {} s after its time", LONGER.as_secs()),
        Some(status) => ensure!(status.success(), "the attack itself failed: {status}"),
    }
    serde_json::from_str(&said?).context("the rows that the attack has printed")
}

/// Runs a kind in the namespaces of this process, which were made for it, and prints its rows as JSON.
fn part_of(name: &str, args: &Args) -> Result<()> {
    place::ensure_apart()?;
    let kind = KINDS.iter().find(|kind| kind.name == name).context("there is no such kind")?;
    let given = args.esw.as_ref().context("no binary")?;
    // A build meanwhile would replace it, and every user must be able to run it.
    let esw = std::env::temp_dir().join("esw");
    fs::copy(given, &esw).with_context(|| given.display().to_string())?;
    fs::set_permissions(&esw, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let time = Duration::from_secs(seconds(args));
    let mut rounds = Rounds::new(kind.name, esw, args.seed.unwrap_or(0), time, args.rounds);
    if let Err(error) = (kind.run)(&mut rounds) {
        rounds.tally.tried("setting up", rounds.seed, Err(format!("{error:#}")));
    }
    println!("{}", serde_json::to_string(&rounds.tally.rows())?);
    Ok(())
}

/// Writes the table into the page.
fn write(rows: &[Row], args: &Args) -> Result<()> {
    let rounds = args.rounds.map_or(String::new(), |rounds| format!(" --rounds {rounds}"));
    let time = args.seconds.map_or(String::new(), |seconds| format!(" --seconds {seconds}"));
    let only: String = args.only.iter().map(|only| format!(" --only {only}")).collect();
    let (commit, date) = page::commit_and_date()?;
    let table = report::table(rows);
    let text = format!("\n`cargo xtask torture{only}{rounds}{time}` at commit {commit}, {date}:\n\n{table}\n");
    SECTION.write(&text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_namespaces_of_its_own_no_attack_is_begun() {
        assert!(place::ensure_apart().is_err());
    }
}
