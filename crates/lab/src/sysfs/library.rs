//! `/lib/modules/RELEASE`, in which `modprobe` and `modinfo` look modules up: the system's files, with the cards'
//! modules added.
//!
//! The file of a card's module is an ELF object with only the information that `modinfo` shows. It contains [`MARK`]
//! and the module's name, by which the lab recognises the module when a program loads it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use devlink::view;

use super::bus::LIBRARY;
use super::index::{self, Keys};

/// The text before the module's name in the file of a card's module. The name ends with a zero byte.
pub const MARK: &str = "eswitch-module=";

/// The name of a card's module, from its file. `None`: the file is of no card's module.
pub fn module_name(file: &[u8]) -> Option<&str> {
    let mark = MARK.as_bytes();
    let at = file.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let rest = &file[at..];
    std::str::from_utf8(&rest[..rest.iter().position(|byte| *byte == 0)?]).ok()
}

/// What the files are made from: all modules of the cards, loaded or not. It changes only when a card appears or
/// disappears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents(Vec<(view::Profile, Vec<view::Module>)>);

impl Contents {
    pub(super) fn of(cards: &[Option<Arc<view::Card>>]) -> Self {
        let modules =
            |card: &view::Card| card.modules.iter().map(|m| view::Module { loaded: false, ..m.clone() }).collect();
        Self(cards.iter().flatten().map(|card| (card.profile.clone(), modules(card))).collect())
    }

    fn modules(&self) -> impl Iterator<Item = (&view::Profile, &view::Module)> {
        self.0.iter().flat_map(|(profile, modules)| modules.iter().map(move |module| (profile, module)))
    }
}

/// The indexes of all modules.
pub(super) struct Indexes(HashMap<&'static str, Arc<[u8]>>);

impl Indexes {
    /// Makes the indexes. `read` reads the system's.
    pub(super) fn new(contents: &Contents, read: impl Fn(&str) -> Option<Vec<u8>>) -> Self {
        let lines = |file| String::from_utf8_lossy(&read(file).unwrap_or_default()).into_owned();
        let (dep, dep_bin) = dependencies(contents, &lines("modules.dep"));
        let (alias, alias_bin) = all_aliases(contents, &lines("modules.alias"));
        let empty = index::write(&Keys::new());
        let files = [
            ("modules.dep", dep.into_bytes()),
            ("modules.dep.bin", dep_bin),
            ("modules.alias", alias.into_bytes()),
            ("modules.alias.bin", alias_bin),
            ("modules.builtin.alias.bin", empty.clone()),
            ("modules.builtin.bin", empty.clone()),
            ("modules.symbols.bin", empty),
        ];
        Self(files.into_iter().map(|(name, bytes)| (name, bytes.into())).collect())
    }

    /// The index of a name; empty if there is none.
    pub(super) fn get(&self, name: &str) -> Arc<[u8]> {
        self.0.get(name).cloned().unwrap_or_else(|| Arc::from(&[][..]))
    }
}

/// The path of a module's file.
fn file_of(module: &str) -> String {
    format!("{LIBRARY}/{module}.ko")
}

/// A module's name as the kernel writes it.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that must be loaded before a module, the nearest first, in the order of `depmod`.
fn needed<'a>(contents: &'a Contents, module: &'a view::Module, found: &mut Vec<&'a str>) {
    for name in &module.depends {
        if found.contains(&name.as_str()) || *name == module.name {
            continue;
        }
        found.push(name);
        if let Some((_, next)) = contents.modules().find(|(_, other)| other.name == *name) {
            needed(contents, next, found);
        }
    }
}

/// `modules.dep` and `modules.dep.bin`.
fn dependencies(contents: &Contents, systems: &str) -> (String, Vec<u8>) {
    let mut lines: Vec<(String, String)> = Vec::new();
    for (_, module) in contents.modules() {
        let mut found = Vec::new();
        needed(contents, module, &mut found);
        let needed: String = found.iter().map(|name| format!(" {}", file_of(name))).collect();
        lines.push((plain(&module.name), format!("{}:{needed}", file_of(&module.name))));
    }
    for line in systems.lines() {
        let file = line.split(':').next().unwrap_or_default();
        let name = file.rsplit('/').next().unwrap_or_default().split('.').next().unwrap_or_default();
        lines.push((plain(name), line.to_owned()));
    }
    let (mut text, mut keys) = (String::new(), Keys::new());
    for (name, line) in lines {
        // A card's module replaces the system's module of the same name.
        if let std::collections::btree_map::Entry::Vacant(place) = keys.entry(name) {
            let _ = writeln!(text, "{line}");
            place.insert(vec![line]);
        }
    }
    (text, index::write(&keys))
}

/// `modules.alias` and `modules.alias.bin`.
fn all_aliases(contents: &Contents, systems: &str) -> (String, Vec<u8>) {
    let mut text = "# Aliases extracted from modules themselves.\n".to_owned();
    let mut keys = Keys::new();
    let mut enter = |alias: &str, module: &str| {
        let values = keys.entry(normal(alias)).or_default();
        if !values.iter().any(|value| value == module) {
            values.push(module.to_owned());
            let _ = writeln!(text, "alias {alias} {module}");
        }
    };
    for (profile, module) in contents.modules() {
        for alias in aliases(profile, module) {
            enter(&alias, &plain(&module.name));
        }
    }
    for line in systems.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some("alias"), Some(alias), Some(module)) = (words.next(), words.next(), words.next()) {
            enter(alias, module);
        }
    }
    (text, index::write(&keys))
}

/// An alias as `kmod` looks it up: with `_` for `-`, except in brackets (`alias_normalize`).
fn normal(alias: &str) -> String {
    let mut inside = false;
    let change = |c: char| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            '-' if !inside => return '_',
            _ => {}
        }
        c
    };
    alias.chars().map(change).collect()
}

/// The aliases of a module: the devices that its drivers serve.
fn aliases(profile: &view::Profile, module: &view::Module) -> Vec<String> {
    let mut aliases = Vec::new();
    for (bus, driver) in &module.drivers {
        match bus.as_str() {
            "pci" if *driver == profile.driver => {
                let pci = |device| format!("pci:v{:08X}d{device:08X}sv*sd*bc*sc*i*", profile.vendor);
                aliases.extend([pci(profile.device), pci(profile.vf_device)]);
            }
            // Auxiliary devices are named after the core driver, whichever module serves them.
            "auxiliary" => {
                let kind = driver.split_once('.').map_or(driver.as_str(), |(_, kind)| kind);
                aliases.push(format!("auxiliary:{}.{kind}", profile.driver));
            }
            _ => {}
        }
    }
    aliases.dedup();
    aliases
}

/// The content of a module's file.
pub(super) fn module_file(profile: &view::Profile, module: &view::Module, release: &str) -> Vec<u8> {
    let mut info = format!("{MARK}{}\0name={}\0", module.name, plain(&module.name));
    let _ = write!(info, "description={}\0license=MIT OR Apache-2.0\0", module.description.replace('\0', " "));
    for alias in aliases(profile, module) {
        let _ = write!(info, "alias={alias}\0");
    }
    let _ = write!(info, "depends={}\0intree=Y\0vermagic={release} SMP mod_unload \0", module.depends.join(","));
    object(info.as_bytes())
}

/// A relocatable ELF object for this machine with a section `.modinfo`.
fn object(info: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
    const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let table = (HEADER + info.len() + NAMES.len()).next_multiple_of(8);
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([1_u16, MACHINE].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([0, 0, table as u64].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend([HEADER as u16, 0, 0, 64, 3, 2].map(u16::to_le_bytes).concat());
    file.extend_from_slice(info);
    file.extend_from_slice(NAMES);
    file.resize(table, 0);
    file.extend([0; 64]);
    let mut section = |name: u32, kind: u32, flags: u64, offset: usize, size: usize| {
        file.extend([name, kind].map(u32::to_le_bytes).concat());
        file.extend([flags, 0, offset as u64, size as u64, 0, 1, 0].map(u64::to_le_bytes).concat());
    };
    section(1, 1, 2, HEADER, info.len());
    section(10, 3, 0, HEADER + info.len(), NAMES.len());
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_recognised_by_its_file_and_found_in_the_indexes() {
        let module = view::Module {
            name: "mlx5_ib".to_owned(),
            loaded: false,
            depends: vec!["mlx5_core".to_owned()],
            description: "RDMA".to_owned(),
            drivers: vec![("auxiliary".to_owned(), "mlx5_ib.rdma".to_owned())],
        };
        let profile = view::Profile {
            name: "mlx5".to_owned(),
            vendor: 0x15b3,
            device: 0x101d,
            vf_device: 0x101e,
            subsystem: (0x15b3, 0x16),
            revision: 0,
            driver: "mlx5_core".to_owned(),
            firmware: String::new(),
            board: String::new(),
            speed: 100_000,
            numa_node: -1,
        };
        let file = module_file(&profile, &module, "6.1");
        assert_eq!(module_name(&file), Some("mlx5_ib"));
        assert_eq!(module_name(b"\x7fELF"), None);
        assert_eq!(module_name(b"eswitch-module=x"), None);
        let contents = Contents(vec![(profile, vec![module])]);
        let (text, _) = dependencies(&contents, "kernel/a/mlx5-ib.ko.xz: kernel/b.ko\nkernel/vxlan.ko:\n");
        assert_eq!(text, "kernel/drivers/eswitch/mlx5_ib.ko: kernel/drivers/eswitch/mlx5_core.ko\nkernel/vxlan.ko:\n");
        let (text, _) = all_aliases(&contents, "alias fs-vfat vfat\n");
        assert_eq!(
            text.lines().skip(1).collect::<Vec<_>>(),
            ["alias auxiliary:mlx5_core.rdma mlx5_ib", "alias fs-vfat vfat"]
        );
    }
}
