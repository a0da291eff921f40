//! The reference pipeline: what the card does with a frame.

use std::time::Duration;

use crate::action::{Action, Control, Police};
use crate::conntrack::{self, CtError, Tracked};
use crate::key::{Field, Key};
use crate::meter::{Bucket, MeterId};
use crate::parse::{ETH_HLEN, dissect};
use crate::rewrite::{self, Ttl};
use crate::rule::{Block, Port, Rule, RuleId};
use crate::state::{State, Transaction};
use crate::table::{PortKind, Tables};
use crate::trace::{Step, Trace};
use crate::tunnel::{self, Encap, TunnelInfo};

/// How often a frame may go on in another chain (`max_reclassify_loop` of `__tcf_classify`).
const MAX_GOTOS: usize = 16;

/// What became of a frame, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The frames that leave the card, in the order in which they were sent.
    pub outputs: Vec<Output>,
    /// The samples, in their order.
    pub samples: Vec<Sampled>,
    /// The rules that the frame matched, in their order. Their counters have grown.
    pub counted: Vec<RuleId>,
    /// What became of the frame itself.
    pub fate: Fate,
    /// What was asked and done.
    pub trace: Trace,
}

impl Verdict {
    /// Whether the frame as it came in must be given to the representor of the port.
    pub fn goes_to_representor(&self) -> bool {
        matches!(self.fate, Fate::Trapped | Fate::Missed(_))
    }
}

/// A frame that leaves the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Where.
    pub port: Port,
    /// Its bytes.
    pub frame: Vec<u8>,
}

/// A sampled frame, for the group's listeners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    /// The psample group.
    pub group: u32,
    /// One frame of so many was sampled.
    pub rate: u32,
    /// Where the frame came in.
    pub in_port: Port,
    /// The length of the whole frame.
    pub length: usize,
    /// The frame, or its beginning.
    pub frame: Vec<u8>,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was sent to ports.
    Forwarded,
    /// It was dropped. What was sent and counted before stays so.
    Dropped(DropReason),
    /// A rule passed it to the representor, as it came in.
    Trapped,
    /// No rule carried it on. It belongs to the representor, as it came in; nothing has changed.
    Missed(MissReason),
}

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// A rule says so.
    Rule(RuleId),
    /// It exceeded a meter, or conformed to one that drops what conforms.
    Meter(MeterId),
    /// It is shorter than an Ethernet header.
    TooShort,
    /// It has grown too long for its headers.
    TooLong,
    /// Its time to live is over.
    TtlExpired,
    /// It went on in another chain too often.
    TooManyGotos,
    /// It should have been tracked, and is not IP.
    NotIp,
    /// Its connection could not be remembered: there are too many.
    TooManyConnections,
    /// Its connection could not be remembered: another one has the same addresses.
    ConnectionClash,
    /// No address and port is free for its connection.
    NoFreePort,
}

impl DropReason {
    /// The reason in one or two words, with hyphens.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Rule(_) => "rule",
            Self::Meter(_) => "meter",
            Self::TooShort => "too-short",
            Self::TooLong => "too-long",
            Self::TtlExpired => "ttl-expired",
            Self::TooManyGotos => "too-many-gotos",
            Self::NotIp => "not-ip",
            Self::TooManyConnections => "too-many-connections",
            Self::ConnectionClash => "connection-clash",
            Self::NoFreePort => "no-free-port",
        }
    }
}

/// Why no rule carried a frame on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissReason {
    /// No rule of this chain matches.
    NoRule {
        /// The chain.
        chain: u32,
    },
    /// It should be sent into a tunnel whose next hop is not known.
    NoNeighbour,
    /// It should be tracked, and is a fragment.
    Fragment,
    /// It should be translated, and is an ICMP error.
    TranslatedError,
}

/// Runs a frame that comes in at `port` through the tables.
///
/// `now` is the time since any moment that stays the same for a state. The state changes only if the frame does not
/// miss: then counters, meters and connections are those after the frame.
pub fn process(tables: &Tables, state: &mut State, now: Duration, port: Port, frame: &[u8]) -> Verdict {
    let mut run = Run::new(tables, Transaction::new(state), now, port);
    let fate = match frame.len() {
        ..ETH_HLEN => Fate::Dropped(DropReason::TooShort),
        _ => run.frame(frame),
    };
    run.finish(fate)
}

/// What is known while a frame is on its way.
struct Run<'t, 's> {
    tables: &'t Tables,
    transaction: Transaction<'s>,
    now: Duration,
    in_port: Port,
    frame: Vec<u8>,
    tunnel: Option<TunnelInfo>,
    encap: Option<&'t Encap>,
    tracked: Option<Tracked>,
    verdict: Verdict,
}

/// What a rule says after its actions.
enum After {
    Goto(u32),
    End(Fate),
}

impl<'t, 's> Run<'t, 's> {
    fn new(tables: &'t Tables, transaction: Transaction<'s>, now: Duration, in_port: Port) -> Run<'t, 's> {
        let fate = Fate::Missed(MissReason::NoRule { chain: 0 });
        let (outputs, samples, counted, trace) = Default::default();
        let verdict = Verdict { outputs, samples, counted, fate, trace };
        Run { tables, transaction, now, in_port, frame: Vec::new(), tunnel: None, encap: None, tracked: None, verdict }
    }

    fn note(&mut self, step: Step) {
        self.verdict.trace.0.push(step);
    }

    fn did(&mut self, what: impl Into<String>) {
        self.note(Step::Did(what.into()));
    }

    /// Asks the port's block, and then the tunnel devices that take the frame.
    ///
    /// In the kernel the filters of the uplink come before the stack, and so before a tunnel device.
    fn frame(&mut self, frame: &[u8]) -> Fate {
        self.frame = frame.to_vec();
        let mut fate = self.block(self.tables.block_of(self.in_port));
        let devices: Vec<_> = match self.tables.port(self.in_port) {
            Some(PortKind::Uplink) => self.tables.tunnel_devices().collect(),
            _ => Vec::new(),
        };
        for device in devices {
            if fate != Fate::Missed(MissReason::NoRule { chain: 0 }) || !self.verdict.counted.is_empty() {
                break;
            }
            if let Some((inner, info)) = tunnel::decapsulate(device, frame) {
                (self.frame, self.tunnel) = (inner, Some(info));
                fate = self.block(Block::Tunnel(device));
            }
        }
        fate
    }

    fn block(&mut self, block: Block) -> Fate {
        self.note(Step::Block(block));
        let mut chain = 0;
        for _ in 0..=MAX_GOTOS {
            self.note(Step::Chain(chain));
            let Some((id, rule)) = self.find(block, chain) else {
                return Fate::Missed(MissReason::NoRule { chain });
            };
            self.transaction.count(id, self.frame.len(), self.now);
            self.verdict.counted.push(id);
            match self.actions(id, rule) {
                After::Goto(next) => chain = next,
                After::End(fate) => return fate,
            }
        }
        Fate::Dropped(DropReason::TooManyGotos)
    }

    /// The key of the frame with what is known about it.
    fn key(&self) -> (Key, u16) {
        let dissected = dissect(&self.frame);
        let mut key = dissected.key;
        key.set(Field::InPort, self.in_port.0);
        if let Some(tunnel) = &self.tunnel {
            tunnel.describe(&mut key);
        }
        if let Some(tracked) = &self.tracked {
            tracked.describe(&self.transaction.state().connections, &mut key);
        }
        (key, dissected.protocol)
    }

    /// The first rule of a chain that the frame matches.
    fn find(&mut self, block: Block, chain: u32) -> Option<(RuleId, &'t Rule)> {
        let (key, ethertype) = self.key();
        let tables = self.tables;
        for (number, priority) in tables.priorities(block, chain) {
            let protocol = priority.protocol;
            if !protocol.takes(ethertype) {
                self.note(Step::Skipped { priority: number, protocol, ethertype });
                continue;
            }
            for masks in &priority.masks {
                let matched = masks.find(&key);
                self.note(Step::Asked { priority: number, protocol, fields: masks.words(), matched });
                if let Some(id) = matched {
                    return tables.rule(id).map(|rule| (id, rule));
                }
            }
        }
        None
    }

    fn actions(&mut self, id: RuleId, rule: &'t Rule) -> After {
        let mut place = 0;
        while let Some(action) = rule.actions.get(place) {
            place = match action {
                Action::Police(police) => match self.police(police) {
                    Control::Pipe => place + 1,
                    // Jumps go forward: the rule was checked.
                    Control::Jump(next) => next.max(place + 1),
                    Control::Drop => return After::End(Fate::Dropped(DropReason::Meter(police.meter))),
                },
                Action::Drop => return After::End(Fate::Dropped(DropReason::Rule(id))),
                Action::Trap => return After::End(Fate::Trapped),
                Action::Goto(chain) => {
                    self.did(format!("goes on in chain {chain}"));
                    return After::Goto(*chain);
                }
                action => match self.action(action) {
                    Ok(()) if action.ends_rule() => return After::End(Fate::Forwarded),
                    Ok(()) => place + 1,
                    Err(fate) => return After::End(fate),
                },
            };
        }
        After::End(Fate::Forwarded)
    }

    /// Does an action after which the next one follows, unless the frame has come to an end.
    fn action(&mut self, action: &'t Action) -> Result<(), Fate> {
        match action {
            Action::Redirect(port) | Action::Mirror(port) => return self.output(*port),
            Action::VlanPush(tag) => {
                rewrite::vlan_push(&mut self.frame, *tag);
                self.did(format!("pushes VLAN {}", tag.id));
            }
            Action::VlanPop => {
                let popped = rewrite::vlan_pop(&mut self.frame);
                self.did(if popped { "pops a VLAN tag" } else { "has no VLAN tag to pop" });
            }
            Action::VlanModify { tpid, id, priority } => {
                let changed = rewrite::vlan_modify(&mut self.frame, *tpid, *id, *priority);
                self.did(if changed { format!("changes the VLAN to {id}") } else { "has no VLAN tag".into() });
            }
            Action::Edit(edit) => {
                let changed = rewrite::edit(&mut self.frame, edit);
                self.did(format!("{} {:?}", if changed { "rewrites" } else { "has no" }, edit.field));
            }
            Action::Csum(which) => {
                rewrite::compute_checksums(&mut self.frame, *which);
                self.did("computes checksums");
            }
            Action::DecTtl => return self.decrement_ttl(),
            Action::TunnelSet(encap) => {
                self.encap = Some(encap);
                self.did("sets the tunnel of the next output");
            }
            Action::TunnelUnset => {
                self.tunnel = None;
                self.did("forgets the tunnel");
            }
            Action::Ct(ct) => return self.track(ct),
            Action::CtClear => {
                self.tracked = None;
                self.did("forgets the connection");
            }
            Action::Sample(sample) => self.sample(sample),
            Action::Drop | Action::Trap | Action::Goto(_) | Action::Police(_) => {}
        }
        Ok(())
    }

    /// Sends the frame, encapsulated if a tunnel was set for this output.
    fn output(&mut self, port: Port) -> Result<(), Fate> {
        let frame = match self.encap.take() {
            None => self.frame.clone(),
            Some(encap) => {
                let neighbour = encap.neighbour.ok_or(Fate::Missed(MissReason::NoNeighbour))?;
                let outer = tunnel::encapsulate(encap, neighbour, &self.frame);
                outer.ok_or(Fate::Dropped(DropReason::TooLong))?
            }
        };
        self.did(format!("sends {} bytes to {port}", frame.len()));
        self.verdict.outputs.push(Output { port, frame });
        Ok(())
    }

    fn decrement_ttl(&mut self) -> Result<(), Fate> {
        match rewrite::decrement_ttl(&mut self.frame) {
            Ttl::Decremented => self.did("decrements the time to live"),
            Ttl::Absent => self.did("has no time to live"),
            Ttl::Expired => return Err(Fate::Dropped(DropReason::TtlExpired)),
        }
        Ok(())
    }

    fn track(&mut self, ct: &crate::action::Ct) -> Result<(), Fate> {
        let before = self.tracked.take();
        let result = conntrack::act(&mut self.transaction, ct, before, &mut self.frame, self.now);
        let tracked = result.map_err(|error| match error {
            CtError::NotIp => Fate::Dropped(DropReason::NotIp),
            CtError::TableFull => Fate::Dropped(DropReason::TooManyConnections),
            CtError::Clash => Fate::Dropped(DropReason::ConnectionClash),
            CtError::NoFreePort => Fate::Dropped(DropReason::NoFreePort),
            CtError::Fragment => Fate::Missed(MissReason::Fragment),
            CtError::TranslatedError => Fate::Missed(MissReason::TranslatedError),
        })?;
        self.did(format!("tracks in zone {}: {}", ct.zone, tracked.words()));
        self.tracked = Some(tracked);
        Ok(())
    }

    fn police(&mut self, police: &Police) -> Control {
        let Some(meter) = self.tables.meter(police.meter) else { return police.conform };
        let before = self.transaction.state().bucket(police.meter).copied();
        let mut bucket = before.unwrap_or_else(|| Bucket::full(meter, self.now));
        let conforms = bucket.measure(meter, self.frame.len(), self.now);
        self.transaction.put_bucket(police.meter, bucket);
        self.did(format!("{} meter {}", if conforms { "conforms to" } else { "exceeds" }, police.meter.0));
        if conforms { police.conform } else { police.exceed }
    }

    fn sample(&mut self, sample: &crate::action::Sample) {
        if !self.transaction.random().is_multiple_of(u64::from(sample.rate.max(1))) {
            self.did("is not sampled");
            return;
        }
        let length = self.frame.len();
        let kept = sample.truncate.map_or(length, |bytes| length.min(bytes as usize));
        let frame = self.frame[..kept].to_vec();
        let in_port = self.in_port;
        self.did(format!("is sampled for group {}", sample.group));
        self.verdict.samples.push(Sampled { group: sample.group, rate: sample.rate, in_port, length, frame });
    }

    /// Keeps what has changed, or takes it back if the frame missed.
    fn finish(self, fate: Fate) -> Verdict {
        let Run { transaction, mut verdict, .. } = self;
        match fate {
            Fate::Missed(_) => {
                transaction.roll_back();
                verdict.outputs.clear();
                verdict.samples.clear();
                verdict.counted.clear();
            }
            _ => transaction.commit(),
        }
        verdict.trace.0.push(Step::Ended(fate_words(fate)));
        verdict.fate = fate;
        verdict
    }
}

fn fate_words(fate: Fate) -> String {
    match fate {
        Fate::Forwarded => "forwarded".into(),
        Fate::Trapped => "trapped: the representor gets it as it came".into(),
        Fate::Dropped(reason) => format!("dropped: {}", drop_words(reason)),
        Fate::Missed(reason) => format!("missed, {}: the representor gets it as it came", miss_words(reason)),
    }
}

fn drop_words(reason: DropReason) -> String {
    match reason {
        DropReason::Rule(rule) => format!("{rule} says so"),
        DropReason::Meter(meter) => format!("meter {} says so", meter.0),
        DropReason::TooShort => "it is shorter than an Ethernet header".into(),
        DropReason::TooLong => "it is too long for the tunnel's headers".into(),
        DropReason::TtlExpired => "its time to live is over".into(),
        DropReason::TooManyGotos => format!("it went on in another chain {MAX_GOTOS} times"),
        DropReason::NotIp => "only IP can be tracked".into(),
        DropReason::TooManyConnections => "there are too many connections".into(),
        DropReason::ConnectionClash => "another connection has its addresses".into(),
        DropReason::NoFreePort => "no address and port is free for its connection".into(),
    }
}

fn miss_words(reason: MissReason) -> String {
    match reason {
        MissReason::NoRule { chain } => format!("no rule of chain {chain} matches"),
        MissReason::NoNeighbour => "the tunnel's next hop is not known".into(),
        MissReason::Fragment => "only software puts fragments together".into(),
        MissReason::TranslatedError => "only software translates ICMP errors".into(),
    }
}
