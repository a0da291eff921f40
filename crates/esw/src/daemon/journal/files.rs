//! The files that state is kept in: two copies that say the same, and a lock that says which write was answered last.
//!
//! A write makes a new file, flushes it, and gives it the old one's name: first `NAME.state`, then
//! `NAME.state-copy`. It is done when both have their names on the disk. So at every moment, whatever is killed and
//! whenever the power goes, both files are whole, and each holds the write that was done last or one that was begun
//! after it. That is what makes damage to one of them harmless: the other is never older than what anybody was told.
//!
//! The lock holds the number of the last write that was done. Two copies that are both older than that have been put
//! there by somebody, and are refused.
//!
//! Everything is done in a folder that is open: by the time of a write its path may be hidden from us.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, fchmod, flock, fstat, fsync, open, openat, renameat,
};
use rustix::fs::{statat, unlinkat};
use rustix::io::Errno;

use super::frame::{Damage, Frame, LINE, VERSION, checksum};

/// Only who runs the daemon has anything to do with what is here: others could hold up a start by a lock of theirs.
const OURS_ALONE: Mode = Mode::RUSR.union(Mode::WUSR);

/// What to do about a file that cannot be read.
pub const REMEDY: &str = "move it away to keep it, or start with --fresh, which moves it aside and begins with the \
                          configuration";

/// A card's files.
pub struct Files {
    folder: OwnedFd,
    /// The folder's path, for messages.
    path: PathBuf,
    card: String,
    lock: File,
    /// The number of the write that was begun last.
    sequence: u64,
    /// Whether both copies hold what was written last.
    whole: bool,
}

/// Another daemon has them open.
#[derive(Debug, thiserror::Error)]
#[error("{0}: another daemon keeps its state there; end it with `esw down`, or give `state_dir`")]
pub struct InUse(pub String);

/// One of the two copies.
enum Copy {
    Missing,
    Whole(Frame),
    Damaged(Damage),
}

impl Files {
    /// Opens a card's files in a folder and locks them; nothing else is changed. `fresh`: a lock that is none is moved
    /// aside.
    ///
    /// # Errors
    /// [`InUse`]; or the system refuses.
    pub fn open(folder: &Path, card: &str, fresh: bool) -> Result<Self> {
        let path = folder.to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(&path, flags, Mode::empty()).with_context(|| path.display().to_string())?;
        let name = format!("{card}.lock");
        let mut lock = lock_file(&folder, &name);
        if lock.is_err() && fresh {
            move_aside(&folder, card, &name)?;
            lock = lock_file(&folder, &name);
        }
        let lock = lock.with_context(|| path.join(&name).display().to_string())?;
        let mut files = Self { folder, path, card: card.to_owned(), lock, sequence: 0, whole: false };
        match flock(&files.lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(InUse(files.state().display().to_string()).into()),
            locked => locked.with_context(|| files.shown(&name))?,
        }
        files.sequence = files.last_done();
        Ok(files)
    }

    /// The path of the first copy, for messages.
    pub fn state(&self) -> PathBuf {
        self.path.join(self.name())
    }

    /// The path of the database that an earlier version of this program has left, or would have.
    pub fn database(&self) -> PathBuf {
        self.path.join(format!("{}.redb", self.card))
    }

    /// Whether both copies hold what was written last.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    fn name(&self) -> String {
        format!("{}.state", self.card)
    }

    fn name_of_copy(&self) -> String {
        format!("{}.state-copy", self.card)
    }

    fn shown(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// What was written last, if anything was. If one of the copies is damaged or missing it is the other that says
    /// so, which is logged; the damaged one is moved aside, and the copies are made again at the next [`write`](Self::write).
    ///
    /// # Errors
    /// It cannot be told what was written last; or it is of a newer version. Nothing is changed, and the error says
    /// what to do.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let names = [self.name(), self.name_of_copy()];
        let mut copies = Vec::new();
        for name in &names {
            let copy = read_copy(&self.folder, name).with_context(|| self.shown(name))?;
            if let Copy::Whole(frame) = &copy
                && frame.version != VERSION
            {
                bail!(
                    "{}: it is of version {}, and this program reads version {VERSION}; use the program that wrote it, \
                     or {REMEDY}",
                    self.shown(name),
                    frame.version
                );
            }
            copies.push((name.as_str(), copy));
        }
        let of = |copy: &(&str, Copy)| if let Copy::Whole(frame) = &copy.1 { Some(frame.clone()) } else { None };
        let found: Vec<Frame> = copies.iter().filter_map(of).collect();
        let Some(last) = found.iter().max_by_key(|frame| frame.sequence).cloned() else {
            let damaged = |(name, copy): &(&str, Copy)| match copy {
                Copy::Damaged(damage) => Some(format!("{}: {damage}", self.shown(name))),
                _ => None,
            };
            let damaged: Vec<String> = copies.iter().filter_map(damaged).collect();
            if damaged.is_empty() {
                if self.sequence > 0 {
                    let file = self.shown(&names[0]);
                    tracing::warn!(file, "state is not there any more; the card begins with the configuration");
                }
                return Ok(None);
            }
            bail!("it is no state of a card, or is damaged ({}); {REMEDY}", damaged.join("; "));
        };
        let done = self.last_done();
        if last.sequence < done {
            bail!(
                "{}: it is older than what was agreed last (write {} of {done}), as if put back from a copy; to begin \
                 with it all the same remove {}, or start with --fresh, which moves it aside and begins with the \
                 configuration",
                self.shown(&names[0]),
                last.sequence,
                self.shown(&format!("{}.lock", self.card)),
            );
        }
        if found.iter().any(|frame| frame.sequence == last.sequence && *frame != last) {
            bail!("{}: its copy says something else under the same number; {REMEDY}", self.shown(&names[0]));
        }
        self.sequence = last.sequence;
        self.whole = found.len() == names.len() && found.iter().all(|frame| *frame == last);
        for (name, copy) in &copies {
            let aside = match copy {
                Copy::Whole(_) => continue,
                Copy::Missing => None,
                Copy::Damaged(_) => Some(self.move_aside(name)?),
            };
            let why = if let Copy::Damaged(damage) = copy { damage.0 } else { "it is missing" };
            let aside = aside.map(|aside| aside.display().to_string());
            tracing::warn!(file = self.shown(name), why, aside, "state was recovered from its second copy");
        }
        Ok(Some(last.body))
    }

    /// Writes both copies. When it returns they are on the disk.
    ///
    /// # Errors
    /// They cannot be written. What is there then is what was there, or this; the next write makes it whole.
    pub fn write(&mut self, body: Vec<u8>) -> Result<()> {
        self.whole = false;
        self.sequence += 1;
        let bytes = Frame::new(self.sequence, body).bytes();
        for name in [self.name(), self.name_of_copy()] {
            self.replace(&name, &bytes).with_context(|| self.shown(&name))?;
        }
        fsync(&self.folder).with_context(|| self.path.display().to_string())?;
        self.whole = true;
        // Not flushed: one that says less than it could refuses nothing.
        let _ = self.lock.write_all_at(done_line(self.sequence).as_bytes(), 0);
        Ok(())
    }

    /// Makes a file with new content. Under its name there is the old one or the new one, whole, at every moment.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = format!("{name}.new");
        let made = self.make(&unfinished, bytes).and_then(|()| {
            renameat(&self.folder, &unfinished, &self.folder, name)?;
            Ok(())
        });
        if made.is_err() {
            // On a disk that is full it takes room that the next try could use.
            let _ = unlinkat(&self.folder, &unfinished, AtFlags::empty());
        }
        made
    }

    fn make(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        match unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.folder, name, flags, OURS_ALONE)?);
        fchmod(&file, OURS_ALONE)?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    /// Moves aside whatever there is of the card's state, of this version or an earlier one.
    ///
    /// # Errors
    /// The system refuses.
    pub fn move_all_aside(&mut self) -> Result<Vec<PathBuf>> {
        let database = format!("{}.redb", self.card);
        let mut moved = Vec::new();
        for name in [self.name(), self.name_of_copy(), database] {
            match statat(&self.folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error).with_context(|| self.shown(&name)),
                Ok(_) => moved.push(self.move_aside(&name)?),
            }
        }
        self.whole = false;
        Ok(moved)
    }

    /// Moves the database of an earlier version aside.
    ///
    /// # Errors
    /// The system refuses.
    pub fn move_database_aside(&self) -> Result<PathBuf> {
        self.move_aside(&format!("{}.redb", self.card))
    }

    fn move_aside(&self, name: &str) -> Result<PathBuf> {
        let aside = move_aside(&self.folder, &self.card, name).with_context(|| self.shown(name))?;
        Ok(self.path.join(aside))
    }

    /// The number of the last write that was done, 0 if the lock does not say.
    fn last_done(&self) -> u64 {
        let mut line = [0; 64];
        let length = self.lock.read_at(&mut line, 0).unwrap_or(0);
        let line = String::from_utf8_lossy(&line[..length]).into_owned();
        let number = line.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok());
        // One that is damaged says nothing.
        number.filter(|number| done_line(*number) == line).unwrap_or(0)
    }
}

/// What the lock says.
fn done_line(sequence: u64) -> String {
    let line = format!("eswitch-done {sequence:020} ");
    let checksum = checksum(&[line.as_bytes()]);
    format!("{line}{checksum:016x}\n")
}

fn lock_file(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let lock = openat(folder, name, flags, OURS_ALONE)?;
    if FileType::from_raw_mode(fstat(&lock)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is no regular file"));
    }
    fchmod(&lock, OURS_ALONE)?;
    Ok(File::from(lock))
}

/// Reads one of the copies. No more is read than its first line says there is.
fn read_copy(folder: &OwnedFd, name: &str) -> io::Result<Copy> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = match openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Copy::Missing),
        Err(Errno::LOOP) => return Ok(Copy::Damaged(Damage("it is a symbolic link"))),
        Err(Errno::ACCESS | Errno::PERM) => {
            return Err(io::Error::other("permission denied; it is to be read and written by who runs the daemon"));
        }
        opened => File::from(opened?),
    };
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Ok(Copy::Damaged(Damage("it is no regular file")));
    }
    let mut bytes = Vec::new();
    let whole = read_to(&mut file, &mut bytes, LINE as u64).and_then(|()| match Frame::length(&bytes) {
        Ok(length) if u64::try_from(found.st_size) == Ok(length) => read_to(&mut file, &mut bytes, length),
        // Damaged: it is told below in which way.
        _ => Ok(()),
    });
    Ok(match whole.map(|()| Frame::read(&bytes)) {
        Ok(Ok(frame)) => Copy::Whole(frame),
        Ok(Err(damage)) => Copy::Damaged(damage),
        Err(_) => Copy::Damaged(Damage("it cannot be read from its disk")),
    })
}

/// Reads on until there are so many bytes, or no more.
fn read_to(file: &mut File, bytes: &mut Vec<u8>, length: u64) -> io::Result<()> {
    file.take(length - bytes.len() as u64).read_to_end(bytes).map(drop)
}

/// Gives a file of a card another name, under which nobody looks for state; that name.
fn move_aside(folder: &OwnedFd, card: &str, name: &str) -> Result<String> {
    for n in 1..=u16::MAX {
        let aside = format!("{card}.aside-{n}");
        match statat(folder, &*aside, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                renameat(folder, name, folder, &*aside).context("moving it aside")?;
                return Ok(aside);
            }
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
    bail!("there are too many that were moved aside")
}
