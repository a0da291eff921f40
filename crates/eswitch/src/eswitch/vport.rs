//! Enables and disables the vports of VFs, for `sriov_numvfs` and for the host of a DPU.

use std::sync::Arc;

use lockdep::Locked;

use crate::card::{Create, Resource};
use crate::device::Pf;
use crate::devlink::{DevlinkState, VportInfo};
use crate::error::{Error, Result};
use crate::eswitch::representor::LoadPolicy;
use crate::event::Event;
use crate::ids::{MacAddr, Mode, SfNum, Vport};
use crate::lock_order::Devlink;
use crate::vf::VfInfo;

impl Pf {
    /// Sets `sriov_numvfs` from 0 to n, or from n to 0. Setting the present number succeeds.
    ///
    /// # Errors
    /// ERANGE: n is over `sriov_totalvfs`. EBUSY: from n to m, as in the kernel's ABI
    /// (`Documentation/ABI/testing/sysfs-bus-pci`). Or the first failure, with nothing changed.
    pub(crate) fn set_num_vfs(
        self: &Arc<Self>,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        n: u32,
    ) -> Result<()> {
        let config = &self.shared.config;
        if config.dpu {
            return if n == 0 { Ok(()) } else { Err(Error::VfsOfHost) };
        }
        if n > config.total_vfs.into() {
            return Err(Error::TooManyVfs { requested: n, total: config.total_vfs });
        }
        let (current, n) = (state.num_vfs, n as u16);
        let before = self.before(cx, state);
        if n == current {
            return Ok(());
        }
        if n != 0 && current != 0 {
            return Err(Error::VfsEnabled { current, requested: n });
        }
        let mode = self.eswitch.mode.begin(cx, "a change of the VF count")?;
        self.hold_lag_off(cx);
        self.raise_generation(cx);
        let result = if n > 0 {
            let vfs: Vec<Vport> = (0..n).map(Vport::Vf).collect();
            self.enable_vports(state, cx, mode, &vfs, None, LoadPolicy::Strict)
        } else {
            let vfs: Vec<Vport> = (0..current).map(Vport::Vf).collect();
            self.disable_vports(state, cx, mode, &vfs);
            Ok(())
        };
        if result.is_ok() {
            state.num_vfs = n;
            self.shared.devcom.write(cx).0.set_num_vfs(self.index(), n);
            self.publish(state, cx, || Event::Vfs(self.address(), n));
        }
        self.eswitch.mode.finish(cx, mode);
        self.ensure_outcome(cx, state, &before, &result);
        if result.is_ok() && cx.is_checked() {
            let vfs = |range: std::ops::Range<u16>| range.map(Vport::Vf).collect::<Vec<_>>();
            self.ensure_ports(cx, state, &vfs(0..n), true);
            self.ensure_ports(cx, state, &vfs(n..current), false);
        }
        self.shared.lag.release(cx);
        // The new generation may have made work stale that must still be done.
        self.want_reconcile(cx);
        result
    }

    /// Enables or disables vports of a DPU until they match the VFs that its host has enabled.
    ///
    /// # Errors
    /// The first failure. Everything else has been done.
    pub(crate) fn follow_host_vfs(
        self: &Arc<Self>,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
    ) -> Result<()> {
        let wanted = self.host_vfs.load().min(self.shared.config.total_vfs.into()) as u16;
        let current = state.num_vfs;
        if wanted == current {
            return Ok(());
        }
        let mut result = Ok(());
        if wanted > current {
            let new: Vec<Vport> = (current..wanted).map(Vport::Vf).collect();
            // Either all ports are added or none, as a count says which VFs have ports.
            result = self.enable_vports(state, cx, mode, &new, None, LoadPolicy::Lenient);
            if !state.vports.contains_key(&Vport::Vf(current)) {
                return result;
            }
        } else {
            let gone: Vec<Vport> = (wanted..current).map(Vport::Vf).collect();
            self.disable_vports(state, cx, mode, &gone);
        }
        state.num_vfs = wanted;
        self.publish(state, cx, || Event::Vfs(self.address(), wanted));
        result
    }

    /// Adds ports with their representors, and in switchdev mode loads these.
    ///
    /// # Errors
    /// A port could not be made: no port is added. Or a load failed: under [`LoadPolicy::Strict`] no port is added
    /// either.
    pub(crate) fn enable_vports(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
        vports: &[Vport],
        sfnum: Option<SfNum>,
        policy: LoadPolicy,
    ) -> Result<()> {
        let infos: Vec<VportInfo> = vports.iter().map(|vport| self.initial_info(state, *vport)).collect();
        self.make_ports(cx, vports, &infos, sfnum)?;
        state.vports.extend(vports.iter().copied().zip(infos));
        let kept = self.keep_links_down(state, cx, mode, vports);
        let kept = kept.and_then(|()| self.keep_acls(state, cx, mode, vports));
        let kept = kept.and_then(|()| self.keep_rates(state, cx, vports));
        if let Err(error) = kept {
            self.drop_ports(state, cx, vports);
            return Err(error);
        }
        let loaded = self.eswitch.with_representors(cx, |table, cx| {
            table.add(vports);
            if mode == Mode::Legacy {
                return Ok(());
            }
            let ops = self.eswitch.ops(cx);
            let loaded = table.load(cx, &self.shared.events, &ops, vports, policy);
            if loaded.is_err() && policy == LoadPolicy::Strict {
                table.remove(vports);
            }
            loaded
        });
        if loaded.is_err() && policy == LoadPolicy::Strict {
            self.drop_ports(state, cx, vports);
        } else {
            if mode.is_switchdev() {
                for vport in vports {
                    self.publish(state, cx, || Event::PortNew(self.port_handle(*vport)));
                }
            }
            self.publish_vfs(state, cx, vports, true);
        }
        loaded
    }

    /// The state of a vport when it is enabled: the state that was kept for it, or a new one.
    fn initial_info(&self, state: &DevlinkState, vport: Vport) -> VportInfo {
        state.kept.get(&vport).cloned().unwrap_or_else(|| self.new_info(vport, state.autoprobe))
    }

    /// The state of a vport that is enabled for the first time. `bound`: whether it is bound to its driver, if its
    /// function is a VF. A VF has no administrative address yet: the firmware has none for it, and
    /// `mlx5_esw_vport_enable` sets none.
    pub(crate) fn new_info(&self, vport: Vport, bound: bool) -> VportInfo {
        match vport {
            Vport::Vf(_) => VportInfo::new(MacAddr::ZERO, Some(VfInfo::new(bound))),
            vport => VportInfo::new(self.mac_of(vport), None),
        }
    }

    /// Makes ports, and the netdevs of those VFs that are bound, in one batch.
    fn make_ports(
        &self,
        cx: &mut Locked<'_, Devlink>,
        vports: &[Vport],
        infos: &[VportInfo],
        sfnum: Option<SfNum>,
    ) -> Result<()> {
        let sfnum = sfnum.map(|n| n.0);
        let vports = vports.iter().zip(infos);
        let mac = |vport: Vport, info: &VportInfo| info.netdev_mac(self.mac_of(vport));
        let port = |v| Resource::Port(self.index(), v);
        let ports = vports.clone().map(|(v, info)| Create { resource: port(*v), mac: mac(*v, info), sfnum });
        let netdev = |v| Resource::VfNetdev(self.index(), v);
        let netdevs = vports.filter(|(_, info)| info.has_vf_netdev());
        let netdevs = netdevs.map(|(v, info)| Create { resource: netdev(*v), mac: mac(*v, info), sfnum });
        self.shared.create_all(cx, &ports.chain(netdevs).collect::<Vec<_>>())
    }

    /// Unloads the representors of vports and removes their ports.
    pub(crate) fn disable_vports(
        &self,
        state: &mut DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        mode: Mode,
        vports: &[Vport],
    ) {
        self.eswitch.with_representors(cx, |table, cx| {
            let ops = self.eswitch.ops(cx);
            table.unload(cx, &self.shared.events, &ops, vports);
            table.remove(vports);
        });
        self.publish_vfs(state, cx, vports, false);
        self.drop_ports(state, cx, vports);
        if mode.is_switchdev() {
            for vport in vports {
                self.publish(state, cx, || Event::PortDel(self.port_handle(*vport)));
            }
        }
    }

    fn drop_ports(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, vports: &[Vport]) {
        let with_netdev = vports.iter().filter(|v| state.vports.get(v).is_some_and(VportInfo::has_vf_netdev));
        let netdevs = with_netdev.map(|v| Resource::VfNetdev(self.index(), *v));
        let ports = vports.iter().map(|v| Resource::Port(self.index(), *v));
        self.shared.destroy(cx, &netdevs.chain(ports).collect::<Vec<_>>());
        for vport in vports {
            state.vports.remove(vport);
            state.rates.forget(*vport);
        }
    }
}
