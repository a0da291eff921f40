//! The licences of everything that is linked into the binary: the crates, Rust's library, and the C library.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::workspace::{cargo, output_of, root};

use super::release::Machine;

/// What is linked, and under which licences.
#[derive(Clone, Default)]
pub struct Licences {
    /// The crates of others, sorted by name and version.
    pub crates: Vec<Crate>,
    /// The notices of Rust's library, a page.
    pub rust_library: String,
    /// The notices of the C library, and the LGPL.
    pub c_library: String,
}

/// A crate of somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The licences as an SPDX expression; `see NAME` if it has a file instead.
    pub expression: String,
    /// Its authors, who hold the rights where no file says so.
    pub authors: Vec<String>,
    /// The names and texts of its files of licences and notices.
    pub files: Vec<(String, String)>,
}

/// A package, as `cargo metadata` tells of it.
#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    /// `None` for a package of this workspace.
    source: Option<String>,
    license: Option<String>,
    license_file: Option<PathBuf>,
    authors: Vec<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

/// The licences of what is linked into the binary.
///
/// # Errors
/// A crate has no licence, or one without a text; the notices of a library are not where the toolchain keeps them; a file cannot be read.
pub fn collect(linked: &BTreeSet<String>, machine: &Machine) -> Result<Licences> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", machine.triple]);
    let output = command.current_dir(root()).output().context("running cargo")?;
    ensure!(output.status.success(), "`cargo metadata`: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    let Metadata { packages } = serde_json::from_slice(&output.stdout).context("what `cargo metadata` prints")?;
    let crates = crates(&packages, linked)?;
    let sysroot = output_of("rustc", &["--print", "sysroot"])?;
    let rust_library = first_of(&[&format!("{sysroot}/share/doc/rust/COPYRIGHT-library.html")])
        .context("the notices of Rust's library are missing; rustup installs them with the toolchain")?;
    let notices = first_of(&["/usr/share/doc/libc6-dev/copyright", "/usr/share/licenses/glibc/LICENSES"]);
    let notices =
        notices.context("the notices of the C library are missing: `apt-get install --reinstall libc6-dev`")?;
    // The notices only name the file with this text, which has to go with the library.
    let lgpl = first_of(&["/usr/share/common-licenses/LGPL-2.1", "/usr/share/licenses/glibc/COPYING.LIB"]);
    let lgpl = lgpl.context("the text of the LGPL is missing: `apt-get install --reinstall base-files`")?;
    let c_library = format!("{notices}\n{}\n\n{lgpl}", "-".repeat(72));
    Ok(Licences { crates, rust_library, c_library })
}

/// The text of the first of these files that exists.
fn first_of(files: &[&str]) -> Result<String> {
    let found = files.iter().find(|file| Path::new(file).is_file());
    let found = found.with_context(|| format!("there is no file {}", files.join(" or ")))?;
    read_text(Path::new(found))
}

/// The crates of others among the packages that are linked.
fn crates(packages: &[Package], linked: &BTreeSet<String>) -> Result<Vec<Crate>> {
    let is_known = |id: &String| packages.iter().any(|package| package.id == *id);
    let unknown: Vec<&str> = linked.iter().filter(|id| !is_known(id)).map(String::as_str).collect();
    ensure!(unknown.is_empty(), "`cargo metadata` does not tell of {}", unknown.join(", "));
    let others = packages.iter().filter(|package| package.source.is_some() && linked.contains(&package.id));
    let mut crates = others.map(licence_of).collect::<Result<Vec<Crate>>>()?;
    crates.sort();
    Ok(crates)
}

/// Reads the licence of a package: the expression in its manifest, and the files in its folder.
fn licence_of(package: &Package) -> Result<Crate> {
    let Package { name, version, .. } = package;
    let folder = package.manifest_path.parent().context("the manifest is in no folder")?;
    let named = package.license_file.as_ref().map(|file| format!("see {}", file.display()));
    let expression = package.license.clone().or(named).with_context(|| {
        format!(
            "the crate {name} {version} is linked into esw and has no licence: its manifest has neither `license` nor \
             `license-file`; take another version or another crate"
        )
    })?;
    let mut paths: BTreeSet<PathBuf> = package.license_file.iter().map(|file| folder.join(file)).collect();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let is_file = entry.file_type()?.is_file();
        if is_file && is_licence(&entry.file_name().to_string_lossy()) {
            paths.insert(entry.path());
        }
    }
    let read = |path: PathBuf| Ok((path.file_name().unwrap_or_default().to_string_lossy().into(), read_text(&path)?));
    let files = paths.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let has_text = !files.is_empty() || is_ours(&expression);
    ensure!(has_text, "the crate {name} {version} is linked into esw and has no file with the text of {expression}");
    Ok(Crate { name: name.clone(), version: version.clone(), expression, authors: package.authors.clone(), files })
}

/// Whether one of the licences in an expression is eswitch's own, whose text is there in any case.
fn is_ours(expression: &str) -> bool {
    expression.split([' ', '/', '(', ')']).any(|word| ["MIT", "Apache-2.0"].contains(&word))
}

/// Whether a file of this name has a licence, or a notice that a licence wants to be kept.
fn is_licence(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"].iter().any(|word| name.starts_with(word))
        && !name.ends_with(".RS")
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    // Whatever it is written in, and wherever: the same characters and line ends.
    Ok(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"))
}

impl Licences {
    /// The crates with their versions and licences, and then each text once, as many crates have the same.
    pub fn text(&self) -> String {
        let mut text = "Crates that are linked into esw, and their licences. The texts follow the list.\n\n".to_owned();
        let mut users: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut order: Vec<&str> = Vec::new();
        for Crate { name, version, expression, authors, files } in &self.crates {
            let _ = writeln!(text, "{name} {version}: {expression}");
            if files.is_empty() {
                let authors = if authors.is_empty() { "not named".to_owned() } else { authors.join(", ") };
                let _ = writeln!(
                    text,
                    "    The crate has no file with the text, which is in `copyright`. Its authors: {authors}"
                );
            }
            for (file, contents) in files {
                let users = users.entry(contents.trim()).or_default();
                if users.is_empty() {
                    order.push(contents.trim());
                }
                users.push(format!("{name} {version}, {file}"));
            }
        }
        let line = "-".repeat(72);
        for contents in order {
            let _ = write!(text, "\n{line}\n{}\n{line}\n\n{contents}\n", users[contents].join("\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::check::Scratch;

    fn package(folder: &Path, name: &str, license: Option<&str>) -> Package {
        Package {
            id: format!("{name}@1"),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            source: Some("registry".to_owned()),
            license: license.map(str::to_owned),
            license_file: None,
            authors: vec!["A. Author".to_owned()],
            manifest_path: folder.join("Cargo.toml"),
        }
    }

    #[test]
    fn each_text_stands_once_with_the_crates_that_have_it() {
        let scratch = Scratch::new("licences").unwrap();
        fs::write(scratch.path().join("LICENSE-MIT"), "Permission\r\nis granted\r\n").unwrap();
        fs::write(scratch.path().join("license.rs"), "fn main() {}").unwrap();
        let mut own = package(scratch.path(), "own", None);
        own.source = None;
        let packages = [
            package(scratch.path(), "second", Some("MIT")),
            package(scratch.path(), "first", Some("MIT OR Apache-2.0")),
            package(scratch.path(), "not-linked", None),
            own,
        ];
        let linked = BTreeSet::from(["first@1", "second@1", "own@1"].map(str::to_owned));
        let licences = Licences { crates: crates(&packages, &linked).unwrap(), ..Licences::default() };
        let text = licences.text();
        assert!(text.contains("\nfirst 1.0.0: MIT OR Apache-2.0\nsecond 1.0.0: MIT\n"), "{text}");
        assert!(text.contains("\nfirst 1.0.0, LICENSE-MIT\nsecond 1.0.0, LICENSE-MIT\n---"), "{text}");
        assert_eq!(text.matches("Permission\nis granted\n").count(), 1, "{text}");
        assert!(!text.contains("fn main") && !text.contains("own"), "{text}");
    }

    #[test]
    fn a_crate_without_a_licence_is_refused() {
        let scratch = Scratch::new("no-licence").unwrap();
        let linked = BTreeSet::from(["bare@1".to_owned()]);
        let mut bare = package(scratch.path(), "bare", None);
        let error = crates(std::slice::from_ref(&bare), &linked).unwrap_err().to_string();
        assert!(error.contains("bare 1.0.0") && error.contains("neither `license` nor `license-file`"), "{error}");
        bare.license = Some("MIT".to_owned());
        let licences =
            Licences { crates: crates(std::slice::from_ref(&bare), &linked).unwrap(), ..Licences::default() };
        assert!(licences.text().contains("bare 1.0.0: MIT\n    The crate has no file"), "{}", licences.text());
        assert!(licences.text().contains("Its authors: A. Author\n"), "{}", licences.text());
        bare.license = Some("Zlib".to_owned());
        let error = crates(std::slice::from_ref(&bare), &linked).unwrap_err().to_string();
        assert!(error.contains("no file with the text of Zlib"), "{error}");
        (bare.license, bare.license_file) = (None, Some("TERMS".into()));
        assert!(crates(std::slice::from_ref(&bare), &linked).unwrap_err().to_string().contains("TERMS"));
        fs::write(scratch.path().join("TERMS"), "Terms").unwrap();
        let found = crates(std::slice::from_ref(&bare), &linked).unwrap();
        assert_eq!((found[0].expression.as_str(), &found[0].files[0].1), ("see TERMS", &"Terms".to_owned()));
        assert!(crates(&[], &linked).unwrap_err().to_string().contains("does not tell of bare@1"));
    }
}
