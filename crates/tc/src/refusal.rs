//! Why a request is refused.

use std::borrow::Cow;

use netlink::Errno;
use serde::{Deserialize, Serialize};

/// Why a request is refused: an error number, and the text of the extended acknowledgement, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    errno: i32,
    /// The text.
    pub text: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with a text.
    pub fn new(errno: Errno, text: impl Into<Cow<'static, str>>) -> Self {
        Self { errno: errno.raw_os_error(), text: text.into() }
    }

    /// EOPNOTSUPP: the card cannot do it.
    pub fn unsupported(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Errno::OPNOTSUPP, text)
    }

    /// The error number.
    pub fn errno(&self) -> Errno {
        Errno::from_raw_os_error(self.errno)
    }
}
