//! A process that does what it is told over a socket that is its standard input: it tries rows, opens sockets
//! for others, looks, and runs lines of a shell. Who it is depends on how it was started.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use ::netlink::Flags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::netlink::{NO_ANSWER, PROTOCOLS, Protocol, Sockets, join, open, request};
use crate::rows::{Attempt, Here, Row, rows};
use crate::{look, sys};

/// Bytes of a message at most.
const ROOM: usize = 160 << 10;
/// Where the numbers of sockets stand that were inherited.
const INHERITED: &str = "ESW_RIGHTS_SOCKETS";

/// Sends a message, with descriptors if there are any.
pub fn tell(to: BorrowedFd<'_>, text: &str, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Receives a message; it is empty when the other end is closed.
pub fn hear(from: BorrowedFd<'_>) -> rustix::io::Result<(String, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = vec![0; ROOM];
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::empty())?;
    text.truncate(received.bytes);
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    Ok((String::from_utf8_lossy(&text).into_owned(), fds))
}

/// Carries out requests until the other end of the socket is closed.
pub fn serve() {
    let stdin = std::io::stdin();
    let rows = rows();
    let inherited = std::env::var(INHERITED).ok();
    let numbers = inherited.iter().flat_map(|text| text.split(',')).flat_map(str::parse);
    let inherited: Vec<OwnedFd> = numbers.map(sys::inherited).collect();
    let mut sockets = Sockets(Some(inherited).filter(|inherited| !inherited.is_empty()));
    // Those that somebody else is given stay open, as they do in a program that goes on using them.
    let mut opened = Vec::new();
    let mut started: Vec<Child> = Vec::new();
    while let Ok((text, mut fds)) = hear(stdin.as_fd()) {
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let answer = match word {
            "" => return,
            "try" => attempt(&rows, rest, &sockets),
            "open" => {
                opened = open_all();
                let fds: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
                tell(stdin.as_fd(), "opened", &fds).expect("sockets are passed on");
                continue;
            }
            "spawn" => {
                started.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
                started.extend(spawn(rest, fds.remove(0)));
                "started".to_owned()
            }
            "connect" => {
                let card = devlink::connect(rest.as_ref()).expect("the card's socket");
                tell(stdin.as_fd(), "connected", &[card.as_fd()]).expect("a connection is passed on");
                continue;
            }
            "become" => become_other(rest),
            "use" => {
                sockets = Sockets(Some(fds));
                "uses".to_owned()
            }
            "look" => look::kernel(),
            "shell" => shell(rest),
            "hold" => {
                let child = hold().expect("a process that stays");
                let number = child.id().to_string();
                started.push(child);
                number
            }
            "writable" => {
                let mut found = Vec::new();
                rest.split(' ').for_each(|folder| look::writable(folder, &mut found));
                found.join("\n")
            }
            _ => "here".to_owned(),
        };
        // An empty message would read as an end.
        let answer = if answer.is_empty() { " " } else { &answer };
        tell(stdin.as_fd(), answer, &[]).expect("an answer");
    }
    drop(opened);
}

/// A socket of each protocol. Where the kernel has no RDMA, one that is used for nothing stands for it.
fn open_all() -> Vec<OwnedFd> {
    PROTOCOLS.iter().map(|protocol| open(*protocol).or_else(|_| open(Protocol::Route)).expect("a socket")).collect()
}

/// Starts another actor, which gets its requests over this socket.
fn spawn(words: &str, socket: OwnedFd) -> std::io::Result<Child> {
    let mut words = words.split(' ');
    Command::new(words.next().unwrap_or_default()).args(words).stdin(Stdio::from(socket)).stdout(Stdio::null()).spawn()
}

/// Opens sockets and becomes another program, which inherits them.
fn become_other(words: &str) -> String {
    let sockets = open_all();
    let numbers: Vec<String> = sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect();
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    format!("{}", command.args(words).env(INHERITED, numbers.join(",")).exec())
}

fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().expect("a shell");
    let status = output.status.code().unwrap_or(-1);
    format!("{status} {}", String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr))
}

/// Starts a process in a network namespace of its own, which ends with this one.
fn hold() -> std::io::Result<Child> {
    let program = std::env::current_exe()?;
    // Its standard input is a pipe, of which the child that is kept here has the other end.
    Command::new("unshare").arg("--net").arg(program).arg("hold").stdin(Stdio::piped()).spawn()
}

fn attempt(rows: &[Row], words: &str, sockets: &Sockets) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    let number = |at: usize| words[at].parse::<u32>().expect("a number");
    let (row, here) = (number(0) as usize, Here { home: number(1), elsewhere: number(2), sf: words[3].to_owned() });
    match &rows[row].attempt {
        Attempt::Program(words) => program(words),
        other => perform(other, &here, sockets).to_string(),
    }
}

/// Makes an attempt: its error number, 0 if it did well.
fn perform(attempt: &Attempt, here: &Here, sockets: &Sockets) -> i32 {
    let ask = |protocol, request: Result<Vec<u8>, i32>| match request {
        Ok(request) => sockets.ask(protocol, &request).err().unwrap_or(0),
        Err(errno) => errno,
    };
    match attempt {
        Attempt::Devlink { command, flags, fill } => {
            let request =
                sockets.family("devlink").map(|family| request(family, *flags, |to| fill(to.genl(*command, 1))));
            ask(Protocol::Generic, request)
        }
        Attempt::Route(message) => ask(Protocol::Route, message(here)),
        Attempt::EthtoolNetlink(netdev) => {
            ask(Protocol::Generic, sockets.family("ethtool").map(|family| features(family, netdev)))
        }
        Attempt::EthtoolIoctl(netdev) => sys::ethtool(netdev, sys::SET_SEGMENTATION, 0).0,
        Attempt::Mtu(netdev) => sys::set_mtu(netdev, 1400),
        Attempt::Rdma { command, flags, fill } => {
            const NLDEV: u16 = 5 << 10;
            ask(Protocol::Rdma, Ok(request(NLDEV + command, *flags, fill)))
        }
        Attempt::Psample(group) => join("psample", group),
        Attempt::Write(path, "SF") => write(path, &here.sf),
        Attempt::Write(path, text) => write(path, text),
        Attempt::WriteBack(netdev, file) => {
            let path = format!("/sys/class/net/{netdev}/{file}");
            // Some cannot be read while a netdev is down.
            let text = fs::read_to_string(&path).unwrap_or_else(|_| "0".to_owned());
            // Nothing would not be written at all.
            write(&path, if text.is_empty() { "\n" } else { &text })
        }
        Attempt::InitModule => {
            module().map_or_else(errno, |path| fs::read(path).map_or_else(errno, |m| sys::init_module(&m)))
        }
        Attempt::FinitModule => {
            module().map_or_else(errno, |path| fs::File::open(path).map_or_else(errno, |m| sys::finit_module(&m)))
        }
        Attempt::DeleteModule => sys::delete_module("mlx5_ib"),
        Attempt::Program(_) => NO_ANSWER,
    }
}

fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(NO_ANSWER)
}

/// Writes a text to a file that is there, in one call.
fn write(path: &str, text: &str) -> i32 {
    let written = fs::File::options().write(true).open(path);
    written.and_then(|mut file| std::io::Write::write(&mut file, text.as_bytes())).map_or_else(errno, |_| 0)
}

/// `ETHTOOL_MSG_FEATURES_SET`, by which no packet is segmented late any more.
fn features(family: u16, netdev: &str) -> Vec<u8> {
    const FEATURES_SET: u8 = 12;
    // The header, with the netdev's name; then what is wanted: a set of bits by their names, of which one has no value.
    request(family, Flags::empty(), |to| {
        to.genl(FEATURES_SET, 1).nest(1, |to| {
            to.text(2, netdev);
        });
        to.nest(3, |to| {
            to.nest(3, |to| {
                to.nest(1, |to| {
                    to.text(2, "tx-generic-segmentation");
                });
            });
        });
    })
}

/// The file of a module of the card's.
fn module() -> std::io::Result<std::path::PathBuf> {
    fn below(folder: &std::path::Path) -> std::io::Result<Option<std::path::PathBuf>> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name() == "mlx5_ib.ko" {
                return Ok(Some(entry.path()));
            }
            if entry.file_type()?.is_dir()
                && let Some(found) = below(&entry.path())?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
    below("/lib/modules".as_ref())?.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOENT))
}

/// What a program says is told as the error number that it was given.
fn program(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    let said = String::from_utf8_lossy(&output.stderr);
    let known = [
        ("not permitted", libc::EPERM),
        ("ermission denied", libc::EACCES),
        ("o such device", libc::ENODEV),
        ("annot find device", libc::ENODEV),
        ("Failed to connect to devlink", libc::ENOENT),
        ("Failed to open NETLINK_RDMA", libc::EPROTONOSUPPORT),
    ];
    match known.iter().find(|(text, _)| said.contains(text)) {
        _ if output.status.success() => "0".to_owned(),
        Some((_, errno)) => errno.to_string(),
        None => format!("{NO_ANSWER} {said}"),
    }
}
