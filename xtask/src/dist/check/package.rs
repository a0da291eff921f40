//! The Debian package, used by dpkg and without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::dist::{deb, installed_archive};
use crate::patched::walk;

use super::{Printed, Scratch, Subject, expect_version, output, unpack};

/// A scenario that is in the package, and takes no time.
pub const SCENARIO: &str = "/usr/share/eswitch/scenarios/late-ib.toml";

fn package(subject: &Subject) -> PathBuf {
    subject.out.join(deb::file_name(&subject.ingredients.release))
}

pub fn is_accepted(subject: &Subject) -> Result<()> {
    let Printed { text, .. } = output(Command::new("dpkg-deb").arg("-I").arg(package(subject)))?;
    let version = format!("Version: {}", subject.ingredients.release.debian_version());
    ensure!(text.contains(" Package: eswitch\n") && text.contains(&version), "`dpkg-deb -I` printed:\n{text}");
    let Printed { text, .. } = output(Command::new("dpkg-deb").arg("-c").arg(package(subject)))?;
    let others: Vec<&str> = text.lines().filter(|line| line.split_whitespace().nth(1) != Some("root/root")).collect();
    ensure!(others.is_empty(), "root does not own\n{}", others.join("\n"));
    Ok(())
}

pub fn runs_in_an_empty_root(subject: &Subject) -> Result<()> {
    let scratch = Scratch::new("root")?;
    output(Command::new("dpkg-deb").arg("-x").arg(package(subject)).arg(scratch.path()))?;
    let esw = || {
        let mut command = Command::new("chroot");
        command.arg(scratch.path()).arg("/usr/bin/esw");
        command
    };
    expect_version(subject, &mut esw())?;
    let Printed { text, .. } = output(esw().args(["run", SCENARIO, "--json"]))?;
    ensure!(text.contains("late-ib"), "`esw run` printed:\n{text}");
    Ok(())
}

/// Starts the daemon as the unit does, with real netdevs, in namespaces that end with the check.
pub fn daemon_runs(subject: &Subject) -> Result<()> {
    let scratch = Scratch::new("daemon")?;
    unpack(&installed_archive(subject.ingredients)?, scratch.path())?;
    let unit = fs::read_to_string(scratch.path().join("usr/lib/systemd/system/eswitch.service"))?;
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
    let start = start.context("the unit has no ExecStart=")?;
    let script = format!(
        "mkdir -p proc sys dev; mount -t proc proc proc; mount -t sysfs sysfs sys; mount --bind /dev dev
        ip link set lo up
        chroot . {start} --detach >&2
        chroot . /usr/bin/esw dev show
        chroot . /usr/bin/esw down >&2"
    );
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-ec", &script]);
    let Printed { text, complaints } = output(unshare.current_dir(scratch.path()))?;
    ensure!(text.starts_with("pci/"), "`esw dev show` printed `{text}`\n{complaints}");
    Ok(())
}

/// Runs the package's script of two nodes, in namespaces that end with the check.
pub fn two_nodes(subject: &Subject) -> Result<()> {
    let scratch = Scratch::new("nodes")?;
    output(Command::new("dpkg-deb").arg("-x").arg(package(subject)).arg(scratch.path()))?;
    // The daemons' folders are the check's own; of cgroups see where crun runs the image.
    let script = "mount -t tmpfs tmpfs /run; mkdir /run/state; mount --bind /run/state /var/lib; ip link set lo up
        u=/sys/fs/cgroup/unified; [ ! -d $u ] || mount --bind $u /sys/fs/cgroup
        ESW=\"$PWD/usr/bin/esw\" sh usr/share/eswitch/two-nodes.sh
        ip netns list";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script]);
    let Printed { text, complaints } = output(unshare.current_dir(scratch.path()))?;
    ensure!(text.matches(" 0% packet loss").count() == 2, "the pods do not reach each other:\n{text}\n{complaints}");
    // Two times ten pings and their answers, by the rules of each direction on each card.
    ensure!(text.matches(" 20 pkt").count() == 4, "not all frames went through offloaded rules:\n{text}");
    ensure!(text.lines().last().is_some_and(|line| line.contains("  Sent ")), "something is left:\n{text}");
    Ok(())
}

pub fn is_installed_and_removed(subject: &Subject) -> Result<()> {
    let scratch = Scratch::new("dpkg")?;
    let root = scratch.path();
    let database = root.join("var/lib/dpkg");
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(database.join(folder))?;
    }
    fs::write(database.join("status"), "")?;
    let dpkg = || {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display()));
        // Nothing of the machine counts: its log, files that it leaves out of every package, and where it has programs.
        command.args(["--log=/dev/null", "--path-include=/*", "--force-bad-path"]);
        command
    };
    output(dpkg().arg("--install").arg(package(subject)))?;
    let Printed { text: listed, .. } = output(dpkg().args(["--listfiles", "eswitch"]))?;
    for path in ["/usr/bin/esw", "/etc/eswitch.toml", "/usr/share/man/man1/esw-dev.1.gz"] {
        ensure!(listed.lines().any(|line| line == path), "`dpkg -L` does not list {path}:\n{listed}");
    }
    for path in listed.lines().filter(|path| *path != "/.") {
        ensure!(root.join(&path[1..]).exists(), "dpkg lists {path}, which is not there");
    }
    let Printed { text: changed, .. } = output(dpkg().args(["--verify", "eswitch"]))?;
    ensure!(changed.is_empty(), "the sums in the package are not those of the files:\n{changed}");

    // What a user changes in the configuration outlives another installation.
    let configuration = root.join("etc/eswitch.toml");
    fs::write(&configuration, "keep = true\n")?;
    output(dpkg().arg("--install").arg(package(subject)))?;
    ensure!(fs::read(&configuration)? == b"keep = true\n", "dpkg replaced a changed /etc/eswitch.toml");

    output(dpkg().args(["--purge", "eswitch"]))?;
    let left = walk(root)?.into_iter().filter(|path| !path.starts_with("var/lib/dpkg"));
    let left: Vec<String> = left.map(|path| path.display().to_string()).collect();
    ensure!(left.is_empty(), "after `dpkg --purge` there is still {}", left.join(", "));
    Ok(())
}

pub fn unit_is_accepted(subject: &Subject) -> Result<()> {
    let scratch = Scratch::new("unit")?;
    unpack(&installed_archive(subject.ingredients)?, scratch.path())?;
    let unit = Path::new("/usr/lib/systemd/system/eswitch.service");
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg("--recursive-errors=no").arg(format!("--root={}", scratch.path().display())).arg(unit);
    let Printed { complaints, .. } = output(&mut command)?;
    let about_it: Vec<&str> = complaints.lines().filter(|line| line.contains("eswitch.service")).collect();
    ensure!(about_it.is_empty(), "{}", about_it.join("\n"));
    Ok(())
}
