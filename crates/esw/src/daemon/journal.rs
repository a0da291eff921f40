//! What was agreed, on disk: one database for each card.
//!
//! A command's success is answered after what it led to is on disk. So whatever happens to the daemon, the
//! next one finds what everybody was told. What is written is the whole of it, in one transaction, and only if
//! it differs: commands that look at the card cost nothing.
//!
//! Each transaction is flushed (`Durability::Immediate`): commands to a card are rare and take milliseconds
//! themselves, and a machine that loses power has told nobody of a success that it forgets.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use eswitch::{Agreed, CardConfig};
use redb::{Database, Durability, ReadableDatabase, TableDefinition, TableError};

use super::folders;

/// What there is under which name: everything is JSON.
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("card");
const VERSION: &str = "version";
const CONFIG: &str = "config";
const AGREED: &str = "agreed";
/// How what is stored is to be read.
const OURS: u32 = 1;

/// A card's database.
pub struct Journal {
    database: Database,
    path: PathBuf,
    /// What was stored last; also what puts those who store in order.
    last: Mutex<Option<Stored>>,
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The configuration under which it was agreed.
    pub config: CardConfig,
    /// What was agreed.
    pub agreed: Agreed,
}

impl Journal {
    /// Opens a card's database, or makes one. `fresh`: nothing of an old one counts; one that cannot be read is
    /// moved aside.
    ///
    /// # Errors
    /// It cannot be read, or is of a newer version: nothing is changed, and the error says what to do.
    pub fn open(folder: &Path, card: &str, fresh: bool) -> Result<Self> {
        folders::make(folder).with_context(|| format!("making {} to keep state in", folder.display()))?;
        let path = folder.join(format!("{card}.redb"));
        let opened = match path.try_exists().with_context(|| path.display().to_string())? {
            false => create(&path).map(|database| (database, None)),
            true => open(&path),
        };
        let (database, last) = match opened {
            Err(error) if fresh && error.downcast_ref::<InUse>().is_none() => {
                let aside = move_aside(&path)?;
                tracing::warn!(aside = %aside.display(), "state that cannot be read was moved aside: {error:#}");
                (create(&path)?, None)
            }
            opened => opened?,
        };
        let journal = Self { database, path, last: Mutex::new(last) };
        if fresh {
            journal.forget()?;
        }
        Ok(journal)
    }

    /// The database's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was stored last.
    pub fn last(&self) -> Option<Stored> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stores what is agreed, if it differs from what is stored; whether it did. What is agreed is asked for
    /// when it is our turn: who asks later stores what is later.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store(&self, config: &CardConfig, agreed: impl FnOnce() -> Agreed) -> Result<bool> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stored { config: config.clone(), agreed: agreed() };
        if last.as_ref() == Some(&now) {
            return Ok(false);
        }
        self.write(Some(&now)).with_context(|| format!("storing what was agreed in {}", self.path.display()))?;
        *last = Some(now);
        Ok(true)
    }

    /// Forgets what was agreed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget(&self) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some() {
            self.write(None).with_context(|| format!("forgetting what was agreed in {}", self.path.display()))?;
            *last = None;
        }
        Ok(())
    }

    fn write(&self, stored: Option<&Stored>) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            match stored {
                None => {
                    table.remove(CONFIG)?;
                    table.remove(AGREED)?;
                }
                Some(Stored { config, agreed }) => {
                    table.insert(CONFIG, &serde_json::to_vec(config)?[..])?;
                    table.insert(AGREED, &serde_json::to_vec(agreed)?[..])?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Another daemon has it open.
#[derive(Debug, thiserror::Error)]
#[error("{0}: another daemon keeps its state there; end it with `esw down`, or give `state_dir`")]
pub struct InUse(String);

/// What to do about a file that cannot be read.
const REMEDY: &str = "move it away to keep it, or start with --fresh, which moves it aside and begins with the \
                      configuration";

/// Makes a database. It gets its name when it is whole: a daemon that is killed here leaves none.
fn create(path: &Path) -> Result<Database> {
    let unfinished = path.with_extension("new");
    let made = || -> Result<Database> {
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        drop(folders::open_private(&unfinished)?);
        let database = Database::create(&unfinished)?;
        let transaction = database.begin_write()?;
        transaction.open_table(TABLE)?.insert(VERSION, &serde_json::to_vec(&OURS)?[..])?;
        transaction.commit()?;
        fs::rename(&unfinished, path)?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(database)
    };
    made().with_context(|| format!("making {} to keep state in", path.display()))
}

fn open(path: &Path) -> Result<(Database, Option<Stored>)> {
    let name = path.display().to_string();
    // One that an earlier version made may be open to others, who could hold a lock on it.
    drop(
        folders::open_private(path)
            .with_context(|| format!("{name}: it is to be read and written by who runs the daemon"))?,
    );
    let database = match Database::open(path) {
        Ok(database) => database,
        Err(redb::DatabaseError::DatabaseAlreadyOpen) => return Err(InUse(name).into()),
        Err(redb::DatabaseError::Storage(redb::StorageError::Io(error)))
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            return Err(anyhow!("{name}: {error}; it is to be read and written by who runs the daemon"));
        }
        Err(error) => bail!("{name} is no state of a card, or is damaged ({error}); {REMEDY}"),
    };
    let stored = read(&database).with_context(|| name.clone())?;
    Ok((database, stored))
}

fn read(database: &Database) -> Result<Option<Stored>> {
    let damaged = |error: &dyn std::fmt::Display| anyhow!("it is damaged ({error}); {REMEDY}");
    let transaction = database.begin_read().map_err(|error| damaged(&error))?;
    let table = match transaction.open_table(TABLE) {
        Err(TableError::TableDoesNotExist(_)) => bail!("it is another program's; {REMEDY}"),
        table => table.map_err(|error| damaged(&error))?,
    };
    let bytes = |name| -> Result<Option<Vec<u8>>> {
        let found = table.get(name).map_err(|error| damaged(&error))?;
        Ok(found.map(|value| value.value().to_vec()))
    };
    let version = bytes(VERSION)?.and_then(|bytes| serde_json::from_slice::<u32>(&bytes).ok());
    match version {
        Some(OURS) => {}
        Some(other) => bail!(
            "it is of version {other}, and this program reads version {OURS}; use the program that wrote it, or {REMEDY}"
        ),
        None => bail!("it is another program's; {REMEDY}"),
    }
    let (Some(config), Some(agreed)) = (bytes(CONFIG)?, bytes(AGREED)?) else { return Ok(None) };
    Ok(Some(Stored {
        config: serde_json::from_slice(&config).map_err(|error| damaged(&error))?,
        agreed: serde_json::from_slice(&agreed).map_err(|error| damaged(&error))?,
    }))
}

fn move_aside(path: &Path) -> Result<PathBuf> {
    for n in 1..=u16::MAX {
        let aside = path.with_extension(format!("aside-{n}"));
        if !aside.try_exists()? {
            fs::rename(path, &aside).with_context(|| format!("moving {} aside", path.display()))?;
            return Ok(aside);
        }
    }
    bail!("{}: there are too many that were moved aside", path.display())
}

/// Says whether what was agreed under one configuration can be had under another.
///
/// # Errors
/// What is in the way, and what to do.
pub fn ensure_fits(stored: &CardConfig, now: &CardConfig) -> Result<()> {
    // Where a card begins, and how it tries again, may change from one start to the next.
    let lasting = |config: &CardConfig| CardConfig {
        vfs: 0,
        mode: eswitch::Mode::Legacy,
        modules: Vec::new(),
        retry_ms: 0,
        retry_max_ms: 0,
        ..config.clone()
    };
    let (was, is) = (serde_json::to_value(lasting(stored))?, serde_json::to_value(lasting(now))?);
    let (Some(was), Some(is)) = (was.as_object(), is.as_object()) else { return Ok(()) };
    for (field, value) in is {
        let before = was.get(field).unwrap_or(&serde_json::Value::Null);
        if before != value {
            bail!(
                "its `{field}` is {value} and was {before} when its state was stored; put it back, or start with \
                 --fresh, which begins with the configuration"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_a_card_begins_may_change() {
        let config = CardConfig::default();
        let begins = CardConfig { vfs: 3, mode: eswitch::Mode::Switchdev, ..config.clone() };
        assert!(ensure_fits(&config, &begins).is_ok());
        let error = ensure_fits(&config, &CardConfig { total_vfs: 9, ..config.clone() }).unwrap_err().to_string();
        assert!(error.contains("`total_vfs` is 9 and was 8"), "{error}");
    }
}
