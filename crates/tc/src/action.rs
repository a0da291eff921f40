//! Actions: read, shown, and what they are for the card (`net/sched/act_*.c`).
//!
//! An action is kept as the attributes that it was given, checked, with what the kernel adds to them. Its parameters begin
//! with the index of the action, what follows from it, and two counts of references (`tc_gen`), except police's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flow::TunnelDevice;
use netlink::{Attribute, Builder, Errno, attributes};
use serde::{Deserialize, Serialize};

use crate::attributes::Attr;
use crate::numbers::{act, control, stats};
use crate::refusal::Refusal;

/// A netdev to which frames are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Target {
    /// A port of the card: the netdev is its representor, or the uplink's.
    Port(flow::Port),
    /// A tunnel device over the uplink.
    Tunnel(TunnelDevice),
    /// None of the card's.
    Other,
}

/// What a netdev is to the card, by its interface index in the network namespace of the program.
pub type Targets<'a> = &'a mut dyn FnMut(u32) -> Target;

/// A kind of action that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `gact`: what follows, and nothing else.
    Gact,
    /// `mirred`: redirect and mirror.
    Mirred,
    /// `vlan`
    Vlan,
    /// `tunnel_key`
    TunnelKey,
    /// `pedit`
    Pedit,
    /// `csum`
    Csum,
    /// `skbedit`
    Skbedit,
    /// `ct`
    Ct,
    /// `police`
    Police,
    /// `sample`
    Sample,
}

/// The layout of an action's attributes.
struct Layout {
    kind: Kind,
    name: &'static str,
    /// The attribute of its parameters.
    parms: u16,
    /// The attribute of its times.
    tm: u16,
    /// Bytes of the parameters, at least.
    size: usize,
    /// The text if the parameters are missing.
    missing: &'static str,
}

const fn layout(kind: Kind, name: &'static str, parms: u16, tm: u16, size: usize, missing: &'static str) -> Layout {
    Layout { kind, name, parms, tm, size, missing }
}

const LAYOUTS: &[Layout] = &[
    layout(Kind::Gact, "gact", 2, 1, 20, ""),
    layout(Kind::Mirred, "mirred", 2, 1, 28, "Missing required mirred parameters"),
    layout(Kind::Vlan, "vlan", 2, 1, 24, ""),
    layout(Kind::TunnelKey, "tunnel_key", 2, 1, 24, "Missing tunnel key parameters"),
    layout(Kind::Pedit, "pedit", 4, 1, 24, "Missing required TCA_PEDIT_PARMS or TCA_PEDIT_PARMS_EX attribute"),
    layout(Kind::Csum, "csum", 1, 2, 24, ""),
    layout(Kind::Skbedit, "skbedit", 2, 1, 20, ""),
    layout(Kind::Ct, "ct", 1, 2, 20, "Missing required ct parameters"),
    layout(Kind::Police, "police", 1, 6, 56, ""),
    layout(Kind::Sample, "sample", 2, 1, 20, ""),
];

/// TCA_PEDIT_KEYS_EX
const KEYS_EX: u16 = 5;

impl Kind {
    fn layout(self) -> &'static Layout {
        &LAYOUTS[self as usize]
    }

    /// The name of the kind.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        LAYOUTS.iter().find(|layout| layout.name == name).map(|layout| layout.kind)
    }
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Action {
    /// The kind.
    pub kind: Kind,
    /// The index, which no other action of the kind has; 0 if the program has left it open.
    pub index: u32,
    /// The parameters, with `tc_gen` at their beginning.
    parms: Vec<u8>,
    /// The other attributes.
    rest: Vec<Attr>,
    /// What a program has noted (TCA_ACT_COOKIE).
    cookie: Option<Vec<u8>>,
    /// TCA_ACT_FLAGS.
    flags: u32,
    /// Which statistics of the card's are asked for: TCA_ACT_HW_STATS.
    hw_stats: Option<u32>,
    /// For mirred: the netdev.
    pub target: Option<Target>,
    /// Only the index was given: it is an action that there is.
    pub is_reference: bool,
}

/// How often an action was used, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Frames that the card has carried out.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that the kernel has carried out, and their bytes.
    pub software: (u64, u64),
    /// Milliseconds since the action was made.
    pub age_ms: u64,
    /// Milliseconds since it was used last, or since it was made.
    pub idle_ms: u64,
    /// Whether the card carries it out.
    pub in_hw: bool,
    /// How many filters use it.
    pub bound: u32,
}

/// Reads the actions of a filter: the value of TCA_FLOWER_ACT, say.
///
/// # Errors
/// The kernel would refuse one, or its kind is not known here.
pub fn read(nest: &[u8], targets: Targets<'_>) -> Result<Vec<Action>, Refusal> {
    let mut numbered: Vec<_> = attributes(nest).flatten().collect();
    if numbered.iter().any(|action| usize::from(action.kind) > act::MAX_PRIO) {
        return Err(Refusal::new(Errno::INVAL, ""));
    }
    numbered.sort_by_key(|action| action.kind);
    numbered.iter().map(|action| Action::read(action.value, targets)).collect()
}

impl Action {
    /// Reads one action: the attributes TCA_ACT_* of it.
    ///
    /// # Errors
    /// The kernel would refuse it, or its kind is not known here.
    pub fn read(nest: &[u8], targets: Targets<'_>) -> Result<Self, Refusal> {
        let find = |kind| attributes(nest).flatten().filter(|attribute: &Attribute<'_>| attribute.kind == kind).last();
        let invalid = |text| Refusal::new(Errno::INVAL, text);
        let name = find(act::KIND).ok_or_else(|| invalid("TC action kind must be specified"))?;
        let name = name.string().ok_or_else(|| invalid("TC action name too long"))?.to_owned();
        let kind = Kind::named(&name).ok_or_else(|| Refusal::new(Errno::NOENT, "Failed to load TC action module"))?;
        let layout = kind.layout();
        let options = find(act::OPTIONS);
        let options = options.map_or(&[][..], |options| options.value);
        let cookie = find(act::COOKIE).map(|cookie| cookie.value.to_vec());
        if cookie.as_ref().is_some_and(|cookie| cookie.len() > act::MAX_COOKIE) {
            return Err(invalid("TC cookie size above the maximum"));
        }
        let mut action = Self {
            kind,
            index: 0,
            parms: Vec::new(),
            rest: Vec::new(),
            cookie,
            flags: find(act::FLAGS).and_then(|flags| flags.bitfield()).map_or(0, |(value, selector)| value & selector),
            hw_stats: find(act::HW_STATS).and_then(|s| s.bitfield()).map(|(value, selector)| value & selector),
            target: None,
            is_reference: false,
        };
        for attribute in attributes(options).flatten() {
            // PARMS of pedit without the extension is 2.
            let is_parms = attribute.kind == layout.parms || kind == Kind::Pedit && attribute.kind == 2;
            if is_parms {
                action.parms = attribute.value.to_vec();
            } else if attribute.kind != layout.tm {
                action.rest.push((attribute.kind, attribute.value.to_vec()));
            }
        }
        if action.parms.is_empty() {
            return Err(invalid(layout.missing));
        }
        if action.parms.len() < layout.size {
            return Err(Refusal::new(Errno::RANGE, "Attribute failed policy validation"));
        }
        action.index = action.parm(0);
        action.check(targets)?;
        action.complete();
        Ok(action)
    }

    /// A number of the parameters, by its place among numbers of four bytes.
    fn parm(&self, at: usize) -> u32 {
        netlink::u32_at(&self.parms, 4 * at).unwrap_or(0)
    }

    fn set_parm(&mut self, at: usize, value: u32) {
        netlink::overwrite(&mut self.parms, 4 * at, &value.to_ne_bytes());
    }

    /// The value of another attribute than the parameters.
    pub(crate) fn attribute(&self, kind: u16) -> Option<&[u8]> {
        self.rest.iter().rev().find(|(own, _)| *own == kind).map(|(_, value)| &value[..])
    }

    pub(crate) fn number_u8(&self, kind: u16) -> Option<u8> {
        self.attribute(kind)?.first().copied()
    }

    pub(crate) fn number_u16(&self, kind: u16) -> Option<u16> {
        netlink::u16_at(self.attribute(kind)?, 0)
    }

    pub(crate) fn number_u32(&self, kind: u16) -> Option<u32> {
        netlink::u32_at(self.attribute(kind)?, 0)
    }

    pub(crate) fn number_u64(&self, kind: u16) -> Option<u64> {
        Some(u64::from_ne_bytes(*self.attribute(kind)?.first_chunk()?))
    }

    pub(crate) fn address(&self, v4: u16, v6: u16) -> Option<IpAddr> {
        let four = self.attribute(v4).and_then(|bytes| bytes.first_chunk::<4>());
        let six = || self.attribute(v6).and_then(|bytes| bytes.first_chunk::<16>());
        four.map(|bytes| IpAddr::V4(Ipv4Addr::from(*bytes)))
            .or_else(|| six().map(|bytes| IpAddr::V6(Ipv6Addr::from(*bytes))))
    }

    /// What follows from the action: one of [`control`].
    pub fn control(&self) -> i32 {
        let at = if self.kind == Kind::Police { 1 } else { 2 };
        self.parm(at).cast_signed()
    }

    /// Whether the counters that the card has are among those that are asked for: counters that are read now and then, as mlx5's
    /// (`flow_action_hw_stats_check` in `include/net/flow_offload.h`).
    pub(crate) fn wants_delayed_counters(&self) -> bool {
        self.hw_stats.is_none_or(|wanted| wanted & act::HW_STATS_DELAYED != 0)
    }

    /// The number behind `tc_gen`: what the action does, for mirred, vlan, tunnel_key and csum.
    pub(crate) fn mode(&self) -> u32 {
        self.parm(5)
    }

    /// The parameters of police.
    pub(crate) fn police(&self) -> PoliceParms {
        // index, action, limit, burst, mtu, then twice `struct tc_ratespec` of 12 bytes, whose last number is the rate.
        PoliceParms { burst: self.parm(3), mtu: self.parm(4), rate: self.parm(7), peak_rate: self.parm(10) }
    }

    /// The keys of pedit: (mask, value, offset) with the header and the command of each, if they were said.
    pub(crate) fn pedit_keys(&self) -> Vec<PeditKey> {
        const SELECTOR: usize = 24;
        const KEY: usize = 24;
        let count = usize::from(self.parms.get(20).copied().unwrap_or(0));
        let ex: Vec<(u16, u16)> = attributes(self.attribute(KEYS_EX).unwrap_or_default())
            .flatten()
            .map(|key| {
                let of = |kind| key.nested().flatten().find(|a| a.kind == kind).and_then(|a| a.u16()).unwrap_or(0);
                (of(1), of(2))
            })
            .collect();
        let keys = self.parms.get(SELECTOR..).unwrap_or_default().chunks_exact(KEY).take(count);
        keys.enumerate()
            .map(|(at, key)| {
                let bytes = |n: usize| -> [u8; 4] { key[4 * n..4 * n + 4].try_into().unwrap_or_default() };
                PeditKey {
                    keep: bytes(0),
                    value: bytes(1),
                    offset: u32::from_ne_bytes(bytes(2)),
                    relative: u32::from_ne_bytes(bytes(4)) != 0,
                    header_and_command: ex.get(at).copied(),
                }
            })
            .collect()
    }

    /// Refuses what the kernel refuses of each kind.
    fn check(&mut self, targets: Targets<'_>) -> Result<(), Refusal> {
        let invalid = |text: &'static str| Err(Refusal::new(Errno::INVAL, text));
        match self.kind {
            Kind::Mirred => {
                // TCA_EGRESS_REDIR, TCA_EGRESS_MIRROR, TCA_INGRESS_REDIR, TCA_INGRESS_MIRROR
                if !(1..=4).contains(&self.mode()) {
                    return invalid("Unknown mirred option");
                }
                match self.parm(6) {
                    0 => self.is_reference = true,
                    index => self.target = Some(targets(index)),
                }
                if self.is_reference && self.index == 0 {
                    return invalid("Specified device does not exist");
                }
            }
            Kind::Vlan => {
                // TCA_VLAN_ACT_PUSH, TCA_VLAN_ACT_MODIFY
                if matches!(self.mode(), 2 | 3) {
                    match self.number_u16(3) {
                        None => return invalid(""),
                        Some(id) if id >= 4096 => return Err(Refusal::new(Errno::RANGE, "")),
                        Some(_) => {}
                    }
                    let protocol = self.number_u16(4).map(u16::from_be);
                    if protocol.is_some_and(|protocol| !matches!(protocol, 0x8100 | 0x88a8)) {
                        return Err(Refusal::new(Errno::PROTONOSUPPORT, ""));
                    }
                }
                if !(1..=5).contains(&self.mode()) {
                    return invalid("");
                }
            }
            Kind::TunnelKey => match self.mode() {
                // TCA_TUNNEL_KEY_ACT_SET
                1 if self.address(3, 5).is_none() || self.address(4, 6).is_none() => {
                    return invalid("Missing either ipv4 or ipv6 src and dst");
                }
                // TCA_TUNNEL_KEY_ACT_RELEASE
                1 | 2 => {}
                _ => return invalid("Unknown tunnel key action"),
            },
            Kind::Pedit => {
                let count = usize::from(self.parms.get(20).copied().unwrap_or(0));
                if count == 0 {
                    return invalid("Pedit requires keys to be passed");
                }
                if self.parms.len() < 24 + 24 * count {
                    return invalid("Length of TCA_PEDIT_PARMS or TCA_PEDIT_PARMS_EX pedit attribute is invalid");
                }
            }
            Kind::Sample => {
                self.is_reference = self.index != 0 && self.number_u32(3).is_none();
                match (self.number_u32(3), self.number_u32(5)) {
                    _ if self.is_reference => {}
                    (Some(0), _) => return invalid("invalid sample rate"),
                    (Some(_), Some(_)) => {}
                    _ => return invalid("sample rate and group are required"),
                }
            }
            Kind::Police => {
                let parms = self.police();
                let has_rate = parms.rate != 0 || self.number_u64(8).is_some() || self.number_u64(10).is_some();
                self.is_reference = self.index != 0 && !has_rate && parms.mtu == 0 && parms.burst == 0;
                if has_rate && self.number_u64(10).is_some() && parms.rate != 0 {
                    return invalid("packet-per-second and byte-per-second rate limits not allowed in same action");
                }
            }
            Kind::Gact | Kind::Csum | Kind::Skbedit | Kind::Ct => {}
        }
        let control = self.control();
        let known = control & !control::EXT_VALUE != 0 || (control::UNSPEC..=control::TRAP).contains(&control);
        if !known {
            return invalid("invalid control action");
        }
        if control & !control::EXT_VALUE == control::JUMP && control & control::EXT_VALUE == 0 {
            return invalid("can't jump to the same action");
        }
        Ok(())
    }

    /// Adds what the kernel shows although it was not given.
    fn complete(&mut self) {
        let default: &[(u16, Vec<u8>)] = match self.kind {
            Kind::Vlan if matches!(self.mode(), 2 | 3) => &[(4, 0x8100_u16.to_be_bytes().to_vec()), (6, vec![0])],
            Kind::Ct => &[(3, vec![0, 0])],
            _ => &[],
        };
        for (kind, value) in default {
            if self.attribute(*kind).is_none() {
                self.rest.push((*kind, value.clone()));
            }
        }
        // `tcf_pedit_key_ex_dump` writes nests without the flag with which they may have come.
        if let Some((_, keys)) = self.rest.iter_mut().find(|(kind, _)| self.kind == Kind::Pedit && *kind == KEYS_EX)
            && let Ok(plain) = netlink::row(|to| {
                for key in attributes(keys).flatten() {
                    to.put(key.kind, key.value);
                }
            })
        {
            *keys = plain;
        }
        if self.kind == Kind::Police {
            // Tables of rates are not kept.
            self.rest.retain(|(kind, _)| !matches!(kind, 2 | 3));
        }
    }

    /// Gives the action its index.
    pub(crate) fn number(&mut self, index: u32) {
        self.index = index;
        self.set_parm(0, index);
    }

    /// Writes the action as the kernel shows it. `netdev`: the interface index of a port where the program is; `is_terse`: only
    /// what is asked for with TCA_DUMP_FLAGS_TERSE.
    pub fn write(
        &self,
        to: &mut Builder,
        usage: &Usage,
        is_terse: bool,
        netdev: &mut dyn FnMut(flow::Port) -> Option<u32>,
    ) {
        let layout = self.kind.layout();
        to.text(act::KIND, layout.name);
        if let Some(cookie) = &self.cookie {
            to.put(act::COOKIE, cookie);
        }
        to.nest_noflag(act::STATS, |to| write_stats(to, usage));
        if is_terse {
            return;
        }
        if let Some(hw_stats) = self.hw_stats.filter(|wanted| *wanted != act::HW_STATS_ANY) {
            to.bitfield(act::HW_STATS, hw_stats, act::HW_STATS_ANY);
        }
        if usage.in_hw {
            to.bitfield(act::USED_HW_STATS, act::HW_STATS_DELAYED, act::HW_STATS_ANY);
        }
        if self.flags != 0 {
            to.bitfield(act::FLAGS, self.flags, self.flags);
        }
        to.u32(act::IN_HW_COUNT, u32::from(usage.in_hw));
        to.nest_noflag(act::OPTIONS, |to| {
            to.put(layout.parms, &self.shown_parms(usage, netdev));
            for (kind, value) in &self.rest {
                to.put(*kind, value);
            }
            // `struct tcf_t`: made, used last, expires, used first; in hundredths of a second.
            let times = [usage.age_ms / 10, usage.idle_ms / 10, 0, 0];
            to.put(layout.tm, &times.iter().flat_map(|time| time.to_ne_bytes()).collect::<Vec<u8>>());
        });
    }

    fn shown_parms(&self, usage: &Usage, netdev: &mut dyn FnMut(flow::Port) -> Option<u32>) -> Vec<u8> {
        let mut shown = self.clone();
        // refcnt and bindcnt
        let counts = if self.kind == Kind::Police { 11 } else { 3 };
        shown.set_parm(counts, usage.bound.max(1));
        shown.set_parm(counts + 1, usage.bound);
        if let Some(Target::Port(port)) = self.target
            && let Some(index) = netdev(port)
        {
            shown.set_parm(6, index);
        }
        shown.parms
    }
}

/// TCA_STATS_*: all frames, and those of the card, as an action that only the card carries out has them.
fn write_stats(to: &mut Builder, usage: &Usage) {
    let basic =
        |packets: u64, bytes: u64| [&bytes.to_ne_bytes()[..], &(packets as u32).to_ne_bytes(), &[0; 4]].concat();
    let (packets, bytes) = (usage.packets + usage.software.0, usage.bytes + usage.software.1);
    to.put(stats::BASIC, &basic(packets, bytes));
    if packets > u64::from(u32::MAX) {
        to.u64(stats::PKT64, packets);
    }
    if usage.in_hw {
        to.put(stats::BASIC_HW, &basic(usage.packets, usage.bytes));
    }
    to.put(stats::QUEUE, &[0; 20]);
}

/// What the kernel has counted for one action: frames and bytes, and how long ago the last one was, in milliseconds.
pub(crate) fn counted(action: &[u8]) -> ((u64, u64), Option<u64>) {
    let of = |nest: &[u8], kind: u16| netlink::find(nest, kind).map(|found| found.value.to_vec());
    let kept = of(action, act::STATS).unwrap_or_default();
    let basic = of(&kept, stats::BASIC).unwrap_or_default();
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    let packets = of(&kept, stats::PKT64).as_deref().and_then(number);
    let packets = packets.or_else(|| netlink::u32_at(&basic, 8).map(u64::from)).unwrap_or(0);
    let kind = netlink::find(action, act::KIND).and_then(|kind| kind.string().and_then(Kind::named));
    let times = kind.and_then(|kind| of(&of(action, act::OPTIONS)?, kind.layout().tm));
    let idle = times.and_then(|times| number(times.get(8..)?)).map(|hundredths| hundredths * 10);
    ((packets, number(&basic).unwrap_or(0)), idle)
}

/// Of `struct tc_police`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoliceParms {
    /// In ticks of the packet scheduler: how long the burst takes at the rate.
    pub burst: u32,
    /// Bytes.
    pub mtu: u32,
    /// Bytes a second.
    pub rate: u32,
    /// Bytes a second.
    pub peak_rate: u32,
}

/// `struct tc_pedit_key`, with what is said of it in TCA_PEDIT_KEY_EX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeditKey {
    /// The bits that stay.
    pub keep: [u8; 4],
    pub value: [u8; 4],
    pub offset: u32,
    /// Whether the offset depends on the frame.
    pub relative: bool,
    pub header_and_command: Option<(u16, u16)>,
}
