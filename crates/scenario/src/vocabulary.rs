//! Every step word and expectation with what it does: for `help`, completion, and the reference.

/// One form, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How it is written; capitals stand for what is filled in.
    pub form: &'static str,
    /// What it does.
    pub does: &'static str,
}

const fn entry(form: &'static str, does: &'static str) -> Entry {
    Entry { form, does }
}

/// Every form of a step.
pub const STEPS: &[Entry] = &[
    entry("devlink dev show", "list the devices"),
    entry("devlink dev eswitch show DEV", "show an E-Switch's mode"),
    entry("devlink dev eswitch set DEV mode legacy|switchdev", "change the mode"),
    entry("devlink dev eswitch set DEV inline-mode none|link|network|transport", "set the inline mode"),
    entry("devlink dev eswitch set DEV encap-mode none|basic", "set the encapsulation mode"),
    entry("devlink dev reload DEV", "unbind the device and bind it again"),
    entry("devlink port show [PORT]", "show ports"),
    entry("devlink port add DEV flavour pcisf pfnum P sfnum S [controller 0]", "add an SF"),
    entry("devlink port del PORT", "delete an SF"),
    entry("devlink port function set PORT hw_addr MAC", "give a function a MAC address"),
    entry("devlink port function set PORT state active|inactive", "activate or deactivate an SF"),
    entry("devlink port function set PORT roce enable|disable", "give a function RDMA, or not"),
    entry("echo N > /sys/bus/pci/devices/ADDRESS/sriov_numvfs", "set the number of VFs"),
    entry("echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/bind", "bind a device to its driver"),
    entry("echo ADDRESS > /sys/bus/pci/drivers/mlx5_core/unbind", "unbind a device from its driver"),
    entry("echo ADDRESS > /sys/bus/pci/devices/ADDRESS/driver/unbind", "unbind a function from its driver"),
    entry("echo mlx5_core.sf.N > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind|unbind", "bind or unbind an active SF"),
    entry("echo ADDRESS > /sys/bus/pci/drivers_probe", "bind a function if a driver of the card's may have it"),
    entry("echo DRIVER > /sys/bus/pci/devices/ADDRESS/driver_override", "say which driver a function is for"),
    entry("echo 0|1 > /sys/bus/pci/devices/ADDRESS/sriov_drivers_autoprobe", "whether VFs are bound when enabled"),
    entry("echo 1 > /sys/bus/pci/devices/ADDRESS/remove", "take a function off the bus"),
    entry("echo 1 > /sys/bus/pci/devices/ADDRESS/reset", "take a function down and bring it up again"),
    entry("echo 1 > /sys/bus/pci/rescan", "find what was taken off the bus"),
    entry("modprobe MODULE", "load a module, and first those it depends on"),
    entry("insmod MODULE", "load a module, if those it depends on are loaded"),
    entry("modprobe -r MODULE", "unload a module"),
    entry("rmmod MODULE", "unload a module"),
    entry("host ADDRESS sriov_numvfs N", "a DPU's host sets its number of VFs"),
    entry(
        "bond NAME mode MODE DEV... [with NETDEV] [active DEV] [flap N]",
        "put the card's ports into a bond; `flap` has it change that many times before it stands",
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
    entry("!COMMAND", "run any program among the card's netdevs; ip, bridge, tc, ping, sysctl and sh need no `!`"),
    entry(
        "fail KIND [pf N] [uplink|hpf|vf N|sf N] [after N] [times N|always]",
        "have the card refuse to make something",
    ),
    entry("fail alloc DEV times N", "have allocations for a device's work queue fail"),
    entry("fail clear", "forget what should fail or be slow"),
    entry("delay KIND [pf N] [uplink|hpf|vf N|sf N] [after N] [times N|always] for TIME", "have the card be slow"),
    entry("sync NAME", "go on together with the other threads that name it"),
    entry("sleep TIME", "wait so long"),
    entry("wait settled", "wait until the queues are at rest"),
    entry("wait retries", "wait until nothing is left to be tried again"),
    entry("wait until EXPECTATION", "wait until it holds"),
    entry("expect EXPECTATION", "fail unless it holds now"),
    entry("repeat N: STEP", "do a step so often"),
];

/// Every form of an expectation.
pub const EXPECTATIONS: &[Entry] = &[
    entry("mode DEV legacy|switchdev", "the E-Switch is in that mode"),
    entry("rep PORT eth|ib loaded|registered|unregistered|failed", "a representor's state"),
    entry("reps DEV eth|ib loaded|registered|unregistered|failed N", "how many representors are in a state"),
    entry("vfs DEV N", "how many VFs are enabled"),
    entry("lag none|roce|vf|shared-fdb|mpesw", "how the card's PFs act as one"),
    entry("lag reason TEXT", "why there is no LAG though there is a bond; the reason contains this"),
    entry("module MODULE loaded|absent", "whether a module is loaded"),
    entry("aux NAME bound|unbound|absent", "an auxiliary device and its driver"),
    entry("sf PORT [active|inactive] [attached|detached]", "an SF's state and operational state"),
    entry("port PORT present|absent", "whether there is such a port"),
    entry("netdev NAME present|absent", "whether there is such a netdev"),
    entry("bound DEV", "the device is bound to its driver"),
    entry("unbound DEV", "it is not"),
    entry("event TEXT", "an event that contains this has happened"),
    entry("no event TEXT", "none has"),
];

/// What may come after these words, going by the forms above. A word in capitals is given as it is, for
/// the caller to fill in.
pub fn completions(words: &[&str]) -> Vec<&'static str> {
    let mut next = Vec::new();
    let forms: Vec<(&[&str], Entry)> = match words {
        ["expect", rest @ ..] | ["wait", "until", rest @ ..] => EXPECTATIONS.iter().map(|e| (rest, *e)).collect(),
        _ => STEPS.iter().map(|e| (words, *e)).collect(),
    };
    for (words, entry) in forms {
        let mut form = entry.form.split_whitespace();
        let fits = |form: &str, word: &str| {
            let form = form.trim_matches(['[', ']']);
            form.split('|').any(|alternative| alternative == word || is_slot(alternative))
        };
        if words.iter().all(|word| form.next().is_some_and(|form| fits(form, word)))
            && let Some(form) = form.next()
        {
            for word in form.trim_matches(['[', ']']).split('|') {
                if !next.contains(&word) {
                    next.push(word);
                }
            }
        }
    }
    next
}

/// Whether a word of a form is to be filled in.
fn is_slot(word: &str) -> bool {
    word.chars().any(|c| c.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_come_next_follows_from_the_forms() {
        assert_eq!(completions(&["devlink", "dev"]), ["show", "eswitch", "reload", "param"]);
        let device = ["devlink", "dev", "eswitch", "set", "pci/0000:08:00.0"];
        assert_eq!(completions(&device), ["mode", "inline-mode", "encap-mode"]);
        assert_eq!(completions(&["expect", "mode", "pci/0000:08:00.0"]), ["legacy", "switchdev"]);
    }
}
