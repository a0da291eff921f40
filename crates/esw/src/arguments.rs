//! What can be asked for on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cards::CardKind;

const ABOUT: &str = "A software SmartNIC: its E-Switch, its representors and their life";

const AFTER: &str = "\
Examples:
  esw run scenarios                        every story, on the card in memory
  esw run scenarios/late-ib.toml --json    one story, for a program to read
  esw run scenarios --repeat 200 --lockdep find the race that shows once in a while
  esw up                                   a card to play with; `help` lists what it takes
  echo 'devlink port show' | esw up        a card for one command
  esw up --daemon --detach                 a card that stays, for programs that speak devlink
  esw status                               the cards that are up
  esw down                                 and their end
  esw check scenarios                      every story, in every order, up to a bound
  esw check scenarios --faults each        and with every failure

Exit status:
  0    everything held
  1    something did not
  2    the input could not be used; the error says where, and what was expected there; or what there was to say
       could not be written
  130  interrupted; the card was taken down first, and nothing is left";

/// The arguments.
#[derive(Debug, Parser)]
#[command(name = "esw", version, about = ABOUT, after_help = AFTER)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Tell scenarios and say what held
    Run(Run),
    /// Bring a card up and take steps at a prompt, until told to go
    Up(Up),
    /// End a daemon that keeps cards up, and wait until nothing is left
    Down(Down),
    /// Said by a daemon without root: keep the namespaces it lives in
    #[command(hide = true)]
    Keeper,
    /// Say which cards daemons keep up, and how they are
    Status(Status),
    /// Explore scenarios: every order of their threads and every failure, up to a bound
    Check(Check),
    /// Run a program that sees the cards that are up: it is neither changed nor told
    Exec(Exec),
    /// A shell that sees the cards that are up
    Shell(Shell),
    /// Devices of cards that are up: show, eswitch, param, reload, info; devlink's own grammar
    Dev(Words),
    /// Their ports: show, add, del, function set, function rate
    Port(Words),
    /// What did not load: show, diagnose, recover
    Health(Words),
    /// Print what happens to devices and ports, until ended
    Monitor(Words),
}

/// The cards that a command is for.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// The card of this name alone, rather than all that are up
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    pub card: Option<String>,
    /// The card behind this control socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `esw exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  esw exec -- devlink dev eswitch set pci/0000:08:00.0 mode switchdev
  esw exec -- sh -c 'echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs; ip link'

The exit status is the program's.")]
pub struct Exec {
    #[command(flatten)]
    pub which: Which,
    /// Tell every program the right sender of what it receives; Go's are told anyway. Slower
    #[arg(long)]
    pub exact_addresses: bool,
    /// Say what of the card this kernel cannot show
    #[arg(long, short)]
    pub verbose: bool,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// `esw shell`.
#[derive(Debug, Args)]
pub struct Shell {
    #[command(flatten)]
    pub which: Which,
}

/// A command to cards that are up, in devlink's words.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  esw dev eswitch set pci/0000:08:00.0 mode switchdev
  esw port show
  esw port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88
  esw port function set pci/0000:08:00.0/32768 state active
  esw port function rate add pci/0000:08:00.0/gold tx_max 10gbit
  esw dev param set pci/0000:08:00.0 name esw_multiport value true cmode runtime
  esw health diagnose pci/0000:08:00.0 reporter representors")]
pub struct Words {
    #[command(flatten)]
    pub which: Which,
    /// devlink's words
    #[arg(value_name = "WORDS")]
    pub words: Vec<String>,
}

/// `esw down`.
#[derive(Debug, Args)]
#[command(after_help = "\
A daemon that has several cards up ends with all of them. Without arguments it is the one daemon there is.
What was agreed is forgotten: the next start begins with the configuration. With --keep it is not, and the
card's netdevs stay as they are, for the next `esw up --daemon` to find.

Exit status: 0 if it has ended, 1 if there is none, it may not be ended or it has not ended in time.")]
pub struct Down {
    /// The daemon that has the card of this name up
    #[arg(long, value_name = "NAME", conflicts_with_all = ["socket", "all"])]
    pub card: Option<String>,
    /// The daemon behind this control socket
    #[arg(long, value_name = "PATH", conflicts_with = "all")]
    pub socket: Option<PathBuf>,
    /// Every daemon whose sockets are where they are by default
    #[arg(long)]
    pub all: bool,
    /// Leave the card's netdevs and what was agreed to the next daemon
    #[arg(long)]
    pub keep: bool,
    /// Take no longer than this, whatever the daemon does
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
}

/// `esw status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0, or 1 if a card could not be asked: its daemon has died, does not answer within 30 s, or this user may
not ask it. Those that answer are shown all the same.")]
pub struct Status {
    /// Only the card of this name
    #[arg(long, value_name = "NAME", conflicts_with = "socket")]
    pub card: Option<String>,
    /// Only the card behind this control socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print one JSON object a line for each card
    #[arg(long)]
    pub json: bool,
}

/// `esw check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  esw check scenarios                             every schedule, for 10 s each, and up to 2 preemptions
  esw check scenarios/late-ib.toml --preemptions 3 --time 1800 --jobs 2
  esw check scenarios --faults each               and everything that can fail fails once, in every place
  esw check scenarios --strategy pct --schedules 10000 --seed 7
  esw check scenarios --shard 3/8 --json          the third of eight parts of a campaign
  esw check --merge part-*.json                   what they came to together
  esw check --replay TOKEN scenarios              one schedule again, step by step")]
pub struct Check {
    /// Scenario files, or directories of them; `scenarios` for --replay if there are none
    #[arg(required_unless_present_any = ["merge", "replay"], value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// How schedules are chosen
    #[arg(long, value_enum, default_value_t = Strategy::Bounded)]
    pub strategy: Strategy,
    /// Bounded: the most preemptions [default: 2]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub preemptions: Option<u8>,
    /// Bounded: the most preemptions where a failure is asked for [default: 1]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub fault_preemptions: Option<u8>,
    /// At most so many schedules for each scenario
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub schedules: Option<u64>,
    /// At most so many seconds for each scenario; 10 if neither this nor --schedules is given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub time: Option<u64>,
    /// Random, PCT, URW: where random choices start from [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// PCT: at how many points priorities change [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub depth: Option<u16>,
    /// What is made to fail beside what the scenario has fail
    #[arg(long, value_enum, default_value_t = Faults::None)]
    pub faults: Faults,
    /// OS threads that share the work; 0 for one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub jobs: u32,
    /// Do only part I of N of the campaign, counted from 1
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Bring-up, `setup`, `finally` and take-down have more than one order, too
    #[arg(long)]
    pub whole: bool,
    /// Run equivalent schedules, too: slower, to test the reductions
    #[arg(long)]
    pub no_reduction: bool,
    /// Print one JSON object a line for each scenario
    #[arg(long)]
    pub json: bool,
    /// Write a page, and a trace for Perfetto's viewer, for what did not hold into this new folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Run the schedule of a token again
    #[arg(long, value_name = "TOKEN", conflicts_with_all = OF_A_CAMPAIGN, conflicts_with = "merge")]
    pub replay: Option<String>,
    /// Join what the parts of a campaign printed with --json
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = OF_A_CAMPAIGN, conflicts_with_all = ["paths", "report"])]
    pub merge: Vec<PathBuf>,
}

/// The options that say how to explore.
const OF_A_CAMPAIGN: [&str; 12] = [
    "strategy",
    "preemptions",
    "fault_preemptions",
    "schedules",
    "time",
    "seed",
    "depth",
    "faults",
    "jobs",
    "shard",
    "whole",
    "no_reduction",
];

/// A part of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub index: u32,
    /// Of how many.
    pub of: u32,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("expected I/N with 1 <= I <= N, such as 3/8, found `{text}`");
        let (index, of) = text.split_once('/').ok_or_else(expected)?;
        match (index.parse(), of.parse()) {
            (Ok(index), Ok(of)) if 1 <= index && index <= of => Ok(Self { index, of }),
            _ => Err(expected()),
        }
    }
}

/// How schedules are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Every schedule with no preemption, then every one with at most one, and so on
    Bounded,
    /// At each point any thread, as likely as any other
    Random,
    /// Threads have priorities that change at a few random points
    Pct,
    /// A random walk that makes schedules, rather than choices, equally likely
    Urw,
}

/// What is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Faults {
    /// Nothing
    None,
    /// Every place that can fail, one at a time
    Each,
    /// Every pair of them
    Pairs,
}

/// `esw run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Scenario files, or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// The card to tell them on; scenarios that are for another one are skipped
    #[arg(long, value_enum, default_value_t = CardKind::Memory)]
    pub card: CardKind,
    /// Print one JSON object a line for each scenario
    #[arg(long)]
    pub json: bool,
    /// Tell each scenario so often, printing only what fails and a count
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,
    /// Check the order of locks; always on in debug builds
    #[arg(long)]
    pub lockdep: bool,
}

/// `esw up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without a terminal, lines are read from standard input as commands. The exit status is 1 if one failed.
`help` at the prompt lists every step word; `ports`, `events` and `check` look at the card; `!COMMAND` runs
a program among the card's netdevs, `shell` a shell.")]
pub struct Up {
    /// What the card is made of
    #[arg(long, value_enum, default_value_t = CardKind::Memory)]
    pub card: CardKind,
    /// Keep cards up, each with a control socket that speaks devlink, until ended by a signal
    #[arg(long)]
    pub daemon: bool,
    /// A TOML file: the card's configuration, what a scenario has under `[card]`; with --daemon, a table
    /// `[cards.NAME]` for each
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the order of locks; always on in debug builds
    #[arg(long)]
    pub lockdep: bool,
    #[command(flatten)]
    pub service: Service,
}

/// What is for a daemon only.
#[derive(Clone, Debug, Default, Args)]
pub struct Service {
    /// Go to the background once the cards are up; what is logged goes to `esw.log` where state is kept
    #[arg(long, requires = "daemon")]
    pub detach: bool,
    /// Begin with the configuration: what was agreed is forgotten, and what a dead daemon has left is cleared away
    #[arg(long, requires = "daemon")]
    pub fresh: bool,
    /// Said by --detach to the process it starts
    #[arg(long, hide = true, requires = "daemon")]
    pub detached: bool,
    /// What is logged: this and what is worse; also from the environment, as ESW_LOG
    #[arg(long, value_enum, value_name = "LEVEL", requires = "daemon")]
    pub log: Option<Level>,
    /// How it is logged
    #[arg(long, value_enum, value_name = "FORMAT", requires = "daemon")]
    pub log_format: Option<LogFormat>,
}

/// How bad what is logged must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// What failed
    Error,
    /// And what is not as it should be, or was refused
    Warn,
    /// And what happens to the card, and commands
    #[default]
    Info,
    /// And what happens to each port
    Debug,
    /// And everything else
    Trace,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object a line
    Json,
}
