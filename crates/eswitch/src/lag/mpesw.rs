//! Multiport E-Switch (MPESW): one E-Switch over every port, without a bond.

use lockdep::{LockBefore, Locked};

use crate::card::{Create, Resource};
use crate::error::{Error, Result};
use crate::ids::{PfIndex, Vport};
use crate::lag::LagMode;
use crate::lock_order::Devcom;
use crate::shared::Shared;

impl Shared {
    /// `devlink dev param set … name esw_multiport value true cmode runtime`. If it is on already, this succeeds and
    /// changes nothing.
    ///
    /// # Errors
    /// [`Error::LagActive`]: there is another LAG. [`Error::MpeswOnePort`]: the card has one port.
    /// [`Error::MpeswNeedsSwitchdev`]: a PF is not bound or not in switchdev mode. [`Error::Busy`]: the LAG is held
    /// off. Any other failure, after everything has been undone.
    pub(crate) fn enable_mpesw<P: LockBefore<Devcom>>(&self, cx: &mut Locked<'_, P>) -> Result<()> {
        let (mut component, mut cx) = self.devcom.write(cx);
        let cx = &mut cx;
        match self.lag.mode(cx) {
            LagMode::Mpesw => return Ok(()),
            LagMode::None => {}
            mode => return Err(Error::LagActive(mode)),
        }
        if self.config.pfs < 2 {
            return Err(Error::MpeswOnePort);
        }
        let members = component.lag_members();
        if members.len() != usize::from(self.config.pfs) || members.iter().any(|m| !m.mode.is_switchdev()) {
            return Err(Error::MpeswNeedsSwitchdev);
        }
        if self.lag.is_held_off(cx) {
            return Err(Error::Busy("a mode change"));
        }
        let members: Vec<PfIndex> = members.iter().map(|m| m.pf).collect();
        self.take_metadata(&members, cx)?;
        let enabled = self.enable_lag(&mut component, cx, LagMode::Mpesw, members.clone());
        if enabled.is_err() {
            self.give_metadata_back(&members, cx);
        } else {
            self.lag.members_changed(cx);
        }
        self.ensure_lag_whole(&component, cx);
        if enabled.is_ok() {
            self.ensure_mpesw(cx, true);
        }
        enabled
    }

    /// The same with `value false`. If it is off already, this succeeds and changes nothing. If there is a bond, it is
    /// evaluated again.
    pub(crate) fn disable_mpesw<P: LockBefore<Devcom>>(&self, cx: &mut Locked<'_, P>) {
        let (mut component, mut cx) = self.devcom.write(cx);
        if self.lag.mode(&mut cx) == LagMode::Mpesw {
            self.disable_lag(&mut component, &mut cx);
            self.lag.members_changed(&mut cx);
        }
        self.ensure_mpesw(&cx, false);
    }

    /// Makes the metadata of every member, which marks the member's packets.
    fn take_metadata(&self, members: &[PfIndex], cx: &mut Locked<'_, Devcom>) -> Result<()> {
        let request = |pf: &PfIndex| Create {
            resource: Resource::MpeswMetadata(*pf),
            mac: self.config.mac(*pf, Vport::Uplink),
            sfnum: None,
        };
        self.create_all(cx, &members.iter().map(request).collect::<Vec<_>>())
    }

    /// Unmakes the metadata of every member.
    pub(super) fn give_metadata_back(&self, members: &[PfIndex], cx: &mut Locked<'_, Devcom>) {
        let metadata: Vec<_> = members.iter().map(|pf| Resource::MpeswMetadata(*pf)).collect();
        self.destroy(cx, &metadata);
    }
}
