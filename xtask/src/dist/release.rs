//! What is released: the version, the machine it is for, and the time that every file gets.

use std::env;

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::output_of;

/// A release for one kind of machine.
#[derive(Clone, Debug)]
pub struct Release {
    /// The version of the workspace.
    pub version: &'static str,
    /// The kind of machine.
    pub machine: &'static Machine,
    /// The time of every file, in seconds since 1970.
    pub time: u64,
}

/// A kind of machine, as each format calls it.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    /// Rust's name.
    pub triple: &'static str,
    /// The name in `uname -m`.
    pub kernel: &'static str,
    /// Debian's name.
    pub debian: &'static str,
    /// The name in an OCI image, which is Go's.
    pub oci: &'static str,
    /// `e_machine` of its ELF files.
    pub elf: u16,
}

const MACHINES: [Machine; 2] = [
    Machine { triple: "x86_64-unknown-linux-gnu", kernel: "x86_64", debian: "amd64", oci: "amd64", elf: 62 },
    Machine { triple: "aarch64-unknown-linux-gnu", kernel: "aarch64", debian: "arm64", oci: "arm64", elf: 183 },
];

impl Release {
    /// The release of this tree for this machine.
    ///
    /// # Errors
    /// The toolchain is for another kind of machine than those that are known; the time is not known.
    pub fn of_this_tree() -> Result<Self> {
        let version = output_of("rustc", &["-vV"]);
        let version = version.context("there is no Rust toolchain: install it with rustup")?;
        Ok(Self { version: env!("CARGO_PKG_VERSION"), machine: Machine::of_toolchain(&version)?, time: time()? })
    }

    /// The version as Debian orders it: what comes before a release has a tilde.
    pub fn debian_version(&self) -> String {
        self.version.replacen('-', "~", 1)
    }

    /// The day of the time in UTC, as `YYYY-MM-DD`.
    pub fn day(&self) -> String {
        let (year, month, day) = civil(self.time / 86_400);
        format!("{year:04}-{month:02}-{day:02}")
    }

    /// The time in UTC, as RFC 3339 has it.
    pub fn timestamp(&self) -> String {
        let second = self.time % 86_400;
        format!("{}T{:02}:{:02}:{:02}Z", self.day(), second / 3600, second / 60 % 60, second % 60)
    }
}

impl Machine {
    /// The machine that a toolchain is for, from what `rustc -vV` prints.
    ///
    /// # Errors
    /// It is none of those that are known.
    fn of_toolchain(printed: &str) -> Result<&'static Self> {
        let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("`rustc -vV` prints no line `host: …`")?;
        let known = MACHINES.iter().find(|machine| machine.triple == host);
        known.with_context(|| {
            let names = MACHINES.map(|machine| machine.triple).join(" or ");
            format!("the Rust toolchain is for {host}; a release needs one for {names}: `rustup default stable-TRIPLE`")
        })
    }
}

/// `SOURCE_DATE_EPOCH`, or the time of the last commit.
fn time() -> Result<u64> {
    if let Some(epoch) = env::var_os("SOURCE_DATE_EPOCH") {
        return parse_epoch(&epoch.to_string_lossy());
    }
    let printed = output_of("git", &["log", "-1", "--format=%ct"]);
    let printed = printed.context(
        "files get the time of the last commit, which git does not tell: run this in a clone, or set SOURCE_DATE_EPOCH \
         to seconds since 1970",
    )?;
    printed.parse().with_context(|| format!("git printed `{printed}`, which is no time"))
}

fn parse_epoch(text: &str) -> Result<u64> {
    let Ok(time) = text.parse() else {
        bail!("SOURCE_DATE_EPOCH is `{text}`; it has to be a number of seconds since 1970, or not set");
    };
    // A header of a tar archive has eleven octal digits.
    ensure!(time < 1 << 33, "SOURCE_DATE_EPOCH is `{text}`, which is later than an archive can tell");
    Ok(time)
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days since 0000-03-01: then the day that is added in a leap year is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
pub fn example() -> Release {
    Release { version: "1.2.3-rc.1", machine: &MACHINES[0], time: 1_700_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_the_toolchains() {
        let printed = "rustc 1.95.0 (1 2026-04-14)\nbinary: rustc\nhost: aarch64-unknown-linux-gnu\nrelease: 1.95.0\n";
        assert_eq!(Machine::of_toolchain(printed).unwrap().debian, "arm64");
        let error = Machine::of_toolchain(&printed.replace("gnu", "musl")).unwrap_err().to_string();
        assert!(error.contains("for aarch64-unknown-linux-musl; a release needs one for x86_64-unknown-linux-gnu or"));
        assert!(Machine::of_toolchain("").is_err());
    }

    #[test]
    fn a_day_is_that_of_the_calendar() {
        for (time, day) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (4_107_542_399, "2100-02-28")] {
            assert_eq!(Release { time, ..example() }.day(), day);
        }
        assert_eq!(example().timestamp(), "2023-11-14T22:13:20Z");
        assert_eq!(example().debian_version(), "1.2.3~rc.1");
    }

    #[test]
    fn an_epoch_is_a_number_that_an_archive_can_tell() {
        assert_eq!(parse_epoch("1700000000").unwrap(), 1_700_000_000);
        for wrong in ["", "yesterday", "-1", "8589934592"] {
            assert!(parse_epoch(wrong).unwrap_err().to_string().contains("SOURCE_DATE_EPOCH"), "{wrong}");
        }
    }
}
