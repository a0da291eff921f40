//! The state that a card must have, by the checker's own record of the acknowledged changes; and the state that it has, by
//! the answers on the control socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use serde_json::Value;

use super::random::Random;
use super::wire::{Attributes, Client, Family, NoAnswer, each, find, message, number, text};

/// Commands and attributes of `linux/devlink.h`.
mod devlink {
    pub const PORT_GET: u8 = 5;
    pub const PORT_SET: u8 = 6;
    pub const PORT_NEW: u8 = 7;
    pub const PORT_DEL: u8 = 8;
    pub const ESWITCH_GET: u8 = 29;
    pub const ESWITCH_SET: u8 = 30;
    pub const PARAM_GET: u8 = 38;
    pub const PARAM_SET: u8 = 39;
    pub const RATE_GET: u8 = 74;
    pub const RATE_SET: u8 = 75;
    pub const RATE_NEW: u8 = 76;
    pub const RATE_DEL: u8 = 77;

    pub const BUS_NAME: u16 = 1;
    pub const DEV_NAME: u16 = 2;
    pub const PORT_INDEX: u16 = 3;
    pub const NETDEV_IFINDEX: u16 = 6;
    pub const NETDEV_NAME: u16 = 7;
    pub const ESWITCH_MODE: u16 = 25;
    pub const FLAVOUR: u16 = 77;
    pub const PARAM: u16 = 80;
    pub const PARAM_NAME: u16 = 81;
    pub const PARAM_TYPE: u16 = 83;
    pub const PARAM_VALUES: u16 = 84;
    pub const PARAM_VALUE: u16 = 85;
    pub const PARAM_DATA: u16 = 86;
    pub const PARAM_CMODE: u16 = 87;
    pub const PF_NUMBER: u16 = 127;
    pub const VF_NUMBER: u16 = 128;
    pub const FUNCTION: u16 = 145;
    pub const SF_NUMBER: u16 = 164;
    pub const RATE_TYPE: u16 = 165;
    pub const TX_SHARE: u16 = 166;
    pub const TX_MAX: u16 = 167;
    pub const NODE_NAME: u16 = 168;
    pub const PARENT_NAME: u16 = 169;

    pub const FUNCTION_ADDRESS: u16 = 1;
    pub const FUNCTION_STATE: u16 = 2;

    pub const PHYSICAL: u64 = 0;
    pub const PCI_VF: u64 = 4;
    pub const PCI_SF: u64 = 7;
    /// NLA_FLAG, as the type of a parameter.
    pub const FLAG: u8 = 6;
    pub const RUNTIME: u8 = 0;
}

/// Commands of the product's own generic netlink family.
pub mod eswitch {
    /// Executes a command in JSON; takes the command and the version of its encoding.
    pub const PERFORM: u8 = 1;
    /// Returns the whole state in JSON, in pieces.
    pub const VIEW: u8 = 2;
    /// Ends the daemon.
    pub const END: u8 = 17;
    /// The attribute with the text of an error.
    pub const WORDS: u16 = 1;
    /// The attribute with a command.
    pub const COMMAND: u16 = 5;
    /// The attribute with the version of the command's encoding.
    pub const VERSION: u16 = 6;
    /// The attribute with a piece of the state.
    pub const PIECE: u16 = 3;
}

/// The card's address, which is PF 0. PF 1 has function 1.
pub const ADDRESS: &str = "0000:08:00.0";
/// PF 1.
pub const OTHER: &str = "0000:08:00.1";
/// The number of VFs of PF 0, which stay; those of PF 1 are added and removed.
pub const VFS: u16 = 4;
/// The keys of `[cards.a]` for these cards, except for the kind.
pub const CONFIG: &str = "[cards.a.card]\npfs = 2\ntotal_vfs = 8\nvfs = 4\nmode = \"switchdev\"\n";
/// The PF's netdevs.
const PF_NETDEVS: [&str; 2] = ["enp8s0f0np0", "enp8s0f1np1"];

/// A function behind a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// The port's index; 0 as long as it is not known.
    pub index: u32,
    /// Its MAC address.
    pub address: [u8; 6],
    /// For an SF, whether it is active.
    pub active: bool,
}

/// A rate: bytes per second, and its parent node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// The maximum, in bytes per second.
    pub max: u64,
    /// Its parent.
    pub parent: Option<String>,
}

/// A card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The loaded modules.
    pub modules: BTreeSet<String>,
    /// Whether each PF is in switchdev mode.
    pub switchdev: [bool; 2],
    /// The number of VFs of each PF.
    pub vfs: [u16; 2],
    /// The parameter `esw_port_metadata` of each PF.
    pub metadata: [bool; 2],
    /// The parameter `esw_multiport`.
    pub multiport: bool,
    /// VFs of PF 0.
    pub vf: BTreeMap<u32, Function>,
    /// SFs of PF 0, by `sfnum`.
    pub sf: BTreeMap<u32, Function>,
    /// The rates of VFs of PF 0 that differ from the default, by VF.
    pub leaves: BTreeMap<u32, Rate>,
    /// Rate nodes of PF 0.
    pub nodes: BTreeMap<String, Rate>,
}

/// A netdev as devlink reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// Its interface index; `None` for a card in memory.
    pub ifindex: Option<u32>,
}

fn device(name: &str) -> Attributes {
    Attributes::default().text(devlink::BUS_NAME, "pci").text(devlink::DEV_NAME, name)
}

fn port(index: u32) -> Attributes {
    device(ADDRESS).put(devlink::PORT_INDEX, &index.to_ne_bytes())
}

/// Queries the state of the card, and the netdevs of its ports.
pub fn observe(client: &mut Client) -> Result<(State, Vec<Told>), NoAnswer> {
    let mut state = State::default();
    let mut netdevs = Vec::new();
    for (n, name) in [ADDRESS, OTHER].into_iter().enumerate() {
        let answers = client.ask(Family::Devlink, devlink::ESWITCH_GET, &device(name))?;
        state.switchdev[n] = answers.iter().any(|answer| number(answer, devlink::ESWITCH_MODE) == Some(1));
        state.metadata[n] = flag(client, name, "esw_port_metadata")?;
    }
    state.multiport = flag(client, ADDRESS, "esw_multiport")?;
    for answer in client.dump(Family::Devlink, devlink::PORT_GET)? {
        if let Some(name) = text(&answer, devlink::NETDEV_NAME) {
            let ifindex = number(&answer, devlink::NETDEV_IFINDEX).map(|index| index as u32);
            netdevs.push(Told { name, ifindex });
        }
        let flavour = number(&answer, devlink::FLAVOUR);
        if flavour == Some(devlink::PHYSICAL) || number(&answer, devlink::PF_NUMBER) != Some(0) {
            continue;
        }
        let inner = find(&answer, devlink::FUNCTION).unwrap_or_default();
        let function = Function {
            index: number(&answer, devlink::PORT_INDEX).unwrap_or(0) as u32,
            address: find(inner, devlink::FUNCTION_ADDRESS).and_then(|mac| mac.try_into().ok()).unwrap_or_default(),
            active: number(inner, devlink::FUNCTION_STATE) == Some(1),
        };
        match flavour {
            Some(devlink::PCI_VF) => {
                let vf = number(&answer, devlink::VF_NUMBER).unwrap_or(0) as u32;
                state.vf.insert(vf, function);
            }
            Some(devlink::PCI_SF) => {
                let sf = number(&answer, devlink::SF_NUMBER).unwrap_or(0) as u32;
                state.sf.insert(sf, function);
            }
            _ => {}
        }
    }
    for answer in client.dump(Family::Devlink, devlink::RATE_GET)? {
        if text(&answer, devlink::DEV_NAME).as_deref() != Some(ADDRESS) {
            continue;
        }
        let max = number(&answer, devlink::TX_MAX).unwrap_or(0);
        let rate = Rate { max, parent: text(&answer, devlink::PARENT_NAME) };
        let share = number(&answer, devlink::TX_SHARE).unwrap_or(0);
        if let Some(name) = text(&answer, devlink::NODE_NAME) {
            state.nodes.insert(name, rate);
            continue;
        }
        let index = number(&answer, devlink::PORT_INDEX).unwrap_or(0) as u32;
        let vf = state.vf.iter().find(|(_, function)| function.index == index).map(|(vf, _)| *vf);
        if rate != Rate::default() || share != 0 {
            state.leaves.insert(vf.unwrap_or(u32::MAX), rate);
        }
    }
    let view = view(client)?;
    for module in view["modules"].as_array().into_iter().flatten() {
        if module["loaded"] == true {
            state.modules.extend(module["name"].as_str().map(str::to_owned));
        }
    }
    for function in view["functions"].as_array().into_iter().flatten() {
        let enabled = function["sriov"]["enabled"].as_u64().unwrap_or(0) as u16;
        match function["address"].as_str() {
            Some(ADDRESS) => state.vfs[0] = enabled,
            Some(OTHER) => state.vfs[1] = enabled,
            _ => {}
        }
    }
    Ok((state, netdevs))
}

/// Queries the whole state of the card, in JSON.
pub fn view(client: &mut Client) -> Result<Value, NoAnswer> {
    let answers = client.dump(Family::Eswitch, eswitch::VIEW)?;
    let pieces = answers.iter().flat_map(|answer| each(answer)).filter(|(kind, _)| *kind == eswitch::PIECE);
    let json: Vec<u8> = pieces.flat_map(|(_, piece)| piece.to_vec()).collect();
    serde_json::from_slice(&json).map_err(|error| NoAnswer::Refused(0, format!("the view is no JSON: {error}")))
}

fn flag(client: &mut Client, name: &str, param: &str) -> Result<bool, NoAnswer> {
    let asked = device(name).text(devlink::PARAM_NAME, param);
    let answers = client.ask(Family::Devlink, devlink::PARAM_GET, &asked)?;
    let value = |answer: &Vec<u8>| {
        let values = find(find(answer, devlink::PARAM)?, devlink::PARAM_VALUES)?;
        Some(find(find(values, devlink::PARAM_VALUE)?, devlink::PARAM_DATA).is_some())
    };
    Ok(answers.iter().find_map(value).unwrap_or(false))
}

/// Executes a command, given in JSON.
pub fn perform(client: &mut Client, command: &str) -> Result<(), NoAnswer> {
    client.ask(Family::Eswitch, eswitch::PERFORM, &encoded(command)).map(drop)
}

fn encoded(command: &str) -> Attributes {
    let asked = Attributes::default().put(eswitch::COMMAND, command.as_bytes());
    asked.put(eswitch::VERSION, &1u32.to_ne_bytes())
}

/// A message of each command.
pub fn examples(client: &Client) -> Vec<Vec<u8>> {
    let devlink = |command: u8, flags: u16, attributes: Attributes| {
        message(client.number_of(Family::Devlink), command, 4 | flags, 1, &attributes.0)
    };
    let eswitch = |command: u8, words: &str| {
        let words = Attributes::default().text(eswitch::WORDS, words);
        message(client.number_of(Family::Eswitch), command, 4, 1, &words.0)
    };
    let command = |json: &str| message(client.number_of(Family::Eswitch), eswitch::PERFORM, 4, 1, &encoded(json).0);
    let mac = Attributes::default().put(devlink::FUNCTION_ADDRESS, &[2, 0x55, 0, 0, 0, 1]);
    let mut all: Vec<Vec<u8>> = (0..84).map(|command| devlink(command, 0, device(ADDRESS))).collect();
    all.extend((0..84).map(|command| devlink(command, 0x300, Attributes::default())));
    all.extend([
        devlink(devlink::ESWITCH_SET, 0, device(OTHER).put(devlink::ESWITCH_MODE, &0u16.to_ne_bytes())),
        devlink(devlink::ESWITCH_SET, 0, device(OTHER).put(devlink::ESWITCH_MODE, &1u16.to_ne_bytes())),
        devlink(devlink::PORT_SET, 0, port(1).nest(devlink::FUNCTION, &mac)),
        devlink(devlink::PORT_DEL, 0, port(32_768)),
        devlink(devlink::RATE_NEW, 0, device(ADDRESS).text(devlink::NODE_NAME, "x")),
        devlink(devlink::RATE_SET, 0, port(1).put(devlink::TX_MAX, &125_000u64.to_ne_bytes())),
        devlink(devlink::RATE_DEL, 0, device(ADDRESS).text(devlink::NODE_NAME, "x")),
        devlink(devlink::PARAM_SET, 0, flag_set(ADDRESS, "esw_multiport", true)),
        command(r#"{"load_module":"mlx5_ib"}"#),
        command(r#"{"set_num_vfs":{"device":"0000:08:00.1","number":2}}"#),
        command(r#"{"add_sf":{"device":"0000:08:00.0","pfnum":0,"sfnum":9}}"#),
        eswitch(eswitch::VIEW, ""),
        // The commands of the product's family that join multicast groups and report the daemon's state.
        eswitch(3, "x"),
        eswitch(16, ""),
    ]);
    let new = device(ADDRESS).put(devlink::FLAVOUR, &(devlink::PCI_SF as u16).to_ne_bytes());
    let new = new.put(devlink::PF_NUMBER, &0u16.to_ne_bytes()).put(devlink::SF_NUMBER, &7u32.to_ne_bytes());
    all.push(devlink(devlink::PORT_NEW, 0, new));
    all
}

/// Recent changes that take effect some time after they were acknowledged, so that others would be refused for a moment.
#[derive(Clone, Debug, Default)]
pub struct Lately {
    /// A bond exists.
    pub bond: bool,
    /// A bond exists or existed: the LAG over it is removed a moment after the bond.
    pub bonded: bool,
    /// SFs whose state was set: one that is inactive is detached a moment later, and only then accepts another state or
    /// address.
    pub set: BTreeSet<u32>,
}

impl Lately {
    /// Records a change that was acknowledged.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Bond(on) => (self.bond, self.bonded) = (*on, true),
            Change::SfState(sf, _) => drop(self.set.insert(*sf)),
            _ => {}
        }
    }
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Load or unload `mlx5_ib`.
    Module(bool),
    /// The mode of PF 1's E-Switch.
    Mode(bool),
    /// The number of VFs of PF 1.
    Vfs(u16),
    /// Add an SF, by `sfnum`.
    SfAdd(u32),
    /// Delete an SF.
    SfDelete(u32),
    /// Make an SF active or inactive.
    SfState(u32, bool),
    /// An SF's address.
    SfAddress(u32, [u8; 6]),
    /// A VF's address.
    VfAddress(u32, [u8; 6]),
    /// Add a rate node, with its `tx_max`.
    NodeAdd(String, u64),
    /// Delete a rate node.
    NodeDelete(String),
    /// A VF's rate.
    Leaf(u32, Rate),
    /// PF 1's `esw_port_metadata`.
    Metadata(bool),
    /// `esw_multiport`.
    Multiport(bool),
    /// Make or remove a bond of the PFs' netdevs. It is the kernel's or, on a kernel without bonds, the card's replacement. It is
    /// not part of the stored state.
    Bond(bool),
}

impl Change {
    /// The row that it is counted in.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Module(true) => "module load",
            Self::Module(false) => "module unload",
            Self::Mode(_) => "eswitch mode",
            Self::Vfs(_) => "VF count",
            Self::SfAdd(_) => "SF add",
            Self::SfDelete(_) => "SF del",
            Self::SfState(..) => "SF state",
            Self::SfAddress(..) | Self::VfAddress(..) => "port function",
            Self::NodeAdd(..) | Self::NodeDelete(_) | Self::Leaf(..) => "rate",
            Self::Metadata(_) | Self::Multiport(_) => "param",
            Self::Bond(_) => "bond",
        }
    }

    /// A random change that is valid for a card in this state.
    pub fn any(state: &State, lately: &Lately, random: &mut Random) -> Self {
        loop {
            if let Some(change) = Self::perhaps(state, lately, random) {
                return change;
            }
        }
    }

    fn perhaps(state: &State, lately: &Lately, random: &mut Random) -> Option<Self> {
        let mac = |random: &mut Random| {
            let [a, b, c, d, ..] = random.any().to_ne_bytes();
            [0x02, 0x77, a, b, c, d]
        };
        let sfs: Vec<u32> = state.sf.keys().copied().collect();
        let nodes: Vec<String> = state.nodes.keys().cloned().collect();
        let vf = 2 + random.below(2) as u32;
        let megabits = |random: &mut Random| 125_000 * (1 + random.below(1_000) as u64);
        let inactive = |state: &State, sf: u32| !state.sf.get(&sf).is_some_and(|function| function.active);
        // While the two E-Switches are one, or are to be, neither changes its mode; a bond would make a LAG of them.
        let free = !state.multiport && !lately.bonded;
        Some(match random.below(14) {
            0 => Self::Module(!state.modules.contains("mlx5_ib")),
            1 | 2 if free => Self::Mode(!state.switchdev[1]),
            3 | 4 if free => Self::Vfs(if state.vfs[1] == 0 { 1 + random.below(8) as u16 } else { 0 }),
            5 if sfs.len() < 6 => Self::SfAdd((1..100).find(|sf| !state.sf.contains_key(sf))?),
            6 if !sfs.is_empty() => Self::SfDelete(*random.one_of(&sfs)),
            7 => {
                let sf = sfs.into_iter().find(|sf| !lately.set.contains(sf))?;
                Self::SfState(sf, inactive(state, sf))
            }
            8 => {
                let sf = sfs.into_iter().find(|sf| inactive(state, *sf) && !lately.set.contains(sf))?;
                Self::SfAddress(sf, mac(random))
            }
            9 => Self::VfAddress(vf, mac(random)),
            10 if nodes.len() < 3 => {
                let name = ["gold", "silver", "bronze"].into_iter().find(|name| !state.nodes.contains_key(*name))?;
                Self::NodeAdd(name.to_owned(), megabits(random))
            }
            10 => {
                let used = |name: &String| state.leaves.values().any(|leaf| leaf.parent.as_ref() == Some(name));
                Self::NodeDelete(nodes.into_iter().find(|name| !used(name))?)
            }
            11 => {
                let parent = (!nodes.is_empty() && random.one_in(2)).then(|| random.one_of(&nodes).clone());
                let max = if random.one_in(3) { 0 } else { megabits(random) };
                Self::Leaf(vf, Rate { max, parent })
            }
            12 if !state.switchdev[1] => Self::Metadata(!state.metadata[1]),
            12 if state.switchdev[1] && !lately.bonded => Self::Multiport(!state.multiport),
            13 if !state.multiport => Self::Bond(!lately.bond),
            _ => return None,
        })
    }

    /// The state of the card afterwards.
    pub fn apply(&self, state: &mut State) {
        match self {
            Self::Module(true) => drop(state.modules.insert("mlx5_ib".to_owned())),
            Self::Module(false) => drop(state.modules.remove("mlx5_ib")),
            Self::Mode(switchdev) => state.switchdev[1] = *switchdev,
            Self::Vfs(n) => state.vfs[1] = *n,
            Self::SfAdd(sf) => drop(state.sf.insert(*sf, Function::default())),
            Self::SfDelete(sf) => drop(state.sf.remove(sf)),
            Self::SfState(sf, active) => {
                if let Some(function) = state.sf.get_mut(sf) {
                    function.active = *active;
                }
            }
            Self::SfAddress(sf, address) => {
                if let Some(function) = state.sf.get_mut(sf) {
                    function.address = *address;
                }
            }
            Self::VfAddress(vf, address) => {
                if let Some(function) = state.vf.get_mut(vf) {
                    function.address = *address;
                }
            }
            Self::NodeAdd(name, max) => drop(state.nodes.insert(name.clone(), Rate { max: *max, parent: None })),
            Self::NodeDelete(name) => drop(state.nodes.remove(name)),
            Self::Leaf(vf, rate) if *rate == Rate::default() => drop(state.leaves.remove(vf)),
            Self::Leaf(vf, rate) => drop(state.leaves.insert(*vf, rate.clone())),
            Self::Metadata(on) => state.metadata[1] = *on,
            Self::Multiport(on) => state.multiport = *on,
            Self::Bond(_) => {}
        }
    }

    /// Requests the change. `state` is the state of the card, and is updated if the change is acknowledged.
    pub fn ask(&self, client: &mut Client, state: &mut State) -> Result<(), NoAnswer> {
        let told = self.send(client, state)?;
        self.apply(state);
        if let (Self::SfAdd(sf), Some(function)) = (self, told) {
            state.sf.insert(*sf, function);
        }
        Ok(())
    }

    /// Requests the change; returns what the card reports of an SF that it has made.
    fn send(&self, client: &mut Client, state: &State) -> Result<Option<Function>, NoAnswer> {
        let sf_port = |state: &State, sf: &u32| port(state.sf.get(sf).map_or(0, |function| function.index));
        let vf_port = |state: &State, vf: &u32| port(state.vf.get(vf).map_or(0, |function| function.index));
        let address = |mac: &[u8; 6]| Attributes::default().put(devlink::FUNCTION_ADDRESS, mac);
        let mut devlink = |command, attributes: Attributes| client.ask(Family::Devlink, command, &attributes);
        match self {
            Self::Module(true) => return perform(client, r#"{"load_module":"mlx5_ib"}"#).map(|()| None),
            Self::Module(false) => return perform(client, r#"{"unload_module":"mlx5_ib"}"#).map(|()| None),
            Self::Vfs(n) => {
                let command = format!(r#"{{"set_num_vfs":{{"device":"{OTHER}","number":{n}}}}}"#);
                return perform(client, &command).map(|()| None);
            }
            Self::Bond(true) => {
                let ports = format!(r#"["{ADDRESS}","{OTHER}"]"#);
                let plan =
                    format!(r#"{{"name":"bond0","mode":"active-backup","ports":{ports},"with":[],"active":null}}"#);
                return perform(client, &format!(r#"{{"bond":{{"plan":{plan},"flap":0}}}}"#)).map(|()| None);
            }
            Self::Bond(false) => return perform(client, r#"{"delete_bond":"bond0"}"#).map(|()| None),
            Self::Mode(on) => {
                devlink(devlink::ESWITCH_SET, device(OTHER).put(devlink::ESWITCH_MODE, &u16::from(*on).to_ne_bytes()))?
            }
            Self::SfAdd(sf) => {
                let asked = device(ADDRESS)
                    .put(devlink::FLAVOUR, &(devlink::PCI_SF as u16).to_ne_bytes())
                    .put(devlink::PF_NUMBER, &0u16.to_ne_bytes())
                    .put(devlink::SF_NUMBER, &sf.to_ne_bytes());
                let answers = devlink(devlink::PORT_NEW, asked)?;
                // The card chooses the port's index and the address.
                return Ok(answers.iter().find_map(|answer| {
                    let inner = find(answer, devlink::FUNCTION)?;
                    let address = find(inner, devlink::FUNCTION_ADDRESS)?.try_into().ok()?;
                    let index = number(answer, devlink::PORT_INDEX)? as u32;
                    Some(Function { index, address, active: false })
                }));
            }
            Self::SfDelete(sf) => devlink(devlink::PORT_DEL, sf_port(state, sf))?,
            Self::SfState(sf, active) => {
                let inner = Attributes::default().put(devlink::FUNCTION_STATE, &[u8::from(*active)]);
                devlink(devlink::PORT_SET, sf_port(state, sf).nest(devlink::FUNCTION, &inner))?
            }
            Self::SfAddress(sf, mac) => {
                devlink(devlink::PORT_SET, sf_port(state, sf).nest(devlink::FUNCTION, &address(mac)))?
            }
            Self::VfAddress(vf, mac) => {
                devlink(devlink::PORT_SET, vf_port(state, vf).nest(devlink::FUNCTION, &address(mac)))?
            }
            Self::NodeAdd(name, max) => {
                let asked = device(ADDRESS).text(devlink::NODE_NAME, name).put(devlink::RATE_TYPE, &1u16.to_ne_bytes());
                devlink(devlink::RATE_NEW, asked.put(devlink::TX_MAX, &max.to_ne_bytes()))?
            }
            Self::NodeDelete(name) => devlink(devlink::RATE_DEL, device(ADDRESS).text(devlink::NODE_NAME, name))?,
            Self::Leaf(vf, rate) => {
                let asked = vf_port(state, vf).put(devlink::TX_MAX, &rate.max.to_ne_bytes());
                let parent = rate.parent.as_deref().unwrap_or_default();
                devlink(devlink::RATE_SET, asked.text(devlink::PARENT_NAME, parent))?
            }
            Self::Metadata(on) => devlink(devlink::PARAM_SET, flag_set(OTHER, "esw_port_metadata", *on))?,
            Self::Multiport(on) => devlink(devlink::PARAM_SET, flag_set(ADDRESS, "esw_multiport", *on))?,
        };
        Ok(None)
    }
}

fn flag_set(name: &str, param: &str, on: bool) -> Attributes {
    let asked = device(name)
        .text(devlink::PARAM_NAME, param)
        .put(devlink::PARAM_TYPE, &[devlink::FLAG])
        .put(devlink::PARAM_CMODE, &[devlink::RUNTIME]);
    if on { asked.put(devlink::PARAM_DATA, &[]) } else { asked }
}

impl State {
    /// Copies port indices and addresses of SFs from `found`, if the card chose them and could not report them.
    pub fn learn(&mut self, found: &Self) {
        for (sf, function) in &mut self.sf {
            if let (0, Some(found)) = (function.index, found.sf.get(sf)) {
                *function = Function { active: function.active, ..found.clone() };
            }
        }
    }

    /// The differences, in lines.
    pub fn differences(&self, found: &Self) -> String {
        let mut said = String::new();
        let mut compare = |what: &str, expected: String, found: String| {
            if expected != found {
                said += &format!("{what}: expected {expected}, found {found}\n");
            }
        };
        compare("modules", format!("{:?}", self.modules), format!("{:?}", found.modules));
        compare("switchdev mode of each PF", format!("{:?}", self.switchdev), format!("{:?}", found.switchdev));
        compare("VFs of each PF", format!("{:?}", self.vfs), format!("{:?}", found.vfs));
        compare("esw_port_metadata of each PF", format!("{:?}", self.metadata), format!("{:?}", found.metadata));
        compare("esw_multiport", self.multiport.to_string(), found.multiport.to_string());
        // Addresses are read in hexadecimal digits.
        let function = |function: &Function| format!("{function:02x?}");
        let rate = |rate: &Rate| format!("{rate:?}");
        said += &by_key("VF", &self.vf, &found.vf, function);
        said += &by_key("SF", &self.sf, &found.sf, function);
        said += &by_key("the rate of VF", &self.leaves, &found.leaves, rate);
        said += &by_key("rate node", &self.nodes, &found.nodes, rate);
        said
    }

    /// The names of the netdevs that a Linux card in this state has, before any is renamed.
    pub fn netdevs(&self) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = PF_NETDEVS.map(str::to_owned).into();
        for (pf, (vfs, switchdev)) in self.vfs.into_iter().zip(self.switchdev).enumerate() {
            for vf in 0..vfs {
                names.insert(format!("enp8s0f{pf}v{vf}"));
                if switchdev {
                    names.insert(format!("enp8s0f{pf}npf{pf}vf{vf}"));
                }
            }
        }
        for (sf, function) in &self.sf {
            // A name has at most 15 bytes; otherwise a shorter one is used.
            let long = format!("enp8s0f0npf0sf{sf}");
            names.insert(if long.len() <= 15 { long } else { format!("en8f0pf0sf{sf}") });
            if function.active {
                names.insert(format!("enp8s0f0s{sf}"));
            }
        }
        names
    }
}

/// The differences between two maps, one line for each key.
fn by_key<K: Ord + Debug, V: PartialEq>(
    what: &str,
    expected: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
    in_words: impl Fn(&V) -> String,
) -> String {
    let keys: BTreeSet<&K> = expected.keys().chain(found.keys()).collect();
    let or_none = |value: Option<&V>| value.map_or("none".to_owned(), &in_words);
    let mut said = String::new();
    for key in keys {
        let (expected, found) = (expected.get(key), found.get(key));
        if expected != found {
            said += &format!("{what} {key:?}: expected {}, found {}\n", or_none(expected), or_none(found));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> State {
        let vf = (0..4).map(|vf| (vf, Function { index: vf + 1, ..Function::default() })).collect();
        State { switchdev: [true; 2], vfs: [4, 0], vf, ..State::default() }
    }

    #[test]
    fn every_kind_of_change_comes_up_and_each_but_a_bond_changes_something() {
        let (mut state, mut lately, mut random) = (begin(), Lately::default(), Random::new(1));
        let mut kinds = BTreeSet::new();
        for _ in 0..2_000 {
            let change = Change::any(&state, &lately, &mut random);
            let before = state.clone();
            change.apply(&mut state);
            kinds.insert(change.kind());
            match change {
                // That it was there is forgotten again, as after a restart.
                Change::Bond(on) => lately = Lately { bond: on, bonded: on, ..Lately::default() },
                // The same rate may be set again.
                Change::Leaf(..) => {}
                _ => assert_ne!(state, before, "{change:?}"),
            }
        }
        assert_eq!(kinds.len(), 11, "{kinds:?}");
    }

    #[test]
    fn what_is_lost_is_a_difference_and_a_number_that_was_not_told_is_none() {
        let mut state = begin();
        Change::SfAdd(7).apply(&mut state);
        let mut found = state.clone();
        found.sf.insert(7, Function { index: 32_768, address: [2, 0, 0, 0, 0, 7], active: false });
        assert!(state.differences(&found).starts_with("SF 7: expected Function { index: 00, "));
        state.learn(&found);
        assert_eq!(state.differences(&found), "");
        found.vfs[1] = 3;
        assert_eq!(state.differences(&found), "VFs of each PF: expected [4, 0], found [4, 3]\n");
    }

    #[test]
    fn netdevs_follow_from_the_state() {
        let mut state = State { switchdev: [true, false], vfs: [1, 2], ..State::default() };
        state.sf.insert(7, Function { active: true, ..Function::default() });
        state.sf.insert(88, Function::default());
        let names: Vec<String> = state.netdevs().into_iter().collect();
        assert_eq!(
            names,
            [
                "en8f0pf0sf88",
                "enp8s0f0np0",
                "enp8s0f0npf0sf7",
                "enp8s0f0npf0vf0",
                "enp8s0f0s7",
                "enp8s0f0v0",
                "enp8s0f1np1",
                "enp8s0f1v0",
                "enp8s0f1v1"
            ]
        );
    }
}
