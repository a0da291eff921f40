//! The keys of a flower filter: `dst_ip 10.0.0.0/8 ip_proto tcp …`.

use std::ops::RangeInclusive;

use crate::key::{Field, Key};
use crate::matching::Match;
use crate::parse::is_vlan;
use crate::rule::{Port, Protocol};

use super::values::{self, ethertype, ethertype_word, hex, number_of, u16_of};
use super::{Device, Names, Parsed, Words};

/// How the value of a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Device,
    Mac,
    /// An address of the version whose field this is.
    Address,
    EtherType,
    Protocol,
    /// A number in this base, and its mask in this one.
    Number(u32, u32),
    /// A number, written in hexadecimal.
    Hex(u32, u32),
    /// A word or a number.
    Operation,
    Label,
    /// Flags, each of which is set or not: `+trk-new`.
    CtState,
    /// Flags, each of which is set or not: `frag/nofirstfrag`.
    IpFlags,
    Options,
}

/// The words in the order in which `flower_print_opt` writes them, with the bases that `flower_parse_opt` reads.
const WORDS: &[(&str, Field, Format)] = &[
    ("indev", Field::InPort, Format::Device),
    ("vlan_tpid", Field::VlanTpid, Format::EtherType),
    ("vlan_id", Field::VlanId, Format::Number(10, 0)),
    ("vlan_prio", Field::VlanPrio, Format::Number(10, 0)),
    ("vlan_ethtype", Field::VlanEthType, Format::EtherType),
    ("cvlan_tpid", Field::CvlanTpid, Format::EtherType),
    ("cvlan_id", Field::CvlanId, Format::Number(10, 0)),
    ("cvlan_prio", Field::CvlanPrio, Format::Number(10, 0)),
    ("cvlan_ethtype", Field::CvlanEthType, Format::EtherType),
    ("dst_mac", Field::EthDst, Format::Mac),
    ("src_mac", Field::EthSrc, Format::Mac),
    ("eth_type", Field::EthType, Format::EtherType),
    ("addr_type", Field::AddrType, Format::Number(10, 10)),
    ("ip_proto", Field::IpProto, Format::Protocol),
    ("ip_tos", Field::IpTos, Format::Hex(10, 16)),
    ("ip_ttl", Field::IpTtl, Format::Hex(10, 16)),
    ("dst_ip", Field::Ip4Dst, Format::Address),
    ("dst_ip", Field::Ip6Dst, Format::Address),
    ("src_ip", Field::Ip4Src, Format::Address),
    ("src_ip", Field::Ip6Src, Format::Address),
    ("dst_port", Field::DstPort, Format::Number(10, 0)),
    ("src_port", Field::SrcPort, Format::Number(10, 0)),
    ("tcp_flags", Field::TcpFlags, Format::Hex(16, 16)),
    ("type", Field::IcmpType, Format::Number(10, 10)),
    ("code", Field::IcmpCode, Format::Number(10, 10)),
    ("arp_sip", Field::ArpSip, Format::Address),
    ("arp_tip", Field::ArpTip, Format::Address),
    ("arp_op", Field::ArpOp, Format::Operation),
    ("arp_sha", Field::ArpSha, Format::Mac),
    ("arp_tha", Field::ArpTha, Format::Mac),
    ("enc_addr_type", Field::EncAddrType, Format::Number(10, 10)),
    ("enc_dst_ip", Field::EncIp4Dst, Format::Address),
    ("enc_dst_ip", Field::EncIp6Dst, Format::Address),
    ("enc_src_ip", Field::EncIp4Src, Format::Address),
    ("enc_src_ip", Field::EncIp6Src, Format::Address),
    ("enc_key_id", Field::EncKeyId, Format::Number(10, 0)),
    ("enc_dst_port", Field::EncDstPort, Format::Number(10, 0)),
    ("enc_src_port", Field::EncSrcPort, Format::Number(10, 0)),
    ("enc_tos", Field::EncTos, Format::Hex(10, 16)),
    ("enc_ttl", Field::EncTtl, Format::Hex(10, 16)),
    ("geneve_opts_len", Field::EncOptsLen, Format::Number(10, 0)),
    ("geneve_opts", Field::EncOpts, Format::Options),
    ("ip_flags", Field::IpFlags, Format::IpFlags),
    ("ct_state", Field::CtState, Format::CtState),
    ("ct_zone", Field::CtZone, Format::Number(0, 0)),
    ("ct_mark", Field::CtMark, Format::Hex(0, 0)),
    ("ct_label", Field::CtLabel, Format::Label),
];

/// The flags of a connection in the order of `flower_ct_states`.
const CT_STATES: [(&str, u8); 6] = [
    ("trk", Field::CT_TRACKED),
    ("new", Field::CT_NEW),
    ("est", Field::CT_ESTABLISHED),
    ("rel", Field::CT_RELATED),
    ("inv", Field::CT_INVALID),
    ("rpl", Field::CT_REPLY),
];

/// The flags of IP (`flags_str`).
const IP_FLAGS: [(&str, u8); 2] = [("frag", Field::FRAG), ("firstfrag", Field::FIRST_FRAG)];

/// The words that a key begins with.
pub(super) fn known_words() -> impl Iterator<Item = &'static str> + Clone {
    WORDS.iter().map(|(word, ..)| *word)
}

/// The types that follow from the protocol of the filter and from what stands behind its tags (`fl_set_key`).
fn implied_types(
    protocol: Protocol,
    behind_outer: Option<u16>,
    behind_inner: Option<u16>,
) -> [(Field, Option<u16>); 3] {
    let outermost = match protocol {
        Protocol::Is(outermost) => Some(outermost),
        Protocol::All => None,
    };
    let outer_tag = outermost.filter(|outermost| is_vlan(*outermost));
    let inner_tag = behind_outer.filter(|next| outer_tag.is_some() && is_vlan(*next));
    let last = match (outer_tag, inner_tag) {
        (None, _) => outermost,
        (Some(_), None) => behind_outer,
        (Some(_), Some(_)) => behind_inner,
    };
    [(Field::VlanTpid, outer_tag), (Field::CvlanTpid, inner_tag), (Field::EthType, last)]
}

/// Keys as they are read.
pub(super) struct Keys {
    matches: Match,
    /// The fields that were given, and those of which it was said that any value will do.
    given: Vec<Field>,
}

impl Keys {
    pub(super) fn new() -> Keys {
        Keys { matches: Match::new(), given: Vec::new() }
    }

    /// Reads the value of a key whose word was taken. Returns whether there is such a word.
    pub(super) fn read(&mut self, word: &str, words: &mut Words<'_>, names: &Names<'_>) -> Parsed<bool> {
        let Some((_, field, format)) = WORDS.iter().find(|(own, ..)| *own == word) else { return Ok(false) };
        let text = words.value("a value")?;
        let field = field_of(*field, text);
        if self.given.contains(&field) {
            return Err(words.wrong(format!("{word} is given twice")));
        }
        self.given.push(field);
        if *format == Format::EtherType && text == "any" {
            return Ok(true);
        }
        if let Some(range) = port_range(field, text) {
            let range =
                range.ok_or_else(|| words.wrong("a range of ports goes from a lower to a higher one: 10-20"))?;
            match field {
                Field::SrcPort => self.matches.src_ports = Some(range),
                _ => self.matches.dst_ports = Some(range),
            }
            return Ok(true);
        }
        if field == Field::EncOpts && !text.starts_with("0x") {
            let (value, mask) = options(text).ok_or_else(|| words.wrong(wanted(Format::Options, field)))?;
            self.matches = std::mem::take(&mut self.matches).with_geneve_options(&value, &mask);
            return Ok(true);
        }
        let read = read(field, *format, text, names).ok_or_else(|| words.wrong(wanted(*format, field)))?;
        self.matches = std::mem::take(&mut self.matches).with_masked(field, &read.0[..], &read.1[..]);
        Ok(true)
    }

    /// The match, with the types that the protocol says.
    pub(super) fn finish(mut self, protocol: Protocol) -> Match {
        let next = |field| self.matches.exact(field).map(|number| number as u16);
        for (field, implied) in implied_types(protocol, next(Field::VlanEthType), next(Field::CvlanEthType)) {
            if let Some(ethertype) = implied.filter(|_| !self.given.contains(&field)) {
                self.matches = self.matches.with(field, ethertype);
            }
        }
        self.matches
    }
}

/// The field of IPv6 for an address of IPv6.
fn field_of(field: Field, text: &str) -> Field {
    match field {
        _ if !text.contains(':') => field,
        Field::Ip4Src => Field::Ip6Src,
        Field::Ip4Dst => Field::Ip6Dst,
        Field::EncIp4Src => Field::EncIp6Src,
        Field::EncIp4Dst => Field::EncIp6Dst,
        field => field,
    }
}

/// The range that the text is, if it is one; without a value if it is a wrong one (`parse_range`).
fn port_range(field: Field, text: &str) -> Option<Option<RangeInclusive<u16>>> {
    let (first, last) = text.split_once('-').filter(|_| matches!(field, Field::SrcPort | Field::DstPort))?;
    let ports = u16_of(first, 10).zip(u16_of(last, 10));
    Some(ports.filter(|(first, last)| first <= last).map(|(first, last)| first..=last))
}

/// A value and its mask.
type Masked = (Vec<u8>, Vec<u8>);

fn read(field: Field, format: Format, text: &str, names: &Names<'_>) -> Option<Masked> {
    let size = field.size();
    if format == Format::CtState && text.starts_with(['+', '-']) {
        return flags(text, &CT_STATES);
    }
    if format == Format::IpFlags && !text.starts_with("0x") {
        return fragments(text);
    }
    let (text, mask) = match text.split_once('/') {
        Some((text, mask)) => (text, Some(mask)),
        None => (text, None),
    };
    let value = |text: &str| value_of(field, format, text, names);
    let value = value(text).filter(|value| is_possible(field, value))?;
    let mask = match mask {
        None => vec![0xff; size],
        Some(mask) => mask_of(field, format, mask)?,
    };
    Some((value, mask))
}

/// Whether tc takes the value.
fn is_possible(field: Field, value: &[u8]) -> bool {
    let most: u128 = match field {
        Field::VlanId | Field::CvlanId | Field::TcpFlags => 0x0fff,
        Field::VlanPrio | Field::CvlanPrio => 7,
        Field::ArpOp => 2,
        _ => return true,
    };
    value.iter().fold(0, |number, byte| number << 8 | u128::from(*byte)) <= most
}

fn value_of(field: Field, format: Format, text: &str, names: &Names<'_>) -> Option<Vec<u8>> {
    let size = field.size();
    let last = |number: u128| number.to_be_bytes()[16 - size.min(16)..].to_vec();
    match format {
        Format::Device => match names.find(text)? {
            Device::Port(Port(number)) => Some(last(number.into())),
            Device::Tunnel(_) => None,
        },
        Format::Mac => values::mac(text).map(|mac| mac.to_vec()),
        Format::Address => Some(values::octets(text.parse().ok()?)).filter(|octets| octets.len() == size),
        Format::EtherType => ethertype(text).map(|number| last(number.into())),
        Format::Protocol => values::ip_protocol(text).map(|number| last(number.into())),
        Format::Operation if text == "request" => Some(vec![1]),
        Format::Operation if text == "reply" => Some(vec![2]),
        Format::Operation => number_of(text, 10, size).map(last),
        Format::Number(base, _) if field == Field::DstPort || field == Field::SrcPort => {
            number_of(text, if text.starts_with("0x") { 0 } else { base }, size).map(last)
        }
        Format::Number(base, _) => number_of(text, base, size).map(last),
        // flower_parse_ip_tos_ttl reads a decimal number, and what is none as a hexadecimal one.
        Format::Hex(base, _) => number_of(text, base, size).or_else(|| number_of(text, 16, size)).map(last),
        Format::Label => label(text.strip_prefix("0x").unwrap_or(text)),
        Format::CtState | Format::IpFlags => number_of(text, 0, size).map(last),
        Format::Options => values::bytes(text.strip_prefix("0x")?).filter(|bytes| bytes.len() == size),
    }
}

fn mask_of(field: Field, format: Format, text: &str) -> Option<Vec<u8>> {
    let size = field.size();
    let last = |number: u128| number.to_be_bytes()[16 - size.min(16)..].to_vec();
    match format {
        Format::Mac => match values::number(text, 10) {
            Some(length) => values::prefix(usize::try_from(length).ok()?, size),
            None => values::mac(text).map(|mac| mac.to_vec()),
        },
        Format::Address => match values::number(text, 10) {
            Some(length) => values::prefix(usize::try_from(length).ok()?, size),
            None => Some(values::octets(text.parse().ok()?)).filter(|octets| octets.len() == size),
        },
        Format::Number(_, base) | Format::Hex(_, base) => number_of(text, base, size).map(last),
        Format::Operation => number_of(text, 10, size).map(last),
        Format::Label => label(text.strip_prefix("0x").unwrap_or(text)),
        Format::Options => values::bytes(text.strip_prefix("0x")?).filter(|bytes| bytes.len() == size),
        _ => number_of(text, 0, size).map(last),
    }
}

/// The first bytes of a label, as hexadecimal digits (`flower_parse_ct_labels`).
pub(super) fn label(text: &str) -> Option<Vec<u8>> {
    let mut label = values::bytes(text).filter(|bytes| !bytes.is_empty() && bytes.len() <= 16)?;
    label.resize(16, 0);
    Some(label)
}

fn flags(text: &str, known: &[(&str, u8)]) -> Option<Masked> {
    let (mut value, mut mask) = (0, 0);
    let mut rest = text;
    while !rest.is_empty() {
        let is_set = match rest.as_bytes()[0] {
            b'+' => true,
            b'-' => false,
            _ => return None,
        };
        let (word, flag) = known.iter().find(|(word, _)| rest[1..].starts_with(word))?;
        value |= if is_set { *flag } else { 0 };
        mask |= flag;
        rest = &rest[1 + word.len()..];
    }
    Some((vec![value], vec![mask]))
}

fn fragments(text: &str) -> Option<Masked> {
    let (mut value, mut mask) = (0, 0);
    for word in text.split('/') {
        let (is_set, word) = word.strip_prefix("no").map_or((true, word), |word| (false, word));
        let (_, flag) = IP_FLAGS.iter().find(|(own, _)| *own == word)?;
        value = if is_set { value | flag } else { value & !flag };
        mask |= flag;
    }
    Some((vec![value], vec![mask]))
}

/// Geneve options, each with its mask (`flower_parse_enc_opts_geneve`).
fn options(text: &str) -> Option<Masked> {
    let (mut value, mut mask) = (Vec::new(), Vec::new());
    for word in text.split(',') {
        let (option, own_mask) = word.split_once('/').map_or((word, None), |(option, mask)| (option, Some(mask)));
        let option = values::geneve_option(option)?;
        let mut bits = match own_mask {
            Some(mask) => values::geneve_option(mask).filter(|mask| mask.len() == option.len())?,
            None => vec![0xff; option.len()],
        };
        bits[3] = 0xff;
        value.extend(option);
        mask.extend(bits);
    }
    (value.len() <= Field::EncOpts.size()).then_some((value, mask))
}

/// What must stand as the value of a field.
fn wanted(format: Format, field: Field) -> String {
    let most = match field {
        Field::VlanId | Field::CvlanId => "0 to 4095".into(),
        Field::VlanPrio | Field::CvlanPrio => "0 to 7".into(),
        _ => match field.size() {
            size @ 1..4 => format!("0 to {}", (1u64 << (8 * size)) - 1),
            _ => "of 32 bits".into(),
        },
    };
    match format {
        Format::Device => "the name of a port must stand here".into(),
        Format::Mac => {
            "a MAC address must stand here, as 02:00:00:00:00:01, with a mask or a length behind a / or none".into()
        }
        Format::Address => match field.size() {
            4 => "an address of IPv4 must stand here, as 10.0.0.1 or 10.0.0.0/8".into(),
            _ => "an address of IPv6 must stand here, as 2001:db8::1 or 2001:db8::/32".into(),
        },
        Format::EtherType => "a protocol must stand here: ip, ipv6, arp, 802.1Q, 802.1ad or a number as 0x88b5".into(),
        Format::Protocol => {
            "a protocol of IP must stand here: tcp, udp, sctp, icmp, icmpv6 or a hexadecimal number".into()
        }
        Format::Operation => "request, reply or 0 must stand here".into(),
        Format::Number(10, _) => format!("a decimal number {most} must stand here"),
        Format::Number(..) => format!("a number {most} must stand here"),
        Format::Hex(16, _) => "a hexadecimal number must stand here, as 0x2/0x12".into(),
        Format::Hex(..) => format!("a number {most} must stand here, its mask in hexadecimal"),
        Format::Label => "at most 32 hexadecimal digits must stand here, two for a byte".into(),
        Format::CtState => "flags must stand here, each behind + or -: trk, new, est, rel, inv, rpl".into(),
        Format::IpFlags => "frag, nofrag, firstfrag or nofirstfrag must stand here".into(),
        Format::Options => {
            "options must stand here, as 0102:80:00112233 or 0102:80:00112233/ffff:ff:ffffffff, parted by commas".into()
        }
    }
}

/// The keys of a match in a filter of this protocol.
pub(super) fn show(matches: &Match, protocol: Protocol, names: &Names<'_>) -> Vec<String> {
    let (value, mask) = (matches.value(), matches.mask());
    let next = |field| matches.exact(field).map(|number| number as u16);
    let implied = implied_types(protocol, next(Field::VlanEthType), next(Field::CvlanEthType));
    let versions = implied_versions(mask);
    let mut words = Vec::new();
    for (word, field, format) in WORDS {
        if let Some((_, implied)) = implied.iter().find(|(own, _)| own == field) {
            match (implied, mask.has(*field)) {
                (Some(implied), true) if next(*field) == Some(*implied) => continue,
                (Some(_), false) => {
                    words.push(format!("{word} any"));
                    continue;
                }
                _ => {}
            }
        }
        let in_options = *field == Field::EncOptsLen && show_options(value, mask).is_some();
        let follows =
            in_options || versions.iter().any(|(own, version)| own == field && matches.exact(*own) == *version);
        if mask.has(*field) && !follows {
            words.push(format!("{word} {}", show_value(*field, *format, value, mask, names)));
        }
        let range = match field {
            Field::DstPort => &matches.dst_ports,
            Field::SrcPort => &matches.src_ports,
            _ => &None,
        };
        words.extend(range.as_ref().map(|range| format!("{word} {}-{}", range.start(), range.end())));
    }
    words
}

/// The versions of IP that follow from the addresses in a mask.
fn implied_versions(mask: &Key) -> [(Field, Option<u32>); 2] {
    let version = |v4: [Field; 2], v6: [Field; 2]| {
        let has = |fields: [Field; 2]| fields.into_iter().any(|field| mask.has(field));
        has(v6).then_some(6).or(has(v4).then_some(4))
    };
    [
        (Field::AddrType, version([Field::Ip4Src, Field::Ip4Dst], [Field::Ip6Src, Field::Ip6Dst])),
        (Field::EncAddrType, version([Field::EncIp4Src, Field::EncIp4Dst], [Field::EncIp6Src, Field::EncIp6Dst])),
    ]
}

fn show_value(field: Field, format: Format, key: &Key, mask: &Key, names: &Names<'_>) -> String {
    let (value, bits) = (key.get(field), mask.get(field));
    let number = |bytes: &[u8]| bytes.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte));
    let is_whole = bits.iter().all(|byte| *byte == 0xff);
    let masked = |value: String, mask: String| if is_whole { value } else { format!("{value}/{mask}") };
    match format {
        Format::Device => masked((names.port)(Port(key.number(field))), format!("{:#x}", number(bits))),
        Format::Mac => masked(values::mac_word(value), values::mac_word(bits)),
        Format::Address => {
            let length = values::prefix_length(bits).map(|length| length.to_string());
            masked(values::address(value).to_string(), length.unwrap_or_else(|| values::address(bits).to_string()))
        }
        Format::EtherType => masked(ethertype_word(number(value) as u16), format!("{:#x}", number(bits))),
        Format::Protocol => masked(values::ip_protocol_word(number(value) as u8), format!("{:#x}", number(bits))),
        Format::Operation => match (is_whole, number(value)) {
            (true, 1) => "request".into(),
            (true, 2) => "reply".into(),
            (_, value) => masked(value.to_string(), number(bits).to_string()),
        },
        Format::Number(_, 0) => masked(number(value).to_string(), format!("{:#x}", number(bits))),
        Format::Number(..) => masked(number(value).to_string(), number(bits).to_string()),
        Format::Hex(_, 0) => masked(format!("{:#x}", number(value)), format!("{:#x}", number(bits))),
        Format::Hex(..) => masked(format!("{:#x}", number(value)), format!("{:x}", number(bits))),
        Format::Label => masked(hex(value), hex(bits)),
        Format::CtState if number(bits) < 1 << CT_STATES.len() => {
            let shown = CT_STATES.iter().filter(|(_, flag)| bits[0] & flag != 0);
            shown.map(|(word, flag)| format!("{}{word}", if value[0] & flag != 0 { '+' } else { '-' })).collect()
        }
        Format::IpFlags if number(bits) < 1 << IP_FLAGS.len() => {
            let shown = IP_FLAGS.iter().filter(|(_, flag)| bits[0] & flag != 0);
            let words = shown.map(|(word, flag)| format!("{}{word}", if value[0] & flag != 0 { "" } else { "no" }));
            words.collect::<Vec<_>>().join("/")
        }
        Format::CtState | Format::IpFlags => format!("{:#x}/{:#x}", number(value), number(bits)),
        Format::Options => show_options(key, mask).unwrap_or_else(|| format!("0x{}/0x{}", hex(value), hex(bits))),
    }
}

/// Geneve options in tc's words, if it has words for them.
fn show_options(key: &Key, mask: &Key) -> Option<String> {
    let length = key.number(Field::EncOptsLen) as usize;
    let (value, bits) = (key.get(Field::EncOpts).get(..length)?, mask.get(Field::EncOpts));
    let rest_is_free = bits[length..].iter().all(|byte| *byte == 0) && mask.number(Field::EncOptsLen) == 0xff;
    let ranges = values::geneve_options(value).filter(|ranges| rest_is_free && !ranges.is_empty())?;
    let words: Option<Vec<String>> = ranges
        .into_iter()
        .map(|range| {
            let (option, bits) = (&value[range.clone()], &bits[range]);
            let word = values::geneve_option_word(option);
            match bits.iter().all(|byte| *byte == 0xff) {
                true => Some(word),
                false => (bits[3] == 0xff).then(|| format!("{word}/{}", values::geneve_option_word(bits))),
            }
        })
        .collect();
    Some(words?.join(","))
}
