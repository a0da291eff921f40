//! What mlx5 has and this card has not: regions, which need the vendor-specific capability of the PCI function
//! (`mlx5_crdump_enable`), and firmware that could be written.

use std::path::Path;

use netlink::Errno;

use crate::card::{Cx, Served};
use crate::instance;
use crate::numbers::attribute as a;
use crate::refusal::Refusal;
use crate::reply::ReplyWriter;
use crate::request::Attributes;

/// Refuses a request about a region: no instance has one (`devlink_nl_region_get_doit` and others in
/// `net/devlink/region.c`).
pub(super) fn region(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    instance::find(served, cx, attributes.required_handle()?)?;
    attributes.text(a::REGION_NAME)?.ok_or(Refusal::missing(a::REGION_NAME))?;
    Err(Refusal::bare(Errno::INVAL))
}

/// The same of a new snapshot, for which the kernel has words.
pub(super) fn new_snapshot(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    instance::find(served, cx, attributes.required_handle()?)?;
    if attributes.text(a::REGION_NAME)?.is_none() {
        return Err(Refusal::new(Errno::INVAL, "No region name provided"));
    }
    Err(Refusal::new(Errno::INVAL, "The requested region does not exist"))
}

/// Refuses to write firmware: the kernel if it does not find the file (`devlink_nl_flash_update_doit`), else the driver, as
/// for a card whose firmware cannot be written while it runs (`mlx5_firmware_flash`).
pub(super) fn flash(
    served: &Served,
    cx: Cx<'_, '_>,
    attributes: &Attributes<'_>,
    _: &mut ReplyWriter<'_>,
) -> Result<(), Refusal> {
    instance::find(served, cx, attributes.required_handle()?)?;
    let file = attributes.text(a::FLASH_UPDATE_FILE_NAME)?.ok_or(Refusal::missing(a::FLASH_UPDATE_FILE_NAME))?;
    if attributes.has(a::FLASH_UPDATE_COMPONENT) {
        return Err(Refusal::new(Errno::INVAL, "selected component is not supported by this device"));
    }
    if attributes.has(a::FLASH_UPDATE_OVERWRITE_MASK) {
        return Err(Refusal::unsupported("overwrite settings are not supported by this device"));
    }
    // A name that leads out of the folder names no firmware.
    let is_plain = !file.split('/').any(|part| part == "..");
    if !is_plain || !Path::new("/lib/firmware").join(file.trim_start_matches('/')).is_file() {
        return Err(Refusal::new(Errno::NOENT, "failed to locate the requested firmware file"));
    }
    Err(Refusal::bare(Errno::OPNOTSUPP))
}
