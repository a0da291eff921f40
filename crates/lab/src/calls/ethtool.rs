//! `ioctl(SIOCETHTOOL)` on a card's netdev. The kernel would answer for a veth.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use netlink::{Errno, u32_at};
use rustix::net::netdevice::name_to_index;

use crate::ethtool::message as m;
use crate::ethtool::settings::{Changed, Key, Settings};
use crate::ethtool::steering::{FLOW_SPEC, KEY, Steering};
use crate::ethtool::{self, Attributes, Nic, Refused, Request, Value, stats};
use crate::lock_order::Cx;
use crate::process::{self, Caller, NET_ADMIN};
use crate::supervisor::{Answer, Lab};
use crate::sys::ethtool::{GCHANNELS, GDRVINFO, GFEATURES, SCHANNELS, SFEATURES};
use crate::sys::{self, Channels, DriverInfo, Notification};

use super::{read, read_text, read_u32, write};

const GSET: u32 = 0x1;
const SSET: u32 = 0x2;
const GWOL: u32 = 0x5;
const SWOL: u32 = 0x6;
const GCOALESCE: u32 = 0xe;
const SCOALESCE: u32 = 0xf;
const GRINGPARAM: u32 = 0x10;
const SRINGPARAM: u32 = 0x11;
const GPAUSEPARAM: u32 = 0x12;
const SPAUSEPARAM: u32 = 0x13;
const TEST: u32 = 0x1a;
const GSTRINGS: u32 = 0x1b;
const GSTATS: u32 = 0x1d;
const GPERMADDR: u32 = 0x20;
const GPFLAGS: u32 = 0x27;
const SPFLAGS: u32 = 0x28;
const GRXFH: u32 = 0x29;
const SRXFH: u32 = 0x2a;
const GRXRINGS: u32 = 0x2d;
const GRXCLSRLCNT: u32 = 0x2e;
const GRXCLSRULE: u32 = 0x2f;
const GRXCLSRLALL: u32 = 0x30;
const SRXCLSRLDEL: u32 = 0x31;
const SRXCLSRLINS: u32 = 0x32;
const FLASHDEV: u32 = 0x33;
const GSSET_INFO: u32 = 0x37;
const GMODULEINFO: u32 = 0x42;
const GMODULEEEPROM: u32 = 0x43;
const GRSSH: u32 = 0x46;
const SRSSH: u32 = 0x47;
const GLINKSETTINGS: u32 = 0x4c;
const SLINKSETTINGS: u32 = 0x4d;
const GFECPARAM: u32 = 0x50;
const SFECPARAM: u32 = 0x51;

/// The offsets of the texts in `struct ethtool_drvinfo`; each has 32 bytes.
const DRIVER: usize = 4;
const VERSION: usize = 36;
const FIRMWARE: usize = 68;
const BUS_INFO: usize = 100;
const TEXT: usize = 32;
/// The offsets of its numbers.
const N_PRIV_FLAGS: usize = 176;
const N_STATS: usize = 180;
const TESTINFO_LEN: usize = 184;

/// Words of a set of link modes.
const LINK_WORDS: u8 = 3;

/// The most blocks of 32 features: more than any kernel has.
const BLOCKS: u32 = 64;

/// Bytes of a string in a set (ETH_GSTRING_LEN).
const STRING: usize = 32;

/// Offsets in `struct ethtool_rxnfc`, and its length; ETHTOOL_GRXFH and ETHTOOL_SRXFH have the first 16 bytes only.
const FLOW_TYPE: usize = 4;
const FLOW_DATA: usize = 8;
const FLOW: usize = 16;
const FLOW_LOCATION: usize = FLOW + 160;
const RULE_COUNT: usize = 184;
const RULE_LOCATIONS: usize = 188;
const RXNFC: usize = 192;

/// Bytes of `struct ethtool_rxfh` before the table.
const RXFH: usize = 24;
/// ETH_RXFH_INDIR_NO_CHANGE.
const TABLE_KEPT: u32 = u32::MAX;
/// RXH_XFRM_NO_CHANGE.
const TRANSFORM_KEPT: u8 = 0xff;

/// ETH_TEST_FL_FAILED.
const TEST_FAILED: u32 = 1 << 1;

/// ETHTOOL_FEC_NONE.
const FEC_NONE: u32 = 1 << 0;

/// A command that requests numbers, the one that sets them, and the message that has them, with the type of the
/// attribute for each number of the structure after the command.
struct Numbers {
    get: u32,
    set: u32,
    message: u8,
    set_message: u8,
    kinds: std::ops::RangeInclusive<u16>,
}

const NUMBERS: [Numbers; 3] = [
    Numbers { get: GRINGPARAM, set: SRINGPARAM, message: m::RINGS_GET, set_message: m::RINGS_SET, kinds: 2..=9 },
    Numbers { get: GPAUSEPARAM, set: SPAUSEPARAM, message: m::PAUSE_GET, set_message: m::PAUSE_SET, kinds: 2..=4 },
    Numbers { get: GCOALESCE, set: SCOALESCE, message: m::COALESCE_GET, set_message: m::COALESCE_SET, kinds: 2..=23 },
];

/// One call, and what it is about.
struct Ioctl<'a> {
    lab: &'a Lab,
    call: &'a Notification,
    /// Where the structure of the command is in the program's memory.
    data: u64,
    name: String,
}

/// `ioctl(SIOCETHTOOL)`.
pub(super) fn ioctl(cx: Cx<'_, '_>, lab: &Arc<Lab>, call: &Notification) -> Answer {
    // If this fails, the kernel carries the call out and reports its own error.
    answer(cx, lab, call).unwrap_or(Answer::Continue)
}

fn answer(cx: Cx<'_, '_>, lab: &Lab, call: &Notification) -> io::Result<Answer> {
    let request = call.data.args[2];
    let data = u64::from_ne_bytes(read(lab, call, request.wrapping_add(libc::IFNAMSIZ as u64))?);
    let command = read_u32(lab, call, data)?;
    let name = read_text(lab, call, request, libc::IFNAMSIZ)?;
    // Its network namespace is the one in which the kernel looks the name up.
    let socket = process::take_fd(call.pid, call.data.args[0] as u32)?;
    let index = name_to_index(&socket, &name)?;
    let Some(netdev) = lab.cards.netdev_at_socket(cx, &socket, index) else { return Ok(Answer::Continue) };
    let mut nic = Nic::new(cx, &lab.cards, netdev, (index, name.clone()), &socket);
    let ioctl = Ioctl { lab, call, data, name };
    if command == SFEATURES {
        return Ok(ioctl.set_features(cx, &mut nic, &socket).into());
    }
    match ioctl.carry_out(cx, &mut nic, &socket, command) {
        Ok(Some(structure)) if structure.is_empty() => Ok(Answer::Value(0)),
        Ok(Some(structure)) => write(lab, call, data, &structure).map(|()| Answer::Value(0)),
        Ok(None) => Ok(Answer::Continue),
        Err(error) => Ok(Err::<Answer, io::Error>(error).into()),
    }
}

impl Ioctl<'_> {
    /// Carries out a command. Returns the structure that is to be written back, which is
    /// empty if there is nothing to write. `None`: the kernel is to answer.
    fn carry_out(&self, cx: Cx<'_, '_>, nic: &mut Nic, socket: &OwnedFd, command: u32) -> io::Result<Option<Vec<u8>>> {
        if let Some(numbers) = NUMBERS.iter().find(|numbers| numbers.get == command) {
            return Ok(Some(numbers.structure(command, &nic.answer(numbers.message)?)));
        }
        if let Some(numbers) = NUMBERS.iter().find(|numbers| numbers.set == command) {
            return self.set(cx, nic, socket, numbers);
        }
        match command {
            GDRVINFO => self.driver_info(nic, socket),
            GCHANNELS => self.channels(socket, GCHANNELS).map(Some),
            SCHANNELS => self.set_channels(cx, nic, socket),
            GFEATURES => self.features(nic, socket),
            GSSET_INFO => self.count_strings(nic),
            GSTRINGS => self.strings(nic),
            GSTATS => self.statistics(nic),
            GPERMADDR => self.permanent_address(nic),
            GLINKSETTINGS => self.link_settings(nic),
            GSET => Ok(Some(link_settings_of_old(&nic.answer(m::LINKMODES_GET)?))),
            GPFLAGS => Ok(Some(words(&[command, low_bits(&nic.answer(m::PRIVFLAGS_GET)?)]))),
            GWOL => nic.answer(m::WOL_GET).map(|_| Some(words(&[command, 0, 0, 0, 0]))).map_err(io::Error::from),
            GFECPARAM => {
                nic.answer(m::FEC_GET)?;
                let settings = &nic.settings;
                Ok(Some(words(&[command, settings.fec_active(), settings.get(Key::Fec), 0])))
            }
            SSET | SLINKSETTINGS => self.set_link(cx, nic, socket, command),
            SWOL => self.set_wol(nic),
            SPFLAGS => self.set_one(cx, nic, socket, m::PRIVFLAGS_SET),
            SFECPARAM => self.set_one(cx, nic, socket, m::FEC_SET),
            TEST => self.test(nic),
            GMODULEINFO | GMODULEEEPROM => {
                self.require_rights()?;
                Err(nic.answer(m::MODULE_EEPROM_GET).map_or_else(io::Error::from, |_| Errno::IO.into()))
            }
            // A kernel without devlink lets this succeed, and does nothing. The card has no firmware that could be written.
            FLASHDEV => {
                self.require_rights()?;
                Err(Errno::OPNOTSUPP.into())
            }
            GRSSH => self.hash(&nic.steering(cx, &self.lab.cards)?, nic.channels(socket)?),
            SRSSH => self.set_hash(cx, nic, nic.channels(socket)?),
            GRXFH | GRXRINGS | GRXCLSRLCNT | GRXCLSRULE | GRXCLSRLALL => {
                let channels = nic.channels(socket)?;
                self.rules(&nic.steering(cx, &self.lab.cards)?, channels, command).map(Some)
            }
            SRXFH | SRXCLSRLINS | SRXCLSRLDEL => self.set_rules(cx, nic, nic.channels(socket)?, command),
            _ => Ok(None),
        }
    }

    /// The caller, with the capabilities that it has in its network namespace.
    fn caller(&self) -> io::Result<Caller> {
        let mut caller = Caller::of(self.call.pid, &self.lab.user_namespace)?;
        if caller.capabilities == 0 && process::is_below(self.call.pid, process::open_network(self.call.pid)?) {
            caller.capabilities = caller.own_capabilities;
        }
        Ok(caller)
    }

    /// As `__dev_ethtool` does before a command that changes something.
    fn require_rights(&self) -> io::Result<()> {
        if self.caller()?.capabilities & NET_ADMIN == 0 { Err(Errno::PERM.into()) } else { Ok(()) }
    }

    /// Tells the members of the group `monitor` of a change, and says that the call has succeeded.
    fn changed(
        &self,
        cx: Cx<'_, '_>,
        nic: &Nic,
        socket: &OwnedFd,
        outcome: Changed,
        message: u8,
    ) -> io::Result<Option<Vec<u8>>> {
        let _ = outcome.map_err(|Refused(errno, _)| io::Error::from(errno))?;
        if let Some(family) = self.lab.families.ethtool() {
            self.lab.cards.monitors.publish(cx, family.id, socket, nic, message);
        }
        Ok(Some(Vec::new()))
    }

    fn set(&self, cx: Cx<'_, '_>, nic: &mut Nic, socket: &OwnedFd, numbers: &Numbers) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        nic.answer(numbers.message)?;
        let count = numbers.kinds.len();
        let mut wanted = Vec::new();
        for (at, kind) in numbers.kinds.clone().enumerate() {
            wanted.push((kind, read_u32(self.lab, self.call, self.data + 4 * (at as u64 + 1))?));
        }
        // The largest sizes of rings are no wishes.
        wanted.drain(..if numbers.set == SRINGPARAM { count / 2 } else { 0 });
        if numbers.set == SCOALESCE {
            let is_known = |kind: u16| matches!(kind, 2 | 3 | 6 | 7 | 11 | 12);
            // `ethtool_set_coalesce_supported`.
            if wanted.iter().any(|(kind, value)| *value != 0 && !is_known(*kind)) {
                return Err(Errno::OPNOTSUPP.into());
            }
            wanted.retain(|(kind, _)| is_known(*kind));
        }
        let outcome = nic.set(cx, &self.lab.cards, &Request::by_ioctl(numbers.set_message, wanted));
        self.changed(cx, nic, socket, outcome, numbers.set_message)
    }

    /// `ETHTOOL_SPFLAGS`, or `ethtool_set_fecparam`, of which no member of a group is told.
    fn set_one(&self, cx: Cx<'_, '_>, nic: &mut Nic, socket: &OwnedFd, message: u8) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        let is_fec = message == m::FEC_SET;
        nic.answer(if is_fec { m::FEC_GET } else { m::PRIVFLAGS_GET })?;
        let value = read_u32(self.lab, self.call, self.data + if is_fec { 8 } else { 4 })?;
        let fits = |value: u32| if is_fec { value != 0 && value & FEC_NONE == 0 } else { value < 1 << 8 };
        if !fits(value) {
            return Err(Errno::INVAL.into());
        }
        let set = |settings: &mut Settings| if is_fec { settings.set_fec(value) } else { settings.set_flags(value) };
        let outcome = nic.change(cx, &self.lab.cards, |settings, _| set(settings));
        if is_fec {
            outcome.map_err(|Refused(errno, _)| io::Error::from(errno))?;
            return Ok(Some(Vec::new()));
        }
        self.changed(cx, nic, socket, outcome, message)
    }

    /// `ethtool_set_link_ksettings`, and `ethtool_set_settings`, whose structure has room for 32 link modes.
    fn set_link(&self, cx: Cx<'_, '_>, nic: &mut Nic, socket: &OwnedFd, command: u32) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        nic.answer(m::LINKMODES_GET)?;
        let (autoneg, speed, advertised) = if command == SSET {
            let old = read::<44>(self.lab, self.call, self.data)?;
            let speed = [old[12], old[13], old[28], old[29]];
            (old[18], u32::from_ne_bytes(speed), u128::from(u32_at(&old, 8).unwrap_or(0)))
        } else {
            let new = read::<72>(self.lab, self.call, self.data)?;
            if new[15] != LINK_WORDS {
                return Err(Errno::INVAL.into());
            }
            let word = |at: usize| u128::from(u32_at(&new, at).unwrap_or(0));
            (new[11], u32_at(&new, 4).unwrap_or(0), word(60) | word(64) << 32 | word(68) << 64)
        };
        let set = |settings: &mut Settings| settings.set_link(autoneg != 0, speed, advertised);
        let outcome = nic.change(cx, &self.lab.cards, |settings, _| set(settings));
        self.changed(cx, nic, socket, outcome, m::LINKMODES_SET)
    }

    /// `mlx5e_set_wol`: there is no kind of wake-up.
    fn set_wol(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        nic.answer(m::WOL_GET)?;
        Err(Errno::OPNOTSUPP.into())
    }

    /// `ethtool_self_test`.
    fn test(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        let results = nic.test()?;
        let flags = read_u32(self.lab, self.call, self.data + 4)?;
        let failed = if results.iter().any(|result| *result != 0) { TEST_FAILED } else { 0 };
        let mut structure = words(&[TEST, flags | failed, 0, results.len() as u32]);
        structure.extend(results.iter().flat_map(|result| result.to_ne_bytes()));
        Ok(Some(structure))
    }

    /// The first numbers of `struct ethtool_rxfh`: the sizes of the table and of the key, and the function of the hash.
    ///
    /// # Errors
    /// EINVAL: a reserved number is not 0.
    fn hash_header(&self) -> io::Result<([u8; RXFH], u32, u32)> {
        let header = read::<RXFH>(self.lab, self.call, self.data)?;
        if header[18..RXFH].iter().any(|byte| *byte != 0) {
            return Err(Errno::INVAL.into());
        }
        let word = |at| u32_at(&header, at).unwrap_or(0);
        Ok((header, word(8), word(12)))
    }

    /// `ethtool_get_rxfh`. A program first learns the sizes.
    fn hash(&self, steering: &Steering, channels: u32) -> io::Result<Option<Vec<u8>>> {
        let (mut header, table_size, key_size) = self.hash_header()?;
        // There are no further contexts.
        if u32_at(&header, 4) != Some(0) {
            return Err(Errno::NOENT.into());
        }
        let table = steering.table(channels);
        header[8..12].copy_from_slice(&(table.len() as u32).to_ne_bytes());
        header[12..16].copy_from_slice(&(KEY as u32).to_ne_bytes());
        let fits = |wanted: u32, size: usize| wanted == 0 || wanted as usize == size;
        if !fits(table_size, table.len()) || !fits(key_size, KEY) {
            // The kernel says how large they are all the same.
            write(self.lab, self.call, self.data, &header)?;
            return Err(Errno::INVAL.into());
        }
        (header[16], header[17]) = (steering.function(), 0);
        let mut structure = header.to_vec();
        if table_size != 0 {
            structure.extend(table.into_iter().flat_map(u32::to_ne_bytes));
        }
        if key_size != 0 {
            structure.extend(steering.key());
        }
        Ok(Some(structure))
    }

    /// `ethtool_set_rxfh`.
    fn set_hash(&self, cx: Cx<'_, '_>, nic: &mut Nic, channels: u32) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        let size = nic.steering(cx, &self.lab.cards)?.table(channels).len();
        let (header, table_size, key_size) = self.hash_header()?;
        let (function, transform) = (header[16], header[17]);
        match u32_at(&header, 4) {
            Some(0) => {}
            // ETH_RXFH_CONTEXT_ALLOC: this card has no further contexts.
            Some(u32::MAX) => return Err(Errno::OPNOTSUPP.into()),
            _ => return Err(Errno::NOENT.into()),
        }
        if transform != 0 && transform != TRANSFORM_KEPT {
            return Err(Errno::OPNOTSUPP.into());
        }
        let has_table = table_size != 0 && table_size != TABLE_KEPT;
        if (has_table && table_size as usize != size) || (key_size != 0 && key_size as usize != KEY) {
            return Err(Errno::INVAL.into());
        }
        if table_size == TABLE_KEPT && key_size == 0 && function == 0 && transform == TRANSFORM_KEPT {
            return Err(Errno::INVAL.into());
        }
        let mut at = self.data + RXFH as u64;
        let mut table = Vec::new();
        for _ in 0..if has_table { size } else { 0 } {
            table.push(read_u32(self.lab, self.call, at)?);
            at += 4;
        }
        let key = if key_size == 0 { None } else { Some(read::<KEY>(self.lab, self.call, at)?) };
        let table = (table_size != TABLE_KEPT).then_some(&table[..]);
        let key = key.as_ref().map(|key| &key[..]);
        let outcome = nic.change(cx, &self.lab.cards, |_, steering| {
            steering.set_hash(channels, function, table, key).map(|()| true).map_err(|errno| Refused(errno, "".into()))
        });
        outcome.map_err(|Refused(errno, _)| io::Error::from(errno))?;
        Ok(Some(Vec::new()))
    }

    /// `struct ethtool_rxnfc` of a command.
    fn flow(&self, command: u32) -> io::Result<Vec<u8>> {
        Ok(match command {
            GRXFH | SRXFH => read::<FLOW>(self.lab, self.call, self.data)?.to_vec(),
            _ => read::<RXNFC>(self.lab, self.call, self.data)?.to_vec(),
        })
    }

    /// `ethtool_get_rxnfc`.
    fn rules(&self, steering: &Steering, channels: u32, command: u32) -> io::Result<Vec<u8>> {
        let mut flow = self.flow(command)?;
        let word = |at| u32_at(&flow, at).unwrap_or(0);
        match command {
            GRXFH => {
                let fields = steering.fields(word(FLOW_TYPE))?;
                flow[FLOW_DATA..FLOW].copy_from_slice(&fields.to_ne_bytes());
            }
            GRXRINGS => flow[FLOW_DATA..FLOW].copy_from_slice(&u64::from(channels).to_ne_bytes()),
            GRXCLSRLCNT => flow[RULE_COUNT..RULE_LOCATIONS].copy_from_slice(&steering.count().to_ne_bytes()),
            GRXCLSRULE => {
                let rule = steering.rule(word(FLOW_LOCATION))?;
                flow[FLOW..FLOW + FLOW_SPEC].copy_from_slice(rule);
            }
            _ => {
                let (size, locations) = steering.locations(word(RULE_COUNT))?;
                flow[FLOW_DATA..FLOW].copy_from_slice(&size.to_ne_bytes());
                flow.truncate(RULE_LOCATIONS);
                flow.extend(locations.into_iter().flat_map(u32::to_ne_bytes));
            }
        }
        Ok(flow)
    }

    /// `ethtool_set_rxnfc`.
    fn set_rules(&self, cx: Cx<'_, '_>, nic: &mut Nic, channels: u32, command: u32) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        nic.steering(cx, &self.lab.cards)?;
        let flow = self.flow(command)?;
        let word = |at| u32_at(&flow, at).unwrap_or(0);
        let set = |steering: &mut Steering| match command {
            SRXFH => {
                let fields = flow.get(FLOW_DATA..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
                steering.set_fields(word(FLOW_TYPE), u64::from_ne_bytes(fields))
            }
            SRXCLSRLDEL => steering.remove(word(FLOW_LOCATION)),
            _ => steering.insert(channels, &flow[FLOW..FLOW + FLOW_SPEC]),
        };
        let outcome = nic.change(cx, &self.lab.cards, |_, steering| {
            set(steering).map(|()| true).map_err(|errno| Refused(errno, "".into()))
        });
        outcome.map_err(|Refused(errno, _)| io::Error::from(errno))?;
        Ok(Some(Vec::new()))
    }

    /// The driver of the netdev.
    fn driver_info(&self, nic: &Nic, socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
        let mut info: DriverInfo = [0; size_of::<DriverInfo>()];
        info[..4].copy_from_slice(&GDRVINFO.to_ne_bytes());
        // The kernel answers first: it fills in the numbers.
        sys::ethtool(socket, &self.name, &mut info)?;
        describe(&mut info, nic);
        Ok(Some(info.to_vec()))
    }

    /// The channels, which are the queues of the kernel's netdev.
    fn channels(&self, socket: &OwnedFd, command: u32) -> io::Result<Vec<u8>> {
        let [_, max_rx, max_tx, _, _, rx, tx, ..] = self.queues(socket)?;
        Ok(words(&[command, 0, 0, 0, max_rx.min(max_tx), 0, 0, 0, rx.min(tx)]))
    }

    fn queues(&self, socket: &OwnedFd) -> io::Result<[u32; 9]> {
        let mut queues: Channels = [0; size_of::<Channels>()];
        queues[..4].copy_from_slice(&GCHANNELS.to_ne_bytes());
        sys::ethtool(socket, &self.name, &mut queues)?;
        Ok(std::array::from_fn(|at| u32_at(&queues, 4 * at).unwrap_or(0)))
    }

    /// `ethtool_set_channels`, then `mlx5e_ethtool_set_channels`.
    fn set_channels(&self, cx: Cx<'_, '_>, nic: &Nic, socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        let [_, max_rx, max_tx, ..] = self.queues(socket)?;
        let mut wanted = [0; 4];
        for (at, count) in wanted.iter_mut().enumerate() {
            *count = read_u32(self.lab, self.call, self.data + 20 + 4 * at as u64)?;
        }
        let [rx, tx, other, combined] = wanted;
        if rx != 0 || tx != 0 || other != 0 || combined == 0 || combined > max_rx.min(max_tx) {
            return Err(Errno::INVAL.into());
        }
        // A representor has neither a table nor rules.
        nic.steering(cx, &self.lab.cards)
            .map_or(Ok(()), |steering| steering.allows(combined))
            .map_err(|Refused(errno, _)| errno)?;
        let mut queues = words(&[SCHANNELS, 0, 0, 0, 0, combined, combined, 0, 0]);
        self.as_caller(socket, &mut queues)?;
        Ok(Some(SCHANNELS.to_ne_bytes().to_vec()))
    }

    /// The features of the kernel's netdev, and NETIF_F_HW_TC, which is the card's.
    fn features(&self, nic: &Nic, socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
        const BLOCK: usize = 16;
        let Some(family) = self.lab.families.ethtool() else { return Ok(None) };
        let blocks = read_u32(self.lab, self.call, self.data + 4)?.min(BLOCKS);
        let mut structure = words(&[GFEATURES, blocks]);
        structure.resize(8 + BLOCK * blocks as usize, 0);
        sys::ethtool(socket, &self.name, &mut structure)?;
        // The kernel has put in how many blocks it has, and has filled in those for which there was room. The numbers of
        // a block are: available, requested, active, never changed.
        let bit = family.hw_tc;
        let at = 8 + BLOCK * (bit / 32) as usize;
        for (number, on) in [(at, true), (at + 4, nic.has_hw_tc()), (at + 8, nic.has_hw_tc())] {
            if let Some(byte) = structure.get_mut(number + (bit % 32 / 8) as usize) {
                let flag = 1 << (bit % 8);
                *byte = if on { *byte | flag } else { *byte & !flag };
            }
        }
        Ok(Some(structure))
    }

    /// A request to set features: NETIF_F_HW_TC is the card's, the others are the kernel's.
    /// The value of the call tells of features that have not become as requested.
    fn set_features(&self, cx: Cx<'_, '_>, nic: &mut Nic, socket: &OwnedFd) -> io::Result<Answer> {
        const BLOCK: usize = 8;
        let Some(family) = self.lab.families.ethtool() else { return Ok(Answer::Continue) };
        let blocks = read_u32(self.lab, self.call, self.data + 4)?.min(BLOCKS);
        let mut structure = words(&[SFEATURES, blocks]);
        for word in 0..2 * u64::from(blocks) {
            structure.extend(read::<4>(self.lab, self.call, self.data + 8 + 4 * word)?);
        }
        // The numbers of a block are: valid, requested.
        let at = 8 + BLOCK * (family.hw_tc / 32) as usize + (family.hw_tc % 32 / 8) as usize;
        let flag = 1 << (family.hw_tc % 8);
        let is_on = |at: usize| structure.get(at).is_some_and(|byte| byte & flag != 0);
        let (valid, on) = (is_on(at), is_on(at + 4));
        if !valid {
            return Ok(Answer::Continue);
        }
        self.require_rights()?;
        let outcome = nic.change(cx, &self.lab.cards, |settings, _| Ok(settings.set(Key::HwTc, on.into())));
        outcome.map_err(|Refused(errno, _)| io::Error::from(errno))?;
        structure[at] &= !flag;
        self.as_caller(socket, &mut structure).map(Answer::Value)
    }

    /// Has the kernel carry out a command with the rights of the program.
    fn as_caller(&self, socket: &OwnedFd, structure: &mut [u8]) -> io::Result<i64> {
        let caller = self.caller()?;
        process::with_rights(caller.capabilities, caller.user, || sys::ethtool(socket, &self.name, structure))?
    }

    /// `ethtool_get_sset_info`. Sets that are not the driver's are the kernel's.
    fn count_strings(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        const SETS: [u32; 3] = [ethtool::SS_TEST, ethtool::SS_STATS, ethtool::SS_PRIV_FLAGS];
        let mask = u64::from_ne_bytes(read(self.lab, self.call, self.data + 8)?);
        let own = SETS.iter().fold(0, |all, set| all | 1u64 << set);
        if mask & own == 0 || mask & !own != 0 {
            return Ok(None);
        }
        let counts: Vec<(u32, u32)> = SETS
            .into_iter()
            .filter(|set| mask >> set & 1 == 1)
            .filter_map(|set| Some((set, nic.strings(set).ok()?.len() as u32)))
            .collect();
        let mut structure = words(&[GSSET_INFO, 0]);
        structure.extend(counts.iter().fold(0, |all, (set, _)| all | 1u64 << set).to_ne_bytes());
        structure.extend(counts.iter().flat_map(|(_, count)| count.to_ne_bytes()));
        Ok(Some(structure))
    }

    fn strings(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        let set = read_u32(self.lab, self.call, self.data + 4)?;
        if ![ethtool::SS_TEST, ethtool::SS_STATS, ethtool::SS_PRIV_FLAGS].contains(&set) {
            return Ok(None);
        }
        let strings = nic.strings(set)?;
        let mut structure = words(&[GSTRINGS, set, strings.len() as u32]);
        for text in strings {
            let start = structure.len();
            structure.extend(text.as_bytes());
            structure.resize(start + STRING, 0);
        }
        Ok(Some(structure))
    }

    fn statistics(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        let counters = stats::of(&nic.netdev);
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.call.pid))?;
        let values = stats::values(&text, &self.name, &counters).ok_or(Errno::NODEV)?;
        let mut structure = words(&[GSTATS, values.len() as u32]);
        structure.extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        Ok(Some(structure))
    }

    /// `ethtool_get_perm_addr`.
    fn permanent_address(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        let address = nic.netdev.permanent.unwrap_or_default();
        if (read_u32(self.lab, self.call, self.data + 4)? as usize) < address.len() {
            return Err(Errno::INVAL.into());
        }
        let mut structure = words(&[GPERMADDR, address.len() as u32]);
        structure.extend(address);
        Ok(Some(structure))
    }

    /// `ethtool_get_link_ksettings`: a program first learns how many words a set of link modes has.
    fn link_settings(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        /// The offset of `link_mode_masks_nwords`, and of the sets.
        const NWORDS: usize = 15;
        const MASKS: usize = 48;
        let attributes = nic.answer(m::LINKMODES_GET)?;
        let mut structure = words(&[GLINKSETTINGS]);
        structure.resize(MASKS, 0);
        let [wanted] = read::<1>(self.lab, self.call, self.data + NWORDS as u64)?;
        if wanted != LINK_WORDS {
            structure[NWORDS] = LINK_WORDS.wrapping_neg();
            return Ok(Some(structure));
        }
        structure[NWORDS] = LINK_WORDS;
        structure[4..8].copy_from_slice(&ethtool::number(&attributes, 5).to_ne_bytes());
        structure[8] = ethtool::number(&attributes, 6) as u8;
        structure[9] = ethtool::number(&nic.answer(m::LINKINFO_GET)?, 2) as u8;
        structure[11] = ethtool::number(&attributes, 2) as u8;
        let (supported, advertised) = bits_of(&attributes);
        for set in [supported, advertised, 0] {
            structure.extend(&set.to_ne_bytes()[..4 * usize::from(LINK_WORDS)]);
        }
        Ok(Some(structure))
    }
}

impl Numbers {
    fn structure(&self, command: u32, attributes: &Attributes) -> Vec<u8> {
        let numbers = self.kinds.clone().map(|kind| ethtool::number(attributes, kind));
        words(&[command].into_iter().chain(numbers).collect::<Vec<_>>())
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The set of bits among attributes: those that can be set, and those that are set.
fn bits_of(attributes: &Attributes) -> (u128, u128) {
    let set = attributes.iter().find_map(|(_, value)| match value {
        Value::Bits(bits) => Some((bits.mask.unwrap_or(bits.value), bits.value)),
        _ => None,
    });
    set.unwrap_or_default()
}

/// The first 32 bits that are set.
fn low_bits(attributes: &Attributes) -> u32 {
    bits_of(attributes).1 as u32
}

/// `struct ethtool_cmd`, which has room for 32 link modes (`convert_link_ksettings_to_legacy_settings`).
fn link_settings_of_old(attributes: &Attributes) -> Vec<u8> {
    let (supported, advertised) = bits_of(attributes);
    let mut structure = words(&[GSET, supported as u32, advertised as u32]);
    structure.resize(44, 0);
    let speed = ethtool::number(attributes, 5).to_ne_bytes();
    let [low, high] = [[speed[0], speed[1]], [speed[2], speed[3]]];
    structure[12..14].copy_from_slice(&low);
    structure[14] = ethtool::number(attributes, 6) as u8;
    // PORT_FIBRE.
    structure[15] = 3;
    structure[18] = ethtool::number(attributes, 2) as u8;
    structure[28..30].copy_from_slice(&high);
    structure
}

/// Replaces the texts of the kernel's answer, and the numbers of strings, by the card's.
fn describe(info: &mut DriverInfo, nic: &Nic) {
    let profile = &nic.netdev.view.card.profile;
    let mut put = |at: usize, text: &str| {
        let len = text.len().min(TEXT - 1);
        info[at..at + TEXT].fill(0);
        info[at..at + len].copy_from_slice(&text.as_bytes()[..len]);
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    put(DRIVER, &nic.netdev.driver);
    put(VERSION, release.trim());
    put(FIRMWARE, &format!("{} ({})", profile.firmware, profile.board));
    put(BUS_INFO, &nic.netdev.bus_info);
    for (at, set) in
        [(N_PRIV_FLAGS, ethtool::SS_PRIV_FLAGS), (N_STATS, ethtool::SS_STATS), (TESTINFO_LEN, ethtool::SS_TEST)]
    {
        let count = nic.strings(set).map_or(0, |strings| strings.len() as u32);
        info[at..at + 4].copy_from_slice(&count.to_ne_bytes());
    }
}
