//! A devlink request: its attributes, checked.

use std::collections::BTreeMap;

use eswitch::{PciAddress, PortHandle, PortIndex};
use netlink::{Attribute, Errno, GENL_HEADER, HEADER, attributes};

use crate::numbers::attribute;
use crate::refusal::Refusal;
use crate::view::DeviceName;

/// The attributes of a request, the last of each type, as the kernel takes them.
#[derive(Clone, Debug, Default)]
pub struct Attributes<'a>(BTreeMap<u16, Attribute<'a>>);

/// Where the attributes of a generic netlink message begin.
const START: usize = HEADER + GENL_HEADER;

/// Which devlink instance is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle<'a> {
    /// `pci`, `auxiliary`.
    pub bus: &'a str,
    /// `0000:08:00.0`, `mlx5_core.sf.4`.
    pub device: &'a str,
}

impl<'a> Attributes<'a> {
    /// Reads those in `allowed`. Others are passed over, as devlink does: its commands are older than the
    /// kernel's strictness, and programs send more than is looked at.
    ///
    /// # Errors
    /// EINVAL, with the place.
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

    /// Reads those of a request.
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn of_request(bytes: &'a [u8], allowed: &[u16]) -> Result<Self, Refusal> {
        Self::parse(bytes, START, allowed)
    }

    /// Whether it is there.
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

    /// A number of one byte.
    ///
    /// # Errors
    /// It is none.
    pub fn u8(&self, kind: u16) -> Result<Option<u8>, Refusal> {
        self.get(kind, Attribute::u8)
    }

    /// A number of two bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn u16(&self, kind: u16) -> Result<Option<u16>, Refusal> {
        self.get(kind, Attribute::u16)
    }

    /// A number of four bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn u32(&self, kind: u16) -> Result<Option<u32>, Refusal> {
        self.get(kind, Attribute::u32)
    }

    /// A number of eight bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn u64(&self, kind: u16) -> Result<Option<u64>, Refusal> {
        self.get(kind, Attribute::u64)
    }

    /// Text.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&self, kind: u16) -> Result<Option<&'a str>, Refusal> {
        self.get(kind, Attribute::text)
    }

    /// A bitfield: value and selector.
    ///
    /// # Errors
    /// It is none.
    pub fn bitfield(&self, kind: u16) -> Result<Option<(u32, u32)>, Refusal> {
        self.get(kind, Attribute::bitfield)
    }

    /// Bytes as they are.
    pub fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.get(&kind).map(|attribute| attribute.value)
    }

    /// The attributes in an attribute.
    ///
    /// # Errors
    /// They are none, or others than allowed.
    pub fn nested(&self, kind: u16, allowed: &[u16]) -> Result<Option<Self>, Refusal> {
        match self.0.get(&kind) {
            None => Ok(None),
            Some(attribute) => Self::parse(attribute.value, attribute.value_offset(), allowed).map(Some),
        }
    }

    /// Which devlink instance is meant, if one is.
    ///
    /// # Errors
    /// Half of it is missing.
    pub fn handle(&self) -> Result<Option<Handle<'a>>, Refusal> {
        match (self.text(attribute::BUS_NAME)?, self.text(attribute::DEV_NAME)?) {
            (Some(bus), Some(device)) => Ok(Some(Handle { bus, device })),
            (None, None) => Ok(None),
            (None, _) => Err(Refusal::missing(attribute::BUS_NAME)),
            (_, None) => Err(Refusal::missing(attribute::DEV_NAME)),
        }
    }

    /// Which devlink instance is meant.
    ///
    /// # Errors
    /// None is.
    pub fn required_handle(&self) -> Result<Handle<'a>, Refusal> {
        self.handle()?.ok_or(Refusal::missing(attribute::BUS_NAME))
    }

    /// The PF that is meant.
    ///
    /// # Errors
    /// None is, or it is none of ours.
    pub fn device(&self) -> Result<PciAddress, Refusal> {
        self.handle()?.ok_or(Refusal::missing(attribute::BUS_NAME))?.device()
    }

    /// The port that is meant.
    ///
    /// # Errors
    /// None is.
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
