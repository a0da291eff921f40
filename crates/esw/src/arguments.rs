//! What can be asked for on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const ABOUT: &str = "A software SmartNIC: its E-Switch, its representors and their life";

const AFTER: &str = "\
Examples:
  esw run scenarios                        every story, on the card in memory
  esw run scenarios/late-ib.toml --json    one story, for a program to read
  esw run scenarios --repeat 200 --lockdep find the race that shows once in a while
  esw up                                   a card to play with; `help` lists what it takes
  echo 'devlink port show' | esw up        a card for one command

Exit status:
  0    everything held
  1    something did not
  2    the input could not be used; the error says where, and what was expected there
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
}

/// `esw run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Scenario files, or directories of them
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// The card to tell them on; scenarios that are for another one are skipped
    #[arg(long, value_enum, default_value_t = Card::Memory)]
    pub card: Card,
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
    #[arg(long, value_enum, default_value_t = Card::Memory)]
    pub card: Card,
    /// A TOML file with the card's configuration: what a scenario has under `[card]`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the order of locks; always on in debug builds
    #[arg(long)]
    pub lockdep: bool,
}

/// What a card is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Card {
    /// Books in memory: runs anywhere, no netdevs
    Memory,
    /// Real netdevs, in a namespace of their own without root
    Linux,
}

impl Card {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Linux => "linux",
        }
    }
}
