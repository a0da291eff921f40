//! What people have judged: which commands may fail in a script that passes, and why a script does not pass.
//!
//! A judgement is about something that the run shows. If it does not show it any more, the judgement does not apply: the
//! row then has what the script printed.

use super::trace::Failure;

/// A command that may fail.
struct MayFail {
    /// The script; empty: every script.
    script: &'static str,
    /// The first words of the command, or ERROR for an error that the script prints. `*`: any characters of a word.
    command: &'static str,
    /// A part of what it says.
    words: &'static str,
    /// Why it may: for readers of this file.
    #[allow(dead_code, reason = "for readers")]
    why: &'static str,
}

const fn any(command: &'static str, words: &'static str, why: &'static str) -> MayFail {
    MayFail { script: "", command, words, why }
}

const fn of(script: &'static str, command: &'static str, words: &'static str, why: &'static str) -> MayFail {
    MayFail { script, command, words, why }
}

const MAY_FAIL: [MayFail; 34] = [
    any("echo > /proc/sys/fs/suid_dumpable", "Read-only", "is about core dumps, and may not change this machine"),
    any("modprobe -q mlx_compat", "", "looks for NVIDIA's out-of-tree driver"),
    any("ofed_info", "command not found", "looks for NVIDIA's out-of-tree driver"),
    any("echo > /sys/kernel/debug/dynamic_debug/control", "", "would log what the driver does with interrupts"),
    any("ip route get 1", "unreachable", "looks for the address of the machine, for a log"),
    any("tc qdisc del dev * ingress", "Error: ", "removes what may be there"),
    any("ethtool -K * hw-tc-offload on", "Could not change", "every script tries it on every netdev, VFs included"),
    any("ip netns del", "No such file or directory", "removes what may be there"),
    any("ip -netns * link set dev * netns 1", "Cannot open network namespace", "brings back what may be there"),
    any("ip link del", "Cannot find device", "removes what may be there"),
    any("devlink dev param show * name esw_multiport", "", "asks whether it is there"),
    any("devlink dev param show * name enable_eth", "No such device", "asks whether an SF has it"),
    any("echo 0000:08:0* > /sys/bus/pci/drivers/mlx5_core/unbind", "No such device", "set-macs.sh: unbinds all VFs"),
    of("test-eswitch-set-vf-vlan", "ip link set * vf 1 vlan 200", "cannot be set in switchdev mode", "must fail"),
    of("test-eswitch-set-vf-mac", "ip link set dev enp8s0f0v0 vf 0 mac", "", "must fail: a VF has no VFs"),
    of("test-eswitch-set-vf-rate", "ip link set dev enp8s0f0v0 vf 0 min_tx_rate", "", "must fail: a VF has no VFs"),
    of("test-eswitch-netdev-in-ns", "ip l set dev enp8s0f0np0 netns ns0", "immutable", "must fail: it is an uplink"),
    of("test-eswitch-netdev-in-ns", "devlink dev eswitch set", "has diverged", "must fail: the netdev is in ns0"),
    of(
        "test-eswitch-netdev-in-ns",
        "devlink dev eswitch set",
        "No such device",
        "must fail: the instance is not in ns0",
    ),
    of("test-eswitch-modes-sf", "devlink port add", "only supported in eswitch switchdev mode", "must fail"),
    of("test-eswitch-netdev-tx", "ping", "exit status 1", "nobody is to answer; what is sent is counted"),
    of("test-eswitch-sqn-overflow-short", "ping", "exit status 1", "nobody is to answer; what is sent is counted"),
    of("test-eswitch-toggle-mode-ns-wa", "rmmod mlx5_ib", "not currently loaded", "the second time it is unloaded"),
    of("test-eswitch-reload-modules-set-legacy", "echo", "No such device", "the module is being unloaded meanwhile"),
    of("test-eswitch-reload-modules-set-legacy", "devlink dev eswitch", "No such device", "the same"),
    of("test-eswitch-reload-modules-set-legacy", "ERROR", "Failed to set mode legacy", "the same"),
    of("test-tc-insert-rules-duplicates", "tc filter add", "File exists", "must fail: there is one with this key"),
    of("test-tc-insert-rules-frag", "tc filter add", "Match on frag first/later is not supported", "must fail"),
    of("test-tc-insert-rules-hw-stats", "tc filter add", "does not support selected HW stats type", "must fail"),
    of("test-tc-insert-rules-mirror", "tc filter add", "can't duplicate output to same device", "must fail"),
    of("test-tc-insert-rules-pedit-drop", "tc -s filter add", "Drop with modify header", "must fail"),
    of("test-tc-insert-rules-pedit-ttl-ip", "tc filter add", "can't offload re-write of non TCP/UDP", "must fail"),
    of("test-tc-insert-rules-vxlan", "tc filter add", "can't duplicate output to same device", "must fail"),
    of("test-tc-merged-esw-pf-pf", "tc filter add", "there is no port", "must fail: the uplink of another E-Switch"),
];

/// Whether a command may fail in a script that passes.
pub fn may_fail(script: &str, failure: &Failure) -> bool {
    MAY_FAIL.iter().any(|may| {
        (may.script.is_empty() || may.script == script)
            && begins(&failure.command, may.command)
            && failure.words.contains(may.words)
    })
}

/// Scripts about flow rules that pass without a packet on one, with the reason, for readers of this file.
const NEED_NO_RULE: [(&str, &str); 0] = [];

/// Whether a script that sends traffic can show what it is to show without a rule of the card that carries it.
pub fn needs_no_rule(script: &str) -> bool {
    NEED_NO_RULE.iter().any(|(name, _)| *name == script)
}

/// Whether a command begins with these words, in which `*` stands for any characters but spaces.
fn begins(command: &str, words: &str) -> bool {
    let mut given = command.split(' ');
    words.split(' ').all(|word| {
        given.next().is_some_and(|given| match word.split_once('*') {
            Some((before, after)) => {
                given.len() >= before.len() + after.len() && given.starts_with(before) && given.ends_with(after)
            }
            None => word == given,
        })
    })
}

/// Why a script does not pass.
struct Reason {
    /// The script; empty: every script without a reason of its own.
    script: &'static str,
    /// A part of what it printed, or of what a command of it said, that shows this.
    shown_by: &'static str,
    /// The text for the page.
    text: &'static str,
}

const fn reason_of(script: &'static str, shown_by: &'static str, text: &'static str) -> Reason {
    Reason { script, shown_by, text }
}

/// NVIDIA's driver that is not in the kernel.
const SF_ESWITCH: &str = "an SF that is an E-Switch itself (`devlink port function set … eswitch`), which only NVIDIA's \
    out-of-tree driver has";
/// What iproute2 6.1 does.
const SF_NUMBERS: &str = "SF numbers from 65536 on, of which this iproute2 (6.1) prints the lower 16 bits; and an SF that \
    is an E-Switch itself, which only NVIDIA's out-of-tree driver has";

const REASONS: [Reason; 37] = [
    reason_of(
        "test-devlink-reload-gre-ns",
        "Module gre not found",
        "the modules `gre`, `ip_gre` and `ip6_gre` are missing, and without them the fault that it looks for cannot happen",
    ),
    reason_of(
        "test-eswitch-rep-channels-time",
        "ethtool -L enp8s0f0npf0vf0 combined 4",
        "it measures how long `ethtool -L … combined 4` of a representor takes, which is refused: a netdev has as many queues \
         as the card's key `channels` says, which is 1 here",
    ),
    reason_of(
        "test-sf-cpu-affinity-fail",
        "name cpu_affinity",
        "it expects that the parameter `cpu_affinity` of an SF is refused for a processor that is off; it is refused \
         because there is no such parameter, and no processor is off",
    ),
    reason_of(
        "test-eswitch-autoprobe",
        "/sys/bus/pci/drivers/mlx5_core/bind",
        "binds VFs by hand while `sriov_drivers_autoprobe` is 0; the kernel answers ENODEV then (`pci_device_can_probe`), \
         and so does the card",
    ),
    reason_of(
        "test-eswitch-ingress-rate-limit",
        "openvswitch",
        "needs Open vSwitch as a service, and the classifier `matchall`, which this kernel lacks",
    ),
    reason_of(
        "test-eswitch-msix",
        "sriov_vf_msix_count => Device or resource busy",
        "writes `sriov_vf_msix_count` of a VF that has its driver, which the kernel refuses (EBUSY)",
    ),
    reason_of(
        "test-eswitch-multiport-fwd-vf-to-vf-and-upl",
        "TC classifier not found",
        "needs `cls_flower`, which this kernel lacks, and the programs `mlxconfig` and `mlxfwreset`",
    ),
    reason_of(
        "test-eswitch-multiport-tc",
        "TC classifier not found",
        "needs `cls_flower`, which this kernel lacks, and the programs `mlxconfig` and `mlxfwreset`",
    ),
    reason_of(
        "test-eswitch-netdev-in-ns-no-devlink-reload",
        "netdev net namespace has diverged",
        "its first two parts pass; the third enters switchdev mode with the uplink in another network namespace than the \
         devlink instance, which the kernel refuses since 2023",
    ),
    reason_of(
        "test-eswitch-sf-qos",
        "not in link units of 1Mbps",
        "the rates it sets are meant as bytes; this iproute2 (6.1) reads bits, and they are no whole Mbit/s",
    ),
    reason_of(
        "test-eswitch-switchdev-ndos",
        "Failed to create vlan interface",
        "ten of its eleven parts pass; the last makes a VLAN netdev, and this kernel has no `8021q`",
    ),
    reason_of(
        "test-eswitch-toggle-mode-fail",
        "Expected to fail",
        "expects that switchdev mode is refused with VFs bound, as old firmware does",
    ),
    reason_of("test-eswitch-toggle-mode-ovs-crash", "ovs-vswitchd not running", "needs Open vSwitch as a service"),
    reason_of(
        "test-eswitch-sqn-overflow",
        "",
        "sets the uplink down and up over 16,000 times, which takes too long under strace; \
         `test-eswitch-sqn-overflow-short` does the same 150 times",
    ),
    reason_of("test-eswitch-trust-dscp", "mlnx_qos", "needs the program `mlnx_qos`"),
    reason_of(
        "test-vf-rep-queue-amount-depth-bd",
        "can not access VF/REP queue config",
        "needs parameters of the module that only NVIDIA's out-of-tree driver has",
    ),
    reason_of(
        "test-vf-rep-udp-fragmented",
        "Failed to config vlan interface",
        "needs `8021q`, which this kernel lacks",
    ),
    reason_of(
        "test-vf-zero-header-raw",
        "No packet received",
        "needs scapy, and an inline mode that this card has no use for",
    ),
    reason_of("", "Failed to get sf rep for pfnum 0 sfnum", SF_NUMBERS),
    reason_of("", "Failed to set port pci/0000:08:00.0/32768 eswitch", SF_ESWITCH),
    reason_of("", "Remote server is not configured", "needs a second machine"),
    reason_of("", "Missing module bonding", "needs the kernel's bonding, which this kernel lacks"),
    reason_of("", "Missing module mlx5_vdpa", "needs the module `mlx5_vdpa`, which the card does not have"),
    reason_of("", "Test requires at least 8 cpus", "needs at least eight processors"),
    reason_of("", "supported only over OFED", "for NVIDIA's out-of-tree driver only, and says so"),
    reason_of("", "Skipping MLNX OFED", "for NVIDIA's out-of-tree driver only, and says so"),
    reason_of("", "Test relevant for ", "for other cards or older kernels only, and says so"),
    reason_of(
        "test-tc-bad-tunnel2",
        "RTNETLINK answers: File exists",
        "adds filters whose key is that of another, which the kernel's `cls_flower` refuses, and so does the card",
    ),
    reason_of("", "smfs dump failed", "reads the driver's dump of its steering tables, which this card does not have"),
    reason_of("", "Missing module act_ct", "needs `act_ct`, which this kernel lacks"),
    reason_of("", "Missing module act_police", "needs `act_police`, which this kernel lacks"),
    reason_of("", "Missing module act_sample", "needs `act_sample`, which this kernel lacks"),
    reason_of("", "Missing module cls_matchall", "needs `cls_matchall`, which this kernel lacks"),
    reason_of("", "Failed to create geneve interface", "needs `geneve`, which this kernel lacks"),
    reason_of("", "Failed to create gretap interface", "needs `gre`, which this kernel lacks"),
    reason_of("", "openvswitch/db.sock", "needs Open vSwitch as a service, with the kernel's datapath"),
    reason_of("", "TC classifier not found", "needs `cls_flower`, which this kernel lacks"),
];

/// Why a script does not pass, in words, if somebody has judged what the run shows.
pub fn reason(script: &str, output: &str, failures: &[Failure]) -> Option<String> {
    let shows = |what: &str| {
        output.contains(what)
            || failures.iter().any(|Failure { command, words, .. }| format!("{command} => {words}").contains(what))
    };
    let of = |script: &str| REASONS.iter().find(|reason| reason.script == script && shows(reason.shown_by));
    let judged = of(script).or_else(|| of("")).map(|reason| reason.text.to_owned());
    let missing = || output.split_once("Missing required command ")?.1.split_whitespace().next();
    judged.or_else(|| {
        missing().map(|program| format!("needs the program `{}`", program.split('\u{1b}').next().unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_match_up_to_the_end_of_those_given() {
        assert!(begins("ip link set x vf 1 vlan 200", "ip link set * vf 1"));
        assert!(!begins("ip link set x vf 2", "ip link set * vf 1"));
        assert!(!begins("ip link", "ip link set"));
        assert!(begins("echo 0000:08:00.3 > /sys/x", "echo 0000:08:00.* >"));
        assert!(!begins("ethtool -K", "ethtool -"));
    }

    #[test]
    fn every_judgement_is_about_something() {
        for may in &MAY_FAIL {
            assert!(!may.command.is_empty() && !may.why.is_empty(), "{}", may.command);
            assert!(may.script.is_empty() || may.script.starts_with("test-"), "{}", may.script);
        }
        for reason in &REASONS {
            let is_about_one = reason.script.starts_with("test-");
            assert!(is_about_one || !reason.shown_by.is_empty(), "{}", reason.text);
            assert!(is_about_one || reason.script.is_empty(), "{}", reason.script);
        }
    }

    #[test]
    fn a_reason_needs_what_shows_it() {
        let failure = Failure {
            at: String::new(),
            command: "mlnx_qos -i x --trust dscp".to_owned(),
            words: "command not found".to_owned(),
        };
        let reason = |output: &str, failures: &[Failure]| reason("test-eswitch-trust-dscp", output, failures);
        assert!(reason("", &[failure]).unwrap().contains("`mlnx_qos`"));
        assert_eq!(reason("ERROR: something else", &[]), None);
        let missing = "\u{1b}[0;31mERROR: Missing required command mlxdump\u{1b}[0;0m\n";
        assert_eq!(reason(missing, &[]).unwrap(), "needs the program `mlxdump`");
        assert_eq!(
            reason("Missing module bonding", &[]).unwrap(),
            "needs the kernel's bonding, which this kernel lacks"
        );
    }
}
