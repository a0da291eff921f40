//! VFs as PCI functions of their own: the settings of each, besides its port in the switch.
//!
//! The driver of a VF has no thread and no lock of its own. The settings of a VF are stored with its vport, under the
//! devlink lock of its PF, and the netdev that its driver makes is a resource of the card.

use std::collections::BTreeMap;

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::card::{Acl, CardError, Counters, Resource, Tag};
use crate::device::Pf;
use crate::devlink::{DevlinkState, Parts, VportInfo};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, Vport};
use crate::lock_order::Devlink;
use crate::pci::OtherDriver;

/// The link state of a VF, as `ip link set … vf N state` sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub enum LinkState {
    /// The same as that of the wire.
    #[default]
    Auto,
    /// Up, whatever the state of the wire.
    Enable,
    /// Down.
    Disable,
}

/// The VLAN of a VF's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct VfVlan {
    /// The VLAN number: 1 to 4095, or 0 for none.
    pub id: u16,
    /// The priority: 0 to 7.
    pub qos: u8,
    /// The protocol of the tag: 0x8100 or 0x88a8.
    pub proto: u16,
}

impl Default for VfVlan {
    fn default() -> Self {
        Self { id: 0, qos: 0, proto: ETH_P_8021Q }
    }
}

impl VfVlan {
    /// The outcome of setting this VLAN, if it is decided before the VF is looked at: another protocol than 802.1Q is
    /// refused in both modes (`mlx5e_set_vf_vlan`). In switchdev mode VLAN 0 succeeds with any priority and changes
    /// nothing, because libvirt sets it without a request of the user, and every other VLAN is refused
    /// (`mlx5_eswitch_set_vport_vlan`).
    fn before_the_vf(self, mode: Mode) -> Option<Result<()>> {
        match mode {
            _ if self.proto != ETH_P_8021Q => Some(Err(Error::VfVlanProto)),
            Mode::Switchdev | Mode::SwitchdevInactive if self.id != 0 => Some(Err(Error::VfInSwitchdev("vlan"))),
            Mode::Switchdev | Mode::SwitchdevInactive => Some(Ok(())),
            Mode::Legacy => None,
        }
    }
}

/// The protocol of a customer VLAN tag, 802.1Q (`if_ether.h`).
pub const ETH_P_8021Q: u16 = 0x8100;

/// The protocol of a service VLAN tag, 802.1ad (`if_ether.h`).
pub const ETH_P_8021AD: u16 = 0x88a8;

/// The settings of a VF besides its port. They are lost when the VFs are disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct VfInfo {
    /// Whether the VF is bound to the card's driver.
    pub bound: bool,
    /// The other driver to which the VF is bound. `None` while it is bound to the card's driver or to none.
    #[serde(default)]
    pub other_driver: Option<OtherDriver>,
    /// `driver_override`, if one is set.
    pub driver_override: Option<String>,
    /// Whether the VF was removed from the bus with `remove`.
    pub removed: bool,
    /// `vlan`: in legacy mode the VF is in this VLAN.
    pub vlan: VfVlan,
    /// `min_tx_rate` in Mbit/s: the share among functions below one limit.
    pub min_tx_rate: u32,
    /// `max_tx_rate` in Mbit/s, or 0 for no limit.
    pub max_tx_rate: u32,
    /// `spoofchk`: in legacy mode the VF sends only with its administrative address.
    pub spoofchk: bool,
    /// `trust`, stored and shown.
    pub trust: bool,
    /// `state`. While it is [`LinkState::Disable`] in legacy mode, the VF's netdev has no carrier. In switchdev mode the
    /// VF's representor decides about the carrier.
    pub link: LinkState,
    /// The permanent address of the VF's netdev: the administrative address when the driver was bound last. `None` if
    /// that was zero: then the driver has made an address of its own.
    #[serde(default)]
    pub permanent: Option<MacAddr>,
    /// `sriov_vf_msix_count`: the number of interrupt vectors, if it is not the one with which VFs start. It is lost
    /// when the PF is reloaded (`mlx5_device_enable_sriov`).
    #[serde(default)]
    pub msix: Option<u16>,
    /// What the driver makes. The default is for states that older versions wrote without this field.
    #[serde(default)]
    pub parts: Parts,
}

impl VfInfo {
    /// The settings of a VF that has just been enabled.
    pub(crate) fn new(bound: bool) -> Self {
        Self {
            bound,
            other_driver: None,
            driver_override: None,
            removed: false,
            vlan: VfVlan::default(),
            min_tx_rate: 0,
            max_tx_rate: 0,
            spoofchk: false,
            trust: false,
            link: LinkState::default(),
            permanent: None,
            msix: None,
            parts: Parts::default(),
        }
    }
}

impl VportInfo {
    /// The driver of the function is bound, and reads the administrative address (`mlx5_query_mac_address`).
    pub(crate) fn probe(&mut self) {
        if let Some(vf) = &mut self.vf {
            vf.permanent = (self.mac != MacAddr::ZERO).then_some(self.mac);
        }
    }

    /// What of the settings of a VF stays when its PF is reloaded: all but the link state (`esw_legacy_enable`) and the interrupt vectors, and the
    /// driver of the VF is bound again.
    pub(crate) fn reloaded(mut self) -> Self {
        if let Some(vf) = &mut self.vf {
            (vf.link, vf.msix, vf.parts) = (LinkState::default(), None, Parts::default());
        }
        self.probe();
        self
    }

    /// What the settings of a VF let pass in legacy mode. As in mlx5 a VLAN of 0 with a priority is one, too, and the spoof
    /// check is on the administrative address: while that is zero, nothing passes.
    pub(crate) fn acl(&self) -> Acl {
        let Some(vf) = &self.vf else { return Acl::default() };
        let VfVlan { id, qos, .. } = vf.vlan;
        let tag = (id != 0 || qos != 0).then_some(Tag { vlan: id, priority: qos });
        Acl { source: vf.spoofchk.then_some(self.mac), tag }
    }

    /// The address of the function's netdev. `own`: the address that its driver makes by itself.
    pub(crate) fn netdev_mac(&self, own: MacAddr) -> MacAddr {
        match &self.vf {
            Some(vf) => vf.permanent.unwrap_or(own),
            None => self.mac.or_own(own),
        }
    }
}

/// A VF that is enabled, for users of the crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfView {
    /// The VF's number, from 0.
    pub number: u16,
    /// The administrative MAC address of the VF's function: zero if nobody has set one.
    pub mac: MacAddr,
    /// The MAC address with which the VF's netdev was made when its driver was bound last.
    pub netdev_mac: MacAddr,
    /// Whether the VF's function has RDMA.
    pub roce: bool,
    /// The other settings.
    pub info: VfInfo,
}

/// One setting of a VF, as `ip link set PF vf N` sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfSetting {
    /// `mac`: the administrative MAC address of the VF's function, which `devlink port function set … hw_addr` sets too.
    /// The VF's driver takes it when it is bound next. Zero: the driver makes an address of its own.
    Mac(MacAddr),
    /// `vlan`, with `qos` and `proto`.
    Vlan(VfVlan),
    /// `min_tx_rate` and `max_tx_rate`, in Mbit/s. One that is `None` stays as it is.
    Rate {
        /// `min_tx_rate`.
        min: Option<u32>,
        /// `max_tx_rate`; 0 for no limit.
        max: Option<u32>,
    },
    /// `spoofchk`.
    Spoofchk(bool),
    /// `trust`.
    Trust(bool),
    /// `state`.
    Link(LinkState),
}

impl VfSetting {
    /// The name of the setting, if only the legacy switch acts on it. In switchdev mode the VF's representor is
    /// configured instead. For `vlan` see [`VfVlan::before_the_vf`].
    fn of_legacy_switch(self) -> Option<&'static str> {
        match self {
            Self::Spoofchk(_) => Some("spoofchk"),
            Self::Trust(_) => Some("trust"),
            Self::Link(_) => Some("state"),
            Self::Vlan(_) | Self::Mac(_) | Self::Rate { .. } => None,
        }
    }
}

impl Engine {
    /// `ip link set PFNETDEV vf N …`.
    ///
    /// # Errors
    /// The PF is not bound; the VF is not enabled; the mode is switchdev and only the legacy switch acts on the
    /// setting; a value is out of its range; or the card could not enforce it. Nothing has changed then.
    pub fn set_vf(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        vf: u32,
        setting: VfSetting,
    ) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            let missing = || Error::NoVf { pf: address, vf };
            // The VFs of a DPU are configured on its host.
            let number = u16::try_from(vf).ok().filter(|_| !self.shared.config.dpu).ok_or_else(missing)?;
            let vport = Vport::Vf(number);
            let mode = pf.eswitch.mode.under_devlink(state, cx);
            if let VfSetting::Vlan(vlan) = setting
                && let Some(outcome) = vlan.before_the_vf(mode)
            {
                return outcome;
            }
            let port = state.vports.get_mut(&vport).ok_or_else(missing)?;
            let before = port.clone();
            let info = port.vf.as_mut().ok_or_else(missing)?;
            if mode.is_switchdev()
                && let Some(name) = setting.of_legacy_switch()
            {
                return Err(Error::VfInSwitchdev(name));
            }
            match setting {
                VfSetting::Mac(mac) => port.mac = mac,
                VfSetting::Link(link) => pf.set_vf_link(info, cx, vport, link)?,
                setting => info.set(setting)?,
            }
            let acl = port.acl();
            let enforced = match setting {
                VfSetting::Rate { .. } => pf.enforce_rates(state, cx),
                _ if mode == Mode::Legacy && acl != before.acl() => pf.set_acl(cx, vport, acl),
                _ => Ok(()),
            };
            if enforced.is_err() {
                state.vports.insert(vport, before);
            }
            enforced
        })
    }

    /// The counters of a PF's VFs, by number, from when each was enabled. Waits for no command.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: no such PF.
    pub fn vf_counters(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<BTreeMap<u16, Counters>> {
        let config = &self.shared.config;
        let pf = (0..config.pfs).map(PfIndex).find(|pf| config.pf_address(*pf) == address);
        let counters = self.shared.card.counters(&mut cx.narrow(), pf.ok_or(Error::NoDevice(address))?);
        let of_vf = |(vport, counters)| match vport {
            Vport::Vf(number) => Some((number, counters)),
            _ => None,
        };
        Ok(counters.into_iter().filter_map(of_vf).collect())
    }

    /// Runs a command on a VF that is on the bus.
    ///
    /// # Errors
    /// [`Error::NoFunction`]: the VF is not enabled, was removed from the bus, or its PF is not bound; or the error of
    /// `f`.
    pub(crate) fn with_vf<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        (pf, vf): (PfIndex, u16),
        f: impl FnOnce(&Pf, &mut DevlinkState, &mut Locked<'_, Devlink>, VfFunction) -> Result<R>,
    ) -> Result<R> {
        let of = self.shared.config.pf_address(pf);
        let function = VfFunction { address, vport: Vport::Vf(vf) };
        let result = self.with_devlink(cx, of, |pf, state, cx| {
            state.vf(function)?;
            f(pf, state, cx, function)
        });
        match result {
            Err(Error::NoDevice(pf)) if pf == of => Err(Error::NoFunction(address)),
            result => result,
        }
    }
}

/// A VF, by its address on the bus and its vport in the switch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VfFunction {
    pub address: PciAddress,
    pub vport: Vport,
}

impl DevlinkState {
    /// The settings of a VF that is on the bus.
    ///
    /// # Errors
    /// [`Error::NoFunction`]: the VF is not enabled, or was removed from the bus.
    pub(crate) fn vf(&mut self, function: VfFunction) -> Result<&mut VfInfo> {
        let info = self.vports.get_mut(&function.vport).and_then(|info| info.vf.as_mut());
        info.filter(|vf| !vf.removed).ok_or(Error::NoFunction(function.address))
    }
}

impl VfInfo {
    /// Stores a setting.
    ///
    /// # Errors
    /// A value is out of its range.
    fn set(&mut self, setting: VfSetting) -> Result<()> {
        match setting {
            VfSetting::Mac(_) | VfSetting::Link(_) => {}
            VfSetting::Vlan(vlan) if vlan.id > 4095 || vlan.qos > 7 => return Err(Error::VfVlan),
            VfSetting::Vlan(vlan) => self.vlan = vlan,
            VfSetting::Rate { min, max } => {
                let (min, max) = (min.unwrap_or(self.min_tx_rate), max.unwrap_or(self.max_tx_rate));
                if max != 0 && min > max {
                    return Err(Error::VfRate { min, max });
                }
                (self.min_tx_rate, self.max_tx_rate) = (min, max);
            }
            VfSetting::Spoofchk(on) => self.spoofchk = on,
            VfSetting::Trust(on) => self.trust = on,
        }
        Ok(())
    }
}

impl Pf {
    /// Sets the link state of a VF, in legacy mode.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not set it. The link state is as before.
    fn set_vf_link(
        &self,
        info: &mut VfInfo,
        cx: &mut Locked<'_, Devlink>,
        vport: Vport,
        link: LinkState,
    ) -> Result<()> {
        let (was, is) = (info.link != LinkState::Disable, link != LinkState::Disable);
        if was != is {
            self.set_link(cx, vport, is)?;
        }
        info.link = link;
        Ok(())
    }

    /// Has the card give a port a link, or take it away.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not.
    fn set_link(&self, cx: &mut Locked<'_, Devlink>, vport: Vport, up: bool) -> Result<()> {
        let set = self.shared.card.set_link(&mut cx.narrow(), &Resource::Port(self.index(), vport), up);
        self.of_card(vport, "setting the link state", set)
    }

    /// The outcome of a request to the card about a vport's port, with what was asked for if it failed.
    fn of_card(&self, vport: Vport, what: &str, outcome: Result<(), CardError>) -> Result<()> {
        outcome.map_err(|source| Error::Card { operation: format!("{}: {what}", self.port_handle(vport)), source })
    }

    /// Takes the link away from those VFs that have just been enabled with a link state that was kept for them.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not.
    pub(crate) fn keep_links_down(
        &self,
        state: &DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
        vports: &[Vport],
    ) -> Result<()> {
        let is_down = |vport: &&Vport| {
            let vf = state.vports.get(vport).and_then(|info| info.vf.as_ref());
            vf.is_some_and(|vf| vf.link == LinkState::Disable)
        };
        match mode {
            Mode::Legacy => vports.iter().filter(is_down).try_for_each(|vport| self.set_link(cx, *vport, false)),
            Mode::Switchdev | Mode::SwitchdevInactive => Ok(()),
        }
    }

    /// Sets the link states of all VFs as a mode change does: in switchdev mode `disable` is shown, since the
    /// representors decide about the link (`esw_offloads_enable`); in legacy mode each is `auto` (`esw_legacy_enable`).
    pub(crate) fn reset_vf_links(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, mode: Mode) {
        let mut down = Vec::new();
        for (vport, info) in &mut state.vports {
            let Some(vf) = &mut info.vf else { continue };
            if mode.is_switchdev() && vf.link == LinkState::Disable {
                down.push(*vport);
            }
            vf.link = if mode.is_switchdev() { LinkState::Disable } else { LinkState::Auto };
        }
        for vport in down {
            // The representor has taken over. If the card refuses, the link is down when the mode is legacy again, and
            // setting the link state again mends it.
            let _ = self.set_link(cx, vport, true);
        }
    }

    /// Has the card let pass at a port what an access list lets pass.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not. Nothing has changed.
    fn set_acl(&self, cx: &mut Locked<'_, Devlink>, vport: Vport, acl: Acl) -> Result<()> {
        let set = self.shared.card.set_acl(&mut cx.narrow(), &Resource::Port(self.index(), vport), acl);
        self.of_card(vport, "setting the access list", set)
    }

    /// Sets the access lists of those VFs that have just been enabled with settings that were kept for them.
    ///
    /// # Errors
    /// [`Error::Card`]: the card could not.
    pub(crate) fn keep_acls(
        &self,
        state: &DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
        vports: &[Vport],
    ) -> Result<()> {
        let acl = |vport: &Vport| Some((*vport, state.vports.get(vport)?.acl()));
        let set: Vec<(Vport, Acl)> = vports.iter().filter_map(acl).filter(|(_, acl)| *acl != Acl::default()).collect();
        match mode {
            Mode::Legacy => set.into_iter().try_for_each(|(vport, acl)| self.set_acl(cx, vport, acl)),
            Mode::Switchdev | Mode::SwitchdevInactive => Ok(()),
        }
    }

    /// Sets the access lists of all VFs as a mode change does: the legacy switch alone has them. The settings stay
    /// (`esw_legacy_vport_acl_setup`). One that the card refuses is taken back, so that what is shown is what holds.
    pub(crate) fn reset_acls(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, mode: Mode) {
        for (vport, info) in &mut state.vports {
            let acl = info.acl();
            if acl == Acl::default() {
                continue;
            }
            match (mode, &mut info.vf) {
                (Mode::Legacy, Some(vf)) => {
                    if self.set_acl(cx, *vport, acl).is_err() {
                        (vf.spoofchk, vf.vlan) = (false, VfVlan::default());
                    }
                }
                // In switchdev mode nothing passes the legacy switch. If the card refuses, the representor's frames of the VF's
                // VLAN still arrive.
                _ => drop(self.set_acl(cx, *vport, Acl::default())),
            }
        }
    }

    /// Binds a VF to its driver, which makes the VF's netdev.
    ///
    /// # Errors
    /// The VF is bound already, to this driver or another; or its netdev could not be made, and it is not bound.
    pub(crate) fn bind_vf(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        function: VfFunction,
    ) -> Result<()> {
        let VfFunction { address, vport } = function;
        let Some(info) = state.vports.get_mut(&vport) else { return Err(Error::NoFunction(address)) };
        if info.vf.as_ref().is_some_and(|vf| vf.bound || vf.other_driver.is_some()) {
            return Err(Error::AlreadyBound(address));
        }
        let mut bound = info.clone();
        bound.probe();
        if let Some(vf) = &mut bound.vf {
            vf.bound = true;
        }
        let mac = bound.netdev_mac(self.mac_of(vport));
        let has_netdev = bound.has_vf_netdev();
        if has_netdev {
            self.shared.create(cx, Resource::VfNetdev(self.index(), vport), mac, None)?;
        }
        *info = bound;
        self.ensure_vf(cx, vport, has_netdev);
        self.publish(state, cx, || Event::DeviceBound(address));
        Ok(())
    }

    /// Unbinds a VF from its driver, which removes the VF's netdev from whatever network namespace it is in. The port
    /// in the switch and its representor stay.
    ///
    /// # Errors
    /// The VF is not bound.
    pub(crate) fn unbind_vf(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        function: VfFunction,
    ) -> Result<()> {
        let VfFunction { address, vport } = function;
        let vf = state.vf(function)?;
        if !vf.bound {
            return Err(Error::NotBound(address));
        }
        let had_netdev = vf.parts.eth;
        (vf.bound, vf.parts) = (false, Parts::default());
        if had_netdev {
            self.shared.destroy(cx, &[Resource::VfNetdev(self.index(), vport)]);
        }
        self.ensure_vf(cx, vport, false);
        self.publish(state, cx, || Event::DeviceUnbound(address));
        Ok(())
    }

    /// States that a VF has been bound or unbound: its port exists, and its netdev exists if and only if it is bound to a
    /// driver that makes one.
    #[track_caller]
    fn ensure_vf(&self, cx: &Locked<'_, Devlink>, vport: Vport, has_netdev: bool) {
        let [port, netdev] = [Resource::Port(self.index(), vport), Resource::VfNetdev(self.index(), vport)];
        cx.ensure(
            "true-success",
            || self.shared.has_made(&port) && self.shared.has_made(&netdev) == has_netdev,
            || format!("{}: {vport} has a netdev: {has_netdev}, and its port or netdev does not match", self.address()),
        );
    }
}
