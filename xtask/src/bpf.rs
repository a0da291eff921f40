//! `cargo xtask bpf`: compiles the eBPF program of `crates/datapath-bpf`, or shows that source and object belong together.
//!
//! The object is committed, so that nobody needs clang to build or run eswitch. Beside it stands a file with what it was made
//! from: the hash of the sources and flags, and the compiler. `--check` compares the hash, and compiles anew where there is
//! the same compiler: then every byte must be the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// Arguments of `cargo xtask bpf`.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Args {
    /// Compile the object and note what it was made from.
    #[arg(long)]
    write: bool,
    /// Fail if the object was made from other sources, or if it compiles to other bytes.
    #[arg(long)]
    check: bool,
}

const SOURCE: &str = "eswitch.bpf.c";
const OBJECT: &str = "eswitch.bpf.o";
const MADE_FROM: &str = "eswitch.bpf.made-from";

/// The flags that decide what the object is.
const FLAGS: [&str; 6] = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall"];

fn folder() -> PathBuf {
    workspace::root().join("crates/datapath-bpf/bpf")
}

/// Runs the command.
///
/// # Errors
/// The object does not belong to the sources, or it cannot be compiled.
pub fn run(args: &Args) -> Result<()> {
    let folder = folder();
    if args.write {
        compile(&folder, &folder.join(OBJECT))?;
        fs::write(folder.join(MADE_FROM), made_from(&folder, &compiler()?)?)?;
        println!("wrote {OBJECT}");
        return Ok(());
    }
    check(&folder)
}

fn check(folder: &Path) -> Result<()> {
    let noted = fs::read_to_string(folder.join(MADE_FROM)).with_context(|| format!("reading {MADE_FROM}"))?;
    let compiler_then = noted.lines().find_map(|line| line.strip_prefix("compiler ")).unwrap_or_default();
    ensure!(
        noted == made_from(folder, compiler_then)?,
        "{OBJECT} was made from other sources: cargo xtask bpf --write"
    );
    match compiler() {
        Ok(own) if own == compiler_then => {
            let again = workspace::target_dir()?.join(OBJECT);
            compile(folder, &again)?;
            let same = fs::read(&again)? == fs::read(folder.join(OBJECT))?;
            ensure!(same, "the sources compile to another {OBJECT}: cargo xtask bpf --write");
            println!("{OBJECT} is what its sources compile to");
        }
        _ => println!("{OBJECT} was made from these sources, by {compiler_then}, which is not here"),
    }
    Ok(())
}

/// The first line of what clang says about itself.
fn compiler() -> Result<String> {
    let output = Command::new("clang").arg("--version").output().context("running clang")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn compile(folder: &Path, object: &Path) -> Result<()> {
    // <linux/bpf.h> includes <asm/types.h>, which Debian keeps in a folder for each architecture.
    let machine = Command::new("clang").arg("-print-multiarch").output().ok();
    let machine =
        machine.filter(|output| output.status.success()).and_then(|output| String::from_utf8(output.stdout).ok());
    let headers = Path::new("/usr/include").join(machine.as_deref().unwrap_or("").trim());
    let headers = if headers.join("asm/types.h").exists() { headers } else { "/usr/include/x86_64-linux-gnu".into() };
    let mut clang = Command::new("clang");
    // The BTF names the sources, without where they are on this machine.
    clang.arg(format!("-ffile-prefix-map={}=.", folder.display()));
    clang.args(FLAGS).arg("-I").arg(headers).args(["-c", SOURCE, "-o"]).arg(object).current_dir(folder);
    ensure!(clang.status().context("running clang")?.success(), "{SOURCE} does not compile");
    // What is left is code, maps and BTF.
    let strip = Command::new("llvm-strip").arg("-g").arg(object).status().context("running llvm-strip")?;
    ensure!(strip.success(), "llvm-strip failed");
    let root = workspace::root().to_string_lossy().into_owned();
    if contains(&fs::read(object)?, root.as_bytes()) {
        bail!("{OBJECT} has a path of this machine inside");
    }
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What the object is made from, as text.
fn made_from(folder: &Path, compiler: &str) -> Result<String> {
    let mut sources: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c" || extension == "h"));
    sources.sort();
    let mut text = format!("compiler {compiler}\nflags {}\n", FLAGS.join(" "));
    for source in sources {
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        text += &format!("{:032x} {name}\n", hash(&fs::read(&source)?));
    }
    Ok(text)
}

/// FNV-1a with 128 bits: against mistakes, not against an attacker, who could change the object as well.
fn hash(bytes: &[u8]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_was_made_from_its_sources() {
        check(&folder()).expect("the object belongs to the sources");
    }
}
