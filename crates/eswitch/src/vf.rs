//! VFs as PCI functions of their own: what each is, beside its port in the switch.
//!
//! A VF's driver is no thread and no lock of its own. What is known of it stands with its vport under its PF's
//! devlink lock, and what its driver makes is a resource of the card.

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use crate::card::Resource;
use crate::device::Pf;
use crate::devlink::DevlinkState;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::ids::{MacAddr, Mode, PciAddress, PfIndex, Vport};
use crate::lock_order::Devlink;

/// What `ip link` sets of a VF's link, `state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub enum LinkState {
    /// As the wire's.
    #[default]
    Auto,
    /// Up whatever the wire is.
    Enable,
    /// Down.
    Disable,
}

/// The VLAN that a VF's frames are put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct VfVlan {
    /// 0 for none, to 4095.
    pub id: u16,
    /// The priority, to 7.
    pub qos: u8,
    /// The protocol of the tag: 0x8100 or 0x88a8.
    pub proto: u16,
}

impl Default for VfVlan {
    fn default() -> Self {
        Self { id: 0, qos: 0, proto: ETH_P_8021Q }
    }
}

/// The protocol of an ordinary VLAN tag.
pub const ETH_P_8021Q: u16 = 0x8100;

/// The protocol of a service tag.
pub const ETH_P_8021AD: u16 = 0x88a8;

/// What there is of a VF beside its port. It is forgotten when VFs are disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Hash)]
pub struct VfInfo {
    /// Whether it is bound to the driver.
    pub bound: bool,
    /// `driver_override`, if one is set.
    pub driver_override: Option<String>,
    /// Whether it was taken off the bus with `remove`.
    pub removed: bool,
    /// `vlan`, stored and shown.
    pub vlan: VfVlan,
    /// `min_tx_rate` in Mbit/s, stored and shown.
    pub min_tx_rate: u32,
    /// `max_tx_rate` in Mbit/s, 0 for no limit; stored and shown.
    pub max_tx_rate: u32,
    /// `spoofchk`, stored and shown.
    pub spoofchk: bool,
    /// `trust`, stored and shown.
    pub trust: bool,
    /// `state`.
    pub link: LinkState,
}

impl VfInfo {
    /// A VF that has just been enabled.
    pub(crate) fn new(bound: bool) -> Self {
        Self {
            bound,
            driver_override: None,
            removed: false,
            vlan: VfVlan::default(),
            min_tx_rate: 0,
            max_tx_rate: 0,
            spoofchk: false,
            trust: false,
            link: LinkState::default(),
        }
    }
}

/// A VF that is enabled, for those who look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfView {
    /// Its number.
    pub number: u16,
    /// The MAC address of its function.
    pub mac: MacAddr,
    /// Whether its function has RDMA.
    pub roce: bool,
    /// What else there is of it.
    pub info: VfInfo,
}

/// One thing that `ip link set PF vf N` sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfSetting {
    /// `mac`, of the function: it is that of `devlink port function set … hw_addr`.
    Mac(MacAddr),
    /// `vlan`, with `qos` and `proto`.
    Vlan(VfVlan),
    /// `min_tx_rate` and `max_tx_rate`, in Mbit/s; what is not given stays.
    Rate {
        /// The least, if given.
        min: Option<u32>,
        /// The most, 0 for no limit, if given.
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
    /// The name of what it sets, if that is the legacy switch's business: in switchdev mode it is for whoever
    /// holds the representor to decide. VLAN 0 is allowed, as tools set it without being asked.
    fn of_legacy_switch(self) -> Option<&'static str> {
        match self {
            Self::Vlan(vlan) if vlan.id != 0 || vlan.qos != 0 => Some("vlan"),
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
    /// The PF is not bound; no such VF is enabled; the mode is switchdev and it is the legacy switch's; or a value
    /// is out of its range. Nothing is changed.
    pub fn set_vf(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        vf: u32,
        setting: VfSetting,
    ) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            let missing = || Error::NoVf { pf: address, vf };
            // A DPU's VFs are its host's to set.
            let number = u16::try_from(vf).ok().filter(|_| !self.shared.config.dpu).ok_or_else(missing)?;
            let vport = Vport::Vf(number);
            let mode = pf.eswitch.mode.under_devlink(state, cx);
            let info = state.vports.get_mut(&vport).and_then(|info| info.vf.as_mut()).ok_or_else(missing)?;
            if mode == Mode::Switchdev
                && let Some(what) = setting.of_legacy_switch()
            {
                return Err(Error::VfInSwitchdev(what));
            }
            match setting {
                VfSetting::Mac(mac) => return pf.set_vf_mac(state, cx, vport, mac),
                setting => info.set(setting)?,
            }
            Ok(())
        })
    }

    /// Runs a command on a VF that is on the bus.
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

/// A VF, by what the bus and the switch call it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VfFunction {
    pub address: PciAddress,
    pub vport: Vport,
}

impl DevlinkState {
    /// A VF that is on the bus.
    ///
    /// # Errors
    /// It is not enabled, or was taken off the bus.
    pub(crate) fn vf(&mut self, function: VfFunction) -> Result<&mut VfInfo> {
        let info = self.vports.get_mut(&function.vport).and_then(|info| info.vf.as_mut());
        info.filter(|vf| !vf.removed).ok_or(Error::NoFunction(function.address))
    }
}

impl VfInfo {
    /// Stores a setting that is nothing but stored.
    fn set(&mut self, setting: VfSetting) -> Result<()> {
        match setting {
            VfSetting::Mac(_) => {}
            VfSetting::Vlan(vlan) if vlan.id > 4095 || vlan.qos > 7 => return Err(Error::VfVlan),
            VfSetting::Vlan(vlan) if vlan.proto != ETH_P_8021Q => return Err(Error::VfVlanProto),
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
            VfSetting::Link(link) => self.link = link,
        }
        Ok(())
    }
}

impl Pf {
    /// Gives a VF's function another MAC address: its netdev has it at once, if there is one.
    ///
    /// On hardware a driver that is bound keeps its address until it is bound again. Here the address is the
    /// port's, and whoever looks at either end finds the same; who binds again finds no difference.
    pub(crate) fn set_vf_mac(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        vport: Vport,
        mac: MacAddr,
    ) -> Result<()> {
        let Some(info) = state.vports.get_mut(&vport) else { return Ok(()) };
        if info.is_vf_bound() {
            let netdev = Resource::VfNetdev(self.index(), vport);
            let set = self.shared.card.set_mac(&mut cx.narrow(), &netdev, mac);
            let operation = || format!("{}: setting the MAC address", self.port_handle(vport));
            set.map_err(|source| Error::Card { operation: operation(), source })?;
        }
        info.mac = mac;
        Ok(())
    }

    /// Binds a VF to its driver, which makes its netdev.
    ///
    /// # Errors
    /// It is bound; its netdev could not be made, and it is not bound.
    pub(crate) fn bind_vf(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        function: VfFunction,
    ) -> Result<()> {
        let VfFunction { address, vport } = function;
        let Some(info) = state.vports.get_mut(&vport) else { return Err(Error::NoFunction(address)) };
        if info.is_vf_bound() {
            return Err(Error::AlreadyBound(address));
        }
        self.shared.create(cx, Resource::VfNetdev(self.index(), vport), info.mac, None)?;
        if let Some(vf) = &mut info.vf {
            vf.bound = true;
        }
        self.ensure_vf(cx, vport, true);
        self.shared.events.emit(cx, || Event::DeviceBound(address));
        Ok(())
    }

    /// Unbinds a VF from its driver: its netdev goes, wherever it is. Its port in the switch stays, with its
    /// representor.
    ///
    /// # Errors
    /// It is not bound.
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
        vf.bound = false;
        self.shared.destroy(cx, &[Resource::VfNetdev(self.index(), vport)]);
        self.ensure_vf(cx, vport, false);
        self.shared.events.emit(cx, || Event::DeviceUnbound(address));
        Ok(())
    }

    /// A VF is bound, or is not any more: its port is there, and its netdev if it is bound.
    #[track_caller]
    fn ensure_vf(&self, cx: &Locked<'_, Devlink>, vport: Vport, bound: bool) {
        let [port, netdev] = [Resource::Port(self.index(), vport), Resource::VfNetdev(self.index(), vport)];
        cx.ensure(
            "true-success",
            || self.shared.has_made(&port) && self.shared.has_made(&netdev) == bound,
            || format!("{}: {vport} is bound: {bound}, and its port or netdev says otherwise", self.address()),
        );
    }
}
