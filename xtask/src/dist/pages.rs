//! Manual pages and the completions of shells, from the arguments that clap knows.

use anyhow::Result;
use clap::Command;
use clap::builder::{Resettable, StyledStr};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::release::Release;

/// The subcommands that take devlink's words.
const IN_DEVLINKS_WORDS: [&str; 4] = ["dev", "port", "health", "monitor"];

/// The shells with completions: where each looks for them below `/usr/share`, and clap's name of the shell.
pub const COMPLETIONS: [(&str, Shell); 3] = [
    ("bash-completion/completions/esw", Shell::Bash),
    ("zsh/vendor-completions/_esw", Shell::Zsh),
    ("fish/vendor_completions.d/esw.fish", Shell::Fish),
];

/// The completions of a shell, as a script in its language.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(&esw::command()), "esw", &mut script);
    script
}

/// A command without the subcommands and options that are hidden from help. clap would complete them.
fn shown(command: &Command) -> Command {
    // clap takes only names that live as long as the program; there are fewer than twenty.
    let name: &'static str = command.get_name().to_owned().leak();
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned();
    let subcommands = command.get_subcommands().filter(|each| !each.is_hide_set()).map(shown);
    let about = command.get_about().cloned().unwrap_or_default();
    let version = command.get_version().map(|_| env!("CARGO_PKG_VERSION"));
    Command::new(name).about(about).version(version).args(arguments).subcommands(subcommands)
}

/// A page for the command and one for each subcommand: the names of the files, such as `esw-dev.1`, and what is in them.
///
/// # Errors
/// Never, as it writes to memory.
pub fn man_pages(release: &Release) -> Result<Vec<(String, Vec<u8>)>> {
    let mut command = esw::command().disable_help_subcommand(true);
    command.build();
    let shown: Vec<Command> = command.get_subcommands().filter(|each| !each.is_hide_set()).cloned().collect();
    let page = |command| man_page(command, release);
    std::iter::once(command).chain(shown).map(page).collect()
}

fn man_page(command: Command, release: &Release) -> Result<(String, Vec<u8>)> {
    let after = command.get_after_help().map(StyledStr::to_string).unwrap_or_default();
    let mut see_also = Vec::new();
    if command.get_name() != "esw" {
        see_also.push("esw(1)");
    }
    if IN_DEVLINKS_WORDS.contains(&command.get_name()) {
        see_also.push("devlink(8)");
    }
    // clap would fill the lines of examples, so that they could not be told apart.
    let man = Man::new(command.after_help(Resettable::Reset));
    let man = man.date(release.day()).source(format!("eswitch {}", release.version)).manual("eswitch");
    let mut page = Vec::new();
    man.render(&mut page)?;
    after_help(&after, &see_also).to_writer(&mut page)?;
    Ok((man.get_filename(), page))
}

/// A section of a page: its heading, and whether its lines stay as they are.
struct Section<'t> {
    heading: &'t str,
    text: &'t str,
    is_preformatted: bool,
}

/// What help has after the options, as sections of a manual page.
fn after_help(help: &str, see_also: &[&str]) -> Roff {
    let mut sections: Vec<Section> = help.split("\n\n").filter(|part| !part.is_empty()).map(section).collect();
    let order = ["EXIT STATUS", "NOTES", "EXAMPLES"];
    // The order of man-pages(7).
    sections.sort_by_key(|section| order.iter().position(|heading| *heading == section.heading));
    let mut roff = Roff::new();
    let mut heading = "";
    for section in &sections {
        if section.heading == heading {
            roff.control("PP", []);
        } else {
            roff.control("SH", [section.heading]);
        }
        heading = section.heading;
        if section.is_preformatted {
            roff.control("nf", []);
        }
        for line in section.text.lines() {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
        if section.is_preformatted {
            roff.control("fi", []);
        }
    }
    if !see_also.is_empty() {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([roman(see_also.join(", "))]);
    }
    roff
}

/// The section that a paragraph of help belongs to.
fn section(paragraph: &str) -> Section<'_> {
    for (title, heading) in [("Examples:", "EXAMPLES"), ("Exit status:", "EXIT STATUS")] {
        if let Some(text) = paragraph.strip_prefix(title) {
            // Below a title in a line of its own is a list; after a title in the same line is a sentence.
            let is_preformatted = text.starts_with('\n');
            return Section { heading, text: text.trim_matches(['\n', ' ']), is_preformatted };
        }
    }
    Section { heading: "NOTES", text: paragraph, is_preformatted: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::release::example;

    #[test]
    fn each_subcommand_that_is_shown_has_a_page() {
        let pages = man_pages(&example()).unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.starts_with(&["esw.1", "esw-run.1"]) && names.contains(&"esw-dev.1"), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("keeper") || name.contains("help")), "{names:?}");
        let dev = &pages.iter().find(|(name, _)| name == "esw-dev.1").unwrap().1;
        let dev = String::from_utf8_lossy(dev);
        assert!(dev.contains(".TH esw-dev 1 2023-11-14 \"eswitch 1.2.3-rc.1\" eswitch\n"), "{dev}");
        assert!(dev.contains("\n.SH EXAMPLES\n.nf\nesw dev eswitch set"), "{dev}");
        assert!(dev.ends_with(".SH \"SEE ALSO\"\nesw(1), devlink(8)\n"), "{dev}");
    }

    #[test]
    fn help_after_the_options_becomes_sections() {
        let help = "Examples:\n  esw a   first\n  esw b\n\nA note.\nIt goes on.\n\nExit status: 0; or 1.\n\nAnother.";
        let text = after_help(help, &[]).to_roff();
        let expected = ".SH \"EXIT STATUS\"\n0; or 1.\n.SH NOTES\nA note.\nIt goes on.\n.PP\nAnother.\n\
            .SH EXAMPLES\n.nf\nesw a   first\nesw b\n.fi\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn completions_have_what_help_shows() {
        for (path, shell) in COMPLETIONS {
            let script = String::from_utf8(completions(shell)).unwrap();
            assert!(script.contains("monitor") && script.contains("fault-preemptions"), "{path}");
            assert!(!script.contains("keeper") && !script.contains("detached"), "{path}");
        }
    }
}
