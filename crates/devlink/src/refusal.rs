//! The reason why a request was refused, as an extended acknowledgement reports it.

use eswitch::Error;
use netlink::{BuildError, Errno, ExtAck, strerror};

/// The reason why a request was refused. The request has changed nothing, with two exceptions: of several settings in
/// one request, those before the refused one have been made, as in the kernel; and a request that was carried out but
/// could not be stored is refused with the reason for that ([`Host::carried_out`](crate::Host::carried_out)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// A message that says more than the error number, if there is one.
    pub message: Option<String>,
    /// The offset of the invalid attribute from the start of the request, in bytes.
    pub offset: Option<u32>,
    /// The type of the missing attribute.
    pub missing: Option<u16>,
}

impl Refusal {
    /// A refusal with an error number and no message.
    pub fn bare(errno: Errno) -> Self {
        Self { errno, message: None, offset: None, missing: None }
    }

    /// A refusal with an error number and a message.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..Self::bare(errno) }
    }

    /// EINVAL, as a required attribute is missing.
    pub fn missing(attribute: u16) -> Self {
        Self { missing: Some(attribute), ..Self::bare(Errno::INVAL) }
    }

    /// The extended acknowledgement that goes with the error number.
    pub(crate) fn ext_ack(&self) -> ExtAck<'_> {
        ExtAck {
            message: self.message.as_deref(),
            offset: self.offset,
            missing_type: self.missing.map(u32::from),
            missing_nest: None,
        }
    }

    /// A refusal from a received error number and extended acknowledgement.
    pub(crate) fn received(errno: Errno, ext_ack: ExtAck<'_>) -> Self {
        Self {
            errno,
            message: ext_ack.message.map(str::to_owned),
            offset: ext_ack.offset,
            missing: ext_ack.missing_type.and_then(|kind| kind.try_into().ok()),
        }
    }

    /// The reason in words: the message, or the text of the error number; with the attribute if one is named.
    pub fn why(&self) -> String {
        let why = self.message.clone().unwrap_or_else(|| strerror(self.errno));
        match (self.missing, self.offset) {
            (Some(missing), _) => format!("{why}: attribute {missing} is missing"),
            (_, Some(offset)) => format!("{why}: the attribute at byte {offset}"),
            _ => why,
        }
    }

    /// EOPNOTSUPP, with a message.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Errno::OPNOTSUPP, message)
    }
}

/// The Linux error number for an error number of the engine.
pub fn errno_of(errno: eswitch::Errno) -> Errno {
    use eswitch::Errno as Engine;
    match errno {
        Engine::EPERM => Errno::PERM,
        Engine::ENOENT => Errno::NOENT,
        Engine::EIO => Errno::IO,
        Engine::EAGAIN => Errno::AGAIN,
        Engine::ENOMEM => Errno::NOMEM,
        Engine::EBUSY => Errno::BUSY,
        Engine::EEXIST => Errno::EXIST,
        Engine::ENODEV => Errno::NODEV,
        Engine::EINVAL => Errno::INVAL,
        Engine::ENOSPC => Errno::NOSPC,
        Engine::ERANGE => Errno::RANGE,
        Engine::EOVERFLOW => Errno::OVERFLOW,
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
    /// Errors of devlink's core have no prefix, and often no message. Errors of the driver begin with its name.
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
    fn every_refusal_has_a_reason() {
        assert_eq!(Refusal::bare(Errno::NODEV).why(), "No such device");
        assert_eq!(Refusal::missing(1).why(), "Invalid argument: attribute 1 is missing");
        assert_eq!(Refusal::new(Errno::INVAL, "no such mode").why(), "no such mode");
    }
}
