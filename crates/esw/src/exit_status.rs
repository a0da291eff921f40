//! The exit statuses of the command. `esw exec` and `esw shell` return those of the program that they run instead.

/// Everything held.
pub const HELD: u8 = 0;
/// Something did not hold, or was refused.
pub const FAILED: u8 = 1;
/// The input cannot be used, or the output cannot be written.
pub const UNUSABLE: u8 = 2;
/// The command was interrupted: 128 and the number of SIGINT, as a shell reports it.
pub const INTERRUPTED: u8 = 130;
