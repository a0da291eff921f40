//! How state lies in a file: a line that says what it is, and after it JSON.
//!
//! ```text
//! eswitch-state VERSION SEQUENCE LENGTH CHECKSUM
//! ```
//!
//! All four have a fixed width. The checksum is over everything before it and everything after its line, and a file is
//! what this module would write or it is damaged: there is no byte in it that could be another. A later version of the
//! format keeps the line and changes what comes after it, so that every version can tell a newer file from a
//! damaged one.

use std::ops::Range;

/// How the JSON is to be read. Version 1 was a database of `redb`'s.
pub const VERSION: u32 = 2;

const NAME: &str = "eswitch-state";
/// Where in the line the checksum is.
const CHECKSUM: Range<usize> = 49..65;
/// Bytes of the line, with its end.
pub const LINE: usize = 66;

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// How what it holds is to be read.
    pub version: u32,
    /// The number of the write that made it. Each write has its own, higher than all before it.
    pub sequence: u64,
    /// What it holds.
    pub body: Vec<u8>,
}

/// Bytes that are no frame, and why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damage(pub &'static str);

impl Frame {
    /// A frame of this version.
    pub fn new(sequence: u64, body: Vec<u8>) -> Self {
        Self { version: VERSION, sequence, body }
    }

    /// The bytes of a file that says this.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes =
            format!("{NAME} {:02} {:020} {:010} ", self.version, self.sequence, self.body.len()).into_bytes();
        let checksum = checksum(&[&bytes, &self.body]);
        bytes.extend(format!("{checksum:016x}\n").bytes());
        bytes.extend(&self.body);
        bytes
    }

    /// How many bytes a file has by what its line says.
    ///
    /// # Errors
    /// It has no such line.
    pub fn length(line: &[u8]) -> Result<u64, Damage> {
        let text = line.get(..LINE).and_then(|line| std::str::from_utf8(line).ok());
        let mut words = text.ok_or(Damage("it has no first line that could be state's"))?.split_ascii_whitespace();
        let (name, length) = (words.next(), words.nth(2));
        if name != Some(NAME) {
            return Err(Damage("it has no first line that could be state's"));
        }
        let length: Option<u64> = length.and_then(|length| length.parse().ok());
        Ok(length.ok_or(Damage("its first line is damaged"))?.saturating_add(LINE as u64))
    }

    /// What the bytes of a whole file say.
    ///
    /// # Errors
    /// They are not what this program would have written.
    pub fn read(bytes: &[u8]) -> Result<Self, Damage> {
        let length = Self::length(bytes)?;
        if length != bytes.len() as u64 {
            return Err(Damage("it is longer or shorter than its first line says"));
        }
        let (line, body) = bytes.split_at(LINE);
        let (before, found) = (&line[..CHECKSUM.start], &line[CHECKSUM]);
        if found != format!("{:016x}", checksum(&[before, body])).as_bytes() {
            return Err(Damage("its checksum is another"));
        }
        let text = std::str::from_utf8(before).map_err(|_| Damage("its first line is damaged"))?;
        let mut words = text.split_ascii_whitespace().skip(1);
        let version = words.next().and_then(|word| word.parse().ok());
        let sequence = words.next().and_then(|word| word.parse().ok());
        let (Some(version), Some(sequence)) = (version, sequence) else {
            return Err(Damage("its first line is damaged"));
        };
        let frame = Self { version, sequence, body: body.to_vec() };
        // The line's end and the spaces, which a checksum that happens to fit has not vouched for.
        if frame.bytes() == bytes { Ok(frame) } else { Err(Damage("its first line is damaged")) }
    }
}

/// CRC-64 as `xz` has it (ECMA-182, reflected). Whatever is changed within 64 bits of one another is found; of all other
/// damage one in 2⁶⁴ is not.
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
    fn the_checksum_is_the_one_that_others_have() {
        // The check value of CRC-64/XZ in the catalogue of parametrised CRC algorithms.
        assert_eq!(checksum(&[b"123456789"]), 0x995d_c9bb_df19_39fa);
        assert_eq!(checksum(&[b"1234", b"56789"]), checksum(&[b"123456789"]));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for body in ["", "null", "{\"a\": \"\n\u{fc}\"}"] {
            let frame = Frame::new(u64::MAX, body.as_bytes().to_vec());
            let bytes = frame.bytes();
            assert_eq!(bytes.len(), LINE + body.len());
            assert_eq!(Frame::read(&bytes), Ok(frame));
        }
    }

    #[test]
    fn every_bit_matters_and_every_length() {
        let bytes = Frame::new(7, b"{\"stored\":null}".to_vec()).bytes();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::read(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Frame::read(&bytes[..length]).is_err(), "{length} bytes");
        }
        assert!(Frame::read(&[&bytes[..], b"\0"].concat()).is_err(), "longer");
    }
}
