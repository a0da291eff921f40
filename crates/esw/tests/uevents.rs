//! Uevents: programs of a lab learn of the card's devices as udev does, and nobody else does.

mod lab;

use std::fs;

use lab::{Folder, session};

/// Prints the uevents of the kernel's group, a line each: the action, the path, and these properties.
const LISTENER: &str = "import os, socket, sys\n\
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)\n\
    s.bind((0, 1))\n\
    print('ready', flush=True)\n\
    while True:\n    \
        lines = s.recv(8192).decode().split('\\0')\n    \
        p = dict(line.split('=', 1) for line in lines[1:] if line)\n    \
        if lines[0] != p['ACTION'] + '@' + p['DEVPATH'] or not p['SEQNUM'].isdigit(): print('wrong', lines)\n    \
        if p['DEVPATH'].endswith('last'): break\n    \
        if 'pci0' not in p['DEVPATH'] and p['SUBSYSTEM'] != 'net': continue\n    \
        keys = ('SUBSYSTEM', 'DRIVER', 'PCI_SLOT_NAME', 'INTERFACE', 'NAME', 'DEVPATH_OLD', 'SYNTH_UUID')\n    \
        print(p['ACTION'], p['DEVPATH'], *(p[k] for k in keys if k in p), flush=True)\n";

/// Listens while commands run, until a uevent that matches `awaited` was heard and then a device called `last` is there.
/// Among the commands, `until_heard PATTERN` waits for a uevent.
fn listen(commands: &str, awaited: &str) -> String {
    format!(
        "until_heard() {{ until_true \"grep '$1' $FOLDER/heard\"; }}
         python3 $FOLDER/listener > $FOLDER/heard & P=$!; until_heard ready\n{commands}\n\
         until_heard '{awaited}'; until_idle $P; ip link add last type ifb; wait; ip link del last; grep -v ready $FOLDER/heard; rm $FOLDER/heard"
    )
}

fn run_session(name: &str, commands: &[String]) -> Vec<Vec<String>> {
    run_session_with(name, "modules = [\"mlx5_ib\"]\n", commands)
}

fn run_session_with(name: &str, card: &str, commands: &[String]) -> Vec<Vec<String>> {
    let folder = Folder::make(name);
    let config = format!("[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\n{card}");
    fs::write(folder.0.join("config"), config).unwrap();
    fs::write(folder.0.join("listener"), LISTENER).unwrap();
    session(&folder, "bash", "--config $FOLDER/config", commands)
}

const NUMVFS: &str = "/sys/bus/pci/devices/0000:08:00.0/sriov_numvfs";

#[test]
fn a_vf_that_comes_is_renamed_and_goes_is_told_of_as_by_the_kernel() {
    if lab::skipped(&["bash", "python3"]) {
        return;
    }
    let printed = run_session(
        "uevents",
        &[
            listen(
                &format!(
                    "echo 1 > {NUMVFS}; until_heard 'bind .*00.1 pci'; ip link set enp8s0f0v0 name eth7; \
                     until_heard 'move .*eth7'; echo 0 > {NUMVFS}"
                ),
                "remove .*00.1 pci",
            ),
            listen(
                "echo change > /sys/class/net/enp8s0f0np0/uevent; echo add > /sys/bus/pci/devices/0000:08:00.0/uevent",
                "add .* pci",
            ),
            listen(
                "ip netns add pod$$; ip link set enp8s0f0np0 netns pod$$; until_heard 'remove .*np0'; ip netns del pod$$",
                "add .*np0",
            ),
            "echo nonsense > /sys/class/net/enp8s0f0np0/uevent".to_owned(),
        ],
    );
    let vf = "/devices/pci0000:08/0000:08:00.1";
    let expected = [
        format!("add {vf} pci 0000:08:00.1"),
        format!("add {vf}/infiniband/rocep8s0f0v0 infiniband rocep8s0f0v0"),
        format!("add {vf}/mlx5_core.eth.1000000 auxiliary"),
        format!("add {vf}/mlx5_core.rdma.1000000 auxiliary"),
        format!("add {vf}/net/enp8s0f0v0 net enp8s0f0v0"),
        format!("bind {vf}/mlx5_core.rdma.1000000 auxiliary mlx5_ib.rdma"),
        format!("bind {vf}/mlx5_core.eth.1000000 auxiliary mlx5_core.eth"),
        format!("bind {vf} pci mlx5_core 0000:08:00.1"),
        "change /devices/pci0000:08/0000:08:00.0 pci mlx5_core 0000:08:00.0".to_owned(),
        format!("move {vf}/net/eth7 net eth7 {vf}/net/enp8s0f0v0").replace(" /", " /"),
        format!("remove {vf}/net/eth7 net eth7"),
        format!("unbind {vf}/mlx5_core.rdma.1000000 auxiliary"),
        format!("remove {vf}/mlx5_core.rdma.1000000 auxiliary"),
        format!("unbind {vf}/mlx5_core.eth.1000000 auxiliary"),
        format!("remove {vf}/mlx5_core.eth.1000000 auxiliary"),
        format!("remove {vf}/infiniband/rocep8s0f0v0 infiniband rocep8s0f0v0"),
        format!("unbind {vf} pci 0000:08:00.1"),
        format!("remove {vf} pci 0000:08:00.1"),
    ];
    assert_eq!(sorted_within(&printed[0]), sorted_within(&expected));
    let pf = "/devices/pci0000:08/0000:08:00.0";
    let written =
        [format!("change {pf}/net/enp8s0f0np0 net enp8s0f0np0 0"), format!("add {pf} pci mlx5_core 0000:08:00.0 0")];
    assert_eq!(printed[1], written);
    let moved =
        [format!("remove {pf}/net/enp8s0f0np0 net enp8s0f0np0"), format!("add {pf}/net/enp8s0f0np0 net enp8s0f0np0")];
    assert_eq!(printed[2], moved);
    assert!(printed[3].last().unwrap().ends_with("Invalid argument"), "{:?}", printed[3]);
}

#[test]
fn an_rdma_device_that_is_renamed_and_moved_is_told_of_as_by_the_kernel() {
    if lab::skipped(&["bash", "python3", "rdma"]) {
        return;
    }
    let printed = run_session(
        "uevents-rdma",
        &[
            "rdma system set netns exclusive; ip netns add pod".to_owned(),
            listen(
                "rdma dev set rocep8s0f0 name one; until_heard 'move .*one'; rdma dev set one netns pod; \
                 until_heard 'remove .*one'; ip netns del pod",
                "add .*one",
            ),
        ],
    );
    let device = "/devices/pci0000:08/0000:08:00.0/infiniband";
    let told = [
        format!("move {device}/one infiniband one {device}/rocep8s0f0"),
        format!("remove {device}/one infiniband one"),
        format!("add {device}/one infiniband one"),
    ];
    assert_eq!(printed[1], told);
}

/// The card may be seen between two steps of a command, so that what comes with it comes in one part or in two. A device
/// comes after what it is in, and goes before.
fn sorted_within(lines: &[String]) -> Vec<String> {
    let path = |line: &str| line.split(' ').nth(1).unwrap_or_default().to_owned();
    for (at, line) in lines.iter().enumerate() {
        let later = |action: &str| {
            let of_above = |other: &String| {
                let mut words = other.split(' ');
                words.next() == Some(action)
                    && words.next().is_some_and(|above| path(line) != above && path(line).starts_with(above))
            };
            lines[at..].iter().any(of_above)
        };
        assert!(!line.starts_with("add ") || !later("add"), "{line} comes before what it is in: {lines:#?}");
        let earlier = lines[..at].iter().any(|other| {
            let mut words = other.split(' ');
            words.next() == Some("remove")
                && words.next().is_some_and(|above| path(line) != above && path(line).starts_with(above))
        });
        assert!(!line.starts_with("remove ") || !earlier, "{line} goes after what it is in: {lines:#?}");
    }
    let mut sorted = lines.to_vec();
    sorted.sort();
    sorted
}

#[test]
fn udevadm_monitors_informs_triggers_and_names() {
    if lab::skipped(&["bash", "python3", "udevadm"]) {
        return;
    }
    let monitor =
        "udevadm monitor --kernel > $FOLDER/heard & m=$!; while ! grep -q uevent $FOLDER/heard; do sleep 0.05; done";
    let printed = run_session(
        "udevadm",
        &[
            format!(
                "{monitor}; until_idle $m; echo 1 > {NUMVFS}; until_true 'grep net/enp8s0f0v0 $FOLDER/heard'; kill $m; wait $m 2>/dev/null; \
                 grep -o '[a-z]* *[^ ]* .net.$' $FOLDER/heard"
            ),
            format!(
                "{monitor}; until_idle $m; udevadm trigger --action=change --subsystem-match=net --sysname-match='enp8*'; \
                 until_true '[ $(grep -c change $FOLDER/heard) = 2 ]'; kill $m; wait $m 2>/dev/null; grep -o 'change .*' $FOLDER/heard"
            ),
            "udevadm info -q property /sys/class/net/enp8s0f0v0".to_owned(),
            "for n in np0 v0; do udevadm test-builtin net_id /sys/class/net/enp8s0f0$n 2>/dev/null | grep PATH; done"
                .to_owned(),
        ],
    );
    assert_eq!(printed[0], ["add      /devices/pci0000:08/0000:08:00.1/net/enp8s0f0v0 (net)"]);
    let mut changed = printed[1].clone();
    changed.sort();
    let net =
        |function: &str, name: &str| format!("change   /devices/pci0000:08/0000:08:00.{function}/net/{name} (net)");
    assert_eq!(changed, [net("0", "enp8s0f0np0"), net("1", "enp8s0f0v0")]);
    let path = "DEVPATH=/devices/pci0000:08/0000:08:00.1/net/enp8s0f0v0";
    assert!(printed[2].iter().any(|line| line == path), "{:?}", printed[2]);
    assert_eq!(printed[3], ["ID_NET_NAME_PATH=enp8s0f0np0", "ID_NET_NAME_PATH=enp8s0f0v0"]);
}

/// A listener outside, in the same network namespace, hears of the kernel's netdevs only.
#[test]
fn outside_of_the_lab_nothing_is_heard_of_the_card() {
    if lab::skipped(&["bash", "python3"]) {
        return;
    }
    let folder = Folder::make("uevents-outside");
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 1\nmodules = [\"mlx5_ib\"]\n";
    fs::write(folder.0.join("config"), config).unwrap();
    fs::write(folder.0.join("listener"), LISTENER).unwrap();
    let script = format!(
        "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        $ESW up --daemon --detach --config $FOLDER/config >&2
        python3 $FOLDER/listener > $FOLDER/outside &
        while [ ! -s $FOLDER/outside ]; do sleep 0.02; done
        $ESW exec -- sh -c 'python3 $FOLDER/listener > $FOLDER/inside & while [ ! -s $FOLDER/inside ]; do sleep 0.02; done
            echo 1 > {NUMVFS}; echo change > /sys/class/net/enp8s0f0np0/uevent
            while [ $(grep -c pci0000:08 $FOLDER/inside) -lt 10 ]; do sleep 0.02; done; ip link add last type ifb; wait'
        wait; ip link del last
        $ESW down >&2"
    );
    let output = lab::apart(&script, &folder.0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let heard = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap();
    let of_the_card = |heard: &str| heard.lines().filter(|line| line.contains("pci0000:08")).count();
    assert_eq!(of_the_card(&heard("outside")), 0, "{}", heard("outside"));
    assert!(heard("outside").contains("add /devices/virtual/net/enp8s0f0v0 net enp8s0f0v0"), "{}", heard("outside"));
    assert_eq!(of_the_card(&heard("inside")), 10, "{}", heard("inside"));
    assert!(!heard("inside").contains("/devices/virtual/net/enp8s0f0v0"), "{}", heard("inside"));
}

/// udev publishes in a multicast group of its own, and speaks to its workers by their ports.
#[test]
fn programs_of_a_lab_send_each_other_uevents() {
    if lab::skipped(&["bash", "python3", "setpriv"]) {
        return;
    }
    let program = "import socket, os, struct\n\
        def made(groups, port=0):\n    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)\n    s.bind((port, groups))\n    \
        s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)\n    s.settimeout(60)\n    return s\n\
        a, b, c = made(0), made(2), made(0)\n\
        assert a.family == socket.AF_NETLINK and a.getsockopt(1, 38) == 15\n\
        ports = [s.getsockname()[0] for s in (a, b, c)]\n\
        assert ports[0] == os.getpid() and len(set(ports)) == 3, ports\n\
        a.sendto(b'to all', (0, 2))\n\
        def got(s):\n    import ctypes\n    data, control, flags, _ = s.recvmsg(100, 100)\n    \
        return data, struct.unpack('3i', control[0][2])[1]\n\
        print(got(b))\n\
        a.sendto(b'to one', (ports[2], 0))\n\
        print(got(c))\n\
        b.close()\n\
        for to in (1, 0), (0, 0):\n    \
        try: a.sendto(b'x', to)\n    except OSError as e: print(e.strerror)\n\
        a.sendto(b'nobody', (0, 2))\n";
    let weak = "setpriv --bounding-set -net_admin --inh-caps -net_admin python3 -c \"import socket\n\
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)\n\
        try: s.sendto(b'x', (0, 2))\nexcept OSError as e: print(e.strerror)\"";
    let printed = run_session(
        "uevents-send",
        &[format!("cat > $FOLDER/program <<'EOF'\n{program}EOF\npython3 $FOLDER/program"), weak.to_owned()],
    );
    let refused = "Connection refused";
    assert_eq!(printed[0], ["(b'to all', 0)", "(b'to one', 0)", refused, refused]);
    assert_eq!(printed[1], ["Operation not permitted"]);
}

/// systemd's own udev, in a lab: it loads `mlx5_ib` for the auxiliary device that it matches, and knows netdevs as it knows
/// those of the hardware. Of its rules only those that concern the card's devices are there: the machine's devices are not
/// the test's.
#[test]
fn udev_in_a_lab_loads_mlx5_ib_and_describes_netdevs() {
    const UDEVD: &str = "/lib/systemd/systemd-udevd";
    if lab::skipped(&["bash", "udevadm", UDEVD]) {
        return;
    }
    let rules = "r=/usr/lib/udev/rules.d; mkdir $FOLDER/rules; cp $r/{75-net-description,80-drivers,80-net-setup-link}.rules \
        $FOLDER/rules; mount --bind $FOLDER/rules $r";
    let printed = run_session_with(
        "udevd",
        "",
        &[
            format!("{rules}; mkdir -p /run/udev; {UDEVD} --daemon 2>/dev/null; udevadm control --ping; rdma dev"),
            "udevadm trigger --action=add --subsystem-match=auxiliary; udevadm settle; rdma dev | cut -d' ' -f2"
                .to_owned(),
            format!(
                "echo 1 > {NUMVFS}; until_true 'udevadm settle; udevadm info -q property /sys/class/net/enp8s0f0v0 | grep ID_PATH'; udevadm info -q property /sys/class/net/enp8s0f0v0"
            ),
            "udevadm control --exit; while pidof systemd-udevd > /dev/null; do sleep 0.05; done; umount $r".to_owned(),
        ],
    );
    assert!(printed[0].is_empty(), "{:?}", printed[0]);
    assert_eq!(printed[1], ["rocep8s0f0:"], "{printed:#?}");
    for property in
        ["ID_NET_NAME_PATH=enp8s0f0v0", "ID_NET_DRIVER=mlx5_core", "ID_NET_NAME=enp8s0f0v0", "ID_PATH=pci-0000:08:00.1"]
    {
        assert!(printed[2].iter().any(|line| line == property), "{property} {:#?}", printed[2]);
    }
    assert!(printed[3].is_empty(), "{:?}", printed[3]);
}
