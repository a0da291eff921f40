//! Programs that nobody here wrote, in a lab around a card of real netdevs: what they print is what they print
//! on the hardware, as its documentation shows it.

mod lab;

use std::fs;

use lab::{Folder, compare, session};

/// Runs commands in a lab around two PFs at 0000:08:00 and compares what each prints with what is expected,
/// where `…` stands for anything.
fn run_session(name: &str, script: &[(&str, &str)]) {
    let folder = Folder::make(name);
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = 2\nmodules = [\"mlx5_ib\"]\n";
    fs::write(folder.0.join("config"), config).unwrap();
    let commands: Vec<&str> = script.iter().map(|(command, _)| *command).collect();
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    for ((command, expected), printed) in script.iter().zip(printed) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        compare(command, &expected, &printed);
    }
}

const NUMVFS: &str = "/sys/bus/pci/devices/0000:08:00.0/sriov_numvfs";

/// The kernel's documentation of devlink ports and of mlx5, and devlink's manual pages, show these lines.
#[test]
fn devlink_prints_what_it_prints_on_the_hardware() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}");
    run_session(
        "devlink",
        &[
            ("devlink dev show", "pci/0000:08:00.0\npci/0000:08:00.1"),
            (
                "devlink dev eswitch show pci/0000:08:00.0",
                "pci/0000:08:00.0: mode legacy inline-mode none encap-mode basic",
            ),
            (
                "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88",
                "Error: mlx5_core: SF ports are only supported in eswitch switchdev mode….\n\
                 kernel answers: Operation not supported",
            ),
            (&numvfs, ""),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            (
                "devlink dev eswitch show pci/0000:08:00.0",
                "pci/0000:08:00.0: mode switchdev inline-mode none encap-mode basic",
            ),
            (
                "devlink port show pci/0000:08:00.0/1",
                "pci/0000:08:00.0/1: type eth netdev enp8s0f0npf0vf0 flavour pcivf controller 0 pfnum 0 vfnum 0 external \
                 false splittable false\n  function:\n    hw_addr 00:00:00:00:00:00…",
            ),
            (
                "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88",
                "pci/0000:08:00.0/32768: type eth netdev en8f0pf0sf88 flavour pcisf controller 0 pfnum 0 sfnum 88 external \
                 false splittable false\n  function:\n    hw_addr 00:00:00:00:00:00 state inactive opstate detached…",
            ),
            (
                "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88",
                "Error: mlx5_core: SF already exist. Choose different sfnum….\nkernel answers: File exists",
            ),
            ("devlink port function set en8f0pf0sf88 hw_addr 00:00:00:00:88:88 state active", ""),
            (
                "until_attached en8f0pf0sf88 enp8s0f0s88; devlink port show en8f0pf0sf88",
                "pci/0000:08:00.0/32768: type eth netdev en8f0pf0sf88 flavour pcisf controller 0 pfnum 0 sfnum 88 external \
                 false splittable false\n  function:\n    hw_addr 00:00:00:00:88:88 state active opstate attached…",
            ),
            (
                "devlink dev param show pci/0000:08:00.0 name esw_multiport",
                "pci/0000:08:00.0:\n  name esw_multiport type driver-specific\n    values:\n      cmode runtime value false",
            ),
            (
                "devlink dev param set pci/0000:08:00.0 name flow_steering_mode value dmfs cmode runtime",
                "Error: mlx5_core: Moving flow steering…\nkernel answers: Operation not supported",
            ),
            ("devlink port function rate add pci/0000:08:00.0/gold tx_max 10gbit", ""),
            ("devlink port function rate set pci/0000:08:00.0/1 tx_share 1gbit parent gold", ""),
            (
                "devlink port function rate show pci/0000:08:00.0/1",
                "pci/0000:08:00.0/1: type leaf tx_share 1Gbit… parent gold",
            ),
            (
                "devlink dev eswitch set pci/0000:08:00.0 mode legacy",
                "Error: Rate node(s) exists.\nkernel answers: Device or resource busy",
            ),
            ("devlink port function rate set pci/0000:08:00.0/1 noparent", ""),
            ("devlink port function rate del pci/0000:08:00.0/gold", ""),
            ("devlink port del en8f0pf0sf88", ""),
            ("devlink dev info pci/0000:08:00.0", "pci/0000:08:00.0:\n  driver mlx5_core\n  versions:\n…"),
            (
                "devlink health show pci/0000:08:00.0 reporter representors",
                "pci/0000:08:00.0:\n  reporter representors\n    state healthy error 0 recover 0…",
            ),
            (
                "devlink dev param set pci/0000:08:00.0 name io_eq_size value 63 cmode driverinit",
                "kernel answers: Invalid argument",
            ),
            ("devlink dev param set pci/0000:08:00.0 name io_eq_size value 64 cmode driverinit", ""),
            ("devlink health diagnose pci/0000:08:00.0 reporter fw", " Syndrome: 0"),
            (
                "devlink port health show pci/0000:08:00.0/65535 reporter tx",
                "pci/0000:08:00.0/65535:\n  reporter tx\n    state healthy error 0 recover 0 grace_period 500…",
            ),
            ("devlink dev reload pci/0000:08:00.0", "Warning: mlx5_core: reload while VFs are present is unfavorable."),
            (
                "devlink dev param show pci/0000:08:00.0 name io_eq_size",
                "pci/0000:08:00.0:\n  name io_eq_size type generic\n    values:\n      cmode driverinit value 64",
            ),
            ("devlink dev eswitch show pci/0000:0f:00.0", "kernel answers: No such device"),
            ("devlink dev eswitch set pci/0000:08:00.0 mode legacy", ""),
        ],
    );
}

#[test]
fn ip_rdma_ethtool_and_lspci_see_the_card() {
    if lab::skipped(&["bash", "devlink", "rdma", "ethtool", "lspci"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}");
    run_session(
        "programs",
        &[
            (&numvfs, ""),
            ("ip link set enp8s0f0np0 vf 1 mac 02:00:00:00:00:07 max_tx_rate 100 spoofchk on trust on", ""),
            (
                "ip link show enp8s0f0np0",
                "…\n…\n    vf 0 …\n    vf 1     link/ether 02:00:00:00:00:07 brd ff:ff:ff:ff:ff:ff, tx rate 100 (Mbps), \
                 max_tx_rate 100Mbps, spoof checking on, link-state auto, trust on, query_rss off",
            ),
            ("ip link set enp8s0f0np0 vf 9 trust on", "Error: …\n…"),
            ("rdma dev show", "…: rocep8s0f0: node_type ca fw 22.45.1020 …\n…"),
            ("rdma link show rocep8s0f0/1", "link rocep8s0f0/1 …netdev enp8s0f0np0…"),
            (
                "ethtool -i enp8s0f0np0 | grep -E '^(driver|firmware|bus)'",
                "driver: mlx5_core\nfirmware-version: 22.45.1020 (MT_0000000436)\nbus-info: 0000:08:00.0",
            ),
            (
                "lspci -n -s 08:00",
                "08:00.0 0200: 15b3:101d\n08:00.1 0200: 15b3:101d\n08:00.2 0200: 15b3:101e\n08:00.3 0200: 15b3:101e",
            ),
            ("lspci -k -s 08:00.0 | tail -2", "\tKernel driver in use: mlx5_core\n…"),
            ("ls /sys/class/infiniband", "rocep8s0f0\n…"),
            ("cat /sys/class/infiniband/rocep8s0f0/ports/1/gid_attrs/ndevs/0", "enp8s0f0np0"),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            (
                "ip -d link show enp8s0f0npf0vf0 | grep -o 'portname.*'",
                "portname pf0vf0 switchid e500000800000000 parentbus pci parentdev 0000:08:00.0",
            ),
            ("ip netns add elsewhere; ip link set enp8s0f0np0 netns elsewhere", "…netns is immutable…\n…"),
            (
                "ip link set enp8s0f0v1 netns elsewhere; ip netns del elsewhere; until_true '[ -e /sys/class/net/enp8s0f0v1 ]'",
                "",
            ),
            ("cat /sys/class/net/enp8s0f0npf0vf0/phys_port_name", "pf0vf0"),
            ("rdma link show | grep -c rocep8s0f0/", "3"),
            // Ports of representors are for raw packets only.
            (
                "cat /sys/class/infiniband/rocep8s0f0/ports/*/gids/0 | sort -u",
                "0000:0000:0000:0000:0000:0000:0000:0000",
            ),
            // An SF's port comes after those of all VFs that there can be; every port up to it exists.
            ("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 11 | head -1", "pci/0000:08:00.0/32768: …"),
            ("devlink port function set pci/0000:08:00.0/32768 state active", ""),
            (
                "rdma link show | grep rocep8s0f0/ > /run/links; echo $(( $(wc -l < /run/links) - $(ls \
                 /sys/class/infiniband/rocep8s0f0/ports | wc -l) )); tail -1 /run/links; rdma link > /dev/null; echo $?",
                "0\nlink rocep8s0f0/… netdev en8f0pf0sf11…\n0",
            ),
            ("basename $(readlink -f /sys/class/net/enp8s0f0v1/device)", "0000:08:00.3"),
        ],
    );
}

/// Unbinds VF 0 of the first PF from its driver, and binds it again.
const BOUND_ANEW: &str = "for what in unbind bind; do echo 0000:08:00.2 > /sys/bus/pci/drivers/mlx5_core/$what; done";

/// What a CNI sets of a VF and gives back, and when the VF's netdev takes it.
#[test]
fn the_address_and_the_link_of_a_vf_are_set_through_its_pf() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}");
    let at_first = "    vf 0     link/ether 00:00:00:00:00:00 brd ff:ff:ff:ff:ff:ff, spoof checking off, link-state auto, \
                    trust off, query_rss off";
    let address = |set: &str| format!("{set}; cat /sys/class/net/enp8s0f0v0/address");
    let bound_anew = address(BOUND_ANEW);
    let set = address("ip link set enp8s0f0np0 vf 0 mac 00:11:22:33:44:55");
    let given_back = address("ip link set enp8s0f0np0 vf 0 mac 00:00:00:00:00:00");
    let shown = "ip link show enp8s0f0np0 | grep 'vf 0'";
    let link = |until: &str| {
        format!("until_true 'ip link show enp8s0f0v0 | grep {until}'; ip link show enp8s0f0v0 | grep -o {until}")
    };
    let (no_carrier, carrier) = (link("NO-CARRIER"), link("LOWER_UP"));
    run_session(
        "vf-settings",
        &[
            (&numvfs, ""),
            (shown, at_first),
            (&set, "02:e5:08:00:00:01"),
            (&bound_anew, "00:11:22:33:44:55"),
            (shown, "    vf 0     link/ether 00:11:22:33:44:55 brd …"),
            (&given_back, "00:11:22:33:44:55"),
            (shown, at_first),
            (&bound_anew, "02:e5:08:00:00:01"),
            ("ip link set enp8s0f0np0 vf 0 mac 01:00:5e:00:00:01", "RTNETLINK answers: Invalid argument"),
            ("ip link set enp8s0f0np0 vf 0 mac ff:ff:ff:ff:ff:ff", "RTNETLINK answers: Invalid argument"),
            (shown, at_first),
            // The address comes first, whatever the order of the words, and stays.
            ("ip link set enp8s0f0np0 vf 0 vlan 5 proto 802.1ad mac 00:11:22:33:44:66", "Error: …"),
            (shown, "    vf 0     link/ether 00:11:22:33:44:66 brd ff:ff:ff:ff:ff:ff, spoof checking off…"),
            ("ip link set enp8s0f0np0 vf 0 vlan 5 qos 7; ip link set enp8s0f0v0 up", ""),
            (&carrier, "LOWER_UP"),
            ("ip link set enp8s0f0np0 vf 0 state disable", ""),
            (&no_carrier, "NO-CARRIER"),
            (shown, "…vlan 5, qos 7, spoof checking off, link-state disable…"),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            ("ip link show enp8s0f0np0 | grep -c 'link-state disable'", "2"),
            ("ip link set enp8s0f0np0 vf 0 state enable", "Error: …"),
            ("ip link set enp8s0f0npf0vf0 up", ""),
            (&carrier, "LOWER_UP"),
            ("devlink port function set pci/0000:08:00.0/1 hw_addr 00:11:22:33:44:77", ""),
            (shown, "    vf 0     link/ether 00:11:22:33:44:77 …"),
            ("ip link set enp8s0f0np0 vf 0 mac 00:00:00:00:00:00", ""),
            ("devlink port show pci/0000:08:00.0/1 | grep -o 'hw_addr [0-9a-f:]*'", "hw_addr 00:00:00:00:00:00"),
            ("devlink dev eswitch set pci/0000:08:00.0 mode legacy", ""),
            ("ip link show enp8s0f0np0 | grep -c 'link-state auto'", "2"),
            (&carrier, "LOWER_UP"),
        ],
    );
}

/// `ip -s` and exporters of metrics read the counters of VFs from the netdev of their PF.
#[test]
fn the_counters_of_vfs_are_read_through_their_pf() {
    if lab::skipped(&["bash"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}");
    let quiet =
        "for n in 0 1; do echo 1 > /proc/sys/net/ipv6/conf/enp8s0f0v$n/disable_ipv6; ip link set enp8s0f0v$n up; done";
    let peer = "ip addr add 10.9.0.1/24 dev enp8s0f0v0; ip neigh add 10.9.0.2 lladdr 02:e5:08:00:00:02 dev enp8s0f0v0";
    let ready = "until_true 'ip link show enp8s0f0v1 | grep LOWER_UP'; ip link show enp8s0f0v1 | grep -o LOWER_UP";
    let read = "ip -s -j link show enp8s0f0np0 | grep -oE '\"stats\":[^}]*}[^}]*}'";
    // iproute2's names, which differ.
    let line = |rx: (u32, u32), tx: (u32, u32)| {
        let rx = format!("\"bytes\":{},\"packets\":{},…", rx.0, rx.1);
        let tx = format!("\"tx_bytes\":{},\"tx_packets\":{},\"dropped\":0", tx.0, tx.1);
        format!("\"stats\":{{\"rx\":{{{rx}}},\"tx\":{{{tx}}}")
    };
    // Each frame: 14 bytes of Ethernet, 20 of IP, 8 of UDP, and 2.
    let (none, three) = ((0, 0), (3 * 44, 3));
    let before = [line(none, none), line(none, none)].join("\n");
    let after = [line(none, three), line(three, none)].join("\n");
    run_session(
        "vf-counters",
        &[
            (&numvfs, ""),
            (quiet, ""),
            (peer, ""),
            (ready, "LOWER_UP"),
            (read, &before),
            ("for n in 1 2 3; do echo x > /dev/udp/10.9.0.2/9; done", ""),
            (read, &after),
            // They belong to the VF, not to its netdev.
            (BOUND_ANEW, ""),
            (read, &after),
            ("ip -j link show enp8s0f0np0 | grep -c '\"stats\"'", "0"),
        ],
    );
}

/// As a CNI does it: representors are renamed after pods, and a PF can have another name, too.
#[test]
fn netdevs_with_other_names_are_the_cards_all_the_same() {
    if lab::skipped(&["bash", "devlink", "ethtool", "rdma"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}");
    let until = |what: &str| format!("until_true \"{what}\"");
    let rep = until("devlink port show pci/0000:08:00.0/1 | grep 'netdev pod-a '");
    let pf = until("devlink port show pci/0000:08:00.0/65535 | grep 'netdev uplink '");
    run_session(
        "renamed",
        &[
            (&numvfs, ""),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            ("ip link set enp8s0f0npf0vf0 name pod-a; ip link set enp8s0f0np0 name uplink", ""),
            (&rep, ""),
            (&pf, ""),
            (
                "ip -d link show pod-a | grep -o 'portname.*'",
                "portname pf0vf0 switchid e500000800000000 parentbus pci parentdev 0000:08:00.0",
            ),
            ("cat /sys/class/net/pod-a/phys_port_name", "pf0vf0"),
            ("ethtool -i pod-a | grep driver", "driver: mlx5e_rep"),
            ("ls /sys/bus/pci/devices/0000:08:00.0/net", "enp8s0f0npf0vf1\npod-a\nuplink"),
            ("ls /sys/class/net/enp8s0f0npf0vf0", "ls: cannot access …"),
            ("ip link set uplink vf 1 mac 02:00:00:00:00:07", ""),
            ("ip link show uplink | grep 'vf 1'", "    vf 1     link/ether 02:00:00:00:00:07…"),
            ("rdma link show rocep8s0f0/1", "link rocep8s0f0/1 …netdev uplink…"),
            // A mode change makes a representor anew, and that has the name it is made with; a PF's netdev stays.
            ("devlink dev eswitch set pci/0000:08:00.0 mode legacy", ""),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            ("cat /sys/class/net/enp8s0f0npf0vf0/phys_port_name /sys/class/net/uplink/phys_port_name", "pf0vf0\np0"),
        ],
    );
}

/// What a CNI does: a VF's netdev goes to a namespace and gets another name there, beside netdevs of the namespace's own.
#[test]
fn a_netdev_is_the_cards_in_any_namespace_and_under_any_name() {
    if lab::skipped(&["bash", "devlink", "ethtool", "nsenter"]) {
        return;
    }
    let in_pod = |command: &str| format!("nsenter --net=/run/netns/pod {command}");
    let shown = "ip -n pod -d link show eth0 | grep -o 'parentbus.*\\|veth'";
    let (driver, other_driver) = (in_pod("ethtool -i eth0 | grep driver"), in_pod("ethtool -i eth1 | grep driver"));
    let (devices, mode) = (in_pod("devlink dev"), in_pod("devlink dev eswitch show pci/0000:08:00.0"));
    let monitor = "timeout 60 ip monitor link > /run/monitor & M=$!; until_idle $M; ip netns add other; \
                   ip link set enp8s0f0v1 netns other; ip -n other link set enp8s0f0v1 netns $$; until_idle $M; kill $M; \
                   grep -c '@' /run/monitor; grep -c 'enp8s0f0v1' /run/monitor";
    run_session(
        "namespaces",
        &[
            (&format!("echo 2 > {NUMVFS}; devlink dev eswitch set pci/0000:08:00.0 mode switchdev"), ""),
            ("ip netns add pod; ip link set enp8s0f0v0 netns pod name eth0", ""),
            (shown, "parentbus pci parentdev 0000:08:00.2"),
            (&driver, "driver: mlx5_core"),
            ("ls /sys/bus/pci/devices/0000:08:00.2/net; ls /sys/class/net/enp8s0f0v1/device/net", "enp8s0f0v1"),
            // The namespace's own netdev of a name that the card has, too.
            ("ip -n pod link add enp8s0f0np0 type veth peer name eth1", ""),
            ("ip -n pod -d link show enp8s0f0np0 | grep -o 'vf 0\\|parentbus.*\\|veth'", "veth"),
            ("ip -n pod link set enp8s0f0np0 vf 0 mac 00:11:22:33:44:99", "…Operation not supported…"),
            ("ip link show enp8s0f0np0 | grep -c 00:11:22:33:44:99", "0"),
            (&other_driver, "driver: veth"),
            ("ip -n pod link del enp8s0f0np0", ""),
            // An instance of devlink is in its own namespace only.
            (&devices, ""),
            (&mode, "…No such device…"),
            // Nobody deletes the netdev of hardware.
            ("ip -n pod link del eth0", "…Operation not supported…"),
            ("ip link del enp8s0f0npf0vf0", "…Operation not supported…"),
            ("ip link set enp8s0f0npf0vf1 group 7; ip link del group 7", "…Operation not supported…"),
            // A representor stays where its devlink instance is (`mlx5e_build_rep_netdev`).
            ("ip link set enp8s0f0npf0vf0 netns pod name rep0", "Error: The interface netns is immutable."),
            ("ip link set enp8s0f0npf0vf0 name back", ""),
            ("devlink port show pci/0000:08:00.0/1 | head -1 | grep -o 'netdev [a-z]*'", "netdev back"),
            ("cat /sys/class/net/back/phys_port_name", "pf0vf0"),
            // No message about a netdev names its peer.
            (monitor, "0\n2"),
        ],
    );
}

/// RDMA devices are shared by namespaces, or each is in one; they have names that can be changed.
#[test]
fn an_rdma_device_is_moved_and_renamed() {
    if lab::skipped(&["bash", "rdma"]) {
        return;
    }
    run_session(
        "rdma-namespaces",
        &[
            (&format!("modprobe mlx5_ib; echo 2 > {NUMVFS}; ip netns add pod"), ""),
            // Nobody uses a device.
            ("rdma resource | head -1", "0: rocep8s0f0: pd 0 cq 0 qp 0 cm_id 0 mr 0 ctx 0 srq 0"),
            ("rdma resource show qp; echo $?", "0"),
            ("rdma system show", "netns shared copy-on-fork on"),
            // In shared mode every namespace sees every device, and none can be moved.
            ("ip netns exec pod rdma dev | grep -c rocep8s0f0", "3"),
            ("rdma dev set rocep8s0f0v0 netns pod", "error: Operation not supported"),
            // The mode is changed while there is one network namespace only, and set to what it is at any time.
            ("rdma system set netns exclusive", "error: Device or resource busy"),
            ("rdma system set netns shared; echo $?", "0"),
            (
                "ip netns del pod; unshare --net sleep 600 & until_true \"[ \\$(readlink /proc/$!/ns/net) != \\$(readlink /proc/self/ns/net) ]\"; rdma system set netns exclusive",
                "error: …busy",
            ),
            (
                "kill $!; wait $!; rdma system set netns exclusive; rdma system show",
                "…\nnetns exclusive copy-on-fork on",
            ),
            ("ip netns add pod; ip netns exec pod rdma dev", ""),
            ("rdma system set netns shared", "error: Device or resource busy"),
            ("rdma dev set rocep8s0f0v0 netns pod; rdma dev | grep -c rocep8s0f0v0", "0"),
            ("ls /sys/class/infiniband", "rocep8s0f0\nrocep8s0f0v1\nrocep8s0f1"),
            ("ip netns exec pod rdma dev | cut -d: -f2", " rocep8s0f0v0"),
            ("ip netns exec pod ls /sys/class/infiniband", "rocep8s0f0v0"),
            ("rdma dev set rocep8s0f0v0 name other", "Wrong device name…"),
            // It is renamed where it is. A name is taken wherever the device is that has it.
            (
                "ip netns exec pod rdma dev set rocep8s0f0v0 name of-pod; ip netns exec pod ls /sys/class/infiniband",
                "of-pod",
            ),
            ("rdma dev set rocep8s0f0v1 name of-pod", "error: File exists"),
            // A device whose namespace dies comes home.
            ("ip netns del pod; until_true 'rdma dev | grep of-pod'; rdma dev | grep -o of-pod", "of-pod"),
            ("rdma dev set rocep8s0f0v1 name rocep8s0f0", "error: File exists"),
            ("rdma dev set rocep8s0f0v1 name rocep8s0f0v1; echo $?", "0"),
            ("rdma dev set rocep8s0f0v1 name a/b", "error: Invalid argument"),
            ("rdma dev set rocep8s0f0v1 name ''", "error: Invalid argument"),
            (
                "rdma dev set rocep8s0f0v1 name mlx5_7; ls /sys/class/infiniband",
                "mlx5_7\nof-pod\nrocep8s0f0\nrocep8s0f1",
            ),
            ("rdma link show mlx5_7/1 | grep -o 'netdev.*'", "netdev enp8s0f0v1"),
            ("cat /sys/bus/pci/devices/0000:08:00.3/infiniband/mlx5_7/uevent", "NAME=mlx5_7"),
            // A driver that is bound anew makes a device of the first name.
            ("cd /sys/bus/pci/drivers/mlx5_core; echo 0000:08:00.3 > unbind; echo 0000:08:00.3 > bind; cd", ""),
            ("rdma dev | grep -o rocep8s0f0v1", "rocep8s0f0v1"),
            ("rdma dev set rocep8s0f0v1 name again; devlink dev reload pci/0000:08:00.3", ""),
            ("rdma dev | grep -o rocep8s0f0v1", "rocep8s0f0v1"),
            // That of a PF in switchdev mode is another one than that in legacy mode.
            ("rdma dev set rocep8s0f1 name uplink; devlink dev eswitch set pci/0000:08:00.1 mode switchdev", ""),
            ("rdma dev | grep -c uplink", "0"),
        ],
    );
}

/// In exclusive mode a device is where its devlink instance is (`mlx5_core_net`); in shared mode it is seen everywhere.
#[test]
fn an_rdma_device_moves_with_its_devlink_instance() {
    if lab::skipped(&["bash", "rdma", "devlink"]) {
        return;
    }
    run_session(
        "rdma-instances",
        &[
            (&format!("modprobe mlx5_ib; echo 1 > {NUMVFS}; ip netns add one"), ""),
            ("devlink dev reload pci/0000:08:00.2 netns one; rdma dev | grep -c rocep8s0f0v0", "1"),
            ("rdma link show rocep8s0f0v0/1", "link rocep8s0f0v0/1 state DOWN physical_state DISABLED"),
            ("ip netns exec one rdma link show rocep8s0f0v0/1 | grep -o 'netdev.*'", "netdev eth0"),
            ("rdma system set netns exclusive", "error: Device or resource busy"),
            (
                "ip netns del one; until_true 'devlink dev show pci/0000:08:00.2'; devlink dev show pci/0000:08:00.2",
                "…",
            ),
            ("rdma system set netns exclusive; ip netns add one; ip netns add two", ""),
            ("devlink dev reload pci/0000:08:00.2 netns one; rdma dev | grep -c rocep8s0f0v0", "0"),
            ("ip netns exec one rdma dev | cut -d: -f2", " rocep8s0f0v0"),
            // From there it is moved as any other, until the next reload.
            ("ip netns exec one rdma dev set rocep8s0f0v0 netns two; ip netns exec one rdma dev", ""),
            ("ip netns exec two rdma dev | cut -d: -f2", " rocep8s0f0v0"),
            ("ip netns exec one devlink dev reload pci/0000:08:00.2; ip netns exec two rdma dev", ""),
            ("ip netns exec one rdma dev | cut -d: -f2", " rocep8s0f0v0"),
            (
                "ip netns del one; until_true 'rdma dev | grep rocep8s0f0v0'; rdma dev | grep -o rocep8s0f0v0",
                "rocep8s0f0v0",
            ),
        ],
    );
}

/// A program describes a device as `rdma-ndd` does.
#[test]
fn an_rdma_device_has_the_description_that_was_written() {
    if lab::skipped(&["bash", "rdma"]) {
        return;
    }
    let long = "x".repeat(70);
    run_session(
        "rdma-description",
        &[
            (
                "modprobe mlx5_ib; cd /sys/class/infiniband/rocep8s0f0; stat -c %a node_desc; cat node_desc",
                "644\nrocep8s0f0",
            ),
            ("printf 'host one' > node_desc; cat node_desc", "host one"),
            // The kernel keeps the newline, and 64 bytes at most.
            ("echo two > node_desc; cat node_desc", "two\n\n"),
            (&format!("printf {long} > node_desc; echo $?; cat node_desc | wc -c"), "0\n65"),
            // It is no name.
            ("cd; rdma dev set rocep8s0f0 name other; cat /sys/class/infiniband/other/node_desc | wc -c", "65"),
            ("rdma dev show other -d | grep -o 'adaptive-moderation o[nf]*'", "adaptive-moderation on"),
            (
                "rdma dev set other adaptive-moderation off; rdma dev show other -d | grep -o 'moderation o[nf]*'",
                "moderation off",
            ),
        ],
    );
}

/// The labs of a card are on one machine.
#[test]
fn labs_of_a_card_see_the_same_rdma_devices() {
    if lab::skipped(&["sh", "rdma"]) {
        return;
    }
    let folder = Folder::make("rdma-labs");
    fs::write(
        folder.0.join("config"),
        "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\nmodules = [\"mlx5_ib\"]\n",
    )
    .unwrap();
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        $ESW up --daemon --detach --config $FOLDER/config >&2
        $ESW exec -- sh -c 'touch /run/up; until [ -e /run/done ]; do sleep 0.02; done; rdma dev | cut -d: -f2 | cut -d\" \" -f2
            rdma system show; cat /sys/class/infiniband/*/node_desc; ls /sys/class/infiniband' &
        until [ -e /run/up ]; do sleep 0.02; done
        $ESW exec -- sh -c 'rdma system set netns exclusive; rdma dev set rocep8s0f0 name shared-name
            printf described > /sys/class/infiniband/shared-name/node_desc'
        touch /run/done; wait $!; $ESW down >&2";
    let output = lab::apart(script, &folder.0);
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(printed, "shared-name\nnetns exclusive copy-on-fork on\ndescribed\nshared-name\n", "{errors}");
}

/// Programs that ask libudev (systemd, NetworkManager, libvirt) see the machine's devices and the card's.
#[test]
fn libudev_lists_the_cards_devices_beside_the_machines() {
    if lab::skipped(&["python3"]) {
        return;
    }
    let script = r#"python3 -c "
import ctypes
udev = ctypes.CDLL('libudev.so.1')
for name in 'udev_new', 'udev_enumerate_new', 'udev_enumerate_get_list_entry', 'udev_list_entry_get_next':
    getattr(udev, name).restype = ctypes.c_void_p
udev.udev_list_entry_get_name.restype = ctypes.c_char_p
found = ctypes.c_void_p(udev.udev_enumerate_new(ctypes.c_void_p(udev.udev_new())))
udev.udev_enumerate_add_match_subsystem(found, b'net')
udev.udev_enumerate_scan_devices(found)
entry = udev.udev_enumerate_get_list_entry(found)
while entry:
    print(udev.udev_list_entry_get_name(ctypes.c_void_p(entry)).decode())
    entry = udev.udev_list_entry_get_next(ctypes.c_void_p(entry))
""#;
    let found = "/sys/devices/pci0000:08/0000:08:00.0/net/enp8s0f0np0\n/sys/devices/pci0000:08/0000:08:00.1/net/enp8s0f1np1\n\
                 /sys/devices/virtual/net/lo";
    run_session("libudev", &[(script, found)]);
}

#[test]
fn pyroute2_sees_the_card() {
    if lab::skipped(&["python3"]) || lab::skipped_without_pyroute2() {
        return;
    }
    let script = r#"python3 -c "
from pyroute2 import DL, IPRoute
with DL() as dl:
    print(*[device.get_attr('DEVLINK_ATTR_DEV_NAME') for device in dl.get_dump()])
    print(*[port.get_attr('DEVLINK_ATTR_PORT_NETDEV_NAME') for port in dl.get_port_dump()])
with IPRoute() as ip:
    link, = ip.link('get', ifname='enp8s0f0np0')
    print(*[link.get_attr(name) for name in ('IFLA_PARENT_DEV_NAME', 'IFLA_PHYS_PORT_NAME')])
""#;
    run_session("pyroute2", &[(script, "0000:08:00.0 0000:08:00.1\nenp8s0f0np0 enp8s0f1np1\n0000:08:00.0 p0")]);
}

#[test]
fn a_vf_is_given_to_vfio_pci_and_back() {
    if lab::skipped(&["bash", "devlink", "modprobe"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}; devlink dev eswitch set pci/0000:08:00.0 mode switchdev");
    run_session(
        "vfio",
        &[
            (&numvfs, ""),
            ("v=/sys/bus/pci/devices/0000:08:00.2; d=/sys/bus/pci/drivers; echo vfio-pci > $v/driver_override", ""),
            (
                "echo 0000:08:00.2 > $v/driver/unbind; echo 0000:08:00.2 > /sys/bus/pci/drivers_probe; ls -d $v/driver",
                "…No such file or directory",
            ),
            ("ls $d/vfio-pci", "…No such file or directory"),
            // Loading the module binds what waits for its driver.
            (
                "modprobe vfio-pci; basename $(readlink $v/driver); basename $(readlink $d/vfio-pci/0000:08:00.2)",
                "vfio-pci\n0000:08:00.2",
            ),
            ("basename $(readlink $v/iommu_group); cat $v/enable $v/power_state", "2050\n0\nD3hot"),
            ("ls $v | grep -cE '^net$|infiniband|mlx5_core'; ls /sys/class/net | grep -cE 'npf0vf|f0v'", "0\n3"),
            ("echo 0000:08:00.3 > $d/vfio-pci/bind", "…No such device"),
            ("echo 0000:08:00.2 > $d/vfio-pci/bind", "…Device or resource busy"),
            ("echo 0000:08:00.2 > $d/mlx5_core/unbind", "…No such device"),
            ("echo 0000:08:00.2 > $v/driver/unbind; ls -d $v/driver", "…No such file or directory"),
            ("echo 0000:08:00.2 > $d/vfio-pci/bind; rmmod vfio_pci; ls -d $v/driver", "…No such file or directory"),
            ("echo > $v/driver_override; echo 0000:08:00.2 > $d/mlx5_core/bind; ls $v/net", "enp8s0f0v0"),
        ],
    );
}

#[test]
fn vfs_and_sfs_are_bound_and_unbound_in_sysfs() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let numvfs = format!("echo 2 > {NUMVFS}");
    run_session(
        "sysfs",
        &[
            (&numvfs, ""),
            ("echo 0000:08:00.2 > /sys/bus/pci/drivers/mlx5_core/unbind", ""),
            ("ls /sys/class/net | grep -c enp8s0f0v", "1"),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            ("echo 0000:08:00.2 > /sys/bus/pci/drivers/mlx5_core/bind", ""),
            ("ls /sys/bus/pci/devices/0000:08:00.2/net", "enp8s0f0v0"),
            ("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 7 > /dev/null", ""),
            (
                "devlink port function set pci/0000:08:00.0/32768 state active; until_attached pci/0000:08:00.0/32768 enp8s0f0s7",
                "",
            ),
            ("sf=$(basename /sys/bus/auxiliary/devices/mlx5_core.sf.*); cat /sys/bus/auxiliary/devices/$sf/sfnum", "7"),
            ("ls /sys/bus/auxiliary/devices/$sf/net", "enp8s0f0s7"),
            ("devlink dev show auxiliary/$sf", "auxiliary/mlx5_core.sf.…"),
            ("echo $sf > /sys/bus/auxiliary/drivers/mlx5_core.sf/unbind; ls /sys/class/net | grep -c enp8s0f0s7", "0"),
            ("devlink port show pci/0000:08:00.0/32768 | grep -o 'state active.*ed'", "state active opstate detached"),
            ("echo $sf > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind; ls /sys/class/net | grep -c enp8s0f0s7", "1"),
            ("echo 3 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs", "…Device or resource busy"),
            ("echo 99 > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs", "…Numerical result out of range"),
            ("echo many > /sys/bus/pci/devices/0000:08:00.1/sriov_numvfs", "…Invalid argument"),
        ],
    );
}

/// `dcb` of iproute2, as for a ConnectX that nobody has configured. Only the driver of a PF has DCB.
#[test]
fn dcb_shows_the_settings_of_a_pf() {
    if lab::skipped(&["bash", "dcb"]) {
        return;
    }
    let numvfs = format!("echo 1 > {NUMVFS}");
    run_session(
        "dcb",
        &[
            (&numvfs, ""),
            (
                "dcb ets show dev enp8s0f0np0 | grep -E 'cap|tsa|^prio'",
                "willing off ets-cap 8 cbs off\n\
                 tc-tsa 0:vendor 1:vendor 2:vendor 3:vendor 4:vendor 5:vendor 6:vendor 7:vendor\n\
                 prio-tc 0:1 1:0 2:2 3:3 4:4 5:5 6:6 7:7\n\
                 reco-tc-tsa …",
            ),
            (
                "dcb pfc show dev enp8s0f0np0",
                "pfc-cap 8 macsec-bypass off delay 7\nprio-pfc 0:off 1:off 2:off 3:off 4:off 5:off 6:off 7:off",
            ),
            ("dcb -j dcbx show dev enp8s0f0np0", "…host…ieee…"),
            ("dcb app show dev enp8s0f0np0", ""),
            ("dcb ets show dev enp8s0f0v0", "Attribute read: Operation not supported"),
        ],
    );
}
