//! `cargo xtask vm`: what takes a kernel that this machine may not have, in a virtual machine.
//!
//! It boots a distribution's kernel in QEMU, by default without any help of this machine's kernel, on an
//! initramfs that is made here from this machine's own programs and libraries. Nothing is installed, no disk or
//! network is needed, and nothing is left but a file under the target directory. What runs there as process 1 is
//! this very program.

mod init;
mod initramfs;
mod kernel;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use initramfs::Initramfs;
use kernel::Kernel;

pub use init::is_init;
pub use init::run as init;

/// What `cargo xtask vm` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Scenarios, or directories of them, to tell on the Linux card
    #[arg(default_value = "scenarios")]
    scenarios: Vec<PathBuf>,
    /// Where `boot/vmlinuz-VERSION` and `lib/modules/VERSION` are
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Run this shell command there instead; `esw` and the scenarios are there too
    #[arg(long, value_name = "COMMAND")]
    sh: Option<String>,
    /// Run every test of the Linux card, not only those of the kernel's bonds
    #[arg(long)]
    all_tests: bool,
    /// The machine's memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// How QEMU runs it: `tcg` works anywhere, `kvm` is faster where it works
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// How long it may all take, in seconds
    #[arg(long, default_value_t = 900)]
    limit_s: u64,
}

/// What the machine is to do, read there by process 1.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Plan {
    /// Modules to load, in order, each with its parameters.
    modules: Vec<(String, String)>,
    commands: Vec<Job>,
}

/// One command.
#[derive(Debug, Serialize, Deserialize)]
struct Job {
    name: String,
    argv: Vec<String>,
}

/// Where the plan is in the machine.
const PLAN: &str = "/plan.json";
/// What a line starts with that is for us.
const MARK: &str = "@vm ";

/// Modules that a card, its bonds and its tests need; the kernel may have them built in. And their parameters.
const MODULES: [(&str, &str); 18] = [
    ("veth", ""),
    ("bridge", ""),
    ("sch_ingress", ""),
    ("cls_u32", ""),
    ("cls_flower", ""),
    ("cls_matchall", ""),
    ("act_mirred", ""),
    ("act_gact", ""),
    ("af_packet", ""),
    ("ipv6", ""),
    // Left alone these two make a netdev when they are loaded.
    ("dummy", "numdummies=0"),
    ("bonding", "max_bonds=0"),
    ("team", ""),
    ("team_mode_activebackup", ""),
    ("team_mode_loadbalance", ""),
    ("team_mode_roundrobin", ""),
    ("team_mode_broadcast", ""),
    ("vrf", ""),
];

/// A bond that an administrator makes, and what the card makes of it.
const BY_HAND: &str = "\
ip link add bond0 type bond mode active-backup
ip link set enp8s0f0np0 master bond0
wait until lag reason has 1 of the card's 2 ports
ip link set enp8s0f1np1 master bond0
ip link set bond0 up
wait until lag roce
devlink dev eswitch set pci/0000:08:00.0 mode switchdev
devlink dev eswitch set pci/0000:08:00.1 mode switchdev
wait until lag shared-fdb
ip link set bond0 down
ip link set bond0 name uplink
ip link set enp8s0f1np1 nomaster
wait until lag reason uplink: it has 1 of the card's 2 ports
ip link del uplink
wait until lag none
devlink dev param set pci/0000:08:00.0 name esw_multiport value true cmode runtime
ip link add bond1 type bond mode 802.3ad
ip link set enp8s0f0np0 down
ip link set enp8s0f0np0 master bond1
ip link set enp8s0f1np1 master bond1
wait until lag reason multiport
expect lag mpesw
devlink dev param set pci/0000:08:00.0 name esw_multiport value false cmode runtime
wait until lag shared-fdb
ip link del bond1
wait until lag none
check";

/// Programs that scenarios and tests run.
const PROGRAMS: [&str; 33] = [
    "sh", "ip", "bridge", "tc", "ping", "sysctl", "unshare", "setpriv", "nsenter", "mount", "umount", "mkdir", "rm",
    "cp", "chmod", "grep", "cat", "ls", "head", "tail", "wc", "cut", "sort", "tr", "seq", "sleep", "env", "true",
    "false", "test", "kill", "dmesg", "date",
];

/// Programs that some tests do without.
const OPTIONAL: [&str; 3] = ["teamnl", "sed", "awk"];

/// Runs the command.
///
/// # Errors
/// Something is missing here, which is named; something failed there.
pub fn run(args: &Args) -> Result<()> {
    let qemu = find_qemu()?;
    let kernel = Kernel::find(&args.root)?;
    let target = target_dir()?;
    let esw = build(&["build", "--release", "-p", "esw", "--bin", "esw"])?;
    let mut image = Initramfs::default();
    image.program(&env::current_exe()?, "/init")?;
    for program in esw {
        image.program(&program, "/bin/esw")?;
    }
    for name in PROGRAMS {
        let found = find_program(name).with_context(|| format!("this machine has no `{name}` to take along"))?;
        image.program(&found, &format!("/bin/{name}"))?;
    }
    for name in OPTIONAL {
        if let Some(found) = find_program(name) {
            image.program(&found, &format!("/bin/{name}"))?;
        }
    }
    let mut plan = Plan { modules: kernel.add_modules(&mut image, &MODULES)?, commands: Vec::new() };
    let scenarios = add_scenarios(&mut image, &args.scenarios)?;
    match &args.sh {
        Some(command) => plan.job("the command", &["sh", "-c", command]),
        None => {
            let mut run = vec!["esw", "run", "--card", "linux", "--lockdep"];
            run.extend(scenarios.iter().map(String::as_str));
            plan.job("scenarios", &run);
            let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
            plan.job("scenarios, without root", &[&nobody[..], &run[..]].concat());
            image.file("/two-ports.toml", b"pfs = 2\n".to_vec(), 0o644);
            let up = format!("esw up --card linux --config /two-ports.toml --lockdep <<'END'\n{BY_HAND}\nEND");
            plan.job("a bond made by hand at the prompt", &["sh", "-c", &up]);
            add_tests(&mut image, &mut plan, args.all_tests)?;
        }
    }
    image.file(PLAN, serde_json::to_vec(&plan)?, 0o644);
    let folder = target.join("vm");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("initramfs-{}.cpio", std::process::id()));
    let written = image.write(&file).with_context(|| format!("writing {}", file.display()));
    let outcome = written.and_then(|()| boot(&qemu, &kernel, &file, args));
    let _ = fs::remove_file(&file);
    outcome
}

impl Plan {
    fn job(&mut self, name: &str, argv: &[&str]) {
        let argv = argv.iter().map(ToString::to_string).collect();
        self.commands.push(Job { name: name.to_owned(), argv });
    }
}

fn find_qemu() -> Result<PathBuf> {
    ensure!(
        env::consts::ARCH == "x86_64",
        "this knows the machine to emulate for x86_64 only, and here is {}",
        env::consts::ARCH
    );
    find_program("qemu-system-x86_64")
        .context("there is no qemu-system-x86_64; on Debian and Ubuntu `apt-get install qemu-system-x86`")
}

/// A program by its name, where a login of root's would find it.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Where cargo puts what it builds: this program is there.
fn target_dir() -> Result<PathBuf> {
    let me = env::current_exe()?;
    let target = me.ancestors().nth(2).context("this program is not in a target directory")?;
    Ok(target.to_owned())
}

/// Has cargo build, and says which programs came of it.
fn build(arguments: &[&str]) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().context("running cargo")?;
    ensure!(output.status.success(), "`cargo {}` failed", arguments.join(" "));
    let mut built = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        built.extend(serde_json::from_slice::<Message>(line)?.executable);
    }
    Ok(built)
}

/// Adds scenarios; what they are called in the machine.
fn add_scenarios(image: &mut Initramfs, paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let about = || format!("{}: no scenario, nor a folder of them", path.display());
        let stem = path.file_name().with_context(about)?.to_string_lossy().into_owned();
        let name = format!("/{n}/{stem}");
        if fs::metadata(path).with_context(about)?.is_dir() {
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                image.file(&format!("{name}/{}", entry.file_name().to_string_lossy()), fs::read(entry.path())?, 0o644);
            }
        } else {
            image.file(&name, fs::read(path)?, 0o644);
        }
        names.push(name);
    }
    Ok(names)
}

fn add_tests(image: &mut Initramfs, plan: &mut Plan, all: bool) -> Result<()> {
    let which: &[&str] = if all { &["--tests"] } else { &["--test", "bonds"] };
    for test in build(&[&["test", "--no-run", "-p", "card-linux"], which].concat())? {
        let file = test.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = file.rsplit_once('-').map_or(file.as_str(), |(name, _)| name);
        let inside = format!("/tests/{name}");
        image.program(&test, &inside)?;
        plan.job(&format!("test {name}"), &[&inside, "--nocapture", "--test-threads=1"]);
    }
    Ok(())
}

/// The machine, which ends when this is dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot(qemu: &Path, kernel: &Kernel, initramfs: &Path, args: &Args) -> Result<()> {
    println!("booting Linux {} in {}", kernel.version, qemu.display());
    let mut command = Command::new(qemu);
    command.args(["-accel", &args.accel, "-cpu", "max", "-smp", "2", "-m", &args.memory.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut machine = Machine(command.spawn().context("starting QEMU")?);
    let console = machine.0.stdout.take().context("QEMU without a console")?;
    let (line, lines) = channel();
    thread::spawn(move || {
        for bytes in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned();
            if line.send(text).is_err() {
                return;
            }
        }
    });
    let limit = Instant::now() + Duration::from_secs(args.limit_s);
    let (mut ended, mut whole) = (Vec::new(), false);
    let mut booted = false;
    loop {
        let text = match lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(text) => text,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the machine was ended: it took longer than {} s (see --limit-s)", args.limit_s)
            }
        };
        if !std::mem::replace(&mut booted, true) {
            // It has been read.
            let _ = fs::remove_file(initramfs);
        }
        // The kernel may write into the same line before us.
        match text.split_once(MARK) {
            Some((_, "done")) => whole = true,
            Some((_, mark)) => ended.push(mark.to_owned()),
            None => println!("{text}"),
        }
    }
    println!();
    ended.iter().for_each(|mark| println!("{mark}"));
    ensure!(whole, "the machine ended before it was done; its last words are above");
    let failed = ended.iter().filter(|mark| !mark.starts_with("ok")).count();
    ensure!(failed == 0, "{failed} of {} failed in the machine", ended.len());
    Ok(())
}
