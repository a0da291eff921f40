//! Counts the instructions of this program, run as a child.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::find_program;

/// Why instructions cannot be counted here; `None` if they can.
pub fn missing() -> Option<String> {
    find_program("valgrind").is_none().then(|| "valgrind is not installed".to_owned())
}

/// The number of instructions that this program executes when it is started with these arguments.
///
/// # Errors
/// Valgrind is not installed, the program fails, or valgrind's output has no number of instructions.
pub fn instructions(arguments: &[&str]) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // The C library chooses its memory functions by the processor's features. These settings make the choice, and so the
        // count, the same on every processor.
        .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-ERMS,-FSRM,-BMI2")
        .arg(std::env::current_exe()?)
        .args(arguments)
        .output()
        .context("starting valgrind")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {}: {messages}", arguments.join(" "), output.status);
    let line = messages.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = line.context("the output of callgrind has no line `Collected`")?;
    number.trim().parse().context("the line `Collected` of callgrind has no number")
}
