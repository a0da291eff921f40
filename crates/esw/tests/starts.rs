//! Daemons that start at the same moment, with the same card, and are ended and killed meanwhile: whatever happens,
//! there is one daemon with its socket, or neither.
//!
//! `ESW_TRIALS` is the number of trials; the default is 40.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devlink::Client;
use devlink::ESWITCH;
use devlink::eswitch_family::STATUS;
use rustix::net::sockopt::socket_peercred;

/// How long anything may take before a test gives up. Nothing is asserted of how long it takes.
const LONG: Duration = Duration::from_secs(120);

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        // xorshift64*, by Sebastiano Vigna.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}

/// A daemon that was started.
struct Started {
    child: Child,
    told: UnixDatagram,
    path: PathBuf,
    /// It has said that it is.
    up: bool,
    killed: bool,
}

/// The outcome of one start.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Up,
    Ended(Option<i32>, String),
}

impl Started {
    fn new(folder: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = folder.join(format!("notify-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let told = UnixDatagram::bind(&path).unwrap();
        told.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut command = esw(folder, &["up", "--daemon", "--log", "error"]);
        command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), told, path, up: false, killed: false }
    }

    fn kill(&mut self) {
        self.killed = true;
        self.child.kill().unwrap();
    }

    /// Waits until it is up, or has ended.
    fn outcome(&mut self) -> Outcome {
        if self.killed {
            self.child.wait().unwrap();
        }
        let until = Instant::now() + LONG;
        let mut text = [0; 4096];
        while Instant::now() < until {
            if let Some(ended) = self.ended() {
                return ended;
            }
            if self.up {
                return Outcome::Up;
            }
            match self.told.recv(&mut text) {
                Ok(length) if String::from_utf8_lossy(&text[..length]).contains("READY=1") => self.up = true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("process {} is neither up nor has it ended", self.child.id());
    }

    fn ended(&mut self) -> Option<Outcome> {
        let status = self.child.try_wait().unwrap()?;
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut said).unwrap();
        }
        Some(Outcome::Ended(status.code(), said))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.path);
    }
}

fn esw(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_esw"));
    command.args(arguments).env_remove("ESW_LOG").env_remove("NOTIFY_SOCKET");
    command.env("RUNTIME_DIRECTORY", folder.join("run")).env("STATE_DIRECTORY", folder.join("state"));
    command
}

/// The process that answers at the socket; its status must name the same process.
fn answering(socket: &Path) -> Option<u32> {
    let mut client = Client::connect_by(socket, Instant::now() + LONG).ok()?;
    let pid = socket_peercred(client.socket()).unwrap().pid.as_raw_nonzero().get().cast_unsigned();
    let told = client.dump(ESWITCH, STATUS, |_| ()).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&devlink::join_pieces(&told)).unwrap();
    assert_eq!(status["pid"], pid);
    Some(pid)
}

/// Runs one trial. The trial before may have left a daemon that is up, and this one may leave one for the next.
fn trial(folder: &Path, numbers: &mut Numbers, before: Option<Started>) -> Option<Started> {
    let socket = folder.join("run/0000:08:00.0.sock");
    let had_one = before.is_some();
    let mut all: Vec<Started> = before.into_iter().collect();
    let starts = 2 + numbers.below(7);
    let ends = [0, 0, 1, 2][numbers.below(4) as usize];
    let kills = [0, 0, 1, 2][numbers.below(4) as usize];
    let mut downs: Vec<Child> = Vec::new();
    for _ in 0..starts {
        all.push(Started::new(folder));
        if downs.len() < ends && numbers.below(2) == 0 {
            let mut down = esw(folder, &["down", "--all", "--timeout", "100"]);
            downs.push(down.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        }
    }
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(numbers.below(60)));
        let whom = numbers.below(all.len() as u64) as usize;
        all[whom].kill();
    }
    let ended = !downs.is_empty();
    let mut outcome: Vec<Outcome> = all.iter_mut().map(Started::outcome).collect();
    // Whoever is asked to end has ended when the command has.
    for mut down in downs {
        down.wait().unwrap();
    }
    for (started, outcome) in all.iter_mut().zip(&mut outcome) {
        if let Some(ended) = started.ended() {
            // What it said first is what was read.
            if *outcome == Outcome::Up {
                *outcome = ended;
            }
        }
    }
    let killed = all.iter().any(|started| started.killed);
    for (started, outcome) in all.iter().zip(&outcome) {
        match outcome {
            Outcome::Up => {}
            Outcome::Ended(None, _) if started.killed => {}
            Outcome::Ended(Some(0), _) if ended => {}
            Outcome::Ended(Some(2), said) if said.contains("a daemon already listens there") => {}
            wrong => panic!("process {}: {wrong:?}", started.child.id()),
        }
    }
    let mut up: Vec<Started> = all
        .into_iter()
        .zip(&outcome)
        .filter(|(_, outcome)| **outcome == Outcome::Up)
        .map(|(started, _)| started)
        .collect();
    assert!(up.len() <= 1, "{} daemons have one card", up.len());
    let up = up.pop();
    assert_eq!(answering(&socket), up.as_ref().map(|up| up.child.id()), "who is up answers at the socket");
    assert!(up.is_some() || ended || killed, "nobody is up, though nobody was ended");
    assert!(up.is_some() || killed || !socket.exists(), "a socket is left without its daemon");
    if up.is_none() && !killed && !had_one {
        assert!(fs::read_dir(folder.join("run")).unwrap().next().is_none(), "something is left beside the socket");
    }
    up
}

#[test]
fn of_several_starts_at_once_one_has_the_socket_and_the_others_fail_with_the_reason() {
    let trials: u64 = std::env::var("ESW_TRIALS").map_or(40, |number| number.parse().unwrap());
    let folder = std::env::temp_dir().join(format!("esw-starts-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let mut up = None;
    for number in 1..=trials {
        let mut numbers = Numbers(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        up = trial(&folder, &mut numbers, up);
        // Now and then the next begins with one that is up, or with what a killed one has left.
        match numbers.below(4) {
            0 => {}
            1 => drop(up.take()),
            _ => {
                if let Some(mut daemon) = up.take() {
                    let down = esw(&folder, &["down", "--timeout", "100"]).output().unwrap();
                    assert!(down.status.success(), "{down:?}");
                    assert_eq!(daemon.ended(), Some(Outcome::Ended(Some(0), String::new())));
                }
            }
        }
        if number % 100 == 0 {
            println!("{number} trials, none wrong");
        }
    }
    drop(up);
    println!("{trials} trials, none wrong");
    fs::remove_dir_all(folder).unwrap();
}
