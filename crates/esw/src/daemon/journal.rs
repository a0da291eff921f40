//! What was agreed, on disk: [two files](files) for each card.
//!
//! A command's success is answered after what it led to is on disk. So whatever happens to the daemon, the
//! next one finds what everybody was told. What is written is the whole of it, and only if it differs: commands that
//! look at the card cost nothing. What is *collected* after a command is only what that command may have changed, as the
//! rest may be in the hands of another command for seconds.
//!
//! Each write is flushed: commands to a card are rare and take milliseconds themselves, and a machine that loses power
//! has told nobody of a success that it forgets. A write that fails is the error of the commands that waited for it; the
//! next write, for whichever command, writes everything that is missing.

mod database;
mod files;
mod frame;
mod stored;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use eswitch::{Agreed, AgreedPart, CardConfig};
use lockdep::{Locked, Mutex};

use super::folders;
use crate::lock_order::JournalClass;
pub use files::InUse;
use files::{Files, REMEDY};
use stored::Body;
pub use stored::Stored;

/// A card's state.
pub struct Journal {
    path: PathBuf,
    /// Counts those who begin to collect.
    tickets: AtomicU64,
    kept: Mutex<JournalClass, Kept>,
}

/// What is known of what is agreed, and of it what is on disk.
struct Kept {
    files: Files,
    /// What was stored last.
    last: Option<Stored>,
    /// The configuration of who stored last, or could not.
    config: Option<CardConfig>,
    /// What is agreed, part by part as it was collected.
    agreed: Option<Agreed>,
    /// When the collecting of each part began: of modules, of multiport, of each PF.
    collected: (u64, u64, Vec<u64>),
}

/// A card's state as it was found, locked, before anything is changed.
pub struct Found {
    files: Files,
    read: Result<Option<Stored>>,
    fresh: bool,
}

impl Journal {
    /// Locks a card's state and reads it, or makes room for it. `fresh`: nothing of what is there counts.
    ///
    /// # Errors
    /// It is in use, or cannot be read, or is of a newer version: nothing is changed, and the error says what to do.
    pub fn found(folder: &Path, card: &str, fresh: bool) -> Result<Found> {
        folders::make(folder).with_context(|| format!("making {} to keep state in", folder.display()))?;
        let mut files = Files::open(folder, card, fresh)?;
        let read = match read(&mut files) {
            Err(error) if !fresh || error.downcast_ref::<InUse>().is_some() => return Err(error),
            read => read,
        };
        Ok(Found { files, read, fresh })
    }

    /// Goes on with the state that was found. If none of it is to count, it is forgotten now; what could not be read is
    /// moved aside.
    ///
    /// # Errors
    /// It cannot be moved or forgotten.
    pub fn open(found: Found) -> Result<(Self, Option<Stored>)> {
        let Found { mut files, read, fresh } = found;
        let last = match read {
            Err(error) => {
                let aside = files.move_all_aside()?;
                tracing::warn!(?aside, "state that cannot be read was moved aside: {error:#}");
                None
            }
            Ok(last) => last,
        };
        let mut kept = Kept { files, last, config: None, agreed: None, collected: (0, 0, Vec::new()) };
        if fresh {
            kept.forget()?;
        }
        let last = kept.last.clone();
        Ok((Self { path: kept.files.state(), tickets: AtomicU64::new(0), kept: Mutex::new(kept) }, last))
    }

    /// The first of its files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stores a part of what is agreed, if it differs from what is stored; whether it did. The part is collected here, and
    /// nobody who stores another waits for that. The first part that is stored is all of it.
    ///
    /// When this returns, everything that was agreed before the call and is of that part is on the disk. Who began to
    /// collect later has seen what is later, or the same: so of two who collect at once, what the later found counts.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn store<L>(
        &self,
        cx: &mut Locked<'_, L>,
        config: &CardConfig,
        collect: impl FnOnce(&mut Locked<'_, L>) -> AgreedPart,
    ) -> Result<bool> {
        // In one order with the looking that comes after it, whoever does both.
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        let part = collect(cx);
        let mut kept = self.kept.lock_leaf(cx);
        kept.merge(ticket, part);
        kept.config = Some(config.clone());
        kept.write_if_needed(config).with_context(|| format!("storing what was agreed in {}", self.path.display()))
    }

    /// Stores what could not be stored before, if there is anything; whether there was.
    ///
    /// # Errors
    /// It still cannot be written.
    pub fn catch_up<L>(&self, cx: &mut Locked<'_, L>) -> Result<bool> {
        let mut kept = self.kept.lock_leaf(cx);
        let Some(config) = kept.config.clone() else { return Ok(false) };
        kept.write_if_needed(&config).with_context(|| format!("storing what was agreed in {}", self.path.display()))
    }

    /// Forgets what was agreed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget<L>(&self, cx: &mut Locked<'_, L>) -> Result<()> {
        self.kept.lock_leaf(cx).forget()
    }
}

impl Kept {
    /// Takes what was collected, unless who began to collect later was here already.
    fn merge(&mut self, ticket: u64, part: AgreedPart) {
        let (modules_at, multiport_at, pfs_at) = &mut self.collected;
        let Some(agreed) = &mut self.agreed else {
            if let AgreedPart { modules: Some((core, modules)), esw_multiport: Some(esw_multiport), pfs } = part {
                self.collected = (ticket, ticket, vec![ticket; pfs.len()]);
                self.agreed = Some(Agreed { core, modules, esw_multiport, pfs });
            }
            return;
        };
        if let Some((core, modules)) = part.modules
            && ticket > *modules_at
        {
            (*modules_at, agreed.core, agreed.modules) = (ticket, core, modules);
        }
        if let Some(esw_multiport) = part.esw_multiport
            && ticket > *multiport_at
        {
            (*multiport_at, agreed.esw_multiport) = (ticket, esw_multiport);
        }
        for pf in part.pfs {
            let mut known = agreed.pfs.iter_mut().zip(&mut *pfs_at);
            if let Some((is, at)) = known.find(|(is, _)| is.address == pf.address)
                && ticket > *at
            {
                (*at, *is) = (ticket, pf);
            }
        }
    }

    fn write_if_needed(&mut self, config: &CardConfig) -> Result<bool> {
        let Some(agreed) = &self.agreed else { bail!("nothing is known of the card yet") };
        let is_stored = |last: &Stored| last.config == *config && last.agreed == *agreed;
        if self.files.is_whole() && self.last.as_ref().is_some_and(is_stored) {
            return Ok(false);
        }
        let now = Stored { config: config.clone(), agreed: agreed.clone() };
        self.write(Some(now))?;
        Ok(true)
    }

    fn forget(&mut self) -> Result<()> {
        if self.last.is_some() || !self.files.is_whole() {
            let path = self.files.state();
            self.write(None).with_context(|| format!("forgetting what was agreed in {}", path.display()))?;
        }
        Ok(())
    }

    fn write(&mut self, stored: Option<Stored>) -> Result<()> {
        let body = Body { stored, read_from: None };
        self.files.write(serde_json::to_vec(&body)?)?;
        self.last = body.stored;
        Ok(())
    }
}

/// Reads what was stored last. A database of version 1 is made into files of this version and moved aside; copies that
/// are not both whole are made again.
fn read(files: &mut Files) -> Result<Option<Stored>> {
    let body = files.read()?.map(|body| parse(files, &body)).transpose()?;
    let database = database::read(&files.database())?;
    let (stored, read_from) = match (body, database) {
        (None, None) => return Ok(None),
        (Some(body), None) => (body.stored, None),
        (None, Some(database)) => {
            let body = Body { stored: database.stored, read_from: Some(database.checksum) };
            files.write(serde_json::to_vec(&body)?).context("converting the state of an earlier version")?;
            (body.stored, body.read_from)
        }
        // The start in which it was read ended before it was moved aside.
        (Some(body), Some(database)) if body.read_from.as_ref() == Some(&database.checksum) => {
            (body.stored, body.read_from)
        }
        (Some(_), Some(_)) => bail!(
            "{} and {}: there is state of this version and of an earlier one, which both may be what was agreed last; \
             move one of them away, or start with --fresh, which moves both aside and begins with the configuration",
            files.state().display(),
            files.database().display()
        ),
    };
    if read_from.is_some() {
        let aside = files.move_database_aside()?;
        tracing::info!(aside = %aside.display(), "state of an earlier version was converted");
    }
    let mended = files.mend().and_then(|()| {
        if read_from.is_some() || !files.is_whole() {
            files.write(serde_json::to_vec(&Body { stored: stored.clone(), read_from: None })?)?;
        }
        Ok(())
    });
    if let Err(error) = mended {
        tracing::warn!("there is only one copy of the state until the next write: {error:#}");
    }
    Ok(stored)
}

fn parse(files: &Files, body: &[u8]) -> Result<Body> {
    let read = serde_json::from_slice(body);
    read.with_context(|| format!("{}: this program does not understand it; {REMEDY}", files.state().display()))
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
