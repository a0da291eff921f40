//! Steps: what a thread of a story does, in the words people type at a shell.

mod ip;
mod sysfs;

use std::time::Duration;

use control::{Command, EswitchOption, MAX_FLAP};
use eswitch::card::{Fault, ResourceKind};
use eswitch::devlink::InlineMode;
use eswitch::lag::BondPlan;
use eswitch::{CardConfig, FunctionChange, MacAddr, Mode, PciAddress, PfIndex, PortHandle, SfNum, Vport};

use crate::expectation::Expectation;
use crate::place::Place;
use crate::words::{WordError, Words};

/// One step of a story.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// As it was written.
    pub text: String,
    /// Where it was written.
    pub place: Place,
    /// What to do.
    pub action: Action,
    /// What must come of it.
    pub expected: Expected,
}

/// What must come of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Expected {
    /// It succeeds.
    #[default]
    Success,
    /// It fails with this error name (`EBUSY`), or with an error that contains this text.
    Failure(String),
    /// In a race that either may lose: whatever comes.
    Either,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// `devlink dev show`.
    ShowDevices,
    /// `devlink dev eswitch show DEV`.
    ShowEswitch(PciAddress),
    /// `devlink port show`, of one port or all.
    ShowPorts(Option<PortHandle>),
    /// A command to the card.
    Command(Command),
    /// Any program, among the card's netdevs.
    Program(String),
    /// The threads that name this barrier go on together.
    Sync(String),
    /// Time passes.
    Sleep(Duration),
    /// The queues are at rest.
    WaitRest {
        /// Nothing is left to be tried again, too.
        retries: bool,
    },
    /// Something holds.
    WaitUntil(Expectation),
    /// Something must hold now.
    Expect(Expectation),
    /// The same so many times.
    Repeat(u32, Box<Action>),
}

impl From<Command> for Action {
    fn from(command: Command) -> Self {
        Self::Command(command)
    }
}

/// Programs that need no `!` before them.
const PROGRAMS: [&str; 6] = ["ip", "bridge", "tc", "ping", "sysctl", "sh"];

/// The first words of the other steps.
const VERBS: [&str; 14] = [
    "devlink", "echo", "modprobe", "insmod", "rmmod", "host", "bond", "fail", "delay", "sync", "sleep", "wait",
    "expect", "repeat",
];

impl Action {
    /// Reads a step. `card` says what the card's netdevs are called.
    ///
    /// # Errors
    /// At which byte something else was expected, and what.
    pub fn parse(text: &str, card: &CardConfig) -> Result<Self, WordError> {
        let mut words = Words::new(text);
        // A program may be a script of several lines; what is done to a card is a line.
        let first = words.peek().unwrap_or_default();
        let may_be_program = first.starts_with('!') || PROGRAMS.contains(&first) || first == "repeat";
        words.ensure_shown(if may_be_program { &['\t', '\n'] } else { &['\t'] })?;
        let action = Self::from_words(&mut words, card)?;
        words.end()?;
        if !action.is_program() {
            words.ensure_shown(&['\t'])?;
        }
        Ok(action)
    }

    fn from_words(words: &mut Words<'_>, card: &CardConfig) -> Result<Self, WordError> {
        let first = words.peek().unwrap_or_default();
        if first.starts_with('!') {
            let command = words.rest().trim_start_matches('!').trim().to_owned();
            return if command.is_empty() {
                Err(words.expected("a command after `!`"))
            } else {
                Ok(Self::Program(command))
            };
        }
        if PROGRAMS.contains(&first) {
            if let Some(netns) = ip::pf_netns(words, card) {
                words.rest();
                return Ok(netns.into());
            }
            if let Some((pf, rest)) = ip::pf_vf(words, card) {
                *words = rest;
                return Ok(ip::vf_settings(words, pf)?.into());
            }
            return Ok(Self::Program(words.rest().to_owned()));
        }
        if !VERBS.contains(&first) {
            let all = [&VERBS[..], &PROGRAMS[..]].concat();
            let mut error = words.expected_one_of(&all);
            error.message.push_str(" (any other program is written `!PROGRAM …`)");
            return Err(error);
        }
        Ok(match words.one_of(&VERBS)? {
            "devlink" => devlink(words)?,
            "echo" => sysfs::echo(words)?.into(),
            "modprobe" if words.accept("-r") => Command::UnloadModule(module(words)?).into(),
            "modprobe" => Command::LoadModule(module(words)?).into(),
            "insmod" => Command::InsertModule(module(words)?).into(),
            "rmmod" => Command::UnloadModule(module(words)?).into(),
            "host" => {
                let device = pci_address(words)?;
                words.literal("sriov_numvfs")?;
                Command::SetHostVfs { device, number: words.parse("a number of VFs")? }.into()
            }
            "bond" => bond(words)?.into(),
            "fail" => fail(words)?.into(),
            "delay" => delay(words)?.into(),
            "sync" => Self::Sync(words.next("the name of a barrier")?.1.to_owned()),
            "sleep" => Self::Sleep(words.duration()?),
            "wait" => match words.one_of(&["settled", "retries", "until"])? {
                "settled" => Self::WaitRest { retries: false },
                "retries" => Self::WaitRest { retries: true },
                _ => Self::WaitUntil(Expectation::from_words(words)?),
            },
            "expect" => Self::Expect(Expectation::from_words(words)?),
            _ => repeat(words, card)?,
        })
    }

    /// Every barrier it comes to, in order.
    pub(crate) fn barriers(&self) -> Vec<&str> {
        match self {
            Self::Sync(name) => vec![name],
            Self::Repeat(n, action) => action.barriers().repeat(*n as usize),
            _ => Vec::new(),
        }
    }

    /// The text of the event it asks for, if it asks for one.
    pub(crate) fn asked_event(&self) -> Option<&str> {
        match self {
            Self::WaitUntil(expectation) | Self::Expect(expectation) => expectation.asked_event(),
            Self::Repeat(_, action) => action.asked_event(),
            _ => None,
        }
    }

    /// Whether it runs a program.
    pub(crate) fn is_program(&self) -> bool {
        match self {
            Self::Program(_) => true,
            Self::Repeat(_, action) => action.is_program(),
            _ => false,
        }
    }
}

fn module(words: &mut Words<'_>) -> Result<String, WordError> {
    Ok(words.next("the name of a module")?.1.to_owned())
}

fn repeat(words: &mut Words<'_>, card: &CardConfig) -> Result<Action, WordError> {
    const EXPECTED: &str = "how often, followed by a colon, such as `10:`";
    let (at, word) = words.next(EXPECTED)?;
    let times = word.strip_suffix(':').and_then(|n| n.parse().ok());
    let times = times
        .filter(|n| (1..=100_000).contains(n))
        .ok_or_else(|| WordError { at, message: format!("expected {EXPECTED}, from 1 to 100000, found `{word}`") })?;
    // Each would be read, told and counted within the one before: a line of them would take any stack and any time.
    if words.peek() == Some("repeat") {
        return Err(words.expected("a step that is to be repeated, which cannot be `repeat` again"));
    }
    Ok(Action::Repeat(times, Box::new(Action::from_words(words, card)?)))
}

fn devlink(words: &mut Words<'_>) -> Result<Action, WordError> {
    match words.one_of(&["dev", "port"])? {
        "dev" => match words.one_of(&["show", "eswitch", "reload", "param"])? {
            "show" => Ok(Action::ShowDevices),
            "param" => Ok(param_set(words)?.into()),
            "reload" => Ok(Command::Reload(device(words)?).into()),
            _ => match words.one_of(&["show", "set"])? {
                "show" => Ok(Action::ShowEswitch(device(words)?)),
                _ => Ok(eswitch_set(words)?.into()),
            },
        },
        _ => match words.one_of(&["show", "add", "del", "function"])? {
            "show" => match words.peek() {
                None => Ok(Action::ShowPorts(None)),
                Some(_) => Ok(Action::ShowPorts(Some(port(words)?))),
            },
            "add" => Ok(port_add(words)?.into()),
            "del" => Ok(Command::DeletePort(port(words)?).into()),
            _ => {
                words.literal("set")?;
                Ok(function_set(words)?.into())
            }
        },
    }
}

fn eswitch_set(words: &mut Words<'_>) -> Result<Command, WordError> {
    let device = device(words)?;
    let (mut mode, mut inline, mut encap) = (None, None, None);
    while words.peek().is_some() || (mode.is_none() && inline.is_none() && encap.is_none()) {
        match words.one_of(&["mode", "inline-mode", "encap-mode"])? {
            "mode" => {
                mode = Some(match words.one_of(&["legacy", "switchdev"])? {
                    "legacy" => Mode::Legacy,
                    _ => Mode::Switchdev,
                });
            }
            "inline-mode" => {
                inline = Some(match words.one_of(&["none", "link", "network", "transport"])? {
                    "none" => InlineMode::None,
                    "link" => InlineMode::Link,
                    "network" => InlineMode::Network,
                    _ => InlineMode::Transport,
                });
            }
            _ => encap = Some(words.one_of(&["none", "basic"])? == "basic"),
        }
    }
    let options = mode.map(EswitchOption::Mode).into_iter();
    let options = options.chain(inline.map(EswitchOption::InlineMode));
    let options = options.chain(encap.map(EswitchOption::EncapMode));
    Ok(Command::SetEswitch { device, options: options.collect() })
}

/// `set DEV name esw_multiport value true|false cmode runtime`.
fn param_set(words: &mut Words<'_>) -> Result<Command, WordError> {
    words.literal("set")?;
    let device = device(words)?;
    for word in ["name", "esw_multiport", "value"] {
        words.literal(word)?;
    }
    let value = words.one_of(&["true", "false"])? == "true";
    words.literal("cmode")?;
    words.literal("runtime")?;
    Ok(Command::SetEswMultiport { device, value })
}

/// `NAME mode MODE DEV… [with NETDEV]… [active DEV] [flap N]`, or `NAME del`.
fn bond(words: &mut Words<'_>) -> Result<Command, WordError> {
    let name = words.next("the name of a bond")?.1.to_owned();
    if words.one_of(&["mode", "del"])? == "del" {
        return Ok(Command::DeleteBond(name));
    }
    let modes = ["active-backup", "balance-xor", "802.3ad", "balance-rr", "broadcast", "balance-tlb", "balance-alb"];
    let mode = words.one_of(&modes)?.to_owned();
    let ports = vec![device(words)?];
    let mut plan = BondPlan { name, mode, ports, with: Vec::new(), active: None };
    let mut flap = 0;
    while let Some(word) = words.peek() {
        if word.starts_with("pci/") {
            plan.ports.push(device(words)?);
            continue;
        }
        match words.one_of(&["with", "active", "flap"])? {
            "with" => plan.with.push(words.next("a netdev that is no port of the card")?.1.to_owned()),
            "active" => plan.active = Some(device(words)?),
            _ => {
                let at = words.at();
                flap = words.parse("a number of events")?;
                if flap > MAX_FLAP {
                    return Err(WordError {
                        at,
                        message: format!("expected at most {MAX_FLAP} events, found `{flap}`"),
                    });
                }
            }
        }
    }
    Ok(Command::Bond { plan, flap })
}

fn port_add(words: &mut Words<'_>) -> Result<Command, WordError> {
    let device = device(words)?;
    words.literal("flavour")?;
    words.literal("pcisf")?;
    words.literal("pfnum")?;
    let pfnum = words.parse("the number of the PF")?;
    words.literal("sfnum")?;
    let sfnum = SfNum(words.parse("the number of the SF")?);
    if words.accept("controller") {
        let at = words.at();
        let controller: u32 = words.parse("the number of the controller")?;
        if controller != 0 {
            let message = "expected `controller 0`: SFs of a host's controller are not supported".to_owned();
            return Err(WordError { at, message });
        }
    }
    Ok(Command::AddSf { device, pfnum, sfnum })
}

fn function_set(words: &mut Words<'_>) -> Result<Command, WordError> {
    let port = port(words)?;
    let mut change = FunctionChange::default();
    while words.peek().is_some() || change == FunctionChange::default() {
        match words.one_of(&["hw_addr", "roce", "state"])? {
            "hw_addr" => change.hw_addr = Some(words.parse_saying::<MacAddr>("a MAC address")?),
            "roce" => change.roce = Some(words.one_of(&["enable", "disable"])? == "enable"),
            _ => change.active = Some(words.one_of(&["active", "inactive"])? == "active"),
        }
    }
    Ok(Command::SetFunction { port, change })
}

fn fail(words: &mut Words<'_>) -> Result<Command, WordError> {
    match words.peek() {
        Some("clear") => {
            words.literal("clear")?;
            return Ok(Command::ClearFaults);
        }
        Some("alloc") => {
            words.literal("alloc")?;
            let device = device(words)?;
            words.literal("times")?;
            return Ok(Command::FailAllocations { device, times: words.parse("how often")? });
        }
        _ => {}
    }
    let mut fault = fault(words, 1)?;
    while words.peek().is_some() {
        how_often(words, &mut fault, &[])?;
    }
    Ok(Command::AddFault(fault))
}

fn delay(words: &mut Words<'_>) -> Result<Command, WordError> {
    let mut fault = fault(words, u32::MAX)?;
    while words.peek().is_some_and(|word| word != "for") {
        how_often(words, &mut fault, &["for"])?;
    }
    words.literal("for")?;
    fault.delay = Some(words.duration()?);
    Ok(Command::AddFault(fault))
}

/// `KIND [pf N] [uplink|hpf|vf N|sf N]`.
fn fault(words: &mut Words<'_>, times: u32) -> Result<Fault, WordError> {
    let kinds = ["eth", "ib", "port", "fdb", "netdev", "ibdev", "function", "lag", "metadata", "pair"];
    let kind: Result<ResourceKind, _> = words.peek().unwrap_or_default().parse();
    let Ok(kind) = kind else {
        return Err(words.expected_one_of(&[&kinds[..], &["alloc", "clear"]].concat()));
    };
    words.one_of(&kinds)?;
    let pf = match words.accept("pf") {
        true => Some(PfIndex(words.parse("the PF's place on the card, from 0")?)),
        false => None,
    };
    let vport = match words.peek() {
        Some("uplink") => Some(Vport::Uplink),
        Some("hpf") => Some(Vport::HostPf),
        Some("vf") => Some(Vport::Vf(0)),
        Some("sf") => Some(Vport::Sf(0)),
        _ => None,
    };
    let vport = match vport {
        None => None,
        Some(vport) => {
            words.next("a vport")?;
            Some(match vport {
                Vport::Vf(_) => Vport::Vf(words.parse("the VF's number, from 0")?),
                Vport::Sf(_) => Vport::Sf(words.parse("the SF's place, from 0")?),
                other => other,
            })
        }
    };
    Ok(Fault { kind, pf, vport, after: 0, times, delay: None })
}

/// `after N`, `times N` or `always`, which may be written `times always`. `next`: what may stand here instead.
fn how_often(words: &mut Words<'_>, fault: &mut Fault, next: &[&'static str]) -> Result<(), WordError> {
    let mut all = vec!["after", "times", "always"];
    if fault.vport.is_none() {
        all.extend(["uplink", "hpf", "vf", "sf"]);
        if fault.pf.is_none() {
            all.push("pf");
        }
    }
    all.extend(next);
    match words.peek() {
        Some("after") => {
            words.literal("after")?;
            fault.after = words.parse("how many pass before the first that fails")?;
        }
        Some("times") => {
            words.literal("times")?;
            fault.times = match words.accept("always") {
                true => u32::MAX,
                false => words.parse("how often, or `always`")?,
            };
        }
        Some("always") => {
            words.literal("always")?;
            fault.times = u32::MAX;
        }
        _ => return Err(words.expected_one_of(&all)),
    }
    Ok(())
}

/// `pci/0000:08:00.0`.
pub(crate) fn device(words: &mut Words<'_>) -> Result<PciAddress, WordError> {
    const EXPECTED: &str = "a device such as pci/0000:08:00.0";
    let (at, word) = words.next(EXPECTED)?;
    let address = word.strip_prefix("pci/").and_then(|address| address.parse().ok());
    address.ok_or_else(|| WordError { at, message: format!("expected {EXPECTED}, found `{word}`") })
}

/// `pci/0000:08:00.0/1`.
pub(crate) fn port(words: &mut Words<'_>) -> Result<PortHandle, WordError> {
    words.parse("a port such as pci/0000:08:00.0/1")
}

pub(crate) fn pci_address(words: &mut Words<'_>) -> Result<PciAddress, WordError> {
    words.parse("a PCI address such as 0000:08:00.0")
}
