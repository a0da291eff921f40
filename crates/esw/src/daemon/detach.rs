//! `--detach`: starts the daemon in a session of its own, and returns when it is ready.
//!
//! The process does not fork. It starts this program again, with a socket on which the daemon notifies it. If the daemon
//! does not become ready, its exit status and its log say why.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, fchmod};
use rustix::net::{self, AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::config::Config;
use super::folders;
use crate::arguments::Up;
use crate::exit_status::{FAILED, HELD};
use crate::output::{complain, line};
use crate::printable::printable;

/// Starts the daemon in the background; the exit status.
///
/// # Errors
/// The configuration cannot be used, or the daemon cannot be started.
pub fn detach(arguments: &Up) -> Result<u8> {
    let config = Config::read(arguments.config.as_deref(), arguments.card)?;
    folders::make(&config.state_dir).with_context(|| format!("making {}", config.state_dir.display()))?;
    let log_path = config.state_dir.join("esw.log");
    let mut log = folders::open_private(&log_path);
    let log = log.as_mut().map_err(|error| anyhow::anyhow!("{}: {error}", log_path.display()))?;
    let begin = log.seek(SeekFrom::End(0)).with_context(|| log_path.display().to_string())?;
    let ready = ReadySocket::bind()?;
    let mut daemon = start(&ready.path, log).context("starting the daemon")?;
    match ready.wait(&mut daemon)? {
        Some(status) => {
            line(&printable(&format!("{status}; process {}, log {}", daemon.id(), log_path.display())));
            Ok(HELD)
        }
        None => {
            let status = daemon.wait().context("waiting for the daemon")?;
            let mut output = String::new();
            let read = log.seek(SeekFrom::Start(begin)).and_then(|_| log.read_to_string(&mut output));
            if read.is_err() || output.trim().is_empty() {
                output = format!("esw: the daemon did not come up: {status}; see {}", log_path.display());
            }
            complain!("{}", output.trim_end());
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != HELD).unwrap_or(FAILED))
        }
    }
}

fn start(notify_socket: &Path, log: &File) -> Result<Child> {
    let arguments: Vec<OsString> =
        env::args_os().skip(1).map(|word| if word == "--detach" { "--detached".into() } else { word }).collect();
    let daemon = Command::new(env::current_exe()?)
        .args(arguments)
        .env("NOTIFY_SOCKET", notify_socket)
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.try_clone()?)
        .spawn()?;
    Ok(daemon)
}

/// The socket on which the daemon notifies that it is ready, in a folder that only this user may write to.
struct ReadySocket {
    socket: OwnedFd,
    path: PathBuf,
}

impl ReadySocket {
    fn bind() -> Result<Self> {
        let folder = folders::sockets();
        folders::make(&folder).with_context(|| format!("making {}", folder.display()))?;
        folders::ensure_own(&folder)?;
        let path = folder.join(format!(".detach-{}", std::process::id()));
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let address = SocketAddrUnix::new(&path).with_context(|| path.display().to_string())?;
        // An earlier process of the same number may have died before it could remove its socket.
        let _ = fs::remove_file(&path);
        // The file gets the mode of its socket: no other user may send that the daemon is ready.
        fchmod(&socket, Mode::from_raw_mode(0o600)).with_context(|| path.display().to_string())?;
        net::bind(&socket, &address).with_context(|| path.display().to_string())?;
        Ok(Self { socket, path })
    }

    /// Waits until the daemon is ready, and returns its status; `None` if it has ended before.
    fn wait(&self, daemon: &mut Child) -> Result<Option<String>> {
        let Some(pid) = Pid::from_raw(daemon.id().cast_signed()) else { bail!("the daemon has no process") };
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if fds[0].revents().is_empty() {
                return Ok(None);
            }
            let mut text = [0; 4096];
            let length = match net::recv(&self.socket, &mut text[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => length,
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let text = String::from_utf8_lossy(&text[..length.min(text.len())]).into_owned();
            if text.lines().any(|line| line == "READY=1") {
                let status = text.lines().find_map(|line| line.strip_prefix("STATUS="));
                return Ok(Some(status.unwrap_or("ready").to_owned()));
            }
        }
    }
}

impl Drop for ReadySocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
