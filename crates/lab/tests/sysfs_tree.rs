//! The card's `/sys` as a tree, without a file system.

mod sysfs_fixture;

use std::collections::BTreeMap;
use std::sync::Arc;

use control::Command;
use devlink::view;
use eswitch::PciAddress;
use lab::sysfs::tree::{Act, AttributeContext, Dir, Entry, Kernel, Names, Template, Tree, follow, relative};
use netlink::Errno;
use sysfs_fixture::{PF, card};

struct NoKernel;

impl Kernel for NoKernel {
    fn read(&self, path: &str) -> Option<Vec<u8>> {
        match path {
            "class/net/enp8s0f0np0/address" => Some(b"02:00:00:00:00:08\n".to_vec()),
            "class/net/enp8s0f0np0/operstate" => Some(b"up\n".to_vec()),
            "devices/system/cpu/online" => Some(b"0-3\n".to_vec()),
            "devices/system/node/node1/cpulist" => Some(b"2-3\n".to_vec()),
            _ => None,
        }
    }

    fn proc_modules(&self) -> Option<Vec<u8>> {
        Some(b"mlx5_core 1 0 - Live 0x0\nvxlan 4096 0 - Live 0x0\n".to_vec())
    }
}

fn tree(cards: &[&view::Card]) -> Tree {
    Tree::new(cards.iter().map(|card| Some(Arc::new((*card).clone()))).collect(), "6.1", &Names::AS_IN_VIEW)
}

fn context<'a>(tree: &'a Tree, dir: &'a Dir) -> AttributeContext<'a> {
    AttributeContext { cards: &tree.cards, dir, kernel: &NoKernel }
}

fn read(tree: &Tree, dir: &str, name: &str) -> Result<String, Errno> {
    let (dir, template) = find(tree, dir);
    let text = (template.attribute(name).expect(name).read.expect(name))(&context(tree, dir))?;
    Ok(String::from_utf8(text).unwrap())
}

/// A directory of the tree, and its template or that of a subdirectory of constant content.
fn find<'t>(tree: &'t Tree, path: &str) -> (&'t Dir, &'t Template) {
    let mut ends = path.len();
    loop {
        if let Some(dir) = tree.dir_at(&path[..ends]) {
            let subdirs = path[ends..].split('/').filter(|part| !part.is_empty());
            return (dir, subdirs.fold(dir.template, |template, name| template.subdir(name).expect(path)));
        }
        ends = path[..ends].rfind('/').expect(path);
    }
}

fn write(tree: &Tree, dir: &str, name: &str, text: &str) -> Result<Act, Errno> {
    let (dir, template) = find(tree, dir);
    (template.attribute(name).expect(name).write.expect(name))(&context(tree, dir), text)
}

fn link<'t>(tree: &'t Tree, dir: &str, name: &str) -> Option<&'t str> {
    match tree.dir_at(dir)?.entries.get(name)? {
        Entry::Link(target) => Some(target),
        _ => None,
    }
}

const DEVICE: &str = "devices/pci0000:08/0000:08:00.0";

#[test]
fn links_lead_where_they_should() {
    let card = card(2);
    let tree = tree(&[&card]);
    let links = [
        ("class/net", "enp8s0f0np0", "../../devices/pci0000:08/0000:08:00.0/net/enp8s0f0np0"),
        ("class/net", "enp8s0f0s88", "../../devices/pci0000:08/0000:08:00.0/mlx5_core.sf.4/net/enp8s0f0s88"),
        ("class/infiniband", "rocep8s0f0", "../../devices/pci0000:08/0000:08:00.0/infiniband/rocep8s0f0"),
        ("bus/pci/devices", "0000:08:00.3", "../../../devices/pci0000:08/0000:08:00.3"),
        (DEVICE, "driver", "../../../bus/pci/drivers/mlx5_core"),
        (DEVICE, "virtfn1", "../0000:08:00.3"),
        (DEVICE, "subsystem", "../../../bus/pci"),
        ("devices/pci0000:08/0000:08:00.3", "physfn", "../0000:08:00.0"),
        ("devices/pci0000:08/0000:08:00.0/net/enp8s0f0np0", "device", "../../../0000:08:00.0"),
        ("bus/auxiliary/drivers/mlx5_core.eth", "module", "../../../../module/mlx5_core"),
        ("module/mlx5_core/holders", "mlx5_ib", "../../mlx5_ib"),
        ("module/mlx5_core/drivers", "pci:mlx5_core", "../../../bus/pci/drivers/mlx5_core"),
    ];
    for (dir, name, target) in links {
        assert_eq!(link(&tree, dir, name), Some(target), "{dir}/{name}");
        let to = follow(dir, target);
        assert!(tree.dir_at(&to).is_some(), "{dir}/{name} leads to {to}");
    }
    assert_eq!(link(&tree, DEVICE, "virtfn2"), None);
}

#[test]
fn relative_paths_end_with_a_name_and_lead_back() {
    for (from, to) in [("a/b/c", "a/b"), ("a", "b"), ("a/b", "a/b/c"), ("a/b", "a/b"), ("", "a/b"), ("x/é", "x/è")] {
        let path = relative(from, to);
        assert_eq!(follow(from, &path), to);
        assert!(path.ends_with(to.rsplit('/').next().unwrap()), "{path}");
    }
}

#[test]
fn values_are_as_the_kernel_prints_them() {
    let card = card(2);
    let tree = tree(&[&card]);
    let netdev = &format!("{DEVICE}/net/enp8s0f0np0");
    let port = &format!("{DEVICE}/infiniband/rocep8s0f0/ports/1");
    let mut values = BTreeMap::new();
    for (dir, names) in [
        (DEVICE, &["vendor", "device", "class", "revision", "modalias", "local_cpus", "driver_override"][..]),
        (DEVICE, &["sriov_numvfs", "sriov_totalvfs", "sriov_offset", "sriov_stride", "sriov_vf_device", "uevent"]),
        (netdev, &["phys_switch_id", "phys_port_name", "dev_port", "phys_port_id"]),
        (port, &["state", "phys_state", "link_layer"]),
        (&format!("{port}/gids"), &["0"]),
        (&format!("{port}/gid_attrs/types"), &["1"]),
        (&format!("{port}/gid_attrs/ndevs"), &["1"]),
        (&format!("{DEVICE}/infiniband/rocep8s0f0"), &["node_guid", "hca_type", "board_id", "fw_ver"]),
        (&format!("{DEVICE}/mlx5_core.sf.4"), &["sfnum", "uevent"]),
        ("module/mlx5_core", &["refcnt", "initstate"]),
        ("", &["proc-modules"]),
    ] {
        for name in names {
            let place = dir.strip_prefix(DEVICE).map_or(dir, |rest| rest.trim_start_matches('/'));
            values.insert(format!("{place}/{name}"), read(&tree, dir, name).map_err(|error| error.raw_os_error()));
        }
    }
    insta::assert_debug_snapshot!(values);
    assert_eq!(read(&tree, &format!("{DEVICE}/infiniband/rocep8s0f0/ports/2/gid_attrs/types"), "0"), Err(Errno::INVAL));
    let vf = "devices/pci0000:08/0000:08:00.2";
    assert_eq!(read(&tree, &format!("{vf}/net/p0v0"), "phys_switch_id"), Err(Errno::OPNOTSUPP));
    assert_eq!(read(&tree, vf, "device").as_deref(), Ok("0x101e\n"));
}

#[test]
fn a_write_becomes_a_command_or_is_refused() {
    let mut card = card(2);
    let sf = view::Auxiliary { name: "mlx5_core.sf.2".parse().unwrap(), driver: None, ..card.auxiliary[0].clone() };
    card.auxiliary.push(sf);
    card.modules.push(vfio_module());
    let tree = tree(&[&card]);
    let vfio = "bus/pci/drivers/vfio-pci";
    let commands = |command| Ok(Act::Perform { card: Some(0), command });
    const VF: &str = "devices/pci0000:08/0000:08:00.2";
    let (device, vf): (PciAddress, PciAddress) = (PF.parse().unwrap(), card.functions[1].address);
    let (driver, sf_driver) = ("bus/pci/drivers/mlx5_core", "bus/auxiliary/drivers/mlx5_core.sf");
    for (dir, file, text, act) in [
        (DEVICE, "sriov_numvfs", "0x2", commands(Command::SetNumVfs { device, number: 2 })),
        (DEVICE, "sriov_numvfs", "70000", Err(Errno::RANGE)),
        (DEVICE, "sriov_numvfs", "two", Err(Errno::INVAL)),
        (DEVICE, "sriov_numvfs", "", Err(Errno::INVAL)),
        (DEVICE, "sriov_numvfs", "2 > x", Err(Errno::INVAL)),
        (DEVICE, "driver_override", "", commands(Command::SetDriverOverride { device, driver: None })),
        (
            DEVICE,
            "driver_override",
            "vfio-pci",
            commands(Command::SetDriverOverride { device, driver: Some("vfio-pci".to_owned()) }),
        ),
        (DEVICE, "sriov_drivers_autoprobe", "n", commands(Command::SetAutoprobe { device, on: false })),
        (DEVICE, "remove", "1", commands(Command::Remove(device))),
        (DEVICE, "remove", "0", Ok(Act::Nothing)),
        (DEVICE, "rescan", "1", commands(Command::Rescan)),
        (DEVICE, "reset", "1", commands(Command::Reset(device))),
        (DEVICE, "reset", "2", Err(Errno::INVAL)),
        (driver, "bind", PF, commands(Command::Bind(device))),
        (driver, "unbind", PF, commands(Command::Unbind(device))),
        (driver, "unbind", "0000:00:1f.0", Ok(Act::Kernel)),
        (driver, "unbind", "; reboot", Err(Errno::NODEV)),
        (vfio, "bind", PF, commands(Command::BindVfio(device))),
        (vfio, "unbind", PF, commands(Command::UnbindVfio(device))),
        (vfio, "unbind", "0000:00:1f.0", Ok(Act::Kernel)),
        (vfio, "bind", "; reboot", Err(Errno::NODEV)),
        ("bus/pci", "drivers_probe", PF, commands(Command::Probe(device))),
        ("bus/pci", "drivers_probe", "0000:00:1f.0", Ok(Act::Kernel)),
        ("bus/pci", "rescan", "1", Ok(Act::Perform { card: None, command: Command::Rescan })),
        // Of auxiliary devices, only an SF's driver can be bound by a program.
        ("bus/auxiliary/drivers/mlx5_core.eth", "unbind", "mlx5_core.eth.4", Err(Errno::INVAL)),
        ("bus/auxiliary/drivers/mlx5_core.eth", "bind", "mlx5_core.sf.2", Err(Errno::NODEV)),
        (sf_driver, "bind", "mlx5_core.sf.2", commands(Command::SetSfBound { id: 2, bound: true })),
        (sf_driver, "unbind", "mlx5_core.sf.2", commands(Command::SetSfBound { id: 2, bound: false })),
        ("bus/auxiliary", "drivers_probe", "mlx5_core.sf.2", commands(Command::SetSfBound { id: 2, bound: true })),
        ("bus/auxiliary", "drivers_probe", "mlx5_core.eth.4", Ok(Act::Nothing)),
        ("bus/auxiliary", "drivers_probe", "other.1", Ok(Act::Kernel)),
        (VF, "sriov_vf_msix_count", "0x20", commands(Command::SetVfMsix { device: vf, count: 32 })),
        (VF, "sriov_vf_msix_count", "-1", Err(Errno::INVAL)),
        (VF, "sriov_vf_msix_count", "2147483648", Err(Errno::INVAL)),
        (VF, "sriov_vf_msix_count", "99999999999999999999", Err(Errno::INVAL)),
    ] {
        assert_eq!(write(&tree, dir, file, text), act, "{text:?} to {dir}/{file}");
    }
}

#[test]
fn the_capabilities_of_the_configuration_space_are_a_chain_that_ends() {
    let card = card(2);
    let tree = tree(&[&card]);
    for address in ["0000:08:00.0", "0000:08:00.2"] {
        let (dir, template) = find(&tree, &format!("devices/pci0000:08/{address}"));
        let space = (template.attribute("config").unwrap().read.unwrap())(&context(&tree, dir)).unwrap();
        assert_eq!(space.len(), 4096);
        let (mut at, mut ids) = (usize::from(space[0x34]), Vec::new());
        while at != 0 && ids.len() < 48 {
            ids.push(u16::from(space[at]));
            at = usize::from(space[at + 1]);
        }
        assert_eq!(ids, [0x10, 0x11, 0x01]);
        let (mut at, mut ids) = (0x100, Vec::new());
        while at != 0 && ids.len() < 48 {
            let header = u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
            ids.push(header & 0xffff);
            at = (header >> 20) as usize;
        }
        assert_eq!(ids, if address == PF { &[0x01, 0x0e, 0x10][..] } else { &[0x01, 0x0e] });
    }
}

fn vfio_module() -> view::Module {
    view::Module {
        name: "vfio_pci".to_owned(),
        loaded: true,
        depends: Vec::new(),
        description: String::new(),
        drivers: vec![("pci".to_owned(), "vfio-pci".to_owned())],
    }
}

#[test]
fn a_function_of_vfio_pci_is_at_that_driver_and_disabled() {
    let mut card = card(2);
    let vf = format!("devices/pci0000:08/{}", card.functions[1].address);
    for (driver, expected) in [
        (Some("mlx5_core"), ["DRIVER=mlx5_core", "1\n", "D0\n"]),
        (Some("vfio-pci"), ["DRIVER=vfio-pci", "0\n", "D3hot\n"]),
        (None, ["PCI_CLASS=20000", "0\n", "unknown\n"]),
    ] {
        card.functions[1].driver = driver.map(str::to_owned);
        card.modules.truncate(2);
        card.modules.push(vfio_module());
        let tree = tree(&[&card]);
        let to = driver.map(|driver| format!("../../../bus/pci/drivers/{driver}"));
        assert_eq!(link(&tree, &vf, "driver"), to.as_deref());
        for name in ["mlx5_core", "vfio-pci"] {
            let has = tree.dir_at(&format!("bus/pci/drivers/{name}")).unwrap().entries.contains_key("0000:08:00.2");
            assert_eq!(has, driver == Some(name), "{name}");
        }
        let event = read(&tree, &vf, "uevent").unwrap();
        let found = [
            event.lines().next().unwrap(),
            &read(&tree, &vf, "enable").unwrap(),
            &read(&tree, &vf, "power_state").unwrap(),
        ];
        assert_eq!(found, expected, "{driver:?}");
    }
}

#[test]
fn each_function_has_an_iommu_group_of_its_own() {
    let card = card(300);
    let tree = tree(&[&card]);
    let mut groups = BTreeMap::new();
    for function in &card.functions {
        let target = link(&tree, &format!("devices/pci0000:08/{}", function.address), "iommu_group").unwrap();
        let number = target.strip_prefix("../../../kernel/iommu_groups/").unwrap().parse::<u32>().unwrap();
        assert_eq!(groups.insert(number, function.address), None, "{number}");
    }
    assert_eq!(groups[&0x0800].to_string(), PF);
}

#[test]
fn the_vectors_of_a_function_are_in_its_configuration_space() {
    let mut card = card(1);
    for msix in [1, 12, 64, 2048] {
        card.functions[1].msix = msix;
        let tree = tree(&[&card]);
        let (dir, template) = find(&tree, "devices/pci0000:08/0000:08:00.2");
        let space = (template.attribute("config").unwrap().read.unwrap())(&context(&tree, dir)).unwrap();
        let mut at = usize::from(space[0x34]);
        while space[at] != 0x11 {
            at = usize::from(space[at + 1]);
        }
        assert_eq!(u16::from_le_bytes([space[at + 2], space[at + 3]]) & 0x7ff, msix - 1, "PCI_MSIX_FLAGS_QSIZE");
        assert_eq!(read(&tree, DEVICE, "sriov_vf_total_msix").as_deref(), Ok("512\n"));
    }
}

#[test]
fn the_processors_near_a_function_are_those_of_its_numa_node() {
    let mut card = card(1);
    for (node, list, mask) in [(-1, "0-3\n", "f\n"), (1, "2-3\n", "c\n"), (7, "\n", "0\n")] {
        card.profile.numa_node = node;
        let tree = tree(&[&card]);
        for dir in [DEVICE, "devices/pci0000:08/0000:08:00.2"] {
            let found = ["numa_node", "local_cpulist", "local_cpus"].map(|name| read(&tree, dir, name).unwrap());
            assert_eq!(found, [&format!("{node}\n"), list, mask], "{dir}");
        }
    }
}

#[test]
fn only_a_pf_has_a_link() {
    let card = card(1);
    let tree = tree(&[&card]);
    for (dir, expected) in
        [(DEVICE, ["16.0 GT/s PCIe\n", "16\n"]), ("devices/pci0000:08/0000:08:00.2", ["Unknown\n", "0\n"])]
    {
        let found = ["current_link_speed", "current_link_width"].map(|name| read(&tree, dir, name).unwrap());
        assert_eq!(found, expected, "{dir}");
    }
}

#[test]
fn a_module_that_is_not_loaded_has_no_drivers() {
    let mut card = card(0);
    card.modules[1].loaded = false;
    card.auxiliary[1].driver = None;
    let tree = tree(&[&card]);
    assert!(tree.dir_at("module/mlx5_ib").is_none());
    assert!(tree.dir_at("bus/auxiliary/drivers/mlx5_ib.rdma").is_none());
    assert_eq!(read(&tree, "module/mlx5_core", "refcnt").as_deref(), Ok("0\n"));
    assert!(tree.dir_at("lib-modules/6.1/kernel/drivers/eswitch").unwrap().entries.contains_key("mlx5_ib.ko"));
}

#[test]
fn cards_are_side_by_side_and_one_that_is_gone_is_not_shown() {
    let first = card(1);
    let text = format!("{first:?}");
    assert!(text.contains(PF));
    let mut second = card(0);
    second.functions[0].address = "0000:09:00.0".parse().unwrap();
    second.auxiliary.clear();
    second.netdevs.clear();
    second.rdma.clear();
    let both = tree(&[&first, &second]);
    let drivers = &both.dir_at("bus/pci/drivers/mlx5_core").unwrap().entries;
    assert!(drivers.contains_key(PF) && drivers.contains_key("0000:09:00.0"));
    let Ok(Act::Perform { card, .. }) = write(&both, "devices/pci0000:09/0000:09:00.0", "sriov_numvfs", "1") else {
        panic!("it is for a card")
    };
    assert_eq!(card, Some(1));
    let left = Tree::new(vec![None, Some(Arc::new(second))], "6.1", &Names::AS_IN_VIEW);
    assert!(left.dir_at(DEVICE).is_none());
    assert!(left.dir_at("devices/pci0000:09/0000:09:00.0").is_some());
}

#[test]
fn numbers_of_nodes_are_stable_and_distinct() {
    let (few, many) = (tree(&[&card(1)]), tree(&[&card(600)]));
    assert_eq!(few.dir_at(DEVICE).unwrap().number, many.dir_at(DEVICE).unwrap().number);
    // A VF with another bus number is still below its PF's bus.
    assert!(many.dir_at("devices/pci0000:08/0000:0a:00.0").is_some());
    // In whatever order devices are listed, each is below its parent.
    let mut turned = card(0);
    turned.auxiliary.reverse();
    let sf = format!("{DEVICE}/mlx5_core.sf.4");
    assert!(tree(&[&turned]).dir_at(&sf).unwrap().entries.contains_key("mlx5_core.eth.4"));
    let mut circle = card(0);
    circle.auxiliary[2].parent = view::DeviceName::Auxiliary("mlx5_core.eth.4".parse().unwrap());
    tree(&[&circle]);
}
