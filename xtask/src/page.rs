//! Pages of `docs` of which a part is written by a command: what stands between two marks is the command's, the rest is
//! written by people.

use std::process::Command;

use anyhow::{Context, Result};

fn marks(name: &str) -> (String, String) {
    (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"))
}

/// What stands between the marks of that name.
///
/// # Errors
/// The page has no such marks.
pub fn between<'p>(page: &'p str, name: &str) -> Result<&'p str> {
    Ok(split(page, name)?.1)
}

/// The page with another text between the marks of that name.
///
/// # Errors
/// The page has no such marks.
pub fn with_between(page: &str, name: &str, text: &str) -> Result<String> {
    let ((begin, end), (before, _, after)) = (marks(name), split(page, name)?);
    Ok(format!("{before}{begin}{text}{end}{after}"))
}

/// What stands before the marks, between them and after them.
fn split<'p>(page: &'p str, name: &str) -> Result<(&'p str, &'p str, &'p str)> {
    let (begin, end) = marks(name);
    let (before, rest) = page.split_once(&begin).with_context(|| format!("the page has no mark `{}`", begin.trim()))?;
    let (between, after) = rest.split_once(&end).with_context(|| format!("the page has no mark `{}`", end.trim()))?;
    Ok((before, between, after))
}

/// What a program prints, without the white space around it.
///
/// # Errors
/// There is no such program.
pub fn said(program: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(words).output().with_context(|| program.to_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commit that is checked out, and today's date in UTC.
///
/// # Errors
/// There is no `git`, or no `date`.
pub fn commit_and_date() -> Result<(String, String)> {
    Ok((said("git", &["rev-parse", "--short", "HEAD"])?, said("date", &["-u", "+%F"])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_takes_the_place_of_the_one_before() {
        let page = "# Figures\n<!-- bench: begin -->\nold\n<!-- bench: end -->\nafter\n";
        assert_eq!(between(page, "bench").unwrap(), "old\n");
        let written = with_between(page, "bench", "new\n").unwrap();
        assert_eq!(written, "# Figures\n<!-- bench: begin -->\nnew\n<!-- bench: end -->\nafter\n");
        assert!(with_between(page, "another", "new\n").is_err());
        assert!(with_between("no marks", "bench", "new\n").is_err());
    }
}
