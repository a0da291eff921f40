//! Runs the scripts in the virtual machine of `cargo xtask vm`: the same program there prints what each has shown.

use std::ffi::OsString;
use std::fs;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::record::Record;
use super::{Args, select};
use crate::{vm, workspace};

/// The memory of the machine, in MiB: it has the root file systems of several scripts, and their traces.
const MEMORY: u32 = 6144;

/// Runs them in one machine, `--jobs` at a time. `keep`: is handed what each has shown as soon as it has ended.
///
/// # Errors
/// The machine or the scripts cannot be had; the machine ended before all of them had.
pub fn run(args: &Args, keep: &(dyn Fn(&Record) -> Result<()> + Sync)) -> Result<Vec<Record>> {
    workspace::build_esw()?;
    let place = workspace::target_dir()?.join(format!("ovs-tests-{}", std::process::id()));
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let scripts = place.join("scripts");
    let result = select::check_out(args.repository.as_deref(), &place, &scripts).and_then(|()| {
        let wanted = args.wanted(&scripts)?;
        let mut command: Vec<OsString> = ["xtask", "ovs-tests"].map(OsString::from).to_vec();
        command.extend(args.set.to_possible_value().map(|set| OsString::from(set.get_name())));
        command.extend(["--jobs".into(), args.jobs.to_string().into()]);
        command.extend(["--limit-s".into(), args.limit_s().to_string().into()]);
        command.extend(["--scripts".into(), scripts.clone().into()]);
        ensure!(!wanted.is_empty(), "--keep has something of every script that is wanted");
        command.push("--only".into());
        command.extend(wanted.iter().map(OsString::from));
        let limit_s = u64::from(args.limit_s()) * wanted.len().div_ceil(args.jobs.max(1)) as u64 + 300;
        let mut records = Vec::new();
        let status = vm::run_for_lines(command, MEMORY, limit_s, &mut |line| {
            let record: Record = serde_json::from_str(line).with_context(|| format!("from the machine: {line}"))?;
            keep(&record)?;
            records.push(record);
            Ok(())
        })?;
        ensure!(status == 0, "the machine's run ended with status {status}");
        Ok(records)
    });
    fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
    result
}
