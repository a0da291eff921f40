//! Every form of a command or query with what it does: for `help`, completion, and the reference.

/// A form of words, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The form: capitals stand for words to be filled in, brackets for what may be left out.
    pub form: &'static str,
    /// What it does.
    pub does: &'static str,
}

/// An entry of a table of forms.
pub const fn entry(form: &'static str, does: &'static str) -> Entry {
    Entry { form, does }
}

/// Every form of the commands and queries that a prompt takes, and the steps of a scenario.
pub const REQUESTS: &[Entry] = &[
    entry("devlink dev show [DEV]", "list the devices"),
    entry("devlink dev eswitch show DEV", "show an E-Switch's mode"),
    entry("devlink dev eswitch set DEV mode legacy|switchdev|switchdev_inactive", "change the mode"),
    entry("devlink dev eswitch set DEV inline-mode none|link|network|transport", "set the inline mode"),
    entry("devlink dev eswitch set DEV encap-mode none|basic", "set the encapsulation mode"),
    entry("devlink dev reload DEV", "unbind the device and bind it again"),
    entry("devlink port show [PORT]", "show ports"),
    entry("devlink port add DEV flavour pcisf pfnum P sfnum S [controller 0|controller 1]", "add an SF"),
    entry("devlink port del PORT", "delete an SF"),
    entry("devlink port function set PORT hw_addr MAC", "give a function a MAC address"),
    entry("devlink port function set PORT state active|inactive", "activate or deactivate an SF"),
    entry("devlink port function set PORT roce enable|disable", "enable or disable RDMA of a function"),
    entry("echo N > /sys/bus/pci/devices/ADDRESS/sriov_numvfs", "set the number of VFs"),
    entry("echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/bind", "bind a device to its driver"),
    entry("echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/unbind", "unbind a device from its driver"),
    entry("echo ADDRESS > /sys/bus/pci/drivers/vfio-pci/bind", "bind a function to vfio-pci"),
    entry("echo ADDRESS > /sys/bus/pci/drivers/vfio-pci/unbind", "unbind a function from vfio-pci"),
    entry("echo ADDRESS > /sys/bus/pci/devices/ADDRESS/driver/unbind", "unbind a function from the card's driver"),
    entry("echo mlx5_core.sf.N > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind|unbind", "bind or unbind an active SF"),
    entry("echo ADDRESS > /sys/bus/pci/drivers_probe", "bind a function to the driver that it is for, if there is one"),
    entry(
        "echo DRIVER > /sys/bus/pci/devices/ADDRESS/driver_override",
        "set the only driver that may be bound to a function",
    ),
    entry("echo 0|1 > /sys/bus/pci/devices/ADDRESS/sriov_drivers_autoprobe", "whether VFs are bound when enabled"),
    entry("echo N > /sys/bus/pci/devices/ADDRESS/sriov_vf_msix_count", "set the number of a VF's interrupt vectors"),
    entry("echo 1 > /sys/bus/pci/devices/ADDRESS/remove", "remove a function from the bus"),
    entry("echo 1 > /sys/bus/pci/devices/ADDRESS/reset", "take a function down and bring it up again"),
    entry("echo 1 > /sys/bus/pci/rescan", "find functions that were removed from the bus"),
    entry("modprobe MODULE", "load a module, and before it those that it depends on"),
    entry("insmod MODULE", "load a module, if those that it depends on are loaded"),
    entry("modprobe -r MODULE", "unload a module"),
    entry("rmmod MODULE", "unload a module"),
    entry("host ADDRESS sriov_numvfs N", "a DPU's host sets its number of VFs"),
    entry(
        "bond NAME mode MODE DEV... [with NETDEV] [active DEV] [flap N]",
        "put the card's ports into a bond; `flap` makes it change that many times first",
    ),
    entry("bond NAME del", "delete the bond"),
    entry(
        "devlink dev param set DEV name esw_multiport value true|false cmode runtime",
        "make the card one multiport E-Switch, or not",
    ),
    entry("ip link set PFNETDEV netns NAME|home", "move a PF's netdev to a namespace, or home"),
    entry("ip link set PFNETDEV vf N mac MAC", "give a VF's function a MAC address"),
    entry("ip link set PFNETDEV vf N vlan VLAN [qos QOS] [proto PROTO]", "set a VF's VLAN"),
    entry("ip link set PFNETDEV vf N rate|max_tx_rate|min_tx_rate MBITS", "set a VF's rates"),
    entry("ip link set PFNETDEV vf N spoofchk|trust on|off", "set what a VF may send"),
    entry("ip link set PFNETDEV vf N state auto|enable|disable", "set the state of a VF's link"),
    entry("tc filter add dev NETDEV ingress protocol P prio N [chain N] flower [MATCH] ACTION...", "add a flow rule"),
    entry("tc filter del dev NETDEV ingress [prio N] [chain N]", "remove flow rules"),
    entry("tc [-s] filter show dev NETDEV ingress", "show flow rules; with -s their counters"),
    entry("trace PORT FRAME", "say what the flow rules would do with a frame, and why; nothing changes"),
    entry("ip neigh replace ADDRESS lladdr MAC dev PFNETDEV", "tell the next hop to the end of a tunnel"),
    entry("ip neigh del ADDRESS dev PFNETDEV", "forget the next hop to the end of a tunnel"),
    entry("fail KIND [pf N] [uplink|hpf|vf N|sf N] [after N] [times N|always]", "have the card fail to make something"),
    entry("fail alloc DEV times N", "have allocations for a device's work queue fail"),
    entry("fail clear", "forget all failures and delays"),
    entry("delay KIND [pf N] [uplink|hpf|vf N|sf N] [after N] [times N|always] for TIME", "have the card be slow"),
];
