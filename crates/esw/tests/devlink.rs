//! devlink in a lab around a card of real netdevs, as iproute2's program uses it: what mlx5 answers and what it refuses.

mod lab;

use std::fs;

use lab::{Folder, compare, session};

/// Runs commands in a lab around one PF at 0000:08:00.0 and compares what each prints with what is expected, where `…`
/// stands for anything.
fn run_session(name: &str, script: &[(&str, &str)]) {
    run_session_on(1, name, script);
}

/// The same around several PFs.
fn run_session_on(pfs: u8, name: &str, script: &[(&str, &str)]) {
    let folder = Folder::make(name);
    let config = format!(
        "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\npfs = {pfs}\ntotal_vfs = 4\nmodules = [\"mlx5_ib\"]\n"
    );
    fs::write(folder.0.join("config"), config).unwrap();
    let commands: Vec<&str> = script.iter().map(|(command, _)| *command).collect();
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    for ((command, expected), printed) in script.iter().zip(printed) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        compare(command, &expected, &printed);
    }
}

#[test]
fn an_instance_is_reloaded_into_another_network_namespace_and_comes_home_when_that_dies() {
    if lab::skipped(&["bash", "devlink", "nsenter"]) {
        return;
    }
    const GONE: &str = "kernel answers: No such device";
    run_session(
        "netns",
        &[
            ("ip netns add one; one() { nsenter --net=/run/netns/one \"$@\"; }", ""),
            (
                "timeout 60 devlink monitor > /run/home & H=$!; nsenter --net=/run/netns/one timeout 60 devlink monitor > /run/one & O=$!; until_idle $H; until_idle $O",
                "",
            ),
            ("devlink dev reload pci/0000:08:00.0 netns one", ""),
            ("devlink dev show; devlink port show; ip -br link show type veth; ip -br link | grep -v lo", ""),
            ("devlink dev show pci/0000:08:00.0", GONE),
            ("one devlink dev show", "pci/0000:08:00.0"),
            (
                "one devlink port show",
                "pci/0000:08:00.0/65535: type eth netdev eth0 flavour physical port 0 splittable false",
            ),
            ("one ip -br link show eth0", "eth0…DOWN…"),
            // What it makes there stays there, and its VFs are instances of their own.
            (&format!("echo 1 > {NUMVFS}; one devlink dev eswitch set pci/0000:08:00.0 mode switchdev"), ""),
            (
                "one devlink port show pci/0000:08:00.0/1",
                "pci/0000:08:00.0/1: type eth netdev eth1 flavour pcivf controller 0 pfnum 0 vfnum 0 external false \
                 splittable false\n…",
            ),
            ("devlink dev show", "pci/0000:08:00.1"),
            ("devlink port show", "pci/0000:08:00.1/…: type eth netdev enp8s0f0v0 flavour virtual splittable false"),
            ("devlink dev reload pci/0000:08:00.1 netns one; devlink dev show", ""),
            ("one devlink port show eth2", "pci/0000:08:00.1/…: type eth netdev eth2 flavour virtual splittable false"),
            ("one devlink dev reload pci/0000:08:00.1; one devlink dev show pci/0000:08:00.1", "pci/0000:08:00.1"),
            // A driver that is bound makes an instance at home.
            ("cd /sys/bus/pci/drivers/mlx5_core; echo 0000:08:00.1 > unbind; echo 0000:08:00.1 > bind; cd /", ""),
            ("devlink dev show; one devlink dev show", "pci/0000:08:00.1\npci/0000:08:00.0"),
            ("ip netns del one; kill $O; wait $O 2>/dev/null", ""),
            ("until_true 'devlink dev show pci/0000:08:00.0'; devlink dev show pci/0000:08:00.0", "pci/0000:08:00.0"),
            (
                "devlink port show pci/0000:08:00.0/65535",
                "pci/0000:08:00.0/65535: type eth netdev enp8s0f0np0 flavour physical port 0 splittable false",
            ),
            (
                "until_true 'grep dev,new.*08:00.0 /run/home'; kill $H; wait $H 2>/dev/null; grep 08:00.0 /run/home | grep '^.[dp][eo][vr]' | head -2",
                "[port,del] pci/0000:08:00.0/65535…\n[dev,del] pci/0000:08:00.0",
            ),
            ("grep '^.dev.*08:00.0' /run/home", "[dev,del] pci/0000:08:00.0\n[dev,new] pci/0000:08:00.0"),
            ("head -1 /run/one", "[dev,new] pci/0000:08:00.0"),
        ],
    );
}

const NUMVFS: &str = "/sys/bus/pci/devices/0000:08:00.0/sriov_numvfs";

#[test]
fn a_reload_that_the_kernel_or_mlx5_refuses_changes_nothing() {
    if lab::skipped(&["bash", "devlink", "nsenter", "unshare"]) {
        return;
    }
    const UNKNOWN: &str = "Error: Unknown network namespace.\nkernel answers: Invalid argument";
    run_session(
        "reload",
        &[
            (&format!("echo 1 > {NUMVFS}; ip -br link show enp8s0f0np0 | cut -c-11 > /run/before"), ""),
            ("devlink dev reload pci/0000:08:00.0 netns 4194304", UNKNOWN),
            (
                "devlink dev reload pci/0000:08:00.0 limit no_reset",
                "Error: Requested limit is invalid for this action.\nkernel answers: Invalid argument",
            ),
            (
                "devlink dev reload pci/0000:08:00.0 action fw_activate",
                "Error: mlx5_core: FW activate requires reboot.\nkernel answers: Invalid argument",
            ),
            (
                "devlink dev reload pci/0000:08:00.0 action fw_activate limit no_reset",
                "Error: mlx5_core: FW upgrade to the stored FW can't be done by FW live patching.\n\
                 kernel answers: Invalid argument",
            ),
            (
                "devlink dev reload pci/0000:08:00.1 action fw_activate",
                "Error: mlx5_core: FW activate is unsupported for this function.\n\
                 kernel answers: Operation not supported",
            ),
            (
                "devlink dev reload pci/0000:08:00.0 action fw_activate netns $$",
                "Error: devlink: Changing namespace is only supported for reinit action.\n\
                 kernel answers: Operation not supported",
            ),
            ("devlink dev show", "pci/0000:08:00.0\npci/0000:08:00.1"),
            // A reload into the namespace in which the instance is already is a reload.
            (
                "devlink dev reload pci/0000:08:00.0 netns $$",
                "Warning: mlx5_core: reload while VFs are present is unfavorable.",
            ),
            (
                "ip -br link show enp8s0f0np0 | cut -c-11 | cmp - /run/before; devlink dev show",
                "pci/0000:08:00.0\npci/0000:08:00.1",
            ),
            ("devlink dev reload pci/0000:08:00.1 action driver_reinit", "reload_actions_performed:\n…driver_reinit…"),
        ],
    );
}

#[test]
fn a_daemon_that_takes_a_card_over_knows_where_its_instances_are() {
    if lab::skipped(&["bash", "devlink", "nsenter"]) {
        return;
    }
    let folder = Folder::make("netns-kept");
    fs::write(folder.0.join("config"), "[cards.card0]\nkind = \"linux\"\n").unwrap();
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state /run/netns; mount --bind /run/state /var/lib
        $ESW up --daemon --detach --config $FOLDER/config >&2
        $ESW exec -- bash -c 'ip netns add one; devlink dev reload pci/0000:08:00.0 netns one'
        $ESW down --keep >&2
        $ESW up --daemon --detach --config $FOLDER/config >&2
        $ESW exec -- bash -c 'devlink dev show; echo @; nsenter --net=/run/netns/one devlink port show'
        $ESW down >&2";
    let output = lab::apart(script, &folder.0);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let expected = "@\npci/0000:08:00.0/65535: type eth netdev eth0 flavour physical port 0 splittable false\n";
    assert_eq!(stdout, expected, "{stderr}");
}

/// The index has the number of the function in the upper half (`mlx5_esw_vport_to_devlink_port_index`): 1 for the first VF
/// of a card with one PF, which has 0.
#[test]
fn the_port_of_a_vf_and_an_sf_is_announced_and_withdrawn_with_its_instance() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    run_session(
        "virtual",
        &[
            ("timeout 60 devlink monitor > /run/events & M=$!; until_idle $M", ""),
            (
                &format!("echo 1 > {NUMVFS}; devlink port show"),
                "…/65535: …\npci/0000:08:00.1/65536: type eth netdev enp8s0f0v0 flavour virtual splittable false",
            ),
            ("devlink port show pci/0000:08:00.1/1", "kernel answers: No such device"),
            ("devlink health show pci/0000:08:00.1/65536 reporter tx", "pci/0000:08:00.1/65536:\n  reporter tx\n…"),
            ("devlink dev eswitch set pci/0000:08:00.0 mode switchdev", ""),
            ("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 5 > /dev/null", ""),
            (
                "devlink port function set pci/0000:08:00.0/32768 state active; until_true 'devlink port show | grep auxiliary.*s5'",
                "",
            ),
            (
                "devlink port show | grep auxiliary",
                "auxiliary/mlx5_core.sf.…/…: type eth netdev enp8s0f0s5 flavour virtual splittable false",
            ),
            (
                "devlink port del pci/0000:08:00.0/32768; until_true 'grep dev,del.*auxiliary /run/events'; kill $M; wait $M 2>/dev/null",
                "",
            ),
            (
                "grep -e 08:00.1 -e auxiliary /run/events | grep '^.[dp][eo][vr]'",
                "[dev,new] pci/0000:08:00.1\n\
                 [port,new] pci/0000:08:00.1/65536: type eth netdev enp8s0f0v0 flavour virtual splittable false\n\
                 [dev,new] auxiliary/mlx5_core.sf.…\n\
                 [port,new] auxiliary/mlx5_core.sf.…: type eth netdev enp8s0f0s5 flavour virtual splittable false\n\
                 [port,del] auxiliary/mlx5_core.sf.…: type notset flavour virtual splittable false\n\
                 [dev,del] auxiliary/mlx5_core.sf.…",
            ),
        ],
    );
}

#[test]
fn traps_and_reporters_keep_their_settings_as_long_as_the_kernel_does() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    const NOT_SUPPORTED: &str = "kernel answers: Operation not supported";
    const INVALID: &str = "kernel answers: Invalid argument";
    let trap = |action: &str| {
        format!("pci/0000:08:00.0:\n  name dmac_filter type drop generic true action {action} group l2_drops")
    };
    let (dropping, trapping) = (trap("drop"), trap("trap"));
    run_session(
        "settings",
        &[
            (&format!("echo 1 > {NUMVFS}; P=pci/0000:08:00.0"), ""),
            (
                "devlink trap show",
                "pci/0000:08:00.0:\n  name ingress_vlan_filter type drop generic true action drop group l2_drops\n  name \
                 dmac_filter type drop generic true action drop group l2_drops\npci/0000:08:00.1:\n…\n…",
            ),
            ("devlink trap group show $P group l2_drops", "pci/0000:08:00.0:\n  name l2_drops generic true"),
            ("devlink trap policer show", ""),
            ("devlink trap set $P trap dmac_filter action trap; devlink trap show $P trap dmac_filter", &trapping),
            ("devlink trap set $P trap dmac_filter action mirror", NOT_SUPPORTED),
            (
                "devlink trap set $P trap source_mac_is_multicast action trap",
                "Error: Device did not register this trap.\nkernel answers: No such file or directory",
            ),
            ("devlink trap group set $P group l2_drops policer 1", NOT_SUPPORTED),
            ("devlink trap show $P trap dmac_filter", &trapping),
            // A reload makes the traps anew.
            ("devlink dev reload $P 2>/dev/null; devlink trap show $P trap dmac_filter", &dropping),
            ("devlink trap group set $P group l2_drops action trap; devlink trap show $P trap dmac_filter", &trapping),
            ("devlink dev eswitch set $P mode switchdev", ""),
            (
                "devlink trap set $P trap dmac_filter action drop",
                "Error: mlx5_core: Devlink traps can't be set in switchdev mode.\nkernel answers: Operation not supported",
            ),
            ("devlink trap set pci/0000:08:00.1 trap dmac_filter action trap", ""),
            ("devlink health set $P reporter fw auto_dump false", ""),
            ("devlink health set $P reporter fw grace_period 5", NOT_SUPPORTED),
            ("devlink health set $P reporter vnic auto_dump false", NOT_SUPPORTED),
            ("devlink port health set $P/65535 reporter tx grace_period 7 auto_recover false", ""),
            (
                "devlink health show $P reporter fw; devlink port health show $P/65535 reporter tx",
                "pci/0000:08:00.0:\n  reporter fw\n    state healthy error 0 recover 0 auto_dump false\n\
                 pci/0000:08:00.0/65535:\n  reporter tx\n    state healthy error 0 recover 0 grace_period 7 auto_recover \
                 false auto_dump true",
            ),
            // The reporters of a port are made anew, those of the device are not.
            (
                "devlink dev reload $P 2>/dev/null; devlink health show $P reporter fw; devlink port health show \
                 $P/65535 reporter tx",
                "pci/0000:08:00.0:\n  reporter fw\n    state healthy error 0 recover 0 auto_dump false\n\
                 pci/0000:08:00.0/65535:\n  reporter tx\n    state healthy error 0 recover 0 grace_period 500 auto_recover \
                 true auto_dump true",
            ),
            ("devlink health dump show $P reporter fw", NOT_SUPPORTED),
            ("devlink health dump show $P reporter fw_fatal", "kernel answers: No such device"),
            ("devlink health dump show $P reporter vnic", NOT_SUPPORTED),
            ("devlink health dump show $P reporter none", INVALID),
            ("devlink health dump clear $P reporter fw", ""),
            ("devlink health dump clear $P reporter vnic", NOT_SUPPORTED),
            ("devlink health test $P reporter fw", NOT_SUPPORTED),
            ("devlink health recover $P reporter fw_fatal", ""),
            ("devlink region show", ""),
            ("devlink region show $P/cr-space", INVALID),
            (
                "devlink region new $P/cr-space snapshot 1",
                "Error: The requested region does not exist.\nkernel answers: Invalid argument",
            ),
            ("devlink region del $P/cr-space snapshot 1", INVALID),
            ("devlink dev flash $P file none.bin", "Error: failed to locate the requested firmware file."),
        ],
    );
}

#[test]
fn a_vf_has_parameters_of_its_own() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let param = |name: &str, kind: &str, value: &str| {
        format!("pci/0000:08:00.1:\n  name {name} type {kind}\n    values:\n      cmode driverinit value {value}")
    };
    let changed = param("max_macs", "generic", "64");
    run_session(
        "params",
        &[
            (&format!("echo 1 > {NUMVFS}; V=pci/0000:08:00.1"), ""),
            (
                "devlink dev param show | grep -A99 08:00.1 | grep -o 'name [a-z_]*'",
                "name enable_roce\nname io_eq_size\nname event_eq_size\nname enable_eth\nname hairpin_num_queues\nname \
                 hairpin_queue_size\nname enable_rdma\nname max_macs",
            ),
            ("devlink dev param show $V name enable_eth", &param("enable_eth", "generic", "true")),
            (
                "devlink dev param show $V name hairpin_queue_size",
                &param("hairpin_queue_size", "driver-specific", "1024"),
            ),
            ("devlink dev param show $V name esw_multiport", "kernel answers: Invalid argument"),
            ("devlink dev param set $V name io_eq_size value 64 cmode runtime", "Configuration mode not supported"),
            (
                "devlink dev param set $V name max_macs value 3 cmode driverinit",
                "Error: mlx5_core: Only power of 2 values are supported for max_macs.\nkernel answers: Invalid argument",
            ),
            ("devlink dev param set $V name max_macs value 64 cmode driverinit", ""),
            ("devlink dev reload $V; devlink dev param show $V name max_macs", &changed),
            // A driver that is bound anew makes parameters anew; the PF's are others.
            ("cd /sys/bus/pci/drivers/mlx5_core; echo 0000:08:00.1 > unbind; echo 0000:08:00.1 > bind; cd /", ""),
            ("devlink dev param show $V name max_macs", &param("max_macs", "generic", "128")),
            (
                "devlink dev param set pci/0000:08:00.0 name enable_eth value false cmode driverinit",
                "Error: mlx5_core: a PF of this card always has its netdev; unbind its driver instead.\n\
                 kernel answers: Operation not supported",
            ),
        ],
    );
}

#[test]
fn a_vf_and_an_sf_have_a_netdev_and_roce_until_a_reload_takes_the_parameters_that_turn_them_off() {
    if lab::skipped(&["bash", "devlink", "rdma"]) {
        return;
    }
    let set = |name: &str, value: &str| {
        format!("for i in $V $S; do devlink dev param set $i name {name} value {value} cmode driverinit; done")
    };
    let reload = "for i in $V $S; do devlink dev reload $i; done";
    let counts = "ls /sys/class/net | grep -c 0f0[vs]; rdma dev | grep -c 0f0[vs]";
    let values =
        |name: &str| format!("for i in $V $S; do devlink dev param show $i name {name} | grep -o 'value .*'; done");
    run_session(
        "enable-eth",
        &[
            (
                &format!(
                    "modprobe mlx5_ib; echo 1 > {NUMVFS}; devlink dev eswitch set pci/0000:08:00.0 mode switchdev"
                ),
                "",
            ),
            ("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88 > /run/port", ""),
            ("devlink port function set en8f0pf0sf88 state active; until_attached en8f0pf0sf88 enp8s0f0s88", ""),
            (&format!("V=pci/0000:08:00.1; S=$(devlink dev | grep -o auxiliary.*sf.*); {counts}"), "2\n2"),
            (
                &format!("{}; {counts}; {}", set("enable_eth", "false"), values("enable_eth")),
                "2\n2\nvalue false\nvalue false",
            ),
            (&format!("{reload}; {counts}"), "0\n2"),
            (
                "ls /sys/bus/auxiliary/devices | grep -c 'eth.1000000\\|core.eth.[1-9]$'; ip -br link | grep -c 0f0npf0vf0",
                "0\n1",
            ),
            (
                "devlink port show | grep 08:00.1/ | grep -c netdev; ip link set enp8s0f0np0 vf 0 mac 02:00:00:00:00:07; ip link show enp8s0f0np0 | grep -c 00:07",
                "0\n1",
            ),
            (
                &format!("{}; {reload}; {counts}; {}", set("enable_roce", "false"), values("enable_roce")),
                "0\n0\nvalue false\nvalue false",
            ),
            // A change of the mode and of the number of VFs goes by what is there.
            ("devlink dev eswitch set pci/0000:08:00.0 mode legacy; ls /sys/class/net | grep -c 0f0v", "0"),
            (
                &format!(
                    "{0}; {1}; devlink dev reload $V; ls /sys/class/net | grep -c 0f0v; cat /sys/class/net/enp8s0f0v0/address",
                    set("enable_eth", "true").replace("$V $S", "$V"),
                    set("enable_roce", "true").replace("$V $S", "$V")
                ),
                "1\n02:00:00:00:00:07",
            ),
            (
                &format!(
                    "rdma dev | grep -c 0f0v; {}; devlink dev reload $V; echo 0 > {NUMVFS}; echo 1 > {NUMVFS}; ls /sys/class/net | grep -c 0f0v",
                    set("enable_eth", "false").replace("$V $S", "$V")
                ),
                "1\n1",
            ),
            // Without RoCE of the function there is none to be switched on.
            (
                "devlink dev eswitch set pci/0000:08:00.0 mode switchdev; devlink port function set enp8s0f0npf0vf0 roce disable",
                "…",
            ),
        ],
    );
}

#[test]
fn an_sf_has_its_parts_after_its_first_reload_if_its_pf_says_so() {
    if lab::skipped(&["bash", "devlink", "rdma"]) {
        return;
    }
    const PF: &str = "pci/0000:08:00.0";
    let counts = "ls /sys/class/net | grep -c 0f0s; rdma dev | grep -c 0f0s; devlink dev | grep -c auxiliary";
    let active = "state active; until_true 'devlink dev | grep auxiliary'";
    let cycle = format!(
        "state inactive; until_true '! devlink dev | grep auxiliary'; devlink port function set en8f0pf0sf88 {active}"
    );
    run_session(
        "sfs-aux-devs",
        &[
            (
                &format!(
                    "modprobe mlx5_ib; devlink dev param set {PF} name enable_sfs_aux_devs value false cmode driverinit"
                ),
                "",
            ),
            (&format!("devlink dev reload {PF}; devlink dev eswitch set {PF} mode switchdev"), ""),
            (&format!("devlink port add {PF} flavour pcisf pfnum 0 sfnum 88 > /run/port"), ""),
            (&format!("devlink port function set en8f0pf0sf88 {active}; {counts}"), "0\n0\n1"),
            // A container wants the netdev only.
            (
                "S=$(devlink dev | grep auxiliary); devlink dev param set $S name enable_rdma value false cmode driverinit",
                "",
            ),
            (&format!("devlink dev reload $S; {counts}"), "1\n0\n1"),
            (&format!("devlink port function set en8f0pf0sf88 {cycle}; {counts}"), "0\n0\n1"),
            (
                &format!(
                    "devlink dev param set {PF} name enable_sfs_aux_devs value true cmode driverinit; devlink port function set en8f0pf0sf88 {cycle}; {counts}"
                ),
                "0\n0\n1",
            ),
        ],
    );
}

#[test]
fn esw_sets_shows_moves_and_listens_as_devlink_does() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    const PF: &str = "pci/0000:08:00.0";
    run_session(
        "own-words",
        &[
            ("ip netns add pod; timeout 60 $ESW monitor >> /run/events & M=$!; until_idle $M", ""),
            (&format!("$ESW dev param set {PF} name io_eq_size value 256 cmode driverinit"), ""),
            (
                &format!("$ESW dev param show {PF} name io_eq_size"),
                &format!("{PF}:\n  name io_eq_size type generic\n    values:\n      cmode driverinit value 256"),
            ),
            (
                &format!("$ESW dev param set {PF} name io_eq_size value many cmode driverinit"),
                "kernel answers: Invalid argument",
            ),
            (
                &format!("$ESW dev reload {PF} netns nothing"),
                "esw: /run/netns/nothing: no such network namespace; `ip netns add` makes one with a name…",
            ),
            (&format!("$ESW dev reload {PF} netns pod; devlink dev; nsenter --net=/run/netns/pod devlink dev"), PF),
            (&format!("$ESW dev reload {PF} netns $$; devlink dev"), PF),
            (
                "until_idle $M; kill $M; grep -c 'param,new' /run/events; grep -A2 'param,new' /run/events | head -3",
                &format!("…\n[param,new] {PF}:\n  name io_eq_size type generic\n    values:"),
            ),
        ],
    );
}

#[test]
fn what_is_set_and_what_comes_and_goes_is_notified_once_and_as_it_is_shown() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    const PF: &str = "pci/0000:08:00.0";
    const VF: &str = "pci/0000:08:00.1";
    let steering = "driverinit value 128";
    run_session(
        "notified",
        &[
            ("timeout 60 devlink monitor >> /run/events & M=$!; until_idle $M", ""),
            // A setting, before the command returns; and none of one that is refused.
            (
                &format!(
                    "devlink dev param set {PF} name io_eq_size value 128 cmode driverinit; until_idle $M; cat /run/events | tr -d '\\n'; > /run/events"
                ),
                &format!("[param,new] {PF}: name io_eq_size type generic …values:…cmode {steering}"),
            ),
            (
                &format!(
                    "devlink dev param set {PF} name io_eq_size value 1 cmode driverinit; until_idle $M; cat /run/events"
                ),
                "kernel answers: Invalid argument",
            ),
            (
                &format!(
                    "devlink trap set {PF} trap dmac_filter action trap; devlink health set {PF} reporter fw_fatal grace_period 7; until_idle $M; cat /run/events"
                ),
                "",
            ),
            // A reload makes the traps anew.
            (
                &format!(
                    "devlink dev reload {PF}; until_idle $M; grep -c 'trap,del' /run/events; grep -c 'trap,new' /run/events; devlink trap show {PF} trap dmac_filter | grep -o 'action [a-z]*'"
                ),
                "2\n2\naction drop",
            ),
            ("> /run/events; echo 1 > /sys/class/net/enp8s0f0np0/device/sriov_numvfs; until_idle $M", ""),
            (
                &format!("grep -o '\\[[a-z,-]*\\] {VF}' /run/events | LC_ALL=C sort | uniq -c"),
                &format!(
                    "…1 [dev,new] {VF}\n…8 [param,new] {VF}\n…1 [port,new] {VF}\n…2 [trap,new] {VF}\n…1 [trap-group,new] {VF}"
                ),
            ),
            ("> /run/events; echo 0 > /sys/class/net/enp8s0f0np0/device/sriov_numvfs; until_idle $M", ""),
            (
                &format!("grep -o '\\[[a-z,-]*\\] {VF}' /run/events | LC_ALL=C sort | uniq -c"),
                &format!(
                    "…1 [dev,del] {VF}\n…8 [param,del] {VF}\n…1 [port,del] {VF}\n…2 [trap,del] {VF}\n…1 [trap-group,del] {VF}"
                ),
            ),
            ("kill $M", ""),
            // What a PF can have at most.
            (
                &format!("devlink resource show {PF}"),
                &format!(
                    "{PF}:\n  name max_local_SFs size …unit entry dpipe_tables none\n  name max_external_SFs size 0 unit entry dpipe_tables none"
                ),
            ),
        ],
    );
}

#[test]
fn a_vf_and_an_sf_have_an_rdma_device_until_a_reload_takes_the_parameter_that_turns_it_off() {
    if lab::skipped(&["bash", "devlink", "rdma"]) {
        return;
    }
    let set = "for i in $V $S; do devlink dev param set $i name enable_rdma value";
    let reload = "for i in $V $S; do devlink dev reload $i; done; rdma dev | grep -c 0f0[vs]";
    let values = "for i in $V $S; do devlink dev param show $i name enable_rdma | grep -o 'value .*'; done";
    run_session(
        "enable-rdma",
        &[
            (
                &format!(
                    "modprobe mlx5_ib; echo 1 > {NUMVFS}; devlink dev eswitch set pci/0000:08:00.0 mode switchdev"
                ),
                "",
            ),
            ("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88 > /run/port", ""),
            ("devlink port function set en8f0pf0sf88 state active; until_attached en8f0pf0sf88 enp8s0f0s88", ""),
            ("V=pci/0000:08:00.1; S=$(devlink dev | grep -o auxiliary.*sf.*); rdma dev | grep -c 0f0[vs]", "2"),
            // It is shown at once, and takes effect with the next reload.
            (
                &format!("{set} false cmode driverinit; done; rdma dev | grep -c 0f0[vs]; {values}"),
                "2\nvalue false\nvalue false",
            ),
            (reload, "0"),
            ("ls /sys/bus/auxiliary/devices | grep -c rdma.1000000; ls /sys/class/net | grep -c 0f0[vs]", "0\n2"),
            ("devlink dev param show $V name enable_roce | grep -o 'value .*'", "value true"),
            (reload, "0"),
            (&format!("{set} true cmode driverinit; done; {reload}"), "2"),
            // A driver that is bound anew has its parameters as at first.
            (&format!("{set} false cmode driverinit; done; {reload}"), "0"),
            ("cd /sys/bus/pci/drivers/mlx5_core; echo 0000:08:00.1 > unbind; echo 0000:08:00.1 > bind; cd /", ""),
            ("cd /sys/bus/auxiliary/drivers/mlx5_core.sf; echo ${S#*/} > unbind; echo ${S#*/} > bind; cd /", ""),
            (&format!("rdma dev | grep -c 0f0[vs]; {values}"), "2\nvalue true\nvalue true"),
            (&format!("{set} false cmode driverinit; done; {reload}"), "0"),
            (
                "devlink port function set en8f0pf0sf88 state inactive; until_true '! devlink dev | grep auxiliary'; devlink port function set en8f0pf0sf88 state active",
                "",
            ),
            ("until_true 'rdma dev | grep 0f0s'; rdma dev | grep -c 0f0s", "1"),
            // A PF that is reloaded makes its VFs anew.
            ("devlink dev reload pci/0000:08:00.0 2>/dev/null; rdma dev | grep -c 0f0v", "1"),
        ],
    );
}

/// The rows of the table in `docs/lab.md`: a command, and what it answers for a PF, a VF and an SF.
fn rows() -> Vec<(String, [String; 3])> {
    let text = include_str!("../../../docs/lab.md");
    let table = text.split("<!-- devlink: ").nth(1).unwrap().split("\n\n").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (command, rest) = row.split_once("` | ").unwrap();
        let mut cells = rest.split(" | ").map(str::to_owned);
        (command.to_owned(), [(); 3].map(|()| cells.next().unwrap()))
    })
    .collect()
}

#[test]
fn the_table_of_the_documentation_says_what_each_instance_answers() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let make = "echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs
        devlink dev eswitch set pci/0000:08:00.0 mode switchdev
        devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 5 >/dev/null
        devlink port function set pci/0000:08:00.0/32768 state active
        until_true 'devlink dev show | grep auxiliary'; SF=$(devlink dev show | grep auxiliary)
        port() { devlink port show | grep -o \"^$1/[0-9]*\" | tail -1; }";
    let mut commands = vec![make.to_owned()];
    let rows = rows();
    assert!(rows.len() > 20, "{rows:?}");
    let mut expected = Vec::new();
    for (command, answers) in &rows {
        // The PF is the last, as its reload takes the others away.
        for (device, answer) in ["pci/0000:08:00.0", "pci/0000:08:00.1", "$SF"].iter().zip(answers).rev() {
            let own_port =
                if device.ends_with(".0") { "pci/0000:08:00.0/65535".to_owned() } else { format!("$(port {device})") };
            let command = command.replace("DEV/PORT", &own_port).replace("DEV", device);
            commands.push(format!("{command} && echo yes"));
            expected.push((command, answer));
        }
    }
    let folder = Folder::make("table");
    fs::write(folder.0.join("config"), "[cards.card0]\nkind = \"linux\"\n").unwrap();
    let printed = session(&folder, "bash", "--config $FOLDER/config", &commands);
    for ((command, answer), printed) in expected.iter().zip(&printed[1..]) {
        let printed = printed.join("\n");
        let is_so = if *answer == "yes" { printed.ends_with("yes") } else { printed.contains(answer.as_str()) };
        assert!(is_so, "$ {command}\n{printed}\nexpected: {answer}");
    }
}

#[test]
fn a_pf_in_a_lag_is_not_reloaded() {
    if lab::skipped(&["bash", "devlink"]) {
        return;
    }
    let multiport =
        |value: &str| format!("devlink dev param set pci/0000:08:00.0 name esw_multiport value {value} cmode runtime");
    run_session_on(
        2,
        "reload-lag",
        &[
            ("for n in 0 1; do devlink dev eswitch set pci/0000:08:00.$n mode switchdev; done", ""),
            (&multiport("true"), ""),
            (
                "devlink dev reload pci/0000:08:00.1",
                "Error: mlx5_core: reload is unsupported in Lag mode.\nkernel answers: Operation not supported",
            ),
            ("devlink dev eswitch show pci/0000:08:00.1", "pci/0000:08:00.1: mode switchdev …"),
            (&multiport("false"), ""),
            (
                "devlink dev reload pci/0000:08:00.1; devlink dev eswitch show pci/0000:08:00.1",
                "pci/0000:08:00.1: mode legacy …",
            ),
        ],
    );
}
