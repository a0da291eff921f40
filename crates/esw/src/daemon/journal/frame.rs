//! Frames: the form in which state is in one of the two places of a file. A frame is a line of numbers, followed by JSON.
//!
//! ```text
//! eswitch-state VERSION ROOM SEQUENCE LENGTH CHECKSUM
//! ```
//!
//! All of them have a fixed width. The checksum is over everything before it and over the JSON. A place that differs in
//! any byte from what this module would write is damaged. A later version of the format keeps the line and changes what
//! follows it, so that every version can tell a newer file from a damaged one.

use std::ops::Range;

/// The version of the JSON. Version 1 was a database of `redb`'s.
pub const VERSION: u32 = 2;

const NAME: &str = "eswitch-state";
/// The place of the checksum in the line.
const CHECKSUM: Range<usize> = 60..76;
/// The length of the line, with its end.
pub const LINE: usize = 77;

/// The content of a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The version of the body.
    pub version: u32,
    /// The size in bytes of each of the file's two places.
    pub room: u64,
    /// The number of the write that made the frame, higher than those of all writes before it.
    pub sequence: u64,
    /// The state, as JSON.
    pub body: Vec<u8>,
}

impl Frame {
    /// A frame of this version.
    pub fn new(room: u64, sequence: u64, body: Vec<u8>) -> Self {
        Self { version: VERSION, room, sequence, body }
    }

    /// The frame as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { version, room, sequence, body } = self;
        let mut bytes = format!("{NAME} {version:02} {room:010} {sequence:020} {:010} ", body.len()).into_bytes();
        let checksum = checksum(&[&bytes, body]);
        bytes.extend(format!("{checksum:016x}\n").bytes());
        bytes.extend(body);
        bytes
    }

    /// The number of bytes that a frame has according to its line; `None` if the line is none.
    pub fn length(line: &[u8]) -> Option<u64> {
        let mut words = std::str::from_utf8(line.get(..LINE)?).ok()?.split_ascii_whitespace();
        let (name, body) = (words.next()?, words.nth(3)?);
        body.parse::<u64>().ok().filter(|_| name == NAME)?.checked_add(LINE as u64)
    }

    /// Reads a frame at the start of some bytes; `None` if they differ from what this program would have written.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (line, rest) = bytes.split_at_checked(LINE)?;
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1);
        let version = words.next()?.parse().ok()?;
        let room = words.next()?.parse().ok()?;
        let sequence = words.next()?.parse().ok()?;
        let body = rest.get(..words.next()?.parse().ok()?)?;
        // Checked first, as this needs no copy of a body that may be long.
        let sum = checksum(&[&line[..CHECKSUM.start], body]);
        if line[CHECKSUM] != *format!("{sum:016x}").as_bytes() {
            return None;
        }
        let frame = Self { version, room, sequence, body: body.to_vec() };
        (frame.bytes() == bytes[..LINE + body.len()]).then_some(frame)
    }
}

/// CRC-64 as in `xz` (ECMA-182, reflected). It finds all damage within 64 bits of each other, and all but one in 2⁶⁴ of
/// other damage.
pub fn checksum(parts: &[&[u8]]) -> u64 {
    const TABLE: [u64; 256] = table();
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(!0, |sum, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8))
}

const fn table() -> [u64; 256] {
    const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_xz() {
        // The check value of CRC-64/XZ in the catalogue of parametrised CRC algorithms.
        assert_eq!(checksum(&[b"123456789"]), 0x995d_c9bb_df19_39fa);
        assert_eq!(checksum(&[b"1234", b"56789"]), checksum(&[b"123456789"]));
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_whatever_follows_it() {
        for body in ["", "null", "{\"a\": \"\n\u{fc}\"}"] {
            let frame = Frame::new(16_384, u64::MAX, body.as_bytes().to_vec());
            let bytes = frame.bytes();
            assert_eq!(bytes.len(), LINE + body.len());
            assert_eq!(Frame::read(&bytes), Some(frame.clone()));
            assert_eq!(Frame::read(&[&bytes[..], b"of an older write"].concat()), Some(frame));
        }
    }

    #[test]
    fn every_bit_matters() {
        let bytes = Frame::new(16_384, 7, b"{\"stored\":null}".to_vec()).bytes();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::read(&damaged), None, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(Frame::read(&bytes[..length]), None, "{length} bytes");
        }
    }
}
