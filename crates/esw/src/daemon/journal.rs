//! The journal: the agreed state of a card on disk, with what the server of its control socket keeps, in [two files](files).
//!
//! The success of a command is answered after its effect is on disk. So whatever happens to the daemon, the next one finds
//! everything that was answered as done. The state is written as a whole, and only if it differs: commands that only look
//! at the card cost nothing. *Collected* after a command is only what that command may have changed, as another command
//! may hold the locks of the rest for seconds.
//!
//! Each write is flushed: commands to a card are rare and take milliseconds themselves, and a machine that loses power
//! must not forget a command that it has answered. A write that fails is the error of the commands that waited for it. The
//! next write, whichever command causes it, writes everything that is missing.

mod database;
mod files;
mod frame;
mod stored;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use devlink::Kept as ServerState;
use eswitch::{Agreed, AgreedPart, CardConfig};
use lockdep::{Locked, Mutex};

use super::folders;
use crate::lock_order::JournalClass;
pub use files::InUse;
use files::{Files, REMEDY};
use stored::Body;
pub use stored::Stored;

/// The agreed state of a card, with its files.
pub struct Journal {
    path: PathBuf,
    /// The number of times that collecting was begun.
    tickets: AtomicU64,
    kept: Mutex<JournalClass, Kept>,
}

/// The agreed state, as far as it is known, and as far as it is on disk.
struct Kept {
    files: Files,
    /// The state that was stored last.
    last: Option<Stored>,
    /// The configuration with the last attempt to store.
    config: Option<CardConfig>,
    /// The agreed state, part by part as it was collected.
    agreed: Option<Agreed>,
    /// The ticket with which each part was collected: modules, multiport, each PF.
    collected: (u64, u64, Vec<u64>),
    /// What the control socket's server keeps, with the ticket with which it was collected.
    server: (u64, ServerState),
}

/// What may have changed.
#[derive(Default)]
pub struct Part {
    /// Of the agreed state.
    pub agreed: AgreedPart,
    /// What the control socket's server keeps; `None` if that has not changed.
    pub server: Option<ServerState>,
}

/// The state of a card as it was found, locked, before anything is changed.
pub struct FoundState {
    files: Files,
    read: Result<Option<Stored>>,
    fresh: bool,
}

impl Journal {
    /// Locks and reads a card's state, and makes its folder. `fresh`: the state will be forgotten, so errors of reading it
    /// are kept for [`open`](Self::open).
    ///
    /// # Errors
    /// The state is in use, cannot be read, or is of a newer version. Nothing is changed, and the error says what to do.
    pub fn found(folder: &Path, card: &str, fresh: bool) -> Result<FoundState> {
        folders::make(folder).with_context(|| format!("making {} to keep state in", folder.display()))?;
        let mut files = Files::open(folder, card, fresh)?;
        let read = match read(&mut files) {
            Err(error) if !fresh || error.downcast_ref::<InUse>().is_some() => return Err(error),
            read => read,
        };
        Ok(FoundState { files, read, fresh })
    }

    /// Opens the state that was found; the journal, and the state that is stored. With `fresh` the state is forgotten now,
    /// and files that could not be read are moved aside.
    ///
    /// # Errors
    /// The state cannot be moved or forgotten.
    pub fn open(found: FoundState) -> Result<(Self, Option<Stored>)> {
        let FoundState { mut files, read, fresh } = found;
        let last = match read {
            Err(error) => {
                let aside = files.move_all_aside()?;
                tracing::warn!(?aside, "state that cannot be read was moved aside: {error:#}");
                None
            }
            Ok(last) => last,
        };
        let server = (0, last.as_ref().map(|last| last.kept.clone()).unwrap_or_default());
        let mut kept = Kept { files, last, config: None, agreed: None, collected: (0, 0, Vec::new()), server };
        if fresh {
            kept.forget()?;
        }
        let last = kept.last.clone();
        Ok((Self { path: kept.files.state(), tickets: AtomicU64::new(0), kept: Mutex::new(kept) }, last))
    }

    /// The path of the first of its files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stores a part of the agreed state, if it differs from what is stored; whether it did. `collect` returns the part; a
    /// caller that stores another part does not wait for it. The first part that is stored must be the whole state.
    ///
    /// When this returns, everything in that part that was agreed before the call is on the disk. A caller that begins to
    /// collect later sees a later state, or the same: so if two collect at once, the part of the later one counts.
    ///
    /// # Errors
    /// The state cannot be written.
    pub fn store<L>(
        &self,
        cx: &mut Locked<'_, L>,
        config: &CardConfig,
        collect: impl FnOnce(&mut Locked<'_, L>) -> Part,
    ) -> Result<bool> {
        // Sequentially consistent with the reads of `collect`, on every thread.
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
    /// The state still cannot be written.
    pub fn catch_up<L>(&self, cx: &mut Locked<'_, L>) -> Result<bool> {
        let mut kept = self.kept.lock_leaf(cx);
        let Some(config) = kept.config.clone() else { return Ok(false) };
        kept.write_if_needed(&config).with_context(|| format!("storing what was agreed in {}", self.path.display()))
    }

    /// Forgets the agreed state.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn forget<L>(&self, cx: &mut Locked<'_, L>) -> Result<()> {
        self.kept.lock_leaf(cx).forget()
    }
}

impl Kept {
    /// Takes a part that was collected, unless a part that was begun later has been taken before.
    fn merge(&mut self, ticket: u64, Part { agreed: part, server }: Part) {
        if let Some(server) = server
            && ticket > self.server.0
        {
            self.server = (ticket, server);
        }
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
        let is_stored = |last: &Stored| last.config == *config && last.agreed == *agreed && last.kept == self.server.1;
        if self.files.is_whole() && self.last.as_ref().is_some_and(is_stored) {
            return Ok(false);
        }
        let now = Stored { config: config.clone(), agreed: agreed.clone(), kept: self.server.1.clone() };
        self.write(Some(now))?;
        Ok(true)
    }

    fn forget(&mut self) -> Result<()> {
        if self.last.is_some() || !self.files.is_whole() {
            let path = self.files.state();
            self.server.1 = ServerState::default();
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

/// Reads the state that was stored last. A database of version 1 is converted into files of this version and moved aside;
/// a copy that is not whole is made again.
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
        // An earlier start has converted the database and ended before it was moved aside.
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

/// Checks that a state that was agreed under one configuration can be restored under another.
///
/// # Errors
/// A field of the configuration has changed; the error names it, and says what to do.
pub fn ensure_fits(stored: &CardConfig, now: &CardConfig) -> Result<()> {
    // The initial state of a card, and its retries, may differ from one start to the next.
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
