//! The arguments of the command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cards::CardKind;
use crate::daemon::folders;
use crate::labs;

const ABOUT: &str = "A software SmartNIC with an embedded switch and representors";

const AFTER: &str = "\
Examples:
  esw run scenarios                        run every scenario on the card in memory
  esw run scenarios/late-ib.toml --json    run one scenario, for a program to read
  esw run scenarios --repeat 200 --lockdep find a race that occurs now and then
  esw up                                   bring a card up, with a prompt; `help` lists its commands
  echo 'devlink port show' | esw up        bring a card up for one command
  esw up --daemon --detach                 bring a card up that stays, for programs that speak devlink
  esw status                               show the cards that are up
  esw show                                 draw them: functions, representors, names, what is not well
  esw down                                 end their daemon
  esw check scenarios                      explore every scenario in every order, up to a bound
  esw check scenarios --faults each        and with every failure

Exit status:
  0    everything held
  1    something did not
  2    the input cannot be used, and the error says where and what was expected there; or the output cannot be
       written
  130  interrupted; the card was taken down first, and nothing is left";

/// The arguments of this process.
#[derive(Debug, Parser)]
#[command(name = "esw", version, about = ABOUT, after_help = AFTER)]
pub struct Arguments {
    /// The node: several on one machine have cards, sockets and states of their own, even at the same PCI addresses
    #[arg(long, global = true, value_name = "NAME", env = "ESW_NODE", value_parser = folders::node_name)]
    pub node: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run scenarios and report what held
    Run(Run),
    /// Bring a card up, with a prompt for steps; or, with --daemon, keep cards up
    Up(Up),
    /// End a daemon that keeps cards up, and wait until nothing is left
    Down(Down),
    /// Started by a daemon without root: keep the namespaces that it is in
    #[command(hide = true)]
    Keeper,
    /// Show the cards that daemons keep up, and their state
    Status(Status),
    /// Explore scenarios: every order of their threads and every failure, up to a bound
    Check(Check),
    /// Run a program, unmodified, that sees the cards that are up
    Exec(Exec),
    /// Run a shell that sees the cards that are up
    Shell(Shell),
    /// Labs that stay until they are stopped: start, enter, stop, list
    #[command(subcommand)]
    Lab(Lab),
    /// Devices of cards that are up: show, eswitch, param, reload, info; in the words of devlink(8)
    Dev(Words),
    /// Ports of cards that are up: show, add, del, function set, function rate
    Port(Words),
    /// What failed to load: show, diagnose, recover
    Health(Words),
    /// Print events of devices and ports, until ended
    Monitor(Words),
    /// Draw cards that are up: functions, representors, what each is called where, and what is not well
    Show(Show),
    /// Say what the flow rules of a card that is up would do with a frame, and why; nothing changes
    Trace(Trace),
    /// List the flow rules of cards that are up, in tc's words, with their counters
    Rules(Rules),
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
    /// Give every program the right sender of what it receives, as Go programs have it anyway. Slower
    #[arg(long)]
    pub exact_addresses: bool,
    /// Report what this kernel cannot show of the card
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

/// `esw lab`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  esw lab start demo
  esw lab enter demo -- devlink port show
  esw lab enter demo                        a shell
  esw lab list
  esw lab stop demo

Programs that `enter` leaves in the background go on in the lab, which does not end with them. A lab is of the user who
starts it.")]
pub enum Lab {
    /// Start a lab in the background, in which programs see the cards that are up
    Start(LabStart),
    /// Run a program, or a shell, in a lab
    Enter(LabEnter),
    /// End a lab
    Stop(LabStop),
    /// List the labs that run, and the programs in them
    List(LabList),
}

/// `esw lab start`.
#[derive(Debug, Args)]
pub struct LabStart {
    /// The lab's name: letters, digits, `-`, `_` and `.`
    #[arg(value_name = "NAME", value_parser = labs::lab_name)]
    pub name: String,
    #[command(flatten)]
    pub which: Which,
    /// Give every program the right sender of what it receives, as Go programs have it anyway. Slower
    #[arg(long)]
    pub exact_addresses: bool,
    /// Report what this kernel cannot show of the card
    #[arg(long, short)]
    pub verbose: bool,
}

/// `esw lab enter`.
#[derive(Debug, Args)]
#[command(after_help = "The exit status is the program's.")]
pub struct LabEnter {
    /// The lab's name
    #[arg(value_name = "NAME", value_parser = labs::lab_name)]
    pub name: String,
    /// The program and its arguments; the user's shell if there is none
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// `esw lab stop`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 if the lab has ended; 1 if there is none, programs run in it, or some could not be ended.")]
pub struct LabStop {
    /// The lab's name
    #[arg(value_name = "NAME", value_parser = labs::lab_name)]
    pub name: String,
    /// End the programs in it first: by SIGTERM, and those that have not ended after --timeout by SIGKILL
    #[arg(long, short)]
    pub force: bool,
    /// How long programs may take to end after SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub timeout: u32,
}

/// `esw lab list`.
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0; or 1 if a lab does not answer. The others are listed all the same.")]
pub struct LabList {
    /// Print one JSON object a line for each lab
    #[arg(long)]
    pub json: bool,
}

/// `esw dev`, `esw port`, `esw health`, `esw monitor`: a command to cards that are up, in devlink's words.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  esw dev eswitch set pci/0000:08:00.0 mode switchdev
  esw port show
  esw port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88
  esw port function set pci/0000:08:00.0/32768 state active
  esw port function rate add pci/0000:08:00.0/gold tx_max 10gbit
  esw dev param set pci/0000:08:00.0 name esw_multiport value true cmode runtime
  esw health diagnose pci/0000:08:00.0 reporter representors

`esw dev help`, `esw port help`, `esw health help` and `esw monitor help` list every form. A word may be shortened as long
as it is the only one that begins so.")]
pub struct Words {
    #[command(flatten)]
    pub which: Which,
    /// What follows the object in devlink's words; `help` for a list
    #[arg(value_name = "WORDS")]
    pub words: Vec<String>,
}

/// `esw show`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  esw show                      a tree in the terminal
  esw show --svg card.svg       a drawing, for light and dark pages

Exit status: 0; or 1 if something of a card has failed to load.")]
pub struct Show {
    #[command(flatten)]
    pub which: Which,
    /// Print one JSON object a line for each card
    #[arg(long, conflicts_with = "svg")]
    pub json: bool,
    /// Write a drawing of one card into this file
    #[arg(long, value_name = "PATH")]
    pub svg: Option<PathBuf>,
}

/// `esw rules`.
#[derive(Debug, Args)]
#[command(after_help = "\
What programs have offloaded to the card is here: tc's filters with in_hw, and what Open vSwitch makes of its flows. A rule
has the words of `tc filter`, as `esw run` and the prompt read them.

With --drops, the frames that the card has dropped since its first rule, for each port at which they came in (or which
they could not reach, for no-port and link-down) and each reason. Frames that no rule takes are not dropped: they arrive at
the representor.")]
pub struct Rules {
    #[command(flatten)]
    pub which: Which,
    /// List the frames that were dropped, by port and reason
    #[arg(long)]
    pub drops: bool,
}

/// `esw trace`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  esw trace pci/0000:08:00.0/1 ip dst 10.0.0.2 / tcp dport 80 flags S
  esw trace pci/0000:08:00.0/65535 eth dst 02:00:00:00:00:02 / vlan 5 / arp request
  esw trace --card card0 pci/0000:08:00.0/1 hex 0200000000020200000000ff88b5

A frame is layers with a slash between them. What is not said follows or has a default: lengths, checksums, types,
addresses. It comes in at the port as the function behind it sends it, or from the wire.

Exit status: 0; 1 if the card refuses, as for a port without rules; 2 if the words are no frame.")]
pub struct Trace {
    #[command(flatten)]
    pub which: Which,
    /// The port at which the frame comes in, such as pci/0000:08:00.0/1
    #[arg(value_name = "PORT")]
    pub port: String,
    /// The frame in words, or `hex BYTES`
    #[arg(required = true, value_name = "FRAME", trailing_var_arg = true)]
    pub frame: Vec<String>,
}

/// `esw down`.
#[derive(Debug, Args)]
#[command(after_help = "\
A daemon ends with all of its cards. Without arguments it is the only daemon that runs.
The agreed state is forgotten: the next start begins with the configuration. With --keep it is kept, and the
card's netdevs stay as they are, for the next `esw up --daemon` to find.

Exit status: 0 if the daemon has ended; 1 if there is none, this user may not end it, or it has not ended in time.")]
pub struct Down {
    /// End the daemon of the card of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["socket", "all"])]
    pub card: Option<String>,
    /// End the daemon behind this control socket
    #[arg(long, value_name = "PATH", conflicts_with = "all")]
    pub socket: Option<PathBuf>,
    /// End every daemon whose sockets are in the default folder
    #[arg(long)]
    pub all: bool,
    /// Leave the card's netdevs and the agreed state to the next daemon
    #[arg(long)]
    pub keep: bool,
    /// Wait no longer than this, whatever the daemon does
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
}

/// `esw status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0; or 1 if the daemon of a card has died, does not answer within 30 s, or refuses this user. The other
cards are shown all the same.")]
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
  esw check scenarios                             for 10 s each: every schedule with up to 2 preemptions, then random ones
  esw check scenarios/late-ib.toml --preemptions 3 --time 1800 --jobs 2
  esw check scenarios --faults each               and everything that can fail fails once, in every place
  esw check scenarios --strategy pct --schedules 10000 --seed 7
  esw check scenarios --shard 3/8 --json          the third of eight parts of a campaign
  esw check --merge part-*.json                   the results of all parts together
  esw check --replay TOKEN scenarios              one schedule again, step by step")]
pub struct Check {
    /// Scenario files, or directories of them; `scenarios` for --replay if there are none
    #[arg(required_unless_present_any = ["merge", "replay", "generate"], value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// Explore random stories instead of files, for the invariants alone, until one is broken. --seed decides which stories;
    /// --schedules is for each of them [default: 120], and --time for all [default: 60, without --stories]
    #[arg(long, conflicts_with_all = NOT_GENERATED)]
    pub generate: bool,
    /// With --generate: at most so many stories
    #[arg(long, value_name = "N", requires = "generate", value_parser = clap::value_parser!(u64).range(1..))]
    pub stories: Option<u64>,
    /// With --generate: write the story that breaks an invariant, made small, into this folder as a scenario
    #[arg(long, value_name = "DIR", requires = "generate")]
    pub keep: Option<PathBuf>,
    /// How schedules are chosen
    #[arg(long, value_enum, default_value_t = Strategy::Portfolio)]
    pub strategy: Strategy,
    /// Bounded, portfolio: the most preemptions [default: 2]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub preemptions: Option<u8>,
    /// Bounded, portfolio: the most preemptions in schedules with a failure [default: 1]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub fault_preemptions: Option<u8>,
    /// At most so many schedules for each scenario
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub schedules: Option<u64>,
    /// At most so many seconds for each scenario; 10 if neither this nor --schedules is given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub time: Option<u64>,
    /// Portfolio, random, PCT, URW: where random choices start from [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// PCT: at how many points priorities change [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub depth: Option<u16>,
    /// What is made to fail, in addition to failures in the scenario
    #[arg(long, value_enum, default_value_t = Faults::None)]
    pub faults: Faults,
    /// OS threads that share the work; 0 for one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub jobs: u32,
    /// Do only part I of N of the campaign, counted from 1
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Try every order of bring-up, `setup`, `finally` and take-down, too
    #[arg(long)]
    pub whole: bool,
    /// Run equivalent schedules, too: slower, to test the reductions
    #[arg(long)]
    pub no_reduction: bool,
    /// Print one JSON object a line for each scenario
    #[arg(long)]
    pub json: bool,
    /// Write a page and a trace for Perfetto's viewer of each violation into this new folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Run the schedule of a token again
    #[arg(long, value_name = "TOKEN", conflicts_with_all = OF_A_CAMPAIGN, conflicts_with = "merge")]
    pub replay: Option<String>,
    /// Join the output of the parts of a campaign, printed with --json
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = OF_A_CAMPAIGN, conflicts_with_all = ["paths", "report"])]
    pub merge: Vec<PathBuf>,
}

/// The options of a campaign, which --replay and --merge do not take.
const OF_A_CAMPAIGN: [&str; 15] = [
    "generate",
    "stories",
    "keep",
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

/// The options that each generated story has of its own, and those that need files.
const NOT_GENERATED: [&str; 10] = [
    "paths",
    "strategy",
    "preemptions",
    "fault_preemptions",
    "depth",
    "faults",
    "shard",
    "whole",
    "no_reduction",
    "report",
];

/// A part of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The number of the part, from 1.
    pub index: u32,
    /// The number of parts.
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
    /// Bounded with half of the schedules and the time, then random with a quarter, then PCT of depth 2, 3 and 5; what one
    /// does not use goes to the next
    Portfolio,
    /// Every schedule with no preemption, then every one with at most one, and so on
    Bounded,
    /// At each point any thread, as likely as any other
    Random,
    /// Threads have priorities that change at a few random points
    Pct,
    /// A random walk that makes schedules, rather than choices, equally likely
    Urw,
}

/// The failures that are explored.
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
    /// The kind of card; scenarios that are only for another kind are skipped
    #[arg(long, value_enum, default_value_t = CardKind::Memory)]
    pub card: CardKind,
    /// Print one JSON object a line for each scenario
    #[arg(long)]
    pub json: bool,
    /// Run each scenario this number of times, and print only failures and a count
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
    /// The network namespace in which the card's netdevs appear, rather than that of the caller
    #[arg(long, value_name = "NAME")]
    pub netns: Option<String>,
    /// Check the order of locks; always on in debug builds
    #[arg(long)]
    pub lockdep: bool,
    #[command(flatten)]
    pub service: Service,
}

/// Options for a daemon only.
#[derive(Clone, Debug, Default, Args)]
pub struct Service {
    /// Go to the background once the cards are up, and log to `esw.log` in the state folder
    #[arg(long, requires = "daemon")]
    pub detach: bool,
    /// Begin with the configuration: forget the agreed state, and remove what a dead daemon has left
    #[arg(long, requires = "daemon")]
    pub fresh: bool,
    /// Given by --detach to the process that it starts
    #[arg(long, hide = true, requires = "daemon")]
    pub detached: bool,
    /// Log this level and more severe ones; the default is in the environment variable ESW_LOG
    #[arg(long, value_enum, value_name = "LEVEL", requires = "daemon")]
    pub log: Option<Level>,
    /// The format of the log
    #[arg(long, value_enum, value_name = "FORMAT", requires = "daemon")]
    pub log_format: Option<LogFormat>,
}

/// The levels of the log; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Failures
    Error,
    /// And refused commands, and what failed to load
    Warn,
    /// And commands, and events of the card
    #[default]
    Info,
    /// And events of each port
    Debug,
    /// And everything else
    Trace,
}

/// The format of a line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text, for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}
