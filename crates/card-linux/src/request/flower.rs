//! Flow rules as filters of the kernel's classifier `flower` (`net/sched/cls_flower.c`, `net/sched/act_*.c`).
//!
//! A rule either becomes a filter that does the same with the same frames, or is refused with the key or the action that
//! the classifier does not have. The first action of each filter counts, and does nothing else.

use std::io;

use flow::{
    Action, Change, Control, Csum, Edit, EditField, Field, Header, Match, Meter, MeterId, Port, Protocol, Rate, Rule,
};
use netlink::tc::{
    RTM_DELQDISC, RTM_DELTFILTER, RTM_GETTFILTER, RTM_NEWTFILTER, TC_ACT_EXT_VAL_MASK, TC_ACT_GOTO_CHAIN, TC_ACT_PIPE,
    TC_ACT_SHOT, TC_ACT_STOLEN, TC_H_FILTER_INGRESS, TC_H_INGRESS, TC_LINKLAYER_ETHERNET, TC_RTAB_SIZE, TCA_ACT_KIND,
    TCA_ACT_MAX_PRIO, TCA_ACT_OPTIONS, TCA_CHAIN, TCA_CSUM_PARMS, TCA_EGRESS_MIRROR, TCA_EGRESS_REDIR, TCA_FLOWER_ACT,
    TCA_FLOWER_KEY_CVLAN_ETH_TYPE, TCA_FLOWER_KEY_CVLAN_ID, TCA_FLOWER_KEY_CVLAN_PRIO, TCA_FLOWER_KEY_ETH_TYPE,
    TCA_FLOWER_KEY_FLAGS, TCA_FLOWER_KEY_FLAGS_MASK, TCA_FLOWER_KEY_IP_PROTO, TCA_FLOWER_KEY_PORT_DST_MAX,
    TCA_FLOWER_KEY_PORT_DST_MIN, TCA_FLOWER_KEY_PORT_SRC_MAX, TCA_FLOWER_KEY_PORT_SRC_MIN,
    TCA_FLOWER_KEY_VLAN_ETH_TYPE, TCA_FLOWER_KEY_VLAN_ID, TCA_FLOWER_KEY_VLAN_PRIO, TCA_GACT_PARMS, TCA_KIND,
    TCA_MIRRED_PARMS, TCA_OPTIONS, TCA_PEDIT_KEY_EX, TCA_PEDIT_KEY_EX_CMD, TCA_PEDIT_KEY_EX_CMD_ADD,
    TCA_PEDIT_KEY_EX_CMD_SET, TCA_PEDIT_KEY_EX_HTYPE, TCA_PEDIT_KEYS_EX, TCA_PEDIT_PARMS_EX, TCA_POLICE_PKTBURST64,
    TCA_POLICE_PKTRATE64, TCA_POLICE_RATE, TCA_POLICE_RATE64, TCA_POLICE_RESULT, TCA_POLICE_TBF, TCA_VLAN_ACT_MODIFY,
    TCA_VLAN_ACT_POP, TCA_VLAN_ACT_PUSH, TCA_VLAN_PARMS, TCA_VLAN_PUSH_VLAN_ID, TCA_VLAN_PUSH_VLAN_PRIORITY,
    TCA_VLAN_PUSH_VLAN_PROTOCOL, TCMSG,
};
use netlink::{Builder, Flags, Message, find, u32_at};

use super::NONE;
use super::tie::tcm;
use crate::socket::{Batch, Socket};

/// The kernel's name of the classifier.
const KIND: &str = "flower";

/// The ingress qdisc's own handle.
const INGRESS_HANDLE: u32 = 0xffff_0000;

/// What the kernel's classifier does not have, and a rule needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this kernel's classifier has no {0}")]
pub(crate) struct Lacks(pub String);

fn lacks<T>(what: impl Into<String>) -> Result<T, Lacks> {
    Err(Lacks(what.into()))
}

/// Where a filter is, among those for what a netdev receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub netdev: u32,
    pub chain: u32,
    pub priority: u16,
    pub protocol: Protocol,
    pub handle: u32,
}

impl Place {
    fn header(&self, handle: u32) -> [u8; TCMSG] {
        let protocol = match self.protocol {
            Protocol::All => libc::ETH_P_ALL as u16,
            Protocol::Is(ethertype) => ethertype,
        };
        tcm(self.netdev, handle, TC_H_FILTER_INGRESS, u32::from(self.priority) << 16 | u32::from(protocol.to_be()))
    }
}

/// The highest priority that a rule may have: behind it is the filter for what no rule of a chain takes.
const LAST_PRIORITY: u16 = u16::MAX - 1;

/// Before the ties ([`super::acl::Place::Rules`]).
const ENTRY_PRIORITY: u16 = 1;

/// The chain in which the rules of a chain are. Chain 0 has the ties.
fn chain(of_rules: u32) -> Result<u32, Lacks> {
    match of_rules.checked_add(1).filter(|chain| *chain <= TC_ACT_EXT_VAL_MASK) {
        Some(chain) => Ok(chain),
        None => lacks(format!("chain {of_rules}")),
    }
}

/// Where the filter of a rule is.
///
/// # Errors
/// The classifier has no such chain or priority.
pub(crate) fn place(netdev: u32, rule: &Rule, handle: u32) -> Result<Place, Lacks> {
    let priority = u16::try_from(rule.priority).ok().filter(|priority| *priority <= LAST_PRIORITY);
    let Some(priority) = priority else { return lacks(format!("priority {}", rule.priority)) };
    Ok(Place { netdev, chain: chain(rule.chain)?, priority, protocol: rule.protocol, handle })
}

/// What a filter matches: attributes.
pub(crate) type Keys = Vec<(u16, Vec<u8>)>;

/// An action of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcAction {
    /// The kernel's name of the action; its module is `act_` and this.
    pub kind: &'static str,
    options: Vec<(u16, Vec<u8>)>,
}

/// What the actions of a rule refer to.
pub(crate) struct Around<'a> {
    /// The index of the action that counts.
    pub counter: u32,
    /// Gives an index that no action has.
    pub fresh: &'a mut dyn FnMut() -> u32,
    /// The netdev out of which frames to a port are sent, if it exists.
    pub port: &'a dyn Fn(Port) -> Option<u32>,
    /// The inner end of the representor of the port that has the rule, if it exists.
    pub representor: Option<u32>,
    /// The index of a meter's action, and the meter.
    pub meter: &'a dyn Fn(MeterId) -> Option<(u32, Meter)>,
}

/// How a field is an attribute: the key, and its mask; 0 if the kernel has none.
fn attribute_of(field: Field, matches: &Match) -> Option<(u16, u16)> {
    use Field as F;
    let protocol = matches.exact(F::IpProto);
    let is_v6 = matches.exact(F::EthType) == Some(libc::ETH_P_IPV6 as u32);
    let by_protocol = |tcp, udp, sctp| match protocol.map(|protocol| protocol as i32) {
        Some(libc::IPPROTO_TCP) => Some(tcp),
        Some(libc::IPPROTO_UDP) => Some(udp),
        Some(libc::IPPROTO_SCTP) => Some(sctp),
        _ => None,
    };
    Some(match field {
        F::EthDst => (4, 5),
        F::EthSrc => (6, 7),
        F::IpProto => (TCA_FLOWER_KEY_IP_PROTO, 0),
        F::Ip4Src => (10, 11),
        F::Ip4Dst => (12, 13),
        F::Ip6Src => (14, 15),
        F::Ip6Dst => (16, 17),
        F::SrcPort => by_protocol((18, 35), (20, 37), (41, 39))?,
        F::DstPort => by_protocol((19, 36), (21, 38), (42, 40))?,
        F::IcmpCode if is_v6 => (53, 54),
        F::IcmpCode => (49, 50),
        F::IcmpType if is_v6 => (55, 56),
        F::IcmpType => (51, 52),
        F::ArpSip => (57, 58),
        F::ArpTip => (59, 60),
        F::ArpOp => (61, 62),
        F::ArpSha => (63, 64),
        F::ArpTha => (65, 66),
        F::TcpFlags => (71, 72),
        F::IpTos => (73, 74),
        F::IpTtl => (75, 76),
        _ => return None,
    })
}

/// What the filter of a rule matches.
///
/// # Errors
/// The classifier does not have one of the keys.
pub(crate) fn keys(rule: &Rule) -> Result<Keys, Lacks> {
    use Field as F;
    let matches = &rule.matches;
    let (value, mask) = (matches.value(), matches.mask());
    let mut keys = ethertypes(matches)?;
    // A number all of whose bits count, as the kernel has no mask for it.
    let whole = |field: F, bits: u32| match mask.number(field) & bits == bits {
        true => Ok(value.number(field) & bits),
        false => lacks(format!("{} with a mask", field.word())),
    };
    for field in mask.fields() {
        match field {
            // It is the port that has the rule.
            F::InPort => {}
            // An address says it.
            F::AddrType if matches.exact(field) == Some(4) && (mask.has(F::Ip4Src) || mask.has(F::Ip4Dst)) => {}
            F::AddrType if matches.exact(field) == Some(6) && (mask.has(F::Ip6Src) || mask.has(F::Ip6Dst)) => {}
            F::EthType | F::VlanTpid | F::VlanEthType | F::CvlanTpid | F::CvlanEthType => {}
            F::VlanId => keys.push((TCA_FLOWER_KEY_VLAN_ID, (whole(field, 0xfff)? as u16).to_ne_bytes().to_vec())),
            F::VlanPrio => keys.push((TCA_FLOWER_KEY_VLAN_PRIO, vec![whole(field, 7)? as u8])),
            F::CvlanId => keys.push((TCA_FLOWER_KEY_CVLAN_ID, (whole(field, 0xfff)? as u16).to_ne_bytes().to_vec())),
            F::CvlanPrio => keys.push((TCA_FLOWER_KEY_CVLAN_PRIO, vec![whole(field, 7)? as u8])),
            F::IpFlags => {
                keys.push((TCA_FLOWER_KEY_FLAGS, value.number(field).to_be_bytes().to_vec()));
                keys.push((TCA_FLOWER_KEY_FLAGS_MASK, mask.number(field).to_be_bytes().to_vec()));
            }
            _ => {
                let Some((key, of_mask)) = attribute_of(field, matches) else { return lacks(field.word()) };
                if of_mask == 0 {
                    whole(field, 0xff)?;
                }
                keys.push((key, value.get(field).to_vec()));
                if of_mask != 0 {
                    keys.push((of_mask, mask.get(field).to_vec()));
                }
            }
        }
    }
    let sides = [
        (&matches.src_ports, F::SrcPort, TCA_FLOWER_KEY_PORT_SRC_MIN, TCA_FLOWER_KEY_PORT_SRC_MAX),
        (&matches.dst_ports, F::DstPort, TCA_FLOWER_KEY_PORT_DST_MIN, TCA_FLOWER_KEY_PORT_DST_MAX),
    ];
    for (range, field, min, max) in sides {
        let Some(range) = range else { continue };
        if range.start() == range.end() {
            return lacks(format!("range of one {}", field.word()));
        }
        keys.push((min, range.start().to_be_bytes().to_vec()));
        keys.push((max, range.end().to_be_bytes().to_vec()));
    }
    Ok(keys)
}

/// The EtherTypes of a match as the kernel takes them: from the outside, the type of each tag and then what follows it
/// (`fl_set_key`). What is said of the type behind one tag is compared with the type behind all: the kernel has no other.
fn ethertypes(matches: &Match) -> Result<Keys, Lacks> {
    use Field as F;
    let exact = |field: F| match (matches.mask().has(field), matches.exact(field)) {
        (true, None) => lacks(format!("{} with a mask", field.word())),
        (_, value) => Ok(value.map(|value| value as u16)),
    };
    let same = |field: F, one: Option<u16>, other: Option<u16>| match (one, other) {
        (Some(one), Some(other)) if one != other => lacks(format!("{} of another value", field.word())),
        (one, other) => Ok(one.or(other)),
    };
    // The kernel takes the type of a tag for a tag, and nothing else for one.
    let of_tag = |field: F, is_tag: bool| match exact(field)? {
        Some(value) if matches!(value, 0x8100 | 0x88a8) != is_tag => lacks(format!("{} {value:#06x}", field.word())),
        value => Ok(value),
    };
    let innermost = of_tag(F::EthType, false)?;
    let types = match (of_tag(F::VlanTpid, true)?, of_tag(F::CvlanTpid, true)?) {
        (None, _) => [innermost, None, None],
        (Some(outer), None) => [Some(outer), same(F::VlanEthType, of_tag(F::VlanEthType, false)?, innermost)?, None],
        (Some(outer), Some(inner)) => [
            Some(outer),
            same(F::VlanEthType, exact(F::VlanEthType)?, Some(inner))?,
            same(F::CvlanEthType, of_tag(F::CvlanEthType, false)?, innermost)?,
        ],
    };
    let kinds = [TCA_FLOWER_KEY_ETH_TYPE, TCA_FLOWER_KEY_VLAN_ETH_TYPE, TCA_FLOWER_KEY_CVLAN_ETH_TYPE];
    let known = kinds.into_iter().zip(types).filter_map(|(kind, value)| Some((kind, value?.to_be_bytes().to_vec())));
    Ok(known.collect())
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// `tc_gen`: index, capab, action, refcnt, bindcnt.
fn gen_of(index: u32, verdict: u32) -> [u32; 5] {
    [index, 0, verdict, 0, 0]
}

/// An action that does nothing but to say what is next.
fn verdict(index: u32, verdict: u32) -> TcAction {
    TcAction { kind: "gact", options: vec![(TCA_GACT_PARMS, numbers(&gen_of(index, verdict)))] }
}

/// An action that sends frames, or copies of them, out of a netdev.
fn send(mirrors: bool, netdev: u32) -> TcAction {
    let (verdict, mode) = if mirrors { (TC_ACT_PIPE, TCA_EGRESS_MIRROR) } else { (TC_ACT_STOLEN, TCA_EGRESS_REDIR) };
    let parms = [&gen_of(0, verdict)[..], &[mode, netdev]].concat();
    TcAction { kind: "mirred", options: vec![(TCA_MIRRED_PARMS, numbers(&parms))] }
}

fn vlan(mode: u32, tag: &[(u16, Vec<u8>)]) -> TcAction {
    let parms = numbers(&[&gen_of(0, TC_ACT_PIPE)[..], &[mode]].concat());
    TcAction { kind: "vlan", options: [&[(TCA_VLAN_PARMS, parms)], tag].concat() }
}

fn tag(tpid: u16, id: u16, priority: Option<u8>) -> Vec<(u16, Vec<u8>)> {
    let mut tag = vec![
        (TCA_VLAN_PUSH_VLAN_ID, id.to_ne_bytes().to_vec()),
        (TCA_VLAN_PUSH_VLAN_PROTOCOL, tpid.to_be_bytes().to_vec()),
    ];
    tag.extend(priority.map(|priority| (TCA_VLAN_PUSH_VLAN_PRIORITY, vec![priority])));
    tag
}

fn csum(which: Csum) -> TcAction {
    let parms = [&gen_of(0, TC_ACT_PIPE)[..], &[which.0]].concat();
    TcAction { kind: "csum", options: vec![(TCA_CSUM_PARMS, numbers(&parms))] }
}

/// The checksums that cover a field.
fn covering(field: EditField) -> Csum {
    let transport = Csum::TCP.and(Csum::UDP);
    match field.place().0 {
        Header::Eth => Csum(0),
        Header::Ip4 if matches!(field, EditField::Ip4Src | EditField::Ip4Dst) => Csum::IP4_HEADER.and(transport),
        Header::Ip4 => Csum::IP4_HEADER,
        Header::Ip6 if matches!(field, EditField::Ip6Src | EditField::Ip6Dst) => transport.and(Csum::ICMP),
        Header::Ip6 => Csum(0),
        Header::Tcp => Csum::TCP,
        Header::Udp => Csum::UDP,
    }
}

/// One key of `pedit`: `struct tc_pedit_key`, the header and the command.
struct PeditKey {
    keep: [u8; 4],
    value: [u8; 4],
    offset: u32,
    header: u16,
    command: u16,
}

/// The keys that change a field: one for each word of four bytes of its header in which it is.
fn pedit_keys(edit: &Edit, keys: &mut Vec<PeditKey>) -> Result<(), Lacks> {
    let (header, start, size) = edit.field.place();
    // TCA_PEDIT_KEY_EX_HDR_TYPE_*
    let header = match header {
        Header::Eth => 1,
        Header::Ip4 => 2,
        Header::Ip6 => 3,
        Header::Tcp => 4,
        Header::Udp => 5,
    };
    let (value, mask, command) = match &edit.change {
        Change::Set { value, mask } => (value.clone(), mask.clone(), TCA_PEDIT_KEY_EX_CMD_SET),
        // The kernel adds to words in the order of the machine's bytes.
        Change::Add(number) if size == 1 => (vec![*number as u8], vec![0xff], TCA_PEDIT_KEY_EX_CMD_ADD),
        Change::Add(_) => return lacks(format!("pedit add for {:?}, which has {size} bytes", edit.field)),
    };
    for word in start / 4..(start + size).div_ceil(4) {
        let mut key = PeditKey { keep: [0xff; 4], value: [0; 4], offset: 4 * word as u32, header, command };
        for at in start.max(4 * word)..(start + size).min(4 * word + 4) {
            let mask = mask[at - start];
            key.keep[at % 4] = !mask;
            key.value[at % 4] = value[at - start] & mask;
        }
        if key.keep != [0xff; 4] {
            keys.push(key);
        }
    }
    Ok(())
}

fn pedit(keys: &[PeditKey]) -> TcAction {
    let mut parms = numbers(&gen_of(0, TC_ACT_PIPE));
    // nkeys, flags
    parms.extend([keys.len() as u8, 0, 0, 0]);
    for key in keys {
        // mask, val, off, at, offmask, shift
        parms.extend([key.keep, key.value, key.offset.to_ne_bytes()].as_flattened());
        parms.extend([0; 12]);
    }
    let extended = netlink::row(|to| {
        for key in keys {
            to.nest_noflag(TCA_PEDIT_KEY_EX, |to| {
                to.u16(TCA_PEDIT_KEY_EX_HTYPE, key.header).u16(TCA_PEDIT_KEY_EX_CMD, key.command);
            });
        }
    });
    // A rule has at most so many edits that both fit: without the second the kernel refuses the first.
    let extended = extended.map(|extended| (TCA_PEDIT_KEYS_EX, extended));
    TcAction { kind: "pedit", options: std::iter::once((TCA_PEDIT_PARMS_EX, parms)).chain(extended).collect() }
}

/// Bytes of an Ethernet header, which the kernel does not count in what a netdev receives.
const ETHERNET: u16 = 14;

/// Nanoseconds in a tick of the packet scheduler (PSCHED_SHIFT).
const TICK_NS: u128 = 64;

fn police(index: u32, meter: Meter, conform: u32, exceed: u32) -> TcAction {
    // How long the burst takes at the rate.
    let ticks = |rate: u64| u128::from(meter.burst) * 1_000_000_000 / u128::from(rate.max(1)) / TICK_NS;
    let spec = |rate: u32| {
        // cell_log, linklayer, overhead, cell_align, mpu, rate. Only the rate and the overhead count, but the kernel looks at
        // all.
        let mut spec = vec![if rate == 0 { 0 } else { 8 }, TC_LINKLAYER_ETHERNET];
        spec.extend(ETHERNET.to_ne_bytes());
        spec.extend([0; 4]);
        spec.extend(rate.to_ne_bytes());
        spec
    };
    let parms = |burst: u32, mtu: u32, rate: u32| {
        let mut parms = numbers(&[index, exceed, 0, burst, mtu]);
        parms.extend(spec(rate));
        // peakrate, refcnt, bindcnt, capab
        parms.extend([0; 24]);
        parms
    };
    let mut options = match meter.rate {
        Rate::Bytes(rate) => {
            let burst = u32::try_from(ticks(rate)).unwrap_or(u32::MAX);
            let short = u32::try_from(rate).unwrap_or(u32::MAX);
            let mut options =
                vec![(TCA_POLICE_TBF, parms(burst, u32::MAX, short)), (TCA_POLICE_RATE, vec![0; TC_RTAB_SIZE])];
            if u64::from(short) != rate {
                options.push((TCA_POLICE_RATE64, rate.to_ne_bytes().to_vec()));
            }
            options
        }
        Rate::Packets(rate) => {
            let burst = u64::try_from(ticks(rate)).unwrap_or(u64::MAX);
            vec![
                (TCA_POLICE_TBF, parms(0, u32::MAX, 0)),
                (TCA_POLICE_PKTRATE64, rate.to_ne_bytes().to_vec()),
                (TCA_POLICE_PKTBURST64, burst.to_ne_bytes().to_vec()),
            ]
        }
        Rate::Mtu(mtu) => vec![(TCA_POLICE_TBF, parms(0, mtu, 0))],
    };
    options.push((TCA_POLICE_RESULT, conform.to_ne_bytes().to_vec()));
    TcAction { kind: "police", options }
}

/// What follows from a measurement.
fn outcome(control: Control) -> Result<u32, Lacks> {
    match control {
        Control::Pipe => Ok(TC_ACT_PIPE),
        Control::Drop => Ok(TC_ACT_SHOT),
        Control::Jump(_) => lacks("police with a jump"),
    }
}

/// The actions of the filter of a rule.
///
/// # Errors
/// The kernel has no action that does the same.
pub(crate) fn actions(rule: &Rule, around: &mut Around<'_>) -> Result<Vec<TcAction>, Lacks> {
    if edits_behind_two_tags(rule) {
        return lacks("pedit behind two VLAN tags");
    }
    let mut actions = vec![verdict(around.counter, TC_ACT_PIPE)];
    let mut rest = &rule.actions[..];
    while let [action, behind @ ..] = rest {
        rest = behind;
        let is_last = behind.is_empty();
        let own = match action {
            Action::Drop => Some(verdict((around.fresh)(), TC_ACT_SHOT)),
            Action::Trap => Some(send_or_drop(around.representor, around)),
            Action::Redirect(port) => Some(send_or_drop((around.port)(*port), around)),
            // Nothing is left of the frame after the last action.
            Action::Mirror(port) if is_last => Some(send_or_drop((around.port)(*port), around)),
            Action::Mirror(port) => (around.port)(*port).map(|netdev| send(true, netdev)),
            // What no rule of that chain takes has to reach the representor as it came.
            Action::Goto(_) if rule.actions.len() > 1 => return lacks("goto chain behind another action"),
            Action::Goto(to) => Some(verdict((around.fresh)(), TC_ACT_GOTO_CHAIN | chain(*to)?)),
            Action::VlanPush(new) => Some(vlan(TCA_VLAN_ACT_PUSH, &tag(new.tpid, new.id, Some(new.priority)))),
            Action::VlanPop => Some(vlan(TCA_VLAN_ACT_POP, &[])),
            Action::VlanModify { tpid, id, priority } => Some(vlan(TCA_VLAN_ACT_MODIFY, &tag(*tpid, *id, *priority))),
            Action::Edit(edit) => {
                rest = edits(edit, rest, &mut actions)?;
                None
            }
            Action::Csum(which) => Some(csum(*which)),
            Action::Police(own) => {
                let (conform, exceed) = (outcome(own.conform)?, outcome(own.exceed)?);
                let Some((index, meter)) = (around.meter)(own.meter) else {
                    return lacks(format!("meter {}", own.meter.0));
                };
                Some(police(index, meter, conform, exceed))
            }
            Action::DecTtl => return lacks("dec_ttl"),
            Action::TunnelSet(_) => return lacks("tunnel_key set"),
            Action::TunnelUnset => return lacks("tunnel_key unset"),
            Action::Ct(_) => return lacks("ct"),
            Action::CtClear => return lacks("ct clear"),
            Action::Sample(_) => return lacks("sample"),
        };
        actions.extend(own);
    }
    if !rule.actions.last().is_some_and(|last| last.ends_rule() || matches!(last, Action::Mirror(_))) {
        actions.push(verdict((around.fresh)(), TC_ACT_STOLEN));
    }
    match actions.len() {
        ..=TCA_ACT_MAX_PRIO => Ok(actions),
        many => lacks(format!("room for {many} actions; a filter has at most {TCA_ACT_MAX_PRIO}")),
    }
}

/// Sends frames out of a netdev; drops them if there is none.
fn send_or_drop(netdev: Option<u32>, around: &mut Around<'_>) -> TcAction {
    match netdev {
        Some(netdev) => send(false, netdev),
        None => verdict((around.fresh)(), TC_ACT_SHOT),
    }
}

/// Whether a rule changes headers of IP, TCP or UDP while the frame has two tags, as far as is known. There the kernel takes
/// the inner tag for the header of IP.
fn edits_behind_two_tags(rule: &Rule) -> bool {
    let mask = rule.matches.mask();
    let mut tags: i32 = [Field::VlanTpid, Field::CvlanTpid].map(|field| i32::from(mask.has(field))).iter().sum();
    rule.actions.iter().any(|action| {
        match action {
            Action::VlanPush(_) => tags += 1,
            Action::VlanPop => tags = (tags - 1).max(0),
            Action::Edit(edit) => return tags > 1 && edit.field.place().0 != Header::Eth,
            _ => {}
        }
        false
    })
}

/// Appends one action for all edits in a row, and one for the checksums that cover what they change. Returns the actions
/// behind them.
fn edits<'a>(first: &Edit, mut rest: &'a [Action], actions: &mut Vec<TcAction>) -> Result<&'a [Action], Lacks> {
    let (mut keys, mut sums) = (Vec::new(), covering(first.field));
    pedit_keys(first, &mut keys)?;
    loop {
        match rest {
            [Action::Edit(edit), behind @ ..] => {
                pedit_keys(edit, &mut keys)?;
                (sums, rest) = (sums.and(covering(edit.field)), behind);
            }
            [Action::Csum(which), behind @ ..] => (sums, rest) = (sums.and(*which), behind),
            _ => break,
        }
    }
    if !keys.is_empty() {
        actions.push(pedit(&keys));
    }
    if sums != Csum(0) {
        actions.push(csum(sums));
    }
    Ok(rest)
}

/// Makes a filter, or puts it in the place of the one that is there.
pub(crate) fn put(batch: &mut Batch, place: &Place, keys: &Keys, actions: &[TcAction]) {
    batch.push(RTM_NEWTFILTER, Flags::CREATE | Flags::REPLACE, |to| write(to, place, keys, actions));
}

fn write(to: &mut Builder, place: &Place, keys: &Keys, actions: &[TcAction]) {
    to.raw(&place.header(place.handle)).text(TCA_KIND, KIND).u32(TCA_CHAIN, place.chain);
    to.nest_noflag(TCA_OPTIONS, |to| {
        for (key, value) in keys {
            to.put(*key, value);
        }
        to.nest_noflag(TCA_FLOWER_ACT, |to| {
            for (number, action) in (1..).zip(actions) {
                to.nest_noflag(number, |to| {
                    to.text(TCA_ACT_KIND, action.kind).nest_noflag(TCA_ACT_OPTIONS, |to| {
                        for (kind, value) in &action.options {
                            to.put(*kind, value);
                        }
                    });
                });
            }
        });
    });
}

/// Removes a filter.
pub(crate) fn remove(batch: &mut Batch, place: &Place) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&place.header(place.handle)).text(TCA_KIND, KIND).u32(TCA_CHAIN, place.chain);
    });
}

/// Removes all filters of a chain for what a netdev receives. `chain`: the kernel's number.
pub(crate) fn flush(batch: &mut Batch, netdev: u32, chain: u32) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&tcm(netdev, 0, TC_H_FILTER_INGRESS, 0)).u32(TCA_CHAIN, chain);
    });
}

/// Removes all rules of a chain, and what is behind them.
pub(crate) fn flush_rules(batch: &mut Batch, netdev: u32, of_rules: u32) {
    // One that does not exist has no rules.
    chain(of_rules).into_iter().for_each(|chain| flush(batch, netdev, chain));
}

fn entry(netdev: u32) -> Place {
    Place { netdev, chain: 0, priority: ENTRY_PRIORITY, protocol: Protocol::All, handle: 1 }
}

/// Has the rules of a netdev asked before its tie. `index`: that of the action.
pub(crate) fn open(batch: &mut Batch, netdev: u32, index: u32) {
    put(batch, &entry(netdev), &Vec::new(), &[verdict(index, TC_ACT_GOTO_CHAIN | 1)]);
}

/// Has the tie alone decide.
pub(crate) fn close(batch: &mut Batch, netdev: u32) {
    // All of the priority.
    let entry = entry(netdev);
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&entry.header(0)).text(TCA_KIND, KIND);
    });
}

/// Where the last filter of a chain of rules is, if the kernel has such a chain.
pub(crate) fn floor(netdev: u32, of_rules: u32) -> Option<Place> {
    let chain = chain(of_rules).ok()?;
    Some(Place { netdev, chain, priority: LAST_PRIORITY + 1, protocol: Protocol::All, handle: 1 })
}

/// Sends what no rule of a chain takes to the representor, as the tie does: the kernel does not come back from a chain. If
/// the representor does not exist, it is dropped, by an action of this index.
pub(crate) fn put_floor(batch: &mut Batch, floor: &Place, representor: Option<u32>, index: u32) {
    let action = representor.map_or_else(|| verdict(index, TC_ACT_SHOT), |inner| send(false, inner));
    put(batch, floor, &Vec::new(), &[action]);
}

/// Removes the ingress qdisc of a netdev, with all filters.
pub(crate) fn remove_ingress(batch: &mut Batch, netdev: u32) {
    batch.push(RTM_DELQDISC, NONE, |to| {
        to.raw(&tcm(netdev, INGRESS_HANDLE, TC_H_INGRESS, 0));
    });
}

/// Where a filter is, as the kernel says it: its netdev, chain, priority and protocol, and handle.
pub(crate) type At = (u32, u32, u32, u32);

impl Place {
    /// The place as the kernel says it.
    pub(crate) fn at(&self) -> At {
        let header = self.header(self.handle);
        (self.netdev, self.chain, u32_at(&header, 16).unwrap_or(0), self.handle)
    }
}

/// Removes a filter that was found.
pub(crate) fn remove_at(batch: &mut Batch, (netdev, chain, info, handle): At) {
    batch.push(RTM_DELTFILTER, NONE, |to| {
        to.raw(&tcm(netdev, handle, TC_H_FILTER_INGRESS, info)).text(TCA_KIND, KIND).u32(TCA_CHAIN, chain);
    });
}

/// The filters for what a netdev receives, in other chains than the first, each with the index of the action that counts.
///
/// # Errors
/// The kernel cannot be queried.
pub(crate) fn filters(socket: &mut Socket, netdev: u32) -> io::Result<Vec<(At, Option<u32>)>> {
    let body = |to: &mut Builder| {
        to.raw(&tcm(netdev, 0, TC_H_FILTER_INGRESS, 0));
    };
    let read = |message: &Message<'_>| {
        let at = |n| u32_at(message.payload(), n);
        let attributes = message.after(TCMSG)?;
        let chain = find(attributes, TCA_CHAIN)?.u32()?;
        let is_ours = find(attributes, TCA_KIND)?.string() == Some(KIND) && chain != 0;
        // Without a handle it is the priority.
        let handle = at(8).filter(|handle| is_ours && *handle != 0)?;
        let counter = find(attributes, TCA_OPTIONS).and_then(|options| {
            let first = find(find(options.value, TCA_FLOWER_ACT)?.value, 1)?.value;
            let is_gact = find(first, TCA_ACT_KIND)?.string() == Some("gact");
            let parms = find(find(first, TCA_ACT_OPTIONS)?.value, TCA_GACT_PARMS).filter(|_| is_gact)?;
            u32_at(parms.value, 0)
        });
        Some(((at(4)?, chain, at(16)?, handle), counter))
    };
    socket.dump(RTM_GETTFILTER, body, read)
}

/// One action of each kind that filters of rules have, to find out whether the kernel has it.
pub(crate) fn samples() -> Vec<TcAction> {
    let edit = Edit { field: EditField::Ip4Ttl, change: Change::Set { value: vec![64], mask: vec![0xff] } };
    let mut keys = Vec::new();
    let edited = pedit_keys(&edit, &mut keys).map(|()| pedit(&keys));
    let meter = Meter { rate: Rate::Mtu(1_500), burst: 0 };
    [
        verdict(0, TC_ACT_PIPE),
        vlan(TCA_VLAN_ACT_POP, &[]),
        csum(Csum::IP4_HEADER),
        police(0, meter, TC_ACT_PIPE, TC_ACT_SHOT),
    ]
    .into_iter()
    .chain(edited)
    .collect()
}

#[cfg(test)]
mod tests;
