//! A copy of the tree with patches on it, built.
//!
//! The copy and what is compiled of it live in a folder of their own under the target folder, so that nothing
//! of it can get into a build of the tree itself. There is one copy for each purpose. It is brought from one
//! state to the next by writing only the files that differ, so that a build compiles only what a patch touches.

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
}

/// What the compiler made of a copy.
pub enum Build {
    /// A program that can be run.
    Built(PathBuf),
    /// The compiler rejected it, and this is what it says.
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
    /// The copy for a purpose, which is its name: made, or as it was left the last time.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(purpose: &str) -> Result<Self> {
        let folder = target_dir()?.join("patched").join(purpose);
        fs::create_dir_all(folder.join("tree")).with_context(|| folder.display().to_string())?;
        let folder = folder.canonicalize()?;
        Ok(Self { tree: folder.join("tree"), target: folder.join("target") })
    }

    /// The files of scenarios.
    pub fn scenarios(&self, names: &[String]) -> Vec<PathBuf> {
        let file = |name: &String| self.tree.join("scenarios").join(name).with_extension("toml");
        names.iter().map(file).collect()
    }

    /// Where the copy is.
    #[cfg(test)]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// Makes the copy the tree with these patches on it, one after the other, and nothing else.
    ///
    /// # Errors
    /// [`DoesNotApply`]; or the copy cannot be written.
    pub fn set(&self, patches: &[&Path]) -> Result<()> {
        self.change(patches, &[])
    }

    /// Makes the copy the tree with these patches taken off, one after the other, and nothing else.
    ///
    /// # Errors
    /// [`DoesNotApply`]; or the copy cannot be written.
    pub fn set_without(&self, patches: &[&Path]) -> Result<()> {
        self.change(patches, &["--reverse"])
    }

    fn change(&self, patches: &[&Path], how: &[&str]) -> Result<()> {
        // Patched beside it, then only what differs is written: what is the same keeps its time.
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

    /// Builds the program that explores scenarios, of the crate `check`; and how long that took.
    ///
    /// # Errors
    /// There is no cargo to run.
    pub fn build_explorer(&self, features: &[&str]) -> Result<(Build, Duration)> {
        self.build("check", "explore", features)
    }

    /// Builds an example of a crate; and how long that took.
    ///
    /// # Errors
    /// There is no cargo to run.
    pub fn build(&self, package: &str, example: &str, features: &[&str]) -> Result<(Build, Duration)> {
        let began = Instant::now();
        let output = cargo()
            .args(["build", "--locked", "--color", "never", "--profile", "mutant", "--package", package])
            .args(["--example", example])
            .arg(format!("--features={}", features.join(",")))
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .output()
            .context("running cargo")?;
        let built = if output.status.success() {
            Build::Built(self.target.join("mutant/examples").join(example))
        } else {
            Build::Rejected(String::from_utf8_lossy(&output.stderr).into_owned())
        };
        Ok((built, began.elapsed()))
    }
}

/// Whether a patch applies to the tree as it is.
///
/// # Errors
/// [`DoesNotApply`]; or there is no git to ask.
#[cfg(test)]
pub fn applies(patch: &Path) -> Result<()> {
    apply(root(), patch, &["--check"])
}

/// Has git apply a patch to a folder, in the way these options say.
///
/// # Errors
/// [`DoesNotApply`]; or there is no git to ask.
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

/// Git in a folder. What lies around the folder is not looked at: a copy is not a part of the tree.
fn git(folder: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(folder).env("GIT_CEILING_DIRECTORIES", folder.parent().unwrap_or(folder));
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        git.env_remove(variable);
    }
    git
}

/// The files of the tree, those that are new among them: all that git does not ignore.
fn files(tree: &Path) -> Result<Vec<PathBuf>> {
    let tree = tree.canonicalize()?;
    let output =
        git(&tree).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).output().context("git")?;
    let Output { status, stdout, stderr } = output;
    ensure!(status.success(), "listing the files of the tree: {}", String::from_utf8_lossy(&stderr).trim());
    let listed = stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let listed = listed.map(|name| PathBuf::from(String::from_utf8_lossy(name).into_owned()));
    // What has been deleted and not committed is listed, and is not there.
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

/// The patches of a folder, in order.
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
