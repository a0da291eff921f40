//! The commands of devlink(8), as values.
//!
//! A [`DevlinkCommand`] can hold every devlink command that a card's control socket answers, and also what a program
//! sends with numbers that nobody has named. It is read from words by [`parse`](DevlinkCommand::parse_arguments), and
//! its [`Display`](fmt::Display) writes the words again. Numbers are those of `linux/devlink.h`.

mod parse;

use std::fmt;

use eswitch::devlink::InlineMode;
use eswitch::{PciAddress, PortHandle};

use crate::command::{Command, EswitchOption};
use crate::query::Query;

pub(crate) use parse::request;
pub use parse::{DevlinkForm, devlink_forms};

/// The names of `enum devlink_eswitch_mode`.
pub const ESWITCH_MODES: [&str; 3] = ["legacy", "switchdev", "switchdev_inactive"];
/// The names of `enum devlink_eswitch_inline_mode`.
pub const INLINE_MODES: [&str; 4] = ["none", "link", "network", "transport"];
/// The names of `enum devlink_eswitch_encap_mode`.
pub const ENCAP_MODES: [&str; 2] = ["none", "basic"];
/// The names of `enum devlink_reload_action`.
pub const RELOAD_ACTIONS: [&str; 3] = ["unspecified", "driver_reinit", "fw_activate"];
/// The names of `enum devlink_param_cmode`.
pub const CONFIGURATION_MODES: [&str; 3] = ["runtime", "driverinit", "permanent"];
/// The names of `enum devlink_port_type`.
pub const PORT_TYPES: [&str; 4] = ["notset", "auto", "eth", "ib"];
/// The names of `enum devlink_port_flavour`.
pub const PORT_FLAVOURS: [&str; 8] = ["physical", "cpu", "dsa", "pcipf", "pcivf", "virtual", "unused", "pcisf"];
/// The names of `enum devlink_port_fn_state`.
pub const FUNCTION_STATES: [&str; 2] = ["inactive", "active"];
/// The names of `enum devlink_port_fn_attr_cap`, by their bits.
pub const FUNCTION_CAPABILITIES: [&str; 4] = ["roce", "migratable", "ipsec_crypto", "ipsec_packet"];

/// The capability `roce`: a bit of `enum devlink_port_fn_attr_cap`.
pub const ROCE: u32 = 0;
/// The flavour of an SF's port.
const PCI_SF: u16 = 7;

/// A command of devlink(8): a verb, the instance or port, and options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevlinkCommand {
    /// What is to be done or shown.
    pub verb: DevlinkVerb,
    /// The instance, port or rate node; `None`: all of them.
    pub handle: Option<DevlinkHandle>,
    /// The options, in the order in which they were given. A parsed command has each once.
    pub options: Vec<DevlinkOption>,
}

/// The object and verb of a devlink command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevlinkVerb {
    /// `dev show`.
    DevShow,
    /// `dev info`.
    DevInfo,
    /// `dev reload`.
    DevReload,
    /// `dev eswitch show`.
    EswitchShow,
    /// `dev eswitch set`.
    EswitchSet,
    /// `dev param show`.
    ParamShow,
    /// `dev param set`.
    ParamSet,
    /// `port show`.
    PortShow,
    /// `port set`. It is written in logs, and cannot be parsed: the engine's ports have a fixed type.
    PortSet,
    /// `port add`.
    PortAdd,
    /// `port del`.
    PortDel,
    /// `port function set`.
    FunctionSet,
    /// `port function rate show`.
    RateShow,
    /// `port function rate set`.
    RateSet,
    /// `port function rate add`.
    RateAdd,
    /// `port function rate del`.
    RateDel,
    /// `health show`.
    HealthShow,
    /// `health diagnose`.
    HealthDiagnose,
    /// `health recover`.
    HealthRecover,
    /// `monitor all`.
    MonitorAll,
    /// `monitor dev`.
    MonitorDev,
    /// `monitor port`.
    MonitorPort,
}

impl DevlinkVerb {
    /// The words of the verb, with its object: `dev eswitch set`.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::DevShow => &["dev", "show"],
            Self::DevInfo => &["dev", "info"],
            Self::DevReload => &["dev", "reload"],
            Self::EswitchShow => &["dev", "eswitch", "show"],
            Self::EswitchSet => &["dev", "eswitch", "set"],
            Self::ParamShow => &["dev", "param", "show"],
            Self::ParamSet => &["dev", "param", "set"],
            Self::PortShow => &["port", "show"],
            Self::PortSet => &["port", "set"],
            Self::PortAdd => &["port", "add"],
            Self::PortDel => &["port", "del"],
            Self::FunctionSet => &["port", "function", "set"],
            Self::RateShow => &["port", "function", "rate", "show"],
            Self::RateSet => &["port", "function", "rate", "set"],
            Self::RateAdd => &["port", "function", "rate", "add"],
            Self::RateDel => &["port", "function", "rate", "del"],
            Self::HealthShow => &["health", "show"],
            Self::HealthDiagnose => &["health", "diagnose"],
            Self::HealthRecover => &["health", "recover"],
            Self::MonitorAll => &["monitor", "all"],
            Self::MonitorDev => &["monitor", "dev"],
            Self::MonitorPort => &["monitor", "port"],
        }
    }
}

/// A devlink instance, a port of it, or a rate node of it: `pci/0000:08:00.0`, `…/1`, `…/gold`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevlinkHandle {
    /// The bus: `pci`, `auxiliary`.
    pub bus: String,
    /// The device's name on the bus: `0000:08:00.0`, `mlx5_core.sf.4`.
    pub device: String,
    /// The port or the rate node.
    pub part: Option<HandlePart>,
}

/// A part of a devlink instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlePart {
    /// The port of this index.
    Port(u32),
    /// The rate node of this name.
    RateNode(String),
}

impl DevlinkHandle {
    /// The handle of a PF's instance.
    fn of_pci(device: PciAddress) -> Self {
        Self { bus: "pci".to_owned(), device: device.to_string(), part: None }
    }

    /// The handle of a port.
    fn of_port(port: PortHandle) -> Self {
        Self { part: Some(HandlePart::Port(port.index.0)), ..Self::of_pci(port.device) }
    }
}

impl fmt::Display for DevlinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bus, self.device)?;
        match &self.part {
            None => Ok(()),
            Some(HandlePart::Port(index)) => write!(f, "/{index}"),
            Some(HandlePart::RateNode(name)) => write!(f, "/{name}"),
        }
    }
}

/// An option of a devlink command, with its value as the protocol has it.
///
/// Those that say so are written in logs and cannot be parsed: the engine has no use for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevlinkOption {
    /// `mode`: one of [`ESWITCH_MODES`].
    Mode(u16),
    /// `inline-mode`: one of [`INLINE_MODES`].
    InlineMode(u8),
    /// `encap-mode`: one of [`ENCAP_MODES`].
    EncapMode(u8),
    /// `netns`: the name of the network namespace.
    Netns(String),
    /// `netns`: a process in the network namespace.
    NetnsPid(u32),
    /// `netns-fd`: a descriptor of the network namespace. Written only.
    NetnsFd(u32),
    /// `netns-id`: the network namespace's number. Written only.
    NetnsId(u32),
    /// `action`: one of [`RELOAD_ACTIONS`].
    ReloadAction(u8),
    /// `limits`: bits of `enum devlink_reload_limit`. Written only.
    ReloadLimits(u32),
    /// `name`: the name of a parameter.
    ParamName(String),
    /// `value`: the value of a parameter.
    ParamValue(ParamValue),
    /// `cmode`: one of [`CONFIGURATION_MODES`].
    ParamCmode(u8),
    /// `type`: one of [`PORT_TYPES`]. Written only.
    PortType(u16),
    /// `flavour`: one of [`PORT_FLAVOURS`].
    Flavour(u16),
    /// `pfnum`: the PF's place on the card, from 0. The protocol has 16 bits for it.
    PfNum(u32),
    /// `sfnum`: the number of an SF.
    SfNum(u32),
    /// `controller`: 0 for the card's own host, 1 for the host of a DPU.
    Controller(u32),
    /// `tx_share`: bytes a second.
    TxShare(u64),
    /// `tx_max`: bytes a second.
    TxMax(u64),
    /// `tx_priority`.
    TxPriority(u32),
    /// `tx_weight`.
    TxWeight(u32),
    /// `parent`: the name of a rate node; empty for none, which can also be typed as `noparent`.
    Parent(String),
    /// `reporter`: the name of a health reporter.
    Reporter(String),
    /// `hw_addr`: a function's MAC address.
    HwAddr(Vec<u8>),
    /// A capability of a function, by its bit: one of [`FUNCTION_CAPABILITIES`].
    Capability(u32, bool),
    /// `state`: one of [`FUNCTION_STATES`].
    State(u8),
}

/// The value of a devlink parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamValue {
    /// Of type flag.
    Flag(bool),
    /// Of type u32.
    Number(u32),
    /// Of type string.
    Text(String),
    /// Of a type that no parameter of the card has. Written only.
    Bytes(Vec<u8>),
}

impl DevlinkOption {
    /// The option's keyword and value, as devlink(8) has them.
    fn words(&self) -> (String, String) {
        let (keyword, value) = match self {
            Self::Mode(mode) => ("mode", name_of(usize::from(*mode), &ESWITCH_MODES)),
            Self::InlineMode(mode) => ("inline-mode", name_of(usize::from(*mode), &INLINE_MODES)),
            Self::EncapMode(mode) => ("encap-mode", name_of(usize::from(*mode), &ENCAP_MODES)),
            Self::Netns(name) => ("netns", text(name)),
            Self::NetnsPid(pid) => ("netns", pid.to_string()),
            Self::NetnsFd(fd) => ("netns-fd", fd.to_string()),
            Self::NetnsId(id) => ("netns-id", id.to_string()),
            Self::ReloadAction(action) => ("action", name_of(usize::from(*action), &RELOAD_ACTIONS)),
            Self::ReloadLimits(limits) => ("limits", format!("{limits:#x}")),
            Self::ParamName(name) => ("name", text(name)),
            Self::ParamValue(ParamValue::Flag(on)) => ("value", on.to_string()),
            Self::ParamValue(ParamValue::Number(value)) => ("value", value.to_string()),
            Self::ParamValue(ParamValue::Text(value)) => ("value", text(value)),
            Self::ParamValue(ParamValue::Bytes(bytes)) => ("value", format!("{bytes:02x?}")),
            Self::ParamCmode(mode) => ("cmode", name_of(usize::from(*mode), &CONFIGURATION_MODES)),
            Self::PortType(kind) => ("type", name_of(usize::from(*kind), &PORT_TYPES)),
            Self::Flavour(flavour) => ("flavour", name_of(usize::from(*flavour), &PORT_FLAVOURS)),
            Self::PfNum(number) => ("pfnum", number.to_string()),
            Self::SfNum(number) => ("sfnum", number.to_string()),
            Self::Controller(number) => ("controller", number.to_string()),
            // In bytes a second, which is what devlink(8) means by `bps`.
            Self::TxShare(rate) => ("tx_share", format!("{rate}bps")),
            Self::TxMax(rate) => ("tx_max", format!("{rate}bps")),
            Self::TxPriority(number) => ("tx_priority", number.to_string()),
            Self::TxWeight(number) => ("tx_weight", number.to_string()),
            Self::Parent(name) => ("parent", text(name)),
            Self::Reporter(name) => ("reporter", text(name)),
            Self::HwAddr(address) => {
                let bytes: Vec<String> = address.iter().map(|byte| format!("{byte:02x}")).collect();
                ("hw_addr", bytes.join(":"))
            }
            Self::Capability(bit, on) => {
                let name = name_of(*bit as usize, &FUNCTION_CAPABILITIES);
                return (name, if *on { "enable" } else { "disable" }.to_owned());
            }
            Self::State(state) => ("state", name_of(usize::from(*state), &FUNCTION_STATES)),
        };
        (keyword.to_owned(), value)
    }
}

/// The name of a number; a number without a name is written as it is.
fn name_of(number: usize, names: &[&str]) -> String {
    names.get(number).map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

/// A text as a word; an empty one has to be seen.
fn text(text: &str) -> String {
    if text.is_empty() { "\"\"".to_owned() } else { text.to_owned() }
}

/// The command as devlink(8) takes it.
impl fmt::Display for DevlinkCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "devlink {}", self.verb.words().join(" "))?;
        if let Some(handle) = &self.handle {
            write!(f, " {handle}")?;
        }
        for option in &self.options {
            let (keyword, value) = option.words();
            write!(f, " {keyword} {value}")?;
        }
        Ok(())
    }
}

impl DevlinkCommand {
    /// A command without options.
    pub fn new(verb: DevlinkVerb, handle: Option<DevlinkHandle>) -> Self {
        Self { verb, handle, options: Vec::new() }
    }

    /// The devlink command that has the effect of a command to a card; `None` if devlink has none for it.
    pub fn from_command(command: &Command) -> Option<Self> {
        let of = |verb, handle, options| Some(Self { verb, handle: Some(handle), options });
        match command {
            Command::SetEswitch { device, options } => {
                let options = options.iter().map(|option| match option {
                    EswitchOption::Mode(mode) => DevlinkOption::Mode(mode.number()),
                    EswitchOption::InlineMode(mode) => DevlinkOption::InlineMode(match mode {
                        InlineMode::None => 0,
                        InlineMode::Link => 1,
                        InlineMode::Network => 2,
                        InlineMode::Transport => 3,
                    }),
                    EswitchOption::EncapMode(basic) => DevlinkOption::EncapMode(u8::from(*basic)),
                });
                of(DevlinkVerb::EswitchSet, DevlinkHandle::of_pci(*device), options.collect())
            }
            Command::Reload(device) => of(DevlinkVerb::DevReload, DevlinkHandle::of_pci(*device), Vec::new()),
            Command::AddSf { device, pfnum, sfnum, controller } => {
                let mut options =
                    vec![DevlinkOption::Flavour(PCI_SF), DevlinkOption::PfNum(*pfnum), DevlinkOption::SfNum(sfnum.0)];
                options.extend((*controller != 0).then_some(DevlinkOption::Controller(*controller)));
                of(DevlinkVerb::PortAdd, DevlinkHandle::of_pci(*device), options)
            }
            Command::DeletePort(port) => of(DevlinkVerb::PortDel, DevlinkHandle::of_port(*port), Vec::new()),
            Command::SetFunction { port, change } => {
                let address = change.hw_addr.map(|address| DevlinkOption::HwAddr(address.0.to_vec()));
                let roce = change.roce.map(|on| DevlinkOption::Capability(ROCE, on));
                let state = change.active.map(|active| DevlinkOption::State(u8::from(active)));
                let options = address.into_iter().chain(roce).chain(state).collect();
                of(DevlinkVerb::FunctionSet, DevlinkHandle::of_port(*port), options)
            }
            Command::SetEswMultiport { device, value } => {
                let name = DevlinkOption::ParamName(ESW_MULTIPORT.to_owned());
                let value = DevlinkOption::ParamValue(ParamValue::Flag(*value));
                let options = vec![name, value, DevlinkOption::ParamCmode(RUNTIME)];
                of(DevlinkVerb::ParamSet, DevlinkHandle::of_pci(*device), options)
            }
            _ => None,
        }
    }

    /// The devlink command that shows what a query asks for; `None` if devlink has none for it.
    pub fn from_query(query: &Query) -> Option<Self> {
        Some(match query {
            Query::Devices(device) => Self::new(DevlinkVerb::DevShow, device.map(DevlinkHandle::of_pci)),
            Query::Eswitch(device) => Self::new(DevlinkVerb::EswitchShow, Some(DevlinkHandle::of_pci(*device))),
            Query::Ports(port) => Self::new(DevlinkVerb::PortShow, port.map(DevlinkHandle::of_port)),
            Query::Filters { .. } | Query::Trace { .. } => return None,
        })
    }
}

/// The parameter that makes a card one multiport E-Switch.
const ESW_MULTIPORT: &str = "esw_multiport";
/// Its configuration mode.
const RUNTIME: u8 = 0;
