//! Expectations: statements about a card that hold or do not hold.

use eswitch::auxiliary::AuxiliaryName;
use eswitch::lag::LagMode;
use eswitch::{Mode, PciAddress, PortHandle, RepType};

use control::WordError;
use control::grammar::{device, port};
use control::reader::Words;

/// A statement about a card.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Expectation {
    Mode(PciAddress, Mode),
    Rep(PortHandle, RepType, &'static str),
    /// This number of a PF's representors of a type is in that state.
    Reps(PciAddress, RepType, &'static str, usize),
    Vfs(PciAddress, u16),
    /// The E-Switch of a PF has this number of flow rules.
    Rules(PciAddress, usize),
    /// A module is loaded, or is not.
    Module(String, bool),
    Aux(AuxiliaryName, AuxState),
    Sf(PortHandle, SfExpectation),
    /// A port exists, or does not.
    Port(PortHandle, bool),
    /// A netdev of that name exists, or does not.
    Netdev(String, bool),
    /// A PF is bound to its driver, or is not.
    Bound(PciAddress, bool),
    /// The mode of the card's LAG.
    Lag(LagMode),
    /// There is no LAG although there is a bond, and the reason contains this text.
    LagReason(String),
    /// An event whose text contains this has happened, or has not.
    Event(String, bool),
}

/// The state of an auxiliary device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AuxState {
    Bound,
    Unbound,
    Absent,
}

/// The expected states of an SF; `None`: any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SfExpectation {
    /// `active` rather than `inactive`.
    pub active: Option<bool>,
    /// `attached` rather than `detached`.
    pub attached: Option<bool>,
}

/// The first words of expectations.
const SUBJECTS: [&str; 15] = [
    "mode", "rep", "reps", "vfs", "rules", "lag", "module", "aux", "sf", "port", "netdev", "bound", "unbound", "event",
    "no",
];

const REP_STATES: [&str; 4] = ["loaded", "registered", "unregistered", "failed"];

impl Expectation {
    /// The text of the event that the expectation is about, if it is about one.
    pub(crate) fn event_text(&self) -> Option<&str> {
        match self {
            Self::Event(text, _) => Some(text),
            _ => None,
        }
    }

    /// Reads an expectation.
    ///
    /// # Errors
    /// At which byte something else was expected, and what.
    pub fn parse(text: &str) -> Result<Self, WordError> {
        let mut words = Words::new(text);
        words.ensure_shown(&['\t'])?;
        let expectation = Self::from_words(&mut words)?;
        words.end()?;
        Ok(expectation)
    }

    pub(crate) fn from_words(words: &mut Words<'_>) -> Result<Self, WordError> {
        let presence = |words: &mut Words<'_>| Ok(words.one_of(&["present", "absent"])? == "present");
        Ok(match words.one_of(&SUBJECTS)? {
            "mode" => {
                let device = device(words)?;
                Self::Mode(
                    device,
                    match words.one_of(&["legacy", "switchdev"])? {
                        "legacy" => Mode::Legacy,
                        _ => Mode::Switchdev,
                    },
                )
            }
            "rep" => Self::Rep(port(words)?, rep_type(words)?, words.one_of(&REP_STATES)?),
            "reps" => {
                Self::Reps(device(words)?, rep_type(words)?, words.one_of(&REP_STATES)?, words.parse("how many")?)
            }
            "vfs" => Self::Vfs(device(words)?, words.parse("a number of VFs")?),
            "rules" => Self::Rules(device(words)?, words.parse("a number of rules")?),
            "lag" => match words.one_of(&["none", "roce", "vf", "shared-fdb", "mpesw", "reason"])? {
                "none" => Self::Lag(LagMode::None),
                "roce" => Self::Lag(LagMode::Roce),
                "vf" => Self::Lag(LagMode::Vf),
                "shared-fdb" => Self::Lag(LagMode::SharedFdb),
                "mpesw" => Self::Lag(LagMode::Mpesw),
                _ => Self::LagReason(event(words)?),
            },
            "module" => {
                let (at, name) = words.next("the name of a module")?;
                if eswitch::module::find(name).is_none() {
                    let known = eswitch::module::known();
                    let message = format!("expected a module of the card ({known}), found `{name}`");
                    return Err(WordError { at, message });
                }
                Self::Module(name.to_owned(), words.one_of(&["loaded", "absent"])? == "loaded")
            }
            "aux" => Self::Aux(
                auxiliary(words)?,
                match words.one_of(&["bound", "unbound", "absent"])? {
                    "bound" => AuxState::Bound,
                    "unbound" => AuxState::Unbound,
                    _ => AuxState::Absent,
                },
            ),
            "sf" => Self::Sf(port(words)?, sf(words)?),
            "port" => Self::Port(port(words)?, presence(words)?),
            "netdev" => Self::Netdev(words.next("the name of a netdev")?.1.to_owned(), presence(words)?),
            "bound" => Self::Bound(device(words)?, true),
            "unbound" => Self::Bound(device(words)?, false),
            "event" => Self::Event(event(words)?, true),
            _ => {
                words.literal("event")?;
                Self::Event(event(words)?, false)
            }
        })
    }
}

fn rep_type(words: &mut Words<'_>) -> Result<RepType, WordError> {
    Ok(match words.one_of(&["eth", "ib"])? {
        "eth" => RepType::Eth,
        _ => RepType::Ib,
    })
}

/// `mlx5_core.rdma-rep.0`.
fn auxiliary(words: &mut Words<'_>) -> Result<AuxiliaryName, WordError> {
    const EXPECTED: &str = "an auxiliary device such as mlx5_core.rdma-rep.0";
    let (at, name) = words.next(EXPECTED)?;
    match name.parse() {
        Ok(name @ AuxiliaryName::Part { .. }) => Ok(name),
        _ => Err(WordError { at, message: format!("expected {EXPECTED}, found `{name}`") }),
    }
}

fn sf(words: &mut Words<'_>) -> Result<SfExpectation, WordError> {
    let mut expected = SfExpectation::default();
    while words.peek().is_some() || expected == SfExpectation::default() {
        match words.one_of(&["active", "inactive", "attached", "detached"])? {
            "active" => expected.active = Some(true),
            "inactive" => expected.active = Some(false),
            "attached" => expected.attached = Some(true),
            _ => expected.attached = Some(false),
        }
    }
    Ok(expected)
}

fn event(words: &mut Words<'_>) -> Result<String, WordError> {
    match words.peek() {
        Some(_) => Ok(words.rest().to_owned()),
        None => Err(words.expected("text that the event contains")),
    }
}
