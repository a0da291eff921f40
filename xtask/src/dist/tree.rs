//! The files of a package or image, and the tar archive of them.
//!
//! The archive depends on nothing but the files and the time that they get: entries are sorted, and root owns everything.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

/// Files and folders by their path, without a slash at the beginning. The folders above a file are there, too.
#[derive(Clone, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone)]
enum Entry {
    Folder { mode: u32 },
    File { mode: u32, bytes: Vec<u8> },
}

impl Tree {
    /// Adds a file that everybody may read.
    ///
    /// # Errors
    /// There is a file of this path, or a file where a folder above it should be.
    pub fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Result<()> {
        self.add(path, Entry::File { mode: 0o644, bytes: bytes.into() })
    }

    /// Adds a program that everybody may run.
    ///
    /// # Errors
    /// As for [`Tree::file`].
    pub fn program(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> Result<()> {
        self.add(path, Entry::File { mode: 0o755, bytes: bytes.into() })
    }

    /// Adds a folder with these permissions.
    ///
    /// # Errors
    /// As for [`Tree::file`].
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(path, Entry::Folder { mode })
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            let above = self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder { mode: 0o755 });
            ensure!(matches!(above, Entry::Folder { .. }), "`{path}` is below a file");
        }
        let before = self.entries.insert(path.to_owned(), entry);
        ensure!(before.is_none(), "there are two files `{path}`");
        Ok(())
    }

    /// The files, without the folders, sorted by path.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().filter_map(|(path, entry)| match entry {
            Entry::File { bytes, .. } => Some((path.as_str(), bytes.as_slice())),
            Entry::Folder { .. } => None,
        })
    }

    /// The room that it takes when it is unpacked, in KiB: as dpkg counts it, each file in whole KiB and each folder one.
    pub fn installed_kib(&self) -> usize {
        let kib = |entry: &Entry| match entry {
            Entry::File { bytes, .. } => bytes.len().div_ceil(1024),
            Entry::Folder { .. } => 1,
        };
        self.entries.values().map(kib).sum()
    }

    /// A tar archive in which everything has this time, in seconds since 1970. `prefix` stands before each path: `./` for
    /// dpkg, nothing for an image.
    ///
    /// # Errors
    /// A path is longer than tar's format allows.
    pub fn tar(&self, prefix: &str, mtime: u64) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        if !prefix.is_empty() {
            append(&mut archive, prefix, mtime, &Entry::Folder { mode: 0o755 })?;
        }
        // A folder precedes what is in it, as its path is the beginning of theirs.
        for (path, entry) in &self.entries {
            let slash = if matches!(entry, Entry::Folder { .. }) { "/" } else { "" };
            append(&mut archive, &format!("{prefix}{path}{slash}"), mtime, entry)?;
        }
        Ok(archive.into_inner()?)
    }
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, mtime: u64, entry: &Entry) -> Result<()> {
    let (kind, mode, bytes) = match entry {
        Entry::Folder { mode } => (tar::EntryType::Directory, *mode, &[][..]),
        Entry::File { mode, bytes } => (tar::EntryType::Regular, *mode, bytes.as_slice()),
    };
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(mtime);
    header.set_size(bytes.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username("root")?;
    header.set_groupname("root")?;
    // Written by itself: `set_path` would remove the `./` that dpkg's own archives have.
    let name = &mut header.as_old_mut().name;
    let room = name.get_mut(..path.len()).with_context(|| format!("`{path}` is longer than 100 bytes"))?;
    room.copy_from_slice(path.as_bytes());
    header.set_cksum();
    archive.append(&header, bytes)?;
    Ok(())
}

/// Compresses as `gzip -9n`: without name and time.
///
/// # Errors
/// Never, as it writes to memory.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write;
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Tree {
        let mut tree = Tree::default();
        tree.file("usr/share/doc/x/README", "text").unwrap();
        tree.program("usr/bin/x", vec![1; 1025]).unwrap();
        tree.folder("tmp", 0o1777).unwrap();
        tree
    }

    #[test]
    fn an_archive_is_sorted_and_everything_in_it_is_roots() {
        let archive = example().tar("./", 1_700_000_000).unwrap();
        assert_eq!(archive, example().tar("./", 1_700_000_000).unwrap());
        let mut seen = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 1_700_000_000));
            assert_eq!((header.username().unwrap(), header.groupname().unwrap()), (Some("root"), Some("root")));
            seen.push((
                String::from_utf8_lossy(&entry.path_bytes()).into_owned(),
                header.mode().unwrap(),
                entry.size(),
            ));
        }
        let expected = [
            ("./", 0o755, 0),
            ("./tmp/", 0o1777, 0),
            ("./usr/", 0o755, 0),
            ("./usr/bin/", 0o755, 0),
            ("./usr/bin/x", 0o755, 1025),
            ("./usr/share/", 0o755, 0),
            ("./usr/share/doc/", 0o755, 0),
            ("./usr/share/doc/x/", 0o755, 0),
            ("./usr/share/doc/x/README", 0o644, 4),
        ];
        assert_eq!(seen, expected.map(|(path, mode, size)| (path.to_owned(), mode, size)));
        assert_eq!(example().installed_kib(), 6 + 1 + 2);
    }

    #[test]
    fn a_path_is_used_once_and_fits() {
        let mut tree = example();
        assert!(tree.file("usr/bin/x", "").unwrap_err().to_string().contains("two files"));
        assert!(tree.file("usr/bin/x/y", "").unwrap_err().to_string().contains("below a file"));
        tree.file(&"n".repeat(101), "").unwrap();
        assert!(tree.tar("", 0).unwrap_err().to_string().contains("longer than 100"));
    }

    #[test]
    fn what_is_compressed_has_no_time_and_no_name() {
        let compressed = gzip(b"text").unwrap();
        // Bytes 3 (flags: no name) and 4 to 7 (time) of RFC 1952.
        assert_eq!(compressed[3..8], [0; 5]);
        assert_eq!(compressed, gzip(b"text").unwrap());
    }
}
