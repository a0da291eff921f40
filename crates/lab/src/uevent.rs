//! Uevents: what the kernel tells udev of devices that come, go and change (NETLINK_KOBJECT_UEVENT), for the cards' devices.
//!
//! The kernel knows the cards' devices as veth pairs or not at all. So a program of a lab gets a socket of the lab, on which
//! it receives
//!
//! - the kernel's own uevents of its network namespace, but for those about netdevs that are a card's, and their queues;
//! - uevents of the cards' devices, which follow from comparing what [`/sys`](crate::sysfs) shows before and after a change;
//! - what a program writes to the file `uevent` of a card's device, as `udevadm trigger` does;
//! - what other programs of the lab send: udev publishes devices in the multicast group 2.
//!
//! The messages of a lab are received by its own programs alone: they do not go through the kernel's sockets.
//!
//! [`devices`] says which events follow from a change; [`post`] are the sockets.

mod devices;
mod post;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use lockdep::{Locked, Mutex};
use netlink::Errno;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recvfrom};

use crate::cards::Cards;
use crate::lock_order::{Cx, UeventState};
use crate::network::{Network, NetworkId, within};
use crate::supervisor::Lab;

pub use devices::Action;
use devices::{Devices, Event, NetdevIn};
use post::{Office, Sender};

/// The multicast group in which the kernel sends.
pub(crate) const KERNEL: u32 = 1;
/// The multicast group in which udev sends.
pub(crate) const UDEV: u32 = 2;

/// How long after a change its events are sent at the latest: how often the views are compared while somebody listens.
const INTERVAL: Duration = Duration::from_millis(10);
/// How often it is looked whether sockets have been closed.
const CENSUS: Duration = Duration::from_secs(1);
/// How long the kernel may take from a uevent about a new netdev to the notification that says what the netdev is.
const UNKNOWN: Duration = Duration::from_millis(20);
/// How many messages wait for a program that does not read, beyond what its socket holds. More are lost, as with a socket of
/// the kernel that is full.
const WAITING: usize = 16 << 10;
/// The longest message: the kernel's have at most 2 KiB (UEVENT_BUFFER_SIZE), udev's at most 8.
const ROOM: usize = 16 << 10;

/// The uevents of a lab.
pub struct Uevents {
    state: Mutex<UeventState, State>,
    /// Wakes the thread.
    wake: OnceLock<OwnedFd>,
    sequence: AtomicU64,
}

#[derive(Default)]
struct State {
    /// It is made with the first socket.
    office: Option<Office>,
    places: Vec<Place>,
    /// What programs have written to files `uevent`, by the paths of the devices, until the thread sends it.
    written: Vec<(String, Action)>,
    /// Whether the thread runs.
    runs: bool,
}

/// The listeners in one network namespace.
struct Place {
    id: NetworkId,
    network: Arc<Network>,
    /// Receives the kernel's uevents.
    kernel: OwnedFd,
    /// Whether the namespace belongs to the lab's user namespace. Devices of no network namespace are told of only there
    /// (`uevent_net_init`).
    is_initial: bool,
    devices: Devices,
    /// The kernel's uevents, until it is known what each is about.
    held: VecDeque<Held>,
    listeners: Vec<Listener>,
}

/// A uevent of the kernel, or of udev outside.
struct Held {
    sender: Sender,
    bytes: Arc<[u8]>,
    since: Instant,
}

/// A program's socket.
struct Listener {
    inode: u64,
    port: u32,
    /// The multicast groups of which it is a member, as bits.
    groups: u32,
    waiting: VecDeque<(Sender, Arc<[u8]>)>,
}

/// A program's socket, as its calls see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// Its port (`nl_pid`).
    pub port: u32,
}

impl Default for Uevents {
    fn default() -> Self {
        Self { state: Mutex::new(State::default()), wake: OnceLock::new(), sequence: AtomicU64::new(0) }
    }
}

impl Uevents {
    /// Makes a socket for a program. `network`: the program's network namespace; `None`: the lab's. `port`: the one to have,
    /// if it is free. `is_initial`: whether the namespace belongs to the lab's user namespace.
    ///
    /// # Errors
    /// The kernel's: without CAP_SYS_ADMIN a lab cannot have these sockets.
    pub(crate) fn open(
        &self,
        cx: Cx<'_, '_>,
        lab: &Arc<Lab>,
        network: Option<&OwnedFd>,
        is_initial: bool,
        port: u32,
    ) -> io::Result<OwnedFd> {
        let kernel = match network {
            None => open_kernel()?,
            Some(network) => within(network, open_kernel)?,
        };
        let network = lab.cards.networks.of_socket(cx, &kernel).ok_or(Errno::PERM)?;
        let id = network.id()?;
        let (mut state, mut cx) = self.state.lock(cx);
        if state.office.is_none() {
            state.office = Some(Office::open()?);
        }
        let office = state.office.as_ref().ok_or(Errno::IO)?;
        let (socket, port) = office.socket(port)?;
        let listener =
            Listener { inode: rustix::fs::fstat(&socket)?.st_ino, port, groups: 0, waiting: VecDeque::new() };
        match state.places.iter_mut().find(|place| place.id == id) {
            Some(place) => place.listeners.push(listener),
            None => {
                let devices = Devices::now(&mut cx, &lab.cards, &network, None);
                state.places.push(Place {
                    id,
                    network,
                    kernel,
                    is_initial,
                    devices,
                    held: VecDeque::new(),
                    listeners: vec![listener],
                });
            }
        }
        if !state.runs {
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let _ = self.wake.set(wake);
            let behind = Arc::clone(lab);
            thread::Builder::new().name("lab-uevents".to_owned()).spawn(move || {
                lockdep::enter(&behind.domain, "lab-uevents", |cx| behind.uevents.carry(cx, &behind.cards));
            })?;
            state.runs = true;
        }
        self.wake();
        Ok(socket)
    }

    /// The socket with an inode, if it is one of these.
    pub(crate) fn find(&self, cx: Cx<'_, '_>, inode: u64) -> Option<Known> {
        let (state, _) = self.state.lock(cx);
        let listener = state.listeners().find(|listener| listener.inode == inode)?;
        Some(Known { port: listener.port })
    }

    /// Whether there are any sockets.
    pub(crate) fn is_used(&self, cx: Cx<'_, '_>) -> bool {
        !self.state.lock(cx).0.places.is_empty()
    }

    /// Changes the multicast groups of a socket. It receives what happens after this has returned.
    pub(crate) fn join(&self, cx: Cx<'_, '_>, cards: &Cards, inode: u64, change: impl Fn(u32) -> u32) {
        let (mut state, mut cx) = self.state.lock(cx);
        let State { office, places, .. } = &mut *state;
        let is = |place: &&mut Place| place.listeners.iter().any(|listener| listener.inode == inode);
        let Some((place, office)) = places.iter_mut().find(is).zip(office.as_ref()) else { return };
        // What has happened before concerns the others.
        place.look(&mut cx, cards, office, self);
        for listener in place.listeners.iter_mut().filter(|listener| listener.inode == inode) {
            listener.groups = change(listener.groups);
        }
    }

    /// Sends what a program sends to multicast groups, to the programs of the same network namespace. `inode`: the
    /// sender's socket.
    pub(crate) fn publish(&self, cx: Cx<'_, '_>, inode: u64, groups: u32, bytes: &[u8]) {
        let (mut state, _) = self.state.lock(cx);
        let State { office, places, .. } = &mut *state;
        let is = |place: &&mut Place| place.listeners.iter().any(|listener| listener.inode == inode);
        let Some((place, office)) = places.iter_mut().find(is).zip(office.as_ref()) else { return };
        let bytes: Arc<[u8]> = bytes.into();
        let others =
            place.listeners.iter_mut().filter(|listener| listener.inode != inode && listener.groups & groups != 0);
        others.for_each(|listener| listener.send(office, Sender::Udev, &bytes));
    }

    /// Sends the uevent that a program has asked for by a write to the file `uevent` of a card's device.
    pub(crate) fn write<L>(&self, cx: &mut Locked<'_, L>, path: &str, action: Action)
    where
        L: lockdep::LockBefore<UeventState>,
    {
        self.state.lock(cx).0.written.push((path.to_owned(), action));
        self.wake();
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }

    /// A number that grows: the kernel's, as long as it is ahead.
    fn next_sequence(&self) -> u64 {
        let kernels = std::fs::read_to_string("/sys/kernel/uevent_seqnum").unwrap_or_default();
        let kernels: u64 = kernels.trim().parse().unwrap_or(0);
        let next = |last: u64| Some((last + 1).max(kernels));
        self.sequence.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).map_or(1, |last| (last + 1).max(kernels))
    }

    /// Carries uevents until no socket is left.
    fn carry(&self, cx: Cx<'_, '_>, cards: &Cards) {
        let mut census = Instant::now();
        loop {
            self.wait(cx);
            let (mut state, mut cx) = self.state.lock(cx);
            let State { office, places, written, runs } = &mut *state;
            let Some(office) = office.as_ref() else { return };
            if census.elapsed() >= CENSUS {
                census = Instant::now();
                places.iter_mut().for_each(|place| place.listeners.retain(|listener| office.is_open(listener.port)));
                places.retain(|place| !place.listeners.is_empty());
                if places.is_empty() {
                    *runs = false;
                    return;
                }
            }
            let written = std::mem::take(written);
            for place in places {
                place.look(&mut cx, cards, office, self);
                for (path, action) in &written {
                    let event = place.devices.event(path, *action);
                    event.into_iter().for_each(|event| place.send(office, &event, self));
                }
                place.listeners.iter_mut().for_each(|listener| listener.flush(office));
            }
        }
    }

    fn wait(&self, cx: Cx<'_, '_>) {
        let kernels: Vec<OwnedFd> = {
            let (state, _) = self.state.lock(cx);
            state.places.iter().filter_map(|place| place.kernel.try_clone().ok()).collect()
        };
        let mut polled: Vec<PollFd<'_>> = kernels.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        polled.extend(self.wake.get().map(|wake| PollFd::new(wake, PollFlags::IN)));
        let _ = poll(&mut polled, Timespec::try_from(INTERVAL).ok().as_ref());
        if let Some(wake) = self.wake.get() {
            let _ = rustix::io::read(wake, &mut [0; 8]);
        }
    }
}

/// Opens a kernel's socket in the calling thread's network namespace that receives its uevents, and what udev publishes.
fn open_kernel() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(KOBJECT_UEVENT))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL | UDEV))?;
    Ok(socket)
}

impl State {
    fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.places.iter().flat_map(|place| &place.listeners)
    }
}

impl Place {
    /// Sends the events of what has changed since the last look, and those of the kernel.
    fn look<L>(&mut self, cx: &mut Locked<'_, L>, cards: &Cards, office: &Office, uevents: &Uevents) {
        let now = Devices::now(cx, cards, &self.network, Some(&self.devices));
        let before = std::mem::replace(&mut self.devices, now);
        for event in self.devices.since(&before) {
            self.send(office, &event, uevents);
        }
        self.forward(cx, cards, office);
    }

    fn send(&mut self, office: &Office, event: &Event, uevents: &Uevents) {
        if !self.is_initial && !event.is_of_network {
            return;
        }
        let bytes: Arc<[u8]> = event.message(uevents.next_sequence()).into();
        let members = self.listeners.iter_mut().filter(|listener| listener.groups & KERNEL != 0);
        members.for_each(|listener| listener.send(office, Sender::Kernel, &bytes));
    }

    /// Passes the kernel's uevents on. Those about a card's netdev say what a veth is; the lab has its own.
    fn forward<L>(&mut self, cx: &mut Locked<'_, L>, cards: &Cards, office: &Office) {
        self.receive();
        while let Some(held) = self.held.front() {
            let is_cards = match devices::netdev_in(&held.bytes) {
                Some(NetdevIn::Index(index)) => self.network.look(cx, cards, |table| table.was_cards(index)),
                Some(NetdevIn::Name(name)) => self.network.look(cx, cards, |table| table.was_cards_by_name(name)),
                None => Some(false),
            };
            if is_cards.is_none() && held.since.elapsed() < UNKNOWN {
                return;
            }
            let Some(held) = self.held.pop_front().filter(|_| is_cards != Some(true)) else { continue };
            let group = if held.sender == Sender::Udev { UDEV } else { KERNEL };
            let members = self.listeners.iter_mut().filter(|listener| listener.groups & group != 0);
            members.for_each(|listener| listener.send(office, held.sender, &held.bytes));
        }
    }

    /// Takes what the kernel has sent.
    fn receive(&mut self) {
        let mut buffer = vec![0; ROOM];
        loop {
            let (length, from) = match recvfrom(&self.kernel, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length, from)) => (length, from.and_then(|from| SocketAddrNetlink::try_from(from).ok())),
                // Some have been lost, as they would have been by the programs.
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                Err(_) => return,
            };
            let is_udevs = from.is_some_and(|from| from.groups() == UDEV);
            let sender = if is_udevs { Sender::Udev } else { Sender::Kernel };
            self.held.push_back(Held { sender, bytes: buffer[..length].into(), since: Instant::now() });
        }
    }
}

impl Listener {
    fn send(&mut self, office: &Office, sender: Sender, bytes: &Arc<[u8]>) {
        if self.waiting.len() < WAITING {
            self.waiting.push_back((sender, Arc::clone(bytes)));
        }
        self.flush(office);
    }

    /// Sends what waits, as much as the socket takes.
    fn flush(&mut self, office: &Office) {
        while let Some((sender, bytes)) = self.waiting.front() {
            if !office.send(*sender, self.port, bytes) {
                return;
            }
            self.waiting.pop_front();
        }
    }
}

/// The port of the socket that is to get what is sent to one.
pub(crate) fn unicast(cx: Cx<'_, '_>, uevents: &Uevents, from: &OwnedFd, to: u32, bytes: &[u8]) -> io::Result<()> {
    let exists = {
        let (state, _) = uevents.state.lock(cx);
        state.listeners().any(|listener| listener.port == to)
    };
    // ECONNREFUSED, as the kernel's for a port that nobody has.
    if !exists {
        return Err(Errno::CONNREFUSED.into());
    }
    post::send_from(from.as_fd(), to, bytes)
}
