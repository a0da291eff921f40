//! Open vSwitch, unmodified, in a lab: a bridge of representors in its userspace datapath, started again and again.
//!
//! It sends netlink requests and receives with MSG_DONTWAIT, as the answer is there when the kernel's send returns.
//! `OVS_STARTS=N` raises the number of starts.

mod lab;

use std::fs;

use lab::{Folder, record, session};

/// The shell script that runs in the lab. `$FOLDER` is the test's folder, `$STARTS` how often the switch is started.
const STORY: &str = r#"
set -e
cd "$FOLDER"
export OVS_RUNDIR="$FOLDER" OVS_LOGDIR="$FOLDER" OVS_DBDIR="$FOLDER" OVS_SYSCONFDIR="$FOLDER"
pf=0000:08:00.0
db="unix:$FOLDER/db.sock"
trap 'kill $(cat "$FOLDER"/ovs*.pid 2>/dev/null) 2>/dev/null || true' EXIT
echo 2 > /sys/bus/pci/devices/$pf/sriov_numvfs
devlink dev eswitch set pci/$pf mode switchdev
for n in 0 1; do
    ip netns add vf$n
    ip link set enp8s0f0v$n netns vf$n
    ip -n vf$n addr add 10.0.0.$((n + 1))/24 dev enp8s0f0v$n
    ip -n vf$n link set enp8s0f0v$n up
    ip link set enp8s0f0npf0vf$n up
done
ovsdb-tool create conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server conf.db --remote=p$db --pidfile --detach --no-chdir --log-file -vconsole:off 2>/dev/null
start=0
while [ $start -lt $STARTS ]; do
    ovs-vswitchd $db --pidfile --detach --no-chdir --log-file -vconsole:off 2>/dev/null
    if [ $start = 0 ]; then
        ovs-vsctl --db=$db --timeout=30 add-br br0 -- set bridge br0 datapath_type=netdev \
            -- add-port br0 enp8s0f0npf0vf0 -- add-port br0 enp8s0f0npf0vf1
    fi
    ip netns exec vf0 ping -c 2 -i 0.2 -q -w 20 10.0.0.2 > ping || { cat ping; exit 1; }
    switch=$(cat ovs-vswitchd.pid)
    # An orderly end, and then a crash.
    if [ $((start % 2)) = 0 ]; then
        ovs-appctl -t "$FOLDER/ovs-vswitchd.$switch.ctl" exit
    else
        kill -9 $switch
    fi
    while [ -e /proc/$switch ]; do sleep 0.05; done
    rm -f ovs-vswitchd.pid ovs-vswitchd.$switch.ctl
    start=$((start + 1))
done
# It may find no datapath in this kernel, but it must not die of it.
n=0
while [ $n -lt 20 ]; do
    status=0
    ovs-dpctl show > dpctl 2>&1 || status=$?
    [ $status -lt 128 ] || { cat dpctl; exit 1; }
    n=$((n + 1))
done
ip netns del vf0
ip netns del vf1
grep -E '\|(ERR|EMER)\|' ovs-vswitchd.log || true
echo "started $start times"
"#;

#[test]
fn open_vswitch_forwards_between_vfs_each_time_it_is_started() {
    if lab::skipped(&["ovs-vswitchd", "ovsdb-server", "ovs-vsctl", "ping", "devlink"]) {
        return;
    }
    let starts = std::env::var("OVS_STARTS").unwrap_or_else(|_| "4".to_owned());
    let folder = Folder::make("ovs");
    fs::write(folder.0.join("story"), STORY).unwrap();
    let run = format!("STARTS={starts} sh $FOLDER/story");
    let printed = session(&folder, "sh", "--card linux", &[run]);
    let said = printed[0].join("\n");
    assert_eq!(printed[0].last().map(String::as_str), Some(&*format!("started {starts} times")), "{said}");
    assert!(!said.contains("|EMER|") && !said.contains("|ERR|"), "{said}");
    record(STORY);
}
