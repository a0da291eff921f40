//! Runs programs among the card's netdevs, which are in this process's namespaces.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use host::{Finished, Programs};
use rustix::process::{Pid, Signal, kill_process_group};

/// Programs in the namespaces of this process.
#[derive(Debug)]
pub struct Here;

/// How long to wait before it is checked again whether a program has ended.
const LOOK: Duration = Duration::from_millis(2);

impl Programs for Here {
    fn run(&self, command: &str, limit: Duration, stop: &mut dyn FnMut() -> bool) -> Result<Finished, String> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("no shell to run `{command}` with: {error}"))?;
        let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
        let began = Instant::now();
        let status = loop {
            match child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => {}
                Err(error) => return Err(format!("`{command}`: {error}")),
            }
            if stop() {
                end(&mut child);
                return Err(format!("`{command}` was ended: interrupted"));
            }
            if began.elapsed() > limit {
                end(&mut child);
                return Err(format!("`{command}` was ended: it took longer than {} s", limit.as_secs()));
            }
            thread::sleep(LOOK);
        };
        // A program that it has left running may hold the pipes open: wait a moment for the last output, no longer.
        let deadline = Instant::now() + LINGER;
        while !(stdout.is_finished() && stderr.is_finished()) && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
        if !(stdout.is_finished() && stderr.is_finished()) {
            leave_for_later(&child);
        }
        Ok(Finished { status: code(status), stdout: stdout.text(), stderr: stderr.text() })
    }

    fn has_netdev(&self, name: &str) -> bool {
        use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None);
        socket.is_ok_and(|socket| name_to_index(socket, name).is_ok())
    }
}

/// Runs a program with the terminal of this process; its exit status.
///
/// # Errors
/// It could not be started.
pub fn in_foreground(command: &mut Command) -> std::io::Result<i32> {
    Ok(code(command.status()?))
}

/// The program that runs a shell command.
pub fn shell_command(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Ends a program, and everything that it has started in its process group.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// How long a program's output is waited for after its end.
const LINGER: Duration = Duration::from_millis(100);

/// Process groups of programs that ended and left something running that holds their pipes open, so that the number of
/// the group cannot have been given to another.
///
/// It is no lock of `lockdep`'s: it is a static, which belongs to no domain, and it is emptied at the end of the command,
/// where no thread of a domain is left. Nothing is taken while it is held.
static LEFT: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

fn leave_for_later(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(group);
    }
}

/// Ends the programs that were left running in the background.
pub fn end_what_is_left() {
    for group in LEFT.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// What a pipe has brought so far. Its reader hands over one piece after the other: no lock is shared with it.
struct Collected {
    pieces: Receiver<Vec<u8>>,
    reader: thread::JoinHandle<()>,
}

impl Collected {
    fn is_finished(&self) -> bool {
        self.reader.is_finished()
    }

    /// Everything that was read until now.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.pieces.try_iter().flatten().collect::<Vec<u8>>()).into_owned()
    }
}

/// Reads a pipe to its end in a thread of its own, so that a program that writes much is not held up.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let (send, pieces) = channel();
    let reader = thread::spawn(move || {
        let mut piece = [0; 4096];
        let Some(mut pipe) = pipe else { return };
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if send.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    Collected { pieces, reader }
}
