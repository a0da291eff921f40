//! Process 1 of the machine: makes it usable, does what is planned, turns it off.

use std::fs::{self, File};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

use super::{Job, MARK, PLAN, Plan};

/// Whether this is process 1 of the machine rather than a command of somebody's.
pub fn is_init() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init")
}

/// Does it all. Returns only if the machine cannot be turned off.
pub fn run() {
    match work() {
        Ok(()) => println!("{MARK}done"),
        Err(error) => println!("the machine: {error:#}"),
    }
    let _ = reboot(RebootCommand::Restart);
}

fn work() -> Result<()> {
    let nothing = MountFlags::empty();
    let places = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")];
    for (kind, place) in places {
        mount(kind, place, kind, nothing, None).with_context(|| format!("mounting {place}"))?;
    }
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN)?)?;
    for (module, parameters) in &plan.modules {
        let file = File::open(module).with_context(|| module.clone())?;
        let parameters = std::ffi::CString::new(parameters.as_str())?;
        finit_module(&file, &parameters, 0).with_context(|| format!("loading {module}"))?;
    }
    fs::write("/etc/passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")?;
    command(&["ip".to_owned(), "link".to_owned(), "set".to_owned(), "lo".to_owned(), "up".to_owned()]).status()?;
    for job in &plan.commands {
        println!("\n--- {}", job.name);
        let began = Instant::now();
        let came = come_of(job);
        println!("{MARK}{came}: {} in {:.1} s", job.name, began.elapsed().as_secs_f64());
    }
    Ok(())
}

fn command(argv: &[String]) -> Command {
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).env_clear().env("PATH", "/bin").env("HOME", "/").env("NO_COLOR", "1").current_dir("/");
    command
}

fn come_of(job: &Job) -> String {
    match command(&job.argv).status() {
        Ok(status) if status.success() => "ok".to_owned(),
        Ok(status) => format!("FAILED ({status})"),
        Err(error) => format!("FAILED ({error})"),
    }
}
