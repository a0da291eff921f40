//! `esw dev`, `esw port`, `esw health`, `esw monitor`: the commands of devlink(8) for machines without iproute2.
//!
//! [`control::devlink`] reads the words. The command is sent to the card as devlink would send it, and the answer is
//! printed as devlink would print it.

mod message;
mod print;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use control::DevlinkCommand;
use control::devlink::{DevlinkOption, DevlinkVerb, devlink_forms};
use devlink::numbers::command as c;
use devlink::{CONFIG_GROUP, ClientError, DEVLINK, ESWITCH, eswitch_family};
use netlink::{Builder, Errno, strerror};

use crate::arguments::Words;
use crate::exit_status::{FAILED, HELD};
use crate::output::{complain, line};
use crate::sockets::{ConnectedCard, connect};

/// Runs `esw OBJECT WORDS…`; its exit status.
///
/// # Errors
/// Words that cannot be read; or no card is up.
pub fn run(object: &str, arguments: &Words) -> Result<u8> {
    if arguments.words == ["help"] {
        print_forms(object);
        return Ok(HELD);
    }
    let command = parse(object, arguments)?;
    let Some(number) = message::number(command.verb) else { return monitor(command.verb, arguments) };
    let mut cards = connect(&arguments.which)?;
    let answers = match command.handle {
        None => dump(&mut cards, number, &command),
        Some(_) => request(&mut cards, number, &command, destination(&command)?.as_ref()),
    };
    match answers {
        Ok(answers) => {
            let mut printer = print::Output::default();
            let print = print::printer(command.verb);
            answers.iter().for_each(|answer| print(&mut printer, answer));
            printer.lines().iter().for_each(|text| line(text));
            Ok(HELD)
        }
        Err(ClientError::Refused(refusal)) => {
            if let Some(message) = &refusal.message {
                let dot = if message.ends_with('.') { "" } else { "." };
                complain!("Error: {message}{dot}");
            }
            complain!("kernel answers: {}", strerror(refusal.errno));
            Ok(FAILED)
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads the words of a command to an object.
fn parse(object: &str, arguments: &Words) -> Result<DevlinkCommand> {
    let words: Vec<String> = [object.to_owned()].into_iter().chain(arguments.words.iter().cloned()).collect();
    DevlinkCommand::parse_arguments(&words)
        .map_err(|error| anyhow!("{error}; `esw {object} help` lists the commands and their options"))
}

/// Prints every form of the commands to an object.
fn print_forms(object: &str) {
    for entry in devlink_forms(object) {
        line(&format!("esw {}", entry.form));
        line(&format!("    {}", entry.does));
    }
}

type Answers = Result<Vec<devlink::Answered>, ClientError>;

/// Sends a request for everything of a kind to every card.
fn dump(cards: &mut [ConnectedCard], number: u8, command: &DevlinkCommand) -> Answers {
    let mut all = Vec::new();
    for card in cards {
        all.extend(card.client.dump(DEVLINK, number, |to| message::write(command, to))?);
    }
    Ok(all)
}

/// The network namespace to which a command moves its instance.
///
/// # Errors
/// There is none of that name, or it may not be opened.
fn destination(command: &DevlinkCommand) -> Result<Option<File>> {
    let path = command.options.iter().find_map(|option| match option {
        DevlinkOption::Netns(name) => Some(Path::new("/run/netns").join(name)),
        DevlinkOption::NetnsPid(pid) => Some(PathBuf::from(format!("/proc/{pid}/ns/net"))),
        _ => None,
    });
    let open = |path: PathBuf| {
        File::open(&path).with_context(|| {
            format!("{}: no such network namespace; `ip netns add` makes one with a name", path.display())
        })
    };
    path.map(open).transpose()
}

/// Sends a request, with a descriptor if there is one, to one card after the other, until one has the instance: a card
/// without it refuses, and does nothing.
fn request(cards: &mut [ConnectedCard], number: u8, command: &DevlinkCommand, descriptor: Option<&File>) -> Answers {
    let mut last = Ok(Vec::new());
    for card in cards {
        let write = |to: &mut Builder| message::write(command, to);
        last = match descriptor {
            Some(descriptor) => card.client.ask_with(descriptor.as_fd(), DEVLINK, number, write),
            None => card.client.ask(DEVLINK, number, write),
        };
        match &last {
            Err(ClientError::Refused(refusal)) if refusal.errno == Errno::NODEV => {}
            _ => break,
        }
    }
    last
}

/// Prints events of devices, ports, parameters and reporters until the command is ended, or every card is gone.
fn monitor(verb: DevlinkVerb, arguments: &Words) -> Result<u8> {
    let cards = connect(&arguments.which)?;
    let (pass, passed) = std::sync::mpsc::channel();
    for mut card in cards {
        card.client.ask(ESWITCH, eswitch_family::JOIN, |to| {
            to.u32(eswitch_family::GROUP, CONFIG_GROUP);
        })?;
        let pass = pass.clone();
        let follow = move || {
            while let Ok(messages) = card.client.receive_notification() {
                if pass.send(messages).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name(card.name).spawn(follow)?;
    }
    drop(pass);
    for message in passed.iter().flatten() {
        let (object, event, print): (&str, &str, print::Printer) = match message.command {
            c::NEW => ("dev", "new", print::device),
            c::DEL => ("dev", "del", print::device),
            c::PORT_NEW => ("port", "new", print::port),
            c::PORT_DEL => ("port", "del", print::port),
            c::PARAM_NEW => ("param", "new", print::param),
            c::PARAM_DEL => ("param", "del", print::param),
            c::HEALTH_RECOVER => ("health", "status", print::health),
            _ => continue,
        };
        let is_shown = match verb {
            DevlinkVerb::MonitorDev => object == "dev",
            DevlinkVerb::MonitorPort => object == "port",
            _ => true,
        };
        if !is_shown {
            continue;
        }
        let mut output = print::Output::default();
        print(&mut output, &message);
        let lines = output.lines();
        let first = lines.first().cloned().unwrap_or_default();
        line(&format!("[{object},{event}] {first}"));
        lines.iter().skip(1).for_each(|text| line(text));
    }
    bail!("every card has gone");
}
