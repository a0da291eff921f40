//! Rights in a lab: every operation that changes something, tried with the rights of every kind of user.
//!
//! What is expected is what the kernel answers outside. Where this kernel has the object, the same is tried
//! there by the same people, and that counts; where it has not (devlink, RDMA, a card's files in sysfs,
//! modules), each row of the matrix names the place in the kernel's source and the rule.
//! After each attempt root looks, outside the lab, whether something has changed: an error number alone
//! proves nothing.
//!
//! A program of its own, because it starts itself again as everybody who tries. It takes root, user namespaces,
//! `/dev/fuse` and iproute2.

#[path = "rights/actor.rs"]
mod actor;
#[path = "rights/columns.rs"]
mod columns;
#[path = "rights/look.rs"]
mod look;
#[path = "rights/netlink.rs"]
mod netlink;
#[path = "rights/rows.rs"]
mod rows;
#[path = "rights/stage.rs"]
mod stage;
mod steps;
#[path = "rights/sys.rs"]
mod sys;
#[path = "rights/table.rs"]
mod table;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use columns::Column;
use rows::{Attempt, Change, Row};
use stage::{Outcome, World};
use table::Expected;

const NAME: &str = "who_may_do_what_in_a_lab_is_what_the_kernel_says";
/// The title of a column: the others are left out, to look into that one.
const ONLY: &str = "ESW_RIGHTS_ONLY";
/// Set where the namespaces of the test are.
const STAGE: &str = "ESW_RIGHTS_STAGE";
/// The environment variable that is set for the processes that the test starts.
const PART: &str = "ESW_RIGHTS_PART";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if std::env::var_os(PART).is_some() {
        return part(&arguments[1..]);
    }
    if arguments.iter().any(|argument| argument == "--list") {
        println!("{NAME}: test");
        return;
    }
    if let Some(folder) = std::env::var_os(STAGE) {
        return story(Path::new(&folder));
    }
    // As with other tests, words are parts of names.
    let wanted: Vec<&String> = arguments[1..].iter().filter(|argument| !argument.starts_with('-')).collect();
    if !wanted.is_empty() && !wanted.iter().any(|part| NAME.contains(part.as_str())) {
        return;
    }
    if let Some(why) = missing() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{NAME}: {why}");
        println!("test {NAME} ... skipped: {why}");
        return;
    }
    let folder = std::env::temp_dir().join(format!("esw-rights-{}", std::process::id()));
    fs::create_dir(&folder).expect("a folder");
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).expect("a folder for everybody");
    // A device file of its own, which everybody may open, in place of the machine's.
    let script = "mount -t tmpfs none /run && ip link set lo up && mknod /run/fuse c 10 229 && chmod 666 /run/fuse && \
                  mount --bind /run/fuse /dev/fuse && exec \"$0\"";
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "sh", "-c", script])
        .arg(std::env::current_exe().expect("this program"))
        .env(STAGE, &folder)
        .status();
    let _ = fs::remove_dir_all(&folder);
    assert!(status.expect("unshare").success(), "{NAME}");
    println!("test {NAME} ... ok");
}

/// Why it cannot be tried here, if it cannot.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it takes root".to_owned());
    }
    let works = |words: &[&str]| {
        let tried = Command::new(words[0]).args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    };
    let programs: [&[&str]; 6] = [
        &["devlink", "-V"],
        &["ip", "-V"],
        &["rdma", "-V"],
        &["tc", "-V"],
        &["sh", "-c", "test -c /dev/fuse"],
        &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urnm", "true"],
    ];
    let failed = programs.into_iter().find(|words| !works(words));
    failed.map(|words| format!("it takes `{}`", words.join(" ")))
}

/// The main function of the processes that the test starts.
fn part(arguments: &[String]) {
    match arguments {
        [] => actor::serve(),
        [what, netdev] if what == "gso" => {
            sys::ethtool(netdev, sys::SET_SEGMENTATION, 1);
        }
        // It is there until its standard input ends.
        _ => {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        }
    }
}

/// A cell of the table with another outcome than the expected.
struct Wrong {
    column: String,
    row: String,
    why: String,
}

/// All that was found.
#[derive(Default)]
struct Found {
    cells: usize,
    wrong: Vec<Wrong>,
}

fn story(folder: &Path) {
    let tools = stage::tools(folder, Path::new(env!("CARGO_BIN_EXE_esw")));
    let rows = rows::rows();
    let only = std::env::var(ONLY).ok();
    let wanted = |columns: Vec<Column>| -> Vec<Column> {
        let is = |column: &Column| only.as_ref().is_none_or(|only| column.title == only);
        columns.into_iter().filter(is).collect()
    };
    let (processes, passed) = (wanted(columns::processes()), wanted(columns::passed()));
    let mut found = Found::default();
    let mut expected: [Expected; 2] = [vec![Vec::new(); rows.len()], vec![Vec::new(); rows.len()]];
    let mut plain = [World::plain("plain", &tools, &[]), World::plain("plain-own", &tools, stage::user())];
    let mut labs = [World::with_card("lab", &tools, &[]), World::with_card("own", &tools, stage::user())];
    every_writable_file_is_in_the_matrix(&labs[0], &rows, &mut found);
    for (columns, expected) in [&processes, &passed].into_iter().zip(&mut expected) {
        for column in columns {
            let without = try_all(&mut plain[usize::from(column.own)], column, &rows, |row| row.outside);
            let outcomes = try_all(&mut labs[usize::from(column.own)], column, &rows, |_| true);
            for (number, row) in rows.iter().enumerate() {
                let Some(outcome) = &outcomes[number] else {
                    expected[number].push(None);
                    continue;
                };
                let errno = without[number].as_ref().map_or_else(|| column.expected(row), |outcome| outcome.errno);
                expected[number].push(Some(errno));
                found.cells += 1;
                judge(column, row, errno, without[number].as_ref(), outcome, &mut found.wrong);
            }
        }
    }
    drop((plain, labs));
    let parts = [
        ("Who tries is one process:", &processes[..], &expected[0]),
        (
            "Who sends uses a socket that somebody else opened; both are in the lab where nothing else is said:",
            &passed[..],
            &expected[1],
        ),
    ];
    let documented: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../docs/lab.md"].iter().collect();
    // A part of the matrix is not the table.
    let table = only.map_or_else(|| table::compare(&documented, &table::tables(&rows, &parts)), |_| Ok(()));
    println!("{} cells, {} wrong", found.cells, found.wrong.len());
    for Wrong { column, row, why } in &found.wrong {
        println!("wrong: {column}: {row}: {why}");
    }
    assert!(found.wrong.is_empty(), "{} of {} cells are wrong", found.wrong.len(), found.cells);
    table.unwrap_or_else(|why| panic!("{why}"));
}

/// Has one user try every row.
fn try_all(world: &mut World, column: &Column, rows: &[Row], is: impl Fn(&Row) -> bool) -> Vec<Option<Outcome>> {
    let (actor, begun) = (world.start(column), std::time::Instant::now());
    let tried = rows
        .iter()
        .enumerate()
        .map(|(number, row)| (column.tries(row) && is(row)).then(|| world.attempt(&actor, row, number, column)));
    let tried: Vec<_> = tried.collect();
    println!("{}, {}: {} cells in {:.1?}", world.name, column.title, tried.iter().flatten().count(), begun.elapsed());
    tried
}

/// Whether the outcome of an attempt is the expected one.
fn judge(
    column: &Column,
    row: &Row,
    expected: i32,
    without: Option<&Outcome>,
    outcome: &Outcome,
    wrong: &mut Vec<Wrong>,
) {
    let mut tell = |why: String| {
        let row = format!("{}: {}{}", row.group, row.alike, row.title);
        wrong.push(Wrong { column: column.title.to_owned(), row, why });
    };
    let name = |errno: i32| match errno {
        0 => "done".to_owned(),
        netlink::NO_ANSWER => "no answer".to_owned(),
        errno => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    let said = &outcome.said;
    if let Some(without) = without {
        // The kernel is right, but the rule that the table gives must be its. What is the machine's, root of a container
        // may not have.
        let rule = column.expected(row);
        let refused = |errno| matches!(errno, libc::EPERM | libc::EACCES);
        let machine = matches!(row.rule, rows::Rule::FileThenMachine | rows::Rule::MachineFile);
        if !column.apart && !machine && refused(rule) != refused(without.errno) {
            tell(format!("the row's rule says {}, the kernel {} {}", name(rule), name(without.errno), without.said));
        }
        if without.errno != 0 && without.changed.is_some() || !without.said.is_empty() {
            tell(format!("outside the lab: {} {without:?}", name(without.errno)));
        }
    }
    if outcome.errno != expected {
        tell(format!("{} instead of {} {said}", name(outcome.errno), name(expected)));
    } else if !said.is_empty() {
        tell(said.clone());
    }
    match (column.change(row, outcome.errno), &outcome.changed) {
        (Change::Seen, None) => tell("is said to be done, and nothing has changed".to_owned()),
        (Change::None, Some(changed)) => {
            tell(format!("{}, and this has changed:\n        {changed}", name(outcome.errno)))
        }
        _ => {}
    }
}

/// Looks for files that may be written and that no row is for.
fn every_writable_file_is_in_the_matrix(lab: &World, rows: &[Row], found: &mut Found) {
    let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let known: Vec<String> = rows
        .iter()
        .filter_map(|row| match &row.attempt {
            Attempt::Write(path, _) => Some(base(path)),
            Attempt::WriteBack(_, file) => Some(base(file)),
            _ => None,
        })
        .collect();
    let files = lab.writable();
    assert!(files.len() > 50, "{files:?}");
    for path in files {
        found.cells += 1;
        if !rows::NOTHING_THERE.contains(&base(&path).as_str()) && !known.contains(&base(&path)) {
            let why = "it may be written, and no row is for it".to_owned();
            found.wrong.push(Wrong { column: "every file".to_owned(), row: path, why });
        }
    }
}
