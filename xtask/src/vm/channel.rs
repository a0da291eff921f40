//! The channel between this machine and the virtual one. It carries frames: a kind, a length and bytes.
//!
//! One channel carries both outputs, the input and the exit status, so that what a command wrote has arrived before its
//! status has.

use std::io::{self, Read, Write};

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// To the machine: bytes for the command's standard input; no bytes mean its end.
    Input(Vec<u8>),
    /// From the machine: it is up, the first command is about to start.
    Ready,
    /// From the machine: bytes from the command's standard output.
    Output(Vec<u8>),
    /// From the machine: bytes from the command's standard error.
    ErrorOutput(Vec<u8>),
    /// From the machine: the command ended with this status, as a shell has it in `$?`.
    Exit(u8),
    /// From the machine: the reason why it could not be made ready.
    Unusable(String),
}

/// The greatest length of a frame, in bytes. A greater length is invalid.
const MAX: usize = 1 << 20;
/// The most bytes of an output or of the input in one frame.
pub const CHUNK: usize = 64 << 10;

impl Frame {
    /// Writes the frame in one piece.
    ///
    /// # Errors
    /// The other side is gone.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (kind, bytes): (u8, &[u8]) = match self {
            Self::Input(bytes) => (b'i', bytes),
            Self::Ready => (b'r', &[]),
            Self::Output(bytes) => (b'o', bytes),
            Self::ErrorOutput(bytes) => (b'e', bytes),
            Self::Exit(status) => (b'x', std::slice::from_ref(status)),
            Self::Unusable(why) => (b'u', why.as_bytes()),
        };
        let mut frame = vec![kind];
        frame.extend((bytes.len() as u32).to_le_bytes());
        frame.extend(bytes);
        out.write_all(&frame)
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// The other side is gone (`UnexpectedEof`), or this is no frame (`InvalidData`).
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, len @ ..] = head;
        let len = u32::from_le_bytes(len) as usize;
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if len > MAX {
            return Err(invalid(format!("a frame of {len} bytes")));
        }
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes)?;
        Ok(match (kind, &bytes[..]) {
            (b'i', _) => Self::Input(bytes),
            (b'r', []) => Self::Ready,
            (b'o', _) => Self::Output(bytes),
            (b'e', _) => Self::ErrorOutput(bytes),
            (b'x', &[status]) => Self::Exit(status),
            (b'u', _) => Self::Unusable(String::from_utf8_lossy(&bytes).into_owned()),
            _ => return Err(invalid(format!("a frame of kind {kind} with {len} bytes"))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let frames = [
            Frame::Ready,
            Frame::Output(b"\0\xff\n".to_vec()),
            Frame::ErrorOutput(Vec::new()),
            Frame::Input(b"x".to_vec()),
            Frame::Unusable("no disk".to_owned()),
            Frame::Exit(137),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut from = &bytes[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut from).unwrap(), frame);
        }
        assert_eq!(Frame::read(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&b"o\xff\xff\xff\xff"[..], b"z\0\0\0\0", b"x\0\0\0\0", b"r\x01\0\0\0a"] {
            assert_eq!(Frame::read(&mut &*bytes).unwrap_err().kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
