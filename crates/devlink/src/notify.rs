//! Notifies the clients that have joined the multicast group of changes to devices and ports.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use control::Follower;
use eswitch::auxiliary::AuxiliaryName;
use eswitch::card::Resource;
use eswitch::inspect::{PfView, PortView};
use eswitch::{Event, PciAddress, PortHandle, Touched, Vport};
use lockdep::{Locked, Unlocked};
use netlink::{Builder, Datagram, Flags, Header};
use rustix::net::{self, SendFlags};

use crate::card::Served;
use crate::clients::{Clients, ServedClient};
use crate::command::{
    NotLoaded, device_message, function_port_message, instance_message, notify_gone, notify_new, port_message,
    reporter_message,
};
use crate::family::{DEVLINK, VERSION};
use crate::instance::Instance;
use crate::numbers::{attribute as a, command as c, own};
use crate::tc_filters::At;
use crate::view::DeviceName;

/// Starts a thread that sends notifications, and updates the shared view, until the result is dropped.
///
/// # Errors
/// The system cannot create a thread.
pub(crate) fn start(
    cx: &mut Locked<'_, Unlocked>,
    served: &Arc<Served>,
    clients: &Arc<Clients>,
) -> io::Result<Follower> {
    let mut notifier = Notifier {
        served: Arc::clone(served),
        clients: Arc::clone(clients),
        pending: Vec::new(),
        passed_over: BTreeSet::new(),
        places: BTreeMap::new(),
        not_loaded: BTreeMap::new(),
    };
    Follower::start(cx, served.card.engine(), &served.domain, "notifier", move |cx, events| notifier.handle(cx, events))
}

/// The time after which a PF that a command holds is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(5);

/// Notifies listeners, and publishes in the shared view what work queues have changed. It waits for no command: an
/// event of a PF that a command holds is sent when the command has released the PF.
struct Notifier {
    served: Arc<Served>,
    clients: Arc<Clients>,
    /// Events that are not sent yet, because a command held their PF.
    pending: Vec<Event>,
    /// Ports that were deleted before their notification could be built. Neither their beginning nor their end is
    /// notified, so that for each port the two alternate.
    passed_over: BTreeSet<PortHandle>,
    /// The network namespaces of those instances that are not in the card's, as far as was notified.
    places: BTreeMap<DeviceName, u64>,
    /// How much of each PF was not loaded, as far as was notified, if anything was.
    not_loaded: BTreeMap<PciAddress, usize>,
}

impl Notifier {
    fn handle(&mut self, cx: &mut Locked<'_, Unlocked>, events: Vec<Event>) -> Option<Duration> {
        let is_current = self.served.publish(cx, Touched::Nothing);
        events.iter().for_each(|event| self.forget_settings(cx, event));
        if events.iter().any(|event| matches!(event, Event::PortDel(_) | Event::Unloaded(..) | Event::Mode(..))) {
            let at = At { engine: self.served.card.engine(), host: self.served.host.as_deref() };
            self.served.tc.end_groups_of_gone(cx, at);
        }
        self.pending.extend(events);
        self.notify_listeners(cx);
        (!is_current || !self.pending.is_empty()).then_some(RETRY_AFTER)
    }

    /// Forgets the settings of ports that are gone.
    fn forget_settings(&self, cx: &mut Locked<'_, Unlocked>, event: &Event) {
        // The reporters of the uplink's port go with a reload, which forgets their settings itself.
        if let Event::PortDel(port) = event
            && port.index.0 & 0xffff != u32::from(Vport::Uplink.number())
        {
            self.served.settings.forget_port(cx, DeviceName::Pci(port.device), port.index.0);
        }
    }

    fn notify_listeners(&mut self, cx: &mut Locked<'_, Unlocked>) {
        let events = std::mem::take(&mut self.pending);
        let listeners = self.clients.joined(cx);
        if listeners.is_empty() {
            return;
        }
        // Each PF is inspected once for all of these events.
        let mut pfs: BTreeMap<PciAddress, Inspected> = BTreeMap::new();
        for event in events {
            let Some(device) = self.pf_of(cx, &event) else {
                let mut datagram = Datagram::default();
                self.add_sf(cx, None, &event, &mut datagram);
                send(&listeners, &datagram);
                continue;
            };
            let inspected = pfs.entry(device).or_insert_with(|| Inspected::of(cx, &self.served, device));
            let pf = match inspected {
                Inspected::Busy => {
                    self.pending.push(event);
                    continue;
                }
                Inspected::Free(pf) => pf.as_deref(),
            };
            let mut datagram = Datagram::default();
            self.add_event(cx, device, pf, &event, &mut datagram);
            send(&listeners, &datagram);
        }
    }

    /// The PF that an event concerns, if the event is one that devlink notifies. `None` for an SF that is gone.
    fn pf_of(&self, cx: &mut Locked<'_, Unlocked>, event: &Event) -> Option<PciAddress> {
        let config = self.served.card.engine().config();
        match event {
            Event::DeviceBound(device) | Event::DeviceUnbound(device) => {
                Some(config.vf_at(*device).map_or(*device, |(pf, _)| config.pf_address(pf)))
            }
            Event::SfBound(id) | Event::SfUnbound(id) => self.served.shared.pf_of_sf(cx, *id),
            Event::PortNew(handle) | Event::PortDel(handle) => Some(handle.device),
            Event::Netdev(Resource::PfNetdev(pf) | Resource::Representor(pf, ..), _) => Some(config.pf_address(*pf)),
            Event::LoadFailed(PortHandle { device, .. }, ..)
            | Event::HostVfsFailed(device, _)
            | Event::Vfs(device, _)
            | Event::Loaded(device, ..)
            | Event::Unloaded(device, ..) => Some(*device),
            _ => None,
        }
    }

    /// The network namespace of an instance that exists. If that is another one than the last notification said, notifies
    /// that the instance has left the one and appeared in the other (`devlink_reload_netns_change`).
    fn place(
        &mut self,
        cx: &mut Locked<'_, Unlocked>,
        (device, pf): (DeviceName, Option<&PfView>),
        to: &mut Datagram,
    ) -> Option<u64> {
        let now = self.served.shared.netns_of(cx, device);
        let before = match now {
            Some(netns) => self.places.insert(device, netns),
            None => self.places.remove(&device),
        };
        if before != now {
            let instance = Instance::new(self.served.card.engine().config(), device);
            let is_pf = matches!(device, DeviceName::Pci(address) if !self.is_vf(address));
            notify_gone(is_pf, device, before, to);
            message(to, before, c::DEL, |to| instance_message(to, &instance));
            message(to, now, c::NEW, |to| instance_message(to, &instance));
            notify_new(&self.served, cx, (device, pf), now, to);
        }
        now
    }

    fn add_event(
        &mut self,
        cx: &mut Locked<'_, Unlocked>,
        device: PciAddress,
        pf: Option<&PfView>,
        event: &Event,
        to: &mut Datagram,
    ) {
        let name = DeviceName::Pci(device);
        let left = self.places.get(&name).copied();
        match event {
            Event::DeviceBound(device) if self.is_vf(*device) => {
                self.add_function(cx, (DeviceName::Pci(*device), pf), true, to)
            }
            Event::DeviceUnbound(device) if self.is_vf(*device) => {
                self.add_function(cx, (DeviceName::Pci(*device), pf), false, to);
            }
            Event::DeviceBound(device) => {
                self.places.remove(&name);
                message(to, None, c::NEW, |to| device_message(to, *device));
                notify_new(&self.served, cx, (name, pf), None, to);
            }
            Event::DeviceUnbound(device) => {
                self.places.remove(&name);
                self.not_loaded.remove(device);
                notify_gone(true, name, left, to);
                message(to, left, c::DEL, |to| device_message(to, *device));
            }
            Event::PortNew(handle) => {
                let place = pf.and_then(|_| self.place(cx, (name, pf), to));
                let before = to.len();
                self.add_port(pf, place, |port| port.handle == *handle, to);
                if to.len() == before {
                    self.passed_over.insert(*handle);
                } else {
                    self.passed_over.remove(handle);
                }
            }
            Event::SfBound(_) | Event::SfUnbound(_) => self.add_sf(cx, pf, event, to),
            // When the netdev of a port is renamed, leaves the instance's namespace or comes back, devlink notifies as
            // for a new port (`devlink_port_netdevice_event`).
            Event::Netdev(netdev, _) => {
                let vport = netdev.vport().unwrap_or(Vport::Uplink);
                let place = pf.and_then(|_| self.place(cx, (name, pf), to));
                self.add_port(pf, place, |port| port.vport == vport, to);
            }
            Event::PortDel(handle) if self.passed_over.remove(handle) => {}
            Event::PortDel(handle) => message(to, left, c::PORT_DEL, |to| deleted(to, *handle)),
            Event::LoadFailed(..)
            | Event::HostVfsFailed(..)
            | Event::Vfs(..)
            | Event::Loaded(..)
            | Event::Unloaded(..) => {
                if let Some(pf) = pf {
                    self.add_health(cx, pf, to);
                }
            }
            _ => {}
        }
    }

    /// Adds a notification that describes a port as it is now. A port that was deleted meanwhile has a notification of
    /// its own for that.
    fn add_port(&self, pf: Option<&PfView>, place: Option<u64>, is: impl Fn(&PortView) -> bool, to: &mut Datagram) {
        let Some(pf) = pf else { return };
        if let Some(port) = pf.ports.iter().find(|port| is(port)) {
            message(to, place, c::PORT_NEW, |to| port_message(&self.served, to, pf.index, port));
        }
    }

    /// Adds a notification of the reporter of what is not loaded, if that has changed (`devlink_recover_notify`).
    fn add_health(&mut self, cx: &mut Locked<'_, Unlocked>, pf: &PfView, to: &mut Datagram) {
        let now = NotLoaded::of(pf).len();
        let before = match now {
            0 => self.not_loaded.remove(&pf.address).unwrap_or_default(),
            _ => self.not_loaded.insert(pf.address, now).unwrap_or_default(),
        };
        if before != now {
            let place = self.served.shared.netns_of(cx, DeviceName::Pci(pf.address));
            message(to, place, c::HEALTH_RECOVER, |to| reporter_message(to, pf));
        }
    }

    /// Adds the notifications about an SF, if the event is about one.
    fn add_sf(&mut self, cx: &mut Locked<'_, Unlocked>, pf: Option<&PfView>, event: &Event, to: &mut Datagram) {
        if let Event::SfBound(id) | Event::SfUnbound(id) = *event {
            let device = DeviceName::Auxiliary(AuxiliaryName::Sf { id });
            self.add_function(cx, (device, pf), matches!(event, Event::SfBound(_)), to);
        }
    }

    fn is_vf(&self, device: PciAddress) -> bool {
        self.served.card.engine().config().vf_at(device).is_some()
    }

    /// Adds the notifications of the devlink instance of a VF or SF that is there now, or is gone, and of its port.
    fn add_function(
        &mut self,
        cx: &mut Locked<'_, Unlocked>,
        (device, pf): (DeviceName, Option<&PfView>),
        is_new: bool,
        to: &mut Datagram,
    ) {
        let served = &self.served;
        let left = self.places.remove(&device);
        let config = served.card.engine().config();
        if !is_new {
            let instance = Instance::new(config, device);
            notify_gone(false, device, left, to);
            message(to, left, c::PORT_DEL, |to| function_port_message(served, to, &instance));
            return message(to, left, c::DEL, |to| instance_message(to, &instance));
        }
        // A command that has just ended may have given it its netdev.
        served.publish(cx, Touched::Nothing);
        let place = served.shared.netns_of(cx, device);
        self.places.extend(place.map(|netns| (device, netns)));
        let mut instance = served.shared.instance(cx, config, device);
        if instance.netdev.is_none() {
            // The view may be older than the netdev. This looks at everything, and waits for a command for a moment only.
            served.publish(cx, Touched::Modules);
            instance = served.shared.instance(cx, config, device);
        }
        message(to, place, c::NEW, |to| instance_message(to, &instance));
        message(to, place, c::PORT_NEW, |to| function_port_message(served, to, &instance));
        notify_new(served, cx, (device, pf), place, to);
    }
}

/// Sends notifications to each of these clients. A client whose socket buffer is full misses them.
pub(crate) fn send(listeners: &[Arc<ServedClient>], datagram: &Datagram) {
    if datagram.is_empty() {
        return;
    }
    for client in listeners {
        let _ = net::send(&client.socket, datagram.bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// A PF as found without waiting.
enum Inspected {
    /// A command holds it.
    Busy,
    /// Its state. `None`: it is not bound.
    Free(Option<Box<PfView>>),
}

impl Inspected {
    fn of(cx: &mut Locked<'_, Unlocked>, served: &Served, device: PciAddress) -> Self {
        match served.card.engine().inspect_pf_if_free(cx, device) {
            None => Self::Busy,
            Some(pf) => Self::Free(pf.ok().map(Box::new)),
        }
    }
}

/// Adds a notification. `place`: the network namespace whose programs it is for, if that is not the card's. If it cannot be
/// built, it is left out, as in the kernel when there is no memory for it.
pub(crate) fn message(to: &mut Datagram, place: Option<u64>, command: u8, fill: impl FnOnce(&mut Builder)) {
    let _ = to.message(Header::new(DEVLINK, Flags::empty(), 0, 0), |to| {
        to.genl(command, VERSION);
        fill(to);
        if let Some(netns) = place {
            to.u64(own::NETNS, netns);
        }
    });
}

/// The attributes of a port that was deleted.
fn deleted(to: &mut Builder, port: PortHandle) {
    const NOTSET: u16 = 0;
    to.text(a::BUS_NAME, "pci").text(a::DEV_NAME, &port.device.to_string());
    to.u32(a::PORT_INDEX, port.index.0).u16(a::PORT_TYPE, NOTSET);
}
