//! The generic netlink family `eswitch`: what devlink has no message for. A lab shows the view that [`VIEW`] dumps, and
//! sends with [`PERFORM`] what a shell command would do.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ::control::{Command, Failure, Reply, shown};
use eswitch::auxiliary::AuxiliaryName;
use eswitch::{CardConfig, ParseError, PciAddress, PfIndex, PortHandle, Touched};
use flow::RuleId;
use netlink::Errno;
use tc::Event;

use crate::card::{Cx, Host, Served};
use crate::carried_out;
use crate::family::{CONFIG_GROUP, ESWITCH, FILTERS_GROUP, Family, SAMPLE_GROUPS_GROUP, SAMPLES_GROUP};
use crate::numbers::control;
use crate::peer::Peer;
use crate::rdma_core::RdmaChange;
use crate::refusal::{Refusal, errno_of};
use crate::reply::ReplyWriter;
use crate::request::{Attributes, split};
use crate::tc_filters::At;
use crate::view::DeviceName;

/// The family's name.
pub const NAME: &str = "eswitch";
/// Carries out a [`Command`]. The request has [`COMMAND`] and [`VERSION`]. The answer has [`REPLY`] if the command
/// returned more than that it was carried out.
pub const PERFORM: u8 = 1;
/// Dumps the view of the card, a [`crate::view::Card`] as JSON, in pieces.
pub const VIEW: u8 = 2;
/// Joins a multicast group, as a Unix socket has no option for that. The request has [`GROUP`].
pub const JOIN: u8 = 3;
/// Sends a descriptor from which the view can be read as it changes: see [`crate::ViewReader`].
pub const SHARE: u8 = 4;
/// Sends a descriptor of a network namespace: see [`WHICH`].
pub const NETWORK: u8 = 5;
/// Dumps the counters of a PF's VFs, by number, as JSON, in pieces. The request has [`DEVICE`].
pub const COUNTERS: u8 = 6;
/// Changes what the RDMA core knows of the card's devices. The request has [`RDMA_CHANGE`]; one that moves a device comes with a
/// descriptor of the network namespace.
pub const RDMA: u8 = 7;
/// Dumps what the flow rules would do with a frame, in lines of text for people, in pieces. The request has [`PORT`] and
/// [`FRAME`]. Nothing changes.
pub const TRACE: u8 = 8;
/// Carries out a [`tc::Request`] about filters of the card's netdevs. The request has [`TC_REQUEST`]. Dumps the
/// [`tc::Answer`] as JSON, in pieces.
pub const TC: u8 = 9;
/// Dumps the flow rules of the card with their counters, in lines of text for people, in pieces.
pub const RULES: u8 = 10;
/// Dumps how many frames the card has dropped, by port and reason, in lines of text for people, in pieces.
pub const DROPS: u8 = 11;
/// Dumps the psample groups that filters use, [`crate::SampleGroup`]s as JSON, in pieces.
pub const SAMPLE_GROUPS: u8 = 12;
/// A sample that a flow rule has taken: a notification to the group [`SAMPLES_GROUP`]. [`crate::Sample::parse`] reads it.
pub const SAMPLE: u8 = 13;
/// A psample group has begun: a notification to the group [`SAMPLE_GROUPS_GROUP`]. It has [`sample::GROUP`] and
/// [`sample::SEQUENCE`].
pub const NEW_SAMPLE_GROUP: u8 = 14;
/// A psample group has ended: the same.
pub const DEL_SAMPLE_GROUP: u8 = 15;
/// Dumps the status of the card and of the program that runs it, as JSON, in pieces.
pub const STATUS: u8 = 16;
/// Asks the program that runs the card to end. The request has [`WORDS`].
pub const END: u8 = 17;
/// A filter was changed that the kernel does not have: a notification to the group [`FILTERS_GROUP`]. It has [`FILTER_EVENT`].
pub const FILTER: u8 = 18;
/// How to end, in words that the [host](Host::end) of the card understands.
pub const WORDS: u16 = 1;
/// A piece of JSON, or of text.
pub const PIECE: u16 = 3;
/// The number of a multicast group: [`CONFIG_GROUP`], [`SAMPLES_GROUP`], [`SAMPLE_GROUPS_GROUP`] or [`FILTERS_GROUP`].
pub const GROUP: u16 = 4;
/// A command, [encoded](Command::encode).
pub const COMMAND: u16 = 5;
/// The [version](::control::VERSION) of the command's encoding.
pub const VERSION: u16 = 6;
/// A [`Reply`], encoded.
pub const REPLY: u16 = 7;
/// The address of a PF, as text.
pub const DEVICE: u16 = 9;
/// A [`RdmaChange`], as JSON.
pub const RDMA_CHANGE: u16 = 10;
/// The handle of a devlink port, as text.
pub const PORT: u16 = 11;
/// The bytes of a frame, without the frame check sequence.
pub const FRAME: u16 = 12;

/// A [`tc::Request`], as JSON.
pub const TC_REQUEST: u16 = 13;
/// A [`tc::Event`], as JSON.
pub const FILTER_EVENT: u16 = 21;

/// Which network namespace is requested: [`INSIDE`] or [`HOME`].
pub const WHICH: u16 = 8;
/// The card's own network namespace, in which it has the other ends of its netdevs.
pub const INSIDE: u32 = 0;
/// The network namespace in which the card's netdevs appear. The descriptor is one of a socket in it, for which nobody
/// needs a right to find out which namespace it is (SO_NETNS_COOKIE).
pub const HOME: u32 = 1;

/// The attributes of samples and their groups.
pub mod sample {
    /// The number of the port in flow rules at which the frame came in.
    pub const PORT: u16 = 14;
    /// The psample group.
    pub const GROUP: u16 = 15;
    /// The number of the sample in its group.
    pub const SEQUENCE: u16 = 16;
    /// One frame of so many is sampled.
    pub const RATE: u16 = 17;
    /// The bytes of the whole frame.
    pub const LENGTH: u16 = 18;
    /// When the sample was read, in nanoseconds since 1970.
    pub const TIMESTAMP: u16 = 19;
    /// The frame, cut as the rule says.
    pub const FRAME: u16 = 20;
}

/// A piece of JSON has at most this many bytes.
const PIECE_MAX: usize = 12 * 1024;

/// What `nlctrl` reports of this family.
pub(crate) fn family() -> Family {
    Family {
        name: NAME,
        number: ESWITCH,
        version: 1,
        max_attribute: FILTER_EVENT.into(),
        operations: vec![
            (PERFORM, control::ADMIN | control::CAN_DO),
            (VIEW, control::CAN_DUMP),
            (JOIN, control::CAN_DO),
            (SHARE, control::CAN_DO),
            (NETWORK, control::CAN_DO),
            (COUNTERS, control::CAN_DUMP),
            (RDMA, control::ADMIN | control::CAN_DO),
            (TRACE, control::CAN_DUMP),
            (TC, control::CAN_DUMP),
            (RULES, control::CAN_DUMP),
            (DROPS, control::CAN_DUMP),
            (SAMPLE_GROUPS, control::CAN_DUMP),
            (STATUS, control::CAN_DUMP),
            (END, control::ADMIN | control::CAN_DO),
        ],
        groups: &[],
    }
}

/// A request of this family, decoded.
pub(crate) enum Request<'a> {
    Perform(Box<Command>),
    View,
    /// The number of a multicast group.
    Join(u32),
    Share,
    /// Which network namespace.
    Network(u32),
    /// Of the VFs of a PF.
    Counters(PciAddress),
    Rdma(RdmaChange),
    /// A frame that would come in at a port.
    Trace(PortHandle, &'a [u8]),
    Tc(Box<::tc::Request>),
    Rules,
    Drops,
    SampleGroups,
    Status,
    /// How to end.
    End(&'a str),
}

impl<'a> Request<'a> {
    /// Decodes a request.
    ///
    /// # Errors
    /// EOPNOTSUPP: the family has no such command. EPERM: the peer may not make the request. EINVAL: an attribute is
    /// missing or malformed, or the command is of another version.
    pub fn parse(peer: &Peer, payload: &'a [u8]) -> Result<Self, Refusal> {
        let (number, attributes) = split(payload)?;
        let known = [WORDS, GROUP, COMMAND, VERSION, WHICH, DEVICE, RDMA_CHANGE, PORT, FRAME, TC_REQUEST];
        let attributes = Attributes::of_request(attributes, &known)?;
        match number {
            PERFORM | RDMA | END if !peer.may_change => Err(Refusal::bare(Errno::PERM)),
            PERFORM => {
                let bytes = attributes.bytes(COMMAND).ok_or(Refusal::missing(COMMAND))?;
                let version = attributes.u32(VERSION)?.ok_or(Refusal::missing(VERSION))?;
                let command = Command::decode(version, bytes);
                let command = command.map_err(|error| Refusal::new(Errno::INVAL, error.to_string()))?;
                Ok(Self::Perform(Box::new(command)))
            }
            VIEW => Ok(Self::View),
            JOIN => Ok(Self::Join(attributes.u32(GROUP)?.ok_or(Refusal::missing(GROUP))?)),
            SHARE => Ok(Self::Share),
            NETWORK => Ok(Self::Network(attributes.u32(WHICH)?.ok_or(Refusal::missing(WHICH))?)),
            COUNTERS => {
                let device = attributes.text(DEVICE)?.ok_or(Refusal::missing(DEVICE))?;
                let device = device.parse().map_err(|error: ParseError| Refusal::new(Errno::INVAL, error.to_string()));
                Ok(Self::Counters(device?))
            }
            RDMA => {
                let change = attributes.bytes(RDMA_CHANGE).ok_or(Refusal::missing(RDMA_CHANGE))?;
                let change = serde_json::from_slice(change);
                Ok(Self::Rdma(change.map_err(|error| Refusal::new(Errno::INVAL, error.to_string()))?))
            }
            TRACE => {
                let port = attributes.text(PORT)?.ok_or(Refusal::missing(PORT))?;
                let port = port.parse().map_err(|error: ParseError| Refusal::new(Errno::INVAL, error.to_string()));
                Ok(Self::Trace(port?, attributes.bytes(FRAME).ok_or(Refusal::missing(FRAME))?))
            }
            TC => {
                let request = attributes.bytes(TC_REQUEST).ok_or(Refusal::missing(TC_REQUEST))?;
                let request: ::tc::Request =
                    serde_json::from_slice(request).map_err(|error| Refusal::new(Errno::INVAL, error.to_string()))?;
                if request.verb.changes() && !peer.may_change {
                    return Err(Refusal::bare(Errno::PERM));
                }
                Ok(Self::Tc(Box::new(request)))
            }
            RULES => Ok(Self::Rules),
            DROPS => Ok(Self::Drops),
            SAMPLE_GROUPS => Ok(Self::SampleGroups),
            STATUS => Ok(Self::Status),
            END => Ok(Self::End(attributes.text(WORDS)?.ok_or(Refusal::missing(WORDS))?)),
            _ => Err(Refusal::bare(Errno::OPNOTSUPP)),
        }
    }

    /// Carries the request out and answers it.
    pub fn answer(
        &self,
        served: &Served,
        cx: Cx<'_, '_>,
        peer: &Peer,
        reply: &mut ReplyWriter<'_>,
    ) -> Result<(), Refusal> {
        match self {
            Self::Perform(command) => {
                let core_loads = served.card.engine().core_loads();
                let outcome = perform(served, cx, command, reply);
                carried_out::card_command(served, cx, command, core_loads, outcome)
            }
            Self::View => {
                let view = served.view(cx);
                add_pieces(VIEW, &json(&*view)?, reply);
                Ok(())
            }
            Self::Join(CONFIG_GROUP) => {
                peer.joined.store(true, Ordering::Relaxed);
                Ok(())
            }
            Self::Join(SAMPLES_GROUP) => served.sampling.join(cx, served.card.engine(), peer),
            Self::Join(SAMPLE_GROUPS_GROUP) => {
                peer.joined_sample_groups.store(true, Ordering::Relaxed);
                Ok(())
            }
            Self::Join(FILTERS_GROUP) => {
                peer.joined_filters.store(true, Ordering::Relaxed);
                Ok(())
            }
            Self::Join(_) => Err(Refusal::bare(Errno::NOENT)),
            Self::Share => {
                let file = served.share_view(cx);
                let cannot = |error| Refusal::new(Errno::IO, format!("the view cannot be shared: {error}"));
                reply.attach(file.map_err(cannot)?);
                reply.add(SHARE, |_| {});
                Ok(())
            }
            Self::Network(which) => {
                reply.attach(network(served, *which)?);
                reply.add(NETWORK, |_| {});
                Ok(())
            }
            Self::Counters(device) => {
                let counters = served.card.engine().vf_counters(cx, *device)?;
                add_pieces(COUNTERS, &json(&counters)?, reply);
                Ok(())
            }
            Self::Rdma(change) => {
                let network = reply.received();
                let outcome = served.change_rdma(cx, change, network.as_ref());
                carried_out::rdma_change(served, cx, change, outcome)
            }
            Self::Trace(port, frame) => {
                let lines = trace(served, cx, *port, frame)?;
                add_pieces(TRACE, lines.join("\n").as_bytes(), reply);
                Ok(())
            }
            Self::Tc(request) => {
                let at = At { engine: served.card.engine(), host: served.host.as_deref() };
                let answer = served.tc.answer(cx, at, (**request).clone());
                add_pieces(TC, &json(&answer)?, reply);
                for event in Event::all_of(request, &answer) {
                    reply.notify_of_filter(&json(&event)?);
                }
                Ok(())
            }
            Self::Rules => {
                add_pieces(RULES, rules(served, cx).join("\n").as_bytes(), reply);
                Ok(())
            }
            Self::Drops => {
                let engine = served.card.engine();
                let lines = shown::drops(engine.config(), &engine.flow_drops(cx));
                add_pieces(DROPS, lines.join("\n").as_bytes(), reply);
                Ok(())
            }
            Self::SampleGroups => {
                add_pieces(SAMPLE_GROUPS, &json(&served.sampling.groups(cx, served))?, reply);
                Ok(())
            }
            Self::Status => {
                add_pieces(STATUS, host(served)?.status(cx).as_bytes(), reply);
                Ok(())
            }
            Self::End(how) => host(served)?.end(cx, how),
        }
    }

    /// What of the view the request may have changed.
    pub fn touched(&self, card: &CardConfig) -> Touched {
        match self {
            Self::Perform(command) => command.touches_view(card),
            Self::View
            | Self::Join(_)
            | Self::Share
            | Self::Network(_)
            | Self::Counters(_)
            | Self::Rdma(_)
            | Self::Trace(..)
            | Self::Tc(_)
            | Self::Rules
            | Self::Drops
            | Self::SampleGroups
            | Self::Status
            | Self::End(_) => Touched::Nothing,
        }
    }
}

fn network(served: &Served, which: u32) -> Result<OwnedFd, Refusal> {
    let netdevs = served.netdevs.as_ref().ok_or_else(|| Refusal::unsupported("this card has no netdevs"))?;
    let opened = match which {
        INSIDE => netdevs.network(),
        HOME => netdevs.home(),
        _ => return Err(Refusal::bare(Errno::INVAL)),
    };
    opened.map_err(|error| Refusal::new(Errno::IO, error.to_string()))
}

/// The flow rules of all E-Switches, in lines.
fn rules(served: &Served, cx: Cx<'_, '_>) -> Vec<String> {
    let engine = served.card.engine();
    let now = engine.flow_clock().unwrap_or_default();
    let mut lines = Vec::new();
    for pf in (0..engine.config().pfs).map(PfIndex) {
        let rules = engine.flow_rules(cx, pf);
        let ids: Vec<RuleId> = rules.iter().map(|(id, _)| *id).collect();
        let counters = engine.flow_counters(cx, &ids);
        lines.extend(shown::filters(engine.config(), &rules, Some(&counters), now));
    }
    lines
}

/// What the rules would do with a frame, in lines.
fn trace(served: &Served, cx: Cx<'_, '_>, port: PortHandle, frame: &[u8]) -> Result<Vec<String>, Refusal> {
    let engine = served.card.engine();
    // Nobody sends frames into the ports of a card in memory that a program serves, so what they change is the same at
    // any time. Another card's state cannot be copied.
    let traced = engine.trace_frame(cx, port, Duration::ZERO, frame);
    let traced = traced.map_err(|error| Refusal::new(errno_of(error.errno()), error.to_string()))?;
    Ok(shown::trace(engine.config(), frame, &traced))
}

fn host(served: &Served) -> Result<&dyn Host, Refusal> {
    served
        .host
        .as_deref()
        .ok_or_else(|| Refusal::unsupported("the program that runs this card does not answer requests about itself"))
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::new(Errno::IO, error.to_string()))
}

fn add_pieces(command: u8, bytes: &[u8], reply: &mut ReplyWriter<'_>) {
    for piece in bytes.chunks(PIECE_MAX) {
        reply.add(command, |to| {
            to.put(PIECE, piece);
        });
    }
}

/// Forgets the settings of the instances that a command has unmade.
fn forget_settings(served: &Served, cx: Cx<'_, '_>, command: &Command) {
    let config = served.card.engine().config();
    let vfs_of = |pf: PciAddress, address| config.vf_at(address).is_some_and(|(of, _)| config.pf_address(of) == pf);
    let gone: Box<dyn Fn(DeviceName) -> bool> = match *command {
        Command::Unbind(device) | Command::Remove(device) => Box::new(move |name| {
            // The number of an SF is never given again.
            matches!(name, DeviceName::Pci(address) if address == device || vfs_of(device, address))
        }),
        Command::SetNumVfs { device, .. } => {
            Box::new(move |name| matches!(name, DeviceName::Pci(address) if vfs_of(device, address)))
        }
        Command::SetSfBound { id, bound: false } => {
            Box::new(move |name| name == DeviceName::Auxiliary(AuxiliaryName::Sf { id }))
        }
        Command::UnloadModule(ref module) if module == eswitch::module::CORE => Box::new(|_| true),
        _ => return,
    };
    served.settings.forget(cx, gone);
}

fn perform(served: &Served, cx: Cx<'_, '_>, command: &Command, reply: &mut ReplyWriter<'_>) -> Result<(), Refusal> {
    let done = served.card.carry_out(cx, command);
    if done.is_ok() {
        forget_settings(served, cx, command);
    }
    match done {
        Ok(Reply::Done) => Ok(()),
        Ok(more) => {
            reply.add(PERFORM, |to| {
                to.put(REPLY, &more.encode());
            });
            Ok(())
        }
        Err(Failure::Engine(error)) => Err(error.into()),
        Err(error) => Err(Refusal::new(Errno::IO, error.to_string())),
    }
}
