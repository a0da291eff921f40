//! Changes of meters.

use std::io;

use flow::{Meter, MeterId, Rate};

use super::{Commits, errno};
use crate::compile::Refused;
use crate::layout::{self, View};
use crate::maps::Loaded;
use crate::pipeline::Change;
use crate::sys;

/// A meter that is in the maps.
#[derive(Debug, Clone, Copy)]
pub(super) struct MeterSlot {
    pub(super) index: u32,
    pub(super) meter: Meter,
}

impl Commits {
    /// Makes, changes or removes a meter.
    pub(super) fn change_meter(&mut self, loaded: &Loaded, change: &Change<'_>) -> Result<(), Refused> {
        match change {
            Change::SetMeter { id, meter } => self.set_meter(loaded, *id, *meter),
            Change::RemoveMeter(id) => self.remove_meter(loaded, *id),
            Change::Add { .. } | Change::SetActions { .. } | Change::Remove(_) => Err(Refused::Unknown),
        }
    }

    fn set_meter(&mut self, loaded: &Loaded, id: MeterId, meter: Meter) -> Result<(), Refused> {
        if !meter.is_sensible() {
            return Err(Refused::MeterWithoutRate);
        }
        let capacity = match meter.rate {
            Rate::Mtu(_) => 0,
            Rate::Bytes(_) | Rate::Packets(_) => meter.burst.checked_mul(1_000_000_000).ok_or(Refused::Burst)?,
        };
        let known = self.meters.get(&id).copied();
        if known.is_some_and(|known| known.meter == meter) {
            return Ok(());
        }
        let index = match known {
            Some(known) => known.index,
            None => self.take_meter()?,
        };
        let key = index.to_ne_bytes();
        let put = || -> io::Result<()> {
            let before = loaded.maps.meters.get(&key)?.filter(|_| known.is_some()).unwrap_or_default();
            let (conformed, exceeded) = (View(&before).u64(40), View(&before).u64(48));
            loaded.maps.meters.put(&key, &layout::meter(id, meter, capacity, conformed, exceeded))
        };
        if let Err(error) = put() {
            if known.is_none() {
                self.meter_slots.give_back(index);
            }
            return Err(Refused::Kernel(errno(&error)));
        }
        self.meter_numbers.insert(id, index);
        self.meters.insert(id, MeterSlot { index, meter });
        Ok(())
    }

    fn take_meter(&mut self) -> Result<u32, Refused> {
        if self.meter_slots.ready() == 0 && self.meter_slots.has_resting() {
            sys::wait_for_programs();
            self.meter_slots.recycle();
        }
        self.meter_slots.take().ok_or(Refused::NoRoom("meter"))
    }

    fn remove_meter(&mut self, loaded: &Loaded, id: MeterId) -> Result<(), Refused> {
        let index = *self.meter_numbers.get(&id).ok_or(Refused::Unknown)?;
        if self.meter_users.get(&index).is_some_and(|users| *users != 0) {
            return Err(Refused::Used);
        }
        let cleared = loaded.maps.meters.put(&index.to_ne_bytes(), &[0; layout::METER]);
        cleared.map_err(|error| Refused::Kernel(errno(&error)))?;
        self.meter_numbers.remove(&id);
        self.meters.remove(&id);
        self.meter_slots.give_back(index);
        Ok(())
    }
}
