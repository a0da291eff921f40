//! Devlink ports: SFs are added and deleted, and the functions behind ports are configured.

use std::sync::Arc;

use lockdep::{Locked, Unlocked};
use serde::{Deserialize, Serialize};

use super::Engine;
use crate::card::Resource;
use crate::device::Pf;
use crate::devlink::{DevlinkState, Parts};
use crate::error::{Error, Result};
use crate::ids::{MacAddr, Mode, PciAddress, PortHandle, SfNum, Vport};
use crate::lock_order::Devlink as DevlinkClass;
use crate::sf::{SfFunction, SfRequest};

/// A change to a port's function, as `devlink port function set` takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionChange {
    /// `hw_addr`.
    pub hw_addr: Option<MacAddr>,
    /// `roce`: whether the function has RDMA.
    pub roce: Option<bool>,
    /// `state`: active or inactive. Applied last.
    pub active: Option<bool>,
}

impl Engine {
    /// `devlink port add pci/… flavour pcisf pfnum P sfnum S`, for the card's own controller.
    ///
    /// # Errors
    /// See [`Error`]. Nothing has changed then.
    pub fn add_sf(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        pfnum: u32,
        sfnum: SfNum,
    ) -> Result<PortHandle> {
        self.add_sf_of(cx, address, 0, pfnum, sfnum)
    }

    /// `devlink port add pci/… flavour pcisf pfnum P sfnum S controller C`: `controller` is 0 for the card's own, and on
    /// a DPU 1 for its host's. The function of a host's SF is on the host: its netdev is made where those of the host's
    /// VFs are, and it has no device or devlink instance on the DPU.
    ///
    /// # Errors
    /// See [`Error`]. Nothing has changed then.
    pub fn add_sf_of(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        controller: u32,
        pfnum: u32,
        sfnum: SfNum,
    ) -> Result<PortHandle> {
        self.with_devlink(cx, address, |pf, state, cx| {
            let vport = pf.add_sf(state, cx, SfRequest { controller, pfnum, sfnum, place: None, id: None })?;
            Ok(pf.port_handle(vport))
        })
    }

    /// `echo mlx5_core.sf.N > /sys/bus/auxiliary/drivers/mlx5_core.sf/bind`, or `…/unbind`.
    ///
    /// # Errors
    /// No such device; it is in the requested state already; or a driver's probe failed, which is tried again later.
    pub fn set_sf_bound(&self, cx: &mut Locked<'_, Unlocked>, id: u32, bound: bool) -> Result<()> {
        self.with_sf(cx, id, |pf, cx, sf, parts| pf.set_sf_bound(sf, cx, bound, parts))
    }

    /// Has the driver of an SF that is unbound make these parts when it is bound next.
    ///
    /// # Errors
    /// No such device, or it is bound.
    pub fn set_sf_parts(&self, cx: &mut Locked<'_, Unlocked>, id: u32, parts: Parts) -> Result<()> {
        self.with_sf(cx, id, |pf, cx, sf, _| pf.set_sf_parts(sf, cx, parts))
    }

    /// Has the driver of a VF that is unbound make these parts when it is bound next.
    ///
    /// # Errors
    /// No such VF, or it is bound.
    pub fn set_vf_parts(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, parts: Parts) -> Result<()> {
        let vf = self.config().vf_at(address).ok_or(Error::NoFunction(address))?;
        self.with_vf(cx, address, vf, |_, state, _, function| {
            let vf = state.vf(function)?;
            if vf.bound {
                return Err(Error::AlreadyBound(address));
            }
            vf.parts = parts;
            Ok(())
        })
    }

    /// Runs `f` with an SF, and with what its driver makes when it is bound by hand.
    fn with_sf(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        id: u32,
        f: impl Fn(&Pf, &mut Locked<'_, DevlinkClass>, &Arc<SfFunction>, Parts) -> Result<()>,
    ) -> Result<()> {
        for address in self.addresses() {
            let done = self.with_devlink(cx, address, |pf, state, cx| {
                let sf = state.sfs.iter().find(|sf| sf.id() == id && !sf.is_external()).cloned();
                sf.map(|sf| f(pf, cx, &sf, state.params.in_effect.sf_parts())).transpose()
            });
            match done {
                Ok(None) | Err(Error::NoDevice(_)) => {}
                done => return done.map(|_| ()),
            }
        }
        Err(Error::NoSfDevice(id))
    }

    /// `devlink port del`.
    ///
    /// # Errors
    /// No such port, or the port does not belong to an SF.
    pub fn delete_port(&self, cx: &mut Locked<'_, Unlocked>, port: PortHandle) -> Result<()> {
        self.with_port(cx, port, |pf, state, cx, vport| {
            let sf = state.sfs.get(vport).cloned().ok_or(Error::NotSf(port))?;
            pf.delete_sf(state, cx, &sf);
            Ok(())
        })
    }

    /// `devlink port function set`: `hw_addr` and `roce` of a VF or of an SF that is inactive, `state` of an SF. A
    /// change to a VF's `roce` takes effect at once. Its address is taken by its driver when that is bound next.
    ///
    /// # Errors
    /// No such port; its function has no such attribute; or a failure of the card. If the second of two changes fails,
    /// the first remains, as with devlink in the kernel.
    pub fn set_function(&self, cx: &mut Locked<'_, Unlocked>, port: PortHandle, change: FunctionChange) -> Result<()> {
        self.with_port(cx, port, |pf, state, cx, vport| {
            let sf: Option<Arc<SfFunction>> = state.sfs.get(vport).cloned();
            if change.active.is_some() && sf.is_none() {
                return Err(Error::FunctionAttribute { port, attribute: "state" });
            }
            if let Some(mac) = change.hw_addr {
                match (&sf, vport) {
                    (Some(sf), _) => pf.set_sf_mac(sf, cx, mac)?,
                    (None, Vport::Vf(_)) => {
                        if let Some(info) = state.vports.get_mut(&vport) {
                            info.mac = mac;
                        }
                    }
                    (None, Vport::HostPf) => {
                        let function = Resource::Port(pf.index(), vport);
                        self.shared
                            .card
                            .set_mac(&mut cx.narrow(), &function, mac)
                            .map_err(|source| Error::Card { operation: format!("{port}: setting hw_addr"), source })?;
                        if let Some(info) = state.vports.get_mut(&vport) {
                            info.mac = mac;
                        }
                    }
                    _ => return Err(Error::FunctionAttribute { port, attribute: "hw_addr" }),
                }
            }
            if let Some(roce) = change.roce {
                match (&sf, state.vports.get_mut(&vport)) {
                    (Some(sf), _) => pf.set_sf_roce(sf, cx, roce)?,
                    (None, Some(info)) if info.vf.is_some() => info.roce = roce,
                    _ => return Err(Error::FunctionAttribute { port, attribute: "roce" }),
                }
            }
            match (change.active, sf) {
                (Some(active), Some(sf)) => pf.set_sf_active(&sf, cx, active, state.params.in_effect.sf_parts()),
                _ => Ok(()),
            }
        })
    }

    /// Runs a command on a port that exists. The uplink's port always exists, the others only in switchdev mode.
    fn with_port<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        port: PortHandle,
        f: impl FnOnce(&Arc<Pf>, &mut DevlinkState, &mut Locked<'_, DevlinkClass>, Vport) -> Result<R>,
    ) -> Result<R> {
        let dpu = self.shared.config.dpu;
        self.with_devlink(cx, port.device, |pf, state, cx| {
            let (pf_part, number) = port.index.split();
            let vport = Vport::from_number(number, dpu)
                .filter(|_| pf_part == pf.index().0.into())
                .filter(|vport| state.vports.contains_key(vport))
                .ok_or(Error::NoPort(port))?;
            if vport != Vport::Uplink && pf.eswitch.mode.under_devlink(state, cx) == Mode::Legacy {
                return Err(Error::NoPort(port));
            }
            f(pf, state, cx, vport)
        })
    }
}
