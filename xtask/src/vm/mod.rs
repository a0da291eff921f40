//! `cargo xtask vm`: runs commands in a virtual machine, for what needs a kernel that this machine may not have.
//!
//! `cargo xtask vm -- COMMAND` runs a command there, with the outputs and the exit status of a local one. QEMU emulates the machine, by
//! default without KVM. It boots Debian's kernel on a root file system of
//! Debian's packages, made once and kept under the target directory ([`image`]), and sees the repository and the
//! target directory at the same paths as here, with a layer in memory over them: builds can be used there, and what is
//! written there is lost with the machine. Nothing is installed, neither root nor network is needed, and a run leaves nothing
//! behind. Process 1 there is this program ([`mod@init`]). The outputs of the command arrive through a channel of their own,
//! not through the console ([`channel`]).

mod channel;
mod image;
mod init;
mod initramfs;
mod kernel;
mod machine;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::page::{self, Section};
use crate::table::Measured;
use crate::workspace::{build, build_esw, find_program, root, target_dir};

use channel::Frame;
use image::Image;
use initramfs::Initramfs;
use machine::{Hardware, Machine, TooLong};

pub use init::is_init;
pub use init::run as init;

/// What to run in the machine, and the machine.
#[derive(clap::Args)]
pub struct Args {
    /// Scenarios, or directories of them, to run on the Linux card if no command is given
    #[arg(default_value = "scenarios")]
    scenarios: Vec<PathBuf>,
    /// Run this command in the machine instead, as if it ran here: with its outputs and its exit status
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Run the command as root: the default
    #[arg(long, conflicts_with = "user")]
    root: bool,
    /// Run the command as an ordinary user (65534) rather than root
    #[arg(long)]
    user: bool,
    /// Run no scenarios, only the scripts of `xtask/src/vm/checks` and the tests of the kernel's bonds and of flow rules
    #[arg(long, conflicts_with = "command")]
    checks: bool,
    /// With --checks: write the results into the table of docs/vm.md. Nothing is written if one failed
    #[arg(long, requires = "checks")]
    write: bool,
    /// Run every test of the Linux card, not only those of the kernel's bonds and of flow rules
    #[arg(long)]
    all_tests: bool,
    /// Use another kernel than Debian's, from this directory: `boot/vmlinuz-VERSION` and `lib/modules/VERSION`
    #[arg(long, value_name = "DIR")]
    kernel: Option<PathBuf>,
    /// Make the image of the kernel and the packages again, from what the archive has now
    #[arg(long)]
    fresh: bool,
    /// Use `esw` as it is in the target directory, rather than build it
    #[arg(long)]
    no_build: bool,
    /// Show the machine's console on standard error
    #[arg(long)]
    console: bool,
    /// The machine's memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// QEMU's accelerator: `tcg` works anywhere, `kvm` is faster where it works
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// The time limit for everything from the boot on, in seconds
    #[arg(long, default_value_t = 900)]
    limit_s: u64,
}

impl Default for Args {
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct NoWords {
            #[command(flatten)]
            args: Args,
        }
        <NoWords as clap::Parser>::parse_from(["vm"]).args
    }
}

/// What the machine has to do. Process 1 there reads it.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// Folders that the machine has at the same paths, in the order in which it mounts them.
    shares: Vec<PathBuf>,
    /// The environment variable `PATH`.
    path: OsString,
    /// The working directory of the commands.
    folder: PathBuf,
    jobs: Vec<Job>,
}

/// Tests of the crate card-linux that show something else in the machine than here: its kernel has bonds, and has no tcx, so that
/// the program of flow rules is a filter.
const PARTS: &[&str] = &["bonds", "rules"];
/// One that fails there: with Linux 6.1, frames of a rule are lost while a native XDP program comes and goes.
const FAILS: &str = "a_native_xdp_program_sees";

/// One command.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    name: String,
    /// What it shows if it succeeds, in words.
    shows: String,
    argv: Vec<OsString>,
    /// Whether an ordinary user runs it rather than root.
    user: bool,
}

/// The path of the plan in the machine.
const PLAN: &str = "/plan.json";
/// The ordinary user, and the user's group.
const NOBODY: u32 = 65534;

/// The exit status of `timeout` for a command that took too long.
const STATUS_TOO_LONG: u8 = 124;
/// The exit status of `env`, `timeout` and others if they failed themselves, and not the command.
const STATUS_NOT_THE_COMMAND: u8 = 125;
/// The exit status in a shell of a command whose output nobody reads (SIGPIPE).
const STATUS_NOBODY_LISTENS: u8 = 128 + 13;

/// Modules that the machine loads before it has its root file system. The others are loaded from there when they are
/// needed. The kernel may have these built in.
const BOOT_MODULES: [&str; 7] =
    ["virtio_pci", "virtio_blk", "virtio_console", "squashfs", "overlay", "9p", "9pnet_virtio"];

/// Runs `cargo xtask vm`. With a command for the machine, the exit status is that of the command, or 124 if it took too
/// long, or 125 if it could not be run at all.
///
/// # Errors
/// Without a command for the machine: a program is missing here, which the error names, or something failed there.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.command.is_empty() {
        return run_jobs(args).map(|()| ExitCode::SUCCESS);
    }
    run_command(args).or_else(|error| {
        if nobody_listens(&error) {
            return Ok(ExitCode::from(STATUS_NOBODY_LISTENS));
        }
        eprintln!("cargo xtask vm: {error:#}");
        Ok(ExitCode::from(if error.is::<TooLong>() { STATUS_TOO_LONG } else { STATUS_NOT_THE_COMMAND }))
    })
}

/// Runs one command as if it ran here.
fn run_command(args: &Args) -> Result<ExitCode> {
    let mut plan = Plan::new(args)?;
    plan.jobs.push(Job { name: String::new(), shows: String::new(), argv: args.command.clone(), user: args.user });
    let mut machine = boot(args, &plan)?;
    machine.send_input()?;
    loop {
        match machine.next()? {
            Frame::Exit(status) => return Ok(ExitCode::from(status)),
            frame => show(&frame)?,
        }
    }
}

/// Runs a command as root, and hands over each line that it prints. What it writes to standard error appears here.
/// `memory`: of the machine, in MiB. `limit_s`: the time limit for everything, in seconds. Returns the exit status.
///
/// # Errors
/// The machine cannot be had or took too long, or `line` fails.
pub fn run_for_lines(
    command: Vec<OsString>,
    memory: u32,
    limit_s: u64,
    line: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<u8> {
    let args = Args { no_build: true, memory, limit_s, ..Args::default() };
    let mut plan = Plan::new(&args)?;
    plan.jobs.push(Job { name: String::new(), shows: String::new(), argv: command, user: false });
    let mut machine = boot(&args, &plan)?;
    let mut pending = Vec::new();
    loop {
        match machine.next()? {
            Frame::Exit(status) => return Ok(status),
            Frame::Output(bytes) => {
                pending.extend(bytes);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let whole: Vec<u8> = pending.drain(..=end).collect();
                    line(String::from_utf8_lossy(&whole).trim_end())?;
                }
            }
            frame => show(&frame)?,
        }
    }
}

/// Runs the scenarios, the scripts and the tests, and prints the result of each.
fn run_jobs(args: &Args) -> Result<()> {
    let mut plan = Plan::new(args)?;
    if !args.checks {
        plan.add_scenarios(&args.scenarios)?;
    }
    plan.add_checks()?;
    plan.add_tests(args.all_tests)?;
    let stamp = page::stamp()?;
    let began = Instant::now();
    let mut machine = boot(args, &plan)?;
    ensure!(machine.next()? == Frame::Ready, "the machine sent something before it was ready");
    println!("the machine was up after {:.1} s", began.elapsed().as_secs_f64());
    let mut ended = Vec::new();
    for job in &plan.jobs {
        println!("\n--- {}", job.name);
        let began = Instant::now();
        let status = loop {
            match machine.next()? {
                Frame::Exit(status) => break status,
                frame => show(&frame)?,
            }
        };
        ended.push((job, status, began.elapsed()));
    }
    println!();
    for (job, status, took) in &ended {
        let result = if *status == 0 { "ok".to_owned() } else { format!("FAILED (exit status {status})") };
        println!("{result}: {} in {:.1} s", job.name, took.as_secs_f64());
    }
    let failed = ended.iter().filter(|(_, status, _)| *status != 0).count();
    ensure!(failed == 0, "{failed} of {} failed in the machine", ended.len());
    if args.write {
        write(&ended, &stamp, machine.kernel())?;
    }
    Ok(())
}

/// The table of results on the page.
const SECTION: Section = Section { page: "docs/vm.md", name: "vm" };
const COLUMNS: &[&str] = &["check", "what it shows", "result", "took", "at"];

/// Replaces the table by these results, all of which are good.
fn write(ended: &[(&Job, u8, Duration)], stamp: &str, kernel: &str) -> Result<()> {
    let mut table = Measured::parse(COLUMNS, "")?;
    let at = format!("Linux {kernel} in the machine; {stamp}");
    for (job, _, took) in ended {
        let cells = [job.shows.clone(), "ok".to_owned(), format!("{:.0} s", took.as_secs_f64())];
        table.replace(&job.name, [cells.to_vec()], &at);
    }
    let names: Vec<&str> = ended.iter().map(|(job, ..)| &*job.name).collect();
    SECTION.write(&table.text(&names))?;
    Ok(())
}

/// Writes the output of a command to the same output here.
fn show(frame: &Frame) -> io::Result<()> {
    match frame {
        Frame::Output(bytes) => {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
        Frame::ErrorOutput(bytes) => io::stderr().write_all(bytes),
        Frame::Ready | Frame::Exit(_) | Frame::Input(_) | Frame::Unusable(_) => Ok(()),
    }
}

fn nobody_listens(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn boot(args: &Args, plan: &Plan) -> Result<Machine> {
    let qemu = find_qemu()?;
    let image = Image::find_or_make(&target_dir()?.join("vm"), args.kernel.as_deref(), args.fresh)?;
    if args.console {
        eprintln!("booting Linux {} in {}", image.version, qemu.display());
    }
    let mut own = Initramfs::default();
    own.program(&env::current_exe()?, "/init")?;
    own.file(PLAN, serde_json::to_vec(plan)?, 0o644);
    let mut own_part = Vec::new();
    own.write(&mut own_part)?;
    let limit = Duration::from_secs(args.limit_s);
    let (accel, memory, console) = (&*args.accel, args.memory, args.console);
    Machine::boot(&image, &own_part, &Hardware { qemu: &qemu, accel, memory, shares: &plan.shares, limit, console })
}

impl Plan {
    /// A plan without jobs, for a machine with the repository and what is built from it.
    fn new(args: &Args) -> Result<Self> {
        let repository = fs::canonicalize(root())?;
        let target = fs::canonicalize(target_dir()?)?;
        if !args.no_build {
            build_esw()?;
        }
        let mut shares = vec![repository.clone()];
        if !target.starts_with(&repository) {
            shares.push(target.clone());
        }
        let here = env::current_dir()?;
        let folder = if shares.iter().any(|share| here.starts_with(share)) { here } else { repository };
        let mut path = target.join("release").into_os_string();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(Self { shares, path, folder, jobs: Vec::new() })
    }

    /// Adds the scenarios on the Linux card, as root and as an ordinary user.
    fn add_scenarios(&mut self, paths: &[PathBuf]) -> Result<()> {
        let mut argv: Vec<OsString> = ["esw", "run", "--card", "linux", "--lockdep"].map(OsString::from).to_vec();
        for path in paths {
            let path = fs::canonicalize(path)
                .with_context(|| format!("{}: expected a scenario or a folder of scenarios", path.display()))?;
            ensure!(
                self.shares.iter().any(|share| path.starts_with(share)),
                "{}: the machine sees only what is in {}",
                path.display(),
                self.shares[0].display()
            );
            argv.push(path.into());
        }
        for (name, user) in [("scenarios", false), ("scenarios, without root", true)] {
            let shows = "every scenario for the card linux holds".to_owned();
            self.jobs.push(Job { name: name.to_owned(), shows, argv: argv.clone(), user });
        }
        Ok(())
    }

    /// Adds tests of the crate card-linux: all of them, or those [parts](PARTS) that show something else there than here.
    fn add_tests(&mut self, all: bool) -> Result<()> {
        let which: &[&str] = if all { &["--tests"] } else { &["--test", "it"] };
        for test in build(&[&["test", "--no-run", "-p", "card-linux"], which].concat())? {
            let file = test.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = file.rsplit_once('-').map_or(file.as_str(), |(name, _)| name);
            let parts: &[&str] = if all { &[name] } else { PARTS };
            for part in parts {
                let mut argv = vec![test.clone().into_os_string()];
                argv.extend(["--nocapture", "--test-threads=1"].map(OsString::from));
                if !all {
                    argv.extend([format!("{part}::"), "--skip".to_owned(), FAILS.to_owned()].map(OsString::from));
                }
                let shows = format!("the tests `{part}` of the crate card-linux");
                self.jobs.push(Job { name: format!("test {part}"), shows, argv, user: false });
            }
        }
        Ok(())
    }

    /// Adds the scripts of the folder `checks`, each in namespaces of its own, in the order of their names.
    fn add_checks(&mut self) -> Result<()> {
        let folder = self.shares[0].join("xtask/src/vm/checks");
        let mut scripts = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "sh") {
                scripts.push(path);
            }
        }
        scripts.sort();
        ensure!(!scripts.is_empty(), "{}: this folder has no script", folder.display());
        for script in scripts {
            let name = script.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let alone = "mount -t tmpfs none /run && ip link set lo up && exec timeout 300 bash -eu \"$0\"";
            let mut argv: Vec<_> = ["unshare", "--net", "--mount", "sh", "-c", alone].map(OsString::from).to_vec();
            let shows = first_comment(&fs::read_to_string(&script).with_context(|| script.display().to_string())?);
            argv.push(script.into());
            self.jobs.push(Job { name, shows, argv, user: false });
        }
        Ok(())
    }
}

/// The first comment of a script below its interpreter line, up to the end of its first sentence.
fn first_comment(script: &str) -> String {
    let lines = script.lines().skip_while(|line| line.starts_with("#!"));
    let lines: Vec<&str> = lines.map_while(|line| line.strip_prefix("# ")).collect();
    let text = lines.join(" ");
    text.split_once(". ").map_or(&*text, |(first, _)| first).trim_end_matches('.').to_owned()
}

fn find_qemu() -> Result<PathBuf> {
    ensure!(
        env::consts::ARCH == "x86_64",
        "this knows the machine to emulate for x86_64 only, and here is {}",
        env::consts::ARCH
    );
    find_program("qemu-system-x86_64")
        .context("qemu-system-x86_64 is not installed; on Debian and Ubuntu `apt-get install qemu-system-x86`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_described_by_the_first_sentence_of_its_comment() {
        assert_eq!(
            first_comment("#!/bin/sh\n# Bonds, which\n# are made. By hand.\nset -e\n# x\n"),
            "Bonds, which are made"
        );
        assert_eq!(first_comment("#!/bin/sh\n# Bonds.\n"), "Bonds");
    }
}
