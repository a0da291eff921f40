//! Daemons as programs: start, status, end, and what a restart keeps. On the card in memory; and on the card of netdevs, as
//! root and without root in namespaces. A test that cannot run here prints that it is skipped.

mod steps;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devlink::Client;
use serde_json::Value;
use steps::perform;

/// How long anything may take before a test gives up. Nothing is asserted of how long it takes.
const LONG: Duration = Duration::from_secs(120);

/// Folders of a test, and the daemons that run in them. Both are removed when this is dropped.
struct Place {
    folder: PathBuf,
    children: Vec<Child>,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("esw-daemon-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self { folder, children: Vec::new() }
    }

    fn esw(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        command.args(arguments).env_remove("ESW_LOG").env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1");
        command.env("RUNTIME_DIRECTORY", self.folder.join("run")).env("STATE_DIRECTORY", self.folder.join("state"));
        command
    }

    fn output(&self, arguments: &[&str]) -> (i32, String, String) {
        read(self.esw(arguments).output().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Starts a daemon of ours, and waits until it says that it is ready. What it says goes with it.
    fn start(&mut self, arguments: &[&str]) -> (u32, UnixDatagram) {
        let path = self.folder.join(format!("notify-{}", self.children.len()));
        let _ = fs::remove_file(&path);
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(LONG)).unwrap();
        let mut command = self.esw(&["up", "--daemon"]);
        let child = command.args(arguments).env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        while !receive(&told).contains("READY=1") {}
        (pid, told)
    }

    fn status(&self) -> Vec<Value> {
        let (code, said, complaint) = self.output(&["status", "--json"]);
        assert_eq!(code, 0, "{complaint}");
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for the end of the daemon that was started last; its exit status.
    fn ended(&mut self) -> Option<i32> {
        let mut child = self.children.pop().unwrap();
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.children.push(child);
        panic!("the daemon has not ended");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.esw(&["down", "--all"]).output();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn read(output: Output) -> (i32, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn receive(told: &UnixDatagram) -> String {
    let mut text = [0; 4096];
    loop {
        match told.recv(&mut text) {
            Ok(length) => return String::from_utf8_lossy(&text[..length]).into_owned(),
            // With a limit of time it is not gone on with after a signal.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("the daemon says nothing: {error}"),
        }
    }
}

fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn socket(folder: &Path) -> String {
    folder.join("run/0000:08:00.0.sock").display().to_string()
}

#[test]
fn a_daemon_goes_to_the_background_is_listed_and_ends() {
    let place = Place::new();
    let (code, said, complaint) = place.output(&["up", "--daemon", "--detach"]);
    assert_eq!(code, 0, "{complaint}");
    assert!(said.contains("up: 0000:08:00.0"), "{said}");
    let [card] = &place.status()[..] else { panic!("one card") };
    assert_eq!((card["name"].as_str(), card["kind"].as_str()), (Some("0000:08:00.0"), Some("memory")));
    assert_eq!(card["pfs"][0]["mode"], "legacy");
    let (_, said, _) = place.output(&["status"]);
    assert!(said.contains("pci/0000:08:00.0  legacy, 0 VFs, 0 SFs, 0 representors"), "{said}");
    let pid = card["pid"].as_u64().unwrap();
    let (code, said, complaint) = place.output(&["down"]);
    assert_eq!(code, 0, "{complaint}");
    assert!(said.contains(&format!("ended process {pid}")), "{said}");
    assert!(!Path::new(&socket(&place.folder)).exists());
    let (code, _, complaint) = place.output(&["down"]);
    assert_eq!((code, complaint.as_str()), (1, "esw: no daemon runs\n"));
}

#[test]
fn the_service_manager_is_notified_and_a_signal_ends_the_daemon() {
    let mut place = Place::new();
    let (pid, told) = place.start(&[]);
    signal(pid, "-TERM");
    while !receive(&told).contains("STOPPING=1") {}
    assert_eq!(place.ended(), Some(0));
    assert!(!Path::new(&socket(&place.folder)).exists());
}

#[test]
fn one_card_has_one_daemon() {
    let mut place = Place::new();
    place.start(&[]);
    for arguments in [&["up", "--daemon"][..], &["up", "--daemon", "--detach"]] {
        let (code, _, complaint) = place.output(arguments);
        assert_eq!(code, 2, "{complaint}");
        assert!(complaint.contains("a daemon already listens there"), "{complaint}");
    }
    assert_eq!(place.status().len(), 1, "it is still there");
}

#[test]
fn the_socket_of_a_dead_daemon_is_replaced() {
    let mut place = Place::new();
    let (pid, _) = place.start(&[]);
    signal(pid, "-KILL");
    assert_eq!(place.ended(), None);
    for arguments in [&["status"][..], &["status", "--json"], &["status", "--card", "0000:08:00.0"]] {
        let (code, said, complaint) = place.output(arguments);
        assert_eq!((code, said.as_str()), (1, ""), "{arguments:?}");
        assert!(complaint.contains("has died"), "{complaint}");
    }
    let (code, _, complaint) = place.output(&["down", "--card", "0000:08:00.0"]);
    assert_eq!(code, 1);
    assert!(complaint.contains("has died"), "{complaint}");
    place.start(&[]);
    assert_eq!(place.status().len(), 1);
}

/// A socket where a daemon would have its own, with nothing behind it that answers.
fn silent(place: &Place, name: &str) -> devlink::ControlSocket {
    fs::create_dir_all(place.folder.join("run")).unwrap();
    devlink::ControlSocket::bind(&place.folder.join("run").join(name), 0o600, None).unwrap()
}

#[test]
fn down_keeps_its_limit_and_status_reports_a_daemon_that_does_not_answer() {
    let mut place = Place::new();
    let (pid, _) = place.start(&[]);
    signal(pid, "-STOP");
    let (code, _, complaint) = place.output(&["down", "--timeout", "1"]);
    assert_eq!(code, 1);
    assert!(complaint.contains(&format!("process {pid} with ")), "{complaint}");
    assert!(complaint.contains("has not ended within 1 s"), "{complaint}");
    // What it was asked it does when it goes on.
    signal(pid, "-CONT");
    assert_eq!(place.ended(), Some(0));
    // A daemon that is stopped, and whose queue of connections is full.
    let (pid, _) = place.start(&[]);
    signal(pid, "-STOP");
    let soon = || Instant::now() + Duration::from_millis(50);
    let waiting: Vec<Client> =
        std::iter::from_fn(|| Client::connect_by(Path::new(&socket(&place.folder)), soon()).ok()).collect();
    for arguments in [&["down", "--timeout", "1"][..], &["down", "--all", "--timeout", "1"]] {
        let (code, _, complaint) = place.output(arguments);
        assert_eq!(code, 1, "{complaint}");
        assert!(complaint.contains("the daemon does not answer"), "{complaint}");
    }
    drop(waiting);
    signal(pid, "-CONT");
    // One that listens and never answers keeps nobody from ending the other.
    let silent = silent(&place, "silent.sock");
    let (code, said, complaint) = place.output(&["down", "--all", "--timeout", "5"]);
    assert_eq!(code, 1, "{complaint}");
    assert!(said.contains(&format!("ended process {pid} with ")), "{said}");
    assert!(complaint.contains("silent.sock has not ended within 5 s"), "{complaint}");
    place.ended();
    drop(silent);
    assert_eq!(place.output(&["down", "--timeout", "0"]).0, 2, "no time is too little");
}

#[test]
fn a_folder_of_another_user_is_not_trusted() {
    let mut place = Place::new();
    place.start(&[]);
    let (own, other) = (place.folder.join("run"), place.folder.join("other"));
    std::os::unix::fs::symlink(&own, &other).unwrap();
    let refused = |what: &str, why: &str| {
        for arguments in [&["status"][..], &["down"], &["down", "--card", "x"], &["dev"], &["up", "--daemon"]] {
            let mut command = place.esw(arguments);
            let (code, _, complaint) = read(command.env("RUNTIME_DIRECTORY", &other).output().unwrap());
            assert_eq!(code, 2, "{what}, {arguments:?}: {complaint}");
            assert!(complaint.contains("cannot be trusted") && complaint.contains(why), "{what}: {complaint}");
        }
    };
    refused("a link", "symbolic link");
    fs::remove_file(&other).unwrap();
    fs::create_dir(&other).unwrap();
    let permit = |mode| fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    permit(0o777);
    refused("a folder for all", "others may write");
    if rustix::process::geteuid().is_root() {
        permit(0o755);
        std::os::unix::fs::chown(&other, Some(65_534), None).unwrap();
        refused("another user's folder", "another user");
    }
    assert_eq!(place.status().len(), 1, "what is in one's own is found");
}

#[test]
fn no_other_user_may_open_locks_and_state_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    for umask in ["000", "077"] {
        let place = Place::new();
        let esw = env!("CARGO_BIN_EXE_esw");
        let script = format!("umask {umask}; exec \"$0\" up --daemon --detach");
        let mut command = Command::new("sh");
        command.args(["-c", &script, esw]).env_remove("ESW_LOG").env_remove("NOTIFY_SOCKET");
        command.env("RUNTIME_DIRECTORY", place.folder.join("run")).env("STATE_DIRECTORY", place.folder.join("state"));
        let (code, _, complaint) = read(command.output().unwrap());
        assert_eq!(code, 0, "{complaint}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let mut names = Vec::new();
        for folder in ["run", "state"] {
            let folder = place.folder.join(folder);
            assert_eq!(mode(&folder), 0o755, "umask {umask}: {}", folder.display());
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                assert_eq!(mode(&path), 0o600, "umask {umask}: {}", path.display());
                names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
        for expected in
            ["0000:08:00.0.sock", "0000:08:00.0.sock.lock", "0000:08:00.0.state", "0000:08:00.0.lock", "esw.log"]
        {
            assert!(names.iter().any(|name| name == expected), "{expected} in {names:?}");
        }
    }
}

#[test]
fn a_daemon_that_is_up_has_descriptors_left_to_be_ended() {
    let mut came_up = 0;
    for limit in 16..48 {
        let place = Place::new();
        let esw = |words: &str| {
            let script = format!("ulimit -n {limit}; exec \"$0\" {words}");
            let mut command = Command::new("sh");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_esw")]).env_remove("ESW_LOG").env_remove("NOTIFY_SOCKET");
            command.env("RUNTIME_DIRECTORY", place.folder.join("run"));
            command.env("STATE_DIRECTORY", place.folder.join("state"));
            read(command.output().unwrap())
        };
        let (code, _, complaint) = esw("up --daemon --detach");
        if code == 0 {
            came_up += 1;
            let (code, said, complaint) = esw("down --timeout 10");
            assert_eq!(code, 0, "{limit} descriptors: {said}{complaint}");
        } else {
            assert!(!complaint.is_empty(), "{limit} descriptors");
        }
    }
    assert!((1..32).contains(&came_up), "{came_up} came up: the limits are not those at which it can fail");
}

#[test]
fn control_characters_in_names_are_escaped_wherever_they_are_shown() {
    let mut place = Place::new();
    // Names of rate nodes are whatever whoever may change the card says.
    let (_, _told) = place.start(&["--log", "debug"]);
    let mut client = Client::connect(Path::new(&socket(&place.folder))).unwrap();
    perform(&mut client, &format!("devlink dev eswitch set {PF} mode switchdev")).unwrap();
    let name = "n\u{1b}[2J\nREADY=1\u{9b}1m";
    let made = client.ask(devlink::DEVLINK, devlink::numbers::command::RATE_NEW, |to| {
        use devlink::numbers::attribute as a;
        to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, "0000:08:00.0").text(a::RATE_NODE_NAME, name);
    });
    made.unwrap();
    let (code, said, complaint) = place.output(&["port", "function", "rate", "show"]);
    assert_eq!(code, 0, "{complaint}");
    assert!(said.contains(r"n\u{1b}[2J\nREADY=1\u{9b}1m"), "{said}");
    assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");
    // And what is refused says so without them.
    let odd = format!("{PF}/a\u{1b}c");
    let (code, _, complaint) = place.output(&["port", "function", "rate", "del", &odd]);
    assert_ne!(code, 0);
    assert!(!complaint.contains(|c: char| c.is_control() && c != '\n'), "{complaint:?}");
    let config = place.file("x.toml", "[cards.\"x\\nREADY=1\"]\n");
    let (code, _, complaint) = place.output(&["up", "--daemon", "--config", config.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(complaint.contains("control character") && complaint.lines().count() == 1, "{complaint}");
}

#[test]
fn two_daemons_do_not_share_a_socket_a_state_or_a_card() {
    let mut place = Place::new();
    let config = |name: &str, socket: &str, address: &str| {
        let socket = place.folder.join(socket);
        let (folder, text) = (place.folder.join(name), socket.display());
        fs::write(&folder, format!("[cards.a]\nsocket = \"{text}\"\ncard.address = \"{address}\"\n")).unwrap();
        folder.display().to_string()
    };
    let first = config("first.toml", "run/a.sock", "0000:08:00.0");
    let same_socket = config("socket.toml", "run/a.sock", "0000:09:00.0");
    let same_state = config("state.toml", "run/b.sock", "0000:08:00.0");
    place.start(&["--config", &first]);
    let client = |place: &Place| Client::connect(&place.folder.join("run/a.sock")).unwrap();
    perform(&mut client(&place), &format!("devlink dev eswitch set {PF} mode switchdev")).unwrap();
    for fresh in [&[][..], &["--fresh"]] {
        for (config, expected) in [
            (&same_socket, "a daemon already listens there (process "),
            (&same_state, "another daemon keeps its state"),
        ] {
            let (code, _, complaint) = place.output(&[&["up", "--daemon", "--config", config], fresh].concat());
            assert_eq!(code, 2, "{complaint}");
            assert!(complaint.contains(expected), "{complaint}");
        }
    }
    // The first is as it was, and so is what is kept of it.
    assert_eq!(place.status().len(), 1);
    signal(u32::try_from(place.status()[0]["pid"].as_u64().unwrap()).unwrap(), "-KILL");
    place.ended();
    place.start(&["--config", &first]);
    assert_eq!(place.status()[0]["pfs"][0]["mode"], "switchdev");
    assert!(!place.folder.join("run/b.sock").exists() && !place.folder.join("run/b.sock.lock").exists());
}

#[test]
fn a_fresh_start_that_is_refused_has_forgotten_nothing() {
    let mut place = Place::new();
    let both = "[cards.a]\n[cards.b.card]\naddress = \"0000:0a:00.0\"\n";
    let (one, both) = (place.file("one.toml", "[cards.a]\n"), place.file("both.toml", both));
    let (pid, _) = place.start(&["--config", one.to_str().unwrap()]);
    let mut client = Client::connect(&place.folder.join("run/a.sock")).unwrap();
    perform(&mut client, &format!("devlink dev eswitch set {PF} mode switchdev")).unwrap();
    signal(pid, "-KILL");
    place.ended();
    let other = silent(&place, "b.sock");
    let (code, _, complaint) = place.output(&["up", "--daemon", "--fresh", "--config", both.to_str().unwrap()]);
    assert_eq!(code, 2, "{complaint}");
    drop(other);
    // The second card's state is in use.
    let lock = fs::File::create(place.folder.join("state/b.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (code, _, complaint) = place.output(&["up", "--daemon", "--fresh", "--config", both.to_str().unwrap()]);
    assert!(code == 2 && complaint.contains("another daemon keeps its state"), "{complaint}");
    drop(lock);
    place.start(&["--config", one.to_str().unwrap()]);
    assert_eq!(place.status()[0]["pfs"][0]["mode"], "switchdev");
}

#[test]
fn several_daemons_have_one_socket_each() {
    let mut place = Place::new();
    let left = place.file("left.toml", "[cards.left]\n");
    let right = place.file("right.toml", "[cards.right]\n[cards.third.card]\naddress = \"0000:0a:00.0\"\n");
    place.start(&["--config", left.to_str().unwrap()]);
    place.start(&["--config", right.to_str().unwrap()]);
    let names: Vec<Value> = place.status().iter().map(|card| card["name"].clone()).collect();
    assert_eq!(names, ["left", "right", "third"]);
    let (code, _, complaint) = place.output(&["down"]);
    assert_eq!(code, 1);
    assert!(complaint.contains("several daemons run"), "{complaint}");
    let (code, _, complaint) = place.output(&["down", "--card", "third"]);
    assert_eq!(code, 0, "{complaint}");
    assert_eq!(place.status().len(), 1, "a daemon ends with all its cards");
    assert_eq!(place.output(&["down", "--all"]).0, 0);
    assert_eq!(place.status().len(), 0);
}

#[test]
fn a_card_is_drawn_with_its_functions_and_representors_and_what_is_not_well() {
    const PF: &str = "pci/0000:08:00.0";
    let mut place = Place::new();
    let card = "[cards.nic]\nkind = \"memory\"\n[cards.nic.card]\nvfs = 2\ntotal_vfs = 4\nmodules = [\"mlx5_ib\"]\n";
    let config = place.file("cards.toml", card);
    assert_eq!(place.output(&["show"]).0, 2, "no card is up");
    place.start(&["--config", config.to_str().unwrap()]);
    let legacy = "nic  memory card, mlx5, switch e500000800000000, 0 flow rules\n\
        └─ PF pci/0000:08:00.0  legacy\n   \
        ├─ uplink  enp8s0f0np0  rocep8s0f0\n   \
        ├─ VF 0    enp8s0f0v0   rocep8s0f0v0\n   \
        └─ VF 1    enp8s0f0v1   rocep8s0f0v1\n";
    assert_eq!(place.output(&["show"]), (0, legacy.to_owned(), String::new()));
    let mut client = Client::connect(&place.folder.join("run/nic.sock")).unwrap();
    for words in [
        format!("devlink dev eswitch set {PF} mode switchdev"),
        format!("devlink port add {PF} flavour pcisf pfnum 0 sfnum 88"),
        format!("devlink port function set {PF}/32768 state active"),
        "tc filter add dev enp8s0f0npf0vf0 ingress protocol all prio 1 flower dst_mac 02:00:00:00:00:09 action drop"
            .to_owned(),
        "echo 0000:08:00.2 > /sys/bus/pci/drivers/mlx5_core/unbind".to_owned(),
    ] {
        perform(&mut client, &words).unwrap();
    }
    let switchdev = "nic  memory card, mlx5, switch e500000800000000, 1 flow rule\n\
        └─ PF pci/0000:08:00.0  switchdev\n   \
        ├─ uplink  enp8s0f0np0  rocep8s0f0\n   \
        ├─ VF 0    enp8s0f0v0   rocep8s0f0v0   ↔ enp8s0f0npf0vf0\n   \
        ├─ VF 1    no driver                   ↔ enp8s0f0npf0vf1\n   \
        └─ SF 88   enp8s0f0s88  rocep8s0f0s88  ↔ en8f0pf0sf88\n";
    // The SF is attached a moment after its state was set.
    let until = Instant::now() + LONG;
    while place.output(&["show"]).1 != switchdev && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(place.output(&["show"]), (0, switchdev.to_owned(), String::new()));
    let (code, said, _) = place.output(&["show", "--json"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, json["pfs"][0]["functions"][2]["representor"]["name"].as_str()), (0, Some("en8f0pf0sf88")));
    // The drawing is that of the documentation: `UPDATE=1` writes it there.
    let (drawn, documented) =
        (place.folder.join("card.svg"), concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/card.svg"));
    assert_eq!(place.output(&["show", "--svg", drawn.to_str().unwrap()]), (0, String::new(), String::new()));
    let drawn = fs::read_to_string(drawn).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(documented, &drawn).unwrap();
    }
    assert_eq!(drawn, fs::read_to_string(documented).unwrap(), "UPDATE=1 writes docs/card.svg");
    let (code, _, complaint) = place.output(&["show", "--svg", "/nothing/card.svg"]);
    assert!(code == 2 && complaint.contains("writing /nothing/card.svg"), "{complaint}");
    // What fails is shown, and is the exit status.
    for words in ["modprobe -r mlx5_ib", "fail ib pf 0 vf 0 times 100000", "modprobe mlx5_ib"] {
        let _ = perform(&mut client, words);
    }
    let (code, said, _) = place.output(&["show"]);
    assert!(code == 1 && said.contains("pci/0000:08:00.0/1: "), "{said}");
}

#[test]
fn a_frame_is_traced_on_the_card_that_has_the_port() {
    let mut place = Place::new();
    let other =
        "[cards.other.card]\naddress = \"0000:0a:00.0\"\n[cards.one]\n[cards.one.card]\nvfs = 2\ntotal_vfs = 4\n";
    let config = place.file("cards.toml", other);
    place.start(&["--config", config.to_str().unwrap()]);
    let trace = |words: &str| place.output(&["trace"].into_iter().chain(words.split(' ')).collect::<Vec<_>>());
    let (code, _, complaint) = trace("pci/0000:08:00.0/1 ip / tcp");
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("`devlink dev eswitch set pci/0000:08:00.0 mode switchdev` enters it"), "{complaint}");
    let mut client = Client::connect(&place.folder.join("run/one.sock")).unwrap();
    for words in [
        "devlink dev eswitch set pci/0000:08:00.0 mode switchdev",
        "tc filter add dev enp8s0f0npf0vf0 ingress protocol all prio 1 flower dst_mac 02:00:00:00:00:09 action drop",
    ] {
        perform(&mut client, words).unwrap();
    }
    let (code, said, complaint) = trace("pci/0000:08:00.0/1 eth dst 02:00:00:00:00:09 / arp request");
    assert_eq!(code, 0, "{complaint}");
    for line in ["    priority 1 (protocol all), dst_mac: rule 1 matches", "arrives nowhere"] {
        assert!(said.lines().any(|said| said == line), "no `{line}` in\n{said}");
    }
    for (words, expected) in [
        ("pci/0000:08:00.0/4 ip", "Error: pci/0000:08:00.0/4 has no representor"),
        ("pci/0000:0b:00.0/1 ip", "Error: there is no pci/0000:0b:00.0/1 on this card"),
        ("pci/0000:08:00.0/65537 ip", "Error: there is no pci/0000:08:00.0/65537 on this card"),
        ("--card other pci/0000:08:00.0/1 ip", "Error: there is no pci/0000:08:00.0/1 on this card"),
        ("pci/0000:08:00.0/1 hex 0102", "Error: this is no frame: it has 2 bytes"),
    ] {
        let (code, said, complaint) = trace(words);
        assert_eq!((code, said.as_str()), (1, ""), "{words}: {complaint}");
        assert!(complaint.contains(expected), "{words}: {complaint}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_place() {
    let place = Place::new();
    let long = "x".repeat(120);
    for (text, expected) in [
        ("[cards.a]\ncolour = 1\n".to_owned(), ":2:1"),
        ("[cards.a]\nkind = \"paper\"\n".to_owned(), ":2:8"),
        (format!("[cards.{long}]\n"), "it can have 107"),
        ("[cards.a]\nsocket = \"/proc/nonesuch/a.sock\"\n".to_owned(), "/proc/nonesuch"),
    ] {
        let file = place.file("wrong.toml", &text);
        for how in [&["up", "--daemon", "--config"][..], &["up", "--daemon", "--detach", "--config"]] {
            let (code, _, complaint) = place.output(&[how, &[file.to_str().unwrap()]].concat());
            assert_eq!(code, 2, "{text}: {complaint}");
            assert!(complaint.contains(expected), "{text}: {complaint}");
        }
    }
    for arguments in [&["up", "--detach"][..], &["up", "--daemon", "--log", "loud"], &["down", "--card", "a", "--all"]]
    {
        assert_eq!(place.output(arguments).0, 2, "{arguments:?}");
    }
    let mut command = place.esw(&["up", "--daemon"]);
    let (code, _, complaint) = read(command.env("ESW_LOG", "loud").output().unwrap());
    assert_eq!(code, 2);
    assert!(complaint.contains("ESW_LOG is `loud`"), "{complaint}");
}

#[test]
fn the_log_is_one_object_a_line_if_asked_for() {
    let place = Place::new();
    let (code, _, complaint) = place.output(&["up", "--daemon", "--detach", "--log-format", "json"]);
    assert_eq!(code, 0, "{complaint}");
    assert_eq!(place.output(&["down"]).0, 0);
    let log = fs::read_to_string(place.folder.join("state/esw.log")).unwrap();
    let said: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all: Vec<&str> = said.iter().filter_map(|line| line["message"].as_str()).collect();
    for expected in ["starting", "up", "asked to end", "stopping", "pci/0000:08:00.0: unbound", "stopped"] {
        assert!(all.contains(&expected), "no `{expected}` in {log}");
    }
}

const PF: &str = "pci/0000:08:00.0";

#[test]
fn agreed_state_survives_a_kill_and_a_signal_and_is_forgotten_on_request() {
    let mut place = Place::new();
    let (pid, _) = place.start(&[]);
    let mut client = Client::connect(Path::new(&socket(&place.folder))).unwrap();
    for step in [
        "modprobe mlx5_ib",
        "devlink dev eswitch set pci/0000:08:00.0 mode switchdev encap-mode none",
        "echo 3 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs",
        "devlink port function set pci/0000:08:00.0/2 hw_addr 00:11:22:33:44:55",
        "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 87",
        "devlink port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88",
        "devlink port function set pci/0000:08:00.0/32769 hw_addr 00:11:22:33:44:66 state active",
        "devlink port del pci/0000:08:00.0/32768",
    ] {
        perform(&mut client, step).unwrap_or_else(|error| panic!("{step}: {error}"));
    }
    let looks = ["devlink port show", "devlink dev eswitch show pci/0000:08:00.0"];
    // An SF's device is a new one after a restart (`mlx5_core.sf.N`), and so is its instance, whose port has its number.
    let look_at = |client: &mut Client| {
        let is_of_the_pf = |line: &&str| {
            let index = line.strip_prefix("Some(").and_then(|rest| rest.split(')').next()?.parse().ok());
            index.is_none_or(|index: u32| index < 1 << 16)
        };
        looks.map(|look| perform(client, look).unwrap().lines().filter(is_of_the_pf).collect::<Vec<_>>().join("\n"))
    };
    let before = look_at(&mut client);
    signal(pid, "-KILL");
    place.ended();
    let (pid, told) = place.start(&[]);
    let mut client = Client::connect(Path::new(&socket(&place.folder))).unwrap();
    assert_eq!(look_at(&mut client), before);
    assert_eq!(place.status()[0]["pfs"][0]["rdma_representors"], 5);
    signal(pid, "-TERM");
    while !receive(&told).contains("STOPPING=1") {}
    place.ended();
    place.start(&[]);
    assert_eq!(place.status()[0]["pfs"][0]["sfs"], 1);
    assert_eq!(place.output(&["down"]).0, 0);
    place.ended();
    place.start(&[]);
    assert_eq!(place.status()[0]["pfs"][0]["mode"], "legacy", "down forgets");
}

#[test]
fn every_answered_command_of_a_burst_is_there_after_a_kill() {
    let mut place = Place::new();
    for round in 0..5u8 {
        let (pid, _) = place.start(&["--fresh"]);
        let mut client = Client::connect(Path::new(&socket(&place.folder))).unwrap();
        perform(&mut client, &format!("devlink dev eswitch set {PF} mode switchdev")).unwrap();
        perform(&mut client, "echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs").unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10 + 7 * u64::from(round)));
            signal(pid, "-KILL");
        });
        let mac = |n: u32| format!("00:11:22:33:{:02x}:{:02x}", n >> 8 & 0xff, n & 0xff);
        let set = |n: u32| format!("devlink port function set {PF}/1 hw_addr {}", mac(n));
        // How many were answered.
        let answered = (1..).take_while(|n| perform(&mut client, &set(*n)).is_ok()).last().unwrap_or(0);
        killer.join().unwrap();
        place.ended();
        place.start(&[]);
        let mut client = Client::connect(Path::new(&socket(&place.folder))).unwrap();
        let shown = perform(&mut client, &format!("devlink port show {PF}/1")).unwrap();
        // The one that was not answered may have been carried out.
        let may_be = [mac(answered), mac(answered + 1)];
        let is = may_be.iter().any(|mac| shown.contains(mac.as_str()));
        assert!(is || answered == 0, "one of {may_be:?} in {shown}");
        assert_eq!(place.output(&["down"]).0, 0);
        place.ended();
    }
}

#[test]
fn state_that_cannot_be_read_stays_until_fresh_moves_it_aside() {
    let mut place = Place::new();
    fs::create_dir_all(place.folder.join("state")).unwrap();
    let path = place.folder.join("state/0000:08:00.0.redb");
    let foreign = "this is somebody's diary, of which nothing may be lost".repeat(200);
    fs::write(&path, &foreign).unwrap();
    let (code, _, complaint) = place.output(&["up", "--daemon"]);
    assert_eq!(code, 2);
    assert!(complaint.contains("--fresh") && complaint.contains("no state of a card"), "{complaint}");
    assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
    place.start(&["--fresh"]);
    assert_eq!(fs::read_to_string(place.folder.join("state/0000:08:00.0.aside-1")).unwrap(), foreign);
}

#[test]
fn a_configuration_that_does_not_fit_what_is_stored_is_refused() {
    let mut place = Place::new();
    let config = |total: u16| format!("[cards.a.card]\ntotal_vfs = {total}\n");
    let file = place.file("a.toml", &config(8));
    let (pid, _) = place.start(&["--config", file.to_str().unwrap()]);
    signal(pid, "-KILL");
    place.ended();
    fs::write(&file, config(4)).unwrap();
    let (code, _, complaint) = place.output(&["up", "--daemon", "--config", file.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(complaint.contains("`total_vfs` is 4 and was 8"), "{complaint}");
    place.start(&["--fresh", "--config", file.to_str().unwrap()]);
}

#[test]
fn the_example_configuration_can_be_used() {
    let mut place = Place::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dist/eswitch.toml");
    // On the card in memory: what it is made of is all that differs.
    let text = fs::read_to_string(example).unwrap().replace("kind = \"linux\"", "kind = \"memory\"");
    let file = place.file("eswitch.toml", &text);
    place.start(&["--config", file.to_str().unwrap()]);
    assert_eq!(place.status().len(), 1);
}

/// How programs are run on a card of netdevs: as which user, and in the namespaces of the netdevs once the card is up.
struct Rig {
    place: Place,
    /// The command that runs a program as the user of the daemon.
    prefix: Vec<String>,
    esw: PathBuf,
    bus: u8,
}

impl Rig {
    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut all: Vec<String> = self.prefix.clone();
        all.extend(words.iter().map(|word| (*word).to_owned()));
        let mut command = Command::new(&all[0]);
        command.args(&all[1..]).env_remove("NOTIFY_SOCKET").current_dir(&self.place.folder);
        command.env("RUNTIME_DIRECTORY", self.place.folder.join("run"));
        command.env("STATE_DIRECTORY", self.place.folder.join("state"));
        command
    }

    fn esw(&self, arguments: &[&str]) -> String {
        let (code, said, complaint) = read(self.run(&[&[self.esw.to_str().unwrap()], arguments].concat()));
        assert_eq!(code, 0, "{arguments:?}: {complaint}");
        said
    }

    /// Runs a shell command where the netdevs are.
    fn sh(&self, script: &str) -> (i32, String) {
        let keeper = UnixStream::connect(self.place.folder.join("run/x.keeper"));
        let pid =
            keeper.map(|keeper| rustix::net::sockopt::socket_peercred(&keeper).unwrap().pid.as_raw_pid().to_string());
        let (code, said, complaint) = read(match &pid {
            Ok(pid) => {
                self.run(&["nsenter", "-t", pid, "-U", "-n", "-m", "--preserve-credentials", "sh", "-c", script])
            }
            Err(_) => self.run(&["sh", "-c", script]),
        });
        (code, said + &complaint)
    }

    fn must(&self, script: &str) -> String {
        let (code, said) = self.sh(script);
        assert_eq!(code, 0, "{script}: {said}");
        said
    }

    fn pid(&self) -> u32 {
        let status: Value = serde_json::from_str(self.esw(&["status", "--json"]).trim()).unwrap();
        u32::try_from(status["pid"].as_u64().unwrap()).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for n in 0..2 {
            self.sh(&format!("ip netns del esw-t{}-{n}", self.bus));
        }
        self.sh(&format!("ip link del esw-t{}", self.bus));
        self.run(&[self.esw.to_str().unwrap(), "down", "--all"]);
        // Of a test that has failed: what keeps a card that has no daemon any more.
        let left = fs::read_dir(self.place.folder.join("run")).into_iter().flatten().flatten();
        for path in left.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "keeper")) {
            let _ = UnixStream::connect(path).and_then(|mut keeper| keeper.write_all(b"e"));
        }
    }
}

const UP: [&str; 5] = ["up", "--daemon", "--detach", "--config", "x.toml"];

/// A folder with the program and the configuration of one card of netdevs. `prefix` is the command that runs a program as
/// the user of the test.
fn rig(prefix: Vec<String>, bus: u8) -> Rig {
    let place = Place::new();
    // Whoever runs it must be able to read it, and to make folders here.
    let esw = place.folder.join("esw");
    // By a process of its own: what another thread starts while this one writes could have it open, and keep it busy.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_esw")).arg(&esw).status().unwrap().success());
    assert!(Command::new("chmod").args(["-R", "a+rwx"]).arg(&place.folder).status().unwrap().success());
    let config = format!(
        "[cards.x]\nkind = \"linux\"\n[cards.x.card]\naddress = \"0000:{bus:02x}:00.0\"\n\
                          mode = \"switchdev\"\nvfs = 3\n"
    );
    place.file("x.toml", &config);
    Rig { place, prefix, esw, bus }
}

/// Kills and restarts a daemon with a card of netdevs whose VFs are in use in other namespaces.
fn netdevs_in_use_survive(prefix: Vec<String>, bus: u8) {
    let rig = rig(prefix, bus);
    let up = UP;
    rig.esw(&up);
    let device = format!("0000:{bus:02x}:00.0");
    let pf = format!("pci/{device}");
    rig.esw(&["port", "add", &pf, "flavour", "pcisf", "pfnum", "0", "sfnum", "88"]);
    rig.esw(&["port", "function", "set", &format!("{pf}/32768"), "state", "active"]);
    rig.must(&format!("ip link add esw-t{bus} type bridge && ip link set esw-t{bus} up"));
    for n in 0..2 {
        let (netns, vf) = (format!("esw-t{bus}-{n}"), format!("enp{bus}s0f0v{n}"));
        rig.must(&format!(
            "set -e; ip netns add {netns}; ip link set {vf} netns {netns}; ip -n {netns} addr add 10.77.0.{}/24 dev {vf}; \
             ip -n {netns} link set {vf} up; rep=$(ip -o link | grep -o 'en{bus}f0pf0vf{n}' | head -1); \
             ip link set $rep master esw-t{bus} up",
            n + 1
        ));
    }
    rig.must(&format!("ip link set $(ip -o link | grep -o 'en{bus}f0pf0vf2' | head -1) name pod-t{bus}"));
    let port = format!("{pf}/3");
    let is_named = || rig.esw(&["port", "show", &port]).contains(&format!("netdev pod-t{bus} "));
    let until = Instant::now() + LONG;
    while !is_named() {
        assert!(Instant::now() < until, "{}", rig.esw(&["port", "show", &port]));
        std::thread::sleep(Duration::from_millis(5));
    }
    let ping = format!("ip netns exec esw-t{bus}-0 ping -c 1 -W 1 10.77.0.2");
    let pings = || (0..60).any(|_| rig.sh(&ping).0 == 0);
    assert!(pings(), "{}", rig.sh(&ping).1);
    let look = format!(
        "for n in 0 1; do ip -n esw-t{bus}-$n -4 -o addr show; done; \
         ip -o link | grep -E 'enp?{bus}|pod-t{bus}' | cut -d: -f1,2; ip -o link show master esw-t{bus} | cut -d: -f1,2"
    );
    let before = rig.must(&look);
    for _ in 0..2 {
        signal(rig.pid(), "-KILL");
        // While it is dead the card goes on as it is.
        assert!(pings(), "{}", rig.sh(&ping).1);
        rig.esw(&up);
        assert_eq!(rig.must(&look), before);
        assert!(is_named(), "it has the name that others gave it");
        assert!(pings(), "{}", rig.sh(&ping).1);
    }
    // Killed at some moment of finding it, again and again.
    signal(rig.pid(), "-KILL");
    for milliseconds in [1, 3, 6, 9, 13, 18, 25, 40] {
        let mut starting = rig.command(&[rig.esw.to_str().unwrap(), "up", "--daemon", "--config", "x.toml"]);
        let mut starting = starting.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        starting.kill().unwrap();
        starting.wait().unwrap();
    }
    starts_that_fail(&rig);
    rig.esw(&up);
    assert_eq!(rig.must(&look), before);
    let left = rig.pid();
    rig.esw(&["down", "--keep"]);
    rig.esw(&up);
    assert_ne!(rig.pid(), left);
    assert_eq!(rig.must(&look), before);
    assert!(pings(), "{}", rig.sh(&ping).1);
    rig.esw(&["down"]);
    assert!(!rig.place.folder.join("run/x.keeper").exists());
    let (_, said, _) = read(rig.run(&["sh", "-c", "ip -o link; ip netns"]));
    assert!(!said.contains(&format!("enp{bus}s0")) && !said.contains(&device), "{said}");
}

/// Starts that fail where a card has been left: for want of descriptors at one place after the other, and because of
/// another card, when this one has been taken over.
fn starts_that_fail(rig: &Rig) {
    let up = [rig.esw.to_str().unwrap(), "up", "--daemon", "--config", "x.toml"];
    for descriptors in 5.. {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let mut starting = rig.command(&[&["prlimit", &limit], &up[..]].concat());
        let mut starting = starting.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It says nothing before it is up, and its end of the pipe goes with it.
        let mut said = [0; 1];
        let is_up = starting.stdout.take().unwrap().read(&mut said).unwrap() > 0;
        starting.kill().unwrap();
        starting.wait().unwrap();
        if is_up {
            assert!(descriptors > 8, "nothing was tried");
            break;
        }
    }
    let other = format!("0000:{:02x}:00.0", rig.bus + 16);
    let config = fs::read_to_string(rig.place.folder.join("x.toml")).unwrap();
    // One that was left, one that this start makes, and one that cannot be made.
    let (made, card) = (format!("0000:{:02x}:00.0", rig.bus + 32), "kind = \"linux\"\ncard.address");
    let all = format!("{config}[cards.xa]\n{card} = \"{made}\"\n[cards.y]\n{card} = \"{other}\"\n");
    rig.place.file("y.toml", &all);
    rig.must(&format!("ip netns add esw-{other}"));
    let (code, _, complaint) = read(rig.run(&[&up[..4], &["y.toml"]].concat()));
    assert_eq!(code, 2, "{complaint}");
    assert!(complaint.contains("no card has left it"), "{complaint}");
    rig.must(&format!("ip netns del esw-{other}"));
    let names = rig.must("ip netns");
    assert!(!names.contains(&made), "{names}");
}

/// The command that runs programs without root, if a card of netdevs can be made so.
fn without_root() -> Option<Vec<String>> {
    let prefix = match rustix::process::geteuid().is_root() {
        true => vec!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        false => vec!["env"],
    };
    works(&[&prefix[..], &["unshare", "-Urnm", "ip", "link", "add", "type", "veth"]].concat())
        .then(|| prefix.into_iter().map(str::to_owned).collect())
}

/// Prints that a test is skipped; where every test must run, this is a failure.
fn skip(test: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
    println!("{test} skipped: {why}");
}

fn works(words: &[&str]) -> bool {
    Command::new(words[0]).args(&words[1..]).output().is_ok_and(|output| output.status.success())
}

#[test]
fn netdevs_in_use_survive_a_kill_as_root() {
    if !rustix::process::geteuid().is_root() || !works(&["ip", "netns"]) {
        return skip("netdevs_in_use_survive_a_kill_as_root", "it takes root and iproute2");
    }
    netdevs_in_use_survive(vec!["env".to_owned()], 93);
}

#[test]
fn netdevs_in_use_survive_a_kill_without_root() {
    let Some(prefix) = without_root() else {
        return skip("netdevs_in_use_survive_a_kill_without_root", "it takes user namespaces with veth, and iproute2");
    };
    netdevs_in_use_survive(prefix, 92);
}

/// The process that keeps a card's namespaces.
fn keeper(rig: &Rig) -> u32 {
    let keeper = UnixStream::connect(rig.place.folder.join("run/x.keeper")).unwrap();
    rustix::net::sockopt::socket_peercred(&keeper).unwrap().pid.as_raw_pid().cast_unsigned()
}

#[test]
fn a_keeper_ends_on_request_and_for_nothing_else() {
    let Some(prefix) = without_root() else {
        return skip(
            "a_keeper_ends_on_request_and_for_nothing_else",
            "it takes user namespaces with veth, and iproute2",
        );
    };
    let rig = rig(prefix, 94);
    let index = || rig.must("ip -o link show enp94s0f0v1 | cut -d: -f1");
    rig.esw(&UP);
    let (kept, before) = (keeper(&rig), index());
    let is_there = || Path::new(&format!("/proc/{kept}/ns")).exists();
    // The keeper has no descriptor left for more connections.
    let limit = |number: usize| {
        let output = rig.run(&["prlimit", "--pid", &kept.to_string(), &format!("--nofile={number}:")]);
        assert!(output.status.success(), "{output:?}");
    };
    limit((0..).find(|fd| !Path::new(&format!("/proc/{kept}/fd/{fd}")).exists()).unwrap());
    let path = rig.place.folder.join("run/x.keeper");
    let waiting: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(&path).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_there());
    limit(256);
    drop(waiting);
    // Clients that connect and close the connection without a message.
    for _ in 0..200 {
        drop(UnixStream::connect(&path).unwrap());
    }
    signal(rig.pid(), "-KILL");
    rig.esw(&UP);
    assert_eq!((keeper(&rig), index()), (kept, before));
    // One that is stopped keeps the card, and is ended when there is none any more.
    signal(kept, "-STOP");
    signal(rig.pid(), "-KILL");
    rig.esw(&UP);
    assert_eq!(keeper(&rig), kept);
    rig.esw(&["down"]);
    assert!(!path.exists());
    let until = Instant::now() + LONG;
    while is_there() {
        assert!(Instant::now() < until, "the keeper is there yet");
        std::thread::sleep(Duration::from_millis(5));
    }
    // One that is killed, and then its daemon: the card has gone, and what was agreed has not.
    rig.esw(&UP);
    rig.esw(&["dev", "eswitch", "set", "pci/0000:5e:00.0", "mode", "legacy"]);
    signal(keeper(&rig), "-KILL");
    rig.esw(&["status"]);
    signal(rig.pid(), "-KILL");
    rig.esw(&UP);
    assert!(rig.esw(&["status"]).contains("legacy, 3 VFs"));
    index();
    // One whose daemon was killed, and that another start has no use for.
    let left = keeper(&rig);
    signal(rig.pid(), "-KILL");
    rig.esw(&[&UP[..], &["--fresh"]].concat());
    assert_ne!(keeper(&rig), left);
    assert!(rig.esw(&["status"]).contains("switchdev, 3 VFs"));
    rig.esw(&["down"]);
    assert!(!path.exists());
}

#[test]
fn a_keeper_is_found_next_to_whichever_card_it_was_left_with() {
    let Some(prefix) = without_root() else {
        return skip("a_keeper_is_found_next_to", "it takes user namespaces with veth, and iproute2");
    };
    let rig = rig(prefix, 99);
    let card =
        |name: &str, bus: u8| format!("[cards.{name}]\nkind = \"linux\"\ncard.address = \"0000:{bus:02x}:00.0\"\n");
    let write = |name: &str, text: &str| drop(rig.place.file(name, text));
    let up = |config: &str| rig.esw(&["up", "--daemon", "--detach", "--config", config]);
    let kill = |card: &str| {
        let status: Value = serde_json::from_str(rig.esw(&["status", "--json", "--card", card]).trim()).unwrap();
        let pid = u32::try_from(status["pid"].as_u64().unwrap()).unwrap();
        signal(pid, "-KILL");
        // Until it has let go of its files; nobody may have asked yet what has become of it.
        let lives = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        while lives() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let x = fs::read_to_string(rig.place.folder.join("x.toml")).unwrap();
    write("y.toml", &card("y", 100));
    write("both.toml", &(x.clone() + &card("y", 100)));
    write("more.toml", &(x + &card("a", 101)));
    let index = || rig.must("ip -o link show enp99s0f0v1 | cut -d: -f1");
    up("x.toml");
    up("y.toml");
    let (kept, before) = (keeper(&rig), index());
    kill("x");
    kill("y");
    // They were left in two places, and one daemon can be in one.
    let both = [rig.esw.to_str().unwrap(), "up", "--daemon", "--config", "both.toml"];
    let (code, _, complaint) = read(rig.run(&both));
    assert_eq!(code, 2, "{complaint}");
    assert!(complaint.contains("run/x.keeper and ") && complaint.contains("run/y.keeper"), "{complaint}");
    up("y.toml");
    rig.esw(&["down", "--card", "y"]);
    // Another card comes first now.
    up("more.toml");
    assert_eq!((keeper(&rig), index()), (kept, before));
    rig.esw(&["down", "--card", "a"]);
    assert!(!rig.place.folder.join("run/x.keeper").exists());
}

#[test]
fn without_root_too_only_members_of_the_group_change_things() {
    let Some(prefix) = without_root().filter(|_| rustix::process::geteuid().is_root()) else {
        return skip("without_root_too_only_members", "it takes root, to be others, and user namespaces with veth");
    };
    let rig = rig(prefix, 97);
    // The daemon's own group, which is root's where it is, and one that it cannot tell from any other.
    for (group, members) in [(65_534, true), (65_533, false)] {
        let config = fs::read_to_string(rig.place.folder.join("x.toml")).unwrap();
        let open = "[cards.x]\nsocket_mode = \"0666\"\n".to_owned();
        // Whoever is not in it cannot give the socket to a group.
        let config = config.replace("[cards.x]\n", &format!("{open}socket_group = {group}\n"));
        rig.place.file("group.toml", &config);
        let (code, _, complaint) =
            read(rig.run(&[rig.esw.to_str().unwrap(), "up", "--daemon", "--detach", "--config", "group.toml"]));
        if !members {
            assert_ne!(code, 0, "{complaint}");
            continue;
        }
        assert_eq!(code, 0, "{complaint}");
        let socket = rig.place.folder.join("run/x.sock").display().to_string();
        let set = |group: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65532", &format!("--regid={group}"), "--clear-groups"]).arg(&rig.esw);
            command.args(["dev", "eswitch", "set", "--socket", &socket, "pci/0000:61:00.0", "mode", "switchdev"]);
            read(command.output().unwrap())
        };
        let (code, _, complaint) = set("65534");
        assert_eq!(code, 0, "a member: {complaint}");
        let (code, _, complaint) = set("65531");
        assert_eq!(code, 1, "another: {complaint}");
        assert!(complaint.contains("Operation not permitted"), "{complaint}");
        rig.esw(&["down"]);
    }
}

#[test]
fn a_lab_that_is_open_is_in_no_daemons_way() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !works(&["ip", "netns"]) {
        return skip("a_lab_that_is_open_is_in_no_daemons_way", "it takes root, /dev/fuse and iproute2");
    }
    let rig = rig(vec!["env".to_owned()], 95);
    rig.esw(&UP);
    let index = || rig.must("ip -o link show enp95s0f0v1 | cut -d: -f1");
    let before = index();
    let mut lab = rig.command(&[rig.esw.to_str().unwrap(), "exec", "--", "sh", "-c", "echo in; exec sleep 1000"]);
    let mut lab = lab.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut said = [0; 2];
    lab.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    // Killed and started again, ended and started again, and ended for good.
    signal(rig.pid(), "-KILL");
    rig.esw(&UP);
    assert_eq!(index(), before);
    rig.esw(&["down", "--keep"]);
    rig.esw(&UP);
    assert_eq!(index(), before);
    rig.esw(&["down"]);
    rig.esw(&UP);
    rig.esw(&["down"]);
    let (_, said, _) = read(rig.run(&["sh", "-c", "ip -o link; ip netns"]));
    assert!(!said.contains("enp95s0") && !said.contains("0000:5f:00.0"), "{said}");
    assert!(lab.try_wait().unwrap().is_none(), "the lab's program runs on");
    lab.kill().unwrap();
    lab.wait().unwrap();
}

#[test]
fn one_card_of_netdevs_has_one_daemon_even_with_another_socket_and_state() {
    if !rustix::process::geteuid().is_root() || !works(&["ip", "netns"]) {
        return skip("one_card_of_netdevs_has_one_daemon", "it takes root and iproute2");
    }
    let rig = rig(vec!["env".to_owned()], 96);
    rig.esw(&UP);
    let index = || rig.must("ip -o link show enp96s0f0v1 | cut -d: -f1");
    let before = index();
    let folder = rig.place.folder.display().to_string();
    let config = fs::read_to_string(rig.place.folder.join("x.toml")).unwrap();
    let other = format!("state_dir = \"{folder}/other\"\n{}", config.replace("cards.x", "cards.z"));
    rig.place.file("z.toml", &other);
    for fresh in [&[][..], &["--fresh"]] {
        let up = [rig.esw.to_str().unwrap(), "up", "--daemon", "--config", "z.toml"];
        let (code, _, complaint) = read(rig.run(&[&up[..], fresh].concat()));
        assert_eq!(code, 2, "{complaint}");
        assert!(complaint.contains(&format!("process {} already has a card", rig.pid())), "{complaint}");
        assert_eq!(index(), before);
    }
    rig.esw(&["down"]);
}
