//! What has been tried of what the rules can say.

use std::fmt;

use crate::key::Field;
use crate::pipeline::Verdict;
use crate::table::Tables;

use super::options::{ActionKind, ActionSet, Options};

/// What a rule can match on: a field, or a range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Aspect {
    /// A field with any mask.
    Field(Field),
    /// A range of source ports.
    SrcRange,
    /// A range of destination ports.
    DstRange,
}

impl Aspect {
    /// Every aspect.
    pub fn all() -> impl Iterator<Item = Aspect> {
        let fields = Field::ALL.iter().copied().map(Aspect::Field);
        fields.chain([Aspect::SrcRange, Aspect::DstRange])
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aspect::Field(field) => write!(f, "{field:?}"),
            Aspect::SrcRange => f.write_str("SrcPort range"),
            Aspect::DstRange => f.write_str("DstPort range"),
        }
    }
}

/// In how many frames a rule matched that asks for a field and has an action, for each field and kind of action.
///
/// A frame that missed in the end does not count. [`fmt::Display`] writes a table: `-` is what was not seen yet, and a
/// blank is what cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    options: Options,
    counts: Vec<[u64; ActionKind::ALL.len()]>,
    /// The frames that were noted.
    pub frames: u64,
    /// Those that a rule matched, and that did not miss.
    pub hits: u64,
}

impl Coverage {
    /// Nothing seen yet, of what these options make.
    pub fn new(options: &Options) -> Coverage {
        let counts = vec![[0; ActionKind::ALL.len()]; Aspect::all().count()];
        Coverage { options: options.clone(), counts, frames: 0, hits: 0 }
    }

    /// Notes what became of a frame. The tables are those that gave the verdict.
    pub fn note(&mut self, tables: &Tables, verdict: &Verdict) {
        self.frames += 1;
        self.hits += u64::from(!verdict.counted.is_empty());
        for rule in verdict.counted.iter().filter_map(|id| tables.rule(*id)) {
            let kinds = ActionSet::of_all(&rule.actions);
            let asked = |aspect: Aspect| match aspect {
                Aspect::Field(field) => rule.matches.mask().has(field),
                Aspect::SrcRange => rule.matches.src_ports.is_some(),
                Aspect::DstRange => rule.matches.dst_ports.is_some(),
            };
            for (row, _) in self.counts.iter_mut().zip(Aspect::all()).filter(|(_, aspect)| asked(*aspect)) {
                kinds.iter().for_each(|kind| row[kind as usize] += 1);
            }
        }
    }

    /// Adds what another one, of the same options, has seen.
    pub fn merge(&mut self, other: &Coverage) {
        (self.frames, self.hits) = (self.frames + other.frames, self.hits + other.hits);
        let cells = self.counts.iter_mut().flatten();
        cells.zip(other.counts.iter().flatten()).for_each(|(own, other)| *own += other);
    }

    /// In how many frames a rule matched with this and that.
    pub fn count(&self, aspect: Aspect, kind: ActionKind) -> u64 {
        Aspect::all().position(|own| own == aspect).map_or(0, |row| self.counts[row][kind as usize])
    }

    /// What can be and was not seen.
    pub fn missing(&self) -> Vec<(Aspect, ActionKind)> {
        let cells = Aspect::all().flat_map(|aspect| ActionKind::ALL.iter().map(move |kind| (aspect, *kind)));
        cells.filter(|(aspect, kind)| self.is_possible(*aspect, *kind) && self.count(*aspect, *kind) == 0).collect()
    }

    /// Whether such a rule can be generated and be accepted.
    pub fn is_possible(&self, aspect: Aspect, kind: ActionKind) -> bool {
        self.options.actions.has(kind) && self.is_asked(aspect) && !self.excludes(aspect, kind)
    }

    fn is_asked(&self, aspect: Aspect) -> bool {
        use Field as F;
        let fields = self.options.fields;
        let has = |needed: &[F]| needed.iter().all(|field| fields.has(*field));
        let like_mlx5 = self.options.capabilities.like_mlx5;
        let ranges = self.options.port_ranges && !like_mlx5 && has(&[F::EthType, F::IpProto]);
        match aspect {
            Aspect::SrcRange => ranges && has(&[F::SrcPort]),
            Aspect::DstRange => ranges && has(&[F::DstPort]),
            Aspect::Field(field) => {
                let of_tunnel = (F::EncKeyId..=F::EncOpts).contains(&field);
                let needs: &[F] = match field {
                    F::VlanId | F::VlanPrio | F::VlanEthType | F::CvlanTpid => &[F::VlanTpid],
                    F::CvlanId | F::CvlanPrio | F::CvlanEthType => &[F::VlanTpid, F::CvlanTpid],
                    F::ArpOp | F::ArpSip | F::ArpTip | F::ArpSha | F::ArpTha => &[F::EthType],
                    F::Ip4Src | F::Ip4Dst | F::Ip6Src | F::Ip6Dst => &[F::EthType],
                    F::IpProto | F::IpTos | F::IpTtl | F::IpFlags => &[F::EthType],
                    F::SrcPort | F::DstPort | F::TcpFlags | F::IcmpType | F::IcmpCode => &[F::EthType, F::IpProto],
                    F::EncOptsLen => &[F::EncOpts],
                    _ => &[],
                };
                let one_of: &[F] = match field {
                    F::AddrType => &[F::Ip4Src, F::Ip4Dst, F::Ip6Src, F::Ip6Dst],
                    F::EncAddrType => &[F::EncIp4Src, F::EncIp4Dst, F::EncIp6Src, F::EncIp6Dst],
                    _ => &[],
                };
                let known = one_of.is_empty() || one_of.iter().any(|field| self.is_asked(Aspect::Field(*field)));
                fields.has(field)
                    && has(needs)
                    && known
                    && !(of_tunnel && self.options.tunnels.is_empty())
                    && !(like_mlx5 && (F::ArpOp..=F::ArpTha).contains(&field))
            }
        }
    }

    /// Whether no rule has both.
    fn excludes(&self, aspect: Aspect, kind: ActionKind) -> bool {
        let options = &self.options;
        let is_arp = matches!(aspect, Aspect::Field(field) if (Field::ArpOp..=Field::ArpTha).contains(&field));
        match kind {
            ActionKind::DecTtl => is_arp || !options.fields.has(Field::EthType),
            ActionKind::VlanModify => !options.fields.has(Field::VlanTpid),
            ActionKind::TunnelSet | ActionKind::TunnelUnset => options.tunnels.is_empty(),
            ActionKind::Goto => options.chains == 0,
            ActionKind::Police | ActionKind::PoliceJump => options.meters == 0,
            ActionKind::EditSet | ActionKind::EditAdd => options.edits.is_empty(),
            ActionKind::Csum => options.capabilities.like_mlx5 && options.edits.is_empty(),
            ActionKind::Sample => options.capabilities.like_mlx5 && aspect == Aspect::Field(Field::CtState),
            _ => false,
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14}", "")?;
        ActionKind::ALL.iter().try_for_each(|kind| write!(f, " {kind:>5}"))?;
        writeln!(f)?;
        for aspect in Aspect::all() {
            write!(f, "{:<14}", aspect.to_string())?;
            for kind in ActionKind::ALL {
                let cell = match self.count(aspect, *kind) {
                    0 if self.is_possible(aspect, *kind) => "-".to_owned(),
                    0 => String::new(),
                    count @ ..100_000 => count.to_string(),
                    count @ ..10_000_000 => format!("{}k", count / 1000),
                    count => format!("{}M", count / 1_000_000),
                };
                write!(f, " {cell:>5}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "{} of {} frames matched a rule; {} cells missing", self.hits, self.frames, self.missing().len())
    }
}
