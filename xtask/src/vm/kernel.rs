//! A distribution's kernel and its modules, installed or only unpacked.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::initramfs::Initramfs;

/// A kernel.
pub struct Kernel {
    /// The version, as `uname -r` prints it.
    pub version: String,
    /// The image as the distribution has it.
    pub image: PathBuf,
    /// The folder of its modules, which ends with the version.
    pub folder: PathBuf,
    /// Every module's file, by its name with underscores.
    modules: HashMap<String, PathBuf>,
}

impl Kernel {
    /// Finds the newest kernel below a root directory that has its modules there.
    ///
    /// # Errors
    /// There is none.
    pub fn find(root: &Path) -> Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root.join("boot")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(version) = name.strip_prefix("vmlinuz-") else { continue };
            let folders = ["lib/modules", "usr/lib/modules"].map(|folder| root.join(folder).join(version));
            if let Some(folder) = folders.into_iter().find(|folder| folder.join("kernel").is_dir()) {
                found.push((numbers(version), version.to_owned(), entry.path(), folder));
            }
        }
        found.sort();
        let Some((_, version, image, folder)) = found.pop() else {
            bail!(
                "there is no kernel with its modules under {}: `boot/vmlinuz-VERSION` and `lib/modules/VERSION` are \
                 looked for. On Debian leave `--kernel` away, and a kernel is fetched",
                root.display()
            );
        };
        let mut modules = HashMap::new();
        collect(&folder.join("kernel"), &mut modules)?;
        Ok(Self { version, image, folder, modules })
    }

    /// Adds modules and their dependencies; returns their paths in the machine, in the order of loading. A module without a
    /// file is assumed to be built in.
    ///
    /// # Errors
    /// A module cannot be read.
    pub fn add_modules(&self, image: &mut Initramfs, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(image, name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, image: &mut Initramfs, name: &str, order: &mut Vec<String>) -> Result<()> {
        let inside = format!("/modules/{name}.ko");
        let Some(file) = self.modules.get(name).filter(|_| !order.contains(&inside)) else {
            return Ok(());
        };
        let object = read_module(file)?;
        for needed in depends(&object) {
            self.add(image, &needed, order)?;
        }
        image.file(&inside, object, 0o644);
        order.push(inside);
        Ok(())
    }

    /// The kernel in the form that QEMU boots fastest: uncompressed, if QEMU can start it (PVH) and the program to
    /// unpack it is installed; otherwise the image itself. An emulated processor takes seconds to unpack it.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn quickest_image(&self) -> Result<Vec<u8>> {
        let image = fs::read(&self.image).with_context(|| self.image.display().to_string())?;
        Ok(unpack(&image).filter(|unpacked| boots_unpacked(unpacked)).unwrap_or(image))
    }
}

/// Unpacks the kernel in an image of x86's boot protocol (`Documentation/arch/x86/boot.rst`); `None` if this fails.
fn unpack(image: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    // 0 stands for 4 sectors of setup. After them comes the part that payload_offset counts from.
    let setup = match image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let begin = (setup + 1) * 512 + number(0x248)?;
    // The last four bytes are the length of the unpacked kernel.
    let payload = image.get(begin..begin + number(0x24c)?)?.split_last_chunk::<4>()?.0;
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return None,
    };
    let mut child =
        Command::new(program).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let child = child.as_mut().ok()?;
    let mut input = child.stdin.take()?;
    let mut output = child.stdout.take()?;
    let mut unpacked = Vec::new();
    thread::scope(|scope| {
        scope.spawn(move || input.write_all(payload));
        std::io::Read::read_to_end(&mut output, &mut unpacked)
    })
    .ok()?;
    child.wait().ok()?.success().then_some(unpacked)
}

/// Whether QEMU can start an uncompressed kernel: an ELF file with Xen's note of the entry point for PVH guests.
fn boots_unpacked(kernel: &[u8]) -> bool {
    // The length of the name, of what follows (4 or 8 bytes), the type XEN_ELFNOTE_PHYS32_ENTRY, the name.
    let note = |len: u8| [&[4, 0, 0, 0, len, 0, 0, 0, 18, 0, 0, 0][..], b"Xen\0"].concat();
    let notes = [note(4), note(8)];
    kernel.starts_with(b"\x7fELF") && kernel.windows(16).any(|window| notes.iter().any(|note| note == window))
}

/// The numbers in a version, to compare versions by.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn collect(folder: &Path, modules: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, modules)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            modules.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// Reads a module, and unpacks it for the kernel.
fn read_module(file: &Path) -> Result<Vec<u8>> {
    let about = || file.display().to_string();
    let unpack = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(file).with_context(about),
    };
    let output = Command::new(unpack).arg("-dc").arg(file).output();
    let output = output.with_context(|| format!("{} takes `{unpack}` to unpack", file.display()))?;
    ensure!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// The modules that a module depends on, from its `depends=`.
fn depends(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = object.windows(KEY.len()).position(|window| window == KEY);
    let names = at.map(|at| &object[at + KEY.len()..]).unwrap_or_default();
    let names = names.split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(names);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(depends(b"\x7fELF\0license=GPL\0depends=stp,x-y\0name=bridge\0"), ["stp", "x_y"]);
        assert_eq!(depends(b"\x7fELF\0depends=\0name=veth\0"), [""; 0]);
        assert_eq!(depends(b"\x7fELF"), [""; 0]);
    }

    #[test]
    fn newer_is_by_number() {
        assert!(numbers("6.1.0-56-amd64") > numbers("6.1.0-9-amd64"));
    }

    /// An image of the boot protocol: one sector of setup, then eight bytes, then what is compressed and its length.
    fn image(packed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 8];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&8_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
        image.extend(packed);
        image.extend(8_u32.to_le_bytes());
        image.extend(b"what follows");
        image
    }

    #[test]
    fn what_is_compressed_in_an_image_is_found() {
        // "a kernel", as gzip writes it.
        let packed = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\x54\xc8\x4e\x2d\xca\x4b\xcd\x01\x00\xd8\x7d\xce\x5a\x08\x00\x00\x00";
        let found = unpack(&image(packed));
        assert_eq!(found.as_deref(), Some(&b"a kernel"[..]));
        assert_eq!(unpack(&image(b"neither of them")), None);
        assert_eq!(unpack(b"short"), None);
        let mut cut = image(packed);
        cut.truncate(1030);
        assert_eq!(unpack(&cut), None);
    }

    #[test]
    fn only_a_kernel_with_its_note_boots_unpacked() {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
        assert!(boots_unpacked(&[b"\x7fELF....", &note[..]].concat()));
        assert!(!boots_unpacked(b"\x7fELF.................."));
        assert!(!boots_unpacked(note));
    }
}
