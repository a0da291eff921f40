//! Runs one script where nothing of the machine is touched: a new card, a lab, and namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::trace;
use crate::workspace::find_program;

/// What is needed besides root and FUSE.
const NEEDED: [&str; 7] = ["bash", "bc", "ethtool", "jq", "lspci", "strace", "unshare"];

/// A script's run.
pub struct Run {
    /// What it has printed. Bash's trace of it is beside it, for people.
    pub output: String,
    /// Where strace's files are.
    pub trace: PathBuf,
    /// Whether it was ended because it took too long.
    pub was_ended: bool,
    /// What `esw rules` said every two seconds.
    pub rules: String,
}

/// The configuration of the card.
const CARD: &str = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 2\ntotal_vfs = 128\nvfs = 2\n\
    modules = [\"mlx5_ib\"]\n";
/// The configuration file of the scripts: how the netdevs are called.
const NAMES: &str = "NIC=enp8s0f0np0\nNIC2=enp8s0f1np1\nVF=enp8s0f0v0\nVF1=enp8s0f0v0\nVF2=enp8s0f0v1\nREP=enp8s0f0npf0vf0\n\
    REP2=enp8s0f0npf0vf1\n";

/// Open vSwitch as a service: what `systemctl` does with it, for scripts that run where no systemd does. Its switch offloads, as
/// that of the machines for which the scripts were written: they only warn if it does not.
const SERVICES: &str = "#!/bin/sh
case $1-$2 in
start-openvswitch*)
  mkdir -p /run/openvswitch /var/log/openvswitch /etc/openvswitch
  [ -e /etc/openvswitch/conf.db ] || ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
  ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock --pidfile --detach -vconsole:off --log-file
  ovs-vsctl --no-wait init
  ovs-vsctl --no-wait set Open_vSwitch . other_config:hw-offload=true external-ids:system-id=eswitch
  ovs-vswitchd --pidfile --detach -vconsole:off --log-file ;;
stop-openvswitch*)
  for name in ovs-vswitchd ovsdb-server; do
    pid=$(cat /run/openvswitch/$name.pid 2> /dev/null) || continue
    ovs-appctl -T 20 -t $name exit || kill $pid
    while [ -e /proc/$pid ]; do sleep 0.1; done
  done ;;
reload-ovs-vswitchd)
  ovs-appctl -T 20 exit
  while [ -e /run/openvswitch/ovs-vswitchd.pid ]; do sleep 0.1; done
  ovs-vswitchd --pidfile --detach -vconsole:off --log-file ;;
*) echo \"no service for: $*\" >&2; exit 1 ;;
esac
";

/// Prepares the namespaces, starts the card, and runs the script in a lab.
///
/// The scripts change settings of the machine: those that no namespace separates are read-only here (`fs.suid_dumpable`,
/// processors that go offline) or go nowhere (the kernel's log). The output is appended to, because the scripts also
/// write to `/dev/stderr`.
const SCRIPT: &str = "
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/state /run/netns /run/scripts /run/programs /run/out /run/etc/up /run/etc/work /run/var/up /run/var/work
cp -a $SCRIPTS/. /run/scripts
cp $ESW /run/esw
mount --bind $OUT /run/out
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/up,workdir=/run/etc/work /etc
mount -t overlay overlay -o lowerdir=/var,upperdir=/run/var/up,workdir=/run/var/work /var
mount --bind /run/state /var/lib
mount -t tmpfs tmpfs /tmp
for fixed in /proc/sys/fs /sys/devices/system/cpu; do
  mount --bind $fixed $fixed
  mount -o remount,bind,ro $fixed
done
mount --bind /dev/null /dev/kmsg
ip link set lo up
if modinfo openvswitch > /dev/null 2>&1; then
  printf %s \"$SERVICES\" > /run/programs/systemctl
  chmod +x /run/programs/systemctl
  PATH=/run/programs:$PATH
fi
if ! command -v journalctl > /dev/null; then
  printf '#!/bin/sh\\n' > /run/programs/journalctl
  chmod +x /run/programs/journalctl
  PATH=/run/programs:$PATH
fi
cd /run/scripts
printf %s \"$CARD\" > /run/card
printf %s \"$NAMES\" > /run/names
/run/esw up --daemon --detach --config /run/card
export CONFIG=/run/names
while sleep 2; do /run/esw rules; done >> /run/out/rules 2> /dev/null &
status=0
timeout -k 5 $LIMIT /run/esw exec -- sh -c '
  # A lab shows the kernel its own part of /sys again, which could be written.
  mount -o remount,bind,ro /sys/devices/system 2>/dev/null || true
  exec 9> /run/out/xtrace
  BASH_XTRACEFD=9 exec strace $STRACE -o /run/out/trace/of bash -x ./$NAME.sh' >> /run/out/output 2>&1 < /dev/null || status=$?
echo $status > /run/out/status
/run/esw down || true
";

/// Checks that scripts can be run here.
///
/// # Errors
/// Not root, no FUSE, or a program is missing.
pub fn ensure_possible() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the scripts are for root");
    ensure!(Path::new("/dev/fuse").exists(), "a lab needs /dev/fuse");
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| find_program(name).is_none()).collect();
    ensure!(missing.is_empty(), "not installed: {}", missing.join(", "));
    Ok(())
}

/// Runs a script. `out`: an empty folder for what it prints and for the traces, which is made.
///
/// # Errors
/// The namespaces or the card could not be made.
pub fn run(name: &str, scripts: &Path, esw: &Path, out: &Path, limit_s: u32) -> Result<Run> {
    let trace = out.join("trace");
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| out.display().to_string())?;
    }
    fs::create_dir_all(&trace).with_context(|| trace.display().to_string())?;
    let out = out.canonicalize()?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]);
    command.args(["sh", "-ec", SCRIPT]).env("SCRIPTS", scripts).env("ESW", esw).env("OUT", &out);
    command.env("CARD", CARD).env("NAMES", NAMES).env("NAME", name).env("LIMIT", limit_s.to_string());
    command.env("STRACE", trace::OPTIONS).env("SERVICES", SERVICES);
    let said = command.stdin(Stdio::null()).output().context("running unshare")?;
    let complaint = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success(), "{}: {}", said.status, complaint.trim());
    let output = fs::read(out.join("output"))?;
    // As timeout(1) says it.
    let was_ended = ["124", "137"].contains(&fs::read_to_string(out.join("status"))?.trim());
    let rules = fs::read_to_string(out.join("rules")).unwrap_or_default();
    Ok(Run { output: String::from_utf8_lossy(&output).into_owned(), trace, was_ended, rules })
}
