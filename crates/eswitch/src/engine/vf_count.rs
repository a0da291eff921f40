//! The number of VFs: `sriov_numvfs`, and on a DPU the one that the host sets.

use lockdep::{AtomicContext, Locked, Unlocked};

use super::Engine;
use crate::device::Pf;
use crate::error::{Error, Result};
use crate::eswitch::Work;
use crate::ids::PciAddress;

impl Engine {
    /// `echo N > …/sriov_numvfs`.
    ///
    /// # Errors
    /// ERANGE: more than `sriov_totalvfs`. EBUSY: VFs exist and `n` is neither 0 nor their number. Otherwise the first
    /// failure. Nothing has changed then.
    pub fn set_num_vfs(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, n: u32) -> Result<()> {
        let (device, _) = self.device(address)?;
        device.with(cx, |cx| {
            let pf = device.pf(cx).map_err(|_| Error::NoDriver(address))?;
            pf.devlink.with(cx, |state, cx| pf.set_num_vfs(state, cx, n))
        })
    }

    /// Has the effects that a write to `sriov_numvfs` on the *host* of a DPU has: the count changes, and an interrupt,
    /// in which nothing may sleep or allocate, notifies the card.
    ///
    /// # Errors
    /// The card is no DPU, or `n` is greater than `sriov_totalvfs`.
    pub fn set_host_vfs(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, n: u32) -> Result<()> {
        let _change = self.shared.change();
        let (device, host_vfs) = self.device(address)?;
        let total = self.shared.config.total_vfs;
        if !self.shared.config.dpu {
            return Err(Error::NoHost(address));
        }
        if n > total.into() {
            return Err(Error::TooManyVfs { requested: n, total });
        }
        host_vfs.store(n.into());
        if let Ok(pf) = device.pf(cx) {
            cx.interrupt(|cx| pf.host_functions_changed(cx));
        }
        Ok(())
    }
}

impl Pf {
    /// The notifier of a DPU: the host has changed the number of its functions. It runs in atomic context. If the queue
    /// has no room for the work item, a mark is left that has the same effect.
    fn host_functions_changed(&self, cx: &mut Locked<'_, AtomicContext>) {
        let _ = self.eswitch.work.queue_atomic(cx, Work::HostFunctions);
    }
}
