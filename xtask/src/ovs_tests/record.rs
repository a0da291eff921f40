//! What a script's run has shown, and what counts as passed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::judged;
use super::select::Set;
use super::stage::Run;
use super::trace::{self, Failure};

/// How a result of a script that passed begins.
pub const PASSED: &str = "**passed**";
/// How a result of a script that says `TEST PASSED` and does not count as passed begins.
pub const EMPTY: &str = "says `TEST PASSED`, does not count";

/// By these words a script's text sends traffic.
const SENDERS: [&str; 6] = ["ping", "iperf", "scapy", "pktgen", "nc ", "send_traffic"];

/// What is known of a script's run: enough to judge it, also later.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The script, without `.sh`.
    pub name: String,
    /// What it has printed.
    pub output: String,
    /// After how many seconds it was ended, if it was.
    pub ended_after_s: Option<u32>,
    /// What failed in it.
    pub failures: Vec<Failure>,
    /// Whether it is about flow rules and sends traffic.
    pub sends: bool,
    /// Whether the card had rules at one of the times at which it was asked, every two seconds.
    pub had_rules: bool,
    /// Whether one of them had carried a packet.
    pub carried: bool,
}

/// How a script ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It says `TEST PASSED`, and nothing that matters has failed.
    Passed,
    /// It says `TEST PASSED`, but this has failed.
    Empty(Vec<String>),
    /// It does not say `TEST PASSED`. The errors that it printed, or its last lines.
    Failed(Vec<String>),
    /// It was ended after its time, in seconds.
    TookTooLong(u32),
}

impl Record {
    /// Of a run. `scripts`: the folder with the script.
    ///
    /// # Errors
    /// The traces or the script cannot be read.
    pub fn of(name: &str, set: Set, run: Run, scripts: &Path, limit_s: u32) -> Result<Self> {
        let path = scripts.join(format!("{name}.sh"));
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        let text = String::from_utf8_lossy(&text);
        let sent: Vec<&str> = run.rules.lines().filter_map(|line| line.trim().strip_prefix("Sent ")).collect();
        Ok(Self {
            name: name.to_owned(),
            output: run.output,
            ended_after_s: run.was_ended.then_some(limit_s),
            failures: trace::failures(&run.trace)?,
            sends: set == Set::Tc && SENDERS.iter().any(|sender| text.contains(sender)),
            had_rules: !run.rules.trim().is_empty(),
            carried: sent.iter().any(|sent| !sent.contains(" bytes 0 pkt")),
        })
    }

    /// The text of the script's row.
    pub fn result(&self) -> String {
        let because = judged::reason(&self.name, &self.output, &self.failures);
        match self.outcome() {
            Outcome::Passed => PASSED.to_owned(),
            Outcome::Empty(why) => format!("{EMPTY}: {}", because.unwrap_or_else(|| quoted(&why))),
            Outcome::Failed(why) => because.unwrap_or_else(|| quoted(&why)),
            Outcome::TookTooLong(limit_s) => because.unwrap_or_else(|| format!("took over {limit_s} s")),
        }
    }

    fn outcome(&self) -> Outcome {
        let printed = printed(&self.output);
        let errors = printed.iter().filter_map(|line| line.strip_prefix("ERROR: "));
        let errors: Vec<String> = errors.map(str::to_owned).collect();
        if let Some(limit_s) = self.ended_after_s {
            return Outcome::TookTooLong(limit_s);
        }
        if !printed.iter().any(|line| line == "TEST PASSED") {
            let last: Vec<String> = printed.iter().rev().take(1).cloned().collect();
            return Outcome::Failed(if errors.is_empty() { last } else { errors });
        }
        let of_error = |words: String| Failure { at: String::new(), command: "ERROR".to_owned(), words };
        let found: Vec<Failure> = errors.into_iter().map(of_error).chain(self.failures.iter().cloned()).collect();
        let found = found.iter().filter(|failure| !judged::may_fail(&self.name, failure));
        let mut why: Vec<String> = found.map(|failure| format!("{}: {}", failure.command, failure.words)).collect();
        if self.sends && !self.carried && !judged::needs_no_rule(&self.name) {
            let seen = if self.had_rules { "rules: none was seen to carry a packet" } else { "rules: none was seen" };
            why.push(seen.to_owned());
        }
        if why.is_empty() { Outcome::Passed } else { Outcome::Empty(why) }
    }
}

/// The first of some messages, and how many more there are.
fn quoted(messages: &[String]) -> String {
    let Some(first) = messages.first() else { return "prints nothing about it".to_owned() };
    let first: String = first.replace('`', "'").chars().take(200).collect();
    match messages.len() {
        1 => format!("`{first}`"),
        more => format!("`{first}`, and {} more", more - 1),
    }
}

/// The lines that a script has printed, without colours.
fn printed(output: &str) -> Vec<String> {
    let lines = output.lines().map(|line| {
        let mut parts = line.split('\u{1b}');
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + part.split_once('m').map_or(part, |(_, rest)| rest))
    });
    lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(command: &str, words: &str) -> Failure {
        Failure { at: String::new(), command: command.to_owned(), words: words.to_owned() }
    }

    fn record(output: &str, failures: &[Failure]) -> Record {
        Record {
            name: "test-x".to_owned(),
            output: output.to_owned(),
            ended_after_s: None,
            failures: failures.to_vec(),
            sends: false,
            had_rules: false,
            carried: false,
        }
    }

    const SAYS_PASSED: &str = "\u{1b}[0;32mTEST PASSED\u{1b}[0;0m\n";

    #[test]
    fn a_script_that_says_that_it_passed_has_not_if_a_command_failed() {
        assert_eq!(record(SAYS_PASSED, &[]).outcome(), Outcome::Passed);
        let failed = [failure("ethtool -L x combined 4", "netlink error: Invalid argument")];
        let why = "ethtool -L x combined 4: netlink error: Invalid argument".to_owned();
        assert_eq!(record(SAYS_PASSED, &failed).outcome(), Outcome::Empty(vec![why]));
        let at_the_start = [failure("modprobe -q mlx_compat", "exit status 1")];
        assert_eq!(record(SAYS_PASSED, &at_the_start).outcome(), Outcome::Passed, "it may fail");
    }

    #[test]
    fn a_script_that_prints_an_error_has_not_passed() {
        let output = format!("\u{1b}[0;31mERROR: no rule\u{1b}[0;0m\n{SAYS_PASSED}");
        assert_eq!(record(&output, &[]).outcome(), Outcome::Empty(vec!["ERROR: no rule".to_owned()]));
    }

    #[test]
    fn a_script_that_does_not_say_that_it_passed_has_the_errors_that_it_printed() {
        assert_eq!(record("a\nERROR: b\nTEST FAILED\n", &[]).outcome(), Outcome::Failed(vec!["b".into()]));
        assert_eq!(record("a\nb\n", &[]).outcome(), Outcome::Failed(vec!["b".into()]));
        assert_eq!(
            Record { ended_after_s: Some(300), ..record(SAYS_PASSED, &[]) }.outcome(),
            Outcome::TookTooLong(300)
        );
        assert_eq!(record("a\nb\n", &[]).result(), "`b`");
    }

    #[test]
    fn a_script_that_sends_traffic_past_all_its_rules_has_not_passed() {
        let sends = Record { sends: true, had_rules: true, ..record(SAYS_PASSED, &[]) };
        assert_eq!(sends.outcome(), Outcome::Empty(vec!["rules: none was seen to carry a packet".to_owned()]));
        assert_eq!(Record { carried: true, ..sends.clone() }.outcome(), Outcome::Passed);
        assert_eq!(
            Record { had_rules: false, ..sends }.outcome(),
            Outcome::Empty(vec!["rules: none was seen".to_owned()])
        );
    }
}
