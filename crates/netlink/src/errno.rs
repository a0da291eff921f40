//! Error numbers: one type from the wire to the program.
//!
//! [`Errno`] is a number from 1 to 4,095, so it cannot stand for success. On the wire it is negative, and 0
//! stands for success; [`errno_from_code`] and [`errno_of`] are the only way between the two.

use std::io;

pub use rustix::io::Errno;

/// The largest number that the kernel takes for an error rather than for an address: MAX_ERRNO.
const MAX_ERRNO: i32 = 4095;
/// The same on the wire.
const LEAST_CODE: i32 = -MAX_ERRNO;

/// What the number of NLMSG_ERROR stands for: 0 is success, and an error is negative. A number that is no error
/// of the kernel's is EIO.
pub fn errno_from_code(code: i32) -> Result<(), Errno> {
    match code {
        0 => Ok(()),
        LEAST_CODE..=-1 => Err(Errno::from_raw_os_error(-code)),
        _ => Err(Errno::IO),
    }
}

/// The number of an error of the system; EIO if it has none.
pub fn errno_of(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(number @ 1..=MAX_ERRNO) => Errno::from_raw_os_error(number),
        _ => Errno::IO,
    }
}

/// The C library's text for an error: `No such device`.
pub fn strerror(errno: Errno) -> String {
    without_number(&errno.into())
}

/// The text of an error, without the number that the standard library appends.
pub fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_on_the_wire_is_success_or_an_error() {
        assert_eq!(errno_from_code(0), Ok(()));
        assert_eq!(errno_from_code(-19), Err(Errno::NODEV));
        for lie in [i32::MIN, -4_096, 1, 19, i32::MAX] {
            assert_eq!(errno_from_code(lie), Err(Errno::IO), "{lie}");
        }
    }

    #[test]
    fn an_error_has_the_kernels_text() {
        assert_eq!(strerror(Errno::NODEV), "No such device");
        assert_eq!(without_number(&io::Error::other("no number")), "no number");
        assert_eq!(errno_of(&io::Error::from_raw_os_error(16)), Errno::BUSY);
        assert_eq!(errno_of(&io::Error::other("no number")), Errno::IO);
    }
}
