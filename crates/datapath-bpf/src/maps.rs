//! The maps of a pipeline: loaded with the object, or found again with the program that is attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::Map as AyaMap;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::Options;
use crate::layout;
use crate::sys::{self, Map, Words};

/// The compiled program (`cargo xtask bpf --write`), aligned as the parser of the file needs it.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../bpf/eswitch.bpf.o"));

const PROGRAM: &str = "eswitch_ingress";

/// What the kernel keeps of a name.
fn short(name: &str) -> &str {
    &name[..name.len().min(15)]
}

/// A number that stands for this build of the program: FNV-1a of the object.
fn build() -> u64 {
    OBJECT.0.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The word of `struct control` with [`build`].
pub(crate) const BUILD: usize = 5;
/// The word that says whether samples are taken.
pub(crate) const SAMPLING: usize = 6;

/// The words of `struct connection_table`.
pub(crate) const CONNECTION_COUNT: usize = 0;
pub(crate) const CONNECTION_LIMIT: usize = 1;

/// Why a pipeline could not be loaded or found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The kernel lets this process load no programs: it needs CAP_BPF and CAP_NET_ADMIN, and bpf(2).
    #[error("the kernel refuses eBPF programs: {0}")]
    NotAllowed(#[source] io::Error),
    /// The kernel has not all that the program needs: CONFIG_BPF_SYSCALL, and Linux 6.1 or later.
    #[error("the kernel does not take the program: {0}")]
    Kernel(String),
    /// The program that was found is of another build, or its map is.
    #[error("the {0} is of another build")]
    OtherBuild(&'static str),
    /// A map or the program is not there.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// Something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<EbpfError> for LoadError {
    fn from(error: EbpfError) -> LoadError {
        with_errno(&error, words_of(&error))
    }
}

impl From<ProgramError> for LoadError {
    fn from(error: ProgramError) -> LoadError {
        with_errno(&error, words_of(&error))
    }
}

fn words_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn with_errno(error: &(dyn std::error::Error + 'static), words: String) -> LoadError {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let errno = causes.find_map(|cause| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error));
    match errno {
        Some(errno @ (libc::EPERM | libc::EACCES | libc::ENOSYS)) if !words.contains("R1") => {
            LoadError::NotAllowed(io::Error::from_raw_os_error(errno))
        }
        _ => LoadError::Kernel(words),
    }
}

macro_rules! maps {
    ($($field:ident: $name:literal, $key:expr, $value:expr;)*) => {
        /// Every map that user space touches.
        pub(crate) struct Maps {
            $(pub(crate) $field: Map,)*
        }

        impl Maps {
            /// The maps by name.
            fn of(mut find: impl FnMut(&'static str) -> Result<OwnedFd, LoadError>) -> Result<Maps, LoadError> {
                $(let $field = checked($name, Map::new(find($name)?)?, $key, $value)?;)*
                Ok(Maps { $($field,)* })
            }
        }
    };
}

maps! {
    netdevs: "netdevs", 4, 8;
    ports: "ports", 4, layout::PORT;
    chains: "chains", 16, layout::CHAIN;
    groups: "groups", 4, layout::GROUP;
    rules: "rules", layout::SHORT_LOOKUP, layout::RULE;
    long_rules: "long_rules", layout::LONG_LOOKUP, layout::RULE;
    actions: "actions", 4, layout::ACTION;
    encaps: "encaps", 4, layout::ENCAP;
    counters: "counters", 4, layout::COUNTER;
    meters: "meters", 4, layout::METER;
    drops: "drops", 8, 8 * sys::cpus()?;
    control: "control", 4, layout::CONTROL;
    samples: "samples", 0, 0;
    outputs: "outputs", 4, layout::OUTPUT;
    connections: "connections", layout::TUPLE, layout::CONNECTION;
    connection_table: "connection_table", 4, layout::CONNECTION_TABLE;
}

fn checked(name: &'static str, map: Map, key: usize, value: usize) -> Result<Map, LoadError> {
    if (map.key_size, map.value_size) == (key, value) { Ok(map) } else { Err(LoadError::OtherBuild(name)) }
}

/// The maps, and the program that asks them.
pub(crate) struct Loaded {
    pub(crate) maps: Maps,
    pub(crate) program: OwnedFd,
    /// The generation and what trial runs need (`struct control`).
    pub(crate) control: Words,
    pub(crate) counters: Words,
    /// How many connections there are, and may be (`struct connection_table`).
    pub(crate) connection_table: Words,
    /// How many counters each CPU has.
    pub(crate) max_rules: usize,
}

impl Loaded {
    /// Loads the object. Maps and program live as long as they are open or attached.
    pub(crate) fn load(options: &Options) -> Result<Loaded, LoadError> {
        let cpus = sys::cpus()? as u32;
        let (testing, outputs) = if options.trials { (1u32, layout::MAX_OUTPUTS as u32) } else { (0, 1) };
        let counters = options.max_rules.checked_mul(cpus);
        let counters = counters.ok_or_else(|| LoadError::Kernel("too many rules for the number of CPUs".into()))?;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("max_rules", &options.max_rules, true)
            .override_global("cpus", &cpus, true)
            .override_global("testing", &testing, true)
            .map_max_entries("rules", options.max_rules)
            .map_max_entries("long_rules", options.max_rules)
            .map_max_entries("groups", options.max_masks)
            .map_max_entries("actions", options.max_actions)
            .map_max_entries("encaps", options.max_encaps)
            .map_max_entries("counters", counters)
            .map_max_entries("meters", options.max_meters)
            .map_max_entries("cache", cpus * layout::CACHE_SLOTS as u32)
            .map_max_entries("samples", options.sample_buffer.next_power_of_two().max(4096))
            .map_max_entries("outputs", outputs)
            .map_max_entries("connections", options.max_connections.saturating_mul(2).max(1));
        let mut ebpf = loader.load(&OBJECT.0)?;
        let program = load_program(&mut ebpf, PROGRAM)?;
        let maps = Maps::of(|name| {
            let map = ebpf.map(name).ok_or(LoadError::Missing(name))?;
            Ok(fd_of(map).ok_or(LoadError::Missing(name))?.try_clone_to_owned()?)
        })?;
        let loaded = Loaded::new(maps, program)?;
        loaded.control.set(BUILD, build());
        loaded.connection_table.set(CONNECTION_LIMIT, options.max_connections.into());
        Ok(loaded)
    }

    fn new(maps: Maps, program: OwnedFd) -> Result<Loaded, LoadError> {
        let control = maps.control.in_memory(true)?;
        let counters = maps.counters.in_memory(true)?;
        let connection_table = maps.connection_table.in_memory(true)?;
        let max_rules = maps.counters.max_entries as usize / sys::cpus()?;
        Ok(Loaded { maps, program, control, counters, connection_table, max_rules })
    }

    /// Finds the maps of a program that is attached.
    pub(crate) fn of(program: OwnedFd) -> Result<Loaded, LoadError> {
        let mut maps = sys::maps_of(program.as_fd()).map_err(not_allowed)?;
        let maps = Maps::of(|name| maps.remove(short(name)).ok_or(LoadError::OtherBuild(name)))?;
        let loaded = Loaded::new(maps, program)?;
        if loaded.control.get(BUILD) != build() {
            return Err(LoadError::OtherBuild("program"));
        }
        Ok(loaded)
    }
}

/// Whether a program is the one of a pipeline, of whichever build.
pub(crate) fn is_program(program: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sys::program_name(program)? == PROGRAM)
}

pub(crate) fn not_allowed(error: io::Error) -> LoadError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => LoadError::NotAllowed(error),
        _ => LoadError::Io(error),
    }
}

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    let program: &mut SchedClassifier = program.try_into()?;
    // The verifier gives up when a signal comes (EAGAIN), as libbpf's sys_bpf_prog_load knows.
    for _ in 0..5 {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => {
                result?;
                break;
            }
        }
    }
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

fn fd_of(map: &AyaMap) -> Option<BorrowedFd<'_>> {
    Some(match map {
        AyaMap::Array(data)
        | AyaMap::HashMap(data)
        | AyaMap::PerCpuArray(data)
        | AyaMap::PerCpuHashMap(data)
        | AyaMap::RingBuf(data) => data.fd().as_fd(),
        _ => return None,
    })
}
