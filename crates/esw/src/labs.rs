//! `esw lab`: labs that are kept: they live until they are stopped, and programs enter them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use devlink::{ControlSocket, SocketError};
use lab::{Connection, Keep, KeptError, LabError, ProgramInside, Stopped};
use serde::Serialize;

use crate::arguments::{Lab, LabEnter, LabList, LabStart, LabStop};
use crate::daemon::folders;
use crate::exec::prepare;
use crate::exit_status::{FAILED, HELD};
use crate::output::{complain, line, many};
use crate::printable::{printable, printable_json};
use crate::shell::{UNNAMED, in_lab};
use crate::sockets::connect;
use crate::status::duration;

/// Runs the command; its exit status. That of `enter` is the program's.
///
/// # Errors
/// There can be no such lab, or no program in it.
pub fn lab(arguments: &Lab) -> Result<u8> {
    match arguments {
        Lab::Start(arguments) => start(arguments),
        Lab::Enter(arguments) => enter(arguments),
        Lab::Stop(arguments) => stop(arguments),
        Lab::List(arguments) => list(arguments),
    }
}

/// The name of a lab.
///
/// # Errors
/// It is none; the error says what one is.
pub fn lab_name(text: &str) -> Result<String, String> {
    if text == UNNAMED {
        return Err(format!("`{UNNAMED}` stands for the lab of `esw exec`, which has no name; choose another name"));
    }
    if folders::is_name(text) {
        return Ok(text.to_owned());
    }
    Err("a lab has a name of 1 to 32 letters, digits, `-`, `_` and `.`, which begins with a letter or a digit"
        .to_owned())
}

/// The folder of the sockets of labs.
fn folder() -> PathBuf {
    folders::sockets().join("labs")
}

/// The socket of the lab of this name.
///
/// # Errors
/// Another user may write to its folder.
fn socket_of(name: &str) -> io::Result<PathBuf> {
    folders::ensure_own(&folders::sockets())?;
    folders::ensure_own_one(&folder())?;
    Ok(folder().join(format!("{name}.sock")))
}

fn start(arguments: &LabStart) -> Result<u8> {
    let name = &arguments.name;
    if lab::is_inside().context("looking whether this is inside a lab")? {
        return Err(LabError::Inside.into());
    }
    for folder in [folders::sockets(), folder()] {
        folders::make(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let socket = match ControlSocket::bind(&socket_of(name)?, 0o600, None) {
        Err(SocketError::InUse { .. }) => {
            bail!("lab {name} runs already: enter it with `esw lab enter {name}`, or end it with `esw lab stop {name}`")
        }
        socket => socket?,
    };
    let found = connect(&arguments.which)?;
    let cards: Vec<String> = found.iter().map(|card| card.name.clone()).collect();
    let shown = cards.join(", ");
    let (cards_of_lab, options) = prepare(found, arguments.exact_addresses, arguments.verbose)?;
    let pid = lab::start(cards_of_lab, options, Keep { socket, cards })?;
    line(&printable(&format!(
        "lab {name} runs with {shown}: process {}; enter it with `esw lab enter {name}`",
        pid.as_raw_pid()
    )));
    Ok(HELD)
}

fn enter(arguments: &LabEnter) -> Result<u8> {
    let name = &arguments.name;
    let program = in_lab(&arguments.program, name)?;
    let lab = Connection::connect(&socket_of(name)?).map_err(|error| in_words(name, &error))?;
    let status = lab::enter(lab, program.command);
    drop(program.files);
    let status = status.map_err(|error| match error {
        LabError::Kept(error) => in_words(name, &error),
        error => error.into(),
    })?;
    Ok(status.clamp(0, 255) as u8)
}

/// Why a lab does not answer, and what to do about it.
fn in_words(name: &str, error: &KeptError) -> anyhow::Error {
    match error {
        KeptError::Gone => {
            let others = names().unwrap_or_default().join(", ");
            let others = if others.is_empty() { others } else { format!("; there are sockets of {others}") };
            anyhow!("lab {name} does not run: start it with `esw lab start {name}`{others}")
        }
        error => anyhow!("lab {name}: {error}"),
    }
}

fn stop(arguments: &LabStop) -> Result<u8> {
    let name = &arguments.name;
    let stopped = Connection::connect(&socket_of(name)?)
        .and_then(|lab| lab.stop(arguments.force, Duration::from_secs(arguments.timeout.into())));
    match stopped {
        Ok(Stopped::Yes) => {
            line(&format!("ended lab {name}"));
            Ok(HELD)
        }
        Ok(Stopped::Busy(programs)) => {
            complain!("esw: lab {name} has programs; end them, or give --force, which ends them:");
            complain_of(&programs);
            Ok(FAILED)
        }
        Ok(Stopped::Without(programs)) => {
            complain!("esw: ended lab {name}, without these programs, which have not ended and see no card any more:");
            complain_of(&programs);
            Ok(FAILED)
        }
        Err(error) => {
            complain!("esw: {:#}", in_words(name, &error));
            Ok(FAILED)
        }
    }
}

fn complain_of(programs: &[ProgramInside]) {
    programs.iter().for_each(|program| complain!("  {}", program_in_words(program)));
    if programs.is_empty() {
        complain!("  processes that have left the lab's mounts, or end just now");
    }
}

fn program_in_words(program: &ProgramInside) -> String {
    format!("process {}: {}", program.pid, program.command)
}

/// The names of the labs that have a socket, sorted.
fn names() -> io::Result<Vec<String>> {
    // As of one lab: the folder must be trusted.
    socket_of("")?;
    let entries = match std::fs::read_dir(folder()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(".sock"));
        names.extend(name.filter(|name| lab_name(name).is_ok()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// A line of `esw lab list --json`.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    #[serde(flatten)]
    status: lab::Status,
}

fn list(arguments: &LabList) -> Result<u8> {
    let mut code = HELD;
    let mut listed = 0;
    for name in names().context("looking for labs")? {
        match socket_of(&name).map_err(KeptError::from).and_then(|path| Connection::connect(&path)?.status()) {
            Ok(status) => show(&Listed { name: &name, status }, arguments.json),
            // It has been killed, or has ended since.
            Err(KeptError::Gone) => continue,
            Err(error) => {
                complain!("esw: {:#}", in_words(&name, &error));
                code = FAILED;
            }
        }
        listed += 1;
    }
    if listed == 0 && !arguments.json {
        line(&format!("no lab runs; `esw lab start NAME` starts one (looked in {})", folder().display()));
    }
    Ok(code)
}

fn show(listed: &Listed<'_>, json: bool) {
    if json {
        // Text and numbers only, so this cannot fail.
        line(&printable_json(&serde_json::to_string(listed).unwrap_or_default()));
        return;
    }
    let status = &listed.status;
    let programs = many(status.programs.len() as u64, "program");
    let up = duration(Duration::from_secs(status.uptime_seconds));
    line(&printable(&format!(
        "{}  {}, up {up}, process {}, {programs}",
        listed.name,
        status.cards.join(", "),
        status.pid
    )));
    status.programs.iter().for_each(|program| line(&printable(&format!("  {}", program_in_words(program)))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_checked() {
        for good in ["a", "ci-7", "A.b_c", "0"] {
            assert_eq!(lab_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "exec", ".a", "-a", "a/b", "..", "a b", "ä", "x\n", &"a".repeat(33)] {
            assert!(lab_name(bad).is_err(), "{bad:?}");
        }
    }
}
