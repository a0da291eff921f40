//! Encodes commands and replies as bytes.
//!
//! The encoding is JSON, which a person can read in a trace. One version covers all commands: it is raised with every
//! change after which a daemon of the previous version would misunderstand a command or not understand it.

use crate::command::{Command, MAX_FLAP};
use crate::target::Reply;

/// The version of the encoding.
pub const VERSION: u32 = 1;

/// Why bytes cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// They are of another version than [`VERSION`].
    #[error(
        "the command is of version {0} and this daemon understands version {VERSION}: use `esw` and the daemon from \
         the same build"
    )]
    Version(u32),
    /// A [`Command::Bond`] has more events than [`MAX_FLAP`].
    #[error("a bond can be removed and added at most {MAX_FLAP} times, not {0}")]
    TooManyEvents(u32),
    /// They are not the JSON of a command or reply.
    #[error("this is no command: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Command {
    /// Encodes the command in [`VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        // Encoding fails only for maps whose keys are not text and for serialisers that fail. A command has neither.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes a command from bytes of a version.
    ///
    /// # Errors
    /// `version` is not [`VERSION`], the bytes are no command, or a bond has more events than [`MAX_FLAP`].
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
    /// Encodes the reply in [`VERSION`].
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes a reply.
    ///
    /// # Errors
    /// The bytes are no reply.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_version_or_of_no_command_are_refused_with_advice() {
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
