//! Input that cannot be used: the place and the message of its error.

/// The text of a scenario with one thread; its steps begin in line 5.
fn with_steps(steps: &str) -> String {
    format!("name = \"n\"\nwhy = \"w\"\n[[thread]]\nname = \"a\"\n{steps}\n")
}

fn error(source: &str) -> (usize, usize, String) {
    let error = scenario::parse(source).expect_err(source);
    (error.place.line, error.place.column, error.message)
}

#[test]
fn a_step_is_refused_at_the_word_that_is_wrong() {
    for (step, column, expected) in [
        ("devlink dev eswitch set pci/0000:08:00.0 mode swichdev", 47, "did you mean `switchdev`?"),
        ("devlink dev eswitch set pci/0000:08:00.0", 41, "`mode`, `inline-mode` or `encap-mode`, found the end"),
        ("devlink dev eswitch set 0000:08:00.0 mode legacy", 25, "expected a device such as pci/0000:08:00.0"),
        ("devlink prt show", 9, "did you mean `port`?"),
        ("devlink port del pci/0000:08:00.0", 18, "expected a port such as pci/0000:08:00.0/1"),
        ("devlink port add pci/0000:08:00.0 flavour pcivf pfnum 0 sfnum 1", 43, "expected `pcisf`, found `pcivf`"),
        ("devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0", 56, "expected `sfnum`, found the end"),
        ("devlink port function set pci/0000:08:00.0/1 hw_addr 01:00:00:00:00:00", 54, "unicast MAC address"),
        ("devlink port show pci/0000:08:00.0/1 now", 38, "expected nothing more, found `now`"),
        ("modpobe mlx5_ib", 1, "did you mean `modprobe`?"),
        ("modprobe", 9, "expected the name of a module, found the end"),
        ("frobnicate", 1, "any other program is written `!PROGRAM …`"),
        ("echo four > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs", 6, "expected a number of VFs, found `four`"),
        ("echo 4 > /sys/bus/pci/devices/08:00.0/sriov_numvfs", 31, "is not a PCI address"),
        ("echo 4 > /proc/sriov_numvfs", 10, "expected `/sys/bus/pci/devices/ADDRESS/sriov_numvfs`"),
        ("echo 2 > /sys/bus/pci/devices/0000:08:00.1/remove", 6, "expected `1`, found `2`"),
        ("echo yes > /sys/bus/pci/devices/0000:08:00.0/sriov_drivers_autoprobe", 6, "expected `0` or `1`"),
        ("echo vf0 > /sys/bus/pci/drivers_probe", 6, "expected a PCI address such as 0000:08:00.0"),
        ("echo 1 > /sys/bus/pci/devices/0000:08:00.1/rescan", 10, "`remove` or `reset`"),
        ("ip link set enp8s0f0np0 vf", 27, "expected the VF's number, from 0, found the end"),
        ("ip link set enp8s0f0np0 vf 0", 29, "expected `mac`, `vlan`, `rate`"),
        ("ip link set dev enp8s0f0np0 vf 0 spoofchk yes", 43, "expected `on` or `off`, found `yes`"),
        ("ip link set enp8s0f0np0 vf 0 mac 01:00:00:00:00:00", 34, "unicast MAC address"),
        ("ip link set enp8s0f0np0 vf 0 vlan 5 proto 802.1x", 43, "did you mean `802.1Q`?"),
        ("ip link set enp8s0f0np0 vf 0 stat auto", 30, "did you mean `state`?"),
        ("devlink port function set pci/0000:08:00.0/1 trust on", 46, "`hw_addr`, `roce` or `state`"),
        ("fail eht", 6, "did you mean `eth`?"),
        ("fail eth uplink tims 3", 17, "did you mean `times`?"),
        ("fail eth uplink always for 5ms", 24, "expected `after`, `times` or `always`, found `for`"),
        ("fail alloc pci/0000:08:00.0", 28, "expected `times`, found the end"),
        ("delay eth uplink", 17, "expected `for`, found the end"),
        ("delay eth for 5", 15, "expected a time such as 5ms, 200us or 1s, found `5`"),
        ("sleep", 6, "expected a time such as"),
        ("wait util mode pci/0000:08:00.0 legacy", 6, "did you mean `until`?"),
        ("wait until mod pci/0000:08:00.0 legacy", 12, "did you mean `mode`?"),
        ("expect module mlx6_ib loaded", 15, "expected a module of the card (mlx5_core, mlx5_ib, vfio_pci)"),
        ("expect rep pci/0000:08:00.0/1 eth laoded", 35, "did you mean `loaded`?"),
        ("expect aux rdma.0 bound", 12, "expected an auxiliary device such as mlx5_core.rdma-rep.0"),
        ("expect sf pci/0000:08:00.0/32768", 33, "`active`, `inactive`, `attached` or `detached`, found the end"),
        ("repeat 0: devlink dev show", 8, "from 1 to 100000"),
        ("repeat 3: devlink dev shw", 23, "did you mean `show`?"),
        ("repeat 3: repeat 3: sync x", 11, "cannot be `repeat` again"),
        ("host 0000:03:00.0 numvfs 3", 19, "expected `sriov_numvfs`"),
        ("!", 2, "expected a command after `!`"),
        ("send pci/0000:08:00.0/1", 24, "expected a frame such as"),
        ("send pci/0000:08:00.0/1 arrives nowhere", 25, "expected a frame such as"),
        ("send pci/0000:08:00.0/1 ip dst 10.0.0.2 / tpc dport 80", 43, "no such word. It can be eth"),
        ("send pci/0000:08:00.0/1 ip / tcp dport arrives nowhere", 39, "is missing"),
        ("send pci/0000:08:00.0/1 hex 02f arrives nowhere", 29, "two for a byte"),
        ("send pci/0000:08:00.0/1 ip / tcp arrives", 41, "a port such as pci/0000:08:00.0/1"),
        ("tc -s filter show dev enp8s0f0np0 ingres", 35, "expected `ingress`, found `ingres`"),
        ("trace pci/0000:08:00.0 tcp", 7, "a port such as pci/0000:08:00.0/1"),
        ("trace pci/0000:08:00.0/1", 25, "expected a frame such as"),
        ("trace pci/0000:08:00.0/1 ip dst 10.0.0 / tcp", 33, "address"),
    ] {
        // `steps = ["` takes 10 columns.
        let (line, found, message) = error(&with_steps(&format!("steps = [\"{step}\"]")));
        assert_eq!((line, found), (5, 10 + column), "{step}: {message}");
        assert!(message.contains(expected), "{step}: {message}");
    }
}

#[test]
fn a_file_is_refused_where_it_is_wrong() {
    let thread = "[[thread]]\nname = \"a\"\nsteps = [\"devlink dev show\"]\n";
    let head = "name = \"n\"\nwhy = \"w\"\n";
    for (source, line, column, expected) in [
        (String::new(), 1, 1, "nothing here"),
        ("# only a comment\n".to_owned(), 1, 1, "nothing here"),
        ("once upon a time".to_owned(), 1, 6, "not TOML"),
        (format!("name = \"n\"\n{thread}"), 4, 29, "expected a key `why`"),
        (format!("name = 5\nwhy = \"w\"\n{thread}"), 1, 8, "expected `name`, a string, found the number 5"),
        (format!("{head}crads = [\"memory\"]\n{thread}"), 3, 1, "did you mean `cards`?"),
        (format!("{head}cards = [\"memroy\"]\n{thread}"), 3, 10, "unknown card `memroy`, expected `memory` or `linux`"),
        (format!("{head}cards = []\n{thread}"), 3, 9, "expected at least one card"),
        (format!("{head}limit_s = 0\n{thread}"), 3, 11, "seconds from 1 to 3600"),
        (format!("{head}settle = \"never\"\n{thread}"), 3, 10, "expected `retries` or `queues`"),
        (format!("{head}expect = [\"vfs pci/0000:08:00.0\"]\n{thread}"), 3, 32, "expected a number of VFs"),
        (format!("{head}[card]\nvfz = 3\n{thread}"), 4, 1, "unknown field `vfz`, expected"),
        (format!("{head}[card]\nmode = \"swichdev\"\n{thread}"), 4, 8, "unknown variant `swichdev`, expected"),
        (format!("{head}[card]\naddress = \"8:0\"\n{thread}"), 4, 11, "is not a PCI address"),
        (format!("{head}[card]\npfs = 9\n{thread}"), 4, 7, "it must be 1 to 4"),
        (format!("{head}[card]\nvfs = 9\n{thread}"), 4, 7, "more than `total_vfs`"),
        (
            format!("{head}[card]\nmodules = [\"mlx4_ib\"]\n{thread}"),
            4,
            11,
            "the card's modules are mlx5_core, mlx5_ib",
        ),
        (
            format!("{head}[card]\naddress = \"0000:08:00.0\\nREADY=1\"\n{thread}"),
            4,
            24,
            "expected `address` to be a line of text, found the control character \\n in it",
        ),
        (
            format!("{head}[card]\nmodules = [\"mlx5_ib\", \"mlx5\\u001b[2J\"]\n{thread}"),
            4,
            28,
            "expected `modules` to be a line of text, found the control character \\u{1b} in it",
        ),
        (format!("{head}[card]\nmode = \"legacy\\u202e\"\n{thread}"), 4, 15, "the control character \\u{202e}"),
        (format!("{head}[card]\n\"vf\\n\" = 3\n{thread}"), 4, 1, "unknown field `vf, `"),
        (format!("{head}\"x\\u001b\" = 3\n{thread}"), 3, 1, "unknown key `x\\u{1b}`"),
        (format!("name = \"a\\tb\"\nwhy = \"w\"\n{thread}"), 1, 10, "expected `name` to be a line of text"),
        (format!("name = \"n\"\nwhy = \"w\\u0007\"\n{thread}"), 2, 9, "expected `why` to be text"),
        (format!("{head}[[thread]]\nname = \"a\\nb\"\nsteps = [\"devlink dev show\"]\n"), 4, 10, "a line of text"),
        (with_steps("steps = [\"sync a\\u001b[2J\"]"), 5, 17, "the control character \\u{1b}"),
        (with_steps("steps = [\"sync a\\nREADY=1\"]"), 5, 17, "the control character \\n"),
        (with_steps("steps = [\"expect netdev a\\u0085 absent\"]"), 5, 26, "the control character \\u{85}"),
        (format!("{head}expect = [\"netdev a\\u007f absent\"]\n{thread}"), 3, 20, "the control character \\u{7f}"),
        (head.to_owned(), 2, 10, "expected a `[[thread]]`"),
        (format!("{head}[[thread]]\nname = \"a\"\n"), 3, 1, "thread `a` has no steps"),
        (format!("{head}[[thread]]\nname = \"a\"\nsteps = []\n"), 5, 9, "thread `a` has no steps"),
        (format!("{head}[[thread]]\nsteps = [\"devlink dev show\"]\n"), 3, 1, "a thread without a `name`"),
        (format!("{head}{thread}{thread}"), 7, 8, "a second thread of the name `a`"),
        (format!("{head}[[thread]]\nname = \"setup\"\n"), 4, 8, "other than `setup`"),
        (with_steps("steps = [5]"), 5, 10, "expected a step: a string, or a table with `run`; found the number 5"),
        (with_steps("steps = [{ fails = \"EBUSY\" }]"), 5, 10, "a step without `run`"),
        (with_steps("steps = [{ run = \"devlink dev show\", fail = \"EBUSY\" }]"), 5, 38, "did you mean `fails`?"),
        (
            with_steps("steps = [{ run = \"devlink dev show\", fails = \"EBUSY\", may_fail = true }]"),
            5,
            46,
            "`fails` or `may_fail`, found both",
        ),
        (with_steps("steps = [\n  \"devlink dev show\",\n  'devlink dev sho',\n]"), 7, 16, "did you mean `show`?"),
        (with_steps("steps = [\"\\u0065xpect vfs pci/x 1\"]"), 5, 27, "expected a device"),
        (with_steps("steps = [\"ping -c1 192.0.2.1\"]"), 5, 11, "add `cards = [\"linux\"]`"),
    ] {
        let (at_line, at_column, message) = error(&source);
        assert!(message.contains(expected), "{source}\n{at_line}:{at_column}: {message}");
        assert_eq!((at_line, at_column), (line, column), "{source}\n{message}");
    }
}

#[test]
fn a_barrier_that_can_never_be_passed_is_refused() {
    let alone = with_steps("steps = [\"devlink dev show\", \"sync start\"]");
    assert_eq!(
        error(&alone),
        (5, 31, "`sync start` can never be passed: no other thread than `a` names it".to_owned())
    );

    let crossed =
        with_steps("steps = [\"sync x\", \"sync y\"]\n[[thread]]\nname = \"b\"\nsteps = [\"sync y\", \"sync x\"]");
    let (line, column, message) = error(&crossed);
    assert_eq!((line, column), (5, 11));
    assert!(message.contains("in another order"), "{message}");

    let uneven = with_steps("steps = [\"repeat 2: sync x\"]\n[[thread]]\nname = \"b\"\nsteps = [\"sync x\"]");
    assert!(error(&uneven).2.contains("another number of times"));

    let nobody = with_steps("steps = [\"devlink dev show\"]").replace("[[thread]]", "setup = [\"sync x\"]\n[[thread]]");
    assert!(error(&nobody).2.contains("`sync` is for threads"));
}

#[test]
fn an_error_shows_no_control_character_of_the_input() {
    let head = "name = \"n\"\nwhy = \"w\"\n";
    let mut inputs = vec![String::from("\u{1b}[2J = 1")];
    for control in ["\\n", "\\u001b", "\\u0007", "\\u009b", "\\u202e", "\\ufeff"] {
        for place in [
            "NAME",
            "[card]\naddress = \"X\"",
            "[card]\nmode = \"X\"",
            "[card]\nmodules = [\"X\"]",
            "[card]\npfs = \"X\"",
            "[card]\n\"X\" = 1",
            "\"X\" = 1",
            "cards = [\"X\"]",
            "settle = \"X\"",
            "expect = [\"X\"]",
            "limit_s = \"X\"",
            "setup = [\"X\"]",
            "[[thread]]\nname = \"X\"",
            "[[thread]]\nname = \"a\"\nsteps = [\"modprobe X\"]",
            "[[thread]]\n\"X\" = 1",
            "[[thread]]\nname = \"a\"\nsteps = [{ run = \"sync X\", fails = \"X\" }]",
        ] {
            inputs.push(format!("{head}{}", place.replace('X', &format!("x{control}y"))));
        }
    }
    for input in inputs {
        let (_, _, message) = error(&input);
        assert!(!message.chars().any(eswitch::text::is_control), "{input:?}: {message:?}");
    }
}

#[test]
fn a_program_and_a_reason_may_have_several_lines() {
    let source = with_steps("steps = [\"\"\"!for i in 1 2; do\n\techo $i\ndone\"\"\"]")
        .replace("why = \"w\"", "cards = [\"linux\"]\nwhy = \"a\\nb\"");
    let scenario = scenario::parse(&source).unwrap();
    assert_eq!(scenario.why, "a\nb");
}
