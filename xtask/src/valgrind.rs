//! Counting the instructions of this program, as a child.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::find_program;

/// Why it cannot be done here, if it cannot.
pub fn missing() -> Option<String> {
    find_program("valgrind").is_none().then(|| "valgrind is not installed".to_owned())
}

/// How many instructions this program executes when it is started with these arguments.
///
/// # Errors
/// There is no valgrind, the program fails, or what is said of it makes no sense.
pub fn instructions(arguments: &[&str]) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // The C library chooses how it copies memory by what the processor can: the same everywhere, so that counts are.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM,-BMI2")
        .arg(std::env::current_exe()?)
        .args(arguments)
        .output()
        .context("starting valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {}: {said}", arguments.join(" "), output.status);
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = line.context("callgrind did not say what it collected")?;
    number.trim().parse().context("callgrind said something else")
}
