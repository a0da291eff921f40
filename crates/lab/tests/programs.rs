//! Unmodified programs of other projects see the card.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Place, has, skip, text};
use serde_json::Value;

#[test]
fn devlink_shows_devices_and_ports() {
    let Some(place) = Place::new() else { return };
    if !has("devlink") {
        return skip("devlink");
    }
    assert_eq!(place.text(&["devlink", "dev", "show"]), "pci/0000:08:00.0\npci/0000:08:00.2\npci/0000:08:00.3\n");
    let ports: Value = serde_json::from_str(&place.text(&["devlink", "-j", "port", "show"])).unwrap();
    assert_eq!(ports["port"]["pci/0000:08:00.0/1"]["netdev"], "labp0_0");
    assert_eq!(ports["port"]["pci/0000:08:00.0/65535"]["flavour"], "physical");
    assert_eq!(place.text(&["devlink", "dev", "show", "pci/0000:08:00.2"]), "pci/0000:08:00.2\n");
    let output = place.run(&["devlink", "dev", "show", "pci/0000:99:00.0"]);
    assert!(!output.status.success());
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("there is no such device"), "{printed}");
}

#[test]
fn devlink_monitor_receives_notifications() {
    let Some(place) = Place::new() else { return };
    if !has("devlink") {
        return skip("devlink");
    }
    // `devlink monitor` does not report that it is ready, so the event is repeated until it has been received.
    let printed = place.shell(
        "devlink monitor > heard.$$ & m=$!; n=0
        until [ -s heard.$$ ] || [ $n = 100 ]; do
            ip link set labp0 vf 0 mac 02:00:00:00:00:0a; n=$((n + 1)); sleep 0.1
        done; kill $m; cat heard.$$; rm heard.$$",
    );
    assert!(printed.contains("[dev,new] pci/0000:08:00.0"), "{printed}");
}

#[test]
fn ip_shows_the_attributes_of_a_physical_netdev() {
    let Some(place) = Place::new() else { return };
    let links: Value = serde_json::from_str(&place.text(&["ip", "-d", "-j", "link", "show"])).unwrap();
    let link = |name: &str| links.as_array().unwrap().iter().find(|link| link["ifname"] == name).unwrap().clone();
    let (pf, representor) = (link("labp0"), link("labp0_0"));
    assert_eq!(pf["phys_port_name"], "p0");
    assert_eq!(pf["phys_switch_id"], "c2f0a1e2030405a6");
    assert_eq!((&pf["parentbus"], &pf["parentdev"]), (&"pci".into(), &"0000:08:00.0".into()));
    assert_eq!(representor["phys_port_name"], "pf0vf0");
    for link in [&pf, &representor] {
        assert!(link["linkinfo"].is_null() && link["link"].is_null() && link["link_index"].is_null(), "{link}");
        assert!(link["link_netnsid"].is_null(), "{link}");
    }
    let vf = &pf["vfinfo_list"][1];
    assert_eq!((&vf["address"], &vf["vlan_list"][0]["vlan"]), (&"02:00:00:00:00:02".into(), &7.into()));
    assert_eq!((&vf["rate"]["max_tx"], &vf["link_state"]), (&100.into(), &"enable".into()));
    assert!(representor["vfinfo_list"].is_null());
    // Output about other netdevs is the same as outside.
    let outside = Command::new("ip").args(["-n", &place.name, "-d", "link", "show", "lo"]).output().unwrap();
    assert_eq!(place.text(&["ip", "-d", "link", "show", "lo"]), text(&outside));
    assert_eq!(place.text(&["ip", "link", "show", "type", "veth"]), "");
}

#[test]
fn ip_sets_vfs_at_the_card_and_the_rest_at_the_kernel() {
    let Some(place) = Place::new() else { return };
    place.shell("ip link set labp0 vf 0 mac 02:00:00:00:00:77 && ip link set labp0 vf 1 vlan 5 qos 2");
    place.shell("ip link set labp0 mtu 1400 vf 1 spoofchk on trust off state disable");
    // In the words of a log, which name a PF's netdev as the card's configuration does.
    assert_eq!(
        place.commands(),
        [
            "ip link set enp8s0f0np0 vf 0 mac 02:00:00:00:00:77",
            "ip link set enp8s0f0np0 vf 1 vlan 5 qos 2",
            "ip link set enp8s0f0np0 vf 1 spoofchk on",
            // In the kernel's order.
            "ip link set enp8s0f0np0 vf 1 state disable",
            "ip link set enp8s0f0np0 vf 1 trust off",
        ]
    );
    let links: Value = serde_json::from_str(&place.text(&["ip", "-j", "link", "show", "labp0"])).unwrap();
    assert_eq!(links[0]["mtu"], 1400);
    let output = place.run(&["ip", "link", "set", "labp0", "vf", "9", "mac", "02:00:00:00:00:77"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && printed.contains("There is no such VF"), "{printed}");
    // The next query in the same lab shows it.
    let shown = place.shell("ip link set labp0 vf 0 mac 02:00:00:00:00:78; ip link show labp0");
    assert!(shown.contains("02:00:00:00:00:78"), "{shown}");
}

#[test]
fn a_program_without_net_admin_is_refused_as_outside() {
    let Some(place) = Place::new() else { return };
    if !has("setpriv") {
        return skip("setpriv");
    }
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all";
    place.shell(&format!("{nobody} ip link show labp0 && {nobody} devlink dev show"));
    for command in ["ip link set labp0 vf 0 mac 02:00:00:00:00:77", "ip link set labp0 mtu 1300"] {
        let output = place.run(&["sh", "-c", &format!("{nobody} {command}")]);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && printed.contains("not permitted"), "{command}: {printed}");
    }
    assert!(place.commands().is_empty());
}

#[test]
fn ip_moves_netdevs_to_a_named_namespace() {
    let (Some(place), Some(other)) = (Place::new(), Place::new()) else { return };
    let peer = format!("ip link add laba type veth peer name labb netns {}", other.name);
    place.shell(&format!("{peer} && ip link set laba netns {}", other.name));
    let there = Command::new("ip").args(["-n", &other.name, "-br", "link"]).output().unwrap();
    let there = text(&there);
    assert!(there.contains("laba@labb") && there.contains("labb@laba"), "{there}");
    // A namespace that is made in a lab appears outside, and a program in it sees its netdevs.
    let name = format!("{}-new", place.name);
    place.shell(&format!("ip netns add {name} && ip netns exec {name} ip link show lo"));
    assert!(Command::new("ip").args(["netns", "del", &name]).status().unwrap().success());
}

#[test]
fn rdma_shows_devices_and_links() {
    let Some(place) = Place::new() else { return };
    if !has("rdma") {
        return skip("rdma");
    }
    let devices: Value = serde_json::from_str(&place.text(&["rdma", "-j", "dev", "show"])).unwrap();
    assert_eq!((&devices[0]["ifname"], &devices[0]["fw"]), (&"rocep8s0f0".into(), &"22.39.1002".into()));
    let links: Value = serde_json::from_str(&place.text(&["rdma", "-j", "link", "show"])).unwrap();
    assert_eq!((&links[0]["netdev"], &links[0]["state"]), (&"labp0".into(), &"ACTIVE".into()));
    assert!(place.text(&["rdma", "system", "show"]).contains("netns shared"));
    // Where no other network namespace has a name: those of other tests do, and then the devices stay shared.
    let script =
        "while umount -l /run/netns 2> /dev/null; do :; done; rdma system set netns exclusive; rdma system show";
    assert!(place.text(&["unshare", "--mount", "sh", "-c", script]).contains("netns exclusive"));
}

#[test]
fn a_dump_of_two_cards_is_one_answer() {
    let Some(place) = Place::new() else { return };
    let second = std::env::temp_dir().join(format!("{}.json", place.name));
    let text_of_first = std::fs::read_to_string(common::card()).unwrap();
    std::fs::write(&second, text_of_first.replace("0000:08:", "0000:09:").replace("p8s0", "p9s0")).unwrap();
    let both = |program: &[&str]| {
        let mut command = Command::new(common::lab_program());
        command
            .args(["--netns", &place.name, "--inside", &place.inside])
            .args([&common::card(), &second])
            .arg("--")
            .args(program);
        text(&command.output().unwrap())
    };
    let devices = ["08", "09"].map(|bus| [0, 2, 3].map(|n| format!("pci/0000:{bus}:00.{n}\n")).concat()).concat();
    assert_eq!(both(&["devlink", "dev", "show"]), devices);
    assert_eq!(both(&["devlink", "dev", "show", "pci/0000:09:00.3"]), "pci/0000:09:00.3\n");
    let ports: Value = serde_json::from_str(&both(&["devlink", "-j", "port", "show"])).unwrap();
    assert_eq!(ports["port"].as_object().unwrap().len(), 4);
    let rdma: Value = serde_json::from_str(&both(&["rdma", "-j", "dev", "show"])).unwrap();
    assert_eq!(rdma[1]["ifname"], "rocep9s0f0");
    assert!(both(&["rdma", "dev", "show", "rocep9s0f0"]).contains("rocep9s0f0"));
    std::fs::remove_file(second).unwrap();
}

#[test]
fn ethtool_names_the_driver() {
    let Some(place) = Place::new() else { return };
    if !has("ethtool") {
        return eprintln!("skipped: missing ethtool");
    }
    let printed = place.text(&["ethtool", "-i", "labp0"]);
    for line in ["driver: mlx5_core", "firmware-version: 22.39.1002 (MT_0000000359)", "bus-info: 0000:08:00.0"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    assert!(place.text(&["ethtool", "-i", "labp0_0"]).contains("driver: mlx5e_rep"));
    assert!(place.text(&["ethtool", "labp0"]).contains("Link detected: yes"));
}

#[test]
fn a_static_program_without_a_library_sees_the_card() {
    let Some(place) = Place::new() else { return };
    let folder = std::env::temp_dir().join(format!("{}-static", place.name));
    std::fs::create_dir_all(&folder).unwrap();
    let (source, program) = (folder.join("ask.c"), folder.join("ask"));
    std::fs::write(&source, ASK).unwrap();
    let made = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).output();
    if made.is_ok_and(|output| output.status.success()) {
        assert_eq!(place.text(&[program.to_str().unwrap()]), "devlink is there\n");
    } else {
        eprintln!("skipped: missing a C compiler that links statically");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Asks nlctrl for devlink.
const ASK: &str = r#"
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/netlink.h>
int main(void) {
    struct { struct nlmsghdr h; unsigned char g[4]; struct nlattr a; char name[8]; } ask = {
        { sizeof ask, 16, NLM_F_REQUEST, 1, 0 }, { 3, 1 }, { 12, 2 }, "devlink" };
    struct sockaddr_nl to = { .nl_family = AF_NETLINK }, from;
    socklen_t len = sizeof from;
    char got[4096];
    int s = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    sendto(s, &ask, sizeof ask, 0, (struct sockaddr *)&to, sizeof to);
    if (recvfrom(s, got, sizeof got, 0, (struct sockaddr *)&from, &len) < 36) return 1;
    if (len != sizeof from || from.nl_pid != 0) return 2;
    if (((struct nlmsghdr *)got)->nlmsg_type != 16) return 3;
    puts("devlink is there");
    return 0;
}
"#;

/// A directory that every user can use, with the lab's program and the card.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        // Copied by another process: a program that another thread starts while this one writes could inherit the open
        // file, and then the copy could not be executed (ETXTBSY).
        let copy =
            |from: &Path, to: &str| Command::new("cp").arg(from).arg(folder.join(to)).status().unwrap().success();
        assert!(copy(&common::lab_program(), "lab") && copy(&common::card(), "card.json"));
        Self(folder)
    }

    /// Runs a shell as a user other than root. `$lab` is the lab's program, `$card` the description of the card.
    fn shell(&self, script: &str) -> std::process::Output {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "sh", "-c", script])
            .env("lab", self.0.join("lab"))
            .env("card", self.0.join("card.json"))
            .output()
            .unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether this process can become a user other than root, who can make namespaces.
fn can_become_user(folder: &Folder) -> bool {
    if !has("setpriv") || !has("unshare") || !has("devlink") {
        skip("setpriv, unshare, devlink");
        return false;
    }
    let can = folder.shell("unshare -Urnm true").status.success();
    if !can {
        skip("root to become another user, or user namespaces for that user");
    }
    can
}

#[test]
fn a_user_without_root_can_make_a_lab() {
    let folder = Folder::new("lab-user");
    if !can_become_user(&folder) {
        return;
    }
    let output = folder.shell("$lab $card -- sh -c 'devlink dev show; rdma dev show; ip link show lo >/dev/null'");
    assert!(text(&output).contains("pci/0000:08:00.0"), "{output:?}");
}

#[test]
fn a_lab_without_root_joins_the_namespaces_of_the_card() {
    let folder = Folder::new("lab-join");
    if !can_become_user(&folder) {
        return;
    }
    // A process keeps the namespaces, and its child the card's own; it reports when they are ready, and ends when
    // requested.
    let output = folder.shell(
        "mkfifo $lab.ready; mkfifo $lab.done; mkfifo $lab.inside
        unshare -Urnm sh -c 'unshare -n sh -c \"echo \\$\\$ > $lab.inside; read end < $lab.done\" &
            read child < $lab.inside
            nsenter -t $child -n ip link add p1001 index 1001 type veth peer name labp0 netns $$ &&
            echo $child > $lab.ready; wait' &
        read child < $lab.ready
        $lab --join $! --inside /proc/$child/ns/net $card -- sh -c 'ip -d link show labp0 && ip link set labp0 mtu 1400 && ip link show labp0'
        status=$?; echo > $lab.done; wait; exit $status",
    );
    let printed = text(&output);
    assert!(printed.contains("portname p0") && printed.contains("mtu 1400"), "{printed}");
}
