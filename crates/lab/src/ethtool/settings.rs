//! The settings of one netdev that can be changed, with the bounds that mlx5e checks.
//!
//! Facts are those of Linux 6.12, `drivers/net/ethernet/mellanox/mlx5/core/`: the values at the start are those of
//! `mlx5e_build_nic_params` (`en_main.c`) for a PF, a VF and an SF, and of `mlx5e_build_rep_params` (`en_rep.c`) for a
//! representor and for an uplink, which a PF in switchdev mode is.

use std::borrow::Cow;

use devlink::view::{Netdev, Role};
use netlink::Errno;

use super::Refused;
use super::bits::{self, LINK_MODE_NAMES};
use crate::cards::IndexedView;

/// What kind of netdev it is, as far as the values at the start depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub role: Role,
    /// Whether it is a port of the E-Switch: a representor, or an uplink.
    pub in_switch: bool,
    /// The speed of the port in Mb/s.
    pub speed: u32,
}

impl Kind {
    /// That of a netdev of a card.
    pub fn of(view: &IndexedView, netdev: &Netdev) -> Self {
        Self { role: netdev.role, in_switch: netdev.in_switch, speed: view.card.profile.speed }
    }

    /// Whether the parameters are those of a representor: an uplink has them, too (`mlx5e_init_ul_rep`).
    fn has_rep_params(self) -> bool {
        self.role == Role::Representor || (self.role == Role::Pf && self.in_switch)
    }
}

/// A setting. The number of each is its place in [`Settings`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Entries of a ring.
    Rx,
    Tx,
    /// Interrupt coalescing: microseconds, packets, whether they adapt, and whether the time begins at a completion.
    RxUsecs,
    RxFrames,
    RxAdaptive,
    RxCqe,
    TxUsecs,
    TxFrames,
    TxAdaptive,
    TxCqe,
    /// The period modes to which the values above belong (`dim_cq_moder::cq_period_mode`).
    RxPeriod,
    TxPeriod,
    PauseRx,
    PauseTx,
    /// `mlx5e_priv_flags`, bit by bit.
    Flags,
    /// ETHTOOL_FEC_*: the mode that is configured.
    Fec,
    Autoneg,
    /// The link modes of a speed that are enabled (`eth_proto_admin`).
    Modes,
    /// NETIF_F_HW_TC.
    HwTc,
}

use Key::{
    Autoneg, Fec, Flags, HwTc, Modes, PauseRx, PauseTx, Rx, RxAdaptive, RxCqe, RxFrames, RxPeriod, RxUsecs, Tx,
    TxAdaptive, TxCqe, TxFrames, TxPeriod, TxUsecs,
};

/// Each setting with the name under which it is kept.
const KEYS: [(Key, &str); 19] = [
    (Rx, "rx"),
    (Tx, "tx"),
    (RxUsecs, "ru"),
    (RxFrames, "rf"),
    (RxAdaptive, "ra"),
    (RxCqe, "rc"),
    (TxUsecs, "tu"),
    (TxFrames, "tf"),
    (TxAdaptive, "ta"),
    (TxCqe, "tc"),
    (RxPeriod, "rp"),
    (TxPeriod, "tp"),
    (PauseRx, "pr"),
    (PauseTx, "pt"),
    (Flags, "pf"),
    (Fec, "fec"),
    (Autoneg, "an"),
    (Modes, "lm"),
    (HwTc, "ht"),
];

/// MLX5E_PARAMS_DEFAULT_LOG_RQ_SIZE and `…_SQ_SIZE`, `…_MAXIMUM_…`, `…_MINIMUM_…` (`en.h`). The smallest receive ring is
/// that of a machine with pages of 4 KiB: `1 + ilog2(4096 / 512)` as a power of two.
const RING: u32 = 1 << 10;
pub(super) const RING_MAX: u32 = 1 << 13;
const RX_MIN: u32 = 1 << 4;
const TX_MIN: u32 = 1 << 6;
/// MLX5E_REP_PARAMS_DEF_LOG_SQ_SIZE (`en_rep.c`).
const RING_REPRESENTOR_TX: u32 = 1 << 7;

/// MLX5_MAX_CQ_PERIOD and MLX5_MAX_CQ_COUNT (`include/linux/mlx5/cq.h`).
const USECS_MAX: u32 = (1 << 12) - 1;
const FRAMES_MAX: u32 = (1 << 16) - 1;

/// The private flags of `mlx5e_priv_flags` that matter here, by their place.
const FLAG_RX_CQE_MODER: u32 = 1 << 0;
const FLAG_TX_CQE_MODER: u32 = 1 << 1;
const FLAG_RX_STRIDING_RQ: u32 = 1 << 3;
const FLAG_XDP_TX_MPWQE: u32 = 1 << 5;
const FLAG_SKB_TX_MPWQE: u32 = 1 << 6;
const FLAG_TX_PORT_TS: u32 = 1 << 7;

/// ETHTOOL_FEC_*.
pub(super) const FEC_AUTO: u32 = 1 << 1;
pub(super) const FEC_OFF: u32 = 1 << 2;
pub(super) const FEC_RS: u32 = 1 << 3;
pub(super) const FEC_BASER: u32 = 1 << 4;
pub(super) const FEC_LLRS: u32 = 1 << 5;
const FEC_ALL: [u32; 4] = [FEC_OFF, FEC_RS, FEC_BASER, FEC_LLRS];

/// Microseconds and packets.
type Moderation = (u32, u32);

/// `mlx5e_reset_rx_moderation`: the values of a period mode, of the profile with which adaptation begins
/// (`net_dim_get_def_rx_moderation` in `lib/dim/net_dim.c`) or without adaptation (`mlx5e_get_def_rx_moderation`).
fn rx_moderation(cqe: bool, adaptive: bool) -> Moderation {
    match (adaptive, cqe) {
        (true, true) => (8, 128),
        (true, false) => (8, 256),
        (false, true) => (3, 32),
        (false, false) => (16, 32),
    }
}

/// `mlx5e_reset_tx_moderation`.
fn tx_moderation(cqe: bool, adaptive: bool) -> Moderation {
    match (adaptive, cqe) {
        (true, true) => (8, 64),
        (true, false) => (8, 128),
        (false, _) => (16, 32),
    }
}

/// Every setting of a netdev.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub kind: Kind,
    values: [u128; KEYS.len()],
}

/// A request to change settings: the values by the type of their attribute, those that the request names.
pub(crate) type Wanted = [(u16, u32)];

/// Whether a request has changed something, or why it is refused.
pub(crate) type Changed = Result<bool, Refused>;

fn refused(errno: Errno, why: impl Into<Cow<'static, str>>) -> Changed {
    Err(Refused(errno, why.into()))
}

fn named(wanted: &Wanted, kind: u16) -> Option<u32> {
    wanted.iter().rev().find(|(k, _)| *k == kind).map(|(_, value)| *value)
}

impl Settings {
    /// The settings at the start.
    pub fn new(kind: Kind) -> Self {
        let mut settings = Self { kind, values: [0; KEYS.len()] };
        settings.set(Rx, RING);
        settings.set(Tx, if kind.role == Role::Representor { RING_REPRESENTOR_TX } else { RING });
        settings.set(RxAdaptive, 1);
        settings.set(RxCqe, 1);
        if kind.has_rep_params() {
            // The times and the numbers of packets stay zero; so do all flags but one (`mlx5e_build_rq_params`).
            settings.set(Flags, FLAG_RX_STRIDING_RQ);
        } else {
            settings.set(RxPeriod, 1);
            settings.set(TxAdaptive, 1);
            settings.moderate_rx(true);
            settings.moderate_tx(true);
            settings.set(Flags, FLAG_RX_STRIDING_RQ | FLAG_XDP_TX_MPWQE | FLAG_SKB_TX_MPWQE);
        }
        // A VF and an SF have no port that pauses (`mlx5_query_port_pause`).
        let pauses = u32::from(kind.role == Role::Pf);
        settings.set(PauseRx, pauses);
        settings.set(PauseTx, pauses);
        settings.set(Fec, FEC_AUTO);
        settings.set(Autoneg, 1);
        settings.set_wide(Modes, bits::speed_modes(kind.speed));
        // `mlx5e_uplink_rep_enable`, `mlx5e_build_rep_netdev`; off elsewhere (`mlx5e_build_nic_netdev`).
        settings.set(HwTc, u32::from(kind.in_switch));
        settings
    }

    /// The value of a setting.
    pub fn get(&self, key: Key) -> u32 {
        self.values[key as usize] as u32
    }

    /// Whether a setting is on.
    pub fn is_on(&self, key: Key) -> bool {
        self.get(key) != 0
    }

    /// The link modes of a speed that are enabled.
    pub fn modes(&self) -> u128 {
        self.values[Modes as usize]
    }

    /// Sets a setting, without a check. Returns whether it was another value.
    pub fn set(&mut self, key: Key, value: u32) -> bool {
        self.set_wide(key, value.into())
    }

    fn set_wide(&mut self, key: Key, value: u128) -> bool {
        std::mem::replace(&mut self.values[key as usize], value) != value
    }

    fn moderate_rx(&mut self, adaptive: bool) {
        let (usecs, frames) = rx_moderation(self.is_on(RxPeriod), adaptive);
        self.set(RxUsecs, usecs);
        self.set(RxFrames, frames);
    }

    fn moderate_tx(&mut self, adaptive: bool) {
        let (usecs, frames) = tx_moderation(self.is_on(TxPeriod), adaptive);
        self.set(TxUsecs, usecs);
        self.set(TxFrames, frames);
    }

    /// The settings that differ from those at the start, as text: words `NAME=VALUE` in base 16.
    pub fn to_text(&self) -> String {
        let start = Self::new(self.kind);
        let differing = KEYS.iter().filter(|(key, _)| self.values[*key as usize] != start.values[*key as usize]);
        let words: Vec<String> =
            differing.map(|(key, name)| format!("{name}={:x}", self.values[*key as usize])).collect();
        words.join(" ")
    }

    /// Reads what [`to_text`](Self::to_text) has written. A word that is none of its words is ignored.
    pub fn from_text(kind: Kind, text: &str) -> Self {
        let mut settings = Self::new(kind);
        for (name, value) in text.split(' ').filter_map(|word| word.split_once('=')) {
            let key = KEYS.iter().find(|(_, known)| *known == name);
            if let (Some((key, _)), Ok(value)) = (key, u128::from_str_radix(value, 16)) {
                settings.set_wide(*key, value);
            }
        }
        settings
    }

    /// `ethnl_set_rings`, then `mlx5e_ethtool_set_ringparam`. A size is rounded up to a power of two.
    ///
    /// # Errors
    /// EINVAL: a ring is too large, too small, or one that the driver does not have. EOPNOTSUPP: the request is about
    /// something else than the size of a ring.
    pub fn set_rings(&mut self, wanted: &Wanted) -> Changed {
        // ETHTOOL_A_RINGS_*.
        const OTHERS: [(u16, &str); 6] = [
            (10, "setting rx buf len not supported"),
            (11, "setting TCP data split is not supported"),
            (12, "setting cqe size not supported"),
            (13, "setting tx push not supported"),
            (14, "setting rx push not supported"),
            (15, "setting tx push buf len is not supported"),
        ];
        if let Some((_, why)) = OTHERS.iter().find(|(kind, _)| named(wanted, *kind).is_some()) {
            return refused(Errno::OPNOTSUPP, *why);
        }
        let now = [(6, self.get(Rx)), (7, 0), (8, 0), (9, self.get(Tx))];
        let new = now.map(|(kind, value)| named(wanted, kind).unwrap_or(value));
        if new == now.map(|(_, value)| value) {
            return Ok(false);
        }
        let [rx, mini, jumbo, tx] = new;
        if rx > RING_MAX || mini > 0 || jumbo > 0 || tx > RING_MAX {
            return refused(Errno::INVAL, "requested ring size exceeds maximum");
        }
        for (name, value, least) in [("rx", rx, RX_MIN), ("tx", tx, TX_MIN)] {
            if value < least {
                return refused(Errno::INVAL, format!("mlx5_core: {name} ({value}) < min ({least})"));
            }
        }
        self.set(Rx, rx.next_power_of_two());
        self.set(Tx, tx.next_power_of_two());
        Ok(true)
    }

    /// `ethnl_set_coalesce`, then `mlx5e_ethtool_set_coalesce`. If a mode is changed together with a number, the driver
    /// is called twice, as a change of the mode resets the numbers; by `ioctl` only `once`.
    ///
    /// # Errors
    /// EINVAL: the driver does not have the parameter. ERANGE: a number is too large.
    pub fn set_coalesce(&mut self, wanted: &Wanted, once: bool) -> Changed {
        let cqe = self.kind.role != Role::Representor;
        let is_known = |kind: u16| matches!(kind, 2 | 3 | 6 | 7 | 11 | 12) || (cqe && matches!(kind, 24 | 25));
        if wanted.iter().any(|(kind, _)| !is_known(*kind)) {
            return refused(Errno::INVAL, "cannot modify an unsupported parameter");
        }
        let mut changed = false;
        for _ in 0..2 {
            let (numbers, modes) = self.set_coalesce_once(wanted)?;
            changed |= numbers || modes;
            if once || !(numbers && modes) {
                break;
            }
        }
        Ok(changed)
    }

    /// Returns whether a number, and whether a mode differed.
    fn set_coalesce_once(&mut self, wanted: &Wanted) -> Result<(bool, bool), Refused> {
        let new = |key: Key, kind: u16| named(wanted, kind).unwrap_or(self.get(key));
        let bool_of = |key: Key, kind: u16| named(wanted, kind).map_or(self.is_on(key), |value| value != 0);
        let [rx_usecs, rx_frames, tx_usecs, tx_frames] =
            [(RxUsecs, 2), (RxFrames, 3), (TxUsecs, 6), (TxFrames, 7)].map(|(key, kind)| new(key, kind));
        let [rx_adaptive, tx_adaptive, tx_cqe, rx_cqe] =
            [(RxAdaptive, 11), (TxAdaptive, 12), (TxCqe, 24), (RxCqe, 25)].map(|(key, kind)| bool_of(key, kind));
        let numbers = [(RxUsecs, rx_usecs), (RxFrames, rx_frames), (TxUsecs, tx_usecs), (TxFrames, tx_frames)];
        let modes = [(RxAdaptive, rx_adaptive), (TxAdaptive, tx_adaptive), (TxCqe, tx_cqe), (RxCqe, rx_cqe)];
        let numbers_differ = numbers.iter().any(|(key, value)| self.get(*key) != *value);
        let modes_differ = modes.iter().any(|(key, value)| self.is_on(*key) != *value);
        if !numbers_differ && !modes_differ {
            return Ok((false, false));
        }
        if rx_usecs > USECS_MAX || tx_usecs > USECS_MAX {
            let why =
                format!("mlx5_core: Max coalesce time {USECS_MAX} usecs, tx-usecs ({tx_usecs}) rx-usecs ({rx_usecs})");
            return Err(Refused(Errno::RANGE, why.into()));
        }
        if rx_frames > FRAMES_MAX || tx_frames > FRAMES_MAX {
            let why =
                format!("mlx5_core: Max coalesce frames {FRAMES_MAX}, tx-frames ({tx_frames}) rx-frames ({rx_frames})");
            return Err(Refused(Errno::RANGE, why.into()));
        }
        let reset_rx = self.set(RxPeriod, rx_cqe.into()) | (self.is_on(RxAdaptive) != rx_adaptive);
        let reset_tx = self.set(TxPeriod, tx_cqe.into()) | (self.is_on(TxAdaptive) != tx_adaptive);
        for (flag, on) in [(FLAG_RX_CQE_MODER, rx_cqe), (FLAG_TX_CQE_MODER, tx_cqe)] {
            let flags = self.get(Flags);
            self.set(Flags, if on { flags | flag } else { flags & !flag });
        }
        modes.iter().for_each(|(key, on)| {
            self.set(*key, u32::from(*on));
        });
        if reset_rx {
            self.moderate_rx(rx_adaptive);
        } else if !rx_adaptive {
            self.set(RxUsecs, rx_usecs);
            self.set(RxFrames, rx_frames);
        }
        if reset_tx {
            self.moderate_tx(tx_adaptive);
        } else if !tx_adaptive {
            self.set(TxUsecs, tx_usecs);
            self.set(TxFrames, tx_frames);
        }
        Ok((numbers_differ, modes_differ))
    }

    /// `ethnl_set_pause`, then `mlx5e_ethtool_set_pauseparam`.
    ///
    /// # Errors
    /// EOPNOTSUPP: a VF and an SF do not manage the port. EINVAL: pause cannot be negotiated.
    pub fn set_pause(&mut self, wanted: &Wanted) -> Changed {
        let now = [(2, 0), (3, self.get(PauseRx)), (4, self.get(PauseTx))];
        let [autoneg, rx, tx] = now.map(|(kind, value)| u32::from(named(wanted, kind).unwrap_or(value) != 0));
        if [autoneg, rx, tx] == now.map(|(_, value)| value) {
            return Ok(false);
        }
        self.require_port()?;
        if autoneg != 0 {
            return refused(Errno::INVAL, "");
        }
        self.set(PauseRx, rx);
        self.set(PauseTx, tx);
        Ok(true)
    }

    fn require_port(&self) -> Result<(), Refused> {
        if self.kind.role == Role::Pf { Ok(()) } else { Err(Refused(Errno::OPNOTSUPP, "".into())) }
    }

    /// `mlx5e_set_priv_flags`: one flag after the other; those before one that is refused have changed.
    ///
    /// # Errors
    /// EOPNOTSUPP: there is no clock by which a port could give time stamps (`set_pflag_tx_port_ts`).
    pub fn set_flags(&mut self, flags: u32) -> Changed {
        let changed = flags ^ self.get(Flags);
        let possible = changed & !FLAG_TX_PORT_TS;
        self.set(Flags, self.get(Flags) ^ possible);
        if changed != possible { refused(Errno::OPNOTSUPP, "") } else { Ok(changed != 0) }
    }

    /// `ethnl_set_fec`, then `mlx5e_set_fecparam`. `fec`: ETHTOOL_FEC_*.
    ///
    /// # Errors
    /// EINVAL: no mode. EOPNOTSUPP: several modes, or one that no speed of the port has.
    pub fn set_fec(&mut self, fec: u32) -> Changed {
        if fec == self.get(Fec) {
            return Ok(false);
        }
        if fec == 0 {
            return refused(Errno::INVAL, "no FEC modes set");
        }
        let can = FEC_AUTO | self.fec_supported();
        if fec.count_ones() > 1 || fec & !can != 0 {
            return refused(Errno::OPNOTSUPP, "");
        }
        Ok(self.set(Fec, fec))
    }

    /// The modes of FEC that a port of the card has at some speed (`mlx5e_fec_in_caps`). With less than 50 Gb/s per lane
    /// there is no LLRS.
    pub fn fec_supported(&self) -> u32 {
        FEC_OFF | FEC_BASER | FEC_RS | if self.kind.speed == 200_000 { FEC_LLRS } else { 0 }
    }

    /// The mode of FEC in use: the configured one if the speed has it, else the one that the port chooses. Reed-Solomon
    /// begins at 25 Gb/s per lane.
    pub fn fec_active(&self) -> u32 {
        let (of_speed, chosen) = match self.kind.speed {
            10_000 | 40_000 => (FEC_OFF | FEC_BASER, FEC_OFF),
            25_000 | 50_000 => (FEC_OFF | FEC_BASER | FEC_RS, FEC_RS),
            200_000 => (FEC_RS | FEC_LLRS, FEC_RS),
            _ => (FEC_OFF | FEC_RS, FEC_RS),
        };
        if of_speed & self.get(Fec) != 0 { self.get(Fec) } else { chosen }
    }

    /// `mlx5e_ethtool_set_link_ksettings`. `advertised`: the link modes that are to be negotiated.
    ///
    /// # Errors
    /// EOPNOTSUPP: a VF and an SF have no port. EINVAL: the port has none of the modes, or not the speed.
    pub fn set_link(&mut self, autoneg: bool, speed: u32, advertised: u128) -> Changed {
        self.require_port()?;
        let can = bits::speed_modes(self.kind.speed);
        let modes = match autoneg {
            true => advertised & can,
            false if speed == self.kind.speed => can,
            false => 0,
        };
        if modes == 0 {
            return refused(Errno::INVAL, "link settings update failed");
        }
        self.set(Autoneg, u32::from(autoneg));
        self.set_wide(Modes, modes);
        Ok(true)
    }

    /// The link modes that the port has, and those that it advertises (`get_supported`, `get_advertising`,
    /// `get_fec_supported_advertised`). A VF and an SF have no register of FEC.
    pub fn link_modes(&self) -> (u128, u128) {
        const AUTONEG: u128 = 1 << 6;
        const FIBRE: u128 = 1 << 10;
        const PAUSE: u128 = 1 << 13;
        const ASYM_PAUSE: u128 = 1 << 14;
        let fec_bits =
            |fec: u32| FEC_ALL.iter().filter(|mode| fec & **mode != 0).fold(0, |all, mode| all | fec_bit(*mode));
        let if_on = |on: bool, bit: u128| if on { bit } else { 0 };
        let (rx, tx) = (self.is_on(PauseRx), self.is_on(PauseTx));
        let mut supported = bits::speed_modes(self.kind.speed) | AUTONEG | FIBRE | PAUSE;
        let mut advertised =
            self.modes() | FIBRE | if_on(self.is_on(Autoneg), AUTONEG) | if_on(rx, PAUSE) | if_on(rx != tx, ASYM_PAUSE);
        if self.kind.role == Role::Pf {
            supported |= fec_bits(self.fec_supported());
            advertised |= fec_bits(self.fec_active());
        }
        (supported, advertised)
    }
}

/// The link mode of a mode of FEC (`ethtool_fec_to_link_modes` in `net/ethtool/fec.c`).
pub(super) fn fec_bit(fec: u32) -> u128 {
    1 << match fec {
        FEC_RS => 50,
        FEC_BASER => 51,
        FEC_LLRS => 74,
        _ => 49,
    }
}

/// The modes of FEC among link modes, as ETHTOOL_FEC_* (`ethtool_link_modes_to_fecparam`). `None`: there are others.
pub(super) fn fec_of_modes(modes: u128) -> Option<u32> {
    let found = FEC_ALL.into_iter().filter(|fec| modes & fec_bit(*fec) != 0).fold(0, |all, fec| all | fec);
    let known = FEC_ALL.into_iter().fold(0, |all, fec| all | fec_bit(fec));
    (modes & !known == 0).then_some(found)
}

/// The link modes of a speed among those of a table (`ethnl_auto_linkmodes`): of the speed that is requested, or of all.
pub(super) fn auto_modes(supported: u128, advertised: u128, speed: Option<u32>) -> u128 {
    LINK_MODE_NAMES.iter().filter_map(|(bit, name)| Some((bit, bits::speed_of_mode(name)?))).fold(
        advertised,
        |all, (bit, of)| {
            let mode = 1 << bit;
            let on = supported & mode != 0 && speed.is_none_or(|speed| speed == of);
            if on { all | mode } else { all & !mode }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIC: Kind = Kind { role: Role::Pf, in_switch: false, speed: 100_000 };
    const VF: Kind = Kind { role: Role::Vf, in_switch: false, speed: 100_000 };
    const REPRESENTOR: Kind = Kind { role: Role::Representor, in_switch: true, speed: 100_000 };

    #[test]
    fn what_differs_from_the_start_is_written_and_read_again() {
        for kind in [NIC, VF, REPRESENTOR] {
            let mut settings = Settings::new(kind);
            assert_eq!(settings.to_text(), "");
            settings.set_rings(&[(6, 2048)]).unwrap();
            settings.set_coalesce(&[(11, 0), (2, 77)], false).unwrap();
            settings.set(HwTc, 1 - settings.get(HwTc));
            let text = settings.to_text();
            assert_eq!(Settings::from_text(kind, &text), settings, "{text}");
            assert_eq!(Settings::from_text(kind, &format!("{text} zz=1 rx= =4 tx=nothing")), settings);
        }
    }

    #[test]
    fn rings_have_the_bounds_of_mlx5() {
        for (wanted, expected, rx) in [
            (vec![(6, 1024)], Ok(false), 1024),
            (vec![(6, 2048)], Ok(true), 2048),
            (vec![(6, 1025)], Ok(true), 2048),
            (vec![(6, 8193)], Err(Errno::INVAL), 1024),
            (vec![(6, 15)], Err(Errno::INVAL), 1024),
            (vec![(9, 63)], Err(Errno::INVAL), 1024),
            (vec![(7, 1)], Err(Errno::INVAL), 1024),
            (vec![(13, 1)], Err(Errno::OPNOTSUPP), 1024),
            (vec![(6, 16), (9, 64)], Ok(true), 16),
        ] {
            let mut settings = Settings::new(NIC);
            assert_eq!(settings.set_rings(&wanted).map_err(|refused| refused.0), expected, "{wanted:?}");
            assert_eq!(settings.get(Rx), rx, "{wanted:?}");
        }
    }

    #[test]
    fn numbers_of_coalescing_count_only_without_adaptation() {
        let mut settings = Settings::new(NIC);
        let numbers = |settings: &Settings| [RxUsecs, RxFrames, TxUsecs, TxFrames].map(|key| settings.get(key));
        assert_eq!(numbers(&settings), [8, 128, 8, 128]);
        assert_eq!(settings.set_coalesce(&[(2, 9)], false), Ok(true));
        assert_eq!(numbers(&settings), [8, 128, 8, 128]);
        // The second call sets the number that the first has overwritten with those of the mode.
        assert_eq!(settings.set_coalesce(&[(2, 9), (11, 0)], false), Ok(true));
        assert_eq!(numbers(&settings), [9, 32, 8, 128]);
        assert_eq!(settings.set_coalesce(&[(25, 0)], false), Ok(true));
        assert_eq!(numbers(&settings), [16, 32, 8, 128]);
        for (wanted, errno) in
            [((2, 4096), Errno::RANGE), ((7, 65_536), Errno::RANGE), ((4, 1), Errno::INVAL), ((26, 1), Errno::INVAL)]
        {
            let before = settings.clone();
            assert_eq!(settings.set_coalesce(&[wanted], false).map_err(|refused| refused.0), Err(errno), "{wanted:?}");
            assert_eq!(settings, before);
        }
        let cqe = Settings::new(REPRESENTOR).set_coalesce(&[(24, 1)], false);
        assert_eq!(cqe.map_err(|refused| refused.0), Err(Errno::INVAL));
    }

    #[test]
    fn the_port_is_set_by_a_pf_only() {
        let errno = |changed: Changed| changed.map_err(|refused| refused.0);
        let mut pf = Settings::new(NIC);
        assert_eq!(errno(pf.set_pause(&[(3, 0)])), Ok(true));
        assert_eq!(errno(pf.set_pause(&[(2, 1)])), Err(Errno::INVAL));
        assert_eq!(errno(Settings::new(VF).set_pause(&[(3, 1)])), Err(Errno::OPNOTSUPP));
        assert_eq!(errno(pf.set_fec(FEC_BASER)), Ok(true));
        assert_eq!(pf.fec_active(), FEC_RS);
        for (fec, expected) in [(FEC_RS | FEC_OFF, Errno::OPNOTSUPP), (FEC_LLRS, Errno::OPNOTSUPP), (0, Errno::INVAL)] {
            assert_eq!(errno(pf.set_fec(fec)), Err(expected), "{fec}");
        }
        assert_eq!(errno(pf.set_link(false, 25_000, 0)), Err(Errno::INVAL));
        assert_eq!(errno(pf.set_link(false, 100_000, 0)), Ok(true));
        assert_eq!(pf.link_modes().1 & 1 << 6, 0);
        assert_eq!(errno(Settings::new(VF).set_link(false, 100_000, 0)), Err(Errno::OPNOTSUPP));
    }

    #[test]
    fn a_flag_before_one_that_is_refused_has_changed() {
        let mut settings = Settings::new(NIC);
        assert_eq!(settings.get(Flags), 0b0110_1000);
        let refused = settings.set_flags(0b1110_1001).map_err(|refused| refused.0);
        assert_eq!((refused, settings.get(Flags)), (Err(Errno::OPNOTSUPP), 0b0110_1001));
    }
}
