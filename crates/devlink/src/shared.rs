//! The view of a card where those who show it can read it: in memory that the server shares with them.
//!
//! Who reads asks nobody and waits for nobody, whatever the card is doing. What a command has changed is there
//! before the command is answered, so that whoever knows of a change finds it. Only the last view is there, so none
//! has to be taken out before the next one fits.
//!
//! A PF that a command has at the moment is shown as it was before, until that command is about to be answered:
//! no command waits for another PF's, nor does who asks for the memory. What is the whole card's, or of several PFs, is
//! looked at under the locks it takes. A module that is loaded while a command has a PF may be shown there only when
//! the PF is free. So that there is something to show, what was seen is kept from the start on.
//!
//! The memory begins with a header: a number that grows, where the view lies and how long it is, and sums of both
//! the view and the header. A view is JSON. The next one is written where the last does not lie, then the header.
//! Who reads a header or a view with a wrong sum has read while it was written, and reads again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use eswitch::card::Resource;
use eswitch::inspect::PfView;
use eswitch::{CardConfig, Engine, PciAddress, PfFunction, Touched};
use lockdep::{Locked, Mutex, Unlocked, lock_classes};
use rustix::fs::{MemfdFlags, Mode, OFlags, fchmod, memfd_create, open};
use rustix::io::{pread, pwrite};

use crate::view::{self, Profile};

lock_classes! {
    /// What was seen of the card, and the memory it is written to.
    pub leaf SharedClass = "shared view of a card";
}

/// How long a command waits for a PF that another has.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// Not at all.
    No,
    /// Until then.
    Until(Instant),
    /// Until the PF is free.
    Ever,
}

impl Wait {
    /// A command that changed a PF waits for it. A module is loaded and unloaded beside commands to PFs, which may take
    /// long; queues have a PF for a moment only.
    fn of(touched: Touched, pf: PciAddress, end: Instant) -> Self {
        match touched {
            Touched::Everything => Self::Ever,
            Touched::Pf(touched) | Touched::PfAndMultiport(touched) if touched == pf => Self::Ever,
            Touched::Modules => Self::Until(end),
            Touched::Nothing | Touched::Pf(_) | Touched::PfAndMultiport(_) => Self::No,
        }
    }

    fn look(self, cx: &mut Locked<'_, Unlocked>, engine: &Engine, pf: PciAddress) -> Option<eswitch::Result<PfView>> {
        loop {
            match self {
                Self::Ever => return Some(engine.inspect_pf(cx, pf)),
                Self::No => return engine.inspect_pf_if_free(cx, pf),
                Self::Until(end) => match engine.inspect_pf_if_free(cx, pf) {
                    None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                    seen => return seen,
                },
            }
        }
    }
}

/// How long a command that loads or unloads a module waits for PFs that other commands have.
const PATIENCE: Duration = Duration::from_millis(100);

/// A view that is shared.
pub struct SharedView(Mutex<SharedClass, State>);

impl Default for SharedView {
    fn default() -> Self {
        Self(Mutex::new(State::default()))
    }
}

#[derive(Default)]
struct State {
    /// Each PF, if it was bound, and what [`eswitch::Engine::changes`] was before it was looked at.
    pfs: BTreeMap<PciAddress, (u64, Option<PfView>)>,
    modules: Option<(u64, Vec<&'static str>)>,
    rest: Option<Rest>,
    last: Option<view::Card>,
    memory: Option<Memory>,
}

/// What is not a PF's.
struct Rest {
    /// What [`eswitch::Engine::changes`] was before it was looked at.
    seen_at: u64,
    /// The same of its oldest part: that of a PF that a command had.
    complete_at: u64,
    functions: Vec<PfFunction>,
    snapshot: eswitch::inspect::Snapshot,
}

impl Rest {
    /// Takes what PFs have that a command has at the moment from what was seen before, as it is with their views.
    fn keep_of(&mut self, busy: &[PciAddress], before: &Self) {
        let pfs: Vec<_> = self.functions.iter().filter(|pf| busy.contains(&pf.address)).map(|pf| pf.index).collect();
        let (now, before) = (&mut self.snapshot, &before.snapshot);
        let is_busy = |resource: &Resource| pfs.contains(&resource.pf());
        now.resources.retain(|resource| !is_busy(resource));
        now.resources.extend(before.resources.iter().filter(|resource| is_busy(resource)));
        now.resources.sort();
        now.renamed.retain(|(resource, _)| !is_busy(resource));
        now.renamed.extend(before.renamed.iter().filter(|(resource, _)| is_busy(resource)).cloned());
    }
}

/// Puts what was seen into its place, unless something later is there.
fn keep<T>(place: &mut Option<(u64, T)>, at: u64, seen: T) {
    if place.as_ref().is_none_or(|(before, _)| *before <= at) {
        *place = Some((at, seen));
    }
}

/// What a look at the card has found.
struct Looked {
    /// Whether all of the card was looked at.
    all: bool,
    /// Whether the view may differ from the one before.
    changed: bool,
}

impl SharedView {
    /// Sees to it that what has been changed so far of what was `touched` can be read when it returns; of the
    /// rest, what can be looked at without waiting for a command, and what was never looked at before. Whether
    /// that was all of it.
    pub(crate) fn publish(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        profile: &Profile,
        touched: Touched,
    ) -> bool {
        let Looked { all, changed } = self.look(cx, engine, touched);
        if changed {
            self.0.lock_leaf(cx).write(engine.config(), profile);
        }
        all
    }

    fn look(&self, cx: &mut Locked<'_, Unlocked>, engine: &Engine, touched: Touched) -> Looked {
        let end = Instant::now() + PATIENCE;
        let (mut busy, mut all, mut differs) = (Vec::new(), true, touched != Touched::Nothing);
        for pf in engine.addresses() {
            let at = engine.changes();
            let before = self.0.lock_leaf(cx).pfs.get(&pf).map(|(at, _)| *at);
            if before == Some(at) {
                continue;
            }
            let wait = if before.is_none() { Wait::Ever } else { Wait::of(touched, pf, end) };
            let Some(seen) = wait.look(cx, engine, pf) else {
                busy.push(pf);
                continue;
            };
            let (seen, pfs) = (seen.ok(), &mut self.0.lock_leaf(cx).pfs);
            let place = pfs.entry(pf).or_insert((at, None));
            if place.0 <= at {
                differs |= place.1 != seen;
                *place = (at, seen);
            }
        }
        let at = engine.changes();
        let (modules, rest) = {
            let state = self.0.lock_leaf(cx);
            (state.modules.as_ref().map(|(at, _)| *at), state.rest.as_ref().map(|rest| rest.complete_at))
        };
        if modules != Some(at) {
            let seen = match modules {
                Some(_) if !matches!(touched, Touched::Modules | Touched::Everything) => engine.modules_if_free(cx),
                _ => Some(engine.modules(cx)),
            };
            match seen {
                Some(seen) => {
                    let modules = &mut self.0.lock_leaf(cx).modules;
                    differs |= modules.as_ref().is_none_or(|(_, before)| *before != seen);
                    keep(modules, at, seen);
                }
                None => all = false,
            }
        }
        // What is being done at a PF moves the count all the time, and the card is not asked each time.
        if !differs && rest.is_some() {
            return Looked { all: all && busy.is_empty(), changed: false };
        }
        if rest != Some(at) {
            let functions = engine.functions(cx);
            let snapshot = engine.inspect_with(cx, Vec::new(), Vec::new());
            let mut rest = Rest { seen_at: at, complete_at: at, functions, snapshot };
            let mut state = self.0.lock_leaf(cx);
            if let Some(before) = state.rest.as_ref().filter(|_| !busy.is_empty()) {
                rest.keep_of(&busy, before);
                // Whoever can wait for the busy PFs must look again.
                rest.complete_at = before.complete_at;
            }
            // Somebody who looked later may have been here first.
            if state.rest.as_ref().is_none_or(|before| before.seen_at <= at) {
                state.rest = Some(rest);
            }
        }
        Looked { all: all && busy.is_empty(), changed: true }
    }

    /// The memory, to be read by another process. There is a view in it, with every change that was acknowledged; it
    /// waits for no command.
    ///
    /// # Errors
    /// There are no more descriptors, or there is no memory left.
    pub(crate) fn file(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        profile: &Profile,
    ) -> io::Result<OwnedFd> {
        {
            let mut state = self.0.lock_leaf(cx);
            if state.memory.is_none() {
                state.memory = Some(Memory::new()?);
                state.last = None;
            }
        }
        self.look(cx, engine, Touched::Nothing);
        let mut state = self.0.lock_leaf(cx);
        // The view may be older than the memory.
        state.write(engine.config(), profile);
        let memory = state.memory.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if memory.at.is_none() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        memory.to_read()
    }
}

impl State {
    /// Writes what was seen, if it is not what can be read already.
    fn write(&mut self, config: &CardConfig, profile: &Profile) {
        let (Some(memory), Some((_, modules)), Some(rest)) = (&mut self.memory, &self.modules, &self.rest) else {
            return;
        };
        let mut snapshot = rest.snapshot.clone();
        snapshot.pfs = self.pfs.values().filter_map(|(_, pf)| pf.clone()).collect();
        snapshot.modules.clone_from(modules);
        let card = view::build(config, profile, &rest.functions, &snapshot);
        if self.last.as_ref() == Some(&card) {
            return;
        }
        // If there is no memory, what can be read stays what it was, and the next change tries again.
        let written = serde_json::to_vec(&card).map_err(io::Error::other).and_then(|json| memory.write(&json));
        self.last = written.is_ok().then_some(card);
    }
}

/// The header's numbers: which view it is, where it lies, how long it is, its sum, and the sum of these.
const NUMBERS: usize = 5;
const HEADER: usize = 8 * NUMBERS;
/// Where the first view lies.
const FIRST: u64 = 4096;
/// Bytes of a view at most: more is no card's.
const LARGEST: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    number: u64,
    offset: u64,
    length: u64,
    sum: u64,
}

/// The sum of FNV-1a, of 64 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let numbers = [self.number, self.offset, self.length, self.sum];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let own = sum(&bytes[..HEADER - 8]);
        bytes[HEADER - 8..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// `None`: it was read while it was written.
    fn of(bytes: [u8; HEADER]) -> Option<Self> {
        let number = |n: usize| bytes[8 * n..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let found = Self { number: number(0), offset: number(1), length: number(2), sum: number(3) };
        (found.bytes() == bytes && found.length <= LARGEST).then_some(found)
    }
}

/// The memory, as who writes has it.
struct Memory {
    file: OwnedFd,
    at: Option<Header>,
}

impl Memory {
    fn new() -> io::Result<Self> {
        let file = memfd_create("eswitch-view", MemfdFlags::CLOEXEC)?;
        // Whoever gets a descriptor to read from could open it again to write, but for this.
        fchmod(&file, Mode::RUSR)?;
        Ok(Self { file, at: None })
    }

    fn to_read(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn write(&mut self, json: &[u8]) -> io::Result<()> {
        let length = json.len() as u64;
        let offset = match self.at {
            Some(at) if FIRST + length > at.offset => (at.offset + at.length).next_multiple_of(FIRST),
            _ => FIRST,
        };
        let number = self.at.map_or(1, |at| at.number + 1);
        let header = Header { number, offset, length, sum: sum(json) };
        write_all(&self.file, json, offset)?;
        write_all(&self.file, &header.bytes(), 0)?;
        self.at = Some(header);
        Ok(())
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| pwrite(file, bytes, at))?;
        bytes = &bytes[written..];
        at += written as u64;
    }
    Ok(())
}

/// The view of a card that a server shares, as who shows it has it.
#[derive(Debug)]
pub struct ViewReader {
    file: OwnedFd,
    number: u64,
}

impl ViewReader {
    /// Reads from a descriptor that [`Client::share`](crate::Client::share) got.
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file, number: 0 }
    }

    /// The view, if it is another than the last time; every change that was acknowledged to anybody before is in it.
    /// It waits for nobody.
    ///
    /// # Errors
    /// What is shared is no view.
    pub fn newer(&mut self) -> io::Result<Option<Arc<view::Card>>> {
        // A server that writes more than this while one view is read is no server.
        const TRIES: usize = 10_000;
        for _ in 0..TRIES {
            let mut bytes = [0; HEADER];
            self.read(&mut bytes, 0)?;
            let Some(header) = Header::of(bytes) else { continue };
            if header.number == self.number {
                return Ok(None);
            }
            let mut json = vec![0; header.length as usize];
            // What it says may be shorter by now, or something else.
            if self.read(&mut json, header.offset).is_err() || sum(&json) != header.sum {
                continue;
            }
            let card = serde_json::from_slice(&json).map_err(io::Error::other)?;
            self.number = header.number;
            return Ok(Some(Arc::new(card)));
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match rustix::io::retry_on_intr(|| pread(&self.file, &mut bytes[done..], at + done as u64))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str) -> Vec<u8> {
        let card = view::Card {
            name: name.to_owned(),
            profile: view::Profile::mlx5(),
            switch_id: view::SwitchId::default(),
            functions: Vec::new(),
            auxiliary: Vec::new(),
            netdevs: Vec::new(),
            rdma: Vec::new(),
            modules: Vec::new(),
        };
        serde_json::to_vec(&card).unwrap()
    }

    #[test]
    fn the_last_view_is_read_however_many_there_were() {
        let mut memory = Memory::new().unwrap();
        let mut reader = ViewReader::new(memory.to_read().unwrap());
        for n in [1usize, 9, 5_000, 2, 70_000, 70_001, 3] {
            memory.write(&view("before")).unwrap();
            memory.write(&view(&"x".repeat(n))).unwrap();
            assert_eq!(reader.newer().unwrap().unwrap().name.len(), n);
            assert!(reader.newer().unwrap().is_none());
        }
    }

    #[test]
    fn who_reads_while_it_is_written_reads_what_was_written() {
        let mut memory = Memory::new().unwrap();
        memory.write(&view("0")).unwrap();
        let mut reader = ViewReader::new(memory.to_read().unwrap());
        let writer = std::thread::spawn(move || {
            for n in 1..=2_000 {
                memory.write(&view(&format!("{n}").repeat(1 + n % 700))).unwrap();
            }
            memory.write(&view("end")).unwrap();
        });
        loop {
            match reader.newer().unwrap() {
                Some(card) if card.name == "end" => break,
                _ => {}
            }
        }
        writer.join().unwrap();
    }

    #[test]
    fn nobody_else_can_write_it() {
        let memory = Memory::new().unwrap();
        let reader = memory.to_read().unwrap();
        assert!(pwrite(&reader, b"x", 0).is_err());
        assert_eq!(rustix::fs::fstat(&reader).unwrap().st_mode & 0o777, 0o400);
    }
}
