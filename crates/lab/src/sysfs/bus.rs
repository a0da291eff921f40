//! What does not belong to one device: the buses with their drivers, the auxiliary bus with its devices, modules, and
//! the directories that contain them.

use std::collections::HashMap;

use control::Command;
use devlink::view::{self, DeviceName};
use eswitch::auxiliary::AuxiliaryName;
use eswitch::{OtherDriver, PciAddress};
use netlink::Errno;

use super::pci;
use super::text::{event, line, name, number};
use super::tree::{
    Act, Attribute, AttributeContext, EMPTY, Entry, LibraryFile, LowerPath, LowerTree, Subject, Template, Text, Tree,
};

/// A card that is added to the tree.
pub(super) struct AddedCard<'a> {
    pub(super) card: &'a view::Card,
    /// The card's index.
    pub(super) at: usize,
    /// The kernel's release.
    pub(super) release: &'a str,
    /// The paths of the card's devices, by name.
    devices: HashMap<DeviceName, String>,
}

impl<'a> AddedCard<'a> {
    pub(super) fn new(card: &'a view::Card, at: usize, release: &'a str) -> Self {
        let functions = card.functions.iter().map(|f| (DeviceName::Pci(f.address), pci::path(card, f)));
        let mut added = Self { card, at, release, devices: functions.collect() };
        // A device may be listed before its parent. A device without a parent in the tree is left out.
        let mut left: Vec<&view::Auxiliary> = card.auxiliary.iter().collect();
        loop {
            let before = left.len();
            left.retain(|device| match added.device(device.parent).map(|above| format!("{above}/{}", device.name)) {
                Some(path) => {
                    added.devices.insert(DeviceName::Auxiliary(device.name), path);
                    false
                }
                None => true,
            });
            if left.len() == before {
                return added;
            }
        }
    }

    /// The path of a device.
    pub(super) fn device(&self, device: DeviceName) -> Option<&str> {
        self.devices.get(&device).map(String::as_str)
    }
}

/// The attributes of a device's directory `power` that programs use.
pub(super) const POWER: &[Attribute] = &[
    Attribute::rw(
        "control",
        |_| line("on"),
        |_, text| match text {
            "on" | "auto" => Ok(Act::Nothing),
            _ => Err(Errno::INVAL),
        },
    ),
    Attribute::ro("runtime_active_time", |_| line(0)),
    Attribute::ro("runtime_status", |_| line("active")),
    Attribute::ro("runtime_suspended_time", |_| line(0)),
];

/// The directory of the root of a PCI bus.
pub(super) static ROOT_PORT: Template = Template::of(&[&[Attribute::rw("uevent", |_| Ok(Vec::new()), send_event)]]);

static ROOT: Template = Template::of(&[&[Attribute { size: 0, ..Attribute::ro("proc-modules", proc_modules) }]]);

static PCI_BUS: Template = Template::of(&[&[
    Attribute::wo("drivers_probe", |s, text| match card_with_function(s, name(text)?) {
        Some((card, device)) => Ok(perform(card, Command::Probe(device))),
        None => Ok(Act::Kernel),
    }),
    Attribute::wo("rescan", |_, text| match number(text)? {
        0 => Ok(Act::Nothing),
        _ => Ok(Act::Perform { card: None, command: Command::Rescan }),
    }),
]]);

static AUXILIARY_BUS: Template = Template::of(&[&[
    Attribute::rw("drivers_autoprobe", |_| line(1), |_, _| Ok(Act::Kernel)),
    Attribute::wo("drivers_probe", |s, text| match card_with_auxiliary(s, name(text)?) {
        // A device that has a driver keeps it (`bus_rescan_devices_helper`).
        Some((_, auxiliary)) if auxiliary.driver.is_some() => Ok(Act::Nothing),
        Some((card, auxiliary)) => set_sf_bound(card, auxiliary, true),
        None => Ok(Act::Kernel),
    }),
    Attribute::wo("uevent", send_event),
]]);

static PCI_DRIVER: Template = Template::of(&[DRIVER, &[Attribute::wo("new_id", ids), Attribute::wo("remove_id", ids)]]);

static AUXILIARY_DRIVER: Template = Template::of(&[DRIVER]);

const DRIVER: &[Attribute] = &[
    Attribute::wo("bind", |s, text| driver(s, true, text)),
    Attribute::wo("uevent", send_event),
    Attribute::wo("unbind", |s, text| driver(s, false, text)),
];

static AUXILIARY: Template =
    Template { subdirs: DEVICE_SUBDIRS, ..Template::of(&[&[Attribute::rw("uevent", auxiliary_uevent, send_event)]]) };

static SF: Template = Template {
    subdirs: DEVICE_SUBDIRS,
    ..Template::of(&[&[
        Attribute::ro("sfnum", |s| line(s.auxiliary()?.sfnum.ok_or(Errno::NODEV)?.0)),
        Attribute::rw("uevent", auxiliary_uevent, send_event),
    ]])
};

const DEVICE_SUBDIRS: &[Template] = &[Template { name: "power", ..Template::of(&[POWER]) }];

static MODULE: Template = Template {
    subdirs: &[Template { name: "parameters", ..Template::of(&[]) }],
    ..Template::of(&[&[
        Attribute::ro("coresize", |s| line(size(s.module()?))),
        Attribute::ro("initsize", |_| line(0)),
        Attribute::ro("initstate", |_| line("live")),
        Attribute::ro("refcnt", |s| line(holders(s.card()?, &s.module()?.name).count())),
        Attribute::ro("taint", |_| line("")),
        Attribute::wo("uevent", send_event),
    ]])
};

/// The indexes of `/lib/modules` to which the cards' modules are added.
pub(super) const INDEXES: [&str; 4] = ["modules.dep", "modules.dep.bin", "modules.alias", "modules.alias.bin"];

/// Further files that `kmod` requires.
pub(super) const FILLERS: [&str; 9] = [
    "modules.builtin",
    "modules.builtin.alias.bin",
    "modules.builtin.bin",
    "modules.builtin.modinfo",
    "modules.devname",
    "modules.order",
    "modules.softdep",
    "modules.symbols",
    "modules.symbols.bin",
];

/// The directory of the cards' modules in `/lib/modules/RELEASE`.
pub(super) const LIBRARY: &str = "kernel/drivers/eswitch";

/// A write to `uevent`.
fn send_event(_: &AttributeContext<'_>, text: &str) -> Result<Act, Errno> {
    event(text)
}

fn perform(card: usize, command: Command) -> Act {
    Act::Perform { card: Some(card), command }
}

/// Binds or unbinds the driver of an SF. Programs cannot do so with other auxiliary devices: EINVAL.
fn set_sf_bound(card: usize, auxiliary: &view::Auxiliary, bound: bool) -> Result<Act, Errno> {
    match auxiliary.name {
        AuxiliaryName::Sf { id } => Ok(perform(card, Command::SetSfBound { id, bound })),
        AuxiliaryName::Part { .. } => Err(Errno::INVAL),
    }
}

fn card_with_function(context: &AttributeContext<'_>, device: &str) -> Option<(usize, PciAddress)> {
    let Some(DeviceName::Pci(address)) = DeviceName::parse("pci", device) else { return None };
    let has = |card: &view::Card| card.functions.iter().any(|function| function.address == address);
    context.every_card().find(|(_, card)| has(card)).map(|(at, _)| (at, address))
}

fn card_with_auxiliary<'s>(context: &'s AttributeContext<'_>, device: &str) -> Option<(usize, &'s view::Auxiliary)> {
    let Some(DeviceName::Auxiliary(name)) = DeviceName::parse("auxiliary", device) else { return None };
    let mut devices = context.every_card().flat_map(|(at, card)| card.auxiliary.iter().map(move |one| (at, one)));
    devices.find(|(_, auxiliary)| auxiliary.name == name)
}

/// `bind` and `unbind`: of a card's device at the card, of any other device at the kernel's file.
fn driver(context: &AttributeContext<'_>, bound: bool, text: &str) -> Result<Act, Errno> {
    let device = name(text).map_err(|_| Errno::NODEV)?;
    if context.dir.path.starts_with("bus/pci/") {
        let Some((card, device)) = card_with_function(context, device) else { return Ok(Act::Kernel) };
        let vfio = context.name() == OtherDriver::VfioPci.name();
        let command = match (vfio, bound) {
            (true, true) => Command::BindVfio,
            (true, false) => Command::UnbindVfio,
            (false, true) => Command::Bind,
            (false, false) => Command::Unbind,
        };
        return Ok(perform(card, command(device)));
    }
    let Some((card, auxiliary)) = card_with_auxiliary(context, device) else { return Ok(Act::Kernel) };
    // The kernel matches a driver by the name without its number, and refuses what does not match.
    let driver = context.name();
    if auxiliary.name.match_name() == driver { set_sf_bound(card, auxiliary, bound) } else { Err(Errno::NODEV) }
}

/// `new_id` and `remove_id`: ids are passed on to the kernel's driver; a card's driver has those of its card.
fn ids(_: &AttributeContext<'_>, text: &str) -> Result<Act, Errno> {
    let mut ids = text.split_ascii_whitespace().map(|id| u32::from_str_radix(id, 16));
    match (ids.next(), ids.next(), ids.all(|id| id.is_ok())) {
        (Some(Ok(_)), Some(Ok(_)), true) => Ok(Act::Kernel),
        _ => Err(Errno::INVAL),
    }
}

fn auxiliary_uevent(context: &AttributeContext<'_>) -> Text {
    let device = context.auxiliary()?;
    let mut text = device.driver.as_ref().map_or_else(String::new, |driver| format!("DRIVER={driver}\n"));
    // Without its number, by which the kernel matches drivers.
    text += &format!("MODALIAS=auxiliary:{}\n", device.name.match_name());
    Ok(text.into_bytes())
}

/// The loaded modules that depend on a module.
fn holders<'a>(card: &'a view::Card, module: &'a str) -> impl Iterator<Item = &'a view::Module> {
    let holds = move |other: &&view::Module| other.loaded && other.depends.iter().any(|name| name == module);
    card.modules.iter().filter(holds)
}

/// The size to show for a module, in bytes. A card's module takes none of the kernel's memory.
fn size(module: &view::Module) -> usize {
    4096 * (1 + module.drivers.len())
}

/// `/proc/modules`: the cards' modules, then the kernel's.
fn proc_modules(context: &AttributeContext<'_>) -> Text {
    let mut text = String::new();
    let mut seen: Vec<&str> = Vec::new();
    for (_, card) in context.every_card() {
        for module in card.modules.iter().filter(|module| module.loaded) {
            if seen.contains(&module.name.as_str()) {
                continue;
            }
            seen.push(&module.name);
            let names: Vec<&str> = holders(card, &module.name).map(|holder| holder.name.as_str()).collect();
            let held = names.iter().map(|name| format!("{name},")).collect::<String>();
            let held = if held.is_empty() { "-" } else { &held };
            let size = size(module);
            text += &format!("{} {size} {} {held} Live 0x0000000000000000\n", module.name, names.len());
        }
    }
    let kernels = context.kernel.proc_modules().unwrap_or_default();
    let kernels = String::from_utf8_lossy(&kernels);
    for other in kernels.lines().filter(|line| !seen.contains(&line.split(' ').next().unwrap_or_default())) {
        text += other;
        text.push('\n');
    }
    Ok(text.into_bytes())
}

/// Makes the directories that exist without any card.
pub(super) fn root(tree: &mut Tree, release: &str) {
    tree.make("", &ROOT, Subject::Nothing).lasting = true;
    for path in ["bus", "class", "devices", "module", "bus/pci/devices", "bus/pci/drivers"] {
        over(tree, path, &EMPTY);
    }
    for path in ["bus/auxiliary/devices", "bus/auxiliary/drivers", "class/net", "class/infiniband"] {
        over(tree, path, &EMPTY);
    }
    over(tree, "devices/virtual/net", &EMPTY);
    for path in ["class/net", "devices/virtual/net"] {
        if let Some(dir) = tree.existing(path) {
            dir.hides_netdevs = true;
        }
    }
    library(tree, release);
}

/// Makes a directory through which the kernel's is seen, and those above it.
fn over(tree: &mut Tree, path: &str, last: &'static Template) {
    for (end, _) in path.match_indices('/') {
        let template = match &path[..end] {
            "bus/pci" => &PCI_BUS,
            "bus/auxiliary" => &AUXILIARY_BUS,
            _ => &EMPTY,
        };
        tree.make_over(&path[..end], template);
    }
    tree.make_over(path, last);
}

fn library(tree: &mut Tree, release: &str) {
    let mut path = "lib-modules".to_owned();
    let mut lower = String::new();
    for part in std::iter::once("").chain(std::iter::once(release)).chain(LIBRARY.split('/')) {
        if !part.is_empty() {
            path = format!("{path}/{part}");
            lower = if lower.is_empty() { part.to_owned() } else { format!("{lower}/{part}") };
        }
        let dir = tree.make(&path, &EMPTY, Subject::Nothing);
        dir.lower = Some(LowerPath { base: LowerTree::Modules, path: lower.clone() });
        dir.lasting = true;
    }
    let Some(dir) = tree.existing(&format!("lib-modules/{release}")) else { return };
    for index in INDEXES {
        dir.entries.insert(index.into(), Entry::Library(LibraryFile::Index(index)));
    }
    for filler in FILLERS {
        dir.entries.insert(filler.into(), Entry::Library(LibraryFile::Filler(filler)));
    }
}

/// Adds a card's auxiliary devices to the tree.
pub(super) fn add_auxiliary(tree: &mut Tree, added: &AddedCard<'_>) {
    let placed = added.card.auxiliary.iter().enumerate();
    let mut placed: Vec<_> = placed
        .filter_map(|(at, device)| Some((added.devices.get(&DeviceName::Auxiliary(device.name))?, at, device)))
        .collect();
    // A parent's path sorts before its children's.
    placed.sort_by_key(|(path, ..)| *path);
    for (path, at, device) in placed {
        let template = if device.sfnum.is_some() { &SF } else { &AUXILIARY };
        tree.make(path, template, Subject::Auxiliary(added.at, at));
        tree.link("bus/auxiliary/devices", &device.name.to_string(), path);
        tree.link(path, "subsystem", "bus/auxiliary");
        if let Some(driver) = &device.driver {
            add_driver(tree, "auxiliary", driver);
            let driver = format!("bus/auxiliary/drivers/{driver}");
            tree.link(path, "driver", &driver);
            tree.link(&driver, &device.name.to_string(), path);
        }
    }
}

fn add_driver(tree: &mut Tree, bus: &str, driver: &str) -> String {
    let path = format!("bus/{bus}/drivers/{driver}");
    match bus {
        "pci" => tree.make_over(&path, &PCI_DRIVER),
        _ => tree.make_over(&path, &AUXILIARY_DRIVER),
    }
    .lasting = false;
    path
}

/// Adds a card's modules to the tree, and the drivers of those that are loaded.
pub(super) fn add_modules(tree: &mut Tree, added: &AddedCard<'_>) {
    let library = format!("lib-modules/{}/{LIBRARY}", added.release);
    for (at, module) in added.card.modules.iter().enumerate() {
        if let Some(dir) = tree.existing(&library) {
            let file = Entry::Library(LibraryFile::Module(added.at, at));
            dir.entries.insert(format!("{}.ko", module.name).into(), file);
        }
        if !module.loaded {
            continue;
        }
        let path = format!("module/{}", module.name);
        tree.make(&path, &MODULE, Subject::Module(added.at, at));
        tree.make(&format!("{path}/holders"), &EMPTY, Subject::Nothing);
        tree.make(&format!("{path}/drivers"), &EMPTY, Subject::Nothing);
        for holder in holders(added.card, &module.name) {
            tree.link(&format!("{path}/holders"), &holder.name, &format!("module/{}", holder.name));
        }
        for (bus, driver) in &module.drivers {
            if !["pci", "auxiliary"].contains(&bus.as_str()) {
                continue;
            }
            let driver_path = add_driver(tree, bus, driver);
            tree.link(&driver_path, "module", &path);
            tree.link(&format!("{path}/drivers"), &format!("{bus}:{driver}"), &driver_path);
        }
    }
}
