//! What `ip link set` does to a PF's netdev and concerns the engine, on any card.

use eswitch::card::Resource;
use eswitch::vf::{ETH_P_8021AD, ETH_P_8021Q, LinkState, VfSetting, VfVlan};
use eswitch::{CardConfig, MacAddr, PciAddress, PfIndex, names};

use crate::command::Command;
use crate::reader::{WordError, Words};

/// Reads `ip link set [dev] NETDEV`, where NETDEV is a PF's; the PF, and the words that follow. Takes no words.
fn pf_link<'t>(words: &Words<'t>, card: &CardConfig) -> Option<(PciAddress, Words<'t>)> {
    let mut words = words.clone();
    for word in ["ip", "link", "set"] {
        words.literal(word).ok()?;
    }
    words.accept("dev");
    let (_, netdev) = words.next("a netdev").ok()?;
    let named = |pf: &PfIndex| {
        let name = names::netdev(card, &Resource::PfNetdev(*pf), None);
        name.is_some_and(|name| name.name == netdev || name.altname.as_deref() == Some(netdev))
    };
    let pf = (0..card.pfs).map(PfIndex).find(named)?;
    Some((card.pf_address(pf), words))
}

/// Reads `ip link set [dev] PFNETDEV netns NS`. Takes no words.
pub(super) fn pf_netns(words: &Words<'_>, card: &CardConfig) -> Option<Command> {
    let (device, mut words) = pf_link(words, card)?;
    words.literal("netns").ok()?;
    let (_, netns) = words.next("a network namespace").ok()?;
    words.end().ok()?;
    let netns = (!["1", "home"].contains(&netns)).then(|| netns.to_owned());
    Some(Command::SetNetns { device, netns })
}

/// Reads `ip link set [dev] PFNETDEV vf`; the PF, and the words that follow. Takes no words.
pub(super) fn pf_vf<'t>(words: &Words<'t>, card: &CardConfig) -> Option<(PciAddress, Words<'t>)> {
    let (pf, mut words) = pf_link(words, card)?;
    words.accept("vf").then_some((pf, words))
}

/// `N SETTING…`, after `vf`.
pub(super) fn vf_settings(words: &mut Words<'_>, device: PciAddress) -> Result<Command, WordError> {
    const SETTINGS: [&str; 8] = ["mac", "vlan", "rate", "max_tx_rate", "min_tx_rate", "spoofchk", "trust", "state"];
    const RATE: &str = "a rate in Mbit/s";
    let vf = words.parse("the VF's number, from 0")?;
    let mut settings = Vec::new();
    while words.peek().is_some() || settings.is_empty() {
        let setting = match words.one_of(&SETTINGS)? {
            "mac" => VfSetting::Mac(words.parse_saying::<MacAddr>("a MAC address")?),
            "vlan" => VfSetting::Vlan(vlan(words)?),
            "rate" | "max_tx_rate" => VfSetting::Rate { min: None, max: Some(words.parse(RATE)?) },
            "min_tx_rate" => VfSetting::Rate { min: Some(words.parse(RATE)?), max: None },
            "spoofchk" => VfSetting::Spoofchk(on(words)?),
            "trust" => VfSetting::Trust(on(words)?),
            _ => VfSetting::Link(match words.one_of(&["auto", "enable", "disable"])? {
                "auto" => LinkState::Auto,
                "enable" => LinkState::Enable,
                _ => LinkState::Disable,
            }),
        };
        add(&mut settings, setting);
    }
    Ok(Command::SetVf { device, vf, settings })
}

/// Adds a setting. Rates that follow each other are one request, whatever their order.
fn add(settings: &mut Vec<VfSetting>, setting: VfSetting) {
    match (settings.last_mut(), setting) {
        (Some(VfSetting::Rate { min, max }), VfSetting::Rate { min: new_min, max: new_max }) => {
            (*min, *max) = (new_min.or(*min), new_max.or(*max));
        }
        _ => settings.push(setting),
    }
}

/// `VLAN [qos QOS] [proto PROTO]`.
fn vlan(words: &mut Words<'_>) -> Result<VfVlan, WordError> {
    let mut vlan = VfVlan { id: words.parse("a VLAN, 0 for none")?, ..VfVlan::default() };
    if words.accept("qos") {
        vlan.qos = words.parse("a priority, 0 to 7")?;
    }
    if words.accept("proto") {
        vlan.proto = match words.one_of(&["802.1Q", "802.1q", "802.1ad"])? {
            "802.1ad" => ETH_P_8021AD,
            _ => ETH_P_8021Q,
        };
    }
    Ok(vlan)
}

fn on(words: &mut Words<'_>) -> Result<bool, WordError> {
    Ok(words.one_of(&["on", "off"])? == "on")
}
