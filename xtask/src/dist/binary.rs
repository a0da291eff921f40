//! The static binary of `esw`: how it is built, and what is checked of it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::{cargo, output_of, root, target_dir};

use super::release::Machine;

/// A binary that has been built.
pub struct Built {
    /// Its contents.
    pub bytes: Vec<u8>,
    /// The packages that are linked into it, by the ids that `cargo metadata` has, too.
    pub packages: BTreeSet<String>,
}

/// What cargo says of a part that it has built.
#[derive(Deserialize)]
struct Message {
    package_id: Option<String>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    executable: Option<PathBuf>,
}

/// Builds the binary, statically linked and without symbols, in a folder of its own below the target directory, so that
/// what other commands have built is kept.
///
/// # Errors
/// The toolchain or the C library lacks something, it does not compile, or it is not as [`check()`] wants it.
pub fn build(machine: &Machine) -> Result<Built> {
    find_libraries(machine)?;
    let target = target_dir()?.join("dist-build");
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "-p", "esw", "--bin", "esw", "--target", machine.triple]);
    command.args(["--message-format=json-render-diagnostics", "--target-dir"]).arg(&target);
    // Flags of the user would make another binary, and these have a separator that no path has.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags()?.join("\x1f")).env_remove("RUSTFLAGS");
    // What this build leaves is used again only by the next one like it.
    command.env("CARGO_INCREMENTAL", "0").current_dir(root());
    let output = command.stderr(Stdio::inherit()).output().context("running cargo")?;
    ensure!(output.status.success(), "the static binary cannot be built: {}", output.status);
    let (executable, packages) = read_messages(&output.stdout, machine)?;
    let bytes = fs::read(&executable).with_context(|| executable.display().to_string())?;
    check(&bytes, machine)?;
    for folder in [root(), &cargo_home()?] {
        // With a slash at its end.
        let path = folder.join("").into_os_string().into_encoded_bytes();
        let is_inside = bytes.windows(path.len()).any(|part| part == path);
        ensure!(!is_inside, "the binary has the path {} of this machine inside", folder.display());
    }
    Ok(Built { bytes, packages })
}

/// Fails if the linker would fail, with what to install.
fn find_libraries(machine: &Machine) -> Result<()> {
    let folder = output_of("rustc", &["--print", "target-libdir", "--target", machine.triple])?;
    let triple = machine.triple;
    ensure!(Path::new(&folder).is_dir(), "Rust's library for {triple} is missing: `rustup target add {triple}`");
    let library = output_of("cc", &["-print-file-name=libc.a"]);
    let library = library.context("the linker is missing: `apt-get install gcc libc6-dev`")?;
    // The compiler prints the name as it was if it knows no such file.
    ensure!(
        Path::new(&library).is_absolute(),
        "the static C library `libc.a` is missing: `apt-get install libc6-dev`, or `dnf install glibc-static`"
    );
    Ok(())
}

/// The flags of the compiler. Messages of panics have paths of sources: without what is before them on this machine,
/// the binary is the same on every machine with this toolchain.
fn flags() -> Result<Vec<String>> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned(), "-Cstrip=symbols".to_owned()];
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    flags.push(remap(root(), "eswitch"));
    // The folder of a registry has its address as a name.
    let registries = cargo_home()?.join("registry/src");
    // There is none if the sources are elsewhere, as with `cargo vendor`.
    let found = fs::read_dir(&registries).into_iter().flatten().map(|entry| entry.map(|entry| entry.path()));
    let mut folders: Vec<PathBuf> = found.collect::<Result<_, _>>()?;
    folders.sort();
    flags.extend(folders.iter().map(|folder| remap(folder, "crates")));
    Ok(flags)
}

fn cargo_home() -> Result<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("neither CARGO_HOME nor HOME is set")
}

/// The executable in what cargo prints, and the packages of the libraries beside it. Parts that run while others are
/// compiled (macros, build scripts) are in another folder than that of the target, and not linked.
fn read_messages(printed: &[u8], machine: &Machine) -> Result<(PathBuf, BTreeSet<String>)> {
    let mut executable = None;
    let mut packages = BTreeSet::new();
    for line in printed.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Message = serde_json::from_slice(line).context("a message of cargo")?;
        let is_linked = |file: &PathBuf| file.components().any(|part| part.as_os_str() == machine.triple);
        if message.filenames.iter().any(is_linked) {
            packages.extend(message.package_id);
        }
        executable = message.executable.or(executable);
    }
    Ok((executable.context("cargo has not built the binary esw")?, packages))
}

/// Checks that a binary is an ELF file for this machine that needs no dynamic linker.
///
/// # Errors
/// It is not.
pub fn check(bytes: &[u8], machine: &Machine) -> Result<()> {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, len: usize| -> Result<u64> {
        let part = bytes.get(at..at.saturating_add(len)).context("the binary ends within its headers")?;
        Ok(part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // 64 bits, little-endian.
    ensure!(bytes.starts_with(b"\x7fELF\x02\x01"), "the binary is no ELF file of 64 bits");
    ensure!(number(18, 2)? == u64::from(machine.elf), "the binary is for another machine than {}", machine.kernel);
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = usize::try_from(table.saturating_add(index * size))?;
        if number(header, 4)? == u64::from(INTERPRETER) {
            bail!("the binary is not static: it names a dynamic linker (PT_INTERP)");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::release::example;

    /// An ELF header with one program header of this kind.
    fn elf(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn a_binary_that_needs_a_dynamic_linker_is_refused() {
        let machine = example().machine;
        check(&elf(1), machine).unwrap();
        assert!(check(&elf(3), machine).unwrap_err().to_string().contains("not static"));
        assert!(check(&elf(1)[..60], machine).unwrap_err().to_string().contains("ends within"));
        assert!(check(b"#!/bin/sh", machine).unwrap_err().to_string().contains("no ELF"));
        let mut other = elf(1);
        other[18] = 183;
        assert!(check(&other, machine).unwrap_err().to_string().contains("another machine"));
    }

    #[test]
    fn the_linked_packages_are_those_built_for_the_target() {
        let printed = r#"{"reason":"compiler-artifact","package_id":"macros","filenames":["t/release/deps/libm.so"]}
{"reason":"compiler-artifact","package_id":"library","filenames":["t/x86_64-unknown-linux-gnu/release/deps/libl.rlib"]}
{"reason":"build-script-executed","package_id":"library"}
{"reason":"compiler-artifact","package_id":"esw","filenames":["t/x86_64-unknown-linux-gnu/release/esw"],"executable":"t/x86_64-unknown-linux-gnu/release/esw"}
{"reason":"build-finished","success":true}
"#;
        let (executable, packages) = read_messages(printed.as_bytes(), example().machine).unwrap();
        assert_eq!(executable, Path::new("t/x86_64-unknown-linux-gnu/release/esw"));
        assert_eq!(packages, BTreeSet::from(["esw", "library"].map(str::to_owned)));
        let nothing = read_messages(b"{\"reason\":\"build-finished\",\"success\":true}", example().machine);
        assert!(nothing.unwrap_err().to_string().contains("has not built"));
    }
}
