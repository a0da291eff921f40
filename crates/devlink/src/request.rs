//! The attributes of a request.

use std::collections::BTreeMap;

use eswitch::{PciAddress, PortHandle, PortIndex};
use netlink::{Attribute, Errno, GENL_HEADER, HEADER, attributes};

use crate::numbers::attribute;
use crate::refusal::Refusal;
use crate::view::DeviceName;

/// The attributes of a request. Of several of one type the last counts, as in the kernel (`nla_parse`).
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a>(BTreeMap<u16, Attribute<'a>>);

/// The offset of the attributes in a generic netlink message.
const START: usize = HEADER + GENL_HEADER;

/// The handle of a devlink instance as it is in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle<'a> {
    /// `pci`, `auxiliary`.
    pub bus: &'a str,
    /// `0000:08:00.0`, `mlx5_core.sf.4`.
    pub device: &'a str,
}

impl<'a> Attributes<'a> {
    /// Parses attributes that begin at offset `start` of the message. Those that are not in `allowed` are ignored, as
    /// in devlink: its commands are older than the kernel's strict validation, and programs send attributes that have
    /// no effect.
    ///
    /// # Errors
    /// EINVAL: an attribute is malformed.
    pub fn parse(bytes: &'a [u8], start: usize, allowed: &[u16]) -> Result<Self, Refusal> {
        let mut found = BTreeMap::new();
        for attribute in attributes(bytes) {
            let attribute =
                attribute.map_err(|malformed| Refusal::new(Errno::INVAL, format!("netlink: {malformed}.")))?;
            if !allowed.contains(&attribute.kind) {
                continue;
            }
            found.insert(attribute.kind, Attribute { offset: start + attribute.offset, ..attribute });
        }
        Ok(Self(found))
    }

    /// Parses the attributes of a request.
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn of_request(bytes: &'a [u8], allowed: &[u16]) -> Result<Self, Refusal> {
        Self::parse(bytes, START, allowed)
    }

    /// Whether the request has an attribute.
    pub fn has(&self, kind: u16) -> bool {
        self.0.contains_key(&kind)
    }

    fn get<T>(&self, kind: u16, read: impl FnOnce(&Attribute<'a>) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(attribute) = self.0.get(&kind) else { return Ok(None) };
        match read(attribute) {
            Some(value) => Ok(Some(value)),
            None => Err(refused(attribute.offset, "Attribute failed policy validation")),
        }
    }

    /// A number of one byte, if the attribute is present.
    ///
    /// # Errors
    /// EINVAL, with the offset: the attribute has another length.
    pub fn u8(&self, kind: u16) -> Result<Option<u8>, Refusal> {
        self.get(kind, Attribute::u8)
    }

    /// A number of two bytes, if the attribute is present.
    ///
    /// # Errors
    /// EINVAL, with the offset: the attribute has another length.
    pub fn u16(&self, kind: u16) -> Result<Option<u16>, Refusal> {
        self.get(kind, Attribute::u16)
    }

    /// A number of four bytes, if the attribute is present.
    ///
    /// # Errors
    /// EINVAL, with the offset: the attribute has another length.
    pub fn u32(&self, kind: u16) -> Result<Option<u32>, Refusal> {
        self.get(kind, Attribute::u32)
    }

    /// A number of eight bytes, if the attribute is present.
    ///
    /// # Errors
    /// EINVAL, with the offset: the attribute has another length.
    pub fn u64(&self, kind: u16) -> Result<Option<u64>, Refusal> {
        self.get(kind, Attribute::u64)
    }

    /// Text, if the attribute is present.
    ///
    /// # Errors
    /// EINVAL, with the offset: the attribute is no text.
    pub fn text(&self, kind: u16) -> Result<Option<&'a str>, Refusal> {
        self.get(kind, Attribute::text)
    }

    /// The value and the selector of a bitfield, if the attribute is present.
    ///
    /// # Errors
    /// EINVAL, with the offset: the attribute is no bitfield.
    pub fn bitfield(&self, kind: u16) -> Result<Option<(u32, u32)>, Refusal> {
        self.get(kind, Attribute::bitfield)
    }

    /// The bytes of an attribute, if it is present.
    pub fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.get(&kind).map(|attribute| attribute.value)
    }

    /// The nested attributes of an attribute, if it is present.
    ///
    /// # Errors
    /// EINVAL: one of them is malformed.
    pub fn nested(&self, kind: u16, allowed: &[u16]) -> Result<Option<Self>, Refusal> {
        match self.0.get(&kind) {
            None => Ok(None),
            Some(attribute) => Self::parse(attribute.value, attribute.value_offset(), allowed).map(Some),
        }
    }

    /// The handle of a devlink instance, if the request has one.
    ///
    /// # Errors
    /// EINVAL: the request has only the bus or only the device.
    pub fn handle(&self) -> Result<Option<Handle<'a>>, Refusal> {
        match (self.text(attribute::BUS_NAME)?, self.text(attribute::DEV_NAME)?) {
            (Some(bus), Some(device)) => Ok(Some(Handle { bus, device })),
            (None, None) => Ok(None),
            (None, _) => Err(Refusal::missing(attribute::BUS_NAME)),
            (_, None) => Err(Refusal::missing(attribute::DEV_NAME)),
        }
    }

    /// The handle of a devlink instance.
    ///
    /// # Errors
    /// EINVAL: the request has none.
    pub fn required_handle(&self) -> Result<Handle<'a>, Refusal> {
        self.handle()?.ok_or(Refusal::missing(attribute::BUS_NAME))
    }

    /// The address of the PCI function that the request names.
    ///
    /// # Errors
    /// EINVAL: the request has no handle. ENODEV: the handle is not that of a PCI function.
    pub fn device(&self) -> Result<PciAddress, Refusal> {
        self.required_handle()?.device()
    }

    /// The port that the request names.
    ///
    /// # Errors
    /// As for [`Self::device`]. EINVAL: the request has no port index.
    pub fn port(&self) -> Result<PortHandle, Refusal> {
        let device = self.device()?;
        let index = self.u32(attribute::PORT_INDEX)?.ok_or(Refusal::missing(attribute::PORT_INDEX))?;
        Ok(PortHandle { device, index: PortIndex(index) })
    }
}

impl Handle<'_> {
    /// The device of the instance.
    ///
    /// # Errors
    /// ENODEV: no card can have a device of that name, so there is no such instance.
    pub fn device_name(&self) -> Result<DeviceName, Refusal> {
        DeviceName::parse(self.bus, self.device).ok_or(Refusal::bare(Errno::NODEV))
    }

    /// The address of the instance's PCI function.
    ///
    /// # Errors
    /// ENODEV: the device is on another bus, or its name is no PCI address, so there is no such instance.
    pub fn device(&self) -> Result<PciAddress, Refusal> {
        match self.device_name()? {
            DeviceName::Pci(address) => Ok(address),
            DeviceName::Auxiliary(_) => Err(Refusal::bare(Errno::NODEV)),
        }
    }
}

/// The command of a generic netlink message, and its attributes.
///
/// # Errors
/// EINVAL: the message is too short to have one.
pub(crate) fn split(payload: &[u8]) -> Result<(u8, &[u8]), Refusal> {
    match payload.split_at_checked(GENL_HEADER) {
        Some(([command, ..], attributes)) => Ok((*command, attributes)),
        _ => Err(Refusal::bare(Errno::INVAL)),
    }
}

fn refused(offset: usize, message: &str) -> Refusal {
    Refusal { offset: Some(offset as u32), ..Refusal::new(Errno::INVAL, message) }
}
