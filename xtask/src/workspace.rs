//! The repository that this program belongs to: where it is, where cargo puts what it builds, and how to build it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The root of the repository.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// The directory that cargo builds in. This program is in `PROFILE` below it; its tests are in `PROFILE/deps`.
///
/// # Errors
/// The path of this program is not known, or has too few parts.
pub fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("the path of this program")?;
    let mut folders = program.ancestors().skip(1);
    let is_inner = folders.next().is_some_and(|folder| folder.ends_with("deps"));
    let target = folders.nth(usize::from(is_inner)).context("this program is not in a target directory")?;
    Ok(target.to_owned())
}

/// The cargo that started this program.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs cargo, and returns the programs that it built. Its messages go to standard error.
///
/// # Errors
/// Cargo cannot be started, or it fails.
pub fn build(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let mut command = cargo();
    command.args(arguments).arg("--message-format=json-render-diagnostics").current_dir(root());
    let output = command.stderr(Stdio::inherit()).output().context("running cargo")?;
    ensure!(output.status.success(), "`cargo {}` failed", arguments.join(" "));
    let mut built = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        built.extend(serde_json::from_slice::<Message>(line)?.executable);
    }
    Ok(built)
}

/// Builds the release binary of `esw` and returns its path.
///
/// # Errors
/// It cannot be built.
pub fn build_esw() -> Result<PathBuf> {
    let built = build(&["build", "--release", "--quiet", "-p", "esw", "--bin", "esw"])?;
    built.into_iter().next_back().context("cargo has not built the binary esw")
}

/// A program's path, by its name. Besides `PATH`, the folders of a login of root are searched.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs a shell script and returns its standard output.
///
/// # Errors
/// There is no shell, or a command of the script fails (`sh -e`); the error has the script and its standard error.
pub fn shell(script: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output().context("running sh")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{script}`: {}: {}", output.status, complaint.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program and returns its standard output without the white space around it.
///
/// # Errors
/// The program cannot be started, or it fails.
pub fn output_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    let output = output.with_context(|| format!("running {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}`: {}", arguments.join(" "), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_directory_is_found_from_a_test_too() {
        let program = env::current_exe().unwrap();
        let inside = program.strip_prefix(target_dir().unwrap()).unwrap();
        assert_eq!(inside.components().count(), 3, "expected PROFILE/deps/PROGRAM: {}", inside.display());
        assert!(root().join("Cargo.lock").is_file());
    }

    #[test]
    fn the_error_of_a_program_has_its_standard_error() {
        let error = shell("echo out; echo reason >&2; false; echo unreachable").unwrap_err().to_string();
        assert!(error.contains("reason") && !error.contains("unreachable\n"), "{error}");
        assert_eq!(shell("echo out").unwrap(), "out\n");
        assert!(output_of("false", &["x"]).is_err());
        assert_eq!(output_of("echo", &["x"]).unwrap(), "x");
    }
}
