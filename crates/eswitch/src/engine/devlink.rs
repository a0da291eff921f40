//! Commands on a devlink instance, each of which runs under the devlink lock of its PF.

use std::sync::Arc;

use lockdep::{Locked, Unlocked};

use super::Engine;
use crate::device::{Pf, Slot};
use crate::devlink::{DevlinkState, InlineMode, Params};
use crate::error::{Error, Result};
use crate::ids::{Mode, PciAddress};
use crate::lock_order::Devlink as DevlinkClass;

impl Engine {
    /// Runs a command under the devlink lock of a PF that is bound, and counts it as a change afterwards. If the PF is
    /// being reloaded, the command waits, since its devlink instance exists all the time.
    pub(crate) fn with_devlink<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        f: impl FnOnce(&Arc<Pf>, &mut DevlinkState, &mut Locked<'_, DevlinkClass>) -> Result<R>,
    ) -> Result<R> {
        let mut f = Some(f);
        self.while_registered(cx, address, |pf, cx| {
            pf.devlink.with(cx, |state, cx| match f.take() {
                Some(f) if state.registered => {
                    let before = pf.before(cx, state);
                    let result = f(pf, state, cx);
                    pf.ensure_outcome(cx, state, &before, &result);
                    Some(result)
                }
                not_run => {
                    f = not_run;
                    None
                }
            })
        })
    }

    /// Runs a query under the devlink lock, as [`with_devlink`](Self::with_devlink) does, and counts no change.
    pub(crate) fn query_devlink<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        f: impl FnOnce(&Arc<Pf>, &DevlinkState, &mut Locked<'_, DevlinkClass>) -> Result<R>,
    ) -> Result<R> {
        let mut f = Some(f);
        self.while_registered(cx, address, |pf, cx| {
            pf.devlink.look(cx, |state, cx| match f.take() {
                Some(f) if state.registered => Some(f(pf, state, cx)),
                not_run => {
                    f = not_run;
                    None
                }
            })
        })
    }

    /// Calls `f` with the bound PF until `f` returns a result. `f` returns `None` if the PF was unbound while `f`
    /// waited for the PF's devlink lock. Then `f` is called again with the PF that is bound by then.
    fn while_registered<R>(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        mut f: impl FnMut(&Arc<Pf>, &mut Locked<'_, Unlocked>) -> Option<Result<R>>,
    ) -> Result<R> {
        let (device, _) = self.device(address)?;
        loop {
            match device.bound(cx) {
                Slot::Bound(pf) => {
                    if let Some(result) = f(&pf, cx) {
                        return result;
                    }
                }
                Slot::Unbound => return Err(Error::NoDevice(address)),
                Slot::Reloading => device.wait(cx),
            }
        }
    }

    /// `devlink dev reload`.
    ///
    /// # Errors
    /// No such PF, or it is not bound; or binding it again failed.
    pub fn reload(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        let (device, host_vfs) = self.device(address)?;
        device.reload(cx, &self.shared, host_vfs)
    }

    /// `devlink dev eswitch set … mode`.
    ///
    /// # Errors
    /// See [`Error`]. Nothing has changed then.
    pub fn set_mode(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, mode: Mode) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            if state.rates.has_nodes() {
                return Err(Error::RateNodesExist);
            }
            pf.set_mode(state, cx, mode)
        })
    }

    /// `devlink dev eswitch show`: the mode, and whether `encap-mode` is basic.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn eswitch(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<(Mode, bool)> {
        self.query_devlink(cx, address, |pf, state, cx| Ok((pf.eswitch.mode.under_devlink(state, cx), state.encap)))
    }

    /// The devlink parameters of a PF that are only stored.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn params(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<Params> {
        self.query_devlink(cx, address, |_, state, _| Ok(state.params))
    }

    /// Changes parameters that are only stored, in one step, so that of two concurrent changes to different parameters
    /// none is lost.
    ///
    /// # Errors
    /// No such PF, or it is not bound; or `change` changes a parameter that is fixed in switchdev mode. Nothing has
    /// changed then.
    pub fn change_params(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        address: PciAddress,
        change: impl FnOnce(&mut Params),
    ) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            let mut params = state.params;
            change(&mut params);
            if pf.eswitch.mode.under_devlink(state, cx).is_switchdev() {
                if params.port_metadata != state.params.port_metadata {
                    return Err(Error::MetadataInSwitchdev);
                }
                if params.steering != state.params.steering {
                    return Err(Error::SteeringInSwitchdev);
                }
            }
            state.params = params;
            Ok(())
        })
    }

    /// Reconciles at once instead of after the back-off, so that a representor that failed to load is tried again now.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn recover(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress) -> Result<()> {
        self.pf(cx, address)?.want_reconcile(cx);
        Ok(())
    }

    /// `devlink dev eswitch set … inline-mode`. This card needs no inline headers, so its mode is always `none`.
    ///
    /// # Errors
    /// [`Error::InlineMode`] for any other mode; no such PF, or it is not bound.
    pub fn set_inline_mode(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, mode: InlineMode) -> Result<()> {
        self.query_devlink(cx, address, |_, _, _| match mode {
            InlineMode::None => Ok(()),
            _ => Err(Error::InlineMode),
        })
    }

    /// `devlink dev eswitch set … encap-mode basic|none`. The value is stored and shown. Tunnels are made by the
    /// software that forwards between representors, so the card has nothing to rebuild.
    ///
    /// # Errors
    /// No such PF, or it is not bound.
    pub fn set_encap(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, encap: bool) -> Result<()> {
        self.with_devlink(cx, address, |_, state, _| {
            state.encap = encap;
            Ok(())
        })
    }

    /// `ip link set … netns`: moves a PF's netdev to a network namespace; `None` moves it back to the one in which it
    /// was created.
    ///
    /// # Errors
    /// The E-Switch is in switchdev mode; or the card refuses.
    pub fn set_netns(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, netns: Option<&str>) -> Result<()> {
        self.with_devlink(cx, address, |pf, state, cx| {
            if pf.eswitch.mode.under_devlink(state, cx).is_switchdev() {
                return Err(Error::NetnsLocal);
            }
            self.shared
                .card
                .set_netns(&mut cx.narrow(), pf.index(), netns)
                .map_err(|source| Error::Card { operation: format!("pci/{address}: moving the netdev"), source })
        })
    }
}
