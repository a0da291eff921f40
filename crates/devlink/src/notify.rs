//! What happens, told to those who have joined the multicast group.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use control::Follower;
use eswitch::card::Resource;
use eswitch::inspect::{PfView, PortView};
use eswitch::{Event, PciAddress, PortHandle, Touched, Vport};
use lockdep::{Locked, Unlocked};
use netlink::{Builder, Datagram, Flags, Header};
use rustix::net::{self, SendFlags};

use crate::card::Served;
use crate::clients::Clients;
use crate::command::{device_message, port_message};
use crate::family::{DEVLINK, VERSION};
use crate::numbers::{attribute as a, command as c};

/// Tells it until what is returned is dropped.
pub(crate) fn follow(
    cx: &mut Locked<'_, Unlocked>,
    served: &Arc<Served>,
    clients: &Arc<Clients>,
) -> io::Result<Follower> {
    let mut teller = Teller { served: Arc::clone(served), clients: Arc::clone(clients), untold: Vec::new() };
    Follower::start(cx, served.card.engine(), &served.domain, "notifier", move |cx, events| teller.tell_all(cx, events))
}

/// How soon a PF is looked at again that a command has.
const AGAIN: Duration = Duration::from_millis(5);

/// Tells listeners, and keeps the view that is shared up to what queues do. It waits for no command: of a PF that
/// one has, it tells when the PF is free.
struct Teller {
    served: Arc<Served>,
    clients: Arc<Clients>,
    /// What was not told yet, as its PF, or that of something earlier of the same PF, was not free.
    untold: Vec<Event>,
}

impl Teller {
    fn tell_all(&mut self, cx: &mut Locked<'_, Unlocked>, events: Vec<Event>) -> Option<Duration> {
        let all = self.served.publish(cx, Touched::Nothing);
        self.untold.extend(events);
        self.tell_listeners(cx);
        (!all || !self.untold.is_empty()).then_some(AGAIN)
    }

    fn tell_listeners(&mut self, cx: &mut Locked<'_, Unlocked>) {
        let events = std::mem::take(&mut self.untold);
        let listeners = self.clients.joined(cx);
        if listeners.is_empty() {
            return;
        }
        // As they are now, looked at once for all of these events.
        let mut pfs: BTreeMap<PciAddress, Looked> = BTreeMap::new();
        for event in events {
            let Some(device) = self.of(&event) else { continue };
            let looked = pfs.entry(device).or_insert_with(|| Looked::at(cx, &self.served, device));
            let pf = match looked {
                Looked::Busy => {
                    self.untold.push(event);
                    continue;
                }
                Looked::Free(pf) => pf.as_deref(),
            };
            let mut datagram = Datagram::default();
            self.tell(pf, &event, &mut datagram);
            if datagram.is_empty() {
                continue;
            }
            for client in &listeners {
                // Who has no room misses it.
                let _ = net::send(&client.socket, datagram.bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            }
        }
    }

    /// The PF that there is to tell of after an event.
    fn of(&self, event: &Event) -> Option<PciAddress> {
        match event {
            Event::DeviceBound(device) | Event::DeviceUnbound(device) => Some(*device),
            Event::PortNew(handle) | Event::PortDel(handle) => Some(handle.device),
            Event::Renamed(Resource::PfNetdev(pf) | Resource::Representor(pf, ..), _) => {
                Some(self.served.card.engine().config().pf_address(*pf))
            }
            _ => None,
        }
    }

    fn tell(&self, pf: Option<&PfView>, event: &Event, to: &mut Datagram) {
        match event {
            Event::DeviceBound(device) => message(to, c::NEW, |to| device_message(to, *device)),
            Event::DeviceUnbound(device) => message(to, c::DEL, |to| device_message(to, *device)),
            Event::PortNew(handle) => self.tell_port(pf, |port| port.handle == *handle, to),
            // Of a port whose netdev gets another name devlink tells as of one that comes.
            Event::Renamed(netdev, _) => {
                let vport = netdev.vport().unwrap_or(Vport::Uplink);
                self.tell_port(pf, |port| port.vport == vport, to);
            }
            Event::PortDel(handle) => message(to, c::PORT_DEL, |to| gone(to, *handle)),
            _ => {}
        }
    }

    /// Of a port of a PF, as it is now. One that has gone meanwhile is told of when its going is.
    fn tell_port(&self, pf: Option<&PfView>, is: impl Fn(&PortView) -> bool, to: &mut Datagram) {
        let Some(pf) = pf else { return };
        if let Some(port) = pf.ports.iter().find(|port| is(port)) {
            message(to, c::PORT_NEW, |to| port_message(&self.served, to, pf.index, port));
        }
    }
}

/// A PF, looked at without waiting.
enum Looked {
    /// A command has it.
    Busy,
    /// What there is of it; `None`: it is not bound.
    Free(Option<Box<PfView>>),
}

impl Looked {
    fn at(cx: &mut Locked<'_, Unlocked>, served: &Served, device: PciAddress) -> Self {
        match served.card.engine().inspect_pf_if_free(cx, device) {
            None => Self::Busy,
            Some(pf) => Self::Free(pf.ok().map(Box::new)),
        }
    }
}

/// Adds what is to be told, unless it cannot be built: then nobody hears of it, as when the kernel has no memory for it.
fn message(to: &mut Datagram, command: u8, fill: impl FnOnce(&mut Builder)) {
    let _ = to.message(Header::new(DEVLINK, Flags::empty(), 0, 0), |to| {
        to.genl(command, VERSION);
        fill(to);
    });
}

/// A port that is no more.
fn gone(to: &mut Builder, port: PortHandle) {
    const NOTSET: u16 = 0;
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, &port.device.to_string());
    to.u32(a::PORT_INDEX, port.index.0).u16(a::PORT_TYPE, NOTSET);
}
