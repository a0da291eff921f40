//! The cards' devices as `/sys` shows them in one network namespace, and the uevents that follow from a change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use devlink::view;
use lockdep::Locked;

use crate::cards::Cards;
use crate::network::{Network, Peer};
use crate::sysfs::tree::{AttributeContext, Dir, Entry, Kernel, Subject};
use crate::sysfs::{Version, tree_now};

/// What has happened to a device (`enum kobject_action`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It has come.
    Add,
    /// It is gone.
    Remove,
    /// Something about it has changed.
    Change,
    /// It has another name.
    Move,
    /// It can be used.
    Online,
    /// It cannot be used.
    Offline,
    /// A driver has been bound to it.
    Bind,
    /// Its driver has been unbound.
    Unbind,
}

impl Action {
    const ALL: [(&str, Self); 8] = [
        ("add", Self::Add),
        ("remove", Self::Remove),
        ("change", Self::Change),
        ("move", Self::Move),
        ("online", Self::Online),
        ("offline", Self::Offline),
        ("bind", Self::Bind),
        ("unbind", Self::Unbind),
    ];

    /// The action with the kernel's name for it.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find_map(|(known, action)| (known == name).then_some(action))
    }

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, action)| *action == self).map_or("", |(name, _)| name)
    }
}

/// What a device is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Netdev(Peer),
    Rdma(usize, u32),
    /// One that keeps its name.
    Named,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    subsystem: String,
    identity: Identity,
    driver: bool,
    /// How many VFs it has, if it is a PF.
    vfs: u32,
    /// The lines of its file `uevent`.
    properties: Vec<String>,
}

/// The devices, by their paths from the root of `/sys`: a device comes after those that it is in.
#[derive(Clone, Default)]
pub(super) struct Devices {
    /// What they were found in; `None`: there is nothing.
    version: Option<Arc<Version>>,
    devices: Arc<BTreeMap<String, Device>>,
}

/// One uevent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    action: Action,
    path: String,
    subsystem: String,
    /// Further lines.
    properties: Vec<String>,
    /// Whether the device belongs to a network namespace.
    pub(super) is_of_network: bool,
}

impl Event {
    /// The message of the kernel (`kobject_uevent_env`).
    pub(super) fn message(&self, sequence: u64) -> Vec<u8> {
        let (action, path) = (self.action.name(), &self.path);
        let mut text = format!("{action}@/{path}\0ACTION={action}\0DEVPATH=/{path}\0SUBSYSTEM={}\0", self.subsystem);
        for property in &self.properties {
            let _ = write!(text, "{property}\0");
        }
        let _ = write!(text, "SEQNUM={sequence}\0");
        text.into_bytes()
    }
}

/// Which netdev a uevent is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetdevIn<'a> {
    /// It has an interface index.
    Index(u32),
    /// A queue's has only the name of its netdev.
    Name(&'a str),
}

/// The netdev in a uevent of the kernel, or of udev. `None`: it is about something else.
pub(super) fn netdev_in(message: &[u8]) -> Option<NetdevIn<'_>> {
    // udev's begin with a header of 40 bytes, whose end does not matter here.
    let fields = || message.split(|byte| *byte == 0);
    let field = |name: &[u8]| std::str::from_utf8(fields().find_map(|field| field.strip_prefix(name))?).ok();
    if let Some(index) = field(b"IFINDEX=") {
        return index.parse().ok().map(NetdevIn::Index);
    }
    let (name, rest) = field(b"DEVPATH=/devices/virtual/net/")?.split_once('/')?;
    rest.starts_with("queues/").then_some(NetdevIn::Name(name))
}

/// A kernel without files: nothing that a file `uevent` says depends on them.
struct NoFiles;

impl Kernel for NoFiles {
    fn read(&self, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn proc_modules(&self) -> Option<Vec<u8>> {
        None
    }
}

impl Devices {
    /// The devices as they are now. `before`: those of an earlier time, which are taken if nothing has changed.
    pub(super) fn now<L>(cx: &mut Locked<'_, L>, cards: &Cards, network: &Network, before: Option<&Self>) -> Self {
        let is_current = |before: &&Self| before.version.as_ref().is_some_and(|v| v.is_current(cx, cards, network));
        if let Some(before) = before.filter(is_current) {
            return before.clone();
        }
        let (devices, version) = tree_now(cx, cards, network, "", |tree, table| {
            let index = |peer| table.netdev(peer).map(|(index, _)| index);
            let device = |dir: &Dir| Some((dir.path.clone(), Device::of(&tree.cards, dir, &index)?));
            tree.each().filter_map(device).collect()
        });
        Self { version: Some(Arc::new(version)), devices: Arc::new(devices) }
    }

    /// The event of an action that a program has asked for.
    pub(super) fn event(&self, path: &str, action: Action) -> Option<Event> {
        let device = self.devices.get(path)?;
        let mut event = device.event(path, action);
        // `kobject_synth_uevent` without an identifier.
        event.properties.insert(0, "SYNTH_UUID=0".to_owned());
        Some(event)
    }

    /// The events of what has changed: what goes, with what is in it first; what comes, with what it is in first; and then
    /// what else has changed.
    pub(super) fn since(&self, before: &Self) -> Vec<Event> {
        if Arc::ptr_eq(&self.devices, &before.devices) {
            return Vec::new();
        }
        let (old, new) = (&*before.devices, &*self.devices);
        let mut events = Vec::new();
        let renamed = |path: &str, device: &Device| {
            let same = |(now, other): &(&String, &Device)| {
                other.identity == device.identity && above(now) == above(path) && !old.contains_key(*now)
            };
            (device.identity != Identity::Named).then(|| new.iter().find(same)).flatten()
        };
        let mut moved = Vec::new();
        for (path, device) in old.iter().rev().filter(|(path, _)| !new.contains_key(*path)) {
            match renamed(path, device) {
                Some((now, device)) => {
                    let mut event = device.event(now, Action::Move);
                    event.properties.push(format!("DEVPATH_OLD=/{path}"));
                    moved.push(now);
                    events.push(event);
                }
                None => {
                    if device.driver {
                        events.push(device.event(path, Action::Unbind).without_driver());
                    }
                    events.push(device.event(path, Action::Remove).without_driver());
                }
            }
        }
        let mut bound = Vec::new();
        for (path, device) in new {
            match old.get(path) {
                None if moved.contains(&path) => {}
                None => {
                    events.push(device.event(path, Action::Add).without_driver());
                    bound.extend(device.driver.then(|| device.event(path, Action::Bind)));
                }
                Some(was) => match (was.driver, device.driver) {
                    (true, false) => events.push(device.event(path, Action::Unbind)),
                    (false, true) => bound.push(device.event(path, Action::Bind)),
                    _ => {}
                },
            }
        }
        // A driver is bound when it has made the devices below.
        events.extend(bound.into_iter().rev());
        // `sriov_enable`.
        let has_got =
            |(path, device): &(&String, &Device)| device.vfs > old.get(*path).map_or(device.vfs, |was| was.vfs);
        events.extend(new.iter().filter(has_got).map(|(path, device)| device.event(path, Action::Change)));
        events
    }
}

/// The directory that a path is in.
fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

impl Event {
    /// The same, of a device that is not bound yet or any more.
    fn without_driver(mut self) -> Self {
        self.properties.retain(|property| !property.starts_with("DRIVER="));
        self
    }
}

impl Device {
    /// The device of a directory, if it is that of one.
    fn of(cards: &[Option<Arc<view::Card>>], dir: &Dir, index: &dyn Fn(Peer) -> Option<u32>) -> Option<Self> {
        let context = AttributeContext { cards, dir, kernel: &NoFiles };
        let (mut identity, mut vfs) = (Identity::Named, 0);
        let mut properties: Vec<String> = Vec::new();
        match dir.subject {
            Subject::Function(..) => {
                vfs = context.function().ok()?.sriov.as_ref().map_or(0, |sriov| u32::from(sriov.enabled));
            }
            Subject::Netdev(card, _) => {
                let peer = Peer { card, index: context.netdev().ok()?.peer? };
                identity = Identity::Netdev(peer);
                properties = vec![format!("INTERFACE={}", context.name()), format!("IFINDEX={}", index(peer)?)];
            }
            Subject::Rdma(card, _) => identity = Identity::Rdma(card, context.rdma().ok()?.index),
            Subject::Auxiliary(..) => {}
            Subject::Module(..) if above(&dir.path) == "module" => {}
            _ => return None,
        }
        if let Some(read) = dir.template.attribute("uevent").and_then(|attribute| attribute.read)
            && properties.is_empty()
        {
            let text = String::from_utf8(read(&context).ok()?).ok()?;
            properties = text.lines().map(str::to_owned).collect();
        }
        let target = |name: &str| match dir.entries.get(name) {
            Some(Entry::Link(target)) => Some(target.rsplit('/').next().unwrap_or_default().to_owned()),
            _ => None,
        };
        let subsystem = match dir.subject {
            Subject::Module(..) => "module".to_owned(),
            _ => target("subsystem")?,
        };
        Some(Self { subsystem, identity, driver: target("driver").is_some(), vfs, properties })
    }

    fn event(&self, path: &str, action: Action) -> Event {
        Event {
            action,
            path: path.to_owned(),
            subsystem: self.subsystem.clone(),
            properties: self.properties.clone(),
            is_of_network: self.identity != Identity::Named,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(subsystem: &str, identity: Identity, driver: bool, properties: &[&str]) -> Device {
        let properties = properties.iter().map(|property| (*property).to_owned()).collect();
        Device { subsystem: subsystem.to_owned(), identity, driver, vfs: 0, properties }
    }

    fn devices(list: &[(&str, Device)]) -> Devices {
        let devices = list.iter().map(|(path, device)| ((*path).to_owned(), device.clone())).collect();
        Devices { devices: Arc::new(devices), ..Devices::default() }
    }

    fn told(before: &Devices, after: &Devices) -> Vec<String> {
        let headers = after.since(before).into_iter().map(|event| format!("{}@{}", event.action.name(), event.path));
        headers.collect()
    }

    #[test]
    fn a_vf_comes_is_renamed_and_goes() {
        let pf = || ("devices/0", device("pci", Identity::Named, true, &["DRIVER=mlx5_core"]));
        let vf = || ("devices/1", device("pci", Identity::Named, true, &["DRIVER=mlx5_core", "PCI_SLOT_NAME=1"]));
        let part =
            || ("devices/1/mlx5_core.eth.1", device("auxiliary", Identity::Named, true, &["DRIVER=mlx5_core.eth"]));
        let netdev = |path| (path, device("net", Identity::Netdev(Peer { card: 0, index: 7 }), false, &[]));
        let mut with_vfs = pf();
        with_vfs.1.vfs = 1;
        let none = devices(&[pf()]);
        let one = devices(&[with_vfs.clone(), vf(), part(), netdev("devices/1/net/eth0")]);
        let renamed = devices(&[with_vfs, vf(), part(), netdev("devices/1/net/a")]);
        let add = [
            "add@devices/1",
            "add@devices/1/mlx5_core.eth.1",
            "add@devices/1/net/eth0",
            "bind@devices/1/mlx5_core.eth.1",
            "bind@devices/1",
            "change@devices/0",
        ];
        assert_eq!(told(&none, &one), add);
        assert_eq!(told(&one, &renamed), ["move@devices/1/net/a"]);
        let gone = [
            "remove@devices/1/net/a",
            "unbind@devices/1/mlx5_core.eth.1",
            "remove@devices/1/mlx5_core.eth.1",
            "unbind@devices/1",
            "remove@devices/1",
        ];
        assert_eq!(told(&renamed, &none), gone);
        assert!(told(&one, &one).is_empty());
    }

    #[test]
    fn a_message_is_the_kernels() {
        let after = devices(&[("devices/1", device("pci", Identity::Named, true, &["DRIVER=vfio-pci", "PCI_ID=1:2"]))]);
        let messages: Vec<String> = after
            .since(&Devices::default())
            .iter()
            .map(|event| String::from_utf8(event.message(9)).unwrap().replace('\0', " "))
            .collect();
        assert_eq!(
            messages,
            [
                "add@/devices/1 ACTION=add DEVPATH=/devices/1 SUBSYSTEM=pci PCI_ID=1:2 SEQNUM=9 ",
                "bind@/devices/1 ACTION=bind DEVPATH=/devices/1 SUBSYSTEM=pci DRIVER=vfio-pci PCI_ID=1:2 SEQNUM=9 ",
            ]
        );
        assert_eq!(netdev_in(b"add@/x\0ACTION=add\0IFINDEX=12\0SEQNUM=1\0"), Some(NetdevIn::Index(12)));
        let queue = b"add@/x\0DEVPATH=/devices/virtual/net/eth0/queues/rx-0\0SUBSYSTEM=queues\0";
        assert_eq!(netdev_in(queue), Some(NetdevIn::Name("eth0")));
        assert_eq!(netdev_in(messages[0].as_bytes()), None);
    }
}
