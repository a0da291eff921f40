//! Programs among the card's netdevs: this process is where they are.

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use scenario::{Finished, Programs};

/// Programs in the namespaces of this process.
#[derive(Debug)]
pub struct Here;

/// How long to wait between two looks at a program that runs.
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
        Ok(Finished {
            status: code(status),
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
        })
    }

    fn has_netdev(&self, name: &str) -> bool {
        use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None);
        socket.is_ok_and(|socket| name_to_index(socket, name).is_ok())
    }
}

/// Runs a program with our terminal; its exit status.
///
/// # Errors
/// It could not be started.
pub fn in_foreground(command: &mut Command) -> std::io::Result<i32> {
    Ok(code(command.status()?))
}

/// A shell command.
pub fn shell_command(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// Ends a program and whatever it started.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// Reads a pipe to its end beside us, so that a program that writes much is not held up.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
}
