//! `esw up` without `--daemon`: a card with a prompt.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use card_linux::Place;
use eswitch::CardConfig;
use host::{Heeds, Pulse};
use lockdep::{Domain, Locked, Unlocked};
use scenario::{Action, Ports, Session, WordError};

use crate::arguments::Up;
use crate::cards::Cards;
use crate::exit_status::{FAILED, HELD, INTERRUPTED};
use crate::interrupt::{self, ForegroundProgram};
use crate::lock_order;
use crate::output::{self, Style, complain, line};
use crate::printable::printable;
use crate::programs;
use crate::prompt::{Input, Names, Prompt};

/// How long a wait at the prompt may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the command; its exit status.
///
/// # Errors
/// A configuration that cannot be used, no place for the card, or a card that does not come up.
pub fn up(arguments: &Up) -> Result<u8> {
    let config = match &arguments.config {
        Some(path) => read_config(path)?,
        None => CardConfig::default(),
    };
    if let Some(netns) = &arguments.netns {
        Place::enter(netns)?;
    }
    let cards = Cards::prepare(arguments.card)?;
    let domain = lock_order::domain(arguments.lockdep);
    let pulse = Arc::new(Pulse::new());
    let foreground = interrupt::listen(&domain, &pulse)?;
    lockdep::enter(&domain, "main", |cx| {
        let world = cards.world(&config, &domain, &pulse)?;
        let has_programs = world.programs.is_some();
        let session = match Session::start(cx, config, world, LIMIT) {
            Ok(session) => session,
            Err(error) => bail!("the card did not come up: {error}"),
        };
        let prompt =
            PromptedCard { session, domain: Arc::clone(&domain), foreground, has_programs, style: Style::detect() };
        prompt.serve(cx)
    })
}

/// A card's configuration: TOML, what a scenario has under `[card]`.
fn read_config(path: &Path) -> Result<CardConfig> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    match scenario::parse_card(&text) {
        Ok(config) => Ok(config),
        Err(error) => bail!("{}:{error}", path.display()),
    }
}

/// The outcome of a line that was typed.
enum LineOutcome {
    /// It was carried out.
    Ok,
    /// It failed, with these lines of errors.
    Failed(Vec<String>),
    /// It ends the prompt.
    Quit,
}

/// A card that takes its steps from a prompt.
struct PromptedCard {
    session: Session,
    domain: Arc<Domain>,
    foreground: ForegroundProgram,
    has_programs: bool,
    style: Style,
}

impl PromptedCard {
    /// Takes lines until the end of the input, then takes the card down.
    fn serve(&self, cx: &mut Locked<'_, Unlocked>) -> Result<u8> {
        let prompt = Prompt::start()?;
        if prompt.is_interactive() {
            self.show_ports(cx);
            line(&self.style.faint("`help` lists the commands, `quit` takes the card down"));
        }
        let pulse = Arc::clone(&self.session.world().pulse);
        let (mut failed, mut seen, mut number) = (false, 0, 0);
        let interrupted = loop {
            let names = self.names(cx);
            let text = match prompt.next(names, || pulse.is_stopped(cx)) {
                Input::Line(text) => text,
                Input::End => break false,
                // Ctrl-C at the prompt drops the line that is being typed.
                Input::Interrupt if prompt.is_interactive() && !pulse.is_stopped(cx) => {
                    line(&self.style.faint("`quit` or Ctrl-D takes the card down"));
                    continue;
                }
                Input::Interrupt => break true,
                Input::Failed(error) => {
                    complain!("esw: standard input: {error}");
                    failed = true;
                    break false;
                }
            };
            number += 1;
            let outcome = self.take(cx, text.trim(), &mut seen, prompt.is_interactive());
            if pulse.is_stopped(cx) {
                break true;
            }
            match outcome {
                LineOutcome::Ok => {}
                LineOutcome::Quit => break false,
                LineOutcome::Failed(errors) => {
                    failed = true;
                    if !prompt.is_interactive() {
                        complain!("line {number}: {text}");
                    }
                    errors.iter().for_each(|error| complain!("{error}"));
                }
            }
        };
        for left in self.session.close(cx) {
            failed = true;
            complain!("{}: {}", left.invariant, left.detail);
        }
        if interrupted {
            complain!("esw: interrupted; the card was taken down, nothing is left");
            return Ok(INTERRUPTED);
        }
        Ok(if failed && !prompt.is_interactive() { FAILED } else { HELD })
    }

    fn take(&self, cx: &mut Locked<'_, Unlocked>, text: &str, seen: &mut usize, interactive: bool) -> LineOutcome {
        match text {
            "" => return LineOutcome::Ok,
            _ if text.starts_with('#') => return LineOutcome::Ok,
            "quit" | "exit" => return LineOutcome::Quit,
            "help" => help(self.style),
            "ports" => self.show_ports(cx),
            "events" => {
                let events = self.session.events(cx);
                events.iter().skip(*seen).for_each(|event| line(&printable(event)));
                *seen = events.len();
            }
            "check" => return self.check(cx),
            "shell" => {
                let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
                return self.foreground(Command::new(shell), "shell");
            }
            _ => return self.step(cx, text, interactive),
        }
        LineOutcome::Ok
    }

    fn step(&self, cx: &mut Locked<'_, Unlocked>, text: &str, interactive: bool) -> LineOutcome {
        let action = match Action::parse(text, self.session.engine().config()) {
            Ok(action) => action,
            Err(error) => return LineOutcome::Failed(point_at(text, &error)),
        };
        match &action {
            Action::Sync(_) => {
                return LineOutcome::Failed(vec![
                    "Error: `sync` is for scenarios: no other thread runs here.".to_owned(),
                ]);
            }
            Action::Program(command) if self.has_programs && interactive => {
                return self.foreground(programs::shell_command(command), command);
            }
            _ => {}
        }
        match self.session.perform(cx, Heeds::Stop, &action) {
            Ok(printed) => {
                printed.iter().for_each(|text| line(&printable(text)));
                LineOutcome::Ok
            }
            Err(error) => LineOutcome::Failed(error.lines()),
        }
    }

    /// Runs a program with the terminal of this process, and leaves Ctrl-C to it.
    fn foreground(&self, mut command: Command, name: &str) -> LineOutcome {
        if !self.has_programs {
            return LineOutcome::Failed(vec![format!(
                "Error: `{name}` is a program, and this card has no netdevs to run it among; use `--card linux`."
            )]);
        }
        let status: io::Result<i32> = self.foreground.during(|| programs::in_foreground(&mut command));
        match status {
            Ok(0) => LineOutcome::Ok,
            Ok(status) => LineOutcome::Failed(vec![format!("exit status {status}")]),
            Err(error) => LineOutcome::Failed(vec![format!("Error: {name}: {error}.")]),
        }
    }

    /// Waits until the queues are at rest, and checks every invariant.
    fn check(&self, cx: &mut Locked<'_, Unlocked>) -> LineOutcome {
        if let Err(error) = self.session.perform(cx, Heeds::Stop, &Action::WaitRest { retries: false }) {
            return LineOutcome::Failed(error.lines());
        }
        let mut found: Vec<String> =
            self.session.engine().check(cx).into_iter().map(|v| format!("{}: {}", v.invariant, v.detail)).collect();
        found.extend(self.domain.take_reports().iter().map(|report| format!("{}: {report}", report.invariant())));
        if found.is_empty() {
            line(&self.style.good("every invariant holds"));
            LineOutcome::Ok
        } else {
            LineOutcome::Failed(found)
        }
    }

    fn show_ports(&self, cx: &mut Locked<'_, Unlocked>) {
        let snapshot = self.session.engine().inspect(cx);
        output::ports(self.style, &Ports::of(&snapshot)).iter().for_each(|row| line(row));
    }

    fn names(&self, cx: &mut Locked<'_, Unlocked>) -> Names {
        let engine = self.session.engine();
        let snapshot = engine.inspect(cx);
        let ports = snapshot.pfs.iter().flat_map(|pf| &pf.ports);
        let (mut handles, mut netdevs) = (Vec::new(), Vec::new());
        for port in ports {
            handles.push(port.handle.to_string());
            netdevs.extend(port.netdev.clone().filter(|_| port.flavour == "physical"));
        }
        Names {
            devices: engine.addresses().iter().map(ToString::to_string).collect(),
            ports: handles,
            netdevs,
            modules: eswitch::module::known().split(", ").map(str::to_owned).collect(),
        }
    }
}

/// A line, with a mark under the word that is wrong, and the error.
fn point_at(text: &str, error: &WordError) -> Vec<String> {
    let column = text[..error.at].chars().count();
    vec![format!("  {text}"), format!("  {:column$}^ {error}", "")]
}

fn help(style: Style) {
    let entries = |title: &str, entries: &[scenario::Entry]| {
        line(&style.strong(title));
        for entry in entries {
            line(&format!("  {}", entry.form));
            line(&style.faint(&format!("      {}", entry.does)));
        }
    };
    entries("Steps", scenario::STEPS);
    entries("Expectations", scenario::EXPECTATIONS);
    line(&style.strong("At this prompt"));
    for (word, does) in [
        ("ports", "every port as a table"),
        ("events", "the events since the last time"),
        ("check", "wait until the queues are at rest and check every invariant"),
        ("shell", "a shell among the card's netdevs"),
        ("help", "this list"),
        ("quit, Ctrl-D", "take the card down and end"),
    ] {
        line(&format!("  {word:<14}{}", style.faint(does)));
    }
}
