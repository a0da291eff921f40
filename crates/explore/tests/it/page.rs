//! The page in a real browser: headless Chromium opens it and draws it without an error.

use std::path::PathBuf;
use std::process::Command;

use crate::stories;
use explore::{PageInfo, Story, page};

fn info() -> PageInfo {
    let summary = vec![("schedules".to_owned(), "1,204,331".to_owned())];
    PageInfo { title: "esw check </title><b>&".to_owned(), version: "0.1.0".to_owned(), summary }
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name)));
    let found = found.into_iter().find(|program| program.is_file());
    if found.is_none() {
        eprintln!("skipped: no chromium, chromium-browser or google-chrome in PATH");
    }
    found
}

/// Returns the page after its script has run; `None` if there is no browser.
fn rendered(name: &str, html: &str) -> Option<String> {
    let chromium = chromium()?;
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("page.html");
    std::fs::write(&file, html).unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900", "--virtual-time-budget=5000"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .args(["--dump-dom".to_owned(), format!("file://{}", file.display())])
        .output()
        .unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    assert!(dom.contains("</html>"), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_dir_all(&folder).unwrap();
    Some(dom)
}

/// Adds a script that acts like a reader, after the page has drawn itself.
fn with_reader(html: &str, does: &str) -> String {
    let script = format!("<script>setTimeout(() => {{ {does} }}, 100);</script>");
    html.replacen("</body>", &format!("{script}</body>"), 1)
}

fn assert_drawn(dom: &str, lanes: usize, rows: usize) {
    let opening = &dom[dom.find("<html").unwrap()..][..400.min(dom.len())];
    assert!(!opening.contains("data-failed"), "{opening}");
    assert!(opening.contains(&format!("data-drawn=\"lanes={lanes} ")), "{opening}");
    assert!(opening.contains(&format!(" rows={rows}\"")), "{opening}");
    assert_eq!(dom.matches("class=\"lane\"").count(), lanes);
}

fn rendered_stories(name: &str, stories: &[Story], does: &str) -> Option<String> {
    rendered(name, &with_reader(&page(stories, &info()), does))
}

#[test]
fn a_race_is_drawn() {
    let race = stories::race();
    let Some(dom) = rendered_stories("race", std::slice::from_ref(&race), "") else { return };
    assert_drawn(&dom, 3, race.rows.len());
    assert!(dom.contains(&format!("esw check --replay {}", race.token)));
    for class in ["devlink", "representors", "auxiliary device"] {
        assert!(dom.contains(&format!("<span>{class}</span>")), "{class} is in the legend");
    }
}

#[test]
fn a_reader_zooms_goes_from_row_to_row_and_opens_the_table() {
    let race = stories::race();
    let does =
        "for (const id of ['in', 'right', 'left', 'out', 'fit', 'break', 'every', 'theme', 'copy']) by(id).click();
        const key = (key) => canvas.dispatchEvent(new KeyboardEvent('keydown', { key }));
        ['Home', 'ArrowRight', 'ArrowDown', 'ArrowUp', 'ArrowLeft', '+', '-', '0', 'b', 'Escape', 'End'].forEach(key);
        canvas.dispatchEvent(new WheelEvent('wheel', { deltaY: -50, ctrlKey: true }));
        canvas.dispatchEvent(new WheelEvent('wheel', { deltaY: 50, shiftKey: true }));
        for (let y = 0; y < height; y += 3) {
          for (let x = 0; x < width; x += 7) pointed(x, y);
        }
        by('all').open = true;
        key('b');";
    let Some(dom) = rendered_stories("reader", std::slice::from_ref(&race), does) else { return };
    assert_drawn(&dom, 3, race.rows.len());
    assert_eq!(dom.matches("data-row=").count(), race.rows.len());
    assert!(dom.contains("orchestrator breaks representors: pf0 vf2 has an RDMA representor"), "the break is told");
}

#[test]
fn another_story_is_chosen_from_a_list() {
    let all = [stories::race(), stories::deadlock()];
    let Some(dom) = rendered_stories("list", &all, "by('stories').children[1].click()") else { return };
    assert_drawn(&dom, 2, all[1].rows.len());
    assert!(dom.contains("<h2 id=\"invariant\">progress</h2>"));
}

#[test]
fn hostile_text_stays_text() {
    let hostile = stories::hostile();
    let html = page(std::slice::from_ref(&hostile), &info());
    assert_eq!(html.matches("</script>").count(), 2, "the page's own");
    assert!(!html.contains("<img"));
    let Some(dom) = rendered_stories("hostile", std::slice::from_ref(&hostile), "by('all').open = true") else {
        return;
    };
    assert_drawn(&dom, 2, hostile.rows.len());
    assert!(!dom.contains("<img") && !dom.contains("<title>owned"));
}

#[test]
fn a_long_story_is_drawn_and_its_page_is_small() {
    let long = stories::long();
    assert!(long.rows.len() >= 3000);
    let html = page(std::slice::from_ref(&long), &info());
    assert!(html.len() < 300_000, "{} bytes", html.len());
    let Some(dom) = rendered_stories("long", std::slice::from_ref(&long), "") else { return };
    assert_drawn(&dom, 3, long.rows.len());
}

#[test]
fn without_a_story_the_page_says_so() {
    let Some(dom) = rendered_stories("none", &[], "") else { return };
    assert_drawn(&dom, 0, 0);
    assert!(dom.contains("No invariant was broken."));
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let html = page(&[stories::race()], &info());
    assert!(!html.contains("http://") && !html.contains("https://") && !html.contains(" src="));
}
