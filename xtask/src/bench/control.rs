//! What a request on the control socket costs, compared with an echo of the same size, and whether each of many
//! simultaneous clients gets its share. The card is in memory, and in this process, so that what is measured is the socket, the
//! server's thread and the protocol.
//!
//! The placement of the client's and the server's thread matters more than what they do: on one core a message
//! costs a switch of threads, on two a wake-up of the other core, which in a virtual machine involves the host. By
//! default the kernel's scheduler decides this for each pair of threads, and an echo on one core may be compared with a server
//! on two. So the threads are pinned, in the same way for the echo and the server, and each placement is a row.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use devlink::numbers::{attribute, command};
use devlink::{Access, ControlSocket, DEVLINK, Server, connect};
use netlink::{Flags, Header, messages};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use crate::memory_card;

use super::{Measurement, Quantity, Row, Target, by_turns};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[
    Measurement { name: "control: a request", run: a_request },
    Measurement { name: "control: many clients", run: many_clients },
];

const TURNS: usize = 41;
const CLIENTS: usize = 100;
const FOR: Duration = Duration::from_secs(3);
const PF: &str = "0000:08:00.0";
/// The name of the threads that the server has for its clients.
const SERVING: &str = "client";

/// Runs `work` while a card's control socket is served.
fn with_card<T>(work: impl FnOnce(&PathBuf) -> Result<T>) -> Result<T> {
    let path = std::env::temp_dir().join(format!("esw-bench-{}.sock", std::process::id()));
    memory_card::with_served(|served, cx| {
        let access = Access { group: None, clients: 2 * CLIENTS };
        let mut socket = ControlSocket::bind(&path, 0o600, None)?;
        let listener = socket.take_listener().context("the socket does not listen")?;
        let server = Server::start(cx, Arc::clone(served), listener, access)?;
        let done = work(&path);
        drop(server);
        drop(socket);
        done
    })
}

fn request(number: u8, flags: Flags) -> Result<Vec<u8>> {
    let header = Header::new(DEVLINK, Flags::REQUEST | flags, 1, 0);
    let request = netlink::message(header, |to| {
        to.genl(number, 1).text(attribute::BUS_NAME, "pci").text(attribute::DEV_NAME, PF);
    });
    Ok(request?)
}

/// Sends a request and reads up to the length of an answer; returns the length.
fn ask(socket: &OwnedFd, request: &[u8], expected: usize, buffer: &mut [u8]) -> Result<usize> {
    send(socket, request, SendFlags::NOSIGNAL)?;
    let mut came = 0;
    loop {
        came += recv(socket, &mut *buffer, RecvFlags::empty())?.1;
        if came >= expected {
            return Ok(came);
        }
    }
}

fn timed(requests: usize, socket: &OwnedFd, request: &[u8], expected: usize) -> Duration {
    let mut buffer = [0; 4096];
    let start = Instant::now();
    for _ in 0..requests {
        if let Err(error) = ask(socket, request, expected, &mut buffer) {
            panic!("a request: {error}");
        }
    }
    start.elapsed()
}

/// The processors of the client's and of the answering thread.
#[derive(Clone, Copy)]
struct Placement {
    name: &'static str,
    /// Requests of a turn: about as long on two cores as on one.
    requests: usize,
    asks: usize,
    answers: usize,
}

/// The placements that there are processors for.
fn placements(processors: &CpuSet) -> Vec<Placement> {
    let mut allowed = (0..CpuSet::MAX_CPU).filter(|processor| processors.is_set(*processor));
    let first = allowed.next().unwrap_or(0);
    let mut placements = vec![Placement { name: "one core", requests: 2_000, asks: first, answers: first }];
    placements.extend(allowed.next().map(|second| Placement {
        name: "two cores",
        requests: 200,
        asks: first,
        answers: second,
    }));
    placements
}

/// Pins a thread to one processor; `None`: the calling thread.
fn pin(thread: Option<Pid>, processor: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(processor);
    sched_setaffinity(thread, &only).context("placing a thread")
}

/// The threads of this process that serve clients.
fn serving() -> Result<Vec<Pid>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir("/proc/self/task").context("/proc/self/task")? {
        let path = entry?.path();
        // A thread may have ended meanwhile.
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
        threads.extend(number.filter(|_| name.trim_end() == SERVING));
    }
    Ok(threads)
}

fn a_request() -> Result<Vec<Row>> {
    let anywhere = sched_getaffinity(None)?;
    let rows = with_card(|path| {
        let mut rows = Vec::new();
        for place in placements(&anywhere) {
            for (name, number) in [("dev eswitch show", command::ESWITCH_GET), ("dev show", command::GET)] {
                for (how, flags) in [("an answer", Flags::empty()), ("an answer and an acknowledgement", Flags::ACK)] {
                    let what = format!("devlink {name} on the control socket, {}: {how}", place.name);
                    rows.push(one_request(path, place, &request(number, flags)?, !flags.is_empty(), what)?);
                }
            }
        }
        Ok(rows)
    });
    sched_setaffinity(None, &anywhere)?;
    rows
}

fn one_request(path: &Path, place: Placement, asked: &[u8], is_acknowledged: bool, what: String) -> Result<Row> {
    let before = serving()?;
    let ours = connect(path)?;
    let expected = answer_length(&ours, asked, is_acknowledged)?;
    // It has answered, so it exists.
    let server = serving()?.into_iter().find(|thread| !before.contains(thread));
    pin(Some(server.context("no thread serves this client")?), place.answers)?;
    pin(None, place.asks)?;
    let (theirs, end) = echo(expected, place.answers)?;
    let each = |total: Duration| Quantity { value: total.as_secs_f64() * 1e6 / place.requests as f64, unit: "us" };
    let timed = |socket| timed(place.requests, socket, asked, expected);
    let turns = by_turns(TURNS, || timed(&ours), || timed(&theirs));
    drop(theirs);
    let _ = end.join();
    let with = format!("an echo of {} and {expected} bytes", asked.len());
    let row = Row::compared(what, each(turns.ours), &with, each(turns.theirs), turns.ratio);
    Ok(row.target(Target::RatioAtMost(1.5)))
}

/// The number of bytes of an answer, with its acknowledgement if one was requested.
fn answer_length(socket: &OwnedFd, asked: &[u8], acknowledged: bool) -> Result<usize> {
    let mut buffer = [0; 4096];
    send(socket, asked, SendFlags::NOSIGNAL)?;
    let (mut length, mut ended) = (0, false);
    while !ended {
        let came = recv(socket, &mut buffer[..], RecvFlags::empty())?.1;
        length += came;
        let last = messages(&buffer[..came]).last().context("no answer")?;
        ended = !acknowledged || last.outcome().is_some();
    }
    Ok(length)
}

/// A thread that answers everything with this number of bytes, on one processor.
fn echo(answer: usize, processor: usize) -> Result<(OwnedFd, thread::JoinHandle<()>)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let serve = move || {
        let mut buffer = [0; 4096];
        let answer = vec![0; answer];
        while let Ok((_, 1..)) = recv(&theirs, &mut buffer[..], RecvFlags::empty()) {
            if send(&theirs, &answer, SendFlags::NOSIGNAL).is_err() {
                return;
            }
        }
    };
    let (tell, told) = std::sync::mpsc::channel();
    let thread = thread::Builder::new().spawn(move || {
        let _ = tell.send(gettid());
        serve();
    })?;
    pin(Some(told.recv().context("the echo has not started")?), processor)?;
    Ok((ours, thread))
}

fn many_clients() -> Result<Vec<Row>> {
    with_card(|path| {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = request(command::ESWITCH_GET, Flags::empty())?;
        let clients: Vec<thread::JoinHandle<Result<usize>>> = (0..CLIENTS)
            .map(|_| {
                let (socket, stop, asked) = (connect(path)?, Arc::clone(&stop), asked.clone());
                Ok(thread::Builder::new().spawn(move || {
                    let (mut done, mut buffer) = (0, [0; 4096]);
                    while !stop.load(Ordering::Relaxed) {
                        ask(&socket, &asked, 1, &mut buffer)?;
                        done += 1;
                    }
                    Ok(done)
                })?)
            })
            .collect::<Result<_>>()?;
        thread::sleep(FOR);
        stop.store(true, Ordering::Relaxed);
        let join = |client: thread::JoinHandle<_>| client.join().map_err(|_| anyhow!("a client panicked"))?;
        let counts: Vec<usize> = clients.into_iter().map(join).collect::<Result<_>>()?;
        let mean = counts.iter().sum::<usize>() as f64 / CLIENTS as f64;
        let share = |of: Option<&usize>| Quantity { value: of.map_or(0.0, |n| *n as f64 / mean), unit: "of a share" };
        let rate = Quantity { value: mean * CLIENTS as f64 / FOR.as_secs_f64(), unit: "requests/s" };
        let half = Quantity { value: 0.5, unit: "of a share" };
        Ok(vec![
            Row::alone(format!("{CLIENTS} clients at once, all"), rate),
            Row::alone("the slowest of them".to_owned(), share(counts.iter().min())).target(Target::AtLeast(half)),
            Row::alone("the quickest".to_owned(), share(counts.iter().max())),
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_has_two_places_where_there_are_two_processors() {
        let mut processors = CpuSet::new();
        processors.set(3);
        let places = |processors: &CpuSet| -> Vec<_> {
            placements(processors).iter().map(|place| (place.name, place.asks, place.answers)).collect()
        };
        assert_eq!(places(&processors), [("one core", 3, 3)]);
        processors.set(5);
        processors.set(6);
        assert_eq!(places(&processors), [("one core", 3, 3), ("two cores", 3, 5)]);
    }
}
