//! The image of the machine, made once and kept: a kernel with its modules, and a root file system of Debian's packages.
//!
//! Both are under `vm` in the target directory, each in a folder that is named after its sources. None of this needs root:
//! `apt-get` fetches packages into a folder of ours, they are unpacked without running their scripts, and `mksquashfs`
//! makes root the owner of everything.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::find_program;

use super::BOOT_MODULES;
use super::initramfs::Initramfs;
use super::kernel::Kernel;

/// The packages of the root file system; their dependencies are added.
const PACKAGES: &[&str] = &[
    // Packages that every Debian has.
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "mawk",
    "mount",
    "sed",
    "tar",
    "util-linux",
    // Programs for scenarios, tests and experiments.
    "bc",
    "bpftool",
    "ethtool",
    "ibverbs-providers",
    "ibverbs-utils",
    "iperf",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "kmod",
    "libteam-utils",
    "netbase",
    "netcat-openbsd",
    "nftables",
    "openvswitch-switch",
    "ovn-central",
    "ovn-host",
    "pciutils",
    "procps",
    "psmisc",
    "python3",
    "python3-pyroute2",
    "python3-scapy",
    "rdma-core",
    "strace",
    "tcpdump",
];

/// The version of the image. Raise it when a change of this file makes another image of the same packages.
const RECIPE: u32 = 1;

/// Files that are only useful for a reader or with hardware.
const LEFT_OUT: [&str; 5] =
    ["./usr/share/doc", "./usr/share/info", "./usr/share/locale", "./usr/share/man", "./usr/share/perl*"];

/// Folders of drivers for hardware that the machine lacks.
const DRIVERS_LEFT_OUT: [&str; 13] = [
    "drivers/ata",
    "drivers/gpu",
    "drivers/hid",
    "drivers/hwmon",
    "drivers/iio",
    "drivers/input",
    "drivers/media",
    "drivers/mmc",
    "drivers/net/wireless",
    "drivers/scsi",
    "drivers/staging",
    "drivers/usb",
    "sound",
];

/// Options of `mksquashfs`. By the measurements in `docs/vm.md` it is half as large as uncompressed, and as fast.
const COMPRESSION: &[&str] = &["-comp", "lz4"];

/// Commands that the scripts of packages make, as symbolic links.
const ALTERNATIVES: [(&str, &str); 6] = [
    ("usr/bin/awk", "mawk"),
    ("usr/bin/which", "which.debianutils"),
    ("usr/sbin/ip6tables", "ip6tables-nft"),
    ("usr/sbin/iptables", "iptables-nft"),
    ("usr/sbin/ovs-vswitchd", "../lib/openvswitch-switch/ovs-vswitchd"),
    ("etc/mtab", "/proc/self/mounts"),
];

/// The files that a machine boots from. All runs share them, so they are only read.
pub struct Image {
    /// The kernel's version, as `uname -r` prints it.
    pub version: String,
    /// The kernel, in a form that QEMU boots.
    pub kernel: PathBuf,
    /// The part of the initramfs with the modules that find the disks.
    pub boot: PathBuf,
    /// The kernel's modules: a squashfs of `/lib/modules`.
    pub modules: PathBuf,
    /// The root file system, a squashfs.
    pub root: PathBuf,
}

impl Image {
    /// Finds the image in `folder`, or makes it. `fresh`: makes it again. `kernel`: a directory with another kernel than
    /// Debian's (`boot/vmlinuz-VERSION` and `lib/modules/VERSION`). Simultaneous runs wait for each other here.
    ///
    /// # Errors
    /// A program is missing, which the error names; packages cannot be fetched; the disk is full.
    pub fn find_or_make(folder: &Path, kernel: Option<&Path>, fresh: bool) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let lock = File::create(folder.join("lock")).with_context(|| format!("a file in {}", folder.display()))?;
        lock.lock().context("waiting for another run that makes the image")?;
        let maker = Maker { folder, making: folder.join("making"), fresh };
        // Left by a run that was killed while it made an image. With the lock held no other run makes one now.
        remove(&maker.making)?;
        let root = maker.made("root", &sources()?, |maker, place| maker.make_root(place))?;
        let kernel = match kernel {
            None => maker.made("kernel", &sources()?, |maker, place| maker.make_debian_kernel(place))?,
            Some(at) => {
                let found = Kernel::find(at)?;
                let meta = fs::metadata(&found.image)?;
                let key = format!("{} {} {} {}", found.image.display(), meta.ino(), meta.len(), meta.mtime());
                maker.made("kernel", &key, |_, place| make_kernel(place, &found))?
            }
        };
        remove(&maker.making)?;
        Ok(Self {
            version: fs::read_to_string(kernel.join("version"))?,
            kernel: kernel.join("kernel"),
            boot: kernel.join("boot.cpio"),
            modules: kernel.join("modules.squashfs"),
            root: root.join("root.squashfs"),
        })
    }
}

/// Makes an image, while it holds the lock of the folder.
struct Maker<'a> {
    folder: &'a Path,
    /// Where files are until they are complete.
    making: PathBuf,
    fresh: bool,
}

impl Maker<'_> {
    /// Returns the folder of a kind for these sources, and makes it if it does not exist. It appears complete or not at all.
    fn made(&self, kind: &str, from: &str, make: impl FnOnce(&Self, &Path) -> Result<()>) -> Result<PathBuf> {
        let key = format!("{RECIPE}\n{}\n{from}", [PACKAGES, &LEFT_OUT, &DRIVERS_LEFT_OUT].concat().join(" "));
        let place = self.folder.join(format!("{kind}-{:016x}", hash(&key)));
        if place.is_dir() && !self.fresh {
            return Ok(place);
        }
        eprintln!("making the machine's {kind}, which is kept in {}", place.display());
        let result = self.making.join(kind);
        fs::create_dir_all(&result)?;
        make(self, &result).with_context(|| format!("making the machine's {kind}"))?;
        // Machines that run keep the files that they have open.
        remove(&place)?;
        fs::rename(&result, &place)?;
        Ok(place)
    }

    fn make_root(&self, place: &Path) -> Result<()> {
        let apt = self.apt()?;
        let mut install = apt.command("apt-get");
        install.args(["install", "--yes", "--download-only", "--no-install-recommends"]).args(PACKAGES);
        quietly(&mut install)?;
        let root = self.making.join("unpacked");
        for folder in ["bin", "lib", "lib64", "sbin"] {
            fs::create_dir_all(root.join("usr").join(folder))?;
            symlink(format!("usr/{folder}"), root.join(folder))?;
        }
        let mut packages = Vec::new();
        for entry in fs::read_dir(apt.archives())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                packages.push(path);
            }
        }
        packages.sort();
        ensure!(!packages.is_empty(), "apt-get fetched no package");
        packages.iter().try_for_each(|package| unpack(package, &root))?;
        configure(&root)?;
        squash(&root, &place.join("root.squashfs"), &[])?;
        remove(&root)?;
        // The list of contents, for people.
        let names: Vec<_> = packages.iter().filter_map(|package| package.file_name()?.to_str()).collect();
        fs::write(place.join("packages"), names.join("\n") + "\n")?;
        Ok(())
    }

    fn make_debian_kernel(&self, place: &Path) -> Result<()> {
        const META: &str = "linux-image-amd64";
        let apt = self.apt()?;
        let depends = quietly(apt.command("apt-cache").args(["depends", "--important", META]))?;
        let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).with_context(|| {
            format!(
                "apt knows no package {META}. On another distribution than Debian name a kernel that is there: \
                 `--kernel DIR` with DIR/boot/vmlinuz-VERSION and DIR/lib/modules/VERSION; `/` if one is installed"
            )
        })?;
        let folder = self.making.join("kernel-package");
        fs::create_dir_all(&folder)?;
        quietly(apt.command("apt-get").args(["download", package]).current_dir(&folder))?;
        let unpacked = folder.join("unpacked");
        fs::create_dir(&unpacked)?;
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                unpack(&path, &unpacked)?;
            }
        }
        let kernel = Kernel::find(&unpacked)?;
        // The script of the package does this.
        let mut depmod = program("depmod", "kmod")?;
        quietly(depmod.arg("-b").arg(&unpacked).arg(&kernel.version))?;
        make_kernel(place, &kernel)?;
        remove(&folder)
    }

    fn apt(&self) -> Result<Apt> {
        let apt = Apt { folder: self.making.join("apt") };
        if !apt.folder.is_dir() {
            for folder in ["state/lists/partial", "cache/archives/partial"] {
                fs::create_dir_all(apt.folder.join(folder))?;
            }
            fs::write(apt.folder.join("status"), "")?;
            quietly(apt.command("apt-get").arg("update"))?;
        }
        Ok(apt)
    }
}

/// An `apt-get` with this machine's sources and keys, but with a state of its own, in which nothing is installed. It takes
/// none of the system's locks and needs no root.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let at = |part: &str| self.folder.join(part).display().to_string();
        for option in [
            format!("Dir::State={}", at("state")),
            format!("Dir::State::status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            // apt would change to a user who may not read our folder.
            "APT::Sandbox::User=".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.arg("-q").env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    fn archives(&self) -> PathBuf {
        self.folder.join("cache/archives")
    }
}

/// The texts that define where packages come from; the image is named after them.
fn sources() -> Result<String> {
    ensure!(
        find_program("apt-get").is_some() && find_program("dpkg-deb").is_some(),
        "the machine's root file system is made of Debian's packages, which takes `apt-get` and `dpkg-deb`: run this on \
         Debian or in a container of it"
    );
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()));
    files.sort();
    Ok(files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect())
}

/// Unpacks a package without running its scripts.
fn unpack(package: &Path, root: &Path) -> Result<()> {
    let about = || format!("unpacking {}", package.display());
    let mut files = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let mut tar = program("tar", "tar")?;
    // `/bin` and others are symbolic links, which a package with a folder of that name must not replace.
    tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--preserve-permissions", "--directory"]);
    tar.arg(root).args(LEFT_OUT.iter().map(|pattern| format!("--exclude={pattern}")));
    tar.stdin(files.stdout.take().context("dpkg-deb without an output")?);
    quietly(&mut tar).with_context(about)?;
    // tar stops reading at the end of the archive, so dpkg-deb may fail to write the padding.
    files.wait()?;
    Ok(())
}

/// Does what the scripts of packages would do, as far as it is useful here.
fn configure(root: &Path) -> Result<()> {
    for name in ["passwd", "group"] {
        fs::copy(root.join(format!("usr/share/base-passwd/{name}.master")), root.join("etc").join(name))?;
    }
    // tcpdump changes from root to this user.
    let mut users = File::options().append(true).open(root.join("etc/passwd"))?;
    writeln!(users, "tcpdump:x:100:65534::/nonexistent:/usr/sbin/nologin")?;
    fs::write(root.join("etc/hostname"), "vm\n")?;
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost vm\n::1 localhost\n")?;
    // By default these modules create a netdev when they are loaded.
    fs::write(
        root.join("etc/modprobe.d/vm.conf"),
        "options bonding max_bonds=0\noptions dummy numdummies=0\noptions ifb numifbs=0\n",
    )?;
    for (link, target) in ALTERNATIVES {
        let _ = fs::remove_file(root.join(link));
        symlink(target, root.join(link)).with_context(|| link.to_owned())?;
    }
    for folder in ["usr/lib/modules", "root", "tmp", "run", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // An emulated processor compiles pyroute2 for many seconds. Python runs from the new root's folder with the new root's
    // libraries, so that no chroot, and so no root, is needed.
    let linker = root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2");
    let mut python = Command::new(linker);
    python.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu")).arg(root.join("usr/bin/python3"));
    python.args(["-m", "compileall", "-q", "-s"]).arg(root).args(["-p", "/"]).arg(root.join("usr/lib/python3"));
    for entry in fs::read_dir(root.join("usr/lib"))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("python3.") {
            python.arg(entry.path());
        }
    }
    if let Err(error) = quietly(python.env("PYTHONHOME", root.join("usr"))) {
        eprintln!("python's modules are not compiled, so that it starts slowly there: {error:#}");
    }
    Ok(())
}

/// Makes the folder of a kernel.
fn make_kernel(place: &Path, kernel: &Kernel) -> Result<()> {
    fs::write(place.join("kernel"), kernel.quickest_image()?)?;
    let mut boot = Initramfs::default();
    let order = kernel.add_modules(&mut boot, &BOOT_MODULES)?;
    boot.file("/modules.json", serde_json::to_vec(&order)?, 0o644);
    boot.write(File::create(place.join("boot.cpio"))?)?;
    let left_out: Vec<_> =
        DRIVERS_LEFT_OUT.iter().map(|folder| format!("{}/kernel/{folder}", kernel.version)).collect();
    let left_out: Vec<_> = left_out.iter().map(String::as_str).collect();
    squash(&kernel.folder, &place.join("modules.squashfs"), &left_out)?;
    fs::write(place.join("version"), &kernel.version)?;
    Ok(())
}

/// Makes a file system of a folder: as it is, or, if something is to be left out, with the folder itself in it.
fn squash(folder: &Path, file: &Path, left_out: &[&str]) -> Result<()> {
    let mut mksquashfs = program("mksquashfs", "squashfs-tools")?;
    mksquashfs.arg(folder).arg(file).args(COMPRESSION).args(["-all-root", "-noappend", "-no-progress", "-no-xattrs"]);
    if !left_out.is_empty() {
        mksquashfs.args(["-keep-as-directory", "-e"]).args(left_out);
    }
    quietly(&mut mksquashfs)?;
    Ok(())
}

/// A command of a program. The error for a missing one names its package.
fn program(name: &str, package: &str) -> Result<Command> {
    match find_program(name) {
        Some(file) => Ok(Command::new(file)),
        None => bail!("there is no `{name}`; on Debian `apt-get install {package}`"),
    }
}

/// Runs a command and returns its standard output. If it fails, the error has its outputs.
fn quietly(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Standard input is left as it is: some commands read from a pipe.
    let output =
        command.stderr(Stdio::piped()).stdout(Stdio::piped()).output().with_context(|| format!("running {name}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "`{name} {}` failed ({}):\n{}{}",
        command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" "),
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// FNV-1a: does not depend on the compiler's version, unlike the hash of the standard library.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn what_fails_is_told_with_what_it_said() {
        let error = quietly(Command::new("sh").args(["-c", "echo before; echo why >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("before") && text.contains("why") && text.contains("status: 3"), "{text}");
    }

    #[test]
    fn what_was_made_is_kept_until_it_is_made_from_something_else() {
        let folder = std::env::temp_dir().join(format!("xtask-vm-{}", std::process::id()));
        let maker = |fresh| Maker { folder: &folder, making: folder.join("making"), fresh };
        let make = |fresh, from: &str, text: &'static str| {
            let make = |_: &Maker, place: &Path| Ok(fs::write(place.join("x"), text)?);
            let place = maker(fresh).made("kind", from, make).unwrap();
            fs::read_to_string(place.join("x")).unwrap()
        };
        assert_eq!(make(false, "a", "first"), "first");
        assert_eq!(make(false, "a", "second"), "first");
        assert_eq!(make(false, "b", "third"), "third");
        assert_eq!(make(true, "a", "fourth"), "fourth");
        // One that could not be made leaves nothing that would be taken for made.
        let failed = maker(false).made("kind", "c", |_, place| {
            fs::write(place.join("x"), "half")?;
            bail!("no space")
        });
        assert!(failed.is_err());
        fs::remove_dir_all(folder.join("making")).unwrap();
        assert_eq!(make(false, "c", "fifth"), "fifth");
        fs::remove_dir_all(&folder).unwrap();
    }
}
