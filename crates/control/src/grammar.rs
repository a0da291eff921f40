//! The grammar of commands and queries, for prompts, scenario files and `esw dev`.
//!
//! The words are those of the programs that people know: devlink(8), modprobe(8), `echo` into a file of sysfs,
//! `ip link set`. [`in_words`](Command::in_words) writes what is read here.

mod ip;
mod sysfs;
pub(crate) mod tc;

use eswitch::card::{Fault, ResourceKind};
use eswitch::lag::BondPlan;
use eswitch::{CardConfig, PciAddress, PfIndex, PortHandle, Vport};

use crate::command::{Command, MAX_FLAP};
use crate::devlink;
use crate::query::{Query, Request};
use crate::reader::{WordError, Words};

impl Request {
    /// The words that a command or query can begin with. Some of `ip link set` are commands, too: see
    /// [`of_program`](Self::of_program).
    pub const FIRST_WORDS: [&str; 10] =
        ["devlink", "echo", "modprobe", "insmod", "rmmod", "host", "bond", "fail", "delay", "trace"];

    /// Reads a command or query that begins with one of [`FIRST_WORDS`](Self::FIRST_WORDS), and takes no more words
    /// than belong to it.
    ///
    /// # Errors
    /// At which byte something else was expected, and what.
    pub fn from_words(words: &mut Words<'_>) -> Result<Self, WordError> {
        Ok(match words.one_of(&Self::FIRST_WORDS)? {
            "devlink" => devlink::request(words)?,
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
            "trace" => Query::Trace { port: port(words)?, frame: frame(words, "")? }.into(),
            _ => delay(words)?.into(),
        })
    }

    /// Reads what a program does to a netdev of the card, if that concerns the engine: `ip link set` for the network
    /// namespace of a PF's netdev and for its VFs, `ip neigh` for next hops, `tc filter` for flow rules. `None`: the words
    /// are about something else, and none is taken. `card` gives the netdevs their names.
    ///
    /// # Errors
    /// The words are about the card, and at some byte something else was expected.
    pub fn of_program(words: &mut Words<'_>, card: &CardConfig) -> Result<Option<Self>, WordError> {
        if let Some(command) = tc::filter(words, card)? {
            return Ok(Some(command.into()));
        }
        if let Some(query) = tc::show(words, card)? {
            return Ok(Some(query.into()));
        }
        if let Some(command) = tc::neighbour(words, card) {
            return Ok(Some(command.into()));
        }
        if let Some(command) = ip::pf_netns(words, card) {
            words.rest();
            return Ok(Some(command.into()));
        }
        let Some((pf, rest)) = ip::pf_vf(words, card) else { return Ok(None) };
        *words = rest;
        Ok(Some(ip::vf_settings(words, pf)?.into()))
    }
}

fn module(words: &mut Words<'_>) -> Result<String, WordError> {
    Ok(words.next("the name of a module")?.1.to_owned())
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

/// `after N`, `times N` or `always`, which may be written `times always`. `next` are further words that are expected here,
/// for the error.
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

/// Reads a PF's devlink instance: `pci/0000:08:00.0`.
///
/// # Errors
/// The next word is none.
pub fn device(words: &mut Words<'_>) -> Result<PciAddress, WordError> {
    const EXPECTED: &str = "a device such as pci/0000:08:00.0";
    let (at, word) = words.next(EXPECTED)?;
    let address = word.strip_prefix("pci/").and_then(|address| address.parse().ok());
    address.ok_or_else(|| WordError { at, message: format!("expected {EXPECTED}, found `{word}`") })
}

/// Reads a devlink port: `pci/0000:08:00.0/1`.
///
/// # Errors
/// The next word is none.
pub fn port(words: &mut Words<'_>) -> Result<PortHandle, WordError> {
    words.parse("a port such as pci/0000:08:00.0/1")
}

/// Reads a frame in the words of [`flow::words::frame`], such as `ip dst 10.0.0.2 / tcp dport 80`, up to the word `end`
/// or to the end of the text.
///
/// # Errors
/// At which byte the word is that is wrong, and what would be right.
pub fn frame(words: &mut Words<'_>, end: &str) -> Result<Vec<u8>, WordError> {
    const EXPECTED: &str = "a frame such as `ip dst 10.0.0.2 / tcp dport 80` or `hex 0200...`";
    if words.peek().is_none_or(|word| word == end) {
        return Err(words.expected(EXPECTED));
    }
    let (at, text) = words.before(end);
    flow::words::frame(text).map_err(|error| of_flow(at, text, error))
}

/// An error of [`flow::words`] about a text that starts at byte `at`.
pub(crate) fn of_flow(at: usize, text: &str, error: flow::words::WordError) -> WordError {
    let nth = text.split_whitespace().nth(error.place.saturating_sub(1));
    let inside = nth.map_or(text.len(), |word| word.as_ptr().addr() - text.as_ptr().addr());
    WordError { at: at + inside, message: error.why }
}

/// Reads the address of a PCI function: `0000:08:00.0`.
///
/// # Errors
/// The next word is none.
pub fn pci_address(words: &mut Words<'_>) -> Result<PciAddress, WordError> {
    words.parse("a PCI address such as 0000:08:00.0")
}
