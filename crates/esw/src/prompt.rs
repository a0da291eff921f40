//! Reads lines from a terminal, with history and completion, or from standard input as it is.
//!
//! They are read on a thread of their own, so that a signal can end the command while no line is typed.

use std::fs;
use std::io::{BufRead, IsTerminal, stdin};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};

/// The names on a card that can be completed.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub devices: Vec<String>,
    pub ports: Vec<String>,
    pub netdevs: Vec<String>,
    pub modules: Vec<String>,
}

/// What the prompt has read.
#[derive(Debug)]
pub enum Input {
    Line(String),
    /// Ctrl-D, or the end of the input.
    End,
    /// Ctrl-C.
    Interrupt,
    /// The input cannot be read, for this reason.
    Failed(String),
}

/// A source of lines.
pub struct Prompt {
    requests: Sender<Names>,
    answers: Receiver<Input>,
    /// The settings that the terminal had before, if standard input is one.
    terminal: Option<Termios>,
}

impl Prompt {
    /// Starts reading from standard input.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> Result<Self> {
        let (requests, requested) = channel();
        let (answer, answers) = channel();
        let interactive = stdin().is_terminal();
        let terminal = if interactive { tcgetattr(stdin()).ok() } else { None };
        let read =
            move || if interactive { read_terminal(&requested, &answer) } else { read_plainly(&requested, &answer) };
        thread::Builder::new().name("prompt".to_owned()).spawn(read)?;
        Ok(Self { requests, answers, terminal })
    }

    /// Whether lines are typed at a terminal.
    pub fn is_interactive(&self) -> bool {
        self.terminal.is_some()
    }

    /// The next line; or an interrupt as soon as `stopped` returns true. `names` can be completed in it.
    pub fn next(&self, names: Names, mut stopped: impl FnMut() -> bool) -> Input {
        if self.requests.send(names).is_err() {
            return Input::End;
        }
        loop {
            match self.answers.recv_timeout(Duration::from_millis(50)) {
                Ok(input) => return input,
                Err(RecvTimeoutError::Disconnected) => return Input::End,
                Err(RecvTimeoutError::Timeout) if stopped() => {
                    self.restore();
                    return Input::Interrupt;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Restores the settings of the terminal, which the reading thread may still have changed.
    fn restore(&self) {
        if let Some(terminal) = &self.terminal {
            let _ = tcsetattr(stdin(), OptionalActions::Now, terminal);
        }
    }
}

fn read_plainly(requested: &Receiver<Names>, answer: &Sender<Input>) {
    let mut lines = stdin().lock().lines();
    while requested.recv().is_ok() {
        let input = match lines.next() {
            Some(Ok(line)) => Input::Line(line),
            Some(Err(error)) => Input::Failed(error.to_string()),
            None => Input::End,
        };
        if answer.send(input).is_err() {
            return;
        }
    }
}

fn read_terminal(requested: &Receiver<Names>, answer: &Sender<Input>) {
    let config = Config::builder().completion_type(CompletionType::List).auto_add_history(true).build();
    let mut editor: Editor<Words, FileHistory> = match Editor::with_config(config) {
        Ok(editor) => editor,
        Err(error) => {
            let _ = answer.send(Input::Failed(error.to_string()));
            return;
        }
    };
    let history = history_file();
    if let Some(file) = &history {
        // The first time there is no such file.
        let _ = editor.load_history(file);
    }
    while let Ok(names) = requested.recv() {
        editor.set_helper(Some(Words(names)));
        let input = match editor.readline("esw> ") {
            Ok(line) => Input::Line(line),
            Err(ReadlineError::Eof) => Input::End,
            Err(ReadlineError::Interrupted) => Input::Interrupt,
            Err(error) => Input::Failed(error.to_string()),
        };
        if let Some(file) = &history {
            // A history that cannot be written is no reason to stop.
            let _ = editor.save_history(file);
        }
        if answer.send(input).is_err() {
            return;
        }
    }
}

/// The file of the history: `$XDG_STATE_HOME/eswitch/history`.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let folder = state.join("eswitch");
    fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// Commands of the prompt, beside the steps of scenarios.
pub const OWN: [&str; 7] = ["help", "ports", "events", "check", "shell", "!", "quit"];

struct Words(Names);

impl Helper for Words {}
impl Highlighter for Words {}
impl Validator for Words {}
impl Hinter for Words {
    type Hint = String;
}

impl Completer for Words {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let (start, mut candidates) = self.candidates(&line[..at]);
        if let [only] = &mut candidates[..] {
            only.push(' ');
        }
        Ok((start, candidates))
    }
}

impl Words {
    /// The byte at which the word that is being typed starts, and its completions.
    fn candidates(&self, typed: &str) -> (usize, Vec<String>) {
        let start = typed.rfind(' ').map_or(0, |space| space + 1);
        let (before, word) = typed.split_at(start);
        let before: Vec<&str> = before.split_whitespace().collect();
        let mut all: Vec<String> = if before.is_empty() { OWN.map(str::to_owned).to_vec() } else { Vec::new() };
        for form in scenario::completions(&before) {
            self.fill(form, &mut all);
        }
        all.retain(|candidate| candidate.starts_with(word));
        all.sort();
        all.dedup();
        (start, all)
    }

    fn fill(&self, form: &'static str, all: &mut Vec<String>) {
        let Names { devices, ports, netdevs, modules } = &self.0;
        match form {
            "DEV" => all.extend(devices.iter().map(|device| format!("pci/{device}"))),
            "PORT" => all.extend(ports.iter().cloned()),
            "PFNETDEV" => all.extend(netdevs.iter().cloned()),
            "MODULE" => all.extend(modules.iter().cloned()),
            "KIND" => all.extend(["eth", "ib", "port", "fdb", "netdev", "ibdev", "function"].map(str::to_owned)),
            "EXPECTATION" => {
                let subjects = scenario::EXPECTATIONS.iter().filter_map(|entry| entry.form.split(' ').next());
                all.extend(subjects.map(str::to_owned));
            }
            _ if form.contains("ADDRESS") => {
                all.extend(devices.iter().map(|device| form.replace("ADDRESS", device)));
            }
            _ if form.chars().any(|c| c.is_ascii_uppercase()) => {}
            _ => all.push(form.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_devices_and_ports_are_completed() {
        let words = Words(Names {
            devices: vec!["0000:08:00.0".to_owned()],
            ports: vec!["pci/0000:08:00.0/1".to_owned()],
            netdevs: vec!["enp8s0f0np0".to_owned()],
            modules: vec!["mlx5_core".to_owned(), "mlx5_ib".to_owned()],
        });
        for (typed, start, expected) in [
            ("devl", 0, &["devlink"][..]),
            ("devlink dev es", 12, &["eswitch"]),
            ("devlink dev eswitch set ", 24, &["pci/0000:08:00.0"]),
            ("devlink dev eswitch set pci/0000:08:00.0 mode s", 46, &["switchdev", "switchdev_inactive"]),
            ("modprobe mlx5_i", 9, &["mlx5_ib"]),
            ("expect rep ", 11, &["pci/0000:08:00.0/1"]),
            (
                "echo 4 > /sys/bus/pci/devices/0000:08:00.0/sriov_n",
                9,
                &["/sys/bus/pci/devices/0000:08:00.0/sriov_numvfs"],
            ),
        ] {
            assert_eq!(words.candidates(typed), (start, expected.iter().map(ToString::to_string).collect()), "{typed}");
        }
    }
}
