//! The files of the state: two equal copies, and a lock file with the number of the last finished write.
//!
//! Each copy, `NAME.state` and `NAME.state-copy`, has two places. Write number N goes into place N mod 2 of the first copy,
//! is flushed, then into that of the second, and is flushed; then it is finished. It overwrites existing bytes: it needs no
//! more room on the disk, and changes nothing of the file but its content. If the state does not fit, or a copy is not
//! whole or does not have its name any more, both are made anew: a new file, flushed, gets the name of the old one.
//!
//! At every moment, whichever process is killed and whenever the power fails, at most one place is half written, and the
//! last finished write has two frames. So damage to one copy loses nothing. If write M is the last that is found, it is the
//! last finished one if one of the copies still has write M-1 in the place of write M+1: write M+1 has never reached that
//! copy. If neither has, there may have been a write M+1, and the start is refused.
//!
//! The lock file holds the number of the last finished write. Two copies that are both older have been put back from
//! elsewhere, and are refused, too.
//!
//! All files are opened relative to the folder's descriptor: by the time of a write its path may be hidden from the process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, fchmod, flock, fstat, fsync, openat, renameat};
use rustix::fs::{statat, unlinkat};
use rustix::io::Errno;

use super::super::folders::{self, OURS_ALONE};
use super::frame::{Frame, LINE, VERSION, checksum};

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
    /// Both copies and the size of each of their places, if they hold the last write.
    whole: Option<([File; 2], u64)>,
    /// The copies as they were read, until they are mended.
    found: Vec<Copy>,
}

/// Another daemon has the files open.
#[derive(Debug, thiserror::Error)]
#[error("{0}: another daemon keeps its state there; end it with `esw down`, or give `state_dir`")]
pub struct InUse(pub String);

/// One of the two copies, as it was found.
struct Copy {
    name: String,
    /// `None` if there is no such file.
    file: Option<File>,
    /// The content of its places; `None` for a damaged one.
    places: [Option<Frame>; 2],
}

/// The least size of a place in bytes, enough for some dozens of VFs and SFs. It is a multiple of the block size of disks.
const ROOM: u64 = 16 << 10;

/// The most bytes of a place; no card's state is larger.
const MOST_ROOM: u64 = 1 << 30;

impl Files {
    /// Opens and locks a card's files in a folder, and changes nothing else. `fresh`: a lock file that cannot be used is
    /// moved aside.
    ///
    /// # Errors
    /// [`InUse`]: another daemon has locked them; or the system refuses.
    pub fn open(folder: &Path, card: &str, fresh: bool) -> Result<Self> {
        let path = folder.to_owned();
        let folder = folders::open(&path)?;
        let name = format!("{card}.lock");
        let mut lock = lock_file(&folder, &name);
        if lock.is_err() && fresh {
            move_aside(&folder, card, &name)?;
            lock = lock_file(&folder, &name);
        }
        let lock = lock.with_context(|| path.join(&name).display().to_string())?;
        let mut files = Self { folder, path, card: card.to_owned(), lock, sequence: 0, whole: None, found: Vec::new() };
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

    /// The path that a database of an earlier version of this program has.
    pub fn database(&self) -> PathBuf {
        self.path.join(format!("{}.redb", self.card))
    }

    /// Whether both copies hold the last write.
    pub fn is_whole(&self) -> bool {
        self.whole.is_some()
    }

    fn name(&self) -> String {
        format!("{}.state", self.card)
    }

    fn names(&self) -> [String; 2] {
        [self.name(), format!("{}.state-copy", self.card)]
    }

    fn shown(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// Reads the last write, if there was any, from whichever copy has it, and changes nothing. A caller that can use it
    /// [mends](Self::mend) the copies then.
    ///
    /// # Errors
    /// The copies do not show which write was the last, or they are of a newer version. The error says what to do.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let mut copies = Vec::new();
        for name in self.names() {
            let copy = Copy::read(&self.folder, &name).with_context(|| self.shown(&name))?;
            copies.push(copy);
        }
        let frames = || copies.iter().flat_map(|copy| copy.places.iter().flatten());
        if let Some(newer) = frames().find(|frame| frame.version != VERSION) {
            bail!(
                "{}: it is of version {}, and this program reads version {VERSION}; use the program that wrote it, or \
                 {REMEDY}",
                self.state().display(),
                newer.version
            );
        }
        let Some(last) = frames().max_by_key(|frame| frame.sequence).cloned() else {
            if copies.iter().any(|copy| copy.file.is_some()) {
                bail!("{}: it is no state of a card, or is damaged, as is its copy; {REMEDY}", self.state().display());
            }
            if self.sequence > 0 {
                let file = self.shown(&self.name());
                tracing::warn!(file, "state is not there any more; the card begins with the configuration");
            }
            return Ok(None);
        };
        let next = place(last.sequence ^ 1);
        let has_not_seen_next = |copy: &Copy| {
            let before = copy.places[next].as_ref().map(|frame| frame.sequence);
            before.is_some() && before == last.sequence.checked_sub(1)
        };
        if !copies.iter().any(has_not_seen_next) {
            bail!(
                "{}: it is damaged, as is its copy, where what was agreed last may be; {REMEDY}",
                self.state().display()
            );
        }
        let done = self.last_done();
        if last.sequence < done {
            bail!(
                "{}: it is older than what was agreed last (write {} of {done}), as if put back from elsewhere; to begin \
                 with it all the same remove {}, or start with --fresh, which moves it aside and begins with the \
                 configuration",
                self.state().display(),
                last.sequence,
                self.shown(&format!("{}.lock", self.card)),
            );
        }
        self.sequence = last.sequence;
        self.found = copies;
        Ok(Some(last.body))
    }

    /// Restores in each copy what it has lost, or what was not written to it before a daemon was killed, from the other. A
    /// loss is logged; a copy of which nothing is left is moved aside.
    ///
    /// # Errors
    /// A copy cannot be restored: there is only one until the next [`write`](Self::write).
    pub fn mend(&mut self) -> Result<()> {
        let found = std::mem::take(&mut self.found);
        let frames = || found.iter().flat_map(|copy| copy.places.iter().flatten());
        let of = |sequence| frames().find(|frame| Some(frame.sequence) == sequence).cloned();
        let (Some(last), Some(before)) = (of(Some(self.sequence)), of(self.sequence.checked_sub(1))) else {
            return Ok(());
        };
        let mut files = Vec::new();
        for copy in found {
            if copy.places.iter().any(Option::is_none) {
                let lost = copy.places.iter().all(Option::is_none) && copy.file.is_some();
                let aside = if lost { Some(self.move_aside(&copy.name)?.display().to_string()) } else { None };
                let file = self.shown(&copy.name);
                tracing::warn!(
                    file,
                    aside,
                    "state is damaged here, or its last write was cut short; its other copy is whole"
                );
            }
            // A copy with places of another size is older, and is made anew.
            let fits = copy.places.iter().flatten().any(|frame| frame.room == last.room) && before.room == last.room;
            let Some(file) = copy.file.filter(|_| fits) else { continue };
            for frame in [&last, &before] {
                let is_there = |there: &Frame| there.sequence == frame.sequence;
                if !copy.places[place(frame.sequence)].as_ref().is_some_and(is_there) {
                    put(&file, frame).with_context(|| self.shown(&copy.name))?;
                }
            }
            files.push(file);
        }
        self.whole = <[File; 2]>::try_from(files).ok().map(|files| (files, last.room));
        Ok(())
    }

    /// Writes both copies. When this returns they are on the disk.
    ///
    /// # Errors
    /// They cannot be written. Each copy then has the old state or the new one; the next write makes them whole.
    pub fn write(&mut self, body: Vec<u8>) -> Result<()> {
        self.sequence = self.sequence.checked_add(1).context("it has been written as often as it can be")?;
        let length = (LINE + body.len()) as u64;
        match self.whole.take() {
            Some((files, room)) if length <= room && self.are_ours(&files) => {
                let frame = Frame::new(room, self.sequence, body);
                self.write_into(&files, &frame)?;
                self.whole = Some((files, room));
            }
            before => {
                let room = (2 * length).next_power_of_two().clamp(ROOM, MOST_ROOM);
                if length > room {
                    self.sequence -= 1;
                    self.whole = before;
                    bail!("{}: it has grown to {length} bytes; there is room for {MOST_ROOM}", self.state().display());
                }
                let frame = Frame::new(room, self.sequence, body);
                let unfinished = self.names().map(|name| format!("{name}.new"));
                match self.make_all(&unfinished, &frame) {
                    Ok(files) => self.whole = Some((self.give_names(files, &unfinished)?, room)),
                    Err(error) => {
                        // On a full disk they take room that the next attempt needs.
                        for name in &unfinished {
                            let _ = unlinkat(&self.folder, name, AtFlags::empty());
                        }
                        // The old files are unchanged, and no remaining file has this number.
                        self.whole = before.filter(|(files, _)| self.are_ours(files));
                        self.sequence -= 1;
                        return Err(error);
                    }
                }
            }
        }
        // Not flushed: a number that is too low refuses no state.
        let line = done_line(self.sequence);
        let _ = self.lock.write_all_at(line.as_bytes(), 0).and_then(|()| self.lock.set_len(line.len() as u64));
        Ok(())
    }

    /// Whether open files are still those with the names of the copies.
    fn are_ours(&self, files: &[File; 2]) -> bool {
        files.iter().zip(self.names()).all(|(file, name)| {
            let found = (fstat(file), statat(&self.folder, &*name, AtFlags::SYMLINK_NOFOLLOW));
            matches!(found, (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
        })
    }

    /// Writes a frame into its place in both copies, into the second after it is on the disk in the first.
    fn write_into(&self, files: &[File; 2], frame: &Frame) -> Result<()> {
        for (file, name) in files.iter().zip(self.names()) {
            put(file, frame).with_context(|| self.shown(&name))?;
        }
        Ok(())
    }

    fn make_all(&self, names: &[String; 2], frame: &Frame) -> Result<[File; 2]> {
        let [first, second] = names.each_ref().map(|name| self.make(name, frame).with_context(|| self.shown(name)));
        Ok([first?, second?])
    }

    /// Makes a file with a frame in its place, and in the other place the same state as the write before, which shows that
    /// the file has no later one.
    fn make(&self, name: &str, frame: &Frame) -> io::Result<File> {
        match unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.folder, name, flags, OURS_ALONE)?);
        fchmod(&file, OURS_ALONE)?;
        let room = usize::try_from(frame.room).map_err(io::Error::other)?;
        let mut bytes = vec![0; 2 * room];
        let before = Frame { sequence: frame.sequence - 1, ..frame.clone() };
        for frame in [frame, &before] {
            let (at, frame) = (place(frame.sequence) * room, frame.bytes());
            bytes[at..at + frame.len()].copy_from_slice(&frame);
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        Ok(file)
    }

    /// Gives new files the names of the copies. At every moment each name has the old file or the new one, whole.
    fn give_names(&self, files: [File; 2], unfinished: &[String; 2]) -> Result<[File; 2]> {
        for (unfinished, name) in unfinished.iter().zip(self.names()) {
            renameat(&self.folder, unfinished, &self.folder, &*name).with_context(|| self.shown(&name))?;
        }
        fsync(&self.folder).with_context(|| self.path.display().to_string())?;
        Ok(files)
    }

    /// Moves aside every file of the card's state, of this version or an earlier one.
    ///
    /// # Errors
    /// The system refuses.
    pub fn move_all_aside(&mut self) -> Result<Vec<PathBuf>> {
        let database = format!("{}.redb", self.card);
        let mut moved = Vec::new();
        for name in self.names().into_iter().chain([database]) {
            match statat(&self.folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error).with_context(|| self.shown(&name)),
                Ok(_) => moved.push(self.move_aside(&name)?),
            }
        }
        self.whole = None;
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

    /// The number of the last finished write in the lock file; 0 if there is none.
    fn last_done(&self) -> u64 {
        let mut line = [0; 64];
        let length = self.lock.read_at(&mut line, 0).unwrap_or(0);
        let line = String::from_utf8_lossy(&line[..length]).into_owned();
        let number = line.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok());
        // A damaged number is ignored.
        number.filter(|number| done_line(*number) == line).unwrap_or(0)
    }
}

/// The line in the lock file with the number of the last finished write.
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

impl Copy {
    /// Reads one of the copies.
    ///
    /// # Errors
    /// The file may not be read, or the system has no memory or descriptors. A file that cannot be state is damaged, which
    /// is no error.
    fn read(folder: &OwnedFd, name: &str) -> io::Result<Self> {
        let mut copy = Self { name: name.to_owned(), file: None, places: [None, None] };
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match openat(folder, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(copy),
            // A symbolic link, a folder, a socket.
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?
            }
            Err(Errno::ACCESS | Errno::PERM) => {
                return Err(io::Error::other("permission denied; the daemon's user must be able to read and write it"));
            }
            opened => opened?,
        };
        let file = copy.file.insert(File::from(file));
        if FileType::from_raw_mode(fstat(&*file)?.st_mode) != FileType::RegularFile {
            return Ok(copy);
        }
        let first = read_place(file, 0, None);
        // The frame in the first place has the size of a place, and so has that in the second.
        let rooms = || std::iter::successors(Some(ROOM), |room| Some(room * 2)).take_while(|room| *room <= MOST_ROOM);
        let second = match &first {
            Some(frame) => read_place(file, frame.room, Some(frame.room)),
            None => rooms().find_map(|room| read_place(file, room, Some(room))),
        };
        let of_place = |frame: Option<Frame>, at| frame.filter(|frame| place(frame.sequence) == at);
        copy.places = [of_place(first, 0), of_place(second, 1)];
        Ok(copy)
    }
}

/// Which of the two places of a copy a write goes to.
fn place(sequence: u64) -> usize {
    usize::from(sequence % 2 == 1)
}

/// Writes a frame into its place and flushes it.
fn put(file: &File, frame: &Frame) -> io::Result<()> {
    file.write_all_at(&frame.bytes(), place(frame.sequence) as u64 * frame.room)?;
    file.sync_data()
}

/// Reads the frame at a byte of a file; `None` if there is none, or if it is for places of another size than `room`.
fn read_place(file: &File, at: u64, room: Option<u64>) -> Option<Frame> {
    let mut bytes = vec![0; LINE];
    file.read_exact_at(&mut bytes, at).ok()?;
    let length = Frame::length(&bytes)?;
    // A damaged line can have any length.
    if length > MOST_ROOM || at + length > file.metadata().ok()?.len() {
        return None;
    }
    bytes.resize(usize::try_from(length).ok()?, 0);
    file.read_exact_at(&mut bytes, at).ok()?;
    Frame::read(&bytes).filter(|frame| room.is_none_or(|room| frame.room == room) && length <= frame.room)
}

/// Gives a file of a card another name, under which no daemon looks for state; the name.
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
    bail!("too many files were moved aside")
}
