//! Process 1 of the machine: makes it usable, runs the commands, turns it off.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Dev, FileType, Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{WaitOptions, chroot};
use rustix::system::{RebootCommand, finit_module, reboot, sethostname};

use super::channel::{CHUNK, Frame};
use super::{Job, NOBODY, PLAN, Plan};

/// The longest time until a disk or the other end of the channel appears.
const APPEARS: Duration = Duration::from_secs(60);

/// Where the root file system is mounted at first.
const NEW: &str = "/new";

/// Character devices whose modules are loaded when they are opened; a distribution's device manager makes the same: name, major
/// and minor number. Everybody may open them.
const DEVICES: [(&str, u32, u32); 2] = [("/dev/fuse", 10, 229), ("/dev/net/tun", 10, 200)];

/// Whether this program runs as process 1 of the machine, rather than as a command.
pub fn is_init() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == "/init")
}

/// Sets the machine up, runs the jobs, and turns it off. Returns only if it cannot be turned off.
pub fn run() {
    if let Err(error) = work() {
        println!("the machine: {error:#}");
    }
    turn_off();
}

fn turn_off() {
    // With `-no-reboot` QEMU ends at a restart.
    let _ = reboot(RebootCommand::Restart);
}

fn work() -> Result<()> {
    // The kernel's own initramfs has in `/dev` only what a shell needs; `devtmpfs` makes the rest.
    file_system("devtmpfs", "/dev")?;
    file_system("proc", "/proc")?;
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN)?)?;
    for module in serde_json::from_slice::<Vec<String>>(&fs::read("/modules.json")?)? {
        let file = File::open(&module).with_context(|| module.clone())?;
        finit_module(&file, c"", 0).with_context(|| format!("loading {module}"))?;
    }
    let mut channel = open_channel()?;
    let ready = make_root(&plan).and_then(|()| make_usable());
    if let Err(error) = ready {
        Frame::Unusable(format!("{error:#}")).write(&mut channel)?;
        return Err(error);
    }
    Frame::Ready.write(&mut channel)?;
    let (input, to_input) = io::pipe()?;
    let from_host = channel.try_clone()?;
    thread::spawn(move || forward_input(from_host, to_input));
    for job in &plan.jobs {
        let status = run_job(&plan, job, &input, &mut channel)?;
        Frame::Exit(status).write(&mut channel)?;
    }
    Ok(())
}

/// Mounts a file system without a device, and makes the mount point.
fn file_system(kind: &str, place: impl AsRef<Path>) -> Result<()> {
    let place = place.as_ref();
    fs::create_dir_all(place)?;
    mount(kind, place, kind, MountFlags::empty(), None).with_context(|| format!("mounting {}", place.display()))
}

/// Opens the channel as soon as the other side is connected.
fn open_channel() -> Result<File> {
    // Port 1 of the only device that has ports, whatever its number among all. Its port 0 is kept for a console.
    let find = || {
        let mut names = fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
        names.find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("vport") && name.ends_with("p1")
        })
    };
    wait_for("the channel's port", || find().is_some())?;
    let port = find().context("no port of the channel")?;
    let file = File::options().read(true).write(true).open(&port).with_context(|| port.display().to_string())?;
    // Until the kernel knows of the other side, reading would return the end of the input.
    wait_for("the other side of the channel", || {
        let mut fds = [PollFd::new(&file, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    })?;
    Ok(file)
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while !is_there() {
        ensure!(began.elapsed() < APPEARS, "{what} does not appear");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Mounts the disks with a layer in memory as the root file system, and changes into it.
fn make_root(plan: &Plan) -> Result<()> {
    let read_only = MountFlags::RDONLY;
    for (disk, place) in [("/dev/vda", "/disk"), ("/dev/vdb", "/modules-disk")] {
        wait_for(disk, || Path::new(disk).exists())?;
        fs::create_dir_all(place)?;
        mount(disk, place, "squashfs", read_only, None).with_context(|| format!("mounting {disk}"))?;
    }
    file_system("tmpfs", "/layers")?;
    overlay("/disk", "root", Path::new(NEW))?;
    let new = Path::new(NEW);
    // `/dev` and the others are mounted over the disk's folders of the same name.
    for (kind, place) in [("tmpfs", "run"), ("tmpfs", "tmp"), ("sysfs", "sys")] {
        file_system(kind, new.join(place))?;
    }
    fs::set_permissions(new.join("tmp"), Permissions::from_mode(0o1777))?;
    mount_move("/dev", new.join("dev")).context("moving /dev")?;
    mount_move("/proc", new.join("proc")).context("moving /proc")?;
    mount_move("/modules-disk", new.join("usr/lib/modules")).context("moving the modules")?;
    for (n, share) in plan.shares.iter().enumerate() {
        let about = || format!("mounting {}", share.display());
        let (tag, shared) = (format!("share{n}"), PathBuf::from(format!("/share{n}")));
        fs::create_dir_all(&shared)?;
        let options = c"trans=virtio,version=9p2000.L,cache=loose,msize=512000";
        mount(tag.as_str(), &shared, "9p", read_only, Some(options)).with_context(about)?;
        let place = new.join(share.strip_prefix("/")?);
        overlay(&shared.to_string_lossy(), &tag, &place).with_context(about)?;
    }
    // The first root file system is covered, as `switch_root` does it: after a mere chroot the kernel would not create user
    // namespaces.
    std::env::set_current_dir(new)?;
    mount_move(".", "/").context("moving the root file system")?;
    chroot(".").context("changing into the root file system")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// Mounts a folder with a layer in memory over it, so that it can be written to without changing it outside.
fn overlay(lower: &str, name: &str, place: &Path) -> Result<()> {
    let (upper, work) = (format!("/layers/{name}/upper"), format!("/layers/{name}/work"));
    for folder in [Path::new(&upper), Path::new(&work), place] {
        fs::create_dir_all(folder)?;
    }
    let options = std::ffi::CString::new(format!("lowerdir={lower},upperdir={upper},workdir={work}"))?;
    mount("overlay", place, "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
    Ok(())
}

/// Does what process 1 of a distribution would do.
fn make_usable() -> Result<()> {
    for (kind, place) in [("devpts", "/dev/pts"), ("tmpfs", "/dev/shm"), ("cgroup2", "/sys/fs/cgroup")] {
        file_system(kind, place)?;
    }
    fs::set_permissions("/dev/shm", Permissions::from_mode(0o1777))?;
    for (name, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        symlink(format!("/proc/self/fd{target}"), format!("/dev/{name}"))?;
    }
    for (name, major, minor) in DEVICES {
        let (path, device) = (Path::new(name), rustix::fs::makedev(major, minor));
        make_device(path, device).with_context(|| name.to_owned())?;
    }
    // Every user may ping, as with systemd.
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    sethostname(b"vm")?;
    let up = Command::new("/sbin/ip").args(["link", "set", "lo", "up"]).status().context("running ip")?;
    ensure!(up.success(), "the loopback device could not be set up");
    Ok(())
}

fn make_device(path: &Path, device: Dev) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if !path.exists() {
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)?;
    }
    // Regardless of the umask.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(())
}

/// Forwards the input of the commands. When the other side has disconnected, turns the machine off.
fn forward_input(mut from: impl Read, to: PipeWriter) {
    let mut to = Some(to);
    while let Ok(Frame::Input(bytes)) = Frame::read(&mut from) {
        if bytes.is_empty() {
            // The end of the input: this was the only writer.
            to = None;
        } else if let Some(to) = &mut to {
            // A command that stops reading has not failed.
            let _ = to.write_all(&bytes);
        }
    }
    turn_off();
}

/// Runs a command to its end, and sends its outputs; returns its status as a shell has it in `$?`. Processes that it leaves
/// in the background go on, but their later output is dropped.
fn run_job(plan: &Plan, job: &Job, input: &PipeReader, channel: &mut File) -> Result<u8> {
    let mut command = Command::new(&job.argv[0]);
    command.args(&job.argv[1..]).env_clear().env("PATH", &plan.path).env("LANG", "C.UTF-8").current_dir(&plan.folder);
    command.env("HOME", if job.user { "/tmp" } else { "/root" });
    command.stdin(input.try_clone()?).stdout(Stdio::piped()).stderr(Stdio::piped());
    if job.user {
        // The standard library drops all groups when it changes the user.
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let name = job.argv[0].to_string_lossy();
            Frame::ErrorOutput(format!("{name}: {error}\n").into_bytes()).write(channel)?;
            return Ok(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    let output = OwnedFd::from(child.stdout.take().context("no output")?);
    let error_output = OwnedFd::from(child.stderr.take().context("no error output")?);
    let mut outputs = [Output::new(output, Frame::Output)?, Output::new(error_output, Frame::ErrorOutput)?];
    let (ended, tell) = io::pipe()?;
    let id = child.id();
    let reaper = thread::spawn(move || {
        let status = reap_until(id);
        drop(tell);
        status
    });
    loop {
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        fds.extend(outputs.iter().filter(|output| output.open).map(|output| PollFd::new(&output.pipe, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled?,
        };
        // The pipes have everything that was written before the end; it is read below.
        let over = !fds[0].revents().is_empty();
        for output in outputs.iter_mut().filter(|output| output.open) {
            output.send(channel)?;
        }
        if over {
            break;
        }
    }
    let status = reaper.join().ok().flatten().context("the command's status is lost")?;
    Ok(shell_status(status))
}

/// One of a command's outputs: the reading end of a pipe.
struct Output {
    pipe: File,
    frame: fn(Vec<u8>) -> Frame,
    /// Whether more may come.
    open: bool,
}

impl Output {
    fn new(pipe: OwnedFd, frame: fn(Vec<u8>) -> Frame) -> Result<Self> {
        rustix::fs::fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
        Ok(Self { pipe: pipe.into(), frame, open: true })
    }

    /// Sends the contents of the pipe, but no more than a pipe can hold: a process that writes without an end would be
    /// read without an end.
    fn send(&mut self, channel: &mut impl Write) -> Result<()> {
        const MOST: usize = 1 << 20;
        let (mut bytes, mut sent) = (vec![0; CHUNK], 0);
        while sent < MOST {
            match self.pipe.read(&mut bytes) {
                Ok(0) => {
                    self.open = false;
                    break;
                }
                Ok(len) => {
                    (self.frame)(bytes[..len].to_vec()).write(channel)?;
                    sent += len;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Waits for children, adopted ones included, until a certain one has ended; returns its status.
fn reap_until(id: u32) -> Option<ExitStatus> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((child, status))) if child.as_raw_nonzero().get() as u32 == id => {
                return Some(ExitStatus::from_raw(status.as_raw()));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// An exit status as a shell has it in `$?`: 128 plus the signal for a process that a signal killed.
fn shell_status(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_in_a_pipe_is_sent_and_its_end_is_known() {
        let (pipe, mut command) = io::pipe().unwrap();
        let mut output = Output::new(pipe.into(), Frame::ErrorOutput).unwrap();
        let mut channel = Vec::new();
        command.write_all(b"one").unwrap();
        command.write_all(b"two").unwrap();
        output.send(&mut channel).unwrap();
        assert_eq!(Frame::read(&mut &channel[..]).unwrap(), Frame::ErrorOutput(b"onetwo".to_vec()));
        assert!(output.open);
        drop(command);
        // A process that another test is starting may have the pipe for a moment.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while output.open {
            output.send(&mut channel).unwrap();
            assert!(std::time::Instant::now() < deadline, "the end of the pipe is not known");
        }
    }

    #[test]
    fn a_status_is_told_as_a_shell_does() {
        for (script, status) in
            [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)]
        {
            let came = Command::new("sh").args(["-c", script]).status().unwrap();
            assert_eq!(shell_status(came), status, "{script}");
        }
    }
}
