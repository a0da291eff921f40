//! Commands in the words that a user would type, for logs.

use std::fmt::Write;

use eswitch::card::{Fault, Resource};
use eswitch::vf::{ETH_P_8021AD, LinkState, VfSetting};
use eswitch::{CardConfig, PciAddress, PfIndex, Vport, names};

use crate::command::Command;
use crate::devlink::DevlinkCommand;
use crate::grammar::tc;
use crate::query::Query;

impl Query {
    /// The query in the words that a user would type. `card` gives the card's netdevs their names.
    pub fn in_words(&self, card: &CardConfig) -> String {
        match self {
            Self::Devices(_) | Self::Eswitch(_) | Self::Ports(_) => {
                DevlinkCommand::from_query(self).map(|command| command.to_string()).unwrap_or_default()
            }
            Self::Filters { on, with_counters } => {
                let statistics = if *with_counters { " -s" } else { "" };
                format!("tc{statistics} filter show dev {} ingress", tc::netdev_of_port(card, *on))
            }
            Self::Trace { port, frame } => format!("trace {port} {}", flow::words::frame_words(frame)),
        }
    }
}

impl Command {
    /// The command in the words of a step, which the grammar reads as the same command. `card` gives the card's netdevs
    /// their names.
    pub fn in_words(&self, card: &CardConfig) -> String {
        match self {
            Self::SetEswitch { .. }
            | Self::Reload(_)
            | Self::AddSf { .. }
            | Self::DeletePort(_)
            | Self::SetFunction { .. }
            | Self::SetEswMultiport { .. } => {
                DevlinkCommand::from_command(self).map(|command| command.to_string()).unwrap_or_default()
            }
            Self::SetNumVfs { device, number } => echo(number, &of_device(device, "sriov_numvfs")),
            Self::SetAutoprobe { device, on } => echo(u8::from(*on), &of_device(device, "sriov_drivers_autoprobe")),
            Self::Bind(device) => echo(device, "/sys/bus/pci/drivers/mlx5_core/bind"),
            Self::Unbind(device) => echo(device, "/sys/bus/pci/drivers/mlx5_core/unbind"),
            Self::BindVfio(device) => echo(device, "/sys/bus/pci/drivers/vfio-pci/bind"),
            Self::UnbindVfio(device) => echo(device, "/sys/bus/pci/drivers/vfio-pci/unbind"),
            Self::SetSfBound { id, bound } => {
                let file = if *bound { "bind" } else { "unbind" };
                format!("echo mlx5_core.sf.{id} > /sys/bus/auxiliary/drivers/mlx5_core.sf/{file}")
            }
            Self::Probe(device) => echo(device, "/sys/bus/pci/drivers_probe"),
            Self::SetDriverOverride { device, driver } => {
                echo(driver.as_deref().unwrap_or("\"\""), &of_device(device, "driver_override"))
            }
            Self::SetVfMsix { device, count } => echo(count, &of_device(device, "sriov_vf_msix_count")),
            Self::Remove(device) => echo(1, &of_device(device, "remove")),
            Self::Rescan => echo(1, "/sys/bus/pci/rescan"),
            Self::Reset(device) => echo(1, &of_device(device, "reset")),
            Self::SetVf { device, vf, settings } => {
                let mut words = format!("ip link set {} vf {vf}", netdev(card, *device));
                settings.iter().for_each(|setting| put_vf_setting(&mut words, *setting));
                words
            }
            Self::SetNetns { device, netns } => {
                format!("ip link set {} netns {}", netdev(card, *device), netns.as_deref().unwrap_or("home"))
            }
            Self::LoadModule(name) => format!("modprobe {name}"),
            Self::InsertModule(name) => format!("insmod {name}"),
            Self::UnloadModule(name) => format!("modprobe -r {name}"),
            Self::Bond { plan, flap } => {
                let mut words = format!("bond {} mode {}", plan.name, plan.mode);
                plan.ports.iter().for_each(|port| words.push_str(&format!(" pci/{port}")));
                plan.with.iter().for_each(|netdev| put(&mut words, "with", netdev));
                if let Some(active) = plan.active {
                    words.push_str(&format!(" active pci/{active}"));
                }
                if *flap > 0 {
                    put(&mut words, "flap", flap);
                }
                words
            }
            Self::DeleteBond(name) => format!("bond {name} del"),
            Self::ChangeFlows(changes) => tc::in_words(card, changes),
            Self::SetNeighbour { device, end, mac } => tc::neighbour_in_words(card, *device, *end, *mac),
            Self::SetHostVfs { device, number } => format!("host {device} sriov_numvfs {number}"),
            Self::AddFault(fault) => self::fault(fault),
            Self::FailAllocations { device, times } => format!("fail alloc pci/{device} times {times}"),
            Self::ClearFaults => "fail clear".to_owned(),
        }
    }
}

fn put(words: &mut String, name: &str, value: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(words, " {name} {value}");
}

fn echo(value: impl std::fmt::Display, file: &str) -> String {
    format!("echo {value} > {file}")
}

fn of_device(device: &PciAddress, file: &str) -> String {
    format!("/sys/bus/pci/devices/{device}/{file}")
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// The name of a PF's netdev, unless a program renames it.
fn netdev(card: &CardConfig, device: PciAddress) -> String {
    let pf = (0..card.pfs).map(PfIndex).find(|pf| card.pf_address(*pf) == device);
    let name = pf.and_then(|pf| names::netdev(card, &Resource::PfNetdev(pf), None));
    name.map_or_else(|| device.to_string(), |name| name.name)
}

fn put_vf_setting(words: &mut String, setting: VfSetting) {
    match setting {
        VfSetting::Mac(mac) => put(words, "mac", mac),
        VfSetting::Vlan(vlan) => {
            put(words, "vlan", vlan.id);
            if vlan.qos != 0 {
                put(words, "qos", vlan.qos);
            }
            if vlan.proto == ETH_P_8021AD {
                put(words, "proto", "802.1ad");
            }
        }
        VfSetting::Rate { min, max } => {
            if let Some(max) = max {
                put(words, "max_tx_rate", max);
            }
            if let Some(min) = min {
                put(words, "min_tx_rate", min);
            }
        }
        VfSetting::Spoofchk(on) => put(words, "spoofchk", on_off(on)),
        VfSetting::Trust(on) => put(words, "trust", on_off(on)),
        VfSetting::Link(state) => put(
            words,
            "state",
            match state {
                LinkState::Auto => "auto",
                LinkState::Enable => "enable",
                LinkState::Disable => "disable",
            },
        ),
    }
}

fn fault(fault: &Fault) -> String {
    let mut words = format!("{} {}", if fault.delay.is_some() { "delay" } else { "fail" }, fault.kind);
    if let Some(pf) = fault.pf {
        put(&mut words, "pf", pf.0);
    }
    match fault.vport {
        None => {}
        Some(Vport::Uplink) => words.push_str(" uplink"),
        Some(Vport::HostPf) => words.push_str(" hpf"),
        Some(Vport::Vf(number)) => put(&mut words, "vf", number),
        Some(Vport::Sf(place)) => put(&mut words, "sf", place),
    }
    if fault.after > 0 {
        put(&mut words, "after", fault.after);
    }
    match (fault.times, fault.delay) {
        (1, None) | (u32::MAX, Some(_)) => {}
        (u32::MAX, None) => words.push_str(" always"),
        (times, _) => put(&mut words, "times", times),
    }
    if let Some(delay) = fault.delay {
        put(&mut words, "for", format_args!("{}us", delay.as_micros()));
    }
    words
}
