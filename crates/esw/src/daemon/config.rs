//! The daemon's configuration: TOML, with a table for each card.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use card_linux::Wire;
use devlink::view::Profile;
use eswitch::CardConfig;
use serde::Deserialize;

use super::folders;
use crate::cards::CardKind;
use crate::printable::{is_control, printable};

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    #[serde(default)]
    keep: bool,
    cards: BTreeMap<String, Table>,
}

/// `[cards.NAME]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Table {
    kind: Option<CardKind>,
    socket: Option<PathBuf>,
    /// Octal, as text.
    socket_mode: Option<String>,
    socket_group: Option<u32>,
    wires: Vec<String>,
    profile: ProfileTable,
    card: CardConfig,
}

/// `[cards.NAME.profile]`: the parts of a card's identity that differ from a ConnectX-6 Dx's or, of a DPU, a
/// BlueField-2's.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProfileTable {
    vendor: Option<u16>,
    device: Option<u16>,
    vf_device: Option<u16>,
    subsystem: Option<(u16, u16)>,
    revision: Option<u8>,
    firmware: Option<String>,
    board: Option<String>,
    /// In Mb/s.
    speed: Option<u32>,
    numa_node: Option<i32>,
}

impl ProfileTable {
    /// The whole profile. The driver cannot be chosen: it is the engine's own.
    ///
    /// # Errors
    /// A port cannot have the speed, or no NUMA node can have the number.
    fn complete(self, dpu: bool) -> Result<Profile> {
        let other = Profile::of(dpu);
        let speed = self.speed.unwrap_or(other.speed);
        if !Profile::SPEEDS.contains(&speed) {
            bail!("`profile.speed` is {speed}; it must be one of {:?}, in Mb/s", Profile::SPEEDS);
        }
        let numa_node = self.numa_node.unwrap_or(other.numa_node);
        if !(-1..=Profile::LAST_NODE).contains(&numa_node) {
            bail!("`profile.numa_node` is {numa_node}; it must be -1, for none, to {}", Profile::LAST_NODE);
        }
        Ok(Profile {
            vendor: self.vendor.unwrap_or(other.vendor),
            device: self.device.unwrap_or(other.device),
            vf_device: self.vf_device.unwrap_or(other.vf_device),
            subsystem: self.subsystem.unwrap_or(other.subsystem),
            revision: self.revision.unwrap_or(other.revision),
            firmware: self.firmware.unwrap_or(other.firmware),
            board: self.board.unwrap_or(other.board),
            name: other.name,
            driver: other.driver,
            speed,
            numa_node,
        })
    }
}

/// The configuration.
#[derive(Debug)]
pub struct Config {
    /// The folder of the stored state.
    pub state_dir: PathBuf,
    /// Whether netdevs stay when a signal ends the daemon.
    pub keep: bool,
    /// The cards, by name.
    pub cards: Vec<CardEntry>,
}

/// The most bytes of a socket's path: the size of `sun_path`, less the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

/// A card of the configuration.
#[derive(Clone, Debug)]
pub struct CardEntry {
    pub name: String,
    pub kind: CardKind,
    pub socket: PathBuf,
    /// The mode of the socket's file.
    pub mode: u32,
    /// The group whose members may change things, beside root and the user who runs the daemon.
    pub group: Option<u32>,
    /// The wire of each PF, in the order of the PFs.
    pub wires: Vec<Wire>,
    /// The identity that the card shows.
    pub profile: Profile,
    pub card: CardConfig,
}

impl Config {
    /// Reads a configuration file. Without one there is one card of the kind `kind`, with every default.
    ///
    /// # Errors
    /// The file cannot be read, or is no configuration: the error names the place and what is expected there.
    pub fn read(path: Option<&Path>, kind: CardKind) -> Result<Self> {
        let Some(path) = path else {
            let card = entry(CardConfig::default().address.to_string(), Table::default(), kind)?;
            return Ok(Self { state_dir: folders::state()?, keep: false, cards: vec![card] });
        };
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Self::parse(&text, kind).with_context(|| match toml::from_str::<File>(&text) {
            // The error is about a place in the text.
            Err(error) => at(path, &text, error.span().map(|span| span.start)),
            Ok(_) => path.display().to_string(),
        })
    }

    /// Reads the text of a configuration file. `kind` is the kind of cards that do not name one.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn parse(text: &str, kind: CardKind) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        if file.cards.is_empty() {
            bail!("no card; a table [cards.NAME] makes one");
        }
        let mut cards: Vec<CardEntry> = Vec::new();
        for (name, table) in file.cards {
            if name.is_empty() || name.contains('/') || name.starts_with('.') {
                bail!("`{name}` is no name for a card: it names a file, too");
            }
            if name.contains(is_control) {
                bail!("`{}` is no name for a card: there is a control character in it", printable(&name));
            }
            let card = entry(name, table, kind)?;
            card.card.validate().with_context(|| format!("cards.{}", card.name))?;
            if let Some(other) = cards.iter().find(|other| overlap(&other.card, &card.card)) {
                bail!("cards.{} and cards.{}: both have PCI functions of {}", other.name, card.name, card.card.address);
            }
            if let Some(other) = cards.iter().find(|other| other.socket == card.socket) {
                bail!("cards.{} and cards.{}: both have the socket {}", other.name, card.name, card.socket.display());
            }
            cards.push(card);
        }
        let state_dir = match file.state_dir {
            Some(path) if path.is_absolute() => path,
            Some(path) => bail!("`state_dir` is {}; it must be an absolute path", path.display()),
            None => folders::state()?,
        };
        ensure_printable("`state_dir`", &state_dir.to_string_lossy())?;
        Ok(Self { state_dir, keep: file.keep, cards })
    }
}

/// The path of a file, with the line and column of a byte of its text if that is known.
fn at(path: &Path, text: &str, offset: Option<usize>) -> String {
    let Some(before) = offset.and_then(|offset| text.get(..offset)) else { return path.display().to_string() };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("{}:{line}:{column}", path.display())
}

/// Refuses control characters in a text that is shown on terminals.
fn ensure_printable(what: &str, text: &str) -> Result<()> {
    if text.contains(is_control) {
        bail!("{what} is \"{}\"; there is a control character in it", printable(text));
    }
    Ok(())
}

/// Whether two cards have addresses in the same PCI slot.
fn overlap(a: &CardConfig, b: &CardConfig) -> bool {
    (a.address.domain, a.address.bus, a.address.device) == (b.address.domain, b.address.bus, b.address.device)
}

fn entry(name: String, table: Table, kind: CardKind) -> Result<CardEntry> {
    let mode = match table.socket_mode {
        None => 0o600,
        Some(text) => match u32::from_str_radix(&text, 8) {
            Ok(mode @ ..=0o777) => mode,
            _ => bail!("cards.{name}: `socket_mode` is \"{text}\"; it must be octal, such as \"0660\""),
        },
    };
    let socket = match table.socket {
        Some(path) if path.is_absolute() => path,
        Some(path) => bail!("cards.{name}: `socket` is {}; it must be an absolute path", path.display()),
        None => folders::sockets().join(format!("{name}.sock")),
    };
    let at = |key| format!("cards.{name}: `{key}`");
    ensure_printable(&at("socket"), &socket.to_string_lossy())?;
    for (key, text) in [("profile.firmware", &table.profile.firmware), ("profile.board", &table.profile.board)] {
        ensure_printable(&at(key), text.as_deref().unwrap_or_default())?;
    }
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        bail!("cards.{name}: the socket {} has {length} bytes; it can have {SOCKET_PATH_MAX}", socket.display());
    }
    let kind = table.kind.unwrap_or(kind);
    let wires = wires(&table.wires, kind, table.card.pfs).with_context(|| format!("cards.{name}"))?;
    Ok(CardEntry {
        socket,
        name,
        kind,
        wires,
        mode,
        group: table.socket_group,
        profile: table.profile.complete(table.card.dpu)?,
        card: match table.card {
            card @ CardConfig { serial: 0, .. } => CardConfig { serial: folders::serial(), ..card },
            card => card,
        },
    })
}

/// The wires of a card: `NAME` or `NAME@NETNS` for each PF. The PFs beyond them have wires that lead nowhere, as those with
/// an empty text.
fn wires(texts: &[String], kind: CardKind, pfs: u8) -> Result<Vec<Wire>> {
    if kind != CardKind::Linux && !texts.is_empty() {
        bail!("`wires` is for cards of the kind `linux`; a card in memory has no netdevs");
    }
    if texts.len() > usize::from(pfs) {
        bail!("`wires` has {} wires, and the card has {pfs} PFs", texts.len());
    }
    let mut ends: Vec<&str> = texts.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
    ends.sort_unstable();
    if let Some(twice) = ends.windows(2).find(|two| two[0] == two[1]) {
        bail!("`wires` has \"{}\" twice", printable(twice[0]));
    }
    texts.iter().map(|text| wire(text)).collect()
}

fn wire(text: &str) -> Result<Wire> {
    let is_name = |name: &str, most: usize| {
        let is_usual = |c: char| !c.is_whitespace() && !is_control(c) && !"/:%".contains(c);
        (1..=most).contains(&name.len()) && !name.starts_with('.') && name.chars().all(is_usual)
    };
    let (name, netns) = match text.split_once('@') {
        None => (text, None),
        Some((name, netns)) => (name, Some(netns)),
    };
    if text.is_empty() {
        return Ok(Wire::Nowhere);
    }
    // IFNAMSIZ, less the zero at the end; NAME_MAX.
    if !is_name(name, 15) || netns.is_some_and(|netns| !is_name(netns, 255)) {
        bail!("`wires` has \"{}\"; a wire is NETDEV or NETDEV@NETNS, or empty if it leads nowhere", printable(text));
    }
    Ok(Wire::Netdev { name: name.to_owned(), netns: netns.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, CardKind::Memory).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn several_cards_are_read() {
        let text = r#"
            [cards.left]
            socket_mode = "0660"
            [cards.right]
            kind = "linux"
            socket = "/run/right.sock"
            [cards.right.profile]
            device = 0x1021
            firmware = "28.39.1002"
            [cards.right.card]
            address = "0000:0a:00.0"
            pfs = 2
        "#;
        let config = parse(text).unwrap();
        assert_eq!(config.cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>(), ["left", "right"]);
        assert_eq!((config.cards[0].mode, config.cards[0].kind), (0o660, CardKind::Memory));
        assert_eq!((config.cards[1].kind, config.cards[1].card.pfs), (CardKind::Linux, 2));
        let profile = &config.cards[1].profile;
        assert_eq!((profile.vendor, profile.device, &*profile.firmware), (0x15b3, 0x1021, "28.39.1002"));
    }

    #[test]
    fn errors_have_a_place() {
        assert_eq!(at(Path::new("f.toml"), "[a]\nb = ", Some(6)), "f.toml:2:3");
        assert_eq!(at(Path::new("f.toml"), "[a]", None), "f.toml");
    }

    #[test]
    fn a_dpu_is_a_bluefield_unless_its_profile_says_otherwise() {
        for (text, device) in [
            ("[cards.a]", 0x101d),
            ("[cards.a.card]\ndpu = true", 0xa2d6),
            ("[cards.a.profile]\ndevice = 0xa2dc\n[cards.a.card]\ndpu = true", 0xa2dc),
        ] {
            assert_eq!(Config::parse(text, CardKind::Memory).unwrap().cards[0].profile.device, device, "{text:?}");
        }
    }

    #[test]
    fn configurations_that_cannot_be_used_are_refused() {
        for (text, expected) in [
            ("", "missing field `cards`"),
            ("[cards]", "no card"),
            ("[cards.a]\nsocket_mode = \"rw\"", "octal"),
            ("[cards.a]\nsocket = \"here\"", "absolute"),
            ("[cards.a]\ncolour = 1", "unknown field `colour`"),
            ("[cards.a]\n[cards.b]", "both have PCI functions"),
            ("[cards.\"a/b\"]", "no name for a card"),
            ("[cards.a.card]\npfs = 9", "`pfs` is 9"),
            ("[cards.a.profile]\ndriver = \"ice\"", "unknown field `driver`"),
            ("state_dir = \"here\"\n[cards.a]", "absolute"),
            (r#"[cards."x\nREADY=1"]"#, r"`x\nREADY=1` is no name for a card"),
            (r#"[cards."\u001b[2J"]"#, "control character"),
            ("[cards.a]\nsocket = \"/run/\\u0007\"", "`socket` is \"/run/\\u{7}\"; there is a control character"),
            ("[cards.a.profile]\nfirmware = \"1\\n2\"", "`profile.firmware`"),
            ("[cards.a.profile]\nspeed = 1000", "`profile.speed`"),
            ("[cards.a.profile]\nnuma_node = -2", "`profile.numa_node` is -2"),
            ("[cards.a.profile]\nnuma_node = 1024", "`profile.numa_node` is 1024"),
            ("[cards.a.profile]\nboard = \"\\u009b\"", "`profile.board`"),
            ("state_dir = \"/\\u001b\"\n[cards.a]", "`state_dir` is"),
            (&format!("[cards.a]\nsocket = \"/{}\"", "x".repeat(120)), "it can have 107"),
            ("[cards.a]\nwires = [\"a\"]", "a card in memory has no netdevs"),
            ("[cards.a]\nkind = \"linux\"\nwires = [\"a\", \"b\"]", "`wires` has 2 wires, and the card has 1 PFs"),
            ("[cards.a]\nkind = \"linux\"\nwires = [\"a@\"]", "a wire is NETDEV or NETDEV@NETNS"),
            ("[cards.a]\nkind = \"linux\"\nwires = [\"0123456789abcdef\"]", "a wire is NETDEV or NETDEV@NETNS"),
            ("[cards.a]\nkind = \"linux\"\nwires = [\"a@../b\"]", "a wire is NETDEV or NETDEV@NETNS"),
            ("[cards.a]\nkind = \"linux\"\nwires = [\"a\", \"a\"]\n[cards.a.card]\npfs = 2", "`wires` has \"a\" twice"),
            ("[cards.a.card]\nserial = 8388608", "`serial` is 8388608; it must be 0 to 8388607"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
