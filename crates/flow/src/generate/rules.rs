//! Random tables: rules that are mostly accepted, and that lead to one another.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::action::{
    Action, Change, Control, Csum, Ct, Edit, EditField, Header, Nat, NatRange, Police, Sample, VlanTag,
};
use crate::check::{self, RuleError};
use crate::key::{Field, Key};
use crate::matching::Match;
use crate::meter::{Meter, MeterId, Rate};
use crate::parse::{ethertype, protocol};
use crate::rule::{Block, Port, Protocol, Rule};
use crate::table::{PortKind, Tables};
use crate::tunnel::{Encap, Neighbour, TunnelDevice, TunnelKind};

use super::keys::{Shape, some_ip4, some_ip6, some_label, some_mac, some_mark, some_options, some_port, some_zone};
use super::options::{ActionKind, ActionSet, Options};
use super::random::Random;

/// The index of the shared block.
const SHARED: u32 = 7;

/// Tables, and what became of the rules that were tried.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The tables, with the rules that were accepted.
    pub tables: Tables,
    /// The rules that were refused, and why.
    pub refused: Vec<(Rule, RuleError)>,
}

/// The fields on which a match on this one depends, apart from the version of IP.
pub(super) fn needs(field: Field) -> &'static [Field] {
    use Field as F;
    match field {
        F::VlanId | F::VlanPrio | F::VlanEthType | F::CvlanTpid => &[F::VlanTpid],
        F::CvlanId | F::CvlanPrio | F::CvlanEthType => &[F::VlanTpid, F::CvlanTpid],
        F::ArpOp | F::ArpSip | F::ArpTip | F::ArpSha | F::ArpTha => &[F::EthType],
        F::Ip4Src | F::Ip4Dst | F::Ip6Src | F::Ip6Dst => &[F::EthType],
        F::IpProto | F::IpTos | F::IpTtl | F::IpFlags => &[F::EthType],
        F::SrcPort | F::DstPort | F::TcpFlags | F::IcmpType | F::IcmpCode => &[F::EthType, F::IpProto],
        _ => &[],
    }
}

/// Whether tc can match on some bits of the field.
fn has_masks(field: Field) -> bool {
    use Field as F;
    !matches!(
        field,
        F::InPort
            | F::EthType
            | F::VlanTpid
            | F::VlanId
            | F::VlanPrio
            | F::VlanEthType
            | F::CvlanTpid
            | F::CvlanId
            | F::CvlanPrio
            | F::CvlanEthType
            | F::IpProto
            | F::EncKeyId
            | F::EncSrcPort
            | F::EncDstPort
            | F::EncOptsLen
            | F::EncOpts
    )
}

/// The tunnel devices of a kind, one each.
pub(super) fn device(kind: TunnelKind) -> TunnelDevice {
    let udp_port = match kind {
        TunnelKind::Vxlan => 4789,
        TunnelKind::Geneve => 6081,
        TunnelKind::Gre => 0,
    };
    TunnelDevice { kind, udp_port }
}

/// What a mask asks for, which rules share.
struct Profile {
    shape: Shape,
    mask: Key,
    ranges: [bool; 2],
    of_tunnel: bool,
}

pub(super) struct RuleMaker<'a> {
    random: &'a mut Random,
    options: &'a Options,
    tables: Tables,
    profiles: Vec<Profile>,
    /// Keys of frames that rules send to a chain.
    arriving: BTreeMap<(Block, u32), Vec<Key>>,
}

/// Makes tables.
pub(super) fn tables(random: &mut Random, options: &Options) -> Generated {
    let mut maker = RuleMaker {
        tables: empty_tables(random, options),
        profiles: Vec::new(),
        arriving: BTreeMap::new(),
        random,
        options,
    };
    maker.profiles = (0..options.masks.max(1)).map(|index| maker.profile(index)).collect();
    let mut refused = Vec::new();
    let pipeline = if maker.random.chance(50) { maker.connection_rules() } else { Vec::new() };
    let count = options.rules.saturating_sub(pipeline.len());
    for rule in pipeline {
        if let Err(error) = maker.tables.add(rule.clone()) {
            refused.push((rule, error));
        }
    }
    for index in 0..count {
        // Rules of later chains follow those that lead to them.
        let chain = (index * options.chains as usize / count.max(1)) as u32;
        let chain = if maker.random.chance(15) { maker.chain() } else { chain };
        let Some((rule, key)) = maker.rule(chain) else { continue };
        match maker.tables.add(rule.clone()) {
            Ok(_) => maker.note_arrivals(&rule, key),
            Err(error) => refused.push((rule, error)),
        }
    }
    Generated { tables: maker.tables, refused }
}

/// Ports, bindings and meters.
fn empty_tables(random: &mut Random, options: &Options) -> Tables {
    let mut tables = Tables::new(options.capabilities);
    for port in options.ports() {
        tables.add_port(port, if port == options.uplink { PortKind::Uplink } else { PortKind::Vport });
    }
    if options.shared_blocks {
        options.ports().iter().rev().take(2).for_each(|port| tables.bind(*port, Some(SHARED)));
    }
    // In tc, 0 is the index of no meter.
    for id in 1..=options.meters {
        let rate = random.one([Rate::Packets(1), Rate::Packets(1000), Rate::Bytes(1000), Rate::Bytes(125_000_000)]);
        let with_mtu = options.mtu_meters && random.chance(40);
        let rate = if with_mtu { Rate::Mtu(random.one([60, 100, 1514])) } else { rate };
        let meter = Meter { rate, burst: random.one([1, 100, 3000, 65_536]) };
        // A card with less room for meters has fewer.
        let _ = tables.set_meter(MeterId(id), meter);
    }
    tables
}

impl RuleMaker<'_> {
    /// Rules that track the connections between two vports, as Open vSwitch makes them: what is not tracked is, and goes
    /// on in another chain; there new connections are committed, and frames of those that are there are sent.
    ///
    /// They are asked last, so that they take what no other rule does.
    fn connection_rules(&mut self) -> Vec<Rule> {
        use ActionKind as K;
        let wanted = [K::Ct, K::CtCommit, K::Goto, K::Redirect].into_iter().collect();
        let fields = [Field::EthType, Field::CtState];
        let possible =
            self.options.actions.has_all(wanted) && fields.iter().all(|field| self.options.fields.has(*field));
        let ports: Vec<Port> = (1..=self.options.vports).map(Port).collect();
        let (Some(one), Some(other)) = (self.random.pick(&ports).copied(), self.random.pick(&ports).copied()) else {
            return Vec::new();
        };
        if !possible || one == other || self.options.chains < 2 || self.options.rules < 30 {
            return Vec::new();
        }
        let ethertype = self.random.one([ethertype::IPV4, ethertype::IPV4, ethertype::IPV6]);
        let chain = 1 + self.random.below(self.options.chains as usize - 1) as u32;
        let zone = some_zone(self.random);
        let of_ip = Match::new().with(Field::EthType, ethertype);
        let (trk, new, est) = (Field::CT_TRACKED, Field::CT_NEW, Field::CT_ESTABLISHED);
        let last = self.options.priorities.max(1) + 1;
        let mut rules = Vec::new();
        for (own, to) in [(one, other), (other, one)] {
            let translates = self.options.actions.has(K::CtNat) && self.random.chance(70);
            let track = Ct { zone, nat: translates.then_some(Nat::Restore), ..Ct::default() };
            let commit = Ct { zone, ..self.ct(K::CtCommit) };
            let steps = [
                (0, of_ip.clone().with_ct_state(0, trk), vec![Action::Ct(track), Action::Goto(chain)]),
                (chain, of_ip.clone().with_ct_state(trk | new, est), vec![Action::Ct(commit), Action::Redirect(to)]),
                (chain, of_ip.clone().with_ct_state(trk | est, new), vec![Action::Redirect(to)]),
            ];
            let block = self.tables.block_of(own);
            rules.extend(steps.into_iter().map(|(chain, matches, actions)| {
                let rule = Rule::new(own, matches, actions).in_block(block).in_chain(chain);
                rule.with_priority(last, Protocol::Is(ethertype))
            }));
        }
        rules
    }

    fn chain(&mut self) -> u32 {
        self.random.below(self.options.chains.max(1) as usize) as u32
    }

    fn profile(&mut self, index: usize) -> Profile {
        let shape = Shape::any(self.random, self.options);
        let (of_tunnel, tracked) = (index % 3 == 2 && !self.options.tunnels.is_empty(), index % 4 == 1);
        let outside = Field::ALL.iter().copied().filter(|field| match field {
            Field::EncOptsLen | Field::EncAddrType => false,
            field if (Field::EncKeyId..=Field::EncOpts).contains(field) => of_tunnel,
            field => tracked && *field >= Field::CtState,
        });
        let mut candidates = shape.fields();
        candidates.push(Field::InPort);
        candidates.extend(outside);
        let share = self.random.one([8, 20, 20, 40, 70]);
        let mut mask = Key::default();
        for field in candidates {
            let wanted = self.random.chance(match field {
                // Only one kind of tunnel has them.
                Field::EncOpts => 60,
                field if field >= Field::EncKeyId => share.max(35),
                _ => share,
            });
            if wanted && self.is_allowed(field) {
                needs(field).iter().for_each(|needed| mask.set_bytes(*needed, &[0xff; 16]));
                let bits = self.mask_bits(field);
                mask.set_bytes(field, &bits);
            }
        }
        let ranges = [Field::SrcPort, Field::DstPort].map(|field| self.range_instead(field, &shape, &mut mask));
        complete(&mut mask);
        Profile { shape, mask, ranges, of_tunnel }
    }

    fn is_allowed(&self, field: Field) -> bool {
        let fields = self.options.fields;
        let refused = self.options.capabilities.like_mlx5 && (Field::ArpOp..=Field::ArpTha).contains(&field);
        fields.has(field) && needs(field).iter().all(|needed| fields.has(*needed)) && !refused
    }

    /// Whether a range of ports stands in the place of a match on the port.
    fn range_instead(&mut self, field: Field, shape: &Shape, mask: &mut Key) -> bool {
        let possible = self.options.port_ranges && shape.has_ports() && !self.options.capabilities.like_mlx5;
        let chosen = possible && self.is_allowed(field) && self.random.chance(15);
        if chosen {
            mask.set_bytes(field, &[]);
            needs(field).iter().for_each(|needed| mask.set_bytes(*needed, &[0xff; 2]));
        }
        chosen
    }

    fn mask_bits(&mut self, field: Field) -> Vec<u8> {
        use Field as F;
        let full = vec![0xff; field.size()];
        match field {
            F::CtState => {
                let (trk, new, est) = (F::CT_TRACKED, F::CT_NEW, F::CT_ESTABLISHED);
                vec![self.random.one([trk, trk | new, trk | est, trk | new | est, trk | est | F::CT_REPLY])]
            }
            F::IpFlags if self.options.capabilities.like_mlx5 => vec![F::FRAG],
            F::IpFlags => vec![self.random.one([F::FRAG, F::FRAG | F::FIRST_FRAG])],
            _ if !has_masks(field) || !self.random.chance(30) => full,
            F::Ip4Src | F::Ip4Dst | F::Ip6Src | F::Ip6Dst | F::ArpSip | F::ArpTip if self.random.chance(80) => {
                let length = 1 + self.random.below(field.size() * 8);
                prefix(length, field.size())
            }
            F::EncIp4Src | F::EncIp4Dst | F::EncIp6Src | F::EncIp6Dst => prefix(24, field.size()),
            _ if !self.options.any_masks => full,
            F::TcpFlags => (self.random.one([0x02, 0x12, 0x17, 0x0fff]) as u16).to_be_bytes().to_vec(),
            _ => match self.random.bytes(field.size()) {
                bits if bits.iter().all(|byte| *byte == 0) => full,
                bits => bits,
            },
        }
    }

    fn block(&mut self) -> Block {
        let ports = self.options.ports();
        let kind = match self.options.tunnels.is_empty() {
            true => self.random.below(70),
            false => self.random.below(100),
        };
        let tunnel = self.random.pick(&self.options.tunnels).map(|kind| Block::Tunnel(device(*kind)));
        match (kind, tunnel) {
            (0..8, _) => Block::Port(self.options.uplink),
            (8..24, _) if self.options.shared_blocks => Block::Shared(SHARED),
            (70.., Some(tunnel)) => tunnel,
            // The first vports have more rules, so that these have something to do with each other.
            _ => Block::Port(ports[1.min(ports.len() - 1) + self.random.below(2.min(ports.len().saturating_sub(1)))]),
        }
    }

    /// A block, and this chain of it if a rule leads there; else mostly chain 0.
    fn place(&mut self, chain: u32) -> (Block, u32) {
        let places: Vec<Block> =
            self.arriving.keys().filter(|(_, own)| *own == chain).map(|(block, _)| *block).collect();
        match self.random.pick(&places).copied() {
            Some(block) if chain != 0 => (block, chain),
            _ if self.random.chance(97) => (self.block(), 0),
            _ => (self.block(), chain),
        }
    }

    /// A rule for a chain, and the key of a frame that it takes.
    fn rule(&mut self, chain: u32) -> Option<(Rule, Key)> {
        let (block, chain) = self.place(chain);
        let (matches, key, shape) = self.matches(block, chain)?;
        let is_known = matches.mask().has(Field::EthType) || matches.mask().has(Field::VlanTpid);
        let protocol = match is_known && self.random.chance(60) {
            true => Protocol::Is(shape.outermost()),
            false => Protocol::All,
        };
        let priority = self.priority(block, chain, protocol);
        let mut rule = Rule::new(self.options.uplink, matches, []).in_block(block).in_chain(chain);
        rule = rule.with_priority(priority, protocol);
        rule.actions = self.actions(&rule)?;
        if self.random.chance(self.options.reckless) {
            self.spoil(&mut rule);
        }
        Some((rule, key))
    }

    /// A priority whose protocol this is, or that has none yet.
    fn priority(&mut self, block: Block, chain: u32, protocol: Protocol) -> u32 {
        let count = self.options.priorities.max(1);
        let first = self.random.below(count as usize) as u32;
        let taken: BTreeMap<u32, Protocol> =
            self.tables.priorities(block, chain).map(|(number, priority)| (number, priority.protocol)).collect();
        let mut numbers = (0..count).map(|step| (first + step) % count + 1);
        numbers.find(|number| taken.get(number).is_none_or(|own| *own == protocol)).unwrap_or(first + 1)
    }

    fn matches(&mut self, block: Block, chain: u32) -> Option<(Match, Key, Shape)> {
        let is_tunnel = matches!(block, Block::Tunnel(_));
        for attempt in 0..8 {
            // In a tunnel's block, most rules ask for the tunnel.
            let of_tunnel = is_tunnel && self.random.chance(75);
            let usable: Vec<usize> =
                (0..self.profiles.len()).filter(|index| of_tunnel == self.profiles[*index].of_tunnel).collect();
            let Some(index) = self.random.pick(&usable).copied() else { continue };
            let arriving = self.arriving.get(&(block, chain)).map_or(&[][..], Vec::as_slice);
            let arrived = self.random.pick(arriving).cloned().filter(|_| attempt < 6);
            let shape = match &arrived {
                Some(key) => shape_of(key, &self.profiles[index].shape),
                None => self.profiles[index].shape.clone(),
            };
            let mut key = match arrived {
                Some(key) => key,
                None => {
                    let mut key = shape.key(self.random);
                    self.at(&mut key, block);
                    if self.random.chance(if chain == 0 { 97 } else { 50 }) {
                        untracked(&mut key);
                    }
                    key
                }
            };
            self.in_port(&mut key, block);
            let matches = self.match_of(&key, index);
            let probe = Rule::new(self.options.uplink, matches.clone(), [Action::Drop]).in_block(block).in_chain(chain);
            if check::rule(&probe, &self.tables).is_ok() {
                return Some((matches, key, shape));
            }
        }
        None
    }

    /// What a key must be for frames of this block: out of the device, or out of no tunnel.
    fn at(&mut self, key: &mut Key, block: Block) {
        let Block::Tunnel(device) = block else {
            let of_tunnel = Field::ALL.iter().filter(|field| (Field::EncKeyId..=Field::EncOpts).contains(field));
            of_tunnel.for_each(|field| key.set_bytes(*field, &[]));
            return;
        };
        key.set(Field::EncDstPort, device.udp_port);
        match device.kind {
            TunnelKind::Gre => key.set(Field::EncSrcPort, 0u16),
            TunnelKind::Vxlan => {}
            TunnelKind::Geneve => {
                let options = some_options(self.random);
                key.set(Field::EncOptsLen, options.len() as u8);
                key.set_bytes(Field::EncOpts, &options);
            }
        }
    }

    fn in_port(&mut self, key: &mut Key, block: Block) {
        let bound: Vec<Port> =
            self.options.ports().into_iter().filter(|port| self.tables.block_of(*port) == block).collect();
        let port = match block {
            Block::Port(port) => Some(port),
            Block::Tunnel(_) => Some(self.options.uplink),
            Block::Shared(_) => self.random.pick(&bound).copied(),
        };
        key.set(Field::InPort, port.unwrap_or(self.options.uplink).0);
    }

    /// The match on a key of what a profile asks for.
    fn match_of(&mut self, key: &Key, index: usize) -> Match {
        let mut mask = self.profiles[index].mask.clone();
        if mask.has(Field::EncOpts) {
            let length = key.number(Field::EncOptsLen) as usize;
            let bits = self.option_bits(&key.get(Field::EncOpts)[..length]);
            mask.set(Field::EncOptsLen, if length == 0 { 0u8 } else { 0xff });
            mask.set_bytes(Field::EncOpts, &bits);
        }
        let (v4, v6) = ([Field::EncIp4Src, Field::EncIp4Dst], [Field::EncIp6Src, Field::EncIp6Dst]);
        // A frame out of no tunnel has no version, which a match on an address would ask for.
        let others = match key.number(Field::EncAddrType) {
            4 => v6.to_vec(),
            6 => v4.to_vec(),
            _ => [v4, v6].concat(),
        };
        others.iter().chain([&Field::EncAddrType]).for_each(|field| mask.set_bytes(*field, &[]));
        complete(&mut mask);
        let ranges = self.profiles[index].ranges;
        let mut range = |wanted: bool, field| {
            let port = key.number(field) as u16;
            let (below, above) = (self.random.below(3) as u16, self.random.below(500) as u16);
            wanted.then(|| port.saturating_sub(below)..=port.saturating_add(above))
        };
        let (src, dst) = (range(ranges[0], Field::SrcPort), range(ranges[1], Field::DstPort));
        Match::of_key(key, mask, src, dst)
    }

    /// The bits of Geneve options that count: all, or not the data or the type of some.
    fn option_bits(&mut self, options: &[u8]) -> Vec<u8> {
        let mut bits = vec![0xff; options.len()];
        let mut at = 0;
        while let Some(words) = options.get(at + 3) {
            let end = at + 4 + usize::from(*words) * 4;
            if self.options.any_masks && self.random.chance(30) {
                match self.random.chance(50) {
                    true => bits[at + 2] = 0,
                    false => bits[at + 4..end].iter_mut().for_each(|byte| *byte = self.random.number() as u8),
                }
            }
            at = end;
        }
        bits
    }

    /// Notes with which keys frames come to a chain to which the rule leads.
    fn note_arrivals(&mut self, rule: &Rule, mut key: Key) {
        for action in &rule.actions {
            match action {
                Action::Goto(chain) => self.arriving.entry((rule.block, *chain)).or_default().push(key.clone()),
                Action::CtClear => untracked(&mut key),
                Action::Ct(ct) => self.tracked(&mut key, ct),
                Action::TunnelUnset => {
                    for field in Field::ALL.iter().filter(|field| (Field::EncKeyId..=Field::EncOpts).contains(field)) {
                        key.set_bytes(*field, &[]);
                    }
                }
                _ => {}
            }
        }
    }

    fn tracked(&mut self, key: &mut Key, ct: &Ct) {
        const TRK: u8 = Field::CT_TRACKED;
        let established = TRK | Field::CT_ESTABLISHED;
        let states = [TRK | Field::CT_NEW, TRK | Field::CT_NEW, established, established | Field::CT_REPLY];
        key.set(Field::CtState, self.random.one(states));
        key.set(Field::CtZone, ct.zone);
        let (mark, label) = (ct.mark.filter(|_| ct.commit), ct.label.filter(|_| ct.commit));
        key.set(Field::CtMark, mark.map_or(0, |(mark, mask)| mark & mask));
        key.set(Field::CtLabel, label.map_or(0, |(label, mask)| label & mask));
    }

    fn actions(&mut self, rule: &Rule) -> Option<Vec<Action>> {
        let kinds: Vec<ActionKind> = self.options.actions.iter().collect();
        let focus = *self.random.pick(&kinds)?;
        let mut best = None;
        for _ in 0..5 {
            let Some(actions) = self.some_actions(rule, focus) else { continue };
            let has_focus = ActionSet::of_all(&actions).has(focus);
            best = Some(actions);
            if has_focus {
                break;
            }
        }
        best
    }

    /// Actions of which one should be of this kind.
    fn some_actions(&mut self, rule: &Rule, focus: ActionKind) -> Option<Vec<Action>> {
        let end = self.end(rule, focus)?;
        let kinds: Vec<ActionKind> = self.options.actions.iter().collect();
        let mut actions = Vec::new();
        let others = self.random.one([0, 0, 1, 2, 3]);
        let place = self.random.below(others + 1);
        for index in 0..=others {
            let kind = if index == place { Some(focus) } else { self.random.pick(&kinds).copied() };
            for _ in 0..4 {
                let more = kind.map(|kind| self.some_action(kind, rule, actions.len())).unwrap_or_default();
                let longer = [&actions[..], &more].concat();
                if self.fits(rule, [&longer[..], std::slice::from_ref(&end)].concat()) {
                    actions = longer;
                    break;
                }
            }
        }
        actions.push(end);
        self.fits(rule, actions.clone()).then_some(actions)
    }

    fn fits(&self, rule: &Rule, actions: Vec<Action>) -> bool {
        check::rule(&Rule { actions, ..rule.clone() }, &self.tables).is_ok()
    }

    /// What a rule does in the end: what the focus is, if it is such, or anything that may be.
    fn end(&mut self, rule: &Rule, focus: ActionKind) -> Option<Action> {
        use ActionKind as K;
        let ends = [K::Redirect, K::Redirect, K::Redirect, K::Goto, K::Goto, K::Goto, K::Drop, K::Mirror];
        let is_end = matches!(focus, K::Redirect | K::Goto | K::Drop | K::Trap);
        let usable: Vec<ActionKind> = ends.into_iter().filter(|kind| self.options.actions.has(*kind)).collect();
        let only_trap = self.options.actions.has(K::Trap).then_some(K::Trap);
        let kind = if is_end { focus } else { self.random.pick(&usable).copied().or(only_trap)? };
        Some(match kind {
            K::Redirect => Action::Redirect(self.output(rule)),
            K::Mirror => Action::Mirror(self.output(rule)),
            K::Goto => Action::Goto(self.next_chain(rule.chain)),
            K::Trap => Action::Trap,
            _ => Action::Drop,
        })
    }

    fn output(&mut self, rule: &Rule) -> Port {
        let ports: Vec<Port> =
            self.options.ports().into_iter().filter(|port| rule.block != Block::Port(*port)).collect();
        self.random.pick(&ports).copied().unwrap_or(self.options.uplink)
    }

    fn next_chain(&mut self, own: u32) -> u32 {
        let above = self.options.chains.saturating_sub(own + 1);
        match above == 0 || self.random.chance(10) {
            true => self.chain(),
            false => own + 1 + self.random.below(above as usize) as u32,
        }
    }

    /// Actions of a kind that stand in the middle of a rule, from this place on. None if there is no such action.
    fn some_action(&mut self, kind: ActionKind, rule: &Rule, place: usize) -> Vec<Action> {
        use ActionKind as K;
        let has = |kind| self.options.actions.has(kind);
        let has_edits = has(K::EditSet) && !self.options.edits.is_empty();
        let (mirrors, has_jumps) = (has(K::Mirror), has(K::PoliceJump));
        match kind {
            K::Drop | K::Trap | K::Redirect | K::Goto => Vec::new(),
            K::Mirror => vec![Action::Mirror(self.output(rule))],
            K::VlanPush => {
                let tpid = self.random.one([ethertype::VLAN, ethertype::VLAN, ethertype::QINQ]);
                let (id, priority) = (self.random.one([1, 2, 3, 4095]), self.random.below(8) as u8);
                vec![Action::VlanPush(VlanTag { tpid, id, priority })]
            }
            K::VlanPop => vec![Action::VlanPop],
            K::VlanModify => vec![self.vlan_modify(rule)],
            K::EditSet => self.edit(rule).map(|field| self.edit_set(field)).into_iter().collect(),
            K::EditAdd => self.edit_add(rule).into_iter().collect(),
            K::Csum => {
                let which = Csum(self.random.one([1, 8, 16, 9, 17, 2, 27]));
                let with_edit = has_edits && (self.options.capabilities.like_mlx5 || self.random.chance(50));
                let edit = self.edit(rule).filter(|_| with_edit).map(|field| self.edit_set(field));
                edit.into_iter().chain([Action::Csum(which)]).collect()
            }
            K::DecTtl => vec![Action::DecTtl],
            K::TunnelSet => {
                let mirror = mirrors.then(|| Action::Mirror(self.output(rule)));
                let encap = self.encap().map(Action::TunnelSet);
                let to = mirror.filter(|_| self.random.chance(50));
                encap.into_iter().flat_map(|encap| [Some(encap), to.clone()]).flatten().collect()
            }
            K::TunnelUnset => vec![Action::TunnelUnset],
            K::Ct | K::CtCommit | K::CtNat => vec![Action::Ct(self.ct(kind))],
            K::CtClear => vec![Action::CtClear],
            K::Police => vec![Action::Police(self.police(Control::Pipe))],
            K::PoliceJump if has_jumps => {
                let skipped = match self.random.below(4) {
                    0 => Action::Drop,
                    1 => Action::VlanPop,
                    2 => Action::CtClear,
                    _ => Action::Redirect(self.output(rule)),
                };
                let skipped = Some(skipped).filter(|skipped| self.options.actions.has_all(ActionSet::of(skipped)));
                let to = Control::Jump(place + 1 + usize::from(skipped.is_some()));
                std::iter::once(Action::Police(self.police(to))).chain(skipped).collect()
            }
            K::PoliceJump => Vec::new(),
            K::Sample => {
                let truncate = self.random.one([None, Some(0), Some(30), Some(10_000)]);
                let (rate, group) = (self.random.one([1, 2, 4]), self.random.below(3) as u32);
                vec![Action::Sample(Sample { rate, group, truncate })]
            }
        }
    }

    fn vlan_modify(&mut self, rule: &Rule) -> Action {
        let tpid = self.random.one([ethertype::VLAN, ethertype::QINQ]);
        let own = rule.matches.value().number(Field::VlanPrio) as u8;
        let any = self.random.one([None, Some(0), Some(3), Some(7)]);
        let priority = if self.options.capabilities.like_mlx5 { Some(own) } else { any };
        Action::VlanModify { tpid, id: self.random.one([1, 2, 3, 0, 4095]), priority }
    }

    /// A field that the frames of the rule have and that may be rewritten.
    fn edit(&mut self, rule: &Rule) -> Option<EditField> {
        let exact = |field, wanted: u32| rule.matches.exact(field) == Some(wanted);
        let usable: Vec<EditField> = (self.options.edits.iter().copied())
            .filter(|field| match field.place().0 {
                Header::Eth => true,
                Header::Ip4 => exact(Field::EthType, ethertype::IPV4.into()),
                Header::Ip6 => exact(Field::EthType, ethertype::IPV6.into()),
                Header::Tcp => exact(Field::IpProto, protocol::TCP.into()),
                Header::Udp => exact(Field::IpProto, protocol::UDP.into()),
            })
            .collect();
        self.random.pick(&usable).copied()
    }

    fn edit_set(&mut self, field: EditField) -> Action {
        use EditField as E;
        let value = match field {
            E::EthDst | E::EthSrc => some_mac(self.random).to_vec(),
            E::EthType => self.random.one([ethertype::IPV4, ethertype::IPV6, 0x88b5]).to_be_bytes().to_vec(),
            E::Ip4Src | E::Ip4Dst => some_ip4(self.random).to_vec(),
            E::Ip6Src | E::Ip6Dst => some_ip6(self.random).to_vec(),
            E::TcpSrc | E::TcpDst | E::UdpSrc | E::UdpDst => some_port(self.random).to_be_bytes().to_vec(),
            _ => self.random.bytes(field.size()),
        };
        let masked = self.options.any_masks && self.random.chance(30);
        let mask = match masked {
            false => vec![0xff; field.size()],
            true if self.options.capabilities.like_mlx5 || self.random.chance(70) => self.row_of_bits(field.size()),
            true => self.random.bytes(field.size()),
        };
        let value = value.iter().zip(&mask).map(|(value, mask)| value & mask).collect();
        Action::Edit(Edit { field, change: Change::Set { value, mask } })
    }

    /// Bits that stand side by side.
    fn row_of_bits(&mut self, size: usize) -> Vec<u8> {
        let first = self.random.below(size * 8);
        let last = first + 1 + self.random.below(size * 8 - first);
        let (before, all) = (prefix(first, size), prefix(last, size));
        before.iter().zip(&all).map(|(before, all)| all & !before).collect()
    }

    fn edit_add(&mut self, rule: &Rule) -> Option<Action> {
        let field = (0..8).find_map(|_| self.edit(rule).filter(|field| field.size() <= 4))?;
        let most = u32::MAX >> (32 - 8 * field.size());
        let value = self.random.one([1, 1, 3, most, self.random.clone().number() as u32 & most]);
        Some(Edit::add(field, value))
    }

    fn encap(&mut self) -> Option<Encap> {
        let kind = *self.random.pick(&self.options.tunnels)?;
        let (src, dst) = match self.random.chance(60) {
            true => (IpAddr::from(some_ip4(self.random)), some_ip4(self.random).into()),
            false => (IpAddr::from(some_ip6(self.random)), some_ip6(self.random).into()),
        };
        let id = self.random.one([0, 5, 77, 0x00ff_ffff]);
        let neighbour = Neighbour { dst: some_mac(self.random), src: some_mac(self.random), from: None };
        Some(Encap {
            kind,
            id: Some(id).filter(|_| kind != TunnelKind::Gre || self.random.chance(70)),
            src,
            dst,
            dst_port: device(kind).udp_port,
            tos: self.random.one([0, 1, 3, 0xb8]),
            ttl: self.random.one([64, 255, 1]),
            options: if kind == TunnelKind::Geneve { some_options(self.random) } else { Vec::new() },
            neighbour: Some(neighbour).filter(|_| self.random.chance(90)),
        })
    }

    fn ct(&mut self, kind: ActionKind) -> Ct {
        let has = |kind| self.options.actions.has(kind);
        let (commits, translates) = (has(ActionKind::CtCommit), has(ActionKind::CtNat));
        let commit = kind == ActionKind::CtCommit || kind == ActionKind::CtNat && commits && self.random.chance(70);
        let nat = kind == ActionKind::CtNat || kind == ActionKind::CtCommit && translates && self.random.chance(30);
        let mark = (some_mark(self.random), self.random.one([u32::MAX, u32::MAX, 0xff, 1]));
        let label = (some_label(self.random), self.random.one([u128::MAX, 0xff]));
        Ct {
            zone: some_zone(self.random),
            commit,
            force: commit && self.random.chance(15),
            mark: Some((mark.0 & mark.1, mark.1)).filter(|_| commit && self.random.chance(50)),
            label: Some((label.0 & label.1, label.1)).filter(|_| commit && self.random.chance(30)),
            nat: nat.then(|| self.nat(commit)),
        }
    }

    fn nat(&mut self, commit: bool) -> Nat {
        let last = 1 + self.random.below(3) as u8;
        let v4 = IpAddr::from([10, 9, 0, 1])..=IpAddr::from([10, 9, 0, last]);
        let v6 = |end| IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, end]);
        let addresses = if self.random.chance(60) { v4 } else { v6(1)..=v6(u16::from(last)) };
        let ports = self.random.one([None, None, Some((5000, 5003)), Some((80, 80))]).map(|(first, last)| first..=last);
        let range = NatRange { addresses, ports };
        match self.random.below(3) {
            _ if !commit => Nat::Restore,
            0 => Nat::Restore,
            1 => Nat::Src(range),
            _ => Nat::Dst(range),
        }
    }

    fn police(&mut self, other: Control) -> Police {
        let meter = MeterId(1 + self.random.below(self.options.meters as usize) as u32);
        let exceed =
            if other == Control::Pipe { self.random.one([Control::Drop, Control::Drop, Control::Pipe]) } else { other };
        let (conform, exceed) = if self.random.chance(85) { (Control::Pipe, exceed) } else { (exceed, Control::Pipe) };
        Police { meter, conform, exceed }
    }

    /// Makes a rule that the card need not accept.
    fn spoil(&mut self, rule: &mut Rule) {
        let allowed: Vec<Field> = Field::ALL.iter().copied().filter(|field| self.options.fields.has(*field)).collect();
        let kinds: Vec<ActionKind> = self.options.actions.iter().collect();
        match self.random.below(6) {
            0 => rule.actions.clear(),
            1 => rule.priority = 0,
            2 => rule.chain = u32::MAX,
            3 => rule.actions = vec![Action::Redirect(Port(1_000_000))],
            4 => {
                let Some(field) = self.random.pick(&allowed).copied() else { return };
                let bytes = self.random.bytes(field.size());
                rule.matches = rule.matches.clone().with(field, &bytes[..]);
            }
            _ => {
                let Some(kind) = self.random.pick(&kinds).copied() else { return };
                let place = self.random.below(rule.actions.len() + 1);
                let more = self.some_action(kind, rule, place);
                rule.actions.splice(place..place, more);
            }
        }
    }
}

/// The key of a frame that has not been tracked.
fn untracked(key: &mut Key) {
    [Field::CtState, Field::CtZone, Field::CtMark, Field::CtLabel].iter().for_each(|field| key.set_bytes(*field, &[]));
}

/// The shape of a frame with this key; of what the key does not say, `other`'s.
fn shape_of(key: &Key, other: &Shape) -> Shape {
    let tags = [Field::VlanTpid, Field::CvlanTpid].into_iter().filter(|field| key.has(*field));
    Shape {
        tags: tags.map(|field| key.number(field) as u16).collect(),
        ethertype: key.number(Field::EthType) as u16,
        ip_protocol: if key.has(Field::IpProto) { key.number(Field::IpProto) as u8 } else { other.ip_protocol },
    }
}

/// Adds the version of IP that a match on an address asks for too.
fn complete(mask: &mut Key) {
    let versions = [
        (Field::AddrType, [Field::Ip4Src, Field::Ip4Dst, Field::Ip6Src, Field::Ip6Dst]),
        (Field::EncAddrType, [Field::EncIp4Src, Field::EncIp4Dst, Field::EncIp6Src, Field::EncIp6Dst]),
    ];
    for (version, addresses) in versions {
        if addresses.into_iter().any(|address| mask.has(address)) {
            mask.set(version, 0xffu8);
        }
    }
}

/// The first `length` bits of `size` bytes.
fn prefix(length: usize, size: usize) -> Vec<u8> {
    let bits = |at: usize| length.saturating_sub(at * 8).min(8);
    (0..size).map(|at| !0xffu8.checked_shr(bits(at) as u32).unwrap_or(0)).collect()
}
