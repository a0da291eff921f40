//! An initramfs: a cpio archive in the format `newc`, which the kernel unpacks at boot.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// Files, by their path in the machine.
#[derive(Default)]
pub struct Initramfs {
    files: BTreeMap<String, Content>,
}

struct Content {
    bytes: Bytes,
    mode: u32,
}

enum Bytes {
    Here(Vec<u8>),
    /// The contents are in a file, which is read when the archive is written.
    In(PathBuf),
}

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

impl Initramfs {
    /// Adds a file.
    pub fn file(&mut self, inside: &str, bytes: Vec<u8>, mode: u32) {
        self.files.insert(inside.to_owned(), Content { bytes: Bytes::Here(bytes), mode });
    }

    /// Adds a program with the libraries it is linked to.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn program(&mut self, file: &Path, inside: &str) -> Result<()> {
        fs::metadata(file).with_context(|| file.display().to_string())?;
        self.files.insert(inside.to_owned(), Content { bytes: Bytes::In(file.to_owned()), mode: 0o755 });
        let output = Command::new("ldd").arg(file).output().context("running ldd")?;
        // A statically linked program is no error.
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let content = Content { bytes: Bytes::In(library.into()), mode: 0o755 };
            self.files.entry(library.to_owned()).or_insert(content);
        }
        Ok(())
    }

    /// Writes the archive. Its length is a multiple of four, so that another may follow: the kernel unpacks one after
    /// the other.
    ///
    /// # Errors
    /// A file cannot be read, or the archive not written.
    pub fn write(&self, archive: impl Write) -> Result<()> {
        let mut out = Archive { out: BufWriter::new(archive), entries: 0, written: 0 };
        let mut folders: Vec<&Path> = self.files.keys().flat_map(|file| Path::new(file).ancestors().skip(1)).collect();
        folders.extend(["/proc", "/sys", "/dev", "/run", "/tmp", "/etc"].map(Path::new));
        // A folder precedes its contents.
        folders.sort();
        folders.dedup();
        for folder in folders.into_iter().filter(|folder| *folder != Path::new("/")) {
            out.entry(&folder.to_string_lossy(), FOLDER | 0o755, &[])?;
        }
        for (path, content) in &self.files {
            let mode = FILE | content.mode;
            match &content.bytes {
                Bytes::Here(bytes) => out.entry(path, mode, bytes)?,
                Bytes::In(file) => {
                    out.entry(path, mode, &fs::read(file).with_context(|| file.display().to_string())?)?;
                }
            }
        }
        out.entry("TRAILER!!!", 0, &[])?;
        out.out.flush()?;
        Ok(())
    }
}

struct Archive<W> {
    out: W,
    entries: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        self.entries += 1;
        let len = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let name_len = name.len() as u32 + 1;
        // inode, mode, user, group, links, time, length, device twice, the device it is twice, name, checksum
        let fields = [self.entries, mode, 0, 0, links, 0, len, 0, 0, 0, 0, name_len, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend(name.as_bytes());
        header.push(0);
        self.put(&header)?;
        self.put(bytes)
    }

    /// Pads to a multiple of four.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        let padding = self.written.next_multiple_of(4) - self.written;
        self.written += padding;
        self.out.write_all(&[0; 4][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_begins_at_a_multiple_of_four() {
        let mut archive = Archive { out: Vec::new(), entries: 0, written: 0 };
        archive.entry("/a/bc", FILE | 0o644, b"hello").unwrap();
        archive.entry("TRAILER!!!", 0, &[]).unwrap();
        let bytes = archive.out;
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[110..115], b"a/bc\0");
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
