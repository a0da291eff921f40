//! Bit sets, in both forms that a program can request (`net/ethtool/bitset.c`), and the names of bits.

use netlink::{Attribute, Builder, Errno, attributes, find};

use super::Refused;

/// ETHTOOL_A_BITSET_*.
const NOMASK: u16 = 1;
const SIZE: u16 = 2;
const BITS: u16 = 3;
const VALUE: u16 = 4;
const MASK: u16 = 5;
/// ETHTOOL_A_BITSET_BITS_BIT, and ETHTOOL_A_BITSET_BIT_*.
const BIT: u16 = 1;
const BIT_INDEX: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Numbers of bits with their names.
pub(super) type Names = &'static [(u32, &'static str)];

/// A set of bits, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    pub value: u128,
    /// The bits that can be set; `None`: this is a list.
    pub mask: Option<u128>,
    /// How many bits there are.
    size: u32,
    names: Names,
}

impl Bits {
    /// A set: the bits that are set, and those that can be.
    pub fn of(value: u128, mask: u128, size: u32, names: Names) -> Self {
        Self { value, mask: Some(mask), size, names }
    }

    /// A list of bits.
    pub fn list(value: u128, size: u32, names: Names) -> Self {
        Self { value, mask: None, size, names }
    }

    fn words(&self, bits: u128) -> Vec<u8> {
        let words = self.size.div_ceil(32);
        (0..words).flat_map(|word| ((bits >> (32 * word)) as u32).to_ne_bytes()).collect()
    }

    /// Writes the attributes of the set.
    pub fn put(&self, to: &mut Builder, compact: bool) {
        if self.mask.is_none() {
            to.flag(NOMASK);
        }
        to.u32(SIZE, self.size);
        if compact {
            to.put(VALUE, &self.words(self.value));
            if let Some(mask) = self.mask {
                to.put(MASK, &self.words(mask));
            }
            return;
        }
        let shown = self.mask.unwrap_or(self.value);
        to.nest(BITS, |list| {
            for (bit, name) in self.names.iter().filter(|(bit, _)| shown & (1 << bit) != 0) {
                list.nest(BIT, |entry| {
                    entry.u32(BIT_INDEX, *bit).text(BIT_NAME, name);
                    if self.mask.is_some() && self.value & (1 << bit) != 0 {
                        entry.flag(BIT_VALUE);
                    }
                });
            }
        });
    }
}

/// What a request wants of one bit. `None`: it does not name the bit.
pub(crate) fn wanted(set: &[u8], bit: u32, name: &str) -> Option<bool> {
    let has = |kind| {
        find(set, kind).and_then(|words| words.value.get((bit / 8) as usize)).map(|byte| byte >> (bit % 8) & 1 == 1)
    };
    let Some(bits) = find(set, BITS) else {
        let value = has(VALUE).unwrap_or(false);
        return if find(set, NOMASK).is_some() { Some(value) } else { has(MASK)?.then_some(value) };
    };
    match bits.nested().flatten().find(|entry| is_of(entry, bit, name)) {
        Some(entry) => Some(find(set, NOMASK).is_some() || find(entry.value, BIT_VALUE).is_some()),
        None => find(set, NOMASK).map(|_| false),
    }
}

/// Writes a bit set of the kernel's with one bit of its value set or cleared, and set in its mask.
pub(crate) fn put_with(to: &mut Builder, set: &[u8], bit: u32, name: &str, on: bool) {
    let is_list = find(set, NOMASK).is_some();
    let entry = |list: &mut Builder| {
        if on || !is_list {
            put_bit(list, bit, name, on && !is_list);
        }
    };
    put_changed(to, set, bit, name, &[(VALUE, on)], entry);
}

/// Writes a bit set of a request without one bit: the request then wants nothing of it.
pub(crate) fn put_without(to: &mut Builder, set: &[u8], bit: u32, name: &str) {
    put_changed(to, set, bit, name, &[(VALUE, false), (MASK, false)], |_| {});
}

/// Writes a bit set with one bit set or cleared in some of its words, and with another entry of the bit in its list.
fn put_changed(
    to: &mut Builder,
    set: &[u8],
    bit: u32,
    name: &str,
    words: &[(u16, bool)],
    entry: impl FnOnce(&mut Builder),
) {
    let mut entry = Some(entry);
    for attribute in attributes(set).flatten() {
        if let Some((_, on)) = words.iter().find(|(kind, _)| *kind == attribute.kind) {
            let mut words = attribute.value.to_vec();
            if let Some(byte) = words.get_mut((bit / 8) as usize) {
                let flag = 1 << (bit % 8);
                *byte = if *on { *byte | flag } else { *byte & !flag };
            }
            to.put(attribute.raw_kind(), &words);
        } else if attribute.kind == BITS {
            to.nest(BITS, |list| {
                for other in attribute.nested().flatten().filter(|other| !is_of(other, bit, name)) {
                    list.copy(&other);
                }
                if let Some(entry) = entry.take() {
                    entry(list);
                }
            });
        } else {
            to.copy(&attribute);
        }
    }
}

/// Whether an entry of a list is about a bit.
fn is_of(entry: &Attribute<'_>, bit: u32, name: &str) -> bool {
    find(entry.value, BIT_INDEX).and_then(|index| index.leading_u32()) == Some(bit)
        || find(entry.value, BIT_NAME).and_then(|text| text.string()) == Some(name)
}

fn put_bit(list: &mut Builder, bit: u32, name: &str, has_value: bool) {
    list.nest(BIT, |entry| {
        entry.u32(BIT_INDEX, bit).text(BIT_NAME, name);
        if has_value {
            entry.flag(BIT_VALUE);
        }
    });
}

/// How many link modes a set has room for.
pub(super) const LINK_MODES: u32 = 96;

/// The link modes of this card (`ETHTOOL_LINK_MODE_*_BIT`), and their names (`link_mode_names` in
/// `net/ethtool/common.c`).
pub(super) const LINK_MODE_NAMES: [(u32, &str); 18] = [
    (6, "Autoneg"),
    (10, "FIBRE"),
    (13, "Pause"),
    (14, "Asym_Pause"),
    (25, "40000baseSR4/Full"),
    (31, "25000baseCR/Full"),
    (33, "25000baseSR/Full"),
    (34, "50000baseCR2/Full"),
    (37, "100000baseSR4/Full"),
    (38, "100000baseCR4/Full"),
    (42, "10000baseCR/Full"),
    (43, "10000baseSR/Full"),
    (49, "None"),
    (50, "RS"),
    (51, "BASER"),
    (63, "200000baseSR4/Full"),
    (66, "200000baseCR4/Full"),
    (74, "LLRS"),
];

/// The link modes by which a port of a speed in Mb/s is connected.
pub(super) fn speed_modes(speed: u32) -> u128 {
    let modes: &[u32] = match speed {
        10_000 => &[42, 43],
        25_000 => &[31, 33],
        40_000 => &[25],
        50_000 => &[34],
        200_000 => &[63, 66],
        _ => &[37, 38],
    };
    modes.iter().fold(0, |all, bit| all | 1 << bit)
}

/// The speed in the name of a link mode, in Mb/s. `None`: it is a mode of something else.
pub(super) fn speed_of_mode(name: &str) -> Option<u32> {
    name.split_once("base")?.0.parse().ok()
}

/// A bit set as a request changes it (`ethnl_update_bitset32`). `now`: its `size` bits as they are.
///
/// # Errors
/// EINVAL: the request is no bit set. EOPNOTSUPP: it names a bit that there is not.
pub(crate) fn updated(set: &[u8], now: u128, size: u32, names: &[(u32, &str)]) -> Result<u128, Refused> {
    let invalid = |why: &'static str| Refused(Errno::INVAL, why.into());
    let is_list = find(set, NOMASK).is_some();
    if let Some(bits) = find(set, BITS) {
        if find(set, VALUE).is_some() {
            return Err(invalid("value only allowed in compact bitset"));
        }
        let mut new = if is_list { 0 } else { now };
        for entry in bits.nested().flatten() {
            let index = find(entry.value, BIT_INDEX).and_then(|index| index.leading_u32());
            let name = find(entry.value, BIT_NAME).and_then(|text| text.string());
            let bit = match (index, name) {
                (Some(index), _) if index >= size => {
                    return Err(Refused(Errno::OPNOTSUPP, "bit index too high".into()));
                }
                (Some(index), _) => index,
                (None, Some(name)) => match names.iter().find(|(_, known)| *known == name) {
                    Some((bit, _)) => *bit,
                    None => return Err(Refused(Errno::OPNOTSUPP, "bit name not found".into())),
                },
                (None, None) => return Err(invalid("neither bit index nor name specified")),
            };
            let on = is_list || find(entry.value, BIT_VALUE).is_some();
            new = if on { new | 1 << bit } else { new & !(1 << bit) };
        }
        return Ok(new);
    }
    if find(set, SIZE).and_then(|size| size.leading_u32()).is_none() {
        return Err(invalid("missing size in compact bitset"));
    }
    let words = |kind| find(set, kind).map(|words| wide(words.value));
    let value = words(VALUE).ok_or_else(|| invalid("missing value in compact bitset"))?;
    let all = if size >= 128 { u128::MAX } else { (1 << size) - 1 };
    let mask = match words(MASK) {
        None if is_list => all,
        Some(_) if is_list => return Err(invalid("mask not allowed in list bitset")),
        None => return Err(invalid("missing mask in compact nonlist bitset")),
        Some(mask) => mask,
    };
    if (if is_list { value } else { mask }) & !all != 0 {
        return Err(invalid("cannot modify bits past kernel bitset size"));
    }
    Ok(now & !mask | value & mask)
}

/// The first 128 bits of words.
fn wide(words: &[u8]) -> u128 {
    words.iter().take(16).enumerate().fold(0, |all, (at, byte)| all | u128::from(*byte) << (8 * at))
}

/// `mlx5e_priv_flags` with their numbers.
pub(super) const PRIV_FLAG_NAMES: [(u32, &str); 8] = {
    let mut names = [(0, ""); 8];
    let mut at = 0;
    while at < names.len() {
        names[at] = (at as u32, super::PRIV_FLAGS[at]);
        at += 1;
    }
    names
};

#[cfg(test)]
mod tests {
    use super::*;
    use netlink::row;

    #[test]
    fn what_is_written_in_either_form_is_read_again() {
        let bits = Bits::of(1 << 38, 1 << 38 | 1 << 37, LINK_MODES, &LINK_MODE_NAMES);
        for compact in [false, true] {
            let set = row(|to| bits.put(to, compact)).unwrap();
            for (bit, name, expected) in
                [(38, "100000baseCR4/Full", Some(true)), (37, "100000baseSR4/Full", Some(false)), (6, "Autoneg", None)]
            {
                assert_eq!(wanted(&set, bit, name), expected, "{bit} {compact}");
            }
            let more = row(|to| put_with(to, &set, 37, "100000baseSR4/Full", true)).unwrap();
            assert_eq!(wanted(&more, 37, "100000baseSR4/Full"), Some(true), "{compact}");
            assert_eq!(wanted(&more, 38, "100000baseCR4/Full"), Some(true), "{compact}");
            let less = row(|to| put_without(to, &more, 38, "100000baseCR4/Full")).unwrap();
            assert_eq!(wanted(&less, 38, "100000baseCR4/Full"), None, "{compact}");
            assert_eq!(wanted(&less, 37, "100000baseSR4/Full"), Some(true), "{compact}");
        }
    }

    #[test]
    fn a_request_changes_the_bits_that_it_names() {
        let names = [(0, "a"), (1, "b"), (6, "g")];
        for compact in [false, true] {
            let set = row(|to| Bits::of(0b10, 0b11, 8, &[(0, "a"), (1, "b")]).put(to, compact)).unwrap();
            assert_eq!(updated(&set, 0b100_0001, 8, &names), Ok(0b100_0010), "{compact}");
            let list = row(|to| Bits::list(0b10, 8, &[(0, "a"), (1, "b")]).put(to, compact)).unwrap();
            assert_eq!(updated(&list, 0b100_0001, 8, &names), Ok(0b10), "{compact}");
        }
        let unknown = row(|to| {
            to.nest(BITS, |list| {
                list.nest(BIT, |entry| {
                    entry.text(BIT_NAME, "z");
                });
            });
        });
        let errno = |set: &[u8]| updated(set, 0, 8, &names).map_err(|refused| refused.0);
        assert_eq!(errno(&unknown.unwrap()), Err(Errno::OPNOTSUPP));
        assert_eq!(errno(&[]), Err(Errno::INVAL));
    }

    #[test]
    fn a_list_has_every_bit_that_it_names() {
        for compact in [false, true] {
            let list = row(|to| Bits::list(1 << 50, LINK_MODES, &LINK_MODE_NAMES).put(to, compact)).unwrap();
            assert_eq!(wanted(&list, 50, "RS"), Some(true), "{compact}");
            let more = row(|to| put_with(to, &list, 49, "None", true)).unwrap();
            assert_eq!(wanted(&more, 49, "None"), Some(true), "{compact}");
        }
    }
}
