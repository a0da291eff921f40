//! What the kernel's RDMA core knows of a card's devices and the card does not (`drivers/infiniband/core/device.c`): their
//! names, in which network namespace each is, their descriptions, and whether namespaces share them.
//!
//! It is kept with the view that other processes read, so every lab of the card sees the same, and the host of the card
//! [stores](crate::Kept) it. A device that the card makes anew has its first name again, and is where its devlink instance is.

use std::collections::BTreeMap;

use eswitch::text::escaped;
use netlink::Errno;
use serde::{Deserialize, Serialize};

use crate::card::NetworkRef;
use crate::kept::pairs;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    /// To the network namespace in which the card's netdevs appear.
    Home,
    Abroad(NetworkRef),
}

/// What was changed of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RdmaCore {
    /// Whether each device is seen in its own network namespace only.
    exclusive: bool,
    /// The devices of which something was changed, by their indexes.
    #[serde(with = "pairs")]
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
        if self.exclusive {
            // `mlx5_core_net`. Few instances are elsewhere, and of a card with a thousand VFs each is looked for in a list.
            let has_moved = card.has_moved_instance();
            let instance = |device: &view::RdmaDevice| if has_moved { card.netns_of(device.parent) } else { None };
            let places: Vec<Option<u64>> = card
                .rdma
                .iter()
                .map(|device| match self.devices.get(&device.index).and_then(|changed| changed.place) {
                    Some(Place::Home) => None,
                    Some(Place::Abroad(network)) => Some(network.cookie),
                    None => instance(device),
                })
                .collect();
            card.rdma.iter_mut().zip(places).for_each(|(device, place)| device.netns = place);
        }
        for device in &mut card.rdma {
            let Some(changed) = self.devices.get(&device.index) else { continue };
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

    /// Brings every device home.
    pub(crate) fn bring_all_home(&mut self) {
        self.bring_home(&self.abroad());
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

#[cfg(test)]
mod tests {
    use eswitch::PciAddress;

    use super::*;

    const PF: u32 = 0;
    const VF: u32 = 1_000_000;
    const POD: NetworkRef = NetworkRef { cookie: 77, id: 3 };

    fn device(index: u32, name: &str, address: &str, roce: bool) -> view::RdmaDevice {
        let parent = DeviceName::Pci(address.parse::<PciAddress>().unwrap());
        view::RdmaDevice::new(index, name.to_owned(), parent, 1, vec![view::RdmaPort { number: 1, netdev: None, roce }])
    }

    fn card() -> view::Card {
        let function = |address: &str, netns| view::Function {
            address: address.parse().unwrap(),
            vf_of: None,
            driver: None,
            driver_override: None,
            msix: 64,
            sriov: None,
            netns,
        };
        view::Card {
            name: String::new(),
            profile: view::Profile::mlx5(),
            switch_id: view::SwitchId([0; 8]),
            functions: vec![function("0000:08:00.0", None), function("0000:08:00.1", None)],
            auxiliary: Vec::new(),
            netdevs: Vec::new(),
            host_peers: Vec::new(),
            rdma: vec![device(PF, "pf", "0000:08:00.0", true), device(VF, "vf", "0000:08:00.1", true)],
            rdma_exclusive: false,
            modules: Vec::new(),
        }
    }

    fn shown(core: &mut RdmaCore, mut card: view::Card) -> Vec<(String, Option<u64>)> {
        core.show(&mut card);
        card.rdma.into_iter().map(|device| (device.name, device.netns)).collect()
    }

    fn errno(outcome: Result<(), Refusal>) -> Option<Errno> {
        outcome.err().map(|refusal| refusal.errno)
    }

    fn rename(name: &str) -> RdmaChange {
        RdmaChange::Rename { index: VF, name: name.to_owned() }
    }

    #[test]
    fn a_name_is_one_that_a_directory_can_have_and_no_other_device_has() {
        let (mut core, card) = (RdmaCore::default(), card());
        for name in ["", ".", "..", "a/b", "a\nb", &"x".repeat(64)] {
            assert_eq!(errno(core.change(&card, &rename(name), None)), Some(Errno::INVAL), "{name:?}");
        }
        assert_eq!(errno(core.change(&card, &rename("pf"), None)), Some(Errno::EXIST));
        assert_eq!(
            errno(core.change(&card, &RdmaChange::Rename { index: 5, name: "x".to_owned() }, None)),
            Some(Errno::INVAL)
        );
        assert!(core.is_untouched());
        for name in ["vf", ".hidden", "50%", &"x".repeat(63)] {
            core.change(&card, &rename(name), None).unwrap();
            assert_eq!(shown(&mut core, card.clone())[1].0, name);
        }
        // Its first name is free now.
        core.change(&card, &RdmaChange::Rename { index: PF, name: "vf".to_owned() }, None).unwrap();
    }

    #[test]
    fn a_device_that_is_made_anew_has_its_first_name() {
        let (mut core, card) = (RdmaCore::default(), card());
        core.change(&card, &rename("mine"), None).unwrap();
        let mut without = card.clone();
        without.rdma.pop();
        let _ = shown(&mut core, without);
        assert_eq!(shown(&mut core, card.clone())[1].0, "vf", "it was gone");
        core.change(&card, &rename("mine"), None).unwrap();
        let mut switchdev = card.clone();
        switchdev.rdma[1].ports[0].roce = false;
        assert_eq!(shown(&mut core, switchdev)[1].0, "vf", "that of the other mode");
        core.change(&card, &rename("mine"), None).unwrap();
        core.forget(|parent| parent == card.rdma[1].parent);
        assert_eq!(shown(&mut core, card)[1].0, "vf", "it was reloaded");
    }

    #[test]
    fn a_device_is_moved_in_exclusive_mode_and_the_mode_stays_as_long_as_one_is_elsewhere() {
        let (mut core, card) = (RdmaCore::default(), card());
        let go = RdmaChange::Move { index: VF };
        assert_eq!(errno(core.change(&card, &go, Some(POD))), Some(Errno::OPNOTSUPP));
        core.change(&card, &RdmaChange::Shared(false), None).unwrap();
        core.change(&card, &go, Some(POD)).unwrap();
        assert_eq!(shown(&mut core, card.clone())[1].1, Some(77));
        assert_eq!(errno(core.change(&card, &RdmaChange::Shared(true), None)), Some(Errno::BUSY));
        core.change(&card, &RdmaChange::Shared(false), None).unwrap();
        assert_eq!(core.abroad(), [POD]);
        core.bring_home(&[NetworkRef { id: 4, ..POD }]);
        assert_eq!(core.abroad(), [POD], "another one has died");
        core.bring_home(&[POD]);
        assert_eq!(shown(&mut core, card.clone())[1].1, None);
        core.change(&card, &RdmaChange::Shared(true), None).unwrap();
    }

    #[test]
    fn a_device_is_where_its_instance_is_unless_it_was_moved() {
        let (mut core, mut card) = (RdmaCore::default(), card());
        card.functions[1].netns = Some(9);
        assert_eq!(shown(&mut core, card.clone())[1].1, None, "namespaces share it");
        assert_eq!(errno(core.change(&card, &RdmaChange::Shared(false), None)), Some(Errno::BUSY));
        card.functions[1].netns = None;
        core.change(&card, &RdmaChange::Shared(false), None).unwrap();
        card.functions[1].netns = Some(9);
        assert_eq!(shown(&mut core, card.clone())[1].1, Some(9));
        core.change(&card, &RdmaChange::Move { index: VF }, None).unwrap();
        assert_eq!(shown(&mut core, card)[1].1, None, "it was moved home");
    }
}
