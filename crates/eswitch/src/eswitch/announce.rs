//! The events of a PF's devlink instance: what is published when, for the invariant `told-once`.
//!
//! The order is that of the kernel: an instance is announced before its ports and withdrawn after them
//! (`devlink_notify_register` and `devlink_notify_unregister` in `net/devlink/dev.c`), and a reload withdraws and
//! announces the ports but not the instance.

use lockdep::Locked;

use crate::device::Pf;
use crate::devlink::{DevlinkState, VportInfo};
use crate::event::{Event, Instance};
use crate::ids::{Mode, Vport};
use crate::lock_order::Devlink;

impl Pf {
    /// Publishes an event of the instance, unless the instance is not announced: [`announce`](Self::announce) then
    /// publishes the state that is reached.
    #[track_caller]
    pub(crate) fn publish(&self, state: &DevlinkState, cx: &mut Locked<'_, Devlink>, event: impl FnOnce() -> Event) {
        if state.announced {
            self.shared.events.emit(cx, event);
        }
    }

    /// Publishes that those of these vports that are bound VFs were bound, or will be unbound. The VFs of a DPU's host
    /// are the host's devices, and nothing is published of them.
    pub(crate) fn publish_vfs(
        &self,
        state: &DevlinkState,
        cx: &mut Locked<'_, Devlink>,
        vports: &[Vport],
        bound: bool,
    ) {
        for vport in vports {
            let Vport::Vf(number) = *vport else { continue };
            if state.vports.get(vport).is_some_and(VportInfo::is_vf_bound) {
                let address = self.shared.config.vf_address(self.index(), number);
                self.publish(state, cx, || {
                    if bound { Event::DeviceBound(address) } else { Event::DeviceUnbound(address) }
                });
            }
        }
    }

    /// Announces the instance with all that it shows; after a reload, without the instance itself.
    pub(crate) fn announce(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, reloading: bool) {
        state.announced = true;
        let mode = self.eswitch.mode.under_devlink(state, cx);
        if !reloading {
            self.publish(state, cx, || Event::DeviceBound(self.address()));
        }
        if mode != Mode::Legacy {
            self.publish(state, cx, || Event::Mode(self.address(), mode));
        }
        if state.num_vfs != 0 {
            self.publish(state, cx, || Event::Vfs(self.address(), state.num_vfs));
        }
        for vport in visible(state, mode) {
            self.publish(state, cx, || Event::PortNew(self.port_handle(vport)));
        }
        let vports: Vec<Vport> = state.vports.keys().copied().collect();
        self.publish_vfs(state, cx, &vports, true);
    }

    /// Withdraws what is left of the instance after its other vports have been disabled; for a reload, without the
    /// instance itself.
    pub(crate) fn withdraw(&self, state: &mut DevlinkState, cx: &mut Locked<'_, Devlink>, mode: Mode, reloading: bool) {
        self.publish(state, cx, || Event::PortDel(self.port_handle(Vport::Uplink)));
        if reloading {
            if mode != Mode::Legacy {
                self.publish(state, cx, || Event::Mode(self.address(), Mode::Legacy));
            }
            if state.num_vfs != 0 {
                self.publish(state, cx, || Event::Vfs(self.address(), 0));
            }
        } else {
            self.publish(state, cx, || Event::DeviceUnbound(self.address()));
        }
        state.announced = false;
    }

    /// States that the events so far have published what a reader can see of the instance now.
    #[track_caller]
    pub(crate) fn ensure_published<L>(&self, cx: &Locked<'_, L>, state: &DevlinkState, mode: Mode) {
        if !cx.is_checked() || !state.announced {
            return;
        }
        let ports = visible(state, mode).map(|vport| self.port_handle(vport)).collect();
        let now = Instance { mode, num_vfs: state.num_vfs, ports };
        let published = self.shared.events.published(|published| published.pfs.get(&self.address()).cloned());
        cx.ensure(
            "told-once",
            || published.as_ref() == Some(&now),
            || format!("{}: a reader sees {now:?}, and events have published {published:?}", self.address()),
        );
    }
}

/// The vports that have a devlink port which a reader can see: the uplink, and in switchdev mode all.
fn visible(state: &DevlinkState, mode: Mode) -> impl Iterator<Item = Vport> {
    state.vports.keys().copied().filter(move |vport| *vport == Vport::Uplink || mode.is_switchdev())
}
