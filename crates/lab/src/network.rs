//! The netdevs of a network namespace that are a card's: known by what the kernel cannot confuse.
//!
//! A card's netdev is one end of a veth pair. The other end, its peer, is in the card's own network namespace, and has an
//! interface index there that does not change for as long as the netdev lives. The kernel reports both of any netdev, in
//! whatever namespace it is and under whatever name: IFLA_LINK has the peer's index, and IFLA_LINK_NETNSID the identifier
//! of the peer's namespace. So no move and no rename has to be followed to know which netdev is which, and a netdev of
//! somebody else's is never taken for a card's.
//!
//! What a namespace has is kept in a table, which is right at every look. The kernel puts a notification into the queue of
//! each listener before it acknowledges the request that caused it; a look first takes what the queue has.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use flow::{TunnelDevice, TunnelKind};
use lockdep::{Locked, Mutex};
use netlink::rtnl::{
    IFINFOMSG, IFLA_EXT_MASK, IFLA_GROUP, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO,
    NETNSA_FD, NETNSA_NSID, RTEXT_FILTER_SKIP_STATS, RTGENMSG, RTM_DELLINK, RTM_DELNSID, RTM_GETLINK, RTM_GETNSID,
    RTM_NEWLINK, RTM_NEWNSID, RTNLGRP_LINK, RTNLGRP_NSID,
};
use netlink::{Errno, Flags, Header, Message, find, messages, u32_at};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cards::Cards;
use crate::lock_order::{KnownNetworks, NetworkTable};
use crate::sys;

/// The peer of a card's netdev: the card, and the interface index in the card's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    /// The index of the card in the lab.
    pub card: usize,
    /// The interface index.
    pub index: u32,
}

/// The identity of a network namespace: the number that the kernel gives no other (SO_NETNS_COOKIE, Linux 5.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NetworkId(u64);

impl NetworkId {
    /// The namespace of a socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Self> {
        const SO_NETNS_COOKIE: i32 = 71;
        let mut number = [0; 8];
        sys::option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut number)?;
        Ok(Self(u64::from_ne_bytes(number)))
    }

    /// Whether it has this number.
    pub fn is(self, number: u64) -> bool {
        self.0 == number
    }

    /// The number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The namespace that a descriptor refers to.
    ///
    /// # Errors
    /// EINVAL: it is no network namespace. EPERM: it may not be entered.
    pub fn of_namespace(namespace: &OwnedFd) -> io::Result<Self> {
        within(namespace, || Self::of_socket(open_route()?))
    }
}

/// The sockets through which the netdevs of a namespace are known. They keep the namespace alive.
pub(crate) struct NetworkSockets {
    /// Receives the notifications about links and about identifiers of namespaces.
    listener: OwnedFd,
    /// Carries requests.
    query: OwnedFd,
}

/// The room for notifications, in bytes. If more arrive between two looks, the kernel drops some and says so, and the
/// table is made again.
const NOTIFICATIONS: i32 = 4 << 20;

impl NetworkSockets {
    /// Opens them in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let listener = open_route()?;
        // The first needs CAP_NET_ADMIN; without it the limit of the system is what there is.
        let room = NOTIFICATIONS.to_ne_bytes();
        if sys::set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room).is_err() {
            sys::set_option(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, &room)?;
        }
        // A socket without a port receives no notification: the kernel takes it for the one that it must not notify.
        rustix::net::bind(&listener, &SocketAddrNetlink::new(0, 0))?;
        for group in [RTNLGRP_LINK, RTNLGRP_NSID] {
            let group = group.to_ne_bytes();
            sys::set_option(&listener, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &group)?;
        }
        Ok(Self { listener, query: open_route()? })
    }

    /// Puts sockets together that another process has opened.
    pub fn received(listener: OwnedFd, query: OwnedFd) -> Self {
        Self { listener, query }
    }

    /// The descriptors, to send them to another process.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.listener.as_fd(), self.query.as_fd()]
    }
}

/// Opens a socket for requests to rtnetlink in the calling thread's network namespace.
///
/// # Errors
/// The kernel's.
pub(crate) fn open_route() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

/// The netdevs of one network namespace.
pub(crate) struct Network {
    sockets: NetworkSockets,
    table: Mutex<NetworkTable, Table>,
}

/// What a card's netdev is connected to, as its namespace sees it: the identifier of the peer's namespace there, and the
/// peer's index.
type End = (i32, u32);

struct Link {
    name: String,
    /// IFLA_GROUP, when it was reported last.
    group: u32,
    end: End,
    /// Whether it has been deleted, or moved to another namespace.
    gone: bool,
}

/// How many netdevs that are gone are remembered: the notification of a deletion does not say what the netdev was
/// connected to.
const REMEMBERED: usize = 4096;

/// The card's namespace as this one sees it.
struct Seen {
    namespace: Arc<OwnedFd>,
    /// `None`: it has no identifier here, so no netdev here has its peer there.
    id: Option<i32>,
}

/// The netdevs of a namespace that have their peers in other namespaces, at the moment of a look.
pub(crate) struct Table {
    links: HashMap<u32, Link>,
    /// The netdev with a peer. A netdev that is gone is not in it.
    by_end: HashMap<End, u32>,
    /// The netdevs that are gone, the oldest first.
    gone: VecDeque<u32>,
    /// Netdevs of which the kernel has not said yet what they are connected to.
    unfinished: HashSet<u32>,
    /// Whether `links` has been filled, and no notification has been lost since.
    is_complete: bool,
    cards: Vec<Option<Seen>>,
    /// Whether an identifier of a namespace may have changed.
    ids_changed: bool,
    version: u64,
    sequence: u32,
    buffer: Vec<u8>,
}

/// The longest datagram that the kernel sends here: it fills 32 KiB, or one message about a PF with many VFs.
const ROOM: usize = 64 << 10;

impl Network {
    pub fn new(sockets: NetworkSockets) -> Self {
        Self { sockets, table: Mutex::new(Table::new()) }
    }

    /// The identity of the namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> io::Result<NetworkId> {
        NetworkId::of_socket(&self.sockets.query)
    }

    /// A network namespace with one netdev, of the first card. The kernel is not asked.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn of_one(namespace: Arc<OwnedFd>, index: u32, peer: u32) -> io::Result<Self> {
        let null = || Ok::<_, io::Error>(OwnedFd::from(std::fs::File::open("/dev/null")?));
        let mut table = Table::new();
        table.links.insert(index, Link { name: "p0".to_owned(), group: 0, end: (0, peer), gone: false });
        table.by_end.insert((0, peer), index);
        table.cards.push(Some(Seen { namespace, id: Some(0) }));
        (table.is_complete, table.ids_changed) = (true, false);
        Ok(Self { sockets: NetworkSockets { listener: null()?, query: null()? }, table: Mutex::new(table) })
    }

    /// Looks at the netdevs as they are now: everything that the kernel has acknowledged to anybody is seen.
    pub fn look<L, T>(&self, cx: &mut Locked<'_, L>, cards: &Cards, work: impl FnOnce(&Table) -> T) -> T {
        let mut table = self.table.lock_leaf(cx);
        table.update(&self.sockets, cards);
        work(&table)
    }

    /// The peers of those of the cards' netdevs that are in a group (IFLA_GROUP). The kernel is asked: it does not notify of
    /// the group of a netdev that is down (`netdev_state_change`).
    pub fn peers_in_group<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards, group: u32) -> Vec<Peer> {
        let mut table = self.table.lock_leaf(cx);
        table.is_complete = false;
        table.update(&self.sockets, cards);
        let members = table.links.values().filter(|link| !link.gone && link.group == group);
        members.filter_map(|link| table.peer_at(link.end)).collect()
    }

    /// The tunnel device with an interface index, if it is one that takes every identifier (`external`). The kernel is asked.
    pub fn tunnel<L>(&self, cx: &mut Locked<'_, L>, index: u32) -> Option<TunnelDevice> {
        let mut found = None;
        let request = |to: &mut netlink::Builder| {
            let mut info = [0; IFINFOMSG];
            info[4..8].copy_from_slice(&index.to_ne_bytes());
            to.raw(&info).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        };
        let mut table = self.table.lock_leaf(cx);
        // ENODEV: there is no such netdev.
        let _ = table.ask(&self.sockets, RTM_GETLINK, Flags::ACK, request, |_, message| {
            found = message.after(IFINFOMSG).and_then(tunnel_in);
        });
        found
    }

    /// For each message of a datagram of the kernel, the peer of the card's netdev that it is about (RTM_NEWLINK,
    /// RTM_DELLINK).
    pub fn peers_in<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards, datagram: &[u8]) -> Vec<Option<Peer>> {
        let mut table = self.table.lock_leaf(cx);
        // The listener may not have got them yet.
        messages(datagram).filter(is_unfinished).for_each(|message| table.note_unfinished(&message));
        table.update(&self.sockets, cards);
        messages(datagram).map(|message| table.peer_in(&message)).collect()
    }
}

/// The tunnel device that a link is.
fn tunnel_in(content: &[u8]) -> Option<TunnelDevice> {
    // IFLA_INFO_KIND, IFLA_INFO_DATA; then the port and COLLECT_METADATA of IFLA_VXLAN_*, IFLA_GENEVE_* and IFLA_GRE_*.
    let info = find(content, IFLA_LINKINFO)?;
    let of_info = |kind| find(info.value, kind);
    let (kind, port, external) = match of_info(1)?.string()? {
        "vxlan" => (TunnelKind::Vxlan, Some(15), 25),
        "geneve" => (TunnelKind::Geneve, Some(5), 6),
        "gretap" | "ip6gretap" => (TunnelKind::Gre, None, 18),
        _ => return None,
    };
    let data = of_info(2)?;
    find(data.value, external).filter(|flag| flag.u8() != Some(0))?;
    let udp_port = match port {
        Some(port) => find(data.value, port)?.u16().map(u16::from_be)?,
        None => 0,
    };
    Some(TunnelDevice { kind, udp_port })
}

impl Table {
    fn new() -> Self {
        Self {
            links: HashMap::new(),
            by_end: HashMap::new(),
            gone: VecDeque::new(),
            unfinished: HashSet::new(),
            is_complete: false,
            cards: Vec::new(),
            ids_changed: true,
            version: 0,
            sequence: 0,
            buffer: vec![0; ROOM],
        }
    }

    /// The netdev with an interface index is a card's: its peer.
    pub fn peer_of(&self, index: u32) -> Option<Peer> {
        self.links.get(&index).filter(|link| !link.gone).and_then(|link| self.peer_at(link.end))
    }

    fn peer_in(&self, message: &Message<'_>) -> Option<Peer> {
        if !matches!(message.header.kind, RTM_NEWLINK | RTM_DELLINK) {
            return None;
        }
        let content = message.after(IFINFOMSG)?;
        // The message itself tells it best, as it may be older or newer than the table. One of another address family
        // (AF_BRIDGE) does not tell, nor does that of a deletion.
        let end = end_in(content).or_else(|| {
            let link = self.links.get(&u32_at(message.payload(), 4)?)?;
            (!link.gone || message.header.kind == RTM_DELLINK).then_some(link.end)
        });
        self.peer_at(end?)
    }

    fn peer_at(&self, (id, index): End) -> Option<Peer> {
        let card = self.cards.iter().position(|card| card.as_ref().is_some_and(|seen| seen.id == Some(id)))?;
        Some(Peer { card, index })
    }

    /// The netdev with a peer, if it is in this namespace: its interface index and its name.
    pub fn netdev(&self, peer: Peer) -> Option<(u32, &str)> {
        let id = self.cards.get(peer.card)?.as_ref()?.id?;
        let index = *self.by_end.get(&(id, peer.index))?;
        Some((index, &self.links.get(&index)?.name))
    }

    /// Whether the netdev with an interface index is or was a card's. `None`: it has no peer elsewhere, or not yet.
    pub fn was_cards(&self, index: u32) -> Option<bool> {
        self.links.get(&index).map(|link| self.peer_at(link.end).is_some())
    }

    /// The same of a netdev by its name.
    pub fn was_cards_by_name(&self, name: &str) -> Option<bool> {
        let mut named = self.links.values().filter(|link| link.name == name).peekable();
        named.peek()?;
        Some(named.any(|link| self.peer_at(link.end).is_some()))
    }

    /// Every netdev with a peer in the network namespace of a card, with its name.
    pub fn each(&self) -> impl Iterator<Item = (Peer, &str)> {
        let present = self.links.values().filter(|link| !link.gone);
        present.filter_map(|link| Some((self.peer_at(link.end)?, &*link.name)))
    }

    /// A number that is another one when a netdev has come, gone, or been renamed.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn update(&mut self, sockets: &NetworkSockets, cards: &Cards) {
        self.drain(sockets);
        // Repeated only if more notifications are lost meanwhile. If the kernel does not answer, the next look tries again.
        for _ in 0..3 {
            if self.is_complete || self.fill(sockets).is_err() {
                break;
            }
            self.drain(sockets);
        }
        self.finish(sockets);
        self.look_at_cards(sockets, cards);
    }

    /// Asks for the netdevs of which the kernel has not said yet what they are connected to.
    fn finish(&mut self, sockets: &NetworkSockets) {
        /// From this number on a dump is cheaper.
        const MANY: usize = 64;
        if self.unfinished.len() >= MANY {
            self.is_complete = false;
            // If it fails, the next look tries again.
            let _ = self.fill(sockets);
            return self.drain(sockets);
        }
        for index in std::mem::take(&mut self.unfinished) {
            let request = |to: &mut netlink::Builder| {
                let mut info = [0; IFINFOMSG];
                info[4..8].copy_from_slice(&index.to_ne_bytes());
                to.raw(&info).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
            };
            // ENODEV: it is gone again, and a notification says so.
            let _ = self.ask(sockets, RTM_GETLINK, Flags::ACK, request, |table, message| table.add(message));
            // One that still has no peer is not a card's, or its peer is being deleted.
            self.unfinished.remove(&index);
        }
    }

    fn note_unfinished(&mut self, message: &Message<'_>) {
        let index = u32_at(message.payload(), 4).filter(|index| self.links.get(index).is_none_or(|link| link.gone));
        self.unfinished.extend(index);
    }

    /// Takes the notifications that have arrived.
    fn drain(&mut self, sockets: &NetworkSockets) {
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            match recv(&sockets.listener, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => messages(&buffer[..length]).for_each(|message| self.notice(&message)),
                Err(Errno::INTR) => {}
                // Some have been lost.
                Err(Errno::NOBUFS) => (self.is_complete, self.ids_changed) = (false, true),
                Err(_) => break,
            }
        }
        self.buffer = buffer;
    }

    fn notice(&mut self, message: &Message<'_>) {
        match message.header.kind {
            RTM_NEWLINK => self.add(message),
            RTM_DELLINK => self.remove(message),
            RTM_NEWNSID | RTM_DELNSID => self.ids_changed = true,
            _ => {}
        }
    }

    fn add(&mut self, message: &Message<'_>) {
        let Some((index, content)) = of_any_family(message) else { return };
        let Some((end, name)) = end_in(content).zip(find(content, IFLA_IFNAME).and_then(|name| name.string())) else {
            // It has no peer elsewhere any more, or never had one.
            self.forget(index);
            if is_unfinished(message) {
                self.unfinished.insert(index);
            }
            return;
        };
        self.unfinished.remove(&index);
        let group = find(content, IFLA_GROUP).and_then(|group| group.u32()).unwrap_or(0);
        match self.links.get(&index) {
            Some(link) if !link.gone && (link.end, link.group, &*link.name) == (end, group, name) => return,
            _ => self.forget(index),
        }
        self.links.insert(index, Link { name: name.to_owned(), group, end, gone: false });
        self.by_end.insert(end, index);
        self.version += 1;
    }

    fn remove(&mut self, message: &Message<'_>) {
        let Some((index, _)) = of_any_family(message) else { return };
        let Some(link) = self.links.get_mut(&index).filter(|link| !link.gone) else { return };
        link.gone = true;
        let end = link.end;
        self.leave(end, index);
        self.gone.push_back(index);
        while self.gone.len() > REMEMBERED {
            if let Some(oldest) = self.gone.pop_front()
                && self.links.get(&oldest).is_some_and(|link| link.gone)
            {
                self.links.remove(&oldest);
            }
        }
    }

    /// Removes a netdev that is another one now.
    fn forget(&mut self, index: u32) {
        if let Some(link) = self.links.remove(&index) {
            self.leave(link.end, index);
        }
    }

    fn leave(&mut self, end: End, index: u32) {
        // Another netdev may have taken the peer's place meanwhile.
        if self.by_end.get(&end) == Some(&index) {
            self.by_end.remove(&end);
        }
        self.version += 1;
    }

    /// Fills the table.
    fn fill(&mut self, sockets: &NetworkSockets) -> io::Result<()> {
        self.links.retain(|_, link| link.gone);
        self.unfinished.clear();
        self.by_end.clear();
        self.version += 1;
        let request = |to: &mut netlink::Builder| {
            to.raw(&[0; IFINFOMSG]).u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        };
        let is_whole = self.ask(sockets, RTM_GETLINK, Flags::DUMP, request, |table, message| table.add(message))?;
        // A dump that was interrupted may lack a netdev.
        self.is_complete = is_whole;
        Ok(())
    }

    /// Finds out under which identifiers this namespace knows those of the cards.
    fn look_at_cards(&mut self, sockets: &NetworkSockets, cards: &Cards) {
        let count = cards.len();
        self.cards.resize_with(count, || None);
        for n in 0..count {
            let now = cards.card(n).and_then(|card| card.network());
            let same = match (&self.cards[n], &now) {
                (Some(seen), Some(now)) => Arc::ptr_eq(&seen.namespace, now),
                (None, None) => true,
                _ => false,
            };
            if same && (now.is_none() || !self.ids_changed) {
                continue;
            }
            let seen = now.map(|namespace| Seen { id: self.id_of(sockets, &namespace), namespace });
            let changed = self.cards[n].as_ref().and_then(|seen| seen.id) != seen.as_ref().and_then(|seen| seen.id);
            self.version += u64::from(changed);
            self.cards[n] = seen;
        }
        self.ids_changed = false;
    }

    /// The identifier of another namespace in this one (RTM_GETNSID). `None`: it has none, or the kernel does not tell.
    fn id_of(&mut self, sockets: &NetworkSockets, namespace: &OwnedFd) -> Option<i32> {
        let mut id = None;
        let request = |to: &mut netlink::Builder| {
            to.raw(&[0; RTGENMSG]).u32(NETNSA_FD, namespace.as_raw_fd() as u32);
        };
        let read = |_: &mut Self, message: &Message<'_>| {
            let attribute = message.after(RTGENMSG).and_then(|content| find(content, NETNSA_NSID));
            id = attribute.and_then(|id| id.u32()).map(u32::cast_signed).filter(|id| *id >= 0);
        };
        self.ask(sockets, RTM_GETNSID, Flags::ACK, request, read).ok()?;
        id
    }

    /// Sends a request, and calls `each` for every message of the answer. Returns `false` if the answer is a dump that
    /// was interrupted.
    fn ask(
        &mut self,
        sockets: &NetworkSockets,
        kind: u16,
        flags: Flags,
        fill: impl FnOnce(&mut netlink::Builder),
        mut each: impl FnMut(&mut Self, &Message<'_>),
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let request =
            netlink::message(Header::new(kind, Flags::REQUEST | flags, sequence, 0), fill).map_err(Errno::from)?;
        rustix::io::retry_on_intr(|| send(&sockets.query, &request, SendFlags::empty()))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut whole = true;
        let answered = loop {
            let length = match recv(&sockets.query, &mut buffer[..], RecvFlags::empty()) {
                Ok((_, length)) => length,
                Err(Errno::INTR) => continue,
                Err(error) => break Err(error.into()),
            };
            let mut end = None;
            // What is left of an answer that was not read to its end has another number.
            for message in messages(&buffer[..length]).filter(|message| message.header.sequence == sequence) {
                whole &= !message.header.flags.contains(Flags::DUMP_INTR);
                match message.outcome() {
                    Some(outcome) => end = Some(outcome.result.map_err(io::Error::from)),
                    None => each(self, &message),
                }
            }
            if let Some(end) = end {
                break end;
            }
        };
        self.buffer = buffer;
        answered.map(|()| whole)
    }
}

/// The index and the attributes in a message about a link as such, not about its part in a bridge.
fn of_any_family<'a>(message: &Message<'a>) -> Option<(u32, &'a [u8])> {
    let payload = message.payload();
    (*payload.first()? == 0).then_some((u32_at(payload, 4)?, message.after(IFINFOMSG)?))
}

/// Whether a message is the first about one end of a veth pair, which the kernel sends before it connects the pair
/// (`veth_newlink`).
fn is_unfinished(message: &Message<'_>) -> bool {
    let Some((_, content)) = of_any_family(message).filter(|_| message.header.kind == RTM_NEWLINK) else {
        return false;
    };
    let is_veth = || {
        let info = find(content, IFLA_LINKINFO)?;
        Some(find(info.value, IFLA_INFO_KIND)?.string() == Some("veth"))
    };
    find(content, IFLA_LINK).and_then(|link| link.u32()) == Some(0) && is_veth() == Some(true)
}

/// What a netdev is connected to, if that is in another namespace.
fn end_in(content: &[u8]) -> Option<End> {
    let number = |kind| find(content, kind).and_then(|attribute| attribute.u32());
    Some((number(IFLA_LINK_NETNSID)?.cast_signed(), number(IFLA_LINK).filter(|index| *index != 0)?))
}

/// The network namespaces that programs of a lab look at.
pub(crate) struct Networks {
    /// Those in use. A namespace of a pod must not outlive the pod because a program once looked at it.
    known: Mutex<KnownNetworks, HashMap<NetworkId, Weak<Network>>>,
    /// The identity of the lab's own, and the netdevs in it, once they were needed.
    own: OnceLock<Option<NetworkId>>,
    first: OnceLock<Arc<Network>>,
}

impl Networks {
    pub fn new() -> Self {
        Self { known: Mutex::new(HashMap::new()), own: OnceLock::new(), first: OnceLock::new() }
    }

    /// The lab's own namespace: the one that all threads of the supervisor are in.
    fn own(&self) -> Option<NetworkId> {
        *self.own.get_or_init(|| open_route().and_then(NetworkId::of_socket).ok())
    }

    /// The namespace of a socket, of whatever protocol. `None`: the supervisor has no right to look into it, so that no
    /// netdev there can be a card's.
    pub fn of_socket<L>(&self, cx: &mut Locked<'_, L>, socket: impl AsFd) -> Option<Arc<Network>> {
        let id = NetworkId::of_socket(socket.as_fd()).ok()?;
        if self.is_own(id) {
            return self.own_network().ok();
        }
        let known = self.known.lock_leaf(cx).get(&id).and_then(Weak::upgrade);
        if let Some(known) = known {
            return Some(known);
        }
        let network = Arc::new(Network::new(within(&sys::network_of(socket).ok()?, NetworkSockets::open).ok()?));
        let mut known = self.known.lock_leaf(cx);
        known.retain(|_, network| network.strong_count() > 0);
        // Another thread may have been faster; there may be two.
        known.insert(id, Arc::downgrade(&network));
        Some(network)
    }

    fn own_network(&self) -> io::Result<Arc<Network>> {
        if let Some(first) = self.first.get() {
            return Ok(Arc::clone(first));
        }
        let network = Arc::new(Network::new(NetworkSockets::open()?));
        Ok(Arc::clone(self.first.get_or_init(|| network)))
    }

    /// Whether a namespace is the lab's own.
    pub fn is_own(&self, id: NetworkId) -> bool {
        self.own() == Some(id)
    }
}

/// Runs `work` in a thread in another network namespace.
pub(crate) fn within<T: Send>(
    namespace: impl AsFd + Sync,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}
