//! What the RDMA core of a machine's kernel knows of a card's devices and the card does not: their names, in which network
//! namespace each is, and whether namespaces share them (`drivers/infiniband/core/device.c`).
//!
//! A lab has one, as a kernel has one. A device that its card makes anew has its first name again, and is at home.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use devlink::view::RdmaDevice;
use lockdep::{Locked, Mutex};
use netlink::Errno;

use crate::cards::{Cards, Views};
use crate::lock_order::RdmaState;
use crate::network::{NetworkId, NsId};

/// The longest name of a device, with the zero byte at its end (IB_DEVICE_NAME_MAX).
const NAME_MAX: usize = 64;

/// A device: the index of its card, and its index there.
type Key = (usize, u32);

/// The state of the RDMA core.
pub struct RdmaSystem {
    state: Mutex<RdmaState, State>,
    version: AtomicU64,
}

struct State {
    /// Whether network namespaces share the devices, as they do until a program sets it otherwise.
    shared: bool,
    names: HashMap<Key, String>,
    /// The devices that were moved from their home.
    places: HashMap<Key, Place>,
}

impl State {
    fn name<'a>(&'a self, card: usize, device: &'a RdmaDevice) -> &'a str {
        self.names.get(&(card, device.index)).unwrap_or(&device.name)
    }
}

/// A network namespace to which a device was moved.
struct Place {
    network: NetworkId,
    /// The identifier by which the lab's own namespace knows it, which is gone when the namespace is.
    id: NsId,
}

impl Default for RdmaSystem {
    fn default() -> Self {
        let state = State { shared: true, names: HashMap::new(), places: HashMap::new() };
        Self { state: Mutex::new(state), version: AtomicU64::new(0) }
    }
}

impl RdmaSystem {
    /// A number that is another one when something of this has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether network namespaces share the devices.
    pub(crate) fn is_shared<L>(&self, cx: &mut Locked<'_, L>) -> bool {
        self.state.lock_leaf(cx).shared
    }

    /// Sets whether network namespaces share the devices.
    pub(crate) fn set_shared<L>(&self, cx: &mut Locked<'_, L>, shared: bool) {
        self.state.lock_leaf(cx).shared = shared;
        self.changed();
    }

    /// The name of a device.
    pub(crate) fn name<L>(&self, cx: &mut Locked<'_, L>, card: usize, device: &RdmaDevice) -> String {
        self.state.lock_leaf(cx).name(card, device).to_owned()
    }

    /// Renames a device (`ib_device_rename`).
    ///
    /// # Errors
    /// EINVAL: it is no name. EEXIST: a device has it, in whatever namespace.
    pub(crate) fn rename<L>(
        &self,
        cx: &mut Locked<'_, L>,
        views: &Views,
        device: (usize, &RdmaDevice),
        new: &str,
    ) -> Result<(), Errno> {
        let is_name = |c: char| c.is_ascii_graphic() && c != '/';
        if new.is_empty() || new.len() >= NAME_MAX || new.starts_with('.') || !new.chars().all(is_name) {
            return Err(Errno::INVAL);
        }
        let (card, device) = device;
        let mut all = views.each().flat_map(|(card, view)| view.card.rdma.iter().map(move |device| (card, device)));
        let mut state = self.state.lock_leaf(cx);
        if state.name(card, device) == new {
            return Ok(());
        }
        if all.any(|(card, other)| state.name(card, other) == new) {
            return Err(Errno::EXIST);
        }
        state.names.insert((card, device.index), new.to_owned());
        drop(state);
        self.changed();
        Ok(())
    }

    /// Moves a device to a network namespace (`ib_device_set_netns_put`).
    ///
    /// # Errors
    /// EOPNOTSUPP: namespaces share the devices.
    pub(crate) fn move_to<L>(
        &self,
        cx: &mut Locked<'_, L>,
        device: (usize, &RdmaDevice),
        to: (NetworkId, NsId),
    ) -> Result<(), Errno> {
        let (card, device) = device;
        let mut state = self.state.lock_leaf(cx);
        if state.shared {
            return Err(Errno::OPNOTSUPP);
        }
        let (network, id) = to;
        state.places.insert((card, device.index), Place { network, id });
        drop(state);
        self.changed();
        Ok(())
    }

    /// Whether a device is seen in a network namespace (`rdma_dev_access_netns`). `home`: whether that is where the devices
    /// of the card are at first, and where those come back to whose namespace has died (`rdma_dev_exit_net`).
    pub(crate) fn is_seen<L>(
        &self,
        cx: &mut Locked<'_, L>,
        cards: &Cards,
        (card, device): (usize, &RdmaDevice),
        network: Option<NetworkId>,
        home: bool,
    ) -> bool {
        let key = (card, device.index);
        let id = {
            let state = self.state.lock_leaf(cx);
            match state.places.get(&key) {
                _ if state.shared => return true,
                Some(place) if Some(place.network) == network => return true,
                Some(place) if home => place.id,
                place => return place.is_none() && home,
            }
        };
        if cards.networks.has_died(cx, cards, id) {
            self.state.lock_leaf(cx).places.remove(&key);
            self.changed();
            return true;
        }
        false
    }

    /// Forgets the devices that do not exist any more.
    pub(crate) fn forget_all_but<L>(&self, cx: &mut Locked<'_, L>, views: &Views) {
        let mut state = self.state.lock_leaf(cx);
        if state.names.is_empty() && state.places.is_empty() {
            return;
        }
        let exists = |(card, index): &Key| {
            views.view(*card).is_none_or(|view| view.card.rdma.iter().any(|device| device.index == *index))
        };
        state.names.retain(|key, _| exists(key));
        state.places.retain(|key, _| exists(key));
    }
}
