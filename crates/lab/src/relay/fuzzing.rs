//! The relays, with whatever bytes from whichever side.

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
use super::{Behind, Io, Kernel, Protocol, ROOM, Shared, queue::Queue};
use crate::card::{Card, Refusal};
use crate::cards::Cards;
use crate::process::{Caller, Home};

/// Has every relay take a datagram: from a program, from the kernel, from a card that tells something, and from a
/// card that answers.
///
/// # Panics
/// What the program is given is no netlink message.
pub fn fuzzed(bytes: &[u8]) {
    let bytes = bytes.get(..ROOM).unwrap_or(bytes);
    for protocol in [Protocol::Route, Protocol::Generic, Protocol::Rdma] {
        let card = Arc::new(Echo::new(card(), bytes));
        let Ok((mut io, reader)) = place(protocol, Arc::clone(&card)) else { return };
        let mut behind: Box<dyn Behind> = match protocol {
            Protocol::Route => Box::new(Route::default()),
            Protocol::Generic => Box::new(Generic::new(Arc::new(Families::default()))),
            Protocol::Rdma => Box::new(Rdma),
        };
        behind.request(&mut io, bytes);
        behind.kernel(&mut io, bytes);
        behind.notification(&mut io, bytes);
        // Once more, now that questions are remembered and the family is known.
        behind.kernel(&mut io, bytes);
        io.flush();
        drop(io);
        assert!(reader.join().is_ok(), "{protocol:?}: what the program was given is no netlink message");
        for command in card.told.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            assert!(matches!(command, Command::SetVf { .. }), "a card was told {command:?}");
        }
    }
}

/// A relay whose kernel takes nothing, and a program that reads all it is given.
fn place(protocol: Protocol, card: Arc<Echo>) -> io::Result<(Io, thread::JoinHandle<()>)> {
    let (io, program) = relay(protocol, card)?;
    let read = move || {
        let mut buffer = vec![0; ROOM];
        while let Ok((_, length @ 1..)) = recv(&program, &mut buffer[..], RecvFlags::TRUNC) {
            assert!(length <= buffer.len() && messages(&buffer[..length]).next().is_some());
        }
    };
    Ok((io, thread::Builder::new().name("program".to_owned()).spawn(read)?))
}

/// A relay whose kernel takes nothing, and the program's end.
fn relay(protocol: Protocol, card: Arc<Echo>) -> io::Result<(Io, OwnedFd)> {
    let (end, program) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let kernel = OwnedFd::from(std::fs::File::open("/dev/null")?);
    // No process has this number, so there is none to take descriptors from.
    let caller = Caller { process: u32::MAX, own: u32::MAX, user: 0, capabilities: u64::MAX };
    let kernel = Kernel { socket: kernel, native: false };
    let shared = Arc::new(Shared::new(protocol, libc::SOCK_RAW as u32, caller, kernel, Arc::new(Home::ours()))?);
    let cards = Arc::new(Cards::new(vec![card]));
    Ok((Io { end, shared, cards, queue: Queue::default(), sender: caller, reply: None, deaf: false }, program))
}

/// A card whose server answers with what it is given, as often as there is room for, and then is gone.
struct Echo {
    view: Arc<view::Card>,
    /// How often it was looked at.
    looks: AtomicUsize,
    says: Vec<u8>,
    told: Mutex<Vec<Command>>,
}

impl Echo {
    fn new(view: view::Card, says: &[u8]) -> Self {
        Self { view: Arc::new(view), looks: AtomicUsize::new(0), says: says.to_vec(), told: Mutex::default() }
    }
}

impl Card for Echo {
    fn view(&self) -> io::Result<Arc<view::Card>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::clone(&self.view))
    }

    fn perform(&self, command: &Command) -> Result<(), Refusal> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).push(command.clone());
        Ok(())
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // What tells of the family first, so that what follows gets further.
        send(&ours, &family()?, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        for _ in 0..2 {
            let _ = send(&ours, &self.says, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        Ok(theirs)
    }
}

/// What `nlctrl` would say of devlink.
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

/// A card with a PF and its RDMA device.
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
            sriov: None,
        }],
        auxiliary: Vec::new(),
        netdevs: vec![Netdev {
            name: "p0".to_owned(),
            role: Role::Pf,
            in_switch: true,
            parent,
            port_name: Some("p0".to_owned()),
            dev_port: 0,
            vfs: vec![vf],
            port: Some(PortHandle { device: PF, index: PortIndex(65_535) }),
            driver: "mlx5_core".to_owned(),
            bus_info: PF.to_string(),
        }],
        rdma: vec![RdmaDevice {
            index: 0,
            name: "rocep8s0f0".to_owned(),
            parent,
            node_guid: 1,
            ports: vec![view::RdmaPort { number: 1, netdev: Some("p0".to_owned()) }],
        }],
        modules: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_asks_for_more_than_it_reads_is_not_answered_further() {
        const NLDEV_PORT_GET: u16 = (5 << 10) + 5;
        let mut view = card();
        let port = view.rdma[0].ports[0].clone();
        view.rdma[0].ports = (1..=1_000).map(|number| view::RdmaPort { number, ..port.clone() }).collect();
        let card = Arc::new(Echo::new(view, &[]));
        let (mut io, program) = relay(Protocol::Rdma, Arc::clone(&card)).unwrap();
        let request = netlink::message(Header::new(NLDEV_PORT_GET, Flags::REQUEST | Flags::DUMP, 1, 0), |to| {
            to.u32(1, 0);
        });
        let packet = request.unwrap().repeat(5_000);
        let serving = thread::spawn(move || Rdma.request(&mut io, &packet));
        let mut looks = 0;
        loop {
            thread::sleep(Duration::from_millis(100));
            match card.looks.load(Ordering::Relaxed) {
                now if now == looks && now > 0 => break,
                now => looks = now,
            }
        }
        assert!(looks < 1_000, "{looks} dumps are put together that nobody reads");
        // And who has gone holds up nobody.
        drop(program);
        serving.join().unwrap();
    }
}
