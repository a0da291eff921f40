//! Samples that flow rules take, in a lab: programs read them by the kernel's protocol, as they do on the hardware.

mod lab;

use std::fs;
use std::process::Command;

use lab::{Folder, apart, compare, session};

const R0: &str = "enp8s0f0npf0vf0";
const R1: &str = "enp8s0f0npf0vf1";

const READER: &str = include_str!("fixtures/psample.py");

fn skipped() -> bool {
    lab::skipped(&["bash", "devlink", "tc", "ping", "python3", "setpriv"])
}

fn cannot_offload() -> bool {
    let why = card_linux::cannot_offload();
    why.iter().for_each(|why| println!("skipped: {why}"));
    why.is_some()
}

/// A folder with the reader, and a card of two VFs.
fn folder(name: &str) -> Folder {
    let folder = Folder::make(name);
    fs::write(folder.0.join("psample.py"), READER).unwrap();
    let config = "[cards.card0]\nkind = \"linux\"\n[cards.card0.card]\nvfs = 2\n";
    fs::write(folder.0.join("config"), config).unwrap();
    folder
}

fn run_session(folder: &Folder, card: &str, script: &[(String, &str)]) {
    let commands: Vec<&str> = script.iter().map(|(command, _)| &command[..]).collect();
    let printed = session(folder, "bash", card, &commands);
    for ((command, expected), printed) in script.iter().zip(&printed) {
        let expected: Vec<String> = expected.lines().map(str::to_owned).collect();
        compare(command, &expected, printed);
    }
}

/// Whether the kernel has the family, too.
fn is_in_kernel(folder: &Folder) -> bool {
    let asked = Command::new("python3").arg(folder.0.join("psample.py")).arg("family").output().unwrap();
    asked.status.success()
}

/// What is published of a group in the kernel while that refuses a filter with `skip_sw`, which only the card carries out.
fn of_kernel(in_kernel: bool, group: u32) -> String {
    let event = |what: &str| format!("{what} group {group} refcount 0 seq 0 multi\n");
    if in_kernel { event("new") + &event("del") } else { String::new() }
}

/// A filter on a representor that samples what is sent to the other VF.
fn sampling(from: &str, to: &str, sample: &str) -> String {
    format!(
        "tc filter add dev {from} ingress protocol ip prio 1 flower skip_sw action sample {sample} \
         action mirred egress redirect dev {to}"
    )
}

/// Two VFs in network namespaces, whose ARP is forwarded in the card and not sampled. `reader`: starts to read so many samples,
/// and returns when both groups have been joined. `read`: what it has read.
fn stations() -> String {
    format!(
        "devlink dev eswitch set pci/0000:08:00.0 mode switchdev
        for n in 0 1; do
            r=enp8s0f0npf0vf$n; v=enp8s0f0v$n; ip link set $r up; tc qdisc add dev $r ingress
            ip netns add v$n; ip link set $v netns v$n; ip -n v$n addr add 10.0.0.$((n + 1))/24 dev $v; ip -n v$n link set $v up
        done
        tc filter add dev {R0} ingress protocol arp prio 2 flower skip_sw action mirred egress redirect dev {R1}
        tc filter add dev {R1} ingress protocol arp prio 2 flower skip_sw action mirred egress redirect dev {R0}
        psample() {{ python3 $FOLDER/psample.py \"$@\"; }}
        reader() {{
            rm -f $FOLDER/ready; timeout 300 python3 $FOLDER/psample.py samples $1 $FOLDER/ready > $FOLDER/read & pid=$!
            while [ ! -e $FOLDER/ready ]; do sleep 0.02; done
        }}
        read_all() {{ wait $pid; cat $FOLDER/read; }}
        ping_one() {{ ip netns exec v0 ping -q -c ${{1:-1}} -i 0.1 -W 1 -s 100 10.0.0.2 | grep -o '[0-9]* received'; }}"
    )
}

#[test]
fn the_family_is_the_kernels_and_wrong_requests_are_refused_as_there() {
    if skipped() {
        return;
    }
    let folder = folder("psample-family");
    let psample = |what: &str| format!("python3 $FOLDER/psample.py {what}");
    let script = [
        (
            psample("family"),
            "version 1 header 0 attributes … operations [(1, 4)] groups config packets\n\
             in the dump: the same\nby number: the same",
        ),
        (psample("groups"), "end 0"),
        (
            psample("wrong"),
            "not a dump: 0 ENOTSUP\na sample: 0 ENOTSUP\na dump of samples: 0 ENOTSUP\nno such command: 0 E…\n\
             cut short: 0 EINVAL\nempty: 0 EINVAL\na broken attribute: 0 0\na long attribute: 0 0\nits policy: ENODATA",
        ),
        (psample("join"), "config joined\npackets joined"),
        // Only who has CAP_NET_ADMIN sees frames of others; everybody sees the groups.
        (
            format!(
                "setpriv --bounding-set=-net_admin --inh-caps=-net_admin bash -c '{}; {}'",
                psample("join"),
                psample("groups")
            ),
            "config joined\npackets EPERM\nend 0",
        ),
        // devlink is still there, with a number of its own.
        ("devlink dev show pci/0000:08:00.0".to_owned(), "pci/0000:08:00.0"),
    ];
    run_session(&folder, "--card memory", &script);
}

#[test]
fn programs_read_what_filters_sample() {
    if skipped() || cannot_offload() {
        return;
    }
    let folder = folder("psample-samples");
    let in_kernel = is_in_kernel(&folder);
    let (kernels_7, kernels_9) = (of_kernel(in_kernel, 7), of_kernel(in_kernel, 9));
    let first = format!(
        "{kernels_7}new group 7 refcount 0 seq 0 multi\n\
         {kernels_9}new group 9 refcount 0 seq 0 multi\n\
         sample iif enp8s0f0npf0vf0 rate 1 size 142 group 7 seq 0 now proto 800 data 64 0800\n\
         sample iif enp8s0f0npf0vf1 rate 1 size 142 group 9 seq 0 now proto 800 data 142 0800\n\
         sample iif enp8s0f0npf0vf0 rate 1 size 142 group 7 seq 1 now proto 800 data 64 0800\n\
         sample iif enp8s0f0npf0vf1 rate 1 size 142 group 9 seq 1 now proto 800 data 142 0800"
    );
    let second = format!(
        "del group 7 refcount 0 seq 2 multi\n\
         {kernels_9}sample iif other rate 1 size 142 group 9 seq 2 now proto 800 data 142 0800"
    );
    let script = [
        (stations(), ""),
        // The neighbours know each other before anything is sampled.
        ("ping_one > /dev/null; reader 4".to_owned(), ""),
        (sampling(R0, R1, "rate 1 group 7 trunc 64"), ""),
        (sampling(R1, R0, "rate 1 group 9"), ""),
        ("psample groups".to_owned(), "new group 7 refcount 1 seq 0 multi\nnew group 9 refcount 1 seq 0 multi\nend 0"),
        ("ping_one 2".to_owned(), "2 received"),
        ("read_all".to_owned(), &first),
        // While nobody reads, nothing is sampled. A filter that goes takes its group with it, unless another one uses it; a
        // netdev is called what it is called now.
        ("ping_one".to_owned(), "1 received"),
        (
            format!(
                "reader 1; ip link set {R1} down; ip link set {R1} name other; ip link set other up; \
                 tc filter del dev {R0} ingress prio 1; \
                 tc filter add dev {R0} ingress protocol ip prio 1 flower skip_sw action sample rate 1000000000 group 9 \
                 action mirred egress redirect dev other; psample groups; ping_one"
            ),
            "new group 9 refcount 2 seq 2 multi\nend 0\n1 received",
        ),
        ("read_all".to_owned(), &second),
        // Another namespace has other groups, and samples of its own.
        (
            "ip netns exec v0 python3 $FOLDER/psample.py groups; \
             timeout 60 ip netns exec v0 python3 $FOLDER/psample.py samples 1 $FOLDER/elsewhere & P=$!; until_idle $P; ping_one; until_idle $P; kill $P; wait $P; echo $?"
                .to_owned(),
            "end 0\n1 received\n143",
        ),
        // The groups go with the E-Switch.
        (
            "ip netns del v0; ip netns del v1; devlink dev eswitch set pci/0000:08:00.0 mode legacy; psample groups"
                .to_owned(),
            "end 0",
        ),
    ];
    run_session(&folder, "--config $FOLDER/config", &script);
}

#[test]
fn samples_go_on_when_the_daemon_was_killed_and_another_one_has_started() {
    if skipped() || cannot_offload() {
        return;
    }
    let folder = folder("psample-killed");
    let stations = stations();
    let (there, back) = (sampling(R0, R1, "rate 1 group 7 trunc 20"), sampling(R1, R0, "rate 1 group 9"));
    let inside = format!(
        "set -e; {stations}
        ping_one > /dev/null || true; {there}; {back}
        reader 6; ping_one; while [ $(wc -l < $FOLDER/read) != 2 ]; do sleep 0.02; done; touch $FOLDER/kill
        while [ ! -e $FOLDER/killed ]; do sleep 0.02; done
        ping_one; touch $FOLDER/again; while [ ! -e $FOLDER/started ]; do sleep 0.02; done
        while [ $(wc -l < $FOLDER/read) -lt 6 ]; do ping_one > /dev/null; done
        read_all; psample groups; ip netns del v0; ip netns del v1"
    );
    fs::write(folder.0.join("inside"), inside).unwrap();
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/state; mount --bind /run/state /var/lib; ip link set lo up
        up() { $ESW up --daemon --detach --config $FOLDER/config | sed 's/.*process \\([0-9]*\\).*/\\1/'; }
        daemon=$(up); timeout 400 $ESW exec -- bash $FOLDER/inside & lab=$!
        until_there() { while [ ! -e $FOLDER/$1 ]; do kill -0 $lab; sleep 0.02; done; }
        until_there kill; kill -9 $daemon; while kill -0 $daemon 2> /dev/null; do sleep 0.02; done; touch $FOLDER/killed
        until_there again; up > /dev/null; touch $FOLDER/started; wait $lab; $ESW down >&2";
    let output = apart(script, &folder.0);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let printed: Vec<String> = stdout.lines().map(str::to_owned).collect();
    let sample = |group: u32, seq: u32| match group {
        7 => format!("sample iif {R0} rate 1 size 142 group 7 seq {seq} now proto 800 data 20 0800"),
        _ => format!("sample iif {R1} rate 1 size 142 group 9 seq {seq} now proto 800 data 142 0800"),
    };
    // Frames go on without a daemon. The next one numbers samples from 0 again.
    let expected = ["1 received".to_owned(), "1 received".to_owned()];
    assert_eq!(printed[..2], expected, "{stdout}\n{stderr}");
    let mut samples = printed[2..8].to_vec();
    // Which of the two directions is joined first is not known.
    samples[2..].sort();
    assert_eq!(samples[..2], [sample(7, 0), sample(9, 0)], "{stdout}");
    let (first, second): (Vec<&String>, Vec<&String>) = samples[2..].iter().partition(|line| line.contains("group 7"));
    assert!(!first.is_empty() && !second.is_empty(), "{stdout}");
    for (group, lines) in [(7, first), (9, second)] {
        let wanted: Vec<String> = (0..lines.len() as u32).map(|seq| sample(group, seq)).collect();
        assert_eq!(lines, wanted.iter().collect::<Vec<_>>(), "{stdout}");
    }
    let groups = [
        "new group 7 refcount 1 seq … multi".to_owned(),
        "new group 9 refcount 1 seq … multi".to_owned(),
        "end 0".to_owned(),
    ];
    compare("psample groups", &groups, &printed[8..]);
}
