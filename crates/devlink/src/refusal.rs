//! Why a request was refused, as an extended acknowledgement tells it.

use eswitch::Error;
use netlink::{BuildError, Errno, ExtAck, strerror};

/// Why a request was refused. The request has changed nothing, with two exceptions: of several settings in one request
/// those before the refused one are made, as in the kernel; and a request that was carried out but could not be stored is
/// refused with the reason why ([`Host::carried_out`](crate::Host::carried_out)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// In words, if there is more to say than the number does.
    pub message: Option<String>,
    /// Where in the request the attribute is that was wrong, from the start of the message.
    pub offset: Option<u32>,
    /// The attribute that is missing.
    pub missing: Option<u16>,
}

impl Refusal {
    /// A number and nothing more.
    pub fn bare(errno: Errno) -> Self {
        Self { errno, message: None, offset: None, missing: None }
    }

    /// A number and a sentence.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..Self::bare(errno) }
    }

    /// An attribute that must be there and is not.
    pub fn missing(attribute: u16) -> Self {
        Self { missing: Some(attribute), ..Self::bare(Errno::INVAL) }
    }

    /// What an extended acknowledgement says beside the number.
    pub(crate) fn ext_ack(&self) -> ExtAck<'_> {
        ExtAck {
            message: self.message.as_deref(),
            offset: self.offset,
            missing_type: self.missing.map(u32::from),
            missing_nest: None,
        }
    }

    /// What was received: an error number, and what its extended acknowledgement says.
    pub(crate) fn received(errno: Errno, said: ExtAck<'_>) -> Self {
        Self {
            errno,
            message: said.message.map(str::to_owned),
            offset: said.offset,
            missing: said.missing_type.and_then(|kind| kind.try_into().ok()),
        }
    }

    /// Why, in words: what it says of itself, or what its number means.
    pub fn why(&self) -> String {
        let why = self.message.clone().unwrap_or_else(|| strerror(self.errno));
        match (self.missing, self.offset) {
            (Some(missing), _) => format!("{why}: attribute {missing} is missing"),
            (_, Some(offset)) => format!("{why}: the attribute at byte {offset}"),
            _ => why,
        }
    }

    /// What the card does not do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Errno::OPNOTSUPP, message)
    }
}

/// The number on Linux of what the engine answers.
pub fn errno_of(errno: eswitch::Errno) -> Errno {
    use eswitch::Errno as Engine;
    match errno {
        Engine::EPERM => Errno::PERM,
        Engine::ENOENT => Errno::NOENT,
        Engine::EIO => Errno::IO,
        Engine::ENOMEM => Errno::NOMEM,
        Engine::EBUSY => Errno::BUSY,
        Engine::EEXIST => Errno::EXIST,
        Engine::ENODEV => Errno::NODEV,
        Engine::EINVAL => Errno::INVAL,
        Engine::ENOSPC => Errno::NOSPC,
        Engine::ERANGE => Errno::RANGE,
        Engine::EPROTONOSUPPORT => Errno::PROTONOSUPPORT,
        Engine::EOPNOTSUPP => Errno::OPNOTSUPP,
    }
}

impl From<BuildError> for Refusal {
    fn from(error: BuildError) -> Self {
        Self::new(error.into(), format!("the answer cannot be built: {error}"))
    }
}

impl From<Error> for Refusal {
    /// What devlink's core answers has no prefix, and often no words; what a driver says has its name.
    fn from(error: Error) -> Self {
        let errno = errno_of(error.errno());
        match error {
            Error::NoDevice(_) | Error::NoPort(_) | Error::NoRateNode(_) => Self::bare(errno),
            Error::FunctionAttribute { attribute: "state", .. } => {
                Self::new(errno, "Function does not support state setting")
            }
            Error::FunctionAttribute { .. } => Self::new(errno, "Port doesn't support function attributes"),
            Error::RateNodesExist | Error::RateNodeInUse | Error::RateParent(_) => Self::new(errno, error.to_string()),
            error => Self::new(errno, format!("mlx5_core: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_why() {
        assert_eq!(Refusal::bare(Errno::NODEV).why(), "No such device");
        assert_eq!(Refusal::missing(1).why(), "Invalid argument: attribute 1 is missing");
        assert_eq!(Refusal::new(Errno::INVAL, "no such mode").why(), "no such mode");
    }
}
