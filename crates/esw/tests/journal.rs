//! Whatever a daemon has answered as done is on the disk, whatever happens to its disks, its log and its files.

mod steps;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use devlink::Client;
use steps::perform;

/// How long anything may take before a test gives up. Nothing is asserted of how long it takes.
const LONG: Duration = Duration::from_secs(120);

const PF: &str = "pci/0000:08:00.0";

/// A folder with room for a daemon's socket, its state and its log, and the daemon that was started last.
struct Place {
    folder: PathBuf,
    /// What a command is run by, to be where a disk of the test's own is.
    by: Vec<String>,
    daemon: Option<Child>,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("esw-disk-{}-{n}", std::process::id()));
        fs::create_dir_all(folder.join("state")).unwrap();
        fs::create_dir_all(folder.join("small")).unwrap();
        fs::write(folder.join("x.toml"), "[cards.x.card]\npfs = 2\n").unwrap();
        Self { folder, by: Vec::new(), daemon: None }
    }

    fn command(&self, words: &[&str]) -> Command {
        let all: Vec<&str> = self.by.iter().map(String::as_str).chain(words.iter().copied()).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).env_remove("ESW_LOG").env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1");
        command.env("RUNTIME_DIRECTORY", self.folder.join("run")).env("STATE_DIRECTORY", self.folder.join("state"));
        command.env("FOLDER", &self.folder).env("ESW", env!("CARGO_BIN_EXE_esw"));
        command
    }

    fn sh(&self, script: &str) -> bool {
        self.command(&["sh", "-c", script]).status().unwrap().success()
    }

    /// Starts a daemon by a shell command in which `$UP` is what starts it, and waits until it is ready, or has ended:
    /// then what it complained of, if that is for us to read.
    fn start_by(&mut self, script: &str, stderr: Stdio) -> Result<(), String> {
        let path = self.folder.join("notify");
        let _ = fs::remove_file(&path);
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut command = self.command(&["sh", "-c", script]);
        let up = format!("{} up --daemon --config {}/x.toml", env!("CARGO_BIN_EXE_esw"), self.folder.display());
        command.env("UP", up).env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(stderr);
        let mut daemon = command.spawn().unwrap();
        let until = Instant::now() + LONG;
        let mut text = [0; 4096];
        loop {
            match told.recv(&mut text) {
                Ok(length) if String::from_utf8_lossy(&text[..length]).contains("READY=1") => {
                    self.daemon = Some(daemon);
                    return Ok(());
                }
                _ if daemon.try_wait().unwrap().is_some() => {
                    let output = daemon.wait_with_output().unwrap();
                    return Err(String::from_utf8_lossy(&output.stderr).into_owned());
                }
                _ => assert!(Instant::now() < until, "the daemon is not ready"),
            }
        }
    }

    fn start(&mut self, options: &str) -> Result<(), String> {
        self.start_by(&format!("exec $UP {options}"), Stdio::piped())
    }

    fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.folder.join("run/x.sock")).unwrap();
        let limit = Some(LONG);
        rustix::net::sockopt::set_socket_timeout(client.socket(), rustix::net::sockopt::Timeout::Recv, limit).unwrap();
        client
    }

    fn state(&self, name: &str) -> PathBuf {
        self.folder.join("state").join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The first PF's first VF, and its representor.
fn prepare(client: &mut Client) {
    perform(client, &format!("devlink dev eswitch set {PF} mode switchdev")).unwrap();
    perform(client, "echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs").unwrap();
}

fn mac(n: u32) -> String {
    format!("00:11:22:33:{:02x}:{:02x}", n >> 8 & 0xff, n & 0xff)
}

fn set_mac(client: &mut Client, n: u32) -> Result<(), String> {
    perform(client, &format!("devlink port function set {PF}/1 hw_addr {}", mac(n))).map(drop)
}

fn has_mac(client: &mut Client, n: u32) -> bool {
    perform(client, &format!("devlink port show {PF}/1")).is_ok_and(|shown| shown.contains(&mac(n)))
}

/// A small disk at `small` in a place's folder, which only programs run at that place see. It is removed when this is
/// dropped.
struct Disk {
    keeper: Child,
}

impl Disk {
    /// None, if there can be none here; it says so.
    fn at(place: &mut Place, test: &str) -> Option<Self> {
        let namespaces: &[&str] = match rustix::process::geteuid().is_root() {
            true => &["unshare", "--mount", "--propagation", "private"],
            false => &["unshare", "-Urm", "--propagation", "private"],
        };
        let mount = "mount -t tmpfs -o size=1m,mode=755 small \"$FOLDER/small\" && echo ready && exec cat";
        let mut command = place.command(&[namespaces, &["sh", "-c", mount]].concat());
        let mut keeper = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        let disk = Self { keeper };
        if said.trim() != "ready" {
            let why = "it takes root or user namespaces, and unshare, nsenter and tmpfs";
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{test}: {why}");
            println!("{test} skipped: {why}");
            return None;
        }
        let pid = disk.keeper.id().to_string();
        let enter = ["nsenter", "-t", &pid, "-m"];
        let user: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["-U", "--preserve-credentials"] };
        place.by = [&enter[..], user].concat().into_iter().map(str::to_owned).collect();
        Some(disk)
    }

    fn fill(&self, place: &Place) {
        assert!(!place.sh("cat /dev/zero > \"$FOLDER/small/filling\" 2> /dev/null"), "it is full when it ends");
    }

    fn empty(&self, place: &Place) {
        assert!(place.sh("rm \"$FOLDER/small/filling\""));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[test]
fn on_a_full_disk_what_was_answered_stays_and_what_cannot_be_stored_is_said_to_be_so() {
    let mut place = Place::new();
    let Some(disk) = Disk::at(&mut place, "on_a_full_disk") else { return };
    // Its log is there as well.
    let up = "STATE_DIRECTORY=$FOLDER/small exec $UP 2>> $FOLDER/small/esw.log";
    place.start_by(up, Stdio::null()).unwrap();
    let mut client = place.client();
    prepare(&mut client);
    set_mac(&mut client, 1).unwrap();
    disk.fill(&place);
    // Where something was before there is room.
    set_mac(&mut client, 2).unwrap();
    place.kill();
    place.start_by(up, Stdio::null()).unwrap();
    client = place.client();
    assert!(has_mac(&mut client, 2), "what was answered, though the disk was full then and now");
    let large = |n: usize| format!("echo {} > /sys/bus/pci/devices/0000:08:00.1/driver_override", "x".repeat(n));
    for n in [20_000, 20_001] {
        let error = perform(&mut client, &large(n)).unwrap_err();
        assert!(error.contains("may not know of it") && error.contains("No space left"), "{error}");
        let error = set_mac(&mut client, 3).unwrap_err();
        assert!(error.contains("No space left"), "what is stored is stored as a whole: {error}");
    }
    let look = format!("devlink dev eswitch show {PF}");
    assert!(perform(&mut client, &look).unwrap().contains("switchdev"), "to look is none of the disk's business");
    // There is room again: it goes on as if nothing had been.
    disk.empty(&place);
    set_mac(&mut client, 4).unwrap();
    place.kill();
    place.start_by(up, Stdio::null()).unwrap();
    client = place.client();
    assert!(has_mac(&mut client, 4), "what was answered");
    place.kill();
}

#[test]
fn a_full_disk_under_the_log_holds_up_no_command() {
    let mut place = Place::new();
    let Some(disk) = Disk::at(&mut place, "a_full_disk_under_the_log") else { return };
    place.start_by("exec $UP 2>> $FOLDER/small/esw.log", Stdio::null()).unwrap();
    let mut client = place.client();
    prepare(&mut client);
    disk.fill(&place);
    for n in 1..80 {
        set_mac(&mut client, n).unwrap();
    }
    // What is logged by others than those who answer, too; and new connections have their places.
    perform(&mut client, "modprobe mlx5_ib").unwrap();
    let mut others: Vec<Client> = (0..8).map(|_| place.client()).collect();
    others.iter_mut().for_each(|other| assert!(has_mac(other, 79)));
    disk.empty(&place);
    set_mac(&mut client, 80).unwrap();
    assert!(place.sh("grep -q 'lines of the log are missing' \"$FOLDER/small/esw.log\""));
    assert!(place.sh(&format!("grep -q 'carried out.*{}' \"$FOLDER/small/esw.log\"", mac(80))));
    place.kill();
    place.start("").unwrap();
    assert!(has_mac(&mut place.client(), 80));
}

#[test]
fn a_log_that_is_not_read_holds_up_no_command() {
    let mut place = Place::new();
    place.start("").unwrap();
    let mut client = place.client();
    prepare(&mut client);
    // More than the pipe takes: it is read by nobody.
    for _ in 0..600 {
        let refused = perform(&mut client, &format!("devlink port del {PF}/65535")).unwrap_err();
        assert!(!refused.is_empty());
    }
    set_mac(&mut client, 1).unwrap();
    // And then its other end is closed.
    drop(place.daemon.as_mut().and_then(|daemon| daemon.stderr.take()));
    for n in 2..10 {
        set_mac(&mut client, n).unwrap();
    }
    let mut other = place.client();
    assert!(has_mac(&mut other, 9));
    place.kill();
    place.start("").unwrap();
    assert!(has_mac(&mut place.client(), 9));
}

#[test]
fn a_log_that_may_not_grow_does_not_end_the_daemon() {
    let mut place = Place::new();
    // 64 KiB: state has room, and the log has for some hundreds of lines. Past it there is SIGXFSZ.
    place.start_by("ulimit -f 128; exec $UP 2>> $FOLDER/log", Stdio::null()).unwrap();
    let mut client = place.client();
    prepare(&mut client);
    for _ in 0..600 {
        perform(&mut client, &format!("devlink port del {PF}/65535")).unwrap_err();
    }
    assert_eq!(fs::metadata(place.folder.join("log")).unwrap().len(), 64 << 10);
    set_mac(&mut client, 1).unwrap();
    let large = format!("echo {} > /sys/bus/pci/devices/0000:08:00.1/driver_override", "x".repeat(40_000));
    let error = perform(&mut client, &large).unwrap_err();
    assert!(error.contains("may not know of it") && error.contains("File too large"), "{error}");
    place.kill();
    place.start("").unwrap();
    assert!(has_mac(&mut place.client(), 1));
}

#[test]
fn the_log_has_a_command_with_all_its_options_and_the_reason_of_a_refusal() {
    let mut place = Place::new();
    let log = fs::File::create(place.folder.join("log")).unwrap();
    place.start_by("exec $UP", Stdio::from(log)).unwrap();
    let run = |words: &[&str]| place.command(&[&[env!("CARGO_BIN_EXE_esw")], words].concat()).status().unwrap();
    assert!(run(&["dev", "eswitch", "set", PF, "mode", "switchdev", "encap-mode", "none"]).success());
    assert!(!run(&["dev", "eswitch", "set", "pci/0000:08:00.3", "mode", "switchdev"]).success());
    let log = fs::read_to_string(place.folder.join("log")).unwrap();
    let set = "command=\"devlink dev eswitch set pci/0000:08:00.0 mode switchdev encap-mode none\"";
    assert!(log.lines().any(|line| line.contains("carried out") && line.contains(set)), "{log}");
    let refused = log.lines().find(|line| line.contains("refused")).unwrap_or_default();
    assert!(refused.contains("mode switchdev") && refused.contains("why=\"No such device\""), "{log}");
}

#[test]
fn a_command_to_one_pf_is_answered_while_another_is_busy() {
    let mut place = Place::new();
    place.start("").unwrap();
    let mut client = place.client();
    prepare(&mut client);
    // Longer than this test takes: the daemon is killed meanwhile.
    perform(&mut client, "delay fdb pf 1 for 600s").unwrap();
    let (ended, has_ended) = channel();
    let mut slow = place.client();
    let waiting = thread::spawn(move || {
        let _ = perform(&mut slow, "devlink dev eswitch set pci/0000:08:00.1 mode switchdev");
        let _ = ended.send(());
    });
    // Until it is under way: what looks at that PF waits, and this client is not waited for.
    let mut onlooker = place.client();
    let patience = Some(Duration::from_millis(200));
    rustix::net::sockopt::set_socket_timeout(onlooker.socket(), rustix::net::sockopt::Timeout::Recv, patience).unwrap();
    let until = Instant::now() + LONG;
    while perform(&mut onlooker, "devlink port show pci/0000:08:00.1/131071").is_ok() {
        assert!(Instant::now() < until, "it does not begin");
    }
    for n in 1..4 {
        set_mac(&mut client, n).unwrap();
    }
    perform(&mut client, "modprobe mlx5_ib").unwrap();
    assert!(has_ended.try_recv().is_err(), "the other command is still being carried out");
    place.kill();
    waiting.join().unwrap();
    place.start("").unwrap();
    let mut client = place.client();
    assert!(has_mac(&mut client, 3));
    let shown = perform(&mut client, "devlink dev eswitch show pci/0000:08:00.1").unwrap();
    assert!(shown.contains("mode legacy"), "{shown}");
}

#[test]
fn the_state_of_the_version_before_is_taken_over() {
    let mut place = Place::new();
    let database = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-1.redb");
    fs::copy(&database, place.state("x.redb")).unwrap();
    for round in ["converted", "kept"] {
        place.start("").unwrap();
        let mut client = place.client();
        let first = perform(&mut client, &format!("devlink dev eswitch show {PF}")).unwrap();
        assert!(first.contains("mode switchdev") && first.contains("encap-mode none"), "{round}: {first}");
        let ports = perform(&mut client, "devlink port show").unwrap();
        for expected in ["vfnum 2", "00:11:22:33:44:55", "sfnum 88", "00:11:22:33:44:66 roce enable state active"] {
            assert!(ports.contains(expected), "{round}: {ports}");
        }
        place.kill();
    }
    assert_eq!(fs::read(place.state("x.aside-1")).unwrap(), fs::read(&database).unwrap());
    assert!(!place.state("x.redb").exists());
}

/// Damage to a file's content.
type Damage = fn(&mut Vec<u8>);

/// Where the second place of a file begins.
const PLACE: usize = 16 << 10;

/// A kind of damage to a file, and whether a start is refused if both copies have it.
const DAMAGES: &[(&str, bool, Damage)] = &[
    ("of length 0", true, |bytes| bytes.clear()),
    ("cut in half", true, |bytes| bytes.truncate(bytes.len() / 2)),
    ("lengthened", false, |bytes| bytes.extend([0; 4096])),
    ("a bit flipped that means nothing", false, |bytes| bytes[PLACE - 1] ^= 1),
    ("a bit flipped in its lines", true, |bytes| [20, PLACE + 20].iter().for_each(|at| bytes[*at] ^= 1)),
    ("a bit flipped in its JSON", true, |bytes| [200, PLACE + 200].iter().for_each(|at| bytes[*at] ^= 4)),
    ("a hole", true, |bytes| bytes[100..PLACE + 300].fill(0)),
    ("pages swapped", true, |bytes| {
        let (a, b) = bytes.split_at_mut(PLACE);
        a[..4096].swap_with_slice(&mut b[..4096]);
    }),
    ("another file's content", true, |bytes| *bytes = b"a diary\n".repeat(99)),
];

#[test]
fn damaged_state_is_recovered_or_refused_by_the_daemon_and_fresh_begins_anew() {
    let mut place = Place::new();
    place.start("").unwrap();
    let mut client = place.client();
    prepare(&mut client);
    for n in 1..4 {
        set_mac(&mut client, n).unwrap();
    }
    place.kill();
    let names = ["x.state", "x.state-copy"];
    let whole = names.map(|name| fs::read(place.state(name)).unwrap());
    let lock = fs::read(place.state("x.lock")).unwrap();
    for (what, is_refused, damage) in DAMAGES {
        for hit in [&[0][..], &[1], &[0, 1]] {
            fs::remove_dir_all(place.folder.join("state")).unwrap();
            fs::create_dir(place.folder.join("state")).unwrap();
            fs::write(place.state("x.lock"), &lock).unwrap();
            let mut files = whole.clone();
            hit.iter().for_each(|at| damage(&mut files[*at]));
            for (name, bytes) in names.iter().zip(&files) {
                fs::write(place.state(name), bytes).unwrap();
            }
            let started = place.start("");
            if hit.len() == 1 || !is_refused {
                started.unwrap_or_else(|complaint| panic!("{what}: {complaint}"));
                assert!(has_mac(&mut place.client(), 3), "{what}: what was answered last");
                place.kill();
                continue;
            }
            let complaint = started.expect_err(what);
            assert!(complaint.contains("--fresh") && !complaint.contains("panicked"), "{what}: {complaint}");
            for (name, bytes) in names.iter().zip(&files) {
                assert_eq!(fs::read(place.state(name)).unwrap(), *bytes, "{what}: it is let be");
            }
            place.start("--fresh").unwrap_or_else(|complaint| panic!("{what}: --fresh: {complaint}"));
            let shown = perform(&mut place.client(), &format!("devlink dev eswitch show {PF}")).unwrap();
            assert!(shown.contains("mode legacy"), "{what}: {shown}");
            place.kill();
            assert_eq!(fs::read(place.state("x.aside-1")).unwrap(), files[0], "{what}: it is aside");
        }
    }
}
