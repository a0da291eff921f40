//! What mlx5e answers to ethtool about a card's netdev, apart from how it is asked: over netlink or by `ioctl`.
//!
//! An answer is a list of attributes as `Documentation/networking/ethtool-netlink.rst` numbers them; an `ioctl` has the
//! same values at other places. PF, VF and SF have the operations of `mlx5e_ethtool_ops`, a representor has those of
//! `mlx5e_rep_ethtool_ops`, which are fewer. An operation that is not there is refused with EOPNOTSUPP.
//!
//! The values are those with which mlx5e starts, and a request can change what it can change at mlx5e, within the same
//! bounds ([`settings`]). What a netdev is set to is [kept](kept) as long as the netdev lives. Channels are different: they
//! are the queues of the kernel's netdev. Facts about mlx5 are those of Linux 6.12.

mod bits;
pub(crate) mod kept;
pub(crate) mod monitor;
pub(crate) mod settings;
pub(crate) mod stats;
pub(crate) mod steering;

use std::borrow::Cow;
use std::os::fd::AsFd;

use devlink::view::Role;
use lockdep::Locked;
use netlink::{Attribute, Builder, Errno, Flags, Header, find};

pub(crate) use bits::{Bits, put_with, put_without, wanted};
use settings::{Changed, Key, Kind, RING_MAX, Settings};
use steering::Steering;

use crate::cards::{CardNetdev, Cards};
use crate::sys::ethtool::GCHANNELS;
use crate::sys::{self, Channels};

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
    pub const MODULE_EEPROM_GET: u8 = 31;
    pub const RSS_GET: u8 = 38;
}

/// The notification (`ETHTOOL_MSG_*_NTF`) of what each message has set.
const NOTIFICATIONS: [(u8, u8, u8); 6] = [
    (message::LINKMODES_SET, message::LINKMODES_GET, 5),
    (message::PRIVFLAGS_SET, message::PRIVFLAGS_GET, 15),
    (message::RINGS_SET, message::RINGS_GET, 17),
    (message::COALESCE_SET, message::COALESCE_GET, 21),
    (message::PAUSE_SET, message::PAUSE_GET, 23),
    (message::FEC_SET, message::FEC_GET, 31),
];

/// ETHTOOL_A_*_HEADER, the first attribute of every message, and ETHTOOL_A_HEADER_*.
pub(crate) const HEADER: u16 = 1;
pub(crate) const DEV_INDEX: u16 = 1;
pub(crate) const DEV_NAME: u16 = 2;

/// Sets of strings (`ETH_SS_*`).
pub(crate) const SS_TEST: u32 = 0;
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

/// `wol_mode_names` (`net/ethtool/common.c`).
const WOL_NAMES: [(u32, &str); 8] =
    [(0, "phy"), (1, "ucast"), (2, "mcast"), (3, "bcast"), (4, "arp"), (5, "magic"), (6, "magicsecure"), (7, "filter")];

/// `mlx5e_sts` (`en_selftest.c`); the last one is left out for an uplink in switchdev mode (`mlx5e_cond_loopback`).
const TESTS: [&str; 4] = ["Link Test", "Speed Test", "Health Test", "Loopback Test"];

const SPEED_UNKNOWN: u32 = u32::MAX;
const DUPLEX_FULL: u8 = 1;
const DUPLEX_UNKNOWN: u8 = 0xff;
const PORT_FIBRE: u8 = 3;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    U8(u8),
    U32(u32),
    Bits(Bits),
    Bytes(Vec<u8>),
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
            Value::Bytes(bytes) => to.put(*kind, bytes),
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
    /// Whether it is up.
    pub is_up: bool,
    /// What it is set to.
    pub settings: Settings,
}

impl Nic {
    /// `socket`: in the network namespace in which the netdev has this index and name.
    pub fn new<L>(
        cx: &mut Locked<'_, L>,
        cards: &Cards,
        netdev: CardNetdev,
        (index, name): (u32, String),
        socket: impl AsFd,
    ) -> Self {
        let flags = sys::netdev_flags(socket, &name).map_or(0, i32::from);
        let kind = Kind::of(&netdev.view, &netdev);
        let settings = match cards.card(netdev.card) {
            Some(card) => cards.ethtool.settings(cx, (netdev.card, &**card), netdev.peer, kind),
            None => Settings::new(kind),
        };
        let (has_link, is_up) = (flags & libc::IFF_RUNNING != 0, flags & libc::IFF_UP != 0);
        Self { netdev, index, name, has_link, is_up, settings }
    }

    /// Whether the operations are those of `mlx5e_rep_ethtool_ops`.
    fn is_representor(&self) -> bool {
        self.netdev.role == Role::Representor
    }

    /// Whether NETIF_F_HW_TC is on.
    pub fn has_hw_tc(&self) -> bool {
        self.settings.is_on(Key::HwTc)
    }

    /// What the receive side is set to.
    ///
    /// # Errors
    /// EOPNOTSUPP: the driver has no such operation for this netdev.
    pub fn steering<L>(&self, cx: &mut Locked<'_, L>, cards: &Cards) -> Result<Steering, Errno> {
        if self.is_representor() {
            return Err(Errno::OPNOTSUPP);
        }
        let Some(card) = cards.card(self.netdev.card) else { return Ok(Steering::default()) };
        Ok(cards.ethtool.steering(cx, (self.netdev.card, &**card), self.netdev.peer, self.settings.kind))
    }

    /// Has `work` change what the netdev is set to. Returns whether something has changed.
    ///
    /// # Errors
    /// Those of `work`, and of [`kept::Kept::change`].
    pub fn change<L>(
        &mut self,
        cx: &mut Locked<'_, L>,
        cards: &Cards,
        work: impl FnOnce(&mut Settings, &mut Steering) -> Changed,
    ) -> Changed {
        let card = cards.card(self.netdev.card).ok_or(CONSTANT)?;
        let at = (self.netdev.card, &**card);
        let now = &mut self.settings;
        cards.ethtool.change(cx, at, self.netdev.peer, now.kind, |settings, steering| {
            let outcome = work(settings, steering);
            *now = settings.clone();
            outcome
        })
    }

    /// The number of channels: the queues of the kernel's netdev.
    ///
    /// # Errors
    /// The kernel's.
    pub fn channels(&self, socket: impl AsFd) -> std::io::Result<u32> {
        // `rx_count` and `tx_count` of `struct ethtool_channels`.
        self.queues(socket, [20, 24])
    }

    /// The largest number of channels.
    ///
    /// # Errors
    /// The kernel's.
    pub fn max_channels(&self, socket: impl AsFd) -> std::io::Result<u32> {
        // `max_rx` and `max_tx`.
        self.queues(socket, [4, 8])
    }

    /// The lesser of two numbers of `struct ethtool_channels`.
    fn queues(&self, socket: impl AsFd, at: [usize; 2]) -> std::io::Result<u32> {
        let mut queues: Channels = [0; size_of::<Channels>()];
        queues[..4].copy_from_slice(&GCHANNELS.to_ne_bytes());
        sys::ethtool(socket, &self.name, &mut queues)?;
        let [one, other] = at.map(|at| netlink::u32_at(&queues, at).unwrap_or(1));
        Ok(one.min(other))
    }

    /// The answer to a message that requests something.
    ///
    /// # Errors
    /// EOPNOTSUPP: the driver has no such operation for this netdev. EIO: the port has no module
    /// (`mlx5_query_module_eeprom`).
    pub fn answer(&self, command: u8) -> Result<Attributes, Errno> {
        use message as m;
        let settings = &self.settings;
        match command {
            m::RINGS_GET => Ok(self.rings()),
            m::COALESCE_GET => Ok(self.coalesce()),
            _ if self.is_representor() => Err(Errno::OPNOTSUPP),
            m::LINKINFO_GET => Ok((2..=6).zip([PORT_FIBRE, 0, 0, 0, 0].map(Value::U8)).collect()),
            m::LINKMODES_GET => Ok(self.link_modes()),
            // The firmware offers no kind of wake-up.
            m::WOL_GET => Ok(vec![(2, Value::Bits(Bits::of(0, 0, 8, &[])))]),
            m::PRIVFLAGS_GET => Ok(vec![(2, Value::Bits(self.priv_flags()))]),
            m::PAUSE_GET => {
                let [rx, tx] = [Key::PauseRx, Key::PauseTx].map(|key| settings.get(key) as u8);
                Ok([(2, 0), (3, rx), (4, tx)].map(|(kind, value)| (kind, Value::U8(value))).to_vec())
            }
            // `mlx5e_get_fec_mode`: the registers of the port are not those of a VF or an SF.
            m::FEC_GET if self.netdev.role == Role::Pf => {
                let fec = settings.get(Key::Fec);
                let modes = if fec == settings::FEC_AUTO { 0 } else { settings::fec_bit(fec) };
                let active = settings::fec_bit(settings.fec_active()).trailing_zeros();
                Ok(vec![
                    (2, Value::Bits(Bits::list(modes, bits::LINK_MODES, &bits::LINK_MODE_NAMES))),
                    (3, Value::U8(u8::from(fec == settings::FEC_AUTO))),
                    (4, Value::U32(active)),
                ])
            }
            m::MODULE_EEPROM_GET => Err(Errno::IO),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// The answer to ETHTOOL_MSG_RSS_GET.
    pub fn hash(steering: &Steering, channels: u32) -> Attributes {
        let table = steering.table(channels).into_iter().flat_map(u32::to_ne_bytes).collect();
        vec![(3, Value::U32(steering.function().into())), (4, Value::Bytes(table)), (5, Value::Bytes(steering.key()))]
    }

    /// Changes settings as a message wants it. Returns whether something has changed.
    ///
    /// # Errors
    /// The refusal of the kernel or of the driver.
    pub fn set<L>(&mut self, cx: &mut Locked<'_, L>, cards: &Cards, request: &Request<'_>) -> Changed {
        use message as m;
        if request.command == m::LINKINFO_SET || request.command == m::WOL_SET {
            return self.set_nothing(request);
        }
        let command = NOTIFICATIONS.iter().find(|(set, ..)| *set == request.command);
        let Some((_, get, _)) = command else { return Err(CONSTANT) };
        self.answer(*get).map_err(|errno| Refused(errno, "".into()))?;
        let numbers = &request.numbers;
        let speed = self.speed();
        self.change(cx, cards, |settings, _| match request.command {
            m::RINGS_SET => settings.set_rings(numbers),
            m::COALESCE_SET => settings.set_coalesce(numbers, request.by_ioctl),
            m::PAUSE_SET => settings.set_pause(numbers),
            m::PRIVFLAGS_SET => {
                let set = request.set.ok_or(Refused(Errno::INVAL, "".into()))?;
                let now = u128::from(settings.get(Key::Flags));
                let new = bits::updated(set, now, PRIV_FLAGS.len() as u32, &bits::PRIV_FLAG_NAMES)?;
                settings.set_flags(new as u32)
            }
            m::FEC_SET => set_fec(settings, request),
            _ => set_link_modes(settings, request, speed),
        })
    }

    /// What mlx5 takes and ignores, or has nothing of. The port's type is no setting of
    /// `mlx5e_ethtool_set_link_ksettings`, which a VF and an SF have not; and there is no kind of wake-up
    /// (`ethnl_set_wol`).
    fn set_nothing(&self, request: &Request<'_>) -> Changed {
        if self.is_representor() {
            return Err(CONSTANT);
        }
        if request.command == message::LINKINFO_SET {
            let now = self.answer(message::LINKINFO_GET).map_err(|errno| Refused(errno, "".into()))?;
            let is_same = request.numbers.iter().all(|(kind, value)| number(&now, *kind) == *value);
            return if is_same || self.netdev.role == Role::Pf { Ok(false) } else { Err(CONSTANT) };
        }
        let wanted = request.set.map_or(Ok(0), |set| bits::updated(set, 0, 8, &WOL_NAMES))?;
        let refused = |why: &'static str| Err(Refused(Errno::INVAL, why.into()));
        match wanted {
            _ if request.has_password => refused("wakeonlan secureon password not supported"),
            0 => Ok(false),
            _ => refused("cannot enable unsupported WoL mode"),
        }
    }

    /// The speed in Mb/s; SPEED_UNKNOWN without a link (`mlx5e_ethtool_get_link_ksettings`).
    fn speed(&self) -> u32 {
        if self.has_link { self.settings.kind.speed } else { SPEED_UNKNOWN }
    }

    fn link_modes(&self) -> Attributes {
        let (supported, advertised) = self.settings.link_modes();
        let duplex = if self.has_link { DUPLEX_FULL } else { DUPLEX_UNKNOWN };
        vec![
            (2, Value::U8(self.settings.get(Key::Autoneg) as u8)),
            (3, Value::Bits(Bits::of(advertised, supported, bits::LINK_MODES, &bits::LINK_MODE_NAMES))),
            (5, Value::U32(self.speed())),
            (6, Value::U8(duplex)),
        ]
    }

    /// `mlx5e_ethtool_get_ringparam`; then that headers are not split off, and that nothing is pushed.
    fn rings(&self) -> Attributes {
        let [rx, tx] = [Key::Rx, Key::Tx].map(|key| self.settings.get(key));
        let mut attributes: Attributes =
            [(2, RING_MAX), (5, RING_MAX), (6, rx), (9, tx)].map(|(kind, value)| (kind, Value::U32(value))).to_vec();
        attributes.extend([(11, 1), (13, 0), (14, 0)].map(|(kind, value)| (kind, Value::U8(value))));
        attributes
    }

    /// `mlx5e_ethtool_get_coalesce`. A representor has no CQE mode (`mlx5e_rep_ethtool_ops`).
    fn coalesce(&self) -> Attributes {
        let numbers = [(2, Key::RxUsecs), (3, Key::RxFrames), (6, Key::TxUsecs), (7, Key::TxFrames)];
        let mut attributes: Attributes = numbers.map(|(kind, key)| (kind, Value::U32(self.settings.get(key)))).to_vec();
        let modes = [(11, Key::RxAdaptive), (12, Key::TxAdaptive), (24, Key::TxCqe), (25, Key::RxCqe)];
        let count = if self.is_representor() { 2 } else { modes.len() };
        attributes
            .extend(modes.iter().take(count).map(|(kind, key)| (*kind, Value::U8(self.settings.get(*key) as u8))));
        attributes
    }

    fn priv_flags(&self) -> Bits {
        let all = (1 << PRIV_FLAGS.len()) - 1;
        let flags = self.settings.get(Key::Flags).into();
        Bits::of(flags, all, PRIV_FLAGS.len() as u32, &bits::PRIV_FLAG_NAMES)
    }

    /// The results of the self test, 0 for what has passed (`mlx5e_self_test`). The link is looked at; health and loopback
    /// can only fail in hardware. The loopback test of a netdev that is down ends with ENODEV.
    pub fn test(&self) -> Result<Vec<u64>, Errno> {
        let count = self.strings(SS_TEST)?.len();
        let no_link = u64::from(!self.has_link);
        let loopback = if self.is_up { 0 } else { i64::from(-libc::ENODEV).cast_unsigned() };
        Ok([no_link, no_link, 0, loopback][..count].to_vec())
    }

    /// The names of a set of strings.
    ///
    /// # Errors
    /// EOPNOTSUPP: the driver has no such set for this netdev.
    pub fn strings(&self, set: u32) -> Result<Vec<&'static str>, Errno> {
        match set {
            SS_STATS => Ok(stats::of(&self.netdev).into_iter().map(|(name, _)| name).collect()),
            SS_TEST if self.settings.kind.role == Role::Pf && self.netdev.in_switch => Ok(TESTS[..3].to_vec()),
            SS_TEST if !self.is_representor() => Ok(TESTS.to_vec()),
            SS_PRIV_FLAGS if !self.is_representor() => Ok(PRIV_FLAGS.to_vec()),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

/// A request to set something: its numbers by the type of their attribute, and its set of bits.
pub(crate) struct Request<'a> {
    /// ETHTOOL_MSG_*_SET.
    pub command: u8,
    pub numbers: Vec<(u16, u32)>,
    pub set: Option<&'a [u8]>,
    /// Whether there is a password for wake-up (ETHTOOL_A_WOL_SOPASS).
    pub has_password: bool,
    /// Whether it came by `ioctl`, where the driver is called once.
    pub by_ioctl: bool,
}

impl<'a> Request<'a> {
    /// Reads the content of a message.
    pub fn of_message(command: u8, content: &'a [u8]) -> Self {
        // ETHTOOL_A_PRIVFLAGS_FLAGS, ETHTOOL_A_WOL_MODES, ETHTOOL_A_FEC_MODES, ETHTOOL_A_LINKMODES_OURS.
        let set = match command {
            message::PRIVFLAGS_SET | message::FEC_SET | message::WOL_SET => Some(2),
            message::LINKMODES_SET => Some(3),
            _ => None,
        };
        let number = |attribute: Attribute<'_>| {
            let number = attribute.u32().or(attribute.u8().map(u32::from));
            number.map(|number| (attribute.kind, number))
        };
        let others = netlink::attributes(content).flatten().filter(|a| a.kind != HEADER && Some(a.kind) != set);
        Self {
            command,
            numbers: others.filter_map(number).collect(),
            set: set.and_then(|kind| find(content, kind)).map(|set| set.value),
            has_password: command == message::WOL_SET && find(content, 3).is_some(),
            by_ioctl: false,
        }
    }

    /// A request by `ioctl`, which has numbers only.
    pub fn by_ioctl(command: u8, numbers: Vec<(u16, u32)>) -> Self {
        Self { command, numbers, set: None, has_password: false, by_ioctl: true }
    }

    fn number(&self, kind: u16) -> Option<u32> {
        self.numbers.iter().rev().find(|(k, _)| *k == kind).map(|(_, number)| *number)
    }
}

/// `ethnl_set_fec`.
fn set_fec(settings: &mut Settings, request: &Request<'_>) -> Changed {
    let fec = settings.get(Key::Fec);
    let is_auto = fec == settings::FEC_AUTO;
    let now = if is_auto { 0 } else { settings::fec_bit(fec) };
    let modes = match request.set {
        Some(set) => bits::updated(set, now, bits::LINK_MODES, &bits::LINK_MODE_NAMES)?,
        None => now,
    };
    let auto = request.number(3).map_or(is_auto, |auto| auto != 0);
    let fec = settings::fec_of_modes(modes).ok_or(Refused(Errno::INVAL, "invalid FEC modes requested".into()))?;
    settings.set_fec(fec | if auto { settings::FEC_AUTO } else { 0 })
}

/// `ethnl_set_linkmodes`. `speed`: of the link.
fn set_link_modes(settings: &mut Settings, request: &Request<'_>, speed: u32) -> Changed {
    // ETHTOOL_A_LINKMODES_*: MASTER_SLAVE_CFG and LANES.
    if request.number(7).is_some() {
        return Err(Refused(Errno::OPNOTSUPP, "master/slave configuration not supported by device".into()));
    }
    let (supported, now) = settings.link_modes();
    let was_on = settings.is_on(Key::Autoneg);
    let autoneg = request.number(2).map_or(was_on, |autoneg| autoneg != 0);
    if request.number(9).is_some() && !autoneg {
        return Err(Refused(Errno::OPNOTSUPP, "lanes configuration not supported by device".into()));
    }
    let wanted_speed = request.number(5);
    let wanted_duplex = request.number(6);
    let mut modes = match request.set {
        Some(set) => bits::updated(set, now, bits::LINK_MODES, &bits::LINK_MODE_NAMES)?,
        None => now,
    };
    if request.set.is_none() && autoneg && (wanted_speed.is_some() || wanted_duplex.is_some()) {
        let is_half = wanted_duplex == Some(0);
        modes = settings::auto_modes(if is_half { 0 } else { supported }, modes, wanted_speed);
    }
    let duplex = if speed == SPEED_UNKNOWN { DUPLEX_UNKNOWN } else { DUPLEX_FULL };
    let is_same = autoneg == was_on
        && modes == now
        && wanted_speed.is_none_or(|wanted| wanted == speed)
        && wanted_duplex.is_none_or(|wanted| wanted == u32::from(duplex));
    if is_same {
        return Ok(false);
    }
    let refused = |refused: Refused| Refused(refused.0, "link settings update failed".into());
    settings.set_link(autoneg, wanted_speed.unwrap_or(speed), modes).map_err(refused)
}

/// The notification of what a message has set (`ethnl_default_notify`). `None`: there is none.
pub(crate) fn notification(family: u16, sequence: u32, nic: &Nic, command: u8) -> Option<Vec<u8>> {
    let (_, get, notification) = NOTIFICATIONS.iter().find(|(set, ..)| *set == command)?;
    let answer = nic.answer(*get).ok()?;
    let built = netlink::message(Header::new(family, Flags::empty(), sequence, 0), |to| {
        to.genl(*notification, 1).nest(HEADER, |nest| {
            nest.u32(DEV_INDEX, nic.index).text(DEV_NAME, &nic.name);
        });
        put(to, &answer, true);
    });
    built.ok()
}

/// The error number of a refusal, and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub Errno, pub Cow<'static, str>);

/// The refusal of a change that the card cannot make.
pub(crate) const CONSTANT: Refused = Refused(Errno::OPNOTSUPP, Cow::Borrowed(""));
