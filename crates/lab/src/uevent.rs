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

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use lockdep::{Locked, Mutex};
use netlink::Errno;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
};

use crate::cards::Cards;
use crate::lock_order::{Cx, UeventPorts, UeventState};
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
/// How many bytes of messages wait for a program that does not read, beyond what its socket holds. More are lost, as with a
/// socket of the kernel that is full.
const WAITING: usize = 4 << 20;
/// How many sockets a lab has at most. Beyond, a program gets the kernel's.
const SOCKETS: usize = 1024;
/// The longest message: the kernel's have at most 2 KiB (UEVENT_BUFFER_SIZE), udev's at most 8.
const ROOM: usize = 16 << 10;

/// The uevents of a lab.
pub struct Uevents {
    state: Mutex<UeventState, State>,
    /// The ports (`nl_pid`) of the programs' sockets, by inode. A call on any other socket looks here, and must not wait for
    /// what is done under `state`.
    ports: Mutex<UeventPorts, HashMap<u64, u32>>,
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
    /// Receives the kernel's uevents. The thread waits for it without the lock.
    kernel: Arc<OwnedFd>,
    /// Whether the namespace belongs to the lab's user namespace. Devices of no network namespace are told of only there
    /// (`uevent_net_init`).
    is_initial: bool,
    /// The user who is root in the user namespace to which the namespace belongs: the kernel's messages are root's.
    root: u32,
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
    /// The bytes of those.
    bytes: usize,
}

impl Default for Uevents {
    fn default() -> Self {
        Self {
            state: Mutex::new(State::default()),
            ports: Mutex::new(HashMap::new()),
            wake: OnceLock::new(),
            sequence: AtomicU64::new(1),
        }
    }
}

impl Uevents {
    /// Makes a socket for a program. `network`: the program's network namespace; `None`: the lab's. `port`: the one to have,
    /// if it is free. `root`: the user who is root in the user namespace to which the namespace belongs; `None`: that is the lab's.
    ///
    /// # Errors
    /// The kernel's: without CAP_SYS_ADMIN a lab cannot have these sockets.
    pub(crate) fn open(
        &self,
        cx: Cx<'_, '_>,
        lab: &Arc<Lab>,
        network: Option<&OwnedFd>,
        root: Option<u32>,
        port: u32,
    ) -> io::Result<OwnedFd> {
        let is_initial = root.is_none();
        let root = root.unwrap_or(0);
        let kernel = match network {
            None => open_kernel()?,
            Some(network) => within(network, open_kernel)?,
        };
        let network = lab.cards.networks.of_socket(cx, &kernel).ok_or(Errno::PERM)?;
        let id = network.id()?;
        let (mut state, mut cx) = self.state.lock(cx);
        if state.listeners().count() >= SOCKETS {
            return Err(Errno::MFILE.into());
        }
        if state.office.is_none() {
            state.office = Some(Office::open()?);
        }
        let office = state.office.as_ref().ok_or(Errno::IO)?;
        let (socket, port) = office.socket(port)?;
        let inode = rustix::fs::fstat(&socket)?.st_ino;
        let listener = Listener { inode, port, groups: 0, waiting: VecDeque::new(), bytes: 0 };
        match state.places.iter_mut().find(|place| place.id == id) {
            Some(place) => place.listeners.push(listener),
            None => {
                let devices = Devices::now(&mut cx, &lab.cards, &network, None);
                state.places.push(Place {
                    id,
                    network,
                    kernel: Arc::new(kernel),
                    is_initial,
                    root,
                    devices,
                    held: VecDeque::new(),
                    listeners: vec![listener],
                });
            }
        }
        self.ports.lock_leaf(&mut cx).insert(inode, port);
        if !state.runs {
            if self.wake.get().is_none() {
                let _ = self.wake.set(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            }
            let behind = Arc::clone(lab);
            thread::Builder::new().name("lab-uevents".to_owned()).spawn(move || {
                lockdep::enter(&behind.domain, "lab-uevents", |cx| behind.uevents.carry(cx, &behind.cards));
            })?;
            state.runs = true;
        }
        self.wake();
        Ok(socket)
    }

    /// The port of the socket with an inode, if it is one of these.
    pub(crate) fn port(&self, cx: Cx<'_, '_>, inode: u64) -> Option<u32> {
        self.ports.lock_leaf(cx).get(&inode).copied()
    }

    /// Whether there are any sockets.
    pub(crate) fn is_used(&self, cx: Cx<'_, '_>) -> bool {
        !self.ports.lock_leaf(cx).is_empty()
    }

    /// Changes the multicast groups of a socket. It receives what happens after this has returned.
    pub(crate) fn join(&self, cx: Cx<'_, '_>, cards: &Cards, inode: u64, change: impl Fn(u32) -> u32) {
        let (mut state, mut cx) = self.state.lock(cx);
        let Some((place, office)) = state.place_of(inode) else { return };
        // What has happened before concerns the others.
        place.look(&mut cx, cards, office, self);
        for listener in place.listeners.iter_mut().filter(|listener| listener.inode == inode) {
            listener.groups = change(listener.groups);
        }
    }

    /// Sends what a program sends to multicast groups, to the programs of the same network namespace. `inode`: the
    /// sender's socket.
    pub(crate) fn publish(&self, cx: Cx<'_, '_>, inode: u64, groups: u32, user: u32, bytes: &[u8]) {
        let (mut state, _) = self.state.lock(cx);
        let Some((place, office)) = state.place_of(inode) else { return };
        let bytes: Arc<[u8]> = bytes.into();
        let others =
            place.listeners.iter_mut().filter(|listener| listener.inode != inode && listener.groups & groups != 0);
        let sender = Sender { group: UDEV, user };
        others.for_each(|listener| listener.send(office, sender, &bytes));
    }

    /// Sends what a program sends to a port. `inode`: the sender's socket, which is `from`.
    ///
    /// # Errors
    /// ECONNREFUSED: no program of the same network namespace has the port.
    pub(crate) fn unicast(
        &self,
        cx: Cx<'_, '_>,
        (inode, from): (u64, &OwnedFd),
        to: u32,
        user: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let exists = {
            let (mut state, _) = self.state.lock(cx);
            let place = state.place_of(inode).map(|(place, _)| place);
            place.is_some_and(|place| place.listeners.iter().any(|listener| listener.port == to))
        };
        if !exists {
            return Err(Errno::CONNREFUSED.into());
        }
        post::send_from(from.as_fd(), to, user, bytes)
    }

    /// Sends the uevent that a program has asked for by a write to the file `uevent` of a card's device.
    pub(crate) fn write<L>(&self, cx: &mut Locked<'_, L>, path: &str, action: Action)
    where
        L: lockdep::LockBefore<UeventState>,
    {
        let (mut state, _) = self.state.lock(cx);
        // Without a listener nothing hears of it.
        if !state.places.is_empty() {
            state.written.push((path.to_owned(), action));
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
    }

    /// Goes on with the kernel's number, if that is ahead.
    fn follow_sequence(&self) {
        let kernels = std::fs::read_to_string("/sys/kernel/uevent_seqnum").unwrap_or_default();
        self.sequence.fetch_max(kernels.trim().parse().unwrap_or(0), Ordering::Relaxed);
    }

    /// A number that grows.
    fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
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
                let closed = remove_closed(places, office);
                self.ports.lock_leaf(&mut cx).retain(|_, port| !closed.contains(port));
                if places.is_empty() {
                    *runs = false;
                    return;
                }
            }
            let written = std::mem::take(written);
            if !written.is_empty() {
                self.follow_sequence();
            }
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
        let kernels: Vec<Arc<OwnedFd>> = {
            let (state, _) = self.state.lock(cx);
            state.places.iter().map(|place| Arc::clone(&place.kernel)).collect()
        };
        let mut polled: Vec<PollFd<'_>> = kernels.iter().map(|fd| PollFd::new(&**fd, PollFlags::IN)).collect();
        polled.extend(self.wake.get().map(|wake| PollFd::new(wake, PollFlags::IN)));
        let _ = poll(&mut polled, Timespec::try_from(INTERVAL).ok().as_ref());
        if let Some(wake) = self.wake.get() {
            let _ = rustix::io::read(wake, &mut [0; 8]);
        }
    }
}

/// Removes the sockets that programs have closed, and returns their ports.
fn remove_closed(places: &mut Vec<Place>, office: &Office) -> Vec<u32> {
    let ports: Vec<u32> = places.iter().flat_map(|place| &place.listeners).map(|listener| listener.port).collect();
    let closed = office.closed(&ports);
    for place in places.iter_mut() {
        place.listeners.retain(|listener| !closed.contains(&listener.port));
    }
    places.retain(|place| !place.listeners.is_empty());
    closed
}

/// Opens a kernel's socket in the calling thread's network namespace that receives its uevents, and what udev publishes.
fn open_kernel() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(KOBJECT_UEVENT))?;
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL | UDEV))?;
    Ok(socket)
}

impl State {
    /// The network namespace of the socket with an inode, and from where is sent.
    fn place_of(&mut self, inode: u64) -> Option<(&mut Place, &Office)> {
        let is = |place: &&mut Place| place.listeners.iter().any(|listener| listener.inode == inode);
        self.places.iter_mut().find(is).zip(self.office.as_ref())
    }

    fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.places.iter().flat_map(|place| &place.listeners)
    }
}

impl Place {
    /// Sends the events of what has changed since the last look, and those of the kernel.
    fn look<L>(&mut self, cx: &mut Locked<'_, L>, cards: &Cards, office: &Office, uevents: &Uevents) {
        let now = Devices::now(cx, cards, &self.network, Some(&self.devices));
        let before = std::mem::replace(&mut self.devices, now);
        let events = self.devices.since(&before);
        if !events.is_empty() {
            uevents.follow_sequence();
        }
        for event in events {
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
        let sender = Sender { group: KERNEL, user: self.root };
        members.for_each(|listener| listener.send(office, sender, &bytes));
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
            let members = self.listeners.iter_mut().filter(|listener| listener.groups & held.sender.group != 0);
            members.for_each(|listener| listener.send(office, held.sender, &held.bytes));
        }
    }

    /// Takes what the kernel has sent, and what udev outside has published.
    fn receive(&mut self) {
        let mut buffer = vec![0; ROOM];
        loop {
            let (length, from, user) = match receive(&self.kernel, &mut buffer) {
                Ok(received) => received,
                // Some have been lost, as they would have been by the programs.
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                Err(_) => return,
            };
            let sender = match from.map(|from| (from.pid(), from.groups())) {
                Some((0, KERNEL)) => Sender { group: KERNEL, user: self.root },
                Some((_, UDEV)) => Sender { group: UDEV, user },
                // Somebody sends in the kernel's group.
                _ => continue,
            };
            self.held.push_back(Held { sender, bytes: buffer[..length].into(), since: Instant::now() });
        }
    }
}

/// Receives one message: its length, the address from which it came, and the user who sent it.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<(usize, Option<SocketAddrNetlink>, u32), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::DONTWAIT)?;
    let user = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials.uid.as_raw()),
        _ => None,
    });
    let from = received.address.and_then(|from| SocketAddrNetlink::try_from(from).ok());
    // The user that nobody is.
    Ok((received.bytes, from, user.unwrap_or(65_534)))
}

impl Listener {
    fn send(&mut self, office: &Office, sender: Sender, bytes: &Arc<[u8]>) {
        if self.bytes + bytes.len() <= WAITING {
            self.bytes += bytes.len();
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
            self.bytes -= bytes.len();
            self.waiting.pop_front();
        }
    }
}
