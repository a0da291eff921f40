//! Shares the view of a card with other processes, in memory that they can read.
//!
//! A reader sends no request and waits for nothing, whatever the card is doing. A command publishes what it has changed
//! before it is answered, so that a program that knows of a change finds it in the view. The memory holds only the last
//! view, so no old view has to be removed before the next one fits.
//!
//! While a command holds a PF, the view shows that PF as it was before the command. The command publishes its change
//! before it is answered. So no command waits for another PF's command, and neither does a request for the memory.
//! State of the whole card or of several PFs is inspected under its own locks. If a module is loaded while a command
//! holds a PF, that PF may show the module's drivers only when it is released. Inspected state is kept from the start,
//! so that there always is a view to publish.
//!
//! The memory begins with a header: a number that grows, the offset and length of the view, and checksums of the view
//! and of the header. A view is JSON. The next view is written to where the last one is not, and then the header. A
//! reader that finds a wrong checksum has read during a write, and reads again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use eswitch::auxiliary::AuxiliaryName;
use eswitch::card::{MovedInstance, Resource};
use eswitch::inspect::PfView;
use eswitch::{CardConfig, Engine, PciAddress, PfFunction, Touched};
use lockdep::{Locked, Mutex, Unlocked, lock_classes};
use netlink::Errno;
use rustix::fs::{MemfdFlags, Mode, OFlags, fchmod, memfd_create, open};
use rustix::io::{pread, pwrite};

use crate::card::NetworkRef;
use crate::instance::Instance;
use crate::rdma_core::RdmaCore;
use crate::refusal::Refusal;
use crate::view::{self, Appearance, DeviceName};

lock_classes! {
    /// The inspected state of the card, and the memory that its view is written to.
    pub leaf SharedClass = "shared view of a card";
}

/// How long a command waits for a PF that another command holds.
#[derive(Clone, Copy, Debug)]
enum Wait {
    /// It does not wait.
    No,
    /// Until that time.
    Until(Instant),
    /// Until the PF is released.
    Ever,
}

impl Wait {
    /// A command that changed a PF waits for that PF. A module is loaded or unloaded while commands may hold PFs for a
    /// long time, so that command waits for a limited time; work queues hold a PF for a moment only.
    fn of(touched: Touched, pf: PciAddress, end: Instant) -> Self {
        match touched {
            Touched::Everything => Self::Ever,
            Touched::Pf(touched) | Touched::PfAndMultiport(touched) if touched == pf => Self::Ever,
            Touched::Modules => Self::Until(end),
            Touched::Nothing | Touched::Pf(_) | Touched::PfAndMultiport(_) => Self::No,
        }
    }

    fn inspect(
        self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        pf: PciAddress,
    ) -> Option<eswitch::Result<PfView>> {
        loop {
            match self {
                Self::Ever => return Some(engine.inspect_pf(cx, pf)),
                Self::No => return engine.inspect_pf_if_free(cx, pf),
                Self::Until(end) => match engine.inspect_pf_if_free(cx, pf) {
                    None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                    inspected => return inspected,
                },
            }
        }
    }
}

/// How long a command that loads or unloads a module waits for PFs that other commands hold.
const MODULE_WAIT: Duration = Duration::from_millis(100);

/// The view of a card, shared with other processes.
pub struct SharedView(Mutex<SharedClass, State>);

impl Default for SharedView {
    fn default() -> Self {
        Self(Mutex::new(State::default()))
    }
}

#[derive(Default)]
struct State {
    /// Each PF, `None` if it was not bound, with [`eswitch::Engine::changes`] from before it was inspected.
    pfs: BTreeMap<PciAddress, (u64, Option<PfView>)>,
    /// The loaded modules, with the same number.
    modules: Option<(u64, Vec<&'static str>)>,
    rest: Option<Rest>,
    /// What the RDMA core knows of the devices.
    rdma: RdmaCore,
    /// The view in the memory.
    last: Option<view::Card>,
    /// The memory, once it has been requested.
    memory: Option<Memory>,
}

/// The state that is not part of one PF's view.
struct Rest {
    /// [`eswitch::Engine::changes`] from before it was inspected.
    inspected_at: u64,
    /// The same number for its oldest part, which is that of a PF that a command held.
    complete_at: u64,
    functions: Vec<PfFunction>,
    snapshot: eswitch::inspect::Snapshot,
    /// What had been renamed and moved, busy PFs' too.
    netdevs: Moved,
}

/// Which netdevs were renamed, and which are elsewhere; and which instances are.
type Moved = ((Vec<(Resource, String)>, Vec<Resource>), Vec<MovedInstance>);

impl Rest {
    /// Replaces the resources of busy PFs, which commands hold, by those from before, as is done with the views of
    /// these PFs.
    fn keep_busy(&mut self, busy: &[PciAddress], before: &Self) {
        let pfs: Vec<_> = self.functions.iter().filter(|pf| busy.contains(&pf.address)).map(|pf| pf.index).collect();
        let (now, before) = (&mut self.snapshot, &before.snapshot);
        let is_busy = |resource: &Resource| pfs.contains(&resource.pf());
        now.resources.retain(|resource| !is_busy(resource));
        now.resources.extend(before.resources.iter().filter(|resource| is_busy(resource)));
        now.resources.sort();
        now.renamed.retain(|(resource, _)| !is_busy(resource));
        now.renamed.extend(before.renamed.iter().filter(|(resource, _)| is_busy(resource)).cloned());
        now.elsewhere.retain(|resource| !is_busy(resource));
        now.elsewhere.extend(before.elsewhere.iter().filter(|resource| is_busy(resource)));
        now.moved_instances.retain(|moved| !pfs.contains(&moved.pf));
        now.moved_instances.extend(before.moved_instances.iter().filter(|moved| pfs.contains(&moved.pf)));
    }
}

/// Stores inspected state, unless the stored state is newer.
fn store<T>(place: &mut Option<(u64, T)>, at: u64, state: T) {
    if place.as_ref().is_none_or(|(before, _)| *before <= at) {
        *place = Some((at, state));
    }
}

/// The result of inspecting the card.
struct Inspected {
    /// Whether all of the card was inspected.
    all: bool,
    /// Whether the view may differ from the last one.
    changed: bool,
}

impl SharedView {
    /// Publishes the changes up to now: all that concern what was `touched`; of the rest those that can be inspected
    /// without waiting for a command, and what was never inspected before. Returns whether everything was inspected.
    pub(crate) fn publish(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        appearance: Appearance<'_>,
        touched: Touched,
    ) -> bool {
        let Inspected { all, changed } = self.inspect(cx, engine, touched);
        if changed {
            self.0.lock_leaf(cx).write(engine.config(), appearance);
        }
        all
    }

    /// The network namespace of the devlink instance of a device, in the view that was published last, if that is another
    /// one than the card's.
    pub(crate) fn netns_of(&self, cx: &mut Locked<'_, Unlocked>, device: DeviceName) -> Option<u64> {
        self.0.lock_leaf(cx).last.as_ref()?.netns_of(device)
    }

    /// Changes what the RDMA core knows of the devices, and publishes it. Waits for no command. `change` gets the view of the
    /// card without what the RDMA core knows.
    ///
    /// # Errors
    /// Those of `change`. ENODEV: nothing has been published yet.
    pub(crate) fn change_rdma(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        appearance: Appearance<'_>,
        change: impl FnOnce(&mut RdmaCore, &view::Card) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.inspect(cx, engine, Touched::Nothing);
        let mut state = self.0.lock_leaf(cx);
        let card = state.build(engine.config(), appearance).ok_or(Refusal::bare(Errno::NODEV))?;
        let outcome = change(&mut state.rdma, &card);
        state.write(engine.config(), appearance);
        outcome
    }

    /// What the RDMA core knows of the devices.
    pub(crate) fn rdma(&self, cx: &mut Locked<'_, Unlocked>) -> RdmaCore {
        self.0.lock_leaf(cx).rdma.clone()
    }

    /// Takes over what the RDMA core knew of the devices.
    pub(crate) fn restore_rdma(&self, cx: &mut Locked<'_, Unlocked>, rdma: RdmaCore) {
        self.0.lock_leaf(cx).rdma = rdma;
    }

    /// The network namespaces to which RDMA devices were moved.
    pub(crate) fn rdma_abroad(&self, cx: &mut Locked<'_, Unlocked>) -> Vec<NetworkRef> {
        self.0.lock_leaf(cx).rdma.abroad()
    }

    /// Forgets what the RDMA core knows of the devices of functions that have been made anew. The command that has done so
    /// publishes it.
    pub(crate) fn forget_rdma(&self, cx: &mut Locked<'_, Unlocked>, is_gone: impl Fn(DeviceName) -> bool) {
        self.0.lock_leaf(cx).rdma.forget(is_gone);
    }

    /// A view of the card with what the RDMA core knows of its devices.
    pub(crate) fn with_rdma(&self, cx: &mut Locked<'_, Unlocked>, view: Arc<view::Card>) -> Arc<view::Card> {
        let rdma = &mut self.0.lock_leaf(cx).rdma;
        if rdma.is_untouched() {
            return view;
        }
        let mut shown = (*view).clone();
        rdma.show(&mut shown);
        Arc::new(shown)
    }

    /// The devlink instance of a VF or SF, in the view that was published last.
    pub(crate) fn instance(&self, cx: &mut Locked<'_, Unlocked>, config: &CardConfig, device: DeviceName) -> Instance {
        match &self.0.lock_leaf(cx).last {
            Some(view) => Instance::of(view, config, device),
            None => Instance::new(config, device),
        }
    }

    /// The address of the PF of an SF, in the view that was published last. `None`: there is no such SF.
    pub(crate) fn pf_of_sf(&self, cx: &mut Locked<'_, Unlocked>, id: u32) -> Option<PciAddress> {
        let state = self.0.lock_leaf(cx);
        let mut devices = state.last.as_ref()?.auxiliary.iter();
        match devices.find(|device| device.name == AuxiliaryName::Sf { id })?.parent {
            DeviceName::Pci(pf) => Some(pf),
            DeviceName::Auxiliary(_) => None,
        }
    }

    fn inspect(&self, cx: &mut Locked<'_, Unlocked>, engine: &Engine, touched: Touched) -> Inspected {
        let end = Instant::now() + MODULE_WAIT;
        let (mut busy, mut all, mut differs) = (Vec::new(), true, touched != Touched::Nothing);
        for pf in engine.addresses() {
            let at = engine.changes();
            let before = self.0.lock_leaf(cx).pfs.get(&pf).map(|(at, _)| *at);
            if before == Some(at) {
                continue;
            }
            let wait = if before.is_none() { Wait::Ever } else { Wait::of(touched, pf, end) };
            let Some(inspected) = wait.inspect(cx, engine, pf) else {
                busy.push(pf);
                continue;
            };
            let (inspected, pfs) = (inspected.ok(), &mut self.0.lock_leaf(cx).pfs);
            let place = pfs.entry(pf).or_insert((at, None));
            if place.0 <= at {
                differs |= place.1 != inspected;
                *place = (at, inspected);
            }
        }
        let at = engine.changes();
        let (modules, rest) = {
            let state = self.0.lock_leaf(cx);
            (state.modules.as_ref().map(|(at, _)| *at), state.rest.as_ref().map(|rest| rest.complete_at))
        };
        if modules != Some(at) {
            let inspected = match modules {
                Some(_) if !matches!(touched, Touched::Modules | Touched::Everything) => engine.modules_if_free(cx),
                _ => Some(engine.modules(cx)),
            };
            match inspected {
                Some(inspected) => {
                    let modules = &mut self.0.lock_leaf(cx).modules;
                    differs |= modules.as_ref().is_none_or(|(_, before)| *before != inspected);
                    store(modules, at, inspected);
                }
                None => all = false,
            }
        }
        // The view of a PF does not show the netdevs of VFs and SFs.
        let netdevs = (engine.renamed_and_elsewhere(cx), engine.moved_instances(cx));
        differs |= self.0.lock_leaf(cx).rest.as_ref().is_some_and(|rest| rest.netdevs != netdevs);
        // A command that is in progress at a PF changes the count all the time. The rest is not inspected each time.
        if !differs && rest.is_some() {
            return Inspected { all: all && busy.is_empty(), changed: false };
        }
        if rest != Some(at) {
            let functions = engine.functions(cx);
            let snapshot = engine.inspect_with(cx, Vec::new(), Vec::new());
            let mut rest = Rest { inspected_at: at, complete_at: at, functions, snapshot, netdevs };
            let mut state = self.0.lock_leaf(cx);
            if let Some(before) = state.rest.as_ref().filter(|_| !busy.is_empty()) {
                rest.keep_busy(&busy, before);
                // A caller that can wait for the busy PFs must inspect again.
                rest.complete_at = before.complete_at;
            }
            // Another thread that inspected later may have stored its result first.
            if state.rest.as_ref().is_none_or(|before| before.inspected_at <= at) {
                state.rest = Some(rest);
            }
        }
        Inspected { all: all && busy.is_empty(), changed: true }
    }

    /// Returns a descriptor of the memory, for another process to read from. The memory holds a view with every change
    /// that was acknowledged. Waits for no command.
    ///
    /// # Errors
    /// The process has no descriptors left, or the system has no memory left.
    pub(crate) fn file(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        engine: &Engine,
        appearance: Appearance<'_>,
    ) -> io::Result<OwnedFd> {
        {
            let mut state = self.0.lock_leaf(cx);
            if state.memory.is_none() {
                state.memory = Some(Memory::new()?);
                state.last = None;
            }
        }
        self.inspect(cx, engine, Touched::Nothing);
        let mut state = self.0.lock_leaf(cx);
        // The state may have been inspected before there was a memory to write to.
        state.write(engine.config(), appearance);
        let memory = state.memory.as_ref().ok_or(io::ErrorKind::NotFound)?;
        if memory.header.is_none() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        memory.reader()
    }
}

impl State {
    /// A view of the inspected state, without what the RDMA core knows. `None`: nothing has been inspected yet.
    fn build(&self, config: &CardConfig, appearance: Appearance<'_>) -> Option<view::Card> {
        let ((_, modules), rest) = (self.modules.as_ref()?, self.rest.as_ref()?);
        let mut snapshot = rest.snapshot.clone();
        snapshot.pfs = self.pfs.values().filter_map(|(_, pf)| pf.clone()).collect();
        snapshot.modules.clone_from(modules);
        Some(view::build(config, appearance, &rest.functions, &snapshot))
    }

    /// Writes a view of the inspected state, if it differs from the view in the memory.
    fn write(&mut self, config: &CardConfig, appearance: Appearance<'_>) {
        if self.memory.is_none() {
            return;
        }
        let Some(mut card) = self.build(config, appearance) else { return };
        self.rdma.show(&mut card);
        let Some(memory) = &mut self.memory else { return };
        if self.last.as_ref() == Some(&card) {
            return;
        }
        // If the system has no memory left, the last view stays, and the next change tries again.
        let written = serde_json::to_vec(&card).map_err(io::Error::other).and_then(|json| memory.write(&json));
        self.last = written.is_ok().then_some(card);
    }
}

/// The header consists of five numbers: the number of the view, its offset, length and checksum, and a checksum of
/// these.
const NUMBERS: usize = 5;
const HEADER: usize = 8 * NUMBERS;
/// The offset of the first view.
const FIRST: u64 = 4096;
/// The largest view, in bytes. No card has a larger one.
const LARGEST: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    number: u64,
    offset: u64,
    length: u64,
    sum: u64,
}

/// The 64-bit FNV-1a checksum.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Header {
    fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let numbers = [self.number, self.offset, self.length, self.sum];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let own = checksum(&bytes[..HEADER - 8]);
        bytes[HEADER - 8..].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Decodes a header. `None`: it was read while it was written.
    fn decode(bytes: [u8; HEADER]) -> Option<Self> {
        let number = |n: usize| bytes[8 * n..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let found = Self { number: number(0), offset: number(1), length: number(2), sum: number(3) };
        (found.encode() == bytes && found.length <= LARGEST).then_some(found)
    }
}

/// The memory, on the side of the writer.
struct Memory {
    file: OwnedFd,
    /// The header in the memory, once a view was written.
    header: Option<Header>,
}

impl Memory {
    fn new() -> io::Result<Self> {
        let file = memfd_create("eswitch-view", MemfdFlags::CLOEXEC)?;
        // Otherwise a process with a descriptor to read from could open the file again for writing.
        fchmod(&file, Mode::RUSR)?;
        Ok(Self { file, header: None })
    }

    /// A descriptor that can only be read from.
    fn reader(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        Ok(open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    fn write(&mut self, json: &[u8]) -> io::Result<()> {
        let length = json.len() as u64;
        let offset = match self.header {
            Some(at) if FIRST + length > at.offset => (at.offset + at.length).next_multiple_of(FIRST),
            _ => FIRST,
        };
        let number = self.header.map_or(1, |at| at.number + 1);
        let header = Header { number, offset, length, sum: checksum(json) };
        write_all(&self.file, json, offset)?;
        write_all(&self.file, &header.encode(), 0)?;
        self.header = Some(header);
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

/// Reads the view that a server shares.
#[derive(Debug)]
pub struct ViewReader {
    file: OwnedFd,
    number: u64,
}

impl ViewReader {
    /// Reads from the descriptor that the answer to SHARE carries.
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file, number: 0 }
    }

    /// Returns the view if it has changed since the last call. Every change that was acknowledged to any client before
    /// the call is in it. Waits for nothing.
    ///
    /// # Errors
    /// The memory does not hold a view.
    pub fn newer(&mut self) -> io::Result<Option<Arc<view::Card>>> {
        // No server writes more views than this while one is read.
        const TRIES: usize = 10_000;
        for _ in 0..TRIES {
            let mut bytes = [0; HEADER];
            self.read(&mut bytes, 0)?;
            let Some(header) = Header::decode(bytes) else { continue };
            if header.number == self.number {
                return Ok(None);
            }
            let mut json = vec![0; header.length as usize];
            // The header may be outdated by now: the memory may hold another view there.
            if self.read(&mut json, header.offset).is_err() || checksum(&json) != header.sum {
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
            host_peers: Vec::new(),
            rdma: Vec::new(),
            rdma_exclusive: false,
            modules: Vec::new(),
        };
        serde_json::to_vec(&card).unwrap()
    }

    #[test]
    fn the_last_view_is_read_however_many_were_written() {
        let mut memory = Memory::new().unwrap();
        let mut reader = ViewReader::new(memory.reader().unwrap());
        for n in [1usize, 9, 5_000, 2, 70_000, 70_001, 3] {
            memory.write(&view("before")).unwrap();
            memory.write(&view(&"x".repeat(n))).unwrap();
            assert_eq!(reader.newer().unwrap().unwrap().name.len(), n);
            assert!(reader.newer().unwrap().is_none());
        }
    }

    #[test]
    fn a_reader_during_writes_reads_a_whole_view() {
        let mut memory = Memory::new().unwrap();
        memory.write(&view("0")).unwrap();
        let mut reader = ViewReader::new(memory.reader().unwrap());
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
    fn a_reader_cannot_write_the_memory() {
        let memory = Memory::new().unwrap();
        let reader = memory.reader().unwrap();
        assert!(pwrite(&reader, b"x", 0).is_err());
        assert_eq!(rustix::fs::fstat(&reader).unwrap().st_mode & 0o777, 0o400);
    }
}
