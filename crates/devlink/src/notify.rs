//! What happens, told to those who have joined the multicast group.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use eswitch::card::Resource;
use eswitch::inspect::{PfView, PortView};
use eswitch::{Event, PciAddress, PortHandle, Touched, Vport};
use lockdep::{Locked, Unlocked};
use rustix::net::{self, SendFlags};
use scenario::Follower;

use crate::answer::{DEVLINK, VERSION};
use crate::card::Served;
use crate::command::{device_message, port_message};
use crate::numbers::{attribute as a, command as c};
use crate::server::Clients;
use crate::wire::Builder;

/// Tells it until what is returned is dropped.
pub(crate) fn follow(
    cx: &mut Locked<'_, Unlocked>,
    served: &Arc<Served>,
    clients: &Arc<Clients>,
) -> io::Result<Follower> {
    let teller = Teller { served: Arc::clone(served), clients: Arc::clone(clients) };
    Follower::start(cx, served.session.engine(), &served.domain, "notifier", move |cx, events| {
        teller.tell_all(cx, &events)
    })
}

struct Teller {
    served: Arc<Served>,
    clients: Arc<Clients>,
}

impl Teller {
    fn tell_all(&self, cx: &mut Locked<'_, Unlocked>, events: &[Event]) {
        // What can be seen at once, at once; then what takes waiting for a command.
        self.clients.publish(cx, &self.served, Touched::Nothing);
        self.clients.tell_changes(cx, &self.served);
        self.tell_listeners(cx, events);
        self.clients.publish(cx, &self.served, Touched::Everything);
    }

    fn tell_listeners(&self, cx: &mut Locked<'_, Unlocked>, events: &[Event]) {
        let listeners = self.clients.those(cx, |peer| peer.joined.load(Ordering::Relaxed));
        if listeners.is_empty() {
            return;
        }
        // As they are now, looked at once for all of these events.
        let mut pfs: BTreeMap<PciAddress, Option<PfView>> = BTreeMap::new();
        for event in events {
            let mut builder = Builder::default();
            self.tell(cx, &mut pfs, event, &mut builder);
            if builder.is_empty() {
                continue;
            }
            for client in &listeners {
                // Who has no room misses it.
                let _ = net::send(&client.socket, builder.bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            }
        }
    }

    fn tell(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        pfs: &mut BTreeMap<PciAddress, Option<PfView>>,
        event: &Event,
        to: &mut Builder,
    ) {
        match event {
            Event::DeviceBound(device) => message(to, c::NEW, |to| device_message(to, *device)),
            Event::DeviceUnbound(device) => message(to, c::DEL, |to| device_message(to, *device)),
            Event::PortNew(handle) => self.tell_port(cx, pfs, handle.device, |port| port.handle == *handle, to),
            // Of a port whose netdev gets another name devlink tells as of one that comes.
            Event::Renamed(netdev @ (Resource::PfNetdev(pf) | Resource::Representor(pf, ..)), _) => {
                let device = self.served.session.engine().config().pf_address(*pf);
                let vport = netdev.vport().unwrap_or(Vport::Uplink);
                self.tell_port(cx, pfs, device, |port| port.vport == vport, to);
            }
            Event::PortDel(handle) => message(to, c::PORT_DEL, |to| gone(to, *handle)),
            _ => {}
        }
    }

    /// Of a port of a PF, as it is now. One that has gone meanwhile is told of when its going is.
    fn tell_port(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        pfs: &mut BTreeMap<PciAddress, Option<PfView>>,
        device: PciAddress,
        is: impl Fn(&PortView) -> bool,
        to: &mut Builder,
    ) {
        let engine = self.served.session.engine();
        let Some(pf) = pfs.entry(device).or_insert_with(|| engine.inspect_pf(cx, device).ok()) else { return };
        if let Some(port) = pf.ports.iter().find(|port| is(port)) {
            message(to, c::PORT_NEW, |to| port_message(&self.served, to, pf.index, port));
        }
    }
}

fn message(to: &mut Builder, command: u8, fill: impl FnOnce(&mut Builder)) {
    to.begin(DEVLINK, 0, 0, 0).genl(command, VERSION);
    fill(to);
    to.end();
}

/// A port that is no more.
fn gone(to: &mut Builder, port: PortHandle) {
    const NOTSET: u16 = 0;
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, &port.device.to_string());
    to.u32(a::PORT_INDEX, port.index.0).u16(a::PORT_TYPE, NOTSET);
}
