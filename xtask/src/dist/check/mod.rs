//! `cargo xtask dist --check`: uses each file as a user would.
//!
//! Everything happens in temporary folders, which are removed; nothing of the machine is changed. A check that needs a
//! program that is not here, or root, is skipped with a line that names it.

pub mod image;
mod package;
mod shells;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::find_program;

use super::{Ingredients, Made, SUMS, make};

/// The files that are checked.
struct Subject<'s> {
    /// The folder that they are in.
    out: &'s Path,
    ingredients: &'s Ingredients,
    made: &'s Made,
}

/// One of the checks.
struct Check {
    /// What holds if it passes.
    name: &'static str,
    /// The programs that it runs.
    programs: &'static [&'static str],
    needs_root: bool,
    run: fn(&Subject) -> Result<()>,
}

const CHECKS: [Check; 16] = [
    Check { name: "a second run makes the same bytes", programs: &[], needs_root: false, run: same_bytes },
    Check { name: "the sums are those of the files", programs: &["sha256sum"], needs_root: false, run: sums },
    Check { name: "the binary runs", programs: &[], needs_root: false, run: binary_runs },
    Check {
        name: "dpkg-deb accepts the package",
        programs: &["dpkg-deb"],
        needs_root: false,
        run: package::is_accepted,
    },
    Check {
        name: "what the package has runs in an empty root",
        programs: &["dpkg-deb", "chroot"],
        needs_root: true,
        run: package::runs_in_an_empty_root,
    },
    Check {
        name: "the daemon runs as the unit starts it",
        programs: &["chroot", "ip", "mount", "sh", "unshare"],
        needs_root: true,
        run: package::daemon_runs,
    },
    Check {
        name: "dpkg installs the package, and removes all of it",
        programs: &["dpkg"],
        needs_root: true,
        run: package::is_installed_and_removed,
    },
    Check {
        name: "systemd accepts the unit",
        programs: &["systemd-analyze"],
        needs_root: false,
        run: package::unit_is_accepted,
    },
    Check { name: "groff has no warning of a page", programs: &["groff"], needs_root: false, run: shells::groff },
    Check { name: "man finds and shows the pages", programs: &["man"], needs_root: false, run: shells::man },
    Check { name: "bash completes", programs: &["bash"], needs_root: false, run: shells::bash },
    Check { name: "zsh finds its completions", programs: &["zsh"], needs_root: false, run: shells::zsh },
    Check { name: "fish completes", programs: &["fish"], needs_root: false, run: shells::fish },
    Check {
        name: "the image has the digests that it says, and the binary",
        programs: &[],
        needs_root: false,
        run: image::is_whole,
    },
    Check {
        name: "crun runs the image",
        programs: &["crun", "unshare", "sh"],
        needs_root: true,
        run: image::runs_in_a_container,
    },
    Check {
        name: "pods on two nodes reach each other",
        programs: &["dpkg-deb", "crun", "ip", "tc", "ping", "unshare", "sh"],
        needs_root: true,
        run: package::two_nodes,
    },
];

/// Runs the checks.
///
/// # Errors
/// One fails; those after it are not run.
pub fn run(out: &Path, ingredients: &Ingredients, made: &Made) -> Result<()> {
    let subject = Subject { out, ingredients, made };
    for Check { name, programs, needs_root, run } in CHECKS {
        let mut missing: Vec<&str> =
            programs.iter().copied().filter(|program| find_program(program).is_none()).collect();
        if needs_root && !rustix::process::geteuid().is_root() {
            missing.push("root");
        }
        if !missing.is_empty() {
            println!("skipped: {name}: needs {}", missing.join(", "));
            continue;
        }
        let began = Instant::now();
        run(&subject).with_context(|| format!("it does not hold that {name}"))?;
        println!("ok, {:.1} s: {name}", began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn same_bytes(subject: &Subject) -> Result<()> {
    for (name, bytes) in &make(subject.ingredients)? {
        let written = fs::read(subject.out.join(name)).with_context(|| name.clone())?;
        ensure!(written == *bytes, "a second run makes another {name}");
    }
    Ok(())
}

fn sums(subject: &Subject) -> Result<()> {
    output(Command::new("sha256sum").args(["--check", "--strict", "--quiet", SUMS]).current_dir(subject.out))?;
    let listed = String::from_utf8_lossy(&subject.made[SUMS]).lines().count();
    ensure!(listed == subject.made.len() - 1, "{SUMS} has {listed} of {} files", subject.made.len() - 1);
    Ok(())
}

fn binary_runs(subject: &Subject) -> Result<()> {
    expect_version(subject, &mut Command::new(subject.out.join("esw")))
}

/// Runs `esw --version` and fails if the version is another. `esw`: the command that starts it.
fn expect_version(subject: &Subject, esw: &mut Command) -> Result<()> {
    let Printed { text, .. } = output(esw.arg("--version"))?;
    let expected = format!("esw {}", subject.ingredients.release.version);
    ensure!(text.trim() == expected, "`esw --version` printed `{}` instead of `{expected}`", text.trim());
    Ok(())
}

/// What a program has printed.
struct Printed {
    /// To its standard output.
    text: String,
    /// To its standard error.
    complaints: String,
}

/// Runs a program to its end, with messages in English.
///
/// # Errors
/// It cannot be started, or it fails; the error has what it printed.
fn output(command: &mut Command) -> Result<Printed> {
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("{command:?}: {}\n{text}{complaints}", output.status);
    }
    Ok(Printed { text, complaints })
}

/// Unpacks an archive as tar would as root.
fn unpack(archive: &[u8], folder: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.unpack(folder).with_context(|| format!("unpacking into {}", folder.display()))
}

/// A folder that is removed at the end.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty folder in the temporary directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(purpose: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("eswitch-dist-{purpose}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("{} cannot be removed: {error}", self.path.display());
        }
    }
}
