//! What `echo VALUE > FILE` does to files of the card below `/sys/bus`.

use eswitch::PciAddress;

use super::pci_address;
use crate::command::Command;
use crate::reader::{WordError, Words};

/// The files that can be written, for the error about another file.
const FILES: &str = "`/sys/bus/pci/devices/ADDRESS/sriov_numvfs`, or there `sriov_drivers_autoprobe`, `sriov_vf_msix_count`, \
                     `driver_override`, `driver/unbind`, `remove` or `reset`, or `/sys/bus/pci/drivers/mlx5_core/bind`, \
                     `…/unbind` (or those of `vfio-pci`), `/sys/bus/pci/drivers_probe` or `/sys/bus/pci/rescan`";

/// `VALUE > FILE`; the value may be left out, or be `""`.
pub(super) fn echo(words: &mut Words<'_>) -> Result<Command, WordError> {
    // No value needs a line break at its end.
    words.accept("-n");
    let mut value = words.clone();
    if words.peek() != Some(">") {
        words.next("a number of VFs, a PCI address or another value")?;
    }
    words.literal(">")?;
    let (at, path) = words.next(FILES)?;
    let unknown = || WordError { at, message: format!("expected {FILES}, found `{path}`") };
    match path.strip_prefix(SF_DRIVER) {
        Some("bind") => return Ok(Command::SetSfBound { id: sf_device(&mut value)?, bound: true }),
        Some("unbind") => return Ok(Command::SetSfBound { id: sf_device(&mut value)?, bound: false }),
        _ => {}
    }
    let file = path.strip_prefix("/sys/bus/pci/").ok_or_else(unknown)?;
    match file {
        "drivers/mlx5_core/bind" => return Ok(Command::Bind(pci_address(&mut value)?)),
        "drivers/mlx5_core/unbind" => return Ok(Command::Unbind(pci_address(&mut value)?)),
        "drivers/vfio-pci/bind" => return Ok(Command::BindVfio(pci_address(&mut value)?)),
        "drivers/vfio-pci/unbind" => return Ok(Command::UnbindVfio(pci_address(&mut value)?)),
        "drivers_probe" => return Ok(Command::Probe(pci_address(&mut value)?)),
        "rescan" => return one(&mut value).map(|()| Command::Rescan),
        _ => {}
    }
    let (address, file) = file.strip_prefix("devices/").and_then(|rest| rest.split_once('/')).ok_or_else(unknown)?;
    let address: PciAddress = address.parse().map_err(|error: eswitch::ParseError| WordError {
        at: at + "/sys/bus/pci/devices/".len(),
        message: error.to_string(),
    })?;
    Ok(match file {
        "sriov_numvfs" => Command::SetNumVfs { device: address, number: value.parse("a number of VFs")? },
        "sriov_drivers_autoprobe" => Command::SetAutoprobe { device: address, on: value.one_of(&["0", "1"])? == "1" },
        "driver_override" => Command::SetDriverOverride { device: address, driver: driver(&value) },
        "sriov_vf_msix_count" => Command::SetVfMsix { device: address, count: value.parse("a number of vectors")? },
        // As in the kernel, the value names the device.
        "driver/unbind" => Command::Unbind(pci_address(&mut value)?),
        "remove" => one(&mut value).map(|()| Command::Remove(address))?,
        "reset" => one(&mut value).map(|()| Command::Reset(address))?,
        _ => return Err(unknown()),
    })
}

/// The folder of the driver of SFs' devices.
const SF_DRIVER: &str = "/sys/bus/auxiliary/drivers/mlx5_core.sf/";

/// The number of an SF's device: `mlx5_core.sf.2`.
fn sf_device(value: &mut Words<'_>) -> Result<u32, WordError> {
    let (at, name) = value.next("an SF's device such as mlx5_core.sf.2")?;
    let number = name.strip_prefix("mlx5_core.sf.").and_then(|number| number.parse().ok());
    let wrong = || WordError { at, message: format!("expected an SF's device such as mlx5_core.sf.2, found `{name}`") };
    number.ok_or_else(wrong)
}

/// The name of a driver; `None`, which allows any driver, if the value is empty.
fn driver(value: &Words<'_>) -> Option<String> {
    let name = value.peek().filter(|word| *word != ">")?.trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}

fn one(value: &mut Words<'_>) -> Result<(), WordError> {
    value.literal("1")
}
