//! PCI functions: `/sys/devices/pciDDDD:BB/ADDRESS` and `/sys/bus/pci/devices`.

use control::Command;
use devlink::view;
use eswitch::PciAddress;
use netlink::Errno;

use super::bus::{self, AddedCard};
use super::config;
use super::text::{boolean, event, line, name, number};
use super::tree::{Act, Attribute, AttributeContext, Read, Subject, Template, Text, Tree, Write};

static PF: Template = Template { subdirs: COMMON_SUBDIRS, ..Template::of(&[COMMON, PF_MEMORY, PF_ONLY]) };
static VF: Template = Template { subdirs: COMMON_SUBDIRS, ..Template::of(&[COMMON, VF_MEMORY, VF_ONLY]) };
static PF_WITHOUT_VFS: Template = Template { subdirs: COMMON_SUBDIRS, ..Template::of(&[COMMON, PF_MEMORY]) };

/// The file's size must be that of the configuration space, as `lspci -xxxx` reads that much.
const CONFIG: Attribute =
    Attribute { name: "config", mode: 0o444, size: config::SIZE as u64, read: Some(config_space), write: None };

const COMMON: &[Attribute] = &[
    Attribute::ro("ari_enabled", |s| line(u8::from(is_vf(s)?))),
    Attribute::rw("broken_parity_status", |_| line(0), |_, text| number(text).map(|_| Act::Nothing)),
    Attribute::ro("class", |_| line("0x020000")),
    CONFIG,
    Attribute::ro("consistent_dma_mask_bits", |_| line(64)),
    // Each function shows its own link status (`current_link_speed_show`), and a VF has none: the field is reserved.
    Attribute::ro("current_link_speed", |s| line(if is_vf(s)? { "Unknown" } else { "16.0 GT/s PCIe" })),
    Attribute::ro("current_link_width", |s| line(if is_vf(s)? { 0 } else { 16 })),
    Attribute::rw("d3cold_allowed", |_| line(1), |_, text| boolean(text).map(|_| Act::Nothing)),
    Attribute::ro("device", |s| line(format_args!("0x{:04x}", device(s)?))),
    Attribute::ro("dma_mask_bits", |_| line(64)),
    Attribute::rw("driver_override", driver_override, set_driver_override),
    Attribute::ro("enable", |s| line(u8::from(is_enabled(s)?))),
    Attribute::ro("irq", |_| line(0)),
    Attribute::ro("local_cpulist", cpus),
    Attribute::ro("local_cpus", |s| line(mask(&cpus(s)?))),
    Attribute::ro("max_link_speed", |_| line("16.0 GT/s PCIe")),
    Attribute::ro("max_link_width", |_| line(16)),
    Attribute::ro("modalias", |s| line(modalias(s)?)),
    // The only one of these for which the kernel requires more than the file's mode (`msi_bus_store`).
    Attribute::rw("msi_bus", |_| line(1), |_, text| number(text).map(|_| Act::NothingForAdministrators)),
    Attribute::ro("numa_node", |s| line(s.card()?.profile.numa_node)),
    Attribute::ro("power_state", |s| line(power_state(s)?)),
    Attribute::wo("remove", |s, text| trigger(s, Command::Remove, text)),
    // As `rescan_store` (drivers/pci/pci-sysfs.c), it rescans the whole bus.
    Attribute::wo("rescan", |s, text| trigger(s, |_| Command::Rescan, text)),
    Attribute::wo(
        "reset",
        |s, text| {
            if number(text)? == 1 { trigger(s, Command::Reset, text) } else { Err(Errno::INVAL) }
        },
    ),
    Attribute::ro("reset_method", |_| line("flr bus")),
    Attribute::ro("resource", resource),
    Attribute::ro("revision", |s| line(format_args!("0x{:02x}", s.card()?.profile.revision))),
    Attribute::ro("subsystem_device", |s| line(format_args!("0x{:04x}", s.card()?.profile.subsystem.1))),
    Attribute::ro("subsystem_vendor", |s| line(format_args!("0x{:04x}", s.card()?.profile.subsystem.0))),
    Attribute::rw("uevent", uevent, |_, text| event(text)),
    Attribute::ro("vendor", |s| line(format_args!("0x{:04x}", s.card()?.profile.vendor))),
];

/// A function's memory (`pci_create_attr`): a file that can be opened and mapped, but not read. Here nothing is behind it, so
/// it cannot be mapped either.
const fn bar(name: &'static str, size: u64) -> Attribute {
    let (read, write) = (Some::<Read>(|_| Err(Errno::IO)), Some::<Write>(|_, _| Err(Errno::IO)));
    Attribute { name, mode: 0o600, size, read, write }
}

const PF_MEMORY: &[Attribute] = &[bar("resource0", config::PF_MEMORY), bar("resource0_wc", config::PF_MEMORY)];

const VF_MEMORY: &[Attribute] = &[bar("resource0", config::VF_MEMORY), bar("resource0_wc", config::VF_MEMORY)];

const PF_ONLY: &[Attribute] = &[
    Attribute::rw(
        "sriov_drivers_autoprobe",
        |s| line(u8::from(s.sriov()?.autoprobe)),
        |s, text| perform(s, |device| Ok(Command::SetAutoprobe { device, on: boolean(text)? })),
    ),
    Attribute::rw(
        "sriov_numvfs",
        |s| line(s.sriov()?.enabled),
        |s, text| {
            let number = u16::try_from(number(text)?).map_err(|_| Errno::RANGE)?.into();
            perform(s, |device| Ok(Command::SetNumVfs { device, number }))
        },
    ),
    Attribute::ro("sriov_offset", |s| line(s.sriov()?.offset)),
    Attribute::ro("sriov_stride", |_| line(1)),
    Attribute::ro("sriov_totalvfs", |s| line(s.sriov()?.total)),
    Attribute::ro("sriov_vf_device", |s| line(format_args!("{:x}", s.card()?.profile.vf_device))),
    Attribute::ro("sriov_vf_total_msix", |s| line(s.sriov()?.total_msix)),
];

const VF_ONLY: &[Attribute] = &[
    // As `sriov_vf_msix_count_store`: anything but an `int` from 0 is invalid.
    Attribute::wo("sriov_vf_msix_count", |s, text| {
        let count = number(text).ok().filter(|count| *count <= i32::MAX as u64).ok_or(Errno::INVAL)?;
        perform(s, |device| Ok(Command::SetVfMsix { device, count: count as u32 }))
    }),
];

const COMMON_SUBDIRS: &[Template] = &[Template { name: "power", ..Template::of(&[bus::POWER]) }];

fn device(context: &AttributeContext<'_>) -> Result<u16, Errno> {
    Ok(config::device_id(&context.card()?.profile, context.function()?))
}

fn is_vf(context: &AttributeContext<'_>) -> Result<bool, Errno> {
    Ok(context.function()?.vf_of.is_some())
}

fn is_enabled(context: &AttributeContext<'_>) -> Result<bool, Errno> {
    Ok(context.function()?.is_enabled(&context.card()?.profile))
}

/// `vfio-pci` puts a function that no program has open into its low-power state (`vfio_pci_core_register_device`).
fn power_state(context: &AttributeContext<'_>) -> Result<&'static str, Errno> {
    Ok(match (is_enabled(context)?, &context.function()?.driver) {
        (true, _) => "D0",
        (false, Some(_)) => "D3hot",
        (false, None) => "unknown",
    })
}

fn config_space(context: &AttributeContext<'_>) -> Text {
    Ok(config::space(context.card()?, context.card_index()?, context.function()?))
}

fn modalias(context: &AttributeContext<'_>) -> Result<String, Errno> {
    let profile = &context.card()?.profile;
    let (vendor, subsystem) = (profile.vendor, profile.subsystem);
    let device = device(context)?;
    Ok(format!("pci:v{vendor:08X}d{device:08X}sv{:08X}sd{:08X}bc02sc00i00", subsystem.0, subsystem.1))
}

fn uevent(context: &AttributeContext<'_>) -> Text {
    let (profile, function) = (&context.card()?.profile, context.function()?);
    let mut text = function.driver.as_ref().map_or_else(String::new, |driver| format!("DRIVER={driver}\n"));
    text += &format!("PCI_CLASS=20000\nPCI_ID={:04X}:{:04X}\n", profile.vendor, device(context)?);
    text += &format!("PCI_SUBSYS_ID={:04X}:{:04X}\n", profile.subsystem.0, profile.subsystem.1);
    text += &format!("PCI_SLOT_NAME={}\nMODALIAS={}\n", function.address, modalias(context)?);
    Ok(text.into_bytes())
}

/// The list of the processors that are near to the card: those of its NUMA node, or without one all that are online
/// (`pci_dev_show_local_cpu`). A node that this machine does not have has no processors.
fn cpus(context: &AttributeContext<'_>) -> Text {
    Ok(match context.card()?.profile.numa_node {
        ..0 => context.kernel.read("devices/system/cpu/online").unwrap_or_else(|| b"0\n".to_vec()),
        node => {
            let list = context.kernel.read(&format!("devices/system/node/node{node}/cpulist"));
            list.unwrap_or_else(|| b"\n".to_vec())
        }
    })
}

/// Converts a list of processors to a mask (`cpulist` to `cpumap`).
fn mask(list: &[u8]) -> String {
    let list = String::from_utf8_lossy(list);
    let mut words = vec![0_u32];
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else { continue };
        for cpu in first..=last.min(8191) {
            words.resize(words.len().max(cpu / 32 + 1), 0);
            if let Some(word) = words.get_mut(cpu / 32) {
                *word |= 1 << (cpu % 32);
            }
        }
    }
    let mut words = words.iter().rev();
    let first = words.next().map_or_else(String::new, |word| format!("{word:x}"));
    words.fold(first, |text, word| format!("{text},{word:08x}"))
}

/// The address ranges of a function: its BARs, its ROM and, for a PF, the BARs of its VFs.
fn resource(context: &AttributeContext<'_>) -> Text {
    const MEMORY: u64 = 0x0014_220c;
    let (function, card) = (context.function()?, context.card_index()?);
    let mut lines = [(0, 0, 0); 13];
    let own = config::memory(card, function);
    lines[0] = (own.start, own.start + own.size - 1, MEMORY);
    if let Some(sriov) = function.sriov.as_ref().filter(|sriov| sriov.total > 0) {
        let start = config::vf_memory(card, function.address);
        lines[7] = (start, start + (u64::from(sriov.total) << 20) - 1, MEMORY);
    }
    let text = lines.iter().map(|(start, end, flags)| format!("0x{start:016x} 0x{end:016x} 0x{flags:016x}\n"));
    Ok(text.collect::<String>().into_bytes())
}

fn driver_override(context: &AttributeContext<'_>) -> Text {
    line(context.function()?.driver_override.as_deref().unwrap_or("(null)"))
}

fn set_driver_override(context: &AttributeContext<'_>, text: &str) -> Result<Act, Errno> {
    // Up to the first newline (`driver_set_override`).
    let text = text.split('\n').next().unwrap_or_default();
    let driver = if text.is_empty() { None } else { Some(name(text)?.to_owned()) };
    perform(context, |device| Ok(Command::SetDriverOverride { device, driver }))
}

/// Has the card carry out a command if a number other than 0 is written.
fn trigger(context: &AttributeContext<'_>, command: fn(PciAddress) -> Command, text: &str) -> Result<Act, Errno> {
    if number(text)? == 0 { Ok(Act::Nothing) } else { perform(context, |device| Ok(command(device))) }
}

/// Has the card carry out a command on this function.
fn perform(
    context: &AttributeContext<'_>,
    command: impl FnOnce(PciAddress) -> Result<Command, Errno>,
) -> Result<Act, Errno> {
    let device = context.function()?.address;
    Ok(Act::Perform { card: Some(context.card_index()?), command: command(device)? })
}

/// The directory in which a card's functions are: that of the bus of its first PF.
fn root(card: &view::Card, function: &view::Function) -> String {
    let pf = function.vf_of.map_or(function.address, |(pf, _)| pf);
    let pf = card.functions.first().map_or(pf, |first| first.address);
    format!("devices/pci{:04x}:{:02x}", pf.domain, pf.bus)
}

/// The directory of a function.
pub(super) fn path(card: &view::Card, function: &view::Function) -> String {
    format!("{}/{}", root(card, function), function.address)
}

/// The number of a function's IOMMU group. Each function has a group of its own, as behind ports with Access Control
/// Services. The kernel counts its groups from 0 (`iommu_group_alloc`); a card's have the routing ids of their functions,
/// which no other function has and which stay the same as long as the function's address does.
fn iommu_group(address: PciAddress) -> u64 {
    let device = u64::from(address.device) << 3 | u64::from(address.function);
    u64::from(address.domain) << 16 | u64::from(address.bus) << 8 | device
}

/// Adds a card's functions to the tree.
pub(super) fn add(tree: &mut Tree, added: &AddedCard<'_>) {
    for (at, function) in added.card.functions.iter().enumerate() {
        tree.make_over(&root(added.card, function), &bus::ROOT_PORT);
        let path = path(added.card, function);
        let template = match (&function.vf_of, &function.sriov) {
            (Some(_), _) => &VF,
            (None, Some(_)) => &PF,
            (None, None) => &PF_WITHOUT_VFS,
        };
        tree.make(&path, template, Subject::Function(added.at, at));
        let address = function.address.to_string();
        tree.link("bus/pci/devices", &address, &path);
        tree.link(&path, "subsystem", "bus/pci");
        tree.link(&path, "iommu_group", &format!("kernel/iommu_groups/{}", iommu_group(function.address)));
        if let Some(driver) = &function.driver {
            let driver = format!("bus/pci/drivers/{driver}");
            tree.link(&path, "driver", &driver);
            tree.link(&driver, &address, &path);
        }
        if let Some((pf, vf)) = &function.vf_of {
            let pf = format!("{}/{pf}", root(added.card, function));
            tree.link(&path, "physfn", &pf);
            tree.link(&pf, &format!("virtfn{vf}"), &path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_masks() {
        let pairs = [("0\n", "1"), ("0-1\n", "3"), ("0-3,8", "10f"), ("0-32", "1,ffffffff"), ("", "0"), ("x", "0")];
        for (list, expected) in pairs {
            assert_eq!(mask(list.as_bytes()), expected, "{list:?}");
        }
    }
}
