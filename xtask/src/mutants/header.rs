//! The header of a mutant's patch, before the diff.
//!
//! One field on each line, `Name: text`; a line that begins with two spaces continues the field before it.
//!
//! | field | |
//! | --- | --- |
//! | `Undoes` | what it undoes |
//! | `Planted` | how, if this is not obvious |
//! | `Scenario` | the scenario that must catch it, by its file name without `.toml`, or those that must catch it together, separated by `, `; absent if the compiler rejects it |
//! | `Invariant` | the invariant that must catch it, or `compiler` |
//! | `Error` | what the compiler prints if it must reject it: parts of it, separated by `; ` |
//! | `Faults` | `each`: the scenario is also explored with each failure |
//! | `Options` | `whole`: bring-up and take-down are explored, too |

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use eswitch::inspect::INVARIANTS;

/// A planted bug.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// The patch's name, without its ending.
    pub name: String,
    /// The patch.
    pub patch: PathBuf,
    /// What it undoes.
    pub undoes: String,
    /// What must catch it.
    pub caught_by: CaughtBy,
}

/// What must catch a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaughtBy {
    /// It does not compile, and the compiler's messages contain this.
    Compiler { error: String },
    /// Exploring a scenario breaks an invariant.
    Exploring { scenarios: Vec<String>, invariant: String, faults: bool, whole: bool },
}

impl Mutant {
    /// Reads a patch.
    ///
    /// # Errors
    /// The patch cannot be read, a field is missing or unknown, or an invariant is unknown.
    pub fn read(patch: &Path) -> Result<Self> {
        let text = fs::read_to_string(patch).with_context(|| patch.display().to_string())?;
        let name = patch.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, patch, &text).with_context(|| patch.display().to_string())
    }

    fn parse(name: &str, patch: &Path, text: &str) -> Result<Self> {
        let mut fields = Fields::parse(text)?;
        let undoes = fields.required("Undoes")?;
        let _ = fields.take("Planted");
        let invariant = fields.required("Invariant")?;
        let caught_by = if invariant == "compiler" {
            CaughtBy::Compiler { error: fields.required("Error")? }
        } else {
            let names = INVARIANTS.map(|invariant| invariant.name);
            ensure!(
                names.contains(&invariant.as_str()),
                "Invariant: {invariant}: expected compiler or one of {}",
                names.join(", ")
            );
            CaughtBy::Exploring {
                invariant,
                scenarios: fields.required("Scenario")?.split(", ").map(str::to_owned).collect(),
                faults: fields.word("Faults", "each")?,
                whole: fields.word("Options", "whole")?,
            }
        };
        if let Some((field, _)) = fields.0.first() {
            bail!("{field}: no such field here");
        }
        Ok(Self { name: name.to_owned(), patch: patch.to_owned(), undoes, caught_by })
    }

    /// The invariant that must catch it, or `compiler`.
    pub fn invariant(&self) -> &str {
        match &self.caught_by {
            CaughtBy::Compiler { .. } => "compiler",
            CaughtBy::Exploring { invariant, .. } => invariant,
        }
    }

    /// The scenarios that must catch it, whether with each failure, and whether bring-up and take-down are explored.
    pub fn story(&self) -> Option<(&[String], bool, bool)> {
        match &self.caught_by {
            CaughtBy::Compiler { .. } => None,
            CaughtBy::Exploring { scenarios, faults, whole, .. } => Some((scenarios, *faults, *whole)),
        }
    }

    /// The scenarios that must catch it; none if the compiler must.
    pub fn scenarios(&self) -> &[String] {
        self.story().map_or(&[], |(scenarios, ..)| scenarios)
    }
}

struct Fields(Vec<(String, String)>);

impl Fields {
    fn parse(text: &str) -> Result<Self> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in text.lines().take_while(|line| !line.starts_with("diff --git ")) {
            if let Some(more) = line.strip_prefix("  ") {
                let (_, text) = fields.last_mut().ok_or_else(|| anyhow!("`{line}` goes on with no field"))?;
                text.push(' ');
                text.push_str(more.trim());
            } else if let Some((field, text)) = line.split_once(':') {
                ensure!(!fields.iter().any(|(other, _)| other == field), "{field} is there twice");
                fields.push((field.to_owned(), text.trim().to_owned()));
            } else {
                ensure!(line.trim().is_empty(), "`{line}`: expected `Field: text` or the diff");
            }
        }
        Ok(Self(fields))
    }

    fn take(&mut self, field: &str) -> Option<String> {
        let at = self.0.iter().position(|(name, _)| name == field)?;
        Some(self.0.remove(at).1)
    }

    fn required(&mut self, field: &str) -> Result<String> {
        self.take(field).filter(|text| !text.is_empty()).ok_or_else(|| anyhow!("it has no {field}"))
    }

    /// A field that can only be one word.
    fn word(&mut self, field: &str, word: &str) -> Result<bool> {
        match self.take(field) {
            None => Ok(false),
            Some(text) if text == word => Ok(true),
            Some(text) => bail!("{field}: {text}: expected {word}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "\ndiff --git a/x b/x\n--- a/x\n+++ b/x\nUndoes: not a field\n";

    fn parse(header: &str) -> Result<Mutant> {
        Mutant::parse("name", Path::new("mutants/name.patch"), &format!("{header}{DIFF}"))
    }

    #[test]
    fn a_header_is_read() {
        let mutant = parse(
            "Undoes: the lock\n  of representors.\nPlanted: so.\nScenario: late-ib\nInvariant: load-once\nFaults: each\n",
        )
        .unwrap();
        assert_eq!(mutant.undoes, "the lock of representors.");
        assert_eq!((mutant.scenarios(), mutant.invariant()), (&["late-ib".to_owned()][..], "load-once"));
        assert!(matches!(mutant.caught_by, CaughtBy::Exploring { faults: true, whole: false, .. }));
    }

    #[test]
    fn what_the_compiler_rejects_has_its_error() {
        let mutant = parse("Undoes: the order.\nInvariant: compiler\nError: E0277 the trait bound\n").unwrap();
        assert_eq!(mutant.caught_by, CaughtBy::Compiler { error: "E0277 the trait bound".to_owned() });
        assert!(mutant.scenarios().is_empty());
    }

    #[test]
    fn two_scenarios_may_catch_it_together() {
        let mutant = parse("Undoes: it.\nScenario: late-ib, stale-work\nInvariant: lock-order\n").unwrap();
        assert_eq!(mutant.scenarios(), ["late-ib", "stale-work"]);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        for (header, why) in [
            ("Scenario: late-ib\nInvariant: load-once\n", "no Undoes"),
            ("Undoes: it.\nInvariant: load-once\n", "no Scenario"),
            ("Undoes: it.\nScenario: x\nInvariant: load-twice\n", "load-twice: expected compiler or one of"),
            ("Undoes: it.\nInvariant: compiler\n", "no Error"),
            ("Undoes: it.\nUndoes: that.\n", "Undoes is there twice"),
            ("Undoes: it.\nScenario: x\nInvariant: load-once\nFaults: some\n", "Faults: some: expected each"),
            ("Undoes: it.\nScenario: x\nInvariant: load-once\nColour: red\n", "Colour: no such field here"),
            ("Undoes: it.\nwithout a colon\n", "expected `Field: text` or the diff"),
            ("  goes on\n", "goes on with no field"),
        ] {
            let error = parse(header).unwrap_err().to_string();
            assert!(error.contains(why), "{header}: {error}");
        }
    }
}
