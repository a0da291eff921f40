//! What the kernel's RDMA core knows of a card's devices and the card does not (`drivers/infiniband/core/device.c`): their
//! names, in which network namespace each is, their descriptions, and whether namespaces share them.
//!
//! It is kept with the view that other processes read, so every lab of the card sees the same, and is lost when the daemon
//! ends. A device that the card makes anew has its first name again, and is where its devlink instance is.

use std::collections::BTreeMap;

use eswitch::text::escaped;
use netlink::Errno;
use serde::{Deserialize, Serialize};

use crate::card::NetworkRef;
use crate::refusal::Refusal;
use crate::view::{self, DeviceName};

/// The room for the name of a device, with the zero byte at its end (IB_DEVICE_NAME_MAX).
const NAME_MAX: usize = 64;

/// The longest description of a device, in bytes (IB_DEVICE_NODE_DESC_MAX).
pub const NODE_DESC_MAX: usize = 64;

/// A change to what the RDMA core knows. A device is named by its [index](view::RdmaDevice::index).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RdmaChange {
    /// `rdma system set netns`: whether network namespaces share the devices.
    Shared(bool),
    /// `rdma dev set DEV name NAME`.
    Rename {
        /// The device.
        index: u32,
        /// Its new name.
        name: String,
    },
    /// `rdma dev set DEV netns NAME`: to the namespace whose descriptor comes along.
    Move {
        /// The device.
        index: u32,
    },
    /// A write to `node_desc`.
    Describe {
        /// The device.
        index: u32,
        /// The description. What is beyond [`NODE_DESC_MAX`] is cut off, as the kernel does.
        text: Vec<u8>,
    },
    /// `rdma dev set DEV adaptive-moderation on|off`.
    Moderate {
        /// The device.
        index: u32,
        /// Whether it is on.
        on: bool,
    },
}

impl RdmaChange {
    /// The change in the words of rdma(8), for a log.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Self::Shared(shared) => format!("rdma system set netns {}", if *shared { "shared" } else { "exclusive" }),
            Self::Rename { index, name } => format!("rdma dev set {index} name {}", escaped(name)),
            Self::Move { index } => format!("rdma dev set {index} netns"),
            Self::Describe { index, text } => {
                format!("node_desc of RDMA device {index}: {}", escaped(&String::from_utf8_lossy(text)))
            }
            Self::Moderate { index, on } => {
                format!("rdma dev set {index} adaptive-moderation {}", if *on { "on" } else { "off" })
            }
        }
    }

    fn index(&self) -> Option<u32> {
        match self {
            Self::Shared(_) => None,
            Self::Rename { index, .. }
            | Self::Move { index }
            | Self::Describe { index, .. }
            | Self::Moderate { index, .. } => Some(*index),
        }
    }
}

/// Where a device was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To the network namespace in which the card's netdevs appear.
    Home,
    Abroad(NetworkRef),
}

/// What was changed of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Changed {
    parent: DeviceName,
    /// Whether it does RoCE. The device of a PF in switchdev mode does not, and is another one than that in legacy mode.
    roce: bool,
    name: Option<String>,
    place: Option<Place>,
    node_desc: Option<Vec<u8>>,
    moderation: Option<bool>,
}

impl Changed {
    fn nothing_of(device: &view::RdmaDevice) -> Self {
        let (parent, roce) = (device.parent, does_roce(device));
        Self { parent, roce, name: None, place: None, node_desc: None, moderation: None }
    }

    fn is_of(&self, device: &view::RdmaDevice) -> bool {
        (self.parent, self.roce) == (device.parent, does_roce(device))
    }
}

fn does_roce(device: &view::RdmaDevice) -> bool {
    device.ports.first().is_none_or(|port| port.roce)
}

/// What the RDMA core knows of the devices of a card.
#[derive(Debug, Default)]
pub(crate) struct RdmaCore {
    /// Whether each device is seen in its own network namespace only.
    exclusive: bool,
    /// The devices of which something was changed, by their indexes.
    devices: BTreeMap<u32, Changed>,
}

impl RdmaCore {
    /// Whether everything is as at first.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.exclusive && self.devices.is_empty()
    }

    /// Carries a change out. `card`: the view of the card without any. `network`: where a device is to be moved; `None` is the
    /// network namespace in which the card's netdevs appear.
    ///
    /// # Errors
    /// EINVAL: there is no such device, or no device can have that name. EEXIST: another device has the name. EOPNOTSUPP: a
    /// device is to be moved while namespaces share the devices. EBUSY: the mode is to be changed while a device or a
    /// devlink instance is in another namespace.
    pub(crate) fn change(
        &mut self,
        card: &view::Card,
        change: &RdmaChange,
        network: Option<NetworkRef>,
    ) -> Result<(), Refusal> {
        self.forget_all_but(card);
        let Some(index) = change.index() else {
            return self.set_shared(card, matches!(change, RdmaChange::Shared(true)));
        };
        let device = card.rdma.iter().find(|device| device.index == index).ok_or(Refusal::bare(Errno::INVAL))?;
        match change {
            RdmaChange::Rename { name, .. } => return self.rename(card, device, name),
            RdmaChange::Move { .. } if !self.exclusive => return Err(Refusal::bare(Errno::OPNOTSUPP)),
            _ => {}
        }
        let changed = self.devices.entry(index).or_insert_with(|| Changed::nothing_of(device));
        match change {
            RdmaChange::Move { .. } => changed.place = Some(network.map_or(Place::Home, Place::Abroad)),
            RdmaChange::Describe { text, .. } => {
                changed.node_desc = Some(text.iter().copied().take(NODE_DESC_MAX).collect());
            }
            RdmaChange::Moderate { on, .. } => changed.moderation = Some(*on),
            RdmaChange::Shared(_) | RdmaChange::Rename { .. } => {}
        }
        Ok(())
    }

    /// `rdma_compatdev_set`. Which other network namespaces there are is known to those who ask for it; this is about those
    /// in which something of the card is.
    fn set_shared(&mut self, card: &view::Card, shared: bool) -> Result<(), Refusal> {
        if shared != self.exclusive {
            return Ok(());
        }
        let is_abroad = |changed: &Changed| matches!(changed.place, Some(Place::Abroad(_)));
        if self.devices.values().any(is_abroad) || card.has_moved_instance() {
            return Err(Refusal::bare(Errno::BUSY));
        }
        self.exclusive = !shared;
        self.devices.values_mut().for_each(|changed| changed.place = None);
        Ok(())
    }

    /// `ib_device_rename`. The kernel refuses an empty name only; of the others those are refused here which no directory of
    /// `/sys` can have, and those which would break the lines of a file there.
    fn rename(&mut self, card: &view::Card, device: &view::RdmaDevice, name: &str) -> Result<(), Refusal> {
        let is_impossible = |c: char| c == '/' || c.is_control();
        if name.is_empty() || name.len() >= NAME_MAX || [".", ".."].contains(&name) || name.contains(is_impossible) {
            return Err(Refusal::bare(Errno::INVAL));
        }
        if self.name_of(device) == name {
            return Ok(());
        }
        if card.rdma.iter().any(|other| self.name_of(other) == name) {
            return Err(Refusal::bare(Errno::EXIST));
        }
        let changed = self.devices.entry(device.index).or_insert_with(|| Changed::nothing_of(device));
        changed.name = Some(name.to_owned());
        Ok(())
    }

    fn name_of<'a>(&'a self, device: &'a view::RdmaDevice) -> &'a str {
        let name = self.devices.get(&device.index).and_then(|changed| changed.name.as_deref());
        name.unwrap_or(&device.name)
    }

    /// Forgets what was changed of devices that are gone. `card`: the view of the card without any change.
    fn forget_all_but(&mut self, card: &view::Card) {
        let exists = |index: u32, changed: &Changed| {
            card.rdma.iter().any(|device| device.index == index && changed.is_of(device))
        };
        self.devices.retain(|index, changed| exists(*index, changed));
    }

    /// Forgets what was changed of the devices of functions, which are about to be made anew.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(DeviceName) -> bool) {
        self.devices.retain(|_, changed| !is_gone(changed.parent));
    }

    /// Shows what is known in a view of the card without it.
    pub(crate) fn show(&mut self, card: &mut view::Card) {
        self.forget_all_but(card);
        card.rdma_exclusive = self.exclusive;
        let instances: Vec<Option<u64>> = card.rdma.iter().map(|device| card.netns_of(device.parent)).collect();
        for (device, instance) in card.rdma.iter_mut().zip(instances) {
            let changed = self.devices.get(&device.index);
            device.netns = match changed.and_then(|changed| changed.place) {
                _ if !self.exclusive => None,
                Some(Place::Home) => None,
                Some(Place::Abroad(network)) => Some(network.cookie),
                // `mlx5_core_net`.
                None => instance,
            };
            let Some(changed) = changed else { continue };
            if let Some(name) = &changed.name {
                device.name.clone_from(name);
            }
            device.node_desc.clone_from(&changed.node_desc);
            device.moderation = changed.moderation.unwrap_or(device.moderation);
        }
    }

    /// The network namespaces to which devices were moved.
    pub(crate) fn abroad(&self) -> Vec<NetworkRef> {
        let places = self.devices.values().filter_map(|changed| match changed.place? {
            Place::Abroad(network) => Some(network),
            Place::Home => None,
        });
        places.collect()
    }

    /// Brings the devices home that are in a network namespace which has died (`rdma_dev_exit_net`).
    pub(crate) fn bring_home(&mut self, died: &[NetworkRef]) {
        for changed in self.devices.values_mut() {
            if matches!(changed.place, Some(Place::Abroad(network)) if died.contains(&network)) {
                changed.place = Some(Place::Home);
            }
        }
    }
}
