//! The PCI configuration space of a function, and its address ranges: enough for `lspci -vv`.

use devlink::view;
use eswitch::PciAddress;

/// The size of the configuration space, in bytes.
pub(super) const SIZE: usize = 4096;

/// The offsets of the capabilities.
const EXPRESS: usize = 0x60;
const MSIX: usize = 0x9c;
const POWER: usize = 0x40;
const ERRORS: usize = 0x100;
const ROUTING: usize = 0x150;
const SRIOV: usize = 0x180;

/// An address range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) size: u64,
}

/// The size of BAR 0 of a PF and of a VF.
pub(super) const PF_MEMORY: u64 = 32 << 20;
pub(super) const VF_MEMORY: u64 = 1 << 20;

/// BAR 0 of a function: 32 MiB of a PF, 1 MiB of a VF. No two overlap.
pub(super) fn memory(card: usize, function: &view::Function) -> Range {
    match &function.vf_of {
        None => {
            let number = u64::from(function.address.function);
            Range { start: card_memory(card) + (number << 25), size: PF_MEMORY }
        }
        Some((pf, vf)) => Range { start: vf_memory(card, *pf) + (u64::from(*vf) << 20), size: VF_MEMORY },
    }
}

fn card_memory(card: usize) -> u64 {
    0x20_0000_0000 + ((card as u64 & 0xff) << 38)
}

/// The address of the BARs of a PF's VFs, one after the other.
pub(super) fn vf_memory(card: usize, pf: PciAddress) -> u64 {
    card_memory(card) + (1 << 37) + (u64::from(pf.function) << 36)
}

struct Space([u8; SIZE]);

impl Space {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        if let Some(place) = self.0.get_mut(at..at + N) {
            place.copy_from_slice(&bytes);
        }
    }
    fn u8(&mut self, at: usize, value: u8) {
        self.put(at, [value]);
    }
    fn u16(&mut self, at: usize, value: u16) {
        self.put(at, value.to_le_bytes());
    }
    fn u32(&mut self, at: usize, value: u32) {
        self.put(at, value.to_le_bytes());
    }
    /// Writes the header of an extended capability: its id, its version, and the offset of the next.
    fn extended(&mut self, at: usize, id: u16, version: u32, next: usize) {
        self.u32(at, u32::from(id) | version << 16 | (next as u32) << 20);
    }
    /// Writes a 64-bit, prefetchable BAR.
    fn bar(&mut self, at: usize, start: u64) {
        self.put(at, (start | 0xc).to_le_bytes());
    }
}

/// The configuration space of a function.
pub(super) fn space(card: &view::Card, card_at: usize, function: &view::Function) -> Vec<u8> {
    let mut space = Space([0; SIZE]);
    let (profile, bound) = (&card.profile, function.is_enabled(&card.profile));
    let address = function.address;
    space.u16(0x00, profile.vendor);
    space.u16(0x02, device_id(profile, function));
    space.u16(0x04, if bound { 0x0406 } else { 0 });
    space.u16(0x06, 0x0010);
    space.u8(0x08, profile.revision);
    space.u8(0x0b, 0x02);
    space.u8(0x0c, if function.vf_of.is_none() { 0x10 } else { 0 });
    // A PF is one of several functions, whether or not the others are there: so it has its number in its name.
    space.u8(0x0e, if function.vf_of.is_none() { 0x80 } else { 0 });
    space.u16(0x2c, profile.subsystem.0);
    space.u16(0x2e, profile.subsystem.1);
    space.u8(0x34, EXPRESS as u8);
    if function.vf_of.is_none() {
        // The BARs of a VF are in its PF's SR-IOV capability, and a VF has no interrupt pin.
        space.bar(0x10, memory(card_at, function).start);
        space.u8(0x3d, address.function % 4 + 1);
    }
    express(&mut space, function.vf_of.is_none());
    interrupts(&mut space, function.msix, bound);
    power(&mut space);
    extended(&mut space, card_at, function, profile, address);
    space.0.to_vec()
}

/// The device id of a function.
pub(super) fn device_id(profile: &view::Profile, function: &view::Function) -> u16 {
    if function.vf_of.is_some() { profile.vf_device } else { profile.device }
}

fn express(space: &mut Space, physical: bool) {
    space.put(EXPRESS, [0x10, MSIX as u8]);
    // Version 2, an endpoint: 512 bytes of payload, extended tags, role-based errors, function-level reset.
    space.u16(EXPRESS + 2, 0x0002);
    space.u32(EXPRESS + 4, 0x1000_8022 | 0x8fc0);
    if physical {
        space.u16(EXPRESS + 8, 0x2930);
        // 16 GT/s and 16 lanes, as capability and as status; speeds from 2.5 GT/s.
        space.u32(EXPRESS + 12, 0x0000_0104);
        space.u16(EXPRESS + 16, 0x0040);
        space.u16(EXPRESS + 18, 0x1104);
        space.u32(EXPRESS + 44, 0x0000_001e);
        space.u16(EXPRESS + 48, 0x0004);
    }
    space.u32(EXPRESS + 36, 0x0000_0012);
}

fn interrupts(space: &mut Space, vectors: u16, bound: bool) {
    space.put(MSIX, [0x11, POWER as u8]);
    space.u16(MSIX + 2, vectors.saturating_sub(1) | if bound { 0x8000 } else { 0 });
    space.u32(MSIX + 4, 0x2000);
    space.u32(MSIX + 8, 0x3000);
}

fn power(space: &mut Space) {
    space.put(POWER, [0x01, 0x00]);
    space.u16(POWER + 2, 0x0003);
    space.u16(POWER + 4, 0x0008);
}

fn extended(space: &mut Space, card: usize, function: &view::Function, profile: &view::Profile, address: PciAddress) {
    let sriov = function.sriov.as_ref();
    space.extended(ERRORS, 0x01, 2, ROUTING);
    space.extended(ROUTING, 0x0e, 1, if sriov.is_some() { SRIOV } else { 0 });
    let Some(sriov) = sriov else { return };
    space.extended(SRIOV, 0x10, 1, 0);
    space.u32(SRIOV + 4, 0x0000_0002);
    // ARI, which numbers more than eight functions; VFs and their memory space enabled if there are VFs.
    space.u16(SRIOV + 8, 0x10 | if sriov.enabled > 0 { 0x09 } else { 0 });
    space.u16(SRIOV + 0x0c, sriov.total);
    space.u16(SRIOV + 0x0e, sriov.total);
    space.u16(SRIOV + 0x10, sriov.enabled);
    space.u8(SRIOV + 0x12, address.function);
    space.u16(SRIOV + 0x14, sriov.offset);
    space.u16(SRIOV + 0x16, 1);
    space.u16(SRIOV + 0x1a, profile.vf_device);
    space.u32(SRIOV + 0x1c, 0x0000_0553);
    space.u32(SRIOV + 0x20, 0x0000_0001);
    space.bar(SRIOV + 0x24, vf_memory(card, address));
}
