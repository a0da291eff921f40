//! The samples that flow rules take, and the psample groups of filters: published to the clients that have joined.
//!
//! One thread reads the card's samples. It waits without a lock, and sends without waiting: a client whose socket buffer is
//! full misses samples, which it sees by the numbers that are missing. Rules take samples only while a client has joined.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use eswitch::Engine;
use flow::{Port, Sampled};
use lockdep::{Mutex, lock_classes};
use netlink::{BuildError, Datagram, Errno, Flags, Header, find};
use serde::{Deserialize, Serialize};
use tc::GroupEvent;

use crate::card::{Cx, Served};
use crate::clients::Clients;
use crate::eswitch_family::{DEL_SAMPLE_GROUP, NEW_SAMPLE_GROUP, SAMPLE, sample};
use crate::family::{ESWITCH, VERSION};
use crate::notify;
use crate::peer::Peer;
use crate::refusal::Refusal;
use crate::tc_filters::At;

lock_classes! {
    /// The number of the next sample of each psample group.
    pub leaf SequencesClass = "sample sequences";
}

/// A sample, as a client receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The port of the card at which the frame came in.
    pub port: Port,
    /// The psample group.
    pub group: u32,
    /// The number of the sample in its group, from 0.
    pub sequence: u32,
    /// One frame of so many is sampled.
    pub rate: u32,
    /// The bytes of the whole frame.
    pub length: u32,
    /// When the sample was read, in nanoseconds since 1970.
    pub timestamp: u64,
    /// The frame, cut as the rule says.
    pub frame: Vec<u8>,
}

impl Sample {
    /// Reads the attributes of a [`SAMPLE`]. `None`: one is missing.
    pub fn parse(attributes: &[u8]) -> Option<Self> {
        let number = |kind| find(attributes, kind)?.leading_u32();
        let timestamp = find(attributes, sample::TIMESTAMP)?;
        Some(Self {
            port: Port(number(sample::PORT)?),
            group: number(sample::GROUP)?,
            sequence: number(sample::SEQUENCE)?,
            rate: number(sample::RATE)?,
            length: number(sample::LENGTH)?,
            timestamp: u64::from_ne_bytes(*timestamp.value.first_chunk()?),
            frame: find(attributes, sample::FRAME)?.value.to_vec(),
        })
    }

    fn write(&self, to: &mut Datagram) -> Result<(), BuildError> {
        to.message(Header::new(ESWITCH, Flags::empty(), 0, 0), |to| {
            to.genl(SAMPLE, VERSION);
            to.u32(sample::PORT, self.port.0).u32(sample::GROUP, self.group).u32(sample::SEQUENCE, self.sequence);
            to.u32(sample::RATE, self.rate).u32(sample::LENGTH, self.length);
            to.u64(sample::TIMESTAMP, self.timestamp).put(sample::FRAME, &self.frame);
        })
    }
}

/// A psample group that filters use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleGroup {
    /// Its number.
    pub group: u32,
    /// How many actions use it.
    pub users: u32,
    /// The number of its next sample.
    pub sequence: u32,
}

/// What a server knows of samples.
#[derive(Debug)]
pub struct Sampling {
    /// How many clients have joined.
    listeners: AtomicUsize,
    sequences: Mutex<SequencesClass, BTreeMap<u32, u32>>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { listeners: AtomicUsize::new(0), sequences: Mutex::new(BTreeMap::new()) }
    }
}

impl Sampling {
    /// Has a client receive samples from now on.
    ///
    /// # Errors
    /// EPERM: the peer may not see frames of others.
    pub(crate) fn join(&self, cx: Cx<'_, '_>, engine: &Engine, peer: &Peer) -> Result<(), Refusal> {
        if !peer.may_change {
            return Err(Refusal::bare(Errno::PERM));
        }
        if !peer.joined_samples.swap(true, Ordering::Relaxed) {
            self.listeners.fetch_add(1, Ordering::SeqCst);
            self.want(cx, engine);
        }
        Ok(())
    }

    /// Notes that a client has disconnected.
    pub(crate) fn leave(&self, cx: Cx<'_, '_>, engine: &Engine, peer: &Peer) {
        if peer.joined_samples.load(Ordering::Relaxed) {
            self.listeners.fetch_sub(1, Ordering::SeqCst);
            self.want(cx, engine);
        }
    }

    /// Has the card take samples if there are clients for them. Whoever comes last looks again, so the last word is right.
    fn want(&self, cx: Cx<'_, '_>, engine: &Engine) {
        let Some(sampler) = engine.sampler() else { return };
        loop {
            let wanted = self.listeners.load(Ordering::SeqCst) > 0;
            sampler.want(&mut cx.narrow(), wanted);
            if (self.listeners.load(Ordering::SeqCst) > 0) == wanted {
                return;
            }
        }
    }

    /// The psample groups that filters use, in the order in which they began.
    pub(crate) fn groups(&self, cx: Cx<'_, '_>, served: &Served) -> Vec<SampleGroup> {
        let at = At { engine: served.card.engine(), host: served.host.as_deref() };
        served.tc.end_groups_of_gone(cx, at);
        let groups = served.tc.sample_groups(cx);
        let sequences = self.sequences.lock_leaf(cx);
        let sequence = |group| sequences.get(&group).copied().unwrap_or(0);
        let shown =
            |of: tc::SampleGroup| SampleGroup { group: of.group, users: of.users, sequence: sequence(of.group) };
        groups.into_iter().map(shown).collect()
    }

    /// Gives samples their numbers. `timestamp`: when they were read.
    fn number(&self, cx: Cx<'_, '_>, samples: Vec<Sampled>, timestamp: u64) -> Vec<Sample> {
        let mut sequences = self.sequences.lock_leaf(cx);
        let number = |sampled: Sampled| {
            let Sampled { group, rate, in_port: port, length, frame } = sampled;
            let next = sequences.entry(group).or_default();
            let sequence = *next;
            *next = next.wrapping_add(1);
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            Sample { port, group, sequence, rate, length, timestamp, frame }
        };
        samples.into_iter().map(number).collect()
    }
}

/// The thread that publishes samples.
pub(crate) struct Publisher {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Publisher {
    /// Starts the thread; `None` for a card that takes no samples.
    ///
    /// # Errors
    /// The system cannot create a thread.
    pub(crate) fn start(served: &Arc<Served>, clients: &Arc<Clients>) -> io::Result<Option<Self>> {
        if served.card.engine().sampler().is_none() {
            return Ok(None);
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let (served, clients, must_stop) = (Arc::clone(served), Arc::clone(clients), Arc::clone(&stopping));
        let domain = Arc::clone(&served.domain);
        let run = move || lockdep::enter(&domain, "samples", |cx| publish(&served, cx, &clients, &must_stop));
        let thread = thread::Builder::new().name("samples".to_owned()).spawn(run)?;
        Ok(Some(Self { stopping, thread }))
    }

    /// Ends the thread.
    pub(crate) fn stop(self, cx: Cx<'_, '_>, served: &Served) {
        self.stopping.store(true, Ordering::Release);
        if let Some(sampler) = served.card.engine().sampler() {
            sampler.wake(&mut cx.narrow());
        }
        let _ = self.thread.join();
    }
}

/// The most bytes of a datagram with several samples.
const DATAGRAM: usize = 16 << 10;

fn publish(served: &Served, cx: Cx<'_, '_>, clients: &Clients, must_stop: &AtomicBool) {
    let Some(sampler) = served.card.engine().sampler() else { return };
    while !must_stop.load(Ordering::Acquire) {
        sampler.wait(cx);
        publish_groups(served, cx, clients);
        let samples = sampler.read(&mut cx.narrow());
        let listeners = clients.joined_by(cx, |peer| &peer.joined_samples);
        if samples.is_empty() || listeners.is_empty() {
            continue;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut datagram = Datagram::default();
        for sample in served.sampling.number(cx, samples, now) {
            if datagram.len() + sample.frame.len() > DATAGRAM {
                notify::send(&listeners, &datagram);
                datagram.clear();
            }
            // One that cannot be built is lost, as in the kernel when there is no memory for it.
            let _ = sample.write(&mut datagram);
        }
        notify::send(&listeners, &datagram);
    }
}

/// Publishes which groups have begun and ended. A group that begins has no user yet, as in the kernel, and numbers its samples
/// from 0.
fn publish_groups(served: &Served, cx: Cx<'_, '_>, clients: &Clients) {
    let events = served.tc.take_group_events(cx);
    if events.is_empty() {
        return;
    }
    let mut datagram = Datagram::default();
    for event in events {
        let (command, group) = match event {
            GroupEvent::Begun(group) => (NEW_SAMPLE_GROUP, group),
            GroupEvent::Ended(group) => (DEL_SAMPLE_GROUP, group),
        };
        let sequence = match event {
            GroupEvent::Begun(_) => 0,
            GroupEvent::Ended(_) => served.sampling.sequences.lock_leaf(cx).remove(&group).unwrap_or(0),
        };
        let _ = datagram.message(Header::new(ESWITCH, Flags::empty(), 0, 0), |to| {
            to.genl(command, VERSION).u32(sample::GROUP, group).u32(sample::SEQUENCE, sequence);
        });
    }
    notify::send(&clients.joined_by(cx, |peer| &peer.joined_sample_groups), &datagram);
}
