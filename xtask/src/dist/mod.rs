//! `cargo xtask dist`: what is needed to install eswitch, in one folder.
//!
//! A static binary, manual pages, completions of shells, a Debian package, a container image, and the SHA-256 of each. All
//! of it depends only on the sources, the toolchain and the time of the last commit: two runs give the same bytes. With
//! `--check`, each is used as a user would use it.

mod ar;
mod binary;
mod check;
mod deb;
mod digest;
mod licences;
mod oci;
mod pages;
mod release;
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::patched::walk;
use crate::workspace::{root, target_dir};

use binary::Built;
use licences::Licences;
use release::Release;
use tree::{Tree, gzip};

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub struct Args {
    /// The folder for the files: target/dist if it is not given. Other files in it stay
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Then install each file as a user would, use it, and remove it again. What this machine has no program for, or no
    /// rights, is skipped with a line that says so
    #[arg(long)]
    check: bool,
}

/// The name of the file with the SHA-256 of the others.
const SUMS: &str = "SHA256SUMS";

/// The files that are made, by their path in the output folder.
type Made = BTreeMap<String, Vec<u8>>;

/// What the files are made from.
struct Ingredients {
    release: Release,
    binary: Vec<u8>,
    licences: Licences,
}

/// Makes the files, and checks them if that is asked for.
///
/// # Errors
/// The output folder cannot be written, the binary cannot be built, a licence is missing, or a check fails.
pub fn run(args: &Args) -> Result<()> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => target_dir()?.join("dist"),
    };
    // Before the build, which takes minutes.
    make_folder(&out)?;
    let release = Release::of_this_tree()?;
    let began = Instant::now();
    let Built { bytes, packages } = binary::build(release.machine)?;
    eprintln!("{:7.1} s  static binary", began.elapsed().as_secs_f64());
    let began = Instant::now();
    let licences = licences::collect(&packages, release.machine)?;
    let ingredients = Ingredients { release, binary: bytes, licences };
    let made = make(&ingredients)?;
    write(&out, &made)?;
    eprintln!("{:7.1} s  packages", began.elapsed().as_secs_f64());
    println!("in {}:", out.display());
    for (name, bytes) in &made {
        println!("{:>12}  {name}", format_kib(bytes.len()));
    }
    if args.check { check::run(&out, &ingredients, &made) } else { Ok(()) }
}

fn format_kib(len: usize) -> String {
    format!("{} KiB", len.div_ceil(1024))
}

fn make_folder(out: &Path) -> Result<()> {
    let is_other = out.symlink_metadata().is_ok() && !out.is_dir();
    ensure!(!is_other, "{} is no folder: name another with --out, or remove it", out.display());
    fs::create_dir_all(out).with_context(|| format!("{} cannot be made: name another folder with --out", out.display()))
}

/// Makes every file, in memory. The same ingredients give the same bytes.
///
/// # Errors
/// A file of the repository cannot be read; a path is longer than a format allows.
fn make(ingredients: &Ingredients) -> Result<Made> {
    let Ingredients { release, binary, .. } = ingredients;
    let documents = documents(ingredients)?;
    let mut made = Made::new();
    for (name, page) in pages::man_pages(release)? {
        made.insert(format!("man/{name}"), page);
    }
    for (path, shell) in pages::COMPLETIONS {
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        made.insert(format!("completions/{shell}/{name}"), pages::completions(shell));
    }
    made.insert(deb::file_name(release), deb::package(release, &installed(ingredients, &documents)?)?);
    made.insert(oci::file_name(release), oci::image(release, &contained(ingredients, &documents)?)?);
    made.insert("esw".to_owned(), binary.clone());
    // Someone who only takes the binary must get the licences, too.
    made.extend(
        documents.into_iter().filter(|(name, _)| *name != "README.md").map(|(name, bytes)| (name.into(), bytes)),
    );
    let sums = digest::sums(made.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())), digest::sha256);
    made.insert(SUMS.to_owned(), sums.into_bytes());
    Ok(made)
}

/// What is in `/usr/share/doc/eswitch` of package and image.
fn documents(ingredients: &Ingredients) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let licences = &ingredients.licences;
    Ok(vec![
        ("README.md", read("README.md")?),
        ("copyright", copyright()?.into_bytes()),
        ("licences-of-crates.gz", gzip(licences.text().as_bytes())?),
        ("licences-of-rust-library.html.gz", gzip(licences.rust_library.as_bytes())?),
        ("licences-of-c-library.gz", gzip(licences.c_library.as_bytes())?),
    ])
}

/// The file `copyright`: both licences of the project, and where those of everything that is linked are.
fn copyright() -> Result<String> {
    let (mit, apache) = (read("LICENSE-MIT")?, read("LICENSE-APACHE")?);
    let (mit, apache) = (String::from_utf8_lossy(&mit), String::from_utf8_lossy(&apache));
    Ok(format!(
        "eswitch is licensed under MIT or Apache-2.0, at your choice. Both texts follow.\n\n\
         The program esw is linked statically. Beside eswitch it contains\n\
         - crates, which licences-of-crates.gz lists with their licences;\n\
         - Rust's library, MIT OR Apache-2.0: licences-of-rust-library.html.gz;\n\
         - the GNU C library, LGPL-2.1-or-later: licences-of-c-library.gz. eswitch's\n\
        \x20 sources and `cargo xtask dist` link the program anew, also with another\n\
        \x20 version of that library;\n\
         - parts of GCC's library, GPL-3.0-or-later WITH GCC-exception-3.1.\n\n\
         {line}\nMIT\n{line}\n\n{mit}\n{line}\nApache-2.0\n{line}\n\n{apache}",
        line = "-".repeat(72)
    ))
}

/// The files of the Debian package.
fn installed(ingredients: &Ingredients, documents: &[(&str, Vec<u8>)]) -> Result<Tree> {
    let mut files = Tree::default();
    files.program("usr/bin/esw", ingredients.binary.clone())?;
    files.file("etc/eswitch.toml", read("dist/eswitch.toml")?)?;
    files.file("usr/share/eswitch/two-nodes.sh", read("dist/two-nodes.sh")?)?;
    files.file("usr/lib/systemd/system/eswitch.service", read("dist/systemd/eswitch.service")?)?;
    for (name, page) in pages::man_pages(&ingredients.release)? {
        files.file(&format!("usr/share/man/man1/{name}.gz"), gzip(&page)?)?;
    }
    for (path, shell) in pages::COMPLETIONS {
        files.file(&format!("usr/share/{path}"), pages::completions(shell))?;
    }
    add_shared(&mut files, documents)?;
    files.file("usr/share/doc/eswitch/CHANGELOG.md.gz", gzip(&read("CHANGELOG.md")?)?)?;
    Ok(files)
}

/// The files of the Debian package as a tar archive.
fn installed_archive(ingredients: &Ingredients) -> Result<Vec<u8>> {
    installed(ingredients, &documents(ingredients)?)?.tar("./", ingredients.release.time)
}

/// The files of the image. The binary needs nothing beside it; programs that look up the user find root.
fn contained(ingredients: &Ingredients, documents: &[(&str, Vec<u8>)]) -> Result<Tree> {
    let mut files = Tree::default();
    files.program("usr/bin/esw", ingredients.binary.clone())?;
    files.file("etc/passwd", "root:x:0:0:root:/root:/usr/bin/esw\nnobody:x:65534:65534:nobody:/:/usr/bin/esw\n")?;
    files.file("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    // Where an engine mounts what every container has, also over a root that cannot be written.
    for folder in ["dev", "proc", "run", "sys"] {
        files.folder(folder, 0o755)?;
    }
    files.folder("root", 0o700)?;
    files.folder("tmp", 0o1777)?;
    add_shared(&mut files, documents)?;
    Ok(files)
}

/// What both have: the documents, and the scenarios, which are the first that one can try.
fn add_shared(files: &mut Tree, documents: &[(&str, Vec<u8>)]) -> Result<()> {
    for (name, bytes) in documents {
        files.file(&format!("usr/share/doc/eswitch/{name}"), bytes.as_slice())?;
    }
    let scenarios = walk(&root().join("scenarios"))?;
    for path in scenarios.iter().filter(|path| path.extension().is_some_and(|extension| extension == "toml")) {
        let inside = Path::new("scenarios").join(path);
        files.file(&format!("usr/share/eswitch/{}", inside.display()), read(&inside)?)?;
    }
    Ok(())
}

/// Reads a file of the repository.
fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(root().join(path)).with_context(|| path.display().to_string())
}

/// Writes the files into the output folder.
fn write(out: &Path, made: &Made) -> Result<()> {
    for (name, bytes) in made {
        let path = out.join(name);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(out))?;
            // A new file, so that a program that runs from the old one goes on.
            let _ = fs::remove_file(&path);
            fs::write(&path, bytes)?;
            let mode = if name == "esw" { 0o755 } else { 0o644 };
            fs::set_permissions(&path, Permissions::from_mode(mode))
        };
        write().with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check::Scratch;
    use super::*;

    fn example() -> Ingredients {
        Ingredients { release: release::example(), binary: b"binary".to_vec(), licences: Licences::default() }
    }

    #[test]
    fn two_runs_give_the_same_bytes() {
        let made = make(&example()).unwrap();
        assert!(made == make(&example()).unwrap());
        let names: Vec<&str> = made.keys().map(String::as_str).collect();
        let expected =
            ["completions/zsh/_esw", "esw", "man/esw-dev.1", "eswitch_1.2.3~rc.1_amd64.deb", SUMS, "copyright"];
        assert!(expected.iter().all(|name| names.contains(name)), "{names:?}");
    }

    #[test]
    fn the_package_has_what_the_unit_starts() {
        let files = installed(&example(), &documents(&example()).unwrap()).unwrap();
        let files: BTreeMap<&str, &[u8]> = files.files().collect();
        let unit = String::from_utf8_lossy(files["usr/lib/systemd/system/eswitch.service"]);
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let paths: Vec<&str> = start.split(' ').filter_map(|word| word.strip_prefix('/')).collect();
        assert_eq!(paths, ["usr/bin/esw", "etc/eswitch.toml"]);
        assert!(paths.iter().all(|path| files.contains_key(path)));
        let copyright = String::from_utf8_lossy(files["usr/share/doc/eswitch/copyright"]);
        assert!(copyright.contains("MIT License") && copyright.contains("Apache License"), "{copyright}");
    }

    #[test]
    fn an_output_folder_that_is_a_file_is_refused_before_anything_is_built() {
        let scratch = Scratch::new("out").unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(make_folder(&file).unwrap_err().to_string().contains("is no folder: name another with --out"));
        assert!(make_folder(&file.join("below")).unwrap_err().to_string().contains("cannot be made"));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        make_folder(&scratch.path().join("new/folder")).unwrap();
    }
}
