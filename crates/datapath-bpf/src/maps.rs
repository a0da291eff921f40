//! The maps of a pipeline: loaded with the object, or found again where they were pinned.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::Map as AyaMap;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfError, EbpfLoader};
use thiserror::Error;

use crate::Options;
use crate::layout;
use crate::samples::Ring;
use crate::sys::{self, Map, Words};

/// The compiled program (`cargo xtask bpf --write`), aligned as the parser of the file needs it.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../bpf/eswitch.bpf.o"));

const PROGRAM: &str = "eswitch_ingress";
const SWEEP: &str = "eswitch_sweep";

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
    /// The maps are of another build.
    #[error("the map {0} is one of another build")]
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

            /// Pins the maps in a directory of a bpffs.
            fn pin(&self, directory: &Path) -> io::Result<()> {
                $(sys::pin(self.$field.as_fd(), &directory.join($name))?;)*
                Ok(())
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
    /// Removes connections.
    pub(crate) sweep: OwnedFd,
    /// The generation and what trial runs need (`struct control`).
    pub(crate) control: Words,
    pub(crate) counters: Words,
    /// How many connections there are, and may be (`struct connection_table`).
    pub(crate) connection_table: Words,
    /// How many counters each CPU has.
    pub(crate) max_rules: usize,
    pub(crate) samples: Ring,
}

impl Loaded {
    /// Loads the object. Maps and program live as long as they are open, attached or pinned.
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
        let sweep = load_program(&mut ebpf, SWEEP)?;
        let maps = Maps::of(|name| {
            let map = ebpf.map(name).ok_or(LoadError::Missing(name))?;
            Ok(fd_of(map).ok_or(LoadError::Missing(name))?.try_clone_to_owned()?)
        })?;
        let loaded = Loaded::new(maps, program, sweep)?;
        loaded.connection_table.set(CONNECTION_LIMIT, options.max_connections.into());
        Ok(loaded)
    }

    fn new(maps: Maps, program: OwnedFd, sweep: OwnedFd) -> Result<Loaded, LoadError> {
        let control = maps.control.in_memory(true)?;
        let counters = maps.counters.in_memory(true)?;
        let connection_table = maps.connection_table.in_memory(true)?;
        let samples = Ring::new(&maps.samples)?;
        let max_rules = maps.counters.max_entries as usize / sys::cpus()?;
        Ok(Loaded { maps, program, sweep, control, counters, connection_table, max_rules, samples })
    }

    /// Finds what was pinned in a directory.
    pub(crate) fn find(directory: &Path) -> Result<Loaded, LoadError> {
        let maps = Maps::of(|name| sys::open_pinned(&directory.join(name)).map_err(|error| missing(name, error)))?;
        let program = sys::open_pinned(&directory.join("program")).map_err(|error| missing("program", error))?;
        let sweep = sys::open_pinned(&directory.join("sweep")).map_err(|error| missing("sweep", error))?;
        Loaded::new(maps, program, sweep)
    }

    /// Pins maps and program in a directory of a bpffs.
    pub(crate) fn pin(&self, directory: &Path) -> io::Result<()> {
        self.maps.pin(directory)?;
        sys::pin(self.program.as_fd(), &directory.join("program"))?;
        sys::pin(self.sweep.as_fd(), &directory.join("sweep"))
    }
}

fn missing(name: &'static str, error: io::Error) -> LoadError {
    match error.raw_os_error() {
        Some(libc::ENOENT) => LoadError::Missing(name),
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
