//! The keys of flower: what it is asked for as attributes, and as fields of a flow rule (`net/sched/cls_flower.c`).

use flow::{Field, Match, Protocol};
use netlink::{Errno, attributes};
use serde::{Deserialize, Serialize};

use crate::attributes::Attr;
use crate::numbers::flower as number;
use crate::refusal::Refusal;

/// What a filter matches, in the kernel's attributes: each key with its mask, where it has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keys {
    /// The attributes, in the order in which the kernel shows them.
    attributes: Vec<Attr>,
}

/// How the bytes of an attribute stand for those of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As they are: in network byte order.
    Network,
    /// A number in the host's byte order, of two or four bytes.
    Host,
    /// TCA_FLOWER_KEY_FLAGS: four bytes in network byte order, of which the last counts.
    Flags,
    /// TCA_FLOWER_KEY_CT_STATE: two bytes in the host's byte order, of which the lower one counts.
    State,
    /// An EtherType, of which there is one for each tag: see [`ethertypes`].
    EtherType,
    /// There is no field for it.
    None,
}

/// A key of flower.
struct Known {
    key: u16,
    /// The attribute of its mask; 0 if it has none.
    mask: u16,
    /// Bytes of the key, and of its mask.
    size: usize,
    form: Form,
    field: Option<Field>,
}

const fn known(key: u16, mask: u16, size: usize, form: Form, field: Field) -> Known {
    Known { key, mask, size, form, field: Some(field) }
}

/// A key that the card does not know.
const fn foreign(key: u16, mask: u16, size: usize) -> Known {
    Known { key, mask, size, form: Form::None, field: None }
}

/// An EtherType.
const fn ethertype(key: u16) -> Known {
    Known { key, mask: 0, size: 2, form: Form::EtherType, field: None }
}

/// Every key, in the order of `fl_dump_key`, with the lengths of `fl_policy`.
const KNOWN: &[Known] = &[
    known(4, 5, 6, Form::Network, Field::EthDst),
    known(6, 7, 6, Form::Network, Field::EthSrc),
    ethertype(number::ETH_TYPE),
    // MPLS: TTL, BOS, TC, LABEL.
    foreign(67, 0, 1),
    foreign(68, 0, 1),
    foreign(69, 0, 1),
    foreign(70, 0, 4),
    known(number::VLAN_ID, 0, 2, Form::Host, Field::VlanId),
    known(number::VLAN_PRIO, 0, 1, Form::Network, Field::VlanPrio),
    known(number::CVLAN_ID, 0, 2, Form::Host, Field::CvlanId),
    known(number::CVLAN_PRIO, 0, 1, Form::Network, Field::CvlanPrio),
    ethertype(number::VLAN_ETH_TYPE),
    ethertype(number::CVLAN_ETH_TYPE),
    known(9, 0, 1, Form::Network, Field::IpProto),
    known(73, 74, 1, Form::Network, Field::IpTos),
    known(75, 76, 1, Form::Network, Field::IpTtl),
    known(10, 11, 4, Form::Network, Field::Ip4Src),
    known(12, 13, 4, Form::Network, Field::Ip4Dst),
    known(14, 15, 16, Form::Network, Field::Ip6Src),
    known(16, 17, 16, Form::Network, Field::Ip6Dst),
    // TCP.
    known(18, 35, 2, Form::Network, Field::SrcPort),
    known(19, 36, 2, Form::Network, Field::DstPort),
    known(71, 72, 2, Form::Network, Field::TcpFlags),
    // UDP.
    known(20, 37, 2, Form::Network, Field::SrcPort),
    known(21, 38, 2, Form::Network, Field::DstPort),
    // SCTP.
    known(41, 39, 2, Form::Network, Field::SrcPort),
    known(42, 40, 2, Form::Network, Field::DstPort),
    // ICMP.
    known(51, 52, 1, Form::Network, Field::IcmpType),
    known(49, 50, 1, Form::Network, Field::IcmpCode),
    // ICMPv6.
    known(55, 56, 1, Form::Network, Field::IcmpType),
    known(53, 54, 1, Form::Network, Field::IcmpCode),
    known(57, 58, 4, Form::Network, Field::ArpSip),
    known(59, 60, 4, Form::Network, Field::ArpTip),
    known(61, 62, 1, Form::Network, Field::ArpOp),
    known(63, 64, 6, Form::Network, Field::ArpSha),
    known(65, 66, 6, Form::Network, Field::ArpTha),
    // Ranges of ports: see `Keys::matches`.
    foreign(number::PORT_SRC_MIN, 0, 2),
    foreign(number::PORT_SRC_MAX, 0, 2),
    foreign(number::PORT_DST_MIN, 0, 2),
    foreign(number::PORT_DST_MAX, 0, 2),
    known(27, 28, 4, Form::Network, Field::EncIp4Src),
    known(29, 30, 4, Form::Network, Field::EncIp4Dst),
    known(31, 32, 16, Form::Network, Field::EncIp6Src),
    known(33, 34, 16, Form::Network, Field::EncIp6Dst),
    known(26, 0, 4, Form::Network, Field::EncKeyId),
    known(43, 44, 2, Form::Network, Field::EncSrcPort),
    known(45, 46, 2, Form::Network, Field::EncDstPort),
    known(80, 81, 1, Form::Network, Field::EncTos),
    known(82, 83, 1, Form::Network, Field::EncTtl),
    known(number::CT_STATE, number::CT_STATE_MASK, 2, Form::State, Field::CtState),
    known(93, 94, 2, Form::Host, Field::CtZone),
    known(95, 96, 4, Form::Host, Field::CtMark),
    known(CT_LABELS, 98, 16, Form::Network, Field::CtLabel),
    known(number::KEY_FLAGS, number::KEY_FLAGS_MASK, 4, Form::Flags, Field::IpFlags),
    // HASH, NUM_OF_VLANS, PPPOE_SID, PPP_PROTO, L2TPV3_SID.
    foreign(100, 101, 4),
    foreign(102, 0, 1),
    foreign(103, 0, 2),
    foreign(104, 0, 2),
    foreign(105, 0, 4),
];

/// TCA_FLOWER_KEY_CT_LABELS
const CT_LABELS: u16 = 97;

/// The bits of TCA_FLOWER_KEY_FLAGS that stand for a field: fragments.
const FRAGMENTS: u8 = Field::FRAG | Field::FIRST_FRAG;

impl Keys {
    /// Reads the keys among the attributes of flower.
    ///
    /// # Errors
    /// An attribute has a wrong length, or what flower refuses.
    pub fn read(options: &[u8]) -> Result<Keys, Refusal> {
        let find =
            |kind| if kind == 0 { None } else { attributes(options).flatten().filter(|a| a.kind == kind).last() };
        let mut keys = Keys::default();
        for known in KNOWN {
            let (Some(key), mask) = (find(known.key), find(known.mask)) else { continue };
            // Labels may be shorter (NLA_BINARY).
            let whole = |value: &[u8]| match value.get(..known.size) {
                Some(whole) => Ok(whole.to_vec()),
                None if known.key == CT_LABELS => Ok([value, &vec![0; known.size - value.len()]].concat()),
                None => Err(Refusal::new(Errno::RANGE, "Attribute failed policy validation")),
            };
            let mask = mask.map(|mask| whole(mask.value)).transpose()?;
            if known.key == number::KEY_FLAGS && mask.is_none() {
                return Err(Refusal::new(Errno::INVAL, "Missing flags mask"));
            }
            keys.attributes.push((known.key, whole(key.value)?));
            if known.mask != 0 {
                keys.attributes.push((known.mask, mask.unwrap_or_else(|| vec![0xff; known.size])));
            }
        }
        for kind in [number::ENC_OPTS, number::ENC_OPTS_MASK] {
            keys.attributes.extend(find(kind).map(|attribute| (kind, attribute.value.to_vec())));
        }
        keys.check()?;
        Ok(keys)
    }

    /// Refuses what `fl_set_key` and `fl_validate_ct_state` refuse.
    fn check(&self) -> Result<(), Refusal> {
        let invalid = |why| Err(Refusal::new(Errno::INVAL, why));
        for (min, max, which) in [
            (
                number::PORT_SRC_MIN,
                number::PORT_SRC_MAX,
                "Invalid source port range (min must be strictly smaller than max)",
            ),
            (
                number::PORT_DST_MIN,
                number::PORT_DST_MAX,
                "Invalid destination port range (min must be strictly smaller than max)",
            ),
        ] {
            if let Some((min, max)) = self.port(min).zip(self.port(max))
                && min >= max
            {
                return invalid(which);
            }
        }
        if let Some(state) = self.get(number::CT_STATE) {
            let mask = self.get(number::CT_STATE_MASK).unwrap_or(&[0xff, 0xff]);
            let bits = state.first().copied().unwrap_or(0) & mask.first().copied().unwrap_or(0);
            if bits != 0 && bits & Field::CT_TRACKED == 0 {
                return invalid("ct_state no trk, no other flag are set");
            }
            if bits & Field::CT_NEW != 0 && bits & Field::CT_ESTABLISHED != 0 {
                return invalid("ct_state new and est are mutually exclusive");
            }
            if bits & Field::CT_INVALID != 0 && bits & !(Field::CT_TRACKED | Field::CT_INVALID) != 0 {
                return invalid("when inv is set, only trk may be set");
            }
            if bits & Field::CT_NEW != 0 && bits & Field::CT_REPLY != 0 {
                return invalid("new and rpl are mutually exclusive");
            }
        }
        Ok(())
    }

    /// The value of an attribute.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(own, _)| *own == kind).map(|(_, value)| &value[..])
    }

    /// The attributes as the kernel shows them: keys with a mask of nothing are left out, and ETH_TYPE is the type behind all
    /// tags (`fl_dump_key`).
    pub fn shown(&self) -> Vec<Attr> {
        let is_empty = |kind: u16| self.get(kind).is_some_and(|mask| mask.iter().all(|byte| *byte == 0));
        let mut shown = self.attributes.clone();
        shown.retain(|(kind, _)| {
            let known = KNOWN.iter().find(|known| known.mask != 0 && (known.key == *kind || known.mask == *kind));
            *kind != number::ETH_TYPE && known.is_none_or(|known| !is_empty(known.mask))
        });
        let types = [number::ETH_TYPE, number::VLAN_ETH_TYPE, number::CVLAN_ETH_TYPE];
        let last = types.into_iter().filter_map(|kind| self.ethertype(kind)).next_back();
        if let Some(last) = last.filter(|last| !is_tag(*last)) {
            shown.insert(0, (number::ETH_TYPE, last.to_be_bytes().to_vec()));
        }
        shown
    }

    fn ethertype(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(kind)?.first_chunk()?))
    }

    fn port(&self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(*self.get(kind)?.first_chunk()?))
    }

    /// The same as what a flow rule matches. `protocol`: that of the filter.
    ///
    /// # Errors
    /// EOPNOTSUPP: the card cannot match on a key.
    pub fn matches(&self, protocol: Protocol) -> Result<Match, Refusal> {
        let mut matches = Match::new();
        for known in KNOWN {
            let Some(value) = self.get(known.key) else { continue };
            let mask = self.get(known.mask).map(<[u8]>::to_vec).unwrap_or_else(|| vec![0xff; known.size]);
            if mask.iter().all(|byte| *byte == 0) {
                continue;
            }
            let Some(field) = known.field else {
                match known.form {
                    Form::EtherType => continue,
                    _ if (number::PORT_SRC_MIN..=number::PORT_DST_MAX).contains(&known.key) => continue,
                    _ => return Err(Refusal::unsupported("Unsupported key")),
                }
            };
            let last = |bytes: &[u8]| bytes.last().copied().unwrap_or(0);
            let first = |bytes: &[u8]| bytes.first().copied().unwrap_or(0);
            matches = match known.form {
                Form::Flags => {
                    if mask[..3].iter().any(|byte| *byte != 0) || last(&mask) & !FRAGMENTS != 0 {
                        return Err(Refusal::unsupported("Unsupported key"));
                    }
                    matches.with_masked(field, last(value), last(&mask))
                }
                Form::State => {
                    // The first byte of the host's number, on a machine that has the lower one first.
                    let (value, mask) = (low(value, first), low(&mask, first));
                    matches.with_masked(field, value, mask)
                }
                Form::Host => {
                    let swapped = |bytes: &[u8]| {
                        let mut bytes = bytes.to_vec();
                        if cfg!(target_endian = "little") {
                            bytes.reverse();
                        }
                        bytes
                    };
                    matches.with_masked(field, &swapped(value)[..], &swapped(&mask)[..])
                }
                Form::Network | Form::EtherType | Form::None => matches.with_masked(field, value, &mask[..]),
            };
        }
        matches = self.with_ethertypes(matches, protocol);
        if let Some((min, max)) = self.port(number::PORT_SRC_MIN).zip(self.port(number::PORT_SRC_MAX)) {
            matches = matches.with_src_ports(min..=max);
        }
        if let Some((min, max)) = self.port(number::PORT_DST_MIN).zip(self.port(number::PORT_DST_MAX)) {
            matches = matches.with_dst_ports(min..=max);
        }
        if let Some(options) = self.get(number::ENC_OPTS) {
            let (options, masks) = (geneve(options)?, self.get(number::ENC_OPTS_MASK).map(geneve).transpose()?);
            let masks = masks.unwrap_or_else(|| vec![0xff; options.len()]);
            matches = matches.with_geneve_options(&options, &masks);
        }
        Ok(matches)
    }

    /// EtherTypes, as `fl_set_key` takes them: that of a VLAN tag is the tag's, and what follows is behind it.
    fn with_ethertypes(&self, matches: Match, protocol: Protocol) -> Match {
        let outer = match (self.ethertype(number::ETH_TYPE), protocol) {
            (Some(outer), _) => outer,
            (None, Protocol::Is(outer)) if is_tag(outer) => outer,
            _ => return matches,
        };
        if !is_tag(outer) {
            return matches.with(Field::EthType, outer);
        }
        let matches = matches.with(Field::VlanTpid, outer);
        match self.ethertype(number::VLAN_ETH_TYPE) {
            None => matches,
            Some(inner) if is_tag(inner) => {
                let matches = matches.with(Field::VlanEthType, inner).with(Field::CvlanTpid, inner);
                match self.ethertype(number::CVLAN_ETH_TYPE) {
                    Some(innermost) => matches.with(Field::EthType, innermost),
                    None => matches,
                }
            }
            Some(inner) => matches.with(Field::EthType, inner),
        }
    }
}

/// Whether a type is that of a VLAN tag.
fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8)
}

/// The lower byte of a number of two bytes in the host's order.
fn low(bytes: &[u8], first: impl Fn(&[u8]) -> u8) -> u8 {
    if cfg!(target_endian = "little") { first(bytes) } else { bytes.get(1).copied().unwrap_or(0) }
}

/// Geneve options as they stand in a frame, out of TCA_FLOWER_KEY_ENC_OPTS or TCA_TUNNEL_KEY_ENC_OPTS.
///
/// # Errors
/// EOPNOTSUPP: they are another tunnel's.
pub(crate) fn geneve(options: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    for option in attributes(options).flatten() {
        if option.kind != number::OPTS_GENEVE {
            return Err(Refusal::unsupported("Matching on other tunnel options than Geneve's is not supported"));
        }
        let of = |kind| option.nested().flatten().find(|attribute| attribute.kind == kind);
        let class = of(number::GENEVE_CLASS).map_or(&[0, 0][..], |class| class.value);
        let kind = of(number::GENEVE_TYPE).and_then(|kind| kind.u8()).unwrap_or(0);
        let data = of(number::GENEVE_DATA).map_or(&[][..], |data| data.value);
        bytes.extend_from_slice(class.first_chunk::<2>().unwrap_or(&[0, 0]));
        bytes.extend_from_slice(&[kind, (data.len() / 4) as u8 & 0x1f]);
        bytes.extend_from_slice(&data[..data.len() / 4 * 4]);
    }
    Ok(bytes)
}
