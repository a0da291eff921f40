//! Which scripts of the repository make a set, and where they are put for a run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::page::Section;
use crate::workspace::output_of;

/// Where the scripts come from.
const UPSTREAM: &str = "https://github.com/Mellanox/ovs-tests";
/// The commit that is run: of 2024-11-17.
pub const COMMIT: &str = "39d46ece";

/// A set of scripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Set {
    /// Those of the control plane
    #[default]
    Control,
    /// Those of tc, of Open vSwitch and of connection tracking that need one machine
    Tc,
}

impl Set {
    /// With one of these the names of its scripts begin.
    fn beginnings(self) -> &'static [&'static str] {
        match self {
            Self::Control => &["test-devlink-", "test-eswitch-", "test-sf-", "test-vf-"],
            Self::Tc => &["test-tc-", "test-ovs-", "test-ct-"],
        }
    }

    /// A script with one of these in its text needs what cannot be had: a second machine, or NVIDIA's tools for the firmware and
    /// for what is in the hardware's tables.
    fn needs(self) -> &'static [&'static str] {
        match self {
            // The table has these, too, with what each needs.
            Self::Control => &[],
            Self::Tc => &["REMOTE", "mlxdump", "mlxreg", "mlxconfig"],
        }
    }

    /// Whether a script is one of the set. `text`: reads it.
    fn has(self, name: &str, text: impl FnOnce() -> Result<String>) -> Result<bool> {
        let is_named_so = self.beginnings().iter().any(|beginning| name.starts_with(beginning));
        if !is_named_so || self.needs().is_empty() {
            return Ok(is_named_so);
        }
        let text = text()?;
        Ok(!self.needs().iter().any(|needed| text.contains(needed)))
    }

    /// The table on the page.
    pub fn section(self) -> Section {
        let name = match self {
            Self::Control => "ovs-tests",
            Self::Tc => "ovs-tests-tc",
        };
        Section { page: "docs/compatibility.md", name }
    }

    /// The command that measures the set.
    pub fn measured_by(self) -> &'static str {
        match self {
            Self::Control => "cargo xtask ovs-tests --write",
            Self::Tc => "cargo xtask ovs-tests tc --in-vm --write",
        }
    }

    /// The names of its scripts in a folder, without `.sh`, in order.
    ///
    /// # Errors
    /// The folder or a script cannot be read.
    pub fn scripts(self, folder: &Path) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(name) = file.strip_suffix(".sh") else { continue };
            let text = || {
                let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            };
            if self.has(name, text)? {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Puts the commit's files into the folder `scripts`. `repository`: a clone; without one, one is made in `place`.
///
/// # Errors
/// There is no such clone, or it lacks the commit.
pub fn check_out(repository: Option<&Path>, place: &Path, scripts: &Path) -> Result<()> {
    let clone = place.join("clone");
    let repository = match repository {
        Some(repository) => repository,
        None => {
            output_of("git", &["clone", "--quiet", "--bare", UPSTREAM, &clone.display().to_string()])?;
            &clone
        }
    };
    fs::create_dir_all(scripts)?;
    let repository = repository.canonicalize().with_context(|| repository.display().to_string())?;
    let repository = repository.display().to_string();
    // The files beside the scripts, without the folders: those have programs and what other scripts need.
    let tree = output_of("git", &["-C", &repository, "ls-tree", COMMIT])?;
    let files = tree.lines().filter(|line| line.contains(" blob ")).filter_map(|line| line.split('\t').nth(1));
    let archive = place.join("scripts.tar");
    let mut git = Command::new("git");
    git.args(["-C", &repository, "archive", "-o"]).arg(&archive).args([COMMIT, "--"]).args(files);
    ensure!(git.status().context("running git")?.success(), "`git archive {COMMIT}` failed in {repository}");
    output_of("tar", &["-xf", &archive.display().to_string(), "-C", &scripts.display().to_string()])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_needs_a_second_machine_or_a_tool_of_the_firmware_is_not_of_tc() {
        let has = |set: Set, name: &str, text: &str| set.has(name, || Ok(text.to_owned())).unwrap();
        assert!(has(Set::Tc, "test-ovs-vlan", "require_interfaces REP REP2"));
        assert!(!has(Set::Tc, "test-ovs-vlan", "on_remote ip link; ping $REMOTE_IP"));
        assert!(!has(Set::Tc, "test-tc-vlan", "require_mlxdump"));
        assert!(!has(Set::Tc, "test-vf-rep-ping", ""));
        assert!(has(Set::Control, "test-vf-rep-ping", "REMOTE"));
    }
}
