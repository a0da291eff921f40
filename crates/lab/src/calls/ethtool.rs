//! `ioctl(SIOCETHTOOL)` on a card's netdev. The kernel would answer for a veth.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use netlink::{Errno, u32_at};
use rustix::net::netdevice::name_to_index;

use crate::ethtool::message as m;
use crate::ethtool::{self, Attributes, Nic, Refused, Value, stats};
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
const GSTRINGS: u32 = 0x1b;
const GSTATS: u32 = 0x1d;
const GPERMADDR: u32 = 0x20;
const GPFLAGS: u32 = 0x27;
const SPFLAGS: u32 = 0x28;
const GSSET_INFO: u32 = 0x37;
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

/// The most blocks of 32 features: more than any kernel has.
const BLOCKS: u32 = 64;

/// Bytes of a string in a set (ETH_GSTRING_LEN).
const STRING: usize = 32;

/// ETHTOOL_FEC_AUTO and ETHTOOL_FEC_RS.
const FEC_AUTO: u32 = 1 << 1;
const FEC_RS: u32 = 1 << 3;

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
    let nic = Nic::new(netdev, index, name.clone(), &socket);
    let ioctl = Ioctl { lab, call, data, name };
    if command == SFEATURES {
        return Ok(ioctl.set_features(&nic, &socket).into());
    }
    match ioctl.carry_out(&nic, &socket, command) {
        Ok(Some(structure)) => write(lab, call, data, &structure).map(|()| Answer::Value(0)),
        Ok(None) => Ok(Answer::Continue),
        Err(error) => Ok(Err::<Answer, io::Error>(error).into()),
    }
}

impl Ioctl<'_> {
    /// Carries out a command. Returns the structure that is to be written back. `None`: the kernel is to answer.
    fn carry_out(&self, nic: &Nic, socket: &OwnedFd, command: u32) -> io::Result<Option<Vec<u8>>> {
        if let Some(numbers) = NUMBERS.iter().find(|numbers| numbers.get == command) {
            return Ok(Some(numbers.structure(command, &nic.answer(numbers.message)?)));
        }
        if let Some(numbers) = NUMBERS.iter().find(|numbers| numbers.set == command) {
            return self.set(nic, numbers);
        }
        match command {
            GDRVINFO => self.driver_info(nic, socket),
            GCHANNELS => self.channels(socket, GCHANNELS).map(Some),
            SCHANNELS => self.set_channels(socket),
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
                nic.answer(m::FEC_GET).map(|_| Some(words(&[command, FEC_RS, FEC_AUTO, 0]))).map_err(io::Error::from)
            }
            SSET | SWOL | SPFLAGS | SLINKSETTINGS | SFECPARAM => {
                self.require_rights()?;
                Err(ethtool::CONSTANT.0.into())
            }
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

    fn set(&self, nic: &Nic, numbers: &Numbers) -> io::Result<Option<Vec<u8>>> {
        self.require_rights()?;
        let now = nic.answer(numbers.message)?;
        let count = numbers.kinds.len();
        let mut wanted = Vec::new();
        for (at, kind) in numbers.kinds.clone().enumerate() {
            wanted.push((kind, read_u32(self.lab, self.call, self.data + 4 * (at as u64 + 1))?));
        }
        // The largest sizes of rings are no wishes.
        let wanted = wanted.into_iter().skip(if numbers.set == SRINGPARAM { count / 2 } else { 0 });
        match ethtool::set(numbers.set_message, &now, wanted) {
            Ok(()) => Ok(Some(numbers.set.to_ne_bytes().to_vec())),
            Err(Refused(errno, _)) => Err(errno.into()),
        }
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
    fn set_channels(&self, socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
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
        let mut queues = words(&[SCHANNELS, 0, 0, 0, 0, combined, combined, 0, 0]);
        self.as_caller(socket, &mut queues)?;
        Ok(Some(SCHANNELS.to_ne_bytes().to_vec()))
    }

    /// The features of the kernel's netdev, and NETIF_F_HW_TC if the card has it on.
    fn features(&self, nic: &Nic, socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
        const BLOCK: usize = 16;
        let (true, Some(family)) = (nic.has_hw_tc(), self.lab.families.ethtool()) else { return Ok(None) };
        let blocks = read_u32(self.lab, self.call, self.data + 4)?.min(BLOCKS);
        let mut structure = words(&[GFEATURES, blocks]);
        structure.resize(8 + BLOCK * blocks as usize, 0);
        sys::ethtool(socket, &self.name, &mut structure)?;
        // The kernel has put in how many blocks it has, and has filled in those for which there was room. The numbers of
        // a block are: available, requested, active, never changed.
        let bit = family.hw_tc;
        let at = 8 + BLOCK * (bit / 32) as usize;
        for number in [at + 4, at + 8] {
            if let Some(byte) = structure.get_mut(number + (bit % 32 / 8) as usize) {
                *byte |= 1 << (bit % 8);
            }
        }
        Ok(Some(structure))
    }

    /// A request to set features, without NETIF_F_HW_TC, which stays on where it is on.
    /// The value of the call tells of features that have not become as requested.
    fn set_features(&self, nic: &Nic, socket: &OwnedFd) -> io::Result<Answer> {
        const BLOCK: usize = 8;
        let (true, Some(family)) = (nic.has_hw_tc(), self.lab.families.ethtool()) else {
            return Ok(Answer::Continue);
        };
        let blocks = read_u32(self.lab, self.call, self.data + 4)?.min(BLOCKS);
        let mut structure = words(&[SFEATURES, blocks]);
        for word in 0..2 * u64::from(blocks) {
            structure.extend(read::<4>(self.lab, self.call, self.data + 8 + 4 * word)?);
        }
        // The numbers of a block are: valid, requested.
        let at = 8 + BLOCK * (family.hw_tc / 32) as usize + (family.hw_tc % 32 / 8) as usize;
        let flag = 1 << (family.hw_tc % 8);
        let is_on = |at: usize| structure.get(at).is_some_and(|byte| byte & flag != 0);
        match (is_on(at), is_on(at + 4)) {
            (false, _) => return Ok(Answer::Continue),
            (true, false) => {
                self.require_rights()?;
                return Err(ethtool::CONSTANT.0.into());
            }
            (true, true) => structure[at] &= !flag,
        }
        self.as_caller(socket, &mut structure).map(Answer::Value)
    }

    /// Has the kernel carry out a command with the rights of the program.
    fn as_caller(&self, socket: &OwnedFd, structure: &mut [u8]) -> io::Result<i64> {
        let caller = self.caller()?;
        process::with_rights(caller.capabilities, caller.user, || sys::ethtool(socket, &self.name, structure))?
    }

    /// `ethtool_get_sset_info`. Sets that are not the driver's are the kernel's.
    fn count_strings(&self, nic: &Nic) -> io::Result<Option<Vec<u8>>> {
        const SETS: [u32; 2] = [ethtool::SS_STATS, ethtool::SS_PRIV_FLAGS];
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
        if ![ethtool::SS_STATS, ethtool::SS_PRIV_FLAGS].contains(&set) {
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
        const WORDS: u8 = 3;
        /// The offset of `link_mode_masks_nwords`, and of the sets.
        const NWORDS: usize = 15;
        const MASKS: usize = 48;
        let attributes = nic.answer(m::LINKMODES_GET)?;
        let mut structure = words(&[GLINKSETTINGS]);
        structure.resize(MASKS, 0);
        let [wanted] = read::<1>(self.lab, self.call, self.data + NWORDS as u64)?;
        if wanted != WORDS {
            structure[NWORDS] = WORDS.wrapping_neg();
            return Ok(Some(structure));
        }
        structure[NWORDS] = WORDS;
        structure[4..8].copy_from_slice(&ethtool::number(&attributes, 5).to_ne_bytes());
        structure[8] = ethtool::number(&attributes, 6) as u8;
        structure[9] = ethtool::number(&nic.answer(m::LINKINFO_GET)?, 2) as u8;
        structure[11] = ethtool::number(&attributes, 2) as u8;
        let (supported, advertised) = bits_of(&attributes);
        for set in [supported, advertised, 0] {
            structure.extend(&set.to_ne_bytes()[..4 * usize::from(WORDS)]);
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
    for (at, set) in [(N_PRIV_FLAGS, ethtool::SS_PRIV_FLAGS), (N_STATS, ethtool::SS_STATS)] {
        let count = nic.strings(set).map_or(0, |strings| strings.len() as u32);
        info[at..at + 4].copy_from_slice(&count.to_ne_bytes());
    }
}
