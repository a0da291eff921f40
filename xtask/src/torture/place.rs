//! Where a daemon is attacked: directories of its own, and how it is started, queried and ended.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::kernel;
use super::wire::{self, Client, NoAnswer};

/// How long a command may take before it counts as one that hangs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The name of the card.
pub const CARD: &str = "a";

/// Directories for a daemon, and the binary that is attacked.
pub struct Place {
    folder: PathBuf,
    esw: PathBuf,
    /// The user who runs it, if another than ours, and the command prefix that changes to this user.
    user: Option<u32>,
    under: Vec<String>,
    /// The state directory: below `folder` at first.
    pub state: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status; `None` if it hung and was killed.
    pub status: Option<ExitStatus>,
    /// Its standard output and standard error, in the order in which it wrote them.
    pub output: String,
}

impl Ended {
    /// Whether the exit status is 0.
    pub fn succeeded(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// A fault in how it ended, where a refusal is none: it hung, panicked, or a signal ended it.
    pub fn fault(&self) -> Option<String> {
        let Some(status) = self.status else {
            return Some(format!("it hung for {} s\n{}", LIMIT.as_secs(), self.output));
        };
        let panicked = self.output.contains("panicked at") || status.code() == Some(101);
        (panicked || status.code().is_none()).then(|| format!("{status}\n{}", self.output))
    }

    /// The exit status and the output, for messages.
    pub fn describe(&self) -> String {
        match self.status {
            Some(status) => format!("{status}\n{}", self.output),
            None => format!("it hung\n{}", self.output),
        }
    }
}

impl Place {
    /// Makes directories below a new one with this name in the temporary directory. `config`: the text of `[cards.a]`.
    pub fn new(esw: &Path, name: &str, config: &str) -> Result<Self> {
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let state = folder.join("state");
        let place = Self { folder, esw: esw.to_owned(), user: None, under: Vec::new(), state };
        place.configure(config)?;
        Ok(place)
    }

    /// Writes the configuration.
    pub fn configure(&self, config: &str) -> Result<()> {
        let text = format!("state_dir = \"{}\"\n[cards.{CARD}]\n{config}", self.state.display());
        fs::write(self.folder.join("config.toml"), text).context("the configuration")
    }

    /// The directory of control sockets.
    pub fn sockets(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The card's control socket.
    pub fn socket(&self) -> PathBuf {
        self.sockets().join(format!("{CARD}.sock"))
    }

    /// Makes another user the one who runs the binary.
    pub fn run_as(&mut self, user: u32) -> Result<()> {
        std::os::unix::fs::chown(&self.folder, Some(user), Some(user))?;
        self.user = Some(user);
        let user = user.to_string();
        self.under = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"].map(str::to_owned).to_vec();
        Ok(())
    }

    /// A command of the binary.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.program(&[&[self.esw.to_str().unwrap_or("esw")], arguments].concat())
    }

    /// A command of any program, run by the user who runs the binary.
    pub fn program(&self, words: &[&str]) -> Command {
        let mut all: Vec<&str> = self.under.iter().map(String::as_str).collect();
        all.extend(words);
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).current_dir(&self.folder).stdin(Stdio::null());
        command
            .env_remove("ESW_LOG")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_BACKTRACE")
            .env("NO_COLOR", "1")
            .env("HOME", &self.folder);
        command.env("RUNTIME_DIRECTORY", self.sockets()).env_remove("STATE_DIRECTORY");
        command
    }

    /// Runs the binary, and kills it if it hangs.
    pub fn esw(&self, arguments: &[&str]) -> Result<Ended> {
        self.run(self.command(arguments), LIMIT)
    }

    /// Runs a command, and kills it if it takes longer than `limit`. Its output goes to a file: a daemon that it leaves behind
    /// would keep a pipe open, and this would wait for it.
    pub fn run(&self, mut command: Command, limit: Duration) -> Result<Ended> {
        let path = self.folder.join(format!("said-{:?}", std::thread::current().id()));
        let said = File::create(&path).with_context(|| path.display().to_string())?;
        let mut child =
            command.stdout(said.try_clone()?).stderr(said).spawn().with_context(|| format!("{command:?}"))?;
        let status = wait(&mut child, limit)?;
        let output = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        Ok(Ended { status, output })
    }

    /// Runs `esw up --daemon --detach` with more arguments.
    pub fn up(&self, more: &[&str]) -> Result<Ended> {
        self.esw(&[&["up", "--daemon", "--detach", "--config", "config.toml"], more].concat())
    }

    /// The same, which must succeed; returns the daemon's process ID.
    pub fn must_up(&self, more: &[&str]) -> Result<u32> {
        let ended = self.up(more)?;
        if !ended.succeeded() {
            bail!("esw up {}: {}", more.join(" "), ended.describe());
        }
        self.daemon().context("the process that listens at the control socket")
    }

    /// The daemon's process, as the kernel knows it: the process that listens at the control socket.
    pub fn daemon(&self) -> io::Result<u32> {
        wire::listener(&self.socket())
    }

    /// Connects to the card as the user who runs it.
    pub fn client(&self) -> Result<Client, NoAnswer> {
        let Some(user) = self.user else { return Client::connect(&self.socket()) };
        let made = wire::connect_as(user, &self.socket(), 1)?;
        made.into_iter().next().map_or(Err(NoAnswer::Silence), Client::over)
    }

    /// Kills the daemon and waits until it is gone.
    pub fn kill(&self, pid: u32) -> Result<()> {
        kernel::kill(pid);
        if !kernel::has_ended(pid, LIMIT) {
            bail!("process {pid} is still there {} s after SIGKILL", LIMIT.as_secs());
        }
        Ok(())
    }

    /// Kills everything that runs here, and removes what it left. For the start, and after a failure: every process in
    /// this pid namespace is ours.
    pub fn clear(&self) -> Result<()> {
        ensure_apart()?;
        for _ in 0..100 {
            let left = kernel::processes();
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|process| kernel::kill(process.pid));
            std::thread::sleep(Duration::from_millis(20));
        }
        let script = "for n in $(ip netns list | cut -d' ' -f1); do ip netns del $n; done
            for l in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do [ $l = lo ] || ip link del $l 2>/dev/null; done; true";
        let _ = Command::new("sh").args(["-c", script]).stderr(Stdio::null()).status();
        for folder in [self.sockets(), self.state.clone()] {
            match fs::remove_dir_all(&folder) {
                // The directory may be a mount point.
                Err(_) if folder.is_dir() => {
                    for entry in fs::read_dir(&folder)? {
                        let path = entry?.path();
                        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// An argument of process 1 in the pid namespace that this program has made.
pub const APART: &str = "eswitch-torture";

/// Fails unless this program is in namespaces of its own, made by [`super::apart`]: elsewhere this module would
/// kill and delete what is not ours.
pub fn ensure_apart() -> Result<()> {
    let first = fs::read("/proc/1/cmdline").context("/proc/1/cmdline")?;
    let is_ours = first.split(|byte| *byte == 0).any(|word| word == APART.as_bytes());
    ensure!(is_ours, "this is a part of `cargo xtask torture` and runs only in namespaces that it has made");
    Ok(())
}

/// Waits until a child has ended. If it takes longer than `limit`, kills it and returns `None`.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let until = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
