//! A stream of numbered datagrams between two network namespaces, and which of them arrived.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How often one is sent; and where the receiver may not have the room for what waits, which is root's to give.
const EVERY: Duration = Duration::from_millis(1);
const SELDOM: Duration = Duration::from_millis(5);
/// Bytes that a receiver that does not get to run for a while may have waiting.
const WAITING: usize = 32 * 1024 * 1024;

/// A stream of datagrams. It ends when this is dropped.
pub struct Stream {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    pause: AtomicBool,
    paused: AtomicBool,
    sent: AtomicU64,
    /// The datagrams that have arrived, and the errors of those that the kernel refused to send.
    arrived: Mutex<BTreeSet<u64>>,
    refused: Mutex<Vec<String>>,
}

/// A socket in a named network namespace.
fn socket_in(namespace: &str, address: &'static str) -> Result<UdpSocket> {
    let file = File::open(format!("/run/netns/{namespace}")).context(namespace.to_owned())?;
    // Only this thread changes its namespace, and a socket stays in the namespace in which it was made.
    let made = thread::spawn(move || -> Result<UdpSocket> {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(UdpSocket::bind(address)?)
    });
    made.join().map_err(|_| anyhow!("the thread that makes a socket"))?
}

impl Stream {
    /// Begins a stream from 10.77.0.1 in the namespace `one` to 10.77.0.2 in the namespace `two`.
    pub fn start() -> Result<Self> {
        let from = socket_in("one", "10.77.0.1:0").context("a socket in namespace one")?;
        let to = socket_in("two", "10.77.0.2:7777").context("a socket in namespace two")?;
        to.set_read_timeout(Some(Duration::from_millis(100)))?;
        let every = set_socket_recv_buffer_size_force(&to, WAITING).map_or(SELDOM, |()| EVERY);
        from.connect("10.77.0.2:7777")?;
        let shared = Arc::new(Shared::default());
        let sends = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("sends".to_owned()).spawn(move || shared.send(&from, every))?
        };
        let receives = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("receives".to_owned()).spawn(move || shared.receive(&to))?
        };
        Ok(Self { shared, threads: vec![sends, receives] })
    }

    /// Pauses, checks that everything sent since the last check has arrived, and returns how many datagrams that were.
    pub fn check(&self) -> Result<u64, String> {
        let shared = &self.shared;
        shared.pause.store(true, Ordering::Release);
        while !shared.paused.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(1));
        }
        let sent = shared.sent.load(Ordering::Acquire);
        let until = Instant::now() + Duration::from_secs(2);
        let arrived = || shared.arrived.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        while arrived() < sent && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
        let there = std::mem::take(&mut *shared.arrived.lock().unwrap_or_else(PoisonError::into_inner));
        let refused = std::mem::take(&mut *shared.refused.lock().unwrap_or_else(PoisonError::into_inner));
        shared.sent.store(0, Ordering::Release);
        shared.paused.store(false, Ordering::Release);
        shared.pause.store(false, Ordering::Release);
        if let Some(refused) = refused.first() {
            return Err(format!("the kernel refused to send: {refused}"));
        }
        let missing: Vec<u64> = (0..sent).filter(|n| !there.contains(n)).collect();
        if let Some(first) = missing.first() {
            return Err(format!("{} of {sent} packets were lost, the first of them number {first}", missing.len()));
        }
        Ok(sent)
    }
}

impl Shared {
    fn send(&self, socket: &UdpSocket, every: Duration) {
        while !self.stop.load(Ordering::Acquire) {
            if self.pause.load(Ordering::Acquire) {
                self.paused.store(true, Ordering::Release);
                thread::sleep(every);
                continue;
            }
            let n = self.sent.load(Ordering::Acquire);
            match socket.send(&n.to_ne_bytes()) {
                Ok(_) => self.sent.store(n + 1, Ordering::Release),
                Err(error) => {
                    self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                }
            }
            thread::sleep(every);
        }
    }

    fn receive(&self, socket: &UdpSocket) {
        let mut number = [0; 8];
        while !self.stop.load(Ordering::Acquire) {
            if socket.recv(&mut number).is_ok_and(|length| length == 8) {
                self.arrived.lock().unwrap_or_else(PoisonError::into_inner).insert(u64::from_ne_bytes(number));
            }
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
