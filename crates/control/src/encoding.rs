//! Commands as bytes.
//!
//! The form is JSON, which a person can read in a trace. The version is that of the whole set of commands: it grows with
//! every change that a daemon of the version before would understand otherwise, or not at all.

use crate::command::{Command, MAX_FLAP};
use crate::target::Reply;

/// The version of the encoding.
pub const VERSION: u32 = 1;

/// Bytes that are no command.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They are of another version.
    #[error(
        "the command is of version {0} and this daemon understands version {VERSION}: use `esw` and the daemon from \
         the same build"
    )]
    Version(u32),
    /// A bond would come and go for too long.
    #[error("a bond comes and goes at most {MAX_FLAP} times, not {0}")]
    TooManyEvents(u32),
    /// They are not what a command looks like.
    #[error("this is no command: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Command {
    /// The command as bytes, of [`VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        // There are no maps with other keys than text, and no failing serialisers, in a command.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The command that bytes of a version stand for.
    ///
    /// # Errors
    /// The version is another, or the bytes are no command.
    pub fn decode(version: u32, bytes: &[u8]) -> Result<Self, DecodeError> {
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let command = serde_json::from_slice(bytes)?;
        match command {
            Self::Bond { flap, .. } if flap > MAX_FLAP => Err(DecodeError::TooManyEvents(flap)),
            command => Ok(command),
        }
    }
}

impl Reply {
    /// The reply as bytes, of [`VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The reply that bytes stand for.
    ///
    /// # Errors
    /// They are no reply.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_version_or_of_no_command_are_refused_with_what_to_do() {
        let bytes = Command::Rescan.encode();
        assert_eq!(bytes, b"\"rescan\"");
        let error = Command::decode(VERSION + 1, &bytes).unwrap_err().to_string();
        assert!(error.contains("from the same build"), "{error}");
        for bytes in [&b""[..], b"{", b"\"fly\"", b"{\"bind\":\"08:00\"}", b"\xff", b"\"rescan\" \"rescan\""] {
            let error = Command::decode(VERSION, bytes).unwrap_err().to_string();
            assert!(error.starts_with("this is no command: "), "{error}");
        }
    }
}
