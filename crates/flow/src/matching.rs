//! What a rule matches on: fields with masks, and ranges of ports.

use std::ops::RangeInclusive;

use crate::key::{Field, FieldValue, Key};

/// The fields that a frame must have for a rule to match it.
///
/// Nothing matches every frame. A value outside its mask does not count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Match {
    value: Key,
    mask: Key,
    /// The range of the source port, if one is asked for.
    pub src_ports: Option<RangeInclusive<u16>>,
    /// The range of the destination port, if one is asked for.
    pub dst_ports: Option<RangeInclusive<u16>>,
    wrong_size: Option<Field>,
    two_families: bool,
}

/// What a match is encoded as: the fields that count, each with its value and its mask, and the rest as it is.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Encoded {
    fields: Vec<(Field, Vec<u8>, Vec<u8>)>,
    src_ports: Option<RangeInclusive<u16>>,
    dst_ports: Option<RangeInclusive<u16>>,
    wrong_size: Option<Field>,
    two_families: bool,
}

#[cfg(feature = "serde")]
impl serde::Serialize for Match {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = |field| (field, self.value.get(field).to_vec(), self.mask.get(field).to_vec());
        let encoded = Encoded {
            fields: self.mask.fields().map(bytes).collect(),
            src_ports: self.src_ports.clone(),
            dst_ports: self.dst_ports.clone(),
            wrong_size: self.wrong_size,
            two_families: self.two_families,
        };
        encoded.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Match {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let encoded = Encoded::deserialize(deserializer)?;
        let mut matches = Match {
            src_ports: encoded.src_ports,
            dst_ports: encoded.dst_ports,
            wrong_size: encoded.wrong_size,
            two_families: encoded.two_families,
            ..Match::default()
        };
        for (field, value, mask) in encoded.fields {
            if value.len() != field.size() || mask.len() != field.size() {
                matches.wrong_size = Some(field);
                continue;
            }
            matches.mask.set_bytes(field, &mask);
            matches.value.set_bytes(field, &value);
        }
        matches.value = matches.value.masked(&matches.mask);
        Ok(matches)
    }
}

impl Match {
    /// A match on nothing, which every frame fulfils.
    pub fn new() -> Match {
        Match::default()
    }

    /// Also asks for exactly this value. A value of another size than the field's makes the rule be refused.
    pub fn with(self, field: Field, value: impl FieldValue) -> Match {
        self.with_bytes(field, &value.field_bytes(), &vec![0xff; field.size()])
    }

    /// Also asks for the bits of this value that are set in `mask`.
    pub fn with_masked<V: FieldValue>(self, field: Field, value: V, mask: V) -> Match {
        self.with_bytes(field, &value.field_bytes(), &mask.field_bytes())
    }

    /// Also asks for bits of [`Field::CtState`]: those of `set` must be set, those of `clear` must not be.
    pub fn with_ct_state(self, set: u8, clear: u8) -> Match {
        self.with_masked(Field::CtState, set, set | clear)
    }

    /// Also asks for these Geneve options, as they stand in a frame, of which the bits set in `mask` count.
    ///
    /// Their length counts too, as a whole. (The kernel compares it only in the bits that are set in it.)
    pub fn with_geneve_options(mut self, options: &[u8], mask: &[u8]) -> Match {
        let Ok(length) = u8::try_from(options.len()).map_err(drop).and_then(|length| match mask.len() {
            size if size == options.len() && size <= Field::EncOpts.size() => Ok(length),
            _ => Err(()),
        }) else {
            self.wrong_size = Some(Field::EncOpts);
            return self;
        };
        self = self.with(Field::EncOptsLen, length);
        self.mask.set_bytes(Field::EncOpts, mask);
        self.value.set_bytes(Field::EncOpts, options);
        self.value = self.value.masked(&self.mask);
        self
    }

    /// Also asks for a source port in this range, both ends included.
    pub fn with_src_ports(mut self, ports: RangeInclusive<u16>) -> Match {
        self.src_ports = Some(ports);
        self
    }

    /// Also asks for a destination port in this range, both ends included.
    pub fn with_dst_ports(mut self, ports: RangeInclusive<u16>) -> Match {
        self.dst_ports = Some(ports);
        self
    }

    fn with_bytes(mut self, field: Field, value: &[u8], mask: &[u8]) -> Match {
        if value.len() != field.size() || mask.len() != field.size() {
            self.wrong_size = Some(field);
            return self;
        }
        self.mask.set_bytes(field, mask);
        self.value.set_bytes(field, value);
        // Of the value of a tag only the bits count that the tag has (`fl_set_key_vlan`).
        match field {
            Field::VlanPrio | Field::CvlanPrio => self.value.set(field, self.value.number(field) as u8 & 7),
            Field::VlanId | Field::CvlanId => self.value.set(field, self.value.number(field) as u16 & 0x0fff),
            _ => {}
        }
        self.value = self.value.masked(&self.mask);
        match field {
            Field::Ip4Src | Field::Ip4Dst => self.with_family(Field::AddrType, 4),
            Field::Ip6Src | Field::Ip6Dst => self.with_family(Field::AddrType, 6),
            Field::EncIp4Src | Field::EncIp4Dst => self.with_family(Field::EncAddrType, 4),
            Field::EncIp6Src | Field::EncIp6Dst => self.with_family(Field::EncAddrType, 6),
            _ => self,
        }
    }

    /// What a key has in the bits of a mask, and these ranges of ports.
    #[cfg(feature = "generate")]
    pub(crate) fn of_key(
        key: &Key,
        mask: Key,
        src_ports: Option<RangeInclusive<u16>>,
        dst_ports: Option<RangeInclusive<u16>>,
    ) -> Match {
        Match { value: key.masked(&mask), mask, src_ports, dst_ports, ..Match::default() }
    }

    /// Notes which version of IP the addresses have, as flower does in `control.addr_type`.
    fn with_family(mut self, field: Field, version: u8) -> Match {
        self.two_families |= self.mask.has(field) && self.value.number(field) != u32::from(version);
        self.mask.set(field, 0xffu8);
        self.value.set(field, version);
        self
    }

    /// The values, with no bit outside the mask.
    pub fn value(&self) -> &Key {
        &self.value
    }

    /// The bits that count.
    pub fn mask(&self) -> &Key {
        &self.mask
    }

    /// The value of a field whose every bit counts.
    pub fn exact(&self, field: Field) -> Option<u32> {
        self.mask.get(field).iter().all(|byte| *byte == 0xff).then(|| self.value.number(field))
    }

    /// A field that was given a value of another size than its own.
    pub(crate) fn wrong_size(&self) -> Option<Field> {
        self.wrong_size
    }

    /// Whether addresses of both versions of IP are asked for.
    pub(crate) fn has_two_families(&self) -> bool {
        self.two_families
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn an_address_asks_for_its_version() {
        let matches = Match::new().with(Field::Ip4Dst, Ipv4Addr::LOCALHOST);
        assert_eq!(matches.exact(Field::AddrType), Some(4));
        assert!(matches.clone().with(Field::Ip6Dst, Ipv6Addr::LOCALHOST).has_two_families());
        assert!(!matches.with(Field::Ip4Src, Ipv4Addr::LOCALHOST).has_two_families());
    }

    #[test]
    fn a_value_of_another_size_is_noted() {
        assert_eq!(Match::new().with(Field::VlanId, 1u8).wrong_size(), Some(Field::VlanId));
        assert_eq!(Match::new().with_geneve_options(&[0; 4], &[0; 8]).wrong_size(), Some(Field::EncOpts));
        assert_eq!(Match::new().with_geneve_options(&[0; 256], &[0; 256]).wrong_size(), Some(Field::EncOpts));
    }

    #[test]
    fn of_a_tag_only_its_bits_count() {
        let matches = Match::new().with(Field::VlanPrio, 82u8).with(Field::VlanId, 0xf005u16);
        assert_eq!((matches.exact(Field::VlanPrio), matches.exact(Field::VlanId)), (Some(2), Some(5)));
    }

    #[test]
    fn bits_outside_the_mask_do_not_count() {
        let one = Match::new().with_masked(Field::Ip4Dst, [10, 1, 2, 3], [255, 255, 0, 0]);
        let other = Match::new().with_masked(Field::Ip4Dst, [10, 1, 9, 9], [255, 255, 0, 0]);
        assert_eq!(one, other);
    }
}
