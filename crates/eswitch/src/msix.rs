//! The interrupt vectors (MSI-X) of VFs. The VFs of a PF share a number of vectors, and a program can set how many each
//! has (`sriov_vf_total_msix` and `sriov_vf_msix_count` in `Documentation/ABI/testing/sysfs-bus-pci`).
//!
//! Nothing on the card works differently with more vectors. The number is stored, kept within its limits, and shown.

use lockdep::{Locked, Unlocked};

use crate::config::CardConfig;
use crate::devlink::DevlinkState;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::{PciAddress, Vport};

/// The fewest vectors of a VF (`min_dynamic_vf_msix_table_size`): its driver needs one for events and one for
/// completions (`mlx5_irq_table_create`).
pub const MIN: u16 = 2;

/// The most vectors of a VF (`max_dynamic_vf_msix_table_size`). On hardware it depends on the firmware. This is twice
/// the number that a VF has on a card whose vectors cannot be distributed, see [`FIXED`].
pub const MAX: u16 = 128;

/// The vectors of a function whose number cannot be changed.
pub const FIXED: u16 = 64;

impl CardConfig {
    /// The vectors of a VF for which nobody has set a number. `enabled`: the VFs of its PF that are enabled. Some
    /// vectors are left over, so that a VF can get more (`mlx5_get_default_msix_vec_count`).
    pub fn default_vf_msix(&self, enabled: u16) -> u16 {
        if self.vf_msix == 0 {
            return FIXED;
        }
        let share = self.vf_msix / u32::from(enabled.max(1));
        u16::try_from(share).map_or(MAX / 2, |share| share.clamp(MIN, MAX / 2))
    }
}

impl DevlinkState {
    /// The vectors that all VFs but one have.
    fn msix_of_others(&self, config: &CardConfig, vport: Vport) -> u32 {
        let default = config.default_vf_msix(self.num_vfs);
        let others = self.vports.iter().filter(|(other, _)| **other != vport);
        let vfs = others.filter_map(|(_, info)| info.vf.as_ref());
        vfs.map(|vf| u32::from(vf.msix.unwrap_or(default))).sum()
    }
}

impl Engine {
    /// `echo N > …/sriov_vf_msix_count` of a VF (`sriov_vf_msix_count_store`, `mlx5_core_sriov_set_msix_vec_count`).
    /// 0: the number with which VFs start.
    ///
    /// # Errors
    /// No such VF; it is bound to a driver; the card's vectors cannot be distributed; `count` is less than [`MIN`] or
    /// more than [`MAX`], or more than what the other VFs leave. The kernel does not define the firmware's answer in
    /// that last case; here it is MLX5_CMD_STAT_NO_RES_ERR.
    pub fn set_vf_msix(&self, cx: &mut Locked<'_, Unlocked>, address: PciAddress, count: u32) -> Result<()> {
        let config = &self.shared.config;
        let vf = config.vf_at(address).ok_or(Error::NoFunction(address))?;
        self.with_vf(cx, address, vf, |_, state, _, function| {
            let used = state.msix_of_others(config, function.vport);
            let default = config.default_vf_msix(state.num_vfs);
            let vf = state.vf(function)?;
            if vf.bound || vf.other_driver.is_some() {
                return Err(Error::MsixInUse(address));
            }
            if config.vf_msix == 0 {
                return Err(Error::NoDynamicMsix(address));
            }
            let count = match u16::try_from(count) {
                Ok(0) => default,
                Ok(count) if count < MIN => return Err(Error::MsixTooFew),
                Ok(count) if count <= MAX => count,
                _ => return Err(Error::MsixTooMany),
            };
            let left = config.vf_msix.saturating_sub(used);
            if u32::from(count) > left && count > vf.msix.unwrap_or(default) {
                return Err(Error::MsixUsedUp { address, left });
            }
            vf.msix = (count != default).then_some(count);
            Ok(())
        })
    }
}
