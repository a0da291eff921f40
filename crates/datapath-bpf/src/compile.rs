//! A rule as the program carries it out, or why it cannot.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use flow::{Action, Block, Control, EditField, Field, Key, MeterId, Protocol, Rule, TunnelKind, VlanTag};
use thiserror::Error;

use crate::encap;
use crate::layout::{
    self, ActionEntry, ActionKind, CACHED_KEY, LONG_KEY, MAX_ACTIONS, MAX_CT_OF_RULE, SHORT_KEY, Terminal, next,
};
use crate::track;

/// Why a change was refused. Then nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refused {
    /// The program does not have the two together.
    #[error("{action} (action {place}) is not offloaded before {before}")]
    Before {
        /// The place of the action in the rule, from 0.
        place: usize,
        /// Its name in the words of tc.
        action: &'static str,
        /// What comes later in the rule.
        before: &'static str,
    },
    /// More actions than a rule can have.
    #[error("a rule has at most {MAX_ACTIONS} actions, meters 32 times, and tracks {MAX_CT_OF_RULE} times")]
    TooManyActions,
    /// A burst whose tokens do not fit into 64 bits.
    #[error("a burst is at most {}", u64::MAX / 1_000_000_000)]
    Burst,
    /// A meter without a rate or a burst, which would let nothing through.
    #[error("a meter needs a rate and a burst")]
    MeterWithoutRate,
    /// No room for another rule, action, meter or mask.
    #[error("no room for another {0}")]
    NoRoom(&'static str),
    /// There is a rule with this name or with the same match.
    #[error("there is such a rule")]
    Exists,
    /// There is no rule or meter with this name.
    #[error("there is no such rule or meter")]
    Unknown,
    /// The meter is used by a rule.
    #[error("the meter is used by a rule")]
    Used,
    /// The priority has rules of another protocol.
    #[error("the priority is one of protocol {0}")]
    Protocol(Protocol),
    /// The kernel refused to change a map: the number of the error.
    #[error("the kernel refuses: {}", std::io::Error::from_raw_os_error(*.0))]
    Kernel(i32),
}

/// Which of the rules of a chain belong together: those of a priority and a mask, and of a range of ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) block: u64,
    pub(crate) chain: u32,
    pub(crate) priority: u32,
    pub(crate) protocol: Protocol,
    pub(crate) mask: Box<[u8; LONG_KEY]>,
    pub(crate) src: Option<RangeInclusive<u16>>,
    pub(crate) dst: Option<RangeInclusive<u16>>,
}

impl Place {
    /// Whether the part of the key decides that the cache has.
    pub(crate) fn is_cached(&self) -> bool {
        self.mask[CACHED_KEY..].iter().all(|byte| *byte == 0)
    }

    /// Whether the short key is not enough.
    pub(crate) fn is_long(&self) -> bool {
        self.mask[SHORT_KEY..].iter().any(|byte| *byte != 0)
    }
}

/// What rules with one place have in common, which mostly come one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) place: Place,
    eswitch: u8,
    block: Block,
    mask: Key,
    fields: Vec<Field>,
    /// How long the keys of its group are.
    key_size: usize,
}

impl Shape {
    /// The shape of a rule of an E-Switch.
    pub(crate) fn of(eswitch: u8, rule: &Rule) -> Shape {
        let matches = &rule.matches;
        let fields: Vec<Field> = matches.mask().fields().collect();
        let place = Place {
            block: block_number(eswitch, rule.block),
            chain: rule.chain,
            priority: rule.priority,
            protocol: rule.protocol,
            mask: Box::new(layout::key(matches.mask(), &fields)),
            src: matches.src_ports.clone(),
            dst: matches.dst_ports.clone(),
        };
        let key_size = if place.is_long() { LONG_KEY } else { SHORT_KEY };
        Shape { place, eswitch, block: rule.block, mask: matches.mask().clone(), fields, key_size }
    }

    /// Whether it is that of a rule of an E-Switch.
    pub(crate) fn is_of(&self, eswitch: u8, rule: &Rule) -> bool {
        let place = &self.place;
        (self.eswitch, self.block, place.chain, place.priority, place.protocol)
            == (eswitch, rule.block, rule.chain, rule.priority, rule.protocol)
            && (&place.src, &place.dst) == (&rule.matches.src_ports, &rule.matches.dst_ports)
            && self.mask == *rule.matches.mask()
    }

    /// Whether its rules have long keys.
    pub(crate) fn is_long(&self) -> bool {
        self.key_size == LONG_KEY
    }

    /// The chain of the place.
    pub(crate) fn chain(&self) -> (u64, u32) {
        (self.place.block, self.place.chain)
    }

    /// A rule's key in the map of rules.
    pub(crate) fn lookup_key(&self, group: u32, rule: &Rule) -> Box<[u8]> {
        let mut bytes = vec![0; 8 + self.key_size].into_boxed_slice();
        bytes[..4].copy_from_slice(&group.to_ne_bytes());
        bytes[8..].copy_from_slice(&layout::key(rule.matches.value(), &self.fields)[..self.key_size]);
        bytes
    }
}

/// What a rule does, ready for the maps but for the numbers of its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// `next` and `alternative` are places in this list, if they are none of [`next`]: place 0 is 1.
    pub(crate) actions: Vec<ActionEntry>,
    pub(crate) terminal: Terminal,
    pub(crate) walk: bool,
    pub(crate) meters: Vec<MeterId>,
    /// The encapsulations and ways to track, as they stand in `encaps`. The argument of an action is a place in this list.
    pub(crate) encaps: Vec<Vec<u8>>,
}

/// A block of an E-Switch as a number: its kind in the highest byte. Ports and shared blocks have numbers of their own on the
/// whole card; a tunnel is one of each uplink.
pub(crate) fn block_number(eswitch: u8, block: Block) -> u64 {
    let (kind, number) = match block {
        Block::Port(port) => (0u64, port.0),
        Block::Shared(index) => (1, index),
        Block::Tunnel(device) => {
            let kind = match device.kind {
                TunnelKind::Vxlan => 2,
                TunnelKind::Geneve => 3,
                TunnelKind::Gre => 4,
            };
            (kind, u32::from(eswitch) << 16 | u32::from(device.udp_port))
        }
    };
    kind << 56 | u64::from(number)
}

/// The name of an action in the words of tc.
fn name(action: &Action) -> &'static str {
    match action {
        Action::Drop => "drop",
        Action::Trap => "trap",
        Action::Redirect(_) => "mirred redirect",
        Action::Mirror(_) => "mirred mirror",
        Action::Goto(_) => "goto chain",
        Action::VlanPush(_) => "vlan push",
        Action::VlanPop => "vlan pop",
        Action::VlanModify { .. } => "vlan modify",
        Action::Edit(_) => "pedit",
        Action::Csum(_) => "csum",
        Action::DecTtl => "dec_ttl",
        Action::TunnelSet(_) => "tunnel_key set",
        Action::TunnelUnset => "tunnel_key unset",
        Action::Ct(_) => "ct",
        Action::CtClear => "ct clear",
        Action::Police(_) => "police",
        Action::Sample(_) => "sample",
    }
}

/// What the program makes of a rule's actions, with the numbers of the meters.
pub(crate) fn compile(rule: &Rule, meters: &HashMap<MeterId, u32>) -> Result<Compiled, Refused> {
    let mut encaps = Vec::new();
    let (mut actions, terminal) = Lowering { rule, meters }.lower()?;
    for (entry, action) in actions.iter_mut().zip(&rule.actions) {
        let bytes = match action {
            Action::TunnelSet(encap) => encap::bytes(encap),
            Action::Ct(ct) => track::bytes(ct),
            _ => continue,
        };
        entry.arg = encaps.len() as u32;
        encaps.push(bytes);
    }
    let walk = walks(rule, terminal, &actions);
    let meters = rule.actions.iter().filter_map(Action::meter).collect();
    Ok(Compiled { actions, terminal, walk, meters, encaps })
}

/// Whether the first pass must look at the actions: they decide what becomes of the frame, or change the key for the next
/// chain, or change a frame that must reach the representor as it came in.
fn walks(rule: &Rule, terminal: Terminal, actions: &[ActionEntry]) -> bool {
    let decides = rule
        .actions
        .iter()
        .any(|action| matches!(action, Action::Police(_) | Action::DecTtl | Action::TunnelSet(_) | Action::Ct(_)));
    let goes_on = matches!(terminal, Terminal::Goto(_) | Terminal::Trap)
        || actions.iter().any(|entry| matches!(entry.kind, ActionKind::Goto | ActionKind::Trap | ActionKind::Drop));
    let branches = actions.iter().any(|entry| entry.kind == ActionKind::Redirect);
    !actions.is_empty() && (decides || goes_on || branches)
}

struct Lowering<'r> {
    rule: &'r Rule,
    meters: &'r HashMap<MeterId, u32>,
}

impl Lowering<'_> {
    /// The actions but for the last one, if that is an end; and the end.
    fn lower(&self) -> Result<(Vec<ActionEntry>, Terminal), Refused> {
        let actions = &self.rule.actions;
        let (last, terminal) = match actions.last() {
            Some(Action::Drop) => (actions.len() - 1, Terminal::Drop),
            Some(Action::Trap) => (actions.len() - 1, Terminal::Trap),
            // What is copied last need not be copied.
            Some(Action::Redirect(port) | Action::Mirror(port)) => (actions.len() - 1, Terminal::Redirect(port.0)),
            Some(Action::Goto(chain)) => (actions.len() - 1, Terminal::Goto(*chain)),
            _ => (actions.len(), Terminal::End),
        };
        let measured = actions.iter().filter(|action| matches!(action, Action::Police(_))).count();
        let tracked = actions.iter().filter(|action| matches!(action, Action::Ct(_))).count();
        if last > MAX_ACTIONS || measured > 32 || tracked > MAX_CT_OF_RULE {
            return Err(Refused::TooManyActions);
        }
        let entries = actions[..last].iter().enumerate().map(|(place, action)| {
            let entry = self.one(place, action)?;
            Ok(match action {
                Action::Police(police) => ActionEntry {
                    next: self.control(police.conform, place, last),
                    alternative: self.control(police.exceed, place, last),
                    ..entry
                },
                _ => ActionEntry { next: self.place(place + 1, last), ..entry },
            })
        });
        Ok((entries.collect::<Result<_, Refused>>()?, terminal))
    }

    /// Where the rule goes on at a place of its actions, of which those from `last` on are the terminal.
    fn place(&self, place: usize, last: usize) -> u32 {
        match place {
            place if place < last => place as u32 + 1,
            place if place < self.rule.actions.len() || last == self.rule.actions.len() => next::TERMINAL,
            _ => next::END,
        }
    }

    fn control(&self, control: Control, place: usize, last: usize) -> u32 {
        match control {
            Control::Pipe => self.place(place + 1, last),
            Control::Jump(to) => self.place(to.max(place + 1), last),
            Control::Drop => next::DROP,
        }
    }

    fn one(&self, place: usize, action: &Action) -> Result<ActionEntry, Refused> {
        let tag =
            |tag: &VlanTag| u32::from(tag.tpid) << 16 | u32::from(tag.priority & 7) << 13 | u32::from(tag.id & 0xfff);
        let simple = ActionEntry::new;
        Ok(match action {
            Action::Drop => simple(ActionKind::Drop, 0),
            Action::Trap => simple(ActionKind::Trap, 0),
            Action::Redirect(port) => simple(ActionKind::Redirect, port.0),
            Action::Mirror(port) => simple(ActionKind::Mirror, port.0),
            Action::Goto(chain) => simple(ActionKind::Goto, *chain),
            Action::VlanPush(pushed) => simple(ActionKind::VlanPush, tag(pushed)),
            Action::VlanPop => simple(ActionKind::VlanPop, 0),
            Action::VlanModify { tpid, id, priority } => {
                let arg = tag(&VlanTag { tpid: *tpid, id: *id, priority: priority.unwrap_or(0) });
                ActionEntry { field: priority.is_some().into(), ..simple(ActionKind::VlanModify, arg) }
            }
            Action::Edit(edit) => {
                if edit.field == EditField::EthType {
                    self.nothing_depends(place, action)?;
                }
                ActionEntry::edit(edit)
            }
            Action::Csum(which) => simple(ActionKind::Csum, which.0),
            Action::DecTtl => simple(ActionKind::DecTtl, 0),
            Action::Police(police) => {
                let index = self.meters.get(&police.meter).ok_or(Refused::Unknown)?;
                simple(ActionKind::Police, *index)
            }
            Action::Sample(sample) => {
                let mut entry = simple(ActionKind::Sample, sample.rate.max(1));
                entry.alternative = sample.group;
                entry.value[..4].copy_from_slice(&sample.truncate.unwrap_or(u32::MAX).to_ne_bytes());
                entry
            }
            Action::TunnelSet(_) => {
                self.not_copied(place, action)?;
                simple(ActionKind::TunnelSet, 0)
            }
            Action::TunnelUnset => simple(ActionKind::TunnelUnset, 0),
            Action::Ct(_) => simple(ActionKind::Ct, 0),
            Action::CtClear => simple(ActionKind::CtClear, 0),
        })
    }

    /// Refuses a tunnel for a copy, behind which the frame would go on without it.
    fn not_copied(&self, place: usize, action: &Action) -> Result<(), Refused> {
        let last = self.rule.actions.len() - 1;
        let output = self.rule.actions.iter().enumerate().skip(place).find(|(_, later)| later.port().is_some());
        match output {
            Some((output, before @ Action::Mirror(_))) if output != last => {
                Err(Refused::Before { place, action: name(action), before: name(before) })
            }
            _ => Ok(()),
        }
    }

    /// Refuses actions behind a new EtherType whose outcome the first pass would have to know.
    fn nothing_depends(&self, place: usize, action: &Action) -> Result<(), Refused> {
        let later = &self.rule.actions[place + 1..];
        let depends = |later: &&Action| {
            matches!(
                later,
                Action::Goto(_)
                    | Action::Police(_)
                    | Action::DecTtl
                    | Action::Ct(_)
                    | Action::VlanPop
                    | Action::VlanModify { .. }
            )
        };
        match later.iter().find(depends) {
            Some(before) => Err(Refused::Before { place, action: name(action), before: name(before) }),
            None => Ok(()),
        }
    }
}
