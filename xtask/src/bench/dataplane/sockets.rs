//! Datagrams and streams between two network namespaces, sent and received by sockets of this process.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How long each turn sends.
const TURN: Duration = Duration::from_millis(400);
const ROUND_TRIPS: u32 = 4_000;
/// The bytes of a datagram in an Ethernet frame of 64 bytes with its checksum.
const PAYLOAD: usize = 18;

/// What was measured of one way in one turn: datagrams received in a second, and in a second of CPU time; the gigabits of a
/// stream of TCP in a second; the microseconds of a round trip.
pub(super) type Figures = [f64; 4];

/// Two namespaces with an address each, and what connects them.
pub(super) struct Way {
    pub from: &'static str,
    pub to: &'static str,
    pub addresses: [&'static str; 2],
}

/// Runs something in a named network namespace: sockets that it makes stay there.
fn within<T: Send + 'static>(namespace: &str, make: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let file = File::open(format!("/run/netns/{namespace}")).context(namespace.to_owned())?;
    let made = thread::spawn(move || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        make()
    });
    made.join().map_err(|_| anyhow!("the thread in namespace {namespace}"))?
}

/// The CPU time of this process, in steps of 10 ms.
fn cpu_time() -> Result<Duration> {
    // proc_pid_stat(5): utime and stime are the fields 14 and 15; the name, which is in parentheses, is the second.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    // A tick of what user space sees is 10 ms (USER_HZ in include/asm-generic/param.h).
    Ok(Duration::from_millis(ticks * 10))
}

impl Way {
    /// Measures the way for a moment.
    pub(super) fn measure(&self) -> Result<Figures> {
        let round_trip = self.round_trip()?;
        let (wall, cpu) = self.datagrams()?;
        Ok([wall, cpu, self.tcp()?, round_trip])
    }

    /// A socket of each side; the first is connected to the other.
    fn sockets(&self) -> Result<(UdpSocket, UdpSocket)> {
        let [from, to] = self.addresses;
        let receiver = within(self.to, move || Ok(UdpSocket::bind((to, 7_777))?))?;
        let sender = within(self.from, move || {
            let socket = UdpSocket::bind((from, 0))?;
            socket.connect((to, 7_777))?;
            Ok(socket)
        })?;
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        sender.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok((sender, receiver))
    }

    /// How many datagrams are received in a second, and in a second of CPU time of this process, which both sends and
    /// receives them: what the kernel does with a frame on its way is done by these threads.
    fn datagrams(&self) -> Result<(f64, f64)> {
        let (sender, receiver) = self.sockets()?;
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        let (begin, cpu) = (Instant::now(), cpu_time()?);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 2 * PAYLOAD];
                while !stop.load(Ordering::Relaxed) {
                    if receiver.recv(&mut buffer).is_ok() {
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            while begin.elapsed() < TURN {
                for _ in 0..64 {
                    // What there is no room for is not received, and so not counted.
                    let _ = sender.send(&[0; PAYLOAD]);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let received = received.into_inner() as f64;
        ensure!(received > 0.0, "nothing was received from {} in {}", self.from, self.to);
        Ok((received / begin.elapsed().as_secs_f64(), received / (cpu_time()? - cpu).as_secs_f64()))
    }

    /// The microseconds from a datagram to its answer.
    fn round_trip(&self) -> Result<f64> {
        let (sender, receiver) = self.sockets()?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 2 * PAYLOAD];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = receiver.recv_from(&mut buffer) {
                        let _ = receiver.send_to(&buffer[..length], from);
                    }
                }
            });
            let trips = || -> Result<f64> {
                let trip = || -> Result<()> {
                    sender.send(&[0; PAYLOAD])?;
                    sender.recv(&mut [0; 2 * PAYLOAD]).context("no answer to a datagram")?;
                    Ok(())
                };
                // Neighbours are found by the first one.
                trip()?;
                let begin = Instant::now();
                (0..ROUND_TRIPS).try_for_each(|_| trip())?;
                Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS))
            };
            let taken = trips();
            stop.store(true, Ordering::Relaxed);
            taken
        })
    }

    /// The gigabits that one stream carries in a second.
    fn tcp(&self) -> Result<f64> {
        let [_, to] = self.addresses;
        let listener = within(self.to, move || Ok(TcpListener::bind((to, 0))?))?;
        let number = listener.local_addr()?.port();
        let mut sender = within(self.from, move || Ok(TcpStream::connect((to, number))?))?;
        let (mut receiver, _) = listener.accept()?;
        // What is lost on the way for good is told as that.
        sender.set_write_timeout(Some(Duration::from_secs(2)))?;
        receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
        let begin = Instant::now();
        let bytes = thread::scope(|scope| -> Result<u64> {
            let receiving = scope.spawn(move || {
                let (mut buffer, mut bytes) = (vec![0; 1 << 17], 0);
                loop {
                    match receiver.read(&mut buffer) {
                        Ok(0) => return Ok(bytes),
                        Ok(length) => bytes += length as u64,
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            });
            let data = vec![0; 1 << 17];
            let mut sent = Ok(());
            while sent.is_ok() && begin.elapsed() < TURN {
                sent = sender.write_all(&data);
            }
            drop(sender);
            let received = receiving.join().map_err(|_| anyhow!("the thread that receives"))?;
            sent.context("sending by TCP")?;
            Ok(received?)
        })?;
        Ok(bytes as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
    }
}
