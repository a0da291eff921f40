//! Bonds over the card's PFs, and multiport E-Switch.

use lockdep::{Locked, Unlocked};

use super::Engine;
use crate::error::{Error, Result};
use crate::ids::PciAddress;
use crate::lag::{Bond, LagMode, LagView, TxType};

impl Engine {
    /// Reports that the bond over the card's ports has changed; `None` if there is no bond any more. Reports are
    /// collected, and the last one is evaluated.
    pub fn bond_changed(&self, cx: &mut Locked<'_, Unlocked>, bond: Option<Bond>) {
        let _change = self.shared.change();
        self.shared.lag.bond_changed(cx, bond);
    }

    /// The step `bond`: has the effects of a bond over the PFs' netdevs, for a card whose kernel has no bonding driver.
    ///
    /// # Errors
    /// A port does not belong to the card; or the card is in multiport E-Switch mode. Nothing has changed then. A bond
    /// that the card cannot offload is no error: it exists, and [`LagView`] has the reason.
    pub fn bond(
        &self,
        cx: &mut Locked<'_, Unlocked>,
        name: &str,
        tx: TxType<PciAddress>,
        ports: &[PciAddress],
        foreign: &[String],
    ) -> Result<()> {
        let index = |address: &PciAddress| Ok(self.device(*address)?.0.index);
        let tx = tx.with_ports(index)?;
        let ports = ports.iter().map(index).collect::<Result<_>>()?;
        if self.lag(cx).mode == LagMode::Mpesw {
            return Err(Error::BondUnderMpesw(name.to_owned()));
        }
        self.bond_changed(cx, Some(Bond { name: name.to_owned(), tx, ports, foreign: foreign.to_vec() }));
        Ok(())
    }

    /// The step `bond … del`.
    ///
    /// # Errors
    /// No such bond.
    pub fn unbond(&self, cx: &mut Locked<'_, Unlocked>, name: &str) -> Result<()> {
        if self.lag(cx).bond.as_deref() != Some(name) {
            return Err(Error::NoBond(name.to_owned()));
        }
        self.bond_changed(cx, None);
        Ok(())
    }

    /// The present state of the LAG.
    pub fn lag(&self, cx: &mut Locked<'_, Unlocked>) -> LagView {
        self.shared.lag.view(cx)
    }

    /// The number of times that a bond has been evaluated. Several reports that are collected are evaluated once.
    pub fn lag_evaluations(&self, cx: &mut Locked<'_, Unlocked>) -> u64 {
        self.shared.lag.evaluations(cx)
    }

    /// `devlink dev param set pci/… name esw_multiport value true|false cmode runtime`.
    ///
    /// # Errors
    /// To turn it on, every member must be in switchdev mode, there must be no LAG, and the card must have more than
    /// one port. Any other failure is returned after everything has been undone.
    pub fn set_esw_multiport(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, on: bool) -> Result<()> {
        self.with_devlink(cx, address, |_, _, cx| {
            if on {
                self.shared.enable_mpesw(cx)
            } else {
                self.shared.disable_mpesw(cx);
                Ok(())
            }
        })
    }
}
