//! A sysfs that a program mounts itself: the card is in it where hardware would be. `ip netns exec` mounts one, and so does
//! every container runtime, in network, mount and user namespaces of its own.

mod lab;

use std::fs;

use lab::{Folder, compare, session};

/// Runs commands in a lab around a PF at 0000:08:00.0 with two VFs, and compares what each prints with what is expected,
/// where `…` stands for anything.
fn run_session(name: &str, script: &[(&str, &str)]) {
    let folder = Folder::make(name);
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\nmodules = [\"mlx5_ib\"]\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let mut commands = vec!["cd $FOLDER; echo 2 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs"];
    commands.extend(script.iter().map(|(command, _)| *command));
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    for ((command, expected), printed) in script.iter().zip(&printed[1..]) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        compare(command, &expected, printed);
    }
}

/// What `ls` lists of the card's netdevs in a directory.
const NETDEVS: &str = "enp8s0f0np0\nenp8s0f0v0\nenp8s0f0v1";

#[test]
fn ip_netns_exec_shows_the_vf_that_is_there() {
    if lab::skipped(&["bash", "ip", "ethtool"]) {
        return;
    }
    run_session(
        "netns-exec",
        &[
            (
                "ip netns add pod$$ && ip link set enp8s0f0v0 netns pod$$ && ip -n pod$$ link set enp8s0f0v0 name eth0",
                "",
            ),
            ("in=\"ip netns exec pod$$\"; $in ls /sys/class/net", "eth0\nlo"),
            ("$in readlink /sys/class/net/eth0", "../../devices/pci0000:08/0000:08:00.1/net/eth0"),
            ("$in cat /sys/class/net/eth0/device/uevent", "DRIVER=mlx5_core\n…"),
            ("$in ls /sys/bus/pci/devices/0000:08:00.0/net", ""),
            ("$in ethtool -i eth0 | head -1", "driver: mlx5_core"),
            ("$in bash -c 'echo 1400 > /sys/class/net/eth0/mtu; cat /sys/class/net/eth0/mtu'", "1400"),
            // A rename is seen by the next look, in a mount that was there before.
            ("$in bash -c 'ip link set eth0 name vf5; ls /sys/class/net'", "lo\nvf5"),
            ("$in stat -f -c %T /sys /sys/class /sys/bus/pci", "sysfs\nsysfs\nsysfs"),
            // An RDMA device has its netdev where that is, under the name that it has there.
            ("p=/sys/class/infiniband/rocep8s0f0v0/ports/1; $in cat $p/gid_attrs/ndevs/0", "vf5"),
            (
                "cat $p/gid_attrs/ndevs/0 2>&1; cat $p/counters/port_xmit_data $p/hw_counters/out_of_buffer",
                "cat: …: Invalid argument\n0\n0",
            ),
            // Nothing that the lab has opened keeps the namespace alive.
            ("ip netns del pod$$; for n in $(seq 100); do [ -e /sys/class/net/vf5 ] && break; sleep 0.05; done", ""),
            ("ls /sys/class/net | grep -v lo", "enp8s0f0np0\nenp8s0f0v1\nvf5"),
        ],
    );
}

#[test]
fn a_fresh_sysfs_shows_the_card_of_its_network_namespace() {
    if lab::skipped(&["bash", "ip", "unshare"]) {
        return;
    }
    let all = format!("{NETDEVS}\nlo");
    let ours = format!("{all}\n0000:08:00.0\nrocep8s0f0\nrocep8s0f0v0\nrocep8s0f0v1");
    run_session(
        "fresh-sysfs",
        &[
            (
                "unshare -m bash -c 'umount -l /sys; mount -t sysfs none /sys; ls /sys/class/net; \
                 basename /sys/bus/pci/devices/*:08:00.0; ls /sys/class/infiniband'",
                &ours,
            ),
            ("unshare -nm bash -c 'mount -t sysfs none /sys; ls /sys/class/net'", "lo"),
            // At another place, through a link, relative to a directory, through a descriptor.
            ("mkdir sys other; ln -s $PWD/sys link", ""),
            (
                "unshare -m bash -c 'mount -t sysfs -o ro none link; ls sys/class/net; grep -c sys.*fuse.*ro, /proc/mounts'",
                &format!("{all}\n4"),
            ),
            (
                "unshare -m bash -c 'exec 7< sys; mount -t sysfs x /proc/self/fd/7; ls sys/class/net' 2>&1 | head -4",
                &all,
            ),
            // Bound elsewhere, it is whole, and read-only if it is made so.
            ("unshare -m bash -c 'mount --bind /sys other; ls other/class/net; umount -R other; ls other'", &all),
            (
                "unshare -m bash -c 'mount -o remount,bind,ro /sys; echo 0 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs'",
                "bash: …sriov_numvfs: Read-only file system",
            ),
            // The kernel's own answers, where the lab has none.
            ("mount -t sysfs none nowhere", "mount: …nowhere: mount point does not exist…\n…"),
            ("touch file; mount -t sysfs none file", "mount: …file: mount point is not a directory…\n…"),
            ("mount -t sysfs none \"\"", "mount: …\n…"),
            (
                "setpriv --bounding-set -sys_admin --inh-caps -sys_admin mount -t sysfs none sys",
                "mount: …permission denied…\n…",
            ),
            ("mount -t sysfs none sys; umount sys; ls sys", ""),
            // Only a whole mount is replaced by one with the card.
            ("unshare -m bash -c 'mount --bind /sys/kernel other; ls other | grep -c notes; umount other'", "1"),
            ("rm -r sys other link file", ""),
        ],
    );
}

#[test]
fn fsopen_gives_a_sysfs_with_the_card_too() {
    if lab::skipped(&["bash", "python3", "unshare"]) {
        return;
    }
    let program = "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True).syscall\n\
        def call(*args):\n    n = c(*args)\n    if n < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n    return n\n\
        def show(kind):\n    fs = call(430, kind, 1)\n    call(431, fs, 6, None, None, 0)\n    mount = call(432, fs, 1, 1)\n    \
        call(429, mount, b'', -100, b'there', 4)\n    print(' '.join(sorted(os.listdir('there/class/net' if kind == b'sysfs' else 'there'))))\n\
        show(b'sysfs')\nshow(b'tmpfs')\n";
    let folder = Folder::make("fsopen-program");
    fs::write(folder.0.join("program.py"), program).unwrap();
    let run = |how: &str| format!("mkdir there; unshare {how} python3 {}/program.py; rmdir there", folder.0.display());
    run_session("fsopen", &[(&run("-m"), &format!("{} lo\n\n", NETDEVS.replace('\n', " "))), (&run("-nm"), "lo\n\n")]);
}

/// A container without root: the namespaces belong to a user namespace, in which the VF's netdev is what it is, and whose
/// users gain nothing outside of it.
#[test]
fn a_container_of_an_ordinary_user_sees_its_vf() {
    if lab::skipped(&["bash", "ip", "unshare", "ethtool", "devlink"]) {
        return;
    }
    let inside = "unshare -Urnm bash -c 'echo $$ > pid; while [ ! -e go ]; do sleep 0.05; done; mount -t sysfs none /sys; . ./inside' \
        > out 2>&1 & while [ ! -s pid ]; do sleep 0.05; done; ip link set enp8s0f0v1 name eth9 netns $(cat pid); touch go; wait; cat out; \
        rm pid go out";
    let with = |script: &str| format!("cat > inside <<'EOF'\n{script}\nEOF\n{inside}");
    run_session(
        "user-namespace",
        &[
            (
                &with(
                    "ls /sys/class/net; basename $(readlink /sys/class/net/eth9/device); ip -d -o link show eth9\n\
                     ethtool -i eth9 | head -1; ip link set eth9 mtu 1350; cat /sys/class/net/eth9/mtu; devlink dev\n\
                     ip link set eth9 netns $PPID; ip link del eth9; rdma dev set rocep8s0f0 name mine",
                ),
                "eth9\nlo\n0000:08:00.2\n…: eth9: … parentbus pci parentdev 0000:08:00.2\ndriver: mlx5_core\n1350\n\
                 RTNETLINK answers: Operation not permitted\nRTNETLINK answers: Operation not supported\n…",
            ),
            ("rm inside; ls /sys/class/infiniband | head -1", "rocep8s0f0"),
            // Where a part of /sys is hidden from a container, the kernel gives it no other sysfs, and neither does the lab.
            (
                "unshare -m bash -c 'mount -t tmpfs none /sys/firmware; unshare -Urnm mount -t sysfs none /sys'",
                "mount: /sys: …permission denied…\n…",
            ),
            (
                "unshare -m bash -c 'mount -t tmpfs none /sys/devices/virtual; unshare -Urnm mount -t sysfs none /sys'",
                "mount: /sys: …permission denied…\n…",
            ),
            (
                "unshare -m bash -c 'mount --bind /sys/bus /sys/firmware; unshare -Urnm mount -t sysfs none /sys'",
                "mount: /sys: …permission denied…\n…",
            ),
            (
                "unshare -m bash -c 'mount -o remount,bind,ro /sys; unshare -Urnm mount -t sysfs -o ro none /sys'",
                "mount: /sys: …permission denied…\n…",
            ),
            // A directory that the user may not search.
            (
                "mkdir -p private/in; chmod 700 private; setpriv --reuid=65534 --regid=65534 --clear-groups unshare -Urnm \
                 bash -c \"mount -t sysfs none $PWD/private/in 2>/dev/null; grep -c private /proc/self/mountinfo\"; rm -r private",
                "0",
            ),
        ],
    );
}

/// `crun` with its default configuration, but for the program and the network.
#[test]
fn a_container_of_crun_sees_what_its_network_namespace_has() {
    if lab::skipped(&["bash", "ip", "crun", "python3"]) {
        return;
    }
    let configure = "cat > configure.py <<'EOF'\n\
        import json, sys\n\
        c = json.load(open('config.json'))\n\
        c['process'].update(terminal=False, args=['/bin/bash', '-c', 'ls /sys/class/net; readlink /sys/class/net/eth0; ls /sys/class/infiniband | head -1'])\n\
        network = sys.argv[1]\n\
        spaces = c['linux']['namespaces'] = [n for n in c['linux']['namespaces'] if n['type'] != 'network']\n\
        if network == 'own': spaces.append({'type': 'network'})\n\
        elif network != 'host': spaces.append({'type': 'network', 'path': network})\n\
        if network == 'own':\n\
        \x20   spaces.append({'type': 'user'})\n\
        \x20   for kind in 'uid', 'gid': c['linux'][kind + 'Mappings'] = [{'containerID': 0, 'hostID': 100000, 'size': 65536}]\n\
        json.dump(c, open('config.json', 'w'))\n\
        EOF\n\
        mkdir -p bundle/rootfs; cd bundle";
    // crun refuses a machine with cgroups of both versions, whatever it is told to use of them. The root is bound, as
    // the runtime makes its own changes in it.
    let run = |network: &str| {
        format!(
            "unshare -m bash -c 'u=/sys/fs/cgroup/unified; [ ! -d $u ] || mount --bind $u /sys/fs/cgroup; rm -f config.json; \
             mount --rbind / rootfs; crun spec && python3 ../configure.py {network} && \
             crun --root $PWD/state --cgroup-manager=disabled run esw$$; rm -rf state'"
        )
    };
    run_session(
        "crun",
        &[
            ("ip netns add pod$$ && ip link set enp8s0f0v0 name eth0 netns pod$$", ""),
            (configure, ""),
            (&run("/run/netns/pod$PPID"), "eth0\nlo\n../../devices/pci0000:08/0000:08:00.1/net/eth0\nrocep8s0f0"),
            (&run("host"), "enp8s0f0np0\nenp8s0f0v1\nlo\nrocep8s0f0"),
            (&run("own"), "lo\nrocep8s0f0"),
            ("cd ..; rm -r bundle configure.py; ip netns del pod$$", ""),
        ],
    );
}

/// After a plain `chroot` the root is no mount.
#[test]
fn a_lab_works_in_a_chroot() {
    if lab::skipped(&["sh", "chroot", "devlink"]) {
        return;
    }
    let folder = Folder::make("chroot");
    fs::write(folder.0.join("config"), "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\n").unwrap();
    // Outside of the chroot the lab's mounts are not seen, although all mounts are shared.
    let script = "mount --make-rshared /; mount -t tmpfs none /mnt; cd /mnt
        mkdir bin lib lib64 sbin usr etc dev proc sys run tmp var; mkdir -p run/eswitch var/lib
        for d in bin lib lib64 sbin usr dev; do [ -e /$d ] && mount --bind /$d $d; done
        cp $ESW esw; cp $FOLDER/config .; ip link set lo up
        export PATH=/usr/bin:/usr/sbin:/bin:/sbin
        inside() { chroot . \"$@\"; }
        mount -t proc proc proc; mount -t sysfs sysfs sys
        inside /esw up --daemon --detach --config /config >&2
        before=$(wc -l < /proc/self/mountinfo)
        inside /esw exec -- sh -c 'pwd; ls /sys/class/net; devlink dev; cd /tmp; ip netns add pod; ip netns exec pod ls /sys/class/net; ip netns del pod' 2>&1
        [ $(wc -l < /proc/self/mountinfo) = $before ] || cat /proc/self/mountinfo
        inside /esw down >&2; umount sys
        for d in bin lib lib64 sbin usr dev proc; do umount -l $d 2>/dev/null; done; umount -l /mnt";
    let output = lab::apart(script, &folder.0);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.lines().collect::<Vec<_>>(), ["/", "enp8s0f0np0", "lo", "pci/0000:08:00.0", "lo"], "{printed}");
}

/// The plugin `host-device` of the CNI project, as a container runtime calls it.
#[test]
fn the_cni_plugin_host_device_moves_a_vf_into_a_pod_and_back() {
    if lab::skipped(&["bash", "ip", "/usr/lib/cni/host-device"]) {
        return;
    }
    let call = |command: &str| format!("CNI_COMMAND={command} /usr/lib/cni/host-device <<< \"$conf\"");
    run_session(
        "cni",
        &[
            (
                "ip netns add pod$$; export CNI_CONTAINERID=c CNI_NETNS=/run/netns/pod$$ CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni",
                "",
            ),
            (
                "conf='{\"cniVersion\": \"0.4.0\", \"name\": \"n\", \"type\": \"host-device\", \"pciBusID\": \"0000:08:00.1\", \
                 \"ipam\": {\"type\": \"static\", \"addresses\": [{\"address\": \"10.1.2.3/24\"}]}}'",
                "",
            ),
            (&call("ADD"), "…\n            \"mac\": \"02:e5:08:00:00:01\",\n…"),
            ("ip -n pod$$ -o -4 addr show eth0", "…: eth0    inet 10.1.2.3/24 …"),
            ("ip netns exec pod$$ readlink /sys/class/net/eth0", "../../devices/pci0000:08/0000:08:00.1/net/eth0"),
            ("ls /sys/bus/pci/devices/0000:08:00.1/net", ""),
            (&call("DEL"), ""),
            ("ls /sys/bus/pci/devices/0000:08:00.1/net; ip netns del pod$$", "enp8s0f0v0"),
        ],
    );
}
