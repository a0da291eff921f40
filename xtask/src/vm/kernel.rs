//! A distribution's kernel and its modules, installed or only unpacked.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::initramfs::Initramfs;

/// A kernel.
pub struct Kernel {
    pub version: String,
    pub image: PathBuf,
    /// Every module's file, by its name with underscores.
    modules: HashMap<String, PathBuf>,
}

impl Kernel {
    /// The newest kernel under a root that has its modules there.
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
                "there is no kernel with its modules under {}; on Debian `apt-get install --no-install-recommends \
                 linux-image-amd64`, or unpack the package it depends on (`apt-get download linux-image-VERSION-amd64`, \
                 `dpkg -x FILE DIR`) and name the folder with `--root DIR`",
                root.display()
            );
        };
        let mut modules = HashMap::new();
        collect(&folder.join("kernel"), &mut modules)?;
        Ok(Self { version, image, modules })
    }

    /// Adds modules with what they depend on; in the order in which they are to be loaded, what each is
    /// called in the machine, and its parameters. Those that the kernel does not have are taken for built in.
    ///
    /// # Errors
    /// A module cannot be read.
    pub fn add_modules(&self, image: &mut Initramfs, wanted: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
        let mut order = Vec::new();
        for (name, parameters) in wanted {
            self.add(image, name, parameters, &mut order)?;
        }
        Ok(order)
    }

    fn add(
        &self,
        image: &mut Initramfs,
        name: &str,
        parameters: &str,
        order: &mut Vec<(String, String)>,
    ) -> Result<()> {
        let inside = format!("/modules/{name}.ko");
        let Some(file) = self.modules.get(name).filter(|_| !order.iter().any(|(known, _)| *known == inside)) else {
            return Ok(());
        };
        let object = read_module(file)?;
        for needed in depends(&object) {
            self.add(image, &needed, "", order)?;
        }
        image.file(&inside, object, 0o644);
        order.push((inside, parameters.to_owned()));
        Ok(())
    }
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

/// A module as the kernel takes it.
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

/// What a module depends on, as it says itself.
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
}
