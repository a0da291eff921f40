//! Values as they are written: numbers, addresses, types, rates, sizes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::key::Mac;

/// A number as `strtoul` reads it in this base; in base 0 its beginning says it, as in C (`get_u32` of iproute2).
pub(super) fn number(word: &str, base: u32) -> Option<u128> {
    let hexadecimal = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    let (digits, base) = match (base, hexadecimal) {
        (0 | 16, Some(digits)) => (digits, 16),
        (0, None) if word.len() > 1 && word.starts_with('0') => (&word[1..], 8),
        (0, None) => (word, 10),
        (base, _) => (word, base),
    };
    if digits.starts_with('+') {
        return None;
    }
    u128::from_str_radix(digits, base).ok()
}

/// A number that fits into so many bytes.
pub(super) fn number_of(word: &str, base: u32, size: usize) -> Option<u128> {
    number(word, base).filter(|number| size >= 16 || *number < 1 << (8 * size))
}

macro_rules! sized {
    ($($name:ident: $type:ty;)*) => {$(
        /// A number of that size in this base.
        pub(super) fn $name(word: &str, base: u32) -> Option<$type> {
            <$type>::try_from(number(word, base)?).ok()
        }
    )*};
}
sized! { u8_of: u8; u16_of: u16; u32_of: u32; }

/// Hexadecimal digits, two for a byte.
pub(super) fn bytes(word: &str) -> Option<Vec<u8>> {
    let is_even = word.len().is_multiple_of(2) && word.bytes().all(|digit| digit.is_ascii_hexdigit());
    let pairs = word.as_bytes().chunks(2);
    is_even.then(|| pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect())
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A MAC address.
pub(super) fn mac(word: &str) -> Option<Mac> {
    let octets: Vec<u8> = word
        .split(':')
        .map(|part| match part.len() {
            1 | 2 => u8_of(part, 16).filter(|_| !part.starts_with("0x")),
            _ => None,
        })
        .collect::<Option<_>>()?;
    octets.try_into().ok()
}

/// A MAC address as it is written.
pub(super) fn mac_word(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// The bytes of an address.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The address with these bytes, which are 4 or 16.
pub(super) fn address(octets: &[u8]) -> IpAddr {
    match <[u8; 16]>::try_from(octets) {
        Ok(octets) => Ipv6Addr::from(octets).into(),
        Err(_) => Ipv4Addr::from(<[u8; 4]>::try_from(octets).unwrap_or_default()).into(),
    }
}

/// So many bits, and then zeros.
pub(super) fn prefix(length: usize, size: usize) -> Option<Vec<u8>> {
    let bits = |at: usize| length.saturating_sub(at * 8).min(8) as u32;
    (length <= size * 8).then(|| (0..size).map(|at| !0xffu8.checked_shr(bits(at)).unwrap_or(0)).collect())
}

/// How many bits a mask has, if they are its first.
pub(super) fn prefix_length(mask: &[u8]) -> Option<usize> {
    let length = mask.iter().map(|byte| byte.count_ones() as usize).sum();
    (prefix(length, mask.len())? == mask).then_some(length)
}

/// EtherTypes by name (`llproto_names` in `lib/ll_proto.c`); the first name of a type is written.
const ETHERTYPES: [(&str, u16); 13] = [
    ("ip", 0x0800),
    ("ipv4", 0x0800),
    ("ipv6", 0x86dd),
    ("arp", 0x0806),
    ("rarp", 0x8035),
    ("802.1Q", 0x8100),
    ("802.1ad", 0x88a8),
    ("802_3", 0x0001),
    ("802_2", 0x0004),
    ("mpls_uc", 0x8847),
    ("mpls_mc", 0x8848),
    ("teb", 0x6558),
    ("LLDP", 0x88cc),
];

/// An EtherType, by name in any case or as a number.
pub(super) fn ethertype(word: &str) -> Option<u16> {
    let named = ETHERTYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    named.map(|(_, ethertype)| *ethertype).or_else(|| u16_of(word, 0))
}

/// An EtherType as it is written.
pub(super) fn ethertype_word(ethertype: u16) -> String {
    let named = ETHERTYPES.iter().find(|(_, own)| *own == ethertype);
    named.map_or_else(|| format!("{ethertype:#06x}"), |(name, _)| (*name).into())
}

/// Protocols of IP by name (`flower_parse_ip_proto`).
const PROTOCOLS: [(&str, u8); 8] =
    [("tcp", 6), ("udp", 17), ("sctp", 132), ("icmp", 1), ("icmpv6", 58), ("l2tp", 115), ("esp", 50), ("ah", 51)];

/// A protocol of IP, by name or as a hexadecimal number.
pub(super) fn ip_protocol(word: &str) -> Option<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == word);
    named.map(|(_, protocol)| *protocol).or_else(|| u8_of(word, 16))
}

/// A protocol of IP as it is written.
pub(super) fn ip_protocol_word(protocol: u8) -> String {
    let named = PROTOCOLS.iter().find(|(_, own)| *own == protocol);
    named.map_or_else(|| format!("{protocol:x}"), |(name, _)| (*name).into())
}

/// A number with a suffix of these, whose factor is a fraction.
fn scaled(word: &str, suffixes: &[(&str, u64, u64)]) -> Option<u64> {
    let end = word.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(word.len());
    let (digits, suffix) = word.split_at(end);
    let (_, factor, divisor) = suffixes.iter().find(|(name, ..)| name.eq_ignore_ascii_case(suffix))?;
    if let Ok(whole) = digits.parse::<u128>() {
        return u64::try_from(whole.checked_mul((*factor).into())? / u128::from(*divisor)).ok();
    }
    let value = digits.parse::<f64>().ok()? * *factor as f64 / *divisor as f64;
    (value.is_finite() && value < u64::MAX as f64).then_some(value as u64)
}

/// A rate in bytes a second (`get_rate64` in `lib/utils_math.c`).
pub(super) fn rate(word: &str) -> Option<u64> {
    const KIBI: u64 = 1 << 10;
    const KILO: u64 = 1000;
    scaled(
        word,
        &[
            ("", 1, 8),
            ("bit", 1, 8),
            ("kibit", KIBI, 8),
            ("kbit", KILO, 8),
            ("mibit", KIBI.pow(2), 8),
            ("mbit", KILO.pow(2), 8),
            ("gibit", KIBI.pow(3), 8),
            ("gbit", KILO.pow(3), 8),
            ("tibit", KIBI.pow(4), 8),
            ("tbit", KILO.pow(4), 8),
            ("bps", 1, 1),
            ("kibps", KIBI, 1),
            ("kbps", KILO, 1),
            ("mibps", KIBI.pow(2), 1),
            ("mbps", KILO.pow(2), 1),
            ("gibps", KIBI.pow(3), 1),
            ("gbps", KILO.pow(3), 1),
            ("tibps", KIBI.pow(4), 1),
            ("tbps", KILO.pow(4), 1),
        ],
    )
}

/// A size in bytes (`get_size64` in `lib/utils_math.c`).
pub(super) fn size(word: &str) -> Option<u64> {
    const KIBI: u64 = 1 << 10;
    scaled(
        word,
        &[
            ("", 1, 1),
            ("b", 1, 1),
            ("k", KIBI, 1),
            ("kb", KIBI, 1),
            ("m", KIBI.pow(2), 1),
            ("mb", KIBI.pow(2), 1),
            ("g", KIBI.pow(3), 1),
            ("gb", KIBI.pow(3), 1),
            ("kbit", KIBI, 8),
            ("mbit", KIBI.pow(2), 8),
            ("gbit", KIBI.pow(3), 8),
        ],
    )
}

/// A Geneve option: its class, its type and its data in hexadecimal, as in `0102:80:00112233`.
pub(super) fn geneve_option(word: &str) -> Option<Vec<u8>> {
    let mut parts = word.split(':');
    let (class, kind, data) = (u16_of(parts.next()?, 16)?, u8_of(parts.next()?, 16)?, bytes(parts.next()?)?);
    let fits = data.len().is_multiple_of(4) && (4..=124).contains(&data.len()) && parts.next().is_none();
    let [high, low] = class.to_be_bytes();
    fits.then(|| [&[high, low, kind, (data.len() / 4) as u8], &data[..]].concat())
}

/// Geneve options as they are written, if they can be read: each with its place.
pub(super) fn geneve_options(options: &[u8]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < options.len() {
        let words = usize::from(*options.get(at + 3)?);
        let end = at + 4 + words * 4;
        if words == 0 || words > 31 || end > options.len() {
            return None;
        }
        ranges.push(at..end);
        at = end;
    }
    Some(ranges)
}

/// A Geneve option, or its mask, as it is written.
pub(super) fn geneve_option_word(option: &[u8]) -> String {
    format!("{}:{}:{}", hex(&option[..2]), hex(&option[2..3]), hex(&option[4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_in_c() {
        for (word, base, expected) in [
            ("10", 0, Some(10)),
            ("0x10", 0, Some(16)),
            ("010", 0, Some(8)),
            ("0", 0, Some(0)),
            ("0x10", 10, None),
            ("10", 16, Some(16)),
            ("0x10", 16, Some(16)),
            ("-1", 0, None),
            ("+1", 10, None),
            ("", 10, None),
        ] {
            assert_eq!(number(word, base), expected, "{word} in base {base}");
        }
        assert_eq!((u8_of("255", 10), u8_of("256", 10)), (Some(255), None));
    }

    #[test]
    fn rates_are_in_bits_and_sizes_in_bytes() {
        for (word, expected) in
            [("1mbit", 125_000), ("8", 1), ("1.5Mbit", 187_500), ("1kibit", 128), ("1MBps", 1_000_000), ("1bps", 1)]
        {
            assert_eq!(rate(word), Some(expected), "{word}");
        }
        for (word, expected) in [("10k", 10_240), ("10kb", 10_240), ("8kbit", 1024), ("15", 15), ("15b", 15)] {
            assert_eq!(size(word), Some(expected), "{word}");
        }
        assert_eq!((rate("1x"), rate("mbit"), size("1tb"), size("-1")), (None, None, None, None));
        assert_eq!(rate("99999999999999999999tbit"), None);
    }

    #[test]
    fn addresses_and_prefixes() {
        assert_eq!(mac("2:0:0:0:0:a"), Some([2, 0, 0, 0, 0, 10]));
        assert_eq!((mac("2:0:0:0:0"), mac("2:0:0:0:0:100"), mac("x:0:0:0:0:0")), (None, None, None));
        assert_eq!(prefix(12, 4), Some(vec![0xff, 0xf0, 0, 0]));
        assert_eq!((prefix(33, 4), prefix_length(&[0xff, 0x0f]), prefix_length(&[0xff, 0])), (None, None, Some(8)));
    }

    #[test]
    fn a_geneve_option_has_whole_words_of_data() {
        assert_eq!(geneve_option("0102:80:00000001"), Some(vec![1, 2, 0x80, 1, 0, 0, 0, 1]));
        for wrong in ["0102:80", "0102:80:00", "0102:80:", "0102:80:00000001:", "0102:180:00000001"] {
            assert_eq!(geneve_option(wrong), None, "{wrong}");
        }
    }
}
