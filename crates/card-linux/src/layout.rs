//! Interface numbers, groups and names inside the card.
//!
//! The card chooses the interface numbers inside it, and computes them from what a netdev is for. So a request can
//! refer to a netdev before it exists, and nothing is ever looked up.

use eswitch::card::Resource;
use eswitch::{PfIndex, RepType, Vport};

/// A vport of a PF. The uplink is one: its port is the wire, and its representor is the PF's netdev.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    pub pf: PfIndex,
    pub vport: Vport,
}

/// What a netdev inside the card is for. Its interface number is `kind << 18 | pf << 16 | low`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    /// The card's end of a function's netdev, or the wire.
    Port(Slot),
    /// The card's end of a representor.
    Inner(Slot),
    /// A bridge of a PF.
    Bridge(PfIndex, u16),
    /// The other end of a wire that leads nowhere.
    Cable(PfIndex),
    /// The end in bridge 0 of the pair that joins another bridge to it.
    Trunk(PfIndex, u16),
    /// The end of that pair in the other bridge.
    Branch(PfIndex, u16),
    /// Where frames of a PF's functions wait whose rate is limited.
    Shaper(PfIndex),
    /// The way to the shaper for frames that flow rules may take.
    Lane(PfIndex),
    /// The other end of that pair, where they come back.
    LaneEnd(PfIndex),
    /// Made to find out whether the kernel can make it, and deleted at once.
    Probe(u16),
}

/// Ports of one bridge. A Linux bridge takes 1,023 at most, and its costs grow with the square of them.
const PORTS_PER_BRIDGE: u16 = 256;

/// The first group for netdevs that are deleted together. The PFs' own netdevs and wires, and the pairs that join
/// bridges, stay in group 0.
const FIRST_GROUP: u32 = 16;

/// The group of netdevs that are about to be deleted.
pub(crate) const DOOMED: u32 = 15;

impl Inside {
    const SHIFT: u32 = 18;

    /// The bits in which the numbers of a slot's port and of its inner end differ.
    pub(crate) const PORT_OR_INNER: u32 = (1 ^ 2) << Self::SHIFT;

    /// The interface number.
    pub(crate) fn index(self) -> u32 {
        let (kind, pf, low) = match self {
            Self::Port(slot) => (1, slot.pf.0, slot.vport.number()),
            Self::Inner(slot) => (2, slot.pf.0, slot.vport.number()),
            Self::Bridge(pf, n) => (3, pf.0, n),
            Self::Cable(pf) => (4, pf.0, 0),
            Self::Trunk(pf, n) => (5, pf.0, n),
            Self::Branch(pf, n) => (6, pf.0, n),
            Self::Probe(n) => (7, 0, n),
            Self::Shaper(pf) => (8, pf.0, 0),
            Self::Lane(pf) => (9, pf.0, 0),
            Self::LaneEnd(pf) => (10, pf.0, 0),
        };
        kind << Self::SHIFT | u32::from(pf) << 16 | u32::from(low)
    }

    /// What the netdev of an interface number is for, if the number is one of the card's.
    pub(crate) fn of(index: u32) -> Option<Self> {
        let (pf, low) = (PfIndex((index >> 16 & 3) as u8), (index & 0xffff) as u16);
        let slot = || Vport::from_number(low, true).map(|vport| Slot { pf, vport });
        Some(match index >> Self::SHIFT {
            1 => Self::Port(slot()?),
            2 => Self::Inner(slot()?),
            3 => Self::Bridge(pf, low),
            4 => Self::Cable(pf),
            5 => Self::Trunk(pf, low),
            6 => Self::Branch(pf, low),
            7 => Self::Probe(low),
            8 => Self::Shaper(pf),
            9 => Self::Lane(pf),
            10 => Self::LaneEnd(pf),
            _ => return None,
        })
    }

    /// The resource whose netdev has this end, if that can be made and unmade on its own.
    pub(crate) fn resource(self) -> Option<Resource> {
        Some(match self {
            Self::Port(Slot { pf, vport }) => match vport {
                Vport::Uplink => return None,
                Vport::Vf(_) => Resource::VfNetdev(pf, vport),
                Vport::Sf(_) => Resource::SfNetdev(pf, vport),
                Vport::HostPf => Resource::Port(pf, vport),
            },
            Self::Inner(Slot { pf, vport: Vport::Uplink }) => Resource::PfNetdev(pf),
            Self::Inner(Slot { pf, vport }) => Resource::Representor(pf, vport, RepType::Eth),
            _ => return None,
        })
    }

    /// The name inside the card, as `ip -n esw-… link` shows it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Port(slot) => match slot.vport {
                Vport::Uplink => format!("wire{}", slot.pf.0),
                Vport::HostPf => format!("p{}h", slot.pf.0),
                Vport::Vf(n) => format!("p{}v{n}", slot.pf.0),
                Vport::Sf(n) => format!("p{}s{n}", slot.pf.0),
            },
            Self::Inner(slot) => match slot.vport {
                Vport::Uplink => format!("up{}", slot.pf.0),
                Vport::HostPf => format!("r{}h", slot.pf.0),
                Vport::Vf(n) => format!("r{}v{n}", slot.pf.0),
                Vport::Sf(n) => format!("r{}s{n}", slot.pf.0),
            },
            Self::Bridge(pf, 0) => format!("br{}", pf.0),
            Self::Bridge(pf, n) => format!("br{}l{n}", pf.0),
            Self::Cable(pf) => format!("cable{}", pf.0),
            Self::Trunk(pf, n) => format!("t{}l{n}", pf.0),
            Self::Branch(pf, n) => format!("b{}l{n}", pf.0),
            Self::Probe(n) => format!("probe{n}"),
            Self::Shaper(pf) => format!("shaper{}", pf.0),
            Self::Lane(pf) => format!("lane{}", pf.0),
            Self::LaneEnd(pf) => format!("lane{}end", pf.0),
        }
    }
}

impl Slot {
    /// The interface number of its port.
    pub(crate) fn port(self) -> u32 {
        Inside::Port(self).index()
    }

    /// The interface number of the inner end of its representor.
    pub(crate) fn inner(self) -> u32 {
        Inside::Inner(self).index()
    }

    /// Which of its PF's bridges its port is on.
    pub(crate) fn bridge(self) -> u16 {
        match self.vport {
            Vport::Uplink => 0,
            vport => vport.number() / PORTS_PER_BRIDGE,
        }
    }

    /// The group of its PF's ports.
    pub(crate) fn port_group(self) -> u32 {
        FIRST_GROUP + u32::from(self.pf.0) * 2
    }

    /// The group of the inner ends of its PF's representors.
    pub(crate) fn inner_group(self) -> u32 {
        FIRST_GROUP + u32::from(self.pf.0) * 2 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_netdev_is_for_can_be_read_from_its_number() {
        let mut seen = std::collections::HashSet::new();
        for pf in (0..4).map(PfIndex) {
            let slots =
                [Vport::Uplink, Vport::HostPf, Vport::Vf(0), Vport::Vf(31_999), Vport::Sf(0), Vport::Sf(32_751)]
                    .map(|vport| Slot { pf, vport });
            let all = slots.iter().flat_map(|s| [Inside::Port(*s), Inside::Inner(*s)]).chain([
                Inside::Bridge(pf, 0),
                Inside::Bridge(pf, 125),
                Inside::Cable(pf),
                Inside::Trunk(pf, 1),
                Inside::Branch(pf, 1),
                Inside::Shaper(pf),
                Inside::Lane(pf),
                Inside::LaneEnd(pf),
            ]);
            for inside in all {
                assert!(inside.index() <= i32::MAX as u32);
                assert_eq!(Inside::of(inside.index()), Some(inside));
                assert!(inside.name().len() <= eswitch::names::IFNAME_MAX);
                assert!(seen.insert(inside.name()), "{} twice", inside.name());
            }
        }
        assert_eq!(Inside::of(1), None, "the loopback");
    }
}
