//! What mlx5e answers to ethtool about a card's netdev, apart from how it is asked: over netlink or by `ioctl`.
//!
//! An answer is a list of attributes as `Documentation/networking/ethtool-netlink.rst` numbers them; an `ioctl` has the
//! same values at other places. PF, VF and SF have the operations of `mlx5e_ethtool_ops`, a representor has those of
//! `mlx5e_rep_ethtool_ops`, which are fewer. An operation that is not there is refused with EOPNOTSUPP.
//!
//! The values are those with which mlx5e starts. The card has no place where another value would be kept, so a request
//! that would change one is refused, and one that changes nothing succeeds. Channels are different: they are the queues
//! of the kernel's netdev, which can be changed.

mod bits;
pub(crate) mod stats;

use std::os::fd::AsFd;

use devlink::view::Role;
use netlink::{Builder, Errno};

pub(crate) use bits::{Bits, put_with, put_without, wanted};

use crate::cards::CardNetdev;
use crate::sys;

/// Numbers of messages (`ETHTOOL_MSG_*`), as programs send them.
pub(crate) mod message {
    pub const STRSET_GET: u8 = 1;
    pub const LINKINFO_GET: u8 = 2;
    pub const LINKINFO_SET: u8 = 3;
    pub const LINKMODES_GET: u8 = 4;
    pub const LINKMODES_SET: u8 = 5;
    pub const WOL_GET: u8 = 9;
    pub const WOL_SET: u8 = 10;
    pub const FEATURES_SET: u8 = 12;
    pub const PRIVFLAGS_GET: u8 = 13;
    pub const PRIVFLAGS_SET: u8 = 14;
    pub const RINGS_GET: u8 = 15;
    pub const RINGS_SET: u8 = 16;
    pub const CHANNELS_SET: u8 = 18;
    pub const COALESCE_GET: u8 = 19;
    pub const COALESCE_SET: u8 = 20;
    pub const PAUSE_GET: u8 = 21;
    pub const PAUSE_SET: u8 = 22;
    pub const FEC_GET: u8 = 29;
    pub const FEC_SET: u8 = 30;
}

/// Sets of strings (`ETH_SS_*`).
pub(crate) const SS_STATS: u32 = 1;
pub(crate) const SS_PRIV_FLAGS: u32 = 2;
pub(crate) const SS_FEATURES: u32 = 4;

/// The name of the feature NETIF_F_HW_TC.
pub(crate) const HW_TC: &str = "hw-tc-offload";

/// `mlx5e_priv_flags`, in order.
pub(crate) const PRIV_FLAGS: [&str; 8] = [
    "rx_cqe_moder",
    "tx_cqe_moder",
    "rx_cqe_compress",
    "rx_striding_rq",
    "rx_no_csum_complete",
    "xdp_tx_mpwqe",
    "skb_tx_mpwqe",
    "tx_port_ts",
];

/// Those that are on at the start on a ConnectX-6 Dx (`mlx5e_build_nic_params`): the first, the fourth, the sixth and
/// the seventh.
const PRIV_FLAGS_ON: u128 = 0b0110_1001;

/// The ring sizes at the start, and the largest (`MLX5E_PARAMS_DEFAULT_LOG_SQ_SIZE`, `…_MAXIMUM_LOG_SQ_SIZE`).
const RING: u32 = 1 << 10;
const RING_MAX: u32 = 1 << 13;

/// `MLX5E_REP_PARAMS_DEF_LOG_SQ_SIZE`.
const RING_REPRESENTOR_TX: u32 = 1 << 7;

const SPEED_UNKNOWN: u32 = u32::MAX;
const DUPLEX_FULL: u8 = 1;
const DUPLEX_UNKNOWN: u8 = 0xff;
const PORT_FIBRE: u8 = 3;
/// ETHTOOL_LINK_MODE_FEC_RS_BIT.
const FEC_RS: u32 = 50;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    U8(u8),
    U32(u32),
    Bits(Bits),
}

/// The attributes of an answer, by their type. The header is not among them.
pub(crate) type Attributes = Vec<(u16, Value)>;

/// Writes attributes. `compact`: bit sets are written as words, else as a list of names.
pub(crate) fn put(to: &mut Builder, attributes: &[(u16, Value)], compact: bool) {
    for (kind, value) in attributes {
        match value {
            Value::U8(number) => to.u8(*kind, *number),
            Value::U32(number) => to.u32(*kind, *number),
            Value::Bits(bits) => to.nest(*kind, |nest| bits.put(nest, compact)),
        };
    }
}

/// A number among attributes; 0 if it is not there.
pub(crate) fn number(attributes: &[(u16, Value)], kind: u16) -> u32 {
    match attributes.iter().find(|(k, _)| *k == kind) {
        Some((_, Value::U8(number))) => (*number).into(),
        Some((_, Value::U32(number))) => *number,
        _ => 0,
    }
}

/// A card's netdev, as ethtool sees it.
pub(crate) struct Nic {
    pub netdev: CardNetdev,
    /// Its interface index and its name in the program's network namespace.
    pub index: u32,
    pub name: String,
    /// Whether it has a link (`netif_running` and `netif_carrier_ok`).
    pub has_link: bool,
}

impl Nic {
    /// `socket`: in the network namespace in which the netdev has this index and name.
    pub fn new(netdev: CardNetdev, index: u32, name: String, socket: impl AsFd) -> Self {
        let flags = sys::netdev_flags(socket, &name);
        let has_link = flags.is_ok_and(|flags| i32::from(flags) & libc::IFF_RUNNING != 0);
        Self { netdev, index, name, has_link }
    }

    /// Whether the operations are those of `mlx5e_rep_ethtool_ops`.
    fn is_representor(&self) -> bool {
        self.netdev.role == Role::Representor
    }

    /// Whether tc rules on the netdev are the E-Switch's: NETIF_F_HW_TC is on for an uplink in switchdev mode and for
    /// every representor (`mlx5e_build_rep_netdev`).
    pub fn has_hw_tc(&self) -> bool {
        self.netdev.in_switch
    }

    /// The answer to a message that requests something.
    ///
    /// # Errors
    /// EOPNOTSUPP: the driver has no such operation for this netdev.
    pub fn answer(&self, command: u8) -> Result<Attributes, Errno> {
        use message as m;
        let representor = self.is_representor();
        match command {
            m::RINGS_GET => Ok(rings(representor)),
            m::COALESCE_GET => Ok(coalesce(representor)),
            _ if representor => Err(Errno::OPNOTSUPP),
            m::LINKINFO_GET => Ok((2..=6).zip([PORT_FIBRE, 0, 0, 0, 0].map(Value::U8)).collect()),
            m::LINKMODES_GET => Ok(self.link_modes()),
            // The firmware offers no kind of wake-up.
            m::WOL_GET => Ok(vec![(2, Value::Bits(Bits::of(0, 0, 8, &[])))]),
            m::PRIVFLAGS_GET => Ok(vec![(2, Value::Bits(priv_flags()))]),
            m::PAUSE_GET => Ok(self.pause()),
            // `mlx5e_get_fec_mode`: the registers of the port are not those of a VF or an SF.
            m::FEC_GET if self.netdev.role == Role::Pf => {
                let modes = Value::Bits(Bits::list(0, bits::LINK_MODES, &bits::LINK_MODE_NAMES));
                Ok(vec![(2, modes), (3, Value::U8(1)), (4, Value::U32(FEC_RS))])
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// The speed in Mb/s; SPEED_UNKNOWN without a link (`mlx5e_ethtool_get_link_ksettings`).
    fn speed(&self) -> u32 {
        if self.has_link { self.netdev.view.card.profile.speed } else { SPEED_UNKNOWN }
    }

    fn link_modes(&self) -> Attributes {
        let modes = bits::link_modes(self.netdev.view.card.profile.speed);
        let duplex = if self.has_link { DUPLEX_FULL } else { DUPLEX_UNKNOWN };
        vec![
            (2, Value::U8(1)),
            (3, Value::Bits(Bits::of(modes, modes, bits::LINK_MODES, &bits::LINK_MODE_NAMES))),
            (5, Value::U32(self.speed())),
            (6, Value::U8(duplex)),
        ]
    }

    /// A PF's port pauses in both directions; a VF and an SF have no port (`mlx5_query_port_pause`).
    fn pause(&self) -> Attributes {
        let on = u8::from(self.netdev.role == Role::Pf);
        [(2, 0), (3, on), (4, on)].map(|(kind, value)| (kind, Value::U8(value))).to_vec()
    }

    /// The names of a set of strings.
    ///
    /// # Errors
    /// EOPNOTSUPP: the driver has no such set for this netdev.
    pub fn strings(&self, set: u32) -> Result<Vec<&'static str>, Errno> {
        match set {
            SS_STATS => Ok(stats::of(&self.netdev).into_iter().map(|(name, _)| name).collect()),
            SS_PRIV_FLAGS if !self.is_representor() => Ok(PRIV_FLAGS.to_vec()),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

/// `mlx5e_ethtool_get_ringparam`. A representor sends from a smaller ring (`mlx5e_build_rep_params`).
fn rings(representor: bool) -> Attributes {
    let tx = if representor { RING_REPRESENTOR_TX } else { RING };
    [(2, RING_MAX), (5, RING_MAX), (6, RING), (9, tx)].map(|(kind, value)| (kind, Value::U32(value))).to_vec()
}

/// `mlx5e_ethtool_get_coalesce`, with the values of `mlx5e_get_def_rx_moderation` and `mlx5e_get_def_tx_moderation`. A
/// representor adapts for what it receives only (`mlx5e_build_rep_params`), and has no CQE mode.
fn coalesce(representor: bool) -> Attributes {
    let mut attributes: Attributes =
        [(2, 8), (3, 128), (6, 8), (7, 128)].map(|(kind, value)| (kind, Value::U32(value))).to_vec();
    attributes.extend([(11, 1), (12, u8::from(!representor))].map(|(kind, value)| (kind, Value::U8(value))));
    if !representor {
        attributes.extend([(24, 0), (25, 1)].map(|(kind, value)| (kind, Value::U8(value))));
    }
    attributes
}

fn priv_flags() -> Bits {
    let all = (1 << PRIV_FLAGS.len()) - 1;
    Bits::of(PRIV_FLAGS_ON, all, PRIV_FLAGS.len() as u32, &bits::PRIV_FLAG_NAMES)
}

/// Checks a request to set numbers: by their type, with the values that are there now. Types that the answer does not
/// have are among them if the request names them.
///
/// # Errors
/// EINVAL: a ring larger than the largest (`ethnl_set_rings`); EOPNOTSUPP: a value differs, and cannot be changed.
pub(crate) fn set(command: u8, now: &[(u16, Value)], wanted: impl Iterator<Item = (u16, u32)>) -> Result<(), Refused> {
    let wanted: Vec<(u16, u32)> = wanted.collect();
    let too_large = |(kind, value): &(u16, u32)| command == message::RINGS_SET && *value > number(now, ring_max(*kind));
    if wanted.iter().any(too_large) {
        return Err(Refused(Errno::INVAL, "requested ring size exceeds maximum"));
    }
    if wanted.iter().any(|(kind, value)| number(now, *kind) != *value) {
        return Err(CONSTANT);
    }
    Ok(())
}

/// The type of the largest value of a ring.
fn ring_max(kind: u16) -> u16 {
    kind.saturating_sub(4)
}

/// The error number of a refusal, and its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub Errno, pub &'static str);

/// The refusal of a change that the card cannot make.
pub(crate) const CONSTANT: Refused = Refused(Errno::OPNOTSUPP, "this card cannot change it");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_refused_and_the_present_value_is_taken() {
        let (rings, pause) = (rings(false), vec![(2, Value::U8(0)), (3, Value::U8(1))]);
        let too_large = Err(Errno::INVAL);
        let constant = Err(CONSTANT.0);
        for (command, now, wanted, expected) in [
            (message::RINGS_SET, &rings, vec![(6, 1024), (9, 1024)], Ok(())),
            (message::RINGS_SET, &rings, vec![(6, 1024), (9, 8192)], constant),
            (message::RINGS_SET, &rings, vec![(6, 8193)], too_large),
            // A ring that the driver does not have has 0 entries at most.
            (message::RINGS_SET, &rings, vec![(7, 1)], too_large),
            (message::PAUSE_SET, &pause, vec![(3, 1)], Ok(())),
            (message::PAUSE_SET, &pause, vec![(3, 0)], constant),
            (message::PAUSE_SET, &pause, vec![(99, 1)], constant),
            (message::PAUSE_SET, &pause, vec![], Ok(())),
        ] {
            let outcome = set(command, now, wanted.clone().into_iter());
            assert_eq!(outcome.map_err(|Refused(errno, _)| errno), expected, "{command} {wanted:?}");
        }
    }
}
