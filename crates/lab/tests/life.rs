//! The life of a lab: it begins and ends with its program.

mod common;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Place, text};

#[test]
fn the_exit_status_is_the_programs() {
    let Some(place) = Place::new() else { return };
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(place.run(&["sh", "-c", script]).status.code(), Some(expected), "{script}");
    }
    let output = place.run(&["/no/such/program"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(printed.contains("/no/such/program: No such file"), "{printed}");
}

#[test]
fn a_lab_in_a_lab_is_refused_clearly() {
    let Some(place) = Place::new() else { return };
    let lab = common::lab_program();
    let output = place.run(&[lab.to_str().unwrap(), common::card().to_str().unwrap(), "--", "true"]);
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && printed.contains("inside a lab already"), "{printed}");
}

#[test]
fn nothing_is_left_behind() {
    let Some(place) = Place::new() else { return };
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = mounts();
    place.shell("mount -t tmpfs none /mnt && ip link show >/dev/null && mount | grep -q /mnt");
    // Only this mount is looked for, as other tests make and remove mounts meanwhile.
    let mine = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mine.lines().any(|line| line.split(' ').nth(4) == Some("/mnt")), "{before}: {mine}");
    // No process, socket or mount keeps the namespace: it disappears with its name.
    let pids = Command::new("ip").args(["netns", "pids", &place.name]).output().unwrap();
    assert_eq!(text(&pids), "");
}

#[test]
fn a_request_to_end_reaches_the_program() {
    let Some(place) = Place::new() else { return };
    let script = "trap 'echo ended; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut lab = place.command(&[], &["sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut printed = std::io::BufReader::new(lab.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut printed, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = rustix::process::Pid::from_child(&lab);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(lab.wait().unwrap().code(), Some(3));
}

#[test]
fn the_card_loads_and_unloads_its_modules() {
    let Some(place) = Place::new() else { return };
    let script = r#"
import ctypes, errno, os, platform, tempfile
libc = ctypes.CDLL(None, use_errno=True)
init, remove, finit = (175, 176, 313) if platform.machine() == "x86_64" else (105, 106, 273)
def call(*words):
    return "done" if libc.syscall(*words) == 0 else errno.errorcode[ctypes.get_errno()]
print(call(remove, b"mlx5_ib", 0), call(remove, b"mlx5_ib", 0), call(remove, b"no_such", 0) != "done")
image = b"\x7fELF eswitch-module=mlx5_ib\0"
print(call(init, image, len(image), b""))
with tempfile.TemporaryFile() as file:
    file.write(image); file.flush()
    print(call(finit, file.fileno(), b"", 0))
os.setresuid(65534, 65534, 65534)
print(call(remove, b"mlx5_ib", 0))
"#;
    if !common::has("python3") {
        return eprintln!("skipped: missing python3");
    }
    assert_eq!(place.text(&["python3", "-c", script]), "done ENOENT True\ndone\ndone\nEPERM\n");
    let remove = "modprobe -r mlx5_ib";
    assert_eq!(place.commands(), [remove, remove, "insmod mlx5_ib", "insmod mlx5_ib"]);
}

/// How long anything may take before a test gives up.
const LONG: Duration = Duration::from_secs(60);

/// Waits until no process is in the namespace any more.
fn wait_until_empty(place: &Place) {
    let end = Instant::now() + LONG;
    loop {
        let pids = text(&Command::new("ip").args(["netns", "pids", &place.name]).output().unwrap());
        if pids.is_empty() {
            return;
        }
        let line = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let left: Vec<_> = pids.lines().map(line).collect();
        assert!(Instant::now() < end, "{left:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_lab_that_is_killed_at_any_moment_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    let rounds: u32 = std::env::var("LAB_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let began = Instant::now();
    assert!(place.run(&["true"]).status.success());
    let takes = began.elapsed();
    // Once it is the program, it ignores the signals that can be ignored.
    let program = ["sh", "-c", "trap '' TERM HUP; exec sleep 1000"];
    for round in 0..rounds {
        let mut lab = place.command(&[], &program).stdin(Stdio::null()).spawn().unwrap();
        thread::sleep(takes * (round * 37 % 100) / 80);
        lab.kill().unwrap();
        lab.wait().unwrap();
        wait_until_empty(&place);
    }
}

#[test]
fn a_process_in_the_background_has_a_lab_until_it_ends() {
    let Some(place) = Place::new() else { return };
    let folder = std::env::temp_dir().join(format!("{}-left", place.name));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.to_str().unwrap();
    let script = format!(
        "(while [ ! -e {path}/go ]; do sleep 0.01; done
        ip -d link show labp0 > {path}/printed 2>&1; touch {path}/done) < /dev/null > /dev/null 2>&1 &
        exit 4"
    );
    assert_eq!(place.run(&["sh", "-c", &script]).status.code(), Some(4));
    std::fs::write(folder.join("go"), "").unwrap();
    let end = Instant::now() + LONG;
    while !folder.join("done").exists() {
        assert!(Instant::now() < end, "it is not done");
        thread::sleep(Duration::from_millis(5));
    }
    let printed = std::fs::read_to_string(folder.join("printed")).unwrap();
    assert!(printed.contains("parentdev 0000:08:00.0"), "{printed}");
    std::fs::remove_dir_all(&folder).unwrap();
    wait_until_empty(&place);
}
