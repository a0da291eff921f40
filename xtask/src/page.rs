//! Pages of documentation with sections that a command writes.
//!
//! A section is what is between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->`. A command writes the text in
//! it; people write the rest of the page.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};

use crate::workspace::{output_of, root};

/// A section of a page.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// The page's path from the root of the repository.
    pub page: &'static str,
    /// The name in the section's marks.
    pub name: &'static str,
}

impl Section {
    /// Reads the section.
    ///
    /// # Errors
    /// The page cannot be read, or it has no such marks.
    pub fn read(&self) -> Result<String> {
        Ok(split(&self.page()?, self.name).context(self.page)?.1.to_owned())
    }

    /// Replaces the section. The page is written only if this changes it; returns whether it did.
    ///
    /// # Errors
    /// The page cannot be read or written, or it has no such marks.
    pub fn write(&self, text: &str) -> Result<bool> {
        let page = self.page()?;
        let (before, old, after) = split(&page, self.name).context(self.page)?;
        if old == text {
            return Ok(false);
        }
        fs::write(root().join(self.page), format!("{before}{text}{after}")).context(self.page)?;
        Ok(true)
    }

    fn page(&self) -> Result<String> {
        fs::read_to_string(root().join(self.page)).context(self.page)
    }
}

/// The page up to and with the begin mark, the section, and the page from the end mark on.
fn split<'p>(page: &'p str, name: &str) -> Result<(&'p str, &'p str, &'p str)> {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"));
    let from = page.find(&begin).with_context(|| format!("the page has no line `{}`", begin.trim()))? + begin.len();
    let missing = || format!("the page has no line `{}` after `{}`", end.trim(), begin.trim());
    let to = from + page[from..].find(&end).with_context(missing)?;
    Ok((&page[..from], &page[from..to], &page[to..]))
}

/// When and where something is measured: the commit, today's date (UTC), the processor, the number of cores, the kernel's
/// version and the load of the machine.
///
/// # Errors
/// There is no `git`, no repository, or no `date`.
pub fn stamp() -> Result<String> {
    let (commit, date) = commit_and_date()?;
    let of_file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let info = of_file("/proc/cpuinfo");
    let models: BTreeSet<&str> = info
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "model name")
        .map(|(_, model)| model.trim())
        .collect();
    let model = models.into_iter().next().unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = of_file("/proc/sys/kernel/osrelease");
    // What a distribution or a provider adds to the version is of no interest here.
    let version = kernel.trim().split('-').next().unwrap_or_default();
    let load = of_file("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!("commit {commit}, {date}: {model}, {cores} cores, Linux {version}; load of the machine before: {load}"))
}

/// The commit that is checked out, with ` with changes` if files outside of `docs` differ from it; and today's date (UTC).
///
/// # Errors
/// There is no `git`, no repository, or no `date`.
pub fn commit_and_date() -> Result<(String, String)> {
    let commit = output_of("git", &["rev-parse", "--short", "HEAD"])?;
    let is_changed = !output_of("git", &["status", "--porcelain", "--", ".", ":!docs"])?.is_empty();
    let changed = if is_changed { " with changes" } else { "" };
    Ok((commit + changed, output_of("date", &["-u", "+%F"])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_what_is_between_its_marks() {
        let page = "# Figures\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n";
        let parts = ("# Figures\n<!-- bench: begin -->\n", "old\n", "<!-- bench: end -->\nafter\n");
        assert_eq!(split(page, "bench").unwrap(), parts);
        assert!(split(page, "another").unwrap_err().to_string().contains("no line `<!-- another: begin -->`"));
        assert!(split("<!-- bench: begin -->\n", "bench").is_err());
    }

    #[test]
    fn a_stamp_names_no_more_of_the_kernel_than_its_version() {
        let stamp = stamp().unwrap();
        let (_, kernel) = stamp.split_once("Linux ").unwrap();
        assert!(kernel.split(';').next().unwrap().chars().all(|c| c.is_ascii_digit() || c == '.'), "{stamp}");
    }
}
