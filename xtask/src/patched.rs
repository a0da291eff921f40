//! A copy of the tree with patches applied, and its build.
//!
//! The copy and its build are in a directory of their own below the target directory, so that no patch can get into a build
//! of the tree itself. Each purpose has one copy. A change of its patches writes only the files that differ, so that
//! a build compiles only what a patch touches.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{cargo, root, target_dir};

/// A copy of the tree.
pub struct Patched {
    tree: PathBuf,
    target: PathBuf,
    profile: Profile,
}

/// How a copy is built; the profiles are in the workspace's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Optimised, for exploring for long and for figures.
    Optimised,
    /// Built in a third of the time. Exploring takes [`Profile::slowdown`] times as long.
    Unoptimised,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Optimised => "mutant",
            Self::Unoptimised => "mutant-unoptimised",
        }
    }

    /// How many times as long exploring may take as with the optimised program.
    pub fn slowdown(self) -> u64 {
        match self {
            Self::Optimised => 1,
            Self::Unoptimised => 4,
        }
    }
}

/// The result of building a copy.
pub enum Build {
    /// A program that can be run.
    Built(PathBuf),
    /// The compiler rejected it, with these messages.
    Rejected(String),
}

/// A patch does not apply to the tree.
#[derive(Debug)]
pub struct DoesNotApply {
    patch: PathBuf,
    why: String,
}

impl fmt::Display for DoesNotApply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not apply: {}", self.patch.display(), self.why.trim())
    }
}

impl std::error::Error for DoesNotApply {}

impl Patched {
    /// The copy for a purpose, which is its name. A new one is empty; an old one is as the last run left it.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn new(purpose: &str, profile: Profile) -> Result<Self> {
        let folder = target_dir()?.join("patched").join(purpose);
        fs::create_dir_all(folder.join("tree")).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        Ok(Self { tree: folder.join("tree"), target: folder.join("target"), profile })
    }

    /// The files of these scenarios in the copy.
    pub fn scenarios(&self, names: &[String]) -> Vec<PathBuf> {
        let file = |name: &String| self.tree.join("scenarios").join(name).with_extension("toml");
        names.iter().map(file).collect()
    }

    /// The root of the copy.
    #[cfg(test)]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Makes the copy equal to the tree with these patches applied, one after the other.
    ///
    /// # Errors
    /// [`DoesNotApply`]; or the copy cannot be written.
    pub fn set(&self, patches: &[&Path]) -> Result<()> {
        self.change(patches, &[])
    }

    /// Makes the copy equal to the tree with these patches removed, one after the other.
    ///
    /// # Errors
    /// [`DoesNotApply`]; or the copy cannot be written.
    pub fn set_without(&self, patches: &[&Path]) -> Result<()> {
        self.change(patches, &["--reverse"])
    }

    fn change(&self, patches: &[&Path], how: &[&str]) -> Result<()> {
        // The patches are applied to a second copy, of which only the files that differ are written: the others keep their times.
        let next = self.tree.with_file_name("next");
        if next.exists() {
            fs::remove_dir_all(&next)?;
        }
        for file in files(root())? {
            copy(&root().join(&file), &next.join(&file))?;
        }
        for patch in patches {
            apply(&next, patch, how)?;
        }
        let (old, new) = (walk(&self.tree)?, walk(&next)?);
        for gone in old.difference(&new) {
            fs::remove_file(self.tree.join(gone))?;
        }
        for file in &new {
            let (from, to) = (next.join(file), self.tree.join(file));
            if fs::read(&to).ok() != Some(fs::read(&from)?) {
                copy(&from, &to)?;
            }
        }
        fs::remove_dir_all(&next)?;
        Ok(())
    }

    /// Builds the program that explores scenarios, an example of the crate `check`; returns the build and its time.
    ///
    /// # Errors
    /// Cargo cannot be started.
    pub fn build_explorer(&self, features: &[&str]) -> Result<(Build, Duration)> {
        self.build("check", "explore", features)
    }

    /// Builds an example of a crate; returns the build and its time.
    ///
    /// # Errors
    /// Cargo cannot be started.
    pub fn build(&self, package: &str, example: &str, features: &[&str]) -> Result<(Build, Duration)> {
        let began = Instant::now();
        let output = cargo()
            .args(["build", "--locked", "--color", "never", "--profile", self.profile.name(), "--package", package])
            .args(["--example", example])
            .arg(format!("--features={}", features.join(",")))
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .output()
            .context("running cargo")?;
        let built = if output.status.success() {
            Build::Built(self.target.join(self.profile.name()).join("examples").join(example))
        } else {
            Build::Rejected(String::from_utf8_lossy(&output.stderr).into_owned())
        };
        Ok((built, began.elapsed()))
    }
}

/// Whether a patch applies to the tree as it is.
///
/// # Errors
/// [`DoesNotApply`]; or git cannot be started.
#[cfg(test)]
pub fn applies(patch: &Path) -> Result<()> {
    apply(root(), patch, &["--check"])
}

/// Applies a patch to a directory, with these options of `git apply`.
///
/// # Errors
/// [`DoesNotApply`]; or git cannot be started.
pub fn apply(tree: &Path, patch: &Path, how: &[&str]) -> Result<()> {
    let tree = tree.canonicalize()?;
    let patch = patch.canonicalize().with_context(|| patch.display().to_string())?;
    let mut git = git(&tree);
    git.args(["apply", "--whitespace=nowarn"]).args(how).arg(&patch);
    let output = git.output().context("running git")?;
    if output.status.success() {
        return Ok(());
    }
    Err(DoesNotApply { patch, why: String::from_utf8_lossy(&output.stderr).into_owned() }.into())
}

/// A git command in a directory that ignores a repository around it: a copy is not a part of the tree.
fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder).env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap_or(folder));
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        git.env_remove(variable);
    }
    git
}

/// The files of the tree, new ones included: all that git does not ignore.
fn files(tree: &Path) -> Result<Vec<PathBuf>> {
    let tree = tree.canonicalize()?;
    let output =
        git(&tree).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).output().context("git")?;
    let Output { status, stdout, stderr } = output;
    ensure!(status.success(), "listing the files of the tree: {}", String::from_utf8_lossy(&stderr).trim());
    let listed = stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let listed = listed.map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()));
    // Deleted files that are not committed are listed, too.
    Ok(listed.filter(|file| tree.join(file).is_file()).collect())
}

/// The paths of all files below a folder, relative to it.
///
/// # Errors
/// A folder cannot be read.
pub fn walk(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(folder)?.to_owned());
            }
        }
    }
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let Some(folder) = to.parent() else { bail!("{} is no file", to.display()) };
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The patches of a directory, in the order of their names.
///
/// # Errors
/// It cannot be read.
pub fn patches(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut patches = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    patches.retain(|path| path.extension() == Some(OsStr::new("patch")));
    patches.sort();
    Ok(patches)
}
