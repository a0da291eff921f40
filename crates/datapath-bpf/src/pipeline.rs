//! A pipeline: the program, its maps, and what is in them.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use flow::{Block, Meter, MeterId, Port, Rule, RuleId};

use crate::commit::Commits;
use crate::compile::{Refused, block_number};
use crate::layout::{self, Bytes, View};
use crate::maps::{self, CONNECTION_COUNT, CONNECTION_LIMIT, LoadError, Loaded};
use crate::samples::Samples;
use crate::sys;
use crate::track::{self, Connection};

/// The sizes of a pipeline's maps, which stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many rules there is room for. A counter has 24 bytes for each CPU.
    pub max_rules: u32,
    /// How many actions of all rules together there is room for, but for each rule's last one. An action has 56 bytes.
    pub max_actions: u32,
    /// How many masks of all priorities together there is room for, with 440 bytes each. A chain has at most 256.
    pub max_masks: u32,
    /// How many different encapsulations and ways to track there is room for, with 352 bytes each.
    pub max_encaps: u32,
    /// How many meters there is room for.
    pub max_meters: u32,
    /// How many connections there is room for. One that lives takes some 400 bytes.
    pub max_connections: u32,
    /// The bytes of the buffer for samples; rounded up to a power of two.
    pub sample_buffer: u32,
    /// Sends nothing, and records what would be sent: for [`Pipeline::trial`].
    pub trials: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_rules: 1 << 18,
            max_actions: 1 << 18,
            max_masks: 1 << 12,
            max_encaps: 1 << 12,
            max_meters: 1 << 16,
            max_connections: 1 << 16,
            sample_buffer: 1 << 20,
            trials: false,
        }
    }
}

/// What a netdev of the card is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The inner end of a port: what the VF sends comes in here.
    Port(Port),
    /// The inner end of a representor: what the representor's netdev sends comes in here, and goes to the port.
    Representor(Port),
    /// The wire of an uplink.
    Wire(Port),
    /// The far end of a lane: what limited functions send comes in here when it has waited in its class.
    Lane,
}

/// What happens to frames that come in at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They go on to the stack or the bridge of the card's namespace.
    Legacy,
    /// Rules are asked, and the representor gets what misses.
    Switchdev,
    /// They are dropped.
    Inactive,
}

/// A port, as the program has to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// What happens to its frames.
    pub mode: Mode,
    /// The number of the E-Switch that it is a port of, among those of the pipeline.
    pub eswitch: u8,
    /// The block in which they are looked up.
    pub block: Block,
    /// The number of the netdev through which the port is reached: its inner end, or the wire.
    pub ifindex: u32,
    /// The number of the representor's inner end, if there is one.
    pub representor: Option<u32>,
    /// Whether frames to the port are sent by the inner end. Otherwise they are received by the outer one at once, which is
    /// faster, and needs the outer end to be up and in another network namespace.
    pub through_inner: bool,
    /// Whether `ifindex` is the wire. Only there the rules of tunnel devices are asked.
    pub is_wire: bool,
    /// Whether the link is up. Without it, frames from and to the port are dropped.
    pub link_up: bool,
    /// Where what comes in at the port waits before anything else, if the port's rate is limited.
    pub lane: Option<Lane>,
    /// Of the uplink of a PF in a LAG: the numbers of the wires on which frames leave that rules send to it, four at most. With
    /// none it is `ifindex`.
    pub wires: Vec<u32>,
}

/// Where what a limited function sends waits: it is sent out of a netdev with a queueing discipline, and comes back at
/// another netdev, which has [`Role::Lane`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The number of the netdev.
    pub ifindex: u32,
    /// The class in which it waits, which frames have as their priority there.
    pub class: u32,
}

impl PortConfig {
    fn bytes(&self) -> Vec<u8> {
        let mode = match self.mode {
            Mode::Legacy => 0,
            Mode::Switchdev => 1,
            Mode::Inactive => 2,
        };
        let flags = u32::from(self.through_inner) | u32::from(self.is_wire) << 1 | u32::from(self.link_up) << 2;
        let bytes = Bytes::default().u64(block_number(self.eswitch, self.block)).u32(self.ifindex);
        let (lane, class) = self.lane.map_or((0, 0), |lane| (lane.ifindex, lane.class));
        let bytes = bytes.u32(self.representor.unwrap_or(0)).u32(mode).u32(flags).u32(lane).u32(class);
        let wires = &self.wires[..self.wires.len().min(layout::MAX_WIRES)];
        let bytes = wires.iter().fold(bytes, |bytes, wire| bytes.u32(*wire));
        let bytes = (wires.len()..layout::MAX_WIRES).fold(bytes, |bytes, _| bytes.u32(0));
        bytes.u32(wires.len() as u32).u32(self.eswitch.into()).0
    }
}

/// A change of rules and meters.
#[derive(Debug, Clone, Copy)]
pub enum Change<'c> {
    /// Adds a rule. Among rules of one priority, `id` says which is older, as in [`flow::Tables`].
    Add {
        /// The name of the rule, which no other rule has.
        id: RuleId,
        /// The rule, which [`flow::Tables::add`] has accepted.
        rule: &'c Rule,
    },
    /// Gives a rule other actions, in one step: a frame meets either the old ones or the new ones. Its counter stays.
    SetActions {
        /// The name of the rule.
        id: RuleId,
        /// The same rule, with the other actions.
        rule: &'c Rule,
    },
    /// Removes a rule.
    Remove(RuleId),
    /// Makes or changes a meter, which is full then, unless it is the same.
    SetMeter {
        /// The name of the meter.
        id: MeterId,
        /// The meter.
        meter: Meter,
    },
    /// Removes a meter that no rule uses.
    RemoveMeter(MeterId),
}

/// How often a rule was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Frames that matched; of a frame that is yet to be segmented, its segments.
    pub packets: u64,
    /// Their bytes, as in [`flow::Counter`].
    pub bytes: u64,
    /// The time since boot at which the last one matched (CLOCK_MONOTONIC, to a few milliseconds), or zero.
    pub last_used: Duration,
}

/// Why the program dropped frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// A rule says so.
    Rule,
    /// A meter says so.
    Meter,
    /// The frame is shorter than an Ethernet header.
    TooShort,
    /// The frame has grown too long for its headers.
    TooLong,
    /// The time to live is over.
    TtlExpired,
    /// The frame went on in another chain too often.
    TooManyGotos,
    /// There is no such port, or it has no netdev.
    NoPort,
    /// The port is inactive.
    Inactive,
    /// The link of the port is down.
    LinkDown,
    /// The frame missed, and the port has no representor.
    NoRepresentor,
    /// A map did not have what it should have.
    Internal,
    /// The frame should have been tracked, and is not IP.
    NotIp,
    /// There are too many connections.
    TooManyConnections,
    /// Another connection has the addresses of a new one.
    ConnectionClash,
    /// No address and port is free for the connection.
    NoFreePort,
    /// Other CPUs have changed the connection each time that this one was about to.
    ConnectionBusy,
}

impl DropReason {
    const ALL: [DropReason; 16] = [
        DropReason::Rule,
        DropReason::Meter,
        DropReason::TooShort,
        DropReason::TooLong,
        DropReason::TtlExpired,
        DropReason::TooManyGotos,
        DropReason::NoPort,
        DropReason::Inactive,
        DropReason::LinkDown,
        DropReason::NoRepresentor,
        DropReason::Internal,
        DropReason::NotIp,
        DropReason::TooManyConnections,
        DropReason::ConnectionClash,
        DropReason::NoFreePort,
        DropReason::ConnectionBusy,
    ];

    /// The reason in one or two words, with hyphens; the same as those of [`flow::DropReason::word`].
    pub fn word(self) -> &'static str {
        match self {
            DropReason::Rule => "rule",
            DropReason::Meter => "meter",
            DropReason::TooShort => "too-short",
            DropReason::TooLong => "too-long",
            DropReason::TtlExpired => "ttl-expired",
            DropReason::TooManyGotos => "too-many-gotos",
            DropReason::NoPort => "no-port",
            DropReason::Inactive => "inactive",
            DropReason::LinkDown => "link-down",
            DropReason::NoRepresentor => "no-representor",
            DropReason::Internal => "internal",
            DropReason::NotIp => "not-ip",
            DropReason::TooManyConnections => "too-many-connections",
            DropReason::ConnectionClash => "connection-clash",
            DropReason::NoFreePort => "no-free-port",
            DropReason::ConnectionBusy => "connection-busy",
        }
    }

    pub(crate) fn of(number: u32) -> Option<DropReason> {
        DropReason::ALL.get((number as usize).checked_sub(1)?).copied()
    }
}

/// How many frames were dropped, by port and reason. The port is the one at which they came in, or for a port that cannot be
/// reached that one.
pub type Drops = BTreeMap<(Port, DropReason), u64>;

/// The program and its maps.
pub struct Pipeline {
    pub(crate) loaded: Loaded,
    pub(crate) trials: bool,
    pub(crate) commits: Commits,
    /// The netdevs to which the program is attached by tcx.
    attached: HashSet<u32>,
}

impl Pipeline {
    /// Loads program and maps. They are not attached to anything.
    ///
    /// # Errors
    /// [`LoadError::NotAllowed`] where a process may not load programs, [`LoadError::Kernel`] where the kernel is too old.
    /// A card has no offload then.
    pub fn load(options: Options) -> Result<Pipeline, LoadError> {
        let loaded = Loaded::load(&options)?;
        Pipeline::new(loaded, options.trials)
    }

    fn new(loaded: Loaded, trials: bool) -> Result<Pipeline, LoadError> {
        // Nothing is cached of generation 0, with which the slots of the cache begin.
        loaded.control.set(0, loaded.control.get(0).max(1));
        let commits = Commits::new(&loaded)?;
        Ok(Pipeline { loaded, trials, commits, attached: HashSet::new() })
    }

    /// Finds a pipeline that another process has left, with its ports, rules, meters, counters and connections as they are,
    /// by its program. `attached`: the netdevs to which that is attached by tcx, by their numbers.
    ///
    /// # Errors
    /// [`LoadError::OtherBuild`] if it is one of another build. Then a new one takes its place: what is attached behind a
    /// program is asked when that is [detached](Leftover::detach).
    pub fn adopt(program: OwnedFd, attached: impl IntoIterator<Item = u32>) -> Result<Pipeline, LoadError> {
        let mut pipeline = Pipeline::new(Loaded::of(program)?, false)?;
        pipeline.commits.adopt(&pipeline.loaded)?;
        pipeline.attached.extend(attached);
        Ok(pipeline)
    }

    /// Says what a netdev of the calling thread's network namespace is, and attaches the program to what it receives. It stays
    /// attached as long as the netdev exists, whether or not this process does.
    ///
    /// # Errors
    /// The kernel's: `ENODEV` for no such netdev, `EINVAL` before Linux 6.6, which has no tcx.
    pub fn attach(&mut self, ifindex: u32, role: Role) -> io::Result<()> {
        self.note(ifindex, role)?;
        if self.trials || self.attached.contains(&ifindex) {
            return Ok(());
        }
        if let Err(error) = sys::attach_tcx(self.loaded.program.as_fd(), ifindex)
            && error.raw_os_error() != Some(libc::EEXIST)
        {
            self.loaded.maps.netdevs.remove(&ifindex.to_ne_bytes())?;
            return Err(error);
        }
        self.attached.insert(ifindex);
        Ok(())
    }

    /// The same where the kernel has no tcx: `attach` makes a filter of the classifier `bpf` with direct action, before every
    /// other of what the netdev receives, and is given the program. [`detach`](Self::detach) leaves that filter, which does
    /// nothing then.
    ///
    /// # Errors
    /// Those of `attach`, and the kernel's.
    pub fn attach_with(
        &mut self,
        ifindex: u32,
        role: Role,
        attach: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.note(ifindex, role)?;
        if let Err(error) = attach(self.loaded.program.as_fd()) {
            self.loaded.maps.netdevs.remove(&ifindex.to_ne_bytes())?;
            return Err(error);
        }
        Ok(())
    }

    /// Notes what a netdev is.
    fn note(&self, ifindex: u32, role: Role) -> io::Result<()> {
        let (port, kind) = match role {
            Role::Port(port) => (port, 0),
            Role::Representor(port) => (port, 1),
            Role::Wire(port) => (port, 2),
            Role::Lane => (Port(0), 3),
        };
        let netdev = Bytes::default().u32(port.0).u32(kind).0;
        self.loaded.maps.netdevs.put(&ifindex.to_ne_bytes(), &netdev)
    }

    /// Takes the program away from a netdev of the calling thread's network namespace. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(&mut self, ifindex: u32) -> io::Result<bool> {
        let was_there = self.loaded.maps.netdevs.remove(&ifindex.to_ne_bytes())?;
        if self.attached.remove(&ifindex) {
            match sys::detach_tcx(self.loaded.program.as_fd(), ifindex) {
                // The netdev is gone, or was made anew.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {}
                detached => detached?,
            }
        }
        Ok(was_there)
    }

    /// The ports that are known, in no order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ports(&self) -> io::Result<Vec<Port>> {
        Ok(self.loaded.maps.ports.keys()?.iter().map(|key| Port(View(key).u32(0))).collect())
    }

    /// Makes or changes a port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_port(&mut self, port: Port, config: &PortConfig) -> io::Result<()> {
        self.loaded.maps.ports.put(&port.0.to_ne_bytes(), &config.bytes())
    }

    /// Removes a port. Frames to it are dropped. Returns whether it was there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove_port(&mut self, port: Port) -> io::Result<bool> {
        self.loaded.maps.ports.remove(&port.0.to_ne_bytes())
    }

    /// How many rules there are.
    pub fn rule_count(&self) -> usize {
        self.commits.rules.len()
    }

    /// The names of the rules, in no order.
    pub fn rules(&self) -> impl Iterator<Item = RuleId> {
        self.commits.rules.keys().copied()
    }

    /// The names of the meters, in no order.
    pub fn meters(&self) -> impl Iterator<Item = MeterId> {
        self.commits.meter_numbers.keys().copied()
    }

    /// Carries changes of the only E-Switch out, as [`commit_of`](Self::commit_of).
    pub fn commit(&mut self, batch: &[Change<'_>]) -> Vec<Result<(), Refused>> {
        self.commit_of(0, batch)
    }

    /// Carries changes of an E-Switch out, in their order. The result of each stands at its place; what is refused has
    /// changed nothing. The rules of tunnels are for frames from the wires of that E-Switch ([`PortConfig::eswitch`]).
    ///
    /// When it returns, every frame that comes in is treated by the new rules.
    pub fn commit_of(&mut self, eswitch: u8, batch: &[Change<'_>]) -> Vec<Result<(), Refused>> {
        self.commits.commit(&self.loaded, eswitch, batch)
    }

    /// The counters of rules. That of a rule that is not there is zero.
    pub fn counters(&self, rules: &[RuleId]) -> Vec<Counter> {
        rules.iter().map(|id| self.commits.counter(&self.loaded, *id)).collect()
    }

    /// How many frames conformed to a meter, and how many exceeded it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn meter(&self, id: MeterId) -> io::Result<Option<(u64, u64)>> {
        let Some(index) = self.commits.meter_numbers.get(&id) else { return Ok(None) };
        let value = self.loaded.maps.meters.get(&index.to_ne_bytes())?;
        Ok(value.map(|value| (View(&value).u64(40), View(&value).u64(48))))
    }

    /// How many frames were dropped, by port and reason.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drops(&self) -> io::Result<Drops> {
        let mut drops = Drops::new();
        for key in self.loaded.maps.drops.keys()? {
            let Some(value) = self.loaded.maps.drops.get(&key)? else { continue };
            let sum = value.chunks(8).map(|own| View(own).u64(0)).fold(0u64, u64::wrapping_add);
            if let Some(reason) = DropReason::of(View(&key).u32(4)) {
                drops.insert((Port(View(&key).u32(0)), reason), sum);
            }
        }
        Ok(drops)
    }

    /// The connections, those that are over and not yet removed included, in no order. Those that come or go meanwhile may be
    /// missing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connections(&self) -> io::Result<Vec<Connection>> {
        let map = &self.loaded.maps.connections;
        let mut connections = Vec::new();
        for key in map.keys()? {
            let value = map.get(&key)?;
            connections.extend(value.and_then(|value| track::connection(&key, &value)));
        }
        Ok(connections)
    }

    /// How many connections there are, those that are over and not yet removed included.
    pub fn connection_count(&self) -> u64 {
        self.loaded.connection_table.get(CONNECTION_COUNT)
    }

    /// Allows at most so many connections, of those that there is room for ([`Options::max_connections`]).
    pub fn limit_connections(&mut self, limit: u32) {
        let most = self.loaded.maps.connections.max_entries / 2;
        self.loaded.connection_table.set(CONNECTION_LIMIT, limit.min(most).into());
    }

    /// Removes the connections whose time is over. Returns how many there were.
    ///
    /// They are as good as not there before; this gives back their memory. New connections remove them too when the table is
    /// full.
    ///
    /// # Errors
    /// The kernel's.
    pub fn expire_connections(&mut self) -> io::Result<usize> {
        self.sweep(layout::MARK_SWEEP)
    }

    /// Removes all connections. Returns how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear_connections(&mut self) -> io::Result<usize> {
        self.sweep(layout::MARK_CLEAR)
    }

    fn sweep(&self, mark: u32) -> io::Result<usize> {
        let (removed, _) = sys::trial(self.loaded.program.as_fd(), &[0; 64], mark, 1)?;
        Ok(removed as usize)
    }

    /// Has rules take samples from now on, or none any more, as at first: then they cost frames nothing.
    pub fn want_samples(&self, wanted: bool) {
        self.loaded.control.set(maps::SAMPLING, wanted.into());
    }

    /// Opens the samples that rules take, for one reader at a time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_samples(&self) -> io::Result<Samples> {
        Samples::open(&self.loaded.maps)
    }

    /// How long a loop of single updates of the map of rules takes, for as many keys: what installing is compared with.
    ///
    /// # Errors
    /// The kernel's.
    #[doc(hidden)]
    pub fn time_of_bare_updates(&self, count: u32) -> io::Result<Duration> {
        let map = &self.loaded.maps.rules;
        let (mut key, value) = (vec![0xff; map.key_size], vec![0; map.value_size]);
        let begin = std::time::Instant::now();
        for number in 0..count {
            key[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
            key[8..12].copy_from_slice(&number.to_ne_bytes());
            map.put(&key, &value)?;
        }
        let taken = begin.elapsed();
        for number in 0..count {
            key[8..12].copy_from_slice(&number.to_ne_bytes());
            map.remove(&key)?;
        }
        Ok(taken)
    }

    /// How long it takes to read as many counters of each CPU from their map in batches: what [`Pipeline::counters`] is
    /// compared with.
    ///
    /// # Errors
    /// The kernel's.
    #[doc(hidden)]
    pub fn time_of_bare_reads(&self, count: u32) -> io::Result<Duration> {
        let begin = std::time::Instant::now();
        for cpu in 0..sys::cpus()? {
            let first = u32::try_from(cpu * self.loaded.max_rules).map_err(io::Error::other)?;
            let values = self.loaded.maps.counters.array_batch(first, count)?;
            if values.len() != count as usize * self.loaded.maps.counters.value_size {
                return Err(io::Error::other("a batch is too short"));
            }
        }
        Ok(begin.elapsed())
    }

    /// Has the program look like one of another build to who [adopts](Pipeline::adopt) it.
    #[doc(hidden)]
    pub fn pretend_other_build(&self) {
        self.loaded.control.set(maps::BUILD, 0);
    }

    /// The time since boot with which [`Counter::last_used`] is compared.
    pub fn now() -> Duration {
        Duration::from_nanos(sys::monotonic())
    }
}

/// A program of a pipeline that another process has left at a netdev.
pub struct Leftover {
    /// The number of the netdev.
    pub ifindex: u32,
    /// The kernel's identifier of the program.
    pub id: u32,
    /// The program.
    pub program: OwnedFd,
    /// Whether it is attached by tcx, and not by a filter.
    pub by_tcx: bool,
}

impl Leftover {
    /// Those that are attached to what a netdev of the calling thread's network namespace receives, by tcx.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` before Linux 6.6, which has no tcx.
    pub fn at(ifindex: u32) -> io::Result<Vec<Leftover>> {
        let found = sys::attached_tcx(ifindex)?.into_iter().map(|id| Leftover::of(ifindex, id, true));
        found.filter_map(Result::transpose).collect()
    }

    /// The program of a filter, by its identifier, if it is that of a pipeline.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_filter(ifindex: u32, id: u32) -> io::Result<Option<Leftover>> {
        Leftover::of(ifindex, id, false)
    }

    fn of(ifindex: u32, id: u32, by_tcx: bool) -> io::Result<Option<Leftover>> {
        let program = match sys::program_by_id(id) {
            // It has just gone.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            program => program?,
        };
        Ok(maps::is_program(program.as_fd())?.then_some(Leftover { ifindex, id, program, by_tcx }))
    }

    /// Takes it away from its netdev, if it is attached by tcx.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(self) -> io::Result<()> {
        if self.by_tcx { sys::detach_tcx(self.program.as_fd(), self.ifindex) } else { Ok(()) }
    }
}
