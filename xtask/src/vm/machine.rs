//! The machine from outside: QEMU, which ends together with this process, and the channel to process 1 in it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;

use super::channel::{CHUNK, Frame};
use super::image::Image;

/// The hardware of a machine.
pub struct Hardware<'a> {
    /// The QEMU program.
    pub qemu: &'a Path,
    /// The accelerator: `tcg` or `kvm`.
    pub accel: &'a str,
    /// The memory in MiB.
    pub memory: u32,
    /// Folders of this machine that it can mount, as `share0` and so on.
    pub shares: &'a [PathBuf],
    /// The time limit, from the boot on.
    pub limit: Duration,
    /// Whether its console is shown on standard error.
    pub console: bool,
}

/// A machine exceeded its time limit.
#[derive(Debug)]
pub struct TooLong(Duration);

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the machine was ended: it took longer than {} s (see --limit-s)", self.0.as_secs())
    }
}

impl std::error::Error for TooLong {}

/// A running machine. It ends when this is dropped, and when this process ends, in whatever way.
pub struct Machine {
    qemu: Child,
    channel: UnixStream,
    /// The threads that keep the last output of the console and of QEMU.
    last_words: Vec<JoinHandle<Vec<u8>>>,
    deadline: Instant,
    limit: Duration,
    /// The version of its kernel.
    kernel: String,
    /// Whether it has sent anything yet.
    ready: bool,
}

impl Machine {
    /// Boots a machine from an image. `own_part` is appended to the initramfs, which is in memory and not on a disk.
    ///
    /// # Errors
    /// QEMU or `setpriv` cannot be started; there is no memory for the initramfs.
    pub fn boot(image: &Image, own_part: &[u8], hardware: &Hardware) -> Result<Self> {
        let initramfs = rustix::fs::memfd_create("initramfs", MemfdFlags::empty())?;
        let mut file = File::from(initramfs);
        io::copy(&mut File::open(&image.boot)?, &mut file)?;
        file.write_all(own_part).context("the initramfs")?;
        let (channel, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;

        // The kernel kills QEMU when this process ends, in whatever way.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(hardware.qemu);
        command.args(["-accel", hardware.accel, "-cpu", "max", "-smp", "2", "-m", &hardware.memory.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(format!("/proc/self/fd/{}", file.as_raw_fd()));
        // The machine runs nothing untrusted, and mitigations are slow on an emulated processor.
        command.args(["-append", "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on mitigations=off nokaslr"]);
        for (n, disk) in [&image.root, &image.modules].into_iter().enumerate() {
            let file = escaped(disk)?;
            command.args(["-drive", &format!("if=none,id=disk{n},format=raw,readonly=on,file={file}")]);
            command.args(["-device", &format!("virtio-blk-pci,drive=disk{n}")]);
        }
        for (n, share) in hardware.shares.iter().enumerate() {
            let path = escaped(share)?;
            let how = "security_model=none,readonly=on,multidevs=remap";
            command.args(["-virtfs", &format!("local,mount_tag=share{n},{how},path={path}")]);
        }
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-chardev", &format!("socket,id=channel,fd={}", theirs.as_raw_fd())]);
        command.args(["-device", "virtserialport,chardev=channel,name=channel"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut qemu = command.spawn().context("starting QEMU with `setpriv`, which is in util-linux")?;
        let mut last_words = Vec::new();
        let show = hardware.console;
        last_words.extend(qemu.stdout.take().map(|console| thread::spawn(move || last_of(console, show))));
        last_words.extend(qemu.stderr.take().map(|messages| thread::spawn(move || last_of(messages, show))));
        let deadline = Instant::now() + hardware.limit;
        let kernel = image.version.clone();
        Ok(Self { qemu, channel, last_words, deadline, limit: hardware.limit, kernel, ready: false })
    }

    /// The version of the machine's kernel, as `uname -r` prints it there.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Forwards standard input in a thread of its own, up to its end.
    ///
    /// # Errors
    /// The channel cannot be duplicated: no descriptors are left.
    pub fn send_input(&self) -> Result<()> {
        let mut channel = self.channel.try_clone()?;
        thread::spawn(move || {
            let mut bytes = vec![0; CHUNK];
            loop {
                let len = match io::stdin().read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.unwrap_or(0),
                };
                // If sending fails, the machine has ended and does not need the input.
                if Frame::Input(bytes[..len].to_vec()).write(&mut channel).is_err() || len == 0 {
                    return;
                }
            }
        });
        Ok(())
    }

    /// Receives the next frame from the machine.
    ///
    /// # Errors
    /// [`TooLong`]; the machine ended, or sent an invalid frame. Then the last output of the console is printed.
    pub fn next(&mut self) -> Result<Frame> {
        let mut limited = Limited { channel: &self.channel, deadline: self.deadline };
        let why = match Frame::read(&mut limited) {
            Ok(Frame::Unusable(why)) => anyhow!("the machine could not be made ready: {why}"),
            Ok(frame) => {
                self.ready = true;
                return Ok(frame);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => anyhow::Error::new(TooLong(self.limit)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => anyhow!("the machine sent {error}"),
            Err(_) => anyhow!("the machine ended before it was done"),
        };
        let words = self.end();
        // If only a command takes too long, the console is of no interest.
        let of_use = !self.ready || !why.is::<TooLong>();
        if of_use && !words.is_empty() {
            eprintln!("{words}");
        }
        Err(why)
    }

    /// Ends the machine; returns the last output of the console and of QEMU.
    fn end(&mut self) -> String {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let words = self.last_words.drain(..).filter_map(|words| words.join().ok()).collect::<Vec<_>>().concat();
        String::from_utf8_lossy(&words).replace('\r', "").trim_end().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Reads up to the end and returns the last part, or nothing if it is shown.
fn last_of(mut from: impl Read, show: bool) -> Vec<u8> {
    const KEPT: usize = 8 << 10;
    let (mut last, mut bytes) = (Vec::new(), [0; 4096]);
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        if show {
            // Standard error may be closed.
            let _ = io::stderr().write_all(&bytes[..len]);
            continue;
        }
        last.extend(&bytes[..len]);
        last.drain(..last.len().saturating_sub(KEPT));
    }
    last
}

/// The channel, up to a deadline.
struct Limited<'a> {
    channel: &'a UnixStream,
    deadline: Instant,
}

impl Read for Limited<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let left = self.deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
        self.channel.set_read_timeout(Some(left.ok_or_else(late)?))?;
        self.channel.read(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => late(),
            _ => error,
        })
    }
}

/// A path as a part of one of QEMU's options, in which a comma is doubled.
fn escaped(path: &Path) -> Result<String> {
    let path = path.to_str().with_context(|| format!("{}: QEMU takes paths in UTF-8 only", path.display()))?;
    Ok(path.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_last() {
        let said = [vec![b'a'; 20 << 10], b"and that was all".to_vec()].concat();
        let last = last_of(&said[..], false);
        assert!(last.ends_with(b"and that was all") && last.len() == 8 << 10);
    }

    #[test]
    fn a_comma_in_a_path_is_no_end_of_it() {
        assert_eq!(escaped(Path::new("/a,b/c")).unwrap(), "/a,,b/c");
    }

    #[test]
    fn reading_ends_when_it_is_too_late() {
        let (channel, _other) = UnixStream::pair().unwrap();
        for deadline in [Instant::now(), Instant::now() + Duration::from_millis(10)] {
            let mut limited = Limited { channel: &channel, deadline };
            assert_eq!(limited.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
