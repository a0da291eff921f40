//! Settings of traps, of health reporters, and of parameters of VFs and SFs. They are kept for as long as the kernel keeps
//! them, and the host of a card [stores](crate::Kept) them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use lockdep::{Locked, Mutex, lock_classes};
use serde::{Deserialize, Serialize};

use crate::kept::pairs;
use crate::view::DeviceName;

lock_classes! {
    /// The settings of traps and health reporters.
    pub leaf SettingsClass = "devlink settings";
}

/// The settings of a health reporter that differ from the defaults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReporterSettings {
    /// The pause between two recoveries, in milliseconds.
    pub grace_period: Option<u64>,
    /// Whether it recovers by itself.
    pub auto_recover: Option<bool>,
    /// Whether it dumps by itself.
    pub auto_dump: Option<bool>,
}

/// A health reporter: its instance, its port if it belongs to one, and its name.
pub(crate) type ReporterKey = (DeviceName, Option<u32>, Name);

/// The name of a trap, reporter or parameter. What was stored by another version may have one that this one does not know.
pub(crate) type Name = Cow<'static, str>;

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// DEVLINK_TRAP_ACTION_* of the traps of an instance that are not at their default.
    #[serde(with = "pairs")]
    traps: BTreeMap<(DeviceName, Name), u8>,
    #[serde(with = "pairs")]
    reporters: BTreeMap<ReporterKey, ReporterSettings>,
    /// Parameters of VFs and SFs that are not at their default.
    #[serde(with = "pairs")]
    params: BTreeMap<(DeviceName, Name), u32>,
}

/// The settings of the instances of a card.
pub struct Settings(Mutex<SettingsClass, State>);

impl Default for Settings {
    fn default() -> Self {
        Self(Mutex::new(State::default()))
    }
}

impl Settings {
    /// Every setting, to be stored.
    pub(crate) fn all<L>(&self, cx: &mut Locked<'_, L>) -> State {
        self.0.lock_leaf(cx).clone()
    }

    /// Takes over settings that were stored.
    pub(crate) fn restore<L>(&self, cx: &mut Locked<'_, L>, stored: State) {
        *self.0.lock_leaf(cx) = stored;
    }

    /// The action of a trap, if it was set.
    pub(crate) fn trap<L>(&self, cx: &mut Locked<'_, L>, device: DeviceName, trap: &'static str) -> Option<u8> {
        self.0.lock_leaf(cx).traps.get(&(device, trap.into())).copied()
    }

    /// Sets the action of a trap.
    pub(crate) fn set_trap<L>(&self, cx: &mut Locked<'_, L>, device: DeviceName, trap: &'static str, action: u8) {
        self.0.lock_leaf(cx).traps.insert((device, trap.into()), action);
    }

    /// The settings of a reporter.
    pub(crate) fn reporter<L>(&self, cx: &mut Locked<'_, L>, reporter: ReporterKey) -> ReporterSettings {
        self.0.lock_leaf(cx).reporters.get(&reporter).copied().unwrap_or_default()
    }

    /// Changes the settings of a reporter.
    pub(crate) fn set_reporter<L>(
        &self,
        cx: &mut Locked<'_, L>,
        reporter: ReporterKey,
        change: impl FnOnce(&mut ReporterSettings),
    ) {
        change(self.0.lock_leaf(cx).reporters.entry(reporter).or_default());
    }

    /// A parameter of a VF or SF, if it was set.
    pub(crate) fn param<L>(&self, cx: &mut Locked<'_, L>, device: DeviceName, name: &'static str) -> Option<u32> {
        self.0.lock_leaf(cx).params.get(&(device, name.into())).copied()
    }

    /// Sets a parameter of a VF or SF.
    pub(crate) fn set_param<L>(&self, cx: &mut Locked<'_, L>, device: DeviceName, name: &'static str, value: u32) {
        self.0.lock_leaf(cx).params.insert((device, name.into()), value);
    }

    /// Forgets what is made anew when an instance is reloaded: its traps, and the reporters of its ports. Those of the
    /// device stay (`mlx5_fw_reporters_create` in `mlx5_init_one`).
    pub(crate) fn reloaded<L>(&self, cx: &mut Locked<'_, L>, device: DeviceName) {
        let mut state = self.0.lock_leaf(cx);
        state.traps.retain(|(of, _), _| *of != device);
        state.reporters.retain(|(of, port, _), _| *of != device || port.is_none());
    }

    /// Forgets the settings of instances that are gone.
    pub(crate) fn forget<L>(&self, cx: &mut Locked<'_, L>, is_gone: impl Fn(DeviceName) -> bool) {
        let mut state = self.0.lock_leaf(cx);
        state.traps.retain(|(of, _), _| !is_gone(*of));
        state.reporters.retain(|(of, ..), _| !is_gone(*of));
        state.params.retain(|(of, _), _| !is_gone(*of));
    }

    /// Forgets the settings of the reporters of a port that is gone.
    pub(crate) fn forget_port<L>(&self, cx: &mut Locked<'_, L>, device: DeviceName, port: u32) {
        self.0.lock_leaf(cx).reporters.retain(|(of, at, _), _| *of != device || *at != Some(port));
    }
}
