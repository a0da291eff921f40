//! Why a request was refused, as an extended acknowledgement tells it.

use eswitch::Error;

/// Error numbers that are answered with.
#[allow(missing_docs)]
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EINVAL: i32 = 22;
    pub const ENODEV: i32 = 19;
    pub const EMSGSIZE: i32 = 90;
    pub const EOPNOTSUPP: i32 = 95;
}

/// Why a request was refused. The request has changed nothing, with two exceptions: of several settings in one request
/// those before the refused one are made, as in the kernel; and a request that was carried out but could not be stored is
/// refused with the reason why ([`Host::carried_out`](crate::Host::carried_out)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive.
    pub errno: i32,
    /// In words, if there is more to say than the number does.
    pub message: Option<String>,
    /// Where in the request the attribute is that was wrong, from the start of the message.
    pub offset: Option<u32>,
    /// The attribute that is missing.
    pub missing: Option<u16>,
}

impl Refusal {
    /// A number and nothing more.
    pub fn bare(errno: i32) -> Self {
        Self { errno, ..Self::default() }
    }

    /// A number and a sentence.
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: Some(message.into()), ..Self::default() }
    }

    /// An attribute that must be there and is not.
    pub fn missing(attribute: u16) -> Self {
        Self { errno: errno::EINVAL, missing: Some(attribute), ..Self::default() }
    }

    /// Why, in words: what it says of itself, or what its number means.
    pub fn why(&self) -> String {
        let number = || {
            let text = std::io::Error::from_raw_os_error(self.errno).to_string();
            text.split_once(" (os error").map_or(text.clone(), |(text, _)| text.to_owned())
        };
        let why = self.message.clone().unwrap_or_else(number);
        match (self.missing, self.offset) {
            (Some(missing), _) => format!("{why}: attribute {missing} is missing"),
            (_, Some(offset)) => format!("{why}: the attribute at byte {offset}"),
            _ => why,
        }
    }

    /// What the card does not do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(errno::EOPNOTSUPP, message)
    }
}

impl From<Error> for Refusal {
    /// What devlink's core answers has no prefix, and often no words; what a driver says has its name.
    fn from(error: Error) -> Self {
        let errno = error.errno().number();
        match error {
            Error::NoDevice(_) | Error::NoPort(_) | Error::NoRateNode(_) => Self::bare(errno),
            Error::FunctionAttribute { what: "state", .. } => {
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
        assert_eq!(Refusal::bare(errno::ENODEV).why(), "No such device");
        assert_eq!(Refusal::missing(1).why(), "Invalid argument: attribute 1 is missing");
        assert_eq!(Refusal::new(errno::EINVAL, "no such mode").why(), "no such mode");
    }
}
