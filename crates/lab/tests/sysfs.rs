//! The card's `/sys` through real programs: a shell, `find`, `lspci`, `kmod`.
//!
//! The tests need root and `/dev/fuse`. Without these they print that and pass, unless CI is set.

mod sysfs_fixture;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use lockdep::{Domain, OnReport};
use sysfs_fixture::{FakeCard, Place, what_is_missing};

const NETDEVS: [&str; 4] = ["enp8s0f0np0", "p0vf0", "p0v1", "enp8s0f0s88"];
const DEVICE: &str = "/sys/bus/pci/devices/0000:08:00.0";

macro_rules! lab_or_return {
    () => {{
        if what_is_missing().is_some() {
            return;
        }
        let card = FakeCard::new(2);
        let place = Place::new(&card, &NETDEVS);
        (card, place)
    }};
}

fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    if !found.status.success() {
        eprintln!("skipped: there is no {program}");
    }
    found.status.success()
}

fn names(listing: &str) -> BTreeSet<String> {
    listing.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn devices_of_the_card_are_listed_beside_those_of_the_kernel() {
    let (_card, place) = lab_or_return!();
    for dir in ["/sys", "/sys/bus", "/sys/class", "/sys/devices", "/sys/bus/pci/devices", "/sys/module", "/sys/block"] {
        let list = |dir| -> BTreeSet<_> {
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
        };
        let kernels = list(dir);
        let labs = place.within(move || list(dir));
        assert!(labs.is_superset(&kernels), "{dir}: {:?}", kernels.difference(&labs).collect::<Vec<_>>());
    }
    let seen = names(&place.output_of("ls /sys/class/net /sys/class/infiniband /sys/bus/auxiliary/devices"));
    for name in NETDEVS.iter().chain(&["lo", "rocep8s0f0", "mlx5_core.eth.0", "mlx5_core.sf.4"]) {
        assert!(seen.contains(*name), "{name}: {seen:?}");
    }
    // A netdev in another namespace is not shown, and the card's netdevs are not listed among the virtual ones.
    assert!(!seen.contains("p0vf1") && !seen.contains("p0v0"), "{seen:?}");
    assert!(place.output_of("ls /sys/devices/virtual/net/enp8s0f0np0").contains("No such file"));
    assert!(!place.output_of("ls /sys/devices/virtual/net").contains("enp8s0f0np0"));
    assert_eq!(place.output_of("cat /sys/class/net/lo/address"), "00:00:00:00:00:00\n");
    assert_eq!(
        place.output_of("find /sys/class/net /sys/bus/pci /sys/bus/auxiliary -type l ! -exec test -e {} \\; -print"),
        ""
    );
}

#[test]
fn links_resolve() {
    let (_card, place) = lab_or_return!();
    let device = "/sys/devices/pci0000:08/0000:08:00.0";
    for (path, real) in [
        ("/sys/class/net/enp8s0f0np0", format!("{device}/net/enp8s0f0np0")),
        ("/sys/class/net/enp8s0f0np0/device", device.to_owned()),
        ("/sys/class/net/p0vf0/device", device.to_owned()),
        ("/sys/class/net/p0v1/device", "/sys/devices/pci0000:08/0000:08:00.3".to_owned()),
        ("/sys/class/net/enp8s0f0s88/device", format!("{device}/mlx5_core.sf.4")),
        ("/sys/class/infiniband/rocep8s0f0/device/driver/module", "/sys/module/mlx5_core".to_owned()),
        ("/sys/class/net/enp8s0f0np0/subsystem", "/sys/class/net".to_owned()),
    ] {
        assert_eq!(place.output_of(&format!("readlink -f {path}")).trim(), real, "{path}");
    }
    let found = place.output_of("find -L /sys/class/net/enp8s0f0np0/ -maxdepth 1 -name mtu");
    assert_eq!(found.trim(), "/sys/class/net/enp8s0f0np0/mtu");
    assert!(place.output_of("ls -l /sys/class/net/*/device").contains("-> ../../../0000:08:00.0"));
}

#[test]
fn links_of_the_kernel_lead_to_where_a_netdev_is_shown() {
    let (_card, place) = lab_or_return!();
    if !place.shell("ip link add brx type bridge && ip link set enp8s0f0np0 master brx").status.success() {
        return eprintln!("skipped: this kernel has no bridge");
    }
    let netdev = "/sys/devices/pci0000:08/0000:08:00.0/net/enp8s0f0np0";
    for (path, real) in [
        ("/sys/class/net/brx/lower_enp8s0f0np0", netdev.to_owned()),
        ("/sys/class/net/brx/brif/enp8s0f0np0", format!("{netdev}/brport")),
        ("/sys/class/net/enp8s0f0np0/master", "/sys/devices/virtual/net/brx".to_owned()),
        ("/sys/class/net/enp8s0f0np0/brport/bridge", "/sys/devices/virtual/net/brx".to_owned()),
    ] {
        assert_eq!(place.output_of(&format!("readlink -f {path}")).trim(), real, "{path}");
    }
}

#[test]
fn a_netdev_has_the_kernels_files_where_the_card_has_none() {
    let (_card, place) = lab_or_return!();
    let netdev = "/sys/class/net/enp8s0f0np0";
    assert_eq!(
        place.output_of(&format!("cat {netdev}/phys_switch_id {netdev}/phys_port_name")),
        "b8cef6030012ab00\np0\n"
    );
    assert!(place.output_of(&format!("cat {netdev}/phys_port_id")).contains("Operation not supported"));
    assert_eq!(place.output_of(&format!("echo 1400 > {netdev}/mtu && cat {netdev}/mtu")), "1400\n");
    assert!(place.output_of("ip link show enp8s0f0np0").contains("mtu 1400"));
    assert!(!place.shell(&format!("echo many > {netdev}/mtu")).status.success());
    let address = place.output_of(&format!("cat {netdev}/address"));
    let gid = place.output_of("cat /sys/class/infiniband/rocep8s0f0/ports/1/gids/0");
    assert_eq!(gid.trim()[gid.trim().len() - 2..], address.trim()[address.trim().len() - 2..]);
}

#[test]
fn a_read_after_a_write_sees_its_effect() {
    let (card, place) = lab_or_return!();
    let list = "ls -d /sys/bus/pci/devices/0000:08:00.0/virtfn* | wc -l";
    for vfs in [3, 0, 5] {
        let printed =
            place.output_of(&format!("echo {vfs} > {DEVICE}/sriov_numvfs; cat {DEVICE}/sriov_numvfs; {list}"));
        let lines: Vec<&str> = printed.lines().filter(|line| !line.contains("ls:")).collect();
        assert_eq!(lines, [vfs.to_string(), vfs.to_string()]);
    }
    assert_eq!(card.commands().len(), 3);
    place.output_of(&format!("echo 1 >> {DEVICE}/sriov_numvfs"));
    assert_eq!(card.commands(), ["echo 1 > /sys/bus/pci/devices/0000:08:00.0/sriov_numvfs"]);
    // The write fails with the card's error; a write to a read-only file fails too.
    let driver = "/sys/bus/pci/drivers/mlx5_core";
    for (path, text, errno) in [
        (format!("{DEVICE}/sriov_numvfs"), "3000", 34),
        (format!("{driver}/bind"), "0000:08:00.0", 16),
        (format!("{driver}/bind"), "0000:77:00.0", 19),
        (format!("{DEVICE}/vendor"), "1", 13),
    ] {
        let failed = place.within(move || fs::write(path, text).unwrap_err().raw_os_error());
        assert_eq!(failed, Some(errno), "{text}");
    }
}

#[test]
fn a_file_takes_what_the_kernels_file_takes() {
    let (card, place) = lab_or_return!();
    let (vfs, driver, probe) = ("sriov_numvfs", "driver_override", "sriov_drivers_autoprobe");
    let set = |value: &str, file: &str| Some(format!("echo {value} > /sys/bus/pci/devices/0000:08:00.0/{file}"));
    // `None`: it is refused with EINVAL, and the card hears nothing.
    for (file, text, expected) in [
        (vfs, "2", set("2", vfs)),
        (vfs, "2\n", set("2", vfs)),
        (vfs, "2\0", set("2", vfs)),
        (vfs, "0x2\n\0\0", set("2", vfs)),
        (vfs, "02", set("2", vfs)),
        (vfs, "+2", set("2", vfs)),
        (vfs, "2\n\n", None),
        (vfs, " 2", None),
        (vfs, "-2", None),
        (driver, "vfio-pci\n", set("vfio-pci", driver)),
        (driver, "vfio-pci\nrest", set("vfio-pci", driver)),
        (driver, "\n", set("\"\"", driver)),
        (driver, "\0", set("\"\"", driver)),
        (driver, "", None),
        (probe, "yes", set("1", probe)),
        (probe, "off\n", set("0", probe)),
        (probe, "maybe", None),
    ] {
        let path = format!("{DEVICE}/{file}");
        let written = place.within(move || fs::write(path, text).map_err(|error| error.raw_os_error()));
        // A write of nothing is no write.
        let refused = if text.is_empty() { Ok(()) } else { Err(Some(22)) };
        assert_eq!(written, if expected.is_some() { Ok(()) } else { refused }, "{file}: {text:?}");
        assert_eq!(card.commands(), Vec::from_iter(expected), "{file}: {text:?}");
    }
}

#[test]
fn garbage_is_refused_everywhere() {
    let (card, place) = lab_or_return!();
    let dirs =
        "/sys/devices/pci0000:08 /sys/bus/pci/drivers/mlx5_core /sys/bus/auxiliary/drivers/mlx5* /sys/module/mlx5*";
    let list = format!("find {dirs} -perm /222 -type f ! -path '*/net/*/*'");
    let files: Vec<String> = place.output_of(&list).lines().map(str::to_owned).collect();
    assert!(files.len() > 20, "{files:?}");
    for file in files {
        let long = vec![b'7'; 5000];
        for garbage in [&b"x;y"[..], b"$(reboot)", b"\xff\xfe", b" ", &long] {
            let (path, bytes) = (file.clone(), garbage.to_vec());
            let written = place.within(move || fs::write(path, bytes));
            assert!(written.is_err(), "{file} took {:?}", String::from_utf8_lossy(garbage));
        }
    }
    assert_eq!(card.commands(), [""; 0]);
    for command in ["touch /sys/bus/pci/x", "mkdir /sys/class/x", "rm /sys/bus/pci/rescan", "chmod 777 /sys/bus/pci"] {
        assert!(!place.shell(command).status.success(), "{command}");
    }
}

#[test]
fn a_user_other_than_root_can_read_and_not_write() {
    let (card, place) = lab_or_return!();
    if !has("setpriv") {
        return;
    }
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups sh -c";
    if !place.shell(&format!("{nobody} true")).status.success() {
        return eprintln!("skipped: there is no other user in this user namespace");
    }
    assert_eq!(place.output_of(&format!("{nobody} 'cat {DEVICE}/vendor'")), "0x15b3\n");
    assert!(!place.shell(&format!("{nobody} 'echo 1 > {DEVICE}/sriov_numvfs'")).status.success());
    assert!(!place.shell(&format!("{nobody} 'echo 1400 > /sys/class/net/enp8s0f0np0/mtu'")).status.success());
    assert_eq!(card.commands(), [""; 0]);
}

#[test]
fn other_programs_read_while_the_card_is_busy() {
    let (card, place) = lab_or_return!();
    let busy = card.busy.lock().unwrap();
    let mut writer =
        place.within(|| Command::new("sh").args(["-c", &format!("echo 7 > {DEVICE}/sriov_numvfs")]).spawn().unwrap());
    while card.commands.lock().unwrap().is_empty() {
        thread::yield_now();
    }
    assert_eq!(place.output_of(&format!("cat {DEVICE}/sriov_numvfs; ls {DEVICE}/net")), "2\nenp8s0f0np0\np0vf0\n");
    drop(busy);
    assert!(writer.wait().unwrap().success());
    assert_eq!(place.output_of(&format!("cat {DEVICE}/sriov_numvfs")), "7\n");
}

#[test]
fn many_programs_read_while_vfs_are_created_and_removed() {
    let (_card, place) = lab_or_return!();
    let reader = format!(
        "for n in $(seq 20); do v=$(cat {DEVICE}/sriov_numvfs) || exit 1; case $v in 0|2|9) ;; *) echo \"$v\"; exit 2;; \
         esac; ls -lR /sys/devices/pci0000:08 >/dev/null 2>&1; cat /sys/class/net/enp8s0f0np0/phys_switch_id || exit 3; \
         done"
    );
    let readers: Vec<_> = place.within(move || {
        let spawn = |_| Command::new("sh").args(["-c", &reader]).stdout(std::process::Stdio::null()).spawn().unwrap();
        (0..16).map(spawn).collect()
    });
    for vfs in [9, 0].into_iter().cycle().take(60) {
        assert_eq!(place.output_of(&format!("echo {vfs} > {DEVICE}/sriov_numvfs")), "");
    }
    for mut reader in readers {
        assert!(reader.wait().unwrap().success());
    }
}

#[test]
fn a_card_that_is_gone_is_not_shown() {
    let (card, place) = lab_or_return!();
    card.gone.store(true, Ordering::Relaxed);
    assert!(place.output_of(&format!("cat {DEVICE}/vendor")).contains("No such"));
    assert!(!place.output_of("ls /sys/bus/pci/devices /sys/class/infiniband /sys/module").contains("mlx5"));
    // Its netdev is shown as the kernel's.
    assert!(!place.output_of("cat /sys/class/net/enp8s0f0np0/phys_switch_id").contains("b8cef"));
    assert_eq!(
        place.output_of("readlink -f /sys/class/net/enp8s0f0np0").trim(),
        "/sys/devices/virtual/net/enp8s0f0np0"
    );
    card.gone.store(false, Ordering::Relaxed);
    assert_eq!(place.output_of(&format!("cat {DEVICE}/vendor")), "0x15b3\n");
}

#[test]
fn lspci_shows_the_functions() {
    let (_card, place) = lab_or_return!();
    if !has("lspci") {
        return;
    }
    let printed = place.output_of("lspci -D -nn -d 15b3:");
    assert_eq!(printed.lines().count(), 3, "{printed}");
    assert!(
        printed.contains("0000:08:00.0 Ethernet controller [0200]") && printed.contains("[15b3:101d]"),
        "{printed}"
    );
    let printed = place.output_of("lspci -vv -s 08:00.0");
    for expected in [
        "Kernel driver in use: mlx5_core",
        "Express (v2) Endpoint",
        "MSI-X: Enable+ Count=64",
        "Single Root I/O Virtualization (SR-IOV)",
        "Total VFs: 2000, Number of VFs: 2",
        "[size=32M]",
    ] {
        assert!(printed.contains(expected), "{expected}: {printed}");
    }
}

#[test]
fn kmod_finds_the_modules() {
    let (_card, place) = lab_or_return!();
    if !has("modinfo") || !has("modprobe") {
        return;
    }
    if place.output_of("ls /lib/modules/$(uname -r)/modules.dep").contains("No such") {
        return eprintln!("skipped: /lib/modules cannot be covered here");
    }
    let printed = place.output_of("modinfo mlx5_ib");
    for expected in ["eswitch-module: mlx5_ib", "depends:        mlx5_core", "mlx5_ib of a card that is none"] {
        assert!(printed.contains(expected), "{printed}");
    }
    let printed = place.output_of("modprobe --show-depends mlx5_ib");
    assert!(printed.find("mlx5_core.ko").unwrap() < printed.find("mlx5_ib.ko").unwrap(), "{printed}");
    let printed = place.output_of("modprobe --show-depends $(cat /sys/bus/pci/devices/0000:08:00.0/modalias)");
    assert!(printed.contains("mlx5_core.ko"), "{printed}");
    assert!(place.output_of("rmmod mlx5_core").contains("in use by: mlx5_ib"));
    assert!(place.output_of("modinfo no_such_module").contains("not found"));
    if Path::new("/proc/modules").exists() {
        assert!(place.output_of("lsmod").contains("mlx5_core"));
    }
}

#[test]
fn a_shared_mount_is_not_covered() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    if what_is_missing().is_some() {
        return;
    }
    let (mounter, server) = lab::sysfs::prepare().unwrap();
    let lab = thread::spawn(move || {
        sysfs_fixture::unshare();
        mount_change("/", MountPropagationFlags::SHARED).unwrap();
        mounter.mount().unwrap_err().to_string()
    });
    assert!(server.serve(Vec::new(), Arc::default(), &Domain::checked(OnReport::Panic)).is_err());
    assert!(lab.join().unwrap().contains("the mount at / is shared"));
}

#[test]
fn nothing_is_left_behind() {
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let (card, place) = lab_or_return!();
    drop(place);
    assert_eq!(mounts(), before);
    // The threads that served have ended: they had references to the card.
    while Arc::strong_count(&card) > 1 {
        thread::yield_now();
    }
}
