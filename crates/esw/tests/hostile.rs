//! Daemons and labs with hostile clients, and on systems where something is missing.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use devlink::numbers::command;
use devlink::{Client, ClientError, DEVLINK, ESWITCH, eswitch_family, view};
use netlink::{Flags, Header};
use rustix::net::{SendFlags, send};

/// How long anything may take before a test gives up.
const LONG: Duration = Duration::from_secs(120);

/// A folder with the configuration of a daemon; `card` is its `[cards.a]`.
fn configured(card: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("esw-hostile-{}-{n}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (state, socket) = (folder.display(), folder.join("a.sock"));
    let text = format!("state_dir = \"{state}\"\n[cards.a]\nsocket = \"{}\"\n{card}", socket.display());
    fs::write(folder.join("config.toml"), text).unwrap();
    folder
}

/// A daemon with one card, and its folder.
struct Place {
    folder: PathBuf,
    daemon: Child,
}

impl Place {
    /// `prefix` runs the daemon, in the words of a shell; `card` is the configuration's `[cards.a]`.
    fn new(prefix: &str, card: &str) -> Self {
        let folder = configured(card);
        let told = UnixDatagram::bind(folder.join("notify")).unwrap();
        told.set_read_timeout(Some(LONG)).unwrap();
        let script = format!("{prefix} \"$0\" up --daemon --config \"$1\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_esw")]).arg(folder.join("config.toml"));
        command.env("NOTIFY_SOCKET", folder.join("notify")).env_remove("ESW_LOG").stdout(Stdio::null());
        let place = Self { folder, daemon: command.stderr(Stdio::null()).spawn().unwrap() };
        let mut text = [0; 4096];
        loop {
            let length = match told.recv(&mut text) {
                Ok(length) => length,
                // With a limit of time it is not gone on with after a signal.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => panic!("the daemon says nothing: {error}"),
            };
            if String::from_utf8_lossy(&text[..length]).contains("READY=1") {
                return place;
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("a.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    /// All there is of the card.
    fn view(&self) -> view::Card {
        let pieces = self.client().dump(ESWITCH, eswitch_family::VIEW, |_| {}).unwrap();
        let piece =
            |piece: &devlink::Answered| netlink::attributes(&piece.attributes).flatten().next().unwrap().value.to_vec();
        serde_json::from_slice(&pieces.iter().flat_map(piece).collect::<Vec<u8>>()).unwrap()
    }

    /// What the daemon has in memory, in KiB.
    fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// A program in a lab.
    fn lab(&self, program: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
        command.arg("exec").arg("--socket").arg(self.socket()).arg("--").args(program);
        command.output().unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut down = Command::new(env!("CARGO_BIN_EXE_esw"));
        let _ = down.arg("down").arg("--socket").arg(self.socket()).output();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Prints what is missing; under CI this is a failure.
fn skip(what: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "missing: {what}");
    eprintln!("skipped: missing {what}");
}

/// Whether a command of a shell does well here.
fn can(script: &str) -> bool {
    Command::new("sh").args(["-c", script]).output().is_ok_and(|output| output.status.success())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn devices(client: &mut Client) -> Result<usize, ClientError> {
    client.dump(DEVLINK, command::GET, |_| {}).map(|devices| devices.len())
}

#[test]
fn a_low_limit_of_descriptors_keeps_nobody_waiting() {
    // The soft limit is raised, and what the hard one leaves room for is let in.
    for (limit, connections, answered) in [("ulimit -Sn 64", 600, 600), ("ulimit -n 256", 300, 100)] {
        let place = Place::new(&format!("{limit} && exec"), "");
        let before = place.view();
        let mut clients: Vec<Client> = (0..connections).map(|_| place.client()).collect();
        let served = clients.iter_mut().map(|client| devices(client).is_ok()).filter(|served| *served).count();
        assert!(served >= answered, "{limit}: {served} of {connections}");
        drop(clients);
        // Each is forgotten when its end is seen.
        let until = std::time::Instant::now() + LONG;
        while devices(&mut place.client()).is_err() {
            assert!(std::time::Instant::now() < until, "room is never given back");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(before, place.view());
    }
}

#[test]
fn a_million_requests_whose_answers_are_not_read_cost_the_daemon_no_memory() {
    let place = Place::new("exec", "card.vfs = 8\n");
    let before = place.view();
    let mut other = place.client();
    devices(&mut other).unwrap();
    let had = place.resident();
    let header = Header::new(DEVLINK, Flags::REQUEST | Flags::DUMP, 1, 0);
    let request = netlink::message(header, |to| {
        to.genl(command::PORT_GET, 1);
    });
    let request = request.unwrap();
    let many = request.repeat(3_000);
    let deaf: Vec<Client> = (0..10).map(|_| place.client()).collect();
    for n in 0..1_000_000 {
        let bytes = if n % 2 == 0 { &many[..] } else { &request[..] };
        let _ = send(deaf[n % deaf.len()].socket(), bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        if n % 100_000 == 0 {
            assert_eq!(devices(&mut other).unwrap(), 9);
        }
    }
    let grown = place.resident().saturating_sub(had);
    assert!(grown < 64 * 1024, "{grown} KiB more");
    drop(deaf);
    assert_eq!(before, place.view());
}

/// Nested input once used up the daemon's stack, which ended it.
#[test]
fn a_command_that_is_nested_deep_is_refused_and_the_daemon_lives() {
    let place = Place::new("exec", "");
    let before = place.view();
    let refused = place.client().ask(ESWITCH, eswitch_family::PERFORM, |to| {
        to.put(eswitch_family::COMMAND, &[b'['; 60_000]).u32(eswitch_family::VERSION, control::VERSION);
    });
    assert!(matches!(refused, Err(ClientError::Refused(refusal)) if refusal.errno == netlink::Errno::INVAL));
    assert_eq!(before, place.view());
}

/// A namespace of the test's own, in which a daemon and a lab are root: as root, with real netdevs.
const OWN: &str = "exec unshare --net --mount sh -c 'mount -t tmpfs none /run && mount -t sysfs none /sys && ip link set lo up && exec \"$0\" \"$@\"'";

#[test]
fn garbage_to_every_file_of_a_real_card_changes_nothing() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !can("unshare --net --mount true") {
        return skip("root, /dev/fuse");
    }
    let card = "kind = \"linux\"\ncard.address = \"0000:0e:00.0\"\ncard.vfs = 2\ncard.mode = \"switchdev\"\n";
    let place = Place::new(OWN, &format!("{card}card.modules = [\"mlx5_ib\"]\n"));
    let before = place.view();
    // Beside the kernel's own files of netdevs, and the description of an RDMA device, which is any text. A file that takes what is nothing to it must be as before.
    let script = r#"
        files=$(find /sys/devices/pci0000:0e /sys/bus/pci/drivers/mlx5_core /sys/bus/auxiliary/drivers/mlx5* \
            /sys/module/mlx5* -perm /222 -type f ! -path '*/net/*/*' ! -name node_desc 2>/dev/null)
        long=$(printf '%05000d' 7)
        for file in $files; do
            echo "file $file"
            for garbage in 'x;y' '$(reboot)' '\377\376' ' ' '$' '/' '../x' "$long"; do
                { printf "$garbage" > "$file"; } 2>/dev/null && echo "took $garbage: $file"
            done
        done
        devlink dev show >/dev/null 2>&1; ip link show >/dev/null 2>&1; true"#;
    let output = place.lab(&["sh", "-c", script]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.lines().filter(|line| line.starts_with("file ")).count() > 15, "{text}");
    let took: Vec<&str> = text.lines().filter(|line| line.starts_with("took ")).collect();
    assert!(took.is_empty(), "{took:#?}");
    assert_eq!(before, place.view());
}

#[test]
fn a_lab_in_a_lab_is_refused_with_the_reason() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !can("unshare --net --mount true") {
        return skip("root, /dev/fuse");
    }
    let place = Place::new("exec", "");
    let socket = place.socket().display().to_string();
    let output = place.lab(&[env!("CARGO_BIN_EXE_esw"), "exec", "--socket", &socket, "--", "true"]);
    let text = said(&output);
    assert!(!output.status.success() && text.contains("inside a lab already"), "{text}");
}

#[test]
fn a_daemon_in_a_lab_is_refused_with_the_reason() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() || !can("unshare --net --mount true") {
        return skip("root, /dev/fuse");
    }
    let (place, other) = (Place::new("exec", ""), configured(""));
    let config = other.join("config.toml").display().to_string();
    let run = format!("RUNTIME_DIRECTORY={}", other.join("run").display());
    for how in [&["up", "--daemon", "--config", &config][..], &["up", "--daemon", "--detach", "--config", &config]] {
        // Whatever the environment says.
        let output = place.lab(&[&["timeout", "60", "env", "-i", &run, env!("CARGO_BIN_EXE_esw")], how].concat());
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("this is inside a lab"), "{text}");
    }
    assert!(!other.join("a.sock").exists());
    fs::remove_dir_all(other).unwrap();
}

#[test]
fn what_a_lab_lacks_is_named() {
    if !can("unshare --map-root-user --mount mount -t tmpfs none /dev") {
        return skip("user namespaces");
    }
    // Without the device; and without the power to make mount namespaces, and without that to get it.
    let no_device = "mount -t tmpfs none /dev";
    let no_power = "echo 0 > /proc/sys/user/max_user_namespaces; set -- setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$@\"";
    for (first, expected) in [
        (no_device, "there is no /dev/fuse: No such file or directory (os error 2); load the kernel module `fuse`"),
        (no_power, "a lab needs root, or a user namespace"),
    ] {
        if !Path::new("/dev/fuse").exists() && first == no_power {
            skip("/dev/fuse");
            continue;
        }
        // The daemon is in the same user namespace: a process in another may not enter its own. It is up when it
        // says so, which is later than when its socket is there.
        let script = format!(
            r#""$0" up --daemon --config "$1/config.toml" >"$1/log" 2>&1 &
            until grep -q "a: up, " "$1/log"; do sleep 0.02; done
            set -- "$0" exec --socket "$1/a.sock" -- true
            {first}
            "$@"; status=$?
            kill $!; wait; exit $status"#
        );
        let folder = configured("");
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_esw")]).arg(&folder);
        let output = command.output().unwrap();
        let text = said(&output);
        assert!(!output.status.success() && text.contains(expected), "{text}");
        fs::remove_dir_all(folder).unwrap();
    }
}
