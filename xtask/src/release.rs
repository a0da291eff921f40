//! The binary that is shipped, built as it is shipped.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Builds `esw` for release, and says where it is.
///
/// # Errors
/// It cannot be built.
pub fn esw() -> Result<PathBuf> {
    let built = Command::new("cargo").args(["build", "--release", "--quiet", "-p", "esw"]).status()?;
    ensure!(built.success(), "esw cannot be built");
    let esw = std::env::current_exe()?.with_file_name("esw");
    if esw.parent().is_some_and(|folder| folder.ends_with("release")) {
        return Ok(esw);
    }
    let target = esw.parent().and_then(|folder| folder.parent()).context("the folder of what is built")?;
    Ok(target.join("release/esw"))
}
