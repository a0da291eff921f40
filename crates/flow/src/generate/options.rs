//! What is generated: which fields, which kinds of action, how much.

use std::fmt;

use crate::action::{Action, Change, Control, EditField};
use crate::check::Capabilities;
use crate::key::Field;
use crate::rule::Port;
use crate::tunnel::TunnelKind;

/// A set of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FieldSet(u64);

const _: () = assert!(Field::ALL.len() <= 64);

impl FieldSet {
    /// No field.
    pub const NONE: FieldSet = FieldSet(0);
    /// Every field.
    pub const ALL: FieldSet = FieldSet((1 << Field::ALL.len()) - 1);

    /// The set with this field too.
    pub const fn with(self, field: Field) -> FieldSet {
        FieldSet(self.0 | 1 << field as u64)
    }

    /// The set without this field.
    pub const fn without(self, field: Field) -> FieldSet {
        FieldSet(self.0 & !(1 << field as u64))
    }

    /// Whether the field is in the set. [`Field::AddrType`], [`Field::EncAddrType`] and [`Field::EncOptsLen`] follow from
    /// other fields, and are in every set.
    pub const fn has(self, field: Field) -> bool {
        matches!(field, Field::AddrType | Field::EncAddrType | Field::EncOptsLen) || self.0 & 1 << field as u64 != 0
    }
}

impl FromIterator<Field> for FieldSet {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> FieldSet {
        fields.into_iter().fold(FieldSet::NONE, FieldSet::with)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $word:literal;)*) => {
        /// A kind of action, by what a data plane must have for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ActionKind { $($(#[$doc])* $name,)* }

        impl ActionKind {
            /// Every kind.
            pub const ALL: &[ActionKind] = &[$(ActionKind::$name,)*];

            /// A word of at most five letters, for tables.
            pub const fn word(self) -> &'static str {
                match self { $(ActionKind::$name => $word,)* }
            }
        }
    };
}

kinds! {
    /// [`Action::Drop`].
    Drop: "drop";
    /// [`Action::Trap`].
    Trap: "trap";
    /// [`Action::Redirect`].
    Redirect: "redir";
    /// [`Action::Mirror`].
    Mirror: "mirr";
    /// [`Action::Goto`].
    Goto: "goto";
    /// [`Action::VlanPush`].
    VlanPush: "vpush";
    /// [`Action::VlanPop`].
    VlanPop: "vpop";
    /// [`Action::VlanModify`].
    VlanModify: "vmod";
    /// [`Action::Edit`] that sets bits.
    EditSet: "set";
    /// [`Action::Edit`] that adds.
    EditAdd: "add";
    /// [`Action::Csum`].
    Csum: "csum";
    /// [`Action::DecTtl`].
    DecTtl: "ttl";
    /// [`Action::TunnelSet`].
    TunnelSet: "tset";
    /// [`Action::TunnelUnset`].
    TunnelUnset: "tunst";
    /// [`Action::Ct`] that neither commits nor translates.
    Ct: "ct";
    /// [`Action::Ct`] with `commit`.
    CtCommit: "ctcmt";
    /// [`Action::Ct`] with `nat`.
    CtNat: "ctnat";
    /// [`Action::CtClear`].
    CtClear: "ctclr";
    /// [`Action::Police`] without jumps.
    Police: "plc";
    /// [`Action::Police`] with a jump.
    PoliceJump: "jump";
    /// [`Action::Sample`].
    Sample: "smpl";
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A set of kinds of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActionSet(u32);

const _: () = assert!(ActionKind::ALL.len() < 32);

impl ActionSet {
    /// No kind.
    pub const NONE: ActionSet = ActionSet(0);
    /// Every kind.
    pub const ALL: ActionSet = ActionSet((1 << ActionKind::ALL.len()) - 1);

    /// The set with this kind too.
    pub const fn with(self, kind: ActionKind) -> ActionSet {
        ActionSet(self.0 | 1 << kind as u32)
    }

    /// The set without this kind.
    pub const fn without(self, kind: ActionKind) -> ActionSet {
        ActionSet(self.0 & !(1 << kind as u32))
    }

    /// Whether the kind is in the set.
    pub const fn has(self, kind: ActionKind) -> bool {
        self.0 & 1 << kind as u32 != 0
    }

    /// Whether all of these are in the set.
    pub const fn has_all(self, other: ActionSet) -> bool {
        other.0 & !self.0 == 0
    }

    /// The kinds that an action has. A `ct` that commits and translates has two.
    pub fn of(action: &Action) -> ActionSet {
        use ActionKind as K;
        let jumps = |control| matches!(control, Control::Jump(_));
        let kind = match action {
            Action::Drop => K::Drop,
            Action::Trap => K::Trap,
            Action::Redirect(_) => K::Redirect,
            Action::Mirror(_) => K::Mirror,
            Action::Goto(_) => K::Goto,
            Action::VlanPush(_) => K::VlanPush,
            Action::VlanPop => K::VlanPop,
            Action::VlanModify { .. } => K::VlanModify,
            Action::Edit(edit) if matches!(edit.change, Change::Add(_)) => K::EditAdd,
            Action::Edit(_) => K::EditSet,
            Action::Csum(_) => K::Csum,
            Action::DecTtl => K::DecTtl,
            Action::TunnelSet(_) => K::TunnelSet,
            Action::TunnelUnset => K::TunnelUnset,
            Action::Ct(ct) => {
                let commit = ActionSet(u32::from(ct.commit) << K::CtCommit as u32);
                let nat = ActionSet(u32::from(ct.nat.is_some()) << K::CtNat as u32);
                return match ActionSet(commit.0 | nat.0) {
                    ActionSet::NONE => ActionSet::NONE.with(K::Ct),
                    kinds => kinds,
                };
            }
            Action::CtClear => K::CtClear,
            Action::Police(police) if jumps(police.conform) || jumps(police.exceed) => K::PoliceJump,
            Action::Police(_) => K::Police,
            Action::Sample(_) => K::Sample,
        };
        ActionSet::NONE.with(kind)
    }

    /// The kinds that the actions of a rule have.
    pub fn of_all(actions: &[Action]) -> ActionSet {
        ActionSet(actions.iter().fold(0, |kinds, action| kinds | ActionSet::of(action).0))
    }

    /// The kinds in the set.
    pub fn iter(self) -> impl Iterator<Item = ActionKind> {
        ActionKind::ALL.iter().copied().filter(move |kind| self.has(*kind))
    }
}

impl FromIterator<ActionKind> for ActionSet {
    fn from_iter<I: IntoIterator<Item = ActionKind>>(kinds: I) -> ActionSet {
        kinds.into_iter().fold(ActionSet::NONE, ActionSet::with)
    }
}

/// What is generated, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The fields that a rule may match on.
    pub fields: FieldSet,
    /// Whether a rule may match on a range of ports (if it may on [`Field::SrcPort`] or [`Field::DstPort`]).
    pub port_ranges: bool,
    /// Whether masks may have any bits. Without it, a field counts as a whole, and an address by a prefix.
    pub any_masks: bool,
    /// The kinds of action. Without any that says what becomes of a frame, no rule is generated.
    pub actions: ActionSet,
    /// The fields that are rewritten.
    pub edits: Vec<EditField>,
    /// The tunnels that end in devices and that frames are sent into.
    pub tunnels: Vec<TunnelKind>,
    /// Whether there is a shared block.
    pub shared_blocks: bool,
    /// The uplink.
    pub uplink: Port,
    /// How many vports there are: ports 1 to this.
    pub vports: u32,
    /// How many rules are tried. Some of them are refused.
    pub rules: usize,
    /// How many masks are in use.
    pub masks: usize,
    /// How many chains there are: 0 to this less one.
    pub chains: u32,
    /// How many priorities are used in a chain.
    pub priorities: u32,
    /// How many meters there are, which rules share: 1 to this.
    pub meters: u32,
    /// Whether some meters have no rate but an MTU ([`crate::Rate::Mtu`]). By default none has.
    pub mtu_meters: bool,
    /// Of 100 rules, how many are made without caring whether the card accepts them.
    pub reckless: usize,
    /// Of 100 frames, how many are cut, damaged or of any bytes.
    pub hostile: usize,
    /// What the card can do.
    pub capabilities: Capabilities,
}

impl Default for Options {
    /// Everything, in tables of 40 rules.
    fn default() -> Options {
        Options {
            fields: FieldSet::ALL,
            port_ranges: true,
            any_masks: true,
            actions: ActionSet::ALL,
            edits: EditField::ALL.to_vec(),
            tunnels: vec![TunnelKind::Vxlan, TunnelKind::Geneve, TunnelKind::Gre],
            shared_blocks: true,
            uplink: Port(0xffff),
            vports: 4,
            rules: 40,
            masks: 24,
            chains: 4,
            priorities: 12,
            meters: 3,
            mtu_meters: false,
            reckless: 8,
            hostile: 20,
            capabilities: Capabilities::everything(),
        }
    }
}

impl Options {
    /// The ports, the uplink first.
    pub fn ports(&self) -> Vec<Port> {
        std::iter::once(self.uplink).chain((1..=self.vports).map(Port)).collect()
    }

    /// Everything that a card like mlx5 accepts.
    pub fn like_mlx5() -> Options {
        Options { capabilities: Capabilities::connectx(), ..Options::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Ct;

    #[test]
    fn a_set_has_what_was_put_in() {
        let set: FieldSet = [Field::VlanId, Field::CtLabel].into_iter().collect();
        assert!(set.has(Field::VlanId) && set.has(Field::CtLabel) && !set.has(Field::VlanPrio));
        assert!(!set.without(Field::VlanId).has(Field::VlanId));
        assert!(Field::ALL.iter().all(|field| FieldSet::ALL.has(*field)));
        assert_eq!(ActionSet::ALL.iter().count(), ActionKind::ALL.len());
    }

    #[test]
    fn a_ct_that_commits_is_of_that_kind() {
        let ct = |commit| ActionSet::of(&Action::Ct(Ct { commit, ..Ct::default() }));
        assert_eq!(ct(false), ActionSet::NONE.with(ActionKind::Ct));
        assert_eq!(ct(true), ActionSet::NONE.with(ActionKind::CtCommit));
    }
}
