//! What things are called: types, which are text only where they are shown and in JSON.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Parent;

/// Text that names no such thing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct NotAName {
    text: String,
    expected: &'static str,
}

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
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let is_id = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        let number = number.ok_or_else(|| not_a_name(text, "a switch id such as e500000800000000"))?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// A devlink port: an instance, and the port's index there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortHandle {
    /// The device of the instance.
    pub device: Parent,
    /// The index of the port.
    pub index: u32,
}

impl fmt::Display for PortHandle {
    /// `pci/0000:08:00.0/1`, as devlink has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.device.bus(), self.device.name(), self.index)
    }
}

impl FromStr for PortHandle {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let read = || {
            let (device, index) = text.rsplit_once('/')?;
            let (bus, name) = device.split_once('/')?;
            Some(Self { device: Parent::on_bus(bus, name)?, index: index.parse().ok()? })
        };
        read().ok_or_else(|| not_a_name(text, "a devlink port such as pci/0000:08:00.0/1"))
    }
}

impl From<eswitch::PortHandle> for PortHandle {
    fn from(port: eswitch::PortHandle) -> Self {
        Self { device: Parent::Pci(port.device.to_string()), index: port.index.0 }
    }
}

macro_rules! text_in_json {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = NotAName;

            fn try_from(text: String) -> Result<Self, NotAName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.to_string()
            }
        }
    )*};
}

text_in_json!(SwitchId, PortHandle);

fn not_a_name(text: &str, expected: &'static str) -> NotAName {
    NotAName { text: text.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_shown() {
        for text in ["pci/0000:08:00.0/65535", "auxiliary/mlx5_core.sf.4/1"] {
            assert_eq!(text.parse::<PortHandle>().unwrap().to_string(), text);
            let json = format!("\"{text}\"");
            assert_eq!(serde_json::to_string(&serde_json::from_str::<PortHandle>(&json).unwrap()).unwrap(), json);
        }
        let id: SwitchId = "b8cef6030012ab00".parse().unwrap();
        assert_eq!(id, SwitchId([0xb8, 0xce, 0xf6, 3, 0, 0x12, 0xab, 0]));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"b8cef6030012ab00\"");
    }

    #[test]
    fn what_names_no_such_thing_is_refused() {
        for text in
            ["", "pci", "pci/0000:08:00.0", "pci/0000:08:00.0/", "pci/0000:08:00.0/x", "usb/1-1/1", "pci//4294967296"]
        {
            assert!(text.parse::<PortHandle>().is_err(), "{text}");
        }
        for text in ["", "b8cef6030012ab", "b8cef6030012ab0000", "+8cef6030012ab00", "b8cef6030012ab0x"] {
            assert!(text.parse::<SwitchId>().is_err(), "{text}");
        }
    }
}
