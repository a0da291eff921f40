//! Reads state of version 1: a database of `redb`'s with three values in one table. It is read once, and then stored in
//! [files](super::files).
//!
//! `redb` repairs a database that it opens, and panics at some kinds of damage. So it opens a copy in memory; its panics
//! are caught; and it is made to check every checksum, as after a crash. A database that it can repair only by going back
//! to an earlier transaction is refused: the state would be an older one, and nothing would show that.

use std::fmt::Display;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::{Result, anyhow, bail};
use devlink::Kept;
use redb::{Builder, ReadableDatabase, StorageBackend, TableDefinition, TableError};
use rustix::fs::OFlags;

use super::files::{InUse, REMEDY};
use super::stored::Stored;

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("card");
const VERSION: &str = "version";
const CONFIG: &str = "config";
const AGREED: &str = "agreed";
/// The version of the state.
const OURS: u32 = 1;

/// The most bytes of a database, on disk and while it is read: a damaged header can ask for any number.
const MOST: u64 = 256 << 20;

/// The content of a database.
pub struct Read {
    /// What is stored, if anything is.
    pub stored: Option<Stored>,
    /// The checksum of its bytes.
    pub checksum: String,
}

/// Reads the database of an earlier version, if there is one, and does not change it.
///
/// # Errors
/// The database cannot be read, a daemon of that version has it open, or it is of another version. The error says what to
/// do.
pub fn read(path: &Path) -> Result<Option<Read>> {
    let name = path.display();
    // Opening a pipe would wait.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            bail!("{name}: {error}; the daemon's user must be able to read and write it")
        }
        opened => opened?,
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => return Err(InUse(name.to_string()).into()),
        Err(TryLockError::Error(error)) => bail!("{name}: {error}"),
        Ok(()) => {}
    }
    let damaged = |error: &dyn Display| anyhow!("{name}: it is no state of a card, or is damaged ({error}); {REMEDY}");
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(damaged(&"it is no regular file"));
    }
    if found.len() == 0 || found.len() > MOST {
        return Err(damaged(&format!("it has {} bytes", found.len())));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
    let checksum = format!("{:016x}", super::frame::checksum(&[&bytes]));
    let stored = quietly(|| parse(bytes)).map_err(|refused| match refused {
        Refused::Damaged(why) => damaged(&why),
        Refused::Other(why) => anyhow!("{name}: {why}; use the program that wrote it, or {REMEDY}"),
    })?;
    Ok(Some(Read { stored, checksum }))
}

/// Why a database cannot be used.
#[derive(Debug)]
enum Refused {
    Damaged(String),
    Other(String),
}

impl<E: Display> From<E> for Refused {
    fn from(error: E) -> Self {
        Self::Damaged(error.to_string())
    }
}

/// Calls a function that may panic, and has nothing printed if it does. It is for the start, when no other thread could
/// panic meanwhile; in tests, which have other threads, one call runs at a time. The lock for that is a static, which
/// belongs to no domain of `lockdep`'s.
fn quietly<T>(run: impl FnOnce() -> Result<T, Refused>) -> Result<T, Refused> {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let done = panic::catch_unwind(AssertUnwindSafe(run));
    panic::set_hook(hook);
    done.unwrap_or_else(|_| Err(Refused::Damaged("its pages do not fit together".to_owned())))
}

fn parse(mut bytes: Vec<u8>) -> Result<Option<Stored>, Refused> {
    let newest = newest_transaction(&bytes).ok_or_else(|| Refused::Damaged("it has no header".to_owned()))?;
    bytes[GOD_BYTE] |= RECOVERY_REQUIRED;
    let memory = Memory(Arc::new(RwLock::new(bytes)));
    let database = Builder::new().create_with_backend(memory.clone())?;
    // The repair has made a transaction after the one from which it took the state.
    let found = newest_transaction(&memory.0.read().unwrap_or_else(PoisonError::into_inner));
    if found.is_none_or(|found| found <= newest) {
        return Err(Refused::Damaged("its newest transaction cannot be read".to_owned()));
    }
    let transaction = database.begin_read()?;
    let foreign = || Refused::Other("it is another program's".to_owned());
    let table = match transaction.open_table(TABLE) {
        Err(TableError::TableDoesNotExist(_)) => return Err(foreign()),
        table => table?,
    };
    let bytes = |name| table.get(name).map(|found| found.map(|value| value.value().to_vec()));
    let version = bytes(VERSION)?.and_then(|bytes| serde_json::from_slice::<u32>(&bytes).ok()).ok_or_else(foreign)?;
    if version != OURS {
        return Err(Refused::Other(format!("it is of version {version}, which a database was never of")));
    }
    let (Some(config), Some(agreed)) = (bytes(CONFIG)?, bytes(AGREED)?) else { return Ok(None) };
    Ok(Some(Stored {
        config: serde_json::from_slice(&config)?,
        agreed: serde_json::from_slice(&agreed)?,
        kept: Kept::default(),
    }))
}

/// The place in the header that has the number of the valid one of its two commit slots, and the flag that the database was
/// not closed in good order: see redb's `docs/design.md`.
const GOD_BYTE: usize = 9;
const RECOVERY_REQUIRED: u8 = 2;
/// The places of the two slots, and in each that of the number of its transaction.
const SLOTS: [usize; 2] = [64, 192];
const TRANSACTION: usize = 104;

/// The number of the newest transaction that a header names, if it is in the valid slot.
fn newest_transaction(bytes: &[u8]) -> Option<u64> {
    let number = |slot: usize| {
        let number = bytes.get(slot + TRANSACTION..slot + TRANSACTION + 8)?;
        Some(u64::from_le_bytes(number.try_into().ok()?))
    };
    let counts = usize::from(bytes.get(GOD_BYTE)? & 1);
    let (primary, other) = (number(SLOTS[counts])?, number(SLOTS[1 - counts])?);
    (primary >= other).then_some(primary)
}

/// A database in memory, which can be looked at while redb has it open. redb calls it without a token, so its lock is
/// none of `lockdep`'s; nothing is taken while it is held.
#[derive(Clone, Debug)]
struct Memory(Arc<RwLock<Vec<u8>>>);

impl Memory {
    fn range(offset: u64, length: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(length)?));
        range.ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = bytes.get(Self::range(offset, out.len())?).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).ok().filter(|_| length <= MOST).ok_or(ErrorKind::FileTooLarge)?;
        self.0.write().unwrap_or_else(PoisonError::into_inner).resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let place = bytes.get_mut(Self::range(offset, data.len())?).ok_or(ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(data);
        Ok(())
    }
}
