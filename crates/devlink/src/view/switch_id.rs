//! The id of a card's switch, `phys_switch_id`.

use std::fmt;
use std::str::FromStr;

use eswitch::ParseError;
use serde::{Deserialize, Serialize};

/// `phys_switch_id`: which switch a port belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SwitchId(pub [u8; 8]);

impl fmt::Display for SwitchId {
    /// Hexadecimal digits, as sysfs and `ip -d link` have them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for SwitchId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_id = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        let number = number.ok_or_else(|| ParseError::new(text, "a switch id such as e500000800000000"))?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl TryFrom<String> for SwitchId {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<SwitchId> for String {
    fn from(id: SwitchId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_switch_id_can_be_parsed() {
        let id: SwitchId = "b8cef6030012ab00".parse().unwrap();
        assert_eq!(id, SwitchId([0xb8, 0xce, 0xf6, 3, 0, 0x12, 0xab, 0]));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"b8cef6030012ab00\"");
    }

    #[test]
    fn text_of_another_form_is_refused() {
        for text in ["", "b8cef6030012ab", "b8cef6030012ab0000", "+8cef6030012ab00", "b8cef6030012ab0x"] {
            assert!(text.parse::<SwitchId>().is_err(), "{text}");
        }
    }
}
