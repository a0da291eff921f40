//! Runs the relays on arbitrary bytes from every side: from a program, from the kernel and from a card.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use control::Command;
use devlink::view::{self, DeviceName, Netdev, Profile, RdmaDevice, Role, SwitchId};
use eswitch::{PciAddress, PortHandle, PortIndex};
use netlink::{Flags, Header, messages};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::generic::{Families, Generic};
use super::rdma::Rdma;
use super::route::Route;
use super::{Handler, KernelSocket, Protocol, ROOM, Relay, Socket};
use crate::card::{Card, Refusal};
use crate::cards::Cards;
use crate::lock_order::{self, Cx};
use crate::network::Network;
use crate::process::{Caller, UserNamespace};

/// Has the relay of each protocol handle a datagram: as a request of a program, as a datagram of the kernel, as a
/// notification of a card, and as a card's answer. Locks are checked.
///
/// # Panics
/// The program receives something that is no netlink message, a card gets a command other than to set a VF, or a lock
/// is taken out of order.
pub fn fuzzed(bytes: &[u8]) {
    let bytes = bytes.get(..ROOM).unwrap_or(bytes);
    lockdep::enter(&lock_order::domain(true), "lab-socket", |cx| {
        for protocol in [Protocol::Route, Protocol::Generic, Protocol::Rdma] {
            handle(cx, protocol, bytes);
        }
    });
}

fn handle(cx: Cx<'_, '_>, protocol: Protocol, bytes: &[u8]) {
    let Ok(card) = Echo::new(card(), bytes).map(Arc::new) else { return };
    let Ok((mut relay, reader)) = relay_and_reader(protocol, Arc::clone(&card)) else { return };
    let mut handler: Box<dyn Handler> = match protocol {
        Protocol::Route => Box::new(Route::default()),
        Protocol::Generic => Box::new(Generic::new(Arc::new(Families::default()))),
        Protocol::Rdma => Box::new(Rdma),
    };
    handler.request(cx, &mut relay, bytes);
    handler.kernel(cx, &mut relay, bytes);
    handler.notification(cx, &mut relay, 0, bytes);
    // Once more, now that queries are remembered and the family is known.
    handler.kernel(cx, &mut relay, bytes);
    relay.flush();
    drop(relay);
    assert!(reader.join().is_ok(), "{protocol:?}: the program received something that is no netlink message");
    for command in card.commands.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        assert!(matches!(command, Command::SetVf { .. }), "a card got the command {command:?}");
    }
}

/// Makes a relay whose kernel's socket takes nothing, and a thread that reads, as a program would, all that it is sent.
fn relay_and_reader(protocol: Protocol, card: Arc<Echo>) -> io::Result<(Relay, thread::JoinHandle<()>)> {
    let (relay, program) = relay(protocol, card)?;
    let read = move || {
        let mut buffer = vec![0; ROOM];
        while let Ok((_, length @ 1..)) = recv(&program, &mut buffer[..], RecvFlags::TRUNC) {
            assert!(length <= buffer.len() && messages(&buffer[..length]).next().is_some());
        }
    };
    Ok((relay, thread::Builder::new().name("program".to_owned()).spawn(read)?))
}

/// Makes a relay whose kernel's socket takes nothing, and the program's end of its socket.
fn relay(protocol: Protocol, card: Arc<Echo>) -> io::Result<(Relay, OwnedFd)> {
    let (end, program) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let kernel = OwnedFd::from(std::fs::File::open("/dev/null")?);
    // No process has this number, so no descriptors can be copied from it.
    let all = u64::MAX;
    let caller = Caller {
        process: u32::MAX,
        own: u32::MAX,
        user: 0,
        capabilities: all,
        own_capabilities: all,
        user_namespace: 0,
    };
    let kernel = KernelSocket { socket: kernel, native: false, owner: None };
    let socket =
        Arc::new(Socket::new(protocol, libc::SOCK_RAW as u32, caller, kernel, Arc::new(UserNamespace::ours()))?);
    let network = Network::of_one(Arc::clone(&card.network), 2, PEER)?;
    let cards = Arc::new(Cards::new(vec![card]));
    let mut relay = Relay::new(end, socket, cards);
    relay.set_network(network);
    Ok((relay, program))
}

/// The peer of the card's netdev.
const PEER: u32 = 7;

/// A card whose server answers with the given bytes, and then closes the connection.
struct Echo {
    network: Arc<OwnedFd>,
    view: Arc<view::Card>,
    /// How often the view was requested.
    views: AtomicUsize,
    answer: Vec<u8>,
    /// The commands that it got. A lock of the standard library: it stands for a card, which is outside of the lab's
    /// order.
    commands: Mutex<Vec<Command>>,
}

impl Echo {
    fn new(view: view::Card, answer: &[u8]) -> io::Result<Self> {
        Ok(Self {
            network: Arc::new(std::fs::File::open("/dev/null")?.into()),
            view: Arc::new(view),
            views: AtomicUsize::new(0),
            answer: answer.to_vec(),
            commands: Mutex::default(),
        })
    }
}

impl Card for Echo {
    fn network(&self) -> Option<Arc<OwnedFd>> {
        Some(Arc::clone(&self.network))
    }

    fn view(&self) -> io::Result<Arc<view::Card>> {
        self.views.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(&self.view))
    }

    fn perform(&self, command: &Command) -> Result<(), Refusal> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command.clone());
        Ok(())
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // The family first, so that the relay gets as far as to the bytes that follow.
        send(&ours, &family()?, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        for _ in 0..2 {
            let _ = send(&ours, &self.answer, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        Ok(theirs)
    }
}

/// The answer of `nlctrl` to a request for the family devlink.
fn family() -> io::Result<Vec<u8>> {
    let family = netlink::message(Header::new(16, Flags::empty(), 0, 0), |to| {
        to.genl(1, 2).text(2, "devlink").u16(1, 21).nest(7, |groups| {
            groups.nest(1, |group| {
                group.u32(2, 5).text(1, "config");
            });
        });
    });
    Ok(family?)
}

/// The view of a card with a PF and its RDMA device.
fn card() -> view::Card {
    const PF: PciAddress = PciAddress { domain: 0, bus: 8, device: 0, function: 0 };
    let parent = DeviceName::Pci(PF);
    let vf = view::VfInfo {
        vf: 0,
        mac: [2, 0, 0, 0, 0, 1],
        vlan: 5,
        qos: 3,
        vlan_proto: 0x8100,
        min_tx_rate: 10,
        max_tx_rate: 100,
        spoofchk: true,
        trust: false,
        link_state: 1,
        guids: (1, 2),
    };
    view::Card {
        name: PF.to_string(),
        profile: Profile::mlx5(),
        switch_id: SwitchId([0xb8, 0xce, 0xf6, 3, 0, 0x12, 0xab, 0]),
        functions: vec![view::Function {
            address: PF,
            vf_of: None,
            driver: Some("mlx5_core".to_owned()),
            driver_override: None,
            msix: 64,
            sriov: None,
            netns: None,
        }],
        auxiliary: Vec::new(),
        netdevs: vec![Netdev {
            peer: Some(PEER),
            name: "p0".to_owned(),
            elsewhere: false,
            role: Role::Pf,
            in_switch: true,
            parent,
            port_name: Some("p0".to_owned()),
            dev_port: 0,
            vfs: vec![vf],
            port: Some(PortHandle { device: PF, index: PortIndex(65_535) }),
            driver: "mlx5_core".to_owned(),
            bus_info: PF.to_string(),
            permanent: Some([2, 0, 0, 0, 0, 1]),
        }],
        host_peers: Vec::new(),
        rdma: vec![RdmaDevice::new(
            0,
            "rocep8s0f0".to_owned(),
            parent,
            1,
            vec![view::RdmaPort { number: 1, netdev: Some("p0".to_owned()), roce: true }],
        )],
        rdma_exclusive: false,
        modules: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A relay's program hears this of a card's notification.
    fn heard(notification: &[u8]) -> Vec<u8> {
        let card = Arc::new(Echo::new(card(), &[]).unwrap());
        let (mut relay, program) = relay(Protocol::Route, card).unwrap();
        lockdep::enter(&lock_order::domain(true), "lab-socket", |cx| {
            Route::default().notification(cx, &mut relay, 0, notification);
            relay.flush();
        });
        drop(relay);
        let mut buffer = vec![0; ROOM];
        let (_, length) = recv(&program, &mut buffer[..], RecvFlags::empty()).unwrap();
        buffer.truncate(length);
        buffer
    }

    #[test]
    fn a_member_hears_of_a_cards_filter_at_the_netdev_that_it_knows() {
        let heard = heard(include_bytes!("../../../../fuzz/corpus/relay/tc-filter-event"));
        let message = netlink::Message::first(&heard).unwrap();
        assert_eq!(message.header.kind, tc::numbers::RTM_NEWTFILTER);
        assert_eq!((message.header.port, message.header.sequence), (5, 1));
        assert_eq!(message.header.flags, Flags::CREATE | Flags::EXCL);
        assert_eq!(netlink::u32_at(message.payload(), 4), Some(2), "the interface index");
        assert_eq!(tc::rank(&message), Some((0, 5, 1)));
        let content = message.after(tc::numbers::TCMSG).unwrap();
        assert_eq!(netlink::find(content, tc::numbers::tca::KIND).unwrap().string(), Some("matchall"));
    }

    #[test]
    fn what_is_cut_short_is_not_told() {
        assert!(heard(include_bytes!("../../../../fuzz/corpus/relay/tc-filter-event-cut")).is_empty());
    }

    #[test]
    fn a_program_that_requests_more_than_it_reads_gets_no_further_answers() {
        const NLDEV_PORT_GET: u16 = (5 << 10) + 5;
        let mut view = card();
        let port = view.rdma[0].ports[0].clone();
        view.rdma[0].ports = (1..=1_000).map(|number| view::RdmaPort { number, ..port.clone() }).collect();
        let card = Arc::new(Echo::new(view, &[]).unwrap());
        let (mut relay, program) = relay(Protocol::Rdma, Arc::clone(&card)).unwrap();
        let request = netlink::message(Header::new(NLDEV_PORT_GET, Flags::REQUEST | Flags::DUMP, 1, 0), |to| {
            to.u32(1, 0);
        });
        let packet = request.unwrap().repeat(5_000);
        let domain = lock_order::domain(true);
        let serving = thread::spawn(move || {
            lockdep::enter(&domain, "lab-socket", |cx| Rdma.request(cx, &mut relay, &packet));
        });
        let mut looks = 0;
        loop {
            thread::sleep(Duration::from_millis(100));
            match card.views.load(Ordering::Relaxed) {
                now if now == looks && now > 0 => break,
                now => looks = now,
            }
        }
        assert!(looks < 1_000, "{looks} dumps are built that nobody reads");
        // A program that closes its socket does not hold the thread up.
        drop(program);
        serving.join().unwrap();
    }
}
