//! The command: arguments in, text or JSON out.

#![forbid(unsafe_code)]

mod arguments;
mod bonds;
mod cards;
mod check;
mod daemon;
mod devlink_words;
mod down;
mod exec;
mod exit_status;
mod interrupt;
mod labs;
mod lock_order;
mod neighbours;
mod output;
mod printable;
mod programs;
mod prompt;
mod remote;
mod rules;
mod run;
mod shell;
mod show;
mod sockets;
mod status;
mod trace;
mod up;

#[doc(hidden)]
pub mod fuzzing {
    //! Parsers for fuzz targets.

    pub use crate::daemon::fuzzed as daemon_config;
}

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};
use exit_status::UNUSABLE;

/// The arguments of the command as clap knows them, for manual pages and the completions of shells.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command that the arguments of this process name; its exit status.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(node) = arguments.node {
        daemon::folders::set_node(node);
    }
    let done = match &arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Up(arguments) if arguments.service.detach => daemon::detach(arguments),
        Command::Up(arguments) if arguments.daemon => daemon::daemon(arguments),
        Command::Up(arguments) => up::up(arguments),
        Command::Keeper => daemon::keeper(),
        Command::Down(arguments) => down::down(arguments),
        Command::Status(arguments) => status::status(arguments),
        Command::Check(arguments) => check::check(arguments),
        Command::Exec(arguments) => exec::exec(arguments),
        Command::Shell(arguments) => exec::shell(arguments),
        Command::Lab(arguments) => labs::lab(arguments),
        Command::Dev(words) => devlink_words::run("dev", words),
        Command::Port(words) => devlink_words::run("port", words),
        Command::Health(words) => devlink_words::run("health", words),
        Command::Monitor(words) => devlink_words::run("monitor", words),
        Command::Trace(arguments) => trace::trace(arguments),
        Command::Show(arguments) => show::show(arguments),
        Command::Rules(arguments) => rules::rules(arguments),
    };
    programs::end_what_is_left();
    match done {
        Ok(code) => match output::not_written() {
            None => ExitCode::from(code),
            Some(error) => {
                output::complain!("esw: writing to standard output: {error}");
                // Not 1, which is a result: the reader of the results has none of them, or only a part.
                ExitCode::from(UNUSABLE)
            }
        },
        Err(error) => {
            output::complain!("esw: {error:#}");
            ExitCode::from(UNUSABLE)
        }
    }
}
