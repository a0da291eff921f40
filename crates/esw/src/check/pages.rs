//! The pages and traces that `--report` writes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use check::{PageInfo, Report, Story};

use super::results::{how_far, schedules};

pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir(folder)
        .with_context(|| format!("{}: expected a folder that can be made and is not there yet", folder.display()))
}

/// Writes a page with the story of every violation so far and how far each scenario was explored, and a trace for each
/// story.
pub fn write_pages(folder: &Path, reports: &[Report], of: usize) -> Result<()> {
    let violations = reports.iter().flat_map(|report| &report.violations);
    let stories: Vec<Story> = violations.map(|violation| violation.story.clone()).collect();
    let scenarios = if reports.len() < of { format!("{} of {of}", reports.len()) } else { of.to_string() };
    let mut summary = vec![
        ("scenarios".to_owned(), scenarios),
        ("schedules".to_owned(), schedules(reports).to_string()),
        ("did not hold".to_owned(), stories.len().to_string()),
    ];
    summary.extend(reports.iter().map(|report| {
        let ended = match (report.violations.is_empty(), report.interrupted) {
            (_, true) => ", interrupted",
            (false, false) => ", until it failed",
            (true, false) => "",
        };
        (report.program.clone(), how_far(report) + ended)
    }));
    write_stories(folder, &stories, summary)
}

/// Writes a page and traces. Each file is replaced as a whole, or stays as it was.
pub fn write_stories(folder: &Path, stories: &[Story], summary: Vec<(String, String)>) -> Result<()> {
    let (title, version) = ("esw check".to_owned(), concat!("eswitch ", env!("CARGO_PKG_VERSION")).to_owned());
    let info = PageInfo { title, version, summary };
    let write = |name: &str, text: &str| {
        let (path, unfinished) = (folder.join(name), folder.join(format!(".{name}")));
        let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, &path));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written.with_context(|| format!("writing {}", path.display()))
    };
    for (story, number) in stories.iter().zip(1..) {
        let name = format!("trace-{number}.json");
        // An existing trace is of the same story: the folder is new, and stories are only added.
        if !folder.join(&name).exists() {
            write(&name, &check::trace(story).to_string())?;
        }
    }
    write("index.html", &check::page(stories, &info))
}
