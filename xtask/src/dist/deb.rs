//! The Debian package. deb(5) and deb-control(5) describe it; it has no scripts, and depends on nothing.

use anyhow::Result;

use super::release::Release;
use super::tree::{Tree, gzip};
use super::{ar, digest};

/// The files that dpkg does not replace when the user has changed them.
const CONFIGURATION: [&str; 1] = ["/etc/eswitch.toml"];

/// The name of the package's file.
pub fn file_name(release: &Release) -> String {
    format!("eswitch_{}_{}.deb", release.debian_version(), release.machine.debian)
}

/// The package of these files.
///
/// # Errors
/// A path is longer than the formats allow.
pub fn package(release: &Release, files: &Tree) -> Result<Vec<u8>> {
    let mut control = Tree::default();
    control.file("control", self::control(release, files.installed_kib()))?;
    control.file("conffiles", CONFIGURATION.map(|path| format!("{path}\n")).concat())?;
    // As debhelper writes it: dpkg has the sums of configuration files elsewhere.
    let fixed = files.files().filter(|(path, _)| !CONFIGURATION.contains(&format!("/{path}").as_str()));
    control.file("md5sums", digest::sums(fixed, digest::md5))?;
    let control = gzip(&control.tar("./", release.time)?)?;
    let data = gzip(&files.tar("./", release.time)?)?;
    let members =
        [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", control.as_slice()), ("data.tar.gz", data.as_slice())];
    ar::archive(&members, release.time)
}

/// The file `control`. iproute2 is recommended, as scenarios and prompts run its programs beside a card of netdevs.
fn control(release: &Release, installed_kib: usize) -> String {
    let (version, architecture) = (release.debian_version(), release.machine.debian);
    format!(
        "Package: eswitch\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: The eswitch authors\n\
         Installed-Size: {installed_kib}\n\
         Recommends: iproute2\n\
         Section: net\n\
         Priority: optional\n\
         Description: software SmartNIC with an E-Switch and representors\n\
        \x20A card with an embedded switch (E-Switch) that comes up on any Linux machine\n\
        \x20without the hardware. Unmodified programs see it as a PCI device with a\n\
        \x20driver, netdevs, devlink ports and representors.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::release::example;

    fn files() -> Tree {
        let mut files = Tree::default();
        files.program("usr/bin/esw", "binary").unwrap();
        files.file("etc/eswitch.toml", "keep = false\n").unwrap();
        files
    }

    /// The members of an archive of `ar`.
    fn members(mut archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut members = Vec::new();
        archive = archive.strip_prefix(b"!<arch>\n").unwrap();
        while !archive.is_empty() {
            let field = |range: std::ops::Range<usize>| std::str::from_utf8(&archive[range]).unwrap().trim_end();
            let (name, len) = (field(0..16).to_owned(), field(48..58).parse::<usize>().unwrap());
            members.push((name, archive[60..60 + len].to_owned()));
            archive = &archive[archive.len().min(60 + len.next_multiple_of(2))..];
        }
        members
    }

    #[test]
    fn a_package_has_what_dpkg_reads() {
        let package = package(&example(), &files()).unwrap();
        assert_eq!(package, super::package(&example(), &files()).unwrap(), "two runs give the same bytes");
        let members = members(&package);
        let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["debian-binary", "control.tar.gz", "data.tar.gz"]);
        let mut control = tar::Archive::new(flate2::read::GzDecoder::new(members[1].1.as_slice()));
        let mut texts = Vec::new();
        for entry in control.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            texts.push((String::from_utf8_lossy(&entry.path_bytes()).into_owned(), text));
        }
        let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["./", "./conffiles", "./control", "./md5sums"]);
        assert_eq!(texts[1].1, "/etc/eswitch.toml\n");
        assert!(texts[2].1.contains("\nVersion: 1.2.3~rc.1\nArchitecture: amd64\n"), "{}", texts[2].1);
        assert!(
            texts[2].1.contains("\nInstalled-Size: 5\n") && texts[2].1.contains("\n A card with"),
            "{}",
            texts[2].1
        );
        assert_eq!(texts[3].1, format!("{}  usr/bin/esw\n", digest::md5(b"binary")));
        assert_eq!(file_name(&example()), "eswitch_1.2.3~rc.1_amd64.deb");
    }
}
