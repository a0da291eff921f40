//! Reads and writes numbers at an offset in a family's own structure.

/// The number of two bytes that begins at `at`, if all of it is there.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The number of four bytes that begins at `at`, if all of it is there.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Writes `new` over the bytes that begin at `at`. Returns whether all of them were there; if not, nothing is written.
pub fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) -> bool {
    let place = at.checked_add(new.len()).and_then(|end| bytes.get_mut(at..end));
    place.map(|place| place.copy_from_slice(new)).is_some()
}
