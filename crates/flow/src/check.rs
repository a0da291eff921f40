//! Whether the card can carry out a rule.
//!
//! What makes no sense is refused always, and what mlx5 refuses is refused by a card that is to behave like it
//! ([`Capabilities::like_mlx5`]). Where mlx5 has words for it (`drivers/net/ethernet/mellanox/mlx5/core/en_tc.c`,
//! `en/tc/act/*.c`, `en/tc_ct.c`), the error's text is these.

use thiserror::Error;

use crate::action::{Action, Change, Control, Csum, Edit, EditField, Header};
use crate::key::Field;
use crate::meter::MeterId;
use crate::parse::{ethertype, is_vlan, protocol};
use crate::rule::{Block, Port, Protocol, Rule, RuleId};
use crate::table::{PortKind, Tables};
use crate::tunnel::{Encap, TunnelKind};

/// What a card can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capabilities {
    /// The highest chain.
    pub max_chain: u32,
    /// The highest priority.
    pub max_priority: u32,
    /// Whether a rule may go on in its own chain or in a lower one.
    pub backward_goto: bool,
    /// How many rules there are room for.
    pub max_rules: usize,
    /// How many masks a priority may have.
    pub max_masks: usize,
    /// How many meters there are room for.
    pub max_meters: usize,
    /// To how many ports a rule may send (MLX5_MAX_FLOW_FWD_VPORTS).
    pub max_outputs: usize,
    /// Whether everything is refused that mlx5 refuses, though it could be done here.
    pub like_mlx5: bool,
}

impl Default for Capabilities {
    fn default() -> Capabilities {
        Capabilities::connectx()
    }
}

impl Capabilities {
    /// A ConnectX whose firmware has `ignore_flow_level` (`mlx5_chains_get_chain_range` in `lib/fs_chains.c`).
    ///
    /// The numbers of rules, masks and meters are this card's own: mlx5 has no such limits but memory.
    pub const fn connectx() -> Capabilities {
        Capabilities {
            max_chain: u32::MAX - 1,
            max_priority: u32::MAX,
            backward_goto: true,
            max_rules: 1 << 20,
            max_masks: 1 << 12,
            max_meters: 1 << 16,
            max_outputs: 32,
            like_mlx5: true,
        }
    }

    /// A ConnectX whose firmware does not have it: FDB_TC_MAX_CHAIN and FDB_TC_MAX_PRIO.
    pub const fn connectx_with_flow_levels() -> Capabilities {
        Capabilities { max_chain: 3, max_priority: 16, backward_goto: false, ..Capabilities::connectx() }
    }

    /// Everything that can be done here.
    pub const fn everything() -> Capabilities {
        Capabilities { like_mlx5: false, ..Capabilities::connectx() }
    }
}

/// Why a rule or a meter is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum RuleError {
    /// The value or the mask of a field has another length than the field.
    #[error("the value of {} has a wrong length", .0.word())]
    ValueSize(Field),
    /// Addresses of IPv4 and IPv6 at once.
    #[error("addresses of both versions of IP are asked for")]
    TwoFamilies,
    /// A field that only some frames have, without a match on what says so.
    #[error("a match on {} needs a match on {needs}", .field.word())]
    Needs {
        /// The field.
        field: Field,
        /// What is missing.
        needs: &'static str,
    },
    /// A field on which mlx5 cannot match.
    #[error("Unsupported key")]
    UnsupportedKey(Field),
    /// Whether a fragment is the first one.
    #[error("Match on frag first/later is not supported")]
    FirstFragment,
    /// Ports of another protocol than TCP and UDP.
    #[error("Only UDP and TCP transports are supported for L4 matching")]
    UnsupportedTransport,
    /// A range of ports that is empty.
    #[error("the range of ports is empty")]
    EmptyRange,
    /// A match on another port than the one the rule is on.
    #[error("Can't match on the ingress filter port")]
    OtherInPort,
    /// A match on a connection's state that makes no sense, or that mlx5 does not have.
    #[error("{0}")]
    CtState(&'static str),
    /// A match on a tunnel, or forgetting one, where no tunnel ends.
    #[error("only a rule of a tunnel device can match on a tunnel or unset it")]
    NoTunnelHere,
    /// A match on a UDP tunnel without its port.
    #[error("UDP tunnel decap filter must include enc_dst_port condition")]
    NoTunnelPort,
    /// A priority that is 0 or too high.
    #[error("Requested priority is out of supported range")]
    PriorityOutOfRange,
    /// A chain that is too high.
    #[error("Requested chain is out of supported range")]
    ChainOutOfRange,
    /// The priority has rules of another protocol (`tcf_chain_tp_find` in `net/sched/cls_api.c`).
    #[error("Filter with specified priority/protocol not found")]
    ProtocolOfPriority(Protocol),
    /// A rule with the same priority and match.
    #[error("the match is that of {0}")]
    Exists(RuleId),
    /// No room for another rule.
    #[error("too many rules")]
    TooManyRules,
    /// No room for another mask in the priority.
    #[error("too many different masks in one priority")]
    TooManyMasks,
    /// No room for another meter.
    #[error("too many meters")]
    TooManyMeters,
    /// A meter that would let nothing through.
    #[error("a meter needs a rate and a burst")]
    MeterWithoutRate,
    /// There is no such port.
    #[error("there is no {0}")]
    UnknownPort(Port),
    /// There is no such meter.
    #[error("there is no meter {}", .0.0)]
    UnknownMeter(MeterId),
    /// No action says what becomes of the frame.
    #[error("Rule must have at least one forward/drop action")]
    NoFate,
    /// An action that is never done.
    #[error("action {0} is never done")]
    Unreachable(usize),
    /// A jump to no later action.
    #[error("action {0} jumps to no later action")]
    BadJump(usize),
    /// `trap` among others.
    #[error("action trap is supported as a sole action only")]
    TrapWithOthers,
    /// A frame that is changed only to be dropped.
    #[error("Drop with modify header action is not supported")]
    DropWithRewrite,
    /// A rule that sends and drops.
    #[error("Rule cannot support forward+drop action")]
    DropWithOutput,
    /// The same port twice.
    #[error("can't duplicate output to same device")]
    DuplicateOutput(Port),
    /// Too many ports.
    #[error("can't support more output ports, can't offload forwarding")]
    TooManyOutputs,
    /// Back to the vport from which the frame came.
    #[error("can't forward from a VF to itself")]
    OutputToItself,
    /// From one uplink to another.
    #[error("devices are not the same uplink, can't offload forwarding")]
    UplinkToUplink,
    /// A chain to go on in that is too high.
    #[error("Requested destination chain is out of supported range")]
    GotoOutOfRange,
    /// Going on in the same chain or in a lower one.
    #[error("Goto lower numbered chain isn't supported")]
    GotoBackwards,
    /// Leaving a tunnel before going on.
    #[error("Decap with goto isn't supported")]
    DecapWithGoto,
    /// A VLAN tag that cannot be.
    #[error("a VLAN is 0 to 4095, a priority 0 to 7, a tag's protocol 802.1Q or 802.1ad")]
    BadVlan,
    /// More than two tags pushed or popped.
    #[error("Total vlans used is greater than supported")]
    TooManyVlans,
    /// A change of a tag that the frame need not have.
    #[error("VLAN rewrite action must have VLAN protocol match")]
    VlanModifyWithoutMatch,
    /// A change of a tag's priority.
    #[error("Changing VLAN prio is not supported")]
    VlanPriority,
    /// A value of another length than the field, or an addition to a long field.
    #[error("the value for the field {0:?} has a wrong length")]
    EditSize(EditField),
    /// A change of a header that the frame need not have.
    #[error("a rewrite of {0:?} needs a match on its protocol")]
    EditWithoutMatch(EditField),
    /// Bits of a field that are not side by side.
    #[error("rewrite of few sub-fields isn't supported")]
    EditMask(EditField),
    /// The same field twice.
    #[error("curr_pmask and new mask same. Acting twice on same location")]
    EditTwice(EditField),
    /// A change of IP for a protocol that is not known.
    #[error("can't offload re-write of non TCP/UDP")]
    EditOfOtherProtocol,
    /// Checksums without a change of a header.
    #[error("TC csum action is only offloaded with pedit")]
    CsumWithoutEdit,
    /// Checksums that cannot be computed.
    #[error("can't offload TC csum action for some header/s")]
    UnsupportedCsum,
    /// A tunnel's header that cannot be written.
    #[error("{0}")]
    BadTunnel(&'static str),
    /// A tunnel that no output uses.
    #[error("a tunnel is set, and nothing is sent into it")]
    TunnelWithoutOutput,
    /// More than one `ct`.
    #[error("Multiple CT actions are not supported")]
    MultipleCt,
    /// An empty range, or one of both versions of IP.
    #[error("the range of addresses or ports is empty")]
    BadNatRange,
    /// `sample` behind `ct`.
    #[error("Sample action with connection tracking is not supported")]
    SampleWithCt,
    /// A sampling of one frame of none.
    #[error("a rate of samples is at least 1")]
    SampleRate,
}

type Checked = Result<(), RuleError>;

fn refuse_if(wrong: bool, error: RuleError) -> Checked {
    if wrong { Err(error) } else { Ok(()) }
}

/// Whether the card that has `tables` can carry out the rule.
pub(crate) fn rule(rule: &Rule, tables: &Tables) -> Checked {
    place(rule, tables)?;
    matches(rule, tables)?;
    control_flow(rule)?;
    for action in &rule.actions {
        one_action(action, rule, tables)?;
    }
    outputs(rule, tables)?;
    tunnels(rule)?;
    if tables.capabilities().like_mlx5 {
        unsupported_match(rule)?;
        unsupported_actions(rule)?;
    }
    Ok(())
}

fn place(rule: &Rule, tables: &Tables) -> Checked {
    let capabilities = tables.capabilities();
    refuse_if(rule.chain > capabilities.max_chain, RuleError::ChainOutOfRange)?;
    let priorities = 1..=capabilities.max_priority;
    refuse_if(!priorities.contains(&rule.priority), RuleError::PriorityOutOfRange)?;
    match rule.block {
        Block::Port(port) if tables.port(port).is_none() => Err(RuleError::UnknownPort(port)),
        _ => Ok(()),
    }
}

/// Which protocol a match has pinned down.
struct Pinned {
    ethertype: Option<u32>,
    ip_protocol: Option<u32>,
}

impl Pinned {
    fn of(rule: &Rule) -> Pinned {
        Pinned { ethertype: rule.matches.exact(Field::EthType), ip_protocol: rule.matches.exact(Field::IpProto) }
    }

    fn is_ethertype(&self, wanted: &[u16]) -> bool {
        self.ethertype.is_some_and(|own| wanted.iter().any(|wanted| u32::from(*wanted) == own))
    }

    fn is_protocol(&self, wanted: &[u8]) -> bool {
        self.ip_protocol.is_some_and(|own| wanted.iter().any(|wanted| u32::from(*wanted) == own))
    }

    fn is_tagged(rule: &Rule, field: Field) -> bool {
        rule.matches.exact(field).is_some_and(|tpid| is_vlan(tpid as u16))
    }
}

/// The matches on which other matches depend, as in `fl_set_key` of `net/sched/cls_flower.c`.
fn matches(rule: &Rule, tables: &Tables) -> Checked {
    let matches = &rule.matches;
    if let Some(field) = matches.wrong_size() {
        return Err(RuleError::ValueSize(field));
    }
    refuse_if(matches.has_two_families(), RuleError::TwoFamilies)?;
    let mut ranges = [&matches.src_ports, &matches.dst_ports].into_iter().flatten();
    refuse_if(ranges.any(|range| range.is_empty()), RuleError::EmptyRange)?;
    for field in matches.mask().fields() {
        needed_by(rule, field)?;
    }
    if matches.src_ports.is_some() || matches.dst_ports.is_some() {
        needed_by(rule, Field::SrcPort)?;
    }
    in_port(rule, tables)?;
    ct_state(rule)
}

fn needed_by(rule: &Rule, field: Field) -> Checked {
    use Field as F;
    let pinned = Pinned::of(rule);
    let needs = |needs| Err(RuleError::Needs { field, needs });
    let ip = [ethertype::IPV4, ethertype::IPV6];
    let transports = [protocol::TCP, protocol::UDP, protocol::SCTP];
    match field {
        F::VlanId | F::VlanPrio | F::VlanEthType if !Pinned::is_tagged(rule, F::VlanTpid) => needs("vlan_tpid"),
        F::CvlanTpid if !Pinned::is_tagged(rule, F::VlanTpid) => needs("vlan_tpid"),
        F::CvlanId | F::CvlanPrio | F::CvlanEthType if !Pinned::is_tagged(rule, F::CvlanTpid) => needs("cvlan_tpid"),
        F::ArpOp | F::ArpSip | F::ArpTip | F::ArpSha | F::ArpTha
            if !pinned.is_ethertype(&[ethertype::ARP, ethertype::RARP]) =>
        {
            needs("the EtherType of ARP")
        }
        F::Ip4Src | F::Ip4Dst if !pinned.is_ethertype(&[ethertype::IPV4]) => needs("the EtherType of IPv4"),
        F::Ip6Src | F::Ip6Dst if !pinned.is_ethertype(&[ethertype::IPV6]) => needs("the EtherType of IPv6"),
        F::IpProto | F::IpTos | F::IpTtl | F::IpFlags if !pinned.is_ethertype(&ip) => needs("the EtherType of IP"),
        F::SrcPort | F::DstPort if !pinned.is_protocol(&transports) => needs("the protocol TCP, UDP or SCTP"),
        F::TcpFlags if !pinned.is_protocol(&[protocol::TCP]) => needs("the protocol TCP"),
        F::IcmpType | F::IcmpCode => {
            let own = match pinned.is_ethertype(&[ethertype::IPV4]) {
                true => protocol::ICMP,
                false => protocol::ICMPV6,
            };
            if pinned.is_protocol(&[own]) { Ok(()) } else { needs("the protocol ICMP or ICMPv6") }
        }
        F::CtZone | F::CtMark | F::CtLabel | F::CtState => Ok(()),
        field if is_of_tunnel(field) && !matches!(rule.block, Block::Tunnel(_)) => Err(RuleError::NoTunnelHere),
        _ => Ok(()),
    }
}

fn is_of_tunnel(field: Field) -> bool {
    (Field::EncKeyId..=Field::EncOpts).contains(&field)
}

/// A port that is asked for exists, and is the one the rule is on (`mlx5e_flower_parse_meta`).
fn in_port(rule: &Rule, tables: &Tables) -> Checked {
    if !rule.matches.mask().has(Field::InPort) {
        return Ok(());
    }
    let Some(port) = rule.matches.exact(Field::InPort).map(Port) else {
        return Err(RuleError::UnsupportedKey(Field::InPort));
    };
    refuse_if(tables.port(port).is_none(), RuleError::UnknownPort(port))?;
    refuse_if(matches!(rule.block, Block::Port(own) if own != port), RuleError::OtherInPort)
}

/// States that exclude each other (`fl_validate_ct_state`).
fn ct_state(rule: &Rule) -> Checked {
    let state = rule.matches.value().number(Field::CtState) as u8;
    let has = |bit| state & bit != 0;
    let rest = !(Field::CT_TRACKED | Field::CT_INVALID);
    let wrong = match () {
        () if state != 0 && !has(Field::CT_TRACKED) => "no trk, so no other flag can be set",
        () if has(Field::CT_NEW) && has(Field::CT_ESTABLISHED) => "new and est are mutually exclusive",
        () if has(Field::CT_INVALID) && has(rest) => "when inv is set, only trk may be set",
        () if has(Field::CT_NEW) && has(Field::CT_REPLY) => "new and rpl are mutually exclusive",
        () => return Ok(()),
    };
    Err(RuleError::CtState(wrong))
}

/// Every action can be reached, every jump goes forward, and every way leads to an end or to an output.
fn control_flow(rule: &Rule) -> Checked {
    let count = rule.actions.len();
    // For each place: whether it is reached, and whether it is reached without an output.
    let (mut reached, mut bare) = (vec![false; count + 1], vec![false; count + 1]);
    (reached[0], bare[0]) = (true, true);
    for (index, action) in rule.actions.iter().enumerate() {
        refuse_if(!reached[index], RuleError::Unreachable(index))?;
        let still_bare = bare[index] && action.port().is_none();
        for next in next_places(index, action) {
            refuse_if(next <= index || next > count, RuleError::BadJump(index))?;
            reached[next] = true;
            bare[next] |= still_bare;
        }
    }
    refuse_if(bare[count], RuleError::NoFate)
}

/// Where a rule goes on after the action with this index.
pub(crate) fn next_places(index: usize, action: &Action) -> Vec<usize> {
    let places = |control| match control {
        Control::Pipe => Some(index + 1),
        Control::Jump(place) => Some(place),
        Control::Drop => None,
    };
    match action {
        Action::Police(police) => [police.conform, police.exceed].into_iter().filter_map(places).collect(),
        action if action.ends_rule() => Vec::new(),
        _ => vec![index + 1],
    }
}

fn one_action(action: &Action, rule: &Rule, tables: &Tables) -> Checked {
    match action {
        Action::Redirect(port) | Action::Mirror(port) => {
            refuse_if(tables.port(*port).is_none(), RuleError::UnknownPort(*port))
        }
        Action::Goto(chain) => goto(*chain, rule, tables.capabilities()),
        Action::VlanPush(tag) => vlan(tag.tpid, tag.id, tag.priority),
        Action::VlanModify { tpid, id, priority } => {
            vlan(*tpid, *id, priority.unwrap_or(0))?;
            refuse_if(!Pinned::is_tagged(rule, Field::VlanTpid), RuleError::VlanModifyWithoutMatch)
        }
        Action::Edit(edit) => self::edit(edit, rule),
        Action::Csum(which) => {
            let computed = Csum::IP4_HEADER.and(Csum::ICMP).and(Csum::TCP).and(Csum::UDP);
            refuse_if(which.0 & !computed.0 != 0, RuleError::UnsupportedCsum)
        }
        Action::TunnelSet(encap) => self::encap(encap),
        Action::TunnelUnset => refuse_if(!matches!(rule.block, Block::Tunnel(_)), RuleError::NoTunnelHere),
        Action::Ct(ct) => nat_range(ct),
        Action::Police(police) => {
            refuse_if(tables.meter(police.meter).is_none(), RuleError::UnknownMeter(police.meter))
        }
        Action::Sample(sample) => refuse_if(sample.rate == 0, RuleError::SampleRate),
        Action::DecTtl => {
            let is_ip = Pinned::of(rule).is_ethertype(&[ethertype::IPV4, ethertype::IPV6]);
            refuse_if(!is_ip, RuleError::EditWithoutMatch(EditField::Ip4Ttl))
        }
        Action::Drop | Action::Trap | Action::VlanPop | Action::CtClear => Ok(()),
    }
}

fn goto(chain: u32, rule: &Rule, capabilities: &Capabilities) -> Checked {
    refuse_if(chain > capabilities.max_chain, RuleError::GotoOutOfRange)?;
    refuse_if(!capabilities.backward_goto && chain <= rule.chain, RuleError::GotoBackwards)
}

fn vlan(tpid: u16, id: u16, priority: u8) -> Checked {
    refuse_if(!is_vlan(tpid) || id > 4095 || priority > 7, RuleError::BadVlan)
}

fn edit(edit: &Edit, rule: &Rule) -> Checked {
    let size = edit.field.size();
    let fits = match &edit.change {
        Change::Set { value, mask } => value.len() == size && mask.len() == size,
        Change::Add(_) => size <= 4,
    };
    refuse_if(!fits, RuleError::EditSize(edit.field))?;
    let pinned = Pinned::of(rule);
    let known = match edit.field.place().0 {
        Header::Eth => true,
        Header::Ip4 => pinned.is_ethertype(&[ethertype::IPV4]),
        Header::Ip6 => pinned.is_ethertype(&[ethertype::IPV6]),
        Header::Tcp => pinned.is_protocol(&[protocol::TCP]),
        Header::Udp => pinned.is_protocol(&[protocol::UDP]),
    };
    refuse_if(!known, RuleError::EditWithoutMatch(edit.field))
}

fn encap(encap: &Encap) -> Checked {
    let is_udp = encap.kind != TunnelKind::Gre;
    let options = encap.options.len();
    let wrong = match () {
        () if encap.src.is_ipv4() != encap.dst.is_ipv4() => "a tunnel's addresses are of one version of IP",
        () if is_udp && encap.id.is_none() => "a VXLAN or Geneve tunnel needs an identifier",
        () if is_udp && encap.id.is_some_and(|id| id >= 1 << 24) => "an identifier has 24 bits",
        () if is_udp && encap.dst_port == 0 => "a VXLAN or Geneve tunnel needs a destination port",
        () if encap.ttl == 0 => "a tunnel needs a time to live",
        () if options != 0 && encap.kind != TunnelKind::Geneve => "only a Geneve tunnel has options",
        () if !options.is_multiple_of(4) || options > 252 => "Geneve options are a multiple of 4 bytes, at most 252",
        () => return Ok(()),
    };
    Err(RuleError::BadTunnel(wrong))
}

fn nat_range(ct: &crate::action::Ct) -> Checked {
    use crate::action::Nat;
    let Some(Nat::Src(range) | Nat::Dst(range)) = &ct.nat else { return Ok(()) };
    let (first, last) = (range.addresses.start(), range.addresses.end());
    let ports_empty = range.ports.as_ref().is_some_and(|ports| ports.is_empty());
    refuse_if(first.is_ipv4() != last.is_ipv4() || first > last || ports_empty, RuleError::BadNatRange)
}

fn outputs(rule: &Rule, tables: &Tables) -> Checked {
    let ports: Vec<Port> = rule.actions.iter().filter_map(Action::port).collect();
    refuse_if(ports.len() > tables.capabilities().max_outputs, RuleError::TooManyOutputs)?;
    if !tables.capabilities().like_mlx5 {
        return Ok(());
    }
    for (index, port) in ports.iter().enumerate() {
        refuse_if(ports[..index].contains(port), RuleError::DuplicateOutput(*port))?;
    }
    let Block::Port(own) = rule.block else { return Ok(()) };
    let is_uplink = |port| tables.port(port) == Some(PortKind::Uplink);
    let others = || ports.iter().filter(|port| **port != own && is_uplink(**port));
    refuse_if(!is_uplink(own) && ports.contains(&own), RuleError::OutputToItself)?;
    let apart = !tables.has_joined_uplinks();
    refuse_if(apart && is_uplink(own) && others().next().is_some(), RuleError::UplinkToUplink)
}

/// Each tunnel that is set is used by an output.
fn tunnels(rule: &Rule) -> Checked {
    let mut pending = false;
    for action in &rule.actions {
        match action {
            Action::TunnelSet(_) if pending => return Err(RuleError::TunnelWithoutOutput),
            Action::TunnelSet(_) => pending = true,
            Action::Redirect(_) | Action::Mirror(_) => pending = false,
            _ => {}
        }
    }
    refuse_if(pending, RuleError::TunnelWithoutOutput)
}

/// What mlx5 cannot match on (`__parse_cls_flower`, `mlx5_tc_ct_match_add`, `mlx5e_tc_tun_parse_udp_ports`).
fn unsupported_match(rule: &Rule) -> Checked {
    let matches = &rule.matches;
    let range = matches.src_ports.is_some() || matches.dst_ports.is_some();
    let arp = matches.mask().fields().find(|field| (Field::ArpOp..=Field::ArpTha).contains(field));
    if let Some(field) = arp.or_else(|| range.then_some(Field::SrcPort)) {
        return Err(RuleError::UnsupportedKey(field));
    }
    let first = matches.mask().number(Field::IpFlags) as u8 & Field::FIRST_FRAG != 0;
    refuse_if(first, RuleError::FirstFragment)?;
    let ports = [Field::SrcPort, Field::DstPort].iter().any(|field| matches.mask().has(*field));
    let known = Pinned::of(rule).is_protocol(&[protocol::TCP, protocol::UDP]);
    refuse_if(ports && !known, RuleError::UnsupportedTransport)?;
    let state = matches.value().number(Field::CtState) as u8;
    let related = RuleError::CtState("matching on ct_state +rel isn't supported");
    refuse_if(state & Field::CT_RELATED != 0, related)?;
    let invalid = RuleError::CtState("matching on ct_state +inv isn't supported");
    refuse_if(state & Field::CT_INVALID != 0, invalid)?;
    let udp_tunnel = matches!(rule.block, Block::Tunnel(device) if device.kind != TunnelKind::Gre);
    let no_port = matches.exact(Field::EncDstPort).is_none();
    refuse_if(udp_tunnel && rule.chain == 0 && no_port, RuleError::NoTunnelPort)
}

/// What mlx5 cannot do.
fn unsupported_actions(rule: &Rule) -> Checked {
    let actions = &rule.actions;
    let has = |which: fn(&Action) -> bool| actions.iter().any(which);
    let drops = has(|action| matches!(action, Action::Drop));
    let traps = has(|action| matches!(action, Action::Trap));
    refuse_if(traps && actions.len() != 1, RuleError::TrapWithOthers)?;
    let branches = has(|action| matches!(action, Action::Police(_)));
    refuse_if(drops && !branches && has(Action::rewrites), RuleError::DropWithRewrite)?;
    refuse_if(drops && !branches && has(|action| action.port().is_some()), RuleError::DropWithOutput)?;
    let vlans = actions.iter().filter(|action| matches!(action, Action::VlanPush(_) | Action::VlanPop)).count();
    refuse_if(vlans > 2, RuleError::TooManyVlans)?;
    let tracks = actions.iter().filter(|action| matches!(action, Action::Ct(_))).count();
    refuse_if(tracks > 1, RuleError::MultipleCt)?;
    let samples = has(|action| matches!(action, Action::Sample(_)));
    refuse_if(samples && (tracks > 0 || rule.matches.mask().has(Field::CtState)), RuleError::SampleWithCt)?;
    let unsets = has(|action| matches!(action, Action::TunnelUnset));
    let goes_on = has(|action| matches!(action, Action::Goto(1..)));
    refuse_if(unsets && goes_on, RuleError::DecapWithGoto)?;
    vlan_priority(rule)?;
    edits(rule)
}

/// mlx5 writes the VLAN of a tag, and the priority only if it stays the same (`vlan_mangle.c`).
fn vlan_priority(rule: &Rule) -> Checked {
    let own = rule.matches.value().number(Field::VlanPrio) as u8;
    let changes =
        |action: &Action| matches!(action, Action::VlanModify { priority, .. } if priority.unwrap_or(0) != own);
    refuse_if(rule.actions.iter().any(changes), RuleError::VlanPriority)
}

/// The limits of `offload_pedit_fields`, `set_pedit_val` and `modify_header_match_supported`.
fn edits(rule: &Rule) -> Checked {
    let (mut seen, mut rewritten): (Vec<&Edit>, bool) = (Vec::new(), false);
    for action in &rule.actions {
        rewritten |= action.rewrites();
        match action {
            Action::Edit(edit) => {
                let again = seen.iter().any(|other| other.field == edit.field && overlap(other, edit));
                refuse_if(again, RuleError::EditTwice(edit.field))?;
                refuse_if(!is_one_row(edit), RuleError::EditMask(edit.field))?;
                seen.push(edit);
            }
            Action::Csum(_) if !rewritten => return Err(RuleError::CsumWithoutEdit),
            // What follows one of these is another entry of the hardware's tables.
            Action::Ct(_) | Action::Police(_) => {
                seen.clear();
                rewritten = false;
            }
            _ => {}
        }
    }
    let pinned = Pinned::of(rule);
    let of_ip = |action: &Action| match action {
        Action::Edit(edit) => !matches!(edit.field, EditField::Ip4Ttl | EditField::Ip6HopLimit) && is_ip(edit.field),
        _ => false,
    };
    let known = pinned.is_protocol(&[protocol::TCP, protocol::UDP, protocol::ICMP]);
    refuse_if(rule.actions.iter().any(of_ip) && !known, RuleError::EditOfOtherProtocol)
}

fn is_ip(field: EditField) -> bool {
    matches!(field.place().0, Header::Ip4 | Header::Ip6)
}

fn overlap(one: &Edit, other: &Edit) -> bool {
    match (&one.change, &other.change) {
        (Change::Set { mask: one, .. }, Change::Set { mask: other, .. }) => {
            one.iter().zip(other).any(|(one, other)| one & other != 0)
        }
        _ => true,
    }
}

/// Whether the bits that change are side by side.
fn is_one_row(edit: &Edit) -> bool {
    let Change::Set { mask, .. } = &edit.change else { return true };
    let bits = mask.iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let shifted = bits.checked_shr(bits.trailing_zeros()).unwrap_or(0);
    shifted & shifted.wrapping_add(1) == 0
}
